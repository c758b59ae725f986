/*
 * KVM: the VM's file descriptors, its memslots, and interrupt routing.
 *
 * Source: Linux Documentation/virt/kvm/api.rst.  Interrupts reach the guest by
 * irqfd only (MSI, serial) except the level-triggered SCI, which needs
 * KVM_IRQ_LINE.  GSIs 0..23 are the IOAPIC's and PICs' pins, MSIs start at 24.
 *
 * Threads: kvm_init/fini on the loop thread; routing from vCPU threads under
 * `lock`; kvm_irq_line from any.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "vmm/internal.h"

static const struct {
	int cap;
	const char *name;
} needed[] = {
	{ KVM_CAP_IRQCHIP, "in-kernel interrupt controller" },
	{ KVM_CAP_USER_MEMORY, "user memory" },
	{ KVM_CAP_PIT2, "in-kernel timer" },
	{ KVM_CAP_IRQ_ROUTING, "interrupt routing" },
	{ KVM_CAP_IRQFD, "irqfd" },
	{ KVM_CAP_IOEVENTFD, "ioeventfd" },
	{ KVM_CAP_IOEVENTFD_ANY_LENGTH, "ioeventfd of any length" },
	{ KVM_CAP_IMMEDIATE_EXIT, "immediate exit" },
	{ KVM_CAP_SIGNAL_MSI, "MSI" },
	{ KVM_CAP_EXT_CPUID, "CPUID" },
};

static int check_caps(const struct kvm *k, struct err *e)
{
	int version = ioctl(k->dev_fd, KVM_GET_API_VERSION, 0);

	if (version != KVM_API_VERSION)
		return err_set(e, -ENOTSUP, "/dev/kvm: API version %d, 12 needed", version);
	for (size_t i = 0; i < ARRAY_LEN(needed); i++)
		if (ioctl(k->dev_fd, KVM_CHECK_EXTENSION, needed[i].cap) <= 0)
			return err_set(e, -ENOTSUP, "/dev/kvm: this kernel's KVM has no %s",
				       needed[i].name);
	return 0;
}

static int create_vm(struct kvm *k, struct err *e)
{
	struct kvm_pit_config pit = { .flags = KVM_PIT_SPEAKER_DUMMY };
	uint64_t identity = LAYOUT_IDENTITY;

	/* A signal that arrives while KVM allocates makes it give up with EINTR. */
	do {
		k->vm_fd = ioctl(k->dev_fd, KVM_CREATE_VM, 0);
	} while (k->vm_fd < 0 && errno == EINTR);
	if (k->vm_fd < 0)
		return err_sys(e, -errno, "KVM: creating a VM");
	/* Only Intel without unrestricted guest uses these; elsewhere they are ignored. */
	if (ioctl(k->vm_fd, KVM_SET_IDENTITY_MAP_ADDR, &identity) < 0 ||
	    ioctl(k->vm_fd, KVM_SET_TSS_ADDR, (unsigned long)LAYOUT_TSS) < 0)
		return err_sys(e, -errno, "KVM: placing its reserved pages");
	if (ioctl(k->vm_fd, KVM_CREATE_IRQCHIP, 0) < 0)
		return err_sys(e, -errno, "KVM: creating the interrupt controllers");
	if (ioctl(k->vm_fd, KVM_CREATE_PIT2, &pit) < 0)
		return err_sys(e, -errno, "KVM: creating the timer");
	return 0;
}

static int add_slots(const struct kvm *k, const struct ram *ram, struct err *e)
{
	for (unsigned i = 0; i < ram_slot_count(ram); i++) {
		const struct ram_slot *s = ram_slot(ram, i);
		struct kvm_userspace_memory_region r = {
			.slot = i,
			.guest_phys_addr = s->base.v,
			.memory_size = s->size_bytes,
			.userspace_addr = (uintptr_t)s->hva,
		};

		if (ioctl(k->vm_fd, KVM_SET_USER_MEMORY_REGION, &r) < 0)
			return err_sys(e, -errno, "KVM: guest RAM of %llu bytes at %#llx",
				       (unsigned long long)s->size_bytes,
				       (unsigned long long)s->base.v);
	}
	return 0;
}

static void route_pin(struct kvm_irq_routing *r, unsigned chip, unsigned pin, unsigned gsi)
{
	r->entries[r->nr++] = (struct kvm_irq_routing_entry){
		.gsi = gsi,
		.type = KVM_IRQ_ROUTING_IRQCHIP,
		.u.irqchip = { .irqchip = chip, .pin = pin },
	};
}

/* KVM takes the whole table at a time: pins as KVM_CREATE_IRQCHIP sets them,
 * then the MSIs in use. */
