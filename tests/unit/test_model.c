/*
 * The engine against a model of it: random operations, one at a time, in manual mode.
 *
 * The model knows of each page what it must read as and what kind of content that is,
 * and so what may become of it:
 *
 *   operation      a page that was    may be afterwards
 *   touch          anything           GUEST (that page; others of its chunk may come with it)
 *   tick, limit    GUEST              GUEST, STAGED
 *                  STAGED             STAGED; by its content: FILLED, PACKED, or GUEST where it
 *                                     does not pack or the tier is full
 *                  the others         the same
 *   discard        anything           GUEST, reading zero
 *   share          GUEST, STAGED,     STORED, where the store's page is the same; of zeroes
 *                  PACKED             also GUEST
 *                  GUEST              in runs also SHARED
 *   tick, limit    SHARED             SHARED; where it was written BROKEN; GUEST or STAGED
 *                  BROKEN             BROKEN, GUEST, STAGED
 *   recall         STORED, SHARED,    GUEST
 *                  BROKEN
 *   tier's move    PACKED, DISK       PACKED or DISK, elsewhere
 *
 * Each sequence runs in a child.  One that fails is cut down while it goes on failing,
 * and printed.  Every transition the table allows must have been seen; every other one
 * must kill the process.
 *
 *   BRIM_SEED       the first sequence's seed (printed)
 *   BRIM_MODEL_RUNS how many sequences (default 12), and more until all has been seen
 */
#include "tests/unit/membox.h"

#include <signal.h>
#include <stdarg.h>
#include <sys/wait.h>
#include <unistd.h>

#define AREA (3 * CHUNK_PAGES) /* pages the operations are about */
#define OPS 400u
#define STATES PAGE_STATES

#define CHECK(c, ...) do { if (!(c)) model_failed(#c, __VA_ARGS__); } while (0)

enum op_kind {
	OP_READ, OP_READ_RUN, OP_WRITE, OP_WRITE_SHARED, OP_TICK, OP_RECLAIM, OP_LIMIT, OP_DISCARD,
	OP_DISCARD_AWAY, OP_MOVE, OP_MOVE_STALE, OP_SHARE, OP_SHARE_AWAY, OP_RECALL, OP_FULL, OP_KINDS
};
static const char *const op_name[OP_KINDS] = {
	"read", "read a run", "write", "write what is mapped", "tick", "reclaim", "limit", "discard",
	"discard what is away", "move in the tier", "move too late", "share", "share what is away",
	"recall", "tier full or not",
};

struct op {
	enum op_kind kind;
	uint32_t page, n;
};

enum content { ZERO, FILL, PACKS, HARD, CONTENTS };

/* Shared with the parent: what has been seen. */
struct seen {
	_Atomic uint64_t moves[STATES][STATES];
	_Atomic uint64_t hard, full;
};

struct model {
	struct box box;
	struct seen *seen;
	uint32_t version[AREA];
	uint8_t content[AREA], state[AREA];
	_Atomic uint64_t ref[AREA]; /* where the tier has it; 0: nowhere */
	uint64_t next_ref;
	int disk; /* page i's block is block i */
	uint8_t *store; /* page i + 1 is for page i */
	int store_fd;
	bool written[AREA]; /* since it was mapped */
	_Atomic int uses[AREA + 1];
	bool full;
};

static void __attribute__((format(printf, 2, 3), noreturn))
model_failed(const char *what, const char *fmt, ...)
{
	char text[200];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	fprintf(stderr, "  %s: %s\n", what, text);
	_exit(1);
}

/* ---- the tier: copies, at references that change ----------------------------------- */

static struct model *of_box(void *ctx)
{
	return (struct model *)((uint8_t *)ctx - offsetof(struct model, box));
}

static int model_put(void *ctx, uint64_t i, const void *page, uint64_t *ref, bool *filled)
{
	struct model *m = of_box(ctx);
	uint64_t given;
	int rc = box_put(ctx, i, page, &given, filled);

	if (rc)
		return rc;
	CHECK(i < AREA && m->ref[i] == 0, "page %lu put twice", (unsigned long)i);
	*ref = ++m->next_ref;
	m->ref[i] = *ref;
	return 0;
}

