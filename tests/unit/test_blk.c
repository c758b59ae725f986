/*
 * A disk: what its requests do to the image, what is refused and by which
 * counter, reset and destruction with I/O in flight, and what an operator is
 * told when an image cannot be had.  Defends I1 to I4 of virtio/blk.c and I1 of
 * virtio/image.c.
 */
#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tests/lib/fakeguest.h"
#include "virtio/devices.h"

#define IMAGE_BYTES MiB
#define IMAGE_SECTORS (IMAGE_BYTES / BLK_SECTOR)
#define ALL (~0ull)
#define NO_STATUS 0xaa /* what the byte holds before a device writes it */
#define MAX_BUFS 200

static struct fakeguest g;
static char path[64];
static int image_fd;
static struct err err;

/* A request being built. */
static struct fakebuf bufs[MAX_BUFS];
static unsigned buf_count;
static uint64_t status_gpa;

/* ---- the image ----------------------------------------------------------- */

/* Every sector differs from its neighbours and no byte of it is zero. */
static uint8_t expected(uint64_t offset)
{
	return (uint8_t)(1 + offset / BLK_SECTOR % 251);
}

static void fill_image(uint64_t bytes)
{
	static uint8_t buf[64 * 1024];

	for (uint64_t at = 0; at < bytes; at += sizeof buf) {
		size_t n = bytes - at < sizeof buf ? bytes - at : sizeof buf;

		for (size_t i = 0; i < n; i++)
			buf[i] = expected(at + i);
		cr_assert_eq(pwrite(image_fd, buf, n, (off_t)at), (ssize_t)n);
	}
}

static void make_image(uint64_t bytes)
{
	snprintf(path, sizeof path, "/tmp/brim-test-blk-XXXXXX");
	image_fd = mkstemp(path);
	cr_assert_geq(image_fd, 0);
	fill_image(bytes);
}

/* On tmpfs, whatever the machine has: it punches holes and zeroes no ranges. */
static void make_memory_image(uint64_t bytes)
{
	image_fd = memfd_create("brim-test-blk", MFD_CLOEXEC);
	cr_assert_geq(image_fd, 0);
	snprintf(path, sizeof path, "/proc/self/fd/%d", image_fd);
	fill_image(bytes);
}

static uint8_t image_byte(uint64_t offset)
{
	uint8_t b;

	cr_assert_eq(pread(image_fd, &b, 1, (off_t)offset), 1);
	return b;
}

/* [from, to) of the image: all zero, or as it was. */
static void expect_image(uint64_t from, uint64_t to, bool zero)
{
	static uint8_t buf[64 * 1024];

	for (uint64_t at = from; at < to; at += sizeof buf) {
		size_t n = to - at < sizeof buf ? to - at : sizeof buf;

		cr_assert_eq(pread(image_fd, buf, n, (off_t)at), (ssize_t)n);
		for (size_t i = 0; i < n; i++)
			cr_assert_eq(buf[i], zero ? 0 : expected(at + i), "byte %zu", at + i);
	}
}

/* ---- the device ---------------------------------------------------------- */

static void begin_with(const struct virtio_blk_config *cfg, uint64_t features)
{
	struct virtio_dev *dev;

	fakeguest_init(&g);
	cr_assert_eq(virtio_blk_create(&dev, &g.env, "disk0", cfg, &err), 0, "%s", err.msg);
	fakeguest_attach(&g, dev);
	cr_assert(fakeguest_start(&g, features));
	fakeguest_drain(&g, 10);
}

static void begin(uint64_t features)
{
	make_image(IMAGE_BYTES);
	begin_with(&(struct virtio_blk_config){ .path = path }, features);
}

static bool is_lent(void)
{
	return ram_is_lent(g.ram, 0, ram_size_bytes(g.ram) >> PAGE_SHIFT);
}

static void end(void)
{
	fakeguest_fini(&g);
	close(image_fd);
	unlink(path);
}

static int create(const struct virtio_blk_config *cfg, struct virtio_dev **dev)
{
	memset(&err, 0, sizeof err);
	return virtio_blk_create(dev, &g.env, "disk0", cfg, &err);
}

/* ---- requests ------------------------------------------------------------ */

static uint64_t add_buf(uint32_t len, bool device_writes)
{
	uint64_t at = fakeguest_alloc(&g, len, 1);

	cr_assert_lt(buf_count, MAX_BUFS);
	bufs[buf_count++] = (struct fakebuf){ .gpa = at, .len = len,
					      .device_writes = device_writes };
	return at;
}

static void put_header(uint64_t at, uint32_t type, uint64_t sector)
{
	struct blk_header_le h = { .type = type, .sector = sector };

	memcpy(fakeguest_at(&g, at, sizeof h), &h, sizeof h);
}

