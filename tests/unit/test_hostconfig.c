/*
 * host/config/: whole files.  Every file of tests/config/pass loads, means what is next to it,
 * and is understood by brim-vmm; every file of tests/config/fail is refused with the errors next
 * to it, all of them and no others.
 *
 * BRIM_TEST_WRITE=1 writes what is next to them, to be looked at before it is committed.
 */
#include <criterion/criterion.h>
#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "host/config/config.h"
#include "mm/policy/policy.h"

static const char *variable(void *ctx, const char *name)
{
	return strcmp(name, "BRIM_KERNELS") == 0 ? "/kernels" : NULL;
}

static const struct host_config_env env = {
	.physical_bytes = 128 * GiB, .host_name = "test", .variable = variable,
};

/* ---- files ---------------------------------------------------------------------- */

static char *read_text(const char *path, size_t *len)
{
	FILE *f = fopen(path, "r");
	char *text = NULL;

	if (!f)
		return NULL;
	text = calloc(1, 2 * MiB);
	cr_assert(text);
	*len = fread(text, 1, 2 * MiB - 1, f);
	fclose(f);
	return text;
}

/* What should be there, or writes it. */
static void compare_with(const char *path, const char *is)
{
	size_t len = 0;
	char *should;

	if (getenv("BRIM_TEST_WRITE")) {
		FILE *f = fopen(path, "w");

		cr_assert(f && fputs(is, f) >= 0 && fclose(f) == 0, "%s", path);
		return;
	}
	should = read_text(path, &len);
	cr_assert(should, "%s is missing", path);
	cr_assert_str_eq(is, should, "%s:\n%s\nis not:\n%s", path, is, should);
	free(should);
}

/* Of each file in the directory that ends in .yaml; returns how many. */
static unsigned each(const char *dir, void (*fn)(const char *stem, const char *name))
{
	DIR *d = opendir(dir);
	struct dirent *e;
	unsigned n = 0;

	cr_assert(d, "%s: run from the top of the tree", dir);
	while ((e = readdir(d))) {
		size_t len = strlen(e->d_name);
		char stem[300];

		if (len < 6 || strcmp(e->d_name + len - 5, ".yaml") != 0)
			continue;
		snprintf(stem, sizeof(stem), "%s/%.*s", dir, (int)len - 5, e->d_name);
		fn(stem, e->d_name);
		n++;
	}
	closedir(d);
	return n;
}

static int load(const char *stem, const char *name, struct host_config **cfg,
		struct host_config_errors *errors)
{
	char path[512], as[300];
	size_t len = 0;
	char *text;
	int rc;

	snprintf(path, sizeof(path), "%s.yaml", stem);
	snprintf(as, sizeof(as), "/etc/brim/%s", name);
	text = read_text(path, &len);
	cr_assert(text);
	rc = host_config_parse(text, len, as, &env, cfg, errors);
	free(text);
	return rc;
}

/* ---- fail ------------------------------------------------------------------------- */

static void must_fail(const char *stem, const char *name)
{
	struct host_config_errors errors;
	struct host_config *cfg = NULL;
	char path[512], line[1024], *all = NULL;
	size_t len = 0;
	FILE *out = open_memstream(&all, &len);

	cr_assert_eq(load(stem, name, &cfg, &errors), -EINVAL, "%s", name);
	cr_assert_null(cfg);
	cr_assert_gt(errors.count, 0);
	for (size_t i = 0; i < errors.count; i++) {
		const struct host_config_error *e = &errors.items[i];

		cr_assert(strstr(e->text, "expected") || strstr(e->text, "more than") ||
				  strstr(e->text, "deeper") || strstr(e->text, "out of memory"),
			  "%s: what was expected? %s", name, e->text);
		fprintf(out, "%s\n", host_config_error_format(line, sizeof(line), name, e));
	}
	if (errors.unsaid)
		fprintf(out, "and %zu more\n", errors.unsaid);
	fclose(out);
	snprintf(path, sizeof(path), "%s.expected", stem);
	compare_with(path, all);
	free(all);
	host_config_errors_fini(&errors);
}

Test(hostconfig, wrong_files_say_all_that_is_wrong)
{
	cr_assert_gt(each("tests/config/fail", must_fail), 30);
}

/* ---- pass --------------------------------------------------------------------------- */

static void print_errors(const char *name, const struct host_config_errors *errors)
{
	char line[1024];

	for (size_t i = 0; i < errors->count; i++)
		fprintf(stderr, "%s\n",
			host_config_error_format(line, sizeof(line), name, &errors->items[i]));
}

