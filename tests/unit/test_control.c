/*
 * vmm/control.c: the control socket.  The machine behind it is a few lines of
 * this file, which win over the archive's machine.o; balloon and RAM are real.
 */
#include <criterion/criterion.h>
#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "vmm/internal.h"

#define LINE 65536u
#define CLIENTS 16u
#define TURNS 100000

static struct vmm vmm;
static struct machine machine;
static char dir[] = "/tmp/brim-ctl-XXXXXX";
static char path[64];
static struct err e;

static struct {
	unsigned pauses, resumes, stops;
	enum vm_end end;
	bool ending;
} calls;

int machine_pause(struct machine *m)
{
	calls.pauses++;
	m->paused = !calls.ending;
	return calls.ending ? -ESHUTDOWN : 0;
}

void machine_resume(struct machine *m)
{
	calls.resumes++;
	m->paused = false;
}

void machine_end(struct machine *m, enum vm_end end, const char *fmt, ...)
{
	calls.end = end;
}

void vmm_stop(struct vmm *v)
{
	calls.stops++;
	v->stopping = true;
}

static void begin(void)
{
	struct ram_config cfg = { .size_bytes = RAM_MIN_BYTES };
	struct virtio_balloon_config balloon = { .stats_interval_s = 0 };
	struct virtio_env env;

	cr_assert_not_null(mkdtemp(dir));
	snprintf(path, sizeof path, "%s/control.sock", dir);
	cr_assert_eq(loop_create(&vmm.loop, &e), 0, "%s", e.msg);
	cr_assert_eq(ram_create(&machine.ram, &cfg, &e), 0, "%s", e.msg);
	env = (struct virtio_env){ .ram = machine.ram, .ops = &loop_env_ops, .opaque = vmm.loop };
	cr_assert_eq(virtio_balloon_create(&machine.balloon, &env, &balloon, &e), 0, "%s", e.msg);
	snprintf(vmm.cfg.name, sizeof vmm.cfg.name, "vm");
	vmm.cfg.memory_bytes = RAM_MIN_BYTES;
	vmm.cfg.cpus = 2;
	machine.cfg = &vmm.cfg;
	vmm.machine = &machine;
	cr_assert_eq(control_create(&vmm.control, &vmm, path, &e), 0, "%s", e.msg);
}

static void end(void)
{
	control_destroy(&vmm.control, "poweroff", "");
	cr_assert_lt(access(path, F_OK), 0, "the socket is gone");
	virtio_dev_destroy(&machine.balloon);
	memory_fini(&machine);
	ram_destroy(&machine.ram);
	loop_destroy(&vmm.loop);
	rmdir(dir);
}

static void turn(void)
{
	loop_turn(vmm.loop, 0);
}

static int join(void)
{
	struct sockaddr_un sa = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	snprintf(sa.sun_path, sizeof sa.sun_path, "%s", path);
	cr_assert_eq(connect(fd, (const struct sockaddr *)&sa, sizeof sa), 0);
	turn();
	return fd;
}

static void put(int fd, const char *text, size_t len)
{
	while (len) {
		ssize_t n = send(fd, text, len, MSG_DONTWAIT | MSG_NOSIGNAL);

		cr_assert(n > 0 || errno == EAGAIN);
		if (n > 0) {
			text += n;
			len -= (size_t)n;
		}
		turn();
	}
}

static void say(int fd, const char *text)
{
	put(fd, text, strlen(text));
}

/* The next line of this client, parsed. NULL: the connection was closed. */
static json_t *hear(int fd)
{
	static char line[1 << 20];
	size_t len = 0;
	json_t *reply;

	for (unsigned left = TURNS; left; left--) {
		ssize_t n = recv(fd, line + len, 1, MSG_DONTWAIT);

		if (n == 0 || (n < 0 && errno != EAGAIN))
			return NULL;
		if (n < 0) {
			turn();
			continue;
		}
		if (line[len++] != '\n')
			continue;
		reply = json_loadb(line, len, 0, NULL);
		cr_assert(reply, "not JSON: %.*s", (int)len, line);
		cr_assert_eq(json_integer_value(json_object_get(reply, "v")), 1);
		return reply;
	}
	cr_assert_fail("no answer");
	return NULL;
}

