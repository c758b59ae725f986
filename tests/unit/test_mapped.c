/*
 * Sharing by mapping (mm/map.c): that a read never shows anything but what the page had, that
 * a write is its own, whatever is mapped, broken off, discarded or taken back meanwhile, and
 * that no store page loses its last use while guest RAM shows it.
 */
#include <fcntl.h>
#include <sched.h>

#define IMAGE 256u                    /* pages of one image in the store */
#define STORE_PAGES (1 + 2 * IMAGE)   /* two of them, from page 1 on */
#include "tests/unit/everycall.h"
#include "tests/unit/storebox.h"
#include "tests/unit/stress.h"

static void make_store(void)
{
	char path[64];

	store.fd = memfd_create("store", MFD_CLOEXEC);
	cr_assert_geq(store.fd, 0);
	cr_assert_eq(ftruncate(store.fd, STORE_PAGES << PAGE_SHIFT), 0);
	snprintf(path, sizeof(path), "/proc/self/fd/%d", store.fd);
	store.read_only = open(path, O_RDONLY | O_CLOEXEC);
	cr_assert_geq(store.read_only, 0);
	store.base = mmap(NULL, STORE_PAGES << PAGE_SHIFT, PROT_READ | PROT_WRITE, MAP_SHARED,
			  store.fd, 0);
	cr_assert_neq(store.base, MAP_FAILED);
	memset(store.uses, 0, sizeof(store.uses));
}

static void map_open_huge(struct box *b, enum ram_huge huge, struct engine_config cfg)
{
	box_open(b, huge, cfg);
	make_store();
	engine_set_store(b->e, &(struct mm_store){ .base = store.base, .pages = STORE_PAGES,
						   .fd = store.read_only, .drop = store_drop });
}

static void map_open(struct box *b, struct engine_config cfg)
{
	map_open_huge(b, RAM_HUGE_NEVER, cfg);
}

static uint64_t in_state(struct box *b, enum page_state s)
{
	return atomic_load(&b->e->pages.in_state[s]);
}

static void map_close(struct box *b)
{
	reclaim_stop(b->e);
	box_settle(b);
	engine_pass(b->e); /* what was written is noted */
	cr_assert_eq(all_uses(), (int64_t)(in_state(b, PAGE_STORED) + in_state(b, PAGE_SHARED)));
	box_close(b);
	munmap(store.base, STORE_PAGES << PAGE_SHIFT);
	close(store.fd);
	close(store.read_only);
}

/* Pages [from, from + n) against store pages from `at` on, which get what those have in
 * version 1. */
static uint64_t share_at(struct box *b, uint64_t from, uint32_t n, uint32_t at)
{
	struct mm_same list[STORE_PAGES];

	store_first(list, from, n, at);
	return share(b, list, n, engine_share_mapped);
}

static uint64_t share_first(struct box *b, uint64_t from, uint32_t n)
{
	return share_at(b, from, n, 1);
}

static void expect_state(struct box *b, uint64_t from, uint64_t n, enum page_state s)
{
	for (uint64_t i = from; i < from + n; i++)
		cr_assert_eq(state_of(b, i), s, "page %lu is in state %u", (unsigned long)i,
			     (unsigned)state_of(b, i));
}

static struct books_smaps smaps(struct box *b)
{
	struct books_smaps s;

	cr_assert_eq(books_smaps(b->mem, BOX_BYTES, &s), 0);
	return s;
}

/* 300 pages over a chunk's end, shared with the whole of a store's run. */
static void open_shared(struct box *b, uint64_t from, uint32_t n)
{
	map_open(b, BOX_MANUAL);
	box_fill_all(b, 0, 1200);
	cr_assert_eq(share_first(b, from, n), n);
	expect_state(b, from, n, PAGE_SHARED);
}

