/*
 * What benchmarks with real guests share: starting the same guest in brim and in
 * QEMU, hearing and typing on its serial console, moving its balloon, and reading
 * what its VMM costs the host.
 *
 *	vmlib_begin(&b);
 *	struct vm *vm = vm_start(&(struct vm_spec){ .vmm = VMM_BRIM, ... });
 *	uint64_t at = vm_wait_text(vm, "guest: ready", 60);
 *	vm_end(&vm);
 *
 * What comes from where: kernels and initial RAM disks from $BRIM_KERNELS and
 * $BRIM_IMAGES, brim from $BRIM_BIN or build/bin, QEMU from PATH.  In the emulated
 * host they are all set; see bench/README.md.
 *
 * Threads: one.  Every wait is in here, and hears SIGINT, SIGTERM and SIGHUP: then,
 * and at every other exit, the VMs are killed and the files removed.  Errors end
 * the program with a sentence.
 *
 * Invariant: no VM outlives the program, however it ends: what is started dies with
 * its parent.
 */
#ifndef BRIM_BENCH_VMLIB_H
#define BRIM_BENCH_VMLIB_H

#include <sys/types.h>

#include "bench/benchlib.h"

enum vmm {
	VMM_BRIM,
	VMM_MICROVM,      /* QEMU -M microvm with PCI and ACPI */
	VMM_MICROVM_MMIO, /* QEMU -M microvm as it comes: virtio-mmio */
	VMM_Q35,          /* QEMU -M q35 */
};

enum vm_pages {
	PAGES_USUAL, /* what the VMM does when nobody says: brim small, QEMU huge ones */
	PAGES_SMALL,
	PAGES_HUGE,
};

struct vm_spec {
	enum vmm vmm;
	const char *series;  /* 6.12, 6.1: kernel, and the initrd that goes with it */
	const char *kernel;  /* vmlinux, vmlinuz */
	const char *cmdline; /* all of it */
	uint64_t memory_bytes;
	unsigned cpus;
	enum vm_pages pages;
	bool reporting;      /* free page reporting */
	bool control;        /* vm_balloon_*() will be used */
};

struct vm;

/* The VMM's own memory is that of its process less that of guest RAM. */
struct vm_memory {
	uint64_t ram_bytes, own_bytes, own_private_bytes;
	uint64_t helper_bytes; /* brim: the `brim run` beside it, all of it */
};

/* CPU time of the VMM's process so far. */
struct vm_cpu {
	uint64_t vcpu_ns, rest_ns;
};

/* Ends the program unless KVM, brim, QEMU and kernels are there. */
void vmlib_begin(const struct bench *b);
/* "QEMU q35" */
const char *vmm_name(enum vmm vmm);

/* Starts the VM as a user would, with its serial console on a pipe. */
struct vm *vm_start(const struct vm_spec *spec);
/* Kills it and waits until it is gone. */
void vm_end(struct vm **vm);

/* Shows what the guest and the VMM said last, then ends the program with
 * `sentence``what`. */
_Noreturn void vm_die(struct vm *vm, const char *sentence, const char *what);

/* Just before the process was made. */
uint64_t vm_started_ns(const struct vm *vm);
/* When `text` came, from where the last wait ended.  `rest` (may be NULL) gets what
 * follows it on its line. */
uint64_t vm_wait_text(struct vm *vm, const char *text, unsigned timeout_s);
uint64_t vm_wait_rest(struct vm *vm, const char *text, unsigned timeout_s, char *rest,
		      size_t len);
/* Has `text` come yet?  Takes in what there is for at most that long. */
bool vm_heard(struct vm *vm, const char *text, unsigned wait_ms, uint64_t *at_ns);
void vm_type(struct vm *vm, const char *line);
/* A command for the guest's shell, until it has ended: when that was. */
uint64_t vm_shell(struct vm *vm, const char *command, unsigned timeout_s);
/* Lets time pass. */
void vm_pass(struct vm *vm, unsigned ms);

/* Stops the process while it is looked at; it does not go on after it. */
void vm_memory_final(struct vm *vm, struct vm_memory *m);
/* Of the whole process: cheap, holds no lock, for sampling. */
uint64_t vm_rss_bytes(struct vm *vm);
void vm_cpu(struct vm *vm, struct vm_cpu *c);

/* Asks the guest to have that much in its balloon; how much it has. */
void vm_balloon_set(struct vm *vm, uint64_t bytes);
uint64_t vm_balloon_bytes(struct vm *vm);
/* One of brim's counters; 0 for QEMU. */
uint64_t vm_counter(struct vm *vm, const char *name);

/* Values of one figure, run by run; [0] is brim's, [1] the peer's.  Reported as
 * bench_compare() does. */
struct series {
	unsigned n[2];
	double v[2][BENCH_PAIRS_MAX];
};
void series_put(struct series *s, bool peer, double value);
void series_report(struct bench *b, const char *name, const char *unit, struct series *s,
		   const char *peer);

#endif
