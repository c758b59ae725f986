/*
 * Looking at VMs: `brim ps`, `status`, `stats`, `log`.
 * One thread; no state.
 */
#include "cli/cli.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "mm/mm.h"

#define PS_TIMEOUT_MS 2000
#define NOTHING "-"

/* ---- one VM as JSON ------------------------------------------------------------------ */

/* What can be told of a VM that does not answer. */
static json_t *bare_status(const struct vm_paths *p, const char *state, pid_t pid)
{
	json_t *o = json_pack("{s:s, s:s}", "name", p->name, "state", state);
	char log[512];

	if (!o)
		return NULL;
	if (pid)
		json_object_set_new(o, "pid", json_integer(pid));
	rundir_last_log(p, log, sizeof(log));
	if (*log)
		json_object_set_new(o, "last_log", json_string(log));
	return o;
}

/* The VM's own answer; else its state is "died", "starting" (no socket yet, or no
 * more) or "silent".  NULL when there is no such VM (any more). */
static json_t *status_of(const struct vm_paths *p)
{
	enum vm_presence presence;
	json_t *status = NULL;
	struct ctl *c = NULL;
	pid_t pid;
	int rc;

	if (rundir_probe(p, &presence, &pid, NULL))
		return bare_status(p, "silent", 0);
	if (presence == VM_DIED)
		return bare_status(p, "died", 0);
	if (presence == VM_ABSENT)
		return NULL;
	rc = ctl_open(&c, p, NULL);
	if (!rc)
		rc = ctl_call(c, "status", NULL, PS_TIMEOUT_MS, &status, NULL);
	ctl_close(&c);
	if (!rc)
		return status;
	return bare_status(p, rc == -ENOENT || rc == -ECONNREFUSED || rc == -ECONNRESET ? "starting"
											: "silent", pid);
}

static enum colour state_colour(const char *state)
{
	if (strcmp(state, "running") == 0)
		return GREEN;
	if (strcmp(state, "died") == 0 || strcmp(state, "silent") == 0)
		return RED;
	return YELLOW;
}

/* ---- ps ------------------------------------------------------------------------------- */

static void size_or_nothing(struct table *t, const json_t *vm, const char *key, const char *sub)
{
	uint64_t bytes;

	if (json_u64(vm, key, sub, &bytes))
		table_size(t, bytes);
	else
		table_cell(t, PLAIN, NOTHING);
}

static void number_or_nothing(struct table *t, const json_t *vm, const char *key)
{
	uint64_t n;

	if (json_u64(vm, key, NULL, &n))
		table_number(t, (int64_t)n);
	else
		table_cell(t, PLAIN, NOTHING);
}

/* All that the VM's memory takes of the host, packed or not. */
static void cost_or_nothing(struct table *t, const json_t *vm)
{
	struct memory m;

	memory_of(vm, &m);
	if (m.resident_known)
		table_size(t, m.held_bytes);
	else
		table_cell(t, PLAIN, NOTHING);
}

static void ps_row(struct table *t, const json_t *vm)
{
	const char *state = json_text(vm, "state");
	char text[32] = NOTHING;
	uint64_t uptime;

	table_cell(t, PLAIN, json_text(vm, "name"));
	table_cell(t, state_colour(state), state);
	number_or_nothing(t, vm, "cpus");
	size_or_nothing(t, vm, "memory_bytes", NULL);
	cost_or_nothing(t, vm);
	size_or_nothing(t, vm, "balloon", "actual_bytes");
	size_or_nothing(t, vm, "guest", "available_bytes");
	if (json_u64(vm, "uptime_s", NULL, &uptime))
		duration_format(text, sizeof(text), uptime);
	table_cell(t, PLAIN, text);
	number_or_nothing(t, vm, "pid");
}

static void ps_sum(const json_t *vms)
{
	uint64_t assigned_bytes = 0, resident_bytes = 0;
	char assigned[32], resident[32];
	const json_t *vm;
	struct memory m;
	size_t i;

	json_array_foreach(vms, i, vm) {
		memory_of(vm, &m);
		assigned_bytes += m.assigned_bytes;
		resident_bytes += m.held_bytes;
	}
	printf("%zu VMs: %s assigned, %s resident\n", json_array_size(vms),
	       size_format(assigned, sizeof(assigned), assigned_bytes),
	       size_format(resident, sizeof(resident), resident_bytes));
}

