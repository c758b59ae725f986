/* keepbox: a keeper in a run directory of its own, and processes that behave as brim-vmm does
 * towards whoever started it (tests/cli/fakevmm.c). */
#ifndef BRIM_TESTS_KEEPBOX_H
#define BRIM_TESTS_KEEPBOX_H

#include <criterion/criterion.h>

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "host/keep.h"

#define S_NS ((uint64_t)1000000000)
#define PATIENCE_NS (60 * S_NS) /* of a busy machine */

static char dir[64];
static struct poller poller;
static struct keeper *k;
static struct host_config *config;

/* ---- a host ------------------------------------------------------------------------------- */

static const struct admission_host roomy = { .physical_bytes = 64 * GiB };

static inline void load(const char *vms)
{
	struct host_config_errors errors = { 0 };
	struct host_config *was = config;
	char text[4096], why[512] = "";

	snprintf(text, sizeof(text), "defaults:\n  kernel: /bin/true\n  restart_delay: 10ms\n"
		 "  swap: {enabled: off}\n  stop_timeout: 1s\nhost:\n  start_gap: 0s\nvms:\n%s", vms);
	if (host_config_parse(text, strlen(text), "/test.yaml", NULL, &config, &errors))
		host_config_error_format(why, sizeof(why), "test.yaml", &errors.items[0]);
	cr_assert_str_eq(why, "");
	host_config_errors_fini(&errors);
	keeper_configure(k, config, &roomy);
	host_config_destroy(&was);
}

static inline void make_keeper(void)
{
	struct keeper_config cfg = { .run_dir = dir, .host = roomy, .grace_ns = S_NS };
	struct err e = { "" };

	cr_assert_eq(poller_init(&poller, &e), 0);
	cr_assert_eq(keeper_create(&k, &poller, &cfg, &e), 0, "%s", e.msg);
	cr_assert_eq(keeper_adopt(k, &e), 0, "%s", e.msg);
}

/* It is built beside us. */
static inline void use_fake(void)
{
	char path[4096];
	ssize_t n = readlink("/proc/self/exe", path, sizeof(path) - 16);

	cr_assert_gt(n, 0);
	path[n] = '\0';
	memcpy(strrchr(path, '/'), "/fakevmm", sizeof("/fakevmm"));
	cr_assert_eq(access(path, X_OK), 0, "%s", path);
	setenv("BRIM_VMM", path, 1);
}

static inline void begin(const char *mode, const char *vms)
{
	use_fake();
	setenv("FAKE_VMM", mode, 1);
	snprintf(dir, sizeof(dir), "/tmp/brim-keep-XXXXXX");
	cr_assert_not_null(mkdtemp(dir));
	make_keeper();
	load(vms);
}

static inline void turn(void)
{
	cr_assert_eq(poller_turn(&poller, 10), 0);
	keeper_tick(k, now_ns());
}

static inline struct guest *vm(const char *name)
{
	struct guest *g = keeper_find(k, name);

	cr_assert_not_null(g, "%s", name);
	return g;
}

static inline void until(const char *name, enum guest_state s)
{
	uint64_t end = now_ns() + PATIENCE_NS;

	while (vm(name)->state != s) {
		turn();
		cr_assert_lt(now_ns(), end, "%s is %s: %s", name, guest_state_name(vm(name)->state),
			     vm(name)->why);
	}
}

static inline void end_keeper(void)
{
	keeper_destroy(&k);
	poller_fini(&poller);
}

static inline void end(void)
{
	struct err e;

	for (struct guest *g = keeper_guests(k); g; g = g->next)
		if (g->pid)
			(void)keeper_down(k, g->paths.name, &e);
	for (uint64_t end = now_ns() + PATIENCE_NS; keeper_is_busy(k); turn())
		cr_assert_lt(now_ns(), end);
	end_keeper();
	host_config_destroy(&config);
	cr_assert_eq(rmdir(dir), 0, "left behind in %s: %s", dir, strerror(errno));
}

#endif
