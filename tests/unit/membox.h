/* membox: a VM's memory under an engine, for tests: threads stand for vCPUs, a plain
 * table of copies for the tier.  Where userfaultfd may not be used the test is skipped,
 * and says so. */
#ifndef BRIM_TESTS_MEMBOX_H
#define BRIM_TESTS_MEMBOX_H

#include <criterion/criterion.h>

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "mm/internal.h"
#include "mm/swap/swap.h"
#include "tests/lib/books.h"
#include "tests/unit/chance.h"

#define BOX_BYTES (64 * MiB)
#define BOX_PAGES (BOX_BYTES >> PAGE_SHIFT)
#define BOX_HARD 0xE2B16u /* as a page's first word: it does not compress */

struct box {
	struct ram *ram;
	struct engine *e;
	uint8_t *mem;
	struct mm_host host;
	const struct mm_tier *tier; /* box_tier unless it was set */
	struct swap *swap;          /* the tier's context where it was set; then destroyed at close */
	/* the tier: copies by page index; ref is index + 1 */
	uint8_t *of[BOX_PAGES];
	_Atomic uint64_t held;
	_Atomic uint64_t full_at; /* no more than that many pages; 0: no bound */
	_Atomic int damaged;      /* answer of get for page `damaged_index` */
	_Atomic uint64_t damaged_index;
	_Atomic int fatal;
};

static bool box_same(const void *page)
{
	const uint64_t *w = page;
	unsigned i = 1;

	while (i < PAGE_BYTES / sizeof(*w) && w[i] == w[0])
		i++;
	return i == PAGE_BYTES / sizeof(*w);
}

static int box_put(void *ctx, uint64_t index, const void *page, uint64_t *ref, bool *filled)
{
	struct box *b = ctx;

	if (*(const uint64_t *)page == BOX_HARD)
		return -E2BIG;
	if (b->full_at && b->held >= b->full_at)
		return -ENOSPC;
	cr_assert_null(b->of[index], "page %lu put twice", (unsigned long)index);
	b->of[index] = malloc(PAGE_BYTES);
	memcpy(b->of[index], page, PAGE_BYTES);
	*filled = box_same(page);
	*ref = index + 1;
	b->held++;
	return 0;
}

static int box_get(void *ctx, uint64_t ref, uint64_t index, void *page)
{
	struct box *b = ctx;

	cr_assert_eq(ref, index + 1);
	cr_assert_not_null(b->of[index]);
	if (b->damaged && index == b->damaged_index)
		return b->damaged;
	memcpy(page, b->of[index], PAGE_BYTES);
	return 0;
}

static void box_drop(void *ctx, uint64_t ref)
{
	struct box *b = ctx;

	cr_assert_not_null(b->of[ref - 1]);
	free(b->of[ref - 1]);
	b->of[ref - 1] = NULL;
	b->held--;
}

/* A quarter of what went in, as if it had been packed. */
static uint64_t box_held(void *ctx)
{
	return ((struct box *)ctx)->held * PAGE_BYTES / 4;
}

static const struct mm_tier box_tier = {
	.put = box_put, .get = box_get, .drop = box_drop, .held_bytes = box_held,
};

static inline void box_fatal(void *ctx, const char *why)
{
	cr_log_info("%s", why);
	((struct box *)ctx)->fatal++;
}

/* b->host, b->tier and b->swap may have been set before; cfg's host, tier and RAM are filled
 * in.  What engine_create() says. */
static inline int box_try_open(struct box *b, enum ram_huge huge, struct engine_config cfg,
			       struct err *err)
{
	struct mm_host host = b->host.mmap ? b->host : mm_host_linux;
	const struct mm_tier *tier = b->tier ? b->tier : &box_tier;
	struct swap *swap = b->swap;
	int rc;

