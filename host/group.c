/*
 * Share groups, and the processes in them.
 *
 * A group is a name, and belongs to the user whose VM said it first.  It has one store;
 * more only after a daemon's end, when a VM came back with an older one late.
 *
 * A process is a pid with its start time.  It may be connected or not: what it holds is
 * its own until it releases it or ends, which its pidfd tells.
 *
 *   HELLO ─► process ──pidfd──► ended: holds go, in steps ─► gone
 *              ▲
 *   an earlier daemon's list: awaited (recover.c)
 *
 * Thread: the one of the daemon.
 */
#include "host/internal.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/random.h>

/* ---- groups ------------------------------------------------------------------------ */

struct group *group_find(const struct share_host *h, const char *name)
{
	struct group *g = h->groups;

	while (g && strcmp(g->name, name) != 0)
		g = g->next;
	return g;
}

int group_create(struct group **out, struct share_host *h, const char *name, uint32_t uid)
{
	struct group *g = calloc(1, sizeof(*g));
	uint64_t random[4];

	if (!g)
		return -ENOMEM;
	if (getrandom(random, sizeof(random), 0) != (ssize_t)sizeof(random) ||
	    index_create(&g->index, random)) {
		free(g);
		return -ENOMEM;
	}
	g->host = h;
	g->uid = uid;
	g->seed = random[3];
	snprintf(g->name, sizeof(g->name), "%s", name);
	g->next = h->groups;
	h->groups = g;
	*out = g;
	return 0;
}

static void remove_store(struct group *g, struct store *st)
{
	struct store **at = &g->stores;

	VERIFY(st->used_pages == 0);
	while (*at != st)
		at = &(*at)->next;
	*at = st->next;
	store_destroy(&st);
}

void group_destroy(struct group *g)
{
	struct group **at = &g->host->groups;

	VERIFY(g->processes == 0 && g->sessions == 0);
	while (g->stores)
		remove_store(g, g->stores);
	while (*at != g)
		at = &(*at)->next;
	*at = g->next;
	index_destroy(&g->index);
	free(g);
}

struct store *group_store_by_id(const struct group *g, uint64_t id)
{
	struct store *st = g->stores;

	while (st && st->id != id)
		st = st->next;
	return st;
}

static bool slot_taken(const struct group *g, unsigned slot)
{
	for (const struct store *st = g->stores; st; st = st->next)
		if (st->slot == slot)
			return true;
	return false;
}

void group_add_store(struct group *g, struct store *st)
{
	st->slot = 0;
	while (slot_taken(g, st->slot))
		st->slot++;
	st->next = g->stores;
	g->stores = st;
}

struct store *group_store(struct group *g, struct err *e)
{
	struct store_spec spec = { .pages = (uint32_t)(g->host->cfg.store_bytes >> PAGE_SHIFT),
				   .uid = g->uid, .group = g->name };
	struct store *st = g->stores;

	while (st && store_claimable(st))
		st = st->next;
	if (st || store_create(&st, &spec, e))
		return st;
	group_add_store(g, st);
	return st;
}

/* ---- holding ------------------------------------------------------------------------- */

int process_hold(struct process *p, uint32_t store_page, uint32_t most)
{
	if (p->holds.count >= most && !holds_test(&p->holds, store_page))
		return -EDQUOT;
	return store_hold(p->store, &p->holds, store_page);
}

static void free_page(struct group *g, struct store *st, uint32_t store_page)
{
	uint32_t mark = st->mark[store_page];

	if (mark)
		index_remove(g->index, index_find_page(g->index, mark, INDEX_STORE | st->slot,
						       store_page));
	store_free(st, store_page);
	counter_inc(CTR_brimd_freed);
}

void process_release(struct process *p, uint32_t store_page)
{
	if (store_unhold(p->store, &p->holds, store_page))
		free_page(p->group, p->store, store_page);
}

/* ---- processes ----------------------------------------------------------------------- */

struct process *process_find(const struct share_host *h, pid_t pid, uint64_t start)
{
	struct process *p = h->processes;

