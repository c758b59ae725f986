/*
 * PCI: bus 0 with a host bridge and one function a virtio device.  Configuration
 * space by ports 0xcf8/0xcfc and by ECAM; BAR 0 is the virtio register window,
 * BAR 1 the MSI-X table and pending bits.  There are no legacy interrupts.
 *
 * Threads: vCPU threads access, any thread signals.  `lock` guards configuration
 * space, BAR placement and MSI-X state; it is never held while device registers
 * are accessed, since those take the device's lock, which comes first.
 *
 * Invariants:
 *  I1  A vector is delivered at most once per signal, and never lost: a signal
 *      while masked sets its pending bit, unmasking delivers it.
 *  I2  Configuration space changes only where its write mask allows.
 *
 * Sources: PCI Local Bus 3.0 chapter 6 (header, MSI-X 6.8.2); virtio 1.2, 4.1.
 */
#include <errno.h>
#include <linux/pci_regs.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "vmm/internal.h"

#define PCI_SLOTS 32u
#define CFG_BYTES 256u
#define ECAM_FN_SHIFT 12
#define CAP_MSIX 0x40u
#define CAP_VENDOR 0x50u
#define CFG_WINDOW_BYTES 20u /* struct virtio_pci_cfg_cap */

#define VECTORS_MAX (VIRTIO_MAX_QUEUES + 1)
#define MSIX_BAR_BYTES 0x1000u
#define MSIX_PBA 0x800u
#define MSIX_ENTRY_BYTES 16u
#define MSIX_MASKED 1u

#define VENDOR_VIRTIO 0x1af4u
#define VENDOR_BRIDGE 0x1b36u
#define DEVICE_BRIDGE 0x0008u

struct pci_vector {
	uint32_t addr_lo, addr_hi, data, ctrl;
	int fd; /* irqfd */
	unsigned gsi;
};

struct pci_fn {
	/* fixed at create */
	struct pci_bus *bus;
	struct virtio_dev *dev; /* NULL: the host bridge */
	struct virtio_pci *vp;
	unsigned cfg_window; /* offset of VIRTIO_PCI_CAP_PCI_CFG, 0: none */
	uint16_t vectors;

	/* under the bus's lock */
	uint8_t cfg[CFG_BYTES];
	uint8_t wmask[CFG_BYTES];
	struct pci_vector v[VECTORS_MAX];
	uint64_t pending; /* one bit a vector */
	uint64_t notify_at; /* where the ioeventfds are, 0: not registered */
};

struct pci_bus {
	struct kvm *kvm;
	pthread_mutex_t gate; /* see bus_lock() */
	pthread_mutex_t lock;
	/* under lock */
	uint32_t address; /* port 0xcf8 */
	struct pci_fn *fn[PCI_SLOTS];
	unsigned count;
	uint32_t next_bar;
};

/* A mutex alone lets whoever released it take it again before the next in line has
 * woken up, and a guest that moves BARs or messages in a loop holds it in system
 * calls of KVM all the while: the event loop, which signals, would hardly ever get
 * it.  Who waits for the lock holds the gate, and nobody passes him. */
static void bus_lock(struct pci_bus *b)
{
	pthread_mutex_lock(&b->gate);
	pthread_mutex_lock(&b->lock);
	pthread_mutex_unlock(&b->gate);
}

static uint32_t cfg32(const struct pci_fn *f, unsigned off)
{
	uint32_t v;

	memcpy(&v, f->cfg + off, 4);
	return v;
}

static uint16_t cfg16(const struct pci_fn *f, unsigned off)
{
	uint16_t v;

	memcpy(&v, f->cfg + off, 2);
	return v;
}

static void set_cfg32(struct pci_fn *f, unsigned off, uint32_t v, uint32_t writable)
{
	memcpy(f->cfg + off, &v, 4);
	memcpy(f->wmask + off, &writable, 4);
}

static void set_cfg16(struct pci_fn *f, unsigned off, uint16_t v, uint16_t writable)
{
	memcpy(f->cfg + off, &v, 2);
	memcpy(f->wmask + off, &writable, 2);
}

/* ---- MSI-X ---------------------------------------------------------------- */

static bool msix_enabled(const struct pci_fn *f)
{
	return cfg16(f, CAP_MSIX + PCI_MSIX_FLAGS) & PCI_MSIX_FLAGS_ENABLE;
}

