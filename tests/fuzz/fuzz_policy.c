/*
 * The policy: views of any content, several steps of them, and the invariants of every plan
 * (tests/lib/policycheck.h); and, where the first byte is odd, the bytes as a trace file.
 */
#include <stdlib.h>
#include <string.h>

#include "tests/lib/policycheck.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define VMS 4u

struct input {
	const uint8_t *at;
	size_t left;
};

static uint64_t take(struct input *in, size_t bytes)
{
	uint64_t v = 0;
	size_t n = bytes < in->left ? bytes : in->left;

	memcpy(&v, in->at, n);
	in->at += n;
	in->left -= n;
	return v;
}

/* A byte says which half of the amounts it is about: nonsense, or what could be. */
static uint64_t amount(struct input *in, uint64_t likely)
{
	uint64_t how = take(in, 1);

	return how < 200 ? likely / 200 * how : how < 210 ? UINT64_MAX - (how - 200) : take(in, 8);
}

static void vm(struct input *in, struct policy_vm_view *v, unsigned i)
{
	uint64_t flags = take(in, 2), memory = amount(in, 16 * GiB);

	*v = (struct policy_vm_view){
		.id = i + (flags & 1 ? 100 : 0), .name = "vm", .run = (enum policy_run)((flags >> 1) % 3),
		.memory_bytes = memory, .reservation_bytes = amount(in, memory),
		.limit_bytes = amount(in, memory), .shares = amount(in, 4000),
		.balloon_floor_bytes = amount(in, memory), .can_balloon = flags & 8, .can_pack = flags & 16,
		.can_disk = flags & 32, .can_share = flags & 64, .can_stop = flags & 128,
		.limit_now_bytes = amount(in, memory), .balloon_target_bytes = amount(in, memory),
		.resident_bytes = amount(in, memory), .staged_bytes = amount(in, memory),
		.pool_bytes = amount(in, memory), .packed_bytes = amount(in, memory),
		.filled_bytes = amount(in, memory), .shared_bytes = amount(in, memory),
		.disk_bytes = amount(in, memory), .ballooned_bytes = amount(in, memory),
		.untouched_bytes = amount(in, memory), .overhead_bytes = amount(in, memory),
		.cold_known = flags & 256, .pass_ms = amount(in, 1000), .passes = amount(in, 1000),
		.refaults_packed = amount(in, 1000000), .refaults_stored = amount(in, 1000000),
		.refaults_disk = amount(in, 1000000), .stall_us = amount(in, 10000000),
		.cpus = amount(in, 64),
		.guest = { .known = flags & 512, .age_ms = amount(in, 1000), .total_bytes = amount(in, memory),
			   .available_bytes = amount(in, memory), .swap_in_bytes = amount(in, memory) },
	};
	for (unsigned c = 0; c < POLICY_COLDS; c++)
		v->cold_bytes[c] = amount(in, memory);
}

static void host(struct input *in, struct policy_host_view *h)
{
	uint64_t now = h->now_ms;

	*h = (struct policy_host_view){
		.now_ms = now + amount(in, 10000), .physical_bytes = amount(in, 32 * GiB),
		.usable_bytes = amount(in, 32 * GiB), .reserve_bytes = amount(in, GiB),
		.available_bytes = amount(in, 32 * GiB), .store_bytes = amount(in, GiB),
		.overhead_bytes = amount(in, GiB), .psi_some_ppm = amount(in, 1000000),
		.psi_full_ppm = amount(in, 1000000),
	};
}

/* Limits in force: what the last plan said, or of one not known yet its own. */
static void note_limits(const struct policy_views *v, const struct policy_vm_plan *was, size_t n,
			struct policy_before *out)
{
	for (size_t i = 0; i < v->n; i++) {
		out[i].limit_bytes = check_least(v->vms[i].limit_now_bytes, CHECK_MOST);
		if (i < n && was[i].id == v->vms[i].id)
			out[i].limit_bytes = was[i].limit_bytes;
	}
}

static void steps(struct input *in)
{
	struct policy_vm_plan out[VMS], was[VMS];
	struct policy_vm_view vms[VMS];
	struct policy_host_view h = { 0 };
	struct policy_views v = { .host = &h, .vms = vms };
	struct policy_before before[VMS];
	struct policy_memory *m;
	struct policy_config c;
	size_t n = 0;

	policy_config_default(&c);
	VERIFY(policy_memory_create(&m, VMS) == 0);
	for (unsigned i = 0; i < 16 && in->left > 0; i++) {
		struct policy_plan p = { .vms = out };

		host(in, &h);
		v.n = take(in, 1) % (VMS + 1);
		for (unsigned k = 0; k < v.n; k++)
			vm(in, &vms[k], k);
		note_limits(&v, was, n, before);
		VERIFY(policy_step(&c, &v, m, &p) == 0);
		check_plan(&c, &v, &p, before);
		memcpy(was, out, sizeof(was));
		n = v.n;
	}
	policy_memory_destroy(&m);
}

static void trace(const struct input *in)
{
	struct policy_trace *t = NULL;
	struct err e = { "" };
	FILE *f = in->left ? fmemopen((void *)(uintptr_t)in->at, in->left, "r") : NULL;

	if (!f)
		return;
	if (policy_trace_read(&t, f, "trace", &e) == 0) {
		VERIFY(t->vms >= 1 && t->vms <= POLICY_TRACE_VMS && t->events >= 1);
		for (size_t i = 0; i < t->events; i++)
			VERIFY(t->event[i].vm < t->vms && t->event[i].t_ms <= t->end_ms);
	} else {
		VERIFY(strncmp(e.msg, "trace:", 6) == 0 && !strchr(e.msg, '\n'));
	}
	policy_trace_destroy(&t);
	fclose(f);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct input in = { data, size };

	if (take(&in, 1) & 1)
		trace(&in);
	else
		steps(&in);
	return 0;
}
