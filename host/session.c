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
		lazy_unmap(s->claims, ((uint64_t)s->store->pages + 63) / 64 * 8);
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

static void bad_message(struct share_host *h, struct session *s, const char *why)
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

/* ---- WELCOME ------------------------------------------------------------------------------ */

static void welcome(struct share_host *h, struct session *s)
{
	struct wire_welcome *w = session_reply(h);

	*w = (struct wire_welcome){ .store_id = s->store->id, .seed = s->group->seed,
				    .store_pages = s->store->pages };
	s->state = SESSION_OPEN;
	s->process->recall_at = 0;
	s->process->recall_due_ns = h->now_ns + h->cfg.recall_after_ns;
	session_send(h, s, WIRE_WELCOME, 1, 0);
}

/* ---- HELLO --------------------------------------------------------------------------------- */

/* Whose connection this is: a process that is in the group, made one if need be. */
static int take_process(struct share_host *h, struct session *s, struct group *g)
{
	struct process *p = process_find(h, s->peer.pid, s->peer.start);
	struct share_peer peer = s->peer;
	int rc = 0;

	if (!p) {
		s->peer.pidfd = -1;
		rc = process_create(&p, g, &peer);
	}
	if (rc)
		return rc;
	if (p->session)
		session_close(h, p->session);
	p->session = s;
	s->process = p;
	return 0;
}

static int be_in_store(struct session *s, struct store *st, struct err *e)
{
	struct process *p = s->process;
	int rc = store_give(st, (uint32_t)p->pid, p->start);

	if (rc)
		return err_sys(e, rc, "share group %s: as many VMs have its store as may",
			       s->group->name);
	if (!p->store) {
		p->store = st;
		st->processes++;
	}
	s->store = st;
	return recover_save(s->group, e);
}

static int map_session(struct session *s, struct err *e)
{
	uint64_t bytes = ((uint64_t)s->store->pages + 63) / 64 * 8;

	s->pages = s->hello.pages;
	s->marks = lazy_map(s->pages * sizeof(*s->marks));
	if (s->marks && s->hello.has_store && s->process->holds.count)
		s->claims = lazy_map(bytes);
	if (!s->marks || (s->hello.has_store && s->process->holds.count && !s->claims)) {
		s->pages = s->marks ? s->pages : 0;
		return err_set(e, -ENOMEM, "brimd has no memory for another VM");
	}
	return 0;
}

static int join(struct session *s, struct store *st, struct err *e)
{
	int rc = be_in_store(s, st, e);

	return rc ? rc : map_session(s, e);
}

/* The store it came with: one of the group's, or one to adopt. */
static int find_store(struct share_host *h, struct session *s, int fd, struct store **out,
		      struct err *e)
{
	struct store_spec spec = { .id = s->hello.store_id, .uid = s->group->uid,
				   .group = s->group->name };
	struct store *st = group_store_by_id(s->group, spec.id);
	unsigned n = 0;
	int rc;

	if (st) {
		*out = st;
		return store_check_same(st, fd, e);
	}
	for (st = s->group->stores; st; st = st->next)
		n++;
	if (n >= GROUP_STORES_MAX)
		return err_set(e, -ENOSPC, "share group %s: it has %u stores already",
			       s->group->name, n);
	rc = store_adopt(&st, fd, &spec, e);
	if (rc)
		return rc;
	counter_inc(CTR_brimd_adopted);
	group_add_store(s->group, st);
	recover_registry(h, s->group, st);
	*out = st;
	return 0;
}

/* Before anything is changed for it. */
static int check_store(const struct session *s, const struct store *st, struct err *e)
{
	if (s->process->store && s->process->store != st)
		return err_set(e, -EINVAL, "share group %s: this process has another store",
			       s->group->name);
	if (!store_was_given(st, (uint32_t)s->peer.pid, s->peer.start))
		return err_set(e, -EPERM, "share group %s: this process was never given that store",
			       s->group->name);
	return 0;
}

static int return_with_store(struct share_host *h, struct session *s, int fd, struct err *e)
{
	struct store *st = NULL;
	int rc = find_store(h, s, fd, &st, e);

	if (!rc)
		rc = check_store(s, st, e);
	if (!rc)
		rc = join(s, st, e);
	if (!rc)
		s->state = SESSION_HOLDING;
	return rc;
}

/* Without a store: at once, or when those who may bring one back have. */
static int come_new(struct share_host *h, struct session *s, struct err *e)
{
	struct store *st = s->process->store;
	int rc;

	recover_returned(s->group, s->process);
	if (!st && !recover_is_over(s->group)) {
		s->state = SESSION_WAITING;
		return 0;
	}
	if (!st)
		st = group_store(s->group, e);
	rc = st ? join(s, st, e) : -ENOMEM;
	if (!rc)
		welcome(h, s);
	return rc;
}

/* A new one would be one too many. */
static bool groups_full(const struct share_host *h, const struct group *g)
{
	unsigned n = 0;

	for (const struct group *i = h->groups; i; i = i->next)
		n++;
	return !g && n >= GROUPS_MAX;
}