static void start_request(uint32_t type, uint64_t sector)
{
	buf_count = 0;
	put_header(add_buf(sizeof(struct blk_header_le), false), type, sector);
}

static void add_status(void)
{
	status_gpa = add_buf(1, true);
	*(uint8_t *)fakeguest_at(&g, status_gpa, 1) = NO_STATUS;
}

static uint8_t status(void)
{
	return *(uint8_t *)fakeguest_at(&g, status_gpa, 1);
}

static uint32_t writable_bytes(void)
{
	uint32_t n = 0;

	for (unsigned i = 0; i < buf_count; i++)
		n += bufs[i].device_writes ? bufs[i].len : 0;
	return n;
}

/* Sends what was built; returns the used length. */
static uint32_t send_request(void)
{
	uint32_t head, used_head, len;
	uint16_t old_idx;

	old_idx = g.q[0].avail_idx;
	head = buf_count > 20 ? fakeguest_add_indirect(&g, 0, bufs, buf_count) :
				fakeguest_add(&g, 0, bufs, buf_count);
	cr_assert(fakeguest_wants_kick(&g, 0, old_idx));
	fakeguest_kick(&g, 0);
	cr_assert(fakeguest_wait_used(&g, 0, &used_head, &len));
	cr_assert_eq(used_head, head);
	return len;
}

static uint8_t finish_request(void)
{
	add_status();
	cr_assert_eq(send_request(), writable_bytes());
	return status();
}

static uint8_t do_read(uint64_t sector, uint32_t len, uint64_t *data)
{
	start_request(BLK_T_IN, sector);
	*data = add_buf(len, true);
	return finish_request();
}

static uint8_t do_write(uint64_t sector, uint32_t len, uint8_t fill)
{
	start_request(BLK_T_OUT, sector);
	memset(fakeguest_at(&g, add_buf(len, false), len), fill, len);
	return finish_request();
}

static uint8_t do_flush(void)
{
	start_request(BLK_T_FLUSH, 0);
	return finish_request();
}

static uint8_t do_ranges(uint32_t type, const struct blk_range_le *r, unsigned n)
{
	uint32_t len = (uint32_t)(n * sizeof *r);

	start_request(type, 0);
	memcpy(fakeguest_at(&g, add_buf(len, false), len), r, len);
	return finish_request();
}

static void expect_read(uint64_t sector, uint32_t len)
{
	const uint8_t *p;
	uint64_t data;

	cr_assert_eq(do_read(sector, len, &data), BLK_S_OK);
	p = fakeguest_at(&g, data, len);
	for (uint32_t i = 0; i < len; i++)
		cr_assert_eq(p[i], expected(sector * BLK_SECTOR + i), "byte %u", i);
}

static void expect_refused(uint8_t got, uint8_t want)
{
	static uint64_t before;

	cr_assert_eq(got, want);
	cr_assert_eq(counter_get(CTR_blk_bad_request), ++before);
	cr_assert_eq(fakeguest_status(&g) & VIRTIO_STATUS_NEEDS_RESET, 0);
}

/* ---- what a disk is for -------------------------------------------------- */

Test(blk, config_describes_image)
{
	uint64_t wanted = BIT(BLK_F_SEG_MAX) | BIT(BLK_F_BLK_SIZE) | BIT(BLK_F_FLUSH) |
			  BIT(BLK_F_TOPOLOGY) | BIT(BLK_F_DISCARD) | BIT(BLK_F_WRITE_ZEROES);

	begin(ALL);
	cr_assert_eq(fakeguest_offered(&g) & 0xffffff, wanted);
	cr_assert_eq(fakeguest_read(&g, VIRTIO_PCI_DEVICE, 8), IMAGE_SECTORS);
	cr_assert_eq(fakeguest_read(&g, VIRTIO_PCI_DEVICE + 12, 4), 126);
	cr_assert_eq(fakeguest_read(&g, VIRTIO_PCI_DEVICE + 20, 4), 512);
	cr_assert_eq(fakeguest_read(&g, VIRTIO_PCI_DEVICE + 24, 1), 3, "4 KiB is 2^3 blocks");
	cr_assert_eq(fakeguest_read(&g, VIRTIO_PCI_DEVICE + 26, 2), 8);
	cr_assert_eq(fakeguest_read(&g, VIRTIO_PCI_DEVICE + 40, 4), 16, "max_discard_seg");
	cr_assert_eq(fakeguest_read(&g, VIRTIO_PCI_DEVICE + 56, 1), 1, "may unmap");
	end();
}

