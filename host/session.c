/*
 * One connection of a VM: its messages in and out.
 *
 *   NEW ──HELLO──► WAITING ──► ┬──────────── no store ────────────┬──► OPEN ──► CLOSED
 *            └─────────────────┴─ HOLDING ──all said──► SETTLING ─┘
 *
 * One message is read a turn, and answered before the next is read.  An answer that does
 * not go out is kept, and until it has gone nothing more is read and nothing else sent: who
 * does not read is not read from, and 64 KiB is all that waits.
 *
 * Who sends what is not sound, or not in its place, is told why and closed.  That takes
 * nothing from its process: what it holds it goes on holding, so that its memory stays
 * right, and it may say HELLO again.
 *
 * Descriptors: any that come with a message are ours from then on.  Only HELLO may bring
 * one, and it is closed after the look at it.
 *
 * Thread: the one of the daemon.
 */
#include "host/internal.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#define DRAIN_MAX 32u /* messages thrown away at a refusal, so that it is read */

/* ---- out ----------------------------------------------------------------------------- */

static int send_fd(const struct session *s, const void *msg, size_t bytes, int pass)
{
	union {
		struct cmsghdr head;
		char room[CMSG_SPACE(sizeof(int))];
	} c = { .head = { .cmsg_len = CMSG_LEN(sizeof(int)), .cmsg_level = SOL_SOCKET,
			  .cmsg_type = SCM_RIGHTS } };
	struct iovec v = { (void *)(uintptr_t)msg, bytes };
	struct msghdr m = { .msg_iov = &v, .msg_iovlen = 1 };

	if (pass >= 0) {
		memcpy(CMSG_DATA(&c.head), &pass, sizeof(pass));
		m.msg_control = &c;
		m.msg_controllen = sizeof(c.room);
	}
	return sendmsg(s->watch.fd, &m, MSG_DONTWAIT | MSG_NOSIGNAL) < 0 ? -errno : 0;
}

static int try_send(const struct session *s, const void *msg, size_t bytes, bool with_store)
{
	return send_fd(s, msg, bytes, with_store ? s->store->ro_fd : -1);
}

/* Keeps what did not go out.  There must be nothing kept already. */
static int keep(struct session *s, const void *msg, size_t bytes)
{
	VERIFY(!s->out);
	s->out = malloc(bytes);
	if (!s->out)
		return -ENOMEM;
	memcpy(s->out, msg, bytes);
	s->out_bytes = bytes;
	return 0;
}

void session_send(struct share_host *h, struct session *s, enum wire_type t, unsigned count,
		  uint32_t turn)
{
	struct wire_head *m = (void *)h->out;
	size_t bytes = wire_finish(m, t, count, turn);
	int rc;

	s->out_store = t == WIRE_WELCOME && !s->hello.has_store;
	rc = try_send(s, m, bytes, s->out_store);
	if (rc == -EAGAIN)
		rc = keep(s, m, bytes);
	if (rc)
		session_close(h, s);
}

static void on_writable(struct share_host *h, struct session *s)
{
	int rc = try_send(s, s->out, s->out_bytes, s->out_store);

	if (rc == -EAGAIN)
		return;
	free(s->out);
	s->out = NULL;
	if (rc)
		session_close(h, s);
}

/* ---- the end ---------------------------------------------------------------------------- */

void session_close(struct share_host *h, struct session *s)
{
	if (s->state == SESSION_CLOSED)
		return;
	watch_close(h, &s->watch);
	if (s->peer.pidfd >= 0)
		close(s->peer.pidfd);
	s->peer.pidfd = -1;
	if (s->process)
		s->process->session = NULL;
	if (s->claims)
		lazy_unmap(s->claims, session_claims_bytes(s));
	s->claims = NULL;
	s->process = NULL;
	s->store = NULL;
	free(s->out);
	s->out = NULL;
	offers_drop(s);
	s->state = SESSION_CLOSED;
	s->purge_at = 0;
	h->more = true;
}

/* A socket closed with messages unread tells its peer ECONNRESET first, and the reason
 * second; so they are read, without their descriptors. */
