/*
 * Taking memory: which pages are cold, and getting them out.
 *
 *   pass    PAGEMAP_SCAN tells which pages have memory and which were written
 *           since the last pass, and re-arms the notes.  Ages count passes.
 *   stage   the coldest are moved to staging, in runs.  A touch moves them back:
 *           that is the read sample the kernel has no cheap bit for.
 *   pack    what is still there in the next round goes to the tier.
 *
 * Staging is a ring of slots: filled at the head, emptied at the tail, so its
 * memory is given back in long runs.  A page that was touched or discarded in
 * between leaves a slot that is empty or stale; the tail passes over it.
 *
 * The target is met by rounds (engine_tick): a round packs what earlier rounds
 * staged, then stages as much again as is still over.  Rounds are as many as it takes,
 * passes are one in pass_ns, or fewer where they are slow.  When too little is cold,
 * younger pages are taken; a limit is a limit.
 *
 * Threads: the reclaimer only (or a test in its place).
 *
 * Invariants:
 *  I1  A page is read for the tier only while it is STAGED and its chunk's lock is
 *      held: nobody can write it.
 *  I2  A slot is used again only after the tail has passed it and its memory was
 *      given back.
 */
#include "mm/internal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#define ROUND_PAGES 4096u /* staged in one go at most, between looks at the target */
#define AGE_MAX (ENGINE_AGES - 1)
#define FLOOR_SHARE 8
#define PASS_SHARE 20u /* a pass of 5 ms, and the next 100 ms after its begin at the earliest */
#define ROOM_PAGES 256u /* asked for at a time, so that a put never waits */
/* Of a limit, what is packed may take half; where there is a disk, the rest goes there.
 * Less would read from disk what could be unpacked, more would leave the guest so little
 * RAM that it unpacks all the time. */
#define POOL_SHARE 2

/* ---- the pass ---------------------------------------------------------------- */

struct tally {
	uint64_t present;
	uint64_t unseen;
	uint64_t age[ENGINE_AGES];
};

static void note_absent(struct page *p)
{
	p->present = 0;
	p->age = 0;
	p->hard = 0;
	p->back = 0;
	p->hashed = 0;
}

static void note_present(struct chunk *c, struct page *p, bool written, struct tally *t)
{
	if (written) {
		p->age = 0;
		p->hard &= p->back; /* a write of the guest in that time goes unnoticed */
	} else if (p->age < AGE_MAX) {
		p->age++;
	}
	share_note(c, p, written);
	p->back = 0;
	p->present = 1;
	t->present++;
	t->age[p->age]++;
	c->present++;
	c->young += p->age <= 1;
	c->takeable += !p->hard;
	if (!p->hard && p->age > c->oldest)
		c->oldest = p->age;
}

/* Pages [from, to), all of one kind. */
static void note_range(struct engine *e, uint64_t from, uint64_t to, uint64_t categories,
		       struct tally *t)
{
	while (from < to) {
		struct chunk *c = chunk_of(&e->pages, from);
		uint64_t end = (from / CHUNK_PAGES + 1) * CHUNK_PAGES;

		if (end > to)
			end = to;
		pthread_mutex_lock(&c->lock);
		if (from % CHUNK_PAGES == 0)
			huge_chunk_begin(e, c, categories & PAGE_IS_HUGE && !(categories & PAGE_IS_FILE));
		for (; from < end; from++) {
			struct page *p = &e->pages.page[from];

			if (p->state == PAGE_SHARED || p->state == PAGE_BROKEN)
				t->present += map_note(e, from, categories);
			if (p->state != PAGE_GUEST)
				continue;
			if (categories & PAGE_IS_PRESENT)
				note_present(c, p, categories & PAGE_IS_WRITTEN, t);
			else
				note_absent(p);
		}
		if (from % CHUNK_PAGES == 0) {
			huge_chunk_end(e, c);
			t->unseen += c->watched ? 0 : CHUNK_PAGES - c->present;
		}
		pthread_mutex_unlock(&c->lock);
	}
}

