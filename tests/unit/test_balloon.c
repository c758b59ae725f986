/*
 * The balloon device behind its transport, driven by the fake guest.  Defends I1,
 * I2 and I3 of virtio/balloon.c, and the rule that nothing is discarded that the
 * guest may be using again.
 */
#include <criterion/criterion.h>
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>

#include "tests/lib/fakeguest.h"

#define F_MUST_TELL_HOST (1ull << 0)
#define F_STATS_VQ (1ull << 1)
#define F_DEFLATE_ON_OOM (1ull << 2)
#define F_FREE_PAGE_HINT (1ull << 3)
#define F_PAGE_POISON (1ull << 4)
#define F_REPORTING (1ull << 5)
#define F_ALL 0x3full
#define F_SYNC (F_ALL & ~(F_MUST_TELL_HOST | F_PAGE_POISON))
#define F_TOLD (F_ALL & ~F_PAGE_POISON)

enum { INFLATE, DEFLATE, STATS, HINT, REPORT };
enum { NUM_PAGES = 0, ACTUAL = 4, CMD_ID = 8, POISON = 12 };

/* Guest frames the tests give away; the rings and buffers lie far below. */
#define FRAME 4096u /* at 16 MiB */
#define MARK 0xa5

static struct fakeguest g;

/* ---- a host that watches ----------------------------------------------------- */

/* What the used rings said at the first discard. */
static unsigned discards, ranges_discarded;
static uint16_t used_at_discard[VIRTIO_MAX_QUEUES];
static int discard_errno; /* 0: discards work */

static int watch_discard(unsigned n)
{
	if (discards++ == 0)
		for (unsigned qi = 0; qi < VIRTIO_MAX_QUEUES; qi++)
			used_at_discard[qi] = g.q[qi].used ? g.q[qi].used[1] : 0;
	ranges_discarded += n;
	errno = discard_errno;
	return discard_errno ? -1 : 0;
}

static void *host_mmap(void *addr, size_t len, int prot, int flags, int fd, int64_t off)
{
	return mmap(addr, len, prot, flags, fd, off);
}

static int host_madvise(void *addr, size_t len, int advice)
{
	if (advice == MADV_DONTNEED && watch_discard(1) < 0)
		return -1;
	return madvise(addr, len, advice);
}

static int64_t host_many(const struct iovec *v, size_t n, int advice)
{
	int64_t bytes = 0;

	if (watch_discard((unsigned)n) < 0)
		return -1;
	for (size_t i = 0; i < n; i++) {
		cr_assert_eq(madvise(v[i].iov_base, v[i].iov_len, advice), 0);
		bytes += (int64_t)v[i].iov_len;
	}
	return bytes;
}

static const struct mm_host host = {
	.mmap = host_mmap, .munmap = munmap, .madvise = host_madvise, .madvise_many = host_many,
};

/* ---- helpers ----------------------------------------------------------------- */

static void make(unsigned stats_interval_s)
{
	const struct virtio_balloon_config cfg = {
		.deflate_on_oom = true, .reporting = true, .hinting = true, .poison = true,
		.stats_interval_s = stats_interval_s,
	};
	struct virtio_dev *dev = NULL;

	fakeguest_init_host(&g, &host);
	cr_assert_eq(virtio_balloon_create(&dev, &g.env, &cfg, NULL), 0);
	fakeguest_attach(&g, dev);
}

static void begin(uint64_t features)
{
	make(0);
	cr_assert(fakeguest_start(&g, features));
	fakeguest_drain(&g, 20);
}

static void end(void)
{
	fakeguest_fini(&g);
}

static struct balloon_status status(void)
{
	struct balloon_status s;

	virtio_balloon_status(g.dev, &s, NULL);
	return s;
}

static uint64_t balloon_pages_now(void)
{
	return status().ballooned_bytes / PAGE_BYTES;
}

static uint8_t *frame(uint64_t n)
{
	return fakeguest_at(&g, n * PAGE_BYTES, PAGE_BYTES);
}

static void fill(uint64_t first, uint64_t n)
{
	for (uint64_t i = 0; i < n; i++)
		memset(frame(first + i), MARK, PAGE_BYTES);
}

static bool all_are(uint64_t first, uint64_t n, uint8_t byte)
{
	for (uint64_t i = 0; i < n; i++)
		if (frame(first + i)[0] != byte || frame(first + i)[PAGE_BYTES - 1] != byte)
			return false;
	return true;
}

static uint64_t resident(void)
{
	uint64_t bytes = UINT64_MAX;

	cr_assert_eq(ram_resident_bytes(g.ram, &bytes), 0);
	return bytes;
}

