/*
 * Page states: one entry a page, and the table of what may follow what.
 *
 *             reclaim.c: stage                reclaim.c: pack
 *    GUEST ───────────────────► STAGED ──────────────────────► FILLED
 *      ▲ ▲                        │  │                            │
 *      │ └── fault.c, discard ────┘  └───────► PACKED ◄──► DISK   │
 *      │                                          │          │    │
 *      └───────────── fault.c, discard ───────────┴──────────┴────┘
 *
 *    GUEST ──► STAGED ──► STORED, PACKED ──► STORED (share.c); and home as the rest.
 *    GUEST ──► STAGED ──► SHARED ──► BROKEN, and both to GUEST (map.c).
 *
 * PACKED and DISK change into each other, and into themselves, where the tier moves
 * a page's bytes (engine_moved).
 *
 * GUEST says nothing about memory: the page may never have been touched, and the
 * kernel fills it on a touch without asking us unless its chunk is watched.
 *
 * Threads: everything about a page under the lock of its chunk; the counts are
 * atomic, and exact when nobody is between two of them.
 *
 * Invariants:
 *  I1  A page is in one state, and its payload is live in exactly that state.
 *  I2  chunk.away is the number of its pages that are not GUEST, chunk.broken of those that
 *      are BROKEN.
 *  I3  assigned = sum of in_state[].
 */
#include "mm/internal.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>

static const bool may[PAGE_STATES][PAGE_STATES] = {
	[PAGE_GUEST] = { [PAGE_STAGED] = true },
	[PAGE_STAGED] = { [PAGE_GUEST] = true, [PAGE_FILLED] = true, [PAGE_PACKED] = true,
			  [PAGE_STORED] = true, [PAGE_SHARED] = true },
	[PAGE_FILLED] = { [PAGE_GUEST] = true },
	[PAGE_PACKED] = { [PAGE_GUEST] = true, [PAGE_PACKED] = true, [PAGE_DISK] = true,
			  [PAGE_STORED] = true },
	[PAGE_DISK] = { [PAGE_GUEST] = true, [PAGE_PACKED] = true, [PAGE_DISK] = true },
	[PAGE_STORED] = { [PAGE_GUEST] = true },
	[PAGE_SHARED] = { [PAGE_GUEST] = true, [PAGE_BROKEN] = true },
	[PAGE_BROKEN] = { [PAGE_GUEST] = true },
};

bool page_may(enum page_state from, enum page_state to)
{
	return may[from][to];
}

void page_set(struct pages *t, uint64_t index, enum page_state to, uint64_t payload)
{
	struct page *p = &t->page[index];
	enum page_state from = p->state;

	VERIFY(index < t->count && may[from][to]);
	ASSERT(payload >> 48 == 0);
	p->state = to;
	p->payload = payload;
	p->present = to == PAGE_GUEST;
	p->reading = 0;
	p->hashed &= to != PAGE_GUEST; /* its guest may write it before the next pass */
	p->age = 0;
	atomic_fetch_sub_explicit(&t->in_state[from], 1, memory_order_relaxed);
	atomic_fetch_add_explicit(&t->in_state[to], 1, memory_order_relaxed);
	chunk_of(t, index)->away += (to != PAGE_GUEST) - (from != PAGE_GUEST);
	chunk_of(t, index)->broken += (to == PAGE_BROKEN) - (from == PAGE_BROKEN);
}

/* Mapped and not allocated: the tables of a large VM that takes nothing cost nothing. */
static void *map_table(const struct mm_host *host, uint64_t bytes)
{
	void *p = host->mmap(NULL, bytes, PROT_READ | PROT_WRITE,
			     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	return p == MAP_FAILED ? NULL : p;
}

int pages_init(struct pages *t, const struct mm_host *host, uint64_t count)
{
	VERIFY(count % CHUNK_PAGES == 0);
	*t = (struct pages){ .count = count, .chunk_count = count / CHUNK_PAGES, .host = host };
	t->page = map_table(host, count * sizeof(*t->page));
	if (t->page)
		t->chunk = map_table(host, t->chunk_count * sizeof(*t->chunk));
	if (!t->chunk) {
		pages_fini(t);
		return -ENOMEM;
	}
	for (uint64_t i = 0; i < t->chunk_count; i++)
		pthread_mutex_init(&t->chunk[i].lock, NULL);
	atomic_store(&t->in_state[PAGE_GUEST], count);
	return 0;
}

void pages_fini(struct pages *t)
{
	for (uint64_t i = 0; t->chunk && i < t->chunk_count; i++)
		pthread_mutex_destroy(&t->chunk[i].lock);
	if (t->chunk)
		t->host->munmap(t->chunk, t->chunk_count * sizeof(*t->chunk));
	if (t->page)
		t->host->munmap(t->page, t->count * sizeof(*t->page));
	t->page = NULL;
	t->chunk = NULL;
}

void pages_verify(struct pages *t)
{
	uint64_t seen[PAGE_STATES] = { 0 };

	for (uint64_t c = 0; c < t->chunk_count; c++) {
		unsigned away = 0, broken = 0;

		for (uint64_t i = c * CHUNK_PAGES; i < (c + 1) * CHUNK_PAGES; i++) {
			VERIFY(t->page[i].state < PAGE_STATES);
			seen[t->page[i].state]++;
			away += t->page[i].state != PAGE_GUEST;
			broken += t->page[i].state == PAGE_BROKEN;
		}
		VERIFY(away == t->chunk[c].away && broken == t->chunk[c].broken);
		VERIFY(away == 0 || t->chunk[c].watched);
	}
	for (unsigned s = 0; s < PAGE_STATES; s++)
		VERIFY(seen[s] == atomic_load(&t->in_state[s]));
}
