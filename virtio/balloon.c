/*
 * virtio-balloon (virtio 1.2, section 5.5): parse, check, call mm/balloon.
 *
 * Queues.  The specification numbers them 0 inflate, 1 deflate, 2 statistics,
 * 3 free page hinting, 4 reporting, whether or not the features are there.  Linux
 * since 5.0, and QEMU, number those that exist one after the other.  The two
 * differ when a feature in the middle is missing; which one the driver follows
 * shows at DRIVER_OK: only a driver that follows the specification has enabled a
 * queue beyond the consecutive ones.  See assign_kinds().
 *
 * Inflating.  Without VIRTIO_BALLOON_F_MUST_TELL_HOST a driver may use a page
 * again as soon as its inflate request came back (deflate is "merely a
 * courtesy"), so the page is discarded before the request is returned.  With it,
 * the device may change the page until it acknowledges the page's deflation.
 * We offer it, because Linux sends one request of 256 pages and waits: only by
 * returning it at once can discards be gathered over several requests (whole
 * huge pages in one call) and run beside the guest's next allocation.  Pages stay
 * pending for FLUSH_NS or FLUSH_PAGES, and mm/balloon discards them before it
 * takes any page out of the book.  Linux (read: 6.1, 6.12) keeps the rule without
 * looking at the bit: leak_balloon(), the OOM notifier and page migration, all
 * wait for the deflate to come back before they free.  Drivers that do not accept
 * the bit get the synchronous way.  A guest that breaks its word zeroes a page of
 * its own.
 *
 * Reporting.  A page reported is the guest's again once the request came back:
 * always discarded before.  With PAGE_POISON and a poison value other than 0 the
 * device must not leave anything but poison in a reported page, and a discarded
 * page reads as zeroes: such reports are returned untouched.  Inflated pages may
 * be discarded whatever the poison, since the driver writes them after deflating.
 *
 * Hinting never discards.  The device may change a hinted page only if the guest
 * has not written to it since the command id was issued, and the driver may take
 * a page back at any time, also before we saw the hint: Linux does, in a shrinker
 * registered for just that, telling nobody.  Without watching writes there is
 * thus no moment at which a discard is safe (this is the race other hypervisors
 * warn of).  So a round measures: it yields how much the guest could do without,
 * in blocks of 4 MiB, as a hint to policy, and ends with DONE so that the guest
 * gets its pages back.  Reporting is what gives memory back.
 *
 * Statistics.  The device keeps the driver's buffer and returns it when it wants
 * news: at each tick of a timer.
 *
 * Threads: loop thread, except config, start and reset (a vCPU's); all under the
 * device's lock.
 *
 * Invariants:
 *  I1  Every chain is returned, once, whatever it looks like; all page numbers in
 *      it have been looked at, however many there are.
 *  I2  One turn of the loop takes TURN_CHAINS chains and kind->pages_per_turn
 *      pages at most; what remains goes on in a later turn.
 *  I3  After reset nothing is pending, nothing is in the book, no chain is held.
 */
#include "mm/balloon/balloon.h"
#include "virtio/balloon_stats.h"

#include <endian.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/timerfd.h>
#include <unistd.h>

/* Section 5.5.3.  (<linux/virtio_balloon.h> claims our configuration's name.) */
#define F_MUST_TELL_HOST (1ull << 0)
#define F_STATS_VQ (1ull << 1)
#define F_DEFLATE_ON_OOM (1ull << 2)
#define F_FREE_PAGE_HINT (1ull << 3)
#define F_PAGE_POISON (1ull << 4)
#define F_REPORTING (1ull << 5)

enum { CMD_ID_STOP, CMD_ID_DONE, CMD_ID_FIRST }; /* section 5.5.6.5 */

/* Section 5.5.4, as the driver sees it. */
struct config_space {
	uint32_t num_pages, actual, free_page_hint_cmd_id, poison_val; /* le32 */
};
#define CONFIG_ACTUAL offsetof(struct config_space, actual)
#define CONFIG_POISON offsetof(struct config_space, poison_val)
#define CONFIG_FIELD_BYTES sizeof(uint32_t)

