/*
 * Between libmicrohttpd and the rest.
 *
 * libmicrohttpd has no thread here: it is an epoll descriptor and a function that does
 * what is ready.  It reads and parses requests in a pool of fixed size a connection,
 * closes who is silent, and stops accepting at the most connections.  What it does not
 * know is when a request as a whole takes too long (a byte a second, or an answer that is
 * read a byte a second): listener_turn() shuts such connections, and it takes them away.
 *
 *   first call of on_request()   headers: request_admit(), or refused before any body
 *   more                         a piece of the body; more than API_BODY_MAX: closed
 *   last                         request_answer(); or, where that gave a ticket, the
 *                                connection is suspended until api_finish(), then called again
 *
 * Thread: the daemon's.
 */
#include <errno.h>
#include <microhttpd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <unistd.h>

#include "host/api/internal.h"

#define HEADERS_MAX ((size_t)16 * 1024) /* a connection's pool: request line and headers */
#define SECOND_NS ((uint64_t)1000000000)
#define MS_NS ((uint64_t)1000000)
#define FULL_NS (100 * MS_NS) /* how often it is looked who left, while no place is free */

/* A request between its calls. */
struct pending {
	struct pending *next, **link; /* of the listener, while it waits for api_finish() */
	struct MHD_Connection *mhd;
	struct connection *connection;
	struct match match;
	struct request request;
	struct text body;
	struct answer answer;
	bool is_answered; /* by api_finish() */
};

/* ---- connections ------------------------------------------------------------------------ */

static void connection_begin(struct listener *l, struct MHD_Connection *mhd, void **context)
{
	const union MHD_ConnectionInfo *info =
		MHD_get_connection_info(mhd, MHD_CONNECTION_INFO_CONNECTION_FD);
	struct connection *c = calloc(1, sizeof(*c));

	*context = c;
	if (!c)
		return;
	c->fd = info->connect_fd;
	c->since_ns = now_ns();
	c->next = l->connections;
	c->link = &l->connections;
	if (c->next)
		c->next->link = &c->next;
	l->connections = c;
	l->connection_count++;
}

static void connection_end(struct listener *l, void **context)
{
	struct connection *c = *context;

	if (!c)
		return;
	*c->link = c->next;
	if (c->next)
		c->next->link = c->link;
	l->connection_count--;
	free(c);
	*context = NULL;
}

static void on_connection(void *cls, struct MHD_Connection *mhd, void **context,
			  enum MHD_ConnectionNotificationCode what)
{
	if (what == MHD_CONNECTION_NOTIFY_STARTED)
		connection_begin(cls, mhd, context);
	else
		connection_end(cls, context);
}

/* ---- requests --------------------------------------------------------------------------- */

static void pending_unlink(struct pending *p)
{
	if (!p->link)
		return;
	*p->link = p->next;
	if (p->next)
		p->next->link = p->link;
	p->link = NULL;
}

static void pending_link(struct listener *l, struct pending *p)
{
	p->next = l->pending;
	p->link = &l->pending;
	if (p->next)
		p->next->link = &p->next;
	l->pending = p;
}

static void on_completed(void *cls, struct MHD_Connection *mhd, void **context,
			 enum MHD_RequestTerminationCode why)
{
	struct pending *p = *context;

	if (!p)
		return;
	p->connection->since_ns = now_ns();
	pending_unlink(p);
	text_fini(&p->body);
	body_put(p->answer.body);
	free(p);
	*context = NULL;
}

static enum MHD_Result count_host(void *cls, enum MHD_ValueKind kind, const char *key,
				  const char *value)
{
	unsigned *n = cls;

	if (strcasecmp(key, "Host") == 0)
		++*n;
	return MHD_YES;
}

static void read_headers(struct pending *p, const struct listener *l)
{
	struct MHD_Connection *c = p->mhd;
	struct request *r = &p->request;

	r->host = MHD_lookup_connection_value(c, MHD_HEADER_KIND, "Host");
	r->origin = MHD_lookup_connection_value(c, MHD_HEADER_KIND, "Origin");
	r->fetch_site = MHD_lookup_connection_value(c, MHD_HEADER_KIND, "Sec-Fetch-Site");
	r->authorization = MHD_lookup_connection_value(c, MHD_HEADER_KIND, "Authorization");
	r->content_type = MHD_lookup_connection_value(c, MHD_HEADER_KIND, "Content-Type");
	r->since = MHD_lookup_connection_value(c, MHD_GET_ARGUMENT_KIND, "since");
	(void)MHD_get_connection_values(c, MHD_HEADER_KIND, count_host, &r->host_count);
	r->is_tcp = l->is_tcp;
	r->is_trusted = !l->is_tcp && peer_is_trusted(p->connection->fd, l->api->cfg.unix_gid);
}

