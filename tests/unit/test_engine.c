/*
 * The memory engine, natively: threads stand for vCPUs, a plain table of copies
 * for the tier.  Where userfaultfd may not be used, the tests are skipped, and say
 * so.
 *
 *   BRIM_SEED         the stress test's seed (printed)
 *   BRIM_STRESS_S     its length in seconds (default 3)
 */
#include "tests/unit/everycall.h"
#include "tests/unit/stress.h"

/* ---- a host that denies what it did ------------------------------------------------ */

/* Every so many moves are done, and then denied, as Linux 6.18 does now and then. */
static _Atomic int deny_every;
static _Atomic int moves;

static int denying_move(int fd, void *arg)
{
	int every = deny_every; /* may become 0 once the move has woken the test */
	int rc = mm_host_linux.ioctl(fd, UFFDIO_MOVE, arg);
	struct uffdio_move *m = arg;

	if (rc == 0 && m->len == PAGE_BYTES && every && ++moves % every == 0) {
		m->move = -EEXIST;
		errno = EEXIST;
		return -1;
	}
	return rc;
}

static int denying_ioctl(int fd, unsigned long request, void *arg)
{
	if (request == UFFDIO_MOVE && deny_every)
		return denying_move(fd, arg);
	return failing_ioctl(fd, request, arg);
}

static const struct swap_disk_config *swap_disk; /* NULL: none */
static uint64_t refine_age_ns;                   /* 0: the usual */

static void use_swap(struct box *b, uint64_t cap_bytes)
{
	struct swap_config sc = { .max_pages = BOX_PAGES, .cap_bytes = cap_bytes,
				  .disk = swap_disk, .refine_age_ns = refine_age_ns };
	struct err err = { "" };

	cr_assert_eq(swap_create(&b->swap, &sc, &err), 0, "%s", err.msg);
	b->tier = swap_disk ? &swap_tier_disk : &swap_tier;
}

static void use_host(struct box *b)
{
	use_failing_host(b);
	b->host.ioctl = denying_ioctl;
}

static void open_box(struct box *b)
{
	use_host(b);
	box_open(b, RAM_HUGE_NEVER, BOX_MANUAL);
}

static void fill_first(struct box *b, uint64_t n)
{
	box_fill_all(b, 0, n);
}

static void check_first(struct box *b, uint64_t n)
{
	box_check_all(b, 0, n);
}

static struct engine_stats stats(struct box *b)
{
	struct engine_stats s;

	box_settle(b);
	engine_stats(b->e, &s);
	return s;
}

Test(engine, pages_taken_come_back_as_they_were)
{
	static struct box b;
	struct engine_stats s;

	open_box(&b);
	fill_first(&b, 4096);
	box_push_out(&b, 3000);
	s = stats(&b);
	cr_assert_geq(s.packed_pages, 3000);
	cr_assert_eq(s.packed_pages, b.held);
	check_first(&b, 4096);
	s = stats(&b);
	cr_assert_eq(s.packed_pages + s.filled_pages, 0);
	cr_assert_eq(b.held, 0);
	box_close(&b);
}

Test(engine, memory_is_really_given_back)
{
	static struct box b;
	uint64_t before, after;

	open_box(&b);
	fill_first(&b, 4096);
	cr_assert_eq(ram_resident_bytes(b.ram, &before), 0);
	box_push_out(&b, 4096);
	cr_assert_eq(ram_resident_bytes(b.ram, &after), 0);
	cr_assert_eq(before, 4096 * PAGE_BYTES);
	cr_assert_leq(after, 8 * PAGE_BYTES);
	cr_assert_eq(stats(&b).staged_pages, 0);
	cr_assert_eq(b.e->head, b.e->tail, "staging still has memory");
	box_close(&b);
}

Test(engine, staged_page_touched_is_not_packed)
{
	static struct box b;

	open_box(&b);
	fill_first(&b, 64);
	engine_reclaim(b.e, 64 << PAGE_SHIFT);
	engine_tick(b.e); /* stages; what is packed was staged in an earlier round */
	cr_assert_eq(stats(&b).staged_pages, 64);
	cr_assert(box_has(&b, 5, 1));
	cr_assert_eq(stats(&b).staged_pages, 63);
	engine_tick(b.e);
	cr_assert_eq(stats(&b).packed_pages, 63);
	cr_assert_null(b.of[5]);
	check_first(&b, 64);
	box_close(&b);
}

