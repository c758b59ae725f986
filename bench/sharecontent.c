/*
 * See share.h.
 *
 * Each VM's memory is made of runs: parts of files that all VMs of an image have in their
 * page caches, and parts that two of them have (SHARE_COMMON, SHARE_PAIR: the base's pages
 * as they are); pages of zeroes; and pages of its own, which are the base's with their
 * cache lines rotated, by another number in each, and a word that says whose they are: as
 * compressible as the others, and like nobody else's.  Each VM has its runs in an order of
 * its own.  Everything follows from fixed seeds.
 */
#include <stdlib.h>
#include <string.h>

#include "bench/share.h"

#define SEED 0x2545f4914f6cdd1du
#define LINE_BYTES 64u
#define LINES (PAGE_BYTES / LINE_BYTES)

/* Of a VM's pages, in 1/1000, and how long runs are at most. */
static const struct {
	unsigned share, run_pages;
} parts[SHARE_KINDS] = {
	[SHARE_ZERO] = { 100, 16 },  [SHARE_COMMON] = { 350, 32 }, [SHARE_PAIR] = { 100, 32 },
	[SHARE_OWN] = { 430, 16 }, [SHARE_HOT] = { 20, 4 },
};

struct run {
	uint32_t from, pages;
	uint8_t kind;
};

struct runs {
	struct run *v;
	size_t n;
};

/* Where in the base a kind's pages begin: those of pairs behind the common ones. */
static uint64_t first_of(const struct share_content *c, unsigned vm, enum share_kind kind)
{
	uint64_t common = c->pages * parts[SHARE_COMMON].share / 1000;
	uint64_t pair = c->pages * parts[SHARE_PAIR].share / 1000;

	if (kind == SHARE_COMMON)
		return 0;
	return kind == SHARE_PAIR ? common + vm / 2 * pair : vm * 7919;
}

static void cut(struct runs *r, enum share_kind kind, uint64_t first, uint64_t pages)
{
	uint64_t seed = SEED + kind;

	for (uint64_t at = 0, n; at < pages; at += n) {
		n = 1 + content_random(&seed) % parts[kind].run_pages;
		if (n > pages - at)
			n = pages - at;
		r->v[r->n++] = (struct run){ (uint32_t)(first + at), (uint32_t)n, (uint8_t)kind };
	}
}

static void shuffle(struct runs *r, unsigned vm)
{
	uint64_t seed = SEED * (vm + 1);

	for (size_t i = r->n; i > 1; i--) {
		size_t j = content_random(&seed) % i;
		struct run t = r->v[i - 1];

		r->v[i - 1] = r->v[j];
		r->v[j] = t;
	}
}

static void lay_out(struct share_content *c, unsigned vm, struct runs *r)
{
	uint64_t at = 0, left = c->pages;

	r->n = 0;
	for (unsigned kind = 0; kind < SHARE_KINDS; kind++) {
		uint64_t n = kind == SHARE_KINDS - 1 ? left : c->pages * parts[kind].share / 1000;

		cut(r, kind, first_of(c, vm, kind), n);
		left -= n;
	}
	shuffle(r, vm);
	for (size_t i = 0; i < r->n; i++)
		for (uint32_t k = 0; k < r->v[i].pages; k++)
			c->page[vm][at++] = (struct share_page){
				(r->v[i].from + k) % (uint32_t)c->pages, r->v[i].kind };
	VERIFY(at == c->pages);
}

void share_content_open(const struct bench *b, struct share_content *c, uint64_t pages)
{
	struct runs r = { .v = calloc(pages, sizeof(*r.v)) };

	VERIFY(r.v);
	*c = (struct share_content){ .pages = pages };
	content_open(b, &c->base, pages);
	for (unsigned vm = 0; vm < SHARE_VMS; vm++) {
		c->page[vm] = calloc(pages, sizeof(*c->page[vm]));
		VERIFY(c->page[vm]);
		lay_out(c, vm, &r);
	}
	free(r.v);
}

void share_content_close(struct share_content *c)
{
	for (unsigned vm = 0; vm < SHARE_VMS; vm++)
		free(c->page[vm]);
	content_close(&c->base);
}

uint64_t *share_content_word(uint8_t *page, uint64_t i)
{
	return (uint64_t *)(void *)(page + i * 2654435761u % LINES * LINE_BYTES);
}

static void own_page(const uint8_t *base, unsigned vm, uint64_t i, uint8_t *out)
{
	uint64_t lines = 1 + (i * 40503 + vm * 17) % (LINES - 1);
	uint64_t bytes = lines * LINE_BYTES;

	memcpy(out, base + bytes, PAGE_BYTES - bytes);
	memcpy(out + PAGE_BYTES - bytes, base, bytes);
	*share_content_word(out, i) = (uint64_t)(vm + 1) << 56 | i << 24;
}

void share_content_page(const struct share_content *c, unsigned vm, uint64_t i, uint8_t *out)
{
	const struct share_page *p = &c->page[vm][i];
	const uint8_t *base = c->base.page + ((uint64_t)p->from << PAGE_SHIFT);

	if (p->kind == SHARE_ZERO)
		memset(out, 0, PAGE_BYTES);
	else if (p->kind == SHARE_COMMON || p->kind == SHARE_PAIR)
		memcpy(out, base, PAGE_BYTES);
	else
		own_page(base, vm, i, out);
}