static int enter_group(struct share_host *h, struct session *s, struct err *e)
{
	const struct process *p = process_find(h, s->peer.pid, s->peer.start);
	struct group *g = group_find(h, s->hello.group);

	if (pidfd_ended(p ? p->watch.fd : s->peer.pidfd) || (p && p->ended))
		return err_set(e, -ESRCH, "the process has ended");
	if (p && strcmp(p->group->name, s->hello.group) != 0)
		return err_set(e, -EINVAL, "this process is in share group %s, and cannot be in %s",
			       p->group->name, s->hello.group);
	if (g && g->uid != s->peer.uid)
		return err_set(e, -EPERM, "share group %s belongs to user %u, and VM %s runs as "
			       "user %u", g->name, g->uid, s->hello.vm, (unsigned)s->peer.uid);
	if ((!p && h->process_count >= 2 * h->cfg.sessions_max) || groups_full(h, g) ||
	    h->joined >= h->cfg.sessions_max)
		return err_set(e, -EUSERS, "brimd has as many VMs or share groups as it takes");
	if (!g && group_create(&g, h, s->hello.group, s->peer.uid))
		return err_set(e, -ENOMEM, "brimd has no memory for another share group");
	s->group = g;
	g->sessions++;
	h->joined++;
	return take_process(h, s, g) ? err_set(e, -ENOMEM, "brimd has no room for another process")
				     : 0;
}

static void on_hello(struct share_host *h, struct session *s, int fd)
{
	const struct wire_head *m = (const void *)h->in;
	struct err e = { "" };
	int rc;

	memcpy(&s->hello, wire_entries(m), sizeof(s->hello));
	if ((fd >= 0) != (s->hello.has_store == 1)) {
		bad_message(h, s, "a descriptor where none is named, or none where one is");
		return;
	}
	rc = enter_group(h, s, &e);
	if (!rc)
		rc = s->hello.has_store ? return_with_store(h, s, fd, &e) : come_new(h, s, &e);
	if (rc)
		session_refuse(h, s, "%s", e.msg);
}

/* ---- HOLD ------------------------------------------------------------------------------------ */

static int claim(struct session *s, uint32_t page)
{
	struct store *st = s->store;

	if (page < STORE_FIRST_PAGE || page >= st->pages)
		return -ERANGE;
	if (!store_has(st, page) && !store_claimable(st))
		return -ENOENT;
	/* As many as it likes: these are its VM's memory. */
	if (!store_has(st, page))
		store_claim(st, page);
	if (s->claims)
		s->claims[page / 64] |= (uint64_t)1 << page % 64;
	return store_hold(st, &s->process->holds, page);
}

static void on_hold(struct share_host *h, struct session *s)
{
	const struct wire_head *m = (const void *)h->in;
	const struct wire_store_page *p = wire_entries(m);

	s->since_ns = h->now_ns;
	for (unsigned i = 0; i < m->count; i++) {
		int rc = claim(s, p[i].store_page);

		if (rc) {
			session_refuse(h, s, rc == -ENOMEM ? "brimd has no memory for what it holds"
				       : "it says it uses a store page that is nobody's");
			return;
		}
	}
	if (m->count)
		return;
	recover_returned(s->group, s->process);
	s->store->rehash_at = STORE_FIRST_PAGE;
	s->settle_at = 0;
	s->state = SESSION_SETTLING;
	h->more = true;
}

/* What it held, and did not say it uses, was on its way to it when the connection broke. */
static void settle(struct share_host *h, struct session *s, unsigned *budget)
{
	struct process *p = s->process;

	for (; s->claims && *budget; --*budget) {
		uint32_t page = holds_next(&p->holds, s->settle_at);

		if (page >= p->holds.end)
			break;
		if (!(s->claims[page / 64] >> page % 64 & 1))
			process_release(p, page);
		s->settle_at = page + 1;
	}
	if (!*budget) {
		h->more = true;
		return;
	}
	if (s->claims)
		lazy_unmap(s->claims, ((uint64_t)s->store->pages + 63) / 64 * 8);
	s->claims = NULL;
	welcome(h, s);
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
		bad_message(h, s, why);
	else if (!is_in_place(s, m->type))
		bad_message(h, s, "it is not its time");
	else if (fd >= 0 && m->type != WIRE_HELLO)
		bad_message(h, s, "a descriptor where none belongs");
	else if (m->type == WIRE_HELLO)
		on_hello(h, s, fd);
	else if (m->type == WIRE_HOLD)
		on_hold(h, s);
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
		bad_message(h, s, "too long, or too many descriptors");
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

static void stop_waiting(struct share_host *h, struct session *s)
{
	struct err e = { "" };

	s->state = SESSION_NEW;
	if (come_new(h, s, &e))
		session_refuse(h, s, "%s", e.msg);
}

static void work(struct share_host *h, struct session *s, unsigned *budget)
{
	if (s->state == SESSION_WAITING && recover_is_over(s->group))
		stop_waiting(h, s);
	else if (s->state == SESSION_SETTLING)
		settle(h, s, budget);
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