/* Where the scan stopped.  Linux (6.18, and before) leaves walk_end at where its own
 * buffer of 512 regions was full last, though it went on: to begin there again would
 * count pages twice, and take for unwritten what the first look has re-armed.  But it
 * only ever stops early for want of room. */
static uint64_t scan_end(const struct pm_scan_arg *a, const struct page_region *regions, int n)
{
	if (n < (int)SCAN_REGIONS)
		return a->end;
	return a->walk_end > regions[n - 1].end ? a->walk_end : regions[n - 1].end;
}

static int scan(struct engine *e, struct pm_scan_arg *a)
{
	int n;

	a->size = sizeof(*a);
	/* Where pages are mapped, pieces are unregistered for moments, and look written. */
	if (!atomic_load(&e->map.on))
		a->flags |= PM_SCAN_CHECK_WPASYNC;
	/* has memory of its own: not the kernel's zero page */
	a->category_mask |= PAGE_IS_PRESENT | PAGE_IS_PFNZERO;
	a->category_inverted = PAGE_IS_PFNZERO;
	n = e->host->ioctl(e->pagemap, PAGEMAP_SCAN, a);
	return n < 0 ? -errno : n;
}

/* Has the kernel note the next write to pages of [from, to), of which it told that they
 * were written. */
static int rearm(struct engine *e, uint64_t from, uint64_t to)
{
	struct pm_scan_arg a = {
		.flags = PM_SCAN_WP_MATCHING,
		.start = from, .end = to,
		/* Not wanted; but without a place for it the kernel arms all of the range, and
		 * leaves its note where there is no page. */
		.vec = (uint64_t)e->rearmed,
		.vec_len = (to - from) / PAGE_BYTES < SCAN_REGIONS ? (to - from) / PAGE_BYTES
								   : SCAN_REGIONS,
		.category_mask = PAGE_IS_WRITTEN,
		.return_mask = PAGE_IS_WRITTEN,
	};
	int n = from < to ? scan(e, &a) : 0;

	counter_add(CTR_engine_rearms, from < to);
	return n < 0 ? n : 0;
}

/* A re-arming scan drops what KVM has mapped of all of its range, written or not, and the
 * guest's next touch of each page there is an exit and a walk.  So it is a second call,
 * for what the first found written, and gaps of this many bytes. */
#define REARM_GAP (32 * PAGE_BYTES)

static int rearm_written(struct engine *e, const struct page_region *r, int n)
{
	uint64_t from = 0, to = 0;
	int rc = 0;

	for (int i = 0; i < n && !rc; i++) {
		if (!(r[i].categories & PAGE_IS_WRITTEN))
			continue;
		if (r[i].start > to + REARM_GAP) {
			rc = rearm(e, from, to);
			from = r[i].start;
		}
		to = r[i].end;
	}
	return rc ? rc : rearm(e, from, to);
}

/* One call's worth from page `from` on; returns where the next one starts. */
static int64_t scan_some(struct engine *e, uint64_t from, struct tally *t)
{
	bool arm;
	uint64_t base = (uint64_t)e->base, at = from, end = huge_run_end(e, from, &arm);
	struct pm_scan_arg a = {
		.start = base + (from << PAGE_SHIFT),
		.end = base + (end << PAGE_SHIFT),
		.vec = (uint64_t)e->regions,
		.vec_len = SCAN_REGIONS,
		.return_mask = PAGE_IS_PRESENT | PAGE_IS_WRITTEN | PAGE_IS_HUGE,
	};
	int n, rc;

	if (atomic_load(&e->pages.in_state[PAGE_SHARED]) || atomic_load(&e->pages.in_state[PAGE_BROKEN]))
		a.return_mask |= PAGE_IS_FILE;
	n = scan(e, &a);
	if (n < 0)
		return n;
	rc = arm ? rearm_written(e, e->regions, n) : 0;
	if (rc)
		return rc;
	for (int i = 0; i < n; i++) {
		uint64_t first = (e->regions[i].start - base) >> PAGE_SHIFT;
		uint64_t last = (e->regions[i].end - base) >> PAGE_SHIFT;

		note_range(e, at, first, 0, t);
		note_range(e, first, last, e->regions[i].categories, t);
		at = last;
	}
	from = (scan_end(&a, e->regions, n) - base) >> PAGE_SHIFT;
	note_range(e, at, from, 0, t);
	return (int64_t)from;
}

