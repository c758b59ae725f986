/*
 * mm/swap/: what is put comes back or an error does (I1), objects and segments
 * (I2), the cap and the books (I3), under damage, failing calls and many threads.
 *
 * Seeds are printed; BRIM_SEED=N repeats a run, BRIM_SWAP_OPS and
 * BRIM_SWAP_SECONDS make the random and the concurrent test longer, BRIM_SWAP_ROUNDS
 * the race of drop and clean (which has to be hit to be seen).
 */
#include <fcntl.h>
#include <lz4.h>
#include <unistd.h>
#include <xxhash.h>

#include "tests/unit/crowd.h"

#define PAGES 4096u /* owners: 16 MiB of guest */
#define CAP (6 * MiB)
#define BASH "/bin/bash"

/* ---- pages ------------------------------------------------------------------- */

static void pattern(struct page *page, uint64_t value)
{
	for (size_t i = 0; i < sizeof(page->b); i += sizeof(value))
		memcpy(page->b + i, &value, sizeof(value));
}

/* Of all kinds: one in eight zero, pattern, or random throughout. */
static void any_page(struct page *page, uint64_t seed)
{
	uint64_t state = seed, kind = seed % 24;

	if (kind == 0)
		pattern(page, 0);
	else if (kind == 1)
		pattern(page, mix(&state) % 400);
	else if (kind == 2)
		random_bytes(page->b, sizeof(page->b), &state);
	else
		packable(page, seed, 8 + mix(&state) % 2800);
}

/* ---- a pool with a shadow ---------------------------------------------------- */

static const struct mm_host host = {
	.mmap = host_mmap, .munmap = host_munmap, .madvise = host_madvise,
};

struct shadow {
	struct swap *s;
	uint64_t cap_bytes;
	swap_ref_t ref[PAGES];  /* 0: not in it */
	uint64_t seed[PAGES];
	size_t noise[PAGES];    /* 0: any_page() */
	unsigned refuse_one_in; /* of the moves; 0: none */
	bool refuse_then_drop;  /* the owner says so first, and drops later */
	uint64_t random;
	unsigned moves, refused;
};

static struct shadow *sh;

static struct swap_stats stats(void)
{
	struct swap_stats st;

	swap_stats(sh->s, &st);
	return st;
}

static void check_cap(void)
{
	struct swap_stats st = stats();

	cr_assert_eq(st.packed_bytes + st.hole_bytes + st.table_bytes, st.held_bytes);
	if (sh->cap_bytes)
		cr_assert_leq(st.held_bytes, sh->cap_bytes);
}

static bool moved(void *ctx, uint64_t owner, swap_ref_t from, swap_ref_t to)
{
	struct shadow *w = ctx;

	cr_assert_lt(owner, PAGES);
	cr_assert_eq(w->ref[owner].v, from.v);
	cr_assert_neq(to.v, from.v);
	check_cap();
	if (w->refuse_one_in && mix(&w->random) % w->refuse_one_in == 0) {
		w->refused++;
		if (w->refuse_then_drop)
			return false;
		swap_drop(w->s, from);
		w->ref[owner].v = 0;
		return false;
	}
	w->ref[owner] = to;
	w->moves++;
	return true;
}

static int try_create(uint64_t cap_bytes)
{
	struct swap_config cfg = { .max_pages = PAGES, .cap_bytes = cap_bytes, .host = &host,
				   .move = moved };
	struct err e = { "" };
	int rc;

	sh = calloc(1, sizeof(*sh));
	cr_assert_not_null(sh);
	cfg.move_ctx = sh;
	sh->cap_bytes = cap_bytes;
	rc = swap_create(&sh->s, &cfg, &e);
	cr_assert_eq(rc == 0, e.msg[0] == '\0', "%s", e.msg);
	cr_assert_eq(rc == 0, sh->s != NULL);
	return rc;
}

static void begin(uint64_t cap_bytes)
{
	cr_assert_eq(try_create(cap_bytes), 0);
	check_cap();
}

static void end(void)
{
	if (sh->s)
		swap_verify(sh->s);
	swap_destroy(&sh->s);
	cr_assert_null(sh->s);
	free(sh);
	sh = NULL;
}

static void make_page(unsigned owner, struct page *page)
{
	if (sh->noise[owner])
		packable(page, sh->seed[owner], sh->noise[owner]);
	else
		any_page(page, sh->seed[owner]);
}

static int put(unsigned owner, uint64_t seed, size_t noise)
{
	struct page page;
	swap_ref_t ref = { 0 };
	int rc;

	sh->seed[owner] = seed;
	sh->noise[owner] = noise;
	make_page(owner, &page);
	rc = swap_put(sh->s, owner, &page, &ref);
	cr_assert_eq(rc == 0, ref.v != 0, "outputs are written only on success");
	cr_assert_lt(ref.v, (uint64_t)1 << SWAP_REF_BITS);
	sh->ref[owner] = ref;
	check_cap();
	return rc;
}

