/*
 * Modern virtio-pci (virtio 1.2, section 4.1): the registers of one function's
 * BAR 0.
 *
 *     0x0000  common configuration   section 4.1.4.3, a table below
 *     0x1000  ISR status             4.1.4.5, read clears
 *     0x2000  device configuration   the device's own
 *     0x3000  notify                 4.1.4.4, four bytes for each queue
 *
 * A kick is an eventfd: KVM signals it when the guest writes the notify address
 * (ioeventfd), and the slow path here does the same, so that queue work runs on
 * the loop thread in every case.
 *
 * Threads: register accesses come from vCPU threads, kicks from the loop; both
 * take the device's lock, which covers every field here that changes.
 *
 * Invariants:
 *  I1  What a queue's rings are changes only while the queue is not enabled, and
 *      features only before FEATURES_OK.
 *  I2  While a reset is under way every write is refused, and status is not 0.
 *  I3  ops->queue_ready is called only for an enabled queue of a running device.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define VIRTIO_PCI_NO_LEGACY
#include <linux/virtio_pci.h>

#include "virtio/internal.h"

#define PCI_CAP_ID_VENDOR 0x09
#define REGION_BYTES 0x1000u
#define ISR_QUEUE 1
#define ISR_CONFIG 2

/* Everything of the driver's to set; NEEDS_RESET is ours. */
#define DRIVER_STATUS                                                              \
	(VIRTIO_STATUS_ACKNOWLEDGE | VIRTIO_STATUS_DRIVER | VIRTIO_STATUS_DRIVER_OK | \
	 VIRTIO_STATUS_FEATURES_OK | VIRTIO_STATUS_FAILED)

struct notify {
	struct virtio_pci *vp;
	unsigned qi;
	int fd; /* -1: none yet */
};

struct virtio_pci {
	/* fixed at create */
	struct virtio_dev *dev;
	struct virtio_pci_host host;
	struct notify notify[VIRTIO_MAX_QUEUES];

	/* under the device's lock */
	uint32_t device_feature_select;
	uint32_t driver_feature_select;
	uint64_t driver_features; /* as written; the device's from FEATURES_OK on */
	uint16_t config_vector;
	uint16_t queue_select;
	uint8_t isr;
};

/* ---- kicks and interrupts ------------------------------------------------ */

static void kick(void *opaque, unsigned qi)
{
	struct virtio_pci *vp = opaque;

	/* EAGAIN: 2^64 kicks wait already, and one is as good */
	(void)eventfd_write(vp->notify[qi].fd, 1);
}

/* Loop thread.  Read first: a kick that comes during queue_ready() counts. */
static void notify_ready(void *arg, unsigned events)
{
	struct notify *n = arg;
	struct virtio_dev *dev = n->vp->dev;
	eventfd_t kicks;

	ASSERT_ROLE(ROLE_LOOP);
	if (eventfd_read(n->fd, &kicks) != 0)
		return;
	virtio_lock(dev);
	if (virtio_running(dev) && dev->queues[n->qi].enabled)
		dev->ops->queue_ready(dev, n->qi);
	virtio_unlock(dev);
}

/* Without a vector the driver may be one that looks at ISR instead. */
static void interrupt(struct virtio_pci *vp, uint16_t vector, uint8_t isr)
{
	if (vector == VIRTIO_NO_VECTOR)
		vp->isr |= isr;
	else
		vp->host.signal(vp->host.opaque, vector);
}

static void signal_queue(void *opaque, uint16_t vector)
{
	interrupt(opaque, vector, ISR_QUEUE);
}

/* Section 4.1.5.4: this bit is set with MSI-X too. */
static void signal_config(void *opaque)
{
	struct virtio_pci *vp = opaque;

	vp->isr |= ISR_CONFIG;
	interrupt(vp, vp->config_vector, ISR_CONFIG);
}

/* ---- common configuration ------------------------------------------------ */

static void registers_reset(struct virtio_pci *vp)
{
	vp->device_feature_select = 0;
	vp->driver_feature_select = 0;
	vp->driver_features = 0;
	vp->config_vector = VIRTIO_NO_VECTOR;
	vp->queue_select = 0;
	vp->isr = 0;
}

