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

#endif
