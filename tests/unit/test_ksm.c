/*
 * The VM's side of sharing (mm/ksm/) against a brimd that is the test: each message, each
 * that must not be, what crosses, what breaks off.
 */
#include "tests/unit/fakehost.h"

static void expect_hello(struct fakehost *f, bool has_store)
{
	const struct wire_hello *h = fh_expect(f, WIRE_HELLO);

	cr_assert_str_eq(h->vm, "vm");
	cr_assert_str_eq(h->group, "g");
	cr_assert_eq(h->pages, BOX_PAGES);
	cr_assert_eq(h->has_store, has_store);
	cr_assert_eq(h->store_id, has_store ? FH_ID : 0);
	cr_assert_eq(f->got_fd >= 0, has_store);
}

static void refuse(struct fakehost *f, const char *why)
{
	struct wire_refused r = { "" };

	snprintf(r.why, sizeof(r.why), "%s", why);
	fh_send(f, WIRE_REFUSED, &r, 1);
	cr_assert(fh_hung_up(f));
}

static enum ksm_state state(struct fakehost *f)
{
	struct ksm_status s;

	ksm_status(f->k, &s);
	return s.state;
}

Test(ksm, hello_says_who_it_is_and_welcome_connects)
{
	static struct fakehost f;

	fh_open(&f);
	cr_assert_eq(state(&f), KSM_WAITING);
	expect_hello(&f, false);
	cr_assert_eq(state(&f), KSM_JOINING);
	fh_welcome(&f);
	fh_step_until(&f, CTR_share_connects, 1);
	cr_assert_eq(state(&f), KSM_CONNECTED);
	cr_assert_eq(f.b.e->ages_ns, 1000000);
	fh_silence(&f, 20);
	fh_close(&f);
}

/* ---- stores that are not what they must be ------------------------------------------------ */

struct bad_store {
	const char *what;
	uint64_t bytes;
	int seals;
	uint32_t pages;
	uint64_t id;
};

Test(ksm, store_that_is_none_is_refused_and_another_taken)
{
	static const struct bad_store bad[] = {
		{ "no store", 0, 0, FH_STORE_PAGES, FH_ID },
		{ "smaller", PAGE_BYTES, F_SEAL_SHRINK, FH_STORE_PAGES, FH_ID },
		{ "shrink", FH_STORE_PAGES * PAGE_BYTES, F_SEAL_GROW, FH_STORE_PAGES, FH_ID },
		{ "no size", PAGE_BYTES, F_SEAL_SHRINK, 1, FH_ID },
		{ "no size", PAGE_BYTES, F_SEAL_SHRINK, UINT32_MAX, FH_ID },
		{ "no size", FH_STORE_PAGES * PAGE_BYTES, F_SEAL_SHRINK, FH_STORE_PAGES, 0 },
	};
	static struct fakehost f;
	struct ksm_status s;

	fh_open(&f);
	for (unsigned i = 0; i < ARRAY_LEN(bad); i++) {
		struct wire_welcome w = { .store_id = bad[i].id, .store_pages = bad[i].pages };
		int fd = bad[i].bytes ? fh_memfd(bad[i].bytes, bad[i].seals) : -1;

		expect_hello(&f, false);
		fh_send_fd(&f, WIRE_WELCOME, &w, 1, fd);
		fh_step_until(&f, CTR_share_bad_stores, i + 1);
		cr_assert(fh_hung_up(&f));
		ksm_status(f.k, &s);
		cr_assert(strstr(s.why, bad[i].what), "%s, not %s", s.why, bad[i].what);
		if (fd >= 0)
			close(fd);
	}
	fh_connect(&f);
	fh_share(&f, 5);
	fh_close(&f);
}

Test(ksm, pipe_for_a_store_is_refused)
{
	struct wire_welcome w = { .store_id = FH_ID, .store_pages = FH_STORE_PAGES };
	static struct fakehost f;
	int p[2];

	fh_open(&f);
	cr_assert_eq(pipe(p), 0);
	fh_expect(&f, WIRE_HELLO);
	fh_send_fd(&f, WIRE_WELCOME, &w, 1, p[0]);
	fh_step_until(&f, CTR_share_bad_stores, 1);
	close(p[0]);
	close(p[1]);
	fh_close(&f);
}

