/*
 * The VM's memory engine: made when it is first needed, steered by the control
 * socket, told of in its status.
 *
 *   (none) --limit or reclaim, or a limit at start--> running --machine ends--> gone
 *          --a brimd to share through---------------->
 *
 * A VM with a swap file has one from its start, since a file that is not there, or too
 * small, is to be known then.
 *
 * A VM nobody limits, and that does not share, has none: no thread, no scan, no table, and no need for the
 * right to use userfaultfd.  Once made it stays for this boot; a limit of 0 only
 * puts it to sleep, since pages may be away.
 *
 * A page that cannot be brought back ends the VM.  The vCPU that touched it sleeps
 * in the kernel until it is interrupted, which the orderly end does; but it may as
 * well have been the event loop itself.  So a watchdog ends the process where the
 * orderly end does not come.  The userfaultfd is not closed before: that would wake
 * the sleepers to a page of zeroes.
 *
 * Others sleep there that no signal reaches: the kernel's workers for KVM's asynchronous
 * page faults, for which closing KVM waits, and I/O in flight, for which devices do.  So
 * once no vCPU runs, memory_give_up() makes errors of their sleep.
 *
 * Threads: the loop thread, but for lost_page() and the watchdog.
 */
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "mm/swap/swap.h"
#include "vmm/internal.h"

#define WATCHDOG_S 5

/* ---- a lost page --------------------------------------------------------------- */

static struct {
	pthread_mutex_t lock;
	struct engine *e; /* of a VM that lost a page and has not ended */
} lost = { .lock = PTHREAD_MUTEX_INITIALIZER };

/* The event loop touched a page that is given up: there is nothing it could go on with. */
static void end_now(int sig)
{
	(void)sig;
	_exit(1);
}

static struct sigaction before_end; /* what SIGSEGV did; the loop thread's */

static void give_up(struct engine *e, struct sigaction *old)
{
	const struct sigaction sa = { .sa_handler = end_now };

	VERIFY(sigaction(SIGSEGV, &sa, old) == 0);
	engine_give_up(e);
}

void memory_give_up(struct machine *m)
{
	if (m->engine)
		give_up(m->engine, &before_end);
}

static void *watchdog(void *arg)
{
	(void)arg;
	sleep(WATCHDOG_S);
	log_error("the VM did not end within %d s: killing it", WATCHDOG_S);
	pthread_mutex_lock(&lost.lock);
	if (lost.e)
		give_up(lost.e, NULL); /* or not even exit could end it */
	_exit(1);
}

/* Any thread, once. */
static void lost_page(void *ctx, const char *why)
{
	struct machine *m = ctx;
	pthread_t t;

	log_error("%s", why);
	pthread_mutex_lock(&lost.lock);
	lost.e = m->engine;
	pthread_mutex_unlock(&lost.lock);
	machine_end(m, VM_END_ERROR, "%s", why);
	if (pthread_create(&t, NULL, watchdog, NULL))
		_exit(1);
	pthread_detach(t);
}

/* ---- vCPU threads, as the engine needs to know them ------------------------------ */

static struct vcpu *vcpu_of(struct machine *m, uint32_t tid)
{
	for (unsigned i = 0; i < m->cfg->cpus; i++)
		if ((uint32_t)atomic_load(&m->vcpus[i].tid) == tid)
			return &m->vcpus[i];
	return NULL;
}

/* Fault threads ask, while the vCPU's thread sleeps in a fault or has just been woken. */
static int cpu_of_vcpu(void *ctx, uint32_t tid)
{
	struct vcpu *v = vcpu_of(ctx, tid);

	return v ? thread_cpu_read(atomic_load(&v->cpu_word)) : -1;
}

static int hold_vcpu(void *ctx, uint32_t tid, int cpu)
{
	struct vcpu *v = vcpu_of(ctx, tid);

	return v ? vcpu_hold(v, cpu) : -ESRCH;
}

static int64_t vcpu_waited_ns(void *ctx, uint32_t tid)
{
	(void)ctx;
	return thread_waited_ns((pid_t)tid);
}

/* ---- making and ending it -------------------------------------------------------- */

/* A dump would have the swap file's key: in the library's memory, and, where something is
 * just being encrypted, in registers, which no advice on memory keeps out.  One byte is too
 * little for a file, and the one limit at which the kernel starts no handler either: where
 * core_pattern is a pipe, 0 does not keep it from that.  EPERM: the administrator's limit
 * is 0, and cannot be raised to 1. */
static int forbid_core_dumps(struct err *e)
{
	const struct rlimit one = { 1, 1 };

	if (!setrlimit(RLIMIT_CORE, &one) || errno == EPERM)
		return 0;
	return err_sys(e, -errno, "swap: cannot forbid core dumps");
}

int memory_make(struct machine *m, struct err *e)
{
	const struct vm_swap *v = &m->cfg->swap;
	const struct swap_disk_config disk = { .path = v->path, .size_bytes = v->size_bytes,
					       .encrypt = v->encrypt, .force = v->force };
	struct swap_config sc = { .max_pages = m->cfg->memory_bytes >> PAGE_SHIFT,
				  .cap_bytes = m->cfg->pool_cap_bytes,
				  .delta = m->cfg->pool_delta,
				  .acceleration = (int)m->cfg->pool_acceleration,
				  .refine = m->cfg->pool_refine ? SWAP_REFINE_ON : SWAP_REFINE_OFF,
				  .disk = v->path[0] ? &disk : NULL };
	struct engine_config ec = {
		.ram = m->ram, .tier = sc.disk ? &swap_tier_disk : &swap_tier,
		.fault_threads = m->cfg->cpus, .fatal = lost_page, .fatal_ctx = m,
		.touchers = { .ctx = m, .cpu_of = cpu_of_vcpu, .hold = hold_vcpu,
			      .waited_ns = vcpu_waited_ns },
	};
	int rc = v->encrypt ? forbid_core_dumps(e) : 0;

	if (!rc)
		rc = swap_create(&m->swap, &sc, e);
	if (!rc)
		rc = sharing_create(m, e);
	ec.tier_ctx = m->swap;
	ec.leaving = m->ksm ? ksm_leaving : NULL;
	ec.leaving_ctx = m->ksm;
	if (!rc)
		rc = engine_create(&m->engine, &ec, e);
	if (rc) {
		swap_destroy(&m->swap);
		ksm_destroy(&m->ksm);
		return rc;
	}
	swap_attach(m->swap, m->engine);
	if (m->ksm)
		ksm_attach(m->ksm, m->engine, m->ram);
	return 0;
}

