/*
 * Bases: what delta.c packs pages against, each with a row that follows the object.
 *
 *            make_base()         pool_drop()            last base_row_put()
 *     LIVE ---------------> BASE -----------> ORPHAN --------------------> DEAD
 *       ^                     |  (its owner)            (of its deltas)
 *       '--- moved by the ----'
 *            cleaner, no deltas
 *
 * A row counts its deltas, and one for the owner while it has one.  Whoever brings
 * that to 0 is alone with the row: it retires the object and frees the row.  Only the
 * put thread adds, and only to a row that is not at 0; so nothing comes back to life.
 * A delta's data begins with the number of its row: when the cleaner moves the base,
 * one word of the row changes.
 *
 * Why the races are safe:
 *  - Get of a delta against the move of its base.  A reader pins the segment the row
 *    names, then looks whether the row still names it.  The cleaner changes the row
 *    first, and takes the old copy out of the segment's live word after.  Both are
 *    changes of that one word: either the pin came first and keeps the memory (the
 *    copy there is as it was: only its tag changes), or the reader sees the new ref
 *    and goes there.
 *  - Get of a delta against the drop of its base: the delta has its share of the row.
 *  - Drop of the last delta against the move: the cleaner holds the row meanwhile,
 *    as one more delta would, and retires the new copy itself if it was the last.
 *  - Drop of a page against its becoming a base: both exchange the tag.  The put
 *    thread that loses gives up its row.
 *  - Drop of a base against its move: the owner says no to `move` (its own lock
 *    orders the two), the copy is forgotten, the row still names the orphan.
 *
 * A base is never made plain in place, since a reader may be between its tag and its
 * row; only its copy is, when the cleaner moves it.
 *
 * What it may hold.  Bases and orphans together take half of the pool at most, or with
 * a disk a quarter (bases_most_bytes): beyond it no new bases are made.  Bases that
 * deltas need stay in memory when pages go down, so the rest of the pool can always go.
 * Orphans are a quarter of that share, or no new base is made either.
 *
 * Threads: rows are made, held and moved by the put thread; base_read and the puts of
 * a row from any.
 *
 * Invariants:
 *  I1  A row's object is live (as BASE or ORPHAN) while its count is not 0.
 *  I2  The bounds above.
 */
#include "mm/swap/internal.h"

#include <errno.h>
#include <lz4.h>

#define ORPHANS_SHARE 4 /* of what bases may take */

/* ---- rows ---------------------------------------------------------------------- */

/* Pushed to by any thread, popped by the put thread alone: no ABA. */
static void row_push(struct delta *d, uint32_t row)
{
	uint32_t head = atomic_load_explicit(&d->free_list, memory_order_relaxed);

	do
		d->rows[row].next = head;
	while (!atomic_compare_exchange_weak_explicit(&d->free_list, &head, row,
						      memory_order_acq_rel, memory_order_relaxed));
}

/* ROW_NONE: none is free. */
static uint32_t row_pop(struct delta *d)
{
	uint32_t head = atomic_load_explicit(&d->free_list, memory_order_acquire);
	uint32_t fresh = atomic_load(&d->fresh);

	while (head != ROW_NONE &&
	       !atomic_compare_exchange_weak_explicit(&d->free_list, &head, d->rows[head].next,
						      memory_order_acq_rel, memory_order_acquire))
		;
	if (head != ROW_NONE)
		return head;
	if (fresh == d->rows_max)
		return ROW_NONE;
	atomic_store(&d->fresh, fresh + 1);
	return fresh;
}

/* The row is the caller's alone. */
static void row_free(struct delta *d, uint32_t row)
{
	atomic_fetch_sub(&d->base_bytes, pool_object_bytes(d->rows[row].bytes));
	atomic_fetch_sub(&d->base_rows, 1);
	row_push(d, row);
}

/* One count less; the last retires the object, which nobody owns any more. */
void base_row_put(struct delta *d, uint32_t row)
{
	struct base_row *r = &d->rows[row];
	uint32_t old = atomic_fetch_sub_explicit(&r->refs, 1, memory_order_acq_rel);

	VERIFY(old > 0);
	if (old > 1)
		return;
	pool_retire(d->pool, (swap_ref_t){ atomic_load(&r->ref) });
	atomic_fetch_sub(&d->orphan_bytes, pool_object_bytes(r->bytes));
	atomic_fetch_sub(&d->orphan_pages, 1);
	row_free(d, row);
}

