/* deltabox: a pool with deltas and a shadow of what is in it, and pages that look alike. */
#ifndef BRIM_TESTS_DELTABOX_H
#define BRIM_TESTS_DELTABOX_H

#include "tests/unit/crowd.h"

#define PAGES 8192u
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

/* ---- a pool with a shadow -------------------------------------------------------- */

static const struct mm_host host = {
	.mmap = host_mmap, .munmap = host_munmap, .madvise = host_madvise,
};

struct shadow {
	struct swap *s;
	swap_ref_t ref[PAGES]; /* 0: not in it */
	struct page *page;     /* [PAGES] what was put */
	unsigned refuse_one_in;
	bool refuse_then_drop; /* the owner says no first, and drops later */
	uint64_t random;
	unsigned moves, refused;
};

static struct shadow *sh;

static inline struct swap_stats stats(void)
{
	struct swap_stats st;

	swap_stats(sh->s, &st);
	cr_assert_eq(st.packed_bytes + st.hole_bytes + st.table_bytes, st.held_bytes);
	cr_assert(!sh->s->cfg.cap_bytes || st.held_bytes <= sh->s->cfg.cap_bytes);
	return st;
}

static inline bool moved(void *ctx, uint64_t owner, swap_ref_t from, swap_ref_t to)
{
	struct shadow *w = ctx;

	cr_assert_lt(owner, PAGES);
	cr_assert_eq(w->ref[owner].v, from.v);
	if (w->refuse_one_in && mix(&w->random) % w->refuse_one_in == 0) {
		w->refused++;
		if (w->refuse_then_drop)
			return false;
		swap_drop(w->s, from);
		w->ref[owner].v = 0;
		return false;
	}
	w->ref[owner] = to;
	w->moves++;
	return true;
}

static inline int try_begin(uint64_t cap_bytes, enum swap_delta delta)
{
	struct swap_config cfg = { .max_pages = PAGES, .cap_bytes = cap_bytes, .delta = delta,
				   .host = &host, .move = moved };
	struct err e = { "" };
	int rc;

	sh = calloc(1, sizeof(*sh));
	cr_assert_not_null(sh);
	sh->page = calloc(PAGES, sizeof(*sh->page));
	cr_assert_not_null(sh->page);
	cfg.move_ctx = sh;
	rc = swap_create(&sh->s, &cfg, &e);
	cr_assert_eq(rc == 0, e.msg[0] == '\0', "%s", e.msg);
	cr_assert_eq(rc == 0, sh->s != NULL);
	return rc;
}

static inline void begin(enum swap_delta delta)
{
	cr_assert_eq(try_begin(CAP, delta), 0);
}

static inline void end_unverified(void)
{
	swap_destroy(&sh->s);
	free(sh->page);
	free(sh);
	sh = NULL;
}

static inline void end(void)
{
	swap_verify(sh->s);
	end_unverified();
}

/* Puts what is at sh->page[owner]. */
static inline int put(unsigned owner)
{
	swap_ref_t ref = { 0 };
	int rc = swap_put(sh->s, owner, &sh->page[owner], &ref);

	cr_assert_eq(rc == 0, ref.v != 0);
	sh->ref[owner] = ref;
	(void)stats();
	return rc;
}

static inline void put_member(unsigned owner, uint64_t family, uint64_t member)
{
	member_of(&sh->page[owner], family, member);
	cr_assert_eq(put(owner), 0);
}

static inline void check(unsigned owner)
{
	struct page got;

	memset(&got, 0xee, sizeof(got));
	cr_assert_eq(swap_get(sh->s, sh->ref[owner], owner, &got), 0, "page %u", owner);
	cr_assert(same(&sh->page[owner], &got), "page %u", owner);
}

static inline void check_all(void)
{
	struct swap_stats st = stats();
	uint64_t pages = 0;

	for (unsigned i = 0; i < PAGES; i++) {
		if (!sh->ref[i].v)
			continue;
		check(i);
		pages++;
	}
	cr_assert_eq(pages, st.filled_pages + st.packed_pages);
	swap_verify(sh->s);
}

static inline void drop(unsigned owner)
{
	swap_drop(sh->s, sh->ref[owner]);
	sh->ref[owner].v = 0;
}

static inline void drop_all(void)
{
	for (unsigned i = 0; i < PAGES; i++)
		if (sh->ref[i].v)
			drop(i);
	while (swap_clean(sh->s, 0, UINT64_MAX) > 0)
		;
}

/* Nothing of anything is left, whoever dropped in what order. */
static inline void check_empty(void)
{
	struct swap_stats st = stats();
	const struct delta *d = sh->s->delta;

	swap_verify(sh->s);
	cr_assert_eq(st.packed_pages + st.packed_bytes + st.filled_pages, 0);
	cr_assert_eq(st.delta_pages + st.delta_saved_bytes + st.orphan_bytes, 0);
	cr_assert_eq(atomic_load(&d->base_rows) + atomic_load(&d->base_bytes), 0);
	cr_assert_eq(atomic_load(&d->orphan_pages), 0);
}

static inline struct packed object_of(unsigned owner)
{
	struct packed k;

	cr_assert_eq(pool_find(&sh->s->pool, sh->ref[owner], &k), 0);
	return k;
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
