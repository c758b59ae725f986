/*
 * One boot of the VM: RAM, KVM, PCI, devices, vCPUs, built in that order and
 * taken down in reverse.  A reset of the guest is a new machine, so nothing of a
 * boot can leak into the next.
 *
 *   machine_create ──► (built) ──machine_run──► RUNNING ◄──pause/resume──► PAUSED
 *                                                  │                         │
 *                              machine_end (first call counts) ──────────────┘
 *                                                  ▼
 *                            ENDED: quit set, end_fd readable ──► machine_destroy
 *
 * Threads: everything on the loop thread but machine_end(), which any thread may
 * call.  `lock` guards the pause protocol and the end.
 */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "vmm/internal.h"

const char *vm_end_name(enum vm_end end)
{
	static const char *const names[] = {
		[VM_END_NONE] = "running", [VM_END_POWEROFF] = "poweroff",
		[VM_END_RESET] = "reset", [VM_END_KILLED] = "killed", [VM_END_ERROR] = "error",
	};

	return names[end];
}

/* ---- devices ---------------------------------------------------------------- */

static int attach(struct machine *m, struct virtio_dev *dev, struct err *e)
{
	VERIFY(m->dev_count < ARRAY_LEN(m->devs));
	m->devs[m->dev_count++] = dev;
	return pci_add_virtio(m->pci, dev, e);
}

static int add_disks(struct machine *m, const struct virtio_env *env, struct err *e)
{
	for (unsigned i = 0; i < m->cfg->disk_count; i++) {
		const struct vm_disk *d = &m->cfg->disks[i];
		struct virtio_blk_config cfg = {
			.path = d->path, .serial = d->serial[0] ? d->serial : NULL,
			.readonly = d->readonly, .direct = d->direct,
		};
		struct virtio_dev *dev;
		char label[16];
		int rc;

		snprintf(label, sizeof label, "disk%u", i);
		rc = virtio_blk_create(&dev, env, label, &cfg, e);
		if (!rc)
			rc = attach(m, dev, e);
		if (rc)
			return rc;
	}
	return 0;
}

static int add_nets(struct machine *m, const struct virtio_env *env, struct err *e)
{
	for (unsigned i = 0; i < m->cfg->net_count; i++) {
		const struct vm_net *n = &m->cfg->nets[i];
		struct virtio_net_config cfg = { .tap = n->tap, .fd = n->fd, .vm_name = m->cfg->name };
		struct virtio_dev *dev;
		char label[16];
		int rc;

		memcpy(cfg.mac, n->mac, sizeof cfg.mac);
		snprintf(label, sizeof label, "net%u", i);
		rc = virtio_net_create(&dev, env, label, &cfg, e);
		if (!rc)
			rc = attach(m, dev, e);
		if (rc)
			return rc;
	}
	return 0;
}

static void hvc_out(void *opaque, const void *buf, size_t len)
{
	const struct machine *m = opaque;

	console_output(m->hvc, buf, len);
}

static void hvc_ready(void *opaque)
{
	const struct machine *m = opaque;

	console_input_ready(m->hvc);
}

static size_t console_to_hvc(void *opaque, const void *buf, size_t len)
{
	return virtio_console_input(opaque, buf, len);
}

static int add_small(struct machine *m, const struct virtio_env *env, struct err *e)
{
	struct virtio_console_config con = { .out = hvc_out, .ready = hvc_ready, .opaque = m };
	struct virtio_dev *dev;
	int rc;

	rc = virtio_balloon_create(&m->balloon, env, &m->cfg->balloon, e);
	if (!rc)
		rc = attach(m, m->balloon, e);
	if (!rc && m->cfg->rng) {
		rc = virtio_rng_create(&dev, env, e);
		if (!rc)
			rc = attach(m, dev, e);
	}
	if (!rc && m->cfg->console) {
		rc = virtio_console_create(&m->vcon, env, &con, e);
		if (!rc)
			rc = attach(m, m->vcon, e);
	}
	return rc;
}

/* The device table of a VM, in PCI slot order: disks first, so that /dev/vda
 * does not depend on what else there is. */
static int add_devices(struct machine *m, struct err *e)
{
	struct virtio_env env = { .ram = m->ram, .ops = &loop_env_ops, .opaque = m->loop };
	int rc = add_disks(m, &env, e);

	if (!rc)
		rc = add_nets(m, &env, e);
	if (!rc)
		rc = add_small(m, &env, e);
	return rc;
}

/* ---- life ------------------------------------------------------------------- */

static size_t console_to_serial(void *opaque, const void *buf, size_t len)
{
	return serial_input(opaque, buf, len);
}

static int create_cpus(struct machine *m, struct err *e)
{
	int rc = 0;

	for (unsigned i = 0; i < m->cfg->cpus && !rc; i++)
		rc = vcpu_init(&m->vcpus[i], m, i, e);
	return rc;
}

static int load_guest(struct machine *m, struct err *e)
{
	struct boot_entry entry;
	uint64_t rsdp = 0;
	int rc = acpi_write(m->ram, m->cfg->cpus, &rsdp, e);

	if (!rc)
		rc = boot_load(m->ram, m->cfg, rsdp, &entry, e);
	if (!rc)
		rc = vcpu_set_boot_state(&m->vcpus[0], entry.rip, entry.rsi, entry.pvh, e);
	if (!rc)
		m->loaded = entry.loaded;
	return rc;
}

