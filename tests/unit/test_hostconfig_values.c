/*
 * host/config/: the key table itself, comparing, and what a load depends on besides its file.
 */
#include <criterion/criterion.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "host/config/internal.h"
#include "mm/policy/policy.h"

static struct host_config *parse_on(const char *text, uint64_t physical_bytes)
{
	struct host_config_env env = { .physical_bytes = physical_bytes };
	struct host_config_errors errors;
	struct host_config *cfg = NULL;
	char line[1024];

	if (host_config_parse(text, strlen(text), "/etc/brim/t.yaml", &env, &cfg, &errors))
		for (size_t i = 0; i < errors.count; i++)
			fprintf(stderr, "%s\n",
				host_config_error_format(line, sizeof(line), "t.yaml", &errors.items[i]));
	cr_assert(cfg, "%s", text);
	host_config_errors_fini(&errors);
	return cfg;
}

static struct host_config *parse(const char *text)
{
	return parse_on(text, 16 * GiB);
}

static const char *only_text(void *ctx, const char *name)
{
	return ctx;
}

/* ---- the table -------------------------------------------------------------------- */

/* The text of a row's bound or default, read back into a field. */
static uint64_t read_back(const struct config_key *k, const char *text, int *rc)
{
	struct host_config_errors errors = { 0 };
	struct host_config cfg = { 0 };
	struct arena arena = { 0 };
	struct load l = { .cfg = &cfg, .arena = &arena, .errs = { .out = &errors },
			  .env = { .physical_bytes = 64 * TiB }, .dir = "/" };
	struct scope scope = { .memory_bytes = GiB };
	struct value_at at = { .key = k, .scope = &scope, .place = { 1, 1, k->name } };
	struct node n = { .kind = NODE_SCALAR, .is_plain = true, .text = text };
	uint64_t field = 0;

	*rc = value_read(&l, &at, &n, &field);
	host_config_errors_fini(&errors);
	arena_fini(&arena);
	return field_number(k, &field);
}

static bool is_number(const struct config_key *k)
{
	return k->bytes && (k->type == KEY_SIZE || k->type == KEY_TIME || k->type == KEY_UINT ||
			    k->type == KEY_PCT);
}

static void check_row(const struct config_key *k)
{
	uint64_t edge[] = { k->min, k->max };
	char text[128];
	int rc = 0;

	cr_assert(k->help && *k->help && k->help[strlen(k->help) - 1] != '.', "%s", k->name);
	if (k->bytes && k->def) {
		read_back(k, k->def, &rc);
		cr_assert_eq(rc, 0, "%s: its default '%s' is not right", k->name, k->def);
	}
	for (size_t i = 0; is_number(k) && i < ARRAY_LEN(edge); i++) {
		uint64_t field = edge[i];

		value_format(k, &field, text, sizeof(text));
		if (!field && k->zero)
			continue;
		cr_assert_eq(read_back(k, text, &rc), edge[i], "%s: '%s' is not read back", k->name, text);
		cr_assert_eq(rc, 0, "%s: its own bound '%s' is refused", k->name, text);
	}
	if (k->zero) {
		cr_assert_eq(read_back(k, k->zero, &rc), 0, "%s", k->name);
		cr_assert_eq(rc, 0, "%s: %s", k->name, k->zero);
	}
}

Test(hostconfig_table, rows_read_their_own_defaults_and_bounds)
{
	for (enum key_section s = 0; s < SECTIONS; s++) {
		size_t n = section_count(s);

		cr_assert(n > 0 && n <= HOST_KEYS_MAX);
		for (size_t i = 0; i < n; i++) {
			const struct config_key *k = &section_of(s)->keys[i];

			check_row(k);
			cr_assert_eq(section_row(s, k->name), i, "%s is there twice", k->name);
			cr_assert_leq(k->at + k->bytes, section_of(s)->struct_bytes);
		}
	}
}

/* Every field of the policy is a key, at its own place. */
Test(hostconfig_table, policy_has_a_row_a_field)
{
	bool seen[sizeof(struct policy_config)] = { false };

	for (size_t i = 0; i < keys_policy_count; i++) {
		cr_assert(!seen[keys_policy[i].at], "%s", keys_policy[i].name);
		seen[keys_policy[i].at] = true;
		cr_assert_eq(keys_policy[i].bytes, sizeof(uint64_t), "%s", keys_policy[i].name);
	}
	cr_assert_eq(keys_policy_count * sizeof(uint64_t), sizeof(struct policy_config));
}

