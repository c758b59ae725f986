/*
 * Kernel and initrd that several VMs have loaded: looked up at once, before they are cold,
 * at no pace, and never a reason to wait.  First against a brimd that is the test, then VMs
 * and brimd as processes of their own, told apart by the kernel's page frame numbers.
 */
#include "tests/unit/fakehost.h"

#include <signal.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>

#include "host/host.h"

#define PATIENCE_NS 60000000000u

/* As if loaded: never looked at by a pass. */
static void load(struct fakehost *f, uint64_t from, uint64_t n)
{
	box_fill_all(&f->b, from, n);
	ksm_loaded(f->k, from, n);
}

/* The LOOKUP is of n pages from `from` on. */
static void asks(struct fakehost *f, uint64_t from, unsigned n)
{
	const struct wire_page *p = fh_expect(f, WIRE_LOOKUP);

	cr_assert_eq(f->m->count, n);
	for (unsigned i = 0; i < n; i++)
		cr_assert_eq(p[i].page, from + i);
}

Test(loaded, pages_are_asked_about_before_they_are_cold_and_mapped)
{
	static struct fakehost f;

	fh_open(&f);
	load(&f, 1024, 400);
	for (uint32_t i = 0; i < 400; i++)
		fh_store(&f, i + 1, 1024 + i, 1);
	fh_connect(&f);
	asks(&f, 1024, 400);
	fh_answer(&f, WIRE_SAME, 1);
	fh_step_until(&f, CTR_engine_mapped, 400);
	cr_assert_eq(counter_get(CTR_share_loaded), 400);
	box_check_all(&f.b, 1024, 400);
	box_fill(&f.b, 1030, 2);
	cr_assert(box_has(&f.b, 1030, 2) && box_has(&f.b, 1029, 1) && box_has(&f.b, 1031, 1));
	fh_silence(&f, 20);
	fh_close(&f);
}

Test(loaded, ranges_are_asked_about_in_turn_and_once)
{
	static struct fakehost f;

	fh_open(&f);
	load(&f, 0, BATCH_PAGES + 10);
	load(&f, 4000, 5);
	load(&f, BOX_PAGES - 3, 3);
	ksm_loaded(f.k, 9000, 0);
	fh_connect(&f);
	asks(&f, 0, BATCH_PAGES);
	fh_answer(&f, WIRE_ALONE, 0);
	fh_expect(&f, WIRE_LOOKUP);
	cr_assert_eq(f.m->count, 18);
	fh_answer(&f, WIRE_ALONE, 0);
	fh_silence(&f, 20);
	cr_assert_not(f.k->hurries);
	fh_close(&f);
}

Test(loaded, zeroes_in_it_are_given_up_and_what_left_is_read_where_it_is)
{
	static struct fakehost f;

	fh_open(&f);
	load(&f, 64, 8);
	memset(box_at(&f.b, 66), 0, PAGE_BYTES);
	box_push_out(&f.b, 4);
	engine_tick(f.b.e);
	cr_assert_gt(f.b.held, 0);
	fh_connect(&f);
	fh_expect(&f, WIRE_LOOKUP);
	cr_assert(f.m->count == 7 || f.m->count == 8); /* the zeroes may have left */
	cr_assert_eq(counter_get(CTR_engine_faults_packed), 0);
	fh_answer(&f, WIRE_ALONE, 0);
	for (unsigned i = 64; i < 72; i++)
		cr_assert(i == 66 ? *box_at(&f.b, i) == 0 : box_has(&f.b, i, 1));
	fh_close(&f);
}

Test(loaded, new_connection_asks_again_about_what_is_not_shared_yet)
{
	struct wire_offer o[100];
	static struct fakehost f;

	fh_open(&f);
	load(&f, 0, BATCH_PAGES + 30);
	for (uint32_t i = 0; i < ARRAY_LEN(o); i++) {
		fh_store(&f, i + 1, i, 1);
		o[i] = (struct wire_offer){ i, i + 1 };
	}
	fh_connect(&f);
	asks(&f, 0, BATCH_PAGES);
	fh_send(&f, WIRE_OFFER, o, ARRAY_LEN(o));
	fh_step_until(&f, CTR_engine_mapped, ARRAY_LEN(o));
	fh_hang_up(&f);
	fh_expect(&f, WIRE_HELLO);
	fh_expect(&f, WIRE_HOLD);
	cr_assert_eq(f.m->count, ARRAY_LEN(o));
	fh_expect(&f, WIRE_HOLD);
	fh_welcome(&f);
	asks(&f, ARRAY_LEN(o), BATCH_PAGES - ARRAY_LEN(o));
	fh_answer(&f, WIRE_ALONE, 0);
	asks(&f, BATCH_PAGES, 30);
	fh_close(&f);
}