/* A request of n page numbers from `first` on, `step` apart; not kicked. */
static void add_pfns(unsigned qi, uint32_t first, uint32_t n, uint32_t step)
{
	struct fakebuf b = { .gpa = fakeguest_alloc(&g, 4ull * n, 4), .len = 4 * n };
	uint32_t *pfns = fakeguest_at(&g, b.gpa, b.len);

	for (uint32_t i = 0; i < n; i++)
		pfns[i] = first + i * step;
	fakeguest_add(&g, qi, &b, 1);
}

static void kick_and_wait(unsigned qi, unsigned chains)
{
	uint32_t head, len = 1;

	fakeguest_kick(&g, qi);
	for (unsigned i = 0; i < chains; i++) {
		cr_assert(fakeguest_wait_used(&g, qi, &head, &len));
		cr_assert_eq(len, 0, "a balloon writes nothing");
	}
	cr_assert_not(fakeguest_used(&g, qi, &head, &len));
}

static void inflate(uint32_t first, uint32_t n)
{
	add_pfns(INFLATE, first, n, 1);
	kick_and_wait(INFLATE, 1);
}

static void turn_until_discarded(void)
{
	for (unsigned i = 0; i < 1000 && discards == 0; i++)
		fakeguest_turn(&g, 10);
	cr_assert_gt(discards, 0);
}

static uint32_t config(uint32_t off)
{
	return (uint32_t)fakeguest_read(&g, VIRTIO_PCI_DEVICE + off, 4);
}

static void set_config(uint32_t off, uint32_t v, uint32_t len)
{
	fakeguest_write(&g, VIRTIO_PCI_DEVICE + off, v, len);
}

/* ---- inflate and deflate ----------------------------------------------------- */

Test(balloon, balloon_inflate_untold_discards_before_it_returns)
{
	uint64_t before;

	begin(F_SYNC);
	fill(FRAME, 256);
	before = resident();
	inflate(FRAME, 256);
	cr_assert_eq(used_at_discard[INFLATE], 0);
	cr_assert_leq(resident(), before - 255 * PAGE_BYTES);
	cr_assert(all_are(FRAME, 256, 0));
	cr_assert_eq(balloon_pages_now(), 256);
	cr_assert_eq(g.interrupts[INFLATE], 1);
	end();
}

Test(balloon, balloon_inflate_told_returns_then_discards)
{
	begin(F_TOLD);
	fill(FRAME, 256);
	inflate(FRAME, 256);
	cr_assert_eq(discards, 0);
	cr_assert_eq(balloon_pages_now(), 256);
	turn_until_discarded();
	cr_assert_eq(used_at_discard[INFLATE], 1);
	cr_assert(all_are(FRAME, 256, 0));
	end();
}

Test(balloon, balloon_inflate_told_much_discards_without_waiting)
{
	begin(F_TOLD);
	for (uint32_t i = 0; i < 8; i++)
		inflate(FRAME + 256 * (7 - i), 256); /* falling, one at a time, as Linux does */
	cr_assert_eq(discards, 1);
	cr_assert_eq(ranges_discarded, 1, "eight requests, one range");
	end();
}

Test(balloon, balloon_deflate_told_discards_before_it_returns)
{
	begin(F_TOLD);
	inflate(FRAME, 16);
	add_pfns(DEFLATE, FRAME, 16, 1);
	kick_and_wait(DEFLATE, 1);
	cr_assert_eq(discards, 1);
	cr_assert_eq(used_at_discard[DEFLATE], 0);
	fill(FRAME, 16); /* the guest's again */
	for (unsigned i = 0; i < 5; i++)
		fakeguest_turn(&g, 5);
	cr_assert(all_are(FRAME, 16, MARK));
	cr_assert_eq(balloon_pages_now(), 0);
	cr_assert_eq(counter_get(CTR_balloon_deflate_pages), 16);
	end();
}

Test(balloon, balloon_inflate_requests_queued_merged_over_all)
{
	begin(F_SYNC);
	fill(FRAME, 1024);
	for (uint32_t i = 0; i < 4; i++)
		add_pfns(INFLATE, FRAME + i, 256, 4); /* each every fourth page */
	kick_and_wait(INFLATE, 4);
	cr_assert_eq(ranges_discarded, 1);
	cr_assert_eq(used_at_discard[INFLATE], 0);
	cr_assert_eq(g.interrupts[INFLATE], 1);
	cr_assert(all_are(FRAME, 1024, 0));
	end();
}

