/*
 * mm/swap/'s own: the parts swap.c is made of, open to its tests.
 *
 * A ref, 48 bits:   same-filled:  00 | row of the pattern table + 1
 *                   packed:       10 | segment, 29 bits | 8-byte unit in it, 17 bits
 *                   on disk:      01 | size, 6 bits | segment, 23 bits | unit, 17 bits
 *
 * Row 0 is the page of zeroes, so no ref is ever 0.  The size of an object on disk is
 * in steps of 64 bytes, rounded up: enough to read no block too many, and all there is
 * to know of an object that is dropped without having been read.
 */
#ifndef BRIM_MM_SWAP_INTERNAL_H
#define BRIM_MM_SWAP_INTERNAL_H

#include "mm/aio.h"
#include "mm/swap/swap.h"

/* ---- fill.c ------------------------------------------------------------------ */

/* A guest has a handful of such patterns besides zero (poison, erased flash, a
 * cleared frame buffer); what finds no row packs to some 40 bytes, so a larger
 * table would save nothing. */
#define FILL_ROWS 256u

struct fill_row {
	uint64_t value; /* owned by the put thread; fixed while refs > 0, as the next */
	uint64_t check; /* over value and row; 0 of row 0 */
	_Atomic uint64_t refs;
};

struct fill {
	struct fill_row rows[FILL_ROWS]; /* row 0: always value 0 */
};

/* True where the page is `*value` throughout. */
bool fill_matches(const void *page, uint64_t *value);
/* Takes a reference to the value's row.  False: the table is full.  Put thread. */
bool fill_take(struct fill *f, uint64_t value, swap_ref_t *ref);
/* False where the ref is no row in use, or a damaged one.  Any thread, as the two below. */
bool fill_value(const struct fill *f, swap_ref_t ref, uint64_t *value);
void fill_drop(struct fill *f, swap_ref_t ref);
uint64_t fill_pages(const struct fill *f);
void fill_verify(const struct fill *f);

/* ---- objects, in the pool and on disk ------------------------------------------ */

#define SEGMENT_BYTES MiB
#define UNIT_BYTES ((uint64_t)8) /* half of this is lost at the end of an object */
#define SEGMENT_UNITS ((uint32_t)(SEGMENT_BYTES / UNIT_BYTES))
#define SEGMENT_NONE UINT32_MAX

#define REF_PACKED ((uint64_t)1 << (SWAP_REF_BITS - 1))
#define REF_DISK ((uint64_t)1 << (SWAP_REF_BITS - 2))
#define REF_KIND_MASK (REF_PACKED | REF_DISK)
#define REF_UNIT_BITS 17

static inline bool ref_is_packed(swap_ref_t ref)
{
	return (ref.v & REF_KIND_MASK) == REF_PACKED;
}

static inline bool ref_is_disk(swap_ref_t ref)
{
	return (ref.v & REF_KIND_MASK) == REF_DISK;
}

static inline uint32_t ref_unit(swap_ref_t ref)
{
	return (uint32_t)ref.v & (SEGMENT_UNITS - 1);
}

/* What lies in a segment, on a multiple of UNIT_BYTES. */
struct object {
	_Atomic uint64_t tag; /* owner, bytes, a check of these two, and what it is */
	uint64_t sum;         /* swap.c's, over owner, bytes and data */
	uint8_t data[];
};

enum object_state {
	OBJECT_LIVE = 0xa5,
	OBJECT_DEAD = 0x5a,
	OBJECT_BASE = 0x33,   /* live, and deltas may be packed against it */
	OBJECT_ORPHAN = 0xcc, /* its owner dropped it, but deltas need it */
};

/* An object as its readers and writers see it. */
struct packed {
	uint32_t owner, bytes; /* of a base or orphan: its row instead of its owner */
	uint64_t sum;
	const uint8_t *data;
	uint8_t state;         /* enum object_state; 0 when appended: live */
	bool is_delta;
	bool is_refined;       /* packed by refine.c */
};

#define OBJECT_BYTES_MAX ((uint32_t)PAGE_BYTES) /* a page that does not pack, whole */

static inline uint32_t units_of(uint32_t bytes)
{
	return (uint32_t)((sizeof(struct object) + bytes + UNIT_BYTES - 1) / UNIT_BYTES);
}

