/*
 * See share.h.
 *
 * A VM's process is a fork of the benchmark: the content's base is in its memory already,
 * shared with it.  Orders come by a socket, one at a time; its end is the process's.
 */
#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "bench/share.h"

#define VMA_BYTES 192 /* struct vm_area_struct of Linux 6.12 and later, in its slab */

/* ---- in the VM's process ------------------------------------------------------------- */

static void fill(struct share_vm *vm)
{
	for (uint64_t i = 0; i < vm->content->pages; i++)
		share_content_page(vm->content, vm->number, i, vm->mem + (i << PAGE_SHIFT));
}

static void change(struct share_vm *vm, uint64_t i, uint32_t number)
{
	vm->change[i] = number;
	*share_content_word(vm->mem + (i << PAGE_SHIFT), i) =
		(uint64_t)(vm->number + 1) << 56 | i << 24 | number;
}

static void change_hot(struct share_vm *vm, uint32_t number)
{
	for (uint64_t i = 0; i < vm->content->pages; i++)
		if (vm->content->page[vm->number][i].kind == SHARE_HOT)
			change(vm, i, number);
}

static void change_some(struct share_vm *vm, const struct share_order *o)
{
	uint64_t seed = (uint64_t)o->number * 6364136223846793005u + vm->number + 1;

	for (uint64_t i = 0; i < vm->content->pages; i++)
		if (vm->content->page[vm->number][i].kind != SHARE_HOT &&
		    content_random(&seed) % 1000 < o->amount)
			change(vm, i, o->number);
}

static uint64_t process_cpu_ns(void)
{
	return share_process_cpu_ns(CLOCK_PROCESS_CPUTIME_ID);
}

/* Writes to pages that all have, each by itself, far from one another. */
static void break_some(struct share_vm *vm, const struct share_order *o, struct share_reply *r)
{
	double *took = calloc(o->amount, sizeof(*took));
	uint64_t seed = SHARE_KINDS + vm->number, cpu = 0;
	unsigned n = 0;

	VERIFY(took);
	while (n < o->amount) {
		uint64_t i = content_random(&seed) % vm->content->pages, began_ns, began_cpu_ns;

		if (vm->content->page[vm->number][i].kind != SHARE_COMMON || vm->change[i])
			continue;
		began_cpu_ns = process_cpu_ns();
		began_ns = now_ns();
		change(vm, i, o->number);
		took[n++] = (double)(now_ns() - began_ns);
		cpu += process_cpu_ns() - began_cpu_ns;
	}
	r->value[0] = cpu / n;
	r->value[1] = (uint64_t)bench_median(took, n);
	free(took);
}

static uint64_t wrong_pages(struct share_vm *vm)
{
	uint8_t want[PAGE_BYTES];
	uint64_t wrong = 0;

	for (uint64_t i = 0; i < vm->content->pages; i++) {
		share_content_page(vm->content, vm->number, i, want);
		if (vm->change[i])
			*share_content_word(want, i) = (uint64_t)(vm->number + 1) << 56 | i << 24 |
						       vm->change[i];
		wrong += memcmp(want, vm->mem + (i << PAGE_SHIFT), PAGE_BYTES) != 0;
	}
	return wrong;
}

/* Of a file of lines like "VmPTE:   12 kB". */
static uint64_t line_bytes(const char *path, const char *key)
{
	FILE *f = fopen(path, "re");
	size_t len = strlen(key);
	uint64_t kib = 0;
	char line[256];

	while (f && fgets(line, sizeof(line), f))
		if (strncmp(line, key, len) == 0 && line[len] == ':')
			kib = strtoull(line + len + 1, NULL, 10);
	if (f)
		fclose(f);
	return kib * KiB;
}

static uint64_t count_mappings(void)
{
	FILE *f = fopen("/proc/self/maps", "re");
	uint64_t n = 0;

	for (int c; f && (c = getc(f)) != EOF;)
		n += c == '\n';
	if (f)
		fclose(f);
	return n;
}

uint64_t share_anonymous_bytes(void)
{
	return line_bytes("/proc/self/smaps_rollup", "Anonymous");
}

uint64_t share_kernel_bytes(void)
{
	return line_bytes("/proc/self/status", "VmPTE") + count_mappings() * VMA_BYTES;
}

static void measure(struct share_vm *vm, const struct share_vm_ops *ops, struct share_memory *m)
{
	m->resident_pages = ops->resident_pages(vm);
	m->user_bytes = share_anonymous_bytes() - (m->resident_pages << PAGE_SHIFT) -
			vm->user_before_bytes;
	m->kernel_bytes = share_kernel_bytes();
}

static void obey(struct share_vm *vm, const struct share_vm_ops *ops, const struct share_order *o,
		 struct share_reply *r)
{
	*r = (struct share_reply){ .mem = (uintptr_t)vm->mem };
	switch (o->kind) {
	case ORDER_FILL: fill(vm); break;
	case ORDER_PASS: ops->pass(vm); break;
	case ORDER_CHANGE_HOT: change_hot(vm, o->number); break;
	case ORDER_CHANGE_SOME: change_some(vm, o); break;
	case ORDER_BREAK: break_some(vm, o, r); break;
	case ORDER_CHECK: r->value[0] = wrong_pages(vm); break;
	case ORDER_MEMORY: measure(vm, ops, &r->memory); break;
	}
}

