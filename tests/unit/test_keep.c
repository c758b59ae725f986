/*
 * host/keep.c and link.c: VMs come up in order, are refused, die, come back, are adopted, and
 * go.
 */
#include "tests/unit/keepbox.h"

/* ---- up and down ----------------------------------------------------------------------------- */

Test(keep, up_starts_in_order_and_down_ends_all)
{
	struct err e;
	uint64_t order[3];

	begin("", "  - {name: web, after: [db, cache], memory: 64M}\n  - {name: db, memory: 64M}\n"
		  "  - {name: cache, after: db, memory: 64M}\n");
	cr_assert_eq(keeper_up(k, NULL, &e), 0);
	until("web", GUEST_RUNNING);
	order[0] = vm("db")->run_id;
	order[1] = vm("cache")->run_id;
	order[2] = vm("web")->run_id;
	cr_assert(order[0] < order[1] && order[1] < order[2]);
	cr_assert_gt(keeper_promised(k), 3 * 64 * MiB);
	cr_assert_eq(keeper_down(k, NULL, &e), 0);
	until("web", GUEST_OFF);
	until("db", GUEST_OFF);
	until("cache", GUEST_OFF);
	cr_assert_eq(keeper_promised(k), 0);
	end();
}

Test(keep, one_by_name_and_no_other)
{
	struct err e;

	begin("", "  - {name: a, memory: 64M}\n  - {name: b, memory: 64M, autostart: off}\n");
	cr_assert_eq(keeper_up(k, "nobody", &e), -ENOENT);
	cr_assert_eq(keeper_up(k, NULL, &e), 0);
	until("a", GUEST_RUNNING);
	cr_assert_eq(vm("b")->state, GUEST_OFF);
	cr_assert_eq(keeper_up(k, "b", &e), 0);
	until("b", GUEST_RUNNING);
	cr_assert_eq(keeper_down(k, "a", &e), 0);
	until("a", GUEST_OFF);
	cr_assert_eq(vm("b")->state, GUEST_RUNNING);
	end();
}

Test(keep, no_more_boot_at_a_time_than_allowed)
{
	struct err e;
	unsigned most = 0, starting;
	uint64_t end_ns;

	begin("", "  - {name: many, count: 6, memory: 64M}\n");
	config->host.start_parallel = 2;
	cr_assert_eq(keeper_up(k, NULL, &e), 0);
	for (end_ns = now_ns() + PATIENCE_NS; keeper_is_busy(k); turn()) {
		starting = 0;
		for (struct guest *g = keeper_guests(k); g; g = g->next)
			starting += g->state == GUEST_STARTING;
		most = starting > most ? starting : most;
		cr_assert_lt(now_ns(), end_ns);
	}
	cr_assert(most >= 1 && most <= 2, "%u at a time", most);
	cr_assert_eq(vm("many-6")->state, GUEST_RUNNING);
	end();
}

/* ---- refused ------------------------------------------------------------------------------------ */

Test(keep, what_does_not_fit_is_refused_with_the_arithmetic_and_others_run)
{
	const struct admission_host small = { .physical_bytes = 400 * MiB };
	struct err e;

	begin("", "  - {name: vm, count: 3, memory: 128M}\n");
	keeper_configure(k, config, &small);
	cr_assert_eq(keeper_up(k, NULL, &e), 0);
	until("vm-3", GUEST_FAILED);
	until("vm-2", GUEST_RUNNING);
	until("vm-1", GUEST_RUNNING);
	cr_assert_not_null(strstr(vm("vm-3")->why, "refused: it needs"), "%s", vm("vm-3")->why);
	cr_assert_not_null(strstr(vm("vm-3")->why, "promised to 2 VMs"), "%s", vm("vm-3")->why);
	cr_assert_eq(keeper_down(k, "vm-1", &e), 0);
	until("vm-1", GUEST_OFF);
	cr_assert_eq(keeper_up(k, "vm-3", &e), 0);
	until("vm-3", GUEST_RUNNING);
	end();
}

/* ---- ends that nobody asked for ------------------------------------------------------------------- */

