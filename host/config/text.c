/*
 * Values as people and programs read them, and ${VARIABLES} in what people wrote.
 * One thread; no state.
 */
#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "host/config/internal.h"

#define NAME_MAX_CHARS 64
#define TEXT_MAX (2 * PATH_MAX)

/* ---- fields -------------------------------------------------------------------------- */

uint64_t field_number(const struct config_key *k, const void *field)
{
	switch (k->bytes) {
	case sizeof(uint8_t):
		return *(const uint8_t *)field;
	case sizeof(uint32_t):
		return *(const uint32_t *)field;
	default:
		VERIFY(k->bytes == sizeof(uint64_t));
		return *(const uint64_t *)field;
	}
}

bool key_is_text(const struct config_key *k)
{
	return k->type == KEY_TEXT || k->type == KEY_PATH || k->type == KEY_NAME ||
	       k->type == KEY_TAP || k->type == KEY_MAC || k->type == KEY_SERIAL;
}

/* ---- for people ------------------------------------------------------------------------ */

/* The largest unit that leaves no fraction, so that it reads back as it is. */
const char *size_exact(char *buf, size_t len, uint64_t n)
{
	static const char units[] = "KMGT";
	int u = -1;

	while (n && n % 1024 == 0 && u < 3) {
		n /= 1024;
		u++;
	}
	snprintf(buf, len, u < 0 ? "%" PRIu64 : "%" PRIu64 "%c", n, u < 0 ? 0 : units[u]);
	return buf;
}

static const struct {
	const char *name;
	uint64_t ns;
} time_units[] = {
	{ "d", 86400000000000 }, { "h", 3600000000000 }, { "m", 60000000000 }, { "s", 1000000000 },
	{ "ms", 1000000 }, { "us", 1000 }, { "ns", 1 },
};

static void format_time(uint64_t ns, char *buf, size_t len)
{
	size_t i = 0;

	while (i + 1 < ARRAY_LEN(time_units) && ns % time_units[i].ns)
		i++;
	if (ns)
		snprintf(buf, len, "%" PRIu64 "%s", ns / time_units[i].ns, time_units[i].name);
	else
		snprintf(buf, len, "0s");
}

static void format_number(const struct config_key *k, uint64_t n, char *buf, size_t len)
{
	switch (k->type) {
	case KEY_SIZE:
		size_exact(buf, len, n);
		return;
	case KEY_TIME:
		format_time(n * k->unit, buf, len);
		return;
	case KEY_PCT:
		snprintf(buf, len, "%.10g%%", (double)(n * k->unit) / 10000);
		return;
	case KEY_BOOL:
		snprintf(buf, len, "%s", n ? "on" : "off");
		return;
	case KEY_CHOICE:
		snprintf(buf, len, "%s", k->choices[n]);
		return;
	default:
		snprintf(buf, len, "%" PRIu64, n);
	}
}

const char *value_format(const struct config_key *k, const void *field, char *buf, size_t len)
{
	uint64_t n;

	if (key_is_text(k)) {
		const char *text = *(const char *const *)field;

		snprintf(buf, len, "%s", text ? text : "");
		return buf;
	}
	n = field_number(k, field);
	if (!n && k->zero)
		snprintf(buf, len, "%s", k->zero);
	else
		format_number(k, n, buf, len);
	return buf;
}

/* ---- for programs ------------------------------------------------------------------------ */

json_t *value_json(const struct config_key *k, const void *field)
{
	const char *text;

	if (key_is_text(k)) {
		text = *(const char *const *)field;
		return text ? json_string(text) : json_null();
	}
	if (k->type == KEY_BOOL)
		return json_boolean(field_number(k, field));
	if (k->type == KEY_CHOICE)
		return json_string(k->choices[field_number(k, field)]);
	return json_integer((json_int_t)field_number(k, field));
}

/* ---- times ----------------------------------------------------------------------------------- */

