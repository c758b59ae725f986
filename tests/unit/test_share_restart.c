/*
 * A daemon that ends and is started again (host/recover.c): no page lost, none freed early,
 * all freed in the end.
 */
#include <criterion/criterion.h>

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "host/internal.h"
#include "tests/lib/sharevm.h"

#define VM_PAGES 1000u
#define SHARED 50u
#define MS ((uint64_t)1000000)

static char dir[32];
static uint64_t recover_ns = 5000 * MS;

static struct share_host *start(void)
{
	struct share_host_config cfg = { .store_bytes = 16 * MiB, .state_dir = dir,
					 .recover_ns = recover_ns };
	struct share_host *h;
	struct err e = { "" };

	cr_assert_eq(share_host_create(&h, &cfg, &e), 0, "%s", e.msg);
	log_init("test", 2, LOG_ERROR);
	return h;
}

static struct share_host *first_start(void)
{
	strcpy(dir, "/tmp/brim-share-XXXXXX");
	cr_assert_not_null(mkdtemp(dir));
	return start();
}

/* As after a kill: whatever a daemon does at its end is not needed. */
static void restart(struct share_host **h)
{
	share_host_destroy(h);
	*h = start();
}

static void finish(struct share_host *h)
{
	struct share_host_stats s;

	for (unsigned i = 0; i < 100; i++)
		cr_assert_eq(share_host_turn(h, 1), 0);
	share_host_stats(h, &s);
	cr_expect(s.groups == 0 && s.processes == 0 && s.store_pages == 0 && s.candidates == 0);
	share_host_destroy(&h);
	cr_expect_eq(rmdir(dir), 0, "files are left in %s", dir);
}

static void enter(struct sharevm *v, struct share_host *h)
{
	sharevm_init_real(v, h, 1000);
	sharevm_connect(v);
	cr_assert_eq(sharevm_hello(v, "blue", VM_PAGES), WIRE_WELCOME);
}

/* Both hold store pages FIRST + i with content i. */
static void share_pages(struct sharevm *a, struct sharevm *b)
{
	for (uint32_t i = 0; i < SHARED; i++) {
		cr_assert_eq(sharevm_lookup(a, i, i).kind, WIRE_ALONE);
		cr_assert_eq(sharevm_lookup(b, i, i).kind, WIRE_WANTED);
		cr_assert_eq(sharevm_content(b, i, i).store_page, STORE_FIRST_PAGE + i);
		cr_assert_eq(sharevm_receive(a), WIRE_OFFER);
	}
}

/* Says HELLO with its store, and HOLD for contents first to end - 1. */
static int come_back(struct sharevm *v, struct share_host *h, uint32_t first, uint32_t end)
{
	uint32_t pages[SHARED];

	for (uint32_t i = first; i < end; i++)
		pages[i - first] = STORE_FIRST_PAGE + i;
	sharevm_hang_up(v);
	v->host = h;
	sharevm_connect(v);
	sharevm_say_hello(v, "blue", VM_PAGES);
	sharevm_say_holds(v, pages, end - first);
	return sharevm_receive(v);
}

static bool has_all(const struct sharevm *v, uint32_t first, uint32_t end)
{
	for (uint32_t i = first; i < end; i++)
		if (!sharevm_has(v, STORE_FIRST_PAGE + i, i))
			return false;
	return true;
}

static struct share_host_stats stats(const struct share_host *h)
{
	struct share_host_stats s;

	share_host_stats(h, &s);
	return s;
}

