/*
 * mm/swap/delta.c, base.c: random operations against a reference, and many threads: rows,
 * orphans and counts add up (base.c I1, I2; delta.c I1).
 *
 * Seeds are printed; BRIM_SEED=N repeats a run, BRIM_SWAP_OPS and
 * BRIM_SWAP_SECONDS make the random and the concurrent test longer.
 */
#include "tests/unit/deltabox.h"

/* ---- random operations against a reference -------------------------------------------------- */

static void random_op(uint64_t *random)
{
	unsigned owner = (unsigned)(mix(random) % PAGES);
	uint64_t what = mix(random) % 100;

	if (what == 0) {
		sh->refuse_one_in = mix(random) % 2 ? 0 : 7;
		sh->refuse_then_drop = mix(random) % 2;
		(void)swap_clean(sh->s, (unsigned)(mix(random) % 40), mix(random) % (4 * MiB));
	} else {
		visit(owner, what < 60, any_page, mix(random));
	}
}

Test(delta, delta_random_operations_match_reference)
{
	uint64_t random = seed_of_run(), ops = env_number("BRIM_SWAP_OPS", 60000);
	uint64_t orphans = counter_get(CTR_swap_orphans);

	begin(random % 2 ? SWAP_DELTA_FAST : SWAP_DELTA_SMALL);
	sh->random = random;
	for (uint64_t i = 0; i < ops; i++) {
		random_op(&random);
		if (i % 4096 == 0)
			check_all();
	}
	cr_assert_gt(stats().delta_pages, 100);
	cr_assert(sh->moves > 100 && counter_get(CTR_swap_orphans) > orphans + 100);
	check_all();
	drop_all();
	check_empty();
	end();
}

/* ---- many threads ---------------------------------------------------------------------------- */

#define OWNERS 4096u
static void crowd_reclaim(struct crowd *w, uint64_t until_ns)
{
	uint64_t random = seed_of_run();

	crowd_put_all(w, &random);
	while (now_ns() < until_ns || !w->moved) { /* a busy machine takes longer */
		crowd_put_some(w, &random);
		if (mix(&random) % 2 == 0)
			swap_clean(w->s, mix(&random) % 10, mix(&random) % MiB);
	}
}

Test(delta, delta_many_threads_content_and_books_right)
{
	uint64_t orphans = counter_get(CTR_swap_orphans), deltas = counter_get(CTR_swap_delta_puts);
	struct crowd w = { .owners = OWNERS, .readers = 3, .make = any_page, .drop_one_in = 3 };
	struct swap_config cfg = { .max_pages = OWNERS, .cap_bytes = CAP, .move = crowd_moved,
				   .move_ctx = &w, .delta = SWAP_DELTA_FAST };
	struct swap_stats st;

	crowd_gather(&w);
	cr_assert_eq(swap_create(&w.s, &cfg, NULL), 0);
	crowd_run(&w, crowd_reclaim);
	orphans = counter_get(CTR_swap_orphans) - orphans;
	deltas = counter_get(CTR_swap_delta_puts) - deltas;
	fprintf(stderr, "%" PRIu64 " deltas, %" PRIu64 " orphans\n", deltas, orphans);
	cr_assert(w.gets > 100 && w.moved > 0 && deltas > 100 && orphans > 10);
	while (swap_clean(w.s, 0, UINT64_MAX) > 0)
		;
	swap_stats(w.s, &st);
	cr_assert_eq(st.held_bytes, st.table_bytes);
	cr_assert_eq(st.orphan_bytes + st.delta_pages + st.delta_saved_bytes, 0);
	swap_destroy(&w.s);
	free(w.cells);
}

/* One base that the cleaner moves to and fro, under readers of its deltas. */
struct chase {
	struct shadow *w;
	_Atomic bool stop;
	_Atomic uint64_t wrong, gets;
};

static void *chase_reader(void *arg)
{
	struct chase *c = arg;
	struct packed k;
	struct page got;

	while (!c->stop)
		for (unsigned i = 1; i < 8; i++) {
			/* the deltas stay where they are: only their base moves */
			if (pool_find(&c->w->s->pool, c->w->ref[i], &k) ||
			    delta_get(c->w->s->delta, &k, &got) || !same(&got, &c->w->page[i]))
				c->wrong++;
			c->gets++;
		}
	return NULL;
}

