/*
 * See benchlib.h.  The JSON is {"bench", "host": {...}, "figures": [{"name",
 * "unit", "brim", "peer", "peer_value", "ratio", "spread"}]}; peer, peer_value and
 * ratio are null where brim runs alone.
 */
#include "bench/benchlib.h"

#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/utsname.h>
#include <time.h>
#include <unistd.h>

#define PAIRS_USUAL 9
#define PAIRS_QUICK 5

_Noreturn void bench_die(const struct bench *b, const char *fmt, ...)
{
	va_list ap;

	fprintf(stderr, "%s: ", b->name);
	va_start(ap, fmt);
	vfprintf(stderr, fmt, ap);
	va_end(ap);
	fputc('\n', stderr);
	exit(2);
}

/* ---- the machine ------------------------------------------------------------- */

const char *bench_read_line(const char *path, char *buf, size_t len)
{
	FILE *f = fopen(path, "re");

	if (!f || !fgets(buf, (int)len, f))
		buf[0] = '\0';
	buf[strcspn(buf, "\n")] = '\0';
	if (f)
		fclose(f);
	return buf;
}

/* "model name	: X" in /proc/cpuinfo. */
static const char *cpu_model(char *buf, size_t len)
{
	static const char key[] = "model name";
	FILE *f = fopen("/proc/cpuinfo", "re");
	char line[256];

	snprintf(buf, len, "unknown");
	while (f && fgets(line, sizeof(line), f)) {
		char *colon = strchr(line, ':');

		if (strncmp(line, key, sizeof(key) - 1) != 0 || !colon)
			continue;
		line[strcspn(line, "\n")] = '\0';
		snprintf(buf, len, "%s", colon + 1 + (colon[1] == ' '));
		break;
	}
	if (f)
		fclose(f);
	return buf;
}

static json_t *describe_host(void)
{
	char cpu[128], thp[64], load[64];
	struct utsname u;
	long cpus = sysconf(_SC_NPROCESSORS_ONLN), pages = sysconf(_SC_PHYS_PAGES);

	VERIFY(uname(&u) == 0);
	return json_pack("{s:s, s:s, s:I, s:I, s:s, s:s, s:s}",
			 "kernel", u.release,
			 "cpu", cpu_model(cpu, sizeof(cpu)),
			 "cpus", (json_int_t)cpus,
			 "memory_bytes", (json_int_t)pages * sysconf(_SC_PAGESIZE),
			 "thp", bench_read_line("/sys/kernel/mm/transparent_hugepage/enabled",
						thp, sizeof(thp)),
			 "load", bench_read_line("/proc/loadavg", load, sizeof(load)),
			 "brim", BRIM_VERSION);
}

/* ---- numbers ----------------------------------------------------------------- */

uint64_t bench_cpu_ns(void)
{
	struct timespec t;

	VERIFY(clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t) == 0);
	return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}