/* A tag: owner 32 | bytes 14 | refined 1 | delta 1 | check 8 | state 8, from the low end.
 * Two states differ in four bits or more, so damage does not make one into the other. */
#define TAG_DELTA 0x8000u /* in what is told of as `length` below */
#define TAG_REFINED 0x4000u
#define TAG_STATE_SHIFT 56
#define TAG_CHECK_SHIFT 48
#define TAG_BYTES_SHIFT 32
#define TAG_MIX 0x9e3779b97f4a7c15u /* 2^64 / the golden ratio */

static inline uint64_t tag_make(uint32_t owner, uint32_t length, uint64_t state)
{
	uint64_t t = owner | (uint64_t)length << TAG_BYTES_SHIFT;

	return t | t * TAG_MIX >> TAG_STATE_SHIFT << TAG_CHECK_SHIFT | state << TAG_STATE_SHIFT;
}

/* Bytes, with the flags for how they are packed. */
static inline uint32_t tag_length(uint64_t tag)
{
	return tag >> TAG_BYTES_SHIFT & 0xffff;
}

static inline uint32_t tag_bytes(uint64_t tag)
{
	return tag_length(tag) & (TAG_REFINED - 1);
}

static inline bool tag_is_delta(uint64_t tag)
{
	return (tag_length(tag) & TAG_DELTA) != 0;
}

static inline bool tag_is_refined(uint64_t tag)
{
	return (tag_length(tag) & TAG_REFINED) != 0;
}

static inline uint32_t packed_length(const struct packed *k)
{
	return k->bytes | (k->is_delta ? TAG_DELTA : 0) | (k->is_refined ? TAG_REFINED : 0);
}

static inline uint64_t tag_state(uint64_t tag)
{
	return tag >> TAG_STATE_SHIFT;
}

static inline bool state_is_any(uint64_t state)
{
	return state == OBJECT_LIVE || state == OBJECT_DEAD || state == OBJECT_BASE ||
	       state == OBJECT_ORPHAN;
}

/* As tag_make() made it, and inside a segment where it starts at `unit`. */
static inline bool tag_is_sound(uint64_t tag, uint32_t unit)
{
	uint32_t bytes = tag_bytes(tag);

	return bytes >= 1 && bytes <= OBJECT_BYTES_MAX && state_is_any(tag_state(tag)) &&
	       tag == tag_make((uint32_t)tag, tag_length(tag), tag_state(tag)) &&
	       unit + units_of(bytes) <= SEGMENT_UNITS;
}

/* ---- segments, in the pool and on disk ------------------------------------------ */

struct segment {
	_Atomic uint64_t live; /* units, objects and pins: see log.c */
	uint32_t used_units;   /* owned by the put thread: appended so far */
	uint32_t next;         /* owned by the list it is in */
	/* owned by the put thread, but heat */
	uint32_t stamp;        /* pool: the age of what is in it; disk: of which write */
	bool is_spoiled : 1;   /* cannot be walked; disk: or cannot be written */
	bool is_refined : 1;   /* pool: refine.c has been here */
	uint8_t carried;       /* pool: pins of batches on their way to disk */
	union {
		_Atomic uint16_t heat; /* disk: reads of late; any thread */
		uint16_t epoch;        /* pool: times its units were used anew */
	};
};

#define LIVE_OBJECT ((uint64_t)1 << 24) /* above the units, which need 18 bits */
#define LIVE_PIN ((uint64_t)1 << 48)
#define LIVE_UNITS_MASK (LIVE_OBJECT - 1)

/* Pushed to by any thread, popped by the put thread alone. */
void segments_push(struct segment *of, _Atomic uint32_t *list, uint32_t i);
uint32_t segments_pop(struct segment *of, _Atomic uint32_t *list);
/* False where somebody brought `live` to 0 first, and owns it. */
bool segment_pin(struct segment *s);

/* ---- log.c ------------------------------------------------------------------- */

/* One that takes objects, and one in reserve for the cleaner. */
#define POOL_SEGMENTS_MIN 2u
#define POOL_SEGMENTS_MIN_DISK 8u /* three open, one in reserve, and some on their way */

/* What is appended, kept apart where there is a disk, since a segment goes there
 * whole: all of it should be of one temperature. */
