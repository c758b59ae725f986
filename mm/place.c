/*
 * Who faults and who serves, on one CPU: touchers held while they fault at a rate.
 *
 * On one CPU a fault is a task switch there and back.  On two it is two wake-ups, of idle
 * CPUs where the machine has nothing else to do.  That the fault thread goes where faults
 * come from (fault.c) is not enough: the CPU it runs on is busy, with itself, so the
 * scheduler wakes the toucher on another, idle one, and both keep moving.  So a toucher
 * that we know (the VM's vCPU threads) is bound to the CPU it is on as well:
 *
 *               HOLD_FAULTS within HOLD_WINDOW_NS
 *     (free) ───────────────────────────────────────► held
 *       ▲  ▲                                          │  │
 *       │  └── a few ticks without a fault ───────────┘  │
 *       └───── waits for its CPU, others want it too ────┘ and is not held for a while
 *
 * At most one toucher is held on a CPU: two would wait for each other where there may be
 * an idle CPU for one.
 *
 * Threads: fault threads hold (place_note); the placer, which sleeps while nobody is held,
 * lets go.
 *
 * Invariants:
 *  I1  A thread that is held is let go again: TICKS_IDLE ticks after its last fault, and
 *      at the latest when the engine ends.
 */
#include "mm/internal.h"

#include <errno.h>
#include <stdlib.h>
#include <time.h>

#define SEATS 64u
#define HOLD_FAULTS 16u
#define HOLD_WINDOW_NS 10000000u
#define TICK_NS 4000000u
#define TICKS_IDLE 3u
/* What a held thread may wait for its CPU: the fault thread's last steps in each fault,
 * and a share of the time. */
#define WAIT_FAULT_NS 5000u
#define WAIT_SHARE 8
#define REST_NS 200000000u
#define REST_SHIFT_MAX 5u
#define NO_CPU (-1)

/* One toucher.  By its number: who comes later than another with the same place has none
 * while that one is held. */
struct seat {
	uint32_t tid; /* 0: nobody's */
	int cpu;      /* held there, or NO_CPU */
	uint64_t faults, window_ns;
	unsigned in_window;
	/* since it is held */
	uint64_t seen_faults, tick_ns;
	int64_t waited_ns;
	unsigned idle_ticks;
	/* not held again before */
	uint64_t rest_until_ns;
	unsigned rest_shift;
};

struct placer {
	/* fixed at create */
	struct engine *e;
	pthread_t thread;
	bool has_thread;

	pthread_mutex_t lock; /* innermost but for what `hold` takes */
	pthread_cond_t wake;
	/* under lock */
	bool stopping;
	unsigned held;
	struct seat seat[SEATS];
};

/* As exact as a timer's tick, and a few ns. */
static uint64_t coarse_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC_COARSE, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* ---- holding: fault threads -------------------------------------------------------- */

static struct seat *seat_of(struct placer *p, uint32_t tid)
{
	struct seat *s = &p->seat[tid % SEATS];

	if (s->tid != tid && s->cpu == NO_CPU)
		*s = (struct seat){ .tid = tid, .cpu = NO_CPU };
	return s->tid == tid ? s : NULL;
}

static bool is_thick(struct seat *s, uint64_t now)
{
	if (now - s->window_ns > HOLD_WINDOW_NS) {
		s->window_ns = now;
		s->in_window = 0;
	}
	return ++s->in_window >= HOLD_FAULTS;
}

static bool is_taken(const struct placer *p, int cpu)
{
	for (unsigned i = 0; p->held && i < SEATS; i++)
		if (p->seat[i].cpu == cpu)
			return true;
	return false;
}

static int64_t waited_ns(const struct placer *p, uint32_t tid)
{
	const struct engine *e = p->e;

	return e->touchers.waited_ns ? e->touchers.waited_ns(e->touchers.ctx, tid) : -ENOSYS;
}

static void begin_rest(struct seat *s, uint64_t now)
{
	s->rest_until_ns = now + ((uint64_t)REST_NS << s->rest_shift);
	s->rest_shift += s->rest_shift < REST_SHIFT_MAX;
}

static bool hold(struct placer *p, struct seat *s, int cpu, uint64_t now)
{
	if (p->e->touchers.hold(p->e->touchers.ctx, s->tid, cpu)) {
		counter_inc(CTR_engine_hold_refused);
		begin_rest(s, now);
		return false;
	}
	counter_inc(CTR_engine_held);
	s->cpu = cpu;
	s->tick_ns = now_ns();
	s->seen_faults = s->faults;
	s->waited_ns = waited_ns(p, s->tid);
	s->idle_ticks = 0;
	if (p->held++ == 0)
		pthread_cond_signal(&p->wake);
	return true;
}

