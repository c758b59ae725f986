/*
 * Which pages look alike: a few features of each, and an index of who had them.
 *
 * A page is taken as the set of its windows of 16 bytes at multiples of 8: what
 * programs keep in memory is aligned.  Its features are the smallest hashes of that
 * set: two pages that share most windows share most of these, wherever in the page
 * they are, and a page of which a part was overwritten keeps those of the rest.
 * Windows of two equal words (zeroes, padding) are everybody's, and left out.
 *
 * Looked at on the memory of a busy guest: blocks at fixed places, which are cheapest,
 * saved half as much; windows at every byte saved a hundredth more and took five times
 * as long.
 *
 * The index is buckets of one cache line, newest first: the oldest of a bucket falls
 * off.  It holds hints: they may be stale, or of another page whose hash is the same;
 * who uses one looks for himself.
 *
 * Threads: the put thread.
 */
#include "mm/swap/internal.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#define WAYS 8u      /* 64 bytes */
#define CHECK_BITS (64 - HINT_BITS)
#define CANDIDATES (FEATURES * 4)

static uint64_t load64(const uint8_t *p)
{
	uint64_t v;

	memcpy(&v, p, sizeof(v));
	return v;
}

/* Sorted in, unless it is there already. */
static void keep(struct features *f, uint64_t h)
{
	uint32_t i = f->n;

	for (uint32_t j = 0; j < f->n; j++)
		if (f->hash[j] == h)
			return;
	if (i == FEATURES)
		i--;
	else
		f->n++;
	for (; i > 0 && f->hash[i - 1] > h; i--)
		f->hash[i] = f->hash[i - 1];
	f->hash[i] = h;
}

void features_of(const void *page, struct features *out)
{
	uint64_t most = UINT64_MAX, a = load64(page), b, h;

	out->n = 0;
	for (uint64_t at = sizeof(a); at < PAGE_BYTES; at += sizeof(a), a = b) {
		b = load64((const uint8_t *)page + at);
		if (a == b)
			continue;
		h = (a ^ (b << 29 | b >> 35)) * 0x9e3779b97f4a7c15u;
		h = (h ^ h >> 32 ^ b) * 0xc2b2ae3d27d4eb4fu;
		if (h >= most)
			continue;
		keep(out, h);
		most = out->n == FEATURES ? out->hash[FEATURES - 1] : UINT64_MAX;
	}
}

/* ---- the index ----------------------------------------------------------------- */

int similar_init(struct similar *m, uint64_t bytes, const struct mm_host *host)
{
	void *at = host->mmap(NULL, bytes, PROT_READ | PROT_WRITE,
			      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	VERIFY(bytes >= PAGE_BYTES && (bytes & (bytes - 1)) == 0);
	if (at == MAP_FAILED)
		return -ENOMEM;
	*m = (struct similar){ .host = host, .entry = at, .bytes = bytes };
	return 0;
}

void similar_fini(struct similar *m)
{
	if (m->entry && m->host->munmap(m->entry, m->bytes) < 0)
		log_error("swap: cannot unmap the index of similar pages: %s", strerror(errno));
	*m = (struct similar){ 0 };
}

/* A feature is small by choice: its high bits say little, so it is mixed again. */
static uint64_t mixed(uint64_t feature)
{
	feature *= 0x9e3779b97f4a7c15u;
	return feature ^ feature >> 29;
}

static uint64_t *bucket(const struct similar *m, uint64_t mix)
{
	return m->entry + (mix & (m->bytes / (WAYS * sizeof(uint64_t)) - 1)) * WAYS;
}

static uint64_t check_of(uint64_t mix)
{
	return mix >> HINT_BITS;
}

void similar_add(struct similar *m, const struct features *f, uint64_t hint)
{
	for (uint32_t i = 0; i < f->n; i++) {
		uint64_t mix = mixed(f->hash[i]), *b = bucket(m, mix);

		memmove(b + 1, b, (WAYS - 1) * sizeof(*b));
		b[0] = check_of(mix) << HINT_BITS | hint;
	}
}

struct votes {
	unsigned n;
	uint64_t hint[CANDIDATES];
	unsigned count[CANDIDATES];
};

static void vote(struct votes *v, uint64_t hint)
{
	unsigned i = 0;

	while (i < v->n && v->hint[i] != hint)
		i++;
	if (i == CANDIDATES)
		return;
	if (i == v->n) {
		v->hint[v->n] = hint;
		v->count[v->n++] = 0;
	}
	v->count[i]++;
}

/* The one with most votes; of these, the one noted first: it is the newest of the
 * rarest feature. */
static unsigned winner(const struct votes *v)
{
	unsigned best = 0;

	for (unsigned i = 1; i < v->n; i++)
		if (v->count[i] > v->count[best])
			best = i;
	return best;
}

unsigned similar_find(const struct similar *m, const struct features *f, uint64_t *hints,
		      unsigned max)
{
	struct votes v = { 0 };
	unsigned n = 0;

	for (uint32_t i = 0; i < f->n; i++) {
		uint64_t mix = mixed(f->hash[i]), *b = bucket(m, mix);

		for (unsigned w = 0; w < WAYS; w++)
			if (b[w] && b[w] >> HINT_BITS == check_of(mix))
				vote(&v, b[w] & (((uint64_t)1 << HINT_BITS) - 1));
	}
	for (unsigned best; n < max && v.n > 0; n++) {
		best = winner(&v);
		if (!v.count[best] || v.count[best] < m->shared_min)
			break;
		hints[n] = v.hint[best];
		v.count[best] = 0;
	}
	return n;
}