Test(mapped, equal_run_costs_no_memory_and_no_fault)
{
	static struct box b;
	uint64_t resident, faults;

	open_shared(&b, 400, 300);
	cr_assert_eq(all_uses(), 300);
	cr_assert_eq(smaps(&b).own_bytes, 900 * PAGE_BYTES);
	cr_assert_leq(smaps(&b).file_vmas, 2);
	cr_assert_eq(ram_resident_bytes(b.ram, &resident), 0);
	cr_assert_eq(resident, 900 * PAGE_BYTES);
	faults = counter_get(CTR_engine_faults_stored) + counter_get(CTR_engine_faults_untouched);
	box_check_all(&b, 0, 1200);
	cr_assert_eq(faults, counter_get(CTR_engine_faults_stored) +
				     counter_get(CTR_engine_faults_untouched));
	expect_state(&b, 400, 300, PAGE_SHARED);
	box_check_books(&b);
	cr_assert_eq(engine_held_pages(b.e), 900, "%lu held", (unsigned long)engine_held_pages(b.e));
	map_close(&b);
}

/* What is mapped comes from the new one, whatever the old one had at its place. */
Test(mapped, another_store_takes_the_place_of_one_that_nobody_uses)
{
	static struct box b;
	uint8_t *place;
	int old;

	open_shared(&b, 100, 200);
	cr_assert_eq(ram_discard(b.ram, gpa(100 * PAGE_BYTES), 200 * PAGE_BYTES), 0);
	cr_assert_eq(all_uses(), 0);
	memset(store_at(1), 0xEE, 200 * PAGE_BYTES);
	place = store.base;
	old = store.read_only;
	close(store.fd);
	make_store();
	cr_assert_eq(mmap(place, STORE_PAGES << PAGE_SHIFT, PROT_READ | PROT_WRITE,
			  MAP_SHARED | MAP_FIXED, store.fd, 0), place);
	munmap(store.base, STORE_PAGES << PAGE_SHIFT);
	store.base = place;
	engine_renew_store(b.e, store.read_only);
	close(old);
	cr_assert_eq(share_first(&b, 400, 200), 200);
	expect_state(&b, 400, 200, PAGE_SHARED);
	box_check_all(&b, 400, 200);
	map_close(&b);
}

Test(mapped, write_is_the_guests_own_and_ends_the_use)
{
	static struct box b;

	open_shared(&b, 100, 200);
	box_fill(&b, 150, 2);
	box_at(&b, 151)[77] ^= 1;
	cr_assert(box_has(&b, 150, 2));
	cr_assert_eq(all_uses(), 200, "nobody has looked yet");
	engine_pass(b.e);
	expect_state(&b, 150, 2, PAGE_BROKEN);
	cr_assert_eq(all_uses(), 198);
	cr_assert_eq(store.uses[51], 0);
	cr_assert_eq(engine_held_pages(b.e), 1002);
	memset(store_at(51), 0xEE, PAGE_BYTES); /* nobody's now */
	engine_pass(b.e);
	engine_tick(b.e);
	cr_assert(box_has(&b, 150, 2));
	box_at(&b, 151)[77] ^= 1;
	for (uint64_t i = 0; i < 1200; i++)
		cr_assert(i == 150 || box_has(&b, i, 1), "page %lu", (unsigned long)i);
	expect_state(&b, 150, 2, PAGE_BROKEN); /* two of 200 are not worth two VMAs */
	map_close(&b);
}

Test(mapped, short_runs_are_stored)
{
	static struct box b;
	struct mm_same list[60];

	map_open(&b, BOX_MANUAL);
	box_fill_all(&b, 0, 60);
	for (uint32_t i = 0; i < 60; i++) {
		memcpy(store_at(i + 1), box_at(&b, i), PAGE_BYTES);
		memcpy(store_at(i + 101), box_at(&b, i), PAGE_BYTES);
		list[i] = (struct mm_same){ i, i % 4 == 3 ? i + 101 : i + 1, 0 }; /* runs of 3 and 1 */
	}
	cr_assert_eq(share(&b, list, 60, engine_share_mapped), 60);
	expect_state(&b, 0, 60, PAGE_STORED);
	cr_assert_eq(smaps(&b).file_vmas, 0);
	box_check_all(&b, 0, 60);
	map_close(&b);
}

