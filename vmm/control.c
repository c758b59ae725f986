/*
 * The control socket: newline-delimited JSON, one request a line, answered in
 * order.  docs/control.md is its description for others.
 *
 *   {"v":1,"id":7,"cmd":"balloon","target_bytes":1073741824}
 *   {"v":1,"id":7,"ok":true,"result":{"target_bytes":1073741824}}
 *   {"v":1,"id":7,"ok":false,"error":"balloon: ..."}
 *
 * Loop thread only.  A client is the operator, but may be broken: a line that is
 * not JSON gets an error, one that is too long an error and the end of the
 * connection; a client that does not read its replies is closed rather than
 * waited for.
 */
#include <dirent.h>
#include <errno.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "vmm/client.h"
#include "vmm/internal.h"

#define CLIENTS_MAX 16u
#define LINE_MAX_BYTES 65536u

struct ctl_client {
	struct control *ctl;
	int fd; /* -1: free */
	size_t len;
	bool waiting; /* asked for `wait` */
	json_int_t wait_id;
	char *line; /* LINE_MAX_BYTES while connected */
};

struct control {
	struct vmm *vmm;
	int listen_fd;
	char path[PATH_MAX];
	struct ctl_client clients[CLIENTS_MAX];
};

/* A command: fills *result (new reference) and returns 0, or -errno and *e. */
struct command {
	const char *name;
	int (*run)(struct vmm *vmm, const json_t *args, json_t **result, struct err *e);
};

/* ---- status ----------------------------------------------------------------- */

static uint64_t own_rss_bytes(void)
{
	unsigned long size, rss = 0;
	FILE *f = fopen("/proc/self/statm", "re");

	if (!f)
		return 0;
	if (fscanf(f, "%lu %lu", &size, &rss) != 2)
		rss = 0;
	fclose(f);
	return rss * PAGE_BYTES;
}

static const char *state_name(const struct vmm *vmm)
{
	if (vmm->machine->paused)
		return "paused";
	return vmm->stopping ? "stopping" : "running";
}

static json_t *balloon_json(const struct balloon_status *s)
{
	return json_pack("{s:b,s:I,s:I,s:I,s:I,s:I,s:b}", "ready", s->driver_ready,
			 "target_bytes", (json_int_t)s->target_bytes,
			 "actual_bytes", (json_int_t)s->actual_bytes,
			 "ballooned_bytes", (json_int_t)s->ballooned_bytes,
			 "reported_bytes", (json_int_t)s->reported_bytes,
			 "hinted_bytes", (json_int_t)s->hinted_bytes,
			 "hinting_active", s->hinting_active);
}

static json_t *guest_json(const struct balloon_guest_stats *g)
{
	const struct { const char *name; uint64_t v; } rows[] = {
		{ "free_bytes", g->free_bytes }, { "total_bytes", g->total_bytes },
		{ "available_bytes", g->available_bytes },
		{ "disk_caches_bytes", g->disk_caches_bytes },
		{ "swap_in", g->swap_in }, { "swap_out", g->swap_out },
		{ "major_faults", g->major_faults }, { "minor_faults", g->minor_faults },
		{ "hugetlb_allocations", g->hugetlb_allocations },
		{ "hugetlb_failures", g->hugetlb_failures },
		{ "oom_kills", g->oom_kills }, { "alloc_stalls", g->alloc_stalls },
		{ "scan_async", g->scan_async }, { "scan_direct", g->scan_direct },
		{ "reclaim_async", g->reclaim_async }, { "reclaim_direct", g->reclaim_direct },
	};
	json_t *o = json_object();

	if (!g->received_ns)
		return o; /* nothing came yet */
	for (size_t i = 0; i < ARRAY_LEN(rows); i++)
		if (rows[i].v <= INT64_MAX)
			json_object_set_new(o, rows[i].name, json_integer((json_int_t)rows[i].v));
	json_object_set_new(o, "age_s", json_real((double)(now_ns() - g->received_ns) / 1e9));
	return o;
}