/* NULL: there is no such queue. */
static struct virtq *selected(struct virtio_pci *vp)
{
	return vp->queue_select < vp->dev->queue_count ? &vp->dev->queues[vp->queue_select] :
							 NULL;
}

/* The selected queue, if it may be set up now. */
static struct virtq *selected_idle(struct virtio_pci *vp)
{
	struct virtq *q = selected(vp);

	if (q == NULL || q->enabled || (vp->dev->status & VIRTIO_STATUS_DRIVER_OK))
		return NULL;
	return q;
}

/* A vector the function has not got is refused by reading back as none
 * (section 4.1.5.1.2). */
static uint16_t checked_vector(const struct virtio_pci *vp, uint64_t v)
{
	return v < vp->host.vectors ? (uint16_t)v : VIRTIO_NO_VECTOR;
}

static uint64_t get_device_feature_select(struct virtio_pci *vp)
{
	return vp->device_feature_select;
}

static bool set_device_feature_select(struct virtio_pci *vp, uint64_t v)
{
	vp->device_feature_select = (uint32_t)v;
	return true;
}

static uint64_t get_device_feature(struct virtio_pci *vp)
{
	if (vp->device_feature_select > 1)
		return 0;
	return (uint32_t)(virtio_offered(vp->dev) >> (32 * vp->device_feature_select));
}

static uint64_t get_driver_feature_select(struct virtio_pci *vp)
{
	return vp->driver_feature_select;
}

static bool set_driver_feature_select(struct virtio_pci *vp, uint64_t v)
{
	vp->driver_feature_select = (uint32_t)v;
	return true;
}

static uint64_t get_driver_feature(struct virtio_pci *vp)
{
	if (vp->driver_feature_select > 1)
		return 0;
	return (uint32_t)(vp->driver_features >> (32 * vp->driver_feature_select));
}

static bool set_driver_feature(struct virtio_pci *vp, uint64_t v)
{
	unsigned shift = 32 * (vp->driver_feature_select & 1);

	if (vp->dev->status & VIRTIO_STATUS_FEATURES_OK)
		return false;
	if (vp->driver_feature_select > 1)
		return v == 0; /* nothing is offered there */
	vp->driver_features &= ~((uint64_t)UINT32_MAX << shift);
	vp->driver_features |= v << shift;
	return true;
}

static uint64_t get_config_vector(struct virtio_pci *vp)
{
	return vp->config_vector;
}

static bool set_config_vector(struct virtio_pci *vp, uint64_t v)
{
	vp->config_vector = checked_vector(vp, v);
	return true;
}

static uint64_t get_queue_count(struct virtio_pci *vp)
{
	return vp->dev->queue_count;
}

/* While a reset is under way: anything but 0 (section 4.1.4.3.1). */
static uint64_t get_status(struct virtio_pci *vp)
{
	return vp->dev->status | (vp->dev->resetting ? VIRTIO_STATUS_NEEDS_RESET : 0);
}

static bool set_status(struct virtio_pci *vp, uint64_t v)
{
	struct virtio_dev *dev = vp->dev;
	uint8_t wanted = (uint8_t)(v & ~(uint64_t)VIRTIO_STATUS_NEEDS_RESET);
	uint8_t added = (uint8_t)(wanted & ~dev->status);

	if (v == 0) {
		registers_reset(vp);
		virtio_reset(dev);
		return true;
	}
	/* section 2.1.1: the driver never takes a bit back */
	if (dev->resetting || (wanted & ~DRIVER_STATUS) ||
	    (dev->status & DRIVER_STATUS & ~wanted))
		return false;
	dev->status |= added & (VIRTIO_STATUS_ACKNOWLEDGE | VIRTIO_STATUS_DRIVER |
				VIRTIO_STATUS_FAILED);
	if ((added & VIRTIO_STATUS_FEATURES_OK) &&
	    !virtio_accept_features(dev, vp->driver_features))
		return true; /* counted there; the driver reads the bit back */
	if (added & VIRTIO_STATUS_DRIVER_OK) {
		if (!(dev->status & VIRTIO_STATUS_FEATURES_OK))
			return false;
		virtio_start(dev);
	}
	return true;
}

