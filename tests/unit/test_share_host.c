/*
 * The host's side of sharing (host/), spoken to by hand.  Every turn of the host is
 * followed by a count of everything (share_host_verify).
 */
#include <criterion/criterion.h>

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "host/internal.h"
#include "tests/lib/sharevm.h"

#define VM_PAGES 1000u
#define MS ((uint64_t)1000000)

static unsigned fds_before;

static struct share_host *make_with(struct share_host_config cfg)
{
	struct share_host *h;
	struct err e = { "" };

	if (!cfg.store_bytes)
		cfg.store_bytes = 16 * MiB;
	fds_before = count_fds();
	cr_assert_eq(share_host_create(&h, &cfg, &e), 0, "%s", e.msg);
	log_init("test", 2, LOG_ERROR);
	return h;
}

static struct share_host *make(void)
{
	return make_with((struct share_host_config){ 0 });
}

static struct share_host_stats stats(const struct share_host *h)
{
	struct share_host_stats s;

	share_host_stats(h, &s);
	return s;
}

/* Everything of VMs that have ended must be gone. */
static void expect_empty(struct share_host *h)
{
	struct share_host_stats s;

	sharevm_settle(h);
	s = stats(h);
	cr_expect(s.groups == 0 && s.processes == 0 && s.sessions == 0 && s.stores == 0 &&
		  s.candidates == 0 && s.store_pages == 0 && s.held_pages == 0,
		  "%d groups %d processes %d sessions %d candidates %d held", (int)s.groups,
		  (int)s.processes, (int)s.sessions, (int)s.candidates, (int)s.held_pages);
}

static void finish(struct share_host *h)
{
	expect_empty(h);
	share_host_destroy(&h);
	cr_expect_eq(count_fds(), fds_before, "descriptors leaked");
}

/* Connected, and has said nothing yet. */
static void knock(struct sharevm *v, struct share_host *h, int pid)
{
	sharevm_init(v, h, pid, 1000);
	sharevm_connect(v);
}

static void enter(struct sharevm *v, struct share_host *h, int pid, const char *group)
{
	knock(v, h, pid);
	cr_assert_eq(sharevm_hello(v, group, VM_PAGES), WIRE_WELCOME);
}

/* A host with two VMs of one group. */
static struct share_host *make_two_with(struct sharevm *a, struct sharevm *b,
					struct share_host_config cfg)
{
	struct share_host *h = make_with(cfg);

	enter(a, h, 1, "blue");
	enter(b, h, 2, "blue");
	return h;
}

static struct share_host *make_two(struct sharevm *a, struct sharevm *b)
{
	return make_two_with(a, b, (struct share_host_config){ 0 });
}

static void finish_two(struct share_host *h, struct sharevm *a, struct sharevm *b)
{
	sharevm_end(a);
	sharevm_end(b);
	finish(h);
}

static void reconnect(struct sharevm *v)
{
	sharevm_hang_up(v);
	sharevm_connect(v);
}

/* Of a message to be sent. */
static void *entries(struct sharevm *v)
{
	return v->out + sizeof(struct wire_head);
}

/* The i-th entry of a CONTENT to be sent: that content, as the page's. */
static struct wire_content *put_content(struct sharevm *v, uint32_t i, uint32_t page, uint32_t content)
{
	struct wire_content *c = (struct wire_content *)entries(v) + i;

	c->of = (struct wire_page){ .hash = sharevm_hash(v, content), .page = page };
	memcpy(c->bytes, sharevm_bytes(content), PAGE_BYTES);
	return c;
}

static const char *refusal(const struct sharevm *v)
{
	return (const char *)v->in + sizeof(struct wire_head);
}

/* The next message is an offer of that page: of which store page. */
static uint32_t offered(struct sharevm *v, uint32_t page)
{
	const struct wire_head *m = (const void *)v->in;
	const struct wire_offer *o = wire_entries(m);

	cr_assert_eq(sharevm_receive(v), WIRE_OFFER);
	cr_assert_eq(m->count, 1);
	cr_assert_eq(o->page, page);
	return o->store_page;
}

/* Both have the content at those pages; the second VM's goes to the store. */
static uint32_t share_one(struct sharevm *a, uint32_t page_a, struct sharevm *b, uint32_t page_b,
			  uint32_t content)
{
	struct wire_answer r;

	cr_assert_eq(sharevm_lookup(a, page_a, content).kind, WIRE_ALONE);
	cr_assert_eq(sharevm_lookup(b, page_b, content).kind, WIRE_WANTED);
	r = sharevm_content(b, page_b, content);
	cr_assert_eq(r.kind, WIRE_SAME);
	cr_assert_eq(offered(a, page_a), r.store_page);
	return r.store_page;
}

/* ---- HELLO ------------------------------------------------------------------------------ */

Test(share_host, hello_of_one_group_gets_one_store_and_of_another_another)
{
	struct sharevm a, b, c;
	struct share_host *h = make_two(&a, &b);

	enter(&c, h, 3, "red/../x");
	cr_expect_eq(a.welcome.store_id, b.welcome.store_id);
	cr_expect_eq(a.welcome.seed, b.welcome.seed);
	cr_expect_neq(a.welcome.store_id, c.welcome.store_id);
	cr_expect_neq(a.welcome.seed, c.welcome.seed);
	cr_expect_eq(a.welcome.store_pages, 16 * MiB / PAGE_BYTES);
	cr_expect_eq(fcntl(a.store_fd, F_GETFL) & O_ACCMODE, O_RDONLY);
	sharevm_end(&a), sharevm_end(&b), sharevm_end(&c);
	finish(h);
}

