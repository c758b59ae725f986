/* diskbox: a swap with a swap file and a shadow of what is in it, on a host whose calls fail
 * on request, for the tests of mm/swap/'s disk tier. */
#ifndef BRIM_TESTS_DISKBOX_H
#define BRIM_TESTS_DISKBOX_H

#include <fcntl.h>
#include <liburing.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tests/unit/swapbox.h"

#define PAGES 8192u /* owners: 32 MiB of guest */
#define CAP (16 * MiB)
#define FILE_BYTES (24 * MiB)
#define RAW_NOISE PAGE_BYTES

/* ---- pages ------------------------------------------------------------------- */

static unsigned families; /* 0: no two pages are alike */
static bool lettered;     /* what is alike is of letters, so that it can be refined too */

/* Some words of it are its own, where pages are alike.  Of such a delta refining cannot make
 * less, of letters it can: every third has some. */
static inline void make_differ(struct page *page, uint64_t seed)
{
	uint64_t state = seed;
	struct page own;

	if (lettered && seed % 3 == 0) {
		text(&own, seed, 600);
		memcpy(page->b + seed % 1000, own.b, 600);
	}

	for (unsigned i = 0; i < 24; i++) {
		uint64_t v = mix(&state);

		memcpy(page->b + v % (PAGE_BYTES / sizeof(v)) * sizeof(v), &v, sizeof(v));
	}
}

/* The page a seed stands for: `noise` bytes of it random, the rest repeats. */
static inline void make_page(struct page *page, uint64_t seed, size_t noise)
{
	bool alike = families && noise && noise != RAW_NOISE;

	if (alike && lettered)
		text(page, seed % families, noise);
	else
		packable(page, alike ? seed % families : seed, noise);
	if (alike)
		make_differ(page, seed);
}

/* ---- a host that counts, and fails on request -------------------------------- */

static bool writes_fail, writes_are_short, discards_refused, nothing_ends;
static unsigned write_fails_one_in;
static uint64_t fail_random = 1;
static uint64_t discarded[4096];
static unsigned discards;

static inline int host_ioctl(int fd, unsigned long request, void *arg)
{
	const uint64_t *range = arg;

	if (call_fails())
		return -1;
	if (request != BLKDISCARD)
		return ioctl(fd, request, arg);
	if (discards_refused) {
		errno = EOPNOTSUPP;
		return -1;
	}
	cr_assert_lt(discards, ARRAY_LEN(discarded));
	cr_assert_eq(range[1], SEGMENT_BYTES);
	discarded[discards++] = range[0];
	return 0;
}

static inline int64_t host_pread(int fd, void *buf, size_t len, int64_t off)
{
	return call_fails() ? -1 : pread(fd, buf, len, off);
}

static inline int64_t host_pwrite(int fd, const void *buf, size_t len, int64_t off)
{
	return call_fails() ? -1 : pwrite(fd, buf, len, off);
}

static inline int host_fallocate(int fd, int mode, int64_t off, int64_t len)
{
	return call_fails() ? -1 : fallocate(fd, mode, off, len);
}

static inline int host_ring_init(unsigned depth, struct io_uring *ring)
{
	return call_fails() ? -fail_error : io_uring_queue_init(depth, ring, 0);
}

static inline int host_ring_submit(struct io_uring *ring)
{
	return call_fails() ? -fail_error : io_uring_submit(ring);
}

static inline void spoil(struct io_uring_cqe *cqe)
{
	const struct aio_op *op = io_uring_cqe_get_data(cqe);

	if (!op || cqe->res < 0)
		return;
	if (writes_are_short && cqe->res > (int)MM_BLOCK_BYTES) /* and reads */
		cqe->res = cqe->res / 2 / (int)MM_BLOCK_BYTES * (int)MM_BLOCK_BYTES;
	if (op->is_write && write_fails_one_in && mix(&fail_random) % write_fails_one_in == 0)
		cqe->res = -EIO;
	if ((op->is_write && writes_fail) || call_fails())
		cqe->res = -EIO;
}

static inline int host_ring_wait(struct io_uring *ring, struct io_uring_cqe **cqe, bool wait)
{
	int rc;

	if (nothing_ends && !wait)
		return -EAGAIN;
	rc = wait ? io_uring_wait_cqe(ring, cqe) : io_uring_peek_cqe(ring, cqe);
	if (!rc && *cqe)
		spoil(*cqe);
	return rc;
}

