/*
 * mm/swap/delta.c, base.c: pages packed against similar ones come back as they were or with
 * an error (swap.h I1), whatever happens to their bases: dropped first, moved,
 * damaged, out of rows; rows, orphans and counts add up (base.c I1, I2; delta.c I1).
 *
 * Seeds are printed; BRIM_SEED=N repeats a run, BRIM_SWAP_OPS and
 * BRIM_SWAP_SECONDS make the random and the concurrent test longer.
 */
#include "tests/unit/crowd.h"

#define PAGES 8192u
#define CAP (8 * MiB)
#define FAMILIES 96u

/* ---- pages that look alike ----------------------------------------------------- */

static void random_words(struct page *page, size_t from, size_t n, uint64_t *state)
{
	random_bytes(page->b + from, n, state);
}

/* The first of its family: `noise` bytes of its own, then little. */
static void first_of(struct page *page, uint64_t family, size_t noise)
{
	uint64_t state = family * 77 + 1;

	memset(page->b, (int)(family % 200 + 1), sizeof(page->b));
	random_words(page, 0, noise, &state);
}

/* One of its family: a few words of it changed. */
static void member_of(struct page *page, uint64_t family, uint64_t member)
{
	uint64_t state = member * 1000003 + family;

	first_of(page, family, 1600);
	for (uint64_t n = member % 12; n > 0; n--)
		random_words(page, mix(&state) % (PAGE_BYTES / 8) * 8, 8, &state);
}

/* What a seed stands for: mostly families, some pages of no family, some filled. */
static void any_page(struct page *page, uint64_t seed)
{
	uint64_t state = seed, kind = seed % 16;

	if (kind == 0)
		memset(page->b, (int)(seed % 3), sizeof(page->b));
	else if (kind == 1)
		random_words(page, 0, PAGE_BYTES, &state);
	else if (kind == 2)
		first_of(page, 1000 + seed, 2000);
	else
		member_of(page, mix(&state) % FAMILIES, mix(&state));
}

/* ---- a pool with a shadow -------------------------------------------------------- */

static const struct mm_host host = {
	.mmap = host_mmap, .munmap = host_munmap, .madvise = host_madvise,
};

struct shadow {
	struct swap *s;
	swap_ref_t ref[PAGES]; /* 0: not in it */
	struct page *page;     /* [PAGES] what was put */
	unsigned refuse_one_in;
	bool refuse_then_drop; /* the owner says no first, and drops later */
	uint64_t random;
	unsigned moves, refused;
};

static struct shadow *sh;

static struct swap_stats stats(void)
{
	struct swap_stats st;

	swap_stats(sh->s, &st);
	cr_assert_eq(st.packed_bytes + st.hole_bytes + st.table_bytes, st.held_bytes);
	cr_assert(!sh->s->cfg.cap_bytes || st.held_bytes <= sh->s->cfg.cap_bytes);
	return st;
}

