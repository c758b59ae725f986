/*
 * A brim-vmm without a guest, for the tests of `brim`: the same descriptors, run
 * directory and sockets.  $FAKE_VMM chooses how it misbehaves:
 *
 *	(unset)  the power button works, and so does the line "poweroff" on the console
 *	error    says "error: ..." instead of "ok"
 *	crash    aborts before it has said anything
 *	die      says "ok", then aborts, leaving its directory
 *	quick    says "ok" and is done at once, in order
 *	deaf     the guest ignores the power button
 *	lazy     never gets done with `reclaim`
 *	reboots  forgets `reclaim` at once, as if its guest had reset the machine
 *	nouffd   refuses `limit` and `reclaim`
 *	mute     accepts connections and never answers; ignores SIGTERM
 *	mum      has no file of statistics, as brim-vmm had none once
 *
 * One thread.  Not robust: it trusts whoever talks to it.
 */
#include <errno.h>
#include <jansson.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <fcntl.h>
#include <unistd.h>

#include "stats/shm.h"
#include "vmm/client.h"

#define CLIENTS_MAX 16
#define STATS_MS 200 /* its numbers move so often */
#define TAKEN_A_LOOK (64 * MiB) /* of what `reclaim` wants, whenever `status` is asked */
#define GREETING "fake guest\r\n"

enum kind { FREE, CONTROL, CONSOLE };

struct client {
	enum kind kind;
	int fd;
	bool waits;
	json_int_t wait_id;
	char line[4096];
	size_t used;
};

struct fake {
	const char *mode;
	json_t *config;
	struct vm_paths paths;
	int lock_fd, control_fd, console_fd, signal_fd;
	unsigned signals;
	const char *state;
	json_int_t target;
	bool engine; /* `limit`, `reclaim` or the description has asked for one */
	json_int_t limit, wanted, packed;
	const char *reason; /* NULL while it runs */
	struct client clients[CLIENTS_MAX];
};

static bool mode_is(const struct fake *f, const char *mode)
{
	return strcmp(f->mode, mode) == 0;
}

static _Noreturn void fail(const char *what)
{
	perror(what);
	exit(1);
}

static int listen_at(const char *path)
{
	struct sockaddr_un sa = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	memcpy(sa.sun_path, path, strlen(path) + 1);
	if (fd < 0 || bind(fd, (struct sockaddr *)&sa, sizeof(sa)) < 0 || listen(fd, 8) < 0)
		fail(path);
	return fd;
}

static void press_button(struct fake *f)
{
	f->state = "stopping";
	if (!mode_is(f, "deaf"))
		f->reason = "poweroff";
}

/* ---- control ---------------------------------------------------------------- */

/* As after some work: deltas always, a swap file where the description has one. */
static void add_tiers(const struct fake *f, json_t *engine)
{
	json_object_update_new(engine, json_pack("{s:I, s:I, s:I}", "delta_bytes", f->packed / 4,
						 "delta_saved_bytes", f->packed / 64,
						 "delta_orphan_bytes", f->packed / 1024));
	if (json_object_get(f->config, "swap"))
		json_object_update_new(engine, json_pack(
			"{s:I, s:I, s:I, s:I, s:I, s:I, s:i}", "disk_bytes", (json_int_t)(310 * MiB),
			"disk_live_bytes", (json_int_t)(80 * MiB), "disk_used_bytes", (json_int_t)(96 * MiB),
			"disk_size_bytes", (json_int_t)GiB, "disk_read_bytes", (json_int_t)(12 * MiB),
			"disk_written_bytes", (json_int_t)(400 * MiB), "disk_failures", 2));
}