Test(balloon, balloon_inflate_lies_counted_harmless)
{
	const uint32_t pfns[] = { FRAME, FRAME, 16384, UINT32_MAX, 0xC0000 };
	struct fakebuf b;

	begin(F_SYNC);
	b = (struct fakebuf){ .gpa = fakeguest_alloc(&g, sizeof(pfns), 4), .len = sizeof(pfns) };
	memcpy(fakeguest_at(&g, b.gpa, b.len), pfns, sizeof(pfns));
	fakeguest_add(&g, INFLATE, &b, 1);
	kick_and_wait(INFLATE, 1);
	fakeguest_add(&g, DEFLATE, &b, 1);
	kick_and_wait(DEFLATE, 1);
	cr_assert_eq(counter_get(CTR_balloon_inflate_pages), 1);
	cr_assert_eq(counter_get(CTR_balloon_deflate_pages), 1);
	cr_assert_eq(counter_get(CTR_balloon_repeated), 2);
	cr_assert_eq(counter_get(CTR_balloon_bad_pfn), 6);
	cr_assert_eq(balloon_pages_now(), 0);
	end();
}

/* Any split is a legal way to send an array (section 2.7.4). */
Test(balloon, balloon_request_in_odd_buffers_all_taken)
{
	static const uint32_t cuts[] = { 1, 3, 7, 2, 64, 51 };
	enum { N = 32 };
	struct fakebuf b[ARRAY_LEN(cuts)];
	uint8_t bytes[4 * N];
	uint32_t at = 0;

	begin(F_SYNC);
	for (uint32_t i = 0; i < N; i++) {
		uint32_t pfn = FRAME + 2 * i;

		memcpy(bytes + 4 * i, &pfn, 4);
	}
	for (size_t i = 0; i < ARRAY_LEN(cuts); i++) {
		b[i] = (struct fakebuf){ .gpa = fakeguest_alloc(&g, cuts[i], 1), .len = cuts[i] };
		memcpy(fakeguest_at(&g, b[i].gpa, cuts[i]), bytes + at, cuts[i]);
		at += cuts[i];
	}
	cr_assert_eq(at, sizeof(bytes));
	fakeguest_add(&g, INFLATE, b, ARRAY_LEN(cuts));
	kick_and_wait(INFLATE, 1);
	cr_assert_eq(balloon_pages_now(), N);
	cr_assert_eq(counter_get(CTR_balloon_bad_pfn), 0);
	cr_assert_eq(counter_get(CTR_balloon_bad_request), 0);
	end();
}

Test(balloon, balloon_request_malformed_counted_and_returned)
{
	struct fakebuf odd, in, mixed[2];
	uint32_t pfn = FRAME;

	begin(F_SYNC);
	odd = (struct fakebuf){ .gpa = fakeguest_alloc(&g, 7, 4), .len = 7 };
	memcpy(fakeguest_at(&g, odd.gpa, 4), &pfn, 4);
	fakeguest_add(&g, INFLATE, &odd, 1);
	kick_and_wait(INFLATE, 1);
	cr_assert_eq(counter_get(CTR_balloon_bad_request), 1);
	cr_assert_eq(balloon_pages_now(), 1, "the whole number in it counts");

	in = (struct fakebuf){ .gpa = fakeguest_alloc(&g, 16, 4), .len = 16,
			       .device_writes = true };
	fakeguest_add(&g, INFLATE, &in, 1);
	kick_and_wait(INFLATE, 1);
	cr_assert_eq(counter_get(CTR_balloon_bad_request), 2);

	mixed[0] = (struct fakebuf){ .gpa = odd.gpa, .len = 4 };
	mixed[1] = in;
	fakeguest_add(&g, DEFLATE, mixed, 2);
	kick_and_wait(DEFLATE, 1);
	cr_assert_eq(counter_get(CTR_balloon_bad_request), 3);
	cr_assert_eq(balloon_pages_now(), 0);
	end();
}

/* More numbers than one turn may take: all are taken, over several turns. */
Test(balloon, balloon_request_oversize_spread_over_turns)
{
	enum { N = 12000 };
	uint32_t head, len;
	unsigned turns = 0;

	begin(F_SYNC);
	add_pfns(INFLATE, FRAME, N, 1);
	fakeguest_kick(&g, INFLATE);
	while (!fakeguest_used(&g, INFLATE, &head, &len) && turns < 100) {
		uint64_t before = balloon_pages_now();

		fakeguest_turn(&g, 100);
		cr_assert_leq(balloon_pages_now() - before, 2048);
		turns++;
	}
	cr_assert_geq(turns, N / 2048);
	cr_assert_lt(turns, 100);
	cr_assert_eq(balloon_pages_now(), N);
	end();
}

