/*
 * Which pages are looked up, and what becomes of the answers.
 *
 *   loaded before the guest began ─► LOOKUP, at once; then
 *   engine_cold() ──hash──► LOOKUP ─► ALONE   nothing: an OFFER may come some day
 *   on their way to the              WANTED ──► CONTENT ─► SAME
 *   tier: ksm_leaving() ──► LOOKUP ─► SAME ───► engine_share_mapped(), as for an OFFER
 *   LATER, after a while ─► LOOKUP ─► LATER ──► the list of those, or forgotten
 *   packed before the connection ─► LOOKUP, when there is nothing else
 *
 * A page of zeroes needs nobody: its memory is given back at once.
 *
 * Pages are hashed where they are, as a device would read them: no lock is held, and the
 * guest may write meanwhile.  Then the hash is that of a mixture, which nobody has, and the
 * engine's next pass finds the page written and names it again.  What is sent is a copy
 * that was hashed again, so that its hash is its own.  Pages that have left guest RAM are
 * read where they are (engine_peek), and not brought back for it.
 *
 * Each naming of a store page takes a use of it (uses.c) before the engine is asked, and
 * gives it back where the engine refused; what nobody uses then is released.
 *
 * Owner: the share thread; ksm_leaving() is the reclaimer's.
 */
#include "mm/ksm/internal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#define LATER_NS 1000000000u
#define LATER_MOST_NS (64 * (uint64_t)LATER_NS)
#define RECALL_NS 1000000000u /* what comes together is done in one walk */
#define IDLE_NS 1000000000u   /* between looks for what nobody announces */
#define LEAVING_NS 100000000u /* and while pages leave */
#define PREFETCH_BYTES 512u   /* from there on the CPU sees what we do */

static struct wire_hash hash_of(const struct ksm *k, const void *page)
{
	XXH128_hash_t x = XXH3_128bits_withSeed(page, PAGE_BYTES, k->seed);

	return (struct wire_hash){ x.low64, x.high64 };
}

static bool same_hash(const struct wire_hash *a, const struct wire_hash *b)
{
	return a->lo == b->lo && a->hi == b->hi;
}

static const uint8_t *page_at(const struct ksm *k, uint32_t page)
{
	const void *at = ram_at(k->ram, gpa_of(ram_gfn_at(k->ram, page)), PAGE_BYTES);

	VERIFY(at);
	return at;
}

/* Whatever the guest has there while we look; volatile, so that no memcpy() is made of it:
 * that the guest writes meanwhile is as it should be, and ThreadSanitizer is to know. */
__attribute__((no_sanitize_thread))
static void copy_as_it_is(void *to, const void *from)
{
	const volatile uint64_t *f = from;
	uint64_t *t = to;

	for (unsigned i = 0; i < PAGE_BYTES / sizeof(*t); i++)
		t[i] = f[i];
}

/* False: it is nowhere where it can be read without waiting for a disk. */
static bool read_page(const struct ksm *k, uint32_t page, void *to)
{
	int rc = engine_peek(k->engine, page, to);

	if (rc == -EAGAIN)
		copy_as_it_is(to, page_at(k, page));
	return rc == 0 || rc == -EAGAIN;
}

void scan_anew(struct ksm *k)
{
	static const uint8_t zeroes[PAGE_BYTES];

	engine_forget_hashes(k->engine);
	k->zero = hash_of(k, zeroes);
	k->cursor = k->packed_at = 0;
	k->round_at_ns = now_ns();
	k->later_count = 0;
	k->later_wait_ns = LATER_NS;
	atomic_store(&k->ring_tail, atomic_load(&k->ring_head));
}

void scan_loaded(struct ksm *k)
{
	k->loaded_at = k->loaded_done = 0;
	k->hurries = k->loaded_count > 0 && now_ns() < k->loaded_until_ns;
}

/* ---- sharing what was named ----------------------------------------------------------- */

static void look_later(struct ksm *k, uint32_t page)
{
	if (k->later_count == LATER_PAGES) {
		counter_inc(CTR_share_later_lost);
		return;
	}
	if (k->later_count == 0)
		k->later_at_ns = now_ns() + k->later_wait_ns;
	k->later[k->later_count++] = page;
}

static void name(struct ksm *k, uint32_t page, uint32_t store_page)
{
	if (uses_take(&k->uses, store_page)) {
		k->same[k->same_count++] = (struct mm_same){ page, store_page, 0 };
		return;
	}
	counter_inc(CTR_share_crossed);
	look_later(k, page);
}

static int by_page(const void *a, const void *b)
{
	const struct mm_same *x = a, *y = b;

	return (x->page > y->page) - (x->page < y->page);
}

