/*
 * See content.h.
 *
 * A file gives at most FILE_PAGES_MAX pages, else two copies of one large library
 * would be a fifth of it.  A file's last page is filled up with zeroes, as in the
 * page cache.
 */
#include "bench/content.h"

#include <errno.h>
#include <fcntl.h>
#include <glob.h>
#include <inttypes.h>
#include <lz4.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "bench/zram.h"
#include "mm/swap/internal.h"

#define SIDES_PAGES (256 * MiB >> PAGE_SHIFT)
#define SIDES_PAGES_QUICK (64 * MiB >> PAGE_SHIFT)

#define SEED 0x9e3779b97f4a7c15u
#define RUN_PAGES_MAX 32u
#define FILE_PAGES_MAX (16 * MiB >> PAGE_SHIFT)

uint64_t content_random(uint64_t *s)
{
	*s ^= *s << 13;
	*s ^= *s >> 7;
	*s ^= *s << 17;
	return *s >> 8;
}

/* ---- files ----------------------------------------------------------------------- */

struct run {
	uint32_t file, first, pages;
};

struct runs {
	struct run *run;
	size_t n, room;
	uint64_t seed;
};

static void add_run(struct runs *r, struct run run)
{
	if (r->n == r->room) {
		r->room = r->room ? 2 * r->room : 1024;
		r->run = realloc(r->run, r->room * sizeof(*r->run));
		VERIFY(r->run);
	}
	r->run[r->n++] = run;
}

static void cut_file(struct runs *r, const char *path, uint32_t file)
{
	struct stat st;
	uint64_t pages;

	if (lstat(path, &st) < 0 || !S_ISREG(st.st_mode) || st.st_size < (off_t)PAGE_BYTES)
		return;
	pages = ((uint64_t)st.st_size + PAGE_BYTES - 1) >> PAGE_SHIFT;
	if (pages > FILE_PAGES_MAX)
		pages = FILE_PAGES_MAX;
	for (uint64_t at = 0; at < pages;) {
		uint64_t n = 1 + content_random(&r->seed) % RUN_PAGES_MAX;

		if (n > pages - at)
			n = pages - at;
		add_run(r, (struct run){ file, (uint32_t)at, (uint32_t)n });
		at += n;
	}
}

static void shuffle(struct runs *r)
{
	for (size_t i = r->n; i > 1; i--) {
		size_t j = content_random(&r->seed) % i;
		struct run t = r->run[i - 1];

		r->run[i - 1] = r->run[j];
		r->run[j] = t;
	}
}

/* Pages read; a file that cannot be read gives none. */
static uint64_t read_run(const char *path, const struct run *r, uint8_t *to, uint64_t max)
{
	uint64_t n = r->pages < max ? r->pages : max, got = 0;
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t rc = 0;

	if (fd < 0)
		return 0;
	while (got < n << PAGE_SHIFT) {
		rc = pread(fd, to + got, (n << PAGE_SHIFT) - got,
			   (off_t)(((uint64_t)r->first << PAGE_SHIFT) + got));
		if (rc <= 0)
			break;
		got += (uint64_t)rc;
	}
	close(fd);
	return (got + PAGE_BYTES - 1) >> PAGE_SHIFT;
}

static void read_files(const struct bench *b, struct content *c)
{
	struct runs r = { .seed = SEED };
	glob_t g = { 0 };
	uint64_t at = 0, before;

	(void)glob("/usr/lib/x86_64-linux-gnu/*.so*", 0, NULL, &g); /* sorted */
	(void)glob("/usr/bin/*", GLOB_APPEND, NULL, &g);
	for (size_t i = 0; i < g.gl_pathc; i++)
		cut_file(&r, g.gl_pathv[i], (uint32_t)i);
	shuffle(&r);
	do { /* where the machine has too little, again from the start */
		before = at;
		for (size_t i = 0; i < r.n && at < c->pages; i++)
			at += read_run(g.gl_pathv[r.run[i].file], &r.run[i],
				       c->page + (at << PAGE_SHIFT), c->pages - at);
		if (at == before)
			bench_die(b, "nothing to read in /usr/lib/x86_64-linux-gnu and /usr/bin");
	} while (at < c->pages);
	globfree(&g);
	free(r.run);
}