Test(loaded, later_than_that_they_are_as_all_others)
{
	static struct fakehost f;

	fh_open_with(&f, BOX_MANUAL, (struct ksm_config){ .pass_ns = 1000000, .loaded_ns = 1 });
	load(&f, 0, 100);
	fh_connect(&f);
	fh_silence(&f, 20);
	fh_cool(&f);
	asks(&f, 0, 100);
	fh_close(&f);
}

/* At that pace they would take 100 s. */
Test(loaded, pages_are_asked_about_at_no_pace_and_others_at_theirs)
{
	static struct fakehost f;
	uint64_t start;

	fh_open_with(&f, BOX_MANUAL, (struct ksm_config){ .pass_ns = 1000000, .cpu_pct = 1,
							   .pages_per_s = 50 });
	load(&f, 0, 5000);
	fh_connect(&f);
	start = now_ns();
	for (unsigned asked = 0; asked < 5000; asked += f.m->count) {
		fh_expect(&f, WIRE_LOOKUP);
		fh_answer(&f, WIRE_ALONE, 0);
	}
	cr_assert_lt(now_ns() - start, 5000000000u);
	ksm_step(f.k, 0);
	box_fill_all(&f.b, 6000, 100);
	fh_cool(&f);
	fh_expect(&f, WIRE_LOOKUP);
	fh_answer(&f, WIRE_ALONE, 0);
	ksm_step(f.k, 0);
	cr_assert_gt(f.k->rest_until_ns, now_ns() + 1000000000u);
	fh_close(&f);
}

/* Whatever brimd says meanwhile, and does not say. */
Test(loaded, pace_holds_again_where_brimd_does_not_answer)
{
	struct wire_offer o[50];
	static struct fakehost f;

	fh_open_with(&f, BOX_MANUAL, (struct ksm_config){ .pass_ns = 1000000, .pages_per_s = 10,
							   .loaded_ns = 300000000 });
	load(&f, 0, 100);
	for (uint32_t i = 0; i < ARRAY_LEN(o); i++)
		o[i] = (struct wire_offer){ i, i + 1 };
	fh_connect(&f);
	asks(&f, 0, 100);
	fh_send(&f, WIRE_OFFER, o, ARRAY_LEN(o));
	fh_step_until(&f, CTR_share_offers, ARRAY_LEN(o));
	while (now_ns() < f.k->loaded_until_ns)
		usleep(1000);
	for (uint32_t i = 0; i < ARRAY_LEN(o); i++)
		o[i].store_page += 100; /* the first are being released */
	fh_send(&f, WIRE_OFFER, o, ARRAY_LEN(o));
	fh_step_until(&f, CTR_share_offers, 2 * ARRAY_LEN(o));
	cr_assert_gt(f.k->rest_until_ns, now_ns() + 1000000000u);
	fh_close(&f);
}

/* ---- VMs and a brimd ---------------------------------------------------------------------- */

#define IMAGE_FIRST 1500u
#define IMAGE_PAGES 5000u
#define VMS 4u

static struct view {
	_Atomic bool begun, asked, finish, ended;
	uint8_t *mem; /* guest RAM, in that process */
	_Atomic uint64_t touched;           /* pages the guest has looked at */
	_Atomic uint64_t slowest_ns;        /* time it took to look at all of the image, at most */
	_Atomic uint64_t shared, own_bytes; /* now */
} *view;
static pid_t pids[VMS], host;
static char dir[] = "/tmp/brim-loaded-XXXXXX", sock[64], state_dir[64];

static void die(const char *what, uint64_t n)
{
	fprintf(stderr, "pid %d: %s: %lu\n", (int)getpid(), what, (unsigned long)n);
	_exit(9);
}

static void must(int rc, const struct err *e)
{
	if (rc)
		die(e->msg, (uint64_t)-rc);
}