#define QUEUE_SIZE 128 /* Linux wants at least 32 for reporting */
#define QUEUES_ALL 5
#define QUEUES_PLAIN 3 /* neither hinting nor reporting */

#define PFNS_AT_ONCE 256
#define FLUSH_PAGES 2048       /* 8 MiB: huge pages whole; 1 ms when scattered */
#define FLUSH_NS 2000000       /* time for a guest to fill FLUSH_PAGES */
#define TURN_CHAINS 64
#define TURN_PFNS 2048
#define TURN_REPORT_PAGES 8192 /* 32 MiB: 2 ms when not in huge pages */

#define NS_PER_S 1000000000

_Static_assert(sizeof(struct config_space) == 16, "configuration space as specified");
_Static_assert(PFNS_AT_ONCE <= BALLOON_PENDING_MAX, "room for what is copied at once");

/* A chain being worked on, maybe over several turns. */
struct walk {
	bool active;
	bool faulty;     /* counted as a bad request at its end */
	uint64_t off;    /* bytes of the side read that are done */
	unsigned buffer; /* reporting: where off is */
	uint64_t buffer_off;
	struct virtq_chain chain;
};

/* What one turn of the loop may still take. */
struct turn {
	unsigned chains;
	uint64_t pages;
	unsigned done; /* chains to return */
	uint16_t heads[TURN_CHAINS];
};

struct balloon_dev;

/* What a queue is for. */
enum kind_id { KIND_INFLATE, KIND_DEFLATE, KIND_STATS, KIND_HINT, KIND_REPORT, KIND_COUNT };

struct kind {
	uint64_t feature; /* the queue exists when negotiated; 0: always */
	uint64_t pages_per_turn;
	/* Goes on with w->chain, taking from t->pages; true when it is done. */
	bool (*work)(struct balloon_dev *bd, struct walk *w, struct turn *t);
	/* Around a turn: at its start, before its chains are returned, and after.
	 * Each may be NULL. */
	void (*before_work)(struct balloon_dev *bd);
	void (*before_return)(struct balloon_dev *bd);
	void (*after_return)(struct balloon_dev *bd);
};

enum hint_state {
	HINT_IDLE,  /* config says STOP or DONE */
	HINT_ASKED, /* config says an id that the driver has not taken up */
	HINT_RUNS,  /* pages on the queue belong to that id */
};

struct balloon_dev {
	struct virtio_dev dev; /* first: dev pointers are balloon_dev pointers */

	/* fixed at create */
	struct balloon *balloon;
	int flush_fd, stats_fd;
	unsigned stats_interval_s;

	/* under dev.lock */
	const struct kind *kinds[VIRTIO_MAX_QUEUES]; /* NULL: no such queue now */
	struct walk walks[KIND_COUNT];
	bool flush_armed;

	uint32_t target_pages, actual_pages, cmd_id, poison;
	enum hint_state hint;
	uint32_t next_cmd_id;
	uint64_t reported_pages; /* in all */
	uint64_t round_pages;    /* hinted in this round, or the last */

	bool stats_held; /* the driver's buffer is here, its head is: */
	uint16_t stats_head;
	struct balloon_guest_stats stats;
};

static struct balloon_dev *of(struct virtio_dev *dev)
{
	return (struct balloon_dev *)dev;
}

static bool tells_first(const struct balloon_dev *bd)
{
	return virtio_has(&bd->dev, F_MUST_TELL_HOST);
}

/* ---- page numbers: inflate and deflate --------------------------------------- */

/* Copies the next page numbers of a request.  0 at its end. */
static unsigned next_pfns(struct walk *w, struct turn *t, uint32_t *pfns)
{
	uint64_t left = (w->chain.out_bytes - w->off) / sizeof(*pfns);
	unsigned n = PFNS_AT_ONCE;

	if (left < n)
		n = (unsigned)left;
	if (t->pages < n)
		n = (unsigned)t->pages;
	VERIFY(virtq_copy_out(&w->chain, w->off, pfns, n * sizeof(*pfns)) == n * sizeof(*pfns));
	for (unsigned i = 0; i < n; i++)
		pfns[i] = le32toh(pfns[i]);
	w->off += n * sizeof(*pfns);
	t->pages -= n;
	return n;
}