static int model_get(void *ctx, uint64_t ref, uint64_t i, void *page)
{
	CHECK(of_box(ctx)->ref[i] == ref, "page %lu asked for at %lu", (unsigned long)i,
	      (unsigned long)ref);
	return box_get(ctx, i + 1, i, page);
}

static uint64_t owner_of(struct model *m, uint64_t ref)
{
	uint64_t i = 0;

	while (i < AREA && m->ref[i] != ref)
		i++;
	CHECK(i < AREA, "%lu is no page's", (unsigned long)ref);
	return i;
}

static void model_drop(void *ctx, uint64_t ref)
{
	struct model *m = of_box(ctx);
	uint64_t i = owner_of(m, ref);

	m->ref[i] = 0;
	box_drop(ctx, i + 1);
}

static void model_pin(void *ctx, uint64_t ref, struct mm_extent *out)
{
	struct model *m = of_box(ctx);

	*out = (struct mm_extent){ m->disk, PAGE_BYTES, owner_of(m, ref) << PAGE_SHIFT };
}

/* One operation at a time: nothing is written while it is being read. */
static void model_unpin(void *ctx, uint64_t ref)
{
	(void)ctx, (void)ref;
}

static int model_unpack(void *ctx, uint64_t ref, uint64_t i, const struct mm_read *from, void *page)
{
	CHECK(of_box(ctx)->ref[i] == ref, "page %lu unpacked from %lu", (unsigned long)i,
	      (unsigned long)ref);
	memcpy(page, from->raw + (i << PAGE_SHIFT) - from->of.offset, PAGE_BYTES);
	return 0;
}

static const struct mm_tier model_tier = {
	.put = model_put, .get = model_get, .drop = model_drop, .held_bytes = box_held,
	.pin = model_pin, .unpin = model_unpin, .unpack = model_unpack,
};

/* ---- content ----------------------------------------------------------------------- */

static uint64_t word(const struct model *m, uint64_t i, uint64_t w)
{
	switch (m->content[i]) {
	case ZERO:
		return 0;
	case FILL:
		return i << 32 | m->version[i] << 1 | 1;
	case HARD:
		return w ? i << 32 ^ m->version[i] << 12 ^ w : BOX_HARD;
	default:
		return i << 32 ^ (uint64_t)m->version[i] << 12 ^ (w + 1) << 56;
	}
}

static void write_page(struct model *m, uint64_t i, enum content c)
{
	uint64_t *p = (uint64_t *)box_at(&m->box, i);

	m->version[i]++;
	m->content[i] = c;
	m->written[i] = m->state[i] == PAGE_SHARED;
	for (uint64_t w = 0; w < PAGE_BYTES / sizeof(*p); w++)
		p[w] = word(m, i, w);
}

static void read_page(struct model *m, uint64_t i)
{
	const uint64_t *p = (const uint64_t *)box_at(&m->box, i);

	for (uint64_t w = 0; w < PAGE_BYTES / sizeof(*p); w++)
		CHECK(p[w] == word(m, i, w), "page %lu, word %lu is %lx, not %lx", (unsigned long)i,
		      (unsigned long)w, (unsigned long)p[w], (unsigned long)word(m, i, w));
}

/* ---- what may follow what ---------------------------------------------------------- */

/* Under the lock, as a fault thread may be just done with it. */
static struct page entry(struct model *m, uint64_t i)
{
	struct chunk *c = chunk_of(&m->box.e->pages, i);
	struct page p;

	pthread_mutex_lock(&c->lock);
	p = m->box.e->pages.page[i];
	pthread_mutex_unlock(&c->lock);
	return p;
}

static enum page_state state_of(struct model *m, uint64_t i)
{
	return entry(m, i).state;
}

