/*
 * Page numbers in any order become few maximal ranges.
 *
 * A guest's allocator hands out runs, rising or falling, so most pages only
 * lengthen the range before them, and a request of 256 pages is one to ten
 * ranges before anything is sorted.  What remains is put in order by one look (it
 * may already rise or fall) or else by counting its digits: no comparison of
 * pairs, nothing a guest could make slow.
 *
 * Threads: the caller's.  Invariant: I2 of balloon.h, by the wall.
 */
#include "mm/balloon/internal.h"

#include <string.h>

#define DIGIT_BITS 8
#define DIGITS (1u << DIGIT_BITS)
#define KEY_BITS 32

_Static_assert(RAM_MAX_BYTES >> PAGE_SHIFT <= UINT32_MAX / 2, "page index and sums fit 32 bits");

void ranges_init(struct ranges *s, uint32_t wall)
{
	s->wall = wall;
	ranges_clear(s);
}

void ranges_clear(struct ranges *s)
{
	s->n = 0;
	s->pages = 0;
}

static uint32_t end_of(struct page_range r)
{
	return r.first + r.pages;
}

void ranges_add(struct ranges *s, uint32_t first, uint32_t pages)
{
	struct page_range *last = s->n ? &s->r[s->n - 1] : NULL;

	VERIFY(s->n < BALLOON_PENDING_MAX && pages > 0);
	s->pages += pages;
	if (last && first == end_of(*last) && first != s->wall) {
		last->pages += pages;
	} else if (last && first + pages == last->first && last->first != s->wall) {
		last->first = first;
		last->pages += pages;
	} else {
		s->r[s->n++] = (struct page_range){ first, pages };
	}
}

/* ---- sorting ----------------------------------------------------------------- */

static bool is_rising(const struct ranges *s)
{
	for (unsigned i = 1; i < s->n; i++)
		if (s->r[i].first < s->r[i - 1].first)
			return false;
	return true;
}

static bool is_falling(const struct ranges *s)
{
	for (unsigned i = 1; i < s->n; i++)
		if (s->r[i].first > s->r[i - 1].first)
			return false;
	return true;
}

static void reverse(struct ranges *s)
{
	for (unsigned i = 0, j = s->n; i + 1 < j; i++) {
		struct page_range t = s->r[i];

		s->r[i] = s->r[--j];
		s->r[j] = t;
	}
}

static unsigned digit(struct page_range r, unsigned shift)
{
	return r.first >> shift & (DIGITS - 1);
}

/* One pass: from -> to, in the order of one digit.  Returns false, and moves
 * nothing, when all have the same. */
static bool sort_by_digit(const struct page_range *from, struct page_range *to, unsigned n,
			  unsigned shift)
{
	unsigned place[DIGITS] = { 0 }, sum = 0;

	for (unsigned i = 0; i < n; i++)
		place[digit(from[i], shift)]++;
	if (place[digit(from[0], shift)] == n)
		return false;
	for (unsigned d = 0; d < DIGITS; d++) {
		unsigned count = place[d];

		place[d] = sum;
		sum += count;
	}
	for (unsigned i = 0; i < n; i++)
		to[place[digit(from[i], shift)]++] = from[i];
	return true;
}

static void sort(struct ranges *s)
{
	struct page_range *from = s->r, *to = s->spare;

	if (is_rising(s))
		return;
	if (is_falling(s)) {
		reverse(s);
		return;
	}
	for (unsigned shift = 0; shift < KEY_BITS; shift += DIGIT_BITS) {
		if (sort_by_digit(from, to, s->n, shift)) {
			struct page_range *t = from;

			from = to;
			to = t;
		}
	}
	if (from != s->r)
		memcpy(s->r, from, s->n * sizeof(*from));
}

/* ---- merging ----------------------------------------------------------------- */

/* Whether r, which starts no earlier than last, continues or overlaps it.  Two
 * ranges that meet at the wall do not, unless both start there. */
static bool joins(const struct ranges *s, struct page_range last, struct page_range r)
{
	return r.first <= end_of(last) && (r.first != s->wall || last.first == s->wall);
}

static void merge(struct ranges *s)
{
	unsigned kept = 0;

	s->pages = 0;
	for (unsigned i = 0; i < s->n; i++) {
		struct page_range r = s->r[i];

		if (kept && joins(s, s->r[kept - 1], r)) {
			struct page_range *last = &s->r[kept - 1];
			uint32_t more = end_of(r) > end_of(*last) ? end_of(r) - end_of(*last) : 0;

			last->pages += more;
			s->pages += more;
		} else {
			s->r[kept++] = r;
			s->pages += r.pages;
		}
	}
	s->n = kept;
}

void ranges_settle(struct ranges *s)
{
	sort(s);
	merge(s);
}
