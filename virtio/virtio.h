/*
 * virtio/: the devices a guest sees, and the rings they talk through.
 *
 * queue.c      ALL parsing of split rings: indirect descriptors, event-idx.
 * device.c     struct virtio_dev: status, features, locking, needs-reset.
 * transport.c  modern virtio-pci (virtio 1.2, section 4.1): the register
 *              window of one device.  PCI itself (configuration space, BARs,
 *              MSI-X) is vmm/pci.c's; the two meet in struct virtio_pci_host.
 * blk.c net.c rng.c console.c balloon.c    thin: parse, check, call.
 *
 * Threads: register accesses come from vCPU threads, queue work and timers from
 * the VM's one loop thread; a device's lock covers both.  The transport takes
 * the lock around every op below, and virtio_watch_fd()'s callbacks are called
 * with it held too, so device code never locks by itself.
 *
 * Invariants:
 *  I1  Every field a guest can write is copied out of guest memory once, and
 *      the copy is checked before use.  Every walk over guest data counts down.
 *  I2  A malformed ring is a counted error and DEVICE_NEEDS_RESET for that
 *      device alone; after a reset it works again.
 *  I3  After reset returned 0, nothing of the device touches guest memory until
 *      the driver sets it up again.
 */
#ifndef BRIM_VIRTIO_H
#define BRIM_VIRTIO_H

#include <pthread.h>
#include <sys/uio.h>

#include "mm/mm.h"

/* virtio 1.2, section 2.1 */
#define VIRTIO_STATUS_ACKNOWLEDGE 1
#define VIRTIO_STATUS_DRIVER 2
#define VIRTIO_STATUS_DRIVER_OK 4
#define VIRTIO_STATUS_FEATURES_OK 8
#define VIRTIO_STATUS_NEEDS_RESET 64
#define VIRTIO_STATUS_FAILED 128

/* Feature bits every device here offers (section 6). */
#define VIRTIO_F_INDIRECT_DESC (1ull << 28)
#define VIRTIO_F_EVENT_IDX (1ull << 29)
#define VIRTIO_F_VERSION_1 (1ull << 32)

#define VIRTIO_MAX_QUEUES 8
#define VIRTQ_MAX_SIZE 1024
#define VIRTQ_MAX_IOV 1024 /* buffers in one chain, after indirection */

struct virtio_dev;

/* ---- queue.c ----------------------------------------------------------- */

/* One split virtqueue (section 2.7).  Owner: its device, under its lock. */
struct virtq {
	struct virtio_dev *dev;
	unsigned index;

	/* written by the driver through the transport while not enabled */
	uint16_t size; /* entries, power of two, <= max_size */
	uint16_t max_size;
	uint16_t msix_vector; /* 0xffff: none */
	bool enabled;
	uint64_t desc_gpa, avail_gpa, used_gpa;

	/* host addresses, checked whole at enable */
	const struct vring_desc_le *desc;
	const uint16_t *avail;
	uint16_t *used;

	/* the device's place in the rings */
	uint16_t avail_next;      /* next available-ring entry to take */
	uint16_t used_next;       /* next used-ring entry to write */
	uint16_t signalled_used;  /* used_next when the driver was last told */
	bool signalled_valid;
	bool broken;
};

/* A chain taken from the ring: host buffers, checked to lie in guest RAM.
 * Guest memory behind them may change at any time: copy out, then check. */
struct virtq_chain {
	uint16_t head;
	unsigned out_count, in_count;  /* device-readable, device-writable */
	uint64_t out_bytes, in_bytes;
	struct iovec *out, *in;        /* both point into iov[] */
	struct iovec iov[VIRTQ_MAX_IOV];
};

/* Takes the next chain: 1 and *c filled; 0 when there is none; -EPROTO when the
 * ring is malformed (counted, device marked NEEDS_RESET, queue broken until
 * reset: every later call returns -EPROTO). Zero-length buffers are dropped. */
int virtq_pop(struct virtq *q, struct virtq_chain *c);

/* Puts back the chain taken last (for a receiver that found it too short). */
void virtq_unpop(struct virtq *q);

/* Returns a chain to the driver with `written_bytes` of its device-writable part
 * filled.  Does not tell the driver: virtq_notify() does, once for a batch. */
void virtq_push(struct virtq *q, uint16_t head, uint32_t written_bytes);

/* As virtq_push() for each of n chains, but the driver sees all of them or none:
 * for a packet spread over several (section 5.1.6.4.1). */