Test(engine, written_pages_stay_while_colder_ones_go)
{
	static struct box b;

	open_box(&b);
	fill_first(&b, 1024);
	for (int pass = 0; pass < 4; pass++) {
		for (uint64_t i = 0; i < 512; i++)
			box_fill(&b, i, 1);
		engine_pass(b.e);
	}
	cr_assert_eq(stats(&b).age_pages[0], 512);
	cr_assert_eq(stats(&b).age_pages[3], 512);
	box_push_out(&b, 512);
	for (uint64_t i = 0; i < 1024; i++)
		cr_assert_eq(box_entry(&b, i).state == PAGE_GUEST, i < 512, "page %lu",
			     (unsigned long)i);
	check_first(&b, 1024);
	box_close(&b);
}

Test(engine, filled_page_comes_back_with_its_pattern)
{
	static struct box b;

	open_box(&b);
	memset(box_at(&b, 1), 0, PAGE_BYTES);
	memset(box_at(&b, 2), 0xA5, PAGE_BYTES);
	box_push_out(&b, 2);
	cr_assert_eq(stats(&b).filled_pages, 2);
	cr_assert(box_same(box_at(&b, 1)) && box_at(&b, 1)[9] == 0);
	cr_assert(box_same(box_at(&b, 2)) && box_at(&b, 2)[9] == 0xA5);
	box_at(&b, 1)[0] = 7; /* also where the kernel's zero page was mapped */
	cr_assert_eq(box_at(&b, 1)[0], 7);
	box_close(&b);
}

Test(engine, incompressible_page_goes_home_and_is_left_alone_until_written)
{
	static struct box b;
	uint64_t *w;

	open_box(&b);
	w = (uint64_t *)box_at(&b, 3);
	w[0] = BOX_HARD;
	w[1] = 42;
	box_push_out(&b, 1);
	cr_assert_eq(box_entry(&b, 3).state, PAGE_GUEST);
	cr_assert(box_entry(&b, 3).hard);
	cr_assert_eq(w[1], 42);
	engine_pass(b.e); /* our own putting back is not a write of the guest's */
	engine_pass(b.e);
	cr_assert(box_entry(&b, 3).hard);
	w[0] = 1;
	box_push_out(&b, 1);
	cr_assert_eq(stats(&b).packed_pages, 1);
	cr_assert_eq(w[1], 42);
	box_close(&b);
}

Test(engine, full_tier_loses_nothing)
{
	static struct box b;

	open_box(&b);
	b.full_at = 100;
	fill_first(&b, 1000);
	box_push_out(&b, 1000);
	cr_assert_eq(stats(&b).packed_pages, 100);
	check_first(&b, 1000);
	box_close(&b);
}

Test(engine, reclaim_of_more_than_can_be_had_ends)
{
	static struct box b;

	open_box(&b);
	fill_first(&b, 64);
	for (uint64_t i = 0; i < 32; i++)
		*(uint64_t *)box_at(&b, i) = BOX_HARD; /* will not pack */
	box_push_out(&b, 1000);
	cr_assert_eq(atomic_load(&b.e->wanted_bytes), 0);
	cr_assert_eq(stats(&b).packed_pages, 32);
	box_close(&b);
}

Test(engine, limit_that_cannot_be_met_leaves_an_eighth_of_it_in_ram)
{
	static struct box b;

	open_box(&b);
	fill_first(&b, 8192); /* packs to a quarter: 2048 pages and more than the limit */
	engine_limit(b.e, 1024 << PAGE_SHIFT);
	for (int i = 0; i < 50; i++)
		engine_tick(b.e);
	cr_assert_eq(stats(&b).present_pages, 128);
	cr_assert_gt(counter_get(CTR_engine_floor), 0);
	check_first(&b, 8192);
	box_close(&b);
}

Test(engine, limit_is_met_and_kept)
{
	static struct box b;
	struct engine_stats s;

	open_box(&b);
	fill_first(&b, 8192);
	engine_limit(b.e, 4096 << PAGE_SHIFT);
	for (int i = 0; i < 50; i++)
		engine_tick(b.e);
	s = stats(&b);
	cr_assert_leq(s.present_pages + s.staged_pages + (s.tier_bytes >> PAGE_SHIFT), 4096);
	cr_assert_geq(s.present_pages, 2000, "no more than needed");
	check_first(&b, 8192);
	box_close(&b);
}