void engine_pass(struct engine *e)
{
	struct tally t = { 0 };

	atomic_store(&e->arrived_pages, 0);
	if (!huge_repair(e)) {
		counter_inc(CTR_engine_scan_errors);
		return;
	}
	for (uint64_t at = 0; at < e->pages.count;) {
		int64_t next = scan_some(e, at, &t);

		if (next <= (int64_t)at) {
			counter_inc(CTR_engine_scan_errors);
			return; /* ages stay as they are */
		}
		at = (uint64_t)next;
	}
	counter_inc(CTR_engine_passes);
	atomic_store(&e->present_pages, t.present);
	atomic_store(&e->unseen_pages, t.unseen);
	for (unsigned i = 0; i < ENGINE_AGES; i++)
		atomic_store(&e->age_pages[i], t.age[i]);
}

/* ---- staging ------------------------------------------------------------------ */

static uint64_t slots_free(const struct engine *e)
{
	return e->slots - (e->head - e->tail);
}

/* Slots in a row from the head on. */
static uint64_t slots_in_row(const struct engine *e)
{
	uint64_t to_end = e->slots - e->head % e->slots;

	return to_end < slots_free(e) ? to_end : slots_free(e);
}

/* What the last pass counted and a later round takes.  A page that came home since was
 * not in it, hence no less than 0. */
void engine_count_off(_Atomic uint64_t *count, uint64_t n)
{
	uint64_t was = atomic_load(count), now;

	do
		now = was > n ? was - n : 0;
	while (!atomic_compare_exchange_weak(count, &was, now));
}

static void note_staged(struct engine *e, uint64_t index, uint64_t n)
{
	for (uint64_t i = 0; i < n; i++, e->head++) {
		e->slot_owner[e->head % e->slots] = (uint32_t)(index + i);
		engine_count_off(&e->age_pages[e->pages.page[index + i].age], 1);
		page_set(&e->pages, index + i, PAGE_STAGED, e->head % e->slots);
	}
	engine_count_off(&e->present_pages, n);
	counter_add(CTR_engine_staged, n);
}

/* The page at the head of a run that would not go. */
static void note_refused(struct engine *e, uint64_t index, int64_t rc)
{
	struct page *p = &e->pages.page[index];

	p->age = 0;
	if (rc == -EIO)
		engine_dead(e, index, "lost between guest RAM and staging", (int)rc);
	else if (rc == -ENOENT)
		p->present = 0; /* discarded since the pass */
	else
		counter_inc(rc == -EBUSY ? CTR_engine_pinned : CTR_engine_move_errors);
	if (rc == -EEXIST)
		e->head++; /* the slot still has memory: the tail will empty it */
}

/* Moves pages [index, index+n) of one chunk out.  Lock held.  Returns how many
 * slots' worth were taken. */
static uint64_t stage_run(struct engine *e, uint64_t index, uint64_t n)
{
	uint64_t taken = 0;

	while (n && slots_free(e)) {
		uint64_t row = slots_in_row(e);
		int64_t done = engine_move(e, slot_at(e, e->head % e->slots), page_at(e, index),
					   n < row ? n : row);

		if (done < 0) {
			note_refused(e, index, done);
			done = 1;
		} else {
			note_staged(e, index, (uint64_t)done);
			taken += (uint64_t)done;
		}
		index += (uint64_t)done;
		n -= (uint64_t)done;
	}
	return taken;
}

static bool is_cold(const struct page *p, unsigned min_age)
{
	return p->state == PAGE_GUEST && p->present && !p->hard && p->age >= min_age;
}

