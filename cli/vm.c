/*
 * What several commands do with a VM: find it, ask it something, wait for its
 * end.  One thread; no state.
 */
#include "cli/cli.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#define GONE_POLL_US 10000

bool json_u64(const json_t *o, const char *key, const char *sub, uint64_t *value)
{
	const json_t *v = json_object_get(o, key);

	if (sub)
		v = json_object_get(v, sub);
	if (!json_is_number(v) || json_number_value(v) < 0)
		return false;
	*value = json_is_integer(v) ? (uint64_t)json_integer_value(v) : (uint64_t)json_real_value(v);
	return true;
}

const char *json_text(const json_t *o, const char *key)
{
	const char *text = json_string_value(json_object_get(o, key));

	return text ? text : "";
}

static uint64_t coldest(const json_t *cold)
{
	const json_t *last = json_array_get(cold, json_array_size(cold) - 1);
	json_int_t bytes = json_integer_value(json_array_get(last, 1));

	return bytes > 0 ? (uint64_t)bytes : 0;
}

void memory_of(const json_t *status, struct memory *m)
{
	const json_t *engine = json_object_get(status, "engine");
	uint64_t staged = 0, filled = 0, packed = 0, pool = 0, disk = 0, stored = 0;

	*m = (struct memory){ .engine = json_is_object(engine) };
	m->assigned_known = json_u64(status, "memory_bytes", NULL, &m->assigned_bytes);
	m->resident_known = json_u64(status, "resident_bytes", NULL, &m->resident_bytes);
	json_u64(engine, "limit_bytes", NULL, &m->limit_bytes);
	json_u64(engine, "wanted_bytes", NULL, &m->wanted_bytes);
	json_u64(engine, "staged_bytes", NULL, &staged);
	json_u64(engine, "filled_bytes", NULL, &filled);
	json_u64(engine, "packed_bytes", NULL, &packed);
	json_u64(engine, "pool_bytes", NULL, &pool);
	json_u64(engine, "pool_overhead_bytes", NULL, &m->pool_overhead_bytes);
	json_u64(engine, "own_bytes", NULL, &m->own_bytes);
	json_u64(engine, "disk_bytes", NULL, &disk);
	json_u64(engine, "stored_bytes", NULL, &stored);
	json_u64(engine, "mapped_bytes", NULL, &m->shared_bytes);
	m->shared_bytes += stored;
	m->away_bytes = staged + filled + packed + disk + m->shared_bytes;
	m->away_cost_bytes = staged + pool;
	m->held_bytes = m->resident_bytes + m->away_cost_bytes;
	m->cold_bytes = coldest(json_object_get(engine, "cold_bytes"));
}

int vm_resolve(const char *name, struct vm_paths *p, struct err *e)
{
	char base[RUN_PATH_MAX];
	int rc = rundir_base(base, sizeof(base), e);

	return rc ? rc : vm_paths_init(p, base, name, e);
}

int brimd_open(struct ctl **c, struct err *e)
{
	char base[RUN_PATH_MAX];
	int rc = rundir_base(base, sizeof(base), e);

	return rc ? rc : ctl_open_daemon(c, base, e);
}

int vm_open(const char *name, struct vm_paths *p, struct ctl **c, struct err *e)
{
	int rc = vm_resolve(name, p, e);

	return rc ? rc : ctl_open(c, p, e);
}

int vm_ask(const char *name, const char *cmd, json_t *args, json_t **result, struct err *e)
{
	struct ctl *c = NULL;
	struct vm_paths p;
	int rc;

	rc = vm_open(name, &p, &c, e);
	if (rc) {
		json_decref(args);
		return rc;
	}
	rc = ctl_call(c, cmd, args, CTL_TIMEOUT_MS, result, e);
	ctl_close(&c);
	return rc;
}

bool vm_wait_gone(const struct vm_paths *p, int timeout_ms)
{
	uint64_t until = now_ns() + (uint64_t)timeout_ms * 1000000;
	enum vm_presence presence = VM_RUNNING;

	for (;;) {
		if (rundir_probe(p, &presence, NULL, NULL) || presence != VM_RUNNING)
			return true;
		if (now_ns() >= until)
			return false;
		usleep(GONE_POLL_US);
	}
}

int vm_end_status(const char *name, const json_t *reply, struct err *e)
{
	const char *reason = json_text(reply, "reason"), *detail = json_text(reply, "detail");

	if (strcmp(reason, "poweroff") == 0 || strcmp(reason, "reset") == 0 ||
	    strcmp(reason, "reboot") == 0)
		return CLI_OK;
	err_set(e, 0, "VM %s ended: %s%s%s", name, *reason ? reason : "no reason was given",
		*detail ? ": " : "", detail);
	return strcmp(reason, "killed") == 0 ? CLI_KILLED : CLI_FAILED;
}