static void check_page(unsigned owner)
{
	struct page want, got;

	make_page(owner, &want);
	memset(&got, 0xee, sizeof(got));
	cr_assert_eq(swap_get(sh->s, sh->ref[owner], owner, &got), 0, "page %u", owner);
	cr_assert(same(&want, &got), "page %u", owner);
}

static void check_all(void)
{
	struct swap_stats st = stats();
	uint64_t pages = 0;

	for (unsigned i = 0; i < PAGES; i++) {
		if (!sh->ref[i].v)
			continue;
		check_page(i);
		pages++;
	}
	cr_assert_eq(pages, st.filled_pages + st.packed_pages);
	swap_verify(sh->s);
}

static void drop(unsigned owner)
{
	swap_drop(sh->s, sh->ref[owner]);
	sh->ref[owner].v = 0;
	check_cap();
}

/* Puts pages of about `noise` bytes from owner 0 on until there is no room. */
static unsigned put_until_full(size_t noise)
{
	unsigned n = 0;

	while (n < PAGES && put(n, 1000 + n, noise) == 0)
		n++;
	cr_assert_lt(n, PAGES);
	return n;
}

static uint64_t resident_bytes(void)
{
	const struct pool *p = &sh->s->pool;
	static unsigned char in_core[64 * MiB / PAGE_BYTES];
	uint64_t n = p->base_bytes / PAGE_BYTES, sum = 0;

	cr_assert_leq(n, sizeof(in_core));
	cr_assert_eq(mincore(p->base, p->base_bytes, in_core), 0);
	for (uint64_t i = 0; i < n; i++)
		sum += (in_core[i] & 1) * PAGE_BYTES;
	return sum;
}

/* ---- settings ---------------------------------------------------------------- */

Test(swap, swap_setting_out_of_range_refused_by_name)
{
	const struct swap_config bad[] = {
		{ .max_pages = 0 },
		{ .max_pages = (RAM_MAX_BYTES >> PAGE_SHIFT) + 1 },
		{ .max_pages = PAGES, .acceleration = -1 },
		{ .max_pages = PAGES, .acceleration = 65 },
		{ .max_pages = PAGES, .cap_bytes = 1 },
		{ .max_pages = PAGES, .cap_bytes = 2 * MiB },
	};

	for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
		struct swap *s = NULL;
		struct err e = { "" };

		cr_assert_eq(swap_create(&s, &bad[i], &e), -EINVAL, "case %zu", i);
		cr_assert_null(s);
		cr_assert(strstr(e.msg, "swap: "), "%s", e.msg);
	}
}

Test(swap, swap_least_cap_enough)
{
	begin(SWAP_CAP_MIN_BYTES);
	put_until_full(2000);
	cr_assert_gt(stats().packed_bytes, MiB - 4 * KiB);
	check_all();
	end();
}

/* ThreadSanitizer leaves no room for a terabyte in most runs. */
#ifdef __SANITIZE_THREAD__
#define LARGEST_BYTES (64 * GiB)
#else
#define LARGEST_BYTES RAM_MAX_BYTES
#endif

Test(swap, swap_largest_guest_costs_only_tables)
{
	struct swap_config cfg = { .max_pages = LARGEST_BYTES >> PAGE_SHIFT, .acceleration = 64 };
	struct swap_stats st;
	struct swap *s = NULL;

	cr_assert_eq(swap_create(&s, &cfg, NULL), 0);
	swap_stats(s, &st);
	cr_assert_eq(st.held_bytes, st.table_bytes);
	cr_assert_lt(st.table_bytes, 48 * MiB);
	swap_destroy(&s);
}

Test(swap, swap_pool_small_pages_not_inherited_not_dumped)
{
	begin(CAP);
	cr_assert(advised & 1u << MADV_NOHUGEPAGE, "else a touched segment costs two");
	cr_assert(advised & 1u << MADV_DONTFORK);
	cr_assert(advised & 1u << MADV_DONTDUMP);
	end();
	has_no_thp = true;
	begin(CAP);
	end();
}

/* ---- round trips ------------------------------------------------------------- */

static void round_trip_of_file(const char *path)
{
	struct page page, got;
	swap_ref_t ref;
	unsigned n = 0, packed = 0;
	int fd = open(path, O_RDONLY);

	cr_assert_geq(fd, 0, "%s", path);
	begin(0);
	for (; n < PAGES && read(fd, &page, sizeof(page)) == (ssize_t)sizeof(page); n++) {
		int rc = swap_put(sh->s, n, &page, &ref);

		if (rc == -E2BIG)
			continue;
		cr_assert_eq(rc, 0);
		memset(&got, 0xee, sizeof(got));
		cr_assert_eq(swap_get(sh->s, ref, n, &got), 0);
		cr_assert(same(&page, &got));
		packed++;
	}
	cr_assert(packed > 0 && packed >= n / 3, "%u of %u pages of %s", packed, n, path);
	cr_assert_eq(stats().packed_pages + stats().filled_pages, packed);
	close(fd);
	end();
}

Test(swap, swap_real_pages_come_back)
{
	round_trip_of_file(BASH);
	round_trip_of_file("/proc/self/exe");
}

