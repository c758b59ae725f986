/*
 * vmm/cpuid.c: what is offered by a KVM that is made up here: ioctl() of this
 * file wins over the C library's.  Read back as Linux reads its topology.
 */
#include <criterion/criterion.h>
#include <errno.h>
#include <stdarg.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "vmm/internal.h"

#define ENTRIES 64u
#define DEV_FD 1000 /* no real descriptors: these two are ours */
#define VCPU_FD 1001

struct fake_cpuid {
	uint32_t nent;
	struct kvm_cpuid_entry2 entries[ENTRIES];
};

static struct fake_cpuid offered, got;
static const struct kvm kvm = { .dev_fd = DEV_FD };

int ioctl(int fd, unsigned long request, ...)
{
	struct kvm_cpuid2 *cpuid;
	va_list ap;
	void *arg;

	va_start(ap, request);
	arg = va_arg(ap, void *);
	va_end(ap);
	if (fd == DEV_FD && request == KVM_CHECK_EXTENSION)
		return 1;
	if (fd == DEV_FD && request == KVM_GET_SUPPORTED_CPUID) {
		cpuid = arg;
		cpuid->nent = offered.nent;
		memcpy(cpuid->entries, offered.entries, offered.nent * sizeof offered.entries[0]);
		return 0;
	}
	if (fd == VCPU_FD && request == KVM_SET_CPUID2) {
		cpuid = arg;
		VERIFY(cpuid->nent <= ENTRIES);
		got.nent = cpuid->nent;
		memcpy(got.entries, cpuid->entries, got.nent * sizeof got.entries[0]);
		return 0;
	}
	return (int)syscall(SYS_ioctl, fd, request, arg);
}

static void offer(uint32_t function, uint32_t index, uint32_t eax, uint32_t ebx)
{
	VERIFY(offered.nent < ENTRIES);
	offered.entries[offered.nent++] = (struct kvm_cpuid_entry2){
		.function = function, .index = index, .eax = eax, .ebx = ebx,
		.ecx = 0xffffffff, .edx = 0xffffffff,
		.flags = index ? KVM_CPUID_FLAG_SIGNIFCANT_INDEX : 0,
	};
}

static const struct kvm_cpuid_entry2 *leaf(uint32_t function, uint32_t index)
{
	const struct kvm_cpuid_entry2 *found = NULL;

	for (unsigned i = 0; i < got.nent; i++)
		if (got.entries[i].function == function && got.entries[i].index == index) {
			cr_assert_null(found, "leaf %x.%u twice", function, index);
			found = &got.entries[i];
		}
	cr_assert(found, "no leaf %x.%u", function, index);
	return found;
}

static void make(unsigned index, unsigned cpus)
{
	struct err e = { "" };

	cr_assert_eq(cpuid_set(&kvm, VCPU_FD, index, cpus, &e), 0, "%s", e.msg);
}

/* As kernels from 6.2 on offer it: the topology leaves empty but for level 0. */
static void offer_cpu(uint32_t vendor)
{
	memset(&offered, 0, sizeof offered);
	offer(0, 0, 0x1f, vendor);
	offer(1, 0, 0, 0xff00ffff);
	offer(0xb, 0, 0, 0);
	offer(0x1f, 0, 0, 0);
	offer(0x80000001, 0, 0, 0);
	offer(0x80000008, 0, 0x3030, 0);
}

#define AMD 0x68747541
#define INTEL 0x756e6547

/* Every CPU of one VM is in one package: its id without the core bits is 0. */
static void one_package(uint32_t function, unsigned cpus)
{
	for (unsigned i = 0; i < cpus; i++) {
		const struct kvm_cpuid_entry2 *threads, *cores;

		make(i, cpus);
		threads = leaf(function, 0);
		cores = leaf(function, 1);
		cr_assert_eq(threads->eax, 0, "no bits for threads");
		cr_assert_eq(threads->ebx, 1);
		cr_assert_eq(threads->ecx, 1u << 8);
		cr_assert_eq(cores->ebx, cpus);
		cr_assert_eq(cores->ecx, 2u << 8 | 1);
		cr_assert(threads->edx == i && cores->edx == i, "x2APIC id");
		cr_assert_eq(i >> cores->eax, 0);
		cr_assert(cores->flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX);
	}
}

Test(cpuid, topology_leaves_empty_core_level_added)
{
	for (unsigned cpus = 1; cpus <= VM_MAX_CPUS; cpus++) {
		offer_cpu(AMD);
		one_package(0xb, cpus);
		one_package(0x1f, cpus);
	}
}

Test(cpuid, topology_leaves_of_the_host_replaced)
{
	offer_cpu(INTEL);
	offer(0xb, 1, 7, 96);
	offer(0xb, 2, 9, 512);
	one_package(0xb, 6);
	cr_assert_eq(leaf(0xb, 2)->ebx, 0, "and no more levels");
	cr_assert_eq(leaf(0xb, 2)->ecx, 2);
}

Test(cpuid, leaf_1_says_who_and_how_many)
{
	offer_cpu(INTEL);
	make(3, 4);
	cr_assert_eq(leaf(1, 0)->ebx, 3u << 24 | 4u << 16 | 0xff00);
	cr_assert(leaf(1, 0)->edx & 1u << 28);
	cr_assert(leaf(1, 0)->ecx & 1u << 31, "a hypervisor");
	make(0, 1);
	cr_assert_not(leaf(1, 0)->edx & 1u << 28, "one CPU has no siblings");
}

Test(cpuid, nested_virtualisation_hidden)
{
	offer_cpu(INTEL);
	offer(0x8000000a, 0, 1, 0x8000);
	make(0, 2);
	cr_assert_not(leaf(1, 0)->ecx & 1u << 5, "VMX");
	cr_assert_not(leaf(0x80000001, 0)->ecx & 1u << 2, "SVM");
	cr_assert_eq(leaf(0x8000000a, 0)->eax | leaf(0x8000000a, 0)->ebx, 0);
}

Test(cpuid, core_count_of_amd_only_on_amd)
{
	offer_cpu(AMD);
	make(0, 6);
	cr_assert_eq(leaf(0x80000008, 0)->ecx, 3u << 12 | 5);
	cr_assert(leaf(0x80000001, 0)->ecx & 2);
	offer_cpu(INTEL);
	make(0, 6);
	cr_assert_eq(leaf(0x80000008, 0)->ecx, 0, "reserved");
	cr_assert_not(leaf(0x80000001, 0)->ecx & 2, "reserved");
}

Test(cpuid, caches_shared_by_level)
{
	static const uint32_t leaves[] = { 4, 0x8000001d };

	for (unsigned i = 0; i < 2; i++) {
		offer_cpu(AMD);
		for (uint32_t level = 1; level <= 3; level++)
			offer(leaves[i], level, 0xffffc000 | level << 5 | 1, 0);
		offer(leaves[i], 4, 0, 0); /* the end of the list */
		make(0, 5);
		for (uint32_t level = 1; level <= 3; level++) {
			uint32_t eax = leaf(leaves[i], level)->eax;

			cr_assert_eq(eax & 0x3fff, level << 5 | 1);
			cr_assert_eq((eax >> 14 & 0xfff) + 1, level == 3 ? 5 : 1);
			cr_assert_eq(eax >> 26, leaves[i] == 4 ? 7 : 0);
		}
		cr_assert_eq(leaf(leaves[i], 4)->eax, 0);
	}
}
