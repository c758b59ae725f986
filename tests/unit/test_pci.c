/*
 * vmm/pci.c: configuration space by ports and by ECAM, BARs and what follows
 * them, MSI-X.  Defends I1 and I2 of vmm/pci.c.
 */
#include <criterion/criterion.h>
#include <linux/pci_regs.h>
#include <pthread.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "tests/lib/fakeguest.h"
#include "tests/lib/testdev.h"
#include "tests/unit/fakekvm.h"

#define QUEUES 3
#define VECTORS (QUEUES + 1)
#define COMMAND_ON (PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER)
#define ABSENT 9u /* a slot where nothing is */

static struct fakeguest g;
static struct kvm kvm;
static struct pci_bus *bus;
static struct testdev *t;

static struct testdev *add_device(unsigned queues)
{
	struct testdev *dev = testdev_create(&g.env, queues, 16);
	struct err e = { "" };

	cr_assert_eq(pci_add_virtio(bus, &dev->dev, &e), 0, "%s", e.msg);
	return dev;
}

/* An empty bus. */
static void begin_empty(void)
{
	struct err e = { "" };

	fakeguest_init(&g);
	cr_assert_eq(kvm_init(&kvm, g.ram, &e), 0);
	cr_assert_eq(pci_create(&bus, &kvm, &e), 0, "%s", e.msg);
}

static void begin(void)
{
	begin_empty();
	t = add_device(QUEUES);
}

static void end_empty(void)
{
	pci_destroy(&bus);
	cr_assert_eq(fakekvm_count(fakekvm.io), 0, "ioeventfds left behind");
	cr_assert_eq(fakekvm_count(fakekvm.irq), 0, "irqfds left behind");
	kvm_fini(&kvm);
	fakeguest_fini(&g);
}

static void end(void)
{
	struct virtio_dev *dev = &t->dev;

	pci_destroy(&bus);
	virtio_dev_destroy(&dev);
	end_empty();
}

/* ---- access ------------------------------------------------------------------ */

static uint32_t port_read(unsigned slot, unsigned off, unsigned len)
{
	uint32_t address = 0x80000000u | slot << 11 | (off & 0xfc), v = 0xffffffff;

	cr_assert(pci_port(bus, 0xcf8, true, &address, 4));
	cr_assert(pci_port(bus, (uint16_t)(0xcfc + off % 4), false, &v, len));
	return len == 4 ? v : v & ((1u << 8 * len) - 1);
}

static void port_write(unsigned slot, unsigned off, uint32_t v, unsigned len)
{
	uint32_t address = 0x80000000u | slot << 11 | (off & 0xfc);

	cr_assert(pci_port(bus, 0xcf8, true, &address, 4));
	cr_assert(pci_port(bus, (uint16_t)(0xcfc + off % 4), true, &v, len));
}

static uint64_t ecam_addr(unsigned slot, unsigned off)
{
	return LAYOUT_ECAM + (slot << 15) + off;
}

static uint64_t ecam_read(unsigned slot, unsigned off, unsigned len)
{
	uint64_t v = 0;

	cr_assert(pci_mmio(bus, ecam_addr(slot, off), false, &v, len));
	return v;
}

static void ecam_write(unsigned slot, unsigned off, uint64_t v, unsigned len)
{
	cr_assert(pci_mmio(bus, ecam_addr(slot, off), true, &v, len));
}

static uint32_t cfg(unsigned off)
{
	return (uint32_t)ecam_read(1, off, 4);
}

static void memory_on(unsigned slot)
{
	ecam_write(slot, PCI_COMMAND, COMMAND_ON, 2);
}

static uint64_t bar(unsigned slot, unsigned i)
{
	return ecam_read(slot, PCI_BASE_ADDRESS_0 + 4 * i, 4);
}

static unsigned find_cap(unsigned slot, uint8_t id, uint8_t virtio_type)
{
	unsigned at = (unsigned)ecam_read(slot, PCI_CAPABILITY_LIST, 1);

	for (unsigned left = 48; at && left; left--) {
		if (ecam_read(slot, at, 1) == id &&
		    (id != PCI_CAP_ID_VNDR || ecam_read(slot, at + 3, 1) == virtio_type))
			return at;
		at = (unsigned)ecam_read(slot, at + 1, 1);
	}
	return 0;
}

/* ---- configuration space ----------------------------------------------------- */

