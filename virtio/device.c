/*
 * struct virtio_dev: what all devices have in common.
 *
 *     0 --ACKNOWLEDGE, DRIVER--> --FEATURES_OK--> --DRIVER_OK--> running
 *     |          (transport)   virtio_accept_features   virtio_start    |
 *     |                                                                 |
 *     |                  NEEDS_RESET <--virtio_needs_reset--------------+
 *     |                      |                                          |
 *     +<-- reset_finish -- resetting <-----------virtio_reset-----------+
 *            virtio_reset_done when requests were in flight
 *
 * Threads: under the device's lock, from vCPU threads (registers) and the loop
 * thread (everything else).  The lock is error-checking: a device that locks
 * again by itself is a bug that shows at once, not a hang.
 *
 * Invariants: those of virtio.h; and no hook of the transport is called before
 * virtio_pci_create() or after virtio_pci_destroy().
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "virtio/internal.h"

#define COMMON_FEATURES (VIRTIO_F_VERSION_1 | VIRTIO_F_INDIRECT_DESC | VIRTIO_F_EVENT_IDX)

void virtio_lock(struct virtio_dev *dev)
{
	VERIFY(pthread_mutex_lock(&dev->lock) == 0);
}

void virtio_unlock(struct virtio_dev *dev)
{
	VERIFY(pthread_mutex_unlock(&dev->lock) == 0);
}

/* ---- life ---------------------------------------------------------------- */

static void init_lock(pthread_mutex_t *lock)
{
	pthread_mutexattr_t attr;

	VERIFY(pthread_mutexattr_init(&attr) == 0);
	VERIFY(pthread_mutexattr_settype(&attr, PTHREAD_MUTEX_ERRORCHECK) == 0);
	VERIFY(pthread_mutex_init(lock, &attr) == 0);
	pthread_mutexattr_destroy(&attr);
}

void virtio_dev_init(struct virtio_dev *dev, const struct virtio_dev_ops *ops,
		     const struct virtio_env *env, const char *label,
		     unsigned queue_count, uint16_t queue_size)
{
	VERIFY(ops->queue_ready != NULL && ops->destroy != NULL);
	VERIFY(queue_count <= VIRTIO_MAX_QUEUES);
	VERIFY(queue_size != 0 && queue_size <= VIRTQ_MAX_SIZE &&
	       (queue_size & (queue_size - 1)) == 0);

	memset(dev, 0, sizeof(*dev));
	dev->ops = ops;
	dev->env = *env;
	dev->queue_count = queue_count;
	snprintf(dev->label, sizeof(dev->label), "%s", label);
	init_lock(&dev->lock);
	for (unsigned i = 0; i < queue_count; i++) {
		dev->queues[i] = (struct virtq){ .dev = dev, .index = i, .max_size = queue_size };
		virtq_reset(&dev->queues[i]);
	}
}

void virtio_dev_fini(struct virtio_dev *dev)
{
	if (dev->ops == NULL) /* zeroed: never initialised */
		return;
	VERIFY(dev->transport == NULL);
	for (unsigned i = 0; i < VIRTIO_MAX_WATCHES; i++)
		if (dev->watches[i].dev != NULL)
			virtio_unwatch_fd(dev, dev->watches[i].fd);
	VERIFY(pthread_mutex_destroy(&dev->lock) == 0);
	dev->ops = NULL;
}

void virtio_dev_destroy(struct virtio_dev **dev)
{
	if (*dev != NULL)
		(*dev)->ops->destroy(*dev);
	*dev = NULL;
}

/* ---- the driver's steps -------------------------------------------------- */

uint64_t virtio_offered(const struct virtio_dev *dev)
{
	return dev->features_offered | COMMON_FEATURES;
}

/* VERSION_1 is required (section 6.1): without it a driver would use the legacy
 * layouts, which nothing here understands. */
bool virtio_accept_features(struct virtio_dev *dev, uint64_t features)
{
	bool ok = !(features & ~virtio_offered(dev)) && (features & VIRTIO_F_VERSION_1);

	if (ok && dev->ops->features_ok != NULL)
		ok = dev->ops->features_ok(dev, features);
	if (!ok) {
		counter_inc(CTR_virtio_bad_features);
		return false;
	}
	dev->features = features;
	dev->status |= VIRTIO_STATUS_FEATURES_OK;
	return true;
}

/* Queues may hold buffers from before: each is looked at once, unasked. */
void virtio_start(struct virtio_dev *dev)
{
	dev->status |= VIRTIO_STATUS_DRIVER_OK;
	if (dev->status & VIRTIO_STATUS_NEEDS_RESET) {
		/* from setting up a queue, when there was no one to tell */
		virtio_config_changed(dev);
		return;
	}
	if (dev->ops->start != NULL)
		dev->ops->start(dev);
	for (unsigned i = 0; i < dev->queue_count; i++)
		if (dev->queues[i].enabled)
			virtio_requeue(dev, i);
}

