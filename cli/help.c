/*
 * The table of commands.c as text for a terminal.  Always as wide as a
 * terminal usually is, so that it reads the same in a pipe.
 *
 * One thread; no state.
 */
#include "cli/cli.h"

#include <string.h>

#define WIDTH 80
#define INDENT 2
#define OPT_COLUMN 26 /* where what options mean begins */

void opt_title(const struct opt *o, char *buf, size_t len)
{
	char letter[8] = "";

	if (o->letter)
		snprintf(letter, sizeof(letter), "-%c, ", o->letter);
	snprintf(buf, len, "%s--%s%s%s", letter, o->name, o->arg ? " " : "", o->arg ? o->arg : "");
}

void print_wrapped(FILE *out, const char *text, const char *end, size_t at, size_t indent)
{
	bool fresh = true;

	while (text < end) {
		size_t n = strcspn(text, " ");

		if (n > (size_t)(end - text))
			n = (size_t)(end - text);
		if (!fresh && at + 1 + n > WIDTH) {
			fprintf(out, "\n");
			at = 0;
			fresh = true;
		}
		if (fresh && at < indent)
			at += (size_t)fprintf(out, "%*s", (int)(indent - at), "");
		at += (size_t)fprintf(out, "%s%.*s", fresh ? "" : " ", (int)n, text);
		fresh = false;
		text += n;
		text += strspn(text, " ");
	}
	fprintf(out, "\n");
}

/* "  what      meaning"; what is too long gets a line of its own. */
static void print_row(FILE *out, const char *what, const char *meaning, size_t column)
{
	size_t at = (size_t)fprintf(out, "%*s%s", INDENT, "", what);

	if (at + 2 > column) {
		fprintf(out, "\n");
		at = 0;
	}
	print_wrapped(out, meaning, meaning + strlen(meaning), at, column);
}

static void print_text(FILE *out, const char *text)
{
	const char *end;

	for (; text && *text; text = *end ? end + 2 : end) {
		end = strstr(text, "\n\n");
		if (!end)
			end = text + strlen(text);
		fprintf(out, "\n");
		print_wrapped(out, text, end, 0, 0);
	}
}

static void print_options(FILE *out, const struct cmd *c)
{
	char title[80], help[640];

	fprintf(out, "\nOptions:\n");
	for (size_t i = 0; i < c->opt_count; i++) {
		const struct opt *o = &c->opts[i];

		opt_title(o, title, sizeof(title));
		if (o->def)
			snprintf(help, sizeof(help), "%s (default: %s)", o->help, o->def);
		else
			snprintf(help, sizeof(help), "%s", o->help);
		print_row(out, title, help, OPT_COLUMN);
	}
	print_row(out, "-h, --help", "show this", OPT_COLUMN);
}

static void print_section(FILE *out, const struct section *s)
{
	size_t column = 0;

	for (const struct row *r = s->rows; r->what; r++)
		if (strlen(r->what) + INDENT + 2 > column)
			column = strlen(r->what) + INDENT + 2;
	if (column > OPT_COLUMN)
		column = 6; /* commands: what they do is on the next line */
	fprintf(out, "\n%s:\n", s->title);
	for (const struct row *r = s->rows; r->what; r++)
		print_row(out, r->what, r->meaning, column);
}

static void print_commands(FILE *out)
{
	const char *group = "";

	for (size_t i = 0; i < command_count; i++) {
		if (!commands[i].run)
			continue;
		if (strcmp(group, commands[i].group) != 0) {
			group = commands[i].group;
			fprintf(out, "\n%s:\n", group);
		}
		print_row(out, commands[i].name, commands[i].summary, 14);
	}
	fprintf(out, "\n`brim COMMAND --help` explains a command, `brim --version` says which brim.\n");
}

void help_print(FILE *out, const struct cmd *c)
{
	const char *gap = *c->name ? " " : "";

	fprintf(out, "brim%s%s: %s\n\n", gap, c->name, c->summary);
	if (c->run)
		fprintf(out, "Usage: brim%s%s %s\n", gap, c->name, c->synopsis);
	else
		fprintf(out, "Usage: %s %s\n", *c->name ? c->name : "brim", c->synopsis);
	print_text(out, c->text);
	if (c == &command_brim)
		print_commands(out);
	if (c->run)
		print_options(out, c);
	for (size_t i = 0; c->sections && c->sections[i]; i++)
		print_section(out, c->sections[i]);
}
