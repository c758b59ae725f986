/*
 * bench_scan: what does one look at all of a VM's memory cost?
 *
 * Question  Before a page can be called cold, every page has to be looked at again
 *           and again.  Nanoseconds of CPU time a page for one pass of the engine
 *           (engine_pass: PAGEMAP_SCAN with re-arming, and the ages), with nothing,
 *           1 %, 5 % and 20 % of the pages written since the pass before.
 * Method    Guest RAM of the program's own, all touched, in small pages.  Written
 *           pages are spread evenly at random; the writing is not timed, the faults
 *           of the re-armed notes are shown beside it (`write after re-arming`).
 * Baseline  Reading the same memory once (one load a cache line): what a scanner
 *           that looks at content would pay at the very least.
 * Noise     Thread CPU time; the machine should do nothing else.
 *
 * Goal: 24 GiB with 5 % written in 150 ms, which is 24 ns a page.
 */
#include "bench/benchlib.h"
#include "mm/internal.h"

#include <stdio.h>
#include <stdlib.h>

#define RAM_BYTES (2 * GiB)
#define RAM_BYTES_QUICK (512 * MiB)

struct scene {
	struct ram *ram;
	struct engine *e;
	uint64_t pages;
	unsigned written_pct;
	uint64_t random;
	_Atomic uint64_t sink;
};

/* ---- a tier that nothing reaches ------------------------------------------------ */

static int no_put(void *ctx, uint64_t index, const void *page, uint64_t *ref, bool *filled)
{
	return -1;
}

static int no_get(void *ctx, uint64_t ref, uint64_t index, void *page)
{
	return -1;
}

static void no_drop(void *ctx, uint64_t ref)
{
}

static uint64_t no_bytes(void *ctx)
{
	return 0;
}

static const struct mm_tier no_tier = {
	.put = no_put, .get = no_get, .drop = no_drop, .held_bytes = no_bytes,
};

/* ---- what is timed --------------------------------------------------------------- */

static uint64_t next_random(struct scene *s)
{
	s->random ^= s->random << 13;
	s->random ^= s->random >> 7;
	s->random ^= s->random << 17;
	return s->random;
}

static volatile uint8_t *page(const struct scene *s, uint64_t index)
{
	return ram_slot(s->ram, 0)->hva + (index << PAGE_SHIFT);
}

/* Writes that share of the pages; returns how many. */
static uint64_t write_some(struct scene *s)
{
	uint64_t n = 0;

	for (uint64_t i = 0; i < s->pages; i++)
		if (next_random(s) % 100 < s->written_pct) {
			*page(s, i) += 1;
			n++;
		}
	return n;
}

static double pass_ns(void *arg)
{
	struct scene *s = arg;
	uint64_t began_ns;

	engine_pass(s->e);
	write_some(s);
	began_ns = bench_cpu_ns();
	engine_pass(s->e);
	return (double)(bench_cpu_ns() - began_ns) / (double)s->pages;
}

static double read_ns(void *arg)
{
	struct scene *s = arg;
	const uint64_t *p = (const uint64_t *)ram_slot(s->ram, 0)->hva;
	uint64_t sum = 0, began_ns = bench_cpu_ns();

	for (uint64_t i = 0; i < s->pages * (PAGE_BYTES / sizeof(*p)); i += 8)
		sum += p[i];
	s->sink = sum;
	return (double)(bench_cpu_ns() - began_ns) / (double)s->pages;
}

/* A written page costs its guest a fault, once a pass. */
static double write_armed_ns(void *arg)
{
	struct scene *s = arg;
	uint64_t began_ns, n;

	engine_pass(s->e);
	began_ns = bench_cpu_ns();
	n = write_some(s);
	return (double)(bench_cpu_ns() - began_ns) / (double)n;
}

static double write_again_ns(void *arg)
{
	struct scene *s = arg;
	uint64_t began_ns, n;

	for (uint64_t i = 0; i < s->pages; i++)
		*page(s, i) += 1;
	began_ns = bench_cpu_ns();
	n = write_some(s);
	return (double)(bench_cpu_ns() - began_ns) / (double)n;
}

/* ---- all of it ------------------------------------------------------------------- */

static bool scene_open(const struct bench *b, struct scene *s)
{
	struct ram_config rc = { .size_bytes = b->quick ? RAM_BYTES_QUICK : RAM_BYTES,
				 .huge = RAM_HUGE_NEVER };
	struct engine_config ec = { .tier = &no_tier, .manual = true };
	struct err e = { "" };

	*s = (struct scene){ .pages = rc.size_bytes >> PAGE_SHIFT, .random = 88172645463325252u };
	if (ram_create(&s->ram, &rc, &e))
		bench_die(b, "%s", e.msg);
	ec.ram = s->ram;
	if (engine_create(&s->e, &ec, &e)) {
		printf("left out: %s\n", e.msg);
		ram_destroy(&s->ram);
		return false;
	}
	for (uint64_t i = 0; i < s->pages; i++)
		*page(s, i) = 1;
	return true;
}

static void compare(struct bench *b, struct scene *s, unsigned written_pct, const char *name)
{
	struct bench_pair pair = { .brim = pass_ns, .peer = read_ns,
				   .peer_name = "reading it once", .arg = s };

	s->written_pct = written_pct;
	bench_compare(b, name, "ns/page", &pair);
}

int main(int argc, char **argv)
{
	static struct bench b;
	static struct scene s;
	struct bench_pair writes = { .brim = write_armed_ns, .peer = write_again_ns,
				     .peer_name = "not re-armed", .arg = &s };

	bench_begin(&b, "bench_scan", argc, argv);
	if (scene_open(&b, &s)) {
		compare(&b, &s, 0, "unchanged_ns");
		compare(&b, &s, 1, "changed_1pct_ns");
		compare(&b, &s, 5, "changed_5pct_ns");
		compare(&b, &s, 20, "changed_20pct_ns");
		bench_compare(&b, "write after re-arming", "ns/page", &writes);
		engine_destroy(&s.e);
		ram_destroy(&s.ram);
	}
	return bench_end(&b);
}
