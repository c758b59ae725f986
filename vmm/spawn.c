/*
 * Starting brim-vmm, and brimd: the parent's side, up to where it waits for the answer.
 *
 *   brim, brimd                       brim-vmm
 *    fork, exec ------------------->   reads the description (fd 3, a memfd)
 *    reads a line from a pipe <-----   "ok" or "error: ..." (fd 4)
 *
 * The child gets a session of its own, so that keys at the terminal reach brim
 * only, and no descriptor but these and stdio.  Its stdout is our stderr: ours
 * is for what was asked for.
 *
 * Threads: one.
 */
#include "vmm/client.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define CONFIG_FD 3
#define READY_FD 4

/* ---- which program ----------------------------------------------------------- */

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
static void find_program(const char *name, const char *variable, char out[PATH_MAX])
{
	const char *asked = getenv(variable);
	char elsewhere[64];

	snprintf(elsewhere, sizeof(elsewhere), "../libexec/brim/%s", name);
	if (asked && *asked)
		snprintf(out, PATH_MAX, "%s", asked);
	else if (!beside_us(name, out) && !beside_us(elsewhere, out))
		snprintf(out, PATH_MAX, "%s", name);
}

/* ---- the child ---------------------------------------------------------------- */

struct child {
	char path[PATH_MAX];
	int config_fd, ready_fd;
	const sigset_t *signals;
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
	sigprocmask(SIG_SETMASK, c->signals, NULL);
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

int vmm_spawn(const json_t *config, const sigset_t *signals, struct vmm_child *out, struct err *e)
{
	struct child c = { .config_fd = -1, .signals = signals };
	int ready[2] = { -1, -1 }, rc;
	pid_t child;

	find_program("brim-vmm", "BRIM_VMM", c.path);
	rc = config_file(config, &c.config_fd, e);
	if (rc)
		return rc;
	if (pipe2(ready, O_CLOEXEC) < 0) {
		rc = err_sys(e, -errno, "cannot start %s", c.path);
		goto out;
	}
	c.ready_fd = ready[1];
	fflush(NULL);
	child = fork();
	if (child == 0)
		be_child(&c);
	if (child < 0)
		rc = err_sys(e, -errno, "cannot start %s", c.path);
	else
		*out = (struct vmm_child){ .pid = child, .ready_fd = ready[0] };
	close(ready[1]);
	if (rc)
		close(ready[0]);
out:
	close(c.config_fd);
	return rc;
}

/* ---- brimd --------------------------------------------------------------------- */

static _Noreturn void be_brimd(const char *path, const char *base, const char *config, int log)
{
	int null = open("/dev/null", O_RDWR);
	sigset_t none;

	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	setsid();
	if (null >= 0 && dup2(null, STDIN_FILENO) >= 0 && dup2(log, STDOUT_FILENO) >= 0 &&
	    dup2(log, STDERR_FILENO) >= 0 && close_range(STDERR_FILENO + 1, ~0u, 0) == 0)
		execlp(path, "brimd", "--run-dir", base, config ? "--config" : (char *)NULL, config,
		       (char *)NULL);
	dprintf(STDERR_FILENO, "cannot start %s: %s\n", path, strerror(errno));
	_exit(127);
}

/* The directory may not be there yet: then nobody has started a VM here. */
static int open_log(const char *base, struct err *e)
{
	char path[PATH_MAX];
	int fd;

	snprintf(path, sizeof(path), "%s/" BRIMD_DIR, base);
	if ((mkdir(base, 0700) < 0 && errno != EEXIST) ||
	    (mkdir(path, 0700) < 0 && errno != EEXIST))
		return err_sys(e, -errno, "cannot make %s", path);
	snprintf(path, sizeof(path), "%s/" BRIMD_LOG, base);
	fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NOFOLLOW, 0600);
	return fd < 0 ? err_sys(e, -errno, "%s", path) : fd;
}

int brimd_spawn(const char *base, const char *config, pid_t *pid, struct err *e)
{
	char path[PATH_MAX];
	int log = open_log(base, e);
	pid_t child;

	if (log < 0)
		return log;
	find_program("brimd", "BRIM_BRIMD", path);
	fflush(NULL);
	child = fork();
	if (child == 0)
		be_brimd(path, base, config, log);
	close(log);
	if (child < 0)
		return err_sys(e, -errno, "cannot start %s", path);
	*pid = child;
	return 0;
}
