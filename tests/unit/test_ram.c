/*
 * mm/ram.c: the map of guest memory, its limits, and what it costs.
 */
#include <criterion/criterion.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "mm/mm.h"

#define HIGH_SIZE (5 * GiB) /* 3 GiB low, 2 GiB high */

static struct ram *make(uint64_t size_bytes, enum ram_huge huge)
{
	struct ram_config cfg = { .size_bytes = size_bytes, .huge = huge };
	struct ram *ram = NULL;
	struct err e = { "" };

	cr_assert_eq(ram_create(&ram, &cfg, &e), 0, "%s", e.msg);
	return ram;
}

static uint64_t resident(const struct ram *ram)
{
	uint64_t bytes = UINT64_MAX;

	cr_assert_eq(ram_resident_bytes(ram, &bytes), 0);
	return bytes;
}

/* ---- limits ------------------------------------------------------------------ */

static void refused(uint64_t size_bytes, const char *asked, const char *limit)
{
	struct ram_config cfg = { .size_bytes = size_bytes };
	struct ram *ram = (struct ram *)&cfg;
	struct err e = { "" };

	cr_assert_eq(ram_create(&ram, &cfg, &e), -EINVAL);
	cr_assert_eq(ram, (struct ram *)&cfg, "outputs are written only on success");
	cr_assert(strstr(e.msg, asked) && strstr(e.msg, limit), "%s", e.msg);
}

Test(ram, ram_size_outside_limits_refused_by_name)
{
	refused(0, "0", "64");
	refused(62 * MiB, "62", "64");
	refused(RAM_MAX_BYTES + 2 * MiB, "TiB", "1");
	refused(65 * MiB, "68157440", "2");
	refused(64 * MiB + 1, "67108865", "2");
}

static int calls_left;

static bool call_fails(void)
{
	if (calls_left-- > 0)
		return false;
	errno = ENOMEM;
	return true;
}

static void *failing_mmap(void *addr, size_t len, int prot, int flags, int fd, int64_t off)
{
	return call_fails() ? MAP_FAILED : mmap(addr, len, prot, flags, fd, off);
}

static int failing_madvise(void *addr, size_t len, int advice)
{
	return call_fails() ? -1 : madvise(addr, len, advice);
}

static const struct mm_host failing_host = {
	.mmap = failing_mmap, .munmap = munmap, .madvise = failing_madvise,
};

Test(ram, ram_create_any_call_fails_error_in_a_sentence)
{
	struct ram_config cfg = { .size_bytes = RAM_MIN_BYTES, .host = &failing_host };
	struct ram *ram = NULL;
	int rc = -1, n;

	for (n = 0; rc && n < 20; n++) {
		struct err e = { "" };

		calls_left = n;
		rc = ram_create(&ram, &cfg, &e);
		cr_assert(rc == 0 || rc == -ENOMEM);
		cr_assert((rc == 0) == (e.msg[0] == '\0'), "%s", e.msg);
		cr_assert((rc == 0) == (ram != NULL));
	}
	cr_assert_eq(rc, 0);
	cr_assert_gt(n, 4, "two mappings and three pieces of advice could fail");
	ram_destroy(&ram);
	cr_assert_null(ram);
}

static int without_thp(void *addr, size_t len, int advice)
{
	if (advice != MADV_HUGEPAGE && advice != MADV_NOHUGEPAGE)
		return madvise(addr, len, advice);
	errno = EINVAL;
	return -1;
}

Test(ram, ram_create_host_without_huge_pages_works)
{
	static const struct mm_host host = { .mmap = failing_mmap, .munmap = munmap,
					     .madvise = without_thp };
	struct ram_config cfg = { .size_bytes = RAM_MIN_BYTES, .host = &host };
	struct ram *ram = NULL;

	calls_left = 1000;
	cr_assert_eq(ram_create(&ram, &cfg, NULL), 0);
	ram_expect_dense(ram, gpa(0), RAM_MIN_BYTES);
	ram_destroy(&ram);
}

/* ---- the map ----------------------------------------------------------------- */

