/*
 * Pages whose content is in a store, which this VM maps read-only and other VMs use too.
 * Runs of them may be mapped instead (map.c); here it is decided which are equal.
 *
 *   engine_cold() says which pages are worth a hash: in RAM, not written for some passes,
 *   not hashed since.  Who asks hashes them where they are, finds out elsewhere what may be
 *   equal, and comes back with that: engine_share().
 *
 *     GUEST   moved to the freezer, a few slots behind staging, and compared with the
 *             store's page there, where nobody can write it.  Equal: STORED, and the
 *             freezer is emptied.  Not equal: moved home.
 *     STAGED  is frozen already.
 *     PACKED  is unpacked to compare, and dropped where it is equal.
 *
 *   All of it under the lock of the page's chunk, so that a fault that comes in between
 *   waits for some microseconds and finds one state or the other.
 *
 * A page of zeroes needs no store: its memory is given back, and the next touch finds
 * zeroes as ever (state GUEST).
 *
 * Pages that keep changing are left alone for longer and longer: each hash that was for
 * nothing quadruples the passes a page must be quiet before the next.
 *
 * Threads: one that shares (whoever calls this; never two at once), which may wait for
 * faults of its own only without locks held.
 *
 * Invariants:
 *  I1  A page is STORED only after all its bytes were equal to the store's, in a place
 *      where nobody could write it, with its chunk's lock held since.
 *  I2  The store's page does not change while this VM uses it (the store's promise); a
 *      sum of 20 bits beside its number finds it out if it did.
 *  I3  No page leaves between a discard's forgetting and its madvise (`take`).
 */
#include "mm/internal.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <xxhash.h>

#define STORE_PAGE_BITS 28 /* RAM_MAX_BYTES in pages */
#define SUM_BITS 20

static const uint8_t zeroes[PAGE_BYTES];

uint32_t share_store_page(uint64_t payload)
{
	return payload & (((uint64_t)1 << STORE_PAGE_BITS) - 1);
}

static uint64_t sum_of(const uint8_t *page)
{
	return XXH3_64bits(page, PAGE_BYTES) >> (64 - SUM_BITS);
}

uint64_t share_payload(uint32_t store_page, const uint8_t *page)
{
	return store_page | sum_of(page) << STORE_PAGE_BITS;
}

static const uint8_t *store_at(const struct engine *e, uint32_t store_page)
{
	VERIFY(store_page && store_page < e->store.pages);
	return e->store.base + ((uint64_t)store_page << PAGE_SHIFT);
}

void engine_set_store(struct engine *e, const struct mm_store *store)
{
	VERIFY(!e->store.base && store->pages <= (uint32_t)1 << STORE_PAGE_BITS);
	e->store = *store;
}

void engine_renew_store(struct engine *e, int fd)
{
	VERIFY(e->store.base && !atomic_load(&e->pages.in_state[PAGE_STORED]) &&
	       !atomic_load(&e->pages.in_state[PAGE_SHARED]));
	e->store.fd = fd;
	map_renew(e);
}

int share_get(struct engine *e, uint64_t payload, uint8_t *page)
{
	memcpy(page, store_at(e, share_store_page(payload)), PAGE_BYTES);
	if (sum_of(page) == payload >> STORE_PAGE_BITS)
		return 0;
	counter_inc(CTR_engine_store_damaged);
	return -EIO;
}

void share_drop(struct engine *e, uint64_t payload)
{
	e->store.drop(e->store.ctx, share_store_page(payload));
}

/* ---- what is worth a hash ------------------------------------------------------- */

static bool is_worth_hash(const struct page *p)
{
	static const uint8_t quiet[] = { 2, 8, 32, ENGINE_AGES - 1 };

	return p->state == PAGE_GUEST && p->present && !p->hashed && p->age >= quiet[p->restless];
}

void share_note(struct chunk *c, struct page *p, bool written)
{
	if (written) {
		p->restless += p->hashed && p->restless < 3;
		p->hashed = 0;
	} else if (p->age == ENGINE_AGES - 1 && p->restless) {
		p->restless--; /* long quiet: not what it was */
	}
	c->unhashed += is_worth_hash(p);
}

