/*
 * A VM's control socket: lines out, lines in, and which reply is to which call.
 *
 * Replies come in the order of calls (the VM's promise), so the oldest call is the one a
 * reply must name.
 */
#include "host/link.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "vmm/client.h"

#define OUT_BYTES (64 * KiB) /* LINK_CALLS_MAX short lines: more is not asked of a VM */

struct call {
	json_int_t id;
	uint64_t since_ns;
	link_reply_fn *reply;
	void *ctx;
};

struct link {
	struct polled watch; /* first */
	struct poller *poller;
	bool is_up;
	json_int_t next_id;
	struct call call[LINK_CALLS_MAX]; /* oldest first */
	unsigned calls;
	size_t out_len, in_len;
	char *in; /* CTL_LINE_MAX at most, as much as has come */
	size_t in_room;
	char out[OUT_BYTES];
};

/* ---- going down ------------------------------------------------------------------- */

static void answer(struct link *l, int rc, const json_t *result, const char *error)
{
	struct call c = l->call[0];

	l->calls--;
	memmove(&l->call[0], &l->call[1], l->calls * sizeof(l->call[0]));
	c.reply(c.ctx, rc, result, error);
}

static void go_down(struct link *l, int rc)
{
	poller_close(l->poller, &l->watch);
	l->is_up = false;
	while (l->calls)
		answer(l, rc, NULL, strerror(-rc));
}

/* ---- lines in ---------------------------------------------------------------------- */

/* False: it is no reply to what was asked. */
static bool take_reply(struct link *l, const char *line, size_t len)
{
	json_t *o = json_loadb(line, len, JSON_REJECT_DUPLICATES, NULL);
	const json_t *id = json_object_get(o, "id"), *ok = json_object_get(o, "ok");
	const char *error = json_string_value(json_object_get(o, "error"));
	bool is_reply = l->calls && json_is_integer(id) && json_is_boolean(ok) &&
			json_integer_value(id) == l->call[0].id;

	if (is_reply && json_is_true(ok))
		answer(l, 0, json_object_get(o, "result"), NULL);
	else if (is_reply)
		answer(l, -EREMOTEIO, NULL, error ? error : "refused, without a reason");
	json_decref(o);
	return is_reply;
}

static bool take_lines(struct link *l)
{
	char *from = l->in, *end = l->in + l->in_len, *nl;

	while (l->is_up && (nl = memchr(from, '\n', (size_t)(end - from)))) {
		if (!take_reply(l, from, (size_t)(nl - from)))
			return false;
		from = nl + 1;
	}
	l->in_len = (size_t)(end - from);
	memmove(l->in, from, l->in_len);
	return true;
}

/* Room for more of a line.  False: no line is so long. */
static bool make_room(struct link *l)
{
	size_t want = l->in_room ? l->in_room * 2 : 4 * KiB;
	char *in;

	if (l->in_len < l->in_room)
		return true;
	if (want > CTL_LINE_MAX)
		return false;
	in = realloc(l->in, want);
	if (!in)
		return false;
	l->in = in;
	l->in_room = want;
	return true;
}

/* One read a turn: others have theirs. */
static void read_some(struct link *l)
{
	ssize_t n;

	if (!make_room(l)) {
		go_down(l, -EMSGSIZE);
		return;
	}
	n = recv(l->watch.fd, l->in + l->in_len, l->in_room - l->in_len, 0);
	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	if (n <= 0) {
		go_down(l, n < 0 ? -errno : -ECONNRESET);
		return;
	}
	l->in_len += (size_t)n;
	if (!take_lines(l) && l->is_up)
		go_down(l, -EPROTO);
}

/* ---- lines out ---------------------------------------------------------------------- */

static void write_some(struct link *l)
{
	ssize_t n = 0;

	if (l->out_len)
		n = send(l->watch.fd, l->out, l->out_len, MSG_NOSIGNAL);
	if (n < 0 && errno != EAGAIN && errno != EINTR) {
		go_down(l, -errno);
		return;
	}
	if (n > 0) {
		l->out_len -= (size_t)n;
		memmove(l->out, l->out + n, l->out_len);
	}
	poller_set(l->poller, &l->watch, EPOLLIN | (l->out_len ? (unsigned)EPOLLOUT : 0));
}

