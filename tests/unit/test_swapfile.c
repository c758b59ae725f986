/*
 * mm/swap/file.c on file systems this machine need not have: what is asked of them, and what
 * the log says.  fstatfs(2) is answered here, and the attributes of a file are in a
 * variable; what the file may be otherwise is test_diskfile's.
 */
#include <fcntl.h>
#include <linux/fs.h>
#include <linux/magic.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "tests/unit/swapbox.h"

#define FILE_BYTES (8 * MiB)
#define ZFS_MAGIC 0x2fc12fc1

static long fs_type;
static int attributes, attributes_set;
static bool has_no_attributes;
static char dir[] = "/tmp/brim-swapfile-XXXXXX", path[64], said[4096];

int fstatfs(int fd, struct statfs *out)
{
	(void)fd;
	*out = (struct statfs){ .f_type = fs_type };
	return 0;
}

static int fake_ioctl(int fd, unsigned long request, void *arg)
{
	int *flags = arg;

	(void)fd;
	if (has_no_attributes) {
		errno = ENOTTY;
		return -1;
	}
	if (request == FS_IOC_GETFLAGS) {
		*flags = attributes;
		return 0;
	}
	cr_assert_eq(request, FS_IOC_SETFLAGS);
	attributes = *flags;
	attributes_set++;
	return 0;
}

/* Opens and closes it; `said` is what the log got. */
static void open_on(long type)
{
	struct mm_host host = mm_host_linux;
	struct swap_file f = { .bytes = FILE_BYTES };
	struct swap_disk_config cfg = { .path = path, .size_bytes = FILE_BYTES };
	struct err err = { "" };
	int log = memfd_create("log", MFD_CLOEXEC);
	ssize_t n;

	fs_type = type;
	attributes_set = 0;
	host.ioctl = fake_ioctl;
	log_init("test", log, LOG_WARN);
	cr_assert_eq(file_open(&f, &host, &cfg, &err), 0, "%s", err.msg);
	log_init("test", 2, LOG_INFO);
	file_close(&f, &host);
	n = pread(log, said, sizeof(said) - 1, 0);
	cr_assert_geq(n, 0);
	said[n] = '\0';
	close(log);
}

static void begin(void)
{
	cr_assert_not_null(mkdtemp(dir));
	snprintf(path, sizeof(path), "%s/swap", dir);
}

static void end(void)
{
	unlink(path);
	cr_assert_eq(rmdir(dir), 0);
}

Test(swapfile, swapfile_new_on_btrfs_is_made_to_be_written_in_place)
{
	begin();
	attributes = FS_NOATIME_FL;
	open_on(BTRFS_SUPER_MAGIC);
	cr_assert_eq(attributes, FS_NOATIME_FL | FS_NOCOW_FL);
	cr_assert_str_empty(said);
	open_on(BTRFS_SUPER_MAGIC); /* not empty now, and as it should be */
	cr_assert_eq(attributes_set, 0);
	cr_assert_str_empty(said);
	end();
}

/* Where it is not empty the kernel takes the attribute, and does nothing. */
Test(swapfile, swapfile_that_btrfs_copies_is_warned_of)
{
	begin();
	open_on(EXT4_SUPER_MAGIC);
	cr_assert_str_empty(said);
	open_on(BTRFS_SUPER_MAGIC);
	cr_assert_eq(attributes_set, 0);
	cr_assert(strstr(said, "copies what is written") && strstr(said, path), "%s", said);
	cr_assert(strstr(said, "chattr +C"), "%s", said);
	unlink(path);
	has_no_attributes = true;
	open_on(BTRFS_SUPER_MAGIC);
	cr_assert(strstr(said, "copies what is written"), "%s", said);
	end();
}

Test(swapfile, swapfile_on_others_that_copy_or_are_memory_is_warned_of)
{
	begin();
	open_on(ZFS_MAGIC);
	cr_assert(strstr(said, "copies what is written"), "%s", said);
	open_on(TMPFS_MAGIC);
	cr_assert(strstr(said, "is in memory"), "%s", said);
	open_on(XFS_SUPER_MAGIC);
	cr_assert_str_empty(said);
	cr_assert_eq(attributes_set, 0);
	end();
}

Test(swapfile, swapfile_device_that_is_not_there_is_not_made)
{
	struct swap_file f = { .bytes = FILE_BYTES };
	struct swap_disk_config cfg = { .path = "/dev/brim-no-such-disk", .size_bytes = FILE_BYTES };
	struct err err = { "" };
	int rc = file_open(&f, &mm_host_linux, &cfg, &err);

	cr_expect_neq(access(cfg.path, F_OK), 0);
	unlink(cfg.path);
	cr_assert_eq(rc, -ENOENT, "%d: %s", rc, err.msg);
	cr_assert(strstr(err.msg, "cannot open it"), "%s", err.msg);
}