Test(balloon, balloon_reset_in_mid_request_goes_no_further)
{
	uint64_t pages;

	begin(F_SYNC);
	add_pfns(INFLATE, FRAME, 12000, 1);
	fakeguest_kick(&g, INFLATE);
	fakeguest_turn(&g, 100);
	cr_assert_gt(balloon_pages_now(), 0);
	fakeguest_reset(&g);
	cr_assert_eq(balloon_pages_now(), 0);
	fill(FRAME, 12000);
	cr_assert(fakeguest_start(&g, F_SYNC));
	fakeguest_drain(&g, 100);
	pages = balloon_pages_now();
	cr_assert_eq(pages, 0);
	cr_assert(all_are(FRAME, 12000, MARK));
	inflate(FRAME, 256);
	cr_assert_eq(balloon_pages_now(), 256);
	end();
}

Test(balloon, balloon_reset_with_pages_pending_leaves_them)
{
	begin(F_TOLD);
	fill(FRAME, 64);
	inflate(FRAME, 64);
	set_config(ACTUAL, 64, 4);
	fakeguest_reset(&g);
	cr_assert_eq(status().actual_bytes, 0);
	cr_assert_not(status().driver_ready);
	for (unsigned i = 0; i < 5; i++)
		fakeguest_turn(&g, 5);
	cr_assert_eq(discards, 0);
	cr_assert(all_are(FRAME, 64, MARK));
	cr_assert(fakeguest_start(&g, F_TOLD));
	inflate(FRAME, 64);
	turn_until_discarded();
	cr_assert(all_are(FRAME, 64, 0));
	end();
}

Test(balloon, balloon_discard_refused_by_host_counted_guest_goes_on)
{
	begin(F_SYNC);
	fill(FRAME, 8);
	discard_errno = EINVAL;
	add_pfns(INFLATE, FRAME, 4, 2);
	kick_and_wait(INFLATE, 1);
	cr_assert_eq(counter_get(CTR_balloon_discard_failed), 4);
	cr_assert(all_are(FRAME, 8, MARK));
	cr_assert_eq(balloon_pages_now(), 4, "the guest gave them all the same");
	discard_errno = 0;
	add_pfns(INFLATE, FRAME + 1, 4, 2);
	kick_and_wait(INFLATE, 1);
	cr_assert_eq(frame(FRAME + 1)[0], 0);
	end();
}

/* ---- configuration space ----------------------------------------------------- */

Test(balloon, balloon_target_set_config_interrupt)
{
	begin(F_TOLD);
	cr_assert_eq(g.interrupts[FAKE_CONFIG_VECTOR], 0);
	cr_assert_eq(virtio_balloon_set_target(g.dev, 32 * MiB + 1), 0);
	cr_assert_eq(g.interrupts[FAKE_CONFIG_VECTOR], 1);
	cr_assert_eq(config(NUM_PAGES), 8192);
	cr_assert_eq(virtio_balloon_set_target(g.dev, 32 * MiB), 0);
	cr_assert_eq(g.interrupts[FAKE_CONFIG_VECTOR], 1, "nothing new, no interrupt");
	cr_assert_eq(virtio_balloon_set_target(g.dev, FAKE_RAM_BYTES + 1), -EINVAL);
	cr_assert_eq(virtio_balloon_set_target(g.dev, UINT64_MAX), -EINVAL);
	cr_assert_eq(status().target_bytes, 32 * MiB);
	fakeguest_reset(&g);
	cr_assert_eq(config(NUM_PAGES), 8192, "what the host asks for outlives the driver");
	end();
}

Test(balloon, balloon_config_written_only_where_allowed)
{
	uint64_t bad;

	begin(F_ALL);
	cr_assert_eq(g.dev->config_bytes, 16);
	bad = counter_get(CTR_virtio_bad_access);
	set_config(ACTUAL, 0x04030201, 4);
	cr_assert_eq(config(ACTUAL), 0x04030201);
	cr_assert_eq(fakeguest_read(&g, VIRTIO_PCI_DEVICE + ACTUAL, 1), 1, "little endian");
	cr_assert_eq(fakeguest_read(&g, VIRTIO_PCI_DEVICE + ACTUAL + 3, 1), 4);
	set_config(ACTUAL + 1, 0x99, 1);
	cr_assert_eq(config(ACTUAL), 0x04039901);
	cr_assert_eq(status().actual_bytes, 0x04039901ull * PAGE_BYTES);
	set_config(POISON, 0xaaaaaaaa, 4);
	cr_assert_eq(status().poison, 0xaaaaaaaa);
	cr_assert_eq(counter_get(CTR_virtio_bad_access), bad);

	set_config(NUM_PAGES, 7, 4);
	set_config(CMD_ID, 7, 4);
	set_config(ACTUAL + 2, 7, 4);
	cr_assert_eq(counter_get(CTR_virtio_bad_access), bad + 3);
	cr_assert_eq(config(NUM_PAGES), 0);
	cr_assert_eq(config(CMD_ID), 0);
	cr_assert_eq(config(ACTUAL), 0x04039901);
	end();
}

