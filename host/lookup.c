/*
 * What VMs ask about their pages, and what follows from it.
 *
 *   LOOKUP ─► ALONE: remembered as a candidate
 *             WANTED: remembered, and its bytes are asked for
 *             SAME: the store has it already
 *   CONTENT ─► hashed here ─► a page of the store ─► SAME to who sent it,
 *                                                    OFFER to each other candidate
 *   RELEASE ─► the last holder's: the page is freed, and its entry goes
 *
 * A candidate is an entry of the index, and the mark of its key in the session's table, by
 * which the entry is found again when the page is looked up with another hash.  When it is
 * offered something the entry goes and the mark stays: an offer is sent only while mark
 * and store page still agree, so that none need be looked for and taken out of a queue.
 *
 * A VM says hashes as it likes.  At most CROWD candidates have one key: of a page that
 * comes in thousands, one's bytes are enough, and no search is longer for it.
 *
 * Thread: the one of the daemon.
 */
#include "host/internal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#define CROWD 32u
#define AHEAD 16u /* look-ups whose memory is on its way */
#define OFFERS_A_TURN 1024u

static uint32_t candidate_who(const struct session *s)
{
	return s->slot;
}

static void entry_gone(struct share_host *h, struct session *s)
{
	VERIFY(s->candidates > 0 && h->candidates > 0);
	s->candidates--;
	h->candidates--;
}

void candidate_drop(struct share_host *h, struct session *s, uint32_t page)
{
	struct index_entry *e;

	if (!s->marks[page])
		return;
	e = index_find_page(s->group->index, s->marks[page], candidate_who(s), page);
	s->marks[page] = 0;
	if (!e)
		return;
	index_remove(s->group->index, e);
	entry_gone(h, s);
}

/* ---- entries of one key ---------------------------------------------------------------- */

static struct index_entry *stored_in(const struct index_run *r, const struct store *st)
{
	for (unsigned i = 0; i < r->count; i++)
		if (r->at[i].who == (INDEX_USED | INDEX_STORE | st->slot))
			return &r->at[i];
	return NULL;
}

static struct index_entry *own_in(const struct index_run *r, const struct session *s, uint32_t page)
{
	for (unsigned i = 0; i < r->count; i++)
		if (r->at[i].page == page &&
		    (r->at[i].who & ~INDEX_WANTED) == (INDEX_USED | candidate_who(s)))
			return &r->at[i];
	return NULL;
}

/* Whose candidate it is, if they can share with that store's VMs; else NULL. */
static struct session *candidate_of(const struct share_host *h, const struct index_entry *e,
				    const struct store *st)
{
	struct session *s = e->who & INDEX_STORE ? NULL : h->slots[e->who % SESSION_SLOTS];

	return s && s->state == SESSION_OPEN && s->store == st ? s : NULL;
}

static bool has_other(const struct share_host *h, const struct index_run *r,
		      const struct session *s, const struct index_entry *own)
{
	for (unsigned i = 0; i < r->count; i++)
		if (&r->at[i] != own && candidate_of(h, &r->at[i], s->store))
			return true;
	return false;
}

/* ---- LOOKUP ------------------------------------------------------------------------------ */

/* The most a process may hold: a page of RAM is equal to one of the store. */
static uint32_t holds_max(const struct session *s)
{
	return s->pages;
}

static void answer_same(struct share_host *h, struct session *s, struct wire_answer *a,
			uint32_t store_page)
{
	int rc = process_hold(s->process, store_page, holds_max(s));

	candidate_drop(h, s, a->page);
	if (rc) {
		counter_inc(CTR_brimd_later_holds);
		a->kind = WIRE_LATER;
		return;
	}
	counter_inc(CTR_brimd_same);
	a->kind = WIRE_SAME;
	a->store_page = store_page;
}

/* 0, or a refusal is counted. */
static int remember(struct share_host *h, struct session *s, uint64_t key,
		    const struct index_entry *like)
{
	if (h->candidates >= h->cfg.index_pages ||
	    index_add(s->group->index, key, like->who, like->page)) {
		counter_inc(CTR_brimd_later_full);
		return -ENOSPC;
	}
	s->marks[like->page] = index_mark(key);
	s->candidates++;
	h->candidates++;
	return 0;
}

static void answer_new(struct share_host *h, struct session *s, struct wire_answer *a,
		       uint64_t key)
{
	struct index_run r = index_find(s->group->index, key);
	bool other = has_other(h, &r, s, NULL);
	struct index_entry e = { .page = a->page,
				 .who = candidate_who(s) | (other ? INDEX_WANTED : 0) };

	if (r.count >= CROWD)
		counter_inc(CTR_brimd_later_crowded);
	if (r.count >= CROWD || remember(h, s, key, &e))
		a->kind = WIRE_LATER;
	else
		a->kind = other ? WIRE_WANTED : WIRE_ALONE;
}

