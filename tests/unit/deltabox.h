/* deltabox: a pool with deltas, and pages that look alike. */
#ifndef BRIM_TESTS_DELTABOX_H
#define BRIM_TESTS_DELTABOX_H

#define PAGES 8192u
#include "tests/unit/poolbox.h"

#define CAP (8 * MiB)
#define FAMILIES 96u

/* ---- pages that look alike ----------------------------------------------------- */

static inline void random_words(struct page *page, size_t from, size_t n, uint64_t *state)
{
	random_bytes(page->b + from, n, state);
}

/* The first of its family: `noise` bytes of its own, then little. */
static inline void first_of(struct page *page, uint64_t family, size_t noise)
{
	uint64_t state = family * 77 + 1;

	memset(page->b, (int)(family % 200 + 1), sizeof(page->b));
	random_words(page, 0, noise, &state);
}

/* One of its family: a few words of it changed. */
static inline void member_of(struct page *page, uint64_t family, uint64_t member)
{
	uint64_t state = member * 1000003 + family;

	first_of(page, family, 1600);
	for (uint64_t n = member % 12; n > 0; n--)
		random_words(page, mix(&state) % (PAGE_BYTES / 8) * 8, 8, &state);
}

/* What a seed stands for: mostly families, some pages of no family, some filled. */
static inline void any_page(struct page *page, uint64_t seed)
{
	uint64_t state = seed, kind = seed % 16;

	if (kind == 0)
		memset(page->b, (int)(seed % 3), sizeof(page->b));
	else if (kind == 1)
		random_words(page, 0, PAGE_BYTES, &state);
	else if (kind == 2)
		first_of(page, 1000 + seed, 2000);
	else
		member_of(page, mix(&state) % FAMILIES, mix(&state));
}

/* ---- a pool with deltas ---------------------------------------------------------- */

static inline int try_begin(uint64_t cap_bytes, enum swap_delta delta)
{
	return begin_with((struct swap_config){ .cap_bytes = cap_bytes, .delta = delta,
						.host = &host });
}

static inline void begin(enum swap_delta delta)
{
	cr_assert_eq(try_begin(CAP, delta), 0);
}

static inline void put_member(unsigned owner, uint64_t family, uint64_t member)
{
	member_of(&sh->page[owner], family, member);
	cr_assert_eq(put(owner), 0);
}

/* Nothing of anything is left, whoever dropped in what order. */
static inline void check_empty(void)
{
	const struct delta *d = sh->s->delta;

	check_pool_empty();
	cr_assert_eq(atomic_load(&d->base_rows) + atomic_load(&d->base_bytes), 0);
	cr_assert_eq(atomic_load(&d->orphan_pages), 0);
}

/* Pages of a family amid others that are then dropped, so that cleaning moves all. */
static inline void put_sparse(void)
{
	for (unsigned i = 0; i < 2000; i++) {
		if (i % 10)
			first_of(&sh->page[i], 5000 + i, 1500);
		else
			member_of(&sh->page[i], i / 10 % 20, i);
		cr_assert_eq(put(i), 0);
	}
	for (unsigned i = 0; i < 2000; i++)
		if (i % 10)
			drop(i);
}

#endif