/* The policy has bounds of its own: what we let pass, it must, too, and no less. */
Test(hostconfig_table, policy_ranges_are_the_policys)
{
	struct policy_config c;
	struct err e;

	for (size_t i = 0; i < keys_policy_count; i++) {
		const struct config_key *k = &keys_policy[i];
		uint64_t *field, most = k->type == KEY_CHOICE ? POLICY_STATES : k->max;

		policy_config_default(&c);
		field = (uint64_t *)(void *)((char *)&c + k->at);
		*field = most;
		cr_assert(policy_config_check(&c, &e) == 0 || strstr(e.msg, "more than"), "%s: %s", k->name,
			  e.msg);
		*field = most + 1;
		cr_assert(policy_config_check(&c, &e) < 0 && strstr(e.msg, "is not"), "%s: most", k->name);
		*field = k->min;
		cr_assert(policy_config_check(&c, &e) == 0 || strstr(e.msg, "more than"), "%s: %s", k->name,
			  e.msg);
		if (!k->min)
			continue;
		*field = k->min - 1;
		cr_assert(policy_config_check(&c, &e) < 0 && strstr(e.msg, "is not"), "%s: least", k->name);
	}
}

/* Any two keys of one kind the wrong way round: what the policy refuses, we refuse with a line. */
Test(hostconfig_table, policy_orders_are_the_policys)
{
	for (size_t i = 0; i < keys_policy_count; i++)
		for (size_t j = 0; j < keys_policy_count; j++) {
			const struct config_key *a = &keys_policy[i], *b = &keys_policy[j];
			struct host_config_env env = { .physical_bytes = GiB };
			struct host_config_errors errors;
			struct host_config *cfg = NULL;
			char text[256], high[64], low[64];

			if (i == j || a->type != b->type || a->type == KEY_CHOICE)
				continue;
			value_format(a, &a->max, high, sizeof(high));
			value_format(b, &b->min, low, sizeof(low));
			snprintf(text, sizeof(text), "policy: {%s: %s, %s: %s}", a->name, high, b->name, low);
			if (host_config_parse(text, strlen(text), "t", &env, &cfg, &errors))
				for (size_t k = 0; k < errors.count; k++)
					cr_assert(strstr(errors.items[k].text, "not to be more than"),
						  "%s: %s", text, errors.items[k].text);
			host_config_errors_fini(&errors);
			host_config_destroy(&cfg);
		}
}

/* ---- times and percentages --------------------------------------------------------------- */

Test(hostconfig_values, times_are_what_they_say)
{
	static const struct { const char *text; uint64_t ns; } right[] = {
		{ "0", 0 }, { "1", 1000000000 }, { "1.5s", 1500000000 }, { "250ms", 250000000 },
		{ "2 m", 120000000000 }, { "1h", 3600000000000 }, { "1d", 86400000000000 }, { "3us", 3000 },
	};
	static const char *const wrong[] = { "", "s", "-1s", "1 fortnight", "0x10", "1e", "nan", "inf", "1s2" };
	uint64_t ns;

	for (size_t i = 0; i < ARRAY_LEN(right); i++) {
		cr_assert_eq(time_parse(right[i].text, &ns), 0, "%s", right[i].text);
		cr_assert_eq(ns, right[i].ns, "%s", right[i].text);
	}
	for (size_t i = 0; i < ARRAY_LEN(wrong); i++)
		cr_assert_lt(time_parse(wrong[i], &ns), 0, "%s", wrong[i]);
	cr_assert_eq(time_parse("99999999999d", &ns), -ERANGE);
}

Test(hostconfig_values, percentages_are_of_the_host_or_of_the_vm)
{
	struct host_config *cfg = parse("host: {reserve: 25%}\n"
					"vms: [{name: a, kernel: /k, memory: 4G, reservation: 50%}]\n");

	cr_assert_eq(cfg->host.reserve_bytes, 4 * GiB);
	cr_assert_eq(cfg->host.memory_bytes, 12 * GiB);
	cr_assert_eq(cfg->vms[0].reservation_bytes, 2 * GiB);
	host_config_destroy(&cfg);
	cfg = parse_on("host: {reserve: 25%}", 64 * GiB);
	cr_assert_eq(cfg->host.reserve_bytes, 16 * GiB);
	host_config_destroy(&cfg);
}

/* A percentage in `defaults` is of each VM's memory, not of the defaults'. */
Test(hostconfig_values, percentage_of_defaults_is_of_each_vm)
{
	struct host_config *cfg = parse("defaults: {kernel: /k, memory: 1G, reservation: 50%}\n"
					"vms: [{name: a}, {name: b, memory: 8G}]\n");

	cr_assert_eq(cfg->vms[0].reservation_bytes, GiB / 2);
	cr_assert_eq(cfg->vms[1].reservation_bytes, 4 * GiB);
	cr_assert_eq(cfg->vms[1].origin[section_row(SECTION_VM, "reservation")].from, HOST_FROM_DEFAULTS);
	cr_assert_eq(cfg->vms[1].origin[section_row(SECTION_VM, "memory")].from, HOST_FROM_OWN);
	cr_assert_eq(cfg->vms[1].origin[section_row(SECTION_VM, "cpus")].from, HOST_FROM_BUILTIN);
	host_config_destroy(&cfg);
}

