/*
 * mm/: a VM's memory.  ram.c owns the only mapping of guest memory; host.c is
 * the table of system calls the engine makes, so that tests can make any of
 * them fail; balloon/ turns page numbers the guest gave back into few madvise
 * calls; engine.c, with page.c, fault.c, place.c, reclaim.c, huge.c and throttle.c, takes
 * cold pages and brings them back, and swap/ is where they are meanwhile; share.c drops
 * those that a store has, map.c maps runs of them, and ksm/ finds out which.
 *
 * Threads: ram_at() and the other const lookups from any thread, lock-free,
 * since the map is fixed at create.  ram_discard() from the loop thread.  Guest
 * RAM may be touched by any thread but the engine's own.
 *
 * Lock order (whole process): a virtio_dev's lock, then the PCI/MSI-X lock,
 * then the console lock; under any of these the engine's `take`, then the lock
 * of one chunk, then that of a decoder of mm/swap/refine.c.
 *
 * Invariants:
 *  I1  Every translation of a guest address goes through ram_at(), with its
 *      length; nothing outside guest RAM is ever returned.
 *  I2  Memory is only ever discarded in whole 4 KiB pages inside one slot.
 *  I3  A discarded page reads as zeroes when the guest touches it again.
 */
#ifndef BRIM_MM_H
#define BRIM_MM_H

#include <sys/uio.h>

#include "stats/stats.h"

#define PAGE_SHIFT 12
#define PAGE_BYTES ((uint64_t)1 << PAGE_SHIFT)
#define HUGE_BYTES ((uint64_t)2 << 20)

#define RAM_MIN_BYTES (64 * MiB)
#define RAM_MAX_BYTES (1 * TiB)

/* Guest physical: the hole below 4 GiB where PCI, IOAPIC and local APICs are. */
#define RAM_HOLE_START ((uint64_t)0xC0000000) /* 3 GiB */
#define RAM_HOLE_END ((uint64_t)0x100000000)  /* 4 GiB */

/* One-member structs, so that the compiler keeps the two apart. */
typedef struct { uint64_t v; } gpa_t; /* guest physical address, bytes */
typedef struct { uint64_t v; } gfn_t; /* guest frame number, 4 KiB pages */

static inline gpa_t gpa(uint64_t v) { return (gpa_t){ v }; }
static inline gfn_t gfn(uint64_t v) { return (gfn_t){ v }; }
static inline gpa_t gpa_of(gfn_t g) { return (gpa_t){ g.v << PAGE_SHIFT }; }

/* ---- host.c: the system calls of the engine ---------------------------- */

struct io_uring;
struct io_uring_cqe;

struct mm_host {
	void *(*mmap)(void *addr, size_t len, int prot, int flags, int fd, int64_t off);
	int (*munmap)(void *addr, size_t len);
	void *(*mremap)(void *at, size_t len, size_t new_len, int flags, void *to);
	int (*madvise)(void *addr, size_t len, int advice);
	/* n ranges of this process in one call (process_madvise). Bytes advised
	 * from the first range on, or -1. NULL: there is no such call. */
	int64_t (*madvise_many)(const struct iovec *ranges, size_t n, int advice);
	/* The engine's: a userfaultfd, its ioctls and PAGEMAP_SCAN, and reading from
	 * it.  As the system calls of that name. */
	int (*userfaultfd)(int flags);
	int (*pagemap)(void); /* opens /proc/self/pagemap */
	int (*ioctl)(int fd, unsigned long request, void *arg);
	int64_t (*read)(int fd, void *buf, size_t len);
	int64_t (*pread)(int fd, void *buf, size_t len, int64_t off);
	int (*close)(int fd);
	/* The swap file's, as the system calls of that name. */
	int64_t (*pwrite)(int fd, const void *buf, size_t len, int64_t off);
	int (*fallocate)(int fd, int mode, int64_t off, int64_t len);
	/* io_uring, for aio.c.  0, the number submitted, or -errno; ring_wait: -EAGAIN
	 * where nothing has ended and it was not to wait. */
	int (*ring_init)(unsigned depth, struct io_uring *ring);
	int (*ring_submit)(struct io_uring *ring);
	int (*ring_wait)(struct io_uring *ring, struct io_uring_cqe **cqe, bool wait);
	/* False where the host's operator wants no huge pages: MADV_COLLAPSE makes them
	 * all the same. */
	bool (*huge_allowed)(void);
};
extern const struct mm_host mm_host_linux;

/* ---- ram.c ------------------------------------------------------------- */

enum ram_huge {
	RAM_HUGE_AUTO,   /* huge pages where something dense is loaded, small elsewhere */
	RAM_HUGE_ALWAYS, /* huge pages everywhere: faster, costs untouched memory */
	RAM_HUGE_NEVER,
};

