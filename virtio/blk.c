/*
 * virtio-blk (virtio 1.2, section 5.2): a disk in a raw file or block device.
 *
 * What lives here: reading one request out of a chain and checking it, and the
 * steps it takes through an io_uring.  The file itself is opened by image.c.
 *
 *   blk_request --IN------------> READ  --.
 *               --OUT-----------> WRITE --+- short, or more than a slice: again
 *               --DISCARD-------> PUNCH --+- next range (blk_next_range)
 *               --WRITE_ZEROES--> PUNCH or ZERO_RANGE
 *                                   | refused by the host (blk_refused)
 *                                   v
 *                                 PUNCH > ZERO_RANGE > ZEROES
 *               --FLUSH---------> SYNC
 *   a write, all of it done: SYNC when the driver did not accept FLUSH, since
 *   then completed writes must be stable (5.2.6.2); then blk_finish.
 *   Everything refused goes from blk_request straight to blk_finish.
 *
 * A request has at most one operation in the ring, so a ring as large as the
 * queue always has room.  Operations are cut into slices: the kernel copies page
 * cache hits inside the submitting call, and one request may be gigabytes long.
 *
 * O_DIRECT: the image is open twice.  Buffers are the guest's, nothing makes it
 * align them, so a slice goes to the direct descriptor when it is aligned and to
 * the buffered one when not (the kernel keeps the two coherent).  Rejected: a
 * bounce buffer for each request, memory that would lie there for a rare case.
 *
 * Threads: the loop thread but for start, reset and the configuration, which are
 * called on vCPU threads; the device's lock covers all of it.
 *
 * Invariants:
 *  I1  The copy of a header or range is what is checked and what is used.
 *  I2  No operation outside [0, capacity) reaches the ring; none but reads and
 *      syncs does on a read-only disk.
 *  I3  A slot is free, or its request is in the ring, exactly once.
 *  I4  While the device does not run, completions touch no guest memory.
 */
#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <liburing.h>

#include "virtio/devices.h"

#define BLK_QUEUE 256u
#define BLK_MAX_SEGS 126u  /* data buffers of a request: queue entries less two */
#define BLK_MAX_RANGES 16u /* of one discard or write-zeroes request */
#define BLK_MAX_RANGE_SECTORS (1u << 21) /* 1 GiB: what a reset may wait for */
#define BLK_SLICE_BYTES (2 * MiB)        /* above the 1280 KiB Linux sends at most */
#define BLK_TURN 32u                     /* requests or completions in a loop turn */
#define BLK_ZEROES_BYTES (64 * KiB)

#define BLK_PENDING (-1) /* not a status: the request is in the ring */

enum blk_step { STEP_READ, STEP_WRITE, STEP_PUNCH, STEP_ZERO_RANGE, STEP_ZEROES, STEP_SYNC };

struct blk_range {
	uint64_t at_bytes, len_bytes;
	bool unmap;
};

/* A request between virtq_pop() and virtq_push(). */
struct blk_req {
	uint16_t head;
	uint32_t type;
	uint8_t *status;     /* in guest RAM */
	uint32_t used_bytes; /* for the used ring */
	uint64_t total_bytes;

	enum blk_step step;
	uint64_t at_bytes, left_bytes; /* in the disk: where the step goes on */
	bool direct;        /* the slice in the ring went to direct_fd */
	bool buffered_only; /* direct I/O refused this request */

	/* data of IN and OUT; the entry a slice ends in is cut for as long as
	 * the slice is in the ring */
	unsigned iov_next, iov_count, iov_cut;
	size_t iov_cut_len; /* its whole length, 0: none is cut */
	unsigned iov_lent; /* from iov_next on: what the disk is being read into */
	unsigned range_next, range_count;
	struct blk_range ranges[BLK_MAX_RANGES];
	struct iovec iov[BLK_MAX_SEGS];
};

struct blk {
	struct virtio_dev dev; /* first */

	/* fixed at create */
	struct image image;
	int event_fd; /* the ring's completions, and blk_wake() */
	bool ring_ready;
	struct blk_config_le config;

	/* under lock */
	struct io_uring ring;
	bool pushed; /* chains returned and the driver not yet told */
	bool no_punch, no_zero_range; /* the host refused it once */
	unsigned free_count;
	uint16_t free[BLK_QUEUE];
	struct blk_req reqs[BLK_QUEUE]; /* untouched ones cost no memory */
	struct virtq_chain chain;       /* the one being parsed */
	uint8_t zeroes[BLK_ZEROES_BYTES];
};

