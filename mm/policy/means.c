/*
 * By which means what was decided is done, and whether it was.
 *
 * A VM's aim is what it is to hold once all means are done.  Its limit is the aim and what
 * the balloon is still to give: so the engine does not pack pages that the guest is about
 * to hand over, and takes them itself when the guest does not.  Cold memory is counted less
 * the same amount.
 *
 *   asked of the balloon ──no page for balloon_silent_ms──► silent: the target comes back to
 *        ▲                                                  what is there; the limit stays
 *        └── the guest has more available than it had then ◄──┘
 *
 *   a limit that is not met ──nothing for balloon_silent_ms──► stuck: the limit goes back to
 *        ▲                                                     what is held; others give
 *        └── it holds another amount, or the host is worse off ◄──┘
 *
 * Neither is tried again after a time alone: what did not help would not, and on and off
 * in turn would be an oscillation of our own making.
 */
#include "mm/policy/internal.h"

#define HINT_FRESH_MS (10 * SECOND_MS)
#define SWAPS_BYTES MiB /* a guest that reads so much of its own swap in a step is short */

/* ---- what became of the last plan ---------------------------------------------- */

static bool hint_known(const struct now *w)
{
	return w->v.guest.known && w->v.guest.age_ms <= HINT_FRESH_MS && w->v.guest.total_bytes > 0;
}

/* The guest's own word that it needs memory.  Who lies gets his balloon back, and is packed
 * instead: his limit is the same. */
static bool is_short(const struct step *s, struct now *w)
{
	const struct policy_guest *g = &w->v.guest;
	uint64_t swapped = less(g->swap_in_bytes, w->past->swap_in_bytes);
	bool has_balloon = w->v.ballooned_bytes > 0 || w->past->balloon_bytes > 0;

	w->past->swap_in_bytes = g->swap_in_bytes;
	if (!hint_known(w) || !has_balloon)
		return false;
	return g->available_bytes < part(g->total_bytes, s->c.balloon_short_ppm) ||
	       (!w->past->is_new && swapped >= SWAPS_BYTES);
}

static void watch_balloon(struct step *s, struct now *w)
{
	struct past *p = w->past;
	uint64_t there = w->v.ballooned_bytes, now = s->host.now_ms, available = w->v.guest.available_bytes;

	if (there > p->most_ballooned_bytes || p->balloon_bytes <= there) {
		p->most_ballooned_bytes = there;
		p->balloon_progress_ms = now;
	}
	w->balloon_pending = less(p->balloon_bytes, there);
	if (w->balloon_pending && now - p->balloon_progress_ms >= s->c.balloon_silent_ms) {
		why(w, (struct policy_reason){ POLICY_WHY_BALLOON_SILENT, there, p->balloon_bytes,
					       now - p->balloon_progress_ms });
		p->silent_available_bytes = available + 1;
		p->balloon_bytes = there;
		w->balloon_pending = 0;
	}
	if (available > p->silent_available_bytes + part(w->v.memory_bytes, s->c.dead_band_ppm))
		p->silent_available_bytes = 0;
	w->silent = p->silent_available_bytes > 0;
	w->short_guest = is_short(s, w);
}

/* Somewhat over its limit is where a busy VM is. */
static uint64_t margin(uint64_t limit)
{
	return limit / 32 + 4 * MiB;
}

/* Something is different from when it did not come. */
static bool changed(const struct step *s, const struct now *w)
{
	const struct past *p = w->past;
	uint64_t band = part(w->v.memory_bytes, s->c.dead_band_ppm) + MiB;

	return w->held > p->stuck_held_bytes + band || w->held + band < p->stuck_held_bytes ||
	       w->idle > p->stuck_idle_bytes + band || s->m->state > p->stuck_state;
}