Test(swap, swap_text_pages_come_back)
{
	round_trip_of_file("mm/swap/log.c");
	round_trip_of_file("/usr/share/common-licenses/GPL-3");
}

Test(swap, swap_zero_and_pattern_pages_take_no_room)
{
	static const uint64_t values[] = { 0, 1, UINT64_MAX, 0x6b6b6b6b6b6b6b6b, 0, 1 };
	struct page page, got;
	uint64_t value;
	swap_ref_t ref[ARRAY_LEN(values)];

	begin(CAP);
	for (unsigned i = 0; i < ARRAY_LEN(values); i++) {
		pattern(&page, values[i]);
		cr_assert_eq(swap_put(sh->s, i, &page, &ref[i]), 0);
		cr_assert_neq(ref[i].v, 0);
	}
	for (unsigned i = 0; i < ARRAY_LEN(values); i++) {
		pattern(&page, values[i]);
		cr_assert(swap_is_filled(sh->s, ref[i], &value));
		cr_assert_eq(value, values[i]);
		cr_assert_eq(swap_get(sh->s, ref[i], i, &got), 0);
		cr_assert(same(&page, &got));
	}
	cr_assert_eq(stats().filled_pages, ARRAY_LEN(values));
	cr_assert_eq(stats().held_bytes, stats().table_bytes);
	for (unsigned i = 0; i < ARRAY_LEN(values); i++)
		swap_drop(sh->s, ref[i]);
	cr_assert_eq(stats().filled_pages, 0);
	end();
}

Test(swap, swap_nearly_filled_page_packed)
{
	static const size_t at[] = { 0, 7, 8, 9, 2048, PAGE_BYTES - 8, PAGE_BYTES - 1 };
	struct page page, got;
	uint64_t value;
	swap_ref_t ref;

	begin(CAP);
	for (unsigned i = 0; i < ARRAY_LEN(at); i++) {
		pattern(&page, 0);
		page.b[at[i]] = 1;
		cr_assert_eq(swap_put(sh->s, i, &page, &ref), 0);
		cr_assert_not(swap_is_filled(sh->s, ref, &value));
		cr_assert_eq(swap_get(sh->s, ref, i, &got), 0);
		cr_assert(same(&page, &got));
	}
	cr_assert_eq(stats().packed_pages, ARRAY_LEN(at));
	end();
}

/* Any bit of it: all its pages are errors, those of other rows and new ones are not. */
static void damage_row(uint64_t *word, unsigned bit, uint64_t value)
{
	const uint64_t before = counter_get(CTR_swap_bad_object);
	struct page page, got;
	swap_ref_t again;

	*word ^= (uint64_t)1 << bit;
	cr_assert_eq(swap_get(sh->s, (swap_ref_t){ value ? 2 : 1 }, 0, &got), -EIO);
	cr_assert_eq(counter_get(CTR_swap_bad_object), before + 1);
	pattern(&page, value);
	cr_assert_eq(swap_put(sh->s, 9, &page, &again), 0);
	cr_assert_eq(swap_get(sh->s, again, 9, &got), 0);
	cr_assert(same(&page, &got));
	swap_drop(sh->s, again);
	*word ^= (uint64_t)1 << bit;
}

Test(swap, swap_pattern_row_damaged_eio_and_taken_for_no_other_page)
{
	static const uint64_t values[] = { 0, 0x6b6b6b6b6b6b6b6b, 7 };
	swap_ref_t ref[ARRAY_LEN(values)];
	struct page page, got;

	begin(CAP);
	for (unsigned i = 0; i < ARRAY_LEN(values); i++) {
		pattern(&page, values[i]);
		cr_assert_eq(swap_put(sh->s, i, &page, &ref[i]), 0);
		cr_assert_eq(ref[i].v, i + 1);
	}
	for (unsigned bit = 0; bit < 64; bit++)
		for (unsigned i = 0; i < 2; i++) {
			damage_row(&sh->s->fill.rows[i].value, bit, values[i]);
			damage_row(&sh->s->fill.rows[i].check, bit, values[i]);
			cr_assert_eq(swap_get(sh->s, ref[2], 2, &got), 0);
			cr_assert(same(&page, &got));
		}
	for (unsigned i = 0; i < ARRAY_LEN(values); i++)
		swap_drop(sh->s, ref[i]);
	end();
}

Test(swap, swap_pattern_table_full_packed_instead)
{
	swap_ref_t ref[2 * FILL_ROWS];
	struct page page, got;

	begin(CAP);
	for (unsigned i = 0; i < ARRAY_LEN(ref); i++) {
		pattern(&page, i);
		cr_assert_eq(swap_put(sh->s, i, &page, &ref[i]), 0);
	}
	cr_assert_eq(stats().filled_pages, FILL_ROWS);
	cr_assert_eq(stats().packed_pages, FILL_ROWS);
	for (unsigned i = 0; i < ARRAY_LEN(ref); i++) {
		pattern(&page, i);
		cr_assert_eq(swap_get(sh->s, ref[i], i, &got), 0);
		cr_assert(same(&page, &got));
	}
	swap_drop(sh->s, ref[5]); /* its row is free for another value */
	pattern(&page, UINT64_MAX);
	cr_assert_eq(swap_put(sh->s, 5, &page, &ref[5]), 0);
	cr_assert_eq(stats().filled_pages, FILL_ROWS);
	cr_assert_eq(swap_get(sh->s, ref[5], 5, &got), 0);
	cr_assert(same(&page, &got));
	end();
}