static struct pending *pending_create(const struct listener *l, struct MHD_Connection *mhd,
				      const char *method, const char *url)
{
	const union MHD_ConnectionInfo *info =
		MHD_get_connection_info(mhd, MHD_CONNECTION_INFO_SOCKET_CONTEXT);
	struct pending *p = info && info->socket_context ? calloc(1, sizeof(*p)) : NULL;

	if (!p)
		return NULL;
	p->mhd = mhd;
	p->connection = info->socket_context;
	p->connection->since_ns = now_ns();
	p->request.method = method;
	p->request.path = url;
	read_headers(p, l);
	return p;
}

/* ---- answers ---------------------------------------------------------------------------- */

static void add_headers(struct MHD_Response *m, const struct api *api, const struct answer *a)
{
	bool is_page = a->body == api->page;

	(void)MHD_add_response_header(m, "Content-Type", a->type);
	(void)MHD_add_response_header(m, "Content-Security-Policy", is_page ? api->page_policy :
				      "default-src 'none'; frame-ancestors 'none'");
	(void)MHD_add_response_header(m, "X-Content-Type-Options", "nosniff");
	(void)MHD_add_response_header(m, "X-Frame-Options", "DENY");
	(void)MHD_add_response_header(m, "Referrer-Policy", "no-referrer");
	(void)MHD_add_response_header(m, "Cross-Origin-Resource-Policy", "same-origin");
	(void)MHD_add_response_header(m, "Cross-Origin-Opener-Policy", "same-origin");
	(void)MHD_add_response_header(m, "Cache-Control", "no-store");
	if (a->status == 401)
		(void)MHD_add_response_header(m, "WWW-Authenticate", "Bearer realm=\"brim\"");
	if (a->status == 405)
		(void)MHD_add_response_header(m, "Allow", a->allow);
}

static void put_body(void *cls)
{
	body_put(cls);
}

static enum MHD_Result send_answer(const struct api *api, struct pending *p)
{
	struct body *b = p->answer.body;
	struct MHD_Response *m;
	enum MHD_Result rc;

	counter_inc(CTR_brimd_api_requests);
	if (!b)
		return MHD_NO; /* no memory: closed */
	/* It is only read. */
	m = MHD_create_response_from_buffer_with_free_callback_cls(
		b->len, (void *)(uintptr_t)b->data, put_body, b);
	if (!m)
		return MHD_NO;
	add_headers(m, api, &p->answer);
	p->answer.body = NULL; /* the response's now */
	rc = MHD_queue_response(p->mhd, p->answer.status, m);
	MHD_destroy_response(m);
	return rc;
}

static bool body_is_too_long(struct MHD_Connection *mhd)
{
	const char *len = MHD_lookup_connection_value(mhd, MHD_HEADER_KIND, "Content-Length");

	return len && strtoull(len, NULL, 10) > API_BODY_MAX;
}

static enum MHD_Result begin_request(struct listener *l, struct pending *p)
{
	if (!request_admit(l->api, &p->request, &p->match, &p->answer))
		return send_answer(l->api, p);
	if (!body_is_too_long(p->mhd))
		return MHD_YES;
	counter_inc(CTR_brimd_api_bad_request);
	answer_error(&p->answer, 413, "a body may have %zu bytes", API_BODY_MAX);
	return send_answer(l->api, p);
}

static enum MHD_Result take_body(struct pending *p, const char *data, size_t *len)
{
	/* One that did not say its length: libmicrohttpd can only close now. */
	if (p->body.len + *len > API_BODY_MAX) {
		counter_inc(CTR_brimd_api_bad_request);
		return MHD_NO;
	}
	text_add(&p->body, data, *len);
	*len = 0;
	return p->body.failed ? MHD_NO : MHD_YES;
}

static enum MHD_Result end_request(struct listener *l, struct pending *p)
{
	if (!p->is_answered) {
		p->request.body = p->body.data;
		p->request.body_bytes = p->body.len;
		request_answer(l->api, &p->request, &p->match, &p->answer);
	}
	if (!p->answer.ticket)
		return send_answer(l->api, p);
	pending_link(l, p);
	MHD_suspend_connection(p->mhd);
	return MHD_YES;
}

static enum MHD_Result on_request(void *cls, struct MHD_Connection *mhd, const char *url,
				  const char *method, const char *version, const char *data,
				  size_t *data_len, void **context)
{
	struct listener *l = cls;
	struct pending *p = *context;

	if (!p) {
		p = *context = pending_create(l, mhd, method, url);
		return p ? begin_request(l, p) : MHD_NO;
	}
	return *data_len ? take_body(p, data, data_len) : end_request(l, p);
}

static void pending_finish(struct pending *p, const struct answer *a)
{
	body_put(p->answer.body);
	p->answer = *a;
	p->answer.ticket = 0;
	p->is_answered = true;
	p->connection->since_ns = now_ns();
	pending_unlink(p);
	MHD_resume_connection(p->mhd);
}

bool listener_finish(struct listener *l, uint64_t ticket, const struct answer *a)
{
	for (struct pending *p = l->pending; p; p = p->next)
		if (p->answer.ticket == ticket) {
			pending_finish(p, a);
			return true;
		}
	return false;
}

/* ---- turns ------------------------------------------------------------------------------ */

