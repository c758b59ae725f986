/*
 * Huge pages under the engine (mm/huge.c): what a pass leaves alone, what is taken
 * first, what is made again, and what becomes of chunks nobody need watch any more.
 *
 *   BRIM_SEED         the stress test's seed (printed)
 *   BRIM_STRESS_S     its length in seconds (default 3)
 */
#include "tests/unit/everycall.h"
#include "tests/unit/stress.h"

#include <fcntl.h>
#include <sys/uio.h>

#define CHUNKS (BOX_PAGES / CHUNK_PAGES)

static uint64_t huge_now(struct box *b)
{
	struct books_smaps s;

	cr_assert_eq(books_smaps(b->mem, BOX_BYTES, &s), 0);
	return s.huge_bytes / HUGE_BYTES;
}

static unsigned vmas(struct box *b)
{
	struct books_smaps s;

	cr_assert_eq(books_smaps(b->mem, BOX_BYTES, &s), 0);
	return s.vmas;
}

static void fill_chunks(struct box *b, uint64_t from, uint64_t to)
{
	box_fill_all(b, from * CHUNK_PAGES, (to - from) * CHUNK_PAGES);
}

static void check_chunks(struct box *b, uint64_t from, uint64_t to)
{
	box_check_all(b, from * CHUNK_PAGES, (to - from) * CHUNK_PAGES);
}

/* A VM of huge pages, n of them touched; skips where the host gives none. */
static void open_huge(struct box *b, uint64_t n)
{
	box_open(b, RAM_HUGE_ALWAYS, BOX_MANUAL);
	fill_chunks(b, 0, n);
	if (huge_now(b) != n)
		cr_skip_test("this host gives no huge pages");
}

static uint64_t away_in(struct box *b, uint64_t chunk)
{
	struct chunk *c = &b->e->pages.chunk[chunk];
	uint64_t away;

	box_settle(b);
	pthread_mutex_lock(&c->lock); /* a later touch is not seen to come after it by TSan */
	away = c->away;
	pthread_mutex_unlock(&c->lock);
	return away;
}

/* Breaks the chunk as a write to an armed huge page does. */
static void break_chunk(struct box *b, uint64_t chunk)
{
	b->e->pages.chunk[chunk].arm = true;
	engine_pass(b->e);
	box_fill(b, chunk * CHUNK_PAGES, 1);
}

static void passes(struct box *b, unsigned n)
{
	while (n--)
		engine_pass(b->e);
}

/* Rounds with nothing to take, until they find nothing to do. */
static void idle_rounds(struct box *b, unsigned n)
{
	while (n--)
		engine_tick(b->e);
}

Test(huge, passes_do_not_break_what_is_written)
{
	static struct box b;

	open_huge(&b, 8);
	for (unsigned i = 0; i < 6; i++) {
		engine_pass(b.e);
		for (uint64_t c = 0; c < 8; c++)
			box_fill(&b, c * CHUNK_PAGES + i, 1);
	}
	cr_assert_eq(huge_now(&b), 8);
	box_close(&b);
}

Test(huge, sampled_page_that_is_written_is_told_apart)
{
	static struct box b;
	unsigned cold = 0;

	open_huge(&b, 1);
	engine_pass(b.e);
	b.e->pages.chunk[0].arm = true;
	for (unsigned i = 0; i < 6; i++) {
		engine_pass(b.e);
		box_fill(&b, 7, 1);
	}
	cr_assert_eq(huge_now(&b), 0);
	for (unsigned i = 0; i < CHUNK_PAGES; i++)
		cold += b.e->pages.page[i].age >= 3;
	cr_assert_eq(cold, CHUNK_PAGES - 1);
	cr_assert_eq(b.e->pages.page[7].age, 0);
	box_close(&b);
}

Test(huge, cold_page_goes_whole_and_comes_back_as_it_was)
{
	static struct box b;

	open_huge(&b, 8);
	engine_reclaim(b.e, 3 * HUGE_BYTES - 5 * PAGE_BYTES);
	engine_tick(b.e);
	cr_assert_eq(counter_get(CTR_engine_huge_whole), 3);
	cr_assert_eq(counter_get(CTR_engine_huge_broken), 0);
	cr_assert_eq(atomic_load(&b.e->pages.in_state[PAGE_STAGED]), 3 * CHUNK_PAGES);
	cr_assert_eq(huge_now(&b), 5);
	box_check_books(&b);
	check_chunks(&b, 0, 1); /* out of staging */
	box_push_out(&b, 2 * CHUNK_PAGES);
	check_chunks(&b, 0, 8);
	box_close(&b);
}

