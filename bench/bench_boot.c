/*
 * Question: how soon is a guest there, and what does its VMM cost beside it?
 *
 * Method: the same kernel, initial RAM disk, command line, memory, number of CPUs
 * and devices (serial port, virtio balloon, rng, console) in brim and in QEMU, by
 * turns.  Time is CLOCK_MONOTONIC from just before fork and exec to the byte's
 * arrival at the other end of the pipe that is the serial console; for brim that is
 * `brim run` in the foreground, with two processes on the way.
 *  first message: `Linux version`, with `earlyprintk=ttyS0`, so that the kernel speaks
 *            as soon as it can.  Not the first byte: a bzImage's real mode code, which
 *            QEMU runs and brim does not, prints some before it unpacks the kernel;
 *  init:     with `quiet`, so that nobody waits for a console of 115200 baud.
 * At init the VMM is stopped and looked at: own memory is RSS less that of guest
 * RAM.  CPU time, of the vCPU's thread and of the others, says more than the clock
 * does where the machine has other things to do.
 *
 * Baseline: QEMU -M q35, and -M microvm, with PCI or virtio-mmio, whichever
 * brings its guest to init sooner; -accel kvm -cpu host, no default devices.
 *
 * Not in here: disks, networks, and what a user's own init does.
 */
#include <stdio.h>
#include <string.h>

#include "bench/vmlib.h"

#define MEMORY_BYTES (512 * MiB)
#define TIMEOUT_S 180
#define NS_PER_MS 1e6
#define PAIRS_SLOW 3 /* compressed kernels */
#define RIVALS 2

#define CMDLINE_EARLY "console=ttyS0 earlyprintk=ttyS0 panic=1"
#define CMDLINE_QUIET "console=ttyS0 quiet panic=1"

enum what { SPEAKS, INIT, CPU, VCPU, OWN, OWN_PRIVATE, RAM, WHATS };

static const struct { const char *name, *unit; } whats[WHATS] = {
	[SPEAKS] = { "kernel's first message", "ms" },
	[INIT] = { "init", "ms" },
	[CPU] = { "CPU time but vCPUs' until init", "ms" },
	[VCPU] = { "CPU time of vCPU until init", "ms" },
	[OWN] = { "own memory at init", "MiB" },
	[OWN_PRIVATE] = { "own memory at init, private", "MiB" },
	[RAM] = { "guest RAM resident at init", "MiB" },
};

struct scene {
	struct bench *b;
	const char *kernel;
	enum vmm rivals[RIVALS];
	double value[1 + RIVALS][WHATS];
	double helper_mib;
};

static struct vm *start(const struct scene *s, enum vmm vmm, const char *cmdline)
{
	return vm_start(&(struct vm_spec){
		.vmm = vmm, .series = "6.12", .kernel = s->kernel, .cmdline = cmdline,
		.memory_bytes = MEMORY_BYTES, .cpus = 1, .reporting = true,
	});
}

static double ms_since_start(const struct vm *vm, uint64_t at_ns)
{
	return (double)(at_ns - vm_started_ns(vm)) / NS_PER_MS;
}

static double mib(uint64_t bytes)
{
	return (double)bytes / (double)MiB;
}

static double speaks(const struct scene *s, enum vmm vmm)
{
	struct vm *vm = start(s, vmm, CMDLINE_EARLY);
	double ms = ms_since_start(vm, vm_wait_text(vm, "Linux version", TIMEOUT_S));

	vm_end(&vm);
	return ms;
}

/* Fills all but SPEAKS. */
static void to_init(struct scene *s, enum vmm vmm, double *value)
{
	struct vm *vm = start(s, vmm, CMDLINE_QUIET);
	struct vm_memory m;
	struct vm_cpu cpu;

	value[INIT] = ms_since_start(vm, vm_wait_text(vm, "guest: init up", TIMEOUT_S));
	vm_cpu(vm, &cpu);
	vm_memory_final(vm, &m);
	value[CPU] = (double)cpu.rest_ns / NS_PER_MS;
	value[VCPU] = (double)cpu.vcpu_ns / NS_PER_MS;
	value[OWN] = mib(m.own_bytes);
	value[OWN_PRIVATE] = mib(m.own_private_bytes);
	value[RAM] = mib(m.ram_bytes);
	if (vmm == VMM_BRIM)
		s->helper_mib = mib(m.helper_bytes);
	vm_end(&vm);
}

static enum vmm who(const struct scene *s, unsigned i)
{
	return i == 0 ? VMM_BRIM : s->rivals[i - 1];
}

/* All of them once, another one first each time. */
static void round_of(struct scene *s, unsigned turn)
{
	for (unsigned k = 0; k <= RIVALS; k++) {
		unsigned i = (k + turn) % (1 + RIVALS);

		s->value[i][SPEAKS] = speaks(s, who(s, i));
		to_init(s, who(s, i), s->value[i]);
	}
}

static void report(struct scene *s, struct series (*all)[WHATS])
{
	char name[64];

	for (unsigned r = 0; r < RIVALS; r++)
		for (unsigned w = 0; w < WHATS; w++) {
			snprintf(name, sizeof(name), "%s: %s", s->kernel, whats[w].name);
			series_report(s->b, name, whats[w].unit, &all[r][w], vmm_name(s->rivals[r]));
		}
}

static void compare(struct scene *s, unsigned pairs)
{
	static struct series all[RIVALS][WHATS], helper;

	memset(all, 0, sizeof(all));
	memset(&helper, 0, sizeof(helper));
	round_of(s, 0); /* not measured */
	for (unsigned i = 0; i < pairs; i++) {
		round_of(s, i);
		series_put(&helper, false, s->helper_mib);
		for (unsigned r = 0; r < RIVALS; r++)
			for (unsigned w = 0; w < WHATS; w++) {
				series_put(&all[r][w], false, s->value[0][w]);
				series_put(&all[r][w], true, s->value[r + 1][w]);
			}
	}
	report(s, all);
	series_report(s->b, "`brim run` beside it, all its memory", "MiB", &helper, NULL);
}

/* Which form of microvm brings its guest to init sooner?  The first run reads what
 * is not cached yet, and does not count. */
static enum vmm faster_microvm(struct scene *s)
{
	static const enum vmm forms[] = { VMM_MICROVM, VMM_MICROVM_MMIO };
	double value[ARRAY_LEN(forms)][WHATS];

	to_init(s, forms[0], value[0]);
	for (unsigned i = 0; i < ARRAY_LEN(forms); i++)
		to_init(s, forms[i], value[i]);
	for (unsigned i = 0; i < ARRAY_LEN(forms); i++)
		printf("%s: init after %.0f ms\n", vmm_name(forms[i]), value[i][INIT]);
	return forms[value[1][INIT] < value[0][INIT]];
}

int main(int argc, char **argv)
{
	static struct bench b;
	struct scene s = { .b = &b, .kernel = "vmlinux" };

	bench_begin(&b, "bench_boot", argc, argv);
	vmlib_begin(&b);
	s.rivals[0] = faster_microvm(&s);
	s.rivals[1] = VMM_Q35;
	compare(&s, b.pairs);
	if (!b.quick) {
		s.kernel = "vmlinuz";
		compare(&s, b.pairs < PAIRS_SLOW ? b.pairs : PAIRS_SLOW);
	}
	return bench_end(&b);
}