static json_t *engine_status(struct fake *f)
{
	json_int_t take = f->wanted < (json_int_t)TAKEN_A_LOOK ? f->wanted : (json_int_t)TAKEN_A_LOOK;
	json_t *o = json_pack("{s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:[[i, I], [i, I]]}",
			      "limit_bytes", f->limit, "present_bytes", (json_int_t)(100 * MiB),
			      "staged_bytes", (json_int_t)(2 * MiB), "filled_bytes", (json_int_t)(10 * MiB),
			      "packed_bytes", f->packed, "pool_bytes", f->packed / 4,
			      "pool_overhead_bytes", f->packed / 64,
			      "own_bytes", (json_int_t)MiB, "wanted_bytes", f->wanted,
			      "cold_bytes", 1, (json_int_t)(90 * MiB), 2, (json_int_t)(30 * MiB));

	if (!f->engine || mode_is(f, "lazy"))
		take = 0;
	f->wanted -= take;
	add_tiers(f, o);
	f->packed += take;
	if (f->engine)
		return o;
	json_decref(o);
	return json_null();
}

static json_t *status(struct fake *f)
{
	return json_pack("{s:s, s:i, s:s, s:f, s:O, s:O, s:O, s:I, s:I, s:i, s:{s:b, s:I, s:I, s:I, s:I, "
			 "s:I}, s:{s:I, s:I, s:I, s:f}, s:[], s:[], s:[], s:o}",
			 "name", f->paths.name, "pid", (int)getpid(), "state", f->state, "uptime_s", 61.5,
			 "memory_bytes", json_object_get(f->config, "memory_bytes"),
			 "cpus", json_object_get(f->config, "cpus"),
			 "kernel", json_object_get(f->config, "kernel"),
			 "resident_bytes", (json_int_t)(100 * MiB), "vmm_bytes", (json_int_t)(3 * MiB),
			 "reboots", 0,
			 "balloon", "ready", true, "target_bytes", f->target, "actual_bytes", f->target,
			 "ballooned_bytes", f->target, "reported_bytes", (json_int_t)0,
			 "hinted_bytes", (json_int_t)0,
			 "guest", "free_bytes", (json_int_t)(600 * MiB), "available_bytes",
			 (json_int_t)(700 * MiB), "total_bytes", (json_int_t)(1000 * MiB), "age_s", 1.5,
			 "disks", "nets", "vcpus", "engine", engine_status(f));
}

static void reply(const struct client *c, json_int_t id, const char *error, json_t *result)
{
	json_t *o = json_pack("{s:i, s:I, s:b}", "v", 1, "id", id, "ok", error ? 0 : 1);
	char *text;

	if (error)
		json_object_set_new(o, "error", json_string(error));
	else
		json_object_set_new(o, "result", result ? result : json_object());
	text = json_dumps(o, JSON_COMPACT);
	dprintf(c->fd, "%s\n", text);
	free(text);
	json_decref(o);
}

static const char *use_engine(struct fake *f, json_int_t *where, json_int_t bytes)
{
	if (mode_is(f, "nouffd"))
		return "the host does not allow userfaultfd";
	if (where == &f->wanted && bytes > json_integer_value(json_object_get(f->config, "memory_bytes")))
		return "reclaim: more than the VM has";
	f->engine = !mode_is(f, "reboots");
	*where = bytes;
	return NULL;
}

static void answer(struct fake *f, struct client *c, const json_t *req)
{
	const char *cmd = json_string_value(json_object_get(req, "cmd"));
	json_int_t id = json_integer_value(json_object_get(req, "id"));
	const char *error = NULL;
	json_t *result = NULL;

	if (strcmp(cmd, "wait") == 0) {
		c->waits = true;
		c->wait_id = id;
		return;
	}
	if (strcmp(cmd, "status") == 0)
		result = status(f);
	else if (strcmp(cmd, "stats") == 0)
		result = json_pack("{s:{s:i, s:i}}", "counters", "ram_bad_gpa", 7, "fake_zero", 0);
	else if (strcmp(cmd, "balloon") == 0)
		f->target = json_integer_value(json_object_get(req, "target_bytes"));
	else if (strcmp(cmd, "limit") == 0)
		error = use_engine(f, &f->limit, json_integer_value(json_object_get(req, "limit_bytes")));
	else if (strcmp(cmd, "reclaim") == 0)
		error = use_engine(f, &f->wanted, json_integer_value(json_object_get(req, "bytes")));
	else if (strcmp(cmd, "pause") == 0)
		f->state = "paused";
	else if (strcmp(cmd, "resume") == 0)
		f->state = "running";
	else if (strcmp(cmd, "detach") == 0)
		prctl(PR_SET_PDEATHSIG, 0);
	else if (strcmp(cmd, "stop") == 0)
		press_button(f);
	else if (strcmp(cmd, "kill") == 0)
		f->reason = "killed";
	else
		error = "hint: the guest's driver does not do free page hinting";
	reply(c, id, error, result);
}