static uint64_t staged_in(struct box *b, uint64_t chunk)
{
	struct chunk *c = &b->e->pages.chunk[chunk];
	uint64_t n = 0;

	pthread_mutex_lock(&c->lock);
	for (uint64_t i = 0; i < CHUNK_PAGES; i++)
		n += b->e->pages.page[chunk * CHUNK_PAGES + i].state == PAGE_STAGED;
	pthread_mutex_unlock(&c->lock);
	return n;
}

static void stage_one(struct box *b)
{
	engine_reclaim(b->e, HUGE_BYTES);
	engine_tick(b->e);
	cr_assert_eq(staged_in(b, 0), CHUNK_PAGES);
	atomic_store(&b->e->wanted_bytes, 0); /* it is not to be packed */
}

Test(huge, staged_page_that_is_touched_comes_home_whole_but_once)
{
	static struct box b;

	open_huge(&b, 1);
	stage_one(&b);
	cr_assert_eq(huge_now(&b), 0);
	cr_assert(box_has(&b, 77, 1));
	box_settle(&b);
	cr_assert_eq(staged_in(&b, 0), 0);
	cr_assert_eq(counter_get(CTR_engine_huge_home), 1);
	cr_assert_eq(huge_now(&b), 1);
	check_chunks(&b, 0, 1);
	box_check_books(&b);
	engine_pass(b.e);
	stage_one(&b);
	cr_assert(box_has(&b, 77, 1));
	box_settle(&b);
	cr_assert_eq(staged_in(&b, 0), CHUNK_PAGES - 1);
	cr_assert_eq(counter_get(CTR_engine_huge_home), 1);
	check_chunks(&b, 0, 1);
	box_close(&b);
}

Test(huge, small_pages_go_before_huge_ones_as_cold)
{
	static struct box b;

	open_huge(&b, 8);
	for (uint64_t c = 0; c < 8; c += 2)
		break_chunk(&b, c);
	for (uint64_t c = 1; c < 8; c += 2) /* sampled, so that their age is known */
		b.e->pages.chunk[c].arm = true;
	passes(&b, 6);
	cr_assert_eq(huge_now(&b), 4);
	box_push_out(&b, 4 * CHUNK_PAGES);
	for (uint64_t c = 0; c < 8; c++)
		cr_assert_eq(away_in(&b, c), c % 2 ? 0 : CHUNK_PAGES, "chunk %lu",
			     (unsigned long)c);
	cr_assert_eq(huge_now(&b), 4);
	check_chunks(&b, 0, 8);
	box_close(&b);
}

Test(huge, colder_huge_page_goes_before_warmer_small_ones)
{
	static struct box b;

	open_huge(&b, 4);
	engine_pass(b.e);
	b.e->pages.chunk[3].arm = true;
	passes(&b, 12);
	for (uint64_t c = 0; c < 3; c++)
		break_chunk(&b, c);
	for (unsigned i = 0; i < 3; i++) {
		fill_chunks(&b, 0, 3);
		engine_pass(b.e);
	}
	engine_pass(b.e);
	box_push_out(&b, CHUNK_PAGES + 100);
	cr_assert_eq(away_in(&b, 3), CHUNK_PAGES);
	cr_assert_eq(away_in(&b, 0) + away_in(&b, 1) + away_in(&b, 2), 100);
	check_chunks(&b, 0, 4);
	box_close(&b);
}

/* A page of each that will not pack keeps them from going whole. */
Test(huge, page_is_broken_when_nothing_else_is_left)
{
	static struct box b;

	open_huge(&b, 2);
	engine_pass(b.e);
	b.e->pages.page[9].hard = 1;
	b.e->pages.page[CHUNK_PAGES + 9].hard = 1;
	b.e->pages.chunk[0].arm = b.e->pages.chunk[1].arm = true;
	engine_pass(b.e); /* sees them written once more, and forgets that they are hard */
	b.e->pages.page[9].hard = 1;
	b.e->pages.page[CHUNK_PAGES + 9].hard = 1;
	passes(&b, 6);
	box_push_out(&b, 2 * CHUNK_PAGES - 2);
	cr_assert_eq(counter_get(CTR_engine_huge_whole), 0);
	cr_assert_eq(counter_get(CTR_engine_huge_broken), 2);
	cr_assert_eq(away_in(&b, 0) + away_in(&b, 1), 2 * CHUNK_PAGES - 2);
	check_chunks(&b, 0, 2);
	box_close(&b);
}

