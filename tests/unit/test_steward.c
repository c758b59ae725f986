/*
 * host/steward.c and views.c: what is seen of host and VMs, and that a plan reaches the VMs,
 * each of which is asked one thing of a kind at a time and holds nobody up.
 */
#include "tests/unit/keepbox.h"

#include "host/steward.h"
#include "host/views.h"

static struct steward *s;
static char proc[96];

/* ---- a host's /proc ----------------------------------------------------------------------- */

static void write_file(const char *name, const char *text)
{
	char path[160];
	FILE *f;

	snprintf(path, sizeof(path), "%s/%s", proc, name);
	f = fopen(path, "w");
	cr_assert_not_null(f, "%s", path);
	fputs(text, f);
	fclose(f);
}

static void make_proc(void)
{
	char path[160];

	snprintf(proc, sizeof(proc), "/tmp/brim-proc-XXXXXX");
	cr_assert_not_null(mkdtemp(proc));
	snprintf(path, sizeof(path), "%s/pressure", proc);
	cr_assert_eq(mkdir(path, 0700), 0);
	write_file("meminfo", "MemTotal:        8388608 kB\nMemFree:          100 kB\n"
			      "MemAvailable:    4194304 kB\n");
	write_file("pressure/memory", "some avg10=12.50 avg60=1.00 avg300=0.00 total=77\n"
				      "full avg10=3.25 avg60=0.00 avg300=0.00 total=5\n");
}

static void remove_proc(void)
{
	static const char *const names[] = { "meminfo", "pressure/memory", "pressure" };
	char path[160];

	for (unsigned i = 0; i < ARRAY_LEN(names); i++) {
		snprintf(path, sizeof(path), "%s/%s", proc, names[i]);
		(void)remove(path);
	}
	cr_assert_eq(rmdir(proc), 0);
}

/* ---- views ---------------------------------------------------------------------------------- */

Test(steward, host_is_seen_as_the_kernel_tells_it)
{
	const struct views_host from = { proc, 6 * GiB, GiB };
	struct policy_host_view v;

	make_proc();
	cr_assert_eq(views_host(&from, 1234567890123, &v), 0);
	cr_assert_eq(v.now_ms, 1234567);
	cr_assert_eq(v.physical_bytes, 8 * GiB);
	cr_assert_eq(v.available_bytes, 4 * GiB);
	cr_assert_eq(v.usable_bytes, 6 * GiB);
	cr_assert_eq(v.reserve_bytes, GiB);
	cr_assert_eq(v.psi_some_ppm, 125000);
	cr_assert_eq(v.psi_full_ppm, 32500);
	remove_proc();
	cr_assert_eq(views_host(&from, 0, &v), -ENOENT);
}

Test(steward, host_without_pressure_information_has_none)
{
	struct policy_host_view v;

	make_proc();
	write_file("pressure/memory", "");
	cr_assert_eq(views_host(&(struct views_host){ proc, GiB, 0 }, 0, &v), 0);
	cr_assert_eq(v.psi_some_ppm + v.psi_full_ppm, 0);
	write_file("meminfo", "nonsense\n");
	cr_assert_eq(views_host(&(struct views_host){ proc, GiB, 0 }, 0, &v), -EIO);
	remove_proc();
}

/* What a file says is bounded by what the VM has, however absurd it is. */
Test(steward, vm_that_says_absurd_things_is_bounded_by_its_memory)
{
	struct host_vm vm = { .memory_bytes = 64 * MiB, .reservation_bytes = GiB, .shares = 7, .cpus = 2 };
	struct guest g = { .vm = &vm, .memory_bytes = 32 * MiB, .run_id = 9 };
	static struct stats_view says;
	struct policy_vm_view v;

	for (unsigned i = 0; i < GAUGE_COUNT_; i++)
		says.gauge[i] = UINT64_MAX - 1;
	for (unsigned i = 0; i < CTR_COUNT_; i++)
		says.counter[i] = UINT64_MAX;
	views_vm(&g, &says, &v);
	cr_assert_eq(v.id, 9);
	cr_assert_eq(v.memory_bytes, 32 * MiB, "what it was started with");
	cr_assert_eq(v.reservation_bytes, 32 * MiB);
	cr_assert_eq(v.shares, 7);
	cr_assert(v.resident_bytes <= 32 * MiB && v.pool_bytes <= 32 * MiB && v.disk_bytes <= 32 * MiB &&
		  v.overhead_bytes <= 32 * MiB && v.cold_bytes[0] <= 32 * MiB);
}

