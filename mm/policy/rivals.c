/*
 * Other rules, to compare with in `brim policy simulate`.  None is to be used on a host.
 *
 *   ladder  what a daemon of fixed rules does (MOM's balloon.rules, and the constants in
 *           them): below 20 % free every guest with memory to spare gives 5 % of it a step,
 *           below 5 % all do, spare or not; above, all get it back.  The kernel swaps, from
 *           all alike, what does not fit.
 *   static  everybody has his part for good
 */
#include "mm/policy/internal.h"


#define PRESSURE_PPM (20 * PCT)
#define CRITICAL_PPM (5 * PCT)
#define SPARE_PPM (20 * PCT) /* of a guest's memory, kept available for it */
#define CHANGE_PPM (5 * PCT)
#define RIVAL_MS (10 * SECOND_MS)

static uint64_t held_of(const struct policy_vm_view *v)
{
	return v->resident_bytes + v->staged_bytes + v->pool_bytes;
}

static void begin(const struct policy_views *v, struct policy_plan *out)
{
	uint64_t used = v->host->store_bytes + v->host->overhead_bytes;

	*out = (struct policy_plan){ .vms = out->vms, .next_ms = RIVAL_MS };
	for (size_t i = 0; i < v->n; i++) {
		used += held_of(&v->vms[i]) + v->vms[i].overhead_bytes;
		out->held_bytes += held_of(&v->vms[i]);
		out->vms[i] = (struct policy_vm_plan){ .id = v->vms[i].id, .may_disk = true,
						       .held_bytes = held_of(&v->vms[i]),
						       .limit_bytes = v->vms[i].limit_now_bytes,
						       .balloon_bytes = v->vms[i].balloon_target_bytes };
	}
	out->free_bytes = less(v->host->usable_bytes, used);
}

static uint64_t ladder_balloon(const struct policy_vm_view *v, uint64_t free_ppm)
{
	uint64_t change = part(v->memory_bytes, CHANGE_PPM);
	uint64_t spare = less(v->guest.available_bytes, part(v->memory_bytes, SPARE_PPM));

	if (free_ppm >= PRESSURE_PPM)
		return less(v->balloon_target_bytes, change);
	if (free_ppm < CRITICAL_PPM)
		return least(v->ballooned_bytes + change, part(v->memory_bytes, 80 * PCT));
	return v->ballooned_bytes + least(change, spare);
}

static int ladder_step(const struct policy_config *c, const struct policy_views *v,
		       struct policy_memory *m, struct policy_plan *out)
{
	uint64_t free_ppm;

	begin(v, out);
	free_ppm = scaled(out->free_bytes, PPM, v->host->usable_bytes);
	out->state = free_ppm < CRITICAL_PPM ? POLICY_HARD : free_ppm < PRESSURE_PPM ? POLICY_SOFT : POLICY_HIGH;
	for (size_t i = 0; i < v->n; i++) {
		out->vms[i].balloon_bytes = ladder_balloon(&v->vms[i], free_ppm);
		/* kswapd: from all alike, while next to nothing is free */
		if (free_ppm < PCT)
			out->vms[i].limit_bytes = most(part(held_of(&v->vms[i]), 95 * PCT), 64 * MiB);
		else if (free_ppm > CRITICAL_PPM)
			out->vms[i].limit_bytes = 0;
	}
	out->next_ms = free_ppm < PCT ? SECOND_MS : RIVAL_MS;
	return 0;
}

static int static_step(const struct policy_config *c, const struct policy_views *v,
		       struct policy_memory *m, struct policy_plan *out)
{
	uint64_t all = 0, besides = v->host->store_bytes + v->host->overhead_bytes;

	begin(v, out);
	for (size_t i = 0; i < v->n; i++) {
		all += v->vms[i].memory_bytes;
		besides += v->vms[i].overhead_bytes;
	}
	for (size_t i = 0; i < v->n; i++)
		out->vms[i].limit_bytes = most(1, scaled(v->vms[i].memory_bytes,
							 less(v->host->usable_bytes, besides), all));
	return 0;
}

const struct policy_rule policy_rules[] = {
	{ "brim", "this project's: reservation, shares, idle tax, feedback", policy_step },
	{ "ladder", "fixed thresholds and steps on the balloon, then blind swapping", ladder_step },
	{ "static", "a fixed part for each VM", static_step },
	{ NULL },
};