/* Both ways: into staging, and back on a touch. */
Test(engine, moves_done_but_denied_lose_nothing)
{
	static struct box b;

	open_box(&b);
	deny_every = 2;
	for (uint64_t i = 0; i < 1000; i += 2) /* apart, so that each is a move of its own */
		box_fill(&b, i, 1);
	for (unsigned round = 0; round < 4; round++) {
		engine_reclaim(b.e, 500 << PAGE_SHIFT);
		engine_tick(b.e);
		for (uint64_t i = 0; i < 1000; i += 4)
			cr_assert(box_has(&b, i, 1), "page %lu", (unsigned long)i);
		engine_tick(b.e);
		for (uint64_t i = 0; i < 1000; i += 2)
			cr_assert(box_has(&b, i, 1), "page %lu", (unsigned long)i);
	}
	cr_assert_gt(counter_get(CTR_engine_moves_unsaid), 500);
	cr_assert_eq(b.fatal, 0);
	deny_every = 0;
	box_close(&b);
}

/* The kernel then denies it a zero page as if there were one. */
Test(engine, untouched_page_that_is_only_armed_reads_zero)
{
	static struct box b;
	struct pm_scan_arg a = { .size = sizeof(a), .flags = PM_SCAN_WP_MATCHING };

	open_box(&b);
	fill_first(&b, 8);
	box_push_out(&b, 8);
	a.start = (uint64_t)box_at(&b, 100);
	a.end = a.start + PAGE_BYTES;
	cr_assert_geq(ioctl(b.e->pagemap, PAGEMAP_SCAN, &a), 0);
	cr_assert_eq(box_at(&b, 100)[17], 0);
	box_at(&b, 100)[17] = 5;
	cr_assert_eq(box_at(&b, 100)[17], 5);
	check_first(&b, 8);
	box_close(&b);
}

Test(engine, untouched_memory_of_a_watched_chunk_reads_zero)
{
	static struct box b;

	open_box(&b);
	fill_first(&b, 8);
	box_push_out(&b, 8);
	cr_assert(b.e->pages.chunk[0].watched);
	cr_assert_eq(box_at(&b, 100)[17], 0);
	box_at(&b, 101)[17] = 9;
	cr_assert_eq(box_at(&b, 101)[17], 9);
	box_close(&b);
}

/* A round trip for each of its pages would be what a guest near its limit does all day. */
Test(engine, untouched_memory_in_order_comes_many_pages_a_fault)
{
	static struct box b;
	uint64_t faults;

	open_box(&b);
	fill_first(&b, 8);
	box_push_out(&b, 8);
	cr_assert(b.e->pages.chunk[0].watched);
	faults = counter_get(CTR_engine_faults_untouched);
	for (uint64_t i = 16; i < CHUNK_PAGES; i++) {
		cr_assert_eq(box_at(&b, i)[17], 0);
		box_fill(&b, i, 1);
	}
	cr_assert_leq(counter_get(CTR_engine_faults_untouched) - faults, 32);
	for (uint64_t i = 16; i < CHUNK_PAGES; i++)
		cr_assert(box_has(&b, i, 1), "page %lu", (unsigned long)i);
	check_first(&b, 8);
	box_close(&b);
}

static uint64_t resident_pages(struct box *b)
{
	uint64_t bytes = 0;

	cr_assert_eq(ram_resident_bytes(b->ram, &bytes), 0);
	return bytes >> PAGE_SHIFT;
}

/* A zero page first, and then the write to it, would be a fault more for each page. */
Test(engine, untouched_memory_written_in_order_is_memory_at_once)
{
	static struct box b;
	uint64_t faults, written, resident;

	open_box(&b);
	fill_first(&b, 8);
	box_push_out(&b, 8);
	faults = counter_get(CTR_engine_faults_untouched);
	written = counter_get(CTR_engine_untouched_written);
	resident = resident_pages(&b);
	for (uint64_t i = 16; i < 40; i++)
		box_at(&b, i)[i % PAGE_BYTES] = 1;
	box_settle(&b);
	cr_assert_gt(resident_pages(&b), resident + 24, "those around are zero pages");
	for (uint64_t i = 40; i < CHUNK_PAGES; i++)
		box_at(&b, i)[i % PAGE_BYTES] = 1;
	box_settle(&b);
	faults = counter_get(CTR_engine_faults_untouched) - faults;
	cr_assert_leq(faults, 32);
	cr_assert_eq(counter_get(CTR_engine_untouched_written) - written, faults);
	for (uint64_t i = 16; i < CHUNK_PAGES; i++)
		for (uint64_t k = 0; k < PAGE_BYTES; k++)
			cr_assert_eq(box_at(&b, i)[k], k == i % PAGE_BYTES);
	box_close(&b);
}