/* ---- looking up, sharing, releasing ----------------------------------------------------------- */

Test(ksm, cold_page_the_store_has_is_given_up_and_comes_back)
{
	static struct fakehost f;

	fh_open_connected(&f);
	fh_share(&f, 40);
	for (unsigned i = 0; i < 40; i++) {
		cr_assert_eq(fh_state(&f, i * FH_APART), PAGE_STORED);
		cr_assert_eq(uses_count(&f.k->uses, i + 1), 1);
	}
	for (unsigned i = 0; i < 40; i++)
		cr_assert(fh_has_shared(&f, i + 1));
	fh_close(&f);
}

Test(ksm, hash_is_that_of_the_page_with_the_seed)
{
	static struct fakehost f;
	const struct wire_page *p;
	XXH128_hash_t x;

	fh_open_connected(&f);
	p = fh_fill(&f, 9, 1);
	x = XXH3_128bits_withSeed(box_at(&f.b, 9), PAGE_BYTES, FH_SEED);
	cr_assert_eq(f.m->count, 1);
	cr_assert_eq(p->page, 9);
	cr_assert(p->hash.lo == x.low64 && p->hash.hi == x.high64);
	fh_answer(&f, WIRE_ALONE, 0);
	fh_cool(&f);
	fh_silence(&f, 20);
	fh_close(&f);
}

Test(ksm, store_page_that_differs_is_not_used_and_released)
{
	static struct fakehost f;
	const struct wire_store_page *p;

	fh_open_connected(&f);
	box_fill(&f.b, 3, 1);
	fh_store(&f, 8, 3, 2);
	fh_cool(&f);
	fh_expect(&f, WIRE_LOOKUP);
	fh_answer(&f, WIRE_SAME, 8);
	p = fh_expect(&f, WIRE_RELEASE);
	cr_assert_eq(f.m->count, 1);
	cr_assert_eq(p->store_page, 8);
	cr_assert_eq(fh_state(&f, 3), PAGE_GUEST);
	cr_assert(box_has(&f.b, 3, 1));
	fh_close(&f);
}

Test(ksm, page_used_no_more_is_released_once)
{
	static struct fakehost f;
	const struct wire_store_page *p;

	fh_open_connected(&f);
	fh_share(&f, 3);
	cr_assert(fh_has_shared(&f, 2));
	p = fh_expect(&f, WIRE_RELEASE);
	cr_assert_eq(f.m->count, 1);
	cr_assert_eq(p->store_page, 2);
	fh_send(&f, WIRE_RELEASED, NULL, 0);
	fh_step_until(&f, CTR_share_released, 1);
	cr_assert(fh_has_shared(&f, 1) && fh_has_shared(&f, 3));
	fh_expect(&f, WIRE_RELEASE);
	cr_assert_eq(f.m->count, 2);
	fh_send(&f, WIRE_RELEASED, NULL, 0);
	fh_step_until(&f, CTR_share_released, 3);
	fh_silence(&f, 20);
	fh_close(&f);
}

Test(ksm, zeroes_are_given_up_without_a_word)
{
	static struct fakehost f;

	fh_open_connected(&f);
	memset(box_at(&f.b, 5), 0, PAGE_BYTES);
	memset(box_at(&f.b, 6), 0, PAGE_BYTES);
	fh_cool(&f);
	fh_step_until(&f, CTR_engine_zeroes, 2);
	fh_silence(&f, 20);
	fh_close(&f);
}

