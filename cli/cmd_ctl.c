/*
 * Changing VMs: `brim stop`, `kill`, `pause`, `resume`, `hint`.
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
