/*
 * A guest made of C: small RAM, a loop, and a driver that speaks virtio-pci
 * through the same two functions a vCPU uses (virtio_pci_read, _write).
 *
 * A test of a device is: fakeguest_init(); create the device with &g.env;
 * fakeguest_attach(); fakeguest_start(); then fakeguest_add() / _kick() /
 * fakeguest_wait_used().  Nothing happens behind a test's back: device work runs
 * inside fakeguest_turn() and the functions that call it, in the test's thread.
 *
 * The rings lie in guest RAM and may be spoilt at will: struct fakeq has host
 * pointers to every part.
 */
#ifndef BRIM_TESTS_FAKEGUEST_H
#define BRIM_TESTS_FAKEGUEST_H

#include <linux/virtio_ring.h>

#include "virtio/virtio.h"

#define FAKE_RAM_BYTES RAM_MIN_BYTES
#define FAKE_VECTORS 16
#define FAKE_MAX_WATCHES 32
#define FAKE_WAIT_MS 10000 /* when to give up; no test waits that long and passes */

struct fakeq {
	uint16_t size;
	uint64_t desc_gpa, avail_gpa, used_gpa;
	struct vring_desc *desc;
	uint16_t *avail; /* flags, idx, ring[size], used_event */
	uint16_t *used;  /* flags, idx, ring[size] of two le32, avail_event */
	uint16_t avail_idx; /* the driver's: what it published last */
	uint16_t used_seen; /* the driver's: used entries it has taken */
	uint16_t next_desc; /* descriptors are handed out round the table */
};

struct fake_watch {
	int fd; /* -1: free */
	unsigned events;
	void (*fn)(void *arg, unsigned events);
	void *arg;
};

struct fakeguest {
	struct ram *ram;
	struct virtio_env env; /* hand this to virtio_*_create() */
	struct fake_watch watches[FAKE_MAX_WATCHES];
	pthread_mutex_t watch_lock;

	struct virtio_dev *dev;
	struct virtio_pci *vp;
	struct virtio_pci_host host;

	struct fakeq q[VIRTIO_MAX_QUEUES];
	uint16_t queue_size; /* for fakeguest_start(); 0: the device's maximum */
	uint64_t next_gpa;   /* guest memory is handed out from here up */

	/* Interrupts: vector qi is queue qi's, the last one configuration's. */
	_Atomic unsigned interrupts[FAKE_VECTORS];
};

#define FAKE_CONFIG_VECTOR (FAKE_VECTORS - 1)

/* One buffer of a chain. */
struct fakebuf {
	uint64_t gpa;
	uint32_t len;
	bool device_writes;
};

/* RAM, env and loop.  Aborts the test on failure, as everything here does.
 * `host` may be NULL. */
void fakeguest_init(struct fakeguest *g);
void fakeguest_init_host(struct fakeguest *g, const struct mm_host *host);
/* Destroys transport, device and RAM. */
void fakeguest_fini(struct fakeguest *g);

/* Takes the device over and puts a transport in front of it. */
void fakeguest_attach(struct fakeguest *g, struct virtio_dev *dev);

/* The whole of section 3.1.1: reset, features (VERSION_1 is added), every queue,
 * DRIVER_OK.  False when the device refused the features.  Features are those
 * wanted: bits not offered are dropped. */
bool fakeguest_start(struct fakeguest *g, uint64_t features);
/* Its steps. */
void fakeguest_reset(struct fakeguest *g); /* waits until the status reads 0 */
bool fakeguest_negotiate(struct fakeguest *g, uint64_t features);
void fakeguest_setup_queue(struct fakeguest *g, unsigned qi, uint16_t size);
void fakeguest_enable_queue(struct fakeguest *g, unsigned qi);
void fakeguest_driver_ok(struct fakeguest *g);

/* Registers: off is inside BAR 0. */
uint64_t fakeguest_read(struct fakeguest *g, uint32_t off, uint32_t len);
void fakeguest_write(struct fakeguest *g, uint32_t off, uint64_t v, uint32_t len);
uint8_t fakeguest_status(struct fakeguest *g);
uint64_t fakeguest_offered(struct fakeguest *g);

/* Zeroed guest memory, aligned to `align` (a power of two). */
uint64_t fakeguest_alloc(struct fakeguest *g, uint64_t bytes, uint64_t align);
void *fakeguest_at(struct fakeguest *g, uint64_t addr, uint64_t bytes);

/* Writes n linked descriptors and publishes the chain; returns its head.  The
 * second form puts them in an indirect table, the third only publishes. */
uint16_t fakeguest_add(struct fakeguest *g, unsigned qi, const struct fakebuf *b, unsigned n);
uint16_t fakeguest_add_indirect(struct fakeguest *g, unsigned qi, const struct fakebuf *b,
				unsigned n);
void fakeguest_publish(struct fakeguest *g, unsigned qi, uint16_t head);

/* Writes the queue's notify register. */
void fakeguest_kick(struct fakeguest *g, unsigned qi);
/* True when the device wants a kick for what was published since `old_idx`. */
bool fakeguest_wants_kick(struct fakeguest *g, unsigned qi, uint16_t old_idx);

/* One turn of the loop: waits up to timeout_ms for a watched fd, calls each one
 * that is ready once.  Returns how many were called. */
unsigned fakeguest_turn(struct fakeguest *g, int timeout_ms);
/* Turns until nothing is ready. Returns the turns taken, `max` at most. */
unsigned fakeguest_drain(struct fakeguest *g, unsigned max);

/* Takes the next used entry if there is one. */
bool fakeguest_used(struct fakeguest *g, unsigned qi, uint32_t *head, uint32_t *len);
/* Turns until there is one, FAKE_WAIT_MS at most. */
bool fakeguest_wait_used(struct fakeguest *g, unsigned qi, uint32_t *head, uint32_t *len);

#endif
