/*
 * Traces: read, written, and those of examples/traces played to the policy.  What must come
 * out are bounds, not figures: the model is deterministic, and a change for the better is none
 * to be caught.
 */
#include <criterion/criterion.h>

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/lib/policycheck.h"
#include "tests/unit/policybox.h"

/* ---- reading and writing ----------------------------------------------------------------- */

static int read_text(const char *text, struct policy_trace **t, struct err *e)
{
	FILE *f = fmemopen((void *)(uintptr_t)text, strlen(text), "r");
	int rc;

	cr_assert(f);
	rc = policy_trace_read(t, f, "t", e);
	fclose(f);
	return rc;
}

#define HEAD "{\"brim_trace\":1,\"host\":{\"physical_bytes\":\"4G\",\"reserve_bytes\":\"1G\"},\"end_ms\":5000}\n"

Test(policy_trace, reader_takes_what_is_not_said_from_before)
{
	struct policy_trace *t;
	struct err e;

	cr_assert_eq(read_text(HEAD "\n{\"t_ms\":0,\"vm\":\"a\",\"memory_bytes\":\"1G\",\"used_bytes\":\"512M\"}\n"
				    "{\"t_ms\":2000,\"vm\":\"a\",\"working_set_bytes\":1048576,\"says_bytes\":0}\n"
				    "{\"t_ms\":2000,\"vm\":\"b\",\"memory_bytes\":\"2G\",\"can_pack\":false}\n", &t, &e), 0,
		     "%s", e.msg);
	cr_assert_eq(t->host.usable_bytes, 3 * GiB);
	cr_assert_eq(t->vms, 2);
	cr_assert_eq(t->events, 3);
	cr_assert_eq(t->event[1].demand.used_bytes, 512 * MiB);
	cr_assert_eq(t->event[1].demand.working_set_bytes, MiB);
	cr_assert_eq(t->event[1].demand.says_bytes, 0);
	cr_assert_eq(t->event[2].demand.says_bytes, UINT64_MAX);
	cr_assert(t->vm[0].view.can_pack && !t->vm[1].view.can_pack);
	cr_assert_eq(t->end_ms, 5000);
	policy_trace_destroy(&t);
	cr_assert(!t);
}

Test(policy_trace, errors_name_file_line_and_key)
{
	static const struct { const char *text, *says; } rows[] = {
		{ "", "t: host: physical_bytes" },
		{ HEAD, "t: no VM in it" },
		{ "{\"t_ms\":0,\"vm\":\"a\",\"memory_bytes\":1}\n", "t:1: brim_trace: the first line is missing" },
		{ HEAD HEAD, "t:2: brim_trace: comes once" },
		{ "{\"brim_trace\":2}\n", "t:1: brim_trace: 1 was expected" },
		{ HEAD "{\n", "t:2: not JSON" },
		{ HEAD "[]\n", "t:2: an object was expected" },
		{ HEAD "{\"vm\":\"a\"}\n", "t:2: t_ms: is missing" },
		{ HEAD "{\"t_ms\":-1,\"vm\":\"a\"}\n", "t:2: t_ms: a whole number" },
		{ HEAD "{\"t_ms\":0}\n", "t:2: vm: a name" },
		{ HEAD "{\"t_ms\":0,\"vm\":\"a\"}\n", "t:2: a: memory_bytes" },
		{ HEAD "{\"t_ms\":0,\"vm\":\"a\",\"memory_bytes\":\"1X\"}\n", "t:2: memory_bytes" },
		{ HEAD "{\"t_ms\":0,\"vm\":\"a\",\"memory_bytes\":\"1G\",\"can_disk\":1}\n", "t:2: can_disk: true or" },
		{ HEAD "{\"t_ms\":9,\"vm\":\"a\",\"memory_bytes\":\"1G\"}\n{\"t_ms\":1,\"vm\":\"a\"}\n",
		  "t:3: t_ms: goes back" },
	};

	for (size_t i = 0; i < ARRAY_LEN(rows); i++) {
		struct policy_trace *t = NULL;
		struct err e;

		cr_assert_eq(read_text(rows[i].text, &t, &e), -EINVAL, "row %zu", i);
		cr_assert(strstr(e.msg, rows[i].says) == e.msg, "row %zu: %s", i, e.msg);
		cr_assert(!t);
	}
}

