/*
 * The policy loop: look, decide, ask.
 */
#include "host/steward.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "host/views.h"

#define MS_NS ((uint64_t)1000000)
#define VMS_MAX 1024u

/* What a VM is asked; the newest value counts. */
enum ask { ASK_LIMIT, ASK_BALLOON, ASK_RUN, ASKS };

struct ward;

/* A question on its way. */
struct question {
	struct ward *ward;
	bool is_open;
	uint64_t value;
};

/* A VM, as the steward knows it: made when it first has numbers, freed with its process. */
struct ward {
	uint64_t run_id;
	struct guest *g; /* NULL: its process has ended, and a question is still open */
	struct question question[ASKS];
	struct stats_view now;
	struct stats_rates rates; /* from the view before to this one */
	size_t at; /* in views and plan; SIZE_MAX: in neither */
	struct ward *next;
};

struct steward {
	struct keeper *k;
	struct steward_config cfg;
	struct policy_config policy;
	struct policy_memory *memory;
	struct policy_host_view host;
	struct policy_vm_view *views; /* [VMS_MAX] */
	struct policy_vm_plan *plans; /* [VMS_MAX] */
	struct policy_views all;
	struct policy_plan plan;
	bool has_plan;
	struct ward *wards;
	uint64_t due_ns;
};

/* ---- who there is ------------------------------------------------------------------- */

static struct ward *ward_of(const struct steward *s, const struct guest *g)
{
	struct ward *w = s->wards;

	while (w && w->run_id != g->run_id)
		w = w->next;
	return w;
}

static bool has_question(const struct ward *w)
{
	for (unsigned i = 0; i < ASKS; i++)
		if (w->question[i].is_open)
			return true;
	return false;
}

/* Closing a link answers its questions, so none is left behind for long. */
static void forget_ended(struct steward *s)
{
	struct ward **at = &s->wards, *w;

	while ((w = *at)) {
		bool is_there = false;

		for (const struct guest *g = keeper_guests(s->k); g; g = g->next)
			is_there |= g->pid && g->run_id == w->run_id;
		if (!is_there)
			w->g = NULL;
		if (is_there || has_question(w)) {
			at = &w->next;
			continue;
		}
		*at = w->next;
		free(w);
	}
}

static struct ward *new_ward(struct steward *s, struct guest *g)
{
	struct ward *w = calloc(1, sizeof(*w));

	if (!w)
		return NULL;
	w->run_id = g->run_id;
	w->g = g;
	for (unsigned i = 0; i < ASKS; i++)
		w->question[i].ward = w;
	w->next = s->wards;
	s->wards = w;
	return w;
}

/* ---- looking -------------------------------------------------------------------------- */

static bool is_governed(const struct guest *g)
{
	return g->vm && g->pid && (g->state == GUEST_RUNNING || g->state == GUEST_STOPPING);
}

/* Its numbers of now; false: it has none, or not yet. */
static bool read_numbers(struct ward *w)
{
	struct stats_view view;

	if (stats_read(w->g->paths.stats, &view, NULL))
		return false;
	if (!stats_rates(&w->now, &view, &w->rates))
		w->rates = (struct stats_rates){ 0 };
	w->now = view;
	w->g->overhead_bytes = view_gauge(&view, GAUGE_vmm_bytes);
	return true;
}

static void look(struct steward *s)
{
	size_t n = 0;

	for (struct ward *w = s->wards; w; w = w->next)
		w->at = SIZE_MAX;
	for (struct guest *g = keeper_guests(s->k); g && n < VMS_MAX; g = g->next) {
		struct ward *w = is_governed(g) ? ward_of(s, g) : NULL;

		if (is_governed(g) && !w)
			w = new_ward(s, g);
		if (!w || !read_numbers(w))
			continue;
		w->at = n;
		views_vm(g, &w->now, &s->views[n++]);
	}
	s->all = (struct policy_views){ .host = &s->host, .vms = s->views, .n = n };
}

/* ---- asking ---------------------------------------------------------------------------- */

static void on_answer(void *ctx, int rc, const json_t *result, const char *error)
{
	struct question *q = ctx;

	(void)result;
	q->is_open = false;
	if (rc == -EREMOTEIO && q->ward->g)
		log_guest("VM %s: %s", q->ward->g->paths.name, error);
}

/* False: not now. */
static bool ask(struct ward *w, enum ask what, const char *cmd, json_t *args)
{
	struct question *q = &w->question[what];

	if (q->is_open || !w->g->link || !link_is_up(w->g->link)) {
		json_decref(args);
		return false;
	}
	q->is_open = link_call(w->g->link, cmd, args, on_answer, q) == 0;
	return q->is_open;
}

static json_t *bytes_arg(const char *key, uint64_t bytes)
{
	return json_pack("{s:I}", key, (json_int_t)bytes);
}

/* What a limit may be is the VM's to say: 0, or so much at least. */
static uint64_t limit_to_ask(uint64_t limit_bytes)
{
	return limit_bytes && limit_bytes < VM_LIMIT_MIN_BYTES ? VM_LIMIT_MIN_BYTES : limit_bytes;
}

