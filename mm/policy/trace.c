/*
 * Traces: JSON lines, of three kinds.
 *
 *   {"brim_trace":1,"host":{...},"end_ms":N}      once, first
 *   {"t_ms":N,"vm":"web","used_bytes":N,...}      from then on this VM's guest does so
 *   {"t_ms":N,"host":{...},"vms":[{...},...]}     views, as policy_trace_write() records them
 *
 * A recorded view becomes what the second kind says: of a VM that was measured, what its
 * guest used and how much of that was its working set.  So what other rules would have made
 * of that day can be tried, which the views alone, made under one rule, cannot tell.
 *
 * Files are the operator's: every line is checked and errors name it.
 */
#include "mm/policy/internal.h"

#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define LINE_MOST (256 * KiB)
#define EVENTS_MOST 1000000u

struct field {
	const char *name;
	size_t at;
};

#define VM(f) { #f, offsetof(struct policy_vm_view, f) }
#define HOST(f) { #f, offsetof(struct policy_host_view, f) }
#define DEMAND(f) { #f, offsetof(struct policy_demand, f) }

static const struct field host_fields[] = {
	HOST(physical_bytes), HOST(usable_bytes), HOST(reserve_bytes), HOST(available_bytes),
	HOST(store_bytes), HOST(overhead_bytes), HOST(psi_some_ppm), HOST(psi_full_ppm),
};

static const struct field vm_configured[] = {
	VM(memory_bytes), VM(reservation_bytes), VM(limit_bytes), VM(shares), VM(balloon_floor_bytes),
	VM(cpus),
};

static const struct field vm_measured[] = {
	VM(id), VM(limit_now_bytes), VM(balloon_target_bytes), VM(resident_bytes), VM(staged_bytes),
	VM(pool_bytes), VM(packed_bytes), VM(filled_bytes), VM(shared_bytes), VM(disk_bytes),
	VM(ballooned_bytes), VM(untouched_bytes), VM(overhead_bytes), VM(pass_ms), VM(passes),
	VM(refaults_staged), VM(refaults_packed), VM(refaults_stored), VM(refaults_disk), VM(stall_us),
};

static const struct field demand_fields[] = {
	DEMAND(used_bytes), DEMAND(working_set_bytes), DEMAND(says_bytes),
};

static const struct field vm_flags[] = { /* bool */
	VM(can_balloon), VM(can_pack), VM(can_disk), VM(can_share), VM(can_stop), VM(cold_known),
};

static uint64_t *number_at(void *base, const struct field *f)
{
	return (uint64_t *)(void *)((char *)base + f->at);
}

/* ---- writing ------------------------------------------------------------------------ */

static void put_numbers(json_t *o, const void *base, const struct field *f, size_t n)
{
	for (size_t i = 0; i < n; i++) {
		uint64_t v;

		memcpy(&v, (const char *)base + f[i].at, sizeof(v));
		json_object_set_new(o, f[i].name, json_integer((json_int_t)least(v, INT64_MAX)));
	}
}

static json_t *guest_json(const struct policy_guest *g)
{
	if (!g->known)
		return json_null();
	return json_pack("{s:I, s:I, s:I, s:I, s:I}", "age_ms", (json_int_t)least(g->age_ms, INT64_MAX),
			 "total_bytes", (json_int_t)least(g->total_bytes, INT64_MAX), "available_bytes",
			 (json_int_t)least(g->available_bytes, INT64_MAX), "swap_in_bytes",
			 (json_int_t)least(g->swap_in_bytes, INT64_MAX), "major_faults",
			 (json_int_t)least(g->major_faults, INT64_MAX));
}

static json_t *vm_json(const struct policy_vm_view *v)
{
	static const char *const runs[] = { "running", "paused", "stopped" };
	json_t *o = json_object(), *cold = json_array();

	json_object_set_new(o, "vm", json_string(v->name ? v->name : "?"));
	json_object_set_new(o, "run", json_string(runs[v->run <= POLICY_STOPPED ? v->run : 0]));
	put_numbers(o, v, vm_configured, ARRAY_LEN(vm_configured));
	put_numbers(o, v, vm_measured, ARRAY_LEN(vm_measured));
	for (size_t i = 0; i < ARRAY_LEN(vm_flags); i++) {
		bool b;

		memcpy(&b, (const char *)v + vm_flags[i].at, sizeof(b));
		json_object_set_new(o, vm_flags[i].name, json_boolean(b));
	}
	for (size_t i = 0; i < POLICY_COLDS; i++)
		json_array_append_new(cold, json_integer((json_int_t)least(v->cold_bytes[i], INT64_MAX)));
	json_object_set_new(o, "cold_bytes", cold);
	json_object_set_new(o, "guest", guest_json(&v->guest));
	return o;
}

