/*
 * Starting a VM, and waiting until its guest is about to run (vmm/spawn.c has the child's
 * side).
 *
 * A signal while we wait ends the child: nobody would know of it.
 *
 * Threads: one.
 */
#include "cli/cli.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <unistd.h>

#define END_TIMEOUT_MS 5000

/* ---- signals ------------------------------------------------------------------- */

int signals_init(struct signals *s, struct err *e)
{
	static const int watched[] = { SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGTSTP };
	sigset_t set;

	sigemptyset(&set);
	for (size_t i = 0; i < ARRAY_LEN(watched); i++)
		sigaddset(&set, watched[i]);
	s->fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
	if (s->fd < 0)
		return err_sys(e, -errno, "cannot watch for signals");
	sigprocmask(SIG_BLOCK, &set, &s->before);
	return 0;
}

void signals_fini(struct signals *s)
{
	close(s->fd);
	s->fd = -1;
	sigprocmask(SIG_SETMASK, &s->before, NULL);
}

int signals_next(const struct signals *s)
{
	struct signalfd_siginfo info;

	if (read(s->fd, &info, sizeof(info)) != sizeof(info))
		return 0;
	return (int)info.ssi_signo;
}

/* ---- the answer ------------------------------------------------------------------------ */

static bool reap_status(pid_t pid, int timeout_ms, int *status)
{
	uint64_t until = now_ns() + (uint64_t)timeout_ms * 1000000;
	pid_t got;

	do {
		got = waitpid(pid, status, WNOHANG);
		if (got == 0)
			usleep(5000);
	} while (got == 0 && now_ns() < until);
	return got != 0;
}

bool reap(pid_t pid, int timeout_ms, int *code)
{
	int status = 0;

	if (!reap_status(pid, timeout_ms, &status))
		return false;
	if (code)
		*code = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
	return true;
}

/* The process ended without a word. */
static int explain_silence(pid_t pid, const struct vm_paths *p, struct err *e)
{
	char log[256] = "", how[64];
	int status = 0;

	if (!reap_status(pid, END_TIMEOUT_MS, &status)) {
		kill(pid, SIGKILL);
		waitpid(pid, NULL, 0);
		return err_set(e, -EPROTO, "VM %s: brim-vmm did not say whether its guest runs", p->name);
	}
	if (WIFSIGNALED(status))
		snprintf(how, sizeof(how), "signal %d, %s", WTERMSIG(status), strsignal(WTERMSIG(status)));
	else
		snprintf(how, sizeof(how), "status %d", WEXITSTATUS(status));
	rundir_last_log(p, log, sizeof(log));
	return err_set(e, -EPROTO, "VM %s: brim-vmm ended before its guest ran (%s)%s%s", p->name, how,
		       *log ? "; its log ends with: " : "", log);
}

/* Reads the line, byte by byte so as not to read past it: it is short. */
static int read_answer(int fd, const struct signals *s, char *line, size_t len, struct err *e)
{
	struct pollfd pfds[] = { { .fd = fd, .events = POLLIN }, { .fd = s->fd, .events = POLLIN } };
	size_t n = 0;
	int sig;

	for (;;) {
		if (poll(pfds, ARRAY_LEN(pfds), -1) < 0 && errno != EINTR)
			return err_sys(e, -errno, "cannot wait for brim-vmm");
		sig = pfds[1].revents ? signals_next(s) : 0;
		if (sig == SIGTSTP)
			raise(SIGSTOP);
		else if (sig)
			return err_set(e, -EINTR, "interrupted; the VM was not started");
		if (!pfds[0].revents)
			continue;
		if (read(fd, line + n, 1) != 1 || line[n] == '\n')
			break;
		if (n + 2 < len)
			n++;
	}
	line[n] = '\0';
	return 0;
}

static int await_answer(int fd, pid_t pid, const struct vm_paths *p, const struct signals *s,
			struct err *e)
{
	static const char prefix[] = "error: ";
	char line[sizeof(e->msg)] = "";
	int rc;

	rc = read_answer(fd, s, line, sizeof(line), e);
	if (!rc && strcmp(line, "ok") == 0)
		return 0;
	if (!rc && strncmp(line, prefix, sizeof(prefix) - 1) != 0) {
		rc = explain_silence(pid, p, e);
	} else {
		if (!rc)
			rc = err_set(e, -ECANCELED, "%s", line + sizeof(prefix) - 1);
		/* it is about to end itself, or must */
		if (rc == -EINTR || !reap(pid, END_TIMEOUT_MS, NULL)) {
			kill(pid, SIGKILL);
			waitpid(pid, NULL, 0);
		}
	}
	/* nothing of a VM that did not start may stay behind */
	rundir_clean(p, NULL);
	return rc;
}

int launch(const json_t *config, const struct vm_paths *p, const struct signals *s, pid_t *pid,
	   struct err *e)
{
	struct vmm_child c;
	int rc = vmm_spawn(config, &s->before, &c, e);

	if (rc)
		return rc;
	rc = await_answer(c.ready_fd, c.pid, p, s, e);
	if (!rc)
		*pid = c.pid;
	close(c.ready_fd);
	return rc;
}
