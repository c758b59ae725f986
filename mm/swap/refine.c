/*
 * Packing anew what stayed: objects that have been in the pool for a while are cold
 * indeed, and worth ten times the CPU that a page may cost on its way out.
 *
 *   swap_put()            LZ4, maybe against a base: what a guest waits for
 *   AGE_NS later          swap_refine_some(), when the reclaimer has nothing to take:
 *                         the coldest segment, object by object, with zstd; a delta
 *                         with its base as prefix
 *   touched               the page is the guest's again; its next way out is LZ4
 *
 * zstd codes entropy, which LZ4 does not: that is what makes the difference on 4 KiB.
 *
 * A segment is gone through as the cleaner does, and emptied: each object is appended
 * to a segment of what was refined, its owner takes the new ref under its own lock or
 * says no, and only then the old object is dropped (log.c).  What zstd does not make a
 * GAIN_SHARE smaller is moved as it is, since its fault would be dearer for little.
 * Bases that deltas need go along as they are: a delta's sum binds its base's bytes.
 *
 * Nothing is given up before it is known to be good: the old object is unpacked with its
 * checksum, the new one is unpacked and compared with that before anybody is told of it.
 *
 * Room.  Puts leave one segment more than the cleaner's reserve, and refining takes that,
 * never the cleaner's: a pool that is full to its cap can be refined, which makes room.
 * What is refined is never larger, so a segment's objects fit in that one.
 *
 * What there was to choose from, bytes kept of each byte (without holes and tables; a page
 * over SWAP_PACKED_MAX counts whole) and us a page, on programs and libraries and on the
 * memory of some processes with files of all kinds:
 *
 *                              programs   processes   pack      unpack
 *   LZ4                          0.601      0.487      5 - 7      1.8
 *   zstd, level -1               0.531      0.383      9 - 14     3.5
 *   level 1 (LEVEL)              0.463      0.336     14 - 16     6
 *   level 3                      0.451      0.332     21 - 24     7
 *   level 6                      0.440      0.324     46 - 50     6.5
 *   level 1, a similar page,
 *     where there is one, before it  0.435  0.316     14 - 17     6
 *   level 1, dictionary of 64 KiB    0.465  0.350     16          6
 *
 * So a dictionary made of a VM's own pages is worth nothing, and levels above 1 cost more
 * than they save.  A similar page for what LZ4 packed alone would save 6 % more; it has to
 * stay, though, and be LZ4's or be unpacked twice as slowly: left for now.
 *
 * A decoder of zstd needs 95 KiB to work in, so there are a few of them, made before
 * anything is refined: a fault must not fail for want of memory.  A thread waits for one
 * no longer than another takes to unpack a page.
 *
 * Threads: refine_unpack() from any; the rest from the put thread.
 *
 * Invariants:
 *  I1  What is given back is what was put, or an error.
 *  I2  Refining that fails, or is refused, changes nothing.
 */
#include "mm/swap/internal.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <zstd.h>

#define LEVEL 1                /* see above */
#define GAIN_SHARE 8u          /* an object gets smaller by an eighth, or stays */
#define DECODERS 4u
#define AGE_NS 10000000000u    /* packed for so long at least, and a third of it at most */
#define MARKS 4u
#define SHARE_PCT 10u          /* of one CPU's time */
#define BURST_NS 20000000      /* that much at a time: a limit does not wait for longer */
#define STEP_BYTES (32 * KiB)  /* between looks at the clock: some 20 pages */

struct decoder {
	pthread_mutex_t lock;
	ZSTD_DCtx *zstd;
};

struct refine {
	/* fixed at create */
	uint64_t table_bytes, age_ns;
	unsigned decoders_made;
	struct decoder decoders[DECODERS];

	/* owned by the put thread */
	ZSTD_CCtx *zstd;
	uint32_t mark[MARKS]; /* the pool's stamp when each of these was made */
	unsigned newest;
	uint64_t marked_ns, topped_up_ns;
	int64_t allowance_ns; /* below 0: the last step took more than there was */
	uint8_t page[PAGE_BYTES], base[PAGE_BYTES], again[PAGE_BYTES], out[SWAP_PACKED_MAX];
};

/* ---- create and destroy ------------------------------------------------------- */

bool refine_is_wanted(const struct swap_config *cfg)
{
	return cfg->refine != SWAP_REFINE_OFF &&
	       (!cfg->cap_bytes || cfg->cap_bytes >= SWAP_REFINE_CAP_MIN_BYTES);
}

