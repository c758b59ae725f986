/*
 * How many pages of this VM use a page of the store, and what brimd knows of it.
 *
 *            named: uses_take()           brimd is told: uses_collect()
 *     NONE ─────────────────────► HELD ───────────────────────────────► RELEASING
 *      ▲                        count ≥ 0          only while it is 0       │
 *      └──────────────────── RELEASED: uses_released() ─────────────────────┘
 *
 * A word for each page: its count, the state, and whether it is in the list of those whose
 * count fell to 0.  A fault or a discard drops uses in any thread, under the lock of a
 * chunk, so nothing there waits: a compare-and-swap, and at the last use another to put the
 * page into the list.  Counts rise, states change and pages leave the list in the share
 * thread alone; it takes the list as a whole, so that none can come back to its old place
 * meanwhile.
 *
 * Invariants:
 *  I1  A page whose count is not 0 is HELD.
 *  I2  A page that is HELD, with a count of 0, is in the list or about to be put there by
 *      who dropped its last use; so every one of them is released some time.
 */
#include "mm/ksm/internal.h"

#include <errno.h>
#include <sys/mman.h>

#define LISTED (1u << 31)
#define HELD (1u << 30)
#define RELEASING (1u << 29)
#define COUNT (RELEASING - 1) /* more than pages of RAM */

void *ksm_map_lazily(uint64_t bytes)
{
	void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	return p == MAP_FAILED ? NULL : p;
}

void ksm_unmap(void *at, uint64_t bytes)
{
	if (at)
		munmap(at, bytes);
}

int uses_init(struct uses *u, uint32_t pages)
{
	VERIFY(!u->pages && pages);
	u->word = ksm_map_lazily(pages * sizeof(*u->word));
	u->next = ksm_map_lazily(pages * sizeof(*u->next));
	u->pages = pages;
	u->end = 1;
	if (u->word && u->next)
		return 0;
	uses_fini(u);
	return -ENOMEM;
}

void uses_fini(struct uses *u)
{
	ksm_unmap((void *)(uintptr_t)u->word, u->pages * sizeof(*u->word));
	ksm_unmap(u->next, u->pages * sizeof(*u->next));
	*u = (struct uses){ 0 };
}

static void list(struct uses *u, uint32_t page)
{
	uint32_t last = atomic_load(&u->listed);

	do
		u->next[page] = last;
	while (!atomic_compare_exchange_weak(&u->listed, &last, page));
}

void uses_drop(struct uses *u, uint32_t page)
{
	uint32_t was, now;

	VERIFY(page && page < u->pages);
	was = atomic_load(&u->word[page]);
	do {
		VERIFY(was & COUNT && was & HELD);
		now = was - 1;
		now |= now & COUNT ? 0 : LISTED;
	} while (!atomic_compare_exchange_weak(&u->word[page], &was, now));
	if (now & LISTED && !(was & LISTED))
		list(u, page);
}

bool uses_take(struct uses *u, uint32_t page)
{
	uint32_t was;

	VERIFY(page && page < u->pages);
	was = atomic_load(&u->word[page]);
	do {
		if (was & RELEASING)
			return false;
		VERIFY((was & COUNT) < COUNT);
	} while (!atomic_compare_exchange_weak(&u->word[page], &was, (was | HELD) + 1));
	if (page >= u->end)
		u->end = page + 1;
	return true;
}

uint32_t uses_count(const struct uses *u, uint32_t page)
{
	return atomic_load(&u->word[page]) & COUNT;
}

bool uses_any(const struct uses *u)
{
	for (uint32_t i = 1; i < u->end; i++)
		if (uses_count(u, i))
			return true;
	return false;
}

/* Out of the list; true: it is RELEASING now. */
static bool unlist(struct uses *u, uint32_t page)
{
	uint32_t was = atomic_load(&u->word[page]), now;

	do {
		now = was & ~LISTED;
		if (!(was & COUNT) && was & HELD)
			now = (now & ~HELD) | RELEASING;
	} while (!atomic_compare_exchange_weak(&u->word[page], &was, now));
	return now & RELEASING && !(was & RELEASING);
}

unsigned uses_collect(struct uses *u, struct wire_store_page *out, unsigned n)
{
	unsigned found = 0;

	while (found < n) {
		uint32_t page = u->rest ? u->rest : atomic_exchange(&u->listed, 0);

		if (!page)
			break;
		u->rest = u->next[page]; /* before others may list it again */
		if (unlist(u, page))
			out[found++].store_page = page;
	}
	return found;
}

void uses_released(struct uses *u, const struct wire_store_page *pages, unsigned n)
{
	for (unsigned i = 0; i < n; i++) {
		uint32_t was = atomic_fetch_and(&u->word[pages[i].store_page], ~RELEASING);

		VERIFY((was & (RELEASING | HELD | COUNT)) == RELEASING);
	}
}

/* Not HELD nor RELEASING any more, unless it is used.  Nobody but us makes a count rise. */
static bool claim(struct uses *u, uint32_t page)
{
	uint32_t was = atomic_load(&u->word[page]);

	if (!was)
		return false;
	while (!(was & COUNT))
		if (atomic_compare_exchange_weak(&u->word[page], &was, was & LISTED))
			return false;
	return true;
}

unsigned uses_claim(struct uses *u, uint32_t *at, struct wire_store_page *out, unsigned n)
{
	unsigned found = 0;

	for (; found < n && *at < u->end; ++*at)
		if (claim(u, *at))
			out[found++].store_page = *at;
	return found;
}

void uses_verify(const struct uses *u, uint64_t sum)
{
	for (uint32_t i = 1; i < u->end; i++) {
		uint32_t w = atomic_load(&u->word[i]);

		VERIFY(!(w & COUNT) || w & HELD);
		VERIFY(!(w & HELD) || !(w & RELEASING));
		VERIFY(w & COUNT || !(w & HELD) || w & LISTED);
		VERIFY(sum >= (w & COUNT));
		sum -= w & COUNT;
	}
	VERIFY(sum == 0);
}