static void on_ready(struct polled *w, unsigned events)
{
	struct link *l = (struct link *)w;

	if (events & EPOLLOUT)
		write_some(l);
	if (l->is_up && events & (EPOLLIN | EPOLLHUP | EPOLLERR))
		read_some(l);
}

/* {"v":1,"id":...,"cmd":...} with the arguments.  NULL: no memory. */
static char *line_of(struct link *l, const char *cmd, json_t *args)
{
	json_t *o = args ? args : json_object();
	char *line = NULL;

	if (!json_object_set_new(o, "v", json_integer(CTL_VERSION)) &&
	    !json_object_set_new(o, "id", json_integer(l->next_id)) &&
	    !json_object_set_new(o, "cmd", json_string(cmd)))
		line = json_dumps(o, JSON_COMPACT);
	json_decref(o);
	return line;
}

static int queue_line(struct link *l, const char *line)
{
	size_t len = strlen(line);

	if (len + 1 > sizeof(l->out) - l->out_len)
		return -EBUSY;
	memcpy(l->out + l->out_len, line, len);
	l->out[l->out_len + len] = '\n';
	l->out_len += len + 1;
	return 0;
}

int link_call(struct link *l, const char *cmd, json_t *args, link_reply_fn *reply, void *ctx)
{
	char *line = line_of(l, cmd, args);
	int rc = !line ? -ENOMEM : !l->is_up ? -EPIPE : l->calls == LINK_CALLS_MAX ? -EBUSY : 0;

	if (!rc)
		rc = queue_line(l, line);
	free(line);
	if (rc)
		return rc;
	l->call[l->calls++] = (struct call){ l->next_id++, now_ns(), reply, ctx };
	/* not at once: whoever asks is not told of the end of the link from in here */
	poller_set(l->poller, &l->watch, EPOLLIN | EPOLLOUT);
	return 0;
}

/* ---- its life ------------------------------------------------------------------------ */

static bool is_of(int fd, pid_t pid)
{
	struct ucred u;
	socklen_t len = sizeof(u);

	return getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &u, &len) == 0 && u.pid == pid;
}

int link_open(struct link **out, struct poller *p, const char *path, pid_t pid)
{
	struct sockaddr_un sa = { .sun_family = AF_UNIX };
	struct link *l = calloc(1, sizeof(*l));
	int rc = 0;

	if (!l || strlen(path) >= sizeof(sa.sun_path)) {
		free(l);
		return l ? -ENAMETOOLONG : -ENOMEM;
	}
	memcpy(sa.sun_path, path, strlen(path) + 1);
	l->poller = p;
	l->next_id = 1;
	l->watch = (struct polled){ .fn = on_ready };
	l->watch.fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (l->watch.fd < 0 || connect(l->watch.fd, (const struct sockaddr *)&sa, sizeof(sa)) < 0)
		rc = -errno;
	if (!rc && !is_of(l->watch.fd, pid))
		rc = -EPERM;
	if (!rc)
		rc = poller_add(p, &l->watch, EPOLLIN);
	if (rc) {
		if (l->watch.fd >= 0)
			close(l->watch.fd);
		free(l);
		return rc;
	}
	l->is_up = true;
	*out = l;
	return 0;
}

void link_close(struct link **lp)
{
	struct link *l = *lp;

	*lp = NULL;
	if (!l)
		return;
	go_down(l, -ECANCELED);
	free(l->in);
	free(l);
}

bool link_is_up(const struct link *l)
{
	return l->is_up;
}

unsigned link_calls(const struct link *l)
{
	return l->calls;
}

void link_tick(struct link *l, uint64_t now)
{
	if (l->is_up && l->calls && now - l->call[0].since_ns > LINK_SILENCE_NS)
		go_down(l, -ETIMEDOUT);
}
