/*
 * `brim top`'s samples: from the files of VMs in a run directory of our own, in which this
 * process stands for one VM; order, filter, cells.
 */
#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cli/top.h"

static char base[] = "/tmp/brim-top-XXXXXX";
static struct top t;
static struct err e;
static int locks[8];
static unsigned vm_count;

/* A VM that runs, as far as its lock says, with a copy of this process's file. */
static struct vm_paths start_vm(const char *name)
{
	struct vm_paths p;

	cr_assert_eq(vm_paths_init(&p, base, name, &e), 0, "%s", e.msg);
	cr_assert_eq(rundir_claim(&p, &locks[vm_count++], &e), 0, "%s", e.msg);
	return p;
}

static void begin(void)
{
	cr_assert_not_null(mkdtemp(base));
	cr_assert_eq(setenv("BRIM_RUN_DIR", base, 1), 0);
	cr_assert_eq(top_init(&t, &e), 0, "%s", e.msg);
}

static void end(void)
{
	char cmd[64];

	top_fini(&t);
	stats_destroy();
	snprintf(cmd, sizeof(cmd), "rm -rf %s", base);
	cr_assert_eq(system(cmd), 0);
}

static void publish(uint64_t refaults)
{
	counter_add(CTR_engine_faults_packed, refaults);
	stats_begin();
	gauge_set(GAUGE_state, 1);
	gauge_set(GAUGE_vcpus, 1);
	gauge_set(GAUGE_memory_bytes, GiB);
	gauge_set(GAUGE_resident_bytes, 300 * MiB);
	gauge_set(GAUGE_packed_bytes, 90 * MiB);
	gauge_set(GAUGE_pool_bytes, 30 * MiB);
	stats_end();
}

static void sample(void)
{
	cr_assert_eq(top_sample(&t, &e), 0, "%s", e.msg);
}

static const struct top_column *column(const char *key)
{
	for (unsigned i = 0; i < top_column_count; i++)
		if (strcmp(top_columns[i].key, key) == 0)
			return &top_columns[i];
	cr_assert_fail("no column %s", key);
	return NULL;
}

static const char *cell(const struct top_vm *vm, const char *key)
{
	static char text[80];

	return top_cell(vm, column(key), text, sizeof(text));
}

Test(top, sample_of_a_vm_has_rates_from_the_second_on)
{
	struct vm_paths p;

	begin();
	p = start_vm("web1");
	cr_assert_eq(stats_create(p.stats, &e), 0, "%s", e.msg);
	publish(5);
	sample();
	cr_assert_eq(t.vm_count, 1);
	cr_assert(t.vms[0]->has_view);
	cr_assert_not(t.vms[0]->has_rates);
	cr_assert_str_eq(cell(t.vms[0], "refaults_per_s"), "-");
	cr_assert_str_eq(cell(t.vms[0], "pack_ratio"), "3.0x");
	cr_assert_str_eq(cell(t.vms[0], "memory_bytes"), "1.00G");
	publish(7);
	sample();
	cr_assert(t.vms[0]->has_rates);
	cr_assert_gt(t.vms[0]->rates.refaults_per_s, 0);
	cr_assert_eq(t.vms[0]->points, 2);
	cr_assert_eq(t.host.assigned_bytes, GiB);
	cr_assert_gt(t.host.physical_bytes, 0);
	end();
}

Test(top, vm_started_anew_begins_again)
{
	struct vm_paths p;

	begin();
	p = start_vm("web1");
	cr_assert_eq(stats_create(p.stats, &e), 0, "%s", e.msg);
	publish(100);
	sample();
	sample();
	stats_destroy();
	cr_assert_eq(unlink(p.stats), 0);
	cr_assert_eq(stats_create(p.stats, &e), 0, "%s", e.msg);
	publish(100);
	sample();
	cr_assert(t.vms[0]->has_view);
	cr_assert_not(t.vms[0]->has_rates);
	cr_assert_eq(t.vms[0]->points, 1, "the history is another VM's");
	end();
}

Test(top, vm_that_died_or_is_damaged_has_no_numbers)
{
	struct vm_paths p;
	int fd;

	begin();
	p = start_vm("dead");
	close(locks[0]); /* the file stays, nobody holds the name */
	cr_assert_eq(stats_create(p.stats, &e), 0, "%s", e.msg);
	publish(1);
	p = start_vm("hostile");
	fd = open(p.stats, O_CREAT | O_WRONLY, 0600);
	cr_assert(fd >= 0 && write(fd, "BRIMSTAT\1\0\0\0", 12) == 12);
	sample();
	cr_assert_eq(t.vm_count, 2);
	cr_assert_str_eq(t.vms[0]->state, "died");
	cr_assert_not(t.vms[0]->has_view);
	cr_assert_str_eq(t.vms[1]->state, "silent");
	cr_assert_not(t.vms[1]->has_view);
	cr_assert_eq(t.host.assigned_bytes, 0);
	end();
}