/* It is the pages it writes that cost memory, whatever was made ready beside them. */
Test(engine, untouched_memory_written_here_and_there_costs_what_is_written)
{
	static struct box b;
	uint64_t present, n = 0;

	open_box(&b);
	fill_first(&b, 8);
	box_push_out(&b, 8);
	engine_pass(b.e);
	present = stats(&b).present_pages;
	for (uint64_t i = 16; i < CHUNK_PAGES; i += 3, n++)
		box_at(&b, i)[7] = 1;
	engine_pass(b.e);
	cr_assert_eq(stats(&b).present_pages - present, n);
	box_close(&b);
}

Test(engine, filled_page_written_to_is_memory_at_once)
{
	static struct box b;
	uint64_t written = counter_get(CTR_engine_untouched_written);

	open_box(&b);
	for (uint64_t i = 0; i < 64; i++)
		memset(box_at(&b, i), 0, PAGE_BYTES);
	box_push_out(&b, 64);
	cr_assert_eq(stats(&b).filled_pages, 64);
	for (uint64_t i = 0; i < 64; i += 7)
		box_at(&b, 63 - i)[9] = 3; /* falling: each a fault of its own */
	box_settle(&b);
	cr_assert_eq(counter_get(CTR_engine_untouched_written) - written, 10);
	for (uint64_t i = 0; i < 64; i++)
		cr_assert_eq(box_at(&b, i)[8], 0);
	box_settle(&b);
	cr_assert_eq(counter_get(CTR_engine_untouched_written) - written, 10, "reads are none");
	box_close(&b);
}

Test(engine, untouched_memory_is_not_given_beyond_the_limit)
{
	static struct box b;
	uint64_t faults;

	open_box(&b);
	fill_first(&b, 8);
	box_push_out(&b, 8);
	atomic_store(&b.e->limit_bytes, 256 << PAGE_SHIFT);
	engine_pass(b.e);
	faults = counter_get(CTR_engine_faults_untouched);
	for (uint64_t i = 16; i < 32; i++)
		cr_assert_eq(box_at(&b, i)[17], 0);
	box_settle(&b);
	cr_assert_eq(counter_get(CTR_engine_faults_untouched) - faults, 16);
	box_close(&b);
}

Test(engine, discarded_pages_read_zero_wherever_they_were)
{
	static struct box b;
	struct ram_range r = { gpa(0), 96 * PAGE_BYTES };

	open_box(&b);
	fill_first(&b, 128);
	box_push_out(&b, 128);             /* 0..127 packed */
	check_first(&b, 64);           /* 0..63 back */
	engine_reclaim(b.e, 32 << PAGE_SHIFT);
	engine_tick(b.e);              /* some of them staged */
	cr_assert_eq(ram_discard_many(b.ram, &r, 1), 1);
	for (uint64_t i = 0; i < 96; i++)
		cr_assert(box_same(box_at(&b, i)) && box_at(&b, i)[0] == 0, "page %lu",
			  (unsigned long)i);
	for (uint64_t i = 96; i < 128; i++)
		cr_assert(box_has(&b, i, 1));
	box_push_out(&b, 128);
	for (uint64_t i = 96; i < 128; i++)
		cr_assert(box_has(&b, i, 1));
	box_close(&b);
}

Test(engine, damaged_page_ends_the_vm_by_name_and_nothing_else)
{
	static struct box b;
	struct fault_server *s;

	open_box(&b);
	cr_assert_eq(fault_server_create(&s, b.e), 0);
	fill_first(&b, 64);
	box_push_out(&b, 64);
	b.damaged = -EIO;
	b.damaged_index = 7;
	fault_serve(s, 7);
	fault_server_destroy(&s);
	cr_assert_eq(b.fatal, 1);
	cr_assert_eq(box_entry(&b, 7).state, PAGE_PACKED, "it must stay missing");
	b.damaged = 0;
	b.fatal = 0;
	check_first(&b, 64);
	box_close(&b);
}