static struct blk *blk_of(struct virtio_dev *dev)
{
	return (struct blk *)dev;
}

static unsigned blk_in_flight(const struct blk *b)
{
	return BLK_QUEUE - b->free_count;
}

/* Makes the loop call blk_completions() in its next turn. */
static void blk_wake(struct blk *b)
{
	VERIFY(eventfd_write(b->event_fd, 1) == 0);
}

/* ---- slots -------------------------------------------------------------- */

static struct blk_req *blk_take(struct blk *b)
{
	struct blk_req *r;

	VERIFY(b->free_count > 0);
	r = &b->reqs[b->free[--b->free_count]];
	/* not the arrays at its end: they are 2 KiB, and have counts */
	memset(r, 0, offsetof(struct blk_req, ranges));
	return r;
}

static void blk_release(struct blk *b, struct blk_req *r)
{
	VERIFY(b->free_count < BLK_QUEUE);
	b->free[b->free_count++] = (uint16_t)(r - b->reqs);
}

static void blk_count(const struct blk_req *r)
{
	switch (r->type) {
	case BLK_T_IN:
		counter_inc(CTR_blk_reads);
		counter_add(CTR_blk_read_bytes, r->total_bytes);
		break;
	case BLK_T_OUT:
		counter_inc(CTR_blk_writes);
		counter_add(CTR_blk_write_bytes, r->total_bytes);
		break;
	case BLK_T_FLUSH:
		counter_inc(CTR_blk_flushes);
		break;
	case BLK_T_DISCARD:
	case BLK_T_WRITE_ZEROES:
		counter_inc(CTR_blk_discards);
		break;
	default:
		break;
	}
}

static void blk_finish(struct blk *b, struct blk_req *r, uint8_t status)
{
	if (status == BLK_S_OK)
		blk_count(r);
	*r->status = status;
	virtq_push(&b->dev.queues[0], r->head, r->used_bytes);
	b->pushed = true;
	blk_release(b, r);
}

/* ---- steps: into the ring ------------------------------------------------ */

/* The buffers of the next slice: entries from iov_next on. Cuts the last one. */
static unsigned blk_slice(struct blk_req *r)
{
	uint64_t room = BLK_SLICE_BYTES;
	unsigned i;

	for (i = r->iov_next; i < r->iov_count; i++) {
		if (r->iov[i].iov_len >= room) {
			r->iov_cut = i++;
			r->iov_cut_len = r->iov[r->iov_cut].iov_len;
			r->iov[r->iov_cut].iov_len = room;
			break;
		}
		room -= r->iov[i].iov_len;
	}
	return i - r->iov_next;
}

static void blk_uncut(struct blk_req *r)
{
	if (r->iov_cut_len != 0)
		r->iov[r->iov_cut].iov_len = r->iov_cut_len;
	r->iov_cut_len = 0;
}

/* Whoever moves guest RAM about is to know what a disk is being read into (ram_lend()). */
static void blk_lend(struct blk *b, struct blk_req *r, unsigned n)
{
	for (unsigned i = 0; i < n; i++)
		ram_lend(b->dev.env.ram, r->iov[r->iov_next + i].iov_base, r->iov[r->iov_next + i].iov_len);
	r->iov_lent = n;
}

static void blk_returned(struct blk *b, struct blk_req *r)
{
	for (unsigned i = 0; i < r->iov_lent; i++)
		ram_returned(b->dev.env.ram, r->iov[r->iov_next + i].iov_base,
			     r->iov[r->iov_next + i].iov_len);
	r->iov_lent = 0;
}

/* As blk_slice(), for writing zeroes: the same page of them over and over. */
static unsigned blk_zeroes_slice(struct blk *b, struct blk_req *r)
{
	uint64_t todo = r->left_bytes < BLK_SLICE_BYTES ? r->left_bytes : BLK_SLICE_BYTES;
	unsigned n = 0;

	for (; todo > 0; n++) {
		r->iov[n].iov_base = b->zeroes;
		r->iov[n].iov_len = todo < BLK_ZEROES_BYTES ? todo : BLK_ZEROES_BYTES;
		todo -= r->iov[n].iov_len;
	}
	return n;
}
_Static_assert(BLK_SLICE_BYTES / BLK_ZEROES_BYTES <= BLK_MAX_SEGS, "a slice fits iov[]");