static bool staged_may_be(const struct model *m, uint64_t i, enum page_state to)
{
	switch (to) {
	case PAGE_STAGED:
		return true;
	case PAGE_FILLED:
		return m->content[i] == ZERO || m->content[i] == FILL;
	case PAGE_PACKED:
		return m->content[i] == PACKS;
	default:
		return m->full || m->content[i] == HARD;
	}
}

static bool may_share(enum page_state from)
{
	return from == PAGE_GUEST || from == PAGE_STAGED || from == PAGE_PACKED;
}

static bool may_become(const struct model *m, uint64_t i, enum op_kind op, enum page_state to)
{
	bool is_round = op == OP_TICK || op == OP_LIMIT;
	enum page_state from = m->state[i];

	bool is_share = op == OP_SHARE || op == OP_SHARE_AWAY;

	if (to == PAGE_STORED && to != from)
		return is_share && may_share(from);
	if (to == PAGE_SHARED && to != from)
		return is_share && (from == PAGE_GUEST || from == PAGE_STAGED);
	/* what was mapped with it may be taken back with it, and staged at once */
	if (is_round && (from == PAGE_SHARED || from == PAGE_BROKEN))
		return to == from || to == PAGE_GUEST || to == PAGE_STAGED ||
		       (to == PAGE_BROKEN && m->written[i]);
	if (from == PAGE_SHARED && to == PAGE_BROKEN)
		return (is_share || op == OP_RECALL) && m->written[i];
	if (!is_round)
		return to == from || to == PAGE_GUEST;
	if (from == PAGE_STAGED)
		return staged_may_be(m, i, to);
	return to == from || (from == PAGE_GUEST && to == PAGE_STAGED);
}

static bool in_ram(enum page_state s)
{
	return s == PAGE_GUEST || s == PAGE_SHARED || s == PAGE_BROKEN;
}

static bool uses_store(enum page_state s)
{
	return s == PAGE_STORED || s == PAGE_SHARED;
}

/* After each operation. */
static void compare(struct model *m, enum op_kind op, uint64_t at)
{
	bool is_round = op == OP_TICK || op == OP_LIMIT;

	box_settle(&m->box);
	CHECK((op != OP_SHARE && op != OP_SHARE_AWAY) || m->box.fatal == 0, "op %d", (int)op);
	CHECK(op != OP_READ || in_ram(state_of(m, at)), "page %lu was not brought back",
	      (unsigned long)at);
	for (uint64_t i = 0; i < AREA; i++) {
		enum page_state from = m->state[i], to = state_of(m, i);

		CHECK(may_become(m, i, op, to), "page %lu from %d to %d", (unsigned long)i,
		      from, to);
		CHECK(m->uses[i + 1] == uses_store(to), "page %lu in state %d has %d uses",
		      (unsigned long)i, to, m->uses[i + 1]);
		CHECK((m->ref[i] != 0) ==
			      (to == PAGE_FILLED || to == PAGE_PACKED || to == PAGE_DISK),
		      "page %lu in state %d, ref %lu", (unsigned long)i, to,
		      (unsigned long)m->ref[i]);
		/* mapped by way of the freezer */
		if (from != to)
			m->seen->moves[to == PAGE_SHARED ? PAGE_STAGED : from][to]++;
		if (is_round && from == PAGE_STAGED && to == PAGE_GUEST) {
			m->seen->hard += m->content[i] == HARD;
			m->seen->full += m->full;
		}
		m->written[i] &= to == PAGE_SHARED;
		m->state[i] = to;
	}
}

/* ---- operations -------------------------------------------------------------------- */

static void discard(struct model *m, uint64_t i, uint64_t n)
{
	struct ram_range r = { gpa(i << PAGE_SHIFT), n << PAGE_SHIFT };

	CHECK(ram_discard_many(m->box.ram, &r, 1) == 1, "discard of %lu", (unsigned long)i);
	for (uint64_t k = i; k < i + n; k++) {
		CHECK(state_of(m, k) == PAGE_GUEST, "page %lu is away still", (unsigned long)k);
		m->content[k] = ZERO;
	}
}

