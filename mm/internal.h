/*
 * The engine's inside, shared by its files: engine.c, page.c, fault.c, place.c, read.c,
 * reclaim.c, huge.c, throttle.c, share.c, map.c.
 *
 * Locks, in order: `turn` (which fault thread listens) or `take` (a reclaimer's batch
 * against a discard), then one chunk's lock, then that of a decoder of the tier (refine.c).
 * Never two chunks at once; no system call under them that waits for a fault.
 */
#ifndef BRIM_MM_INTERNAL_H
#define BRIM_MM_INTERNAL_H

#include <pthread.h>

#include "mm/kernel.h"
#include "mm/mm.h"

#define CHUNK_PAGES (HUGE_BYTES >> PAGE_SHIFT)
#define AROUND_MAX 32u /* pages one fault brings back at most */
#define FAULT_THREADS_MAX 64u

/* ---- page.c --------------------------------------------------------------- */

enum page_state {
	PAGE_GUEST,  /* in guest RAM, or never touched: the kernel knows which */
	PAGE_STAGED, /* moved to the slot `payload` of the staging area */
	PAGE_FILLED, /* in the tier as `payload`, at no cost */
	PAGE_PACKED, /* in the tier as `payload` */
	PAGE_DISK,   /* in the tier as `payload`, in a file */
	PAGE_STORED, /* as the store has it: `payload` is its page there, and a sum */
	PAGE_SHARED, /* the same, and guest RAM is mapped from there */
	PAGE_BROKEN, /* mapped from there, and since written: the kernel has copied it */
	PAGE_STATES
};

/* One page's entry, 8 bytes.  Under the lock of its chunk. */
struct page {
	uint64_t state : 3;
	uint64_t age : 6;     /* passes since it was last seen written; saturates */
	uint64_t present : 1; /* GUEST: had memory at the last pass */
	uint64_t hard : 1;    /* did not compress; until it is written again */
	uint64_t back : 1;    /* put back by us since the last pass, which looks like a write */
	uint64_t reading : 1; /* DISK: a fault thread is reading it */
	uint64_t hashed : 1;  /* GUEST: since it was last written */
	uint64_t restless : 2; /* how often that was for nothing; see share.c */
	uint64_t payload : 48;
};
_Static_assert(sizeof(struct page) == 8, "8 bytes a page");

struct chunk {
	pthread_mutex_t lock;
	/* under lock */
	uint16_t away;      /* pages not GUEST */
	uint16_t next;      /* where a sequential reader would fault next */
	uint8_t around;     /* pages the next sequential fault brings back */
	_Atomic bool watched; /* registered for MISSING; read as a hint without the lock */
	bool spared;        /* came home from staging whole; the next time it does not */
	/* owned by the reclaimer: what the last pass saw; see huge.c */
	bool huge;          /* one huge page */
	bool arm;           /* the next pass asks for notes of writes */
	bool home;          /* nothing of it was away */
	uint8_t rest;       /* passes until it may be re-formed again */
	uint8_t oldest;     /* greatest age of a page that may be taken */
	uint16_t present, takeable, young;
	/* under lock, counted by passes */
	uint16_t unhashed;  /* pages worth a hash */
	/* under lock */
	uint16_t broken;    /* pages BROKEN */
	bool torn;          /* a piece of it is not registered; it is mended before more leaves */
	uint8_t retouched;  /* STORED pages that were touched of late; saturates */
	uint16_t joined;    /* faults that wait for reads others began, */
	uint64_t joined_ns; /* and the sum of when they came */
};

struct pages {
	/* fixed at create */
	uint64_t count;
	uint64_t chunk_count;
	struct page *page;   /* [count], mapped: costs what is touched */
	struct chunk *chunk; /* [chunk_count] */
	const struct mm_host *host;
	/* counted by page_set() */
	_Atomic uint64_t in_state[PAGE_STATES];
};

int pages_init(struct pages *t, const struct mm_host *host, uint64_t count);
void pages_fini(struct pages *t);
static inline struct chunk *chunk_of(struct pages *t, uint64_t index)
{
	return &t->chunk[index / CHUNK_PAGES];
}
/* The only way from state to state; see page.c for the table. Lock held. */
void page_set(struct pages *t, uint64_t index, enum page_state to, uint64_t payload);
bool page_may(enum page_state from, enum page_state to);
/* Panics unless every count equals what the entries say.  Nobody else may run. */
void pages_verify(struct pages *t);

