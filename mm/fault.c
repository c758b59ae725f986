/*
 * Faults on pages that are away: the threads that bring them back.
 *
 *   vCPU, event loop or kernel touches a missing page of a watched chunk
 *     ─► it sleeps in the kernel, a message arrives on the userfaultfd
 *     ─► a fault thread: chunk lock, then by state
 *          STAGED   UFFDIO_MOVE back from staging: no copy; a huge page whole, once
 *          PACKED   decompress into the thread's buffer, UFFDIO_COPY
 *          FILLED   the same, or the kernel's zero page
 *          STORED   copied from the store
 *          DISK     read.c: a read is started, and ends in a later turn
 *          SHARED,  mapped from the store, since the touch: only a wake-up
 *          BROKEN
 *          GUEST    never touched, or discarded, or brought back meanwhile:
 *                   a zero page, or only a wake-up
 *     ─► the kernel wakes whoever slept
 *
 * Fault-around: a fault just behind the last one's end in the same chunk, or a few pages
 * further, doubles the number of pages brought back (to AROUND_MAX), any other halves
 * it.  Pages that are home already are passed over.
 *
 * One fault thread at a time has the turn: it sleeps in the read, so that a fault wakes
 * one thread and not all (the kernel would), and it serves what comes without giving the
 * turn away.  Where two faults came at once, or it has to wait, the next thread listens.
 * It is bound to the CPU that faults keep coming from, and who faults is held there (place.c).
 *
 * Threads: fault threads only, which wait for nothing but messages, places for reads,
 * and chunk locks; a touch by them of guest RAM would wait for themselves.
 *
 * Invariants:
 *  I1  A page is only ever given the bytes it left with, or zeroes if it was
 *      discarded or never touched.  Where that cannot be, the VM ends by name.
 *  I2  The state changes after the page is back, under the same hold of the lock.
 */
#include "mm/internal.h"

#include <errno.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define AHEAD_READS 2u
#define AHEAD_PAGES ((1 + AHEAD_READS) * AROUND_MAX) /* behind the page that faulted */
#define AROUND_SLACK 8u /* pages at home that a sequential reader passes without a fault */
#define DENSE_PAGES 8u  /* written in a row, and the next are given memory before they are */
#define MESSAGES 2u /* read in one go: a second one means that another thread is wanted */
#define NO_CPU (-1)
#define FOLLOW_AFTER 1u /* faults in a row from one CPU */

struct fault_server {
	struct engine *e;
	uint8_t *buf;  /* AROUND_MAX pages */
	const uint8_t *zeroes; /* as many: the kernel's zero page, over and over */
	bool is_write; /* the fault being served is */
	bool in_order; /* and just behind the last that was served in its chunk */
	bool has_turn;
	struct fault_wait wait; /* since_ns 0: its end is counted elsewhere */
	int cpu;       /* the one it is bound to */
	int seen_cpu;  /* where the last fault came from, */
	unsigned seen; /* and how many before it in a row */
};

/* A host out of memory may have some in a moment; until then the guest waits. */
#define RETRY_MAX 5000u
#define RETRY_NS 1000000u

static void retry_pause(void)
{
	nanosleep(&(struct timespec){ .tv_nsec = RETRY_NS }, NULL);
}

/* True where the same call may succeed later. Waits as long as is sensible. */
static bool may_retry(int rc, unsigned *tries)
{
	if (rc != -EAGAIN && rc != -ENOMEM)
		return false;
	if (++*tries > RETRY_MAX)
		return false;
	counter_inc(CTR_engine_retries);
	retry_pause();
	return true;
}