static void control_line(struct fake *f, struct client *c, const char *line)
{
	json_t *req;

	if (mode_is(f, "mute"))
		return;
	req = json_loads(line, 0, NULL);
	if (req)
		answer(f, c, req);
	json_decref(req);
}

/* ---- clients ------------------------------------------------------------------- */

static void add_client(struct fake *f, int listener, enum kind kind)
{
	int fd = accept(listener, NULL, NULL);

	for (int i = 0; i < CLIENTS_MAX && fd >= 0; i++)
		if (f->clients[i].kind == FREE) {
			f->clients[i] = (struct client){ .kind = kind, .fd = fd };
			if (kind == CONSOLE && write(fd, GREETING, sizeof(GREETING) - 1) < 0)
				fail("greeting");
			return;
		}
}

static void drop(struct client *c)
{
	close(c->fd);
	c->kind = FREE;
}

static void take_line(struct fake *f, struct client *c, const char *line)
{
	if (c->kind == CONTROL)
		control_line(f, c, line);
	else if (strncmp(line, "poweroff", 8) == 0)
		f->reason = "poweroff";
	else
		dprintf(c->fd, "you said %s\r\n", line);
}

static void serve(struct fake *f, struct client *c)
{
	ssize_t n = read(c->fd, c->line + c->used, sizeof(c->line) - 1 - c->used);
	char *end;

	if (n <= 0) {
		drop(c);
		return;
	}
	c->used += (size_t)n;
	c->line[c->used] = '\0';
	while ((end = strpbrk(c->line, "\r\n"))) {
		size_t used = (size_t)(end - c->line) + 1;

		*end = '\0';
		take_line(f, c, c->line);
		memmove(c->line, c->line + used, c->used - used + 1);
		c->used -= used;
	}
}

static void on_signal(struct fake *f)
{
	struct signalfd_siginfo info;

	if (read(f->signal_fd, &info, sizeof(info)) != sizeof(info) || mode_is(f, "mute"))
		return;
	if (f->signals++)
		f->reason = "killed";
	else
		press_button(f);
}

/* Books that balance, and a guest that misses 10 packed pages each time, for 2 ms in all. */
static void publish(const struct fake *f)
{
	uint64_t memory = (uint64_t)json_integer_value(json_object_get(f->config, "memory_bytes"));
	uint64_t packed = 64 * MiB, resident = 100 * MiB, filled = 10 * MiB;

	counter_add(CTR_engine_faults_packed, 10);
	counter_add(CTR_vcpu_stall_ns, 2000000);
	for (unsigned i = 0; i < 10; i++)
		histogram_add(HIST_fault_ns, 12000);
	stats_begin();
	gauge_set(GAUGE_state, strcmp(f->state, "paused") == 0 ? 2 : 1);
	gauge_set(GAUGE_vcpus, (uint64_t)json_integer_value(json_object_get(f->config, "cpus")));
	gauge_set(GAUGE_memory_bytes, memory);
	gauge_set(GAUGE_limit_bytes, (uint64_t)f->limit);
	gauge_set(GAUGE_resident_bytes, resident);
	gauge_set(GAUGE_working_set_bytes, 80 * MiB);
	gauge_set(GAUGE_filled_bytes, filled);
	gauge_set(GAUGE_packed_bytes, packed);
	gauge_set(GAUGE_pool_bytes, packed / 4);
	gauge_set(GAUGE_ballooned_bytes, (uint64_t)f->target);
	gauge_set(GAUGE_untouched_bytes, memory - packed - resident - filled - (uint64_t)f->target);
	gauge_set(GAUGE_guest_free_bytes, GAUGE_UNKNOWN);
	stats_end();
}

