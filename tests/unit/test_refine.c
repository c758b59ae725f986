/*
 * mm/swap/refine.c: what is packed anew comes back as it was put, or with an error (swap.h
 * I1; refine.c I1), whatever is dropped, moved, damaged or refused meanwhile; refining that
 * does not go well changes nothing (I2); the cap holds and the books add up.
 *
 * The seed is printed; BRIM_SEED=N repeats a run.
 */
#include <unistd.h>

#include "tests/unit/refinebox.h"

/* ---- one object, one segment ----------------------------------------------------------- */

Test(refine, refine_pages_smaller_and_come_back)
{
	uint64_t refined = counter_get(CTR_swap_refined);
	uint64_t saved = counter_get(CTR_swap_refined_bytes_saved);
	struct swap_stats before, after;

	begin(SWAP_DELTA_OFF);
	for (unsigned i = 0; i < 1500; i++)
		put_text(i, 2400);
	before = stats();
	refine_all();
	after = stats();
	cr_assert_eq(after.refined_pages, 1500);
	cr_assert_eq(after.packed_pages, 1500);
	cr_assert_lt(after.packed_bytes, before.packed_bytes * 2 / 3);
	cr_assert_lt(after.held_bytes, before.held_bytes, "emptied segments go back");
	cr_assert_eq(counter_get(CTR_swap_refined) - refined, 1500);
	cr_assert_eq(counter_get(CTR_swap_refined_bytes_saved) - saved,
		     before.packed_bytes - after.packed_bytes);
	check_all();
	drop_all_and_check_empty();
	end();
}

Test(refine, refine_open_segment_left_alone)
{
	begin(SWAP_DELTA_OFF);
	put_text(0, 2400);
	cr_assert_not(swap_refine(sh->s, ALL));
	cr_assert_eq(stats().refined_pages, 0);
	check_all();
	end();
}

Test(refine, refine_little_gain_left_as_it_is)
{
	uint64_t before = counter_get(CTR_swap_refine_no_gain);

	begin(SWAP_DELTA_OFF);
	for (unsigned i = 0; i < 50; i++) {
		packable(&sh->page[i], i, 2400);
		cr_assert_eq(put(i), 0);
	}
	refine_all();
	cr_assert_eq(stats().refined_pages, 0);
	cr_assert_eq(counter_get(CTR_swap_refine_no_gain), before + 50);
	for (unsigned i = 0; i < 50; i++)
		cr_assert_not(object_of(i).is_refined);
	check_all();
	drop_all_and_check_empty();
	end();
}

Test(refine, refine_again_nothing_left_to_do)
{
	swap_ref_t was;

	begin(SWAP_DELTA_OFF);
	for (unsigned i = 0; i < 100; i++)
		put_text(i, i % 2 ? 2400 : 20);
	refine_all();
	was = sh->ref[7];
	refine_all();
	cr_assert_eq(sh->ref[7].v, was.v);
	cr_assert_eq(sh->moves, 100);
	end();
}

Test(refine, refine_page_that_came_home_packed_plain_again)
{
	begin(SWAP_DELTA_OFF);
	put_text(3, 2400);
	refine_all();
	cr_assert(object_of(3).is_refined);
	drop(3);
	cr_assert_eq(stats().refined_pages, 0);
	cr_assert_eq(put(3), 0);
	cr_assert_not(object_of(3).is_refined);
	check_all();
	end();
}

Test(refine, refine_small_budget_bounded_and_goes_on)
{
	unsigned turns = 0;
	uint64_t all_bytes;

	begin(SWAP_DELTA_OFF);
	for (unsigned i = 0; i < 600; i++)
		put_text(i, 2400);
	close_open();
	all_bytes = stats().packed_bytes;
	while (swap_refine(sh->s, 64 * KiB)) {
		/* objects of nearly one size */
		cr_assert_leq(sh->moves * (all_bytes / 600) * 9 / 10, ++turns * 64 * KiB);
		check_all();
	}
	cr_assert_geq(turns, all_bytes / (64 * KiB));
	cr_assert_eq(stats().refined_pages, 600);
	check_all();
	end();
}

Test(refine, refine_coldest_first)
{
	begin(SWAP_DELTA_OFF);
	for (unsigned i = 0; i < 1300; i++)
		put_text(i, 2400);
	cr_assert(swap_refine(sh->s, 100 * KiB));
	cr_assert(object_of(0).is_refined && object_of(30).is_refined);
	cr_assert_not(object_of(600).is_refined);
	check_all();
	end();
}

