/*
 * The index of a share group (host/index.c), against a list.
 */
#include <criterion/criterion.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "host/internal.h"

#define LIST_MAX 4096
#define PAGES 512u
#define OWNERS 3u

/* ---- the reference: a list, searched from end to end ------------------------------- */

struct list {
	struct index_entry e[LIST_MAX];
	unsigned n;
};

static struct index_entry *list_page(struct list *l, uint32_t who, uint32_t page)
{
	for (unsigned i = 0; i < l->n; i++)
		if (l->e[i].page == page && (l->e[i].who & ~INDEX_WANTED) == who)
			return &l->e[i];
	return NULL;
}

static unsigned list_count(const struct list *l, uint64_t key)
{
	unsigned n = 0;

	for (unsigned i = 0; i < l->n; i++)
		n += l->e[i].key == key;
	return n;
}

/* ---- operations -------------------------------------------------------------------- */

enum kind { SET, REMOVE, FIND, KINDS };

struct op {
	enum kind kind;
	uint64_t key;
	uint32_t who, page;
};

/* Few keys, many of them alike: in one shard, with one home, with one mark, at both ends. */
static uint64_t some_key(unsigned *seed, unsigned alike)
{
	uint64_t r = (uint64_t)(unsigned)rand_r(seed) << 33 ^ (uint64_t)(unsigned)rand_r(seed);

	switch ((unsigned)rand_r(seed) % 6 * alike) {
	case 0: return r | (uint64_t)1 << 32;
	case 1: return 0x42ffffff00000000u | (r & 7);
	case 2: return 0xffffffffffffffffu - (r & 3);
	case 3: return (uint64_t)1 << 32 | (r & 3);
	case 4: return 0x4200000100000000u + ((r & 0xf) << 32);
	default: return 0x4242424242424242u;
	}
}

static struct op some_op(unsigned *seed, unsigned growing)
{
	struct op o = { .key = some_key(seed, 1), .page = (unsigned)rand_r(seed) % PAGES,
			.who = (unsigned)rand_r(seed) % OWNERS };

	if (o.who == OWNERS - 1)
		o.who |= INDEX_STORE;
	o.kind = (unsigned)rand_r(seed) % 8 < growing ? SET : (unsigned)rand_r(seed) % 4 ? REMOVE : FIND;
	return o;
}

static bool remove_page(struct index *ix, struct list *l, const struct op *o)
{
	struct index_entry *ref = list_page(l, o->who, o->page);
	struct index_entry *e = ref ? index_find_page(ix, index_mark(ref->key), o->who, o->page)
				    : index_find_page(ix, index_mark(o->key), o->who, o->page);

	if (!ref)
		return !e;
	if (!e || e->key != ref->key)
		return false;
	index_remove(ix, e);
	*ref = l->e[--l->n];
	return true;
}

static bool set_page(struct index *ix, struct list *l, const struct op *o)
{
	if (list_page(l, o->who, o->page) && !remove_page(ix, l, o))
		return false;
	l->e[l->n++] = (struct index_entry){ o->key, o->page, o->who };
	return index_add(ix, o->key, o->who | (o->page & 1 ? INDEX_WANTED : 0), o->page) == 0;
}

static bool find_key(struct index *ix, struct list *l, uint64_t key)
{
	struct index_run r = index_find(ix, key);

	for (unsigned i = 0; i < r.count; i++) {
		uint32_t who = r.at[i].who & ~(INDEX_USED | INDEX_WANTED);
		const struct index_entry *ref = list_page(l, who, r.at[i].page);

		if (!ref || ref->key != key || r.at[i].key != key)
			return false;
	}
	return r.count == list_count(l, key);
}

static bool is_counted(void *ctx, const struct index_entry *e)
{
	--*(int64_t *)ctx;
	return true;
}

static bool is_sound(struct index *ix, struct list *l)
{
	int64_t left = l->n;

	return index_entries(ix) == l->n && index_each(ix, is_counted, &left) && left == 0;
}