/* Moves what is at page 0 as the cleaner does. */
static void move_base(void)
{
	struct delta *d = sh->s->delta;
	struct packed k;
	swap_ref_t from = sh->ref[0], to;
	uint32_t row;

	cr_assert_eq(pool_find(&sh->s->pool, from, &k), 0);
	cr_assert(delta_move_begin(d, &k, &row));
	cr_assert_eq(pool_append(&sh->s->pool, &k, POOL_HOT, &to), 0);
	sh->ref[0] = to;
	delta_move_end(d, &k, row, to);
	pool_retire(&sh->s->pool, from);
}

Test(delta, delta_base_moved_under_readers_always_found)
{
	uint64_t until = now_ns() + env_number("BRIM_SWAP_SECONDS", 2) * 1000000000u, moves = 0;
	struct chase c = { 0 };
	pthread_t t[2];

	begin(SWAP_DELTA_FAST);
	for (unsigned i = 0; i < 8; i++)
		put_member(i, 1, i + 1);
	cr_assert_eq(stats().delta_pages, 7);
	c.w = sh;
	for (unsigned i = 0; i < ARRAY_LEN(t); i++)
		cr_assert_eq(pthread_create(&t[i], NULL, chase_reader, &c), 0);
	for (; now_ns() < until; moves++)
		move_base();
	c.stop = true;
	for (unsigned i = 0; i < ARRAY_LEN(t); i++)
		pthread_join(t[i], NULL);
	fprintf(stderr, "test_delta: %" PRIu64 " gets under %" PRIu64 " moves\n", c.gets, moves);
	cr_assert_eq(c.wrong, 0);
	cr_assert(c.gets > 1000 && moves > 1000);
	check_all();
	drop_all();
	check_empty();
	end();
}

/* Two threads do one thing each, at once, round after round. */
struct duel {
	void (*other)(void);
	_Atomic uint64_t begun, done;
	_Atomic bool stop;
};

static void linger(uint64_t turns)
{
	for (volatile uint64_t left = turns; left > 0; left--)
		;
}

static void *duel_other(void *arg)
{
	struct duel *d = arg;
	uint64_t random = 5;

	for (uint64_t round = 1;; round++) {
		while (d->begun < round)
			if (d->stop)
				return NULL;
		linger(mix(&random) % 2000);
		d->other();
		d->done = round;
	}
}

static void duel(void (*before)(void), void (*ours)(void), void (*other)(void),
		 void (*after)(void))
{
	uint64_t until = now_ns() + env_number("BRIM_SWAP_SECONDS", 2) * 1000000000u, rounds = 0;
	struct duel d = { .other = other };
	pthread_t t;

	begin(SWAP_DELTA_FAST);
	cr_assert_eq(pthread_create(&t, NULL, duel_other, &d), 0);
	while (now_ns() < until) {
		before();
		d.begun = ++rounds;
		linger(mix(&sh->random) % 500);
		ours();
		while (d.done < rounds)
			;
		after();
		check_empty();
	}
	d.stop = true;
	pthread_join(t, NULL);
	fprintf(stderr, "test_delta: %" PRIu64 " rounds\n", rounds);
	end();
}

static void put_base(void)
{
	put_member(0, 1, 1);
	member_of(&sh->page[1], 1, 2);
}

static void put_delta(void)
{
	cr_assert_eq(put(1), 0);
}

static void drop_base(void)
{
	drop(0);
}

static void drop_delta(void)
{
	drop(1);
}

static void check_and_drop_delta(void)
{
	check(1);
	drop(1);
}

Test(delta, delta_base_dropped_while_becoming_one_books_right)
{
	duel(put_base, put_delta, drop_base, check_and_drop_delta);
}

static void put_orphan(void)
{
	put_base();
	put_delta();
	drop(0);
	cr_assert_gt(stats().orphan_bytes, 0);
}

/* As the cleaner does. */
static void move_orphan(void)
{
	struct delta *d = sh->s->delta;
	swap_ref_t from = { atomic_load(&d->rows[0].ref) }, to;
	struct packed k;
	uint32_t row;

	if (pool_find(&sh->s->pool, from, &k) || !delta_move_begin(d, &k, &row))
		return;
	cr_assert_eq(k.state, OBJECT_ORPHAN);
	cr_assert_eq(pool_append(&sh->s->pool, &k, POOL_HOT, &to), 0);
	delta_move_end(d, &k, row, to);
	pool_retire(&sh->s->pool, from);
}

static void nothing(void)
{
}

Test(delta, delta_last_delta_dropped_while_orphan_moves_books_right)
{
	duel(put_orphan, move_orphan, drop_delta, nothing);
}
