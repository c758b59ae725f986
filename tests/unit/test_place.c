/*
 * Touchers held on a CPU while they fault a lot (mm/place.c, stats/thread.c).  Invariant
 * numbers are those of mm/place.c.
 */
#include <criterion/criterion.h>

#include <errno.h>
#include <pthread.h>
#include <sys/types.h>
#include <unistd.h>

#include "mm/internal.h"

#define PATIENCE_MS 10000
#define FAULTS_ENOUGH 16 /* in a row, for a hold */

/* ---- touchers that only write down what is asked of them ------------------------- */

struct book {
	_Atomic int cpu;          /* held there; -1 */
	_Atomic int holds, frees; /* calls */
	_Atomic int refuse;       /* -errno of hold */
	_Atomic int64_t waited_ns, wait_more_ns; /* a call adds so much */
};

static int book_hold(void *ctx, uint32_t tid, int cpu)
{
	struct book *b = ctx;

	if (cpu < 0) {
		b->frees++;
		b->cpu = -1;
		return 0;
	}
	b->holds++;
	if (b->refuse)
		return b->refuse;
	b->cpu = cpu;
	return 0;
}

static int64_t book_waited(void *ctx, uint32_t tid)
{
	struct book *b = ctx;

	return atomic_fetch_add(&b->waited_ns, b->wait_more_ns) + b->wait_more_ns;
}

static struct placer *open_placer(struct engine *e, struct book *b)
{
	struct placer *p = NULL;

	b->cpu = -1;
	e->touchers = (struct mm_touchers){ .ctx = b, .hold = book_hold,
					    .waited_ns = book_waited };
	cr_assert_eq(place_create(&p, e), 0);
	return p;
}

/* So many faults at once; true if it is held by one of them. */
static bool faults(struct placer *p, uint32_t tid, int cpu, int n)
{
	bool is_held = false;

	for (int i = 0; i < n; i++)
		is_held |= place_note(p, tid, cpu);
	return is_held;
}

/* The machine may be so busy that they were not within a window: again, then. */
static void faults_until_held(struct placer *p, uint32_t tid, int cpu)
{
	for (int i = 0; i < 100; i++)
		if (faults(p, tid, cpu, FAULTS_ENOUGH))
			return;
	cr_assert(false, "never held");
}

static void wait_for(_Atomic int *what, int least)
{
	for (int ms = 0; *what < least && ms < PATIENCE_MS; ms++)
		usleep(1000);
	cr_assert_geq(*what, least);
}

Test(place, a_few_faults_hold_nobody)
{
	static struct engine e;
	static struct book b;
	struct placer *p = open_placer(&e, &b);

	cr_assert(!faults(p, 7, 1, FAULTS_ENOUGH - 1));
	cr_assert_eq(b.holds, 0);
	place_destroy(&p);
	cr_assert_eq(b.frees, 0);
}

Test(place, toucher_that_faults_a_lot_is_held_and_let_go_when_it_stops)
{
	static struct engine e;
	static struct book b;
	struct placer *p = open_placer(&e, &b);

	faults_until_held(p, 7, 1);
	wait_for(&b.frees, 1);
	cr_assert_eq(b.cpu, -1);
	faults_until_held(p, 7, 0); /* at once again */
	place_destroy(&p);
}

Test(place, all_are_let_go_at_the_end)
{
	static struct engine e;
	static struct book b;
	struct placer *p = open_placer(&e, &b);

	faults_until_held(p, 7, 1);
	faults_until_held(p, 8, 0);
	place_destroy(&p);
	cr_assert_eq(b.frees, b.holds);
	cr_assert_eq(b.cpu, -1);
}

Test(place, one_cpu_has_one_who_is_held)
{
	static struct engine e;
	static struct book b;
	struct placer *p = open_placer(&e, &b);

	for (int i = 0; i < 100; i++) {
		faults_until_held(p, 7, 1); /* or else its time is over */
		if (!faults(p, 8, 1, 4 * FAULTS_ENOUGH) && b.frees < b.holds)
			break;
		place_destroy(&p);
		b.frees = b.holds = 0;
		p = open_placer(&e, &b);
	}
	cr_assert_eq(b.holds, 1);
	cr_assert_eq(b.frees, 0);
	place_destroy(&p);
}

Test(place, who_waits_for_its_cpu_is_let_go_and_rests)
{
	static struct engine e;
	static struct book b;
	struct placer *p = open_placer(&e, &b);
	uint64_t before = counter_get(CTR_engine_hold_contended), began;

	b.wait_more_ns = INT64_C(60000000000);
	faults_until_held(p, 7, 1);
	wait_for(&b.frees, 1);
	began = now_ns();
	cr_assert_eq(counter_get(CTR_engine_hold_contended), before + 1);
	if (faults(p, 7, 1, 4 * FAULTS_ENOUGH))
		cr_assert_gt(now_ns() - began, 100000000u, "held again at once");
	place_destroy(&p);
}

