/*
 * The host and its VMs as JSON.
 */
#include "host/snapshot.h"

#include <string.h>

static json_int_t num(uint64_t v)
{
	return v > INT64_MAX ? INT64_MAX : (json_int_t)v;
}

static void put(json_t *o, const char *key, uint64_t v)
{
	json_object_set_new(o, key, json_integer(num(v)));
}

/* ---- a VM ----------------------------------------------------------------------------- */

static const struct policy_vm_view *view_of(const struct steward *s, const struct policy_vm_plan *p)
{
	const struct policy_views *all = steward_views(s);

	return p ? &all->vms[p - steward_plan(s)->vms] : NULL;
}

static void put_where(json_t *o, const struct policy_vm_view *v)
{
	put(o, "resident_bytes", v->resident_bytes);
	put(o, "staged_bytes", v->staged_bytes);
	put(o, "filled_bytes", v->filled_bytes);
	put(o, "shared_bytes", v->shared_bytes);
	put(o, "packed_bytes", v->packed_bytes);
	put(o, "pool_bytes", v->pool_bytes);
	put(o, "disk_bytes", v->disk_bytes);
	put(o, "ballooned_bytes", v->ballooned_bytes);
	put(o, "untouched_bytes", v->untouched_bytes);
	put(o, "overhead_bytes", v->overhead_bytes);
}

static json_t *reasons_of(const struct guest *g, const struct policy_vm_plan *p)
{
	json_t *list = json_array();
	char text[256];

	if (*g->why)
		json_array_append_new(list, json_string(g->why));
	for (unsigned i = 0; p && i < p->reason_count; i++)
		json_array_append_new(list, json_string(policy_reason_text(&p->reasons[i], text,
									   sizeof(text))));
	return list;
}

static void put_plan(json_t *o, const struct policy_vm_plan *p)
{
	put(o, "limit_bytes", p->limit_bytes);
	put(o, "working_set_bytes", p->working_set_bytes);
	put(o, "balloon_target_bytes", p->balloon_bytes);
	put(o, "held_bytes", p->held_bytes);
	put(o, "refault_ppm", p->refault_ppm);
	put(o, "stall_ppm", p->stall_ppm);
	put(o, "refault_missed_ms", p->refault_missed_ms);
	put(o, "stall_missed_ms", p->stall_missed_ms);
	json_object_set_new(o, "hurts", json_boolean(p->hurts));
}

static void put_rates(json_t *o, const struct stats_rates *r)
{
	json_object_set_new(o, "refaults_per_s", json_real(r->refaults_per_s));
	json_object_set_new(o, "stall_pct", json_real(r->stall_pct));
	json_object_set_new(o, "fault_p99_us", json_real((double)r->fault_p99_ns / 1000));
}

static void put_configured(json_t *o, const struct host_vm *vm)
{
	put(o, "reservation_bytes", vm->reservation_bytes);
	put(o, "shares", vm->shares);
	json_object_set_new(o, "share_group", vm->share_group ? json_string(vm->share_group) :
							       json_null());
}

static json_t *vm_json(struct guest *g, const struct steward *s)
{
	const struct policy_vm_plan *p = steward_plan_of(s, g);
	const struct policy_vm_view *v = view_of(s, p);
	const struct stats_rates rates = steward_rates_of(s, g);
	json_t *o = json_object();

	json_object_set_new(o, "name", json_string(g->paths.name));
	json_object_set_new(o, "state", json_string(v && v->run != POLICY_RUNNING ? "paused" :
						    guest_state_name(g->state)));
	json_object_set_new(o, "why", json_string(g->why));
	put(o, "pid", (uint64_t)g->pid);
	put(o, "memory_bytes", g->pid ? g->memory_bytes : g->vm ? g->vm->memory_bytes : 0);
	json_object_set_new(o, "configured", json_boolean(g->vm));
	if (g->vm)
		put_configured(o, g->vm);
	if (v)
		put_where(o, v);
	if (p)
		put_plan(o, p);
	if (p && rates.seconds > 0)
		put_rates(o, &rates);
	json_object_set_new(o, "reasons", reasons_of(g, p));
	return o;
}

/* ---- the host --------------------------------------------------------------------------- */

static json_t *saved_json(const struct policy_views *all)
{
	uint64_t filled = 0, shared = 0, packed = 0, disk = 0, balloon = 0, untouched = 0;

	for (size_t i = 0; i < all->n; i++) {
		const struct policy_vm_view *v = &all->vms[i];

		filled += v->filled_bytes;
		shared += v->shared_bytes;
		packed += v->packed_bytes > v->pool_bytes ? v->packed_bytes - v->pool_bytes : 0;
		disk += v->disk_bytes;
		balloon += v->ballooned_bytes;
		untouched += v->untouched_bytes;
	}
	return json_pack("{s:I,s:I,s:I,s:I,s:I,s:I}", "filled_bytes", num(filled), "shared_bytes",
			 num(shared), "packed_bytes", num(packed), "disk_bytes", num(disk),
			 "ballooned_bytes", num(balloon), "untouched_bytes", num(untouched));
}

static void put_view(json_t *o, const struct policy_host_view *h)
{
	put(o, "physical_bytes", h->physical_bytes);
	put(o, "usable_bytes", h->usable_bytes);
	put(o, "reserve_bytes", h->reserve_bytes);
	put(o, "available_bytes", h->available_bytes);
	json_object_set_new(o, "psi_some_pct", json_real((double)h->psi_some_ppm / 10000));
	json_object_set_new(o, "psi_full_pct", json_real((double)h->psi_full_ppm / 10000));
}

static json_t *host_json(struct keeper *k, const struct steward *s, const struct host_config *cfg)
{
	const struct policy_plan *p = steward_plan(s);
	uint64_t assigned = 0;
	json_t *o = json_object();
	char text[256];

	for (struct guest *g = keeper_guests(k); g; g = g->next)
		assigned += g->pid ? g->memory_bytes : 0;
	json_object_set_new(o, "name", cfg && cfg->host.name ? json_string(cfg->host.name) :
							       json_null());
	json_object_set_new(o, "configuration", cfg ? json_string(cfg->path) : json_null());
	put(o, "assigned_bytes", assigned);
	put(o, "promised_bytes", keeper_promised(k));
	if (!p)
		return o;
	put_view(o, steward_views(s)->host);
	put(o, "in_use_bytes", p->held_bytes);
	json_object_set_new(o, "state", json_string(policy_state_name(p->state)));
	json_object_set_new(o, "policy_reason", json_string(policy_host_text(p, text, sizeof(text))));
	json_object_set_new(o, "saved", saved_json(steward_views(s)));
	return o;
}

json_t *snapshot(struct keeper *k, const struct steward *s, const struct host_config *cfg)
{
	json_t *vms = json_array();

	for (struct guest *g = keeper_guests(k); g; g = g->next)
		json_array_append_new(vms, vm_json(g, s));
	return json_pack("{s:i,s:o,s:o}", "v", 1, "host", host_json(k, s, cfg), "vms", vms);
}
