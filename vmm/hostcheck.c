/*
 * The checks of hostcheck.h, one row of `checks` each.  A check looks, and says
 * what it found, how bad that is, and what to do.  Nothing on the host is changed.
 * Those of KVM are in hostkvm.c.
 *
 * Threads: any; no state.
 */
#include "vmm/hostcheck.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <linux/userfaultfd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <unistd.h>

#include "vmm/internal.h"

/* ---- newer than the headers of Linux 6.1 ------------------------------------ */

#ifndef UFFD_FEATURE_WP_ASYNC
#define UFFD_FEATURE_WP_ASYNC (1 << 15)
#endif
#ifndef UFFD_FEATURE_MOVE
#define UFFD_FEATURE_MOVE (1 << 16)
#endif
#ifndef USERFAULTFD_IOC_NEW
#define USERFAULTFD_IOC_NEW _IO(0xAA, 0x00)
#endif

/* struct pm_scan_arg and PAGEMAP_SCAN of linux/fs.h, since 6.7. */
struct pagemap_scan {
	uint64_t size_bytes;
	uint64_t flags;
	uint64_t start, end, walk_end;
	uint64_t vec, vec_len;
	uint64_t max_pages;
	uint64_t category_inverted, category_mask, category_anyof_mask, return_mask;
};
#define PAGEMAP_SCAN_NR _IOWR('f', 16, struct pagemap_scan)
#define PAGEMAP_PRESENT ((uint64_t)1 << 3)

struct pagemap_region {
	uint64_t start, end, categories;
};

#define MAP_COUNT_ADVISED (1u << 20)

/* ---- findings ---------------------------------------------------------------- */

void host_found(struct host_finding *f, enum host_level level, const char *fmt, ...)
{
	va_list ap;

	f->level = level;
	va_start(ap, fmt);
	vsnprintf(f->found, sizeof(f->found), fmt, ap);
	va_end(ap);
}

void host_advise(struct host_finding *f, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(f->advice, sizeof(f->advice), fmt, ap);
	va_end(ap);
}

const char *host_level_name(enum host_level level)
{
	static const char *const names[] = {
		[HOST_OK] = "ok", [HOST_WARN] = "warn", [HOST_FAIL] = "fail",
	};

	return names[level];
}

/* ---- reading the host --------------------------------------------------------- */

FILE *host_open_text(const char *root, const char *path)
{
	char full[PATH_MAX];
	int n = snprintf(full, sizeof(full), "%s%s", root, path);

	return n > 0 && (size_t)n < sizeof(full) ? fopen(full, "re") : NULL;
}

/* The first line of a small file, without its newline. */
static bool read_line(const char *root, const char *path, char *buf, size_t len)
{
	FILE *f = host_open_text(root, path);
	bool ok;

	if (!f)
		return false;
	ok = fgets(buf, (int)len, f);
	fclose(f);
	if (ok)
		buf[strcspn(buf, "\n")] = '\0';
	return ok;
}

static bool read_number(const char *root, const char *path, uint64_t *value)
{
	char line[64];

	if (!read_line(root, path, line, sizeof(line)) || !isdigit((unsigned char)line[0]))
		return false;
	*value = strtoull(line, NULL, 10);
	return true;
}

/* A field of /proc/meminfo, in bytes; 0 when it is not there. */
static uint64_t meminfo_bytes(const char *root, const char *key)
{
	FILE *f = host_open_text(root, "/proc/meminfo");
	size_t n = strlen(key);
	uint64_t kib = 0;
	char line[128];

	while (f && fgets(line, sizeof(line), f))
		if (strncmp(line, key, n) == 0 && line[n] == ':')
			kib = strtoull(line + n + 1, NULL, 10);
	if (f)
		fclose(f);
	return kib * KiB;
}

/* ---- the kernel ------------------------------------------------------------------ */

int hostcheck_kernel(const char *release, struct err *e)
{
	unsigned major, minor;

	if (!isdigit((unsigned char)release[0]) || sscanf(release, "%3u.%3u", &major, &minor) != 2)
		return err_set(e, -EINVAL, "kernel release '%s' cannot be read", release);
	if (major < HOST_KERNEL_MAJOR ||
	    (major == HOST_KERNEL_MAJOR && minor < HOST_KERNEL_MINOR))
		return err_set(e, -EOPNOTSUPP, "this host runs Linux %s, brim needs %d.%d or later; boot "
			       "a newer kernel", release, HOST_KERNEL_MAJOR, HOST_KERNEL_MINOR);
	return 0;
}

static void check_kernel(const char *root, struct host_finding *f)
{
	struct utsname uts;
	struct err e;

	if (uname(&uts) < 0) {
		host_found(f, HOST_WARN, "uname: %s", strerror(errno));
	} else if (hostcheck_kernel(uts.release, &e)) {
		host_found(f, HOST_FAIL, "Linux %s; brim needs %d.%d or later", uts.release,
			   HOST_KERNEL_MAJOR, HOST_KERNEL_MINOR);
		host_advise(f, "boot a newer kernel (Debian: from backports)");
	} else {
		host_found(f, HOST_OK, "Linux %s", uts.release);
	}
}

