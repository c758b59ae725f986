/*
 * The policy's invariants (mm/policy/policy.h) on views nobody thought of: random ones that
 * could be, random ones that could not, constant ones for a long time.
 */
#include <criterion/criterion.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/lib/policycheck.h"
#include "tests/unit/chance.h"
#include "tests/unit/policybox.h"

#define SEEDS 300u
#define STEPS 60u

/* ---- views by chance ------------------------------------------------------------------ */

static uint64_t up_to(uint64_t *seed, uint64_t most)
{
	return most ? mix(seed) % (most + 1) : 0;
}

static bool chance(uint64_t *seed, unsigned percent)
{
	return mix(seed) % 100 < percent;
}

/* A VM as it could be: its parts are no more than its memory. */
static void likely_vm(uint64_t *seed, struct policy_vm_view *v)
{
	uint64_t left = v->memory_bytes;

	v->resident_bytes = up_to(seed, left);
	left -= v->resident_bytes;
	v->packed_bytes = up_to(seed, left);
	v->pool_bytes = v->packed_bytes / 100 * (20 + up_to(seed, 60));
	left -= v->packed_bytes;
	v->ballooned_bytes = chance(seed, 30) ? up_to(seed, left) : 0;
	v->untouched_bytes = left - v->ballooned_bytes;
	for (unsigned i = 0; i < POLICY_COLDS; i++)
		v->cold_bytes[i] = up_to(seed, i ? v->cold_bytes[i - 1] : v->resident_bytes);
	v->refaults_packed += chance(seed, 30) ? up_to(seed, 10000) : 0;
	v->stall_us += chance(seed, 30) ? up_to(seed, 100000) : 0;
	v->guest = (struct policy_guest){ .known = chance(seed, 70), .total_bytes = v->memory_bytes,
					  .available_bytes = up_to(seed, v->memory_bytes) };
}

static void likely(struct box *b, uint64_t *seed)
{
	box_open(b, 1 + (unsigned)up_to(seed, BOX_VMS - 1));
	b->host.available_bytes = b->host.physical_bytes;
	for (size_t i = 0; i < b->views.n; i++) {
		struct policy_vm_view *v = &b->vm[i];

		v->memory_bytes = (64 + up_to(seed, 8 * 1024)) * MiB;
		v->reservation_bytes = up_to(seed, check_least(v->memory_bytes, b->host.usable_bytes / 2 / b->views.n));
		v->shares = 1 + up_to(seed, 4000);
		v->can_pack = chance(seed, 90);
		v->can_disk = chance(seed, 60);
		v->can_balloon = chance(seed, 70);
		v->balloon_floor_bytes = up_to(seed, v->memory_bytes / 2);
		likely_vm(seed, v);
	}
}

static void checked_step(struct box *b, uint64_t ms)
{
	struct policy_before was[BOX_VMS];

	for (size_t i = 0; i < b->views.n; i++)
		was[i].limit_bytes = b->out[i].limit_bytes;
	box_step(b, ms);
	check_plan(&b->config, &b->views, &b->plan, was);
}

Test(policy_always, likely_views_keep_promises_reservations_and_steps)
{
	for (uint64_t s = 0; s < SEEDS; s++) {
		uint64_t seed = s;
		struct box b;

		likely(&b, &seed);
		for (unsigned i = 0; i < STEPS; i++) {
			for (size_t k = 0; k < b.views.n; k++)
				if (chance(&seed, 40))
					likely_vm(&seed, &b.vm[k]);
			checked_step(&b, 100 + up_to(&seed, 3000));
			if (chance(&seed, 50))
				box_obeys(&b);
		}
		box_close(&b);
	}
}

static uint64_t absurd(uint64_t *seed)
{
	static const uint64_t odd[] = { 0, 1, 4095, UINT64_MAX, UINT64_MAX - 1, INT64_MAX,
					(uint64_t)INT64_MAX + 1, UINT32_MAX, (uint64_t)1 << 50 };

	return chance(seed, 60) ? odd[mix(seed) % ARRAY_LEN(odd)] : mix(seed) >> mix(seed) % 64;
}

static void absurd_bytes(uint64_t *seed, void *at, size_t bytes)
{
	for (size_t i = 0; i + 8 <= bytes; i += 8) {
		uint64_t v = absurd(seed);

		memcpy((char *)at + i, &v, 8);
	}
}

static void absurd_views(struct box *b, uint64_t *seed)
{
	uint64_t now = b->host.now_ms;

	absurd_bytes(seed, &b->host, sizeof(b->host));
	if (chance(seed, 80))
		b->host.now_ms = now;
	for (size_t i = 0; i < b->views.n; i++) {
		struct policy_vm_view *v = &b->vm[i], odd;

		absurd_bytes(seed, &odd, sizeof(odd));
		odd.name = "odd";
		odd.run = (enum policy_run)(mix(seed) % 3);
		odd.id = chance(seed, 90) ? v->id : up_to(seed, 3);
		odd.can_balloon = chance(seed, 50);
		odd.can_pack = chance(seed, 50);
		odd.can_disk = chance(seed, 50);
		odd.can_share = chance(seed, 50);
		odd.can_stop = chance(seed, 50);
		odd.cold_known = chance(seed, 50);
		odd.guest.known = chance(seed, 50);
		*v = odd;
	}
}