/* All of k->same: pages in a row cost the least. */
static void share_named(struct ksm *k)
{
	if (!k->same_count)
		return;
	qsort(k->same, k->same_count, sizeof(*k->same), by_page);
	engine_share_mapped(k->engine, k->same, k->same_count);
	for (unsigned i = 0; i < k->same_count; i++)
		if (k->same[i].rc && k->same[i].store_page)
			uses_drop(&k->uses, k->same[i].store_page);
	k->paced_pages += k->same_count;
	k->same_count = 0;
}

static bool in_store(const struct ksm *k, uint32_t store_page)
{
	return store_page && store_page < k->store_pages;
}

/* ---- messages --------------------------------------------------------------------------- */

static const char *check_answer(const struct ksm *k, const struct wire_head *m)
{
	const struct question *q = &k->question;
	const struct wire_answer *a = wire_entries(m);

	if (!q->count || m->turn != q->turn || m->count != q->count)
		return "brimd answered what was not asked";
	for (unsigned i = 0; i < m->count; i++) {
		if (a[i].page != q->of[i].page)
			return "brimd answered for another page";
		if (a[i].kind == WIRE_SAME && !in_store(k, a[i].store_page))
			return "brimd named a page beyond its store";
		if (q->type == WIRE_CONTENT && a[i].kind != WIRE_SAME && a[i].kind != WIRE_LATER)
			return "brimd answered contents with questions";
	}
	return NULL;
}

/* One of the same hash is enough: brimd offers the others what becomes of it. */
static void want(struct ksm *k, const struct wire_page *p)
{
	uint64_t *seen = &k->seen[p->hash.lo % SEEN];

	if (*seen != p->hash.lo)
		k->wanted[k->wanted_count++] = *p;
	*seen = p->hash.lo;
}

/* While the answer is LATER and nothing else, the next attempt is further and further. */
static void set_later_wait(struct ksm *k, unsigned later)
{
	if (!k->question.again)
		return;
	if (later < k->question.count)
		k->later_wait_ns = LATER_NS;
	else if (k->later_wait_ns < LATER_MOST_NS)
		k->later_wait_ns *= 2;
}

static void take_answer(struct ksm *k, const struct wire_answer *a)
{
	const struct question *q = &k->question;
	unsigned later = 0;

	for (unsigned i = 0; i < q->count; i++)
		later += a[i].kind == WIRE_LATER;
	set_later_wait(k, later);
	counter_add(CTR_share_later, later);
	for (unsigned i = 0; i < q->count; i++) {
		if (a[i].kind == WIRE_SAME)
			name(k, a[i].page, a[i].store_page);
		else if (a[i].kind == WIRE_WANTED)
			want(k, &q->of[i]);
		else if (a[i].kind == WIRE_LATER)
			look_later(k, a[i].page);
	}
	counter_add(CTR_share_same, k->same_count);
	share_named(k);
}

void scan_answer(struct ksm *k, const struct wire_head *m)
{
	const char *why = check_answer(k, m);

	if (why) {
		link_bad(k, why);
		return;
	}
	if (k->question.type == WIRE_LOOKUP) {
		k->wanted_count = k->wanted_at = 0;
		memset(k->seen, 0, sizeof(k->seen));
	}
	take_answer(k, wire_entries(m));
	k->question.count = 0;
}

void scan_offer(struct ksm *k, const struct wire_head *m)
{
	const struct wire_offer *o = wire_entries(m);

	for (unsigned i = 0; i < m->count; i++)
		if (o[i].page >= k->ram_pages || !in_store(k, o[i].store_page)) {
			link_bad(k, "brimd offered a page that is not there");
			return;
		}
	counter_add(CTR_share_offers, m->count);
	for (unsigned i = 0; i < m->count; i++)
		name(k, o[i].page, o[i].store_page);
	share_named(k);
}

void scan_released(struct ksm *k, const struct wire_head *m)
{
	if (!k->release_turn || m->turn != k->release_turn) {
		link_bad(k, "brimd released what was not to be released");
		return;
	}
	uses_released(&k->uses, k->releasing, k->release_count);
	counter_add(CTR_share_released, k->release_count);
	k->release_turn = 0;
}

void scan_recall(struct ksm *k, const struct wire_head *m)
{
	const struct wire_store_page *p = wire_entries(m);

	for (unsigned i = 0; i < m->count; i++)
		if (!in_store(k, p[i].store_page)) {
			link_bad(k, "brimd recalled a page beyond its store");
			return;
		}
	for (unsigned i = 0; i < m->count; i++)
		k->recalled[p[i].store_page / 64] |= (uint64_t)1 << p[i].store_page % 64;
	if (!k->recall_at_ns)
		k->recall_at_ns = now_ns() + RECALL_NS;
}

