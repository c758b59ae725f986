/*
 * Huge pages under the engine: kept while memory is plentiful, broken last, made again.
 *
 *   A write to a huge page whose notes are armed makes the kernel map it in small pages
 *   from then on: there is one note for 2 MiB, so that is how it tells where the write
 *   was.  So a pass arms small pages only.  Huge pages are left alone, and look written,
 *   until cold small pages run short: then a few a round are sampled, that is, armed.
 *   One that is written is broken, and its pages are told apart; one that is not
 *   grows old, and is taken whole (reclaim.c).
 *
 *             pass: writes seen             pass: not written, cold
 *     small ◄──────────────────── sampled ──────────────────────────► taken whole
 *       │                            ▲
 *       │ plentiful, all there,      │ small cold pages run short
 *       │ written lately             │
 *       └──────────► huge, left alone┘
 *
 *   Memory is plentiful where there is no limit, or far less is held than the limit.
 *   Then a chunk with all its 512 pages in guest RAM, many of them written lately, is
 *   re-formed with MADV_COLLAPSE; and a chunk of which nothing is away any more is left
 *   to the kernel again, which gives the host its page-table walk without us, and merges
 *   its VMA with its neighbours'.
 *
 * What the kernel does (Linux 6.18, by experiment and by its source): MADV_COLLAPSE
 * answers EINVAL while one page is armed, and under MADV_NOHUGEPAGE; EBUSY for a missing
 * page or the zero page in a range registered with a userfaultfd, so that it never adds
 * memory to one; EAGAIN for pinned pages.  It copies the pages while they are unmapped,
 * and whoever touches one waits.  It ignores the host's "never", which we do not.
 *
 * Threads: the reclaimer.
 *
 * Invariants:
 *  I1  A chunk is unwatched only under its lock and with nothing of it away.
 *  I2  Re-forming adds no memory: all 512 pages had some, and the kernel looks again.
 *  I3  Guest RAM is registered for write-protect, all of it, whenever a pass runs.
 */
#include "mm/internal.h"

#include <errno.h>
#include <sys/mman.h>

#define SAMPLE_ROUND 8u      /* huge pages armed a round */
#define SUPPLY_PAGES 8192u   /* cold small pages that are enough */
#define SUPPLY_AGE 4u
#define FORM_ROUND 4u        /* chunks re-formed a round: a millisecond each and more */
#define FORM_YOUNG (CHUNK_PAGES / 8)
#define SHARE_REST 255u      /* and such until one that was armed to look for equal pages is */
#define FORM_REST 32u        /* passes until a chunk that was refused is tried again */
#define UNWATCH_ROUND 64u
#define IDLE_SHIFT_MIN 2u
#define IDLE_SHIFT_MAX 9u

/* ---- the pass ---------------------------------------------------------------- */

uint64_t huge_run_end(const struct engine *e, uint64_t from, bool *arm)
{
	const struct pages *t = &e->pages;
	uint64_t c = from / CHUNK_PAGES;

	*arm = !e->huge || t->chunk[c].arm;
	if (!e->huge)
		return t->count;
	while (c < t->chunk_count && t->chunk[c].arm == *arm)
		c++;
	return c * CHUNK_PAGES;
}

void huge_chunk_begin(struct engine *e, struct chunk *c, bool is_huge)
{
	c->huge = is_huge;
	c->oldest = 0;
	c->present = c->takeable = c->young = 0;
	c->rest -= c->rest != 0;
}

/* A chunk without memory may become a huge page by the first touch: not armed. */
void huge_chunk_end(struct engine *e, struct chunk *c)
{
	if (!c->huge)
		c->arm = c->present != 0;
	c->home = c->away == 0;
}

bool huge_offers(const struct chunk *c, enum huge_take kind, unsigned min_age)
{
	if (!c->takeable || c->oldest < min_age)
		return false;
	switch (kind) {
	case TAKE_SMALL:
		return !c->huge;
	case TAKE_WHOLE:
		return c->huge && c->takeable == CHUNK_PAGES;
	default:
		return c->huge;
	}
}