/* ---- userfaultfd and page scanning ------------------------------------------------ */

/* One that also sees the faults KVM takes for a guest. */
static int open_uffd(const char *root)
{
	int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	char path[PATH_MAX];
	int dev;

	if (fd >= 0 || errno != EPERM)
		return fd < 0 ? -errno : fd;
	if (snprintf(path, sizeof(path), "%s/dev/userfaultfd", root) >= (int)sizeof(path))
		return -ENAMETOOLONG;
	dev = open(path, O_RDWR | O_CLOEXEC);
	if (dev < 0)
		return -EPERM;
	fd = ioctl(dev, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK);
	fd = fd < 0 ? -errno : fd;
	close(dev);
	return fd;
}

/* Asked for nothing, the kernel answers with all that it has. */
static bool uffd_features(int fd, uint64_t *features)
{
	struct uffdio_api api = { .api = UFFD_API };

	if (ioctl(fd, UFFDIO_API, &api) < 0)
		return false;
	*features = api.features;
	return true;
}

static void check_uffd(const char *root, struct host_finding *f)
{
	const uint64_t need = UFFD_FEATURE_MOVE | UFFD_FEATURE_WP_ASYNC;
	uint64_t features = 0;
	int fd = open_uffd(root);

	if (fd == -EPERM || fd == -EACCES) {
		host_found(f, HOST_WARN, "no permission");
		host_advise(f, "VMs run, but their cold pages cannot be taken: `sudo sysctl "
			    "vm.unprivileged_userfaultfd=1`, or give your group /dev/userfaultfd, or run as root");
	} else if (fd < 0) {
		host_found(f, HOST_WARN, "not there: %s", strerror(-fd));
		host_advise(f, "VMs run, but their cold pages cannot be taken: boot a kernel with "
			    "CONFIG_USERFAULTFD");
	} else if (!uffd_features(fd, &features) || (features & need) != need) {
		host_found(f, HOST_WARN, "missing:%s%s", features & UFFD_FEATURE_MOVE ? "" : " moving pages",
			   features & UFFD_FEATURE_WP_ASYNC ? "" : " asynchronous write protection");
		host_advise(f, "VMs run, but their cold pages cannot be taken: boot Linux %d.%d or later",
			    HOST_KERNEL_MAJOR, HOST_KERNEL_MINOR);
	} else {
		host_found(f, HOST_OK, "usable: moves pages, write-protects asynchronously");
	}
	if (fd >= 0)
		close(fd);
}

