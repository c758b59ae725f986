/*
 * The policy (mm/policy/): what it does in the situations that it is there for.  Each test
 * is a host and some VMs, a step or a few, and what the plan must say.
 */
#include <criterion/criterion.h>

#include <errno.h>
#include <string.h>

#include "tests/unit/policybox.h"

/* ---- states ------------------------------------------------------------------------ */

static enum policy_state state_at(struct box *b, uint64_t free_pct_tenths)
{
	b->host.overhead_bytes = b->host.usable_bytes * (1000 - free_pct_tenths) / 1000;
	return box_step(b, 1000)->state;
}

Test(policy, states_falling_memory_get_worse)
{
	static const struct { uint64_t free; enum policy_state is; } rows[] = {
		{ 500, POLICY_HIGH }, { 121, POLICY_HIGH }, { 119, POLICY_CLEAR }, { 81, POLICY_CLEAR },
		{ 79, POLICY_SOFT },  { 41, POLICY_SOFT },  { 39, POLICY_HARD },   { 16, POLICY_HARD },
		{ 14, POLICY_LOW },   { 0, POLICY_LOW },
	};
	struct box b;

	box_open(&b, 0);
	for (size_t i = 0; i < ARRAY_LEN(rows); i++)
		cr_assert_eq(state_at(&b, rows[i].free), rows[i].is, "row %zu", i);
	box_close(&b);
}

Test(policy, states_rising_memory_get_better_only_above_the_second_threshold)
{
	static const struct { uint64_t free; enum policy_state is; } rows[] = {
		{ 10, POLICY_LOW },   { 24, POLICY_LOW },   { 26, POLICY_HARD }, { 59, POLICY_HARD },
		{ 61, POLICY_SOFT },  { 99, POLICY_SOFT },  { 101, POLICY_CLEAR }, { 159, POLICY_CLEAR },
		{ 161, POLICY_HIGH }, { 130, POLICY_HIGH }, { 0, POLICY_LOW }, { 900, POLICY_HIGH },
	};
	struct box b;

	box_open(&b, 0);
	for (size_t i = 0; i < ARRAY_LEN(rows); i++)
		cr_assert_eq(state_at(&b, rows[i].free), rows[i].is, "row %zu", i);
	box_close(&b);
}

Test(policy, states_pressure_of_the_host_counts_until_half_of_it)
{
	struct box b;

	box_open(&b, 0);
	b.host.psi_some_ppm = 100000;
	cr_assert_eq(box_step(&b, 1000)->state, POLICY_SOFT);
	cr_assert_eq(b.plan.why, POLICY_HOST_PSI);
	b.host.psi_some_ppm = 60000;
	cr_assert_eq(box_step(&b, 1000)->state, POLICY_SOFT);
	b.host.psi_some_ppm = 40000;
	cr_assert_eq(box_step(&b, 1000)->state, POLICY_HIGH);
	b.host.psi_full_ppm = 200000;
	cr_assert_eq(box_step(&b, 1000)->state, POLICY_HARD);
	box_close(&b);
}

Test(policy, states_allow_means_in_the_order_of_their_cost)
{
	static const enum policy_state from[POLICY_MEANS] = {
		POLICY_HIGH, POLICY_CLEAR, POLICY_CLEAR, POLICY_SOFT, POLICY_HARD, POLICY_LOW,
	};
	static const uint64_t free_tenths[POLICY_STATES] = { 500, 110, 70, 30, 5 };
	struct box b;

	box_open(&b, 0);
	for (unsigned s = 0; s < POLICY_STATES; s++) {
		cr_assert_eq(state_at(&b, free_tenths[s]), s);
		for (unsigned m = 0; m < POLICY_MEANS; m++)
			cr_assert_eq(b.plan.allowed[m], s >= from[m], "state %u, means %u", s, m);
	}
	box_close(&b);
}

Test(policy, states_saved_memory_is_a_risk_that_keeps_head_room)
{
	struct box b;

	box_open(&b, 2);
	box_step(&b, 1000);
	cr_assert_eq(b.plan.head_room_bytes, 0);
	b.vm[0].shared_bytes = 2 * GiB;
	box_step(&b, 1000);
	cr_assert_geq(b.plan.head_room_bytes, 2 * GiB / 20 - MiB);
	cr_assert_eq(b.plan.revocable_bytes, 2 * GiB);
	box_close(&b);
}