struct vm {
	unsigned number, image;
	const char *group;
	bool writes;
	uint8_t *mem;
};

static uint64_t *word_at(const struct vm *vm, uint64_t page)
{
	return (uint64_t *)(vm->mem + (page << PAGE_SHIFT));
}

static void check_image_page(const struct vm *vm, uint64_t i, uint64_t version)
{
	const uint64_t *w = word_at(vm, IMAGE_FIRST + i);

	for (unsigned k = 0; k < PAGE_BYTES / sizeof(*w); k++)
		if (w[k] != box_word(i, version, k))
			die("this page of the image is wrong", i);
}

static void fill_image_page(const struct vm *vm, uint64_t i, uint64_t version)
{
	uint64_t *w = word_at(vm, IMAGE_FIRST + i);

	for (unsigned k = 0; k < PAGE_BYTES / sizeof(*w); k++)
		w[k] = box_word(i, version, k);
}

/* A guest that runs from the first moment on, and writes each 16th page once. */
static void *guest_main(void *arg)
{
	const struct vm *vm = arg;
	struct view *v = &view[vm->number];
	uint64_t begun = now_ns();

	for (uint64_t n = 0; !v->finish; n++) {
		uint64_t i = n % IMAGE_PAGES;
		bool mine = vm->writes && i % 16 == 5;

		if (n && i == 0) {
			uint64_t now = now_ns();

			v->slowest_ns = now - begun > v->slowest_ns ? now - begun : v->slowest_ns;
			begun = now;
		}
		check_image_page(vm, i, mine && n >= IMAGE_PAGES ? 100 + vm->number : vm->image);
		if (mine && n < IMAGE_PAGES)
			fill_image_page(vm, i, 100 + vm->number);
		v->touched++;
	}
	return NULL;
}

static void watch_until_finish(struct ram *ram, const struct engine *e, struct view *v)
{
	while (!v->finish) {
		struct engine_stats s;
		uint64_t own;

		engine_stats(e, &s);
		if (ram_resident_bytes(ram, &own) == 0)
			v->own_bytes = own;
		v->shared = s.shared_pages + s.stored_pages;
		v->asked = counter_get(CTR_share_loaded) >= IMAGE_PAGES;
		usleep(500);
	}
}

static void run_vm(struct vm *vm)
{
	struct swap_config sc = { .max_pages = BOX_PAGES };
	struct engine_config ec = { .tier = &swap_tier, .fault_threads = 2 };
	struct ksm_config kc = { .socket = sock, .vm = "vm", .group = vm->group,
				 .retry_ns = 20000000 };
	struct view *v = &view[vm->number];
	struct err e = { "" };
	struct swap *swap;
	struct ksm *k;
	struct ram *ram;
	struct engine *engine;
	pthread_t t;

	must(ram_create(&ram, &(struct ram_config){ BOX_BYTES, RAM_HUGE_AUTO, NULL }, &e), &e);
	vm->mem = ram_slot(ram, 0)->hva;
	ram_expect_dense(ram, gpa(IMAGE_FIRST * PAGE_BYTES), IMAGE_PAGES * PAGE_BYTES);
	for (uint64_t i = 0; i < IMAGE_PAGES; i++)
		fill_image_page(vm, i, vm->image);
	must(swap_create(&swap, &sc, &e), &e);
	must(ksm_create(&k, &kc, &e), &e);
	ec.ram = ram;
	ec.tier_ctx = swap;
	ec.leaving = ksm_leaving;
	ec.leaving_ctx = k;
	must(engine_create(&engine, &ec, &e), &e);
	swap_attach(swap, engine);
	ksm_attach(k, engine, ram);
	ksm_loaded(k, IMAGE_FIRST, IMAGE_PAGES);
	must(ksm_start(k, &e), &e);
	v->mem = vm->mem;
	v->begun = true;
	pthread_create(&t, NULL, guest_main, vm);
	watch_until_finish(ram, engine, v);
	pthread_join(t, NULL);
	ksm_stop(k);
	engine_destroy(&engine);
	ksm_destroy(&k);
	swap_destroy(&swap);
	ram_destroy(&ram);
}