static json_t *disks_json(const struct vm_config *cfg)
{
	json_t *list = json_array();

	for (unsigned i = 0; i < cfg->disk_count; i++) {
		char label[16];

		snprintf(label, sizeof label, "disk%u", i);
		json_array_append_new(list, json_pack("{s:s,s:s,s:b}", "label", label, "path",
						      cfg->disks[i].path, "readonly",
						      cfg->disks[i].readonly));
	}
	return list;
}

static json_t *nets_json(const struct vmm *vmm)
{
	const struct machine *m = vmm->machine;
	json_t *list = json_array();

	for (unsigned i = 0; i < vmm->cfg.net_count; i++) {
		struct virtio_dev *dev = m->devs[vmm->cfg.disk_count + i];
		char mac[18];
		uint8_t b[6];

		dev->ops->config_read(dev, 0, b, sizeof b); /* fixed at create */
		snprintf(mac, sizeof mac, "%02x:%02x:%02x:%02x:%02x:%02x", b[0], b[1], b[2], b[3],
			 b[4], b[5]);
		json_array_append_new(list, json_pack("{s:s,s:s,s:s}", "label", dev->label, "tap",
						      vmm->cfg.nets[i].tap, "mac", mac));
	}
	return list;
}

static json_t *vcpus_json(const struct machine *m)
{
	json_t *list = json_array();

	for (unsigned i = 0; i < m->cfg->cpus; i++)
		json_array_append_new(list, json_pack("{s:i,s:i}", "index", (int)i, "tid",
						      (int)m->vcpus[i].tid));
	return list;
}

static int cmd_status(struct vmm *vmm, const json_t *args, json_t **result, struct err *e)
{
	struct machine *m = vmm->machine;
	struct balloon_guest_stats guest;
	struct balloon_status balloon;
	uint64_t resident = 0, rss, away;
	int rc = ram_resident_bytes(m->ram, &resident);

	if (rc)
		return err_sys(e, rc, "status: counting resident memory");
	rss = own_rss_bytes();
	away = resident + memory_away_bytes(m);
	virtio_balloon_status(m->balloon, &balloon, &guest);
	*result = json_pack("{s:s,s:i,s:s,s:f,s:I,s:i,s:s,s:I,s:I,s:i,s:o,s:o,s:o,s:o,s:o,s:o,s:o}",
			    "name", vmm->cfg.name, "pid", (int)getpid(), "state", state_name(vmm),
			    "uptime_s", (double)(now_ns() - vmm->start_ns) / 1e9,
			    "memory_bytes", (json_int_t)vmm->cfg.memory_bytes,
			    "cpus", (int)vmm->cfg.cpus, "kernel", vmm->cfg.kernel,
			    "resident_bytes", (json_int_t)resident,
			    "vmm_bytes", (json_int_t)(rss > away ? rss - away : 0),
			    "reboots", (int)vmm->reboots,
			    "engine", memory_json(m), "sharing", sharing_json(m),
			    "balloon", balloon_json(&balloon), "guest", guest_json(&guest),
			    "disks", disks_json(&vmm->cfg), "nets", nets_json(vmm),
			    "vcpus", vcpus_json(m));
	return *result ? 0 : err_set(e, -ENOMEM, "status: out of memory");
}

static int cmd_stats(struct vmm *vmm, const json_t *args, json_t **result, struct err *e)
{
	json_t *counters = json_object();

	for (unsigned i = 0; i < CTR_COUNT_; i++)
		json_object_set_new(counters, counter_table[i].name,
				    json_integer((json_int_t)counter_get((enum counter)i)));
	*result = json_pack("{s:o}", "counters", counters);
	return *result ? 0 : err_set(e, -ENOMEM, "stats: out of memory");
}

/* ---- the other commands ------------------------------------------------------ */

static int cmd_stop(struct vmm *vmm, const json_t *args, json_t **result, struct err *e)
{
	vmm_stop(vmm);
	return 0;
}