struct ram_config {
	uint64_t size_bytes; /* RAM_MIN_BYTES..RAM_MAX_BYTES, multiple of 2 MiB */
	enum ram_huge huge;
	const struct mm_host *host; /* NULL: mm_host_linux */
};

/* One piece of guest physical memory that is contiguous on both sides. */
struct ram_slot {
	gpa_t base;
	uint64_t size_bytes;
	uint8_t *hva;
};

struct ram;

/* Errors: -EINVAL for a size outside the limits or not a multiple of 2 MiB,
 * -ENOMEM where the address space does not fit.  Costs no memory until touched. */
int ram_create(struct ram **out, const struct ram_config *cfg, struct err *e);
void ram_destroy(struct ram **ram);

uint64_t ram_size_bytes(const struct ram *ram);
/* 1 or 2 slots, in rising guest address order. */
unsigned ram_slot_count(const struct ram *ram);
const struct ram_slot *ram_slot(const struct ram *ram, unsigned i);

/* The host address of [addr, addr + len_bytes), or NULL (and a count of
 * ram_bad_gpa) unless all of it lies in one slot.  len_bytes 0 is refused. */
void *ram_at(const struct ram *ram, gpa_t addr, uint64_t len_bytes);

/* Frame number to a dense index 0..size/4096-1 (no hole), for bitmaps.
 * Returns false when the frame is not RAM. */
bool ram_index_of(const struct ram *ram, gfn_t frame, uint64_t *index);
/* The other way; `index` must be in range. */
gfn_t ram_gfn_at(const struct ram *ram, uint64_t index);

/* Gives the memory of [addr, addr+len) back to the host (MADV_DONTNEED). Whole
 * pages, inside one slot, else -EINVAL; else 0 or the errno of madvise. */
int ram_discard(const struct ram *ram, gpa_t addr, uint64_t len_bytes);

struct ram_range {
	gpa_t addr;
	uint64_t len_bytes;
};

/* As ram_discard() for the first of n ranges that do not overlap, as many as one
 * system call takes.  Returns how many were given back whole, at least 1, or
 * -errno when the first was not; -ENOSYS where the host has no such call. */
int ram_discard_many(const struct ram *ram, const struct ram_range *ranges, size_t n);

/* Who keeps some of RAM elsewhere hears of every discard: before(ctx, ranges, n) ahead
 * of it, after(ctx) behind it, both on the discarding thread.  Where before() returns
 * -errno that is the discard's result, and after() is not called.  others_pages(ctx) is how
 * many pages of RAM are shown from elsewhere.  NULL: nobody. */
struct ram_guard {
	int (*before)(void *ctx, const struct ram_range *ranges, size_t n);
	void (*after)(void *ctx);
	uint64_t (*others_pages)(void *ctx);
};
void ram_set_guard(struct ram *ram, const struct ram_guard *guard, void *ctx);

/* A device writes to [at, at + bytes) of guest RAM on its own until ram_returned(): a disk
 * that is read without the page cache has the pages pinned, and writes behind the page
 * tables.  Before the kernel is asked to, and after it has ended.  Any thread. */
void ram_lend(const struct ram *ram, const void *at, uint64_t bytes);
void ram_returned(const struct ram *ram, const void *at, uint64_t bytes);
/* Is any of these pages so written?  By the 2 MiB. */
bool ram_is_lent(const struct ram *ram, uint64_t index, uint64_t pages);

/* Asks for huge pages in the 2 MiB blocks wholly inside the range, unless the
 * VM's setting is never.  For images about to be loaded densely. */
void ram_expect_dense(const struct ram *ram, gpa_t addr, uint64_t len_bytes);

/* The setting it was created with. */
enum ram_huge ram_huge_setting(const struct ram *ram);

/* Bytes of guest RAM now backed by host memory of its own, by the kernel's account; 0.5
 * ms a GiB in small pages.  Any thread.  -errno when the kernel does not say. */
int ram_resident_bytes(const struct ram *ram, uint64_t *bytes);

/* ---- engine.c: pages that leave guest RAM and come back ------------------ */

/* Where pages go.  mm/swap/ is one; handed over at start.  Called with the lock of
 * the page's chunk held, so never twice at once for one page. */
/* How a tier keeps a page. */
enum mm_kept {
	MM_FILLED, /* at no cost */
	MM_PACKED, /* in memory */
	MM_DISK,   /* in a file: to be read first */
};

/* Whole blocks of a file. */
struct mm_extent {
	int fd;
	uint32_t bytes;
	uint64_t offset;
};
struct mm_move {
	uint64_t from, to; /* refs */
	enum mm_kept kept; /* at `to` */
};
#define MM_EXTENT_MAX ((uint32_t)(64 * KiB)) /* one read, several pages */
#define MM_BLOCK_BYTES PAGE_BYTES            /* of offset, length and buffer */

