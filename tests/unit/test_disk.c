/*
 * mm/swap/ with a swap file: what goes down comes back as it was or an error does, under
 * cleaning, lifting, discards and failing calls; and the way fault threads read it (pin,
 * read, arrived, unpack, unpin).
 */
#include "tests/unit/diskbox.h"

/* ---- down and back ----------------------------------------------------------- */

static void go_down_and_back(enum secrecy how)
{
	uint64_t before = counter_get(CTR_swap_spilled), fell, held;

	begin(how);
	put_many(0, 2000, 1500);
	held = stats().held_bytes;
	fell = swap_spill(sh->s, UINT64_MAX / 2);
	cr_assert_eq(held - stats().held_bytes, fell);
	cr_assert_eq(on_disk(), 2000);
	cr_assert_eq(counter_get(CTR_swap_spilled), before + 2000);
	cr_assert_eq(stats().packed_pages, 0);
	cr_assert_eq(stats().held_bytes, stats().table_bytes, "nothing of it is in memory");
	check_all();
	for (unsigned i = 0; i < 2000; i++)
		drop(i);
	cr_assert_eq(stats().disk_used_bytes, 0);
	cr_assert_eq(stats().disk_bytes, 0);
	end();
}

Test(disk, disk_pages_spilled_come_back)
{
	go_down_and_back(PLAIN);
	go_down_and_back(ENCRYPTED);
}

Test(disk, disk_objects_of_every_size_come_back)
{
	begin(PLAIN);
	for (unsigned i = 0; i < 1000; i++)
		cr_assert_eq(put(i, i, i * 3), 0);
	for (unsigned i = 1000; i < 1200; i++)
		cr_assert_eq(put(i, i, RAW_NOISE), 0);
	spill_all();
	check_all();
	end();
}

Test(disk, disk_spill_takes_what_was_asked_coldest_first)
{
	begin(PLAIN);
	put_many(0, 4000, 1500);
	cr_assert_geq(swap_spill(sh->s, 2 * MiB), 2 * MiB);
	cr_assert_leq(on_disk(), 4 * MiB / 1500);
	for (unsigned i = 0; i + 1 < 4000; i++)
		cr_assert(ref_is_disk(sh->ref[i]) || !ref_is_disk(sh->ref[i + 1]),
			  "page %u stayed, and %u, put later, went", i, i + 1);
	check_all();
	end();
}

Test(disk, disk_room_made_so_many_fit)
{
	static const uint64_t asked[] = { 1, 100, 255, 600, 1000 };
	unsigned owner = 0;

	begin(PLAIN);
	while (put(owner, owner, 2500) == 0)
		owner++;
	sh->ref[owner].v = 0;
	for (unsigned i = 0; i < ARRAY_LEN(asked); i++) {
		uint64_t fits = swap_room(sh->s, asked[i]);

		cr_assert_eq(fits, asked[i]);
		check_cap();
		for (uint64_t k = 0; k < fits; k++, owner++)
			cr_assert_eq(put(owner, owner, k % 3 ? RAW_NOISE : 3000), 0, "%u", owner);
	}
	check_all();
	end();
}

Test(disk, disk_incompressible_goes_down_whole_and_first)
{
	uint64_t before = counter_get(CTR_swap_raw);

	begin(PLAIN);
	put_many(0, 300, 1000);
	put_many(1000, 600, RAW_NOISE);
	cr_assert_eq(counter_get(CTR_swap_raw), before + 600);
	for (unsigned i = 0; i < 100 && on_disk() < 510; i++) {
		swap_tidy(sh->s);
		usleep(10000);
	}
	cr_assert_eq(on_disk(), 510, "two full segments of them, and nothing else");
	check_all();
	end();
}

Test(disk, disk_copy_dropped_while_written_forgotten)
{
	uint64_t before = counter_get(CTR_swap_move_refused);

	begin(PLAIN);
	put_many(0, 3000, 1500);
	put_many(4000, 600, RAW_NOISE);
	nothing_ends = true;
	swap_tidy(sh->s);
	cr_assert_gt(aio_on_way(sh->s->spill.aio), 0);
	cr_assert_eq(on_disk(), 0, "not before its write has ended");
	check_all();
	nothing_ends = false;
	for (unsigned i = 4000; i < 4600; i += 2)
		drop(i);
	for (unsigned i = 0; i < 100 && on_disk() < 255; i++) {
		swap_tidy(sh->s);
		usleep(10000);
	}
	cr_assert_eq(on_disk(), 255);
	cr_assert_eq(counter_get(CTR_swap_move_refused), before + 255);
	check_all();
	end();
}