Test(keep, killed_process_is_noticed_cleaned_up_and_started_anew)
{
	struct err e;
	pid_t pid;

	begin("", "  - {name: a, memory: 64M}\n  - {name: once, memory: 64M, restart: never}\n");
	cr_assert_eq(keeper_up(k, NULL, &e), 0);
	until("a", GUEST_RUNNING);
	until("once", GUEST_RUNNING);
	pid = vm("a")->pid;
	kill(pid, SIGKILL);
	kill(vm("once")->pid, SIGKILL);
	until("once", GUEST_FAILED);
	cr_assert_not_null(strstr(vm("once")->why, "signal 9"), "%s", vm("once")->why);
	cr_assert_eq(access(vm("once")->paths.dir, F_OK), -1);
	until("a", GUEST_WAITING);
	until("a", GUEST_RUNNING);
	cr_assert_neq(vm("a")->pid, pid);
	cr_assert_eq(vm("a")->tries, 1);
	end();
}

Test(keep, one_that_dies_again_and_again_is_given_up)
{
	struct err e;
	uint64_t before;

	begin("die", "  - {name: a, memory: 64M, restart_tries: 3}\n");
	cr_assert_eq(keeper_up(k, NULL, &e), 0);
	until("a", GUEST_FAILED);
	cr_assert_eq(vm("a")->tries, 3);
	cr_assert_not_null(strstr(vm("a")->why, "the fake dies now"), "%s", vm("a")->why);
	before = vm("a")->run_id;
	cr_assert_eq(before, 3);
	end();
}

Test(keep, one_that_cannot_start_says_why)
{
	struct err e;

	begin("error", "  - {name: a, memory: 64M, restart: never}\n");
	cr_assert_eq(keeper_up(k, NULL, &e), 0);
	until("a", GUEST_FAILED);
	cr_assert_str_eq(vm("a")->why, "kernel /x: the fake does not like it");
	setenv("FAKE_VMM", "crash", 1);
	cr_assert_eq(keeper_up(k, NULL, &e), 0);
	until("a", GUEST_FAILED);
	cr_assert_not_null(strstr(vm("a")->why, "before its guest ran"), "%s", vm("a")->why);
	end();
}

Test(keep, guest_that_powers_off_is_off_unless_it_is_to_run_always)
{
	struct err e;
	uint64_t end_ns = now_ns() + PATIENCE_NS;

	begin("quick", "  - {name: a, memory: 64M}\n  - {name: b, memory: 64M, restart: always}\n");
	cr_assert_eq(keeper_up(k, NULL, &e), 0);
	until("a", GUEST_OFF);
	while (vm("b")->run_id < 4 || vm("b")->tries) {
		turn();
		cr_assert_lt(now_ns(), end_ns);
	}
	cr_assert_eq(vm("a")->state, GUEST_OFF);
	end();
}

/* ---- those that do not listen ------------------------------------------------------------------------ */

Test(keep, mute_one_holds_nobody_up_and_is_killed_in_the_end)
{
	uint64_t began, longest = 0, until_ns;
	struct err e;

	begin("mute", "  - {name: mute, memory: 64M}\n");
	cr_assert_eq(keeper_up(k, NULL, &e), 0);
	until("mute", GUEST_RUNNING);
	cr_assert_eq(keeper_down(k, NULL, &e), 0);
	until_ns = now_ns() + PATIENCE_NS;
	while (vm("mute")->state != GUEST_OFF) {
		began = now_ns();
		poller_turn(&poller, 0);
		keeper_tick(k, now_ns());
		longest = now_ns() - began > longest ? now_ns() - began : longest;
		cr_assert_lt(now_ns(), until_ns);
		usleep(5000);
	}
	cr_assert_lt(longest, S_NS / 2, "a turn waited for it");
	end();
}

/* ---- another daemon ------------------------------------------------------------------------------------ */

static int answers;
static char said[64];

static void on_status(void *ctx, int rc, const json_t *result, const char *error)
{
	(void)ctx;
	(void)error;
	answers++;
	snprintf(said, sizeof(said), "%s", rc ? "an error" :
		 json_string_value(json_object_get(result, "state")));
}