Test(swap, swap_incompressible_page_refused)
{
	uint64_t state = 1, before = counter_get(CTR_swap_incompressible);
	struct page page;
	swap_ref_t ref = { 77 };

	begin(CAP);
	random_bytes(page.b, sizeof(page.b), &state);
	cr_assert_eq(swap_put(sh->s, 0, &page, &ref), -E2BIG);
	cr_assert_eq(ref.v, 77);
	cr_assert_eq(counter_get(CTR_swap_incompressible), before + 1);
	cr_assert_eq(stats().held_bytes, stats().table_bytes);
	/* either side of SWAP_PACKED_MAX */
	cr_assert_eq(put(1, 2, SWAP_PACKED_MAX - 64), 0);
	check_page(1);
	cr_assert_eq(put(2, 2, SWAP_PACKED_MAX + 64), -E2BIG);
	end();
}

static int by_value(const void *a, const void *b)
{
	const uint64_t *x = a, *y = b;

	return (*x > *y) - (*x < *y);
}

Test(swap, swap_refs_of_live_objects_unique)
{
	static uint64_t refs[PAGES];
	unsigned n;

	begin(CAP);
	n = put_until_full(1000);
	for (unsigned i = 0; i < n; i++)
		refs[i] = sh->ref[i].v;
	qsort(refs, n, sizeof(refs[0]), by_value);
	for (unsigned i = 1; i < n; i++)
		cr_assert_neq(refs[i], refs[i - 1]);
	end();
}

/* ---- cap, drop --------------------------------------------------------------- */

Test(swap, swap_cap_reached_enospc_and_nothing_lost)
{
	uint64_t before = counter_get(CTR_swap_no_room);
	unsigned n;

	begin(CAP); /* put() checks the cap at every step */
	n = put_until_full(2000);
	cr_assert_gt(n, 3 * MiB / 2100, "most of the cap can be used, but for the reserve");
	cr_assert_eq(counter_get(CTR_swap_no_room), before + 1);
	cr_assert_gt(stats().held_bytes + 3 * MiB, CAP);
	check_all();
	end();
}

Test(swap, swap_all_dropped_memory_given_back)
{
	unsigned n, order;

	begin(CAP);
	for (order = 0; order < 2; order++) {
		n = put_until_full(1500);
		cr_assert_gt(resident_bytes(), 3 * MiB);
		cr_assert_leq(resident_bytes(), stats().held_bytes);
		for (unsigned i = 0; i < n; i++)
			drop(order ? n - 1 - i : i);
		/* only the open one may be left, and cleaning gives that */
		cr_assert_leq(stats().held_bytes, stats().table_bytes + MiB);
		cr_assert_geq(swap_clean(sh->s, 0, 0), 0);
		cr_assert_eq(stats().held_bytes, stats().table_bytes);
		cr_assert_eq(resident_bytes(), 0);
		swap_verify(sh->s);
	}
	end();
}

Test(swap, swap_put_drop_repeated_takes_one_segment)
{
	begin(CAP);
	for (unsigned i = 0; i < 20000; i++) {
		cr_assert_eq(put(7, i, 1000), 0);
		drop(7);
	}
	cr_assert_eq(stats().held_bytes, stats().table_bytes + MiB);
	cr_assert_lt(resident_bytes(), 4 * PAGE_BYTES, "an empty open segment begins anew");
	end();
}

/* ---- cleaning ---------------------------------------------------------------- */

Test(swap, swap_clean_holes_closed_content_kept)
{
	uint64_t held;
	int64_t freed;
	unsigned n;

	begin(CAP);
	n = put_until_full(1000);
	for (unsigned i = 0; i < n; i++)
		if (i % 3)
			drop(i);
	held = stats().held_bytes;
	freed = swap_clean(sh->s, 20, UINT64_MAX);
	cr_assert_gt(freed, 0);
	cr_assert_lt(stats().held_bytes, held);
	cr_assert_geq((uint64_t)freed, held - stats().held_bytes, "the reserve was used, too");
	cr_assert_leq(resident_bytes(), stats().held_bytes);
	cr_assert_leq(stats().hole_bytes, 2 * MiB, "a fifth of 3 MiB and the open one's end");
	cr_assert_gt(sh->moves, 0);
	check_all();
	end();
}

Test(swap, swap_clean_emptiest_first)
{
	unsigned per_segment, n;

	begin(CAP);
	n = put_until_full(1000);
	per_segment = n / 4;
	for (unsigned i = 0; i < n; i++) /* little of the third is left */
		if (i / per_segment == 2 ? i % 20 != 0 : i % 4 == 0)
			drop(i);
	cr_assert_eq(swap_clean(sh->s, 38, UINT64_MAX), MiB);
	cr_assert_lt(sh->moves, 2 * per_segment / 20 + 30);
	check_all();
	end();
}