static void get_stuck(struct step *s, struct now *w)
{
	struct past *p = w->past;

	why(w, (struct policy_reason){ POLICY_WHY_STUCK, w->pending });
	p->stuck_held_bytes = w->held;
	p->stuck_idle_bytes = w->idle;
	p->stuck_state = s->m->state;
	p->least_held_bytes = 0;
	w->pending = 0;
	/* who holds more than its share keeps the limit, and waits at it */
	if (w->held > p->fair_bytes)
		return;
	p->aim_bytes = p->limit_bytes = 0;
	w->asked = w->held;
}

/* Of the engine: what the balloon is to give is not behind the limit yet. */
static bool is_asked(const struct now *w)
{
	return w->pending && w->held > w->past->limit_bytes + margin(w->past->limit_bytes) &&
	       w->past->limit_bytes;
}

static void watch_stuck(struct step *s, struct now *w)
{
	struct past *p = w->past;

	if (p->stuck_held_bytes && changed(s, w))
		p->stuck_held_bytes = 0;
	if (p->stuck_held_bytes)
		w->pending = 0;
	if (!is_asked(w) || w->held + PAGE_BYTES <= p->least_held_bytes || !p->least_held_bytes) {
		p->least_held_bytes = is_asked(w) ? w->held : 0;
		p->held_progress_ms = s->host.now_ms;
	} else if (s->host.now_ms - p->held_progress_ms >= s->c.balloon_silent_ms) {
		get_stuck(s, w);
	}
	w->stuck = p->stuck_held_bytes > 0;
}

/* First of all, since what is cold and what is wanted depend on it. */
void means_watch(struct step *s, struct now *w)
{
	struct past *p = w->past;

	watch_balloon(s, w);
	/* reached, or nobody is left who could */
	if (w->held <= p->aim_bytes || (w->balloon_pending == 0 && s->m->state < s->c.packing_from))
		p->aim_bytes = 0;
	w->asked = least(w->held, p->limit_bytes ? p->limit_bytes : w->held);
	if (p->aim_bytes)
		w->asked = least(w->asked, p->aim_bytes);
	w->pending = less(w->held, w->asked + margin(w->asked)) ? w->held - w->asked : 0;
	watch_stuck(s, w);
}

/* ---- the balloon -------------------------------------------------------------------- */

uint64_t means_balloon(const struct step *s, const struct now *w)
{
	const struct policy_guest *g = &w->v.guest;
	uint64_t up_to = least(part(w->v.memory_bytes, s->c.balloon_max_ppm),
			       less(w->v.memory_bytes, w->v.balloon_floor_bytes));
	uint64_t room = less(up_to, most(w->past->balloon_bytes, w->v.ballooned_bytes));
	uint64_t keep = part(g->total_bytes, s->c.balloon_keep_ppm);

	if (!w->v.can_balloon || !state_allows(s, POLICY_BALLOON) || w->v.run != POLICY_RUNNING)
		return 0;
	if (w->silent || w->short_guest || w->hurts || s->host.now_ms < w->past->rest_until_ms)
		return 0;
	if (hint_known(w))
		return least(room, less(g->available_bytes, keep + w->balloon_pending));
	return s->out->state >= POLICY_SOFT ? least(room, w->cold) : 0;
}

/* At once and whole: half of it back left guests stalled, in the field. */
static uint64_t release(struct step *s, struct now *w)
{
	const struct policy_guest *g = &w->v.guest;

	w->past->rest_until_ms = s->host.now_ms + s->c.balloon_rest_ms;
	why(w, (struct policy_reason){ POLICY_WHY_BALLOON_SHORT, g->available_bytes, g->total_bytes });
	return 0;
}

static uint64_t let_down(struct now *w, uint64_t by)
{
	uint64_t to = less(w->past->balloon_bytes, by);

	if (to != w->past->balloon_bytes)
		why(w, (struct policy_reason){ POLICY_WHY_BALLOON_GIVEN, to });
	return to;
}

