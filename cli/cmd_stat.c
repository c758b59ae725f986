/*
 * `brim stat`: one VM, all that its file of statistics says, with its books as a table.
 * Asks the VM nothing.  One thread; no state.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cli/top.h"

/* ---- reading ---------------------------------------------------------------------------- */

static int look(const struct vm_paths *p, struct stats_view *v, struct err *e)
{
	enum vm_presence presence;
	int rc = rundir_probe(p, &presence, NULL, e);

	if (rc)
		return rc;
	if (presence == VM_ABSENT)
		return err_set(e, -ENOENT, "there is no VM named %s (`brim ps` lists them)", p->name);
	if (presence == VM_DIED)
		return err_set(e, -ESRCH, "VM %s died; `brim log %s` shows why, `brim kill %s` cleans up",
			       p->name, p->name, p->name);
	rc = stats_read(p->stats, v, e);
	if (rc == -ENOENT)
		err_set(e, rc, "VM %s has no statistics in its run directory: it is starting, or its "
			"brim-vmm is an earlier one; see `brim status %s`", p->name, p->name);
	return rc;
}

/* ---- the books ---------------------------------------------------------------------------- */

struct term {
	enum gauge gauge;
	const char *what;
	const char *cost; /* in host memory; "" the same, "0" nothing */
};

static const struct term terms[] = {
	{ GAUGE_untouched_bytes, "never touched, or reported free", "0" },
	{ GAUGE_resident_bytes, "resident", "" },
	{ GAUGE_staged_bytes, "staged: taken, not packed yet", "" },
	{ GAUGE_filled_bytes, "filled with one pattern", "0" },
	{ GAUGE_packed_bytes, "packed", "pool" },
	{ GAUGE_stored_bytes, "shared: in the store", "0" },
	{ GAUGE_mapped_bytes, "shared: mapped from the store", "0" },
	{ GAUGE_disk_bytes, "on disk", "0" },
	{ GAUGE_ballooned_bytes, "in the balloon", "0" },
};

static uint64_t cost_of(const struct stats_view *v, const struct term *t)
{
	if (t->cost[0] == '0')
		return 0;
	return view_gauge(v, t->cost[0] ? GAUGE_pool_bytes : t->gauge);
}

static void book_row(struct table *t, enum colour c, const char *what, const uint64_t n[2])
{
	char share[16];

	table_cell(t, c, what);
	table_size(t, n[0]);
	table_number(t, (int64_t)(n[0] / (4 * KiB)));
	table_size(t, n[1]);
	snprintf(share, sizeof(share), "%.1f%%", n[0] ? 100.0 * (double)n[1] / (double)n[0] : 0);
	table_cell(t, PLAIN, n[0] ? share : "");
}

static void print_books(const struct stats_view *v)
{
	static const struct column columns[] = {
		{ "WHERE", false }, { "OF THE GUEST", true }, { "PAGES", true }, { "OF THE HOST", true },
		{ "", true },
	};
	struct table *t = table_create(columns, ARRAY_LEN(columns));
	uint64_t sum[2] = { 0, 0 }, memory = view_gauge(v, GAUGE_memory_bytes);
	char a[32], b[32];

	for (size_t i = 0; i < ARRAY_LEN(terms); i++) {
		uint64_t n[2] = { view_gauge(v, terms[i].gauge), cost_of(v, &terms[i]) };

		book_row(t, PLAIN, terms[i].what, n);
		sum[0] += n[0];
		sum[1] += n[1];
	}
	book_row(t, BOLD, "in all", sum);
	table_print(t, stdout);
	table_destroy(&t);
	if (sum[0] == memory)
		printf("the books balance: %s assigned\n", size_format(a, sizeof(a), memory));
	else
		printf("%s assigned: %s %s than that is accounted for%s\n",
		       size_format(a, sizeof(a), memory),
		       size_format(b, sizeof(b), sum[0] > memory ? sum[0] - memory : memory - sum[0]),
		       sum[0] > memory ? "more" : "less", v->is_torn ? " (read while it changed)" : "");
}

/* ---- the rest ------------------------------------------------------------------------------- */

static void print_head(const char *name, const struct stats_view *v)
{
	static const char *const states[] = { "starting", "running", "paused", "stopping" };
	uint64_t state = view_gauge(v, GAUGE_state), age = now_ns();
	char up[32];

	age = age > v->gauge[GAUGE_updated_ns] ? age - v->gauge[GAUGE_updated_ns] : 0;
	printf("%s: %s, pid %d, %" PRIu64 " vCPUs, up %s", name,
	       state < ARRAY_LEN(states) ? states[state] : "?", (int)v->pid, view_gauge(v, GAUGE_vcpus),
	       duration_format(up, sizeof(up), (v->read_ns - v->start_ns) / 1000000000));
	if (age > 5000000000u)
		printf(" (gauges are %" PRIu64 " s old: its event loop is held up)", age / 1000000000);
	printf("\n\n");
}