Test(mapped, page_that_differs_stays_and_parts_the_run)
{
	static struct box b;

	map_open(&b, BOX_MANUAL);
	box_fill_all(&b, 0, 100);
	box_at(&b, 40)[PAGE_BYTES - 1] ^= 0x80;
	cr_assert_eq(share_first(&b, 0, 100), 99);
	expect_state(&b, 0, 40, PAGE_SHARED);
	expect_state(&b, 40, 1, PAGE_GUEST);
	expect_state(&b, 41, 59, PAGE_SHARED);
	box_at(&b, 40)[PAGE_BYTES - 1] ^= 0x80;
	box_check_all(&b, 0, 100);
	map_close(&b);
}

Test(mapped, discarded_page_reads_zero)
{
	static struct box b;
	struct ram_range r[] = { { gpa(110 * PAGE_BYTES), 20 * PAGE_BYTES },
				 { gpa(250 * PAGE_BYTES), 200 * PAGE_BYTES } };

	open_shared(&b, 100, 200);
	box_fill(&b, 120, 2); /* one that is broken off, unnoticed, and one that is noticed */
	box_fill(&b, 260, 2);
	cr_assert_eq(ram_discard(b.ram, r[0].addr, r[0].len_bytes), 0);
	engine_pass(b.e);
	cr_assert_eq(ram_discard_many(b.ram, &r[1], 1), 1);
	cr_assert_eq(all_uses(), 130);
	for (uint64_t i = 0; i < 500; i++) {
		bool gone = (i >= 110 && i < 130) || (i >= 250 && i < 450);

		cr_assert(gone ? box_at(&b, i)[i] == 0 : box_has(&b, i, 1), "page %lu",
			  (unsigned long)i);
	}
	expect_state(&b, 110, 20, PAGE_GUEST);
	box_fill_all(&b, 110, 20);
	box_check_all(&b, 100, 150);
	map_close(&b);
}

Test(mapped, run_that_is_mostly_written_goes_back_to_normal)
{
	static struct box b;

	open_shared(&b, 100, 200);
	for (uint64_t i = 100; i < 220; i++)
		box_fill(&b, i, 2);
	engine_tick(b.e);
	cr_assert_eq(all_uses(), 0);
	expect_state(&b, 100, 200, PAGE_GUEST);
	cr_assert_eq(smaps(&b).file_vmas, 0);
	cr_assert_leq(smaps(&b).vmas, 2, "%u VMAs: they do not merge", smaps(&b).vmas);
	box_check_books(&b);
	box_push_out(&b, 1200);
	cr_assert_gt(in_state(&b, PAGE_PACKED), 1000, "they can be taken as any other");
	for (uint64_t i = 0; i < 1200; i++)
		cr_assert(box_has(&b, i, i >= 100 && i < 220 ? 2 : 1));
	map_close(&b);
}

Test(mapped, written_part_of_a_run_is_taken_back)
{
	static struct box b;

	open_shared(&b, 100, 200);
	for (uint64_t i = 150; i < 170; i++)
		box_fill(&b, i, 2);
	engine_tick(b.e);
	expect_state(&b, 100, 50, PAGE_SHARED);
	expect_state(&b, 150, 20, PAGE_GUEST);
	expect_state(&b, 170, 130, PAGE_SHARED);
	for (uint64_t i = 100; i < 300; i++)
		cr_assert(box_has(&b, i, i >= 150 && i < 170 ? 2 : 1));
	map_close(&b);
}

