/*
 * mm/swap/ with a swap file: what is on disk, what becomes of deltas there, and bytes that
 * are not those that were put: an error, never a page (swap.h I1).
 */
#include "tests/unit/diskbox.h"

/* ---- what is on disk ----------------------------------------------------------- */

static bool file_has(const uint8_t *what, size_t n)
{
	static uint8_t all[FILE_BYTES];
	int fd = open(path, O_RDONLY);

	cr_assert_eq(read(fd, all, sizeof(all)), (ssize_t)sizeof(all));
	close(fd);
	return memmem(all, sizeof(all), what, n) != NULL;
}

Test(disk, disk_encrypted_file_has_no_plaintext)
{
	struct page page;

	for (int how = PLAIN; how <= ENCRYPTED; how++) {
		begin((enum secrecy)how);
		put_many(0, 10, RAW_NOISE);
		put_many(10, 10, 1500);
		spill_all();
		for (unsigned i = 0; i < 20; i++) {
			make_page(&page, 1000 + i, sh->noise[i]);
			cr_assert_eq(file_has(page.b, 64), how == PLAIN, "page %u", i);
		}
		check_all();
		end();
	}
}

Test(disk, disk_file_is_private_and_reserved)
{
	struct stat st;

	begin(PLAIN);
	cr_assert_eq(stat(path, &st), 0);
	cr_assert_eq(st.st_mode & 07777, 0600);
	cr_assert_eq(st.st_size, FILE_BYTES);
	cr_assert_geq((uint64_t)st.st_blocks * 512, FILE_BYTES);
	end();
}

/* ---- damage ---------------------------------------------------------------------- */

static void damage(enum secrecy how)
{
	static const unsigned at[] = { 0, 3, 4, 6, 7, 8, 15, 16, 100, 1000, 1500 };

	begin(how);
	put_many(0, 100, 1500);
	spill_all();
	for (unsigned i = 0; i < ARRAY_LEN(at); i++) {
		flip(object_offset(i * 9) + at[i]);
		check_damaged(i * 9);
		flip(object_offset(i * 9) + at[i]);
		check_page(i * 9);
	}
	check_all();
	end();
}

Test(disk, disk_byte_damaged_eio)
{
	damage(PLAIN);
	damage(ENCRYPTED);
}

/* ---- deltas ---------------------------------------------------------------------- */

static void begin_alike(enum secrecy how)
{
	families = 24;
	begin(how);
}

static void put_alike(unsigned from, unsigned n)
{
	put_many(from, n, 1500);
	cr_assert_gt(stats().delta_pages, n / 2);
}

static void deltas_down_and_back(enum secrecy how)
{
	uint64_t undone = counter_get(CTR_swap_delta_undone), deltas;

	begin_alike(how);
	put_alike(0, 4000);
	deltas = stats().delta_pages;
	check_all();
	spill_all();
	cr_assert_eq(on_disk(), 4000);
	cr_assert_geq(counter_get(CTR_swap_delta_undone), undone + deltas);
	cr_assert_eq(stats().delta_pages + stats().orphan_bytes, 0);
	cr_assert_eq(stats().held_bytes, stats().table_bytes, "no base stays behind");
	check_all();
	end();
}

Test(disk, disk_deltas_go_down_by_themselves)
{
	deltas_down_and_back(PLAIN);
	deltas_down_and_back(ENCRYPTED);
}

Test(disk, disk_deltas_switched_off_or_small_cap_none_made)
{
	families = 24;
	choose_path();
	for (unsigned i = 0; i < 2; i++) {
		delta_asked = i ? SWAP_DELTA_FAST : SWAP_DELTA_OFF;
		cr_assert_eq(try_create(i ? CAP - 1 : CAP), 0);
		put_many(0, 1000, 1500);
		cr_assert_eq(stats().delta_pages + stats().orphan_bytes, 0);
		cr_assert_null(sh->s->delta);
		destroy();
	}
	forget_path();
}

/* A segment of bases, which is the coldest, and some of their deltas. */
static void put_bases_and_deltas(void)
{
	begin_alike(PLAIN);
	families = 600;
	put_many(0, 600, 1500);
	put_alike(1000, 5000);
}

static unsigned bases_in_pool(void)
{
	unsigned n = 0;

	for (unsigned i = 0; i < 600; i++)
		n += ref_is_packed(sh->ref[i]);
	return n;
}

