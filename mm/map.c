/*
 * Pages of a store mapped over guest RAM: reads cost nothing, and a write is broken off by
 * the kernel itself.  Isolated pages are STORED (share.c); here go runs of them.
 *
 *                     share.c: equal, frozen              a pass: written, the kernel has
 *                                                          made the guest a page of its own
 *     STAGED ────────────────────────────► SHARED ──────────────────────────► BROKEN
 *    (freezer)    the store is put over       │                                  │
 *                                             └── map_take_back(), map_forget() ─┴──► GUEST
 *
 *   Three mappings, and one way to change what guest RAM shows: pages of
 *
 *     store   privately mapped, never touched here
 *     blank   as large as guest RAM and like it, empty
 *
 *   are put over guest RAM by mremap() with MREMAP_DONTUNMAP.  That is one step: a touch
 *   finds the old mapping or the new one, with all its pages.  The blank's place for page n
 *   is n, and its VMA was once guest RAM's (same anon_vma, same offset), so that what is put
 *   over merges with its neighbours; the store's pieces merge where their pages are in a row.
 *
 *   share      The page is frozen in the freezer, its chunk watched: a touch waits.  Equal:
 *              the store's page is put over it, and registered with the engine's userfaultfd
 *              as all of RAM is.  Before that is done, reads and writes are right already:
 *              the mapping has no need of us.  (Registered for MISSING, a page that the store
 *              has lost is a fault, and ends the VM, rather than zeroes.)
 *   take back  UFFDIO_MOVE does not move pages out of a file's mapping, so they are copied:
 *              registered with a second userfaultfd, whose write-protection holds writers
 *              up, copied into the blank, put over, registered with the first again, and who
 *              waits is woken.  All pages of the range are copied, as between the last steps
 *              a page that is not there would be given as zeroes.
 *   discard    MADV_DONTNEED would show the store's page again, so an empty piece of the
 *              blank is put over first (zeroes are right).
 *
 *   Write-protection holds up whoever goes through the page tables: vCPUs, threads, the
 *   kernel's copies, and whoever is about to pin a page.  A page that was pinned before is
 *   written behind them, by a device: ram_lend() tells of such, and is asked after the
 *   protection is on.
 *
 * The passes go on over such ranges: asynchronous write-protection works on them too, a page
 * that is present and the file's is nobody's memory here, and one that is not the file's was
 * broken off.
 *
 * Threads: the one that shares, the reclaimer and whoever discards, under `take` and the
 * lock of the chunk; map_note() under the chunk's lock alone.
 *
 * Invariants:
 *  I1  Guest RAM is the store's mapping exactly where pages are SHARED or BROKEN; a range
 *      of one call lies in one chunk.
 *  I2  A use of a store page is dropped only when guest RAM shows it no more: it was broken
 *      off, which the kernel says under the lock, or another mapping was put over it.
 *  I3  The blank is empty but while its chunk's pages are copied; where it cannot be emptied
 *      (`dirty`), it is not used.
 *  I4  A chunk with a piece that could not be registered is `torn`: nothing leaves it before
 *      engine_watch() has had it registered again.
 */
#include "mm/internal.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define TRIES 3u
#define PAGEMAP_PRESENT ((uint64_t)1 << 63)
#define PAGEMAP_FILE ((uint64_t)1 << 61)
#define ROUND_PAGES 2048u /* taken back in a round */
#define PRESSED_AGE 4u    /* passes a lone page is unwritten before it is worth taking back */

/* ---- what a run costs and saves -------------------------------------------------- */

/* A run in the middle of guest RAM splits a VMA in three: 550 bytes of kernel memory and 8
 * us, once (measured).  That is to be a 32nd of what it saves.  What the guest touches
 * again weighs more: stored, each such page costs a round trip of 10 us and more, and
 * takes its 4 KiB until it is found equal again. */
#define RUN_BYTES 550u
#define OVERHEAD_SHARE 32u
#define TOUCH_WEIGHT 15u
#define SCARCE_WEIGHT 15u