static void host_main(void)
{
	struct share_host_config cfg = { .state_dir = state_dir, .store_bytes = 256 * MiB,
					 .recover_ns = 1000000000 };
	struct share_host *h;
	struct err e = { "" };

	must(share_host_create(&h, &cfg, &e), &e);
	must(share_host_listen(h, sock, &e), &e);
	for (;;)
		must(share_host_turn(h, -1), &e);
}

static pid_t start(struct vm *vm)
{
	pid_t child = fork();

	cr_assert_geq(child, 0);
	if (child)
		return child;
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	log_init("loaded", 2, LOG_ERROR);
	if (!vm)
		host_main();
	run_vm(vm);
	_exit(0);
}

static void wait_for(const _Atomic bool *what)
{
	uint64_t until = now_ns() + PATIENCE_NS;

	while (!*what) {
		cr_assert_lt(now_ns(), until);
		usleep(200);
	}
}

static void start_vm(struct vm vm)
{
	memset(&view[vm.number], 0, sizeof(*view));
	pids[vm.number] = start(&vm);
	wait_for(&view[vm.number].begun);
}

/* Its guest has looked at every page by now, the pages it wrote included, and goes on. */
static void goes_round(unsigned n)
{
	uint64_t until = now_ns() + PATIENCE_NS, goal = view[n].touched + 2 * IMAGE_PAGES;

	while (view[n].touched < goal) {
		cr_assert_eq(waitpid(pids[n], NULL, WNOHANG), 0, "VM %u ended", n);
		cr_assert_lt(now_ns(), until, "VM %u stands still", n);
		usleep(200);
	}
}

static void end_vm(unsigned n)
{
	int status;

	goes_round(n);
	view[n].finish = true;
	cr_assert_eq(waitpid(pids[n], &status, 0), pids[n]);
	cr_assert_eq(status, 0, "VM %u: status %x", n, (unsigned)status);
}

static void end_host(int sig)
{
	kill(host, sig);
	cr_assert_eq(waitpid(host, NULL, 0), host);
}

static void shares(unsigned n, uint64_t least)
{
	uint64_t until = now_ns() + PATIENCE_NS;

	while (view[n].shared < least) {
		cr_assert_eq(waitpid(pids[n], NULL, WNOHANG), 0, "VM %u ended", n);
		cr_assert_lt(now_ns(), until, "VM %u shares %lu pages", n,
			     (unsigned long)view[n].shared);
		usleep(200);
	}
}