static bool pfns_done(struct walk *w)
{
	uint64_t left = w->chain.out_bytes - w->off;

	w->faulty = left != 0 || w->chain.out_bytes == 0 || w->chain.in_bytes != 0;
	return left < sizeof(uint32_t);
}

static bool work_inflate(struct balloon_dev *bd, struct walk *w, struct turn *t)
{
	uint32_t pfns[PFNS_AT_ONCE];
	unsigned n;

	while ((n = next_pfns(w, t, pfns)) > 0) {
		if (balloon_room(bd->balloon) < n)
			balloon_discard(bd->balloon);
		balloon_inflate(bd->balloon, pfns, n);
	}
	return pfns_done(w);
}

static bool work_deflate(struct balloon_dev *bd, struct walk *w, struct turn *t)
{
	uint32_t pfns[PFNS_AT_ONCE];
	unsigned n;

	while ((n = next_pfns(w, t, pfns)) > 0)
		balloon_deflate(bd->balloon, pfns, n);
	return pfns_done(w);
}

static void inflate_before_return(struct balloon_dev *bd)
{
	if (!tells_first(bd))
		balloon_discard(bd->balloon);
}

static void set_timer(int fd, uint64_t first_ns, uint64_t every_ns)
{
	struct itimerspec when = {
		.it_value = { (time_t)(first_ns / NS_PER_S), (long)(first_ns % NS_PER_S) },
		.it_interval = { (time_t)(every_ns / NS_PER_S), (long)(every_ns % NS_PER_S) },
	};

	VERIFY(timerfd_settime(fd, 0, &when, NULL) == 0);
}

/* The driver has its answer and goes on; now the discarding, or a date for it. */
static void inflate_after_return(struct balloon_dev *bd)
{
	uint64_t pending = balloon_pending_pages(bd->balloon);

	if (pending >= FLUSH_PAGES) {
		balloon_discard(bd->balloon);
	} else if (pending && !bd->flush_armed) {
		set_timer(bd->flush_fd, FLUSH_NS, 0);
		bd->flush_armed = true;
	}
}

/* What is pending now was inflated; done before anything else is collected, so
 * that each kind of page is counted as what it is. */
static void flush(struct balloon_dev *bd)
{
	balloon_discard(bd->balloon);
}

static void drain_timer(int fd)
{
	uint64_t ticks;

	/* EAGAIN: it was set anew since the loop looked; there is no tick to take */
	if (read(fd, &ticks, sizeof(ticks)) < 0)
		VERIFY(errno == EAGAIN || errno == EINTR);
}

static void flush_due(struct virtio_dev *dev, unsigned events)
{
	struct balloon_dev *bd = of(dev);

	drain_timer(bd->flush_fd);
	bd->flush_armed = false;
	if (virtio_running(dev)) /* else a reset is due, which forgets them */
		flush(bd);
}

/* ---- free page reporting ----------------------------------------------------- */

/* The way back from a buffer that queue.c has translated. */
static gpa_t guest_address(const struct ram *ram, const void *p)
{
	for (unsigned i = 0; i < ram_slot_count(ram); i++) {
		const struct ram_slot *s = ram_slot(ram, i);
		uint64_t off = (uint64_t)((uintptr_t)p - (uintptr_t)s->hva);

		if (off < s->size_bytes)
			return gpa(s->base.v + off);
	}
	brim_panic(__FILE__, __LINE__, "a buffer outside guest RAM");
}

static bool may_discard_reported(const struct balloon_dev *bd)
{
	return !virtio_has(&bd->dev, F_PAGE_POISON) || bd->poison == 0;
}

static void discard_reported(struct balloon_dev *bd)
{
	uint64_t pages = balloon_discard(bd->balloon);

	bd->reported_pages += pages;
	counter_add(CTR_balloon_reported_pages, pages);
}

