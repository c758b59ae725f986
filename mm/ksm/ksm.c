/*
 * The share thread: made, started and stopped; what it waits for, and its pace.
 *
 * A step waits for a message of brimd, for what is due by the clock, or to be stopped; then
 * it reads some messages and does some work.  After each it rests, so long that its CPU time
 * stays the share of one CPU it was given, and the pages it handled below those it may
 * handle in a second; meanwhile nothing is read either, since each message is work.  It is
 * stopped at once all the same.  It does not rest until it has looked up what was loaded
 * before the guest began: that is bounded, also by the clock, and each moment later the guest
 * has changed more.
 *
 * Without a brimd it tries to connect once in a while, and the engine makes no passes for it.
 */
#include "mm/ksm/internal.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#define NS_S 1000000000u
#define LOADED_NS (10 * (uint64_t)NS_S)
#define READ_MAX 8u /* messages a step */
#define WORK_MAX 4u

const char *ksm_state_name(enum ksm_state s)
{
	static const char *const names[] = {
		[KSM_WAITING] = "waiting", [KSM_JOINING] = "joining",
		[KSM_CONNECTED] = "connected", [KSM_REFUSED] = "refused",
	};

	return names[s];
}

void ksm_status(struct ksm *k, struct ksm_status *out)
{
	pthread_mutex_lock(&k->lock);
	*out = k->status;
	pthread_mutex_unlock(&k->lock);
}

/* ---- a step ----------------------------------------------------------------------- */

static uint64_t due_ns(const struct ksm *k)
{
	if (k->fd < 0)
		return k->retry_at_ns;
	if (k->link == LINK_OPEN)
		return k->out_bytes ? UINT64_MAX : scan_due_ns(k);
	return k->link == LINK_HOLDING && !k->out_bytes ? 0 : UINT64_MAX;
}

static int poll_ms(uint64_t now, uint64_t due, int timeout_ms)
{
	uint64_t ms = due > now ? (due - now + 999999) / 1000000 : 0;

	if (due == UINT64_MAX)
		return timeout_ms;
	return timeout_ms < 0 || ms < (uint64_t)timeout_ms ? (int)ms : timeout_ms;
}

/* One look at the clock: who does not listen to brimd must not sleep for ever. */
static void wait_for_work(const struct ksm *k, int timeout_ms)
{
	uint64_t now = now_ns();
	bool rests = k->rest_until_ns > now;
	struct pollfd p[] = {
		{ .fd = k->stop_fd, .events = POLLIN },
		{ .fd = rests ? -1 : k->fd,
		  .events = (short)(POLLIN | (k->out_bytes ? POLLOUT : 0)) },
	};

	poll(p, ARRAY_LEN(p), poll_ms(now, rests ? k->rest_until_ns : due_ns(k), timeout_ms));
}

static uint64_t cpu_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
	return (uint64_t)t.tv_sec * NS_S + (uint64_t)t.tv_nsec;
}

/* So long that what was just done is within both bounds. */
static void rest(struct ksm *k, uint64_t cpu, uint64_t wall)
{
	uint64_t least = cpu * 100 / k->cfg.cpu_pct;
	uint64_t pages = k->cfg.pages_per_s ? k->paced_pages * NS_S / k->cfg.pages_per_s : 0;

	least = pages > least ? pages : least;
	if (least > wall && !(k->hurries && now_ns() < k->loaded_until_ns))
		k->rest_until_ns = now_ns() + least - wall;
}

static void work(struct ksm *k)
{
	link_try(k);
	if (k->fd < 0)
		return;
	link_push(k);
	for (unsigned i = 0; i < READ_MAX && link_read(k); i++)
		;
	for (unsigned i = 0; i < WORK_MAX && scan_work(k); i++)
		;
}

void ksm_step(struct ksm *k, int timeout_ms)
{
	uint64_t cpu, wall;

	wait_for_work(k, timeout_ms);
	if (k->rest_until_ns > now_ns() || atomic_load(&k->stopping))
		return;
	cpu = cpu_ns();
	wall = now_ns();
	k->paced_pages = 0;
	work(k);
	rest(k, cpu_ns() - cpu, now_ns() - wall);
}

static void *share_main(void *arg)
{
	struct ksm *k = arg;

	role_set(ROLE_SHARE);
	pthread_setname_np(pthread_self(), "share");
	while (!atomic_load(&k->stopping))
		ksm_step(k, -1);
	return NULL;
}