enum pool_stream {
	POOL_HOT,     /* just packed, or read from disk a lot */
	POOL_REFINED, /* what refine.c went through, without a disk too */
	POOL_COLD,    /* what the cleaner moved: nobody wanted it back */
	POOL_RAW,     /* pages that do not pack: the first to go */
	POOL_STREAMS
};

struct pool {
	/* fixed at create */
	const struct mm_host *host;
	uint8_t *base;
	uint64_t base_bytes;
	struct segment *segments;
	uint64_t segments_bytes;
	uint32_t segments_max;
	unsigned streams; /* so many of enum pool_stream; what is of another is POOL_HOT */
	uint32_t reserve; /* segments that puts leave: the cleaner's, and one to refine to */

	/* owned by the put thread */
	uint32_t open[POOL_STREAMS]; /* take what is appended; SEGMENT_NONE: none */
	uint32_t fresh;              /* this one and those above were never used */
	uint32_t now;                /* stamp of the segment opened last */

	/* any thread */
	_Atomic uint32_t held; /* segments that may have memory */
	_Atomic uint32_t warm; /* of these: empty, but madvise failed */
	_Atomic uint32_t warm_list, cold_list;
	_Atomic uint64_t pages, bytes; /* live objects, with their headers */
	_Atomic uint64_t refined;      /* of the pages */
};

struct delta;
struct refine;

struct pool_cleaning {
	unsigned slack_pct;
	uint64_t budget_bytes;
	swap_move_fn *move;
	void *move_ctx;
	struct delta *delta; /* NULL: there are no bases */
	struct refine *refine; /* NULL: objects are moved as they are */
};

/* How many segments fit in `bytes` with their share of the table. */
uint64_t pool_segments_in(uint64_t bytes);
int pool_init(struct pool *p, uint32_t segments_max, const struct mm_host *host, struct err *e);
void pool_fini(struct pool *p);
/* -ENOSPC.  Put thread. */
int pool_append(struct pool *p, const struct packed *src, enum pool_stream stream,
		swap_ref_t *ref);
/* Takes back what was just appended, which nobody knows of: not even a hole. */
void pool_unappend(struct pool *p, swap_ref_t ref);
/* So many of the largest objects can be appended, whatever the streams. */
uint64_t pool_fits(const struct pool *p);
/* Segments that could still be opened. */
uint32_t pool_room(const struct pool *p);
/* Nothing is open any more.  Returns the bytes given back. */
int64_t pool_close_all(struct pool *p);
/* -EIO where there is no sound live object.  Any thread. */
int pool_find(const struct pool *p, swap_ref_t ref, struct packed *out);
/* Drops it for its owner.  True where it stays, as an orphan of base row *row. */
bool pool_drop(struct pool *p, swap_ref_t ref, uint32_t *row);
/* Drops what has no owner (any more), whatever its state. */
void pool_retire(struct pool *p, swap_ref_t ref);
/* As swap_clean().  Put thread. */
int64_t pool_clean(struct pool *p, const struct pool_cleaning *c);
/* Refines the coldest closed segments that are no younger than max_stamp, until *left_bytes
 * of objects were looked at.  1: there may be more; 0: there is none; -ENOSPC.  Put
 * thread. */
int pool_refine(struct pool *p, const struct pool_cleaning *c, uint32_t max_stamp,
		uint64_t *left_bytes);
/* Is there a closed segment that was not refined, and no younger? */
bool pool_is_refinable(const struct pool *p, uint32_t max_stamp);
/* On the way to disk.  The closed segment whose content is coldest, or SEGMENT_NONE. */
uint32_t pool_coldest(const struct pool *p);
/* Pins a segment that is being carried: not reused, nor cleaned.  False: it is empty
 * by now. */
bool pool_carry(struct pool *p, uint32_t segment);
void pool_uncarry(struct pool *p, uint32_t segment);
/* The next live object from *unit on: 1, and *unit behind it; 0: no more; -EIO. */
int pool_next(struct pool *p, uint32_t segment, uint32_t *unit, swap_ref_t *ref,
	      struct packed *out);
/* Appends the object again, as something hot, and gives it to `move`: 0, or -ENOSPC
 * where only the cleaner's reserve is left. */
