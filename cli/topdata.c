/*
 * Samples of what `brim top` shows.  A VM is known by its name; that it was started anew
 * between two samples shows in its file (stats_rates()), and it begins without rates.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "cli/top.h"

int top_init(struct top *t, struct err *e)
{
	*t = (struct top){ 0 };
	return rundir_base(t->base, sizeof(t->base), e);
}

void top_fini(struct top *t)
{
	for (size_t i = 0; i < t->vm_count; i++)
		free(t->vms[i]);
	free(t->vms);
	t->vms = NULL;
	t->vm_count = 0;
}

/* ---- the host --------------------------------------------------------------------------- */

static void read_meminfo(struct top_host *h)
{
	FILE *f = fopen("/proc/meminfo", "re");
	char line[128];
	uint64_t kib;

	while (f && fgets(line, sizeof(line), f)) {
		if (sscanf(line, "MemTotal: %" SCNu64, &kib) == 1)
			h->physical_bytes = kib * KiB;
		else if (sscanf(line, "MemAvailable: %" SCNu64, &kib) == 1)
			h->available_bytes = kib * KiB;
	}
	if (f)
		fclose(f);
}

static void read_pressure(struct top_host *h)
{
	FILE *f = fopen("/proc/pressure/memory", "re");
	char line[128];

	h->psi_some_pct = h->psi_full_pct = -1;
	while (f && fgets(line, sizeof(line), f)) {
		sscanf(line, "some avg10=%lf", &h->psi_some_pct);
		sscanf(line, "full avg10=%lf", &h->psi_full_pct);
	}
	if (f)
		fclose(f);
}

uint64_t vm_shared_bytes(const struct stats_view *v)
{
	return view_gauge(v, GAUGE_stored_bytes) + view_gauge(v, GAUGE_mapped_bytes);
}

static void add_vm(struct top_host *h, const struct stats_view *v)
{
	h->running++;
	h->assigned_bytes += view_gauge(v, GAUGE_memory_bytes);
	h->vm_bytes += view_gauge(v, GAUGE_resident_bytes) + view_gauge(v, GAUGE_staged_bytes) +
		       view_gauge(v, GAUGE_pool_bytes) + view_gauge(v, GAUGE_vmm_bytes);
	h->untouched_bytes += view_gauge(v, GAUGE_untouched_bytes);
	h->filled_bytes += view_gauge(v, GAUGE_filled_bytes);
	h->shared_bytes += vm_shared_bytes(v);
	h->packed_bytes += view_gauge(v, GAUGE_packed_bytes);
	h->pool_bytes += view_gauge(v, GAUGE_pool_bytes);
	h->disk_bytes += view_gauge(v, GAUGE_disk_bytes);
	h->ballooned_bytes += view_gauge(v, GAUGE_ballooned_bytes);
}

static void sample_host(struct top *t)
{
	t->host = (struct top_host){ 0 };
	if (gethostname(t->host.name, sizeof(t->host.name) - 1))
		t->host.name[0] = '\0';
	read_meminfo(&t->host);
	read_pressure(&t->host);
	for (size_t i = 0; i < t->vm_count; i++)
		if (t->vms[i]->has_view)
			add_vm(&t->host, &t->vms[i]->now);
}

/* ---- a VM ------------------------------------------------------------------------------- */

static const char *state_name(const struct stats_view *v)
{
	static const char *const names[] = { "starting", "running", "paused", "stopping" };
	uint64_t s = v->gauge[GAUGE_state];

	return s < ARRAY_LEN(names) ? names[s] : "?";
}

static void remember(struct top_vm *vm)
{
	vm->history[vm->points++ % TOP_HISTORY] = (struct top_point){
		.resident_bytes = view_gauge(&vm->now, GAUGE_resident_bytes),
		.working_set_bytes = view_gauge(&vm->now, GAUGE_working_set_bytes),
		.refaults_per_s = (float)vm->rates.refaults_per_s,
	};
}

/* A VM that has ended has its file still, until somebody cleans up: it is not read. */
static void sample_vm(struct top_vm *vm, const struct vm_paths *p)
{
	struct stats_view before = vm->now;
	bool had_view = vm->has_view;
	enum vm_presence presence = VM_DIED;

	vm->has_view = vm->has_rates = false;
	vm->rates = (struct stats_rates){ 0 };
	if (rundir_probe(p, &presence, NULL, NULL) || presence != VM_RUNNING) {
		vm->state = presence == VM_DIED ? "died" : "silent";
		return;
	}
	if (stats_read(p->stats, &vm->now, NULL)) {
		vm->state = "silent"; /* an earlier brim-vmm's, or not there yet */
		return;
	}
	vm->has_view = true;
	vm->state = state_name(&vm->now);
	vm->has_rates = had_view && stats_rates(&before, &vm->now, &vm->rates);
	if (had_view && before.start_ns != vm->now.start_ns)
		vm->points = 0; /* another one of that name */
	remember(vm);
}

/* ---- all of them --------------------------------------------------------------------------- */

struct top_vm *top_find(const struct top *t, const char *name)
{
	for (size_t i = 0; i < t->vm_count; i++)
		if (strcmp(t->vms[i]->name, name) == 0)
			return t->vms[i];
	return NULL;
}

static struct top_vm *find_or_add(struct top *t, const char *name)
{
	struct top_vm *vm = top_find(t, name), **grown;

