/*
 * Stores (host/store.c): pages, holds, memory that comes back, and what a VM can do with
 * the descriptor it is given.
 */
#include <criterion/criterion.h>

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "host/internal.h"

#define PAGES 4096u

static const struct store_spec spec = { .pages = PAGES, .uid = 1000, .group = "blue" };

static struct store *make(void)
{
	struct store *st;
	struct err e = { "" };

	cr_assert_eq(store_create(&st, &spec, &e), 0, "%s", e.msg);
	return st;
}

static const void *page_of(uint8_t fill)
{
	static uint8_t page[PAGE_BYTES];

	memset(page, fill, sizeof(page));
	return page;
}

static uint32_t put(struct store *st, struct holds *h, uint8_t fill)
{
	uint32_t page = 0;

	cr_assert_eq(store_put(st, page_of(fill), &page), 0);
	cr_assert_eq(store_hold(st, h, page), 0);
	return page;
}

static void drop(struct store *st, struct holds *h, uint32_t page)
{
	if (store_unhold(st, h, page))
		store_free(st, page);
}

static void tidy(struct store *st)
{
	for (unsigned budget = 1; store_tidy(st, &budget); budget = 1)
		;
}

static bool is_filled(const struct store *st, uint32_t page, uint8_t fill)
{
	uint8_t bytes[PAGE_BYTES];

	cr_assert_eq(store_read(st, page, bytes), 0);
	return memcmp(bytes, page_of(fill), PAGE_BYTES) == 0;
}

/* ---- pages and memory ---------------------------------------------------------------- */

Test(store, pages_put_in_a_row_lie_in_a_row)
{
	struct store *st = make();
	struct holds h = { 0 };
	uint32_t first = put(st, &h, 1);

	cr_expect_eq(first, STORE_FIRST_PAGE);
	for (unsigned i = 1; i < 100; i++)
		cr_expect_eq(put(st, &h, (uint8_t)i), first + i);
	cr_expect(is_filled(st, first + 42, 42));
	holds_fini(&h, st);
	store_destroy(&st);
}

Test(store, last_hold_frees_and_memory_comes_back)
{
	struct store *st = make();
	struct holds a = { 0 }, b = { 0 };
	uint64_t empty = store_resident_pages(st);
	uint32_t p[200];

	for (unsigned i = 0; i < 200; i++)
		p[i] = put(st, &a, (uint8_t)i);
	cr_assert_eq(store_hold(st, &b, p[7]), 0);
	cr_assert_eq(store_hold(st, &b, p[7]), 0, "twice is once");
	cr_expect_eq(st->refs[p[7]], 2);
	cr_expect_eq(store_resident_pages(st), empty + 200);
	for (unsigned i = 0; i < 200; i++)
		drop(st, &a, p[i]);
	tidy(st);
	cr_expect_eq(store_resident_pages(st), empty + 1);
	cr_expect(is_filled(st, p[7], 7));
	cr_expect_eq(a.count, 0);
	drop(st, &b, p[7]);
	tidy(st);
	cr_expect_eq(store_resident_pages(st), empty);
	cr_expect_eq(st->used_pages + st->dirty_pages, 0);
	holds_fini(&a, st);
	holds_fini(&b, st);
	store_destroy(&st);
}

Test(store, full_says_so_and_holes_are_used_again_after_they_were_given_back)
{
	struct store *st = make();
	struct holds h = { 0 };
	uint32_t page, again;

	for (unsigned i = 0; i < PAGES - STORE_FIRST_PAGE; i++)
		put(st, &h, (uint8_t)i);
	cr_expect_eq(store_put(st, page_of(1), &page), -ENOSPC);
	drop(st, &h, 77);
	drop(st, &h, 78);
	cr_expect_eq(store_put(st, page_of(1), &page), -ENOSPC, "not before it is given back");
	tidy(st);
	page = put(st, &h, 0xaa);
	again = put(st, &h, 0xbb);
	cr_expect(page == 77 && again == 78, "%u %u", page, again);
	cr_expect(is_filled(st, 77, 0xaa) && is_filled(st, 78, 0xbb) && is_filled(st, 79, 79 - 5));
	holds_fini(&h, st);
	store_destroy(&st);
}

