/*
 * The snapshot as Prometheus text (exposition format 0.0.4).
 *
 * A metric is a row of a table; its name is the key of the snapshot with a prefix, but in
 * base units: seconds and ratios.  What the snapshot does not have is left out: a metric
 * that is absent is unknown, one that is 0 is 0.
 *
 * All samples of a metric stand together, as the format asks, so the VMs are walked once a
 * metric; their labels are escaped once before.
 *
 * Thread: the daemon's.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "host/api/internal.h"

struct metric {
	const char *name, *key, *help;
	double scale; /* 0: 1, and an integer stays one */
	bool is_counter;
};

static const struct metric host_metrics[] = {
	{ "brim_host_physical_bytes", "physical_bytes", "memory the host has" },
	{ "brim_host_usable_bytes", "usable_bytes", "memory of the host that brim may use" },
	{ "brim_host_reserve_bytes", "reserve_bytes", "memory that is kept free for the host itself" },
	{ "brim_host_assigned_bytes", "assigned_bytes", "memory that VMs were assigned, all together" },
	{ "brim_host_in_use_bytes", "in_use_bytes", "memory of the host that brim and its VMs use" },
	{ "brim_host_available_bytes", "available_bytes", "memory of the host that could be used now" },
	{ "brim_host_pressure_some_ratio", "psi_some_pct",
	  "share of time in which some task of the host waited for memory", 0.01 },
	{ "brim_host_pressure_full_ratio", "psi_full_pct",
	  "share of time in which all tasks of the host waited for memory", 0.01 },
};

static const struct metric vm_metrics[] = {
	{ "brim_vm_memory_bytes", "memory_bytes", "memory the VM was assigned" },
	{ "brim_vm_reservation_bytes", "reservation_bytes", "host memory the VM is guaranteed" },
	{ "brim_vm_limit_bytes", "limit_bytes", "host memory the VM may have at most; 0: no limit" },
	{ "brim_vm_shares", "shares", "the VM's weight when memory is short" },
	{ "brim_vm_working_set_bytes", "working_set_bytes", "memory the guest is estimated to be using" },
	{ "brim_vm_resident_bytes", "resident_bytes", "guest memory in host memory of its own" },
	{ "brim_vm_staged_bytes", "staged_bytes", "guest memory taken and not packed yet" },
	{ "brim_vm_filled_bytes", "filled_bytes", "guest memory that is one repeated pattern, kept as a table row" },
	{ "brim_vm_shared_bytes", "shared_bytes", "guest memory kept once for several VMs" },
	{ "brim_vm_packed_bytes", "packed_bytes", "guest memory that is kept compressed" },
	{ "brim_vm_pool_bytes", "pool_bytes", "host memory that the compressed pages take" },
	{ "brim_vm_disk_bytes", "disk_bytes", "guest memory in the swap file" },
	{ "brim_vm_ballooned_bytes", "ballooned_bytes", "guest memory given back by the guest" },
	{ "brim_vm_untouched_bytes", "untouched_bytes", "guest memory never used" },
	{ "brim_vm_refaults_per_second", "refaults_per_s", "pages a second that were away and were touched" },
	{ "brim_vm_fault_latency_p99_seconds", "fault_p99_us",
	  "time that 99 in 100 such touches waited at most", 1e-6 },
	{ "brim_vm_held_bytes", "held_bytes", "host memory that the guest's memory costs" },
	{ "brim_vm_overhead_bytes", "overhead_bytes", "host memory of the VM beside its guest's memory" },
	{ "brim_vm_balloon_target_bytes", "balloon_target_bytes", "memory the guest is asked to give up" },
	{ "brim_vm_refault_contract_missed_seconds_total", "refault_missed_ms",
	  "time in which more of the working set was touched while away than is promised", 1e-3, true },
	{ "brim_vm_stall_contract_missed_seconds_total", "stall_missed_ms",
	  "time in which the VM waited for memory more than is promised", 1e-3, true },
	{ "brim_vm_stall_ratio", "stall_pct", "share of time in which the VM waited for memory", 0.01 },
};

