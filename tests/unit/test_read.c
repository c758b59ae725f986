/*
 * Pages on disk (mm/read.c, mm/aio.c): a tier that keeps plain copies, in memory or in
 * a file, and threads that touch them.  Where userfaultfd may not be used, the tests
 * are skipped, and say so.
 *
 *   BRIM_SEED, BRIM_STRESS_S    as for test_engine
 */
#include <criterion/criterion.h>

#include <errno.h>
#include <liburing.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "mm/aio.h"
#include "mm/internal.h"
#include "tests/unit/chance.h"

#define RAM_BYTES (64 * MiB)
#define PAGES (RAM_BYTES >> PAGE_SHIFT)
#define ON_DISK ((uint64_t)1 << 40)
#define BYTE_FLIP 0x5A /* what is in the file is this much "encrypted" */

/* ---- a tier of plain copies, in memory or in a file ------------------------------ */

struct copies {
	pthread_mutex_t lock; /* innermost */
	uint8_t *of[PAGES];       /* its copy in memory */
	uint64_t in_memory[PAGES]; /* refs, 0: none; generation * PAGES + index + 1 */
	uint64_t on_disk[PAGES];  /* the same with ON_DISK; both while it moves */
	uint64_t last[PAGES];     /* the last ref given */
	_Atomic unsigned pins[PAGES]; /* of its block in the file */
	_Atomic uint64_t moving;  /* index + 1: move_page() has copied it, and asks */
	int fd;
	_Atomic uint64_t held;
	_Atomic bool is_damaged;
	int long_name; /* so many bytes are added to describe() */
};

static uint64_t index_of(uint64_t ref)
{
	return ((ref & ~ON_DISK) - 1) % PAGES;
}

static int copies_put(void *ctx, uint64_t index, const void *page, uint64_t *ref, bool *filled)
{
	struct copies *c = ctx;

	pthread_mutex_lock(&c->lock);
	if (c->moving == index + 1) { /* the mover is about to take its copy back */
		pthread_mutex_unlock(&c->lock);
		return -ENOMEM;
	}
	cr_assert_eq(c->in_memory[index] | c->on_disk[index], 0, "page %lu put twice",
		     (unsigned long)index);
	if (!c->last[index])
		c->last[index] = index + 1;
	c->last[index] += PAGES;
	c->in_memory[index] = *ref = c->last[index];
	c->of[index] = malloc(PAGE_BYTES);
	memcpy(c->of[index], page, PAGE_BYTES);
	*filled = false;
	c->held++;
	pthread_mutex_unlock(&c->lock);
	return 0;
}

static int copies_get(void *ctx, uint64_t ref, uint64_t index, void *page)
{
	struct copies *c = ctx;

	pthread_mutex_lock(&c->lock);
	cr_assert_eq(ref, c->in_memory[index], "page %lu is not in memory", (unsigned long)index);
	memcpy(page, c->of[index], PAGE_BYTES);
	pthread_mutex_unlock(&c->lock);
	return 0;
}

static void copies_drop(void *ctx, uint64_t ref)
{
	struct copies *c = ctx;
	uint64_t index = index_of(ref);

	pthread_mutex_lock(&c->lock);
	if (ref & ON_DISK) {
		cr_assert_eq(ref, c->on_disk[index]);
		c->on_disk[index] = 0;
	} else {
		cr_assert_eq(ref, c->in_memory[index]);
		c->in_memory[index] = 0;
		free(c->of[index]);
		c->of[index] = NULL;
		c->held--;
	}
	pthread_mutex_unlock(&c->lock);
}

static uint64_t copies_held(void *ctx)
{
	return ((struct copies *)ctx)->held * PAGE_BYTES / 4;
}

static void copies_pin(void *ctx, uint64_t ref, struct mm_extent *out)
{
	struct copies *c = ctx;

	pthread_mutex_lock(&c->lock);
	cr_assert(c->on_disk[index_of(ref)] == ref || c->pins[index_of(ref)]);
	c->pins[index_of(ref)]++;
	*out = (struct mm_extent){ c->fd, PAGE_BYTES, index_of(ref) << PAGE_SHIFT };
	pthread_mutex_unlock(&c->lock);
}

static void copies_unpin(void *ctx, uint64_t ref)
{
	struct copies *c = ctx;

	pthread_mutex_lock(&c->lock);
	cr_assert_gt(c->pins[index_of(ref)], 0);
	c->pins[index_of(ref)]--;
	pthread_mutex_unlock(&c->lock);
}

static void flip(uint8_t *at, uint64_t bytes)
{
	for (uint64_t i = 0; i < bytes; i++)
		at[i] ^= BYTE_FLIP;
}