static _Noreturn void vm_main(struct share_vm *vm, const struct share_vm_ops *ops, int fd)
{
	struct share_order o;
	struct share_reply r;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	vm->change = mmap(NULL, vm->content->pages * sizeof(*vm->change), PROT_READ | PROT_WRITE,
			  MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
	VERIFY(vm->change != MAP_FAILED);
	vm->user_before_bytes = share_anonymous_bytes();
	ops->open(vm);
	while (recv(fd, &o, sizeof(o), 0) == sizeof(o)) {
		obey(vm, ops, &o, &r);
		if (send(fd, &r, sizeof(r), MSG_NOSIGNAL) != sizeof(r))
			break;
	}
	_exit(0);
}

/* ---- in the benchmark's ---------------------------------------------------------------- */

static void start_vm(struct share_vms *v, const struct share_vm *how,
		     const struct share_vm_ops *ops)
{
	struct share_vm vm = *how;
	unsigned i = vm.number;
	int ends[2];

	VERIFY(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) == 0);
	fflush(NULL);
	v->vm[i].pid = fork();
	VERIFY(v->vm[i].pid >= 0);
	if (v->vm[i].pid == 0) {
		for (unsigned k = 0; k < i; k++)
			close(v->vm[k].fd);
		close(ends[0]);
		vm_main(&vm, ops, ends[1]);
	}
	close(ends[1]);
	v->vm[i].fd = ends[0];
	VERIFY(clock_getcpuclockid(v->vm[i].pid, &v->vm[i].clock) == 0);
}

void share_vms_open(struct share_vms *v, const struct share_content *c,
		    const struct share_vm_ops *ops, const void *arg)
{
	struct share_reply r[SHARE_VMS];

	for (unsigned i = 0; i < SHARE_VMS; i++)
		start_vm(v, &(struct share_vm){ .content = c, .number = i, .arg = arg }, ops);
	share_vms_order(v, &(struct share_order){ .kind = ORDER_FILL }, r);
	for (unsigned i = 0; i < SHARE_VMS; i++)
		v->vm[i].mem = r[i].mem;
}

void share_vms_close(struct share_vms *v)
{
	for (unsigned i = 0; i < SHARE_VMS; i++)
		close(v->vm[i].fd);
	for (unsigned i = 0; i < SHARE_VMS; i++)
		while (waitpid(v->vm[i].pid, NULL, 0) < 0 && errno == EINTR)
			;
}

static _Noreturn void lost(unsigned i)
{
	fprintf(stderr, "bench_share: VM %u has ended\n", i);
	exit(2);
}

static void send_order(struct share_vms *v, unsigned i, const struct share_order *o)
{
	if (send(v->vm[i].fd, o, sizeof(*o), MSG_NOSIGNAL) != sizeof(*o))
		lost(i);
}

void share_vms_send(struct share_vms *v, const struct share_order *o)
{
	for (unsigned i = 0; i < SHARE_VMS; i++)
		send_order(v, i, o);
}

static void receive(struct share_vms *v, unsigned i, struct share_reply *r)
{
	if (recv(v->vm[i].fd, r, sizeof(*r), 0) != sizeof(*r))
		lost(i);
}

void share_vms_order(struct share_vms *v, const struct share_order *o,
		     struct share_reply reply[SHARE_VMS])
{
	struct share_reply r;

	share_vms_send(v, o);
	for (unsigned i = 0; i < SHARE_VMS; i++)
		receive(v, i, reply ? &reply[i] : &r);
}

void share_vms_by_turns(struct share_vms *v, const struct share_order *o,
			struct share_reply reply[SHARE_VMS])
{
	for (unsigned i = 0; i < SHARE_VMS; i++) {
		send_order(v, i, o);
		receive(v, i, &reply[i]);
	}
}

bool share_vms_done(struct share_vms *v, unsigned *waiting_for, int timeout_ms)
{
	struct pollfd p[SHARE_VMS];
	struct share_reply r;

	for (unsigned i = 0; i < SHARE_VMS; i++)
		p[i] = (struct pollfd){ *waiting_for & 1u << i ? v->vm[i].fd : -1, POLLIN, 0 };
	poll(p, SHARE_VMS, timeout_ms);
	for (unsigned i = 0; i < SHARE_VMS; i++)
		if (p[i].revents) {
			receive(v, i, &r);
			*waiting_for &= ~(1u << i);
		}
	return *waiting_for == 0;
}

uint64_t share_process_cpu_ns(clockid_t clock)
{
	struct timespec t;

	VERIFY(clock_gettime(clock, &t) == 0);
	return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}

uint64_t share_vms_cpu_ns(const struct share_vms *v)
{
	uint64_t sum = 0;

	for (unsigned i = 0; i < SHARE_VMS; i++)
		sum += share_process_cpu_ns(v->vm[i].clock);
	return sum;
}

void share_vms_memory(struct share_vms *v, struct share_memory *sum)
{
	struct share_reply r[SHARE_VMS];

	*sum = (struct share_memory){ 0 };
	share_vms_order(v, &(struct share_order){ .kind = ORDER_MEMORY }, r);
	for (unsigned i = 0; i < SHARE_VMS; i++) {
		sum->resident_pages += r[i].memory.resident_pages;
		sum->user_bytes += r[i].memory.user_bytes;
		sum->kernel_bytes += r[i].memory.kernel_bytes;
	}
}