bool map_worth(const struct map_cost *c)
{
	uint64_t cost = (uint64_t)RUN_BYTES * OVERHEAD_SHARE, half = c->vmas_most / 2, saved;

	if (c->vmas + 2 > c->vmas_most)
		return false;
	/* The fewer VMAs are left, the longer a run must be. */
	if (c->vmas > half)
		cost += cost * SCARCE_WEIGHT * (c->vmas - half) / half;
	saved = c->run_pages * PAGE_BYTES;
	saved += saved * TOUCH_WEIGHT * c->retouched / CHUNK_PAGES;
	return saved >= cost;
}

uint64_t map_least_run(const struct engine *e)
{
	struct map_cost c = { .vmas = atomic_load(&e->map.vmas), .vmas_most = e->map.vmas_most };

	for (c.run_pages = 1; c.run_pages < CHUNK_PAGES; c.run_pages++)
		if (map_worth(&c))
			return c.run_pages;
	return CHUNK_PAGES;
}

/* Other VMAs than these: threads and libraries, and a chunk watched beside one that is not. */
#define VMAS_RESERVE 8192u
#define VMAS_DEFAULT 65530u

static uint64_t vmas_most(const struct engine *e)
{
	uint64_t most = VMAS_DEFAULT, reserve = VMAS_RESERVE + e->pages.chunk_count;
	FILE *f = fopen("/proc/sys/vm/max_map_count", "re");
	char line[32] = "";

	if (f && fgets(line, sizeof(line), f) && strtoull(line, NULL, 10))
		most = strtoull(line, NULL, 10);
	if (f)
		fclose(f);
	return most > reserve ? most - reserve : 0;
}

static bool is_mapped(const struct page *p)
{
	return p->state == PAGE_SHARED || p->state == PAGE_BROKEN;
}

/* Where a VMA must end within the chunk or at its ends: no less than are. */
static uint64_t edges(const struct engine *e, uint64_t chunk)
{
	const struct page *p = &e->pages.page[chunk * CHUNK_PAGES];
	uint64_t n = 0, next = 0; /* the store page that would go on; 0: none is mapped */

	for (unsigned i = 0; i < CHUNK_PAGES; i++) {
		uint64_t here = is_mapped(&p[i]) ? share_store_page(p[i].payload) : 0;

		n += here != next;
		next = here ? here + 1 : 0;
	}
	return n + (next != 0);
}

static void count_vmas(struct engine *e, uint64_t chunk, uint64_t were)
{
	atomic_fetch_add(&e->map.vmas, edges(e, chunk) - were);
}

/* ---- setting up -------------------------------------------------------------------- */

static int register_with(struct engine *e, int uffd, void *at, uint64_t bytes, uint64_t mode)
{
	struct uffdio_register r = { .range = { (uint64_t)at, bytes }, .mode = mode };

	return e->host->ioctl(uffd, UFFDIO_REGISTER, &r) < 0 ? -errno : 0;
}

/* At a place where one was, if there is. */
static int map_store(struct engine *e)
{
	uint64_t bytes = (uint64_t)e->store.pages << PAGE_SHIFT;
	uint8_t *p = e->host->mmap(e->map.store, bytes, PROT_READ | PROT_WRITE,
				   MAP_PRIVATE | MAP_NORESERVE | (e->map.store ? MAP_FIXED : 0),
				   e->store.fd, 0);

	if (p == MAP_FAILED)
		return -errno;
	e->map.store = p;
	if (e->host->madvise(p, bytes, MADV_DONTFORK) < 0 ||
	    e->host->madvise(p, bytes, MADV_DONTDUMP) < 0)
		return -errno;
	/* A huge page of the store is nothing to the passes, and a host may have none. */
	if (e->host->madvise(p, bytes, MADV_NOHUGEPAGE) < 0 && errno != EINVAL)
		return -errno;
	return 0;
}

static int open_second(struct engine *e)
{
	struct uffdio_api api = { .api = UFFD_API, .features = UFFD_FEATURE_PAGEFAULT_FLAG_WP |
							       UFFD_FEATURE_WP_UNPOPULATED };

	e->map.uffd = e->host->userfaultfd(O_CLOEXEC);
	if (e->map.uffd < 0 || e->host->ioctl(e->map.uffd, UFFDIO_API, &api) < 0)
		return -errno;
	return 0;
}