/* ---- a guest's memory -------------------------------------------------------------- */

static const char *pages_file(void)
{
	return getenv("BRIM_BENCH_PAGES");
}

uint64_t content_pages(const struct bench *b, uint64_t usual)
{
	uint64_t pages;
	struct stat st;

	if (!pages_file())
		return usual;
	if (stat(pages_file(), &st) < 0)
		bench_die(b, "%s: %s", pages_file(), strerror(errno));
	pages = (uint64_t)st.st_size / HUGE_BYTES * CHUNK_PAGES;
	if (pages << PAGE_SHIFT < RAM_MIN_BYTES)
		bench_die(b, "%s: has less than %" PRIu64 " MiB", pages_file(),
			  (uint64_t)(RAM_MIN_BYTES / MiB));
	return pages;
}

static void read_pages(const struct bench *b, struct content *c)
{
	const struct run all = { .pages = (uint32_t)c->pages };

	if (read_run(pages_file(), &all, c->page, c->pages) != c->pages)
		bench_die(b, "%s: cannot be read", pages_file());
}

/* ---- content ---------------------------------------------------------------------- */

static enum content_kind kind_of(const uint8_t *page)
{
	char out[SWAP_PACKED_MAX];

	if (memcmp(page, page + sizeof(uint64_t), PAGE_BYTES - sizeof(uint64_t)) == 0)
		return CONTENT_FILLED;
	return LZ4_compress_default((const char *)page, out, (int)PAGE_BYTES, sizeof(out)) > 0 ?
		       CONTENT_PLAIN : CONTENT_HARD;
}

