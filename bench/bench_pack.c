/*
 * Question: how many bytes of host memory does a byte taken from a guest still cost?
 *
 * Method: guest RAM full of real pages (content.h) is taken until nothing more goes.
 * Kept are all bytes of the pool (objects, headers, holes, tables), the engine's own
 * tables for this RAM, and 4 KiB for each page that is still there because it does not
 * pack.  The figure is kept bytes over bytes of content: less is better.  Beside it,
 * what that cost: CPU time of the process per page that is gone.
 *
 * lz4_ is without deltas and not refined; refined_ is that, refined (mm/swap/refine.c)
 * after all has left, and refined_delta_ the same with deltas: CPU time a page is then of
 * both, and refine_cpu_per_page what refining alone took, for each page refined (the
 * peer's is what it takes for a page, once more).
 *
 * delta_ with LZ4's fast encoder for them, _small with its high
 * compression encoder.  What deltas gain is a matter of what guests hold:
 * BRIM_BENCH_PAGES (content.h) takes a real guest's memory.
 *
 * lz4_to_disk and delta_to_disk: with a swap file and a pool of a quarter of the content,
 * how much of the content is only in the file; each page of that is a read of the disk
 * when it is touched.  No baseline.
 *
 * Baseline: the same pages in zram: mem_used_total of its mm_stat, and 4 KiB for each
 * page still resident.  Pages that do not compress zram keeps whole, in that number.
 * Its table (16 bytes a page of disk) and the kernel's swap map are not in it: against
 * brim by half a per cent.
 *
 * Bytes spread by nothing but allocation; CPU time by some per cent.
 */
#include <stdio.h>
#include <time.h>

#include "bench/content.h"
#include "bench/zram.h"

#define NS_PER_S ((uint64_t)1000000000)

struct scene {
	struct sides sides;
	bool refines;
	double packed, tables, holes, refused; /* what brim keeps, in the last run */
	double deltas, saved, refined;
};

static double share(const struct scene *s, uint64_t bytes)
{
	return (double)bytes / (double)(s->sides.content.pages * PAGE_BYTES);
}

static double kept(const struct scene *s, uint64_t held_bytes, uint64_t away)
{
	uint64_t left = s->sides.content.pages - away;

	if (away == 0)
		bench_die(s->sides.bench, "no page was evicted");
	return share(s, held_bytes + left * PAGE_BYTES);
}

static uint64_t process_cpu_ns(void)
{
	struct timespec t;

	VERIFY(clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t) == 0);
	return (uint64_t)t.tv_sec * NS_PER_S + (uint64_t)t.tv_nsec;
}

/* CPU time of it. */
static uint64_t refine(struct scene *s)
{
	uint64_t began = process_cpu_ns();

	while (s->refines && swap_refine(s->sides.guest.swap, MiB))
		;
	return process_cpu_ns() - began;
}

static void take_brim(void *arg, double *out)
{
	struct scene *s = arg;
	struct guest *g = &s->sides.guest;
	struct engine_stats es;
	struct swap_stats ss;
	uint64_t away, cpu_ns, refine_ns;
	struct err e;

	if (guest_hold(g, &s->sides.content, &e))
		bench_die(s->sides.bench, "%s", e.msg);
	cpu_ns = process_cpu_ns();
	guest_evict(g);
	cpu_ns = process_cpu_ns() - cpu_ns;
	refine_ns = refine(s);
	away = guest_away_pages(g);
	engine_stats(g->engine, &es);
	swap_stats(g->swap, &ss);
	VERIFY(ss.filled_pages + ss.packed_pages == away);
	out[0] = kept(s, ss.held_bytes + es.own_bytes, away);
	out[1] = (double)(cpu_ns + refine_ns) / (double)away;
	out[2] = ss.refined_pages ? (double)refine_ns / (double)ss.refined_pages : 0;
	s->packed = share(s, ss.packed_bytes);
	s->tables = share(s, ss.table_bytes + es.own_bytes);
	s->holes = share(s, ss.hole_bytes);
	s->refused = share(s, (s->sides.content.pages - away) * PAGE_BYTES);
	s->deltas = share(s, ss.delta_pages * PAGE_BYTES);
	s->saved = share(s, ss.delta_saved_bytes);
	s->refined = share(s, ss.refined_pages * PAGE_BYTES);
	guest_close(g);
}

