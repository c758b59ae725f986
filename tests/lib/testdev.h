/*
 * A virtio device for tests of rings and transport: it records what it was
 * called for, and can echo (a chain's readable bytes into its writable ones).
 */
#ifndef BRIM_TESTS_TESTDEV_H
#define BRIM_TESTS_TESTDEV_H

#include "virtio/virtio.h"

#define TESTDEV_CONFIG_BYTES 12
#define TESTDEV_FEATURE (1ull << 5)   /* the one it offers */
#define TESTDEV_ECHO_CHAINS 32        /* per turn */

struct testdev {
	struct virtio_dev dev;
	struct virtq_chain chain;
	uint8_t config[TESTDEV_CONFIG_BYTES];

	bool echo;           /* process queues; otherwise the test does */
	bool slow_reset;     /* reset says -EINPROGRESS */
	bool refuse;         /* any features */
	unsigned requeue;    /* queue_ready asks to be called again this often */

	unsigned starts, resets;
	unsigned ready[VIRTIO_MAX_QUEUES];
	unsigned *destroyed; /* counted there, may be NULL */
};

struct testdev *testdev_create(const struct virtio_env *env, unsigned queues, uint16_t size);

#endif
