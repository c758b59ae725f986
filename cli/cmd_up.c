/*
 * The host's VMs as one: `brim up`, `down`, `reload`.  brimd does the work; these ask, and
 * tell how it goes.
 *
 *   up    no brimd? ─► start one ─► "up", the file ─► look until each VM runs, or does not
 *
 * One thread; no state.  Whoever waits may be interrupted at any moment: what was asked for is
 * brimd's business by then.
 */
#include "cli/cli.h"

#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define START_MS 10000u /* for a brimd to take commands */
#define LOOK_US 100000u

/* ---- a brimd ------------------------------------------------------------------------ */

/* What it said last is why it ended. */
static int explain_end(const char *base, struct err *e)
{
	char path[PATH_MAX], line[256], last[256] = "";
	FILE *f;

	snprintf(path, sizeof(path), "%s/" BRIMD_LOG, base);
	f = fopen(path, "re");
	while (f && fgets(line, sizeof(line), f))
		if (strcspn(line, "\n"))
			snprintf(last, sizeof(last), "%.*s", (int)strcspn(line, "\n"), line);
	if (f)
		fclose(f);
	return err_set(e, -ECHILD, "brimd ended at once%s%s", *last ? ": " : "; its log is empty", last);
}

static int start_brimd(const char *base, const char *file, struct ctl **out, struct err *e)
{
	uint64_t until = now_ns() + START_MS * (uint64_t)1000000;
	pid_t pid;
	int rc;

	rc = brimd_spawn(base, file, &pid, e);
	if (rc)
		return rc;
	do {
		usleep(20000);
		rc = ctl_open_daemon(out, base, e);
		if (rc == -ENOENT && waitpid(pid, NULL, WNOHANG) == pid) {
			usleep(LOOK_US); /* another was quicker, and is about to listen */
			rc = ctl_open_daemon(out, base, NULL);
			return rc ? explain_end(base, e) : 0;
		}
	} while (rc == -ENOENT && now_ns() < until);
	return rc;
}

/* Where none runs there is one afterwards. */
static int have_brimd(const char *file, struct ctl **out, struct err *e)
{
	char base[RUN_PATH_MAX];
	int rc = brimd_open(out, e);

	if (rc != -ENOENT)
		return rc;
	rc = rundir_base(base, sizeof(base), e);
	return rc ? rc : start_brimd(base, file, out, e);
}

static int ask(struct ctl *c, const char *cmd, json_t *args, json_t **result, struct err *e)
{
	return ctl_call(c, cmd, args, CTL_TIMEOUT_MS, result, e);
}

/* ---- what changes -------------------------------------------------------------------- */

static void tell_change(const json_t *o)
{
	const char *apply = json_text(o, "apply"), *vm = json_text(o, "vm");

	if (strcmp(apply, "added") == 0)
		printf("VM %s is new\n", vm);
	else if (strcmp(apply, "removed") == 0)
		printf("VM %s is not in the configuration any more; `brim stop %s` ends it\n", vm, vm);
	else
		printf("%s%s%s: %s, was %s%s\n", vm, *vm ? ": " : "", json_text(o, "key"),
		       json_text(o, "after"), json_text(o, "before"),
		       strcmp(apply, "live") == 0 ? "" :
		       strcmp(apply, "restart-vm") == 0 ? " (when that VM is started next)" :
							  " (when brimd is started next)");
}

static void tell_changes(const json_t *result)
{
	const json_t *o;
	size_t i;

	json_array_foreach(json_object_get(result, "changes"), i, o)
		tell_change(o);
}

/* ---- how it goes ---------------------------------------------------------------------- */

struct progress {
	json_t *said; /* VM to what was said of it last */
	unsigned on_the_way, run, failed, off;
};

static void say_once(struct progress *p, const char *name, const char *text)
{
	if (strcmp(json_text(p->said, name), text) == 0)
		return;
	json_object_set_new(p->said, name, json_string(text));
	fprintf(stderr, "brim: VM %s: %s\n", name, text);
}

/* The daemon's own word on it; what the policy thinks changes every second. */
static const char *why(const json_t *vm)
{
	return json_text(vm, "why");
}

static bool is_one_of(const struct invocation *in, const char *name)
{
	for (size_t i = 0; i < in->pos.count; i++)
		if (strcmp(in->pos.items[i], name) == 0)
			return true;
	return false;
}

static void count_vm(struct progress *p, const json_t *vm)
{
	const char *name = json_text(vm, "name"), *state = json_text(vm, "state");

	if (strcmp(state, "running") == 0 || strcmp(state, "paused") == 0) {
		p->run++;
		say_once(p, name, "runs");
	} else if (strcmp(state, "failed") == 0) {
		p->failed++;
		say_once(p, name, *why(vm) ? why(vm) : "could not be started");
	} else if (strcmp(state, "off") == 0) {
		p->off++;
		say_once(p, name, "is off");
	} else {
		p->on_the_way++;
		say_once(p, name, *why(vm) ? why(vm) : state);
	}
}

