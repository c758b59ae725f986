/*
 * The step: what is remembered is found, views are measured, the host's state follows,
 * then who gets, who gives, and how.  The order matters: what may be taken depends on the
 * state, what is claimed on fair shares, and what is given on what is taken (free first,
 * then hand out: only memory that is free now is given, never what is about to be).
 */
#include "mm/policy/internal.h"

#include <errno.h>
#include <stdlib.h>

int policy_memory_create(struct policy_memory **out, unsigned max_vms)
{
	struct policy_memory *m;

	if (max_vms == 0 || max_vms > POLICY_VMS_MAX)
		return -EINVAL;
	m = calloc(1, sizeof(*m));
	if (!m)
		return -ENOMEM;
	m->max_vms = max_vms;
	m->past = calloc(max_vms, sizeof(*m->past));
	m->now = calloc(max_vms, sizeof(*m->now));
	if (!m->past || !m->now) {
		policy_memory_destroy(&m);
		return -ENOMEM;
	}
	*out = m;
	return 0;
}

void policy_memory_destroy(struct policy_memory **mp)
{
	struct policy_memory *m = *mp;

	if (!m)
		return;
	free(m->past);
	free(m->now);
	free(m);
	*mp = NULL;
}

/* ---- which past is whose ------------------------------------------------------------ */

/* VMs mostly come in the same order: looked for from where this one was last. */
static struct past *known(struct policy_memory *m, uint64_t id, size_t hint)
{
	for (size_t k = 0; k < m->max_vms; k++) {
		struct past *p = &m->past[(hint + k) % m->max_vms];

		/* a second VM of the same number gets a past of its own */
		if (p->generation && p->generation != m->generation && p->id == id)
			return p;
	}
	return NULL;
}

/* Rows not in the last step are of VMs that have gone. */
static struct past *unknown(struct step *s, const struct policy_vm_view *v, size_t hint)
{
	struct policy_memory *m = s->m;
	struct past *p = NULL;

	for (size_t k = 0; k < m->max_vms && !p; k++) {
		struct past *row = &m->past[(hint + k) % m->max_vms];

		if (row->generation == 0)
			p = row;
	}
	VERIFY(p); /* free rows were made: n is no more than max_vms */
	*p = (struct past){ .id = v->id, .is_new = true, .limit_bytes = least(v->limit_now_bytes, MOST_BYTES),
			    .balloon_bytes = least(v->balloon_target_bytes, v->memory_bytes),
			    .held_progress_ms = s->host.now_ms, .balloon_progress_ms = s->host.now_ms,
			    .stopped = v->run == POLICY_STOPPED };
	return p;
}

static void forget_gone(struct step *s)
{
	for (unsigned i = 0; i < s->m->max_vms; i++)
		if (s->m->past[i].generation != s->m->generation)
			s->m->past[i].generation = 0;
}

static void find_pasts(struct step *s, const struct policy_views *v)
{
	s->m->generation++;
	for (size_t i = 0; i < s->n; i++) {
		struct past *p = known(s->m, v->vms[i].id, i);

		s->vm[i] = (struct now){ .v = v->vms[i], .past = p, .plan = &s->out->vms[i] };
		s->out->vms[i] = (struct policy_vm_plan){ .id = v->vms[i].id };
		if (p) {
			p->is_new = false;
			p->generation = s->m->generation;
		}
	}
	forget_gone(s);
	for (size_t i = 0; i < s->n; i++)
		if (!s->vm[i].past) {
			s->vm[i].past = unknown(s, &v->vms[i], i);
			s->vm[i].past->generation = s->m->generation;
		}
}

/* ---- the step -------------------------------------------------------------------------- */

static void begin(struct step *s, struct policy_memory *m)
{
	uint64_t since = less(s->host.now_ms, m->last_ms);

	/* the first step, or a clock that jumped */
	if (m->generation == 0 || s->host.now_ms < m->last_ms)
		since = 0;
	s->dt_ms = least(since, STEP_MOST_MS);
	m->last_ms = s->host.now_ms;
	*s->out = (struct policy_plan){ .vms = s->out->vms };
}

static void bound_steps(struct step *s)
{
	uint64_t ppm = s->out->state >= POLICY_HARD ? s->c.take_hard_ppm : s->c.take_ppm;
	uint64_t dt = s->dt_ms ? s->dt_ms : s->c.period_ms;

	for (size_t i = 0; i < s->n; i++) {
		struct now *w = &s->vm[i];
		uint64_t a_second = part(w->v.memory_bytes, ppm);

		/* what is asked for and has not come counts: a limit far below what a VM
		 * holds would only make its guest wait */
		w->step_most = a_second;
		w->step = least(scaled(a_second, dt, SECOND_MS), less(a_second, w->pending));
		w->given_step = most(scaled(part(w->v.memory_bytes, s->c.give_ppm), dt, SECOND_MS),
				     s->c.room_min_bytes);
	}
}

static void decide(struct step *s)
{
	uint64_t given = 0;

	state_step(s);
	for (size_t i = 0; i < s->n; i++)
		contract_step(s, &s->vm[i]);
	share_fair(s);
	for (size_t i = 0; i < s->n; i++)
		floor_step(s, &s->vm[i]);
	bound_steps(s);
	share_claim(s);
	share_take(s);
	share_give(s);
	for (size_t i = 0; i < s->n; i++)
		given += s->vm[i].give;
	s->slack = less(s->to_give, given);
	if (s->out->state == POLICY_HIGH)
		s->ease = less(s->effective, part(s->host.usable_bytes, s->c.clear_leave_ppm + s->c.dead_band_ppm));
}

static void finish(struct step *s)
{
	struct policy_plan *out = s->out;
	bool is_short = out->state >= POLICY_SOFT;

	for (size_t i = 0; i < s->n; i++) {
		means_plan(s, &s->vm[i]);
		out->promised_bytes += most(s->vm[i].held, out->vms[i].limit_bytes ? out->vms[i].limit_bytes
								     : s->vm[i].cap);
		is_short = is_short || out->vms[i].hurts;
	}
	means_stop(s);
	means_sharing(s);
	for (int m = 0; m < POLICY_MEANS; m++)
		out->allowed[m] = state_allows(s, (enum policy_means)m);
	out->next_ms = is_short ? s->c.period_short_ms : s->c.period_ms;
}

int policy_step(const struct policy_config *c, const struct policy_views *v,
		struct policy_memory *m, struct policy_plan *out)
{
	struct step s = { .c = *c, .host = *v->host, .m = m, .out = out, .vm = m->now, .n = v->n };

	if (v->n > m->max_vms)
		return -E2BIG;
	policy_config_bound(&s.c);
	begin(&s, m);
	find_pasts(&s, v);
	for (size_t i = 0; i < s.n; i++)
		measure_vm(&s, &s.vm[i]);
	measure_host(&s);
	decide(&s);
	finish(&s);
	return 0;
}