/* The number of the first operation after which something is amiss; n: none. */
static unsigned replay(const struct op *ops, unsigned n)
{
	static const uint64_t secret[3] = { 1, 2, 3 };
	static struct list l;
	struct index *ix;
	unsigned i;

	l.n = 0;
	cr_assert_eq(index_create(&ix, secret), 0);
	for (i = 0; i < n; i++) {
		bool ok = ops[i].kind == SET ? set_page(ix, &l, &ops[i]) :
			  ops[i].kind == REMOVE ? remove_page(ix, &l, &ops[i]) : true;

		if (!ok || !find_key(ix, &l, ops[i].key) || !is_sound(ix, &l))
			break;
	}
	index_destroy(&ix);
	return i;
}

/* Leaves out what is not needed to fail; returns how many are left. */
static unsigned reduce(struct op *ops, unsigned n)
{
	for (unsigned size = n / 2; size > 0; size /= 2)
		for (unsigned at = 0; at + size <= n; ) {
			struct op *less = malloc(n * sizeof(*less));

			memcpy(less, ops, at * sizeof(*ops));
			memcpy(less + at, ops + at + size, (n - at - size) * sizeof(*ops));
			if (replay(less, n - size) < n - size) {
				n = replay(less, n - size) + 1;
				memcpy(ops, less, n * sizeof(*ops));
			} else {
				at += size;
			}
			free(less);
		}
	return n;
}

static void report(struct op *ops, unsigned n, unsigned seed)
{
	n = reduce(ops, n);
	fprintf(stderr, "seed %u fails after %u operations:\n", seed, n);
	for (unsigned i = 0; i < n && i < 40; i++)
		fprintf(stderr, "  %s key %#llx who %#x page %u\n",
			ops[i].kind == SET ? "set" : ops[i].kind == REMOVE ? "remove" : "find",
			(unsigned long long)ops[i].key, ops[i].who, ops[i].page);
}

static void run_random(unsigned first, unsigned runs, unsigned n)
{
	struct op *ops = malloc(n * sizeof(*ops));

	for (unsigned s = first; s < first + runs; s++) {
		unsigned seed = s, done;

		for (unsigned i = 0; i < n; i++)
			ops[i] = some_op(&seed, i / 300 % 2 ? 2 : 6);
		done = replay(ops, n);
		if (done < n)
			report(ops, done + 1, s);
		cr_assert_eq(done, n);
	}
	free(ops);
}

Test(index, random_operations_agree_with_a_list)
{
	run_random((unsigned)now_ns(), 12, 2400);
}

Test(index, known_seeds_agree_with_a_list)
{
	run_random(1, 12, 2400);
}

/* ---- size ----------------------------------------------------------------------------- */

static uint64_t spread(uint64_t i)
{
	return i * 0x9e3779b97f4a7c15u | (uint64_t)1 << 32;
}

Test(index, many_entries_stay_dense_and_memory_comes_back)
{
	static const uint64_t secret[3] = { 7, 8, 9 };
	const uint64_t n = 300000;
	struct index *ix;
	uint64_t empty;

	cr_assert_eq(index_create(&ix, secret), 0);
	empty = index_bytes(ix);
	for (uint64_t i = 0; i < n; i++)
		cr_assert_eq(index_add(ix, spread(i), 0, (uint32_t)i), 0);
	cr_expect(index_bytes(ix) - empty < n * 26, "%.1f bytes an entry",
		  (double)(index_bytes(ix) - empty) / (double)n);
	for (uint64_t i = 0; i < n; i++) {
		if (i == n - n / 16)
			cr_expect(index_bytes(ix) - empty < n / 16 * 41 + 256 * 64 * 16);
		index_remove(ix, index_find_page(ix, index_mark(spread(i)), 0, (uint32_t)i));
	}
	cr_expect_eq(index_bytes(ix), empty);
	index_destroy(&ix);
}

Test(index, key_of_hashes_that_differ_little_spreads)
{
	static const uint64_t secret[3] = { 0x123456789abcdef, 0xfedcba987654321, 0x5555aaaa5555aaaa };
	unsigned count[256] = { 0 };
	struct index *ix;

	cr_assert_eq(index_create(&ix, secret), 0);
	for (unsigned i = 0; i < 25600; i++) {
		struct wire_hash h = { .lo = i % 160, .hi = i / 160 };

		count[index_key(ix, &h) >> 56]++;
	}
	for (unsigned i = 0; i < 256; i++)
		cr_expect(count[i] > 50 && count[i] < 170, "shard %u: %u", i, count[i]);
	index_destroy(&ix);
}
