/*
 * bench_stats: what do numbers that others can read cost a VM?
 *
 * Question  Counters lie in a file that is mapped (stats/shm.h), faults are timed, and
 *           gauges are written once a second.  Nanoseconds for one counter against one in
 *           plain memory; for the timing of one fault; and for writing all gauges, of a VM
 *           with the memory engine, which is what the event loop pays each second; and
 *           what one look costs the reader.
 * Method    Loops in one thread; the file is in /dev/shm.
 * Baseline  The same loop over an array of the program's own, as counters were before.
 * Noise     Thread CPU time; what the others of a host do to the caches is not in it.
 *
 * Goal: a counter costs what it did; gauges below 0.01 % of a CPU (100 us a second).
 */
#include "bench/benchlib.h"
#include "stats/shm.h"
#include "vmm/internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#define COUNTS 20000000u
#define TIMINGS 1000000u
#define WRITES 2000u

static _Atomic uint64_t plain[CTR_COUNT_];
static struct vmm vmm;
static struct machine machine;
static char path[] = "/dev/shm/brim-bench-XXXXXX";

static double per_op(uint64_t since_ns, unsigned n)
{
	return (double)(bench_cpu_ns() - since_ns) / n;
}

static double mapped_counters(void *arg)
{
	uint64_t t = bench_cpu_ns();

	for (unsigned i = 0; i < COUNTS; i++)
		counter_inc((enum counter)(i % 16));
	return per_op(t, COUNTS);
}

static double plain_counters(void *arg)
{
	uint64_t t = bench_cpu_ns();

	for (unsigned i = 0; i < COUNTS; i++)
		atomic_fetch_add_explicit(&plain[i % 16], 1, memory_order_relaxed);
	return per_op(t, COUNTS);
}

static double timings(void *arg)
{
	uint64_t t = bench_cpu_ns();

	for (unsigned i = 0; i < TIMINGS; i++) {
		uint64_t since = now_ns();

		histogram_add(HIST_fault_ns, now_ns() - since);
	}
	return per_op(t, TIMINGS);
}

static double gauges(void *arg)
{
	uint64_t t = bench_cpu_ns();

	for (unsigned i = 0; i < WRITES; i++)
		publish_now(vmm.publish);
	return per_op(t, WRITES) / 1000;
}

static double looks(void *arg)
{
	uint64_t t = bench_cpu_ns();
	struct stats_view v;

	for (unsigned i = 0; i < WRITES; i++)
		if (stats_read(path, &v, NULL))
			return 0;
	return per_op(t, WRITES) / 1000;
}

static void set_up(struct bench *b)
{
	struct ram_config cfg = { .size_bytes = GiB };
	struct virtio_balloon_config balloon = { .stats_interval_s = 0 };
	struct virtio_env env;
	struct err e = { "" };
	int fd = mkstemp(path);

	if (fd < 0)
		bench_die(b, "no file in /dev/shm");
	close(fd);
	unlink(path);
	vmm.cfg.memory_bytes = GiB;
	vmm.cfg.cpus = 2;
	machine.cfg = &vmm.cfg;
	if (loop_create(&vmm.loop, &e) || ram_create(&machine.ram, &cfg, &e))
		bench_die(b, "%s", e.msg);
	env = (struct virtio_env){ .ram = machine.ram, .ops = &loop_env_ops, .opaque = vmm.loop };
	if (virtio_balloon_create(&machine.balloon, &env, &balloon, &e) ||
	    publish_create(&vmm.publish, &vmm, path, &e) || memory_limit(&machine, GiB, &e))
		bench_die(b, "%s", e.msg);
	vmm.machine = &machine;
}

int main(int argc, char **argv)
{
	struct bench b;

	bench_begin(&b, "stats", argc, argv);
	set_up(&b);
	bench_compare(&b, "one counter", "ns",
		      &(struct bench_pair){ mapped_counters, plain_counters, "plain memory", NULL });
	bench_compare(&b, "timing of one fault", "ns", &(struct bench_pair){ timings, NULL, NULL, NULL });
	bench_compare(&b, "all gauges, once a second", "us", &(struct bench_pair){ gauges, NULL, NULL, NULL });
	bench_compare(&b, "one look at the file, by its reader", "us",
		      &(struct bench_pair){ looks, NULL, NULL, NULL });
	publish_destroy(&vmm.publish);
	unlink(path);
	return bench_end(&b);
}