static int copies_arrived(void *ctx, const struct mm_extent *of, void *raw)
{
	(void)ctx;
	flip(raw, of->bytes);
	return 0;
}

static int copies_unpack(void *ctx, uint64_t ref, uint64_t index, const struct mm_read *from,
			 void *page)
{
	struct copies *c = ctx;

	cr_assert_eq(index_of(ref), index);
	cr_assert(index << PAGE_SHIFT >= from->of.offset);
	cr_assert((index + 1) << PAGE_SHIFT <= from->of.offset + from->of.bytes);
	if (c->is_damaged)
		return -EIO;
	memcpy(page, from->raw + (index << PAGE_SHIFT) - from->of.offset, PAGE_BYTES);
	return 0;
}

static void copies_describe(void *ctx, uint64_t ref, char *text, size_t size)
{
	const struct copies *c = ctx;

	snprintf(text, size, "the file at %lu%*s", (unsigned long)index_of(ref),
		 c->long_name, "");
}

static const struct mm_tier copies_tier = {
	.put = copies_put, .get = copies_get, .drop = copies_drop, .held_bytes = copies_held,
	.pin = copies_pin, .unpin = copies_unpin, .arrived = copies_arrived,
	.unpack = copies_unpack, .describe = copies_describe,
};

/* ---- a VM's memory over it ---------------------------------------------------------- */

struct box {
	struct ram *ram;
	struct engine *e;
	uint8_t *mem;
	struct copies copies;
	struct mm_host host;
	char why[512];
	_Atomic int fatal; /* after `why` */
};

static void on_fatal(void *ctx, const char *why)
{
	struct box *b = ctx;

	snprintf(b->why, sizeof(b->why), "%s", why);
	b->fatal++;
}

/* While it is shut, nothing of a ring has ended. */
static _Atomic bool gate_is_shut;

static int gated_wait(struct io_uring *ring, struct io_uring_cqe **cqe, bool wait)
{
	while (gate_is_shut || mm_host_linux.ring_wait(ring, cqe, false)) {
		if (!wait)
			return -EAGAIN;
		usleep(100);
	}
	return 0;
}

static void box_open(struct box *b, struct engine_config cfg)
{
	struct err err;
	int rc;

	if (!b->host.mmap)
		b->host = mm_host_linux;
	if (!b->host.ring_wait || b->host.ring_wait == mm_host_linux.ring_wait)
		b->host.ring_wait = gated_wait;
	pthread_mutex_init(&b->copies.lock, NULL);
	b->copies.fd = memfd_create("swap", MFD_CLOEXEC);
	cr_assert_geq(b->copies.fd, 0);
	cr_assert_eq(ftruncate(b->copies.fd, RAM_BYTES), 0);
	rc = ram_create(&b->ram, &(struct ram_config){ .size_bytes = RAM_BYTES,
						       .huge = RAM_HUGE_NEVER }, &err);
	cr_assert_eq(rc, 0, "%s", err.msg);
	b->mem = ram_slot(b->ram, 0)->hva;
	cfg.ram = b->ram;
	cfg.host = &b->host;
	cfg.tier = &copies_tier;
	cfg.tier_ctx = &b->copies;
	cfg.fatal = on_fatal;
	cfg.fatal_ctx = b;
	cfg.staging_bytes = 8 * MiB;
	rc = engine_create(&b->e, &cfg, &err);
	if (rc == -EPERM || rc == -ENOSYS)
		cr_skip_test("%s", err.msg);
	cr_assert_eq(rc, 0, "%s", err.msg);
}

static void box_close(struct box *b)
{
	gate_is_shut = false;
	reclaim_stop(b->e);
	fault_stop(b->e);
	reader_destroy(&b->e->reader);
	pages_verify(&b->e->pages);
	engine_destroy(&b->e);
	for (uint64_t i = 0; i < PAGES; i++) {
		cr_assert_eq(b->copies.pins[i], 0, "page %lu is pinned", (unsigned long)i);
		free(b->copies.of[i]);
	}
	ram_destroy(&b->ram);
	close(b->copies.fd);
}

#define MANUAL ((struct engine_config){ .manual = true, .fault_threads = 2 })

static uint64_t *at(struct box *b, uint64_t index)
{
	return (uint64_t *)(b->mem + (index << PAGE_SHIFT));
}

static void fill(struct box *b, uint64_t n)
{
	for (uint64_t i = 0; i < n; i++)
		for (unsigned w = 0; w < 512; w++)
			at(b, i)[w] = i * 1000 + w;
}

static bool has(struct box *b, uint64_t index)
{
	for (unsigned w = 0; w < 512; w++)
		if (at(b, index)[w] != index * 1000 + w)
			return false;
	return true;
}