/* ---- carried out ------------------------------------------------------------------------------ */

static void begin_steward(const char *mode, const char *vms, uint64_t usable_bytes)
{
	const struct steward_config cfg = { .usable_bytes = usable_bytes, .proc = proc };
	struct err e = { "" };

	make_proc();
	begin(mode, vms);
	cr_assert_eq(steward_create(&s, k, &cfg, &e), 0, "%s", e.msg);
	config->host.memory_bytes = usable_bytes;
	config->policy->period_ms = config->policy->period_short_ms = 100;
	steward_configure(s, config);
	cr_assert_eq(keeper_up(k, NULL, &e), 0);
}

static void step(void)
{
	turn();
	(void)steward_tick(s, now_ns());
}

static void end_steward(void)
{
	end();
	steward_destroy(&s);
	remove_proc();
}

static uint64_t limit_of(const char *name)
{
	struct stats_view v;

	return stats_read(vm(name)->paths.stats, &v, NULL) ? 0 : view_gauge(&v, GAUGE_limit_bytes);
}

Test(steward, vms_are_limited_where_memory_is_short)
{
	uint64_t until_ns = now_ns() + PATIENCE_NS, sum = 0;

	begin_steward("", "  - {name: a, memory: 256M}\n  - {name: b, memory: 256M}\n", 200 * MiB);
	while (!limit_of("a") || !limit_of("b")) {
		step();
		cr_assert_lt(now_ns(), until_ns);
	}
	for (unsigned i = 0; i < 30; i++)
		step();
	sum = limit_of("a") + limit_of("b");
	cr_assert_leq(sum, 200 * MiB + 32 * MiB, "%lu MiB", (unsigned long)(sum / MiB));
	cr_assert_not_null(steward_plan(s));
	cr_assert_eq(steward_views(s)->n, 2);
	cr_assert_not_null(steward_plan_of(s, vm("a")));
	end_steward();
}

/* It has numbers, and answers nothing: of each kind it is asked once. */
Test(steward, mute_vm_is_asked_once_and_holds_nobody_up)
{
	uint64_t began, longest = 0, until_ns = now_ns() + PATIENCE_NS;
	unsigned most = 0;

	begin_steward("mute", "  - {name: a, memory: 256M}\n  - {name: b, memory: 256M}\n", 100 * MiB);
	while (!most) {
		step();
		for (struct guest *g = keeper_guests(k); g; g = g->next)
			most = g->link && link_calls(g->link) > most ? link_calls(g->link) : most;
		cr_assert_lt(now_ns(), until_ns);
	}
	for (unsigned i = 0; i < 100; i++) {
		began = now_ns();
		(void)poller_turn(&poller, 0);
		keeper_tick(k, began);
		(void)steward_tick(s, began + i * 200000000ull);
		longest = now_ns() - began > longest ? now_ns() - began : longest;
		for (struct guest *g = keeper_guests(k); g; g = g->next)
			cr_assert(!g->link || link_calls(g->link) <= 2);
	}
	cr_assert_lt(longest, S_NS / 2);
	end_steward();
}

Test(steward, vm_of_nobody_is_not_told_anything)
{
	uint64_t until_ns = now_ns() + PATIENCE_NS;

	begin_steward("", "  - {name: a, memory: 256M}\n  - {name: b, memory: 256M}\n", 100 * MiB);
	while (!limit_of("a") || !limit_of("b")) {
		step();
		cr_assert_lt(now_ns(), until_ns);
	}
	load("  - {name: a, memory: 256M}\n");
	steward_configure(s, config);
	for (unsigned i = 0; i < 20; i++)
		step();
	cr_assert_null(vm("b")->vm);
	cr_assert_null(steward_plan_of(s, vm("b")));
	cr_assert_eq(steward_views(s)->n, 1);
	end_steward();
}
