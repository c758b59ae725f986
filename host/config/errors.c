/*
 * Errors of one load: kept with their place, each once, in the file's order.
 * One thread.  What is kept is bounded; the rest is counted.
 */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "host/config/internal.h"

/* Aliases and defaults are read once for each VM: they are wrong once. */
static bool is_known(const struct host_config_errors *errors, const struct host_config_error *e)
{
	for (size_t i = 0; i < errors->count; i++) {
		const struct host_config_error *o = &errors->items[i];

		if (o->line == e->line && o->column == e->column && strcmp(o->text, e->text) == 0 &&
		    (e->line || strcmp(o->key, e->key) == 0))
			return true;
	}
	return false;
}

static void keep(struct errors *errs, const struct host_config_error *e)
{
	struct host_config_errors *out = errs->out;
	struct host_config_error *grown;

	if (is_known(out, e))
		return;
	if (out->count == ERRORS_MAX) {
		out->unsaid++;
		return;
	}
	grown = reallocarray(out->items, out->count + 1, sizeof(*grown));
	if (!grown) {
		errs->out_of_memory = true;
		return;
	}
	out->items = grown;
	grown[out->count++] = *e;
}

/* What somebody wrote may have anything in it; an error is one line. */
static void make_printable(char *text)
{
	for (; *text; text++)
		if ((unsigned char)*text < ' ' || *text == 0x7f)
			*text = '?';
}

int error_add(struct errors *errs, const struct place *p, const char *fmt, ...)
{
	struct host_config_error e = { .line = p->line, .column = p->column };
	va_list ap;

	snprintf(e.key, sizeof(e.key), "%s", p->key ? p->key : "");
	va_start(ap, fmt);
	vsnprintf(e.text, sizeof(e.text), fmt, ap);
	va_end(ap);
	make_printable(e.key);
	make_printable(e.text);
	keep(errs, &e);
	return -EINVAL;
}

bool errors_unwanted(struct errors *errs, const struct place *p)
{
	for (size_t i = 0; i < errs->out->count; i++)
		if (errs->out->items[i].line == p->line && errs->out->items[i].column == p->column)
			return true;
	if (errs->out->count < ERRORS_MAX)
		return false;
	errs->out->unsaid++;
	return true;
}

static int by_place(const void *a, const void *b)
{
	const struct host_config_error *x = a, *y = b;

	if (x->line != y->line)
		return x->line < y->line ? -1 : 1;
	if (x->column != y->column)
		return x->column < y->column ? -1 : 1;
	return strcmp(x->text, y->text);
}

void errors_sort(struct host_config_errors *errors)
{
	if (errors->count > 1)
		qsort(errors->items, errors->count, sizeof(*errors->items), by_place);
}

void host_config_errors_fini(struct host_config_errors *errors)
{
	free(errors->items);
	*errors = (struct host_config_errors){ 0 };
}

const char *host_config_error_format(char *buf, size_t len, const char *path,
				     const struct host_config_error *e)
{
	char at[32] = "";

	if (e->line)
		snprintf(at, sizeof(at), ":%u:%u", e->line, e->column);
	snprintf(buf, len, "%s%s: %s%s%s", path, at, e->key, *e->key ? ": " : "", e->text);
	return buf;
}
