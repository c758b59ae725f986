/*
 * Faults on pages that are away: the threads that bring them back.
 *
 *   vCPU, event loop or kernel touches a missing page of a watched chunk
 *     ─► it sleeps in the kernel, a message arrives on the userfaultfd
 *     ─► a fault thread: chunk lock, then by state
 *          STAGED   UFFDIO_MOVE back from staging: no copy
 *          PACKED   decompress into the thread's buffer, UFFDIO_COPY
 *          FILLED   the same, or the kernel's zero page
 *          DISK     read.c: a read is started, and ends in a later turn
 *          GUEST    never touched, or discarded, or brought back meanwhile:
 *                   a zero page, or only a wake-up
 *     ─► the kernel wakes whoever slept
 *
 * Fault-around: a fault just behind the last one's end in the same chunk doubles
 * the number of pages brought back (to AROUND_MAX), any other halves it.
 *
 * Threads: fault threads only, which wait for nothing but messages, reads that end
 * and chunk locks; a touch by them of guest RAM would wait for themselves.
 *
 * Invariants:
 *  I1  A page is only ever given the bytes it left with, or zeroes if it was
 *      discarded or never touched.  Where that cannot be, the VM ends by name.
 *  I2  The state changes after the page is back, under the same hold of the lock.
 */
#include "mm/internal.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

