/*
 * What `brim doctor` says of hosts that are made up: a directory stands in for
 * /, with the few files of /proc, /sys and /dev that the checks read.
 */
#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/utsname.h>
#include <unistd.h>

#include "vmm/hostcheck.h"

static char root[64];

static void begin(void)
{
	snprintf(root, sizeof(root), "/tmp/test_hostcheck.XXXXXX");
	cr_assert(mkdtemp(root));
}

static void finish(void)
{
	char cmd[128];

	snprintf(cmd, sizeof(cmd), "rm -rf '%s'", root);
	cr_expect_eq(system(cmd), 0);
}

static void put(const char *path, const char *content)
{
	char full[256];
	int fd;

	snprintf(full, sizeof(full), "mkdir -p \"$(dirname '%s%s')\"", root, path);
	cr_assert_eq(system(full), 0);
	snprintf(full, sizeof(full), "%s%s", root, path);
	fd = open(full, O_WRONLY | O_CREAT | O_TRUNC, 0644);
	cr_assert(fd >= 0 && write(fd, content, strlen(content)) == (ssize_t)strlen(content));
	close(fd);
}

static struct host_finding look(const char *name)
{
	static struct host_finding f[HOST_CHECKS_MAX];
	size_t n = hostcheck_all(root, f);

	for (size_t i = 0; i < n; i++)
		if (strcmp(f[i].name, name) == 0)
			return f[i];
	cr_assert_fail("no check named %s", name);
	return f[0];
}

/* ---- the kernel ------------------------------------------------------------------- */

Test(hostcheck, kernel_release_is_compared_by_number)
{
	static const struct { const char *release; int rc; } rows[] = {
		{ "6.8.0", 0 }, { "6.8", 0 }, { "6.8-rc1", 0 }, { "6.10.3-1-generic", 0 }, { "6.18.44-fc", 0 },
		{ "7.0.0", 0 }, { "10.0", 0 },
		{ "6.7.12", -EOPNOTSUPP }, { "6.1.0-18-amd64", -EOPNOTSUPP }, { "5.15.0", -EOPNOTSUPP },
		{ "2.6.78", -EOPNOTSUPP },
		{ "", -EINVAL }, { "linux", -EINVAL }, { "6", -EINVAL }, { "-6.8", -EINVAL }, { " 6.8", -EINVAL },
	};

	for (size_t i = 0; i < ARRAY_LEN(rows); i++) {
		struct err e = { "" };

		cr_expect_eq(hostcheck_kernel(rows[i].release, &e), rows[i].rc, "'%s'", rows[i].release);
		cr_expect(!rows[i].rc || strstr(e.msg, rows[i].release), "'%s': %s", rows[i].release, e.msg);
	}
}

/* ---- KVM ---------------------------------------------------------------------------- */

TestSuite(hostcheck_root, .init = begin, .fini = finish);

Test(hostcheck_root, kvm_missing_names_the_remedy)
{
	struct err e = { "" };

	cr_expect_eq(hostcheck_kvm_at(root, true, &e), -ENOENT);
	cr_expect(strstr(e.msg, "/dev/kvm: there is no KVM"), "%s", e.msg);
	cr_expect(strstr(e.msg, "modprobe kvm_intel"), "%s", e.msg);
	cr_expect_eq(look("kvm").level, HOST_FAIL);
	cr_expect(strstr(look("kvm").advice, "modprobe kvm_intel"));
	cr_expect_eq(look("kvm features").level, HOST_FAIL);
}

Test(hostcheck_root, kvm_that_is_a_file_is_not_believed)
{
	struct err e = { "" };

	put("/dev/kvm", "");
	cr_expect_eq(hostcheck_kvm_at(root, true, &e), -ENOTTY);
	cr_expect(strstr(e.msg, "is not the KVM device"), "%s", e.msg);
}

Test(hostcheck_root, kvm_without_rights_names_its_group)
{
	char path[128];
	struct err e = { "" };

	put("/dev/kvm", "");
	snprintf(path, sizeof(path), "%s/dev/kvm", root);
	if (geteuid() != 0 || chown(path, 0, 2) < 0 || chmod(path, 0660) < 0)
		cr_skip_test("only root can make a file of another");
	cr_assert_eq(chmod(root, 0755), 0);
	cr_assert_eq(setegid(65534), 0);
	cr_assert_eq(seteuid(65534), 0);
	cr_expect_eq(hostcheck_kvm_at(root, true, &e), -EACCES);
	cr_expect(strstr(e.msg, "usermod -aG bin $USER"), "%s", e.msg);
	cr_assert_eq(seteuid(0), 0);
	cr_assert_eq(chmod(path, 0600), 0);
	cr_assert_eq(seteuid(65534), 0);
	cr_expect_eq(hostcheck_kvm_at(root, true, &e), -EACCES);
	cr_expect(strstr(e.msg, "no group has any"), "%s", e.msg);
	cr_assert_eq(seteuid(0), 0);
}

