/* See fakesnap.h. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "stats/stats.h"
#include "tests/lib/fakesnap.h"

#define VM_BYTES (24 * GiB)

static const char *const hostile_names[] = {
	"<img src=x onerror=hurt()>", "\"'`><script>hurt()</script>", "a\\b\"c\nd", "web/../1",
	"\xe2\x80\xae_desrever", "{{7*7}}", "&lt;b&gt;", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
};

static const char *const kinds[] = { "web", "db", "build", "cache", "mail", "ci", "desk", "log" };

/* Where one VM's memory is. */
struct places {
	json_int_t resident, staged, filled, shared, packed, disk, ballooned, untouched;
};

void fakesnap_name(const struct fakesnap *f, unsigned i, char name[64])
{
	if (f->hostile && i < ARRAY_LEN(hostile_names))
		snprintf(name, 64, "%s", hostile_names[i]);
	else
		snprintf(name, 64, "%s-%u", kinds[i % ARRAY_LEN(kinds)], i / 8 + 1);
}

/* 0 to 1: how busy its guest is. */
static double busy(const struct fakesnap *f, unsigned i)
{
	return 0.5 + 0.5 * sin(f->time_s / 300 + i * 1.7);
}

static json_int_t pages(double bytes)
{
	return (json_int_t)(bytes / 4096) * 4096;
}

static struct places places_of(const struct fakesnap *f, unsigned i)
{
	double m = (double)VM_BYTES, b = busy(f, i);
	struct places p = {
		.untouched = pages(m * (0.1 + 0.06 * (i % 5))),
		.filled = pages(m * 0.03),
		.shared = pages(m * (i % 3 == 0 ? 0.09 : 0.05)),
		.packed = pages(m * 0.16 * (1.1 - b)),
		.disk = pages(m * (i % 2 ? 0.06 : 0) * (1 - b)),
		.ballooned = pages(m * 0.2 * (1 - b)),
		.staged = pages(m * 0.004 * b),
	};

	p.resident = (json_int_t)VM_BYTES - p.untouched - p.filled - p.shared - p.packed - p.disk -
		     p.ballooned - p.staged;
	return p;
}

static json_t *reasons(const struct fakesnap *f, unsigned i)
{
	double b = busy(f, i);

	if (f->hostile && i < ARRAY_LEN(hostile_names))
		return json_pack("[ss]", hostile_names[i], "</script><script>hurt()</script>");
	if (b > 0.8)
		return json_pack("[ss]", "It refaults more than 0.2 % of its working set a minute: it "
				 "gets memory back before others.", "Its balloon was let go at once.");
	if (b < 0.3)
		return json_pack("[s]", "Three quarters of its memory were idle for ten minutes: idle "
				 "memory is taxed, so it gives first.");
	return json_array();
}

static json_t *vm_json(const struct fakesnap *f, unsigned i)
{
	struct places p = places_of(f, i);
	double b = busy(f, i);
	char name[64];
	json_t *j;

	fakesnap_name(f, i, name);
	j = json_pack(
		"{s:s,s:s,s:i,s:I,s:I,s:I,s:i,s:s,s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:f,s:i,s:f,s:s,s:o}",
		"name", name, "state", i == 0 && f->state ? f->state : "running", "pid", 1000 + (int)i,
		"memory_bytes", (json_int_t)VM_BYTES, "reservation_bytes", (json_int_t)(2 * GiB),
		"limit_bytes", i == 0 ? f->limit_bytes : (json_int_t)0, "shares", 1000 + 500 * (int)(i % 3),
		"share_group", i % 4 == 3 ? "none" : "uid-0",
		"working_set_bytes", pages((double)p.resident * (0.3 + 0.6 * b)), "resident_bytes", p.resident,
		"staged_bytes", p.staged, "filled_bytes", p.filled, "shared_bytes", p.shared,
		"packed_bytes", p.packed, "pool_bytes", p.packed / 3, "disk_bytes", p.disk,
		"ballooned_bytes", p.ballooned, "untouched_bytes", p.untouched, "refaults_per_s",
		b > 0.6 ? 900 * (b - 0.6) : 0.0, "fault_p99_us", 12 + (int)(60 * b), "stall_pct",
		b > 0.8 ? 0.3 * (b - 0.8) : 0.0, "why", "",
		"reasons", reasons(f, i));
	json_object_set_new(j, "held_bytes", json_integer(p.resident + p.staged + p.packed / 3));
	json_object_set_new(j, "overhead_bytes", json_integer((json_int_t)(40 * MiB)));
	json_object_set_new(j, "balloon_target_bytes", json_integer(p.ballooned));
	json_object_set_new(j, "refault_missed_ms", json_integer(b > 0.8 ? 12500 : 0));
	json_object_set_new(j, "stall_missed_ms", json_integer(0));
	return j;
}

static void add(struct places *sum, const struct places *p)
{
	sum->resident += p->resident + p->staged + p->shared / 4 + p->packed / 3;
	sum->filled += p->filled;
	sum->shared += p->shared - p->shared / 4;
	sum->packed += p->packed - p->packed / 3;
	sum->disk += p->disk;
	sum->ballooned += p->ballooned;
	sum->untouched += p->untouched;
}

static const char *state_of(double available_part)
{
	return available_part > 0.12 ? "high" : available_part > 0.08 ? "clear" :
	       available_part > 0.05 ? "soft" : available_part > 0.02 ? "hard" : "low";
}

static json_t *host_json(const struct fakesnap *f, const struct places *sum)
{
	json_int_t assigned = (json_int_t)VM_BYTES * f->vms, physical = assigned / 3 * 2;
	json_int_t usable = physical - physical / 16, in_use = sum->resident + f->vms * (json_int_t)(40 * MiB);
	json_int_t available = usable > in_use ? usable - in_use : 0;
	const char *state = state_of(f->vms ? (double)available / (double)usable : 1);
	double psi = available < usable / 10 ? 1.5 : 0.02;

	return json_pack(
		"{s:s,s:s,s:I,s:I,s:I,s:I,s:I,s:I,s:{s:I,s:I,s:I,s:I,s:I,s:I},s:f,s:f,s:s}",
		"name", f->hostile ? "<b>host</b>" : "barn", "state", state, "physical_bytes", physical,
		"usable_bytes", usable, "reserve_bytes", physical - usable, "assigned_bytes", assigned,
		"in_use_bytes", in_use, "available_bytes", available, "saved", "filled_bytes", sum->filled,
		"shared_bytes", sum->shared, "packed_bytes", sum->packed, "disk_bytes", sum->disk,
		"ballooned_bytes", sum->ballooned, "untouched_bytes", sum->untouched, "psi_some_pct", psi,
		"psi_full_pct", psi / 4, "policy_reason",
		f->hostile ? "<script>hurt()</script>" :
		"Less than a quarter of the memory is free: idle VMs are asked for theirs, through their "
		"balloons first.");
}

json_t *fakesnap_json(const struct fakesnap *f)
{
	struct places sum = { 0 };
	json_t *vms = json_array();

	for (unsigned i = 0; i < f->vms; i++) {
		struct places p = places_of(f, i);

		add(&sum, &p);
		json_array_append_new(vms, vm_json(f, i));
	}
	return json_pack("{s:i,s:o,s:o}", "v", 1, "host", host_json(f, &sum), "vms", vms);
}