static bool blk_can_be_direct(const struct blk *b, const struct blk_req *r, unsigned n)
{
	const struct iovec *v = &r->iov[r->iov_next];

	if (b->image.direct_fd < 0 || r->buffered_only || r->at_bytes % b->image.offset_align != 0)
		return false;
	for (unsigned i = 0; i < n; i++)
		if ((uintptr_t)v[i].iov_base % b->image.mem_align != 0 ||
		    v[i].iov_len % b->image.offset_align != 0)
			return false;
	return true;
}

static void blk_prep_transfer(struct blk *b, struct blk_req *r, struct io_uring_sqe *sqe)
{
	unsigned n = blk_slice(r);
	const struct iovec *v = &r->iov[r->iov_next];
	int fd;

	r->direct = blk_can_be_direct(b, r, n);
	fd = r->direct ? b->image.direct_fd : b->image.fd;
	if (r->step == STEP_READ) {
		blk_lend(b, r, n);
		io_uring_prep_readv(sqe, fd, v, n, r->at_bytes);
	} else {
		io_uring_prep_writev(sqe, fd, v, n, r->at_bytes);
	}
}

static void blk_put(struct blk *b, struct blk_req *r)
{
	struct io_uring_sqe *sqe = io_uring_get_sqe(&b->ring);

	VERIFY(sqe != NULL); /* one operation a slot: see the top */
	VERIFY(r->step == STEP_READ || r->step == STEP_SYNC || !b->image.readonly);
	VERIFY(r->at_bytes + r->left_bytes <= b->image.sectors * BLK_SECTOR);
	switch (r->step) {
	case STEP_READ:
	case STEP_WRITE:
		blk_prep_transfer(b, r, sqe);
		break;
	case STEP_PUNCH:
		io_uring_prep_fallocate(sqe, b->image.fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
					(off_t)r->at_bytes, (off_t)r->left_bytes);
		break;
	case STEP_ZERO_RANGE:
		io_uring_prep_fallocate(sqe, b->image.fd, FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE,
					(off_t)r->at_bytes, (off_t)r->left_bytes);
		break;
	case STEP_ZEROES:
		io_uring_prep_writev(sqe, b->image.fd, r->iov, blk_zeroes_slice(b, r), r->at_bytes);
		break;
	case STEP_SYNC:
		io_uring_prep_fsync(sqe, b->image.fd, IORING_FSYNC_DATASYNC);
		break;
	}
	io_uring_sqe_set_data(sqe, r);
}

/* Hands everything put to the kernel.  Where it lacks memory for all of it, the
 * rest stays in the ring and the next turn tries again. */
static void blk_submit(struct blk *b)
{
	if (io_uring_sq_ready(&b->ring) == 0)
		return;
	io_uring_submit(&b->ring);
	if (io_uring_sq_ready(&b->ring) > 0)
		blk_wake(b);
}

/* ---- steps: out of the ring ---------------------------------------------- */

static void blk_sync(struct blk *b, struct blk_req *r)
{
	r->step = STEP_SYNC;
	r->left_bytes = 0;
	blk_put(b, r);
}

/* All of a write is done. */
static void blk_written(struct blk *b, struct blk_req *r)
{
	if (virtio_has(&b->dev, BIT(BLK_F_FLUSH)))
		blk_finish(b, r, BLK_S_OK);
	else
		blk_sync(b, r);
}

static void blk_next_range(struct blk *b, struct blk_req *r)
{
	bool discard = r->type == BLK_T_DISCARD;
	const struct blk_range *range;

	if (r->range_next == r->range_count || (discard && b->no_punch)) {
		blk_written(b, r); /* a discard is a hint: not taking it is all right */
		return;
	}
	range = &r->ranges[r->range_next++];
	r->at_bytes = range->at_bytes;
	r->left_bytes = range->len_bytes;
	if ((discard || range->unmap) && !b->no_punch)
		r->step = STEP_PUNCH;
	else if (!b->no_zero_range)
		r->step = STEP_ZERO_RANGE;
	else
		r->step = STEP_ZEROES;
	blk_put(b, r);
}

/* The host cannot do this to a range: a hint is dropped, zeroes are written in
 * a way it can.  -EINVAL comes of a block device and a range not aligned to it. */
