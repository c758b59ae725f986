/*
 * A guest that takes new memory flat out (mm/throttle.c): how long faults are made to
 * wait, and which chunks are watched for it.
 */
#include <criterion/criterion.h>

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "mm/internal.h"
#include "mm/swap/swap.h"
#include "tests/lib/books.h"

#define VM_BYTES (512 * MiB)
#define LIMIT_BYTES (64 * MiB)
#define LIMIT_PAGES (LIMIT_BYTES >> PAGE_SHIFT)

struct vm {
	struct ram *ram;
	struct engine *e;
	struct swap *swap;
	uint8_t *mem;
};

static void vm_open(struct vm *v, struct engine_config cfg)
{
	struct ram_config rc = { .size_bytes = VM_BYTES };
	struct swap_config sc = { .max_pages = VM_BYTES >> PAGE_SHIFT, .cap_bytes = VM_BYTES };
	struct err err = { "" };
	int e;

	cr_assert_eq(ram_create(&v->ram, &rc, &err), 0, "%s", err.msg);
	cr_assert_eq(swap_create(&v->swap, &sc, &err), 0, "%s", err.msg);
	v->mem = ram_slot(v->ram, 0)->hva;
	cfg.ram = v->ram;
	cfg.tier = &swap_tier;
	cfg.tier_ctx = v->swap;
	e = engine_create(&v->e, &cfg, &err);
	if (e == -EPERM || e == -ENOSYS)
		cr_skip_test("%s", err.msg);
	cr_assert_eq(e, 0, "%s", err.msg);
	swap_attach(v->swap, v->e);
}

static void vm_close(struct vm *v)
{
	engine_destroy(&v->e);
	swap_destroy(&v->swap);
	ram_destroy(&v->ram);
}

enum content { PACKS_WELL, RANDOM };

static void write_page(uint64_t *w, uint64_t seed, enum content content)
{
	for (unsigned i = 0; i < PAGE_BYTES / sizeof(*w); i++) {
		seed = seed * 6364136223846793005u + 1442695040888963407u;
		w[i] = content == RANDOM ? seed * (seed >> 32) : i % 8 ? 0x2020 : seed;
	}
}

#define MANUAL ((struct engine_config){ .manual = true, .fault_threads = 1 })

Test(throttle, faults_wait_the_longer_the_further_over)
{
	static struct vm v;
	const uint64_t margin = LIMIT_PAGES / 64 + 1;
	uint64_t arrived = 0, least;

	vm_open(&v, MANUAL);
	cr_assert_eq(throttle_ns(v.e, 0), 0, "there is no limit");
	engine_limit(v.e, LIMIT_BYTES);
	engine_tick(v.e);
	least = LIMIT_PAGES - engine_held_pages(v.e) - atomic_load(&v.e->unseen_pages);
	for (; arrived < least + margin; arrived++)
		cr_assert_eq(throttle_ns(v.e, 0), 0, "%lu pages", (unsigned long)arrived);
	cr_assert(atomic_load(&v.e->hurried));
	cr_assert_eq(throttle_ns(v.e, 0), 20000000 / margin);
	for (arrived++; arrived < least + 2 * margin; arrived++)
		throttle_ns(v.e, 0);
	cr_assert_eq(throttle_ns(v.e, 0), 20000000, "no wait is longer");
	v.e->pages.page[5].state = PAGE_PACKED;
	cr_assert_eq(throttle_ns(v.e, 5), 20000000 / 16, "a page that comes back");
	v.e->pages.page[5].state = PAGE_GUEST;
	engine_tick(v.e);
	cr_assert_eq(throttle_ns(v.e, 0), 0, "a pass knows that nothing has come");
	vm_close(&v);
}

Test(throttle, vm_whose_limit_cannot_be_met_gets_its_own_pages_at_once)
{
	static struct vm v;
	uint64_t page[PAGE_BYTES / sizeof(uint64_t)];

	vm_open(&v, MANUAL);
	write_page((uint64_t *)v.mem, 1, PACKS_WELL);
	engine_reclaim(v.e, PAGE_BYTES);
	engine_tick(v.e);
	engine_tick(v.e);
	cr_assert_eq(v.e->pages.page[0].state, PAGE_PACKED);
	for (uint64_t i = 1; i < 2 * LIMIT_PAGES; i++)
		write_page((uint64_t *)(v.mem + (i << PAGE_SHIFT)), i + 1, RANDOM);
	engine_limit(v.e, LIMIT_BYTES);
	for (unsigned i = 0; i < 100 && !atomic_load(&v.e->helpless); i++)
		engine_tick(v.e);
	cr_assert(atomic_load(&v.e->helpless));
	cr_assert_eq(throttle_ns(v.e, 0), 0);
	cr_assert_eq(throttle_ns(v.e, 2 * LIMIT_PAGES), 1000000);
	write_page(page, 1, PACKS_WELL);
	cr_assert_eq(memcmp(page, v.mem, PAGE_BYTES), 0);
	vm_close(&v);
}

static uint64_t missing_unwatched(struct vm *v)
{
	uint64_t n = 0;

	for (uint64_t c = 0; c < v->e->pages.chunk_count; c++)
		if (!v->e->pages.chunk[c].watched)
			n += CHUNK_PAGES - v->e->pages.chunk[c].present;
	return n;
}

/* I1: what may come unseen fits under the limit, whatever the VM holds. */
Test(throttle, no_more_is_unwatched_than_fits_under_the_limit)
{
	static struct vm v;
	struct books_smaps s;

	vm_open(&v, MANUAL);
	engine_limit(v.e, VM_BYTES);
	engine_tick(v.e);
	cr_assert_eq(atomic_load(&v.e->watched_chunks), 0, "it cannot exceed that");
	engine_limit(v.e, LIMIT_BYTES);
	for (uint64_t i = 0; i < LIMIT_PAGES; i++) {
		v.mem[(i * 3) << PAGE_SHIFT] = 1;
		if (i % 1000)
			continue;
		engine_tick(v.e);
		cr_assert_leq(missing_unwatched(&v), (LIMIT_PAGES - engine_held_pages(v.e)) / 2);
		cr_assert_eq(missing_unwatched(&v), atomic_load(&v.e->unseen_pages));
	}
	cr_assert_gt(atomic_load(&v.e->watched_chunks), 200);
	engine_limit(v.e, 0);
	for (uint64_t i = 0; i < LIMIT_PAGES; i++) /* home, all of it */
		cr_assert_eq(v.mem[(i * 3) << PAGE_SHIFT], 1);
	for (unsigned i = 0; i < 10; i++)
		engine_tick(v.e);
	cr_assert_eq(atomic_load(&v.e->watched_chunks), 0);
	cr_assert_eq(books_smaps(v.mem, VM_BYTES, &s), 0);
	cr_assert_eq(s.vmas, 1);
	vm_close(&v);
}