int policy_trace_write(FILE *out, const struct policy_views *v)
{
	json_t *line = json_object(), *host = json_object(), *vms = json_array();
	int rc;

	put_numbers(host, v->host, host_fields, ARRAY_LEN(host_fields));
	for (size_t i = 0; i < v->n; i++)
		json_array_append_new(vms, vm_json(&v->vms[i]));
	json_object_set_new(line, "t_ms", json_integer((json_int_t)least(v->host->now_ms, INT64_MAX)));
	json_object_set_new(line, "host", host);
	json_object_set_new(line, "vms", vms);
	rc = json_dumpf(line, out, JSON_COMPACT);
	json_decref(line);
	return rc || fputc('\n', out) == EOF ? -EIO : 0;
}

/* ---- reading -------------------------------------------------------------------------- */

struct reader {
	struct policy_trace *t;
	const char *name;
	unsigned line;
	size_t room;
	bool headed;
	uint64_t first_ms; /* recorded traces begin at any time */
	struct err *e;
};

static int bad(struct reader *r, const char *what, const char *arg)
{
	return err_set(r->e, -EINVAL, "%s:%u: %s%s%s", r->name, r->line, what, *arg ? ": " : "", arg);
}

/* Sizes may be written as people do: "24G". */
static int number_of(struct reader *r, const char *key, const json_t *v, uint64_t *out)
{
	struct err e;

	if (json_is_string(v) && strstr(key, "_bytes")) {
		if (size_parse(json_string_value(v), out, &e))
			return bad(r, key, e.msg);
	} else if (json_is_integer(v) && json_integer_value(v) >= 0) {
		*out = (uint64_t)json_integer_value(v);
	} else {
		return bad(r, key, "a whole number, not below 0, was expected");
	}
	return 0;
}

static int get_numbers(struct reader *r, json_t *o, void *base, const struct field *f, size_t n)
{
	for (size_t i = 0; i < n; i++) {
		const json_t *v = json_object_get(o, f[i].name);
		int rc = v ? number_of(r, f[i].name, v, number_at(base, &f[i])) : 0;

		if (rc)
			return rc;
	}
	return 0;
}

static int get_flags(struct reader *r, json_t *o, struct policy_vm_view *v)
{
	for (size_t i = 0; i < ARRAY_LEN(vm_flags); i++) {
		const json_t *b = json_object_get(o, vm_flags[i].name);

		if (b && !json_is_boolean(b))
			return bad(r, vm_flags[i].name, "true or false was expected");
		if (b)
			*(bool *)(void *)((char *)v + vm_flags[i].at) = json_is_true(b);
	}
	return 0;
}

static int find_vm(struct reader *r, json_t *o, unsigned *index)
{
	const char *name = json_string_value(json_object_get(o, "vm"));
	struct policy_trace *t = r->t;
	struct policy_trace_vm *vm;

	if (!name || !*name || strlen(name) >= POLICY_NAME_BYTES)
		return bad(r, "vm", "a name was expected");
	for (*index = 0; *index < t->vms; (*index)++)
		if (strcmp(t->vm[*index].name, name) == 0)
			return 0;
	if (t->vms == POLICY_TRACE_VMS)
		return bad(r, "too many VMs", name);
	vm = &t->vm[t->vms++];
	snprintf(vm->name, sizeof(vm->name), "%s", name);
	vm->view = (struct policy_vm_view){ .id = t->vms, .name = vm->name, .shares = 1000, .cpus = 1,
					    .can_balloon = true, .can_pack = true, .can_disk = true,
					    .can_share = true, .can_stop = true };
	return 0;
}

static const struct policy_demand *last_demand(const struct policy_trace *t, unsigned vm)
{
	for (size_t i = t->events; i > 0; i--)
		if (t->event[i - 1].vm == vm)
			return &t->event[i - 1].demand;
	return NULL;
}