/* Staging of one huge page's size: whole pages wait for it to be empty. */
Test(huge, small_staging_takes_one_at_a_time)
{
	static struct box b;
	struct engine_config cfg = BOX_MANUAL;

	cfg.staging_bytes = PAGE_BYTES;
	box_open(&b, RAM_HUGE_ALWAYS, cfg);
	cr_assert_eq(b.e->slots, CHUNK_PAGES);
	fill_chunks(&b, 0, 6);
	if (huge_now(&b) != 6)
		cr_skip_test("this host gives no huge pages");
	break_chunk(&b, 0);
	/* puts the ring's head off 2 MiB */
	cr_assert_eq(ram_discard(b.ram, gpa(0), 100 * PAGE_BYTES), 0);
	box_push_out(&b, 6 * CHUNK_PAGES - 100);
	cr_assert_eq(atomic_load(&b.e->pages.in_state[PAGE_PACKED]), 6 * CHUNK_PAGES - 100);
	cr_assert_eq(counter_get(CTR_engine_huge_whole), 5);
	check_chunks(&b, 1, 6);
	box_close(&b);
}

/* ---- plenty ------------------------------------------------------------------------ */

static void made_again(enum ram_huge setting)
{
	static struct box b;

	box_open(&b, setting, BOX_MANUAL);
	fill_chunks(&b, 0, 8);
	box_push_out(&b, 8 * CHUNK_PAGES);
	cr_assert_gt(vmas(&b), 1);
	check_chunks(&b, 0, 8);
	idle_rounds(&b, 2); /* watched no longer */
	/* Hot, and again where the kernel was busy with a page just then: such a chunk rests
	 * for 32 rounds. */
	for (unsigned i = 0; i < 50 && huge_now(&b) < 8; i++) {
		fill_chunks(&b, 0, 8);
		idle_rounds(&b, 4);
	}
	if (huge_now(&b) == 0 && counter_get(CTR_engine_huge_no_memory))
		cr_skip_test("this host has no 2 MiB in one piece");
	cr_assert_eq(huge_now(&b), 8);
	cr_assert_eq(counter_get(CTR_engine_huge_formed), 8);
	cr_assert_eq(counter_get(CTR_engine_unwatched), 8);
	cr_assert_eq(atomic_load(&b.e->watched_chunks), 0);
	cr_assert_eq(vmas(&b), 1, "the mappings did not merge");
	check_chunks(&b, 0, 8);
	for (unsigned i = 0; i < 3; i++) { /* and they stay */
		fill_chunks(&b, 0, 8);
		engine_tick(b.e);
	}
	cr_assert_eq(huge_now(&b), 8);
	box_close(&b);
}

Test(huge, pages_are_made_again_when_memory_is_plentiful)
{
	made_again(RAM_HUGE_ALWAYS);
}

Test(huge, pages_are_made_of_full_hot_chunks_with_the_default_setting)
{
	made_again(RAM_HUGE_AUTO);
}

Test(huge, idle_or_holed_chunks_are_not_made_huge)
{
	static struct box b;

	box_open(&b, RAM_HUGE_AUTO, BOX_MANUAL);
	fill_chunks(&b, 0, 2);
	for (uint64_t i = 0; i < CHUNK_PAGES - 1; i++)
		box_fill(&b, 2 * CHUNK_PAGES + i, 1);
	passes(&b, 6); /* chunks 0 and 1 are idle, 2 lacks a page */
	for (unsigned i = 0; i < 4; i++) {
		for (uint64_t k = 0; k < CHUNK_PAGES - 1; k++)
			box_fill(&b, 2 * CHUNK_PAGES + k, 1);
		engine_tick(b.e);
	}
	cr_assert_eq(huge_now(&b), 0);
	cr_assert_eq(atomic_load(&b.e->present_pages), 3 * CHUNK_PAGES - 1);
	box_close(&b);
}

static bool forbid_huge(void)
{
	return false;
}