/* A lone page cannot be packed where it is: worth two VMAs when the VM is over its limit. */
Test(mapped, lone_written_page_is_taken_back_under_pressure)
{
	static struct box b;

	open_shared(&b, 100, 200);
	box_fill(&b, 150, 2);
	for (int i = 0; i < 6; i++)
		engine_tick(b.e);
	expect_state(&b, 150, 1, PAGE_BROKEN);
	engine_limit(b.e, 100 * PAGE_BYTES);
	for (int i = 0; i < 20; i++)
		engine_tick(b.e);
	cr_assert_neq(state_of(&b, 150), PAGE_BROKEN);
	expect_state(&b, 151, 100, PAGE_SHARED);
	cr_assert(box_has(&b, 150, 2));
	map_close(&b);
}

Test(mapped, recalled_pages_get_memory_of_their_own)
{
	static struct box b;
	uint64_t set[STORE_PAGES / 64 + 1] = { 0xff0 };

	open_shared(&b, 100, 200);
	cr_assert_eq(engine_unshare(b.e, set), 8);
	expect_state(&b, 103, 8, PAGE_GUEST);
	expect_state(&b, 111, 189, PAGE_SHARED);
	cr_assert_eq(all_uses(), 192);
	box_check_books(&b);
	memset(set, 0xff, sizeof(set));
	cr_assert_eq(engine_unshare(b.e, set), 192);
	cr_assert_eq(smaps(&b).file_vmas, 0);
	box_check_all(&b, 0, 1200);
	map_close(&b);
}

/* A disk that is read without the page cache writes to pages behind the page tables. */
Test(mapped, page_that_a_device_writes_is_not_taken_back)
{
	static struct box b;
	uint64_t set[STORE_PAGES / 64 + 1];

	memset(set, 0xff, sizeof(set));
	open_shared(&b, 400, 200);
	ram_lend(b.ram, box_at(&b, 450), 3 * PAGE_BYTES);
	cr_assert_eq(engine_unshare(b.e, set), 88, "those of the next 2 MiB");
	cr_assert_eq(counter_get(CTR_engine_map_lent), 112);
	box_fill(&b, 420, 2);
	cr_assert(box_has(&b, 420, 2), "writes are not held up for it");
	ram_returned(b.ram, box_at(&b, 450), 3 * PAGE_BYTES);
	cr_assert_eq(engine_unshare(b.e, set), 112);
	cr_assert(box_has(&b, 420, 2));
	map_close(&b);
}

Test(mapped, pages_of_huge_pages_are_mapped_too)
{
	static struct box b;
	uint64_t set[STORE_PAGES / 64 + 1];

	memset(set, 0xff, sizeof(set));
	map_open_huge(&b, RAM_HUGE_ALWAYS, BOX_MANUAL);
	box_fill_all(&b, 0, 1200);
	cr_assert_eq(share_first(&b, 400, 300), 300);
	expect_state(&b, 400, 300, PAGE_SHARED);
	box_fill(&b, 500, 2);
	cr_assert_eq(engine_unshare(b.e, set), 300);
	cr_assert_eq(ram_discard(b.ram, gpa(0), 4 * HUGE_BYTES), 0);
	for (uint64_t i = 0; i < 4 * CHUNK_PAGES; i++)
		cr_assert_eq(box_at(&b, i)[7], 0);
	box_fill_all(&b, 0, 1200);
	cr_assert_eq(share_first(&b, 512, 512), 512);
	box_check_all(&b, 0, 1200);
	cr_assert_eq(ram_discard(b.ram, gpa(0), 4 * HUGE_BYTES), 0);
	for (uint64_t i = 0; i < 4 * CHUNK_PAGES; i++)
		cr_assert_eq(box_at(&b, i)[7], 0);
	map_close(&b);
}