Test(blk, config_written_is_counted_and_ignored)
{
	begin(ALL);
	fakeguest_write(&g, VIRTIO_PCI_DEVICE, 1, 4);
	cr_assert_eq(counter_get(CTR_virtio_bad_access), 1);
	cr_assert_eq(fakeguest_read(&g, VIRTIO_PCI_DEVICE, 8), IMAGE_SECTORS);
	end();
}

Test(blk, read_gives_image)
{
	begin(ALL);
	expect_read(0, 512);
	expect_read(7, 65536);
	expect_read(IMAGE_SECTORS - 1, 512);
	cr_assert_eq(counter_get(CTR_blk_reads), 3);
	cr_assert_eq(counter_get(CTR_blk_read_bytes), 512 + 65536 + 512);
	cr_assert_eq(counter_get(CTR_blk_bad_request), 0);
	cr_assert_gt(g.interrupts[0], 0);
	end();
}

Test(blk, write_reaches_image)
{
	begin(ALL);
	cr_assert_eq(do_write(3, 1024, 0x5a), BLK_S_OK);
	cr_assert_eq(do_flush(), BLK_S_OK);
	cr_assert_eq(image_byte(3 * 512), 0x5a);
	cr_assert_eq(image_byte(5 * 512 - 1), 0x5a);
	expect_image(0, 3 * 512, false);
	expect_image(5 * 512, IMAGE_BYTES, false);
	cr_assert_eq(counter_get(CTR_blk_writes), 1);
	cr_assert_eq(counter_get(CTR_blk_write_bytes), 1024);
	cr_assert_eq(counter_get(CTR_blk_flushes), 1);
	end();
}

/* A driver that cannot flush gets its write back only when it is stable: the
 * turn that takes the write's completion has the image synced first. */
static void write_and_turn(uint64_t features, bool back_at_once)
{
	uint32_t head, len;

	begin(features);
	start_request(BLK_T_OUT, 0);
	add_buf(512, false);
	add_status();
	fakeguest_add(&g, 0, bufs, buf_count);
	fakeguest_kick(&g, 0);
	cr_assert_eq(fakeguest_turn(&g, 1000), 1, "the kick");
	cr_assert_eq(fakeguest_turn(&g, 1000), 1, "the write");
	cr_assert_eq(fakeguest_used(&g, 0, &head, &len), back_at_once);
	if (!back_at_once)
		cr_assert(fakeguest_wait_used(&g, 0, &head, &len));
	cr_assert_eq(status(), BLK_S_OK);
	cr_assert_eq(counter_get(CTR_blk_writes), 1);
	cr_assert_eq(counter_get(CTR_blk_flushes), 0);
	end();
}

Test(blk, write_with_flush_feature_is_back_at_once)
{
	write_and_turn(BIT(BLK_F_FLUSH), true);
}

Test(blk, write_without_flush_feature_is_synced)
{
	write_and_turn(0, false);
}

Test(blk, transfer_larger_than_slice_is_whole)
{
	uint32_t lens[] = { 1536, 5 * 1024 * 1024, 512, 2 * 1024 * 1024 - 512 };
	uint64_t at[ARRAY_LEN(lens)], offset = 512;

	make_image(8 * MiB);
	begin_with(&(struct virtio_blk_config){ .path = path }, ALL);
	start_request(BLK_T_IN, 1);
	for (unsigned i = 0; i < ARRAY_LEN(lens); i++)
		at[i] = add_buf(lens[i], true);
	cr_assert_eq(finish_request(), BLK_S_OK);
	for (unsigned i = 0; i < ARRAY_LEN(lens); i++) {
		const uint8_t *p = fakeguest_at(&g, at[i], lens[i]);

		for (uint32_t k = 0; k < lens[i]; k++, offset++)
			cr_assert_eq(p[k], expected(offset), "buffer %u byte %u", i, k);
	}
	cr_assert_eq(do_write(2, 5 * 1024 * 1024, 0xee), BLK_S_OK);
	cr_assert_eq(image_byte(1024), 0xee);
	cr_assert_eq(image_byte(1024 + 5 * MiB - 1), 0xee);
	expect_image(1024 + 5 * MiB, 8 * MiB, false);
	end();
}

Test(blk, empty_transfer_succeeds)
{
	begin(ALL);
	start_request(BLK_T_IN, 0);
	cr_assert_eq(finish_request(), BLK_S_OK);
	start_request(BLK_T_OUT, IMAGE_SECTORS);
	cr_assert_eq(finish_request(), BLK_S_OK);
	end();
}

