/*
 * Sharing as a whole: processes that are VMs (RAM, engine, pool, share client, threads for
 * vCPUs) and a process that is brimd, over a real socket.  The VMs' memory is partly equal
 * and changes all the time; VMs are killed and reset, brimd is killed and stopped, at random
 * moments.  Each VM knows what each of its pages has; none is ever wrong, a VM never waits
 * for brimd, at rest brimd holds what VMs use and nothing else, and when all have ended it
 * has nothing left.
 */
#include "tests/unit/membox.h"

#include <dirent.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "host/host.h"
#include "mm/ksm/internal.h"

#define VMS 3u
#define VCPUS 2u
#define VM_PAGES 6144u  /* that are used */
#define CLASSES 4000u   /* contents that come in several VMs; each 16th is a VM's own */
#define PATIENCE_NS 60000000000u

/* In memory that all processes share. */
struct shared {
	struct vm_view {
		_Atomic bool finish, reset;
		_Atomic uint64_t used; /* pages of the store */
		struct ksm_status status;
		_Atomic uint64_t accesses;
		_Atomic uint64_t counters[CTR_COUNT_];
	} vm[VMS];
	struct share_host_stats host;
	_Atomic uint64_t host_turns;
	_Atomic bool quiet; /* guests do nothing any more */
	_Atomic unsigned boots;
};

static struct shared *shared;
static char dir[] = "/tmp/brim-stress-XXXXXX", sock[64], state_dir[64];

static void die(const char *what, uint64_t n)
{
	fprintf(stderr, "pid %d: %s: %" PRIu64 "\n", (int)getpid(), what, n);
	_exit(9);
}

/* ---- a VM ------------------------------------------------------------------------- */

struct vm {
	unsigned number, era; /* contents of some classes are those of an era */
	uint64_t random;
	struct ram *ram;
	struct swap *swap;
	struct engine *e;
	struct ksm *k;
	uint64_t *mem;
	uint32_t version[VM_PAGES]; /* a page belongs to one vCPU */
	_Atomic bool stop;
};

struct vcpu {
	struct vm *vm;
	unsigned number;
	uint64_t random;
};

static uint64_t word_of(const struct vm *vm, uint32_t page, unsigned i)
{
	uint64_t v = vm->version[page];
	uint64_t class = v ? (page * 31 + v * 7) % CLASSES : 0;

	if (class % 16 == 1)
		class |= (uint64_t)(vm->number + 1) << 32 | (uint64_t)page << 40;
	if (class % 4 == 2)
		class |= (uint64_t)vm->era << 32;
	return class ? (class + 1) * 0x9E3779B97F4A7C15u ^ (i % 64 ? 0 : i) : 0;
}

static uint64_t *page_of(const struct vm *vm, uint32_t page)
{
	return vm->mem + page * (PAGE_BYTES / sizeof(uint64_t));
}

static void check_page(const struct vm *vm, uint32_t page)
{
	const uint64_t *p = page_of(vm, page);

	for (unsigned i = 0; i < PAGE_BYTES / sizeof(*p); i++)
		if (p[i] != word_of(vm, page, i))
			die("this page is wrong", page);
}

static void write_page(struct vm *vm, uint32_t page)
{
	uint64_t *p = page_of(vm, page);

	vm->version[page]++;
	for (unsigned i = 0; i < PAGE_BYTES / sizeof(*p); i++)
		p[i] = word_of(vm, page, i);
}

static void *vcpu_main(void *arg)
{
	struct vcpu *c = arg;
	struct vm *vm = c->vm;

	for (uint32_t i = c->number; i < VM_PAGES; i += VCPUS)
		write_page(vm, i);
	while (!vm->stop && !shared->quiet) {
		uint64_t r = next_random(&c->random);
		/* most go to an eighth of memory, so that the rest has time to be shared */
		uint32_t page = (uint32_t)(r % 64 ? (r >> 8) % (VM_PAGES / 8) : (r >> 8) % VM_PAGES);

		page = page / VCPUS * VCPUS + c->number;
		check_page(vm, page);
		if (r >> 60 == 0)
			write_page(vm, page);
		shared->vm[vm->number].accesses++;
	}
	return NULL;
}

static void must(int rc, const struct err *e)
{
	if (rc)
		die(e->msg, (uint64_t)-rc);
}

