/*
 * bench_api: what does it cost brimd to be looked at?
 *
 * Question  Microseconds of brimd's CPU time for one scrape of /metrics and for one
 *           poll of the web page (/v1/snapshot), with 8 and with 1000 VMs.
 * Method    The HTTP interface over a Unix socket, as in brimd, in this thread; a
 *           child asks over one connection.  The snapshot is there already: what
 *           gathering it costs is the daemon's, not the interface's.  `again` is one
 *           that finds what another asked for within the same half second.
 * Baseline  None.
 * Noise     Thread CPU time; the kernel's copying is in it.
 *
 * Goal: a scrape each 15 s of 1000 VMs is less than a thousandth of one CPU: 15,000 us.
 */
#include "bench/benchlib.h"
#include "host/api/internal.h"
#include "tests/lib/fakesnap.h"

#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

struct scene {
	struct bench *b;
	unsigned vms, asks;
	const char *path;
	bool is_again;
	json_t *snapshot;
	char socket[64];
};

static json_t *snapshot(void *ctx)
{
	const struct scene *s = ctx;

	return json_incref(s->snapshot);
}

static int command(void *ctx, const char *verb, const json_t *args, json_t **result, struct err *e)
{
	return 0;
}

/* ---- who asks ---------------------------------------------------------------------- */

static void read_answer(FILE *f)
{
	char line[4096];
	size_t left = 0;

	while (fgets(line, sizeof(line), f) && strcmp(line, "\r\n") != 0)
		if (strncmp(line, "Content-Length: ", 16) == 0)
			left = strtoul(line + 16, NULL, 10);
	while (left > 0) {
		size_t n = fread(line, 1, left < sizeof(line) ? left : sizeof(line), f);

		if (n == 0)
			_exit(1);
		left -= n;
	}
}

static _Noreturn void be_client(const struct scene *s)
{
	struct sockaddr_un sa = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_STREAM, 0);
	FILE *f = fdopen(fd, "r+");

	snprintf(sa.sun_path, sizeof(sa.sun_path), "%s", s->socket);
	if (!f || connect(fd, (const struct sockaddr *)&sa, sizeof(sa)) < 0)
		_exit(1);
	for (unsigned i = 0; i < s->asks; i++) {
		if (dprintf(fd, "GET %s HTTP/1.1\r\nHost: localhost\r\n\r\n", s->path) < 0)
			_exit(1);
		read_answer(f);
	}
	_exit(0);
}

/* ---- what is timed ----------------------------------------------------------------- */

static void serve(const struct scene *s, struct api *api, pid_t client)
{
	uint64_t answered = counter_get(CTR_brimd_api_requests);
	int status;

	while (waitpid(client, &status, WNOHANG) == 0) {
		struct pollfd p = { .fd = api_fd(api), .events = POLLIN };

		if (poll(&p, 1, 100) > 0)
			api_turn(api);
		if (!s->is_again && counter_get(CTR_brimd_api_requests) != answered)
			snapshot_drop(api);
		answered = counter_get(CTR_brimd_api_requests);
	}
	if (status != 0)
		bench_die(s->b, "the client failed");
}

static double ask_us(void *arg)
{
	struct scene *s = arg;
	struct api_ops ops = { .snapshot = snapshot, .command = command, .ctx = s };
	struct api_config cfg = { .unix_path = s->socket, .fresh_ms = 1u << 30 };
	struct api *api = NULL;
	struct err e;
	uint64_t began_ns;
	pid_t client;

	if (api_create(&api, &ops, &cfg, &e))
		bench_die(s->b, "%s", e.msg);
	client = fork();
	if (client == 0)
		be_client(s);
	began_ns = bench_cpu_ns();
	serve(s, api, client);
	began_ns = bench_cpu_ns() - began_ns;
	api_destroy(&api);
	return (double)began_ns / 1e3 / s->asks;
}

static void compare(struct bench *b, const char *name, const struct scene *what)
{
	struct fakesnap f = { .vms = what->vms };
	struct scene s = *what;

	s.b = b;
	s.asks = b->quick ? 20 : 200;
	s.snapshot = fakesnap_json(&f);
	snprintf(s.socket, sizeof(s.socket), "/tmp/brim-bench-api-%d", (int)getpid());
	bench_compare(b, name, "us", &(struct bench_pair){ .brim = ask_us, .arg = &s });
	json_decref(s.snapshot);
}

int main(int argc, char **argv)
{
	struct bench b;

	bench_begin(&b, "api", argc, argv);
	compare(&b, "metrics, 8 VMs", &(struct scene){ .vms = 8, .path = "/metrics" });
	compare(&b, "metrics, 1000 VMs", &(struct scene){ .vms = 1000, .path = "/metrics" });
	compare(&b, "metrics, 1000 VMs, again",
		&(struct scene){ .vms = 1000, .path = "/metrics", .is_again = true });
	compare(&b, "snapshot, 8 VMs", &(struct scene){ .vms = 8, .path = "/v1/snapshot" });
	compare(&b, "snapshot, 1000 VMs", &(struct scene){ .vms = 1000, .path = "/v1/snapshot" });
	compare(&b, "snapshot, 1000 VMs, again",
		&(struct scene){ .vms = 1000, .path = "/v1/snapshot", .is_again = true });
	return bench_end(&b);
}
