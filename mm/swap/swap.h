/*
 * mm/swap/: pages that left guest RAM, kept small, and on disk.
 *
 *   fill.c   pages that are one 8-byte pattern throughout: a row in a table
 *   log.c    the pool: segments of 1 MiB, appended to, cleaned, given back
 *   delta.c  pages packed against a similar one; similar.c finds those, base.c
 *            keeps them for as long as they are needed
 *   refine.c what stayed long packed again, smaller
 *   swap.c   all of them together: compress, checksum, put, get, drop
 *   file.c   the swap file: whose it is, its space
 *   disk.c   its segments: which are free, what is live, where an object is
 *   crypt.c  its encryption
 *   spill.c  between pool and file: batches down, cleaning, up
 *   tier.c   all of it as the tier of a memory engine
 *
 * A page's way:
 *
 *   frozen page --swap_put()--> same-filled? --yes--> a row of the pattern table
 *                                    |no
 *                                    `--LZ4--> similar to a packed page, and smaller so?
 *                                        yes: a delta | no: plain | to the open segment
 *   coldest segments --swap_refine(): zstd--> the segment for what is refined
 *   coldest segments --swap_spill(), swap_room(), swap_tidy()--> the swap file
 *   ref --swap_get()--> checksum --> the page's bytes      ref --swap_drop()--> gone
 *
 * The pool is a log and not size classes: an object takes the bytes it needs and a
 * small header, pages that left together lie together (and come back together),
 * and a segment is already what a disk wants to be given.  What is dropped leaves
 * holes; swap_clean() moves what is left of the emptiest segments to the end and
 * gives those segments' memory back.
 *
 * A page that does not pack is refused, or, with a disk, put whole: it goes there first.
 *
 * Threads: swap_put(), swap_clean() and what waits for the disk from one thread at a
 * time (the reclaimer).
 * swap_refine() as swap_put().  swap_get() and swap_drop() from any threads, at the same time as each other and
 * as those two.  A ref must be live for as long as a call uses it: whoever owns
 * the page serialises get, drop and `move` of one ref (in the engine: the lock of
 * the page's chunk).
 *
 * Invariants:
 *  I1  swap_get() returns the bytes that were put, or an error.  Never others.
 *  I2  A live object is in exactly one place, and its segment is not given back.
 *  I3  held_bytes counts all memory the pool has from the host: objects, headers,
 *      holes, tables, batches on their way to disk.  It never exceeds the cap.
 *  I4  A page is on disk from the moment its owner was moved there, which is after its
 *      write has ended; until then it is in the pool.
 */
#ifndef BRIM_MM_SWAP_H
#define BRIM_MM_SWAP_H

#include "mm/mm.h"

struct swap;

/* Where a page is. Never 0; fits in 48 bits. */
typedef struct { uint64_t v; } swap_ref_t;
#define SWAP_REF_BITS 48

/* swap_clean(), or one of those that move pages to disk and back, has copied the page
 * `owner` from `from` to `to`: take note, and say true: `from` is then swap's to drop.
 * (Where `to` is `from` it is only asked whether the owner has it there still.)  Or false where the owner no longer has
 * `from`: the copy is forgotten, and `from` stays the owner's to drop, if it has not
 * done so already.  May lock; the one call back into swap it may make is
 * swap_drop(from), before it says false. */
typedef bool swap_move_fn(void *ctx, uint64_t owner, swap_ref_t from, swap_ref_t to);

/* Pages packed against a similar page: see delta.c for what each gains and costs.  They
 * are for the pool: what goes to disk is packed by itself again. */
enum swap_delta {
	/* SWAP_DELTA_FAST: a tenth less memory for 1.7 times the CPU time a page that
	 * leaves takes, which the reclaimer spends, beside the guest.  With SMALL it is
	 * five to six times: a guest that fills its RAM would outrun it. */
	SWAP_DELTA_DEFAULT,
	SWAP_DELTA_OFF,
	SWAP_DELTA_FAST,    /* LZ4's fast encoder */
	SWAP_DELTA_SMALL,   /* LZ4's high compression encoder: smaller, and slower */
};

/* Packing anew, with zstd, what has been packed for some time: see refine.c. */
enum swap_refine {
	SWAP_REFINE_DEFAULT, /* SWAP_REFINE_ON */
	SWAP_REFINE_OFF,
	SWAP_REFINE_ON,
};

#define SWAP_REFINE_CAP_MIN_BYTES (16 * MiB)

#define SWAP_CAP_MIN_BYTES (2 * MiB + 64 * KiB) /* two segments and their tables */

#define SWAP_DELTA_CAP_MIN_BYTES (8 * MiB)
#define SWAP_DELTA_CAP_MIN_DISK_BYTES (16 * MiB)
#define SWAP_ACCELERATION_MAX 64

/* Where what is coldest goes: a file, or a block device. */
struct swap_disk_config {
	const char *path;
	uint64_t size_bytes; /* 0: 9/8 of all pages; of a device: all of it */
	bool encrypt;        /* with a key of this boot */
	bool force;          /* overwrites what is not brim's */
};

struct swap_config {
	uint64_t max_pages;  /* pages that can be in it at once: the VM's RAM */
	/* The most memory the pool may hold, its tables and a segment in reserve for
	 * the cleaner included.  0: none but what max_pages unpacked would take. */
	uint64_t cap_bytes;
	/* LZ4's, for pages packed alone: 1 (smallest) to SWAP_ACCELERATION_MAX; 0: the default, 1 */
	int acceleration;
	/* Off where the cap is below SWAP_DELTA_CAP_MIN_BYTES, or with a disk _DISK_BYTES. */
	enum swap_delta delta;
	enum swap_refine refine; /* off where the cap is below SWAP_REFINE_CAP_MIN_BYTES */
	uint64_t refine_age_ns; /* packed for so long before; 0: the default, 10 s */
	const struct mm_host *host; /* NULL: mm_host_linux */
	swap_move_fn *move; /* needed by swap_clean() */
	void *move_ctx;
	const struct swap_disk_config *disk; /* NULL: none; not kept */
};

