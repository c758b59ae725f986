/*
 * Pages on disk: reads on their way.
 *
 *   fault on a DISK page, its chunk's lock held
 *     ─► read_plan(): the page and, for a sequential reader, those behind it whose
 *        blocks join on; each pinned in the tier and marked `reading`
 *     ─► behind a steady one's, two more reads, ahead of it: it finds their pages home, or
 *        joins
 *     ─► lock dropped, read_start(): the reads, into the ring
 *     ─► the fault thread serves other faults; one on a page marked `reading` joins: it
 *        only sleeps on
 *     ─► the disk thread: decrypted and unpacked without locks, then under the chunk's
 *        lock each page that still is what it was goes home, which wakes all sleepers
 *
 * Where the ring takes nothing (no memory, say), or a read fails, the page that faulted
 * is read alone by a plain read: an error is believed when that fails too.
 *
 * Threads: fault threads plan and start; the disk thread ends what the ring has done.
 *
 * Invariants:
 *  I1  A page is marked `reading` by at most one read at a time, and meanwhile the
 *      tier does not move it (engine_moved).  A discard clears the mark; what then
 *      arrives finds another state or another ref, and is thrown away.
 *  I2  A ref is not used again while it is pinned: the same ref is the same bytes.
 *  I3  Whoever sleeps on a page of the read is woken by its end, if only to fault
 *      again.
 */
#include "mm/internal.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "mm/aio.h"

#define READS_MAX 32u /* the next fault on disk waits for one to end */
#define READ_TRIES 3u
#define AHEAD_SPARE (READS_MAX / 2) /* places that reads ahead leave to faults */

struct page_read {
	struct aio_op op;
	struct mm_read from;
	uint64_t index; /* of the page that faulted: the first */
	uint64_t n;
	bool is_narrow; /* only the first page's blocks were read */
	bool is_ahead;  /* nobody had touched the first page when it was planned */
	struct fault_wait wait; /* since_ns 0: nobody's fault waits */
	uint64_t ref[AROUND_MAX];
	struct page_read *next; /* in the list of idle ones */
};

struct reader {
	/* fixed at create */
	struct engine *e;
	struct aio *aio; /* NULL: there is none, read at once */
	uint8_t *raw;    /* READS_MAX * MM_EXTENT_MAX */
	uint8_t *buf;    /* the disk thread's: AROUND_MAX pages, unpacked */
	pthread_t thread;
	bool has_thread;
	_Atomic bool stopping;

	pthread_mutex_t lock; /* innermost */
	pthread_cond_t has_idle;
	/* under lock */
	struct page_read *idle;
	unsigned idle_count;
	struct page_read all[READS_MAX];
};

static void *disk_main(void *arg);

static int reader_buffers(struct reader *r)
{
	if (posix_memalign((void **)&r->raw, MM_BLOCK_BYTES, READS_MAX * (size_t)MM_EXTENT_MAX))
		return -ENOMEM;
	if (posix_memalign((void **)&r->buf, PAGE_BYTES, AROUND_MAX * PAGE_BYTES))
		return -ENOMEM;
	for (unsigned i = 0; i < READS_MAX; i++) {
		r->all[i].from.raw = r->raw + (size_t)i * MM_EXTENT_MAX;
		r->all[i].next = r->idle;
		r->idle = &r->all[i];
		r->idle_count++;
	}
	return 0;
}

int reader_create(struct reader **out, struct engine *e)
{
	struct reader *r = calloc(1, sizeof(*r));
	int rc;

	if (!r)
		return -ENOMEM;
	r->e = e;
	pthread_mutex_init(&r->lock, NULL);
	pthread_cond_init(&r->has_idle, NULL);
	rc = reader_buffers(r);
	if (!rc && (aio_create(&r->aio, e->host, READS_MAX) || aio_arm(r->aio))) {
		log_guest("memory: no io_uring: pages on disk are read one at a time");
		aio_destroy(&r->aio);
	}
	if (!rc && r->aio) {
		rc = -pthread_create(&r->thread, NULL, disk_main, r);
		r->has_thread = rc == 0;
	}
	if (rc)
		reader_destroy(&r);
	else
		*out = r;
	return rc;
}

/* ---- planning: under the lock of the chunk ------------------------------------- */

/* Takes page `index` along if its blocks are these or the next. */
static bool join_extent(struct reader *r, struct page_read *rd, uint64_t index)
{
	struct mm_extent *all = &rd->from.of, x;
	struct page *p = &r->e->pages.page[index];
	uint64_t end;

	if (p->state != PAGE_DISK || p->reading)
		return false;
	r->e->tier->pin(r->e->tier_ctx, p->payload, &x);
	VERIFY(x.bytes > 0 && x.bytes <= MM_EXTENT_MAX);
	if (rd->n == 0)
		*all = x;
	end = x.offset + x.bytes;
	if (end < all->offset + all->bytes)
		end = all->offset + all->bytes;
	if (x.fd != all->fd || x.offset < all->offset || x.offset > all->offset + all->bytes ||
	    end - all->offset > MM_EXTENT_MAX) {
		r->e->tier->unpin(r->e->tier_ctx, p->payload);
		return false;
	}
	all->bytes = (uint32_t)(end - all->offset);
	rd->ref[rd->n++] = p->payload;
	p->reading = 1;
	return true;
}