int pool_forward(struct pool *p, swap_ref_t ref, const struct pool_cleaning *c);
/* True where the segment the ref names is being carried. */
bool pool_is_leaving(const struct pool *p, swap_ref_t ref);
/* It is not to be the coldest any more. */
void pool_touch(struct pool *p, uint32_t segment);
void pool_verify(const struct pool *p);

/* For delta.c.  A pin keeps the segment's memory, not the object.  False: the
 * segment is empty, or the ref is none. */
bool pool_pin(struct pool *p, swap_ref_t ref);
void pool_unpin(struct pool *p, swap_ref_t ref);
/* As pool_find(), but in any state; its segment is pinned. */
int pool_peek(const struct pool *p, swap_ref_t ref, struct packed *out);
/* Makes the live plain object a base of row `row`.  False: it was dropped just now.
 * Put thread. */
bool pool_mark_base(struct pool *p, swap_ref_t ref, const struct packed *k, uint32_t row);
/* A hint that can be kept for long: the ref, or 0 where that place has been used
 * anew since.  Put thread. */
uint64_t pool_hint(const struct pool *p, swap_ref_t ref);
swap_ref_t pool_from_hint(const struct pool *p, uint64_t hint);
#define HINT_BITS 54
uint64_t pool_object_bytes(uint32_t bytes); /* with header, as counted */

/* ---- similar.c: which pages look alike -------------------------------------- */

#define FEATURES 8u

struct features {
	uint32_t n;
	uint64_t hash[FEATURES]; /* rising */
};

struct similar {
	const struct mm_host *host;
	uint64_t *entry; /* [bytes / 8] */
	uint64_t bytes;  /* a power of two */
	unsigned shared_min; /* features: who shares fewer is not found */
};

/* The page's few smallest hashes. */
void features_of(const void *page, struct features *out);
int similar_init(struct similar *m, uint64_t bytes, const struct mm_host *host);
void similar_fini(struct similar *m);
/* Notes a page's hint (HINT_BITS) under its features. */
void similar_add(struct similar *m, const struct features *f, uint64_t hint);
/* The hints that share most features with it, best first; how many. */
unsigned similar_find(const struct similar *m, const struct features *f, uint64_t *hints,
		      unsigned max);

/* ---- delta.c: pages packed against another ------------------------------------ */

#define ROW_NONE UINT32_MAX
/* Of the pool, for bases with their orphans.  With a disk less, since these stay when
 * pages have to go down. */
#define BASES_SHARE 2
#define BASES_SHARE_DISK 4

struct base_row {
	_Atomic uint64_t ref; /* changed by the put thread, which holds the row then */
	_Atomic uint32_t refs; /* its deltas, and one for its owner while it has one */
	uint32_t next;         /* owned by the list it is in */
	uint64_t sum;          /* fixed while in use, as the two below */
	uint32_t owner, bytes;
};

/* What a delta's data begins with; the LZ4 block follows. */
struct delta_head {
	uint32_t row;
	uint16_t saved_units; /* against what the page would have taken without */
	uint16_t check;
};

struct delta {
	/* fixed at create */
	struct pool *pool;
	struct refine *refine; /* NULL: none */
	const struct mm_host *host;
	struct base_row *rows;
	uint32_t rows_max;
	uint64_t bases_most_bytes; /* what bases may take of the pool */

	/* owned by the put thread */
	struct similar similar;
	struct features features; /* of the page being put */
	uint64_t neighbour;       /* hint of the last one put plain */
	void *lz4, *lz4hc;        /* one of them, as `delta` asks for */
	uint8_t base[PAGE_BYTES], out[SWAP_PACKED_MAX];

	/* any thread */
	_Atomic uint32_t fresh;     /* this row and those above were never used */
	_Atomic uint32_t free_list;
	_Atomic uint64_t pages, saved_bytes;
	_Atomic uint64_t base_rows, base_bytes; /* rows in use, and their objects */
	_Atomic uint64_t orphan_pages, orphan_bytes;
};

/* The most memory it may take beside the pool; 0: switched off, or the cap is too small
 * for it. */
uint64_t delta_most_bytes(const struct swap_config *cfg);
/* -ENOMEM.  *out stays NULL where delta_most_bytes() is 0. */
int delta_create(struct delta **out, const struct swap_config *cfg, struct pool *p, struct err *e);
void delta_destroy(struct delta **d);
uint64_t delta_table_bytes(const struct delta *d);

