/*
 * Run directories and the client side of the control socket.  See client.h.
 *
 * The lock and the removal of its file: a lock file that is unlinked while
 * somebody waits for it leaves that somebody with a lock on nothing.  So whoever
 * got the lock compares the inode it holds with the one in the directory, and
 * starts again when they differ; whoever removes the file holds the lock.
 *
 * Looking whether a VM lives takes the lock shared, for microseconds.  A claim
 * may meet such a look, so it does not believe the first refusal.
 */
#include "vmm/client.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <unistd.h>

#define CLAIM_TRIES 10
#define CLAIM_PAUSE_US 20000
#define CONNECT_TIMEOUT_S 2
#define LOG_TAIL_BYTES 4096

/* ---- paths ----------------------------------------------------------------- */

static int base_fits(char *buf, size_t len, const char *dir, const char *below, struct err *e)
{
	int n = snprintf(buf, len, "%s%s", dir, below);

	if (n < 0 || (size_t)n >= len)
		return err_set(e, -ENAMETOOLONG, "run directory %s%s: the path is too long for a "
			       "socket; set BRIM_RUN_DIR to a shorter path", dir, below);
	return 0;
}

int rundir_base(char *buf, size_t len, struct err *e)
{
	const char *dir = getenv("BRIM_RUN_DIR");

	if (dir && *dir) {
		if (*dir != '/')
			return err_set(e, -EINVAL, "BRIM_RUN_DIR is %s: it must be an absolute "
				       "path", dir);
		return base_fits(buf, len, dir, "", e);
	}
	if (geteuid() == 0)
		return base_fits(buf, len, "/run/brim", "", e);
	dir = getenv("XDG_RUNTIME_DIR");
	if (!dir || *dir != '/')
		return err_set(e, -EINVAL, "there is no place for run directories: set BRIM_RUN_DIR "
			       "to a directory of your own, or log in so that XDG_RUNTIME_DIR is set");
	return base_fits(buf, len, dir, "/brim", e);
}

static bool name_char(char c)
{
	return isalnum((unsigned char)c) || c == '.' || c == '_' || c == '-';
}

int vm_name_check(const char *name, struct err *e)
{
	size_t n = strlen(name);

	if (n == 0)
		return err_set(e, -EINVAL, "a VM's name must not be empty");
	if (n > RUN_NAME_MAX)
		return err_set(e, -EINVAL, "VM name %.20s...: %zu characters, the most are %d", name,
			       n, RUN_NAME_MAX);
	if (!isalnum((unsigned char)name[0]))
		return err_set(e, -EINVAL, "VM name %s: the first character must be a letter or a "
			       "digit", name);
	for (size_t i = 0; i < n; i++)
		if (!name_char(name[i]))
			return err_set(e, -EINVAL, "VM name %s: only letters, digits, '.', '_' and "
				       "'-' are allowed", name);
	return 0;
}

static bool path_join(char out[RUN_PATH_MAX], const char *dir, const char *file)
{
	int n = snprintf(out, RUN_PATH_MAX, "%s/%s", dir, file);

	return n > 0 && (size_t)n < RUN_PATH_MAX;
}

static bool join_all(struct vm_paths *p)
{
	return path_join(p->lock, p->dir, "lock") && path_join(p->control, p->dir, "control.sock") &&
	       path_join(p->console, p->dir, "console.sock") &&
	       path_join(p->hvc, p->dir, "hvc0.sock") && path_join(p->log, p->dir, "log") &&
	       path_join(p->config, p->dir, "config.json");
}

int vm_paths_init(struct vm_paths *p, const char *base, const char *name, struct err *e)
{
	struct vm_paths out;
	int rc;

	rc = vm_name_check(name, e);
	if (rc)
		return rc;
	memset(&out, 0, sizeof(out));
	memcpy(out.name, name, strlen(name));
	if (!path_join(out.dir, base, name) || !join_all(&out))
		return err_set(e, -ENAMETOOLONG, "VM %s: the path of a socket in %s/%s would be longer "
			       "than the %zu bytes Linux allows; use a shorter name or set BRIM_RUN_DIR "
			       "to a shorter path", name, base, name, RUN_PATH_MAX - 1);
	*p = out;
	return 0;
}