/* ---- sampling ---------------------------------------------------------------- */

static uint64_t cold_supply(const struct engine *e)
{
	uint64_t sum = 0;

	for (unsigned age = SUPPLY_AGE; age < ENGINE_AGES; age++)
		sum += atomic_load(&e->age_pages[age]);
	return sum;
}

/* Not of those that were made or looked at lately, if it is only to find equal pages: one
 * that is broken is to stay so for a while. */
static void sample_some(struct engine *e, bool rested)
{
	uint64_t left = e->pages.chunk_count;

	if (!e->huge)
		return;
	for (unsigned n = 0; n < SAMPLE_ROUND && left; left--) {
		struct chunk *c = &e->pages.chunk[e->sample_cursor];

		e->sample_cursor = (e->sample_cursor + 1) % e->pages.chunk_count;
		if (!c->huge || c->arm || (rested && c->rest))
			continue;
		c->arm = true;
		if (rested)
			c->rest = SHARE_REST;
		counter_inc(CTR_engine_huge_sampled);
		n++;
	}
}

/* Memory has become plentiful: what was sampled and not broken stays whole. */
static void stop_sampling(struct engine *e)
{
	for (uint64_t i = 0; e->huge && i < e->pages.chunk_count; i++) {
		struct chunk *c = &e->pages.chunk[i];

		if (c->huge && c->arm && !engine_disarm(e, i))
			c->arm = false;
	}
}

/* ---- un-watching --------------------------------------------------------------- */

bool huge_repair(struct engine *e)
{
	struct chunk *c = e->bare ? &e->pages.chunk[e->bare - 1] : NULL;
	int rc;

	if (!c)
		return true;
	pthread_mutex_lock(&c->lock);
	rc = engine_watch(e, e->bare - 1);
	pthread_mutex_unlock(&c->lock);
	if (!rc)
		e->bare = 0;
	return !rc;
}

/* Lets go of the chunk: nothing of it is away, none of its pages is armed. */
static bool release(struct engine *e, uint64_t chunk)
{
	struct chunk *c = &e->pages.chunk[chunk];
	bool watched, done = false;

	pthread_mutex_lock(&c->lock);
	watched = c->watched;
	if (c->away == 0)
		done = !(watched ? engine_unwatch(e, chunk) : engine_disarm(e, chunk));
	pthread_mutex_unlock(&c->lock);
	if (done && watched) {
		counter_inc(CTR_engine_unwatched);
		throttle_count_unseen(e, c);
	}
	return done;
}

static unsigned unwatch_some(struct engine *e)
{
	unsigned done = 0;

	for (uint64_t left = e->pages.chunk_count; left && done < UNWATCH_ROUND; left--) {
		struct chunk *c = &e->pages.chunk[e->watch_cursor];

		if (c->watched && c->home && throttle_may_unwatch(e, c) && huge_repair(e))
			done += release(e, e->watch_cursor);
		e->watch_cursor = (e->watch_cursor + 1) % e->pages.chunk_count;
	}
	return done;
}

/* ---- re-forming ---------------------------------------------------------------- */

static int advise(struct engine *e, uint64_t chunk, int advice)
{
	void *at = page_at(e, chunk * CHUNK_PAGES);

	return e->host->madvise(at, HUGE_BYTES, advice) < 0 ? -errno : 0;
}

/* With --hugepages auto most of RAM asks for small pages, and is refused: so huge ones
 * are asked for as long as it takes.  No fault makes one meanwhile that would cost
 * anything: all pages are there. */
static int collapse(struct engine *e, uint64_t chunk)
{
	int rc = advise(e, chunk, MADV_COLLAPSE);

	if (rc != -EINVAL || ram_huge_setting(e->ram) != RAM_HUGE_AUTO)
		return rc;
	if (advise(e, chunk, MADV_HUGEPAGE))
		return rc;
	rc = advise(e, chunk, MADV_COLLAPSE);
	advise(e, chunk, MADV_NOHUGEPAGE);
	return rc;
}