static bool moved(void *ctx, uint64_t owner, swap_ref_t from, swap_ref_t to)
{
	struct shadow *w = ctx;

	cr_assert_lt(owner, PAGES);
	cr_assert_eq(w->ref[owner].v, from.v);
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

static int try_begin(uint64_t cap_bytes, enum swap_delta delta)
{
	struct swap_config cfg = { .max_pages = PAGES, .cap_bytes = cap_bytes, .delta = delta,
				   .host = &host, .move = moved };
	struct err e = { "" };
	int rc;

	sh = calloc(1, sizeof(*sh));
	cr_assert_not_null(sh);
	sh->page = calloc(PAGES, sizeof(*sh->page));
	cr_assert_not_null(sh->page);
	cfg.move_ctx = sh;
	rc = swap_create(&sh->s, &cfg, &e);
	cr_assert_eq(rc == 0, e.msg[0] == '\0', "%s", e.msg);
	cr_assert_eq(rc == 0, sh->s != NULL);
	return rc;
}

static void begin(enum swap_delta delta)
{
	cr_assert_eq(try_begin(CAP, delta), 0);
}

static void end_unverified(void)
{
	swap_destroy(&sh->s);
	free(sh->page);
	free(sh);
	sh = NULL;
}

static void end(void)
{
	swap_verify(sh->s);
	end_unverified();
}

/* Puts what is at sh->page[owner]. */
static int put(unsigned owner)
{
	swap_ref_t ref = { 0 };
	int rc = swap_put(sh->s, owner, &sh->page[owner], &ref);

	cr_assert_eq(rc == 0, ref.v != 0);
	sh->ref[owner] = ref;
	(void)stats();
	return rc;
}

static void put_member(unsigned owner, uint64_t family, uint64_t member)
{
	member_of(&sh->page[owner], family, member);
	cr_assert_eq(put(owner), 0);
}

static void check(unsigned owner)
{
	struct page got;

	memset(&got, 0xee, sizeof(got));
	cr_assert_eq(swap_get(sh->s, sh->ref[owner], owner, &got), 0, "page %u", owner);
	cr_assert(same(&sh->page[owner], &got), "page %u", owner);
}

static void check_all(void)
{
	struct swap_stats st = stats();
	uint64_t pages = 0;

	for (unsigned i = 0; i < PAGES; i++) {
		if (!sh->ref[i].v)
			continue;
		check(i);
		pages++;
	}
	cr_assert_eq(pages, st.filled_pages + st.packed_pages);
	swap_verify(sh->s);
}

static void drop(unsigned owner)
{
	swap_drop(sh->s, sh->ref[owner]);
	sh->ref[owner].v = 0;
}

static void drop_all(void)
{
	for (unsigned i = 0; i < PAGES; i++)
		if (sh->ref[i].v)
			drop(i);
	while (swap_clean(sh->s, 0, UINT64_MAX) > 0)
		;
}

/* Nothing of anything is left, whoever dropped in what order. */
static void check_empty(void)
{
	struct swap_stats st = stats();
	const struct delta *d = sh->s->delta;

	swap_verify(sh->s);
	cr_assert_eq(st.packed_pages + st.packed_bytes + st.filled_pages, 0);
	cr_assert_eq(st.delta_pages + st.delta_saved_bytes + st.orphan_bytes, 0);
	cr_assert_eq(atomic_load(&d->base_rows) + atomic_load(&d->base_bytes), 0);
	cr_assert_eq(atomic_load(&d->orphan_pages), 0);
}

static struct packed object_of(unsigned owner)
{
	struct packed k;

	cr_assert_eq(pool_find(&sh->s->pool, sh->ref[owner], &k), 0);
	return k;
}

/* ---- put and get ------------------------------------------------------------------ */

static void similar_round_trip(enum swap_delta kind)
{
	begin(kind);
	for (unsigned i = 0; i < 12; i++)
		put_member(i, 5, i);
	cr_assert_geq(stats().delta_pages, 10);
	cr_assert_gt(stats().delta_saved_bytes, 10 * 1000);
	cr_assert_eq(stats().packed_pages, 12);
	cr_assert_lt(stats().packed_bytes, 2 * 1700 + 10 * 300);
	check_all();
	drop_all();
	check_empty();
	end();
}

/* How many hints are found for one who shares `shared` features. */
static unsigned found_with(unsigned shared, unsigned shared_min)
{
	struct features one = { .n = FEATURES }, other = { .n = FEATURES };
	uint64_t hints[4];
	struct similar m;
	unsigned n;

	for (unsigned i = 0; i < FEATURES; i++) {
		one.hash[i] = (i + 1) * 1000;
		other.hash[i] = i < shared ? one.hash[i] : one.hash[i] + 1;
	}
	cr_assert_eq(similar_init(&m, 64 * KiB, &mm_host_linux), 0);
	m.shared_min = shared_min;
	similar_add(&m, &one, 77);
	n = similar_find(&m, &other, hints, 4);
	cr_assert(n == 0 || (n == 1 && hints[0] == 77));
	similar_fini(&m);
	return n;
}

Test(delta, delta_page_that_shares_too_few_features_not_found)
{
	for (unsigned least = 1; least <= FEATURES; least++) {
		cr_assert_eq(found_with(least - 1, least), 0);
		cr_assert_eq(found_with(least, least), 1);
	}
	begin(SWAP_DELTA_FAST);
	cr_assert_eq(sh->s->delta->similar.shared_min, 2);
	end();
}

Test(delta, delta_similar_pages_small_and_come_back)
{
	similar_round_trip(SWAP_DELTA_FAST);
	similar_round_trip(SWAP_DELTA_SMALL);
	similar_round_trip(SWAP_DELTA_DEFAULT);
}

Test(delta, delta_saved_bytes_what_plain_takes_more)
{
	uint64_t plain;

	begin(SWAP_DELTA_OFF);
	for (unsigned i = 0; i < 300; i++)
		put_member(i, i % 10, i);
	cr_assert_eq(stats().delta_pages, 0);
	plain = stats().packed_bytes;
	end();
	begin(SWAP_DELTA_FAST);
	for (unsigned i = 0; i < 300; i++)
		put_member(i, i % 10, i);
	cr_assert_gt(stats().delta_pages, 250);
	cr_assert_eq(stats().packed_bytes + stats().delta_saved_bytes, plain);
	end();
}

Test(delta, delta_page_that_does_not_pack_alone_accepted)
{
	uint64_t state = 9, before = counter_get(CTR_swap_incompressible);

	begin(SWAP_DELTA_SMALL);
	first_of(&sh->page[0], 1, 2800);
	first_of(&sh->page[1], 1, 2800);
	random_words(&sh->page[1], 2800, 900, &state);
	cr_assert_eq(put(1), -E2BIG, "alone it must not pack");
	cr_assert_eq(counter_get(CTR_swap_incompressible), before + 1);
	cr_assert_eq(put(0), 0);
	cr_assert_eq(put(1), 0);
	cr_assert_eq(stats().delta_pages, 1);
	check_all();
	end();
}

Test(delta, delta_little_gain_put_plain)
{
	uint64_t state = 1, before = counter_get(CTR_swap_delta_no_gain);

	begin(SWAP_DELTA_SMALL);
	first_of(&sh->page[0], 3, 2400);
	first_of(&sh->page[1], 3, 2400);
	random_words(&sh->page[1], 240, 2160, &state); /* a tenth is left of the family */
	cr_assert_eq(put(0), 0);
	cr_assert_eq(put(1), 0);
	cr_assert_eq(stats().delta_pages, 0);
	cr_assert_leq(counter_get(CTR_swap_delta_no_gain), before + 1);
	check_all();
	end();
}

Test(delta, delta_of_delta_never_made)
{
	begin(SWAP_DELTA_FAST);
	for (unsigned i = 0; i < 200; i++)
		put_member(i, 1, i);
	for (unsigned i = 0; i < 200; i++) {
		struct packed k = object_of(i);

		cr_assert(!k.is_delta || k.state == OBJECT_LIVE);
	}
	cr_assert_gt(stats().delta_pages, 190);
	end();
}

Test(delta, delta_switched_off_or_tiny_cap_none_made)
{
	struct swap_config bad = { .max_pages = PAGES, .delta = SWAP_DELTA_SMALL + 1 };
	struct swap *s = NULL;
	struct err e = { "" };

	cr_assert_eq(swap_create(&s, &bad, &e), -EINVAL);
	cr_assert(strstr(e.msg, "swap: "), "%s", e.msg);
	for (int i = 0; i < 2; i++) {
		cr_assert_eq(i ? try_begin(CAP - 1, SWAP_DELTA_SMALL) :
				 try_begin(CAP, SWAP_DELTA_OFF), 0);
		cr_assert_null(sh->s->delta);
		for (unsigned p = 0; p < 50; p++)
			put_member(p, 1, p);
		cr_assert_eq(stats().delta_pages, 0);
		check_all();
		end();
	}
}

/* ---- bases that go ------------------------------------------------------------------ */

Test(delta, delta_base_dropped_first_kept_as_orphan_until_last_delta)
{
	for (unsigned order = 0; order < 2; order++) {
		begin(SWAP_DELTA_FAST);
		for (unsigned i = 0; i < 4; i++)
			put_member(i, 1, i + 1);
		cr_assert_eq(stats().delta_pages, 3);
		cr_assert_not(delta_lets_go(sh->s->delta, &(struct packed){ .owner = 0,
								 .state = OBJECT_BASE }));
		drop(0);
		cr_assert_eq(stats().packed_pages, 3);
		cr_assert_gt(stats().orphan_bytes, 1600);
		check_all();
		drop(order ? 1 : 3);
		drop(2);
		cr_assert_gt(stats().orphan_bytes, 1600);
		check_all();
		drop(order ? 3 : 1);
		check_empty();
		end();
	}
}

Test(delta, delta_orphan_takes_no_new_delta)
{
	begin(SWAP_DELTA_FAST);
	put_member(0, 1, 1);
	put_member(1, 1, 2);
	drop(0);
	put_member(2, 1, 3);
	cr_assert_eq(stats().delta_pages, 1, "a dropped page must not live on for new ones");
	put_member(3, 1, 4);
	cr_assert_eq(stats().delta_pages, 2);
	check_all();
	end();
}

/* Pages of a family amid others that are then dropped, so that cleaning moves all. */
static void put_sparse(void)
{
	for (unsigned i = 0; i < 2000; i++) {
		if (i % 10)
			first_of(&sh->page[i], 5000 + i, 1500);
		else
			member_of(&sh->page[i], i / 10 % 20, i);
		cr_assert_eq(put(i), 0);
	}
	for (unsigned i = 0; i < 2000; i++)
		if (i % 10)
			drop(i);
}

Test(delta, delta_bases_orphans_and_deltas_moved_content_kept)
{
	begin(SWAP_DELTA_FAST);
	put_sparse();
	for (unsigned i = 0; i < 100; i += 10)
		drop(i); /* bases */
	cr_assert_gt(stats().orphan_bytes, 9 * 1600);
	cr_assert_gt(swap_clean(sh->s, 0, UINT64_MAX), 0);
	cr_assert_gt(sh->moves, 100);
	check_all();
	drop_all();
	check_empty();
	end();
}

Test(delta, delta_owner_refuses_move_content_kept)
{
	for (int later = 0; later < 2; later++) {
		begin(SWAP_DELTA_FAST);
		put_sparse();
		sh->refuse_one_in = 3;
		sh->refuse_then_drop = later;
		(void)swap_clean(sh->s, 0, UINT64_MAX);
		cr_assert(sh->moves > 20 && sh->refused > 20);
		check_all();
		sh->refuse_one_in = 0;
		drop_all();
		check_empty();
		end();
	}
}

Test(delta, delta_base_without_deltas_plain_again_once_moved)
{
	begin(SWAP_DELTA_FAST);
	put_sparse();
	cr_assert_geq(atomic_load(&sh->s->delta->base_rows), 20);
	for (unsigned i = 200; i < 2000; i += 10)
		drop(i); /* deltas */
	cr_assert_eq(stats().delta_pages, 0);
	cr_assert_eq(object_of(0).state, OBJECT_BASE);
	cr_assert_gt(swap_clean(sh->s, 0, UINT64_MAX), 0);
	cr_assert_eq(object_of(0).state, OBJECT_LIVE);
	cr_assert_eq(object_of(0).owner, 0);
	cr_assert_eq(atomic_load(&sh->s->delta->base_rows), 0);
	cr_assert_eq(atomic_load(&sh->s->delta->base_bytes), 0);
	check_all();
	end();
}

/* ---- bounds --------------------------------------------------------------------------- */

Test(delta, delta_no_row_or_bound_reached_put_plain)
{
	for (int bound = 0; bound < 2; bound++) {
		uint64_t before = counter_get(CTR_swap_delta_no_base);

		begin(SWAP_DELTA_FAST);
		if (bound)
			sh->s->delta->bases_most_bytes = 4 * 1700;
		else
			sh->s->delta->rows_max = 4;
		for (unsigned i = 0; i < 100; i++)
			put_member(i, i % 10, i);
		cr_assert(stats().delta_pages >= 30 && stats().delta_pages <= 36, "%" PRIu64,
			  stats().delta_pages);
		cr_assert_gt(counter_get(CTR_swap_delta_no_base), before);
		check_all();
		/* rows given back serve again */
		drop_all();
		check_empty();
		for (unsigned i = 0; i < 10; i++)
			put_member(i, 77, i);
		cr_assert_eq(stats().delta_pages, 9);
		check_all();
		end();
	}
}

Test(delta, delta_many_orphans_no_new_bases)
{
	begin(SWAP_DELTA_FAST);
	sh->s->delta->bases_most_bytes = 100 * 1700; /* a quarter of it: 25 orphans */
	for (unsigned i = 0; i < 80; i++)
		put_member(i, i / 2, i);
	for (unsigned i = 0; i < 80; i += 2)
		drop(i);
	for (unsigned i = 80; i < 100; i++)
		put_member(i, 200 + i / 2, i);
	cr_assert_eq(stats().delta_pages, 40);
	drop(1); /* and 14 more */
	for (unsigned i = 3; i < 33; i += 2)
		drop(i);
	for (unsigned i = 100; i < 110; i++)
		put_member(i, 200 + i / 2, i);
	cr_assert_eq(stats().delta_pages, 40 - 16 + 5);
	check_all();
	end();
}

Test(delta, delta_index_small_and_full_content_right)
{
	begin(SWAP_DELTA_FAST);
	sh->s->delta->similar.bytes = 64; /* one bucket for all */
	for (unsigned i = 0; i < 400; i++)
		put_member(i, i % 40, i);
	check_all();
	end();
}

Test(delta, delta_pool_full_enospc_and_nothing_lost)
{
	unsigned n = 0;

	begin(SWAP_DELTA_FAST);
	for (; n < PAGES; n++) {
		if (n % 3)
			member_of(&sh->page[n], n % FAMILIES, n);
		else
			first_of(&sh->page[n], 3000 + n, 2600);
		if (put(n))
			break;
	}
	cr_assert_lt(n, PAGES);
	cr_assert_eq(put(n), -ENOSPC);
	check_all();
	drop_all();
	check_empty();
	end();
}

/* ---- damage ---------------------------------------------------------------------------- */

/* Every byte of object `hurt` in turn: `reader` is an error, never other bytes. */
static void damage_each_byte(unsigned hurt, unsigned reader)
{
	struct packed k = object_of(hurt);
	uint8_t *at = sh->s->pool.base + (k.data - sh->s->pool.base) - sizeof(struct object);
	struct page got;

	for (size_t i = 0; i < sizeof(struct object) + k.bytes; i++) {
		uint64_t before = counter_get(CTR_swap_bad_checksum) +
				  counter_get(CTR_swap_bad_object);

		at[i] ^= (uint8_t)(1u << i % 8);
		cr_assert_eq(swap_get(sh->s, sh->ref[reader], reader, &got), -EIO, "byte %zu", i);
		cr_assert_eq(counter_get(CTR_swap_bad_checksum) +
			     counter_get(CTR_swap_bad_object), before + 1);
		at[i] ^= (uint8_t)(1u << i % 8);
		check(reader);
	}
}

Test(delta, delta_damaged_byte_of_delta_or_base_an_error)
{
	begin(SWAP_DELTA_SMALL);
	put_member(0, 1, 1);
	put_member(1, 1, 5);
	cr_assert(object_of(1).is_delta);
	cr_assert_eq(object_of(0).state, OBJECT_BASE);
	damage_each_byte(1, 1);
	damage_each_byte(0, 1);
	damage_each_byte(0, 0);
	end();
}

Test(delta, delta_sound_but_wrong_base_an_error)
{
	struct base_row *rows;
	struct page got;

	begin(SWAP_DELTA_FAST);
	for (unsigned i = 0; i < 8; i++)
		put_member(i, i / 4, i);
	cr_assert_eq(stats().delta_pages, 6);
	rows = sh->s->delta->rows;
	atomic_store(&rows[0].ref, atomic_load(&rows[1].ref));
	cr_assert_eq(swap_get(sh->s, sh->ref[1], 1, &got), -EIO);
	atomic_store(&rows[0].ref, sh->ref[7].v); /* a delta */
	cr_assert_eq(swap_get(sh->s, sh->ref[1], 1, &got), -EIO);
	atomic_store(&rows[0].ref, sh->ref[0].v);
	rows[0].sum ^= 1;
	cr_assert_eq(swap_get(sh->s, sh->ref[1], 1, &got), -EIO);
	rows[0].sum ^= 1;
	check_all();
	end();
}

Test(delta, delta_damaged_base_taken_for_no_new_delta)
{
	begin(SWAP_DELTA_FAST);
	put_member(0, 1, 1);
	sh->s->pool.base[sizeof(struct object) + 100] ^= 1;
	put_member(1, 1, 2);
	cr_assert_eq(stats().delta_pages, 0);
	check(1);
	end();
}

Test(delta, delta_damaged_head_dropped_without_harm)
{
	struct packed k;

	begin(SWAP_DELTA_FAST);
	for (unsigned i = 0; i < 3; i++)
		put_member(i, 1, i);
	k = object_of(1);
	sh->s->pool.base[k.data - sh->s->pool.base] ^= 1; /* another row */
	drop(1);
	check(2);
	drop(0);
	check(2);
	drop(2);
	cr_assert_gt(stats().orphan_bytes, 0, "its base has no one to let it go");
	end_unverified();
}

/* ---- calls that fail --------------------------------------------------------------------- */

Test(delta, delta_each_host_call_failing_error_or_nothing_lost)
{
	unsigned last;

	for (fail_at = 1;; fail_at++) {
		calls = 0;
		if (try_begin(CAP, SWAP_DELTA_SMALL)) {
			end_unverified();
			continue;
		}
		put_sparse();
		(void)swap_clean(sh->s, 0, UINT64_MAX);
		check_all();
		drop_all();
		(void)swap_clean(sh->s, 0, UINT64_MAX);
		check_empty();
		end();
		last = calls;
		if (last < fail_at)
			break;
	}
	cr_assert_gt(fail_at, 8);
	fail_at = 0;
}

Test(delta, delta_discards_refused_orphans_leave_no_trace)
{
	begin(SWAP_DELTA_FAST);
	discards_fail = true;
	put_sparse();
	(void)swap_clean(sh->s, 0, UINT64_MAX);
	check_all();
	for (unsigned i = 0; i < 2000; i += 10)
		drop(i);
	check_empty();
	discards_fail = false;
	while (swap_clean(sh->s, 0, UINT64_MAX) > 0)
		;
	cr_assert_eq(stats().held_bytes, stats().table_bytes);
	end();
}

/* ---- random operations against a reference -------------------------------------------------- */

static void random_op(uint64_t *random)
{
	unsigned owner = (unsigned)(mix(random) % PAGES);
	uint64_t what = mix(random) % 100;

	if (what == 0) {
		sh->refuse_one_in = mix(random) % 2 ? 0 : 7;
		sh->refuse_then_drop = mix(random) % 2;
		(void)swap_clean(sh->s, (unsigned)(mix(random) % 40), mix(random) % (4 * MiB));
	} else if (sh->ref[owner].v) {
		check(owner);
		if (what < 60)
			drop(owner);
	} else {
		int rc;

		any_page(&sh->page[owner], mix(random));
		rc = put(owner);
		cr_assert(!rc || rc == -E2BIG || rc == -ENOSPC);
	}
}

Test(delta, delta_random_operations_match_reference)
{
	uint64_t random = seed_of_run(), ops = env_number("BRIM_SWAP_OPS", 60000);
	uint64_t orphans = counter_get(CTR_swap_orphans);

	begin(random % 2 ? SWAP_DELTA_FAST : SWAP_DELTA_SMALL);
	sh->random = random;
	for (uint64_t i = 0; i < ops; i++) {
		random_op(&random);
		if (i % 4096 == 0)
			check_all();
	}
	cr_assert_gt(stats().delta_pages, 100);
	cr_assert(sh->moves > 100 && counter_get(CTR_swap_orphans) > orphans + 100);
	check_all();
	drop_all();
	check_empty();
	end();
}

/* ---- many threads ---------------------------------------------------------------------------- */

#define OWNERS 4096u
static void crowd_reclaim(struct crowd *w, uint64_t until_ns)
{
	uint64_t random = seed_of_run();

	for (unsigned i = 0; i < OWNERS; i++)
		crowd_put(w, i, mix(&random));
	while (now_ns() < until_ns || !w->moved) { /* a busy machine takes longer */
		unsigned first = (unsigned)(mix(&random) % OWNERS);

		for (unsigned i = 0; i < 64; i++)
			crowd_put(w, (first + i) % OWNERS, mix(&random));
		if (mix(&random) % 2 == 0)
			swap_clean(w->s, mix(&random) % 10, mix(&random) % MiB);
	}
}

Test(delta, delta_many_threads_content_and_books_right)
{
	uint64_t orphans = counter_get(CTR_swap_orphans), deltas = counter_get(CTR_swap_delta_puts);
	struct crowd w = { .owners = OWNERS, .make = any_page, .drop_one_in = 3 };
	struct swap_config cfg = { .max_pages = OWNERS, .cap_bytes = CAP, .move = crowd_moved,
				   .move_ctx = &w, .delta = SWAP_DELTA_FAST };
	struct swap_stats st;

	crowd_gather(&w);
	cr_assert_eq(swap_create(&w.s, &cfg, NULL), 0);
	crowd_run(&w, crowd_reclaim);
	orphans = counter_get(CTR_swap_orphans) - orphans;
	deltas = counter_get(CTR_swap_delta_puts) - deltas;
	fprintf(stderr, "%" PRIu64 " deltas, %" PRIu64 " orphans\n", deltas, orphans);
	cr_assert(w.gets > 100 && w.moved > 0 && deltas > 100 && orphans > 10);
	while (swap_clean(w.s, 0, UINT64_MAX) > 0)
		;
	swap_stats(w.s, &st);
	cr_assert_eq(st.held_bytes, st.table_bytes);
	cr_assert_eq(st.orphan_bytes + st.delta_pages + st.delta_saved_bytes, 0);
	swap_destroy(&w.s);
	free(w.cells);
}

/* One base that the cleaner moves to and fro, under readers of its deltas. */
struct chase {
	struct shadow *w;
	_Atomic bool stop;
	_Atomic uint64_t wrong, gets;
};

static void *chase_reader(void *arg)
{
	struct chase *c = arg;
	struct packed k;
	struct page got;

	while (!c->stop)
		for (unsigned i = 1; i < 8; i++) {
			/* the deltas stay where they are: only their base moves */
			if (pool_find(&c->w->s->pool, c->w->ref[i], &k) ||
			    delta_get(c->w->s->delta, &k, &got) || !same(&got, &c->w->page[i]))
				c->wrong++;
			c->gets++;
		}
	return NULL;
}

/* Moves what is at page 0 as the cleaner does. */
static void move_base(void)
{
	struct delta *d = sh->s->delta;
	struct packed k;
	swap_ref_t from = sh->ref[0], to;
	uint32_t row;

	cr_assert_eq(pool_find(&sh->s->pool, from, &k), 0);
	cr_assert(delta_move_begin(d, &k, &row));
	cr_assert_eq(pool_append(&sh->s->pool, &k, POOL_HOT, &to), 0);
	sh->ref[0] = to;
	delta_move_end(d, &k, row, to);
	pool_retire(&sh->s->pool, from);
}

Test(delta, delta_base_moved_under_readers_always_found)
{
	uint64_t until = now_ns() + env_number("BRIM_SWAP_SECONDS", 2) * 1000000000u, moves = 0;
	struct chase c = { 0 };
	pthread_t t[2];

	begin(SWAP_DELTA_FAST);
	for (unsigned i = 0; i < 8; i++)
		put_member(i, 1, i + 1);
	cr_assert_eq(stats().delta_pages, 7);
	c.w = sh;
	for (unsigned i = 0; i < ARRAY_LEN(t); i++)
		cr_assert_eq(pthread_create(&t[i], NULL, chase_reader, &c), 0);
	for (; now_ns() < until; moves++)
		move_base();
	c.stop = true;
	for (unsigned i = 0; i < ARRAY_LEN(t); i++)
		pthread_join(t[i], NULL);
	fprintf(stderr, "test_delta: %" PRIu64 " gets under %" PRIu64 " moves\n", c.gets, moves);
	cr_assert_eq(c.wrong, 0);
	cr_assert(c.gets > 1000 && moves > 1000);
	check_all();
	drop_all();
	check_empty();
	end();
}

/* Two threads do one thing each, at once, round after round. */
struct duel {
	void (*other)(void);
	_Atomic uint64_t begun, done;
	_Atomic bool stop;
};

static void linger(uint64_t turns)
{
	for (volatile uint64_t left = turns; left > 0; left--)
		;
}

static void *duel_other(void *arg)
{
	struct duel *d = arg;
	uint64_t random = 5;

	for (uint64_t round = 1;; round++) {
		while (d->begun < round)
			if (d->stop)
				return NULL;
		linger(mix(&random) % 2000);
		d->other();
		d->done = round;
	}
}

static void duel(void (*before)(void), void (*ours)(void), void (*other)(void),
		 void (*after)(void))
{
	uint64_t until = now_ns() + env_number("BRIM_SWAP_SECONDS", 2) * 1000000000u, rounds = 0;
	struct duel d = { .other = other };
	pthread_t t;

	begin(SWAP_DELTA_FAST);
	cr_assert_eq(pthread_create(&t, NULL, duel_other, &d), 0);
	while (now_ns() < until) {
		before();
		d.begun = ++rounds;
		linger(mix(&sh->random) % 500);
		ours();
		while (d.done < rounds)
			;
		after();
		check_empty();
	}
	d.stop = true;
	pthread_join(t, NULL);
	fprintf(stderr, "test_delta: %" PRIu64 " rounds\n", rounds);
	end();
}

static void put_base(void)
{
	put_member(0, 1, 1);
	member_of(&sh->page[1], 1, 2);
}

static void put_delta(void)
{
	cr_assert_eq(put(1), 0);
}

static void drop_base(void)
{
	drop(0);
}

static void drop_delta(void)
{
	drop(1);
}

static void check_and_drop_delta(void)
{
	check(1);
	drop(1);
}

Test(delta, delta_base_dropped_while_becoming_one_books_right)
{
	duel(put_base, put_delta, drop_base, check_and_drop_delta);
}

static void put_orphan(void)
{
	put_base();
	put_delta();
	drop(0);
	cr_assert_gt(stats().orphan_bytes, 0);
}

/* As the cleaner does. */
static void move_orphan(void)
{
	struct delta *d = sh->s->delta;
	swap_ref_t from = { atomic_load(&d->rows[0].ref) }, to;
	struct packed k;
	uint32_t row;

	if (pool_find(&sh->s->pool, from, &k) || !delta_move_begin(d, &k, &row))
		return;
	cr_assert_eq(k.state, OBJECT_ORPHAN);
	cr_assert_eq(pool_append(&sh->s->pool, &k, POOL_HOT, &to), 0);
	delta_move_end(d, &k, row, to);
	pool_retire(&sh->s->pool, from);
}

static void nothing(void)
{
}

Test(delta, delta_last_delta_dropped_while_orphan_moves_books_right)
{
	duel(put_orphan, move_orphan, drop_delta, nothing);
}