static void none_made(enum ram_huge setting)
{
	static struct box b;

	b.host = mm_host_linux;
	b.host.huge_allowed = setting == RAM_HUGE_NEVER ? mm_host_linux.huge_allowed : forbid_huge;
	box_open(&b, setting, BOX_MANUAL);
	for (unsigned i = 0; i < 6; i++) {
		fill_chunks(&b, 0, 2);
		engine_tick(b.e);
	}
	cr_assert_eq(huge_now(&b), 0);
	cr_assert_eq(counter_get(CTR_engine_huge_formed), 0);
	box_close(&b);
}

Test(huge, none_is_made_where_the_vm_wants_none)
{
	none_made(RAM_HUGE_NEVER);
}

Test(huge, none_is_made_where_the_host_wants_none)
{
	none_made(RAM_HUGE_AUTO);
}

/* Limit L: plenty begins under 7/8 L and ends over 15/16 L. */
Test(huge, plenty_has_two_thresholds)
{
	static struct box b;
	const uint64_t limit = 16 * CHUNK_PAGES;

	box_open(&b, RAM_HUGE_NEVER, BOX_MANUAL);
	engine_limit(b.e, limit << PAGE_SHIFT);
	for (uint64_t i = 0; i < limit * 29 / 32; i++)
		box_fill(&b, i, 1);
	engine_tick(b.e);
	cr_assert(!b.e->plenty);
	cr_assert_eq(ram_discard(b.ram, gpa(0), limit / 16 << PAGE_SHIFT), 0);
	engine_tick(b.e);
	cr_assert(b.e->plenty);
	for (uint64_t i = 0; i < limit / 16; i++)
		box_fill(&b, i, 1);
	engine_tick(b.e);
	cr_assert(b.e->plenty, "as much as at first, and still plentiful");
	for (uint64_t i = limit * 29 / 32; i < limit * 31 / 32; i++)
		box_fill(&b, i, 1);
	engine_tick(b.e);
	cr_assert(!b.e->plenty);
	box_close(&b);
}

/* ---- when the kernel says no --------------------------------------------------------- */

static _Atomic int collapse_errno;
static _Atomic int fail_registers;

static _Atomic bool deny_moves; /* done, and then denied, as Linux 6.18 does now and then */

static int denied_move(int fd, struct uffdio_move *m)
{
	int rc = mm_host_linux.ioctl(fd, UFFDIO_MOVE, m);

	if (rc)
		return rc;
	m->move = -EEXIST;
	errno = EEXIST;
	return -1;
}

static int refusing_madvise(void *addr, size_t len, int advice)
{
	if (advice != MADV_COLLAPSE || !collapse_errno)
		return failing_madvise(addr, len, advice);
	errno = collapse_errno;
	return -1;
}

static int refusing_ioctl(int fd, unsigned long request, void *arg)
{
	if (request == UFFDIO_MOVE && deny_moves)
		return denied_move(fd, arg);
	if (request == UFFDIO_REGISTER && fail_registers > 0) {
		fail_registers--;
		errno = ENOMEM;
		return -1;
	}
	return failing_ioctl(fd, request, arg);
}

static void refused(int error, enum counter which)
{
	static struct box b;

	b.host = mm_host_linux;
	b.host.madvise = refusing_madvise;
	box_open(&b, RAM_HUGE_AUTO, BOX_MANUAL);
	collapse_errno = error;
	fill_chunks(&b, 0, 1);
	for (unsigned i = 0; i < 8; i++) {
		fill_chunks(&b, 0, 1);
		engine_tick(b.e);
	}
	cr_assert_eq(counter_get(which), 1, "asked %lu times in 8 rounds",
		     (unsigned long)counter_get(which));
	collapse_errno = 0;
	check_chunks(&b, 0, 1);
	box_close(&b);
}

Test(huge, refusals_are_counted_by_reason_and_not_repeated_at_once)
{
	refused(ENOMEM, CTR_engine_huge_no_memory);
	refused(EAGAIN, CTR_engine_huge_busy);
	refused(EINVAL, CTR_engine_huge_refused);
}

Test(huge, pinned_page_is_left_alone)
{
	static struct box b;
	struct iovec v;
	int pipes[2];

	box_open(&b, RAM_HUGE_AUTO, BOX_MANUAL);
	fill_chunks(&b, 0, 1);
	cr_assert_eq(pipe(pipes), 0);
	v = (struct iovec){ box_at(&b, 5), PAGE_BYTES };
	cr_assert_eq(vmsplice(pipes[1], &v, 1, 0), (ssize_t)PAGE_BYTES);
	for (unsigned i = 0; i < 4; i++) {
		fill_chunks(&b, 0, 1);
		engine_tick(b.e);
	}
	cr_assert_eq(counter_get(CTR_engine_huge_busy), 1);
	cr_assert_eq(huge_now(&b), 0);
	close(pipes[0]);
	close(pipes[1]);
	box_close(&b);
}