static bool closed(int fd)
{
	char b[4096];

	for (unsigned left = TURNS; left; left--) {
		ssize_t n = recv(fd, b, sizeof b, MSG_DONTWAIT);

		if (n == 0 || (n < 0 && errno != EAGAIN))
			return true;
		turn();
	}
	return false;
}

static void hear_error(int fd, json_int_t id, const char *named)
{
	json_t *r = hear(fd);
	const char *text = json_string_value(json_object_get(r, "error"));

	cr_assert(r && json_is_false(json_object_get(r, "ok")) && text);
	cr_assert_eq(json_integer_value(json_object_get(r, "id")), id);
	cr_assert(strstr(text, named), "'%s': %s", named, text);
	json_decref(r);
}

/* The result of a reply that is good; the caller's. */
static json_t *hear_ok(int fd, json_int_t id)
{
	json_t *r = hear(fd), *result;

	cr_assert(r && json_is_true(json_object_get(r, "ok")), "%s",
		  json_string_value(json_object_get(r, "error")));
	cr_assert_eq(json_integer_value(json_object_get(r, "id")), id);
	result = json_incref(json_object_get(r, "result"));
	cr_assert(json_is_object(result));
	json_decref(r);
	return result;
}

static void ask_ok(int fd, const char *cmd)
{
	char line[256];

	snprintf(line, sizeof line, "{\"v\":1,\"id\":5,\"cmd\":\"%s\"}\n", cmd);
	say(fd, line);
	json_decref(hear_ok(fd, 5));
}

/* ---- lines ------------------------------------------------------------------------ */

Test(control, not_a_request_refused_connection_stays)
{
	static const char *const lines[] = {
		"\n", "x\n", "{\n", "[]\n", "7\n", "null\n", "{}\n", "\"\"\n",
		"{\"v\":1,\"cmd\":\"stop\"}\n", "{\"v\":1,\"id\":\"7\",\"cmd\":\"stop\"}\n",
		"{\"v\":1,\"id\":1.5,\"cmd\":\"stop\"}\n", "{\"v\":1,\"id\":7}\n",
		"{\"v\":1,\"id\":7,\"cmd\":7}\n", "{\"v\":1,\"id\":7,\"cmd\":\"stop\\u0000\"}\n",
		"{\"v\":1,\"id\":7,\"cmd\":\"stop\",\"cmd\":\"stop\"}\n",
		"{\"v\":1,\"id\":7,\"cmd\":\"stop\"} x\n", "{\"v\":1,\"id\":7,\"cmd\":\"\xff\"}\n",
	};
	static const char with_nul[] = "{\"v\":1,\0\"id\":7}\n";
	uint64_t bad = counter_get(CTR_control_bad_requests);
	int fd;

	begin();
	fd = join();
	for (size_t i = 0; i < ARRAY_LEN(lines); i++) {
		say(fd, lines[i]);
		hear_error(fd, 0, "one line of JSON");
	}
	put(fd, with_nul, sizeof with_nul - 1);
	hear_error(fd, 0, "one line of JSON");
	cr_assert_eq(counter_get(CTR_control_bad_requests) - bad, ARRAY_LEN(lines) + 1);
	cr_assert_eq(calls.stops, 0);
	ask_ok(fd, "stop");
	cr_assert_eq(calls.stops, 1);
	close(fd);
	end();
}

Test(control, other_version_refused)
{
	int fd;

	begin();
	fd = join();
	say(fd, "{\"v\":2,\"id\":7,\"cmd\":\"stop\"}\n");
	hear_error(fd, 7, "version 1");
	say(fd, "{\"id\":8,\"cmd\":\"stop\"}\n");
	hear_error(fd, 8, "version 1");
	cr_assert_eq(calls.stops, 0);
	close(fd);
	end();
}