Test(swap, swap_clean_open_segment_left_alone)
{
	begin(CAP);
	for (unsigned i = 0; i < 100; i++)
		cr_assert_eq(put(i, i, 1000), 0);
	for (unsigned i = 0; i < 90; i++)
		drop(i);
	cr_assert_eq(swap_clean(sh->s, 0, UINT64_MAX), 0);
	cr_assert_eq(sh->moves, 0);
	check_all();
	end();
}

Test(swap, swap_clean_slack_allowed_nothing_moved)
{
	unsigned n;

	begin(CAP);
	n = put_until_full(1000);
	for (unsigned i = 0; i < n; i += 4)
		drop(i);
	cr_assert_eq(swap_clean(sh->s, 40, UINT64_MAX), 0);
	cr_assert_eq(sh->moves, 0);
	cr_assert_geq(swap_clean(sh->s, 10, UINT64_MAX), 0);
	cr_assert_gt(sh->moves, 0);
	check_all();
	end();
}

/* The reserve: whatever the pool's size, and however little at a time. */
static void full_pool_cleaned(uint64_t cap_bytes, uint64_t budget_bytes, unsigned drop_one_in)
{
	uint64_t began = 0;
	unsigned n, turns = 0;

	begin(cap_bytes);
	n = put_until_full(1300);
	for (unsigned i = 0; i < n; i += drop_one_in)
		drop(i);
	began = stats().packed_bytes;
	cr_assert_eq(put(0, 1, 2900), -ENOSPC);
	/* Puts that fail in between do not take the cleaner's reserve. */
	while (put(0, 1, 2900) == -ENOSPC) {
		cr_assert_geq(swap_clean(sh->s, 0, budget_bytes), 0);
		cr_assert_lt(turns++, 2 * cap_bytes / budget_bytes + 4);
	}
	cr_assert_geq(stats().packed_bytes, began);
	check_all();
	end();
}

Test(swap, swap_clean_full_pool_always_possible)
{
	static const uint64_t budgets[] = { 4 * KiB, 50 * KiB, 700 * KiB, 100 * MiB };

	for (uint64_t cap = 2 * MiB + 256 * KiB; cap < CAP; cap += MiB + 100 * KiB)
		for (unsigned i = 0; i < ARRAY_LEN(budgets); i++)
			for (unsigned one_in = 2; one_in < 100; one_in *= 4)
				full_pool_cleaned(cap, budgets[i], one_in);
}

Test(swap, swap_clean_move_refused_dropped_later_books_right)
{
	unsigned n;

	begin(CAP);
	n = put_until_full(1000);
	for (unsigned i = 0; i < n; i += 2)
		drop(i);
	sh->refuse_one_in = 3;
	sh->refuse_then_drop = true;
	for (unsigned i = 0; i < 5; i++) {
		cr_assert_geq(swap_clean(sh->s, 0, UINT64_MAX), 0);
		check_all(); /* what was refused is still where it was */
	}
	cr_assert_gt(sh->refused, 10);
	for (unsigned i = 0; i < n; i++)
		if (sh->ref[i].v)
			drop(i);
	swap_clean(sh->s, 0, 0);
	cr_assert_eq(stats().held_bytes, stats().table_bytes);
	end();
}

/* Cleaned a little at a time, while puts take what they get and drops make other
 * segments the emptiest: the cleaner always finds room to go on. */
Test(swap, swap_clean_reserve_never_taken_away)
{
	uint64_t random = seed_of_run();
	int64_t freed = 0;

	begin(3 * MiB + 300 * KiB);
	for (unsigned i = 0; i < PAGES; i += 2)
		put(i, i, 1000);
	for (unsigned turn = 0; turn < 3000; turn++) {
		unsigned owner = (unsigned)(mix(&random) % PAGES);
		int64_t rc;

		for (unsigned i = 0; i < 8; i++)
			if (sh->ref[(owner + i) % PAGES].v)
				drop((owner + i) % PAGES);
		rc = swap_clean(sh->s, 0, 16 * KiB);
		cr_assert_geq(rc, 0, "turn %u", turn);
		freed += rc;
		for (unsigned i = 0; i < 40; i++, owner = (owner + 1) % PAGES)
			if (!sh->ref[owner].v && put(owner, turn, 8 + mix(&random) % 2500))
				break;
	}
	cr_assert_gt(freed, 10 * (int64_t)MiB);
	check_all();
	end();
}

Test(swap, swap_clean_budget_spent_then_goes_on)
{
	unsigned n, turns = 0, before = 0;
	int64_t freed = 0;

	begin(CAP);
	n = put_until_full(1000);
	for (unsigned i = 0; i < n; i += 2)
		drop(i);
	while (!freed) {
		freed = swap_clean(sh->s, 10, 10 * KiB);
		cr_assert_geq(freed, 0);
		cr_assert_leq(sh->moves - before, 10);
		cr_assert_lt(turns++, 100);
		before = sh->moves;
	}
	cr_assert_gt(turns, 40, "half a segment, 10 KiB at a time");
	check_all();
	end();
}