static void vm_open(struct vm *vm)
{
	struct swap_config sc = { .max_pages = RAM_MIN_BYTES >> PAGE_SHIFT };
	struct engine_config ec = { .tier = &swap_tier, .fault_threads = VCPUS,
				    .pass_ns = 2000000, .staging_bytes = 2 * MiB };
	char name[16];
	struct ksm_config kc = { .socket = sock, .vm = name, .group = "stress", .cpu_pct = 100,
				 .pass_ns = 20000000, .retry_ns = 20000000 };
	struct err e = { "" };

	snprintf(name, sizeof(name), "vm%u", vm->number);
	must(ram_create(&vm->ram, &(struct ram_config){ RAM_MIN_BYTES, RAM_HUGE_NEVER, NULL }, &e), &e);
	must(swap_create(&vm->swap, &sc, &e), &e);
	must(ksm_create(&vm->k, &kc, &e), &e);
	ec.ram = vm->ram;
	ec.tier_ctx = vm->swap;
	ec.leaving = ksm_leaving;
	ec.leaving_ctx = vm->k;
	must(engine_create(&vm->e, &ec, &e), &e);
	swap_attach(vm->swap, vm->e);
	ksm_attach(vm->k, vm->e, vm->ram);
	ksm_loaded(vm->k, 0, VM_PAGES); /* which the vCPUs are writing meanwhile */
	must(ksm_start(vm->k, &e), &e);
	vm->mem = (uint64_t *)ram_slot(vm->ram, 0)->hva;
}

static void vm_close(struct vm *vm)
{
	char why[200];

	ksm_stop(vm->k);
	reclaim_stop(vm->e);
	if (books_check(vm->e, why, sizeof(why)))
		die(why, 0);
	if (vm->k->store)
		uses_verify(&vm->k->uses, atomic_load(&vm->e->pages.in_state[PAGE_STORED]) +
					   atomic_load(&vm->e->pages.in_state[PAGE_SHARED]));
	engine_destroy(&vm->e);
	ksm_destroy(&vm->k);
	swap_destroy(&vm->swap);
	ram_destroy(&vm->ram);
}

#define STORE_PAGES 65536u /* more are not stored here: the VMs have fewer pages, all of them */

/* Only once the thread has said that it set them up; meanwhile as many as before. */
static uint64_t used_pages(struct ksm *k, uint64_t before)
{
	struct ksm_status status;
	uint64_t n = 0;

	ksm_status(k, &status);
	if (status.state != KSM_CONNECTED)
		return before;
	for (uint32_t i = 1; i < k->uses.pages && i < STORE_PAGES; i++)
		n += uses_count(&k->uses, i) != 0;
	return n;
}

static void publish(const struct vm *vm)
{
	for (unsigned c = 0; c < CTR_COUNT_; c++)
		shared->vm[vm->number].counters[c] = counter_get(c);
	shared->vm[vm->number].used = used_pages(vm->k, shared->vm[vm->number].used);
	ksm_status(vm->k, &shared->vm[vm->number].status);
}

/* From reset to reset, or the end. */
static void boot(struct vm *vm)
{
	struct vm_view *view = &shared->vm[vm->number];
	struct vcpu vcpus[VCPUS];
	pthread_t t[VCPUS];

	vm_open(vm);
	for (unsigned i = 0; i < VCPUS; i++) {
		vcpus[i] = (struct vcpu){ vm, i, next_random(&vm->random) };
		pthread_create(&t[i], NULL, vcpu_main, &vcpus[i]);
	}
	for (unsigned n = 0; !view->finish && !view->reset; n++) {
		/* for a third of the time, something is packed */
		engine_limit(vm->e, n % 12 < 4 && !shared->quiet ? VM_PAGES * PAGE_BYTES / 3 : 0);
		usleep(25000);
		publish(vm);
	}
	vm->stop = true;
	for (unsigned i = 0; i < VCPUS; i++)
		pthread_join(t[i], NULL);
	for (uint32_t i = 0; i < VM_PAGES; i++)
		check_page(vm, i);
	for (uint64_t c = 0; c < vm->e->pages.chunk_count; c++) {
		pthread_mutex_lock(&vm->e->pages.chunk[c].lock);
		pthread_mutex_unlock(&vm->e->pages.chunk[c].lock);
	}
	publish(vm);
	vm_close(vm);
}

static void vm_main(unsigned number, uint64_t random)
{
	static struct vm vm;

	vm.number = number;
	vm.random = random | 1;
	while (!shared->vm[number].finish) {
		shared->vm[number].reset = false;
		memset(vm.version, 0, sizeof(vm.version));
		vm.stop = false;
		vm.era = shared->boots++ / 2;
		boot(&vm);
	}
	_exit(0);
}

/* ---- brimd --------------------------------------------------------------------------- */

static void host_main(void)
{
	struct share_host_config cfg = { .state_dir = state_dir, .store_bytes = 256 * MiB,
					 .recall_after_ns = 300000000, .recover_ns = 2000000000 };
	struct share_host *h;
	struct err e = { "" };

	must(share_host_create(&h, &cfg, &e), &e);
	must(share_host_listen(h, sock, &e), &e);
	for (;;) {
		if (share_host_turn(h, 20))
			die("the loop is broken", 0);
		if (++shared->host_turns % 256 == 0 && !share_host_verify(h, &e))
			die(e.msg, 0);
		share_host_stats(h, &shared->host);
	}
}

