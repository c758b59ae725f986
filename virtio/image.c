/*
 * A disk's image: opening it, locking it, and what the host knows of its size
 * and blocks.  Start-up only, on the thread that creates the device; blk.c reads
 * and writes through the descriptors left in struct image.
 *
 * Invariants:
 *  I1  An image one VM writes to is open in no other VM (where the file system
 *      can lock; where it cannot, a warning says so).
 *  I2  Nothing here changes the image.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "virtio/devices.h"

#define IMAGE_ALIGN_GUESS 4096u /* O_DIRECT where the kernel does not say */
#define IMAGE_FILE_BLOCK 4096u  /* of any file system worth the name */

/* Where a file is to be opened, and whom to tell when it is not. */
struct ask {
	const char *label;
	const struct virtio_blk_config *cfg;
	struct err *e;
};

static int image_open_file(struct image *im, const struct ask *ask)
{
	const char *label = ask->label, *path = ask->cfg->path;
	int flags = (im->readonly ? O_RDONLY : O_RDWR) | O_CLOEXEC | O_NOCTTY;
	struct stat st;

	/* Before open(), which hangs on a FIFO. */
	if (stat(path, &st) < 0)
		return err_sys(ask->e, -errno, "%s %s", label, path);
	if (!S_ISBLK(st.st_mode) && !S_ISREG(st.st_mode))
		return err_set(ask->e, -EINVAL, "%s %s: neither a regular file nor a block device",
			       label, path);
	/* O_EXCL: not one that this host has mounted */
	if (S_ISBLK(st.st_mode) && !im->readonly)
		flags |= O_EXCL;
	im->fd = open(path, flags);
	if (im->fd >= 0)
		return 0;
	if (errno == EBUSY)
		return err_set(ask->e, -EBUSY, "%s %s: in use by this host (mounted?)", label, path);
	if (!im->readonly && (errno == EACCES || errno == EROFS || errno == EPERM))
		return err_sys(ask->e, -errno,
			       "%s %s: not writable (a read-only disk needs no write permission)",
			       label, path);
	return err_sys(ask->e, -errno, "%s %s", label, path);
}

/* A lock of the open file, on all of it: shared when only reading, so that many
 * VMs may read one image, and gone when the descriptor is closed.  Rejected:
 * flock(), which udev also takes on block devices for a moment. */
static int image_lock(const struct image *im, const struct ask *ask)
{
	struct flock lock = { .l_type = im->readonly ? F_RDLCK : F_WRLCK, .l_whence = SEEK_SET };

	if (fcntl(im->fd, F_OFD_SETLK, &lock) == 0)
		return 0;
	if (errno == EAGAIN || errno == EACCES)
		return err_set(ask->e, -EBUSY, "%s %s: in use by another VM%s", ask->label,
			       ask->cfg->path,
			       im->readonly ? " that writes to it" :
					      " (only read-only disks can be shared)");
	log_warn("%s %s: cannot be locked (%s): make sure that no other VM uses it", ask->label,
		 ask->cfg->path, strerror(errno));
	return 0;
}

/* A file whose size is no multiple of a sector is refused: rounding down hides
 * its end from the guest, rounding up makes it grow. */
static int image_size(struct image *im, const struct ask *ask)
{
	const char *path = ask->cfg->path;
	off_t bytes = lseek(im->fd, 0, SEEK_END);

	if (bytes < 0)
		return err_sys(ask->e, -errno, "%s %s: finding its size", ask->label, path);
	if (bytes == 0)
		return err_set(ask->e, -EINVAL, "%s %s: empty, a disk has at least %u bytes",
			       ask->label, path, BLK_SECTOR);
	if (bytes % BLK_SECTOR != 0)
		return err_set(ask->e, -EINVAL,
			       "%s %s: its size, %lld bytes, is not a multiple of %u "
			       "(pad it with: truncate -s %%%u %s)",
			       ask->label, path, (long long)bytes, BLK_SECTOR, BLK_SECTOR, path);
	im->sectors = (uint64_t)bytes / BLK_SECTOR;
	return 0;
}

/* The id of GET_ID: the operator's, or the same one each time for a path. */
static int image_id(struct image *im, const struct ask *ask)
{
	char text[BLK_ID_BYTES + 1], *full;
	const char *id = ask->cfg->serial;

	if (id != NULL && strlen(id) > sizeof im->id)
		return err_set(ask->e, -EINVAL, "%s: serial '%s' is longer than %zu bytes",
			       ask->label, id, sizeof im->id);
	if (id == NULL) {
		full = realpath(ask->cfg->path, NULL);
		id = full != NULL ? full : ask->cfg->path;
		snprintf(text, sizeof text, "brim-%015llx", /* 60 of the hash's bits */
			 (unsigned long long)fnv1a(FNV1A_START, id, strlen(id)) >> 4);
		free(full);
		id = text;
	}
	memcpy(im->id, id, strlen(id));
	return 0;
}

static void image_blocks(struct image *im)
{
	int logical = BLK_SECTOR;
	unsigned physical = IMAGE_FILE_BLOCK;

	/* Both fail on a regular file and leave the values alone. */
	ioctl(im->fd, BLKSSZGET, &logical);
	ioctl(im->fd, BLKPBSZGET, &physical);
	im->block_bytes = (uint32_t)logical;
	im->physical_bytes = physical;
}

/* Opens the image once more for O_DIRECT, through /proc, so that it is the same
 * file.  Where that is not to be had, the disk works without. */
static void image_open_direct(struct image *im, const struct ask *ask)
{
	struct statx sx = { 0 };
	char path[64];

	im->mem_align = im->offset_align = IMAGE_ALIGN_GUESS;
	if (statx(im->fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &sx) == 0 &&
	    (sx.stx_mask & STATX_DIOALIGN) != 0) {
		im->mem_align = sx.stx_dio_mem_align; /* 0: no direct I/O */
		im->offset_align = sx.stx_dio_offset_align;
	}
	snprintf(path, sizeof path, "/proc/self/fd/%d", im->fd);
	if (im->mem_align != 0 && im->offset_align != 0)
		im->direct_fd = open(path, (im->readonly ? O_RDONLY : O_RDWR) | O_DIRECT | O_CLOEXEC);
	if (im->direct_fd < 0)
		log_warn("%s %s: no direct I/O on this file, using the page cache", ask->label,
			 ask->cfg->path);
	else if (im->offset_align > im->block_bytes)
		im->block_bytes = im->offset_align;
}

int image_open(struct image *im, const char *label, const struct virtio_blk_config *cfg,
	       struct err *e)
{
	const struct ask ask = { .label = label, .cfg = cfg, .e = e };
	int rc;

	*im = (struct image){ .fd = -1, .direct_fd = -1, .readonly = cfg->readonly };
	rc = image_open_file(im, &ask);
	if (rc == 0)
		rc = image_lock(im, &ask);
	if (rc == 0)
		rc = image_size(im, &ask);
	if (rc == 0)
		rc = image_id(im, &ask);
	if (rc != 0)
		return rc;
	image_blocks(im);
	if (cfg->direct)
		image_open_direct(im, &ask);
	/* A guest would not reach the end of a disk that ends inside a block. */
	if (im->sectors * BLK_SECTOR % im->block_bytes != 0)
		im->block_bytes = BLK_SECTOR;
	if (im->physical_bytes < im->block_bytes)
		im->physical_bytes = im->block_bytes;
	return 0;
}

void image_close(struct image *im)
{
	if (im->direct_fd >= 0)
		close(im->direct_fd);
	if (im->fd >= 0)
		close(im->fd);
	im->fd = im->direct_fd = -1;
}