/* More than a turn's share, and as many as there are slots. */
Test(blk, full_queue_completes)
{
	uint32_t head, len;

	begin(ALL);
	for (unsigned i = 0; i < 256; i++) {
		start_request(BLK_T_IN, i);
		add_buf(512, true);
		add_status();
		fakeguest_add_indirect(&g, 0, bufs, buf_count);
	}
	fakeguest_kick(&g, 0);
	for (unsigned i = 0; i < 256; i++)
		cr_assert(fakeguest_wait_used(&g, 0, &head, &len));
	cr_assert_eq(counter_get(CTR_blk_reads), 256);
	cr_assert_not(fakeguest_used(&g, 0, &head, &len));
	end();
}

/* Requests that never reach the ring have no completion to go on from. */
Test(blk, full_queue_of_refused_requests_goes_on)
{
	uint32_t head, len;

	begin(ALL);
	for (unsigned i = 0; i < 100; i++) {
		start_request(99, 0);
		add_status();
		fakeguest_add_indirect(&g, 0, bufs, buf_count);
	}
	fakeguest_kick(&g, 0);
	cr_assert_gt(fakeguest_turn(&g, 1000), 0);
	cr_assert_leq(counter_get(CTR_blk_bad_request), 32, "a turn is bounded");
	for (unsigned i = 0; i < 100; i++)
		cr_assert(fakeguest_wait_used(&g, 0, &head, &len));
	cr_assert_eq(counter_get(CTR_blk_bad_request), 100);
	end();
}

Test(blk, get_id_gives_serial)
{
	uint64_t data;

	make_image(IMAGE_BYTES);
	begin_with(&(struct virtio_blk_config){ .path = path, .serial = "0123456789abcdefghij" },
		   ALL);
	start_request(BLK_T_GET_ID, 0);
	data = add_buf(20, true);
	cr_assert_eq(finish_request(), BLK_S_OK);
	cr_assert_arr_eq(fakeguest_at(&g, data, 20), "0123456789abcdefghij", 20);
	start_request(BLK_T_GET_ID, 0);
	data = add_buf(3, true);
	cr_assert_eq(finish_request(), BLK_S_OK);
	cr_assert_arr_eq(fakeguest_at(&g, data, 3), "012", 3);
	end();
}

Test(blk, get_id_without_serial_follows_path)
{
	char first[20];
	uint64_t data;

	begin(ALL);
	start_request(BLK_T_GET_ID, 0);
	data = add_buf(20, true);
	cr_assert_eq(finish_request(), BLK_S_OK);
	memcpy(first, fakeguest_at(&g, data, 20), 20);
	cr_assert_arr_eq(first, "brim-", 5);
	fakeguest_fini(&g);
	begin_with(&(struct virtio_blk_config){ .path = path }, ALL);
	start_request(BLK_T_GET_ID, 0);
	data = add_buf(20, true);
	cr_assert_eq(finish_request(), BLK_S_OK);
	cr_assert_arr_eq(first, fakeguest_at(&g, data, 20), 20);
	end();
}

/* ---- discard and write zeroes -------------------------------------------- */

Test(blk, discard_frees_range)
{
	const struct blk_range_le r = { .sector = 256, .num_sectors = 512 };
	struct stat before, after;

	begin(ALL);
	cr_assert_eq(do_flush(), BLK_S_OK);
	cr_assert_eq(fstat(image_fd, &before), 0);
	cr_assert_eq(do_ranges(BLK_T_DISCARD, &r, 1), BLK_S_OK);
	cr_assert_eq(fstat(image_fd, &after), 0);
	cr_assert_lt(after.st_blocks, before.st_blocks);
	cr_assert_eq(after.st_size, before.st_size);
	expect_image(0, 256 * 512, false);
	expect_image(256 * 512, 768 * 512, true);
	expect_image(768 * 512, IMAGE_BYTES, false);
	cr_assert_eq(counter_get(CTR_blk_discards), 1);
	end();
}

static void zero_ranges(uint32_t flags)
{
	const struct blk_range_le r[] = {
		{ .sector = 1, .num_sectors = 1, .flags = flags },
		{ .sector = 5, .num_sectors = 0, .flags = flags },
		{ .sector = IMAGE_SECTORS - 1000, .num_sectors = 1000, .flags = flags },
	};

	cr_assert_eq(do_ranges(BLK_T_WRITE_ZEROES, r, ARRAY_LEN(r)), BLK_S_OK);
	expect_image(0, 512, false);
	expect_image(512, 1024, true);
	expect_image(1024, IMAGE_BYTES - 1000 * 512, false);
	expect_image(IMAGE_BYTES - 1000 * 512, IMAGE_BYTES, true);
	cr_assert_eq(counter_get(CTR_blk_discards), 1);
}

Test(blk, write_zeroes_zeroes_ranges)
{
	begin(ALL);
	zero_ranges(0);
	end();
}

Test(blk, write_zeroes_with_unmap_zeroes_ranges)
{
	begin(ALL);
	zero_ranges(BLK_RANGE_UNMAP);
	end();
}