static void turn(struct fake *f)
{
	struct pollfd p[CLIENTS_MAX + 3] = {
		{ .fd = f->control_fd, .events = POLLIN },
		{ .fd = f->console_fd, .events = POLLIN },
		{ .fd = f->signal_fd, .events = POLLIN },
	};

	for (int i = 0; i < CLIENTS_MAX; i++)
		p[i + 3] = (struct pollfd){ .fd = f->clients[i].kind == FREE ? -1 : f->clients[i].fd,
					    .events = POLLIN };
	if (poll(p, ARRAY_LEN(p), STATS_MS) < 0)
		return;
	publish(f);
	for (int i = 0; i < CLIENTS_MAX; i++)
		if (p[i + 3].revents)
			serve(f, &f->clients[i]);
	if (p[0].revents)
		add_client(f, f->control_fd, CONTROL);
	if (p[1].revents)
		add_client(f, f->console_fd, CONSOLE);
	if (p[2].revents)
		on_signal(f);
}

/* ---- life ------------------------------------------------------------------------ */

static void start(struct fake *f, int config_fd)
{
	struct err e;
	sigset_t set;

	signal(SIGPIPE, SIG_IGN);
	sigemptyset(&set);
	sigaddset(&set, SIGTERM);
	sigprocmask(SIG_BLOCK, &set, NULL);
	f->signal_fd = signalfd(-1, &set, SFD_CLOEXEC);
	f->config = json_loadfd(config_fd, 0, NULL);
	if (!f->config || vm_paths_from_dir(&f->paths, json_string_value(
				json_object_get(f->config, "run_dir")), &e) ||
	    rundir_claim(&f->paths, &f->lock_fd, &e)) {
		dprintf(4, "error: %s\n", f->config ? e.msg : "bad description");
		exit(1);
	}
	f->limit = json_integer_value(json_object_get(f->config, "memory_limit_bytes"));
	f->engine = f->limit > 0;
	if (json_is_true(json_object_get(f->config, "die_with_parent")))
		prctl(PR_SET_PDEATHSIG, SIGTERM);
	if (!mode_is(f, "mum") && stats_create(f->paths.stats, &e)) {
		dprintf(4, "error: %s\n", e.msg);
		exit(1);
	}
	f->control_fd = listen_at(f->paths.control);
	f->console_fd = listen_at(f->paths.console);
}

static void take_output(const struct fake *f)
{
	int fd = open(f->paths.log, O_WRONLY | O_CREAT | O_APPEND, 0600);

	if (fd < 0)
		fail("log");
	dup2(fd, 1);
	dup2(fd, 2);
	close(fd);
	log_line(LOG_INFO, "the fake runs");
}

static void end(struct fake *f)
{
	for (int i = 0; i < CLIENTS_MAX; i++) {
		if (f->clients[i].waits)
			reply(&f->clients[i], f->clients[i].wait_id, NULL,
			      json_pack("{s:s, s:s}", "reason", f->reason, "detail", "as asked"));
		if (f->clients[i].kind != FREE)
			close(f->clients[i].fd);
	}
	json_decref(f->config);
	rundir_release(&f->paths, &f->lock_fd);
}

int main(int argc, char **argv)
{
	static struct fake f = { .lock_fd = -1, .state = "running" };
	int config_fd = argc > 4 ? atoi(argv[2]) : -1, ready_fd = argc > 4 ? atoi(argv[4]) : -1;

	f.mode = getenv("FAKE_VMM") ? getenv("FAKE_VMM") : "";
	start(&f, config_fd);
	if (mode_is(&f, "error")) {
		dprintf(ready_fd, "error: kernel /x: the fake does not like it\n");
		rundir_release(&f.paths, &f.lock_fd);
		return 1;
	}
	if (mode_is(&f, "crash"))
		abort();
	take_output(&f);
	dprintf(ready_fd, "ok\n");
	close(ready_fd);
	if (mode_is(&f, "die")) {
		log_line(LOG_ERROR, "the fake dies now");
		abort();
	}
	if (mode_is(&f, "quick"))
		f.reason = "poweroff";
	while (!f.reason)
		turn(&f);
	end(&f);
	return strcmp(f.reason, "killed") == 0 ? 3 : 0;
}