/* A chunk that cannot be registered again leaves passes without an answer, until it
 * can: no page is taken meanwhile, and nothing is lost. */
Test(huge, registration_lost_is_made_good)
{
	static struct box b;

	b.host = mm_host_linux;
	b.host.ioctl = refusing_ioctl;
	box_open(&b, RAM_HUGE_NEVER, BOX_MANUAL);
	fill_chunks(&b, 0, 1);
	box_push_out(&b, CHUNK_PAGES);
	check_chunks(&b, 0, 1);
	fail_registers = 5;
	engine_tick(b.e); /* un-watches, and cannot register again */
	cr_assert_eq(b.e->bare, 1);
	fill_chunks(&b, 0, 1);
	engine_tick(b.e);
	cr_assert_eq(counter_get(CTR_engine_scan_errors), 1);
	engine_tick(b.e);
	engine_tick(b.e);
	cr_assert_eq(b.e->bare, 0);
	box_push_out(&b, CHUNK_PAGES);
	cr_assert_eq(atomic_load(&b.e->pages.in_state[PAGE_PACKED]), CHUNK_PAGES);
	check_chunks(&b, 0, 1);
	box_close(&b);
}

/* Call n of plentiful rounds fails with this.  False: there were not as many. */
static bool fail_nth(long n, int error)
{
	static struct box b;
	bool had;

	b.host = mm_host_linux;
	b.host.madvise = refusing_madvise;
	b.host.ioctl = refusing_ioctl;
	box_open(&b, RAM_HUGE_AUTO, BOX_MANUAL);
	fill_chunks(&b, 0, 3);
	box_push_out(&b, 3 * CHUNK_PAGES);
	check_chunks(&b, 0, 3);
	engine_pass(b.e);
	fill_chunks(&b, 0, 3);
	fail_errno = error;
	fail_at = n;
	idle_rounds(&b, 3);
	had = fail_at < 0;
	fail_at = -1;
	idle_rounds(&b, 2);
	check_chunks(&b, 0, 3);
	box_close(&b);
	return had;
}

/* Nothing is lost, the VM goes on, and the books are right in the end. */
Test(huge, every_call_of_a_plentiful_round_may_fail_once)
{
	static const int errors[] = { ENOMEM, EAGAIN, EBUSY, EINVAL };
	long n;

	for (unsigned k = 0; k < ARRAY_LEN(errors); k++) {
		for (n = 0; fail_nth(n, errors[k]); n++)
			;
		cr_assert_gt(n, 10);
	}
}

Test(huge, whole_page_moved_and_denied_is_not_lost)
{
	static struct box b;

	b.host = mm_host_linux;
	b.host.ioctl = refusing_ioctl;
	box_open(&b, RAM_HUGE_ALWAYS, BOX_MANUAL);
	fill_chunks(&b, 0, 2);
	if (huge_now(&b) != 2)
		cr_skip_test("this host gives no huge pages");
	deny_moves = true;
	engine_reclaim(b.e, 2 * HUGE_BYTES);
	engine_tick(b.e);
	deny_moves = false;
	cr_assert_eq(atomic_load(&b.e->pages.in_state[PAGE_STAGED]), 2 * CHUNK_PAGES);
	check_chunks(&b, 0, 2);
	box_close(&b);
}

/* ---- concurrently ---------------------------------------------------------------------- */

struct toucher {
	struct box *b;
	_Atomic bool stop;
};

/* Touches pages nobody has, of a chunk that is watched and un-watched all the while.
 * Each must be answered: a thread left in a fault would never end. */
static void *touch_main(void *arg)
{
	struct toucher *t = arg;
	uint64_t i = 0;

	while (!t->stop) {
		__atomic_fetch_add(box_at(t->b, i++ % CHUNK_PAGES), 1, __ATOMIC_RELAXED);
	}
	return NULL;
}