/* Such blocks in memory. */
struct mm_read {
	struct mm_extent of;
	uint8_t *raw;
};

struct mm_tier {
	/* Takes the frozen page's 4 KiB.  0 and *ref (48 bits), and *filled where it
	 * costs nothing; -E2BIG: not this page; -ENOSPC or -ENOMEM: none for now. */
	int (*put)(void *ctx, uint64_t index, const void *page, uint64_t *ref, bool *filled);
	/* Writes its bytes to `page`; anything but 0 ends the VM.  Not for MM_DISK. */
	int (*get)(void *ctx, uint64_t ref, uint64_t index, void *page);
	void (*drop)(void *ctx, uint64_t ref);
	/* Bytes of host memory it holds, all overhead counted. */
	uint64_t (*held_bytes)(void *ctx);
	/* Work in the background, bounded, from the reclaimer; may be NULL. */
	void (*tidy)(void *ctx);
	/* When there is nothing more urgent: makes what it holds smaller, for a bounded
	 * share of the reclaimer's time.  True while there is more of it to do, now or
	 * later; may be NULL. */
	bool (*refine)(void *ctx);
	/* Says where it is in a few words, for the message that ends a VM; may be NULL. */
	void (*describe)(void *ctx, uint64_t ref, char *text, size_t size);

	/* Only where pages may be MM_DISK; else NULL.
	 *
	 * Which blocks to read for the page.  They stay what they are until unpin, even
	 * if the ref is dropped meanwhile.  Under the lock of the page's chunk, or while it
	 * is pinned already. */
	void (*pin)(void *ctx, uint64_t ref, struct mm_extent *out);
	void (*unpin)(void *ctx, uint64_t ref);
	/* Once for what was read, before unpack: decrypts it in place.  0 or -errno. */
	int (*arrived)(void *ctx, const struct mm_extent *of, void *raw);
	/* As get, from what was read: `raw` are the extent's bytes, in which the page's
	 * own extent lies. */
	int (*unpack)(void *ctx, uint64_t ref, uint64_t index, const struct mm_read *from,
		      void *page);
	/* Makes room for so many puts, and waits for the disk where it must: how many
	 * fit.  From the reclaimer, without locks. */
	uint64_t (*room)(void *ctx, uint64_t pages);
	/* Moves the coldest of what it holds in memory to disk until it holds so many
	 * bytes less; waits for the disk.  The bytes.  From the reclaimer, without locks. */
	uint64_t (*spill)(void *ctx, uint64_t bytes);
};

struct engine;

/* The threads that touch guest RAM, as the engine needs to know them: to serve their
 * faults on the CPU they are on.  Any may be NULL; called from fault threads and the placer. */
struct mm_touchers {
	void *ctx;
	/* The CPU the thread runs on, or -1: not known. */
	int (*cpu_of)(void *ctx, uint32_t tid);
	/* Has it run on that CPU only; -1: where it might before.  0 or -errno. */
	int (*hold)(void *ctx, uint32_t tid, int cpu);
	/* How long it has been ready to run and had no CPU, in all; or -errno. */
	int64_t (*waited_ns)(void *ctx, uint32_t tid);
};

struct engine_config {
	struct ram *ram;              /* outlives the engine, which sets its guard */
	const struct mm_host *host;   /* NULL: mm_host_linux */
	const struct mm_tier *tier;
	void *tier_ctx;
	unsigned fault_threads;       /* 1..64; 0: 1 */
	uint64_t staging_bytes;       /* 0: 1/64 of RAM, at least 8 MiB */
	uint64_t pass_ns;             /* between passes while over the limit; 0: 100 ms */
	bool manual;                  /* no reclaimer thread: tests call engine_tick() */
	/* A page cannot be brought back: `why` names page, tier and reason.  Called
	 * once, from any thread; who touched the page waits until engine_give_up(), so
	 * end the VM. */
	void (*fatal)(void *ctx, const char *why);
	void *fatal_ctx;
	struct mm_touchers touchers;
	/* A page that was not hashed (share.c) since it was last written has just been packed;
	 * these are its 4 KiB.  From the reclaimer, under the lock of its chunk: it may not
	 * wait.  May be NULL. */
	void (*leaving)(void *ctx, uint64_t index, const void *page);
	void *leaving_ctx;
};

/* Errors: -EPERM without the right to use userfaultfd, -ENOSYS where the kernel has
 * no UFFDIO_MOVE or no asynchronous write-protect (before 6.8), -ENOMEM. */