static uint64_t get_generation(struct virtio_pci *vp)
{
	return vp->dev->config_generation;
}

static uint64_t get_queue_select(struct virtio_pci *vp)
{
	return vp->queue_select;
}

static bool set_queue_select(struct virtio_pci *vp, uint64_t v)
{
	vp->queue_select = (uint16_t)v;
	return true;
}

/* 0 says that there is no such queue. */
static uint64_t get_queue_size(struct virtio_pci *vp)
{
	const struct virtq *q = selected(vp);

	return q != NULL ? q->size : 0;
}

/* Any value is kept, and checked when the queue is enabled: a size quietly
 * corrected here would leave the driver with another idea of the layout. */
static bool set_queue_size(struct virtio_pci *vp, uint64_t v)
{
	struct virtq *q = selected_idle(vp);

	if (q != NULL)
		q->size = (uint16_t)v;
	return q != NULL;
}

static uint64_t get_queue_vector(struct virtio_pci *vp)
{
	const struct virtq *q = selected(vp);

	return q != NULL ? q->msix_vector : VIRTIO_NO_VECTOR;
}

/* Allowed on an enabled queue too: drivers take a vector away before they free
 * it, and section 4.1.5.1.2 sets no time for it. */
static bool set_queue_vector(struct virtio_pci *vp, uint64_t v)
{
	struct virtq *q = selected(vp);

	if (q != NULL)
		q->msix_vector = checked_vector(vp, v);
	return q != NULL;
}

static uint64_t get_queue_enable(struct virtio_pci *vp)
{
	const struct virtq *q = selected(vp);

	return q != NULL && q->enabled;
}

static bool set_queue_enable(struct virtio_pci *vp, uint64_t v)
{
	struct virtq *q = selected_idle(vp);

	if (q == NULL || v != 1 || q->broken)
		return false;
	virtq_enable(q); /* counts what it refuses; the driver reads 0 back */
	return true;
}

static uint64_t get_queue_notify_off(struct virtio_pci *vp)
{
	return selected(vp) != NULL ? vp->queue_select : 0;
}

/* The three ring addresses, six registers of 32 bits. */
static uint64_t *address_of(struct virtq *q, uint32_t off)
{
	switch (off & ~7u) {
	case VIRTIO_PCI_COMMON_Q_DESCLO:
		return &q->desc_gpa;
	case VIRTIO_PCI_COMMON_Q_AVAILLO:
		return &q->avail_gpa;
	default:
		return &q->used_gpa;
	}
}

static uint64_t get_address(struct virtio_pci *vp, uint32_t off)
{
	struct virtq *q = selected(vp);

	return q != NULL ? (uint32_t)(*address_of(q, off) >> (off & 4 ? 32 : 0)) : 0;
}

static bool set_address(struct virtio_pci *vp, uint32_t off, uint64_t v)
{
	struct virtq *q = selected_idle(vp);
	unsigned shift = off & 4 ? 32 : 0;
	uint64_t *at;

	if (q == NULL)
		return false;
	at = address_of(q, off);
	*at = (*at & ~((uint64_t)UINT32_MAX << shift)) | v << shift;
	return true;
}

static bool is_address(uint32_t off)
{
	return off >= VIRTIO_PCI_COMMON_Q_DESCLO && off < VIRTIO_PCI_COMMON_Q_USEDHI + 4;
}

/* Section 4.1.4.3.  queue_notify_data and queue_reset, which come behind, are
 * of features not offered. */
#define COMMON_BYTES (VIRTIO_PCI_COMMON_Q_USEDHI + 4)