int64_t fault_copy_in(struct engine *e, uint64_t index, const uint8_t *buf, uint64_t n)
{
	struct uffdio_copy c;
	unsigned tries = 0;
	int rc;

	do {
		c = (struct uffdio_copy){ .dst = (uint64_t)page_at(e, index),
					  .src = (uint64_t)buf, .len = n << PAGE_SHIFT };
		rc = e->host->ioctl(e->uffd, UFFDIO_COPY, &c) < 0 ? -errno : 0;
		if (!rc)
			return (int64_t)n;
		if (c.copy >= (int64_t)PAGE_BYTES)
			return c.copy >> PAGE_SHIFT;
		if (rc == -ENOENT && n > 1) /* more than one VMA, as map.c may leave them */
			return fault_copy_in(e, index, buf, 1);
	} while (may_retry(rc, &tries));
	return rc;
}

static int zero_in(struct engine *e, uint64_t index)
{
	struct uffdio_zeropage z;
	unsigned tries = 0;
	int rc;

	do {
		z = (struct uffdio_zeropage){ .range = { (uint64_t)page_at(e, index), PAGE_BYTES } };
		rc = e->host->ioctl(e->uffd, UFFDIO_ZEROPAGE, &z) < 0 ? -errno : 0;
	} while (rc && rc != -EEXIST && may_retry(rc, &tries));
	return rc;
}

void fault_wake(struct engine *e, uint64_t index, uint64_t n)
{
	struct uffdio_range r = { (uint64_t)page_at(e, index), n << PAGE_SHIFT };

	if (e->host->ioctl(e->uffd, UFFDIO_WAKE, &r) < 0)
		log_guest("memory: cannot wake a fault: %s", strerror(errno));
}

/* How many pages are to be brought back, the one that faulted included. */
static uint64_t plan_around(struct chunk *c, uint64_t index)
{
	uint64_t at = index % CHUNK_PAGES;
	bool is_next = at >= c->next && at - c->next <= AROUND_SLACK;

	if (is_next && c->around < AROUND_MAX)
		c->around = c->around ? (uint8_t)(c->around * 2) : 2;
	else if (!is_next)
		c->around /= 2;
	return c->around ? c->around : 1;
}

/* How many pages the next to be touched with this one may get with it: none of them has
 * memory, and there is room for all of them to have some. */
static uint64_t plan_untouched(struct engine *e, struct chunk *c, uint64_t index)
{
	uint64_t want = plan_around(c, index), n = 1;

	if (!throttle_has_room(e, want))
		return 1;
	while (n < want && (index + n) % CHUNK_PAGES && e->pages.page[index + n].state == PAGE_GUEST &&
	       !e->pages.page[index + n].present)
		n++;
	return n;
}

/* Zero pages for the first of n pages and those behind it, as far as none is there; returns
 * how many. */
static uint64_t zero_run(struct engine *e, uint64_t index, uint64_t n)
{
	struct uffdio_zeropage z = { .range = { (uint64_t)page_at(e, index), n << PAGE_SHIFT } };

	if (e->host->ioctl(e->uffd, UFFDIO_ZEROPAGE, &z) < 0 && z.zeropage < (int64_t)PAGE_BYTES)
		return 0;
	return (uint64_t)z.zeropage >> PAGE_SHIFT;
}

/* Were the pages just before this one all written?  Zero pages were put there, perhaps, and
 * whoever leaves some of those unwritten must not be given memory in their place. */
static bool is_written_before(const struct engine *e, uint64_t index)
{
	bool in_chunk = index % CHUNK_PAGES >= DENSE_PAGES; /* else there may be no such pages */
	struct page_region r;
	struct pm_scan_arg a = {
		.size = sizeof(a),
		.start = (uint64_t)page_at(e, in_chunk ? index - DENSE_PAGES : index),
		.end = (uint64_t)page_at(e, index),
		.vec = (uint64_t)&r, .vec_len = 1,
		.category_mask = PAGE_IS_PRESENT | PAGE_IS_PFNZERO,
		.category_inverted = PAGE_IS_PFNZERO,
		.return_mask = PAGE_IS_PRESENT,
	};

	return in_chunk && e->host->ioctl(e->pagemap, PAGEMAP_SCAN, &a) == 1 && r.start == a.start &&
	       r.end == a.end;
}

/* The written page gets memory at once: a write to a zero page would be another fault, and
 * longer than this one is made by the copy.  Those around it get it too where the writer
 * has left nothing out so far, else zero pages, which cost nothing if it does. */
