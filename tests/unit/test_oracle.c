/*
 * The oracle of bench/: what it counts, and in whose memory.
 */
#include "bench/oracle.h"

#include <criterion/criterion.h>

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#define PAGES 64u

static uint8_t *map(uint64_t pages, int prot)
{
	void *p = mmap(NULL, pages * PAGE_BYTES, prot, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	cr_assert_neq(p, MAP_FAILED);
	return p;
}

/* By page number modulo 4: zeroes; a pattern; the same in both halves; like no other. */
static uint8_t *make_pages(void)
{
	uint8_t *p = map(PAGES, PROT_READ | PROT_WRITE);

	for (uint32_t i = 0; i < PAGES; i++) {
		uint32_t what = i % 4 == 2 ? 1000 + i % (PAGES / 2) : i;
		uint8_t *page = p + i * PAGE_BYTES;

		if (i % 4 == 1)
			memset(page, 0x55, PAGE_BYTES);
		else if (i % 4)
			memcpy(page + PAGE_BYTES - sizeof(what), &what, sizeof(what));
	}
	return p;
}

/* A copy of this process that waits, and ends with it. */
static pid_t start_copy(void)
{
	pid_t pid = fork();

	if (pid)
		return pid;
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	for (;;)
		pause();
}

static void end_copy(pid_t pid)
{
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
}

static void check_counts(const struct oracle_counts *c)
{
	cr_assert_eq(c->pages, PAGES);
	cr_assert_eq(c->zero_pages, PAGES / 4);
	cr_assert_eq(c->filled_pages, PAGES / 4);
	cr_assert_eq(c->contents, 1 + PAGES / 8 + PAGES / 4);
	cr_assert_eq(c->single_pages, PAGES / 4);
	cr_assert_eq(c->most, PAGES / 4);
	cr_assert_eq(c->collisions, 0);
	cr_assert_eq(c->saving_pages, PAGES - c->contents);
	cr_assert_eq(c->equal_pages, c->saving_pages - PAGES / 4);
}

Test(oracle, oracle_own_memory_counts_contents)
{
	struct oracle_range r = { 0, (uintptr_t)make_pages(), PAGES * PAGE_BYTES };
	struct oracle_counts c;

	cr_assert_eq(oracle_count(&r, 1, true, &c), 0);
	check_counts(&c);
}

Test(oracle, oracle_two_ranges_are_counted_together)
{
	struct oracle_range r[] = { { 0, (uintptr_t)make_pages(), PAGES * PAGE_BYTES },
				    { 0, (uintptr_t)make_pages(), PAGES * PAGE_BYTES } };
	struct oracle_counts one, two;

	cr_assert_eq(oracle_count(r, 1, true, &one), 0);
	cr_assert_eq(oracle_count(r, 2, true, &two), 0);
	cr_assert_eq(two.pages, 2 * one.pages);
	cr_assert_eq(two.contents, one.contents);
	cr_assert_eq(two.single_pages, 0);
	cr_assert_eq(two.saving_pages, one.saving_pages + PAGES);
}

Test(oracle, oracle_other_process_is_read)
{
	struct oracle_range r = { .addr = (uintptr_t)make_pages(), .bytes = PAGES * PAGE_BYTES };
	struct oracle_counts c;
	uint64_t resident;

	r.pid = start_copy();
	memset((void *)(uintptr_t)r.addr, 0, r.bytes); /* ours, and not what it is to read */
	for (unsigned i = 0; i < 2; i++) { /* the oracle reads zeroes where nothing was */
		cr_assert_eq(oracle_resident(&r, &resident), 0);
		cr_assert_eq(resident, PAGES - PAGES / 4);
		cr_assert_eq(oracle_count(&r, 1, true, &c), 0);
		check_counts(&c);
	}
	end_copy(r.pid);
}

Test(oracle, oracle_memory_that_is_not_there_is_an_error)
{
	uint8_t *p = make_pages();
	struct oracle_range r = { .addr = (uintptr_t)p, .bytes = PAGES * PAGE_BYTES };
	struct oracle_counts c = { .pages = 7 };

	cr_assert_eq(munmap(p + 8 * PAGE_BYTES, PAGE_BYTES), 0);
	r.pid = start_copy();
	cr_assert_lt(oracle_count(&r, 1, false, &c), 0);
	cr_assert_eq(c.pages, 7);
	end_copy(r.pid);
}

/* 96 pages in three mappings, one of them a store's, between pages nobody may touch. */
static uint8_t *make_ram(void)
{
	uint8_t *p = map(98, PROT_NONE);
	int fd = memfd_create("store", MFD_CLOEXEC);

	cr_assert_geq(fd, 0);
	cr_assert_eq(ftruncate(fd, 32 * PAGE_BYTES), 0);
	cr_assert_eq(mprotect(p + PAGE_BYTES, 96 * PAGE_BYTES, PROT_READ | PROT_WRITE), 0);
	cr_assert_neq(mmap(p + 33 * PAGE_BYTES, 32 * PAGE_BYTES, PROT_READ | PROT_WRITE,
			   MAP_PRIVATE | MAP_FIXED, fd, 0), MAP_FAILED);
	close(fd);
	return p + PAGE_BYTES;
}

Test(oracle, oracle_guest_ram_is_found_with_a_store_mapped_in_it)
{
	uint64_t ram = (uintptr_t)make_ram();
	struct oracle_range r;

	cr_assert_eq(oracle_guest_ram(getpid(), 96 * PAGE_BYTES, &r), 0);
	cr_assert_eq(r.addr, ram);
	cr_assert_eq(r.bytes, 96 * PAGE_BYTES);
	cr_assert_eq(r.pid, getpid());
}

Test(oracle, oracle_guest_ram_of_another_size_is_not_found)
{
	struct oracle_range r = { .addr = 7 };

	make_ram();
	cr_assert_eq(oracle_guest_ram(getpid(), (uint64_t)9999991 * PAGE_BYTES, &r), -ENOENT);
	cr_assert_eq(r.addr, 7);
}
