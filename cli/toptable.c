/*
 * What `brim top` says of a VM: one row a column, from which the screen, batch output,
 * sorting and the help come.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "cli/top.h"

/* ---- values ---------------------------------------------------------------------------- */

static double gauge(const struct top_vm *vm, enum gauge g)
{
	return vm->has_view && vm->now.gauge[g] != GAUGE_UNKNOWN ? (double)vm->now.gauge[g] : NAN;
}

#define GAUGE_VALUE(name) \
	static double name(const struct top_vm *vm) { return gauge(vm, GAUGE_##name##_bytes); }
GAUGE_VALUE(memory)
GAUGE_VALUE(working_set)
GAUGE_VALUE(resident)
GAUGE_VALUE(packed)
GAUGE_VALUE(disk)
GAUGE_VALUE(ballooned)
GAUGE_VALUE(untouched)
#undef GAUGE_VALUE

static double shared(const struct top_vm *vm)
{
	return vm->has_view ? (double)vm_shared_bytes(&vm->now) : NAN;
}

/* Nothing packed has no ratio. */
static double ratio(const struct top_vm *vm)
{
	double pool = gauge(vm, GAUGE_pool_bytes), all = packed(vm);

	return pool > 0 && all > 0 ? all / pool : NAN;
}

static double limit(const struct top_vm *vm)
{
	double bytes = gauge(vm, GAUGE_limit_bytes);

	return bytes > 0 ? bytes : NAN;
}

static double refaults(const struct top_vm *vm)
{
	return vm->has_rates ? vm->rates.refaults_per_s : NAN;
}

static double p99(const struct top_vm *vm)
{
	return vm->has_rates && vm->rates.fault_p99_ns ? (double)vm->rates.fault_p99_ns : NAN;
}

static double stall(const struct top_vm *vm)
{
	return vm->has_rates ? vm->rates.stall_pct : NAN;
}

static double reservation(const struct top_vm *vm)
{
	return vm->has_policy ? (double)vm->reservation_bytes : NAN;
}

static double shares(const struct top_vm *vm)
{
	return vm->has_policy ? (double)vm->shares : NAN;
}

/* ---- THE table ----------------------------------------------------------------------------- */

#define COLUMNS(X)                                                                               \
	X("NAME", "name", 'n', 14, TOP_NAME, 0, NULL, "the VM")                              \
	X("STATE", "state", 't', 8, TOP_STATE, 2, NULL,                                      \
	  "running, paused, stopping, starting, died (it ended without tidying up), silent")     \
	X("MEM", "memory_bytes", 'm', 6, TOP_SIZE, 0, memory,                                \
	  "assigned: what the guest believes to have")                                           \
	X("RESV", "reservation_bytes", 'v', 6, TOP_SIZE, TOP_DROP_DAEMON, reservation,                      \
	  "reservation: what it gets in any case (from brimd)")                                  \
	X("SHRS", "shares", 'h', 6, TOP_COUNT, TOP_DROP_DAEMON, shares, "its shares of what is short (from brimd)") \
	X("LIMIT", "limit_bytes", 'l', 6, TOP_SIZE, 5, limit, "the most host memory it may take")    \
	X("WSET", "working_set_bytes", 'w', 6, TOP_SIZE, 0, working_set,                     \
	  "working set: what it has used lately, an estimate")                                   \
	X("RES", "resident_bytes", 'e', 6, TOP_SIZE, 0, resident, "resident: in host memory of its own") \
	X("SHARE", "shared_bytes", 'd', 6, TOP_SIZE, 0, shared, "in the store that VMs share")       \
	X("PACK", "packed_bytes", 'p', 6, TOP_SIZE, 0, packed, "compressed")                 \
	X("RATIO", "pack_ratio", 'i', 5, TOP_RATIO, 4, ratio, "how much smaller that is, all overhead counted") \
	X("DISK", "disk_bytes", 'k', 6, TOP_SIZE, 0, disk, "in its swap file")               \
	X("BALLN", "ballooned_bytes", 'b', 6, TOP_SIZE, 3, ballooned, "given up by the guest, in the balloon") \
	X("NONE", "untouched_bytes", 'u', 6, TOP_SIZE, 8, untouched, "never touched, or reported free") \
	X("REFLT/s", "refaults_per_s", 'f', 7, TOP_COUNT, 0, refaults,                       \
	  "pages a second that the guest missed and got back")                                   \
	X("P99", "fault_p99_ns", '9', 6, TOP_TIME, 1, p99, "99 of 100 of its faults took no longer")   \
	X("STALL%", "stall_pct", 'a', 6, TOP_PCT, 0, stall, "of its processors' time, waiting for pages")

const struct top_column top_columns[] = {
#define X(t, k, l, w, u, r, v, h)                                                                \
	{ .title = t, .key = k, .letter = l, .width = w, .unit = u, .drop = r, .value = v, .help = h },
	COLUMNS(X)
#undef X
};
const unsigned top_column_count = ARRAY_LEN(top_columns);

const char *const top_sort_choices[] = {
#define X(t, k, l, w, u, r, v, h) k,
	COLUMNS(X)
#undef X
	NULL,
};

/* ---- order --------------------------------------------------------------------------------- */

static int by_text(const struct top_vm *a, const struct top_vm *b, enum top_unit unit)
{
	int order = unit == TOP_STATE ? strcmp(a->state, b->state) : 0;

	return order ? order : strverscmp(a->name, b->name);
}

/* Texts rise, numbers fall: the interesting ones are on top.  What is not known comes last,
 * whichever way. */
static int compare(const struct top *t, const struct top_vm *a, const struct top_vm *b)
{
	const struct top_column *c = &top_columns[t->sort];
	double x, y;

	if (!c->value)
		return by_text(a, b, c->unit) * (t->is_reversed ? -1 : 1);
	x = c->value(a);
	y = c->value(b);
	if (isnan(x) || isnan(y) || x == y)
		return isnan(x) != isnan(y) ? isnan(x) - isnan(y) : by_text(a, b, TOP_NAME);
	return (x < y) != t->is_reversed ? 1 : -1;
}

/* Few VMs, and nearly in order from sample to sample: insertion, which needs no global. */
struct top_vm **top_ordered(const struct top *t, size_t *count)
{
	struct top_vm **list = calloc(t->vm_count + 1, sizeof(*list));
	size_t n = 0;

	VERIFY(list);
	for (size_t i = 0; i < t->vm_count; i++) {
		size_t at = n;

		if (t->filter[0] && !strcasestr(t->vms[i]->name, t->filter))
			continue;
		for (; at > 0 && compare(t, list[at - 1], t->vms[i]) > 0; at--)
			list[at] = list[at - 1];
		list[at] = t->vms[i];
		n++;
	}
	*count = n;
	return list;
}

/* ---- cells ---------------------------------------------------------------------------------- */

/* At most three digits, or two and one behind the point. */
static void scaled(char *buf, size_t len, double v, const char *unit)
{
	snprintf(buf, len, v < 9.995 ? "%.2f%s" : v < 99.95 ? "%.1f%s" : "%.0f%s", v, unit);
}

const char *size_short(char *buf, size_t len, double bytes)
{
	static const char *const units[] = { "K", "M", "G", "T", "P", "E" };
	double v = bytes / 1024;
	size_t u = 0;

	if (bytes < 1) {
		snprintf(buf, len, "0");
		return buf;
	}
	for (; v >= 999.5 && u + 1 < ARRAY_LEN(units); u++)
		v /= 1024;
	scaled(buf, len, v, units[u]);
	return buf;
}

const char *time_short(char *buf, size_t len, double ns)
{
	static const char *const units[] = { "ns", "us", "ms", "s" };
	size_t u = 0;

	for (; ns >= 999.5 && u + 1 < ARRAY_LEN(units); u++)
		ns /= 1000;
	scaled(buf, len, ns, units[u]);
	return buf;
}

static void number(char *buf, size_t len, double v, enum top_unit unit)
{
	if (isnan(v))
		snprintf(buf, len, "-");
	else if (unit == TOP_SIZE)
		size_short(buf, len, v);
	else if (unit == TOP_TIME)
		time_short(buf, len, v);
	else if (unit == TOP_PCT)
		snprintf(buf, len, "%.2f", v);
	else if (unit == TOP_RATIO)
		snprintf(buf, len, "%.1fx", v);
	else
		snprintf(buf, len, v < 9.95 && v > 0 ? "%.1f" : "%.0f", v);
}

const char *top_cell(const struct top_vm *vm, const struct top_column *c, char *buf, size_t len)
{
	if (c->value)
		number(buf, len, c->value(vm), c->unit);
	else
		snprintf(buf, len, "%s", c->unit == TOP_NAME ? vm->name : vm->state);
	return buf;
}

bool top_is_known(const struct top *t, const struct top_column *c)
{
	for (size_t i = 0; i < t->vm_count; i++)
		if (!c->value || !isnan(c->value(t->vms[i])))
			return true;
	return c->drop < TOP_DROP_DAEMON;
}

/* A stall of 0.1 % is what the policy promises not to exceed. */
enum colour top_colour(const struct top_vm *vm, const struct top_column *c)
{
	double v;

	if (c->unit == TOP_STATE)
		return strcmp(vm->state, "running") == 0 ? GREEN : vm->has_view ? YELLOW : RED;
	if (c->unit != TOP_PCT)
		return PLAIN;
	v = c->value(vm);
	return v >= 1 ? RED : v >= 0.1 ? YELLOW : PLAIN;
}
