/*
 * The VM's gauges: written once a second, and after each control command, into the file
 * `stats` of the run directory (stats/shm.h), where anybody who may read it sees them, and
 * the process's counters, without asking.
 *
 * Nothing here looks at guest memory, which would take the loop 0.5 ms a GiB: what is
 * resident is told from the process's own account of anonymous memory, of which the kernel
 * keeps a count, less what is not the guest's; see resident_guess().
 *
 * Thread: the loop's.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include "stats/shm.h"
#include "vmm/internal.h"

#define PERIOD_S 1
#define QUIET_BYTES (4 * MiB)
#define COLD_PASSES 32u /* a page not written for so many is outside the working set */

struct publish {
	struct vmm *vmm;
	int timer_fd, statm_fd;
	struct resident_guess resident;
};

/* ---- what is resident ------------------------------------------------------------------ */

/* anonymous memory = guest RAM + staging + pool + the rest, which changes little.  How much
 * that is shows whenever the engine has counted guest RAM and nothing much has happened
 * since; before the first time it is what there was when the VM was not yet built. */
uint64_t resident_guess(struct resident_guess *g, const struct resident_seen *s)
{
	uint64_t change = s->anon_bytes > g->anon_bytes ? s->anon_bytes - g->anon_bytes :
							  g->anon_bytes - s->anon_bytes;
	uint64_t known = s->away_bytes + s->present_bytes;
	uint64_t others;

	if (s->passes != g->passes && s->passes && change <= QUIET_BYTES)
		g->rest_bytes = s->anon_bytes > known ? s->anon_bytes - known : 0;
	g->passes = s->passes;
	g->anon_bytes = s->anon_bytes;
	others = g->rest_bytes + s->away_bytes;
	return s->anon_bytes > others ? s->anon_bytes - others : 0;
}

/* The process's anonymous memory; 0 where the kernel does not say. */
static uint64_t anon_bytes(int statm_fd)
{
	unsigned long size, rss = 0, shared = 0;
	char text[128];
	ssize_t n = pread(statm_fd, text, sizeof(text) - 1, 0);

	if (n <= 0)
		return 0;
	text[n] = '\0';
	if (sscanf(text, "%lu %lu %lu", &size, &rss, &shared) != 3 || shared > rss)
		return 0;
	return (rss - shared) * PAGE_BYTES;
}

/* ---- the books ------------------------------------------------------------------------- */

/* What is nowhere else has no memory: it was never touched, or was given back. */
void books_close(struct books *b)
{
	uint64_t elsewhere = b->resident_bytes + b->staged_bytes + b->filled_bytes + b->packed_bytes +
			     b->stored_bytes + b->mapped_bytes + b->disk_bytes + b->ballooned_bytes;

	b->untouched_bytes = b->memory_bytes > elsewhere ? b->memory_bytes - elsewhere : 0;
	b->gap_bytes = elsewhere > b->memory_bytes ? elsewhere - b->memory_bytes : 0;
}

static void set_books(const struct books *b)
{
	gauge_set(GAUGE_memory_bytes, b->memory_bytes);
	gauge_set(GAUGE_untouched_bytes, b->untouched_bytes);
	gauge_set(GAUGE_resident_bytes, b->resident_bytes);
	gauge_set(GAUGE_staged_bytes, b->staged_bytes);
	gauge_set(GAUGE_filled_bytes, b->filled_bytes);
	gauge_set(GAUGE_packed_bytes, b->packed_bytes);
	gauge_set(GAUGE_stored_bytes, b->stored_bytes);
	gauge_set(GAUGE_mapped_bytes, b->mapped_bytes);
	gauge_set(GAUGE_disk_bytes, b->disk_bytes);
	gauge_set(GAUGE_ballooned_bytes, b->ballooned_bytes);
	gauge_set(GAUGE_books_gap_bytes, b->gap_bytes);
}

void books_of_engine(struct books *b, const struct engine_stats *s)
{
	b->staged_bytes = s->staged_pages << PAGE_SHIFT;
	b->filled_bytes = s->filled_pages << PAGE_SHIFT;
	b->packed_bytes = s->packed_pages << PAGE_SHIFT;
	b->stored_bytes = s->stored_pages << PAGE_SHIFT;
	b->mapped_bytes = s->shared_pages << PAGE_SHIFT;
	b->disk_bytes = s->disk_pages << PAGE_SHIFT;
}

/* ---- the other gauges -------------------------------------------------------------------- */

static uint64_t cold_bytes(const struct engine_stats *s, unsigned passes)
{
	uint64_t pages = 0;

	for (unsigned a = passes; a < ENGINE_AGES; a++)
		pages += s->age_pages[a];
	return pages << PAGE_SHIFT;
}