static int64_t give_memory(struct fault_server *s, uint64_t index, uint64_t n)
{
	bool dense = n > 1 && s->in_order && is_written_before(s->e, index);
	int64_t done = fault_copy_in(s->e, index, s->zeroes, dense ? n : 1);

	counter_inc(CTR_engine_untouched_written);
	if (done == 1 && n > 1 && !dense)
		done += (int64_t)zero_run(s->e, index + 1, n - 1);
	return done;
}

/* Zeroes for the first of n pages, and for those behind it as far as none is there: how
 * many, or -errno.
 *
 *
 * EEXIST is also Linux's answer where no page is, but a note that it is armed: only a copy
 * goes over that, and to wake alone would be to wake it for ever. */
static int64_t give_zeroes(struct fault_server *s, uint64_t index, uint64_t n)
{
	uint64_t done;
	int rc;

	if (s->is_write)
		return give_memory(s, index, n);
	done = zero_run(s->e, index, n);
	if (done)
		return (int64_t)done;
	rc = zero_in(s->e, index);
	if (rc == -EEXIST)
		return fault_copy_in(s->e, index, s->zeroes, 1);
	return rc ? rc : 1;
}

/* ENOENT: not watched any more, so that its own touch gets the page. */
static void no_page_needed(struct engine *e, uint64_t index, int rc)
{
	if (rc == -EEXIST || rc == -ENOENT)
		fault_wake(e, index, 1);
	else
		engine_dead(e, index, "no memory for a page never touched", rc);
}

/* Nothing of this page is away: it needs a page, or has one already. */
static void serve_guest(struct fault_server *s, struct chunk *c, uint64_t index)
{
	struct engine *e = s->e;
	uint8_t was_around = c->around;
	int64_t n;

	s->in_order = index % CHUNK_PAGES == c->next;
	counter_inc(CTR_engine_faults_untouched);
	n = give_zeroes(s, index, plan_untouched(e, c, index));
	if (n < 0) {
		/* It was there: a fault of before it came home, which says nothing of where the
		 * reader is by now. */
		c->around = was_around;
		no_page_needed(e, index, (int)n);
		return;
	}
	counter_add(CTR_engine_untouched_around, (uint64_t)n - 1);
	atomic_fetch_add(&e->arrived_pages, (uint64_t)n - 1);
	c->next = (uint16_t)((index + (uint64_t)n) % CHUNK_PAGES);
}

int fault_unstage(struct engine *e, uint64_t index)
{
	uint64_t slot = e->pages.page[index].payload;
	unsigned tries = 0;
	int64_t rc;

	do
		rc = engine_move(e, page_at(e, index), slot_at(e, slot), 1);
	while (rc < 0 && may_retry((int)rc, &tries));
	/* Pinned, say: its bytes will do, and the slot is emptied later.  But a slot
	 * that has none (ENOENT) must not be taken for a page of zeroes. */
	if (rc < 0 && rc != -ENOENT && rc != -EIO)
		rc = fault_copy_in(e, index, slot_at(e, slot), 1);
	if (rc < 0)
		return (int)rc;
	page_set(&e->pages, index, PAGE_GUEST, 0);
	return 0;
}

/* Is all of the chunk in staging, one page after the other, as it was in guest RAM? */
static bool is_staged_whole(const struct engine *e, const struct chunk *c, uint64_t first)
{
	const struct page *p = &e->pages.page[first];
	uint64_t slot = p->payload;

	if (c->away != CHUNK_PAGES || slot % CHUNK_PAGES)
		return false;
	for (uint64_t i = 0; i < CHUNK_PAGES; i++)
		if (p[i].state != PAGE_STAGED || p[i].payload != slot + i)
			return false;
	return true;
}

/* A huge page that was taken whole comes home whole, in one move, and still is one.  But
 * only once: if it is found cold again, the part of it that is used comes home alone, or
 * one such page would keep 2 MiB in RAM for ever.  False: `index` is still to be served. */
