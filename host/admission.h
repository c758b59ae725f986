/*
 * host/admission.h: whether one more VM may start, so that the host cannot run out whatever
 * its VMs do.
 *
 * The promise of each VM is the most host memory it can ever need to hold at once:
 *
 *     promised = max(reservation, memory - what its swap file takes whole) + overhead
 *
 * What is promised to all must fit in what brim may use.  So if all VMs use all of their memory
 * at once, and nothing packs, shares or is given back, every page has a place: in memory, or on
 * disk space that was reserved before its VM started.  It is slow then, and nothing is lost.
 *
 * Pure: no state, no I/O.  Any thread.
 */
#ifndef BRIM_HOST_ADMISSION_H
#define BRIM_HOST_ADMISSION_H

#include "mm/mm.h"

struct admission_host {
	uint64_t physical_bytes;
	uint64_t reserve_bytes; /* the host's own: never promised */
	uint64_t own_bytes;     /* of the daemon: its tables, at most */
};

struct admission_vm {
	const char *name;
	uint64_t memory_bytes;
	uint64_t reservation_bytes; /* at most memory_bytes */
	uint64_t swap_bytes;        /* size of its swap file; 0: none */
	uint64_t overhead_bytes;    /* of its process alone, measured; 0: not running yet */
	unsigned cpus;
};

struct admission {
	uint64_t usable_bytes;   /* physical, less reserve and own */
	uint64_t promised_bytes; /* to those that run */
	uint64_t needed_bytes;   /* by the new one */
	uint64_t overhead_bytes; /* of that */
	bool fits;
};

/* Guest memory that a swap file of that size can hold whole, when no page of it packs. */
uint64_t admission_swap_covers(uint64_t swap_bytes);
/* Host memory a VM takes beside guest RAM, packed or not, at most. */
uint64_t admission_overhead(const struct admission_vm *vm);
uint64_t admission_promise(const struct admission_vm *vm);

/* Whether `vm` fits beside `running`.  0, or -ENOSPC with the arithmetic in a sentence.
 * *out in both cases. */
int admission_check(const struct admission_host *host, const struct admission_vm *running,
		    size_t count, const struct admission_vm *vm, struct admission *out,
		    struct err *e);

#endif