Test(blk, write_zeroes_without_flush_feature_zeroes_ranges)
{
	begin(BIT(BLK_F_WRITE_ZEROES));
	zero_ranges(0);
	end();
}

Test(blk, write_zeroes_host_cannot_are_written)
{
	const struct blk_range_le big = { .sector = 1, .num_sectors = 10000 };

	make_memory_image(8 * MiB);
	cr_assert_neq(fallocate(image_fd, FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE, 0, 4096), 0);
	begin_with(&(struct virtio_blk_config){ .path = path }, ALL);
	for (int i = 0; i < 2; i++) { /* the second knows it from the start */
		fill_image(8 * MiB);
		cr_assert_eq(do_ranges(BLK_T_WRITE_ZEROES, &big, 1), BLK_S_OK);
		expect_image(0, 512, false);
		expect_image(512, 10001 * 512, true);
		expect_image(10001 * 512, 8 * MiB, false);
	}
	end();
}

Test(blk, range_malformed_is_refused)
{
	static const struct {
		struct blk_range_le r;
		uint8_t discard, zeroes;
	} cases[] = {
		{ { IMAGE_SECTORS, 1, 0 }, BLK_S_IOERR, BLK_S_IOERR },
		{ { IMAGE_SECTORS - 1, 2, 0 }, BLK_S_IOERR, BLK_S_IOERR },
		{ { UINT64_MAX, 2, 0 }, BLK_S_IOERR, BLK_S_IOERR },
		{ { UINT64_MAX >> 9, 1, 0 }, BLK_S_IOERR, BLK_S_IOERR },
		{ { 0, UINT32_MAX, 0 }, BLK_S_IOERR, BLK_S_IOERR },
		{ { 0, 1, 2 }, BLK_S_UNSUPP, BLK_S_UNSUPP },
		{ { 0, 1, 0x80000001 }, BLK_S_UNSUPP, BLK_S_UNSUPP },
		{ { 0, 1, BLK_RANGE_UNMAP }, BLK_S_UNSUPP, NO_STATUS },
	};

	begin(ALL);
	for (unsigned i = 0; i < ARRAY_LEN(cases); i++) {
		expect_refused(do_ranges(BLK_T_DISCARD, &cases[i].r, 1), cases[i].discard);
		if (cases[i].zeroes != NO_STATUS)
			expect_refused(do_ranges(BLK_T_WRITE_ZEROES, &cases[i].r, 1),
				       cases[i].zeroes);
	}
	expect_image(0, IMAGE_BYTES, false);
	end();
}

Test(blk, range_behind_a_bad_one_is_not_touched)
{
	const struct blk_range_le r[] = { { .sector = 0, .num_sectors = 8 },
					  { .sector = IMAGE_SECTORS, .num_sectors = 8 } };

	begin(ALL);
	expect_refused(do_ranges(BLK_T_WRITE_ZEROES, r, 2), BLK_S_IOERR);
	expect_image(0, IMAGE_BYTES, false);
	end();
}

Test(blk, range_count_wrong_is_refused)
{
	struct blk_range_le r[17] = { 0 };

	begin(ALL);
	cr_assert_eq(do_ranges(BLK_T_DISCARD, r, 16), BLK_S_OK);
	expect_refused(do_ranges(BLK_T_DISCARD, r, 17), BLK_S_IOERR);
	start_request(BLK_T_DISCARD, 0);
	expect_refused(finish_request(), BLK_S_IOERR);
	start_request(BLK_T_DISCARD, 0);
	add_buf(15, false);
	expect_refused(finish_request(), BLK_S_IOERR);
	end();
}

Test(blk, range_type_not_negotiated_is_unsupported)
{
	const struct blk_range_le r = { .sector = 0, .num_sectors = 8 };

	begin(BIT(BLK_F_FLUSH));
	expect_refused(do_ranges(BLK_T_DISCARD, &r, 1), BLK_S_UNSUPP);
	expect_refused(do_ranges(BLK_T_WRITE_ZEROES, &r, 1), BLK_S_UNSUPP);
	end();
}

/* ---- what is refused ----------------------------------------------------- */

Test(blk, transfer_out_of_range_is_refused)
{
	static const uint64_t sectors[] = {
		IMAGE_SECTORS, IMAGE_SECTORS - 1, UINT64_MAX, UINT64_MAX - 1,
		UINT64_MAX / 512, UINT64_MAX / 512 + 1, 1ull << 55, 1ull << 63,
	};
	uint64_t data;

	begin(ALL);
	for (unsigned i = 0; i < ARRAY_LEN(sectors); i++) {
		expect_refused(do_read(sectors[i], 1024, &data), BLK_S_IOERR);
		expect_refused(do_write(sectors[i], 1024, 0), BLK_S_IOERR);
	}
	expect_image(0, IMAGE_BYTES, false);
	cr_assert_eq(counter_get(CTR_blk_reads) + counter_get(CTR_blk_writes), 0);
	end();
}

