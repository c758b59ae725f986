/*
 * The HTTP interface made and ended, its sockets, and a turn.
 *
 * api_fd() is an epoll descriptor with three others in it: libmicrohttpd's of the Unix
 * socket and of TCP, and a timer for all that is due by the clock.
 *
 * Thread: the daemon's.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <openssl/evp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/timerfd.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "host/api/internal.h"

#define SECOND_NS ((uint64_t)1000000000)
#define BACKLOG 64
#define DIGEST_BYTES 32u

/* ---- the page's policy ------------------------------------------------------------------ */

/* "'sha256-...'" of what is between two texts of the page: a browser runs that script, and
 * none that somebody managed to put into the page. */
static bool add_digest(struct text *t, const struct asset *page, const char *begin, const char *end)
{
	const char *from = memmem(page->data, page->len, begin, strlen(begin)), *to;
	unsigned char digest[DIGEST_BYTES], base64[2 * DIGEST_BYTES];

	if (!from)
		return false;
	from += strlen(begin);
	to = memmem(from, (size_t)(page->data + page->len - from), end, strlen(end));
	if (!to || !EVP_Digest(from, (size_t)(to - from), digest, NULL, EVP_sha256(), NULL))
		return false;
	EVP_EncodeBlock(base64, digest, sizeof(digest));
	text_printf(t, "'sha256-%s'", (const char *)base64);
	return true;
}

static char *page_policy(void)
{
	struct asset page = asset_page();
	struct text t = { 0 };
	bool ok;

	text_str(&t, "default-src 'none'; connect-src 'self'; img-src data:; base-uri 'none'; "
		 "form-action 'none'; frame-ancestors 'none'; script-src ");
	ok = add_digest(&t, &page, "<script>", "</script>");
	text_str(&t, "; style-src ");
	ok &= add_digest(&t, &page, "<style>", "</style>");
	text_add(&t, "", 1);
	VERIFY(ok || t.failed);
	if (t.failed)
		text_fini(&t);
	return t.data;
}

/* ---- configuration ---------------------------------------------------------------------- */

static unsigned or_else(unsigned value, unsigned otherwise)
{
	return value ? value : otherwise;
}

static void set_defaults(struct api_config *c)
{
	c->connections_max = or_else(c->connections_max, 32);
	c->idle_s = or_else(c->idle_s, 15);
	c->request_s = or_else(c->request_s, 30);
	c->fresh_ms = or_else(c->fresh_ms, 500);
	c->sample_s = or_else(c->sample_s, 5);
}

static int copy_string(char **out, const char *s, struct err *e)
{
	*out = s ? strdup(s) : NULL;
	return s && !*out ? err_set(e, -ENOMEM, "out of memory") : 0;
}

static int copy_strings(struct api *api, struct err *e)
{
	struct api_config *c = &api->cfg;
	int rc = copy_string(&api->unix_path, c->unix_path, e);

	if (!rc)
		rc = copy_string(&api->tcp_address, c->tcp_address, e);
	if (!rc)
		rc = copy_string(&api->host_name, c->host_name, e);
	c->unix_path = api->unix_path;
	c->tcp_address = api->tcp_address;
	c->host_name = api->host_name;
	return rc;
}

static bool wants_tcp(const struct api_config *c)
{
	return c->tcp_port || c->tcp_any_port;
}

static int read_tokens(struct api *api, struct err *e)
{
	struct api_config *c = &api->cfg;
	int rc = 0;

	if (wants_tcp(c) && !c->token_file)
		return err_set(e, -EINVAL, "the API over TCP needs a token file");
	if (c->token_file)
		rc = token_read(&api->token, c->token_file, e);
	if (!rc && c->read_token_file)
		rc = token_read(&api->read_token, c->read_token_file, e);
	c->token_file = c->read_token_file = NULL; /* the caller's strings */
	return rc;
}

int api_init(struct api *api, const struct api_ops *ops, const struct api_config *cfg,
	     struct err *e)
{
	struct asset page = asset_page(), openapi = asset_openapi();
	int rc;

	*api = (struct api){ .ops = *ops, .cfg = *cfg, .epoll_fd = -1, .timer_fd = -1 };
	api->unix_listener = (struct listener){ .api = api, .fd = -1 };
	api->tcp_listener = (struct listener){ .api = api, .is_tcp = true, .fd = -1 };
	set_defaults(&api->cfg);
	rc = copy_strings(api, e);
	if (!rc)
		rc = read_tokens(api, e);
	if (rc)
		return rc;
	api->page = body_built_in(page.data, page.len);
	api->openapi = body_built_in(openapi.data, openapi.len);
	api->page_policy = page_policy();
	if (!api->page || !api->openapi || !api->page_policy)
		return err_set(e, -ENOMEM, "out of memory");
	return 0;
}

