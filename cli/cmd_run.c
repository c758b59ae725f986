/*
 * `brim run` and `brim console`: starting a VM, and being at its console.
 * One thread; no state.
 */
#include "cli/cli.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#define AUTO_NAMES_MAX 10000
#define INTERRUPTED 130

/* ---- the name ---------------------------------------------------------------------- */

/* The first of vm1, vm2, ... that nobody has; one that died still has its log. */
static int free_name(const char *base, struct vm_paths *p, struct err *e)
{
	enum vm_presence presence;
	char name[16];
	int rc;

	for (int i = 1; i <= AUTO_NAMES_MAX; i++) {
		snprintf(name, sizeof(name), "vm%d", i);
		rc = vm_paths_init(p, base, name, e);
		if (!rc)
			rc = rundir_probe(p, &presence, NULL, e);
		if (rc || presence == VM_ABSENT)
			return rc;
	}
	return err_set(e, -EEXIST, "vm1 to vm%d are all taken; choose a --name", AUTO_NAMES_MAX);
}

/* A name that was asked for must not run; what a dead VM of it left goes. */
static int asked_name(const char *base, const char *name, struct vm_paths *p, struct err *e)
{
	enum vm_presence presence;
	pid_t pid;
	int rc;

	rc = vm_paths_init(p, base, name, e);
	if (!rc)
		rc = rundir_probe(p, &presence, &pid, e);
	if (rc)
		return rc;
	if (presence == VM_RUNNING)
		return err_set(e, -EEXIST, "VM %s is running already (pid %d); choose another --name, or "
			       "`brim stop %s` first", name, (int)pid, name);
	return 0;
}

static int choose_name(const struct run_args *a, struct vm_paths *p, struct err *e)
{
	char base[RUN_PATH_MAX];
	int rc = rundir_base(base, sizeof(base), e);

	if (rc)
		return rc;
	return a->name ? asked_name(base, a->name, p, e) : free_name(base, p, e);
}

/* ---- run ------------------------------------------------------------------------------ */

/* Another `brim run` may take the free name before our brim-vmm does. */
static int launch_named(const struct run_args *a, json_t *config, const struct signals *s,
			struct vm_paths *p, pid_t *pid, struct err *e)
{
	enum vm_presence presence;
	int rc;

	for (;;) {
		rc = choose_name(a, p, e);
		if (!rc && a->name)
			rc = rundir_clean(p, e);
		if (!rc)
			rc = spec_place(config, p, e);
		if (rc)
			return rc;
		rc = launch(config, p, s, pid, e);
		if (!rc || a->name || rc == -EINTR)
			return rc;
		if (rundir_probe(p, &presence, NULL, NULL) || presence != VM_RUNNING)
			return rc;
	}
}

static int start(const struct run_args *a, json_t *config)
{
	struct attach at = { 0 };
	struct signals s;
	struct vm_paths p;
	struct err e;
	int rc, status;

	if (signals_init(&s, &e))
		return cli_fail(&e);
	rc = launch_named(a, config, &s, &p, &at.pid, &e);
	if (rc) {
		status = cli_fail(&e);
		status = rc == -EINTR ? INTERRUPTED : status;
	} else if (a->detach) {
		printf("%s\n", p.name);
		status = CLI_OK;
	} else {
		at.paths = &p;
		at.signals = &s;
		status = attach(&at);
	}
	signals_fini(&s);
	return status;
}

static int dry_run(const struct run_args *a, json_t *config)
{
	struct vm_paths p;
	struct err e;

	if (choose_name(a, &p, &e) || spec_place(config, &p, &e))
		return cli_fail(&e);
	json_print(stdout, config);
	return CLI_OK;
}

int cmd_run(const struct invocation *in)
{
	const struct run_args *a = in->args;
	json_t *config = NULL;
	struct err e;
	int rc, status;

	rc = a->name ? vm_name_check(a->name, &e) : 0;
	if (!rc)
		rc = spec_build(a, &config, &e);
	if (rc)
		return rc == -EINVAL ? cli_wrong(&e) : cli_fail(&e);
	status = a->dry_run ? dry_run(a, config) : start(a, config);
	json_decref(config);
	return status;
}

/* ---- console -------------------------------------------------------------------------- */

int cmd_console(const struct invocation *in)
{
	struct signals s;
	struct vm_paths p;
	struct attach at = { .paths = &p, .signals = &s };
	struct err e;
	int status;

	if (vm_resolve(in->pos.items[0], &p, &e) || signals_init(&s, &e))
		return cli_fail(&e);
	status = attach(&at);
	signals_fini(&s);
	return status;
}