Test(top, vm_that_is_gone_is_forgotten)
{
	struct vm_paths p;

	begin();
	p = start_vm("a");
	start_vm("b");
	sample();
	cr_assert_eq(t.vm_count, 2);
	rundir_release(&p, &locks[0]);
	sample();
	cr_assert_eq(t.vm_count, 1);
	cr_assert_str_eq(t.vms[0]->name, "b");
	end();
}

/* ---- order ------------------------------------------------------------------------------ */

static struct top_vm some[4];
static struct top_vm *list[4] = { &some[0], &some[1], &some[2], &some[3] };

static void some_vms(void)
{
	static const char *const names[] = { "vm1", "vm2", "vm10", "off" };
	static const uint64_t sizes[] = { 2, 3, 2, 0 };

	for (unsigned i = 0; i < 4; i++) {
		some[i] = (struct top_vm){ .state = "running", .has_view = i < 3 };
		snprintf(some[i].name, sizeof(some[i].name), "%s", names[i]);
		some[i].now.gauge[GAUGE_memory_bytes] = sizes[i] * GiB;
	}
	t = (struct top){ .vms = list, .vm_count = 4 };
}

static void order_is(const char *want)
{
	char got[80] = "";
	size_t n;
	struct top_vm **rows = top_ordered(&t, &n);

	for (size_t i = 0; i < n; i++)
		snprintf(got + strlen(got), sizeof(got) - strlen(got), "%s ", rows[i]->name);
	free(rows);
	cr_assert_str_eq(got, want);
}

Test(top, order_by_name_and_by_number)
{
	some_vms();
	order_is("off vm1 vm2 vm10 ");
	t.is_reversed = true;
	order_is("vm10 vm2 vm1 off ");
	t.sort = (unsigned)(column("memory_bytes") - top_columns);
	order_is("vm1 vm10 vm2 off "); /* what is not known stays last */
	t.is_reversed = false;
	order_is("vm2 vm1 vm10 off ");
}

Test(top, filter_is_by_part_of_the_name)
{
	some_vms();
	snprintf(t.filter, sizeof(t.filter), "VM1");
	order_is("vm1 vm10 ");
	snprintf(t.filter, sizeof(t.filter), "none");
	order_is("");
}

Test(top, every_column_has_a_key_and_a_letter_of_its_own)
{
	for (unsigned i = 0; i < top_column_count; i++) {
		cr_assert_str_eq(top_sort_choices[i], top_columns[i].key);
		cr_assert_null(strchr("q?g/r <>+-", top_columns[i].letter), "%s", top_columns[i].key);
		for (unsigned k = 0; k < i; k++)
			cr_assert_neq(top_columns[i].letter, top_columns[k].letter);
	}
	cr_assert_null(top_sort_choices[top_column_count]);
	cr_assert_leq(top_column_count, TOP_COLUMNS_MAX);
}

static void size_is(double bytes, const char *want)
{
	char text[16];

	cr_assert_str_eq(size_short(text, sizeof(text), bytes), want);
	cr_assert_leq(strlen(text), 5);
}

Test(top, short_sizes_fit)
{
	char text[16];

	size_is(0, "0");
	size_is(512, "0.50K");
	size_is(9.99 * 1024, "9.99K");
	size_is(9.996 * 1024, "10.0K");
	size_is(99.96 * 1024, "100K");
	size_is(999.4 * 1024, "999K");
	size_is(999.6 * 1024, "0.98M");
	size_is(24.0 * 1024 * 1024 * 1024, "24.0G");
	size_is(18446744073709551615.0, "16.0E");
	cr_assert_str_eq(time_short(text, sizeof(text), 16383), "16.4us");
	cr_assert_str_eq(time_short(text, sizeof(text), 850), "850ns");
	cr_assert_str_eq(time_short(text, sizeof(text), 5e12), "5000s");
}

/* ---- brimd's part --------------------------------------------------------------------- */

static void fill(void *ctx, struct top *top)
{
	snprintf(top->host.state, sizeof(top->host.state), "%s", (const char *)ctx);
	top->vms[0]->has_policy = true;
	top->vms[0]->shares = 1000;
}

Test(top, what_brimd_knows_is_shown_where_it_says_it)
{
	static char soft[] = "soft";
	json_t *o;

	begin();
	start_vm("web1");
	sample();
	cr_assert_not(top_is_known(&t, column("shares")));
	t.daemon = (struct top_daemon){ .fill = fill, .ctx = soft };
	sample();
	cr_assert(top_is_known(&t, column("shares")));
	cr_assert_str_eq(cell(t.vms[0], "shares"), "1000");
	o = top_json(&t);
	cr_assert_str_eq(json_string_value(json_object_get(json_object_get(o, "host"), "state")), "soft");
	json_decref(o);
	end();
}
