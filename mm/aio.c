/*
 * Reads and writes of the swap file that nobody waits for: one io_uring for one
 * thread, and a fixed number of operations on their way.
 *
 *   caller's op --aio_start()--> in the ring --kernel--> done --aio_reap()--> caller's
 *
 * What the kernel did only in part is carried on from here, and what it asks to
 * repeat is repeated, so an op ends whole or with an error.
 *
 * Threads: one per ring, from the first op on.  aio_fd() may be polled by it.
 *
 * Invariants:
 *  I1  Every op that was started is reaped exactly once; until then the kernel may
 *      write its buffer.
 *  I2  At most `depth` ops are on their way, so no completion is ever dropped.
 */
#include "mm/aio.h"

#include <errno.h>
#include <liburing.h>
#include <stdlib.h>

#define TRIES_MAX 100u /* of one op; then what was asked to be repeated is its error */

struct aio {
	/* fixed at create */
	const struct mm_host *host;
	unsigned depth;

	/* owned by its thread */
	struct io_uring ring;
	unsigned on_way;
};

int aio_create(struct aio **out, const struct mm_host *host, unsigned depth)
{
	struct aio *a = calloc(1, sizeof(*a));
	int rc;

	VERIFY(depth > 0);
	if (!a)
		return -ENOMEM;
	a->host = host;
	a->depth = depth;
	rc = host->ring_init(depth, &a->ring);
	if (rc) {
		free(a);
		return rc;
	}
	*out = a;
	return 0;
}

void aio_destroy(struct aio **ap)
{
	struct aio *a = *ap;

	*ap = NULL;
	if (!a)
		return;
	VERIFY(a->on_way == 0);
	io_uring_queue_exit(&a->ring);
	free(a);
}

int aio_fd(const struct aio *a)
{
	return a->ring.ring_fd;
}

unsigned aio_on_way(const struct aio *a)
{
	return a->on_way;
}

/* Puts what is left of the op into the ring, and the ring to the kernel. 0 or -errno. */
static int submit(struct aio *a, struct aio_op *op)
{
	struct io_uring_sqe *sqe = io_uring_get_sqe(&a->ring);
	uint8_t *at = (uint8_t *)op->buf + op->done_bytes;
	uint32_t left = op->bytes - op->done_bytes;
	uint64_t offset = op->offset + op->done_bytes;
	int n;

	if (!sqe)
		return -EAGAIN;
	if (op->is_write)
		io_uring_prep_write(sqe, op->fd, at, left, offset);
	else
		io_uring_prep_read(sqe, op->fd, at, left, offset);
	io_uring_sqe_set_data(sqe, op);
	n = a->host->ring_submit(&a->ring);
	if (n > 0)
		return 0;
	/* Not taken, but it stays in the ring: to go along one day, and do nothing. */
	io_uring_prep_nop(sqe);
	io_uring_sqe_set_data(sqe, NULL);
	return n ? n : -EAGAIN;
}

int aio_start(struct aio *a, struct aio_op *op)
{
	int rc;

	VERIFY(op->bytes > 0);
	if (a->on_way == a->depth)
		return -EAGAIN;
	op->done_bytes = 0;
	op->tries = 0;
	op->result = 0;
	rc = submit(a, op);
	if (!rc)
		a->on_way++;
	return rc;
}

/* True where the op has ended, with op->result set; else it is on its way again. */
static bool op_ended(struct aio *a, struct aio_op *op, int res)
{
	bool again = res == -EAGAIN || res == -EINTR;
	int rc;

	if (res > 0) {
		op->done_bytes += (uint32_t)res;
		again = op->done_bytes < op->bytes;
	} else if (res == 0) {
		res = -EIO; /* the file ends here */
	}
	if (again && op->tries++ < TRIES_MAX) {
		rc = submit(a, op);
		if (!rc)
			return false;
		res = rc;
	} else if (again && res > 0) {
		res = -EIO; /* a hundred parts, and still not whole */
	}
	op->result = res < 0 ? res : 0;
	return true;
}

struct aio_op *aio_reap(struct aio *a, bool wait)
{
	while (a->on_way) {
		struct io_uring_cqe *cqe = NULL;
		struct aio_op *op;
		int res;

		if (a->host->ring_wait(&a->ring, &cqe, wait) || !cqe) {
			if (!wait)
				return NULL;
			continue; /* a signal, or the kernel is short of memory: it comes */
		}
		op = io_uring_cqe_get_data(cqe);
		res = cqe->res;
		io_uring_cqe_seen(&a->ring, cqe);
		if (!op || !op_ended(a, op, res))
			continue;
		a->on_way--;
		return op;
	}
	return NULL;
}
