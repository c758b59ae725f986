/*
 * host/api/ over its sockets: libmicrohttpd, connections, bodies, deadlines, commands that
 * are finished later, and clients that do not play by the rules.  Defends I1 and I3 of
 * host/api/api.h, and that no call waits.
 */
#include <arpa/inet.h>
#include <criterion/criterion.h>
#include <errno.h>
#include <grp.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "host/api/internal.h"
#include "tests/lib/fakesnap.h"

#define TOKEN "0123456789abcdef0123456789abcdef0123456789abcdef"
#define CONNECTIONS 8u
#define PATIENCE_NS ((uint64_t)20000000000)
#define TURN_NS ((uint64_t)10000000000) /* a turn never waits; under sanitizers it is slow */

static char dir[] = "/tmp/brim-api-XXXXXX", path[64], token_path[64];
static struct fakesnap fake = { .vms = 8 };
static struct api *api;
static struct api_ops ops;
static struct api_config cfg;
static struct err e;
static unsigned turns;

static struct {
	bool later;
	uint64_t ticket;
	unsigned commands;
} daemon_;

static json_t *snapshot(void *ctx)
{
	return fakesnap_json(&fake);
}

static int command(void *ctx, const char *verb, const json_t *args, json_t **result, struct err *why)
{
	daemon_.commands++;
	if (!daemon_.later)
		return 0;
	daemon_.ticket = api_ticket(api);
	return -EINPROGRESS;
}

static void start(void)
{
	cr_assert_eq(api_create(&api, &ops, &cfg, &e), 0, "%s", e.msg);
}

static void begin(void)
{
	FILE *f;

	cr_assert_not_null(mkdtemp(dir));
	snprintf(path, sizeof path, "%s/api.sock", dir);
	snprintf(token_path, sizeof token_path, "%s/token", dir);
	umask(077);
	f = fopen(token_path, "w");
	fputs(TOKEN "\n", f);
	fclose(f);
	ops = (struct api_ops){ .snapshot = snapshot, .command = command };
	cfg = (struct api_config){ .unix_path = path, .tcp_any_port = true, .token_file = token_path,
				   .connections_max = CONNECTIONS, .idle_s = 5, .request_s = 15 };
}

static void end(void)
{
	api_destroy(&api);
	cr_assert_lt(access(path, F_OK), 0, "the socket is gone");
	unlink(token_path);
	cr_assert_eq(rmdir(dir), 0);
}

TestSuite(api_http, .init = begin, .fini = end, .timeout = 100);

/* ---- clients ---------------------------------------------------------------------------- */

/* As the daemon does: when its descriptor says so. */
static void turn(int timeout_ms)
{
	struct pollfd p = { .fd = api_fd(api), .events = POLLIN };
	uint64_t began;

	if (poll(&p, 1, timeout_ms) <= 0)
		return;
	began = now_ns();
	api_turn(api);
	turns++;
	cr_assert_lt(now_ns() - began, TURN_NS, "a turn waited");
}

static int join_unix(void)
{
	struct sockaddr_un sa = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	snprintf(sa.sun_path, sizeof sa.sun_path, "%s", path);
	cr_assert_eq(connect(fd, (const struct sockaddr *)&sa, sizeof sa), 0);
	return fd;
}

static int join_tcp(void)
{
	struct sockaddr_in sa = { .sin_family = AF_INET, .sin_port = htons(api_tcp_port(api)) };
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	sa.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	cr_assert_eq(connect(fd, (const struct sockaddr *)&sa, sizeof sa), 0);
	return fd;
}

/* False: it was closed meanwhile. */
static bool put(int fd, const char *text, size_t len)
{
	uint64_t until = now_ns() + PATIENCE_NS;

	while (len) {
		ssize_t n = send(fd, text, len, MSG_DONTWAIT | MSG_NOSIGNAL);

		cr_assert_lt(now_ns(), until);
		if (n < 0 && errno != EAGAIN)
			return false;
		if (n > 0) {
			text += n;
			len -= (size_t)n;
		}
		turn(1);
	}
	return true;
}

