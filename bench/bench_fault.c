/*
 * Question: how long does a touch of a page take that is packed away?
 *
 * Method: guest RAM full of real pages (content.h) is taken until nothing more goes,
 * then a thread reads one byte of a page: the time from before to after, by the clock.
 * Each page is compared with what it was, outside of that time.
 *
 *   isolated    all pages that pack, in random order: p50, p99 and p99.9.  A touch
 *               counts only if the page was away right before it (brought back around
 *               another one, it was not).  _same_cpu and _other_cpu: the toucher is
 *               bound to one CPU, and the engine's fault thread to that or to another.
 *               Without: both where the scheduler likes, and the fault thread follows
 *               the toucher and has it held, as in a VM.
 *   sequential  all pages that were away, rising: mean of all touches, those of pages
 *               that the one before has brought along as well.  In blocks of 64 pages,
 *               so that the clock is not in it; then the block is compared.
 *               _packing: with content in which all pages pack, so none was left in RAM.
 *   _disk       brim's pages are in a swap file in /var/tmp, read past the host's cache;
 *               the peer's still in zram: what the disk costs, on this machine's disk.
 *   _delta      only pages that are away packed against another; the peer's are all.
 *   _refined    only pages that were packed anew (mm/swap/refine.c) and are no deltas.
 *   _filled     all pages same-filled, half of them zero.
 *   zipf        as many touches as there are pages, page by page, of which the one of
 *               rank k has a share of 1/k, ranks all over memory: mean of all touches.
 *               The first touch of each page finds it away, the others do not.
 *
 * Pages that do not pack are touched on neither side.
 *
 * Baseline: the same touches of a mapping paged out to zram, vm.page-cluster 0 for
 * isolated and zipf, 3 (the usual) for sequential; `away` by mincore.  It has no fault
 * thread: bound to a CPU it is the toucher.
 *
 * Mind: where the fault thread runs on another CPU, a touch is two wake-ups of sleeping
 * CPUs; in a virtual machine each may be an exit, and is what the hypervisor makes it.
 */
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bench/content.h"
#include "bench/zram.h"

#define PAGES (128 * MiB >> PAGE_SHIFT)
#define PAGES_QUICK (64 * MiB >> PAGE_SHIFT)
#define BLOCK_PAGES 64u
#define SEED 0x2545f4914f6cdd1du
#define CLUSTER_USUAL 3
#define ANY_CPU (-1)
#define DELTAS_MIN 200u /* isolated touches */

struct scene {
	const struct bench *bench;
	struct content content;
	struct guest guest;
	struct zram *zram;
	uint32_t *order;       /* [pages] shuffled */
	uint32_t *zipf;        /* [pages] page numbers */
	uint8_t *touchable;    /* [pages] away before a trace */
	double *ns;            /* [pages] samples */
	cpu_set_t all;
	int cpus[2];           /* two to bind to; [1] ANY_CPU: there is but one */
	int touch_cpu, fault_cpu;
	enum content_kind isolated_kind; /* which pages isolated touches */
	bool only_deltas;                /* of these; the peer's are all */
};

/* ---- a side: memory whose pages are away -------------------------------------------- */

struct side {
	struct scene *s;
	const uint8_t *mem;
	bool (*is_away)(struct scene *s, uint64_t i);
};

static bool away_in_brim(struct scene *s, uint64_t i)
{
	enum page_state st = guest_state(&s->guest, i);

	if (s->only_deltas)
		return guest_has_delta(&s->guest, i);
	if (s->guest.refined)
		return guest_has_refined(&s->guest, i);
	return st == PAGE_PACKED || st == PAGE_FILLED || st == PAGE_DISK;
}

static bool away_in_zram(struct scene *s, uint64_t i)
{
	return zram_is_away(s->zram, i);
}