void api_fini(struct api *api)
{
	snapshot_drop(api);
	body_put(api->page);
	body_put(api->openapi);
	free(api->page_policy);
	free(api->unix_path);
	free(api->tcp_address);
	free(api->host_name);
}

/* ---- sockets ---------------------------------------------------------------------------- */

/* Nothing but a socket is taken away to make place. */
static int clear_path(const char *path, struct err *e)
{
	struct stat st;

	if (lstat(path, &st) < 0)
		return errno == ENOENT ? 0 : err_sys(e, -errno, "API socket %s", path);
	if (!S_ISSOCK(st.st_mode))
		return err_set(e, -EEXIST, "API socket %s: something else is there", path);
	return unlink(path) < 0 ? err_sys(e, -errno, "API socket %s", path) : 0;
}

static int bind_unix(int fd, const char *path, gid_t gid, struct err *e)
{
	struct sockaddr_un sa = { .sun_family = AF_UNIX };
	mode_t mask;
	int rc;

	if (strlen(path) >= sizeof(sa.sun_path))
		return err_set(e, -ENAMETOOLONG, "API socket %s: the path is too long", path);
	memcpy(sa.sun_path, path, strlen(path) + 1);
	mask = umask(0177);
	rc = bind(fd, (const struct sockaddr *)&sa, sizeof(sa)) < 0 ? -errno : 0;
	umask(mask);
	if (!rc && gid && (chown(path, (uid_t)-1, gid) < 0 || chmod(path, 0660) < 0))
		rc = -errno;
	if (!rc && listen(fd, BACKLOG) < 0)
		rc = -errno;
	return rc ? err_sys(e, rc, "API socket %s", path) : 0;
}

static int open_unix(struct api *api, struct err *e)
{
	int fd, rc = clear_path(api->unix_path, e);

	if (rc)
		return rc;
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0)
		return err_sys(e, -errno, "API socket %s", api->unix_path);
	rc = bind_unix(fd, api->unix_path, api->cfg.unix_gid, e);
	if (rc) {
		close(fd);
		return rc;
	}
	api->owns_unix_path = true;
	return listener_start(&api->unix_listener, fd, e);
}

union address {
	struct sockaddr any;
	struct sockaddr_in v4;
	struct sockaddr_in6 v6;
};

/* Its length, or -EINVAL. */
static int parse_address(const char *text, uint16_t port, union address *a, struct err *e)
{
	*a = (union address){ 0 };
	if (inet_pton(AF_INET, text, &a->v4.sin_addr) == 1) {
		a->v4.sin_family = AF_INET;
		a->v4.sin_port = htons(port);
		return (int)sizeof(a->v4);
	}
	if (inet_pton(AF_INET6, text, &a->v6.sin6_addr) == 1) {
		a->v6.sin6_family = AF_INET6;
		a->v6.sin6_port = htons(port);
		return (int)sizeof(a->v6);
	}
	return err_set(e, -EINVAL, "API address %s: not an IPv4 or IPv6 address", text);
}

static int bind_tcp(int fd, union address *a, int len)
{
	socklen_t size = sizeof(*a);
	int on = 1;

	(void)setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
	if (a->any.sa_family == AF_INET6)
		(void)setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &on, sizeof(on));
	if (bind(fd, &a->any, (socklen_t)len) < 0 || listen(fd, BACKLOG) < 0 ||
	    getsockname(fd, &a->any, &size) < 0)
		return -errno;
	return 0;
}