Test(share_restart, what_is_claimed_stays_and_the_rest_is_given_back_once_all_are_back)
{
	struct share_host *h = first_start();
	struct sharevm a, b;
	uint64_t full;

	enter(&a, h);
	enter(&b, h);
	share_pages(&a, &b);
	full = stats(h).resident_bytes;
	restart(&h);
	cr_expect_eq(sharevm_receive(&a), 0);
	cr_assert_eq(come_back(&a, h, 0, 20), WIRE_WELCOME);
	cr_expect_eq(stats(h).resident_bytes, full, "b is not back");
	cr_expect(has_all(&a, 0, SHARED));
	cr_assert_eq(come_back(&b, h, 10, 30), WIRE_WELCOME);
	sharevm_settle(h);
	cr_expect(has_all(&a, 0, 30));
	cr_expect_eq(stats(h).held_pages, 40);
	cr_expect_eq(stats(h).store_pages, 30);
	cr_expect_eq(stats(h).resident_bytes, full - 20 * PAGE_BYTES);
	sharevm_welcomed(&a);
	memcpy(&b.welcome, b.in + sizeof(struct wire_head), sizeof(b.welcome));
	cr_expect_eq(a.welcome.store_id, b.welcome.store_id);
	a.welcome.seed = b.welcome.seed;
	for (uint32_t i = 0; i < SHARED; i++)
		cr_expect_eq(sharevm_lookup(&a, 100 + i, i).kind, i < 30 ? WIRE_SAME : WIRE_ALONE,
			     "claimed pages are known by their hashes, %u", i);
	sharevm_end(&a), sharevm_end(&b);
	finish(h);
}

Test(share_restart, page_claimed_and_released_by_one_is_there_for_the_other)
{
	struct share_host *h = first_start();
	struct sharevm a, b;

	enter(&a, h);
	enter(&b, h);
	share_pages(&a, &b);
	restart(&h);
	cr_assert_eq(come_back(&a, h, 0, SHARED), WIRE_WELCOME);
	for (uint32_t i = 0; i < 20; i++)
		cr_assert_eq(sharevm_release(&a, STORE_FIRST_PAGE + i), WIRE_RELEASED);
	cr_assert_eq(sharevm_lookup(&a, 500, 12345).kind, WIRE_ALONE);
	cr_assert_eq(sharevm_lookup(&a, 501, 12345).kind, WIRE_WANTED);
	cr_expect_eq(sharevm_content(&a, 501, 12345).kind, WIRE_LATER, "nothing is written in limbo");
	sharevm_end(&a);
	sharevm_settle(h);
	cr_assert_eq(come_back(&b, h, 0, SHARED), WIRE_WELCOME);
	sharevm_settle(h);
	cr_expect(has_all(&b, 0, SHARED));
	cr_expect_eq(stats(h).store_pages, SHARED);
	sharevm_end(&b);
	finish(h);
}

Test(share_restart, pages_of_one_that_ends_without_coming_back_are_given_back)
{
	struct share_host *h = first_start();
	struct sharevm a, b, c;
	uint64_t full;

	enter(&a, h);
	enter(&b, h);
	enter(&c, h);
	share_pages(&a, &b);
	full = stats(h).resident_bytes;
	sharevm_end(&c); /* before: nobody waits for it */
	sharevm_settle(h);
	restart(&h);
	cr_expect_eq(stats(h).processes, 2);
	cr_assert_eq(come_back(&a, h, 0, 5), WIRE_WELCOME);
	sharevm_settle(h);
	cr_expect_eq(stats(h).resident_bytes, full);
	sharevm_end(&b);
	sharevm_settle(h);
	cr_expect_eq(stats(h).resident_bytes, full - (SHARED - 5) * PAGE_BYTES);
	cr_expect(has_all(&a, 0, 5));
	sharevm_end(&a);
	finish(h);
}

Test(share_restart, new_vm_waits_for_the_store_that_others_bring)
{
	struct share_host *h = first_start();
	struct sharevm a, b, c;

	enter(&a, h);
	enter(&b, h);
	share_pages(&a, &b);
	restart(&h);
	sharevm_init_real(&c, h, 1000);
	sharevm_connect(&c);
	cr_expect_eq(sharevm_hello(&c, "blue", 100), -EAGAIN);
	cr_assert_eq(come_back(&a, h, 0, SHARED), WIRE_WELCOME);
	cr_expect_eq(sharevm_receive(&c), -EAGAIN);
	cr_assert_eq(come_back(&b, h, 0, SHARED), WIRE_WELCOME);
	cr_assert_eq(sharevm_receive(&c), WIRE_WELCOME);
	sharevm_welcomed(&c);
	cr_expect_eq(c.welcome.store_id, a.welcome.store_id);
	cr_expect_eq(sharevm_lookup(&c, 1, 7).store_page, STORE_FIRST_PAGE + 7);
	sharevm_end(&a), sharevm_end(&b), sharevm_end(&c);
	finish(h);
}