Test(ksm, wanted_bytes_are_sent_and_become_the_stores)
{
	static struct fakehost f;
	const struct wire_content *c;

	fh_open_connected(&f);
	fh_fill(&f, 0, 20);
	fh_answer(&f, WIRE_WANTED, 0);
	for (unsigned done = 0; done < 20; done += f.m->count) {
		c = fh_expect(&f, WIRE_CONTENT);
		for (unsigned i = 0; i < f.m->count; i++) {
			cr_assert_eq(c[i].of.page, done + i);
			cr_assert_eq(memcmp(c[i].bytes, box_at(&f.b, done + i), PAGE_BYTES), 0);
			memcpy(f.store + ((done + i + 1) << PAGE_SHIFT), c[i].bytes, PAGE_BYTES);
		}
		fh_answer(&f, WIRE_SAME, done + 1);
	}
	fh_step_until(&f, CTR_engine_shared, 20);
	fh_close(&f);
}

Test(ksm, wanted_page_that_changed_is_not_sent)
{
	static struct fakehost f;
	const struct wire_content *c;

	fh_open_connected(&f);
	fh_fill(&f, 1, 2);
	box_at(&f.b, 1)[77]++;
	fh_answer(&f, WIRE_WANTED, 0);
	c = fh_expect(&f, WIRE_CONTENT);
	cr_assert_eq(f.m->count, 1);
	cr_assert_eq(c->of.page, 2);
	fh_answer(&f, WIRE_LATER, 0);
	fh_close(&f);
}

/* Of many alike one is enough: the others will be offered it. */
Test(ksm, bytes_of_one_hash_are_sent_once)
{
	static struct fakehost f;

	fh_open_connected(&f);
	for (unsigned i = 0; i < 30; i++)
		memset(box_at(&f.b, i), 7, PAGE_BYTES);
	fh_cool(&f);
	fh_expect(&f, WIRE_LOOKUP);
	cr_assert_eq(f.m->count, 30);
	fh_answer(&f, WIRE_WANTED, 0);
	fh_expect(&f, WIRE_CONTENT);
	cr_assert_eq(f.m->count, 1);
	fh_close(&f);
}

Test(ksm, offered_page_is_shared)
{
	struct wire_offer o[] = { { 4, 1 }, { 2, 2 }, { 3, 3 } };
	static struct fakehost f;

	fh_open_connected(&f);
	for (unsigned i = 2; i < 5; i++)
		box_fill(&f.b, i, 1);
	fh_store(&f, 1, 4, 1);
	fh_store(&f, 2, 2, 1);
	fh_store(&f, 3, 3, 9); /* and one that is not equal any more */
	fh_cool(&f);
	fh_expect(&f, WIRE_LOOKUP);
	fh_answer(&f, WIRE_ALONE, 0);
	fh_send(&f, WIRE_OFFER, o, 3);
	fh_step_until(&f, CTR_engine_shared, 2);
	cr_assert_eq(fh_state(&f, 4), PAGE_STORED);
	cr_assert_eq(fh_state(&f, 2), PAGE_STORED);
	fh_expect(&f, WIRE_RELEASE);
	cr_assert_eq(((const struct wire_store_page *)wire_entries(f.m))->store_page, 3);
	fh_close(&f);
}

Test(ksm, page_for_which_there_was_no_room_is_looked_up_again)
{
	static struct fakehost f;

	fh_open_connected(&f);
	fh_fill(&f, 1, 1);
	fh_answer(&f, WIRE_LATER, 0);
	fh_silence(&f, 20);
	f.k->later_at_ns = now_ns();
	fh_expect(&f, WIRE_LOOKUP);
	fh_answer(&f, WIRE_LATER, 0);
	fh_silence(&f, 20);
	cr_assert_gt(f.k->later_at_ns, now_ns() + 1000000000, "it does not wait longer now");
	fh_close(&f);
}

Test(ksm, forget_has_all_looked_up_again)
{
	static struct fakehost f;

	fh_open_connected(&f);
	fh_fill(&f, 0, 10);
	fh_answer(&f, WIRE_ALONE, 0);
	fh_silence(&f, 20);
	fh_send(&f, WIRE_FORGET, NULL, 0);
	fh_expect(&f, WIRE_LOOKUP);
	cr_assert_eq(f.m->count, 10);
	fh_close(&f);
}