Test(share_host, hello_of_another_user_is_refused_naming_both)
{
	struct share_host *h = make();
	struct sharevm a, b;

	enter(&a, h, 1, "blue");
	sharevm_init(&b, h, 2, 1001);
	sharevm_connect(&b);
	cr_assert_eq(sharevm_hello(&b, "blue", 10), WIRE_REFUSED);
	cr_expect_str_eq(refusal(&b), "share group blue belongs to user 1000, and VM vm2 runs as user 1001");
	cr_expect_eq(sharevm_receive(&b), 0);
	finish_two(h, &a, &b);
}

Test(share_host, hello_again_replaces_the_connection_and_keeps_holds)
{
	struct sharevm a, b, again;
	struct share_host *h = make_two(&a, &b);
	uint32_t page;

	page = share_one(&a, 5, &b, 6, 77);
	again = a;
	again.fd = -1;
	sharevm_connect(&again);
	sharevm_say_hello(&again, "blue", VM_PAGES);
	sharevm_settle(h);
	cr_expect_eq(sharevm_receive(&a), 0, "the old one is closed");
	cr_assert_eq(sharevm_say_holds(&again, &page, 1), 0);
	cr_assert_eq(sharevm_receive(&again), WIRE_WELCOME);
	cr_expect_eq(stats(h).held_pages, 2);
	close(a.fd);
	sharevm_end(&again), sharevm_end(&b);
	finish(h);
}

Test(share_host, held_and_not_claimed_again_is_dropped_after_reconnecting)
{
	struct sharevm a, b;
	struct share_host *h = make_two(&a, &b);
	uint32_t kept, dropped;

	kept = share_one(&a, 5, &b, 6, 77);
	dropped = share_one(&a, 7, &b, 8, 78);
	sharevm_hang_up(&a);
	sharevm_settle(h);
	cr_expect_eq(stats(h).held_pages, 4, "they belong to the process");
	sharevm_connect(&a);
	sharevm_say_hello(&a, "blue", VM_PAGES);
	cr_assert_eq(sharevm_say_holds(&a, &kept, 1), 0);
	cr_assert_eq(sharevm_receive(&a), WIRE_WELCOME);
	sharevm_welcomed(&a);
	cr_expect_eq(stats(h).held_pages, 3);
	cr_expect(sharevm_has(&a, kept, 77) && sharevm_has(&b, dropped, 78));
	finish_two(h, &a, &b);
}

/* A VM that was reset: the same process, and nothing of what it had. */
Test(share_host, process_that_comes_back_without_its_store_holds_nothing)
{
	struct sharevm a, b;
	struct share_host *h = make_two(&a, &b);

	share_one(&a, 5, &b, 6, 77);
	sharevm_hang_up(&a);
	munmap((void *)(uintptr_t)a.store, (size_t)a.welcome.store_pages * PAGE_BYTES);
	close(a.store_fd);
	a.store = NULL;
	a.store_fd = -1;
	sharevm_connect(&a);
	cr_assert_eq(sharevm_hello(&a, "blue", VM_PAGES), WIRE_WELCOME);
	cr_expect_eq(stats(h).held_pages, 1);
	finish_two(h, &a, &b);
}

/* ---- looking up and sharing ----------------------------------------------------------------- */

Test(share_host, two_vms_share_a_page_and_read_it)
{
	struct sharevm a, b;
	struct share_host *h = make_two(&a, &b);
	uint32_t page;

	page = share_one(&a, 5, &b, 6, 1234);
	cr_expect(sharevm_has(&a, page, 1234));
	cr_expect(sharevm_has(&b, page, 1234));
	cr_expect_eq(stats(h).store_pages, 1);
	cr_expect_eq(stats(h).candidates, 0);
	finish_two(h, &a, &b);
}

Test(share_host, three_vms_get_offers_and_the_fourth_the_page_at_once)
{
	struct share_host *h = make();
	struct sharevm v[4];
	struct wire_answer r;

	for (int i = 0; i < 4; i++)
		enter(&v[i], h, i + 1, "blue");
	cr_assert_eq(sharevm_lookup(&v[0], 1, 9).kind, WIRE_ALONE);
	cr_assert_eq(sharevm_lookup(&v[1], 2, 9).kind, WIRE_WANTED);
	cr_assert_eq(sharevm_lookup(&v[2], 3, 9).kind, WIRE_WANTED);
	r = sharevm_content(&v[1], 2, 9);
	cr_expect_eq(offered(&v[0], 1), r.store_page);
	cr_expect_eq(offered(&v[2], 3), r.store_page);
	cr_expect_eq(sharevm_content(&v[2], 3, 9).kind, WIRE_SAME, "too late, and no harm");
	cr_expect_eq(sharevm_lookup(&v[3], 4, 9).store_page, r.store_page);
	cr_expect_eq(stats(h).held_pages, 4);
	cr_expect_eq(stats(h).store_pages, 1);
	for (int i = 0; i < 4; i++)
		sharevm_end(&v[i]);
	finish(h);
}