void memory_fini(struct machine *m)
{
	sharing_stop(m);
	pthread_mutex_lock(&lost.lock);
	lost.e = NULL;
	pthread_mutex_unlock(&lost.lock);
	if (m->engine)
		VERIFY(sigaction(SIGSEGV, &before_end, NULL) == 0);
	engine_destroy(&m->engine);
	ksm_destroy(&m->ksm); /* the store: until then pages were served from it */
	swap_destroy(&m->swap);
}

int memory_init(struct machine *m, struct err *e)
{
	int rc = m->cfg->swap.path[0] ? memory_make(m, e) : 0;

	if (!rc && m->cfg->memory_limit_bytes)
		rc = memory_limit(m, m->cfg->memory_limit_bytes, e);
	return rc ? rc : sharing_init(m, e);
}

int memory_limit(struct machine *m, uint64_t bytes, struct err *e)
{
	int rc = 0;

	if (!m->engine && bytes)
		rc = memory_make(m, e);
	if (!rc && m->engine)
		engine_limit(m->engine, bytes);
	return rc;
}

int memory_reclaim(struct machine *m, uint64_t bytes, struct err *e)
{
	int rc = m->engine ? 0 : memory_make(m, e);

	if (!rc)
		engine_reclaim(m->engine, bytes);
	return rc;
}

/* ---- what it says of itself -------------------------------------------------------- */

static json_int_t bytes_of(uint64_t pages)
{
	return (json_int_t)(pages << PAGE_SHIFT);
}

/* [[passes, bytes], ...]: present memory not written for at least so many passes. */
static json_t *cold_json(const struct engine_stats *s)
{
	json_t *list = json_array();

	for (unsigned passes = 1; passes < ENGINE_AGES; passes *= 2) {
		uint64_t pages = 0;

		for (unsigned a = passes; a < ENGINE_AGES; a++)
			pages += s->age_pages[a];
		json_array_append_new(list, json_pack("[i,I]", (int)passes, bytes_of(pages)));
	}
	return list;
}

/* What went wrong with the file, whether anybody noticed or not. */
static json_int_t disk_failures(void)
{
	return (json_int_t)(counter_get(CTR_swap_disk_write_errors) +
			    counter_get(CTR_swap_disk_read_errors) +
			    counter_get(CTR_engine_disk_errors) + counter_get(CTR_swap_disk_bad));
}

static json_int_t counted(enum counter c)
{
	return (json_int_t)counter_get(c);
}

json_t *memory_json(const struct machine *m)
{
	struct engine_stats s;
	struct swap_stats pool;

	if (!m->engine)
		return json_null();
	engine_stats(m->engine, &s);
	swap_stats(m->swap, &pool);
	return json_pack("{s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:I,"
			 "s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:o}",
			 "limit_bytes", (json_int_t)s.limit_bytes,
			 "wanted_bytes", (json_int_t)s.wanted_bytes,
			 "present_bytes", bytes_of(s.present_pages),
			 "staged_bytes", bytes_of(s.staged_pages),
			 "filled_bytes", bytes_of(s.filled_pages),
			 "packed_bytes", bytes_of(s.packed_pages),
			 "refined_bytes", bytes_of(pool.refined_pages),
			 "stored_bytes", bytes_of(s.stored_pages),
			 "mapped_bytes", bytes_of(s.shared_pages),
			 "broken_bytes", bytes_of(s.broken_pages),
			 "map_vmas", (json_int_t)s.map_vmas,
			 "map_vmas_most", (json_int_t)s.map_vmas_most,
			 "map_least_run", (json_int_t)s.map_least_run,
			 "delta_bytes", bytes_of(pool.delta_pages),
			 "delta_saved_bytes", (json_int_t)pool.delta_saved_bytes,
			 "delta_orphan_bytes", (json_int_t)pool.orphan_bytes,
			 "pool_bytes", (json_int_t)s.tier_bytes,
			 "pool_overhead_bytes", (json_int_t)(pool.hole_bytes + pool.table_bytes +
							    pool.batch_bytes),
			 "disk_bytes", bytes_of(pool.disk_pages),
			 "disk_live_bytes", (json_int_t)pool.disk_bytes,
			 "disk_used_bytes", (json_int_t)pool.disk_used_bytes,
			 "disk_size_bytes", (json_int_t)pool.disk_size_bytes,
			 "disk_read_bytes", counted(CTR_swap_disk_read_bytes),
			 "disk_written_bytes", counted(CTR_swap_spilled_bytes),
			 "disk_failures", disk_failures(),
			 "own_bytes", (json_int_t)s.own_bytes, "cold_bytes", cold_json(&s));
}

uint64_t memory_away_bytes(const struct machine *m)
{
	struct engine_stats s;

	if (!m->engine)
		return 0;
	engine_stats(m->engine, &s);
	return (s.staged_pages << PAGE_SHIFT) + s.tier_bytes;
}