Test(swap, swap_clean_move_refused_object_gone)
{
	unsigned n, left = 0;
	const struct segment *open;

	begin(CAP);
	n = put_until_full(1000);
	for (unsigned i = 0; i < n; i += 2)
		drop(i);
	sh->refuse_one_in = 3;
	cr_assert_gt(swap_clean(sh->s, 0, UINT64_MAX), 0);
	cr_assert_gt(sh->refused, 10);
	cr_assert_gt(sh->moves, 10);
	for (unsigned i = 0; i < n; i++)
		left += sh->ref[i].v != 0;
	cr_assert_eq(stats().packed_pages, left);
	open = &sh->s->pool.segments[sh->s->pool.open[POOL_HOT]];
	cr_assert_eq(open->live & 0xffffff, open->used_units, "a refused copy leaves no hole");
	check_all();
	end();
}

/* ---- damage ------------------------------------------------------------------ */

static uint8_t *object_bytes(swap_ref_t ref, size_t *n)
{
	struct packed k;

	cr_assert_eq(pool_find(&sh->s->pool, ref, &k), 0);
	*n = sizeof(struct object) + k.bytes;
	return sh->s->pool.base + (uintptr_t)(k.data - sizeof(struct object) - sh->s->pool.base);
}

static uint64_t bad_counts(void)
{
	return counter_get(CTR_swap_bad_checksum) + counter_get(CTR_swap_bad_object);
}

static void flip_each_byte(unsigned owner, uint8_t how)
{
	struct page got;
	size_t n;
	uint8_t *p = object_bytes(sh->ref[owner], &n);

	for (size_t i = 0; i < n; i++) {
		uint64_t before = bad_counts();

		p[i] ^= how;
		cr_assert_eq(swap_get(sh->s, sh->ref[owner], owner, &got), -EIO, "byte %zu", i);
		cr_assert_eq(bad_counts(), before + 1);
		p[i] ^= how;
	}
	check_page(owner);
}

Test(swap, swap_any_byte_damaged_eio)
{
	static const size_t noise[] = { 8, 300, 1000, 2800 };

	begin(CAP);
	for (unsigned i = 0; i < ARRAY_LEN(noise); i++) {
		cr_assert_eq(put(i, i, noise[i]), 0);
		for (unsigned bit = 0; bit < 8; bit++)
			flip_each_byte(i, (uint8_t)(1u << bit));
		flip_each_byte(i, 0xff);
	}
	end();
}

Test(swap, swap_object_overwritten_by_noise_eio)
{
	uint64_t state = seed_of_run();
	struct page got, keep;
	size_t n;
	uint8_t *p;

	begin(CAP);
	cr_assert_eq(put(0, 1, 2800), 0);
	p = object_bytes(sh->ref[0], &n);
	memcpy(&keep, p, n);
	for (unsigned i = 0; i < 20000; i++) {
		size_t from = i % 2 ? 0 : 8; /* with and without a sound tag */

		random_bytes(p + from, n - from, &state);
		cr_assert_eq(swap_get(sh->s, sh->ref[0], 0, &got), -EIO);
		memcpy(p, &keep, n);
	}
	check_page(0);
	end();
}

/* Bytes that no compressor made, under a checksum that is right: an error, or a
 * page, and nothing written beside it. */
Test(swap, swap_sound_checksum_over_nonsense_stays_inside)
{
	uint64_t state = seed_of_run(), errors = 0;
	struct { uint8_t before[64]; struct page got; uint8_t after[64]; } box;
	struct object *o;
	uint64_t who;
	size_t n;

	begin(CAP);
	cr_assert_eq(put(0, 1, 1000), 0);
	o = (struct object *)(void *)object_bytes(sh->ref[0], &n);
	n -= sizeof(*o);
	who = o->sum ^ XXH3_64bits(o->data, n);
	memset(&box, 0x77, sizeof(box));
	for (unsigned i = 0; i < 50000; i++) {
		o->data[mix(&state) % (i % 2 ? 40 : n)] = (uint8_t)mix(&state);
		if (i % 1000 == 0)
			random_bytes(o->data, n, &state);
		o->sum = XXH3_64bits(o->data, n) ^ who;
		errors += swap_get(sh->s, sh->ref[0], 0, &box.got) == -EIO;
		for (unsigned k = 0; k < sizeof(box.before); k++)
			cr_assert(box.before[k] == 0x77 && box.after[k] == 0x77);
	}
	cr_assert_gt(errors, 10000);
	end();
}

/* What decompresses well, to less than a page. */
Test(swap, swap_sound_checksum_over_short_page_eio)
{
	uint64_t state = 1, who;
	struct page noise, got;
	struct object *o;
	size_t n;
	int len, packed = 0;

	begin(CAP);
	cr_assert_eq(put(0, 1, 1000), 0);
	o = (struct object *)(void *)object_bytes(sh->ref[0], &n);
	n -= sizeof(*o);
	who = o->sum ^ XXH3_64bits(o->data, n);
	random_bytes(noise.b, sizeof(noise.b), &state);
	for (len = (int)n - 10; packed != (int)n; len++) {
		packed = LZ4_compress_default((char *)noise.b, (char *)got.b, len, sizeof(got.b));
		cr_assert_lt(len, (int)n);
	}
	memcpy(o->data, got.b, n);
	o->sum = XXH3_64bits(o->data, n) ^ who;
	cr_assert_eq(swap_get(sh->s, sh->ref[0], 0, &got), -EIO);
	end();
}