/* ---- who kills them -------------------------------------------------------------------- */

static struct {
	pid_t vm[VMS], host;
	uint64_t random;
	uint64_t before[CTR_COUNT_]; /* of VMs that are no more */
	unsigned vm_kills, host_kills, host_stops, resets;
} run;

static pid_t start(void (*fn)(void), unsigned number)
{
	pid_t child = fork();

	cr_assert_geq(child, 0);
	if (child)
		return child;
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	log_init("stress", 2, LOG_ERROR);
	if (fn)
		fn();
	else
		vm_main(number, run.random + number * 7919);
	_exit(8);
}

static void start_vm(unsigned i)
{
	memset(&shared->vm[i], 0, sizeof(shared->vm[i]));
	next_random(&run.random);
	run.vm[i] = start(NULL, i);
}

static void end_child(pid_t pid)
{
	int status;

	kill(pid, SIGKILL);
	cr_assert_eq(waitpid(pid, &status, 0), pid);
	cr_assert(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL, "status %x", (unsigned)status);
}

static void keep_counters(unsigned i)
{
	for (unsigned c = 0; c < CTR_COUNT_; c++)
		run.before[c] += shared->vm[i].counters[c];
}

static uint64_t sum(enum counter c)
{
	uint64_t n = run.before[c];

	for (unsigned i = 0; i < VMS; i++)
		n += shared->vm[i].counters[c];
	return n;
}

static void nobody_ended(void)
{
	int status;
	pid_t pid = waitpid(-1, &status, WNOHANG);

	cr_assert_eq(pid, 0, "process %d ended by itself: status %x", (int)pid, (unsigned)status);
}

/* Whatever brimd does, every VM goes on. */
static void vms_go_on(void)
{
	for (unsigned i = 0; i < VMS; i++) {
		uint64_t was = shared->vm[i].accesses, until = now_ns() + PATIENCE_NS;

		while (shared->vm[i].accesses == was) {
			nobody_ended();
			cr_assert_lt(now_ns(), until, "VM %u stands still", i);
			usleep(1000);
		}
	}
}

static void stop_host_for_a_while(void)
{
	kill(run.host, SIGSTOP);
	usleep((useconds_t)(next_random(&run.random) % 200000));
	vms_go_on();
	kill(run.host, SIGCONT);
	run.host_stops++;
}

static void do_something(void)
{
	unsigned i = (unsigned)(next_random(&run.random) % VMS);

	switch (next_random(&run.random) % 5) {
	case 0:
		end_child(run.host);
		usleep((useconds_t)(next_random(&run.random) % 100000));
		vms_go_on();
		run.host = start(host_main, 0);
		run.host_kills++;
		break;
	case 1:
		end_child(run.vm[i]);
		keep_counters(i);
		start_vm(i);
		run.vm_kills++;
		break;
	case 2:
		stop_host_for_a_while();
		break;
	case 3:
		shared->vm[i].reset = true;
		run.resets++;
		break;
	default:
		break;
	}
}

static bool enough(void)
{
	return sum(CTR_engine_shared) > 3000 && sum(CTR_engine_faults_stored) > 500 &&
	       sum(CTR_share_released) > 200 && sum(CTR_share_contents) > 200 &&
	       sum(CTR_share_disconnects) > 2 && run.vm_kills && run.host_kills && run.host_stops &&
	       run.resets;
}

static uint64_t all_used(void)
{
	uint64_t n = 0;

	for (unsigned i = 0; i < VMS; i++)
		n += shared->vm[i].used;
	return n;
}

static void tell_of_vms(void)
{
	const struct share_host_stats *s = &shared->host;

	for (unsigned i = 0; i < VMS; i++)
		fprintf(stderr, "VM %u uses %lu pages; %s %s\n", i, (unsigned long)shared->vm[i].used,
			ksm_state_name(shared->vm[i].status.state), shared->vm[i].status.why);
	fprintf(stderr, "brimd: %lu groups, %lu processes, %lu sessions, %lu stores, %lu pages, %lu holds\n",
		(unsigned long)s->groups, (unsigned long)s->processes, (unsigned long)s->sessions,
		(unsigned long)s->stores, (unsigned long)s->store_pages, (unsigned long)s->held_pages);
}

/* At rest brimd holds for VMs what they use: no less, or it would be freed under them, and
 * no more, or it would never be. */