static uint64_t balloon_target(struct step *s, struct now *w)
{
	uint64_t was = w->past->balloon_bytes, eased;

	if (!w->v.can_balloon)
		return 0;
	if (w->short_guest)
		return release(s, w);
	if (s->host.now_ms < w->past->rest_until_ms) {
		why(w, (struct policy_reason){ POLICY_WHY_BALLOON_REST,
					       w->past->rest_until_ms - s->host.now_ms });
		return let_down(w, was);
	}
	if (w->hurts)
		return let_down(w, w->given_step);
	w->balloon_take = least(w->take, means_balloon(s, w));
	if (w->balloon_take) {
		was = most(was, w->v.ballooned_bytes) + w->balloon_take;
		why(w, (struct policy_reason){ POLICY_WHY_BALLOON, was, w->v.guest.available_bytes });
		return was;
	}
	eased = least(least(was, w->given_step), s->ease);
	s->ease -= eased;
	return let_down(w, eased);
}

/* ---- the limit --------------------------------------------------------------------------- */

static uint64_t limit_of_taken(const struct step *s, const struct now *w, uint64_t aim)
{
	uint64_t before = w->past->limit_bytes ? w->past->limit_bytes : w->held;
	uint64_t pending = less(w->past->balloon_bytes, w->v.ballooned_bytes);

	if (state_allows(s, POLICY_PACKING))
		return least(w->held, aim + pending);
	/* the balloon's alone: the engine is asked for no more than it was */
	return least(w->held, most(aim, before));
}

/* Of this step: a limit far below what a VM holds makes its guest wait, and was not meant,
 * where it grew after it had been asked for less. */
static uint64_t lowest_limit(const struct now *w)
{
	uint64_t was = w->past->limit_bytes ? w->past->limit_bytes : w->held;

	return less(least(was, w->held), w->step_most);
}

static uint64_t limit_raw(const struct step *s, struct now *w)
{
	uint64_t aim = w->take || w->past->aim_bytes ? less(w->asked, w->take) : 0, limit;

	if (w->give) {
		w->past->aim_bytes = 0;
		limit = w->held + w->give;
	} else {
		w->past->aim_bytes = aim < w->held ? aim : 0;
		limit = aim ? limit_of_taken(s, w, aim) : w->asked;
	}
	if (limit > w->cap) /* its configured limit was lowered, say */
		limit = w->cap;
	return most(most(limit, w->reserved), lowest_limit(w));
}

/* Small changes are not worth a message: a smaller limit than could be is always sound, a
 * larger one where nobody else was given the difference.  What has to come down a little comes
 * down by a whole band more, of room alone, so that it need not come down again at once. */
static uint64_t steadied(struct step *s, const struct now *w, uint64_t limit)
{
	uint64_t was = w->past->limit_bytes, band = part(w->v.memory_bytes, s->c.dead_band_ppm);
	uint64_t beyond = less(was, most(limit, w->held));

	if (was == 0 || was < most(w->held, w->reserved) || was > w->cap || w->take || w->hurts)
		return limit;
	if (limit > was && limit - was <= band)
		return was;
	if (limit >= was || was - limit > band)
		return limit;
	if (beyond > s->slack)
		return most(less(limit, band), least(limit, most(w->held, w->reserved)));
	s->slack -= beyond;
	return was;
}

void means_plan(struct step *s, struct now *w)
{
	struct policy_vm_plan *p = w->plan;
	uint64_t limit;

	p->balloon_bytes = w->past->balloon_bytes = least(balloon_target(s, w), w->v.memory_bytes);
	/* none at all would be no limit */
	limit = w->v.can_pack ? most(steadied(s, w, limit_raw(s, w)), PAGE_BYTES) : 0;
	if (limit >= w->v.memory_bytes && !w->v.limit_bytes && limit > w->held) {
		limit = 0; /* all of it: there is nothing to limit */
		why(w, (struct policy_reason){ POLICY_WHY_PLENTY });
	} else if (limit > w->held && p->reason_count == 0) {
		why(w, (struct policy_reason){ POLICY_WHY_ROOM, limit - w->held });
	}
	if (w->take > w->balloon_take && w->v.can_pack)
		why(w, (struct policy_reason){ POLICY_WHY_PACKED, w->take - w->balloon_take, w->cold });
	p->limit_bytes = w->past->limit_bytes = limit;
	p->aim_bytes = w->past->aim_bytes;
	p->may_disk = w->v.can_disk && state_allows(s, POLICY_DISK);
}

