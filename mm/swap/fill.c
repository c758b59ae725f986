/*
 * Pages that are one 8-byte pattern throughout: a count in a row of a small table.
 *
 * The table is searched from end to end.  A hash would be faster and nobody would
 * notice: pages of zeroes, which are nearly all such pages, do not search.
 *
 * Threads: fill_take() from the put thread, the rest from any.  Only the put
 * thread takes a reference to a row or writes a value; other threads only let go.
 * So a row at 0 stays at 0 until the put thread itself reuses it, and a row that
 * somebody holds a ref to does not change.
 *
 * A row stands for many pages, and all of them are what it says: so it has a check, and
 * a damaged one is an error for each of them, as a damaged object is for its page.
 *
 * Invariants: a value is in at most one row that is in use; the refs of all rows
 * together are the live same-filled pages.
 */
#include "mm/swap/internal.h"

#include <string.h>

/* A page is a pattern of 8 bytes where it equals itself moved by 8 bytes: then
 * memcmp, which stops at the first difference, does all the work. */
bool fill_matches(const void *page, uint64_t *value)
{
	const uint8_t *p = page;

	if (memcmp(p, p + sizeof(*value), PAGE_BYTES - sizeof(*value)) != 0)
		return false;
	memcpy(value, p, sizeof(*value));
	return true;
}

/* A bijection of the value, other in each row. */
static uint64_t check_of(const struct fill *f, const struct fill_row *r)
{
	uint64_t z = (r->value ^ (uint64_t)(r - f->rows) << 32) * 0x9e3779b97f4a7c15u;

	return (z ^ z >> 32) * 0xc2b2ae3d27d4eb4fu;
}

static bool is_sound(const struct fill *f, const struct fill_row *r)
{
	return r->check == check_of(f, r);
}

/* The value's row: that which has it, or one that is not in use, or NULL. */
static struct fill_row *find_row(struct fill *f, uint64_t value)
{
	struct fill_row *unused = NULL;

	if (value == 0)
		return is_sound(f, &f->rows[0]) ? &f->rows[0] : NULL;
	for (unsigned i = 1; i < FILL_ROWS; i++) {
		struct fill_row *r = &f->rows[i];

		if (r->value == value && is_sound(f, r))
			return r;
		/* acquire: whoever read the old value is done with it */
		if (!unused && atomic_load_explicit(&r->refs, memory_order_acquire) == 0)
			unused = r;
	}
	return unused;
}

bool fill_take(struct fill *f, uint64_t value, swap_ref_t *ref)
{
	struct fill_row *r = find_row(f, value);

	if (!r)
		return false;
	if (r->value != value || !is_sound(f, r)) {
		r->value = value;
		r->check = check_of(f, r);
	}
	atomic_fetch_add_explicit(&r->refs, 1, memory_order_relaxed);
	ref->v = (uint64_t)(r - f->rows) + 1;
	return true;
}

bool fill_value(const struct fill *f, swap_ref_t ref, uint64_t *value)
{
	const struct fill_row *r;

	if (ref.v == 0 || ref.v > FILL_ROWS)
		return false;
	r = &f->rows[ref.v - 1];
	if (atomic_load_explicit(&r->refs, memory_order_relaxed) == 0 || !is_sound(f, r))
		return false;
	*value = r->value;
	return true;
}

void fill_drop(struct fill *f, swap_ref_t ref)
{
	VERIFY(ref.v > 0 && ref.v <= FILL_ROWS);
	VERIFY(atomic_fetch_sub_explicit(&f->rows[ref.v - 1].refs, 1, memory_order_release) > 0);
}

uint64_t fill_pages(const struct fill *f)
{
	uint64_t pages = 0;

	for (unsigned i = 0; i < FILL_ROWS; i++)
		pages += atomic_load_explicit(&f->rows[i].refs, memory_order_relaxed);
	return pages;
}

void fill_verify(const struct fill *f)
{
	VERIFY(f->rows[0].value == 0);
	for (unsigned i = 1; i < FILL_ROWS; i++) {
		if (atomic_load(&f->rows[i].refs) == 0)
			continue;
		VERIFY(f->rows[i].value != 0 && is_sound(f, &f->rows[i]));
		for (unsigned k = 1; k < i; k++)
			VERIFY(f->rows[k].value != f->rows[i].value);
	}
}