static struct page entry(struct box *b, uint64_t index)
{
	struct page p;

	pthread_mutex_lock(&chunk_of(&b->e->pages, index)->lock);
	p = b->e->pages.page[index];
	pthread_mutex_unlock(&chunk_of(&b->e->pages, index)->lock);
	return p;
}

static void push_out(struct box *b, uint64_t n)
{
	for (int tries = 0; tries < 50; tries++) {
		struct engine_stats s;

		engine_stats(b->e, &s);
		if (s.packed_pages + s.disk_pages >= n)
			return;
		engine_reclaim(b->e, (n - s.packed_pages - s.disk_pages) << PAGE_SHIFT);
		engine_tick(b->e);
	}
	cr_assert_fail("%lu pages would not go", (unsigned long)n);
}

/* Copies page `index` to the file, or from it. The ref of the copy, or 0: there is no
 * page, or the block is still pinned. */
static uint64_t copy_other_side(struct copies *c, uint64_t index, uint64_t *from)
{
	uint8_t bytes[PAGE_BYTES];
	uint64_t to = 0;

	pthread_mutex_lock(&c->lock);
	c->moving = index + 1;
	if (c->in_memory[index] && !c->pins[index]) {
		*from = c->in_memory[index];
		memcpy(bytes, c->of[index], PAGE_BYTES);
		flip(bytes, PAGE_BYTES);
		cr_assert_eq(pwrite(c->fd, bytes, PAGE_BYTES, (off_t)(index << PAGE_SHIFT)),
			     (ssize_t)PAGE_BYTES);
		c->on_disk[index] = to = *from | ON_DISK;
	} else if (c->on_disk[index]) {
		*from = c->on_disk[index];
		c->of[index] = malloc(PAGE_BYTES);
		cr_assert_eq(pread(c->fd, c->of[index], PAGE_BYTES, (off_t)(index << PAGE_SHIFT)),
			     (ssize_t)PAGE_BYTES);
		flip(c->of[index], PAGE_BYTES);
		c->in_memory[index] = to = *from & ~ON_DISK;
		c->held++;
	}
	pthread_mutex_unlock(&c->lock);
	return to;
}

/* Moves a page between memory and file.  False where it could not be. One thread. */
static bool move_page(struct box *b, uint64_t index)
{
	struct mm_move m = { 0 };
	bool moved;

	m.to = copy_other_side(&b->copies, index, &m.from);
	if (!m.to) {
		b->copies.moving = 0;
		return false;
	}
	m.kept = m.to & ON_DISK ? MM_DISK : MM_PACKED;
	moved = engine_moved(b->e, index, &m);
	copies_drop(&b->copies, moved ? m.from : m.to);
	b->copies.moving = 0;
	return moved;
}

static void wait_for_fatal(struct box *b)
{
	for (int i = 0; i < 20000 && !b->fatal; i++)
		usleep(500);
	cr_assert_eq(b->fatal, 1);
}

static void push_to_disk(struct box *b, uint64_t n)
{
	push_out(b, n);
	for (uint64_t i = 0; i < n; i++)
		cr_assert(move_page(b, i), "page %lu", (unsigned long)i);
}

/* ---- coming back --------------------------------------------------------------------- */

Test(read, page_on_disk_comes_back_whole_and_is_forgotten_there)
{
	static struct box b;

	box_open(&b, MANUAL);
	fill(&b, 64);
	push_to_disk(&b, 64);
	for (uint64_t i = 0; i < 64; i += 7)
		cr_assert(has(&b, i), "page %lu", (unsigned long)i);
	cr_assert_eq(entry(&b, 0).state, PAGE_GUEST);
	cr_assert_eq(b.copies.on_disk[0], 0);
	cr_assert_eq(b.fatal, 0);
	box_close(&b);
}

Test(read, sequential_reader_gets_many_pages_by_one_read)
{
	static struct box b;
	uint64_t reads;

	box_open(&b, MANUAL);
	fill(&b, 512);
	push_to_disk(&b, 512);
	reads = counter_get(CTR_engine_disk_reads);
	for (uint64_t i = 0; i < 512; i++)
		cr_assert(has(&b, i), "page %lu", (unsigned long)i);
	reads = counter_get(CTR_engine_disk_reads) - reads;
	/* 64 KiB hold 16 of these pages */
	cr_assert_lt(reads, 48, "%lu reads", (unsigned long)reads);
	cr_assert_geq(reads, 32);
	box_close(&b);
}

struct toucher {
	struct box *b;
	uint64_t index;
	uint64_t seen;
	pthread_t thread;
	_Atomic bool is_back;
};

