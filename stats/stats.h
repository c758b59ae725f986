/*
 * stats/: the floor every other room stands on.
 *
 * What lives here: the one-sentence error (struct err), the log, the checks
 * for our own bugs (VERIFY, ASSERT), thread roles and their CPUs, counters and
 * gauges (which others may read as a file: shm.h), the parsing and printing of sizes,
 * and the nearest of some names.
 *
 * Threads: everything here may be called from any thread unless its comment
 * says otherwise.  Nothing here blocks except writing a log line to its fd.
 *
 * Invariants:
 *  I1  A guest can never make the log grow without bound: whatever a guest can
 *      trigger is logged through log_guest(), limited per call site.
 *  I2  Guest and operator input is never asserted.  VERIFY and ASSERT are for
 *      our own bugs only.
 */
#ifndef BRIM_STATS_H
#define BRIM_STATS_H

#include <sched.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifndef BRIM_VERSION
#define BRIM_VERSION "0.1.0"
#endif

#define ARRAY_LEN(a) (sizeof(a) / sizeof((a)[0]))

#define KiB ((uint64_t)1 << 10)
#define MiB ((uint64_t)1 << 20)
#define GiB ((uint64_t)1 << 30)
#define TiB ((uint64_t)1 << 40)

/* ---- errors ------------------------------------------------------------ */

/* One human sentence, filled in at the place that knows.  No newline, no
 * trailing full stop, no program name: `disk /srv/a.img: no such file`. */
struct err {
	char msg[512];
};

/* Formats into `e` (which may be NULL) and returns `code`, so that a setup path
 * can write `return err_set(e, -ENOENT, "kernel %s: ...", path);`. */
int err_set(struct err *e, int code, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));

/* As err_set() with `: strerror(-code)` added. `code` is a negative errno. */
int err_sys(struct err *e, int code, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));

/* ---- checks for our own bugs ------------------------------------------- */

/* Prints a panic record (version, role, place, backtrace) and aborts. */
_Noreturn void brim_panic(const char *file, int line, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));