static bool say(int fd, const char *text)
{
	return put(fd, text, strlen(text));
}

/* One byte more of what it is sent: 1, 0: closed, -1: nothing yet. */
static int read_byte(int fd, char *c)
{
	ssize_t n = recv(fd, c, 1, MSG_DONTWAIT);

	return n > 0 ? 1 : n == 0 || errno != EAGAIN ? 0 : -1;
}

/* An answer, its headers and its body; "" if the connection was closed instead. */
static const char *hear(int fd)
{
	static char text[4 << 20];
	size_t len = 0, wanted = SIZE_MAX;
	uint64_t until = now_ns() + PATIENCE_NS;

	while (len < wanted) {
		int got = read_byte(fd, text + len);

		cr_assert_lt(now_ns(), until, "no answer");
		if (got == 0)
			break;
		if (got < 0) {
			turn(20);
			continue;
		}
		text[++len] = '\0';
		if (wanted == SIZE_MAX && len >= 4 && memcmp(text + len - 4, "\r\n\r\n", 4) == 0) {
			const char *at = strstr(text, "Content-Length: ");

			cr_assert_not_null(at, "%s", text);
			wanted = len + strtoul(at + 16, NULL, 10);
			cr_assert_lt(wanted, sizeof text);
		}
	}
	text[len] = '\0';
	return text;
}

static unsigned status_of(const char *answer)
{
	return strncmp(answer, "HTTP/1.1 ", 9) == 0 ? (unsigned)atoi(answer + 9) : 0;
}

static unsigned ask(int fd, const char *request)
{
	return say(fd, request) ? status_of(hear(fd)) : status_of(hear(fd));
}

#define GET(p) "GET " p " HTTP/1.1\r\nHost: localhost\r\n\r\n"
#define BEARER "Authorization: Bearer " TOKEN "\r\n"

static void expect_served(void)
{
	int fd = join_unix();

	cr_assert_eq(ask(fd, GET("/v1/host")), 200);
	close(fd);
}

/* Turns until the client is told, by a closed connection. */
static void expect_closed(int fd)
{
	uint64_t until = now_ns() + PATIENCE_NS;
	char c;

	while (read_byte(fd, &c) != 0) {
		cr_assert_lt(now_ns(), until, "never closed");
		turn(20);
	}
}

/* ---- serving ---------------------------------------------------------------------------- */

Test(api_http, unix_socket_serves_many_on_one_connection)
{
	int fd;

	start();
	fd = join_unix();
	for (unsigned i = 0; i < 50; i++) {
		const char *text;

		cr_assert_eq(ask(fd, GET("/v1/host")), 200);
		cr_assert_eq(ask(fd, GET("/metrics")), 200);
		say(fd, GET("/"));
		text = hear(fd);
		cr_assert_not_null(strstr(text, "Content-Security-Policy: default-src 'none'; connect-src"));
		cr_assert_not_null(strstr(text, "X-Content-Type-Options: nosniff\r\n"));
		cr_assert_not_null(strstr(text, "Cache-Control: no-store\r\n"));
		cr_assert_not_null(strstr(text, "</html>"));
	}
	close(fd);
}

Test(api_http, unix_socket_is_its_owners_only)
{
	struct stat st;

	start();
	cr_assert_eq(stat(path, &st), 0);
	cr_assert_eq(st.st_mode & 0777, 0600);
}

/* A child that is another user, who has the socket open all the same. */
static int as_user(int fd, uid_t uid, gid_t gid, gid_t extra)
{
	pid_t pid = fork();

	if (pid == 0) {
		int own = socket(AF_UNIX, SOCK_STREAM, 0);
		struct sockaddr_un sa = { .sun_family = AF_UNIX };

		snprintf(sa.sun_path, sizeof sa.sun_path, "%s", path);
		if (setgroups(extra ? 1 : 0, &extra) || setgid(gid) || setuid(uid) ||
		    connect(own, (const struct sockaddr *)&sa, sizeof sa) < 0 ||
		    write(own, GET("/v1/host"), strlen(GET("/v1/host"))) < 0 || recv(own, &sa, 12, MSG_WAITALL) != 12)
			_exit(1);
		_exit(write(fd, &sa, 12) == 12 ? 0 : 1);
	}
	return pid;
}