uint64_t refine_table_bytes(const struct refine *r)
{
	return r ? r->table_bytes : 0;
}

/* The frame's bytes, or 0: does not fit in `room`. */
static uint32_t encode(struct refine *r, const uint8_t *base, uint8_t *to, size_t room)
{
	size_t n = base ? ZSTD_CCtx_refPrefix(r->zstd, base, PAGE_BYTES) : 0;

	if (!ZSTD_isError(n))
		n = ZSTD_compress2(r->zstd, to, room, r->page, PAGE_BYTES);
	if (!ZSTD_isError(n))
		return (uint32_t)n;
	/* also forgets the prefix */
	(void)ZSTD_CCtx_reset(r->zstd, ZSTD_reset_session_only);
	return 0;
}

/* It takes memory when it first works, the most of it for a page with a prefix: that is
 * to be counted now. */
static int make_encoder(struct refine *r)
{
	r->zstd = ZSTD_createCCtx();
	if (!r->zstd ||
	    ZSTD_isError(ZSTD_CCtx_setParameter(r->zstd, ZSTD_c_compressionLevel, LEVEL)) ||
	    !encode(r, NULL, r->out, sizeof(r->out)) ||
	    !encode(r, r->base, r->out, sizeof(r->out)))
		return -ENOMEM;
	r->table_bytes = sizeof(*r) + ZSTD_sizeof_CCtx(r->zstd);
	return 0;
}

static int make_decoders(struct refine *r)
{
	for (; r->decoders_made < DECODERS; r->decoders_made++) {
		struct decoder *d = &r->decoders[r->decoders_made];

		d->zstd = ZSTD_createDCtx();
		if (!d->zstd)
			return -ENOMEM;
		r->table_bytes += ZSTD_sizeof_DCtx(d->zstd);
		pthread_mutex_init(&d->lock, NULL);
	}
	return 0;
}

int refine_create(struct refine **out, const struct swap_config *cfg, struct err *e)
{
	struct refine *r;
	int rc;

	if (!refine_is_wanted(cfg))
		return 0;
	r = calloc(1, sizeof(*r));
	rc = r ? make_encoder(r) : -ENOMEM;
	if (!rc)
		rc = make_decoders(r);
	*out = r;
	if (rc)
		return err_sys(e, rc, "swap: no memory for refining");
	r->age_ns = cfg->refine_age_ns ? cfg->refine_age_ns : AGE_NS;
	return 0;
}

void refine_destroy(struct refine **r)
{
	struct refine *old = *r;

	*r = NULL;
	if (!old)
		return;
	for (unsigned i = 0; i < old->decoders_made; i++) {
		pthread_mutex_destroy(&old->decoders[i].lock);
		ZSTD_freeDCtx(old->decoders[i].zstd);
	}
	ZSTD_freeCCtx(old->zstd);
	free(old);
}

/* ---- unpacking ------------------------------------------------------------------ */

static struct decoder *take_decoder(struct refine *r)
{
	for (unsigned i = 0; i < DECODERS; i++)
		if (!pthread_mutex_trylock(&r->decoders[i].lock))
			return &r->decoders[i];
	pthread_mutex_lock(&r->decoders[0].lock);
	return &r->decoders[0];
}

int refine_unpack(struct refine *r, const struct refined *from, void *page)
{
	struct decoder *d;
	size_t n;

	if (!r)
		return -EIO;
	d = take_decoder(r);
	/* Not ZSTD_DCtx_refPrefix(), which takes memory.  This one takes a base that begins
	 * with zstd's number for a dictionary for one: then the page does not come back,
	 * and pack_again() has left it as it was. */
	n = ZSTD_decompress_usingDict(d->zstd, page, PAGE_BYTES, from->data, from->bytes,
				      from->base, from->base ? PAGE_BYTES : 0);
	pthread_mutex_unlock(&d->lock);
	return n == PAGE_BYTES ? 0 : -EIO;
}

/* ---- one object ------------------------------------------------------------------ */

/* The page, and its base's where it has one.  -EIO: damaged, for its owner to find. */
static int unpack_old(struct refine *r, const struct delta *d, const struct packed *k)
{
	if (k->is_delta)
		return d ? delta_open(d, k, r->page, r->base) : -EIO;
	return swap_open_alone(r, k, r->page);
}