/* As a worker of the kernel's does for KVM, or I/O: it reads the page for us. */
struct kernel_read {
	const uint8_t *page;
	int pipe[2];
	_Atomic bool has_ended;
	ssize_t n;
	int error;
	pthread_t thread;
};

static void *read_by_kernel(void *arg)
{
	struct kernel_read *k = arg;

	k->n = write(k->pipe[1], k->page, PAGE_BYTES);
	k->error = errno;
	k->has_ended = true;
	return NULL;
}

static void kernel_read_start(struct kernel_read *k, const uint8_t *page)
{
	*k = (struct kernel_read){ .page = page };
	cr_assert_eq(pipe(k->pipe), 0);
	cr_assert_eq(pthread_create(&k->thread, NULL, read_by_kernel, k), 0);
}

static void kernel_read_is_refused(struct kernel_read *k)
{
	cr_assert_eq(pthread_join(k->thread, NULL), 0);
	cr_assert_eq(k->n, -1);
	cr_assert_eq(k->error, EFAULT);
	close(k->pipe[0]);
	close(k->pipe[1]);
}

Test(engine, given_up_page_is_an_error_to_who_waits_and_others_come_back)
{
	static struct kernel_read waits[3], late;
	static struct box b;

	open_box(&b);
	fill_first(&b, 64);
	box_push_out(&b, 64);
	b.damaged = -EIO;
	b.damaged_index = 7;
	for (unsigned i = 0; i < 3; i++)
		kernel_read_start(&waits[i], box_at(&b, 7));
	while (!b.fatal)
		usleep(500);
	usleep(20000);
	for (unsigned i = 0; i < 3; i++)
		cr_assert_not(waits[i].has_ended, "of a page that is not there");
	engine_give_up(b.e);
	for (unsigned i = 0; i < 3; i++)
		kernel_read_is_refused(&waits[i]);
	b.damaged_index = 9; /* found only now */
	kernel_read_start(&late, box_at(&b, 9));
	kernel_read_is_refused(&late);
	for (uint64_t i = 0; i < 64; i++)
		cr_assert(i == 7 || i == 9 || box_has(&b, i, 1), "page %lu", (unsigned long)i);
	cr_assert_eq(b.fatal, 1);
	box_end(&b); /* the kernel counts a mapping more */
}

/* At an end in order nothing was lost, and what waits for a page goes on waiting for it. */
Test(engine, given_up_with_nothing_lost_changes_nothing)
{
	static struct box b;

	open_box(&b);
	fill_first(&b, 64);
	box_push_out(&b, 64);
	engine_give_up(b.e);
	check_first(&b, 64);
	box_close(&b);
}

Test(engine, sequential_reader_gets_pages_around)
{
	static struct box b;
	uint64_t faults, before;

	open_box(&b);
	fill_first(&b, 512);
	box_push_out(&b, 512);
	before = counter_get(CTR_engine_faults_packed);
	check_first(&b, 512);
	faults = counter_get(CTR_engine_faults_packed) - before;
	cr_assert_lt(faults, 40, "%lu faults for 512 pages in a row", (unsigned long)faults);
	box_close(&b);
}

/* ---- who faults is held where it is served ---------------------------------------- */

struct me {
	const uint32_t *cpu_word;
	struct thread_hold hold;
	_Atomic int held;
};

static int cpu_of_me(void *ctx, uint32_t tid)
{
	struct me *m = ctx;

	return tid == (uint32_t)getpid() ? thread_cpu_read(m->cpu_word) : -1;
}

static int hold_me(void *ctx, uint32_t tid, int cpu)
{
	struct me *m = ctx;
	int rc = cpu < 0 ? 0 : thread_hold(&m->hold, (pid_t)tid, cpu);

	if (cpu < 0)
		thread_release(&m->hold, (pid_t)tid);
	m->held = !rc && cpu >= 0;
	return rc;
}