Test(refine, refine_switched_off_or_small_cap_none)
{
	const struct swap_config off[] = {
		{ .cap_bytes = CAP, .refine = SWAP_REFINE_OFF }, { .refine = SWAP_REFINE_OFF },
		{ .cap_bytes = CAP - 1, .refine = SWAP_REFINE_ON },
	};
	struct swap_config bad = { .refine = SWAP_REFINE_ON + 1 };

	for (unsigned i = 0; i < ARRAY_LEN(off); i++) {
		cr_assert_eq(begin_with(off[i]), 0);
		cr_assert_null(sh->s->refine);
		put_text(0, 2400);
		refine_all();
		cr_assert_not(swap_refine_some(sh->s));
		cr_assert_not(object_of(0).is_refined);
		check_all();
		end();
	}
	cr_assert_eq(begin_with(bad), -EINVAL);
	end_unverified();
}

/* What it says it needs is what it has, also after work of all kinds. */
Test(refine, refine_tables_counted_under_the_cap)
{
	uint64_t tables;

	begin(SWAP_DELTA_FAST);
	tables = refine_table_bytes(sh->s->refine);
	cr_assert(tables > 100 * KiB && tables < 2 * MiB, "%" PRIu64, tables);
	cr_assert_geq(stats().table_bytes, tables);
	end();
}

/* ---- deltas -------------------------------------------------------------------------------- */

static void put_relatives(unsigned n)
{
	for (unsigned i = 0; i < n; i++) {
		relative(&sh->page[i], i % 7, i / 7);
		cr_assert_eq(put(i), 0);
	}
}

Test(refine, refine_delta_stays_one_and_comes_back)
{
	struct swap_stats before, after;
	uint64_t refined = 0;

	begin(SWAP_DELTA_FAST);
	put_relatives(700);
	before = stats();
	cr_assert_gt(before.delta_pages, 600);
	refine_all();
	after = stats();
	cr_assert_eq(after.delta_pages, before.delta_pages);
	cr_assert_eq(after.delta_saved_bytes, before.delta_saved_bytes);
	cr_assert_lt(after.packed_bytes, before.packed_bytes);
	for (unsigned i = 0; i < 700; i++)
		refined += object_of(i).is_delta && object_of(i).is_refined;
	cr_assert_gt(refined, 300);
	check_all();
	for (unsigned i = 0; i < 7; i++)
		drop(i); /* bases */
	cr_assert_gt(stats().orphan_bytes, 0);
	check_all();
	drop_all_and_check_empty();
	end();
}

Test(refine, refine_base_of_deltas_never_refined)
{
	begin(SWAP_DELTA_FAST);
	put_relatives(70);
	refine_all();
	for (unsigned i = 0; i < 70; i++)
		cr_assert_not(object_of(i).state == OBJECT_BASE && object_of(i).is_refined);
	for (unsigned i = 7; i < 70; i++)
		drop(i); /* deltas: what was a base is plain, and refined once it is moved */
	for (unsigned i = 0; i < 7; i++)
		cr_assert_eq(object_of(i).state, OBJECT_BASE);
	check_all();
	drop_all_and_check_empty();
	end();
}

Test(refine, refine_base_without_deltas_plain_and_refined)
{
	begin(SWAP_DELTA_FAST);
	put_relatives(70);
	for (unsigned i = 7; i < 70; i++)
		drop(i);
	refine_all();
	for (unsigned i = 0; i < 7; i++) {
		cr_assert_eq(object_of(i).state, OBJECT_LIVE);
		cr_assert(object_of(i).is_refined);
	}
	cr_assert_eq(atomic_load(&sh->s->delta->base_rows), 0);
	check_all();
	drop_all_and_check_empty();
	end();
}

/* zstd takes a prefix that begins with this number for something else. */
Test(refine, refine_base_like_a_dictionary_comes_back)
{
	static const uint8_t magic[] = { 0x37, 0xa4, 0x30, 0xec };

	begin(SWAP_DELTA_FAST);
	for (unsigned i = 0; i < 20; i++) {
		relative(&sh->page[i], 1, i + 1);
		memcpy(&sh->page[i], magic, sizeof(magic));
		cr_assert_eq(put(i), 0);
	}
	cr_assert_gt(stats().delta_pages, 15);
	refine_all();
	check_all();
	drop_all_and_check_empty();
	end();
}