Test(mapped, vmas_are_bounded)
{
	static struct box b;
	struct engine_stats s;

	open_shared(&b, 100, 50);
	engine_stats(b.e, &s);
	cr_assert_eq(s.shared_pages, 50);
	cr_assert_eq(s.map_vmas, 2);
	cr_assert_gt(s.map_vmas_most, 1000);
	b.e->map.vmas_most = 6;
	for (uint32_t i = 1; i < 7; i++)
		cr_assert_eq(share_at(&b, 100 + 100 * i, 50, 1 + 50 * i), 50);
	engine_stats(b.e, &s);
	cr_assert_leq(s.map_vmas, 6);
	cr_assert_gt(s.stored_pages, 0);
	cr_assert_gt(s.map_least_run, 500);
	box_check_all(&b, 200, 600);
	map_close(&b);
}

Test(mapped, what_is_worth_mapping_follows_from_costs)
{
	static const struct { struct map_cost c; bool worth; } cases[] = {
		{ { 1, 0, 0, 1000 }, false },   /* 550 bytes for 4096 */
		{ { 4, 0, 0, 1000 }, false },
		{ { 5, 0, 0, 1000 }, true },    /* a 32nd */
		{ { 1, 103, 0, 1000 }, false },
		{ { 1, 255, 0, 1000 }, true },  /* it will be touched: half of its chunk was */
		{ { 5, 0, 499, 1000 }, true },
		{ { 5, 0, 750, 1000 }, false }, /* VMAs get scarce */
		{ { 40, 0, 750, 1000 }, true },
		{ { 512, 0, 998, 1000 }, true },
		{ { 512, 512, 999, 1000 }, false },
		{ { 512, 512, 0, 0 }, false },
	};

	for (unsigned i = 0; i < ARRAY_LEN(cases); i++)
		cr_assert_eq(map_worth(&cases[i].c), cases[i].worth, "case %u", i);
}

/* Pages that come back soon are read, and worth VMAs that others are not. */
Test(mapped, stored_pages_that_are_touched_again_are_mapped_next_time)
{
	static struct box b;

	map_open(&b, BOX_MANUAL);
	box_fill_all(&b, 0, 1000);
	for (unsigned round = 0; round < 100 && !in_state(&b, PAGE_SHARED); round++) {
		cr_assert_eq(share_first(&b, 10, 3), 3);
		box_check_all(&b, 10, 3);
	}
	expect_state(&b, 10, 3, PAGE_SHARED);
	map_close(&b);
}

static void lose_all_of_it(void)
{
	static struct box b;

	map_open(&b, BOX_MANUAL);
	b.e->fatal = ends_well;
	box_fill_all(&b, 100, 200);
	share_first(&b, 100, 200);
	fallocate(store.fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 7 << PAGE_SHIFT, PAGE_BYTES);
	(void)*(volatile uint8_t *)box_at(&b, 106);
}

Test(mapped, page_the_store_has_lost_ends_the_vm_by_name)
{
	static struct box b;

	map_open(&b, BOX_MANUAL); /* skips where there is no userfaultfd */
	map_close(&b);
	expect_end_by_name(lose_all_of_it, "page 0x6a000 ");
}

/* ---- writes meanwhile ------------------------------------------------------------------ */

#define HAMMERED 64u

struct hammer {
	struct box *b;
	_Atomic bool stop, writes;
	uint64_t random, word[HAMMERED];
};

/* Each page's first word is what was last written to it. */
static void *hammer_main(void *arg)
{
	struct hammer *h = arg;

	while (!h->stop) {
		uint64_t i = next_random(&h->random) % HAMMERED;

		*(volatile uint64_t *)box_at(h->b, i) = h->random;
		h->word[i] = h->random;
		h->writes = true;
	}
	return NULL;
}