static bool unstage_whole(struct engine *e, struct chunk *c, uint64_t index)
{
	uint64_t first = index / CHUNK_PAGES * CHUNK_PAGES;
	int64_t done;

	if (c->spared || !is_staged_whole(e, c, first))
		return false;
	c->spared = true;
	done = engine_move(e, page_at(e, first), slot_at(e, e->pages.page[first].payload),
			   CHUNK_PAGES);
	for (int64_t i = 0; i < done; i++)
		page_set(&e->pages, first + (uint64_t)i, PAGE_GUEST, 0);
	if (done > 0)
		atomic_fetch_add(&e->arrived_pages, (uint64_t)done - 1);
	counter_add(CTR_engine_huge_home, done == CHUNK_PAGES);
	return e->pages.page[index].state == PAGE_GUEST;
}

static void serve_staged(struct engine *e, struct chunk *c, uint64_t index)
{
	int rc = unstage_whole(e, c, index) ? 0 : fault_unstage(e, index);

	counter_inc(CTR_engine_faults_staged);
	if (rc)
		engine_dead(e, index, "staging", rc);
}

static bool in_tier(const struct engine *e, uint64_t index)
{
	enum page_state s = e->pages.page[index].state;

	return s == PAGE_PACKED || s == PAGE_FILLED || s == PAGE_STORED;
}

static int get(struct engine *e, uint64_t index, uint8_t *page)
{
	const struct page *p = &e->pages.page[index];

	if (p->state == PAGE_STORED)
		return share_get(e, p->payload, page);
	return e->tier->get(e->tier_ctx, p->payload, index, page);
}

static bool is_zero(const uint8_t *page)
{
	return page[0] == 0 && !memcmp(page, page + 1, PAGE_BYTES - 1);
}

void fault_home(struct engine *e, uint64_t index, uint64_t n)
{
	for (uint64_t i = index; i < index + n; i++) {
		struct page was = e->pages.page[i];

		page_set(&e->pages, i, PAGE_GUEST, 0);
		if (was.state == PAGE_STORED)
			share_drop(e, was.payload);
		else
			e->tier->drop(e->tier_ctx, was.payload);
	}
}

static void damaged(struct engine *e, uint64_t index, int rc)
{
	char where[256] = "its tier", what[320];

	if (e->pages.page[index].state == PAGE_STORED || e->pages.page[index].state == PAGE_SHARED)
		snprintf(where, sizeof(where), "the store of shared pages");
	else if (e->tier->describe)
		e->tier->describe(e->tier_ctx, e->pages.page[index].payload, where, sizeof(where));
	snprintf(what, sizeof(what), "its copy in %s is damaged", where);
	engine_dead(e, index, what, rc);
}

/* Unpacks pages from index on, at most so many; stops at one that is not in the tier, or
 * cannot be (*rc).  Returns how many. */
static uint64_t unpack_run(struct fault_server *s, uint64_t index, uint64_t most, int *rc)
{
	struct engine *e = s->e;
	uint64_t n = 0;

	*rc = 0;
	while (n < most && in_tier(e, index + n)) {
		*rc = get(e, index + n, s->buf + (n << PAGE_SHIFT));
		if (*rc)
			break;
		n++;
	}
	return n;
}

/* Takes n unpacked pages home; returns how many, at least one, or -errno. */
static int64_t place_run(struct fault_server *s, uint64_t index, uint64_t n)
{
	struct engine *e = s->e;
	int64_t done;

	if (n == 1 && e->pages.page[index].state == PAGE_FILLED && is_zero(s->buf))
		done = give_zeroes(s, index, 1);
	else
		done = fault_copy_in(e, index, s->buf, n);
	if (done > 0)
		fault_home(e, index, (uint64_t)done);
	return done;
}

/* Pages that came home without a fault of their own, which would have counted them. */
static void note_around(struct engine *e, uint64_t n)
{
	counter_add(CTR_engine_pages_around, n);
	atomic_fetch_add(&e->arrived_pages, n);
}