Test(control, unknown_command_refused_by_name)
{
	int fd;

	begin();
	fd = join();
	say(fd, "{\"v\":1,\"id\":7,\"cmd\":\"sotp\"}\n");
	hear_error(fd, 7, "'sotp'");
	say(fd, "{\"v\":1,\"id\":8,\"cmd\":\"\"}\n");
	hear_error(fd, 8, "''");
	close(fd);
	end();
}

/* Longer than a sentence holds, and cut in the middle of a character if cut. */
Test(control, unknown_command_long_and_not_ascii_answered)
{
	char line[2048] = "{\"v\":1,\"id\":7,\"cmd\":\"x";
	int fd;

	begin();
	for (unsigned i = 0; i < 500; i++)
		strncat(line, "\xc3\xa9", 3);
	strncat(line, "\"}\n", 4);
	fd = join();
	say(fd, line);
	hear_error(fd, 7, "unknown command");
	close(fd);
	end();
}

/* A valid request, blown up with blanks to `len` bytes, newline included. */
static void say_long(int fd, size_t len)
{
	static const char cmd[] = "{\"v\":1,\"id\":9,\"cmd\":\"resume\"";
	char *line = malloc(len);

	memset(line, ' ', len);
	memcpy(line, cmd, sizeof cmd - 1);
	memcpy(line + len - 2, "}\n", 2);
	put(fd, line, len);
	free(line);
}

Test(control, line_of_full_length_answered)
{
	int fd;

	begin();
	fd = join();
	say_long(fd, LINE);
	json_decref(hear_ok(fd, 9));
	cr_assert_eq(calls.resumes, 1);
	close(fd);
	end();
}

Test(control, line_too_long_one_error_then_closed)
{
	static char text[LINE];
	int fd, other;

	begin();
	fd = join();
	other = join();
	memset(text, 'x', sizeof text);
	put(fd, text, sizeof text);
	hear_error(fd, 0, "65536");
	cr_assert(closed(fd));
	ask_ok(other, "resume");
	close(fd);
	close(other);
	end();
}

Test(control, requests_pipelined_answered_in_order)
{
	enum { REQUESTS = 100 }; /* the replies to so many wait in the socket */
	char *all = malloc(REQUESTS * 64), *at = all;
	int fd;

	begin();
	fd = join();
	for (int i = 0; i < REQUESTS; i++)
		at += snprintf(at, 64, "{\"v\":1,\"id\":%d,\"cmd\":\"%s\"}\n", i,
			       i % 2 ? "pause" : "nope");
	put(fd, all, (size_t)(at - all));
	for (int i = 0; i < REQUESTS; i++) {
		if (i % 2)
			json_decref(hear_ok(fd, i));
		else
			hear_error(fd, i, "nope");
	}
	cr_assert_eq(calls.pauses, REQUESTS / 2);
	free(all);
	close(fd);
	end();
}

/* However much a client sends at once, a turn of the loop answers one request of
 * it: a guest's devices are waiting for the same thread. */
Test(control, requests_pipelined_one_a_turn)
{
	enum { REQUESTS = 2000 };
	static const char pause[] = "{\"v\":1,\"id\":1,\"cmd\":\"pause\"}\n";
	char *all = malloc(REQUESTS * sizeof pause), *at = all;
	unsigned before, most = 0;
	int fd;

	begin();
	fd = join();
	for (int i = 0; i < REQUESTS; i++, at += sizeof pause - 1)
		memcpy(at, pause, sizeof pause - 1);
	cr_assert_gt(send(fd, all, (size_t)(at - all), MSG_DONTWAIT | MSG_NOSIGNAL), 0);
	for (int i = 0; i < REQUESTS; i++) {
		before = calls.pauses;
		turn();
		most = calls.pauses - before > most ? calls.pauses - before : most;
		if (calls.pauses > before)
			json_decref(hear_ok(fd, 1));
	}
	cr_assert_leq(most, 1, "%u requests in one turn", most);
	free(all);
	close(fd);
	end();
}