Test(mapped, write_while_its_page_is_taken_back_is_not_lost)
{
	static struct box b;
	static struct hammer h;
	uint64_t set[STORE_PAGES / 64 + 1];

	memset(set, 0xff, sizeof(set));
	h = (struct hammer){ .b = &b, .random = seed_of_run() };
	map_open(&b, BOX_MANUAL);
	for (unsigned round = 0; round < 300; round++) {
		pthread_t t;

		box_fill_all(&b, 0, HAMMERED);
		cr_assert_eq(share_first(&b, 0, HAMMERED), HAMMERED);
		expect_state(&b, 0, HAMMERED, PAGE_SHARED);
		for (uint64_t i = 0; i < HAMMERED; i++)
			h.word[i] = *(uint64_t *)box_at(&b, i);
		h.stop = h.writes = false;
		cr_assert_eq(pthread_create(&t, NULL, hammer_main, &h), 0);
		while (!h.writes)
			sched_yield();
		engine_unshare(b.e, set);
		h.stop = true;
		pthread_join(t, NULL);
		expect_state(&b, 0, HAMMERED, PAGE_GUEST);
		for (uint64_t i = 0; i < HAMMERED; i++)
			cr_assert_eq(*(uint64_t *)box_at(&b, i), h.word[i], "round %u, page %lu", round,
				     (unsigned long)i);
	}
	map_close(&b);
}

/* ---- every call fails once ---------------------------------------------------------- */

/* Page 30 has version 2; pages [from, from + 10) were discarded. */
static bool all_there(struct box *b, uint64_t from, uint64_t to)
{
	for (uint64_t i = from; i < to; i++)
		if (!box_has(b, i, i == 30 ? 2 : 1))
			return false;
	return true;
}

static bool ten_gone(struct box *b, uint64_t from)
{
	for (uint64_t i = from; i < from + 10; i++)
		if (!box_same(box_at(b, i)) || box_at(b, i)[0])
			return false;
	return true;
}

static int discard_ten(struct box *b, uint64_t from)
{
	return ram_discard(b->ram, gpa(from * PAGE_BYTES), 10 * PAGE_BYTES);
}

static enum outcome scenario(long n, int error)
{
	static struct box b;
	uint64_t set[STORE_PAGES / 64 + 1] = { 0xff00 };
	int rc;

	use_failing_host(&b);
	map_open(&b, BOX_MANUAL);
	b.e->fatal = end_here;
	box_fill_all(&b, 0, 200);
	box_at(&b, 50)[9] ^= 1; /* and one that is not equal */
	fail_errno = error;
	fail_at = n;
	share_first(&b, 0, 200);
	box_at(&b, 50)[9] ^= 1;
	box_fill(&b, 30, 2);
	engine_tick(b.e);
	rc = discard_ten(&b, 70);
	engine_unshare(b.e, set);
	box_fill_all(&b, 120, 80);
	engine_tick(b.e);
	n = fail_at;
	fail_at = -1;
	if (!all_there(&b, 0, 70) || !all_there(&b, 80, 200) || (!rc && !ten_gone(&b, 70)))
		return WRONG;
	/* also where pages could not be taken back, whose copies must not show up here */
	if (discard_ten(&b, 70) || !ten_gone(&b, 70) || discard_ten(&b, 130) || !ten_gone(&b, 130))
		return WRONG;
	engine_reclaim(b.e, 20 * PAGE_BYTES);
	engine_tick(b.e);
	engine_tick(b.e);
	share_first(&b, 0, 200);
	if (!all_there(&b, 0, 70) || !all_there(&b, 80, 130) || !all_there(&b, 140, 200))
		return WRONG;
	map_close(&b);
	return n >= 0 ? NONE_LEFT : ALL_RIGHT;
}

Test(mapped, every_call_may_fail_once)
{
#ifdef __SANITIZE_THREAD__
	static const int errors[] = { ENOMEM }; /* a scenario takes ten times as long */
#else
	static const int errors[] = { ENOMEM, EAGAIN, EBUSY, EEXIST, ENOENT, EINVAL };
#endif
	static struct box probe;
	unsigned seen[OUTCOMES] = { 0 };

	map_open(&probe, BOX_MANUAL);
	map_close(&probe);
	for (unsigned k = 0; k < ARRAY_LEN(errors); k++)
		fail_every_call(scenario, errors[k], seen);
	cr_assert_gt(seen[ALL_RIGHT], 90 * ARRAY_LEN(errors));
}