static const struct mm_host host = {
	.mmap = host_mmap, .munmap = host_munmap, .madvise = host_madvise, .ioctl = host_ioctl,
	.pread = host_pread, .pwrite = host_pwrite, .fallocate = host_fallocate, .close = close,
	.ring_init = host_ring_init, .ring_submit = host_ring_submit, .ring_wait = host_ring_wait,
};

/* ---- a swap with a shadow ---------------------------------------------------- */

static char dir[64], path[128];

struct shadow {
	struct swap *s;
	swap_ref_t ref[PAGES]; /* 0: not in it */
	uint64_t seed[PAGES];
	uint16_t noise[PAGES];
	uint64_t random;
	unsigned moves, asked, refuse_one_in;
};

static struct shadow *sh;
static struct swap_disk_config disk;
static enum swap_delta delta_asked;
static struct err err;

static inline bool moved(void *ctx, uint64_t owner, swap_ref_t from, swap_ref_t to)
{
	struct shadow *w = ctx;

	cr_assert_lt(owner, PAGES);
	if (w->ref[owner].v != from.v)
		return false; /* dropped while it was on its way */
	if (w->refuse_one_in && mix(&w->random) % w->refuse_one_in == 0)
		return false; /* is being read */
	w->ref[owner] = to;
	*(from.v == to.v ? &w->asked : &w->moves) += 1;
	return true;
}

static inline int try_create(uint64_t cap_bytes)
{
	struct swap_config cfg = { .max_pages = PAGES, .cap_bytes = cap_bytes, .host = &host,
				   .move = moved, .disk = &disk, .delta = delta_asked };
	int rc;

	sh = calloc(1, sizeof(*sh));
	cr_assert_not_null(sh);
	cfg.move_ctx = sh;
	err.msg[0] = '\0';
	rc = swap_create(&sh->s, &cfg, &err);
	cr_assert_eq(rc == 0, err.msg[0] == '\0', "%s", err.msg);
	cr_assert_eq(rc == 0, sh->s != NULL);
	return rc;
}

static inline void choose_path(void)
{
	snprintf(dir, sizeof(dir), "%s/brim-disk-XXXXXX", access("/dev/shm", W_OK) ? "/tmp" : "/dev/shm");
	cr_assert_not_null(mkdtemp(dir));
	snprintf(path, sizeof(path), "%s/swap", dir);
	disk = (struct swap_disk_config){ .path = path, .size_bytes = FILE_BYTES };
}

static inline void forget_path(void)
{
	unlink(path);
	cr_assert_eq(rmdir(dir), 0);
}

enum secrecy { PLAIN, ENCRYPTED };

static inline void begin_sized(enum secrecy how, uint64_t bytes)
{
	choose_path();
	disk.encrypt = how == ENCRYPTED;
	disk.size_bytes = bytes;
	cr_assert_eq(try_create(CAP), 0, "%s", err.msg);
}

static inline void begin(enum secrecy how)
{
	begin_sized(how, FILE_BYTES);
}

static inline void destroy(void)
{
	swap_destroy(&sh->s);
	free(sh);
	sh = NULL;
}

static inline void end(void)
{
	swap_verify(sh->s);
	destroy();
	forget_path();
}

static inline struct swap_stats stats(void)
{
	struct swap_stats st;

	swap_stats(sh->s, &st);
	return st;
}

static inline void check_cap(void)
{
	struct swap_stats st = stats();

	cr_assert_leq(st.held_bytes, CAP);
	cr_assert_leq(st.disk_used_bytes, st.disk_size_bytes);
}

static inline int put(unsigned owner, uint64_t seed, size_t noise)
{
	swap_ref_t ref = { 0 };
	struct page page;
	int rc;

	make_page(&page, seed, noise);
	rc = swap_put(sh->s, owner, &page, &ref);
	cr_assert_eq(rc == 0, ref.v != 0);
	sh->seed[owner] = seed;
	sh->noise[owner] = (uint16_t)noise;
	sh->ref[owner] = ref;
	check_cap();
	return rc;
}