static uint64_t find(struct model *m, uint64_t from, enum page_state s)
{
	uint64_t i = from;

	do
		i = (i + 1) % AREA;
	while (i != from && m->state[i] != s);
	return i;
}

static void write_block(struct model *m, uint64_t i)
{
	CHECK(pwrite(m->disk, m->box.of[i], PAGE_BYTES, (off_t)(i << PAGE_SHIFT)) ==
	      (ssize_t)PAGE_BYTES, "page %lu", (unsigned long)i);
}

static void move_in_tier(struct model *m, uint64_t i, enum mm_kept kept, bool late)
{
	enum page_state from = m->state[i], to = kept == MM_DISK ? PAGE_DISK : PAGE_PACKED;
	struct mm_move v = { m->ref[i] + late, m->next_ref + 100, kept };
	bool there = (from == PAGE_PACKED || from == PAGE_DISK) && !late;

	if (there && to == PAGE_DISK)
		write_block(m, i);
	CHECK(engine_moved(m->box.e, i, &v) == there, "page %lu, state %d", (unsigned long)i, from);
	if (!there)
		return;
	m->ref[i] = v.to;
	m->next_ref = v.to;
	CHECK(entry(m, i).payload == v.to && entry(m, i).state == to, "page %lu",
	      (unsigned long)i);
	m->seen->moves[from][to]++;
	m->state[i] = to;
}

static void store_drop(void *ctx, uint32_t store_page)
{
	struct model *m = ctx;

	CHECK(m->uses[store_page] == 1, "store page %u has %d uses", store_page,
	      m->uses[store_page]);
	m->uses[store_page] = 0;
}

/* What the page should be goes to its place in the store, or nearly that. */
static void store_page(struct model *m, uint64_t i, bool differs)
{
	uint64_t *p = (uint64_t *)(m->store + ((i + 1) << PAGE_SHIFT));

	for (uint64_t w = 0; w < PAGE_BYTES / sizeof(*p); w++)
		p[w] = word(m, i, w);
	p[511] ^= differs;
}

/* n pages, of which every 13th is not what the store has. */
static void share(struct model *m, uint64_t i, uint64_t n)
{
	struct mm_same list[64];
	unsigned count = 0;

	for (; n-- && i < AREA; i++) {
		bool in_use = uses_store(m->state[i]);
		bool as_zeroes = m->content[i] == ZERO && i % 2;

		if (!in_use && !as_zeroes)
			store_page(m, i, i % 13 == 0);
		m->uses[i + 1] += !in_use && !as_zeroes;
		list[count++] = (struct mm_same){ (uint32_t)i, as_zeroes ? 0 : (uint32_t)i + 1, 0 };
	}
	engine_share_mapped(m->box.e, list, count);
	for (unsigned k = 0; k < count; k++) {
		uint64_t p = list[k].page;

		if (uses_store(m->state[p]))
			CHECK(list[k].rc == -EAGAIN, "page %lu again", (unsigned long)p);
		else if (list[k].rc && list[k].store_page)
			m->uses[p + 1]--;
		CHECK(list[k].rc != 0 || !list[k].store_page || p % 13, "page %lu differs",
		      (unsigned long)p);
	}
}

static void recall(struct model *m, uint64_t i, uint64_t n)
{
	uint64_t set[AREA / 64 + 1] = { 0 };

	for (; n-- && i < AREA; i++)
		set[(i + 1) / 64] |= (uint64_t)1 << (i + 1) % 64;
	engine_unshare(m->box.e, set);
}

static void read_run(struct model *m, uint64_t i, uint64_t n)
{
	for (; n && i < AREA; i++, n--)
		read_page(m, i);
}

static void write_run(struct model *m, const struct op *op)
{
	uint64_t n = op->n % 3 ? op->n : 1 + op->n % 4; /* a mapped run may be written in part */

	for (uint64_t i = op->page; i < op->page + n && i < AREA; i++)
		write_page(m, i, (enum content)((i * 7 + op->n) % CONTENTS));
}