static uint64_t cold_in_chunk(struct engine *e, uint64_t chunk, uint32_t *list, uint64_t n)
{
	struct chunk *c = &e->pages.chunk[chunk];
	uint64_t found = 0;

	pthread_mutex_lock(&c->lock);
	for (uint64_t i = chunk * CHUNK_PAGES; c->unhashed && found < n &&
	     i < (chunk + 1) * CHUNK_PAGES; i++) {
		struct page *p = &e->pages.page[i];

		if (!is_worth_hash(p))
			continue;
		p->hashed = 1;
		c->unhashed--;
		list[found++] = (uint32_t)i;
	}
	if (found < n)
		c->unhashed = 0; /* some left, or were written, since they were counted */
	pthread_mutex_unlock(&c->lock);
	return found;
}

uint64_t engine_cold(struct engine *e, uint64_t *cursor, uint32_t *list, uint64_t n)
{
	uint64_t found = 0;

	while (found < n && *cursor < e->pages.chunk_count) {
		found += cold_in_chunk(e, *cursor, list + found, n - found);
		*cursor += found < n;
	}
	return found;
}

static uint64_t packed_in_chunk(struct engine *e, uint64_t *at, uint32_t *list, uint64_t n)
{
	struct chunk *c = chunk_of(&e->pages, *at);
	uint64_t end = (*at / CHUNK_PAGES + 1) * CHUNK_PAGES, found = 0;

	pthread_mutex_lock(&c->lock);
	if (!c->away)
		*at = end;
	for (; *at < end && found < n; ++*at)
		if (e->pages.page[*at].state == PAGE_PACKED)
			list[found++] = (uint32_t)*at;
	pthread_mutex_unlock(&c->lock);
	return found;
}

uint64_t engine_packed(struct engine *e, uint64_t *at, uint32_t *list, uint64_t n)
{
	uint64_t found = 0;

	while (found < n && *at < e->pages.count)
		found += packed_in_chunk(e, at, list + found, n - found);
	return found;
}

void engine_forget_hashes(struct engine *e)
{
	for (uint64_t c = 0; c < e->pages.chunk_count; c++) {
		pthread_mutex_lock(&e->pages.chunk[c].lock);
		e->pages.chunk[c].unhashed = 0;
		for (uint64_t i = c * CHUNK_PAGES; i < (c + 1) * CHUNK_PAGES; i++) {
			struct page *p = &e->pages.page[i];

			p->hashed = 0;
			e->pages.chunk[c].unhashed += is_worth_hash(p);
		}
		pthread_mutex_unlock(&e->pages.chunk[c].lock);
	}
}

void engine_keep_ages(struct engine *e, uint64_t ns)
{
	atomic_store(&e->ages_ns, ns);
	engine_wake_reclaimer(e);
}

int engine_peek(struct engine *e, uint64_t index, void *page)
{
	const struct page *p = &e->pages.page[index];
	struct chunk *c = chunk_of(&e->pages, index);
	int rc = -ENODATA;

	VERIFY(index < e->pages.count);
	pthread_mutex_lock(&c->lock);
	if (p->state == PAGE_GUEST)
		rc = -EAGAIN;
	else if (p->state == PAGE_PACKED && !e->tier->get(e->tier_ctx, p->payload, index, page))
		rc = 0;
	if (p->state == PAGE_STAGED) {
		memcpy(page, slot_at(e, p->payload), PAGE_BYTES);
		rc = 0;
	}
	pthread_mutex_unlock(&c->lock);
	return rc;
}

/* ---- sharing --------------------------------------------------------------------- */

static void now_stored(struct engine *e, struct mm_same *s, const uint8_t *page)
{
	page_set(&e->pages, s->page, PAGE_STORED, share_payload(s->store_page, page));
	counter_inc(CTR_engine_shared);
	s->rc = 0;
}

/* A frozen page of zeroes: forgotten as if it had been discarded. */
static void now_nothing(struct engine *e, struct mm_same *s)
{
	page_set(&e->pages, s->page, PAGE_GUEST, 0);
	e->pages.page[s->page].present = 0;
	counter_inc(CTR_engine_zeroes);
	s->rc = 0;
}

static void not_equal(struct engine *e, struct mm_same *s)
{
	counter_inc(CTR_engine_share_differs);
	s->rc = -ESTALE;
}

/* Home again, as if nothing had been. */
static void thaw(struct engine *e, struct mm_same *s)
{
	int rc = fault_unstage(e, s->page);

	if (rc) {
		engine_dead(e, s->page, "staging", rc);
		return;
	}
	e->pages.page[s->page].back = 1;
	atomic_fetch_add(&e->present_pages, 1);
}

