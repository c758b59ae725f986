/*
 * A store: the memory whose pages several VMs use, and who holds which of them.
 *
 *   free ──store_put──► used ──last hold gone: store_free──► dirty ──store_tidy──► free
 *
 * A memfd as large as it may ever become, and sparse.  Only the daemon writes it; VMs get
 * a descriptor opened read-only, and seals keep its size.  Whoever runs as the daemon's
 * user could open it for writing through /proc: VMs that are not to be trusted must run as
 * another.
 *
 *   page 0    whose store this is
 *   1 to 4    the processes it was given to
 *   5 ...     pages
 *
 * The daemon reads and writes by pread and pwrite, not by a mapping: a write that finds no
 * memory is an error then, not a signal, and reading where nothing is adds no page.
 *
 *  I1  A page with refs is used; one that is used has refs, but for the moment between
 *      store_put() or store_claim() and the first hold.
 *  I2  refs[p] is the number of processes whose bit of p is set.
 *  I3  A page is written when it comes from free, and never again; its memory is given
 *      back only while it is not used.
 */
#include "host/internal.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#ifndef MFD_NOEXEC_SEAL
#define MFD_NOEXEC_SEAL 0x0008U
#endif
#ifndef F_SEAL_EXEC
#define F_SEAL_EXEC 0x0020
#endif

#define STORE_MAGIC 0x65726f74736d7262u /* "brmstore" */
#define STORE_VERSION 1u
#define SEALS (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL | F_SEAL_EXEC)
#define GIVEN_AT ((off_t)PAGE_BYTES)
#define EXCESS_PAGES 64u /* more than this beyond what is used is looked into */

struct store_header {
	uint64_t magic;
	uint32_t version, pages;
	uint64_t id;
	uint32_t uid, given;
	char group[WIRE_NAME_MAX];
};

_Static_assert(STORE_FIRST_PAGE * PAGE_BYTES >=
	       PAGE_BYTES + STORE_GIVEN_MAX * sizeof(struct given), "the registry has its place");

/* ---- tables ---------------------------------------------------------------------- */

void *lazy_map(uint64_t bytes)
{
	void *at = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
			MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	return at == MAP_FAILED ? NULL : at;
}

void lazy_unmap(void *at, uint64_t bytes)
{
	if (at)
		VERIFY(munmap(at, bytes) == 0);
}

static uint64_t bits_bytes(const struct store *st)
{
	return ((uint64_t)st->pages + 63) / 64 * 8;
}

static bool bit(const uint64_t *bits, uint32_t i)
{
	return bits[i / 64] >> i % 64 & 1;
}

static void bit_set(uint64_t *bits, uint32_t i)
{
	bits[i / 64] |= (uint64_t)1 << i % 64;
}

static void bit_clear(uint64_t *bits, uint32_t i)
{
	bits[i / 64] &= ~((uint64_t)1 << i % 64);
}

static int map_tables(struct store *st)
{
	st->used = lazy_map(bits_bytes(st));
	st->dirty = lazy_map(bits_bytes(st));
	st->mark = lazy_map(st->pages * sizeof(*st->mark));
	st->refs = lazy_map(st->pages * sizeof(*st->refs));
	st->age = lazy_map(st->pages * sizeof(*st->age));
	return st->used && st->dirty && st->mark && st->refs && st->age ? 0 : -ENOMEM;
}

static void unmap_tables(struct store *st)
{
	lazy_unmap(st->used, bits_bytes(st));
	lazy_unmap(st->dirty, bits_bytes(st));
	lazy_unmap(st->mark, st->pages * sizeof(*st->mark));
	lazy_unmap(st->refs, st->pages * sizeof(*st->refs));
	lazy_unmap(st->age, st->pages * sizeof(*st->age));
}

/* ---- making one -------------------------------------------------------------------- */

void store_destroy(struct store **st)
{
	if (!*st)
		return;
	unmap_tables(*st);
	if ((*st)->ro_fd >= 0)
		close((*st)->ro_fd);
	if ((*st)->fd >= 0)
		close((*st)->fd);
	free(*st);
	*st = NULL;
}