/* ---- shares --------------------------------------------------------------------------- */

/* Two VMs that need all they have on a host that has half of it. */
static void two_hungry(struct box *b)
{
	box_open(b, 2);
	for (unsigned i = 0; i < 2; i++) {
		box_uses(b, i, 9 * GiB, 9 * GiB);
		b->vm[i].packed_bytes = GiB;
	}
}

Test(policy, shares_active_memory_is_divided_by_them)
{
	struct box b;
	double ratio;

	two_hungry(&b);
	b.vm[0].shares = 2000;
	box_step(&b, 1000);
	ratio = (double)b.out[0].fair_bytes / (double)b.out[1].fair_bytes;
	cr_assert(ratio > 1.4 && ratio < 2.1, "%f", ratio);
	cr_assert_gt(b.out[1].fair_bytes, 4 * GiB);
	box_close(&b);
}

Test(policy, shares_idle_memory_is_taxed)
{
	struct box b;

	two_hungry(&b);
	box_uses(&b, 1, 9 * GiB, 0);
	box_step(&b, 1000);
	/* four fifths or so: cost 4 times as much, but for what demand cuts */
	cr_assert_gt(b.out[0].fair_bytes, b.out[1].fair_bytes * 3 / 2);
	b.config.idle_tax_ppm = 0;
	box_step(&b, 1000);
	cr_assert_lt(b.out[0].fair_bytes, b.out[1].fair_bytes * 11 / 10);
	box_close(&b);
}

Test(policy, shares_reservation_is_kept_by_the_poorest)
{
	struct box b;

	two_hungry(&b);
	b.vm[1].shares = 1;
	b.vm[1].reservation_bytes = 6 * GiB;
	for (unsigned i = 0; i < 100; i++) {
		box_step(&b, 1000);
		cr_assert_geq(b.out[1].limit_bytes, 6 * GiB);
		box_obeys(&b);
	}
	cr_assert_lt(b.vm[1].resident_bytes, 7 * GiB); /* and no more than that, or little */
	box_close(&b);
}

Test(policy, shares_the_idle_one_gives_and_the_busy_one_does_not)
{
	struct box b;

	box_open(&b, 2);
	box_uses(&b, 0, 7 * GiB, 6 * GiB);
	box_uses(&b, 1, 8 * GiB, GiB / 2);
	box_step(&b, 1000);
	cr_assert_geq(b.plan.state, POLICY_SOFT);
	cr_assert_geq(b.out[0].limit_bytes, b.vm[0].resident_bytes);
	cr_assert_lt(b.out[1].limit_bytes, b.vm[1].resident_bytes);
	cr_assert(box_says(&b, 1, POLICY_WHY_TAKEN));
	box_close(&b);
}

Test(policy, shares_plenty_leaves_everybody_without_a_limit)
{
	struct box b;

	box_open(&b, 2);
	b.vm[0].memory_bytes = b.vm[1].memory_bytes = 4 * GiB;
	box_uses(&b, 0, 2 * GiB, GiB);
	box_uses(&b, 1, 2 * GiB, GiB);
	box_step(&b, 1000);
	cr_assert_eq(b.out[0].limit_bytes, 0);
	cr_assert_eq(b.out[1].limit_bytes, 0);
	cr_assert(box_says(&b, 0, POLICY_WHY_PLENTY));
	box_close(&b);
}

Test(policy, shares_configured_limit_is_never_exceeded)
{
	struct box b;

	box_open(&b, 1);
	box_uses(&b, 0, 2 * GiB, GiB);
	b.vm[0].limit_bytes = 3 * GiB;
	box_step(&b, 1000);
	cr_assert_eq(b.out[0].limit_bytes, 3 * GiB);
	/* lowered while more is held: in steps */
	b.vm[0].limit_bytes = GiB;
	box_step(&b, 1000);
	cr_assert_lt(b.out[0].limit_bytes, 2 * GiB);
	cr_assert_geq(b.out[0].limit_bytes, 2 * GiB - b.vm[0].memory_bytes / 100);
	box_close(&b);
}