/* ---- what we say ------------------------------------------------------------------------- */

static bool release(struct ksm *k)
{
	unsigned n = k->release_turn ? 0
				     : uses_collect(&k->uses, k->releasing,
						    (unsigned)wire_entries_max(WIRE_RELEASE));

	if (!n)
		return false;
	memcpy(link_room(k), k->releasing, n * sizeof(*k->releasing));
	k->release_count = n;
	k->release_turn = link_next_turn(k);
	link_send(k, WIRE_RELEASE, n, k->release_turn);
	return true;
}

/* A page that several pages of ours use saves memory, whoever else does not use it. */
static bool answer_recalls(struct ksm *k)
{
	if (!k->recall_at_ns || now_ns() < k->recall_at_ns)
		return false;
	k->recall_at_ns = 0;
	for (uint32_t w = 0; w * 64 < k->uses.end; w++)
		for (uint64_t left = k->recalled[w]; left; left &= left - 1) {
			uint32_t bit = (uint32_t)__builtin_ctzll(left);

			if (uses_count(&k->uses, w * 64 + bit) != 1)
				k->recalled[w] &= ~((uint64_t)1 << bit);
		}
	counter_add(CTR_share_recalled, engine_unshare(k->engine, k->recalled));
	for (uint32_t w = 0; w < (k->store_pages + 63) / 64; w++)
		if (k->recalled[w])
			k->recalled[w] = 0;
	return true;
}

/* link_send() may end the connection, and with it the question. */
static void ask(struct ksm *k, enum wire_type t, unsigned n)
{
	k->question.type = t;
	k->question.count = n;
	k->question.turn = link_next_turn(k);
	k->paced_pages += n;
	link_send(k, t, n, k->question.turn);
}

static bool send_contents(struct ksm *k)
{
	struct wire_content *c = link_room(k);
	unsigned n = 0;

	while (k->wanted_at < k->wanted_count && n < wire_entries_max(WIRE_CONTENT)) {
		const struct wire_page *p = &k->wanted[k->wanted_at++];
		struct wire_hash h;

		if (!read_page(k, p->page, c[n].bytes))
			continue;
		h = hash_of(k, c[n].bytes);
		if (!same_hash(&h, &p->hash)) {
			counter_inc(CTR_share_contents_changed);
			continue;
		}
		c[n].of = *p;
		k->question.of[n++] = *p;
	}
	if (!n)
		return false;
	counter_add(CTR_share_contents, n);
	k->question.again = false;
	ask(k, WIRE_CONTENT, n);
	return true;
}

/* Their hashes are known. */
static unsigned gather_leaving(struct ksm *k)
{
	uint64_t head = atomic_load(&k->ring_head), tail = atomic_load(&k->ring_tail);
	unsigned n = 0;

	for (; tail != head && n < BATCH_PAGES; tail++) {
		const struct leaving *l = &k->ring[tail % RING_PAGES];

		k->question.of[n++] = (struct wire_page){ l->hash, l->page, 0 };
	}
	atomic_store(&k->ring_tail, tail);
	counter_add(CTR_share_leaving, n);
	return n;
}

static unsigned gather_later(struct ksm *k)
{
	uint64_t copy[PAGE_BYTES / sizeof(uint64_t)];
	unsigned n = 0;

	if (now_ns() < k->later_at_ns)
		return 0;
	while (k->later_count && n < BATCH_PAGES) {
		uint32_t page = k->later[--k->later_count];

		if (read_page(k, page, copy))
			k->question.of[n++] = (struct wire_page){ hash_of(k, copy), page, 0 };
	}
	return n;
}

/* The next page that was loaded.  False: that was all. */
static bool next_loaded(struct ksm *k, uint32_t *page)
{
	while (k->loaded_at < k->loaded_count) {
		const struct loaded *l = &k->loaded[k->loaded_at];

		*page = l->first + k->loaded_done++;
		if (*page < l->end)
			return true;
		k->loaded_at++;
		k->loaded_done = 0;
	}
	return false;
}

/* As gather_cold(), of pages wherever they are. */
static unsigned gather_loaded(struct ksm *k, unsigned *ask_about)
{
	uint64_t copy[PAGE_BYTES / sizeof(uint64_t)];
	unsigned n = 0, left = 0;
	uint32_t page;

	k->hurries = k->hurries && now_ns() < k->loaded_until_ns;
	for (; k->hurries && n < BATCH_PAGES && next_loaded(k, &page); n++) {
		struct wire_hash h;

		if (!read_page(k, page, copy))
			continue;
		h = hash_of(k, copy);
		if (same_hash(&h, &k->zero))
			k->same[k->same_count++] = (struct mm_same){ page, 0, 0 };
		else
			k->question.of[left++] = (struct wire_page){ h, page, 0 };
	}
	counter_add(CTR_share_loaded, n);
	k->hurries = n > 0;
	share_named(k);
	*ask_about = left;
	return n;
}

