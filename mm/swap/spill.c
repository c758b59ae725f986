/*
 * Between the pool and the swap file: batches of a segment each, on their way down, on
 * their way from one segment of the file to another, or up.
 *
 *          gather(): coldest segments of the pool              read: a lift
 *    IDLE ────────────► FILLING ──full──► WRITING         IDLE ──► READING ──► READ
 *      ▲                   ▲                  │             ▲                   │ │
 *      └───────────────────┼── finish_write() ┘             └───────────────────┘ │
 *                          └────────────────── read: a clean ─────────────────────┘
 *
 * Down.  Live objects of the coldest closed segments are copied into a batch until it is
 * full; it is encrypted where it lies and written in one piece.  They are copied, and a
 * segment of the pool is not written as it lies, because it has holes, because some of
 * it may have to stay, and because a tag changes when an object is dropped: a file
 * system with checksums calls a block that changes under its write damaged.
 *
 * When a page is safe, and where.  Until its batch has been written a page is in the
 * pool and is served from there.  Then, page by page, its owner is asked to `move`: from
 * that moment it is on disk, and its object in the pool is dropped.  An owner that has
 * the page no longer says so, and the copy is forgotten.  So no page is ever nowhere,
 * and none is read from disk before its write has ended.
 *
 * While a batch is on its way it pins what it was copied from.  Without that a segment
 * could be emptied, reused, and have another page of the same owner at the same ref:
 * the move would succeed, and the old bytes be taken for the new.
 *
 * What goes down is plain, and needs nothing that is in memory (as_it_goes()).  A delta
 * is packed by itself again.  A base that deltas need stays: it goes on in the pool as
 * something hot, until they have gone before it.  Where there is no room for that it
 * stays where it is, and the cleaner closes the holes around it (unstick()).
 *
 * A write that fails loses nothing: its batch is forgotten, its disk segment is never
 * used again, and the pool's segments are the coldest still.
 *
 * Cleaning.  When free segments get few, the one with the least in it is read; its
 * objects whose owners still want them (a move to where they are asks that) are carried
 * over into the batch that is being filled.  One free segment is always left for that,
 * and is enough: what is live in the emptiest fits into the rest of the batch and that.
 *
 * Up.  A page that is touched comes home by itself, and goes to the pool anew when it
 * is cold.  Where one segment is read again and again, reading what is left of it once
 * is cheaper than page by page: it is lifted into the pool, if that has room to spare
 * and nothing had to go down of late.
 *
 * Threads: the put thread only, but for spill_held_bytes().
 */
#include "mm/swap/internal.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#define SOURCE_DISK ((uint64_t)1 << 32)
#define EPOCH_NS 1000000000u

/* The pool is spilled ahead of need once less than a sixteenth of it can be opened, and
 * until an eighth can; two marks, or every segment would be a write of its own. */
#define AHEAD_LOW_SHARE 16u
#define AHEAD_HIGH_SHARE 8u
/* Cleaning begins when a sixteenth of the disk is left, and takes what is at least an
 * eighth empty: of a fuller one the reading and writing is worth more than the gain. */
#define CLEAN_SHARE 16u
#define CLEAN_UNITS_MAX (SEGMENT_UNITS / 8u * 7u)

/* Nothing is lifted for so long after memory was so short that pages had to go down:
 * they would go straight back.  Without it a stress test lifted more than it read. */
#define LIFT_QUIET_NS 2000000000u

#define CLEANER_RESERVE 1u

static bool is_disk_source(uint64_t source)
{
	return (source & SOURCE_DISK) != 0;
}

/* ---- batches ------------------------------------------------------------------------- */

static struct batch *idle_batch(struct spill *sp)
{
	for (unsigned i = 0; i < BATCHES; i++)
		if (sp->batches[i].state == BATCH_IDLE)
			return &sp->batches[i];
	return NULL;
}

static struct batch *use_batch(struct spill *sp, struct batch *b, enum batch_state state)
{
	b->state = state;
	b->unit = 0;
	b->booked = 0;
	b->count = 0;
	b->sources = 0;
	b->is_spill = false;
	atomic_store(&sp->is_warm, true);
	return b;
}