/* brim-vmm has its own rules: it must understand every VM that we let pass. */
static void check_descriptions(const struct host_config *cfg)
{
	static struct vm_config vm; /* large: off the stack */

	for (size_t i = 0; i < cfg->vm_count; i++) {
		json_t *o = host_vm_description(&cfg->vms[i], "/run/brim/x");
		char *text = json_dumps(o, 0);
		struct err e = { "" };

		cr_assert(text);
		cr_assert_eq(vm_config_parse(&vm, text, strlen(text), &e), 0, "%s: %s", text, e.msg);
		cr_assert_str_eq(vm.name, cfg->vms[i].name);
		cr_assert_eq(vm.memory_bytes, cfg->vms[i].memory_bytes);
		cr_assert_eq(vm.disk_count, cfg->vms[i].disk_count);
		cr_assert_eq(vm.swap.size_bytes, cfg->vms[i].swap_path ? cfg->vms[i].swap_size_bytes : 0);
		free(text);
		json_decref(o);
	}
}

static void check_order(const struct host_config *cfg)
{
	bool *is_started = calloc(cfg->vm_count + 1, sizeof(bool));

	for (size_t i = 0; i < cfg->vm_count; i++) {
		const struct host_vm *vm = &cfg->vms[cfg->start_order[i]];

		for (size_t j = 0; j < vm->after_count; j++)
			cr_assert(is_started[vm->after[j]], "%s is started before %s", vm->name,
				  cfg->vms[vm->after[j]].name);
		cr_assert(!is_started[cfg->start_order[i]]);
		is_started[cfg->start_order[i]] = true;
	}
	free(is_started);
}

static char *shown(const struct host_config *cfg, enum host_show how)
{
	size_t len = 0;
	char *text = NULL;
	FILE *out = open_memstream(&text, &len);

	host_config_show(out, cfg, NULL, how);
	fclose(out);
	return text;
}

/* What is built in is the page's to tell: docs/configuration.md.  In place. */
static void without_built_in(char *text)
{
	char *to = text;

	while (*text) {
		size_t n = strcspn(text, "\n") + 1;
		char *built_in = memmem(text, n, "# built in", 10);

		if (!built_in) {
			memmove(to, text, n);
			to += n;
		}
		text += n;
	}
	*to = '\0';
}

/* What is shown means the same again. */
static void check_round_trip(const struct host_config *cfg, const char *text)
{
	struct host_config_errors errors;
	struct host_config *again = NULL;
	struct host_change *changes = NULL;
	size_t n = 0;

	if (host_config_parse(text, strlen(text), cfg->path, &env, &again, &errors)) {
		print_errors("shown", &errors);
		cr_assert_fail("%s", text);
	}
	cr_assert_eq(host_config_compare(cfg, again, &changes, &n), 0);
	cr_assert_eq(n, 0, "%s: %s -> %s", n ? changes[0].key : "", n ? changes[0].before : "",
		     n ? changes[0].after : "");
	free(changes);
	host_config_errors_fini(&errors);
	host_config_destroy(&again);
}

static void must_pass(const char *stem, const char *name)
{
	struct host_config_errors errors;
	struct host_config *cfg = NULL;
	char path[512], *values, *origins;

	if (load(stem, name, &cfg, &errors)) {
		print_errors(name, &errors);
		cr_assert_fail("%s", name);
	}
	check_descriptions(cfg);
	check_order(cfg);
	values = shown(cfg, HOST_SHOW_VALUES);
	check_round_trip(cfg, values);
	origins = shown(cfg, HOST_SHOW_ORIGINS);
	check_round_trip(cfg, origins); /* comments are comments */
	snprintf(path, sizeof(path), "%s.shown", stem);
	without_built_in(origins);
	compare_with(path, origins);
	free(values);
	free(origins);
	host_config_errors_fini(&errors);
	host_config_destroy(&cfg);
	cr_assert_null(cfg);
}

Test(hostconfig, right_files_mean_what_is_next_to_them)
{
	cr_assert_gt(each("tests/config/pass", must_pass), 5);
}

/* ---- examples ------------------------------------------------------------------------ */

static void example_passes(const char *stem, const char *name)
{
	struct host_config_errors errors;
	struct host_config *cfg = NULL;
	uint64_t assigned = 0;

	if (load(stem, name, &cfg, &errors)) {
		print_errors(name, &errors);
		cr_assert_fail("%s", name);
	}
	check_descriptions(cfg);
	check_order(cfg);
	for (size_t i = 0; i < cfg->vm_count; i++)
		assigned += cfg->vms[i].memory_bytes;
	if (strcmp(name, "192-on-128.yaml") == 0) {
		cr_assert_eq(assigned, 192 * GiB);
		cr_assert_eq(cfg->vm_count, 8);
		cr_assert_eq(cfg->host.memory_bytes, 120 * GiB);
	}
	host_config_errors_fini(&errors);
	host_config_destroy(&cfg);
}

Test(hostconfig, examples_are_right)
{
	cr_assert_geq(each("examples", example_passes), 4);
}
