/*
 * vmm/publish.c: the gauges of a VM against what the engine, the balloon and the kernel say
 * of the same memory.
 */
#include <criterion/criterion.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "stats/shm.h"
#include "tests/lib/books.h"
#include "vmm/internal.h"

#define NEAR_BYTES (6 * MiB) /* what a process allocates besides, with AddressSanitizer too */
#ifdef __SANITIZE_THREAD__
#define RESIDENT_IS_KNOWN 0 /* its shadow is anonymous memory as well, and grows with use */
#else
#define RESIDENT_IS_KNOWN 1
#endif

/* ---- what is resident ------------------------------------------------------------------ */

Test(publish, resident_is_anonymous_memory_less_the_rest)
{
	struct resident_guess g = { .rest_bytes = 3 * MiB };
	struct resident_seen s = { .anon_bytes = 103 * MiB };

	cr_assert_eq(resident_guess(&g, &s), 100 * MiB);
	s.away_bytes = 20 * MiB;
	cr_assert_eq(resident_guess(&g, &s), 80 * MiB);
	s.anon_bytes = 10 * MiB;
	cr_assert_eq(resident_guess(&g, &s), 0, "never below nothing");
}

Test(publish, resident_is_set_right_by_a_pass_when_nothing_happens)
{
	struct resident_guess g = { .rest_bytes = 3 * MiB };
	struct resident_seen s = { .anon_bytes = 120 * MiB, .present_bytes = 100 * MiB, .passes = 5 };

	cr_assert_eq(resident_guess(&g, &s), 117 * MiB, "much has changed: the pass may be of before");
	cr_assert_eq(resident_guess(&g, &s), 117 * MiB, "the same pass");
	s.passes = 6;
	cr_assert_eq(resident_guess(&g, &s), 100 * MiB);
	s.anon_bytes = 150 * MiB; /* no pass: it goes by the process */
	cr_assert_eq(resident_guess(&g, &s), 130 * MiB);
	s.passes = 7;
	s.present_bytes = 101 * MiB;
	s.anon_bytes = 160 * MiB;
	cr_assert_eq(resident_guess(&g, &s), 140 * MiB, "a pass amid change is not believed");
}

Test(publish, books_close_with_what_has_no_memory)
{
	struct books b = { .memory_bytes = 100, .resident_bytes = 1, .staged_bytes = 2, .filled_bytes = 3,
			   .packed_bytes = 4, .stored_bytes = 5, .mapped_bytes = 6, .disk_bytes = 7,
			   .ballooned_bytes = 8 };

	books_close(&b);
	cr_assert_eq(b.untouched_bytes, 64);
	cr_assert_eq(b.gap_bytes, 0);
	b.resident_bytes = 90;
	books_close(&b);
	cr_assert_eq(b.untouched_bytes, 0);
	cr_assert_eq(b.gap_bytes, 25);
}

/* ---- a VM's file --------------------------------------------------------------------------- */

static struct vmm vmm;
static struct machine machine;
static char dir[] = "/dev/shm/brim-pub-XXXXXX", path[64];
static struct err e;

static void begin(void)
{
	struct ram_config cfg = { .size_bytes = RAM_MIN_BYTES, .huge = RAM_HUGE_NEVER };
	struct virtio_balloon_config balloon = { .stats_interval_s = 0 };
	struct virtio_env env;

	cr_assert_not_null(mkdtemp(dir));
	snprintf(path, sizeof(path), "%s/stats", dir);
	cr_assert_eq(loop_create(&vmm.loop, &e), 0, "%s", e.msg);
	vmm.cfg.memory_bytes = RAM_MIN_BYTES;
	vmm.cfg.cpus = 2;
	snprintf(vmm.cfg.share.group, sizeof(vmm.cfg.share.group), "none");
	cr_assert_eq(publish_create(&vmm.publish, &vmm, path, &e), 0, "%s", e.msg);
	cr_assert_eq(ram_create(&machine.ram, &cfg, &e), 0, "%s", e.msg);
	env = (struct virtio_env){ .ram = machine.ram, .ops = &loop_env_ops, .opaque = vmm.loop };
	cr_assert_eq(virtio_balloon_create(&machine.balloon, &env, &balloon, &e), 0, "%s", e.msg);
	machine.cfg = &vmm.cfg;
	vmm.machine = &machine;
}

static void end(void)
{
	virtio_dev_destroy(&machine.balloon);
	memory_fini(&machine);
	ram_destroy(&machine.ram);
	publish_destroy(&vmm.publish);
	loop_destroy(&vmm.loop);
	unlink(path);
	rmdir(dir);
}

static struct stats_view look(void)
{
	struct stats_view v;

	cr_assert_eq(stats_read(path, &v, &e), 0, "%s", e.msg);
	return v;
}