Test(ram, ram_small_one_slot)
{
	struct ram *ram = make(RAM_HOLE_START, RAM_HUGE_AUTO);

	cr_assert_eq(ram_slot_count(ram), 1);
	cr_assert_eq(ram_size_bytes(ram), RAM_HOLE_START);
	cr_assert_null(ram_at(ram, gpa(RAM_HOLE_START), 1));
	cr_assert_null(ram_at(ram, gpa(RAM_HOLE_END), 1));
	ram_destroy(&ram);
}

Test(ram, ram_large_two_slots_aligned)
{
	struct ram *ram = make(HIGH_SIZE, RAM_HUGE_AUTO);

	cr_assert_eq(ram_slot_count(ram), 2);
	cr_assert_eq(ram_slot(ram, 0)->base.v, 0);
	cr_assert_eq(ram_slot(ram, 0)->size_bytes, RAM_HOLE_START);
	cr_assert_eq(ram_slot(ram, 1)->base.v, RAM_HOLE_END);
	cr_assert_eq(ram_slot(ram, 1)->size_bytes, HIGH_SIZE - RAM_HOLE_START);
	for (unsigned i = 0; i < 2; i++)
		cr_assert_eq((uintptr_t)ram_slot(ram, i)->hva % HUGE_BYTES, 0);
	ram_destroy(&ram);
}

Test(ram, ram_at_edges_inside_only)
{
	struct ram *ram = make(HIGH_SIZE, RAM_HUGE_AUTO);
	uint64_t top = RAM_HOLE_END + HIGH_SIZE - RAM_HOLE_START;
	const struct { uint64_t addr, len; bool good; } cases[] = {
		{ 0, 1, true },
		{ 0, 0, false },
		{ 0, RAM_HOLE_START, true },
		{ 0, RAM_HOLE_START + 1, false },
		{ RAM_HOLE_START - 1, 1, true },
		{ RAM_HOLE_START - 1, 2, false },
		{ RAM_HOLE_START, 1, false },
		{ RAM_HOLE_END - 1, 1, false },
		{ RAM_HOLE_END - 1, 2, false },
		{ RAM_HOLE_END, 1, true },
		{ RAM_HOLE_END, 0, false },
		{ top - 1, 1, true },
		{ top - 1, 2, false },
		{ top, 1, false },
		{ 16, UINT64_MAX, false },
		{ UINT64_MAX, 1, false },
		{ UINT64_MAX, UINT64_MAX, false },
		{ RAM_HOLE_END, UINT64_MAX - 1, false },
	};

	for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
		uint64_t before = counter_get(CTR_ram_bad_gpa);
		void *p = ram_at(ram, gpa(cases[i].addr), cases[i].len);

		cr_assert_eq(p != NULL, cases[i].good, "case %zu", i);
		cr_assert_eq(counter_get(CTR_ram_bad_gpa) - before, !cases[i].good);
	}
	cr_assert_eq(ram_at(ram, gpa(RAM_HOLE_END + 5), 1), ram_slot(ram, 1)->hva + 5);
	ram_destroy(&ram);
}

Test(ram, ram_index_round_trip_no_hole)
{
	struct ram *ram = make(HIGH_SIZE, RAM_HUGE_AUTO);
	uint64_t pages = HIGH_SIZE >> PAGE_SHIFT, low = RAM_HOLE_START >> PAGE_SHIFT, index = 7;
	const uint64_t some[] = { 0, 1, low - 1, low, low + 1, pages - 1 };

	for (size_t i = 0; i < ARRAY_LEN(some); i++) {
		cr_assert(ram_index_of(ram, ram_gfn_at(ram, some[i]), &index));
		cr_assert_eq(index, some[i]);
	}
	cr_assert_eq(ram_gfn_at(ram, low).v, RAM_HOLE_END >> PAGE_SHIFT);
	cr_assert_not(ram_index_of(ram, gfn(low), &index));
	cr_assert_not(ram_index_of(ram, gfn((RAM_HOLE_END >> PAGE_SHIFT) - 1), &index));
	cr_assert_not(ram_index_of(ram, gfn(UINT64_MAX), &index));
	ram_destroy(&ram);
}