static void carry_source(struct swap *s, uint32_t segment)
{
	VERIFY(pool_carry(&s->pool, segment)); /* has something live, or a pin already */
	if (s->pool.segments[segment].carried == 1)
		s->spill.leaving++;
}

static void uncarry_source(struct swap *s, uint32_t segment)
{
	if (s->pool.segments[segment].carried == 1)
		s->spill.leaving--;
	pool_uncarry(&s->pool, segment);
}

static bool has_source(const struct batch *b, uint64_t source)
{
	for (unsigned i = b->sources; i-- > 0;)
		if (b->source[i] == source)
			return true;
	return false;
}

static void add_source(struct swap *s, struct batch *b, uint64_t source)
{
	if (has_source(b, source))
		return;
	b->source[b->sources++] = source;
	if (is_disk_source(source))
		VERIFY(segment_pin(&s->disk.segments[(uint32_t)source]));
	else
		carry_source(s, (uint32_t)source);
	b->is_spill |= !is_disk_source(source);
}

static void release_sources(struct swap *s, struct batch *b)
{
	for (unsigned i = 0; i < b->sources; i++) {
		if (is_disk_source(b->source[i]))
			disk_unpin(&s->disk, (uint32_t)b->source[i]);
		else
			uncarry_source(s, (uint32_t)b->source[i]);
	}
	b->sources = 0;
}

/* ---- writing -------------------------------------------------------------------------- */

static bool move(struct swap *s, uint32_t owner, swap_ref_t from, swap_ref_t to)
{
	return s->cfg.move(s->cfg.move_ctx, owner, from, to);
}

/* The object is on disk now: its owner takes it, or it is forgotten. */
static void hand_over(struct swap *s, const struct batch *b, const struct carried *c)
{
	swap_ref_t to = { REF_DISK | (uint64_t)b->segment << REF_UNIT_BITS |
			  (c->unit_and_size & (SEGMENT_UNITS - 1)) |
			  (uint64_t)(c->unit_and_size >> REF_UNIT_BITS) << REF_SIZE_SHIFT };

	if (!move(s, c->owner, c->from, to)) {
		counter_inc(CTR_swap_move_refused);
		disk_drop(&s->disk, to);
	} else if (ref_is_disk(c->from)) {
		counter_inc(CTR_swap_disk_cleaned);
		disk_drop(&s->disk, c->from);
	} else {
		counter_inc(CTR_swap_spilled);
		swap_drop(s, c->from);
	}
}

static void finish_write(struct swap *s, struct batch *b, int rc)
{
	disk_wrote(&s->disk, b->segment, rc);
	if (!rc) {
		counter_add(CTR_swap_spilled_bytes, b->op.bytes);
		s->disk.segments[b->segment].used_units = b->unit;
		disk_add(&s->disk, b->segment, b->count, b->booked);
		for (uint32_t i = 0; i < b->count; i++)
			hand_over(s, b, &b->carried[i]);
	}
	disk_unpin(&s->disk, b->segment);
	release_sources(s, b);
	b->state = BATCH_IDLE;
}

/* Whole blocks, encrypted where that is asked for. */
static int make_ready(struct swap *s, struct batch *b)
{
	uint32_t used = (uint32_t)(b->unit * UNIT_BYTES);
	uint32_t bytes = (uint32_t)((used + MM_BLOCK_BYTES - 1) / MM_BLOCK_BYTES * MM_BLOCK_BYTES);
	struct crypt_blocks blocks = { b->raw, disk_offset(b->segment) / MM_BLOCK_BYTES,
				       bytes / (uint32_t)MM_BLOCK_BYTES };

	memset(b->raw + used, 0, bytes - used);
	b->op = (struct aio_op){ .fd = s->disk.file.fd, .is_write = true, .buf = b->raw,
				 .bytes = bytes, .offset = disk_offset(b->segment), .user = b };
	return s->disk.crypt ? crypt_seal(s->disk.crypt, &blocks) : 0;
}