static void *touch(void *arg)
{
	struct toucher *t = arg;

	t->seen = __atomic_load_n(&at(t->b, t->index)[1], __ATOMIC_RELAXED);
	t->is_back = true;
	return NULL;
}

static void touch_start(struct toucher *t, struct box *b, uint64_t index)
{
	*t = (struct toucher){ .b = b, .index = index };
	cr_assert_eq(pthread_create(&t->thread, NULL, touch, t), 0);
}

static void wait_for(enum counter c, uint64_t least)
{
	for (int i = 0; i < 20000 && counter_get(c) < least; i++)
		usleep(500);
	cr_assert_geq(counter_get(c), least, "%s", counter_table[c].name);
}

Test(read, fault_on_a_page_being_read_joins_and_others_are_served_meanwhile)
{
	static struct box b;
	struct toucher t[4];
	uint64_t reads = counter_get(CTR_engine_disk_reads);

	box_open(&b, MANUAL);
	fill(&b, 64);
	push_out(&b, 64);
	cr_assert(move_page(&b, 5));
	gate_is_shut = true;
	for (int i = 0; i < 4; i++)
		touch_start(&t[i], &b, 5);
	wait_for(CTR_engine_disk_joined, 3);
	/* one of the same chunk: nobody holds its lock */
	cr_assert(has(&b, 20));
	for (int i = 0; i < 4; i++)
		cr_assert(!t[i].is_back);
	gate_is_shut = false;
	for (int i = 0; i < 4; i++) {
		pthread_join(t[i].thread, NULL);
		cr_assert_eq(t[i].seen, 5001);
	}
	cr_assert_eq(counter_get(CTR_engine_disk_reads) - reads, 1);
	box_close(&b);
}

static int cpu_of_all(void *ctx, uint32_t tid)
{
	return 0; /* so that everybody is a vCPU */
}

static uint64_t timed(unsigned from_bucket)
{
	uint64_t n = 0;

	for (unsigned b = from_bucket; b < HIST_BUCKETS; b++)
		n += atomic_load(&stat_values.histogram[HIST_fault_ns][b]);
	return n;
}

#define LATE_US 70000u
#define LATE_BUCKET 27u /* from 2^26 ns on, 67 ms */

/* The one that began the read and one that joined it wait as long as the disk takes; one on a
 * page in memory, meanwhile, does not, and waits of those that are no vCPU's are no stall. */
Test(read, fault_on_disk_is_timed_until_its_page_is_there)
{
	static struct box b;
	struct engine_config cfg = MANUAL;
	struct toucher t[2];
	uint64_t late = timed(LATE_BUCKET), all = timed(0), stall = counter_get(CTR_vcpu_stall_ns);

	cfg.touchers.cpu_of = cpu_of_all;
	box_open(&b, cfg);
	fill(&b, 64);
	push_out(&b, 64);
	cr_assert(move_page(&b, 5));
	gate_is_shut = true;
	for (int i = 0; i < 2; i++)
		touch_start(&t[i], &b, 5);
	wait_for(CTR_engine_disk_joined, 1);
	cr_assert(has(&b, 20));
	usleep(LATE_US);
	gate_is_shut = false;
	for (int i = 0; i < 2; i++)
		pthread_join(t[i].thread, NULL);
	box_close(&b); /* who counts has ended */
	cr_assert_eq(timed(LATE_BUCKET) - late, 2);
	cr_assert_geq(timed(0) - all, 3);
	stall = counter_get(CTR_vcpu_stall_ns) - stall;
	cr_assert(stall >= 2 * LATE_US * 1000ull && stall < 60ull * 1000000000, "%lu ns",
		  (unsigned long)stall);
}

Test(read, page_being_read_does_not_move)
{
	static struct box b;
	struct toucher t;

	box_open(&b, MANUAL);
	fill(&b, 64);
	push_to_disk(&b, 64);
	gate_is_shut = true;
	touch_start(&t, &b, 33);
	wait_for(CTR_engine_faults_disk, 1);
	cr_assert(!move_page(&b, 33));
	cr_assert(move_page(&b, 34));
	gate_is_shut = false;
	pthread_join(t.thread, NULL);
	cr_assert_eq(t.seen, 33001);
	cr_assert(has(&b, 34));
	box_close(&b);
}