static void drain(const struct session *s)
{
	char byte;

	for (unsigned i = 0; i < DRAIN_MAX; i++)
		if (recv(s->watch.fd, &byte, 1, MSG_DONTWAIT) <= 0)
			return;
}

void session_refuse(struct share_host *h, struct session *s, const char *fmt, ...)
{
	struct wire_refused *r = session_reply(h);
	va_list ap;

	*r = (struct wire_refused){ "" };
	va_start(ap, fmt);
	vsnprintf(r->why, sizeof(r->why), fmt, ap);
	va_end(ap);
	counter_inc(CTR_brimd_refused);
	log_guest("VM %s (pid %d): %s", s->hello.vm[0] ? s->hello.vm : "?", (int)s->peer.pid,
		  r->why);
	if (!s->out)
		(void)try_send(s, h->out, wire_finish((void *)h->out, WIRE_REFUSED, 1, 0), false);
	drain(s);
	session_close(h, s);
}

void session_bad_message(struct share_host *h, struct session *s, const char *why)
{
	counter_inc(CTR_brimd_bad_messages);
	session_refuse(h, s, "a message that is not sound: %s", why);
}

void session_destroy(struct share_host *h, struct session *s)
{
	struct session **at = &h->sessions;

	session_close(h, s);
	VERIFY(s->candidates == 0);
	while (*at != s)
		at = &(*at)->next;
	*at = s->next;
	h->slots[s->slot] = NULL;
	h->session_count--;
	if (s->group) {
		s->group->sessions--;
		h->joined--;
	}
	lazy_unmap(s->marks, s->pages * sizeof(*s->marks));
	free(s);
}

/* ---- in ---------------------------------------------------------------------------------------- */

/* Which states a message is for. */
static bool is_in_place(const struct session *s, unsigned type)
{
	switch (type) {
	case WIRE_HELLO: return s->state == SESSION_NEW;
	case WIRE_HOLD: return s->state == SESSION_HOLDING;
	default: return s->state == SESSION_OPEN;
	}
}

static void on_message(struct share_host *h, struct session *s, size_t bytes, int fd)
{
	const struct wire_head *m = (const void *)h->in;
	const char *why;

	if (wire_check(m, bytes, WIRE_FROM_VM, &why))
		session_bad_message(h, s, why);
	else if (!is_in_place(s, m->type))
		session_bad_message(h, s, "it is not its time");
	else if (fd >= 0 && m->type != WIRE_HELLO)
		session_bad_message(h, s, "a descriptor where none belongs");
	else if (m->type == WIRE_HELLO)
		hello_answer(h, s, fd);
	else if (m->type == WIRE_HOLD)
		hold_answer(h, s);
	else if (m->type == WIRE_LOOKUP)
		lookup_answer(h, s);
	else if (m->type == WIRE_CONTENT)
		content_answer(h, s);
	else
		release_answer(h, s);
}

/* The descriptors of a message; the first is returned, all others are closed.  -1: none. */
static int take_fds(struct msghdr *m, unsigned *count)
{
	int first = -1;

	*count = 0;
	for (struct cmsghdr *c = CMSG_FIRSTHDR(m); c; c = CMSG_NXTHDR(m, c)) {
		size_t n = c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_RIGHTS
				   ? (c->cmsg_len - CMSG_LEN(0)) / sizeof(int) : 0;

		for (size_t i = 0; i < n; i++) {
			int fd;

			memcpy(&fd, CMSG_DATA(c) + i * sizeof(fd), sizeof(fd));
			if ((*count)++)
				close(fd);
			else
				first = fd;
		}
	}
	return first;
}