/* What else a sequential reader will want, past pages that are home already.  Nobody
 * waits for it, so what goes wrong is left for its own fault.  Returns where it ended. */
static uint64_t bring_around(struct fault_server *s, uint64_t index, uint64_t end)
{
	while (index < end) {
		int rc;
		uint64_t n = unpack_run(s, index, end - index, &rc);
		int64_t done = n ? place_run(s, index, n) : 1;

		if (rc || done < 0)
			break;
		index += (uint64_t)done;
		note_around(s->e, n ? (uint64_t)done : 0);
	}
	return index;
}

static void serve_tier(struct fault_server *s, struct chunk *c, uint64_t index)
{
	uint64_t end = (index / CHUNK_PAGES + 1) * CHUNK_PAGES;
	uint64_t want = plan_around(c, index), n;
	bool was_stored = s->e->pages.page[index].state == PAGE_STORED;
	int64_t done;
	int rc;

	if (end > index + want)
		end = index + want;
	n = unpack_run(s, index, end - index, &rc);
	if (n == 0) {
		damaged(s->e, index, rc);
		return;
	}
	done = place_run(s, index, n);
	if (done < 0) {
		engine_dead(s->e, index, "no memory to bring it back", (int)done);
		return;
	}
	counter_inc(was_stored ? CTR_engine_faults_stored : CTR_engine_faults_packed);
	c->retouched += was_stored && c->retouched < UINT8_MAX;
	note_around(s->e, (uint64_t)done - 1);
	c->next = (uint16_t)(bring_around(s, index + (uint64_t)done, end) % CHUNK_PAGES);
}

/* It was frozen when it was touched, and can be read now; or the store has lost it, as the
 * mapping is registered too. */
static void serve_shared(struct fault_server *s, uint64_t index)
{
	int rc = share_get(s->e, s->e->pages.page[index].payload, s->buf);

	if (rc)
		damaged(s->e, index, rc);
	else
		fault_wake(s->e, index, 1);
}

static void end_turn(struct fault_server *s)
{
	if (s->has_turn)
		pthread_mutex_unlock(&s->e->turn);
	s->has_turn = false;
}

/* What a fault on a page on disk starts; NULL: nothing. */
struct reads {
	struct page_read *first, *ahead[AHEAD_READS];
};

/* For a reader that has been sequential for a while: what is behind, up to a page that is
 * elsewhere or too far.  Lock held. */
static void plan_ahead(struct engine *e, struct chunk *c, uint64_t index, struct reads *out)
{
	uint64_t end = (index / CHUNK_PAGES + 1) * CHUNK_PAGES, at = index;
	const struct page *p = e->pages.page;

	if (c->around < AROUND_MAX)
		return;
	if (end > index + AHEAD_PAGES)
		end = index + AHEAD_PAGES;
	for (unsigned k = 0; k < AHEAD_READS; k++) {
		while (at < end && (p[at].state == PAGE_GUEST || p[at].reading))
			at++;
		if (at < end && p[at].state == PAGE_DISK)
			out->ahead[k] = read_plan_ahead(e->reader, at, AROUND_MAX);
		if (!out->ahead[k])
			return;
		at = read_end(out->ahead[k]);
		c->next = (uint16_t)(at % CHUNK_PAGES);
	}
}

void fault_waited(const struct fault_wait *w, uint64_t now)
{
	uint64_t ns = now > w->since_ns ? now - w->since_ns : 0;

	histogram_add(HIST_fault_ns, ns);
	if (w->is_vcpu)
		counter_add(CTR_vcpu_stall_ns, ns);
}

/* Who else joined is taken for a vCPU, too: who reads in order and is early is hardly
 * another.  Lock held. */
static void join_wait(struct fault_server *s, struct chunk *c)
{
	if (!s->wait.since_ns || !s->wait.is_vcpu || c->joined == UINT16_MAX)
		return;
	c->joined++;
	c->joined_ns += s->wait.since_ns;
}

