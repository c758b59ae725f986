/*
 * The pool: segments of 1 MiB in one reservation, appended to, cleaned, given back.
 *
 *            pool_append()          full           last object dropped
 *     cold ---------------> open ---------> closed -------------------> cold
 *    (warm)                   ^               |                        (warm)
 *                             '-- pool_clean(): its live objects, one by one
 *
 *   cold  no memory; never used, or in cold_list
 *   warm  empty, but madvise would not take the memory: still held, in warm_list,
 *         used before any cold one, and offered to madvise again by pool_clean()
 *
 * A segment's `live` word is units, objects and pins in one, so that one atomic
 * subtraction says whether this was the last of all of them.  Pinned are: open
 * segments, the one being emptied, those that batches on their way to disk were copied
 * from, and those that readers of deltas look into.  Whoever brings the word to 0 is the
 * only one to see that, owns the segment then, and gives it back: a drop or a reader on
 * any thread, or the put thread letting go of a pin.  To pin a closed segment one adds
 * to the word only where it is not 0: a drop that was first has the segment.
 *
 * The lists are pushed to by any thread and popped by the put thread alone, so
 * there is no ABA: what is at the head can only be taken away by the popper.
 *
 * The cleaner's reserve.  `room` is the segments that could still be opened.  Put
 * opens one only where another is left for the cleaner, and does not append at all
 * while the cleaner uses that last one.  The cleaner always takes from the emptiest
 * segment.  When it opens the last one, what the emptiest has fits in it; each move
 * takes as much from the one as from the other; and a drop, or a segment that
 * becomes emptier than the one begun, only makes the need smaller.  So it can
 * always empty one, however small its budget is at a time: that is the reserve
 * again.
 *
 * A base (delta.c) is an object others are packed against.  Dropped by its owner it
 * is an orphan: live, until its row retires it.  Readers of deltas pin its segment,
 * so that a base just moved is still there for them.
 *
 * Damage.  A tag carries its own 8-bit check, so that what walks or drops objects
 * does not follow a damaged length.  A damaged object is never subtracted: its
 * segment keeps it, and is not cleaned any more.  That leaks up to 1 MiB of a host
 * whose memory fails; the alternative is to trust it.
 *
 * Threads: append and clean from the put thread; find and drop from any.  A tag is
 * written by whoever appends or drops the object, and read by the cleaner at any
 * time; data and sum never change while the segment is not empty.
 *
 * Invariants:
 *  I1  `live` of a segment is the sum of its live objects, and its pins.
 *  I2  held counts a segment from before it is touched until after its memory went.
 *  I3  held never exceeds segments_max.
 */
#include "mm/swap/internal.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>
#include <sys/mman.h>

_Static_assert(sizeof(struct object) == 16, "an object's header is 16 bytes");
_Static_assert(SEGMENT_UNITS == 1u << REF_UNIT_BITS, "a ref can name every unit");

/* ---- places ------------------------------------------------------------------ */

static swap_ref_t ref_make(uint32_t segment, uint32_t unit)
{
	return (swap_ref_t){ REF_PACKED | (uint64_t)segment << REF_UNIT_BITS | unit };
}

static uint32_t ref_segment(swap_ref_t ref)
{
	return (uint32_t)((ref.v & ~REF_PACKED) >> REF_UNIT_BITS);
}

static bool ref_is_inside(const struct pool *p, swap_ref_t ref)
{
	return ref.v < (uint64_t)1 << SWAP_REF_BITS && ref_is_packed(ref) &&
	       ref_segment(ref) < p->segments_max && ref_unit(ref) + units_of(1) <= SEGMENT_UNITS;
}

static uint8_t *segment_at(const struct pool *p, uint32_t segment)
{
	return p->base + segment * SEGMENT_BYTES;
}

static struct object *object_at(const struct pool *p, uint32_t segment, uint32_t unit)
{
	return (struct object *)(void *)(segment_at(p, segment) + unit * UNIT_BYTES);
}

/* ---- create and destroy ------------------------------------------------------ */

uint64_t pool_segments_in(uint64_t bytes)
{
	if (bytes < PAGE_BYTES)
		return 0;
	/* The table is whole pages: one page for what its end may waste. */
	return (bytes - PAGE_BYTES) / (SEGMENT_BYTES + sizeof(struct segment));
}

static uint64_t whole_pages(uint64_t bytes)
{
	return (bytes + PAGE_BYTES - 1) / PAGE_BYTES * PAGE_BYTES;
}

