/*
 * The only mapping of guest memory.
 *
 *   host:    guard | low slot ......... | high slot ............ | guard
 *            2 MiB   gpa 0 .. 3 GiB       gpa 4 GiB ..             >= 2 MiB
 *
 * One anonymous private mapping: pages that were never touched cost nothing,
 * and a discarded page comes back zeroed.  The two slots touch each other in
 * host memory and both start on a 2 MiB boundary of guest and host alike, so
 * that KVM can map huge pages; ram_at() keeps a buffer from crossing between
 * them.  MAP_NORESERVE because overcommit is the point.  The guards turn an
 * overrun of ours into a fault, and keep the kernel from merging the mapping
 * with a neighbour, so that every VMA in the range is guest RAM and nothing else.
 *
 * Huge pages: a guest's memory is scattered when it boots, and one touched page
 * would cost 2 MiB.  So small pages are asked for unless the setting is
 * `always`; ram_expect_dense() makes the exception for images loaded whole.
 *
 * Not in core dumps (a guest's secrets, and its size), not in children (a fork
 * would make every page copy-on-write, and a child keep it alive).
 *
 * Threads: the map never changes between create and destroy; lookups from any
 * thread.  Owner: whoever created it.
 *
 * Invariants: I1, I2 and I3 of mm.h.
 */
#include "mm/mm.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define RAM_SLOTS_MAX 2
#define GUARD_BYTES HUGE_BYTES
#define DISCARD_MANY_MAX 256 /* ranges in one call; more gain nothing (measured) */

struct ram {
	/* fixed at create */
	uint64_t size_bytes;
	enum ram_huge huge;
	const struct mm_host *host;
	uint8_t *map; /* the reservation, guards and all */
	uint64_t map_bytes;
	uint8_t *hva; /* where RAM starts in it */
	_Atomic uint32_t *lent; /* [size / 2 MiB]: buffers that devices write to */
	unsigned slot_count;
	struct ram_slot slots[RAM_SLOTS_MAX];

	/* owned by the loop thread */
	const struct ram_guard *guard;
	void *guard_ctx;
};

static bool is_aligned(uint64_t v, uint64_t to)
{
	return v % to == 0;
}

static int check_size(uint64_t bytes, struct err *e)
{
	char asked[32], limit[32];

	size_format(asked, sizeof(asked), bytes);
	if (bytes < RAM_MIN_BYTES)
		return err_set(e, -EINVAL, "memory: %s asked, the least is %s", asked,
			       size_format(limit, sizeof(limit), RAM_MIN_BYTES));
	if (bytes > RAM_MAX_BYTES)
		return err_set(e, -EINVAL, "memory: %s asked, the most is %s", asked,
			       size_format(limit, sizeof(limit), RAM_MAX_BYTES));
	if (!is_aligned(bytes, HUGE_BYTES))
		return err_set(e, -EINVAL,
			       "memory: %" PRIu64 " bytes asked, must be a multiple of %s",
			       bytes, size_format(limit, sizeof(limit), HUGE_BYTES));
	return 0;
}

static void place_slots(struct ram *ram)
{
	uint64_t low = ram->size_bytes < RAM_HOLE_START ? ram->size_bytes : RAM_HOLE_START;

	ram->slots[0] = (struct ram_slot){ gpa(0), low, ram->hva };
	ram->slot_count = 1;
	if (ram->size_bytes > low) {
		ram->slots[1] = (struct ram_slot){ gpa(RAM_HOLE_END), ram->size_bytes - low,
						   ram->hva + low };
		ram->slot_count = 2;
	}
}

