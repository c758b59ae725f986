/*
 * mm/balloon: ranges, the book, and what really goes back to the host.  Defends
 * I1, I2 and I3 of mm/balloon/balloon.h.
 */
#include <criterion/criterion.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "mm/balloon/internal.h"

#define LOW_PAGES (RAM_HOLE_START >> PAGE_SHIFT)
#define HIGH_GFN (RAM_HOLE_END >> PAGE_SHIFT)

/* ---- random numbers ---------------------------------------------------------- */

static uint64_t rng;

static void seed(void)
{
	const char *text = getenv("SEED");

	rng = text ? strtoull(text, NULL, 0) : now_ns() | 1;
	cr_log_info("SEED=%#llx", (unsigned long long)rng);
}

static uint32_t below(uint32_t n)
{
	rng ^= rng << 13;
	rng ^= rng >> 7;
	rng ^= rng << 17;
	return (uint32_t)((rng >> 32) % n);
}

/* ---- ranges against a reference ---------------------------------------------- */

#define UNIVERSE 5000u

static struct ranges set; /* too big for a stack */
static bool reference[UNIVERSE];

static void add(uint32_t first, uint32_t pages)
{
	ranges_add(&set, first, pages);
	memset(reference + first, true, pages);
}

/* A run the way guests make them: rising, falling, repeating, or at random. */
static void add_some(uint32_t wall)
{
	uint32_t n = 1 + below(60), at = below(UNIVERSE), step = 1 + below(3);
	unsigned shape = below(4);

	for (uint32_t i = 0; i < n && set.n + 1 < BALLOON_PENDING_MAX; i++) {
		uint32_t pages = shape == 3 ? 1 + below(9) : 1;

		if (at >= UNIVERSE || at + pages > UNIVERSE || (at < wall && at + pages > wall))
			break;
		add(at, pages);
		at = shape == 0 ? at + step : shape == 1 ? at - step : below(UNIVERSE);
	}
}

/* Rising, maximal, none across the wall, and the same pages as the reference. */
static void check_settled(uint32_t wall)
{
	static bool covered[UNIVERSE];
	uint64_t pages = 0;

	memset(covered, 0, sizeof(covered));
	for (unsigned i = 0; i < set.n; i++) {
		struct page_range r = set.r[i];
		uint32_t end = r.first + r.pages;

		cr_assert(r.pages > 0 && end <= UNIVERSE);
		cr_assert(r.first >= wall || end <= wall, "%u+%u crosses %u", r.first, r.pages,
			  wall);
		if (i) {
			uint32_t before = set.r[i - 1].first + set.r[i - 1].pages;

			cr_assert(before < r.first || (before == r.first && wall == r.first));
		}
		memset(covered + r.first, true, r.pages);
		pages += r.pages;
	}
	cr_assert_eq(set.pages, pages);
	cr_assert_arr_eq(covered, reference, sizeof(covered));
}

Test(balloon, ranges_random_input_equals_reference)
{
	seed();
	for (unsigned round = 0; round < 400; round++) {
		uint32_t wall = below(3) ? 0 : 1 + below(UNIVERSE - 1);
		unsigned bursts = 1 + below(30);

		memset(reference, 0, sizeof(reference));
		ranges_init(&set, wall);
		for (unsigned i = 0; i < bursts; i++)
			add_some(wall);
		ranges_settle(&set);
		check_settled(wall);
	}
}

Test(balloon, ranges_ascending_one_range)
{
	ranges_init(&set, 0);
	for (uint32_t i = 0; i < 1000; i++)
		ranges_add(&set, 77 + i, 1);
	cr_assert_eq(set.n, 1);
	cr_assert_eq(set.r[0].first, 77);
	cr_assert_eq(set.r[0].pages, 1000);
}

Test(balloon, ranges_descending_one_range)
{
	ranges_init(&set, 0);
	for (uint32_t i = 0; i < 1000; i++)
		ranges_add(&set, 2000 - i, 1);
	cr_assert_eq(set.n, 1);
	cr_assert_eq(set.r[0].first, 1001);
	cr_assert_eq(set.r[0].pages, 1000);
}

