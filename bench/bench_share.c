/*
 * Question: what does it cost to keep equal pages of VMs once, and how much does it save?
 *
 * Method: four VMs of 256 MiB (--quick: 64), each a process, with the same content for
 * brim and for KSM (share.h: parts of files that all or two of them have, zeroes, pages of
 * their own, and 2 % that change before every pass while there is something to merge).
 * Everything runs flat out, pass after pass: one of KSM's full scans; for brim, each VM's
 * engine ages its pages once, and its share thread does all it can.  CPU time is that of
 * all who take part: the VMs' processes (all threads, also the faults of those who write),
 * ksmd, brimd.
 *
 *   cpu_per_merged_page  until 99 % of what is merged in the end is merged
 *   time_to_95pct        until 95 % of the oracle's saving: CPU time, which with one CPU
 *                        and nothing else to do is time
 *   steady_pass_cpu      a pass when nothing changes any more: mean of some
 *   changing_*_cpu       a pass with that many pages written before it, drawn anew each
 *                        time; the writes are in it
 *   overhead_per_page    memory of kernel and user for it, by pages saved: what all
 *                        processes have more of than before (page tables, mappings,
 *                        anonymous memory), and KSM's items and nodes
 *   break_cost           CPU time of the VM's process for a write to a shared page;
 *                        break_latency: the median of its time
 *   oracle_fraction      pages saved by those that could be (oracle.h)
 *
 * At the end each page is compared with what it should be.
 *
 * Baseline: KSM with no sleep between batches, and zeroes mapped to the kernel's page of
 * zeroes, which costs it less than merging them; smart_scan as it is.
 *
 * Not in here: what a guest loses by faults of pages that are stored and read again.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bench/kernelksm.h"
#include "bench/oracle.h"
#include "bench/share.h"

#define VM_PAGES (256 * MiB >> PAGE_SHIFT)
#define VM_PAGES_QUICK (64 * MiB >> PAGE_SHIFT)
#define PASSES_MAX 16u
#define PASSES_LEAST 4u
#define TRACE_MAX 65536u
#define STEADY_PASSES 8u
#define CHANGING_PASSES 4u
#define BREAKS 500u
#define NS_PER_MS 1e6

enum figure {
	CPU_PER_MERGED, TIME_TO_95, STEADY, CHANGING_1, CHANGING_10, OVERHEAD, BREAK_COST,
	BREAK_LATENCY, FRACTION, FIGURES
};

struct point {
	uint64_t cpu_ns, saved;
};

struct scene {
	struct bench *bench;
	struct share_content content;
	struct share_side brim, ksm;
	struct oracle_counts oracle;
	bool oracle_asked;
	uint32_t change; /* number of the last one */
	struct point trace[TRACE_MAX];
	unsigned points;
	uint64_t began_cpu_ns;
};

/* ---- the oracle ------------------------------------------------------------------ */

static void ask_oracle(struct scene *s, const struct share_side *side)
{
	struct oracle_range r[SHARE_VMS];
	struct oracle_counts c;
	int rc;

	if (s->oracle_asked)
		return;
	for (unsigned i = 0; i < SHARE_VMS; i++)
		r[i] = (struct oracle_range){ side->vms.vm[i].pid, side->vms.vm[i].mem,
					      s->content.pages << PAGE_SHIFT };
	rc = oracle_count(r, SHARE_VMS, true, &c);
	if (rc)
		bench_die(s->bench, "the oracle cannot read the VMs: %s", strerror(-rc));
	s->oracle = c;
	s->oracle_asked = true;
	printf("oracle: %" PRIu64 " pages, %.1f%% zeroes, %" PRIu64 " contents; least memory saves "
	       "%.1f%%\n", c.pages, 100. * (double)c.zero_pages / (double)c.pages, c.contents,
	       100. * (double)c.saving_pages / (double)c.pages);
}

/* ---- passes ---------------------------------------------------------------------- */

static void record(struct scene *s, struct share_side *side)
{
	if (s->points < TRACE_MAX)
		s->trace[s->points++] = (struct point){
			side->ops->cpu_ns(side) - s->began_cpu_ns, side->ops->saved_now(side) };
}

static void pass(struct scene *s, struct share_side *side, bool traced)
{
	side->ops->pass_begin(side);
	while (!side->ops->pass_poll(side))
		if (traced)
			record(s, side);
	if (traced)
		record(s, side);
}

static void order_change(struct scene *s, struct share_side *side, enum share_order_kind kind,
			 unsigned per_mille)
{
	share_vms_order(&side->vms, &(struct share_order){ kind, ++s->change, per_mille }, NULL);
}

static void trace_line(const struct scene *s, const char *who, unsigned pass)
{
	if (getenv("BRIM_BENCH_TRACE"))
		fprintf(stderr, "%s: pass %u: %.1f ms, %" PRIu64 " pages saved\n", who, pass,
			(double)s->trace[s->points - 1].cpu_ns / NS_PER_MS,
			s->trace[s->points - 1].saved);
}

/* Passes until one saves next to nothing more. */
static void merge(struct scene *s, struct share_side *side)
{
	uint64_t before = 0;

	s->points = 0;
	s->began_cpu_ns = side->ops->cpu_ns(side);
	for (unsigned i = 0; i < PASSES_MAX; i++) {
		order_change(s, side, ORDER_CHANGE_HOT, 0);
		pass(s, side, true);
		trace_line(s, side->ops->name, i);
		if (i + 1 >= PASSES_LEAST &&
		    s->trace[s->points - 1].saved < before + s->oracle.saving_pages / 1000)
			break;
		before = s->trace[s->points - 1].saved;
	}
}

