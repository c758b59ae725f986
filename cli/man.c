/*
 * The table of commands.c as manual pages, man(7).  Nothing of this is kept in
 * the tree: `make man` asks the brim it built.
 *
 * One thread; no state.
 */
#include "cli/cli.h"

#include <ctype.h>
#include <errno.h>
#include <limits.h>
#include <string.h>

/* Roff sees no escape, no macro at the start of a line, and ASCII dashes;
 * `code` becomes bold. */
static void put_text(FILE *out, const char *text, const char *end)
{
	bool code = false, start = true;

	for (; text < end; text++) {
		if (start && (*text == '.' || *text == '\''))
			fputs("\\&", out);
		start = false;
		if (*text == '`') {
			code = !code;
			fputs(code ? "\\fB" : "\\fR", out);
		} else if (*text == '\\') {
			fputs("\\e", out);
		} else if (*text == '-') {
			fputs("\\-", out);
		} else {
			fputc(*text, out);
		}
	}
}

static void put_line(FILE *out, const char *text)
{
	put_text(out, text, text + strlen(text));
	fputc('\n', out);
}

static void put_heading(FILE *out, const char *title)
{
	fputs(".SH ", out);
	for (; *title; title++)
		fputc(toupper((unsigned char)*title), out);
	fputc('\n', out);
}

static void put_row(FILE *out, const char *what, const char *meaning)
{
	fputs(".TP\n\\fB", out);
	put_text(out, what, what + strlen(what));
	fputs("\\fR\n", out);
	put_line(out, meaning);
}

static void page_name(const struct cmd *c, char *buf, size_t len)
{
	if (c == &command_brim || !c->run)
		snprintf(buf, len, "%s", c == &command_brim ? "brim" : c->name);
	else
		snprintf(buf, len, "brim-%s", c->name);
}

static void put_top(FILE *out, const struct cmd *c)
{
	char page[64];

	page_name(c, page, sizeof(page));
	fprintf(out, ".\\\" made by brim help --man\n.TH \"");
	for (const char *p = page; *p; p++)
		fputc(toupper((unsigned char)*p), out);
	fprintf(out, "\" %d \"\" \"brim %s\" \"brim\"\n", c->man_section, BRIM_VERSION);
	put_heading(out, "Name");
	put_text(out, page, page + strlen(page));
	fputs(" \\- ", out);
	put_line(out, c->summary);
	put_heading(out, "Synopsis");
	fprintf(out, "\\fB%s%s%s\\fR ", c->run || c == &command_brim ? "brim" : c->name,
		c->run ? " " : "", c->run ? c->name : "");
	put_line(out, c->synopsis);
}

static void put_description(FILE *out, const struct cmd *c)
{
	const char *text = c->text ? c->text : c->summary, *end;

	put_heading(out, "Description");
	for (; *text; text = *end ? end + 2 : end) {
		end = strstr(text, "\n\n");
		if (!end)
			end = text + strlen(text);
		put_text(out, text, end);
		fputs(*end ? "\n.PP\n" : "\n", out);
	}
}

static void put_options(FILE *out, const struct cmd *c)
{
	char title[80];

	put_heading(out, "Options");
	for (size_t i = 0; i < c->opt_count; i++) {
		const struct opt *o = &c->opts[i];

		opt_title(o, title, sizeof(title));
		put_row(out, title, o->help);
		if (o->def) {
			fputs("(default: ", out);
			put_text(out, o->def, o->def + strlen(o->def));
			fputs(")\n", out);
		}
	}
	put_row(out, "-h, --help", "show a short help");
}

static void put_commands(FILE *out)
{
	put_heading(out, "Commands");
	for (size_t i = 0; i < command_count; i++)
		if (commands[i].run)
			put_row(out, commands[i].name, commands[i].summary);
	put_row(out, "--version", "say which brim this is");
	put_row(out, "COMMAND --help", "explain a command; its manual page is brim-COMMAND(1)");
}

static void put_section(FILE *out, const struct section *s)
{
	put_heading(out, s->title);
	for (const struct row *r = s->rows; r->what; r++)
		put_row(out, r->what, r->meaning);
}

void man_print(FILE *out, const struct cmd *c)
{
	put_top(out, c);
	put_description(out, c);
	if (c == &command_brim)
		put_commands(out);
	if (c->run)
		put_options(out, c);
	for (size_t i = 0; c->sections && c->sections[i]; i++)
		put_section(out, c->sections[i]);
	put_heading(out, "See also");
	put_line(out, c == &command_brim ? "brim-run(1), brim-ps(1), brim-doctor(1), brim-vmm(8)"
					 : "brim(1)");
}

static int write_page(const char *dir, const struct cmd *c, struct err *e)
{
	char page[64], path[PATH_MAX];
	bool bad;
	FILE *f;

	page_name(c, page, sizeof(page));
	if (snprintf(path, sizeof(path), "%s/%s.%d", dir, page, c->man_section) >= (int)sizeof(path))
		return err_set(e, -ENAMETOOLONG, "%s: the path is too long", dir);
	f = fopen(path, "we");
	if (!f)
		return err_sys(e, -errno, "cannot write %s", path);
	man_print(f, c);
	bad = ferror(f);
	if (fclose(f) != 0 || bad)
		return err_sys(e, -EIO, "cannot write %s", path);
	return 0;
}

int man_print_all(const char *dir, struct err *e)
{
	int rc = write_page(dir, &command_brim, e);

	for (size_t i = 0; i < command_count && !rc; i++)
		rc = write_page(dir, &commands[i], e);
	return rc;
}
