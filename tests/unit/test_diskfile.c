/*
 * mm/swap/file.c: what the file may be, and by what words it is refused.
 */
#include <sys/mount.h>

#include "tests/unit/diskbox.h"

/* ---- what the file may be --------------------------------------------------------------- */

static void refused(int rc, const char *named)
{
	cr_assert_eq(try_create(CAP), rc, "%s", err.msg);
	cr_assert(strstr(err.msg, named), "'%s' is not in: %s", named, err.msg);
	cr_assert(strstr(err.msg, path), "%s", err.msg);
	destroy();
}

static void write_file(const char *text, size_t n)
{
	int fd = open(path, O_CREAT | O_TRUNC | O_WRONLY, 0644);

	cr_assert_eq(write(fd, text, n), (ssize_t)n);
	close(fd);
}

Test(disk, disk_file_of_somebody_refused_unless_forced)
{
	static const char zeroes[8192];
	char text[16] = { 0 };
	FILE *f;

	choose_path();
	write_file("precious data\n", 14);
	refused(-EEXIST, "not a swap file");
	f = fopen(path, "r");
	cr_assert_eq(fread(text, 1, sizeof(text), f), 14, "untouched");
	cr_assert_str_eq(text, "precious data\n");
	fclose(f);
	write_file(zeroes, sizeof(zeroes));
	refused(-EEXIST, "not a swap file");
	disk.force = true;
	cr_assert_eq(try_create(CAP), 0, "%s", err.msg);
	destroy();
	disk.force = false;
	cr_assert_eq(try_create(CAP), 0, "now it is ours: %s", err.msg);
	destroy();
	write_file("", 0);
	cr_assert_eq(try_create(CAP), 0, "empty: %s", err.msg);
	destroy();
	forget_path();
}

Test(disk, disk_file_of_another_size_made_to_fit)
{
	struct stat st;

	choose_path();
	for (uint64_t mib = 30; mib >= 10; mib -= 10) {
		disk.size_bytes = mib * MiB;
		cr_assert_eq(try_create(CAP), 0, "%s", err.msg);
		cr_assert_eq(stats().disk_size_bytes, (mib - 1) * MiB);
		cr_assert_eq(stat(path, &st), 0);
		cr_assert_eq((uint64_t)st.st_size, mib * MiB);
		destroy();
	}
	disk.size_bytes = 0;
	cr_assert_eq(try_create(CAP), 0, "%s", err.msg);
	cr_assert_geq(stats().disk_size_bytes, PAGES * PAGE_BYTES / 8 * 9);
	destroy();
	forget_path();
}

Test(disk, disk_file_of_another_version_refused)
{
	uint32_t version = 2;

	choose_path();
	cr_assert_eq(try_create(CAP), 0);
	destroy();
	overwrite(16, &version, sizeof(version));
	refused(-EINVAL, "version");
	forget_path();
}

Test(disk, disk_file_in_use_refused)
{
	struct shadow *first;

	choose_path();
	cr_assert_eq(try_create(CAP), 0);
	first = sh;
	refused(-EBUSY, "another VM");
	sh = first;
	put_many(0, 1000, 1500);
	spill_all();
	check_all();
	destroy();
	cr_assert_eq(try_create(CAP), 0, "free again: %s", err.msg);
	destroy();
	forget_path();
}

Test(disk, disk_path_that_is_no_file_refused)
{
	choose_path();
	cr_assert_eq(mkdir(path, 0700), 0);
	refused(-EISDIR, "cannot open");
	cr_assert_eq(rmdir(path), 0);
	cr_assert_eq(mkfifo(path, 0600), 0);
	refused(-EINVAL, "neither a file nor");
	cr_assert_eq(unlink(path), 0);
	snprintf(path, sizeof(path), "%s/no/where", dir);
	refused(-ENOENT, "cannot open");
	cr_assert_eq(rmdir(dir), 0);
}

Test(disk, disk_settings_out_of_range_refused)
{
	choose_path();
	disk.size_bytes = 2 * MiB;
	refused(-EINVAL, "too small");
	cr_assert_neq(access(path, F_OK), 0, "nothing is left behind");
	disk.size_bytes = FILE_BYTES;
	cr_assert_eq(try_create(8 * MiB), -EINVAL);
	cr_assert(strstr(err.msg, "cap of 8"), "%s", err.msg);
	destroy();
	forget_path();
}

/* A file system of its own; only root can have that. */
Test(disk, disk_file_system_too_small_refused_by_name)
{
	if (geteuid() != 0)
		return;
	choose_path();
	if (mount("none", dir, "tmpfs", 0, "size=16m")) {
		cr_assert_eq(rmdir(dir), 0);
		return; /* root, but of a container */
	}
	refused(-ENOSPC, "16 MiB free, 24 MiB needed");
	cr_assert_neq(access(path, F_OK), 0, "nothing is left behind");
	disk.size_bytes = 12 * MiB;
	cr_assert_eq(try_create(CAP), 0, "%s", err.msg);
	put_many(0, 1000, 1500);
	spill_all();
	check_all();
	destroy();
	disk.size_bytes = FILE_BYTES;
	refused(-ENOSPC, "free, 24 MiB needed");
	cr_assert_eq(umount(dir), 0);
	cr_assert_eq(rmdir(dir), 0);
}

Test(disk, disk_describe_says_where)
{
	char text[256];

	begin(PLAIN);
	put_many(0, 1000, 1500);
	cr_assert_eq(put(4000, 5, 0), 0);
	swap_tier_disk.describe(sh->s, sh->ref[999].v, text, sizeof(text));
	cr_assert_str_eq(text, "the compressed pool");
	swap_tier_disk.describe(sh->s, sh->ref[4000].v, text, sizeof(text));
	cr_assert_str_eq(text, "same-filled");
	spill_all();
	swap_tier_disk.describe(sh->s, sh->ref[999].v, text, sizeof(text));
	cr_assert(strstr(text, path) && strstr(text, "at byte") && strstr(text, "(segment 1)"),
		  "%s", text);
	end();
}