Test(balloon, balloon_poison_not_negotiated_not_taken)
{
	begin(F_ALL & ~F_PAGE_POISON);
	set_config(POISON, 5, 4);
	cr_assert_eq(config(POISON), 0);
	cr_assert_eq(status().poison, UINT64_MAX);
	end();
}

/* ---- statistics -------------------------------------------------------------- */

struct stat { uint16_t tag; uint64_t value; } __attribute__((packed));

static struct balloon_guest_stats guest_stats(void)
{
	struct balloon_status s;
	struct balloon_guest_stats guest;

	virtio_balloon_status(g.dev, &s, &guest);
	return guest;
}

static void send_stats(const void *bytes, uint32_t len)
{
	struct fakebuf b = { .gpa = fakeguest_alloc(&g, len ? len : 1, 1), .len = len };

	memcpy(fakeguest_at(&g, b.gpa, len ? len : 1), bytes, len);
	fakeguest_add(&g, STATS, &b, 1);
	fakeguest_kick(&g, STATS);
	fakeguest_drain(&g, 20);
}

Test(balloon, balloon_stats_any_order_any_subset)
{
	static const struct stat s[] = { { 5, 111 }, { 15, 222 }, { 0, 333 }, { 4, 444 } };

	begin(F_TOLD);
	cr_assert_eq(guest_stats().received_ns, 0);
	cr_assert_eq(guest_stats().total_bytes, UINT64_MAX);
	send_stats(s, sizeof(s));
	cr_assert_eq(guest_stats().total_bytes, 111);
	cr_assert_eq(guest_stats().reclaim_direct, 222);
	cr_assert_eq(guest_stats().swap_in, 333);
	cr_assert_eq(guest_stats().free_bytes, 444);
	cr_assert_eq(guest_stats().available_bytes, UINT64_MAX);
	cr_assert_neq(guest_stats().received_ns, 0);
	cr_assert_eq(counter_get(CTR_balloon_stats_updates), 1);
	cr_assert_eq(counter_get(CTR_balloon_stats_bad), 0);
	end();
}

Test(balloon, balloon_stats_odd_ones_tolerated_and_counted)
{
	static const struct stat unknown[] = { { 16, 1 }, { 0xffff, 2 }, { 4, 3 } };
	static const struct stat repeated[] = { { 4, 1 }, { 4, 2 }, { 6, 9 } };
	static struct stat many[100];

	begin(F_TOLD);
	send_stats(unknown, sizeof(unknown));
	cr_assert_eq(guest_stats().free_bytes, 3);
	cr_assert_eq(counter_get(CTR_balloon_stats_bad), 0, "tags may be newer than we are");
	send_stats(repeated, sizeof(repeated));
	cr_assert_eq(guest_stats().free_bytes, 2);
	cr_assert_eq(counter_get(CTR_balloon_stats_bad), 1);
	send_stats(repeated + 1, 2 * sizeof(struct stat) - 1); /* the second is cut off */
	cr_assert_eq(guest_stats().free_bytes, 2);
	cr_assert_eq(guest_stats().available_bytes, UINT64_MAX);
	cr_assert_eq(counter_get(CTR_balloon_stats_bad), 2);
	for (unsigned i = 0; i < ARRAY_LEN(many); i++)
		many[i] = (struct stat){ (uint16_t)(100 + i), i };
	send_stats(many, sizeof(many));
	cr_assert_eq(counter_get(CTR_balloon_stats_bad), 3);
	end();
}

Test(balloon, balloon_stats_second_buffer_returns_the_first)
{
	static const struct stat s = { 4, 1 };
	uint32_t head, len;

	begin(F_TOLD);
	send_stats(&s, sizeof(s));
	cr_assert_not(fakeguest_used(&g, STATS, &head, &len), "the device keeps it");
	send_stats(&s, sizeof(s));
	cr_assert(fakeguest_used(&g, STATS, &head, &len));
	cr_assert_not(fakeguest_used(&g, STATS, &head, &len));
	cr_assert_eq(counter_get(CTR_balloon_bad_request), 1);
	end();
}