Test(pci, slot_empty_reads_all_ones)
{
	begin();
	cr_assert_eq(port_read(ABSENT, 0, 4), 0xffffffff);
	cr_assert_eq(port_read(ABSENT, 2, 2), 0xffff);
	cr_assert_eq(ecam_read(ABSENT, 0, 4), 0xffffffff);
	cr_assert_eq(ecam_read(ABSENT, 0, 8), UINT64_MAX);
	port_write(ABSENT, 4, 0xffffffff, 4);
	end();
}

/* Function 1 of a slot where function 0 is. */
Test(pci, function_other_than_0_reads_all_ones)
{
	uint64_t v = 0;

	begin();
	cr_assert(pci_mmio(bus, ecam_addr(1, 0) + 0x1000, false, &v, 4));
	cr_assert_eq(v, 0xffffffff);
	end();
}

Test(pci, identity_is_virtio_and_bridge)
{
	begin();
	cr_assert_eq(ecam_read(0, PCI_CLASS_DEVICE, 2), 0x0600);
	cr_assert_eq(cfg(PCI_VENDOR_ID), (0x1040u + 42) << 16 | 0x1af4);
	cr_assert_geq(ecam_read(1, PCI_REVISION_ID, 1), 1);
	cr_assert_eq(ecam_read(1, PCI_HEADER_TYPE, 1), 0);
	cr_assert_eq(ecam_read(1, PCI_INTERRUPT_PIN, 1), 0);
	end();
}

Test(pci, ports_and_ecam_agree_at_every_width)
{
	begin();
	memory_on(1);
	for (unsigned slot = 0; slot < 3; slot++)
		for (unsigned len = 1; len <= 4; len *= 2)
			for (unsigned off = 0; off < 256; off += len)
				cr_assert_eq(port_read(slot, off, len), ecam_read(slot, off, len),
					     "%u: %x/%u", slot, off, len);
	port_write(1, PCI_INTERRUPT_LINE, 0x5a, 1);
	cr_assert_eq(ecam_read(1, PCI_INTERRUPT_LINE, 1), 0x5a);
	ecam_write(1, PCI_INTERRUPT_LINE, 0xa5, 1);
	cr_assert_eq(port_read(1, PCI_INTERRUPT_LINE, 1), 0xa5);
	end();
}

Test(pci, ecam_eight_bytes_are_two_registers)
{
	begin();
	for (unsigned off = 0; off < 256; off += 8)
		cr_assert_eq(ecam_read(1, off, 8), cfg(off) | (uint64_t)cfg(off + 4) << 32);
	ecam_write(1, PCI_BASE_ADDRESS_0, UINT64_MAX, 8);
	cr_assert_eq(cfg(PCI_BASE_ADDRESS_0), ~(VIRTIO_PCI_BAR_BYTES - 1));
	cr_assert_eq(cfg(PCI_BASE_ADDRESS_1), ~0xfffu);
	end();
}

Test(pci, ecam_beyond_256_bytes_reads_zeroes)
{
	begin();
	cr_assert_eq(ecam_read(1, 0x100, 4), 0);
	cr_assert_eq(ecam_read(1, 0xff8, 8), 0);
	cr_assert_eq(ecam_read(1, 254, 4), 0, "across the end");
	ecam_write(1, 254, UINT64_MAX, 8);
	ecam_write(1, 0x100, UINT64_MAX, 8);
	end();
}

Test(pci, ports_of_wrong_width_or_place_do_nothing)
{
	uint32_t v = 0x80000800, back = 0;

	begin();
	cr_assert(pci_port(bus, 0xcf8, true, &v, 4));
	v = 0;
	cr_assert(pci_port(bus, 0xcf8, true, &v, 2), "claimed, ignored");
	cr_assert(pci_port(bus, 0xcfa, true, &v, 1));
	cr_assert(pci_port(bus, 0xcf8, false, &back, 4));
	cr_assert_eq(back, 0x80000800);
	cr_assert_not(pci_port(bus, 0xcfe, false, &back, 4), "over the end");
	cr_assert_not(pci_port(bus, 0xd00, false, &back, 1));
	cr_assert_not(pci_port(bus, 0xcf7, false, &back, 1));
	end();
}

