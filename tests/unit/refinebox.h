/* refinebox: a pool that refines what is in it, and pages that zstd packs better than LZ4. */
#ifndef BRIM_TESTS_REFINEBOX_H
#define BRIM_TESTS_REFINEBOX_H

#define PAGES 16384u
#include "tests/unit/poolbox.h"

#define CAP SWAP_REFINE_CAP_MIN_BYTES
#define ALL UINT64_MAX

/* ---- pages ----------------------------------------------------------------------- */

/* The text of its family, with some words of its own. */
static inline void relative(struct page *page, uint64_t family, uint64_t member)
{
	uint64_t state = member * 1000003 + family;

	text(page, 7000 + family, 2800);
	for (uint64_t n = member % 12 * 24; n > 0; n--)
		page->b[mix(&state) % 1200] = "etaoinsh"[mix(&state) % 8];
}

static inline void any_page(struct page *page, uint64_t seed)
{
	uint64_t state = seed, kind = seed % 16;

	if (kind == 0)
		memset(page->b, (int)(seed % 3), sizeof(page->b));
	else if (kind < 3)
		packable(page, seed, mix(&state) % PAGE_BYTES);
	else if (kind < 9)
		text(page, seed, 100 + mix(&state) % 3200);
	else
		relative(page, mix(&state) % 200, mix(&state));
}

/* ---- a pool that refines --------------------------------------------------------- */

static inline void begin(enum swap_delta delta)
{
	cr_assert_eq(begin_with((struct swap_config){ .cap_bytes = CAP, .delta = delta }), 0);
	cr_assert_not_null(sh->s->refine, "refining is the default");
}

static inline void put_text(unsigned owner, size_t n)
{
	text(&sh->page[owner], owner, n);
	cr_assert_eq(put(owner), 0);
}

/* Closes the segment that is open: only closed ones are refined. */
static inline void close_open(void)
{
	pool_close_all(&sh->s->pool);
}

static inline void refine_all(void)
{
	close_open();
	while (swap_refine(sh->s, ALL))
		;
	(void)stats();
}

static inline void drop_all_and_check_empty(void)
{
	drop_all();
	check_pool_empty();
}

#endif