/* The page is STAGED, in whatever slot.  True: it is away for good. */
static bool judge_frozen(struct engine *e, struct mm_same *s)
{
	const uint8_t *mine = slot_at(e, e->pages.page[s->page].payload);
	const uint8_t *want = s->store_page ? store_at(e, s->store_page) : zeroes;

	if (memcmp(mine, want, PAGE_BYTES)) {
		not_equal(e, s);
		return false;
	}
	if (s->store_page)
		now_stored(e, s, mine);
	else
		now_nothing(e, s);
	return true;
}

/* Freezes n pages in a row, all GUEST: how many, at least one, or why not the first. */
static int64_t freeze(struct engine *e, uint64_t index, uint64_t n)
{
	uint64_t slot = e->slots + e->frozen;
	int64_t done = engine_move(e, slot_at(e, slot), page_at(e, index), n);

	if (done == -EEXIST)
		e->frozen++; /* the slot has memory: passed over, and emptied with the rest */
	if (done == -EIO)
		engine_dead(e, index, "lost between guest RAM and staging", (int)done);
	for (int64_t i = 0; i < done; i++) {
		engine_count_off(&e->age_pages[e->pages.page[index + (uint64_t)i].age], 1);
		page_set(&e->pages, index + (uint64_t)i, PAGE_STAGED, slot + (uint64_t)i);
	}
	if (done > 0) {
		e->frozen += (uint64_t)done;
		engine_count_off(&e->present_pages, (uint64_t)done);
	}
	return done;
}

/* Frozen pages in a row that equal store pages in a row. */
static uint64_t equal_run(struct engine *e, const struct mm_same *s, uint64_t n)
{
	uint64_t run = 0;

	while (run < n && s[run].store_page && s[run].store_page == s->store_page + run &&
	       !memcmp(slot_at(e, e->pages.page[s[run].page].payload),
		       store_at(e, s[run].store_page), PAGE_BYTES))
		run++;
	return run;
}

/* How many of the first of n frozen pages could be mapped. */
static uint64_t share_mapped(struct engine *e, struct mm_same *s, uint64_t n)
{
	uint64_t run = equal_run(e, s, n);

	if (!run || !map_put(e, s, run))
		return 0;
	for (uint64_t i = 0; i < run; i++)
		s[i].rc = 0;
	return run;
}

/* n frozen pages in a row: away for good, or thawed. */
static void judge_run(struct engine *e, struct mm_same *s, uint64_t n)
{
	for (uint64_t i = 0; i < n;) {
		uint64_t run = e->may_map ? share_mapped(e, s + i, n - i) : 0;

		if (!run && !judge_frozen(e, &s[i]))
			thaw(e, &s[i]);
		i += run ? run : 1;
	}
}

/* The first of n pages in a row, and as many behind it as could be frozen with it. */
static uint64_t share_run(struct engine *e, struct mm_same *s, uint64_t n)
{
	int64_t done = freeze(e, s->page, n);

	if (done < 0) {
		counter_inc(done == -EBUSY ? CTR_engine_pinned : CTR_engine_share_refused);
		s->rc = -EAGAIN;
		return 1;
	}
	judge_run(e, s, (uint64_t)done);
	return (uint64_t)done;
}

static void share_packed(struct engine *e, struct mm_same *s)
{
	uint64_t ref = e->pages.page[s->page].payload;
	const uint8_t *want = store_at(e, s->store_page);

	/* What is damaged is its own fault's to find: it may never be touched. */
	if (e->tier->get(e->tier_ctx, ref, s->page, e->unpacked)) {
		s->rc = -EAGAIN;
	} else if (memcmp(e->unpacked, want, PAGE_BYTES)) {
		not_equal(e, s);
	} else {
		now_stored(e, s, e->unpacked);
		e->tier->drop(e->tier_ctx, ref);
	}
}

/* What is not in guest RAM. */
static void share_away(struct engine *e, struct mm_same *s)
{
	switch ((enum page_state)e->pages.page[s->page].state) {
	case PAGE_STAGED:
		judge_frozen(e, s);
		break;
	case PAGE_PACKED:
		if (s->store_page)
			share_packed(e, s);
		break;
	default:
		break; /* -EAGAIN */
	}
}

/* Pages in a row that are in guest RAM, of one chunk, as far as there is room to freeze. */
static uint64_t run_of(const struct engine *e, const struct mm_same *s, uint64_t n)
{
	uint64_t run = 0, free = FREEZER_SLOTS - e->frozen, in_chunk = CHUNK_PAGES - s->page % CHUNK_PAGES;
	uint64_t most = free < in_chunk ? free : in_chunk;

	while (run < n && run < most && s[run].page == s->page + run &&
	       e->pages.page[s[run].page].state == PAGE_GUEST)
		run++;
	return run;
}