static void ps_table(const json_t *vms)
{
	static const struct column columns[] = {
		{ "NAME", false }, { "STATE", false }, { "CPUS", true }, { "MEMORY", true },
		{ "RESIDENT", true }, { "BALLOON", true }, { "AVAILABLE", true }, { "UPTIME", true },
		{ "PID", true },
	};
	struct table *t = table_create(columns, ARRAY_LEN(columns));
	const json_t *vm;
	size_t i;

	json_array_foreach(vms, i, vm)
		ps_row(t, vm);
	table_print(t, stdout);
	table_destroy(&t);
	if (json_array_size(vms) > 1)
		ps_sum(vms);
}

static void ps_names(const char *const *names, size_t count)
{
	for (size_t i = 0; i < count; i++)
		puts(names[i]);
}

static int ps_print(const struct args *a, const char *base, char *const *names, size_t count,
		    struct err *e)
{
	json_t *vms = json_array();
	struct vm_paths p;

	if (!vms)
		return err_sys(e, -ENOMEM, "the list of VMs");
	for (size_t i = 0; i < count; i++)
		if (vm_paths_init(&p, base, names[i], NULL) == 0)
			json_array_append_new(vms, status_of(&p)); /* refuses NULL: gone meanwhile */
	if (a->json)
		json_print(stdout, vms);
	else
		ps_table(vms);
	json_decref(vms);
	return 0;
}

int cmd_ps(const struct invocation *in)
{
	const struct args *a = in->args;
	char base[RUN_PATH_MAX], **names = NULL;
	size_t count = 0;
	struct err e;
	int rc;

	rc = rundir_base(base, sizeof(base), &e);
	if (!rc)
		rc = rundir_list(base, &names, &count, &e);
	if (!rc && a->quiet && !a->json)
		ps_names((const char *const *)names, count);
	else if (!rc)
		rc = ps_print(a, base, names, count, &e);
	rundir_list_free(&names, count);
	return rc ? cli_fail(&e) : CLI_OK;
}

/* ---- status ---------------------------------------------------------------------------- */

static void line(const char *key, const char *value)
{
	printf("%-12s %s\n", key, value);
}

static bool size_at(const json_t *vm, const char *key, const char *sub, char *buf, size_t len)
{
	uint64_t bytes;

	if (!json_u64(vm, key, sub, &bytes))
		return false;
	size_format(buf, len, bytes);
	return true;
}

static void status_head(const json_t *vm)
{
	const char *state = json_text(vm, "state");
	uint64_t uptime = 0, n = 0;
	char text[64];

	printf("%-12s %s%s%s\n", "state", colour_code(stdout, state_colour(state)), state,
	       colour_code(stdout, PLAIN));
	if (json_u64(vm, "uptime_s", NULL, &uptime))
		line("uptime", duration_format(text, sizeof(text), uptime));
	if (json_u64(vm, "reboots", NULL, &n) && n > 0)
		printf("%-12s %" PRIu64 "\n", "reboots", n);
	if (json_u64(vm, "pid", NULL, &n))
		printf("%-12s %" PRIu64 "\n", "pid", n);
	if (json_u64(vm, "cpus", NULL, &n))
		printf("%-12s %" PRIu64 "\n", "cpus", n);
	if (*json_text(vm, "kernel"))
		line("kernel", json_text(vm, "kernel"));
	if (*json_text(vm, "last_log"))
		line("last log", json_text(vm, "last_log"));
}

static void status_memory(const json_t *vm)
{
	char memory[32], resident[32], own[32];
	struct memory m;

	memory_of(vm, &m);
	if (!m.assigned_known || !m.resident_known || !size_at(vm, "vmm_bytes", NULL, own, sizeof(own)))
		return;
	printf("%-12s %s assigned, %s resident, and %s for the VM itself\n", "memory",
	       size_format(memory, sizeof(memory), m.assigned_bytes),
	       size_format(resident, sizeof(resident), m.held_bytes), own);
}

static void status_limit(const json_t *vm)
{
	char limit[32], in_ram[32], away[32], cost[32], wanted[32];
	struct memory m;

	memory_of(vm, &m);
	if (!m.engine)
		return;
	printf("%-12s %s; %s in RAM, ", "limit",
	       m.limit_bytes ? size_format(limit, sizeof(limit), m.limit_bytes) : "none",
	       size_format(in_ram, sizeof(in_ram), m.resident_bytes));
	if (m.away_bytes)
		printf("%s away in %s", size_format(away, sizeof(away), m.away_bytes),
		       size_format(cost, sizeof(cost), m.away_cost_bytes));
	else
		printf("nothing away");
	if (m.wanted_bytes)
		printf(", %s still to be taken", size_format(wanted, sizeof(wanted), m.wanted_bytes));
	printf("\n");
}

