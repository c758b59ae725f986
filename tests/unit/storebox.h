/* storebox: a store of shared pages under a box's engine, and its users' counts: what brimd
 * and the client are elsewhere.  Who includes it has said how many STORE_PAGES there are. */
#ifndef BRIM_TESTS_STOREBOX_H
#define BRIM_TESTS_STOREBOX_H

#include <sys/wait.h>
#include <unistd.h>

#include "tests/unit/membox.h"

static struct {
	uint8_t *base;
	int fd, read_only; /* where it is a file */
	_Atomic int64_t uses[STORE_PAGES];
} store;

static inline void store_drop(void *ctx, uint32_t store_page)
{
	cr_assert_geq(--store.uses[store_page], 0, "store page %u dropped too often", store_page);
}

static inline uint8_t *store_at(uint32_t store_page)
{
	return store.base + ((uint64_t)store_page << PAGE_SHIFT);
}

static inline int64_t all_uses(void)
{
	int64_t sum = 0;

	for (unsigned i = 0; i < STORE_PAGES; i++)
		sum += store.uses[i];
	return sum;
}

/* Uses of those that were not taken are none. */
static inline void unuse_refused(const struct mm_same *list, uint64_t n)
{
	for (uint64_t i = 0; i < n; i++)
		if (list[i].rc && list[i].store_page)
			store.uses[list[i].store_page]--;
}

typedef uint64_t share_how(struct engine *e, struct mm_same *list, uint64_t n);

/* As the client does: the use is counted first, since the page may be touched at once. */
static inline uint64_t share(struct box *b, struct mm_same *list, uint64_t n, share_how *how)
{
	uint64_t done;

	for (uint64_t i = 0; i < n; i++)
		store.uses[list[i].store_page] += list[i].store_page != 0;
	done = how(b->e, list, n);
	unuse_refused(list, n);
	return done;
}

/* A list of pages [from, from + n) and of store pages from `at` on, which get what those have
 * in version 1. */
static inline void store_first(struct mm_same *list, uint64_t from, uint32_t n, uint32_t at)
{
	for (uint32_t i = 0; i < n; i++) {
		uint64_t *w = (uint64_t *)store_at(at + i);

		for (unsigned k = 0; k < PAGE_BYTES / sizeof(*w); k++)
			w[k] = box_word(from + i, 1, k);
		list[i] = (struct mm_same){ (uint32_t)from + i, at + i, 0 };
	}
}

static inline enum page_state state_of(struct box *b, uint64_t index)
{
	return box_entry(b, index).state;
}

/* ---- a VM that the store's loss ends ------------------------------------------------- */

static const char *lost_page; /* as the reason has it */

static inline void ends_well(void *ctx, const char *why)
{
	/* not to Criterion, whose child this is not */
	fprintf(stderr, "%s\n", why);
	_exit(strstr(why, lost_page) && strstr(why, "the store") ? 0 : 3);
}

/* `vm` gives its engine ends_well(), and touches that page. */
static inline void expect_end_by_name(void (*vm)(void), const char *page)
{
	pid_t child = fork();
	int status;

	lost_page = page;
	if (child == 0) {
		vm();
		_exit(5);
	}
	cr_assert_eq(waitpid(child, &status, 0), child);
	cr_assert(WIFEXITED(status) && WEXITSTATUS(status) == 0, "status %x", (unsigned)status);
}

#endif
