/*
 * vCPU threads: run the guest, emulate the register accesses it exits for, and
 * nothing else.  Queue notifications never come here (ioeventfd).
 *
 *            vcpu_start            machine_pause
 *   (new) ───────────────► RUN ◄──────────────────► PARKED
 *                           │      machine_resume      │
 *                           └────────► ended ◄─────────┘    quit set, kicked
 *
 * Owner: each thread its own struct vcpu; `m->lock` guards the pause protocol.
 *
 * Kicking: KVM_RUN may sleep for as long as the guest likes.  A kick sets
 * run->immediate_exit first and then signals: a signal that comes before KVM_RUN
 * is entered would otherwise be lost, with the flag KVM_RUN returns at once.
 */
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "vmm/internal.h"

#define KICK_SIGNAL SIGUSR1

#define MSR_IA32_MISC_ENABLE 0x1a0u
#define MISC_ENABLE_FAST_STRING 1u
#define MSR_MTRR_DEF_TYPE 0x2ffu
#define MTRR_ENABLE_WRITE_BACK ((1u << 11) | 6u)

#define CR0_PE 1u
#define CR0_ET (1u << 4)
#define CR0_PG (1u << 31)
#define CR4_PAE (1u << 5)
#define EFER_LME (1u << 8)
#define EFER_LMA (1u << 10)

static void on_kick(int sig)
{
	(void)sig; /* being delivered is all it does: KVM_RUN returns EINTR */
}

void vcpu_signals_init(void)
{
	struct sigaction sa = { .sa_handler = on_kick };

	VERIFY(sigaction(KICK_SIGNAL, &sa, NULL) == 0);
}

static int set_msrs(const struct vcpu *v, struct err *e)
{
	static const struct kvm_msr_entry entries[2] = {
		{ .index = MSR_IA32_MISC_ENABLE, .data = MISC_ENABLE_FAST_STRING },
		{ .index = MSR_MTRR_DEF_TYPE, .data = MTRR_ENABLE_WRITE_BACK },
	};
	union {
		struct kvm_msrs head;
		uint8_t room[sizeof(struct kvm_msrs) + sizeof entries];
	} msrs = { .head.nmsrs = 2 };
	int n;

	memcpy(msrs.room + sizeof msrs.head, entries, sizeof entries);
	n = ioctl(v->fd, KVM_SET_MSRS, &msrs);
	if (n < 0)
		return err_sys(e, -errno, "vCPU %u: setting MSRs", v->index);
	if (n != 2)
		return err_set(e, -EIO, "vCPU %u: KVM refuses MSR %#x", v->index,
			       entries[n].index);
	return 0;
}

int vcpu_init(struct vcpu *v, struct machine *m, unsigned index, struct err *e)
{
	const struct kvm *k = &m->kvm;
	int rc;

	*v = (struct vcpu){ .m = m, .index = index, .fd = -1 };
	pthread_mutex_init(&v->place_lock, NULL);
	v->fd = ioctl(k->vm_fd, KVM_CREATE_VCPU, (unsigned long)index);
	if (v->fd < 0)
		return err_sys(e, -errno, "KVM: creating vCPU %u", index);
	v->run = mmap(NULL, k->run_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, v->fd, 0);
	if (v->run == MAP_FAILED) {
		v->run = NULL;
		return err_sys(e, -errno, "vCPU %u: mapping its state", index);
	}
	rc = cpuid_set(k, v->fd, index, m->cfg->cpus, e);
	if (!rc)
		rc = set_msrs(v, e);
	return rc;
}

static void set_flat_segments(struct kvm_sregs *s, bool long_mode)
{
	struct kvm_segment code = {
		.base = 0, .limit = 0xffffffff, .selector = 0x10, .type = 0xb,
		.present = 1, .s = 1, .g = 1, .l = long_mode, .db = !long_mode,
	};
	struct kvm_segment data = code;

	data.type = 0x3;
	data.selector = 0x18;
	data.l = 0;
	data.db = 1;
	s->cs = code;
	s->ds = s->es = s->fs = s->gs = s->ss = data;
	s->tr = (struct kvm_segment){ .limit = 0x67, .selector = 0x20, .type = 0xb, .present = 1 };
	s->gdt.base = LAYOUT_GDT;
	s->gdt.limit = 5 * 8 - 1;
	s->idt.base = 0;
	s->idt.limit = 0;
}

/* 64-bit boot protocol (Linux Documentation/arch/x86/boot.rst): long mode, flat
 * segments at 0x10/0x18, identity-mapped page tables, interrupts off, RSI at the
 * zero page.  PVH: 32-bit protected mode, paging off, RBX at the start info. */
