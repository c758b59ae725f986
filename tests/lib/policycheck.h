/*
 * What every plan must keep, whatever the views (mm/policy/policy.h, I1 to I3), for tests and
 * the fuzzer.  VERIFY says which it was.
 */
#ifndef BRIM_TESTS_POLICYCHECK_H
#define BRIM_TESTS_POLICYCHECK_H

#include <string.h>

#include "mm/policy/policy.h"

#define CHECK_MOST ((uint64_t)1 << 50)

struct policy_before {
	uint64_t limit_bytes; /* in force: of the last plan; 0: none */
};

static inline uint64_t check_least(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}

static inline uint64_t check_less(uint64_t a, uint64_t b)
{
	return a > b ? a - b : 0;
}

static inline uint64_t check_cap(const struct policy_vm_view *v)
{
	uint64_t memory = check_least(v->memory_bytes, CHECK_MOST);

	return v->limit_bytes ? check_least(v->limit_bytes, memory) : memory;
}

static inline uint64_t check_part(uint64_t v, uint64_t ppm)
{
	return (uint64_t)((unsigned __int128)v * ppm / 1000000);
}

/* I1: what is allowed beyond what is held fits. */
static inline void check_promise(const struct policy_config *c, const struct policy_views *v,
				 const struct policy_plan *p)
{
	uint64_t usable = check_least(check_least(v->host->usable_bytes, v->host->physical_bytes), CHECK_MOST);
	uint64_t room = check_less(check_less(p->free_bytes, p->head_room_bytes),
				   check_part(usable, c->promise_free_ppm));
	uint64_t beyond = 0, lacking = 0;

	for (size_t i = 0; i < v->n; i++) {
		const struct policy_vm_view *vm = &v->vms[i];
		uint64_t limit = p->vms[i].limit_bytes ? p->vms[i].limit_bytes : check_cap(vm);

		if (!vm->can_pack)
			continue;
		/* a limit of nothing is said as one page, since 0 is none */
		beyond += check_less(limit, p->vms[i].held_bytes + PAGE_BYTES);
		lacking += check_less(check_least(vm->reservation_bytes, check_cap(vm)), p->vms[i].held_bytes);
	}
	VERIFY(beyond <= (room > lacking ? room : lacking));
}

/* I2, I3, and that amounts are possible ones. */
static inline void check_vm(const struct policy_config *c, const struct policy_vm_view *v,
			    const struct policy_vm_plan *p, const struct policy_before *was)
{
	uint64_t memory = check_least(v->memory_bytes, CHECK_MOST);
	uint64_t ppm = c->take_hard_ppm > c->take_ppm ? c->take_hard_ppm : c->take_ppm;
	uint64_t before = was->limit_bytes ? check_least(was->limit_bytes, p->held_bytes) : p->held_bytes;
	char text[256];

	if (v->can_pack) {
		VERIFY(p->limit_bytes == 0 ||
		       p->limit_bytes >= check_least(v->reservation_bytes, check_cap(v)));
		VERIFY(p->limit_bytes == 0 || p->limit_bytes + check_part(memory, ppm) >= before);
	} else {
		VERIFY(p->limit_bytes == 0);
	}
	VERIFY(p->balloon_bytes <= memory && p->active_ppm <= 1000000 && p->stall_ppm <= 1000000);
	VERIFY(p->reason_count <= POLICY_REASONS);
	for (unsigned i = 0; i < p->reason_count; i++)
		VERIFY(strlen(policy_reason_text(&p->reasons[i], text, sizeof(text))) > 8);
}

static inline void check_plan(const struct policy_config *c, const struct policy_views *v,
			      const struct policy_plan *p, const struct policy_before *was)
{
	size_t stopped = 0, could = 0;

	VERIFY(p->state < POLICY_STATES && p->next_ms > 0);
	check_promise(c, v, p);
	for (size_t i = 0; i < v->n; i++) {
		check_vm(c, &v->vms[i], &p->vms[i], &was[i]);
		could += v->vms[i].run == POLICY_RUNNING;
		stopped += v->vms[i].run == POLICY_RUNNING && p->vms[i].stop;
	}
	VERIFY(could == 0 || stopped <= could);
}

#endif