/* The next piece of a buffer, as much as the turn still has pages for. */
static void report_piece(struct balloon_dev *bd, struct walk *w, struct turn *t)
{
	const struct iovec *v = &w->chain.in[w->buffer];
	gpa_t at = guest_address(bd->dev.env.ram, (uint8_t *)v->iov_base + w->buffer_off);
	uint64_t len = v->iov_len - w->buffer_off;
	uint64_t max = t->pages * PAGE_BYTES - at.v % PAGE_BYTES;

	if (len > max)
		len = max; /* up to the end of a page, so that none is cut in two */
	if ((at.v | len) % PAGE_BYTES != 0)
		w->faulty = true; /* what is whole in it is taken all the same */
	if (balloon_room(bd->balloon) == 0)
		discard_reported(bd);
	balloon_free_range(bd->balloon, at, len);
	t->pages -= (at.v % PAGE_BYTES + len + PAGE_BYTES - 1) / PAGE_BYTES;
	w->buffer_off += len;
	if (w->buffer_off == v->iov_len) {
		w->buffer++;
		w->buffer_off = 0;
	}
}

static bool work_report(struct balloon_dev *bd, struct walk *w, struct turn *t)
{
	if (w->chain.in_bytes == 0 || w->chain.out_bytes != 0)
		w->faulty = true;
	if (!may_discard_reported(bd))
		return true;
	while (w->buffer < w->chain.in_count && t->pages > 0)
		report_piece(bd, w, t);
	return w->buffer == w->chain.in_count;
}

/* ---- free page hinting ------------------------------------------------------- */

static void set_cmd_id(struct balloon_dev *bd, uint32_t id)
{
	bd->cmd_id = id;
	virtio_config_changed(&bd->dev);
}

static void hint_command(struct balloon_dev *bd, struct walk *w)
{
	uint32_t id;

	if (w->chain.out_bytes != sizeof(id)) {
		w->faulty = true;
		return;
	}
	VERIFY(virtq_copy_out(&w->chain, 0, &id, sizeof(id)) == sizeof(id));
	id = le32toh(id);
	if (bd->hint == HINT_ASKED && id == bd->cmd_id) {
		bd->hint = HINT_RUNS;
	} else if (bd->hint == HINT_RUNS && id != bd->cmd_id) {
		/* STOP: that was all.  Anything else: the driver has lost its place;
		 * end the round, so that it gets its pages back. */
		bd->hint = HINT_IDLE;
		set_cmd_id(bd, CMD_ID_DONE);
	}
}

/* Counts; see the file's header for why it does no more.  A guest cannot have
 * more free than there is, so a round stops counting there. */
static bool work_hint(struct balloon_dev *bd, struct walk *w, struct turn *t)
{
	uint64_t left = (ram_size_bytes(bd->dev.env.ram) >> PAGE_SHIFT) - bd->round_pages;
	uint64_t pages = w->chain.in_bytes >> PAGE_SHIFT;

	if (w->chain.out_bytes)
		hint_command(bd, w);
	if (bd->hint != HINT_RUNS)
		return true;
	if (pages > left)
		pages = left;
	bd->round_pages += pages;
	counter_add(CTR_balloon_hinted_pages, pages);
	return true;
}

int virtio_balloon_hint(struct virtio_dev *dev)
{
	struct balloon_dev *bd = of(dev);
	int rc = 0;

	pthread_mutex_lock(&dev->lock);
	if (!virtio_running(dev) || !virtio_has(dev, F_FREE_PAGE_HINT)) {
		rc = -ENOTSUP;
	} else if (bd->hint != HINT_IDLE) {
		rc = -EBUSY;
	} else {
		bd->hint = HINT_ASKED;
		if (bd->next_cmd_id < CMD_ID_FIRST)
			bd->next_cmd_id = CMD_ID_FIRST; /* the first, or it wrapped */
		bd->round_pages = 0;
		set_cmd_id(bd, bd->next_cmd_id++);
	}
	pthread_mutex_unlock(&dev->lock);
	return rc;
}

/* ---- statistics -------------------------------------------------------------- */

static void stats_ask(struct balloon_dev *bd, struct virtq *q)
{
	if (!bd->stats_held)
		return; /* the driver still works on the last request */
	bd->stats_held = false;
	virtq_push(q, bd->stats_head, 0);
	virtq_notify(q);
}

/* Keeps the chain: it goes back when the next tick asks for news. */
static bool work_stats(struct balloon_dev *bd, struct walk *w, struct turn *t)
{
	if (w->chain.in_bytes)
		w->faulty = true;
	balloon_stats_take(&bd->stats, &w->chain);
	if (bd->stats_held) {
		/* A second buffer, against the rules: return the first. */
		w->faulty = true;
		t->heads[t->done++] = bd->stats_head;
	}
	bd->stats_held = true;
	bd->stats_head = w->chain.head;
	return true;
}