/* Reserves address space with the guards, then puts RAM in the middle of it. */
static int map_ram(struct ram *ram, struct err *e)
{
	const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
	char asked[32];
	void *p;

	size_format(asked, sizeof(asked), ram->size_bytes);
	/* one HUGE_BYTES more than the guards, to align within */
	ram->map_bytes = ram->size_bytes + 2 * GUARD_BYTES + HUGE_BYTES;
	p = ram->host->mmap(NULL, ram->map_bytes, PROT_NONE, flags, -1, 0);
	if (p == MAP_FAILED)
		return err_set(e, -ENOMEM, "memory: %s asked, which does not fit in this process's "
			       "address space (see ulimit -v and vm.max_map_count): %s",
			       asked, strerror(errno));
	ram->map = p;
	ram->hva = ram->map + GUARD_BYTES;
	ram->hva += (HUGE_BYTES - (uintptr_t)ram->hva % HUGE_BYTES) % HUGE_BYTES;
	p = ram->host->mmap(ram->hva, ram->size_bytes, PROT_READ | PROT_WRITE, flags | MAP_FIXED,
			    -1, 0);
	if (p == MAP_FAILED)
		return err_set(e, -ENOMEM, "memory: %s asked, which the host refuses to promise "
			       "(see ulimit -v, ulimit -d and vm.overcommit_memory): %s",
			       asked, strerror(errno));
	return 0;
}

static int advise(const struct ram *ram, int advice, const char *what, struct err *e)
{
	if (ram->host->madvise(ram->hva, ram->size_bytes, advice) < 0)
		return err_sys(e, -errno, "memory: cannot mark guest RAM as %s", what);
	return 0;
}

static int advise_all(const struct ram *ram, struct err *e)
{
	int huge = ram->huge == RAM_HUGE_ALWAYS ? MADV_HUGEPAGE : MADV_NOHUGEPAGE;
	int rc;

	rc = advise(ram, MADV_DONTFORK, "not inherited", e);
	if (!rc)
		rc = advise(ram, MADV_DONTDUMP, "not dumped", e);
	/* A host without transparent huge pages says EINVAL: then there are only
	 * small ones, and nothing to ask for. */
	if (!rc && ram->host->madvise(ram->hva, ram->size_bytes, huge) < 0 && errno != EINVAL)
		rc = err_sys(e, -errno, "memory: cannot choose the page size of guest RAM");
	return rc;
}

int ram_create(struct ram **out, const struct ram_config *cfg, struct err *e)
{
	struct ram *ram = NULL;
	int rc;

	VERIFY(out && cfg);
	rc = check_size(cfg->size_bytes, e);
	if (rc)
		goto out_fail;
	ram = calloc(1, sizeof(*ram));
	if (!ram) {
		rc = err_sys(e, -ENOMEM, "memory: no memory for its description");
		goto out_fail;
	}
	ram->size_bytes = cfg->size_bytes;
	ram->huge = cfg->huge;
	ram->host = cfg->host ? cfg->host : &mm_host_linux;
	ram->lent = calloc(ram->size_bytes / HUGE_BYTES, sizeof(*ram->lent));
	if (!ram->lent) {
		rc = err_sys(e, -ENOMEM, "memory: no memory for its description");
		goto out_fail;
	}
	rc = map_ram(ram, e);
	if (!rc)
		rc = advise_all(ram, e);
	if (rc)
		goto out_fail;
	place_slots(ram);
	*out = ram;
	return 0;

out_fail:
	ram_destroy(&ram);
	return rc;
}

void ram_destroy(struct ram **ram)
{
	struct ram *r = *ram;

	*ram = NULL;
	if (!r)
		return;
	if (r->map && r->host->munmap(r->map, r->map_bytes) < 0)
		log_error("memory: cannot unmap guest RAM: %s", strerror(errno));
	free(r->lent);
	free(r);
}

uint64_t ram_size_bytes(const struct ram *ram)
{
	return ram->size_bytes;
}

unsigned ram_slot_count(const struct ram *ram)
{
	return ram->slot_count;
}

const struct ram_slot *ram_slot(const struct ram *ram, unsigned i)
{
	VERIFY(i < ram->slot_count);
	return &ram->slots[i];
}

/* The slot that holds all of [addr, addr + len_bytes), or NULL. */
static const struct ram_slot *find_slot(const struct ram *ram, uint64_t addr, uint64_t len_bytes)
{
	for (unsigned i = 0; i < ram->slot_count; i++) {
		const struct ram_slot *s = &ram->slots[i];

		/* below the base the difference wraps to more than any size */
		uint64_t off = addr - s->base.v;
		if (off < s->size_bytes && len_bytes <= s->size_bytes - off)
			return len_bytes ? s : NULL;
	}
	return NULL;
}

