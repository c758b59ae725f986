/*
 * Question: what does it cost to take memory that nobody uses, and how fast does it go?
 *
 * Method: guest RAM of this process, full of real pages (content.h), is taken by rounds
 * of the engine until nothing more goes.  In the figures is all that its reclaimer does
 * for it: passes over the page table, moving, looking for same-filled pages,
 * compressing, checksums, giving memory back; and the pages that turn out not to pack
 * and go home, which are not in the count of pages.  `cpu_per_page` is CPU time of the
 * whole process for each page that is gone; `pages_per_s` is by the clock.  _packing:
 * the same with content in which all pages pack.
 *
 * Baseline: a mapping with the same content, paged out to zram by one
 * madvise(MADV_PAGEOUT).  The kernel does this in the context of the caller, so it is in
 * the same clock.  Pages that are resident afterwards are not counted (mincore).
 *
 * Not in here: how the kernel would find cold pages (the list of all is given to it),
 * and the TLB flushes of other CPUs: there is one busy thread.
 */
#include <stdio.h>
#include <time.h>

#include "bench/content.h"
#include "bench/zram.h"

#define NS_PER_S 1000000000u

static uint64_t process_cpu_ns(void)
{
	struct timespec t;

	VERIFY(clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t) == 0);
	return (uint64_t)t.tv_sec * NS_PER_S + (uint64_t)t.tv_nsec;
}

struct stopwatch {
	uint64_t cpu_ns, wall_ns;
};

static struct stopwatch start(void)
{
	return (struct stopwatch){ process_cpu_ns(), now_ns() };
}

static struct stopwatch since(struct stopwatch s)
{
	return (struct stopwatch){ process_cpu_ns() - s.cpu_ns, now_ns() - s.wall_ns };
}

static void figures(const struct sides *s, struct stopwatch took, uint64_t away, double *out)
{
	if (away == 0)
		bench_die(s->bench, "no page was evicted");
	out[0] = (double)took.cpu_ns / (double)away;
	out[1] = (double)away * NS_PER_S / (double)took.wall_ns;
}

static void take_brim(void *arg, double *out)
{
	struct sides *s = arg;
	struct stopwatch w;
	struct err e;

	if (guest_hold(&s->guest, &s->content, &e))
		bench_die(s->bench, "%s", e.msg);
	w = start();
	guest_evict(&s->guest);
	w = since(w);
	figures(s, w, guest_away_pages(&s->guest), out);
	guest_close(&s->guest);
}

static void take_zram(void *arg, double *out)
{
	struct sides *s = arg;
	struct stopwatch w;

	zram_hold(s->zram, s->content.page, s->content.pages);
	w = start();
	zram_evict(s->zram);
	w = since(w);
	figures(s, w, zram_away_pages(s->zram), out);
	zram_drop(s->zram);
}

int main(int argc, char **argv)
{
	static struct bench b;
	static struct sides s;
	struct takes t;

	bench_begin(&b, "bench_evict", argc, argv);
	if (!guest_is_possible(&b))
		return bench_end(&b);
	sides_open(&b, &s);
	t = sides_takes(&s, take_brim, take_zram, &s);
	t.figures[0] = (struct take_figure){ "cpu_per_page", "ns" };
	t.figures[1] = (struct take_figure){ "pages_per_s", "1/s" };
	takes_compare(&b, &t);
	content_only_packing(&s.content);
	t.figures[0].name = "cpu_per_page_packing";
	t.figures[1].name = "pages_per_s_packing";
	takes_compare(&b, &t);
	sides_close(&s);
	return bench_end(&b);
}