/* Entries of one chunk.  Returns how many were done with. */
static uint64_t share_in_chunk(struct engine *e, struct mm_same *s, uint64_t n)
{
	uint64_t chunk = s->page / CHUNK_PAGES, at = 0;

	pthread_mutex_lock(&e->take);
	pthread_mutex_lock(&e->pages.chunk[chunk].lock);
	while (at < n && e->frozen < FREEZER_SLOTS && s[at].page / CHUNK_PAGES == chunk) {
		uint64_t run = run_of(e, s + at, n - at);

		s[at].rc = -EAGAIN;
		if (!run)
			share_away(e, &s[at++]);
		else if (engine_watch(e, chunk))
			at++;
		else
			at += share_run(e, s + at, run);
	}
	pthread_mutex_unlock(&e->pages.chunk[chunk].lock);
	pthread_mutex_unlock(&e->take);
	return at;
}

/* What was dropped, gone; what went home left nothing. */
static bool empty_freezer(struct engine *e)
{
	if (e->frozen && e->host->madvise(slot_at(e, e->slots), e->frozen << PAGE_SHIFT,
					  MADV_DONTNEED) < 0)
		return false; /* the next call tries again */
	e->frozen = 0;
	return true;
}

static uint64_t share_all(struct engine *e, struct mm_same *list, uint64_t n)
{
	uint64_t at = 0, shared = 0;

	for (uint64_t i = 0; i < n; i++) {
		VERIFY(list[i].page < e->pages.count && (e->store.base || !list[i].store_page));
		list[i].rc = -EAGAIN;
	}
	while (at < n && empty_freezer(e))
		at += share_in_chunk(e, list + at, n - at);
	empty_freezer(e);
	for (uint64_t i = 0; i < n; i++)
		shared += list[i].rc == 0;
	return shared;
}

uint64_t engine_share(struct engine *e, struct mm_same *list, uint64_t n)
{
	e->may_map = false;
	return share_all(e, list, n);
}

uint64_t engine_share_mapped(struct engine *e, struct mm_same *list, uint64_t n)
{
	e->may_map = map_ready(e);
	return share_all(e, list, n);
}

/* ---- back to private ---------------------------------------------------------------- */

static bool is_use_of(const struct engine *e, uint64_t index, const uint64_t *set)
{
	uint32_t s = share_store_page(e->pages.page[index].payload);
	enum page_state state = e->pages.page[index].state;

	return (state == PAGE_STORED || state == PAGE_SHARED) && (set[s / 64] >> s % 64 & 1);
}

/* A STORED page. */
static uint64_t bring_home(struct engine *e, uint64_t index)
{
	if (share_get(e, e->pages.page[index].payload, e->unpacked) ||
	    fault_copy_in(e, index, e->unpacked, 1) != 1)
		return 0; /* its fault will say what is wrong */
	fault_home(e, index, 1);
	atomic_fetch_add(&e->arrived_pages, 1);
	return 1;
}

/* SHARED pages of the set from index on. */
static uint64_t shared_run(const struct engine *e, uint64_t index, const uint64_t *set)
{
	uint64_t n = 0, most = CHUNK_PAGES - index % CHUNK_PAGES;

	while (n < most && e->pages.page[index + n].state == PAGE_SHARED && is_use_of(e, index + n, set))
		n++;
	return n;
}

static uint64_t unshare_in_chunk(struct engine *e, uint64_t chunk, const uint64_t *set)
{
	struct chunk *c = &e->pages.chunk[chunk];
	uint64_t done = 0;

	pthread_mutex_lock(&e->take);
	pthread_mutex_lock(&c->lock);
	for (uint64_t i = chunk * CHUNK_PAGES; c->away && i < (chunk + 1) * CHUNK_PAGES;) {
		uint64_t run = shared_run(e, i, set);

		if (run)
			done += map_take_back(e, i, run) ? 0 : run;
		else if (is_use_of(e, i, set))
			done += bring_home(e, i);
		i += run ? run : 1;
	}
	pthread_mutex_unlock(&c->lock);
	pthread_mutex_unlock(&e->take);
	counter_add(CTR_engine_unshared, done);
	return done;
}

uint64_t engine_unshare(struct engine *e, const uint64_t *set)
{
	uint64_t done = 0;

	for (uint64_t c = 0; c < e->pages.chunk_count; c++)
		done += unshare_in_chunk(e, c, set);
	return done;
}