Test(hostconfig_values, paths_have_one_name)
{
	static const struct { const char *text, *path; } paths[] = {
		{ "/k", "/k" }, { "//a//b/./c/", "/a/b/c" }, { "a/./b", "/etc/brim/a/b" }, { "./k", "/etc/brim/k" },
		{ "/", "/" }, { "/.", "/" }, { "../k", "/etc/brim/../k" }, { "/a/.b/..c", "/a/.b/..c" },
		{ ".", "/etc/brim" },
	};

	for (size_t i = 0; i < ARRAY_LEN(paths); i++) {
		struct host_config *cfg;
		char text[128];

		snprintf(text, sizeof(text), "vms: [{name: a, kernel: \"%s\"}]", paths[i].text);
		cfg = parse(text);
		cr_assert_str_eq(cfg->vms[0].kernel, paths[i].path, "%s", paths[i].text);
		host_config_destroy(&cfg);
	}
}

/* JSON's own rule is the one that counts: a description is JSON. */
Test(hostconfig_values, variables_that_are_no_utf8_are_refused)
{
	static const char *const texts[] = {
		"\x80", "\xff", "\xc3", "\xc0\xaf", "\xe0\x80\x80", "\xed\xa0\x80", "\xf4\x90\x80\x80",
		"\xf0\x8f\xbf\xbf", "a\xe2\x82", "\xc3\xa9", "\xe2\x82\xac", "\xf0\x9f\x98\x80", "\xef\xbf\xbd",
		"\xed\x9f\xbf", "\xf4\x8f\xbf\xbf",
	};
	static const char file[] = "vms: [{name: a, kernel: /k, append: \"${T}\"}]";

	for (size_t i = 0; i < ARRAY_LEN(texts); i++) {
		struct host_config_env env = { .variable = only_text, .ctx = (void *)(uintptr_t)texts[i] };
		struct host_config_errors errors;
		struct host_config *cfg = NULL;
		json_t *json = json_string(texts[i]);

		cr_assert_eq(host_config_parse(file, strlen(file), "t", &env, &cfg, &errors),
			     json ? 0 : -EINVAL, "%zu", i);
		json_decref(json);
		host_config_errors_fini(&errors);
		host_config_destroy(&cfg);
	}
}

/* ---- descriptions ----------------------------------------------------------------------- */

static int mallocs_left; /* of jansson's, before the one that fails */

static void *malloc_or_not(size_t size)
{
	return mallocs_left-- != 0 ? malloc(size) : NULL;
}

/* Each allocation fails in turn: nothing, or all of it, and never a disk that lacks its
 * `readonly`. */
Test(hostconfig_describe, out_of_memory_gives_no_part_of_a_description)
{
	struct host_config *cfg = parse("vms: [{name: a, kernel: /k, nets: [t], swap: {path: /s},\n"
					"       disks: [{path: /d, readonly: on, serial: x}]}]");
	json_t *whole = host_vm_description(&cfg->vms[0], "/r"), *o = NULL;
	int n = 0;

	cr_assert(whole);
	json_set_alloc_funcs(malloc_or_not, free);
	do {
		mallocs_left = n++;
		o = host_vm_description(&cfg->vms[0], "/r");
		cr_assert(!o || json_equal(o, whole), "not whole without allocation %d", n);
		json_decref(o);
	} while (mallocs_left < 0 && n < 1000); /* one did fail */
	json_set_alloc_funcs(malloc, free);
	cr_assert(n > 20 && n < 1000);
	json_decref(whole);
	host_config_destroy(&cfg);
}

/* ---- comparing ------------------------------------------------------------------------------ */

#define BEFORE "host: {name: h, reserve: 1G}\ndefaults: {kernel: /k}\n" \
	       "vms: [{name: a, shares: 10}, {name: b, memory: 1G, disks: [/d]}, {name: c, after: a}]\n"

static size_t compare(const char *after, struct host_change **changes)
{
	struct host_config *x = parse(BEFORE), *y = parse(after);
	size_t n = 0;

	cr_assert_eq(host_config_compare(x, y, changes, &n), 0);
	/* names belong to the two: keep only what does not */
	for (size_t i = 0; i < n; i++)
		(*changes)[i].vm = NULL;
	host_config_destroy(&x);
	host_config_destroy(&y);
	return n;
}

static void one_change(const char *after, const char *key, enum host_apply apply)
{
	struct host_change *changes = NULL;
	size_t n = compare(after, &changes);

	cr_assert_eq(n, 1, "%zu changes, not one: %s, %s", n, n ? changes[0].key : "",
		     n > 1 ? changes[1].key : "");
	cr_assert_eq(changes[0].apply, apply);
	if (key)
		cr_assert_str_eq(changes[0].key, key);
	else
		cr_assert_null(changes[0].key);
	free(changes);
}