static void start_write(struct swap *s)
{
	struct batch *b = s->spill.filling;
	int rc = make_ready(s, b);

	s->spill.filling = NULL;
	b->state = BATCH_WRITING;
	if (!rc)
		rc = aio_start(s->spill.aio, &b->op);
	if (rc)
		finish_write(s, b, rc);
}

/* ---- filling --------------------------------------------------------------------------- */

/* An object to be carried to disk. */
struct load {
	struct packed k;
	swap_ref_t from;
	uint64_t source;
	uint32_t reserve; /* disk segments to be left */
};

static bool has_space(const struct batch *b, const struct load *l)
{
	return b->unit + units_of(l->k.bytes) <= SEGMENT_UNITS && b->count < BATCH_OBJECTS &&
	       (b->sources < BATCH_SOURCES || has_source(b, l->source));
}

/* 0, -EAGAIN: all batches are busy; -ENOSPC: no free segment. */
static int begin_filling(struct swap *s, uint32_t reserve)
{
	struct batch *b = idle_batch(&s->spill);
	uint32_t segment;

	if (!b)
		return -EAGAIN;
	segment = disk_take(&s->disk, reserve);
	if (segment == SEGMENT_NONE)
		return -ENOSPC;
	s->spill.filling = use_batch(&s->spill, b, BATCH_FILLING);
	b->segment = segment;
	return 0;
}

static void put_in(struct swap *s, struct batch *b, const struct load *l)
{
	struct object *o = (struct object *)(void *)(b->raw + b->unit * UNIT_BYTES);
	uint32_t units = units_of(l->k.bytes);
	swap_ref_t to = disk_ref(b->segment, b->unit, l->k.bytes);

	/* what is between two objects goes to disk too, and is nobody's bytes */
	memset((uint8_t *)o + (units - 1) * UNIT_BYTES, 0, UNIT_BYTES);
	atomic_store_explicit(&o->tag, tag_make(l->k.owner, packed_length(&l->k), OBJECT_LIVE),
			      memory_order_relaxed);
	o->sum = l->k.sum ^ disk_seal(&s->disk, b->segment);
	memcpy(o->data, l->k.data, l->k.bytes);
	b->carried[b->count++] = (struct carried){
		.from = l->from, .owner = l->k.owner,
		.unit_and_size = b->unit | (uint32_t)((to.v & ~REF_KIND_MASK) >> REF_SIZE_SHIFT)
						   << REF_UNIT_BITS,
	};
	b->unit += units;
	b->booked += disk_units(to);
	add_source(s, b, l->source);
}

/* As begin_filling().  Whoever leaves a reserve does not use it up either. */
static int load(struct swap *s, const struct load *l)
{
	int rc = 0;

	if (s->spill.filling && !has_space(s->spill.filling, l))
		start_write(s);
	if (!s->spill.filling)
		rc = begin_filling(s, l->reserve);
	else if (atomic_load(&s->disk.spare) < l->reserve)
		rc = -ENOSPC;
	if (!rc)
		put_in(s, s->spill.filling, l);
	return rc;
}

/* ---- gathering from the pool ------------------------------------------------------------ */

struct gathering {
	uint32_t segments;  /* of the pool to be leaving */
	uint32_t max_stamp; /* nothing younger */
};

/* The source is not gone with what is on its way. */
static uint32_t whole_leaving(const struct spill *sp)
{
	return sp->leaving - (sp->source != SEGMENT_NONE);
}

static void leave_source(struct swap *s)
{
	uncarry_source(s, s->spill.source);
	s->spill.source = SEGMENT_NONE;
}

static bool next_source(struct swap *s, const struct gathering *g)
{
	uint32_t i = pool_coldest(&s->pool);

	if (i == SEGMENT_NONE || s->pool.segments[i].stamp > g->max_stamp ||
	    !pool_carry(&s->pool, i))
		return false;
	s->spill.leaving++;
	s->spill.source = i;
	s->spill.source_unit = 0;
	return true;
}

/* What may not go to disk goes on in the pool, and not as the coldest. */
static void keep(struct swap *s, swap_ref_t ref)
{
	const struct pool_cleaning c = { .move = s->cfg.move, .move_ctx = s->cfg.move_ctx,
					 .delta = s->delta };

	pool_touch(&s->pool, s->spill.source);
	if (pool_forward(&s->pool, ref, &c))
		s->spill.is_stuck = true;
}

