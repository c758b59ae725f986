/*
 * The daemon's loop: who connects, and what is done in a turn.
 *
 *   turn:  what is readable: one message a session ─► background work, bounded for each
 *          ─► once in a while (a tick): who has been silent, files that are behind
 *
 * Nothing is freed while events of a turn are handed out: sessions and processes end, and
 * are taken away in the work behind.
 *
 * Thread: one.
 */
#include "host/internal.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

#ifndef SO_PEERPIDFD
#define SO_PEERPIDFD 77
#endif

#define EVENTS 64
#define ACCEPTS 16u       /* a turn */
#define STRANGERS_MAX 128u /* connections without a HELLO */
#define TICK_NS ((uint64_t)1000000000)
#define QUICK_TICK_NS ((uint64_t)100000000)

/* ---- descriptors ----------------------------------------------------------------------- */

int watch_add(struct share_host *h, struct watch *w, unsigned events)
{
	struct epoll_event ev = { .events = events, .data.ptr = w };

	w->events = events;
	return epoll_ctl(h->epoll_fd, EPOLL_CTL_ADD, w->fd, &ev) < 0 ? -errno : 0;
}

void watch_set(struct share_host *h, struct watch *w, unsigned events)
{
	struct epoll_event ev = { .events = events, .data.ptr = w };

	if (w->fd < 0 || w->events == events)
		return;
	w->events = events;
	VERIFY(epoll_ctl(h->epoll_fd, EPOLL_CTL_MOD, w->fd, &ev) == 0);
}

void watch_close(struct share_host *h, struct watch *w)
{
	if (w->fd < 0)
		return;
	/* Before it is closed: another may have a copy of it, and it would stay. */
	(void)epoll_ctl(h->epoll_fd, EPOLL_CTL_DEL, w->fd, NULL);
	close(w->fd);
	w->fd = -1;
}

bool pidfd_ended(int pidfd)
{
	struct pollfd p = { .fd = pidfd, .events = POLLIN };

	return pidfd < 0 || poll(&p, 1, 0) != 0;
}

uint64_t process_start(pid_t pid)
{
	char path[32], text[1024];
	const char *at;
	ssize_t n;
	int fd;

	snprintf(path, sizeof(path), "/proc/%d/stat", (int)pid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return 0;
	n = read(fd, text, sizeof(text) - 1);
	close(fd);
	text[n > 0 ? n : 0] = '\0';
	/* The second field is a name in parentheses, and may be anything. */
	at = strrchr(text, ')');
	for (int field = 2; at && field < 22; field++)
		at = strchr(at + 1, ' ');
	return at ? strtoull(at, NULL, 10) : 0;
}

/* ---- connections -------------------------------------------------------------------------- */

static int peer_pidfd(int fd, pid_t pid)
{
	socklen_t len = sizeof(int);
	int pidfd = -1;

	if (getsockopt(fd, SOL_SOCKET, SO_PEERPIDFD, &pidfd, &len) == 0)
		return pidfd;
	if (errno != ENOPROTOOPT)
		return -errno;
	pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
	return pidfd < 0 ? -errno : pidfd;
}

static int who_is(int fd, struct share_peer *peer)
{
	struct ucred c;
	socklen_t len = sizeof(c);

	if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &c, &len) < 0)
		return -errno;
	*peer = (struct share_peer){ .pid = c.pid, .uid = c.uid };
	peer->pidfd = c.pid > 0 ? peer_pidfd(fd, c.pid) : -ESRCH;
	if (peer->pidfd < 0)
		return peer->pidfd;
	peer->start = process_start(c.pid);
	/* In this order: while it lives, nobody else has its pid. */
	if (peer->start && !pidfd_ended(peer->pidfd))
		return 0;
	close(peer->pidfd);
	return -ESRCH;
}

/* Who has said nothing for the longest makes room. */
static void bound_strangers(struct share_host *h)
{
	struct session *oldest = NULL;
	unsigned n = 0;

	for (struct session *s = h->sessions; s; s = s->next)
		if (s->state == SESSION_NEW) {
			oldest = s; /* the list has the newest first */
			n++;
		}
	if (n < STRANGERS_MAX)
		return;
	counter_inc(CTR_brimd_silent);
	session_close(h, oldest);
}