static bool vector_open(const struct pci_fn *f, unsigned i)
{
	return msix_enabled(f) && !(f->v[i].ctrl & MSIX_MASKED) &&
	       !(cfg16(f, CAP_MSIX + PCI_MSIX_FLAGS) & PCI_MSIX_FLAGS_MASKALL);
}

static void deliver(const struct pci_vector *v)
{
	uint64_t one = 1;
	ssize_t n;

	/* The eventfd does not block, and can only be full after 2^64 - 2 signals
	 * that KVM has not taken: then one more changes nothing. */
	n = write(v->fd, &one, sizeof one);
	(void)n;
}

/* After anything that decides whether vector i may pass has changed. */
static void vector_update(struct pci_fn *f, unsigned i)
{
	struct pci_vector *v = &f->v[i];

	if (!vector_open(f, i))
		return; /* its route stays: it is not signalled while closed */
	if (kvm_gsi_route_msi(f->bus->kvm, v->gsi, true,
			      (uint64_t)v->addr_hi << 32 | v->addr_lo, v->data) < 0) {
		log_guest("%s: KVM refuses the message of MSI-X vector %u", f->dev->label, i);
		kvm_gsi_route_msi(f->bus->kvm, v->gsi, false, 0, 0);
		return;
	}
	if (f->pending & (1ull << i)) {
		f->pending &= ~(1ull << i);
		deliver(v);
	}
}

static void msix_signal(void *opaque, uint16_t vector)
{
	struct pci_fn *f = opaque;

	if (vector >= f->vectors)
		return;
	bus_lock(f->bus);
	if (vector_open(f, vector))
		deliver(&f->v[vector]);
	else if (msix_enabled(f))
		f->pending |= 1ull << vector;
	pthread_mutex_unlock(&f->bus->lock);
}

static uint32_t *table_word(struct pci_fn *f, uint32_t off)
{
	struct pci_vector *v = &f->v[off / MSIX_ENTRY_BYTES];
	uint32_t *const words[] = { &v->addr_lo, &v->addr_hi, &v->data, &v->ctrl };

	return words[off / 4 % 4];
}

/* One aligned 32-bit access. */
static void msix_word(struct pci_fn *f, uint32_t off, bool write, uint32_t *data)
{
	if (off < f->vectors * MSIX_ENTRY_BYTES) {
		uint32_t *word = table_word(f, off);

		if (!write) {
			*data = *word;
			return;
		}
		*word = off / 4 % 4 == 3 ? *data & MSIX_MASKED : *data;
		vector_update(f, off / MSIX_ENTRY_BYTES);
	} else if (!write) {
		*data = off == MSIX_PBA ? (uint32_t)f->pending :
			off == MSIX_PBA + 4 ? (uint32_t)(f->pending >> 32) : 0;
	}
}

static void msix_access(struct pci_fn *f, uint32_t off, bool write, uint8_t *data, unsigned len)
{
	if ((len != 4 && len != 8) || off % len) {
		counter_inc(CTR_virtio_bad_access);
		return;
	}
	for (unsigned i = 0; i < len; i += 4) {
		uint32_t word;

		memcpy(&word, data + i, 4);
		msix_word(f, off + i, write, &word);
		memcpy(data + i, &word, 4);
	}
}

/* ---- BARs ----------------------------------------------------------------- */

static const uint32_t bar_bytes[2] = { VIRTIO_PCI_BAR_BYTES, MSIX_BAR_BYTES };

static uint64_t bar_at(const struct pci_fn *f, unsigned i)
{
	if (!f->dev || !(cfg16(f, PCI_COMMAND) & PCI_COMMAND_MEMORY))
		return 0;
	return cfg32(f, PCI_BASE_ADDRESS_0 + 4 * i) & PCI_BASE_ADDRESS_MEM_MASK;
}

static void notify_attach(struct pci_fn *f, uint64_t bar, bool on)
{
	for (unsigned q = 0; q < f->dev->queue_count; q++) {
		uint64_t at = bar + VIRTIO_PCI_NOTIFY + q * VIRTIO_PCI_NOTIFY_MULTIPLIER;
		int rc = kvm_ioeventfd(f->bus->kvm, virtio_pci_notify_fd(f->vp, q), at, on);

		/* Two BARs on one address: kicks still arrive, the slow way. */
		if (rc && on)
			log_guest("%s: ioeventfd at %#llx: %s", f->dev->label,
				  (unsigned long long)at, strerror(-rc));
	}
}

