/*
 * A host and VMs in a box: views are written by hand, a step is one call.  16 GiB to be
 * used, VMs of 12 GiB unless a test says otherwise.
 */
#ifndef BRIM_TESTS_POLICYBOX_H
#define BRIM_TESTS_POLICYBOX_H

#include <criterion/criterion.h>

#include "mm/policy/policy.h"

#define BOX_VMS 8u

struct box {
	struct policy_config config;
	struct policy_host_view host;
	struct policy_vm_view vm[BOX_VMS];
	struct policy_vm_plan out[BOX_VMS];
	struct policy_plan plan;
	struct policy_views views;
	struct policy_memory *memory;
};

static inline void box_open(struct box *b, unsigned n)
{
	*b = (struct box){ .host = { .physical_bytes = 17 * GiB, .usable_bytes = 16 * GiB,
				     .reserve_bytes = GiB, .available_bytes = 17 * GiB, .now_ms = 1000000 } };
	policy_config_default(&b->config);
	for (unsigned i = 0; i < BOX_VMS; i++)
		b->vm[i] = (struct policy_vm_view){ .id = i + 1, .name = "vm", .memory_bytes = 12 * GiB,
						    .shares = 1000, .can_pack = true, .can_disk = true,
						    .can_stop = true, .cpus = 1, .cold_known = true,
						    .pass_ms = 1000 };
	b->views = (struct policy_views){ .host = &b->host, .vms = b->vm, .n = n };
	cr_assert_eq(policy_memory_create(&b->memory, BOX_VMS), 0);
}

static inline void box_close(struct box *b)
{
	policy_memory_destroy(&b->memory);
	cr_assert(!b->memory);
}

/* VM i holds so much, of which so much is in use. */
static inline void box_uses(struct box *b, unsigned i, uint64_t resident, uint64_t active)
{
	struct policy_vm_view *v = &b->vm[i];

	v->resident_bytes = resident;
	for (unsigned c = 0; c < POLICY_COLDS; c++)
		v->cold_bytes[c] = resident - active;
	v->untouched_bytes = v->memory_bytes - resident;
}

static inline const struct policy_plan *box_step(struct box *b, uint64_t ms)
{
	b->host.now_ms += ms;
	b->plan = (struct policy_plan){ .vms = b->out };
	cr_assert_eq(policy_step(&b->config, &b->views, b->memory, &b->plan), 0);
	return &b->plan;
}

/* Every VM sends to disk, at once, what is above its limit. */
static inline void box_obeys(struct box *b)
{
	for (size_t i = 0; i < b->views.n; i++) {
		struct policy_vm_view *v = &b->vm[i];
		uint64_t limit = b->out[i].limit_bytes, held = v->resident_bytes + v->pool_bytes, over;

		v->limit_now_bytes = limit;
		v->balloon_target_bytes = b->out[i].balloon_bytes;
		if (!limit || held <= limit)
			continue;
		over = held - limit < v->resident_bytes ? held - limit : v->resident_bytes;
		v->disk_bytes += over;
		v->resident_bytes -= over;
		for (unsigned c = 0; c < POLICY_COLDS; c++)
			v->cold_bytes[c] -= v->cold_bytes[c] < over ? v->cold_bytes[c] : over;
	}
}

static inline bool box_says(const struct box *b, unsigned i, enum policy_why why)
{
	for (unsigned r = 0; r < b->out[i].reason_count; r++)
		if (b->out[i].reasons[r].why == why)
			return true;
	return false;
}

#endif