static int set_routing(const struct kvm *k)
{
	struct kvm_irq_routing *r;
	int rc = 0;

	r = calloc(1, sizeof *r + (GSI_MAX + 40) * sizeof r->entries[0]);
	if (!r)
		return -ENOMEM;
	for (unsigned i = 0; i < 8; i++)
		route_pin(r, KVM_IRQCHIP_PIC_MASTER, i, i);
	for (unsigned i = 0; i < 8; i++)
		route_pin(r, KVM_IRQCHIP_PIC_SLAVE, i, i + 8);
	for (unsigned i = 0; i < GSI_MSI_BASE; i++) /* pin 2 is the timer, wired to GSI 0 */
		if (i != 2)
			route_pin(r, KVM_IRQCHIP_IOAPIC, i == 0 ? 2 : i, i);
	for (unsigned i = GSI_MSI_BASE; i < k->next_gsi; i++)
		if (k->msi_used[i])
			r->entries[r->nr++] = k->msi[i];
	if (ioctl(k->vm_fd, KVM_SET_GSI_ROUTING, r) < 0)
		rc = -errno;
	free(r);
	return rc;
}

int kvm_init(struct kvm *k, const struct ram *ram, struct err *e)
{
	int rc, run_bytes;

	*k = (struct kvm){ .dev_fd = -1, .vm_fd = -1, .next_gsi = GSI_MSI_BASE };
	pthread_mutex_init(&k->lock, NULL);
	k->dev_fd = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	if (k->dev_fd < 0) {
		rc = err_sys(e, -errno, "/dev/kvm");
		goto out;
	}
	rc = check_caps(k, e);
	if (!rc)
		rc = create_vm(k, e);
	if (!rc)
		rc = add_slots(k, ram, e);
	/* What KVM starts with has the timer on pin 0, where the MADT does not say. */
	if (!rc) {
		rc = set_routing(k);
		if (rc)
			err_sys(e, rc, "KVM: routing interrupts");
	}
	if (rc)
		goto out;
	run_bytes = ioctl(k->dev_fd, KVM_GET_VCPU_MMAP_SIZE, 0);
	if (run_bytes < (int)sizeof(struct kvm_run))
		rc = err_set(e, -ENOTSUP, "KVM: vCPU state of %d bytes", run_bytes);
	else
		k->run_bytes = (size_t)run_bytes;
out:
	if (rc)
		kvm_fini(k);
	return rc;
}

void kvm_fini(struct kvm *k)
{
	if (k->vm_fd >= 0)
		close(k->vm_fd);
	if (k->dev_fd >= 0)
		close(k->dev_fd);
	k->vm_fd = k->dev_fd = -1;
	pthread_mutex_destroy(&k->lock);
}

int kvm_gsi_alloc(struct kvm *k)
{
	int gsi = -ENOSPC;

	pthread_mutex_lock(&k->lock);
	if (k->next_gsi < GSI_MAX)
		gsi = (int)k->next_gsi++;
	pthread_mutex_unlock(&k->lock);
	return gsi;
}

int kvm_gsi_route_msi(struct kvm *k, unsigned gsi, bool on, uint64_t addr, uint32_t data)
{
	struct kvm_irq_routing_entry want = {
		.gsi = gsi,
		.type = KVM_IRQ_ROUTING_MSI,
		.u.msi = { .address_lo = (uint32_t)addr,
			   .address_hi = (uint32_t)(addr >> 32), .data = data },
	};
	int rc = 0;

	VERIFY(gsi >= GSI_MSI_BASE && gsi < GSI_MAX);
	pthread_mutex_lock(&k->lock);
	/* Each change costs an RCU grace period in the kernel: only real ones. */
	if (k->msi_used[gsi] != on || (on && memcmp(&k->msi[gsi], &want, sizeof want) != 0)) {
		k->msi[gsi] = want;
		k->msi_used[gsi] = on;
		rc = set_routing(k);
	}
	pthread_mutex_unlock(&k->lock);
	return rc;
}

int kvm_irqfd(struct kvm *k, int fd, unsigned gsi, bool on)
{
	struct kvm_irqfd req = {
		.fd = (uint32_t)fd,
		.gsi = gsi,
		.flags = on ? 0 : KVM_IRQFD_FLAG_DEASSIGN,
	};

	return ioctl(k->vm_fd, KVM_IRQFD, &req) < 0 ? -errno : 0;
}

int kvm_irq_line(struct kvm *k, unsigned gsi, bool level)
{
	struct kvm_irq_level req = { .irq = gsi, .level = level };

	return ioctl(k->vm_fd, KVM_IRQ_LINE, &req) < 0 ? -errno : 0;
}

int kvm_ioeventfd(struct kvm *k, int fd, uint64_t addr, bool on)
{
	struct kvm_ioeventfd req = {
		.addr = addr,
		.len = 0, /* any */
		.fd = fd,
		.flags = on ? 0 : KVM_IOEVENTFD_FLAG_DEASSIGN,
	};

	return ioctl(k->vm_fd, KVM_IOEVENTFD, &req) < 0 ? -errno : 0;
}