/* False: there is no place for another read now. Lock held. */
static bool plan_reads(struct fault_server *s, struct chunk *c, uint64_t index, struct reads *out)
{
	struct engine *e = s->e;
	bool is_joined = e->pages.page[index].reading;

	if (is_joined) {
		counter_inc(CTR_engine_disk_joined); /* its end wakes this one too */
		join_wait(s, c);
	} else {
		out->first = read_plan(e->reader, index, plan_around(c, index));
		if (!out->first)
			return false;
		counter_inc(CTR_engine_faults_disk);
		read_waits(out->first, &s->wait);
		c->next = (uint16_t)(read_end(out->first) % CHUNK_PAGES);
	}
	s->wait.since_ns = 0; /* its read's end is its own */
	plan_ahead(e, c, index, out);
	return true;
}

static void start_reads(struct fault_server *s, const struct reads *rd)
{
	struct reader *r = s->e->reader;
	bool is_by_hand = rd->first && !read_start(r, rd->first);

	for (unsigned k = 0; k < AHEAD_READS && rd->ahead[k]; k++)
		if (is_by_hand || !read_start(r, rd->ahead[k]))
			read_cancel(r, rd->ahead[k]);
	if (is_by_hand) {
		end_turn(s);
		read_by_hand(r, rd->first, s->buf);
	}
}

/* True once the page is served or on its way.  False: no place for another read now. */
static bool serve(struct fault_server *s, uint64_t index)
{
	struct engine *e = s->e;
	struct chunk *c = chunk_of(&e->pages, index);
	struct reads rd = { NULL };
	bool is_served = true;

	pthread_mutex_lock(&c->lock);
	switch ((enum page_state)e->pages.page[index].state) {
	case PAGE_STAGED:
		serve_staged(e, c, index);
		break;
	case PAGE_FILLED:
	case PAGE_PACKED:
	case PAGE_STORED:
		serve_tier(s, c, index);
		break;
	case PAGE_SHARED:
		serve_shared(s, index);
		break;
	case PAGE_BROKEN:
		fault_wake(e, index, 1);
		break;
	case PAGE_DISK:
		is_served = plan_reads(s, c, index, &rd);
		break;
	default:
		serve_guest(s, c, index);
	}
	pthread_mutex_unlock(&c->lock);
	start_reads(s, &rd);
	return is_served;
}

/* A VM over its limit: whoever touched the page waits a little, and nobody else. */
static void throttle_pause(struct fault_server *s, uint64_t index)
{
	uint64_t ns = throttle_ns(s->e, index);

	if (!ns)
		return;
	end_turn(s);
	nanosleep(&(struct timespec){ .tv_nsec = (long)ns }, NULL);
}

void fault_serve(struct fault_server *s, uint64_t index)
{
	while (!serve(s, index)) {
		end_turn(s);
		reader_wait(s->e->reader);
	}
}

/* ---- the threads ------------------------------------------------------------------ */

static void go_to(struct fault_server *s, int cpu)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET((unsigned)cpu, &set);
	/* Where it may not: it stays, and does not ask for this one again. */
	if (!sched_setaffinity(0, sizeof(set), &set))
		counter_inc(CTR_engine_followed);
	s->cpu = cpu;
}

/* A handler woken on another CPU than the one the toucher sleeps on costs two wake-ups of
 * idle CPUs; on the same one it is a switch.  So go where faults keep coming from, and
 * have their toucher held there (place.c), before it is woken.  True: a vCPU faulted. */
static bool follow(struct fault_server *s, uint32_t tid)
{
	struct engine *e = s->e;
	int cpu = e->touchers.cpu_of ? e->touchers.cpu_of(e->touchers.ctx, tid) : NO_CPU;
	bool is_held = cpu != NO_CPU && e->placer && place_note(e->placer, tid, cpu);

	s->seen = cpu == s->seen_cpu ? s->seen + 1 : 0;
	s->seen_cpu = cpu;
	if (cpu != NO_CPU && cpu != s->cpu && (is_held || s->seen >= FOLLOW_AFTER))
		go_to(s, cpu);
	return cpu != NO_CPU;
}