/* LOOKUPs until n packed pages were asked about; each is answered ALONE. */
static void packed_are_asked(struct fakehost *f, unsigned n)
{
	bool asked[BOX_PAGES] = { false };

	for (unsigned seen = 0; seen < n;) {
		const struct wire_page *p = fh_expect(f, WIRE_LOOKUP);

		for (unsigned i = 0; i < f->m->count; i++) {
			cr_assert_not(asked[p[i].page], "page %u twice", p[i].page);
			asked[p[i].page] = true;
			seen += fh_state(f, p[i].page) == PAGE_PACKED;
		}
		fh_answer(f, WIRE_ALONE, 0);
	}
	fh_silence(f, 20);
}

Test(ksm, packed_before_the_connection_is_looked_up_once_in_each)
{
	static struct fakehost f;
	struct wire_offer o = { 0, 9 };
	unsigned packed;

	fh_open(&f);
	box_fill_all(&f.b, 0, 2000);
	box_push_out(&f.b, 1500);
	packed = (unsigned)atomic_load(&f.b.e->pages.in_state[PAGE_PACKED]);
	cr_assert_gt(packed, 1200);
	fh_connect(&f);
	packed_are_asked(&f, packed);
	cr_assert_eq(counter_get(CTR_share_packed_again), packed);
	fh_hang_up(&f);
	fh_expect(&f, WIRE_HELLO);
	fh_expect(&f, WIRE_HOLD);
	fh_welcome(&f);
	packed_are_asked(&f, packed);
	cr_assert_eq(f.b.held, packed, "it was brought back");
	while (fh_state(&f, o.page) != PAGE_PACKED)
		o.page++;
	fh_store(&f, 9, o.page, 1);
	fh_send(&f, WIRE_OFFER, &o, 1);
	fh_step_until(&f, CTR_engine_shared, 1);
	cr_assert_eq(fh_state(&f, o.page), PAGE_STORED);
	cr_assert_eq(f.b.held, packed - 1);
	fh_close(&f);
}

/* ---- what crosses ------------------------------------------------------------------------------- */

Test(ksm, naming_that_crosses_a_release_is_not_used)
{
	struct wire_offer o = { 7, 1 };
	static struct fakehost f;

	fh_open_connected(&f);
	fh_share(&f, 1);
	box_fill(&f.b, 7, 1);
	cr_assert(box_has(&f.b, 0, 1));
	fh_expect(&f, WIRE_RELEASE);
	fh_store(&f, 1, 7, 1); /* brimd has sent this before it read the release */
	fh_send(&f, WIRE_OFFER, &o, 1);
	fh_step_until(&f, CTR_share_crossed, 1);
	cr_assert_eq(fh_state(&f, 7), PAGE_GUEST);
	fh_send(&f, WIRE_RELEASED, NULL, 0);
	fh_step_until(&f, CTR_share_released, 1);
	fh_send(&f, WIRE_OFFER, &o, 1); /* and this is a new one */
	fh_step_until(&f, CTR_engine_shared, 2);
	cr_assert_eq(fh_state(&f, 7), PAGE_STORED);
	fh_close(&f);
}

Test(ksm, page_named_again_before_its_release_is_not_released)
{
	struct wire_offer o = { 7, 1 };
	static struct fakehost f;

	fh_open_connected(&f);
	fh_share(&f, 1);
	memcpy(box_at(&f.b, 7), f.store + PAGE_BYTES, PAGE_BYTES);
	cr_assert(box_has(&f.b, 0, 1)); /* count 0, in the list */
	fh_send(&f, WIRE_OFFER, &o, 1);
	fh_step_until(&f, CTR_engine_shared, 2);
	fh_silence(&f, 20);
	cr_assert_eq(uses_count(&f.k->uses, 1), 1);
	fh_close(&f);
}