/* CPU time when so many pages were saved, between two points of the trace. */
static double cpu_at(const struct scene *s, double pages)
{
	for (unsigned i = 0; i < s->points; i++) {
		const struct point *p = &s->trace[i], *q = i ? p - 1 : p;

		if ((double)p->saved < pages)
			continue;
		if (p->saved <= q->saved)
			return (double)p->cpu_ns;
		return (double)q->cpu_ns + (double)(p->cpu_ns - q->cpu_ns) *
			(pages - (double)q->saved) / (double)(p->saved - q->saved);
	}
	return -1;
}

static void merge_figures(struct scene *s, struct share_side *side, double *out)
{
	double saved = .99 * (double)s->trace[s->points - 1].saved, cpu;

	if (saved <= 0)
		bench_die(s->bench, "%s merged nothing", side->ops->name);
	out[CPU_PER_MERGED] = cpu_at(s, saved) / saved;
	cpu = cpu_at(s, .95 * (double)s->oracle.saving_pages);
	if (cpu < 0)
		bench_die(s->bench, "%s never saved 95%% of what can be saved", side->ops->name);
	out[TIME_TO_95] = cpu / NS_PER_MS;
	saved = (double)side->ops->saved_pages(side);
	out[FRACTION] = 100 * saved / (double)s->oracle.saving_pages;
	out[OVERHEAD] = (double)side->ops->own_bytes(side) / saved;
}

/* Milliseconds of CPU a pass, after some that are not measured. */
static double passes_ms(struct scene *s, struct share_side *side, unsigned per_mille, unsigned n)
{
	uint64_t began_ns = 0;

	for (unsigned i = 0; i < n + PASSES_LEAST; i++) {
		if (i == PASSES_LEAST)
			began_ns = side->ops->cpu_ns(side);
		if (per_mille)
			order_change(s, side, ORDER_CHANGE_SOME, per_mille);
		pass(s, side, false);
	}
	return (double)(side->ops->cpu_ns(side) - began_ns) / NS_PER_MS / n;
}

static void breaks(struct scene *s, struct share_side *side, double *out)
{
	struct share_reply r[SHARE_VMS];

	share_vms_by_turns(&side->vms, &(struct share_order){ ORDER_BREAK, ++s->change, BREAKS },
			   r);
	out[BREAK_COST] = out[BREAK_LATENCY] = 0;
	for (unsigned i = 0; i < SHARE_VMS; i++) {
		out[BREAK_COST] += (double)r[i].value[0] / SHARE_VMS;
		out[BREAK_LATENCY] += (double)r[i].value[1] / SHARE_VMS;
	}
}

static void check(struct scene *s, struct share_side *side)
{
	struct share_reply r[SHARE_VMS];

	share_vms_order(&side->vms, &(struct share_order){ .kind = ORDER_CHECK }, r);
	for (unsigned i = 0; i < SHARE_VMS; i++)
		if (r[i].value[0])
			bench_die(s->bench, "%s: VM %u: %" PRIu64 " pages are wrong",
				  side->ops->name, i, r[i].value[0]);
}

static void run(struct scene *s, struct share_side *side, double *out)
{
	s->change = 0;
	side->ops->open(side);
	ask_oracle(s, side);
	merge(s, side);
	merge_figures(s, side, out);
	out[STEADY] = passes_ms(s, side, 0, STEADY_PASSES);
	breaks(s, side, out);
	out[CHANGING_1] = passes_ms(s, side, 10, CHANGING_PASSES);
	out[CHANGING_10] = passes_ms(s, side, 100, CHANGING_PASSES);
	check(s, side);
	side->ops->close(side);
}

static void run_brim(void *arg, double *out)
{
	struct scene *s = arg;

	run(s, &s->brim, out);
}

static void run_ksm(void *arg, double *out)
{
	struct scene *s = arg;

	run(s, &s->ksm, out);
}

/* ---- all of it --------------------------------------------------------------------- */

static void compare(struct scene *s, bool with_ksm)
{
	struct takes t = {
		.brim = run_brim, .peer = with_ksm ? run_ksm : NULL, .peer_name = "KSM",
		.arg = s,
		.figures = {
			[CPU_PER_MERGED] = { "cpu_per_merged_page", "ns" },
			[TIME_TO_95] = { "time_to_95pct", "ms" },
			[STEADY] = { "steady_pass_cpu", "ms" },
			[CHANGING_1] = { "changing_1pct_cpu", "ms" },
			[CHANGING_10] = { "changing_10pct_cpu", "ms" },
			[OVERHEAD] = { "overhead_per_page", "bytes" },
			[BREAK_COST] = { "break_cost", "ns" },
			[BREAK_LATENCY] = { "break_latency", "ns" },
			[FRACTION] = { "oracle_fraction", "%" },
		},
	};

	takes_compare(s->bench, &t);
}

int main(int argc, char **argv)
{
	static struct bench b;
	static struct scene s = { .bench = &b };
	struct kksm *ksm;

	bench_begin(&b, "bench_share", argc, argv);
	if (!guest_is_possible(&b))
		return bench_end(&b);
	ksm = kksm_peer(&b);
	share_content_open(&b, &s.content, b.quick ? VM_PAGES_QUICK : VM_PAGES);
	s.brim = share_side_brim(&s.content);
	if (ksm)
		s.ksm = share_side_ksm(&s.content, ksm);
	compare(&s, ksm != NULL);
	share_content_close(&s.content);
	kksm_close(&ksm);
	return bench_end(&b);
}