/* ---- stress --------------------------------------------------------------------------- */

#define STRESS_PAGES 4096u
#define RUN_MAX 48u

static int disk; /* a file */

/* Of image k, page i. */
static uint64_t image_word(uint64_t k, uint64_t i, uint64_t w)
{
	return (k << 60 | (i % IMAGE + 1) << 32 | (w % 50 ? w : i % IMAGE)) * 0x9E3779B97F4A7C15u;
}

/* By version: of the one image, of the other, of neither, zeroes. */
static uint64_t word_of(uint64_t i, uint64_t version, uint64_t w)
{
	switch (version % 8) {
	case 0:
		return 0;
	case 7:
		return (i << 40 | version << 12 | w) * 0x9E3779B97F4A7C15u;
	default:
		return image_word(version % 2, i, w);
	}
}

/* A page or a run of them, so that there are runs to be found. */
static void write_run(struct stress *s, uint64_t i, uint64_t n, uint64_t version)
{
	for (; n && i < STRESS_PAGES; n--, i++) {
		pthread_mutex_lock(&s->lock[i]);
		stress_check(s, i);
		s->version[i] = version;
		stress_write(s, i);
		pthread_mutex_unlock(&s->lock[i]);
	}
}

static void *access_main(void *arg)
{
	struct worker *w = arg;
	struct stress *s = w->s;

	while (!s->stop) {
		uint64_t r = next_random(&w->random), i = (r >> 8) % STRESS_PAGES;

		pthread_mutex_lock(&s->lock[i]);
		stress_check(s, i);
		pthread_mutex_unlock(&s->lock[i]);
		if (r >> 58 == 0)
			write_run(s, i, r >> 57 & 1 ? 1 : 1 + (r >> 20) % RUN_MAX, 1 + (r >> 30) % 4096);
		s->accesses++;
	}
	return NULL;
}

/* The kernel writes to guest RAM, as for a disk. */
static void *disk_main(void *arg)
{
	struct worker *w = arg;
	struct stress *s = w->s;
	uint64_t page[PAGE_BYTES / sizeof(uint64_t)];

	while (!s->stop) {
		uint64_t r = next_random(&w->random), i = (r >> 8) % STRESS_PAGES;

		pthread_mutex_lock(&s->lock[i]);
		stress_check(s, i);
		s->version[i] = 1 + (r >> 30) % 4096;
		stress_words(s, i, page);
		cr_assert_eq(pwrite(disk, page, PAGE_BYTES, 0), (ssize_t)PAGE_BYTES);
		cr_assert_eq(pread(disk, box_at(s->b, i), PAGE_BYTES, 0), (ssize_t)PAGE_BYTES);
		stress_check(s, i);
		pthread_mutex_unlock(&s->lock[i]);
		usleep(300);
	}
	return NULL;
}

/* What page i has, as far as the store may have it; what nobody used had become garbage. */
static uint32_t find(struct stress *s, uint64_t i, uint64_t random)
{
	uint64_t version, k;
	uint32_t page;

	pthread_mutex_lock(&s->lock[i]);
	version = s->version[i];
	pthread_mutex_unlock(&s->lock[i]);
	if (version % 8 == 0 || version % 8 == 7)
		return 0;
	k = random % 37 ? version % 2 : random % 2; /* and sometimes it is the wrong one */
	page = (uint32_t)(1 + k * IMAGE + i % IMAGE);
	if (!store.uses[page])
		for (uint64_t w = 0; w < PAGE_BYTES / 8; w++)
			((uint64_t *)store_at(page))[w] = image_word(k, i, w);
	return page;
}