static const char *const means[] = { "filled", "shared", "packed", "disk", "ballooned", "untouched" };
static const char *const host_states[] = { "high", "clear", "soft", "hard", "low" };

static const char *const other_metrics[] = {
	"brim_build_info", "brim_host_vms", "brim_host_state", "brim_host_saved_bytes", "brim_vm_info",
};

const char *metric_name(size_t i)
{
	if (i < ARRAY_LEN(host_metrics))
		return host_metrics[i].name;
	i -= ARRAY_LEN(host_metrics);
	if (i < ARRAY_LEN(vm_metrics))
		return vm_metrics[i].name;
	i -= ARRAY_LEN(vm_metrics);
	return i < ARRAY_LEN(other_metrics) ? other_metrics[i] : NULL;
}

static void add_head(struct text *t, const char *name, const char *type, const char *help)
{
	text_str(t, "# HELP ");
	text_str(t, name);
	text_str(t, " ");
	text_str(t, help);
	text_str(t, "\n# TYPE ");
	text_str(t, name);
	text_str(t, " ");
	text_str(t, type);
	text_str(t, "\n");
}

static void add_escaped(struct text *t, const char *s)
{
	for (;;) {
		size_t plain = strcspn(s, "\\\"\n");

		text_add(t, s, plain);
		s += plain;
		if (!*s)
			return;
		text_str(t, *s == '\n' ? "\\n" : *s == '"' ? "\\\"" : "\\\\");
		s++;
	}
}

static void add_label(struct text *t, const char *label, const json_t *value)
{
	const char *s = json_string_value(value);

	text_str(t, label);
	text_str(t, "=\"");
	add_escaped(t, s ? s : "");
	text_str(t, "\"");
}

/* " VALUE\n" */
static void add_value(struct text *t, const json_t *v, double scale)
{
	if (scale == 0 && json_is_integer(v) && json_integer_value(v) >= 0) {
		text_str(t, " ");
		text_u64(t, (uint64_t)json_integer_value(v));
		text_str(t, "\n");
	} else {
		text_printf(t, " %.12g\n", json_number_value(v) * (scale == 0 ? 1 : scale));
	}
}

/* ---- the host --------------------------------------------------------------------------- */

static void add_saved(struct text *t, const json_t *saved)
{
	if (!json_is_object(saved))
		return;
	add_head(t, "brim_host_saved_bytes", "gauge",
		 "host memory that each means spares, its own cost taken off");
	for (size_t i = 0; i < ARRAY_LEN(means); i++) {
		char key[32];
		const json_t *v;

		snprintf(key, sizeof(key), "%s_bytes", means[i]);
		v = json_object_get(saved, key);
		if (!json_is_number(v))
			continue;
		text_printf(t, "brim_host_saved_bytes{means=\"%s\"}", means[i]);
		add_value(t, v, 0);
	}
}

static void add_state(struct text *t, const json_t *state)
{
	if (!json_is_string(state))
		return;
	add_head(t, "brim_host_state", "gauge", "1 for the state that the host is in");
	for (size_t i = 0; i < ARRAY_LEN(host_states); i++)
		text_printf(t, "brim_host_state{state=\"%s\"} %d\n", host_states[i],
			    strcmp(json_string_value(state), host_states[i]) == 0);
}

static void add_host(struct text *t, const json_t *host)
{
	for (size_t i = 0; i < ARRAY_LEN(host_metrics); i++) {
		const struct metric *m = &host_metrics[i];
		const json_t *v = json_object_get(host, m->key);

		if (!json_is_number(v))
			continue;
		add_head(t, m->name, "gauge", m->help);
		text_str(t, m->name);
		add_value(t, v, m->scale);
	}
	add_saved(t, json_object_get(host, "saved"));
	add_state(t, json_object_get(host, "state"));
}

