/*
 * What the benchmarks of the memory engine share: page content, guest RAM that holds
 * it under an engine, and runs that give several figures at once.
 *
 * Content is read from the programs and libraries of this machine, since what pages
 * pack to decides every figure: runs of 1 to 32 pages of all files, shuffled by a fixed
 * seed.  Zero and other same-filled pages are those the files have.  Another machine
 * has other files: its figures compare with the peer's of the same run, not with these.
 *
 * Programs alone are no guest's memory.  BRIM_BENCH_PAGES=FILE takes the pages of a file
 * instead, one after the other: a guest's, in the order of their addresses.
 *
 * Threads: the caller's.  Errors end the program, as in benchlib.h.
 */
#ifndef BRIM_BENCH_CONTENT_H
#define BRIM_BENCH_CONTENT_H

#include "bench/benchlib.h"
#include "mm/internal.h"
#include "mm/swap/swap.h"

/* ---- pages -------------------------------------------------------------------- */

enum content_kind {
	CONTENT_PLAIN,  /* packs */
	CONTENT_FILLED, /* one 8-byte pattern throughout, nearly always zero */
	CONTENT_HARD,   /* does not pack into SWAP_PACKED_MAX: brim leaves it in RAM */
	CONTENT_KINDS
};

struct content {
	uint8_t *page; /* [pages * PAGE_BYTES] */
	uint8_t *kind; /* [pages], enum content_kind */
	uint64_t pages, of_kind[CONTENT_KINDS];
};

/* `usual`, or what BRIM_BENCH_PAGES has, in whole huge pages. */
uint64_t content_pages(const struct bench *b, uint64_t usual);
/* Reads `pages` pages, and prints of what kinds they are. */
void content_open(const struct bench *b, struct content *c, uint64_t pages);
/* Puts others of its pages in the place of those that do not pack. */
void content_only_packing(struct content *c);
/* Makes all of them same-filled: every other one zero, the rest of 200 patterns. */
void content_only_filled(struct content *c);
void content_close(struct content *c);
/* Is the page at `at` page i of the content? */
bool content_same(const struct content *c, uint64_t i, const void *at);

/* xorshift64: the same numbers in every run. */
uint64_t content_random(uint64_t *state);

/* ---- brim's side --------------------------------------------------------------- */

struct guest {
	const struct content *content;
	struct ram *ram;
	struct swap *swap;
	struct engine *engine;
	uint8_t *mem;
	uint32_t toucher; /* 0: faults are served wherever the scheduler likes */
	const uint32_t *toucher_cpu;
	struct thread_hold hold; /* of the toucher */
	bool on_disk;     /* what leaves goes on to a swap file in /var/tmp */
	enum swap_delta delta; /* set before guest_hold(), as the next */
	uint64_t cap_bytes; /* of the pool; with a disk what exceeds it goes there, no more */
	bool refined;     /* what has left is refined at once */
};

/* New RAM with the content in it, small pages, under an engine without reclaimer and
 * with one fault thread; what was there before is closed.  -errno and a sentence
 * where the engine cannot be had. */
int guest_hold(struct guest *g, const struct content *c, struct err *e);
/* The same with nothing in it yet; guest_close() also where it fails. */
int guest_open(struct guest *g, uint64_t bytes, struct err *e);
void guest_close(struct guest *g);
/* Rounds until no more goes: all but what does not pack; with a disk, that too. */
void guest_evict(struct guest *g);
uint64_t guest_away_pages(const struct guest *g);
enum page_state guest_state(struct guest *g, uint64_t i);
/* Is page i away, packed against another? */
bool guest_has_delta(struct guest *g, uint64_t i);
/* Is it away, refined, and no delta? */
bool guest_has_refined(struct guest *g, uint64_t i);

/* Prints a line and returns false where the engine cannot run on this machine. */
bool guest_is_possible(const struct bench *b);

/* ---- runs that give several figures ---------------------------------------------- */

#define TAKE_FIGURES 12

struct take_figure {
	const char *name, *unit;
};

struct takes {
	/* One run, whose figures go to `out` in the order of `figures`. */
	void (*brim)(void *arg, double *out);
	void (*peer)(void *arg, double *out); /* may be NULL */
	const char *peer_name;
	void *arg;
	struct take_figure figures[TAKE_FIGURES]; /* up to the first without a name */
};

/* bench_compare() for each of the figures, all from the same runs. */
void takes_compare(struct bench *b, const struct takes *t);

/* ---- brim and zram over the same pages --------------------------------------------- */

struct zram;

struct sides {
	const struct bench *bench;
	struct content content;
	struct guest guest;
	struct zram *zram; /* NULL: there is no peer to be had */
};

/* Content of 256 MiB, 64 with --quick, and swap space for as much. */
void sides_open(struct bench *b, struct sides *s);
void sides_close(struct sides *s);
/* Runs on both, with `arg` for the two functions; figures are the caller's to fill in. */
struct takes sides_takes(const struct sides *s, void (*brim)(void *, double *),
			 void (*zram)(void *, double *), void *arg);

#endif