Test(disk, disk_base_stays_until_its_deltas_have_gone)
{
	put_bases_and_deltas();
	swap_spill(sh->s, MiB / 2);
	cr_assert_gt(on_disk(), 500, "%u", on_disk());
	cr_assert_gt(stats().delta_pages, 1000);
	cr_assert_gt(bases_in_pool(), 550, "%u", bases_in_pool());
	check_all();
	spill_all();
	cr_assert_eq(bases_in_pool(), 0);
	check_all();
	end();
}

Test(disk, disk_orphan_stays_until_its_deltas_have_gone)
{
	put_bases_and_deltas();
	for (unsigned i = 0; i < 600; i++)
		drop(i);
	cr_assert_gt(stats().orphan_bytes, 500 * KiB);
	swap_spill(sh->s, MiB / 2);
	cr_assert_gt(stats().delta_pages, 1000);
	cr_assert_gt(stats().orphan_bytes, 500 * KiB);
	check_all();
	spill_all();
	cr_assert_eq(stats().orphan_bytes, 0);
	check_all();
	end();
}

/* Else its page would be on disk, and its object in memory nevertheless. */
Test(disk, disk_page_on_its_way_down_made_no_base)
{
	uint32_t segment;

	begin_alike(PLAIN);
	families = 1;
	put_many(0, 1, 1500);
	segment = sh->s->pool.open[POOL_HOT];
	cr_assert(pool_carry(&sh->s->pool, segment));
	put_many(1, 1, 1500);
	cr_assert_eq(stats().delta_pages, 0);
	pool_uncarry(&sh->s->pool, segment);
	put_many(2, 1, 1500);
	cr_assert_eq(stats().delta_pages, 1);
	check_all();
	end();
}

Test(disk, disk_bases_leave_room_for_what_is_asked)
{
	uint64_t most;

	begin_alike(PLAIN);
	families = 3000;
	for (unsigned i = 0; i < PAGES; i++) {
		swap_room(sh->s, 100);
		cr_assert_eq(put(i, i, 1500), 0);
	}
	most = sh->s->pool.segments_max * SEGMENT_BYTES / BASES_SHARE_DISK;
	cr_assert_leq(sh->s->delta->base_bytes, most);
	cr_assert_gt(sh->s->delta->base_bytes, most / 2, "bases enough for the test");
	cr_assert_eq(swap_room(sh->s, 800), 800);
	check_all();
	end();
}

/* Else all of the pool would go before one of its segments was empty. */
Test(disk, disk_bases_in_a_full_pool_room_made_without_spilling_all)
{
	unsigned n = 0;

	begin_alike(PLAIN);
	families = 1500;
	while (n < 1500 && put(n, n, 1500) == 0)
		n++;
	for (; n < PAGES && put(n, n, RAW_NOISE - 1600) == 0; n++)
		;
	cr_assert_lt(n, PAGES);
	sh->ref[n].v = 0;
	cr_assert_eq(swap_room(sh->s, 32), 32);
	cr_assert_lt(on_disk(), n / 2);
	check_all();
	end();
}

static void damage_delta(unsigned byte)
{
	struct page page;

	begin_alike(PLAIN);
	put_alike(0, 1000);
	((uint8_t *)object_in_pool(500))[byte] ^= 0x10;
	swap_spill(sh->s, UINT64_MAX / 2);
	cr_assert(ref_is_packed(sh->ref[500]));
	cr_assert_eq(read_page(500, &page), -EIO);
	for (unsigned i = 0; i < 1000; i++)
		if (i != 500)
			check_page(i);
	cr_assert_geq(on_disk(), 998, "all but it and its base");
	destroy();
	forget_path();
}

Test(disk, disk_damaged_delta_not_spilled)
{
	damage_delta(8);  /* its sum */
	damage_delta(17); /* its row */
	damage_delta(40); /* its data */
}

static uint64_t odd_tag(unsigned owner, uint32_t bytes, bool is_delta)
{
	return is_delta ? tag_make(owner, bytes | TAG_DELTA, OBJECT_LIVE) :
			  tag_make(owner, bytes, OBJECT_BASE);
}

Test(disk, disk_object_that_passes_for_delta_or_base_eio)
{
	struct page page;
	uint64_t tag;

	begin(PLAIN);
	put_many(0, 100, 1500);
	spill_all();
	for (unsigned i = 10; i < 12; i++) {
		int fd = open(path, O_RDONLY);

		cr_assert_eq(pread(fd, &tag, sizeof(tag), (off_t)object_offset(i)), 8);
		close(fd);
		tag = odd_tag(i, tag_bytes(tag), i % 2 == 0);
		overwrite(object_offset(i), &tag, sizeof(tag));
		check_damaged(i);
	}
	cr_assert_eq(read_page(12, &page), 0);
	end();
}

