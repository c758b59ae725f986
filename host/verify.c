/*
 * Whether index, stores, holds and sessions agree: every number is counted again from
 * what it is a number of.  For tests; slow.
 */
#include "host/internal.h"

#include <errno.h>
#include <stdlib.h>

struct check {
	const struct share_host *h;
	const struct group *g;
	struct err *why;
	uint64_t candidates, stored;
};

#define AMISS(c, ...) (err_set((c)->why, -EINVAL, __VA_ARGS__), false)

static bool check_candidate(struct check *c, const struct index_entry *e)
{
	const struct session *s = c->h->slots[e->who % SESSION_SLOTS];

	if (!s || s->group != c->g)
		return AMISS(c, "a candidate's session is not there");
	if (e->page >= s->pages || s->marks[e->page] != index_mark(e->key))
		return AMISS(c, "page %u: candidate and mark do not agree", e->page);
	c->candidates++;
	return true;
}

static bool check_stored(struct check *c, const struct index_entry *e)
{
	const struct store *st = c->g->stores;

	while (st && st->slot != (e->who & (INDEX_ID_MAX - 1)))
		st = st->next;
	if (!st || !store_has(st, e->page) || st->mark[e->page] != index_mark(e->key))
		return AMISS(c, "store page %u is in the index, and not there", e->page);
	c->stored++;
	return true;
}

static bool check_entry(void *ctx, const struct index_entry *e)
{
	return e->who & INDEX_STORE ? check_stored(ctx, e) : check_candidate(ctx, e);
}

static unsigned count_holders(const struct check *c, const struct store *st, uint32_t page)
{
	unsigned n = 0;

	for (const struct process *p = c->h->processes; p; p = p->next)
		n += p->store == st && holds_test(&p->holds, page);
	return n;
}

static bool check_page(struct check *c, const struct store *st, uint32_t page)
{
	unsigned n = count_holders(c, st, page);

	if (st->refs[page] != n)
		return AMISS(c, "store page %u: %u holders, counted as %u", page, n, st->refs[page]);
	if (store_has(st, page) != (n > 0))
		return AMISS(c, "store page %u: used does not go with %u holders", page, n);
	if (st->mark[page])
		c->stored--;
	return true;
}

static bool check_store(struct check *c, const struct store *st)
{
	uint32_t used = 0, dirty = 0;

	for (uint32_t page = STORE_FIRST_PAGE; page < st->extent; page++) {
		if (!check_page(c, st, page))
			return false;
		used += store_has(st, page);
		dirty += st->dirty[page / 64] >> page % 64 & 1;
	}
	if (used != st->used_pages || dirty != st->dirty_pages)
		return AMISS(c, "a store's numbers are wrong: %u and %u used, %u and %u dirty", used,
			     st->used_pages, dirty, st->dirty_pages);
	return true;
}

static bool check_process(struct check *c, const struct process *p)
{
	uint32_t n = 0;

	for (uint32_t page = holds_next(&p->holds, 0); page < p->holds.end;
	     page = holds_next(&p->holds, page + 1))
		n++;
	if (n != p->holds.count || (n && !p->store))
		return AMISS(c, "process %d holds %u, counted as %u", (int)p->pid, n, p->holds.count);
	return true;
}

static bool check_group(struct check *c, uint64_t *candidates)
{
	uint64_t sum = 0;

	c->candidates = c->stored = 0;
	if (!index_each(c->g->index, check_entry, c))
		return *c->why->msg ? false : AMISS(c, "the index is out of order");
	for (const struct store *st = c->g->stores; st; st = st->next)
		if (!check_store(c, st))
			return false;
	if (c->stored != 0)
		return AMISS(c, "pages with a mark and entries of the index differ");
	for (const struct session *s = c->h->sessions; s; s = s->next)
		sum += s->group == c->g ? s->candidates : 0;
	if (sum != c->candidates)
		return AMISS(c, "%llu candidates, counted as %llu",
			     (unsigned long long)c->candidates, (unsigned long long)sum);
	*candidates += sum;
	return true;
}

bool share_host_verify(const struct share_host *h, struct err *why)
{
	struct check c = { .h = h, .why = why };
	uint64_t candidates = 0;

	why->msg[0] = '\0';
	for (const struct process *p = h->processes; p; p = p->next)
		if (!check_process(&c, p))
			return false;
	for (c.g = h->groups; c.g; c.g = c.g->next)
		if (!check_group(&c, &candidates))
			return false;
	if (candidates != h->candidates)
		return AMISS(&c, "candidates of all groups are counted wrong");
	return true;
}