static void *reserve(const struct pool *p, uint64_t bytes)
{
	void *at = p->host->mmap(NULL, bytes, PROT_READ | PROT_WRITE,
				 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	return at == MAP_FAILED ? NULL : at;
}

static int reserve_both(struct pool *p, struct err *e)
{
	char asked[32];

	p->base = reserve(p, p->base_bytes);
	if (p->base)
		p->segments = reserve(p, p->segments_bytes);
	if (!p->segments)
		return err_sys(e, -ENOMEM, "swap: no address space for a pool of %s",
			       size_format(asked, sizeof(asked), p->base_bytes));
	return 0;
}

/* As guest RAM: what is in it is the guest's, and not for dumps and children. */
static int advise_all(struct pool *p, struct err *e)
{
	if (p->host->madvise(p->base, p->base_bytes, MADV_DONTFORK) < 0)
		return err_sys(e, -errno, "swap: cannot mark the pool as not inherited");
	if (p->host->madvise(p->base, p->base_bytes, MADV_DONTDUMP) < 0)
		return err_sys(e, -errno, "swap: cannot mark the pool as not dumped");
	/* A huge page would be two segments, one of them not counted as held.
	 * EINVAL is a host that has none. */
	if (p->host->madvise(p->base, p->base_bytes, MADV_NOHUGEPAGE) < 0 && errno != EINVAL)
		return err_sys(e, -errno, "swap: cannot keep huge pages out of the pool");
	return 0;
}

int pool_init(struct pool *p, uint32_t segments_max, const struct mm_host *host, struct err *e)
{
	int rc;

	VERIFY(segments_max >= POOL_SEGMENTS_MIN);
	*p = (struct pool){
		.host = host, .segments_max = segments_max,
		.base_bytes = segments_max * SEGMENT_BYTES,
		.segments_bytes = whole_pages(segments_max * sizeof(struct segment)),
		.open = { SEGMENT_NONE, SEGMENT_NONE, SEGMENT_NONE, SEGMENT_NONE },
		.streams = 1, .reserve = 1,
		.warm_list = SEGMENT_NONE, .cold_list = SEGMENT_NONE,
	};
	rc = reserve_both(p, e);
	return rc ? rc : advise_all(p, e);
}

static void unreserve(const struct pool *p, void *at, uint64_t bytes)
{
	if (at && p->host->munmap(at, bytes) < 0)
		log_error("swap: cannot unmap the pool: %s", strerror(errno));
}

void pool_fini(struct pool *p)
{
	unreserve(p, p->base, p->base_bytes);
	unreserve(p, p->segments, p->segments_bytes);
	*p = (struct pool){ 0 };
}

/* ---- lists of empty segments ------------------------------------------------- */

void segments_push(struct segment *of, _Atomic uint32_t *list, uint32_t i)
{
	uint32_t head = atomic_load_explicit(list, memory_order_relaxed);

	do
		of[i].next = head;
	while (!atomic_compare_exchange_weak_explicit(list, &head, i, memory_order_acq_rel,
						      memory_order_relaxed));
}

uint32_t segments_pop(struct segment *of, _Atomic uint32_t *list)
{
	uint32_t head = atomic_load_explicit(list, memory_order_acquire);

	while (head != SEGMENT_NONE &&
	       !atomic_compare_exchange_weak_explicit(list, &head, of[head].next,
						      memory_order_acq_rel, memory_order_acquire))
		;
	return head;
}

/* The caller owns the segment, which is empty.  The bytes given back, or -errno.
 * The counts change in the order in which a reader between the two steps sees too
 * much held or too many warm, which it can bear (I2, I3; pop() finds nothing). */
static int64_t give_back(struct pool *p, uint32_t i)
{
	if (p->host->madvise(segment_at(p, i), SEGMENT_BYTES, MADV_DONTNEED) < 0) {
		int rc = -errno;

		counter_inc(CTR_swap_discard_failed);
		atomic_fetch_add(&p->warm, 1);
		segments_push(p->segments, &p->warm_list, i);
		return rc;
	}
	segments_push(p->segments, &p->cold_list, i);
	atomic_fetch_sub(&p->held, 1);
	counter_add(CTR_swap_discarded_bytes, SEGMENT_BYTES);
	return (int64_t)SEGMENT_BYTES;
}

static uint32_t pop_warm(struct pool *p)
{
	uint32_t i = segments_pop(p->segments, &p->warm_list);

	if (i != SEGMENT_NONE)
		atomic_fetch_sub(&p->warm, 1);
	return i;
}

static uint32_t pop_cold(struct pool *p)
{
	uint32_t i;

	/* room() counted a warm segment that a drop is still about to push */
	if (atomic_load(&p->held) >= p->segments_max)
		return SEGMENT_NONE;
	i = segments_pop(p->segments, &p->cold_list);
	if (i == SEGMENT_NONE && p->fresh < p->segments_max)
		i = p->fresh++;
	if (i != SEGMENT_NONE)
		atomic_fetch_add(&p->held, 1);
	return i;
}

/* ---- pins -------------------------------------------------------------------- */

bool segment_pin(struct segment *s)
{
	uint64_t live = atomic_load_explicit(&s->live, memory_order_relaxed);

	while (live && !atomic_compare_exchange_weak_explicit(&s->live, &live, live + LIVE_PIN,
							      memory_order_acquire,
							      memory_order_relaxed))
		;
	return live != 0;
}

/* The bytes given back (0: it is not empty), or -errno. */
static int64_t subtract(struct pool *p, uint32_t i, uint64_t what)
{
	uint64_t old = atomic_fetch_sub_explicit(&p->segments[i].live, what, memory_order_acq_rel);

	VERIFY(old >= what);
	return old == what ? give_back(p, i) : 0;
}

static int64_t unpin(struct pool *p, uint32_t i)
{
	return subtract(p, i, LIVE_PIN);
}

static bool is_empty(const struct segment *s)
{
	return (atomic_load_explicit(&s->live, memory_order_acquire) & (LIVE_PIN - 1)) == 0;
}

/* ---- appending --------------------------------------------------------------- */

/* Segments that could be opened now. */
static uint32_t room(const struct pool *p)
{
	uint32_t held = atomic_load(&p->held);

	return p->segments_max - held + atomic_load(&p->warm);
}

static bool is_open(const struct pool *p, uint32_t i)
{
	for (unsigned stream = 0; stream < p->streams; stream++)
		if (i == p->open[stream])
			return true;
	return false;
}

static int64_t close_segment(struct pool *p, unsigned stream)
{
	uint32_t i = p->open[stream];

	p->open[stream] = SEGMENT_NONE;
	return i == SEGMENT_NONE ? 0 : unpin(p, i);
}

int64_t pool_close_all(struct pool *p)
{
	int64_t given = 0;

	for (unsigned stream = 0; stream < POOL_STREAMS; stream++) {
		int64_t freed = close_segment(p, stream);

		given += freed > 0 ? freed : 0;
	}
	return given;
}

/* Its units are used anew: hints of before are stale.  Never 0, so that no hint is. */
static void renew(struct segment *s)
{
	s->used_units = 0;
	if (++s->epoch == 0)
		s->epoch = 1;
}

static int open_segment(struct pool *p, unsigned stream)
{
	uint32_t i = pop_warm(p);

	if (i == SEGMENT_NONE)
		i = pop_cold(p);
	if (i == SEGMENT_NONE)
		return -ENOSPC;
	renew(&p->segments[i]);
	p->segments[i].stamp = stream == POOL_HOT ? ++p->now : 0;
	p->segments[i].is_refined = stream == POOL_REFINED;
	atomic_store_explicit(&p->segments[i].live, LIVE_PIN, memory_order_relaxed);
	p->open[stream] = i;
	return 0;
}

/* How something is to be appended. */
struct appending {
	enum pool_stream stream;
	uint32_t reserve_segments; /* to be left that could still be opened */
	uint32_t stamp;            /* not before this is it cold */
};

/* The stream's segment has `units` left; else it is closed.  That also where no other
 * can be opened: a segment that has to be cleaned must not be an open one. */
static bool has_room(struct pool *p, unsigned stream, uint32_t units)
{
	struct segment *s;

	if (p->open[stream] == SEGMENT_NONE)
		return false;
	s = &p->segments[p->open[stream]];
	if (is_empty(s) && s->used_units)
		renew(s);
	if (s->used_units + units <= SEGMENT_UNITS)
		return true;
	close_segment(p, stream);
	return false;
}

/* Finds an open segment with `units` left: the stream's, a new one where that leaves
 * the reserve, or another stream's.  SEGMENT_NONE: there is none. */
static uint32_t make_room(struct pool *p, uint32_t units, const struct appending *how)
{
	unsigned stream = how->stream < p->streams ? how->stream : POOL_HOT;

	if (room(p) < how->reserve_segments)
		return SEGMENT_NONE;
	if (has_room(p, stream, units))
		return p->open[stream];
	if (room(p) > how->reserve_segments && !open_segment(p, stream))
		return p->open[stream];
	for (unsigned other = 0; other < p->streams; other++)
		if (has_room(p, other, units))
			return p->open[other];
	return SEGMENT_NONE;
}

static uint64_t tag_of(const struct packed *k)
{
	return tag_make(k->owner, packed_length(k), k->state ? k->state : OBJECT_LIVE);
}

static int append(struct pool *p, const struct packed *src, const struct appending *how,
		  swap_ref_t *ref)
{
	uint32_t units = units_of(src->bytes), i = make_room(p, units, how);
	struct segment *s;
	struct object *o;

	VERIFY(src->bytes >= 1 && src->bytes <= OBJECT_BYTES_MAX);
	if (i == SEGMENT_NONE)
		return -ENOSPC;
	s = &p->segments[i];
	o = object_at(p, i, s->used_units);
	o->sum = src->sum;
	memcpy(o->data, src->data, src->bytes);
	atomic_store_explicit(&o->tag, tag_of(src), memory_order_release);
	*ref = ref_make(i, s->used_units);
	s->used_units += units;
	if (s->stamp < how->stamp)
		s->stamp = how->stamp;
	atomic_fetch_add_explicit(&s->live, LIVE_OBJECT + units, memory_order_relaxed);
	atomic_fetch_add_explicit(&p->pages, 1, memory_order_relaxed);
	atomic_fetch_add_explicit(&p->bytes, units * UNIT_BYTES, memory_order_relaxed);
	atomic_fetch_add_explicit(&p->refined, src->is_refined, memory_order_relaxed);
	return 0;
}

int pool_append(struct pool *p, const struct packed *src, enum pool_stream stream,
		swap_ref_t *ref)
{
	return append(p, src, &(struct appending){ .stream = stream,
						   .reserve_segments = p->reserve }, ref);
}

uint64_t pool_fits(const struct pool *p)
{
	uint32_t openable = room(p);

	/* the end of each segment may be too short for one more */
	return openable > p->reserve ? (openable - p->reserve) *
			(uint64_t)(SEGMENT_UNITS / units_of(OBJECT_BYTES_MAX) - 1) : 0;
}

uint32_t pool_room(const struct pool *p)
{
	return room(p);
}

/* ---- finding and dropping ---------------------------------------------------- */

static struct packed packed_at(const struct object *o, uint64_t tag)
{
	return (struct packed){ .owner = (uint32_t)tag, .bytes = tag_bytes(tag), .sum = o->sum,
				.data = o->data, .state = (uint8_t)tag_state(tag),
				.is_delta = tag_is_delta(tag), .is_refined = tag_is_refined(tag) };
}

int pool_peek(const struct pool *p, swap_ref_t ref, struct packed *out)
{
	const struct object *o;
	uint64_t tag;

	if (!ref_is_inside(p, ref))
		return -EIO;
	o = object_at(p, ref_segment(ref), ref_unit(ref));
	tag = atomic_load_explicit(&o->tag, memory_order_acquire);
	if (!tag_is_sound(tag, ref_unit(ref)))
		return -EIO;
	*out = packed_at(o, tag);
	return 0;
}

int pool_find(const struct pool *p, swap_ref_t ref, struct packed *out)
{
	int rc = pool_peek(p, ref, out);

	return !rc && out->state == OBJECT_DEAD ? -EIO : rc;
}

/* Its tag says dead already: its units are a hole from now on. */
static void forget(struct pool *p, swap_ref_t ref, uint64_t tag)
{
	uint32_t units = units_of(tag_bytes(tag));

	atomic_fetch_sub_explicit(&p->pages, 1, memory_order_relaxed);
	atomic_fetch_sub_explicit(&p->bytes, units * UNIT_BYTES, memory_order_relaxed);
	atomic_fetch_sub_explicit(&p->refined, tag_is_refined(tag), memory_order_relaxed);
	subtract(p, ref_segment(ref), LIVE_OBJECT + units);
}

static uint64_t with_state(uint64_t tag, uint64_t state)
{
	return tag_make((uint32_t)tag, tag_length(tag), state);
}

/* Of two that change this tag at once, one is the object's owner (or, after `move`
 * gave it away, the cleaner), dropping it once; the other is the put thread, making
 * a base of it: hence the exchange.  A base's orphan is its row's, for the last of
 * its deltas to retire. */
bool pool_drop(struct pool *p, swap_ref_t ref, uint32_t *row)
{
	_Atomic uint64_t *at;
	uint64_t tag, state;

	VERIFY(ref_is_inside(p, ref));
	at = &object_at(p, ref_segment(ref), ref_unit(ref))->tag;
	tag = atomic_load_explicit(at, memory_order_acquire);
	do {
		if (!tag_is_sound(tag, ref_unit(ref))) {
			counter_inc(CTR_swap_bad_object);
			return false;
		}
		VERIFY(tag_state(tag) == OBJECT_LIVE || tag_state(tag) == OBJECT_BASE);
		state = tag_state(tag) == OBJECT_BASE ? OBJECT_ORPHAN : OBJECT_DEAD;
	} while (!atomic_compare_exchange_weak_explicit(at, &tag, with_state(tag, state),
							memory_order_acq_rel,
							memory_order_acquire));
	*row = (uint32_t)tag;
	if (state == OBJECT_DEAD)
		forget(p, ref, tag);
	return state == OBJECT_ORPHAN;
}

void pool_retire(struct pool *p, swap_ref_t ref)
{
	_Atomic uint64_t *at;
	uint64_t tag;

	VERIFY(ref_is_inside(p, ref));
	at = &object_at(p, ref_segment(ref), ref_unit(ref))->tag;
	tag = atomic_load_explicit(at, memory_order_acquire);
	if (!tag_is_sound(tag, ref_unit(ref))) {
		counter_inc(CTR_swap_bad_object);
		return;
	}
	VERIFY(tag_state(tag) != OBJECT_DEAD);
	atomic_store_explicit(at, with_state(tag, OBJECT_DEAD), memory_order_release);
	forget(p, ref, tag);
}

/* ---- for deltas ---------------------------------------------------------------- */

bool pool_pin(struct pool *p, swap_ref_t ref)
{
	return ref_is_inside(p, ref) && segment_pin(&p->segments[ref_segment(ref)]);
}

void pool_unpin(struct pool *p, swap_ref_t ref)
{
	(void)unpin(p, ref_segment(ref));
}

bool pool_mark_base(struct pool *p, swap_ref_t ref, const struct packed *k, uint32_t row)
{
	uint64_t tag = tag_of(k);

	return atomic_compare_exchange_strong_explicit(
		&object_at(p, ref_segment(ref), ref_unit(ref))->tag, &tag,
		tag_make(row, k->bytes, OBJECT_BASE), memory_order_acq_rel, memory_order_relaxed);
}

/* epoch 16 | segment 21 | unit 17.  More segments than that no guest has.  A hint older
 * than 65,536 uses of its segment leads to whatever is there now, which passes for a
 * page only with that page's checksum. */
#define HINT_SEGMENT_BITS 21
_Static_assert(16 + HINT_SEGMENT_BITS + REF_UNIT_BITS == HINT_BITS, "a hint's parts");

uint64_t pool_hint(const struct pool *p, swap_ref_t ref)
{
	uint32_t i = ref_segment(ref);

	if (i >> HINT_SEGMENT_BITS)
		return 0;
	return (uint64_t)p->segments[i].epoch << (HINT_SEGMENT_BITS + REF_UNIT_BITS) |
	       (uint64_t)i << REF_UNIT_BITS | ref_unit(ref);
}

swap_ref_t pool_from_hint(const struct pool *p, uint64_t hint)
{
	uint32_t i = hint >> REF_UNIT_BITS & ((1u << HINT_SEGMENT_BITS) - 1);
	uint32_t unit = hint & (SEGMENT_UNITS - 1);

	if (i >= p->fresh || p->segments[i].epoch != hint >> (HINT_SEGMENT_BITS + REF_UNIT_BITS))
		return (swap_ref_t){ 0 };
	return ref_make(i, unit);
}

uint64_t pool_object_bytes(uint32_t bytes)
{
	return units_of(bytes) * UNIT_BYTES;
}

/* ---- cleaning ---------------------------------------------------------------- */

/* Closed, and with something to gain: dropped objects, not just an end too short
 * for one. */
static bool is_victim(const struct pool *p, uint32_t i, uint64_t *live_units)
{
	const struct segment *s = &p->segments[i];
	uint64_t live = atomic_load_explicit(&s->live, memory_order_relaxed);

	*live_units = live & LIVE_UNITS_MASK;
	return live && !is_open(p, i) && !s->is_spoiled && !s->carried &&
	       *live_units < s->used_units;
}

/* The emptiest, or SEGMENT_NONE. */
static uint32_t choose_victim(const struct pool *p)
{
	uint64_t units, least = UINT64_MAX;
	uint32_t best = SEGMENT_NONE;

	for (uint32_t i = 0; i < p->fresh; i++) {
		if (!is_victim(p, i, &units) || units >= least)
			continue;
		least = units;
		best = i;
	}
	return best;
}

/* Takes back what was just appended, which nobody knows of: not even a hole. */
void pool_unappend(struct pool *p, swap_ref_t ref)
{
	VERIFY(is_open(p, ref_segment(ref)));
	pool_retire(p, ref);
	p->segments[ref_segment(ref)].used_units = ref_unit(ref);
}

/* An orphan has nobody to ask. */
static bool owner_agrees(const struct pool_cleaning *c, const struct packed *k, swap_ref_t from,
			 swap_ref_t to)
{
	return k->state == OBJECT_ORPHAN ||
	       c->move(c->move_ctx, delta_owner(c->delta, k), from, to);
}

/* What was refined stays apart.  Refining leaves the cleaner its reserve. */
static struct appending moving(const struct segment *s, const struct pool_cleaning *c)
{
	return (struct appending){ .stream = c->refine || s->is_refined ? POOL_REFINED : POOL_COLD,
				   .reserve_segments = c->refine ? 1 : 0, .stamp = s->stamp };
}

static void count_moved(const struct packed *was, const struct packed *is, bool refining)
{
	if (!refining) {
		counter_add(CTR_swap_cleaned_bytes, pool_object_bytes(is->bytes));
	} else if (is->is_refined && !was->is_refined) {
		counter_inc(CTR_swap_refined);
		counter_add(CTR_swap_refined_bytes_saved,
			    pool_object_bytes(was->bytes) - pool_object_bytes(is->bytes));
	}
}

/* -ENOSPC, or 0: moved, or not wanted any more.  Where the owner says so before it
 * drops the object, that stays where it is until it does. */
static int move_object(struct pool *p, swap_ref_t from, const struct appending *how,
		       const struct pool_cleaning *c)
{
	struct packed was, src;
	swap_ref_t to;
	uint32_t row;
	int rc;

	if (pool_find(p, from, &src) || !delta_move_begin(c->delta, &src, &row))
		return 0; /* dropped just now */
	was = src;
	if (c->refine)
		refine_object(c->refine, c->delta, &src);
	rc = append(p, &src, how, &to);
	if (!rc && owner_agrees(c, &src, from, to)) {
		count_moved(&was, &src, c->refine);
		delta_move_end(c->delta, &src, row, to);
		pool_retire(p, from);
		return 0;
	}
	if (!rc) {
		counter_inc(CTR_swap_move_refused);
		pool_unappend(p, to);
	}
	delta_move_end(c->delta, &src, row, (swap_ref_t){ 0 });
	return rc;
}

/* Moves what is live in segment i, which is pinned.  0: to its end; -EAGAIN: the
 * budget is used up; -EIO: spoiled; -ENOSPC. */
static int empty_segment(struct pool *p, uint32_t i, const struct pool_cleaning *c,
			 uint64_t *left_bytes)
{
	struct segment *s = &p->segments[i];
	const struct appending how = moving(s, c);
	uint32_t unit = 0, units;
	int rc = 0;

	for (; !rc && unit < s->used_units; unit += units) {
		uint64_t tag = atomic_load_explicit(&object_at(p, i, unit)->tag,
						    memory_order_relaxed);

		if (!tag_is_sound(tag, unit)) {
			counter_inc(CTR_swap_bad_object);
			s->is_spoiled = true;
			return -EIO;
		}
		units = units_of(tag_bytes(tag));
		if (tag_state(tag) == OBJECT_DEAD)
			continue;
		if (*left_bytes < units * UNIT_BYTES)
			return -EAGAIN;
		*left_bytes -= units * UNIT_BYTES;
		rc = move_object(p, ref_make(i, unit), &how, c);
	}
	return rc;
}

/* Holes that cleaning could close: not what the open segment has left, and not
 * the warm ones. */
static bool wants_cleaning(const struct pool *p, unsigned slack_pct)
{
	uint64_t held = atomic_load(&p->held) * SEGMENT_BYTES;
	uint64_t used = held - atomic_load(&p->warm) * SEGMENT_BYTES;
	uint64_t live = atomic_load(&p->bytes);

	if (room(p) == 0)
		return true; /* the reserve has to come back, however few the holes */
	for (unsigned i = 0; i < p->streams; i++)
		if (p->open[i] != SEGMENT_NONE)
			used -= SEGMENT_BYTES - p->segments[p->open[i]].used_units * UNIT_BYTES;
	return used > live && (used - live) * 100 > slack_pct * held;
}

/* Empties one segment, or as much of it as may be.  The bytes given back; 0 where
 * there is no more to do now; or -errno. */
static int64_t clean_one(struct pool *p, const struct pool_cleaning *c, uint64_t *left_bytes)
{
	uint32_t i = choose_victim(p);
	int64_t freed;
	int rc;

	/* several may be open, and all holes in those */
	if (i == SEGMENT_NONE && p->streams > 1 && room(p) == 0) {
		freed = pool_close_all(p);
		if (freed)
			return freed;
		i = choose_victim(p);
	}
	if (i == SEGMENT_NONE)
		return 0;
	if (!segment_pin(&p->segments[i]))
		return 0; /* emptied by a drop just now */
	rc = empty_segment(p, i, c, left_bytes);
	freed = unpin(p, i);
	return freed || rc == -EAGAIN ? freed : rc;
}

/* Offers the warm segments to madvise again, until it refuses one. */
static int64_t retry_warm(struct pool *p)
{
	int64_t freed = 1, given = 0;

	while (freed > 0) {
		uint32_t i = pop_warm(p);

		freed = i == SEGMENT_NONE ? 0 : give_back(p, i);
		if (freed > 0)
			given += freed;
	}
	return given ? given : freed;
}

static int64_t close_empty(struct pool *p)
{
	int64_t given = 0;

	for (unsigned i = 0; i < p->streams; i++) {
		int64_t freed = 0;

		if (p->open[i] != SEGMENT_NONE && is_empty(&p->segments[p->open[i]]))
			freed = close_segment(p, i);
		given += freed > 0 ? freed : 0;
	}
	return given;
}

int64_t pool_clean(struct pool *p, const struct pool_cleaning *c)
{
	uint64_t left_bytes = c->budget_bytes;
	int64_t given = 0, freed = retry_warm(p), rc = 0;

	if (freed <= 0)
		rc = freed;
	else
		given = freed;
	given += close_empty(p);
	while (wants_cleaning(p, c->slack_pct)) {
		freed = clean_one(p, c, &left_bytes);
		if (freed <= 0) {
			rc = freed;
			break;
		}
		given += freed;
	}
	return given ? given : rc;
}

/* ---- refining ---------------------------------------------------------------- */

/* Stamp 0 are pages that did not pack, on their way to disk. */
static bool is_refinable(const struct pool *p, uint32_t i)
{
	const struct segment *s = &p->segments[i];

	return atomic_load_explicit(&s->live, memory_order_relaxed) && !is_open(p, i) &&
	       s->stamp && !s->is_spoiled && !s->is_refined && !s->carried;
}

/* The coldest, or SEGMENT_NONE. */
static uint32_t choose_refinable(const struct pool *p, uint32_t max_stamp)
{
	uint32_t best = SEGMENT_NONE;

	for (uint32_t i = 0; i < p->fresh; i++) {
		uint32_t stamp = p->segments[i].stamp;

		if (stamp > max_stamp || !is_refinable(p, i))
			continue;
		if (best == SEGMENT_NONE || stamp < p->segments[best].stamp)
			best = i;
	}
	return best;
}

bool pool_is_refinable(const struct pool *p, uint32_t max_stamp)
{
	return choose_refinable(p, max_stamp) != SEGMENT_NONE;
}

/* The segment is emptied as the cleaner does, into one for what is refined.  What its
 * owner would not have moved is about to be dropped: the segment is not tried again. */
int pool_refine(struct pool *p, const struct pool_cleaning *c, uint32_t max_stamp,
		uint64_t *left_bytes)
{
	uint32_t i = choose_refinable(p, max_stamp);
	int rc;

	if (i == SEGMENT_NONE)
		return 0;
	if (!segment_pin(&p->segments[i]))
		return 1; /* emptied by a drop just now */
	rc = empty_segment(p, i, c, left_bytes);
	p->segments[i].is_refined = !rc;
	unpin(p, i);
	return rc == -ENOSPC ? rc : 1;
}

/* ---- on the way to disk -------------------------------------------------------- */

uint32_t pool_coldest(const struct pool *p)
{
	uint32_t best = SEGMENT_NONE;

	for (uint32_t i = 0; i < p->fresh; i++) {
		const struct segment *s = &p->segments[i];

		if (!atomic_load_explicit(&s->live, memory_order_relaxed) || is_open(p, i) ||
		    s->is_spoiled || s->carried)
			continue;
		if (best == SEGMENT_NONE || s->stamp < p->segments[best].stamp)
			best = i;
	}
	return best;
}

bool pool_carry(struct pool *p, uint32_t i)
{
	if (!segment_pin(&p->segments[i]))
		return false;
	p->segments[i].carried++;
	return true;
}

void pool_uncarry(struct pool *p, uint32_t i)
{
	VERIFY(p->segments[i].carried > 0);
	p->segments[i].carried--;
	unpin(p, i);
}

int pool_next(struct pool *p, uint32_t i, uint32_t *unit, swap_ref_t *ref, struct packed *out)
{
	struct segment *s = &p->segments[i];

	while (*unit < s->used_units) {
		struct object *o = object_at(p, i, *unit);
		uint64_t tag = atomic_load_explicit(&o->tag, memory_order_relaxed);

		if (!tag_is_sound(tag, *unit)) {
			counter_inc(CTR_swap_bad_object);
			s->is_spoiled = true;
			return -EIO;
		}
		*ref = ref_make(i, *unit);
		*unit += units_of(tag_bytes(tag));
		if (tag_state(tag) == OBJECT_DEAD)
			continue;
		*out = packed_at(o, tag);
		return 1;
	}
	return 0;
}

int pool_forward(struct pool *p, swap_ref_t ref, const struct pool_cleaning *c)
{
	return move_object(p, ref, &(struct appending){ .stream = POOL_HOT, .reserve_segments = 1 },
			   c);
}

bool pool_is_leaving(const struct pool *p, swap_ref_t ref)
{
	return p->segments[ref_segment(ref)].carried > 0;
}

void pool_touch(struct pool *p, uint32_t i)
{
	p->segments[i].stamp = ++p->now;
}

/* ---- verify ------------------------------------------------------------------ */

/* What the live word should be, from the objects themselves. */
static uint64_t walk(const struct pool *p, uint32_t i, uint64_t *refined)
{
	const struct segment *s = &p->segments[i];
	uint64_t live = (is_open(p, i) + (uint64_t)s->carried) * LIVE_PIN;
	uint32_t unit = 0;

	while (unit < s->used_units) {
		uint64_t tag = atomic_load(&object_at(p, i, unit)->tag);

		VERIFY(tag_is_sound(tag, unit));
		if (tag_state(tag) != OBJECT_DEAD) {
			live += LIVE_OBJECT + units_of(tag_bytes(tag));
			*refined += tag_is_refined(tag);
		}
		unit += units_of(tag_bytes(tag));
	}
	VERIFY(unit == s->used_units && unit <= SEGMENT_UNITS);
	return live;
}

static uint32_t list_length(const struct pool *p, uint32_t i)
{
	uint32_t n = 0;

	for (; i != SEGMENT_NONE; i = p->segments[i].next) {
		VERIFY(i < p->fresh && n < p->fresh);
		VERIFY(atomic_load(&p->segments[i].live) == 0);
		n++;
	}
	return n;
}

void pool_verify(const struct pool *p)
{
	uint32_t in_use = 0, warm = list_length(p, atomic_load(&p->warm_list));
	uint64_t pages = 0, bytes = 0, refined = 0;
	bool is_spoiled = false;

	for (uint32_t i = 0; i < p->fresh; i++) {
		uint64_t live = atomic_load(&p->segments[i].live);

		if (!live)
			continue;
		is_spoiled |= p->segments[i].is_spoiled;
		VERIFY(p->segments[i].is_spoiled || live == walk(p, i, &refined));
		in_use++;
		pages += live % LIVE_PIN / LIVE_OBJECT;
		bytes += (live & LIVE_UNITS_MASK) * UNIT_BYTES;
	}
	VERIFY(pages == atomic_load(&p->pages) && bytes == atomic_load(&p->bytes));
	VERIFY(is_spoiled || refined == atomic_load(&p->refined));
	VERIFY(warm == atomic_load(&p->warm));
	VERIFY(in_use + warm == atomic_load(&p->held));
	VERIFY(atomic_load(&p->held) <= p->segments_max);
	VERIFY(in_use + warm + list_length(p, atomic_load(&p->cold_list)) == p->fresh);
}