/* ---- what may come between ------------------------------------------------------------------ */

Test(refine, refine_owner_refuses_nothing_changes)
{
	for (int later = 0; later < 2; later++) {
		begin(SWAP_DELTA_FAST);
		for (unsigned i = 0; i < 2000; i++) {
			any_page(&sh->page[i], i * 16 + i % 16);
			(void)put(i);
		}
		sh->refuse_one_in = 3;
		sh->refuse_then_drop = later;
		refine_all();
		cr_assert(sh->moves > 200 && sh->refused > 100);
		cr_assert_gt(stats().refined_pages, 100);
		check_all();
		sh->refuse_one_in = 0;
		drop_all_and_check_empty();
		end();
	}
}

Test(refine, refine_all_refused_asked_once)
{
	begin(SWAP_DELTA_OFF);
	for (unsigned i = 0; i < 300; i++)
		put_text(i, 2400);
	sh->refuse_one_in = 1;
	sh->refuse_then_drop = true;
	refine_all();
	cr_assert_eq(sh->refused, 300);
	cr_assert_eq(stats().refined_pages, 0);
	refine_all();
	cr_assert_eq(sh->refused, 300);
	check_all();
	drop_all_and_check_empty();
	end();
}

Test(refine, refine_what_is_refined_moved_by_cleaner)
{
	begin(SWAP_DELTA_FAST);
	for (unsigned i = 0; i < 3000; i++)
		put_text(i, 2400);
	refine_all();
	for (unsigned i = 0; i < 3000; i++)
		if (i % 5)
			drop(i);
	cr_assert_gt(swap_clean(sh->s, 0, ALL), 0);
	cr_assert_eq(stats().refined_pages, 600);
	check_all();
	refine_all();
	check_all();
	drop_all_and_check_empty();
	end();
}

static unsigned fill_up(unsigned from)
{
	unsigned i = from;

	for (; i < PAGES; i++) {
		text(&sh->page[i], i, 2400);
		if (put(i))
			break;
	}
	cr_assert_lt(i, PAGES);
	sh->ref[i].v = 0;
	return i;
}

Test(refine, refine_full_pool_makes_room)
{
	unsigned n, more;

	begin(SWAP_DELTA_OFF);
	n = fill_up(0);
	cr_assert_eq(put(n), -ENOSPC);
	while (swap_refine(sh->s, 64 * KiB))
		(void)stats();
	check_all();
	more = fill_up(n);
	cr_assert_gt(more, n + n / 4, "%u, then %u", n, more);
	refine_all();
	check_all();
	drop_all_and_check_empty();
	end();
}

Test(refine, refine_last_segment_left_to_the_cleaner)
{
	begin(SWAP_DELTA_OFF);
	sh->s->pool.reserve = 1; /* puts may take what refining needs */
	(void)fill_up(0);
	close_open();
	cr_assert_eq(pool_room(&sh->s->pool), 1);
	cr_assert_not(swap_refine(sh->s, 40 * KiB));
	cr_assert_eq(pool_room(&sh->s->pool), 1);
	cr_assert_eq(stats().refined_pages, 0);
	check_all();
	end();
}

/* The cleaner's reserve is not the refiner's: with every other page gone, both work. */
Test(refine, refine_full_pool_cleaner_keeps_its_reserve)
{
	unsigned n, before;

	begin(SWAP_DELTA_OFF);
	n = fill_up(0);
	for (unsigned turn = 0; turn < 40; turn++) {
		for (unsigned i = turn % 3; i < n; i += 37)
			if (sh->ref[i].v)
				drop(i);
		before = pool_room(&sh->s->pool); /* 0 where the cleaner is at work */
		(void)swap_refine(sh->s, 40 * KiB);
		cr_assert_geq(pool_room(&sh->s->pool), before > 1 ? 1 : before);
		cr_assert_geq(swap_clean(sh->s, 0, 40 * KiB), 0);
		n = fill_up(n);
	}
	check_all();
	drop_all_and_check_empty();
	end();
}

/* ---- damage ----------------------------------------------------------------------------------- */