static void look_up(struct share_host *h, struct session *s, struct wire_answer *a, uint64_t key)
{
	struct index_entry *own, *stored;
	struct index_run r;

	if (s->marks[a->page] != index_mark(key))
		candidate_drop(h, s, a->page);
	r = index_find(s->group->index, key);
	stored = stored_in(&r, s->store);
	own = own_in(&r, s, a->page);
	if (stored) {
		answer_same(h, s, a, stored->page);
	} else if (!own) {
		candidate_drop(h, s, a->page); /* the mark of an offer, or of a like key */
		answer_new(h, s, a, key);
	} else if (has_other(h, &r, s, own)) {
		own->who |= INDEX_WANTED;
		a->kind = WIRE_WANTED;
	}
	if (a->kind == WIRE_WANTED)
		counter_inc(CTR_brimd_wanted);
}

/* Where a page's key is, and where the one was that it had before. */
static void prefetch(const struct session *s, uint64_t key, uint32_t page)
{
	index_prefetch(s->group->index, key);
	if (s->marks[page] && s->marks[page] != index_mark(key))
		index_prefetch(s->group->index, (uint64_t)s->marks[page] << 32);
}

/* All keys first, so that memory is fetched while others are looked up. */
static bool make_keys(struct share_host *h, const struct session *s, const struct wire_page *p,
		      unsigned n)
{
	for (unsigned i = 0; i < n; i++) {
		if (p[i].page >= s->pages)
			return false;
		h->keys[i] = index_key(s->group->index, &p[i].hash);
	}
	return true;
}

void lookup_answer(struct share_host *h, struct session *s)
{
	const struct wire_head *m = (const void *)h->in;
	const struct wire_page *p = wire_entries(m);
	struct wire_answer *a = session_reply(h);

	if (!make_keys(h, s, p, m->count)) {
		session_refuse(h, s, "a look-up names a page beyond the VM's RAM");
		return;
	}
	counter_add(CTR_brimd_lookups, m->count);
	for (unsigned i = 0; i < m->count + AHEAD; i++) {
		if (i < m->count)
			prefetch(s, h->keys[i], p[i].page);
		if (i < AHEAD)
			continue;
		a[i - AHEAD] = (struct wire_answer){ .page = p[i - AHEAD].page, .kind = WIRE_ALONE };
		look_up(h, s, &a[i - AHEAD], h->keys[i - AHEAD]);
	}
	session_send(h, s, WIRE_ANSWER, m->count, m->turn);
}

/* ---- offers -------------------------------------------------------------------------------- */

void offers_drop(struct session *s)
{
	free(s->offers);
	s->offers = NULL;
	s->offers_size = s->offers_head = s->offers_count = 0;
}

static int grow_offers(struct session *s)
{
	uint32_t size = s->offers_size ? s->offers_size * 2 : 64;
	struct wire_offer *grown;

	if (s->offers_size >= s->group->host->cfg.offers_max)
		return -ENOBUFS;
	grown = calloc(size, sizeof(*grown));
	if (!grown)
		return -ENOMEM;
	for (uint32_t i = 0; i < s->offers_count; i++)
		grown[i] = s->offers[(s->offers_head + i) % s->offers_size];
	free(s->offers);
	s->offers = grown;
	s->offers_size = size;
	s->offers_head = 0;
	return 0;
}

/* Without room for it, nothing of the session is remembered, and it is told so. */
static void queue_offer(struct session *s, uint32_t page, uint32_t store_page)
{
	if (s->forgetting)
		return;
	if (s->offers_count == s->offers_size && grow_offers(s)) {
		s->forgetting = true;
		s->purge_at = 0;
		offers_drop(s);
		return;
	}
	s->offers[(s->offers_head + s->offers_count++) % s->offers_size] =
		(struct wire_offer){ page, store_page };
}

static struct index_entry *next_candidate(const struct group *g, uint64_t key,
					  const struct store *st)
{
	struct index_run r = index_find(g->index, key);

	for (unsigned i = 0; i < r.count; i++)
		if (candidate_of(g->host, &r.at[i], st))
			return &r.at[i];
	return NULL;
}

void offer_to_candidates(struct group *g, uint64_t key, struct store *st, uint32_t store_page)
{
	struct index_entry *e;

	while ((e = next_candidate(g, key, st))) {
		struct session *s = candidate_of(g->host, e, st);

		queue_offer(s, e->page, store_page);
		index_remove(g->index, e);
		entry_gone(g->host, s);
	}
	g->host->more = true;
}

static bool offer_stands(const struct session *s, const struct wire_offer *o)
{
	return s->marks[o->page] && store_has(s->store, o->store_page) &&
	       s->store->mark[o->store_page] == s->marks[o->page];
}

void offers_send(struct share_host *h, struct session *s, unsigned *budget)
{
	struct wire_offer *out = session_reply(h);
	unsigned n = 0;

	for (; s->offers_count && n < OFFERS_A_TURN && *budget; --*budget) {
		struct wire_offer o = s->offers[s->offers_head];

		s->offers_head = (s->offers_head + 1) % s->offers_size;
		s->offers_count--;
		if (offer_stands(s, &o) && process_hold(s->process, o.store_page, holds_max(s)) == 0)
			out[n++] = o;
		else
			counter_inc(CTR_brimd_stale_offers);
		candidate_drop(h, s, o.page);
	}
	if (s->offers_count == 0)
		offers_drop(s);
	counter_add(CTR_brimd_offers, n);
	if (n)
		session_send(h, s, WIRE_OFFER, n, 0);
}