static uint64_t per_gib(uint64_t bytes, const struct memory *m)
{
	return (uint64_t)((double)bytes * (double)GiB / (double)m->assigned_bytes);
}

/* What it costs to have an engine: in all, and for each GiB of RAM. */
static void status_overhead(const json_t *vm)
{
	char own[32], own_gib[32], pool[32], pool_gib[32];
	struct memory m;

	memory_of(vm, &m);
	if (!m.engine || !m.assigned_bytes)
		return;
	printf("%-12s %s of tables (%s per GiB of RAM), %s of the pool is overhead (%s per GiB)\n",
	       "engine", size_format(own, sizeof(own), m.own_bytes),
	       size_format(own_gib, sizeof(own_gib), per_gib(m.own_bytes, &m)),
	       size_format(pool, sizeof(pool), m.pool_overhead_bytes),
	       size_format(pool_gib, sizeof(pool_gib), per_gib(m.pool_overhead_bytes, &m)));
}

/* The swap file, where there is one. */
static void status_swap(const json_t *engine)
{
	char used[32], size[32], live[32], away[32], in[32], out[32];
	uint64_t file_bytes = 0, failures = 0;

	json_u64(engine, "disk_size_bytes", NULL, &file_bytes);
	size_format(size, sizeof(size), file_bytes);
	if (!file_bytes ||
	    !size_at(engine, "disk_used_bytes", NULL, used, sizeof(used)) ||
	    !size_at(engine, "disk_live_bytes", NULL, live, sizeof(live)) ||
	    !size_at(engine, "disk_bytes", NULL, away, sizeof(away)) ||
	    !size_at(engine, "disk_read_bytes", NULL, in, sizeof(in)) ||
	    !size_at(engine, "disk_written_bytes", NULL, out, sizeof(out)))
		return;
	printf("%-12s %s of %s used, %s live for %s of memory; %s read, %s written", "swap", used,
	       size, live, away, in, out);
	json_u64(engine, "disk_failures", NULL, &failures);
	if (failures)
		printf(", %s%" PRIu64 " failure%s%s (see `brim stats`)", colour_code(stdout, RED),
		       failures, failures == 1 ? "" : "s", colour_code(stdout, PLAIN));
	printf("\n");
}

/* Pages packed against similar ones, where there are any. */
static void status_deltas(const json_t *engine)
{
	char pages[32], saved[32], orphans[32];
	uint64_t bytes = 0, kept = 0;

	json_u64(engine, "delta_bytes", NULL, &bytes);
	json_u64(engine, "delta_orphan_bytes", NULL, &kept);
	if ((!bytes && !kept) ||
	    !size_at(engine, "delta_saved_bytes", NULL, saved, sizeof(saved)))
		return;
	printf("%-12s %" PRIu64 " pages (%s) packed against similar ones, %s less than alone; %s kept "
	       "only for them\n", "deltas", bytes / PAGE_BYTES, size_format(pages, sizeof(pages), bytes),
	       saved, size_format(orphans, sizeof(orphans), kept));
}

static void status_sharing(const json_t *vm)
{
	const json_t *s = json_object_get(vm, "sharing");
	char shared[32];
	struct memory m;

	if (!json_is_object(s))
		return;
	memory_of(vm, &m);
	printf("%-12s group %s, %s", "sharing", json_text(s, "group"), json_text(s, "state"));
	if (*json_text(s, "why"))
		printf(" (%s)", json_text(s, "why"));
	if (m.engine)
		printf("; %s shared", size_format(shared, sizeof(shared), m.shared_bytes));
	printf("\n");
}

static void status_balloon(const json_t *vm)
{
	const json_t *balloon = json_object_get(vm, "balloon");
	char target[32], actual[32], reported[32];

	if (!balloon)
		return;
	if (!json_is_true(json_object_get(balloon, "ready"))) {
		line("balloon", "the guest has no driver for it (yet)");
		return;
	}
	if (size_at(balloon, "target_bytes", NULL, target, sizeof(target)) &&
	    size_at(balloon, "actual_bytes", NULL, actual, sizeof(actual)) &&
	    size_at(balloon, "reported_bytes", NULL, reported, sizeof(reported)))
		printf("%-12s %s of %s asked for; %s reported free so far\n", "balloon", actual, target,
		       reported);
}

static void status_guest(const json_t *vm)
{
	char total[32], available[32], unused[32];
	uint64_t age = 0;

	if (!size_at(vm, "guest", "total_bytes", total, sizeof(total)) ||
	    !size_at(vm, "guest", "available_bytes", available, sizeof(available)) ||
	    !size_at(vm, "guest", "free_bytes", unused, sizeof(unused)))
		return;
	json_u64(vm, "guest", "age_s", &age);
	printf("%-12s %s available of %s, %s of it unused (%" PRIu64 " s ago)\n", "guest", available,
	       total, unused, age);
}