Test(ksm, recalled_page_comes_back_where_only_one_of_ours_uses_it)
{
	struct wire_store_page r[] = { { 1 }, { 2 }, { 300 } };
	struct wire_offer o = { 9, 2 };
	static struct fakehost f;

	fh_open_connected(&f);
	fh_share(&f, 3);
	memcpy(box_at(&f.b, 9), f.store + 2 * PAGE_BYTES, PAGE_BYTES); /* as the second */
	fh_send(&f, WIRE_OFFER, &o, 1);
	fh_step_until(&f, CTR_engine_shared, 4);
	fh_send(&f, WIRE_RECALL, r, 3);
	fh_step_until(&f, CTR_share_recalled, 1);
	cr_assert_eq(fh_state(&f, 0), PAGE_GUEST);
	cr_assert_eq(fh_state(&f, FH_APART), PAGE_STORED);
	cr_assert_eq(fh_state(&f, 2 * FH_APART), PAGE_STORED);
	fh_expect(&f, WIRE_RELEASE);
	cr_assert_eq(((const struct wire_store_page *)wire_entries(f.m))->store_page, 1);
	fh_close(&f);
}

/* ---- what brimd must not say ----------------------------------------------------------------------- */

enum { OPEN_IDLE, OPEN_ASKED, OPEN_RELEASING, JOINING };

struct bad_message {
	const char *why;
	int when;
	enum wire_type t;
	union {
		struct wire_answer answer;
		struct wire_offer offer;
		struct wire_store_page page;
		struct wire_welcome welcome;
	};
	uint32_t turn_off; /* from the right one */
	bool with_fd;
};

static const struct bad_message bad_messages[] = {
	{ "not asked", OPEN_IDLE, WIRE_ANSWER, .answer = { .page = 0, .kind = WIRE_ALONE } },
	{ "not asked", OPEN_ASKED, WIRE_ANSWER, .answer = { .page = 0 }, .turn_off = 1 },
	{ "another page", OPEN_ASKED, WIRE_ANSWER, .answer = { .page = 1, .kind = WIRE_ALONE } },
	{ "beyond its store", OPEN_ASKED, WIRE_ANSWER,
	  .answer = { .page = 0, .kind = WIRE_SAME, .store_page = FH_STORE_PAGES } },
	{ "not sound", OPEN_ASKED, WIRE_ANSWER, .answer = { .page = 0, .kind = WIRE_SAME } },
	{ "not sound", OPEN_ASKED, WIRE_ANSWER, .answer = { .page = 0, .kind = 9 } },
	{ "not there", OPEN_IDLE, WIRE_OFFER, .offer = { BOX_PAGES, 1 } },
	{ "not there", OPEN_IDLE, WIRE_OFFER, .offer = { 0, 0 } },
	{ "not there", OPEN_IDLE, WIRE_OFFER, .offer = { 0, FH_STORE_PAGES } },
	{ "not there", OPEN_IDLE, WIRE_OFFER, .offer = { UINT32_MAX, UINT32_MAX } },
	{ "beyond its store", OPEN_IDLE, WIRE_RECALL, .page = { 0 } },
	{ "beyond its store", OPEN_IDLE, WIRE_RECALL, .page = { FH_STORE_PAGES } },
	{ "not to be released", OPEN_IDLE, WIRE_RELEASED },
	{ "not to be released", OPEN_RELEASING, WIRE_RELEASED, .turn_off = 1 },
	{ "not its time", OPEN_IDLE, WIRE_WELCOME, .welcome = { FH_ID, 1, FH_STORE_PAGES, 0 } },
	{ "not its time", JOINING, WIRE_OFFER, .offer = { 0, 1 } },
	{ "not its time", JOINING, WIRE_FORGET },
	{ "not sound", OPEN_IDLE, WIRE_LOOKUP },
	{ "descriptor", OPEN_IDLE, WIRE_FORGET, .with_fd = true },
	{ "another store", JOINING, WIRE_WELCOME, .welcome = { FH_ID + 1, 1, FH_STORE_PAGES, 0 } },
	{ "another store", JOINING, WIRE_WELCOME, .welcome = { FH_ID, 1, FH_STORE_PAGES - 1, 0 } },
};