int engine_create(struct engine **out, const struct engine_config *cfg, struct err *e);
/* The guest runs no more: who waits for a page that cannot be brought back, or touches one
 * from now on, gets an error instead (EFAULT of what the kernel does for KVM's workers and for
 * I/O in flight, SIGSEGV).  All other pages come back as before.  Any thread. */
void engine_give_up(struct engine *e);
/* Only once nobody touches guest RAM any more: what is away is lost. */
void engine_destroy(struct engine **e);

/* The most host memory the VM may hold: resident, staged and packed.  0: no limit.
 * The reclaimer takes the coldest pages until it is met, and goes on watching. */
void engine_limit(struct engine *e, uint64_t bytes);
/* Takes so many bytes once, coldest first; fewer where less can be had. */
void engine_reclaim(struct engine *e, uint64_t bytes);

/* The tier has copied a page's bytes from one ref to another (from `tidy`, `room` or
 * `spill`): true where the page was still at `from`, and now is at `to`, kept so.  Also
 * false while it is being read from disk: it is on its way home. */
bool engine_moved(struct engine *e, uint64_t index, const struct mm_move *m);

#define ENGINE_AGES 64
struct engine_stats {
	uint64_t staged_pages, filled_pages, packed_pages, disk_pages; /* away, by where */
	uint64_t stored_pages;
	uint64_t shared_pages, broken_pages; /* mapped from the store; of those, written since */
	uint64_t map_vmas, map_vmas_most;    /* VMAs that mapping cost, and that it may cost */
	uint64_t map_least_run;              /* pages in a row worth mapping now */
	uint64_t present_pages; /* by the kernel's account, at the last pass */
	uint64_t tier_bytes;
	uint64_t own_bytes;     /* the engine's own tables */
	uint64_t limit_bytes, wanted_bytes;
	uint64_t age_pages[ENGINE_AGES]; /* present pages by passes since last written */
};
/* Any thread; a moment's view. */
void engine_stats(const struct engine *e, struct engine_stats *out);

/* ---- share.c: pages that a store has too ---------------------------------- */

/* A store as one VM sees it.  A page of it that is in use here does not change. */
struct mm_store {
	const uint8_t *base; /* of page 0, which is no content; mapped read-only */
	uint32_t pages;
	/* One use less.  From any thread, under the lock of a chunk: it may not wait. */
	void (*drop)(void *ctx, uint32_t store_page);
	void *ctx;
	int fd; /* of it, read-only, so that pages can be mapped; 0: none are */
};
/* Once, before the first engine_share() that names a page of it. */
void engine_set_store(struct engine *e, const struct mm_store *store);
/* Another store of the same size is at the same place now; no page is shared. */
void engine_renew_store(struct engine *e, int fd);

/* These are one thread's: not two at once.  It may touch guest RAM as a device does.
 *
 * Passes at least so often, also where nobody takes memory; 0: only then. */
void engine_keep_ages(struct engine *e, uint64_t ns);
/* At most n pages (indices, rising) that are in guest RAM, were not written for some
 * passes, and were not named since; from chunk *cursor on, which it moves on: past the
 * last chunk it returns 0, and begins anew where the caller sets it to 0.  What was named
 * is taken for hashed, until it is written. */
uint64_t engine_cold(struct engine *e, uint64_t *cursor, uint32_t *list, uint64_t n);
/* All are to be named again: who kept the hashes has lost them. */
void engine_forget_hashes(struct engine *e);

/* At most n pages (rising) that are packed in memory, from page *at on, which it moves on:
 * 0: there is none further. */
uint64_t engine_packed(struct engine *e, uint64_t *at, uint32_t *list, uint64_t n);

/* The page's bytes where it is away in memory: 0.  -EAGAIN: it is in guest RAM, so look
 * there; -ENODATA: neither.  Brings nothing back. */
int engine_peek(struct engine *e, uint64_t index, void *page);

struct mm_same {
	uint32_t page;       /* index */
	uint32_t store_page; /* 0: a page of zeroes */
	int rc;              /* out */
};
/* Each page that equals the store's, byte for byte, gives its memory back and is served
 * from there from now on: rc 0, and one use more of that page.  -ESTALE: not equal;
 * -EAGAIN: not now.  Those, and only those of a page in RAM, packed or staged.  Rising
 * pages in a row cost the least.  Returns how many were 0. */
uint64_t engine_share(struct engine *e, struct mm_same *list, uint64_t n);
/* As engine_share(), but runs (of pages and of store pages) that are worth it are mapped, so
 * that reading them costs nothing; rc says nothing of which.  What was loaded and has an
 * image in the store becomes that image's mapping so. */
uint64_t engine_share_mapped(struct engine *e, struct mm_same *list, uint64_t n);
/* Pages that use a store page of the set (a bit each) get memory of their own again.
 * Returns how many. */
uint64_t engine_unshare(struct engine *e, const uint64_t *set);

#endif