/* In `high`, nothing is taken for the host; for a VM below its share it is. */
Test(policy, shares_who_has_more_than_his_gives_to_who_hurts)
{
	struct box b;

	box_open(&b, 2);
	box_uses(&b, 0, 5 * GiB, 5 * GiB);
	box_uses(&b, 1, 8 * GiB, GiB);
	b.vm[0].disk_bytes = 6 * GiB;
	b.vm[0].limit_now_bytes = 5 * GiB;
	box_step(&b, 1000);
	cr_assert_eq(b.plan.state, POLICY_HIGH);
	cr_assert(!box_says(&b, 1, POLICY_WHY_TAKEN));
	b.vm[0].refaults_disk += 100000;
	box_step(&b, 1000);
	cr_assert(b.out[0].hurts);
	cr_assert_gt(b.out[0].fair_bytes, 7 * GiB);
	cr_assert_eq(b.plan.state, POLICY_SOFT);
	cr_assert_eq(b.plan.why, POLICY_HOST_CLAIMS);
	cr_assert(box_says(&b, 1, POLICY_WHY_TAKEN));
	cr_assert_lt(b.out[1].limit_bytes, 8 * GiB);
	box_close(&b);
}

/* Two alike, of which one's engine gets nowhere. */
Test(policy, means_limit_that_is_not_met_is_left_to_others)
{
	uint64_t there = 0;
	bool said = false;
	struct box b;

	box_open(&b, 2);
	for (unsigned i = 0; i < 2; i++)
		box_uses(&b, i, 7 * GiB + 512 * MiB, 3 * GiB);
	for (unsigned i = 0; i < 40; i++) {
		box_step(&b, 1000);
		said = said || box_says(&b, 0, POLICY_WHY_STUCK);
		if (i == 20)
			there = b.out[0].limit_bytes;
		cr_assert(i <= 20 || b.out[0].limit_bytes >= there);
		b.vm[0].limit_now_bytes = b.out[0].limit_bytes;
		b.vm[0].resident_bytes = 0; /* only the other one obeys */
		box_obeys(&b);
		box_uses(&b, 0, 7 * GiB + 512 * MiB, 3 * GiB);
	}
	cr_assert(said);
	cr_assert_geq(there, b.vm[0].resident_bytes);
	cr_assert_lt(b.plan.state, POLICY_SOFT); /* the other gave it all */
	box_close(&b);
}

/* Nobody else is there: it is not pressed ever further for that. */
Test(policy, means_limit_that_is_not_met_goes_back)
{
	struct box b;

	box_open(&b, 1);
	b.vm[0].memory_bytes = 16 * GiB;
	box_uses(&b, 0, 15 * GiB, 3 * GiB);
	box_step(&b, 1000);
	cr_assert_lt(b.out[0].limit_bytes, 15 * GiB);
	for (unsigned i = 0; i < 30; i++)
		box_step(&b, 1000);
	cr_assert_geq(b.plan.state, POLICY_SOFT);
	cr_assert_geq(b.out[0].limit_bytes, 15 * GiB);
	/* more of it is cold now: worth another try */
	box_uses(&b, 0, 15 * GiB, 2 * GiB);
	box_step(&b, 1000);
	cr_assert_lt(b.out[0].limit_bytes, 15 * GiB);
	box_close(&b);
}

/* Ages are told in passes, which an engine makes when it needs them. */
Test(policy, measure_idle_is_by_time_however_often_passes_are)
{
	struct box b;

	box_open(&b, 1);
	box_uses(&b, 0, 8 * GiB, 2 * GiB);
	b.vm[0].pass_ms = 0;
	b.vm[0].cold_bytes[5] = GiB; /* few passes ago, 6 GiB were cold; 32 ago, one */
	box_step(&b, 1000);
	cr_assert_geq(b.out[0].working_set_bytes, 7 * GiB); /* not known: the most careful */
	/* ten a second: 32 are 3 s, and no more can be told */
	for (unsigned i = 0; i < 300; i++) {
		b.vm[0].passes += 10;
		box_step(&b, 1000);
	}
	cr_assert_geq(b.out[0].working_set_bytes, 7 * GiB);
	/* one in 4 s: 8 of them are as long as it takes to be idle */
	for (unsigned i = 0; i < 600; i++) {
		b.vm[0].passes += i % 4 == 0;
		box_step(&b, 1000);
		cr_assert(i > 8 || b.out[0].working_set_bytes >= 7 * GiB);
	}
	cr_assert_leq(b.out[0].working_set_bytes, 3 * GiB);
	box_close(&b);
}

