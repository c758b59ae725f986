/*
 * VMs in processes of their own, whose pages are partly equal and change all the time,
 * with a daemon; any of them is killed at random moments.  Each VM knows what every store
 * page it uses must be, and looks.
 */
#include <criterion/criterion.h>

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "host/internal.h"
#include "tests/lib/sharevm.h"

#define VMS 4u
#define PAGES 200u
#define CONTENTS 300u
#define STORE_PAGES 1024u
#define RUN_NS (5 * (uint64_t)1000000000)
#define MS ((uint64_t)1000000)

static char dir[32], path[64];

/* In memory that all processes see. */
static struct tally {
	_Atomic uint64_t shared, compared, welcomes;
} *tally;

/* ---- a VM -------------------------------------------------------------------------------- */

static struct vm {
	struct sharevm v;
	unsigned seed;
	bool welcome, question, release_sent;
	uint32_t content[PAGES], asked[PAGES];
	uint32_t at[PAGES];           /* the store page that it uses; 0: its own */
	uint32_t uses[STORE_PAGES];   /* pages that use it */
	bool held[STORE_PAGES], releasing[STORE_PAGES];
	uint32_t wanted[PAGES], wanted_count;
} vm;

static unsigned some(unsigned below)
{
	return (unsigned)rand_r(&vm.seed) % below;
}

static void *entries(void)
{
	return vm.v.out + sizeof(struct wire_head);
}

static void bring_home(uint32_t page)
{
	if (vm.at[page])
		vm.uses[vm.at[page]]--;
	vm.at[page] = 0;
}

/* As a VM does: it compares, and uses what is equal. */
static void named(uint32_t page, uint32_t store_page, bool asked)
{
	VERIFY(page < PAGES && store_page < STORE_PAGES);
	if (vm.releasing[store_page])
		return;
	vm.held[store_page] = true;
	if (asked && vm.asked[page] == vm.content[page])
		VERIFY(sharevm_has(&vm.v, store_page, vm.content[page]));
	if (vm.at[page] || !sharevm_has(&vm.v, store_page, vm.content[page]))
		return;
	vm.at[page] = store_page;
	vm.uses[store_page]++;
	tally->shared++;
}

static void answered(const struct wire_head *m)
{
	const struct wire_answer *a = wire_entries(m);

	VERIFY(vm.question && m->turn);
	vm.question = false;
	for (unsigned i = 0; i < m->count; i++)
		if (a[i].kind == WIRE_SAME)
			named(a[i].page, a[i].store_page, true);
		else if (a[i].kind == WIRE_WANTED && vm.wanted_count < PAGES)
			vm.wanted[vm.wanted_count++] = a[i].page;
}

static void recalled(const struct wire_head *m)
{
	const struct wire_store_page *p = wire_entries(m);

	for (unsigned i = 0; i < m->count; i++)
		for (uint32_t page = 0; page < PAGES; page++)
			if (vm.at[page] == p[i].store_page)
				bring_home(page);
}

static void take(int type)
{
	const struct wire_head *m = (const void *)vm.v.in;
	const struct wire_offer *o = wire_entries(m);

	if (type == WIRE_WELCOME) {
		sharevm_welcomed(&vm.v);
		vm.welcome = true;
		tally->welcomes++;
	} else if (type == WIRE_ANSWER) {
		answered(m);
	} else if (type == WIRE_RELEASED) {
		memset(vm.releasing, 0, sizeof(vm.releasing));
		vm.release_sent = false;
	} else if (type == WIRE_RECALL) {
		recalled(m);
	} else if (type == WIRE_REFUSED) {
		brim_panic(__FILE__, __LINE__, "refused: %s", (const char *)wire_entries(m));
	}
	for (unsigned i = 0; type == WIRE_OFFER && i < m->count; i++)
		named(o[i].page, o[i].store_page, false);
}

static void ask(void)
{
	struct wire_page *p = entries();
	unsigned n = 0;

	for (uint32_t page = some(PAGES); page < PAGES && n < 30; page++) {
		if (vm.at[page])
			continue;
		vm.asked[page] = vm.content[page];
		p[n++] = (struct wire_page){ .hash = sharevm_hash(&vm.v, vm.content[page]),
					     .page = page };
	}
	vm.question = n > 0 && sharevm_send(&vm.v, WIRE_LOOKUP, n) == 0;
}

static void give(void)
{
	struct wire_content *c = entries();
	unsigned n = 0;

	for (; vm.wanted_count && n < 10; n++) {
		uint32_t page = vm.wanted[--vm.wanted_count];

		c[n].of = (struct wire_page){ .hash = sharevm_hash(&vm.v, vm.asked[page]), .page = page };
		memcpy(c[n].bytes, sharevm_bytes(vm.content[page]), PAGE_BYTES);
	}
	vm.question = sharevm_send(&vm.v, WIRE_CONTENT, n) == 0;
}

static void release(void)
{
	struct wire_store_page *p = entries();
	unsigned n = 0;

	for (uint32_t i = 0; i < STORE_PAGES; i++)
		if (vm.held[i] && !vm.uses[i]) {
			vm.held[i] = false;
			vm.releasing[i] = true;
			p[n++].store_page = i;
		}
	if (n)
		vm.release_sent = sharevm_send(&vm.v, WIRE_RELEASE, n) == 0;
}

static void look_at_all(void)
{
	for (uint32_t page = 0; page < PAGES; page++)
		if (vm.at[page])
			VERIFY(sharevm_has(&vm.v, vm.at[page], vm.content[page]));
	tally->compared++;
}