/* For the frame, behind a head of so many bytes; 0: too little to try. */
static size_t room_for(const struct packed *k, size_t head)
{
	uint64_t was = pool_object_bytes(k->bytes), most = was - was / GAIN_SHARE;
	uint64_t other = sizeof(struct object) + head;

	most = most / UNIT_BYTES * UNIT_BYTES;
	if (most <= other)
		return 0;
	return most - other < sizeof(((struct refine *)0)->out) - head ?
		       most - other : sizeof(((struct refine *)0)->out) - head;
}

static bool comes_back(struct refine *r, const uint8_t *base, const uint8_t *frame, uint32_t n)
{
	return !refine_unpack(r, &(struct refined){ frame, n, base }, r->again) &&
	       memcmp(r->again, r->page, PAGE_BYTES) == 0;
}

/* The bytes in r->out, or 0. */
static uint32_t pack_again(struct refine *r, const struct packed *k)
{
	size_t head = k->is_delta ? sizeof(struct delta_head) : 0, room = room_for(k, head);
	const uint8_t *base = k->is_delta ? r->base : NULL;
	uint32_t n = room ? encode(r, base, r->out + head, room) : 0;

	if (!n || !comes_back(r, base, r->out + head, n))
		return 0;
	memcpy(r->out, k->data, head);
	return n + (uint32_t)head;
}

void refine_object(struct refine *r, const struct delta *d, struct packed *k)
{
	uint32_t n;

	if (k->state != OBJECT_LIVE || k->is_refined || unpack_old(r, d, k))
		return;
	n = pack_again(r, k);
	if (!n) {
		counter_inc(CTR_swap_refine_no_gain);
		return;
	}
	k->data = r->out;
	k->bytes = n;
	k->is_refined = true;
	k->sum = k->is_delta ? delta_sum_of(d, k) : swap_checksum(k);
}

/* ---- when, and how much ------------------------------------------------------------ */

/* 1: there may be more; 0: there is none; -ENOSPC. */
static int refine_until(struct swap *s, uint32_t max_stamp, uint64_t budget_bytes)
{
	const struct pool_cleaning c = { .move = s->cfg.move, .move_ctx = s->cfg.move_ctx,
					 .delta = s->delta, .refine = s->refine };
	uint64_t left_bytes = budget_bytes;
	int rc = 1;

	VERIFY(c.move);
	/* less is left than one object may need */
	while (rc == 1 && left_bytes >= 2 * PAGE_BYTES)
		rc = pool_refine(&s->pool, &c, max_stamp, &left_bytes);
	return rc;
}

bool swap_refine(struct swap *s, uint64_t budget_bytes)
{
	return s->refine && refine_until(s, UINT32_MAX, budget_bytes) == 1;
}

static uint64_t thread_cpu_ns(void)
{
	struct timespec t;

	VERIFY(clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t) == 0);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* The stamp of the youngest segment that was full AGE_NS ago. */
static uint32_t old_stamp(struct refine *r, uint32_t stamp_now, uint64_t now)
{
	if (now - r->marked_ns >= r->age_ns / (MARKS - 1)) {
		r->marked_ns = now;
		r->newest = (r->newest + 1) % MARKS;
		r->mark[r->newest] = stamp_now ? stamp_now - 1 : 0; /* that one is open */
	}
	return r->mark[(r->newest + 1) % MARKS];
}

static void top_up(struct refine *r, uint64_t now)
{
	r->allowance_ns += (int64_t)((now - r->topped_up_ns) / 100 * SHARE_PCT);
	if (r->allowance_ns > BURST_NS)
		r->allowance_ns = BURST_NS;
	r->topped_up_ns = now;
}

bool swap_refine_some(struct swap *s)
{
	struct refine *r = s->refine;
	uint64_t now = now_ns(), began, took;
	uint32_t stamp;
	int rc = 1;

	if (!r || !s->cfg.move)
		return false;
	stamp = old_stamp(r, s->pool.now, now);
	top_up(r, now);
	while (rc == 1 && r->allowance_ns > 0) {
		began = thread_cpu_ns();
		rc = refine_until(s, stamp, STEP_BYTES);
		took = thread_cpu_ns() - began;
		counter_add(CTR_swap_refine_cpu_ns, took);
		r->allowance_ns -= (int64_t)took;
	}
	return rc >= 0 && pool_is_refinable(&s->pool, UINT32_MAX);
}