/* ---- the engine ------------------------------------------------------------ */

/* See map.c. */
struct map {
	/* set up once, by the thread that shares */
	bool tried;
	_Atomic bool on;
	uint8_t *store, *blank;
	uint64_t blank_bytes;
	int uffd;                /* the second: synchronous */
	_Atomic uint64_t vmas_most;
	_Atomic uint64_t vmas;
	/* under `take` */
	bool dirty;              /* the blank may have memory */
	_Atomic bool news;       /* a page was broken off, or one is left to take back */
	/* owned by the reclaimer */
	uint64_t cursor;
};

#define NO_PAGE UINT64_MAX

struct engine {
	/* fixed at create */
	struct ram *ram;
	const struct mm_host *host;
	const struct mm_tier *tier;
	void *tier_ctx;
	void (*fatal)(void *ctx, const char *why);
	void *fatal_ctx;
	uint64_t pass_ns;
	bool manual;        /* a pass in every round: tests */
	uint8_t *base;      /* of guest RAM, dense */
	uint8_t *staging;   /* starts on 2 MiB, and is a multiple of it */
	void *staging_map;
	uint64_t slots;     /* pages of staging */
	int uffd, pagemap;
	uint8_t *stop_page; /* touched to end the fault threads */
	struct mm_touchers touchers;
	struct placer *placer; /* NULL: touchers are not held */
	void (*leaving)(void *ctx, uint64_t index, const void *page);
	void *leaving_ctx;
	struct reader *reader; /* NULL: the tier has no disk */
	unsigned fault_threads;
	bool has_reclaimer;
	pthread_t fault_thread[FAULT_THREADS_MAX], reclaimer;

	struct pages pages;
	pthread_mutex_t take;
	pthread_mutex_t turn; /* of fault threads: outermost */
	_Atomic bool faults_over;

	/* owned by the reclaimer */
	uint32_t *slot_owner;    /* [slots] page index, or SLOT_EMPTY */
	uint64_t head, tail;     /* slots used, slots emptied; ever rising */
	uint64_t next_pass_ns;
	uint64_t next_round_ns;  /* where nobody asks for one */
	bool refining;           /* the tier has something to make smaller, now or later */
	uint64_t cursor;         /* where the sweep for cold pages goes on */
	uint64_t sample_cursor, watch_cursor;
	uint64_t bare;           /* 1 + the chunk that lost its registration; 0: none */
	unsigned idle_shift;     /* rounds with nothing to take come so much slower */
	bool huge;               /* guest RAM may have huge pages */
	bool plenty;             /* far enough under the limit; two thresholds */
	struct page_region *regions, *rearmed; /* [SCAN_REGIONS] */

	/* owned by the thread that shares; set once */
	struct mm_store store;   /* base NULL: none */
	uint64_t frozen;         /* slots of the freezer that were used */
	uint8_t *unpacked;       /* a page */
	bool may_map;            /* in this call */
	struct map map;

	/* told to the reclaimer, under wake_lock */
	pthread_mutex_t wake_lock;
	pthread_cond_t wake;
	bool stopping;
	_Atomic uint64_t limit_bytes, wanted_bytes;
	_Atomic uint64_t ages_ns; /* passes at least so often; 0: only where they are needed */

	/* anybody's to read */
	_Atomic uint64_t present_pages;
	_Atomic uint64_t watched_chunks;
	_Atomic uint64_t unseen_pages;  /* missing from chunks nobody watches */
	_Atomic uint64_t arrived_pages; /* by faults since the last pass */
	_Atomic bool hurried;           /* the reclaimer was woken for them */
	_Atomic bool helpless;          /* over the limit, and nothing more can be taken */
	_Atomic uint64_t age_pages[ENGINE_AGES];
	_Atomic uint64_t dead; /* the first page that was lost, or NO_PAGE */
	_Atomic bool given_up;
};

#define SLOT_EMPTY UINT32_MAX
#define SCAN_REGIONS 2048u
#define FREEZER_SLOTS CHUNK_PAGES /* behind staging's */

static inline uint8_t *page_at(const struct engine *e, uint64_t index)
{
	return e->base + (index << PAGE_SHIFT);
}