static void stats_due(struct virtio_dev *dev, unsigned events)
{
	struct balloon_dev *bd = of(dev);

	drain_timer(bd->stats_fd);
	if (!virtio_running(dev))
		return;
	for (unsigned qi = 0; qi < dev->queue_count; qi++)
		if (bd->kinds[qi] && bd->kinds[qi]->work == work_stats)
			stats_ask(bd, &dev->queues[qi]);
}

/* ---- queues ------------------------------------------------------------------ */

/* In the order of the specification's queue numbers. */
static const struct kind kinds[KIND_COUNT] = {
	[KIND_INFLATE] = {
		.pages_per_turn = TURN_PFNS,
		.work = work_inflate,
		.before_return = inflate_before_return,
		.after_return = inflate_after_return,
	},
	[KIND_DEFLATE] = {
		.pages_per_turn = TURN_PFNS,
		.work = work_deflate,
	},
	[KIND_STATS] = {
		.feature = F_STATS_VQ,
		.pages_per_turn = 1, /* not counted */
		.work = work_stats,
	},
	[KIND_HINT] = {
		.feature = F_FREE_PAGE_HINT,
		.pages_per_turn = 1, /* not counted */
		.work = work_hint,
	},
	[KIND_REPORT] = {
		.feature = F_REPORTING,
		.pages_per_turn = TURN_REPORT_PAGES,
		.work = work_report,
		.before_work = flush,
		.before_return = discard_reported,
	},
};

static bool exists(const struct balloon_dev *bd, const struct kind *kind)
{
	return kind->feature == 0 || virtio_has(&bd->dev, kind->feature);
}

/* Which queue is what: consecutive numbers, or the specification's if a queue is
 * enabled that consecutive numbers do not reach. */
static void assign_kinds(struct balloon_dev *bd)
{
	const struct virtio_dev *dev = &bd->dev;
	unsigned count = 0;
	bool by_spec = false;

	memset(bd->kinds, 0, sizeof(bd->kinds));
	for (unsigned k = 0; k < KIND_COUNT; k++)
		if (exists(bd, &kinds[k]))
			bd->kinds[count++] = &kinds[k];
	for (unsigned qi = count; qi < dev->queue_count; qi++)
		by_spec = by_spec || dev->queues[qi].enabled;
	if (!by_spec)
		return;
	for (unsigned k = 0; k < KIND_COUNT; k++)
		bd->kinds[k] = exists(bd, &kinds[k]) ? &kinds[k] : NULL;
}

static void return_chains(struct balloon_dev *bd, struct virtq *q, const struct kind *kind,
			  const struct turn *t)
{
	if (kind->before_return)
		kind->before_return(bd);
	for (unsigned i = 0; i < t->done; i++)
		virtq_push(q, t->heads[i], 0);
	if (t->done)
		virtq_notify(q);
	if (kind->after_return)
		kind->after_return(bd);
}

/* Takes up the next chain.  False when there is none. */
static bool next_chain(struct walk *w, struct virtq *q)
{
	if (w->active)
		return true;
	if (virtq_pop(q, &w->chain) <= 0)
		return false;
	w->active = true;
	w->faulty = false;
	w->off = 0;
	w->buffer = 0;
	w->buffer_off = 0;
	return true;
}

static void finish_chain(struct balloon_dev *bd, const struct kind *kind, struct walk *w,
			 struct turn *t)
{
	w->active = false;
	if (w->faulty)
		counter_inc(CTR_balloon_bad_request);
	if (kind->work != work_stats)
		t->heads[t->done++] = w->chain.head;
}