Test(engine, toucher_is_held_while_it_faults_and_free_again_at_the_end)
{
	static struct box b;
	struct me me = { .cpu_word = thread_cpu_word() };
	struct engine_config cfg = BOX_MANUAL;
	cpu_set_t before, now, held;
	uint64_t was = counter_get(CTR_engine_held);

	cr_assert_eq(sched_getaffinity(0, sizeof(before), &before), 0);
	if (CPU_COUNT(&before) < 2 || !me.cpu_word)
		cr_skip_test("one CPU, or no restartable sequences");
	cfg.touchers = (struct mm_touchers){ .ctx = &me, .cpu_of = cpu_of_me, .hold = hold_me };
	box_open(&b, RAM_HUGE_NEVER, cfg);
	fill_first(&b, 4096);
	box_push_out(&b, 4096);
	CPU_ZERO(&held);
	for (uint64_t i = 0; i < 4096 && CPU_COUNT(&held) != 1; i += 3) {
		cr_assert(box_has(&b, i * 1021 % 4096, 1));
		if (me.held)
			sched_getaffinity(0, sizeof(held), &held);
	}
	cr_assert_gt(counter_get(CTR_engine_held), was);
	cr_assert_eq(CPU_COUNT(&held), 1);
	check_first(&b, 4096);
	box_close(&b);
	cr_assert(!me.held);
	cr_assert_eq(sched_getaffinity(0, sizeof(now), &now), 0);
	cr_assert(CPU_EQUAL(&before, &now));
}

Test(engine, transitions_are_the_table_and_no_others)
{
	static const char *allowed[PAGE_STATES] = {
		[PAGE_GUEST] = "S", [PAGE_STAGED] = "GFPOM", [PAGE_FILLED] = "G",
		[PAGE_PACKED] = "GPDO", [PAGE_DISK] = "GPD", [PAGE_STORED] = "G",
		[PAGE_SHARED] = "GB", [PAGE_BROKEN] = "G",
	};

	for (int from = 0; from < PAGE_STATES; from++)
		for (int to = 0; to < PAGE_STATES; to++)
			cr_assert_eq(page_may(from, to), strchr(allowed[from], "GSFPDOMB"[to]) != NULL,
				     "%d to %d", from, to);
}

/* ---- every call fails once -------------------------------------------------------- */

static bool first_are(struct box *b, uint64_t from, uint64_t to)
{
	while (from < to && box_has(b, from, 1))
		from++;
	return from == to;
}

/* A scenario with all kinds of moves, in which call n fails. */
static enum outcome scenario(long n, int error)
{
	static struct box b;
	struct ram_range r = { gpa(64 * PAGE_BYTES), 32 * PAGE_BYTES };
	struct err err;

	fail_errno = error;
	fail_at = n;
	use_host(&b);
	if (box_try_open(&b, RAM_HUGE_NEVER, BOX_MANUAL, &err))
		return REFUSED;
	b.e->fatal = end_here;
	fill_first(&b, 256);
	box_push_out(&b, 200);
	if (!first_are(&b, 0, 64))
		return WRONG;
	if (ram_discard_many(b.ram, &r, 1) == 1)
		for (uint64_t i = 64; i < 96; i++)
			box_fill(&b, i, 1);
	box_push_out(&b, 200);
	if (!first_are(&b, 0, 256))
		return WRONG;
	box_settle(&b);
	pages_verify(&b.e->pages);
	return fail_at >= 0 ? NONE_LEFT : ALL_RIGHT;
}

Test(engine, every_call_may_fail_once)
{
	static const int errors[] = { ENOMEM, EAGAIN, EBUSY, EEXIST };
	unsigned seen[OUTCOMES] = { 0 };
	static struct box probe;

	open_box(&probe); /* skips where there is no userfaultfd */
	box_close(&probe);
	for (unsigned k = 0; k < ARRAY_LEN(errors); k++)
		fail_every_call(scenario, errors[k], seen);
	cr_assert_gt(seen[ALL_RIGHT], 100);
	cr_assert_gt(seen[REFUSED], 20);
}

/* ---- stress ------------------------------------------------------------------------ */

static bool pages_are_alike;

/* Half of it noise, the same for every 16th page: what deltas are made of. */
static uint64_t shared_word(uint64_t index, uint64_t w)
{
	uint64_t seed = (index % 16 * 512 + w + 1) * 0x9E3779B97F4A7C15u;

	return w < 320 ? seed ^ seed >> 29 : w;
}

/* Word w of a version of a page: of all kinds, in turn: compressible, one word
 * throughout, incompressible, mostly zero. */