/* Takes at most `want` pages of the chunk. */
static uint64_t stage_chunk(struct engine *e, uint64_t chunk, unsigned min_age, uint64_t want)
{
	struct chunk *c = &e->pages.chunk[chunk];
	uint64_t end = (chunk + 1) * CHUNK_PAGES, taken = 0;

	pthread_mutex_lock(&c->lock);
	for (uint64_t i = chunk * CHUNK_PAGES; i < end && taken < want && slots_free(e);) {
		uint64_t n = 0;

		while (i + n < end && n < want - taken && is_cold(&e->pages.page[i + n], min_age))
			n++;
		if (n && engine_watch(e, chunk))
			break;
		taken += n ? stage_run(e, i, n) : 0;
		i += n ? n : 1;
	}
	pthread_mutex_unlock(&c->lock);
	return taken;
}

/* The greatest age such that enough pages have it or a greater one. */
static unsigned age_for(const struct engine *e, uint64_t want)
{
	uint64_t sum = 0;
	unsigned age = AGE_MAX;

	for (;; age--) {
		sum += atomic_load(&e->age_pages[age]);
		if (sum >= want || age == 0)
			return age;
	}
}

static bool all_cold(const struct engine *e, uint64_t chunk, unsigned min_age)
{
	for (uint64_t i = 0; i < CHUNK_PAGES; i++)
		if (!is_cold(&e->pages.page[chunk * CHUNK_PAGES + i], min_age))
			return false;
	return true;
}

/* Passes over slots until the head is at a multiple of 2 MiB with that much free. */
static bool align_head(struct engine *e)
{
	uint64_t pad = -e->head % CHUNK_PAGES;

	if (e->head == e->tail)
		e->tail += pad;
	else if (slots_free(e) < pad + CHUNK_PAGES)
		return false;
	for (uint64_t i = e->head; i < e->head + pad; i++)
		e->slot_owner[i % e->slots] = SLOT_EMPTY;
	e->head += pad;
	return slots_free(e) >= CHUNK_PAGES;
}

/* A huge page that is cold throughout, in one move: the kernel then moves the huge page
 * itself (3 us), where both ends are aligned and the slots have no page table left. */
static uint64_t move_whole(struct engine *e, uint64_t first)
{
	int64_t done = engine_move(e, slot_at(e, e->head % e->slots), page_at(e, first),
				   CHUNK_PAGES);

	counter_add(CTR_engine_huge_whole, done == CHUNK_PAGES);
	if (done < 0) {
		note_refused(e, first, done);
		return 0;
	}
	note_staged(e, first, (uint64_t)done);
	/* A part: each other page must be asked for too, as the kernel may have moved more
	 * than it says, and a page it has moved must not pass for one in guest RAM. */
	return (uint64_t)done + stage_run(e, first + (uint64_t)done, CHUNK_PAGES - (uint64_t)done);
}

static uint64_t stage_whole(struct engine *e, uint64_t chunk, unsigned min_age)
{
	struct chunk *c = &e->pages.chunk[chunk];
	uint64_t taken = 0;

	pthread_mutex_lock(&c->lock);
	if (c->away == 0 && all_cold(e, chunk, min_age) && !engine_watch(e, chunk))
		taken = move_whole(e, chunk * CHUNK_PAGES);
	c->takeable = 0; /* whatever came of it, not again before a pass has looked */
	pthread_mutex_unlock(&c->lock);
	return taken;
}

static uint64_t stage_small(struct engine *e, uint64_t chunk, unsigned min_age, uint64_t want)
{
	uint64_t taken = stage_chunk(e, chunk, min_age, want);

	counter_add(CTR_engine_huge_broken, taken && e->pages.chunk[chunk].huge);
	if (taken)
		e->pages.chunk[chunk].huge = false;
	return taken;
}

struct sweep {
	enum huge_take kind;
	unsigned min_age;
	bool no_room; /* out */
};

static uint64_t sweep(struct engine *e, struct sweep *s, uint64_t want)
{
	uint64_t taken = 0;

	for (uint64_t n = 0; n < e->pages.chunk_count && taken < want && slots_free(e); n++) {
		if (huge_offers(&e->pages.chunk[e->cursor], s->kind, s->min_age)) {
			s->no_room = s->kind == TAKE_WHOLE && !align_head(e);
			if (s->no_room)
				break;
			/* a discard waits for one chunk at most */
			pthread_mutex_lock(&e->take);
			taken += s->kind == TAKE_WHOLE ?
					 stage_whole(e, e->cursor, s->min_age) :
					 stage_small(e, e->cursor, s->min_age, want - taken);
			pthread_mutex_unlock(&e->take);
		}
		if (taken < want && slots_free(e))
			e->cursor = (e->cursor + 1) % e->pages.chunk_count;
	}
	return taken;
}