/* ---- CONTENT -------------------------------------------------------------------------------- */

static bool is_hash_of(const struct wire_content *c, uint64_t seed)
{
	XXH128_hash_t x = XXH3_128bits_withSeed(c->bytes, sizeof(c->bytes), seed);

	return x.low64 == c->of.hash.lo && x.high64 == c->of.hash.hi;
}

/* Puts it into the store, held by who sent it.  0: no room. */
static uint32_t put(struct session *s, const struct wire_content *c)
{
	uint32_t at = 0;

	if (store_put(s->store, c->bytes, &at)) {
		counter_inc(CTR_brimd_later_store);
		return 0;
	}
	if (process_hold(s->process, at, holds_max(s)) == 0)
		return at;
	counter_inc(CTR_brimd_later_holds);
	store_free(s->store, at);
	return 0;
}

/* `own` becomes the store's: the same key, so it stays where it is. */
static void take_content(struct share_host *h, struct session *s, const struct wire_content *c,
			 struct index_entry *own, struct wire_answer *a)
{
	uint64_t key = own->key;
	uint32_t at = put(s, c);

	if (!at)
		return;
	*own = (struct index_entry){ key, at, INDEX_USED | INDEX_STORE | s->store->slot };
	s->store->mark[at] = index_mark(key);
	s->marks[a->page] = 0;
	entry_gone(h, s);
	counter_inc(CTR_brimd_stored);
	a->kind = WIRE_SAME;
	a->store_page = at;
	offer_to_candidates(s->group, key, s->store, at);
}

static void take(struct share_host *h, struct session *s, const struct wire_content *c,
		 struct wire_answer *a)
{
	uint64_t key = index_key(s->group->index, &c->of.hash);
	struct index_run r = index_find(s->group->index, key);
	struct index_entry *own = own_in(&r, s, a->page), *stored = stored_in(&r, s->store);

	if (!is_hash_of(c, s->group->seed)) {
		counter_inc(CTR_brimd_bad_contents);
		candidate_drop(h, s, a->page);
	} else if (stored) {
		answer_same(h, s, a, stored->page);
	} else if (!own || !(own->who & INDEX_WANTED)) {
		/* No offence: an offer or FORGET may have crossed it. */
		counter_inc(CTR_brimd_unasked_contents);
	} else {
		take_content(h, s, c, own, a);
	}
}

void content_answer(struct share_host *h, struct session *s)
{
	const struct wire_head *m = (const void *)h->in;
	const struct wire_content *c = wire_entries(m);
	struct wire_answer *a = session_reply(h);

	for (unsigned i = 0; i < m->count; i++)
		if (c[i].of.page >= s->pages) {
			session_refuse(h, s, "content of a page beyond the VM's RAM");
			return;
		}
	for (unsigned i = 0; i < m->count; i++) {
		a[i] = (struct wire_answer){ .page = c[i].of.page, .kind = WIRE_LATER };
		take(h, s, &c[i], &a[i]);
	}
	session_send(h, s, WIRE_ANSWER, m->count, m->turn);
}

/* ---- RELEASE and RECALL ------------------------------------------------------------------------ */

void release_answer(struct share_host *h, struct session *s)
{
	const struct wire_head *m = (const void *)h->in;
	const struct wire_store_page *p = wire_entries(m);

	for (unsigned i = 0; i < m->count; i++) {
		if (!holds_test(&s->process->holds, p[i].store_page)) {
			session_refuse(h, s, "it releases a store page that it does not hold");
			return;
		}
		process_release(s->process, p[i].store_page);
		counter_inc(CTR_brimd_released);
	}
	session_send(h, s, WIRE_RELEASED, 0, m->turn);
}

/* Two sweeps in a row must have found it alone. */
static bool is_due(struct store *st, uint32_t page)
{
	if (st->refs[page] != 1 || st->age[page] == STORE_RECALLED)
		return false;
	return ++st->age[page] == STORE_RECALLED;
}

static unsigned sweep(struct process *p, struct wire_store_page *out, unsigned *budget)
{
	unsigned n = 0;

	for (; *budget && n < wire_entries_max(WIRE_RECALL); --*budget) {
		uint32_t page = holds_next(&p->holds, p->recall_at);

		if (page >= p->holds.end) {
			p->recall_at = 0;
			p->recall_due_ns = p->group->host->now_ns + p->group->host->cfg.recall_after_ns;
			return n;
		}
		if (is_due(p->store, page))
			out[n++].store_page = page;
		p->recall_at = page + 1;
	}
	p->group->host->more = true;
	return n;
}

void recall_work(struct share_host *h, struct process *p, unsigned *budget)
{
	unsigned n;

	if (!p->session || !session_is_free(p->session) || p->store->limbo ||
	    h->now_ns < p->recall_due_ns || !*budget)
		return;
	n = sweep(p, session_reply(h), budget);
	counter_add(CTR_brimd_recalled, n);
	if (n)
		session_send(h, p->session, WIRE_RECALL, n, 0);
}
