/*
 * What VMs need and what the host has, from numbers that a VM's own process measured.
 *
 * Working set: what of the resident memory was written within idle_after_ms, by the
 * engine's passes (reading is seen when a page was taken: it comes back, and is young
 * again).  Three values of it, now, over 10 s and over a minute; the largest counts, as
 * in ESX: a need that begins is seen at once, one that ends is believed in after a while.
 *
 * Views come from other processes, some of which serve a guest we do not trust: all is cut
 * to what can be before anything is computed with it.
 */
#include "mm/policy/internal.h"

#define FAST_MS (10 * SECOND_MS)
#define SLOW_MS MINUTE_MS
#define PAIN_MS (2 * SECOND_MS) /* of it a twentieth is left after 6 s */
#define REFAULTS_MS (20 * SECOND_MS) /* and after a minute */
#define GROWS_BYTES MiB /* a second: less is no growth that needs an answer */
#define SAVED_DEFAULT_PPM (60 * PCT) /* of a packed page, before the pool says more */
#define POOL_SAYS_BYTES (16 * MiB)
#define WORKING_SET_LEAST (64 * MiB) /* below, one refault would be a large part */

uint64_t smooth(uint64_t old, uint64_t v, uint64_t dt_ms, uint64_t tau_ms)
{
	return scaled(old, tau_ms, tau_ms + dt_ms) + scaled(v, dt_ms, tau_ms + dt_ms);
}

/* ---- a view, cut to what can be ------------------------------------------------ */

static void cut(uint64_t *bytes, uint64_t to)
{
	*bytes = least(*bytes, to);
}

static void cut_view(struct policy_vm_view *v)
{
	uint64_t *const guest_memory[] = {
		&v->reservation_bytes, &v->limit_bytes, &v->balloon_floor_bytes, &v->balloon_target_bytes,
		&v->resident_bytes, &v->packed_bytes, &v->filled_bytes, &v->shared_bytes, &v->disk_bytes,
		&v->ballooned_bytes, &v->untouched_bytes, &v->guest.total_bytes, &v->guest.available_bytes,
	};

	cut(&v->memory_bytes, MOST_BYTES);
	for (size_t i = 0; i < ARRAY_LEN(guest_memory); i++)
		cut(guest_memory[i], v->memory_bytes);
	/* staged pages and the pool's overhead may come on top of all that is resident */
	cut(&v->staged_bytes, v->memory_bytes);
	cut(&v->pool_bytes, 2 * v->memory_bytes);
	cut(&v->overhead_bytes, MOST_BYTES);
	cut(&v->limit_now_bytes, MOST_BYTES);
	v->shares = within(v->shares, 1, MOST_SHARES);
	v->cpus = within(v->cpus, 1, 1 << 16);
	v->pass_ms = least(v->pass_ms, HOUR_MS);
	for (size_t i = 0; i < POLICY_COLDS; i++)
		cut(&v->cold_bytes[i], v->resident_bytes);
}

/* ---- one VM ------------------------------------------------------------------------ */

/* Counters begin again when a VM's process does. */
static uint64_t since(uint64_t *last, uint64_t v)
{
	uint64_t d = less(v, *last);

	*last = v;
	return d;
}

static uint64_t a_minute(uint64_t n, uint64_t dt_ms)
{
	return scaled(n, MINUTE_MS, dt_ms);
}

/* Time between passes, which an engine makes as it needs them.  Ages are in passes of all the
 * time before: one that speeds up is believed at once, so that what is called idle is at least
 * so long, and one that slows down only as the ages are made of it. */
static uint64_t pass_ms(const struct step *s, const struct now *w)
{
	struct past *p = w->past;
	uint64_t n = since(&p->passes, w->v.passes), each;

	p->no_pass_ms += s->dt_ms;
	if (n > 0 && !p->is_new) {
		each = most(p->no_pass_ms / n, 1);
		p->pass_ms = p->pass_ms && each > p->pass_ms
				     ? smooth(p->pass_ms, each, s->dt_ms, s->c.idle_after_ms) : each;
		p->no_pass_ms = 0;
	}
	return w->v.pass_ms ? w->v.pass_ms : p->pass_ms;
}

/* Not written for idle_after_ms; where the passes do not reach so far, for 32 of them. */
static uint64_t idle_bytes(const struct step *s, const struct now *w)
{
	const struct policy_vm_view *v = &w->v;
	uint64_t each = pass_ms(s, w), passes = each ? s->c.idle_after_ms / each : UINT64_MAX;
	unsigned i = 0;

	if (!v->cold_known)
		return 0;
	while (i + 1 < POLICY_COLDS && (UINT64_C(1) << i) < passes)
		i++;
	return v->cold_bytes[i];
}

static void measure_working_set(struct step *s, struct now *w)
{
	struct past *p = w->past;
	uint64_t active = less(w->v.resident_bytes, w->idle);

	if (p->is_new)
		p->active_slow_bytes = p->active_fast_bytes = active;
	p->active_slow_bytes = smooth(p->active_slow_bytes, active, s->dt_ms, SLOW_MS);
	p->active_fast_bytes = smooth(p->active_fast_bytes, active, s->dt_ms, FAST_MS);
	w->active = least(most(active, most(p->active_slow_bytes, p->active_fast_bytes)),
			  most(w->held, active));
	w->cold = less(least(w->idle, less(w->held, w->active)), w->balloon_pending);
	w->plan->active_ppm = w->held ? least(scaled(w->active, PPM, w->held), PPM) : PPM;
}