/* From a connection that has shared page 20, to where the message is bad. */
static void come_to(struct fakehost *f, int when)
{
	if (when == OPEN_ASKED) {
		fh_fill(f, 0, 1);
	} else if (when == OPEN_RELEASING) {
		cr_assert(box_has(&f->b, 20, 1));
		fh_expect(f, WIRE_RELEASE);
	} else if (when == JOINING) {
		fh_hang_up(f);
		expect_hello(f, true);
		fh_expect(f, WIRE_HOLD);
		fh_expect(f, WIRE_HOLD);
		cr_assert_eq(f->m->count, 0);
	}
}

static void say_bad(struct fakehost *f, const struct bad_message *b)
{
	bool empty = b->t == WIRE_RELEASED || b->t == WIRE_FORGET;
	size_t len;

	memcpy(f->out + sizeof(struct wire_head), &b->answer, wire_entry_bytes(b->t) > sizeof(b->welcome)
	       ? sizeof(b->welcome) : wire_entry_bytes(b->t));
	len = wire_finish((void *)f->out, b->t, !empty,
			  b->t == WIRE_ANSWER || b->t == WIRE_RELEASED ? f->m->turn + b->turn_off : 0);
	fh_send_raw(f, f->out, len, b->with_fd ? f->store_fd : -1);
}

Test(ksm, message_that_must_not_be_ends_the_connection_and_nothing_else)
{
	for (unsigned i = 0; i < ARRAY_LEN(bad_messages); i++) {
		const struct bad_message *b = &bad_messages[i];
		struct wire_offer o = { 20, 400 };
		static struct fakehost f;
		struct ksm_status s;
		uint64_t shared = counter_get(CTR_engine_shared);

		fh_open_connected(&f);
		box_fill(&f.b, 20, 1);
		fh_store(&f, 400, 20, 1);
		fh_send(&f, WIRE_OFFER, &o, 1);
		fh_step_until(&f, CTR_engine_shared, shared + 1);
		come_to(&f, b->when);
		say_bad(&f, b);
		cr_assert(fh_hung_up(&f), "%u", i);
		ksm_status(f.k, &s);
		cr_assert_eq(s.state, KSM_REFUSED);
		cr_assert(strstr(s.why, b->why), "%u: %s, not %s", i, s.why, b->why);
		expect_hello(&f, true); /* again */
		cr_assert(box_has(&f.b, 20, 1));
		fh_close(&f);
	}
}

Test(ksm, bytes_that_are_no_message_end_the_connection)
{
	static struct fakehost f;
	uint64_t random = seed_of_run() | 1;

	fh_open(&f);
	for (unsigned i = 0; i < 200; i++) {
		uint8_t junk[64];
		size_t len = 1 + next_random(&random) % sizeof(junk);

		fh_expect(&f, WIRE_HELLO);
		for (unsigned k = 0; k < len; k++)
			junk[k] = (uint8_t)next_random(&random);
		fh_send_raw(&f, junk, len, i % 3 ? -1 : f.store_fd);
		fh_step_until(&f, CTR_share_bad_messages, i + 1);
	}
	fh_close(&f);
}

/* ---- connections that end --------------------------------------------------------------------------- */

Test(ksm, new_connection_brings_the_store_and_what_is_used_of_it)
{
	static struct fakehost f;
	const struct wire_store_page *p;

	fh_open_connected(&f);
	fh_share(&f, 5);
	cr_assert(fh_has_shared(&f, 3)); /* store page 3 is used no more */
	fh_hang_up(&f);
	expect_hello(&f, true);
	p = fh_expect(&f, WIRE_HOLD);
	cr_assert_eq(f.m->count, 4);
	for (unsigned i = 0; i < 4; i++)
		cr_assert_eq(p[i].store_page, i + 1 + (i > 1));
	fh_expect(&f, WIRE_HOLD);
	cr_assert_eq(f.m->count, 0);
	fh_welcome(&f);
	fh_silence(&f, 20); /* page 3 is not released: it was not held any more */
	for (unsigned i = 0; i < 5; i++)
		cr_assert(fh_has_shared(&f, i + 1));
	fh_close(&f);
}

