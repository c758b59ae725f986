/*
 * The bus as a guest reaches it: ports, ECAM, BARs wherever they are now, and
 * interrupts in between.  KVM is tests/unit/fakekvm.h.
 *
 * Input: records of 8 bytes: what, width, two for where, four for the value.
 */
#include <linux/pci_regs.h>

#include "tests/lib/fakeguest.h"
#include "tests/lib/testdev.h"
#include "tests/unit/fakekvm.h"

#define RECORD_BYTES 8u
#define DEVICES 3u

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static struct fakeguest g;
static struct kvm kvm;
static struct pci_bus *bus;
static struct testdev *devs[DEVICES];

struct access {
	uint8_t what, width;
	uint16_t where;
	uint32_t value;
};

static uint32_t ecam_read(unsigned slot, unsigned off)
{
	uint32_t v = 0;

	VERIFY(pci_mmio(bus, LAYOUT_ECAM + (slot << 15) + off, false, &v, 4));
	return v;
}

static void do_port(const struct access *a, bool write)
{
	static const unsigned widths[] = { 1, 2, 4 };
	uint32_t v = a->value;

	pci_port(bus, (uint16_t)(0xcf0 + a->where % 32), write, &v, widths[a->width % 3]);
}

static void do_mmio(uint64_t addr, const struct access *a, bool write)
{
	uint8_t v[8];

	memcpy(v, &a->value, 4);
	memcpy(v + 4, &a->value, 4);
	pci_mmio(bus, addr, write, v, 1 + a->width % 8);
}

static void raise_line(const struct access *a)
{
	struct virtio_dev *dev = &devs[a->where % DEVICES]->dev;

	pthread_mutex_lock(&dev->lock);
	dev->signal_queue(dev->transport, (uint16_t)a->value);
	pthread_mutex_unlock(&dev->lock);
}

static void do_one(const struct access *a)
{
	unsigned slot = 1 + a->where % DEVICES;
	bool write = a->what & 1;

	switch (a->what / 2 % 6) {
	case 0:
		do_port(a, write);
		break;
	case 1:
		do_mmio(LAYOUT_ECAM + (slot << 15) + (a->where / 4 % 256), a, write);
		break;
	case 2:
		do_mmio(LAYOUT_ECAM - 16 + (uint64_t)a->where * 17, a, write);
		break;
	case 3: /* a register of a device, wherever it has been moved to */
		do_mmio(ecam_read(slot, PCI_BASE_ADDRESS_0) + a->where / 4 % 0x4010, a, write);
		break;
	case 4:
		do_mmio(ecam_read(slot, PCI_BASE_ADDRESS_1) + a->where / 4 % 0x1010, a, write);
		break;
	default:
		raise_line(a);
		fakeguest_drain(&g, 4);
	}
}

static void begin(void)
{
	fakeguest_init(&g);
	kvm_init(&kvm, g.ram, NULL);
	VERIFY(pci_create(&bus, &kvm, NULL) == 0);
	for (unsigned i = 0; i < DEVICES; i++) {
		devs[i] = testdev_create(&g.env, i + 1, 16);
		VERIFY(pci_add_virtio(bus, &devs[i]->dev, NULL) == 0);
		do_mmio(LAYOUT_ECAM + ((i + 1) << 15) + PCI_COMMAND,
			&(struct access){ .width = 1, .value = PCI_COMMAND_MEMORY }, true);
	}
}

static void end(void)
{
	for (unsigned i = 0; i < DEVICES; i++)
		VERIFY(ecam_read(i + 1, PCI_VENDOR_ID) ==
		       ((0x1040u + 42) << 16 | 0x1af4u));
	pci_destroy(&bus);
	for (unsigned i = 0; i < DEVICES; i++) {
		struct virtio_dev *dev = &devs[i]->dev;

		virtio_dev_destroy(&dev);
	}
	VERIFY(fakekvm_count(fakekvm.io) == 0 && fakekvm_count(fakekvm.irq) == 0);
	kvm_fini(&kvm);
	fakeguest_fini(&g);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	log_init("fuzz", 2, LOG_ERROR);
	begin();
	for (; size >= RECORD_BYTES; data += RECORD_BYTES, size -= RECORD_BYTES) {
		struct access a = { .what = data[0], .width = data[1] };

		memcpy(&a.where, data + 2, 2);
		memcpy(&a.value, data + 4, 4);
		do_one(&a);
	}
	end();
	return 0;
}
