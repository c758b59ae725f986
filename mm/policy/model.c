/*
 * VMs that do not exist, to see what a rule would make of a trace.  A guest is a few
 * amounts of memory, moved in ticks; nothing in it is random.
 *
 *   memory = untouched + ballooned + resident + packed + disk
 *   resident + packed + disk holds what the guest uses, and what it freed and kept (cache)
 *   of what it uses, the working set is touched all the time: `hot` is resident, `missing` away
 *
 * Rates are of this project's own measurements, rounded (ARCHITECTURE.md, bench/): a fault
 * on a packed page 20 us, on disk 120 us; packing 200 MB a second and VM, to 0.4.  It is a model: it
 * says which rule is better and where one fails, not what a real guest's figures will be.
 */
#include "mm/policy/internal.h"

#include <errno.h>
#include <stdlib.h>

#define TICK_MS ((uint64_t)250)
#define MB ((uint64_t)1000000)
#define GROWS_PER_S (1000 * MB)
#define FILLS_PER_S (500 * MB)    /* a balloon */
#define EMPTIES_PER_S (2000 * MB)
#define FAULTS_PER_S (100 * MB)
#define PACKS_PER_S (200 * MB)
#define SPILLS_PER_S (200 * MB)
#define FAULT_US ((uint64_t)20)
#define DISK_US ((uint64_t)120)
#define PACKED_PPM (40 * PCT)     /* what a packed page takes */
#define OVERHEAD_BYTES (16 * MiB) /* of a VM's process */
#define PASS_MS SECOND_MS

struct guest {
	struct policy_demand d;
	bool lives;
	uint64_t used, hot, missing;
	uint64_t resident, packed, disk, ballooned;
	uint64_t cold[POLICY_COLDS];
	uint64_t refaults_packed, refaults_disk, stall_us;
	/* of the last plan */
	uint64_t limit, target;
	bool stopped, may_disk;
	/* for the result */
	uint64_t refault_slow, stall_short, stall_long, held_sum;
	uint64_t first_ms;
};

struct world {
	const struct policy_sim *sim;
	struct guest g[POLICY_TRACE_VMS];
	struct policy_vm_view view[POLICY_TRACE_VMS];
	struct policy_vm_plan plans[POLICY_TRACE_VMS];
	struct policy_host_view host;
	struct policy_memory *memory;
	struct policy_result *out;
	size_t next_event;
};

static uint64_t in_a_tick(uint64_t a_second)
{
	return a_second * TICK_MS / SECOND_MS;
}

static uint64_t pool(const struct guest *g)
{
	return part(g->packed, PACKED_PPM);
}

static uint64_t held(const struct guest *g)
{
	return g->resident + pool(g);
}

static uint64_t touched(const struct guest *g)
{
	return g->resident + g->packed + g->disk;
}

static uint64_t away(const struct guest *g)
{
	return g->packed + g->disk;
}

static void stall(struct guest *g, uint64_t us)
{
	g->stall_us += least(us, TICK_MS * 1000);
}

/* ---- what a guest does -------------------------------------------------------------- */

/* What may come in this tick: to its limit, and a little beyond at the pace of the engine; the
 * further, the longer the engine makes it wait. */
static uint64_t intake(const struct guest *g)
{
	uint64_t pace = in_a_tick(part(PACKS_PER_S, PPM - PACKED_PPM));

	if (!g->limit)
		return UINT64_MAX;
	if (held(g) > g->limit + g->limit / 64)
		pace /= 2;
	return less(g->limit, held(g)) + pace;
}

/* New memory, up to what the balloon leaves. */
static void grow(struct guest *g, uint64_t memory)
{
	uint64_t want = least(less(g->d.used_bytes, g->used), in_a_tick(GROWS_PER_S));
	uint64_t room = least(less(memory, g->ballooned + g->used), intake(g)), fresh;

	if (want > room)
		stall(g, scaled(TICK_MS * 1000, want - room, want));
	want = least(want, room);
	g->used += want;
	fresh = less(g->used, touched(g));
	g->resident += fresh;
	if (g->d.used_bytes < g->used)
		g->used = g->d.used_bytes;
}

