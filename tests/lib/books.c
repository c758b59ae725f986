/*
 * What must agree, with nobody running:
 *
 *   B1  a page that is away has no memory in guest RAM
 *   B2  a staged page's slot has memory, is that page's alone, and lies between the
 *       ring's tail and its head; no slot outside those has memory
 *   B3  the counts by state are those of the entries (pages_verify), and their sum is
 *       what is assigned
 *   B4  the kernel has MISSING on for the chunks that are watched and for no other, and
 *       WP on for all
 *   B5  after a pass, present_pages is what smaps says is resident of guest RAM's own
 *   B6  a page is mapped from a file exactly if it is SHARED or BROKEN, from the place its
 *       entry says, and has memory of its own only if it is BROKEN
 *   B7  the VMAs that mapping may have cost are counted, and are no fewer than there are
 */
#include "tests/lib/books.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define HAS_MEMORY 3 /* pagemap's top bits: present, swapped */
#define FILE_PAGE ((uint64_t)1 << 61)

struct mapping {
	uint64_t from, to, file_page, own, rss, huge;
	bool missing, wp, is_file;
};

static bool parse_line(const char *line, struct mapping *m)
{
	uint64_t kib;

	if (sscanf(line, "Rss: %" SCNu64, &kib) == 1)
		m->rss = kib << 10;
	if (sscanf(line, "Anonymous: %" SCNu64, &kib) == 1)
		m->own = kib << 10;
	if (sscanf(line, "AnonHugePages: %" SCNu64, &kib) == 1)
		m->huge = kib << 10;
	if (strncmp(line, "VmFlags:", 8))
		return false;
	m->missing = strstr(line, " um");
	m->wp = strstr(line, " uw");
	return true; /* the last line of a mapping */
}

/* The next mapping that overlaps [from, to). */
static bool next_mapping(FILE *f, uint64_t from, uint64_t to, struct mapping *m)
{
	char line[512];

	while (fgets(line, sizeof(line), f)) {
		uint64_t a, b, at, inode;

		if (sscanf(line, "%" SCNx64 "-%" SCNx64 " %*s %" SCNx64 " %*s %" SCNu64, &a, &b, &at,
			   &inode) == 4)
			*m = (struct mapping){ .from = a, .to = b, .file_page = at >> PAGE_SHIFT,
					       .is_file = inode != 0 };
		else if (parse_line(line, m) && m->from < to && m->to > from)
			return true;
	}
	return false;
}

int books_smaps(const void *at, uint64_t bytes, struct books_smaps *out)
{
	FILE *f = fopen("/proc/self/smaps", "re");
	struct mapping m;

	*out = (struct books_smaps){ 0 };
	while (f && next_mapping(f, (uint64_t)at, (uint64_t)at + bytes, &m)) {
		out->rss_bytes += m.rss;
		out->own_bytes += m.own;
		out->file_vmas += m.is_file;
		out->huge_bytes += m.huge;
		out->vmas++;
	}
	return f ? fclose(f) : -errno;
}

static bool wrong(char *why, size_t size, const char *what, uint64_t at)
{
	snprintf(why, size, "%s: 0x%" PRIx64, what, at);
	return true;
}

/* B4 */
static bool flags_wrong(struct engine *e, char *why, size_t size)
{
	uint64_t base = (uint64_t)e->base, end = base + (e->pages.count << PAGE_SHIFT);
	FILE *f = fopen("/proc/self/smaps", "re");
	struct mapping m;
	bool bad = !f && wrong(why, size, "no smaps", 0);

	while (f && !bad && next_mapping(f, base, end, &m))
		for (uint64_t at = m.from; at < m.to && !bad; at = (at / HUGE_BYTES + 1) * HUGE_BYTES) {
			uint64_t c = (at - base) / HUGE_BYTES;

			if (e->pages.chunk[c].torn)
				continue;

			if (!m.wp)
				bad = wrong(why, size, "chunk not registered for writes", c);
			else if (m.missing != e->pages.chunk[c].watched)
				bad = wrong(why, size, m.missing ? "chunk watched unknown to us" :
					    "chunk not watched by the kernel", c);
		}
	if (f)
		fclose(f);
	return bad;
}

static uint64_t *read_pagemap(struct engine *e, const void *at, uint64_t n)
{
	uint64_t *map = calloc(n, sizeof(*map));

	if (map && e->host->pread(e->pagemap, map, n * sizeof(*map),
				  (int64_t)((uintptr_t)at / PAGE_BYTES * sizeof(*map))) ==
		   (int64_t)(n * sizeof(*map)))
		return map;
	free(map);
	return NULL;
}

static bool slot_in_use(const struct engine *e, uint64_t slot)
{
	return (slot + e->slots - e->tail % e->slots) % e->slots < e->head - e->tail;
}