Test(balloon, ranges_full_of_high_numbers_sorted)
{
	const uint32_t top = (uint32_t)(RAM_MAX_BYTES >> PAGE_SHIFT);

	seed();
	ranges_init(&set, (uint32_t)LOW_PAGES);
	while (set.n < BALLOON_PENDING_MAX)
		ranges_add(&set, below(top), 1);
	ranges_settle(&set);
	for (unsigned i = 1; i < set.n; i++)
		cr_assert_gt(set.r[i].first, set.r[i - 1].first);
}

Test(balloon, ranges_at_the_wall_kept_apart)
{
	static const uint32_t orders[][2] = { { 9, 10 }, { 10, 9 } };

	for (size_t i = 0; i < ARRAY_LEN(orders); i++) {
		ranges_init(&set, 10);
		ranges_add(&set, orders[i][0], 1);
		ranges_add(&set, orders[i][1], 1);
		ranges_add(&set, 10, 5);
		ranges_settle(&set);
		cr_assert_eq(set.n, 2);
		cr_assert_eq(set.r[0].first, 9);
		cr_assert_eq(set.r[0].pages, 1);
		cr_assert_eq(set.r[1].first, 10);
		cr_assert_eq(set.r[1].pages, 5);
		cr_assert_eq(set.pages, 6);
	}
}

/* ---- the book ---------------------------------------------------------------- */

Test(balloon, book_random_changes_equal_reference)
{
	struct book k;

	seed();
	memset(reference, 0, sizeof(reference));
	cr_assert_eq(book_init(&k, UNIVERSE, &mm_host_linux, NULL), 0);
	for (unsigned i = 0; i < 20000; i++) {
		uint32_t at = below(UNIVERSE);
		bool in = below(2);

		cr_assert_eq(in ? book_add(&k, at) : book_remove(&k, at), reference[at] != in);
		reference[at] = in;
	}
	uint64_t pages = 0;
	for (uint32_t i = 0; i < UNIVERSE; i++) {
		cr_assert_eq(book_has(&k, i), reference[i]);
		pages += reference[i];
	}
	cr_assert_eq(k.pages, pages);
	book_clear(&k);
	cr_assert_eq(k.pages, 0);
	for (uint32_t i = 0; i < UNIVERSE; i++)
		cr_assert_not(book_has(&k, i));
	book_fini(&k);
}

/* ---- a host that counts and fails -------------------------------------------- */

static unsigned discards, many_calls;
static int fail_from = -1; /* the discard, counted from 0, at which failing starts */
static int fail_errno;
static bool many_missing;

static void *host_mmap(void *addr, size_t len, int prot, int flags, int fd, int64_t off)
{
	return mmap(addr, len, prot, flags, fd, off);
}

static bool discard_fails(void)
{
	unsigned nth = discards++;

	if (fail_from < 0 || nth < (unsigned)fail_from)
		return false;
	errno = fail_errno;
	return true;
}

static int host_madvise(void *addr, size_t len, int advice)
{
	if (advice == MADV_DONTNEED && discard_fails())
		return -1;
	return madvise(addr, len, advice);
}

static int64_t host_many(const struct iovec *v, size_t n, int advice)
{
	int64_t bytes = 0;

	many_calls++;
	if (many_missing) {
		errno = ENOSYS;
		return -1;
	}
	for (size_t i = 0; i < n; i++) {
		if (host_madvise(v[i].iov_base, v[i].iov_len, advice) < 0)
			return bytes ? bytes : -1;
		bytes += (int64_t)v[i].iov_len;
	}
	return bytes;
}

static const struct mm_host host = {
	.mmap = host_mmap, .munmap = munmap, .madvise = host_madvise, .madvise_many = host_many,
};

static struct ram *ram;
static struct balloon *b;

static void make(uint64_t size_bytes, const struct mm_host *h)
{
	struct ram_config cfg = { .size_bytes = size_bytes, .host = h };

	cr_assert_eq(ram_create(&ram, &cfg, NULL), 0);
	cr_assert_eq(balloon_create(&b, ram, NULL, NULL), 0);
}