Test(read, page_discarded_while_being_read_is_zero_and_its_toucher_wakes)
{
	static struct box b;
	struct ram_range r = { gpa(3 * PAGE_BYTES), PAGE_BYTES };
	struct toucher t;

	box_open(&b, MANUAL);
	fill(&b, 8);
	push_to_disk(&b, 8);
	gate_is_shut = true;
	touch_start(&t, &b, 3);
	wait_for(CTR_engine_faults_disk, 1);
	cr_assert_eq(ram_discard_many(b.ram, &r, 1), 1);
	cr_assert(!t.is_back);
	gate_is_shut = false;
	pthread_join(t.thread, NULL);
	cr_assert_eq(t.seen, 0);
	cr_assert_eq(at(&b, 3)[7], 0);
	cr_assert(has(&b, 2) && has(&b, 4));
	box_close(&b);
}

/* The same page left again, and is away with other bytes when the first read ends. */
Test(read, late_read_does_not_bring_older_bytes)
{
	static struct box b;
	struct ram_range r = { gpa(3 * PAGE_BYTES), PAGE_BYTES };
	struct toucher t;

	box_open(&b, MANUAL);
	fill(&b, 8);
	push_to_disk(&b, 8);
	gate_is_shut = true;
	touch_start(&t, &b, 3);
	wait_for(CTR_engine_faults_disk, 1);
	cr_assert_eq(ram_discard_many(b.ram, &r, 1), 1);
	__atomic_store_n(&at(&b, 3)[1], 77, __ATOMIC_RELAXED); /* wakes the toucher too */
	pthread_join(t.thread, NULL);
	cr_assert(t.seen == 77 || t.seen == 0);
	push_out(&b, 8);
	cr_assert_eq(entry(&b, 3).state, PAGE_PACKED);
	gate_is_shut = false;
	while (b.copies.pins[3])
		usleep(500);
	cr_assert_eq(entry(&b, 3).state, PAGE_PACKED, "a late read brought it back");
	cr_assert_eq(at(&b, 3)[1], 77);
	cr_assert_eq(at(&b, 3)[2], 0);
	box_close(&b);
}

/* ---- what goes wrong ------------------------------------------------------------------ */

Test(read, damaged_page_ends_the_vm_by_page_and_place)
{
	static struct box b;
	struct fault_server *s;

	box_open(&b, MANUAL);
	cr_assert_eq(fault_server_create(&s, b.e), 0);
	fill(&b, 8);
	push_to_disk(&b, 8);
	b.copies.is_damaged = true;
	fault_serve(s, 3);
	fault_server_destroy(&s);
	wait_for_fatal(&b);
	while (b.copies.pins[3])
		usleep(500);
	cr_assert_not_null(strstr(b.why, "page 0x3000 cannot be brought back: its copy in the file "
				  "at 3 is damaged"), "%s", b.why);
	cr_assert_eq(entry(&b, 3).state, PAGE_DISK, "it must stay missing");
	cr_assert(!entry(&b, 3).reading);
	b.copies.is_damaged = false;
	cr_assert(has(&b, 3));
	box_close(&b);
}

static int broken_wait(struct io_uring *ring, struct io_uring_cqe **cqe, bool wait)
{
	int rc = mm_host_linux.ring_wait(ring, cqe, wait);

	if (!rc && *cqe)
		(*cqe)->res = -EIO;
	return rc;
}

static _Atomic int preads_fail;

static int64_t broken_pread(int fd, void *buf, size_t len, int64_t off)
{
	if (len >= PAGE_BYTES && preads_fail) {
		errno = EIO;
		return -1;
	}
	return mm_host_linux.pread(fd, buf, len, off);
}

/* A path may be long, and what comes after it is the reason. */
Test(read, lost_page_of_a_file_with_a_long_name_has_its_reason)
{
	static struct box b;
	struct fault_server *s;

	box_open(&b, MANUAL);
	cr_assert_eq(fault_server_create(&s, b.e), 0);
	fill(&b, 8);
	push_to_disk(&b, 8);
	b.copies.is_damaged = true;
	b.copies.long_name = 220;
	fault_serve(s, 3);
	fault_server_destroy(&s);
	wait_for_fatal(&b);
	while (b.copies.pins[3])
		usleep(500);
	cr_assert_not_null(strstr(b.why, "is damaged: Input/output error"), "%s", b.why);
	b.copies.is_damaged = false;
	box_close(&b);
}

Test(read, failed_read_is_tried_by_hand_before_it_is_believed)
{
	static struct box b;
	struct fault_server *s;

	b.host = mm_host_linux;
	b.host.ring_wait = broken_wait;
	b.host.pread = broken_pread;
	box_open(&b, MANUAL);
	cr_assert_eq(fault_server_create(&s, b.e), 0);
	fill(&b, 64);
	push_to_disk(&b, 64);
	for (uint64_t i = 0; i < 32; i++)
		cr_assert(has(&b, i), "page %lu", (unsigned long)i);
	cr_assert_gt(counter_get(CTR_engine_disk_by_hand), 0);
	cr_assert_eq(b.fatal, 0);
	preads_fail = 1;
	fault_serve(s, 40);
	fault_server_destroy(&s);
	wait_for_fatal(&b);
	cr_assert_not_null(strstr(b.why, "cannot be read: Input/output error"), "%s", b.why);
	preads_fail = 0;
	box_close(&b);
}