Test(disk, disk_object_that_passes_for_delta_or_base_not_spilled)
{
	struct page page;

	begin(PLAIN);
	put_many(0, 2000, 1500);
	for (unsigned i = 10; i < 12; i++) {
		struct object *o = object_in_pool(i);

		o->tag = odd_tag(i, tag_bytes(o->tag), i % 2 == 0);
	}
	swap_spill(sh->s, UINT64_MAX / 2);
	for (unsigned i = 0; i < 2000; i++)
		if (i == 10 || i == 11)
			cr_assert(ref_is_packed(sh->ref[i]) && read_page(i, &page) == -EIO);
		else
			check_page(i);
	cr_assert_eq(on_disk(), 1998);
	end();
}

Test(disk, disk_segment_zeroed_eio_and_others_come_back)
{
	static const uint8_t zeroes[SEGMENT_BYTES];

	for (int how = PLAIN; how <= ENCRYPTED; how++) {
		begin((enum secrecy)how);
		put_many(0, 2000, 1500);
		spill_all();
		overwrite(disk_offset(1), zeroes, sizeof(zeroes));
		for (unsigned i = 0; i < 2000; i++) {
			if (disk_segment_of(sh->ref[i]) == 1)
				check_damaged(i);
			else
				check_page(i);
		}
		end();
	}
}

Test(disk, disk_file_truncated_eio)
{
	struct page got;

	begin(PLAIN);
	put_many(0, 1000, 1500);
	spill_all();
	cr_assert_eq(truncate(path, (off_t)disk_offset(1)), 0);
	for (unsigned i = 0; i < 1000; i++) {
		if (disk_segment_of(sh->ref[i]) == 0)
			check_page(i);
		else
			cr_assert_eq(read_page(i, &got), -EIO);
	}
	end();
}

static void copy_segment(uint32_t i, uint8_t *to)
{
	int fd = open(path, O_RDONLY);

	cr_assert_eq(pread(fd, to, SEGMENT_BYTES, (off_t)disk_offset(i)), (ssize_t)SEGMENT_BYTES);
	close(fd);
}

/* The disk says it wrote, and has yesterday's bytes: sound, of the same owners, at the
 * same places. */
Test(disk, disk_write_lost_old_bytes_not_taken_for_new)
{
	static uint8_t old[SEGMENT_BYTES];

	for (int how = PLAIN; how <= ENCRYPTED; how++) {
		begin((enum secrecy)how);
		put_many(0, 100, 1500);
		spill_all();
		copy_segment(0, old);
		for (unsigned i = 0; i < 100; i++)
			drop(i);
		for (unsigned i = 0; i < 100; i++)
			cr_assert_eq(put(i, 5000 + i, 1500), 0);
		spill_all();
		cr_assert_eq(disk_segment_of(sh->ref[0]), 0, "written over");
		check_all();
		overwrite(disk_offset(0), old, sizeof(old));
		for (unsigned i = 0; i < 100; i++)
			check_damaged(i);
		end();
	}
}

Test(disk, disk_segment_of_another_place_or_boot_not_taken)
{
	static uint8_t old[SEGMENT_BYTES];

	begin(PLAIN);
	put_many(0, 100, 1500);
	spill_all();
	copy_segment(0, old);
	destroy();
	cr_assert_eq(try_create(CAP), 0); /* the same again */
	put_many(0, 100, 1500);
	spill_all();
	check_all();
	overwrite(disk_offset(0), old, sizeof(old));
	for (unsigned i = 0; i < 100; i++)
		check_damaged(i);
	end();
}

Test(disk, disk_wrong_owner_or_ref_eio)
{
	struct page got;

	begin(PLAIN);
	put_many(0, 100, 1500);
	spill_all();
	cr_assert_eq(swap_get(sh->s, sh->ref[3], 4, &got), -EIO);
	for (uint64_t bit = 0; bit < 64; bit++) {
		swap_ref_t wrong = { sh->ref[3].v ^ (uint64_t)1 << bit };

		cr_assert_eq(swap_get(sh->s, wrong, 3, &got), -EIO, "bit %d", (int)bit);
	}
	check_page(3);
	end();
}