/* ioeventfds follow BAR 0. */
static void notify_follow(struct pci_fn *f)
{
	uint64_t want = bar_at(f, 0);

	if (!f->dev || want == f->notify_at)
		return;
	if (f->notify_at)
		notify_attach(f, f->notify_at, false);
	f->notify_at = want;
	if (want)
		notify_attach(f, want, true);
}

/* Finds who owns [addr, addr+len). Under lock. */
static struct pci_fn *bar_find(const struct pci_bus *b, uint64_t addr, unsigned len,
			       unsigned *bar, uint32_t *off)
{
	for (unsigned i = 0; i < b->count; i++) {
		for (unsigned n = 0; n < 2; n++) {
			uint64_t at = bar_at(b->fn[i], n);

			if (at && addr >= at && addr - at + len <= bar_bytes[n]) {
				*bar = n;
				*off = (uint32_t)(addr - at);
				return b->fn[i];
			}
		}
	}
	return NULL;
}

/* ---- configuration space -------------------------------------------------- */

static bool overlaps(unsigned off, unsigned len, unsigned at, unsigned at_len)
{
	return off < at + at_len && at < off + len;
}

static void cfg_write(struct pci_fn *f, unsigned off, const uint8_t *data, unsigned len)
{
	for (unsigned i = 0; i < len; i++) {
		uint8_t m = f->wmask[off + i];

		f->cfg[off + i] = (uint8_t)((f->cfg[off + i] & ~m) | (data[i] & m));
	}
	if (overlaps(off, len, PCI_COMMAND, 2) || overlaps(off, len, PCI_BASE_ADDRESS_0, 4))
		notify_follow(f);
	if (f->dev && overlaps(off, len, CAP_MSIX + PCI_MSIX_FLAGS, 2))
		for (unsigned i = 0; i < f->vectors; i++)
			vector_update(f, i);
}

/* virtio 1.2, 4.1.4.9: the window through which registers can be reached without
 * mapping a BAR.  Returns true when this access is one, with its place copied:
 * the registers themselves are accessed without the lock. */
static bool cfg_window(const struct pci_fn *f, unsigned off, unsigned len, uint32_t *bar_off,
		       uint32_t *bar_len)
{
	if (!f->cfg_window || off < f->cfg_window + 16 || off + len > f->cfg_window + 20)
		return false;
	*bar_off = cfg32(f, f->cfg_window + 8);
	*bar_len = cfg32(f, f->cfg_window + 12);
	return f->cfg[f->cfg_window + 4] == 0 && off == f->cfg_window + 16 && *bar_len == len &&
	       (len == 1 || len == 2 || len == 4) && *bar_off % len == 0 &&
	       *bar_off <= VIRTIO_PCI_BAR_BYTES - len;
}

static bool cfg_access(struct pci_bus *b, unsigned devfn, unsigned off, bool write,
		       uint8_t *data, unsigned len)
{
	struct pci_fn *f = NULL;
	uint32_t bar_off = 0, bar_len = 0;
	bool window = false, master = false, cut_off = false;

	memset(data, 0xff, write ? 0 : len);
	if (devfn % 8 || devfn / 8 >= PCI_SLOTS)
		return true; /* nothing there: all ones, as real buses answer */
	bus_lock(b);
	f = b->fn[devfn / 8];
	if (f && off + len <= CFG_BYTES) {
		master = cfg16(f, PCI_COMMAND) & PCI_COMMAND_MASTER;
		window = cfg_window(f, off, len, &bar_off, &bar_len);
		if (!window && write)
			cfg_write(f, off, data, len);
		else if (!window)
			memcpy(data, f->cfg + off, len);
	} else if (f && !write) {
		memset(data, 0, len); /* no extended capabilities */
	}
	cut_off = master && !(cfg16(f, PCI_COMMAND) & PCI_COMMAND_MASTER);
	pthread_mutex_unlock(&b->lock);
	if (cut_off)
		virtio_pci_cut_off(f->vp);
	if (window && write)
		virtio_pci_write(f->vp, bar_off, data, bar_len);
	else if (window)
		virtio_pci_read(f->vp, bar_off, data, bar_len);
	return true;
}