	if (vm)
		return vm;
	grown = reallocarray(t->vms, t->vm_count + 1, sizeof(struct top_vm *));
	if (grown)
		t->vms = grown;
	vm = grown ? calloc(1, sizeof(*vm)) : NULL;
	if (!vm)
		return NULL;
	snprintf(vm->name, sizeof(vm->name), "%s", name);
	t->vms[t->vm_count++] = vm;
	return vm;
}

static int by_name(const void *a, const void *b)
{
	const struct top_vm *const *x = a, *const *y = b;

	return strverscmp((*x)->name, (*y)->name);
}

static void forget_unseen(struct top *t)
{
	size_t n = 0;

	for (size_t i = 0; i < t->vm_count; i++) {
		if (t->vms[i]->is_seen)
			t->vms[n++] = t->vms[i];
		else
			free(t->vms[i]);
	}
	t->vm_count = n;
	if (n > 1)
		qsort(t->vms, n, sizeof(struct top_vm *), by_name);
}

int top_sample(struct top *t, struct err *e)
{
	char **names = NULL;
	size_t count = 0;
	int rc = rundir_list(t->base, &names, &count, e);

	for (size_t i = 0; i < t->vm_count; i++)
		t->vms[i]->is_seen = false;
	for (size_t i = 0; i < count && !rc; i++) {
		struct top_vm *vm = find_or_add(t, names[i]);
		struct vm_paths p;

		if (!vm)
			rc = err_sys(e, -ENOMEM, "top");
		if (rc || vm_paths_init(&p, t->base, names[i], NULL))
			continue;
		vm->is_seen = true;
		vm->has_policy = false;
		vm->reason[0] = '\0';
		sample_vm(vm, &p);
	}
	rundir_list_free(&names, count);
	if (rc)
		return rc;
	forget_unseen(t);
	sample_host(t);
	if (t->daemon.fill)
		t->daemon.fill(t->daemon.ctx, t);
	t->samples++;
	return 0;
}

/* ---- as JSON -------------------------------------------------------------------------------- */

static void put(json_t *o, const char *key, uint64_t n)
{
	json_object_set_new(o, key, json_integer(n > INT64_MAX ? INT64_MAX : (json_int_t)n));
}

static void put_gauges(json_t *o, const struct stats_view *v)
{
	static const enum gauge gauges[] = {
		GAUGE_memory_bytes, GAUGE_limit_bytes, GAUGE_working_set_bytes, GAUGE_resident_bytes,
		GAUGE_staged_bytes, GAUGE_filled_bytes, GAUGE_packed_bytes, GAUGE_pool_bytes,
		GAUGE_disk_bytes, GAUGE_ballooned_bytes, GAUGE_untouched_bytes,
	};

	for (size_t i = 0; i < ARRAY_LEN(gauges); i++)
		put(o, gauge_table[gauges[i]].name, view_gauge(v, gauges[i]));
	put(o, "shared_bytes", vm_shared_bytes(v));
	put(o, "pid", (uint64_t)v->pid);
}

static json_t *vm_json(const struct top_vm *vm)
{
	json_t *o = json_pack("{s:s, s:s}", "name", vm->name, "state", vm->state);

	if (vm->has_view)
		put_gauges(o, &vm->now);
	if (vm->has_rates) {
		json_object_set_new(o, "refaults_per_s", json_real(vm->rates.refaults_per_s));
		json_object_set_new(o, "stall_pct", json_real(vm->rates.stall_pct));
		json_object_set_new(o, "fault_p99_us", json_real((double)vm->rates.fault_p99_ns / 1000));
	}
	if (vm->has_policy) {
		put(o, "reservation_bytes", vm->reservation_bytes);
		put(o, "shares", vm->shares);
	}
	return o;
}

static json_t *host_json(const struct top_host *h)
{
	json_t *o = json_object(), *saved = json_object();

	json_object_set_new(o, "name", json_string(h->name));
	json_object_set_new(o, "state", h->state[0] ? json_string(h->state) : json_null());
	put(o, "physical_bytes", h->physical_bytes);
	put(o, "assigned_bytes", h->assigned_bytes);
	put(o, "in_use_bytes", h->physical_bytes > h->available_bytes ?
				       h->physical_bytes - h->available_bytes : 0);
	put(o, "vms_bytes", h->vm_bytes);
	put(o, "available_bytes", h->available_bytes);
	if (h->psi_some_pct >= 0) {
		json_object_set_new(o, "psi_some_pct", json_real(h->psi_some_pct));
		json_object_set_new(o, "psi_full_pct", json_real(h->psi_full_pct));
	}
	put(saved, "filled_bytes", h->filled_bytes);
	put(saved, "shared_bytes", h->shared_bytes);
	put(saved, "packed_bytes", h->packed_bytes > h->pool_bytes ? h->packed_bytes - h->pool_bytes : 0);
	put(saved, "disk_bytes", h->disk_bytes);
	put(saved, "ballooned_bytes", h->ballooned_bytes);
	put(saved, "untouched_bytes", h->untouched_bytes);
	json_object_set_new(o, "saved", saved);
	return o;
}

json_t *top_json(const struct top *t)
{
	struct timespec now;
	json_t *vms = json_array(), *o;

	clock_gettime(CLOCK_REALTIME, &now);
	for (size_t i = 0; i < t->vm_count; i++)
		json_array_append_new(vms, vm_json(t->vms[i]));
	o = json_pack("{s:i, s:f, s:o, s:o}", "v", 1, "time_s",
		      (double)now.tv_sec + (double)now.tv_nsec / 1e9, "host", host_json(&t->host), "vms",
		      vms);
	VERIFY(o);
	return o;
}
