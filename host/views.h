/*
 * host/views.h: what the policy sees: the host by /proc, a VM by its statistics and its
 * configuration.
 *
 * Thread: any; nothing is kept.
 */
#ifndef BRIM_HOST_VIEWS_H
#define BRIM_HOST_VIEWS_H

#include "host/keep.h"
#include "mm/policy/policy.h"
#include "stats/shm.h"

struct views_host {
	const char *proc; /* "/proc" */
	uint64_t usable_bytes, reserve_bytes;
};

/* Of the kernel's account; store_bytes and overhead_bytes are the caller's to add.  -errno
 * where meminfo cannot be read; without pressure information that part is 0. */
int views_host(const struct views_host *from, uint64_t now_ns, struct policy_host_view *out);

/* A VM with a configuration, of which `now` was just read. */
void views_vm(const struct guest *g, const struct stats_view *now, struct policy_vm_view *out);

#endif