Test(keep, daemon_that_comes_back_finds_its_vms_and_their_ends)
{
	struct err e;
	pid_t pid, other;

	begin("", "  - {name: a, memory: 64M}\n  - {name: b, memory: 64M, restart: never}\n");
	cr_assert_eq(keeper_up(k, NULL, &e), 0);
	until("a", GUEST_RUNNING);
	until("b", GUEST_RUNNING);
	pid = vm("a")->pid;
	other = vm("b")->pid;
	end_keeper();
	make_keeper();
	keeper_configure(k, config, &roomy);
	cr_assert_eq(vm("a")->state, GUEST_RUNNING);
	cr_assert_eq(vm("a")->pid, pid);
	cr_assert(vm("a")->is_adopted);
	cr_assert_eq(keeper_up(k, NULL, &e), 0);
	for (uint64_t end_ns = now_ns() + PATIENCE_NS; !vm("a")->link; turn())
		cr_assert_lt(now_ns(), end_ns);
	cr_assert_eq(link_call(vm("a")->link, "status", NULL, on_status, NULL), 0);
	for (uint64_t end_ns = now_ns() + PATIENCE_NS; !answers; turn())
		cr_assert_lt(now_ns(), end_ns);
	cr_assert_str_eq(said, "running");
	cr_assert_eq(vm("a")->pid, pid, "it was not started anew");
	kill(other, SIGKILL);
	waitpid(other, NULL, 0); /* in this test it is our child, and not init's */
	until("b", GUEST_FAILED);
	cr_assert_eq(keeper_down(k, NULL, &e), 0);
	until("a", GUEST_OFF);
	waitpid(pid, NULL, 0);
	end();
}

Test(keep, vm_of_nobody_is_seen_and_left_alone)
{
	struct vmm_child c;
	struct vm_paths p;
	struct err e;
	json_t *description;
	sigset_t none;

	begin("", "  - {name: a, memory: 64M}\n");
	cr_assert_eq(vm_paths_init(&p, dir, "stranger", &e), 0);
	description = json_pack("{s:s,s:s,s:i}", "name", "stranger", "run_dir", p.dir, "memory_bytes",
				64 << 20);
	sigemptyset(&none);
	cr_assert_eq(vmm_spawn(description, &none, &c, &e), 0, "%s", e.msg);
	json_decref(description);
	for (uint64_t end_ns = now_ns() + PATIENCE_NS; !keeper_find(k, "stranger"); turn())
		cr_assert_lt(now_ns(), end_ns);
	cr_assert_null(vm("stranger")->vm);
	cr_assert_eq(vm("stranger")->state, GUEST_RUNNING);
	cr_assert_eq(keeper_down(k, NULL, &e), 0);
	turn();
	cr_assert_eq(vm("stranger")->state, GUEST_RUNNING, "all of the configuration, and no other");
	kill(c.pid, SIGKILL);
	waitpid(c.pid, NULL, 0);
	close(c.ready_fd);
	for (uint64_t end_ns = now_ns() + PATIENCE_NS; keeper_find(k, "stranger"); turn())
		cr_assert_lt(now_ns(), end_ns);
	cr_assert_eq(access(p.log, F_OK), 0, "its log is its user's to look at");
	cr_assert_eq(rundir_clean(&p, &e), 0);
	end();
}

/* ---- what a VM's user may put into its directory -------------------------------------------------------- */

Test(keep, socket_of_another_process_is_not_spoken_to)
{
	struct link *l = NULL;
	struct err e;

	begin("", "  - {name: a, memory: 64M}\n  - {name: b, memory: 64M}\n");
	cr_assert_eq(keeper_up(k, NULL, &e), 0);
	until("a", GUEST_RUNNING);
	until("b", GUEST_RUNNING);
	cr_assert_eq(link_open(&l, &poller, vm("a")->paths.control, vm("b")->pid), -EPERM);
	cr_assert_null(l);
	cr_assert_eq(link_open(&l, &poller, vm("a")->paths.control, vm("a")->pid), 0);
	link_close(&l);
	end();
}

/* A lock that is held, and names a process that is not its user's. */
Test(keep, process_of_another_user_is_not_adopted)
{
	struct vm_paths p;
	struct err e;
	int lock;

	if (geteuid() != 0)
		cr_skip_test("to make another's directory takes root");
	begin("", "  - {name: a, memory: 64M}\n");
	cr_assert_eq(vm_paths_init(&p, dir, "evil", &e), 0);
	cr_assert_eq(rundir_claim(&p, &lock, &e), 0, "%s", e.msg);
	cr_assert_eq(mkfifo(p.config, 0600), 0);
	cr_assert_eq(chown(p.dir, 12345, 12345), 0);
	cr_assert_eq(keeper_adopt(k, &e), 0);
	cr_assert(!keeper_find(k, "evil") || vm("evil")->pid == 0);
	cr_assert_eq(chown(p.dir, 0, 0), 0);
	cr_assert_eq(keeper_adopt(k, &e), 0);
	cr_assert_eq(vm("evil")->pid, getpid(), "as its own user's it is");
	end_keeper();
	unlink(p.config);
	rundir_release(&p, &lock);
	host_config_destroy(&config);
	cr_assert_eq(rmdir(dir), 0);
}
