/*
 * Starting brim-vmm.
 *
 *   brim                              brim-vmm
 *    fork, exec ------------------->   reads the description (fd 3, a memfd)
 *    waits for a line on a pipe <---   "ok" or "error: ..." (fd 4)
 *
 * The child gets a session of its own, so that keys at the terminal reach brim
 * only, and no descriptor but these and stdio.  Its stdout is our stderr: ours
 * is for what was asked for.
 *
 * A signal while we wait ends the child: nobody would know of it.
 *
 * Threads: one.
 */
#include "cli/cli.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <unistd.h>

#define CONFIG_FD 3
#define READY_FD 4
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

/* ---- which brim-vmm ---------------------------------------------------------------- */

static bool beside_us(const char *below, char out[PATH_MAX])
{
	char self[PATH_MAX];
	ssize_t n = readlink("/proc/self/exe", self, sizeof(self) - 1);
	char *slash;
	int len;

	if (n <= 0)
		return false;
	self[n] = '\0';
	slash = strrchr(self, '/');
	if (!slash)
		return false;
	*slash = '\0';
	len = snprintf(out, PATH_MAX, "%s/%s", self, below);
	return len > 0 && len < PATH_MAX && access(out, X_OK) == 0;
}

/* Without a '/' in it, execvp() looks in PATH. */
static void find_vmm(char out[PATH_MAX])
{
	const char *asked = getenv("BRIM_VMM");

	if (asked && *asked)
		snprintf(out, PATH_MAX, "%s", asked);
	else if (!beside_us("brim-vmm", out) && !beside_us("../libexec/brim/brim-vmm", out))
		snprintf(out, PATH_MAX, "brim-vmm");
}

/* ---- the child ----------------------------------------------------------------------- */

struct child {
	char path[PATH_MAX];
	int config_fd, ready_fd;
	const struct signals *signals;
};

/* Moves both descriptors to their places, out of each other's way first. */
static bool place_fds(const struct child *c)
{
	int config = fcntl(c->config_fd, F_DUPFD, READY_FD + 1);
	int ready = fcntl(c->ready_fd, F_DUPFD, READY_FD + 1);
	int null = open("/dev/null", O_RDONLY);

	return config >= 0 && ready >= 0 && null >= 0 && dup2(null, STDIN_FILENO) >= 0 &&
	       dup2(STDERR_FILENO, STDOUT_FILENO) >= 0 && dup2(config, CONFIG_FD) >= 0 &&
	       dup2(ready, READY_FD) >= 0 && close_range(READY_FD + 1, ~0u, 0) == 0;
}

static _Noreturn void be_child(const struct child *c)
{
	char config[16], ready[16];
	int failed;

	snprintf(config, sizeof(config), "%d", CONFIG_FD);
	snprintf(ready, sizeof(ready), "%d", READY_FD);
	signal(SIGPIPE, SIG_DFL);
	sigprocmask(SIG_SETMASK, &c->signals->before, NULL);
	setsid();
	if (place_fds(c))
		execlp(c->path, "brim-vmm", "--config-fd", config, "--ready-fd", ready, (char *)NULL);
	failed = errno;
	dprintf(READY_FD, "error: cannot start %s: %s%s\n", c->path, strerror(failed),
		failed == ENOENT ? " (it belongs beside brim, or in PATH; BRIM_VMM names another)" : "");
	_exit(127);
}

static int config_file(const json_t *config, int *out, struct err *e)
{
	int fd = memfd_create("brim-config", MFD_CLOEXEC);

	if (fd < 0)
		return err_sys(e, -errno, "cannot hand over the VM's description");
	if (json_dumpfd(config, fd, JSON_COMPACT) < 0 || lseek(fd, 0, SEEK_SET) < 0) {
		close(fd);
		return err_sys(e, -EIO, "cannot hand over the VM's description");
	}
	*out = fd;
	return 0;
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
	struct child c = { .config_fd = -1, .ready_fd = -1, .signals = s };
	int ready[2] = { -1, -1 }, rc;
	pid_t child;

	find_vmm(c.path);
	rc = config_file(config, &c.config_fd, e);
	if (rc)
		goto out;
	if (pipe2(ready, O_CLOEXEC) < 0) {
		rc = err_sys(e, -errno, "cannot start %s", c.path);
		goto out;
	}
	c.ready_fd = ready[1];
	fflush(NULL);
	child = fork();
	if (child == 0)
		be_child(&c);
	if (child < 0) {
		rc = err_sys(e, -errno, "cannot start %s", c.path);
		goto out;
	}
	close(ready[1]);
	ready[1] = -1;
	rc = await_answer(ready[0], child, p, s, e);
	if (!rc)
		*pid = child;
out:
	for (int i = 0; i < 2; i++)
		if (ready[i] >= 0)
			close(ready[i]);
	if (c.config_fd >= 0)
		close(c.config_fd);
	return rc;
}