/* Packs the page against a similar one where that saves enough against `plain_bytes`
 * (0: it does not pack alone).  0 and *ref; -ENOENT: better not; -ENOSPC. */
int delta_put(struct delta *d, const struct packed *plain, const void *page, swap_ref_t *ref);
/* The page just put plain may be the next one's base. */
void delta_offer(struct delta *d, swap_ref_t ref);
/* k is a delta, found and owner's: 0, or -EIO.  Any thread. */
int delta_get(const struct delta *d, const struct packed *k, void *page);
/* The same, and the base's page; for who packs the page anew against it, behind the same
 * head: the new sum is delta_sum_of(). */
int delta_open(const struct delta *d, const struct packed *k, void *page, uint8_t *base);
uint64_t delta_sum_of(const struct delta *d, const struct packed *k);
/* Its owner drops the object at ref, delta or base or neither.  Any thread. */
void delta_drop(struct delta *d, swap_ref_t ref);
/* As delta_get(), for who does not have the object and only keeps its segment: its owner
 * may drop it meanwhile, which is -EIO too.  Put thread. */
int delta_peek(struct delta *d, const struct packed *k, void *page);

/* ---- base.c: what deltas are packed against --------------------------------- */

bool base_has_row(const struct packed *k);
/* A damaged tag passes its own check one time in 256: is there such a row? */
bool base_row_exists(const struct delta *d, uint32_t row);
/* One count more.  False: it is at 0, and being freed.  Put thread. */
bool base_row_hold(struct delta *d, uint32_t row);
/* One count less, that of a delta or of who holds it; the last retires the object,
 * which nobody owns any more.  Any thread. */
void base_row_put(struct delta *d, uint32_t row);
/* Its owner has dropped the object of the row, which is an orphan now.  Any thread. */
void base_orphaned(struct delta *d, uint32_t row);
/* The row of what the caller has pinned and read, made where there is none, with a
 * count for the caller; or ROW_NONE.  Put thread. */
uint32_t base_hold(struct delta *d, swap_ref_t ref, const struct packed *k);
/* The page of a plain object whose owner and sum are known; 0 or -EIO. */
int base_unpack(const struct packed *k, uint32_t owner, uint64_t sum, uint8_t *page);
/* The page deltas of `row` are packed against; 0 or -EIO.  Any thread that has a
 * share of it. */
int base_read(const struct delta *d, uint32_t row, uint8_t *page);

/* Puts the owner into a found object in place of its row.  -EIO: it is an orphan, or
 * damaged.  Any thread that has the object. */
int delta_found(const struct delta *d, struct packed *k);
/* Who the object belongs to; the put thread. */
uint32_t delta_owner(const struct delta *d, const struct packed *k);

/* For whoever moves objects; the put thread.  The object *k is about to be copied
 * somewhere else: holds its row.  False: it was dropped just now.  What nobody needs
 * as a base any more is made plain again in *k. */
bool delta_move_begin(struct delta *d, struct packed *k, uint32_t *row);
/* It is at `to` now (v 0: it is not, after all). */
void delta_move_end(struct delta *d, const struct packed *k, uint32_t row, swap_ref_t to);
/* May the object go where no delta finds it?  Then *k is plain, and its owner's.  Not
 * where deltas need it; nor a delta, which needs its base.  Put thread. */
bool delta_lets_go(const struct delta *d, struct packed *k);
/* Panics unless rows, objects and counts agree; when nobody else uses it. */
void delta_verify(const struct delta *d);

/* ---- refine.c ------------------------------------------------------------------ */

#define REFINE_SEGMENTS 2u /* more that a pool needs: an open one, one in reserve */

/* -ENOMEM.  *out stays NULL where it is switched off, or the cap is too small for it. */
int refine_create(struct refine **out, const struct swap_config *cfg, struct err *e);
void refine_destroy(struct refine **r);
bool refine_is_wanted(const struct swap_config *cfg);
uint64_t refine_table_bytes(const struct refine *r);
/* What a refined object unpacks from: its frame, and the page it was packed against. */
struct refined {
	const uint8_t *data;
	uint32_t bytes;
	const uint8_t *base; /* NULL: none */
};
/* 0 or -EIO, also where r is NULL.  Any thread. */
int refine_unpack(struct refine *r, const struct refined *from, void *page);
/* Packs the live object of *k anew where that makes it enough smaller: *k is the new
 * object then, whose data is good until the next call.  Else *k is what it was.  Put
 * thread. */