static void set_cold(const struct engine_stats *s)
{
	static const enum gauge gauges[] = {
		GAUGE_cold1_bytes, GAUGE_cold2_bytes, GAUGE_cold4_bytes, GAUGE_cold8_bytes,
		GAUGE_cold16_bytes, GAUGE_cold32_bytes,
	};

	for (unsigned i = 0; i < ARRAY_LEN(gauges); i++)
		gauge_set(gauges[i], cold_bytes(s, 1u << i));
}

/* Without a pass nothing is known to be cold. */
static void set_working_set(const struct engine_stats *s, uint64_t passes, uint64_t resident_bytes)
{
	uint64_t present = s->present_pages << PAGE_SHIFT, cold = cold_bytes(s, COLD_PASSES);

	gauge_set(GAUGE_working_set_bytes, !passes ? resident_bytes : present > cold ? present - cold : 0);
	gauge_set(GAUGE_present_bytes, present);
	set_cold(s);
}

static void set_engine(const struct engine_stats *s, const struct swap_stats *pool)
{
	gauge_set(GAUGE_pool_bytes, s->tier_bytes);
	gauge_set(GAUGE_pool_overhead_bytes, pool->hole_bytes + pool->table_bytes + pool->batch_bytes);
	gauge_set(GAUGE_own_bytes, s->own_bytes);
	gauge_set(GAUGE_limit_bytes, s->limit_bytes);
	gauge_set(GAUGE_wanted_bytes, s->wanted_bytes);
	gauge_set(GAUGE_broken_bytes, s->broken_pages << PAGE_SHIFT);
	gauge_set(GAUGE_map_vmas, s->map_vmas);
	gauge_set(GAUGE_map_vmas_most, s->map_vmas_most);
	gauge_set(GAUGE_map_least_run, s->map_least_run);
	gauge_set(GAUGE_refined_bytes, pool->refined_pages << PAGE_SHIFT);
	gauge_set(GAUGE_delta_bytes, pool->delta_pages << PAGE_SHIFT);
	gauge_set(GAUGE_delta_saved_bytes, pool->delta_saved_bytes);
	gauge_set(GAUGE_delta_orphan_bytes, pool->orphan_bytes);
	gauge_set(GAUGE_disk_live_bytes, pool->disk_bytes);
	gauge_set(GAUGE_disk_used_bytes, pool->disk_used_bytes);
	gauge_set(GAUGE_disk_size_bytes, pool->disk_size_bytes);
}

static void set_balloon(const struct balloon_status *b)
{
	gauge_set(GAUGE_balloon_ready, b->driver_ready);
	gauge_set(GAUGE_balloon_target_bytes, b->target_bytes);
	gauge_set(GAUGE_balloon_actual_bytes, b->actual_bytes);
	gauge_set(GAUGE_reported_bytes, b->reported_bytes);
	gauge_set(GAUGE_hinted_bytes, b->hinted_bytes);
}

/* UINT64_MAX is what it did not say, and GAUGE_UNKNOWN. */
static void set_guest(const struct balloon_guest_stats *g)
{
	bool said = g->received_ns;

	gauge_set(GAUGE_guest_received_ns, g->received_ns);
	gauge_set(GAUGE_guest_total_bytes, said ? g->total_bytes : GAUGE_UNKNOWN);
	gauge_set(GAUGE_guest_free_bytes, said ? g->free_bytes : GAUGE_UNKNOWN);
	gauge_set(GAUGE_guest_available_bytes, said ? g->available_bytes : GAUGE_UNKNOWN);
	gauge_set(GAUGE_guest_disk_caches_bytes, said ? g->disk_caches_bytes : GAUGE_UNKNOWN);
	gauge_set(GAUGE_guest_swap_in_bytes, said ? g->swap_in : GAUGE_UNKNOWN);
	gauge_set(GAUGE_guest_swap_out_bytes, said ? g->swap_out : GAUGE_UNKNOWN);
	gauge_set(GAUGE_guest_major_faults, said ? g->major_faults : GAUGE_UNKNOWN);
	gauge_set(GAUGE_guest_minor_faults, said ? g->minor_faults : GAUGE_UNKNOWN);
	gauge_set(GAUGE_guest_oom_kills, said ? g->oom_kills : GAUGE_UNKNOWN);
	gauge_set(GAUGE_guest_alloc_stalls, said ? g->alloc_stalls : GAUGE_UNKNOWN);
}

static bool is_sharing(const struct machine *m)
{
	struct ksm_status s = { .state = KSM_WAITING };

	if (m->ksm)
		ksm_status(m->ksm, &s);
	return m->ksm && s.state == KSM_CONNECTED;
}

