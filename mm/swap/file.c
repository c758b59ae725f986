/*
 * The swap file: found, checked, locked, reserved, marked.  Nothing is read or written
 * here but its first block.
 *
 *   block 0            the header: whose file this is
 *   to 1 MiB           nothing
 *   (i + 1) MiB        segment i
 *
 * What is in it is of use to nobody once its VM has ended: there is no table on disk,
 * no generation, nothing to recover.  The header is there for one thing only: that a
 * file with somebody's data is never taken for ours.
 *
 * A regular file is taken when it is empty or has the header, and a device when its
 * first MiB is empty or has it (partition tables, LVM, RAID, btrfs and the others all
 * have something there); `force` takes any.
 *
 * Reserved means allocated: fallocate(2) gives the file real blocks, so that no write
 * can find the file system full.  For the same reason no hole is ever punched into a
 * regular file: what it gives up somebody else takes.  A file system that copies on
 * write keeps no such promise, whatever it answers.  On btrfs an empty file can be told
 * to be written in place (chattr +C), and is; elsewhere, or where the file is not
 * empty, the log has a warning.  A device has no such question.
 *
 * Threads: one, at create and destroy.
 */
#include "mm/swap/internal.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <linux/magic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/vfs.h>
#include <unistd.h>

#define MODE 0600
#define PROBE_BYTES MiB /* of a device that is to be empty */

/* Of file systems that are no part of Linux' headers, or not of all. */
#define ZFS_MAGIC 0x2fc12fc1u
#define BCACHEFS_MAGIC 0xca451a4eu

static const struct header {
	char magic[16];
	uint32_t version;
	char zero[44];
	char words[64];
} header = {
	.magic = "brim swap file\n",
	.version = 1,
	.words = "The memory of a VM that may have ended. Delete it if so.\n",
};

struct opening {
	struct swap_file *f;
	const struct mm_host *host;
	const struct swap_disk_config *cfg;
	struct err *e;
	uint64_t size_bytes; /* now */
	bool is_new;
	uint8_t *probe;      /* [PROBE_BYTES] */
};

static int wrong(const struct opening *o, int rc, const char *what)
{
	return err_sys(o->e, rc, "swap: %s: %s", o->cfg->path, what);
}

/* ---- what it is ----------------------------------------------------------------- */

/* A device's name misspelt: a file made there would be in memory. */
static bool is_device_name(const char *path)
{
	return !strncmp(path, "/dev/", 5) && strncmp(path, "/dev/shm/", 9) != 0;
}

static int open_path(struct opening *o)
{
	int flags = O_RDWR | O_CLOEXEC | O_NOCTTY | O_NONBLOCK;

	errno = EEXIST;
	if (!is_device_name(o->cfg->path))
		o->f->fd = open(o->cfg->path, flags | O_CREAT | O_EXCL, MODE);
	o->is_new = o->f->fd >= 0;
	if (o->f->fd < 0 && errno == EEXIST)
		o->f->fd = open(o->cfg->path, flags);
	return o->f->fd < 0 ? wrong(o, -errno, "cannot open it") : 0;
}

/* Opened again so that nobody else has it: a mounted device is not taken, not even
 * with `force`. */
static int open_device(struct opening *o)
{
	int fd = open(o->cfg->path, O_RDWR | O_CLOEXEC | O_EXCL);

	if (fd < 0 && errno == EBUSY)
		return err_set(o->e, -EBUSY, "swap: %s: this device is in use: mounted, part of "
			       "another, or another VM has it", o->cfg->path);
	if (fd < 0)
		return wrong(o, -errno, "cannot have this device alone");
	close(o->f->fd);
	o->f->fd = fd;
	o->f->is_device = true;
	if (o->host->ioctl(fd, BLKGETSIZE64, &o->size_bytes) < 0)
		return wrong(o, -errno, "cannot tell its size");
	return 0;
}

static int find_kind(struct opening *o)
{
	struct stat st;

	if (fstat(o->f->fd, &st) < 0)
		return wrong(o, -errno, "cannot look at it");
	o->size_bytes = (uint64_t)st.st_size;
	if (S_ISBLK(st.st_mode))
		return open_device(o);
	if (!S_ISREG(st.st_mode))
		return err_set(o->e, -EINVAL, "swap: %s: neither a file nor a block device",
			       o->cfg->path);
	return 0;
}

static int lock(struct opening *o)
{
	if (!flock(o->f->fd, LOCK_EX | LOCK_NB))
		return 0;
	if (errno == EWOULDBLOCK)
		return err_set(o->e, -EBUSY, "swap: %s: another VM has it", o->cfg->path);
	return wrong(o, -errno, "cannot lock it");
}

/* ---- whose it is ---------------------------------------------------------------- */

static bool is_empty(const uint8_t *p, uint64_t bytes)
{
	return p[0] == 0 && !memcmp(p, p + 1, bytes - 1);
}

static int check_header(struct opening *o)
{
	const struct header *h = (const struct header *)(const void *)o->probe;
	int64_t got;

	if (o->size_bytes == 0 || o->cfg->force)
		return 0;
	memset(o->probe, 0, PROBE_BYTES);
	got = o->host->pread(o->f->fd, o->probe, PROBE_BYTES, 0);
	if (got < 0)
		return wrong(o, -errno, "cannot read its first blocks");
	if (!memcmp(h->magic, header.magic, sizeof(h->magic)))
		return h->version == header.version ? 0 :
			err_set(o->e, -EINVAL, "swap: %s: of another version of brim (force takes it)",
				o->cfg->path);
	if (o->f->is_device && got == (int64_t)PROBE_BYTES && is_empty(o->probe, PROBE_BYTES))
		return 0;
	return err_set(o->e, -EEXIST, "swap: %s: not a swap file of brim's, and not empty "
		       "(force overwrites it)", o->cfg->path);
}

