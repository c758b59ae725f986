/*
 * `brim policy`; of its verbs, `simulate`: what several rules would make of a trace, side by side.
 * One thread; no state.
 */
#include "cli/cli.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "cli/policy_plot.h"

#define PPM_A_PERCENT 10000.0

/* ---- options --------------------------------------------------------------------- */

static int config_of(const struct policy_args *a, struct policy_config *c, struct err *e)
{
	policy_config_default(c);
	for (size_t i = 0; i < a->set.count; i++) {
		char key[64];
		const char *eq = strchr(a->set.items[i], '=');
		int rc;

		if (!eq || (size_t)(eq - a->set.items[i]) >= sizeof(key))
			return err_set(e, -EINVAL, "--set %s: KEY=VALUE was expected", a->set.items[i]);
		snprintf(key, sizeof(key), "%.*s", (int)(eq - a->set.items[i]), a->set.items[i]);
		rc = policy_config_set(c, key, eq + 1, e);
		if (rc)
			return rc;
	}
	return policy_config_check(c, e);
}

static bool is_wanted(const struct policy_args *a, const char *name)
{
	for (size_t i = 0; i < a->policies.count; i++)
		if (strcmp(a->policies.items[i], name) == 0)
			return true;
	return a->policies.count == 0;
}

static int check_names(const struct policy_args *a, struct err *e)
{
	for (size_t i = 0; i < a->policies.count; i++) {
		const struct policy_rule *r = policy_rules;

		while (r->name && strcmp(r->name, a->policies.items[i]) != 0)
			r++;
		if (!r->name)
			return err_set(e, -EINVAL, "there is no policy '%s': brim, ladder and static are",
				       a->policies.items[i]);
	}
	return 0;
}

static int trace_of(const char *path, struct policy_trace **t, struct err *e)
{
	FILE *in = fopen(path, "re");
	int rc;

	if (!in)
		return err_sys(e, -errno, "%s", path);
	rc = policy_trace_read(t, in, path, e);
	fclose(in);
	return rc;
}

/* ---- results as text --------------------------------------------------------------- */

static void cell_percent(struct table *t, uint64_t ppm, uint64_t contract_ppm)
{
	char text[32];

	snprintf(text, sizeof(text), "%.2f %%", (double)ppm / PPM_A_PERCENT);
	table_cell(t, ppm > contract_ppm ? YELLOW : PLAIN, text);
}

static void cell_seconds(struct table *t, enum colour c, uint64_t ms)
{
	char text[32];

	snprintf(text, sizeof(text), "%.1f s", (double)ms / 1000.0);
	table_cell(t, ms ? c : PLAIN, text);
}

static void host_row(struct table *t, const struct policy_rule *rule, const struct policy_result *r)
{
	uint64_t refaults = 0, missed = 0, worst = 0;

	for (unsigned i = 0; i < r->vms; i++) {
		refaults += r->vm[i].refaults;
		missed += r->vm[i].stall_missed_ms;
		if (r->vm[i].worst_stall_ppm > worst)
			worst = r->vm[i].worst_stall_ppm;
	}
	table_cell(t, BOLD, rule->name);
	cell_seconds(t, RED, r->out_of_memory_ms);
	table_size(t, r->least_free_bytes);
	cell_seconds(t, PLAIN, r->state_ms[POLICY_SOFT]);
	cell_seconds(t, PLAIN, r->state_ms[POLICY_HARD]);
	cell_seconds(t, RED, r->state_ms[POLICY_LOW]);
	table_number(t, (int64_t)r->changes);
	table_number(t, (int64_t)refaults);
	cell_seconds(t, YELLOW, missed);
	cell_percent(t, worst, 1000000);
}

static void vm_rows(struct table *t, const struct plot *p, const struct policy_config *c)
{
	for (unsigned i = 0; i < p->result.vms; i++) {
		const struct policy_result_vm *v = &p->result.vm[i];

		table_cell(t, PLAIN, p->rule->name);
		table_cell(t, PLAIN, p->trace->vm[i].name);
		table_size(t, v->mean_held_bytes);
		table_size(t, v->most_ballooned_bytes);
		table_number(t, (int64_t)v->refaults);
		cell_percent(t, v->stall_ppm, c->stall_ppm);
		cell_percent(t, v->worst_stall_ppm, 1000000);
		cell_seconds(t, PLAIN, v->refault_missed_ms);
		cell_seconds(t, PLAIN, v->stall_missed_ms);
		cell_seconds(t, RED, v->stopped_ms);
	}
}

static void print_text(const struct plot *p, size_t n, const struct policy_config *c)
{
	static const struct column host_columns[] = {
		{ "POLICY", false }, { "OUT OF MEMORY", true }, { "LEAST FREE", true }, { "SOFT", true },
		{ "HARD", true }, { "LOW", true }, { "CHANGES", true }, { "REFAULTS", true },
		{ "STALL MISSED", true }, { "WORST STALL", true },
	};
	static const struct column vm_columns[] = {
		{ "POLICY", false }, { "VM", false }, { "HELD", true }, { "BALLOON", true },
		{ "REFAULTS", true }, { "STALL", true }, { "WORST", true }, { "REFAULTS MISSED", true },
		{ "STALL MISSED", true }, { "STOPPED", true },
	};
	struct table *host = table_create(host_columns, ARRAY_LEN(host_columns));
	struct table *vms = table_create(vm_columns, ARRAY_LEN(vm_columns));

	for (size_t i = 0; i < n; i++) {
		host_row(host, p[i].rule, &p[i].result);
		vm_rows(vms, &p[i], c);
	}
	table_print(host, stdout);
	putchar('\n');
	table_print(vms, stdout);
	table_destroy(&host);
	table_destroy(&vms);
}