static int cmd_kill(struct vmm *vmm, const json_t *args, json_t **result, struct err *e)
{
	machine_end(vmm->machine, VM_END_KILLED, "killed by the operator");
	return 0;
}

static int cmd_pause(struct vmm *vmm, const json_t *args, json_t **result, struct err *e)
{
	int rc = machine_pause(vmm->machine);

	if (rc)
		return err_set(e, rc, "pause: the VM is ending");
	*result = json_pack("{s:s}", "state", state_name(vmm));
	return 0;
}

static int cmd_resume(struct vmm *vmm, const json_t *args, json_t **result, struct err *e)
{
	machine_resume(vmm->machine);
	*result = json_pack("{s:s}", "state", state_name(vmm));
	return 0;
}

static int cmd_balloon(struct vmm *vmm, const json_t *args, json_t **result, struct err *e)
{
	const json_t *target = json_object_get(args, "target_bytes");
	json_int_t bytes = json_integer_value(target);
	int rc;

	if (!json_is_integer(target) || bytes < 0)
		return err_set(e, -EINVAL, "balloon: 'target_bytes' must be a whole number of bytes");
	rc = virtio_balloon_set_target(vmm->machine->balloon, (uint64_t)bytes);
	if (rc)
		return err_set(e, rc, "balloon: %lld bytes asked for, but the VM has %llu",
			       (long long)bytes, (unsigned long long)vmm->cfg.memory_bytes);
	*result = json_pack("{s:I}", "target_bytes", bytes);
	return 0;
}

static int cmd_limit(struct vmm *vmm, const json_t *args, json_t **result, struct err *e)
{
	const json_t *limit = json_object_get(args, "limit_bytes");
	json_int_t bytes = json_integer_value(limit);
	int rc;

	if (!json_is_integer(limit) || bytes < 0)
		return err_set(e, -EINVAL, "limit: 'limit_bytes' must be a whole number of bytes");
	if (bytes && (uint64_t)bytes < VM_LIMIT_MIN_BYTES)
		return err_set(e, -EINVAL, "limit: %lld bytes asked for, the least is %llu",
			       (long long)bytes, (unsigned long long)VM_LIMIT_MIN_BYTES);
	rc = memory_limit(vmm->machine, (uint64_t)bytes, e);
	if (rc)
		return rc;
	vmm->cfg.memory_limit_bytes = (uint64_t)bytes; /* for the next boot, too */
	*result = json_pack("{s:I}", "limit_bytes", bytes);
	return 0;
}

static int cmd_reclaim(struct vmm *vmm, const json_t *args, json_t **result, struct err *e)
{
	const json_t *arg = json_object_get(args, "bytes");
	json_int_t bytes = json_integer_value(arg);
	int rc;

	if (!json_is_integer(arg) || bytes <= 0)
		return err_set(e, -EINVAL, "reclaim: 'bytes' must be a whole number of bytes, above 0");
	if ((uint64_t)bytes > vmm->cfg.memory_bytes)
		return err_set(e, -EINVAL, "reclaim: %lld bytes asked for, but the VM has %llu",
			       (long long)bytes, (unsigned long long)vmm->cfg.memory_bytes);
	rc = memory_reclaim(vmm->machine, (uint64_t)bytes, e);
	if (rc)
		return rc;
	*result = json_pack("{s:I}", "bytes", bytes);
	return 0;
}

static int cmd_hint(struct vmm *vmm, const json_t *args, json_t **result, struct err *e)
{
	int rc = virtio_balloon_hint(vmm->machine->balloon);

	if (rc == -ENOTSUP)
		return err_set(e, rc, "hint: the guest's driver does not do free page hinting");
	if (rc)
		return err_set(e, rc, "hint: a round is under way");
	return 0;
}