static int build(struct machine *m, struct err *e)
{
	struct ram_config rc_cfg = { .size_bytes = m->cfg->memory_bytes, .huge = m->cfg->huge };
	int rc = ram_create(&m->ram, &rc_cfg, e);

	if (rc)
		return rc;
	rc = kvm_init(&m->kvm, m->ram, e);
	if (rc)
		return rc;
	platform_init(&m->platform, &m->kvm);
	rc = pci_create(&m->pci, &m->kvm, e);
	if (!rc)
		rc = serial_create(&m->serial, m->console, &m->kvm, e);
	if (!rc)
		rc = add_devices(m, e);
	if (!rc)
		rc = create_cpus(m, e);
	if (!rc)
		rc = load_guest(m, e);
	if (!rc)
		rc = memory_init(m, e);
	return rc;
}

int machine_create(struct machine **out, const struct vm_config *cfg, struct loop *l,
		   struct console *con, struct console *hvc, struct err *e)
{
	struct machine *m = calloc(1, sizeof *m);
	int rc;

	if (!m)
		return err_set(e, -ENOMEM, "VM %s: out of memory", cfg->name);
	m->cfg = cfg;
	m->loop = l;
	m->console = con;
	m->hvc = hvc;
	m->kvm.vm_fd = m->kvm.dev_fd = -1;
	pthread_mutex_init(&m->lock, NULL);
	pthread_cond_init(&m->cond, NULL);
	m->end_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	rc = m->end_fd < 0 ? err_sys(e, -errno, "VM %s: eventfd", cfg->name) : build(m, e);
	if (rc) {
		machine_destroy(&m);
		return rc;
	}
	console_attach(con, &(struct console_sink){ console_to_serial, m->serial });
	if (m->vcon)
		console_attach(hvc, &(struct console_sink){ console_to_hvc, m->vcon });
	*out = m;
	return 0;
}

static void quit_vcpus(struct machine *m)
{
	pthread_mutex_lock(&m->lock);
	m->quit = true;
	pthread_cond_broadcast(&m->cond);
	pthread_mutex_unlock(&m->lock);
	for (unsigned i = 0; i < VM_MAX_CPUS; i++)
		if (m->vcpus[i].m)
			vcpu_kick(&m->vcpus[i]);
}

void machine_destroy(struct machine **mp)
{
	struct machine *m = *mp;

	if (!m)
		return;
	quit_vcpus(m);
	for (unsigned i = 0; i < VM_MAX_CPUS; i++)
		vcpu_fini(&m->vcpus[i]);
	memory_give_up(m);
	console_attach(m->console, &(struct console_sink){ NULL, NULL });
	if (m->vcon)
		console_attach(m->hvc, &(struct console_sink){ NULL, NULL });
	/* The transports go first: no interrupt is raised from here on, while the
	 * devices still wait for I/O that targets guest RAM. */
	pci_destroy(&m->pci);
	while (m->dev_count)
		virtio_dev_destroy(&m->devs[--m->dev_count]);
	serial_destroy(&m->serial);
	if (m->kvm.vm_fd >= 0) {
		platform_fini(&m->platform);
		kvm_fini(&m->kvm);
	}
	memory_fini(m);
	ram_destroy(&m->ram);
	if (m->end_fd >= 0)
		close(m->end_fd);
	pthread_cond_destroy(&m->cond);
	pthread_mutex_destroy(&m->lock);
	free(m);
	*mp = NULL;
}

int machine_run(struct machine *m, struct err *e)
{
	int rc = 0;

	for (unsigned i = 0; i < m->cfg->cpus && !rc; i++)
		rc = vcpu_start(&m->vcpus[i], e);
	return rc;
}

int machine_pause(struct machine *m)
{
	bool quit;

	pthread_mutex_lock(&m->lock);
	m->paused = true;
	pthread_mutex_unlock(&m->lock);
	for (unsigned i = 0; i < m->cfg->cpus; i++)
		vcpu_kick(&m->vcpus[i]);
	pthread_mutex_lock(&m->lock);
	while (m->parked < m->cfg->cpus && !m->quit)
		pthread_cond_wait(&m->cond, &m->lock);
	quit = m->quit;
	pthread_mutex_unlock(&m->lock);
	return quit ? -ESHUTDOWN : 0;
}

void machine_resume(struct machine *m)
{
	pthread_mutex_lock(&m->lock);
	m->paused = false;
	pthread_cond_broadcast(&m->cond);
	pthread_mutex_unlock(&m->lock);
}

void machine_end(struct machine *m, enum vm_end end, const char *fmt, ...)
{
	uint64_t one = 1;
	va_list ap;
	ssize_t n;

	pthread_mutex_lock(&m->lock);
	/* A kill that comes just after a reset holds: else the VM would boot again. */
	if (m->end == VM_END_NONE || (m->end == VM_END_RESET && end == VM_END_KILLED)) {
		m->end = end;
		va_start(ap, fmt);
		vsnprintf(m->end_detail, sizeof m->end_detail, fmt, ap);
		va_end(ap);
	}
	m->quit = true;
	pthread_cond_broadcast(&m->cond);
	pthread_mutex_unlock(&m->lock);
	n = write(m->end_fd, &one, sizeof one);
	(void)n; /* readable already: the loop knows */
}

enum vm_end machine_ended(struct machine *m, char *detail, size_t len)
{
	enum vm_end end;

	pthread_mutex_lock(&m->lock);
	end = m->end;
	snprintf(detail, len, "%s", m->end_detail);
	pthread_mutex_unlock(&m->lock);
	return end;
}