int vm_paths_from_dir(struct vm_paths *p, const char *dir, struct err *e)
{
	const char *slash = strrchr(dir, '/');
	char base[PATH_MAX];

	if (dir[0] != '/' || (size_t)(slash - dir) >= sizeof(base))
		return err_set(e, -EINVAL, "run directory %s: must be an absolute path", dir);
	memcpy(base, dir, (size_t)(slash - dir));
	base[slash - dir] = '\0';
	return vm_paths_init(p, base, slash + 1, e);
}

/* ---- the lock -------------------------------------------------------------- */

static bool same_file(int fd, const char *path)
{
	struct stat held, there;

	return fstat(fd, &held) == 0 && lstat(path, &there) == 0 &&
	       held.st_dev == there.st_dev && held.st_ino == there.st_ino;
}

static pid_t read_pid(int fd)
{
	char text[32] = "";

	if (pread(fd, text, sizeof(text) - 1, 0) <= 0)
		return 0;
	return (pid_t)strtol(text, NULL, 10);
}

static bool is_dir(const char *path)
{
	struct stat st;

	return lstat(path, &st) == 0 && S_ISDIR(st.st_mode);
}

int rundir_probe(const struct vm_paths *p, enum vm_presence *presence, pid_t *pid,
		 struct err *e)
{
	enum vm_presence seen;
	pid_t holder = 0;
	int fd;