Test(share_host, groups_do_not_hear_of_one_another)
{
	struct share_host *h = make();
	struct sharevm a, b;

	enter(&a, h, 1, "blue");
	enter(&b, h, 2, "red");
	cr_expect_eq(sharevm_lookup(&a, 1, 9).kind, WIRE_ALONE);
	cr_expect_eq(sharevm_lookup(&b, 1, 9).kind, WIRE_ALONE);
	finish_two(h, &a, &b);
}

Test(share_host, page_looked_up_again_is_one_candidate)
{
	struct share_host *h = make();
	struct sharevm a;

	enter(&a, h, 1, "blue");
	cr_expect_eq(sharevm_lookup(&a, 1, 9).kind, WIRE_ALONE);
	cr_expect_eq(sharevm_lookup(&a, 1, 9).kind, WIRE_ALONE, "itself is nobody else");
	cr_expect_eq(stats(h).candidates, 1);
	cr_expect_eq(sharevm_lookup(&a, 1, 10).kind, WIRE_ALONE);
	cr_expect_eq(stats(h).candidates, 1);
	cr_expect_eq(sharevm_lookup(&a, 2, 9).kind, WIRE_ALONE, "page 1 is not that any more");
	cr_expect_eq(sharevm_lookup(&a, 2, 10).kind, WIRE_WANTED, "within one VM, too");
	cr_expect_eq(sharevm_lookup(&a, 1, 10).kind, WIRE_WANTED);
	sharevm_end(&a);
	finish(h);
}

Test(share_host, candidates_go_with_the_connection)
{
	struct sharevm a, b;
	struct share_host *h = make_two(&a, &b);

	for (uint32_t i = 0; i < 500; i++)
		sharevm_lookup(&a, i, i);
	cr_expect_eq(stats(h).candidates, 500);
	sharevm_hang_up(&a);
	sharevm_settle(h);
	cr_expect_eq(stats(h).candidates, 0);
	cr_expect_eq(sharevm_lookup(&b, 1, 9).kind, WIRE_ALONE);
	finish_two(h, &a, &b);
}

Test(share_host, content_that_is_not_that_of_its_hash_is_not_stored)
{
	struct sharevm a, b;
	struct share_host *h = make_two(&a, &b);

	sharevm_lookup(&a, 1, 9);
	cr_assert_eq(sharevm_lookup(&b, 1, 9).kind, WIRE_WANTED);
	put_content(&b, 0, 1, 9)->bytes[17] ^= 1;
	sharevm_send(&b, WIRE_CONTENT, 1);
	cr_assert_eq(sharevm_receive(&b), WIRE_ANSWER);
	cr_expect_eq(((const struct wire_answer *)wire_entries((const void *)b.in))->kind, WIRE_LATER);
	cr_expect_eq(stats(h).store_pages, 0);
	cr_expect_eq(sharevm_receive(&a), -EAGAIN, "no offer");
	cr_expect_eq(counter_get(CTR_brimd_bad_contents), 1);
	finish_two(h, &a, &b);
}

Test(share_host, content_nobody_asked_for_is_not_stored)
{
	struct share_host *h = make();
	struct sharevm a;

	enter(&a, h, 1, "blue");
	cr_expect_eq(sharevm_content(&a, 1, 9).kind, WIRE_LATER, "never looked up");
	cr_expect_eq(sharevm_lookup(&a, 1, 9).kind, WIRE_ALONE);
	cr_expect_eq(sharevm_content(&a, 1, 9).kind, WIRE_LATER, "not wanted");
	cr_expect_eq(sharevm_lookup(&a, 2, 9).kind, WIRE_WANTED);
	cr_expect_eq(sharevm_content(&a, 2, 10).kind, WIRE_LATER, "another hash");
	cr_expect_eq(sharevm_content(&a, 3, 9).kind, WIRE_LATER, "another page");
	cr_expect_eq(stats(h).store_pages, 0);
	cr_expect_eq(counter_get(CTR_brimd_unasked_contents), 4);
	cr_expect_eq(sharevm_content(&a, 2, 9).kind, WIRE_SAME);
	sharevm_end(&a);
	finish(h);
}

Test(share_host, page_of_thousands_needs_one_content_and_no_crowd)
{
	struct share_host *h = make();
	struct sharevm a;
	unsigned kinds[4] = { 0 };

	enter(&a, h, 1, "blue");
	for (uint32_t i = 0; i < 500; i++)
		kinds[sharevm_lookup(&a, i, 9).kind]++;
	cr_expect(kinds[WIRE_ALONE] == 1 && kinds[WIRE_WANTED] == 31 && kinds[WIRE_LATER] == 468);
	cr_expect_eq(sharevm_content(&a, 7, 9).kind, WIRE_SAME);
	sharevm_settle(h);
	for (uint32_t i = 0; i < 500; i++)
		cr_assert_eq(sharevm_lookup(&a, i, 9).kind, WIRE_SAME);
	cr_expect_eq(stats(h).store_pages, 1);
	cr_expect_eq(stats(h).held_pages, 1);
	sharevm_end(&a);
	finish(h);
}

