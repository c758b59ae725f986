/*
 * Reads and writes of the swap file that nobody waits for: one io_uring, and a fixed
 * number of operations on their way.
 *
 *   caller's op --aio_start()--> in the ring --kernel--> done --aio_reap()--> caller's
 *
 * What the kernel did only in part is carried on from here, and what it asks to
 * repeat is repeated, so an op ends whole or with an error.
 *
 * Threads: any may start ops, one reaps.  The kernel's two queues need no lock between
 * those sides; `lock` keeps those that start apart.
 *
 * Invariants:
 *  I1  Every op that was started is reaped exactly once; until then the kernel may
 *      write its buffer.
 *  I2  At most `depth` ops are on their way, so no completion is ever dropped.
 */
#include "mm/aio.h"

#include <errno.h>
#include <liburing.h>
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define TRIES_MAX 100u /* of one op; then what was asked to be repeated is its error */

struct aio {
	/* fixed at create */
	const struct mm_host *host;
	unsigned depth;
	int event; /* aio_wake() writes to it; -1: not armed */

	pthread_mutex_t lock;
	/* under lock: its submission queue.  Owned by the reaper: its completion queue */
	struct io_uring ring;
	_Atomic unsigned on_way;
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
	a->event = -1;
	pthread_mutex_init(&a->lock, NULL);
	rc = host->ring_init(depth + 1, &a->ring); /* one to be woken by */
	if (rc) {
		pthread_mutex_destroy(&a->lock);
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
	if (a->event >= 0)
		close(a->event);
	pthread_mutex_destroy(&a->lock);
	free(a);
}

unsigned aio_on_way(const struct aio *a)
{
	return a->on_way;
}

/* To the kernel with what was prepared. 0 or -errno.  Lock held. */
static int push(struct aio *a, struct io_uring_sqe *sqe)
{
	int n = a->host->ring_submit(&a->ring);

	if (n > 0)
		return 0;
	/* Not taken, but it stays in the ring: to go along one day, and do nothing. */
	io_uring_prep_nop(sqe);
	io_uring_sqe_set_data(sqe, NULL);
	return n ? n : -EAGAIN;
}

/* Puts what is left of the op into the ring. 0 or -errno. */
static int submit(struct aio *a, struct aio_op *op)
{
	uint8_t *at = (uint8_t *)op->buf + op->done_bytes;
	uint32_t left = op->bytes - op->done_bytes;
	uint64_t offset = op->offset + op->done_bytes;
	struct io_uring_sqe *sqe;
	int rc = -EAGAIN;

	pthread_mutex_lock(&a->lock);
	sqe = io_uring_get_sqe(&a->ring);
	if (sqe) {
		if (op->is_write)
			io_uring_prep_write(sqe, op->fd, at, left, offset);
		else
			io_uring_prep_read(sqe, op->fd, at, left, offset);
		io_uring_sqe_set_data(sqe, op);
		/* the last touch of it here: the reaper may have it any moment */
		atomic_store_explicit(&op->is_started, true, memory_order_release);
		rc = push(a, sqe);
	}
	pthread_mutex_unlock(&a->lock);
	return rc;
}

int aio_arm(struct aio *a)
{
	struct io_uring_sqe *sqe;
	int rc;

	VERIFY(a->event < 0);
	a->event = eventfd(0, EFD_CLOEXEC);
	if (a->event < 0)
		return -errno;
	pthread_mutex_lock(&a->lock);
	sqe = io_uring_get_sqe(&a->ring);
	VERIFY(sqe);
	io_uring_prep_poll_add(sqe, a->event, POLLIN);
	io_uring_sqe_set_data(sqe, NULL);
	rc = push(a, sqe);
	pthread_mutex_unlock(&a->lock);
	return rc;
}

void aio_wake(struct aio *a)
{
	VERIFY(a->event >= 0);
	eventfd_write(a->event, 1);
}

int aio_start(struct aio *a, struct aio_op *op)
{
	int rc;

	VERIFY(op->bytes > 0);
	op->done_bytes = 0;
	op->tries = 0;
	op->result = 0;
	if (atomic_fetch_add(&a->on_way, 1) >= a->depth)
		rc = -EAGAIN;
	else
		rc = submit(a, op);
	if (rc)
		atomic_fetch_sub(&a->on_way, 1);
	return rc;
}

/* True where the op has ended, with op->result set; else it is on its way again. */
static bool op_ended(struct aio *a, struct aio_op *op, int res)
{
	bool again = res == -EAGAIN || res == -EINTR;
	int rc;

	VERIFY(atomic_load_explicit(&op->is_started, memory_order_acquire));
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

/* The next completion's op and what the kernel says of it.  NULL: aio_wake(), or
 * `wait` was not asked for and there is none (*any). */
static struct aio_op *next_done(struct aio *a, bool wait, bool *any, int *res)
{
	struct io_uring_cqe *cqe = NULL;
	struct aio_op *op;

	while (a->host->ring_wait(&a->ring, &cqe, wait) || !cqe)
		if (!wait) { /* else a signal, or the kernel is short of memory: it comes */
			*any = false;
			return NULL;
		}
	*any = true;
	*res = cqe->res;
	op = io_uring_cqe_get_data(cqe);
	io_uring_cqe_seen(&a->ring, cqe);
	return op;
}

struct aio_op *aio_reap(struct aio *a, enum aio_wait how)
{
	bool any = true;
	int res;

	while (any && (how == AIO_WAIT_WAKE || atomic_load(&a->on_way))) {
		struct aio_op *op = next_done(a, how != AIO_NO_WAIT, &any, &res);

		if (!op && any && how == AIO_WAIT_WAKE)
			break;
		if (!op || !op_ended(a, op, res))
			continue;
		atomic_fetch_sub(&a->on_way, 1);
		return op;
	}
	return NULL;
}