static int add_event(struct reader *r, const struct policy_event *ev)
{
	struct policy_trace *t = r->t;
	struct policy_event *more;

	if (t->events && ev->t_ms < t->event[t->events - 1].t_ms)
		return bad(r, "t_ms", "goes back in time");
	if (t->events == EVENTS_MOST)
		return bad(r, "too many lines", "");
	if (t->events == r->room) {
		r->room = r->room ? 2 * r->room : 256;
		more = realloc(t->event, r->room * sizeof(*more));
		if (!more)
			return -ENOMEM;
		t->event = more;
	}
	t->event[t->events++] = *ev;
	t->end_ms = most(t->end_ms, ev->t_ms);
	return 0;
}

static int check_vm(struct reader *r, const struct policy_vm_view *v)
{
	if (v->memory_bytes == 0 || v->memory_bytes > RAM_MAX_BYTES)
		return bad(r, v->name, "memory_bytes: 1 to 1T was expected");
	return 0;
}

static int event_line(struct reader *r, json_t *o, uint64_t t_ms)
{
	struct policy_event ev = { .t_ms = t_ms, .demand = { .says_bytes = UINT64_MAX } };
	const struct policy_demand *last;
	struct policy_vm_view *v;
	int rc = find_vm(r, o, &ev.vm);

	if (rc)
		return rc;
	v = &r->t->vm[ev.vm].view;
	last = last_demand(r->t, ev.vm);
	if (last)
		ev.demand = *last;
	rc = get_numbers(r, o, v, vm_configured, ARRAY_LEN(vm_configured));
	rc = rc ? rc : get_numbers(r, o, &ev.demand, demand_fields, ARRAY_LEN(demand_fields));
	rc = rc ? rc : get_flags(r, o, v);
	rc = rc ? rc : check_vm(r, v);
	if (rc)
		return rc;
	if (json_is_null(json_object_get(o, "says_bytes")))
		ev.demand.says_bytes = UINT64_MAX;
	if (json_object_get(o, "balloon_dead"))
		ev.demand.balloon_dead = json_is_true(json_object_get(o, "balloon_dead"));
	return add_event(r, &ev);
}

/* ---- recorded views ------------------------------------------------------------------------ */

static int get_cold(struct reader *r, const json_t *list, struct policy_vm_view *v)
{
	if (list && (!json_is_array(list) || json_array_size(list) != POLICY_COLDS))
		return bad(r, "cold_bytes", "six numbers were expected");
	for (size_t i = 0; list && i < POLICY_COLDS; i++) {
		int rc = number_of(r, "cold_bytes", json_array_get(list, i), &v->cold_bytes[i]);

		if (rc)
			return rc;
	}
	return 0;
}

/* What the guest used: what it touched, less what it has free. */
static void demand_of(const struct policy_vm_view *v, const json_t *guest, struct policy_demand *d)
{
	const json_t *available = json_object_get(guest, "available_bytes");
	uint64_t touched = less(v->memory_bytes, least(v->untouched_bytes, MOST_BYTES) +
						 least(v->ballooned_bytes, MOST_BYTES));
	uint64_t idle = v->cold_known ? v->cold_bytes[POLICY_COLDS - 1] : 0;

	d->used_bytes = touched;
	if (available && json_integer_value(available) >= 0)
		d->used_bytes = least(touched, less(v->memory_bytes, (uint64_t)json_integer_value(available)));
	d->working_set_bytes = least(d->used_bytes, less(v->resident_bytes, idle));
	d->says_bytes = UINT64_MAX;
}

static int view_vm(struct reader *r, json_t *o, uint64_t t_ms)
{
	struct policy_event ev = { .t_ms = t_ms };
	struct policy_vm_view *v;
	int rc = find_vm(r, o, &ev.vm);

	if (rc)
		return rc;
	v = &r->t->vm[ev.vm].view;
	rc = get_numbers(r, o, v, vm_configured, ARRAY_LEN(vm_configured));
	rc = rc ? rc : get_numbers(r, o, v, vm_measured, ARRAY_LEN(vm_measured));
	rc = rc ? rc : get_flags(r, o, v);
	rc = rc ? rc : get_cold(r, json_object_get(o, "cold_bytes"), v);
	rc = rc ? rc : check_vm(r, v);
	if (rc)
		return rc;
	demand_of(v, json_object_get(o, "guest"), &ev.demand);
	return add_event(r, &ev);
}

