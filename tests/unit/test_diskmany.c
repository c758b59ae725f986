/*
 * mm/swap/ with a swap file: random operations against a shadow, and many threads.
 *
 * Seeds are printed; BRIM_SEED=N repeats a run, BRIM_DISK_OPS and BRIM_DISK_SECONDS make
 * the random and the concurrent test longer.
 */
#include <pthread.h>

#include "tests/unit/diskbox.h"

/* ---- at random ------------------------------------------------------------------------- */

static size_t any_noise(void)
{
	uint64_t what = mix(&sh->random) % 20;

	return what == 0 ? 0 : what == 1 ? RAW_NOISE : 8 + mix(&sh->random) % 2800;
}

static void random_put(unsigned owner)
{
	int rc;

	for (unsigned i = 0; i < 20; i++) {
		if (sh->ref[(owner + i) % PAGES].v)
			continue;
		rc = put((owner + i) % PAGES, mix(&sh->random), any_noise());
		cr_assert(rc == 0 || rc == -E2BIG || rc == -ENOSPC);
	}
}

static void random_drop(unsigned owner, unsigned n)
{
	for (; n > 0; n--, owner = (owner + 1) % PAGES)
		if (sh->ref[owner].v)
			drop(owner);
}

static void random_step(void)
{
	unsigned owner = (unsigned)(mix(&sh->random) % PAGES), what = mix(&sh->random) % 1000;

	if (what < 450)
		random_put(owner);
	else if (what < 900)
		random_drop(owner, sh->random / 7 % 2 ? 12 : 25);
	else if (what < 960 && sh->ref[owner].v)
		check_page(owner);
	else if (what < 970)
		swap_spill(sh->s, mix(&sh->random) % (3 * MiB));
	else if (what < 980)
		cr_assert_leq(swap_room(sh->s, mix(&sh->random) % 500), 500);
	else if (what < 985)
		swap_clean(sh->s, mix(&sh->random) % 60, mix(&sh->random) % (2 * MiB));
	else if (what < 990) {
		random_drop(owner, 500); /* refining wants room, */
		(void)swap_room(sh->s, 100);
		pool_close_all(&sh->s->pool); /* and segments that are closed */
		(void)swap_refine(sh->s, mix(&sh->random) % (4 * MiB));
	} else {
		if (what == 999)
			sh->s->spill.pressed_ns = 0; /* or nothing would be lifted here */
		swap_tidy(sh->s);
	}
}

static void random_run(enum secrecy how)
{
	uint64_t ops = env_number("BRIM_DISK_OPS", 15000);

	begin(how);
	sh->random = seed_of_run();
	sh->refuse_one_in = 50;
	write_fails_one_in = 200;
	for (uint64_t i = 0; i < ops; i++) {
		random_step();
		check_cap();
		if (i % 3000 == 0)
			check_all();
	}
	check_all();
	cr_assert_gt(sh->moves, ops / 10);
	fprintf(stderr, "test_disk: %u moves, %u asked, %" PRIu64 " cleaned, %" PRIu64 " lifted, %"
		PRIu64 " failed writes\n", sh->moves, sh->asked, counter_get(CTR_swap_disk_cleaned),
		counter_get(CTR_swap_disk_lifted), counter_get(CTR_swap_disk_write_errors));
	end();
}

Test(disk, disk_random_operations_equal_to_shadow)
{
	random_run(PLAIN);
}

Test(disk, disk_random_operations_encrypted_equal_to_shadow)
{
	random_run(ENCRYPTED);
}

static void tell_of_deltas(void)
{
	fprintf(stderr, "test_disk: %" PRIu64 " deltas, %" PRIu64 " undone, %" PRIu64 " orphans, %"
		PRIu64 " refined\n", counter_get(CTR_swap_delta_puts),
		counter_get(CTR_swap_delta_undone), counter_get(CTR_swap_orphans),
		counter_get(CTR_swap_refined));
}

