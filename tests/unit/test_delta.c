/*
 * mm/swap/delta.c, base.c: pages packed against similar ones come back as they were or with
 * an error (swap.h I1), whatever happens to their bases: dropped first, moved,
 * damaged, out of rows.
 */
#include "tests/unit/deltabox.h"

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