static int alloc_store(struct store **out, uint32_t pages)
{
	struct store *st = calloc(1, sizeof(*st));

	if (!st)
		return -ENOMEM;
	st->fd = st->ro_fd = -1;
	st->pages = pages;
	st->extent = st->cursor = st->tidy_at = STORE_FIRST_PAGE;
	*out = st;
	return map_tables(st);
}

/* The same memory again, opened anew: as a descriptor's mode cannot be changed. */
static int open_again(int fd, int flags)
{
	char path[32];

	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	fd = open(path, flags | O_CLOEXEC);
	return fd < 0 ? -errno : fd;
}

static int write_at(int fd, const void *data, size_t bytes, off_t at)
{
	ssize_t n = pwrite(fd, data, bytes, at);

	return n == (ssize_t)bytes ? 0 : n < 0 ? -errno : -ENOSPC;
}

static int write_header(const struct store *st, const struct store_spec *spec)
{
	struct store_header h = { STORE_MAGIC, STORE_VERSION, st->pages, st->id, spec->uid, 0, "" };

	snprintf(h.group, sizeof(h.group), "%s", spec->group);
	return write_at(st->fd, &h, sizeof(h), 0);
}

static int make_file(struct store *st, const struct store_spec *spec)
{
	int rc;

	st->fd = memfd_create("brim-store", MFD_CLOEXEC | MFD_ALLOW_SEALING | MFD_NOEXEC_SEAL);
	if (st->fd < 0 || fchmod(st->fd, 0600) < 0 ||
	    ftruncate(st->fd, (off_t)st->pages << PAGE_SHIFT) < 0)
		return -errno;
	rc = write_header(st, spec);
	if (rc)
		return rc;
	if (fcntl(st->fd, F_ADD_SEALS, SEALS) < 0)
		return -errno;
	st->ro_fd = open_again(st->fd, O_RDONLY);
	return st->ro_fd < 0 ? st->ro_fd : 0;
}

int store_create(struct store **out, const struct store_spec *spec, struct err *e)
{
	struct store *st = NULL;
	int rc = alloc_store(&st, spec->pages);

	VERIFY(spec->pages >= STORE_MIN_PAGES && spec->pages <= STORE_MAX_PAGES);
	while (!rc && !st->id)
		if (getrandom(&st->id, sizeof(st->id), 0) != (ssize_t)sizeof(st->id))
			rc = -errno;
	if (!rc)
		rc = make_file(st, spec);
	if (rc) {
		store_destroy(&st);
		return err_sys(e, rc, "share group %s: no store", spec->group);
	}
	*out = st;
	return 0;
}

/* ---- finding one again --------------------------------------------------------------- */

static const char *check_file(int fd, struct stat *sb)
{
	struct statfs fs;

	if (fstat(fd, sb) < 0 || fstatfs(fd, &fs) < 0 || !S_ISREG(sb->st_mode) ||
	    fs.f_type != TMPFS_MAGIC || fcntl(fd, F_GET_SEALS) != SEALS)
		return "it is not a memfd sealed as stores are";
	if (sb->st_uid != geteuid() || (sb->st_mode & 07777) != 0600)
		return "it was made by another user";
	if (sb->st_size < (off_t)(STORE_MIN_PAGES * PAGE_BYTES) ||
	    sb->st_size > (off_t)STORE_MAX_PAGES << PAGE_SHIFT)
		return "its size is not one of a store";
	return NULL;
}

static const char *check_header(int fd, const struct stat *sb, const struct store_spec *spec,
				struct store_header *h)
{
	if (pread(fd, h, sizeof(*h), 0) != (ssize_t)sizeof(*h) || h->magic != STORE_MAGIC)
		return "it has no store's header";
	if (h->version != STORE_VERSION)
		return "it was made by another version of brim";
	if ((off_t)h->pages << PAGE_SHIFT != sb->st_size || h->given > STORE_GIVEN_MAX)
		return "its header is damaged";
	if (h->id != spec->id)
		return "it is not the store it is said to be";
	if (strncmp(h->group, spec->group, sizeof(h->group)) != 0)
		return "it is another group's";
	if (h->uid != spec->uid)
		return "it is another user's";
	return NULL;
}

