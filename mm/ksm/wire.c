/*
 * The messages of wire.h: sizes, and what makes one sound.
 *
 * Threads: any; no state.
 */
#include "mm/ksm/wire.h"

#include <errno.h>
#include <string.h>

struct shape {
	enum wire_from from;
	uint16_t entry_bytes;
	uint16_t least, most; /* entries; most 0: as many as fit */
	bool has_turn;
};

static const struct shape shapes[] = {
	[WIRE_HELLO] = { WIRE_FROM_VM, sizeof(struct wire_hello), 1, 1, false },
	[WIRE_HOLD] = { WIRE_FROM_VM, sizeof(struct wire_store_page), 0, 0, false },
	[WIRE_LOOKUP] = { WIRE_FROM_VM, sizeof(struct wire_page), 1, 0, true },
	[WIRE_CONTENT] = { WIRE_FROM_VM, sizeof(struct wire_content), 1, 0, true },
	[WIRE_RELEASE] = { WIRE_FROM_VM, sizeof(struct wire_store_page), 1, 0, true },
	[WIRE_WELCOME] = { WIRE_FROM_HOST, sizeof(struct wire_welcome), 1, 1, false },
	[WIRE_REFUSED] = { WIRE_FROM_HOST, sizeof(struct wire_refused), 1, 1, false },
	[WIRE_ANSWER] = { WIRE_FROM_HOST, sizeof(struct wire_answer), 1, 0, true },
	[WIRE_OFFER] = { WIRE_FROM_HOST, sizeof(struct wire_offer), 1, 0, false },
	/* No entries, ever: an entry of a message's size does not fit. */
	[WIRE_RELEASED] = { WIRE_FROM_HOST, UINT16_MAX, 0, 0, true },
	[WIRE_RECALL] = { WIRE_FROM_HOST, sizeof(struct wire_store_page), 1, 0, false },
	[WIRE_FORGET] = { WIRE_FROM_HOST, UINT16_MAX, 0, 0, false },
};

static const struct shape *shape_of(unsigned type)
{
	return type < ARRAY_LEN(shapes) && shapes[type].entry_bytes ? &shapes[type] : NULL;
}

size_t wire_entry_bytes(enum wire_type t)
{
	return shapes[t].entry_bytes;
}

size_t wire_entries_max(enum wire_type t)
{
	size_t fit = (WIRE_BYTES_MAX - sizeof(struct wire_head)) / shapes[t].entry_bytes;

	return shapes[t].most ? shapes[t].most : fit;
}

size_t wire_finish(struct wire_head *h, enum wire_type t, unsigned count, uint32_t turn)
{
	size_t bytes = sizeof(*h) + count * wire_entry_bytes(t);

	VERIFY(count >= shapes[t].least && count <= wire_entries_max(t));
	*h = (struct wire_head){ .magic = WIRE_MAGIC, .version = WIRE_VERSION,
				 .type = (uint8_t)t, .count = (uint16_t)count,
				 .bytes = (uint32_t)bytes, .turn = turn };
	return bytes;
}

static bool is_name(const char *name, bool may_be_empty)
{
	size_t len = strnlen(name, WIRE_NAME_MAX);

	for (size_t i = 0; i < len; i++)
		if (name[i] <= ' ' || name[i] > '~')
			return false;
	for (size_t i = len; i < WIRE_NAME_MAX; i++)
		if (name[i])
			return false;
	return len < WIRE_NAME_MAX && (len > 0 || may_be_empty);
}

static const char *check_hello(const struct wire_hello *h)
{
	if (!is_name(h->vm, false) || !is_name(h->group, false))
		return "a name is empty, too long or not printable";
	if (h->pages == 0 || h->pages > RAM_MAX_BYTES >> PAGE_SHIFT)
		return "the VM's pages are none or too many";
	if (h->has_store > 1 || !h->has_store != !h->store_id)
		return "its store is not whole";
	return NULL;
}

static const char *check_entry(unsigned type, const void *entry)
{
	const struct wire_answer *a = entry;

	switch (type) {
	case WIRE_HELLO:
		return check_hello(entry);
	case WIRE_WELCOME:
		return ((const struct wire_welcome *)entry)->zero ? "not zero" : NULL;
	case WIRE_REFUSED:
		return memchr(entry, 0, sizeof(struct wire_refused)) ? NULL : "text without an end";
	case WIRE_LOOKUP:
	case WIRE_CONTENT:
		return ((const struct wire_page *)entry)->zero ? "not zero" : NULL;
	case WIRE_ANSWER:
		if (a->zero || a->kind > WIRE_LATER)
			return "no such kind of answer";
		return (a->kind == WIRE_SAME) != (a->store_page != 0) ? "a store page amiss" : NULL;
	default:
		return NULL;
	}
}

static const char *check(const struct wire_head *h, size_t len, enum wire_from from)
{
	const uint8_t *entry = wire_entries(h);
	const struct shape *s;

	if (len < sizeof(*h) || len > WIRE_BYTES_MAX || h->bytes != len)
		return "wrong length";
	if (h->magic != WIRE_MAGIC)
		return "not a message of brim";
	if (h->version != WIRE_VERSION)
		return "another version";
	s = shape_of(h->type);
	if (!s || s->from != from)
		return "no such type from there";
	if (len != sizeof(*h) + (size_t)h->count * s->entry_bytes || h->count < s->least ||
	    (s->most && h->count > s->most))
		return "wrong number of entries";
	if (h->turn && !s->has_turn)
		return "a turn it cannot have";
	for (unsigned i = 0; i < h->count; i++, entry += s->entry_bytes) {
		const char *why = check_entry(h->type, entry);

		if (why)
			return why;
	}
	return NULL;
}

int wire_check(const void *msg, size_t len, enum wire_from from, const char **why)
{
	*why = len < sizeof(struct wire_head) ? "wrong length" : check(msg, len, from);
	return *why ? -EPROTO : 0;
}