/* ---- feedback ------------------------------------------------------------------------------ */

static void one_is_taken_from(struct box *b)
{
	box_open(b, 2);
	box_uses(b, 0, 7 * GiB, 6 * GiB);
	box_uses(b, 1, 8 * GiB, GiB);
	for (unsigned i = 0; i < 3; i++) {
		box_step(b, 1000);
		box_obeys(b);
	}
	cr_assert(box_says(b, 1, POLICY_WHY_TAKEN));
}

Test(policy, feedback_a_step_that_hurts_is_undone_and_remembered)
{
	struct box b;
	uint64_t before;

	one_is_taken_from(&b);
	before = b.vm[1].resident_bytes;
	for (unsigned i = 0; i < 3; i++) {
		b.vm[1].refaults_packed += 20000;
		box_step(&b, 1000);
	}
	cr_assert(b.out[1].hurts);
	cr_assert_gt(b.out[1].floor_bytes, before);
	cr_assert_geq(b.out[1].limit_bytes, before);
	cr_assert(!box_says(&b, 1, POLICY_WHY_TAKEN));
	/* calm again: still not below what had hurt */
	for (unsigned i = 0; i < 60; i++) {
		box_step(&b, 1000);
		box_obeys(&b);
	}
	cr_assert(!b.out[1].hurts);
	cr_assert_geq(b.vm[1].resident_bytes, before - 512 * MiB);
	box_close(&b);
}

Test(policy, feedback_what_hurt_is_forgotten_slowly)
{
	struct box b;
	uint64_t first;

	one_is_taken_from(&b);
	for (unsigned i = 0; i < 3; i++) {
		b.vm[1].refaults_packed += 20000;
		box_step(&b, 1000);
	}
	first = b.out[1].floor_bytes;
	for (unsigned i = 0; i < 600; i++)
		box_step(&b, 1000);
	cr_assert_lt(b.out[1].floor_bytes, first * 6 / 10);
	cr_assert_gt(b.out[1].floor_bytes, first * 4 / 10);
	box_close(&b);
}

Test(policy, feedback_contracts_missed_are_timed)
{
	struct box b;

	box_open(&b, 1);
	box_uses(&b, 0, 4 * GiB, 4 * GiB);
	box_step(&b, 1000);
	for (unsigned i = 0; i < 10; i++) {
		b.vm[0].stall_us += 20000; /* 2 % */
		box_step(&b, 1000);
	}
	cr_assert(b.out[0].hurts);
	cr_assert_geq(b.out[0].stall_missed_ms, 9000);
	cr_assert_leq(b.out[0].stall_missed_ms, 10000);
	cr_assert_eq(b.out[0].refault_missed_ms, 0);
	cr_assert(b.out[0].stall_ppm > 15000 && b.out[0].stall_ppm < 21000, "%lu", b.out[0].stall_ppm);
	box_close(&b);
}

Test(policy, feedback_who_hurts_gets_memory_first)
{
	struct box b;

	box_open(&b, 3);
	for (unsigned i = 0; i < 3; i++) {
		box_uses(&b, i, 4 * GiB, 3 * GiB);
		b.vm[i].limit_now_bytes = 4 * GiB + 16 * MiB;
		b.vm[i].disk_bytes = 4 * GiB;
	}
	box_step(&b, 1000);
	b.vm[1].refaults_disk += 50000;
	box_step(&b, 1000);
	cr_assert(b.out[1].hurts && !b.out[0].hurts);
	cr_assert_gt(b.out[1].limit_bytes, b.out[0].limit_bytes + 512 * MiB);
	cr_assert(box_says(&b, 1, POLICY_WHY_HURT_REFAULTS));
	box_close(&b);
}