static int no_ring(unsigned depth, struct io_uring *ring)
{
	(void)depth, (void)ring;
	return -ENOMEM;
}

/* Takes what the ring is to be woken by, and no read. */
static int deaf_submit(struct io_uring *ring)
{
	static _Atomic int calls;

	return calls++ == 0 ? mm_host_linux.ring_submit(ring) : -EAGAIN;
}

Test(read, pages_come_back_without_any_ring)
{
	static struct box b;

	b.host = mm_host_linux;
	b.host.ring_init = no_ring;
	box_open(&b, MANUAL);
	fill(&b, 64);
	push_to_disk(&b, 64);
	for (uint64_t i = 0; i < 64; i++)
		cr_assert(has(&b, i), "page %lu", (unsigned long)i);
	box_close(&b);
}

Test(read, pages_come_back_where_the_ring_takes_nothing)
{
	static struct box b;

	b.host = mm_host_linux;
	b.host.ring_submit = deaf_submit;
	box_open(&b, MANUAL);
	fill(&b, 256);
	push_to_disk(&b, 256);
	for (uint64_t i = 0; i < 256; i += 3)
		cr_assert(has(&b, i), "page %lu", (unsigned long)i);
	box_close(&b);
}

/* ---- reads ahead ------------------------------------------------------------------------ */

static void open_on_disk(struct box *b, uint64_t n)
{
	box_open(b, MANUAL);
	fill(b, n);
	push_to_disk(b, n);
}

static void read_in_order(struct box *b, uint64_t from, uint64_t to)
{
	for (uint64_t i = from; i < to; i++)
		cr_assert(has(b, i), "page %lu", (unsigned long)i);
}

Test(read, reads_go_ahead_of_a_sequential_reader)
{
	static struct box b;
	uint64_t faults;

	open_on_disk(&b, 1024);
	read_in_order(&b, 0, 256);
	faults = counter_get(CTR_engine_faults_disk);
	read_in_order(&b, 256, 1024);
	cr_assert_gt(counter_get(CTR_engine_disk_ahead), 16);
	/* 16 pages a read, three reads a fault, but for the first in each chunk */
	cr_assert_lt(counter_get(CTR_engine_faults_disk) - faults, 768 / 16);
	box_close(&b);
}

Test(read, no_read_goes_ahead_of_others)
{
	static struct box b;

	open_on_disk(&b, 512);
	for (uint64_t i = 512; i--;)
		cr_assert(has(&b, i), "page %lu", (unsigned long)i);
	cr_assert_eq(counter_get(CTR_engine_disk_ahead), 0);
	box_close(&b);
}

/* The first page from `from` on that is still away. */
static uint64_t first_away(struct box *b, uint64_t from)
{
	while (from < PAGES && entry(b, from).state != PAGE_DISK)
		from++;
	return from;
}

static bool is_any_read(struct box *b)
{
	for (uint64_t i = 0; i < PAGES; i++)
		if (entry(b, i).reading)
			return true;
	return false;
}

static void wait_until_home(struct box *b)
{
	for (int i = 0; i < 20000 && is_any_read(b); i++)
		usleep(500);
	cr_assert(!is_any_read(b));
}

Test(read, reader_that_catches_up_with_a_read_ahead_joins_it)
{
	static struct box b;
	struct toucher t[2];
	uint64_t p, ahead, joined;

	open_on_disk(&b, 512);
	read_in_order(&b, 0, 200);
	wait_until_home(&b);
	p = first_away(&b, 200);
	cr_assert_lt(p, 400);
	ahead = counter_get(CTR_engine_disk_ahead);
	joined = counter_get(CTR_engine_disk_joined);
	gate_is_shut = true;
	touch_start(&t[0], &b, p);
	wait_for(CTR_engine_disk_ahead, ahead + 2);
	cr_assert(entry(&b, p + 20).reading);
	touch_start(&t[1], &b, p + 20);
	wait_for(CTR_engine_disk_joined, joined + 1);
	cr_assert(!t[0].is_back && !t[1].is_back);
	gate_is_shut = false;
	for (int i = 0; i < 2; i++) {
		pthread_join(t[i].thread, NULL);
		cr_assert_eq(t[i].seen, t[i].index * 1000 + 1);
	}
	read_in_order(&b, 0, 512);
	box_close(&b);
}