/* Linux adds and kicks its first buffer before DRIVER_OK. */
Test(balloon, balloon_stats_first_buffer_early_polled_each_interval)
{
	struct stat s = { 4, 1 };
	struct fakebuf b;
	uint32_t head, len;

	make(1);
	fakeguest_reset(&g);
	cr_assert(fakeguest_negotiate(&g, F_TOLD));
	for (unsigned qi = 0; qi < 5; qi++) {
		fakeguest_setup_queue(&g, qi, 0);
		fakeguest_enable_queue(&g, qi);
	}
	b = (struct fakebuf){ .gpa = fakeguest_alloc(&g, sizeof(s), 1), .len = sizeof(s) };
	memcpy(fakeguest_at(&g, b.gpa, sizeof(s)), &s, sizeof(s));
	fakeguest_add(&g, STATS, &b, 1);
	fakeguest_kick(&g, STATS);
	fakeguest_drain(&g, 20);
	cr_assert_eq(counter_get(CTR_balloon_stats_updates), 0);
	fakeguest_driver_ok(&g);
	fakeguest_drain(&g, 20);
	cr_assert_eq(guest_stats().free_bytes, 1);
	cr_assert(fakeguest_wait_used(&g, STATS, &head, &len), "asked for news");
	cr_assert_eq(g.interrupts[STATS], 1);
	s.value = 2;
	memcpy(fakeguest_at(&g, b.gpa, sizeof(s)), &s, sizeof(s));
	fakeguest_add(&g, STATS, &b, 1);
	fakeguest_kick(&g, STATS);
	fakeguest_drain(&g, 20);
	cr_assert_eq(guest_stats().free_bytes, 2);
	fakeguest_reset(&g);
	cr_assert_eq(guest_stats().received_ns, 0);
	end();
}

/* ---- free page hinting ------------------------------------------------------- */

static void send_id(uint32_t id)
{
	struct fakebuf b = { .gpa = fakeguest_alloc(&g, 4, 4), .len = 4 };

	memcpy(fakeguest_at(&g, b.gpa, 4), &id, 4);
	fakeguest_add(&g, HINT, &b, 1);
	kick_and_wait(HINT, 1);
}

static void send_free(unsigned qi, uint64_t addr, uint32_t len)
{
	struct fakebuf b = { .gpa = addr, .len = len, .device_writes = true };

	fakeguest_add(&g, qi, &b, 1);
	kick_and_wait(qi, 1);
}

Test(balloon, balloon_hint_round_counts_and_ends_with_done)
{
	uint32_t id;

	begin(F_TOLD);
	fill(FRAME, 1024);
	cr_assert_eq(virtio_balloon_hint(g.dev), 0);
	cr_assert_eq(virtio_balloon_hint(g.dev), -EBUSY);
	id = config(CMD_ID);
	cr_assert_geq(id, 2);
	cr_assert_eq(g.interrupts[FAKE_CONFIG_VECTOR], 1);
	cr_assert(status().hinting_active);

	send_free(HINT, FRAME * PAGE_BYTES, 4 * MiB); /* before its id: not ours */
	send_id(id + 1);
	send_free(HINT, FRAME * PAGE_BYTES, 4 * MiB);
	cr_assert_eq(status().hinted_bytes, 0);
	send_id(id);
	send_free(HINT, FRAME * PAGE_BYTES, 4 * MiB);
	cr_assert_eq(status().hinted_bytes, 4 * MiB);
	cr_assert_eq(config(CMD_ID), id);
	send_id(0);
	cr_assert_eq(config(CMD_ID), 1, "DONE: the guest may have its pages back");
	cr_assert_eq(g.interrupts[FAKE_CONFIG_VECTOR], 2);
	cr_assert_not(status().hinting_active);
	send_free(HINT, FRAME * PAGE_BYTES, 4 * MiB);
	cr_assert_eq(status().hinted_bytes, 4 * MiB);

	/* The driver may take hinted pages back at any time, so all are kept. */
	cr_assert_eq(discards, 0);
	cr_assert(all_are(FRAME, 1024, MARK));

	cr_assert_eq(virtio_balloon_hint(g.dev), 0);
	cr_assert_neq(config(CMD_ID), id);
	end();
}

