/*
 * Admission: the arithmetic, and the sentence that shows it.
 *
 * What a swap file takes.  The file's first segment is its header, one more is the cleaner's,
 * and one may be open; in each of the others whole pages lie with 16 bytes of header each, and
 * the end too short for one more is lost (mm/swap/log.c, disk.c).
 *
 * Overhead.  A VM's process was measured at 14 to 19 MiB idle with one
 * vCPU; each vCPU adds its stack and what KVM keeps.  In proportion to guest RAM: the engine's
 * table (8 bytes a page), the host's page tables (8 bytes a page) and KVM's second level (8 bytes
 * a page), all of which a VM that touches everything needs.
 */
#include "host/admission.h"

#include <errno.h>
#include <stdio.h>

#define SEGMENT_BYTES MiB
#define SEGMENTS_APART 3u /* header, the cleaner's, and the one that is filled */
#define WHOLE_PAGE_BYTES (PAGE_BYTES + 16)
#define PROCESS_BYTES (24 * MiB)
#define VCPU_BYTES (1 * MiB)
#define TABLES_BYTES_PER_PAGE 24u
#define POOL_BYTES (16 * MiB) /* what goes to disk goes through a pool */

static uint64_t less(uint64_t a, uint64_t b)
{
	return a > b ? a - b : 0;
}

/* Of absurd numbers too much, and never little. */
static uint64_t plus(uint64_t a, uint64_t b)
{
	return a > UINT64_MAX - b ? UINT64_MAX : a + b;
}

uint64_t admission_swap_covers(uint64_t swap_bytes)
{
	uint64_t segments = swap_bytes / SEGMENT_BYTES;

	if (segments <= SEGMENTS_APART)
		return 0;
	return (segments - SEGMENTS_APART) * (SEGMENT_BYTES / WHOLE_PAGE_BYTES) * PAGE_BYTES;
}

/* What was measured counts where it is more: a process that is small now may grow. */
uint64_t admission_overhead(const struct admission_vm *vm)
{
	uint64_t process = PROCESS_BYTES + vm->cpus * VCPU_BYTES;

	if (process < vm->overhead_bytes)
		process = vm->overhead_bytes;
	return plus(process, (vm->swap_bytes ? POOL_BYTES : 0) +
			     (vm->memory_bytes >> PAGE_SHIFT) * TABLES_BYTES_PER_PAGE);
}

uint64_t admission_promise(const struct admission_vm *vm)
{
	uint64_t uncovered = less(vm->memory_bytes, admission_swap_covers(vm->swap_bytes));
	uint64_t held = vm->reservation_bytes > uncovered ? vm->reservation_bytes : uncovered;

	return plus(held, admission_overhead(vm));
}

/* It says what decides how much of its memory the VM must be promised, and what would help. */
static int refuse(const struct admission_host *host, size_t count, const struct admission_vm *vm,
		  const struct admission *a, struct err *e)
{
	uint64_t held = a->needed_bytes - a->overhead_bytes;
	bool by_reservation = held == vm->reservation_bytes;
	char need[32], part[32], over[32], left[32], usable[32], physical[32], kept[32], given[32];

	return err_set(e, -ENOSPC,
		       "VM %s: refused: it needs %s (%s %s, and %s of overhead), and %s are left: of %s "
		       "%s are the host's own, of the other %s %s are promised to %zu VM%s; %s",
		       vm->name, size_format(need, sizeof(need), a->needed_bytes),
		       size_format(part, sizeof(part), held),
		       by_reservation ? "of reservation" : "that no swap file of its own could take",
		       size_format(over, sizeof(over), a->overhead_bytes),
		       size_format(left, sizeof(left), less(a->usable_bytes, a->promised_bytes)),
		       size_format(physical, sizeof(physical), host->physical_bytes),
		       size_format(kept, sizeof(kept), less(host->physical_bytes, a->usable_bytes)),
		       size_format(usable, sizeof(usable), a->usable_bytes),
		       size_format(given, sizeof(given), a->promised_bytes), count, count == 1 ? "" : "s",
		       by_reservation ? "a smaller reservation would do" :
					"a larger swap file would do");
}

int admission_check(const struct admission_host *host, const struct admission_vm *running,
		    size_t count, const struct admission_vm *vm, struct admission *out,
		    struct err *e)
{
	*out = (struct admission){
		.usable_bytes = less(host->physical_bytes, plus(host->reserve_bytes, host->own_bytes)),
		.needed_bytes = admission_promise(vm),
		.overhead_bytes = admission_overhead(vm),
	};
	for (size_t i = 0; i < count; i++)
		out->promised_bytes = plus(out->promised_bytes, admission_promise(&running[i]));
	out->fits = out->promised_bytes <= out->usable_bytes &&
		    out->needed_bytes <= out->usable_bytes - out->promised_bytes;
	return out->fits ? 0 : refuse(host, count, vm, out, e);
}