bool pci_port(struct pci_bus *b, uint16_t port, bool write, void *data, unsigned len)
{
	uint32_t address;

	if (port == 0xcf8 && len == 4) {
		bus_lock(b);
		if (write)
			memcpy(&b->address, data, 4);
		else
			memcpy(data, &b->address, 4);
		pthread_mutex_unlock(&b->lock);
		return true;
	}
	if (port < 0xcfc || port + len > 0xd00)
		return port >= 0xcf8 && port < 0xcfc;
	bus_lock(b);
	address = b->address;
	pthread_mutex_unlock(&b->lock);
	if (!(address & 0x80000000u) || (address & 0xff0000)) /* disabled, or not bus 0 */
		return true;
	return cfg_access(b, (address >> 8) & 0xff, (address & 0xfc) + (port - 0xcfcu), write,
			  data, len);
}

bool pci_mmio(struct pci_bus *b, uint64_t addr, bool write, void *data, unsigned len)
{
	struct pci_fn *f;
	unsigned bar = 0;
	uint32_t off = 0;

	if (addr >= LAYOUT_ECAM && addr - LAYOUT_ECAM <= LAYOUT_ECAM_BYTES - len)
		return cfg_access(b, (unsigned)((addr - LAYOUT_ECAM) >> ECAM_FN_SHIFT),
				  (unsigned)(addr & 0xfff), write, data, len);
	bus_lock(b);
	f = bar_find(b, addr, len, &bar, &off);
	if (f && bar == 1)
		msix_access(f, off, write, data, len);
	pthread_mutex_unlock(&b->lock);
	if (f && bar == 0 && write)
		virtio_pci_write(f->vp, off, data, len);
	else if (f && bar == 0)
		virtio_pci_read(f->vp, off, data, len);
	return f != NULL;
}

/* ---- building the bus ----------------------------------------------------- */

static void fn_free(struct pci_fn *f)
{
	if (!f)
		return;
	for (unsigned i = 0; i < f->vectors; i++)
		if (f->v[i].fd >= 0) {
			kvm_irqfd(f->bus->kvm, f->v[i].fd, f->v[i].gsi, false);
			close(f->v[i].fd);
		}
	if (f->notify_at)
		notify_attach(f, f->notify_at, false);
	virtio_pci_destroy(&f->vp);
	free(f);
}

int pci_create(struct pci_bus **out, struct kvm *kvm, struct err *e)
{
	struct pci_bus *b = calloc(1, sizeof *b);
	struct pci_fn *bridge = calloc(1, sizeof *bridge);

	if (!b || !bridge) {
		free(b);
		free(bridge);
		return err_set(e, -ENOMEM, "PCI: out of memory");
	}
	b->kvm = kvm;
	b->next_bar = LAYOUT_BARS;
	pthread_mutex_init(&b->gate, NULL);
	pthread_mutex_init(&b->lock, NULL);
	bridge->bus = b;
	set_cfg16(bridge, PCI_VENDOR_ID, VENDOR_BRIDGE, 0);
	set_cfg16(bridge, PCI_DEVICE_ID, DEVICE_BRIDGE, 0);
	set_cfg16(bridge, PCI_CLASS_DEVICE, 0x0600, 0);
	b->fn[b->count++] = bridge;
	*out = b;
	return 0;
}

void pci_destroy(struct pci_bus **bp)
{
	struct pci_bus *b = *bp;

	if (!b)
		return;
	for (unsigned i = 0; i < b->count; i++)
		fn_free(b->fn[i]);
	pthread_mutex_destroy(&b->lock);
	pthread_mutex_destroy(&b->gate);
	free(b);
	*bp = NULL;
}

static int add_vectors(struct pci_fn *f, struct err *e)
{
	for (unsigned i = 0; i < f->vectors; i++) {
		struct pci_vector *v = &f->v[i];
		int gsi = kvm_gsi_alloc(f->bus->kvm), rc;

		if (gsi < 0)
			return err_set(e, gsi, "%s: more interrupts than the VM has", f->dev->label);
		v->gsi = (unsigned)gsi;
		v->ctrl = MSIX_MASKED;
		v->fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
		if (v->fd < 0)
			return err_sys(e, -errno, "%s: eventfd", f->dev->label);
		rc = kvm_irqfd(f->bus->kvm, v->fd, v->gsi, true);
		if (rc)
			return err_sys(e, rc, "%s: irqfd", f->dev->label);
	}
	return 0;
}