bool base_row_hold(struct delta *d, uint32_t row)
{
	_Atomic uint32_t *refs = &d->rows[row].refs;
	uint32_t n = atomic_load_explicit(refs, memory_order_relaxed);

	while (n && !atomic_compare_exchange_weak_explicit(refs, &n, n + 1, memory_order_acq_rel,
							   memory_order_relaxed))
		;
	return n != 0;
}

bool base_has_row(const struct packed *k)
{
	return k->state == OBJECT_BASE || k->state == OBJECT_ORPHAN;
}

uint32_t delta_owner(const struct delta *d, const struct packed *k)
{
	return base_has_row(k) ? d->rows[k->owner].owner : k->owner;
}

/* A damaged tag passes its own check one time in 256. */
bool base_row_exists(const struct delta *d, uint32_t row)
{
	return d && row < atomic_load(&d->fresh);
}

int delta_found(const struct delta *d, struct packed *k)
{
	if (k->state == OBJECT_ORPHAN)
		return -EIO; /* who still has this ref dropped it */
	if (base_has_row(k) && !base_row_exists(d, k->owner))
		return -EIO;
	k->owner = delta_owner(d, k);
	return 0;
}

/* ---- bases --------------------------------------------------------------------- */

/* The page of a sound plain object whose owner and sum are known; 0 or -EIO. */
int base_unpack(const struct packed *k, uint32_t owner, uint64_t sum, uint8_t *page)
{
	struct packed own = *k;

	own.owner = owner;
	if (k->is_delta || k->is_refined || k->sum != sum || swap_checksum(&own) != sum)
		return -EIO;
	return LZ4_decompress_safe((const char *)k->data, (char *)page, (int)k->bytes,
				   (int)PAGE_BYTES) == (int)PAGE_BYTES ? 0 : -EIO;
}

/* Pins the segment that row's object is in now. */
static swap_ref_t pin_base(const struct delta *d, uint32_t row)
{
	const _Atomic uint64_t *at = &d->rows[row].ref;
	swap_ref_t ref = { atomic_load_explicit(at, memory_order_acquire) };

	for (;;) {
		bool pinned = pool_pin(d->pool, ref);
		uint64_t now = atomic_load_explicit(at, memory_order_acquire);

		if (now == ref.v)
			return pinned ? ref : (swap_ref_t){ 0 };
		if (pinned)
			pool_unpin(d->pool, ref);
		ref.v = now;
	}
}

/* The page deltas of `row` are packed against.  Any thread that has a share of it. */
int base_read(const struct delta *d, uint32_t row, uint8_t *page)
{
	const struct base_row *r = &d->rows[row];
	swap_ref_t ref = pin_base(d, row);
	struct packed k;
	int rc;

	if (!ref.v)
		return -EIO;
	rc = pool_peek(d->pool, ref, &k);
	/* its tag may say dead: the cleaner has moved it since */
	if (!rc && k.owner == row)
		rc = base_unpack(&k, r->owner, r->sum, page);
	else
		rc = -EIO;
	pool_unpin(d->pool, ref);
	return rc;
}

static bool may_make_base(const struct delta *d, const struct packed *k)
{
	uint64_t more = atomic_load(&d->base_bytes) + pool_object_bytes(k->bytes);

	return more <= d->bases_most_bytes &&
	       atomic_load(&d->orphan_bytes) <= d->bases_most_bytes / ORPHANS_SHARE;
}

/* The row of the plain object, with a count for its owner and one for the caller; or
 * ROW_NONE. */
static uint32_t make_base(struct delta *d, swap_ref_t ref, const struct packed *k)
{
	uint32_t row = may_make_base(d, k) ? row_pop(d) : ROW_NONE;
	struct base_row *r;

	if (row == ROW_NONE)
		return ROW_NONE;
	r = &d->rows[row];
	r->sum = k->sum;
	r->owner = k->owner;
	r->bytes = k->bytes;
	atomic_store(&r->ref, ref.v);
	atomic_store(&r->refs, 2);
	atomic_fetch_add(&d->base_rows, 1);
	atomic_fetch_add(&d->base_bytes, pool_object_bytes(k->bytes));
	if (pool_mark_base(d->pool, ref, k, row))
		return row;
	atomic_store(&r->refs, 0); /* dropped just now: nobody has seen the row */
	row_free(d, row);
	return ROW_NONE;
}

