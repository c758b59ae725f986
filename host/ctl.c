/*
 * The daemon's control socket.
 */
#include "host/ctl.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "vmm/client.h"

#define CLIENTS_MAX 32u
#define LINE_BYTES (64 * KiB)
#define OUT_MAX (4 * MiB) /* of replies that a client has not read */

struct ctl_client {
	struct polled watch; /* first; fd -1: free */
	struct ctl_server *server;
	size_t in_len, out_len, out_at;
	char *in;  /* LINE_BYTES while connected */
	char *out; /* what is still to be sent, from out_at on */
};

struct ctl_server {
	struct polled watch; /* first */
	struct poller *poller;
	ctl_command_fn *fn;
	void *ctx;
	char path[RUN_PATH_MAX];
	struct ctl_client client[CLIENTS_MAX];
};

/* ---- a client's end --------------------------------------------------------------- */

static void drop(struct ctl_client *c)
{
	poller_close(c->server->poller, &c->watch);
	free(c->in);
	free(c->out);
	c->in = c->out = NULL;
	c->in_len = c->out_len = c->out_at = 0;
}

/* ---- replies ------------------------------------------------------------------------ */

/* False: it has gone, or does not read. */
static bool flush(struct ctl_client *c)
{
	ssize_t n = 0;

	if (c->out_len > c->out_at)
		n = send(c->watch.fd, c->out + c->out_at, c->out_len - c->out_at, MSG_NOSIGNAL);
	if (n < 0 && errno != EAGAIN && errno != EINTR)
		return false;
	c->out_at += n > 0 ? (size_t)n : 0;
	if (c->out_at == c->out_len)
		c->out_at = c->out_len = 0;
	poller_set(c->server->poller, &c->watch,
		   EPOLLIN | (c->out_len ? (unsigned)EPOLLOUT : 0));
	return true;
}

static bool queue(struct ctl_client *c, const char *text, size_t len)
{
	char *out;

	if (c->out_len + len + 1 > OUT_MAX)
		return false;
	out = realloc(c->out, c->out_len + len + 1);
	if (!out)
		return false;
	c->out = out;
	memcpy(out + c->out_len, text, len);
	out[c->out_len + len] = '\n';
	c->out_len += len + 1;
	return true;
}

/* Takes the reply.  False: the client is to be dropped. */
static bool reply(struct ctl_client *c, json_t *o)
{
	char *text = o ? json_dumps(o, JSON_COMPACT) : NULL;
	bool ok = text && queue(c, text, strlen(text));

	free(text);
	json_decref(o);
	return ok && flush(c);
}

/* ---- requests ------------------------------------------------------------------------ */

static json_t *failed(const json_t *id, const char *why)
{
	json_t *text = json_string(why);

	return json_pack("{s:i,s:O?,s:b,s:o}", "v", CTL_VERSION, "id", id, "ok", 0, "error",
			 text ? text : json_string("an error whose sentence is not UTF-8"));
}

static json_t *serve(struct ctl_server *s, const json_t *request)
{
	const json_t *id = json_object_get(request, "id"), *v = json_object_get(request, "v");
	const char *cmd = json_string_value(json_object_get(request, "cmd"));
	json_t *result = NULL;
	struct err e = { "" };

	if (!json_is_object(request) || !cmd || !json_is_integer(id))
		return failed(json_is_integer(id) ? id : NULL,
			      "not a request: {\"v\":1,\"id\":NUMBER,\"cmd\":\"...\"}");
	if (json_integer_value(v) != CTL_VERSION)
		return failed(id, "this is version 1 of the protocol");
	if (!s->fn || s->fn(s->ctx, cmd, request, &result, &e))
		return failed(id, *e.msg ? e.msg : "refused");
	return json_pack("{s:i,s:O,s:b,s:o}", "v", CTL_VERSION, "id", id, "ok", 1, "result", result);
}

static bool take_line(struct ctl_client *c, const char *line, size_t len)
{
	json_error_t at;
	json_t *request = json_loadb(line, len, JSON_REJECT_DUPLICATES, &at);
	bool ok;

	if (request)
		ok = reply(c, serve(c->server, request));
	else
		ok = reply(c, failed(NULL, at.text));
	json_decref(request);
	return ok;
}