/* Coldest first, by powers of two of age.  Of the same coldness, what is in small pages
 * goes before huge pages do, and those go whole.  A huge page is broken, for the part
 * of it that is cold, when nothing else is left. */
static uint64_t stage(struct engine *e, uint64_t want)
{
	static const enum huge_take kinds[] = { TAKE_SMALL, TAKE_WHOLE, TAKE_ANY };
	unsigned min_age = age_for(e, want), level = ENGINE_AGES;
	uint64_t taken = 0;

	do {
		level = level / 2 > min_age ? level / 2 : min_age;
		/* only at last is anything broken */
		for (unsigned k = 0; k < (level > min_age ? 2 : ARRAY_LEN(kinds)); k++) {
			struct sweep s = { .kind = kinds[k], .min_age = level };

			if (taken < want)
				taken += sweep(e, &s, want - taken);
			if (s.no_room)
				return taken;
		}
	} while (level > min_age && taken < want);
	return taken;
}

/* ---- packing ------------------------------------------------------------------- */

/* The page does not go to the tier: back to the guest.  Lock held. */
static void give_back(struct engine *e, uint64_t index, bool hard)
{
	int rc = fault_unstage(e, index);

	if (rc) {
		engine_dead(e, index, "staging", rc);
		return;
	}
	e->pages.page[index].hard = hard;
	e->pages.page[index].back = 1;
	atomic_fetch_add(&e->present_pages, 1);
	counter_inc(hard ? CTR_engine_incompressible : CTR_engine_tier_full);
}

/* 1: packed, 0: nothing to do or given back, -ENOSPC: given back, and so will the
 * next be. */
static int pack_slot(struct engine *e, uint64_t slot)
{
	uint64_t index = e->slot_owner[slot], ref;
	struct page *p;
	bool filled;
	int rc = 0;

	if (index == SLOT_EMPTY)
		return 0;
	pthread_mutex_lock(&chunk_of(&e->pages, index)->lock);
	p = &e->pages.page[index];
	if (p->state == PAGE_STAGED && p->payload == slot) {
		rc = e->tier->put(e->tier_ctx, index, slot_at(e, slot), &ref, &filled);
		if (!rc && !filled && !p->hashed && e->leaving)
			e->leaving(e->leaving_ctx, index, slot_at(e, slot));
		if (!rc)
			page_set(&e->pages, index, filled ? PAGE_FILLED : PAGE_PACKED, ref);
		else
			give_back(e, index, rc == -E2BIG);
		rc = rc == 0 ? 1 : rc == -E2BIG ? 0 : -ENOSPC;
	}
	pthread_mutex_unlock(&chunk_of(&e->pages, index)->lock);
	e->slot_owner[slot] = SLOT_EMPTY;
	counter_add(CTR_engine_packed, rc == 1);
	return rc;
}

/* Where n slots from the tail on end a block of 2 MiB whose slots before them are free,
 * the block is given back in one piece: the kernel then frees its page table too
 * (Linux 6.14), and a huge page can be moved there whole. */
static uint64_t whole_block(const struct engine *e, uint64_t n)
{
	uint64_t before = e->tail % CHUNK_PAGES;

	return (before + n) % CHUNK_PAGES == 0 && slots_free(e) >= CHUNK_PAGES ? before : 0;
}

/* Gives back the memory of n slots from the tail on (in a row), then frees them. */
static bool empty_slots(struct engine *e, uint64_t n)
{
	uint64_t before = whole_block(e, n);
	uint8_t *at = slot_at(e, e->tail % e->slots - before);
	int tries = 0;

	while (e->host->madvise(at, (before + n) << PAGE_SHIFT, MADV_DONTNEED) < 0)
		if (++tries == 3)
			return false; /* another round will try again */
	e->tail += n;
	return true;
}