/* Reading by system call: a bad address is EFAULT, not a dead test. */
static bool is_readable(const void *p)
{
	int fds[2];
	long rc;

	cr_assert_eq(pipe(fds), 0);
	rc = syscall(SYS_write, fds[1], p, 1);
	close(fds[0]);
	close(fds[1]);
	return rc == 1;
}

Test(ram, ram_neighbours_guarded)
{
	struct ram *ram = make(RAM_MIN_BYTES, RAM_HUGE_AUTO);
	uint8_t *hva = ram_slot(ram, 0)->hva;

	cr_assert(is_readable(hva));
	cr_assert(is_readable(hva + RAM_MIN_BYTES - 1));
	cr_assert_not(is_readable(hva - 1));
	cr_assert_not(is_readable(hva - HUGE_BYTES));
	cr_assert_not(is_readable(hva + RAM_MIN_BYTES));
	cr_assert_not(is_readable(hva + RAM_MIN_BYTES + HUGE_BYTES - 1));
	ram_destroy(&ram);
}

/* The VmFlags of the VMA that starts at p. */
static bool has_flags(const void *p, const char *const *flags, size_t n)
{
	char line[512], start[32];
	bool here = false, all = false;
	FILE *f = fopen("/proc/self/smaps", "r");

	cr_assert_not_null(f);
	snprintf(start, sizeof(start), "%lx-", (unsigned long)(uintptr_t)p);
	while (!all && fgets(line, sizeof(line), f)) {
		if (strncmp(line, start, strlen(start)) == 0)
			here = true;
		if (!here || strncmp(line, "VmFlags:", 8) != 0)
			continue;
		all = true;
		for (size_t i = 0; i < n; i++)
			all = all && strstr(line, flags[i]);
		break;
	}
	fclose(f);
	return all;
}

Test(ram, ram_mapping_not_inherited_not_dumped)
{
	static const char *const small[] = { " dc", " dd", " nr", " nh" };
	static const char *const huge[] = { " dc", " dd", " nr", " hg" };
	struct ram *ram = make(RAM_MIN_BYTES, RAM_HUGE_AUTO);

	cr_assert(has_flags(ram_slot(ram, 0)->hva, small, ARRAY_LEN(small)));
	ram_destroy(&ram);
	ram = make(RAM_MIN_BYTES, RAM_HUGE_ALWAYS);
	cr_assert(has_flags(ram_slot(ram, 0)->hva, huge, ARRAY_LEN(huge)));
	ram_destroy(&ram);
}

/* ---- what it costs ----------------------------------------------------------- */

Test(ram, ram_resident_counts_what_was_touched)
{
	struct ram *ram = make(HIGH_SIZE, RAM_HUGE_AUTO);
	uint8_t *low = ram_at(ram, gpa(MiB), MiB), *high = ram_at(ram, gpa(RAM_HOLE_END), MiB);

	cr_assert_eq(resident(ram), 0);
	memset(low, 1, MiB);
	high[0] = 1;
	cr_assert_eq(resident(ram), MiB + PAGE_BYTES);
	/* splits the mapping in three: all are still counted */
	ram_expect_dense(ram, gpa(16 * MiB), 32 * MiB);
	cr_assert_eq(resident(ram), MiB + PAGE_BYTES);
	ram_destroy(&ram);
}

/* Rss in smaps over all VMAs inside RAM: the other way to ask the kernel. */
static uint64_t smaps_resident(const struct ram *ram)
{
	uint64_t from = (uintptr_t)ram_slot(ram, 0)->hva, to = from + ram_size_bytes(ram), sum = 0;
	unsigned long start, end, kib;
	bool inside = false;
	char line[512];
	FILE *f = fopen("/proc/self/smaps", "r");

	cr_assert_not_null(f);
	while (fgets(line, sizeof(line), f)) {
		if (sscanf(line, "%lx-%lx ", &start, &end) == 2)
			inside = start >= from && end <= to;
		else if (inside && sscanf(line, "Rss: %lu kB", &kib) == 1)
			sum += kib * KiB;
	}
	fclose(f);
	return sum;
}