/* ---- the balloon ------------------------------------------------------------------------------ */

/* A short host, two VMs; the first one's guest says that it has much to spare. */
static void with_balloon(struct box *b)
{
	box_open(b, 2);
	for (unsigned i = 0; i < 2; i++) {
		box_uses(b, i, 7 * GiB + 448 * MiB, 3 * GiB);
		b->vm[i].can_balloon = true;
		b->vm[i].guest = (struct policy_guest){ .known = true, .total_bytes = b->vm[i].memory_bytes,
							.available_bytes = 5 * GiB };
	}
}

Test(policy, balloon_takes_before_the_engine_and_not_twice)
{
	struct box b;

	with_balloon(&b);
	box_step(&b, 1000);
	cr_assert_eq(b.plan.state, POLICY_SOFT);
	cr_assert_gt(b.out[0].balloon_bytes, 0);
	/* all that is taken is the balloon's: the engine need not take any of it as well */
	cr_assert_geq(b.out[0].limit_bytes, b.vm[0].resident_bytes);
	cr_assert_lt(b.out[0].aim_bytes, b.vm[0].resident_bytes);
	/* as it fills, the limit comes down behind it */
	b.vm[0].ballooned_bytes = b.out[0].balloon_bytes;
	b.vm[0].resident_bytes -= b.out[0].balloon_bytes;
	box_step(&b, 100);
	cr_assert_leq(b.out[0].limit_bytes, b.vm[0].resident_bytes);
	box_close(&b);
}

Test(policy, balloon_without_progress_is_left_to_others)
{
	struct box b;

	with_balloon(&b);
	b.vm[1].can_balloon = false;
	box_step(&b, 1000);
	cr_assert_gt(b.out[0].balloon_bytes, 0);
	for (unsigned i = 0; i < 6; i++)
		box_step(&b, 1000);
	cr_assert_eq(b.out[0].balloon_bytes, 0);
	/* its part is the engine's from then on */
	for (unsigned i = 0; i < 3; i++)
		box_step(&b, 1000);
	cr_assert_lt(b.out[0].limit_bytes, b.vm[0].resident_bytes);
	cr_assert_eq(b.out[0].balloon_bytes, 0);
	box_close(&b);
}

Test(policy, balloon_of_a_short_guest_goes_to_zero_at_once)
{
	struct box b;

	with_balloon(&b);
	b.vm[0].balloon_target_bytes = b.vm[0].ballooned_bytes = 2 * GiB;
	b.vm[0].guest.available_bytes = 100 * MiB;
	box_step(&b, 1000);
	cr_assert_eq(b.out[0].balloon_bytes, 0);
	cr_assert(box_says(&b, 0, POLICY_WHY_BALLOON_SHORT));
	/* and is not asked for again at once */
	b.vm[0].ballooned_bytes = 0;
	b.vm[0].guest.available_bytes = 6 * GiB;
	for (unsigned i = 0; i < 50; i++)
		cr_assert_eq(box_step(&b, 1000)->vms[0].balloon_bytes, 0);
	box_close(&b);
}

Test(policy, balloon_of_a_guest_that_swaps_goes_to_zero_at_once)
{
	struct box b;

	with_balloon(&b);
	b.vm[0].balloon_target_bytes = b.vm[0].ballooned_bytes = GiB;
	box_step(&b, 1000);
	cr_assert_gt(b.out[0].balloon_bytes, 0);
	b.vm[0].guest.swap_in_bytes += 64 * MiB;
	box_step(&b, 1000);
	cr_assert_eq(b.out[0].balloon_bytes, 0);
	box_close(&b);
}

Test(policy, balloon_keeps_to_its_floor_and_cap)
{
	struct box b;

	with_balloon(&b);
	b.vm[0].balloon_floor_bytes = b.vm[0].memory_bytes - 200 * MiB;
	b.config.balloon_max_ppm = 10000; /* 1 % */
	for (unsigned i = 0; i < 40; i++) {
		box_step(&b, 1000);
		cr_assert_leq(b.out[0].balloon_bytes, 200 * MiB);
		cr_assert_leq(b.out[1].balloon_bytes, b.vm[1].memory_bytes / 100);
		for (unsigned k = 0; k < 2; k++)
			b.vm[k].ballooned_bytes = b.out[k].balloon_bytes;
	}
	cr_assert_gt(b.out[1].balloon_bytes, 0);
	box_close(&b);
}

