/*
 * A guest that takes memory faster than the reclaimer takes it away.
 *
 * Packing a page takes longer than writing one, so without a brake a few vCPUs that
 * touch new memory would run away from any limit.  The brake is the fault: while the
 * VM holds more than its limit and a margin, who touches a page that is not there waits
 * a little, the longer the further it is over, so that packing keeps up.
 *
 * Memory of a chunk nobody watches is given by the kernel, without a word to us, and
 * the limit's worth of it in a tenth of a second.  So a VM with a limit has unwatched
 * only as much missing memory as fits under the limit in any case (I1); beyond that its
 * chunks are watched, and new memory comes by way of a fault thread, which counts it.
 * The price is a round trip for a page that is new, for VMs near their limit only; and
 * while there is room, one is for many pages that are touched in order.
 *
 * The guest's own tasks wait, nobody else's; and each wait is bounded, since a vCPU in
 * a fault cannot take an interrupt.
 *
 * Threads: throttle_ns() from any, with no lock held; the rest the reclaimer.
 *
 * Invariants:
 *  I1  After a round, unseen_pages is at most half of what the VM may still take, as
 *      far as WATCH_ROUND chunks a round allow and the kernel does.
 *  I2  held + unseen + arrived is never less than what the VM holds: present_pages is
 *      of the last pass, and what came since was either unseen or arrived.
 */
#include "mm/internal.h"

#define MARGIN_SHARE 64 /* of the limit */
#define RESERVE_SHARE 32
#define WAIT_MAX_NS 20000000u
#define BACK_SHARE 16 /* a page that comes back leaves room behind, and costs its fault */
#define WAIT_HELPLESS_NS 1000000u
#define WATCH_ROUND 4096u

/* 0: none, or none that the VM could exceed. */
static uint64_t limit_pages(const struct engine *e)
{
	uint64_t limit = atomic_load(&e->limit_bytes) >> PAGE_SHIFT;

	return limit < e->pages.count ? limit : 0;
}

static bool is_new(struct engine *e, uint64_t index)
{
	struct chunk *c = chunk_of(&e->pages, index);
	bool home;

	pthread_mutex_lock(&c->lock);
	home = e->pages.page[index].state == PAGE_GUEST;
	pthread_mutex_unlock(&c->lock);
	return home;
}

/* The wait of a VM that many pages beyond limit and margin. */
static uint64_t wait_ns(struct engine *e, uint64_t beyond, uint64_t margin, uint64_t index)
{
	uint64_t wait = beyond >= margin ? WAIT_MAX_NS : beyond * WAIT_MAX_NS / margin;

	/* To wait is of use where packing gets somewhere.  Where it does not, what is away
	 * comes back at once, and only new memory is held up. */
	if (atomic_load(&e->helpless))
		return is_new(e, index) ? WAIT_HELPLESS_NS : 0;
	return is_new(e, index) ? wait : wait / BACK_SHARE;
}

uint64_t throttle_ns(struct engine *e, uint64_t index)
{
	uint64_t arrived = atomic_fetch_add(&e->arrived_pages, 1) + 1, limit = limit_pages(e);
	uint64_t most, margin = limit / MARGIN_SHARE + 1, wait;

	if (!limit)
		return 0;
	most = engine_held_pages(e) + atomic_load(&e->unseen_pages) + arrived; /* I2 */
	if (most > limit && !atomic_load(&e->helpless) && !atomic_exchange(&e->hurried, true))
		engine_wake_reclaimer(e);
	if (most <= limit + margin)
		return 0;
	wait = wait_ns(e, most - limit - margin, margin, index);
	counter_add(CTR_engine_throttled, wait != 0);
	counter_add(CTR_engine_throttled_ns, wait);
	return wait;
}

bool throttle_has_room(struct engine *e, uint64_t pages)
{
	uint64_t limit = limit_pages(e);

	return !limit || engine_held_pages(e) + atomic_load(&e->unseen_pages) +
			 atomic_load(&e->arrived_pages) + pages <= limit;
}

uint64_t throttle_reserve_pages(const struct engine *e)
{
	return atomic_load(&e->hurried) ? limit_pages(e) / RESERVE_SHARE : 0;
}

/* Pages the VM may still take. */
static uint64_t room(const struct engine *e)
{
	uint64_t limit = limit_pages(e), held = engine_held_pages(e);

	return held < limit ? limit - held : 0;
}

static uint64_t missing(const struct chunk *c)
{
	return CHUNK_PAGES - c->present;
}

/* A quarter, where watching begins at a half: two thresholds.  It is for chunks that the
 * guest uses: unwatched, an empty one is only less for those. */
bool throttle_may_unwatch(const struct engine *e, const struct chunk *c)
{
	return !limit_pages(e) ||
	       (c->present && atomic_load(&e->unseen_pages) + missing(c) <= room(e) / 4);
}

void throttle_count_unseen(struct engine *e, const struct chunk *c)
{
	atomic_fetch_add(&e->unseen_pages, missing(c));
}

static bool watch_one(struct engine *e, uint64_t chunk)
{
	struct chunk *c = &e->pages.chunk[chunk];
	bool done;

	pthread_mutex_lock(&c->lock);
	done = !engine_watch(e, chunk);
	pthread_mutex_unlock(&c->lock);
	if (done)
		atomic_fetch_sub(&e->unseen_pages, missing(c));
	return done;
}

/* Chunks with no more than so many pages, from the end of RAM down, where least is used. */
static unsigned watch_some(struct engine *e, uint64_t most_present, unsigned rounds)
{
	uint64_t allowed = room(e) / 2;

	for (uint64_t i = e->pages.chunk_count; i && rounds; i--) {
		const struct chunk *c = &e->pages.chunk[i - 1];

		if (atomic_load(&e->unseen_pages) <= allowed)
			break;
		if (!c->watched && c->present <= most_present)
			rounds -= watch_one(e, i - 1);
	}
	return rounds;
}

void throttle_watch(struct engine *e)
{
	unsigned left = WATCH_ROUND;

	if (!limit_pages(e))
		return;
	left = watch_some(e, 0, left);
	watch_some(e, CHUNK_PAGES - 1, left);
}
