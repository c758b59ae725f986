/*
 * What the files of host/ share.  host.h says what lives where.
 */
#ifndef BRIM_HOST_INTERNAL_H
#define BRIM_HOST_INTERNAL_H

#include "host/host.h"
#include "mm/ksm/wire.h"

/* ---- index.c: hash to page ------------------------------------------------ */

/* Whose an entry is: a candidate is a session's (number below INDEX_ID_MAX), a page of a
 * store is INDEX_STORE and the store's number. */
#define INDEX_USED (1u << 31)
#define INDEX_WANTED (1u << 30) /* its bytes were asked for */
#define INDEX_STORE (1u << 29)
#define INDEX_ID_MAX (1u << 16)

struct index_entry {
	uint64_t key;
	uint32_t page; /* the VM's, or the store's */
	uint32_t who;
};

/* Entries of one key.  Good until something is added or removed. */
struct index_run {
	struct index_entry *at;
	unsigned count;
};

struct index;

int index_create(struct index **out, const uint64_t secret[3]);
void index_destroy(struct index **ix);

/* What a hash is filed under: 64 bits that nobody outside can aim at. */
uint64_t index_key(const struct index *ix, const struct wire_hash *h);
/* What is kept of a key with its page, to find its entry again: never 0. */
static inline uint32_t index_mark(uint64_t key)
{
	return (uint32_t)(key >> 32);
}

/* Begins to fetch what index_find() of that key will look at. */
void index_prefetch(const struct index *ix, uint64_t key);
struct index_run index_find(const struct index *ix, uint64_t key);
/* The entry of that owner's page, from the mark of its key.  NULL: there is none. */
struct index_entry *index_find_page(const struct index *ix, uint32_t mark, uint32_t who,
				    uint32_t page);
/* 0 or -ENOMEM.  `who` without INDEX_USED. */
int index_add(struct index *ix, uint64_t key, uint32_t who, uint32_t page);
void index_remove(struct index *ix, struct index_entry *e);

uint64_t index_entries(const struct index *ix);
uint64_t index_bytes(const struct index *ix);
/* For verifying: every entry to fn; false when fn says so, or its own order is broken. */
bool index_each(const struct index *ix, bool (*fn)(void *ctx, const struct index_entry *e),
		void *ctx);

/* ---- store.c: the pages that are shared --------------------------------------- */

#define STORE_FIRST_PAGE 5u  /* ahead of it: whose store this is, and who was given it */
#define STORE_GIVEN_MAX 1024u
#define STORE_MIN_PAGES 64u
#define STORE_MAX_PAGES ((uint32_t)(TiB >> PAGE_SHIFT))

/* A process, for ever: pids are used again, a pid with its start time is not. */
struct given {
	uint32_t pid, zero;
	uint64_t start; /* field 22 of /proc/PID/stat */
};

/* Which pages of its store a process holds. */
struct holds {
	uint64_t *bits; /* mapped lazily; NULL: none yet */
	uint32_t count, end; /* no page from `end` on */
};

struct store_spec {
	uint64_t id; /* of one to adopt */
	uint32_t pages; /* of a new one */
	uint32_t uid;
	const char *group;
};

struct store {
	/* fixed */
	struct store *next; /* of its group */
	uint64_t id;
	unsigned slot; /* its number in the index */
	int fd, ro_fd;
	uint32_t pages;

	/* by page, mapped lazily */
	uint64_t *used, *dirty; /* dirty: freed, and its memory not yet given back */
	uint32_t *mark;         /* index_mark() of a page in the index; 0: it is not there */
	uint16_t *refs;         /* processes that hold it */
	uint8_t *age;           /* enum store_age */

	uint32_t used_pages, dirty_pages, extent, cursor, tidy_at;
	uint32_t scrub_at;  /* 0: not under way */
	uint32_t rehash_at; /* recover.c; 0: not under way */
	bool limbo;         /* adopted, and pages nobody has claimed may still be somebody's */
	unsigned processes; /* that are in it */
	unsigned given_count;
	struct given given[STORE_GIVEN_MAX];
};

enum store_age {
	STORE_FRESH,    /* its holders changed since the last sweep */
	STORE_ALONE,    /* one holder, for a sweep */
	STORE_RECALLED, /* and told so */
};

int store_create(struct store **out, const struct store_spec *spec, struct err *e);
/* What a VM has, from its read-only descriptor, which stays the caller's.  -EINVAL with a
 * sentence: it is not the store that was asked for.  In limbo until store_settle(). */
int store_adopt(struct store **out, int fd, const struct store_spec *spec, struct err *e);
void store_destroy(struct store **st);
/* 0: `fd` is a descriptor of this store. */
int store_check_same(const struct store *st, int fd, struct err *e);
/* Nobody claims pages any more: all that are not used are given back, in steps. */
void store_settle(struct store *st);

bool store_has(const struct store *st, uint32_t page);
/* Copies the bytes to a page that is used from then on.  -ENOSPC, -ENOMEM, or -EAGAIN
 * while in limbo. */
int store_put(struct store *st, const void *bytes, uint32_t *page);
int store_read(const struct store *st, uint32_t page, void *bytes);
/* Of a page nobody holds. */
void store_free(struct store *st, uint32_t page);
/* Gives memory of freed pages back, at most *budget runs of them; true: there is more, at
 * once (not where the kernel refused: then at the next tick). */
bool store_tidy(struct store *st, unsigned *budget);
/* Memory the kernel says it has beyond what is used: a VM may read where nothing is, and
 * the kernel then puts a page there.  If so, begins to give that back. */
void store_check_excess(struct store *st);
uint64_t store_resident_pages(const struct store *st);

bool holds_test(const struct holds *h, uint32_t page);
/* The first held page from `page` on; h->end: none. */
uint32_t holds_next(const struct holds *h, uint32_t page);
void holds_fini(struct holds *h, const struct store *st);
/* 0, also if that process holds it already; -ENOMEM. */
int store_hold(struct store *st, struct holds *h, uint32_t page);
/* True: that was its last holder.  It must be held. */
bool store_unhold(struct store *st, struct holds *h, uint32_t page);
/* In limbo, and not yet settled. */
bool store_claimable(const struct store *st);
/* An unclaimed page of such a store is used from now on. */
void store_claim(struct store *st, uint32_t page);

/* The registry, in the store itself.  -ENOSPC: it is full. */
int store_give(struct store *st, uint32_t pid, uint64_t start);
void store_ungive(struct store *st, uint32_t pid, uint64_t start);
bool store_was_given(const struct store *st, uint32_t pid, uint64_t start);

/* Tables by page: zeroes, and no memory until it is written.  NULL: no address space. */
void *lazy_map(uint64_t bytes);
void lazy_unmap(void *at, uint64_t bytes);

#endif
