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

#define PAGES (256 * MiB >> PAGE_SHIFT)
#define PAGES_QUICK (64 * MiB >> PAGE_SHIFT)

struct scene {
	const struct bench *bench;
	struct content content;
	struct guest guest;
	struct zram *zram;
	double packed, tables, holes, refused; /* what brim keeps, in the last run */
};

static double share(const struct scene *s, uint64_t bytes)
{
	return (double)bytes / (double)(s->content.pages * PAGE_BYTES);
}

static double kept(const struct scene *s, uint64_t held_bytes, uint64_t away)
{
	uint64_t left = s->content.pages - away;

	if (away == 0)
		bench_die(s->bench, "no page was evicted");
	return share(s, held_bytes + left * PAGE_BYTES);
}

static void take_brim(void *arg, double *out)
{
	struct scene *s = arg;
	struct engine_stats es;
	struct swap_stats ss;
	uint64_t away;
	struct err e;

	if (guest_hold(&s->guest, &s->content, &e))
		bench_die(s->bench, "%s", e.msg);
	guest_evict(&s->guest);
	away = guest_away_pages(&s->guest);
	engine_stats(s->guest.engine, &es);
	swap_stats(s->guest.swap, &ss);
	VERIFY(ss.filled_pages + ss.packed_pages == away);
	out[0] = kept(s, ss.held_bytes + es.own_bytes, away);
	s->packed = share(s, ss.packed_bytes);
	s->tables = share(s, ss.table_bytes + es.own_bytes);
	s->holes = share(s, ss.hole_bytes);
	s->refused = share(s, (s->content.pages - away) * PAGE_BYTES);
	guest_close(&s->guest);
}

static void take_zram(void *arg, double *out)
{
	struct scene *s = arg;
	uint64_t away;

	zram_hold(s->zram, s->content.page, s->content.pages);
	zram_evict(s->zram);
	away = zram_away_pages(s->zram);
	out[0] = kept(s, zram_held_bytes(s->zram), away);
	zram_drop(s->zram);
}

int main(int argc, char **argv)
{
	static struct bench b;
	static struct scene s;
	uint64_t pages;

	bench_begin(&b, "bench_pack", argc, argv);
	pages = b.quick ? PAGES_QUICK : PAGES;
	s.bench = &b;
	if (!guest_is_possible(&b))
		return bench_end(&b);
	s.zram = zram_peer(&b, pages);
	content_open(&b, &s.content, pages);
	takes_compare(&b, &(struct takes){
		.brim = take_brim,
		.peer = s.zram ? take_zram : NULL,
		.peer_name = s.zram ? zram_name(s.zram) : NULL,
		.arg = &s,
		.figures = { { "lz4_bytes", "B/B" } },
	});
	printf("brim, of each byte: %.4f packed, %.4f tables, %.4f holes, %.4f pages that do not "
	       "pack\n", s.packed, s.tables, s.holes, s.refused);
	content_close(&s.content);
	zram_close(&s.zram);
	return bench_end(&b);
}