/* ---- releasing --------------------------------------------------------------------------------- */

Test(share_host, last_release_frees_the_page_and_its_memory)
{
	struct sharevm a, b;
	struct share_host *h = make_two(&a, &b);
	uint64_t before;
	uint32_t page;

	before = stats(h).resident_bytes;
	page = share_one(&a, 5, &b, 6, 77);
	cr_expect_eq(stats(h).resident_bytes, before + PAGE_BYTES);
	cr_expect_eq(sharevm_release(&b, page), WIRE_RELEASED);
	cr_expect(sharevm_has(&a, page, 77));
	cr_expect_eq(sharevm_release(&a, page), WIRE_RELEASED);
	sharevm_settle(h);
	cr_expect_eq(stats(h).resident_bytes, before);
	cr_expect_eq(sharevm_lookup(&a, 5, 77).kind, WIRE_ALONE, "it is known no more");
	cr_expect_eq(sharevm_release(&a, page), WIRE_REFUSED);
	cr_expect_str_eq(refusal(&a), "it releases a store page that it does not hold");
	finish_two(h, &a, &b);
}

Test(share_host, release_that_crosses_an_offer_leaves_no_hold)
{
	struct sharevm a, b;
	struct share_host *h = make_two(&a, &b);
	uint32_t page;

	cr_assert_eq(sharevm_lookup(&a, 1, 9).kind, WIRE_ALONE);
	cr_assert_eq(sharevm_lookup(&b, 2, 9).kind, WIRE_WANTED);
	page = sharevm_content(&b, 2, 9).store_page;
	sharevm_settle(h); /* an offer is on its way to a, which does not look */
	cr_assert_eq(stats(h).held_pages, 2);
	*(uint32_t *)entries(&a) = page;
	sharevm_send(&a, WIRE_RELEASE, 1);
	cr_expect_eq(offered(&a, 1), page, "sent before");
	cr_expect_eq(sharevm_receive(&a), WIRE_RELEASED);
	cr_expect_eq(stats(h).held_pages, 1);
	cr_expect_eq(sharevm_lookup(&a, 1, 9).store_page, page, "held anew");
	cr_expect_eq(stats(h).held_pages, 2);
	finish_two(h, &a, &b);
}

Test(share_host, offer_of_a_page_that_changed_is_not_sent)
{
	struct sharevm a, b;
	struct share_host *h = make_two(&a, &b);
	uint64_t before;

	sharevm_lookup(&a, 1, 9);
	sharevm_lookup(&b, 2, 9);
	before = counter_get(CTR_brimd_stale_offers);
	/* a's next look-up is read before the offer could be sent: in one turn. */
	*(struct wire_page *)entries(&a) =
		(struct wire_page){ .hash = sharevm_hash(&a, 10), .page = 1 };
	(void)put_content(&b, 0, 2, 9);
	sharevm_send(&b, WIRE_CONTENT, 1);
	sharevm_send(&a, WIRE_LOOKUP, 1);
	cr_expect_eq(sharevm_receive(&a), WIRE_ANSWER);
	cr_expect_eq(sharevm_receive(&a), -EAGAIN, "no offer");
	cr_expect_eq(counter_get(CTR_brimd_stale_offers), before + 1);
	cr_expect_eq(stats(h).held_pages, 1);
	finish_two(h, &a, &b);
}

static unsigned recalls(struct sharevm *v, uint32_t page)
{
	const struct wire_head *m = (const void *)v->in;
	unsigned n = 0;
	int rc;

	while ((rc = sharevm_receive(v)) == WIRE_RECALL)
		for (unsigned i = 0; i < m->count; i++)
			n += ((const uint32_t *)wire_entries(m))[i] == page;
	cr_assert_eq(rc, -EAGAIN);
	return n;
}

static void pass(struct share_host *h, unsigned ms)
{
	for (unsigned i = 0; i < ms; i++) {
		usleep(1000);
		sharevm_settle(h);
	}
}

Test(share_host, page_nobody_else_holds_is_recalled_once_until_holders_change)
{
	struct sharevm a, b;
	struct share_host *h = make_two_with(&a, &b, (struct share_host_config){ .recall_after_ns = 20 * MS });
	uint32_t page;

	page = share_one(&a, 5, &b, 6, 77);
	pass(h, 60);
	cr_expect_eq(recalls(&a, page) + recalls(&b, page), 0, "two hold it");
	sharevm_release(&b, page);
	pass(h, 80);
	cr_expect_eq(recalls(&a, page), 1);
	pass(h, 60);
	cr_expect_eq(recalls(&a, page), 0, "once");
	cr_expect_eq(sharevm_lookup(&b, 6, 77).kind, WIRE_SAME);
	sharevm_release(&b, page);
	pass(h, 80);
	cr_expect_eq(recalls(&a, page), 1);
	finish_two(h, &a, &b);
}

/* ---- bounds ------------------------------------------------------------------------------------ */