static void print_rates(const struct stats_view *v, const struct stats_rates *r)
{
	char p50[16], p99[16];

	printf("\nfaults: %.1f refaults/s, %.1f in all, %.1f reads of the swap file/s", r->refaults_per_s,
	       r->faults_per_s, r->disk_reads_per_s);
	if (r->fault_p99_ns)
		printf("; half within %s, 99 of 100 within %s",
		       time_short(p50, sizeof(p50), (double)r->fault_p50_ns),
		       time_short(p99, sizeof(p99), (double)r->fault_p99_ns));
	printf("\nstalls: %.3f%% of the vCPUs' time (over %.1f s)\n", r->stall_pct, r->seconds);
	(void)v;
}

/* Every other gauge that is not 0, in its own unit or as a size. */
static void print_gauges(const struct stats_view *v, bool all)
{
	static const struct column columns[] = {
		{ "GAUGE", false }, { "VALUE", true }, { "MEANING", false },
	};
	struct table *t = table_create(columns, ARRAY_LEN(columns));

	for (unsigned g = GAUGE_updated_ns + 1; g < GAUGE_COUNT_; g++) {
		uint64_t n = v->gauge[g];

		if (n == GAUGE_UNKNOWN || (!n && !all))
			continue;
		table_cell(t, PLAIN, gauge_table[g].name);
		if (strcmp(gauge_table[g].unit, "bytes") == 0)
			table_size(t, n);
		else
			table_number(t, (int64_t)n);
		table_cell(t, PLAIN, gauge_table[g].help);
	}
	printf("\n");
	table_print(t, stdout);
	table_destroy(&t);
}

/* Since the VM began, where there is no earlier look. */
static void print_all(const char *name, const struct stats_view *before, const struct stats_view *v,
		      bool all)
{
	struct stats_view began = { .pid = v->pid, .start_ns = v->start_ns, .read_ns = v->start_ns };
	struct stats_rates r;

	if (!stats_rates(before ? before : &began, v, &r))
		stats_rates(&began, v, &r);
	print_head(name, v);
	print_books(v);
	print_rates(v, &r);
	print_gauges(v, all);
}

/* ---- as JSON --------------------------------------------------------------------------------- */

static json_t *number_json(uint64_t n)
{
	return n > INT64_MAX ? json_null() : json_integer((json_int_t)n); /* so is GAUGE_UNKNOWN */
}

static void print_json(const char *name, const struct stats_view *v)
{
	json_t *gauges = json_object(), *counters = json_object(), *hist = json_object(), *o;

	for (unsigned i = 0; i < GAUGE_COUNT_; i++)
		json_object_set_new(gauges, gauge_table[i].name, number_json(v->gauge[i]));
	for (unsigned i = 0; i < CTR_COUNT_; i++)
		json_object_set_new(counters, counter_table[i].name, number_json(v->counter[i]));
	for (unsigned i = 0; i < HIST_COUNT_; i++) {
		json_t *list = json_array();

		for (unsigned b = 0; b < HIST_BUCKETS; b++)
			json_array_append_new(list, number_json(v->histogram[i][b]));
		json_object_set_new(hist, histogram_table[i].name, list);
	}
	o = json_pack("{s:s, s:i, s:b, s:o, s:o, s:o}", "name", name, "pid", (int)v->pid, "torn",
		      v->is_torn, "gauges", gauges, "counters", counters, "histograms", hist);
	json_print(stdout, o);
	json_decref(o);
}

/* ---- the command ------------------------------------------------------------------------------- */

/* On a terminal each look takes the place of the one before. */
static int watch(const struct vm_paths *p, const struct args *a, struct stats_view *v, struct err *e)
{
	struct stats_view before;
	int rc = 0;

	while (!rc && !ferror(stdout)) {
		before = *v;
		fflush(stdout);
		sleep((unsigned)a->interval_s);
		rc = look(p, v, e);
		if (rc)
			break;
		fputs(isatty(STDOUT_FILENO) ? "\033[H\033[2J" : "\n", stdout);
		print_all(p->name, &before, v, a->all);
	}
	return rc;
}

int cmd_stat(const struct invocation *in)
{
	const struct args *a = in->args;
	struct stats_view v;
	struct vm_paths p;
	struct err e;
	int rc = vm_resolve(in->pos.items[0], &p, &e);

	if (!rc)
		rc = look(&p, &v, &e);
	if (rc)
		return cli_fail(&e);
	if (a->json)
		print_json(p.name, &v);
	else
		print_all(p.name, NULL, &v, a->all);
	if (a->watch && !a->json)
		rc = watch(&p, a, &v, &e);
	return rc ? cli_fail(&e) : CLI_OK;
}