static int read_given(struct store *st, unsigned count)
{
	size_t bytes = count * sizeof(*st->given);

	st->given_count = count;
	return pread(st->fd, st->given, bytes, GIVEN_AT) == (ssize_t)bytes ? 0 : -EIO;
}

static int open_adopted(struct store *st, int fd, const struct store_header *h)
{
	st->id = h->id;
	st->fd = open_again(fd, O_RDWR);
	if (st->fd < 0)
		return st->fd;
	st->ro_fd = open_again(fd, O_RDONLY);
	return st->ro_fd < 0 ? st->ro_fd : read_given(st, h->given);
}

int store_adopt(struct store **out, int fd, const struct store_spec *spec, struct err *e)
{
	struct store *st = NULL;
	struct store_header h;
	struct stat sb;
	const char *why = check_file(fd, &sb);
	int rc;

	if (!why)
		why = check_header(fd, &sb, spec, &h);
	if (why)
		return err_set(e, -EINVAL, "share group %s: what the VM has for a store is not taken: "
			       "%s", spec->group, why);
	rc = alloc_store(&st, h.pages);
	if (!rc)
		rc = open_adopted(st, fd, &h);
	if (rc) {
		store_destroy(&st);
		return err_sys(e, rc, "share group %s: cannot take the VM's store", spec->group);
	}
	st->limbo = true;
	*out = st;
	return 0;
}

int store_check_same(const struct store *st, int fd, struct err *e)
{
	struct stat ours, theirs;

	if (fstat(st->fd, &ours) == 0 && fstat(fd, &theirs) == 0 &&
	    ours.st_dev == theirs.st_dev && ours.st_ino == theirs.st_ino)
		return 0;
	return err_set(e, -EINVAL, "what the VM has for a store is not the one it is said to be");
}

/* ---- pages ----------------------------------------------------------------------------- */

bool store_has(const struct store *st, uint32_t page)
{
	return page >= STORE_FIRST_PAGE && page < st->pages && bit(st->used, page);
}

static bool is_free(const struct store *st, uint32_t page)
{
	return !bit(st->used, page) && !bit(st->dirty, page);
}

/* The first of the word's bits at `at` or behind it; more than 63 beyond: none. */
static uint32_t bit_from(uint64_t word, uint32_t at)
{
	word = word >> at % 64 << at % 64;
	return word ? at / 64 * 64 + (uint32_t)__builtin_ctzll(word) : (at / 64 + 1) * 64;
}

/* The first in [from, end) whose bit is not that of `flip` (0 or ~0); end: none. */
static uint32_t next_bit(const uint64_t *bits, uint64_t flip, uint32_t from, uint32_t end)
{
	while (from < end) {
		uint32_t at = bit_from(bits[from / 64] ^ flip, from);

		if (at % 64 || at == from)
			return at < end ? at : end;
		from = at;
	}
	return end;
}

static uint32_t next_set(const uint64_t *bits, uint32_t from, uint32_t end)
{
	return next_bit(bits, 0, from, end);
}

/* The first free page in [from, end); end: none. */
static uint32_t next_free(const struct store *st, uint32_t from, uint32_t end)
{
	while (from < end) {
		uint32_t at = bit_from(~(st->used[from / 64] | st->dirty[from / 64]), from);

		if (at % 64 || at == from)
			return at < end ? at : end;
		from = at;
	}
	return end;
}

/* Goes on behind the last one, so that what is stored together lies together (VMs map
 * runs); fills holes only once an eighth of what was ever used is free, for a page far
 * from others costs the kernel a node of its tree. */
static uint32_t choose(const struct store *st)
{
	uint32_t ever = st->extent - STORE_FIRST_PAGE;
	uint32_t holes = ever - st->used_pages - st->dirty_pages, at;

	if (holes == 0 || (holes * (uint64_t)8 < ever && st->extent < st->pages))
		return st->extent;
	at = next_free(st, st->cursor, st->extent);
	return at < st->extent ? at : next_free(st, STORE_FIRST_PAGE, st->extent);
}

static void mark_used(struct store *st, uint32_t page)
{
	bit_set(st->used, page);
	st->used_pages++;
	st->mark[page] = 0;
	st->age[page] = STORE_FRESH;
	if (page >= st->extent)
		st->extent = page + 1;
}