Test(share_host, index_as_large_as_it_may_be_says_later)
{
	struct share_host *h = make_with((struct share_host_config){ .index_pages = 10 });
	struct sharevm a;

	enter(&a, h, 1, "blue");
	for (uint32_t i = 0; i < 10; i++)
		cr_assert_eq(sharevm_lookup(&a, i, i).kind, WIRE_ALONE);
	cr_expect_eq(sharevm_lookup(&a, 10, 10).kind, WIRE_LATER);
	cr_expect_eq(sharevm_lookup(&a, 3, 33).kind, WIRE_ALONE, "in the place of its old one");
	cr_expect_eq(counter_get(CTR_brimd_later_full), 1);
	sharevm_end(&a);
	finish(h);
}

Test(share_host, store_that_is_full_says_later_and_holds_are_bounded_by_ram)
{
	struct share_host *h = make_with((struct share_host_config){
		.store_bytes = STORE_MIN_PAGES * PAGE_BYTES });
	struct sharevm a, b;
	uint32_t room = STORE_MIN_PAGES - STORE_FIRST_PAGE;

	enter(&a, h, 1, "blue");
	for (uint32_t i = 0; i <= room; i++) {
		cr_assert_eq(sharevm_lookup(&a, 1, i).kind, WIRE_ALONE);
		cr_assert_eq(sharevm_lookup(&a, 2, i).kind, WIRE_WANTED);
		cr_assert_eq(sharevm_content(&a, 2, i).kind, i < room ? WIRE_SAME : WIRE_LATER);
	}
	knock(&b, h, 2);
	cr_assert_eq(sharevm_hello(&b, "blue", 3), WIRE_WELCOME);
	for (uint32_t i = 0; i < 5; i++)
		cr_expect_eq(sharevm_lookup(&b, 1, i).kind, i < 3 ? WIRE_SAME : WIRE_LATER);
	cr_expect_eq(counter_get(CTR_brimd_later_holds), 2);
	finish_two(h, &a, &b);
}

/* `n` pages from `first` on, as pages of the same numbers. */
static int ask(struct sharevm *v, uint32_t first, uint32_t n)
{
	struct wire_page *p = entries(v);

	for (uint32_t i = 0; i < n; i++)
		p[i] = (struct wire_page){ .hash = sharevm_hash(v, first + i), .page = first + i };
	return sharevm_send(v, WIRE_LOOKUP, n);
}

static int give(struct sharevm *v, uint32_t first, uint32_t n)
{
	for (uint32_t i = 0; i < n; i++)
		(void)put_content(v, i, first + i, first + i);
	return sharevm_send(v, WIRE_CONTENT, n);
}

static const struct session *session_at(const struct share_host *h, pid_t pid)
{
	const struct session *s = h->sessions;

	while (s && s->peer.pid != pid)
		s = s->next;
	return s;
}

/* Asks and does not read, until nothing more is taken from it. */
static void flood(struct share_host *h, struct sharevm *v, uint32_t pages)
{
	unsigned sent = 0;

	for (unsigned i = 0; i < 20; i++) {
		while (ask(v, 0, pages) == 0)
			sent++;
		sharevm_settle(h);
	}
	cr_assert(sent > 0 && session_at(h, v->peer.pid)->out);
}

Test(share_host, too_many_offers_end_in_forget)
{
	struct sharevm a, b;
	struct share_host *h = make_two_with(&a, &b, (struct share_host_config){ .offers_max = 64 });
	int rc;

	flood(h, &a, 300);
	for (uint32_t i = 0; i < 200; i += 10) {
		cr_assert_eq(ask(&b, i, 10), 0);
		cr_assert_eq(sharevm_receive(&b), WIRE_ANSWER);
		cr_assert_eq(give(&b, i, 10), 0);
		cr_assert_eq(sharevm_receive(&b), WIRE_ANSWER);
	}
	cr_expect(session_at(h, 1)->forgetting);
	do
		rc = sharevm_receive(&a);
	while (rc == WIRE_ANSWER || rc == WIRE_OFFER);
	cr_assert_eq(rc, WIRE_FORGET);
	cr_expect_eq(counter_get(CTR_brimd_forgets), 1);
	while (sharevm_receive(&a) != -EAGAIN)
		;
	cr_expect_eq(sharevm_lookup(&a, 3, 3).kind, WIRE_SAME, "it may look all up again");
	finish_two(h, &a, &b);
}

/* ---- hostile ends ---------------------------------------------------------------------------------- */

/* A sound message, to be spoilt. */
static size_t sound(struct sharevm *v, enum wire_type t, unsigned count)
{
	memset(v->out, 0, sizeof(v->out));
	if (t == WIRE_HELLO)
		*(struct wire_hello *)entries(v) = (struct wire_hello){ "x", "blue", 10, 0, 0 };
	return wire_finish((void *)v->out, t, count, 0);
}

static void expect_thrown_out(struct share_host *h, struct sharevm *v, const char *why)
{
	int rc = sharevm_receive(v);

	while (rc == WIRE_ANSWER || rc == WIRE_OFFER)
		rc = sharevm_receive(v);
	cr_assert_eq(rc, WIRE_REFUSED, "%s: %d", why, rc);
	cr_expect(strstr(refusal(v), why), "'%s' has no '%s'", refusal(v), why);
	cr_expect_eq(sharevm_receive(v), 0);
}

