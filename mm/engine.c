/*
 * The engine put together: what it needs from the kernel, its staging area, what
 * others call.  How pages go is in reclaim.c, how they come back in fault.c.
 *
 *   guest RAM   registered for write-protect, asynchronously: the kernel notes
 *               writes by itself, and PAGEMAP_SCAN reads and re-arms the notes.
 *               A chunk of 2 MiB is registered for MISSING as well when the first
 *               page in it is taken, so that memory nobody took faults as ever.
 *   staging     an area of its own.  A page in it cannot be touched by the guest:
 *               what is compared or compressed there holds still.
 *
 * Threads: create and destroy from one; the rest as mm.h says.
 */
#include "mm/internal.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define STAGING_MIN_BYTES (8 * MiB)
#define STAGING_SHARE 64
#define PASS_NS 100000000u
#define MOVE_TRIES 100u

#define FEATURES                                                                            \
	(UFFD_FEATURE_WP_ASYNC | UFFD_FEATURE_WP_UNPOPULATED | UFFD_FEATURE_MOVE |           \
	 UFFD_FEATURE_THREAD_ID)

/* Wakes whoever waits for a fault of either kind. */
static void wake_all(struct engine *e)
{
	struct uffdio_range r = { (uint64_t)e->base, e->pages.count << PAGE_SHIFT };
	int failed = e->host->ioctl(e->uffd, UFFDIO_WAKE, &r) < 0;

	if (e->map.uffd >= 0)
		failed |= e->host->ioctl(e->map.uffd, UFFDIO_WAKE, &r) < 0;
	if (failed)
		log_guest("memory: cannot wake those who wait: %s", strerror(errno));
}

/* Nothing is there any more, so that who touches it gets an error. */
static void fence(struct engine *e, uint64_t index)
{
	const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED;

	if (e->host->mmap(page_at(e, index), PAGE_BYTES, PROT_NONE, flags, -1, 0) == MAP_FAILED)
		log_guest("memory: cannot fence off a page: %s", strerror(errno));
	wake_all(e);
}

void engine_dead(struct engine *e, uint64_t index, const char *what, int rc)
{
	char why[400]; /* as long as describe()'s, and the rest */
	uint64_t none = NO_PAGE;

	counter_inc(CTR_engine_lost_pages);
	if (atomic_compare_exchange_strong(&e->dead, &none, index)) {
		snprintf(why, sizeof(why),
			 "memory: page 0x%" PRIx64 " cannot be brought back: %s: %s",
			 gpa_of(ram_gfn_at(e->ram, index)).v, what, strerror(-rc));
		if (!e->fatal)
			brim_panic(__FILE__, __LINE__, "%s", why);
		e->fatal(e->fatal_ctx, why);
	}
	if (atomic_load(&e->given_up))
		fence(e, index);
}

/* Whoever waits for a dead page now is woken to fault again, and engine_dead() is asked
 * again.  The first one may be none that a fault finds dead, so it is fenced off here. */
void engine_give_up(struct engine *e)
{
	uint64_t index;

	atomic_store(&e->given_up, true);
	index = atomic_load(&e->dead);
	if (index != NO_PAGE)
		fence(e, index);
	else
		wake_all(e);
}

int engine_has_page(const struct engine *e, const void *at)
{
	uint64_t entry = 0;

	for (unsigned tries = 0; tries < 3; tries++)
		if (e->host->pread(e->pagemap, &entry, sizeof(entry),
				   (int64_t)((uintptr_t)at / PAGE_BYTES * sizeof(entry))) ==
		    (int64_t)sizeof(entry))
			return entry >> 62 != 0; /* present, or swapped by the host */
	return -EIO;
}

/* Linux 6.18 has been seen to move a page, then to say EEXIST, as if it had found it
 * at the far end: once in some 100,000 moves on a busy machine.  To believe it is to
 * lose the page.  So look where the page is: 1 moved after all, 0 not, or -errno. */
static int moved_after_all(const struct engine *e, const void *to, const void *from)
{
	int there = engine_has_page(e, to), here = engine_has_page(e, from);

	if (there < 0 || here < 0)
		return -EIO;
	if (!there || here)
		return 0;
	counter_inc(CTR_engine_moves_unsaid);
	return 1;
}