static uint64_t sum_of(const struct stats_view *v)
{
	return v->gauge[GAUGE_untouched_bytes] + v->gauge[GAUGE_resident_bytes] +
	       v->gauge[GAUGE_staged_bytes] + v->gauge[GAUGE_filled_bytes] +
	       v->gauge[GAUGE_packed_bytes] + v->gauge[GAUGE_stored_bytes] +
	       v->gauge[GAUGE_mapped_bytes] + v->gauge[GAUGE_disk_bytes] +
	       v->gauge[GAUGE_ballooned_bytes];
}

static uint64_t apart(uint64_t a, uint64_t b)
{
	return a > b ? a - b : b - a;
}

/* Random bytes in the first n, which are none the engine could take for alike. */
static void touch(uint64_t bytes)
{
	uint64_t *w = (uint64_t *)(void *)ram_slot(machine.ram, 0)->hva, x = 88172645463325252ull;

	for (uint64_t i = 0; i < bytes / sizeof(*w); i++) {
		x ^= x << 13;
		x ^= x >> 7;
		x ^= x << 17;
		w[i] = i % 512 < 128 ? x : 0; /* a quarter: it packs */
	}
}

static void is_near_smaps(const struct stats_view *v)
{
	struct books_smaps s;

	cr_assert_eq(books_smaps(ram_slot(machine.ram, 0)->hva, RAM_MIN_BYTES, &s), 0);
	if (!RESIDENT_IS_KNOWN)
		return;
	cr_assert_lt(apart(v->gauge[GAUGE_resident_bytes], s.own_bytes), NEAR_BYTES, "%lu KiB, smaps %lu",
		     (unsigned long)(v->gauge[GAUGE_resident_bytes] / KiB),
		     (unsigned long)(s.own_bytes / KiB));
}

Test(publish, vm_without_engine_is_untouched_and_resident)
{
	struct stats_view v;

	begin();
	publish_now(vmm.publish);
	v = look();
	cr_assert_eq(v.gauge[GAUGE_memory_bytes], RAM_MIN_BYTES);
	cr_assert_eq(v.gauge[GAUGE_state], 1);
	cr_assert_eq(v.gauge[GAUGE_vcpus], 2);
	cr_assert_eq(v.gauge[GAUGE_engine], 0);
	cr_assert_eq(v.gauge[GAUGE_guest_free_bytes], GAUGE_UNKNOWN);
	cr_assert_eq(sum_of(&v), RAM_MIN_BYTES);
	is_near_smaps(&v);
	touch(40 * MiB);
	machine.paused = true;
	publish_now(vmm.publish);
	v = look();
	cr_assert_eq(v.gauge[GAUGE_state], 2);
	cr_assert_eq(sum_of(&v), RAM_MIN_BYTES + v.gauge[GAUGE_books_gap_bytes]);
	cr_assert_gt(v.gauge[GAUGE_resident_bytes], 34 * MiB);
	cr_assert_eq(v.gauge[GAUGE_working_set_bytes], v.gauge[GAUGE_resident_bytes]);
	is_near_smaps(&v);
	end();
}

Test(publish, timer_writes_them_by_itself)
{
	uint64_t first;

	begin();
	publish_now(vmm.publish);
	first = look().gauge[GAUGE_updated_ns];
	for (unsigned i = 0; i < 100 && look().gauge[GAUGE_updated_ns] == first; i++)
		loop_turn(vmm.loop, 100);
	cr_assert_neq(look().gauge[GAUGE_updated_ns], first);
	end();
}

/* Until nothing moves any more; published as of then. */
static struct engine_stats settle(void)
{
	struct engine_stats s, before;

	engine_stats(machine.engine, &s);
	do {
		before = s;
		usleep(300000);
		publish_now(vmm.publish);
		engine_stats(machine.engine, &s);
	} while (s.packed_pages != before.packed_pages || s.staged_pages != before.staged_pages);
	return s;
}

Test(publish, vm_under_a_limit_has_books_that_balance)
{
	struct engine_stats s = { 0 };
	struct stats_view v;

	begin();
	if (memory_limit(&machine, 16 * MiB, &e))
		cr_skip_test("%s", e.msg);
	touch(48 * MiB);
	do {
		usleep(100000);
		publish_now(vmm.publish);
		engine_stats(machine.engine, &s);
	} while (s.packed_pages < 20 * MiB / PAGE_BYTES);
	memory_limit(&machine, 0, &e); /* nothing is taken any more */
	s = settle();
	v = look();
	cr_assert_eq(v.gauge[GAUGE_engine], 1);
	cr_assert_eq(sum_of(&v), RAM_MIN_BYTES + v.gauge[GAUGE_books_gap_bytes]);
	cr_assert(!RESIDENT_IS_KNOWN || v.gauge[GAUGE_books_gap_bytes] == 0);
	cr_assert_eq(v.gauge[GAUGE_packed_bytes], s.packed_pages * PAGE_BYTES);
	cr_assert_eq(v.gauge[GAUGE_filled_bytes], s.filled_pages * PAGE_BYTES);
	cr_assert_gt(v.gauge[GAUGE_pool_bytes], 0);
	cr_assert_leq(v.gauge[GAUGE_working_set_bytes], v.gauge[GAUGE_present_bytes]);
	is_near_smaps(&v);
	end();
}