/* Makes of it what can go: plain, and by itself.  False: it must stay, since deltas need
 * it, or since it is damaged, which is for its owner's fault to find. */
static bool as_it_goes(struct swap *s, struct packed *k)
{
	if (!s->delta)
		return k->state == OBJECT_LIVE && !k->is_delta;
	if (!k->is_delta)
		return delta_lets_go(s->delta, k);
	if (k->state != OBJECT_LIVE || delta_peek(s->delta, k, s->spill.page))
		return false;
	swap_pack_alone(s, s->spill.page, k);
	counter_inc(CTR_swap_delta_undone);
	return true;
}

/* The rest of the source.  0: all of it; -EAGAIN: no batch for more, or enough is
 * leaving; -ENOSPC: no room on disk; -EIO: damaged. */
static int gather_source(struct swap *s, const struct gathering *g)
{
	struct spill *sp = &s->spill;
	struct load l = { .source = sp->source, .reserve = CLEANER_RESERVE };
	int rc;

	for (;;) {
		uint32_t unit = sp->source_unit;

		rc = pool_next(&s->pool, sp->source, &unit, &l.from, &l.k);
		if (rc <= 0)
			return rc;
		if (!as_it_goes(s, &l.k)) {
			keep(s, l.from);
			sp->source_unit = unit;
			continue;
		}
		if (sp->filling && !has_space(sp->filling, &l)) {
			start_write(s);
			if (whole_leaving(sp) >= g->segments)
				return -EAGAIN;
		}
		rc = load(s, &l);
		if (rc)
			return rc;
		sp->source_unit = unit;
	}
}

static bool disk_takes(const struct swap *s)
{
	return !atomic_load(&s->disk.refuses);
}

static bool is_filling_from_pool(const struct spill *sp)
{
	return sp->filling && sp->filling->is_spill;
}

/* Fills and starts batches until so many segments are leaving, or no more can; none
 * is looked at twice.  What cleaning has begun to fill is filled up, or left. */
static void gather(struct swap *s, const struct gathering *g)
{
	struct spill *sp = &s->spill;
	uint32_t looks = s->pool.segments_max;
	int rc = 0;

	while (!rc && disk_takes(s) && looks-- &&
	       (whole_leaving(sp) < g->segments || is_filling_from_pool(sp))) {
		if (sp->source == SEGMENT_NONE && !next_source(s, g))
			break;
		rc = gather_source(s, g);
		if (rc != -EAGAIN)
			leave_source(s);
		if (rc == -EIO)
			rc = 0; /* that one is not asked again */
		if (rc == -ENOSPC)
			counter_inc(CTR_swap_disk_full);
	}
	if (is_filling_from_pool(sp) && rc != -EAGAIN)
		start_write(s);
}

/* ---- reading: cleaning and lifting -------------------------------------------------------- */

static bool is_reading(const struct spill *sp)
{
	for (unsigned i = 0; i < BATCHES; i++)
		if (sp->batches[i].state >= BATCH_READING)
			return true;
	return false;
}

static void finish_read(struct swap *s, struct batch *b)
{
	disk_unpin(&s->disk, b->segment);
	b->state = BATCH_IDLE;
}

/* True where it is on its way. */
static bool start_read(struct swap *s, uint32_t segment, bool is_lift)
{
	struct batch *b = idle_batch(&s->spill);
	uint64_t bytes;

	if (!b || !segment_pin(&s->disk.segments[segment]))
		return false;
	use_batch(&s->spill, b, BATCH_READING);
	b->is_lift = is_lift;
	b->segment = segment;
	bytes = s->disk.segments[segment].used_units * UNIT_BYTES;
	bytes = (bytes + MM_BLOCK_BYTES - 1) / MM_BLOCK_BYTES * MM_BLOCK_BYTES;
	b->op = (struct aio_op){ .fd = s->disk.file.fd, .buf = b->raw, .bytes = (uint32_t)bytes,
				 .offset = disk_offset(segment), .user = b };
	if (!aio_start(s->spill.aio, &b->op))
		return true;
	finish_read(s, b);
	return false;
}

