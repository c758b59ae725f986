/*
 * virtio-rng (virtio 1.2, section 5.4): the host's random numbers for the guest.
 *
 * One queue of device-writable buffers, filled from getrandom().  A device may
 * fill less than it was given, and this one fills at most RNG_TURN_BYTES in one
 * turn of the loop: a guest that asks for gigabytes gets them in pieces, between
 * which everyone else has a turn.
 *
 * Threads: loop, under the device's lock.
 *
 * Invariants:
 *  I1  What is reported as written was written by getrandom(): the guest never
 *      takes its own old bytes for random ones.
 */
#include <errno.h>
#include <stdlib.h>
#include <sys/random.h>

#include "virtio/virtio.h"

#define RNG_QUEUE_SIZE 64
#define RNG_TURN_BYTES ((size_t)(64 * KiB)) /* about 0.2 ms of getrandom() */
#define RNG_TURN_CHAINS 64

struct rng {
	struct virtio_dev dev;

	/* under lock */
	struct virtq_chain chain; /* too large for a stack; used within one turn */
};

static struct rng *rng_of(struct virtio_dev *dev)
{
	return (struct rng *)(void *)((uint8_t *)dev - offsetof(struct rng, dev));
}

/* Bytes filled; less than asked for only if getrandom() fails. */
static size_t fill_random(void *buf, size_t len)
{
	size_t done = 0;

	while (done < len) {
		ssize_t n = getrandom((uint8_t *)buf + done, len - done, 0);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			break;
		done += (size_t)n;
	}
	return done;
}

static size_t fill_chain(const struct virtq_chain *c, size_t most)
{
	size_t done = 0;

	for (unsigned i = 0; i < c->in_count && done < most; i++) {
		size_t want = c->in[i].iov_len < most - done ? c->in[i].iov_len : most - done;
		size_t got = fill_random(c->in[i].iov_base, want);

		done += got;
		if (got < want)
			break;
	}
	return done;
}

static void rng_queue_ready(struct virtio_dev *dev, unsigned qi)
{
	struct rng *r = rng_of(dev);
	struct virtq *q = &dev->queues[qi];
	size_t left = RNG_TURN_BYTES;
	unsigned chains = RNG_TURN_CHAINS;

	virtq_kicks_off(q);
	while (left > 0 && chains > 0 && virtq_pop(q, &r->chain) > 0) {
		size_t n = fill_chain(&r->chain, left);

		virtq_push(q, r->chain.head, (uint32_t)n);
		counter_add(CTR_rng_bytes, n);
		left -= n;
		chains--;
	}
	virtq_notify(q);
	if (virtq_kicks_on(q))
		virtio_requeue(dev, qi);
}

static void rng_destroy(struct virtio_dev *dev)
{
	struct rng *r = rng_of(dev);

	virtio_dev_fini(dev);
	free(r);
}

static const struct virtio_dev_ops rng_ops = {
	.name = "virtio-rng",
	.type = 4,
	.class = 0xff0000, /* fits no class */
	.queue_ready = rng_queue_ready,
	.destroy = rng_destroy,
};

int virtio_rng_create(struct virtio_dev **out, const struct virtio_env *env, struct err *e)
{
	struct rng *r = calloc(1, sizeof(*r));

	if (r == NULL)
		return err_sys(e, -ENOMEM, "rng");
	virtio_dev_init(&r->dev, &rng_ops, env, "rng", 1, RNG_QUEUE_SIZE);
	*out = &r->dev;
	return 0;
}