static void spare_again(struct chunk *c)
{
	pthread_mutex_lock(&c->lock);
	c->spared = false;
	pthread_mutex_unlock(&c->lock);
}

static void note_formed(struct chunk *c, int rc)
{
	if (!rc)
		counter_inc(CTR_engine_huge_formed);
	else if (rc == -ENOMEM)
		counter_inc(CTR_engine_huge_no_memory);
	else if (rc == -EBUSY || rc == -EAGAIN)
		counter_inc(CTR_engine_huge_busy);
	else
		counter_inc(CTR_engine_huge_refused);
	c->arm = false;
	c->rest = FORM_REST;
	if (!rc)
		spare_again(c);
}

static bool may_form(const struct chunk *c)
{
	return !c->huge && !c->rest && c->present == CHUNK_PAGES && c->young >= FORM_YOUNG;
}

/* The FORM_ROUND hottest chunks that may be re-formed, hottest first. */
static unsigned find_hottest(const struct engine *e, uint64_t found[FORM_ROUND])
{
	const struct chunk *chunk = e->pages.chunk;
	unsigned n = 0, at;

	for (uint64_t c = 0; c < e->pages.chunk_count; c++) {
		if (!may_form(&chunk[c]))
			continue;
		if (n == FORM_ROUND && chunk[found[n - 1]].young >= chunk[c].young)
			continue;
		n += n < FORM_ROUND;
		for (at = n - 1; at && chunk[found[at - 1]].young < chunk[c].young; at--)
			found[at] = found[at - 1];
		found[at] = c;
	}
	return n;
}

static unsigned form_some(struct engine *e)
{
	uint64_t found[FORM_ROUND];
	unsigned n = e->huge && e->host->huge_allowed() ? find_hottest(e, found) : 0;

	for (unsigned i = 0; i < n && huge_repair(e); i++) {
		int rc = release(e, found[i]) ? collapse(e, found[i]) : -EBUSY;

		note_formed(&e->pages.chunk[found[i]], rc);
	}
	return n;
}

/* ---- rounds ---------------------------------------------------------------------- */

/* Two thresholds: an eighth of the limit free begins it, a sixteenth ends it. */
static bool is_plenty(const struct engine *e)
{
	uint64_t limit = atomic_load(&e->limit_bytes) >> PAGE_SHIFT;
	uint64_t held = engine_held_pages(e), share = e->plenty ? 16 : 8;

	return !limit || held < limit - limit / share;
}

static bool nobody_asks(const struct engine *e)
{
	return !atomic_load(&e->limit_bytes) && !atomic_load(&e->wanted_bytes);
}

bool huge_has_work(const struct engine *e)
{
	return atomic_load(&e->watched_chunks) ||
	       (e->huge && e->plenty && e->idle_shift < IDLE_SHIFT_MAX);
}

/* Without a limit, rounds are only for this: they come the slower the longer they
 * find nothing, and in the end not at all, or once in 51 s while a chunk is watched. */
static void pace(struct engine *e, unsigned done)
{
	if (!nobody_asks(e))
		e->idle_shift = 0;
	else if (done || e->idle_shift < IDLE_SHIFT_MIN)
		e->idle_shift = IDLE_SHIFT_MIN;
	else if (e->idle_shift < IDLE_SHIFT_MAX)
		e->idle_shift++;
}

void huge_round(struct engine *e, bool over)
{
	bool was = e->plenty;
	unsigned done = 0;

	e->plenty = !over && is_plenty(e);
	if (e->plenty) {
		if (!was)
			stop_sampling(e);
		done = unwatch_some(e) + form_some(e);
	} else if (cold_supply(e) < SUPPLY_PAGES) {
		sample_some(e, false);
	}
	if (atomic_load(&e->ages_ns))
		sample_some(e, true);
	throttle_watch(e);
	pace(e, done);
}