/* Into the pool, as something hot.  0 or -ENOSPC. */
static int lift(struct swap *s, const struct load *l)
{
	swap_ref_t to;
	int rc = pool_append(&s->pool, &l->k, POOL_HOT, &to);

	if (rc)
		return rc;
	if (move(s, l->k.owner, l->from, to)) {
		counter_inc(CTR_swap_disk_lifted);
		disk_drop(&s->disk, l->from);
	} else {
		pool_unappend(&s->pool, to);
	}
	return 0;
}

/* Into the batch being filled, if its owner still has it there. */
static int clean(struct swap *s, const struct load *l)
{
	return move(s, l->k.owner, l->from, l->from) ? load(s, l) : 0;
}

/* A damaged object stays where it is, and its segment is not read again: that is for
 * its owner's fault to find. */
static bool is_sound(struct swap *s, const struct batch *b, const struct packed *k)
{
	if (swap_checksum(k) == k->sum)
		return true;
	counter_inc(CTR_swap_disk_read_errors);
	s->disk.segments[b->segment].is_spoiled = true;
	return false;
}

/* Goes through what was read, as far as there is room for it. */
static void look(struct swap *s, struct batch *b)
{
	struct load l = { .source = SOURCE_DISK | b->segment };
	int rc = 0;

	while (!rc && b->unit < s->disk.segments[b->segment].used_units) {
		if (disk_parse(&s->disk, b->segment, b->unit, b->raw, &l.k)) {
			counter_inc(CTR_swap_disk_read_errors);
			s->disk.segments[b->segment].is_spoiled = true;
			break; /* no telling where the next one starts */
		}
		l.from = disk_ref(b->segment, b->unit, l.k.bytes);
		if (is_sound(s, b, &l.k))
			rc = b->is_lift ? lift(s, &l) : clean(s, &l);
		if (!rc)
			b->unit += units_of(l.k.bytes);
	}
	if (rc != -EAGAIN) /* else when another batch has ended */
		finish_read(s, b);
}

static void arrived(struct swap *s, struct batch *b)
{
	struct crypt_blocks blocks = { b->raw, b->op.offset / MM_BLOCK_BYTES,
				       b->op.bytes / (uint32_t)MM_BLOCK_BYTES };
	int rc = b->op.result;

	if (!rc && s->disk.crypt)
		rc = crypt_unseal(s->disk.crypt, &blocks);
	if (rc) {
		counter_inc(CTR_swap_disk_read_errors);
		s->disk.segments[b->segment].is_spoiled = true;
		finish_read(s, b);
		return;
	}
	b->state = BATCH_READ;
	look(s, b);
}

/* Nothing comes to fill it up.  Where it is of one segment, nothing would be won. */
static void end_filling(struct swap *s)
{
	struct batch *b = s->spill.filling;

	if (b->is_spill || b->sources > 1) {
		start_write(s);
		return;
	}
	s->spill.filling = NULL;
	disk_unpin(&s->disk, b->segment);
	release_sources(s, b);
	b->state = BATCH_IDLE;
}

static void clean_disk(struct swap *s)
{
	uint32_t spare = atomic_load(&s->disk.spare), victim;
	uint64_t holes;

	if (is_reading(&s->spill))
		return;
	if (disk_takes(s) && spare < CLEANER_RESERVE + 1 + s->disk.segments_max / CLEAN_SHARE) {
		victim = disk_emptiest(&s->disk, CLEAN_UNITS_MAX, &holes);
		if (victim != SEGMENT_NONE && (s->spill.filling || holes >= SEGMENT_UNITS) &&
		    start_read(s, victim, false))
			return;
	}
	if (s->spill.filling)
		end_filling(s);
}

static uint32_t high_mark(const struct swap *s)
{
	return 2 + s->pool.segments_max / AHEAD_HIGH_SHARE;
}