struct virtq_used {
	uint16_t head;
	uint32_t written_bytes;
};
void virtq_push_all(struct virtq *q, const struct virtq_used *u, unsigned n);

/* Interrupts the driver if it wants to know (event-idx or flags). */
void virtq_notify(struct virtq *q);

/* Tells the driver not to / to kick this queue.  After enabling, returns true
 * when buffers are already there: process again before going to sleep. */
void virtq_kicks_off(struct virtq *q);
bool virtq_kicks_on(struct virtq *q);

/* Copy between a chain's buffers and host memory, from byte `off` of that side.
 * Return the bytes copied, less than len at the end of the chain. */
size_t virtq_copy_out(const struct virtq_chain *c, size_t off, void *dst, size_t len);
size_t virtq_copy_in(const struct virtq_chain *c, size_t off, const void *src, size_t len);

/* Marks the device NEEDS_RESET and this queue broken. `why` counts it. */
void virtq_fail(struct virtq *q, enum counter why, const char *sentence);

/* ---- device.c ---------------------------------------------------------- */

/* What a device asks of the VM around it: handed over at create. */
struct virtio_env {
	const struct ram *ram;
	const struct virtio_env_ops *ops;
	void *opaque;
};

enum { VIRTIO_FD_IN = 1, VIRTIO_FD_OUT = 4 }; /* as EPOLLIN, EPOLLOUT */

struct virtio_env_ops {
	/* Calls fn(arg, events) on the loop thread whenever fd is ready for any of
	 * `events` (level triggered).  Watching again changes the events; 0 keeps
	 * the fd known but silent.  0 or -errno. */
	int (*watch)(void *opaque, int fd, unsigned events,
		     void (*fn)(void *arg, unsigned events), void *arg);
	/* After it returns fn is not called any more. Loop thread, or before the
	 * loop runs. */
	void (*unwatch)(void *opaque, int fd);
};

struct virtio_dev_ops {
	const char *name;  /* "virtio-blk" */
	uint16_t type;     /* section 5: 1 net, 2 blk, 3 console, 4 rng, 5 balloon */
	uint32_t class;    /* PCI class code, 24 bits */

	/* Device configuration space; off + len is inside config_bytes. */
	void (*config_read)(struct virtio_dev *dev, uint32_t off, void *buf, uint32_t len);
	void (*config_write)(struct virtio_dev *dev, uint32_t off, const void *buf, uint32_t len);

	/* Driver set FEATURES_OK: `features` is a subset of those offered. False
	 * refuses the combination. May be NULL. */
	bool (*features_ok)(struct virtio_dev *dev, uint64_t features);

	/* Driver set DRIVER_OK: start work.  Runs on a vCPU thread: no blocking. */
	void (*start)(struct virtio_dev *dev);

	/* Driver kicked queue qi.  Loop thread. Only while DRIVER_OK. */
	void (*queue_ready)(struct virtio_dev *dev, unsigned qi);

	/* Stop touching guest memory.  0: stopped.  -EINPROGRESS: requests are in
	 * flight; the device calls virtio_reset_done() when they have drained, and
	 * the driver reads a non-zero status till then.  vCPU thread. */
	int (*reset)(struct virtio_dev *dev);

	/* Frees everything; the device is quiet (no vCPU runs). Must wait for I/O
	 * still in flight. */
	void (*destroy)(struct virtio_dev *dev);
};

#define VIRTIO_MAX_WATCHES 4

struct virtio_dev {
	/* fixed at create */
	const struct virtio_dev_ops *ops;
	struct virtio_env env;
	uint64_t features_offered; /* device's own bits; common ones are added */
	uint32_t config_bytes;
	unsigned queue_count;
	char label[32];            /* "disk0", "net1", "balloon": for messages */

	pthread_mutex_t lock;

	/* under lock */
	struct virtq queues[VIRTIO_MAX_QUEUES];
	uint64_t features;         /* negotiated; valid from FEATURES_OK on */
	uint8_t status;
	bool resetting;            /* reset asked for, not yet done */
	uint8_t config_generation;

	/* the transport: how to reach the driver. Unset before attach. */
	void (*signal_queue)(void *transport, uint16_t msix_vector);
	void (*signal_config)(void *transport);
	void (*requeue)(void *transport, unsigned qi);
	void *transport;