static int by_value(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

double bench_median(double *v, unsigned n)
{
	VERIFY(n > 0);
	qsort(v, n, sizeof(*v), by_value);
	return n % 2 ? v[n / 2] : (v[n / 2 - 1] + v[n / 2]) / 2;
}

/* Highest less lowest over the median.  Sorts. */
static double spread_of(double *v, unsigned n)
{
	double median = bench_median(v, n);

	return median != 0 ? (v[n - 1] - v[0]) / median : 0;
}

/* ---- the table --------------------------------------------------------------- */

static void print_row(const struct bench_figure *f)
{
	printf("%-44s %8.2f %-6s", f->name, f->brim, f->unit);
	if (f->peer[0])
		printf(" %8.2f  %6.2fx", f->peer_value, f->ratio);
	else
		printf(" %8s  %7s", "-", "-");
	printf("  %5.1f%%  %s\n", f->spread * 100, f->peer[0] ? f->peer : "");
	fflush(stdout);
}

void bench_add(struct bench *b, const struct bench_figure *f)
{
	if (b->n == BENCH_FIGURES_MAX)
		bench_die(b, "more than %d figures", BENCH_FIGURES_MAX);
	b->figures[b->n++] = *f;
	print_row(f);
}

void bench_compare(struct bench *b, const char *name, const char *unit,
		   const struct bench_pair *p)
{
	double brim[BENCH_PAIRS_MAX], peer[BENCH_PAIRS_MAX], ratio[BENCH_PAIRS_MAX];
	struct bench_figure f = { 0 };

	snprintf(f.name, sizeof(f.name), "%s", name);
	snprintf(f.unit, sizeof(f.unit), "%s", unit);
	p->brim(p->arg);
	if (p->peer)
		p->peer(p->arg);
	for (unsigned i = 0; i < b->pairs; i++) {
		if (p->peer && i % 2)
			peer[i] = p->peer(p->arg);
		brim[i] = p->brim(p->arg);
		if (p->peer && i % 2 == 0)
			peer[i] = p->peer(p->arg);
		ratio[i] = p->peer ? brim[i] / peer[i] : brim[i];
	}
	f.brim = bench_median(brim, b->pairs);
	f.spread = spread_of(ratio, b->pairs);
	if (p->peer) {
		snprintf(f.peer, sizeof(f.peer), "%s", p->peer_name);
		f.peer_value = bench_median(peer, b->pairs);
		f.ratio = f.brim / f.peer_value;
	}
	bench_add(b, &f);
}

/* ---- begin and end ----------------------------------------------------------- */

static void usage(const struct bench *b, FILE *to)
{
	fprintf(to, "usage: %s [--quick] [--json FILE] [--pairs N]\n", b->name);
}

static unsigned parse_pairs(const struct bench *b, const char *text)
{
	char *end;
	unsigned long n = strtoul(text, &end, 10);

	if (end == text || *end || n < 1 || n > BENCH_PAIRS_MAX)
		bench_die(b, "--pairs %s: a number from 1 to %d", text, BENCH_PAIRS_MAX);
	return (unsigned)n;
}

void bench_begin(struct bench *b, const char *name, int argc, char **argv)
{
	unsigned pairs = 0;

	*b = (struct bench){ .name = name };
	for (int i = 1; i < argc; i++) {
		if (strcmp(argv[i], "--quick") == 0) {
			b->quick = true;
		} else if (strcmp(argv[i], "--json") == 0 && i + 1 < argc) {
			b->json_path = argv[++i];
		} else if (strcmp(argv[i], "--pairs") == 0 && i + 1 < argc) {
			pairs = parse_pairs(b, argv[++i]);
		} else if (strcmp(argv[i], "--help") == 0) {
			usage(b, stdout);
			exit(0);
		} else {
			usage(b, stderr);
			exit(2);
		}
	}
	b->pairs = pairs ? pairs : b->quick ? PAIRS_QUICK : PAIRS_USUAL;
	printf("%s: medians of %u alternated runs%s\n", name, b->pairs, b->quick ? ", quick" : "");
	printf("%-44s %8s %-6s %8s  %7s  %6s  %s\n", "", "brim", "", "peer", "ratio", "spread",
	       "peer is");
}

static json_t *figure_json(const struct bench_figure *f)
{
	json_t *j = json_pack("{s:s, s:s, s:f, s:n, s:n, s:n, s:f}", "name", f->name,
			      "unit", f->unit, "brim", f->brim, "peer", "peer_value", "ratio",
			      "spread", f->spread);

	VERIFY(j);
	if (f->peer[0]) {
		json_object_set_new(j, "peer", json_string(f->peer));
		json_object_set_new(j, "peer_value", json_real(f->peer_value));
		json_object_set_new(j, "ratio", json_real(f->ratio));
	}
	return j;
}

int bench_end(struct bench *b)
{
	json_t *figures, *all;

	if (!b->json_path)
		return 0;
	figures = json_array();
	VERIFY(figures);
	for (unsigned i = 0; i < b->n; i++)
		json_array_append_new(figures, figure_json(&b->figures[i]));
	all = json_pack("{s:s, s:o, s:o}", "bench", b->name, "host", describe_host(), "figures",
			figures);
	VERIFY(all);
	if (json_dump_file(all, b->json_path, JSON_INDENT(2) | JSON_REAL_PRECISION(6)) < 0)
		bench_die(b, "%s: cannot be written", b->json_path);
	json_decref(all);
	return 0;
}
