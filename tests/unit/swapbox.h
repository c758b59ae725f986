/* swapbox: what the tests of mm/swap/ share: pages that are made from seeds, and a host
 * whose calls fail on request. */
#ifndef BRIM_TESTS_SWAPBOX_H
#define BRIM_TESTS_SWAPBOX_H

#include <criterion/criterion.h>

#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#include "mm/swap/internal.h"
#include "tests/unit/chance.h"

/* ---- pages ------------------------------------------------------------------- */

struct page { _Alignas(64) uint8_t b[PAGE_BYTES]; };

static inline void random_bytes(uint8_t *p, size_t n, uint64_t *state)
{
	for (size_t i = 0; i < n; i += sizeof(uint64_t)) {
		uint64_t v = mix(state);

		memcpy(p + i, &v, n - i < sizeof(v) ? n - i : sizeof(v));
	}
}

/* The page a seed stands for: `noise` bytes of it random, the rest repeats. */
static inline void packable(struct page *page, uint64_t seed, size_t noise)
{
	uint64_t state = seed;

	memset(page->b, (int)(seed % 255 + 1), sizeof(page->b));
	random_bytes(page->b, noise, &state);
}

/* n bytes of eight letters, then one letter: LZ4 takes some n bytes, zstd half. */
static inline void text(struct page *page, uint64_t seed, size_t n)
{
	uint64_t state = seed;

	memset(page->b, (int)(seed % 200 + 1), sizeof(page->b));
	for (size_t i = 0; i < n; i++)
		page->b[i] = "etaoinsh"[mix(&state) % 8];
}

static inline bool same(const struct page *a, const struct page *b)
{
	return memcmp(a->b, b->b, sizeof(a->b)) == 0;
}

/* ---- a host that counts, and fails on request -------------------------------- */

static _Atomic unsigned calls; /* drops on other threads make them, too */
static unsigned fail_at;       /* 0: never; the first call is 1 */
static int fail_error = ENOMEM;
static _Atomic bool discards_fail;
static bool has_no_thp;
static _Atomic unsigned advised; /* one bit for each advice given */

static inline bool call_fails(void)
{
	if (++calls != fail_at)
		return false;
	errno = fail_error;
	return true;
}

static inline void *host_mmap(void *addr, size_t len, int prot, int flags, int fd, int64_t off)
{
	return call_fails() ? MAP_FAILED : mmap(addr, len, prot, flags, fd, off);
}

static inline int host_munmap(void *addr, size_t len)
{
	return call_fails() ? -1 : munmap(addr, len);
}

static inline int host_madvise(void *addr, size_t len, int advice)
{
	if (call_fails())
		return -1;
	if (advice == MADV_DONTNEED && discards_fail) {
		errno = EAGAIN;
		return -1;
	}
	if (advice == MADV_NOHUGEPAGE && has_no_thp) {
		errno = EINVAL;
		return -1;
	}
	advised |= 1u << advice;
	return madvise(addr, len, advice);
}

#endif