	/* virtio_watch_fd()'s; loop thread, or before it runs */
	struct virtio_watch {
		struct virtio_dev *dev; /* NULL: free */
		int fd;
		void (*fn)(struct virtio_dev *dev, unsigned events);
	} watches[VIRTIO_MAX_WATCHES];
};

/* For devices' create functions: zeroes *dev, sets ops, env, label, queues with
 * the given size (power of two), and the lock. */
void virtio_dev_init(struct virtio_dev *dev, const struct virtio_dev_ops *ops,
		     const struct virtio_env *env, const char *label,
		     unsigned queue_count, uint16_t queue_size);
void virtio_dev_fini(struct virtio_dev *dev);

/* Destroys through ops->destroy and sets *dev to NULL. NULL is fine. */
void virtio_dev_destroy(struct virtio_dev **dev);

static inline bool virtio_has(const struct virtio_dev *dev, uint64_t feature)
{
	return (dev->features & feature) != 0;
}

static inline bool virtio_running(const struct virtio_dev *dev)
{
	return (dev->status & (VIRTIO_STATUS_DRIVER_OK | VIRTIO_STATUS_NEEDS_RESET)) ==
	       VIRTIO_STATUS_DRIVER_OK && !dev->resetting;
}

/* Loop thread, lock held: an asynchronous reset has finished. */
void virtio_reset_done(struct virtio_dev *dev);

/* Tells the driver that device configuration changed (generation, interrupt). */
void virtio_config_changed(struct virtio_dev *dev);

/* Sets DEVICE_NEEDS_RESET (section 2.1.2), counts it, interrupts the driver. */
void virtio_needs_reset(struct virtio_dev *dev);

/* Has ops->queue_ready(dev, qi) called again in a later turn of the loop: how a
 * device whose share of this turn is used up goes on, so that no guest can keep
 * the loop from the control socket and the other devices.  Lock held. */
void virtio_requeue(struct virtio_dev *dev, unsigned qi);

/* env->ops->watch with the device's lock held around fn. At most 4 per device. */
int virtio_watch_fd(struct virtio_dev *dev, int fd, unsigned events,
		    void (*fn)(struct virtio_dev *dev, unsigned events));
void virtio_unwatch_fd(struct virtio_dev *dev, int fd);

/* ---- transport.c: virtio over PCI --------------------------------------- */

/* BAR 0 of every virtio function. */
#define VIRTIO_PCI_BAR_BYTES 0x4000u
#define VIRTIO_PCI_COMMON 0x0000u
#define VIRTIO_PCI_ISR 0x1000u
#define VIRTIO_PCI_DEVICE 0x2000u
#define VIRTIO_PCI_NOTIFY 0x3000u
#define VIRTIO_PCI_NOTIFY_MULTIPLIER 4u
#define VIRTIO_PCI_CAPS_MAX 128u

struct virtio_pci;

/* What PCI offers the transport. `vectors` MSI-X vectors; signal may be called
 * from any thread and does not block. */
struct virtio_pci_host {
	void (*signal)(void *opaque, uint16_t msix_vector);
	void *opaque;
	uint16_t vectors;
};

/* Attaches to `dev` (which it does not own). */
int virtio_pci_create(struct virtio_pci **out, struct virtio_dev *dev,
		      const struct virtio_pci_host *host, struct err *e);
void virtio_pci_destroy(struct virtio_pci **vp);

/* The vendor capabilities (section 4.1.4) as a block to be placed in
 * configuration space at `at`, for BAR number `bar`; the last capability's next
 * pointer is `next`.  Returns the bytes written, <= VIRTIO_PCI_CAPS_MAX.
 * *cfg_cap_off is where, inside the block, VIRTIO_PCI_CAP_PCI_CFG starts. */
size_t virtio_pci_caps(const struct virtio_pci *vp, uint8_t *buf, uint8_t at,
		       uint8_t bar, uint8_t next, size_t *cfg_cap_off);

/* Register accesses inside BAR 0, len 1, 2, 4 or 8.  vCPU threads. A bad access
 * reads as zeroes or is ignored, and is counted. */
void virtio_pci_read(struct virtio_pci *vp, uint32_t off, void *buf, uint32_t len);
void virtio_pci_write(struct virtio_pci *vp, uint32_t off, const void *buf, uint32_t len);

/* The driver took bus mastering away: a running device touches no guest memory,
 * and raises no MSI, until it is reset.  vCPU threads. */