static void lift_hot(struct swap *s)
{
	uint32_t i = atomic_exchange(&s->disk.hot, SEGMENT_NONE);

	if (i == SEGMENT_NONE || is_reading(&s->spill) || pool_room(&s->pool) <= high_mark(s) ||
	    now_ns() - s->spill.pressed_ns < LIFT_QUIET_NS)
		return;
	/* emptied since, and possibly being written anew */
	if (s->disk.segments[i].used_units == 0 || s->disk.segments[i].is_spoiled)
		return;
	(void)start_read(s, i, true);
}

/* ---- the ring -------------------------------------------------------------------------------- */

enum patience { TAKE_WHAT_IS, WAIT_FOR_ONE };

/* One that ended.  False: there is none. */
static bool reap(struct swap *s, enum patience how)
{
	struct aio_op *op = aio_reap(s->spill.aio, how == WAIT_FOR_ONE);
	struct batch *b;

	if (!op)
		return false;
	b = op->user;
	if (op->is_write)
		finish_write(s, b, op->result);
	else
		arrived(s, b);
	for (unsigned i = 0; i < BATCHES; i++)
		if (s->spill.batches[i].state == BATCH_READ)
			look(s, &s->spill.batches[i]);
	return true;
}

/* Nothing is on its way: the batches' memory goes back. */
static void give_back(struct swap *s)
{
	struct spill *sp = &s->spill;

	for (unsigned i = 0; i < BATCHES; i++)
		if (sp->batches[i].state != BATCH_IDLE)
			return;
	if (!atomic_load(&sp->is_warm))
		return;
	if (s->disk.host->madvise(sp->memory, sp->memory_bytes, MADV_DONTNEED) < 0)
		counter_inc(CTR_swap_discard_failed);
	else
		atomic_store(&sp->is_warm, false);
}

/* ---- what the tier asks for --------------------------------------------------------------------- */

void swap_tidy(struct swap *s)
{
	const struct gathering raw = { .segments = UINT32_MAX, .max_stamp = 0 };
	uint32_t room, low = 2 + s->pool.segments_max / AHEAD_LOW_SHARE;
	uint64_t now = now_ns();

	if (!s->has_disk)
		return;
	while (reap(s, TAKE_WHAT_IS))
		;
	if (now - s->spill.epoch_ns > EPOCH_NS) {
		s->spill.epoch_ns = now;
		atomic_fetch_add(&s->disk.epoch, 1);
	}
	disk_discard(&s->disk);
	lift_hot(s);
	room = pool_room(&s->pool);
	if (room < low)
		gather(s, &(struct gathering){ high_mark(s) - room, UINT32_MAX });
	else
		gather(s, &raw);
	clean_disk(s);
	give_back(s);
}

/* Closes the holes around what had to stay, once those have been written.  True where
 * that gave something back. */
static bool unstick(struct swap *s)
{
	if (!s->spill.is_stuck || swap_clean(s, 0, SEGMENT_BYTES) <= 0)
		return false;
	s->spill.is_stuck = false;
	return true;
}

/* Gets so many segments of the pool going, and waits for something to end. */
static bool press(struct swap *s, uint64_t segments)
{
	struct gathering g = { (uint32_t)segments, UINT32_MAX };

	s->spill.pressed_ns = now_ns();
	if (segments > s->pool.segments_max)
		g.segments = s->pool.segments_max;
	gather(s, &g);
	clean_disk(s);
	return unstick(s) || reap(s, WAIT_FOR_ONE);
}

/* Each turn ends a write or a read.  More of them than this are cleaning that does not
 * get anywhere: the disk is full. */
static uint64_t turns_for(uint64_t segments)
{
	return 4 * segments + 64;
}

uint64_t swap_room(struct swap *s, uint64_t pages)
{
	const uint64_t each = SEGMENT_UNITS / units_of(OBJECT_BYTES_MAX) - 1;
	uint64_t fits = pool_fits(&s->pool), most = s->pool.segments_max / 2 * each, turns;

	if (pages > most)
		pages = most; /* more would empty the pool of what is hot, too */
	turns = turns_for(pages / each);
	while (fits < pages && turns--) {
		if (!press(s, (pages - fits + each - 1) / each) &&
		    swap_clean(s, 0, 2 * SEGMENT_BYTES) <= 0)
			break;
		fits = pool_fits(&s->pool);
	}
	return fits < pages ? fits : pages;
}