int share_host_attach(struct share_host *h, int fd, const struct share_peer *peer)
{
	bound_strangers(h);
	return session_create(h, fd, peer);
}

static void on_connection(struct share_host *h, struct watch *w, unsigned events)
{
	for (unsigned i = 0; i < ACCEPTS; i++) {
		int fd = accept4(w->fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
		struct share_peer peer;

		if (fd < 0 && (errno == EAGAIN || errno == ECONNABORTED || errno == EINTR))
			return;
		if (fd < 0) { /* no descriptors or memory: again at the next tick */
			log_guest("cannot accept a connection: %s", strerror(errno));
			watch_set(h, w, 0);
			return;
		}
		if (who_is(fd, &peer))
			close(fd);
		else
			(void)share_host_attach(h, fd, &peer);
	}
}

static int bind_to(int fd, const char *path)
{
	struct sockaddr_un sa = { .sun_family = AF_UNIX };

	if (strlen(path) >= sizeof(sa.sun_path))
		return -ENAMETOOLONG;
	memcpy(sa.sun_path, path, strlen(path) + 1);
	if (unlink(path) < 0 && errno != ENOENT)
		return -errno;
	if (bind(fd, (const struct sockaddr *)&sa, sizeof(sa)) < 0 || chmod(path, 0660) < 0 ||
	    listen(fd, (int)STRANGERS_MAX) < 0)
		return -errno;
	return 0;
}

int share_host_listen(struct share_host *h, const char *path, struct err *e)
{
	struct watch w = { .fn = on_connection };
	int rc;

	w.fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (w.fd < 0)
		return err_sys(e, -errno, "%s", path);
	rc = bind_to(w.fd, path);
	if (!rc) {
		h->listener = w;
		rc = watch_add(h, &h->listener, EPOLLIN);
	}
	if (rc) {
		close(w.fd);
		h->listener.fd = -1;
		return err_sys(e, rc, "%s", path);
	}
	return 0;
}

static void on_wake(struct share_host *h, struct watch *w, unsigned events)
{
	h->more = true;
}

int share_host_watch(struct share_host *h, int fd)
{
	h->waker = (struct watch){ .fd = fcntl(fd, F_DUPFD_CLOEXEC, 3), .fn = on_wake };
	return h->waker.fd < 0 ? -errno : watch_add(h, &h->waker, EPOLLIN);
}

/* ---- turns ------------------------------------------------------------------------------------ */

static bool is_hasty(const struct share_host *h)
{
	for (const struct group *g = h->groups; g; g = g->next)
		if (g->recover_until_ns)
			return true;
	for (const struct session *s = h->sessions; s; s = s->next)
		if (s->state != SESSION_OPEN)
			return true;
	return h->listener.fd >= 0 && h->listener.events == 0;
}

static int until_tick(const struct share_host *h, int timeout_ms)
{
	uint64_t now = now_ns();
	int ms;

	if (h->more)
		return 0;
	if (!h->groups && !h->sessions)
		return timeout_ms;
	ms = h->tick_ns <= now ? 0 : (int)((h->tick_ns - now) / 1000000 + 1);
	return timeout_ms >= 0 && timeout_ms < ms ? timeout_ms : ms;
}

static void tick(struct share_host *h)
{
	if (h->now_ns < h->tick_ns)
		return;
	sessions_tick(h);
	watch_set(h, &h->listener, EPOLLIN);
	for (struct group *g = h->groups; g; g = g->next) {
		struct err e;

		for (struct store *st = g->stores; st; st = st->next)
			store_check_excess(st);
		if (g->state_changed && recover_save(g, &e))
			log_guest("%s", e.msg);
	}
	h->tick_ns = h->now_ns + (is_hasty(h) ? QUICK_TICK_NS : TICK_NS);
}

static void work(struct share_host *h)
{
	sessions_work(h, BUDGET);
	processes_work(h);
	recover_work(h);
	groups_work(h);
	tick(h);
	/* A stranger's ten seconds must not wait for a tick that was set before it came. */
	if (is_hasty(h) && h->tick_ns > h->now_ns + QUICK_TICK_NS)
		h->tick_ns = h->now_ns + QUICK_TICK_NS;
}

int share_host_turn(struct share_host *h, int timeout_ms)
{
	struct epoll_event ev[EVENTS];
	int n = epoll_wait(h->epoll_fd, ev, EVENTS, until_tick(h, timeout_ms));

	if (n < 0 && errno != EINTR)
		return -errno;
	h->now_ns = now_ns();
	h->more = false;
	for (int i = 0; i < n; i++) {
		struct watch *w = ev[i].data.ptr;

		if (w->fd >= 0)
			w->fn(h, w, ev[i].events);
	}
	work(h);
	return 0;
}

/* ---- made and ended ------------------------------------------------------------------------------ */

static uint64_t ram_bytes(void)
{
	return (uint64_t)sysconf(_SC_PHYS_PAGES) * (uint64_t)sysconf(_SC_PAGESIZE);
}

static uint64_t or_else(uint64_t value, uint64_t otherwise)
{
	return value ? value : otherwise;
}

static void set_defaults(struct share_host_config *c)
{
	c->store_bytes = or_else(c->store_bytes, ram_bytes());
	if (c->store_bytes > TiB)
		c->store_bytes = TiB;
	if (c->store_bytes < STORE_MIN_PAGES * PAGE_BYTES)
		c->store_bytes = STORE_MIN_PAGES * PAGE_BYTES;
	c->index_pages = or_else(c->index_pages, ram_bytes() >> PAGE_SHIFT);
	c->recall_after_ns = or_else(c->recall_after_ns, 60 * TICK_NS);
	c->recover_ns = or_else(c->recover_ns, 10 * TICK_NS);
	c->hello_ns = or_else(c->hello_ns, 10 * TICK_NS);
	c->sessions_max = (unsigned)or_else(c->sessions_max, 1024);
	c->offers_max = (unsigned)or_else(c->offers_max, 1u << 16);
}

int share_host_create(struct share_host **out, const struct share_host_config *cfg, struct err *e)
{
	struct share_host *h = aligned_alloc(_Alignof(struct share_host), sizeof(*h));
	int rc;

	if (!h)
		return err_set(e, -ENOMEM, "out of memory");
	memset(h, 0, sizeof(*h));
	h->cfg = *cfg;
	set_defaults(&h->cfg);
	h->listener.fd = h->waker.fd = -1;
	h->now_ns = now_ns();
	h->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	rc = h->epoll_fd < 0 ? err_sys(e, -errno, "epoll") : recover_start(h, e);
	if (rc) {
		share_host_destroy(&h);
		return rc;
	}
	*out = h;
	return 0;
}

/* What is in files and stores stays as it is: the next daemon reads it. */
void share_host_destroy(struct share_host **hp)
{
	struct share_host *h = *hp;

	if (!h)
		return;
	for (struct session *s = h->sessions; s; s = s->next)
		session_close(h, s);
	sessions_work(h, UINT32_MAX);
	while (h->processes)
		process_abandon(h, h->processes);
	while (h->groups)
		group_destroy(h->groups);
	watch_close(h, &h->listener);
	watch_close(h, &h->waker);
	if (h->epoll_fd >= 0)
		close(h->epoll_fd);
	free(h);
	*hp = NULL;
}

void share_host_stats(const struct share_host *h, struct share_host_stats *out)
{
	*out = (struct share_host_stats){ .processes = h->process_count,
					  .sessions = h->session_count,
					  .candidates = h->candidates };
	for (const struct group *g = h->groups; g; g = g->next) {
		out->groups++;
		out->index_bytes += index_bytes(g->index);
		for (const struct store *st = g->stores; st; st = st->next) {
			out->stores++;
			out->store_pages += st->used_pages;
			out->resident_bytes += store_resident_pages(st) << PAGE_SHIFT;
		}
	}
	for (const struct process *p = h->processes; p; p = p->next)
		out->held_pages += p->holds.count;
}