static void spoil_unused(void)
{
	for (uint32_t i = 1; i < STORE_PAGES; i++)
		if (!store.uses[i])
			memset(store_at(i), 0xEE, 64);
}

static uint64_t share_round(struct stress *s, uint64_t *cursor, uint64_t *random)
{
	static struct mm_same list[512];
	static uint32_t pages[512];
	uint64_t n = engine_cold(s->b->e, cursor, pages, ARRAY_LEN(pages)), m = 0;

	for (uint64_t i = 0; i < n; i++) {
		uint32_t page = find(s, pages[i], next_random(random));

		if (!page)
			continue;
		store.uses[page]++;
		list[m++] = (struct mm_same){ pages[i], page, 0 };
	}
	if (next_random(random) % 16)
		engine_share_mapped(s->b->e, list, m);
	else
		engine_share(s->b->e, list, m);
	unuse_refused(list, m);
	return n;
}

static void *share_main(void *arg)
{
	struct worker *w = arg;
	uint64_t cursor = 0, rounds = 0;

	role_set(ROLE_SHARE);
	while (!w->s->stop) {
		uint64_t set[STORE_PAGES / 64 + 1] = { 0 };

		if (!share_round(w->s, &cursor, &w->random)) {
			cursor = 0;
			usleep(1000);
		}
		spoil_unused();
		if (++rounds % 32 == 0) {
			set[next_random(&w->random) % ARRAY_LEN(set)] = w->random;
			engine_unshare(w->s->b->e, set);
			engine_forget_hashes(w->s->b->e);
		}
	}
	return NULL;
}

static bool enough(void)
{
	return counter_get(CTR_engine_mapped) > 2000 && counter_get(CTR_engine_broken_off) > 200 &&
	       counter_get(CTR_engine_taken_back) > 500 && counter_get(CTR_engine_packed) > 500 &&
	       counter_get(CTR_engine_faults_stored) > 100;
}

static void say(struct stress *s)
{
	static const enum counter c[] = {
		CTR_engine_mapped, CTR_engine_mapped_runs, CTR_engine_broken_off, CTR_engine_taken_back,
		CTR_engine_map_torn, CTR_engine_map_errors, CTR_engine_map_unworthy, CTR_engine_shared,
		CTR_engine_faults_stored, CTR_engine_share_differs, CTR_engine_packed,
		CTR_engine_scan_errors,
	};

	fprintf(stderr, "%lu accesses", (unsigned long)s->accesses);
	for (unsigned i = 0; i < ARRAY_LEN(c); i++)
		fprintf(stderr, ", %s %lu", counter_table[c[i]].name, (unsigned long)counter_get(c[i]));
	fprintf(stderr, "\n");
}

static void press(struct engine *e)
{
	engine_limit(e, STRESS_PAGES * PAGE_BYTES / 3);
	usleep(100000);
	engine_limit(e, 0);
	usleep(200000);
}

Test(mapped, stress_no_byte_is_ever_wrong)
{
	static struct box b;
	static struct stress s = { .b = &b, .pages = STRESS_PAGES, .discard_rest_us = 2000,
				   .discarded_are_read = true };
	void *(*const mains[])(void *) = { access_main, access_main, access_main, disk_main,
					   stress_discard, share_main };

	disk = memfd_create("disk", MFD_CLOEXEC);
	map_open(&b, (struct engine_config){ .fault_threads = 2, .pass_ns = 2000000,
					     .staging_bytes = 2 * MiB });
	engine_keep_ages(b.e, 3000000);
	stress_begin(&s, mains, ARRAY_LEN(mains));
	stress_press(&s, press, enough);
	stress_end(&s);
	engine_keep_ages(b.e, 0);
	reclaim_stop(b.e);
	say(&s);
	stress_check_all(&s);
	cr_assert(enough());
	close(disk);
	map_close(&b);
}