static void unmake(void)
{
	balloon_destroy(&b);
	ram_destroy(&ram);
}

static uint64_t resident(void)
{
	uint64_t bytes = UINT64_MAX;

	cr_assert_eq(ram_resident_bytes(ram, &bytes), 0);
	return bytes;
}

static uint8_t *page(uint64_t frame)
{
	return ram_at(ram, gpa_of(gfn(frame)), PAGE_BYTES);
}

static void fill(uint64_t frame, uint64_t n)
{
	for (uint64_t i = 0; i < n; i++)
		memset(page(frame + i), 0xa5, PAGE_BYTES);
}

/* ---- the engine -------------------------------------------------------------- */

Test(balloon, balloon_inflate_really_gives_back)
{
	uint32_t pfns[256];

	seed();
	make(RAM_MIN_BYTES, NULL);
	fill(0, 1024);
	for (unsigned i = 0; i < 256; i++)
		pfns[i] = 4 * i + below(4); /* scattered, none twice */
	for (unsigned i = 255; i > 0; i--) {
		unsigned j = below(i + 1);
		uint32_t t = pfns[i];

		pfns[i] = pfns[j];
		pfns[j] = t;
	}
	balloon_inflate(b, pfns, 256);
	cr_assert_eq(balloon_pages(b), 256);
	cr_assert_eq(balloon_pending_pages(b), 256);
	cr_assert_eq(resident(), 1024 * PAGE_BYTES);
	cr_assert_eq(balloon_discard(b), 256);
	cr_assert_eq(resident(), 768 * PAGE_BYTES);
	for (uint32_t f = 0; f < 1024; f++)
		cr_assert_eq(*page(f), balloon_holds(b, gfn(f)) ? 0 : 0xa5);
	unmake();
}

Test(balloon, balloon_lies_counted_and_harmless)
{
	const uint32_t pfns[] = { 5, 5, 16384, UINT32_MAX, 16383, 0xC0000 };
	const uint32_t back[] = { 5, 6, 5, 16384 };

	make(RAM_MIN_BYTES, NULL); /* 16384 pages */
	fill(0, 10);
	balloon_inflate(b, pfns, ARRAY_LEN(pfns));
	balloon_discard(b);
	cr_assert_eq(balloon_pages(b), 2);
	cr_assert_eq(counter_get(CTR_balloon_inflate_pages), 2);
	cr_assert_eq(counter_get(CTR_balloon_repeated), 1);
	cr_assert_eq(counter_get(CTR_balloon_bad_pfn), 3);
	balloon_deflate(b, back, ARRAY_LEN(back));
	cr_assert_eq(balloon_pages(b), 1);
	cr_assert_eq(counter_get(CTR_balloon_deflate_pages), 1);
	cr_assert_eq(counter_get(CTR_balloon_repeated), 3);
	cr_assert_eq(counter_get(CTR_balloon_bad_pfn), 4);
	cr_assert_eq(*page(6), 0xa5, "deflating discards nothing");
	unmake();
}

/* The two slots touch in host memory and in the book, and nowhere else (I2). */
Test(balloon, balloon_range_across_the_hole_cut_in_two)
{
	uint32_t pfns[] = { (uint32_t)HIGH_GFN, (uint32_t)LOW_PAGES - 1, (uint32_t)HIGH_GFN + 1,
			    (uint32_t)LOW_PAGES - 2, (uint32_t)LOW_PAGES };

	make(4 * GiB, &host);
	fill(LOW_PAGES - 2, 2);
	fill(HIGH_GFN, 2);
	balloon_inflate(b, pfns, ARRAY_LEN(pfns));
	cr_assert_eq(balloon_discard(b), 4);
	cr_assert_eq(discards, 2);
	cr_assert_eq(many_calls, 1);
	cr_assert_eq(resident(), 0);
	cr_assert_eq(counter_get(CTR_balloon_bad_pfn), 1);
	unmake();
}