struct fault_server {
	struct engine *e;
	uint8_t *buf;          /* AROUND_MAX pages */
	struct reader *reader; /* NULL: the tier has no disk */
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

/* Nothing of this page is away: it needs a zero page, or has one already. */
static void serve_guest(struct engine *e, uint64_t index)
{
	int rc = zero_in(e, index);

	counter_inc(CTR_engine_faults_untouched);
	if (rc == -EEXIST)
		fault_wake(e, index, 1);
	else if (rc)
		engine_dead(e, index, "no memory for a page never touched", rc);
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

static void serve_staged(struct engine *e, uint64_t index)
{
	int rc = fault_unstage(e, index);

	counter_inc(CTR_engine_faults_staged);
	if (rc)
		engine_dead(e, index, "staging", rc);
}

static bool in_tier(const struct engine *e, uint64_t index)
{
	enum page_state s = e->pages.page[index].state;

	return s == PAGE_PACKED || s == PAGE_FILLED;
}

/* How many pages are to be brought back, the one that faulted included. */
static uint64_t plan_around(struct chunk *c, uint64_t index)
{
	uint64_t at = index % CHUNK_PAGES;

	if (at == c->next && c->around < AROUND_MAX)
		c->around = c->around ? (uint8_t)(c->around * 2) : 2;
	else if (at != c->next)
		c->around /= 2;
	return c->around ? c->around : 1;
}

static bool is_zero(const uint8_t *page)
{
	return page[0] == 0 && !memcmp(page, page + 1, PAGE_BYTES - 1);
}

void fault_home(struct engine *e, uint64_t index, uint64_t n)
{
	for (uint64_t i = index; i < index + n; i++) {
		uint64_t ref = e->pages.page[i].payload;

		page_set(&e->pages, i, PAGE_GUEST, 0);
		e->tier->drop(e->tier_ctx, ref);
	}
	chunk_of(&e->pages, index)->next = (uint16_t)((index + n) % CHUNK_PAGES);
}

static void damaged(struct engine *e, uint64_t index, int rc)
{
	char where[256] = "its tier", what[320];

	if (e->tier->describe)
		e->tier->describe(e->tier_ctx, e->pages.page[index].payload, where, sizeof(where));
	snprintf(what, sizeof(what), "its copy in %s is damaged", where);
	engine_dead(e, index, what, rc);
}

static void serve_tier(struct fault_server *s, struct chunk *c, uint64_t index)
{
	struct engine *e = s->e;
	uint64_t want = plan_around(c, index), end = (index / CHUNK_PAGES + 1) * CHUNK_PAGES;
	uint64_t got = 0;
	int64_t done;
	int rc = 0;

	while (got < want && index + got < end && in_tier(e, index + got)) {
		rc = e->tier->get(e->tier_ctx, e->pages.page[index + got].payload, index + got,
				  s->buf + (got << PAGE_SHIFT));
		if (rc)
			break;
		got++;
	}
	if (got == 0) {
		damaged(e, index, rc);
		return;
	}
	if (got == 1 && e->pages.page[index].state == PAGE_FILLED && is_zero(s->buf)) {
		rc = zero_in(e, index);
		done = rc ? rc : 1;
	} else {
		done = fault_copy_in(e, index, s->buf, got);
	}
	if (done < 0) {
		engine_dead(e, index, "no memory to bring it back", (int)done);
		return;
	}
	fault_home(e, index, (uint64_t)done);
	counter_inc(CTR_engine_faults_packed);
	counter_add(CTR_engine_pages_around, (uint64_t)done - 1);
}

/* Returns the read to start once the lock is dropped, if any. */
static struct page_read *serve_disk(struct fault_server *s, struct chunk *c, uint64_t index)
{
	if (s->e->pages.page[index].reading) {
		counter_inc(CTR_engine_disk_joined); /* its end wakes this one too */
		return NULL;
	}
	counter_inc(CTR_engine_faults_disk);
	return read_plan(s->reader, index, plan_around(c, index));
}

void fault_serve(struct fault_server *s, uint64_t index)
{
	struct engine *e = s->e;
	struct chunk *c = chunk_of(&e->pages, index);
	struct page_read *to_start = NULL;

	pthread_mutex_lock(&c->lock);
	switch ((enum page_state)e->pages.page[index].state) {
	case PAGE_STAGED:
		serve_staged(e, index);
		break;
	case PAGE_FILLED:
	case PAGE_PACKED:
		serve_tier(s, c, index);
		break;
	case PAGE_DISK:
		to_start = serve_disk(s, c, index);
		break;
	default:
		serve_guest(e, index);
	}
	pthread_mutex_unlock(&c->lock);
	if (to_start)
		read_start(s->reader, to_start);
}

/* ---- the threads ------------------------------------------------------------------ */

/* One message, if there is one. */
static void take_message(struct fault_server *s)
{
	struct engine *e = s->e;
	struct uffd_msg m;
	uint64_t index;

	/* Whatever the message will be, it can be served. */
	while (s->reader && !reader_has_room(s->reader))
		read_reap(s->reader, true);
	if (e->host->read(e->uffd, &m, sizeof(m)) != sizeof(m))
		return; /* another thread was faster */
	if (m.event != UFFD_EVENT_PAGEFAULT)
		return;
	index = (m.arg.pagefault.address - (uint64_t)e->base) >> PAGE_SHIFT;
	VERIFY(index < e->pages.count);
	fault_serve(s, index);
}

int fault_server_create(struct fault_server **out, struct engine *e)
{
	struct fault_server *s = calloc(1, sizeof(*s));

	if (!s)
		return -ENOMEM;
	s->e = e;
	if (posix_memalign((void **)&s->buf, PAGE_BYTES, AROUND_MAX * PAGE_BYTES) ||
	    (e->tier->pin && reader_create(&s->reader, e, s->buf))) {
		free(s->buf);
		free(s);
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
	reader_destroy(&s->reader);
	free(s->buf);
	free(s);
}

static void *fault_main(void *arg)
{
	struct fault_server *s = arg;
	struct pollfd fds[] = {
		{ s->e->uffd, POLLIN, 0 },
		{ s->e->stop, POLLIN, 0 },
		{ s->reader ? reader_fd(s->reader) : -1, POLLIN, 0 },
	};

	role_set(ROLE_FAULT);
	while (!fds[1].revents) {
		if (poll(fds, ARRAY_LEN(fds), -1) < 0)
			continue;
		if (fds[2].revents)
			while (read_reap(s->reader, false))
				;
		if (fds[0].revents & POLLIN)
			take_message(s);
	}
	fault_server_destroy(&s);
	return NULL;
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
		eventfd_write(e->stop, 1);
	while (e->fault_threads)
		pthread_join(e->fault_thread[--e->fault_threads], NULL);
}