/* The row of what the caller has pinned and read, with a count for it. */
uint32_t base_hold(struct delta *d, swap_ref_t ref, const struct packed *k)
{
	uint32_t row = k->state == OBJECT_LIVE ? make_base(d, ref, k) : k->owner;

	if (k->state != OBJECT_LIVE && !base_row_hold(d, row))
		row = ROW_NONE;
	if (row == ROW_NONE)
		counter_inc(CTR_swap_delta_no_base);
	return row;
}

void base_orphaned(struct delta *d, uint32_t row)
{
	counter_inc(CTR_swap_orphans);
	atomic_fetch_add(&d->orphan_pages, 1);
	atomic_fetch_add(&d->orphan_bytes, pool_object_bytes(d->rows[row].bytes));
	base_row_put(d, row);
}

/* ---- moves ----------------------------------------------------------------------- */

bool delta_move_begin(struct delta *d, struct packed *k, uint32_t *row)
{
	*row = ROW_NONE;
	if (!base_has_row(k))
		return true;
	*row = k->owner;
	if (!base_row_exists(d, *row) || !base_row_hold(d, *row))
		return false;
	if (k->state == OBJECT_BASE && atomic_load(&d->rows[*row].refs) == 2) {
		/* its owner's and ours: no delta, and nobody but us could add one */
		k->owner = d->rows[*row].owner;
		k->state = OBJECT_LIVE;
	}
	return true;
}

void delta_move_end(struct delta *d, const struct packed *k, uint32_t row, swap_ref_t to)
{
	if (row == ROW_NONE)
		return;
	if (to.v && k->state == OBJECT_LIVE) {
		/* plain from now on; its owner knows the copy only */
		atomic_store(&d->rows[row].refs, 0);
		row_free(d, row);
		return;
	}
	if (to.v)
		atomic_store_explicit(&d->rows[row].ref, to.v, memory_order_release);
	base_row_put(d, row);
}

/* A base's one count is its owner's, and only we could add to it. */
bool delta_lets_go(const struct delta *d, struct packed *k)
{
	if (k->is_delta)
		return false;
	if (k->state == OBJECT_LIVE)
		return true;
	if (k->state != OBJECT_BASE || !base_row_exists(d, k->owner) ||
	    atomic_load(&d->rows[k->owner].refs) > 1)
		return false;
	k->owner = d->rows[k->owner].owner;
	k->state = OBJECT_LIVE;
	return true;
}

/* ---- verify ----------------------------------------------------------------------- */

static uint64_t verify_row(const struct delta *d, uint32_t row, uint64_t *bytes,
			   uint64_t *orphans)
{
	const struct base_row *r = &d->rows[row];
	uint32_t refs = atomic_load(&r->refs);
	struct packed k;

	if (!refs)
		return 0;
	VERIFY(!pool_find(d->pool, (swap_ref_t){ atomic_load(&r->ref) }, &k));
	VERIFY(base_has_row(&k) && k.owner == row && k.bytes == r->bytes && k.sum == r->sum);
	*bytes += pool_object_bytes(r->bytes);
	*orphans += k.state == OBJECT_ORPHAN ? pool_object_bytes(r->bytes) : 0;
	return refs - (k.state == OBJECT_BASE);
}

void delta_verify(const struct delta *d)
{
	uint32_t fresh = atomic_load(&d->fresh), free_rows = 0;
	uint64_t deltas = 0, bytes = 0, orphans = 0;

	for (uint32_t i = 0; i < fresh; i++)
		deltas += verify_row(d, i, &bytes, &orphans);
	for (uint32_t i = atomic_load(&d->free_list); i != ROW_NONE; i = d->rows[i].next) {
		VERIFY(i < fresh && free_rows < fresh && atomic_load(&d->rows[i].refs) == 0);
		free_rows++;
	}
	VERIFY(free_rows + atomic_load(&d->base_rows) == fresh);
	VERIFY(deltas == atomic_load(&d->pages));
	VERIFY(bytes == atomic_load(&d->base_bytes) && bytes <= d->bases_most_bytes);
	VERIFY(orphans == atomic_load(&d->orphan_bytes));
}