/* What becomes hot was anywhere; what cools down stays where it is. */
static void warm(struct guest *g)
{
	uint64_t set = least(g->d.working_set_bytes, g->used), has = g->hot + g->missing, d;

	if (set > has) {
		d = scaled(set - has, less(away(g), g->missing), less(touched(g), has));
		d = most(d, less(set - has, less(g->resident, g->hot)));
		g->missing += d;
		g->hot += less(set - has, d);
	} else if (has > 0) {
		g->hot = scaled(g->hot, set, has);
		g->missing = scaled(g->missing, set, has);
	}
}

static void fault(struct guest *g)
{
	uint64_t back = least(g->missing, in_a_tick(FAULTS_PER_S)), from_disk;

	back = least(back, least(away(g), intake(g)));
	from_disk = scaled(back, g->disk, away(g));
	g->missing -= back;
	g->hot += back;
	g->resident += back;
	g->disk -= from_disk;
	g->packed -= back - from_disk;
	g->refaults_packed += (back - from_disk) >> PAGE_SHIFT;
	g->refaults_disk += from_disk >> PAGE_SHIFT;
	stall(g, ((back - from_disk) >> PAGE_SHIFT) * FAULT_US + (from_disk >> PAGE_SHIFT) * DISK_US);
}

/* The guest takes pages it has free for its balloon: never touched ones, and others alike. */
static void balloon(struct guest *g, uint64_t memory)
{
	uint64_t by, spare = less(touched(g), g->used), fresh = less(memory, touched(g) + g->ballooned);
	uint64_t old;

	if (g->d.balloon_dead)
		return;
	if (g->target < g->ballooned) {
		g->ballooned -= least(g->ballooned - g->target, in_a_tick(EMPTIES_PER_S));
		return;
	}
	by = least(least(g->target - g->ballooned, in_a_tick(FILLS_PER_S)), spare + fresh);
	old = scaled(by, spare, spare + fresh);
	g->ballooned += by;
	by = least(old, less(g->resident, g->hot));
	g->resident -= by;
	old -= by;
	by = least(old, less(g->packed, g->missing));
	g->packed -= by;
	g->disk -= least(old - by, g->disk);
}

/* ---- what its engine does -------------------------------------------------------------- */

static void pack(struct guest *g)
{
	uint64_t n = least(scaled(less(held(g), g->limit), PPM, PPM - PACKED_PPM), in_a_tick(PACKS_PER_S));
	uint64_t cool;

	n = least(n, less(g->resident, g->limit / 8));
	cool = least(n, less(g->resident, g->hot));
	g->resident -= n;
	g->packed += n;
	g->hot -= n - cool;
	g->missing += n - cool;
}

static void spill(struct guest *g)
{
	uint64_t n = scaled(less(held(g), g->limit), PPM, PACKED_PPM);

	n = least(least(n, g->packed), in_a_tick(SPILLS_PER_S));
	g->packed -= n;
	g->disk += n;
}

static void engine(struct guest *g, bool can_disk)
{
	if (g->limit && held(g) > g->limit)
		pack(g);
	if (g->limit && held(g) > g->limit && can_disk && (g->may_disk || g->resident <= g->limit / 8))
		spill(g);
}

static void age(struct guest *g)
{
	uint64_t idle = less(g->resident, g->hot);

	for (unsigned i = 0; i < POLICY_COLDS; i++)
		g->cold[i] = least(smooth(g->cold[i], idle, TICK_MS, PASS_MS << i), idle);
}

