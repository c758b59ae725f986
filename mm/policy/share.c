/*
 * Who gives and who gets.
 *
 * A VM's price is what it holds, an idle page counted 1 / (1 - tax) times, for each of its
 * shares:
 *
 *     cost(P) = P                       up to its working set a
 *               a + k * (P - a)         beyond, k = 1 / (1 - tax)
 *     rho     = shares / cost           (Waldspurger, OSDI 2002: S / (P * (f + k * (1 - f))))
 *
 * Who has the least rho, so the most cost a share, gives first; equal cost a share is where
 * it ends.  All three questions are this one with other bounds: what is everybody's fair
 * part of all there is (share_fair), who gives when something is needed (share_take), and
 * how room to grow is divided (share_give, by shares alone).  Each is solved for the one
 * level that all VMs meet, by halving: 90 steps over n VMs, no sorting.
 */
#include "mm/policy/internal.h"

#define HALVINGS 90

static double idle_factor(const struct step *s)
{
	return (double)PPM / (double)(PPM - s->c.idle_tax_ppm);
}

/* What a VM of working set `active` holds at so much cost a share. */
static double held_at(const struct step *s, const struct now *w, double active, double level)
{
	double cost = level * (double)w->v.shares;

	return cost <= active ? cost : active + (cost - active) / idle_factor(s);
}

static double cost_of(const struct step *s, const struct now *w, double held)
{
	double a = (double)w->active;

	return held <= a ? held : a + idle_factor(s) * (held - a);
}

/* ---- fair parts -------------------------------------------------------------------- */

/* One that hurts needs what it does not have: all it would hold counts as in use. */
static uint64_t needs(const struct now *w)
{
	return w->hurts || w->pressing ? most(w->demand, w->active) : w->active;
}

static uint64_t fair_at(const struct step *s, const struct now *w, double level)
{
	double held = held_at(s, w, (double)needs(w), level);
	uint64_t hi = most(w->demand, w->reserved);

	return held >= (double)hi ? hi : most((uint64_t)held, w->reserved);
}

static uint64_t fair_sum(const struct step *s, double level)
{
	uint64_t sum = 0;

	for (size_t i = 0; i < s->n; i++)
		sum += fair_at(s, &s->vm[i], level);
	return sum;
}

/* All that VMs may hold together. */
static uint64_t divisible(const struct step *s)
{
	uint64_t besides = s->host.store_bytes + s->host.overhead_bytes + s->head_room +
			   part(s->host.usable_bytes, s->c.promise_free_ppm);

	for (size_t i = 0; i < s->n; i++)
		besides += s->vm[i].v.overhead_bytes;
	return less(s->host.usable_bytes, besides);
}

void share_fair(struct step *s)
{
	uint64_t all = divisible(s);
	double lo = 0, hi = 128.0 * (double)MOST_BYTES;

	for (unsigned i = 0; i < HALVINGS; i++) {
		double level = (lo + hi) / 2;

		*(fair_sum(s, level) <= all ? &lo : &hi) = level;
	}
	for (size_t i = 0; i < s->n; i++) {
		s->vm[i].fair = fair_at(s, &s->vm[i], lo);
		s->vm[i].plan->fair_bytes = s->vm[i].past->fair_bytes = s->vm[i].fair;
	}
}

/* ---- claims --------------------------------------------------------------------------- */

/* What a VM should get now: one that hurts or grows, up to its fair share, or back to
 * where it was before a step hurt. */
static void claim(struct now *w)
{
	uint64_t up_to = most(w->fair, w->floor);

	if (w->v.run != POLICY_RUNNING || (!w->hurts && !w->pressing))
		return;
	w->want = least(less(up_to, w->held), w->given_step);
	if (w->hurts && w->want == 0)
		why(w, (struct policy_reason){ POLICY_WHY_FAIR_SHARE, w->fair });
}

/* Beyond what is free, and what is on its way, claims are to be taken from others. */
void share_claim(struct step *s)
{
	uint64_t claims = 0, coming = 0;

	for (size_t i = 0; i < s->n; i++) {
		claim(&s->vm[i]);
		claims += s->vm[i].want;
		coming += s->vm[i].pending;
	}
	s->claims = less(claims, s->to_give + coming);
	if (s->claims <= part(s->host.usable_bytes, s->c.dead_band_ppm))
		s->claims = 0;
	if (s->claims && s->out->state < s->c.packing_from && s->c.packing_from <= POLICY_HARD) {
		s->out->state = (enum policy_state)s->c.packing_from;
		s->out->why = POLICY_HOST_CLAIMS;
	}
}

/* ---- taking ------------------------------------------------------------------------------ */