Test(share_restart, new_vm_does_not_wait_for_ever_and_the_late_one_keeps_its_store)
{
	struct share_host *h = (recover_ns = 50 * MS, first_start());
	struct sharevm a, b, c;
	int rc;

	enter(&a, h);
	enter(&b, h);
	share_pages(&a, &b);
	restart(&h);
	sharevm_init_real(&c, h, 1000);
	sharevm_connect(&c);
	rc = sharevm_hello(&c, "blue", 100);
	for (unsigned i = 0; i < 500 && rc == -EAGAIN; i++) {
		usleep(1000);
		rc = sharevm_receive(&c);
	}
	cr_assert_eq(rc, WIRE_WELCOME);
	sharevm_welcomed(&c);
	cr_expect_neq(c.welcome.store_id, a.welcome.store_id);
	cr_assert_eq(sharevm_lookup(&c, 1, 7).kind, WIRE_ALONE);
	cr_assert_eq(come_back(&a, h, 0, SHARED), WIRE_WELCOME);
	cr_assert_eq(come_back(&b, h, 0, SHARED), WIRE_WELCOME);
	sharevm_settle(h);
	cr_expect(has_all(&a, 0, SHARED));
	cr_expect_eq(stats(h).stores, 2);
	cr_expect_eq(sharevm_lookup(&c, 2, 8).kind, WIRE_ALONE, "what is in another store is not for it");
	sharevm_welcomed(&b);
	cr_expect_eq(sharevm_lookup(&b, 900, 8).store_page, STORE_FIRST_PAGE + 8);
	cr_expect_eq(sharevm_lookup(&b, 901, 4711).kind, WIRE_ALONE);
	cr_expect_eq(sharevm_lookup(&c, 3, 4711).kind, WIRE_ALONE, "nor are candidates there");
	sharevm_end(&a), sharevm_end(&b);
	sharevm_settle(h);
	cr_expect_eq(stats(h).stores, 1);
	sharevm_end(&c);
	finish(h);
}

static void remove_state(void)
{
	char path[64];

	snprintf(path, sizeof(path), "%s/blue.json", dir);
	cr_assert_eq(unlink(path), 0);
}

Test(share_restart, registry_in_the_store_is_enough)
{
	struct share_host *h = first_start();
	struct sharevm a, b;
	uint64_t full;

	enter(&a, h);
	enter(&b, h);
	share_pages(&a, &b);
	full = stats(h).resident_bytes;
	share_host_destroy(&h);
	remove_state();
	h = start();
	cr_expect_eq(stats(h).groups, 0);
	cr_assert_eq(come_back(&a, h, 0, 10), WIRE_WELCOME);
	sharevm_settle(h);
	cr_expect_eq(stats(h).resident_bytes, full, "b is known from the registry");
	cr_expect_eq(stats(h).processes, 2);
	cr_assert_eq(come_back(&b, h, 40, SHARED), WIRE_WELCOME);
	sharevm_settle(h);
	cr_expect(has_all(&a, 0, 10) && has_all(&b, 40, SHARED));
	cr_expect_eq(stats(h).store_pages, 20);
	sharevm_end(&a), sharevm_end(&b);
	finish(h);
}

Test(share_restart, connection_that_breaks_among_its_holds_is_awaited_still)
{
	struct share_host *h = first_start();
	struct sharevm a, b;
	uint32_t some[] = { STORE_FIRST_PAGE };

	enter(&a, h);
	enter(&b, h);
	share_pages(&a, &b);
	restart(&h);
	cr_assert_eq(come_back(&b, h, 0, 1), WIRE_WELCOME);
	sharevm_hang_up(&a);
	a.host = h;
	sharevm_connect(&a);
	sharevm_say_hello(&a, "blue", VM_PAGES);
	memcpy(a.out + sizeof(struct wire_head), some, sizeof(some));
	cr_assert_eq(sharevm_send(&a, WIRE_HOLD, 1), 0);
	sharevm_settle(h);
	sharevm_hang_up(&a);
	sharevm_settle(h);
	cr_expect(has_all(&b, 0, SHARED), "nothing was given back");
	cr_assert_eq(come_back(&a, h, 0, SHARED), WIRE_WELCOME);
	sharevm_settle(h);
	cr_expect(has_all(&a, 0, SHARED));
	sharevm_end(&a), sharevm_end(&b);
	finish(h);
}

