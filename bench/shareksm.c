/*
 * See share.h.  A pass is one of KSM's full scans; between passes it stands still.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "bench/kernelksm.h"
#include "bench/share.h"

#define POLL_US 1000

struct ksm_side {
	struct kksm *ksm;
	uint64_t full_scans; /* when the pass began */
};

/* ---- in the VM's process ------------------------------------------------------------- */

static void open_vm(struct share_vm *vm)
{
	uint64_t bytes = vm->content->pages << PAGE_SHIFT;
	void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	VERIFY(p != MAP_FAILED);
	(void)madvise(p, bytes, MADV_NOHUGEPAGE); /* EINVAL: there are none */
	VERIFY(madvise(p, bytes, MADV_MERGEABLE) == 0);
	vm->mem = p;
}

/* KSM leaves all pages mapped (what is saved is its own account's), but zeroes are the
 * kernel's page then, and no memory of the process. */
static uint64_t resident_pages(struct share_vm *vm)
{
	FILE *f = fopen("/proc/self/ksm_stat", "re");
	uint64_t zero = 0;
	char line[64];

	while (f && fgets(line, sizeof(line), f))
		if (sscanf(line, "ksm_zero_pages %" SCNu64, &zero) == 1)
			break;
	if (f)
		fclose(f);
	return vm->content->pages - zero;
}

static const struct share_vm_ops vm_ops = { .open = open_vm, .resident_pages = resident_pages };

/* ---- in the benchmark's ---------------------------------------------------------------- */

static struct kksm *ksm_of(struct share_side *s)
{
	return ((struct ksm_side *)s->state)->ksm;
}

static void open_side(struct share_side *s)
{
	kksm_reset(ksm_of(s));
	share_vms_open(&s->vms, s->content, &vm_ops, NULL);
	share_vms_memory(&s->vms, &s->before);
}

static void close_side(struct share_side *s)
{
	kksm_reset(ksm_of(s));
	share_vms_close(&s->vms);
	kksm_reset(ksm_of(s)); /* what they left */
}

static void pass_begin(struct share_side *s)
{
	struct ksm_side *k = s->state;

	k->full_scans = kksm_full_scans(k->ksm);
	kksm_run(k->ksm, KKSM_FLAT_OUT);
}

static bool pass_poll(struct share_side *s)
{
	struct ksm_side *k = s->state;

	if (kksm_full_scans(k->ksm) != k->full_scans) {
		kksm_pause(k->ksm);
		return true;
	}
	usleep(POLL_US);
	return false;
}

static uint64_t cpu_ns(struct share_side *s)
{
	return kksm_cpu_ns(ksm_of(s)) + share_vms_cpu_ns(&s->vms);
}

static uint64_t saved_pages(struct share_side *s)
{
	return kksm_saved_pages(ksm_of(s));
}

static uint64_t own_bytes(struct share_side *s)
{
	struct share_memory m;

	share_vms_memory(&s->vms, &m);
	return kksm_own_bytes(ksm_of(s)) + m.user_bytes + m.kernel_bytes -
	       s->before.kernel_bytes;
}

static const struct share_side_ops side_ops = {
	.name = "KSM", .open = open_side, .close = close_side, .pass_begin = pass_begin,
	.pass_poll = pass_poll, .cpu_ns = cpu_ns, .saved_now = saved_pages,
	.saved_pages = saved_pages, .own_bytes = own_bytes,
};

struct share_side share_side_ksm(const struct share_content *c, struct kksm *k)
{
	struct ksm_side *state = calloc(1, sizeof(*state));

	VERIFY(state);
	state->ksm = k;
	return (struct share_side){ .ops = &side_ops, .content = c, .state = state };
}