static void begin(void)
{
	view = mmap(NULL, VMS * sizeof(*view), PROT_READ | PROT_WRITE,
		    MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	cr_assert_neq(view, MAP_FAILED);
	cr_assert_not_null(mkdtemp(dir));
	snprintf(sock, sizeof(sock), "%s/brimd.sock", dir);
	snprintf(state_dir, sizeof(state_dir), "%s/state", dir);
	cr_assert_eq(mkdir(state_dir, 0700), 0);
}

static void end(void)
{
	char command[100];

	snprintf(command, sizeof(command), "rm -rf %s", dir);
	cr_assert_eq(system(command), 0);
	munmap(view, VMS * sizeof(*view));
}

static bool engine_can_be(void)
{
	static struct box b;
	struct err e = { "" };
	int rc = box_try_open(&b, RAM_HUGE_NEVER, BOX_MANUAL, &e);

	if (rc == 0)
		box_close(&b);
	return rc == 0;
}

/* Frames of the image's pages; false: the kernel does not tell. */
static bool frames_of(unsigned n, uint64_t frames[IMAGE_PAGES])
{
	uint64_t at = (uintptr_t)view[n].mem / PAGE_BYTES + IMAGE_FIRST, any = 0;
	char path[64];
	int fd;

	snprintf(path, sizeof(path), "/proc/%d/pagemap", (int)pids[n]);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	cr_assert_geq(fd, 0);
	cr_assert_eq(pread(fd, frames, IMAGE_PAGES * sizeof(*frames), (off_t)(at * sizeof(*frames))),
		     (ssize_t)(IMAGE_PAGES * sizeof(*frames)));
	close(fd);
	for (unsigned i = 0; i < IMAGE_PAGES; i++) {
		frames[i] = frames[i] >> 63 ? frames[i] & (((uint64_t)1 << 55) - 1) : 0;
		any |= frames[i];
	}
	return any;
}

/* Pages of the image that both have in the same frame. */
static unsigned in_common(unsigned a, unsigned b)
{
	static uint64_t fa[IMAGE_PAGES], fb[IMAGE_PAGES];
	unsigned n = 0;

	if (!frames_of(a, fa) || !frames_of(b, fb))
		cr_skip_test("the kernel does not tell frame numbers: run as root");
	for (unsigned i = 0; i < IMAGE_PAGES; i++)
		n += fa[i] && fa[i] == fb[i];
	return n;
}

Test(loaded, second_vm_of_an_image_has_its_pages_from_the_first_and_no_other_vm)
{
	uint64_t from;

	if (!engine_can_be())
		cr_skip_test("no userfaultfd");
	begin();
	host = start(NULL);
	start_vm((struct vm){ .number = 0, .image = 1, .group = "g" });
	start_vm((struct vm){ .number = 2, .image = 2, .group = "g" });
	start_vm((struct vm){ .number = 3, .image = 1, .group = "other" });
	for (unsigned n = 0; n < VMS; n++)
		if (n != 1)
			wait_for(&view[n].asked);
	start_vm((struct vm){ .number = 1, .image = 1, .group = "g" });
	from = now_ns();
	shares(1, IMAGE_PAGES * 99 / 100);
	fprintf(stderr, "the second VM shares its image %lu ms after its start, and has %lu KiB of its own\n",
		(unsigned long)((now_ns() - from) / 1000000),
		(unsigned long)(view[1].own_bytes / KiB));
	shares(0, IMAGE_PAGES * 99 / 100);
	goes_round(0);
	goes_round(1);
	for (unsigned n = 0; n < VMS; n++)
		fprintf(stderr, "VM %u's guest has looked at all of its image in %lu us or less\n", n,
			(unsigned long)(view[n].slowest_ns / 1000));
	for (unsigned n = 0; n < 2; n++)
		cr_assert_lt(view[n].own_bytes, IMAGE_PAGES * PAGE_BYTES / 50, "VM %u", n);
	cr_assert_geq(in_common(0, 1), IMAGE_PAGES * 98 / 100);
	for (unsigned n = 0; n < 2; n++) {
		cr_assert_eq(in_common(n, 2), 0);
		cr_assert_eq(in_common(n, 3), 0);
	}
	cr_assert_eq(view[2].shared + view[3].shared, 0);
	for (unsigned n = 0; n < VMS; n++)
		end_vm(n);
	end_host(SIGKILL);
	end();
}

/* Whatever brimd does: the guest runs from its start on, and no byte of its image is another. */
static void host_that(int sig, unsigned rounds)
{
	uint64_t random = seed_of_run() | 1, shared = 0;

	host = start(NULL);
	start_vm((struct vm){ .number = 0, .image = 1, .group = "g", .writes = true });
	wait_for(&view[0].asked);
	for (unsigned r = 0; r < rounds; r++) {
		start_vm((struct vm){ .number = 1, .image = 1, .group = "g", .writes = true });
		usleep((useconds_t)(next_random(&random) % 60000));
		kill(host, sig);
		if (sig == SIGKILL)
			end_host(sig);
		goes_round(1);
		shared += view[1].shared;
		if (sig == SIGKILL)
			host = start(NULL);
		else
			kill(host, SIGCONT);
		shares(1, IMAGE_PAGES * 8 / 10);
		end_vm(1);
	}
	fprintf(stderr, "%lu pages were shared meanwhile in %u rounds\n", (unsigned long)shared, rounds);
	end_vm(0);
	end_host(SIGKILL);
}

Test(loaded, brimd_that_is_killed_meanwhile_costs_no_page)
{
	if (!engine_can_be())
		cr_skip_test("no userfaultfd");
	begin();
	host_that(SIGKILL, 5);
	end();
}

Test(loaded, brimd_that_stands_still_holds_nobody_up)
{
	if (!engine_can_be())
		cr_skip_test("no userfaultfd");
	begin();
	host_that(SIGSTOP, 5);
	end();
}

Test(loaded, no_brimd_holds_nobody_up)
{
	if (!engine_can_be())
		cr_skip_test("no userfaultfd");
	begin();
	start_vm((struct vm){ .number = 0, .image = 1, .group = "g", .writes = true });
	goes_round(0);
	cr_assert_eq(view[0].shared, 0);
	end_vm(0);
	end();
}