enum round {
	ROUND_IDLE,  /* what is not in the working set, nor below a floor */
	ROUND_RICH,  /* what is more than a fair share, for others' claims */
	ROUND_ANY,   /* down to reservations: hard and low */
};

static uint64_t lowest_of(const struct now *w, enum round r)
{
	uint64_t held_at_least = most(w->reserved, least(w->cap / 16, w->held / 8));

	if (r == ROUND_IDLE)
		return most(w->reserved, most(w->active, w->floor));
	if (r == ROUND_RICH)
		return most(w->reserved, w->fair);
	return held_at_least;
}

/* The engine's: where all that is taken is only packed, no more than that saves. */
static uint64_t by_engine(const struct step *s, const struct now *w, enum round r)
{
	uint64_t left = less(r == ROUND_IDLE ? w->cold : w->v.resident_bytes, w->pending + w->take);

	if (!w->v.can_pack || !state_allows(s, POLICY_PACKING))
		return 0;
	if (state_allows(s, POLICY_DISK) && w->v.can_disk)
		return left;
	return part(left, w->saved_ppm);
}

static uint64_t by_any(const struct step *s, const struct now *w, enum round r)
{
	/* with an engine to rely on, what the guest says of itself takes no part (I4) */
	if (w->v.can_pack && state_allows(s, POLICY_PACKING))
		return by_engine(s, w, r);
	return means_balloon(s, w);
}

static void open_round(const struct step *s, struct now *w, enum round r)
{
	uint64_t at = less(w->asked, w->take);

	w->available = w->stuck || (w->hurts && r == ROUND_IDLE) ? 0 : less(at, lowest_of(w, r));
	w->available = least(w->available, by_any(s, w, r));
	/* From `hard` on, who can give more than a step at once leaves the rest to others; before,
	 * there is time to let him give it all, and others are spared. */
	if (s->out->state >= POLICY_HARD)
		w->available = least(w->available, less(w->step, w->take));
}

static uint64_t given_at(const struct step *s, const struct now *w, double level)
{
	uint64_t at = less(w->asked, w->take);
	double stays = held_at(s, w, (double)w->active, level);
	uint64_t gives = stays >= (double)at ? 0 : at - (uint64_t)stays;

	return least(gives, w->available);
}

static uint64_t round_sum(const struct step *s, double level)
{
	uint64_t sum = 0;

	for (size_t i = 0; i < s->n; i++)
		sum += given_at(s, &s->vm[i], level);
	return sum;
}

/* Takes up to `need` from who has the most cost a share.  Returns what was not found. */
static uint64_t take_round(struct step *s, enum round r, uint64_t need)
{
	double lo = 0, hi = 128.0 * (double)MOST_BYTES;
	uint64_t taken = 0;

	if (need == 0)
		return 0;
	for (size_t i = 0; i < s->n; i++)
		open_round(s, &s->vm[i], r);
	for (unsigned i = 0; i < HALVINGS; i++) {
		double level = (lo + hi) / 2;

		*(round_sum(s, level) >= need ? &lo : &hi) = level;
	}
	for (size_t i = 0; i < s->n; i++) {
		uint64_t gives = least(given_at(s, &s->vm[i], lo), need - taken);

		s->vm[i].take += least(gives, less(s->vm[i].step, s->vm[i].take));
		taken += gives; /* what is more than a step comes in the next */
	}
	return need - taken;
}

static uint64_t price_ppm(const struct step *s, const struct now *w)
{
	return (uint64_t)(cost_of(s, w, (double)w->asked) / (double)w->v.shares * 1000.0 / (double)MiB);
}

static void say_why_not(struct now *w)
{
	if (w->asked <= w->reserved + w->step)
		why(w, (struct policy_reason){ POLICY_WHY_SHIELDED, w->reserved });
	else if (w->floor && less(w->asked, w->floor) == 0)
		why(w, (struct policy_reason){ POLICY_WHY_REMEMBERED, w->floor });
	else if (w->asked <= w->active)
		why(w, (struct policy_reason){ POLICY_WHY_WORKING_SET, w->active });
	else if (w->available == 0 && !w->stuck && w->step > 0)
		why(w, (struct policy_reason){ POLICY_WHY_NO_MEANS });
}

/* A take too small to matter would only keep everybody busy. */
static void close_take(struct step *s, struct now *w)
{
	uint64_t band = part(w->v.memory_bytes, s->c.dead_band_ppm) / 4;

	if (w->take < least(band, w->step / 2))
		w->take = 0;
	if (w->take) {
		floor_taken(s, w);
		why(w, (struct policy_reason){ POLICY_WHY_TAKEN, w->take, price_ppm(s, w),
					       w->plan->active_ppm });
	} else if (s->out->need_bytes) {
		say_why_not(w);
	}
}