static unsigned status_for(uid_t uid, gid_t gid, gid_t extra)
{
	uint64_t until = now_ns() + PATIENCE_NS;
	char text[13] = "";
	int pipe_[2];
	pid_t pid;

	cr_assert_eq(pipe(pipe_), 0);
	pid = as_user(pipe_[1], uid, gid, extra);
	close(pipe_[1]);
	while (waitpid(pid, NULL, WNOHANG) == 0) {
		cr_assert_lt(now_ns(), until);
		turn(10);
	}
	cr_assert_eq(read(pipe_[0], text, 12), 12);
	close(pipe_[0]);
	return status_of(text);
}

Test(api_http, unix_peer_of_another_user_is_refused_unless_of_the_group)
{
	if (geteuid() != 0)
		cr_skip_test("only root can be others");
	cfg.unix_gid = 4242;
	start();
	cr_assert_eq(chmod(dir, 0755), 0);
	cr_assert_eq(chmod(path, 0666), 0, "as a careless operator would");
	cr_assert_eq(status_for(65534, 65534, 0), 403);
	cr_assert_eq(status_for(65534, 4242, 0), 200);
	cr_assert_eq(status_for(65534, 65534, 4242), 200);
	cr_assert_eq(status_for(65534, 65534, 4243), 403);
}

Test(api_http, tcp_wants_the_token)
{
	int fd;

	start();
	fd = join_tcp();
	cr_assert_eq(ask(fd, GET("/v1/host")), 401);
	close(fd);
	fd = join_tcp();
	cr_assert_eq(ask(fd, "GET /v1/host HTTP/1.1\r\nHost: localhost\r\n" BEARER "\r\n"), 200);
	cr_assert_eq(ask(fd, "GET /v1/vms HTTP/1.1\r\nHost: evil.example\r\n" BEARER "\r\n"), 403);
	close(fd);
}

Test(api_http, host_header_twice_is_refused)
{
	int fd;

	start();
	fd = join_unix();
	cr_assert_eq(ask(fd, "GET /v1/host HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n"), 403);
	close(fd);
}

/* ---- made and ended --------------------------------------------------------------------- */

Test(api_http, tcp_without_token_file_does_not_start)
{
	cfg.token_file = NULL;
	cr_assert_eq(api_create(&api, &ops, &cfg, &e), -EINVAL);
	cr_assert_not_null(strstr(e.msg, "token"));
	cr_assert_null(api);
	cfg.token_file = token_path;
	cr_assert_eq(chmod(token_path, 0644), 0);
	cr_assert_eq(api_create(&api, &ops, &cfg, &e), -EACCES);
	cr_assert_null(api);
}

Test(api_http, address_that_is_none_does_not_start)
{
	static const char *const wrong[] = { "localhost", "", "127.0.0", "[::1]", "1.2.3.4.5" };

	for (size_t i = 0; i < ARRAY_LEN(wrong); i++) {
		cfg.tcp_address = wrong[i];
		cr_assert_eq(api_create(&api, &ops, &cfg, &e), -EINVAL, "%s", wrong[i]);
	}
	cfg.tcp_address = "192.0.2.1"; /* not of this machine */
	cr_assert_eq(api_create(&api, &ops, &cfg, &e), -EADDRNOTAVAIL);
	cr_assert_null(api);
}

Test(api_http, port_in_use_does_not_start)
{
	struct api *second = NULL;

	start();
	cfg.unix_path = NULL;
	cfg.tcp_port = api_tcp_port(api);
	cr_assert_eq(api_create(&second, &ops, &cfg, &e), -EADDRINUSE);
	cr_assert_null(second);
	expect_served();
}