/* What was recorded is read as what the guests wanted. */
Test(policy_trace, recorded_views_can_be_played)
{
	char *text = NULL;
	size_t bytes = 0;
	FILE *f = open_memstream(&text, &bytes);
	struct policy_result result;
	struct policy_trace *t;
	struct policy_sim sim;
	struct box b;
	struct err e;

	box_open(&b, 2);
	box_uses(&b, 0, 6 * GiB, 2 * GiB);
	box_uses(&b, 1, 3 * GiB, 3 * GiB);
	b.vm[0].name = "one";
	b.vm[1].name = "two";
	b.vm[1].packed_bytes = GiB;
	b.vm[1].untouched_bytes -= GiB;
	for (unsigned i = 0; i < 10; i++) {
		b.host.now_ms += 1000;
		cr_assert_eq(policy_trace_write(f, &b.views), 0);
	}
	fclose(f);
	cr_assert_eq(read_text(text, &t, &e), 0, "%s", e.msg);
	cr_assert_eq(t->vms, 2);
	cr_assert_eq(t->events, 20);
	cr_assert_eq(t->event[0].t_ms, 0);
	cr_assert_str_eq(t->vm[1].name, "two");
	cr_assert_eq(t->event[0].demand.used_bytes, 6 * GiB);
	cr_assert_eq(t->event[0].demand.working_set_bytes, 2 * GiB);
	cr_assert_eq(t->event[1].demand.used_bytes, 4 * GiB);
	cr_assert_eq(t->host.usable_bytes, 16 * GiB);
	sim = (struct policy_sim){ .trace = t, .config = &b.config, .rule = policy_rules };
	cr_assert_eq(policy_simulate(&sim, &result), 0);
	cr_assert_geq(result.duration_ms, 9000);
	policy_trace_destroy(&t);
	free(text);
	box_close(&b);
}

/* ---- playing -------------------------------------------------------------------------------- */

struct played {
	struct policy_result of[4]; /* by rule */
	struct policy_config config;
	struct policy_before before[POLICY_TRACE_VMS + 1]; /* by id */
	uint64_t changes_after_ms, changes;
	uint64_t last_limit[POLICY_TRACE_VMS + 1];
};

/* Invariants hold in a run, too; and how often limits move once all is calm. */
static void seen(void *ctx, const struct policy_views *v, const struct policy_plan *p)
{
	struct played *d = ctx;
	struct policy_before before[POLICY_TRACE_VMS];

	for (size_t i = 0; i < v->n; i++) {
		uint64_t id = v->vms[i].id;

		before[i] = d->before[id];
		d->before[id].limit_bytes = p->vms[i].limit_bytes;
		d->changes += v->host->now_ms >= d->changes_after_ms &&
			      d->last_limit[id] != p->vms[i].limit_bytes;
		d->last_limit[id] = p->vms[i].limit_bytes;
	}
	check_plan(&d->config, v, p, before);
}

static void play(struct played *d, const char *name, uint64_t calm_ms)
{
	char path[256];
	struct policy_trace *t;
	struct err e;
	FILE *f;

	snprintf(path, sizeof(path), "examples/traces/%s.jsonl", name);
	f = fopen(path, "r");
	cr_assert(f, "%s: run this from the top of the tree", path);
	cr_assert_eq(policy_trace_read(&t, f, path, &e), 0, "%s", e.msg);
	fclose(f);
	*d = (struct played){ .changes_after_ms = calm_ms };
	policy_config_default(&d->config);
	for (unsigned i = 0; policy_rules[i].name; i++) {
		struct policy_sim sim = { .trace = t, .config = &d->config, .rule = &policy_rules[i] };

		if (i == 0)
			sim.seen = seen, sim.ctx = d;
		cr_assert_eq(policy_simulate(&sim, &d->of[i]), 0);
	}
	policy_trace_destroy(&t);
}

enum { BRIM, LADDER, STATIC };

static uint64_t missed_ms(const struct policy_result *r)
{
	uint64_t ms = 0;

	for (unsigned i = 0; i < r->vms; i++)
		ms += r->vm[i].stall_missed_ms;
	return ms;
}

static uint64_t worst_ppm(const struct policy_result *r)
{
	uint64_t ppm = 0;

	for (unsigned i = 0; i < r->vms; i++)
		ppm = r->vm[i].worst_stall_ppm > ppm ? r->vm[i].worst_stall_ppm : ppm;
	return ppm;
}

static void nobody_died(const struct policy_result *r)
{
	cr_assert_eq(r->out_of_memory_ms, 0);
	cr_assert_gt(r->least_free_bytes, 0);
	for (unsigned i = 0; i < r->vms; i++)
		cr_assert_eq(r->vm[i].stopped_ms, 0);
}

Test(policy_replay, all_idle_comes_to_rest_without_a_refault)
{
	struct played d;

	play(&d, "all-idle", 300000);
	nobody_died(&d.of[BRIM]);
	for (unsigned i = 0; i < d.of[BRIM].vms; i++)
		cr_assert_eq(d.of[BRIM].vm[i].refaults, 0);
	cr_assert_gt(d.of[BRIM].state_ms[POLICY_HIGH], 300000);
	cr_assert_leq(d.changes, 8 * 4, "%lu", d.changes); /* in five minutes */
}

Test(policy_replay, one_waking_has_its_memory_soon_and_others_feel_nothing)
{
	struct played d;

	play(&d, "one-waking", 0);
	nobody_died(&d.of[BRIM]);
	/* booting is 16 s of it; the ladder's never recovers, nor a fixed part */
	cr_assert_lt(d.of[BRIM].vm[0].stall_missed_ms, 60000);
	cr_assert_gt(d.of[LADDER].vm[0].stall_missed_ms, 200000);
	cr_assert_gt(d.of[STATIC].vm[0].stall_missed_ms, 200000);
	for (unsigned i = 1; i < 8; i++)
		cr_assert_eq(d.of[BRIM].vm[i].refaults, 0);
}