Test(pci, ports_disabled_or_other_bus_read_all_ones)
{
	uint32_t v = 0x800, back = 0xffffffff;

	begin();
	cr_assert(pci_port(bus, 0xcf8, true, &v, 4));
	cr_assert(pci_port(bus, 0xcfc, false, &back, 4));
	cr_assert_eq(back, 0xffffffff);
	v = 0x80010800;
	cr_assert(pci_port(bus, 0xcf8, true, &v, 4));
	cr_assert(pci_port(bus, 0xcfc, false, &back, 4));
	cr_assert_eq(back, 0xffffffff);
	end();
}

/* I2: what a guest may change, and not a bit more. */
Test(pci, only_masked_bits_can_be_written)
{
	const unsigned msix = 0x40;
	uint32_t before[64], writable;
	unsigned window;

	begin();
	window = find_cap(1, PCI_CAP_ID_VNDR, 5);
	cr_assert_neq(window, 0);
	for (unsigned i = 0; i < 64; i++)
		before[i] = cfg(4 * i);
	for (unsigned i = 0; i < 64; i++) {
		if (4 * i == window + 16)
			continue; /* the window itself: writes go to a register */
		writable = 4 * i == PCI_COMMAND ? PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER |
						  PCI_COMMAND_INTX_DISABLE :
			   4 * i == PCI_BASE_ADDRESS_0 ? ~(VIRTIO_PCI_BAR_BYTES - 1) :
			   4 * i == PCI_BASE_ADDRESS_1 ? ~0xfffu :
			   4 * i == PCI_INTERRUPT_LINE ? 0xff :
			   4 * i == msix ? (uint32_t)(PCI_MSIX_FLAGS_ENABLE | PCI_MSIX_FLAGS_MASKALL) << 16 :
			   4 * i == window + 4 ? 0xff :
			   4 * i == window + 8 || 4 * i == window + 12 ? 0xffffffff : 0;
		ecam_write(1, 4 * i, 0xffffffff, 4);
		cr_assert_eq(cfg(4 * i), before[i] | writable, "%x: %x", 4 * i, cfg(4 * i));
		ecam_write(1, 4 * i, 0, 4);
		cr_assert_eq(cfg(4 * i), before[i] & ~writable, "%x: %x", 4 * i, cfg(4 * i));
		ecam_write(1, 4 * i, before[i], 4);
	}
	end();
}

Test(pci, bridge_cannot_be_written)
{
	begin();
	for (unsigned off = 0; off < 256; off += 4) {
		uint64_t before = ecam_read(0, off, 4);

		ecam_write(0, off, 0xffffffff, 4);
		cr_assert_eq(ecam_read(0, off, 4), before);
	}
	end();
}

Test(pci, capability_list_ends_inside_the_space)
{
	unsigned at, seen = 0;

	begin();
	cr_assert(ecam_read(1, PCI_STATUS, 2) & PCI_STATUS_CAP_LIST);
	at = (unsigned)ecam_read(1, PCI_CAPABILITY_LIST, 1);
	for (; at; at = (unsigned)ecam_read(1, at + 1, 1)) {
		cr_assert(at >= 0x40 && at % 4 == 0 && seen++ < 48);
		if (ecam_read(1, at, 1) == PCI_CAP_ID_VNDR)
			cr_assert_leq(at + ecam_read(1, at + 2, 1), 256);
	}
	cr_assert_eq(seen, 6, "MSI-X, and the five of virtio");
	end();
}

/* ---- BARs ---------------------------------------------------------------------- */

Test(pci, bar_sizing_tells_sizes_and_kind)
{
	begin();
	for (unsigned i = 0; i < 6; i++) {
		uint32_t old = cfg(PCI_BASE_ADDRESS_0 + 4 * i), size;

		ecam_write(1, PCI_BASE_ADDRESS_0 + 4 * i, 0xffffffff, 4);
		size = ~(cfg(PCI_BASE_ADDRESS_0 + 4 * i) & PCI_BASE_ADDRESS_MEM_MASK) + 1;
		cr_assert_eq(size, i == 0 ? VIRTIO_PCI_BAR_BYTES : i == 1 ? 0x1000 : 0);
		cr_assert_eq(old & 0xf, 0, "32-bit memory");
		ecam_write(1, PCI_BASE_ADDRESS_0 + 4 * i, old, 4);
	}
	ecam_write(1, PCI_ROM_ADDRESS, 0xfffff800, 4);
	cr_assert_eq(cfg(PCI_ROM_ADDRESS), 0);
	end();
}

