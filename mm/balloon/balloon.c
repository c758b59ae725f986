/*
 * The balloon of one VM: the book, what is pending, and the discarding.  See
 * balloon.h for the way of a page and the invariants.
 *
 * A discard that fails leaves the page as it was: still in the book if it was
 * inflated, still with its old content, its memory not saved.  That is safe,
 * since a guest may not rely on either content; it is counted, and not tried
 * again, because what makes madvise refuse (locked memory) does not go away.
 */
#include "mm/balloon/internal.h"

#include <errno.h>
#include <stdlib.h>

struct balloon {
	/* fixed at create */
	const struct ram *ram;

	/* under the device's lock */
	struct book book;
	struct ranges pending;
	bool one_by_one; /* this host cannot discard many ranges in one call */
	struct ram_range out[BALLOON_PENDING_MAX];
};

static uint32_t slot_wall(const struct ram *ram)
{
	if (ram_slot_count(ram) < 2)
		return 0;
	return (uint32_t)(ram_slot(ram, 0)->size_bytes >> PAGE_SHIFT);
}

int balloon_create(struct balloon **out, const struct ram *ram, const struct mm_host *host,
		   struct err *e)
{
	struct balloon *b;
	int rc;

	VERIFY(out && ram);
	b = calloc(1, sizeof(*b));
	if (!b)
		return err_sys(e, -ENOMEM, "balloon: no memory for its description");
	b->ram = ram;
	ranges_init(&b->pending, slot_wall(ram));
	rc = book_init(&b->book, ram_size_bytes(ram) >> PAGE_SHIFT,
		       host ? host : &mm_host_linux, e);
	if (rc)
		balloon_destroy(&b);
	else
		*out = b;
	return rc;
}

void balloon_destroy(struct balloon **b)
{
	struct balloon *old = *b;

	*b = NULL;
	if (!old)
		return;
	book_fini(&old->book);
	free(old);
}

/* ---- what the guest says ----------------------------------------------------- */

void balloon_inflate(struct balloon *b, const uint32_t *pfns, unsigned n)
{
	uint64_t index, fresh = 0, repeated = 0;

	VERIFY(n <= balloon_room(b));
	for (unsigned i = 0; i < n; i++) {
		if (!ram_index_of(b->ram, gfn(pfns[i]), &index))
			continue;
		if (book_add(&b->book, index))
			fresh++;
		else
			repeated++;
		/* A repeated page too: the guest may have touched it since. */
		ranges_add(&b->pending, (uint32_t)index, 1);
	}
	counter_add(CTR_balloon_inflate_pages, fresh);
	counter_add(CTR_balloon_repeated, repeated);
	counter_add(CTR_balloon_bad_pfn, n - fresh - repeated);
}

void balloon_deflate(struct balloon *b, const uint32_t *pfns, unsigned n)
{
	uint64_t index, taken = 0, repeated = 0;

	if (b->pending.n)
		balloon_discard(b);
	for (unsigned i = 0; i < n; i++) {
		if (!ram_index_of(b->ram, gfn(pfns[i]), &index))
			continue;
		if (book_remove(&b->book, index))
			taken++;
		else
			repeated++;
	}
	counter_add(CTR_balloon_deflate_pages, taken);
	counter_add(CTR_balloon_repeated, repeated);
	counter_add(CTR_balloon_bad_pfn, n - taken - repeated);
}

uint64_t balloon_free_range(struct balloon *b, gpa_t addr, uint64_t len_bytes)
{
	uint64_t index, from, to;

	VERIFY(balloon_room(b) >= 1);
	if (!ram_at(b->ram, addr, len_bytes))
		return 0;
	from = (addr.v + PAGE_BYTES - 1) >> PAGE_SHIFT;
	to = (addr.v + len_bytes) >> PAGE_SHIFT;
	if (from >= to || !ram_index_of(b->ram, gfn(from), &index))
		return 0;
	ranges_add(&b->pending, (uint32_t)index, (uint32_t)(to - from));
	return to - from;
}

unsigned balloon_room(const struct balloon *b)
{
	return BALLOON_PENDING_MAX - b->pending.n;
}

uint64_t balloon_pending_pages(const struct balloon *b)
{
	return b->pending.pages;
}

/* ---- giving back ------------------------------------------------------------- */

static bool is_unsupported(int rc)
{
	return rc == -ENOSYS || rc == -EBADF || rc == -EINVAL || rc == -EPERM;
}

/* Gives back the first of n ranges, and more of them where one call can.  Returns
 * how many were dealt with, and adds the pages that really went. */
static size_t give_back_some(struct balloon *b, const struct ram_range *r, size_t n,
			     uint64_t *pages)
{
	size_t went = 0;
	int many = 0, rc;

	if (n > 1 && !b->one_by_one) {
		many = ram_discard_many(b->ram, r, n);
		counter_inc(CTR_balloon_discard_calls);
	}
	if (many > 0) {
		went = (size_t)many;
	} else {
		rc = ram_discard(b->ram, r->addr, r->len_bytes);
		counter_inc(CTR_balloon_discard_calls);
		if (rc)
			counter_inc(CTR_balloon_discard_failed);
		else
			went = 1;
		/* What works for one and not for many is a host without the call. */
		if (!rc && is_unsupported(many))
			b->one_by_one = true;
	}
	for (size_t i = 0; i < went; i++)
		*pages += r[i].len_bytes >> PAGE_SHIFT;
	return went ? went : 1;
}

uint64_t balloon_discard(struct balloon *b)
{
	uint64_t pages = 0, began_ns;

	if (!b->pending.n)
		return 0;
	began_ns = now_ns();
	ranges_settle(&b->pending);
	for (unsigned i = 0; i < b->pending.n; i++)
		b->out[i] = (struct ram_range){
			gpa_of(ram_gfn_at(b->ram, b->pending.r[i].first)),
			(uint64_t)b->pending.r[i].pages << PAGE_SHIFT,
		};
	for (size_t i = 0; i < b->pending.n;)
		i += give_back_some(b, b->out + i, b->pending.n - i, &pages);
	ranges_clear(&b->pending);
	counter_add(CTR_balloon_discard_ns, now_ns() - began_ns);
	return pages;
}

/* ---- the rest ---------------------------------------------------------------- */

void balloon_forget(struct balloon *b)
{
	ranges_clear(&b->pending);
	book_clear(&b->book);
}

uint64_t balloon_pages(const struct balloon *b)
{
	return b->book.pages;
}

bool balloon_holds(const struct balloon *b, gfn_t frame)
{
	uint64_t index;

	return ram_index_of(b->ram, frame, &index) && book_has(&b->book, index);
}