/* ---- create and destroy ---------------------------------------------------------------- */

static void set_config(struct ksm *k, const struct ksm_config *cfg)
{
	k->cfg = *cfg;
	snprintf(k->socket, sizeof(k->socket), "%s", cfg->socket ? cfg->socket : "");
	snprintf(k->vm, sizeof(k->vm), "%s", cfg->vm);
	snprintf(k->group, sizeof(k->group), "%s", cfg->group);
	k->cfg.socket = k->cfg.vm = k->cfg.group = NULL;
	k->cfg.cpu_pct = cfg->cpu_pct ? cfg->cpu_pct : KSM_CPU_PCT;
	k->cfg.pass_ns = cfg->pass_ns ? cfg->pass_ns : KSM_PASS_NS;
	k->cfg.retry_ns = cfg->retry_ns ? cfg->retry_ns : NS_S;
	k->cfg.loaded_ns = cfg->loaded_ns ? cfg->loaded_ns : LOADED_NS;
}

static int allocate(struct ksm *k)
{
	size_t same = wire_entries_max(WIRE_OFFER) > BATCH_PAGES ? wire_entries_max(WIRE_OFFER)
								 : BATCH_PAGES;

	k->ring = ksm_map_lazily(RING_PAGES * sizeof(*k->ring));
	k->later = malloc(LATER_PAGES * sizeof(*k->later));
	k->same = malloc(same * sizeof(*k->same));
	k->releasing = malloc(wire_entries_max(WIRE_RELEASE) * sizeof(*k->releasing));
	k->stop_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (k->stop_fd < 0)
		return -errno;
	return k->ring && k->later && k->same && k->releasing ? 0 : -ENOMEM;
}

int ksm_create(struct ksm **out, const struct ksm_config *cfg, struct err *e)
{
	struct ksm *k = calloc(1, sizeof(*k));
	int rc;

	VERIFY(cfg->vm && cfg->group && cfg->cpu_pct <= 100);
	if (!k)
		return err_sys(e, -ENOMEM, "sharing: no room for it");
	k->fd = k->store_fd = k->stop_fd = -1;
	pthread_mutex_init(&k->lock, NULL);
	set_config(k, cfg);
	rc = allocate(k);
	if (rc) {
		ksm_destroy(&k);
		return err_sys(e, rc, "sharing: no room for its tables");
	}
	*out = k;
	return 0;
}

void ksm_attach(struct ksm *k, struct engine *e, const struct ram *ram)
{
	k->engine = e;
	k->ram = ram;
	k->ram_pages = (uint32_t)(ram_size_bytes(ram) >> PAGE_SHIFT);
}

void ksm_loaded(struct ksm *k, uint64_t index, uint64_t pages)
{
	VERIFY(k->ram && !k->started && index <= k->ram_pages && pages <= k->ram_pages - index);
	k->loaded_until_ns = now_ns() + k->cfg.loaded_ns;
	if (pages && k->loaded_count < KSM_LOADED_MAX)
		k->loaded[k->loaded_count++] =
			(struct loaded){ (uint32_t)index, (uint32_t)(index + pages) };
}

int ksm_start(struct ksm *k, struct err *e)
{
	int rc;

	VERIFY(k->engine && !k->started);
	rc = pthread_create(&k->thread, NULL, share_main, k);
	k->started = rc == 0;
	return rc ? err_sys(e, -rc, "sharing: cannot start its thread") : 0;
}

void ksm_stop(struct ksm *k)
{
	uint64_t one = 1;
	ssize_t n;

	if (!k || !k->started)
		return;
	atomic_store(&k->stopping, true);
	n = write(k->stop_fd, &one, sizeof(one));
	(void)n; /* readable already */
	pthread_join(k->thread, NULL);
	k->started = false;
	atomic_store(&k->is_open, false);
}

void ksm_destroy(struct ksm **kp)
{
	struct ksm *k = *kp;

	*kp = NULL;
	if (!k)
		return;
	ksm_stop(k);
	link_fini(k);
	ksm_unmap(k->ring, RING_PAGES * sizeof(*k->ring));
	free(k->later);
	free(k->same);
	free(k->releasing);
	if (k->stop_fd >= 0)
		close(k->stop_fd);
	pthread_mutex_destroy(&k->lock);
	free(k);
}