Test(ksm, release_that_was_under_way_is_not_said_again)
{
	static struct fakehost f;

	fh_open_connected(&f);
	fh_share(&f, 2);
	cr_assert(box_has(&f.b, 0, 1));
	fh_expect(&f, WIRE_RELEASE);
	fh_hang_up(&f);
	fh_expect(&f, WIRE_HELLO);
	fh_expect(&f, WIRE_HOLD);
	cr_assert_eq(f.m->count, 1);
	fh_expect(&f, WIRE_HOLD);
	fh_welcome(&f);
	fh_silence(&f, 20);
	cr_assert(fh_has_shared(&f, 2));
	fh_expect(&f, WIRE_RELEASE);
	cr_assert_eq(f.m->count, 1);
	fh_close(&f);
}

Test(ksm, question_that_was_never_answered_is_asked_anew)
{
	static struct fakehost f;

	fh_open_connected(&f);
	fh_fill(&f, 1, 1);
	fh_hang_up(&f);
	fh_expect(&f, WIRE_HELLO);
	fh_expect(&f, WIRE_HOLD);
	fh_welcome(&f);
	fh_expect(&f, WIRE_LOOKUP);
	cr_assert_eq(f.m->count, 1);
	fh_close(&f);
}

Test(ksm, engine_looks_for_cold_pages_only_while_connected)
{
	static struct fakehost f;

	fh_open_connected(&f);
	fh_hang_up(&f);
	fh_step_until(&f, CTR_share_disconnects, 1);
	cr_assert_eq(f.b.e->ages_ns, 0);
	fh_close(&f);
}

Test(ksm, refusal_is_kept_and_tried_again_slowly)
{
	const char *why = "share group g belongs to user 7";
	static struct fakehost f;
	struct ksm_status s;

	fh_open_with(&f, BOX_MANUAL, (struct ksm_config){ .retry_ns = 20000000 });
	fh_expect(&f, WIRE_HELLO);
	refuse(&f, why);
	ksm_status(f.k, &s);
	cr_assert_eq(s.state, KSM_REFUSED);
	cr_assert_str_eq(s.why, why);
	cr_assert_gt(f.k->retry_at_ns, now_ns() + 100000000);
	fh_expect(&f, WIRE_HELLO);
	cr_assert_eq(state(&f), KSM_REFUSED);
	fh_welcome(&f);
	fh_step_until(&f, CTR_share_connects, 1);
	cr_assert_eq(state(&f), KSM_CONNECTED);
	fh_close(&f);
}

/* Its store is one brimd does not know, and no page is in it: another will do. */
Test(ksm, store_nobody_uses_is_given_up_where_brimd_refuses_it)
{
	const char *why = "never heard of that store";
	static struct fakehost f;

	fh_open_connected(&f);
	fh_hang_up(&f);
	expect_hello(&f, true);
	refuse(&f, why);
	munmap(f.store, FH_STORE_PAGES << PAGE_SHIFT);
	close(f.store_fd);
	fh_make_store(&f);
	expect_hello(&f, false);
	fh_welcome(&f);
	fh_step_until(&f, CTR_share_connects, 2);
	fh_share(&f, 5);
	for (unsigned i = 0; i < 5; i++)
		cr_assert(fh_has_shared(&f, i + 1));
	fh_close(&f);
}

Test(ksm, store_in_use_is_kept_whatever_brimd_says)
{
	const char *why = "never heard of that store";
	static struct fakehost f;

	fh_open_connected(&f);
	fh_share(&f, 2);
	for (unsigned i = 0; i < 4; i++) {
		fh_hang_up(&f);
		expect_hello(&f, true);
		refuse(&f, why);
	}
	cr_assert(fh_has_shared(&f, 1) && fh_has_shared(&f, 2));
	fh_close(&f);
}

/* ---- pages on their way to the tier -------------------------------------------------------------------- */