static void status_devices(const json_t *vm)
{
	const json_t *o;
	size_t i;

	json_array_foreach(json_object_get(vm, "disks"), i, o)
		printf("%-12s %s%s\n", json_text(o, "label"), json_text(o, "path"),
		       json_is_true(json_object_get(o, "readonly")) ? " (read only)" : "");
	json_array_foreach(json_object_get(vm, "nets"), i, o)
		printf("%-12s %s, %s\n", json_text(o, "label"), json_text(o, "tap"), json_text(o, "mac"));
}

static void status_print(const json_t *vm)
{
	line("name", json_text(vm, "name"));
	status_head(vm);
	status_memory(vm);
	status_limit(vm);
	status_overhead(vm);
	status_deltas(json_object_get(vm, "engine"));
	status_swap(json_object_get(vm, "engine"));
	status_sharing(vm);
	status_balloon(vm);
	status_guest(vm);
	status_devices(vm);
}

int cmd_status(const struct invocation *in)
{
	const struct args *a = in->args;
	const char *name = in->pos.items[0];
	json_t *vm = NULL;
	struct vm_paths p;
	struct err e;

	if (vm_resolve(name, &p, &e))
		return cli_fail(&e);
	vm = status_of(&p);
	if (!vm) {
		err_set(&e, -ENOENT, "there is no VM named %s (`brim ps` lists them)", name);
		return cli_fail(&e);
	}
	if (a->json)
		json_print(stdout, vm);
	else
		status_print(vm);
	json_decref(vm);
	return CLI_OK;
}

/* ---- stats ------------------------------------------------------------------------------- */

static const struct counter_info *find_counter(const char *name)
{
	for (size_t i = 0; i < CTR_COUNT_; i++)
		if (strcmp(counter_table[i].name, name) == 0)
			return &counter_table[i];
	return NULL;
}

/* The VM may be of another brim than this one: unknown counters have no text. */
static void stats_print(json_t *counters, bool all)
{
	static const struct column columns[] = {
		{ "COUNTER", false }, { "VALUE", true }, { "UNIT", false }, { "MEANING", false },
	};
	struct table *t = table_create(columns, ARRAY_LEN(columns));
	const char *name;
	json_t *value;

	json_object_foreach(counters, name, value) {
		const struct counter_info *c = find_counter(name);

		if (!all && json_integer_value(value) == 0)
			continue;
		table_cell(t, PLAIN, name);
		table_number(t, json_integer_value(value));
		table_cell(t, PLAIN, c ? c->unit : "");
		table_cell(t, PLAIN, c ? c->help : "");
	}
	table_print(t, stdout);
	table_destroy(&t);
}

int cmd_stats(const struct invocation *in)
{
	const struct args *a = in->args;
	json_t *stats = NULL;
	struct err e;

	if (vm_ask(in->pos.items[0], "stats", NULL, &stats, &e))
		return cli_fail(&e);
	if (a->json)
		json_print(stdout, stats);
	else
		stats_print(json_object_get(stats, "counters"), a->all);
	json_decref(stats);
	return CLI_OK;
}

/* ---- log ---------------------------------------------------------------------------------- */

static int copy_out(int fd, const char *path, struct err *e)
{
	char buf[16 * KiB];
	ssize_t n;

	while ((n = read(fd, buf, sizeof(buf))) > 0)
		if (fwrite(buf, 1, (size_t)n, stdout) != (size_t)n)
			break; /* cli_main() reports it */
	return n < 0 ? err_sys(e, -errno, "cannot read %s", path) : 0;
}

int cmd_log(const struct invocation *in)
{
	const char *name = in->pos.items[0];
	enum vm_presence presence;
	struct vm_paths p;
	struct err e;
	int fd, rc;

	rc = vm_resolve(name, &p, &e);
	if (!rc)
		rc = rundir_probe(&p, &presence, NULL, &e);
	if (!rc && presence == VM_ABSENT)
		rc = err_set(&e, -ENOENT, "there is no VM named %s (`brim ps` lists them)", name);
	if (rc)
		return cli_fail(&e);
	fd = open(p.log, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
	if (fd < 0) {
		rc = err_sys(&e, -errno, "VM %s: cannot read its log %s", name, p.log);
	} else {
		rc = copy_out(fd, p.log, &e);
		close(fd);
	}
	return rc ? cli_fail(&e) : CLI_OK;
}