static void mark_dirty(struct store *st, uint32_t page)
{
	bit_set(st->dirty, page);
	st->dirty_pages++;
	if (page >= st->extent)
		st->extent = page + 1;
}

int store_put(struct store *st, const void *bytes, uint32_t *page)
{
	uint32_t at;
	int rc;

	if (st->limbo)
		return -EAGAIN;
	at = choose(st);
	if (at >= st->pages)
		return -ENOSPC;
	ASSERT(is_free(st, at) && st->refs[at] == 0);
	rc = write_at(st->fd, bytes, PAGE_BYTES, (off_t)at << PAGE_SHIFT);
	if (rc) {
		mark_dirty(st, at);
		return rc;
	}
	mark_used(st, at);
	st->cursor = at + 1;
	*page = at;
	return 0;
}

int store_read(const struct store *st, uint32_t page, void *bytes)
{
	ssize_t n = pread(st->fd, bytes, PAGE_BYTES, (off_t)page << PAGE_SHIFT);

	return n == (ssize_t)PAGE_BYTES ? 0 : n < 0 ? -errno : -EIO;
}

bool store_claimable(const struct store *st)
{
	return st->limbo && !st->scrub_at;
}

void store_free(struct store *st, uint32_t page)
{
	VERIFY(store_has(st, page) && st->refs[page] == 0);
	bit_clear(st->used, page);
	st->used_pages--;
	st->mark[page] = 0;
	if (!store_claimable(st))
		mark_dirty(st, page);
}

void store_claim(struct store *st, uint32_t page)
{
	VERIFY(store_claimable(st) && page >= STORE_FIRST_PAGE && page < st->pages);
	if (!bit(st->used, page))
		mark_used(st, page);
}

uint32_t store_next_used(const struct store *st, uint32_t from)
{
	uint32_t at = next_set(st->used, from, st->extent);

	return at < st->extent ? at : st->pages;
}

/* ---- giving memory back ------------------------------------------------------------------ */

static bool punch(struct store *st, uint32_t from, uint32_t to)
{
	if (fallocate(st->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
		      (off_t)from << PAGE_SHIFT, (off_t)(to - from) << PAGE_SHIFT) < 0)
		return false;
	counter_add(CTR_brimd_punched, to - from);
	return true;
}

static void clear_dirty(struct store *st, uint32_t from, uint32_t to)
{
	for (; from < to && st->dirty_pages; from++)
		if (bit(st->dirty, from)) {
			bit_clear(st->dirty, from);
			st->dirty_pages--;
		}
}

static void trim_extent(struct store *st)
{
	while (st->extent > STORE_FIRST_PAGE && is_free(st, st->extent - 1))
		st->extent--;
}

/* One run of dirty pages from tidy_at on.  False: the kernel would not. */
static bool tidy_run(struct store *st)
{
	uint32_t from = next_set(st->dirty, st->tidy_at, st->extent), to;

	if (from >= st->extent)
		from = next_set(st->dirty, STORE_FIRST_PAGE, st->extent);
	to = next_bit(st->dirty, ~(uint64_t)0, from, st->extent);
	VERIFY(to > from);
	st->tidy_at = to;
	if (!punch(st, from, to))
		return false;
	clear_dirty(st, from, to);
	return true;
}

/* One run of pages that are not used, dirty or not. */
static bool scrub_run(struct store *st)
{
	uint32_t from = st->scrub_at, to;

	from = next_bit(st->used, ~(uint64_t)0, from, st->extent > from ? st->extent : from);
	to = from < st->extent ? next_set(st->used, from, st->extent) : st->pages;
	if (to == st->extent)
		to = st->pages;
	if (from < to && !punch(st, from, to))
		return false;
	clear_dirty(st, from, to < st->extent ? to : st->extent);
	st->scrub_at = to;
	return true;
}

static bool scrub(struct store *st, unsigned *budget)
{
	for (; *budget && st->scrub_at < st->pages; --*budget)
		if (!scrub_run(st))
			return false;
	if (st->scrub_at < st->pages)
		return true;
	st->scrub_at = 0;
	st->limbo = false;
	trim_extent(st);
	return false;
}

