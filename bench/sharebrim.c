/*
 * See share.h.  A VM's process has guest RAM under an engine without reclaimer, and the
 * share thread's work is done by its only thread, when a pass is ordered: the engine ages
 * all pages once, then everything that follows is done, until there is nothing but what
 * only another pass, or another VM, can bring.  brimd is a process that runs host/ as its
 * program does.
 */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "bench/share.h"
#include "host/host.h"
#include "mm/ksm/internal.h"

#define ANSWER_MS 100
#define POLL_MS 1
#define FDS_MAX 64u

struct brim_side {
	char dir[32], socket[64];
	pid_t brimd;
	int fd; /* to brimd */
	clockid_t clock;
	char store[64];           /* path of its store's descriptor, once it is there */
	uint64_t resident_before; /* pages */
	unsigned waiting_for;     /* VMs whose pass has not ended, a bit each */
};

/* ---- in the VM's process ------------------------------------------------------------- */

struct brim_vm {
	struct guest guest;
	struct ksm *ksm;
};

static _Noreturn void give_up(const char *why)
{
	fprintf(stderr, "bench_share: %s\n", why);
	_exit(2);
}

static void open_vm(struct share_vm *vm)
{
	const struct brim_side *b = vm->arg;
	struct brim_vm *v = calloc(1, sizeof(*v));
	struct ksm_config cfg = { .socket = b->socket, .group = "bench", .cpu_pct = 100,
				  .pass_ns = 1, .retry_ns = 1 };
	char name[16];
	struct err e;

	VERIFY(v);
	snprintf(name, sizeof(name), "vm%u", vm->number);
	log_init(name, STDERR_FILENO, LOG_WARN);
	cfg.vm = name;
	if (guest_open(&v->guest, vm->content->pages << PAGE_SHIFT, &e) ||
	    ksm_create(&v->ksm, &cfg, &e))
		give_up(e.msg);
	ksm_attach(v->ksm, v->guest.engine, v->guest.ram);
	vm->mem = ram_at(v->guest.ram, gpa(0), vm->content->pages << PAGE_SHIFT);
	VERIFY(vm->mem);
	vm->side = v;
}

static uint64_t progress(void)
{
	return counter_get(CTR_share_hashed) + counter_get(CTR_share_lookups) +
	       counter_get(CTR_share_same) + counter_get(CTR_share_offers) +
	       counter_get(CTR_share_contents) + counter_get(CTR_share_released) +
	       counter_get(CTR_share_connects);
}

static bool waits_for_brimd(const struct ksm *k)
{
	return k->link != LINK_OPEN || k->question.count || k->release_turn || k->out_bytes;
}

/* A step made before it may go on would do nothing, which is not to be taken for the end. */
static void wait_for_pace(const struct ksm *k)
{
	for (uint64_t now = now_ns(); now < k->rest_until_ns; now = now_ns())
		usleep((useconds_t)((k->rest_until_ns - now) / 1000 + 1));
}

static void work_it_off(struct ksm *k)
{
	uint64_t before;

	do {
		wait_for_pace(k);
		before = progress();
		ksm_step(k, waits_for_brimd(k) ? ANSWER_MS : 0);
	} while (waits_for_brimd(k) || progress() != before);
}

static void pass_vm(struct share_vm *vm)
{
	struct brim_vm *v = vm->side;

	engine_pass(v->guest.engine);
	work_it_off(v->ksm);
}

static uint64_t resident_of_vm(struct share_vm *vm)
{
	struct brim_vm *v = vm->side;
	uint64_t bytes;

	VERIFY(ram_resident_bytes(v->guest.ram, &bytes) == 0);
	return bytes >> PAGE_SHIFT;
}

static const struct share_vm_ops vm_ops = { .open = open_vm, .pass = pass_vm,
					    .resident_pages = resident_of_vm };

/* ---- brimd --------------------------------------------------------------------------- */

struct brimd_memory {
	uint64_t store_pages; /* by the kernel's account */
	uint64_t user_bytes, kernel_bytes;
};

static _Noreturn void brimd_main(const struct brim_side *b, int fd)
{
	uint64_t user = share_anonymous_bytes(), kernel = share_kernel_bytes();
	struct share_host_config cfg = { .state_dir = b->dir };
	struct share_host_stats stats;
	struct brimd_memory m;
	struct share_host *h;
	struct err e;
	char c = 0;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	log_init("brimd", STDERR_FILENO, LOG_WARN);
	if (share_host_create(&h, &cfg, &e) || share_host_listen(h, b->socket, &e))
		give_up(e.msg);
	share_host_watch(h, fd);
	if (send(fd, &c, 1, MSG_NOSIGNAL) != 1)
		_exit(0);
	while (share_host_turn(h, -1) == 0) {
		ssize_t n = recv(fd, &c, 1, MSG_DONTWAIT);

		if (n == 0)
			_exit(0);
		if (n < 0)
			continue;
		if (!share_host_verify(h, &e))
			give_up(e.msg);
		share_host_stats(h, &stats);
		m.store_pages = stats.resident_bytes >> PAGE_SHIFT;
		m.user_bytes = share_anonymous_bytes() - user;
		m.kernel_bytes = share_kernel_bytes() - kernel;
		if (send(fd, &m, sizeof(m), MSG_NOSIGNAL) != sizeof(m))
			_exit(0);
	}
	give_up("brimd's loop is broken");
}

