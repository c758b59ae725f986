/*
 * Changing VMs: `brim stop`, `kill`, `pause`, `resume`, `balloon`, `hint`.
 * Those that take several names do what they can, and report the worst.
 *
 * One thread; no state.
 */
#include "cli/cli.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#define GONE_MS 10000
#define KILL_TIMEOUT_MS 2000
#define PROGRESS_S 5
#define BALLOON_POLL_US 200000

/* Calls fn for every name; the highest exit status. */
static int for_each(const struct invocation *in, int (*fn)(const struct args *a, const char *name))
{
	int worst = CLI_OK;

	for (size_t i = 0; i < in->pos.count; i++) {
		int status = fn(in->args, in->pos.items[i]);

		if (status > worst)
			worst = status;
	}
	return worst;
}

/* ---- stop -------------------------------------------------------------------------------- */

/* Waits for the reply, saying now and then that it still does. */
static int await_end(struct ctl *c, json_int_t id, const char *name, uint64_t timeout_s,
		     json_t **reply, struct err *e)
{
	uint64_t waited = 0;
	int rc;

	do {
		uint64_t left = timeout_s - waited, s = left < PROGRESS_S ? left : PROGRESS_S;

		rc = ctl_recv(c, id, (int)s * 1000, reply, e);
		waited += s;
		if (rc == -ETIMEDOUT && waited < timeout_s)
			fprintf(stderr, "brim: VM %s: waiting for its guest to power off (%" PRIu64
				" s of %" PRIu64 ")\n", name, waited, timeout_s);
	} while (rc == -ETIMEDOUT && waited < timeout_s);
	if (rc == -ETIMEDOUT || rc == -EAGAIN)
		rc = err_set(e, -ETIMEDOUT, "VM %s: its guest did not power off within %" PRIu64 " s; it "
			     "may still do so; `brim kill %s` ends it at once", name, timeout_s, name);
	return rc;
}

/* After the answer, or instead of one. */
static int gone(const struct vm_paths *p, int rc, const json_t *reply, struct err *e)
{
	enum vm_presence presence = VM_ABSENT;

	if (rc && rc != -ECONNRESET)
		return cli_fail(e);
	if (!vm_wait_gone(p, GONE_MS)) {
		err_set(e, -EBUSY, "VM %s: its guest is off, but brim-vmm does not end; `brim kill %s` "
			"ends it", p->name, p->name);
		return cli_fail(e);
	}
	rundir_probe(p, &presence, NULL, NULL);
	if (presence == VM_DIED) {
		err_set(e, 0, "VM %s died while it was stopping: `brim log %s` shows its log, `brim kill "
			"%s` cleans up", p->name, p->name, p->name);
		return cli_fail(e);
	}
	rc = rc ? CLI_OK : vm_end_status(p->name, reply, e);
	if (rc)
		cli_error(e);
	return rc;
}

static int stop_one(const struct args *a, const char *name)
{
	struct ctl *waiter = NULL;
	json_t *reply = NULL;
	json_int_t id = 0;
	struct vm_paths p;
	struct err e;
	int rc, status;

	rc = vm_open(name, &p, &waiter, &e);
	if (!rc)
		rc = ctl_send(waiter, "wait", NULL, &id, &e);
	if (!rc)
		rc = vm_ask(name, "stop", NULL, NULL, &e);
	if (rc || a->no_wait) {
		status = rc ? cli_fail(&e) : CLI_OK;
	} else {
		rc = await_end(waiter, id, name, a->timeout_s, &reply, &e);
		status = gone(&p, rc, reply, &e);
	}
	json_decref(reply);
	ctl_close(&waiter);
	return status;
}

int cmd_stop(const struct invocation *in)
{
	return for_each(in, stop_one);
}

/* ---- kill --------------------------------------------------------------------------------- */

/* For a VM that does not answer.  The pid is right as long as the lock is held,
 * so the lock is looked at again once the process cannot be mistaken any more. */
static int kill_process(const struct vm_paths *p, struct err *e)
{
	enum vm_presence presence;
	pid_t pid, again;
	int fd, rc;

	rc = rundir_probe(p, &presence, &pid, e);
	if (rc || presence != VM_RUNNING)
		return rc;
	fd = pid > 0 ? (int)syscall(SYS_pidfd_open, pid, 0) : -1;
	rc = rundir_probe(p, &presence, &again, e);
	if (!rc && presence == VM_RUNNING) {
		if (fd < 0 || again != pid || syscall(SYS_pidfd_send_signal, fd, SIGKILL, NULL, 0) < 0)
			rc = err_set(e, -ESRCH, "VM %s does not answer, and its process cannot be told from "
				     "%s", p->name, p->lock);
	}
	if (fd >= 0)
		close(fd);
	return rc;
}

static int kill_running(const struct vm_paths *p, struct err *e)
{
	struct ctl *c = NULL;
	int rc;

	rc = ctl_open(&c, p, NULL);
	if (!rc)
		rc = ctl_call(c, "kill", NULL, KILL_TIMEOUT_MS, NULL, NULL);
	ctl_close(&c);
	/* no answer because it is gone already is what was wanted */
	if (vm_wait_gone(p, rc && rc != -ECONNRESET ? 0 : GONE_MS))
		return 0;
	rc = kill_process(p, e);
	if (!rc && !vm_wait_gone(p, GONE_MS))
		rc = err_set(e, -EBUSY, "VM %s: brim-vmm does not end", p->name);
	return rc;
}