static int open_tcp(struct api *api, struct err *e)
{
	const char *text = api->tcp_address ? api->tcp_address : "127.0.0.1";
	union address a;
	int len = parse_address(text, api->cfg.tcp_port, &a, e), fd, rc;

	if (len < 0)
		return len;
	fd = socket(a.any.sa_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	rc = fd < 0 ? -errno : bind_tcp(fd, &a, len);
	if (rc) {
		if (fd >= 0)
			close(fd);
		return err_sys(e, rc, "API on %s port %u", text, api->cfg.tcp_port);
	}
	api->tcp_port = ntohs(a.any.sa_family == AF_INET ? a.v4.sin_port : a.v6.sin6_port);
	return listener_start(&api->tcp_listener, fd, e);
}

static int watch(const struct api *api, int fd)
{
	struct epoll_event ev = { .events = EPOLLIN };

	if (fd < 0)
		return 0;
	return epoll_ctl(api->epoll_fd, EPOLL_CTL_ADD, fd, &ev) < 0 ? -errno : 0;
}

/* ---- turns ------------------------------------------------------------------------------ */

static void set_timer(struct api *api)
{
	uint64_t due = api->sample_ns, unix_due = listener_due_ns(&api->unix_listener),
		 tcp_due = listener_due_ns(&api->tcp_listener);
	struct itimerspec at = { 0 };

	due = unix_due < due ? unix_due : due;
	due = tcp_due < due ? tcp_due : due;
	if (due == api->timer_ns)
		return;
	api->timer_ns = due;
	at.it_value.tv_sec = (time_t)(due / SECOND_NS);
	at.it_value.tv_nsec = (long)(due % SECOND_NS);
	VERIFY(timerfd_settime(api->timer_fd, TFD_TIMER_ABSTIME, &at, NULL) == 0);
}

static void take_sample(struct api *api)
{
	uint64_t now = now_ns();
	const json_t *snapshot;

	if (now < api->sample_ns)
		return;
	snapshot = snapshot_get(api, api->cfg.fresh_ms * (SECOND_NS / 1000));
	if (snapshot)
		history_add(&api->history, json_object_get(snapshot, "host"), (uint64_t)time(NULL));
	api->sample_ns = now + api->cfg.sample_s * SECOND_NS;
}

void api_turn(struct api *api)
{
	uint64_t ticks;

	if (read(api->timer_fd, &ticks, sizeof(ticks)) == (ssize_t)sizeof(ticks))
		api->timer_ns = 0;
	listener_turn(&api->unix_listener);
	listener_turn(&api->tcp_listener);
	take_sample(api);
	set_timer(api);
}

int api_fd(const struct api *api)
{
	return api->epoll_fd;
}

uint16_t api_tcp_port(const struct api *api)
{
	return api->tcp_port;
}

uint64_t api_ticket(struct api *api)
{
	VERIFY(api->in_command);
	if (!api->ticket)
		api->ticket = ++api->last_ticket;
	return api->ticket;
}

void api_finish(struct api *api, uint64_t ticket, int rc, const json_t *result,
		const struct err *e)
{
	struct answer a = { 0 };

	answer_command(&a, rc, result, e);
	snapshot_drop(api);
	if (!listener_finish(&api->unix_listener, ticket, &a) &&
	    !listener_finish(&api->tcp_listener, ticket, &a))
		body_put(a.body);
	/* Resuming wakes api_fd(), libmicrohttpd sees to that. */
}

/* ---- made and ended --------------------------------------------------------------------- */

static int open_descriptors(struct api *api, struct err *e)
{
	api->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	api->timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
	if (api->epoll_fd < 0 || api->timer_fd < 0)
		return err_sys(e, -errno, "API");
	return 0;
}

static int start(struct api *api, struct err *e)
{
	int rc = open_descriptors(api, e);

	if (!rc && api->unix_path)
		rc = open_unix(api, e);
	if (!rc && wants_tcp(&api->cfg))
		rc = open_tcp(api, e);
	if (rc)
		return rc;
	rc = watch(api, api->timer_fd);
	if (!rc)
		rc = watch(api, api->unix_listener.fd);
	if (!rc)
		rc = watch(api, api->tcp_listener.fd);
	if (rc)
		return err_sys(e, rc, "API");
	api->sample_ns = now_ns();
	set_timer(api);
	return 0;
}

int api_create(struct api **out, const struct api_ops *ops, const struct api_config *cfg,
	       struct err *e)
{
	struct api *api = malloc(sizeof(*api));
	int rc;

	if (!api)
		return err_set(e, -ENOMEM, "out of memory");
	rc = api_init(api, ops, cfg, e);
	if (!rc)
		rc = start(api, e);
	if (rc) {
		api_destroy(&api);
		return rc;
	}
	*out = api;
	return 0;
}

void api_destroy(struct api **ap)
{
	struct api *api = *ap;

	if (!api)
		return;
	listener_stop(&api->unix_listener);
	listener_stop(&api->tcp_listener);
	if (api->owns_unix_path)
		(void)unlink(api->unix_path);
	if (api->timer_fd >= 0)
		close(api->timer_fd);
	if (api->epoll_fd >= 0)
		close(api->epoll_fd);
	api_fini(api);
	free(api);
	*ap = NULL;
}