/* NULL: no more than `spare` are left. */
static struct page_read *take_idle(struct reader *r, unsigned spare)
{
	struct page_read *rd = NULL;

	pthread_mutex_lock(&r->lock);
	if (r->idle_count > spare) {
		rd = r->idle;
		r->idle = rd->next;
		r->idle_count--;
	}
	pthread_mutex_unlock(&r->lock);
	return rd;
}

void reader_wait(struct reader *r)
{
	pthread_mutex_lock(&r->lock);
	while (!r->idle)
		pthread_cond_wait(&r->has_idle, &r->lock);
	pthread_mutex_unlock(&r->lock);
}

static void plan(struct reader *r, struct page_read *rd, uint64_t index, uint64_t want)
{
	uint64_t end = (index / CHUNK_PAGES + 1) * CHUNK_PAGES;

	VERIFY(want >= 1 && want <= AROUND_MAX);
	rd->index = index;
	rd->n = 0;
	rd->is_narrow = rd->is_ahead = false;
	rd->wait = (struct fault_wait){ 0 };
	while (rd->n < want && index + rd->n < end && join_extent(r, rd, index + rd->n))
		;
	VERIFY(rd->n > 0);
}

struct page_read *read_plan(struct reader *r, uint64_t index, uint64_t want)
{
	struct page_read *rd = take_idle(r, 0);

	if (rd)
		plan(r, rd, index, want);
	return rd;
}

struct page_read *read_plan_ahead(struct reader *r, uint64_t index, uint64_t want)
{
	struct page_read *rd = r->aio ? take_idle(r, AHEAD_SPARE) : NULL;

	if (rd) {
		plan(r, rd, index, want);
		rd->is_ahead = true;
		counter_inc(CTR_engine_disk_ahead);
	}
	return rd;
}

void read_waits(struct page_read *rd, const struct fault_wait *w)
{
	rd->wait = *w;
}

uint64_t read_end(const struct page_read *rd)
{
	return rd->index + rd->n;
}

/* ---- the end of a read ------------------------------------------------------------ */

static bool is_ours(struct reader *r, const struct page_read *rd, uint64_t i)
{
	const struct page *p = &r->e->pages.page[rd->index + i];

	return p->state == PAGE_DISK && p->reading && p->payload == rd->ref[i];
}

/* The pages from the first on that could be unpacked to buf; *rc is why not more. */
static uint64_t unpack_all(struct reader *r, struct page_read *rd, uint8_t *buf, int *rc)
{
	const struct mm_tier *t = r->e->tier;
	uint64_t n = 0;

	*rc = rd->op.result;
	if (!*rc && t->arrived)
		*rc = t->arrived(r->e->tier_ctx, &rd->from.of, rd->from.raw);
	while (!*rc && n < (rd->is_narrow ? 1 : rd->n)) {
		*rc = t->unpack(r->e->tier_ctx, rd->ref[n], rd->index + n, &rd->from,
				buf + (n << PAGE_SHIFT));
		n += *rc == 0;
	}
	return n;
}

/* Pages from i on, n of them unpacked at `from`: those still ours go home. How many. */
static uint64_t home_run(struct reader *r, struct page_read *rd, uint64_t i, const uint8_t *from,
			 uint64_t most)
{
	uint64_t n = 0;
	int64_t done;

	while (n < most && is_ours(r, rd, i + n))
		n++;
	if (n == 0)
		return 0;
	done = fault_copy_in(r->e, rd->index + i, from, n);
	if (done < 0) {
		if (i == 0 && !rd->is_ahead)
			engine_dead(r->e, rd->index, "no memory to bring it back", (int)done);
		return 0;
	}
	fault_home(r->e, rd->index + i, (uint64_t)done);
	counter_add(CTR_engine_pages_disk, (uint64_t)done);
	/* the page that faulted was counted then */
	atomic_fetch_add(&r->e->arrived_pages, (uint64_t)done - (i == 0 && !rd->is_ahead));
	return (uint64_t)done;
}

/* Takes home what can be; returns how many pages did. */
static uint64_t all_home(struct reader *r, struct page_read *rd, const uint8_t *buf,
			 uint64_t unpacked)
{
	uint64_t i = 0, home = 0;

	while (i < unpacked) {
		uint64_t n = home_run(r, rd, i, buf + (i << PAGE_SHIFT), unpacked - i);

		home += n;
		i += n ? n : 1;
	}
	return home;
}

/* Pages that did not come, from `from` on: whoever sleeps on one faults again (I3), and
 * it is then the first of its own read. */
static void let_go(struct reader *r, struct page_read *rd, uint64_t from)
{
	for (uint64_t i = 0; i < rd->n; i++)
		if (is_ours(r, rd, i))
			r->e->pages.page[rd->index + i].reading = 0;
	if (from < rd->n)
		fault_wake(r->e, rd->index + from, rd->n - from);
}