/* As a fault thread does: -EIO, or the page. */
static inline int read_page(unsigned owner, struct page *got)
{
	_Alignas(PAGE_BYTES) uint8_t raw[3 * PAGE_BYTES];
	const struct mm_tier *t = &swap_tier_disk;
	struct mm_read r = { .raw = raw };
	uint64_t ref = sh->ref[owner].v;
	int rc;

	if (!ref_is_disk(sh->ref[owner]))
		return t->get(sh->s, ref, owner, got);
	t->pin(sh->s, ref, &r.of);
	cr_assert(r.of.bytes <= sizeof(raw) && r.of.bytes <= MM_EXTENT_MAX);
	cr_assert(r.of.bytes % MM_BLOCK_BYTES == 0 && r.of.offset % MM_BLOCK_BYTES == 0);
	rc = pread(r.of.fd, raw, r.of.bytes, (off_t)r.of.offset) == (ssize_t)r.of.bytes ? 0 : -EIO;
	if (!rc)
		rc = t->arrived(sh->s, &r.of, raw);
	if (!rc)
		rc = t->unpack(sh->s, ref, owner, &r, got);
	t->unpin(sh->s, ref);
	return rc;
}

static inline void check_page(unsigned owner)
{
	struct page want, got;

	make_page(&want, sh->seed[owner], sh->noise[owner]);
	memset(&got, 0xee, sizeof(got));
	cr_assert_eq(read_page(owner, &got), 0, "page %u", owner);
	cr_assert(same(&want, &got), "page %u", owner);
	memset(&got, 0xee, sizeof(got));
	cr_assert_eq(swap_get(sh->s, sh->ref[owner], owner, &got), 0, "page %u", owner);
	cr_assert(same(&want, &got), "page %u", owner);
}

static inline unsigned on_disk(void)
{
	unsigned n = 0;

	for (unsigned i = 0; i < PAGES; i++)
		n += ref_is_disk(sh->ref[i]);
	return n;
}

static inline void check_all(void)
{
	struct swap_stats st = stats();
	uint64_t pages = 0;

	for (unsigned i = 0; i < PAGES; i++) {
		if (!sh->ref[i].v)
			continue;
		check_page(i);
		pages++;
	}
	cr_assert_eq(pages, st.filled_pages + st.packed_pages + st.disk_pages);
	cr_assert_eq(st.disk_pages, on_disk());
	swap_verify(sh->s);
}

static inline void drop(unsigned owner)
{
	swap_drop(sh->s, sh->ref[owner]);
	sh->ref[owner].v = 0;
}

static inline void put_many(unsigned from, unsigned n, size_t noise)
{
	for (unsigned i = from; i < from + n; i++) {
		if (put(i, 1000 + i, noise) == 0)
			continue;
		cr_assert_geq(swap_room(sh->s, 32), 1);
		cr_assert_eq(put(i, 1000 + i, noise), 0, "page %u", i);
	}
}

static inline void spill_all(void)
{
	swap_spill(sh->s, UINT64_MAX / 2);
	cr_assert_eq(stats().packed_pages, 0);
}

static inline void overwrite(uint64_t offset, const void *with, size_t n)
{
	int fd = open(path, O_RDWR);

	cr_assert_eq(pwrite(fd, with, n, (off_t)offset), (ssize_t)n);
	cr_assert_eq(fsync(fd), 0);
	close(fd);
}

static inline uint64_t object_offset(unsigned owner)
{
	return disk_offset(disk_segment_of(sh->ref[owner])) +
	       ref_unit(sh->ref[owner]) * UNIT_BYTES;
}

static inline void flip(uint64_t offset)
{
	uint8_t byte;
	int fd = open(path, O_RDONLY);

	cr_assert_eq(pread(fd, &byte, 1, (off_t)offset), 1);
	close(fd);
	byte ^= 0x40;
	overwrite(offset, &byte, 1);
}

static inline void check_damaged(unsigned owner)
{
	uint64_t before = counter_get(CTR_swap_disk_bad);
	struct page got;

	cr_assert_eq(read_page(owner, &got), -EIO);
	cr_assert_eq(counter_get(CTR_swap_disk_bad), before + 1);
	cr_assert_eq(swap_get(sh->s, sh->ref[owner], owner, &got), -EIO);
}

static inline struct object *object_in_pool(unsigned owner)
{
	uint64_t unit = sh->ref[owner].v & ~REF_PACKED;

	return (struct object *)(void *)(sh->s->pool.base + unit * UNIT_BYTES);
}

#endif
