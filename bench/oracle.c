/*
 * See oracle.h.
 *
 * Pages are read 1 MiB at a time.  What cannot be read (EFAULT, EIO) is an error: a VM
 * that is not all there would be counted as one that shares well.
 */
#include "bench/oracle.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>
#include <xxhash.h>

#include "mm/kernel.h"

#define BATCH_PAGES 256u
#define REGIONS 512u

/* ---- reading ---------------------------------------------------------------------- */

static int read_remote(pid_t pid, uint64_t addr, uint8_t *to, size_t len)
{
	size_t got = 0;

	while (got < len) {
		struct iovec local = { to + got, len - got };
		struct iovec remote = { (void *)(uintptr_t)(addr + got), len - got };
		ssize_t rc = process_vm_readv(pid, &local, 1, &remote, 1, 0);

		if (rc < 0 && errno == EINTR)
			continue;
		if (rc <= 0)
			return rc < 0 ? -errno : -EIO;
		got += (size_t)rc;
	}
	return 0;
}

/* The pages from `at` on: where they are, or a copy in `room`. */
static int look_at(const struct oracle_range *r, uint64_t at, size_t len, uint8_t *room,
		   const uint8_t **out)
{
	if (r->pid == 0 || r->pid == getpid()) {
		*out = (const uint8_t *)(uintptr_t)(r->addr + at);
		return 0;
	}
	*out = room;
	return read_remote(r->pid, r->addr + at, room, len);
}

/* ---- counting --------------------------------------------------------------------- */

struct entry {
	uint64_t lo, hi;
	uint32_t range, page;
};

struct count {
	const struct oracle_range *ranges;
	struct entry *entry;
	uint64_t n;
	struct oracle_counts *out;
	uint8_t *room;
};

static bool is_filled(const uint8_t *page)
{
	return memcmp(page, page + sizeof(uint64_t), PAGE_BYTES - sizeof(uint64_t)) == 0;
}

static bool is_zero(const uint8_t *page)
{
	static const uint64_t zero;

	return memcmp(page, &zero, sizeof(zero)) == 0 && is_filled(page);
}

static void take_page(struct count *c, uint32_t range, uint32_t page, const uint8_t *at)
{
	XXH128_hash_t h;

	c->out->pages++;
	if (is_zero(at)) {
		c->out->zero_pages++;
		return;
	}
	c->out->filled_pages += is_filled(at);
	h = XXH3_128bits(at, PAGE_BYTES);
	c->entry[c->n++] = (struct entry){ h.low64, h.high64, range, page };
}

static int take_range(struct count *c, uint32_t range)
{
	const struct oracle_range *r = &c->ranges[range];
	uint64_t pages = r->bytes >> PAGE_SHIFT;

	for (uint64_t at = 0; at < pages; at += BATCH_PAGES) {
		uint64_t n = pages - at < BATCH_PAGES ? pages - at : BATCH_PAGES;
		const uint8_t *p;
		int rc = look_at(r, at << PAGE_SHIFT, n << PAGE_SHIFT, c->room, &p);

		if (rc)
			return rc;
		for (uint64_t i = 0; i < n; i++)
			take_page(c, range, (uint32_t)(at + i), p + (i << PAGE_SHIFT));
	}
	return 0;
}

static int by_hash(const void *a, const void *b)
{
	const struct entry *x = a, *y = b;

	if (x->hi != y->hi)
		return x->hi < y->hi ? -1 : 1;
	return (x->lo > y->lo) - (x->lo < y->lo);
}

/* Those of one hash, all with the first: those that differ are contents of their own. */
static int compare_run(struct count *c, const struct entry *e, uint64_t n, uint64_t *differ)
{
	const uint8_t *first, *other;
	int rc = look_at(&c->ranges[e->range], (uint64_t)e->page << PAGE_SHIFT, PAGE_BYTES,
			 c->room, &first);

	*differ = 0;
	for (uint64_t i = 1; i < n && !rc; i++) {
		rc = look_at(&c->ranges[e[i].range], (uint64_t)e[i].page << PAGE_SHIFT, PAGE_BYTES,
			     c->room + PAGE_BYTES, &other);
		if (!rc)
			*differ += memcmp(first, other, PAGE_BYTES) != 0;
	}
	return rc;
}

static int count_contents(struct count *c, bool compare)
{
	int rc = 0;

	qsort(c->entry, c->n, sizeof(*c->entry), by_hash);
	for (uint64_t i = 0, n; i < c->n && !rc; i += n) {
		uint64_t differ = 0;

		for (n = 1; i + n < c->n && by_hash(&c->entry[i], &c->entry[i + n]) == 0; n++)
			;
		if (compare && n > 1)
			rc = compare_run(c, &c->entry[i], n, &differ);
		c->out->contents += 1 + differ;
		c->out->collisions += differ;
		c->out->single_pages += n == 1;
		if (n - differ > c->out->most)
			c->out->most = n - differ;
	}
	return rc;
}

int oracle_count(const struct oracle_range *ranges, unsigned n, bool compare,
		 struct oracle_counts *out)
{
	struct oracle_counts counts = { 0 };
	struct count c = { .ranges = ranges, .out = &counts };
	uint64_t pages = 0;
	int rc = 0;