static void lost(struct reader *r, struct page_read *rd, int rc)
{
	char where[256] = "its tier", what[320];

	if (r->e->tier->describe)
		r->e->tier->describe(r->e->tier_ctx, rd->ref[0], where, sizeof(where));
	snprintf(what, sizeof(what), "its copy in %s %s", where,
		 rd->op.result ? "cannot be read" : "is damaged");
	engine_dead(r->e, rd->index, what, rc);
}

static void retire(struct reader *r, struct page_read *rd)
{
	for (uint64_t i = 0; i < rd->n; i++)
		r->e->tier->unpin(r->e->tier_ctx, rd->ref[i]);
	pthread_mutex_lock(&r->lock);
	rd->next = r->idle;
	r->idle = rd;
	r->idle_count++;
	pthread_cond_signal(&r->has_idle);
	pthread_mutex_unlock(&r->lock);
}

/* Those who joined are taken to have waited for this read, which is so unless two of the
 * chunk's are on their way: then some go on waiting uncounted.  Lock held. */
static void end_waits(struct chunk *c, const struct page_read *rd)
{
	uint64_t now = rd->wait.since_ns || c->joined ? now_ns() : 0;

	if (rd->wait.since_ns)
		fault_waited(&rd->wait, now);
	for (uint64_t n = c->joined; n; n--)
		fault_waited(&(struct fault_wait){ c->joined_ns / c->joined, true }, now);
	c->joined = 0;
	c->joined_ns = 0;
}

static void finish(struct reader *r, struct page_read *rd, uint8_t *buf)
{
	struct chunk *c = chunk_of(&r->e->pages, rd->index);
	uint64_t unpacked;
	int rc;

	unpacked = unpack_all(r, rd, buf, &rc);
	pthread_mutex_lock(&c->lock);
	/* One ahead is not believed: who waits for its first page reads that by itself. */
	if (unpacked == 0 && is_ours(r, rd, 0) && !rd->is_ahead) {
		lost(r, rd, rc);
		let_go(r, rd, 1); /* but its toucher is not to be woken */
	} else if (all_home(r, rd, buf, unpacked) < rd->n) {
		let_go(r, rd, 0);
	}
	end_waits(c, rd);
	pthread_mutex_unlock(&c->lock);
	retire(r, rd);
}

/* ---- starting and reaping ---------------------------------------------------------- */

/* By hand, whole. 0 or -errno. */
static int read_now(struct engine *e, const struct mm_read *from)
{
	uint32_t done = 0;
	unsigned tries = 0;

	while (done < from->of.bytes) {
		int64_t n = e->host->pread(from->of.fd, from->raw + done, from->of.bytes - done,
					   (int64_t)(from->of.offset + done));

		if (n < 0 && ++tries == READ_TRIES)
			return -errno;
		if (n == 0)
			return -EIO; /* the file ends here */
		if (n > 0)
			done += (uint32_t)n;
	}
	return 0;
}

void read_by_hand(struct reader *r, struct page_read *rd, uint8_t *buf)
{
	counter_inc(CTR_engine_disk_by_hand);
	/* In the blocks of a neighbour there may be what made the read fail. */
	r->e->tier->pin(r->e->tier_ctx, rd->ref[0], &rd->from.of);
	r->e->tier->unpin(r->e->tier_ctx, rd->ref[0]);
	rd->op.result = read_now(r->e, &rd->from);
	rd->is_narrow = true;
	if (rd->op.result)
		counter_inc(CTR_engine_disk_errors);
	finish(r, rd, buf);
}

bool read_start(struct reader *r, struct page_read *rd)
{
	rd->op = (struct aio_op){ .fd = rd->from.of.fd, .buf = rd->from.raw,
				  .bytes = rd->from.of.bytes, .offset = rd->from.of.offset,
				  .user = rd };
	counter_inc(CTR_engine_disk_reads);
	return r->aio && aio_start(r->aio, &rd->op) == 0;
}

static void end(struct reader *r, struct page_read *rd)
{
	if (rd->op.result && !rd->is_ahead)
		read_by_hand(r, rd, r->buf);
	else
		finish(r, rd, r->buf);
}

void read_cancel(struct reader *r, struct page_read *rd)
{
	rd->op.result = -ECANCELED;
	finish(r, rd, NULL);
}

static void *disk_main(void *arg)
{
	struct reader *r = arg;

	role_set(ROLE_FAULT);
	pthread_setname_np(pthread_self(), "disk");
	while (!r->stopping || aio_on_way(r->aio)) {
		struct aio_op *op = aio_reap(r->aio, AIO_WAIT_WAKE);

		if (op)
			end(r, op->user);
	}
	return NULL;
}

static void stop_thread(struct reader *r)
{
	r->stopping = true;
	aio_wake(r->aio);
	pthread_join(r->thread, NULL);
}

void reader_destroy(struct reader **rp)
{
	struct reader *r = *rp;

	*rp = NULL;
	if (!r)
		return;
	if (r->has_thread)
		stop_thread(r);
	aio_destroy(&r->aio);
	pthread_cond_destroy(&r->has_idle);
	pthread_mutex_destroy(&r->lock);
	free(r->buf);
	free(r->raw);
	free(r);
}