/* How many of n pages the tier takes now. */
static uint64_t tier_room(struct engine *e, uint64_t n)
{
	if (!e->tier->room)
		return n;
	return e->tier->room(e->tier_ctx, n < ROOM_PAGES ? n : ROOM_PAGES);
}

/* Packs from the tail up to slot number `to`, at most `want` pages.  *full is set
 * when the tier has no room. */
static uint64_t pack(struct engine *e, uint64_t to, uint64_t want, bool *full)
{
	uint64_t packed = 0;

	while (e->tail < to && packed < want && !*full) {
		uint64_t row = e->slots - e->tail % e->slots, n = 0;

		if (row > to - e->tail)
			row = to - e->tail;
		row = tier_room(e, row);
		*full = row == 0;
		while (n < row && packed < want && !*full) {
			int rc = pack_slot(e, (e->tail + n) % e->slots);

			packed += rc == 1;
			*full = rc == -ENOSPC;
			n++;
		}
		if (n && !empty_slots(e, n))
			break;
	}
	return packed;
}

/* ---- rounds --------------------------------------------------------------------- */

uint64_t engine_held_pages(const struct engine *e)
{
	return atomic_load(&e->present_pages) +
	       atomic_load(&e->pages.in_state[PAGE_STAGED]) +
	       (e->tier->held_bytes(e->tier_ctx) >> PAGE_SHIFT);
}

/* Pages that may still be staged.  A limit that packing cannot meet must not end in a
 * guest without a page of its own, that does nothing but fault: an eighth of the limit
 * stays in RAM, and the VM is over its limit. */
static uint64_t above_floor(const struct engine *e)
{
	uint64_t floor = (atomic_load(&e->limit_bytes) >> PAGE_SHIFT) / FLOOR_SHARE;
	uint64_t present = atomic_load(&e->present_pages);

	return present > floor ? present - floor : 0;
}

/* Pages to get rid of: over the limit, or asked for. */
static uint64_t pages_over(const struct engine *e)
{
	uint64_t limit = atomic_load(&e->limit_bytes) >> PAGE_SHIFT;
	uint64_t want = atomic_load(&e->wanted_bytes) >> PAGE_SHIFT;
	uint64_t held = engine_held_pages(e) + atomic_load(&e->arrived_pages) +
			(limit ? throttle_reserve_pages(e) : 0);
	uint64_t over = limit && held > limit ? held - limit : 0;

	return over > want ? over : want;
}

static void count_down(struct engine *e, uint64_t pages)
{
	engine_count_off(&e->wanted_bytes, pages << PAGE_SHIFT);
}

/* What is packed goes on to disk where it takes too much of the limit. */
static void spill_excess(struct engine *e)
{
	uint64_t share = atomic_load(&e->limit_bytes) / POOL_SHARE;
	uint64_t held = e->tier->held_bytes(e->tier_ctx);

	if (e->tier->spill && share && held > share)
		e->tier->spill(e->tier_ctx, held - share);
}

static bool is_asked(const struct engine *e)
{
	return atomic_load(&e->limit_bytes) || atomic_load(&e->wanted_bytes);
}

static uint64_t between_passes_ns(const struct engine *e)
{
	uint64_t ages = atomic_load(&e->ages_ns);

	return is_asked(e) || !ages ? e->pass_ns : ages;
}

/* How long the reclaimer sleeps where a round left nothing to do. */
static uint64_t between_rounds_ns(const struct engine *e)
{
	uint64_t ns = e->pass_ns << e->idle_shift, ages = atomic_load(&e->ages_ns);

	return ages && ages < ns ? ages : ns;
}

/* Rounds that follow each other go by the last pass for a while: a pass is time of this
 * thread, and what it re-arms costs the guest. */
static void pass_if_due(struct engine *e)
{
	uint64_t began = now_ns(), took, least;

	if (!e->manual && began < e->next_pass_ns)
		return;
	engine_pass(e);
	took = now_ns() - began;
	least = between_passes_ns(e);
	e->next_pass_ns = began + (took * PASS_SHARE > least ? took * PASS_SHARE : least);
}