static int refused_move(const struct engine *e, const void *to, const void *from, int error)
{
	int moved = error == -EEXIST || error == -ENOENT ? moved_after_all(e, to, from) : 0;

	return moved ? moved : error;
}

int64_t engine_move(struct engine *e, void *to, void *from, uint64_t n)
{
	struct uffdio_move m;

	for (unsigned tries = 0; tries < MOVE_TRIES; tries++) {
		m = (struct uffdio_move){ .dst = (uint64_t)to, .src = (uint64_t)from,
					  .len = n << PAGE_SHIFT };
		if (!e->host->ioctl(e->uffd, UFFDIO_MOVE, &m))
			return (int64_t)n;
		if (m.move >= (int64_t)PAGE_BYTES)
			return m.move >> PAGE_SHIFT;
		if (errno == EAGAIN)
			continue;
		if (errno == EINVAL && n > 1) {
			n /= 2; /* more than one VMA, as map.c may leave them */
			continue;
		}
		return refused_move(e, to, from, -errno);
	}
	return -EAGAIN;
}

static int register_range(struct engine *e, void *at, uint64_t bytes, uint64_t mode)
{
	struct uffdio_register r = { .range = { (uint64_t)at, bytes }, .mode = mode };

	return e->host->ioctl(e->uffd, UFFDIO_REGISTER, &r) < 0 ? -errno : 0;
}

/* Lock of the chunk held. */
int engine_watch(struct engine *e, uint64_t chunk)
{
	struct chunk *c = &e->pages.chunk[chunk];
	int rc;

	if (c->watched && !c->torn)
		return 0;
	rc = register_range(e, page_at(e, chunk * CHUNK_PAGES), HUGE_BYTES,
			    UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_WP);
	if (rc) {
		counter_inc(CTR_engine_unwatchable);
		return rc;
	}
	c->torn = false;
	if (c->watched)
		return 0;
	c->watched = true;
	counter_inc(CTR_engine_watched);
	atomic_fetch_add(&e->watched_chunks, 1);
	return 0;
}

int engine_disarm(struct engine *e, uint64_t chunk)
{
	struct uffdio_writeprotect w = {
		.range = { (uint64_t)page_at(e, chunk * CHUNK_PAGES), HUGE_BYTES },
	};

	return e->host->ioctl(e->uffd, UFFDIO_WRITEPROTECT, &w) < 0 ? -errno : 0;
}

/* There is no way from MISSING and WP to WP alone but through nothing: to register
 * for less is answered with 0 and changes nothing (Linux 6.18, and its source).
 *
 * Between the two calls a touch of a missing page gives a page of zeroes, which is
 * right as nothing is away; and a write goes unnoted, which is right as unregistering
 * has dropped the notes, so that every page looks written.  Unregistering wakes who
 * waits for a fault here; whose message was read already finds the lock taken, and
 * then a page or none, as with any fault on a page of the guest's. */
int engine_unwatch(struct engine *e, uint64_t chunk)
{
	struct chunk *c = &e->pages.chunk[chunk];
	struct uffdio_range r = { (uint64_t)page_at(e, chunk * CHUNK_PAGES), HUGE_BYTES };
	int rc = 0;

	VERIFY(c->away == 0 && c->watched);
	c->torn = false; /* all of it is registered anew, or bare */
	if (e->host->ioctl(e->uffd, UFFDIO_UNREGISTER, &r) < 0)
		return -errno;
	c->watched = false;
	atomic_fetch_sub(&e->watched_chunks, 1);
	for (unsigned tries = 0; tries < 3; tries++) {
		rc = register_range(e, (void *)r.start, r.len, UFFDIO_REGISTER_MODE_WP);
		if (!rc)
			return 0;
	}
	/* PAGEMAP_SCAN refuses the whole of RAM for this: the next round tries again. */
	e->bare = chunk + 1;
	return rc;
}

static int open_uffd(struct engine *e, struct err *err)
{
	struct uffdio_api api = { .api = UFFD_API, .features = FEATURES };

	e->uffd = e->host->userfaultfd(O_CLOEXEC);
	if (e->uffd < 0)
		return err_sys(err, -errno, "memory: no userfaultfd (run as root, or give this user "
			       "/dev/userfaultfd or vm.unprivileged_userfaultfd=1)");
	if (e->host->ioctl(e->uffd, UFFDIO_API, &api) < 0)
		return err_set(err, -ENOSYS, "memory: this kernel's userfaultfd cannot move pages or "
			       "note writes (Linux 6.8 or later is needed)");
	return 0;
}