static void balloon_queue_ready(struct virtio_dev *dev, unsigned qi)
{
	struct balloon_dev *bd = of(dev);
	const struct kind *kind = qi < dev->queue_count ? bd->kinds[qi] : NULL;
	struct virtq *q = &dev->queues[qi];
	struct turn t = { .chains = TURN_CHAINS };
	struct walk *w;
	bool more = true;

	if (!kind || !q->enabled)
		return; /* a kick for a queue that means nothing to this driver */
	w = &bd->walks[kind - kinds];
	t.pages = kind->pages_per_turn;
	if (kind->before_work)
		kind->before_work(bd);
	virtq_kicks_off(q);
	while (more && t.chains > 0 && t.pages > 0) {
		t.chains--;
		if (!next_chain(w, q))
			more = !q->broken && virtq_kicks_on(q);
		else if (kind->work(bd, w, &t))
			finish_chain(bd, kind, w, &t);
	}
	return_chains(bd, q, kind, &t);
	if (more)
		virtio_requeue(dev, qi);
}

/* ---- configuration space ----------------------------------------------------- */

static void config_image(const struct balloon_dev *bd, uint8_t *image)
{
	struct config_space c = {
		.num_pages = htole32(bd->target_pages),
		.actual = htole32(bd->actual_pages),
		.free_page_hint_cmd_id = htole32(bd->cmd_id),
		.poison_val = htole32(bd->poison),
	};

	memcpy(image, &c, sizeof(c));
}

static void balloon_config_read(struct virtio_dev *dev, uint32_t off, void *buf, uint32_t len)
{
	uint8_t image[sizeof(struct config_space)];

	VERIFY(off <= sizeof(image) && len <= sizeof(image) - off);
	config_image(of(dev), image);
	memcpy(buf, image + off, len);
}

static bool is_within(uint32_t off, uint32_t len, size_t field)
{
	return off >= field && off + len <= field + CONFIG_FIELD_BYTES;
}

static void balloon_config_write(struct virtio_dev *dev, uint32_t off, const void *buf,
				 uint32_t len)
{
	struct balloon_dev *bd = of(dev);
	uint8_t image[sizeof(struct config_space)];
	struct config_space c;

	VERIFY(off <= sizeof(image) && len <= sizeof(image) - off);
	config_image(bd, image);
	memcpy(image + off, buf, len);
	memcpy(&c, image, sizeof(c));
	if (is_within(off, len, CONFIG_ACTUAL))
		bd->actual_pages = le32toh(c.actual);
	else if (is_within(off, len, CONFIG_POISON) && virtio_has(dev, F_PAGE_POISON))
		bd->poison = le32toh(c.poison_val);
	else
		counter_inc(CTR_virtio_bad_access); /* num_pages and cmd_id are ours */
}

/* ---- life -------------------------------------------------------------------- */

static void balloon_start(struct virtio_dev *dev)
{
	struct balloon_dev *bd = of(dev);
	uint64_t every_ns = (uint64_t)bd->stats_interval_s * NS_PER_S;

	assign_kinds(bd);
	if (every_ns && virtio_has(dev, F_STATS_VQ))
		set_timer(bd->stats_fd, every_ns, every_ns);
}

/* Pages in the balloon are the guest's again, unread statistics are void.  What
 * the host asked for (target_pages), and totals, stay. */
static int balloon_reset(struct virtio_dev *dev)
{
	struct balloon_dev *bd = of(dev);

	set_timer(bd->stats_fd, 0, 0);
	memset(bd->kinds, 0, sizeof(bd->kinds));
	for (unsigned k = 0; k < KIND_COUNT; k++)
		bd->walks[k].active = false;
	balloon_forget(bd->balloon);
	bd->actual_pages = 0;
	bd->poison = 0;
	bd->cmd_id = CMD_ID_STOP;
	bd->hint = HINT_IDLE;
	bd->stats_held = false;
	balloon_stats_unknown(&bd->stats);
	return 0;
}

static void close_timer(struct virtio_dev *dev, int fd)
{
	if (fd < 0)
		return;
	virtio_unwatch_fd(dev, fd);
	close(fd);
}

static void balloon_dev_destroy(struct virtio_dev *dev)
{
	struct balloon_dev *bd = of(dev);

	close_timer(dev, bd->flush_fd);
	close_timer(dev, bd->stats_fd);
	balloon_destroy(&bd->balloon);
	virtio_dev_fini(dev);
	free(bd);
}