Test(swap, swap_wrong_owner_or_ref_eio)
{
	struct page got;

	begin(CAP);
	cr_assert_eq(put(3, 3, 500), 0);
	cr_assert_eq(put(4, 4, 500), 0);
	cr_assert_eq(swap_get(sh->s, sh->ref[3], 4, &got), -EIO);
	cr_assert_eq(swap_get(sh->s, sh->ref[4], 3, &got), -EIO);
	cr_assert_eq(swap_get(sh->s, sh->ref[4], 4 + ((uint64_t)1 << 32), &got), -EIO);
	for (uint64_t bit = 0; bit < 64; bit++) {
		swap_ref_t wrong = { sh->ref[3].v ^ (uint64_t)1 << bit };

		cr_assert_eq(swap_get(sh->s, wrong, 3, &got), -EIO, "bit %d", (int)bit);
	}
	cr_assert_eq(swap_get(sh->s, (swap_ref_t){ 0 }, 3, &got), -EIO);
	cr_assert_eq(swap_get(sh->s, (swap_ref_t){ UINT64_MAX }, 3, &got), -EIO);
	end();
}

/* A sound object at another page's place, or of another time at this place. */
Test(swap, swap_object_of_another_copied_over_eio)
{
	struct page got;
	size_t n3, n4;
	uint8_t *p3, *p4;

	begin(CAP);
	cr_assert_eq(put(3, 3, 500), 0);
	cr_assert_eq(put(4, 4, 500), 0);
	p3 = object_bytes(sh->ref[3], &n3);
	p4 = object_bytes(sh->ref[4], &n4);
	cr_assert_eq(n3, n4);
	memcpy(p3 + 8, p4 + 8, n4 - 8); /* all but the tag */
	cr_assert_eq(swap_get(sh->s, sh->ref[3], 3, &got), -EIO);
	memcpy(p3, p4, n4);
	cr_assert_eq(swap_get(sh->s, sh->ref[3], 3, &got), -EIO);
	memset(p3, 0, n3);
	cr_assert_eq(swap_get(sh->s, sh->ref[3], 3, &got), -EIO);
	swap_destroy(&sh->s);
	end();
}

Test(swap, swap_damaged_header_others_kept)
{
	uint64_t before;
	unsigned n;
	size_t bytes;
	uint8_t *p;

	begin(CAP);
	n = put_until_full(1000);
	for (unsigned i = 0; i < n; i += 2)
		drop(i);
	p = object_bytes(sh->ref[31], &bytes);
	p[5] ^= 0x10; /* its length */
	for (unsigned i = 0; i < 8; i++)
		swap_clean(sh->s, 0, UINT64_MAX);
	before = counter_get(CTR_swap_bad_object);
	cr_assert_gt(before, 0);
	swap_drop(sh->s, sh->ref[31]);
	cr_assert_eq(counter_get(CTR_swap_bad_object), before + 1);
	sh->ref[31].v = 0;
	cr_assert_gt(sh->moves, n / 4, "the other segments were cleaned");
	for (unsigned i = 0; i < n; i++)
		if (sh->ref[i].v)
			check_page(i);
	end();
}

/* ---- system calls that fail -------------------------------------------------- */

static unsigned scenario_puts(void)
{
	unsigned n = put_until_full(1200);

	for (unsigned i = 0; i < n; i++)
		if (i % 4)
			drop(i);
	swap_clean(sh->s, 5, UINT64_MAX);
	check_all();
	for (unsigned i = n; i < PAGES && put(i, i, 700) == 0; i++)
		;
	check_all();
	for (unsigned i = 0; i < PAGES; i++)
		if (sh->ref[i].v && i % 8)
			drop(i);
	swap_clean(sh->s, 0, UINT64_MAX);
	check_all();
	return n;
}

Test(swap, swap_any_call_fails_error_or_every_page_kept)
{
	unsigned n, ended = 0;

	for (n = 1; !ended; n++) {
		calls = 0;
		fail_at = n;
		if (try_create(CAP) == 0)
			scenario_puts();
		swap_destroy(&sh->s);
		end();
		ended = calls < n;
		cr_assert_lt(n, 1000);
	}
	fail_at = 0;
	cr_assert_gt(n, 12, "%u calls could fail", n);
}