static int kill_one(const struct args *a, const char *name)
{
	enum vm_presence presence;
	struct vm_paths p;
	struct err e;
	int rc;

	rc = vm_resolve(name, &p, &e);
	if (!rc)
		rc = rundir_probe(&p, &presence, NULL, &e);
	if (!rc && presence == VM_ABSENT)
		rc = err_set(&e, -ENOENT, "there is no VM named %s (`brim ps` lists them)", name);
	if (!rc && presence == VM_RUNNING)
		rc = kill_running(&p, &e);
	if (!rc)
		rc = rundir_clean(&p, &e);
	if (!rc && presence == VM_DIED)
		printf("%s had died; cleaned up\n", name);
	return rc ? cli_fail(&e) : CLI_OK;
}

int cmd_kill(const struct invocation *in)
{
	return for_each(in, kill_one);
}

/* ---- pause, resume, hint -------------------------------------------------------------------- */

static int ask_one(const char *name, const char *cmd)
{
	struct err e;

	return vm_ask(name, cmd, NULL, NULL, &e) ? cli_fail(&e) : CLI_OK;
}

static int pause_one(const struct args *a, const char *name)
{
	return ask_one(name, "pause");
}

static int resume_one(const struct args *a, const char *name)
{
	return ask_one(name, "resume");
}

static int hint_one(const struct args *a, const char *name)
{
	return ask_one(name, "hint");
}

int cmd_pause(const struct invocation *in)
{
	return for_each(in, pause_one);
}

int cmd_resume(const struct invocation *in)
{
	return for_each(in, resume_one);
}

int cmd_hint(const struct invocation *in)
{
	return for_each(in, hint_one);
}

/* ---- balloon ---------------------------------------------------------------------------------- */

static int set_target(const char *name, const char *size, uint64_t *target, struct err *e)
{
	uint64_t bytes = 0;
	json_t *args;
	int rc;

	rc = size_parse(size, &bytes, e);
	if (rc)
		return rc;
	args = json_pack("{s:I}", "target_bytes", (json_int_t)bytes);
	if (!args)
		return err_sys(e, -ENOMEM, "balloon");
	*target = bytes;
	return vm_ask(name, "balloon", args, NULL, e);
}

static int ask_status(const char *name, json_t **status, struct err *e)
{
	return vm_ask(name, "status", NULL, status, e);
}

/* The device counts in pages: less than one of difference is none. */
static bool reached(const json_t *status, uint64_t target)
{
	uint64_t actual;

	return json_u64(status, "balloon", "actual_bytes", &actual) &&
	       (actual > target ? actual - target : target - actual) < 4 * KiB;
}

static int await_balloon(const char *name, uint64_t target, uint64_t timeout_s, struct err *e)
{
	uint64_t until = now_ns() + timeout_s * 1000000000;
	char want[32], has[32];
	json_t *status = NULL;
	uint64_t actual = 0;
	bool done = false;
	int rc;

	for (;;) {
		rc = ask_status(name, &status, e);
		if (rc)
			return rc;
		done = reached(status, target);
		json_u64(status, "balloon", "actual_bytes", &actual);
		json_decref(status);
		if (done || now_ns() >= until)
			break;
		usleep(BALLOON_POLL_US);
	}
	if (done)
		return 0;
	return err_set(e, -ETIMEDOUT, "VM %s: its balloon holds %s, not yet %s, after %" PRIu64 " s; the "
		       "guest may have no more to spare", name, size_format(has, sizeof(has), actual),
		       size_format(want, sizeof(want), target), timeout_s);
}

static void balloon_print(const json_t *status)
{
	static const struct column columns[] = {
		{ "MEMORY", true }, { "TARGET", true }, { "BALLOON", true }, { "RESIDENT", true },
		{ "AVAILABLE", true },
	};
	static const struct { const char *key, *sub; } cells[] = {
		{ "memory_bytes", NULL }, { "balloon", "target_bytes" }, { "balloon", "actual_bytes" },
		{ "resident_bytes", NULL }, { "guest", "available_bytes" },
	};
	struct table *t = table_create(columns, ARRAY_LEN(columns));
	uint64_t bytes;

	for (size_t i = 0; i < ARRAY_LEN(cells); i++)
		if (json_u64(status, cells[i].key, cells[i].sub, &bytes))
			table_size(t, bytes);
		else
			table_cell(t, PLAIN, "-");
	table_print(t, stdout);
	table_destroy(&t);
}

static int balloon_show(const char *name, bool json, struct err *e)
{
	json_t *status = NULL;
	int rc;

	rc = ask_status(name, &status, e);
	if (rc)
		return rc;
	if (json)
		json_print(stdout, json_object_get(status, "balloon"));
	else
		balloon_print(status);
	json_decref(status);
	return 0;
}

int cmd_balloon(const struct invocation *in)
{
	const struct args *a = in->args;
	const char *name = in->pos.items[0];
	uint64_t target = 0;
	struct err e;
	int rc = 0;

	if (in->pos.count > 1) {
		rc = set_target(name, in->pos.items[1], &target, &e);
		if (!rc && a->wait)
			rc = await_balloon(name, target, a->timeout_s, &e);
	}
	if (!rc && (in->pos.count < 2 || a->json))
		rc = balloon_show(name, a->json, &e);
	return rc ? cli_fail(&e) : CLI_OK;
}