static int write_header(struct opening *o)
{
	memset(o->probe, 0, MM_BLOCK_BYTES);
	memcpy(o->probe, &header, sizeof(header));
	if (o->host->pwrite(o->f->fd, o->probe, MM_BLOCK_BYTES, 0) != (int64_t)MM_BLOCK_BYTES)
		return wrong(o, errno ? -errno : -EIO, "cannot write its header");
	return 0;
}

/* ---- its space -------------------------------------------------------------------- */

static int too_small(const struct opening *o, uint64_t free_bytes)
{
	char has[32], needs[32];

	return err_set(o->e, -ENOSPC, "swap: %s: %s %s, %s needed", o->cfg->path,
		       size_format(has, sizeof(has), free_bytes),
		       o->f->is_device ? "large" : "free",
		       size_format(needs, sizeof(needs), o->f->bytes));
}

/* Takes on an empty file only, and says nothing elsewhere. */
static bool make_in_place(const struct opening *o)
{
	int flags = 0;

	if (o->host->ioctl(o->f->fd, FS_IOC_GETFLAGS, &flags) < 0)
		return false;
	if (flags & FS_NOCOW_FL)
		return true;
	flags |= FS_NOCOW_FL;
	return o->size_bytes == 0 && o->host->ioctl(o->f->fd, FS_IOC_SETFLAGS, &flags) == 0;
}

static bool copies_on_write(const struct opening *o, uint32_t fs)
{
	if (fs == BTRFS_SUPER_MAGIC)
		return !make_in_place(o);
	return fs == ZFS_MAGIC || fs == BCACHEFS_MAGIC;
}

static void warn_of_file_system(const struct opening *o)
{
	struct statfs fs = { 0 };

	if (fstatfs(o->f->fd, &fs) < 0)
		return;
	if (copies_on_write(o, (uint32_t)fs.f_type))
		log_warn("swap: %s: its file system copies what is written again, and may have no "
			 "room for that: use a block device, or on btrfs an empty file with "
			 "`chattr +C`", o->cfg->path);
	if (fs.f_type == TMPFS_MAGIC || fs.f_type == RAMFS_MAGIC)
		log_warn("swap: %s: its file system is in memory: nothing is gained", o->cfg->path);
}

static int reserve_file(struct opening *o)
{
	struct statvfs v = { 0 };
	uint64_t free_bytes;
	int rc;

	warn_of_file_system(o);
	if (o->size_bytes > o->f->bytes && ftruncate(o->f->fd, (off_t)o->f->bytes) < 0)
		return wrong(o, -errno, "cannot shorten it");
	if (fstatvfs(o->f->fd, &v) < 0)
		return wrong(o, -errno, "cannot ask its file system for space");
	free_bytes = v.f_bavail * v.f_frsize;
	if (!o->host->fallocate(o->f->fd, 0, 0, (int64_t)o->f->bytes))
		return 0;
	rc = -errno;
	/* what it got before it failed goes back */
	if (ftruncate(o->f->fd, (off_t)o->size_bytes) < 0)
		log_warn("swap: %s: cannot shorten it: %s", o->cfg->path, strerror(errno));
	return rc == -ENOSPC ? too_small(o, free_bytes) :
			       wrong(o, rc, "cannot reserve its space");
}

static int reserve(struct opening *o)
{
	if (!o->f->is_device)
		return reserve_file(o);
	if (!o->cfg->size_bytes)
		o->f->bytes = o->size_bytes;
	return o->size_bytes < o->f->bytes ? too_small(o, o->size_bytes) : 0;
}

/* Past the page cache, which is memory of the host too.  Where it is refused, swap
 * works, and costs that memory. */
static void go_direct(const struct opening *o)
{
	int flags = fcntl(o->f->fd, F_GETFL);

	if (flags < 0 || fcntl(o->f->fd, F_SETFL, (flags & ~O_NONBLOCK) | O_DIRECT) < 0)
		log_info("swap: %s: no direct I/O here (%s): it goes through the page cache",
			 o->cfg->path, strerror(errno));
}

/* ---- all together ------------------------------------------------------------------ */

static int take(struct opening *o)
{
	int rc = open_path(o);

	if (!rc)
		rc = find_kind(o);
	if (!rc)
		rc = lock(o);
	if (!rc)
		rc = check_header(o);
	if (!rc)
		rc = reserve(o);
	if (rc)
		return rc;
	go_direct(o);
	return write_header(o);
}

int file_open(struct swap_file *f, const struct mm_host *host,
	      const struct swap_disk_config *cfg, struct err *e)
{
	struct opening o = { .f = f, .host = host, .cfg = cfg, .e = e };
	int rc;

	f->fd = -1;
	if (posix_memalign((void **)&o.probe, MM_BLOCK_BYTES, PROBE_BYTES))
		return err_sys(e, -ENOMEM, "swap: no memory to look at %s", cfg->path);
	rc = take(&o);
	/* what came of nothing should not keep half the disk */
	if (rc && o.is_new)
		unlink(cfg->path);
	if (rc)
		file_close(f, host);
	free(o.probe);
	return rc;
}

void file_close(struct swap_file *f, const struct mm_host *host)
{
	if (f->fd >= 0)
		host->close(f->fd);
	f->fd = -1;
}