Test(api_http, file_in_the_sockets_place_is_not_removed)
{
	FILE *f = fopen(path, "w");

	fclose(f);
	cr_assert_eq(api_create(&api, &ops, &cfg, &e), -EEXIST);
	cr_assert_eq(access(path, F_OK), 0);
	unlink(path);
	start();
	api_destroy(&api);
	start();
	expect_served();
}

Test(api_http, history_is_sampled_by_itself)
{
	uint64_t until = now_ns() + PATIENCE_NS;

	cfg.sample_s = 1;
	start();
	while (api->history.count < 3) {
		cr_assert_lt(now_ns(), until);
		turn(2000);
	}
	cr_assert_gt(turns, 2);
	cr_assert_lt(turns, 30, "%u turns for three samples", turns);
}

Test(api_http, nobody_there_costs_nothing)
{
	start();
	while (turns < 1)
		turn(1000);
	turns = 0;
	for (uint64_t until = now_ns() + 1500000000; now_ns() < until;)
		turn(100);
	cr_assert_leq(turns, 2, "%u turns in 1.5 s", turns);
}

/* ---- bodies ----------------------------------------------------------------------------- */

static unsigned post(int fd, size_t len, char fill)
{
	static char body[1 << 20];
	char head[256];

	memset(body, fill, sizeof body);
	snprintf(head, sizeof head, "POST /v1/up HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
		 "Content-Length: %zu\r\n\r\n", len);
	if (say(fd, head))
		(void)put(fd, body, len);
	return status_of(hear(fd));
}

Test(api_http, body_of_the_most_is_read_and_more_is_refused)
{
	int fd;

	start();
	fd = join_unix();
	cr_assert_eq(post(fd, API_BODY_MAX, ' '), 400, "no JSON, but read");
	cr_assert_eq(post(fd, 0, ' '), 200);
	close(fd);
	fd = join_unix();
	say(fd, "POST /v1/up HTTP/1.1\r\nHost: localhost\r\nContent-Length: 65537\r\n\r\n");
	cr_assert_eq(status_of(hear(fd)), 413);
	close(fd);
	cr_assert_eq(daemon_.commands, 1);
	expect_served();
}

Test(api_http, body_chunked_without_end_is_closed)
{
	char chunk[1100];
	unsigned sent = 0;
	int fd;

	start();
	fd = join_unix();
	memset(chunk, ' ', sizeof chunk);
	memcpy(chunk, "400\r\n", 5);
	memcpy(chunk + 5 + 1024, "\r\n", 2);
	say(fd, "POST /v1/up HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n");
	while (sent < 5000 && put(fd, chunk, 1031))
		sent++;
	cr_assert_lt(sent, 2000, "more than buffers hold was taken");
	expect_closed(fd);
	close(fd);
	cr_assert_eq(daemon_.commands, 0);
	expect_served();
}

Test(api_http, body_refused_is_not_waited_for)
{
	int fd;

	start();
	fd = join_tcp();
	cr_assert_eq(ask(fd, "POST /v1/down HTTP/1.1\r\nHost: localhost\r\nContent-Length: 60000\r\n\r\n"), 401);
	close(fd);
	cr_assert_eq(daemon_.commands, 0);
}

Test(api_http, headers_without_end_are_refused)
{
	char line[1024];
	int fd;

	start();
	fd = join_unix();
	say(fd, "GET / HTTP/1.1\r\nHost: localhost\r\n");
	memset(line, 'x', sizeof line);
	memcpy(line, "X-A: ", 5);
	memcpy(line + sizeof line - 2, "\r\n", 2);
	for (unsigned i = 0; i < 200 && put(fd, line, sizeof line); i++)
		;
	expect_closed(fd);
	close(fd);
	expect_served();
}

Test(api_http, garbage_is_refused)
{
	static const char *const texts[] = { "\r\n\r\n", "GET\r\n\r\n", "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
					     "GET / HTTP/9.9\r\n\r\n", "GET / HTTP/1.1\r\nContent-Length: x\r\n\r\n",
					     "GET / HTTP/1.1\r\nContent-Length: -1\r\nHost: localhost\r\n\r\n" };

	start();
	for (size_t i = 0; i < ARRAY_LEN(texts); i++) {
		int fd = join_unix();

		say(fd, texts[i]);
		shutdown(fd, SHUT_WR);
		cr_assert_neq(status_of(hear(fd)), 200, "%s", texts[i]);
		close(fd);
	}
	cr_assert_eq(daemon_.commands, 0);
	expect_served();
}