Test(balloon, balloon_deflate_discards_pending_first)
{
	const uint32_t pfn = 3;

	make(RAM_MIN_BYTES, NULL);
	fill(3, 1);
	balloon_inflate(b, &pfn, 1);
	balloon_deflate(b, &pfn, 1);
	cr_assert_eq(balloon_pending_pages(b), 0);
	fill(3, 1); /* the guest's again */
	balloon_discard(b);
	cr_assert_eq(*page(3), 0xa5);
	unmake();
}

Test(balloon, balloon_forget_drops_pending_and_book)
{
	const uint32_t pfn = 3;

	make(RAM_MIN_BYTES, NULL);
	fill(3, 1);
	balloon_inflate(b, &pfn, 1);
	balloon_forget(b);
	cr_assert_eq(balloon_pages(b), 0);
	cr_assert_eq(balloon_discard(b), 0);
	cr_assert_eq(*page(3), 0xa5);
	unmake();
}

Test(balloon, balloon_free_range_takes_whole_pages_only)
{
	make(RAM_MIN_BYTES, NULL);
	fill(0, 4);
	cr_assert_eq(balloon_free_range(b, gpa(PAGE_BYTES - 1), 2 * PAGE_BYTES), 1);
	cr_assert_eq(balloon_free_range(b, gpa(1), PAGE_BYTES), 0);
	cr_assert_eq(balloon_free_range(b, gpa(RAM_MIN_BYTES - 1), 2), 0);
	cr_assert_eq(balloon_free_range(b, gpa(0), 0), 0);
	cr_assert_eq(balloon_discard(b), 1);
	cr_assert_eq(balloon_pages(b), 0, "free memory is not in the balloon");
	cr_assert_eq(*page(0), 0xa5);
	cr_assert_eq(*page(1), 0);
	cr_assert_eq(*page(2), 0xa5);
	unmake();
}

/* Every other page: as many ranges as pages.  Fails discard 0, then 1, then 2 ...:
 * each page is either gone and zero, or untouched and counted as failed. */
static void inflate_with_faults(bool without_many)
{
	enum { N = 20 };
	uint32_t pfns[N];

	make(RAM_MIN_BYTES, &host);
	many_missing = without_many;
	fail_errno = EINVAL;
	for (unsigned i = 0; i < N; i++)
		pfns[i] = 2 * i;
	for (fail_from = 0; fail_from <= N; fail_from++) {
		uint64_t failed = counter_get(CTR_balloon_discard_failed), kept = 0, went;

		discards = 0;
		fill(0, 2 * N);
		balloon_inflate(b, pfns, N);
		went = balloon_discard(b);
		for (unsigned i = 0; i < N; i++) {
			cr_assert(*page(2 * i) == 0 || *page(2 * i) == 0xa5);
			kept += *page(2 * i) == 0xa5;
			cr_assert_eq(*page(2 * i + 1), 0xa5);
		}
		cr_assert_eq(went, (uint64_t)fail_from);
		cr_assert_eq(kept, N - went);
		cr_assert_eq(counter_get(CTR_balloon_discard_failed) - failed, kept);
		cr_assert_eq(balloon_pages(b), N, "the guest gave them all the same");
	}
	fail_from = -1;
	unmake();
}

Test(balloon, balloon_discard_fails_page_kept_and_counted)
{
	inflate_with_faults(false);
}

Test(balloon, balloon_discard_fails_one_by_one_page_kept_and_counted)
{
	inflate_with_faults(true);
	/* asked while nothing at all worked, and once more */
	cr_assert_leq(many_calls, 21);
}

static void *no_mmap(void *addr, size_t len, int prot, int flags, int fd, int64_t off)
{
	errno = ENOMEM;
	return MAP_FAILED;
}

Test(balloon, balloon_create_without_address_space_refused)
{
	const struct mm_host full = { .mmap = no_mmap, .munmap = munmap, .madvise = madvise };
	struct ram_config cfg = { .size_bytes = RAM_MIN_BYTES };
	struct err e = { "" };

	cr_assert_eq(ram_create(&ram, &cfg, NULL), 0);
	cr_assert_eq(balloon_create(&b, ram, &full, &e), -ENOMEM);
	cr_assert_null(b);
	cr_assert_neq(e.msg[0], '\0');
	ram_destroy(&ram);
}
