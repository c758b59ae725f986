/*
 * Question: how fast does the host side take memory from a balloon?
 *
 * Method: guest RAM of this process is touched (not timed), then given away
 * through mm/balloon as the device does it: requests of 256 page numbers as stock
 * drivers send them, or ranges of 2 MiB as free page reporting has them.
 * `batched` discards every 2048 pages, as with VIRTIO_BALLOON_F_MUST_TELL_HOST;
 * `each request` before every request goes back, as without it.
 *
 * Baseline: the same page numbers with one madvise(MADV_DONTNEED) each, which is
 * what QEMU and kvmtool do; for reporting one madvise for each range, as QEMU.
 *
 * Time is the thread's CPU time: nothing here sleeps or uses another thread, so on
 * an idle machine it is the same, and on a busy one it does not count the others.
 *
 * Not in here: ring, kick and interrupt, and what KVM adds to each invalidation.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "bench/benchlib.h"
#include "mm/balloon/balloon.h"

#define REQUEST_PAGES 256u
#define BATCH_PAGES 2048u
#define RAM_BYTES (128 * MiB)
#define RAM_BYTES_QUICK (64 * MiB)
#define NS_PER_S 1e9

struct scene {
	const struct bench *bench;
	struct ram_config cfg;
	struct ram *ram;
	struct balloon *balloon;
	uint32_t *pfns; /* the order in which the guest gives its pages */
	uint32_t n;
	unsigned flush_pages;
	uint64_t range_bytes; /* reporting: instead of pfns */
};

static uint8_t *page_at(const struct scene *s, uint32_t pfn)
{
	return ram_at(s->ram, gpa_of(gfn(pfn)), PAGE_BYTES);
}

/* New RAM, every page of it touched.  New, because where a run has taken a huge
 * page apart, the next one would find small pages. */
static void renew(struct scene *s)
{
	const struct ram_slot *slot;
	struct err e;

	balloon_destroy(&s->balloon);
	ram_destroy(&s->ram);
	if (ram_create(&s->ram, &s->cfg, &e) || balloon_create(&s->balloon, s->ram, NULL, &e))
		bench_die(s->bench, "%s", e.msg);
	slot = ram_slot(s->ram, 0);
	for (uint64_t at = 0; at < slot->size_bytes; at += PAGE_BYTES)
		slot->hva[at] = 1;
}

static double gib_per_s(uint64_t pages, uint64_t began_ns)
{
	return (double)(pages * PAGE_BYTES) / (double)GiB /
	       ((double)(bench_cpu_ns() - began_ns) / NS_PER_S);
}

/* ---- page numbers ------------------------------------------------------------ */

static double inflate_brim(void *arg)
{
	struct scene *s = arg;
	uint64_t began_ns, gone = 0;
	double result;

	renew(s);
	began_ns = bench_cpu_ns();
	for (uint32_t at = 0; at < s->n; at += REQUEST_PAGES) {
		balloon_inflate(s->balloon, s->pfns + at, REQUEST_PAGES);
		if (balloon_pending_pages(s->balloon) >= s->flush_pages)
			gone += balloon_discard(s->balloon);
	}
	gone += balloon_discard(s->balloon);
	result = gib_per_s(s->n, began_ns);
	VERIFY(gone == s->n && *page_at(s, s->pfns[0]) == 0);
	return result;
}

static double inflate_naive(void *arg)
{
	struct scene *s = arg;
	uint64_t began_ns;

	renew(s);
	began_ns = bench_cpu_ns();
	for (uint32_t i = 0; i < s->n; i++)
		VERIFY(madvise(page_at(s, s->pfns[i]), PAGE_BYTES, MADV_DONTNEED) == 0);
	return gib_per_s(s->n, began_ns);
}

static void order_rising(struct scene *s, uint32_t step)
{
	s->n = (uint32_t)(s->cfg.size_bytes / PAGE_BYTES) / step;
	for (uint32_t i = 0; i < s->n; i++)
		s->pfns[i] = i * step;
}

/* Shuffles within each block of `block` pages. */
static void order_random(struct scene *s, uint32_t block)
{
	uint64_t x = 0x9e3779b97f4a7c15; /* the same order in every run */

	order_rising(s, 1);
	for (uint32_t i = 0; i < s->n; i++) {
		uint32_t base = i / block * block, left = block - i % block, t, j;

		x ^= x << 13;
		x ^= x >> 7;
		x ^= x << 17;
		j = base + i % block + (uint32_t)(x >> 33) % left;
		t = s->pfns[i];
		s->pfns[i] = s->pfns[j];
		s->pfns[j] = t;
	}
}

static void compare_inflate(struct bench *b, struct scene *s, const char *order)
{
	static const struct { const char *how; unsigned pages; } ways[] = {
		{ "each request", REQUEST_PAGES },
		{ "batched", BATCH_PAGES },
	};
	struct bench_pair pair = { .brim = inflate_brim, .peer = inflate_naive,
				   .peer_name = "madvise a page", .arg = s };
	char name[64];

	for (size_t i = 0; i < ARRAY_LEN(ways); i++) {
		s->flush_pages = ways[i].pages;
		snprintf(name, sizeof(name), "inflate 256, %s, %s", order, ways[i].how);
		bench_compare(b, name, "GiB/s", &pair);
	}
}