int time_parse(const char *text, uint64_t *ns)
{
	const char *unit;
	long double v;
	char *end;

	if (!isdigit((unsigned char)text[0]) || strpbrk(text, "xX"))
		return -EINVAL;
	v = strtold(text, &end);
	unit = end + strspn(end, " ");
	for (size_t i = 0; i < ARRAY_LEN(time_units); i++)
		if (strcmp(*unit ? unit : "s", time_units[i].name) == 0) {
			v *= time_units[i].ns;
			if (!(v < 0x1p63L))
				return -ERANGE;
			*ns = (uint64_t)llroundl(v);
			return 0;
		}
	return -EINVAL;
}

/* ---- variables --------------------------------------------------------------------------------- */

struct expansion {
	struct load *l;
	const struct value_at *at;
	char out[TEXT_MAX];
	size_t used;
};

static int put(struct expansion *x, const char *text, size_t len)
{
	if (len >= sizeof(x->out) - x->used)
		return error_add(&x->l->errs, &x->at->place, "longer than %zu characters with its variables, "
				 "expected less", sizeof(x->out) - 1);
	memcpy(x->out + x->used, text, len);
	x->used += len;
	x->out[x->used] = '\0';
	return 0;
}

/* name and n are the VM's; the rest is the environment's. */
static const char *look_up(struct expansion *x, const char *name, char number[16])
{
	const struct scope *s = x->at->scope;
	const struct host_config_env *env = &x->l->env;

	if (strcmp(name, "name") == 0)
		return s->vm_name;
	if (strcmp(name, "n") == 0) {
		snprintf(number, 16, "%u", s->vm_number);
		return s->vm_number ? number : NULL;
	}
	return env->variable ? env->variable(env->ctx, name) : getenv(name);
}

static int unknown(struct expansion *x, const char *name)
{
	const char *why = "is not set in the environment, expected it there, or ${NAME:-VALUE}";

	if (strcmp(name, "name") == 0)
		why = "is a VM's name, expected one of the environment here";
	if (strcmp(name, "n") == 0)
		why = "is the number of a VM that has a `count`, expected that";
	return error_add(&x->l->errs, &x->at->place, "${%s} %s", name, why);
}

/* "NAME}" or "NAME:-VALUE}", *text behind its "${". */
static int put_variable(struct expansion *x, const char **text)
{
	const char *p = *text, *end = strchr(p, '}'), *value;
	size_t n = strspn(p, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz_0123456789");
	char name[NAME_MAX_CHARS], number[16];
	bool has_default = strncmp(p + n, ":-", 2) == 0;

	if (!end || n == 0 || n >= sizeof(name) || (!has_default && p + n != end))
		return error_add(&x->l->errs, &x->at->place, "'${%.60s' is not a variable, expected ${NAME} "
				 "or ${NAME:-VALUE}; $${ stands for ${", p);
	snprintf(name, sizeof(name), "%.*s", (int)n, p);
	*text = end + 1;
	value = look_up(x, name, number);
	if (value && (*value || !has_default))
		return put(x, value, strlen(value));
	return has_default ? put(x, p + n + 2, (size_t)(end - p) - n - 2) : unknown(x, name);
}

const char *text_expand(struct load *l, const struct value_at *at, const char *text)
{
	struct expansion x = { .l = l, .at = at };
	int rc = 0;

	while (*text && !rc) {
		bool is_escaped = strncmp(text, "$${", 3) == 0;

		if (!is_escaped && strncmp(text, "${", 2) == 0) {
			text += 2;
			rc = put_variable(&x, &text);
			continue;
		}
		rc = put(&x, text + is_escaped, is_escaped ? 2 : 1);
		text += is_escaped ? 3 : 1;
	}
	if (rc)
		return NULL;
	text = arena_text(l->arena, x.out, x.used);
	l->errs.out_of_memory |= !text;
	return text;
}