static void tick_guest(struct world *w, unsigned i)
{
	struct guest *g = &w->g[i];
	const struct policy_vm_view *v = &w->view[i];
	uint64_t refaults = g->refaults_packed + g->refaults_disk, stalled = g->stall_us;
	uint64_t ppm, a_minute;

	if (!g->stopped) {
		grow(g, v->memory_bytes);
		warm(g);
		fault(g);
		balloon(g, v->memory_bytes);
	}
	engine(g, v->can_disk);
	age(g);
	g->stall_us = stalled + least(g->stall_us - stalled, TICK_MS * 1000);
	a_minute = (g->refaults_packed + g->refaults_disk - refaults) * (MINUTE_MS / TICK_MS);
	ppm = (g->stall_us - stalled) * 1000 / TICK_MS;
	g->refault_slow = smooth(g->refault_slow, a_minute, TICK_MS, 20 * SECOND_MS);
	g->stall_short = smooth(g->stall_short, ppm, TICK_MS, 2 * SECOND_MS);
	g->stall_long = smooth(g->stall_long, ppm, TICK_MS, 10 * SECOND_MS);
}

/* ---- views ------------------------------------------------------------------------------- */

static void look(struct world *w, unsigned i)
{
	struct guest *g = &w->g[i];
	struct policy_vm_view *v = &w->view[i];

	v->run = g->stopped ? POLICY_STOPPED : POLICY_RUNNING;
	v->limit_now_bytes = g->limit;
	v->balloon_target_bytes = g->target;
	v->resident_bytes = g->resident;
	v->packed_bytes = g->packed;
	v->pool_bytes = pool(g);
	v->disk_bytes = g->disk;
	v->ballooned_bytes = g->ballooned;
	v->untouched_bytes = less(v->memory_bytes, touched(g) + g->ballooned);
	v->overhead_bytes = OVERHEAD_BYTES;
	v->cold_known = true;
	v->pass_ms = PASS_MS;
	for (unsigned c = 0; c < POLICY_COLDS; c++)
		v->cold_bytes[c] = g->cold[c];
	v->refaults_packed = g->refaults_packed;
	v->refaults_disk = g->refaults_disk;
	v->stall_us = g->stall_us * v->cpus; /* all of its vCPUs wait */
	v->guest = (struct policy_guest){ .known = true, .total_bytes = v->memory_bytes,
					  .available_bytes = less(v->memory_bytes, g->used + g->ballooned) };
	if (g->d.says_bytes != UINT64_MAX)
		v->guest.available_bytes = g->d.says_bytes;
}

static void look_host(struct world *w, uint64_t now_ms)
{
	uint64_t used = w->host.store_bytes + w->host.overhead_bytes;

	for (unsigned i = 0; i < w->sim->trace->vms; i++)
		if (w->g[i].lives)
			used += held(&w->g[i]) + OVERHEAD_BYTES;
	w->host.now_ms = now_ms;
	w->host.available_bytes = less(w->host.physical_bytes, used);
	/* beyond what there is, programs wait for each other's memory */
	w->host.psi_full_ppm = used > w->host.physical_bytes ? 50 * PCT : 0;
	w->host.psi_some_ppm = used > w->host.physical_bytes ? PPM : 0;
	if (used > w->host.physical_bytes)
		w->out->out_of_memory_ms += TICK_MS;
	w->out->least_free_bytes = least(w->out->least_free_bytes, less(w->host.usable_bytes, used));
}

/* ---- a step of the rule ------------------------------------------------------------------- */

static void obey(struct world *w, const unsigned *who, const struct policy_plan *p, size_t n)
{
	for (size_t k = 0; k < n; k++) {
		struct guest *g = &w->g[who[k]];
		const struct policy_vm_plan *vp = &p->vms[k];

		w->out->changes += (vp->limit_bytes != g->limit) + (vp->balloon_bytes != g->target);
		g->limit = vp->limit_bytes;
		g->target = vp->balloon_bytes;
		g->stopped = vp->stop;
		g->may_disk = vp->may_disk;
	}
}