static const struct virtio_dev_ops balloon_ops = {
	.name = "virtio-balloon",
	.type = 5,
	.class = 0x00ff00, /* none of the classes */
	.config_read = balloon_config_read,
	.config_write = balloon_config_write,
	.start = balloon_start,
	.queue_ready = balloon_queue_ready,
	.reset = balloon_reset,
	.destroy = balloon_dev_destroy,
};

static uint64_t features_of(const struct virtio_balloon_config *cfg)
{
	uint64_t f = F_MUST_TELL_HOST | F_STATS_VQ;

	if (cfg->deflate_on_oom)
		f |= F_DEFLATE_ON_OOM;
	if (cfg->hinting)
		f |= F_FREE_PAGE_HINT;
	if (cfg->poison)
		f |= F_PAGE_POISON;
	if (cfg->reporting)
		f |= F_REPORTING;
	return f;
}

static int open_timer(struct virtio_dev *dev, int *out,
		      void (*fn)(struct virtio_dev *dev, unsigned events), struct err *e)
{
	int fd, rc;

	fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
	if (fd < 0)
		return err_sys(e, -errno, "balloon: cannot create a timer");
	rc = virtio_watch_fd(dev, fd, VIRTIO_FD_IN, fn);
	if (rc) {
		close(fd);
		return err_sys(e, rc, "balloon: cannot watch a timer");
	}
	*out = fd;
	return 0;
}

int virtio_balloon_create(struct virtio_dev **out, const struct virtio_env *env,
			  const struct virtio_balloon_config *cfg, struct err *e)
{
	unsigned queues = cfg->hinting || cfg->reporting ? QUEUES_ALL : QUEUES_PLAIN;
	struct balloon_dev *bd;
	int rc;

	bd = calloc(1, sizeof(*bd));
	if (!bd)
		return err_sys(e, -ENOMEM, "balloon: no memory for the device");
	virtio_dev_init(&bd->dev, &balloon_ops, env, "balloon", queues, QUEUE_SIZE);
	bd->dev.features_offered = features_of(cfg);
	bd->dev.config_bytes = sizeof(struct config_space);
	bd->stats_interval_s = cfg->stats_interval_s;
	bd->flush_fd = -1;
	bd->stats_fd = -1;
	balloon_stats_unknown(&bd->stats);
	rc = balloon_create(&bd->balloon, env->ram, NULL, e);
	if (!rc)
		rc = open_timer(&bd->dev, &bd->flush_fd, flush_due, e);
	if (!rc)
		rc = open_timer(&bd->dev, &bd->stats_fd, stats_due, e);
	if (rc)
		balloon_dev_destroy(&bd->dev);
	else
		*out = &bd->dev;
	return rc;
}

/* ---- for the control socket and policy --------------------------------------- */

int virtio_balloon_set_target(struct virtio_dev *dev, uint64_t target_bytes)
{
	struct balloon_dev *bd = of(dev);
	uint32_t pages = (uint32_t)(target_bytes >> PAGE_SHIFT);

	if (target_bytes > ram_size_bytes(dev->env.ram))
		return -EINVAL;
	pthread_mutex_lock(&dev->lock);
	if (bd->target_pages != pages) {
		bd->target_pages = pages;
		virtio_config_changed(dev);
	}
	pthread_mutex_unlock(&dev->lock);
	return 0;
}

void virtio_balloon_status(struct virtio_dev *dev, struct balloon_status *s,
			   struct balloon_guest_stats *guest)
{
	struct balloon_dev *bd = of(dev);

	pthread_mutex_lock(&dev->lock);
	*s = (struct balloon_status){
		.driver_ready = virtio_running(dev),
		.features = dev->features,
		.target_bytes = (uint64_t)bd->target_pages << PAGE_SHIFT,
		.actual_bytes = (uint64_t)bd->actual_pages << PAGE_SHIFT,
		.ballooned_bytes = balloon_pages(bd->balloon) << PAGE_SHIFT,
		.reported_bytes = bd->reported_pages << PAGE_SHIFT,
		.hinted_bytes = bd->round_pages << PAGE_SHIFT,
		.poison = virtio_has(dev, F_PAGE_POISON) ? bd->poison : UINT64_MAX,
		.hinting_active = bd->hint != HINT_IDLE,
	};
	if (guest)
		*guest = bd->stats;
	pthread_mutex_unlock(&dev->lock);
}