static void one(struct model *m, const struct op *op)
{
	switch (op->kind) {
	case OP_READ:
		read_page(m, op->page);
		break;
	case OP_READ_RUN:
		read_run(m, op->page, op->n);
		break;
	case OP_WRITE:
		write_run(m, op);
		break;
	case OP_WRITE_SHARED:
		write_page(m, find(m, op->page, PAGE_SHARED), PACKS);
		break;
	case OP_TICK:
		engine_tick(m->box.e);
		break;
	case OP_RECLAIM:
		engine_reclaim(m->box.e, (uint64_t)op->n * 8 << PAGE_SHIFT);
		break;
	case OP_LIMIT:
		/* for one round: nobody ticks while a later touch waits for the limit */
		engine_limit(m->box.e, (uint64_t)(op->page + 64) << PAGE_SHIFT);
		engine_tick(m->box.e);
		engine_limit(m->box.e, 0);
		break;
	case OP_DISCARD:
		discard(m, op->page, op->n < AREA - op->page ? op->n : AREA - op->page);
		break;
	case OP_DISCARD_AWAY:
		discard(m, find(m, op->page, PAGE_STAGED + op->n % (STATES - 1)), 1);
		break;
	case OP_MOVE:
		move_in_tier(m, find(m, op->page, op->n & 1 ? PAGE_DISK : PAGE_PACKED),
			     op->n & 2 ? MM_DISK : MM_PACKED, false);
		break;
	case OP_SHARE:
		share(m, op->page, op->n);
		break;
	case OP_SHARE_AWAY:
		share(m, find(m, op->page, op->n & 1 ? PAGE_STAGED : PAGE_PACKED), 1 + op->n % 8);
		break;
	case OP_RECALL:
		recall(m, find(m, op->page, op->n & 1 ? PAGE_STORED : PAGE_SHARED), op->n);
		break;
	case OP_MOVE_STALE:
		move_in_tier(m, op->page, MM_PACKED, true);
		break;
	default:
		m->box.full_at = m->full = op->n % 4 == 0;
	}
}

static void __attribute__((noreturn)) run(struct seen *seen, const struct op *ops, unsigned n)
{
	static struct model m;
	char why[200];

	m.seen = seen;
	m.box.tier = &model_tier;
	m.disk = memfd_create("model", MFD_CLOEXEC);
	CHECK(m.disk >= 0 && ftruncate(m.disk, AREA << PAGE_SHIFT) == 0, "no memfd");
	box_open(&m.box, RAM_HUGE_AUTO, BOX_MANUAL);
	m.store_fd = memfd_create("store", MFD_CLOEXEC);
	CHECK(m.store_fd >= 0 && ftruncate(m.store_fd, (AREA + 1) << PAGE_SHIFT) == 0, "no memfd");
	m.store = mmap(NULL, (AREA + 1) << PAGE_SHIFT, PROT_READ | PROT_WRITE, MAP_SHARED,
		       m.store_fd, 0);
	CHECK(m.store != MAP_FAILED, "no store");
	engine_set_store(m.box.e, &(struct mm_store){ m.store, AREA + 1, store_drop, &m, m.store_fd });
	for (unsigned i = 0; i < n; i++) {
		one(&m, &ops[i]);
		compare(&m, ops[i].kind, ops[i].page);
	}
	CHECK(books_check(m.box.e, why, sizeof(why)) == 0, "%s", why);
	read_run(&m, 0, AREA);
	box_settle(&m.box);
	CHECK(m.box.held == 0 && m.box.fatal == 0, "%lu pages left in the tier",
	      (unsigned long)m.box.held);
	_exit(0);
}

/* ---- sequences --------------------------------------------------------------------- */

