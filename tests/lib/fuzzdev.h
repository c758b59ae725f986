/*
 * One harness for fuzzing every device: bytes become register accesses, ring
 * contents, kicks, events from outside, and resets.  tests/fuzz/fuzz_<dev>.c says
 * how to create a device and what comes at it from outside.
 *
 * What is checked, besides that no sanitizer speaks and no VERIFY fails (guest
 * RAM has guard pages on both sides):
 *  - a turn of the loop ends soon, whatever the rings hold;
 *  - a reset ends;
 *  - after a reset and with empty rings the device falls silent, and then
 *    serves a good request (struct fuzzdev's check).
 */
#ifndef BRIM_TESTS_FUZZDEV_H
#define BRIM_TESTS_FUZZDEV_H

#include "tests/lib/fakeguest.h"

#define FUZZDEV_HEADER 64

struct fuzzdev {
	struct virtio_dev *(*create)(const struct virtio_env *env);
	/* Something from outside: a packet, a key, a wish of the host's. */
	void (*poke)(struct fakeguest *g, const uint8_t *data, size_t len);
	/* A request's first readable bytes, made of eight random ones so that it is
	 * often one the device knows.  Returns how many, FUZZDEV_HEADER at most. */
	size_t (*header)(uint64_t random, uint8_t *to);
	/* Before a wait for a reset: lets one that is held up go on. */
	void (*settle)(struct fakeguest *g);
	/* The driver has just started on empty rings: one good request. */
	void (*check)(struct fakeguest *g);
	/* Behind the device's destruction: what create() opened. */
	void (*close)(void);
};

/* Runs one input. Hooks may be NULL, but for create. Returns 0, for libFuzzer. */
int fuzzdev_run(const struct fuzzdev *d, const uint8_t *data, size_t size);

/* For check(): adds a chain, kicks, and waits till it is used. Returns the bytes
 * the device says it wrote. */
uint32_t fuzzdev_request(struct fakeguest *g, unsigned qi, const struct fakebuf *b, unsigned n);

#endif