/* ---- and as JSON ---------------------------------------------------------------------- */

static json_t *vm_json(const char *name, const struct policy_result_vm *v)
{
	return json_pack("{s:s, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I}", "vm", name, "mean_held_bytes",
			 (json_int_t)v->mean_held_bytes, "most_ballooned_bytes",
			 (json_int_t)v->most_ballooned_bytes, "refaults", (json_int_t)v->refaults, "stall_ppm",
			 (json_int_t)v->stall_ppm, "worst_stall_ppm", (json_int_t)v->worst_stall_ppm,
			 "refault_missed_ms", (json_int_t)v->refault_missed_ms, "stall_missed_ms",
			 (json_int_t)v->stall_missed_ms, "stopped_ms", (json_int_t)v->stopped_ms);
}

static json_t *result_json(const struct plot *p)
{
	const struct policy_result *r = &p->result;
	json_t *states = json_object(), *vms = json_array(), *o;

	for (int s = 0; s < POLICY_STATES; s++)
		json_object_set_new(states, policy_state_name((enum policy_state)s),
				    json_integer((json_int_t)r->state_ms[s]));
	for (unsigned i = 0; i < r->vms; i++)
		json_array_append_new(vms, vm_json(p->trace->vm[i].name, &r->vm[i]));
	o = json_pack("{s:s, s:I, s:I, s:I, s:I, s:I}", "policy", p->rule->name, "duration_ms",
		      (json_int_t)r->duration_ms, "steps", (json_int_t)r->steps, "changes",
		      (json_int_t)r->changes, "least_free_bytes", (json_int_t)r->least_free_bytes,
		      "out_of_memory_ms", (json_int_t)r->out_of_memory_ms);
	json_object_set_new(o, "state_ms", states);
	json_object_set_new(o, "vms", vms);
	return o;
}

static void print_json(const struct plot *p, size_t n)
{
	json_t *list = json_array();

	for (size_t i = 0; i < n; i++)
		json_array_append_new(list, result_json(&p[i]));
	json_print(stdout, list);
	json_decref(list);
}

/* ---- running ----------------------------------------------------------------------------- */

static void seen(void *ctx, const struct policy_views *v, const struct policy_plan *plan)
{
	struct plot *p = ctx;

	plot_add(p, v, plan);
	if (p->explain_ms == UINT64_MAX || v->host->now_ms < p->explain_ms)
		return;
	printf("%s, after %.2f s\n", p->rule->name, (double)v->host->now_ms / 1000.0);
	policy_explain(stdout, v, plan);
	putchar('\n');
	p->explain_ms = UINT64_MAX;
}

static int run_all(const struct policy_args *a, struct plot *plots, size_t *n, const struct policy_config *c,
		   const struct policy_trace *t)
{
	int rc = 0;

	for (const struct policy_rule *r = policy_rules; r->name && rc == 0; r++) {
		struct plot *p = &plots[*n];
		struct policy_sim sim = { .trace = t, .config = c, .rule = r, .seen = seen, .ctx = p };

		if (!is_wanted(a, r->name))
			continue;
		*p = (struct plot){ .trace = t, .rule = r, .explain_ms = UINT64_MAX };
		if (a->explain_s > 0 && r->step == policy_step)
			p->explain_ms = a->explain_s * 1000;
		(*n)++;
		rc = policy_simulate(&sim, &p->result);
	}
	return rc;
}

static int write_plot(const char *path, const struct plot *p, size_t n, struct err *e)
{
	FILE *out = fopen(path, "we");
	int rc = 0;

	if (!out)
		return err_sys(e, -errno, "%s", path);
	plot_svg(out, p, n);
	if (ferror(out))
		rc = -EIO;
	if (fclose(out) != 0)
		rc = -errno;
	return rc ? err_sys(e, rc, "%s", path) : 0;
}

static int simulate(const struct policy_args *a, const struct policy_config *c, struct err *e)
{
	struct plot plots[PLOTS_MOST] = { 0 };
	struct policy_trace *t = NULL;
	size_t n = 0;
	int rc = trace_of(a->trace, &t, e);

	if (rc)
		return rc;
	rc = run_all(a, plots, &n, c, t);
	if (rc)
		err_sys(e, rc, "simulate");
	else if (a->json)
		print_json(plots, n);
	else
		print_text(plots, n, c);
	if (rc == 0 && a->plot)
		rc = write_plot(a->plot, plots, n, e);
	for (size_t i = 0; i < n; i++)
		plot_fini(&plots[i]);
	policy_trace_destroy(&t);
	return rc;
}

const char *const policy_verbs[] = { "simulate", "explain", "record", NULL };

static int cmd_simulate(const struct policy_args *a)
{
	struct policy_config c;
	struct err e;

	if (!a->trace) {
		err_set(&e, -EINVAL, "--trace FILE is missing");
		return cli_wrong(&e);
	}
	if (check_names(a, &e) || config_of(a, &c, &e))
		return cli_wrong(&e);
	return simulate(a, &c, &e) ? cli_fail(&e) : CLI_OK;
}

int cmd_policy(const struct invocation *in)
{
	const struct policy_args *a = in->args;
	const char *verb = in->pos.items[0];
	struct err e;

	if (strcmp(verb, "simulate") == 0)
		return cmd_simulate(a);
	if (strcmp(verb, "explain") == 0)
		return policy_explain_now(&e) ? cli_fail(&e) : CLI_OK;
	if (!a->trace) {
		err_set(&e, -EINVAL, "--trace FILE is missing: where to write");
		return cli_wrong(&e);
	}
	return policy_record(a->trace, a->for_s, &e) ? cli_fail(&e) : CLI_OK;
}