void *ram_at(const struct ram *ram, gpa_t addr, uint64_t len_bytes)
{
	const struct ram_slot *s = find_slot(ram, addr.v, len_bytes);

	if (!s) {
		counter_inc(CTR_ram_bad_gpa);
		return NULL;
	}
	return s->hva + (addr.v - s->base.v);
}

bool ram_index_of(const struct ram *ram, gfn_t frame, uint64_t *index)
{
	uint64_t before = 0;

	for (unsigned i = 0; i < ram->slot_count; i++) {
		uint64_t off = frame.v - (ram->slots[i].base.v >> PAGE_SHIFT);
		uint64_t pages = ram->slots[i].size_bytes >> PAGE_SHIFT;

		if (off < pages) {
			*index = before + off;
			return true;
		}
		before += pages;
	}
	return false;
}

gfn_t ram_gfn_at(const struct ram *ram, uint64_t index)
{
	uint64_t low_pages = ram->slots[0].size_bytes >> PAGE_SHIFT;

	VERIFY(index < ram->size_bytes >> PAGE_SHIFT);
	if (index < low_pages)
		return gfn(index);
	return gfn((RAM_HOLE_END >> PAGE_SHIFT) + (index - low_pages));
}

/* Where whole pages inside one slot lie, or NULL when the range is not that (I2). */
static uint8_t *whole_pages(const struct ram *ram, gpa_t addr, uint64_t len_bytes)
{
	const struct ram_slot *s = find_slot(ram, addr.v, len_bytes);

	if (!s || !is_aligned(addr.v, PAGE_BYTES) || !is_aligned(len_bytes, PAGE_BYTES))
		return NULL;
	return s->hva + (addr.v - s->base.v);
}

void ram_set_guard(struct ram *ram, const struct ram_guard *guard, void *ctx)
{
	ASSERT_ROLE(ROLE_LOOP);
	ram->guard = guard;
	ram->guard_ctx = ctx;
}

static int guard_before(const struct ram *ram, const struct ram_range *ranges, size_t n)
{
	return ram->guard ? ram->guard->before(ram->guard_ctx, ranges, n) : 0;
}

static void guard_after(const struct ram *ram)
{
	int saved = errno;

	if (ram->guard)
		ram->guard->after(ram->guard_ctx);
	errno = saved;
}

/* Not MADV_FREE, which would be cheaper: it leaves the pages on the host until
 * memory is short, and the guest may read its old content back (I3). */
int ram_discard(const struct ram *ram, gpa_t addr, uint64_t len_bytes)
{
	uint8_t *p = whole_pages(ram, addr, len_bytes);
	struct ram_range range = { addr, len_bytes };
	int rc;

	ASSERT_ROLE(ROLE_LOOP);
	if (!p)
		return -EINVAL;
	rc = guard_before(ram, &range, 1);
	if (rc)
		return rc;
	rc = ram->host->madvise(p, len_bytes, MADV_DONTNEED) < 0 ? -errno : 0;
	guard_after(ram);
	return rc;
}

/* How many of the ranges `bytes` covers whole. */
static int ranges_within(const struct iovec *v, size_t n, uint64_t bytes)
{
	size_t i;

	for (i = 0; i < n && v[i].iov_len <= bytes; i++)
		bytes -= v[i].iov_len;
	return (int)i;
}

int ram_discard_many(const struct ram *ram, const struct ram_range *ranges, size_t n)
{
	struct iovec v[DISCARD_MANY_MAX];
	size_t taken = 0;
	int64_t bytes;
	int whole;

	ASSERT_ROLE(ROLE_LOOP);
	if (!ram->host->madvise_many)
		return -ENOSYS;
	while (taken < n && taken < DISCARD_MANY_MAX) {
		uint8_t *p = whole_pages(ram, ranges[taken].addr, ranges[taken].len_bytes);

		if (!p)
			break;
		v[taken] = (struct iovec){ p, ranges[taken].len_bytes };
		taken++;
	}
	if (taken == 0)
		return -EINVAL;
	whole = guard_before(ram, ranges, taken);
	if (whole)
		return whole;
	bytes = ram->host->madvise_many(v, taken, MADV_DONTNEED);
	if (bytes < 0)
		bytes = -errno;
	guard_after(ram);
	if (bytes < 0)
		return (int)bytes;
	whole = ranges_within(v, taken, (uint64_t)bytes);
	return whole ? whole : -EIO;
}