Test(huge, faults_in_flight_are_answered_whoever_watches)
{
	static struct box b;
	static struct toucher t;
	struct chunk *c;
	pthread_t thread[4];

	box_open(&b, RAM_HUGE_NEVER, BOX_MANUAL);
	t.b = &b;
	c = &b.e->pages.chunk[0];
	for (unsigned i = 0; i < ARRAY_LEN(thread); i++)
		pthread_create(&thread[i], NULL, touch_main, &t);
	for (unsigned i = 0; i < 3000 || counter_get(CTR_engine_faults_untouched) < 100; i++) {
		pthread_mutex_lock(&c->lock);
		cr_assert_eq(engine_watch(b.e, 0), 0);
		pthread_mutex_unlock(&c->lock);
		cr_assert_eq(ram_discard(b.ram, gpa(0), HUGE_BYTES), 0);
		pthread_mutex_lock(&c->lock);
		cr_assert_eq(engine_unwatch(b.e, 0), 0);
		pthread_mutex_unlock(&c->lock);
	}
	t.stop = true;
	for (unsigned i = 0; i < ARRAY_LEN(thread); i++)
		pthread_join(thread[i], NULL);
	box_close(&b);
}

/* ---- stress ------------------------------------------------------------------------------ */

static uint64_t word_of(uint64_t index, uint64_t version, uint64_t w)
{
	return version ? box_word(index, version, w) : 0;
}

static uint64_t pick(uint64_t r)
{
	return (r >> 8) % BOX_PAGES;
}

static bool enough(void)
{
	return counter_get(CTR_engine_packed) > 1000 && counter_get(CTR_engine_unwatched) > 0;
}

/* For that long, and on a slow machine until it has seen what it is about. */
static bool is_over(uint64_t end)
{
	return now_ns() >= end && (enough() || now_ns() >= end + STARVED_NS);
}

/* Until some chunk is all home again, which on a slow machine takes a while. */
static void plentiful(void)
{
	uint64_t was = counter_get(CTR_engine_unwatched), end = now_ns() + 5000000000u;

	do
		usleep(250000);
	while (counter_get(CTR_engine_unwatched) == was && now_ns() < end);
}

/* Scarce, then plentiful, again and again; half of the time with discards. */
static void vary(struct stress *s, uint64_t seconds)
{
	uint64_t end = now_ns() + seconds * 1000000000u;

	for (unsigned i = 0; !is_over(end); i++) {
		s->no_discards = i % 2 == 0;
		engine_limit(s->b->e, BOX_BYTES / 2);
		usleep(150000);
		engine_limit(s->b->e, i % 3 ? 0 : 2 * BOX_BYTES);
		plentiful();
	}
}

static void stress(enum ram_huge setting)
{
	static struct box b;
	static struct stress s = { .b = &b, .pages = BOX_PAGES, .pick = pick, .write_one_in = 2,
				   .discard_rest_us = 500, .no_discards = true };
	void *(*const mains[])(void *) = { stress_access, stress_access, stress_access,
					   stress_access, stress_discard };

	box_open(&b, setting, (struct engine_config){ .fault_threads = 2, .pass_ns = 2000000 });
	for (uint64_t i = 0; i < BOX_PAGES; i++) {
		s.version[i] = 1;
		box_fill(&b, i, 1);
	}
	stress_begin(&s, mains, ARRAY_LEN(mains));
	vary(&s, env_number("BRIM_STRESS_S", 3));
	for (unsigned more = 0; more < 60 && !enough(); more++)
		vary(&s, 1); /* a machine that is busy with other things */
	stress_end(&s);
	reclaim_stop(b.e);
	stress_check_all(&s);
	fprintf(stderr, "%lu accesses, %lu packed, %lu unwatched; huge pages: %lu whole, "
		"%lu broken, %lu sampled, %lu formed, %lu busy\n", (unsigned long)s.accesses,
		(unsigned long)counter_get(CTR_engine_packed),
		(unsigned long)counter_get(CTR_engine_unwatched),
		(unsigned long)counter_get(CTR_engine_huge_whole),
		(unsigned long)counter_get(CTR_engine_huge_broken),
		(unsigned long)counter_get(CTR_engine_huge_sampled),
		(unsigned long)counter_get(CTR_engine_huge_formed),
		(unsigned long)counter_get(CTR_engine_huge_busy));
	cr_assert(enough());
	box_close(&b);
}

Test(huge, stress_with_huge_pages_no_byte_is_ever_wrong)
{
	stress(RAM_HUGE_ALWAYS);
}

Test(huge, stress_with_the_default_setting_no_byte_is_ever_wrong)
{
	stress(RAM_HUGE_AUTO);
}