/* ---- clients that hang on --------------------------------------------------------------- */

Test(api_http, client_that_never_reads_is_closed_and_others_served)
{
	static const char ask_vms[] = "GET /v1/vms HTTP/1.1\r\nHost: localhost\r\n" BEARER "\r\n";
	int fd, small = 1;
	uint64_t began;

	fake.vms = 1000;
	cfg.request_s = 3;
	cfg.idle_s = 60;
	start();
	fd = join_tcp();
	setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &small, sizeof small);
	for (unsigned i = 0; i < 20; i++)
		cr_assert_eq(send(fd, ask_vms, strlen(ask_vms), MSG_NOSIGNAL), (ssize_t)strlen(ask_vms));
	turns = 0;
	began = now_ns();
	while (counter_get(CTR_brimd_api_slow) == 0) {
		expect_served();
		cr_assert_lt(now_ns() - began, PATIENCE_NS, "never closed");
		usleep(20000);
	}
	cr_assert_gt(now_ns() - began, 2 * (uint64_t)1000000000);
	while (api->tcp_listener.connections) {
		cr_assert_lt(now_ns() - began, PATIENCE_NS, "not taken away");
		turn(100);
	}
	close(fd);
}

Test(api_http, client_that_never_reads_does_not_keep_the_loop_busy)
{
	int fd;

	fake.vms = 1000;
	start();
	fd = join_tcp();
	say(fd, "GET /v1/vms HTTP/1.1\r\nHost: localhost\r\n" BEARER "\r\n");
	for (uint64_t until = now_ns() + 500000000; now_ns() < until;)
		turn(10);
	turns = 0;
	for (uint64_t until = now_ns() + 1000000000; now_ns() < until;)
		turn(100);
	cr_assert_leq(turns, 5, "%u turns in a second", turns);
	close(fd);
}

Test(api_http, client_that_is_silent_is_closed)
{
	int fd;

	cfg.idle_s = 1;
	start();
	fd = join_unix();
	expect_closed(fd);
	close(fd);
}

Test(api_http, client_that_sends_a_byte_at_a_time_is_closed)
{
	static const char text[] = "GET /v1/host HTTP/1.1\r\nHost: localhost\r\nX-Slow: ";
	uint64_t began = now_ns();
	int fd;

	cfg.request_s = 2;
	cfg.idle_s = 60;
	start();
	fd = join_unix();
	say(fd, text);
	while (send(fd, "x", 1, MSG_NOSIGNAL | MSG_DONTWAIT) == 1) {
		cr_assert_lt(now_ns() - began, PATIENCE_NS, "it may go on for ever");
		turn(1);
		usleep(20000);
	}
	close(fd);
	cr_assert_eq(counter_get(CTR_brimd_api_slow), 1);
	expect_served();
}

Test(api_http, connections_beyond_the_most_wait_for_a_place)
{
	int fds[3 * CONNECTIONS];
	unsigned n = 0;

	start();
	for (size_t i = 0; i < ARRAY_LEN(fds); i++) {
		fds[i] = join_unix();
		turn(1);
	}
	for (const struct connection *c = api->unix_listener.connections; c; c = c->next)
		n++;
	cr_assert_leq(n, CONNECTIONS);
	cr_assert_eq(ask(fds[0], GET("/v1/host")), 200);
	for (size_t i = 0; i < CONNECTIONS; i++)
		close(fds[i]);
	for (size_t i = CONNECTIONS; i < ARRAY_LEN(fds); i++) {
		cr_assert_eq(ask(fds[i], GET("/v1/host")), 200, "connection %zu", i);
		close(fds[i]);
	}
	expect_served();
}

