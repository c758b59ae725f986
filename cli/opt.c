/*
 * The command line against a command's rows.  Options and other words may be
 * mixed; "--" ends the options.  A default is the text a person would have
 * typed, and goes through the same parser.
 *
 * One thread; what is parsed points into argv.
 */
#include "cli/cli.h"

#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

/* ---- values -------------------------------------------------------------------- */

int seconds_parse(const char *text, uint64_t *seconds, struct err *e)
{
	static const struct { char unit; uint64_t seconds; } units[] = {
		{ '\0', 1 }, { 's', 1 }, { 'm', 60 }, { 'h', 3600 }, { 'd', 86400 },
	};
	char *end;
	uint64_t n;

	errno = 0;
	n = strtoull(text, &end, 10);
	if (isdigit((unsigned char)text[0]) && !errno && n < UINT32_MAX)
		for (size_t i = 0; i < ARRAY_LEN(units); i++)
			if (end[0] == units[i].unit && (!end[0] || !end[1])) {
				*seconds = n * units[i].seconds;
				return 0;
			}
	return err_set(e, -EINVAL, "'%s' is not a time (such as 30s, 5m or 1h)", text);
}

static int uint_parse(const char *text, uint64_t *n, struct err *e)
{
	char *end;
	uint64_t v;

	errno = 0;
	v = strtoull(text, &end, 10);
	if (!isdigit((unsigned char)text[0]) || *end || errno)
		return err_set(e, -EINVAL, "'%s' is not a number", text);
	*n = v;
	return 0;
}

static int choice_parse(const struct opt *o, const char *text, unsigned *index, struct err *e)
{
	char all[128] = "";
	unsigned n = 0;

	for (; o->choices[n]; n++) {
		size_t used = strlen(all);

		if (strcmp(o->choices[n], text) == 0) {
			*index = n;
			return 0;
		}
		snprintf(all + used, sizeof(all) - used, "%s%s", n ? ", " : "", o->choices[n]);
	}
	return err_set(e, -EINVAL, "'%s' is none of: %s", text, all);
}

static int list_add(struct text_list *l, const char *text, struct err *e)
{
	const char **grown = reallocarray(l->items, l->count + 1, sizeof(*grown));

	if (!grown)
		return err_sys(e, -ENOMEM, "'%s'", text);
	l->items = grown;
	l->items[l->count++] = text;
	return 0;
}

static void amount_format(const struct opt *o, uint64_t n, char *buf, size_t len)
{
	if (o->type == OPT_SIZE)
		size_format(buf, len, n);
	else
		snprintf(buf, len, "%" PRIu64 "%s", n, o->type == OPT_SECONDS ? "s" : "");
}

static int check_range(const struct opt *o, const char *text, uint64_t n, struct err *e)
{
	char limit[32];

	if (o->max && n > o->max) {
		amount_format(o, o->max, limit, sizeof(limit));
		return err_set(e, -EINVAL, "'%s': the most is %s", text, limit);
	}
	if (n < o->min) {
		amount_format(o, o->min, limit, sizeof(limit));
		return err_set(e, -EINVAL, "'%s': the least is %s", text, limit);
	}
	return 0;
}

static int amount_parse(const struct opt *o, const char *text, uint64_t *out, struct err *e)
{
	uint64_t n = 0;
	int rc;

	if (o->type == OPT_SIZE)
		rc = size_parse(text, &n, e);
	else if (o->type == OPT_SECONDS)
		rc = seconds_parse(text, &n, e);
	else
		rc = uint_parse(text, &n, e);
	if (!rc)
		rc = check_range(o, text, n, e);
	if (!rc)
		*out = n;
	return rc;
}

static int set_value(const struct opt *o, void *args, const char *text, struct err *e)
{
	void *at = (char *)args + o->at;

	switch (o->type) {
	case OPT_FLAG:
		*(bool *)at = true;
		return 0;
	case OPT_TEXT:
		*(const char **)at = text;
		return 0;
	case OPT_SIZE:
	case OPT_UINT:
	case OPT_SECONDS:
		return amount_parse(o, text, at, e);
	case OPT_CHOICE:
		return choice_parse(o, text, at, e);
	case OPT_LIST:
		return list_add(at, text, e);
	}
	return -EINVAL;
}

/* ---- the line -------------------------------------------------------------------- */

struct line {
	struct invocation *in;
	void *args;
	int argc, at;
	char **argv;
};

static int unknown_option(const struct cmd *c, const char *word, struct err *e)
{
	const char *names[64], *near = NULL;
	char bare[NEAR_MAX + 1];
	size_t n = 0;

	snprintf(bare, sizeof(bare), "%.*s", (int)strcspn(word, "="), word);
	for (size_t i = 0; i < c->opt_count && n + 1 < ARRAY_LEN(names); i++)
		names[n++] = c->opts[i].name;
	names[n++] = "help";
	if (strncmp(bare, "--", 2) == 0)
		near = nearest(bare + 2, names, n);
	if (near)
		return err_set(e, -EINVAL, "brim %s has no option %s; did you mean --%s?", c->name, bare,
			       near);
	return err_set(e, -EINVAL, "brim %s has no option %s", c->name, bare);
}

static const struct opt *find_long(const struct cmd *c, const char *name, size_t len)
{
	for (size_t i = 0; i < c->opt_count; i++)
		if (strlen(c->opts[i].name) == len && strncmp(c->opts[i].name, name, len) == 0)
			return &c->opts[i];
	return NULL;
}