static void bind_thread(const struct scene *s, pthread_t thread, int cpu)
{
	cpu_set_t one;

	CPU_ZERO(&one);
	if (cpu != ANY_CPU)
		CPU_SET(cpu, &one);
	VERIFY(pthread_setaffinity_np(thread, sizeof(one), cpu == ANY_CPU ? &s->all : &one) == 0);
}

static struct side brim_side(struct scene *s)
{
	struct err e;

	bind_thread(s, pthread_self(), ANY_CPU);
	if (guest_hold(&s->guest, &s->content, &e))
		bench_die(s->bench, "%s", e.msg);
	guest_evict(&s->guest);
	if (s->fault_cpu != ANY_CPU)
		s->guest.toucher = 0; /* else the fault thread would follow */
	bind_thread(s, s->guest.engine->fault_thread[0], s->fault_cpu);
	bind_thread(s, pthread_self(), s->touch_cpu);
	return (struct side){ s, s->guest.mem, away_in_brim };
}

static struct side zram_side(struct scene *s, int cluster)
{
	const uint8_t *mem;

	bind_thread(s, pthread_self(), ANY_CPU);
	mem = zram_hold(s->zram, s->content.page, s->content.pages);
	zram_evict(s->zram);
	zram_page_cluster(s->zram, cluster);
	bind_thread(s, pthread_self(), s->touch_cpu);
	return (struct side){ s, mem, away_in_zram };
}

static void end_side(struct scene *s)
{
	bind_thread(s, pthread_self(), ANY_CPU);
	guest_close(&s->guest);
	if (s->zram) {
		zram_drop(s->zram);
		zram_page_cluster(s->zram, -1);
	}
}

static const uint8_t *page_of(const struct side *d, uint64_t i)
{
	return d->mem + (i << PAGE_SHIFT);
}

static void touch(const struct side *d, uint64_t i)
{
	(void)*(const volatile uint8_t *)page_of(d, i);
}

static uint64_t touch_ns(const struct side *d, uint64_t i)
{
	uint64_t began = now_ns();

	touch(d, i);
	return now_ns() - began;
}

static void compare(const struct side *d, uint64_t i)
{
	if (!content_same(&d->s->content, i, page_of(d, i)))
		bench_die(d->s->bench, "page %lu came back with other bytes", (unsigned long)i);
}

/* Which pages a trace touches; most must be away. */
static void note_touchable(const struct side *d)
{
	struct scene *s = d->s;
	uint64_t away = 0;

	for (uint64_t i = 0; i < s->content.pages; i++) {
		s->touchable[i] = s->content.kind[i] != CONTENT_HARD && d->is_away(s, i);
		away += s->touchable[i];
	}
	if (away < s->content.pages / 2)
		bench_die(s->bench, "only %lu of %lu pages are away", (unsigned long)away,
			  (unsigned long)s->content.pages);
}

/* ---- what is measured ------------------------------------------------------------------ */