static int open_socket(void)
{
	struct sockaddr_un sa = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);

	snprintf(sa.sun_path, sizeof(sa.sun_path), "%s", path);
	if (connect(fd, (const struct sockaddr *)&sa, sizeof(sa)) == 0 &&
	    fcntl(fd, F_SETFL, O_NONBLOCK) == 0)
		return fd;
	close(fd);
	return -1;
}

static void connect_again(void)
{
	uint32_t pages[STORE_PAGES];
	unsigned n = 0;

	sharevm_hang_up(&vm.v);
	vm.welcome = vm.question = vm.release_sent = false;
	vm.wanted_count = 0;
	memset(vm.releasing, 0, sizeof(vm.releasing));
	for (uint32_t i = 0; i < STORE_PAGES; i++) {
		vm.held[i] = vm.uses[i] > 0;
		if (vm.held[i])
			pages[n++] = i;
	}
	vm.v.fd = open_socket();
	if (vm.v.fd < 0)
		return;
	if (sharevm_say_hello(&vm.v, "blue", PAGES) == 0 && vm.v.store_fd >= 0)
		(void)sharevm_say_holds(&vm.v, pages, n);
}

static void act(void)
{
	for (unsigned i = some(4); i > 0; i--) {
		uint32_t page = some(PAGES);

		bring_home(page);
		vm.content[page] = some(4) ? some(CONTENTS) : 1000000 + some(1000000);
	}
	if (!vm.welcome)
		return;
	if (!vm.question && vm.wanted_count)
		give();
	else if (!vm.question)
		ask();
	if (!vm.release_sent && some(3) == 0)
		release();
	if (some(300) == 0)
		sharevm_hang_up(&vm.v);
}

static _Noreturn void live(unsigned seed)
{
	int type;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	vm.seed = seed;
	sharevm_init(&vm.v, NULL, getpid(), getuid());
	for (uint32_t i = 0; i < PAGES; i++)
		vm.content[i] = some(CONTENTS);
	for (;;) {
		if (vm.v.fd < 0)
			connect_again();
		while (vm.v.fd >= 0 && (type = sharevm_poll(&vm.v)) > 0)
			take(type);
		if (vm.v.fd >= 0 && type == 0)
			sharevm_hang_up(&vm.v);
		look_at_all();
		act();
		usleep(some(300));
	}
}

/* ---- the daemon ------------------------------------------------------------------------------ */

static _Noreturn void serve(void)
{
	struct share_host_config cfg = { .store_bytes = STORE_PAGES * PAGE_BYTES, .state_dir = dir,
					 .recover_ns = 100 * MS, .recall_after_ns = 20 * MS,
					 .offers_max = 64 };
	struct share_host *h;
	struct err e;
	unsigned turns = 0;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	log_init("daemon", 2, LOG_ERROR);
	VERIFY(share_host_create(&h, &cfg, &e) == 0 && share_host_listen(h, path, &e) == 0);
	for (;;) {
		VERIFY(share_host_turn(h, -1) == 0);
		if (++turns % 16 == 0 && !share_host_verify(h, &e))
			brim_panic(__FILE__, __LINE__, "%s", e.msg);
	}
}

/* ---- killing ------------------------------------------------------------------------------------ */

static pid_t spawn(unsigned which, unsigned seed)
{
	pid_t pid = fork();

	if (pid == 0 && which == VMS)
		serve();
	if (pid == 0)
		live(seed);
	return pid;
}

static void expect_killed(pid_t pid, unsigned which)
{
	int status = 0;

	kill(pid, SIGKILL);
	cr_assert_eq(waitpid(pid, &status, 0), pid);
	cr_assert(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL, "%s ended by itself: %#x",
		  which == VMS ? "the daemon" : "a VM", status);
}

static bool is_gone(const char *file)
{
	for (unsigned i = 0; i < 500; i++, usleep(10000))
		if (access(file, F_OK) < 0)
			return true;
	return false;
}

Test(share_stress, vms_and_daemons_killed_at_random_lose_and_leak_nothing)
{
	unsigned seed = (unsigned)now_ns(), kills = 0;
	uint64_t end = now_ns() + RUN_NS;
	pid_t pid[VMS + 1];
	char state[64];

	cr_log_info("seed %u", seed);
	strcpy(dir, "/tmp/brim-share-XXXXXX");
	cr_assert_not_null(mkdtemp(dir));
	snprintf(path, sizeof(path), "%s/s", dir);
	snprintf(state, sizeof(state), "%s/blue.json", dir);
	tally = mmap(NULL, sizeof(*tally), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	for (unsigned i = VMS + 1; i-- > 0; )
		pid[i] = spawn(i, seed + i);
	while (now_ns() < end || tally->shared < 5000) {
		unsigned which = (unsigned)rand_r(&seed) % (VMS + 2);

		usleep((unsigned)rand_r(&seed) % 80000);
		cr_assert(now_ns() < end + 20 * RUN_NS, "too slow: %d shared", (int)tally->shared);
		if (which > VMS)
			continue;
		expect_killed(pid[which], which);
		pid[which] = spawn(which, seed);
		kills++;
	}
	for (unsigned i = 0; i < VMS; i++)
		expect_killed(pid[i], i);
	cr_expect(is_gone(state), "the daemon still has something of VMs that are gone");
	expect_killed(pid[VMS], VMS);
	fprintf(stderr, "share_stress: %u kills, %d welcomes, %d pages shared, %d looks at all\n", kills,
		(int)tally->welcomes, (int)tally->shared, (int)tally->compared);
	cr_expect(tally->welcomes > kills / 2);
	unlink(path);
	cr_expect_eq(rmdir(dir), 0);
}