Test(blk, transfer_of_part_of_sector_is_refused)
{
	uint64_t data;

	begin(ALL);
	expect_refused(do_read(0, 511, &data), BLK_S_IOERR);
	expect_refused(do_read(0, 513, &data), BLK_S_IOERR);
	expect_refused(do_write(0, 1, 0), BLK_S_IOERR);
	end();
}

Test(blk, transfer_with_too_many_buffers_is_refused)
{
	begin(ALL);
	for (unsigned n = 126; n <= 127; n++) {
		start_request(BLK_T_IN, 0);
		for (unsigned i = 0; i < n; i++)
			add_buf(512, true);
		if (n == 126)
			cr_assert_eq(finish_request(), BLK_S_OK);
		else
			expect_refused(finish_request(), BLK_S_IOERR);
	}
	end();
}

Test(blk, type_unknown_is_unsupported)
{
	begin(ALL);
	start_request(0x80000000, 0);
	expect_refused(finish_request(), BLK_S_UNSUPP);
	start_request(14, 0); /* secure erase: not offered */
	expect_refused(finish_request(), BLK_S_UNSUPP);
	end();
}

Test(blk, header_too_short_is_refused)
{
	begin(ALL);
	buf_count = 0;
	add_buf(15, false);
	expect_refused(finish_request(), BLK_S_IOERR);
	buf_count = 0; /* none at all */
	expect_refused(finish_request(), BLK_S_IOERR);
	end();
}

Test(blk, chain_without_status_goes_back_empty)
{
	begin(ALL);
	start_request(BLK_T_OUT, 0);
	add_buf(512, false);
	cr_assert_eq(send_request(), 0);
	cr_assert_eq(counter_get(CTR_blk_bad_request), 1);
	expect_image(0, IMAGE_BYTES, false);
	expect_read(0, 512); /* the disk works on */
	end();
}

Test(blk, readonly_disk_refuses_writes)
{
	const struct blk_range_le r = { .sector = 0, .num_sectors = 8 };

	make_image(IMAGE_BYTES);
	cr_assert_eq(fchmod(image_fd, 0400), 0);
	begin_with(&(struct virtio_blk_config){ .path = path, .readonly = true }, ALL);
	cr_assert(fakeguest_offered(&g) & BIT(BLK_F_RO));
	cr_assert_not(fakeguest_offered(&g) & (BIT(BLK_F_DISCARD) | BIT(BLK_F_WRITE_ZEROES)));
	expect_refused(do_write(0, 512, 0), BLK_S_IOERR);
	expect_refused(do_ranges(BLK_T_DISCARD, &r, 1), BLK_S_UNSUPP);
	expect_refused(do_ranges(BLK_T_WRITE_ZEROES, &r, 1), BLK_S_UNSUPP);
	expect_read(0, 4096);
	cr_assert_eq(do_flush(), BLK_S_OK);
	expect_image(0, IMAGE_BYTES, false);
	end();
}

Test(blk, image_shortened_gives_io_error)
{
	uint64_t data;

	begin(ALL);
	cr_assert_eq(ftruncate(image_fd, 4096), 0);
	expect_read(0, 4096);
	cr_assert_eq(do_read(4, 4096, &data), BLK_S_IOERR, "the second half is not there");
	cr_assert_eq(do_read(100, 512, &data), BLK_S_IOERR);
	cr_assert_eq(counter_get(CTR_blk_io_errors), 2);
	cr_assert_eq(counter_get(CTR_blk_bad_request), 0);
	end();
}

/* ---- layouts (section 2.7.4) --------------------------------------------- */

Test(blk, layout_header_in_pieces_works)
{
	struct blk_header_le h = { .type = BLK_T_IN, .sector = 9 };
	static const uint32_t pieces[] = { 1, 7, 8 };
	uint32_t done = 0;
	uint64_t data;

	begin(ALL);
	buf_count = 0;
	for (unsigned i = 0; i < ARRAY_LEN(pieces); i++) {
		memcpy(fakeguest_at(&g, add_buf(pieces[i], false), pieces[i]),
		       (uint8_t *)&h + done, pieces[i]);
		done += pieces[i];
	}
	data = add_buf(512, true);
	cr_assert_eq(finish_request(), BLK_S_OK);
	cr_assert_eq(*(uint8_t *)fakeguest_at(&g, data, 1), expected(9 * 512));
	end();
}

