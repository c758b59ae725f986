/*
 * Text that grows, and bodies of answers.
 *
 * A body is counted, so that fifty clients who ask for the same snapshot are sent the
 * same bytes, however slowly each of them reads.
 *
 * Thread: the daemon's.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "host/api/internal.h"

static bool text_room(struct text *t, size_t more)
{
	size_t size = t->size ? t->size : 1024;
	char *data;

	if (t->failed || t->len + more <= t->size)
		return !t->failed;
	while (size < t->len + more)
		size *= 2;
	data = realloc(t->data, size);
	if (!data) {
		t->failed = true;
		return false;
	}
	t->data = data;
	t->size = size;
	return true;
}

void text_add(struct text *t, const char *s, size_t len)
{
	if (!text_room(t, len))
		return;
	memcpy(t->data + t->len, s, len);
	t->len += len;
}

void text_str(struct text *t, const char *s)
{
	text_add(t, s, strlen(s));
}

void text_u64(struct text *t, uint64_t v)
{
	char digits[20];
	size_t at = sizeof(digits);

	do
		digits[--at] = (char)('0' + v % 10);
	while (v /= 10);
	text_add(t, digits + at, sizeof(digits) - at);
}

void text_printf(struct text *t, const char *fmt, ...)
{
	char line[512];
	va_list ap;
	int n;

	va_start(ap, fmt);
	n = vsnprintf(line, sizeof(line), fmt, ap);
	va_end(ap);
	VERIFY(n >= 0 && (size_t)n < sizeof(line));
	text_add(t, line, (size_t)n);
}

void text_fini(struct text *t)
{
	free(t->data);
	*t = (struct text){ 0 };
}

static struct body *body_create(const char *data, size_t len, char *owned)
{
	struct body *b = malloc(sizeof(*b));

	if (!b) {
		free(owned);
		return NULL;
	}
	*b = (struct body){ .refs = 1, .len = len, .data = data, .owned = owned };
	return b;
}

struct body *body_of_text(struct text *t)
{
	struct text mine = *t;

	*t = (struct text){ 0 };
	if (!mine.failed)
		return body_create(mine.data, mine.len, mine.data);
	text_fini(&mine);
	return NULL;
}

struct body *body_of_json(json_t *j)
{
	struct text t = { 0 };

	t.data = j ? json_dumps(j, JSON_COMPACT | JSON_REAL_PRECISION(9)) : NULL;
	json_decref(j);
	if (!t.data)
		return NULL;
	t.len = strlen(t.data);
	t.size = t.len + 1;
	text_str(&t, "\n");
	return body_of_text(&t);
}

struct body *body_built_in(const char *data, size_t len)
{
	return body_create(data, len, NULL);
}

struct body *body_get(struct body *b)
{
	if (b)
		b->refs++;
	return b;
}

void body_put(struct body *b)
{
	if (!b)
		return;
	VERIFY(b->refs > 0);
	if (--b->refs > 0)
		return;
	free(b->owned);
	free(b);
}