/* Over the n pages from index on, what `from` has: or -errno, and nothing was changed. */
static int put_over(struct engine *e, void *from, uint64_t index, uint64_t n)
{
	const int flags = MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP;
	uint64_t bytes = n << PAGE_SHIFT;
	unsigned char in_core[CHUNK_PAGES];
	int rc;

	if (e->host->mremap(from, bytes, bytes, flags, page_at(e, index)) != MAP_FAILED)
		return 0;
	rc = -errno;
	/* The kernel unmaps first, and what it needs afterwards is small: but if it had none
	 * of it, there is a hole. */
	if (mincore(page_at(e, index), bytes, in_core) < 0)
		engine_dead(e, index, "its mapping is gone", rc);
	return rc;
}

/* Page 0 of RAM out of the blank, where it went with its VMA.  Lock held. */
static int first_page_home(struct engine *e)
{
	int64_t rc = -EAGAIN;

	for (unsigned i = 0; i < TRIES; i++) {
		if (!engine_has_page(e, e->map.blank))
			return 0; /* or it had none */
		rc = engine_move(e, page_at(e, 0), e->map.blank, 1);
	}
	if (!engine_has_page(e, e->map.blank))
		return 0;
	/* Pinned, say: then with the VMA, and the blank is of no use. */
	e->pages.chunk[0].torn = true;
	if (put_over(e, e->map.blank, 0, 1))
		engine_dead(e, 0, "it cannot be put back where it was", (int)rc);
	return -EBUSY;
}

/* A VMA like guest RAM's, by taking one page's along and letting that grow.  A touch of the
 * page waits meanwhile, as its chunk is watched.  Lock held. */