/* The page leaves its place, the place is used again, and for a page of the same owner:
 * the copy that was on its way is of the old one. */
Test(disk, disk_place_used_again_while_written_old_copy_forgotten)
{
	begin(PLAIN);
	put_many(0, 255, RAW_NOISE);
	put_many(1000, 1, RAW_NOISE); /* closes the first segment */
	nothing_ends = true;
	swap_tidy(sh->s);
	for (unsigned i = 0; i < 255; i++)
		drop(i);
	put_many(1001, 254, RAW_NOISE); /* the second is full, and the first could be opened */
	for (unsigned i = 0; i < 255; i++)
		cr_assert_eq(put(i, 9000 + i, RAW_NOISE), 0);
	nothing_ends = false;
	spill_all();
	check_all();
	end();
}

/* ---- pins ------------------------------------------------------------------------ */

Test(disk, disk_pinned_segment_not_written_over)
{
	_Alignas(PAGE_BYTES) uint8_t raw[3 * PAGE_BYTES];
	const struct mm_tier *t = &swap_tier_disk;
	struct mm_read r = { .raw = raw };
	struct page want, got;
	swap_ref_t ref;

	begin(ENCRYPTED);
	put_many(0, 600, 1500);
	spill_all();
	ref = sh->ref[7];
	t->pin(sh->s, ref.v, &r.of);
	for (unsigned i = 0; i < 600; i++)
		drop(i);
	for (unsigned turn = 0; turn < 5; turn++) { /* more than the file takes at once */
		put_many(1000, 4000, 2500);
		spill_all();
		cr_assert_eq(stats().disk_used_bytes, MiB + stats().disk_pages / 400 * MiB, "%u", turn);
		for (unsigned i = 1000; i < 5000; i++)
			drop(i);
	}
	cr_assert_eq(stats().disk_used_bytes, MiB, "only what is pinned");
	cr_assert_eq(pread(r.of.fd, raw, r.of.bytes, (off_t)r.of.offset), (ssize_t)r.of.bytes);
	cr_assert_eq(t->arrived(sh->s, &r.of, raw), 0);
	cr_assert_eq(t->unpack(sh->s, ref.v, 7, &r, &got), 0);
	make_page(&want, 1007, 1500);
	cr_assert(same(&want, &got));
	t->unpin(sh->s, ref.v);
	cr_assert_eq(stats().disk_used_bytes, 0);
	end();
}

/* ---- cleaning, lifting, discarding ------------------------------------------------- */

static void tidy_until_idle(void)
{
	for (unsigned i = 0; i < 400; i++) {
		swap_tidy(sh->s);
		usleep(1000);
	}
}

/* 8000 pages on disk, of which one in four stays; then more is put than is free. */
static void fill_disk(void)
{
	put_many(0, 8000, 1500);
	spill_all();
	for (unsigned i = 0; i < 8000; i++)
		if (i % 4)
			drop(i);
}

static void put_in_holes(void)
{
	for (unsigned i = 0; i < 8000; i++)
		if (i % 4 && swap_room(sh->s, 1) == 1)
			cr_assert_eq(put(i, 77 + i, 2000), 0);
	tidy_until_idle();
}

static void clean_file(enum secrecy how)
{
	uint64_t before = counter_get(CTR_swap_disk_cleaned);

	begin_sized(how, 14 * MiB);
	fill_disk();
	put_in_holes();
	cr_assert_gt(counter_get(CTR_swap_disk_cleaned), before + 500, "%d", (int)(counter_get(CTR_swap_disk_cleaned) - before));
	cr_assert_gt(stats().disk_pages + stats().packed_pages, 7000);
	check_all();
	end();
}

Test(disk, disk_cleaned_when_full_content_kept)
{
	clean_file(PLAIN);
	clean_file(ENCRYPTED);
}

/* They end a segment by their number: what it has left is no hole to be closed. */
Test(disk, disk_segments_full_of_small_objects_not_cleaned_over_and_over)
{
	uint64_t before = counter_get(CTR_swap_disk_cleaned);

	begin_sized(PLAIN, 5 * MiB);
	put_many(0, 8000, 16);
	spill_all();
	put_many(8000, 150, RAW_NOISE);
	spill_all();
	cr_assert_eq(stats().disk_used_bytes, 3 * MiB);
	cr_assert_lt(stats().disk_bytes, 2 * MiB);
	tidy_until_idle();
	cr_assert_lt(counter_get(CTR_swap_disk_cleaned) - before, 8000, "%" PRIu64,
		     counter_get(CTR_swap_disk_cleaned) - before);
	check_all();
	for (unsigned i = 0; i < 8000; i++)
		if (i % 4)
			drop(i);
	tidy_until_idle();
	cr_assert_leq(stats().disk_used_bytes, 2 * MiB, "and when they are few they are");
	check_all();
	end();
}