static bool passes(struct seen *seen, const struct op *ops, unsigned n)
{
	pid_t child = fork();
	int status;

	if (child == 0)
		run(seen, ops, n);
	cr_assert_eq(waitpid(child, &status, 0), child);
	if (WIFSIGNALED(status))
		fprintf(stderr, "  died of signal %d\n", WTERMSIG(status));
	return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

/* Leaves out pieces, ever smaller, while the rest goes on failing. */
static unsigned shrink(struct seen *seen, struct op *ops, unsigned n)
{
	struct op rest[OPS];

	for (unsigned piece = n / 2; piece; piece /= 2)
		for (unsigned at = 0; at + piece <= n;) {
			memcpy(rest, ops, at * sizeof(*ops));
			memcpy(rest + at, ops + at + piece, (n - at - piece) * sizeof(*ops));
			if (passes(seen, rest, n - piece)) {
				at += piece;
				continue;
			}
			n -= piece;
			memcpy(ops, rest, n * sizeof(*ops));
		}
	return n;
}

static void make_ops(struct op ops[OPS], uint64_t seed)
{
	uint64_t s = seed * 0x9E3779B97F4A7C15u | 1;

	for (unsigned i = 0; i < OPS; i++) {
		uint64_t r = next_random(&s);

		ops[i] = (struct op){ .kind = r % OP_KINDS, .page = (r >> 16) % AREA,
				      .n = 1 + (r >> 40) % 64 };
		/* they are what everything goes by */
		if (r >> 61 == 0)
			ops[i].kind = r >> 60 & 1 ? OP_TICK : OP_RECLAIM;
		if (r >> 61 == 1)
			ops[i].kind = r >> 60 & 1 ? OP_TICK : OP_WRITE;
	}
}

static void try_seed(struct seen *seen, uint64_t seed)
{
	struct op ops[OPS];
	unsigned n = OPS;

	make_ops(ops, seed);
	if (passes(seen, ops, n))
		return;
	n = shrink(seen, ops, n);
	for (unsigned i = 0; i < n; i++)
		fprintf(stderr, "  %s, page %u, n %u\n", op_name[ops[i].kind], ops[i].page,
			ops[i].n);
	cr_assert_fail("BRIM_SEED=%lu: wrong after these %u operations", (unsigned long)seed, n);
}

static bool all_seen(const struct seen *seen)
{
	for (int from = 0; from < STATES; from++)
		for (int to = 0; to < STATES; to++)
			if (page_may(from, to) && !seen->moves[from][to])
				return false;
	return seen->hard && seen->full;
}

Test(model, engine_does_what_the_model_does)
{
	uint64_t first = seed_of_run(), n = env_number("BRIM_MODEL_RUNS", 12);
	struct seen *seen = mmap(NULL, sizeof(*seen), PROT_READ | PROT_WRITE,
				 MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	static struct box probe;

	box_open(&probe, RAM_HUGE_AUTO, BOX_MANUAL); /* skips where there is no userfaultfd */
	box_close(&probe);
	for (uint64_t i = 0; i < n || (!all_seen(seen) && i < 20 * n); i++)
		try_seed(seen, first + i);
	for (int from = 0; from < STATES; from++)
		for (int to = 0; to < STATES; to++) {
			if (!page_may(from, to))
				continue;
			fprintf(stderr, "%d to %d: %lu\n", from, to,
				(unsigned long)seen->moves[from][to]);
			cr_expect(seen->moves[from][to], "%d to %d was never seen", from, to);
		}
	cr_assert(seen->hard && seen->full);
}

/* In a child: page_set() from one state to another, which is not in the table. */
static int death_of(enum page_state from, enum page_state to)
{
	pid_t child = fork();
	int status;

	if (child == 0) {
		struct pages t;

		if (pages_init(&t, &mm_host_linux, CHUNK_PAGES))
			_exit(1);
		t.page[3].state = from;
		freopen("/dev/null", "w", stderr); /* a panic each */
		page_set(&t, 3, to, 0);
		_exit(0);
	}
	cr_assert_eq(waitpid(child, &status, 0), child);
	return WIFSIGNALED(status) ? WTERMSIG(status) : -WEXITSTATUS(status);
}

Test(model, transition_not_in_the_table_is_death)
{
	for (int from = 0; from < STATES; from++)
		for (int to = 0; to < STATES; to++)
			cr_assert_eq(death_of(from, to), page_may(from, to) ? 0 : SIGABRT,
				     "%d to %d", from, to);
}