void refine_object(struct refine *r, const struct delta *d, struct packed *k);

/* ---- crypt.c ------------------------------------------------------------------ */

struct crypt;

/* A new key, which nobody ever sees.  -ENOMEM, or -EIO where the library refuses. */
int crypt_create(struct crypt **out, struct err *e);
void crypt_destroy(struct crypt **c);

/* Blocks of MM_BLOCK_BYTES, in place; `first` is the number of the first in its file. */
struct crypt_blocks {
	uint8_t *at;
	uint64_t first;
	uint32_t count;
};
/* 0 or -EIO.  Put thread. */
int crypt_seal(struct crypt *c, const struct crypt_blocks *b);
/* 0 or -EIO.  Any thread. */
int crypt_unseal(struct crypt *c, const struct crypt_blocks *b);

/* ---- file.c -------------------------------------------------------------------- */

struct swap_file {
	int fd;
	bool is_device;
	uint64_t bytes; /* all of it, its header included */
};

/* Opens, locks, checks, reserves and marks f->bytes of it; of a device all, where the
 * configuration has no size. */
int file_open(struct swap_file *f, const struct mm_host *host,
	      const struct swap_disk_config *cfg, struct err *e);
void file_close(struct swap_file *f, const struct mm_host *host);

/* ---- disk.c -------------------------------------------------------------------- */

#define REF_SIZE_SHIFT 40
#define REF_SIZE_STEP 64u
#define REF_DISK_SEGMENTS_MAX (1u << (REF_SIZE_SHIFT - REF_UNIT_BITS))
#define DISK_SEGMENTS_MIN 4u /* less is not worth its file */

struct disk {
	/* fixed at create */
	const struct mm_host *host;
	struct swap_file file;
	char *path;
	struct crypt *crypt; /* NULL: not encrypted */
	uint64_t salt;       /* of every sum, so that another boot's objects are damaged */
	struct segment *segments;
	uint64_t segments_bytes;
	uint32_t segments_max;

	/* owned by the put thread */
	uint32_t fresh; /* this one and those above were never used */
	uint32_t writes;
	unsigned errors_in_row;
	bool takes_discards;

	/* any thread */
	_Atomic bool refuses;    /* too many errors: takes no more */
	_Atomic uint32_t spare;  /* segments that can be taken */
	_Atomic uint32_t bad;    /* segments that cannot be written */
	_Atomic uint32_t freed_list, spare_list; /* before and after the discard */
	_Atomic uint64_t pages, bytes;
	_Atomic uint32_t epoch;  /* of heat */
	_Atomic uint32_t hot;    /* a segment worth lifting, or SEGMENT_NONE */
};

int disk_init(struct disk *d, const struct swap_config *cfg, struct err *e);
void disk_fini(struct disk *d);

/* Where an object lies, by its ref. */
swap_ref_t disk_ref(uint32_t segment, uint32_t unit, uint32_t bytes);
uint32_t disk_segment_of(swap_ref_t ref);
uint64_t disk_offset(uint32_t segment); /* in the file */
/* What is booked for it: its size rounded up. */
uint32_t disk_units(swap_ref_t ref);
bool disk_holds(const struct disk *d, swap_ref_t ref);
void disk_extent(const struct disk *d, swap_ref_t ref, struct mm_extent *out);
/* The object of `ref` in what was read: -EIO where there is no sound one. */
int disk_find(const struct disk *d, swap_ref_t ref, const struct mm_read *from,
	      struct packed *out);
/* The same for one at `unit` of a whole segment in memory. */
int disk_parse(const struct disk *d, uint32_t segment, uint32_t unit, const uint8_t *raw,
	       struct packed *out);
/* What is mixed into sums in this segment, as it was last written. */
uint64_t disk_seal(const struct disk *d, uint32_t segment);

