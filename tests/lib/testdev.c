/* See testdev.h. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "tests/lib/testdev.h"

static struct testdev *testdev_of(struct virtio_dev *dev)
{
	return (struct testdev *)(void *)((uint8_t *)dev - offsetof(struct testdev, dev));
}

static void testdev_config_read(struct virtio_dev *dev, uint32_t off, void *buf, uint32_t len)
{
	VERIFY(off + len <= TESTDEV_CONFIG_BYTES);
	memcpy(buf, testdev_of(dev)->config + off, len);
}

static void testdev_config_write(struct virtio_dev *dev, uint32_t off, const void *buf,
				 uint32_t len)
{
	VERIFY(off + len <= TESTDEV_CONFIG_BYTES);
	memcpy(testdev_of(dev)->config + off, buf, len);
}

static bool testdev_features_ok(struct virtio_dev *dev, uint64_t features)
{
	return !testdev_of(dev)->refuse;
}

static void testdev_start(struct virtio_dev *dev)
{
	VERIFY(virtio_running(dev));
	testdev_of(dev)->starts++;
}

static void echo_chain(struct testdev *t, struct virtq *q)
{
	uint8_t piece[64];
	size_t off = 0, n;

	do {
		n = virtq_copy_out(&t->chain, off, piece, sizeof(piece));
		n = virtq_copy_in(&t->chain, off, piece, n);
		off += n;
	} while (n > 0 && off < 4096);
	virtq_push(q, t->chain.head, (uint32_t)off);
}

static void echo(struct testdev *t, struct virtq *q)
{
	unsigned left = TESTDEV_ECHO_CHAINS;

	virtq_kicks_off(q);
	for (; left > 0 && virtq_pop(q, &t->chain) > 0; left--)
		echo_chain(t, q);
	virtq_notify(q);
	if (virtq_kicks_on(q))
		virtio_requeue(&t->dev, q->index);
}

static void testdev_queue_ready(struct virtio_dev *dev, unsigned qi)
{
	struct testdev *t = testdev_of(dev);

	VERIFY(virtio_running(dev) && dev->queues[qi].enabled);
	t->ready[qi]++;
	if (t->requeue > 0) {
		t->requeue--;
		virtio_requeue(dev, qi);
	}
	if (t->echo)
		echo(t, &dev->queues[qi]);
}

static int testdev_reset(struct virtio_dev *dev)
{
	struct testdev *t = testdev_of(dev);

	t->resets++;
	return t->slow_reset ? -EINPROGRESS : 0;
}

static void testdev_destroy(struct virtio_dev *dev)
{
	struct testdev *t = testdev_of(dev);

	if (t->destroyed != NULL)
		(*t->destroyed)++;
	virtio_dev_fini(dev);
	free(t);
}

static const struct virtio_dev_ops testdev_ops = {
	.name = "virtio-test",
	.type = 42,
	.class = 0xff0000,
	.config_read = testdev_config_read,
	.config_write = testdev_config_write,
	.features_ok = testdev_features_ok,
	.start = testdev_start,
	.queue_ready = testdev_queue_ready,
	.reset = testdev_reset,
	.destroy = testdev_destroy,
};

struct testdev *testdev_create(const struct virtio_env *env, unsigned queues, uint16_t size)
{
	struct testdev *t = calloc(1, sizeof(*t));

	VERIFY(t != NULL);
	virtio_dev_init(&t->dev, &testdev_ops, env, "test0", queues, size);
	t->dev.features_offered = TESTDEV_FEATURE;
	t->dev.config_bytes = TESTDEV_CONFIG_BYTES;
	return t;
}