/* B1, B2 for one page that is away. */
static bool page_wrong(const struct engine *e, uint64_t i, const uint64_t *ram,
		       const uint64_t *staging)
{
	const struct page *p = &e->pages.page[i];

	if (p->state == PAGE_GUEST)
		return false;
	if (p->state == PAGE_SHARED) /* or nothing, or a note of write-protection */
		return ram[i] >> 63 && !(ram[i] & FILE_PAGE);
	if (p->state == PAGE_BROKEN)
		return !(ram[i] >> 62 & HAS_MEMORY) || ram[i] & FILE_PAGE;
	if (ram[i] >> 62 & HAS_MEMORY)
		return true;
	return p->state == PAGE_STAGED &&
	       (p->payload >= e->slots || !(staging[p->payload] >> 62 & HAS_MEMORY) ||
		e->slot_owner[p->payload] != i || !slot_in_use(e, p->payload));
}

static bool pages_wrong(struct engine *e, char *why, size_t size)
{
	uint64_t *ram = read_pagemap(e, e->base, e->pages.count);
	uint64_t *staging = read_pagemap(e, e->staging, e->slots);
	bool bad = (!ram || !staging) && wrong(why, size, "no pagemap", 0);

	for (uint64_t i = 0; i < e->pages.count && !bad; i++)
		if (page_wrong(e, i, ram, staging)) {
			snprintf(why, size, "page %" PRIu64 " in state %u, payload %" PRIu64
				 ": guest RAM %s memory", i, (unsigned)e->pages.page[i].state,
				 (uint64_t)e->pages.page[i].payload,
				 ram[i] >> 62 ? "has" : "has no");
			bad = true;
		}
	for (uint64_t s = 0; s < e->slots && !bad; s++)
		if (staging[s] >> 62 & HAS_MEMORY && !slot_in_use(e, s))
			bad = wrong(why, size, "memory in a free slot of staging", s);
	free(ram);
	free(staging);
	return bad;
}

static bool is_mapped(const struct page *p)
{
	return p->state == PAGE_SHARED || p->state == PAGE_BROKEN;
}

/* B6, of one VMA. */
static bool mapping_wrong(const struct engine *e, const struct mapping *m)
{
	uint64_t base = (uint64_t)e->base, end = base + (e->pages.count << PAGE_SHIFT);
	uint64_t from = m->from > base ? m->from : base, to = m->to < end ? m->to : end;

	for (uint64_t at = from; at < to; at += PAGE_BYTES) {
		const struct page *p = &e->pages.page[(at - base) >> PAGE_SHIFT];

		if (is_mapped(p) != m->is_file ||
		    (m->is_file && share_store_page(p->payload) != m->file_page + ((at - m->from) >> PAGE_SHIFT)))
			return true;
	}
	return false;
}

/* B6, B7 */
static bool maps_wrong(struct engine *e, char *why, size_t size)
{
	uint64_t base = (uint64_t)e->base, end = base + (e->pages.count << PAGE_SHIFT), vmas = 0;
	FILE *f = fopen("/proc/self/smaps", "re");
	bool bad = !f && wrong(why, size, "no smaps", 0);
	struct mapping m;

	while (f && !bad && next_mapping(f, base, end, &m)) {
		vmas += m.is_file;
		bad = mapping_wrong(e, &m) && wrong(why, size, "mapped otherwise", m.from - base);
	}
	if (f)
		fclose(f);
	if (!bad && vmas > atomic_load(&e->map.vmas))
		bad = wrong(why, size, "more VMAs of a file than counted", vmas);
	if (!bad && !vmas && atomic_load(&e->map.vmas))
		bad = wrong(why, size, "VMAs counted where nothing is mapped", atomic_load(&e->map.vmas));
	return bad;
}

/* B3, B5 */
static bool counts_wrong(struct engine *e, char *why, size_t size)
{
	struct books_smaps s;
	uint64_t sum = 0, present;

	engine_pass(e); /* what was broken off is noted */
	pages_verify(&e->pages);
	for (unsigned i = 0; i < PAGE_STATES; i++)
		sum += atomic_load(&e->pages.in_state[i]);
	if (sum != e->pages.count)
		return wrong(why, size, "the states do not add up to what is assigned", sum);
	present = atomic_load(&e->present_pages);
	if (books_smaps(e->base, e->pages.count << PAGE_SHIFT, &s))
		return wrong(why, size, "no smaps", 0);
	if (present << PAGE_SHIFT == s.own_bytes)
		return false;
	snprintf(why, size, "%" PRIu64 " KiB present, by smaps %" PRIu64, present << 2,
		 s.own_bytes >> 10);
	return true;
}

/* What was read without the locks comes before what happens under them next. */
static void settle(struct engine *e)
{
	for (uint64_t i = 0; i < e->pages.chunk_count; i++) {
		pthread_mutex_lock(&e->pages.chunk[i].lock);
		pthread_mutex_unlock(&e->pages.chunk[i].lock);
	}
}

int books_check(struct engine *e, char *why, size_t size)
{
	bool bad = flags_wrong(e, why, size) || counts_wrong(e, why, size) ||
		   pages_wrong(e, why, size) || maps_wrong(e, why, size);

	settle(e);
	return bad ? -1 : 0;
}