Test(ksm, packed_page_is_looked_up_and_shared_where_it_is)
{
	static struct fakehost f;
	const struct wire_content *c;

	fh_open_connected(&f);
	for (unsigned i = 0; i < 50; i++)
		box_fill(&f.b, i, 1);
	box_push_out(&f.b, 50);
	cr_assert_eq(f.b.held, 50);
	fh_expect(&f, WIRE_LOOKUP);
	cr_assert_eq(f.m->count, 50);
	fh_answer(&f, WIRE_WANTED, 0);
	for (unsigned done = 0; done < 50; done += f.m->count) {
		c = fh_expect(&f, WIRE_CONTENT);
		cr_assert_eq(f.b.held, 50 - done, "they were brought back to be sent");
		for (unsigned i = 0; i < f.m->count; i++) {
			fh_store(&f, done + i + 1, c[i].of.page, 1);
			cr_assert_eq(memcmp(f.store + ((done + i + 1) << PAGE_SHIFT), c[i].bytes,
					    PAGE_BYTES), 0);
		}
		fh_answer(&f, WIRE_SAME, done + 1);
		fh_step_until(&f, CTR_engine_shared, done + f.m->count);
	}
	cr_assert_eq(f.b.held, 0);
	for (unsigned i = 0; i < 50; i++)
		cr_assert_eq(fh_state(&f, i), PAGE_STORED);
	for (unsigned i = 0; i < 50; i++)
		cr_assert(box_has(&f.b, i, 1));
	fh_close(&f);
}

Test(ksm, more_leaving_pages_than_there_is_room_for_are_let_go)
{
	static struct fakehost f;

	fh_open_connected(&f);
	for (unsigned i = 0; i < RING_PAGES + 100; i++)
		box_fill(&f.b, i, 1);
	while (f.b.held < RING_PAGES + 100)
		box_push_out(&f.b, RING_PAGES + 100 - f.b.held);
	cr_assert_eq(counter_get(CTR_share_leaving_lost), 100);
	for (unsigned n = 0; n < RING_PAGES; n += f.m->count) {
		fh_expect(&f, WIRE_LOOKUP);
		fh_answer(&f, WIRE_ALONE, 0);
	}
	fh_silence(&f, 20);
	fh_close(&f);
}

/* ---- the thread ------------------------------------------------------------------------------------------- */

Test(ksm, thread_ends_at_once_while_brimd_is_silent)
{
	static struct fakehost f;
	struct err e = { "" };
	uint64_t began;

	fh_open(&f);
	fh_expect(&f, WIRE_HELLO); /* never answered */
	cr_assert_eq(ksm_start(f.k, &e), 0);
	usleep(50000);
	began = now_ns();
	ksm_stop(f.k);
	cr_assert_lt(now_ns() - began, 1000000000);
	fh_close(&f);
}

Test(ksm, pages_a_second_are_a_bound)
{
	static struct fakehost f;

	fh_open_with(&f, BOX_MANUAL, (struct ksm_config){ .pages_per_s = 100, .pass_ns = 1000000 });
	fh_connect(&f);
	fh_fill(&f, 0, 200);
	cr_assert_eq(f.m->count, 200);
	cr_assert_gt(f.k->rest_until_ns, now_ns() + 1500000000);
	fh_answer(&f, WIRE_ALONE, 0);
	fh_silence(&f, 20);
	cr_assert_neq(f.k->question.count, 0, "it read on while it should rest");
	fh_close(&f);
}

Test(ksm, share_of_the_cpu_is_a_bound)
{
	static struct fakehost f;
	struct timespec t;
	uint64_t cpu, wall;

	fh_open_with(&f, BOX_MANUAL, (struct ksm_config){ .cpu_pct = 10, .pass_ns = 1 });
	fh_connect(&f);
	for (unsigned i = 0; i < 4000; i++)
		box_fill(&f.b, i, 1);
	fh_cool(&f);
	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
	cpu = (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
	wall = now_ns();
	while (now_ns() < wall + 500000000) {
		if (fh_recv(&f))
			fh_answer(&f, WIRE_LATER, 0);
		f.k->later_at_ns = 0; /* there is always something to hash */
		ksm_step(f.k, 1);
	}
	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
	cpu = (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec - cpu;
	cr_assert_gt(counter_get(CTR_share_lookups), 8000);
	cr_assert_lt(cpu, (now_ns() - wall) / 4, "%lu us", (unsigned long)cpu / 1000);
	fh_close(&f);
}