static void end_all(struct engine *e)
{
	struct uffdio_zeropage z = { .range = { (uint64_t)e->stop_page, PAGE_BYTES } };

	while (e->host->ioctl(e->uffd, UFFDIO_ZEROPAGE, &z) < 0 && errno != EEXIST)
		retry_pause();
	e->faults_over = true;
}

static void take_message(struct fault_server *s, const struct uffd_msg *m)
{
	struct engine *e = s->e;
	uint64_t index = (m->arg.pagefault.address - (uint64_t)e->base) >> PAGE_SHIFT;

	if (m->event != UFFD_EVENT_PAGEFAULT)
		return;
	if (m->arg.pagefault.address / PAGE_BYTES == (uint64_t)e->stop_page / PAGE_BYTES) {
		end_all(e);
		return;
	}
	VERIFY(index < e->pages.count);
	s->is_write = m->arg.pagefault.flags & UFFD_PAGEFAULT_FLAG_WRITE;
	s->wait.since_ns = now_ns();
	throttle_pause(s, index);
	s->wait.is_vcpu = follow(s, m->arg.pagefault.feat.ptid);
	fault_serve(s, index);
	if (s->wait.since_ns)
		fault_waited(&s->wait, now_ns());
}

/* Listens until something comes, with the turn; serves it. */
static void serve_some(struct fault_server *s)
{
	struct uffd_msg m[MESSAGES];
	int64_t n = s->e->host->read(s->e->uffd, m, sizeof(m)) / (int64_t)sizeof(*m);

	if (n > 1)
		end_turn(s); /* there may be more: to another thread */
	for (int64_t i = 0; i < n; i++)
		take_message(s, &m[i]);
}

static void *fault_main(void *arg)
{
	struct fault_server *s = arg;
	struct engine *e = s->e;

	role_set(ROLE_FAULT);
	pthread_setname_np(pthread_self(), "fault");
	while (!e->faults_over) {
		if (!s->has_turn)
			pthread_mutex_lock(&e->turn);
		s->has_turn = true;
		if (!e->faults_over)
			serve_some(s);
	}
	end_turn(s);
	fault_server_destroy(&s);
	return NULL;
}

int fault_server_create(struct fault_server **out, struct engine *e)
{
	struct fault_server *s = calloc(1, sizeof(*s));
	void *zeroes;

	if (!s)
		return -ENOMEM;
	*s = (struct fault_server){ .e = e, .cpu = NO_CPU, .seen_cpu = NO_CPU };
	zeroes = e->host->mmap(NULL, AROUND_MAX * PAGE_BYTES, PROT_READ,
			       MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	s->zeroes = zeroes == MAP_FAILED ? NULL : zeroes;
	if (!s->zeroes || posix_memalign((void **)&s->buf, PAGE_BYTES, AROUND_MAX * PAGE_BYTES)) {
		fault_server_destroy(&s);
		return -ENOMEM;
	}
	*out = s;
	return 0;
}

void fault_server_destroy(struct fault_server **sp)
{
	struct fault_server *s = *sp;

	*sp = NULL;
	if (!s)
		return;
	if (s->zeroes)
		s->e->host->munmap((void *)(uintptr_t)s->zeroes, AROUND_MAX * PAGE_BYTES);
	free(s->buf);
	free(s);
}

int fault_start(struct engine *e, unsigned threads)
{
	for (; e->fault_threads < threads; e->fault_threads++) {
		struct fault_server *s = NULL;
		int rc = fault_server_create(&s, e);

		if (!rc)
			rc = -pthread_create(&e->fault_thread[e->fault_threads], NULL, fault_main, s);
		if (rc) {
			fault_server_destroy(&s);
			return rc;
		}
	}
	return 0;
}

void fault_stop(struct engine *e)
{
	if (e->fault_threads)
		(void)*(volatile uint8_t *)e->stop_page;
	while (e->fault_threads)
		pthread_join(e->fault_thread[--e->fault_threads], NULL);
}