/* Counts the VMs of the configuration; of `only`, where it names some. */
static int look(struct ctl *c, struct progress *p, const struct invocation *only, struct err *e)
{
	json_t *status = NULL;
	const json_t *vm;
	size_t i;
	int rc = ask(c, "status", NULL, &status, e);

	p->on_the_way = p->run = p->failed = p->off = 0;
	json_array_foreach(json_object_get(status, "vms"), i, vm)
		if (json_is_true(json_object_get(vm, "configured")) &&
		    (!only || is_one_of(only, json_text(vm, "name"))))
			count_vm(p, vm);
	json_decref(status);
	return rc;
}

/* Until none is on its way any more; -ETIMEDOUT. */
static int await(struct ctl *c, struct progress *p, const struct invocation *only, struct err *e)
{
	const struct args *a = only->args;
	uint64_t until = now_ns() + a->timeout_s * 1000000000u;
	int rc = look(c, p, only->pos.count ? only : NULL, e);

	while (!rc && p->on_the_way) {
		if (now_ns() > until)
			return err_set(e, -ETIMEDOUT, "%u VM%s not there yet after %llu s; brimd goes on",
				       p->on_the_way, p->on_the_way == 1 ? " is" : "s are",
				       (unsigned long long)a->timeout_s);
		usleep(LOOK_US);
		rc = look(c, p, only->pos.count ? only : NULL, e);
	}
	return rc;
}

/* ---- up --------------------------------------------------------------------------------- */

static int absolute_path(const char *file, char out[PATH_MAX], struct err *e)
{
	if (realpath(file, out))
		return 0;
	return err_sys(e, -errno, "%s", file);
}

static int send_up(struct ctl *c, const char *file, const char *vm, struct err *e)
{
	json_t *result = NULL;
	int rc = ask(c, "up", json_pack("{s:s*,s:s*}", "file", file, "vm", vm), &result, e);

	if (!rc)
		tell_changes(result);
	json_decref(result);
	return rc;
}

/* All that start by themselves, or those that were named. */
static int send_ups(struct ctl *c, const char *file, const struct text_list *vms, struct err *e)
{
	int rc = 0;

	if (!vms->count)
		return send_up(c, file, NULL, e);
	for (size_t i = 0; i < vms->count && !rc; i++)
		rc = send_up(c, i ? NULL : file, vms->items[i], e);
	return rc;
}

static int up_status(const struct progress *p)
{
	printf("%u VM%s", p->run, p->run == 1 ? " runs" : "s run");
	if (p->off)
		printf(", %u %s off", p->off, p->off == 1 ? "is" : "are");
	if (p->failed)
		printf(", %u could not be started", p->failed);
	printf("\n");
	return p->failed ? CLI_FAILED : CLI_OK;
}

int cmd_up(const struct invocation *in)
{
	const struct args *a = in->args;
	const struct invocation which = { .cmd = in->cmd, .args = in->args, .pos = a->vms };
	struct progress p = { .said = json_object() };
	char file[PATH_MAX];
	struct ctl *c = NULL;
	struct err e = { "" };
	int rc = in->pos.count ? absolute_path(in->pos.items[0], file, &e) : 0;
	bool is_all = in->pos.count && !a->vms.count; /* brimd starts all of what it is given */

	if (!rc)
		rc = have_brimd(is_all ? file : NULL, &c, &e);
	if (!rc)
		rc = send_ups(c, in->pos.count ? file : NULL, &a->vms, &e);
	if (!rc && !a->no_wait)
		rc = await(c, &p, &which, &e);
	ctl_close(&c);
	json_decref(p.said);
	if (rc)
		return cli_fail(&e);
	return a->no_wait ? CLI_OK : up_status(&p);
}

/* ---- down ---------------------------------------------------------------------------------- */

static int send_down(struct ctl *c, const struct invocation *in, struct err *e)
{
	int rc = 0;

	if (!in->pos.count)
		return ask(c, "down", NULL, NULL, e);
	for (size_t i = 0; i < in->pos.count && !rc; i++)
		rc = ask(c, "down", json_pack("{s:s}", "vm", in->pos.items[i]), NULL, e);
	return rc;
}

int cmd_down(const struct invocation *in)
{
	const struct args *a = in->args;
	struct progress p = { .said = json_object() };
	struct ctl *c = NULL;
	struct err e = { "" };
	int rc = brimd_open(&c, &e);

	if (!rc)
		rc = send_down(c, in, &e);
	if (!rc && !a->no_wait)
		rc = await(c, &p, in, &e);
	if (!rc && a->all)
		rc = ask(c, "quit", NULL, NULL, &e);
	ctl_close(&c);
	json_decref(p.said);
	return rc ? cli_fail(&e) : CLI_OK;
}

/* ---- reload ---------------------------------------------------------------------------------- */

int cmd_reload(const struct invocation *in)
{
	json_t *result = NULL;
	char file[PATH_MAX];
	struct ctl *c = NULL;
	struct err e = { "" };
	int rc = in->pos.count ? absolute_path(in->pos.items[0], file, &e) : 0;

	if (!rc)
		rc = brimd_open(&c, &e);
	if (!rc)
		rc = ask(c, "reload", in->pos.count ? json_pack("{s:s}", "file", file) : NULL, &result,
			 &e);
	if (!rc && !json_array_size(json_object_get(result, "changes")))
		printf("nothing has changed\n");
	if (!rc)
		tell_changes(result);
	json_decref(result);
	ctl_close(&c);
	return rc ? cli_fail(&e) : CLI_OK;
}