static void measure_pain(struct step *s, struct now *w)
{
	struct past *p = w->past;
	const struct policy_vm_view *v = &w->v;
	/* wraps harmlessly: a nonsense of the VM's own */
	uint64_t away = v->refaults_packed + v->refaults_stored + v->refaults_disk;
	uint64_t n = since(&p->refaults, away);
	uint64_t us = since(&p->stall_us, v->stall_us);

	if (p->is_new || s->dt_ms == 0)
		return;
	p->refault_fast = smooth(p->refault_fast, a_minute(n, s->dt_ms), s->dt_ms, PAIN_MS);
	p->refault_slow = smooth(p->refault_slow, a_minute(n, s->dt_ms), s->dt_ms, REFAULTS_MS);
	p->stall_ppm = smooth(p->stall_ppm, least(scaled(us, 1000, s->dt_ms * v->cpus), PPM),
			      s->dt_ms, PAIN_MS);
}

static void measure_growth(struct step *s, struct now *w)
{
	struct past *p = w->past;
	uint64_t grown = scaled(less(w->held, p->held_bytes), SECOND_MS, s->dt_ms);

	if (!p->is_new && s->dt_ms > 0)
		p->growth_bytes = most(least(grown, MOST_BYTES), smooth(p->growth_bytes, 0, s->dt_ms, PAIN_MS));
	p->held_bytes = w->held;
}

/* All it would hold: what it has in RAM and what is away, and some to grow by. */
static void measure_demand(struct step *s, struct now *w)
{
	const struct policy_vm_view *v = &w->v;
	uint64_t away = v->packed_bytes + v->disk_bytes + v->staged_bytes;
	uint64_t room = most(s->c.room_min_bytes, least(w->past->growth_bytes, MOST_BYTES) * 4);

	if (w->past->limit_bytes && w->held + room / 2 >= w->past->limit_bytes)
		room = most(room, v->memory_bytes / 32);
	w->demand = least(v->resident_bytes + away + room, w->cap);
	w->pressing = w->past->limit_bytes && w->held + room / 2 >= w->past->limit_bytes &&
		      w->past->growth_bytes >= GROWS_BYTES;
}

void measure_vm(struct step *s, struct now *w)
{
	struct policy_vm_view *v = &w->v;

	cut_view(v);
	w->held = v->resident_bytes + v->staged_bytes + v->pool_bytes;
	w->cap = v->limit_bytes ? v->limit_bytes : v->memory_bytes;
	w->reserved = least(v->reservation_bytes, w->cap);
	w->saved_ppm = SAVED_DEFAULT_PPM;
	if (v->packed_bytes >= POOL_SAYS_BYTES)
		w->saved_ppm = within(less(PPM, scaled(v->pool_bytes, PPM, v->packed_bytes)), 10 * PCT, 90 * PCT);
	w->idle = idle_bytes(s, w);
	means_watch(s, w);
	measure_working_set(s, w);
	measure_pain(s, w);
	measure_growth(s, w);
	measure_demand(s, w);
	w->plan->held_bytes = w->held;
	w->plan->working_set_bytes = w->active;
	w->plan->refault_ppm = scaled(w->past->refault_fast, PPM,
				      most(w->active, WORKING_SET_LEAST) >> PAGE_SHIFT);
	w->plan->stall_ppm = w->past->stall_ppm;
}

/* ---- the host ------------------------------------------------------------------------- */

static void cut_host(struct policy_host_view *h)
{
	cut(&h->physical_bytes, MOST_BYTES);
	cut(&h->usable_bytes, h->physical_bytes);
	cut(&h->reserve_bytes, h->physical_bytes);
	cut(&h->available_bytes, h->physical_bytes);
	cut(&h->store_bytes, MOST_BYTES);
	cut(&h->overhead_bytes, MOST_BYTES);
}

/* What packing, sharing and filling saved is borrowed: guests may ask for it back any time,
 * and get it without asking us, up to their limits.  A part of it is kept free, or what VMs
 * grew by lately if that is more; never so much that it alone made a plentiful host short. */
static uint64_t head_room(struct step *s)
{
	struct policy_memory *m = s->m;
	uint64_t held = s->out->held_bytes, grown = 0, lately;

	if (s->dt_ms && m->held_bytes)
		grown = least(scaled(less(held, m->held_bytes), SECOND_MS, s->dt_ms), MOST_BYTES);
	m->held_bytes = held;
	m->returning_bytes = most(grown, smooth(m->returning_bytes, 0, s->dt_ms, MINUTE_MS));
	lately = least(scaled(m->returning_bytes, s->c.revocable_ms, SECOND_MS), s->out->revocable_bytes);
	return least(most(part(s->out->revocable_bytes, s->c.revocable_ppm), lately),
		     part(s->host.usable_bytes, s->c.clear_enter_ppm) / 4);
}

void measure_host(struct step *s)
{
	struct policy_plan *out = s->out;
	uint64_t used, by_kernel;

	cut_host(&s->host);
	used = s->host.store_bytes + s->host.overhead_bytes;
	for (size_t i = 0; i < s->n; i++) {
		const struct policy_vm_view *v = &s->vm[i].v;

		out->held_bytes += s->vm[i].held;
		out->revocable_bytes += v->packed_bytes - least(v->packed_bytes, v->pool_bytes) +
					v->shared_bytes + v->filled_bytes;
		used += s->vm[i].held + v->overhead_bytes;
	}
	/* ours, and the kernel's: others may have taken what was meant for us */
	by_kernel = less(s->host.available_bytes, s->host.reserve_bytes);
	s->free = least(less(s->host.usable_bytes, used), by_kernel);
	s->head_room = head_room(s);
	s->effective = less(s->free, s->head_room);
	s->to_give = less(s->effective, part(s->host.usable_bytes, s->c.promise_free_ppm));
	out->free_bytes = s->free;
	out->head_room_bytes = s->head_room;
}
