/*
 * What the guest's CPUs say they are: what the host's KVM supports, with the
 * parts that depend on this VM's topology (one socket, one thread a core) filled
 * in, and nested virtualisation hidden: it would only widen what a guest can
 * reach in the host's kernel.
 *
 * KVM's own leaves (0x40000000..) pass through as the kernel offers them: clock,
 * steal time, PV EOI, PV TLB flush, and asynchronous page faults, which let a
 * guest run other tasks while a page of its RAM comes back.
 *
 * Sources: AMD APM vol. 3 appendix E, Intel SDM vol. 2 CPUID,
 * Linux Documentation/virt/kvm/x86/cpuid.rst.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>

#include "vmm/internal.h"

#define CPUID_ENTRIES_MAX 256u

#define LEAF1_ECX_VMX (1u << 5)
#define LEAF1_ECX_X2APIC (1u << 21)
#define LEAF1_ECX_TSC_DEADLINE (1u << 24)
#define LEAF1_ECX_HYPERVISOR (1u << 31)
#define LEAF1_EDX_HTT (1u << 28)
#define LEAF81_ECX_CMP_LEGACY (1u << 1)
#define LEAF81_ECX_SVM (1u << 2)
#define VENDOR_EBX_AMD 0x68747541u   /* "Auth" */
#define VENDOR_EBX_HYGON 0x6f677948u /* "Hygo" */

static unsigned bits_for(unsigned n)
{
	unsigned bits = 0;

	while ((1u << bits) < n)
		bits++;
	return bits;
}

static void leaf_1(struct kvm_cpuid_entry2 *c, unsigned index, unsigned cpus, bool deadline)
{
	c->ebx = (c->ebx & 0xff00u) | (cpus << 16) | (index << 24); /* CLFLUSH size kept */
	c->ecx = (c->ecx & ~(LEAF1_ECX_VMX | LEAF1_ECX_TSC_DEADLINE)) | LEAF1_ECX_HYPERVISOR |
		 LEAF1_ECX_X2APIC;
	if (deadline)
		c->ecx |= LEAF1_ECX_TSC_DEADLINE;
	c->edx = cpus > 1 ? c->edx | LEAF1_EDX_HTT : c->edx & ~LEAF1_EDX_HTT;
}

/* Extended topology: level 0 is threads (1 a core), level 1 cores. */
static void leaf_topology(struct kvm_cpuid_entry2 *c, unsigned index, unsigned cpus)
{
	c->eax = c->index == 1 ? bits_for(cpus) : 0;
	c->ebx = c->index == 1 ? cpus : 1;
	c->ecx = c->index | (c->index == 0 ? 1u << 8 : 2u << 8);
	if (c->index > 1) {
		c->eax = c->ebx = 0;
		c->ecx = c->index;
	}
	c->edx = index;
}

/* Cache levels: L1 and L2 belong to one core, L3 to all. */
static void leaf_cache(struct kvm_cpuid_entry2 *c, unsigned cpus)
{
	unsigned level = (c->eax >> 5) & 7, sharing = level >= 3 ? cpus : 1;

	c->eax = (c->eax & 0x3fffu) | ((sharing - 1) << 14) |
		 (c->function == 4 ? ((1u << bits_for(cpus)) - 1) << 26 : 0);
}

/* Kernels from 6.2 on offer level 0 of the topology leaves alone, and empty.
 * Without the core level the guest would take every CPU for a package. */
static void add_core_level(struct kvm_cpuid2 *cpuid, uint32_t function)
{
	const struct kvm_cpuid_entry2 *level0 = NULL;
	struct kvm_cpuid_entry2 *c = cpuid->entries;

	for (unsigned i = 0; i < cpuid->nent; i++, c++) {
		if (c->function == function && c->index == 1)
			return;
		if (c->function == function && c->index == 0)
			level0 = c;
	}
	if (!level0 || cpuid->nent == CPUID_ENTRIES_MAX)
		return;
	*c = *level0;
	c->index = 1;
	c->flags |= KVM_CPUID_FLAG_SIGNIFCANT_INDEX;
	cpuid->nent++;
}

/* Where AMD's leaves say something about cores, Intel's are reserved. */
static bool is_amd(const struct kvm_cpuid2 *cpuid)
{
	for (unsigned i = 0; i < cpuid->nent; i++)
		if (cpuid->entries[i].function == 0)
			return cpuid->entries[i].ebx == VENDOR_EBX_AMD ||
			       cpuid->entries[i].ebx == VENDOR_EBX_HYGON;
	return false;
}

static void patch(struct kvm_cpuid_entry2 *c, unsigned index, unsigned cpus, bool deadline,
		  bool amd)
{
	switch (c->function) {
	case 0x1:
		leaf_1(c, index, cpus, deadline);
		break;
	case 0x4:
	case 0x8000001d:
		if (c->eax & 0x1f)
			leaf_cache(c, cpus);
		break;
	case 0xb:
	case 0x1f:
		leaf_topology(c, index, cpus);
		break;
	case 0x80000001:
		c->ecx &= ~(LEAF81_ECX_SVM | LEAF81_ECX_CMP_LEGACY);
		if (cpus > 1 && amd)
			c->ecx |= LEAF81_ECX_CMP_LEGACY;
		break;
	case 0x80000008:
		c->ecx = amd ? (bits_for(cpus) << 12) | (cpus - 1) : 0;
		break;
	case 0x8000000a: /* SVM's own leaf */
		c->eax = c->ebx = c->ecx = c->edx = 0;
		break;
	case 0x8000001e:
		c->eax = index;
		c->ebx = index;
		c->ecx = 0;
		break;
	default:
		break;
	}
}

int cpuid_set(const struct kvm *k, int vcpu_fd, unsigned index, unsigned cpus, struct err *e)
{
	struct kvm_cpuid2 *cpuid;
	bool deadline = ioctl(k->dev_fd, KVM_CHECK_EXTENSION, KVM_CAP_TSC_DEADLINE_TIMER) > 0;
	bool amd;
	int rc = 0;

	cpuid = calloc(1, sizeof *cpuid + CPUID_ENTRIES_MAX * sizeof cpuid->entries[0]);
	if (!cpuid)
		return err_set(e, -ENOMEM, "vCPU %u: out of memory", index);
	cpuid->nent = CPUID_ENTRIES_MAX;
	if (ioctl(k->dev_fd, KVM_GET_SUPPORTED_CPUID, cpuid) < 0) {
		rc = err_sys(e, -errno, "KVM: asking for the supported CPUID");
		goto out;
	}
	add_core_level(cpuid, 0xb);
	add_core_level(cpuid, 0x1f);
	amd = is_amd(cpuid);
	for (unsigned i = 0; i < cpuid->nent; i++)
		patch(&cpuid->entries[i], index, cpus, deadline, amd);
	if (ioctl(vcpu_fd, KVM_SET_CPUID2, cpuid) < 0)
		rc = err_sys(e, -errno, "vCPU %u: setting its CPUID", index);
out:
	free(cpuid);
	return rc;
}