/* ---- stopping vCPUs -------------------------------------------------------------------------- */

static bool runs(const struct now *w)
{
	return w->v.run != POLICY_PAUSED && !w->past->stopped;
}

/* The least shares; of those alike, who holds the most beyond its reservation.  Who is
 * within it is never stopped: that is what it was guaranteed. */
static bool before(const struct now *a, const struct now *b)
{
	if (a->v.shares != b->v.shares)
		return a->v.shares < b->v.shares;
	return less(a->held, a->reserved) > less(b->held, b->reserved);
}

static struct now *to_stop(struct step *s)
{
	struct now *found = NULL;
	size_t running = 0;

	for (size_t i = 0; i < s->n; i++) {
		struct now *w = &s->vm[i];

		running += runs(w);
		if (runs(w) && w->v.can_stop && w->held > w->reserved && (!found || before(w, found)))
			found = w;
	}
	return running > 1 ? found : NULL;
}

static struct now *to_resume(struct step *s)
{
	struct now *found = NULL;

	for (size_t i = 0; i < s->n; i++)
		if (s->vm[i].past->stopped && (!found || before(found, &s->vm[i])))
			found = &s->vm[i];
	return found;
}

/* One VM at a time, each way.  In `hard` they wait ten times as long to go on: else the
 * host would be back in `low` at once; but a host that stays there must not keep them for ever. */
static bool may_resume(const struct step *s)
{
	const struct policy_memory *m = s->m;
	uint64_t now = s->host.now_ms, last = now - m->stop_ms;

	if (s->out->state == POLICY_LOW)
		return false;
	if (s->out->state == POLICY_HARD)
		return last >= 10 * s->c.resume_after_ms;
	return last >= s->c.resume_after_ms && now - m->better_since_ms >= s->c.resume_after_ms;
}

static void stop_or_resume(struct step *s)
{
	struct policy_memory *m = s->m;
	uint64_t now = s->host.now_ms;
	struct now *w = NULL;

	if (state_allows(s, POLICY_STOPPING) && now - most(m->low_since_ms, m->stop_ms) >= s->c.stop_after_ms)
		w = to_stop(s);
	else if (!state_allows(s, POLICY_STOPPING) && may_resume(s))
		w = to_resume(s);
	if (!w)
		return;
	w->past->stopped = !w->past->stopped;
	m->stop_ms = now;
	if (!w->past->stopped)
		why(w, (struct policy_reason){ POLICY_WHY_RESUMED });
}

void means_stop(struct step *s)
{
	stop_or_resume(s);
	for (size_t i = 0; i < s->n; i++) {
		struct now *w = &s->vm[i];

		w->plan->stop = w->past->stopped;
		if (w->past->stopped)
			why(w, (struct policy_reason){ POLICY_WHY_STOPPED, w->v.shares });
	}
}

/* ---- sharing ------------------------------------------------------------------------------------ */

/* The host's allowance, by what each has to look through. */
void means_sharing(struct step *s)
{
	uint64_t ppm = state_allows(s, POLICY_SHARING) ? s->c.share_busy_ppm : s->c.share_quiet_ppm;
	uint64_t all = 0;

	for (size_t i = 0; i < s->n; i++)
		all += s->vm[i].v.can_share ? s->vm[i].v.resident_bytes : 0;
	for (size_t i = 0; i < s->n; i++)
		if (s->vm[i].v.can_share)
			s->vm[i].plan->share_cpu_ppm = scaled(ppm, s->vm[i].v.resident_bytes, all);
}