Test(share_restart, stranger_with_the_store_is_refused)
{
	struct share_host *h = first_start();
	struct sharevm a, thief;

	enter(&a, h);
	restart(&h);
	sharevm_init_real(&thief, h, 1000);
	thief.store_fd = dup(a.store_fd);
	thief.welcome = a.welcome;
	sharevm_connect(&thief);
	cr_assert_eq(sharevm_hello(&thief, "blue", 10), WIRE_REFUSED);
	cr_expect(strstr((const char *)thief.in + sizeof(struct wire_head), "never given that store"));
	cr_assert_eq(come_back(&a, h, 0, 0), WIRE_WELCOME);
	sharevm_end(&a), sharevm_end(&thief);
	finish(h);
}

Test(share_restart, damaged_state_file_is_passed_over)
{
	struct share_host *h = first_start();
	char path[64];
	FILE *f;

	share_host_destroy(&h);
	snprintf(path, sizeof(path), "%s/x.json", dir);
	f = fopen(path, "we");
	fputs("{\"version\": 1, \"group\": \"blue\", \"uid\": 1, \"processes\": [{\"pid\": -4}]}", f);
	fclose(f);
	snprintf(path, sizeof(path), "%s/y.next", dir); /* its writer was killed */
	f = fopen(path, "we");
	fclose(f);
	h = start();
	cr_expect_neq(access(path, F_OK), 0);
	snprintf(path, sizeof(path), "%s/x.json", dir);
	sharevm_settle(h);
	unlink(path);
	snprintf(path, sizeof(path), "%s/blue.json", dir);
	unlink(path);
	finish(h);
}

Test(share_restart, three_times_in_a_row_loses_nothing)
{
	struct share_host *h = first_start();
	struct sharevm a, b;

	enter(&a, h);
	enter(&b, h);
	share_pages(&a, &b);
	for (unsigned i = 0; i < 3; i++) {
		restart(&h);
		if (i == 1)
			restart(&h); /* before anybody is back */
		cr_assert_eq(come_back(&a, h, 0, SHARED), WIRE_WELCOME);
		if (i == 2)
			continue;
		cr_assert_eq(come_back(&b, h, 0, SHARED), WIRE_WELCOME);
	}
	restart(&h); /* a is back, b is not */
	cr_assert_eq(come_back(&b, h, 0, SHARED), WIRE_WELCOME);
	cr_assert_eq(come_back(&a, h, 0, SHARED), WIRE_WELCOME);
	sharevm_settle(h);
	cr_expect(has_all(&a, 0, SHARED) && has_all(&b, 0, SHARED));
	cr_expect_eq(stats(h).held_pages, 2 * SHARED);
	sharevm_end(&a), sharevm_end(&b);
	finish(h);
}

/* ---- a daemon that is killed --------------------------------------------------------------- */

static pid_t spawn(const char *path)
{
	pid_t pid = fork();
	struct share_host *h;
	struct err e;

	if (pid)
		return pid;
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	h = start();
	if (share_host_listen(h, path, &e))
		_exit(1);
	while (share_host_turn(h, -1) == 0)
		;
	_exit(2);
}

static int connect_to(const char *path)
{
	struct sockaddr_un sa = { .sun_family = AF_UNIX };
	int fd = -1;

	snprintf(sa.sun_path, sizeof(sa.sun_path), "%s", path);
	for (unsigned i = 0; i < 2000; i++, usleep(1000)) {
		fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
		if (connect(fd, (const struct sockaddr *)&sa, sizeof(sa)) == 0)
			return fd;
		close(fd);
	}
	return -1;
}

static bool contents_are_right(const struct sharevm *v, const uint32_t *pages, uint32_t n)
{
	for (uint32_t i = 0; i < n; i++)
		if (!sharevm_has(v, pages[i], i))
			return false;
	return true;
}

