/*
 * Faults on pages that are away: the threads that bring them back.
 *
 *   vCPU, event loop or kernel touches a missing page of a watched chunk
 *     ─► it sleeps in the kernel, a message arrives on the userfaultfd
 *     ─► a fault thread: chunk lock, then by state
 *          STAGED   UFFDIO_MOVE back from staging: no copy
 *          PACKED   decompress into the thread's buffer, UFFDIO_COPY
 *          FILLED   the same, or the kernel's zero page
 *          GUEST    never touched, or discarded, or brought back meanwhile:
 *                   a zero page, or only a wake-up
 *     ─► the kernel wakes whoever slept
 *
 * Fault-around: a fault just behind the last one's end in the same chunk doubles
 * the number of pages brought back (to AROUND_MAX), any other halves it.
 *
 * Threads: fault threads only, which wait for nothing but messages and chunk
 * locks; a touch by them of guest RAM would wait for themselves.
 *
 * Invariants:
 *  I1  A page is only ever given the bytes it left with, or zeroes if it was
 *      discarded or never touched.  Where that cannot be, the VM ends by name.
 *  I2  The state changes after the page is back, under the same hold of the lock.
 */
#include "mm/internal.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

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

/* The pages copied (1..n), or -errno when not even the first was. */
static int64_t copy_in(struct engine *e, uint64_t index, const uint8_t *buf, uint64_t n)
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

static void wake(struct engine *e, uint64_t index)
{
	struct uffdio_range r = { (uint64_t)page_at(e, index), PAGE_BYTES };

	if (e->host->ioctl(e->uffd, UFFDIO_WAKE, &r) < 0)
		log_guest("memory: cannot wake a fault: %s", strerror(errno));
}

/* Nothing of this page is away: it needs a zero page, or has one already. */
static void serve_guest(struct engine *e, uint64_t index)
{
	int rc = zero_in(e, index);

	counter_inc(CTR_engine_faults_untouched);
	if (rc == -EEXIST)
		wake(e, index);
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
		rc = copy_in(e, index, slot_at(e, slot), 1);
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

/* How many pages from index on are to be brought back. */
static uint64_t plan_around(struct engine *e, struct chunk *c, uint64_t index)
{
	uint64_t at = index % CHUNK_PAGES, n = 1;

	if (at == c->next && c->around < AROUND_MAX)
		c->around = c->around ? (uint8_t)(c->around * 2) : 2;
	else if (at != c->next)
		c->around /= 2;
	while (n < c->around && at + n < CHUNK_PAGES && in_tier(e, index + n))
		n++;
	return n;
}

static bool is_zero(const uint8_t *page)
{
	return page[0] == 0 && !memcmp(page, page + 1, PAGE_BYTES - 1);
}

static void back_home(struct engine *e, uint64_t index, uint64_t n)
{
	for (uint64_t i = index; i < index + n; i++) {
		uint64_t ref = e->pages.page[i].payload;

		page_set(&e->pages, i, PAGE_GUEST, 0);
		e->tier->drop(e->tier_ctx, ref);
	}
}

static void serve_tier(struct engine *e, struct chunk *c, uint64_t index, uint8_t *buf)
{
	uint64_t n = plan_around(e, c, index), got = 0;
	int64_t done;
	int rc = 0;

	while (got < n) {
		rc = e->tier->get(e->tier_ctx, e->pages.page[index + got].payload, index + got,
				  buf + (got << PAGE_SHIFT));
		if (rc)
			break;
		got++;
	}
	if (got == 0) {
		engine_dead(e, index, "its packed copy is damaged", rc);
		return;
	}
	if (got == 1 && e->pages.page[index].state == PAGE_FILLED && is_zero(buf)) {
		rc = zero_in(e, index);
		done = rc ? rc : 1;
	} else {
		done = copy_in(e, index, buf, got);
	}
	if (done < 0) {
		engine_dead(e, index, "no memory to bring it back", (int)done);
		return;
	}
	back_home(e, index, (uint64_t)done);
	c->next = (uint16_t)((index + (uint64_t)done) % CHUNK_PAGES);
	counter_inc(CTR_engine_faults_packed);
	counter_add(CTR_engine_pages_around, (uint64_t)done - 1);
}

void fault_serve(struct engine *e, uint64_t index, uint8_t *buf)
{
	struct chunk *c = chunk_of(&e->pages, index);

	pthread_mutex_lock(&c->lock);
	switch ((enum page_state)e->pages.page[index].state) {
	case PAGE_STAGED:
		serve_staged(e, index);
		break;
	case PAGE_FILLED:
	case PAGE_PACKED:
		serve_tier(e, c, index, buf);
		break;
	default:
		serve_guest(e, index);
	}
	pthread_mutex_unlock(&c->lock);
}

/* One message, if there is one. */
static void take_message(struct engine *e, uint8_t *buf)
{
	struct uffd_msg m;
	uint64_t index;

	if (e->host->read(e->uffd, &m, sizeof(m)) != sizeof(m))
		return; /* another thread was faster */
	if (m.event != UFFD_EVENT_PAGEFAULT)
		return;
	index = (m.arg.pagefault.address - (uint64_t)e->base) >> PAGE_SHIFT;
	VERIFY(index < e->pages.count);
	fault_serve(e, index, buf);
}

static void *fault_main(void *arg)
{
	struct engine *e = arg;
	struct pollfd fds[] = { { e->uffd, POLLIN, 0 }, { e->stop, POLLIN, 0 } };
	uint8_t *buf = NULL;

	role_set(ROLE_FAULT);
	if (posix_memalign((void **)&buf, PAGE_BYTES, AROUND_MAX * PAGE_BYTES))
		brim_panic(__FILE__, __LINE__, "no memory for a fault thread");
	while (!fds[1].revents) {
		if (poll(fds, ARRAY_LEN(fds), -1) < 0)
			continue;
		if (fds[0].revents & POLLIN)
			take_message(e, buf);
	}
	free(buf);
	return NULL;
}

int fault_start(struct engine *e, unsigned threads)
{
	for (; e->fault_threads < threads; e->fault_threads++) {
		int rc = pthread_create(&e->fault_thread[e->fault_threads], NULL, fault_main, e);

		if (rc)
			return -rc;
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