static int views_line(struct reader *r, json_t *o, uint64_t t_ms)
{
	json_t *vm, *host = json_object_get(o, "host");
	size_t i;
	int rc = 0;

	if (!r->headed) {
		rc = get_numbers(r, host, &r->t->host, host_fields, ARRAY_LEN(host_fields));
		r->headed = true;
		r->first_ms = t_ms;
	}
	if (t_ms < r->first_ms)
		return bad(r, "t_ms", "goes back in time");
	json_array_foreach(json_object_get(o, "vms"), i, vm) {
		if (!rc)
			rc = view_vm(r, vm, t_ms - r->first_ms);
	}
	return rc;
}

static int header_line(struct reader *r, json_t *o)
{
	const struct field end = { "end_ms", offsetof(struct policy_trace, end_ms) };

	if (json_integer_value(json_object_get(o, "brim_trace")) != 1)
		return bad(r, "brim_trace", "1 was expected: this brim reads no other");
	if (r->headed)
		return bad(r, "brim_trace", "comes once, first");
	r->headed = true;
	return get_numbers(r, json_object_get(o, "host"), &r->t->host, host_fields, ARRAY_LEN(host_fields)) ?:
	       get_numbers(r, o, r->t, &end, 1);
}

static int one_line(struct reader *r, json_t *o)
{
	const json_t *t = json_object_get(o, "t_ms");
	uint64_t t_ms = 0;
	int rc;

	if (!json_is_object(o))
		return bad(r, "an object was expected", "");
	if (json_object_get(o, "brim_trace"))
		return header_line(r, o);
	rc = t ? number_of(r, "t_ms", t, &t_ms) : bad(r, "t_ms", "is missing");
	if (rc)
		return rc;
	if (json_object_get(o, "vms"))
		return views_line(r, o, t_ms);
	return r->headed ? event_line(r, o, t_ms) : bad(r, "brim_trace", "the first line is missing");
}

static int read_line(struct reader *r, const char *text)
{
	json_error_t why;
	json_t *o;
	int rc;

	if (text[strspn(text, " \t\r\n")] == 0)
		return 0;
	o = json_loads(text, JSON_REJECT_DUPLICATES, &why);
	if (!o)
		return bad(r, "not JSON", why.text);
	rc = one_line(r, o);
	json_decref(o);
	return rc;
}

static int check_host(struct reader *r)
{
	struct policy_host_view *h = &r->t->host;

	if (h->usable_bytes == 0)
		h->usable_bytes = less(h->physical_bytes, h->reserve_bytes);
	if (h->physical_bytes == 0 || h->physical_bytes > MOST_BYTES || h->usable_bytes == 0)
		return err_set(r->e, -EINVAL, "%s: host: physical_bytes is missing, or not 1 to 1024T", r->name);
	if (r->t->events == 0)
		return err_set(r->e, -EINVAL, "%s: no VM in it", r->name);
	if (r->t->end_ms > 1000 * HOUR_MS)
		return err_set(r->e, -EINVAL, "%s: ends after more than 1000 hours", r->name);
	return 0;
}

int policy_trace_read(struct policy_trace **out, FILE *in, const char *name, struct err *e)
{
	struct reader r = { .name = name, .e = e, .t = calloc(1, sizeof(*r.t)) };
	char *text = NULL;
	size_t size = 0;
	int rc = 0;

	if (!r.t)
		return err_set(e, -ENOMEM, "%s: no memory", name);
	while (rc == 0 && getline(&text, &size, in) > 0) {
		r.line++;
		rc = strlen(text) > LINE_MOST ? bad(&r, "a line is too long", "") : read_line(&r, text);
	}
	free(text);
	rc = rc ? rc : ferror(in) ? err_set(e, -EIO, "%s: cannot be read", name) : check_host(&r);
	if (rc == -ENOMEM)
		err_set(e, rc, "%s: no memory", name);
	if (rc)
		policy_trace_destroy(&r.t);
	else
		*out = r.t;
	return rc;
}

void policy_trace_destroy(struct policy_trace **t)
{
	if (*t)
		free((*t)->event);
	free(*t);
	*t = NULL;
}