Test(policy, balloon_is_let_down_when_memory_is_there)
{
	struct box b;

	with_balloon(&b);
	for (unsigned i = 0; i < 2; i++) {
		box_uses(&b, i, 3 * GiB, 3 * GiB);
		b.vm[i].balloon_target_bytes = b.vm[i].ballooned_bytes = GiB;
	}
	box_step(&b, 1000);
	cr_assert_lt(b.out[0].balloon_bytes, GiB);
	cr_assert(box_says(&b, 0, POLICY_WHY_BALLOON_GIVEN));
	box_close(&b);
}

/* ---- low ------------------------------------------------------------------------------------------ */

static void nothing_left(struct box *b)
{
	box_open(b, 3);
	for (unsigned i = 0; i < 3; i++) {
		box_uses(b, i, 5 * GiB + 300 * MiB, 5 * GiB);
		b->vm[i].can_pack = false; /* so that nothing helps */
		b->vm[i].shares = 1000 + i;
	}
}

Test(policy, low_stops_the_least_important_and_never_the_last)
{
	struct box b;
	unsigned stopped = 0;

	nothing_left(&b);
	box_step(&b, 1000);
	cr_assert_eq(b.plan.state, POLICY_LOW);
	cr_assert(!b.out[0].stop);
	for (unsigned i = 0; i < 4; i++)
		box_step(&b, 1000);
	cr_assert(b.out[0].stop && !b.out[1].stop && !b.out[2].stop);
	cr_assert(box_says(&b, 0, POLICY_WHY_STOPPED));
	for (unsigned i = 0; i < 60; i++)
		box_step(&b, 1000);
	for (unsigned i = 0; i < 3; i++)
		stopped += b.out[i].stop;
	cr_assert_eq(stopped, 2);
	cr_assert(!b.out[2].stop);
	box_close(&b);
}

Test(policy, low_leaves_who_holds_no_more_than_reserved)
{
	struct box b;

	nothing_left(&b);
	b.vm[0].reservation_bytes = 6 * GiB;
	for (unsigned i = 0; i < 60; i++)
		box_step(&b, 1000);
	cr_assert(!b.out[0].stop);
	cr_assert(b.out[1].stop);
	box_close(&b);
}

Test(policy, low_over_stopped_go_on_one_by_one_the_most_important_first)
{
	struct box b;

	nothing_left(&b);
	for (unsigned i = 0; i < 20; i++)
		box_step(&b, 1000);
	cr_assert(b.out[0].stop && b.out[1].stop);
	for (unsigned i = 0; i < 3; i++)
		box_uses(&b, i, GiB, GiB);
	for (unsigned i = 0; i < 5; i++)
		box_step(&b, 1000);
	cr_assert(b.out[0].stop && !b.out[1].stop);
	for (unsigned i = 0; i < 5; i++)
		box_step(&b, 1000);
	cr_assert(!b.out[0].stop && !b.out[1].stop);
	box_close(&b);
}

/* ---- the rest ---------------------------------------------------------------------------------------- */

Test(policy, step_more_vms_than_remembered_is_refused)
{
	struct box b;

	box_open(&b, 2);
	b.views.n = BOX_VMS + 1;
	cr_assert_eq(policy_step(&b.config, &b.views, b.memory, &b.plan), -E2BIG);
	box_close(&b);
}

Test(policy, step_vm_that_goes_is_forgotten)
{
	struct box b;

	box_open(&b, 1);
	box_uses(&b, 0, 4 * GiB, 4 * GiB);
	box_step(&b, 1000);
	b.vm[0].stall_us += 100000;
	box_step(&b, 1000);
	cr_assert_gt(b.out[0].stall_missed_ms, 0);
	b.views.n = 0;
	box_step(&b, 1000);
	b.views.n = 1;
	box_step(&b, 1000);
	cr_assert_eq(b.out[0].stall_missed_ms, 0);
	box_close(&b);
}

