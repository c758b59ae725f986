/*
 * The checks of hostcheck.h, one row of `checks` each.  A check looks, and says
 * what it found, how bad that is, and what to do.  Nothing on the host is changed.
 *
 * KVM that only emulates: on some machines /dev/kvm opens and guests run, but
 * instruction by instruction in the kernel.  A stock guest kernel then does not
 * get through its own decompression.  The CPU's vmx or svm flag tells nearly
 * always; where it is missing a short guest loop is timed, because there is KVM
 * without either flag that is fast.
 *
 * Threads: any; no state.
 */
#include "vmm/hostcheck.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <inttypes.h>
#include <limits.h>
#include <linux/kvm.h>
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

#define KVM_FEATURES_LEAF 0x40000001u
#define KVM_FEATURE_ASYNC_PF_BIT (1u << 4)
#define CPUID_ENTRIES_MAX 256

#define MAP_COUNT_ADVISED (1u << 20)
#define LOOP_PAGE_BYTES 4096

/* ---- findings ---------------------------------------------------------------- */

__attribute__((format(printf, 3, 4)))
static void found(struct host_finding *f, enum host_level level, const char *fmt, ...)
{
	va_list ap;

	f->level = level;
	va_start(ap, fmt);
	vsnprintf(f->found, sizeof(f->found), fmt, ap);
	va_end(ap);
}

__attribute__((format(printf, 2, 3)))
static void advise(struct host_finding *f, const char *fmt, ...)
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

static FILE *open_text(const char *root, const char *path)
{
	char full[PATH_MAX];
	int n = snprintf(full, sizeof(full), "%s%s", root, path);

	return n > 0 && (size_t)n < sizeof(full) ? fopen(full, "re") : NULL;
}