static const struct reg {
	uint8_t off, bytes;
	uint64_t (*get)(struct virtio_pci *vp);
	bool (*set)(struct virtio_pci *vp, uint64_t v); /* false: refused. NULL: read-only */
} common_regs[] = {
	{ VIRTIO_PCI_COMMON_DFSELECT, 4, get_device_feature_select, set_device_feature_select },
	{ VIRTIO_PCI_COMMON_DF, 4, get_device_feature, NULL },
	{ VIRTIO_PCI_COMMON_GFSELECT, 4, get_driver_feature_select, set_driver_feature_select },
	{ VIRTIO_PCI_COMMON_GF, 4, get_driver_feature, set_driver_feature },
	{ VIRTIO_PCI_COMMON_MSIX, 2, get_config_vector, set_config_vector },
	{ VIRTIO_PCI_COMMON_NUMQ, 2, get_queue_count, NULL },
	{ VIRTIO_PCI_COMMON_STATUS, 1, get_status, set_status },
	{ VIRTIO_PCI_COMMON_CFGGENERATION, 1, get_generation, NULL },
	{ VIRTIO_PCI_COMMON_Q_SELECT, 2, get_queue_select, set_queue_select },
	{ VIRTIO_PCI_COMMON_Q_SIZE, 2, get_queue_size, set_queue_size },
	{ VIRTIO_PCI_COMMON_Q_MSIX, 2, get_queue_vector, set_queue_vector },
	{ VIRTIO_PCI_COMMON_Q_ENABLE, 2, get_queue_enable, set_queue_enable },
	{ VIRTIO_PCI_COMMON_Q_NOFF, 2, get_queue_notify_off, NULL },
};

/* Section 4.1.3.1: each register by its own width and no other. */
static const struct reg *find_reg(uint32_t off, uint32_t len)
{
	for (size_t i = 0; i < ARRAY_LEN(common_regs); i++)
		if (common_regs[i].off == off && common_regs[i].bytes == len)
			return &common_regs[i];
	return NULL;
}

static bool common_read(struct virtio_pci *vp, uint32_t off, void *buf, uint32_t len)
{
	const struct reg *r = find_reg(off, len);
	uint64_t v;

	if (is_address(off) && off % len == 0 && (len == 4 || len == 8)) {
		v = get_address(vp, off);
		if (len == 8)
			v |= get_address(vp, off + 4) << 32;
	} else if (r != NULL) {
		v = r->get(vp);
	} else {
		return false;
	}
	memcpy(buf, &v, len);
	return true;
}

static bool common_write(struct virtio_pci *vp, uint32_t off, const void *buf, uint32_t len)
{
	const struct reg *r = find_reg(off, len);
	uint64_t v = 0;

	memcpy(&v, buf, len);
	if (vp->dev->resetting && off != VIRTIO_PCI_COMMON_STATUS)
		return false;
	if (is_address(off) && off % len == 0 && len == 4)
		return set_address(vp, off, v);
	if (is_address(off) && off % len == 0 && len == 8)
		return set_address(vp, off, (uint32_t)v) && set_address(vp, off + 4, v >> 32);
	return r != NULL && r->set != NULL && r->set(vp, v);
}

/* ---- the other regions --------------------------------------------------- */

static bool isr_read(struct virtio_pci *vp, uint32_t off, void *buf, uint32_t len)
{
	if (off != 0 || len != 1)
		return false;
	memcpy(buf, &vp->isr, 1);
	vp->isr = 0;
	return true;
}

/* Any width: a field may be wider than a register access. */
static bool config_read(struct virtio_pci *vp, uint32_t off, void *buf, uint32_t len)
{
	struct virtio_dev *dev = vp->dev;

	if (off + len > dev->config_bytes || dev->ops->config_read == NULL)
		return false;
	dev->ops->config_read(dev, off, buf, len);
	return true;
}

static bool config_write(struct virtio_pci *vp, uint32_t off, const void *buf, uint32_t len)
{
	struct virtio_dev *dev = vp->dev;

	if (off + len > dev->config_bytes || dev->ops->config_write == NULL || dev->resetting)
		return false;
	dev->ops->config_write(dev, off, buf, len);
	return true;
}

/* The address says which queue; the value is as ioeventfd has it: ignored. */
static bool notify_write(struct virtio_pci *vp, uint32_t off, const void *buf, uint32_t len)
{
	unsigned qi = off / VIRTIO_PCI_NOTIFY_MULTIPLIER;

	if (off % VIRTIO_PCI_NOTIFY_MULTIPLIER != 0 || qi >= vp->dev->queue_count ||
	    (len != 2 && len != 4))
		return false;
	kick(vp, qi);
	return true;
}