Test(pci, bars_of_all_slots_apart_and_inside_the_window)
{
	struct virtio_dev *devs[31];
	uint64_t from[62], to[62];
	unsigned n = 0;

	begin_empty();
	for (unsigned i = 0; i < 31; i++)
		devs[i] = &add_device(1)->dev;
	for (unsigned slot = 1; slot < 32; slot++)
		for (unsigned i = 0; i < 2; i++, n++) {
			from[n] = bar(slot, i);
			to[n] = from[n] + (i ? 0x1000 : VIRTIO_PCI_BAR_BYTES);
			cr_assert(from[n] >= LAYOUT_BARS && to[n] <= LAYOUT_BARS_END);
			for (unsigned k = 0; k < n; k++)
				cr_assert(to[k] <= from[n] || to[n] <= from[k]);
		}
	pci_destroy(&bus);
	for (unsigned i = 0; i < 31; i++)
		virtio_dev_destroy(&devs[i]);
	end_empty();
}

Test(pci, slot_33_refused_in_a_sentence)
{
	struct virtio_dev *devs[32];
	struct err e = { "" };

	begin_empty();
	for (unsigned i = 0; i < 31; i++)
		devs[i] = &add_device(1)->dev;
	devs[31] = &testdev_create(&g.env, 1, 16)->dev;
	cr_assert_eq(pci_add_virtio(bus, devs[31], &e), -ENOSPC);
	cr_assert(strstr(e.msg, "test0") && strstr(e.msg, "slots"), "%s", e.msg);
	pci_destroy(&bus);
	for (unsigned i = 0; i < 32; i++)
		virtio_dev_destroy(&devs[i]);
	end_empty();
}

Test(pci, vectors_used_up_refused_and_nothing_left)
{
	struct virtio_dev *dev;
	struct err e = { "" };

	begin_empty();
	kvm.next_gsi = GSI_MAX - 2;
	dev = &testdev_create(&g.env, QUEUES, 16)->dev;
	cr_assert_eq(pci_add_virtio(bus, dev, &e), -ENOSPC);
	cr_assert(strstr(e.msg, "interrupts"), "%s", e.msg);
	cr_assert_eq(fakekvm_count(fakekvm.irq), 0);
	cr_assert_null(dev->transport);
	virtio_dev_destroy(&dev);
	end_empty();
}

static uint64_t read_at(uint64_t at, unsigned len, bool *hit)
{
	uint64_t v = 0;

	*hit = pci_mmio(bus, at, false, &v, len);
	return v;
}

Test(pci, bar_answers_only_while_memory_is_on)
{
	bool hit;

	begin();
	read_at(bar(1, 0), 4, &hit);
	cr_assert_not(hit);
	memory_on(1);
	cr_assert_eq(read_at(bar(1, 0) + 0x12, 2, &hit), QUEUES, "the queue count");
	cr_assert(hit);
	ecam_write(1, PCI_COMMAND, 0, 2);
	read_at(bar(1, 0), 4, &hit);
	cr_assert_not(hit);
	end();
}

Test(pci, bar_moved_answers_at_its_new_place)
{
	uint64_t old;
	bool hit;

	begin();
	memory_on(1);
	old = bar(1, 0);
	ecam_write(1, PCI_BASE_ADDRESS_0, 0xd0000000, 4);
	cr_assert_eq(read_at(0xd0000012, 2, &hit), QUEUES);
	cr_assert(hit);
	read_at(old, 4, &hit);
	cr_assert_not(hit);
	end();
}

Test(pci, bar_edges_are_sharp)
{
	uint64_t at;
	bool hit;

	begin();
	memory_on(1);
	at = bar(1, 0);
	read_at(at - 1, 1, &hit);
	cr_assert_not(hit);
	read_at(at + VIRTIO_PCI_BAR_BYTES - 8, 8, &hit);
	cr_assert(hit);
	ecam_write(1, PCI_BASE_ADDRESS_1, 0xd0000000, 4);
	read_at(at + VIRTIO_PCI_BAR_BYTES, 1, &hit);
	cr_assert_not(hit);
	read_at(at + VIRTIO_PCI_BAR_BYTES - 4, 8, &hit);
	cr_assert_not(hit, "across the end");
	ecam_write(1, PCI_BASE_ADDRESS_0, 0xffffffff, 4);
	read_at(0xfffffffc, 4, &hit);
	cr_assert(hit, "the last bytes below 4 GiB");
	read_at(0xfffffffc, 8, &hit);
	cr_assert_not(hit);
	read_at(UINT64_MAX - 7, 8, &hit);
	cr_assert_not(hit);
	end();
}