	memset(b, 0, sizeof(*b));
	b->host = host;
	b->tier = tier;
	b->swap = swap;
	rc = ram_create(&b->ram, &(struct ram_config){ BOX_BYTES, .huge = huge }, err);
	cr_assert_eq(rc, 0, "%s", err->msg);
	b->mem = ram_slot(b->ram, 0)->hva;
	cfg.ram = b->ram;
	cfg.host = &b->host;
	cfg.tier = tier;
	cfg.tier_ctx = swap ? (void *)swap : b;
	cfg.fatal = box_fatal;
	cfg.fatal_ctx = b;
	rc = engine_create(&b->e, &cfg, err);
	if (!rc && swap)
		swap_attach(swap, b->e);
	return rc;
}

static inline void box_open(struct box *b, enum ram_huge huge, struct engine_config cfg)
{
	struct err err = { "" };
	int rc = box_try_open(b, huge, cfg, &err);

	if (rc == -EPERM || rc == -ENOSYS)
		cr_skip_test("%s", err.msg);
	cr_assert_eq(rc, 0, "%s", err.msg);
}

/* A fault wakes the toucher before the books are written, under the chunk's lock. */
static inline void box_settle(struct box *b)
{
	for (uint64_t i = 0; i < b->e->pages.chunk_count; i++) {
		pthread_mutex_lock(&b->e->pages.chunk[i].lock);
		pthread_mutex_unlock(&b->e->pages.chunk[i].lock);
	}
}

static inline struct page box_entry(struct box *b, uint64_t index)
{
	struct chunk *c = chunk_of(&b->e->pages, index);
	struct page p;

	pthread_mutex_lock(&c->lock); /* a fault's end may still be writing */
	p = b->e->pages.page[index];
	pthread_mutex_unlock(&c->lock);
	return p;
}

static inline void box_check_books(struct box *b)
{
	char why[200];

	box_settle(b);
	cr_assert_eq(books_check(b->e, why, sizeof(why)), 0, "%s", why);
}

/* As box_close(), of one whose books need not be right. */
static inline void box_end(struct box *b)
{
	engine_destroy(&b->e);
	swap_destroy(&b->swap);
	ram_destroy(&b->ram);
	for (unsigned i = 0; i < BOX_PAGES; i++)
		free(b->of[i]);
}

static inline void box_close(struct box *b)
{
	reclaim_stop(b->e);
	box_check_books(b);
	cr_assert_eq(b->fatal, 0);
	box_end(b);
}

#define BOX_MANUAL ((struct engine_config){ .manual = true, .fault_threads = 2 })

static inline uint8_t *box_at(struct box *b, uint64_t index)
{
	return b->mem + (index << PAGE_SHIFT);
}

/* Word w of content that tells page and version, and is never one word throughout. */
static inline uint64_t box_word(uint64_t index, uint64_t version, uint64_t w)
{
	return index << 40 ^ version << 12 ^ w;
}

static inline void box_fill(struct box *b, uint64_t index, uint64_t version)
{
	uint64_t *w = (uint64_t *)box_at(b, index);

	for (unsigned i = 0; i < PAGE_BYTES / sizeof(*w); i++)
		w[i] = box_word(index, version, i);
}

static inline bool box_has(struct box *b, uint64_t index, uint64_t version)
{
	const uint64_t *w = (const uint64_t *)box_at(b, index);
	unsigned i = 0;

	while (i < PAGE_BYTES / sizeof(*w) && w[i] == box_word(index, version, i))
		i++;
	return i == PAGE_BYTES / sizeof(*w);
}

/* Version 1, of n pages. */
static inline void box_fill_all(struct box *b, uint64_t from, uint64_t n)
{
	for (uint64_t i = from; i < from + n; i++)
		box_fill(b, i, 1);
}

static inline void box_check_all(struct box *b, uint64_t from, uint64_t n)
{
	for (uint64_t i = from; i < from + n; i++)
		cr_assert(box_has(b, i, 1), "page %lu", (unsigned long)i);
}

/* Enough rounds to get `pages` packed out of otherwise idle memory. */
static inline void box_push_out(struct box *b, uint64_t pages)
{
	engine_reclaim(b->e, pages << PAGE_SHIFT);
	for (int i = 0; i < 50 && atomic_load(&b->e->wanted_bytes); i++)
		engine_tick(b->e);
}

#endif
