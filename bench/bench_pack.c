/*
 * Question: how many bytes of host memory does a byte taken from a guest still cost?
 *
 * Method: guest RAM full of real pages (content.h) is taken until nothing more goes.
 * Kept are all bytes of the pool (objects, headers, holes, tables), the engine's own
 * tables for this RAM, and 4 KiB for each page that is still there because it does not
 * pack.  The figure is kept bytes over bytes of content: less is better.
 *
 * Baseline: the same pages in zram: mem_used_total of its mm_stat, and 4 KiB for each
 * page still resident.  Pages that do not compress zram keeps whole, in that number.
 * Its table (16 bytes a page of disk) and the kernel's swap map are not in it: against
 * brim by half a per cent.
 *
 * Nothing here is a matter of time: the spread is that of nothing but allocation.
 */
#include <stdio.h>

#include "bench/content.h"
#include "bench/zram.h"

struct scene {
	struct sides sides;
	double packed, tables, holes, refused; /* what brim keeps, in the last run */
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

static void take_brim(void *arg, double *out)
{
	struct scene *s = arg;
	struct guest *g = &s->sides.guest;
	struct engine_stats es;
	struct swap_stats ss;
	uint64_t away;
	struct err e;

	if (guest_hold(g, &s->sides.content, &e))
		bench_die(s->sides.bench, "%s", e.msg);
	guest_evict(g);
	away = guest_away_pages(g);
	engine_stats(g->engine, &es);
	swap_stats(g->swap, &ss);
	VERIFY(ss.filled_pages + ss.packed_pages == away);
	out[0] = kept(s, ss.held_bytes + es.own_bytes, away);
	s->packed = share(s, ss.packed_bytes);
	s->tables = share(s, ss.table_bytes + es.own_bytes);
	s->holes = share(s, ss.hole_bytes);
	s->refused = share(s, (s->sides.content.pages - away) * PAGE_BYTES);
	guest_close(g);
}

static void take_zram(void *arg, double *out)
{
	struct scene *s = arg;
	struct zram *z = s->sides.zram;
	uint64_t away;

	zram_hold(z, s->sides.content.page, s->sides.content.pages);
	zram_evict(z);
	away = zram_away_pages(z);
	out[0] = kept(s, zram_held_bytes(z), away);
	zram_drop(z);
}

int main(int argc, char **argv)
{
	static struct bench b;
	static struct scene s;
	struct takes t;

	bench_begin(&b, "bench_pack", argc, argv);
	if (!guest_is_possible(&b))
		return bench_end(&b);
	sides_open(&b, &s.sides);
	t = sides_takes(&s.sides, take_brim, take_zram, &s);
	t.figures[0] = (struct take_figure){ "lz4_bytes", "B/B" };
	takes_compare(&b, &t);
	printf("brim, of each byte: %.4f packed, %.4f tables, %.4f holes, %.4f pages that do not "
	       "pack\n", s.packed, s.tables, s.holes, s.refused);
	sides_close(&s.sides);
	return bench_end(&b);
}