void content_open(const struct bench *b, struct content *c, uint64_t pages)
{
	void *p = mmap(NULL, pages * PAGE_BYTES, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	*c = (struct content){ .page = p, .kind = calloc(pages, 1), .pages = pages };
	VERIFY(p != MAP_FAILED && c->kind);
	if (pages_file())
		read_pages(b, c);
	else
		read_files(b, c);
	VERIFY(mlock(p, pages * PAGE_BYTES) == 0 || geteuid() != 0); /* it must not be paged out */
	for (uint64_t i = 0; i < pages; i++) {
		c->kind[i] = (uint8_t)kind_of(c->page + (i << PAGE_SHIFT));
		c->of_kind[c->kind[i]]++;
	}
	printf("content: %" PRIu64 " MiB of %s; %.1f%% of pages same-filled, %.1f%% incompressible\n",
	       pages * PAGE_BYTES / MiB,
	       pages_file() ? pages_file() : "this machine's programs and libraries",
	       100. * (double)c->of_kind[CONTENT_FILLED] / (double)pages,
	       100. * (double)c->of_kind[CONTENT_HARD] / (double)pages);
}

void content_only_packing(struct content *c)
{
	uint64_t from = 0;

	VERIFY(c->of_kind[CONTENT_HARD] < c->pages);
	for (uint64_t i = 0; i < c->pages; i++) {
		if (c->kind[i] != CONTENT_HARD)
			continue;
		while (c->kind[from] == CONTENT_HARD)
			from = (from + 1) % c->pages;
		memcpy(c->page + (i << PAGE_SHIFT), c->page + (from << PAGE_SHIFT), PAGE_BYTES);
		c->kind[i] = c->kind[from];
		c->of_kind[c->kind[i]]++;
		c->of_kind[CONTENT_HARD]--;
		from = (from + 1) % c->pages;
	}
}

void content_only_filled(struct content *c)
{
	for (uint64_t i = 0; i < c->pages; i++) {
		uint64_t *w = (uint64_t *)(void *)(c->page + (i << PAGE_SHIFT));

		for (unsigned k = 0; k < PAGE_BYTES / sizeof(*w); k++)
			w[k] = i % 2 ? i % 200 : 0;
		c->kind[i] = CONTENT_FILLED;
	}
	memset(c->of_kind, 0, sizeof(c->of_kind));
	c->of_kind[CONTENT_FILLED] = c->pages;
}

void content_close(struct content *c)
{
	munmap(c->page, c->pages * PAGE_BYTES);
	free(c->kind);
	*c = (struct content){ 0 };
}

bool content_same(const struct content *c, uint64_t i, const void *at)
{
	return memcmp(c->page + (i << PAGE_SHIFT), at, PAGE_BYTES) == 0;
}

/* ---- brim's side ------------------------------------------------------------------- */

void guest_close(struct guest *g)
{
	engine_destroy(&g->engine);
	swap_destroy(&g->swap);
	ram_destroy(&g->ram);
}

/* As a VM tells where its vCPUs run: the toucher is the thread that opened the guest. */
static int cpu_of_toucher(void *ctx, uint32_t tid)
{
	const struct guest *g = ctx;

	return tid == g->toucher ? thread_cpu_read(g->toucher_cpu) : -1;
}

static int hold_toucher(void *ctx, uint32_t tid, int cpu)
{
	struct guest *g = ctx;

	if (tid != g->toucher)
		return -ESRCH;
	if (cpu >= 0)
		return thread_hold(&g->hold, (pid_t)tid, cpu);
	thread_release(&g->hold, (pid_t)tid);
	return 0;
}

static int64_t toucher_waited_ns(void *ctx, uint32_t tid)
{
	(void)ctx;
	return thread_waited_ns((pid_t)tid);
}

int guest_open(struct guest *g, uint64_t bytes, struct err *e)
{
	char path[64];
	struct swap_disk_config disk = { .path = path, .force = true };
	struct engine_config cfg = { .tier = g->on_disk ? &swap_tier_disk : &swap_tier,
				     .manual = true };
	int rc = ram_create(&g->ram, &(struct ram_config){ .size_bytes = bytes,
							   .huge = RAM_HUGE_NEVER }, e);

	snprintf(path, sizeof(path), "/var/tmp/brim-bench-%d.swap", getpid());
	if (!rc)
		rc = swap_create(&g->swap, &(struct swap_config){
			.max_pages = bytes >> PAGE_SHIFT, .delta = g->delta,
			.cap_bytes = g->cap_bytes,
			.disk = g->on_disk ? &disk : NULL }, e);
	if (g->on_disk)
		(void)unlink(path); /* it is open */
	g->toucher = (uint32_t)gettid();
	g->toucher_cpu = thread_cpu_word();
	cfg.ram = g->ram;
	cfg.touchers = (struct mm_touchers){ .ctx = g, .cpu_of = cpu_of_toucher,
					     .hold = hold_toucher,
					     .waited_ns = toucher_waited_ns };
	cfg.tier_ctx = g->swap;
	if (!rc)
		rc = engine_create(&g->engine, &cfg, e);
	if (!rc)
		swap_attach(g->swap, g->engine);
	return rc;
}

int guest_hold(struct guest *g, const struct content *c, struct err *e)
{
	int rc;

	guest_close(g);
	rc = guest_open(g, c->pages * PAGE_BYTES, e);
	if (rc) {
		guest_close(g);
		return rc;
	}
	VERIFY(ram_slot_count(g->ram) == 1);
	g->content = c;
	g->mem = ram_at(g->ram, gpa(0), c->pages * PAGE_BYTES);
	VERIFY(g->mem);
	memcpy(g->mem, c->page, c->pages * PAGE_BYTES);
	return 0;
}

void guest_evict(struct guest *g)
{
	engine_reclaim(g->engine, g->content->pages * PAGE_BYTES);
	while (engine_tick(g->engine))
		;
	if (g->refined)
		pool_close_all(&g->swap->pool);
	while (g->refined && swap_refine(g->swap, MiB))
		;
	if (g->on_disk && !g->cap_bytes)
		swap_spill(g->swap, g->content->pages * PAGE_BYTES);
	atomic_store(&g->engine->wanted_bytes, 0); /* what did not pack is not waited for */
}

uint64_t guest_away_pages(const struct guest *g)
{
	struct engine_stats s;

	engine_stats(g->engine, &s);
	VERIFY(s.staged_pages == 0);
	return s.filled_pages + s.packed_pages + s.disk_pages;
}

enum page_state guest_state(struct guest *g, uint64_t i)
{
	struct chunk *c = chunk_of(&g->engine->pages, i);
	enum page_state s;

	pthread_mutex_lock(&c->lock);
	s = (enum page_state)g->engine->pages.page[i].state;
	pthread_mutex_unlock(&c->lock);
	return s;
}

/* False: it is not packed. */
static bool object_of(struct guest *g, uint64_t i, struct packed *k)
{
	struct chunk *c = chunk_of(&g->engine->pages, i);
	const struct page *p = &g->engine->pages.page[i];
	bool is_there;

	pthread_mutex_lock(&c->lock);
	is_there = p->state == PAGE_PACKED &&
		   !pool_find(&g->swap->pool, (swap_ref_t){ p->payload }, k);
	pthread_mutex_unlock(&c->lock);
	return is_there;
}

bool guest_has_delta(struct guest *g, uint64_t i)
{
	struct packed k;

	return object_of(g, i, &k) && k.is_delta;
}

bool guest_has_refined(struct guest *g, uint64_t i)
{
	struct packed k;

	return object_of(g, i, &k) && k.is_refined && !k.is_delta;
}

bool guest_is_possible(const struct bench *b)
{
	struct guest g = { 0 };
	struct err e;
	int rc = guest_open(&g, RAM_MIN_BYTES, &e);

	guest_close(&g);
	if (rc == -EPERM || rc == -ENOSYS)
		printf("%s: skipped: %s\n", b->name, e.msg);
	else if (rc)
		bench_die(b, "%s", e.msg);
	return rc == 0;
}

/* ---- runs that give several figures -------------------------------------------------- */

#define RUNS_MAX (BENCH_PAIRS_MAX + 1) /* with the unmeasured one */

/* The runs are made for the first figure; the others are read off the record. */
struct record {
	const struct takes *takes;
	unsigned figure, played[2]; /* of the figure being compared */
	unsigned taken[2];
	double value[2][RUNS_MAX][TAKE_FIGURES];
};

static double play(struct record *r, int side)
{
	unsigned run = r->played[side]++;

	VERIFY(run < RUNS_MAX);
	if (run == r->taken[side]) {
		(side ? r->takes->peer : r->takes->brim)(r->takes->arg, r->value[side][run]);
		r->taken[side]++;
	}
	return r->value[side][run][r->figure];
}

static double play_brim(void *arg)
{
	return play(arg, 0);
}

static double play_peer(void *arg)
{
	return play(arg, 1);
}

void takes_compare(struct bench *b, const struct takes *t)
{
	struct record r = { .takes = t };
	const struct bench_pair pair = { .brim = play_brim, .peer = t->peer ? play_peer : NULL,
					 .peer_name = t->peer_name, .arg = &r };

	for (; r.figure < TAKE_FIGURES && t->figures[r.figure].name; r.figure++) {
		r.played[0] = r.played[1] = 0;
		bench_compare(b, t->figures[r.figure].name, t->figures[r.figure].unit, &pair);
	}
}

/* ---- brim and zram over the same pages --------------------------------------------- */

void sides_open(struct bench *b, struct sides *s)
{
	uint64_t pages = content_pages(b, b->quick ? SIDES_PAGES_QUICK : SIDES_PAGES);

	s->bench = b;
	s->zram = zram_peer(b, pages);
	content_open(b, &s->content, pages);
}

void sides_close(struct sides *s)
{
	content_close(&s->content);
	zram_close(&s->zram);
}

struct takes sides_takes(const struct sides *s, void (*brim)(void *, double *),
			 void (*zram)(void *, double *), void *arg)
{
	return (struct takes){ .brim = brim, .peer = s->zram ? zram : NULL, .arg = arg,
			       .peer_name = s->zram ? zram_name(s->zram) : NULL };
}