Test(balloon, balloon_hint_lies_counted_up_to_all_of_ram)
{
	begin(F_TOLD);
	cr_assert_eq(virtio_balloon_hint(g.dev), 0);
	send_id(config(CMD_ID));
	for (unsigned i = 0; i < 30; i++)
		send_free(HINT, FRAME * PAGE_BYTES, 4 * MiB);
	cr_assert_eq(status().hinted_bytes, FAKE_RAM_BYTES);
	end();
}

Test(balloon, balloon_hint_reset_in_mid_round_starts_afresh)
{
	uint32_t id;

	begin(F_TOLD);
	cr_assert_eq(virtio_balloon_hint(g.dev), 0);
	id = config(CMD_ID);
	send_id(id);
	fakeguest_reset(&g);
	cr_assert_eq(config(CMD_ID), 0);
	cr_assert_eq(virtio_balloon_hint(g.dev), -ENOTSUP);
	cr_assert(fakeguest_start(&g, F_TOLD));
	cr_assert_eq(virtio_balloon_hint(g.dev), 0);
	cr_assert_neq(config(CMD_ID), id);
	end();
}

Test(balloon, balloon_hint_not_negotiated_not_supported)
{
	begin(F_TOLD & ~F_FREE_PAGE_HINT);
	cr_assert_eq(virtio_balloon_hint(g.dev), -ENOTSUP);
	end();
}

/* ---- free page reporting ----------------------------------------------------- */

Test(balloon, balloon_report_discards_before_it_returns)
{
	struct fakebuf b[3];

	begin(F_TOLD);
	fill(FRAME, 1536);
	for (unsigned i = 0; i < 3; i++)
		b[i] = (struct fakebuf){ .gpa = FRAME * PAGE_BYTES + (2 - i) * HUGE_BYTES,
					 .len = HUGE_BYTES, .device_writes = true };
	fakeguest_add(&g, REPORT, b, 3);
	kick_and_wait(REPORT, 1);
	cr_assert_eq(used_at_discard[REPORT], 0);
	cr_assert_eq(ranges_discarded, 1);
	cr_assert(all_are(FRAME, 1536, 0));
	cr_assert_eq(status().reported_bytes, 3 * HUGE_BYTES);
	cr_assert_eq(counter_get(CTR_balloon_reported_pages), 1536);
	cr_assert_eq(status().ballooned_bytes, 0, "not in the balloon: the guest's at once");
	end();
}

Test(balloon, balloon_report_does_not_count_what_was_inflated)
{
	begin(F_TOLD);
	inflate(FRAME, 100);
	send_free(REPORT, FRAME * PAGE_BYTES + HUGE_BYTES, HUGE_BYTES);
	cr_assert_eq(status().reported_bytes, HUGE_BYTES);
	cr_assert_eq(status().ballooned_bytes, 100 * PAGE_BYTES);
	end();
}

Test(balloon, balloon_report_of_parts_keeps_the_rest)
{
	begin(F_TOLD);
	fill(FRAME, 4);
	send_free(REPORT, FRAME * PAGE_BYTES + 1, 3 * PAGE_BYTES);
	cr_assert(all_are(FRAME, 1, MARK));
	cr_assert(all_are(FRAME + 1, 2, 0));
	cr_assert(all_are(FRAME + 3, 1, MARK));
	cr_assert_eq(counter_get(CTR_balloon_bad_request), 1);
	end();
}

Test(balloon, balloon_report_large_spread_over_turns)
{
	struct fakebuf b = { .gpa = 20 * MiB + 1, .len = 40 * MiB, .device_writes = true };
	uint32_t head, len;
	unsigned turns = 0;

	begin(F_TOLD);
	fakeguest_add(&g, REPORT, &b, 1);
	fakeguest_kick(&g, REPORT);
	while (!fakeguest_used(&g, REPORT, &head, &len) && turns < 100) {
		fakeguest_turn(&g, 100);
		turns++;
	}
	cr_assert(turns > 1 && turns < 100, "%u turns", turns);
	cr_assert_eq(status().reported_bytes, 40 * MiB - PAGE_BYTES);
	end();
}

Test(balloon, balloon_report_with_poison_left_untouched)
{
	begin(F_ALL);
	set_config(POISON, 0xaaaaaaaa, 4);
	fill(FRAME, 512);
	send_free(REPORT, FRAME * PAGE_BYTES, HUGE_BYTES);
	cr_assert_eq(discards, 0);
	cr_assert(all_are(FRAME, 512, MARK));
	cr_assert_eq(status().reported_bytes, 0);
	set_config(POISON, 0, 4); /* init_on_free: zeroes are what it wants */
	send_free(REPORT, FRAME * PAGE_BYTES, HUGE_BYTES);
	cr_assert(all_are(FRAME, 512, 0));
	cr_assert_eq(status().reported_bytes, HUGE_BYTES);
	end();
}