static int by_value(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

static void isolated(const struct side *d, double *out)
{
	struct scene *s = d->s;
	uint64_t n = 0;

	for (uint64_t k = 0; k < s->content.pages; k++) {
		uint64_t i = s->order[k];

		if (s->content.kind[i] != s->isolated_kind || !d->is_away(s, i))
			continue;
		s->ns[n++] = (double)touch_ns(d, i);
		compare(d, i);
	}
	if (n < (s->only_deltas ? DELTAS_MIN : s->content.pages / 2))
		bench_die(s->bench, "only %lu of %lu touches found their page away",
			  (unsigned long)n, (unsigned long)s->content.pages);
	qsort(s->ns, n, sizeof(*s->ns), by_value);
	out[0] = s->ns[n / 2];
	out[1] = s->ns[n * 99 / 100];
	out[2] = s->ns[n * 999 / 1000];
}

static void sequential(const struct side *d, double *out)
{
	struct scene *s = d->s;
	uint64_t took = 0, n = 0;

	note_touchable(d);
	for (uint64_t block = 0; block < s->content.pages; block += BLOCK_PAGES) {
		uint64_t began = now_ns();

		for (uint64_t i = block; i < block + BLOCK_PAGES; i++)
			if (s->touchable[i])
				touch(d, i);
		took += now_ns() - began;
		for (uint64_t i = block; i < block + BLOCK_PAGES; i++) {
			compare(d, i);
			n += s->touchable[i];
		}
	}
	out[0] = (double)took / (double)n;
}

static void zipf(const struct side *d, double *out)
{
	struct scene *s = d->s;
	uint64_t took = 0, n = 0;

	note_touchable(d);
	for (uint64_t k = 0; k < s->content.pages; k++) {
		uint64_t i = s->zipf[k];

		if (!s->touchable[i])
			continue;
		took += touch_ns(d, i);
		compare(d, i);
		n++;
	}
	out[0] = (double)took / (double)n;
}

static void isolated_brim(void *arg, double *out)
{
	struct side d = brim_side(arg);

	isolated(&d, out);
	end_side(arg);
}

static void isolated_zram(void *arg, double *out)
{
	struct side d = zram_side(arg, 0);

	isolated(&d, out);
	end_side(arg);
}

static void sequential_brim(void *arg, double *out)
{
	struct side d = brim_side(arg);

	sequential(&d, out);
	end_side(arg);
}

static void sequential_zram(void *arg, double *out)
{
	struct side d = zram_side(arg, CLUSTER_USUAL);

	sequential(&d, out);
	end_side(arg);
}

static void zipf_brim(void *arg, double *out)
{
	struct side d = brim_side(arg);

	zipf(&d, out);
	end_side(arg);
}

static void zipf_zram(void *arg, double *out)
{
	struct side d = zram_side(arg, 0);

	zipf(&d, out);
	end_side(arg);
}

/* ---- traces ------------------------------------------------------------------------------ */

static void make_order(struct scene *s, uint64_t *seed)
{
	uint64_t pages = s->content.pages;

	for (uint64_t i = 0; i < pages; i++)
		s->order[i] = (uint32_t)i;
	for (uint64_t i = pages; i > 1; i--) {
		uint64_t j = content_random(seed) % i;
		uint32_t t = s->order[i - 1];

		s->order[i - 1] = s->order[j];
		s->order[j] = t;
	}
}

/* The page of rank k is order[pages - 1 - k]: not the order isolated goes by. */
static void make_zipf(struct scene *s, uint64_t *seed)
{
	uint64_t pages = s->content.pages;
	double sum = 0, *upto = s->ns;

	for (uint64_t k = 0; k < pages; k++)
		upto[k] = sum += 1. / (double)(k + 1);
	for (uint64_t n = 0; n < pages; n++) {
		double at = sum * (double)(content_random(seed) % GiB) / (double)GiB;
		uint64_t lo = 0, hi = pages - 1;

		while (lo < hi) {
			uint64_t mid = (lo + hi) / 2;

			if (upto[mid] > at)
				hi = mid;
			else
				lo = mid + 1;
		}
		s->zipf[n] = s->order[pages - 1 - lo];
	}
}

static void find_cpus(struct scene *s)
{
	unsigned n = 0;

	s->cpus[0] = s->cpus[1] = s->touch_cpu = s->fault_cpu = ANY_CPU;
	VERIFY(sched_getaffinity(0, sizeof(s->all), &s->all) == 0);
	for (int cpu = 0; cpu < CPU_SETSIZE && n < ARRAY_LEN(s->cpus); cpu++)
		if (CPU_ISSET(cpu, &s->all))
			s->cpus[n++] = cpu;
}

static void scene_open(struct bench *b, struct scene *s)
{
	uint64_t pages = b->quick ? PAGES_QUICK : PAGES, seed = SEED;

	s->bench = b;
	find_cpus(s);
	s->zram = zram_peer(b, pages);
	content_open(b, &s->content, pages);
	s->order = calloc(pages, sizeof(*s->order));
	s->zipf = calloc(pages, sizeof(*s->zipf));
	s->touchable = calloc(pages, 1);
	s->ns = calloc(pages, sizeof(*s->ns));
	VERIFY(s->order && s->zipf && s->touchable && s->ns);
	make_order(s, &seed);
	make_zipf(s, &seed);
}

static void scene_close(struct scene *s)
{
	free(s->order);
	free(s->zipf);
	free(s->touchable);
	free(s->ns);
	content_close(&s->content);
	zram_close(&s->zram);
}

/* ---- all of it ------------------------------------------------------------------------------ */

static struct takes takes_of(struct scene *s, void (*brim)(void *, double *),
			     void (*zram)(void *, double *))
{
	return (struct takes){ .brim = brim, .peer = s->zram ? zram : NULL, .arg = s,
			       .peer_name = s->zram ? zram_name(s->zram) : NULL };
}

static void compare_isolated(struct bench *b, struct scene *s, const char *suffix)
{
	struct takes t = takes_of(s, isolated_brim, isolated_zram);
	char name[3][32];

	snprintf(name[0], sizeof(name[0]), "isolated_p50%s", suffix);
	snprintf(name[1], sizeof(name[1]), "isolated_p99%s", suffix);
	snprintf(name[2], sizeof(name[2]), "isolated_p99.9%s", suffix);
	for (int i = 0; i < 3; i++)
		t.figures[i] = (struct take_figure){ name[i], "ns" };
	takes_compare(b, &t);
}

static void compare_sequential(struct bench *b, struct scene *s, const char *suffix)
{
	struct takes t = takes_of(s, sequential_brim, sequential_zram);
	char name[32];

	snprintf(name, sizeof(name), "sequential_mean%s", suffix);
	t.figures[0] = (struct take_figure){ name, "ns" };
	takes_compare(b, &t);
}

static void compare_zipf(struct bench *b, struct scene *s, const char *suffix)
{
	struct takes t = takes_of(s, zipf_brim, zipf_zram);
	char name[32];

	snprintf(name, sizeof(name), "zipf_mean%s", suffix);
	t.figures[0] = (struct take_figure){ name, "ns" };
	takes_compare(b, &t);
}

static void compare_placed(struct bench *b, struct scene *s, int fault_cpu, const char *suffix)
{
	s->touch_cpu = s->cpus[0];
	s->fault_cpu = fault_cpu;
	compare_isolated(b, s, suffix);
	compare_sequential(b, s, suffix);
	compare_zipf(b, s, suffix);
	s->touch_cpu = s->fault_cpu = ANY_CPU;
}

int main(int argc, char **argv)
{
	static struct bench b;
	static struct scene s;

	bench_begin(&b, "bench_fault", argc, argv);
	if (!guest_is_possible(&b))
		return bench_end(&b);
	scene_open(&b, &s);
	compare_isolated(&b, &s, "");
	compare_sequential(&b, &s, "");
	compare_zipf(&b, &s, "");
	compare_placed(&b, &s, s.cpus[0], "_same_cpu");
	if (s.cpus[1] != ANY_CPU)
		compare_placed(&b, &s, s.cpus[1], "_other_cpu");
	else
		printf("one CPU only: _other_cpu is left out\n");
	s.only_deltas = true;
	compare_isolated(&b, &s, "_delta");
	s.only_deltas = false;
	s.guest.refined = true;
	compare_isolated(&b, &s, "_refined");
	s.guest.refined = false;
	s.guest.on_disk = true;
	compare_isolated(&b, &s, "_disk");
	compare_sequential(&b, &s, "_disk");
	s.guest.on_disk = false;
	content_only_packing(&s.content);
	compare_sequential(&b, &s, "_packing");
	content_only_filled(&s.content);
	s.isolated_kind = CONTENT_FILLED;
	compare_isolated(&b, &s, "_filled");
	scene_close(&s);
	return bench_end(&b);
}