int vcpu_set_boot_state(struct vcpu *v, uint64_t rip, uint64_t rsi, bool pvh, struct err *e)
{
	struct kvm_sregs s;
	struct kvm_regs r = { .rip = rip, .rflags = 2, .rsp = LAYOUT_ZERO_PAGE };

	if (ioctl(v->fd, KVM_GET_SREGS, &s) < 0)
		return err_sys(e, -errno, "vCPU %u: reading its state", v->index);
	set_flat_segments(&s, !pvh);
	s.cr0 = CR0_PE | CR0_ET;
	if (pvh) {
		r.rbx = rsi;
		s.cr4 = 0;
	} else {
		r.rsi = rsi;
		s.cr3 = LAYOUT_PML4;
		s.cr4 = CR4_PAE;
		s.cr0 |= CR0_PG;
		s.efer = EFER_LME | EFER_LMA;
	}
	if (ioctl(v->fd, KVM_SET_SREGS, &s) < 0 || ioctl(v->fd, KVM_SET_REGS, &r) < 0)
		return err_sys(e, -errno, "vCPU %u: setting its start state", v->index);
	return 0;
}

/* Parks while paused; false when the thread is to end. */
static bool may_run(struct vcpu *v)
{
	struct machine *m = v->m;
	bool run;

	pthread_mutex_lock(&m->lock);
	while (m->paused && !m->quit) {
		if (!v->parked) {
			v->parked = true;
			m->parked++;
			pthread_cond_broadcast(&m->cond);
		}
		pthread_cond_wait(&m->cond, &m->lock);
	}
	if (v->parked) {
		v->parked = false;
		m->parked--;
		/* Tells the guest's watchdogs that time was lost. The guest may not
		 * have set its clock up yet: EINVAL then, and nothing to tell. */
		ioctl(v->fd, KVM_KVMCLOCK_CTRL, 0);
	}
	run = !m->quit;
	/* Under the lock, so that a kick that follows a change of state is not
	 * undone here: whoever sets quit or paused kicks after unlocking. */
	if (run)
		__atomic_store_n(&v->run->immediate_exit, 0, __ATOMIC_SEQ_CST);
	pthread_mutex_unlock(&m->lock);
	return run;
}

static void act_on(struct machine *m, enum platform_act act)
{
	if (act == PLATFORM_POWEROFF)
		machine_end(m, VM_END_POWEROFF, "guest powered off");
	else if (act == PLATFORM_RESET)
		machine_end(m, VM_END_RESET, "guest asked for a reset");
}

static bool port_access(struct machine *m, uint16_t port, bool write, void *data, unsigned len)
{
	enum platform_act act = PLATFORM_NONE;
	bool hit = true;

	if (port >= PORT_COM1 && port < PORT_COM1 + 8) {
		for (unsigned i = 0; i < len && port + i < PORT_COM1 + 8; i++)
			serial_io(m->serial, port - PORT_COM1 + i, write, (uint8_t *)data + i);
	} else {
		hit = platform_port(&m->platform, port, write, data, len, &act) ||
		      pci_port(m->pci, port, write, data, len);
	}
	act_on(m, act);
	return hit;
}

static void exit_io(struct vcpu *v)
{
	struct kvm_run *run = v->run;
	uint8_t *data = (uint8_t *)run + run->io.data_offset;
	bool write = run->io.direction == KVM_EXIT_IO_OUT;

	counter_inc(CTR_vcpu_pio);
	for (uint32_t i = 0; i < run->io.count; i++, data += run->io.size) {
		if (!write)
			memset(data, 0xff, run->io.size);
		if (!port_access(v->m, run->io.port, write, data, run->io.size))
			counter_inc(CTR_vcpu_unknown_pio);
	}
}

static void exit_mmio(struct vcpu *v)
{
	struct kvm_run *run = v->run;

	counter_inc(CTR_vcpu_mmio);
	if (!run->mmio.is_write)
		memset(run->mmio.data, 0xff, sizeof run->mmio.data);
	if (!pci_mmio(v->m->pci, run->mmio.phys_addr, run->mmio.is_write, run->mmio.data,
		      run->mmio.len))
		counter_inc(CTR_vcpu_unknown_mmio);
}