	fd = open(p->lock, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
	if (fd < 0) {
		if (errno != ENOENT)
			return err_sys(e, -errno, "VM %s: cannot look at %s", p->name, p->lock);
		seen = is_dir(p->dir) ? VM_DIED : VM_ABSENT;
	} else if (flock(fd, LOCK_SH | LOCK_NB) == 0) {
		/* Removed while we looked: an orderly end. */
		seen = same_file(fd, p->lock) ? VM_DIED : VM_ABSENT;
	} else {
		seen = VM_RUNNING;
		holder = read_pid(fd);
	}
	if (fd >= 0)
		close(fd);
	*presence = seen;
	if (pid)
		*pid = holder;
	return 0;
}

static int make_dirs(const char *dir, struct err *e)
{
	char path[RUN_PATH_MAX];
	size_t n = strlen(dir);

	VERIFY(n < sizeof(path));
	memcpy(path, dir, n + 1);
	for (size_t i = 1; i <= n; i++) {
		if (path[i] != '/' && path[i] != '\0')
			continue;
		path[i] = '\0';
		if (mkdir(path, 0700) < 0 && errno != EEXIST)
			return err_sys(e, -errno, "cannot make the run directory %s", path);
		path[i] = dir[i];
	}
	return 0;
}

/* Somebody else's directory in a place all may write to must not become ours. */
static int check_owner(const struct vm_paths *p, struct err *e)
{
	struct stat st;

	if (lstat(p->dir, &st) < 0)
		return -errno;
	if (!S_ISDIR(st.st_mode) || st.st_uid != geteuid())
		return err_set(e, -EPERM, "run directory %s: not a directory of this user; remove it "
			       "or set BRIM_RUN_DIR", p->dir);
	return 0;
}

/* The lock of the file that is in the directory now.  -EAGAIN: look again. */
static int try_lock(const struct vm_paths *p, int *lock_fd, struct err *e)
{
	int fd, rc;

	fd = open(p->lock, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
	if (fd < 0)
		return errno == ENOENT ? -EAGAIN
				       : err_sys(e, -errno, "VM %s: cannot open %s", p->name, p->lock);
	if (flock(fd, LOCK_EX | LOCK_NB) < 0)
		rc = errno == EWOULDBLOCK ? -EBUSY
					  : err_sys(e, -errno, "VM %s: cannot lock %s", p->name, p->lock);
	else
		rc = same_file(fd, p->lock) ? 0 : -EAGAIN;
	if (rc == -EBUSY)
		err_set(e, rc, "VM %s is running already (pid %d)", p->name, (int)read_pid(fd));
	if (rc)
		close(fd);
	else
		*lock_fd = fd;
	return rc;
}

static int lock_patiently(const struct vm_paths *p, bool create, int *lock_fd, struct err *e)
{
	int rc = -EAGAIN;

	for (int i = 0; i < CLAIM_TRIES && (rc == -EAGAIN || rc == -EBUSY); i++) {
		if (i > 0)
			usleep(CLAIM_PAUSE_US);
		rc = create ? make_dirs(p->dir, e) : 0;
		if (!rc)
			rc = check_owner(p, e);
		if (rc == -ENOENT)
			rc = create ? -EAGAIN : -ENOENT;
		if (!rc)
			rc = try_lock(p, lock_fd, e);
	}
	if (rc == -EAGAIN)
		rc = err_set(e, -EBUSY, "VM %s: others keep making and removing %s", p->name, p->dir);
	return rc;
}

static void remove_files(const struct vm_paths *p)
{
	const char *const files[] = { p->control, p->console, p->hvc, p->log, p->config };

	for (size_t i = 0; i < ARRAY_LEN(files); i++)
		if (unlink(files[i]) < 0 && errno != ENOENT)
			log_warn("cannot remove %s: %s", files[i], strerror(errno));
}

static int write_pid(const struct vm_paths *p, int fd, struct err *e)
{
	char text[32];
	int n = snprintf(text, sizeof(text), "%d\n", (int)getpid());

	if (ftruncate(fd, 0) < 0 || pwrite(fd, text, (size_t)n, 0) != n)
		return err_sys(e, errno ? -errno : -EIO, "VM %s: cannot write %s", p->name, p->lock);
	return 0;
}

int rundir_claim(const struct vm_paths *p, int *lock_fd, struct err *e)
{
	int fd = -1, rc;

	rc = lock_patiently(p, true, &fd, e);
	if (rc)
		return rc == -EBUSY ? -EEXIST : rc;
	remove_files(p);
	rc = write_pid(p, fd, e);
	if (rc)
		rundir_release(p, &fd);
	else
		*lock_fd = fd;
	return rc;
}

void rundir_release(const struct vm_paths *p, int *lock_fd)
{
	if (*lock_fd < 0)
		return;
	/* When somebody removed the directory by hand, it may be another VM's now. */
	if (same_file(*lock_fd, p->lock)) {
		remove_files(p);
		if (unlink(p->lock) < 0)
			log_warn("cannot remove %s: %s", p->lock, strerror(errno));
		/* ENOTEMPTY: the next VM of this name is already moving in, or there is
		 * a file that is not ours. */
		if (rmdir(p->dir) < 0 && errno != ENOTEMPTY)
			log_warn("cannot remove %s: %s", p->dir, strerror(errno));
	}
	close(*lock_fd);
	*lock_fd = -1;
}

int rundir_clean(const struct vm_paths *p, struct err *e)
{
	int fd = -1, rc;

	rc = lock_patiently(p, false, &fd, e);
	if (rc == -ENOENT)
		return 0;
	if (!rc)
		rundir_release(p, &fd);
	return rc;
}

/* ---- listing --------------------------------------------------------------- */

static int by_version(const void *a, const void *b)
{
	return strverscmp(*(char *const *)a, *(char *const *)b);
}

static int list_add(char ***names, size_t *count, const char *name)
{
	char **grown = reallocarray(*names, *count + 1, sizeof(char *));

	if (!grown)
		return -ENOMEM;
	*names = grown;
	grown[*count] = strdup(name);
	if (!grown[*count])
		return -ENOMEM;
	(*count)++;
	return 0;
}

int rundir_list(const char *base, char ***names, size_t *count, struct err *e)
{
	char **found = NULL;
	size_t n = 0;
	struct dirent *d;
	int rc = 0;
	DIR *dir;

	dir = opendir(base);
	if (!dir && errno != ENOENT)
		return err_sys(e, -errno, "cannot read the run directory %s", base);
	while (dir && !rc && (d = readdir(dir)))
		if (vm_name_check(d->d_name, NULL) == 0 &&
		    (d->d_type == DT_DIR || d->d_type == DT_UNKNOWN))
			rc = list_add(&found, &n, d->d_name);
	if (dir)
		closedir(dir);
	if (rc) {
		rundir_list_free(&found, n);
		return err_sys(e, rc, "cannot list the run directory %s", base);
	}
	if (n > 1)
		qsort(found, n, sizeof(*found), by_version);
	*names = found;
	*count = n;
	return 0;
}

void rundir_list_free(char ***names, size_t count)
{
	for (size_t i = 0; i < count; i++)
		free((*names)[i]);
	free(*names);
	*names = NULL;
}

void rundir_last_log(const struct vm_paths *p, char *buf, size_t len)
{
	char tail[LOG_TAIL_BYTES + 1];
	ssize_t n = 0;
	char *start;
	int fd;

	fd = open(p->log, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
	if (fd >= 0) {
		off_t size = lseek(fd, 0, SEEK_END);

		n = pread(fd, tail, LOG_TAIL_BYTES, size > LOG_TAIL_BYTES ? size - LOG_TAIL_BYTES : 0);
		close(fd);
	}
	if (n < 0)
		n = 0;
	while (n > 0 && isspace((unsigned char)tail[n - 1]))
		n--;
	tail[n] = '\0';
	start = memrchr(tail, '\n', (size_t)n);
	snprintf(buf, len, "%s", start ? start + 1 : tail);
}

/* ---- the control socket ----------------------------------------------------- */

struct ctl {
	int fd;
	json_int_t next_id;
	struct vm_paths paths;
	char *buf; /* received, not yet a whole line */
	size_t used;
	size_t room;
};

int sock_connect(const char *path)
{
	const struct timeval patience = { .tv_sec = CONNECT_TIMEOUT_S };
	const struct timeval none = { 0 };
	struct sockaddr_un sa = { .sun_family = AF_UNIX };
	size_t n = strlen(path);
	int fd, rc;

	if (n >= sizeof(sa.sun_path))
		return -ENAMETOOLONG;
	memcpy(sa.sun_path, path, n + 1);
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return -errno;
	/* of a Unix socket this bounds connect() too */
	setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof(patience));
	if (connect(fd, (struct sockaddr *)&sa, sizeof(sa)) < 0) {
		rc = errno == EAGAIN ? -ETIMEDOUT : -errno;
		close(fd);
		return rc;
	}
	setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &none, sizeof(none));
	return fd;
}

/* Why there is nobody to talk to, with what to do about it. */
static int explain_absence(const struct vm_paths *p, int code, struct err *e)
{
	enum vm_presence presence;
	int rc;

	rc = rundir_probe(p, &presence, NULL, e);
	if (rc)
		return rc;
	switch (presence) {
	case VM_ABSENT:
		return err_set(e, -ENOENT, "there is no VM named %s (`brim ps` lists them)", p->name);
	case VM_DIED:
		return err_set(e, -ECONNREFUSED, "VM %s has died: `brim log %s` shows its log, `brim "
			       "kill %s` cleans up", p->name, p->name, p->name);
	case VM_RUNNING:
		break;
	}
	return err_sys(e, code, "VM %s runs but cannot be reached at %s", p->name, p->control);
}

int ctl_open(struct ctl **out, const struct vm_paths *p, struct err *e)
{
	struct ctl *c;
	int fd;

	fd = sock_connect(p->control);
	if (fd < 0)
		return explain_absence(p, fd, e);
	c = calloc(1, sizeof(*c));
	if (!c) {
		close(fd);
		return err_sys(e, -ENOMEM, "VM %s", p->name);
	}
	c->fd = fd;
	c->next_id = 1;
	c->paths = *p;
	*out = c;
	return 0;
}

void ctl_close(struct ctl **c)
{
	if (!*c)
		return;
	close((*c)->fd);
	free((*c)->buf);
	free(*c);
	*c = NULL;
}

int ctl_fd(const struct ctl *c)
{
	return c->fd;
}

static int went_away(const struct ctl *c, struct err *e)
{
	return err_set(e, -ECONNRESET, "VM %s went away before it answered", c->paths.name);
}

static int send_all(const struct ctl *c, const char *text, size_t len, struct err *e)
{
	while (len > 0) {
		ssize_t n = send(c->fd, text, len, MSG_NOSIGNAL);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && (errno == EPIPE || errno == ECONNRESET))
			return went_away(c, e);
		if (n < 0)
			return err_sys(e, -errno, "VM %s: cannot send", c->paths.name);
		text += n;
		len -= (size_t)n;
	}
	return 0;
}