Test(store, random_holds_agree_with_counts)
{
	struct store *st = make();
	struct holds h[3] = { { 0 } };
	static uint8_t held[3][PAGES];
	unsigned seed = (unsigned)now_ns(), used = 0;

	cr_log_info("seed %u", seed);
	for (unsigned i = 0; i < 30000; i++) {
		unsigned who = (unsigned)rand_r(&seed) % 3;
		uint32_t page = STORE_FIRST_PAGE + (unsigned)rand_r(&seed) % 300;
		unsigned budget = (unsigned)rand_r(&seed) % 2;

		if (!store_has(st, page) && store_put(st, page_of((uint8_t)i), &page))
			cr_assert_fail("seed %u: no page", seed);
		if (held[who][page] && st->refs[page]) {
			drop(st, &h[who], page);
			held[who][page] = 0;
		} else {
			cr_assert_eq(store_hold(st, &h[who], page), 0);
			held[who][page] = 1;
		}
		(void)store_tidy(st, &budget);
	}
	for (uint32_t p = STORE_FIRST_PAGE; p < PAGES; p++) {
		unsigned refs = held[0][p] + held[1][p] + held[2][p];

		used += refs > 0;
		cr_assert_eq(st->refs[p], refs, "seed %u: page %u", seed, p);
		cr_assert_eq(store_has(st, p), refs > 0, "seed %u: page %u", seed, p);
	}
	tidy(st);
	cr_expect_eq(used, st->used_pages);
	cr_expect_eq(store_resident_pages(st), used + 1, "seed %u", seed);
	for (unsigned i = 0; i < 3; i++)
		holds_fini(&h[i], st);
	store_destroy(&st);
}

/* ---- what a VM can do with it ------------------------------------------------------------ */

Test(store, descriptor_for_vms_reads_and_nothing_else)
{
	struct store *st = make();
	struct holds h = { 0 };
	uint32_t page = put(st, &h, 0x5a);
	off_t at = (off_t)page << PAGE_SHIFT;
	uint8_t *map = mmap(NULL, PAGES * PAGE_BYTES, PROT_READ, MAP_SHARED, st->ro_fd, 0);

	cr_assert_neq(map, MAP_FAILED);
	cr_expect_eq(memcmp(map + at, page_of(0x5a), PAGE_BYTES), 0);
	cr_expect_eq(mprotect(map, PAGE_BYTES, PROT_READ | PROT_WRITE), -1);
	cr_expect_eq(mmap(NULL, PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, st->ro_fd, 0),
		     MAP_FAILED);
	cr_expect_eq(pwrite(st->ro_fd, "x", 1, at), -1);
	cr_expect_eq(ftruncate(st->ro_fd, 0), -1);
	cr_expect_eq(fallocate(st->ro_fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, at,
			       (off_t)PAGE_BYTES), -1);
	cr_expect_eq(madvise(map + at, PAGE_BYTES, MADV_REMOVE), -1);
	cr_expect_eq(fcntl(st->ro_fd, F_ADD_SEALS, F_SEAL_WRITE), -1);
	cr_expect_eq(ftruncate(st->fd, 0), -1, "not even the daemon changes its size");
	cr_expect(is_filled(st, page, 0x5a));
	munmap(map, PAGES * PAGE_BYTES);
	holds_fini(&h, st);
	store_destroy(&st);
}

Test(store, another_user_cannot_open_it_for_writing)
{
	struct store *st = make();
	char path[32];
	int status;
	pid_t pid;

	if (geteuid() != 0)
		cr_skip_test("not root");
	snprintf(path, sizeof(path), "/proc/self/fd/%d", st->ro_fd);
	pid = fork();
	if (pid == 0)
		_exit(setuid(65534) || open(path, O_RDWR) >= 0 || fchmod(st->ro_fd, 0666) == 0);
	cr_assert_eq(waitpid(pid, &status, 0), pid);
	cr_expect_eq(status, 0);
	store_destroy(&st);
}

Test(store, reading_where_nothing_is_costs_memory_only_until_it_is_noticed)
{
	struct store *st = make();
	struct holds h = { 0 };
	uint64_t before, sum = 0;
	const uint8_t *map = mmap(NULL, PAGES * PAGE_BYTES, PROT_READ, MAP_SHARED, st->ro_fd, 0);

	put(st, &h, 3);
	put(st, &h, 4);
	drop(st, &h, STORE_FIRST_PAGE);
	tidy(st);
	before = store_resident_pages(st);
	cr_assert_neq(map, MAP_FAILED);
	for (uint32_t i = 0; i < PAGES; i++)
		sum += map[i * PAGE_BYTES + 1];
	cr_expect_eq(sum, 4u + map[1]);
	cr_expect(store_resident_pages(st) > PAGES - 10, "the kernel has become better");
	store_check_excess(st);
	tidy(st);
	cr_expect(store_resident_pages(st) <= before + 4, "%u pages",
		  (unsigned)store_resident_pages(st));
	cr_expect(is_filled(st, STORE_FIRST_PAGE + 1, 4));
	holds_fini(&h, st);
	store_destroy(&st);
}

