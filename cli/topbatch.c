/*
 * Samples of `brim top` for files and programs.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "cli/top.h"

static void print_json(FILE *out, const struct top *t)
{
	json_t *o = top_json(t);

	json_dumpf(o, out, JSON_COMPACT);
	fputc('\n', out);
	json_decref(o);
}

/* ---- CSV: a row a VM and sample; empty: not known ---------------------------------------- */

static void csv_header(FILE *out)
{
	fputs("time_s", out);
	for (unsigned i = 0; i < top_column_count; i++)
		fprintf(out, ",%s", top_columns[i].key);
	fputc('\n', out);
}

/* Names and states have no comma or quote in them (vm_name_check). */
static void csv_cell(FILE *out, const struct top_vm *vm, const struct top_column *c)
{
	char text[80];
	double v = c->value ? c->value(vm) : 0;

	fputc(',', out);
	if (!c->value)
		fputs(top_cell(vm, c, text, sizeof(text)), out);
	else if (!isnan(v))
		fprintf(out, c->unit == TOP_SIZE || c->unit == TOP_TIME ? "%.0f" : "%.3f", v);
}

static void print_csv(FILE *out, const struct top *t)
{
	struct timespec now;
	struct top_vm **list;
	size_t n;

	if (t->samples <= 2)
		csv_header(out); /* the first that is printed: one comes before it */
	clock_gettime(CLOCK_REALTIME, &now);
	list = top_ordered(t, &n);
	for (size_t i = 0; i < n; i++) {
		fprintf(out, "%lld.%03ld", (long long)now.tv_sec, now.tv_nsec / 1000000);
		for (unsigned c = 0; c < top_column_count; c++)
			csv_cell(out, list[i], &top_columns[c]);
		fputc('\n', out);
	}
	free(list);
}

/* ---- text ---------------------------------------------------------------------------------- */

static void print_host(FILE *out, const struct top_host *h)
{
	char a[32], p[32], u[32], v[32];

	fprintf(out, "%s: assigned %s on %s: VMs take %s, %s available", h->name,
		size_format(a, sizeof(a), h->assigned_bytes), size_format(p, sizeof(p), h->physical_bytes),
		size_format(u, sizeof(u), h->vm_bytes), size_format(v, sizeof(v), h->available_bytes));
	if (h->psi_some_pct >= 0)
		fprintf(out, "; memory pressure %.1f %% some, %.1f %% full", h->psi_some_pct, h->psi_full_pct);
	if (h->state[0])
		fprintf(out, "; state %s", h->state);
	fputc('\n', out);
}

static size_t shown_columns(const struct top *t, const struct top_column *of[])
{
	size_t n = 0;

	VERIFY(top_column_count <= TOP_COLUMNS_MAX);
	for (unsigned c = 0; c < top_column_count; c++)
		if (top_is_known(t, &top_columns[c]))
			of[n++] = &top_columns[c];
	return n;
}

static void print_text(FILE *out, const struct top *t)
{
	struct column columns[TOP_COLUMNS_MAX];
	const struct top_column *of[TOP_COLUMNS_MAX];
	size_t n, shown = shown_columns(t, of);
	struct table *table;
	struct top_vm **list;
	char text[80];

	for (size_t c = 0; c < shown; c++)
		columns[c] = (struct column){ of[c]->title, of[c]->value != NULL };
	table = table_create(columns, shown);
	list = top_ordered(t, &n);
	for (size_t i = 0; i < n; i++)
		for (size_t c = 0; c < shown; c++)
			table_cell(table, top_colour(list[i], of[c]),
				   top_cell(list[i], of[c], text, sizeof(text)));
	print_host(out, &t->host);
	table_print(table, out);
	fputc('\n', out);
	table_destroy(&table);
	free(list);
}

void top_print(FILE *out, const struct top *t, enum top_format format)
{
	if (format == TOP_JSON)
		print_json(out, t);
	else if (format == TOP_CSV)
		print_csv(out, t);
	else
		print_text(out, t);
	fflush(out);
}