Test(blk, layout_header_with_data_works)
{
	uint64_t at;

	begin(ALL);
	buf_count = 0;
	at = add_buf(16 + 500, false);
	put_header(at, BLK_T_OUT, 2);
	memset(fakeguest_at(&g, at + 16, 500), 0x77, 500);
	memset(fakeguest_at(&g, add_buf(12 + 512, false), 524), 0x77, 524);
	cr_assert_eq(finish_request(), BLK_S_OK);
	cr_assert_eq(image_byte(2 * 512), 0x77);
	cr_assert_eq(image_byte(4 * 512 - 1), 0x77);
	expect_image(4 * 512, IMAGE_BYTES, false);
	end();
}

Test(blk, layout_status_with_data_works)
{
	uint8_t *p;

	begin(ALL);
	start_request(BLK_T_IN, 6);
	add_buf(100, true);
	p = fakeguest_at(&g, add_buf(412 + 512 + 1, true), 925);
	p[924] = NO_STATUS;
	cr_assert_eq(send_request(), 1025);
	cr_assert_eq(p[924], BLK_S_OK);
	cr_assert_eq(p[0], expected(6 * 512));
	cr_assert_eq(p[923], expected(7 * 512));
	end();
}

/* ---- reset and the end --------------------------------------------------- */

/* Puts `n` reads into the ring without taking their completions: those need the
 * loop, which is ours. */
static void put_in_flight(unsigned n)
{
	for (unsigned i = 0; i < n; i++) {
		start_request(BLK_T_IN, i);
		add_buf(512, true);
		add_status();
		fakeguest_add_indirect(&g, 0, bufs, buf_count);
	}
	fakeguest_kick(&g, 0);
	cr_assert_gt(fakeguest_turn(&g, 1000), 0);
	cr_assert_eq(counter_get(CTR_virtq_chains), n);
	cr_assert_eq(g.q[0].used[1], 0);
}

Test(blk, reset_in_flight_waits_and_writes_nothing_back)
{
	struct fakeq old;

	begin(ALL);
	put_in_flight(20);
	old = g.q[0];
	fakeguest_write(&g, VIRTIO_PCI_COMMON + 20, 0, 1);
	cr_assert_neq(fakeguest_status(&g), 0, "reset while requests are in flight");
	fakeguest_reset(&g);
	cr_assert_eq(fakeguest_status(&g), 0);
	cr_assert_eq(old.used[1], 0, "no chain came back after the reset");
	cr_assert_eq(status(), NO_STATUS);
	cr_assert_eq(counter_get(CTR_blk_reads), 0);

	cr_assert(fakeguest_start(&g, ALL));
	expect_read(0, 512);
	end();
}

Test(blk, memory_is_lent_while_it_is_read_into)
{
	begin(ALL);
	cr_assert(!is_lent());
	put_in_flight(20);
	cr_assert(is_lent());
	for (int i = 0; i < 1000 && g.q[0].used[1] < 20; i++)
		fakeguest_turn(&g, 1000);
	cr_assert_eq(g.q[0].used[1], 20);
	cr_assert(!is_lent());
	end();
}

Test(blk, reset_idle_is_done_at_once)
{
	begin(ALL);
	expect_read(0, 512);
	fakeguest_write(&g, VIRTIO_PCI_COMMON + 20, 0, 1);
	cr_assert_eq(fakeguest_status(&g), 0);
	end();
}

Test(blk, ring_broken_in_flight_recovers_by_reset)
{
	struct fakebuf outside = { .gpa = FAKE_RAM_BYTES, .len = 512 };

	begin(ALL);
	put_in_flight(5);
	fakeguest_add(&g, 0, &outside, 1);
	fakeguest_kick(&g, 0);
	fakeguest_drain(&g, 100);
	cr_assert(fakeguest_status(&g) & VIRTIO_STATUS_NEEDS_RESET);
	cr_assert_eq(counter_get(CTR_virtq_bad_address), 1);
	cr_assert(fakeguest_start(&g, ALL));
	expect_read(0, 512);
	end();
}

Test(blk, destroy_in_flight_waits)
{
	begin(ALL);
	put_in_flight(30);
	start_request(BLK_T_FLUSH, 0); /* which leaves for a worker thread */
	add_status();
	fakeguest_add(&g, 0, bufs, buf_count);
	fakeguest_kick(&g, 0);
	cr_assert_gt(fakeguest_turn(&g, 1000), 0);
	end(); /* a VERIFY in there counts them */
}

static void *put_in_flight_and_leave(void *ignored)
{
	put_in_flight(30);
	return NULL;
}