struct bad {
	enum wire_type type;
	unsigned count;
	size_t at;     /* this byte ... */
	uint8_t with;  /* ... is changed by that */
	long longer;   /* and the message is so much longer */
	const char *why;
};

static const struct bad bad[] = {
	{ WIRE_LOOKUP, 1, 0, 1, 0, "not a message of brim" },
	{ WIRE_LOOKUP, 1, 4, 0xff, 0, "another version" },
	{ WIRE_LOOKUP, 1, 5, 0x40, 0, "no such type" },
	{ WIRE_LOOKUP, 1, 5, WIRE_LOOKUP ^ WIRE_ANSWER, 0, "no such type" },
	{ WIRE_LOOKUP, 1, 6, 3, 0, "wrong number" },
	{ WIRE_LOOKUP, 1, 7, 0xff, 0, "wrong number" },
	{ WIRE_LOOKUP, 1, 8, 1, 0, "wrong length" },
	{ WIRE_LOOKUP, 1, 0, 0, 8, "wrong length" },
	{ WIRE_LOOKUP, 1, 0, 0, -1, "wrong length" },
	{ WIRE_LOOKUP, 1, 16 + 20, 1, 0, "not zero" },
	{ WIRE_LOOKUP, 1, 16 + 18, 1, 0, "beyond the VM's RAM" },
	{ WIRE_CONTENT, 1, 16 + 18, 1, 0, "beyond the VM's RAM" },
	{ WIRE_CONTENT, 15, 0, 0, -4096, "wrong length" },
	{ WIRE_RELEASE, 1, 16, STORE_FIRST_PAGE + 1, 0, "does not hold" },
	{ WIRE_RELEASE, 1, 16, 0, 0, "does not hold" },
	{ WIRE_RELEASE, 1, 19, 0xff, 0, "does not hold" },
	{ WIRE_HOLD, 1, 16, 5, 0, "not its time" },
	{ WIRE_HOLD, 0, 0, 0, 0, "not its time" },
	{ WIRE_HELLO, 1, 0, 0, 0, "not its time" },
};

static const struct bad bad_hello[] = {
	{ WIRE_LOOKUP, 1, 0, 0, 0, "not its time" },
	{ WIRE_RELEASE, 1, 0, 0, 0, "not its time" },
	{ WIRE_HOLD, 0, 0, 0, 0, "not its time" },
	{ WIRE_HELLO, 1, 16, 'x', 0, "a name is empty" },
	{ WIRE_HELLO, 1, 16 + 63, 1, 0, "a name is" },
	{ WIRE_HELLO, 1, 16 + 64, 'b' ^ 7, 0, "not printable" },
	{ WIRE_HELLO, 1, 16 + 128, 10, 0, "none or too many" },
	{ WIRE_HELLO, 1, 16 + 131, 0x80, 0, "none or too many" },
	{ WIRE_HELLO, 1, 16 + 132, 1, 0, "its store is not whole" },
	{ WIRE_HELLO, 1, 16 + 133, 1, 0, "its store is not whole" },
};

static void send_bad(struct sharevm *v, const struct bad *b)
{
	size_t bytes = sound(v, b->type, b->count);

	v->out[b->at] ^= b->with;
	cr_assert_eq(sharevm_send_raw(v, v->out, (size_t)((long)bytes + b->longer), NULL, 0), 0);
}

Test(share_host, bad_messages_are_thrown_out_with_their_reason_and_take_no_hold)
{
	struct sharevm a, b;
	struct share_host *h = make_two(&a, &b);
	uint32_t page;

	page = share_one(&a, 5, &b, 6, 77);
	for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
		send_bad(&b, &bad[i]);
		expect_thrown_out(h, &b, bad[i].why);
		cr_expect_eq(stats(h).held_pages, 2, "row %zu", i);
		cr_expect(sharevm_has(&b, page, 77));
		reconnect(&b);
		sharevm_say_hello(&b, "blue", VM_PAGES);
		cr_assert_eq(sharevm_say_holds(&b, &page, 1), 0);
		cr_assert_eq(sharevm_receive(&b), WIRE_WELCOME, "row %zu", i);
	}
	finish_two(h, &a, &b);
}

Test(share_host, bad_hellos_are_thrown_out_with_their_reason)
{
	struct share_host *h = make();

	for (size_t i = 0; i < ARRAY_LEN(bad_hello); i++) {
		struct sharevm v;

		knock(&v, h, (int)i + 1);
		send_bad(&v, &bad_hello[i]);
		expect_thrown_out(h, &v, bad_hello[i].why);
		sharevm_end(&v);
	}
	finish(h);
}

Test(share_host, holds_of_pages_that_are_nobodys_are_refused)
{
	static const uint32_t amiss[] = { 0, 1, STORE_FIRST_PAGE - 1, STORE_FIRST_PAGE + 1, 16 * MiB / PAGE_BYTES,
					  UINT32_MAX };
	struct sharevm a, b;
	struct share_host *h = make_two(&a, &b);

	cr_assert_eq(share_one(&a, 5, &b, 6, 77), STORE_FIRST_PAGE);
	for (size_t i = 0; i < ARRAY_LEN(amiss); i++) {
		reconnect(&b);
		sharevm_say_hello(&b, "blue", VM_PAGES);
		*(uint32_t *)entries(&b) = amiss[i];
		cr_assert_eq(sharevm_send(&b, WIRE_HOLD, 1), 0);
		expect_thrown_out(h, &b, "a store page that is nobody's");
		cr_expect_eq(stats(h).held_pages, 2);
	}
	finish_two(h, &a, &b);
}