static int cmd_detach(struct vmm *vmm, const json_t *args, json_t **result, struct err *e)
{
	prctl(PR_SET_PDEATHSIG, 0);
	vmm->cfg.die_with_parent = false;
	return 0;
}

static const struct command commands[] = {
	{ "status", cmd_status },   { "stats", cmd_stats },   { "stop", cmd_stop },
	{ "kill", cmd_kill },       { "pause", cmd_pause },   { "resume", cmd_resume },
	{ "balloon", cmd_balloon }, { "hint", cmd_hint },     { "detach", cmd_detach },
	{ "limit", cmd_limit },     { "reclaim", cmd_reclaim },
};

/* ---- the connection ----------------------------------------------------------- */

static void client_close(struct ctl_client *c)
{
	loop_unwatch(c->ctl->vmm->loop, c->fd);
	close(c->fd);
	free(c->line);
	*c = (struct ctl_client){ .ctl = c->ctl, .fd = -1 };
}

/* Sends one reply; `reply` is released.  False: the connection was closed. */
static bool client_reply(struct ctl_client *c, json_t *reply)
{
	char *text = json_dumps(reply, JSON_COMPACT);
	size_t len = text ? strlen(text) : 0;
	ssize_t n = -1;

	json_decref(reply);
	if (text) {
		text[len] = '\n'; /* in place of the terminator: the length is known */
		n = send(c->fd, text, len + 1, MSG_NOSIGNAL | MSG_DONTWAIT);
		free(text);
	}
	if (n == (ssize_t)len + 1)
		return true;
	client_close(c); /* it does not read, or is gone */
	return false;
}

static bool client_error(struct ctl_client *c, json_int_t id, const char *sentence)
{
	return client_reply(c, json_pack("{s:i,s:I,s:b,s:s}", "v", CTL_VERSION, "id", id, "ok", 0,
					 "error", sentence));
}

static const struct command *find_command(const char *name)
{
	for (size_t i = 0; i < ARRAY_LEN(commands); i++)
		if (strcmp(commands[i].name, name) == 0)
			return &commands[i];
	return NULL;
}

static bool run_command(struct ctl_client *c, const char *name, json_int_t id, const json_t *req)
{
	const struct command *cmd = find_command(name);
	json_t *result = NULL;
	struct err e = { "" };
	bool shown = strlen(name) <= 64;

	if (!cmd) {
		counter_inc(CTR_control_bad_requests);
		/* never cut: half a UTF-8 sequence could not be sent */
		snprintf(e.msg, sizeof e.msg, "unknown command%s%s%s", shown ? " '" : "",
			 shown ? name : "", shown ? "'" : "");
		return client_error(c, id, e.msg);
	}
	counter_inc(CTR_control_requests);
	if (cmd->run(c->ctl->vmm, req, &result, &e))
		return client_error(c, id, e.msg);
	publish_now(c->ctl->vmm->publish); /* who asked may look there next */
	return client_reply(c, json_pack("{s:i,s:I,s:b,s:o}", "v", CTL_VERSION, "id", id, "ok", 1,
					 "result", result ? result : json_object()));
}

/* May close the connection. */
static void handle_line(struct ctl_client *c, const char *line, size_t len)
{
	json_t *req = json_loadb(line, len, JSON_REJECT_DUPLICATES, NULL);
	const json_t *v = json_object_get(req, "v"), *id = json_object_get(req, "id");
	const char *cmd = json_string_value(json_object_get(req, "cmd"));

	if (!cmd || !json_is_integer(id)) {
		counter_inc(CTR_control_bad_requests);
		client_error(c, 0, "a request is one line of JSON with \"v\", \"id\" and \"cmd\"");
	} else if (json_integer_value(v) != CTL_VERSION) {
		counter_inc(CTR_control_bad_requests);
		client_error(c, json_integer_value(id), "protocol version 1 is spoken here");
	} else if (strcmp(cmd, "wait") == 0) {
		c->waiting = true;
		c->wait_id = json_integer_value(id);
	} else {
		run_command(c, cmd, json_integer_value(id), req);
	}
	json_decref(req);
}

