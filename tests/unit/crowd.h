/* crowd: many threads over one pool.  Some read and drop, as fault threads and the balloon do,
 * and one puts and cleans, as the reclaimer does. */
#ifndef BRIM_TESTS_CROWD_H
#define BRIM_TESTS_CROWD_H

#include <pthread.h>

#include "tests/unit/swapbox.h"

struct cell {
	pthread_mutex_t lock;
	swap_ref_t ref;
	uint64_t seed;
};

struct crowd {
	/* fixed */
	struct swap *s;
	unsigned owners, readers;
	void (*make)(struct page *, uint64_t seed);
	unsigned drop_one_in; /* visits, in runs of 64 */

	struct cell *cells; /* [owners] */
	_Atomic bool stop;
	_Atomic uint64_t wrong, gets, drops; /* Criterion's checks are for one thread */
	_Atomic uint64_t moved, refused;
};

static inline void crowd_gather(struct crowd *w)
{
	w->cells = calloc(w->owners, sizeof(*w->cells));
	cr_assert_not_null(w->cells);
	for (unsigned i = 0; i < w->owners; i++)
		pthread_mutex_init(&w->cells[i].lock, NULL);
}

/* The swap_config's `move`. */
static inline bool crowd_moved(void *ctx, uint64_t owner, swap_ref_t from, swap_ref_t to)
{
	struct crowd *w = ctx;
	struct cell *c = &w->cells[owner];
	bool ours;

	pthread_mutex_lock(&c->lock);
	ours = c->ref.v == from.v;
	if (ours)
		c->ref = to;
	pthread_mutex_unlock(&c->lock);
	w->moved += ours;
	w->refused += !ours;
	return ours;
}

static inline void crowd_visit(struct crowd *w, unsigned owner, bool drops)
{
	struct cell *c = &w->cells[owner];
	struct page want, got;

	pthread_mutex_lock(&c->lock);
	if (c->ref.v) {
		w->make(&want, c->seed);
		if (swap_get(w->s, c->ref, owner, &got) || !same(&want, &got))
			w->wrong++;
		w->gets++;
	}
	if (c->ref.v && drops) {
		swap_drop(w->s, c->ref);
		c->ref.v = 0;
		w->drops++;
	}
	pthread_mutex_unlock(&c->lock);
}

static inline void *crowd_reader(void *arg)
{
	struct crowd *w = arg;
	uint64_t random = (uintptr_t)&random;

	while (!w->stop) {
		unsigned first = (unsigned)(mix(&random) % w->owners);
		bool drops = mix(&random) % w->drop_one_in == 0;

		/* in runs, so that whole segments empty too */
		for (unsigned i = 0; i < 64; i++)
			crowd_visit(w, (first + i) % w->owners, drops);
	}
	return NULL;
}

/* The one who puts, as the reclaimer is. */
static inline void crowd_put(struct crowd *w, unsigned owner, uint64_t seed)
{
	struct cell *c = &w->cells[owner];
	struct page page;
	swap_ref_t ref;
	bool taken;
	int rc;

	pthread_mutex_lock(&c->lock);
	taken = c->ref.v != 0;
	pthread_mutex_unlock(&c->lock);
	if (taken)
		return;
	w->make(&page, seed);
	rc = swap_put(w->s, owner, &page, &ref);
	cr_assert(rc == 0 || rc == -E2BIG || rc == -ENOSPC);
	if (rc)
		return;
	pthread_mutex_lock(&c->lock);
	c->seed = seed;
	c->ref = ref;
	pthread_mutex_unlock(&c->lock);
}

static inline void crowd_put_all(struct crowd *w, uint64_t *random)
{
	for (unsigned i = 0; i < w->owners; i++)
		crowd_put(w, i, mix(random));
}

/* Some that are next to one another. */
static inline void crowd_put_some(struct crowd *w, uint64_t *random)
{
	unsigned first = (unsigned)(mix(random) % w->owners);

	for (unsigned i = 0; i < 64; i++)
		crowd_put(w, (first + i) % w->owners, mix(random));
}

#define CROWD_READERS_MAX 8

/* Readers visit while `put` runs in this thread; then all is dropped. */
static inline void crowd_run(struct crowd *w, void (*put)(struct crowd *, uint64_t until_ns))
{
	uint64_t seconds = env_number("BRIM_SWAP_SECONDS", 3);
	pthread_t readers[CROWD_READERS_MAX];

	cr_assert(w->readers && w->readers <= ARRAY_LEN(readers));
	for (unsigned i = 0; i < w->readers; i++)
		cr_assert_eq(pthread_create(&readers[i], NULL, crowd_reader, w), 0);
	put(w, now_ns() + seconds * 1000000000u);
	w->stop = true;
	for (unsigned i = 0; i < w->readers; i++)
		pthread_join(readers[i], NULL);
	fprintf(stderr, "%" PRIu64 " gets, %" PRIu64 " drops, %" PRIu64 " moves, %" PRIu64
		" refused\n", w->gets, w->drops, w->moved, w->refused);
	swap_verify(w->s);
	for (unsigned i = 0; i < w->owners; i++)
		crowd_visit(w, i, true);
	cr_assert_eq(w->wrong, 0);
	swap_verify(w->s);
}

#endif