Test(control, request_byte_by_byte_answered)
{
	static const char line[] = "{\"v\":1,\"id\":7,\"cmd\":\"resume\"}\n";
	int fd;

	begin();
	fd = join();
	for (size_t i = 0; i < sizeof line - 1; i++) {
		put(fd, line + i, 1);
		cr_assert_eq(calls.resumes, i == sizeof line - 2 ? 1 : 0);
	}
	json_decref(hear_ok(fd, 7));
	close(fd);
	end();
}

Test(control, id_of_any_size_comes_back)
{
	int fd;

	begin();
	fd = join();
	say(fd, "{\"v\":1,\"id\":-9223372036854775808,\"cmd\":\"resume\"}\n");
	json_decref(hear_ok(fd, INT64_MIN));
	say(fd, "{\"v\":1,\"id\":9223372036854775807,\"cmd\":\"resume\"}\n");
	json_decref(hear_ok(fd, INT64_MAX));
	close(fd);
	end();
}

/* ---- clients ------------------------------------------------------------------------- */

Test(control, client_that_does_not_read_closed_others_served)
{
	static const char stats[] = "{\"v\":1,\"id\":7,\"cmd\":\"stats\"}\n";
	bool gone = false;
	int fd, other;

	begin();
	fd = join();
	other = join();
	for (unsigned left = 10000; left && !gone; left--) {
		gone = send(fd, stats, sizeof stats - 1, MSG_DONTWAIT | MSG_NOSIGNAL) < 0 &&
		       errno != EAGAIN;
		turn();
	}
	cr_assert(gone);
	ask_ok(other, "resume");
	close(fd);
	close(other);
	end();
}

Test(control, client_too_many_refused_place_reused)
{
	int fds[CLIENTS], more;

	begin();
	for (unsigned i = 0; i < CLIENTS; i++)
		fds[i] = join();
	more = join();
	cr_assert(closed(more));
	close(more);
	close(fds[7]);
	turn();
	fds[7] = join();
	for (unsigned i = 0; i < CLIENTS; i++) {
		ask_ok(fds[i], "resume");
		close(fds[i]);
	}
	end();
}

Test(control, client_gone_in_the_middle_of_a_line_forgotten)
{
	int fd;

	begin();
	for (unsigned i = 0; i < 3 * CLIENTS; i++) {
		fd = join();
		say(fd, "{\"v\":1,\"id\":7,\"cm");
		close(fd);
		turn();
	}
	fd = join();
	ask_ok(fd, "resume");
	close(fd);
	end();
}

static void hear_end(int fd, json_int_t id, const char *reason, const char *detail)
{
	json_t *r = hear_ok(fd, id);

	cr_assert_str_eq(json_string_value(json_object_get(r, "reason")), reason);
	cr_assert_str_eq(json_string_value(json_object_get(r, "detail")), detail);
	json_decref(r);
}

Test(control, wait_answered_at_the_end_other_requests_before)
{
	int a, b, gone;

	begin();
	a = join();
	b = join();
	gone = join();
	say(a, "{\"v\":1,\"id\":70,\"cmd\":\"wait\"}\n");
	say(b, "{\"v\":1,\"id\":71,\"cmd\":\"wait\"}\n");
	say(gone, "{\"v\":1,\"id\":72,\"cmd\":\"wait\"}\n");
	close(gone);
	ask_ok(a, "resume");
	control_destroy(&vmm.control, "killed", "by the operator");
	hear_end(a, 70, "killed", "by the operator");
	hear_end(b, 71, "killed", "by the operator");
	cr_assert(closed(a) && closed(b));
	close(a);
	close(b);
	end();
}

/* ---- commands ------------------------------------------------------------------------- */