static bool ioeventfd_at(uint64_t at)
{
	for (unsigned i = 0; i < FAKEKVM_EVENTFDS; i++)
		if (fakekvm.io[i].on && fakekvm.io[i].at == at)
			return true;
	return false;
}

Test(pci, ioeventfds_follow_bar_0)
{
	begin();
	cr_assert_eq(fakekvm_count(fakekvm.io), 0);
	memory_on(1);
	cr_assert_eq(fakekvm_count(fakekvm.io), QUEUES);
	for (unsigned q = 0; q < QUEUES; q++)
		cr_assert(ioeventfd_at(bar(1, 0) + VIRTIO_PCI_NOTIFY + 4 * q));
	ecam_write(1, PCI_BASE_ADDRESS_0 + 2, 0xd123, 2); /* half of it moves it too */
	cr_assert_eq(fakekvm_count(fakekvm.io), QUEUES);
	cr_assert(ioeventfd_at(bar(1, 0) + VIRTIO_PCI_NOTIFY));
	ecam_write(1, PCI_BASE_ADDRESS_1, 0xc8000000, 4);
	cr_assert_eq(fakekvm_count(fakekvm.io), QUEUES);
	ecam_write(1, PCI_COMMAND, 0, 2);
	cr_assert_eq(fakekvm_count(fakekvm.io), 0);
	memory_on(1);
	end();
}

Test(pci, bar_at_zero_is_nowhere)
{
	bool hit;

	begin();
	memory_on(1);
	ecam_write(1, PCI_BASE_ADDRESS_0, 0, 4);
	cr_assert_eq(fakekvm_count(fakekvm.io), 0);
	read_at(0, 4, &hit);
	cr_assert_not(hit);
	end();
}

Test(pci, bars_on_one_address_first_answers_nothing_leaks)
{
	struct virtio_dev *other;

	begin();
	other = &add_device(1)->dev;
	memory_on(1);
	memory_on(2);
	fakekvm.fail_ioeventfd = EEXIST;
	ecam_write(2, PCI_BASE_ADDRESS_0, bar(1, 0), 4);
	fakekvm.fail_ioeventfd = 0;
	cr_assert_eq(fakekvm_count(fakekvm.io), QUEUES);
	ecam_write(2, PCI_BASE_ADDRESS_0, 0xd0000000, 4);
	cr_assert_eq(fakekvm_count(fakekvm.io), QUEUES + 1);
	pci_destroy(&bus);
	virtio_dev_destroy(&other);
	end();
}

/* ---- the window of section 4.1.4.9 --------------------------------------------- */

static void window_set(unsigned window, uint8_t in_bar, uint32_t off, uint32_t len)
{
	ecam_write(1, window + 4, in_bar, 1);
	ecam_write(1, window + 8, off, 4);
	ecam_write(1, window + 12, len, 4);
}

Test(pci, window_reaches_registers_without_a_bar)
{
	unsigned window;

	begin();
	window = find_cap(1, PCI_CAP_ID_VNDR, 5);
	window_set(window, 0, VIRTIO_PCI_COMMON + 0x12, 2); /* the queue count */
	cr_assert_eq(ecam_read(1, window + 16, 2), QUEUES);
	cr_assert_eq(port_read(1, window + 16, 2), QUEUES);
	window_set(window, 0, VIRTIO_PCI_COMMON + 0x14, 1);
	port_write(1, window + 16, VIRTIO_STATUS_ACKNOWLEDGE, 1);
	cr_assert_eq(t->dev.status, VIRTIO_STATUS_ACKNOWLEDGE);
	cr_assert_eq(ecam_read(1, window + 16, 1), VIRTIO_STATUS_ACKNOWLEDGE);
	end();
}

