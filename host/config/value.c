/*
 * One scalar against its row.  Every refusal says what was written, and what is expected.
 *
 * One thread; no state.  A field is written only when its value is right.
 */
#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <net/if.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "host/config/internal.h"
#include "vmm/client.h"

#define SERIAL_MAX 20 /* of virtio-blk */
#define PPM_OF_PCT 10000

/* ---- refusing ------------------------------------------------------------------------- */

static int refuse(struct load *l, const struct value_at *at, const char *what)
{
	char expected[256];

	key_expected(at->key, expected, sizeof(expected));
	return error_add(&l->errs, &at->place, "%s, expected %s", what, expected);
}

static int refuse_text(struct load *l, const struct value_at *at, const char *text, const char *why)
{
	char what[256];

	snprintf(what, sizeof(what), "'%.80s%s' %s", text, strlen(text) > 80 ? "..." : "", why);
	return refuse(l, at, what);
}

/* ---- numbers ------------------------------------------------------------------------------ */

static void store(const struct config_key *k, uint64_t n, void *field)
{
	switch (k->bytes) {
	case sizeof(uint8_t):
		*(uint8_t *)field = (uint8_t)n;
		return;
	case sizeof(uint32_t):
		*(uint32_t *)field = (uint32_t)n;
		return;
	default:
		VERIFY(k->bytes == sizeof(uint64_t));
		*(uint64_t *)field = n;
	}
}

static int store_in_range(struct load *l, const struct value_at *at, const char *text, uint64_t n,
			  void *field)
{
	if (n < at->key->min)
		return refuse_text(l, at, text, at->key->type == KEY_SIZE && !text[strspn(text, "0123456789")]
				   ? "is too little (is a unit missing?)" : "is too little");
	if (n > at->key->max)
		return refuse_text(l, at, text, "is too much");
	store(at->key, n, field);
	return 0;
}

/* "12.5%"; -ENOENT: it does not end in '%'. */
static int percent_parse(const char *text, double *pct)
{
	size_t n = strlen(text);
	char *end;

	if (n == 0 || text[n - 1] != '%')
		return -ENOENT;
	if (!isdigit((unsigned char)text[0]) || strpbrk(text, "xX"))
		return -EINVAL;
	*pct = strtod(text, &end);
	while (*end == ' ')
		end++;
	return end == text + n - 1 ? 0 : -EINVAL;
}

/* Down to whole MiB, so that it is a number people can read; what is less stays. */
static uint64_t part_of(uint64_t whole, double pct)
{
	long double n = (long double)whole * (long double)pct / 100;
	uint64_t bytes = n < 0x1p63L ? (uint64_t)n : INT64_MAX;

	return bytes >= MiB ? bytes / MiB * MiB : bytes;
}

static int read_size(struct load *l, const struct value_at *at, const char *text, void *field)
{
	const struct config_key *k = at->key;
	double pct = 0;
	int rc = percent_parse(text, &pct);
	uint64_t n = 0;
	struct err e;

	if (rc == -EINVAL || (!rc && k->percent == PERCENT_NONE))
		return refuse_text(l, at, text, "is a percentage of nothing");
	if (!rc && pct > 100)
		return refuse_text(l, at, text, "is more than all of it");
	if (!rc) {
		n = part_of(k->percent == PERCENT_MEMORY ? at->scope->memory_bytes
							 : l->env.physical_bytes, pct);
	} else if (size_parse(text, &n, &e)) {
		e.msg[200] = '\0';
		return refuse(l, at, e.msg);
	}
	return store_in_range(l, at, text, n, field);
}

static int read_time(struct load *l, const struct value_at *at, const char *text, void *field)
{
	uint64_t ns = 0;
	int rc = time_parse(text, &ns);

	if (rc)
		return refuse_text(l, at, text, rc == -ERANGE ? "is too much" : "is not a time");
	if (ns % at->key->unit)
		return refuse_text(l, at, text, at->key->unit == 1000000 ? "has a fraction of a millisecond"
								: "has a fraction of a second");
	return store_in_range(l, at, text, ns / at->key->unit, field);
}

static int read_uint(struct load *l, const struct value_at *at, const char *text, void *field)
{
	char *end;
	uint64_t n;

	errno = 0;
	n = strtoull(text, &end, 10);
	if (!isdigit((unsigned char)text[0]) || *end || errno)
		return refuse_text(l, at, text, "is not a whole number");
	return store_in_range(l, at, text, n, field);
}

static int read_pct(struct load *l, const struct value_at *at, const char *text, void *field)
{
	char with_sign[64];
	double pct = 0, ppm;

	snprintf(with_sign, sizeof(with_sign), "%s%%", text);
	if (percent_parse(text, &pct) &&
	    (strlen(text) + 2 > sizeof(with_sign) || percent_parse(with_sign, &pct)))
		return refuse_text(l, at, text, "is not a percentage");
	if (pct > 1e9)
		return refuse_text(l, at, text, "is too much");
	ppm = pct * PPM_OF_PCT;
	if ((double)(uint64_t)(ppm + 0.5) - ppm > 1e-6 || ppm - (double)(uint64_t)(ppm + 0.5) > 1e-6 ||
	    (uint64_t)(ppm + 0.5) % at->key->unit)
		return refuse_text(l, at, text, "is finer than can be kept");
	return store_in_range(l, at, text, (uint64_t)(ppm + 0.5) / at->key->unit, field);
}

/* YAML 1.1 has all of these, and people write all of these. */
static int read_bool(struct load *l, const struct value_at *at, const char *text, void *field)
{
	static const char *const names[] = { "off", "on", "no", "yes", "false", "true" };

	for (size_t i = 0; i < ARRAY_LEN(names); i++)
		if (strcasecmp(text, names[i]) == 0) {
			store(at->key, i % 2, field);
			return 0;
		}
	return refuse_text(l, at, text, "is neither");
}