Test(policy_replay, all_waking_are_slow_alike_and_the_host_lives)
{
	struct played d;

	play(&d, "all-waking", 0);
	nobody_died(&d.of[BRIM]);
	for (unsigned i = 1; i < 8; i++) {
		uint64_t a = d.of[BRIM].vm[0].mean_held_bytes, b = d.of[BRIM].vm[i].mean_held_bytes;

		cr_assert(a < b + b / 20 && b < a + a / 20);
	}
	cr_assert_gt(d.of[LADDER].out_of_memory_ms, 5000);
	/* and calm again afterwards */
	cr_assert_gt(d.of[BRIM].state_ms[POLICY_HIGH], 250000);
}

Test(policy_replay, slow_leak_is_nobody_elses_loss)
{
	struct played d;

	play(&d, "slow-leak", 0);
	nobody_died(&d.of[BRIM]);
	cr_assert_eq(missed_ms(&d.of[BRIM]), 0);
	cr_assert_gt(missed_ms(&d.of[LADDER]), 50000);
}

Test(policy_replay, liar_leaves_the_others_in_peace)
{
	struct played d;
	uint64_t honest = 0;

	play(&d, "liar", 0);
	nobody_died(&d.of[BRIM]);
	for (unsigned i = 1; i < 8; i++)
		honest = d.of[BRIM].vm[i].stall_missed_ms > honest ? d.of[BRIM].vm[i].stall_missed_ms : honest;
	cr_assert_lt(honest, 60000);
	cr_assert_gt(d.of[BRIM].vm[0].stall_missed_ms, 4 * honest);
	for (unsigned i = 1; i < 8; i++)
		cr_assert_gt(d.of[LADDER].vm[i].stall_missed_ms, 200000);
}

Test(policy_replay, boot_storm_does_not_run_the_host_out)
{
	struct played d;

	play(&d, "boot-storm", 200000);
	nobody_died(&d.of[BRIM]);
	cr_assert_gt(d.of[LADDER].out_of_memory_ms, 5000);
	cr_assert_gt(d.of[BRIM].state_ms[POLICY_HIGH], 200000);
	cr_assert_leq(d.changes, 8 * 6, "%lu", d.changes);
}

Test(policy_replay, diurnal_memory_follows_the_day)
{
	struct played d;

	play(&d, "diurnal", 0);
	nobody_died(&d.of[BRIM]);
	cr_assert_lt(worst_ppm(&d.of[BRIM]), 300000);
	cr_assert_gt(worst_ppm(&d.of[LADDER]), 900000);
	cr_assert_lt(missed_ms(&d.of[BRIM]) * 2, missed_ms(&d.of[STATIC]));
}

/* A guest gains nothing by what it says, and loses nothing but the balloon by being deaf to it. */
static uint64_t held_by_first(const char *more, unsigned set_mib)
{
	char *text = NULL;
	size_t bytes = 0;
	FILE *f = open_memstream(&text, &bytes);
	struct policy_result result;
	struct policy_config c;
	struct policy_trace *t;
	struct policy_sim sim;
	struct err e;

	fputs("{\"brim_trace\":1,\"host\":{\"physical_bytes\":\"16G\",\"reserve_bytes\":\"1G\"},\"end_ms\":400000}\n", f);
	for (unsigned i = 1; i <= 8; i++)
		fprintf(f, "{\"t_ms\":0,\"vm\":\"vm%u\",\"memory_bytes\":\"3G\",\"used_bytes\":\"2700M\","
			"\"working_set_bytes\":\"%uM\"%s}\n", i, set_mib, i == 1 ? more : "");
	fclose(f);
	cr_assert_eq(read_text(text, &t, &e), 0, "%s", e.msg);
	policy_config_default(&c);
	sim = (struct policy_sim){ .trace = t, .config = &c, .rule = policy_rules };
	cr_assert_eq(policy_simulate(&sim, &result), 0);
	policy_trace_destroy(&t);
	free(text);
	return result.vm[0].mean_held_bytes;
}

Test(policy_replay, liar_holds_what_an_honest_one_would)
{
	static const char *const lies[] = {
		",\"says_bytes\":0", ",\"says_bytes\":0,\"balloon_dead\":true", ",\"balloon_dead\":true",
		",\"says_bytes\":\"3G\",\"balloon_dead\":true",
	};
	uint64_t honest = held_by_first("", 1500);

	for (size_t i = 0; i < ARRAY_LEN(lies); i++)
		cr_assert_lt(held_by_first(lies[i], 1500), honest + honest / 50, "lie %zu", i);
}

/* Memory by shares, where everybody wants more than there is. */
Test(policy_replay, shares_decide_while_all_are_short)
{
	uint64_t plain = held_by_first("", 2600), twice = held_by_first(",\"shares\":2000", 2600);
	uint64_t half = held_by_first(",\"shares\":500", 2600);

	cr_assert_gt(twice, plain + plain / 5);
	cr_assert_lt(half, plain - plain / 5);
}