bool store_tidy(struct store *st, unsigned *budget)
{
	if (st->scrub_at)
		return scrub(st, budget);
	for (; *budget && st->dirty_pages; --*budget)
		if (!tidy_run(st))
			return false;
	trim_extent(st);
	return st->dirty_pages > 0;
}

void store_settle(struct store *st)
{
	if (st->limbo && !st->scrub_at)
		st->scrub_at = STORE_FIRST_PAGE;
}

uint64_t store_resident_pages(const struct store *st)
{
	struct stat sb;

	return fstat(st->fd, &sb) < 0 ? 0 : (uint64_t)sb.st_blocks * 512 >> PAGE_SHIFT;
}

void store_check_excess(struct store *st)
{
	uint64_t due = (uint64_t)st->used_pages + st->dirty_pages + STORE_FIRST_PAGE;

	if (st->limbo || st->scrub_at || store_resident_pages(st) <= due + EXCESS_PAGES)
		return;
	counter_inc(CTR_brimd_scrubs);
	st->scrub_at = STORE_FIRST_PAGE;
}

/* ---- holding ------------------------------------------------------------------------------ */

bool holds_test(const struct holds *h, uint32_t page)
{
	return page < h->end && bit(h->bits, page);
}

uint32_t holds_next(const struct holds *h, uint32_t page)
{
	return h->bits ? next_set(h->bits, page, h->end) : h->end;
}

void holds_fini(struct holds *h, const struct store *st)
{
	lazy_unmap(h->bits, bits_bytes(st));
	*h = (struct holds){ 0 };
}

int store_hold(struct store *st, struct holds *h, uint32_t page)
{
	VERIFY(store_has(st, page));
	if (!h->bits)
		h->bits = lazy_map(bits_bytes(st));
	if (!h->bits)
		return -ENOMEM;
	if (holds_test(h, page))
		return 0;
	bit_set(h->bits, page);
	h->count++;
	if (page >= h->end)
		h->end = page + 1;
	VERIFY(st->refs[page]++ < UINT16_MAX);
	st->age[page] = STORE_FRESH;
	return 0;
}

bool store_unhold(struct store *st, struct holds *h, uint32_t page)
{
	VERIFY(store_has(st, page) && holds_test(h, page) && st->refs[page] > 0);
	bit_clear(h->bits, page);
	h->count--;
	st->age[page] = STORE_FRESH;
	return --st->refs[page] == 0;
}

/* ---- the registry --------------------------------------------------------------------------- */

static int write_given_count(const struct store *st, uint32_t count)
{
	return write_at(st->fd, &count, sizeof(count), offsetof(struct store_header, given));
}

static int write_given(const struct store *st, unsigned i)
{
	return write_at(st->fd, &st->given[i], sizeof(*st->given),
			GIVEN_AT + (off_t)(i * sizeof(*st->given)));
}

static unsigned find_given(const struct store *st, uint32_t pid, uint64_t start)
{
	unsigned i = 0;

	while (i < st->given_count && (st->given[i].pid != pid || st->given[i].start != start))
		i++;
	return i;
}

bool store_was_given(const struct store *st, uint32_t pid, uint64_t start)
{
	return find_given(st, pid, start) < st->given_count;
}

int store_give(struct store *st, uint32_t pid, uint64_t start)
{
	unsigned n = st->given_count;
	int rc;

	if (store_was_given(st, pid, start))
		return 0;
	if (n == STORE_GIVEN_MAX)
		return -ENOSPC;
	st->given[n] = (struct given){ .pid = pid, .start = start };
	rc = write_given(st, n);
	if (!rc)
		rc = write_given_count(st, n + 1);
	if (!rc)
		st->given_count++;
	return rc;
}

/* The last one takes its place first: ended between the two, it is there twice, no harm. */
void store_ungive(struct store *st, uint32_t pid, uint64_t start)
{
	unsigned i = find_given(st, pid, start);

	if (i == st->given_count)
		return;
	st->given[i] = st->given[st->given_count - 1];
	if (write_given(st, i) == 0 && write_given_count(st, st->given_count - 1) == 0)
		st->given_count--;
}