	for (unsigned i = 0; i < n; i++)
		pages += ranges[i].bytes >> PAGE_SHIFT;
	c.entry = calloc(pages ? pages : 1, sizeof(*c.entry));
	c.room = malloc(BATCH_PAGES << PAGE_SHIFT);
	if (!c.entry || !c.room)
		rc = -ENOMEM;
	for (unsigned i = 0; i < n && !rc; i++)
		rc = take_range(&c, i);
	if (!rc)
		rc = count_contents(&c, compare);
	counts.saving_pages = counts.pages - counts.contents;
	counts.equal_pages = counts.saving_pages - counts.zero_pages;
	if (!rc)
		*out = counts;
	free(c.room);
	free(c.entry);
	return rc;
}

/* ---- whose memory ------------------------------------------------------------------ */

struct mapping {
	uint64_t from, to;
	bool may_be_ram;
};

/* Anonymous, or pages of a store (a memfd) mapped in between. */
static bool parse_mapping(const char *line, struct mapping *m)
{
	char perms[5], name[32] = "";
	uint64_t inode;

	if (sscanf(line, "%" SCNx64 "-%" SCNx64 " %4s %*x %*s %" SCNu64 " %31s", &m->from, &m->to,
		   perms, &inode, name) < 4)
		return false;
	m->may_be_ram = strcmp(perms, "rw-p") == 0 &&
			(inode == 0 ? name[0] == '\0' : strncmp(name, "/memfd:", 7) == 0);
	return true;
}

struct maps {
	struct mapping *v;
	size_t n, room;
};

static int read_maps(pid_t pid, struct maps *m)
{
	char path[64], line[512];
	int rc = 0;
	FILE *f;

	snprintf(path, sizeof(path), "/proc/%d/maps", (int)pid);
	f = fopen(path, "re");
	if (!f)
		return -errno;
	while (!rc && fgets(line, sizeof(line), f)) {
		if (m->n == m->room) {
			struct mapping *v = reallocarray(m->v, 2 * m->room + 256, sizeof(*v));

			rc = v ? 0 : -ENOMEM;
			m->v = v ? v : m->v;
			m->room = v ? 2 * m->room + 256 : m->room;
		}
		if (!rc)
			m->n += parse_mapping(line, &m->v[m->n]);
	}
	fclose(f);
	return rc;
}

/* Length of the run from mapping i on: exactly `bytes` where it can be (0: all of it). */
static uint64_t run_bytes(const struct maps *m, size_t i, uint64_t bytes)
{
	uint64_t len = 0;

	for (size_t k = i; k < m->n && m->v[k].may_be_ram; k++) {
		if (k > i && m->v[k].from != m->v[k - 1].to)
			break;
		len += m->v[k].to - m->v[k].from;
		if (len == bytes)
			break;
	}
	return len;
}

int oracle_guest_ram(pid_t pid, uint64_t bytes, struct oracle_range *out)
{
	struct oracle_range best = { .pid = pid };
	struct maps m = { 0 };
	int rc = read_maps(pid, &m);

	for (size_t i = 0; i < m.n && !rc; i++) {
		uint64_t len = run_bytes(&m, i, bytes);

		if (bytes ? len == bytes : len > best.bytes) {
			best.addr = m.v[i].from;
			best.bytes = len;
		}
	}
	free(m.v);
	if (!rc && best.bytes == 0)
		rc = -ENOENT;
	if (!rc)
		*out = best;
	return rc;
}

/* Adds up the regions of one scan; the address it came to, or -errno. */
static int64_t scan_some(int fd, uint64_t from, uint64_t end, uint64_t *pages)
{
	struct page_region regions[REGIONS];
	struct pm_scan_arg a = {
		.size = sizeof(a), .start = from, .end = end,
		.vec = (uintptr_t)regions, .vec_len = REGIONS,
		.category_inverted = PAGE_IS_PFNZERO | PAGE_IS_FILE,
		.category_mask = PAGE_IS_PFNZERO | PAGE_IS_FILE,
		.category_anyof_mask = PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
		.return_mask = PAGE_IS_PRESENT,
	};
	int n = ioctl(fd, PAGEMAP_SCAN, &a);

	if (n < 0)
		return -errno;
	for (int i = 0; i < n; i++)
		*pages += (regions[i].end - regions[i].start) >> PAGE_SHIFT;
	return (int64_t)a.walk_end;
}

int oracle_resident(const struct oracle_range *r, uint64_t *pages)
{
	uint64_t at = r->addr, end = r->addr + r->bytes, n = 0;
	char path[64];
	int fd, rc = 0;

	snprintf(path, sizeof(path), "/proc/%d/pagemap", (int)(r->pid ? r->pid : getpid()));
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	while (at < end && !rc) {
		int64_t next = scan_some(fd, at, end, &n);

		if (next <= (int64_t)at)
			rc = next < 0 ? (int)next : -EIO;
		else
			at = (uint64_t)next;
	}
	close(fd);
	if (!rc)
		*pages = n;
	return rc;
}