static void tidy(struct engine *e)
{
	if (e->tier->tidy)
		e->tier->tidy(e->tier_ctx);
}

/* Only where the round got as far as it can: with more to take, that comes first. */
static void refine(struct engine *e)
{
	e->refining = e->tier->refine && e->tier->refine(e->tier_ctx);
}

/* Gets rid of `over` pages, or of as many as a round does. True: it got somewhere. */
static bool take(struct engine *e, uint64_t over)
{
	bool full = false, at_floor;
	uint64_t packed = pack(e, e->head, over, &full), staged = 0;

	count_down(e, packed);
	spill_excess(e);
	over = over > packed ? over - packed : 0;
	at_floor = over > above_floor(e);
	if (at_floor) {
		counter_inc(CTR_engine_floor);
		over = above_floor(e);
	}
	if (over && !full)
		staged = stage(e, over < ROUND_PAGES ? over : ROUND_PAGES);
	atomic_store(&e->helpless, at_floor || full || !(packed + staged));
	/* No room, or nothing left that packs: what was asked for cannot be had. */
	if (full || (!packed && !staged && e->head == e->tail))
		atomic_store(&e->wanted_bytes, 0);
	return !full && over && packed + staged;
}

bool engine_tick(struct engine *e)
{
	uint64_t over;
	bool more = false;

	pass_if_due(e);
	over = pages_over(e);
	atomic_store(&e->hurried, false);
	huge_round(e, over);
	map_round(e, over);
	if (over)
		more = take(e, over);
	else
		atomic_store(&e->helpless, false);
	tidy(e);
	if (!more)
		refine(e);
	return more;
}

/* For a while, or until somebody asks for something.  Rounds that nobody asks for come
 * slowly, but what is to be refined is done at the usual pace.  wake_lock held.  True
 * where a round is due. */
static bool wait_for_round(struct engine *e)
{
	uint64_t until_ns = e->refining ? e->pass_ns : between_rounds_ns(e);
	struct timespec until;

	clock_gettime(CLOCK_REALTIME, &until);
	until.tv_nsec += (long)until_ns;
	until.tv_sec += until.tv_nsec / 1000000000;
	until.tv_nsec %= 1000000000;
	return !pthread_cond_timedwait(&e->wake, &e->wake_lock, &until) || !e->refining ||
	       is_asked(e) || now_ns() >= e->next_round_ns;
}

static bool work_once(struct engine *e, bool is_round)
{
	bool more = false;

	if (is_round) {
		more = engine_tick(e);
		e->next_round_ns = now_ns() + between_rounds_ns(e);
	} else {
		refine(e);
	}
	return more;
}

static void *reclaim_main(void *arg)
{
	struct engine *e = arg;
	bool more = false;

	role_set(ROLE_RECLAIM);
	pthread_setname_np(pthread_self(), "reclaim");
	pthread_mutex_lock(&e->wake_lock);
	while (!e->stopping) {
		bool is_round = true;

		if (!is_asked(e) && !huge_has_work(e) && !e->refining &&
		    !atomic_load(&e->ages_ns)) {
			pthread_cond_wait(&e->wake, &e->wake_lock);
			continue;
		}
		if (!more)
			is_round = wait_for_round(e);
		pthread_mutex_unlock(&e->wake_lock);
		more = work_once(e, is_round);
		pthread_mutex_lock(&e->wake_lock);
	}
	pthread_mutex_unlock(&e->wake_lock);
	return NULL;
}

int reclaim_start(struct engine *e)
{
	int rc = pthread_create(&e->reclaimer, NULL, reclaim_main, e);

	e->has_reclaimer = rc == 0;
	return -rc;
}

void reclaim_stop(struct engine *e)
{
	if (!e->has_reclaimer)
		return;
	pthread_mutex_lock(&e->wake_lock);
	e->stopping = true;
	pthread_cond_signal(&e->wake);
	pthread_mutex_unlock(&e->wake_lock);
	pthread_join(e->reclaimer, NULL);
	e->has_reclaimer = false;
}