static uint64_t request_ns(const struct listener *l)
{
	return l->api->cfg.request_s * SECOND_NS;
}

static void give_up_pending(struct listener *l)
{
	uint64_t now = now_ns();
	struct pending *next;

	for (struct pending *p = l->pending; p; p = next) {
		struct answer a = { 0 };

		next = p->next;
		if (now - p->connection->since_ns < request_ns(l))
			continue;
		answer_error(&a, 504, "%s is not done yet", p->match.route->verb);
		pending_finish(p, &a);
	}
}

static void shut_slow(struct listener *l)
{
	uint64_t now = now_ns();

	for (struct connection *c = l->connections; c; c = c->next) {
		if (now - c->since_ns < request_ns(l))
			continue;
		counter_inc(CTR_brimd_api_slow);
		(void)shutdown(c->fd, SHUT_RDWR);
		c->since_ns = now; /* it is closed when libmicrohttpd sees it, in this turn */
	}
}

static bool is_full(const struct listener *l)
{
	return l->connection_count >= l->api->cfg.connections_max;
}

/* A client that sent a part and left is not noticed by libmicrohttpd, which has read what
 * there was and is told no more, until the connection was idle for too long: where others
 * wait for its place, it goes at once. */
static void shut_left(struct listener *l)
{
	char c;

	if (!is_full(l))
		return;
	for (const struct connection *i = l->connections; i; i = i->next)
		if (recv(i->fd, &c, 1, MSG_PEEK | MSG_DONTWAIT) == 0)
			(void)shutdown(i->fd, SHUT_RDWR);
}

void listener_turn(struct listener *l)
{
	if (!l->daemon)
		return;
	give_up_pending(l);
	shut_slow(l);
	shut_left(l);
	(void)MHD_run(l->daemon);
}

uint64_t listener_due_ns(const struct listener *l)
{
	MHD_UNSIGNED_LONG_LONG ms;
	uint64_t due = UINT64_MAX;

	if (!l->daemon)
		return due;
	if (MHD_get_timeout(l->daemon, &ms) == MHD_YES)
		due = now_ns() + ms * MS_NS;
	if (is_full(l) && now_ns() + FULL_NS < due)
		due = now_ns() + FULL_NS;
	for (const struct connection *c = l->connections; c; c = c->next)
		if (c->since_ns + request_ns(l) < due)
			due = c->since_ns + request_ns(l);
	return due;
}

/* ---- made and ended --------------------------------------------------------------------- */

__attribute__((format(printf, 2, 0)))
static void on_log(void *cls, const char *fmt, va_list ap)
{
	static struct log_limit limit;
	char line[256];
	int n = vsnprintf(line, sizeof(line), fmt, ap);

	while (n > 0 && (size_t)n < sizeof(line) && line[n - 1] == '\n')
		line[--n] = '\0';
	/* It is about what clients do, and any may be a port scanner. */
	if (log_limit_ok(&limit))
		log_debug("HTTP: %s", line);
}

/* route.c decodes, segment by segment. */
static size_t keep_escapes(void *cls, struct MHD_Connection *mhd, char *s)
{
	return strlen(s);
}

int listener_start(struct listener *l, int fd, struct err *e)
{
	const struct api_config *cfg = &l->api->cfg;
	const union MHD_DaemonInfo *info;

	l->daemon = MHD_start_daemon(
		MHD_USE_EPOLL | MHD_ALLOW_SUSPEND_RESUME | MHD_USE_ERROR_LOG, 0, NULL, NULL,
		on_request, l,
		MHD_OPTION_EXTERNAL_LOGGER, on_log, NULL,
		MHD_OPTION_LISTEN_SOCKET, fd,
		MHD_OPTION_CONNECTION_LIMIT, cfg->connections_max,
		MHD_OPTION_CONNECTION_TIMEOUT, cfg->idle_s,
		MHD_OPTION_CONNECTION_MEMORY_LIMIT, HEADERS_MAX,
		MHD_OPTION_STRICT_FOR_CLIENT, 1,
		MHD_OPTION_UNESCAPE_CALLBACK, keep_escapes, NULL,
		MHD_OPTION_NOTIFY_CONNECTION, on_connection, l,
		MHD_OPTION_NOTIFY_COMPLETED, on_completed, l,
		MHD_OPTION_END);
	if (!l->daemon) {
		close(fd);
		return err_set(e, -ENOMEM, "the HTTP interface cannot be started");
	}
	info = MHD_get_daemon_info(l->daemon, MHD_DAEMON_INFO_EPOLL_FD);
	l->fd = info ? info->epoll_fd : -1;
	return l->fd < 0 ? err_set(e, -ENOTSUP, "libmicrohttpd was built without epoll") : 0;
}

void listener_stop(struct listener *l)
{
	if (!l->daemon)
		return;
	while (l->pending) {
		struct answer a = { 0 };

		answer_error(&a, 503, "brimd ends");
		pending_finish(l->pending, &a);
	}
	MHD_stop_daemon(l->daemon);
	l->daemon = NULL;
	VERIFY(!l->connections);
}
