/*
 * What hostcheck.h asks of KVM: whether it is there, ours to use, real and complete.
 *
 * KVM that only emulates: on some machines /dev/kvm opens and guests run, but
 * instruction by instruction in the kernel.  A stock guest kernel then does not
 * get through its own decompression.  The CPU's vmx or svm flag tells nearly
 * always; where it is missing a short guest loop is timed, because there is KVM
 * without either flag that is fast.
 *
 * Threads: any; no state.
 */
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <limits.h>
#include <linux/kvm.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "vmm/hostcheck.h"
#include "vmm/internal.h"

#define KVM_FEATURES_LEAF 0x40000001u
#define KVM_FEATURE_ASYNC_PF_BIT (1u << 4)
#define CPUID_ENTRIES_MAX 256

#define LOOP_PAGE_BYTES 4096

/* ---- the CPU ------------------------------------------------------------------- */

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
	FILE *f = host_open_text(root, "/proc/cpuinfo");
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

void host_check_kvm(const char *root, struct host_finding *f)
{
	struct err e = { "" };
	char *remedy;
	int fd;

	if (open_kvm(root, &fd, &e) == 0) {
		close(fd);
		host_found(f, HOST_OK, "/dev/kvm can be opened");
		return;
	}
	remedy = strstr(e.msg, "; ");
	if (remedy) {
		host_advise(f, "%s", remedy + 2);
		*remedy = '\0';
	}
	host_found(f, HOST_FAIL, "%s", e.msg);
}

void host_check_kvm_real(const char *root, struct host_finding *f)
{
	const char *flag = cpu_flag(root);
	double mips = 0;
	int fd;

	if (open_kvm(root, &fd, NULL) == 0) {
		mips = kvm_mips(fd);
		close(fd);
	}
	if (mips >= HOST_KVM_MIN_MIPS) {
		host_found(f, HOST_OK, "real: guest code runs at %.0f million instructions a second%s%s",
			   mips, flag ? ", CPU flag " : "", flag ? flag : "");
	} else if (mips > 0) {
		host_found(f, HOST_FAIL, "only emulated: guest code runs at %.1f million instructions a "
			   "second, and the CPU has %s", mips, flag ? flag : "neither vmx nor svm");
		host_advise(f, "use a machine with hardware virtualisation (in a VM: have nested "
			    "virtualisation enabled); --allow-emulated-kvm lets tests go on");
	} else if (flag) {
		host_found(f, HOST_WARN, "the CPU has %s, but no guest code could be timed", flag);
		host_advise(f, "see the line about /dev/kvm");
	} else {
		host_found(f, HOST_FAIL, "the CPU has neither vmx nor svm, and no guest code could be timed");
		host_advise(f, "enable virtualisation in the firmware, or have nested virtualisation enabled");
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

void host_check_kvm_features(const char *root, struct host_finding *f)
{
	char missing[200];
	int fd;

	if (open_kvm(root, &fd, NULL)) {
		host_found(f, HOST_FAIL, "cannot be told without /dev/kvm");
		host_advise(f, "see the line about /dev/kvm");
		return;
	}
	if (missing_caps(fd, missing, sizeof(missing)) > 0) {
		host_found(f, HOST_FAIL, "missing: %s", missing);
		host_advise(f, "boot a kernel whose KVM is complete (a distribution's own, 6.8 or later)");
	} else if (!has_async_pf(fd)) {
		host_found(f, HOST_WARN, "complete, but for asynchronous page faults");
		host_advise(f, "guests will stand still while the host reads their pages from swap; boot a "
			    "kernel with CONFIG_KVM_ASYNC_PF");
	} else {
		host_found(f, HOST_OK, "complete: irqfd, ioeventfd, MSI routing, asynchronous page faults");
	}
	close(fd);
}