Test(control, kill_and_pause_and_resume_reach_the_machine)
{
	json_t *r;
	int fd;

	begin();
	fd = join();
	say(fd, "{\"v\":1,\"id\":1,\"cmd\":\"pause\"}\n");
	r = hear_ok(fd, 1);
	cr_assert_str_eq(json_string_value(json_object_get(r, "state")), "paused");
	json_decref(r);
	say(fd, "{\"v\":1,\"id\":2,\"cmd\":\"resume\"}\n");
	r = hear_ok(fd, 2);
	cr_assert_str_eq(json_string_value(json_object_get(r, "state")), "running");
	json_decref(r);
	ask_ok(fd, "kill");
	cr_assert_eq(calls.end, VM_END_KILLED);
	calls.ending = true;
	say(fd, "{\"v\":1,\"id\":3,\"cmd\":\"pause\"}\n");
	hear_error(fd, 3, "ending");
	close(fd);
	end();
}

Test(control, balloon_target_of_wrong_kind_refused)
{
	static const char *const targets[] = { "", ",\"target_bytes\":\"1G\"", ",\"target_bytes\":-1",
					       ",\"target_bytes\":1.5", ",\"target_bytes\":null" };
	char line[128];
	json_t *r;
	int fd;

	begin();
	fd = join();
	for (size_t i = 0; i < ARRAY_LEN(targets); i++) {
		snprintf(line, sizeof line, "{\"v\":1,\"id\":7,\"cmd\":\"balloon\"%s}\n", targets[i]);
		say(fd, line);
		hear_error(fd, 7, "target_bytes");
	}
	say(fd, "{\"v\":1,\"id\":8,\"cmd\":\"balloon\",\"target_bytes\":68719476736}\n");
	hear_error(fd, 8, "68719476736");
	say(fd, "{\"v\":1,\"id\":9,\"cmd\":\"balloon\",\"target_bytes\":33554432}\n");
	r = hear_ok(fd, 9);
	cr_assert_eq(json_integer_value(json_object_get(r, "target_bytes")), 33554432);
	json_decref(r);
	say(fd, "{\"v\":1,\"id\":10,\"cmd\":\"hint\"}\n");
	hear_error(fd, 10, "hint");
	close(fd);
	end();
}

Test(control, limit_and_reclaim_of_wrong_kind_or_size_refused)
{
	static const char *const bad[][2] = {
		{ "\"limit\"", "limit_bytes" },
		{ "\"limit\",\"limit_bytes\":\"1G\"", "limit_bytes" },
		{ "\"limit\",\"limit_bytes\":-1", "limit_bytes" },
		{ "\"limit\",\"limit_bytes\":16777215", "16777216" },
		{ "\"reclaim\"", "'bytes'" },
		{ "\"reclaim\",\"bytes\":0", "'bytes'" },
		{ "\"reclaim\",\"bytes\":67108865", "67108864" },
	};
	char line[128];
	json_t *r;
	int fd;

	begin();
	fd = join();
	for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
		snprintf(line, sizeof line, "{\"v\":1,\"id\":7,\"cmd\":%s}\n", bad[i][0]);
		say(fd, line);
		hear_error(fd, 7, bad[i][1]);
	}
	cr_assert_null(machine.engine, "a refused command makes none");
	say(fd, "{\"v\":1,\"id\":8,\"cmd\":\"limit\",\"limit_bytes\":0}\n");
	json_decref(hear_ok(fd, 8));
	cr_assert_null(machine.engine, "no limit needs none");
	say(fd, "{\"v\":1,\"id\":9,\"cmd\":\"status\"}\n");
	r = hear_ok(fd, 9);
	cr_assert(json_is_null(json_object_get(r, "engine")));
	json_decref(r);
	close(fd);
	end();
}