static void place_bar(struct pci_fn *f, unsigned i)
{
	struct pci_bus *b = f->bus;
	uint32_t bytes = bar_bytes[i];

	b->next_bar = (b->next_bar + bytes - 1) & ~(bytes - 1);
	VERIFY(b->next_bar + bytes <= LAYOUT_BARS_END);
	set_cfg32(f, PCI_BASE_ADDRESS_0 + 4 * i, b->next_bar, ~(bytes - 1));
	b->next_bar += bytes;
}

static void fill_config(struct pci_fn *f)
{
	const struct virtio_dev_ops *ops = f->dev->ops;
	size_t window = 0;
	uint8_t *c = f->cfg;

	set_cfg16(f, PCI_VENDOR_ID, VENDOR_VIRTIO, 0);
	set_cfg16(f, PCI_DEVICE_ID, (uint16_t)(0x1040 + ops->type), 0);
	set_cfg16(f, PCI_COMMAND, 0, PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER | PCI_COMMAND_INTX_DISABLE);
	set_cfg16(f, PCI_STATUS, PCI_STATUS_CAP_LIST, 0);
	c[PCI_REVISION_ID] = 1; /* no legacy interface (4.1.2.1) */
	c[PCI_CLASS_PROG] = (uint8_t)ops->class;
	set_cfg16(f, PCI_CLASS_DEVICE, (uint16_t)(ops->class >> 8), 0);
	set_cfg16(f, PCI_SUBSYSTEM_VENDOR_ID, VENDOR_VIRTIO, 0);
	set_cfg16(f, PCI_SUBSYSTEM_ID, (uint16_t)(0x1040 + ops->type), 0);
	c[PCI_CAPABILITY_LIST] = CAP_MSIX;
	f->wmask[PCI_INTERRUPT_LINE] = 0xff;
	place_bar(f, 0);
	place_bar(f, 1);

	c[CAP_MSIX] = PCI_CAP_ID_MSIX;
	c[CAP_MSIX + 1] = CAP_VENDOR;
	set_cfg16(f, CAP_MSIX + PCI_MSIX_FLAGS, (uint16_t)(f->vectors - 1),
		  PCI_MSIX_FLAGS_ENABLE | PCI_MSIX_FLAGS_MASKALL);
	set_cfg32(f, CAP_MSIX + PCI_MSIX_TABLE, 1, 0);           /* BAR 1, offset 0 */
	set_cfg32(f, CAP_MSIX + PCI_MSIX_PBA, MSIX_PBA | 1, 0);
	VERIFY(CAP_VENDOR + virtio_pci_caps(f->vp, c + CAP_VENDOR, CAP_VENDOR, 0, 0, &window) <=
	       CFG_BYTES);
	f->cfg_window = (unsigned)(CAP_VENDOR + window);
	VERIFY(f->cfg_window + CFG_WINDOW_BYTES <= CFG_BYTES);
	f->wmask[f->cfg_window + 4] = 0xff;           /* bar */
	memset(f->wmask + f->cfg_window + 8, 0xff, 8); /* offset, length */
}

int pci_add_virtio(struct pci_bus *b, struct virtio_dev *dev, struct err *e)
{
	struct virtio_pci_host host;
	struct pci_fn *f;
	int rc;

	if (b->count == PCI_SLOTS)
		return err_set(e, -ENOSPC, "%s: all %u PCI slots are taken", dev->label, PCI_SLOTS);
	f = calloc(1, sizeof *f);
	if (!f)
		return err_set(e, -ENOMEM, "%s: out of memory", dev->label);
	f->bus = b;
	f->dev = dev;
	f->vectors = (uint16_t)(dev->queue_count + 1);
	for (unsigned i = 0; i < VECTORS_MAX; i++)
		f->v[i].fd = -1;
	host = (struct virtio_pci_host){ .signal = msix_signal, .opaque = f, .vectors = f->vectors };
	rc = virtio_pci_create(&f->vp, dev, &host, e);
	if (!rc)
		rc = add_vectors(f, e);
	if (rc) {
		fn_free(f);
		return rc;
	}
	fill_config(f);
	b->fn[b->count++] = f;
	return 0;
}