int ctl_send(struct ctl *c, const char *cmd, json_t *args, json_int_t *id, struct err *e)
{
	json_t *msg = args ? args : json_object();
	char *text = NULL;
	size_t len;
	int rc;

	if (!msg || json_object_set_new(msg, "v", json_integer(CTL_VERSION)) < 0 ||
	    json_object_set_new(msg, "id", json_integer(c->next_id)) < 0 ||
	    json_object_set_new(msg, "cmd", json_string(cmd)) < 0 ||
	    !(text = json_dumps(msg, JSON_COMPACT))) {
		rc = err_sys(e, -ENOMEM, "VM %s: cannot ask for %s", c->paths.name, cmd);
		goto out;
	}
	len = strlen(text);
	text[len] = '\n'; /* the newline takes the place of the NUL */
	rc = send_all(c, text, len + 1, e);
	if (!rc)
		*id = c->next_id++;
out:
	free(text);
	json_decref(msg);
	return rc;
}

static int make_room(struct ctl *c, struct err *e)
{
	size_t want = c->room ? c->room * 2 : 16 * KiB;
	char *grown;

	if (c->used < c->room)
		return 0;
	if (want > CTL_LINE_MAX)
		return err_set(e, -EPROTO, "VM %s: its answer is longer than 1 MiB", c->paths.name);
	grown = realloc(c->buf, want);
	if (!grown)
		return err_sys(e, -ENOMEM, "VM %s", c->paths.name);
	c->buf = grown;
	c->room = want;
	return 0;
}