/* Errors: -EINVAL a setting out of range, -ENOMEM.  With a disk: -ENOSPC where its file
 * system has no room for it, -EBUSY where another VM has it, -EEXIST where it is not
 * ours, and what the system calls say. */
int swap_create(struct swap **out, const struct swap_config *cfg, struct err *e);
/* Whatever is still in it is lost. */
void swap_destroy(struct swap **s);

/* Takes the 4 KiB at `page`, which nobody changes meanwhile, for page number
 * `owner` (below max_pages).  0 and *ref; -E2BIG: does not get smaller than
 * SWAP_PACKED_MAX, and no disk takes it whole, so keep it where it is; -ENOSPC: no room under the cap, even
 * after what can be reused was reused: swap_clean(), which put does not call since
 * that may need the caller's locks, makes room where there are holes.  6 us; with
 * deltas 10, or 41 (SMALL). */
int swap_put(struct swap *s, uint64_t owner, const void *page, swap_ref_t *ref);
/* Bytes; more is not worth its fault.  Of pages of programs and libraries 29 % pack to more
 * than 3 KiB, and 3 % to more than this: 0.61 bytes kept of each instead of 0.67. */
#define SWAP_PACKED_MAX 3584u

/* Writes the page's PAGE_BYTES to `page`.  -EIO, and a count of swap_bad_checksum
 * or swap_bad_object, where the object is damaged or not owner's: `page` is then
 * undefined, and the VM cannot go on.  Does not drop the ref.  2 us, twice that for a
 * delta, and takes no lock; 6 us for what was refined, which may wait for one of a few
 * decoders, for as long; from disk it waits for the disk (the engine reads by itself:
 * struct mm_tier). */
int swap_get(struct swap *s, swap_ref_t ref, uint64_t owner, void *page);

/* Takes no lock.  The drop of the last object in a segment gives the segment's
 * memory back: one madvise in some 500 drops. */
void swap_drop(struct swap *s, swap_ref_t ref);

/* True where the ref is a same-filled page; *value is then its 8 bytes. */
bool swap_is_filled(const struct swap *s, swap_ref_t ref, uint64_t *value);

/* Moves live objects out of the emptiest segments while more than `slack_pct` per
 * cent of the pool is holes, at most `budget_bytes` of objects (less than an object,
 * some 4 KiB, moves nothing).  Also gives back what madvise refused before.  Returns
 * the bytes of memory given back to the host; 0 where the budget ended before a
 * segment was empty, or there is nothing to do; or -errno: of madvise, or -EIO where
 * a damaged object was met, whose segment is left alone from then on (call again for
 * the others).  A full pool with holes can always be cleaned; -ENOSPC only where what
 * is damaged, or refused by `move` and not yet dropped, stands in the way. */
int64_t swap_clean(struct swap *s, unsigned slack_pct, uint64_t budget_bytes);

/* Packs the coldest objects anew, however young they are, until budget_bytes of them were
 * looked at.  Needs `move`, as the cleaner does; put thread.  True where there are more,
 * and room for them. */
bool swap_refine(struct swap *s, uint64_t budget_bytes);
/* The same for what is old enough, and within a share of this thread's time. */
bool swap_refine_some(struct swap *s);

struct swap_stats {
	uint64_t filled_pages, packed_pages;
	uint64_t packed_bytes;  /* live objects with their headers */
	uint64_t hole_bytes;    /* in segments, but dropped or never used */
	uint64_t table_bytes;   /* segment and pattern tables, and those for deltas */
	uint64_t batch_bytes;   /* on their way to disk or from it; 0 at rest */
	uint64_t held_bytes;    /* all of these: what it costs the host's memory */
	uint64_t disk_pages;
	uint64_t disk_bytes;      /* live objects, each rounded up to 64 bytes */
	uint64_t disk_used_bytes; /* segments that are in use, or bad */
	uint64_t disk_size_bytes; /* all segments */
	uint64_t refined_pages; /* of packed_pages: packed anew, in the pool still */
	uint64_t delta_pages;   /* of packed_pages: packed against another page */
	uint64_t delta_saved_bytes; /* what these would take more, each for itself */
	uint64_t orphan_bytes;  /* of packed_bytes: dropped pages that deltas still need */
};
void swap_stats(const struct swap *s, struct swap_stats *out);
/* held_bytes alone: faults of a VM near its limit ask for it. */
uint64_t swap_held_bytes(const struct swap *s);

/* Only with a disk, and from the thread that puts; they wait for it where they must.
 * swap_room(): so many pages that fit now, at most `pages`.  swap_spill(): moves the
 * coldest to disk; the bytes by which held_bytes fell.  swap_tidy(): a bounded step of
 * what is done in the background, and does not wait. */
uint64_t swap_room(struct swap *s, uint64_t pages);
uint64_t swap_spill(struct swap *s, uint64_t bytes);
void swap_tidy(struct swap *s);

/* The pool as an engine's tier; the context is the struct swap.  swap_attach() before
 * the engine takes its first page: the cleaner then tells it what moved. */
extern const struct mm_tier swap_tier;
extern const struct mm_tier swap_tier_disk; /* for a swap with a disk */
void swap_attach(struct swap *s, struct engine *e);

/* Checks every count against what the segments hold; for tests, when nobody else
 * uses `s`.  Panics on a difference. */
void swap_verify(struct swap *s);

#endif
