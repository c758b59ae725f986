/*
 * virtio/'s own: what queue.c, device.c and transport.c share with each other
 * and with nobody else.
 */
#ifndef BRIM_VIRTIO_INTERNAL_H
#define BRIM_VIRTIO_INTERNAL_H

#include "virtio/virtio.h"

#define VIRTIO_NO_VECTOR 0xffffu

/* Checks size and rings and starts the queue from index 0.  -EINVAL: refused,
 * counted, the device needs a reset.  Lock held. */
int virtq_enable(struct virtq *q);

/* Back to what a queue is after a device reset. */
void virtq_reset(struct virtq *q);

/* Everything the driver may accept. */
uint64_t virtio_offered(const struct virtio_dev *dev);

/* The driver's steps of section 3.1.1.  Lock held. */
bool virtio_accept_features(struct virtio_dev *dev, uint64_t features);
void virtio_start(struct virtio_dev *dev);
void virtio_reset(struct virtio_dev *dev);
/* Stops a running device without telling the driver. */
void virtio_cut_off(struct virtio_dev *dev);

void virtio_lock(struct virtio_dev *dev);
void virtio_unlock(struct virtio_dev *dev);

#endif