/* A description cannot say these, so they must have come all the way to be refused. */
Test(control, pool_settings_arrive_at_the_pool)
{
	int fd;

	begin();
	fd = join();
	vmm.cfg.pool_acceleration = 65;
	say(fd, "{\"v\":1,\"id\":7,\"cmd\":\"limit\",\"limit_bytes\":33554432}\n");
	hear_error(fd, 7, "acceleration 65");
	vmm.cfg.pool_acceleration = 64;
	vmm.cfg.pool_delta = SWAP_DELTA_SMALL + 1;
	say(fd, "{\"v\":1,\"id\":8,\"cmd\":\"limit\",\"limit_bytes\":33554432}\n");
	hear_error(fd, 8, "no such setting for deltas");
	close(fd);
	end();
}

/* With the right to use userfaultfd, which the tests of the engine skip without. */
Test(control, limit_makes_an_engine_that_status_tells_of)
{
	static const char *const keys[] = {
		"packed_bytes", "delta_bytes", "delta_saved_bytes", "delta_orphan_bytes", "disk_bytes",
		"disk_size_bytes", "disk_read_bytes", "disk_written_bytes", "disk_failures",
	};
	json_t *r;
	const json_t *g;
	int fd;

	begin();
	fd = join();
	say(fd, "{\"v\":1,\"id\":7,\"cmd\":\"limit\",\"limit_bytes\":33554432}\n");
	turn();
	if (!machine.engine)
		cr_skip_test("no userfaultfd here");
	json_decref(hear_ok(fd, 7));
	cr_assert_eq(vmm.cfg.memory_limit_bytes, 32 * MiB, "for the next boot");
	say(fd, "{\"v\":1,\"id\":8,\"cmd\":\"reclaim\",\"bytes\":1048576}\n");
	json_decref(hear_ok(fd, 8));
	say(fd, "{\"v\":1,\"id\":9,\"cmd\":\"status\"}\n");
	r = hear_ok(fd, 9);
	g = json_object_get(r, "engine");
	cr_assert_eq(json_integer_value(json_object_get(g, "limit_bytes")), 32 * MiB);
	for (size_t i = 0; i < ARRAY_LEN(keys); i++)
		cr_assert(json_is_integer(json_object_get(g, keys[i])), "%s", keys[i]);
	cr_assert_eq(json_array_size(json_object_get(g, "cold_bytes")), 6);
	json_decref(r);
	close(fd);
	end();
}

/* A brimd that takes connections and says nothing. */
static int listen_as_brimd(void)
{
	struct sockaddr_un sa = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);

	snprintf(sa.sun_path, sizeof sa.sun_path, "%s/brimd.sock", dir);
	cr_assert_eq(bind(fd, (const struct sockaddr *)&sa, sizeof sa), 0);
	cr_assert_eq(listen(fd, 8), 0);
	return fd;
}

static void forget_brimd(int fd)
{
	char name[80];

	close(fd);
	snprintf(name, sizeof name, "%s/brimd.sock", dir);
	unlink(name);
}

static const char *sharing_of(json_t **status, const char *key)
{
	*status = sharing_json(&machine);
	return json_string_value(json_object_get(*status, key));
}

Test(control, sharing_begins_when_a_brimd_answers)
{
	json_t *s;
	char group[64];
	int fd;

	begin();
	snprintf(vmm.cfg.run_dir, sizeof vmm.cfg.run_dir, "%s/vm", dir);
	snprintf(group, sizeof group, "uid-%u", (unsigned)geteuid());
	machine.loop = vmm.loop;
	cr_assert_eq(sharing_init(&machine, &e), 0, "%s", e.msg);
	cr_assert_null(machine.engine, "there is nobody to share with");
	fd = listen_as_brimd();
	while (machine.share_looks)
		loop_turn(vmm.loop, 5000);
	cr_assert_str_eq(sharing_of(&s, "group"), group);
	json_decref(s);
	if (!machine.engine) {
		cr_assert_str_eq(sharing_of(&s, "state"), "impossible");
		json_decref(s);
		cr_skip_test("no userfaultfd here");
	}
	while (strcmp(sharing_of(&s, "state"), "joining") != 0)
		json_decref(s);
	json_decref(s);
	forget_brimd(fd);
	end();
}