static inline uint8_t *slot_at(const struct engine *e, uint64_t slot)
{
	return e->staging + (slot << PAGE_SHIFT);
}

/* The VM cannot go on: says so once. */
void engine_dead(struct engine *e, uint64_t index, const char *what, int rc);

/* Has the address memory of its own?  -errno where the kernel does not say. */
int engine_has_page(const struct engine *e, const void *at);
/* engine.c: UFFDIO_MOVE of n pages; repeats what the kernel asks to repeat.
 * Returns the pages moved, or -errno where the first could not be; -EIO: nobody can
 * say where it is now. */
int64_t engine_move(struct engine *e, void *to, void *from, uint64_t n);

/* Has the kernel tell us of touches of missing pages in it.  Lock held. 0 or -errno. */
int engine_watch(struct engine *e, uint64_t chunk);
/* The kernel serves them again; nothing of the chunk may be away.  Its pages look
 * written from then on.  Lock held. 0 or -errno. */
int engine_unwatch(struct engine *e, uint64_t chunk);
/* The notes of writes of a chunk are dropped: its pages look written. 0 or -errno. */
int engine_disarm(struct engine *e, uint64_t chunk);
void engine_wake_reclaimer(struct engine *e);

/* fault.c */
struct fault_server; /* what one fault thread works with */

/* A fault that waits: since when, and whether it is a vCPU that does. */
struct fault_wait {
	uint64_t since_ns;
	bool is_vcpu;
};
/* Has ended: counted. */
void fault_waited(const struct fault_wait *w, uint64_t now_ns);
int fault_server_create(struct fault_server **out, struct engine *e);
void fault_server_destroy(struct fault_server **s);
int fault_start(struct engine *e, unsigned threads);
void fault_stop(struct engine *e);
/* Brings the page back, as for a fault on it; one on disk is only on its way then. */
void fault_serve(struct fault_server *s, uint64_t index);
/* A staged page's way home. Lock held. 0 or -errno. */
int fault_unstage(struct engine *e, uint64_t index);
/* UFFDIO_COPY of n pages, as long as is sensible: the pages copied (1..n), or -errno
 * when not even the first was.  Lock held. */
int64_t fault_copy_in(struct engine *e, uint64_t index, const uint8_t *buf, uint64_t n);
/* Pages of the tier have been copied in: they are the guest's.  Lock held. */
void fault_home(struct engine *e, uint64_t index, uint64_t n);
/* Whoever sleeps on these faults again. */
void fault_wake(struct engine *e, uint64_t index, uint64_t n);

/* place.c */
struct placer;
int place_create(struct placer **out, struct engine *e);
/* Lets go of all who are held. */
void place_destroy(struct placer **p);
/* A fault of a toucher that runs on that CPU.  True: it is held there from now on. */
bool place_note(struct placer *p, uint32_t tid, int cpu);

/* read.c */
struct reader;
struct page_read;
int reader_create(struct reader **out, struct engine *e);
/* Nobody may start a read any more; waits for those on their way. */
void reader_destroy(struct reader **r);
/* Until read_plan() can be expected to have a place. */
void reader_wait(struct reader *r);
/* A read of the DISK page and at most want - 1 behind it; NULL: too many are on their
 * way.  Lock held. */
struct page_read *read_plan(struct reader *r, uint64_t index, uint64_t want);
/* Who waits for it. */
void read_waits(struct page_read *rd, const struct fault_wait *w);
/* The same ahead of a sequential reader, for a page nobody waits for; NULL as well where
 * faults may soon want the places.  Lock held. */
struct page_read *read_plan_ahead(struct reader *r, uint64_t index, uint64_t want);
/* The page behind its last. */
uint64_t read_end(const struct page_read *rd);
/* False: the ring does not take it, so read_by_hand(), or read_cancel() where it is one
 * ahead.  Lock not held. */
bool read_start(struct reader *r, struct page_read *rd);
void read_cancel(struct reader *r, struct page_read *rd);
/* Waits for the disk.  `buf` holds AROUND_MAX pages. */
void read_by_hand(struct reader *r, struct page_read *rd, uint8_t *buf);