static void report_failure(struct vcpu *v)
{
	const struct kvm_run *run = v->run;
	struct kvm_regs regs = { .rip = 0 };

	ioctl(v->fd, KVM_GET_REGS, &regs);
	if (run->exit_reason == KVM_EXIT_FAIL_ENTRY)
		machine_end(v->m, VM_END_ERROR,
			    "vCPU %u: the CPU refuses to enter the guest (reason %#llx) at %#llx",
			    v->index,
			    (unsigned long long)run->fail_entry.hardware_entry_failure_reason,
			    (unsigned long long)regs.rip);
	else if (run->exit_reason == KVM_EXIT_INTERNAL_ERROR)
		machine_end(v->m, VM_END_ERROR,
			    "vCPU %u: KVM cannot emulate the guest (suberror %u) at %#llx",
			    v->index, run->internal.suberror, (unsigned long long)regs.rip);
	else
		machine_end(v->m, VM_END_ERROR, "vCPU %u: unexpected exit %u at %#llx", v->index,
			    run->exit_reason, (unsigned long long)regs.rip);
}

static void handle_exit(struct vcpu *v)
{
	counter_inc(CTR_vcpu_exits);
	switch (v->run->exit_reason) {
	case KVM_EXIT_IO:
		exit_io(v);
		break;
	case KVM_EXIT_MMIO:
		exit_mmio(v);
		break;
	case KVM_EXIT_INTR:
	case KVM_EXIT_IRQ_WINDOW_OPEN:
		break;
	case KVM_EXIT_SHUTDOWN:
		machine_end(v->m, VM_END_RESET, "vCPU %u: triple fault", v->index);
		break;
	case KVM_EXIT_SYSTEM_EVENT:
		machine_end(v->m, v->run->system_event.type == KVM_SYSTEM_EVENT_SHUTDOWN ?
			    VM_END_POWEROFF : VM_END_RESET, "system event %u",
			    v->run->system_event.type);
		break;
	default:
		report_failure(v);
	}
}

static void set_live(struct vcpu *v, bool is_live)
{
	pthread_mutex_lock(&v->place_lock);
	v->is_live = is_live;
	pthread_mutex_unlock(&v->place_lock);
}

int vcpu_hold(struct vcpu *v, int cpu)
{
	int rc = -ESRCH;

	pthread_mutex_lock(&v->place_lock);
	if (v->is_live && cpu >= 0) {
		rc = thread_hold(&v->hold, atomic_load(&v->tid), cpu);
	} else if (v->is_live) {
		thread_release(&v->hold, atomic_load(&v->tid));
		rc = 0;
	}
	pthread_mutex_unlock(&v->place_lock);
	return rc;
}

static void *vcpu_main(void *arg)
{
	struct vcpu *v = arg;
	char name[16];
	sigset_t set;

	role_set(ROLE_VCPU);
	snprintf(name, sizeof name, "vcpu%u", v->index);
	pthread_setname_np(pthread_self(), name);
	atomic_store(&v->cpu_word, thread_cpu_word());
	atomic_store(&v->tid, (pid_t)syscall(SYS_gettid));
	set_live(v, true);
	sigfillset(&set);
	sigdelset(&set, KICK_SIGNAL);
	pthread_sigmask(SIG_SETMASK, &set, NULL);

	while (may_run(v)) {
		int rc = ioctl(v->fd, KVM_RUN, 0);

		if (rc == 0)
			handle_exit(v);
		else if (errno != EINTR && errno != EAGAIN)
			machine_end(v->m, VM_END_ERROR, "vCPU %u: KVM_RUN: %s", v->index,
				    strerror(errno));
	}
	atomic_store(&v->cpu_word, NULL);
	set_live(v, false);
	return NULL;
}

int vcpu_start(struct vcpu *v, struct err *e)
{
	sigset_t all, old;
	int rc;

	/* The thread starts with everything blocked and opens the kick itself, so
	 * that no signal of the process is ever handled on a vCPU thread. */
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	rc = pthread_create(&v->thread, NULL, vcpu_main, v);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	if (rc)
		return err_sys(e, -rc, "vCPU %u: starting its thread", v->index);
	v->started = true;
	return 0;
}

void vcpu_kick(struct vcpu *v)
{
	if (!v->started)
		return;
	__atomic_store_n(&v->run->immediate_exit, 1, __ATOMIC_SEQ_CST);
	pthread_kill(v->thread, KICK_SIGNAL);
}

void vcpu_fini(struct vcpu *v)
{
	if (!v->m)
		return; /* never initialised */
	if (v->started)
		pthread_join(v->thread, NULL);
	if (v->run)
		munmap(v->run, v->m->kvm.run_bytes);
	if (v->fd >= 0)
		close(v->fd);
	v->m = NULL;
}