static void blk_refused(struct blk *b, struct blk_req *r, int res)
{
	if (res == -EOPNOTSUPP) {
		b->no_punch |= r->step == STEP_PUNCH;
		b->no_zero_range |= r->step == STEP_ZERO_RANGE;
	}
	if (r->type == BLK_T_DISCARD) {
		blk_next_range(b, r);
		return;
	}
	r->step = r->step == STEP_PUNCH && !b->no_zero_range ? STEP_ZERO_RANGE : STEP_ZEROES;
	blk_put(b, r);
}

/* Takes `moved` bytes off the front of what is left. */
static void blk_moved(struct blk_req *r, uint64_t moved)
{
	r->at_bytes += moved;
	r->left_bytes -= moved;
	if (r->step == STEP_ZEROES)
		return; /* its buffers are made anew */
	while (moved > 0) {
		struct iovec *v = &r->iov[r->iov_next];
		size_t take = moved < v->iov_len ? moved : v->iov_len;

		v->iov_base = (uint8_t *)v->iov_base + take;
		v->iov_len -= take;
		moved -= take;
		if (v->iov_len == 0)
			r->iov_next++;
	}
}

static void blk_failed(struct blk *b, struct blk_req *r, int res)
{
	counter_inc(CTR_blk_io_errors);
	log_guest("%s: type %u at byte %llu: %s", b->dev.label, r->type,
		  (unsigned long long)r->at_bytes,
		  res < 0 ? strerror(-res) : "the image has become shorter");
	blk_finish(b, r, BLK_S_IOERR);
}

static void blk_transfer_done(struct blk *b, struct blk_req *r, int res)
{
	if (res == -EINVAL && r->direct) {
		r->buffered_only = true;
		blk_put(b, r);
		return;
	}
	if (res <= 0) {
		blk_failed(b, r, res);
		return;
	}
	VERIFY((uint64_t)res <= r->left_bytes);
	blk_moved(r, (uint64_t)res);
	if (r->left_bytes > 0)
		blk_put(b, r);
	else if (r->step == STEP_READ)
		blk_finish(b, r, BLK_S_OK);
	else
		blk_next_range(b, r); /* OUT has none */
}

static void blk_range_done(struct blk *b, struct blk_req *r, int res)
{
	if (res == -EOPNOTSUPP || res == -EINVAL)
		blk_refused(b, r, res);
	else if (res < 0)
		blk_failed(b, r, res);
	else
		blk_next_range(b, r);
}

static void blk_step_done(struct blk *b, struct blk_req *r, int res)
{
	blk_returned(b, r);
	if (!virtio_running(&b->dev)) {
		blk_release(b, r); /* nobody to tell: I4 */
		return;
	}
	blk_uncut(r);
	if (res == -EINTR || res == -EAGAIN) {
		blk_put(b, r);
		return;
	}
	switch (r->step) {
	case STEP_READ:
	case STEP_WRITE:
	case STEP_ZEROES:
		blk_transfer_done(b, r, res);
		break;
	case STEP_PUNCH:
	case STEP_ZERO_RANGE:
		blk_range_done(b, r, res);
		break;
	case STEP_SYNC:
		if (res < 0)
			blk_failed(b, r, res);
		else
			blk_finish(b, r, BLK_S_OK);
		break;
	}
}

/* ---- requests ------------------------------------------------------------ */

static int blk_refuse(uint8_t status)
{
	counter_inc(CTR_blk_bad_request);
	return status;
}

static bool blk_in_disk(const struct blk *b, uint64_t sector, uint64_t sectors)
{
	return sector <= b->image.sectors && sectors <= b->image.sectors - sector;
}

/* IN and OUT: data is `len` bytes of `side` from byte `skip` on. */
static int blk_parse_data(struct blk *b, struct blk_req *r, uint64_t sector,
			  const struct iovec *side, unsigned count, uint64_t skip, uint64_t len)
{
	int n;

	if (len % BLK_SECTOR != 0 || !blk_in_disk(b, sector, len / BLK_SECTOR))
		return blk_refuse(BLK_S_IOERR);
	n = iov_slice(r->iov, BLK_MAX_SEGS, side, count, skip, len);
	if (n < 0)
		return blk_refuse(BLK_S_IOERR);
	r->iov_count = (unsigned)n;
	r->at_bytes = sector * BLK_SECTOR;
	r->left_bytes = r->total_bytes = len;
	if (len == 0)
		return BLK_S_OK;
	blk_put(b, r);
	return BLK_PENDING;
}

