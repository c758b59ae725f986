/*
 * A guest that takes new memory flat out (mm/throttle.c): how long faults are made to
 * wait, and how far beyond its limit the VM gets.
 */
#include <criterion/criterion.h>

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "mm/internal.h"
#include "mm/swap/swap.h"
#include "tests/lib/books.h"

#define VM_BYTES (512 * MiB)
#define LIMIT_BYTES (64 * MiB)
#define LIMIT_PAGES (LIMIT_BYTES >> PAGE_SHIFT)
#define WRITERS 2

/* Under a sanitizer the process has shadow memory too, and the writers are slow: then
 * only bytes are checked, not bounds. */
#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
#define SANITIZED true
#else
#define SANITIZED false
#endif

struct vm {
	struct ram *ram;
	struct engine *e;
	struct swap *swap;
	uint8_t *mem;
	_Atomic unsigned running;
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

struct writer {
	struct vm *v;
	uint64_t from, to; /* pages */
	enum content content;
};

static void *write_main(void *arg)
{
	struct writer *w = arg;

	for (uint64_t i = w->from; i < w->to; i++)
		write_page((uint64_t *)(w->v->mem + (i << PAGE_SHIFT)), i + 1,
			   w->content);
	w->v->running--;
	return NULL;
}

/* All this process has: a page that is just being moved or packed is not counted twice. */
static uint64_t own_bytes(void)
{
	unsigned long resident = 0;
	FILE *f = fopen("/proc/self/statm", "re");

	cr_assert(f && fscanf(f, "%*u %lu", &resident) == 1);
	fclose(f);
	return resident << PAGE_SHIFT;
}

/* Pages [0, pages) as new memory, by several writers.  The most ever held. */
static uint64_t write_flat_out(struct vm *v, uint64_t pages, enum content content)
{
	struct writer w[WRITERS];
	pthread_t t[WRITERS];
	uint64_t most = 0, before = own_bytes();

	v->running = WRITERS;
	for (unsigned i = 0; i < WRITERS; i++) {
		w[i] = (struct writer){ v, pages * i / WRITERS, pages * (i + 1) / WRITERS,
					content };
		pthread_create(&t[i], NULL, write_main, &w[i]);
	}
	while (v->running) {
		uint64_t held = own_bytes() - before;

		most = held > most ? held : most;
		usleep(1000);
	}
	for (unsigned i = 0; i < WRITERS; i++)
		pthread_join(t[i], NULL);
	return most;
}

/* Until so many rounds are over: the pass of another one has ended. */
static void await_rounds(uint64_t n)
{
	uint64_t until = counter_get(CTR_engine_passes) + n + 1;

	while (counter_get(CTR_engine_passes) < until)
		usleep(1000);
}

/* What was written is read back: the limit did not cost a byte. */
static void check_written(struct vm *v, uint64_t pages, enum content content)
{
	uint64_t page[PAGE_BYTES / sizeof(uint64_t)];

	for (uint64_t i = 0; i < pages; i++) {
		write_page(page, i + 1, content);
		cr_assert_eq(memcmp(page, v->mem + (i << PAGE_SHIFT), PAGE_BYTES), 0, "page %lu",
			     (unsigned long)i);
	}
}

static void report(const char *what, uint64_t most, uint64_t began_ns)
{
	fprintf(stderr, "%s, in %lu ms, under a limit of %lu MiB: %lu MiB held at most; %lu faults "
		"waited %lu ms\n", what, (unsigned long)((now_ns() - began_ns) / 1000000),
		(unsigned long)(LIMIT_BYTES / MiB), (unsigned long)(most / MiB),
		(unsigned long)counter_get(CTR_engine_throttled),
		(unsigned long)(counter_get(CTR_engine_throttled_ns) / 1000000));
}

/* Without the brake they hold all they write: twice the limit. */
Test(throttle, writers_of_new_memory_stay_near_the_limit)
{
	static struct vm v;
	uint64_t began, most;

	vm_open(&v, (struct engine_config){ .fault_threads = WRITERS });
	engine_limit(v.e, LIMIT_BYTES);
	await_rounds(1);
	began = now_ns();
	most = write_flat_out(&v, 2 * LIMIT_PAGES, PACKS_WELL);
	report("128 MiB that pack well", most, began);
	cr_assert(SANITIZED || most <= LIMIT_BYTES * 9 / 8);
	check_written(&v, 2 * LIMIT_PAGES, PACKS_WELL);
	vm_close(&v);
}

/* Nothing helps here: the VM grows, but slowly, and goes on. */
Test(throttle, memory_that_does_not_pack_comes_slowly)
{
	static struct vm v;
	uint64_t began, most;

	vm_open(&v, (struct engine_config){ .fault_threads = WRITERS });
	engine_limit(v.e, LIMIT_BYTES);
	await_rounds(1);
	began = now_ns();
	most = write_flat_out(&v, LIMIT_PAGES * 9 / 8, RANDOM);
	report("72 MiB that do not pack", most, began);
	cr_assert(SANITIZED || counter_get(CTR_engine_throttled) > 100);
	check_written(&v, LIMIT_PAGES * 9 / 8, RANDOM);
	vm_close(&v);
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