static bool take_lines(struct ctl_client *c)
{
	char *from = c->in, *end = c->in + c->in_len, *nl;

	while ((nl = memchr(from, '\n', (size_t)(end - from)))) {
		if (!take_line(c, from, (size_t)(nl - from)))
			return false;
		from = nl + 1;
	}
	c->in_len = (size_t)(end - from);
	memmove(c->in, from, c->in_len);
	if (c->in_len < LINE_BYTES)
		return true;
	(void)reply(c, failed(NULL, "the line is longer than 64 KiB"));
	return false;
}

static void on_client(struct polled *w, unsigned events)
{
	struct ctl_client *c = (struct ctl_client *)w;
	ssize_t n;

	if (events & EPOLLOUT && !flush(c)) {
		drop(c);
		return;
	}
	if (!(events & (EPOLLIN | EPOLLHUP | EPOLLERR)))
		return;
	n = recv(w->fd, c->in + c->in_len, LINE_BYTES - c->in_len, 0);
	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	c->in_len += n > 0 ? (size_t)n : 0;
	if (n <= 0 || !take_lines(c))
		drop(c);
}

/* ---- connections ------------------------------------------------------------------------ */

/* The socket's mode says so already, but its directory could be made by others one day. */
static bool may_command(int fd)
{
	struct ucred u;
	socklen_t len = sizeof(u);

	return getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &u, &len) == 0 &&
	       (u.uid == 0 || u.uid == geteuid());
}

static struct ctl_client *free_client(struct ctl_server *s)
{
	for (unsigned i = 0; i < CLIENTS_MAX; i++)
		if (s->client[i].watch.fd < 0)
			return &s->client[i];
	return NULL;
}

static void on_connection(struct polled *w, unsigned events)
{
	struct ctl_server *s = (struct ctl_server *)w;
	int fd = accept4(w->fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
	struct ctl_client *c = fd < 0 ? NULL : free_client(s);

	(void)events;
	if (fd < 0)
		return;
	if (!c || !may_command(fd)) {
		close(fd);
		return;
	}
	c->in = malloc(LINE_BYTES);
	c->watch = (struct polled){ .fd = fd, .fn = on_client };
	if (!c->in || poller_add(s->poller, &c->watch, EPOLLIN)) {
		close(fd);
		c->watch.fd = -1;
		free(c->in);
		c->in = NULL;
	}
}

static int listen_at(int fd, const char *path)
{
	struct sockaddr_un sa = { .sun_family = AF_UNIX };

	memcpy(sa.sun_path, path, strlen(path) + 1);
	if (unlink(path) < 0 && errno != ENOENT)
		return -errno;
	if (bind(fd, (const struct sockaddr *)&sa, sizeof(sa)) < 0 || chmod(path, 0600) < 0 ||
	    listen(fd, (int)CLIENTS_MAX) < 0)
		return -errno;
	return 0;
}

int ctl_server_create(struct ctl_server **out, struct poller *p, const char *path, struct err *e)
{
	struct ctl_server *s = calloc(1, sizeof(*s));
	int rc = 0;

	if (!s || strlen(path) >= sizeof(s->path)) {
		free(s);
		return err_set(e, s ? -ENAMETOOLONG : -ENOMEM, "%s: cannot listen there", path);
	}
	memcpy(s->path, path, strlen(path) + 1);
	s->poller = p;
	for (unsigned i = 0; i < CLIENTS_MAX; i++)
		s->client[i] = (struct ctl_client){ .watch = { .fd = -1 }, .server = s };
	s->watch = (struct polled){ .fn = on_connection };
	s->watch.fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (s->watch.fd < 0)
		rc = -errno;
	if (!rc)
		rc = listen_at(s->watch.fd, path);
	if (!rc)
		rc = poller_add(p, &s->watch, EPOLLIN);
	if (rc) {
		if (s->watch.fd >= 0)
			close(s->watch.fd);
		free(s);
		return err_sys(e, rc, "%s: cannot listen there", path);
	}
	*out = s;
	return 0;
}

void ctl_server_serve(struct ctl_server *s, ctl_command_fn *fn, void *ctx)
{
	s->fn = fn;
	s->ctx = ctx;
}

void ctl_server_destroy(struct ctl_server **sp)
{
	struct ctl_server *s = *sp;

	*sp = NULL;
	if (!s)
		return;
	for (unsigned i = 0; i < CLIENTS_MAX; i++)
		drop(&s->client[i]);
	poller_close(s->poller, &s->watch);
	(void)unlink(s->path);
	free(s);
}