Test(share_host, who_does_not_read_is_not_read_from_and_holds_nobody_up)
{
	struct sharevm a, b, c;
	struct share_host *h = make_two(&a, &b);

	enter(&c, h, 3, "blue");
	flood(h, &a, 1000);
	cr_expect_eq(session_at(h, 1)->watch.events, 4 /* EPOLLOUT: not read from */);
	cr_expect_eq(ask(&a, 0, 100), -EAGAIN);
	for (uint32_t i = 2000; i < 2100; i++)
		share_one(&b, i % VM_PAGES, &c, i % VM_PAGES, i);
	while (sharevm_receive(&a) != -EAGAIN)
		;
	cr_expect_eq(sharevm_lookup(&a, 1, 2000).kind, WIRE_SAME, "and it may go on");
	flood(h, &a, 1000);
	sharevm_end(&a), sharevm_end(&b), sharevm_end(&c);
	finish(h);
}

Test(share_host, silence_is_ended_before_and_in_the_middle_of_the_greeting)
{
	struct share_host *h = make_with((struct share_host_config){ .hello_ns = 30 * MS });
	struct sharevm a, b, c;

	enter(&a, h, 1, "blue");
	knock(&b, h, 2);
	enter(&c, h, 3, "blue");
	reconnect(&c);
	sharevm_say_hello(&c, "blue", VM_PAGES); /* and no HOLD */
	pass(h, 250);
	cr_expect_eq(sharevm_receive(&b), 0);
	cr_expect_eq(sharevm_receive(&c), 0);
	cr_expect_eq(sharevm_receive(&a), -EAGAIN, "who has said all may be silent");
	sharevm_end(&a), sharevm_end(&b), sharevm_end(&c);
	finish(h);
}

Test(share_host, thousands_of_connections_are_bounded_and_hold_nobody_up)
{
	struct share_host *h = make_with((struct share_host_config){ .sessions_max = 4 });
	static struct sharevm v[2000];
	struct sharevm a, b;

	enter(&a, h, 5001, "blue");
	for (int i = 0; i < 2000; i++) {
		knock(&v[i], h, i + 1);
		cr_assert_eq(share_host_turn(h, 0), 0);
		cr_assert(stats(h).sessions <= 130);
	}
	enter(&b, h, 5002, "blue");
	share_one(&a, 1, &b, 1, 1);
	cr_expect_eq(sharevm_receive(&v[0]), 0);
	for (int i = 1990; i < 1992; i++)
		cr_expect_eq(sharevm_hello(&v[i], "blue", 10), WIRE_WELCOME);
	cr_expect_eq(sharevm_hello(&v[1992], "blue", 10), WIRE_REFUSED);
	cr_expect_str_eq(refusal(&v[1992]), "brimd has as many VMs or share groups as it takes");
	for (int i = 0; i < 2000; i++)
		sharevm_end(&v[i]);
	finish_two(h, &a, &b);
}

Test(share_host, descriptors_passed_are_closed_whatever_they_are)
{
	struct share_host *h = make();
	struct sharevm a, v;
	int many[253], other = memfd_create("x", MFD_CLOEXEC);
	static const enum wire_type types[] = { WIRE_LOOKUP, WIRE_RELEASE, WIRE_CONTENT, WIRE_HOLD };
	unsigned now;

	enter(&a, h, 1, "blue");
	sharevm_settle(h);
	now = count_fds();
	for (unsigned i = 0; i < ARRAY_LEN(many); i++)
		many[i] = other;
	for (unsigned n = 1; n <= 253; n = n * 3 + 1 > 253 && n < 253 ? 253 : n * 3 + 1) {
		knock(&v, h, 100);
		cr_assert_eq(sharevm_send_raw(&v, v.out, sound(&v, WIRE_HELLO, 1), many, n), 0);
		expect_thrown_out(h, &v, n == 1 ? "a descriptor where none is named" : "too many descriptors");
		sharevm_end(&v);
		sharevm_settle(h);
		cr_assert_eq(count_fds(), now, "%u descriptors", n);
	}
	for (unsigned i = 0; i < ARRAY_LEN(types); i++) {
		enter(&v, h, 100, "blue");
		cr_assert_eq(sharevm_send_raw(&v, v.out, sound(&v, types[i], types[i] != WIRE_HOLD),
					      many, 2), 0);
		expect_thrown_out(h, &v, "too many descriptors");
		sharevm_end(&v);
		sharevm_settle(h);
		enter(&v, h, 100, "blue");
		cr_assert_eq(sharevm_send_raw(&v, v.out, sound(&v, types[i], types[i] != WIRE_HOLD),
					      many, 1), 0);
		expect_thrown_out(h, &v, types[i] == WIRE_HOLD ? "not its time" : "where none belongs");
		sharevm_end(&v);
		sharevm_settle(h);
		cr_assert_eq(count_fds(), now);
	}
	close(other);
	sharevm_end(&a);
	finish(h);
}