/* What was packed while brimd could not be told, or told to another brimd.  Unpacked to be
 * hashed, so after all others. */
static unsigned gather_packed(struct ksm *k, unsigned *ask_about)
{
	uint64_t copy[PAGE_BYTES / sizeof(uint64_t)];
	unsigned n = (unsigned)engine_packed(k->engine, &k->packed_at, k->pages, BATCH_PAGES);
	unsigned left = 0;

	for (unsigned i = 0; i < n; i++)
		if (read_page(k, k->pages[i], copy))
			k->question.of[left++] = (struct wire_page){ hash_of(k, copy), k->pages[i], 0 };
	counter_add(CTR_share_packed_again, n);
	k->paced_pages += n - left;
	*ask_about = left;
	return n;
}

static void prefetch(const uint8_t *page)
{
	for (unsigned i = 0; i < PREFETCH_BYTES; i += 64)
		__builtin_prefetch(page + i);
}

/* Of the n pages in k->pages those with something in them. */
static unsigned hash_cold(struct ksm *k, unsigned n)
{
	unsigned left = 0;

	for (unsigned i = 0; i < n; i++) {
		struct wire_hash h;

		if (i + 1 < n)
			prefetch(page_at(k, k->pages[i + 1]));
		h = hash_of(k, page_at(k, k->pages[i]));
		if (same_hash(&h, &k->zero))
			k->same[k->same_count++] = (struct mm_same){ k->pages[i], 0, 0 };
		else
			k->question.of[left++] = (struct wire_page){ h, k->pages[i], 0 };
	}
	counter_add(CTR_share_hashed, n);
	k->paced_pages += n - left;
	return left;
}

/* How many were named; fewer are to be asked about. */
static unsigned gather_cold(struct ksm *k, unsigned *ask_about)
{
	unsigned n;

	if (now_ns() < k->round_at_ns)
		return 0;
	n = (unsigned)engine_cold(k->engine, &k->cursor, k->pages, BATCH_PAGES);
	*ask_about = hash_cold(k, n);
	share_named(k);
	if (n == 0) {
		k->cursor = 0;
		k->round_at_ns = now_ns() + k->cfg.pass_ns;
	}
	return n;
}

static bool look_up(struct ksm *k)
{
	unsigned n = 0, done = gather_loaded(k, &n);

	k->question.again = false;
	if (!done)
		done = n = gather_leaving(k);
	if (!done && k->later_count) {
		done = n = gather_later(k);
		k->question.again = n;
	}
	if (!done)
		done = gather_cold(k, &n);
	if (!done)
		done = gather_packed(k, &n);
	if (!n)
		return done;
	memcpy(link_room(k), k->question.of, n * sizeof(*k->question.of));
	counter_add(CTR_share_lookups, n);
	ask(k, WIRE_LOOKUP, n);
	return true;
}

bool scan_work(struct ksm *k)
{
	if (!link_is_free(k))
		return false;
	if (release(k) || answer_recalls(k))
		return true;
	if (k->question.count)
		return false;
	return send_contents(k) || look_up(k);
}

uint64_t scan_due_ns(const struct ksm *k)
{
	bool leaving = k->ring_head != k->ring_tail || counter_get(CTR_share_leaving);
	uint64_t due = now_ns() + (leaving ? LEAVING_NS : IDLE_NS);

	if (k->recall_at_ns && k->recall_at_ns < due)
		due = k->recall_at_ns;
	if (k->question.count)
		return due;
	if (k->hurries || k->packed_at < k->ram_pages)
		return 0;
	if (k->round_at_ns < due)
		due = k->round_at_ns;
	return k->later_count && k->later_at_ns < due ? k->later_at_ns : due;
}

/* ---- on their way to the tier ---------------------------------------------------------------- */

void ksm_leaving(void *ctx, uint64_t index, const void *page)
{
	struct ksm *k = ctx;
	uint64_t head = atomic_load_explicit(&k->ring_head, memory_order_relaxed);

	ASSERT_ROLE(ROLE_RECLAIM);
	if (!atomic_load(&k->is_open))
		return;
	if (head - atomic_load(&k->ring_tail) >= RING_PAGES) {
		counter_inc(CTR_share_leaving_lost);
		return;
	}
	k->ring[head % RING_PAGES] = (struct leaving){ hash_of(k, page), (uint32_t)index };
	atomic_store(&k->ring_head, head + 1);
}
