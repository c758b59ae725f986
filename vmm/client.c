/*
 * The client side of the control socket.  See client.h.
 */
#include "vmm/client.h"

#include <errno.h>
#include <poll.h>
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