Test(hostcheck_root, cpu_flags_are_whole_words)
{
	put("/proc/cpuinfo", "processor\t: 0\nflags\t\t: fpu vmx_ept xsvm\n");
	cr_expect(strstr(look("kvm speed").found, "neither vmx nor svm"), "%s", look("kvm speed").found);
	cr_expect_eq(look("kvm speed").level, HOST_FAIL);
	put("/proc/cpuinfo", "processor\t: 0\nflags\t\t: fpu vmx_ept svm\n");
	cr_expect(strstr(look("kvm speed").found, "the CPU has svm"), "%s", look("kvm speed").found);
	cr_expect_eq(look("kvm speed").level, HOST_WARN);
}

/* On this very machine, whatever it is: the answers must agree. */
Test(hostcheck, kvm_of_this_machine_is_judged_the_same_twice)
{
	struct host_finding f[HOST_CHECKS_MAX];
	struct err e = { "" };
	size_t n;
	int rc;

	if (access("/dev/kvm", R_OK | W_OK) < 0)
		cr_skip_test("no /dev/kvm here");
	n = hostcheck_all("", f);
	rc = hostcheck_kvm(false, &e);
	for (size_t i = 0; i < n; i++)
		if (strcmp(f[i].name, "kvm speed") == 0)
			cr_expect_eq(f[i].level == HOST_FAIL, rc == -EOPNOTSUPP, "%s; %s", f[i].found, e.msg);
	cr_expect(!rc || strstr(e.msg, "--allow-emulated-kvm"), "%s", e.msg);
	cr_expect_eq(hostcheck_kvm(true, &e), 0, "%s", e.msg);
}

Test(hostcheck, nothing_is_left_open)
{
	struct host_finding f[HOST_CHECKS_MAX];
	int before = dup(0), after;

	close(before);
	hostcheck_all("", f);
	hostcheck_kvm(false, NULL);
	after = dup(0);
	close(after);
	cr_expect_eq(before, after);
}

/* ---- settings ------------------------------------------------------------------------ */

Test(hostcheck_root, settings_are_judged)
{
	static const struct {
		const char *path, *content, *check;
		enum host_level level;
		const char *says;
	} rows[] = {
		{ "/sys/kernel/mm/transparent_hugepage/enabled", "always [madvise] never\n", "huge pages",
		  HOST_OK, "madvise" },
		{ "/sys/kernel/mm/transparent_hugepage/enabled", "always madvise [never]\n", "huge pages",
		  HOST_WARN, "never" },
		{ "/sys/kernel/mm/transparent_hugepage/enabled", "nonsense\n", "huge pages", HOST_WARN, "no " },
		{ "/proc/sys/vm/max_map_count", "65530\n", "mappings", HOST_WARN, "65530" },
		{ "/proc/sys/vm/max_map_count", "1048576\n", "mappings", HOST_OK, "1048576" },
		{ "/proc/sys/vm/overcommit_memory", "0\n", "overcommit", HOST_OK, "0" },
		{ "/proc/sys/vm/overcommit_memory", "2\n", "overcommit", HOST_FAIL, "2" },
		{ "/proc/meminfo", "MemTotal: 1048576 kB\nMemAvailable: 524288 kB\nSwapTotal: 0 kB\n", "memory",
		  HOST_OK, "1 GiB, of which 512 MiB available" },
		{ "/proc/meminfo", "MemTotal: 1048576 kB\nMemAvailable: 52428 kB\n", "memory", HOST_WARN, "1 GiB" },
		{ "/proc/meminfo", "MemTotal: 1 kB\nSwapTotal: 0 kB\n", "swap", HOST_WARN, "none" },
		{ "/proc/meminfo", "SwapTotal: 2097152 kB\nSwapFree: 1048576 kB\n", "swap", HOST_OK,
		  "2 GiB, of which 1 GiB free" },
		{ "/dev/net/tun", "", "network", HOST_OK, "can be opened" },
	};

	for (size_t i = 0; i < ARRAY_LEN(rows); i++) {
		struct host_finding f;

		put(rows[i].path, rows[i].content);
		f = look(rows[i].check);
		cr_expect_eq(f.level, rows[i].level, "%s '%s': %s", rows[i].check, rows[i].content, f.found);
		cr_expect(strstr(f.found, rows[i].says), "%s: %s", rows[i].check, f.found);
		cr_expect_eq(f.level == HOST_OK, f.advice[0] == '\0', "%s: %s", rows[i].check, f.advice);
	}
}

Test(hostcheck_root, bare_host_fails_with_advice_on_every_line)
{
	struct host_finding f[HOST_CHECKS_MAX];
	size_t n = hostcheck_all(root, f);

	cr_expect(n > 10);
	for (size_t i = 0; i < n; i++) {
		cr_expect(f[i].found[0], "%s", f[i].name);
		cr_expect_eq(f[i].level == HOST_OK, f[i].advice[0] == '\0', "%s", f[i].name);
	}
}

/* An old kernel, as the doctor sees it: the same program under another uname. */
Test(hostcheck, kernel_check_reads_uname)
{
	struct host_finding f[HOST_CHECKS_MAX];
	struct utsname uts;
	size_t n = hostcheck_all("", f);

	uname(&uts);
	for (size_t i = 0; i < n; i++)
		if (strcmp(f[i].name, "kernel") == 0) {
			cr_expect_eq(f[i].level == HOST_FAIL, hostcheck_kernel(uts.release, NULL) != 0);
			cr_expect(strstr(f[i].found, uts.release));
		}
}