static void random_run_alike(enum secrecy how, unsigned n)
{
	uint64_t undone = counter_get(CTR_swap_delta_undone);
	uint64_t refined = counter_get(CTR_swap_refined);

	families = n;
	lettered = true;
	random_run(how);
	cr_assert_gt(counter_get(CTR_swap_delta_undone), undone + 1000);
	cr_assert_gt(counter_get(CTR_swap_refined), refined + 1000);
	tell_of_deltas();
}

Test(disk, disk_random_operations_with_deltas_equal_to_shadow)
{
	random_run_alike(PLAIN, 400);
}

Test(disk, disk_random_operations_with_deltas_encrypted_equal_to_shadow)
{
	random_run_alike(ENCRYPTED, 40);
}

/* ---- many threads ------------------------------------------------------------------------- */

#define OWNERS 6000u
#define READERS 3

struct cell {
	pthread_mutex_t lock;
	swap_ref_t ref;
	uint64_t seed;
	uint16_t noise;
	bool reading;
};

struct crowd {
	struct swap *s;
	struct cell cells[OWNERS];
	_Atomic bool stop;
	_Atomic uint64_t wrong, from_memory, from_disk, drops, gone;
	uint64_t moved, refused;
};

/* As engine_moved(). */
static bool crowd_moved(void *ctx, uint64_t owner, swap_ref_t from, swap_ref_t to)
{
	struct crowd *w = ctx;
	struct cell *c = &w->cells[owner];
	bool ours;

	pthread_mutex_lock(&c->lock);
	ours = c->ref.v == from.v && !c->reading;
	if (ours)
		c->ref = to;
	pthread_mutex_unlock(&c->lock);
	w->moved += ours;
	w->refused += !ours;
	return ours;
}

/* As a fault thread: the lock is not held while the disk is read, and the page may be
 * dropped meanwhile. */
static void crowd_read_disk(struct crowd *w, struct cell *c, unsigned owner)
{
	_Alignas(PAGE_BYTES) uint8_t raw[3 * PAGE_BYTES];
	const struct mm_tier *t = &swap_tier_disk;
	struct mm_read r = { .raw = raw };
	swap_ref_t ref = c->ref;
	struct page want, got;
	int rc;

	make_page(&want, c->seed, c->noise);
	c->reading = true;
	t->pin(w->s, ref.v, &r.of);
	pthread_mutex_unlock(&c->lock);
	rc = pread(r.of.fd, raw, r.of.bytes, (off_t)r.of.offset) == (ssize_t)r.of.bytes ? 0 : -EIO;
	if (!rc)
		rc = t->arrived(w->s, &r.of, raw);
	pthread_mutex_lock(&c->lock);
	if (!rc)
		rc = t->unpack(w->s, ref.v, owner, &r, &got);
	if (rc || !same(&want, &got))
		w->wrong++;
	if (c->ref.v != ref.v)
		w->gone++;
	else
		c->reading = false;
	t->unpin(w->s, ref.v);
	w->from_disk++;
}

static void crowd_read(struct crowd *w, struct cell *c, unsigned owner)
{
	struct page want, got;

	make_page(&want, c->seed, c->noise);
	if (swap_get(w->s, c->ref, owner, &got) || !same(&want, &got))
		w->wrong++;
	w->from_memory++;
}

static void crowd_visit(struct crowd *w, unsigned owner, bool drops)
{
	struct cell *c = &w->cells[owner];

	pthread_mutex_lock(&c->lock);
	if (c->ref.v && !c->reading && ref_is_disk(c->ref))
		crowd_read_disk(w, c, owner);
	else if (c->ref.v && !ref_is_disk(c->ref))
		crowd_read(w, c, owner);
	if (c->ref.v && drops) {
		swap_drop(w->s, c->ref);
		c->ref.v = 0;
		c->reading = false;
		w->drops++;
	}
	pthread_mutex_unlock(&c->lock);
}

static void *crowd_reader(void *arg)
{
	struct crowd *w = arg;
	uint64_t random = (uintptr_t)&random;

	while (!w->stop) {
		unsigned first = (unsigned)(mix(&random) % OWNERS);
		bool drops = mix(&random) % 12 == 0;

		for (unsigned i = 0; i < 100; i++)
			crowd_visit(w, (first + i) % OWNERS, drops);
	}
	return NULL;
}