Test(hostconfig_compare, equal_files_have_no_changes)
{
	struct host_change *changes = NULL;

	cr_assert_eq(compare("# another way to say it\n" BEFORE, &changes), 0);
	free(changes);
}

Test(hostconfig_compare, each_change_says_what_it_takes)
{
#define TOP "host: {name: h, reserve: 1G}\ndefaults: {kernel: /k}\nvms: ["
#define A "{name: a, shares: 10}"
#define B "{name: b, memory: 1G, disks: [/d]}"
#define C "{name: c, after: a}"
	one_change(TOP "{name: a, shares: 11}, " B ", " C "]", "shares", HOST_APPLY_LIVE);
	one_change(TOP A ", {name: b, memory: 2G, disks: [/d], balloon: {floor: 102M}}, " C "]", "memory",
		   HOST_APPLY_RESTART_VM);
	one_change(TOP A ", {name: b, memory: 1G, disks: [{path: /d, direct: on}]}, " C "]", "disks",
		   HOST_APPLY_RESTART_VM);
	one_change(TOP A ", " B ", {name: c, after: b}]", "after", HOST_APPLY_LIVE);
	one_change(TOP A ", " B ", {name: c, after: [a, b]}]", "after", HOST_APPLY_LIVE);
	one_change(TOP A ", " B "]", NULL, HOST_APPLY_REMOVE_VM);
	one_change(TOP "{name: d}, " A ", " B ", " C "]", NULL, HOST_APPLY_ADD_VM);
	one_change("policy: {idle_tax: 50%}\n" BEFORE, "idle_tax", HOST_APPLY_LIVE);
	one_change("host: {name: h, reserve: 1G, sharing: {store_size: 1G}}\ndefaults: {kernel: /k}\nvms: [" A ", " B ", "
		   C "]", "sharing.store_size", HOST_APPLY_RESTART_BRIMD);
	/* nothing follows from where a VM is in the list */
	one_change("host: {name: g, reserve: 1G}\ndefaults: {kernel: /k}\nvms: [" C ", " B ", " A "]", "name",
		   HOST_APPLY_LIVE);
#undef TOP
#undef A
#undef B
#undef C
}

/* ---- bounds ------------------------------------------------------------------------------------ */

/* Thousands of unknown keys a thousand times over, in some 40 KiB. */
Test(hostconfig_bounds, bomb_of_aliases_ends_soon, .timeout = 20)
{
	struct host_config_env env = { .physical_bytes = GiB };
	struct host_config_errors errors;
	struct host_config *cfg = NULL;
	char *text = NULL;
	size_t len = 0;
	FILE *out = open_memstream(&text, &len);

	fputs("vms:\n  - &a {", out);
	for (int i = 0; i < 4000; i++)
		fprintf(out, "k%d: 1, ", i);
	fputs("name: a}\n", out);
	for (int i = 0; i < 1000; i++)
		fputs("  - *a\n", out);
	fclose(out);
	cr_assert_eq(host_config_parse(text, len, "t", &env, &cfg, &errors), -EINVAL);
	cr_assert_null(cfg);
	cr_assert_eq(errors.count, ERRORS_MAX);
	cr_assert_gt(errors.unsaid, 1000);
	cr_assert_lt(errors.unsaid, 2 * WORK_MAX);
	host_config_errors_fini(&errors);
	free(text);
}

Test(hostconfig_bounds, file_that_is_too_large_is_refused)
{
	struct host_config_errors errors;
	struct host_config *cfg = NULL;
	char *text = malloc(2 * MiB);

	memset(text, '\n', 2 * MiB);
	cr_assert_eq(host_config_parse(text, 2 * MiB, "t", NULL, &cfg, &errors), -EINVAL);
	cr_assert(strstr(errors.items[0].text, "1 MiB"), "%s", errors.items[0].text);
	host_config_errors_fini(&errors);
	free(text);
}

Test(hostconfig_bounds, as_many_vms_as_allowed_load)
{
	struct host_config *cfg = parse("vms: [{name: a, kernel: /k, count: 1000}, "
					"{name: b, kernel: /k, count: 24, after: a}]");

	cr_assert_eq(cfg->vm_count, HOST_VMS_MAX);
	cr_assert_eq(cfg->vms[1023].after_count, 1000);
	cr_assert_str_eq(cfg->vms[999].name, "a-1000");
	cr_assert_eq(host_config_vm(cfg, "b-24"), &cfg->vms[1023]);
	cr_assert_null(host_config_vm(cfg, "b"));
	host_config_destroy(&cfg);
}