	while (p && (p->pid != pid || p->start != start))
		p = p->next;
	return p;
}

static struct process *process_of(struct watch *w)
{
	return (struct process *)(void *)((char *)w - offsetof(struct process, watch));
}

static void on_pidfd(struct share_host *h, struct watch *w, unsigned events)
{
	process_end(process_of(w));
}

int process_create(struct process **out, struct group *g, const struct share_peer *peer)
{
	struct process *p = calloc(1, sizeof(*p));
	struct watch w = { .fd = peer->pidfd, .fn = on_pidfd };
	int rc = p ? 0 : -ENOMEM;

	if (p) {
		*p = (struct process){ .next = g->host->processes, .watch = w, .pid = peer->pid,
				       .start = peer->start, .group = g };
		rc = watch_add(g->host, &p->watch, EPOLLIN);
	}
	if (rc) {
		watch_close(g->host, &w);
		free(p);
		return rc;
	}
	g->host->processes = p;
	g->host->process_count++;
	g->processes++;
	*out = p;
	return 0;
}

static void leave_store(struct process *p)
{
	struct store *st = p->store;

	holds_fini(&p->holds, st);
	p->store = NULL;
	st->processes--;
}

void process_destroy(struct share_host *h, struct process *p)
{
	struct process **at = &h->processes;

	VERIFY(p->holds.count == 0 && !p->session);
	while (*at != p)
		at = &(*at)->next;
	*at = p->next;
	if (p->store)
		leave_store(p);
	p->group->processes--;
	h->process_count--;
	watch_close(h, &p->watch);
	free(p);
}

void process_abandon(struct share_host *h, struct process *p)
{
	if (p->store) {
		struct store *st = p->store;

		holds_fini(&p->holds, st);
		st->used_pages = 0; /* for us: the next daemon counts for itself */
	}
	p->holds = (struct holds){ 0 };
	process_destroy(h, p);
}

void process_end(struct process *p)
{
	struct share_host *h = p->group->host;

	if (p->ended)
		return;
	p->ended = true;
	watch_close(h, &p->watch);
	if (p->session)
		session_close(h, p->session);
	counter_inc(CTR_brimd_ended);
	h->more = true;
}

/* True: it holds nothing any more. */
static bool drop_holds(struct process *p, unsigned *budget)
{
	uint32_t page = p->recall_at;

	for (; *budget && p->holds.count; --*budget) {
		page = holds_next(&p->holds, page);
		VERIFY(page < p->holds.end);
		process_release(p, page);
	}
	p->recall_at = page;
	return p->holds.count == 0;
}

static void bury(struct share_host *h, struct process *p)
{
	struct group *g = p->group;

	if (p->store)
		store_ungive(p->store, (uint32_t)p->pid, p->start);
	g->state_changed = true;
	recover_returned(g, p);
	process_destroy(h, p);
}

void processes_work(struct share_host *h)
{
	struct process *next;

	for (struct process *p = h->processes; p; p = next) {
		unsigned budget = BUDGET;

		next = p->next;
		if (!p->ended) {
			recall_work(h, p, &budget);
			/* Refused, and it was never given anything: nothing to remember. */
			if (!p->session && !p->store && !p->awaited_store)
				process_destroy(h, p);
		} else if (drop_holds(p, &budget)) {
			bury(h, p);
		} else {
			h->more = true;
		}
	}
}

/* ---- work --------------------------------------------------------------------------------- */

static void stores_work(struct group *g)
{
	struct store *next;

	for (struct store *st = g->stores; st; st = next) {
		unsigned runs = RUNS;

		next = st->next;
		if (st->processes == 0)
			remove_store(g, st);
		else if (store_tidy(st, &runs))
			g->host->more = true;
	}
}

void groups_work(struct share_host *h)
{
	struct group *next;

	for (struct group *g = h->groups; g; g = next) {
		next = g->next;
		stores_work(g);
		if (g->processes || g->sessions)
			continue;
		recover_forget(g);
		group_destroy(g);
	}
}