Test(policy, step_order_of_views_does_not_matter)
{
	struct box a, b;

	one_is_taken_from(&a);
	box_open(&b, 2);
	box_uses(&b, 0, 8 * GiB, GiB);
	box_uses(&b, 1, 7 * GiB, 6 * GiB);
	for (unsigned i = 0; i < 3; i++) {
		box_step(&b, 1000);
		box_obeys(&b);
	}
	cr_assert_eq(a.out[0].limit_bytes, b.out[1].limit_bytes);
	cr_assert_eq(a.out[1].limit_bytes, b.out[0].limit_bytes);
	box_close(&a);
	box_close(&b);
}

Test(policy, config_defaults_are_in_order_and_errors_name_the_key)
{
	struct policy_config c;
	struct err e;

	policy_config_default(&c);
	cr_assert_eq(policy_config_check(&c, &e), 0);
	c.soft_enter_ppm = 200000;
	cr_assert_eq(policy_config_check(&c, &e), -EINVAL);
	cr_assert(strstr(e.msg, "soft_enter_ppm"), "%s", e.msg);
	policy_config_default(&c);
	c.idle_tax_ppm = 1000000;
	cr_assert_eq(policy_config_check(&c, &e), -EINVAL);
	cr_assert(strstr(e.msg, "idle_tax_ppm"), "%s", e.msg);
}

Test(policy, config_values_are_read_as_people_write_them)
{
	struct policy_config c;
	struct err e;

	policy_config_default(&c);
	cr_assert_eq(policy_config_set(&c, "idle_tax_ppm", "50%", &e), 0);
	cr_assert_eq(c.idle_tax_ppm, 500000);
	cr_assert_eq(policy_config_set(&c, "remember_ms", "5m", &e), 0);
	cr_assert_eq(c.remember_ms, 300000);
	cr_assert_eq(policy_config_set(&c, "revocable", "7%", &e), 0);
	cr_assert_eq(c.revocable_ppm, 70000);
	cr_assert_eq(policy_config_set(&c, "room_min_bytes", "16M", &e), 0);
	cr_assert_eq(c.room_min_bytes, 16 * MiB);
	cr_assert_eq(policy_config_set(&c, "packing_from", "hard", &e), 0);
	cr_assert_eq(c.packing_from, POLICY_HARD);
	cr_assert_eq(policy_config_set(&c, "packing_from", "never", &e), 0);
	cr_assert_eq(c.packing_from, POLICY_STATES);
	cr_assert_eq(policy_config_set(&c, "idle_tax_ppm", "50s", &e), -EINVAL);
	cr_assert_eq(policy_config_set(&c, "idle_tax_ppm", "-1", &e), -EINVAL);
	cr_assert_eq(policy_config_set(&c, "idle_tax_ppm", "nan", &e), -EINVAL);
	cr_assert_eq(policy_config_set(&c, "nonsense", "1", &e), -EINVAL);
}

Test(policy, explain_every_reason_is_a_sentence_with_its_numbers)
{
	char text[256];

	for (int i = 0; i < POLICY_WHY_COUNT; i++) {
		struct policy_reason r = { (enum policy_why)i, 3 * GiB, 5 * GiB, 7777 };

		policy_reason_text(&r, text, sizeof(text));
		cr_assert_gt(strlen(text), 8, "reason %d", i);
		cr_assert(!strchr(text, '\n') && !strstr(text, "%a") && !strstr(text, "%b"), "%s", text);
	}
	policy_reason_text(&(struct policy_reason){ POLICY_WHY_HURT_REFAULTS, GiB, 5000, 2000 }, text, sizeof(text));
	cr_assert_str_eq(text, "gets 1 GiB first: refaults of 0.500 % of its working set a minute, of 0.200 % agreed");
	/* however small the buffer */
	for (size_t n = 1; n < 20; n++) {
		policy_reason_text(&(struct policy_reason){ POLICY_WHY_ROOM, GiB }, text, n);
		cr_assert_eq(strlen(text), n - 1);
	}
}
