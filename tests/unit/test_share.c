/*
 * Sharing with a store (mm/share.c): that only equal pages are given up, that each comes
 * back as it was wherever it was meanwhile, and that no use of a store page is lost.
 */
#define STORE_PAGES 512u
#include "tests/unit/everycall.h"
#include "tests/unit/storebox.h"
#include "tests/unit/stress.h"

static void share_open(struct box *b, struct engine_config cfg)
{
	box_open(b, RAM_HUGE_NEVER, cfg);
	store.base = mmap(NULL, STORE_PAGES << PAGE_SHIFT, PROT_READ | PROT_WRITE,
			  MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	cr_assert_neq(store.base, MAP_FAILED);
	memset(store.uses, 0, sizeof(store.uses));
	engine_set_store(b->e, &(struct mm_store){ store.base, STORE_PAGES, store_drop, NULL });
}

static void share_close(struct box *b)
{
	box_settle(b);
	cr_assert_eq(all_uses(), (int64_t)atomic_load(&b->e->pages.in_state[PAGE_STORED]));
	box_close(b);
	munmap(store.base, STORE_PAGES << PAGE_SHIFT);
}

/* Pages [from, from + n) against store pages that have what they had in version 1. */
static uint64_t share_first(struct box *b, uint64_t from, uint32_t n)
{
	struct mm_same list[STORE_PAGES];

	store_first(list, from, n, 1);
	return share(b, list, n, engine_share);
}

static bool has_memory(struct box *b, uint64_t index)
{
	unsigned char in;

	cr_assert_eq(mincore(box_at(b, index), PAGE_BYTES, &in), 0);
	return in & 1;
}

Test(share, equal_pages_give_up_their_memory_and_come_back)
{
	static struct box b;

	share_open(&b, BOX_MANUAL);
	box_fill_all(&b, 0, 300);
	cr_assert_eq(share_first(&b, 0, 300), 300);
	cr_assert_eq(all_uses(), 300);
	for (uint64_t i = 0; i < 300; i++) {
		cr_assert_eq(state_of(&b, i), PAGE_STORED);
		cr_assert_not(has_memory(&b, i));
	}
	box_check_books(&b);
	box_check_all(&b, 0, 300);
	box_fill(&b, 7, 2); /* and are its own again */
	cr_assert(box_has(&b, 7, 2));
	cr_assert_eq(store_at(8)[0], (uint8_t)0, "the store was written");
	box_settle(&b);
	cr_assert_eq(all_uses(), 0);
	share_close(&b);
}

/* Across a chunk's end, with gaps, and more than the freezer holds. */
Test(share, pages_in_any_pattern_are_shared)
{
	static struct box b;
	static struct mm_same list[3 * CHUNK_PAGES];
	uint64_t n = 0;

	share_open(&b, BOX_MANUAL);
	memset(store_at(1), 7, PAGE_BYTES);
	for (uint64_t i = 0; i < 3 * CHUNK_PAGES; i++) {
		memset(box_at(&b, i), 7, PAGE_BYTES);
		if (i % 11 > 2)
			list[n++] = (struct mm_same){ (uint32_t)i, 1, 0 };
	}
	cr_assert_eq(share(&b, list, n, engine_share), n);
	for (uint64_t i = 0; i < 3 * CHUNK_PAGES; i++)
		cr_assert_eq(state_of(&b, i), i % 11 > 2 ? PAGE_STORED : PAGE_GUEST);
	box_check_books(&b);
	share_close(&b);
}

Test(share, page_that_differs_in_one_bit_stays)
{
	static struct box b;

	share_open(&b, BOX_MANUAL);
	box_fill_all(&b, 0, 3);
	box_at(&b, 1)[PAGE_BYTES - 1] ^= 0x80;
	cr_assert_eq(share_first(&b, 0, 3), 2);
	cr_assert_eq(state_of(&b, 1), PAGE_GUEST);
	cr_assert(has_memory(&b, 1));
	cr_assert_eq(all_uses(), 2);
	box_at(&b, 1)[PAGE_BYTES - 1] ^= 0x80;
	box_check_all(&b, 0, 3);
	share_close(&b);
}

Test(share, zeroes_are_given_back_without_a_store)
{
	static struct box b;
	struct mm_same list[] = { { 3, 0, 0 }, { 4, 0, 0 }, { 9, 0, 0 } };

	box_open(&b, RAM_HUGE_NEVER, BOX_MANUAL);
	memset(box_at(&b, 3), 0, 2 * PAGE_BYTES);
	box_fill(&b, 9, 1);
	cr_assert_eq(engine_share(b.e, list, 3), 2);
	cr_assert_eq(list[2].rc, -ESTALE);
	cr_assert_not(has_memory(&b, 3));
	cr_assert_eq(box_at(&b, 4)[17], 0);
	cr_assert(box_has(&b, 9, 1));
	box_close(&b);
}

Test(share, staged_and_packed_pages_are_shared_too)
{
	static struct box b;
	unsigned staged, packed;

	share_open(&b, BOX_MANUAL);
	box_fill_all(&b, 0, 200);
	box_push_out(&b, 100);
	engine_reclaim(b.e, 50 * PAGE_BYTES);
	engine_tick(b.e);
	staged = (unsigned)atomic_load(&b.e->pages.in_state[PAGE_STAGED]);
	packed = (unsigned)atomic_load(&b.e->pages.in_state[PAGE_PACKED]);
	cr_assert_gt(staged, 0);
	cr_assert_gt(packed, 0);
	cr_assert_eq(share_first(&b, 0, 200), 200);
	cr_assert_eq(b.held, 0, "%lu pages are packed still", (unsigned long)b.held);
	for (int i = 0; i < 5; i++)
		engine_tick(b.e); /* the ring passes over the slots they left */
	box_check_books(&b);
	box_check_all(&b, 0, 200);
	share_close(&b);
}

Test(share, discarded_page_reads_zero_and_uses_the_store_no_more)
{
	static struct box b;

	share_open(&b, BOX_MANUAL);
	box_fill_all(&b, 0, 40);
	cr_assert_eq(share_first(&b, 0, 40), 40);
	cr_assert_eq(ram_discard(b.ram, gpa(10 * PAGE_BYTES), 20 * PAGE_BYTES), 0);
	cr_assert_eq(all_uses(), 20);
	for (uint64_t i = 0; i < 40; i++)
		cr_assert(i < 10 || i >= 30 ? box_has(&b, i, 1) : box_at(&b, i)[i] == 0);
	share_close(&b);
}

static uint64_t cold(struct box *b, uint32_t *list, uint64_t n)
{
	uint64_t cursor = 0;

	return engine_cold(b->e, &cursor, list, n);
}

static void passes(struct box *b, unsigned n)
{
	while (n--)
		engine_pass(b->e);
}

Test(share, page_that_is_away_is_read_where_it_is)
{
	static struct box b;
	uint64_t got[PAGE_BYTES / sizeof(uint64_t)], seen = 0;

	box_open(&b, RAM_HUGE_NEVER, BOX_MANUAL);
	box_fill_all(&b, 0, 20);
	memset(box_at(&b, 5), 9, PAGE_BYTES); /* will be filled, in no place */
	cr_assert_eq(engine_peek(b.e, 3, got), -EAGAIN);
	engine_reclaim(b.e, 20 * PAGE_BYTES);
	for (unsigned tick = 0; tick < 6; tick++) {
		engine_tick(b.e);
		for (uint64_t i = 0; i < 20; i++) {
			enum page_state before = state_of(&b, i);

			if (engine_peek(b.e, i, got) == 0)
				for (uint64_t k = 0; k < ARRAY_LEN(got); k++)
					cr_assert(got[k] == box_word(i, 1, k) || i == 5);
			else
				cr_assert(before == PAGE_GUEST || before == PAGE_FILLED);
			cr_assert_eq(state_of(&b, i), before);
			seen |= (uint64_t)1 << before;
		}
	}
	cr_assert_eq(seen & (1 << PAGE_STAGED | 1 << PAGE_PACKED | 1 << PAGE_FILLED),
		     1 << PAGE_STAGED | 1 << PAGE_PACKED | 1 << PAGE_FILLED);
	cr_assert_eq(engine_peek(b.e, 5, got), -ENODATA);
	box_close(&b);
}

static unsigned left[64];

static void note_leaving(void *ctx, uint64_t index, const void *page)
{
	left[index] += ((const uint64_t *)page)[1] == box_word(index, 1, 1);
}

Test(share, page_nobody_hashed_is_announced_as_it_is_packed)
{
	struct engine_config cfg = BOX_MANUAL;
	static struct box b;
	uint32_t list[8];

	cfg.leaving = note_leaving;
	box_open(&b, RAM_HUGE_NEVER, cfg);
	box_fill_all(&b, 0, 16);
	memset(box_at(&b, 15), 9, PAGE_BYTES); /* nothing is gained by sharing it */
	passes(&b, 3);
	cr_assert_eq(cold(&b, list, 8), 8);
	box_push_out(&b, 16);
	for (uint64_t i = 0; i < 16; i++)
		cr_assert_eq(left[i], i >= 8 && i < 15, "page %lu", (unsigned long)i);
	box_close(&b);
}

Test(share, quiet_pages_are_named_once_until_they_are_written)
{
	static struct box b;
	uint32_t list[64];

	share_open(&b, BOX_MANUAL);
	box_fill_all(&b, 0, 20);
	passes(&b, 1);
	cr_assert_eq(cold(&b, list, 64), 0, "they were just written");
	passes(&b, 2);
	cr_assert_eq(cold(&b, list, 8), 8);
	cr_assert_eq(cold(&b, list + 8, 56), 12);
	for (uint32_t i = 0; i < 20; i++)
		cr_assert_eq(list[i], i);
	passes(&b, 5);
	cr_assert_eq(cold(&b, list, 64), 0, "they were named already");
	engine_forget_hashes(b.e);
	cr_assert_eq(cold(&b, list, 64), 20);
	share_close(&b);
}

Test(share, pages_that_keep_changing_are_left_alone_for_longer)
{
	static struct box b;
	uint32_t list[64];
	unsigned quiet[4];

	share_open(&b, BOX_MANUAL);
	for (unsigned round = 0; round < 4; round++) {
		box_fill(&b, 5, round);
		passes(&b, 1);
		for (quiet[round] = 0; cold(&b, list, 64) == 0; quiet[round]++) {
			cr_assert_lt(quiet[round], ENGINE_AGES);
			passes(&b, 1);
		}
	}
	cr_assert_eq(quiet[0], 2);
	for (unsigned round = 1; round < 3; round++)
		cr_assert_eq(quiet[round], 4 * quiet[round - 1]);
	cr_assert_eq(quiet[3], ENGINE_AGES - 1);
	share_close(&b);
}

Test(share, recalled_pages_get_memory_of_their_own)
{
	static struct box b;
	uint64_t set[STORE_PAGES / 64] = { 0x0f0 };

	share_open(&b, BOX_MANUAL);
	box_fill_all(&b, 0, 40);
	cr_assert_eq(share_first(&b, 0, 40), 40);
	cr_assert_eq(engine_unshare(b.e, set), 4);
	for (uint64_t i = 0; i < 40; i++)
		cr_assert_eq(state_of(&b, i), i >= 3 && i < 7 ? PAGE_GUEST : PAGE_STORED);
	cr_assert_eq(all_uses(), 36);
	box_check_all(&b, 0, 40);
	share_close(&b);
}

static void lose_by_a_bit(void)
{
	static struct box b;

	share_open(&b, BOX_MANUAL);
	b.e->fatal = ends_well;
	box_fill(&b, 2, 1);
	if (share_first(&b, 2, 1) != 1)
		_exit(4);
	store_at(1)[99] ^= 1;
	(void)*(volatile uint8_t *)box_at(&b, 2);
}

Test(share, changed_store_page_ends_the_vm_by_name)
{
	static struct box b;

	share_open(&b, BOX_MANUAL); /* skips where there is no userfaultfd */
	share_close(&b);
	expect_end_by_name(lose_by_a_bit, "page 0x2000 ");
}

/* ---- every call fails once ---------------------------------------------------------- */

static enum outcome scenario(long n, int error)
{
	static struct box b;
	uint64_t set[STORE_PAGES / 64] = { 0xff00 };

	use_failing_host(&b);
	share_open(&b, BOX_MANUAL);
	b.e->fatal = end_here;
	box_fill_all(&b, 0, 64);
	box_fill(&b, 20, 2); /* and one that is not equal */
	fail_errno = error;
	fail_at = n;
	share_first(&b, 0, 64);
	share_first(&b, 0, 64);
	engine_unshare(b.e, set);
	for (uint64_t i = 0; i < 32; i++)
		if (!box_has(&b, i, i == 20 ? 2 : 1))
			return WRONG;
	n = fail_at;
	fail_at = -1;
	share_first(&b, 0, 64);
	for (uint64_t i = 0; i < 64; i++)
		if (!box_has(&b, i, i == 20 ? 2 : 1))
			return WRONG;
	share_close(&b);
	return n >= 0 ? NONE_LEFT : ALL_RIGHT;
}

Test(share, every_call_may_fail_once)
{
	static const int errors[] = { ENOMEM, EAGAIN, EBUSY, EEXIST, ENOENT };
	static struct box probe;
	unsigned seen[OUTCOMES] = { 0 };

	share_open(&probe, BOX_MANUAL);
	share_close(&probe);
	for (unsigned k = 0; k < ARRAY_LEN(errors); k++)
		fail_every_call(scenario, errors[k], seen);
	cr_assert_gt(seen[ALL_RIGHT], 50);
}

/* ---- stress --------------------------------------------------------------------------- */

#define STRESS_PAGES 4096u
#define CLASSES 40u /* different contents */

/* Zero also where it was written. */
static uint64_t word_of(uint64_t index, uint64_t version, uint64_t w)
{
	uint64_t class = version ? (index + version) % CLASSES : 0;

	return class ? (class << 32 | (w % 50 ? w : class)) * 0x9E3779B97F4A7C15u : 0;
}

/* Most of the accesses go to an eighth of it. */
static uint64_t pick(uint64_t r)
{
	return r & 7 ? (r >> 8) % (STRESS_PAGES / 8) : (r >> 8) % STRESS_PAGES;
}

/* Some store page for these bytes; mostly the right one. */
static uint32_t find_or_make(const uint8_t *bytes, uint64_t random)
{
	uint32_t free = 0;

	for (uint32_t i = 1; i < STORE_PAGES; i++) {
		if (store.uses[i] && (!memcmp(store_at(i), bytes, PAGE_BYTES) || random % 37 == 0))
			return i;
		free = store.uses[i] ? free : i;
	}
	/* what nobody uses becomes something else at once */
	if (free)
		memcpy(store_at(free), bytes, PAGE_BYTES);
	return free;
}

static const uint8_t zero_page[PAGE_BYTES];

/* The client's and brimd's work, by the straightest way. */
static void share_round(struct stress *s, uint64_t *cursor, uint64_t *random)
{
	static struct mm_same list[256];
	static uint8_t copy[PAGE_BYTES];
	uint32_t pages[256];
	uint64_t n = engine_cold(s->b->e, cursor, pages, ARRAY_LEN(pages)), m = 0;

	if (!n)
		*cursor = 0;
	for (uint64_t i = 0; i < n; i++) {
		bool zero;

		/* as the guest may write it meanwhile, any mixture may be read: a hint */
		pthread_mutex_lock(&s->lock[pages[i]]);
		memcpy(copy, box_at(s->b, pages[i]), PAGE_BYTES);
		pthread_mutex_unlock(&s->lock[pages[i]]);
		zero = !memcmp(copy, zero_page, PAGE_BYTES);
		list[m] = (struct mm_same){ pages[i], zero ? 0 : find_or_make(copy, next_random(random)), 0 };
		store.uses[list[m].store_page] += !zero && list[m].store_page;
		m += zero || list[m].store_page;
	}
	engine_share(s->b->e, list, m);
	unuse_refused(list, m);
}

static void *share_main(void *arg)
{
	struct worker *w = arg;
	uint64_t cursor = 0, rounds = 0;

	role_set(ROLE_SHARE);
	while (!w->s->stop) {
		uint64_t set[STORE_PAGES / 64] = { 0 };

		share_round(w->s, &cursor, &w->random);
		if (++rounds % 64 == 0) {
			set[next_random(&w->random) % ARRAY_LEN(set)] = w->random;
			engine_unshare(w->s->b->e, set);
			usleep(1000);
		}
	}
	return NULL;
}

static bool enough(void)
{
	return counter_get(CTR_engine_shared) > 2000 && counter_get(CTR_engine_faults_stored) > 500 &&
	       counter_get(CTR_engine_share_differs) > 20 && counter_get(CTR_engine_packed) > 500;
}

static void press(struct engine *e)
{
	engine_limit(e, STRESS_PAGES * PAGE_BYTES / 3);
	usleep(100000);
	engine_limit(e, 0);
	usleep(100000);
}

Test(share, stress_no_byte_is_ever_wrong)
{
	static struct box b;
	static struct stress s = { .b = &b, .pages = STRESS_PAGES, .pick = pick, .write_one_in = 8,
				   .discard_rest_us = 500 };
	void *(*const mains[])(void *) = { stress_access, stress_access, stress_access,
					   stress_discard, share_main };

	share_open(&b, (struct engine_config){ .fault_threads = 2, .pass_ns = 2000000,
					       .staging_bytes = 2 * MiB });
	engine_keep_ages(b.e, 3000000);
	stress_begin(&s, mains, ARRAY_LEN(mains));
	stress_press(&s, press, enough);
	stress_end(&s);
	engine_keep_ages(b.e, 0);
	reclaim_stop(b.e);
	fprintf(stderr, "%lu accesses, %lu shared, %lu came back, %lu differed, %lu zeroes, %lu recalled, "
		"%lu packed\n", (unsigned long)s.accesses,
		(unsigned long)counter_get(CTR_engine_shared),
		(unsigned long)counter_get(CTR_engine_faults_stored),
		(unsigned long)counter_get(CTR_engine_share_differs),
		(unsigned long)counter_get(CTR_engine_zeroes),
		(unsigned long)counter_get(CTR_engine_unshared),
		(unsigned long)counter_get(CTR_engine_packed));
	stress_check_all(&s);
	cr_assert(enough());
	share_close(&b);
}