/* Takes no more than one line out of the socket, so that the next one is another
 * turn's: `status` looks at all of the guest's memory, and its devices wait. */
static ssize_t client_take(struct ctl_client *c)
{
	char *to = c->line + c->len;
	ssize_t n = recv(c->fd, to, LINE_MAX_BYTES - c->len, MSG_DONTWAIT | MSG_PEEK);
	const char *end = n > 0 ? memchr(to, '\n', (size_t)n) : NULL;

	if (n <= 0)
		return n;
	return recv(c->fd, to, end ? (size_t)(end - to) + 1 : (size_t)n, MSG_DONTWAIT);
}

static void client_event(void *arg, unsigned events)
{
	struct ctl_client *c = arg;
	ssize_t n = client_take(c);

	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	if (n <= 0) {
		client_close(c);
		return;
	}
	c->len += (size_t)n;
	if (c->line[c->len - 1] == '\n') {
		size_t len = c->len - 1;

		c->len = 0;
		handle_line(c, c->line, len);
	} else if (c->len == LINE_MAX_BYTES) {
		counter_inc(CTR_control_bad_requests);
		if (client_error(c, 0, "a request longer than 65536 bytes"))
			client_close(c);
	}
}

static void on_accept(void *arg, unsigned events)
{
	struct control *ctl = arg;
	int fd = accept4(ctl->listen_fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
	unsigned i = 0;

	if (fd < 0)
		return;
	while (i < CLIENTS_MAX && ctl->clients[i].fd >= 0)
		i++;
	if (i < CLIENTS_MAX) {
		struct ctl_client *c = &ctl->clients[i];

		*c = (struct ctl_client){ .ctl = ctl, .fd = fd, .line = malloc(LINE_MAX_BYTES) };
		if (c->line && loop_watch(ctl->vmm->loop, fd, VIRTIO_FD_IN, client_event, c) == 0)
			return;
		free(c->line);
		c->fd = -1;
	}
	log_warn("control: more than %u clients, or no memory: one refused", CLIENTS_MAX);
	close(fd);
}

int control_create(struct control **out, struct vmm *vmm, const char *path, struct err *e)
{
	struct control *ctl = calloc(1, sizeof *ctl);
	int rc;

	if (!ctl)
		return err_set(e, -ENOMEM, "control socket: out of memory");
	ctl->vmm = vmm;
	for (unsigned i = 0; i < CLIENTS_MAX; i++)
		ctl->clients[i] = (struct ctl_client){ .ctl = ctl, .fd = -1 };
	snprintf(ctl->path, sizeof ctl->path, "%s", path);
	ctl->listen_fd = socket_listen(path, e);
	if (ctl->listen_fd < 0) {
		rc = ctl->listen_fd;
		free(ctl);
		return rc;
	}
	rc = loop_watch(vmm->loop, ctl->listen_fd, VIRTIO_FD_IN, on_accept, ctl);
	*out = ctl;
	if (rc) {
		control_destroy(out, "error", "");
		return err_sys(e, rc, "control socket: event loop");
	}
	return 0;
}

void control_destroy(struct control **cp, const char *reason, const char *detail)
{
	struct control *ctl = *cp;

	if (!ctl)
		return;
	for (unsigned i = 0; i < CLIENTS_MAX; i++) {
		struct ctl_client *c = &ctl->clients[i];
		bool open = c->fd >= 0;

		if (open && c->waiting)
			open = client_reply(c, json_pack("{s:i,s:I,s:b,s:{s:s,s:s}}", "v", CTL_VERSION,
							 "id", c->wait_id, "ok", 1, "result",
							 "reason", reason, "detail", detail));
		if (open)
			client_close(c);
	}
	loop_unwatch(ctl->vmm->loop, ctl->listen_fd);
	close(ctl->listen_fd);
	unlink(ctl->path);
	free(ctl);
	*cp = NULL;
}