/* What its user has paused is not ours to resume: so it is ours only once it was asked for, and
 * no more when it is seen to run again. */
static void stop_or_resume(struct ward *w, const struct policy_vm_view *v,
			   const struct policy_vm_plan *p)
{
	if (v->run == POLICY_RUNNING && !w->question[ASK_RUN].is_open)
		w->g->is_stopped_by_us = p->stop && ask(w, ASK_RUN, "pause", NULL);
	else if (v->run == POLICY_STOPPED && !p->stop)
		(void)ask(w, ASK_RUN, "resume", NULL);
}

static void carry_out(struct ward *w, const struct policy_vm_view *v,
		      const struct policy_vm_plan *p)
{
	uint64_t limit = limit_to_ask(p->limit_bytes);

	if (limit != v->limit_now_bytes)
		(void)ask(w, ASK_LIMIT, "limit", bytes_arg("limit_bytes", limit));
	if (v->can_balloon && p->balloon_bytes != v->balloon_target_bytes)
		(void)ask(w, ASK_BALLOON, "balloon", bytes_arg("target_bytes", p->balloon_bytes));
	stop_or_resume(w, v, p);
}

static void carry_all_out(struct steward *s)
{
	for (struct ward *w = s->wards; w; w = w->next)
		if (w->g && w->at < s->all.n)
			carry_out(w, &s->views[w->at], &s->plans[w->at]);
}

/* ---- the step ----------------------------------------------------------------------------- */

static void tell_state(const struct steward *s, enum policy_state was)
{
	char text[256];

	if (s->has_plan && was == s->plan.state)
		return;
	log_info("%s", policy_host_text(&s->plan, text, sizeof(text)));
}

/* What is nobody's RAM: shared pages, and what finding them takes. */
static void add_shared(struct steward *s)
{
	struct share_host_stats shared;

	if (!s->cfg.share)
		return;
	share_host_stats(s->cfg.share, &shared);
	s->host.store_bytes = shared.resident_bytes;
	s->host.overhead_bytes = shared.index_bytes;
}

static void step(struct steward *s, uint64_t now)
{
	const struct views_host from = { s->cfg.proc, s->cfg.usable_bytes, s->cfg.reserve_bytes };
	enum policy_state was = s->plan.state;

	forget_ended(s);
	if (views_host(&from, now, &s->host)) {
		log_guest("the host's memory cannot be told; no policy for now");
		return;
	}
	add_shared(s);
	look(s);
	s->plan.vms = s->plans;
	VERIFY(policy_step(&s->policy, &s->all, s->memory, &s->plan) == 0);
	tell_state(s, was);
	s->has_plan = true;
	carry_all_out(s);
}

unsigned steward_tick(struct steward *s, uint64_t now)
{
	if (now >= s->due_ns) {
		step(s, now);
		s->due_ns = now + (s->plan.next_ms ? s->plan.next_ms : 1000) * MS_NS;
	}
	return (unsigned)((s->due_ns - now) / MS_NS + 1);
}

const struct policy_plan *steward_plan(const struct steward *s)
{
	return s->has_plan ? &s->plan : NULL;
}

const struct policy_views *steward_views(const struct steward *s)
{
	return &s->all;
}

const struct policy_vm_plan *steward_plan_of(const struct steward *s, const struct guest *g)
{
	const struct ward *w = ward_of(s, g);

	return w && s->has_plan && w->at < s->all.n ? &s->plans[w->at] : NULL;
}

struct stats_rates steward_rates_of(const struct steward *s, const struct guest *g)
{
	const struct ward *w = ward_of(s, g);

	return w ? w->rates : (struct stats_rates){ 0 };
}

/* ---- create and destroy ---------------------------------------------------------------------- */

int steward_create(struct steward **out, struct keeper *k, const struct steward_config *cfg,
		   struct err *e)
{
	struct steward *s = calloc(1, sizeof(*s));

	if (s) {
		s->views = calloc(VMS_MAX, sizeof(*s->views));
		s->plans = calloc(VMS_MAX, sizeof(*s->plans));
	}
	if (!s || !s->views || !s->plans || policy_memory_create(&s->memory, VMS_MAX)) {
		steward_destroy(&s);
		return err_sys(e, -ENOMEM, "policy");
	}
	s->k = k;
	s->cfg = *cfg;
	if (!s->cfg.proc)
		s->cfg.proc = "/proc";
	policy_config_default(&s->policy);
	*out = s;
	return 0;
}

/* The keeper goes first: until then answers may come. */
void steward_destroy(struct steward **sp)
{
	struct steward *s = *sp;

	*sp = NULL;
	if (!s)
		return;
	while (s->wards) {
		struct ward *w = s->wards;

		s->wards = w->next;
		free(w);
	}
	policy_memory_destroy(&s->memory);
	free(s->views);
	free(s->plans);
	free(s);
}

void steward_configure(struct steward *s, const struct host_config *cfg)
{
	const struct host_host *h = &cfg->host;

	s->policy = *cfg->policy;
	s->cfg.reserve_bytes = h->reserve_bytes;
	s->cfg.usable_bytes = h->memory_bytes;
	s->due_ns = 0;
}