/* Every byte of object `hurt` in turn: its reader gets an error, never other bytes. */
static void damage_each_byte(unsigned hurt)
{
	struct packed k = object_of(hurt);
	uint8_t *at = sh->s->pool.base + (k.data - sh->s->pool.base) - sizeof(struct object);
	struct page got;

	cr_assert(k.is_refined);
	for (size_t i = 0; i < sizeof(struct object) + k.bytes; i++) {
		for (unsigned bit = 0; bit < 8; bit++) {
			at[i] ^= (uint8_t)(1u << bit);
			cr_assert_eq(swap_get(sh->s, sh->ref[hurt], hurt, &got), -EIO,
				     "byte %zu", i);
			at[i] ^= (uint8_t)(1u << bit);
		}
	}
	check(hurt);
}

Test(refine, refine_damaged_byte_an_error)
{
	begin(SWAP_DELTA_FAST);
	relative(&sh->page[0], 1, 1);
	relative(&sh->page[1], 1, 11);
	text(&sh->page[2], 99, 1000);
	for (unsigned i = 0; i < 3; i++)
		cr_assert_eq(put(i), 0);
	refine_all();
	cr_assert(object_of(1).is_delta);
	damage_each_byte(1);
	damage_each_byte(2);
	end();
}

Test(refine, refine_damaged_object_left_for_its_owner)
{
	struct page got;
	uint8_t *at;

	begin(SWAP_DELTA_FAST);
	put_relatives(70);
	for (unsigned i = 70; i < 100; i++)
		put_text(i, 2400);
	at = sh->s->pool.base;
	at[object_of(80).data - at + 77] ^= 4;
	at[object_of(20).data - at + 20] ^= 4;
	cr_assert(object_of(20).is_delta);
	refine_all();
	cr_assert_eq(swap_get(sh->s, sh->ref[80], 80, &got), -EIO);
	cr_assert_eq(swap_get(sh->s, sh->ref[20], 20, &got), -EIO);
	cr_assert_gt(stats().refined_pages, 20);
	drop(80);
	drop(20);
	check_all();
	drop_all_and_check_empty();
	end();
}

Test(refine, refine_damaged_header_its_segment_left_alone)
{
	begin(SWAP_DELTA_OFF);
	for (unsigned i = 0; i < 1000; i++)
		put_text(i, 2400);
	sh->s->pool.base[object_of(100).data - sh->s->pool.base - 10] ^= 1;
	refine_all();
	for (unsigned i = 0; i < 1000; i++)
		if (i != 100)
			check(i);
	cr_assert(object_of(999).is_refined && object_of(0).is_refined);
	cr_assert_not(object_of(101).is_refined);
	end_unverified();
}

/* A header that says LZ4 of what is zstd's, sound in itself, is found out by the sum. */
Test(refine, refine_forged_codec_an_error)
{
	struct object *o;
	struct packed k;
	struct page got;
	uint64_t tag;

	begin(SWAP_DELTA_OFF);
	put_text(0, 2400);
	put_text(1, 2400);
	close_open();
	(void)swap_refine(sh->s, 3 * PAGE_BYTES);
	refine_all();
	put_text(2, 2400);
	for (unsigned i = 1; i < 3; i++) {
		k = object_of(i);
		o = (struct object *)(void *)(sh->s->pool.base + (k.data - sh->s->pool.base) -
					      sizeof(*o));
		tag = o->tag;
		cr_assert_eq(k.is_refined, i == 1);
		cr_assert_eq(swap_checksum(&k), k.sum);
		k.is_refined = !k.is_refined;
		cr_assert_neq(swap_checksum(&k), k.sum);
		o->tag = tag_make(i, packed_length(&k), OBJECT_LIVE);
		cr_assert_eq(swap_get(sh->s, sh->ref[i], i, &got), -EIO);
		o->tag = tag;
		check(i);
	}
	end();
}

/* As if the checksum had not been there: whatever the decoder is given, it stays inside. */
Test(refine, refine_decoder_given_anything_stays_inside)
{
	uint64_t random = seed_of_run();
	struct page page, base;
	uint8_t bytes[2048];
	struct packed k;

	begin(SWAP_DELTA_OFF);
	put_text(0, 2400);
	refine_all();
	k = object_of(0);
	relative(&base, 1, 1);
	for (unsigned i = 0; i < 20000; i++) {
		struct refined from = { .data = bytes, .bytes = k.bytes,
					.base = i % 2 ? base.b : NULL };

		memcpy(bytes, k.data, k.bytes);
		for (unsigned n = 1 + i % 8; n > 0; n--)
			bytes[mix(&random) % k.bytes] = (uint8_t)mix(&random);
		if (i % 16 == 0)
			from.bytes = (uint32_t)(mix(&random) % (k.bytes + 1));
		(void)refine_unpack(sh->s->refine, &from, &page);
	}
	check(0);
	end();
}