Test(control, sharing_begins_at_once_where_a_brimd_is_there)
{
	int fd;

	begin();
	snprintf(vmm.cfg.run_dir, sizeof vmm.cfg.run_dir, "%s/vm", dir);
	snprintf(vmm.cfg.share.group, sizeof vmm.cfg.share.group, "blue");
	machine.loop = vmm.loop;
	fd = listen_as_brimd();
	cr_assert_eq(sharing_init(&machine, &e), 0, "%s", e.msg);
	cr_assert(!machine.share_looks && (machine.engine || machine.share_error[0]));
	forget_brimd(fd);
	end();
}

Test(control, vm_that_opts_out_does_not_share)
{
	json_t *s;
	int fd;

	begin();
	snprintf(vmm.cfg.run_dir, sizeof vmm.cfg.run_dir, "%s/vm", dir);
	snprintf(vmm.cfg.share.group, sizeof vmm.cfg.share.group, "none");
	machine.loop = vmm.loop;
	fd = listen_as_brimd();
	cr_assert_eq(sharing_init(&machine, &e), 0, "%s", e.msg);
	cr_assert(!machine.engine && !machine.share_looks);
	s = sharing_json(&machine);
	cr_assert(json_is_null(s));
	json_decref(s);
	forget_brimd(fd);
	end();
}

Test(control, status_has_every_key_of_its_description)
{
	static const char *const keys[] = {
		"name", "pid", "state", "uptime_s", "memory_bytes", "cpus", "kernel",
		"resident_bytes", "vmm_bytes", "reboots", "engine", "sharing", "balloon", "guest", "disks",
		"nets", "vcpus",
	};
	json_t *r;
	int fd;

	begin();
	vmm.cfg.disk_count = 1;
	snprintf(vmm.cfg.disks[0].path, sizeof vmm.cfg.disks[0].path, "/d");
	memset(ram_at(machine.ram, gpa(0), 3 * PAGE_BYTES), 1, 3 * PAGE_BYTES);
	fd = join();
	say(fd, "{\"v\":1,\"id\":7,\"cmd\":\"status\"}\n");
	r = hear_ok(fd, 7);
	for (size_t i = 0; i < ARRAY_LEN(keys); i++)
		cr_assert(json_object_get(r, keys[i]), "%s", keys[i]);
	cr_assert_eq(json_integer_value(json_object_get(r, "resident_bytes")), 3 * PAGE_BYTES);
	cr_assert_eq(json_array_size(json_object_get(r, "disks")), 1);
	cr_assert_eq(json_array_size(json_object_get(r, "vcpus")), 2);
	json_decref(r);
	close(fd);
	end();
}

Test(control, stats_has_every_counter)
{
	json_t *r;
	int fd;

	begin();
	fd = join();
	say(fd, "{\"v\":1,\"id\":7,\"cmd\":\"stats\"}\n");
	r = hear_ok(fd, 7);
	for (unsigned i = 0; i < CTR_COUNT_; i++)
		cr_assert(json_is_integer(json_object_get(json_object_get(r, "counters"),
							  counter_table[i].name)));
	json_decref(r);
	close(fd);
	end();
}

Test(control, socket_path_too_long_refused)
{
	struct control *none = NULL;
	char far[200];

	begin();
	memset(far, 'x', sizeof far - 1);
	far[sizeof far - 1] = '\0';
	cr_assert_eq(control_create(&none, &vmm, far, &e), -ENAMETOOLONG);
	cr_assert_null(none);
	cr_assert(strstr(e.msg, "BRIM_RUN_DIR"), "%s", e.msg);
	end();
}

Test(control, socket_is_the_owners_alone)
{
	struct stat st;

	begin();
	cr_assert_eq(stat(path, &st), 0);
	cr_assert_eq(st.st_mode & 0777, 0600);
	end();
}