Test(swap, swap_discards_fail_held_until_they_work)
{
	uint64_t failed = counter_get(CTR_swap_discard_failed);
	unsigned n;

	begin(CAP);
	discards_fail = true;
	n = put_until_full(1500);
	for (unsigned turn = 0; turn < 4; turn++) { /* what is held is used again */
		for (unsigned i = 0; i < n; i++)
			drop(i);
		cr_assert_gt(stats().held_bytes, stats().table_bytes + 3 * MiB);
		cr_assert_geq(put_until_full(1500), n);
		check_all();
	}
	for (unsigned i = 0; i < PAGES; i++)
		if (sh->ref[i].v)
			drop(i);
	cr_assert_lt(swap_clean(sh->s, 0, UINT64_MAX), 0);
	cr_assert_gt(counter_get(CTR_swap_discard_failed), failed);
	swap_verify(sh->s);
	discards_fail = false;
	cr_assert_gt(swap_clean(sh->s, 0, UINT64_MAX), 3 * (int64_t)MiB);
	cr_assert_eq(stats().held_bytes, stats().table_bytes);
	cr_assert_eq(resident_bytes(), 0);
	end();
}

/* ---- at random --------------------------------------------------------------- */

static void random_put(unsigned owner)
{
	struct swap_stats st = stats();
	int rc;

	if (sh->ref[owner].v)
		return;
	rc = put(owner, mix(&sh->random), 0);
	cr_assert(rc == 0 || rc == -E2BIG || rc == -ENOSPC);
	cr_assert_eq(rc == -E2BIG, sh->seed[owner] % 24 == 2);
	if (rc == -ENOSPC)
		cr_assert_gt(st.held_bytes + 3 * MiB, sh->cap_bytes, "room, and yet refused");
}

static void random_step(void)
{
	unsigned owner = (unsigned)(mix(&sh->random) % PAGES), what = mix(&sh->random) % 100;

	/* Between mostly full and mostly empty, and back. */
	unsigned drops = sh->random / 7 % 2 ? 20 : 35;

	if (what < 45)
		random_put(owner);
	else if (what < 45 + drops && sh->ref[owner].v)
		drop(owner);
	else if (what == 99)
		swap_clean(sh->s, mix(&sh->random) % 60, mix(&sh->random) % (2 * MiB));
	else if (sh->ref[owner].v)
		check_page(owner);
	discards_fail = what == 98 ? mix(&sh->random) % 3 == 0 : discards_fail;
}

Test(swap, swap_random_operations_equal_to_shadow)
{
	uint64_t ops = env_number("BRIM_SWAP_OPS", 400000);

	begin(CAP);
	sh->random = seed_of_run();
	sh->refuse_one_in = 50;
	for (uint64_t i = 0; i < ops; i++) {
		random_step();
		check_cap();
		if (i % 20000 == 0)
			check_all();
	}
	check_all();
	cr_assert_gt(sh->moves, ops / 100);
	end();
}

/* ---- many threads ------------------------------------------------------------ */

#define OWNERS 1500u

static void crowd_reclaim(struct crowd *w, uint64_t until_ns)
{
	uint64_t random = seed_of_run();
	struct swap_stats st;

	while (now_ns() < until_ns) {
		crowd_put_some(w, &random);
		if (mix(&random) % 4 == 0)
			swap_clean(w->s, mix(&random) % 30, mix(&random) % MiB);
		swap_stats(w->s, &st);
		cr_assert_leq(st.held_bytes, 3 * MiB);
	}
}

Test(swap, swap_many_threads_content_and_books_right)
{
	struct crowd w = { .owners = OWNERS, .readers = 3, .make = any_page, .drop_one_in = 2 };
	struct swap_config cfg = { .max_pages = OWNERS, .cap_bytes = 3 * MiB,
				   .move = crowd_moved, .move_ctx = &w };
	struct swap_stats st;

	crowd_gather(&w);
	cr_assert_eq(swap_create(&w.s, &cfg, NULL), 0);
	crowd_run(&w, crowd_reclaim);
	cr_assert(w.gets > 100 && w.drops > 100 && w.moved > 0);
	swap_clean(w.s, 0, 0);
	swap_stats(w.s, &st);
	cr_assert_eq(st.held_bytes, st.table_bytes);
	swap_destroy(&w.s);
	free(w.cells);
}

/* The last drops of a segment, which is then the emptiest, while the cleaner does
 * nothing but choose and pin. */
struct race {
	_Atomic bool done;
	unsigned n;
};

static void *race_drops(void *arg)
{
	struct race *r = arg;

	/* From the end: the cleaner, which walks from the start, meets a live one at
	 * once, and spends its time choosing. */
	for (unsigned i = r->n; i-- > 0;)
		swap_drop(sh->s, sh->ref[i]);
	r->done = true;
	return NULL;
}

Test(swap, swap_last_drop_races_choice_of_cleaner_freed_once)
{
	uint64_t rounds = env_number("BRIM_SWAP_ROUNDS", 400);

	begin(3 * MiB + 100 * KiB);
	for (uint64_t i = 0; i < rounds; i++) {
		struct race r = { .n = put_until_full(2900) };
		pthread_t t;

		cr_assert_eq(pthread_create(&t, NULL, race_drops, &r), 0);
		while (!r.done)
			cr_assert_geq(swap_clean(sh->s, 0, 0), 0);
		pthread_join(t, NULL);
		swap_clean(sh->s, 0, 0);
		swap_verify(sh->s);
		cr_assert_eq(stats().held_bytes, stats().table_bytes);
	}
	end();
}