static void on_readable(struct share_host *h, struct session *s)
{
	_Alignas(struct cmsghdr) char control[CMSG_SPACE(4 * sizeof(int))];
	struct iovec v = { h->in, sizeof(h->in) };
	struct msghdr m = { .msg_iov = &v, .msg_iovlen = 1, .msg_control = control,
			    .msg_controllen = sizeof(control) };
	ssize_t n = recvmsg(s->watch.fd, &m, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
	unsigned fds = 0;
	int fd = n >= 0 ? take_fds(&m, &fds) : -1;

	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	if (n <= 0)
		session_close(h, s);
	else if (fds > 1 || m.msg_flags & (MSG_TRUNC | MSG_CTRUNC))
		session_bad_message(h, s, "too long, or too many descriptors");
	else
		on_message(h, s, (size_t)n, fd);
	if (fd >= 0)
		close(fd);
}

static bool reads(const struct session *s)
{
	return !s->out && !s->forgetting && (s->state == SESSION_NEW ||
	       s->state == SESSION_HOLDING || s->state == SESSION_OPEN);
}

static void on_session(struct share_host *h, struct watch *w, unsigned events)
{
	struct session *s = (void *)((char *)w - offsetof(struct session, watch));

	if (events & EPOLLOUT && s->out)
		on_writable(h, s);
	else if (events & EPOLLIN && reads(s))
		on_readable(h, s);
	else if (events & (EPOLLHUP | EPOLLERR))
		session_close(h, s);
}

/* ---- made and worked for -------------------------------------------------------------------------- */

static int free_slot(const struct share_host *h)
{
	for (unsigned i = 0; i < SESSION_SLOTS; i++)
		if (!h->slots[i])
			return (int)i;
	return -ENOSPC;
}

int session_create(struct share_host *h, int fd, const struct share_peer *peer)
{
	struct session *s = calloc(1, sizeof(*s));
	int slot = free_slot(h), rc = slot < 0 || !s ? -ENOSPC : 0;

	if (!rc) {
		*s = (struct session){ .next = h->sessions, .watch = { .fd = fd, .fn = on_session },
				       .slot = (unsigned)slot, .peer = *peer, .since_ns = h->now_ns };
		rc = watch_add(h, &s->watch, EPOLLIN);
	}
	if (rc) {
		close(fd);
		close(peer->pidfd);
		free(s);
		return rc;
	}
	h->slots[slot] = s;
	h->sessions = s;
	h->session_count++;
	return 0;
}

/* Candidates go; true: all have. */
static bool purge(struct share_host *h, struct session *s, unsigned *budget)
{
	for (; *budget && s->purge_at < s->pages && s->candidates; s->purge_at++) {
		if (s->marks[s->purge_at] || s->purge_at % 64 == 0)
			--*budget;
		candidate_drop(h, s, s->purge_at);
	}
	if (s->candidates && s->purge_at < s->pages) {
		h->more = true;
		return false;
	}
	VERIFY(s->candidates == 0);
	return true;
}

static void forget(struct share_host *h, struct session *s, unsigned *budget)
{
	if (!session_is_free(s) || !purge(h, s, budget))
		return;
	s->forgetting = false;
	counter_inc(CTR_brimd_forgets);
	session_send(h, s, WIRE_FORGET, 0, 0);
}

static void work(struct share_host *h, struct session *s, unsigned *budget)
{
	if (s->state == SESSION_WAITING && recover_is_over(s->group))
		hello_continue(h, s);
	else if (s->state == SESSION_SETTLING)
		hold_settle(h, s, budget);
	else if (s->forgetting && s->state == SESSION_OPEN)
		forget(h, s, budget);
	else if (s->offers_count && session_is_free(s))
		offers_send(h, s, budget);
	if (s->offers_count && !s->out)
		h->more = true;
	if (s->state != SESSION_CLOSED)
		watch_set(h, &s->watch, (reads(s) ? EPOLLIN : 0u) | (s->out ? EPOLLOUT : 0u));
}

void sessions_work(struct share_host *h, unsigned each)
{
	struct session *next;

	for (struct session *s = h->sessions; s; s = next) {
		unsigned budget = each;

		next = s->next;
		work(h, s, &budget);
		if (s->state == SESSION_CLOSED && purge(h, s, &budget))
			session_destroy(h, s);
	}
}

void sessions_tick(struct share_host *h)
{
	for (struct session *s = h->sessions; s; s = s->next)
		if ((s->state == SESSION_NEW || s->state == SESSION_HOLDING) &&
		    h->now_ns - s->since_ns > h->cfg.hello_ns) {
			counter_inc(CTR_brimd_silent);
			session_close(h, s);
		}
}
