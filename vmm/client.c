/*
 * The client side of the control socket.  See client.h.
 */
#include "vmm/client.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#define CONNECT_TIMEOUT_S 2

struct ctl {
	int fd;
	json_int_t next_id;
	char who[RUN_NAME_MAX + 8]; /* "VM web", or "brimd" */
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

/* Takes fd. */
static int make_ctl(struct ctl **out, int fd, const char *who, struct err *e)
{
	struct ctl *c = calloc(1, sizeof(*c));

	if (!c) {
		close(fd);
		return err_sys(e, -ENOMEM, "%s", who);
	}
	c->fd = fd;
	c->next_id = 1;
	snprintf(c->who, sizeof(c->who), "%s", who);
	*out = c;
	return 0;
}

int ctl_open(struct ctl **out, const struct vm_paths *p, struct err *e)
{
	char who[RUN_NAME_MAX + 8];
	int fd = sock_connect(p->control);

	if (fd < 0)
		return explain_absence(p, fd, e);
	snprintf(who, sizeof(who), "VM %s", p->name);
	return make_ctl(out, fd, who, e);
}

int daemon_control_path(const char *base, char *buf, size_t len, struct err *e)
{
	int n = snprintf(buf, len, "%s/" BRIMD_CONTROL, base);

	if (n < 0 || (size_t)n >= len)
		return err_set(e, -ENAMETOOLONG, "%s: the path is too long for sockets", base);
	return 0;
}

int ctl_open_daemon(struct ctl **out, const char *base, struct err *e)
{
	char path[RUN_PATH_MAX];
	int fd = daemon_control_path(base, path, sizeof(path), e);

	if (fd)
		return fd;
	fd = sock_connect(path);
	if (fd == -ENOENT || fd == -ECONNREFUSED)
		return err_set(e, -ENOENT, "no brimd runs for %s (`brim up FILE` starts one)", base);
	if (fd < 0)
		return err_sys(e, fd, "brimd cannot be reached at %s", path);
	return make_ctl(out, fd, "brimd", e);
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
	return err_set(e, -ECONNRESET, "%s went away before it answered", c->who);
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
			return err_sys(e, -errno, "%s: cannot send", c->who);
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
		rc = err_sys(e, -ENOMEM, "%s: cannot ask for %s", c->who, cmd);
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
		return err_set(e, -EPROTO, "%s: its answer is longer than 1 MiB", c->who);
	grown = realloc(c->buf, want);
	if (!grown)
		return err_sys(e, -ENOMEM, "%s", c->who);
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
		return errno == EINTR ? 0 : err_sys(e, -errno, "%s: cannot wait", c->who);
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
		return err_set(e, -EPROTO, "%s: its answer is not a JSON object", c->who);
	}
	return 0;
}

static int take_reply(const struct ctl *c, json_t *msg, json_t **result, struct err *e)
{
	const char *why = json_string_value(json_object_get(msg, "error"));

	if (!json_is_true(json_object_get(msg, "ok")))
		return err_set(e, -EREMOTEIO, "%s: %s", c->who,
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
			return err_set(e, -ETIMEDOUT, "%s does not answer (waited %.1f s)",
				       c->who, timeout_ms / 1000.0);
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