/* The numbers the API's host states know, not the words of `status`. */
static uint64_t state_of(const struct vmm *vmm)
{
	if (vmm->machine->paused)
		return 2;
	return vmm->stopping ? 3 : 1;
}

static void set_vm(const struct vmm *vmm)
{
	const struct machine *m = vmm->machine;

	gauge_set(GAUGE_state, state_of(vmm));
	gauge_set(GAUGE_vcpus, vmm->cfg.cpus);
	gauge_set(GAUGE_engine, m->engine != NULL);
	gauge_set(GAUGE_sharing, is_sharing(m));
}

/* ---- all of them --------------------------------------------------------------------------- */

static uint64_t set_resident(struct publish *p, const struct engine_stats *s)
{
	uint64_t away = (s->staged_pages << PAGE_SHIFT) + s->tier_bytes, resident, guests;
	struct resident_seen seen = { .anon_bytes = anon_bytes(p->statm_fd),
				      .away_bytes = away, .present_bytes = s->present_pages << PAGE_SHIFT,
				      .passes = counter_get(CTR_engine_passes) };

	resident = resident_guess(&p->resident, &seen);
	if (resident > p->vmm->cfg.memory_bytes)
		resident = p->vmm->cfg.memory_bytes;
	guests = resident + away;
	gauge_set(GAUGE_vmm_bytes, seen.anon_bytes > guests ? seen.anon_bytes - guests : 0);
	return resident;
}

void publish_now(struct publish *p)
{
	struct balloon_guest_stats guest = { 0 };
	struct balloon_status balloon = { 0 };
	struct engine_stats s = { 0 };
	struct swap_stats pool = { 0 };
	const struct machine *m = p ? p->vmm->machine : NULL;
	struct books b;

	if (!m)
		return;
	if (m->engine) {
		engine_stats(m->engine, &s);
		swap_stats(m->swap, &pool);
	}
	if (m->balloon)
		virtio_balloon_status(m->balloon, &balloon, &guest);
	stats_begin();
	b = (struct books){ .memory_bytes = p->vmm->cfg.memory_bytes,
			    .ballooned_bytes = balloon.ballooned_bytes,
			    .resident_bytes = set_resident(p, &s) };
	books_of_engine(&b, &s);
	books_close(&b);
	set_books(&b);
	set_vm(p->vmm);
	set_working_set(&s, s.present_pages ? p->resident.passes : 0, b.resident_bytes);
	set_engine(&s, &pool);
	set_balloon(&balloon);
	set_guest(&guest);
	stats_end();
}

static void on_timer(void *arg, unsigned events)
{
	struct publish *p = arg;
	uint64_t times;

	(void)events;
	if (read(p->timer_fd, &times, sizeof(times)) == (ssize_t)sizeof(times))
		publish_now(p);
}

static int start(struct publish *p, const char *path, struct err *e)
{
	const struct itimerspec every = { { PERIOD_S, 0 }, { PERIOD_S, 0 } };
	int rc;

	p->statm_fd = open("/proc/self/statm", O_RDONLY | O_CLOEXEC);
	if (p->statm_fd < 0)
		return err_sys(e, -errno, "statistics: /proc/self/statm");
	p->resident.rest_bytes = anon_bytes(p->statm_fd);
	p->timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
	if (p->timer_fd < 0)
		return err_sys(e, -errno, "statistics: a timer");
	timerfd_settime(p->timer_fd, 0, &every, NULL);
	rc = loop_watch(p->vmm->loop, p->timer_fd, VIRTIO_FD_IN, on_timer, p);
	return rc ? err_sys(e, rc, "statistics: event loop") : stats_create(path, e);
}

int publish_create(struct publish **out, struct vmm *vmm, const char *path, struct err *e)
{
	struct publish *p = calloc(1, sizeof(*p));
	int rc;

	if (!p)
		return err_set(e, -ENOMEM, "statistics: out of memory");
	*p = (struct publish){ .vmm = vmm, .timer_fd = -1, .statm_fd = -1 };
	rc = start(p, path, e);
	if (rc)
		publish_destroy(&p);
	*out = p;
	return rc;
}

void publish_destroy(struct publish **pp)
{
	struct publish *p = *pp;

	*pp = NULL;
	if (!p)
		return;
	if (p->timer_fd >= 0) {
		loop_unwatch(p->vmm->loop, p->timer_fd);
		close(p->timer_fd);
	}
	if (p->statm_fd >= 0)
		close(p->statm_fd);
	stats_destroy();
	free(p);
}
