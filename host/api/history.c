/*
 * The last hour of the host, a sample each sample_s: a ring of fixed size.
 *
 * Thread: the daemon's.
 */
#include <stdio.h>
#include <string.h>

#include "host/api/internal.h"

static const struct {
	const char *name;
	bool is_saved; /* in "saved" of the host */
} columns[HISTORY_COLUMNS] = {
	[HISTORY_ASSIGNED] = { "assigned_bytes", false },
	[HISTORY_USABLE] = { "usable_bytes", false },
	[HISTORY_IN_USE] = { "in_use_bytes", false },
	[HISTORY_AVAILABLE] = { "available_bytes", false },
	[HISTORY_FILLED] = { "filled_bytes", true },
	[HISTORY_SHARED] = { "shared_bytes", true },
	[HISTORY_PACKED] = { "packed_bytes", true },
	[HISTORY_DISK] = { "disk_bytes", true },
	[HISTORY_BALLOONED] = { "ballooned_bytes", true },
	[HISTORY_UNTOUCHED] = { "untouched_bytes", true },
};

static uint64_t bytes_of(const json_t *j)
{
	json_int_t v = json_integer_value(j);

	return v > 0 ? (uint64_t)v : 0;
}

void history_add(struct history *h, const json_t *host, uint64_t time_s)
{
	struct sample *s = &h->samples[h->head];
	const json_t *saved = json_object_get(host, "saved");
	const char *state = json_string_value(json_object_get(host, "state"));

	*s = (struct sample){ .time_s = time_s };
	for (size_t i = 0; i < HISTORY_COLUMNS; i++)
		s->bytes[i] = bytes_of(json_object_get(columns[i].is_saved ? saved : host,
						       columns[i].name));
	s->psi_some_pct = json_number_value(json_object_get(host, "psi_some_pct"));
	s->psi_full_pct = json_number_value(json_object_get(host, "psi_full_pct"));
	snprintf(s->state, sizeof(s->state), "%s", state ? state : "");
	h->head = (h->head + 1) % HISTORY_SAMPLES;
	if (h->count < HISTORY_SAMPLES)
		h->count++;
}

static void head_text(struct text *t, unsigned step_s)
{
	text_printf(t, "{\"v\":%d,\"step_s\":%u,\"columns\":[\"time_s\"", API_VERSION, step_s);
	for (size_t i = 0; i < HISTORY_COLUMNS; i++)
		text_printf(t, ",\"%s\"", columns[i].name);
	text_str(t, ",\"psi_some_pct\",\"psi_full_pct\",\"state\"],\"samples\":[");
}

/* The state is the daemon's word, and yet: only what needs no escaping. */
static void state_text(struct text *t, const char *state)
{
	text_str(t, ",\"");
	for (; *state; state++)
		if (*state >= 'a' && *state <= 'z')
			text_add(t, state, 1);
	text_str(t, "\"]");
}

static void sample_text(struct text *t, const struct sample *s, bool is_first)
{
	text_str(t, is_first ? "[" : ",[");
	text_u64(t, s->time_s);
	for (size_t i = 0; i < HISTORY_COLUMNS; i++) {
		text_str(t, ",");
		text_u64(t, s->bytes[i]);
	}
	text_printf(t, ",%.6g,%.6g", s->psi_some_pct, s->psi_full_pct);
	state_text(t, s->state);
}

struct body *history_body(const struct history *h, uint64_t since_s, unsigned step_s)
{
	unsigned first = (h->head + HISTORY_SAMPLES - h->count) % HISTORY_SAMPLES;
	struct text t = { 0 };
	bool is_first = true;

	head_text(&t, step_s);
	for (unsigned i = 0; i < h->count; i++) {
		const struct sample *s = &h->samples[(first + i) % HISTORY_SAMPLES];

		if (s->time_s <= since_s)
			continue;
		sample_text(&t, s, is_first);
		is_first = false;
	}
	text_str(&t, "]}\n");
	return body_of_text(&t);
}