/* The first line of a small file, without its newline. */
static bool read_line(const char *root, const char *path, char *buf, size_t len)
{
	FILE *f = open_text(root, path);
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
	FILE *f = open_text(root, "/proc/meminfo");
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

static bool has_word(const char *text, const char *word)
{
	size_t n = strlen(word);

	for (const char *at = strstr(text, word); at; at = strstr(at + 1, word))
		if (isspace((unsigned char)at[-1]) && (at[n] == '\0' || isspace((unsigned char)at[n])))
			return true;
	return false;
}

/* "vmx" or "svm", or NULL. All CPUs of a host have the same flags. */
static const char *cpu_flag(const char *root)
{
	FILE *f = open_text(root, "/proc/cpuinfo");
	const char *flag = NULL;
	char *line = NULL;
	size_t room = 0;

	while (f && getline(&line, &room, f) > 0) {
		if (strncmp(line, "flags", 5) != 0)
			continue;
		flag = has_word(line, "vmx") ? "vmx" : has_word(line, "svm") ? "svm" : NULL;
		break;
	}
	free(line);
	if (f)
		fclose(f);
	return flag;
}

/* ---- KVM: there, ours, real ------------------------------------------------------ */

static int explain_rights(const char *path, struct err *e)
{
	struct group *gr = NULL;
	struct stat st;

	if (stat(path, &st) == 0 && (st.st_mode & 0060) == 0060 && st.st_gid != 0)
		gr = getgrgid(st.st_gid);
	if (gr)
		return err_set(e, -EACCES, "%s: no permission; join its group with `sudo usermod -aG %s "
			       "$USER` and log in again", path, gr->gr_name);
	return err_set(e, -EACCES, "%s: no permission, and no group has any; run as root, or give it "
		       "to group kvm with `sudo chgrp kvm %s && sudo chmod 660 %s` and join that group",
		       path, path, path);
}

static int explain_kvm(const char *path, int code, struct err *e)
{
	switch (code) {
	case -ENOENT:
	case -ENODEV:
	case -ENXIO:
		return err_set(e, code, "%s: there is no KVM; enable virtualisation in the firmware and "
			       "`sudo modprobe kvm_intel` or kvm_amd (in a VM: have nested virtualisation "
			       "enabled; in a container: pass the device in)", path);
	case -EACCES:
	case -EPERM:
		return explain_rights(path, e);
	case -ENOTTY:
		return err_set(e, code, "%s is not the KVM device; find out what put it there", path);
	default:
		return err_sys(e, code, "%s: cannot be used", path);
	}
}

/* Opens KVM and makes sure that it is KVM. */
static int open_kvm(const char *root, int *out, struct err *e)
{
	char path[PATH_MAX];
	int fd, version, rc;

	if (snprintf(path, sizeof(path), "%s/dev/kvm", root) >= (int)sizeof(path))
		return err_set(e, -ENAMETOOLONG, "%s/dev/kvm: the path is too long", root);
	fd = open(path, O_RDWR | O_CLOEXEC);
	if (fd < 0)
		return explain_kvm(path, -errno, e);
	version = ioctl(fd, KVM_GET_API_VERSION, 0);
	if (version == KVM_API_VERSION) {
		*out = fd;
		return 0;
	}
	rc = version < 0 ? explain_kvm(path, -errno, e)
			 : err_set(e, -EPROTO, "%s: KVM interface version %d, brim knows %d", path,
				   version, KVM_API_VERSION);
	close(fd);
	return rc;
}

/*
 * The guest loop: 16-bit code at the start of the only page.
 *	again:	mov ecx, LOOP_COUNT
 *	loop:	dec ecx
 *		jnz loop
 *		out 0x10, al	(exit: the host looks at its clock)
 *		jmp again
 */
#define LOOP_COUNT 20000
#define LOOP_ADDR 0x1000
#define LOOP_ROUNDS 8
#define LOOP_BUDGET_NS 300000000ull

static const uint8_t loop_code[] = {
	0x66, 0xb9, LOOP_COUNT & 0xff, LOOP_COUNT >> 8, 0, 0,
	0x66, 0x49,
	0x75, 0xfc,
	0xe6, 0x10,
	0xeb, 0xf2,
};

struct loop_vm {
	int vm_fd, vcpu_fd;
	void *page, *run;
	size_t run_bytes;
};

static void loop_vm_fini(struct loop_vm *l)
{
	if (l->run != MAP_FAILED)
		munmap(l->run, l->run_bytes);
	if (l->vcpu_fd >= 0)
		close(l->vcpu_fd);
	if (l->vm_fd >= 0)
		close(l->vm_fd);
	if (l->page != MAP_FAILED)
		munmap(l->page, LOOP_PAGE_BYTES);
}

static bool loop_vm_load(struct loop_vm *l)
{
	struct kvm_regs regs = { .rip = LOOP_ADDR, .rflags = 2 };
	struct kvm_userspace_memory_region mem = {
		.guest_phys_addr = LOOP_ADDR,
		.memory_size = LOOP_PAGE_BYTES,
		.userspace_addr = (uintptr_t)l->page,
	};
	struct kvm_sregs sregs;

	memcpy(l->page, loop_code, sizeof(loop_code));
	if (ioctl(l->vm_fd, KVM_SET_USER_MEMORY_REGION, &mem) < 0 ||
	    ioctl(l->vcpu_fd, KVM_GET_SREGS, &sregs) < 0)
		return false;
	sregs.cs.base = 0;
	sregs.cs.selector = 0;
	return ioctl(l->vcpu_fd, KVM_SET_SREGS, &sregs) == 0 &&
	       ioctl(l->vcpu_fd, KVM_SET_REGS, &regs) == 0;
}

static bool loop_vm_init(struct loop_vm *l, int kvm_fd)
{
	int run_bytes = ioctl(kvm_fd, KVM_GET_VCPU_MMAP_SIZE, 0);

	*l = (struct loop_vm){ .vm_fd = -1, .vcpu_fd = -1, .page = MAP_FAILED, .run = MAP_FAILED };
	l->vm_fd = ioctl(kvm_fd, KVM_CREATE_VM, 0);
	if (l->vm_fd < 0 || run_bytes < (int)sizeof(struct kvm_run))
		return false;
	l->run_bytes = (size_t)run_bytes;
	l->vcpu_fd = ioctl(l->vm_fd, KVM_CREATE_VCPU, 0);
	l->page = mmap(NULL, LOOP_PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (l->vcpu_fd < 0 || l->page == MAP_FAILED)
		return false;
	l->run = mmap(NULL, l->run_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, l->vcpu_fd, 0);
	return l->run != MAP_FAILED && loop_vm_load(l);
}

/* Instructions a second in millions, the best round; 0 when it could not run. */
static double kvm_mips(int kvm_fd)
{
	uint64_t began = now_ns(), best = UINT64_MAX;
	struct loop_vm l;
	bool ok;

	ok = loop_vm_init(&l, kvm_fd);
	for (int i = 0; ok && i < LOOP_ROUNDS && now_ns() - began < LOOP_BUDGET_NS; i++) {
		uint64_t start = now_ns(), took;

		ok = ioctl(l.vcpu_fd, KVM_RUN, 0) == 0 &&
		     ((struct kvm_run *)l.run)->exit_reason == KVM_EXIT_IO;
		took = now_ns() - start;
		if (ok && took < best)
			best = took ? took : 1;
	}
	loop_vm_fini(&l);
	return best == UINT64_MAX ? 0 : 2.0 * LOOP_COUNT * 1000 / (double)best;
}

int hostcheck_kvm_at(const char *root, bool allow_emulated, struct err *e)
{
	double mips;
	int fd, rc;

	rc = open_kvm(root, &fd, e);
	if (rc)
		return rc;
	if (!allow_emulated && !cpu_flag(root)) {
		mips = kvm_mips(fd);
		if (mips < HOST_KVM_MIN_MIPS)
			rc = err_set(e, -EOPNOTSUPP, "this machine's KVM only emulates (%.1f million "
				     "instructions a second; the CPU has neither vmx nor svm): guests would "
				     "run hundreds of times too slow; use a machine with hardware "
				     "virtualisation, or --allow-emulated-kvm to try all the same", mips);
	}
	close(fd);
	return rc;
}

int hostcheck_kvm(bool allow_emulated, struct err *e)
{
	return hostcheck_kvm_at("", allow_emulated, e);
}

static void check_kvm(const char *root, struct host_finding *f)
{
	struct err e = { "" };
	char *remedy;
	int fd;

	if (open_kvm(root, &fd, &e) == 0) {
		close(fd);
		found(f, HOST_OK, "/dev/kvm can be opened");
		return;
	}
	remedy = strstr(e.msg, "; ");
	if (remedy) {
		advise(f, "%s", remedy + 2);
		*remedy = '\0';
	}
	found(f, HOST_FAIL, "%s", e.msg);
}

static void check_kvm_real(const char *root, struct host_finding *f)
{
	const char *flag = cpu_flag(root);
	double mips = 0;
	int fd;

	if (open_kvm(root, &fd, NULL) == 0) {
		mips = kvm_mips(fd);
		close(fd);
	}
	if (mips >= HOST_KVM_MIN_MIPS) {
		found(f, HOST_OK, "real: guest code runs at %.0f million instructions a second%s%s",
		      mips, flag ? ", CPU flag " : "", flag ? flag : "");
	} else if (mips > 0) {
		found(f, HOST_FAIL, "only emulated: guest code runs at %.1f million instructions a "
		      "second, and the CPU has %s", mips, flag ? flag : "neither vmx nor svm");
		advise(f, "use a machine with hardware virtualisation (in a VM: have nested "
		       "virtualisation enabled); --allow-emulated-kvm lets tests go on");
	} else if (flag) {
		found(f, HOST_WARN, "the CPU has %s, but no guest code could be timed", flag);
		advise(f, "see the line about /dev/kvm");
	} else {
		found(f, HOST_FAIL, "the CPU has neither vmx nor svm, and no guest code could be timed");
		advise(f, "enable virtualisation in the firmware, or have nested virtualisation enabled");
	}
}

/* ---- KVM: what it can ----------------------------------------------------------- */

struct kvm_need {
	int cap;
	const char *name;
};

static const struct kvm_need kvm_needs[] = {
	{ KVM_CAP_IRQCHIP, "interrupt controller" },
	{ KVM_CAP_USER_MEMORY, "user memory" },
	{ KVM_CAP_SYNC_MMU, "memory that can be taken away" },
	{ KVM_CAP_PIT2, "timer" },
	{ KVM_CAP_IRQ_ROUTING, "interrupt routing" },
	{ KVM_CAP_SIGNAL_MSI, "MSI" },
	{ KVM_CAP_IRQFD, "irqfd" },
	{ KVM_CAP_IOEVENTFD, "ioeventfd" },
	{ KVM_CAP_IOEVENTFD_ANY_LENGTH, "ioeventfd of any length" },
	{ KVM_CAP_IMMEDIATE_EXIT, "immediate exit" },
	{ KVM_CAP_EXT_CPUID, "CPUID" },
};

/* Names of what is missing, comma between; returns how many. */
static size_t missing_caps(int kvm_fd, char *buf, size_t len)
{
	size_t missing = 0, used = 0;

	buf[0] = '\0';
	for (size_t i = 0; i < ARRAY_LEN(kvm_needs); i++) {
		if (ioctl(kvm_fd, KVM_CHECK_EXTENSION, kvm_needs[i].cap) > 0)
			continue;
		if (used < len)
			used += (size_t)snprintf(buf + used, len - used, "%s%s", missing ? ", " : "",
						 kvm_needs[i].name);
		missing++;
	}
	return missing;
}

/* Whether a guest can run something else while the host brings a page back. */
static bool has_async_pf(int kvm_fd)
{
	struct kvm_cpuid2 *cpuid;
	bool has = false;

	cpuid = calloc(1, sizeof(*cpuid) + CPUID_ENTRIES_MAX * sizeof(cpuid->entries[0]));
	if (!cpuid)
		return false;
	cpuid->nent = CPUID_ENTRIES_MAX;
	if (ioctl(kvm_fd, KVM_GET_SUPPORTED_CPUID, cpuid) == 0)
		for (uint32_t i = 0; i < cpuid->nent; i++)
			if (cpuid->entries[i].function == KVM_FEATURES_LEAF)
				has = cpuid->entries[i].eax & KVM_FEATURE_ASYNC_PF_BIT;
	free(cpuid);
	return has && ioctl(kvm_fd, KVM_CHECK_EXTENSION, KVM_CAP_ASYNC_PF_INT) > 0;
}

static void check_kvm_features(const char *root, struct host_finding *f)
{
	char missing[200];
	int fd;

	if (open_kvm(root, &fd, NULL)) {
		found(f, HOST_FAIL, "cannot be told without /dev/kvm");
		advise(f, "see the line about /dev/kvm");
		return;
	}
	if (missing_caps(fd, missing, sizeof(missing)) > 0) {
		found(f, HOST_FAIL, "missing: %s", missing);
		advise(f, "boot a kernel whose KVM is complete (a distribution's own, 6.8 or later)");
	} else if (!has_async_pf(fd)) {
		found(f, HOST_WARN, "complete, but for asynchronous page faults");
		advise(f, "guests will stand still while the host reads their pages from swap; boot a "
		       "kernel with CONFIG_KVM_ASYNC_PF");
	} else {
		found(f, HOST_OK, "complete: irqfd, ioeventfd, MSI routing, asynchronous page faults");
	}
	close(fd);
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
		found(f, HOST_WARN, "uname: %s", strerror(errno));
	} else if (hostcheck_kernel(uts.release, &e)) {
		found(f, HOST_FAIL, "Linux %s; brim needs %d.%d or later", uts.release,
		      HOST_KERNEL_MAJOR, HOST_KERNEL_MINOR);
		advise(f, "boot a newer kernel (Debian: from backports)");
	} else {
		found(f, HOST_OK, "Linux %s", uts.release);
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
		found(f, HOST_WARN, "no permission");
		advise(f, "VMs run, but their cold pages cannot be taken: `sudo sysctl "
		       "vm.unprivileged_userfaultfd=1`, or give your group /dev/userfaultfd, or run as root");
	} else if (fd < 0) {
		found(f, HOST_WARN, "not there: %s", strerror(-fd));
		advise(f, "VMs run, but their cold pages cannot be taken: boot a kernel with "
		       "CONFIG_USERFAULTFD");
	} else if (!uffd_features(fd, &features) || (features & need) != need) {
		found(f, HOST_WARN, "missing:%s%s", features & UFFD_FEATURE_MOVE ? "" : " moving pages",
		      features & UFFD_FEATURE_WP_ASYNC ? "" : " asynchronous write protection");
		advise(f, "VMs run, but their cold pages cannot be taken: boot Linux %d.%d or later",
		       HOST_KERNEL_MAJOR, HOST_KERNEL_MINOR);
	} else {
		found(f, HOST_OK, "usable: moves pages, write-protects asynchronously");
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
		found(f, HOST_OK, "PAGEMAP_SCAN works");
		return;
	}
	found(f, HOST_WARN, "PAGEMAP_SCAN: %s", rc == -ENOTTY ? "unknown to this kernel" : strerror(-rc));
	advise(f, "VMs run, but which of their pages are cold cannot be told: boot Linux %d.%d or later",
	       HOST_KERNEL_MAJOR, HOST_KERNEL_MINOR);
}

/* ---- memory ------------------------------------------------------------------------ */

static void check_huge(const char *root, struct host_finding *f)
{
	char line[128], *open_bracket, *close_bracket;

	if (!read_line(root, "/sys/kernel/mm/transparent_hugepage/enabled", line, sizeof(line)) ||
	    !(open_bracket = strchr(line, '[')) || !(close_bracket = strchr(open_bracket, ']'))) {
		found(f, HOST_WARN, "this kernel has no transparent huge pages");
		advise(f, "guests run a little slower: boot a kernel with CONFIG_TRANSPARENT_HUGEPAGE");
		return;
	}
	*close_bracket = '\0';
	if (strcmp(open_bracket + 1, "never") == 0) {
		found(f, HOST_WARN, "transparent huge pages: never");
		advise(f, "guests run a little slower, --hugepages has no effect: `echo madvise | sudo tee "
		       "/sys/kernel/mm/transparent_hugepage/enabled`");
	} else {
		found(f, HOST_OK, "transparent huge pages: %s", open_bracket + 1);
	}
}

static void check_map_count(const char *root, struct host_finding *f)
{
	uint64_t n = 0;

	if (!read_number(root, "/proc/sys/vm/max_map_count", &n)) {
		found(f, HOST_WARN, "vm.max_map_count cannot be read");
		advise(f, "mount /proc");
	} else if (n < MAP_COUNT_ADVISED) {
		found(f, HOST_WARN, "vm.max_map_count is %" PRIu64, n);
		advise(f, "VMs run; page sharing will want more: `sudo sysctl vm.max_map_count=%u`",
		       MAP_COUNT_ADVISED);
	} else {
		found(f, HOST_OK, "vm.max_map_count is %" PRIu64, n);
	}
}

static void check_overcommit(const char *root, struct host_finding *f)
{
	uint64_t mode = 0;

	if (!read_number(root, "/proc/sys/vm/overcommit_memory", &mode)) {
		found(f, HOST_WARN, "vm.overcommit_memory cannot be read");
		advise(f, "mount /proc");
	} else if (mode == 2) {
		found(f, HOST_FAIL, "vm.overcommit_memory is 2: the kernel refuses to promise more memory "
		      "than it has");
		advise(f, "`sudo sysctl vm.overcommit_memory=0`, and look in /etc/sysctl.d for what set it");
	} else {
		found(f, HOST_OK, "vm.overcommit_memory is %" PRIu64, mode);
	}
}

static void check_memory(const char *root, struct host_finding *f)
{
	uint64_t total = meminfo_bytes(root, "MemTotal"), avail = meminfo_bytes(root, "MemAvailable");
	char a[32], b[32];

	if (!total) {
		found(f, HOST_WARN, "cannot be read from /proc/meminfo");
		advise(f, "mount /proc");
		return;
	}
	found(f, avail < total / 10 ? HOST_WARN : HOST_OK, "%s, of which %s available",
	      size_format(a, sizeof(a), total), size_format(b, sizeof(b), avail));
	if (f->level != HOST_OK)
		advise(f, "less than a tenth is available: free some before starting VMs");
}

static void check_swap(const char *root, struct host_finding *f)
{
	uint64_t total = meminfo_bytes(root, "SwapTotal"), unused = meminfo_bytes(root, "SwapFree");
	char a[32], b[32];

	if (!total) {
		found(f, HOST_WARN, "none");
		advise(f, "when guests want back more than the host has, the kernel can only kill one of "
		       "them: add swap space");
		return;
	}
	found(f, HOST_OK, "%s, of which %s free", size_format(a, sizeof(a), total),
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
		found(f, HOST_OK, "/dev/net/tun can be opened");
	} else {
		found(f, HOST_WARN, "/dev/net/tun: %s", strerror(errno));
		advise(f, "VMs run, but without --net: %s",
		       errno == EACCES ? "`sudo chmod 666 /dev/net/tun`" : "`sudo modprobe tun`");
	}
}

/* ---- all of them ------------------------------------------------------------------- */

static const struct {
	const char *name;
	void (*check)(const char *root, struct host_finding *f);
} checks[] = {
	{ "kvm", check_kvm },
	{ "kvm speed", check_kvm_real },
	{ "kvm features", check_kvm_features },
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
