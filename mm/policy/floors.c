/*
 * Contracts, and steps that hurt.
 *
 * A VM hurts from where it misses a contract until it is at half of it.  When that begins
 * within feedback_ms of something having been taken from it, the step is blamed: what the
 * VM held before becomes its floor.  Nothing is taken below a floor but in `hard` and
 * worse; it halves in remember_ms, so a step is tried again some day.
 *
 * A floor reaches no further than the VM's fair share: else a guest that reads all of its
 * memory in circles would keep for ever what it once had.
 */
#include "mm/policy/internal.h"

static bool over(uint64_t v, uint64_t contract, bool was)
{
	return v > (was ? contract / 2 : contract);
}

/* A minute's refaults, as the contract has it. */
static uint64_t minute_ppm(const struct now *w)
{
	return scaled(w->past->refault_slow, PPM, most(w->active, 64 * MiB) >> PAGE_SHIFT);
}

void contract_step(struct step *s, struct now *w)
{
	struct past *p = w->past;
	bool was = p->hurts;

	if (minute_ppm(w) > s->c.refault_ppm)
		p->refault_missed_ms += s->dt_ms;
	if (w->plan->stall_ppm > s->c.stall_ppm)
		p->stall_missed_ms += s->dt_ms;
	p->hurts = w->v.run == POLICY_RUNNING &&
		   (over(w->plan->refault_ppm, s->c.refault_ppm, was) ||
		    over(w->plan->stall_ppm, s->c.stall_ppm, was));
	w->hurts = p->hurts;
	w->plan->hurts = p->hurts;
	w->plan->refault_missed_ms = p->refault_missed_ms;
	w->plan->stall_missed_ms = p->stall_missed_ms;
}

static void forget(struct step *s, struct past *p)
{
	/* 0.693: ln 2 */
	uint64_t lost = scaled(p->floor_bytes, s->dt_ms * 693, s->c.remember_ms * 1000);

	p->floor_bytes = less(p->floor_bytes, lost);
	if (p->floor_bytes < MiB)
		p->floor_bytes = 0;
}

/* What was taken came back: a VM may also wait because it grows faster than it may, and
 * that is nobody's step. */
static bool blamed(const struct step *s, const struct now *w)
{
	return w->past->has_taken && s->host.now_ms - w->past->take_ms <= s->c.feedback_ms &&
	       w->plan->refault_ppm > s->c.refault_ppm;
}

void floor_step(struct step *s, struct now *w)
{
	struct past *p = w->past;

	forget(s, p);
	if (w->hurts && blamed(s, w)) {
		p->floor_bytes = most(p->floor_bytes, least(p->before_bytes[0], w->v.memory_bytes));
		p->has_taken = false; /* one step is blamed once */
		p->aim_bytes = 0;
		why(w, (struct policy_reason){ POLICY_WHY_UNDONE, p->floor_bytes });
	}
	w->floor = least(p->floor_bytes, most(w->fair, w->reserved));
	w->plan->floor_bytes = w->floor;
}

/* Something is being taken: where the VM stood, at least half a feedback time ago where
 * taking has gone on for so long. */
void floor_taken(struct step *s, struct now *w)
{
	struct past *p = w->past;
	uint64_t age = s->host.now_ms - p->mark_ms;

	if (!p->has_taken || age > s->c.feedback_ms)
		p->before_bytes[0] = p->before_bytes[1] = w->asked;
	else if (age >= s->c.feedback_ms / 2)
		p->before_bytes[0] = p->before_bytes[1], p->before_bytes[1] = w->asked;
	if (!p->has_taken || age >= s->c.feedback_ms / 2)
		p->mark_ms = s->host.now_ms;
	p->has_taken = true;
	p->take_ms = s->host.now_ms;
}