Test(policy_always, absurd_views_and_keys_are_answered)
{
	for (uint64_t s = 0; s < SEEDS; s++) {
		uint64_t seed = s + 1000;
		struct box b;

		box_open(&b, BOX_VMS);
		if (chance(&seed, 30))
			absurd_bytes(&seed, &b.config, sizeof(b.config));
		for (unsigned i = 0; i < STEPS; i++) {
			absurd_views(&b, &seed);
			b.views.n = 1 + up_to(&seed, BOX_VMS - 1);
			b.plan = (struct policy_plan){ .vms = b.out };
			cr_assert_eq(policy_step(&b.config, &b.views, b.memory, &b.plan), 0);
			for (size_t k = 0; k < b.views.n; k++)
				cr_assert_leq(b.out[k].balloon_bytes, b.vm[k].memory_bytes);
		}
		box_close(&b);
	}
}

Test(policy_always, all_zero_views_are_answered)
{
	struct box b;

	box_open(&b, BOX_VMS);
	b.host = (struct policy_host_view){ 0 };
	for (unsigned i = 0; i < BOX_VMS; i++)
		b.vm[i] = (struct policy_vm_view){ 0 };
	for (unsigned i = 0; i < 5; i++)
		checked_step(&b, 0);
	b.views.n = 0;
	checked_step(&b, 1000);
	cr_assert_eq(b.plan.promised_bytes, 0);
	box_close(&b);
}

/* ---- I5 -------------------------------------------------------------------------------- */

static bool same_plans(const struct box *b, const struct policy_vm_plan *was)
{
	for (size_t i = 0; i < b->views.n; i++)
		if (b->out[i].limit_bytes != was[i].limit_bytes || b->out[i].stop != was[i].stop ||
		    b->out[i].balloon_bytes != was[i].balloon_bytes)
			return false;
	return true;
}

Test(policy_always, constant_views_lead_to_a_constant_plan)
{
	for (uint64_t s = 0; s < SEEDS; s++) {
		struct policy_vm_plan was[BOX_VMS];
		uint64_t seed = s + 2000;
		struct box b;

		likely(&b, &seed);
		for (unsigned i = 0; i < 900; i++)
			checked_step(&b, 1000);
		memcpy(was, b.out, sizeof(was));
		for (unsigned i = 0; i < 100; i++) {
			checked_step(&b, 1000);
			cr_assert(same_plans(&b, was), "seed %lu, step %u", s, i);
		}
		box_close(&b);
	}
}

/* VMs that do as they are told, and need nothing more: after a while nothing changes. */
Test(policy_always, obedient_vms_come_to_rest)
{
	for (uint64_t s = 0; s < SEEDS; s++) {
		uint64_t seed = s + 3000;
		unsigned changes = 0;
		struct box b;

		likely(&b, &seed);
		for (unsigned i = 0; i < 900; i++) {
			struct policy_vm_plan was[BOX_VMS];

			memcpy(was, b.out, sizeof(was));
			checked_step(&b, 1000);
			changes += i >= 600 && !same_plans(&b, was);
			box_obeys(&b);
		}
		cr_assert_leq(changes, 3, "seed %lu: %u changes", s, changes);
		box_close(&b);
	}
}

/* ---- I4 ---------------------------------------------------------------------------------- */

Test(policy_always, what_guests_say_changes_nobodys_share)
{
	unsigned short_hosts = 0;

	for (uint64_t s = 0; s < SEEDS; s++) {
		uint64_t seed = s + 4000;
		struct box a, b;

		likely(&a, &seed);
		seed = s + 4000;
		likely(&b, &seed);
		/* who has no engine gives by his balloon alone, or not at all */
		for (size_t i = 0; i < b.views.n; i++)
			a.vm[i].can_pack = b.vm[i].can_pack = true;
		for (size_t i = 0; i < b.views.n; i++)
			b.vm[i].guest = (struct policy_guest){ .known = chance(&seed, 50),
							       .total_bytes = absurd(&seed),
							       .available_bytes = absurd(&seed) };
		box_step(&a, 1000);
		box_step(&b, 1000);
		short_hosts += a.plan.state >= POLICY_SOFT;
		for (size_t i = 0; i < a.views.n; i++) {
			cr_assert_eq(a.out[i].fair_bytes, b.out[i].fair_bytes, "seed %lu", s);
			if (a.plan.state >= POLICY_SOFT)
				cr_assert_eq(a.out[i].aim_bytes, b.out[i].aim_bytes, "seed %lu", s);
		}
		box_close(&a);
		box_close(&b);
	}
	cr_assert_gt(short_hosts, SEEDS / 4); /* or this showed little */
}