static void crowd_put(struct crowd *w, unsigned owner, uint64_t *random)
{
	struct cell *c = &w->cells[owner];
	struct page page;

	pthread_mutex_lock(&c->lock);
	if (!c->ref.v && !c->reading) {
		c->seed = mix(random);
		c->noise = mix(random) % 10 ? (uint16_t)(mix(random) % 2900) : (uint16_t)PAGE_BYTES;
		make_page(&page, c->seed, c->noise);
		if (swap_put(w->s, owner, &page, &c->ref))
			c->ref.v = 0;
	}
	pthread_mutex_unlock(&c->lock);
}

static void crowd_reclaim(struct crowd *w, uint64_t until_ns)
{
	uint64_t random = seed_of_run();
	struct swap_stats st;

	while (now_ns() < until_ns) {
		unsigned first = (unsigned)(mix(&random) % OWNERS);

		swap_room(w->s, 200);
		for (unsigned i = 0; i < 200; i++)
			crowd_put(w, (first + i) % OWNERS, &random);
		if (mix(&random) % 4 == 0)
			swap_clean(w->s, mix(&random) % 30, mix(&random) % MiB);
		if (mix(&random) % 4 == 0)
			(void)swap_refine(w->s, mix(&random) % (512 * KiB));
		if (mix(&random) % 8 == 0)
			swap_spill(w->s, mix(&random) % (4 * MiB));
		if (mix(&random) % 8 == 0)
			w->s->spill.pressed_ns = 0; /* or nothing would be lifted here */
		swap_tidy(w->s);
		swap_stats(w->s, &st);
		cr_assert_leq(st.held_bytes, CAP);
	}
}

static void crowd_run(void)
{
	uint64_t seconds = env_number("BRIM_DISK_SECONDS", 4);
	struct crowd *w = calloc(1, sizeof(*w));
	struct swap_config cfg = { .max_pages = OWNERS, .cap_bytes = CAP, .move = crowd_moved,
				   .move_ctx = w, .disk = &disk };
	pthread_t readers[READERS];

	choose_path();
	disk.size_bytes = 8 * MiB;
	disk.encrypt = true;
	cr_assert_eq(swap_create(&w->s, &cfg, NULL), 0);
	for (unsigned i = 0; i < OWNERS; i++)
		pthread_mutex_init(&w->cells[i].lock, NULL);
	for (unsigned i = 0; i < READERS; i++)
		cr_assert_eq(pthread_create(&readers[i], NULL, crowd_reader, w), 0);
	crowd_reclaim(w, now_ns() + seconds * 1000000000u);
	w->stop = true;
	for (unsigned i = 0; i < READERS; i++)
		pthread_join(readers[i], NULL);
	fprintf(stderr, "test_disk: %" PRIu64 " read from memory, %" PRIu64 " from disk, %" PRIu64
		" drops (%" PRIu64 " while reading), %" PRIu64 " moves, %" PRIu64 " refused, %"
		PRIu64 " cleaned, %" PRIu64 " lifted\n", w->from_memory, w->from_disk, w->drops,
		w->gone, w->moved, w->refused, counter_get(CTR_swap_disk_cleaned),
		counter_get(CTR_swap_disk_lifted));
	swap_verify(w->s);
	for (unsigned i = 0; i < OWNERS; i++)
		crowd_visit(w, i, true);
	cr_assert_eq(w->wrong, 0);
	cr_assert(w->from_memory > 100 && w->from_disk > 100 && w->drops > 100 && w->moved > 100);
	swap_spill(w->s, 0);
	swap_verify(w->s);
	swap_destroy(&w->s);
	free(w);
	forget_path();
}

Test(disk, disk_many_threads_content_and_books_right)
{
	crowd_run();
}

Test(disk, disk_many_threads_with_deltas_content_and_books_right)
{
	families = 300;
	lettered = true;
	crowd_run();
	cr_assert_gt(counter_get(CTR_swap_delta_undone), 100);
	cr_assert_gt(counter_get(CTR_swap_orphans), 100);
	cr_assert_gt(counter_get(CTR_swap_refined), 100);
	tell_of_deltas();
}