/* By offset / REGION_BYTES. Unset: nothing to read, or to write. */
static const struct region {
	bool (*read)(struct virtio_pci *vp, uint32_t off, void *buf, uint32_t len);
	bool (*write)(struct virtio_pci *vp, uint32_t off, const void *buf, uint32_t len);
} regions[] = {
	[VIRTIO_PCI_COMMON / REGION_BYTES] = { common_read, common_write },
	[VIRTIO_PCI_ISR / REGION_BYTES] = { isr_read, NULL },
	[VIRTIO_PCI_DEVICE / REGION_BYTES] = { config_read, config_write },
	[VIRTIO_PCI_NOTIFY / REGION_BYTES] = { NULL, notify_write },
};

_Static_assert(ARRAY_LEN(regions) * REGION_BYTES == VIRTIO_PCI_BAR_BYTES, "all of BAR 0");

static const struct region *region_at(uint32_t off, uint32_t len)
{
	bool ok = off < VIRTIO_PCI_BAR_BYTES && (len == 1 || len == 2 || len == 4 || len == 8);

	return ok ? &regions[off / REGION_BYTES] : NULL;
}

void virtio_pci_read(struct virtio_pci *vp, uint32_t off, void *buf, uint32_t len)
{
	const struct region *r = region_at(off, len);
	bool ok = false;

	memset(buf, 0, len);
	if (r != NULL && r->read != NULL) {
		virtio_lock(vp->dev);
		ok = r->read(vp, off % REGION_BYTES, buf, len);
		virtio_unlock(vp->dev);
	}
	if (!ok)
		counter_inc(CTR_virtio_bad_access);
}

void virtio_pci_write(struct virtio_pci *vp, uint32_t off, const void *buf, uint32_t len)
{
	const struct region *r = region_at(off, len);
	bool ok = false;

	if (r != NULL && r->write != NULL) {
		virtio_lock(vp->dev);
		ok = r->write(vp, off % REGION_BYTES, buf, len);
		virtio_unlock(vp->dev);
	}
	if (!ok)
		counter_inc(CTR_virtio_bad_access);
}

void virtio_pci_cut_off(struct virtio_pci *vp)
{
	virtio_lock(vp->dev);
	virtio_cut_off(vp->dev);
	virtio_unlock(vp->dev);
}

/* ---- life ---------------------------------------------------------------- */

static int open_notify(struct virtio_pci *vp, struct notify *n, struct err *e)
{
	const struct virtio_env *env = &vp->dev->env;
	int rc = 0;

	n->fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
	if (n->fd < 0)
		return err_sys(e, -errno, "%s: cannot create an eventfd", vp->dev->label);
	rc = env->ops->watch(env->opaque, n->fd, VIRTIO_FD_IN, notify_ready, n);
	if (rc != 0) {
		close(n->fd);
		n->fd = -1;
		return err_sys(e, rc, "%s: cannot watch an eventfd", vp->dev->label);
	}
	return 0;
}

static void close_notify(struct virtio_pci *vp, struct notify *n)
{
	const struct virtio_env *env = &vp->dev->env;

	if (n->fd < 0)
		return;
	env->ops->unwatch(env->opaque, n->fd);
	close(n->fd);
	n->fd = -1;
}

static void connect_device(struct virtio_pci *vp)
{
	struct virtio_dev *dev = vp->dev;

	virtio_lock(dev);
	VERIFY(dev->transport == NULL);
	dev->signal_queue = signal_queue;
	dev->signal_config = signal_config;
	dev->requeue = kick;
	dev->transport = vp;
	virtio_unlock(dev);
}

static void disconnect_device(struct virtio_pci *vp)
{
	struct virtio_dev *dev = vp->dev;

	virtio_lock(dev);
	if (dev->transport == vp) {
		dev->signal_queue = NULL;
		dev->signal_config = NULL;
		dev->requeue = NULL;
		dev->transport = NULL;
	}
	virtio_unlock(dev);
}

