/*
 * A host's configuration, looked at without touching the host: `brim config`.
 *
 * One thread; no state.  Errors of a file go to stderr, one a line, as compilers write them, so
 * that editors find the place.
 */
#include "cli/cli.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "host/config/config.h"

const char *const config_verbs[] = { "check", "show", "diff", "keys", NULL };

/* ---- loading -------------------------------------------------------------------------------- */

static void print_errors(const char *path, const struct host_config_errors *errors)
{
	char text[PATH_MAX + 640];

	fflush(stdout);
	for (size_t i = 0; i < errors->count; i++)
		fprintf(stderr, "%s\n",
			host_config_error_format(text, sizeof(text), path, &errors->items[i]));
	if (errors->unsaid)
		fprintf(stderr, "%s: and %zu more\n", path, errors->unsaid);
}

static int load(const struct config_args *a, const char *path, struct host_config **cfg)
{
	struct host_config_env env = { .physical_bytes = a->host_memory_bytes };
	struct host_config_errors errors;
	int rc = host_config_load(path, &env, cfg, &errors);

	if (rc)
		print_errors(path, &errors);
	host_config_errors_fini(&errors);
	return rc;
}

/* ---- check ------------------------------------------------------------------------------------- */

static int check(const struct invocation *in, const struct config_args *a)
{
	struct host_config *cfg = NULL;
	uint64_t bytes = 0;
	char text[32];

	if (load(a, in->pos.items[1], &cfg))
		return CLI_FAILED;
	for (size_t i = 0; i < cfg->vm_count; i++)
		bytes += cfg->vms[i].memory_bytes;
	printf("%s: right: %zu VM%s, %s assigned", in->pos.items[1], cfg->vm_count,
	       cfg->vm_count == 1 ? "" : "s", size_format(text, sizeof(text), bytes));
	printf(" on a host of %s\n", size_format(text, sizeof(text), cfg->physical_bytes));
	host_config_destroy(&cfg);
	return CLI_OK;
}

/* ---- show --------------------------------------------------------------------------------------- */

static int print_config(const struct config_args *a, const struct host_config *cfg,
			const struct host_vm *vm)
{
	enum host_show how = a->origin ? HOST_SHOW_ORIGINS : HOST_SHOW_VALUES;
	struct err e;
	json_t *o;

	if (!a->json) {
		host_config_show(stdout, cfg, vm, how);
		return CLI_OK;
	}
	o = host_config_json(cfg, vm, how);
	if (!o) {
		err_sys(&e, -ENOMEM, "config");
		return cli_fail(&e);
	}
	json_print(stdout, o);
	json_decref(o);
	return CLI_OK;
}

static int show(const struct invocation *in, const struct config_args *a)
{
	struct host_config *cfg = NULL;
	const struct host_vm *vm = NULL;
	struct err e;
	int status;

	if (load(a, in->pos.items[1], &cfg))
		return CLI_FAILED;
	if (a->vm)
		vm = host_config_vm(cfg, a->vm);
	if (a->vm && !vm) {
		err_set(&e, -ENOENT, "%s: there is no VM '%s'", in->pos.items[1], a->vm);
		status = cli_fail(&e);
	} else {
		status = print_config(a, cfg, vm);
	}
	host_config_destroy(&cfg);
	return status;
}

/* ---- diff ----------------------------------------------------------------------------------------- */

static const char *apply_name(enum host_apply apply)
{
	static const char *const names[] = {
		[HOST_APPLY_LIVE] = "live", [HOST_APPLY_RESTART_VM] = "restart-vm",
		[HOST_APPLY_RESTART_BRIMD] = "restart-brimd", [HOST_APPLY_ADD_VM] = "add",
		[HOST_APPLY_REMOVE_VM] = "remove",
	};

	return names[apply];
}

static json_t *change_json(const struct host_change *c)
{
	return json_pack("{s:s, s:s?, s:s?, s:s?, s:s, s:s}", "apply", apply_name(c->apply), "vm", c->vm,
			 "section", c->section, "key", c->key, "before", c->before, "after", c->after);
}

static void print_change(const struct host_change *c)
{
	const char *when = c->apply == HOST_APPLY_LIVE ? "at once" :
			   c->apply == HOST_APPLY_RESTART_VM ? "when the VM is started next" :
							      "when brimd is started next";

	if (c->apply == HOST_APPLY_ADD_VM)
		printf("vm %s: new\n", c->vm);
	else if (c->apply == HOST_APPLY_REMOVE_VM)
		printf("vm %s: gone\n", c->vm);
	else
		printf("%s%s %s: %s -> %s (%s)\n", c->vm ? "vm " : c->section, c->vm ? c->vm : "", c->key,
		       *c->before ? c->before : "none", *c->after ? c->after : "none", when);
}

static int print_changes(const struct config_args *a, const struct host_config *before,
			 const struct host_config *after)
{
	struct host_change *changes = NULL;
	json_t *list = json_array();
	size_t n = 0;
	struct err e;

	if (host_config_compare(before, after, &changes, &n)) {
		json_decref(list);
		err_sys(&e, -ENOMEM, "config");
		return cli_fail(&e);
	}
	for (size_t i = 0; i < n; i++) {
		if (a->json)
			json_array_append_new(list, change_json(&changes[i]));
		else
			print_change(&changes[i]);
	}
	if (a->json)
		json_print(stdout, list);
	json_decref(list);
	free(changes);
	return CLI_OK;
}

static int diff(const struct invocation *in, const struct config_args *a)
{
	struct host_config *before = NULL, *after = NULL;
	int status = CLI_FAILED;

	if (!load(a, in->pos.items[1], &before) && !load(a, in->pos.items[2], &after))
		status = print_changes(a, before, after);
	host_config_destroy(&before);
	host_config_destroy(&after);
	return status;
}

/* ---- keys ----------------------------------------------------------------------------------------- */

static int keys(const struct config_args *a)
{
	json_t *schema;

	if (a->schema) {
		schema = host_config_schema();
		json_print(stdout, schema);
		json_decref(schema);
	} else if (a->markdown) {
		host_config_page(stdout);
	} else {
		host_config_keys(stdout);
	}
	return CLI_OK;
}

/* ---- the command ------------------------------------------------------------------------------------ */

/* How many words each takes, itself among them. */
static int check_words(const struct invocation *in, struct err *e)
{
	const char *verb = in->pos.items[0];
	size_t want = strcmp(verb, "keys") == 0 ? 1 : strcmp(verb, "diff") == 0 ? 3 : 2;

	if (in->pos.count == want)
		return 0;
	return err_set(e, -EINVAL, "config %s: %s", verb,
		       want == 1 ? "takes no file" : want == 2 ? "takes one file: brim config check FILE"
							       : "takes two files, the old one and the new one");
}

int cmd_config(const struct invocation *in)
{
	const struct config_args *a = in->args;
	const char *verb = in->pos.items[0];
	struct err e;

	if (check_words(in, &e))
		return cli_wrong(&e);
	if (strcmp(verb, "check") == 0)
		return check(in, a);
	if (strcmp(verb, "show") == 0)
		return show(in, a);
	if (strcmp(verb, "diff") == 0)
		return diff(in, a);
	return keys(a);
}
