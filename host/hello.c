/*
 * How a VM comes in: HELLO, HOLD, WELCOME.
 *
 * HELLO makes the connection one of a process, and the process one of a group.  What it
 * says it has for a store is looked at before anything else of it is believed; then it is
 * either a store that is served already, or one of an earlier daemon, to adopt.
 *
 * HOLD makes what the process holds exactly what it says: what is named is held, what was
 * held and is not named is dropped, for that was on its way when a connection broke.
 *
 * Thread: the one of the daemon.
 */
#include "host/internal.h"

#include <errno.h>
#include <string.h>

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
	s->pages = s->hello.pages;
	s->marks = lazy_map(s->pages * sizeof(*s->marks));
	if (s->marks && s->process->holds.count)
		s->claims = lazy_map(session_claims_bytes(s));
	if (!s->marks || (s->process->holds.count && !s->claims)) {
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
	if (rc)
		return rc;
	/* What its process held, it does not any more: it was reset. */
	s->settle_at = 0;
	s->state = SESSION_SETTLING;
	if (!s->claims)
		welcome(h, s);
	h->more = true;
	return 0;
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

void hello_answer(struct share_host *h, struct session *s, int fd)
{
	const struct wire_head *m = (const void *)h->in;
	struct err e = { "" };
	int rc;

	memcpy(&s->hello, wire_entries(m), sizeof(s->hello));
	if ((fd >= 0) != (s->hello.has_store == 1)) {
		session_bad_message(h, s, "a descriptor where none is named, or none where one is");
		return;
	}
	rc = enter_group(h, s, &e);
	if (!rc)
		rc = s->hello.has_store ? return_with_store(h, s, fd, &e) : come_new(h, s, &e);
	if (rc)
		session_refuse(h, s, "%s", e.msg);
}

void hello_continue(struct share_host *h, struct session *s)
{
	struct err e = { "" };

	s->state = SESSION_NEW;
	if (come_new(h, s, &e))
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

void hold_answer(struct share_host *h, struct session *s)
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
void hold_settle(struct share_host *h, struct session *s, unsigned *budget)
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
		lazy_unmap(s->claims, session_claims_bytes(s));
	s->claims = NULL;
	welcome(h, s);
}