bool place_note(struct placer *p, uint32_t tid, int cpu)
{
	uint64_t now = coarse_ns();
	struct seat *s;
	bool is_new = false;

	pthread_mutex_lock(&p->lock);
	s = seat_of(p, tid);
	if (s) {
		s->faults++;
		if (s->cpu == NO_CPU && is_thick(s, now) && now >= s->rest_until_ns &&
		    !is_taken(p, cpu))
			is_new = hold(p, s, cpu, now);
	}
	pthread_mutex_unlock(&p->lock);
	return is_new;
}

/* ---- letting go: the placer --------------------------------------------------------- */

static void let_go(struct placer *p, struct seat *s)
{
	VERIFY(p->held && s->cpu != NO_CPU);
	(void)p->e->touchers.hold(p->e->touchers.ctx, s->tid, NO_CPU);
	s->cpu = NO_CPU;
	s->in_window = 0;
	p->held--;
}

/* Does it wait longer than service on its CPU makes it? */
static bool is_contended(struct seat *s, uint64_t faults, int64_t waited, uint64_t now)
{
	int64_t most = (int64_t)(faults * WAIT_FAULT_NS + (now - s->tick_ns) / WAIT_SHARE);

	return waited >= 0 && s->waited_ns >= 0 && waited - s->waited_ns > most;
}

static void look_at(struct placer *p, struct seat *s)
{
	uint64_t now = now_ns(), faults = s->faults - s->seen_faults;
	int64_t waited = waited_ns(p, s->tid);

	s->idle_ticks = faults ? 0 : s->idle_ticks + 1;
	if (is_contended(s, faults, waited, now)) {
		counter_inc(CTR_engine_hold_contended);
		begin_rest(s, coarse_ns());
		let_go(p, s);
	} else if (s->idle_ticks >= TICKS_IDLE) {
		s->rest_shift = 0;
		let_go(p, s);
	}
	s->seen_faults = s->faults;
	s->waited_ns = waited;
	s->tick_ns = now;
}

static void tick(struct placer *p)
{
	struct timespec until;

	clock_gettime(CLOCK_MONOTONIC, &until);
	until.tv_nsec += TICK_NS;
	until.tv_sec += until.tv_nsec / 1000000000;
	until.tv_nsec %= 1000000000;
	while (!p->stopping && pthread_cond_timedwait(&p->wake, &p->lock, &until) != ETIMEDOUT)
		;
	for (unsigned i = 0; i < SEATS; i++)
		if (p->seat[i].cpu != NO_CPU)
			look_at(p, &p->seat[i]);
}

static void *place_main(void *arg)
{
	struct placer *p = arg;

	role_set(ROLE_FAULT);
	pthread_setname_np(pthread_self(), "place");
	pthread_mutex_lock(&p->lock);
	while (!p->stopping) {
		if (p->held)
			tick(p);
		else
			pthread_cond_wait(&p->wake, &p->lock);
	}
	for (unsigned i = 0; i < SEATS; i++)
		if (p->seat[i].cpu != NO_CPU)
			let_go(p, &p->seat[i]);
	pthread_mutex_unlock(&p->lock);
	return NULL;
}

/* ---- life ----------------------------------------------------------------------------- */

int place_create(struct placer **out, struct engine *e)
{
	struct placer *p = calloc(1, sizeof(*p));
	pthread_condattr_t attr;
	int rc;

	if (!p)
		return -ENOMEM;
	p->e = e;
	for (unsigned i = 0; i < SEATS; i++)
		p->seat[i].cpu = NO_CPU;
	pthread_mutex_init(&p->lock, NULL);
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&p->wake, &attr);
	pthread_condattr_destroy(&attr);
	rc = -pthread_create(&p->thread, NULL, place_main, p);
	p->has_thread = rc == 0;
	if (rc)
		place_destroy(&p);
	else
		*out = p;
	return rc;
}

void place_destroy(struct placer **pp)
{
	struct placer *p = *pp;

	*pp = NULL;
	if (!p)
		return;
	pthread_mutex_lock(&p->lock);
	p->stopping = true;
	pthread_cond_signal(&p->wake);
	pthread_mutex_unlock(&p->lock);
	if (p->has_thread)
		pthread_join(p->thread, NULL);
	pthread_cond_destroy(&p->wake);
	pthread_mutex_destroy(&p->lock);
	free(p);
}
