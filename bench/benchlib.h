/*
 * What all benchmarks share: options, alternated pairs, medians, the table on
 * stdout, and the figures as JSON.
 *
 * A figure compares brim with a peer: the two run by turns, who goes first
 * alternating as well, so that a slow minute of the machine hits both.  The ratio
 * is median by median; the spread is that of the pairs' own ratios, highest less
 * lowest over the median: two figures closer than their spread are not told apart.
 *
 *	struct bench b;
 *
 *	bench_begin(&b, "name", argc, argv);
 *	bench_compare(&b, "what", "GiB/s", &(struct bench_pair){ ... });
 *	return bench_end(&b);
 *
 * Threads: the caller's.  Errors end the program with a sentence: a benchmark has
 * nothing to go on with.
 */
#ifndef BRIM_BENCH_BENCHLIB_H
#define BRIM_BENCH_BENCHLIB_H

#include "stats/stats.h"

#define BENCH_FIGURES_MAX 64
#define BENCH_PAIRS_MAX 31

struct bench_figure {
	char name[64], unit[16], peer[64]; /* peer "": brim alone */
	double brim, peer_value, ratio, spread;
};

struct bench {
	const char *name;
	const char *json_path; /* NULL: none */
	bool quick;            /* smaller and shorter: to see that it works */
	unsigned pairs;
	unsigned n;
	struct bench_figure figures[BENCH_FIGURES_MAX];
};

/* Two ways to do the same; each returns its result for one run, in the figure's
 * unit.  `peer` may be NULL: then the spread is that of brim's own runs. */
struct bench_pair {
	double (*brim)(void *arg);
	double (*peer)(void *arg);
	const char *peer_name;
	void *arg;
};

/* Takes --quick, --json FILE, --pairs N and --help; prints the table's head. */
void bench_begin(struct bench *b, const char *name, int argc, char **argv);
/* One unmeasured run of each, then b->pairs measured ones; prints a row. */
void bench_compare(struct bench *b, const char *name, const char *unit,
		   const struct bench_pair *pair);
/* For a figure measured in another way: prints and keeps it. */
void bench_add(struct bench *b, const struct bench_figure *f);
/* Writes the JSON if asked to.  Returns the program's exit code. */
int bench_end(struct bench *b);

/* Prints `name: sentence` on stderr and exits. */
_Noreturn void bench_die(const struct bench *b, const char *fmt, ...)
	__attribute__((format(printf, 2, 3)));

/* Of n values, which are sorted in place. */
double bench_median(double *v, unsigned n);

/* CPU time of this thread: for work that neither sleeps nor hands over. */
uint64_t bench_cpu_ns(void);

/* First line of a file without its newline, "" when there is none. */
const char *bench_read_line(const char *path, char *buf, size_t len);

#endif