static uint64_t word_of(uint64_t index, uint64_t version, uint64_t w)
{
	uint64_t seed = index << 40 ^ version << 12;

	if (version == 0)
		return 0;
	if (pages_are_alike && w >= 64)
		return shared_word(index, w);
	switch ((index + version) % 4) {
	case 0:
		return seed ^ w;
	case 1:
		return seed;
	case 2:
		seed = (seed ^ w) * 0x9E3779B97F4A7C15u;
		seed = (seed ^ seed >> 29) * 0xBF58476D1CE4E5B9u;
		return seed ^ seed >> 32;
	default:
		return w % 97 ? 0 : seed ^ w;
	}
}

/* Half of the accesses go to an eighth of memory. */
static uint64_t pick(uint64_t r)
{
	return r & 1 ? (r >> 8) % BOX_PAGES : (r >> 8) % (BOX_PAGES / 8);
}

static bool enough_packed(void)
{
	return counter_get(CTR_engine_packed) > 1000;
}

static bool enough_on_disk(void)
{
	return enough_packed() && counter_get(CTR_swap_spilled) > 1000 &&
	       counter_get(CTR_swap_disk_reads) > 1000;
}

static bool enough_deltas_on_disk(void)
{
	return enough_on_disk() && counter_get(CTR_swap_delta_undone) > 1000 &&
	       counter_get(CTR_swap_orphans) > 0;
}

static bool enough_deltas(void)
{
	return enough_packed() && counter_get(CTR_swap_delta_puts) > 1000 &&
	       counter_get(CTR_swap_orphans) > 0;
}

static bool enough_refined(void)
{
	return enough_packed() && counter_get(CTR_swap_refined) > 1000 &&
	       (!swap_disk || enough_on_disk());
}

static unsigned long count(enum counter c)
{
	return (unsigned long)counter_get(c);
}

static void check_swap(struct box *b)
{
	struct swap_stats st;

	swap_verify(b->swap);
	swap_stats(b->swap, &st);
	cr_assert_eq(st.filled_pages, stats(b).filled_pages);
	cr_assert_eq(st.packed_pages, stats(b).packed_pages);
	cr_assert_eq(st.disk_pages, stats(b).disk_pages);
	fprintf(stderr, "disk: %lu pages went, %lu read because touched, %lu cleaned, %lu lifted\n",
		count(CTR_swap_spilled), count(CTR_swap_disk_reads), count(CTR_swap_disk_cleaned),
		count(CTR_swap_disk_lifted));
	fprintf(stderr, "swap: %lu MiB held at the end, %lu MiB moved by the cleaner, %lu full\n",
		(unsigned long)(st.held_bytes / MiB),
		(unsigned long)(counter_get(CTR_swap_cleaned_bytes) / MiB),
		count(CTR_engine_tier_full));
}

static void press(struct engine *e)
{
	engine_limit(e, BOX_BYTES / 4);
	usleep(200000);
	engine_limit(e, 0);
	engine_reclaim(e, BOX_BYTES / 8);
	usleep(50000);
}

static void stress(uint64_t swap_cap_bytes, bool (*enough)(void))
{
	static struct box b;
	static struct stress s = { .b = &b, .pages = BOX_PAGES, .pick = pick, .write_one_in = 4,
				   .discard_rest_us = 500 };
	void *(*const mains[])(void *) = { stress_access, stress_access, stress_access,
					   stress_access, stress_discard };

	if (swap_cap_bytes)
		use_swap(&b, swap_cap_bytes);
	use_host(&b);
	box_open(&b, RAM_HUGE_NEVER, (struct engine_config){ .fault_threads = 2,
			.pass_ns = 2000000, .staging_bytes = 2 * MiB });
	stress_begin(&s, mains, ARRAY_LEN(mains));
	stress_press(&s, press, enough);
	stress_end(&s);
	engine_limit(b.e, 0);
	reclaim_stop(b.e);
	stress_check_all(&s);
	fprintf(stderr, "%lu accesses, %lu packed, %lu faults packed, %lu staged, %lu moves unsaid\n",
		(unsigned long)s.accesses, count(CTR_engine_packed),
		count(CTR_engine_faults_packed), count(CTR_engine_faults_staged),
		count(CTR_engine_moves_unsaid));
	cr_assert(enough());
	box_check_books(&b);
	if (b.swap)
		check_swap(&b);
	box_close(&b);
}

Test(engine, stress_no_byte_is_ever_wrong)
{
	stress(0, enough_packed);
}

Test(engine, stress_with_the_pool_no_byte_is_ever_wrong)
{
	stress(1 * GiB, enough_packed);
}