static void reset_finish(struct virtio_dev *dev)
{
	for (unsigned i = 0; i < dev->queue_count; i++)
		virtq_reset(&dev->queues[i]);
	dev->features = 0;
	dev->status = 0;
	dev->resetting = false;
}

/* Asked for again while under way: there is nothing to do but wait on. */
void virtio_reset(struct virtio_dev *dev)
{
	int rc = 0;

	counter_inc(CTR_virtio_resets);
	if (dev->resetting)
		return;
	dev->resetting = true;
	if (dev->ops->reset != NULL)
		rc = dev->ops->reset(dev);
	VERIFY(rc == 0 || rc == -EINPROGRESS);
	if (rc == 0)
		reset_finish(dev);
}

void virtio_reset_done(struct virtio_dev *dev)
{
	ASSERT_ROLE(ROLE_LOOP);
	VERIFY(dev->resetting);
	reset_finish(dev);
}

/* ---- telling the driver -------------------------------------------------- */

void virtio_config_changed(struct virtio_dev *dev)
{
	dev->config_generation++;
	/* section 3.1.1: before DRIVER_OK the driver reads it anyway */
	if ((dev->status & VIRTIO_STATUS_DRIVER_OK) && !dev->resetting &&
	    dev->signal_config != NULL)
		dev->signal_config(dev->transport);
}

void virtio_needs_reset(struct virtio_dev *dev)
{
	if (dev->status & VIRTIO_STATUS_NEEDS_RESET)
		return;
	counter_inc(CTR_virtio_needs_reset);
	dev->status |= VIRTIO_STATUS_NEEDS_RESET;
	log_guest("%s: stopped until the guest resets it", dev->label);
	virtio_config_changed(dev);
}

/* Linux clears Bus Master for kexec (pci_device_shutdown), not resetting virtio
 * devices before 6.15: rings and receive buffers are the next kernel's memory from
 * then on.  No interrupt: an MSI is a memory write too. */
void virtio_cut_off(struct virtio_dev *dev)
{
	if (!virtio_running(dev))
		return;
	counter_inc(CTR_virtio_needs_reset);
	dev->status |= VIRTIO_STATUS_NEEDS_RESET;
}

void virtio_requeue(struct virtio_dev *dev, unsigned qi)
{
	VERIFY(qi < dev->queue_count);
	if (dev->requeue != NULL)
		dev->requeue(dev->transport, qi);
}

/* ---- fds ----------------------------------------------------------------- */

static void watch_ready(void *arg, unsigned events)
{
	struct virtio_watch *w = arg;
	struct virtio_dev *dev = w->dev;

	ASSERT_ROLE(ROLE_LOOP);
	virtio_lock(dev);
	w->fn(dev, events);
	virtio_unlock(dev);
}

static struct virtio_watch *find_watch(struct virtio_dev *dev, int fd)
{
	for (unsigned i = 0; i < VIRTIO_MAX_WATCHES; i++)
		if (dev->watches[i].dev != NULL && dev->watches[i].fd == fd)
			return &dev->watches[i];
	return NULL;
}

static struct virtio_watch *free_watch(struct virtio_dev *dev)
{
	for (unsigned i = 0; i < VIRTIO_MAX_WATCHES; i++)
		if (dev->watches[i].dev == NULL)
			return &dev->watches[i];
	return NULL;
}

/* A known fd keeps its slot as it is but for fn: watch_ready() reads w->dev on
 * the loop thread before it has the lock. */
int virtio_watch_fd(struct virtio_dev *dev, int fd, unsigned events,
		    void (*fn)(struct virtio_dev *dev, unsigned events))
{
	struct virtio_watch *w = find_watch(dev, fd);
	bool known = w != NULL;
	int rc;

	if (known) {
		w->fn = fn;
	} else {
		w = free_watch(dev);
		VERIFY(w != NULL);
		*w = (struct virtio_watch){ .dev = dev, .fd = fd, .fn = fn };
	}
	rc = dev->env.ops->watch(dev->env.opaque, fd, events, watch_ready, w);
	if (rc != 0 && !known)
		*w = (struct virtio_watch){ 0 };
	return rc;
}

void virtio_unwatch_fd(struct virtio_dev *dev, int fd)
{
	struct virtio_watch *w = find_watch(dev, fd);

	if (w == NULL)
		return;
	dev->env.ops->unwatch(dev->env.opaque, fd);
	*w = (struct virtio_watch){ 0 };
}
