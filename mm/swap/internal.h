/*
 * mm/swap/'s own: the two parts swap.c is made of, open to its tests.
 *
 * A ref, 48 bits:   same-filled:  0 | row of the pattern table + 1
 *                   packed:       1 | segment, 30 bits | 8-byte unit in it, 17 bits
 *
 * Row 0 is the page of zeroes, so no ref is ever 0.
 */
#ifndef BRIM_MM_SWAP_INTERNAL_H
#define BRIM_MM_SWAP_INTERNAL_H

#include "mm/swap/swap.h"

/* ---- fill.c ------------------------------------------------------------------ */

/* A guest has a handful of such patterns besides zero (poison, erased flash, a
 * cleared frame buffer); what finds no row packs to some 40 bytes, so a larger
 * table would save nothing. */
#define FILL_ROWS 256u

struct fill_row {
	uint64_t value; /* owned by the put thread; fixed while refs > 0 */
	_Atomic uint64_t refs;
};

struct fill {
	struct fill_row rows[FILL_ROWS]; /* row 0: always value 0 */
};

/* True where the page is `*value` throughout. */
bool fill_matches(const void *page, uint64_t *value);
/* Takes a reference to the value's row.  False: the table is full.  Put thread. */
bool fill_take(struct fill *f, uint64_t value, swap_ref_t *ref);
/* False where the ref is no row in use.  Any thread, as the two below. */
bool fill_value(const struct fill *f, swap_ref_t ref, uint64_t *value);
void fill_drop(struct fill *f, swap_ref_t ref);
uint64_t fill_pages(const struct fill *f);
void fill_verify(const struct fill *f);

/* ---- log.c ------------------------------------------------------------------- */

#define SEGMENT_BYTES MiB
#define UNIT_BYTES ((uint64_t)8) /* half of this is lost at the end of an object */
#define SEGMENT_UNITS ((uint32_t)(SEGMENT_BYTES / UNIT_BYTES))
/* One that takes objects, and one in reserve for the cleaner. */
#define POOL_SEGMENTS_MIN 2u
#define SEGMENT_NONE UINT32_MAX

#define REF_PACKED ((uint64_t)1 << (SWAP_REF_BITS - 1))
#define REF_UNIT_BITS 17

/* What lies in a segment, on a multiple of UNIT_BYTES. */
struct object {
	_Atomic uint64_t tag; /* owner, bytes, a check of these two, live or dead */
	uint64_t sum;         /* swap.c's, over owner, bytes and data */
	uint8_t data[];
};

/* An object as its readers and writers see it. */
struct packed {
	uint32_t owner, bytes;
	uint64_t sum;
	const uint8_t *data;
};

struct segment {
	_Atomic uint64_t live; /* units, objects and pins: see log.c */
	uint32_t used_units;   /* owned by the put thread: appended so far */
	uint32_t next;         /* owned by the list it is in */
	bool is_spoiled;       /* owned by the put thread: cannot be walked */
};

struct pool {
	/* fixed at create */
	const struct mm_host *host;
	uint8_t *base;
	uint64_t base_bytes;
	struct segment *segments;
	uint64_t segments_bytes;
	uint32_t segments_max;

	/* owned by the put thread */
	uint32_t open;  /* takes what is appended; SEGMENT_NONE: none */
	uint32_t fresh; /* this one and those above were never used */

	/* any thread */
	_Atomic uint32_t held; /* segments that may have memory */
	_Atomic uint32_t warm; /* of these: empty, but madvise failed */
	_Atomic uint32_t warm_list, cold_list;
	_Atomic uint64_t pages, bytes; /* live objects, with their headers */
};

struct pool_cleaning {
	unsigned slack_pct;
	uint64_t budget_bytes;
	swap_move_fn *move;
	void *move_ctx;
};

/* How many segments fit in `bytes` with their share of the table. */
uint64_t pool_segments_in(uint64_t bytes);
int pool_init(struct pool *p, uint32_t segments_max, const struct mm_host *host, struct err *e);
void pool_fini(struct pool *p);
/* -ENOSPC.  Put thread. */
int pool_append(struct pool *p, const struct packed *src, swap_ref_t *ref);
/* -EIO where there is no sound live object.  Any thread. */
int pool_find(const struct pool *p, swap_ref_t ref, struct packed *out);
void pool_drop(struct pool *p, swap_ref_t ref);
/* As swap_clean().  Put thread. */
int64_t pool_clean(struct pool *p, const struct pool_cleaning *c);
void pool_verify(const struct pool *p);

/* ---- swap.c ------------------------------------------------------------------ */

struct swap {
	/* fixed at create */
	struct swap_config cfg;
	uint64_t table_bytes;

	struct fill fill;
	struct pool pool;

	/* owned by the put thread */
	bool was_full; /* the last put found no room */
	void *lz4_state;
	uint8_t out[SWAP_PACKED_MAX];
};

#endif