Test(pci, window_set_wrongly_reaches_nothing)
{
	static const struct { uint8_t bar; uint32_t off, len; unsigned access; } wrong[] = {
		{ 1, 0x12, 2, 2 }, { 6, 0x12, 2, 2 }, { 0xff, 0x12, 2, 2 },
		{ 0, 0x12, 4, 2 }, { 0, 0x12, 2, 4 }, { 0, 0x13, 2, 2 },
		{ 0, 0x12, 0, 2 }, { 0, 0x12, 3, 2 }, { 0, 0x12, 0xffffffff, 2 },
		{ 0, VIRTIO_PCI_BAR_BYTES, 4, 4 }, { 0, 0xfffffffc, 4, 4 }, { 0, 0x10, 8, 8 },
	};
	unsigned window;

	begin();
	window = find_cap(1, PCI_CAP_ID_VNDR, 5);
	for (unsigned i = 0; i < ARRAY_LEN(wrong); i++) {
		window_set(window, wrong[i].bar, wrong[i].off, wrong[i].len);
		cr_assert_eq(ecam_read(1, window + 16, wrong[i].access), 0, "case %u", i);
		ecam_write(1, window + 16, UINT64_MAX, wrong[i].access);
	}
	cr_assert_eq(t->dev.status, 0);
	end();
}

/* ---- MSI-X ------------------------------------------------------------------------ */

static uint64_t table(void)
{
	return bar(1, 1);
}

static uint32_t table_read(unsigned off)
{
	uint32_t v = 0;

	cr_assert(pci_mmio(bus, table() + off, false, &v, 4));
	return v;
}

static void table_write(unsigned off, uint32_t v)
{
	cr_assert(pci_mmio(bus, table() + off, true, &v, 4));
}

static void vector_set(unsigned i, uint32_t data, bool masked)
{
	table_write(16 * i, 0xfee00000);
	table_write(16 * i + 4, 0);
	table_write(16 * i + 8, data);
	table_write(16 * i + 12, masked);
}

static void msix_flags(uint16_t flags)
{
	ecam_write(1, 0x40 + PCI_MSIX_FLAGS, flags, 2);
}

static void begin_msix(void)
{
	begin();
	memory_on(1);
	msix_flags(PCI_MSIX_FLAGS_ENABLE);
}

static void raise_vector(unsigned i)
{
	pthread_mutex_lock(&t->dev.lock);
	t->dev.signal_queue(t->dev.transport, (uint16_t)i);
	pthread_mutex_unlock(&t->dev.lock);
}

/* How often vector i's irqfd was signalled since last asked. */
static uint64_t delivered(unsigned i)
{
	eventfd_t n = 0;

	for (unsigned k = 0; k < FAKEKVM_EVENTFDS; k++)
		if (fakekvm.irq[k].on && fakekvm.irq[k].at == GSI_MSI_BASE + i)
			return eventfd_read(fakekvm.irq[k].fd, &n) == 0 ? n : 0;
	cr_assert_fail("vector %u has no irqfd", i);
	return 0;
}

static uint32_t pending(void)
{
	return table_read(0x800);
}

Test(pci, msix_capability_describes_the_table)
{
	begin();
	cr_assert_eq(find_cap(1, PCI_CAP_ID_MSIX, 0), 0x40);
	cr_assert_eq(ecam_read(1, 0x42, 2) & PCI_MSIX_FLAGS_QSIZE, VECTORS - 1);
	cr_assert_eq(cfg(0x44), 1, "BAR 1, offset 0");
	cr_assert_eq(cfg(0x48), 0x800 | 1);
	end();
}

Test(pci, msix_vectors_start_masked)
{
	begin_msix();
	for (unsigned i = 0; i < VECTORS; i++)
		cr_assert_eq(table_read(16 * i + 12), 1);
	end();
}

Test(pci, msix_open_vector_delivers_its_message)
{
	begin_msix();
	vector_set(2, 0x4042, false);
	raise_vector(2);
	cr_assert_eq(delivered(2), 1);
	cr_assert(kvm.msi_used[GSI_MSI_BASE + 2]);
	cr_assert_eq(kvm.msi[GSI_MSI_BASE + 2].u.msi.address_lo, 0xfee00000);
	cr_assert_eq(kvm.msi[GSI_MSI_BASE + 2].u.msi.data, 0x4042);
	cr_assert_eq(delivered(0) + delivered(1) + delivered(3), 0);
	cr_assert_eq(pending(), 0);
	end();
}

