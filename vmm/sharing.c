/*
 * A VM's part in sharing equal pages: when it begins, and what is said of it.
 *
 *   waiting for brimd ──its socket answers──► engine made, if there is none; thread started
 *
 * A VM has neither engine nor thread for it before there is a brimd to share through: a
 * timer of the loop looks, and a look is one attempt to connect.  Once started the thread
 * looks for itself, until this boot ends.
 *
 * What was loaded into guest RAM is told to the thread before it starts, where there is a
 * brimd by then.  Nobody waits for what comes of it: vCPUs start at once, and find the pages
 * that were given up mapped from the store, or wait some microseconds for one that just is.
 *
 * Where the engine cannot be made (no right to use userfaultfd, say) the VM runs without
 * sharing, and its status says why.
 *
 * Thread: the loop's.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include "vmm/internal.h"

#define LOOK_S 2

static bool is_off(const struct machine *m)
{
	return strcmp(m->cfg->share.group, VM_SHARE_NONE) == 0;
}

static void group_of(const struct machine *m, char group[VM_NAME_MAX])
{
	if (m->cfg->share.group[0])
		snprintf(group, VM_NAME_MAX, "%s", m->cfg->share.group);
	else
		snprintf(group, VM_NAME_MAX, "uid-%u", (unsigned)geteuid());
}

/* brimd's, beside the directories of the VMs.  It fits: console.sock did, one deeper. */
static void socket_of(const struct machine *m, char path[RUN_PATH_MAX])
{
	const char *end = strrchr(m->cfg->run_dir, '/');
	int len = end ? (int)(end - m->cfg->run_dir) : 0;

	snprintf(path, RUN_PATH_MAX, "%.*s/brimd.sock", len, m->cfg->run_dir);
}

int sharing_create(struct machine *m, struct err *e)
{
	char socket[RUN_PATH_MAX], group[VM_NAME_MAX];
	struct ksm_config cfg = { .socket = socket, .vm = m->cfg->name, .group = group,
				  .cpu_pct = m->cfg->share.cpu_pct,
				  .pages_per_s = m->cfg->share.pages_per_s };

	if (is_off(m))
		return 0;
	socket_of(m, socket);
	group_of(m, group);
	return ksm_create(&m->ksm, &cfg, e);
}

static void stop_looking(struct machine *m)
{
	if (!m->share_looks)
		return;
	loop_unwatch(m->loop, m->share_timer_fd);
	close(m->share_timer_fd);
	m->share_looks = false;
}

/* Kernel and initrd, by whole pages: what is in the rest of one was zeroed. */
static void tell_loaded(struct machine *m)
{
	for (unsigned i = 0; i < m->loaded.count; i++) {
		const struct ram_range *r = &m->loaded.at[i];
		uint64_t end = (r->addr.v + r->len_bytes + PAGE_BYTES - 1) >> PAGE_SHIFT;
		uint64_t from = r->addr.v >> PAGE_SHIFT, index;

		if (ram_index_of(m->ram, (gfn_t){ from }, &index))
			ksm_loaded(m->ksm, index, end - from);
	}
}

/* True: there is nothing to look for any more. */
static bool begin(struct machine *m)
{
	char socket[RUN_PATH_MAX];
	struct err e = { "" };
	int rc;

	socket_of(m, socket);
	if (!ksm_listens(socket))
		return false;
	rc = m->engine ? 0 : memory_make(m, &e);
	if (!rc && !m->share_looks) /* else the guest has long begun */
		tell_loaded(m);
	if (!rc)
		rc = ksm_start(m->ksm, &e);
	if (rc) {
		log_warn("no sharing: %s", e.msg);
		snprintf(m->share_error, sizeof(m->share_error), "%s", e.msg);
	}
	return true;
}

static void on_timer(void *arg, unsigned events)
{
	struct machine *m = arg;
	uint64_t times;

	(void)events;
	if (read(m->share_timer_fd, &times, sizeof(times)) == (ssize_t)sizeof(times) && begin(m))
		stop_looking(m);
}

int sharing_init(struct machine *m, struct err *e)
{
	const struct itimerspec every = { { LOOK_S, 0 }, { LOOK_S, 0 } };
	int rc;

	if (is_off(m) || begin(m))
		return 0;
	m->share_timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
	if (m->share_timer_fd < 0)
		return err_sys(e, -errno, "sharing: a timer");
	m->share_looks = true;
	timerfd_settime(m->share_timer_fd, 0, &every, NULL);
	rc = loop_watch(m->loop, m->share_timer_fd, VIRTIO_FD_IN, on_timer, m);
	return rc ? err_sys(e, rc, "sharing: event loop") : 0;
}

void sharing_stop(struct machine *m)
{
	stop_looking(m);
	ksm_stop(m->ksm);
}

json_t *sharing_json(const struct machine *m)
{
	struct ksm_status s = { .state = KSM_WAITING };
	char group[VM_NAME_MAX];

	if (is_off(m))
		return json_null();
	group_of(m, group);
	if (m->ksm)
		ksm_status(m->ksm, &s);
	if (m->share_error[0])
		return json_pack("{s:s,s:s,s:s}", "group", group, "state", "impossible", "why",
				 m->share_error);
	return json_pack("{s:s,s:s,s:s}", "group", group, "state", ksm_state_name(s.state), "why",
			 s.why);
}