Test(place, who_cannot_be_held_is_not_asked_for_again_at_once)
{
	static struct engine e;
	static struct book b;
	struct placer *p = open_placer(&e, &b);
	uint64_t began = now_ns();

	b.refuse = -EALREADY;
	for (int i = 0; i < 100 && !b.holds; i++)
		cr_assert(!faults(p, 7, 1, FAULTS_ENOUGH));
	faults(p, 7, 1, 4 * FAULTS_ENOUGH);
	if (now_ns() - began < 100000000u)
		cr_assert_eq(b.holds, 1);
	place_destroy(&p);
	cr_assert_eq(b.frees, 0);
}

/* ---- real threads --------------------------------------------------------------------- */

static cpu_set_t allowed(void)
{
	cpu_set_t s;

	cr_assert_eq(sched_getaffinity(0, sizeof(s), &s), 0);
	return s;
}

static unsigned first_of(const cpu_set_t *s)
{
	unsigned cpu = 0;

	while (!CPU_ISSET(cpu, s))
		cpu++;
	return cpu;
}

static cpu_set_t only(unsigned cpu)
{
	cpu_set_t s;

	CPU_ZERO(&s);
	CPU_SET(cpu, &s);
	return s;
}

static void need_cpus(void)
{
	cpu_set_t s = allowed();

	if (CPU_COUNT(&s) < 2)
		cr_skip_test("there is but one CPU");
}

Test(thread, hold_binds_and_release_leaves_no_trace)
{
	struct thread_hold h = { 0 };
	cpu_set_t was = allowed(), now, one = only(first_of(&was));

	need_cpus();
	cr_assert_eq(thread_hold(&h, gettid(), (int)first_of(&was)), 0);
	now = allowed();
	cr_assert(CPU_EQUAL(&now, &one));
	cr_assert_eq(thread_hold(&h, gettid(), (int)first_of(&was)), -EINVAL, "held twice");
	thread_release(&h, gettid());
	now = allowed();
	cr_assert(CPU_EQUAL(&now, &was));
}

Test(thread, a_pin_is_never_replaced)
{
	struct thread_hold h = { 0 };
	cpu_set_t was = allowed(), now, one = only(first_of(&was));

	need_cpus();
	cr_assert_eq(sched_setaffinity(0, sizeof(one), &one), 0);
	cr_assert_eq(thread_hold(&h, gettid(), (int)first_of(&one)), -EALREADY);
	thread_release(&h, gettid());
	now = allowed();
	cr_assert(CPU_EQUAL(&now, &one));
}

Test(thread, a_pin_set_while_held_stays)
{
	struct thread_hold h = { 0 };
	cpu_set_t was = allowed(), now, rest = was, one;
	unsigned cpu = first_of(&was);

	need_cpus();
	CPU_CLR(cpu, &rest);
	one = only(first_of(&rest));
	cr_assert_eq(thread_hold(&h, gettid(), (int)cpu), 0);
	cr_assert_eq(sched_setaffinity(0, sizeof(one), &one), 0);
	thread_release(&h, gettid());
	now = allowed();
	cr_assert(CPU_EQUAL(&now, &one));
}

/* Where there are three CPUs: pinned to two of them, it is let go to those two. */
Test(thread, a_pin_to_some_cpus_comes_back)
{
	struct thread_hold h = { 0 };
	cpu_set_t was = allowed(), some = was, now;

	if (CPU_COUNT(&was) < 3)
		cr_skip_test("there are but two CPUs");
	CPU_CLR(first_of(&was), &some);
	cr_assert_eq(sched_setaffinity(0, sizeof(some), &some), 0);
	cr_assert_eq(thread_hold(&h, gettid(), (int)first_of(&some)), 0);
	thread_release(&h, gettid());
	now = allowed();
	cr_assert(CPU_EQUAL(&now, &some));
}

Test(thread, cpu_it_may_not_run_on_is_refused)
{
	struct thread_hold h = { 0 };
	cpu_set_t was = allowed(), now;

	cr_assert_eq(thread_hold(&h, gettid(), -1), -EINVAL);
	cr_assert_eq(thread_hold(&h, gettid(), CPU_SETSIZE), -EINVAL);
	cr_assert_lt(thread_hold(&h, gettid(), CPU_SETSIZE - 1), 0);
	now = allowed();
	cr_assert(CPU_EQUAL(&now, &was));
}

Test(thread, a_thread_that_is_not_there_has_no_waiting_time)
{
	cr_assert_geq(thread_waited_ns(gettid()), 0);
	cr_assert_lt(thread_waited_ns(0x3fffffff), 0);
}
