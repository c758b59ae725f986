/* poolbox: a pool in RAM and a shadow of what is in it, for the tests of what packs pages in
 * mm/swap/.  Who includes it has said how many PAGES there are. */
#ifndef BRIM_TESTS_POOLBOX_H
#define BRIM_TESTS_POOLBOX_H

#include "tests/unit/crowd.h"

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

/* cfg's owners are filled in. */
static inline int begin_with(struct swap_config cfg)
{
	struct err e = { "" };
	int rc;

	sh = calloc(1, sizeof(*sh));
	cr_assert_not_null(sh);
	sh->page = calloc(PAGES, sizeof(*sh->page));
	cr_assert_not_null(sh->page);
	cfg.max_pages = PAGES;
	cfg.move = moved;
	cfg.move_ctx = sh;
	rc = swap_create(&sh->s, &cfg, &e);
	cr_assert_eq(rc == 0, e.msg[0] == '\0', "%s", e.msg);
	cr_assert_eq(rc == 0, sh->s != NULL);
	return rc;
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
	cr_assert_eq(pages, st.filled_pages + st.packed_pages + st.disk_pages);
	swap_verify(sh->s);
}

static inline void drop(unsigned owner)
{
	swap_drop(sh->s, sh->ref[owner]);
	sh->ref[owner].v = 0;
}

/* What is there is read, and dropped if it `drops`; else what the seed stands for is put. */
static inline void visit(unsigned owner, bool drops, void (*make)(struct page *, uint64_t seed),
			 uint64_t seed)
{
	int rc;

	if (!sh->ref[owner].v) {
		make(&sh->page[owner], seed);
		rc = put(owner);
		cr_assert(!rc || rc == -E2BIG || rc == -ENOSPC);
		return;
	}
	check(owner);
	if (drops)
		drop(owner);
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
static inline void check_pool_empty(void)
{
	struct swap_stats st = stats();

	swap_verify(sh->s);
	cr_assert_eq(st.packed_pages + st.packed_bytes + st.filled_pages + st.refined_pages, 0);
	cr_assert_eq(st.delta_pages + st.delta_saved_bytes + st.orphan_bytes, 0);
}

static inline struct packed object_of(unsigned owner)
{
	struct packed k;

	cr_assert_eq(pool_find(&sh->s->pool, sh->ref[owner], &k), 0);
	return k;
}

#endif