int virtio_pci_create(struct virtio_pci **out, struct virtio_dev *dev,
		      const struct virtio_pci_host *host, struct err *e)
{
	struct virtio_pci *vp;
	int rc = 0;

	VERIFY(host->signal != NULL && dev->config_bytes <= REGION_BYTES);
	vp = calloc(1, sizeof(*vp));
	if (vp == NULL)
		return err_sys(e, -ENOMEM, "%s", dev->label);
	vp->dev = dev;
	vp->host = *host;
	registers_reset(vp);
	for (unsigned i = 0; i < VIRTIO_MAX_QUEUES; i++)
		vp->notify[i] = (struct notify){ .vp = vp, .qi = i, .fd = -1 };
	for (unsigned i = 0; i < dev->queue_count && rc == 0; i++)
		rc = open_notify(vp, &vp->notify[i], e);
	if (rc != 0)
		goto out_destroy;
	connect_device(vp);
	*out = vp;
	return 0;

out_destroy:
	virtio_pci_destroy(&vp);
	return rc;
}

void virtio_pci_destroy(struct virtio_pci **vp)
{
	struct virtio_pci *p = *vp;

	if (p == NULL)
		return;
	disconnect_device(p);
	for (unsigned i = 0; i < VIRTIO_MAX_QUEUES; i++)
		close_notify(p, &p->notify[i]);
	free(p);
	*vp = NULL;
}

int virtio_pci_notify_fd(const struct virtio_pci *vp, unsigned qi)
{
	VERIFY(qi < vp->dev->queue_count);
	return vp->notify[qi].fd;
}

/* ---- capabilities -------------------------------------------------------- */

/* A list being written: each capability is linked when the one behind it
 * comes, the last one by virtio_pci_caps(). */
struct cap_list {
	uint8_t *buf;
	size_t bytes;
	uint8_t at, bar;
	uint8_t *next; /* the link not yet set */
};

static void add_cap(struct cap_list *l, uint8_t type, uint32_t off, uint32_t bytes,
		    size_t cap_bytes)
{
	struct virtio_pci_cap cap = {
		.cap_vndr = PCI_CAP_ID_VENDOR,
		.cap_len = (uint8_t)cap_bytes,
		.cfg_type = type,
		.bar = l->bar,
		.offset = off,
		.length = bytes,
	};

	VERIFY(l->bytes + cap_bytes <= VIRTIO_PCI_CAPS_MAX);
	if (l->next != NULL)
		*l->next = (uint8_t)(l->at + l->bytes);
	memset(l->buf + l->bytes, 0, cap_bytes);
	memcpy(l->buf + l->bytes, &cap, sizeof(cap));
	l->next = l->buf + l->bytes + offsetof(struct virtio_pci_cap, cap_next);
	l->bytes += cap_bytes;
}

size_t virtio_pci_caps(const struct virtio_pci *vp, uint8_t *buf, uint8_t at,
		       uint8_t bar, uint8_t next, size_t *cfg_cap_off)
{
	struct cap_list l = { .buf = buf, .at = at, .bar = bar };
	const uint32_t multiplier = VIRTIO_PCI_NOTIFY_MULTIPLIER;

	add_cap(&l, VIRTIO_PCI_CAP_COMMON_CFG, VIRTIO_PCI_COMMON, COMMON_BYTES,
		sizeof(struct virtio_pci_cap));
	add_cap(&l, VIRTIO_PCI_CAP_NOTIFY_CFG, VIRTIO_PCI_NOTIFY,
		vp->dev->queue_count * multiplier, sizeof(struct virtio_pci_notify_cap));
	memcpy(buf + l.bytes - sizeof(multiplier), &multiplier, sizeof(multiplier));
	add_cap(&l, VIRTIO_PCI_CAP_ISR_CFG, VIRTIO_PCI_ISR, 1, sizeof(struct virtio_pci_cap));
	if (vp->dev->config_bytes > 0)
		add_cap(&l, VIRTIO_PCI_CAP_DEVICE_CFG, VIRTIO_PCI_DEVICE,
			vp->dev->config_bytes, sizeof(struct virtio_pci_cap));
	*cfg_cap_off = l.bytes;
	add_cap(&l, VIRTIO_PCI_CAP_PCI_CFG, 0, 0, sizeof(struct virtio_pci_cfg_cap));
	*l.next = next;
	return l.bytes;
}