/* Receives what is there, at least a byte.  deadline_ns 0: does not wait. */
static int receive(struct ctl *c, uint64_t deadline_ns, struct err *e)
{
	struct pollfd pfd = { .fd = c->fd, .events = POLLIN };
	uint64_t now = now_ns();
	int wait_ms = 0, rc;
	ssize_t n;

	rc = make_room(c, e);
	if (rc)
		return rc;
	if (deadline_ns == UINT64_MAX)
		wait_ms = -1;
	else if (deadline_ns > now)
		wait_ms = (int)((deadline_ns - now) / 1000000 + 1);
	rc = poll(&pfd, 1, wait_ms);
	if (rc == 0)
		return -EAGAIN;
	if (rc < 0)
		return errno == EINTR ? 0 : err_sys(e, -errno, "VM %s: cannot wait", c->paths.name);
	n = recv(c->fd, c->buf + c->used, c->room - c->used, MSG_DONTWAIT);
	if (n < 0 && (errno == EINTR || errno == EAGAIN))
		return 0;
	if (n <= 0)
		return went_away(c, e);
	c->used += (size_t)n;
	return 0;
}

/* The next whole line as JSON, NULL when there is none yet. */
static int next_message(struct ctl *c, json_t **msg, struct err *e)
{
	char *end = c->used ? memchr(c->buf, '\n', c->used) : NULL;
	size_t len;

	*msg = NULL;
	if (!end)
		return 0;
	len = (size_t)(end - c->buf) + 1;
	*msg = json_loadb(c->buf, len, JSON_REJECT_DUPLICATES, NULL);
	c->used -= len;
	memmove(c->buf, c->buf + len, c->used);
	if (!json_is_object(*msg)) {
		json_decref(*msg);
		*msg = NULL;
		return err_set(e, -EPROTO, "VM %s: its answer is not a JSON object", c->paths.name);
	}
	return 0;
}

static int take_reply(const struct ctl *c, json_t *msg, json_t **result, struct err *e)
{
	const char *why = json_string_value(json_object_get(msg, "error"));

	if (!json_is_true(json_object_get(msg, "ok")))
		return err_set(e, -EREMOTEIO, "VM %s: %s", c->paths.name,
			       why ? why : "refused without a reason");
	if (result) {
		json_t *r = json_object_get(msg, "result");

		*result = r ? json_incref(r) : json_object();
	}
	return 0;
}

static uint64_t deadline_of(int timeout_ms)
{
	if (timeout_ms < 0)
		return UINT64_MAX;
	return timeout_ms ? now_ns() + (uint64_t)timeout_ms * 1000000 : 0;
}

int ctl_recv(struct ctl *c, json_int_t id, int timeout_ms, json_t **result, struct err *e)
{
	uint64_t deadline = deadline_of(timeout_ms);
	json_t *msg;
	int rc;

	for (;;) {
		rc = next_message(c, &msg, e);
		if (rc)
			return rc;
		if (msg && json_integer_value(json_object_get(msg, "id")) == id) {
			rc = take_reply(c, msg, result, e);
			json_decref(msg);
			return rc;
		}
		if (msg) {
			json_decref(msg);
			continue;
		}
		rc = receive(c, deadline, e);
		if (rc == -EAGAIN && timeout_ms != 0)
			return err_set(e, -ETIMEDOUT, "VM %s does not answer (waited %.1f s)",
				       c->paths.name, timeout_ms / 1000.0);
		if (rc)
			return rc;
	}
}

int ctl_call(struct ctl *c, const char *cmd, json_t *args, int timeout_ms, json_t **result,
	     struct err *e)
{
	json_int_t id;
	int rc;

	rc = ctl_send(c, cmd, args, &id, e);
	if (!rc)
		rc = ctl_recv(c, id, timeout_ms, result, e);
	return rc;
}