/* ---- VMs -------------------------------------------------------------------------------- */

struct series {
	const json_t *vm;
	size_t label, label_len; /* in labels */
};

struct vm_series {
	struct series *of; /* each VM */
	size_t count;
	struct text labels; /* {vm="NAME"} of each */
};

static void series_init(struct vm_series *s, const json_t *vms)
{
	*s = (struct vm_series){ .count = json_array_size(vms) };
	s->of = calloc(s->count + 1, sizeof(*s->of));
	for (size_t i = 0; s->of && i < s->count; i++) {
		s->of[i].vm = json_array_get(vms, i);
		s->of[i].label = s->labels.len;
		add_label(&s->labels, "{vm", json_object_get(s->of[i].vm, "name"));
		text_str(&s->labels, "}");
		s->of[i].label_len = s->labels.len - s->of[i].label;
	}
}

static void add_vm_metric(struct text *t, const struct metric *m, const struct vm_series *s)
{
	size_t name_len = strlen(m->name);
	bool has_head = false;

	for (size_t i = 0; i < s->count; i++) {
		const json_t *v = json_object_get(s->of[i].vm, m->key);

		if (!json_is_number(v))
			continue;
		if (!has_head)
			add_head(t, m->name, m->is_counter ? "counter" : "gauge", m->help);
		has_head = true;
		text_add(t, m->name, name_len);
		text_add(t, s->labels.data + s->of[i].label, s->of[i].label_len);
		add_value(t, v, m->scale);
	}
}

static void add_infos(struct text *t, const struct vm_series *s)
{
	if (s->count)
		add_head(t, "brim_vm_info", "gauge", "1 for each VM, with its state and share group");
	for (size_t i = 0; i < s->count; i++) {
		const json_t *vm = s->of[i].vm;

		text_str(t, "brim_vm_info{");
		add_label(t, "vm", json_object_get(vm, "name"));
		add_label(t, ",state", json_object_get(vm, "state"));
		add_label(t, ",share_group", json_object_get(vm, "share_group"));
		text_str(t, "} 1\n");
	}
}

static void add_vms(struct text *t, const json_t *vms)
{
	struct vm_series s;

	series_init(&s, vms);
	if (!s.of || s.labels.failed) {
		t->failed = true;
	} else {
		add_infos(t, &s);
		for (size_t i = 0; i < ARRAY_LEN(vm_metrics); i++)
			add_vm_metric(t, &vm_metrics[i], &s);
	}
	text_fini(&s.labels);
	free(s.of);
}

/* ---- this process ----------------------------------------------------------------------- */

static void add_counters(struct text *t)
{
	for (unsigned i = 0; i < CTR_COUNT_; i++) {
		char name[96];

		if (strncmp(counter_table[i].name, "brimd_", 6) != 0)
			continue;
		snprintf(name, sizeof(name), "%s_total", counter_table[i].name);
		add_head(t, name, "counter", counter_table[i].help);
		text_str(t, name);
		text_str(t, " ");
		text_u64(t, counter_get(i));
		text_str(t, "\n");
	}
}

struct body *metrics_body(const json_t *snapshot)
{
	const json_t *vms = json_object_get(snapshot, "vms");
	struct text t = { 0 };

	add_head(&t, "brim_build_info", "gauge", "1, with brimd's version");
	text_str(&t, "brim_build_info{version=\"" BRIM_VERSION "\"} 1\n");
	add_host(&t, json_object_get(snapshot, "host"));
	add_head(&t, "brim_host_vms", "gauge", "VMs of the host");
	text_str(&t, "brim_host_vms ");
	text_u64(&t, json_array_size(vms));
	text_str(&t, "\n");
	add_vms(&t, vms);
	add_counters(&t);
	return body_of_text(&t);
}
