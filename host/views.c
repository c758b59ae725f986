/*
 * Views of host and VMs.
 *
 * What a VM's file says is bounded by what the VM has: no term of its books may be larger than
 * its memory, so that one file cannot make the sum of all absurd.
 */
#include "host/views.h"

#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define US_PER_PCT_PPM 10000.0 /* 1 % is 10,000 ppm */

/* ---- the host ----------------------------------------------------------------------- */

static FILE *open_in(const char *proc, const char *file)
{
	char path[PATH_MAX];

	snprintf(path, sizeof(path), "%s/%s", proc, file);
	return fopen(path, "re");
}

static int read_meminfo(const char *proc, struct policy_host_view *out)
{
	FILE *f = open_in(proc, "meminfo");
	uint64_t total = 0, available = 0;
	char line[128];

	if (!f)
		return -errno;
	while (fgets(line, sizeof(line), f)) {
		(void)sscanf(line, "MemTotal: %" SCNu64, &total);
		(void)sscanf(line, "MemAvailable: %" SCNu64, &available);
	}
	fclose(f);
	out->physical_bytes = total * KiB;
	out->available_bytes = available * KiB;
	return total ? 0 : -EIO;
}

/* A kernel without it, or one that has it switched off, says nothing: 0. */
static void read_pressure(const char *proc, struct policy_host_view *out)
{
	FILE *f = open_in(proc, "pressure/memory");
	double some = 0, full = 0;
	char line[128];

	while (f && fgets(line, sizeof(line), f)) {
		(void)sscanf(line, "some avg10=%lf", &some);
		(void)sscanf(line, "full avg10=%lf", &full);
	}
	if (f)
		fclose(f);
	out->psi_some_ppm = some > 0 ? (uint64_t)(some * US_PER_PCT_PPM) : 0;
	out->psi_full_ppm = full > 0 ? (uint64_t)(full * US_PER_PCT_PPM) : 0;
}

int views_host(const struct views_host *from, uint64_t now, struct policy_host_view *out)
{
	int rc;

	*out = (struct policy_host_view){
		.now_ms = now / 1000000, .usable_bytes = from->usable_bytes,
		.reserve_bytes = from->reserve_bytes,
	};
	rc = read_meminfo(from->proc, out);
	if (!rc)
		read_pressure(from->proc, out);
	return rc;
}

/* ---- a VM --------------------------------------------------------------------------- */

static uint64_t bounded(const struct stats_view *v, enum gauge g, uint64_t most)
{
	uint64_t value = view_gauge(v, g);

	return value < most ? value : most;
}

static void cold(const struct stats_view *v, struct policy_vm_view *out)
{
	static const enum gauge of[POLICY_COLDS] = {
		GAUGE_cold1_bytes, GAUGE_cold2_bytes, GAUGE_cold4_bytes,
		GAUGE_cold8_bytes, GAUGE_cold16_bytes, GAUGE_cold32_bytes,
	};

	out->passes = v->counter[CTR_engine_passes];
	out->cold_known = view_gauge(v, GAUGE_engine) && v->counter[CTR_engine_passes] > 0;
	for (unsigned i = 0; i < POLICY_COLDS; i++)
		out->cold_bytes[i] = bounded(v, of[i], out->memory_bytes);
}

static void guest_says(const struct stats_view *v, struct policy_guest *out)
{
	uint64_t came = view_gauge(v, GAUGE_guest_received_ns);

	*out = (struct policy_guest){
		.known = came != 0,
		.age_ms = v->read_ns > came ? (v->read_ns - came) / 1000000 : 0,
		.total_bytes = view_gauge(v, GAUGE_guest_total_bytes),
		.available_bytes = view_gauge(v, GAUGE_guest_available_bytes),
		.swap_in_bytes = view_gauge(v, GAUGE_guest_swap_in_bytes),
		.major_faults = view_gauge(v, GAUGE_guest_major_faults),
	};
}

static void where_memory_is(const struct stats_view *v, struct policy_vm_view *out)
{
	uint64_t most = out->memory_bytes;

	out->resident_bytes = bounded(v, GAUGE_resident_bytes, most);
	out->staged_bytes = bounded(v, GAUGE_staged_bytes, most);
	out->pool_bytes = bounded(v, GAUGE_pool_bytes, most);
	out->packed_bytes = bounded(v, GAUGE_packed_bytes, most);
	out->filled_bytes = bounded(v, GAUGE_filled_bytes, most);
	out->shared_bytes = bounded(v, GAUGE_stored_bytes, most) +
			    bounded(v, GAUGE_mapped_bytes, most);
	out->disk_bytes = bounded(v, GAUGE_disk_bytes, most);
	out->ballooned_bytes = bounded(v, GAUGE_ballooned_bytes, most);
	out->untouched_bytes = bounded(v, GAUGE_untouched_bytes, most);
	out->overhead_bytes = bounded(v, GAUGE_vmm_bytes, most);
}

static void refaults(const struct stats_view *v, struct policy_vm_view *out)
{
	out->refaults_staged = v->counter[CTR_engine_faults_staged];
	out->refaults_packed = v->counter[CTR_engine_faults_packed];
	out->refaults_stored = v->counter[CTR_engine_faults_stored];
	out->refaults_disk = v->counter[CTR_engine_faults_disk];
	out->stall_us = v->counter[CTR_vcpu_stall_ns] / 1000;
}

void views_vm(const struct guest *g, const struct stats_view *now, struct policy_vm_view *out)
{
	const struct host_vm *vm = g->vm;
	bool is_paused = view_gauge(now, GAUGE_state) == 2;

	*out = (struct policy_vm_view){
		.id = g->run_id, .name = g->paths.name,
		.run = !is_paused ? POLICY_RUNNING : g->is_stopped_by_us ? POLICY_STOPPED : POLICY_PAUSED,
		.memory_bytes = g->memory_bytes,
		.reservation_bytes = vm->reservation_bytes < g->memory_bytes ?
					     vm->reservation_bytes : g->memory_bytes,
		.limit_bytes = vm->limit_bytes, .shares = vm->shares,
		.balloon_floor_bytes = vm->balloon_floor_bytes,
		.can_balloon = view_gauge(now, GAUGE_balloon_ready) != 0,
		.can_pack = true, .can_disk = view_gauge(now, GAUGE_disk_size_bytes) != 0,
		.can_share = view_gauge(now, GAUGE_sharing) != 0, .can_stop = true,
		.limit_now_bytes = view_gauge(now, GAUGE_limit_bytes),
		.balloon_target_bytes = view_gauge(now, GAUGE_balloon_target_bytes),
		.cpus = vm->cpus,
	};
	where_memory_is(now, out);
	cold(now, out);
	refaults(now, out);
	guest_says(now, &out->guest);
}