void virtio_pci_cut_off(struct virtio_pci *vp);

/* The eventfd that a write of the guest to queue qi's notify address signals
 * (ioeventfd at BAR0 + VIRTIO_PCI_NOTIFY + qi * MULTIPLIER). The transport
 * watches it itself. */
int virtio_pci_notify_fd(const struct virtio_pci *vp, unsigned qi);

/* ---- the devices -------------------------------------------------------- */

struct virtio_blk_config {
	const char *path;   /* raw file or block device */
	const char *serial; /* up to 20 bytes for get-id; NULL: derived from path */
	bool readonly;
	bool direct;        /* O_DIRECT where the file allows it */
};
int virtio_blk_create(struct virtio_dev **out, const struct virtio_env *env,
		      const char *label, const struct virtio_blk_config *cfg, struct err *e);

struct virtio_net_config {
	const char *tap;    /* interface name; NULL when fd >= 0 */
	int fd;             /* an open tap with IFF_VNET_HDR, or -1 */
	uint8_t mac[6];     /* all zero: derived from vm_name and label */
	const char *vm_name;
};
/* Opens a tap by name, making it (and setting it up) where it is not there: for a
 * caller that keeps it over several devices, since one that we made goes, with its
 * place in a bridge, when its last descriptor is closed.  The descriptor, to be
 * given as `fd` and closed by the caller; -errno with a sentence. */
int virtio_net_open_tap(const char *label, const char *name, struct err *e);
int virtio_net_create(struct virtio_dev **out, const struct virtio_env *env,
		      const char *label, const struct virtio_net_config *cfg, struct err *e);

int virtio_rng_create(struct virtio_dev **out, const struct virtio_env *env, struct err *e);

/* The guest side of hvc0. Bytes the guest writes go to out(); bytes for the
 * guest are offered by virtio_console_input(), loop thread, which returns how
 * many were taken (the rest is to be offered again when ready() is called). */
struct virtio_console_config {
	void (*out)(void *opaque, const void *buf, size_t len);
	void (*ready)(void *opaque);
	void *opaque;
};
int virtio_console_create(struct virtio_dev **out, const struct virtio_env *env,
			  const struct virtio_console_config *cfg, struct err *e);
size_t virtio_console_input(struct virtio_dev *dev, const void *buf, size_t len);

struct virtio_balloon_config {
	bool deflate_on_oom;
	bool reporting;      /* free page reporting */
	bool hinting;        /* free page hinting */
	bool poison;
	unsigned stats_interval_s; /* 0: the statistics queue is not polled */
};

/* What the guest last said of itself; UINT64_MAX where it said nothing.
 * A hint from an untrusted source. Bytes unless named otherwise. */
struct balloon_guest_stats {
	uint64_t swap_in, swap_out, major_faults, minor_faults; /* counts, since boot */
	uint64_t free_bytes, total_bytes, available_bytes, disk_caches_bytes;
	uint64_t hugetlb_allocations, hugetlb_failures;
	uint64_t oom_kills, alloc_stalls, scan_async, scan_direct;
	uint64_t reclaim_async, reclaim_direct;
	uint64_t received_ns; /* now_ns() when it came; 0: never */
};

struct balloon_status {
	bool driver_ready;       /* the guest's driver is up */
	uint64_t features;       /* negotiated, 0 before */
	uint64_t target_bytes;   /* what the host asks for */
	uint64_t actual_bytes;   /* what the guest says it has inflated */
	uint64_t ballooned_bytes; /* pages we hold as inflated: the books */
	uint64_t reported_bytes; /* given back by reporting since start */
	uint64_t hinted_bytes;   /* named free in the last round of hinting; kept */
	uint64_t poison;         /* page poison value, UINT64_MAX: none */
	bool hinting_active;
};

int virtio_balloon_create(struct virtio_dev **out, const struct virtio_env *env,
			  const struct virtio_balloon_config *cfg, struct err *e);
/* All three: any thread but one holding the lock; -EINVAL beyond RAM's size. */
int virtio_balloon_set_target(struct virtio_dev *dev, uint64_t target_bytes);
void virtio_balloon_status(struct virtio_dev *dev, struct balloon_status *s,
			   struct balloon_guest_stats *guest);
/* Starts one round of free page hinting. -ENOTSUP when not negotiated, -EBUSY
 * while one runs. */
int virtio_balloon_hint(struct virtio_dev *dev);

#endif