Test(api_http, tcp_full_leaves_the_unix_socket_free)
{
	int fds[CONNECTIONS + 4];

	start();
	for (size_t i = 0; i < ARRAY_LEN(fds); i++) {
		fds[i] = join_tcp();
		turn(1);
	}
	expect_served();
	for (size_t i = 0; i < ARRAY_LEN(fds); i++)
		close(fds[i]);
}

Test(api_http, clients_that_leave_at_once_leave_nothing)
{
	start();
	for (unsigned i = 0; i < 500; i++) {
		int fd = i % 2 ? join_unix() : join_tcp();

		(void)send(fd, GET("/v1/vms"), i % (strlen(GET("/v1/vms")) + 1), MSG_NOSIGNAL);
		close(fd);
		turn(1);
	}
	expect_served();
	for (uint64_t until = now_ns() + PATIENCE_NS; api->unix_listener.connections || api->tcp_listener.connections;) {
		cr_assert_lt(now_ns(), until);
		turn(10);
	}
}

/* ---- commands that are finished later --------------------------------------------------- */

#define STOP "POST /v1/vms/web-1/stop HTTP/1.1\r\nHost: localhost\r\n\r\n"

static void wait_for_command(unsigned n)
{
	uint64_t until = now_ns() + PATIENCE_NS;

	while (daemon_.commands < n) {
		cr_assert_lt(now_ns(), until);
		turn(10);
	}
}

Test(api_http, command_finished_later_is_answered_then)
{
	json_t *result = json_pack("{s:s}", "state", "stopping");
	const char *text;
	int fd;
	char c;

	daemon_.later = true;
	start();
	fd = join_unix();
	say(fd, STOP);
	wait_for_command(1);
	expect_served();
	cr_assert_eq(read_byte(fd, &c), -1, "it is answered already");
	api_finish(api, daemon_.ticket, 0, result, NULL);
	text = hear(fd);
	cr_assert_eq(status_of(text), 200);
	cr_assert_not_null(strstr(text, "{\"v\":1,\"ok\":true,\"result\":{\"state\":\"stopping\"}}"));
	cr_assert_eq(ask(fd, GET("/v1/host")), 200, "the connection goes on");
	api_finish(api, daemon_.ticket, 0, result, NULL); /* twice: ignored */
	close(fd);
	json_decref(result);
}

Test(api_http, command_failed_later_says_why)
{
	struct err why = { "web-1: the guest has no balloon" };
	int fd;

	daemon_.later = true;
	start();
	fd = join_unix();
	say(fd, STOP);
	wait_for_command(1);
	api_finish(api, daemon_.ticket, -EBUSY, NULL, &why);
	cr_assert_not_null(strstr(hear(fd), "\"error\":\"web-1: the guest has no balloon\""));
	close(fd);
}

Test(api_http, command_never_finished_is_504)
{
	int fd;

	daemon_.later = true;
	cfg.request_s = 1;
	start();
	fd = join_unix();
	cr_assert_eq(ask(fd, STOP), 504);
	close(fd);
	api_finish(api, daemon_.ticket, 0, NULL, NULL); /* too late: ignored */
	expect_served();
}

Test(api_http, command_whose_client_left_is_finished_without_it)
{
	daemon_.later = true;
	cfg.request_s = 1;
	start();
	for (unsigned i = 1; i <= 20; i++) {
		int fd = join_unix();

		say(fd, STOP);
		wait_for_command(i);
		close(fd);
		if (i % 2)
			api_finish(api, daemon_.ticket, 0, NULL, NULL);
		turn(1);
	}
	daemon_.later = false;
	expect_served();
}

Test(api_http, destroyed_with_commands_waiting)
{
	int fds[4];

	daemon_.later = true;
	start();
	for (unsigned i = 0; i < ARRAY_LEN(fds); i++) {
		fds[i] = join_unix();
		say(fds[i], STOP);
		wait_for_command(i + 1);
	}
	api_destroy(&api);
	for (unsigned i = 0; i < ARRAY_LEN(fds); i++)
		close(fds[i]);
}
