/*
 * stats/shm.h: a process's numbers as a file, `<run directory>/<vm>/stats`, that others read
 * without asking it.
 *
 *   header   struct shm_header, 64 bytes
 *   table    `entries` rows of struct shm_entry: name, unit, kind, where its values are
 *   values   from `values_at` on, 8 bytes each; from a whole page on, so that the writer's
 *            own variables are this part of the file
 *
 * All numbers are little-endian.  The writer's counters and histograms are the file's, at
 * any moment; its gauges are written together: `seq` is odd meanwhile, and another after.
 *
 * Where the file is not on a tmpfs, a mapping of it could make the writer wait for a disk
 * each time the kernel has written it back; so there values are copied to the file instead,
 * whenever gauges are written.
 *
 * A reader trusts nothing of it: it reads a bounded number of bytes with pread(2), which no
 * truncated file can turn into a signal, checks every field, and knows values by their
 * names, so that a file of another version is as good, but for what one side does not have.
 *
 * Threads: stats_create() before others are started; stats_begin() and stats_end() from one
 * thread.  Reading: any; no state.
 */
#ifndef BRIM_STATS_SHM_H
#define BRIM_STATS_SHM_H

#include <sys/types.h>

#include "stats/stats.h"

#define SHM_MAGIC "BRIMSTAT"
#define SHM_VERSION 1u       /* of this layout; names may come and go without a new one */
#define SHM_FILE_MAX (64 * KiB) /* a larger file is refused */
#define SHM_NAME_MAX 39u

struct shm_header {
	char magic[8];
	uint32_t version;
	uint32_t header_bytes; /* where the table starts, multiple of 8 */
	uint32_t entry_bytes;  /* of a row; a later version's may be longer */
	uint32_t entries;
	uint32_t values_at;    /* multiple of 8 */
	uint32_t values;
	uint64_t start_ns;     /* when the process began to count, CLOCK_MONOTONIC */
	uint64_t seq;
	uint32_t pid;
	uint32_t zero[3];
};
_Static_assert(sizeof(struct shm_header) == 64, "the file's layout");

enum shm_kind { SHM_COUNTER = 1, SHM_GAUGE = 2, SHM_HISTOGRAM = 3 };

struct shm_entry {
	char name[SHM_NAME_MAX + 1]; /* [a-z0-9_], terminated */
	char unit[14];               /* printable, terminated */
	uint8_t kind;
	uint8_t zero;
	uint32_t first;              /* value */
	uint32_t count;              /* of values: 1, or buckets */
};
_Static_assert(sizeof(struct shm_entry) == 64, "the file's layout");

/* ---- writing --------------------------------------------------------------------- */

/* Makes the file, mode 0600; it must not exist.  What was counted so far is kept.  Once in
 * a process, until stats_destroy().  -errno. */
int stats_create(const char *path, struct err *e);
/* The numbers go on in memory alone.  The file stays.  May be called without the other. */
void stats_destroy(void);
/* Gauges are written between the two; both are cheap, and allowed where there is no file. */
void stats_begin(void);
void stats_end(void);

/* ---- reading --------------------------------------------------------------------- */

/* What this program knows by name, of a process of whatever version. */
struct stats_view {
	pid_t pid;
	uint64_t start_ns; /* with pid: which run */
	uint64_t read_ns;
	bool is_torn;      /* gauges may be of two moments */
	uint64_t counter[CTR_COUNT_]; /* 0 where the file has none */
	uint64_t gauge[GAUGE_COUNT_]; /* GAUGE_UNKNOWN where it has none */
	uint64_t histogram[HIST_COUNT_][HIST_BUCKETS];
};

/* One value of a file, or a histogram's. */
struct stats_entry {
	const char *name, *unit;
	enum shm_kind kind;
	const uint64_t *value;
	unsigned count;
};

/* Reads the file at `path`.  -ENOENT; -EBADMSG where it is none, or damaged, or of a layout
 * not known here; the sentence names what.  *out only on success. */
int stats_read(const char *path, struct stats_view *out, struct err *e);
/* The same of `len` bytes in memory, 8-byte aligned; read_ns is not set. */
int stats_decode(const void *file, size_t len, struct stats_view *out, struct err *e);
/* Calls fn for each entry, also for those this version has no name for; all are checked
 * before the first call.  -EBADMSG. */
int stats_each(const void *file, size_t len,
	       void (*fn)(void *ctx, const struct stats_entry *entry), void *ctx, struct err *e);

/* ---- rates ------------------------------------------------------------------------- */

struct stats_rates {
	double seconds;         /* between the two views */
	double refaults_per_s;  /* pages that came back because the guest touched them */
	double faults_per_s;    /* those, and first touches that the engine saw */
	double disk_reads_per_s;
	double stall_pct;       /* of the time of all vCPUs, spent waiting for pages */
	uint64_t fault_p50_ns, fault_p99_ns; /* upper bounds; 0: there was no fault */
};

/* False, and all zero, where the two are not of one run, or of one moment.  A count that
 * went back counts as unchanged. */
bool stats_rates(const struct stats_view *before, const struct stats_view *now,
		 struct stats_rates *out);

/* The least 2^n - 1 that at least so many of a thousand are not above; 0: it is empty. */
uint64_t stats_quantile(const uint64_t bucket[HIST_BUCKETS], unsigned per_mille);

/* A gauge, or 0 where it is not known. */
static inline uint64_t view_gauge(const struct stats_view *v, enum gauge g)
{
	return v->gauge[g] == GAUGE_UNKNOWN ? 0 : v->gauge[g];
}

#endif