void ram_expect_dense(const struct ram *ram, gpa_t addr, uint64_t len_bytes)
{
	const struct ram_slot *s = find_slot(ram, addr.v, len_bytes);
	uint64_t from, to;

	if (!s || ram->huge != RAM_HUGE_AUTO)
		return; /* ALWAYS has them all, NEVER wants none */
	from = (addr.v + HUGE_BYTES - 1) / HUGE_BYTES * HUGE_BYTES;
	to = (addr.v + len_bytes) / HUGE_BYTES * HUGE_BYTES;
	if (from >= to)
		return;
	/* A wish: without huge pages the guest runs all the same. */
	if (ram->host->madvise(s->hva + (from - s->base.v), to - from, MADV_HUGEPAGE) < 0)
		log_debug("memory: no huge pages for a dense image: %s", strerror(errno));
}

enum ram_huge ram_huge_setting(const struct ram *ram)
{
	return ram->huge;
}

/* ---- what devices write to -------------------------------------------------- */

static void count_lent(const struct ram *ram, const void *at, uint64_t bytes, uint32_t by)
{
	uint64_t from = (uint64_t)((const uint8_t *)at - ram->hva), to = from + bytes;

	VERIFY(bytes && from < to && to <= ram->size_bytes);
	for (uint64_t c = from / HUGE_BYTES; c <= (to - 1) / HUGE_BYTES; c++)
		atomic_fetch_add(&ram->lent[c], by);
}

void ram_lend(const struct ram *ram, const void *at, uint64_t bytes)
{
	count_lent(ram, at, bytes, 1);
}

void ram_returned(const struct ram *ram, const void *at, uint64_t bytes)
{
	count_lent(ram, at, bytes, UINT32_MAX); /* less one */
}

bool ram_is_lent(const struct ram *ram, uint64_t index, uint64_t pages)
{
	uint64_t from = index << PAGE_SHIFT, to = (index + pages) << PAGE_SHIFT;
	bool lent = false;

	for (uint64_t c = from / HUGE_BYTES; c <= (to - 1) / HUGE_BYTES; c++)
		lent |= atomic_load(&ram->lent[c]) != 0;
	return lent;
}

/* ---- resident bytes ------------------------------------------------------ */

/* One call of mincore, whose answer is a byte a page. */
#define RESIDENT_CHUNK_PAGES 4096u /* 16 MiB: as much as it holds locks for */

static int chunk_resident(uint8_t *at, uint64_t bytes, uint64_t *pages)
{
	unsigned char in_core[RESIDENT_CHUNK_PAGES];
	uint64_t n = bytes >> PAGE_SHIFT;

	if (mincore(at, bytes, in_core) < 0)
		return -errno;
	for (uint64_t i = 0; i < n; i++)
		*pages += in_core[i] & 1;
	return 0;
}

/* Pages mapped from a store, which has them in core. */
static uint64_t others(const struct ram *ram, uint64_t most)
{
	uint64_t n = ram->guard ? ram->guard->others_pages(ram->guard_ctx) : 0;

	return n < most ? n : most;
}

/* mincore and not smaps, which costs twenty times as much (19 ms against 1 ms for
 * 2 GiB in small pages, measured), needs /proc in the jail, and keeps the map
 * locked against vCPUs all the while.  The one difference: a page the guest has
 * only ever read, which is the kernel's zero page and costs nothing, counts here. */
int ram_resident_bytes(const struct ram *ram, uint64_t *bytes)
{
	const uint64_t chunk = RESIDENT_CHUNK_PAGES * PAGE_BYTES;
	uint64_t pages = 0;
	int rc = 0;

	for (uint64_t off = 0; off < ram->size_bytes && !rc; off += chunk) {
		uint64_t left = ram->size_bytes - off;

		rc = chunk_resident(ram->hva + off, left < chunk ? left : chunk, &pages);
	}
	if (!rc)
		*bytes = (pages - others(ram, pages)) << PAGE_SHIFT;
	return rc;
}