/* Asks for the present pages of one that was just written. */
static int try_pagemap_scan(void)
{
	struct pagemap_region region = { 0 };
	struct pagemap_scan scan = { .size_bytes = sizeof(scan), .vec = (uintptr_t)&region, .vec_len = 1,
		.category_mask = PAGEMAP_PRESENT, .return_mask = PAGEMAP_PRESENT };
	size_t page_bytes = (size_t)sysconf(_SC_PAGESIZE);
	char *page = MAP_FAILED;
	int fd, rc = 0;

	fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	page = mmap(NULL, page_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (page == MAP_FAILED) {
		rc = -errno;
		goto out;
	}
	*(volatile char *)page = 1;
	scan.start = (uintptr_t)page;
	scan.end = scan.start + page_bytes;
	rc = ioctl(fd, PAGEMAP_SCAN_NR, &scan);
	if (rc < 0)
		rc = -errno;
	else
		rc = rc == 1 && region.start == scan.start ? 0 : -EPROTO;
	munmap(page, page_bytes);
out:
	close(fd);
	return rc;
}

static void check_scan(const char *root, struct host_finding *f)
{
	int rc = try_pagemap_scan();

	if (rc == 0) {
		host_found(f, HOST_OK, "PAGEMAP_SCAN works");
		return;
	}
	host_found(f, HOST_WARN, "PAGEMAP_SCAN: %s", rc == -ENOTTY ? "unknown to this kernel" : strerror(-rc));
	host_advise(f, "VMs run, but which of their pages are cold cannot be told: boot Linux %d.%d or later",
		    HOST_KERNEL_MAJOR, HOST_KERNEL_MINOR);
}

/* ---- memory ------------------------------------------------------------------------ */

static void check_huge(const char *root, struct host_finding *f)
{
	char line[128], *open_bracket, *close_bracket;

	if (!read_line(root, "/sys/kernel/mm/transparent_hugepage/enabled", line, sizeof(line)) ||
	    !(open_bracket = strchr(line, '[')) || !(close_bracket = strchr(open_bracket, ']'))) {
		host_found(f, HOST_WARN, "this kernel has no transparent huge pages");
		host_advise(f, "guests run a little slower: boot a kernel with CONFIG_TRANSPARENT_HUGEPAGE");
		return;
	}
	*close_bracket = '\0';
	if (strcmp(open_bracket + 1, "never") == 0) {
		host_found(f, HOST_WARN, "transparent huge pages: never");
		host_advise(f, "guests run a little slower, --hugepages has no effect: `echo madvise | sudo tee "
			    "/sys/kernel/mm/transparent_hugepage/enabled`");
	} else {
		host_found(f, HOST_OK, "transparent huge pages: %s", open_bracket + 1);
	}
}

static void check_map_count(const char *root, struct host_finding *f)
{
	uint64_t n = 0;

	if (!read_number(root, "/proc/sys/vm/max_map_count", &n)) {
		host_found(f, HOST_WARN, "vm.max_map_count cannot be read");
		host_advise(f, "mount /proc");
	} else if (n < MAP_COUNT_ADVISED) {
		host_found(f, HOST_WARN, "vm.max_map_count is %" PRIu64, n);
		host_advise(f, "VMs run; page sharing will want more: `sudo sysctl vm.max_map_count=%u`",
			    MAP_COUNT_ADVISED);
	} else {
		host_found(f, HOST_OK, "vm.max_map_count is %" PRIu64, n);
	}
}

static void check_overcommit(const char *root, struct host_finding *f)
{
	uint64_t mode = 0;

	if (!read_number(root, "/proc/sys/vm/overcommit_memory", &mode)) {
		host_found(f, HOST_WARN, "vm.overcommit_memory cannot be read");
		host_advise(f, "mount /proc");
	} else if (mode == 2) {
		host_found(f, HOST_FAIL, "vm.overcommit_memory is 2: the kernel refuses to promise more memory "
			   "than it has");
		host_advise(f, "`sudo sysctl vm.overcommit_memory=0`, and look in /etc/sysctl.d for what set it");
	} else {
		host_found(f, HOST_OK, "vm.overcommit_memory is %" PRIu64, mode);
	}
}

static void check_memory(const char *root, struct host_finding *f)
{
	uint64_t total = meminfo_bytes(root, "MemTotal"), avail = meminfo_bytes(root, "MemAvailable");
	char a[32], b[32];

	if (!total) {
		host_found(f, HOST_WARN, "cannot be read from /proc/meminfo");
		host_advise(f, "mount /proc");
		return;
	}
	host_found(f, avail < total / 10 ? HOST_WARN : HOST_OK, "%s, of which %s available",
		   size_format(a, sizeof(a), total), size_format(b, sizeof(b), avail));
	if (f->level != HOST_OK)
		host_advise(f, "less than a tenth is available: free some before starting VMs");
}

static void check_swap(const char *root, struct host_finding *f)
{
	uint64_t total = meminfo_bytes(root, "SwapTotal"), unused = meminfo_bytes(root, "SwapFree");
	char a[32], b[32];

	if (!total) {
		host_found(f, HOST_WARN, "none");
		host_advise(f, "when guests want back more than the host has, the kernel can only kill one of "
			    "them: add swap space");
		return;
	}
	host_found(f, HOST_OK, "%s, of which %s free", size_format(a, sizeof(a), total),
		   size_format(b, sizeof(b), unused));
}

static void check_tun(const char *root, struct host_finding *f)
{
	char path[PATH_MAX];
	int fd;

	snprintf(path, sizeof(path), "%s/dev/net/tun", root);
	fd = open(path, O_RDWR | O_CLOEXEC);
	if (fd >= 0) {
		close(fd);
		host_found(f, HOST_OK, "/dev/net/tun can be opened");
	} else {
		host_found(f, HOST_WARN, "/dev/net/tun: %s", strerror(errno));
		host_advise(f, "VMs run, but without --net: %s",
			    errno == EACCES ? "`sudo chmod 666 /dev/net/tun`" : "`sudo modprobe tun`");
	}
}

/* ---- all of them ------------------------------------------------------------------- */

static const struct {
	const char *name;
	void (*check)(const char *root, struct host_finding *f);
} checks[] = {
	{ "kvm", host_check_kvm },
	{ "kvm speed", host_check_kvm_real },
	{ "kvm features", host_check_kvm_features },
	{ "kernel", check_kernel },
	{ "userfaultfd", check_uffd },
	{ "page scan", check_scan },
	{ "huge pages", check_huge },
	{ "mappings", check_map_count },
	{ "overcommit", check_overcommit },
	{ "memory", check_memory },
	{ "swap", check_swap },
	{ "network", check_tun },
};

_Static_assert(ARRAY_LEN(checks) <= HOST_CHECKS_MAX, "HOST_CHECKS_MAX is too small");

size_t hostcheck_all(const char *root, struct host_finding out[HOST_CHECKS_MAX])
{
	for (size_t i = 0; i < ARRAY_LEN(checks); i++) {
		memset(&out[i], 0, sizeof(out[i]));
		out[i].name = checks[i].name;
		checks[i].check(root, &out[i]);
	}
	return ARRAY_LEN(checks);
}