/* I1 */
Test(pci, msix_masked_vector_waits_for_unmask)
{
	begin_msix();
	vector_set(1, 0x31, true);
	raise_vector(1);
	raise_vector(1);
	cr_assert_eq(delivered(1), 0);
	cr_assert_eq(pending(), 2);
	table_write(16 + 12, 0);
	cr_assert_eq(delivered(1), 1, "once, though signalled twice");
	cr_assert_eq(pending(), 0);
	table_write(16 + 12, 1);
	table_write(16 + 12, 0);
	cr_assert_eq(delivered(1), 0, "and not again");
	end();
}

Test(pci, msix_function_mask_holds_all_vectors)
{
	begin_msix();
	for (unsigned i = 0; i < VECTORS; i++)
		vector_set(i, 0x30 + i, false);
	msix_flags(PCI_MSIX_FLAGS_ENABLE | PCI_MSIX_FLAGS_MASKALL);
	for (unsigned i = 0; i < VECTORS; i++)
		raise_vector(i);
	cr_assert_eq(pending(), (1u << VECTORS) - 1);
	msix_flags(PCI_MSIX_FLAGS_ENABLE);
	for (unsigned i = 0; i < VECTORS; i++)
		cr_assert_eq(delivered(i), 1);
	cr_assert_eq(pending(), 0);
	end();
}

Test(pci, msix_message_changed_while_masked_used_on_unmask)
{
	begin_msix();
	vector_set(0, 0x31, false);
	table_write(12, 1);
	raise_vector(0);
	table_write(8, 0x77);
	cr_assert_eq(kvm.msi[GSI_MSI_BASE].u.msi.data, 0x31, "not before");
	table_write(12, 0);
	cr_assert_eq(kvm.msi[GSI_MSI_BASE].u.msi.data, 0x77);
	cr_assert_eq(delivered(0), 1);
	end();
}

Test(pci, msix_disabled_delivers_and_remembers_nothing)
{
	begin_msix();
	vector_set(0, 0x31, false);
	msix_flags(0);
	raise_vector(0);
	msix_flags(PCI_MSIX_FLAGS_ENABLE);
	cr_assert_eq(delivered(0), 0);
	end();
}

Test(pci, msix_vector_beyond_the_table_ignored)
{
	begin_msix();
	msix_flags(PCI_MSIX_FLAGS_ENABLE | PCI_MSIX_FLAGS_MASKALL); /* else it would not show */
	raise_vector(VECTORS);
	raise_vector(63);
	raise_vector(0xfffe);
	cr_assert_eq(pending(), 0);
	cr_assert_eq(table_read(0x804), 0);
	end();
}

Test(pci, msix_refused_by_kvm_works_again_when_changed)
{
	begin_msix();
	vector_set(0, 0x30, false);
	cr_assert(kvm.msi_used[GSI_MSI_BASE]);
	fakekvm.fail_route = EINVAL;
	vector_set(0, 0x31, false);
	cr_assert_not(kvm.msi_used[GSI_MSI_BASE], "not the old message either");
	fakekvm.fail_route = 0;
	table_write(8, 0x32);
	raise_vector(0);
	cr_assert_eq(delivered(0), 1);
	cr_assert_eq(kvm.msi[GSI_MSI_BASE].u.msi.data, 0x32);
	end();
}

Test(pci, msix_table_eight_byte_access_is_two_words)
{
	uint64_t v = 0x11223344fee01000;

	begin_msix();
	cr_assert(pci_mmio(bus, table() + 16, true, &v, 8));
	cr_assert_eq(table_read(16), 0xfee01000);
	cr_assert_eq(table_read(20), 0x11223344);
	v = 0;
	cr_assert(pci_mmio(bus, table() + 16, false, &v, 8));
	cr_assert_eq(v, 0x11223344fee01000);
	end();
}

Test(pci, msix_table_only_mask_bit_of_control_kept)
{
	begin_msix();
	table_write(12, 0xffffffff);
	cr_assert_eq(table_read(12), 1);
	table_write(16 * VECTORS, 0xffffffff); /* behind the table */
	cr_assert_eq(table_read(16 * VECTORS), 0);
	table_write(0x800, 0xffffffff); /* pending bits are read-only */
	cr_assert_eq(pending(), 0);
	end();
}

