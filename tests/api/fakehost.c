/*
 * brimd's HTTP interface and web page over a host that is not there: for the tests of the
 * page, for looking at it, and for measuring.
 *
 * usage: fakehost [--unix PATH] [--tcp PORT --token FILE] [--vms N] [--hostile] [--still]
 *
 * PORT 0: the kernel's choice.  Prints `port N` when it serves, and what commands it gets.
 * The last hour is made up.  SIGTERM ends it; then it prints what it cost: `turns N cpu_us N`.
 */
#include <errno.h>
#include <getopt.h>
#include <math.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>

#include "host/api/internal.h"
#include "tests/lib/fakesnap.h"

static struct fakesnap fake = { .vms = 8 };
static bool is_still;
static volatile sig_atomic_t is_over;

static void on_signal(int signal)
{
	is_over = 1;
}

static json_t *snapshot(void *ctx)
{
	if (!is_still)
		fake.time_s = (double)now_ns() / 1e9;
	return fakesnap_json(&fake);
}

static int command(void *ctx, const char *verb, const json_t *args, json_t **result, struct err *e)
{
	char *text = json_dumps(args, JSON_COMPACT);

	printf("%s %s\n", verb, text);
	fflush(stdout);
	free(text);
	if (strcmp(verb, "pause") == 0)
		fake.state = "paused";
	else if (strcmp(verb, "resume") == 0)
		fake.state = NULL;
	else if (strcmp(verb, "limit") == 0)
		fake.limit_bytes = json_integer_value(json_object_get(args, "limit_bytes"));
	else
		return err_set(e, -EOPNOTSUPP, "%s: this host is not there", verb);
	return 0;
}

static void make_up_history(struct api *api)
{
	uint64_t now_s = (uint64_t)time(NULL);

	for (unsigned i = HISTORY_SAMPLES; i-- > 1;) {
		struct fakesnap f = fake;
		json_t *j;

		f.time_s -= i * 5.0;
		j = fakesnap_json(&f);
		history_add(&api->history, json_object_get(j, "host"), now_s - i * 5);
		json_decref(j);
	}
}

static int parse(int argc, char **argv, struct api_config *cfg)
{
	static const struct option options[] = {
		{ "unix", required_argument, NULL, 'u' }, { "tcp", required_argument, NULL, 't' },
		{ "token", required_argument, NULL, 'k' }, { "vms", required_argument, NULL, 'n' },
		{ "hostile", no_argument, NULL, 'h' },     { "still", no_argument, NULL, 's' },
		{ NULL, 0, NULL, 0 },
	};
	int option;

	while ((option = getopt_long(argc, argv, "", options, NULL)) != -1)
		switch (option) {
		case 'u': cfg->unix_path = optarg; break;
		case 't':
			cfg->tcp_port = (uint16_t)atoi(optarg);
			cfg->tcp_any_port = cfg->tcp_port == 0;
			break;
		case 'k': cfg->token_file = optarg; break;
		case 'n': fake.vms = (unsigned)atoi(optarg); break;
		case 'h': fake.hostile = true; break;
		case 's': is_still = true; break;
		default: return -EINVAL;
		}
	return optind < argc ? -EINVAL : 0;
}

static void print_cost(unsigned turns)
{
	struct rusage u;

	getrusage(RUSAGE_SELF, &u);
	printf("turns %u cpu_us %ld\n", turns,
	       (u.ru_utime.tv_sec + u.ru_stime.tv_sec) * 1000000L + u.ru_utime.tv_usec +
	       u.ru_stime.tv_usec);
}

int main(int argc, char **argv)
{
	struct api_ops ops = { .snapshot = snapshot, .command = command };
	struct api_config cfg = { 0 };
	struct sigaction sa = { .sa_handler = on_signal };
	struct err e = { "" };
	struct api *api = NULL;
	unsigned turns = 0;

	if (parse(argc, argv, &cfg) || api_create(&api, &ops, &cfg, &e)) {
		fprintf(stderr, "fakehost: %s\n", e.msg[0] ? e.msg : "usage");
		return 2;
	}
	sigaction(SIGTERM, &sa, NULL);
	signal(SIGPIPE, SIG_IGN);
	fake.time_s = is_still ? 12345 : (double)now_ns() / 1e9;
	make_up_history(api);
	printf("port %u\n", api_tcp_port(api));
	fflush(stdout);
	for (; !is_over; turns++) {
		struct pollfd p = { .fd = api_fd(api), .events = POLLIN };

		if (poll(&p, 1, -1) > 0)
			api_turn(api);
	}
	api_destroy(&api);
	print_cost(turns);
	return 0;
}