static void start_brimd(struct brim_side *b)
{
	int ends[2];
	char c;

	VERIFY(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) == 0);
	fflush(NULL);
	b->brimd = fork();
	VERIFY(b->brimd >= 0);
	if (b->brimd == 0) {
		close(ends[0]);
		brimd_main(b, ends[1]);
	}
	close(ends[1]);
	b->fd = ends[0];
	VERIFY(clock_getcpuclockid(b->brimd, &b->clock) == 0);
	if (recv(b->fd, &c, 1, 0) != 1)
		exit(2); /* it has said why */
}

static struct brimd_memory brimd_memory(const struct brim_side *b)
{
	struct brimd_memory m;
	char c = 0;

	if (send(b->fd, &c, 1, MSG_NOSIGNAL) != 1 || recv(b->fd, &m, sizeof(m), 0) != sizeof(m))
		exit(2);
	return m;
}

/* ---- in the benchmark's ---------------------------------------------------------------- */

/* By statm: no page table is walked. */
static uint64_t anonymous_pages(pid_t pid)
{
	unsigned long size, resident, shared;
	char path[64], line[128];

	snprintf(path, sizeof(path), "/proc/%d/statm", (int)pid);
	VERIFY(sscanf(bench_read_line(path, line, sizeof(line)), "%lu %lu %lu", &size, &resident,
		      &shared) == 3);
	return resident - shared;
}

/* brimd makes its store when the first VM connects. */
static void find_store(struct brim_side *b)
{
	char path[64], to[64];

	for (unsigned fd = 0; fd < FDS_MAX && !b->store[0]; fd++) {
		ssize_t n;

		snprintf(path, sizeof(path), "/proc/%d/fd/%u", (int)b->brimd, fd);
		n = readlink(path, to, sizeof(to));
		if (n > 7 && strncmp(to, "/memfd:", 7) == 0)
			snprintf(b->store, sizeof(b->store), "%s", path);
	}
}

static uint64_t store_pages(struct brim_side *b)
{
	struct stat st;

	if (!b->store[0])
		find_store(b);
	return b->store[0] && stat(b->store, &st) == 0 ? (uint64_t)st.st_blocks / 8 : 0;
}

/* Anonymous memory of the VMs and brimd, and the store. */
static uint64_t resident_now(const struct share_side *s)
{
	struct brim_side *b = s->state;
	uint64_t sum = anonymous_pages(b->brimd) + store_pages(b);

	for (unsigned i = 0; i < SHARE_VMS; i++)
		sum += anonymous_pages(s->vms.vm[i].pid);
	return sum;
}

static void open_side(struct share_side *s)
{
	struct brim_side *b = s->state;

	snprintf(b->dir, sizeof(b->dir), "/tmp/brim-bench-XXXXXX");
	VERIFY(mkdtemp(b->dir));
	snprintf(b->socket, sizeof(b->socket), "%s/brimd.sock", b->dir);
	start_brimd(b);
	b->store[0] = '\0';
	share_vms_open(&s->vms, s->content, &vm_ops, b);
	share_vms_memory(&s->vms, &s->before);
	b->resident_before = resident_now(s);
}

static void close_side(struct share_side *s)
{
	struct brim_side *b = s->state;
	char command[64];

	share_vms_close(&s->vms);
	close(b->fd);
	while (waitpid(b->brimd, NULL, 0) < 0 && errno == EINTR)
		;
	snprintf(command, sizeof(command), "rm -rf %s", b->dir);
	VERIFY(system(command) == 0);
}

static void pass_begin(struct share_side *s)
{
	struct brim_side *b = s->state;

	share_vms_send(&s->vms, &(struct share_order){ .kind = ORDER_PASS });
	b->waiting_for = (1u << SHARE_VMS) - 1;
}

static bool pass_poll(struct share_side *s)
{
	struct brim_side *b = s->state;

	return share_vms_done(&s->vms, &b->waiting_for, POLL_MS);
}

static uint64_t cpu_ns(struct share_side *s)
{
	const struct brim_side *b = s->state;

	return share_vms_cpu_ns(&s->vms) + share_process_cpu_ns(b->clock);
}

static uint64_t saved_now(struct share_side *s)
{
	const struct brim_side *b = s->state;
	uint64_t now = resident_now(s);

	return now < b->resident_before ? b->resident_before - now : 0;
}

static uint64_t saved_pages(struct share_side *s)
{
	struct share_memory m;

	share_vms_memory(&s->vms, &m);
	return SHARE_VMS * s->content->pages - m.resident_pages -
	       brimd_memory(s->state).store_pages;
}

static uint64_t own_bytes(struct share_side *s)
{
	struct brimd_memory b = brimd_memory(s->state);
	struct share_memory m;

	share_vms_memory(&s->vms, &m);
	if (getenv("BRIM_BENCH_TRACE"))
		fprintf(stderr, "own memory: VMs %.1f MiB, their kernel's %.1f MiB, brimd %.1f MiB, "
			"its kernel's %.1f MiB\n", (double)m.user_bytes / MiB,
			(double)(m.kernel_bytes - s->before.kernel_bytes) / MiB,
			(double)b.user_bytes / MiB, (double)b.kernel_bytes / MiB);
	return m.user_bytes + m.kernel_bytes - s->before.kernel_bytes + b.user_bytes +
	       b.kernel_bytes;
}

static const struct share_side_ops side_ops = {
	.name = "brim", .open = open_side, .close = close_side, .pass_begin = pass_begin,
	.pass_poll = pass_poll, .cpu_ns = cpu_ns, .saved_now = saved_now,
	.saved_pages = saved_pages, .own_bytes = own_bytes,
};

struct share_side share_side_brim(const struct share_content *c)
{
	struct brim_side *state = calloc(1, sizeof(*state));

	VERIFY(state);
	return (struct share_side){ .ops = &side_ops, .content = c, .state = state };
}