static int step(struct world *w, uint64_t *next_ms, uint64_t *state)
{
	struct policy_vm_view now[POLICY_TRACE_VMS];
	unsigned who[POLICY_TRACE_VMS];
	struct policy_views v = { .host = &w->host, .vms = now };
	struct policy_plan p = { .vms = w->plans };
	int rc;

	for (unsigned i = 0; i < w->sim->trace->vms; i++) {
		if (!w->g[i].lives)
			continue;
		look(w, i);
		who[v.n] = i;
		now[v.n++] = w->view[i];
	}
	rc = w->sim->rule->step(w->sim->config, &v, w->memory, &p);
	if (rc)
		return rc;
	obey(w, who, &p, v.n);
	if (w->sim->seen)
		w->sim->seen(w->sim->ctx, &v, &p);
	w->out->steps++;
	*next_ms = w->host.now_ms + most(p.next_ms, TICK_MS);
	*state = least(p.state, POLICY_LOW);
	return 0;
}

/* ---- a run ------------------------------------------------------------------------------------ */

static void happen(struct world *w, uint64_t now_ms)
{
	const struct policy_trace *t = w->sim->trace;

	for (; w->next_event < t->events && t->event[w->next_event].t_ms <= now_ms; w->next_event++) {
		const struct policy_event *ev = &t->event[w->next_event];
		struct guest *g = &w->g[ev->vm];

		if (!g->lives)
			g->first_ms = now_ms;
		g->lives = true;
		g->d = ev->demand;
		g->d.used_bytes = least(g->d.used_bytes, t->vm[ev->vm].view.memory_bytes);
	}
}

static void note(struct world *w, unsigned i)
{
	const struct policy_config *c = w->sim->config;
	struct guest *g = &w->g[i];
	struct policy_result_vm *r = &w->out->vm[i];
	uint64_t set = most(g->hot + g->missing, 64 * MiB) >> PAGE_SHIFT;

	g->held_sum += held(g) / MiB;
	r->most_ballooned_bytes = most(r->most_ballooned_bytes, g->ballooned);
	r->worst_stall_ppm = most(r->worst_stall_ppm, g->stall_long);
	r->refault_missed_ms += scaled(g->refault_slow, PPM, set) > c->refault_ppm ? TICK_MS : 0;
	r->stall_missed_ms += g->stall_short > c->stall_ppm ? TICK_MS : 0;
	r->stopped_ms += g->stopped ? TICK_MS : 0;
}

static void sum_up(struct world *w, uint64_t end_ms)
{
	w->out->duration_ms = end_ms;
	w->out->vms = w->sim->trace->vms;
	for (unsigned i = 0; i < w->out->vms; i++) {
		const struct guest *g = &w->g[i];
		uint64_t lived = end_ms - g->first_ms;

		w->out->vm[i].refaults = g->refaults_packed + g->refaults_disk;
		w->out->vm[i].stall_ppm = scaled(g->stall_us, 1000, lived);
		w->out->vm[i].mean_held_bytes = scaled(g->held_sum, TICK_MS * MiB, lived);
	}
}

static int run(struct world *w)
{
	uint64_t next_ms = 0, state = POLICY_HIGH, end = w->sim->trace->end_ms, t;

	for (t = 0; t <= end; t += TICK_MS) {
		happen(w, t);
		look_host(w, t);
		if (t >= next_ms) {
			int rc = step(w, &next_ms, &state);

			if (rc)
				return rc;
		}
		w->out->state_ms[state] += TICK_MS;
		for (unsigned i = 0; i < w->sim->trace->vms; i++)
			if (w->g[i].lives) {
				tick_guest(w, i);
				note(w, i);
			}
	}
	sum_up(w, t);
	return 0;
}

int policy_simulate(const struct policy_sim *sim, struct policy_result *out)
{
	struct world *w = calloc(1, sizeof(*w));
	int rc;

	if (!w)
		return -ENOMEM;
	*out = (struct policy_result){ .least_free_bytes = UINT64_MAX };
	w->sim = sim;
	w->out = out;
	w->host = sim->trace->host;
	for (unsigned i = 0; i < sim->trace->vms; i++) {
		w->view[i] = sim->trace->vm[i].view;
		w->view[i].id = i + 1;
	}
	rc = policy_memory_create(&w->memory, POLICY_TRACE_VMS);
	if (rc == 0)
		rc = run(w);
	policy_memory_destroy(&w->memory);
	free(w);
	return rc;
}