#define VERIFY(cond)                                                     \
	do {                                                             \
		if (__builtin_expect(!(cond), 0))                        \
			brim_panic(__FILE__, __LINE__, "%s", #cond);     \
	} while (0)

#ifdef BRIM_DEBUG
#define ASSERT(cond) VERIFY(cond)
#else
#define ASSERT(cond) ((void)sizeof(!(cond)))
#endif

/* ---- thread roles ------------------------------------------------------ */

enum role {
	ROLE_NONE,   /* not set: tests, tools, start-up */
	ROLE_LOOP,   /* a VM's event loop: all device work, the control socket */
	ROLE_VCPU,   /* a vCPU thread: KVM_RUN and register emulation only */
	ROLE_CLI,    /* the `brim` command */
	ROLE_FAULT,  /* brings pages back; waits for nothing but chunk locks */
	ROLE_RECLAIM, /* finds cold pages and takes them */
	ROLE_SHARE,  /* finds equal pages */
	ROLE_WORKER, /* start-up work that may block, joined before the guest runs */
};

void role_set(enum role r);
enum role role_get(void);
const char *role_name(enum role r);

/* Where the calling thread runs, kept up to date by the kernel (restartable sequences,
 * glibc 2.35) for as long as the thread lives.  NULL: not on this machine. */
const uint32_t *thread_cpu_word(void);
/* What such a word says now: a CPU, or -1.  Any thread. */
int thread_cpu_read(const uint32_t *word);

/* A thread held on one CPU.  Zeroed: it is not. */
struct thread_hold {
	bool is_held;
	cpu_set_t was, one;
};
/* Has the thread run on that CPU only.  -EALREADY: it is bound by its user already;
 * -EINVAL: it may not run there; or another -errno. Any thread, of any of the process's. */
int thread_hold(struct thread_hold *h, pid_t tid, int cpu);
/* It may run where it might before; a pin that somebody set meanwhile stays. */
void thread_release(struct thread_hold *h, pid_t tid);
/* How long a thread of this process has been ready to run and had no CPU, since it
 * began; -errno where the kernel does not say. */
int64_t thread_waited_ns(pid_t tid);

/* True in a thread of role r, and in threads that never set one (tests). */
#define ASSERT_ROLE(r) ASSERT(role_get() == (r) || role_get() == ROLE_NONE)

/* ---- log --------------------------------------------------------------- */

enum log_level { LOG_ERROR, LOG_WARN, LOG_INFO, LOG_DEBUG };

/* `prefix` is copied (a VM's name). `fd` stays the caller's. Call once, before
 * other threads start.  Default: fd 2, prefix "brim", LOG_INFO. */
void log_init(const char *prefix, int fd, enum log_level max);
void log_line(enum log_level level, const char *fmt, ...)
	__attribute__((format(printf, 2, 3)));

struct log_limit { _Atomic uint64_t window_ns; _Atomic uint32_t n; };
bool log_limit_ok(struct log_limit *l);

#define log_error(...) log_line(LOG_ERROR, __VA_ARGS__)
#define log_warn(...) log_line(LOG_WARN, __VA_ARGS__)
#define log_info(...) log_line(LOG_INFO, __VA_ARGS__)
#define log_debug(...) log_line(LOG_DEBUG, __VA_ARGS__)

/* For whatever a guest can trigger: at most 5 lines a minute per call site. */
#define log_guest(...)                                                   \
	do {                                                             \
		static struct log_limit limit_;                          \
		if (log_limit_ok(&limit_))                               \
			log_line(LOG_WARN, __VA_ARGS__);                 \
	} while (0)

/* ---- counters, gauges, histograms ---------------------------------------- */

/* Every counter is a row of counters.def: COUNTER(name, unit, sentence). */
enum counter {
#define COUNTER(name, unit, help) CTR_##name,
#include "counters.def"
#undef COUNTER
	CTR_COUNT_
};

struct counter_info {
	const char *name;
	const char *unit;
	const char *help;
};

/* As counters: rows of gauges.def. */
enum gauge {
#define GAUGE(name, unit, help) GAUGE_##name,
#include "gauges.def"
	GAUGE_COUNT_
};

enum histogram {
#define HISTOGRAM(name, unit, help) HIST_##name,
#include "gauges.def"
	HIST_COUNT_
};

/* Bucket 0 counts what is 0, bucket n what is 2^(n-1) to 2^n - 1, the last one all above. */
#define HIST_BUCKETS 40u

extern const struct counter_info counter_table[CTR_COUNT_];
extern const struct counter_info gauge_table[GAUGE_COUNT_];
extern const struct counter_info histogram_table[HIST_COUNT_];

/* Whole pages, so that a file can be mapped over them (shm.h): then who may read that
 * file sees every change at once, and nothing here costs more than without it. */
#define STAT_ALIGN_BYTES 4096
struct stat_values {
	_Atomic uint64_t counter[CTR_COUNT_];
	_Atomic uint64_t gauge[GAUGE_COUNT_];
	_Atomic uint64_t histogram[HIST_COUNT_][HIST_BUCKETS];
} __attribute__((aligned(STAT_ALIGN_BYTES)));
extern struct stat_values stat_values;

static inline void counter_add(enum counter c, uint64_t n)
{
	atomic_fetch_add_explicit(&stat_values.counter[c], n, memory_order_relaxed);
}

static inline void counter_inc(enum counter c)
{
	counter_add(c, 1);
}

static inline uint64_t counter_get(enum counter c)
{
	return atomic_load_explicit(&stat_values.counter[c], memory_order_relaxed);
}

/* What a gauge is while nobody knows. */
#define GAUGE_UNKNOWN UINT64_MAX

static inline void gauge_set(enum gauge g, uint64_t v)
{
	atomic_store_explicit(&stat_values.gauge[g], v, memory_order_relaxed);
}

static inline uint64_t gauge_get(enum gauge g)
{
	return atomic_load_explicit(&stat_values.gauge[g], memory_order_relaxed);
}

static inline unsigned histogram_bucket(uint64_t v)
{
	unsigned b = v ? 64 - (unsigned)__builtin_clzll(v) : 0;

	return b < HIST_BUCKETS ? b : HIST_BUCKETS - 1;
}

static inline void histogram_add(enum histogram h, uint64_t v)
{
	atomic_fetch_add_explicit(&stat_values.histogram[h][histogram_bucket(v)], 1,
				  memory_order_relaxed);
}

/* ---- sizes and time ---------------------------------------------------- */

/* "64M", "1.5G", "24 GiB", "4096": bytes, binary units K M G T with an optional
 * "iB" or "B", a fraction allowed with a unit.  -EINVAL names what was wrong,
 * -ERANGE when it does not fit. *bytes is written only on success. */
int size_parse(const char *text, uint64_t *bytes, struct err *e);

/* "24.0 GiB", "1536 KiB", "0": at most 4 significant digits. Returns buf. */
const char *size_format(char *buf, size_t buf_len, uint64_t bytes);

uint64_t now_ns(void); /* CLOCK_MONOTONIC */

/* ---- names ------------------------------------------------------------- */

#define NEAR_MAX 64 /* longer words are not compared */

/* The one of `names` most like `text`, NULL when none is near. */
const char *nearest(const char *text, const char *const *names, size_t count);

#endif