static const struct opt *find_short(const struct cmd *c, char letter)
{
	for (size_t i = 0; i < c->opt_count; i++)
		if (c->opts[i].letter && c->opts[i].letter == letter)
			return &c->opts[i];
	return NULL;
}

/* `attached`: the value when it is in the same word, else NULL. */
static int take_option(struct line *l, const struct opt *o, const char *attached, struct err *e)
{
	const char *value = attached;
	struct err why;
	int rc;

	if (o->type == OPT_FLAG && attached)
		return err_set(e, -EINVAL, "--%s takes no value", o->name);
	if (o->type != OPT_FLAG && !value) {
		if (l->at >= l->argc)
			return err_set(e, -EINVAL, "--%s wants a value: --%s %s", o->name, o->name, o->arg);
		value = l->argv[l->at++];
	}
	rc = set_value(o, l->args, value, &why);
	return rc ? err_set(e, rc, "--%s: %s", o->name, why.msg) : 0;
}

static int take_long(struct line *l, const char *word, struct err *e)
{
	size_t len = strcspn(word + 2, "=");
	const struct opt *o = find_long(l->in->cmd, word + 2, len);

	if (!o)
		return unknown_option(l->in->cmd, word, e);
	return take_option(l, o, word[2 + len] ? word + 2 + len + 1 : NULL, e);
}

/* "-q", "-m 1G", "-m1G". Flags do not bundle: there are not enough of them. */
static int take_short(struct line *l, const char *word, struct err *e)
{
	const struct opt *o = find_short(l->in->cmd, word[1]);

	if (!o || (o->type == OPT_FLAG && word[2]))
		return unknown_option(l->in->cmd, word, e);
	return take_option(l, o, word[2] ? word + 2 : NULL, e);
}

static int check_count(const struct invocation *in, struct err *e)
{
	const struct cmd *c = in->cmd;

	if (in->pos.count > c->max_pos)
		return err_set(e, -EINVAL, "'%s' is one word too many: brim %s%s%s",
			       in->pos.items[c->max_pos], c->name, *c->synopsis ? " " : "", c->synopsis);
	if (in->pos.count < c->min_pos)
		return err_set(e, -EINVAL, "something is missing: brim %s %s", c->name, c->synopsis);
	return 0;
}

/* Whether a VM of that name is there is not this file's business. */
static int check_names(const struct invocation *in, struct err *e)
{
	const struct cmd *c = in->cmd;
	size_t names = c->comp != COMP_VM ? 0 : c->size_follows ? 1 : in->pos.count;
	int rc = 0;

	for (size_t i = 0; i < names && !rc; i++)
		rc = vm_name_check(in->pos.items[i], e);
	return rc;
}

static int set_defaults(const struct cmd *c, void *args, struct err *e)
{
	int rc = 0;

	for (size_t i = 0; i < c->opt_count && !rc; i++)
		if (c->opts[i].def)
			rc = set_value(&c->opts[i], args, c->opts[i].def, e);
	return rc;
}

static int take_words(struct line *l, bool *help, struct err *e)
{
	bool options = true;
	int rc = 0;

	while (l->at < l->argc && !rc && !*help) {
		const char *word = l->argv[l->at++];

		if (!options || word[0] != '-' || word[1] == '\0')
			rc = list_add(&l->in->pos, word, e);
		else if (strcmp(word, "--") == 0)
			options = false;
		else if (strcmp(word, "--help") == 0 || strcmp(word, "-h") == 0)
			*help = true;
		else if (word[1] == '-')
			rc = take_long(l, word, e);
		else
			rc = take_short(l, word, e);
	}
	return rc;
}

/* "config chekc": the first word says what to do. */
static int check_verb(const struct invocation *in, struct err *e)
{
	const char *const *verbs = in->cmd->verbs;
	const char *word = in->pos.count ? in->pos.items[0] : "", *near;
	size_t n = 0;

	for (; verbs && verbs[n]; n++)
		if (strcmp(verbs[n], word) == 0)
			return 0;
	if (!verbs)
		return 0;
	near = nearest(word, verbs, n);
	return err_set(e, -EINVAL, "%s: unknown command '%s'%s%s%s", in->cmd->name, word,
		       near ? "; did you mean '" : "", near ? near : "", near ? "'?" : "");
}

int opt_parse(struct invocation *in, void *args, int argc, char **argv, bool *help, struct err *e)
{
	struct line l = { .in = in, .args = args, .argc = argc, .argv = argv };
	int rc;

	*help = false;
	rc = set_defaults(in->cmd, args, e);
	if (!rc)
		rc = take_words(&l, help, e);
	if (!rc && !*help)
		rc = check_count(in, e);
	if (!rc && !*help)
		rc = check_names(in, e);
	if (!rc && !*help)
		rc = check_verb(in, e);
	return rc;
}

void opt_fini(struct invocation *in, void *args)
{
	const struct cmd *c = in->cmd;

	for (size_t i = 0; i < c->opt_count; i++)
		if (c->opts[i].type == OPT_LIST)
			free(((struct text_list *)(void *)((char *)args + c->opts[i].at))->items);
	free(in->pos.items);
	in->pos = (struct text_list){ 0 };
}
