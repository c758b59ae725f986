/*
 * vmm/: one VM, one process: `brim-vmm`.
 *
 * main.c      the process: arguments, run directory, ready line, reboot loop
 * config.c    the JSON a VM is described with, every field checked
 * loop.c      the event loop (epoll): all device work, control and console
 * machine.c   one boot of the VM: assembles RAM, KVM, PCI and devices; reset
 *             is "destroy the machine, create it again"
 * memory.c    the memory engine: made when needed, limits, status
 * sharing.c   sharing equal pages: when it begins, status
 * publish.c   its numbers, for others to read without asking
 * kvm.c       the KVM file descriptors, memslots, interrupt routing
 * vcpu.c      vCPU threads: KVM_RUN, exits, pause
 * cpuid.c     what the guest's CPUs say they are
 * boot.c bzimage.c elf.c    kernel, initrd, command line into guest RAM
 * acpi.c      tables: CPUs, PCI, power button
 * platform.c  the ports that are not PCI: power management, reset
 * pci.c       bus 0: configuration space, BARs, MSI-X
 * serial.c    the 16550; console.c its far side: history and clients
 * control.c   the control socket
 * hostcheck.c hostkvm.c    what brim needs of a host, and of its KVM
 * client.c    the other end of control.c; rundir.c where a VM's sockets and lock are;
 *             spawn.c starting this process
 *
 * Threads: main is the event loop (ROLE_LOOP); one thread a vCPU (ROLE_VCPU)
 * runs the guest and emulates register accesses, never device work.
 *
 * Invariants:
 *  I1  The guest decides nothing but its own fate: every access it makes is
 *      bounded by table look-ups, and ends in an answer or in its own reset.
 *  I2  A machine is created and destroyed whole: a reboot leaves nothing of the
 *      last boot (no fd, thread, mapping) behind.
 */
#ifndef BRIM_VMM_H
#define BRIM_VMM_H

#include <limits.h>

#include "mm/mm.h"
#include "mm/swap/swap.h"
#include "virtio/virtio.h"

#define VM_MAX_CPUS 16u
#define VM_MAX_DISKS 12u
#define VM_MAX_NETS 8u
#define VM_NAME_MAX 64u
#define VM_LIMIT_MIN_BYTES (16 * MiB)
#define VM_POOL_CAP_MIN_BYTES (16 * MiB) /* with the disk's share of it */
#define VM_SWAP_MIN_BYTES (5 * MiB)
#define VM_SHARE_NONE "none"
#define VM_SHARE_PACE_MAX 1000000000u
#define VM_DEFAULT_CMDLINE "console=ttyS0 panic=1"
#define VM_CMDLINE_MAX 2048u /* Linux's COMMAND_LINE_SIZE, terminator included */

struct vm_disk {
	char path[PATH_MAX];
	char serial[21];
	bool readonly, direct;
};

/* Where cold pages go once the pool is full. */
struct vm_swap {
	char path[PATH_MAX];  /* "": nowhere */
	uint64_t size_bytes;  /* 0: 9/8 of the VM's memory; of a device: all of it */
	bool encrypt, force;
};

/* With whom it shares equal pages. */
struct vm_share {
	char group[VM_NAME_MAX]; /* "": VMs of the same owner; VM_SHARE_NONE: nobody */
	unsigned cpu_pct;        /* of one CPU, for finding them; 0: the default */
	unsigned pages_per_s;    /* looked at for that; 0: no bound but this */
};

struct vm_net {
	char tap[16];
	uint8_t mac[6];
	int fd; /* the tap, open for as long as the VM: it outlives reboots. -1: not yet */
};

struct vm_config {
	char name[VM_NAME_MAX];
	uint64_t memory_bytes;
	uint64_t memory_limit_bytes; /* of host memory; 0: none. Changes while it runs */
	uint64_t pool_cap_bytes;     /* of host memory, for packed pages; 0: none */
	enum swap_delta pool_delta;  /* packed against similar pages, and how hard it tries */
	unsigned pool_acceleration;  /* LZ4's; 0: the default */
	bool pool_refine;            /* packed pages are packed anew, smaller, once cold */
	struct vm_swap swap;
	struct vm_share share;
	unsigned cpus;
	char kernel[PATH_MAX];
	char initrd[PATH_MAX]; /* "": none */
	char cmdline[VM_CMDLINE_MAX];
	char run_dir[PATH_MAX];
	unsigned disk_count, net_count;
	struct vm_disk disks[VM_MAX_DISKS];
	struct vm_net nets[VM_MAX_NETS];
	struct virtio_balloon_config balloon;
	enum ram_huge huge;
	bool rng, console, die_with_parent, reboot, allow_emulated_kvm;
	unsigned stop_timeout_s;
};

/* Parses the JSON of a VM's description.  Unknown keys are errors.  -EINVAL with
 * a sentence naming the key. */
int vm_config_parse(struct vm_config *cfg, const char *json, size_t len, struct err *e);

/* "52:54:00:12:34:56": -EINVAL where it is none, or a group's. */
int vm_mac_parse(const char *text, uint8_t mac[6]);

#endif