/* As a VM ends: its loop thread is gone, and with it whoever submitted. */
Test(blk, destroy_after_loop_thread_left_waits)
{
	pthread_t loop;

	begin(ALL);
	cr_assert_eq(pthread_create(&loop, NULL, put_in_flight_and_leave, NULL), 0);
	cr_assert_eq(pthread_join(loop, NULL), 0);
	end();
}

/* ---- O_DIRECT ------------------------------------------------------------ */

Test(blk, direct_takes_buffers_of_any_alignment)
{
	make_image(IMAGE_BYTES);
	begin_with(&(struct virtio_blk_config){ .path = path, .direct = true }, ALL);
	fakeguest_alloc(&g, 1, 4096);
	expect_read(0, 8192); /* one byte past a page */
	expect_read(1, 512);
	g.next_gpa = (g.next_gpa + 4095) & ~4095ull;
	start_request(BLK_T_OUT, 8);
	g.next_gpa = (g.next_gpa + 4095) & ~4095ull;
	memset(fakeguest_at(&g, add_buf(4096, false), 4096), 0x42, 4096);
	cr_assert_eq(finish_request(), BLK_S_OK);
	cr_assert_eq(do_write(17, 512, 0x43), BLK_S_OK);
	cr_assert_eq(do_flush(), BLK_S_OK);
	cr_assert_eq(image_byte(8 * 512), 0x42);
	cr_assert_eq(image_byte(16 * 512 - 1), 0x42);
	cr_assert_eq(image_byte(17 * 512), 0x43);
	end();
}

/* ---- what an operator is told -------------------------------------------- */

static void expect_error(const struct virtio_blk_config *cfg, int rc, const char *sentence)
{
	struct virtio_dev *dev = NULL;
	int got = create(cfg, &dev);

	cr_assert_eq(got, rc, "%d, %s", got, err.msg);
	cr_assert_null(dev);
	cr_assert(strstr(err.msg, sentence) != NULL, "'%s' does not say '%s'", err.msg, sentence);
	cr_assert_eq(strncmp(err.msg, "disk0", 5), 0);
}

Test(blk, image_lock_keeps_second_writer_out)
{
	struct virtio_blk_config rw = { .path = path };
	struct virtio_blk_config ro = { .path = path, .readonly = true };
	struct virtio_dev *first = NULL, *second = NULL;
	char sentence[128];

	make_image(IMAGE_BYTES);
	fakeguest_init(&g);
	snprintf(sentence, sizeof sentence, "disk0 %s: in use by another VM", path);
	cr_assert_eq(create(&rw, &first), 0);
	expect_error(&rw, -EBUSY, sentence);
	expect_error(&ro, -EBUSY, sentence);
	virtio_dev_destroy(&first);

	cr_assert_eq(create(&ro, &first), 0);
	expect_error(&rw, -EBUSY, sentence);
	cr_assert_eq(create(&ro, &second), 0);
	virtio_dev_destroy(&first);
	virtio_dev_destroy(&second);
	cr_assert_eq(create(&rw, &first), 0, "the lock is gone with the device");
	virtio_dev_destroy(&first);
	end();
}

Test(blk, image_unfit_is_refused_with_its_path)
{
	struct virtio_blk_config cfg = { .path = "/nonexistent/a.img" };

	fakeguest_init(&g);
	expect_error(&cfg, -ENOENT, "disk0 /nonexistent/a.img: No such file");
	cfg.path = "/tmp";
	expect_error(&cfg, -EINVAL, "disk0 /tmp: neither a regular file nor a block device");
	cfg.path = "/dev/null";
	expect_error(&cfg, -EINVAL, "/dev/null: neither");

	make_image(1000);
	cfg.path = path;
	expect_error(&cfg, -EINVAL, "1000 bytes, is not a multiple of 512 (pad it with: truncate");
	cr_assert_eq(ftruncate(image_fd, 0), 0);
	expect_error(&cfg, -EINVAL, "empty");
	cr_assert_eq(ftruncate(image_fd, 512), 0);
	cfg.serial = "012345678901234567890";
	expect_error(&cfg, -EINVAL, "longer than 20 bytes");
	end();
}

Test(blk, image_not_writable_says_so)
{
	struct virtio_blk_config cfg = { .path = path };
	struct virtio_dev *dev = NULL;

	make_image(512);
	fakeguest_init(&g);
	cr_assert_eq(fchmod(image_fd, 0444), 0);
	if (geteuid() == 0)
		cr_assert_eq(seteuid(65534), 0);
	expect_error(&cfg, -EACCES, "not writable (a read-only disk needs no write permission)");
	cfg.readonly = true;
	cr_assert_eq(create(&cfg, &dev), 0, "%s", err.msg);
	virtio_dev_destroy(&dev);
	if (getuid() == 0)
		cr_assert_eq(seteuid(0), 0);
	end();
}