Test(balloon, balloon_inflate_with_poison_discards_all_the_same)
{
	begin(F_ALL & ~F_MUST_TELL_HOST);
	set_config(POISON, 0xaaaaaaaa, 4);
	fill(FRAME, 4);
	inflate(FRAME, 4);
	cr_assert(all_are(FRAME, 4, 0));
	end();
}

/* ---- which queue is what ----------------------------------------------------- */

static void start_with_queues(uint64_t features, const unsigned *queues, unsigned n)
{
	make(0);
	fakeguest_reset(&g);
	cr_assert(fakeguest_negotiate(&g, features));
	for (unsigned i = 0; i < n; i++) {
		fakeguest_setup_queue(&g, queues[i], 0);
		fakeguest_enable_queue(&g, queues[i]);
	}
	fakeguest_driver_ok(&g);
	fakeguest_drain(&g, 20);
}

static void reports_on(unsigned qi)
{
	fill(FRAME, 512);
	send_free(qi, FRAME * PAGE_BYTES, HUGE_BYTES);
	cr_assert_eq(status().reported_bytes, HUGE_BYTES);
}

Test(balloon, balloon_queues_numbered_as_linux_does)
{
	static const unsigned queues[] = { 0, 1, 2 };

	start_with_queues(F_REPORTING, queues, 3);
	reports_on(2);
	end();
}

Test(balloon, balloon_queues_numbered_as_specified)
{
	static const unsigned queues[] = { 0, 1, 4 };

	start_with_queues(F_REPORTING, queues, 3);
	reports_on(4);
	end();
}

Test(balloon, balloon_queues_statistics_and_reporting_both_ways)
{
	static const unsigned linux_way[] = { 0, 1, 2, 3 }, spec_way[] = { 0, 1, 2, 4 };

	start_with_queues(F_STATS_VQ | F_REPORTING, linux_way, 4);
	reports_on(3);
	end();
	start_with_queues(F_STATS_VQ | F_REPORTING, spec_way, 4);
	reports_on(4);
	end();
}

Test(balloon, balloon_kick_of_a_queue_without_meaning_ignored)
{
	begin(F_REPORTING); /* enables all five: numbered as specified */
	add_pfns(STATS, FRAME, 1, 1);
	fakeguest_kick(&g, STATS);
	fakeguest_drain(&g, 20);
	cr_assert_eq(g.q[STATS].used[1], 0);
	cr_assert_not(fakeguest_status(&g) & VIRTIO_STATUS_NEEDS_RESET);
	end();
}

Test(balloon, balloon_features_offered_as_configured)
{
	static const struct virtio_balloon_config plain = { 0 };
	struct virtio_dev *dev = NULL;

	fakeguest_init(&g);
	cr_assert_eq(virtio_balloon_create(&dev, &g.env, &plain, NULL), 0);
	cr_assert_eq(dev->features_offered, F_MUST_TELL_HOST | F_STATS_VQ);
	cr_assert_eq(dev->queue_count, 3);
	virtio_dev_destroy(&dev);
	fakeguest_fini(&g);
	make(0);
	cr_assert_eq(g.dev->features_offered, F_ALL);
	cr_assert_eq(g.dev->queue_count, 5);
	end();
}

/* ---- threads ----------------------------------------------------------------- */

static atomic_bool stop;

/* What the control socket and a vCPU do meanwhile. */
static void *ask_and_set(void *arg)
{
	uint64_t target = 0;

	while (!stop) {
		struct balloon_status s = status();

		cr_assert_leq(s.ballooned_bytes, 256 * PAGE_BYTES);
		target = (target + PAGE_BYTES) % FAKE_RAM_BYTES;
		cr_assert_eq(virtio_balloon_set_target(g.dev, target), 0);
		(void)virtio_balloon_hint(g.dev);
		set_config(ACTUAL, config(NUM_PAGES), 4);
	}
	return NULL;
}

Test(balloon, balloon_other_threads_ask_while_it_works)
{
	pthread_t other;

	begin(F_TOLD);
	cr_assert_eq(pthread_create(&other, NULL, ask_and_set, NULL), 0);
	for (unsigned i = 0; i < 200; i++) {
		inflate(FRAME, 256);
		add_pfns(DEFLATE, FRAME, 256, 1);
		kick_and_wait(DEFLATE, 1);
	}
	stop = true;
	cr_assert_eq(pthread_join(other, NULL), 0);
	cr_assert_eq(balloon_pages_now(), 0);
	end();
}