/* ---- when ----------------------------------------------------------------------------------------- */

Test(refine, refine_young_pages_wait_and_time_is_bounded)
{
	uint64_t cpu = counter_get(CTR_swap_refine_cpu_ns), began, took;

	cr_assert_eq(begin_with((struct swap_config){ .delta = SWAP_DELTA_OFF,
						     .refine_age_ns = 600000000 }), 0);
	for (unsigned i = 0; i < PAGES; i++)
		put_text(i, 2400);
	began = now_ns();
	cr_assert(swap_refine_some(sh->s), "there is something for later");
	while (now_ns() - began < 90000000)
		(void)swap_refine_some(sh->s);
	if (now_ns() - began < 500000000) /* else a busy machine was not quick enough */
		cr_assert_eq(stats().refined_pages, 0);
	do {
		(void)swap_refine_some(sh->s);
		usleep(1000);
		took = now_ns() - began;
	} while (took < 1800000000 || stats().refined_pages < 100);
	cpu = counter_get(CTR_swap_refine_cpu_ns) - cpu;
	cr_assert_leq(cpu, took / 10 + 30000000, "%" PRIu64 " ns in %" PRIu64, cpu, took);
	check_all();
	end();
}

/* ---- a disk below ------------------------------------------------------------------------------------ */

static unsigned refined_deltas(void)
{
	unsigned n = 0;

	for (unsigned i = 0; i < PAGES; i++)
		if (ref_is_packed(sh->ref[i])) {
			struct packed k = object_of(i);

			n += k.is_delta && k.is_refined;
		}
	return n;
}

/* Texts, pages that do not pack, and relatives: refined deltas go down as plain LZ4. */
static void on_disk(bool encrypt)
{
	char dir[] = "/tmp/brim-refine-XXXXXX", path[64];
	struct swap_disk_config disk = { .path = path, .size_bytes = 64 * MiB, .encrypt = encrypt };

	cr_assert_not_null(mkdtemp(dir));
	snprintf(path, sizeof(path), "%s/swap", dir);
	cr_assert_eq(begin_with((struct swap_config){ .cap_bytes = CAP, .disk = &disk }), 0);
	for (unsigned i = 0; i < 3000; i++) {
		if (i % 10 == 0)
			packable(&sh->page[i], i, PAGE_BYTES);
		else if (i % 2)
			relative(&sh->page[i], i % 20, i);
		else
			text(&sh->page[i], i, 2400);
		cr_assert_eq(put(i), 0);
	}
	for (unsigned i = 0; i < 40; i++)
		(void)swap_refine(sh->s, 64 * KiB);
	cr_assert_gt(stats().refined_pages, 500);
	cr_assert_gt(refined_deltas(), 200);
	cr_assert_gt(swap_spill(sh->s, 3 * MiB), 0);
	refine_all();
	check_all();
	(void)swap_spill(sh->s, ALL / 2);
	cr_assert_eq(stats().disk_pages, 3000);
	cr_assert_eq(stats().refined_pages, 0);
	check_all();
	for (unsigned i = 0; i < 3000; i++)
		drop(i);
	cr_assert_eq(stats().disk_pages, 0);
	end();
	unlink(path);
	rmdir(dir);
}

Test(refine, refine_spilled_to_disk_comes_back)
{
	on_disk(false);
	on_disk(true);
}

/* ---- calls that fail ------------------------------------------------------------------------------------ */

Test(refine, refine_each_host_call_failing_error_or_nothing_lost)
{
	fail_error = EAGAIN;
	for (fail_at = 1;; fail_at++) {
		calls = 0;
		if (begin_with((struct swap_config){ .cap_bytes = CAP, .host = &host })) {
			end_unverified();
			continue;
		}
		for (unsigned i = 0; i < 1500; i++)
			put_text(i, 2400);
		refine_all();
		check_all();
		cr_assert_gt(stats().refined_pages, 1000);
		drop_all_and_check_empty();
		end();
		if (calls < fail_at)
			break;
	}
	cr_assert_gt(fail_at, 8);
	fail_at = 0;
}