static int blk_parse_in(struct blk *b, struct blk_req *r, uint64_t sector)
{
	const struct virtq_chain *c = &b->chain;

	r->step = STEP_READ;
	return blk_parse_data(b, r, sector, c->in, c->in_count, 0, c->in_bytes - 1);
}

static int blk_parse_out(struct blk *b, struct blk_req *r, uint64_t sector)
{
	const struct virtq_chain *c = &b->chain;
	size_t skip = sizeof(struct blk_header_le);

	if (b->image.readonly)
		return blk_refuse(BLK_S_IOERR);
	r->step = STEP_WRITE;
	return blk_parse_data(b, r, sector, c->out, c->out_count, skip, c->out_bytes - skip);
}

static int blk_parse_get_id(struct blk *b)
{
	const struct virtq_chain *c = &b->chain;
	size_t len = c->in_bytes - 1 < sizeof b->image.id ? c->in_bytes - 1 : sizeof b->image.id;

	virtq_copy_in(c, 0, b->image.id, len);
	return BLK_S_OK;
}

/* One range out of the copy in *raw: a status, or BLK_PENDING when it is good. */
static int blk_check_range(const struct blk *b, uint32_t type,
			   const struct blk_range_le *raw,
			   struct blk_range *range)
{
	uint32_t flags = le32toh(raw->flags), sectors = le32toh(raw->num_sectors);
	uint64_t sector = le64toh(raw->sector);
	bool unmap = (flags & BLK_RANGE_UNMAP) != 0;

	if ((flags & ~BLK_RANGE_UNMAP) != 0)
		return BLK_S_UNSUPP;
	if (unmap && type == BLK_T_DISCARD)
		return BLK_S_UNSUPP;
	if (sectors > BLK_MAX_RANGE_SECTORS || !blk_in_disk(b, sector, sectors))
		return BLK_S_IOERR;
	*range = (struct blk_range){ .at_bytes = sector * BLK_SECTOR,
				     .len_bytes = (uint64_t)sectors * BLK_SECTOR,
				     .unmap = unmap };
	return BLK_PENDING;
}

/* DISCARD and WRITE_ZEROES.  All ranges are checked before any is acted on. */
static int blk_parse_ranges(struct blk *b, struct blk_req *r, unsigned feature)
{
	struct blk_range_le raw;
	size_t at = sizeof(struct blk_header_le);
	uint64_t len = b->chain.out_bytes - at;

	if (!virtio_has(&b->dev, BIT(feature)))
		return blk_refuse(BLK_S_UNSUPP);
	if (len == 0 || len % sizeof raw != 0 || len / sizeof raw > BLK_MAX_RANGES)
		return blk_refuse(BLK_S_IOERR);
	for (; len > 0; len -= sizeof raw, at += sizeof raw) {
		struct blk_range *range = &r->ranges[r->range_count];
		int rc;

		virtq_copy_out(&b->chain, at, &raw, sizeof raw);
		rc = blk_check_range(b, r->type, &raw, range);
		if (rc != BLK_PENDING)
			return blk_refuse((uint8_t)rc);
		if (range->len_bytes > 0) /* fallocate refuses nothing */
			r->range_count++;
	}
	if (r->range_count == 0)
		return BLK_S_OK;
	blk_next_range(b, r);
	return BLK_PENDING;
}

/* Returns a status, or BLK_PENDING: the request is on its way, and blk_finish()
 * will be, or was already, called. */
static int blk_parse(struct blk *b, struct blk_req *r)
{
	struct blk_header_le hdr;

	if (virtq_copy_out(&b->chain, 0, &hdr, sizeof hdr) != sizeof hdr)
		return blk_refuse(BLK_S_IOERR);
	r->type = le32toh(hdr.type);
	switch (r->type) {
	case BLK_T_IN:
		return blk_parse_in(b, r, le64toh(hdr.sector));
	case BLK_T_OUT:
		return blk_parse_out(b, r, le64toh(hdr.sector));
	case BLK_T_FLUSH:
		blk_sync(b, r);
		return BLK_PENDING;
	case BLK_T_GET_ID:
		return blk_parse_get_id(b);
	case BLK_T_DISCARD:
		return blk_parse_ranges(b, r, BLK_F_DISCARD);
	case BLK_T_WRITE_ZEROES:
		return blk_parse_ranges(b, r, BLK_F_WRITE_ZEROES);
	default:
		return blk_refuse(BLK_S_UNSUPP);
	}
}