void share_take(struct step *s)
{
	uint64_t goal = state_goal(s), coming = 0, need, left;

	for (size_t i = 0; i < s->n; i++)
		coming += s->vm[i].pending;
	need = less(goal, s->effective + coming);
	if (need <= part(s->host.usable_bytes, s->c.dead_band_ppm))
		need = 0;
	s->out->goal_bytes = goal;
	s->out->need_bytes = need + s->claims;
	left = take_round(s, ROUND_IDLE, need + s->claims);
	left = less(left, s->claims) + take_round(s, ROUND_RICH, least(left, s->claims));
	if (s->out->state >= POLICY_HARD)
		take_round(s, ROUND_ANY, least(left, need));
	for (size_t i = 0; i < s->n; i++)
		close_take(s, &s->vm[i]);
}

/* ---- giving -------------------------------------------------------------------------------- */

static uint64_t shared_at(const struct now *w, double level)
{
	double g = level * (double)w->v.shares;

	return g < (double)w->available ? (uint64_t)g : w->available;
}

/* `amount` by shares, nobody more than is `available` to him. */
static void by_shares(struct step *s, uint64_t amount)
{
	double lo = 0, hi = (double)MOST_BYTES * 2;

	for (unsigned i = 0; i < HALVINGS; i++) {
		double level = (lo + hi) / 2;
		uint64_t sum = 0;

		for (size_t k = 0; k < s->n; k++)
			sum += shared_at(&s->vm[k], level);
		*(sum <= amount ? &lo : &hi) = level;
	}
	for (size_t k = 0; k < s->n; k++) {
		uint64_t gets = least(shared_at(&s->vm[k], lo), amount);

		s->vm[k].give += gets;
		amount -= gets;
	}
}

static uint64_t given_all(const struct step *s)
{
	uint64_t sum = 0;

	for (size_t i = 0; i < s->n; i++)
		sum += s->vm[i].give;
	return sum;
}

/* What reservations lack comes before all else.  VMs without an engine cannot be held
 * to anything: what they may still take is as good as promised. */
static void give_owed(struct step *s)
{
	uint64_t lacking = 0;

	for (size_t i = 0; i < s->n; i++) {
		struct now *w = &s->vm[i];

		w->give = w->v.can_pack ? less(w->reserved, w->held) : less(w->cap, w->held);
		lacking += less(w->reserved, w->held);
	}
	if (lacking > s->free && s->out->why != POLICY_HOST_CLAIMS)
		s->out->why = POLICY_HOST_RESERVATIONS;
}

static void say_given(const struct step *s, struct now *w, uint64_t got)
{
	const struct policy_vm_plan *p = w->plan;

	if (got == 0)
		return;
	if (w->hurts && p->stall_ppm > s->c.stall_ppm / 2)
		why(w, (struct policy_reason){ POLICY_WHY_HURT_STALL, got, p->stall_ppm, s->c.stall_ppm });
	else if (w->hurts)
		why(w, (struct policy_reason){ POLICY_WHY_HURT_REFAULTS, got, p->refault_ppm,
					       s->c.refault_ppm });
	else
		why(w, (struct policy_reason){ POLICY_WHY_GROWING, got, w->past->growth_bytes });
}

/* First who hurts, then who grows. */
static void give_wanted(struct step *s, bool hurting)
{
	uint64_t before;

	for (size_t i = 0; i < s->n; i++) {
		struct now *w = &s->vm[i];

		before = w->give;
		w->available = w->hurts == hurting && w->want > before && !w->take ? w->want - before : 0;
	}
	by_shares(s, less(s->to_give, given_all(s)));
	for (size_t i = 0; i < s->n; i++)
		if (s->vm[i].available)
			say_given(s, &s->vm[i], s->vm[i].give);
}

/* What is left is room to grow for all, so that a VM that wakes need not wait for us: not
 * while something is being taken, lest it be given to who has just given it. */
static void give_room(struct step *s)
{
	for (size_t i = 0; i < s->n; i++) {
		struct now *w = &s->vm[i];
		uint64_t up_to = less(w->cap, w->held + w->give);

		if (s->out->state >= POLICY_SOFT)
			up_to = least(up_to, less(w->fair, w->held + w->give));
		w->available = up_to;
		if (w->take || w->pending || w->v.run == POLICY_STOPPED ||
		    (s->out->state >= POLICY_SOFT && w->asked < w->held))
			w->available = 0;
	}
	by_shares(s, less(s->to_give, given_all(s)));
}

void share_give(struct step *s)
{
	give_owed(s);
	give_wanted(s, true);
	give_wanted(s, false);
	give_room(s);
}
