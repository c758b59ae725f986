/*
 * mm/swap/ with a swap file: what goes down comes back as it was or an error does, under
 * cleaning, lifting, damage, failing calls and many threads; what the file may be; and
 * the way fault threads read it (pin, read, arrived, unpack, unpin).
 *
 * Seeds are printed; BRIM_SEED=N repeats a run, BRIM_DISK_OPS and BRIM_DISK_SECONDS make
 * the random and the concurrent test longer.
 */
#include <fcntl.h>
#include <liburing.h>
#include <linux/fs.h>
#include <pthread.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tests/unit/swapbox.h"

#define PAGES 8192u /* owners: 32 MiB of guest */
#define CAP (16 * MiB)
#define FILE_BYTES (24 * MiB)
#define RAW_NOISE PAGE_BYTES

/* ---- pages ------------------------------------------------------------------- */

static unsigned families; /* 0: no two pages are alike */

/* Some words of it are its own, where pages are alike. */
static void make_differ(struct page *page, uint64_t seed)
{
	uint64_t state = seed;

	for (unsigned i = 0; i < 24; i++) {
		uint64_t v = mix(&state);

		memcpy(page->b + v % (PAGE_BYTES / sizeof(v)) * sizeof(v), &v, sizeof(v));
	}
}

/* The page a seed stands for: `noise` bytes of it random, the rest repeats. */
static void make_page(struct page *page, uint64_t seed, size_t noise)
{
	bool alike = families && noise && noise != RAW_NOISE;

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

static int host_ioctl(int fd, unsigned long request, void *arg)
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

static int64_t host_pread(int fd, void *buf, size_t len, int64_t off)
{
	return call_fails() ? -1 : pread(fd, buf, len, off);
}

static int64_t host_pwrite(int fd, const void *buf, size_t len, int64_t off)
{
	return call_fails() ? -1 : pwrite(fd, buf, len, off);
}

static int host_fallocate(int fd, int mode, int64_t off, int64_t len)
{
	return call_fails() ? -1 : fallocate(fd, mode, off, len);
}

static int host_ring_init(unsigned depth, struct io_uring *ring)
{
	return call_fails() ? -fail_error : io_uring_queue_init(depth, ring, 0);
}

static int host_ring_submit(struct io_uring *ring)
{
	return call_fails() ? -fail_error : io_uring_submit(ring);
}

static void spoil(struct io_uring_cqe *cqe)
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

static int host_ring_wait(struct io_uring *ring, struct io_uring_cqe **cqe, bool wait)
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

static bool moved(void *ctx, uint64_t owner, swap_ref_t from, swap_ref_t to)
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

static int try_create(uint64_t cap_bytes)
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

static void choose_path(void)
{
	snprintf(dir, sizeof(dir), "%s/brim-disk-XXXXXX", access("/dev/shm", W_OK) ? "/tmp" : "/dev/shm");
	cr_assert_not_null(mkdtemp(dir));
	snprintf(path, sizeof(path), "%s/swap", dir);
	disk = (struct swap_disk_config){ .path = path, .size_bytes = FILE_BYTES };
}

static void forget_path(void)
{
	unlink(path);
	cr_assert_eq(rmdir(dir), 0);
}

enum secrecy { PLAIN, ENCRYPTED };

static void begin_sized(enum secrecy how, uint64_t bytes)
{
	choose_path();
	disk.encrypt = how == ENCRYPTED;
	disk.size_bytes = bytes;
	cr_assert_eq(try_create(CAP), 0, "%s", err.msg);
}

static void begin(enum secrecy how)
{
	begin_sized(how, FILE_BYTES);
}

static void destroy(void)
{
	swap_destroy(&sh->s);
	free(sh);
	sh = NULL;
}

static void end(void)
{
	swap_verify(sh->s);
	destroy();
	forget_path();
}

static struct swap_stats stats(void)
{
	struct swap_stats st;

	swap_stats(sh->s, &st);
	return st;
}

static void check_cap(void)
{
	struct swap_stats st = stats();

	cr_assert_leq(st.held_bytes, CAP);
	cr_assert_leq(st.disk_used_bytes, st.disk_size_bytes);
}

static int put(unsigned owner, uint64_t seed, size_t noise)
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
static int read_page(unsigned owner, struct page *got)
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

static void check_page(unsigned owner)
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

static unsigned on_disk(void)
{
	unsigned n = 0;

	for (unsigned i = 0; i < PAGES; i++)
		n += ref_is_disk(sh->ref[i]);
	return n;
}

static void check_all(void)
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

static void drop(unsigned owner)
{
	swap_drop(sh->s, sh->ref[owner]);
	sh->ref[owner].v = 0;
}

static void put_many(unsigned from, unsigned n, size_t noise)
{
	for (unsigned i = from; i < from + n; i++) {
		if (put(i, 1000 + i, noise) == 0)
			continue;
		cr_assert_geq(swap_room(sh->s, 32), 1);
		cr_assert_eq(put(i, 1000 + i, noise), 0, "page %u", i);
	}
}

static void spill_all(void)
{
	swap_spill(sh->s, UINT64_MAX / 2);
	cr_assert_eq(stats().packed_pages, 0);
}

/* ---- down and back ----------------------------------------------------------- */

static void go_down_and_back(enum secrecy how)
{
	uint64_t before = counter_get(CTR_swap_spilled), fell, held;

	begin(how);
	put_many(0, 2000, 1500);
	held = stats().held_bytes;
	fell = swap_spill(sh->s, UINT64_MAX / 2);
	cr_assert_eq(held - stats().held_bytes, fell);
	cr_assert_eq(on_disk(), 2000);
	cr_assert_eq(counter_get(CTR_swap_spilled), before + 2000);
	cr_assert_eq(stats().packed_pages, 0);
	cr_assert_eq(stats().held_bytes, stats().table_bytes, "nothing of it is in memory");
	check_all();
	for (unsigned i = 0; i < 2000; i++)
		drop(i);
	cr_assert_eq(stats().disk_used_bytes, 0);
	cr_assert_eq(stats().disk_bytes, 0);
	end();
}

Test(disk, disk_pages_spilled_come_back)
{
	go_down_and_back(PLAIN);
	go_down_and_back(ENCRYPTED);
}

Test(disk, disk_objects_of_every_size_come_back)
{
	begin(PLAIN);
	for (unsigned i = 0; i < 1000; i++)
		cr_assert_eq(put(i, i, i * 3), 0);
	for (unsigned i = 1000; i < 1200; i++)
		cr_assert_eq(put(i, i, RAW_NOISE), 0);
	spill_all();
	check_all();
	end();
}

Test(disk, disk_spill_takes_what_was_asked_coldest_first)
{
	begin(PLAIN);
	put_many(0, 4000, 1500);
	cr_assert_geq(swap_spill(sh->s, 2 * MiB), 2 * MiB);
	cr_assert_leq(on_disk(), 4 * MiB / 1500);
	for (unsigned i = 0; i + 1 < 4000; i++)
		cr_assert(ref_is_disk(sh->ref[i]) || !ref_is_disk(sh->ref[i + 1]),
			  "page %u stayed, and %u, put later, went", i, i + 1);
	check_all();
	end();
}

Test(disk, disk_room_made_so_many_fit)
{
	static const uint64_t asked[] = { 1, 100, 255, 600, 1000 };
	unsigned owner = 0;

	begin(PLAIN);
	while (put(owner, owner, 2500) == 0)
		owner++;
	sh->ref[owner].v = 0;
	for (unsigned i = 0; i < ARRAY_LEN(asked); i++) {
		uint64_t fits = swap_room(sh->s, asked[i]);

		cr_assert_eq(fits, asked[i]);
		check_cap();
		for (uint64_t k = 0; k < fits; k++, owner++)
			cr_assert_eq(put(owner, owner, k % 3 ? RAW_NOISE : 3000), 0, "%u", owner);
	}
	check_all();
	end();
}

Test(disk, disk_incompressible_goes_down_whole_and_first)
{
	uint64_t before = counter_get(CTR_swap_raw);

	begin(PLAIN);
	put_many(0, 300, 1000);
	put_many(1000, 600, RAW_NOISE);
	cr_assert_eq(counter_get(CTR_swap_raw), before + 600);
	for (unsigned i = 0; i < 100 && on_disk() < 510; i++) {
		swap_tidy(sh->s);
		usleep(10000);
	}
	cr_assert_eq(on_disk(), 510, "two full segments of them, and nothing else");
	check_all();
	end();
}

Test(disk, disk_copy_dropped_while_written_forgotten)
{
	uint64_t before = counter_get(CTR_swap_move_refused);

	begin(PLAIN);
	put_many(0, 3000, 1500);
	put_many(4000, 600, RAW_NOISE);
	nothing_ends = true;
	swap_tidy(sh->s);
	cr_assert_gt(aio_on_way(sh->s->spill.aio), 0);
	cr_assert_eq(on_disk(), 0, "not before its write has ended");
	check_all();
	nothing_ends = false;
	for (unsigned i = 4000; i < 4600; i += 2)
		drop(i);
	for (unsigned i = 0; i < 100 && on_disk() < 255; i++) {
		swap_tidy(sh->s);
		usleep(10000);
	}
	cr_assert_eq(on_disk(), 255);
	cr_assert_eq(counter_get(CTR_swap_move_refused), before + 255);
	check_all();
	end();
}

/* The page leaves its place, the place is used again, and for a page of the same owner:
 * the copy that was on its way is of the old one. */
Test(disk, disk_place_used_again_while_written_old_copy_forgotten)
{
	begin(PLAIN);
	put_many(0, 255, RAW_NOISE);
	put_many(1000, 1, RAW_NOISE); /* closes the first segment */
	nothing_ends = true;
	swap_tidy(sh->s);
	for (unsigned i = 0; i < 255; i++)
		drop(i);
	put_many(1001, 254, RAW_NOISE); /* the second is full, and the first could be opened */
	for (unsigned i = 0; i < 255; i++)
		cr_assert_eq(put(i, 9000 + i, RAW_NOISE), 0);
	nothing_ends = false;
	spill_all();
	check_all();
	end();
}

/* ---- what is on disk ----------------------------------------------------------- */

static bool file_has(const uint8_t *what, size_t n)
{
	static uint8_t all[FILE_BYTES];
	int fd = open(path, O_RDONLY);

	cr_assert_eq(read(fd, all, sizeof(all)), (ssize_t)sizeof(all));
	close(fd);
	return memmem(all, sizeof(all), what, n) != NULL;
}

Test(disk, disk_encrypted_file_has_no_plaintext)
{
	struct page page;

	for (int how = PLAIN; how <= ENCRYPTED; how++) {
		begin((enum secrecy)how);
		put_many(0, 10, RAW_NOISE);
		put_many(10, 10, 1500);
		spill_all();
		for (unsigned i = 0; i < 20; i++) {
			make_page(&page, 1000 + i, sh->noise[i]);
			cr_assert_eq(file_has(page.b, 64), how == PLAIN, "page %u", i);
		}
		check_all();
		end();
	}
}

Test(disk, disk_file_is_private_and_reserved)
{
	struct stat st;

	begin(PLAIN);
	cr_assert_eq(stat(path, &st), 0);
	cr_assert_eq(st.st_mode & 07777, 0600);
	cr_assert_eq(st.st_size, FILE_BYTES);
	cr_assert_geq((uint64_t)st.st_blocks * 512, FILE_BYTES);
	end();
}

/* ---- damage ---------------------------------------------------------------------- */

static void overwrite(uint64_t offset, const void *with, size_t n)
{
	int fd = open(path, O_RDWR);

	cr_assert_eq(pwrite(fd, with, n, (off_t)offset), (ssize_t)n);
	cr_assert_eq(fsync(fd), 0);
	close(fd);
}

static uint64_t object_offset(unsigned owner)
{
	return disk_offset(disk_segment_of(sh->ref[owner])) +
	       ref_unit(sh->ref[owner]) * UNIT_BYTES;
}

static void flip(uint64_t offset)
{
	uint8_t byte;
	int fd = open(path, O_RDONLY);

	cr_assert_eq(pread(fd, &byte, 1, (off_t)offset), 1);
	close(fd);
	byte ^= 0x40;
	overwrite(offset, &byte, 1);
}

static void check_damaged(unsigned owner)
{
	uint64_t before = counter_get(CTR_swap_disk_bad);
	struct page got;

	cr_assert_eq(read_page(owner, &got), -EIO);
	cr_assert_eq(counter_get(CTR_swap_disk_bad), before + 1);
	cr_assert_eq(swap_get(sh->s, sh->ref[owner], owner, &got), -EIO);
}

static void damage(enum secrecy how)
{
	static const unsigned at[] = { 0, 3, 4, 6, 7, 8, 15, 16, 100, 1000, 1500 };

	begin(how);
	put_many(0, 100, 1500);
	spill_all();
	for (unsigned i = 0; i < ARRAY_LEN(at); i++) {
		flip(object_offset(i * 9) + at[i]);
		check_damaged(i * 9);
		flip(object_offset(i * 9) + at[i]);
		check_page(i * 9);
	}
	check_all();
	end();
}

Test(disk, disk_byte_damaged_eio)
{
	damage(PLAIN);
	damage(ENCRYPTED);
}

/* ---- deltas ---------------------------------------------------------------------- */

static struct object *object_in_pool(unsigned owner)
{
	uint64_t unit = sh->ref[owner].v & ~REF_PACKED;

	return (struct object *)(void *)(sh->s->pool.base + unit * UNIT_BYTES);
}

static void begin_alike(enum secrecy how)
{
	families = 24;
	begin(how);
}

static void put_alike(unsigned from, unsigned n)
{
	put_many(from, n, 1500);
	cr_assert_gt(stats().delta_pages, n / 2);
}

static void deltas_down_and_back(enum secrecy how)
{
	uint64_t undone = counter_get(CTR_swap_delta_undone), deltas;

	begin_alike(how);
	put_alike(0, 4000);
	deltas = stats().delta_pages;
	check_all();
	spill_all();
	cr_assert_eq(on_disk(), 4000);
	cr_assert_geq(counter_get(CTR_swap_delta_undone), undone + deltas);
	cr_assert_eq(stats().delta_pages + stats().orphan_bytes, 0);
	cr_assert_eq(stats().held_bytes, stats().table_bytes, "no base stays behind");
	check_all();
	end();
}

Test(disk, disk_deltas_go_down_by_themselves)
{
	deltas_down_and_back(PLAIN);
	deltas_down_and_back(ENCRYPTED);
}

Test(disk, disk_deltas_switched_off_or_small_cap_none_made)
{
	families = 24;
	choose_path();
	for (unsigned i = 0; i < 2; i++) {
		delta_asked = i ? SWAP_DELTA_FAST : SWAP_DELTA_OFF;
		cr_assert_eq(try_create(i ? CAP - 1 : CAP), 0);
		put_many(0, 1000, 1500);
		cr_assert_eq(stats().delta_pages + stats().orphan_bytes, 0);
		cr_assert_null(sh->s->delta);
		destroy();
	}
	forget_path();
}

/* A segment of bases, which is the coldest, and some of their deltas. */
static void put_bases_and_deltas(void)
{
	begin_alike(PLAIN);
	families = 600;
	put_many(0, 600, 1500);
	put_alike(1000, 5000);
}

static unsigned bases_in_pool(void)
{
	unsigned n = 0;

	for (unsigned i = 0; i < 600; i++)
		n += ref_is_packed(sh->ref[i]);
	return n;
}

Test(disk, disk_base_stays_until_its_deltas_have_gone)
{
	put_bases_and_deltas();
	swap_spill(sh->s, MiB / 2);
	cr_assert_gt(on_disk(), 500, "%u", on_disk());
	cr_assert_gt(stats().delta_pages, 1000);
	cr_assert_gt(bases_in_pool(), 550, "%u", bases_in_pool());
	check_all();
	spill_all();
	cr_assert_eq(bases_in_pool(), 0);
	check_all();
	end();
}

Test(disk, disk_orphan_stays_until_its_deltas_have_gone)
{
	put_bases_and_deltas();
	for (unsigned i = 0; i < 600; i++)
		drop(i);
	cr_assert_gt(stats().orphan_bytes, 500 * KiB);
	swap_spill(sh->s, MiB / 2);
	cr_assert_gt(stats().delta_pages, 1000);
	cr_assert_gt(stats().orphan_bytes, 500 * KiB);
	check_all();
	spill_all();
	cr_assert_eq(stats().orphan_bytes, 0);
	check_all();
	end();
}

/* Else its page would be on disk, and its object in memory nevertheless. */
Test(disk, disk_page_on_its_way_down_made_no_base)
{
	uint32_t segment;

	begin_alike(PLAIN);
	families = 1;
	put_many(0, 1, 1500);
	segment = sh->s->pool.open[POOL_HOT];
	cr_assert(pool_carry(&sh->s->pool, segment));
	put_many(1, 1, 1500);
	cr_assert_eq(stats().delta_pages, 0);
	pool_uncarry(&sh->s->pool, segment);
	put_many(2, 1, 1500);
	cr_assert_eq(stats().delta_pages, 1);
	check_all();
	end();
}

Test(disk, disk_bases_leave_room_for_what_is_asked)
{
	uint64_t most;

	begin_alike(PLAIN);
	families = 3000;
	for (unsigned i = 0; i < PAGES; i++) {
		swap_room(sh->s, 100);
		cr_assert_eq(put(i, i, 1500), 0);
	}
	most = sh->s->pool.segments_max * SEGMENT_BYTES / BASES_SHARE_DISK;
	cr_assert_leq(sh->s->delta->base_bytes, most);
	cr_assert_gt(sh->s->delta->base_bytes, most / 2, "bases enough for the test");
	cr_assert_eq(swap_room(sh->s, 800), 800);
	check_all();
	end();
}

/* Else all of the pool would go before one of its segments was empty. */
Test(disk, disk_bases_in_a_full_pool_room_made_without_spilling_all)
{
	unsigned n = 0;

	begin_alike(PLAIN);
	families = 1500;
	while (n < 1500 && put(n, n, 1500) == 0)
		n++;
	for (; n < PAGES && put(n, n, RAW_NOISE - 1600) == 0; n++)
		;
	cr_assert_lt(n, PAGES);
	sh->ref[n].v = 0;
	cr_assert_eq(swap_room(sh->s, 32), 32);
	cr_assert_lt(on_disk(), n / 2);
	check_all();
	end();
}

static void damage_delta(unsigned byte)
{
	struct page page;

	begin_alike(PLAIN);
	put_alike(0, 1000);
	((uint8_t *)object_in_pool(500))[byte] ^= 0x10;
	swap_spill(sh->s, UINT64_MAX / 2);
	cr_assert(ref_is_packed(sh->ref[500]));
	cr_assert_eq(read_page(500, &page), -EIO);
	for (unsigned i = 0; i < 1000; i++)
		if (i != 500)
			check_page(i);
	cr_assert_geq(on_disk(), 998, "all but it and its base");
	destroy();
	forget_path();
}

Test(disk, disk_damaged_delta_not_spilled)
{
	damage_delta(8);  /* its sum */
	damage_delta(17); /* its row */
	damage_delta(40); /* its data */
}

static uint64_t odd_tag(unsigned owner, uint32_t bytes, bool is_delta)
{
	return is_delta ? tag_make(owner, bytes | TAG_DELTA, OBJECT_LIVE) :
			  tag_make(owner, bytes, OBJECT_BASE);
}

Test(disk, disk_object_that_passes_for_delta_or_base_eio)
{
	struct page page;
	uint64_t tag;

	begin(PLAIN);
	put_many(0, 100, 1500);
	spill_all();
	for (unsigned i = 10; i < 12; i++) {
		int fd = open(path, O_RDONLY);

		cr_assert_eq(pread(fd, &tag, sizeof(tag), (off_t)object_offset(i)), 8);
		close(fd);
		tag = odd_tag(i, tag_bytes(tag), i % 2 == 0);
		overwrite(object_offset(i), &tag, sizeof(tag));
		check_damaged(i);
	}
	cr_assert_eq(read_page(12, &page), 0);
	end();
}

Test(disk, disk_object_that_passes_for_delta_or_base_not_spilled)
{
	struct page page;

	begin(PLAIN);
	put_many(0, 2000, 1500);
	for (unsigned i = 10; i < 12; i++) {
		struct object *o = object_in_pool(i);

		o->tag = odd_tag(i, tag_bytes(o->tag), i % 2 == 0);
	}
	swap_spill(sh->s, UINT64_MAX / 2);
	for (unsigned i = 0; i < 2000; i++)
		if (i == 10 || i == 11)
			cr_assert(ref_is_packed(sh->ref[i]) && read_page(i, &page) == -EIO);
		else
			check_page(i);
	cr_assert_eq(on_disk(), 1998);
	end();
}

Test(disk, disk_segment_zeroed_eio_and_others_come_back)
{
	static const uint8_t zeroes[SEGMENT_BYTES];

	for (int how = PLAIN; how <= ENCRYPTED; how++) {
		begin((enum secrecy)how);
		put_many(0, 2000, 1500);
		spill_all();
		overwrite(disk_offset(1), zeroes, sizeof(zeroes));
		for (unsigned i = 0; i < 2000; i++) {
			if (disk_segment_of(sh->ref[i]) == 1)
				check_damaged(i);
			else
				check_page(i);
		}
		end();
	}
}

Test(disk, disk_file_truncated_eio)
{
	struct page got;

	begin(PLAIN);
	put_many(0, 1000, 1500);
	spill_all();
	cr_assert_eq(truncate(path, (off_t)disk_offset(1)), 0);
	for (unsigned i = 0; i < 1000; i++) {
		if (disk_segment_of(sh->ref[i]) == 0)
			check_page(i);
		else
			cr_assert_eq(read_page(i, &got), -EIO);
	}
	end();
}

static void copy_segment(uint32_t i, uint8_t *to)
{
	int fd = open(path, O_RDONLY);

	cr_assert_eq(pread(fd, to, SEGMENT_BYTES, (off_t)disk_offset(i)), (ssize_t)SEGMENT_BYTES);
	close(fd);
}

/* The disk says it wrote, and has yesterday's bytes: sound, of the same owners, at the
 * same places. */
Test(disk, disk_write_lost_old_bytes_not_taken_for_new)
{
	static uint8_t old[SEGMENT_BYTES];

	for (int how = PLAIN; how <= ENCRYPTED; how++) {
		begin((enum secrecy)how);
		put_many(0, 100, 1500);
		spill_all();
		copy_segment(0, old);
		for (unsigned i = 0; i < 100; i++)
			drop(i);
		for (unsigned i = 0; i < 100; i++)
			cr_assert_eq(put(i, 5000 + i, 1500), 0);
		spill_all();
		cr_assert_eq(disk_segment_of(sh->ref[0]), 0, "written over");
		check_all();
		overwrite(disk_offset(0), old, sizeof(old));
		for (unsigned i = 0; i < 100; i++)
			check_damaged(i);
		end();
	}
}

Test(disk, disk_segment_of_another_place_or_boot_not_taken)
{
	static uint8_t old[SEGMENT_BYTES];

	begin(PLAIN);
	put_many(0, 100, 1500);
	spill_all();
	copy_segment(0, old);
	destroy();
	cr_assert_eq(try_create(CAP), 0); /* the same again */
	put_many(0, 100, 1500);
	spill_all();
	check_all();
	overwrite(disk_offset(0), old, sizeof(old));
	for (unsigned i = 0; i < 100; i++)
		check_damaged(i);
	end();
}

Test(disk, disk_wrong_owner_or_ref_eio)
{
	struct page got;

	begin(PLAIN);
	put_many(0, 100, 1500);
	spill_all();
	cr_assert_eq(swap_get(sh->s, sh->ref[3], 4, &got), -EIO);
	for (uint64_t bit = 0; bit < 64; bit++) {
		swap_ref_t wrong = { sh->ref[3].v ^ (uint64_t)1 << bit };

		cr_assert_eq(swap_get(sh->s, wrong, 3, &got), -EIO, "bit %d", (int)bit);
	}
	check_page(3);
	end();
}

/* ---- pins ------------------------------------------------------------------------ */

Test(disk, disk_pinned_segment_not_written_over)
{
	_Alignas(PAGE_BYTES) uint8_t raw[3 * PAGE_BYTES];
	const struct mm_tier *t = &swap_tier_disk;
	struct mm_read r = { .raw = raw };
	struct page want, got;
	swap_ref_t ref;

	begin(ENCRYPTED);
	put_many(0, 600, 1500);
	spill_all();
	ref = sh->ref[7];
	t->pin(sh->s, ref.v, &r.of);
	for (unsigned i = 0; i < 600; i++)
		drop(i);
	for (unsigned turn = 0; turn < 5; turn++) { /* more than the file takes at once */
		put_many(1000, 4000, 2500);
		spill_all();
		cr_assert_eq(stats().disk_used_bytes, MiB + stats().disk_pages / 400 * MiB, "%u", turn);
		for (unsigned i = 1000; i < 5000; i++)
			drop(i);
	}
	cr_assert_eq(stats().disk_used_bytes, MiB, "only what is pinned");
	cr_assert_eq(pread(r.of.fd, raw, r.of.bytes, (off_t)r.of.offset), (ssize_t)r.of.bytes);
	cr_assert_eq(t->arrived(sh->s, &r.of, raw), 0);
	cr_assert_eq(t->unpack(sh->s, ref.v, 7, &r, &got), 0);
	make_page(&want, 1007, 1500);
	cr_assert(same(&want, &got));
	t->unpin(sh->s, ref.v);
	cr_assert_eq(stats().disk_used_bytes, 0);
	end();
}

/* ---- cleaning, lifting, discarding ------------------------------------------------- */

static void tidy_until_idle(void)
{
	for (unsigned i = 0; i < 400; i++) {
		swap_tidy(sh->s);
		usleep(1000);
	}
}

/* 8000 pages on disk, of which one in four stays; then more is put than is free. */
static void fill_disk(void)
{
	put_many(0, 8000, 1500);
	spill_all();
	for (unsigned i = 0; i < 8000; i++)
		if (i % 4)
			drop(i);
}

static void put_in_holes(void)
{
	for (unsigned i = 0; i < 8000; i++)
		if (i % 4 && swap_room(sh->s, 1) == 1)
			cr_assert_eq(put(i, 77 + i, 2000), 0);
	tidy_until_idle();
}

static void clean_file(enum secrecy how)
{
	uint64_t before = counter_get(CTR_swap_disk_cleaned);

	begin_sized(how, 14 * MiB);
	fill_disk();
	put_in_holes();
	cr_assert_gt(counter_get(CTR_swap_disk_cleaned), before + 500, "%d", (int)(counter_get(CTR_swap_disk_cleaned) - before));
	cr_assert_gt(stats().disk_pages + stats().packed_pages, 7000);
	check_all();
	end();
}

Test(disk, disk_cleaned_when_full_content_kept)
{
	clean_file(PLAIN);
	clean_file(ENCRYPTED);
}

/* They end a segment by their number: what it has left is no hole to be closed. */
Test(disk, disk_segments_full_of_small_objects_not_cleaned_over_and_over)
{
	uint64_t before = counter_get(CTR_swap_disk_cleaned);

	begin_sized(PLAIN, 5 * MiB);
	put_many(0, 8000, 16);
	spill_all();
	put_many(8000, 150, RAW_NOISE);
	spill_all();
	cr_assert_eq(stats().disk_used_bytes, 3 * MiB);
	cr_assert_lt(stats().disk_bytes, 2 * MiB);
	tidy_until_idle();
	cr_assert_lt(counter_get(CTR_swap_disk_cleaned) - before, 8000, "%" PRIu64,
		     counter_get(CTR_swap_disk_cleaned) - before);
	check_all();
	for (unsigned i = 0; i < 8000; i++)
		if (i % 4)
			drop(i);
	tidy_until_idle();
	cr_assert_leq(stats().disk_used_bytes, 2 * MiB, "and when they are few they are");
	check_all();
	end();
}

Test(disk, disk_cleaning_meets_damage_loses_nothing_else)
{
	uint64_t before = counter_get(CTR_swap_disk_read_errors);
	struct page got;

	begin_sized(PLAIN, 14 * MiB);
	fill_disk();
	flip(object_offset(400) + 5);   /* its length */
	flip(object_offset(2400) + 50); /* its bytes */
	put_in_holes();
	cr_assert_eq(counter_get(CTR_swap_disk_read_errors), before + 2);
	cr_assert_eq(read_page(400, &got), -EIO);
	cr_assert_eq(read_page(2400, &got), -EIO);
	for (unsigned i = 0; i < 8000; i++)
		if (sh->ref[i].v && i != 400 && i != 2400)
			check_page(i);
	end();
}

Test(disk, disk_much_read_segment_lifted)
{
	uint64_t before = counter_get(CTR_swap_disk_lifted);
	struct page got;

	begin(ENCRYPTED);
	put_many(0, 2000, 1500);
	spill_all();
	for (unsigned i = 0; i < 10; i++) /* of each segment a few: too few */
		cr_assert_eq(read_page(i * 200, &got), 0);
	tidy_until_idle();
	cr_assert_eq(on_disk(), 2000);
	for (unsigned i = 0; i < 40; i++)
		cr_assert_eq(read_page(i, &got), 0);
	swap_tidy(sh->s);
	cr_assert_eq(on_disk(), 2000, "not just after these had to go");
	for (unsigned i = 0; i < 40; i++)
		cr_assert_eq(read_page(i, &got), 0);
	sh->s->spill.pressed_ns = 0;
	sh->s->disk.hot = disk_segment_of(sh->ref[0]);
	tidy_until_idle();
	cr_assert_lt(on_disk(), 2000);
	cr_assert_gt(on_disk(), 600, "one segment and not all");
	cr_assert_eq(counter_get(CTR_swap_disk_lifted), before + 2000 - on_disk());
	for (unsigned i = 0; i < 100; i++)
		cr_assert_not(ref_is_disk(sh->ref[i]));
	check_all();
	end();
}

/* It was hot, was emptied, and is being written again. */
Test(disk, disk_lift_of_segment_being_written_left)
{
	begin(PLAIN);
	put_many(0, 600, 1500);
	spill_all();
	for (unsigned i = 0; i < 600; i++)
		drop(i);
	put_many(0, 600, RAW_NOISE);
	nothing_ends = true;
	swap_tidy(sh->s);
	cr_assert_eq(sh->s->spill.batches[0].state, BATCH_WRITING);
	sh->s->disk.hot = sh->s->spill.batches[0].segment;
	sh->s->spill.pressed_ns = 0;
	swap_tidy(sh->s);
	nothing_ends = false;
	spill_all();
	check_all();
	end();
}

Test(disk, disk_of_a_device_freed_segments_discarded)
{
	begin(PLAIN);
	sh->s->disk.file.is_device = sh->s->disk.takes_discards = true;
	put_many(0, 4000, 1500);
	spill_all();
	for (unsigned i = 0; i < 4000; i++)
		if (disk_segment_of(sh->ref[i]) % 2)
			drop(i);
	tidy_until_idle();
	cr_assert_gt(discards, 2);
	for (unsigned i = 0; i < discards; i++)
		for (unsigned k = 0; k < 4000; k++)
			cr_assert(!sh->ref[k].v ||
				  disk_offset(disk_segment_of(sh->ref[k])) != discarded[i]);
	check_all();
	discards_refused = true; /* then it is not asked again, and goes on */
	discards = 0;
	for (unsigned i = 0; i < 4000; i++)
		if (sh->ref[i].v)
			drop(i);
	tidy_until_idle();
	cr_assert_not(sh->s->disk.takes_discards);
	put_many(0, 4000, 1500);
	spill_all();
	check_all();
	end();
}

/* ---- full, and errors --------------------------------------------------------------- */

Test(disk, disk_and_pool_full_refused_and_nothing_lost)
{
	unsigned n = 0;
	int rc = 0;

	begin(PLAIN);
	while (!rc && n < PAGES) {
		swap_room(sh->s, 16);
		rc = put(n, n, RAW_NOISE);
		n += !rc;
	}
	cr_assert(rc == -ENOSPC || rc == -E2BIG, "%d", rc);
	cr_assert_gt(n, 22 * 255u, "all of the file but the reserve");
	sh->ref[n].v = 0;
	for (unsigned i = n; i < PAGES; i++) { /* what packs goes on into the pool */
		rc = put(i, i, 2000);
		if (rc)
			break;
	}
	cr_assert(rc == -ENOSPC || rc == 0);
	check_all();
	for (unsigned i = 0; i < n; i += 2)
		drop(i);
	cr_assert_eq(swap_room(sh->s, 500), 500, "what was dropped is room again");
	check_all();
	end();
}

Test(disk, disk_writes_fail_pages_stay_and_disk_is_left_alone)
{
	uint64_t before = counter_get(CTR_swap_disk_write_errors);
	struct swap_stats st;

	begin(PLAIN);
	put_many(0, 1000, 1500);
	spill_all();
	put_many(1000, 3000, 1500);
	writes_fail = true;
	cr_assert_eq(swap_spill(sh->s, 4 * MiB), 0);
	cr_assert_geq(counter_get(CTR_swap_disk_write_errors), before + 8);
	cr_assert_lt(counter_get(CTR_swap_disk_write_errors), before + 8 + BATCHES);
	cr_assert_eq(on_disk(), 1000);
	check_all();
	writes_fail = false;
	cr_assert_eq(swap_spill(sh->s, 4 * MiB), 0, "it is not asked again");
	cr_assert_eq(put(5000, 1, RAW_NOISE), -E2BIG);
	st = stats();
	cr_assert_eq(st.disk_pages, 1000);
	check_all();
	end();
}

Test(disk, disk_some_writes_fail_others_taken)
{
	uint64_t before = counter_get(CTR_swap_disk_write_errors);

	begin(ENCRYPTED);
	put_many(0, 4000, 1500);
	write_fails_one_in = 3;
	spill_all();
	cr_assert_gt(counter_get(CTR_swap_disk_write_errors), before);
	cr_assert_eq(on_disk(), 4000);
	check_all();
	end();
}

Test(disk, disk_short_writes_carried_on)
{
	begin(ENCRYPTED);
	put_many(0, 4000, 1500);
	writes_are_short = true;
	spill_all();
	cr_assert_eq(on_disk(), 4000);
	check_all();
	end();
}

static void scenario(void)
{
	for (unsigned i = 0; i < 2000 && put(i, i, 1500) == 0; i++)
		;
	for (unsigned i = 2000; i < 2300 && put(i, i, RAW_NOISE) == 0; i++)
		;
	swap_spill(sh->s, 2 * MiB);
	swap_room(sh->s, 500);
	for (unsigned i = 0; i < 2300; i++)
		if (sh->ref[i].v && i % 3)
			drop(i);
	for (unsigned i = 2500; i < 4500 && swap_room(sh->s, 1) == 1; i++)
		if (put(i, i, 2200))
			break;
	swap_spill(sh->s, 4 * MiB);
	for (unsigned i = 0; i < 10; i++)
		swap_tidy(sh->s);
}

static void check_all_without_faults(void)
{
	unsigned was = fail_at, made = calls;

	fail_at = 0;
	for (unsigned i = 0; i < PAGES; i++)
		if (sh->ref[i].v)
			check_page(i);
	swap_verify(sh->s);
	fail_at = was;
	calls = made;
}

static void any_call_fails(void)
{
	unsigned n, ended = 0;

	fail_error = EIO;
	choose_path();
	disk.encrypt = true;
	for (n = 1; !ended; n++) {
		disk.size_bytes = 12 * MiB; /* little, so that it has to be cleaned */
		calls = 0;
		fail_at = n;
		if (try_create(CAP) == 0) {
			scenario();
			check_all_without_faults();
		}
		destroy();
		ended = calls < n;
		cr_assert_lt(n, 2000);
	}
	fail_at = 0;
	fprintf(stderr, "test_disk: %u calls\n", n);
	cr_assert_gt(n, 30, "%u calls could fail", n);
	forget_path();
}

Test(disk, disk_any_call_fails_error_or_every_page_kept)
{
	any_call_fails();
}

Test(disk, disk_any_call_fails_with_deltas_error_or_every_page_kept)
{
	families = 300;
	any_call_fails();
	cr_assert_gt(counter_get(CTR_swap_delta_undone), 1000);
}

/* ---- what the file may be --------------------------------------------------------------- */

static void refused(int rc, const char *named)
{
	cr_assert_eq(try_create(CAP), rc, "%s", err.msg);
	cr_assert(strstr(err.msg, named), "'%s' is not in: %s", named, err.msg);
	cr_assert(strstr(err.msg, path), "%s", err.msg);
	destroy();
}

static void write_file(const char *text, size_t n)
{
	int fd = open(path, O_CREAT | O_TRUNC | O_WRONLY, 0644);

	cr_assert_eq(write(fd, text, n), (ssize_t)n);
	close(fd);
}

Test(disk, disk_file_of_somebody_refused_unless_forced)
{
	static const char zeroes[8192];
	char text[16] = { 0 };
	FILE *f;

	choose_path();
	write_file("precious data\n", 14);
	refused(-EEXIST, "not a swap file");
	f = fopen(path, "r");
	cr_assert_eq(fread(text, 1, sizeof(text), f), 14, "untouched");
	cr_assert_str_eq(text, "precious data\n");
	fclose(f);
	write_file(zeroes, sizeof(zeroes));
	refused(-EEXIST, "not a swap file");
	disk.force = true;
	cr_assert_eq(try_create(CAP), 0, "%s", err.msg);
	destroy();
	disk.force = false;
	cr_assert_eq(try_create(CAP), 0, "now it is ours: %s", err.msg);
	destroy();
	write_file("", 0);
	cr_assert_eq(try_create(CAP), 0, "empty: %s", err.msg);
	destroy();
	forget_path();
}

Test(disk, disk_file_of_another_size_made_to_fit)
{
	struct stat st;

	choose_path();
	for (uint64_t mib = 30; mib >= 10; mib -= 10) {
		disk.size_bytes = mib * MiB;
		cr_assert_eq(try_create(CAP), 0, "%s", err.msg);
		cr_assert_eq(stats().disk_size_bytes, (mib - 1) * MiB);
		cr_assert_eq(stat(path, &st), 0);
		cr_assert_eq((uint64_t)st.st_size, mib * MiB);
		destroy();
	}
	disk.size_bytes = 0;
	cr_assert_eq(try_create(CAP), 0, "%s", err.msg);
	cr_assert_geq(stats().disk_size_bytes, PAGES * PAGE_BYTES / 8 * 9);
	destroy();
	forget_path();
}

Test(disk, disk_file_of_another_version_refused)
{
	uint32_t version = 2;

	choose_path();
	cr_assert_eq(try_create(CAP), 0);
	destroy();
	overwrite(16, &version, sizeof(version));
	refused(-EINVAL, "version");
	forget_path();
}

Test(disk, disk_file_in_use_refused)
{
	struct shadow *first;

	choose_path();
	cr_assert_eq(try_create(CAP), 0);
	first = sh;
	refused(-EBUSY, "another VM");
	sh = first;
	put_many(0, 1000, 1500);
	spill_all();
	check_all();
	destroy();
	cr_assert_eq(try_create(CAP), 0, "free again: %s", err.msg);
	destroy();
	forget_path();
}

Test(disk, disk_path_that_is_no_file_refused)
{
	choose_path();
	cr_assert_eq(mkdir(path, 0700), 0);
	refused(-EISDIR, "cannot open");
	cr_assert_eq(rmdir(path), 0);
	cr_assert_eq(mkfifo(path, 0600), 0);
	refused(-EINVAL, "neither a file nor");
	cr_assert_eq(unlink(path), 0);
	snprintf(path, sizeof(path), "%s/no/where", dir);
	refused(-ENOENT, "cannot open");
	cr_assert_eq(rmdir(dir), 0);
}

Test(disk, disk_settings_out_of_range_refused)
{
	choose_path();
	disk.size_bytes = 2 * MiB;
	refused(-EINVAL, "too small");
	cr_assert_neq(access(path, F_OK), 0, "nothing is left behind");
	disk.size_bytes = FILE_BYTES;
	cr_assert_eq(try_create(8 * MiB), -EINVAL);
	cr_assert(strstr(err.msg, "cap of 8"), "%s", err.msg);
	destroy();
	forget_path();
}

/* A file system of its own; only root can have that. */
Test(disk, disk_file_system_too_small_refused_by_name)
{
	if (geteuid() != 0)
		return;
	choose_path();
	if (mount("none", dir, "tmpfs", 0, "size=16m")) {
		cr_assert_eq(rmdir(dir), 0);
		return; /* root, but of a container */
	}
	refused(-ENOSPC, "16 MiB free, 24 MiB needed");
	cr_assert_neq(access(path, F_OK), 0, "nothing is left behind");
	disk.size_bytes = 12 * MiB;
	cr_assert_eq(try_create(CAP), 0, "%s", err.msg);
	put_many(0, 1000, 1500);
	spill_all();
	check_all();
	destroy();
	disk.size_bytes = FILE_BYTES;
	refused(-ENOSPC, "free, 24 MiB needed");
	cr_assert_eq(umount(dir), 0);
	cr_assert_eq(rmdir(dir), 0);
}

Test(disk, disk_describe_says_where)
{
	char text[256];

	begin(PLAIN);
	put_many(0, 1000, 1500);
	cr_assert_eq(put(4000, 5, 0), 0);
	swap_tier_disk.describe(sh->s, sh->ref[999].v, text, sizeof(text));
	cr_assert_str_eq(text, "the compressed pool");
	swap_tier_disk.describe(sh->s, sh->ref[4000].v, text, sizeof(text));
	cr_assert_str_eq(text, "same-filled");
	spill_all();
	swap_tier_disk.describe(sh->s, sh->ref[999].v, text, sizeof(text));
	cr_assert(strstr(text, path) && strstr(text, "at byte") && strstr(text, "(segment 1)"),
		  "%s", text);
	end();
}

/* ---- at random ------------------------------------------------------------------------- */

static size_t any_noise(void)
{
	uint64_t what = mix(&sh->random) % 20;

	return what == 0 ? 0 : what == 1 ? RAW_NOISE : 8 + mix(&sh->random) % 2800;
}

static void random_put(unsigned owner)
{
	int rc;

	for (unsigned i = 0; i < 20; i++) {
		if (sh->ref[(owner + i) % PAGES].v)
			continue;
		rc = put((owner + i) % PAGES, mix(&sh->random), any_noise());
		cr_assert(rc == 0 || rc == -E2BIG || rc == -ENOSPC);
	}
}

static void random_step(void)
{
	unsigned owner = (unsigned)(mix(&sh->random) % PAGES), what = mix(&sh->random) % 1000;
	unsigned drops = sh->random / 7 % 2 ? 12 : 25;

	if (what < 450)
		random_put(owner);
	else if (what < 900)
		for (unsigned i = 0; i < drops; i++, owner = (owner + 1) % PAGES) {
			if (sh->ref[owner].v)
				drop(owner);
		}
	else if (what < 960 && sh->ref[owner].v)
		check_page(owner);
	else if (what < 970)
		swap_spill(sh->s, mix(&sh->random) % (3 * MiB));
	else if (what < 980)
		cr_assert_leq(swap_room(sh->s, mix(&sh->random) % 500), 500);
	else if (what < 985)
		swap_clean(sh->s, mix(&sh->random) % 60, mix(&sh->random) % (2 * MiB));
	else {
		if (what == 999)
			sh->s->spill.pressed_ns = 0; /* or nothing would be lifted here */
		swap_tidy(sh->s);
	}
}

static void random_run(enum secrecy how)
{
	uint64_t ops = env_number("BRIM_DISK_OPS", 15000);

	begin(how);
	sh->random = seed_of_run();
	sh->refuse_one_in = 50;
	write_fails_one_in = 200;
	for (uint64_t i = 0; i < ops; i++) {
		random_step();
		check_cap();
		if (i % 3000 == 0)
			check_all();
	}
	check_all();
	cr_assert_gt(sh->moves, ops / 10);
	fprintf(stderr, "test_disk: %u moves, %u asked, %" PRIu64 " cleaned, %" PRIu64 " lifted, %"
		PRIu64 " failed writes\n", sh->moves, sh->asked, counter_get(CTR_swap_disk_cleaned),
		counter_get(CTR_swap_disk_lifted), counter_get(CTR_swap_disk_write_errors));
	end();
}

Test(disk, disk_random_operations_equal_to_shadow)
{
	random_run(PLAIN);
}

Test(disk, disk_random_operations_encrypted_equal_to_shadow)
{
	random_run(ENCRYPTED);
}

static void random_run_alike(enum secrecy how, unsigned n)
{
	uint64_t undone = counter_get(CTR_swap_delta_undone);

	families = n;
	random_run(how);
	cr_assert_gt(counter_get(CTR_swap_delta_undone), undone + 1000);
	fprintf(stderr, "test_disk: %" PRIu64 " deltas, %" PRIu64 " undone, %" PRIu64 " orphans\n",
		counter_get(CTR_swap_delta_puts), counter_get(CTR_swap_delta_undone),
		counter_get(CTR_swap_orphans));
}

Test(disk, disk_random_operations_with_deltas_equal_to_shadow)
{
	random_run_alike(PLAIN, 400);
}

Test(disk, disk_random_operations_with_deltas_encrypted_equal_to_shadow)
{
	random_run_alike(ENCRYPTED, 40);
}

/* ---- many threads ------------------------------------------------------------------------- */

#define OWNERS 6000u
#define READERS 3

struct cell {
	pthread_mutex_t lock;
	swap_ref_t ref;
	uint64_t seed;
	uint16_t noise;
	bool reading;
};

struct crowd {
	struct swap *s;
	struct cell cells[OWNERS];
	_Atomic bool stop;
	_Atomic uint64_t wrong, from_memory, from_disk, drops, gone;
	uint64_t moved, refused;
};

/* As engine_moved(). */
static bool crowd_moved(void *ctx, uint64_t owner, swap_ref_t from, swap_ref_t to)
{
	struct crowd *w = ctx;
	struct cell *c = &w->cells[owner];
	bool ours;

	pthread_mutex_lock(&c->lock);
	ours = c->ref.v == from.v && !c->reading;
	if (ours)
		c->ref = to;
	pthread_mutex_unlock(&c->lock);
	w->moved += ours;
	w->refused += !ours;
	return ours;
}

/* As a fault thread: the lock is not held while the disk is read, and the page may be
 * dropped meanwhile. */
static void crowd_read_disk(struct crowd *w, struct cell *c, unsigned owner)
{
	_Alignas(PAGE_BYTES) uint8_t raw[3 * PAGE_BYTES];
	const struct mm_tier *t = &swap_tier_disk;
	struct mm_read r = { .raw = raw };
	swap_ref_t ref = c->ref;
	struct page want, got;
	int rc;

	make_page(&want, c->seed, c->noise);
	c->reading = true;
	t->pin(w->s, ref.v, &r.of);
	pthread_mutex_unlock(&c->lock);
	rc = pread(r.of.fd, raw, r.of.bytes, (off_t)r.of.offset) == (ssize_t)r.of.bytes ? 0 : -EIO;
	if (!rc)
		rc = t->arrived(w->s, &r.of, raw);
	pthread_mutex_lock(&c->lock);
	if (!rc)
		rc = t->unpack(w->s, ref.v, owner, &r, &got);
	if (rc || !same(&want, &got))
		w->wrong++;
	if (c->ref.v != ref.v)
		w->gone++;
	else
		c->reading = false;
	t->unpin(w->s, ref.v);
	w->from_disk++;
}

static void crowd_read(struct crowd *w, struct cell *c, unsigned owner)
{
	struct page want, got;

	make_page(&want, c->seed, c->noise);
	if (swap_get(w->s, c->ref, owner, &got) || !same(&want, &got))
		w->wrong++;
	w->from_memory++;
}

static void crowd_visit(struct crowd *w, unsigned owner, bool drops)
{
	struct cell *c = &w->cells[owner];

	pthread_mutex_lock(&c->lock);
	if (c->ref.v && !c->reading && ref_is_disk(c->ref))
		crowd_read_disk(w, c, owner);
	else if (c->ref.v && !ref_is_disk(c->ref))
		crowd_read(w, c, owner);
	if (c->ref.v && drops) {
		swap_drop(w->s, c->ref);
		c->ref.v = 0;
		c->reading = false;
		w->drops++;
	}
	pthread_mutex_unlock(&c->lock);
}

static void *crowd_reader(void *arg)
{
	struct crowd *w = arg;
	uint64_t random = (uintptr_t)&random;

	while (!w->stop) {
		unsigned first = (unsigned)(mix(&random) % OWNERS);
		bool drops = mix(&random) % 12 == 0;

		for (unsigned i = 0; i < 100; i++)
			crowd_visit(w, (first + i) % OWNERS, drops);
	}
	return NULL;
}

static void crowd_put(struct crowd *w, unsigned owner, uint64_t *random)
{
	struct cell *c = &w->cells[owner];
	struct page page;

	pthread_mutex_lock(&c->lock);
	if (!c->ref.v && !c->reading) {
		c->seed = mix(random);
		c->noise = mix(random) % 10 ? (uint16_t)(mix(random) % 2900) : (uint16_t)PAGE_BYTES;
		make_page(&page, c->seed, c->noise);
		if (swap_put(w->s, owner, &page, &c->ref))
			c->ref.v = 0;
	}
	pthread_mutex_unlock(&c->lock);
}

static void crowd_reclaim(struct crowd *w, uint64_t until_ns)
{
	uint64_t random = seed_of_run();
	struct swap_stats st;

	while (now_ns() < until_ns) {
		unsigned first = (unsigned)(mix(&random) % OWNERS);

		swap_room(w->s, 200);
		for (unsigned i = 0; i < 200; i++)
			crowd_put(w, (first + i) % OWNERS, &random);
		if (mix(&random) % 4 == 0)
			swap_clean(w->s, mix(&random) % 30, mix(&random) % MiB);
		if (mix(&random) % 8 == 0)
			swap_spill(w->s, mix(&random) % (4 * MiB));
		if (mix(&random) % 8 == 0)
			w->s->spill.pressed_ns = 0; /* or nothing would be lifted here */
		swap_tidy(w->s);
		swap_stats(w->s, &st);
		cr_assert_leq(st.held_bytes, CAP);
	}
}

static void crowd_run(void)
{
	uint64_t seconds = env_number("BRIM_DISK_SECONDS", 4);
	struct crowd *w = calloc(1, sizeof(*w));
	struct swap_config cfg = { .max_pages = OWNERS, .cap_bytes = CAP, .move = crowd_moved,
				   .move_ctx = w, .disk = &disk };
	pthread_t readers[READERS];

	choose_path();
	disk.size_bytes = 8 * MiB;
	disk.encrypt = true;
	cr_assert_eq(swap_create(&w->s, &cfg, NULL), 0);
	for (unsigned i = 0; i < OWNERS; i++)
		pthread_mutex_init(&w->cells[i].lock, NULL);
	for (unsigned i = 0; i < READERS; i++)
		cr_assert_eq(pthread_create(&readers[i], NULL, crowd_reader, w), 0);
	crowd_reclaim(w, now_ns() + seconds * 1000000000u);
	w->stop = true;
	for (unsigned i = 0; i < READERS; i++)
		pthread_join(readers[i], NULL);
	fprintf(stderr, "test_disk: %" PRIu64 " read from memory, %" PRIu64 " from disk, %" PRIu64
		" drops (%" PRIu64 " while reading), %" PRIu64 " moves, %" PRIu64 " refused, %"
		PRIu64 " cleaned, %" PRIu64 " lifted\n", w->from_memory, w->from_disk, w->drops,
		w->gone, w->moved, w->refused, counter_get(CTR_swap_disk_cleaned),
		counter_get(CTR_swap_disk_lifted));
	swap_verify(w->s);
	for (unsigned i = 0; i < OWNERS; i++)
		crowd_visit(w, i, true);
	cr_assert_eq(w->wrong, 0);
	cr_assert(w->from_memory > 100 && w->from_disk > 100 && w->drops > 100 && w->moved > 100);
	swap_spill(w->s, 0);
	swap_verify(w->s);
	swap_destroy(&w->s);
	free(w);
	forget_path();
}

Test(disk, disk_many_threads_content_and_books_right)
{
	crowd_run();
}

Test(disk, disk_many_threads_with_deltas_content_and_books_right)
{
	families = 300;
	crowd_run();
	cr_assert_gt(counter_get(CTR_swap_delta_undone), 100);
	cr_assert_gt(counter_get(CTR_swap_orphans), 100);
	fprintf(stderr, "test_disk: %" PRIu64 " deltas, %" PRIu64 " undone, %" PRIu64 " orphans\n",
		counter_get(CTR_swap_delta_puts), counter_get(CTR_swap_delta_undone),
		counter_get(CTR_swap_orphans));
}