static uint64_t pool_held(const struct swap *s)
{
	return atomic_load(&s->pool.held) * SEGMENT_BYTES;
}

uint64_t swap_spill(struct swap *s, uint64_t bytes)
{
	uint64_t before = pool_held(s) + spill_held_bytes(s), after;
	uint64_t turns = turns_for(bytes / SEGMENT_BYTES), began = pool_held(s);
	uint64_t pages, closed_at = UINT64_MAX; /* in the pool when all of it was closed last */

	while (pool_held(s) + bytes > began && turns--) {
		uint64_t left = pool_held(s) + bytes - began;

		if (press(s, (left + SEGMENT_BYTES - 1) / SEGMENT_BYTES))
			continue;
		pages = atomic_load(&s->pool.pages);
		if (pages >= closed_at)
			break; /* nothing has gone since: nor has what others needed */
		pool_close_all(&s->pool);
		closed_at = pages;
	}
	while (reap(s, WAIT_FOR_ONE))
		;
	give_back(s);
	after = pool_held(s) + spill_held_bytes(s);
	return before > after ? before - after : 0;
}

uint64_t spill_held_bytes(const struct swap *s)
{
	return atomic_load(&s->spill.is_warm) ? s->spill.memory_bytes : 0;
}

/* ---- create and destroy ---------------------------------------------------------------------------- */

static int map_memory(struct swap *s)
{
	struct spill *sp = &s->spill;
	const struct mm_host *host = s->disk.host;
	void *at = host->mmap(NULL, SPILL_BYTES, PROT_READ | PROT_WRITE,
			      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (at == MAP_FAILED)
		return -ENOMEM;
	sp->memory = at;
	sp->memory_bytes = SPILL_BYTES;
	/* as the pool: the guest's content, and counted in small pages */
	if (host->madvise(at, SPILL_BYTES, MADV_DONTFORK) < 0 ||
	    host->madvise(at, SPILL_BYTES, MADV_DONTDUMP) < 0 ||
	    (host->madvise(at, SPILL_BYTES, MADV_NOHUGEPAGE) < 0 && errno != EINVAL))
		return -errno;
	for (unsigned i = 0; i < BATCHES; i++) {
		sp->batches[i].raw = sp->memory + i * SEGMENT_BYTES;
		sp->batches[i].carried = (struct carried *)(void *)(sp->memory +
				BATCHES * SEGMENT_BYTES) + i * BATCH_OBJECTS;
	}
	return 0;
}

int spill_init(struct swap *s, struct err *e)
{
	int rc;

	s->spill.source = SEGMENT_NONE;
	rc = map_memory(s);
	if (rc)
		return err_sys(e, rc, "swap: no memory to write %s with", s->disk.path);
	rc = aio_create(&s->spill.aio, s->disk.host, BATCHES);
	return rc ? err_sys(e, rc, "swap: no io_uring to write %s with", s->disk.path) : 0;
}

/* What is on its way ends first: the kernel writes into this memory. */
void spill_fini(struct swap *s)
{
	struct spill *sp = &s->spill;

	while (sp->aio && aio_reap(sp->aio, true))
		;
	aio_destroy(&sp->aio);
	if (sp->memory && s->disk.host->munmap(sp->memory, sp->memory_bytes) < 0)
		log_error("swap: cannot unmap the batches: %s", strerror(errno));
	*sp = (struct spill){ .source = SEGMENT_NONE };
}

void spill_verify(const struct swap *s)
{
	const struct spill *sp = &s->spill;
	uint32_t leaving = 0, carried = 0, sources = sp->source != SEGMENT_NONE;

	for (uint32_t i = 0; i < s->pool.fresh; i++) {
		leaving += s->pool.segments[i].carried > 0;
		carried += s->pool.segments[i].carried;
	}
	for (unsigned i = 0; i < BATCHES; i++)
		for (unsigned k = 0; k < sp->batches[i].sources; k++)
			sources += !is_disk_source(sp->batches[i].source[k]);
	VERIFY(leaving == sp->leaving && carried == sources);
}