/* huge.c */
enum huge_take {
	TAKE_SMALL, /* from chunks that are not huge pages any more */
	TAKE_WHOLE, /* huge pages, each as a whole */
	TAKE_ANY,   /* breaks a huge page for what is cold in it */
};
/* The chunks from `from` on that a pass treats alike: where they end, and whether it
 * is to note writes in them. Page numbers. */
uint64_t huge_run_end(const struct engine *e, uint64_t from, bool *arm);
/* The pass begins, and has ended, with this chunk. */
void huge_chunk_begin(struct engine *e, struct chunk *c, bool is_huge);
void huge_chunk_end(struct engine *e, struct chunk *c);
/* Is there anything of that kind, as cold as that, by the last pass? */
bool huge_offers(const struct chunk *c, enum huge_take kind, unsigned min_age);
/* All of guest RAM is registered with the kernel, or is again. */
bool huge_repair(struct engine *e);
/* The part of a round that is not about taking. `over`: there is something to take. */
void huge_round(struct engine *e, bool over);
/* True while rounds are worth having though nobody wants memory. */
bool huge_has_work(const struct engine *e);

/* throttle.c: a guest that takes new memory faster than it can be taken away. */
/* How long this fault is to wait before it is served; counts its page.  Any thread,
 * no lock held. */
uint64_t throttle_ns(struct engine *e, uint64_t index);
/* May the VM take so many more pages, and nobody have to wait for it? */
bool throttle_has_room(struct engine *e, uint64_t pages);
/* What is to be free under the limit, while new memory comes fast. */
uint64_t throttle_reserve_pages(const struct engine *e);
/* Has chunks with missing pages watched, so many that new memory is seen in time. */
void throttle_watch(struct engine *e);
bool throttle_may_unwatch(const struct engine *e, const struct chunk *c);
/* The chunk is watched no longer. */
void throttle_count_unseen(struct engine *e, const struct chunk *c);

/* share.c */
/* A STORED page's bytes. 0 or -EIO. Lock held. */
int share_get(struct engine *e, uint64_t payload, uint8_t *page);
void share_drop(struct engine *e, uint64_t payload);
/* A pass has seen the page. Lock held. */
void share_note(struct chunk *c, struct page *p, bool written);

uint32_t share_store_page(uint64_t payload);
/* What an entry has of a page that equals the store's. */
uint64_t share_payload(uint32_t store_page, const uint8_t *page);

/* map.c */
struct map_cost {
	uint64_t run_pages;
	uint64_t retouched; /* pages of the chunk touched of late though stored */
	uint64_t vmas, vmas_most;
};
/* Is a run worth its VMAs?  A pure function. */
bool map_worth(const struct map_cost *c);
uint64_t map_least_run(const struct engine *e);
/* Sets it up, once.  False: nothing can be mapped.  The thread that shares, no locks. */
bool map_ready(struct engine *e);
/* The store is another; none of its pages is mapped. */
void map_renew(struct engine *e);
void map_fini(struct engine *e);
/* n pages in a row, frozen, equal to store pages in a row: SHARED; false: not worth it, or not
 * possible, and nothing was changed. `take` and lock held, chunk watched. */
bool map_put(struct engine *e, const struct mm_same *s, uint64_t n);
/* What is mapped of the pages of one chunk shows zeroes instead. 0, or -errno: some show
 * the store's still.  `take` and lock held. */
int map_forget(struct engine *e, uint64_t index, uint64_t n);
/* Mapped pages in a row of one chunk are the guest's own again, with their bytes.  0, or
 * -errno: nothing has changed.  `take` and lock held. */
int map_take_back(struct engine *e, uint64_t index, uint64_t n);
/* A pass has seen the mapped page: has it memory of its own?  Lock held. */
bool map_note(struct engine *e, uint64_t index, uint64_t categories);
/* Takes back what was broken off, where it is worth it.  The reclaimer, no locks. */
void map_round(struct engine *e, bool over);

/* reclaim.c */
/* A count that a pass made, and others go on with. */
void engine_count_off(_Atomic uint64_t *count, uint64_t n);
int reclaim_start(struct engine *e);
void reclaim_stop(struct engine *e);
/* One round: look at every page, then take what is over the limit or was asked
 * for.  True when there is more to do and it got somewhere. */
bool engine_tick(struct engine *e);
uint64_t engine_held_pages(const struct engine *e);
void engine_pass(struct engine *e);

#endif