/* HELLO and HOLD over a connection that may break meanwhile.  0: it did. */
static int try_holds(struct sharevm *v, const uint32_t *page, unsigned n)
{
	if (sharevm_say_hello(v, "blue", VM_PAGES) || sharevm_say_holds(v, page, n))
		return 0;
	return sharevm_receive(v);
}

/* Until a daemon answers: a killed one closes its listening socket after its connections,
 * and a connection made between the two is closed without a word. */
static int return_to(struct sharevm *v, const char *path, const uint32_t *page)
{
	int rc = 0;

	while (rc == 0) {
		sharevm_hang_up(v);
		v->fd = connect_to(path);
		if (v->fd < 0)
			return -1;
		rc = try_holds(v, page, SHARED);
	}
	return rc;
}

/* A VM of its own process: shares pages with itself, and finds each daemon again until it
 * is told that this is enough.  Exits 0 when all its pages were right all the time. */
static _Noreturn void fail_with(int status)
{
	fprintf(stderr, "VM %d: failed at %d\n", (int)getpid(), status);
	kill(getppid(), SIGABRT); /* it waits for a word of this VM */
	_exit(status);
}

static _Noreturn void live(const char *path, int tell, unsigned daemons)
{
	static struct sharevm v;
	uint32_t page[SHARED];

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	sharevm_init(&v, NULL, getpid(), getuid());
	v.fd = connect_to(path);
	if (v.fd < 0 || sharevm_hello(&v, "blue", VM_PAGES) != WIRE_WELCOME)
		fail_with(1);
	for (uint32_t i = 0; i < SHARED; i++) {
		struct wire_answer r = sharevm_lookup(&v, i, i);

		if (r.kind == WIRE_ALONE)
			r = sharevm_lookup(&v, 500 + i, i);
		if (r.kind == WIRE_WANTED)
			r = sharevm_content(&v, r.page, i);
		page[i] = r.store_page;
		if (r.kind != WIRE_SAME)
			fail_with(2);
	}
	while (write(tell, "x", 1) == 1 && --daemons) {
		while (sharevm_receive(&v) > 0)
			;
		if (!contents_are_right(&v, page, SHARED))
			fail_with(3);
		if (return_to(&v, path, page) != WIRE_WELCOME ||
		    !contents_are_right(&v, page, SHARED))
			fail_with(4);
		sharevm_welcomed(&v);
		if (sharevm_lookup(&v, 100, 3).kind == WIRE_LATER)
			fail_with(5);
	}
	_exit(contents_are_right(&v, page, SHARED) ? 0 : 6);
}

static void await_bytes(int fd, unsigned n)
{
	char c;

	for (unsigned i = 0; i < n; i++)
		cr_assert_eq(read(fd, &c, 1), 1);
}

Test(share_restart, killed_daemons_lose_no_page_of_living_vms)
{
	enum { VMS = 3, DAEMONS = 4 };
	struct share_host *h = first_start();
	char path[64];
	pid_t daemon, vm[VMS];
	int pair[2], status;

	share_host_destroy(&h);
	snprintf(path, sizeof(path), "%s/s", dir);
	cr_assert_eq(pipe2(pair, O_CLOEXEC), 0);
	daemon = spawn(path);
	for (unsigned i = 0; i < VMS; i++)
		if ((vm[i] = fork()) == 0)
			live(path, pair[1], DAEMONS);
	for (unsigned i = 1; i < DAEMONS; i++) {
		await_bytes(pair[0], VMS);
		kill(daemon, SIGKILL);
		waitpid(daemon, NULL, 0);
		daemon = spawn(path);
	}
	for (unsigned i = 0; i < VMS; i++) {
		cr_assert_eq(waitpid(vm[i], &status, 0), vm[i]);
		cr_expect_eq(status, 0, "VM %u: %#x", i, status);
	}
	kill(daemon, SIGKILL);
	waitpid(daemon, NULL, 0);
	h = start(); /* they are all gone: nothing is left but their file */
	unlink(path);
	close(pair[0]), close(pair[1]);
	finish(h);
}