Test(share_host, stores_that_are_not_are_refused_and_closed)
{
	struct share_host *h = make();
	struct sharevm a, c, v;
	int null = open("/dev/null", O_RDONLY | O_CLOEXEC);

	enter(&a, h, 1, "blue");
	enter(&c, h, 2, "red");
	sharevm_init(&v, h, 3, 1000);
	v.store_fd = null;
	v.welcome.store_id = 99;
	sharevm_connect(&v);
	cr_assert_eq(sharevm_hello(&v, "blue", 10), WIRE_REFUSED);
	cr_expect(strstr(refusal(&v), "not a memfd sealed as stores are"));
	reconnect(&v);
	v.welcome.store_id = a.welcome.store_id;
	cr_assert_eq(sharevm_hello(&v, "blue", 10), WIRE_REFUSED);
	cr_expect(strstr(refusal(&v), "not the one it is said to be"));
	v.store_fd = dup(a.store_fd);
	reconnect(&v);
	cr_assert_eq(sharevm_hello(&v, "blue", 10), WIRE_REFUSED);
	cr_expect(strstr(refusal(&v), "was never given that store"));
	reconnect(&v);
	cr_assert_eq(sharevm_hello(&v, "red", 10), WIRE_REFUSED);
	cr_expect(strstr(refusal(&v), "another group's"));
	close(null);
	sharevm_end(&a), sharevm_end(&c), sharevm_end(&v);
	finish(h);
}

/* ---- ends ------------------------------------------------------------------------------------------- */

Test(share_host, process_that_ends_frees_all_but_what_others_hold)
{
	struct sharevm a, b;
	struct share_host *h = make_two(&a, &b);
	uint64_t before;

	before = stats(h).resident_bytes;
	for (uint32_t i = 0; i < 300; i++)
		share_one(&a, i, &b, i, i);
	for (uint32_t i = 0; i < 100; i++)
		cr_assert_eq(sharevm_release(&b, STORE_FIRST_PAGE + i), WIRE_RELEASED);
	sharevm_end(&a);
	sharevm_settle(h);
	cr_expect_eq(stats(h).held_pages, 200);
	cr_expect_eq(stats(h).store_pages, 200);
	cr_expect_eq(stats(h).resident_bytes, before + 200 * PAGE_BYTES);
	for (uint32_t i = 100; i < 300; i++)
		cr_assert(sharevm_has(&b, STORE_FIRST_PAGE + i, i));
	sharevm_end(&b);
	finish(h);
}

static int connect_to(const char *path)
{
	struct sockaddr_un sa = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);

	snprintf(sa.sun_path, sizeof(sa.sun_path), "%s", path);
	return connect(fd, (const struct sockaddr *)&sa, sizeof(sa)) < 0 ? -errno : fd;
}

/* A real process over a real socket: shares pages with itself and waits to be killed. */
static _Noreturn void be_a_vm(const char *path, int tell)
{
	static struct sharevm v;

	sharevm_init(&v, NULL, getpid(), getuid());
	v.fd = connect_to(path);
	if (v.fd < 0 || sharevm_hello(&v, "blue", 100) != WIRE_WELCOME)
		_exit(1);
	for (uint32_t i = 0; i < 50; i++) {
		if (sharevm_lookup(&v, 1, i).kind == WIRE_SAME)
			continue;
		if (sharevm_lookup(&v, 2, i).kind != WIRE_SAME &&
		    sharevm_content(&v, 2, i).kind == WIRE_LATER)
			_exit(2);
	}
	if (write(tell, "x", 1) != 1)
		_exit(3);
	pause();
	_exit(4);
}

static bool is_readable(int fd)
{
	char c;

	return recv(fd, &c, 1, MSG_DONTWAIT) == 1;
}

Test(share_host, killed_processes_free_everything)
{
	struct share_host *h = make();
	char dir[] = "/tmp/brim-share-XXXXXX", path[64];
	struct err e;
	pid_t pid[3];
	int pair[2], ready = 0;

	cr_assert_not_null(mkdtemp(dir));
	snprintf(path, sizeof(path), "%s/s", dir);
	cr_assert_eq(share_host_listen(h, path, &e), 0, "%s", e.msg);
	cr_assert_eq(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
	for (int i = 0; i < 3; i++) {
		pid[i] = fork();
		if (pid[i] == 0)
			be_a_vm(path, pair[1]);
	}
	while (ready < 3) {
		cr_assert_eq(share_host_turn(h, 10), 0);
		ready += is_readable(pair[0]);
	}
	sharevm_settle(h);
	cr_expect_eq(stats(h).store_pages, 50);
	cr_expect_eq(stats(h).held_pages, 150);
	for (int i = 0; i < 3; i++) {
		kill(pid[i], SIGKILL);
		while (stats(h).held_pages > 50u * (unsigned)(2 - i))
			cr_assert_eq(share_host_turn(h, 10), 0);
		waitpid(pid[i], NULL, 0);
	}
	close(pair[0]), close(pair[1]);
	finish(h);
	unlink(path), rmdir(dir);
}