static _Atomic bool ring_is_broken;

static int breaking_wait(struct io_uring *ring, struct io_uring_cqe **cqe, bool wait)
{
	return (ring_is_broken ? broken_wait : mm_host_linux.ring_wait)(ring, cqe, wait);
}

static int breaking_submit(struct io_uring *ring)
{
	return ring_is_broken ? -EAGAIN : mm_host_linux.ring_submit(ring);
}

/* A reader in full swing finds the ring broken: it gets its pages all the same.  True where
 * reads went ahead of it then, which on a busy machine they may not. */
static bool break_once(struct box *b)
{
	uint64_t ahead;

	open_on_disk(b, 512);
	read_in_order(b, 0, 100);
	wait_until_home(b);
	ahead = counter_get(CTR_engine_disk_ahead);
	ring_is_broken = true;
	read_in_order(b, 100, 512);
	cr_assert_gt(counter_get(CTR_engine_disk_by_hand), 0);
	cr_assert_eq(b->fatal, 0);
	ahead = counter_get(CTR_engine_disk_ahead) - ahead;
	ring_is_broken = false;
	wait_until_home(b);
	box_close(b);
	return ahead > 0;
}

static void break_under_way(struct box *b)
{
	unsigned tries = 1;

	while (!break_once(b))
		cr_assert_lt(tries++, 50);
}

Test(read, read_ahead_that_fails_is_not_believed)
{
	static struct box b;

	b.host = mm_host_linux;
	b.host.ring_wait = breaking_wait;
	break_under_way(&b);
}

Test(read, read_ahead_that_the_ring_does_not_take_is_let_go)
{
	static struct box b;

	b.host = mm_host_linux;
	b.host.ring_submit = breaking_submit;
	break_under_way(&b);
}

/* ---- aio.c by itself -------------------------------------------------------------------- */

/* Reads no more than 1000 bytes at a time. */
static int short_submit(struct io_uring *ring)
{
	struct io_uring_sqe *last = &ring->sq.sqes[(ring->sq.sqe_tail - 1) & *ring->sq.kring_mask];

	if (last->opcode != IORING_OP_NOP && last->len > 1000)
		last->len = 1000;
	return mm_host_linux.ring_submit(ring);
}

Test(aio, short_transfers_are_carried_on_and_the_end_of_a_file_is_an_error)
{
	struct mm_host host = mm_host_linux;
	char out[10000], in[10000] = { 0 };
	int fd = memfd_create("aio", MFD_CLOEXEC);
	struct aio_op op = { .fd = fd, .is_write = true, .buf = out, .bytes = sizeof(out) };
	struct aio *a;

	host.ring_submit = short_submit;
	for (unsigned i = 0; i < sizeof(out); i++)
		out[i] = (char)(i * 7);
	cr_assert_eq(aio_create(&a, &host, 4), 0);
	cr_assert_eq(aio_start(a, &op), 0);
	cr_assert_eq(aio_on_way(a), 1);
	cr_assert_eq(aio_reap(a, true), &op);
	cr_assert_eq(op.result, 0);
	op = (struct aio_op){ .fd = fd, .buf = in, .bytes = sizeof(in) };
	cr_assert_eq(aio_start(a, &op), 0);
	cr_assert_eq(aio_reap(a, true), &op);
	cr_assert_eq(op.result, 0);
	cr_assert_arr_eq(in, out, sizeof(in));
	op = (struct aio_op){ .fd = fd, .buf = in, .bytes = sizeof(in), .offset = 5000 };
	cr_assert_eq(aio_start(a, &op), 0);
	cr_assert_eq(aio_reap(a, true), &op);
	cr_assert_eq(op.result, -EIO);
	cr_assert_null(aio_reap(a, true));
	aio_destroy(&a);
	close(fd);
}

Test(aio, no_more_than_depth_are_on_their_way)
{
	char byte[3];
	struct aio_op op[3];
	struct aio *a;
	int p[2];

	cr_assert_eq(pipe(p), 0);
	cr_assert_eq(aio_create(&a, &mm_host_linux, 2), 0);
	for (int i = 0; i < 3; i++)
		op[i] = (struct aio_op){ .fd = p[0], .buf = byte + i, .bytes = 1, .offset = -1 };
	cr_assert_eq(aio_start(a, &op[0]), 0);
	cr_assert_eq(aio_start(a, &op[1]), 0);
	cr_assert_eq(aio_start(a, &op[2]), -EAGAIN);
	cr_assert_null(aio_reap(a, false));
	cr_assert_eq(write(p[1], "ab", 2), 2);
	cr_assert_not_null(aio_reap(a, true));
	cr_assert_not_null(aio_reap(a, true));
	cr_assert_eq(aio_on_way(a), 0);
	aio_destroy(&a);
	close(p[0]);
	close(p[1]);
}