Test(disk, disk_cleaning_meets_damage_loses_nothing_else)
{
	uint64_t before = counter_get(CTR_swap_disk_read_errors);
	struct page got;

	begin_sized(PLAIN, 14 * MiB);
	fill_disk();
	flip(object_offset(400) + 5);   /* its length */
	flip(object_offset(2400) + 50); /* its bytes */
	put_in_holes();
	cr_assert_eq(counter_get(CTR_swap_disk_read_errors), before + 2);
	cr_assert_eq(read_page(400, &got), -EIO);
	cr_assert_eq(read_page(2400, &got), -EIO);
	for (unsigned i = 0; i < 8000; i++)
		if (sh->ref[i].v && i != 400 && i != 2400)
			check_page(i);
	end();
}

Test(disk, disk_much_read_segment_lifted)
{
	uint64_t before = counter_get(CTR_swap_disk_lifted);
	struct page got;

	begin(ENCRYPTED);
	put_many(0, 2000, 1500);
	spill_all();
	for (unsigned i = 0; i < 10; i++) /* of each segment a few: too few */
		cr_assert_eq(read_page(i * 200, &got), 0);
	tidy_until_idle();
	cr_assert_eq(on_disk(), 2000);
	for (unsigned i = 0; i < 40; i++)
		cr_assert_eq(read_page(i, &got), 0);
	swap_tidy(sh->s);
	cr_assert_eq(on_disk(), 2000, "not just after these had to go");
	for (unsigned i = 0; i < 40; i++)
		cr_assert_eq(read_page(i, &got), 0);
	sh->s->spill.pressed_ns = 0;
	sh->s->disk.hot = disk_segment_of(sh->ref[0]);
	tidy_until_idle();
	cr_assert_lt(on_disk(), 2000);
	cr_assert_gt(on_disk(), 600, "one segment and not all");
	cr_assert_eq(counter_get(CTR_swap_disk_lifted), before + 2000 - on_disk());
	for (unsigned i = 0; i < 100; i++)
		cr_assert_not(ref_is_disk(sh->ref[i]));
	check_all();
	end();
}

/* It was hot, was emptied, and is being written again. */
Test(disk, disk_lift_of_segment_being_written_left)
{
	begin(PLAIN);
	put_many(0, 600, 1500);
	spill_all();
	for (unsigned i = 0; i < 600; i++)
		drop(i);
	put_many(0, 600, RAW_NOISE);
	nothing_ends = true;
	swap_tidy(sh->s);
	cr_assert_eq(sh->s->spill.batches[0].state, BATCH_WRITING);
	sh->s->disk.hot = sh->s->spill.batches[0].segment;
	sh->s->spill.pressed_ns = 0;
	swap_tidy(sh->s);
	nothing_ends = false;
	spill_all();
	check_all();
	end();
}

Test(disk, disk_of_a_device_freed_segments_discarded)
{
	begin(PLAIN);
	sh->s->disk.file.is_device = sh->s->disk.takes_discards = true;
	put_many(0, 4000, 1500);
	spill_all();
	for (unsigned i = 0; i < 4000; i++)
		if (disk_segment_of(sh->ref[i]) % 2)
			drop(i);
	tidy_until_idle();
	cr_assert_gt(discards, 2);
	for (unsigned i = 0; i < discards; i++)
		for (unsigned k = 0; k < 4000; k++)
			cr_assert(!sh->ref[k].v ||
				  disk_offset(disk_segment_of(sh->ref[k])) != discarded[i]);
	check_all();
	discards_refused = true; /* then it is not asked again, and goes on */
	discards = 0;
	for (unsigned i = 0; i < 4000; i++)
		if (sh->ref[i].v)
			drop(i);
	tidy_until_idle();
	cr_assert_not(sh->s->disk.takes_discards);
	put_many(0, 4000, 1500);
	spill_all();
	check_all();
	end();
}

/* ---- full, and errors --------------------------------------------------------------- */