static int read_choice(struct load *l, const struct value_at *at, const char *text, void *field)
{
	for (uint64_t i = at->key->min; at->key->choices[i]; i++)
		if (strcmp(at->key->choices[i], text) == 0) {
			store(at->key, i, field);
			return 0;
		}
	return refuse_text(l, at, text, "is none of them");
}

/* ---- texts ---------------------------------------------------------------------------------- */

/* "/a//b/./c/" to "/a/b/c", so that one file has one name; ".." is the file system's. */
static void tidy(char *path)
{
	char *to = path;

	for (const char *p = path; *p;) {
		size_t n = strcspn(p + 1, "/") + 1; /* a slash and a name */

		if (n > 1 && !(n == 2 && p[1] == '.')) {
			memmove(to, p, n);
			to += n;
		}
		p += n;
	}
	if (to == path)
		*to++ = '/';
	*to = '\0';
}

static const char *absolute(struct load *l, const char *text)
{
	size_t size = strlen(l->dir) + 1 + strlen(text) + 1;
	char *path = arena_alloc(l->arena, size);

	l->errs.out_of_memory |= !path;
	if (!path)
		return NULL;
	snprintf(path, size, "%s%s%s", text[0] == '/' ? "" : l->dir, text[0] == '/' ? "" : "/", text);
	tidy(path);
	return path;
}

/* How many bytes follow this one, -1: it begins no character. */
static int utf8_more(unsigned char first)
{
	if (first < 0x80)
		return 0;
	if (first < 0xc2 || first > 0xf4)
		return -1;
	return first < 0xe0 ? 1 : first < 0xf0 ? 2 : 3;
}

/* The second byte: no long forms, no surrogates, nothing above U+10FFFF. */
static bool utf8_second_ok(unsigned char first, unsigned char second)
{
	unsigned least = first == 0xe0 ? 0xa0 : first == 0xf0 ? 0x90 : 0x80;
	unsigned most = first == 0xed ? 0x9f : first == 0xf4 ? 0x8f : 0xbf;

	return second >= least && second <= most;
}

static bool is_utf8(const char *text)
{
	for (const unsigned char *p = (const unsigned char *)text; *p; p++) {
		unsigned char first = *p;
		int more = utf8_more(first);

		if (more < 0 || (more && !utf8_second_ok(first, p[1])))
			return false;
		for (; more > 0; more--)
			if ((*++p & 0xc0) != 0x80)
				return false;
	}
	return true;
}

static bool is_tap(const char *text)
{
	return *text && strlen(text) < IFNAMSIZ && !strchr(text, '/') && !strchr(text, ' ');
}

/* What is wrong with it, NULL when nothing is. */
static const char *text_wrong(const struct config_key *k, const char *text)
{
	uint8_t mac[6];

	switch (k->type) {
	case KEY_NAME:
		return vm_name_check(text, NULL) ? "is not a name" : NULL;
	case KEY_TAP:
		return is_tap(text) ? NULL : "is not an interface's name";
	case KEY_MAC:
		return vm_mac_parse(text, mac) ? "is not such an address" : NULL;
	case KEY_SERIAL:
		return *text && strlen(text) <= SERIAL_MAX ? NULL : "is empty or too long";
	case KEY_PATH:
		return !*text ? "is empty" : strlen(text) >= PATH_MAX ? "is too long" : NULL;
	default:
		return strlen(text) >= VM_CMDLINE_MAX ? "is too long" : NULL;
	}
}

static int read_text(struct load *l, const struct value_at *at, const char *text, void *field)
{
	const char *why, *full = text_expand(l, at, text);

	if (!full)
		return -EINVAL;
	if (!is_utf8(full)) /* only a variable's value can be that */
		return refuse(l, at, "not valid UTF-8");
	why = text_wrong(at->key, full);
	if (why)
		return refuse_text(l, at, full, why);
	if (at->key->type == KEY_PATH) {
		full = absolute(l, full);
		if (full && strlen(full) >= PATH_MAX)
			return refuse_text(l, at, full, "is too long");
	}
	*(const char **)field = full;
	return full ? 0 : -ENOMEM;
}

/* ---- all of them -------------------------------------------------------------------------------- */

static int read_scalar(struct load *l, const struct value_at *at, const char *text, void *field)
{
	const struct config_key *k = at->key;

	if (k->zero && strcmp(text, k->zero) == 0) {
		store(k, 0, field);
		return 0;
	}
	switch (k->type) {
	case KEY_SIZE:
		return read_size(l, at, text, field);
	case KEY_TIME:
		return read_time(l, at, text, field);
	case KEY_UINT:
		return read_uint(l, at, text, field);
	case KEY_PCT:
		return read_pct(l, at, text, field);
	case KEY_BOOL:
		return read_bool(l, at, text, field);
	case KEY_CHOICE:
		return read_choice(l, at, text, field);
	default:
		return read_text(l, at, text, field);
	}
}

static bool is_null(const struct node *n)
{
	return n->is_plain && (!*n->text || strcmp(n->text, "~") == 0 || strcmp(n->text, "null") == 0);
}

int value_read(struct load *l, const struct value_at *at, const struct node *n, void *field)
{
	if (n->kind == NODE_LIST)
		return refuse(l, at, "a list");
	if (n->kind == NODE_MAP)
		return refuse(l, at, "a mapping with keys of its own");
	if (is_null(n))
		return refuse(l, at, "there is no value");
	return read_scalar(l, at, n->text, field);
}

void value_default(struct load *l, const struct value_at *at, void *field)
{
	if (at->key->def)
		VERIFY(read_scalar(l, at, at->key->def, field) == 0 || l->errs.out_of_memory);
}
