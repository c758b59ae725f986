/*
 * host/steward.h: policy carried out.
 *
 *   every period:  host view, a view of each VM ──► policy_step() ──► a plan
 *                  ──► where it differs from what is in force: `limit`, `balloon`, `pause`,
 *                      `resume` to that VM's control socket
 *
 * What a VM is asked is what is wanted now: while it has not answered the last question of a
 * kind, no other of that kind is asked, and then the newest value is.  So a VM that is slow, or
 * stopped in a debugger, holds nobody up and is owed at most one question of each kind.
 *
 * Numbers of VMs are read from their statistics files (stats/shm.h), and what they say is a hint:
 * brim-vmm is of the same program, but a guest that broke out of one must gain nothing.
 *
 * VMs that are in no configuration are looked at, and counted, and not touched.
 *
 * Thread: the daemon's.
 */
#ifndef BRIM_HOST_STEWARD_H
#define BRIM_HOST_STEWARD_H

#include "host/host.h"
#include "host/keep.h"
#include "mm/policy/policy.h"
#include "stats/shm.h"

struct steward;

struct steward_config {
	uint64_t usable_bytes, reserve_bytes; /* until there is a configuration */
	const char *proc; /* NULL: /proc; tests have their own */
	const struct share_host *share; /* whose stores and tables count, too; NULL: none */
};

int steward_create(struct steward **out, struct keeper *k, const struct steward_config *cfg,
		   struct err *e);
void steward_destroy(struct steward **s);
/* From the next step on.  Copies what it needs. */
void steward_configure(struct steward *s, const struct host_config *cfg);

/* A step, if one is due.  Returns how long until the next, in ms. */
unsigned steward_tick(struct steward *s, uint64_t now_ns);

/* The last step's; NULL before the first.  Borrowed, until the next. */
const struct policy_plan *steward_plan(const struct steward *s);
const struct policy_views *steward_views(const struct steward *s);
/* How it went lately; all 0 where that is not known. */
struct stats_rates steward_rates_of(const struct steward *s, const struct guest *g);
/* The plan for a VM, NULL where it has none. */
const struct policy_vm_plan *steward_plan_of(const struct steward *s, const struct guest *g);

#endif