Test(disk, disk_and_pool_full_refused_and_nothing_lost)
{
	unsigned n = 0;
	int rc = 0;

	begin(PLAIN);
	while (!rc && n < PAGES) {
		swap_room(sh->s, 16);
		rc = put(n, n, RAW_NOISE);
		n += !rc;
	}
	cr_assert(rc == -ENOSPC || rc == -E2BIG, "%d", rc);
	cr_assert_gt(n, 22 * 255u, "all of the file but the reserve");
	sh->ref[n].v = 0;
	for (unsigned i = n; i < PAGES; i++) { /* what packs goes on into the pool */
		rc = put(i, i, 2000);
		if (rc)
			break;
	}
	cr_assert(rc == -ENOSPC || rc == 0);
	check_all();
	for (unsigned i = 0; i < n; i += 2)
		drop(i);
	cr_assert_eq(swap_room(sh->s, 500), 500, "what was dropped is room again");
	check_all();
	end();
}

Test(disk, disk_writes_fail_pages_stay_and_disk_is_left_alone)
{
	uint64_t before = counter_get(CTR_swap_disk_write_errors);
	struct swap_stats st;

	begin(PLAIN);
	put_many(0, 1000, 1500);
	spill_all();
	put_many(1000, 3000, 1500);
	writes_fail = true;
	cr_assert_eq(swap_spill(sh->s, 4 * MiB), 0);
	cr_assert_geq(counter_get(CTR_swap_disk_write_errors), before + 8);
	cr_assert_lt(counter_get(CTR_swap_disk_write_errors), before + 8 + BATCHES);
	cr_assert_eq(on_disk(), 1000);
	check_all();
	writes_fail = false;
	cr_assert_eq(swap_spill(sh->s, 4 * MiB), 0, "it is not asked again");
	cr_assert_eq(put(5000, 1, RAW_NOISE), -E2BIG);
	st = stats();
	cr_assert_eq(st.disk_pages, 1000);
	check_all();
	end();
}

Test(disk, disk_some_writes_fail_others_taken)
{
	uint64_t before = counter_get(CTR_swap_disk_write_errors);

	begin(ENCRYPTED);
	put_many(0, 4000, 1500);
	write_fails_one_in = 3;
	spill_all();
	cr_assert_gt(counter_get(CTR_swap_disk_write_errors), before);
	cr_assert_eq(on_disk(), 4000);
	check_all();
	end();
}

Test(disk, disk_short_writes_carried_on)
{
	begin(ENCRYPTED);
	put_many(0, 4000, 1500);
	writes_are_short = true;
	spill_all();
	cr_assert_eq(on_disk(), 4000);
	check_all();
	end();
}

static void scenario(void)
{
	for (unsigned i = 0; i < 2000 && put(i, i, 1500) == 0; i++)
		;
	for (unsigned i = 2000; i < 2300 && put(i, i, RAW_NOISE) == 0; i++)
		;
	swap_spill(sh->s, 2 * MiB);
	swap_room(sh->s, 500);
	for (unsigned i = 0; i < 2300; i++)
		if (sh->ref[i].v && i % 3)
			drop(i);
	for (unsigned i = 2500; i < 4500 && swap_room(sh->s, 1) == 1; i++)
		if (put(i, i, 2200))
			break;
	swap_spill(sh->s, 4 * MiB);
	for (unsigned i = 0; i < 10; i++)
		swap_tidy(sh->s);
}

static void check_all_without_faults(void)
{
	unsigned was = fail_at, made = calls;

	fail_at = 0;
	for (unsigned i = 0; i < PAGES; i++)
		if (sh->ref[i].v)
			check_page(i);
	swap_verify(sh->s);
	fail_at = was;
	calls = made;
}

static void any_call_fails(void)
{
	unsigned n, ended = 0;

	fail_error = EIO;
	choose_path();
	disk.encrypt = true;
	for (n = 1; !ended; n++) {
		disk.size_bytes = 12 * MiB; /* little, so that it has to be cleaned */
		calls = 0;
		fail_at = n;
		if (try_create(CAP) == 0) {
			scenario();
			check_all_without_faults();
		}
		destroy();
		ended = calls < n;
		cr_assert_lt(n, 2000);
	}
	fail_at = 0;
	fprintf(stderr, "test_disk: %u calls\n", n);
	cr_assert_gt(n, 30, "%u calls could fail", n);
	forget_path();
}

Test(disk, disk_any_call_fails_error_or_every_page_kept)
{
	any_call_fails();
}

Test(disk, disk_any_call_fails_with_deltas_error_or_every_page_kept)
{
	families = 300;
	any_call_fails();
	cr_assert_gt(counter_get(CTR_swap_delta_undone), 1000);
}