/* ---- ranges ------------------------------------------------------------------ */

static double report_brim(void *arg)
{
	struct scene *s = arg;
	uint64_t bytes = s->cfg.size_bytes, began_ns, gone = 0;
	unsigned in_request = 0;

	renew(s);
	began_ns = bench_cpu_ns();
	for (uint64_t at = 0; at < bytes; at += s->range_bytes) {
		balloon_free_range(s->balloon, gpa(at), s->range_bytes);
		if (++in_request == 32) { /* Linux reports up to 32 ranges at once */
			gone += balloon_discard(s->balloon);
			in_request = 0;
		}
	}
	gone += balloon_discard(s->balloon);
	VERIFY(gone == bytes / PAGE_BYTES);
	return gib_per_s(gone, began_ns);
}

/* Every other range, so that none can be merged: Linux's usual case is between. */
static double report_apart_brim(void *arg)
{
	struct scene *s = arg;
	uint64_t bytes = s->cfg.size_bytes, began_ns, gone = 0;

	renew(s);
	began_ns = bench_cpu_ns();
	for (uint64_t at = 0; at < bytes; at += 2 * s->range_bytes)
		balloon_free_range(s->balloon, gpa(at), s->range_bytes);
	gone += balloon_discard(s->balloon);
	return gib_per_s(gone, began_ns);
}

static double discard_each(struct scene *s, uint64_t step)
{
	uint64_t bytes = s->cfg.size_bytes, began_ns, gone = 0;

	renew(s);
	began_ns = bench_cpu_ns();
	for (uint64_t at = 0; at < bytes; at += step) {
		void *p = ram_at(s->ram, gpa(at), s->range_bytes);

		VERIFY(madvise(p, s->range_bytes, MADV_DONTNEED) == 0);
		gone += s->range_bytes / PAGE_BYTES;
	}
	return gib_per_s(gone, began_ns);
}

static double report_naive(void *arg)
{
	struct scene *s = arg;

	return discard_each(s, s->range_bytes);
}

static double report_apart_naive(void *arg)
{
	struct scene *s = arg;

	return discard_each(s, 2 * s->range_bytes);
}

static void compare_report(struct bench *b, struct scene *s, const char *backing)
{
	struct bench_pair pair = { .brim = report_brim, .peer = report_naive,
				   .peer_name = "madvise a range", .arg = s };
	char name[64];

	s->range_bytes = HUGE_BYTES;
	snprintf(name, sizeof(name), "report 2 MiB, %s", backing);
	bench_compare(b, name, "GiB/s", &pair);
	pair.brim = report_apart_brim;
	pair.peer = report_apart_naive;
	snprintf(name, sizeof(name), "report 2 MiB, %s, every other", backing);
	bench_compare(b, name, "GiB/s", &pair);
}

/* ---- all of it --------------------------------------------------------------- */

static void scene_open(const struct bench *b, struct scene *s, enum ram_huge huge)
{
	uint64_t bytes = b->quick ? RAM_BYTES_QUICK : RAM_BYTES;

	*s = (struct scene){ .bench = b, .cfg = { .size_bytes = bytes, .huge = huge } };
	s->pfns = calloc(bytes / PAGE_BYTES, sizeof(*s->pfns));
	VERIFY(s->pfns);
}

static void scene_close(struct scene *s)
{
	free(s->pfns);
	balloon_destroy(&s->balloon);
	ram_destroy(&s->ram);
}

static bool has_huge_pages(void)
{
	char line[64];

	bench_read_line("/sys/kernel/mm/transparent_hugepage/enabled", line, sizeof(line));
	return line[0] && !strstr(line, "[never]");
}

static void on_small_pages(struct bench *b)
{
	struct scene s;

	scene_open(b, &s, RAM_HUGE_NEVER);
	order_rising(&s, 1);
	compare_inflate(b, &s, "rising");
	order_random(&s, REQUEST_PAGES);
	compare_inflate(b, &s, "shuffled");
	order_random(&s, (uint32_t)(s.cfg.size_bytes / PAGE_BYTES));
	compare_inflate(b, &s, "random");
	order_rising(&s, 2);
	compare_inflate(b, &s, "every other");
	compare_report(b, &s, "small pages");
	scene_close(&s);
}

static void on_huge_pages(struct bench *b)
{
	struct scene s;

	if (!has_huge_pages()) {
		printf("no transparent huge pages on this host: the rest is left out\n");
		return;
	}
	scene_open(b, &s, RAM_HUGE_ALWAYS);
	order_rising(&s, 1);
	compare_inflate(b, &s, "huge pages");
	compare_report(b, &s, "huge pages");
	scene_close(&s);
}

int main(int argc, char **argv)
{
	static struct bench b;

	bench_begin(&b, "bench_balloon_host", argc, argv);
	on_small_pages(&b);
	on_huge_pages(&b);
	return bench_end(&b);
}
