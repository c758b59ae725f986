/*
 * vmm/kvm.c without KVM: include it in one file of a test, and what is defined
 * here wins over the archive's kvm.o, which is then not linked.  It records what
 * would have been asked of KVM.
 */
#ifndef BRIM_TESTS_FAKEKVM_H
#define BRIM_TESTS_FAKEKVM_H

#include <errno.h>
#include <string.h>

#include "vmm/internal.h"

#define FAKEKVM_EVENTFDS 64

struct fakekvm_eventfd {
	int fd;
	uint64_t at; /* address or GSI */
	bool on;
};

static struct {
	struct fakekvm_eventfd io[FAKEKVM_EVENTFDS], irq[FAKEKVM_EVENTFDS];
	bool line[GSI_MAX];
	unsigned line_changes, routes;
	int fail_route, fail_ioeventfd; /* errno to fail with, 0: none */
} fakekvm;

static inline int fakekvm_set(struct fakekvm_eventfd *table, int fd, uint64_t at, bool on)
{
	for (unsigned i = 0; i < FAKEKVM_EVENTFDS; i++) {
		if (table[i].on != !on || (!on && (table[i].fd != fd || table[i].at != at)))
			continue;
		table[i] = (struct fakekvm_eventfd){ fd, at, on };
		return 0;
	}
	return -ENOENT;
}

static inline unsigned fakekvm_count(const struct fakekvm_eventfd *table)
{
	unsigned n = 0;

	for (unsigned i = 0; i < FAKEKVM_EVENTFDS; i++)
		n += table[i].on;
	return n;
}

int kvm_init(struct kvm *k, const struct ram *ram, struct err *e)
{
	memset(&fakekvm, 0, sizeof fakekvm);
	*k = (struct kvm){ .dev_fd = -1, .vm_fd = -1, .next_gsi = GSI_MSI_BASE };
	pthread_mutex_init(&k->lock, NULL);
	return 0;
}

void kvm_fini(struct kvm *k)
{
	pthread_mutex_destroy(&k->lock);
}

int kvm_gsi_alloc(struct kvm *k)
{
	return k->next_gsi < GSI_MAX ? (int)k->next_gsi++ : -ENOSPC;
}

int kvm_gsi_route_msi(struct kvm *k, unsigned gsi, bool on, uint64_t addr, uint32_t data)
{
	if (on && fakekvm.fail_route)
		return -fakekvm.fail_route;
	fakekvm.routes++;
	k->msi_used[gsi] = on;
	k->msi[gsi].u.msi.address_lo = (uint32_t)addr;
	k->msi[gsi].u.msi.address_hi = (uint32_t)(addr >> 32);
	k->msi[gsi].u.msi.data = data;
	return 0;
}

int kvm_irqfd(struct kvm *k, int fd, unsigned gsi, bool on)
{
	return fakekvm_set(fakekvm.irq, fd, gsi, on);
}

int kvm_irq_line(struct kvm *k, unsigned gsi, bool level)
{
	fakekvm.line[gsi] = level;
	fakekvm.line_changes++;
	return 0;
}

int kvm_ioeventfd(struct kvm *k, int fd, uint64_t at, bool on)
{
	if (on && fakekvm.fail_ioeventfd)
		return -fakekvm.fail_ioeventfd;
	return fakekvm_set(fakekvm.io, fd, at, on);
}

#endif
