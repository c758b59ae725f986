/*
 * What people see: tables with right-aligned numbers, colours on a terminal
 * only, durations, errors.  One thread; no state.
 */
#include "cli/cli.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define GAP "  "

/* ---- colours ------------------------------------------------------------------ */

bool colour_wanted(FILE *out)
{
	const char *no = getenv("NO_COLOR"), *term = getenv("TERM");

	return isatty(fileno(out)) && !(no && *no) && term && strcmp(term, "dumb") != 0;
}

const char *colour_code(FILE *out, enum colour c)
{
	static const char *const codes[] = {
		[PLAIN] = "\033[0m", [BOLD] = "\033[1m", [GREEN] = "\033[32m",
		[YELLOW] = "\033[33m", [RED] = "\033[31m",
	};

	return colour_wanted(out) ? codes[c] : "";
}

/* ---- tables --------------------------------------------------------------------- */

struct cell {
	char *text;
	enum colour colour;
};

struct table {
	const struct column *columns;
	size_t column_count;
	struct cell *cells;
	size_t cell_count;
};

struct table *table_create(const struct column *columns, size_t count)
{
	struct table *t = calloc(1, sizeof(*t));

	VERIFY(t);
	t->columns = columns;
	t->column_count = count;
	return t;
}

void table_destroy(struct table **t)
{
	if (!*t)
		return;
	for (size_t i = 0; i < (*t)->cell_count; i++)
		free((*t)->cells[i].text);
	free((*t)->cells);
	free(*t);
	*t = NULL;
}

void table_cell(struct table *t, enum colour c, const char *text)
{
	struct cell *grown = reallocarray(t->cells, t->cell_count + 1, sizeof(*grown));

	VERIFY(grown);
	t->cells = grown;
	grown[t->cell_count].text = strdup(text);
	grown[t->cell_count].colour = c;
	VERIFY(grown[t->cell_count].text);
	t->cell_count++;
}

void table_size(struct table *t, uint64_t bytes)
{
	char text[32];

	table_cell(t, PLAIN, size_format(text, sizeof(text), bytes));
}

void table_number(struct table *t, int64_t n)
{
	char text[32];

	snprintf(text, sizeof(text), "%" PRId64, n);
	table_cell(t, PLAIN, text);
}

static int column_width(const struct table *t, size_t column)
{
	size_t width = strlen(t->columns[column].title);

	for (size_t i = column; i < t->cell_count; i += t->column_count)
		if (strlen(t->cells[i].text) > width)
			width = strlen(t->cells[i].text);
	return (int)width;
}

static void print_cell(FILE *out, const struct table *t, size_t column, const struct cell *c)
{
	bool last = column + 1 == t->column_count;
	int width = column_width(t, column), pad = width - (int)strlen(c->text);

	if (t->columns[column].right)
		fprintf(out, "%*s", pad, "");
	if (c->colour != PLAIN)
		fprintf(out, "%s%s%s", colour_code(out, c->colour), c->text, colour_code(out, PLAIN));
	else
		fputs(c->text, out);
	if (!t->columns[column].right && !last)
		fprintf(out, "%*s", pad, "");
	fputs(last ? "\n" : GAP, out);
}

void table_print(struct table *t, FILE *out)
{
	VERIFY(t->cell_count % t->column_count == 0);
	for (size_t i = 0; i < t->column_count; i++) {
		struct cell c = { .text = strdup(t->columns[i].title), .colour = BOLD };

		VERIFY(c.text);
		print_cell(out, t, i, &c);
		free(c.text);
	}
	for (size_t i = 0; i < t->cell_count; i++)
		print_cell(out, t, i % t->column_count, &t->cells[i]);
}

/* ---- the rest --------------------------------------------------------------------- */

void json_print(FILE *out, const json_t *value)
{
	if (!value || json_dumpf(value, out, JSON_INDENT(2) | JSON_ENCODE_ANY))
		fputs("null", out);
	fputc('\n', out);
}

const char *duration_format(char *buf, size_t len, uint64_t seconds)
{
	uint64_t m = seconds / 60, h = m / 60, d = h / 24;

	if (d)
		snprintf(buf, len, "%" PRIu64 "d %" PRIu64 "h", d, h % 24);
	else if (h)
		snprintf(buf, len, "%" PRIu64 "h %02" PRIu64 "m", h, m % 60);
	else if (m)
		snprintf(buf, len, "%" PRIu64 "m %02" PRIu64 "s", m, seconds % 60);
	else
		snprintf(buf, len, "%" PRIu64 "s", seconds);
	return buf;
}

void cli_error(const struct err *e)
{
	fflush(stdout);
	fprintf(stderr, "brim: %s\n", e->msg);
}

int cli_fail(const struct err *e)
{
	cli_error(e);
	return CLI_FAILED;
}

int cli_wrong(const struct err *e)
{
	cli_error(e);
	return CLI_USAGE;
}