Test(pci, msix_access_of_wrong_width_counted_and_ignored)
{
	static const unsigned lens[] = { 1, 2, 3, 5, 6, 7 };
	uint64_t v = UINT64_MAX, count = counter_get(CTR_virtio_bad_access);

	begin_msix();
	for (unsigned i = 0; i < ARRAY_LEN(lens); i++)
		cr_assert(pci_mmio(bus, table(), true, &v, lens[i]));
	cr_assert(pci_mmio(bus, table() + 2, true, &v, 4));
	cr_assert(pci_mmio(bus, table() + 4, true, &v, 8));
	cr_assert_eq(table_read(0), 0);
	cr_assert_eq(counter_get(CTR_virtio_bad_access), count + ARRAY_LEN(lens) + 2);
	end();
}

/* ---- threads ------------------------------------------------------------------------ */

enum { ROUNDS = 2000 };

static void *raise_many(void *arg)
{
	for (unsigned i = 0; i < ROUNDS; i++)
		raise_vector(0);
	return NULL;
}

static void *move_bars(void *arg)
{
	for (unsigned i = 0; i < ROUNDS; i++) {
		ecam_write(1, PCI_BASE_ADDRESS_0, 0xd0000000 + (i % 8) * 0x4000, 4);
		ecam_read(1, 0x50 + 4 * (i % 8), 4);
	}
	return NULL;
}

/* I1 under race: whatever the order, what was signalled last arrives. */
Test(pci, msix_signal_while_masking_never_lost)
{
	pthread_t a, b;

	begin_msix();
	vector_set(0, 0x31, false);
	cr_assert_eq(pthread_create(&a, NULL, raise_many, NULL), 0);
	cr_assert_eq(pthread_create(&b, NULL, move_bars, NULL), 0);
	for (unsigned i = 0; i < ROUNDS; i++)
		table_write(12, i & 1);
	table_write(12, 1);
	delivered(0);
	raise_vector(0);
	pthread_join(a, NULL);
	pthread_join(b, NULL);
	cr_assert_eq(delivered(0), 0, "masked");
	table_write(12, 0);
	cr_assert_eq(delivered(0), 1);
	cr_assert_eq(pending(), 0);
	end();
}

/* ---- bus mastering --------------------------------------------------------------- */

/* The rings of queue 0 at 64 KiB, one device-writable buffer in it. */
static void drive(void)
{
	const uint64_t desc = 0x10000, avail = 0x11000, used = 0x12000;
	struct { uint32_t off, len; uint64_t v; } steps[] = {
		{ 0x14, 1, 0 }, { 0x14, 1, 3 }, { 0x08, 4, 1 }, { 0x0c, 4, 1 }, { 0x14, 1, 11 },
		{ 0x16, 2, 0 }, { 0x18, 2, 16 }, { 0x20, 8, desc }, { 0x28, 8, avail },
		{ 0x30, 8, used }, { 0x1c, 2, 1 }, { 0x14, 1, 15 },
	};
	struct vring_desc d = { .addr = 0x20000, .len = 64, .flags = VRING_DESC_F_WRITE };

	memcpy(fakeguest_at(&g, desc, sizeof d), &d, sizeof d);
	memset(fakeguest_at(&g, avail, 64), 0, 64);
	memset(fakeguest_at(&g, used, 256), 0, 256);
	*(uint16_t *)fakeguest_at(&g, avail + 2, 2) = 1;
	for (size_t i = 0; i < ARRAY_LEN(steps); i++)
		cr_assert(pci_mmio(bus, bar(1, 0) + steps[i].off, true, &steps[i].v, steps[i].len));
	cr_assert(virtio_running(&t->dev));
}

static uint16_t used_idx(void)
{
	return *(uint16_t *)fakeguest_at(&g, 0x12002, 2);
}

/* Linux takes Bus Master away for kexec and resets nothing: what were rings and
 * buffers is the next kernel's. */
Test(pci, bus_master_taken_away_memory_left_alone)
{
	static struct virtq_chain c;

	begin_msix();
	drive();
	ecam_write(1, PCI_COMMAND, PCI_COMMAND_MEMORY, 2);
	cr_assert_eq(virtq_pop(&t->dev.queues[0], &c), 0);
	virtq_push(&t->dev.queues[0], 0, 64);
	cr_assert_eq(used_idx(), 0, "the used ring was written");
	memory_on(1);
	virtq_push(&t->dev.queues[0], 0, 64);
	cr_assert_eq(used_idx(), 0, "back without a reset");
	drive();
	cr_assert_eq(virtq_pop(&t->dev.queues[0], &c), 1);
	virtq_push(&t->dev.queues[0], 0, 64);
	cr_assert_eq(used_idx(), 1);
	end();
}