/* Any layout of section 2.7.4: the header is the first 16 bytes the device may
 * read, the status the last one it may write, wherever buffers begin and end.
 *
 * A chain with no byte for the status goes back with nothing written.  The ring
 * is sound and the disk's other requests are good, so the device is not put
 * into NEEDS_RESET for what hurts this one request. */
static void blk_request(struct blk *b)
{
	const struct virtq_chain *c = &b->chain;
	const struct iovec *last;
	struct blk_req *r;
	int status;

	if (c->in_bytes == 0) {
		counter_inc(CTR_blk_bad_request);
		virtq_push(&b->dev.queues[0], c->head, 0);
		b->pushed = true;
		return;
	}
	last = &c->in[c->in_count - 1];
	r = blk_take(b);
	r->head = c->head;
	r->status = (uint8_t *)last->iov_base + last->iov_len - 1;
	/* Failed or not: a driver may look no further than this (2.7.8.2), and
	 * the status is the last byte. */
	r->used_bytes = c->in_bytes < UINT32_MAX ? (uint32_t)c->in_bytes : UINT32_MAX;
	status = blk_parse(b, r);
	if (status != BLK_PENDING)
		blk_finish(b, r, (uint8_t)status);
}

/* ---- turns of the loop --------------------------------------------------- */

/* Takes requests until there are none, the turn's share is used up, or no slot
 * is free: then the next completion goes on. */
static void blk_run(struct blk *b)
{
	struct virtq *q = &b->dev.queues[0];
	unsigned budget = BLK_TURN;

	virtq_kicks_off(q);
	while (b->free_count > 0) {
		int got = virtq_pop(q, &b->chain);

		if (got < 0)
			break;
		if (got > 0)
			blk_request(b);
		else if (!virtq_kicks_on(q))
			break;
		else
			virtq_kicks_off(q);
		if (--budget == 0) {
			virtio_requeue(&b->dev, 0);
			break;
		}
	}
}

/* Ends every turn. */
static void blk_turn_end(struct blk *b)
{
	blk_submit(b);
	if (b->pushed)
		virtq_notify(&b->dev.queues[0]);
	b->pushed = false;
}

static void blk_queue_ready(struct virtio_dev *dev, unsigned qi)
{
	struct blk *b = blk_of(dev);

	ASSERT_ROLE(ROLE_LOOP);
	blk_run(b);
	blk_turn_end(b);
}

/* The ring's eventfd is readable. */
static void blk_completions(struct virtio_dev *dev, unsigned events)
{
	struct blk *b = blk_of(dev);
	struct io_uring_cqe *cqes[BLK_TURN];
	eventfd_t ignored;
	unsigned n;

	ASSERT_ROLE(ROLE_LOOP);
	eventfd_read(b->event_fd, &ignored);
	n = io_uring_peek_batch_cqe(&b->ring, cqes, BLK_TURN);
	for (unsigned i = 0; i < n; i++)
		blk_step_done(b, io_uring_cqe_get_data(cqes[i]), cqes[i]->res);
	io_uring_cq_advance(&b->ring, n);
	if (n == BLK_TURN)
		blk_wake(b);
	if (virtio_running(dev))
		blk_run(b);
	blk_turn_end(b);
	if (dev->resetting && blk_in_flight(b) == 0)
		virtio_reset_done(dev);
}

/* ---- the device's other ops ---------------------------------------------- */

static void blk_config_read(struct virtio_dev *dev, uint32_t off, void *buf, uint32_t len)
{
	memcpy(buf, (const uint8_t *)&blk_of(dev)->config + off, len);
}

static void blk_config_write(struct virtio_dev *dev, uint32_t off, const void *buf, uint32_t len)
{
	counter_inc(CTR_virtio_bad_access); /* CONFIG_WCE is not offered */
}

static int blk_reset(struct virtio_dev *dev)
{
	return blk_in_flight(blk_of(dev)) > 0 ? -EINPROGRESS : 0;
}

/* Waits for what the kernel has; what it was never given is forgotten. */
static void blk_drain(struct blk *b)
{
	while (blk_in_flight(b) > io_uring_sq_ready(&b->ring)) {
		struct io_uring_cqe *cqe;

		if (io_uring_wait_cqe(&b->ring, &cqe) < 0)
			continue; /* a signal */
		blk_returned(b, io_uring_cqe_get_data(cqe));
		blk_release(b, io_uring_cqe_get_data(cqe));
		io_uring_cqe_seen(&b->ring, cqe);
	}
}