static int make_blank(struct engine *e)
{
	const int flags = MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP;
	uint64_t bytes = e->pages.count << PAGE_SHIFT;
	void *p = e->host->mmap(NULL, PAGE_BYTES, PROT_NONE,
				MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	int rc;

	if (p == MAP_FAILED)
		return -errno;
	e->map.blank = p;
	e->map.blank_bytes = PAGE_BYTES;
	if (e->host->mremap(page_at(e, 0), PAGE_BYTES, PAGE_BYTES, flags, p) == MAP_FAILED)
		return -errno;
	rc = first_page_home(e);
	if (rc)
		return rc;
	p = e->host->mremap(p, PAGE_BYTES, bytes, MREMAP_MAYMOVE, NULL);
	if (p == MAP_FAILED)
		return -errno;
	e->map.blank = p;
	e->map.blank_bytes = bytes;
	return register_with(e, e->map.uffd, p, bytes, UFFDIO_REGISTER_MODE_MISSING);
}

static int set_up(struct engine *e)
{
	struct chunk *c = &e->pages.chunk[0];
	int rc = map_store(e);

	if (!rc)
		rc = open_second(e);
	if (rc)
		return rc;
	pthread_mutex_lock(&e->take);
	pthread_mutex_lock(&c->lock);
	rc = engine_watch(e, 0);
	if (!rc)
		rc = make_blank(e);
	pthread_mutex_unlock(&c->lock);
	pthread_mutex_unlock(&e->take);
	return rc;
}

bool map_ready(struct engine *e)
{
	int rc;

	if (e->map.tried || e->store.fd <= 0)
		return atomic_load(&e->map.on);
	e->map.tried = true;
	e->map.vmas_most = vmas_most(e);
	rc = set_up(e);
	if (rc) {
		log_warn("memory: shared pages are stored, and none are mapped: %s", strerror(-rc));
		map_fini(e);
	}
	atomic_store(&e->map.on, rc == 0);
	return rc == 0;
}

void map_renew(struct engine *e)
{
	int rc = e->map.store ? map_store(e) : 0;

	if (!rc)
		return;
	log_warn("memory: shared pages are stored from now on, and none are mapped: %s", strerror(-rc));
	atomic_store(&e->map.on, false);
}

void map_fini(struct engine *e)
{
	if (e->map.uffd >= 0)
		e->host->close(e->map.uffd);
	if (e->map.blank)
		e->host->munmap(e->map.blank, e->map.blank_bytes);
	if (e->map.store)
		e->host->munmap(e->map.store, (uint64_t)e->store.pages << PAGE_SHIFT);
	e->map.uffd = -1;
	e->map.blank = e->map.store = NULL;
}

/* ---- changing what guest RAM shows ------------------------------------------------ */

static uint8_t *blank_at(const struct engine *e, uint64_t index)
{
	return e->map.blank + (index << PAGE_SHIFT);
}

/* The engine's again, as all of its chunk is. */
static void register_piece(struct engine *e, uint64_t index, uint64_t n)
{
	if (register_with(e, e->uffd, page_at(e, index), n << PAGE_SHIFT,
			  UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_WP)) {
		counter_inc(CTR_engine_map_torn);
		chunk_of(&e->pages, index)->torn = true;
	}
}

bool map_put(struct engine *e, const struct mm_same *s, uint64_t n)
{
	struct chunk *c = chunk_of(&e->pages, s->page);
	uint64_t were = edges(e, s->page / CHUNK_PAGES);
	struct map_cost cost = { n, c->retouched, atomic_load(&e->map.vmas), e->map.vmas_most };

	if (!map_worth(&cost)) {
		counter_add(CTR_engine_map_unworthy, n);
		return false;
	}
	if (put_over(e, e->map.store + ((uint64_t)s->store_page << PAGE_SHIFT), s->page, n)) {
		counter_inc(CTR_engine_map_errors);
		return false;
	}
	register_piece(e, s->page, n);
	for (uint64_t i = 0; i < n; i++) {
		const uint8_t *mine = slot_at(e, e->pages.page[s[i].page].payload);

		page_set(&e->pages, s[i].page, PAGE_SHARED, share_payload(s[i].store_page, mine));
	}
	count_vmas(e, s->page / CHUNK_PAGES, were);
	counter_inc(CTR_engine_mapped_runs);
	counter_add(CTR_engine_mapped, n);
	counter_add(CTR_engine_shared, n);
	return true;
}

/* The pages show nothing of the store any more. */
static void now_guest(struct engine *e, uint64_t index, uint64_t n, uint64_t were)
{
	for (uint64_t i = index; i < index + n; i++) {
		struct page was = e->pages.page[i];

		page_set(&e->pages, i, PAGE_GUEST, 0);
		if (was.state == PAGE_SHARED)
			share_drop(e, was.payload);
	}
	count_vmas(e, index / CHUNK_PAGES, were);
}

static bool blank_is_clean(struct engine *e)
{
	if (e->map.dirty &&
	    e->host->madvise(e->map.blank, e->map.blank_bytes, MADV_DONTNEED) == 0)
		e->map.dirty = false;
	return !e->map.dirty;
}

/* Mapped pages in a row from index on, at most most. */
static uint64_t mapped_run(const struct engine *e, uint64_t index, uint64_t most)
{
	uint64_t n = 0;

	while (n < most && is_mapped(&e->pages.page[index + n]))
		n++;
	return n;
}

static int forget_run(struct engine *e, uint64_t index, uint64_t n)
{
	uint64_t were = edges(e, index / CHUNK_PAGES);
	int rc = blank_is_clean(e) ? put_over(e, blank_at(e, index), index, n) : -EAGAIN;

	if (rc) {
		counter_inc(CTR_engine_map_errors);
		return rc;
	}
	register_piece(e, index, n);
	now_guest(e, index, n, were);
	for (uint64_t i = index; i < index + n; i++)
		e->pages.page[i].present = 0;
	counter_add(CTR_engine_discarded_away, n);
	return 0;
}

int map_forget(struct engine *e, uint64_t index, uint64_t n)
{
	int rc = 0;

	for (uint64_t i = index; i < index + n && !rc;) {
		uint64_t run = mapped_run(e, i, index + n - i);

		rc = run ? forget_run(e, i, run) : 0;
		i += run ? run : 1;
	}
	return rc;
}

/* ---- taking back ------------------------------------------------------------------- */

/* What must succeed for the guest to go on, and needs nothing of the kernel's but to be
 * done. */
static void must(struct engine *e, unsigned long request, void *arg, uint64_t index)
{
	for (unsigned tries = 0; tries < TRIES; tries++)
		if (e->host->ioctl(e->map.uffd, request, arg) >= 0)
			return;
	engine_dead(e, index, "writes to it cannot be let go", -errno);
}

/* Writers wait from here on. */
static int hold_writes(struct engine *e, uint64_t index, uint64_t n)
{
	struct uffdio_range r = { (uint64_t)page_at(e, index), n << PAGE_SHIFT };
	struct uffdio_writeprotect w = { .range = r, .mode = UFFDIO_WRITEPROTECT_MODE_WP };
	int rc;

	rc = register_with(e, e->map.uffd, page_at(e, index), r.len, UFFDIO_REGISTER_MODE_WP);
	if (!rc && e->host->ioctl(e->map.uffd, UFFDIO_WRITEPROTECT, &w) < 0)
		rc = -errno;
	return rc;
}

/* As they were: the store's mapping, the engine's again. */
static void let_writes(struct engine *e, uint64_t index, uint64_t n)
{
	struct uffdio_range r = { (uint64_t)page_at(e, index), n << PAGE_SHIFT };

	must(e, UFFDIO_UNREGISTER, &r, index);
	must(e, UFFDIO_WAKE, &r, index);
	register_piece(e, index, n);
}

/* The pages as they are, into the blank. */
static int copy_out(struct engine *e, uint64_t index, uint64_t n)
{
	uint64_t done = 0;

	for (unsigned tries = 0; done < n && tries < TRIES; tries++) {
		struct uffdio_copy c = { .dst = (uint64_t)blank_at(e, index + done),
					 .src = (uint64_t)page_at(e, index + done),
					 .len = (n - done) << PAGE_SHIFT };

		if (!e->host->ioctl(e->map.uffd, UFFDIO_COPY, &c))
			return 0;
		done += c.copy > 0 ? (uint64_t)c.copy >> PAGE_SHIFT : 0;
	}
	return -EAGAIN;
}

static int take_held(struct engine *e, uint64_t index, uint64_t n)
{
	int rc = -EBUSY;

	if (ram_is_lent(e->ram, index, n))
		counter_add(CTR_engine_map_lent, n);
	else
		rc = copy_out(e, index, n);
	return rc ? rc : put_over(e, blank_at(e, index), index, n);
}

int map_take_back(struct engine *e, uint64_t index, uint64_t n)
{
	struct uffdio_range r = { (uint64_t)page_at(e, index), n << PAGE_SHIFT };
	uint64_t were = edges(e, index / CHUNK_PAGES), shown = 0;
	int rc;

	VERIFY(n && index / CHUNK_PAGES == (index + n - 1) / CHUNK_PAGES);
	if (!blank_is_clean(e))
		return -EAGAIN;
	if (e->host->ioctl(e->uffd, UFFDIO_UNREGISTER, &r) < 0) {
		rc = -errno;
		chunk_of(&e->pages, index)->torn = true; /* some of it, perhaps */
		atomic_store(&e->map.news, true);
		return rc;
	}
	rc = hold_writes(e, index, n);
	if (!rc)
		rc = take_held(e, index, n);
	if (rc) {
		e->map.dirty = true;
		atomic_store(&e->map.news, true); /* again in the next round */
		let_writes(e, index, n);
		counter_inc(CTR_engine_map_errors);
		return rc;
	}
	register_piece(e, index, n);
	must(e, UFFDIO_WAKE, &r, index);
	for (uint64_t i = index; i < index + n; i++)
		shown += e->pages.page[i].state == PAGE_SHARED;
	now_guest(e, index, n, were);
	atomic_fetch_add(&e->present_pages, shown); /* the others were counted */
	atomic_fetch_add(&e->arrived_pages, shown);
	counter_add(CTR_engine_taken_back, n);
	return 0;
}

/* ---- passes and rounds ---------------------------------------------------------------- */

/* The pass may have looked before the page was mapped, hence the second look. */
static bool is_broken_off(const struct engine *e, uint64_t index)
{
	uint64_t entry;

	return e->host->pread(e->pagemap, &entry, sizeof(entry),
			      (int64_t)((uintptr_t)page_at(e, index) / PAGE_BYTES *
					sizeof(entry))) == (int64_t)sizeof(entry) &&
	       (entry & (PAGEMAP_PRESENT | PAGEMAP_FILE)) == PAGEMAP_PRESENT;
}

bool map_note(struct engine *e, uint64_t index, uint64_t categories)
{
	struct page *p = &e->pages.page[index];

	if (!(categories & PAGE_IS_PRESENT) || categories & PAGE_IS_FILE)
		return false;
	if (p->state == PAGE_SHARED) {
		if (!is_broken_off(e, index))
			return false;
		page_set(&e->pages, index, PAGE_BROKEN, p->payload);
		share_drop(e, p->payload);
		counter_inc(CTR_engine_broken_off);
		atomic_store(&e->map.news, true);
	} else if (categories & PAGE_IS_WRITTEN) {
		p->age = 0;
	} else {
		p->age += p->age < ENGINE_AGES - 1;
	}
	return true;
}

/* Pages in a row from index on, broken off and as old as that. */
static uint64_t broken_run(const struct engine *e, uint64_t index, uint64_t end, unsigned age)
{
	uint64_t n = 0;

	while (index + n < end && e->pages.page[index + n].state == PAGE_BROKEN &&
	       e->pages.page[index + n].age >= age)
		n++;
	return n;
}

/* Which of a run of mapped pages: all, where most are broken off; of others what is a run
 * itself, and under pressure what can go on to be packed. */
static uint64_t tidy_run(struct engine *e, uint64_t index, uint64_t n, uint64_t least)
{
	uint64_t broken = 0, done = 0;

	for (uint64_t i = index; i < index + n; i++)
		broken += e->pages.page[i].state == PAGE_BROKEN;
	if (2 * broken >= n)
		return map_take_back(e, index, n) ? 0 : n;
	for (uint64_t i = index; broken && i < index + n;) {
		uint64_t run = broken_run(e, i, index + n, least == 1 ? PRESSED_AGE : 0);

		if (run && run >= least && !map_take_back(e, i, run))
			done += run;
		i += run ? run : 1;
	}
	return done;
}

static uint64_t tidy_chunk(struct engine *e, uint64_t chunk, uint64_t least)
{
	struct chunk *c = &e->pages.chunk[chunk];
	uint64_t end = (chunk + 1) * CHUNK_PAGES, done = 0;

	pthread_mutex_lock(&e->take);
	pthread_mutex_lock(&c->lock);
	for (uint64_t i = chunk * CHUNK_PAGES; c->broken && i < end;) {
		uint64_t run = mapped_run(e, i, end - i);

		done += run ? tidy_run(e, i, run, least) : 0;
		i += run ? run : 1;
	}
	pthread_mutex_unlock(&c->lock);
	pthread_mutex_unlock(&e->take);
	return done;
}

void map_round(struct engine *e, bool over)
{
	uint64_t least, done = 0;

	if (!atomic_load(&e->pages.in_state[PAGE_BROKEN]) ||
	    (!atomic_exchange(&e->map.news, false) && !over))
		return;
	least = map_least_run(e);
	if (over && atomic_load(&e->map.vmas) < e->map.vmas_most / 2)
		least = 1;
	for (uint64_t n = 0; n < e->pages.chunk_count && done < ROUND_PAGES; n++) {
		done += tidy_chunk(e, e->map.cursor, least);
		e->map.cursor = (e->map.cursor + 1) % e->pages.chunk_count;
	}
	if (done >= ROUND_PAGES)
		atomic_store(&e->map.news, true);
}
