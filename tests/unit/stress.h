/* stress: threads that read, write and discard a box's pages, as vCPUs and the balloon do,
 * and what each page must have meanwhile.  Who includes it says by word_of() what pages have. */
#ifndef BRIM_TESTS_STRESS_H
#define BRIM_TESTS_STRESS_H

#include <pthread.h>
#include <unistd.h>

#include "tests/unit/membox.h"

#define STRESS_WORKERS_MAX 8
#define STARVED_NS 60000000000u

/* Word w of a version of a page; of version 0 all are zero. */
static uint64_t word_of(uint64_t index, uint64_t version, uint64_t w);

struct stress;

struct worker {
	struct stress *s;
	uint64_t random;
	pthread_t thread;
};

struct stress {
	/* fixed */
	struct box *b;
	uint64_t pages;                 /* the first so many of the box */
	uint64_t (*pick)(uint64_t r);   /* the page that is accessed next */
	unsigned write_one_in;          /* accesses; at most 16 */
	unsigned discard_rest_us;
	bool discarded_are_read;        /* some, at once */

	pthread_mutex_t lock[BOX_PAGES]; /* one writer or reader of a page's version at a time */
	uint64_t version[BOX_PAGES];     /* 0: reads zero */
	_Atomic bool stop, no_discards;
	_Atomic uint64_t accesses;
	struct worker worker[STRESS_WORKERS_MAX];
	unsigned workers;
};

static inline void stress_words(struct stress *s, uint64_t i, uint64_t *to)
{
	for (uint64_t w = 0; w < PAGE_BYTES / sizeof(*to); w++)
		to[w] = word_of(i, s->version[i], w);
}

static inline void stress_write(struct stress *s, uint64_t i)
{
	stress_words(s, i, (uint64_t *)box_at(s->b, i));
}

static inline bool is_version(struct stress *s, uint64_t i)
{
	const uint64_t *p = (const uint64_t *)box_at(s->b, i);
	uint64_t w = 0;

	while (w < PAGE_BYTES / sizeof(*p) && p[w] == word_of(i, s->version[i], w))
		w++;
	return w == PAGE_BYTES / sizeof(*p);
}

/* What is there instead: words of which version, and what the engine says. */
static inline void tell_wrong(struct stress *s, uint64_t i)
{
	const uint64_t *p = (const uint64_t *)box_at(s->b, i);
	uint64_t wrong = 0, zero = 0, older = 0, first = UINT64_MAX;
	struct page e = box_entry(s->b, i);

	for (uint64_t w = 0; w < PAGE_BYTES / sizeof(*p); w++) {
		if (p[w] == word_of(i, s->version[i], w))
			continue;
		first = first == UINT64_MAX ? w : first;
		wrong++;
		zero += p[w] == 0;
		for (uint64_t v = 1; v < s->version[i]; v++)
			if (p[w] == word_of(i, v, w)) {
				older++;
				break;
			}
	}
	cr_assert_fail("page %lu is not version %lu: %lu words from %lu on are wrong, %lu of them zero, "
		       "%lu of an older version, the first is %lx; state %u hard %u",
		       (unsigned long)i, (unsigned long)s->version[i], (unsigned long)wrong,
		       (unsigned long)first, (unsigned long)zero, (unsigned long)older,
		       (unsigned long)(first == UINT64_MAX ? 0 : p[first]), (unsigned)e.state,
		       (unsigned)e.hard);
}

/* The page's lock is held, or nobody is at work. */
static inline void stress_check(struct stress *s, uint64_t i)
{
	if (!is_version(s, i))
		tell_wrong(s, i);
}

static inline void *stress_access(void *arg)
{
	struct worker *w = arg;
	struct stress *s = w->s;

	while (!s->stop) {
		uint64_t r = next_random(&w->random), i = s->pick(r);

		pthread_mutex_lock(&s->lock[i]);
		stress_check(s, i);
		if ((r >> 60) % s->write_one_in == 0) {
			s->version[i]++;
			stress_write(s, i);
		}
		pthread_mutex_unlock(&s->lock[i]);
		s->accesses++;
	}
	return NULL;
}

/* The balloon's place: runs of pages go, and read zero from then on. */
static inline void *stress_discard(void *arg)
{
	struct worker *w = arg;
	struct stress *s = w->s;

	while (!s->stop) {
		uint64_t i = next_random(&w->random) % (s->pages - 16), n = 1 + w->random % 16;
		struct ram_range r = { gpa(i << PAGE_SHIFT), n << PAGE_SHIFT };

		usleep(s->discard_rest_us);
		if (s->no_discards)
			continue;
		for (uint64_t k = i; k < i + n; k++)
			pthread_mutex_lock(&s->lock[k]);
		cr_assert_eq(ram_discard_many(s->b->ram, &r, 1), 1);
		for (uint64_t k = i; k < i + n; k++) {
			s->version[k] = 0;
			if (s->discarded_are_read && w->random % 8 == 0)
				stress_check(s, k);
			pthread_mutex_unlock(&s->lock[k]);
		}
	}
	return NULL;
}

/* A thread for each of `mains`, which get a struct worker; the box is open. */
static inline void stress_begin(struct stress *s, void *(*const mains[])(void *), unsigned n)
{
	uint64_t random = seed_of_run();

	cr_assert(n <= STRESS_WORKERS_MAX && s->pages <= BOX_PAGES);
	for (uint64_t i = 0; i < s->pages; i++)
		pthread_mutex_init(&s->lock[i], NULL);
	for (unsigned i = 0; i < n; i++) {
		struct worker *w = &s->worker[i];

		w->s = s;
		w->random = random + i * 7919 + 1;
		cr_assert_eq(pthread_create(&w->thread, NULL, mains[i], w), 0);
	}
	s->workers = n;
}

/* For as long as it is asked to take, and on a machine that is busy with other things,
 * or under a sanitizer, until there has been enough of what it is about. */
static inline void stress_press(struct stress *s, void (*turn)(struct engine *e), bool (*enough)(void))
{
	uint64_t end = now_ns() + env_number("BRIM_STRESS_S", 3) * 1000000000u;

	while (now_ns() < end || (!enough() && now_ns() < end + STARVED_NS))
		turn(s->b->e);
}

static inline void stress_end(struct stress *s)
{
	s->stop = true;
	for (unsigned i = 0; i < s->workers; i++)
		pthread_join(s->worker[i].thread, NULL);
}

static inline void stress_check_all(struct stress *s)
{
	for (uint64_t i = 0; i < s->pages; i++)
		stress_check(s, i);
}

#endif
