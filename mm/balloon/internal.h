/*
 * mm/balloon/'s own: the two parts balloon.c is made of, open to its tests.
 */
#ifndef BRIM_MM_BALLOON_INTERNAL_H
#define BRIM_MM_BALLOON_INTERNAL_H

#include "mm/balloon/balloon.h"

/* ---- ranges.c ---------------------------------------------------------------- */

/* Pages by their dense index in RAM (ram_index_of), which fits: RAM_MAX_BYTES is
 * 2^28 pages. */
struct page_range {
	uint32_t first, pages;
};

struct ranges {
	/* fixed at init */
	uint32_t wall; /* index of the second slot's first page; 0: one slot */

	unsigned n;
	uint64_t pages;
	struct page_range r[BALLOON_PENDING_MAX];
	struct page_range spare[BALLOON_PENDING_MAX]; /* for sorting */
};

void ranges_init(struct ranges *s, uint32_t wall);
/* Not across the wall; n < BALLOON_PENDING_MAX.  Joins the range added last when
 * it continues it, upwards or downwards. */
void ranges_add(struct ranges *s, uint32_t first, uint32_t pages);
/* Sorts and merges: rising, disjoint, not touching except at the wall. */
void ranges_settle(struct ranges *s);
void ranges_clear(struct ranges *s);

/* ---- book.c ------------------------------------------------------------------ */

struct book {
	const struct mm_host *host;
	uint64_t *bits;
	size_t bytes;
	uint64_t pages_max;
	uint64_t pages; /* how many are set */
};

int book_init(struct book *k, uint64_t pages_max, const struct mm_host *host, struct err *e);
void book_fini(struct book *k);
/* Return false when there was nothing to change. */
bool book_add(struct book *k, uint64_t index);
bool book_remove(struct book *k, uint64_t index);
bool book_has(const struct book *k, uint64_t index);
void book_clear(struct book *k);

#endif