/* What the last round began to write ends with the spill of nothing. */
static void take_to_disk(void *arg, double *out)
{
	struct scene *s = arg;
	struct guest *g = &s->sides.guest;
	struct swap_stats ss;
	uint64_t away, cpu_ns;
	struct err e;

	if (guest_hold(g, &s->sides.content, &e))
		bench_die(s->sides.bench, "%s", e.msg);
	cpu_ns = process_cpu_ns();
	guest_evict(g);
	swap_spill(g->swap, 0);
	cpu_ns = process_cpu_ns() - cpu_ns;
	away = guest_away_pages(g);
	swap_stats(g->swap, &ss);
	VERIFY(ss.filled_pages + ss.packed_pages + ss.disk_pages == away);
	VERIFY(ss.held_bytes <= g->cap_bytes);
	out[0] = share(s, ss.disk_pages * PAGE_BYTES);
	out[1] = (double)cpu_ns / (double)away;
	s->deltas = share(s, ss.delta_pages * PAGE_BYTES);
	s->saved = share(s, ss.delta_saved_bytes);
	guest_close(g);
}

static void take_zram(void *arg, double *out)
{
	struct scene *s = arg;
	struct zram *z = s->sides.zram;
	uint64_t away, cpu_ns;

	zram_hold(z, s->sides.content.page, s->sides.content.pages);
	cpu_ns = process_cpu_ns();
	zram_evict(z);
	cpu_ns = process_cpu_ns() - cpu_ns;
	away = zram_away_pages(z);
	out[0] = kept(s, zram_held_bytes(z), away);
	out[1] = (double)cpu_ns / (double)away;
	out[2] = out[1];
	zram_drop(z);
}

enum refining { AS_IT_LEFT, REFINED };

struct way {
	enum swap_delta delta;
	enum refining refining;
	struct take_figure figures[3];
};

static void compare(struct bench *b, struct scene *s, const struct way *w)
{
	struct takes t = sides_takes(&s->sides, take_brim, take_zram, s);

	for (unsigned i = 0; i < ARRAY_LEN(w->figures); i++)
		t.figures[i] = w->figures[i];
	s->sides.guest.delta = w->delta;
	s->refines = w->refining == REFINED;
	takes_compare(b, &t);
	printf("brim, of each byte: %.4f packed, %.4f tables, %.4f holes, %.4f pages that do not "
	       "pack; %.4f are deltas, which save %.4f; %.4f are refined\n", s->packed, s->tables,
	       s->holes, s->refused, s->deltas, s->saved, s->refined);
}

static void measure_to_disk(struct bench *b, struct scene *s, enum swap_delta delta,
			    const struct take_figure *figures)
{
	struct takes t = { .brim = take_to_disk, .arg = s };

	t.figures[0] = figures[0];
	t.figures[1] = figures[1];
	s->sides.guest.delta = delta;
	s->sides.guest.refined = false;
	s->sides.guest.on_disk = true;
	s->sides.guest.cap_bytes = s->sides.content.pages * PAGE_BYTES / 4;
	takes_compare(b, &t);
	printf("brim, of each byte: %.4f are deltas in the pool, which save %.4f\n", s->deltas,
	       s->saved);
}

static const struct way ways[] = {
	{ SWAP_DELTA_OFF, AS_IT_LEFT,
	  { { "lz4_bytes", "B/B" }, { "lz4_cpu_per_page", "ns" } } },
	{ SWAP_DELTA_FAST, AS_IT_LEFT,
	  { { "delta_bytes", "B/B" }, { "delta_cpu_per_page", "ns" } } },
	{ SWAP_DELTA_SMALL, AS_IT_LEFT,
	  { { "delta_bytes_small", "B/B" }, { "delta_cpu_per_page_small", "ns" } } },
	{ SWAP_DELTA_OFF, REFINED,
	  { { "refined_bytes", "B/B" }, { "refined_cpu_per_page", "ns" },
	    { "refine_cpu_per_page", "ns" } } },
	{ SWAP_DELTA_FAST, REFINED,
	  { { "refined_delta_bytes", "B/B" }, { "refined_delta_cpu_per_page", "ns" },
	    { "refine_delta_cpu_per_page", "ns" } } },
};

int main(int argc, char **argv)
{
	static struct bench b;
	static struct scene s;

	bench_begin(&b, "bench_pack", argc, argv);
	if (!guest_is_possible(&b))
		return bench_end(&b);
	sides_open(&b, &s.sides);
	for (unsigned i = 0; i < ARRAY_LEN(ways); i++)
		compare(&b, &s, &ways[i]);
	measure_to_disk(&b, &s, SWAP_DELTA_OFF, (struct take_figure[]){
		{ "lz4_to_disk", "B/B" }, { "lz4_to_disk_cpu_per_page", "ns" } });
	measure_to_disk(&b, &s, SWAP_DELTA_FAST, (struct take_figure[]){
		{ "delta_to_disk", "B/B" }, { "delta_to_disk_cpu_per_page", "ns" } });
	measure_to_disk(&b, &s, SWAP_DELTA_SMALL, (struct take_figure[]){
		{ "delta_to_disk_small", "B/B" }, { "delta_to_disk_cpu_per_page_small", "ns" } });
	sides_close(&s.sides);
	return bench_end(&b);
}