static void holds_are_uses(void)
{
	const volatile struct share_host_stats *s = &shared->host;
	uint64_t until = now_ns() + PATIENCE_NS;
	unsigned same = 0;

	shared->quiet = true;
	while (same < 10) {
		same = all_used() == s->held_pages ? same + 1 : 0;
		nobody_ended();
		if (now_ns() > until) {
			tell_of_vms();
			cr_assert_fail("brimd holds other pages than VMs use");
		}
		usleep(50000);
	}
	fprintf(stderr, "at rest %lu pages are held\n", (unsigned long)s->held_pages);
}

/* What the last boot used, the next must not be charged for. */
static void reset_one(void)
{
	uint64_t until = now_ns() + PATIENCE_NS;

	shared->vm[0].reset = true;
	while (shared->vm[0].reset) {
		nobody_ended();
		cr_assert_lt(now_ns(), until, "VM 0 does not reset");
		usleep(1000);
	}
	run.resets++;
	vms_go_on();
	usleep(500000);
}

static void end_vms(void)
{
	for (unsigned i = 0; i < VMS; i++)
		shared->vm[i].finish = true;
	for (unsigned i = 0; i < VMS; i++) {
		int status;

		cr_assert_eq(waitpid(run.vm[i], &status, 0), run.vm[i]);
		cr_assert_eq(status, 0, "VM %u: status %x", i, (unsigned)status);
	}
}

static void host_is_empty(void)
{
	uint64_t until = now_ns() + PATIENCE_NS;
	const volatile struct share_host_stats *s = &shared->host;

	while (s->groups || s->processes || s->stores || s->store_pages || s->held_pages ||
	       s->candidates || s->resident_bytes) {
		nobody_ended();
		cr_assert_lt(now_ns(), until, "brimd has %lu groups, %lu stores, %lu pages of them, "
			     "%lu holds, %lu candidates still", (unsigned long)s->groups,
			     (unsigned long)s->stores, (unsigned long)s->store_pages,
			     (unsigned long)s->held_pages, (unsigned long)s->candidates);
		usleep(1000);
	}
}

static void make_places(void)
{
	cr_assert_not_null(mkdtemp(dir));
	snprintf(sock, sizeof(sock), "%s/brimd.sock", dir);
	snprintf(state_dir, sizeof(state_dir), "%s/brimd", dir);
	cr_assert_eq(mkdir(state_dir, 0700), 0);
	shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	cr_assert_neq(shared, MAP_FAILED);
}

static void remove_all(const char *at)
{
	char path[300];
	DIR *d = opendir(at);
	struct dirent *f;

	while (d && (f = readdir(d)))
		if (f->d_name[0] != '.') {
			snprintf(path, sizeof(path), "%s/%s", at, f->d_name);
			if (unlink(path))
				remove_all(path);
		}
	if (d)
		closedir(d);
	rmdir(at);
}

Test(ksm_stress, processes_come_and_go_and_no_byte_is_wrong)
{
	static struct box probe;
	uint64_t end;

	box_open(&probe, RAM_HUGE_NEVER, BOX_MANUAL); /* or this is skipped */
	box_close(&probe);
	run.random = seed_of_run() | 1;
	make_places();
	run.host = start(host_main, 0);
	for (unsigned i = 0; i < VMS; i++)
		start_vm(i);
	end = now_ns() + env_number("BRIM_STRESS_S", 6) * 1000000000u;
	while (now_ns() < end || (!enough() && now_ns() < end + PATIENCE_NS)) {
		usleep((useconds_t)(next_random(&run.random) % 600000));
		nobody_ended();
		vms_go_on();
		do_something();
	}
	reset_one();
	reset_one();
	holds_are_uses();
	end_vms();
	fprintf(stderr, "%lu shared, %lu came back, %lu zeroes, %lu contents, %lu offers, %lu released, "
		"%lu recalled, %lu crossed, %lu as they left, %lu disconnects; killed %u VMs, %u hosts, "
		"stopped %u, reset %u VMs\n", (unsigned long)sum(CTR_engine_shared),
		(unsigned long)sum(CTR_engine_faults_stored), (unsigned long)sum(CTR_engine_zeroes),
		(unsigned long)sum(CTR_share_contents), (unsigned long)sum(CTR_share_offers),
		(unsigned long)sum(CTR_share_released), (unsigned long)sum(CTR_share_recalled),
		(unsigned long)sum(CTR_share_crossed), (unsigned long)sum(CTR_share_leaving),
		(unsigned long)sum(CTR_share_disconnects), run.vm_kills, run.host_kills, run.host_stops,
		run.resets);
	cr_assert(enough());
	cr_assert_eq(sum(CTR_share_bad_messages) + sum(CTR_share_bad_stores) +
		     sum(CTR_engine_store_damaged), 0);
	host_is_empty();
	end_child(run.host);
	remove_all(dir);
}