/* A segment to write, pinned; leaves `reserve` others.  SEGMENT_NONE: none. */
uint32_t disk_take(struct disk *d, uint32_t reserve);
/* So many objects and units are in it from now on. */
void disk_add(struct disk *d, uint32_t segment, uint64_t objects, uint64_t units);
void disk_drop(struct disk *d, swap_ref_t ref);
void disk_pin(struct disk *d, swap_ref_t ref);
void disk_unpin(struct disk *d, uint32_t segment);
/* How a write ended: 0 or -errno. */
void disk_wrote(struct disk *d, uint32_t segment, int rc);
/* Of the segments with less live than so many units the emptiest; and what they lack.  An
 * object counts for its share of a batch at least. */
uint32_t disk_emptiest(const struct disk *d, uint64_t units, uint64_t *holes);
/* Tells the device of freed segments, a few at a time.  Put thread. */
void disk_discard(struct disk *d);
void disk_verify(const struct disk *d);

/* ---- spill.c ------------------------------------------------------------------- */

#define BATCHES 4u
#define BATCH_OBJECTS 4096u
#define BATCH_SOURCES 32u
#define SPILL_BYTES (BATCHES * (SEGMENT_BYTES + BATCH_OBJECTS * sizeof(struct carried)))

enum batch_state {
	BATCH_IDLE,
	BATCH_FILLING,
	BATCH_WRITING,
	BATCH_READING,
	BATCH_READ, /* its objects are being looked at */
};

struct carried {
	swap_ref_t from;
	uint32_t owner;
	uint32_t unit_and_size; /* of the ref it will have */
};

/* A segment in memory, on its way to disk or from it. */
struct batch {
	enum batch_state state;
	bool is_lift;       /* READING, READ: into the pool; else to another segment */
	bool is_spill;      /* FILLING, WRITING: some of it is from the pool */
	uint8_t *raw;       /* [SEGMENT_BYTES] */
	uint32_t segment;   /* of the disk, pinned */
	uint32_t unit;      /* FILLING: filled so far; READ: looked at so far */
	uint64_t booked;    /* units, as disk_units() has them */
	uint32_t count;
	struct carried *carried; /* [BATCH_OBJECTS] */
	unsigned sources;
	uint64_t source[BATCH_SOURCES]; /* pinned segments: the pool's, or SOURCE_DISK | */
	struct aio_op op;
};

struct spill {
	/* owned by the put thread; NULL and 0 without a disk */
	struct aio *aio;
	uint8_t *memory;
	uint64_t memory_bytes;
	struct batch batches[BATCHES];
	struct batch *filling;
	uint32_t source;      /* segment of the pool half gathered, or SEGMENT_NONE */
	uint32_t source_unit;
	uint32_t leaving;     /* segments of the pool gathered, and not yet written */
	uint64_t epoch_ns;    /* began then */
	uint64_t pressed_ns;  /* when something had to go down last */
	bool is_stuck;        /* something had to stay that left holes around it */
	_Atomic bool is_warm; /* the memory was touched since it was given back */
	uint8_t page[PAGE_BYTES]; /* of a delta that leaves */
};

int spill_init(struct swap *s, struct err *e);
void spill_fini(struct swap *s);
uint64_t spill_held_bytes(const struct swap *s);
void spill_verify(const struct swap *s);

/* ---- swap.c ------------------------------------------------------------------ */

struct swap {
	/* fixed at create */
	struct swap_config cfg;
	uint64_t table_bytes;

	struct fill fill;
	struct pool pool;
	struct delta *delta; /* fixed at create; NULL: switched off */
	struct refine *refine; /* the same */
	bool has_disk; /* fixed at create */
	struct disk disk;
	struct spill spill;

	/* owned by the put thread */
	bool was_full; /* the last put found no room */
	void *lz4_state;
	uint8_t out[SWAP_PACKED_MAX];
};

/* Over owner, size, data and how it is packed, and nothing of the place. */
uint64_t swap_checksum(const struct packed *k);
/* The page of an object packed alone, checked first: 0 or -EIO. */
int swap_open_alone(struct refine *r, const struct packed *k, void *page);
/* What was read from disk, and for whom. */
struct swap_read {
	struct mm_read from;
	uint64_t owner;
};
/* As the tier's. */
int swap_unpack(const struct swap *s, swap_ref_t ref, const struct swap_read *r, void *page);
int swap_arrived(struct swap *s, const struct mm_extent *of, void *raw);
/* The page by itself in *k, whose data is `page` where it does not pack, else the put
 * thread's buffer. */
void swap_pack_alone(struct swap *s, const void *page, struct packed *k);

#endif