/* Its slots, and behind them the freezer's. */
static int map_staging(struct engine *e, uint64_t slot_bytes, struct err *err)
{
	uint64_t bytes = slot_bytes + FREEZER_SLOTS * PAGE_BYTES;
	uint8_t *p = e->host->mmap(NULL, bytes + HUGE_BYTES, PROT_READ | PROT_WRITE,
				   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	int rc;

	if (p == MAP_FAILED)
		return err_sys(err, -errno, "memory: no address space for staging");
	e->staging_map = p;
	p += (HUGE_BYTES - (uintptr_t)p % HUGE_BYTES) % HUGE_BYTES;
	e->staging = p;
	e->slots = slot_bytes >> PAGE_SHIFT;
	if (e->host->madvise(p, bytes, MADV_DONTFORK) < 0 ||
	    e->host->madvise(p, bytes, MADV_DONTDUMP) < 0)
		return err_sys(err, -errno, "memory: cannot set up staging");
	if (e->host->madvise(p, bytes, MADV_NOHUGEPAGE) < 0 && errno != EINVAL)
		return err_sys(err, -errno, "memory: cannot choose staging's page size");
	rc = register_range(e, p, bytes, UFFDIO_REGISTER_MODE_WP);
	if (rc)
		return err_sys(err, rc, "memory: cannot register staging");
	return 0;
}

static int map_stop_page(struct engine *e, struct err *err)
{
	void *p = e->host->mmap(NULL, PAGE_BYTES, PROT_READ | PROT_WRITE,
				MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	int rc;

	if (p == MAP_FAILED)
		return err_sys(err, -errno, "memory: no address space for a page");
	e->stop_page = p;
	rc = register_range(e, p, PAGE_BYTES, UFFDIO_REGISTER_MODE_MISSING);
	return rc ? err_sys(err, rc, "memory: cannot register a page") : 0;
}

/* ---- discarding ------------------------------------------------------------- */

static void forget_page(struct engine *e, uint64_t index)
{
	struct page was = e->pages.page[index];

	if (was.state == PAGE_GUEST || was.state == PAGE_SHARED || was.state == PAGE_BROKEN)
		return;
	/* A staged page's slot is emptied when the reclaimer comes by. */
	page_set(&e->pages, index, PAGE_GUEST, 0);
	if (was.state == PAGE_STORED)
		share_drop(e, was.payload);
	else if (was.state != PAGE_STAGED)
		e->tier->drop(e->tier_ctx, was.payload);
	counter_inc(CTR_engine_discarded_away);
}

static int forget_range(struct engine *e, uint64_t index, uint64_t n)
{
	int rc = 0;

	while (n && !rc) {
		struct chunk *c = chunk_of(&e->pages, index);
		uint64_t here = CHUNK_PAGES - index % CHUNK_PAGES;

		if (here > n)
			here = n;
		pthread_mutex_lock(&c->lock);
		for (uint64_t i = 0; c->away && i < here; i++)
			forget_page(e, index + i);
		rc = c->away ? map_forget(e, index, here) : 0;
		pthread_mutex_unlock(&c->lock);
		index += here;
		n -= here;
	}
	return rc;
}

/* What is away is forgotten first: a fault that came in between would otherwise
 * bring old bytes back behind the discard.  No page leaves meanwhile (`take`). */
static int before_discard(void *ctx, const struct ram_range *ranges, size_t n)
{
	struct engine *e = ctx;
	int rc = 0;

	pthread_mutex_lock(&e->take);
	for (size_t i = 0; i < n && !rc; i++) {
		uint64_t index;

		/* ram.c has found it whole and inside one slot */
		VERIFY(ram_index_of(e->ram, gfn(ranges[i].addr.v >> PAGE_SHIFT), &index));
		rc = forget_range(e, index, ranges[i].len_bytes >> PAGE_SHIFT);
	}
	if (rc)
		pthread_mutex_unlock(&e->take);
	return rc;
}

static void after_discard(void *ctx)
{
	struct engine *e = ctx;

	pthread_mutex_unlock(&e->take);
}

static uint64_t others_pages(void *ctx)
{
	return atomic_load(&((struct engine *)ctx)->pages.in_state[PAGE_SHARED]);
}

static const struct ram_guard guard = {
	.before = before_discard, .after = after_discard, .others_pages = others_pages,
};

bool engine_moved(struct engine *e, uint64_t index, const struct mm_move *m)
{
	struct chunk *c = chunk_of(&e->pages, index);
	struct page *p = &e->pages.page[index];
	bool there;

	VERIFY(m->kept == MM_PACKED || m->kept == MM_DISK);
	pthread_mutex_lock(&c->lock);
	there = (p->state == PAGE_PACKED || p->state == PAGE_DISK) && p->payload == m->from &&
		!p->reading;
	if (there)
		page_set(&e->pages, index, m->kept == MM_DISK ? PAGE_DISK : PAGE_PACKED, m->to);
	pthread_mutex_unlock(&c->lock);
	return there;
}

/* ---- create and destroy --------------------------------------------------- */

static int set_up(struct engine *e, const struct engine_config *cfg, struct err *err)
{
	uint64_t ram_bytes = ram_size_bytes(e->ram);
	uint64_t staging = cfg->staging_bytes ? cfg->staging_bytes : ram_bytes / STAGING_SHARE;
	int rc;

	if (!cfg->staging_bytes && staging < STAGING_MIN_BYTES)
		staging = STAGING_MIN_BYTES;
	staging = (staging + HUGE_BYTES - 1) / HUGE_BYTES * HUGE_BYTES;
	VERIFY(cfg->fault_threads <= FAULT_THREADS_MAX);
	rc = pages_init(&e->pages, e->host, ram_bytes >> PAGE_SHIFT);
	if (rc)
		return err_sys(err, rc, "memory: no room for the page table");
	rc = open_uffd(e, err);
	if (rc)
		return rc;
	e->pagemap = e->host->pagemap();
	if (e->pagemap < 0)
		return err_sys(err, -errno, "memory: cannot open /proc/self/pagemap");
	rc = map_staging(e, staging, err);
	if (!rc)
		rc = map_stop_page(e, err);
	if (rc)
		return rc;
	e->slot_owner = malloc(e->slots * sizeof(*e->slot_owner));
	e->regions = malloc(SCAN_REGIONS * sizeof(*e->regions));
	e->rearmed = malloc(SCAN_REGIONS * sizeof(*e->rearmed));
	e->unpacked = malloc(PAGE_BYTES);
	if (!e->slot_owner || !e->regions || !e->rearmed || !e->unpacked)
		return err_sys(err, -ENOMEM, "memory: no room for the engine's tables");
	memset(e->slot_owner, 0xff, e->slots * sizeof(*e->slot_owner));
	rc = register_range(e, e->base, ram_bytes, UFFDIO_REGISTER_MODE_WP);
	if (rc)
		return err_sys(err, rc, "memory: cannot register guest RAM");
	ram_set_guard(e->ram, &guard, e);
	rc = e->tier->pin ? reader_create(&e->reader, e) : 0;
	if (!rc && e->touchers.hold)
		rc = place_create(&e->placer, e);
	if (!rc)
		rc = fault_start(e, cfg->fault_threads ? cfg->fault_threads : 1);
	if (!rc && !cfg->manual)
		rc = reclaim_start(e);
	return rc ? err_sys(err, rc, "memory: cannot start the engine's threads") : 0;
}

int engine_create(struct engine **out, const struct engine_config *cfg, struct err *err)
{
	struct engine *e = calloc(1, sizeof(*e));
	int rc;

	VERIFY(out && cfg && cfg->ram && cfg->tier);
	if (!e)
		return err_sys(err, -ENOMEM, "memory: no room for the engine");
	e->ram = cfg->ram;
	e->host = cfg->host ? cfg->host : &mm_host_linux;
	e->tier = cfg->tier;
	e->tier_ctx = cfg->tier_ctx;
	e->fatal = cfg->fatal;
	e->fatal_ctx = cfg->fatal_ctx;
	e->pass_ns = cfg->pass_ns ? cfg->pass_ns : PASS_NS;
	e->manual = cfg->manual;
	e->base = ram_slot(e->ram, 0)->hva;
	e->uffd = e->pagemap = e->map.uffd = -1;
	e->dead = NO_PAGE;
	e->touchers = cfg->touchers;
	e->leaving = cfg->leaving;
	e->leaving_ctx = cfg->leaving_ctx;
	e->huge = ram_huge_setting(e->ram) != RAM_HUGE_NEVER;
	pthread_mutex_init(&e->take, NULL);
	pthread_mutex_init(&e->turn, NULL);
	pthread_mutex_init(&e->wake_lock, NULL);
	pthread_cond_init(&e->wake, NULL);
	rc = set_up(e, cfg, err);
	if (rc)
		engine_destroy(&e);
	else
		*out = e;
	return rc;
}

void engine_destroy(struct engine **ep)
{
	struct engine *e = *ep;

	*ep = NULL;
	if (!e)
		return;
	ram_set_guard(e->ram, NULL, NULL);
	reclaim_stop(e);
	fault_stop(e);
	place_destroy(&e->placer);
	reader_destroy(&e->reader);
	map_fini(e);
	if (e->uffd >= 0)
		e->host->close(e->uffd);
	if (e->pagemap >= 0)
		e->host->close(e->pagemap);
	if (e->stop_page)
		e->host->munmap(e->stop_page, PAGE_BYTES);
	if (e->staging_map)
		e->host->munmap(e->staging_map, ((e->slots + FREEZER_SLOTS) << PAGE_SHIFT) +
					       HUGE_BYTES);
	pages_fini(&e->pages);
	free(e->slot_owner);
	free(e->regions);
	free(e->rearmed);
	free(e->unpacked);
	pthread_cond_destroy(&e->wake);
	pthread_mutex_destroy(&e->wake_lock);
	pthread_mutex_destroy(&e->take);
	pthread_mutex_destroy(&e->turn);
	free(e);
}

/* ---- being told, and telling ------------------------------------------------- */

void engine_wake_reclaimer(struct engine *e)
{
	pthread_mutex_lock(&e->wake_lock);
	pthread_cond_signal(&e->wake);
	pthread_mutex_unlock(&e->wake_lock);
}

void engine_limit(struct engine *e, uint64_t bytes)
{
	atomic_store(&e->limit_bytes, bytes);
	engine_wake_reclaimer(e);
}

void engine_reclaim(struct engine *e, uint64_t bytes)
{
	atomic_fetch_add(&e->wanted_bytes, bytes);
	engine_wake_reclaimer(e);
}

static uint64_t load(const _Atomic uint64_t *v)
{
	return atomic_load_explicit(v, memory_order_relaxed);
}

void engine_stats(const struct engine *e, struct engine_stats *out)
{
	*out = (struct engine_stats){
		.staged_pages = load(&e->pages.in_state[PAGE_STAGED]),
		.filled_pages = load(&e->pages.in_state[PAGE_FILLED]),
		.packed_pages = load(&e->pages.in_state[PAGE_PACKED]),
		.disk_pages = load(&e->pages.in_state[PAGE_DISK]),
		.stored_pages = load(&e->pages.in_state[PAGE_STORED]),
		.shared_pages = load(&e->pages.in_state[PAGE_SHARED]),
		.broken_pages = load(&e->pages.in_state[PAGE_BROKEN]),
		.map_vmas = load(&e->map.vmas),
		.map_vmas_most = load(&e->map.vmas_most),
		.map_least_run = map_least_run(e),
		.present_pages = load(&e->present_pages),
		.tier_bytes = e->tier->held_bytes(e->tier_ctx),
		.own_bytes = e->pages.count * sizeof(struct page) +
			     e->pages.chunk_count * sizeof(struct chunk) +
			     e->slots * sizeof(*e->slot_owner) +
			     2 * SCAN_REGIONS * sizeof(*e->regions) + sizeof(*e),
		.limit_bytes = load(&e->limit_bytes),
		.wanted_bytes = load(&e->wanted_bytes),
	};
	for (unsigned i = 0; i < ENGINE_AGES; i++)
		out->age_pages[i] = load(&e->age_pages[i]);
}