/* ---- adopting ----------------------------------------------------------------------------- */

Test(store, adopted_keeps_what_is_claimed_and_gives_the_rest_back)
{
	struct store *st = make(), *found = NULL;
	struct holds h = { 0 }, now = { 0 };
	struct store_spec want = spec;
	struct err e = { "" };
	uint32_t p[50], page;

	for (unsigned i = 0; i < 50; i++)
		p[i] = put(st, &h, (uint8_t)i);
	cr_assert_eq(store_give(st, 11, 111), 0);
	cr_assert_eq(store_give(st, 22, 222), 0);
	cr_assert_eq(store_give(st, 33, 333), 0);
	store_ungive(st, 11, 111);
	want.id = st->id;
	cr_assert_eq(store_adopt(&found, st->ro_fd, &want, &e), 0, "%s", e.msg);
	cr_expect(found->given_count == 2 && store_was_given(found, 22, 222) &&
		  store_was_given(found, 33, 333) && !store_was_given(found, 22, 333));
	cr_expect_eq(store_put(found, page_of(0), &page), -EAGAIN, "nothing while in limbo");
	for (unsigned i = 10; i < 20; i++) {
		store_claim(found, p[i]);
		cr_assert_eq(store_hold(found, &now, p[i]), 0);
	}
	cr_expect_eq(store_resident_pages(found), store_resident_pages(st));
	store_settle(found);
	tidy(found);
	cr_expect(!found->limbo);
	cr_expect_eq(found->used_pages, 10);
	cr_expect_eq(store_resident_pages(found), 10 + 2);
	for (unsigned i = 10; i < 20; i++)
		cr_expect(is_filled(found, p[i], (uint8_t)i));
	page = put(found, &now, 99);
	cr_expect(is_filled(found, page, 99));
	holds_fini(&h, st);
	holds_fini(&now, found);
	store_destroy(&st);
	store_destroy(&found);
}

static void refuses(int fd, const struct store_spec *want, const char *sentence)
{
	struct store *found = NULL;
	struct err e = { "" };

	cr_expect_eq(store_adopt(&found, fd, want, &e), -EINVAL);
	cr_expect(strstr(e.msg, sentence), "'%s' has no '%s'", e.msg, sentence);
	cr_expect_null(found);
}

Test(store, wrong_descriptors_are_refused_by_name)
{
	struct store *st = make();
	struct store_spec want = spec, other;
	int plain = open("/tmp", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
	int unsealed = memfd_create("x", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	int empty = memfd_create("y", MFD_CLOEXEC | MFD_ALLOW_SEALING | 8u);
	int null = open("/dev/null", O_RDONLY | O_CLOEXEC), dir = open("/", O_RDONLY | O_CLOEXEC);

	want.id = st->id;
	refuses(plain, &want, "not a memfd sealed as stores are");
	refuses(unsealed, &want, "not a memfd sealed as stores are");
	refuses(null, &want, "not a memfd sealed as stores are");
	refuses(dir, &want, "not a memfd sealed as stores are");
	cr_assert_eq(fchmod(empty, 0600), 0);
	cr_assert_eq(ftruncate(empty, (off_t)PAGES << PAGE_SHIFT), 0);
	cr_assert_eq(fcntl(empty, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL), 0);
	refuses(empty, &want, "no store's header");
	cr_expect_eq(store_check_same(st, empty, NULL), -EINVAL);
	cr_expect_eq(store_check_same(st, st->ro_fd, NULL), 0);
	other = want, other.id++;
	refuses(st->ro_fd, &other, "not the store it is said to be");
	other = want, other.group = "red";
	refuses(st->ro_fd, &other, "another group's");
	other = want, other.uid++;
	refuses(st->ro_fd, &other, "another user's");
	cr_assert_eq(pwrite(st->fd, "\377\377\377\377", 4, 12), 4);
	refuses(st->ro_fd, &want, "damaged");
	close(plain), close(unsealed), close(empty), close(null), close(dir);
	store_destroy(&st);
}

Test(store, registry_is_bounded)
{
	struct store *st = make();

	for (uint32_t i = 1; i <= STORE_GIVEN_MAX; i++)
		cr_assert_eq(store_give(st, i, i), 0);
	cr_expect_eq(store_give(st, 5, 5), 0, "it is there");
	cr_expect_eq(store_give(st, 5, 6), -ENOSPC);
	store_ungive(st, 9, 9);
	cr_expect_eq(store_give(st, 5, 6), 0);
	store_destroy(&st);
}