static void stress_with_a_file(uint64_t bytes, bool encrypt, bool (*enough)(void))
{
	char path[] = "/tmp/brim-engine-XXXXXX";
	int fd = mkstemp(path);
	struct swap_disk_config disk = { .path = path, .size_bytes = bytes, .encrypt = encrypt };

	cr_assert_geq(fd, 0);
	close(fd);
	swap_disk = &disk;
	stress(refine_age_ns ? SWAP_REFINE_CAP_MIN_BYTES : 16 * MiB, enough);
	swap_disk = NULL;
	unlink(path);
}

Test(engine, stress_with_a_swap_file_no_byte_is_ever_wrong)
{
	stress_with_a_file(64 * MiB, true, enough_on_disk);
}

Test(engine, stress_with_a_swap_file_too_small_no_byte_is_ever_wrong)
{
	stress_with_a_file(20 * MiB, false, enough_on_disk);
}

Test(engine, stress_with_a_pool_too_small_no_byte_is_ever_wrong)
{
	stress(6 * MiB, enough_packed);
}

Test(engine, stress_with_similar_pages_and_a_swap_file_no_byte_is_ever_wrong)
{
	pages_are_alike = true;
	stress_with_a_file(48 * MiB, true, enough_deltas_on_disk);
	fprintf(stderr, "deltas: %lu packed, %lu undone, %lu bases outlived their page\n",
		(unsigned long)counter_get(CTR_swap_delta_puts),
		(unsigned long)counter_get(CTR_swap_delta_undone),
		(unsigned long)counter_get(CTR_swap_orphans));
}

Test(engine, stress_with_similar_pages_no_byte_is_ever_wrong)
{
	pages_are_alike = true;
	stress(9 * MiB, enough_deltas);
	fprintf(stderr, "deltas: %lu packed, %lu bases outlived their page\n",
		(unsigned long)counter_get(CTR_swap_delta_puts),
		(unsigned long)counter_get(CTR_swap_orphans));
}

static void tell_refined(void)
{
	fprintf(stderr, "refined: %lu pages, %lu too little gained, %lu moves refused\n",
		(unsigned long)counter_get(CTR_swap_refined),
		(unsigned long)counter_get(CTR_swap_refine_no_gain),
		(unsigned long)counter_get(CTR_swap_move_refused));
}

Test(engine, stress_with_refining_no_byte_is_ever_wrong)
{
	refine_age_ns = 1000000;
	pages_are_alike = true;
	stress(20 * MiB, enough_refined);
	tell_refined();
}

Test(engine, stress_with_refining_and_a_swap_file_no_byte_is_ever_wrong)
{
	refine_age_ns = 1000000;
	stress_with_a_file(64 * MiB, false, enough_refined);
	tell_refined();
}

/* Eight letters in no order, which zstd packs far better than LZ4. */
static void fill_text(uint8_t *page, uint64_t seed)
{
	for (unsigned i = 0; i < PAGE_BYTES; i++) {
		seed = seed * 6364136223846793005u + 1442695040888963407u;
		page[i] = i < 2400 ? (uint8_t)"etaoinsh"[seed >> 61] : 0;
	}
}

/* Nobody asks for rounds any more: what was taken is refined all the same, and comes back. */
Test(engine, pages_taken_once_refined_while_nobody_asks)
{
	static struct box b;
	uint8_t want[PAGE_BYTES];
	uint64_t end = now_ns() + 60 * 1000000000ull, before = counter_get(CTR_swap_refined);

	refine_age_ns = 50000000;
	use_swap(&b, GiB);
	box_open(&b, RAM_HUGE_NEVER, (struct engine_config){ .pass_ns = 20000000 });
	for (uint64_t i = 0; i < 4096; i++)
		fill_text(box_at(&b, i), i);
	engine_reclaim(b.e, 4096 << PAGE_SHIFT);
	while (counter_get(CTR_swap_refined) < before + 1000 && now_ns() < end)
		usleep(10000);
	cr_assert_geq(counter_get(CTR_swap_refined), before + 1000);
	for (uint64_t i = 0; i < 4096; i++) {
		fill_text(want, i);
		cr_assert_eq(memcmp(box_at(&b, i), want, sizeof(want)), 0, "page %lu", (unsigned long)i);
	}
	cr_assert_eq(b.fatal, 0);
	reclaim_stop(b.e);
	box_close(&b);
}