/* ---- all at once ------------------------------------------------------------------------ */

#define STRESS_PAGES 2048u
#define WORKERS 3u

struct stress {
	struct box b;
	_Atomic bool is_over;
	_Atomic uint64_t shadow[STRESS_PAGES]; /* what word 1 of each page is; bit 63: being written */
	pthread_mutex_t page_lock[STRESS_PAGES];
	_Atomic uint64_t accesses, moves;
};

struct worker {
	struct stress *s;
	uint64_t random;
	pthread_t thread;
};

/* One access by the page's lock holder: every word must be what was last written. */
static void access_page(struct stress *s, uint64_t index, uint64_t random)
{
	volatile uint64_t *w = at(&s->b, index);
	uint64_t expected = s->shadow[index];

	for (unsigned i = random % 8; i < 512; i += 61)
		cr_assert_eq(w[i], expected ? expected + i : 0, "page %lu word %u: %lx, not %lx",
			     (unsigned long)index, i, (unsigned long)w[i], (unsigned long)expected);
	if (random >> 60 < 4) {
		s->shadow[index] = random | 1;
		for (unsigned i = 0; i < 512; i++)
			w[i] = s->shadow[index] + i;
	}
	s->accesses++;
}

static void *work(void *arg)
{
	struct worker *k = arg;
	struct stress *s = k->s;

	while (!s->is_over) {
		uint64_t r = next_random(&k->random), index = r >> 20 & (STRESS_PAGES - 1);
		uint64_t run = r % 16 == 0 ? 48 : 1; /* now and then in order */

		for (uint64_t i = index; i < index + run && i < STRESS_PAGES; i++) {
			pthread_mutex_lock(&s->page_lock[i]);
			access_page(s, i, next_random(&k->random));
			pthread_mutex_unlock(&s->page_lock[i]);
		}
	}
	return NULL;
}

static void *move_and_discard(void *arg)
{
	struct worker *k = arg;
	struct stress *s = k->s;

	while (!s->is_over) {
		uint64_t r = next_random(&k->random), index = r >> 20 & (STRESS_PAGES - 1);
		struct ram_range range = { gpa(index << PAGE_SHIFT), PAGE_BYTES };

		if (r % 64) {
			s->moves += move_page(&s->b, index);
			continue;
		}
		pthread_mutex_lock(&s->page_lock[index]);
		cr_assert_eq(ram_discard_many(s->b.ram, &range, 1), 1);
		s->shadow[index] = 0;
		pthread_mutex_unlock(&s->page_lock[index]);
	}
	return NULL;
}

Test(read, stress_with_moves_and_discards_finds_every_byte)
{
	static struct stress s;
	struct worker k[WORKERS + 1];
	uint64_t seed = seed_of_run();

	box_open(&s.b, (struct engine_config){ .fault_threads = 2, .pass_ns = 2000000 });
	for (unsigned i = 0; i < STRESS_PAGES; i++)
		pthread_mutex_init(&s.page_lock[i], NULL);
	engine_limit(s.b.e, 2 * MiB);
	for (unsigned i = 0; i <= WORKERS; i++) {
		k[i] = (struct worker){ .s = &s, .random = seed * 2654435761u + i + 1 };
		cr_assert_eq(pthread_create(&k[i].thread, NULL, i < WORKERS ? work : move_and_discard,
					    &k[i]), 0);
	}
	sleep((unsigned)env_number("BRIM_STRESS_S", 3));
	for (int i = 0; i < 60 && counter_get(CTR_engine_pages_disk) <= 100; i++)
		sleep(1); /* a machine that is busy with other things */
	s.is_over = true;
	for (unsigned i = 0; i <= WORKERS; i++)
		pthread_join(k[i].thread, NULL);
	engine_limit(s.b.e, 0);
	printf("%lu accesses, %lu moves, %lu faults on disk, %lu joined, %lu pages from disk\n",
	       (unsigned long)s.accesses, (unsigned long)s.moves,
	       (unsigned long)counter_get(CTR_engine_faults_disk),
	       (unsigned long)counter_get(CTR_engine_disk_joined),
	       (unsigned long)counter_get(CTR_engine_pages_disk));
	for (unsigned i = 0; i < STRESS_PAGES; i++)
		access_page(&s, i, 7);
	cr_assert_eq(s.b.fatal, 0);
	cr_assert_gt(counter_get(CTR_engine_pages_disk), 100);
	engine_reclaim(s.b.e, 0);
	box_close(&s.b);
}