/* Accepts what virtio_blk_create() left half-built. */
static void blk_destroy(struct virtio_dev *dev)
{
	struct blk *b = blk_of(dev);

	if (b->ring_ready) {
		blk_drain(b);
		VERIFY(blk_in_flight(b) == io_uring_sq_ready(&b->ring));
		io_uring_queue_exit(&b->ring);
	}
	virtio_dev_fini(dev); /* unwatches event_fd: before that is closed */
	if (b->event_fd >= 0)
		close(b->event_fd);
	image_close(&b->image);
	free(b);
}

static const struct virtio_dev_ops blk_ops = {
	.name = "virtio-blk",
	.type = 2,
	.class = 0x018000, /* mass storage, other */
	.config_read = blk_config_read,
	.config_write = blk_config_write,
	.queue_ready = blk_queue_ready,
	.reset = blk_reset,
	.destroy = blk_destroy,
};

/* ---- create --------------------------------------------------------------- */

static uint8_t log2_of(uint32_t v)
{
	return (uint8_t)(31 - __builtin_clz(v));
}

static void blk_fill_config(struct blk *b)
{
	const struct image *im = &b->image;
	uint32_t per_block = im->physical_bytes / im->block_bytes;

	b->config = (struct blk_config_le){
		.capacity = htole64(im->sectors),
		.seg_max = htole32(BLK_MAX_SEGS),
		.blk_size = htole32(im->block_bytes),
		.physical_block_exp = log2_of(per_block),
		.min_io_size = htole16((uint16_t)per_block),
		.max_discard_sectors = htole32(BLK_MAX_RANGE_SECTORS),
		.max_discard_seg = htole32(BLK_MAX_RANGES),
		.discard_sector_alignment = htole32(im->physical_bytes / BLK_SECTOR),
		.max_write_zeroes_sectors = htole32(BLK_MAX_RANGE_SECTORS),
		.max_write_zeroes_seg = htole32(BLK_MAX_RANGES),
		.write_zeroes_may_unmap = 1,
	};
	b->dev.config_bytes = sizeof b->config;
	b->dev.features_offered = BIT(BLK_F_SEG_MAX) | BIT(BLK_F_BLK_SIZE) |
				  BIT(BLK_F_FLUSH) | BIT(BLK_F_TOPOLOGY);
	if (im->readonly)
		b->dev.features_offered |= BIT(BLK_F_RO);
	else
		b->dev.features_offered |= BIT(BLK_F_DISCARD) | BIT(BLK_F_WRITE_ZEROES);
}

static int blk_open_ring(struct blk *b, const char *label, struct err *e)
{
	int rc;

	rc = io_uring_queue_init(BLK_QUEUE, &b->ring, 0);
	if (rc < 0)
		return err_sys(e, rc, "%s: no io_uring (see sysctl kernel.io_uring_disabled)", label);
	b->ring_ready = true;
	b->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (b->event_fd < 0)
		return err_sys(e, -errno, "%s: eventfd", label);
	rc = io_uring_register_eventfd(&b->ring, b->event_fd);
	if (rc == 0)
		rc = virtio_watch_fd(&b->dev, b->event_fd, VIRTIO_FD_IN, blk_completions);
	return rc < 0 ? err_sys(e, rc, "%s: watching the ring", label) : 0;
}

int virtio_blk_create(struct virtio_dev **out, const struct virtio_env *env,
		      const char *label, const struct virtio_blk_config *cfg, struct err *e)
{
	struct blk *b = calloc(1, sizeof *b);
	int rc;

	if (b == NULL)
		return err_sys(e, -ENOMEM, "%s", label);
	b->event_fd = -1;
	b->free_count = BLK_QUEUE;
	for (unsigned i = 0; i < BLK_QUEUE; i++)
		b->free[i] = (uint16_t)(BLK_QUEUE - 1 - i); /* low ones first */
	virtio_dev_init(&b->dev, &blk_ops, env, label, 1, BLK_QUEUE);

	rc = image_open(&b->image, label, cfg, e);
	if (rc == 0) {
		blk_fill_config(b);
		rc = blk_open_ring(b, label, e);
	}
	if (rc == 0)
		*out = &b->dev;
	else
		blk_destroy(&b->dev);
	return rc;
}