Test(ram, ram_resident_equals_smaps)
{
	struct ram *ram = make(RAM_HOLE_START + 64 * MiB, RAM_HUGE_AUTO);

	ram_expect_dense(ram, gpa(6 * MiB), 32 * MiB);
	for (uint64_t at = 0; at < 64 * MiB; at += 5 * PAGE_BYTES)
		*(uint8_t *)ram_at(ram, gpa(at), 1) = 1;
	for (uint64_t at = 0; at < 64 * MiB; at += 7 * PAGE_BYTES)
		*(uint8_t *)ram_at(ram, gpa(RAM_HOLE_END + at), 1) = 1;
	cr_assert_eq(resident(ram), smaps_resident(ram));
	cr_assert_eq(ram_discard(ram, gpa(8 * MiB), 9 * MiB), 0);
	cr_assert_eq(resident(ram), smaps_resident(ram));
	ram_destroy(&ram);
}

Test(ram, ram_discard_gives_back_and_zeroes)
{
	struct ram *ram = make(RAM_MIN_BYTES, RAM_HUGE_AUTO);
	uint8_t *p = ram_at(ram, gpa(0), MiB);

	memset(p, 0xee, MiB);
	cr_assert_eq(ram_discard(ram, gpa(PAGE_BYTES), 2 * PAGE_BYTES), 0);
	cr_assert_eq(resident(ram), MiB - 2 * PAGE_BYTES);
	cr_assert_eq(p[PAGE_BYTES - 1], 0xee);
	cr_assert_eq(p[PAGE_BYTES], 0);
	cr_assert_eq(p[3 * PAGE_BYTES - 1], 0);
	cr_assert_eq(p[3 * PAGE_BYTES], 0xee);
	ram_destroy(&ram);
}

Test(ram, ram_discard_not_whole_pages_in_one_slot_refused)
{
	struct ram *ram = make(HIGH_SIZE, RAM_HUGE_AUTO);
	struct ram_range bad = { gpa(RAM_HOLE_START - PAGE_BYTES), 2 * PAGE_BYTES };

	cr_assert_eq(ram_discard(ram, gpa(1), PAGE_BYTES), -EINVAL);
	cr_assert_eq(ram_discard(ram, gpa(0), PAGE_BYTES + 1), -EINVAL);
	cr_assert_eq(ram_discard(ram, gpa(0), 0), -EINVAL);
	cr_assert_eq(ram_discard(ram, bad.addr, bad.len_bytes), -EINVAL);
	cr_assert_eq(ram_discard(ram, gpa(RAM_HOLE_START), PAGE_BYTES), -EINVAL);
	cr_assert_eq(ram_discard_many(ram, &bad, 1), ram_discard_many(ram, NULL, 0));
	ram_destroy(&ram);
}

static int64_t many_covers; /* what the host says it did; -1: refuses */

static int64_t fake_many(const struct iovec *v, size_t n, int advice)
{
	errno = ENOSYS;
	return many_covers;
}

Test(ram, ram_discard_many_partly_done_says_how_far)
{
	static const struct mm_host host = { .mmap = failing_mmap, .munmap = munmap,
					     .madvise = madvise, .madvise_many = fake_many };
	struct ram_config cfg = { .size_bytes = RAM_MIN_BYTES, .host = &host };
	const struct ram_range r[] = { { gpa(0), PAGE_BYTES }, { gpa(MiB), 2 * PAGE_BYTES },
				       { gpa(2 * MiB), PAGE_BYTES } };
	struct ram *ram = NULL;

	calls_left = 1000;
	cr_assert_eq(ram_create(&ram, &cfg, NULL), 0);
	many_covers = 4 * PAGE_BYTES;
	cr_assert_eq(ram_discard_many(ram, r, ARRAY_LEN(r)), 3);
	many_covers = 2 * PAGE_BYTES; /* half of the second */
	cr_assert_eq(ram_discard_many(ram, r, ARRAY_LEN(r)), 1);
	many_covers = 0;
	cr_assert_lt(ram_discard_many(ram, r, ARRAY_LEN(r)), 0);
	many_covers = -1;
	cr_assert_eq(ram_discard_many(ram, r, ARRAY_LEN(r)), -ENOSYS);
	ram_destroy(&ram);
}
