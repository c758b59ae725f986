/*
 * The reader of shm.h.  The file is another process's, which may be broken or worse:
 * everything is checked before it is used, and nothing is believed to stay as it is.
 *
 * Thread: any; no state.
 */
#include "stats/shm.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define SEQ_TRIES 4

/* ---- checking ----------------------------------------------------------------------- */

static int bad(struct err *e, const char *what)
{
	return err_set(e, -EBADMSG, "statistics: %s", what);
}

static int check_header(const struct shm_header *h, size_t len, struct err *e)
{
	if (len < sizeof(*h) || memcmp(h->magic, SHM_MAGIC, sizeof(h->magic)))
		return bad(e, "this is no file of statistics");
	if (h->version != SHM_VERSION)
		return err_set(e, -EBADMSG, "statistics: a layout of version %u; %u is known here",
			       h->version, SHM_VERSION);
	/* 64 bits: no product or sum of two 32-bit numbers goes over */
	if (h->header_bytes < sizeof(*h) || h->header_bytes % 8 ||
	    h->entry_bytes < sizeof(struct shm_entry) || h->entry_bytes % 8 || h->values_at % 8)
		return bad(e, "its parts are not where they may be");
	if (h->header_bytes + (uint64_t)h->entries * h->entry_bytes > h->values_at ||
	    h->values_at + (uint64_t)h->values * sizeof(uint64_t) > len)
		return bad(e, "its parts do not fit into it");
	return 0;
}

static bool name_is_good(const char *name)
{
	size_t n = strnlen(name, SHM_NAME_MAX + 1);

	if (n == 0 || n > SHM_NAME_MAX)
		return false;
	for (size_t i = 0; i < n; i++)
		if (!(name[i] >= 'a' && name[i] <= 'z') && !(name[i] >= '0' && name[i] <= '9') &&
		    name[i] != '_')
			return false;
	return true;
}

/* It goes to terminals. */
static bool unit_is_good(const char *unit, size_t size)
{
	size_t n = strnlen(unit, size);

	for (size_t i = 0; i < n; i++)
		if (unit[i] < ' ' || unit[i] > '~')
			return false;
	return n < size;
}

static const struct shm_entry *entry_at(const void *file, uint32_t i)
{
	const struct shm_header *h = file;

	return (const void *)((const char *)file + h->header_bytes + (uint64_t)i * h->entry_bytes);
}

static int check_entry(const struct shm_header *h, const struct shm_entry *s, struct err *e)
{
	if (!name_is_good(s->name) || !unit_is_good(s->unit, sizeof(s->unit)))
		return bad(e, "a name or a unit in it is none");
	if (s->count == 0 || (uint64_t)s->first + s->count > h->values)
		return bad(e, "a value in it lies outside");
	if ((s->kind == SHM_COUNTER || s->kind == SHM_GAUGE) && s->count != 1)
		return bad(e, "a value in it is several");
	return 0;
}

static int check(const void *file, size_t len, struct err *e)
{
	const struct shm_header *h = file;
	int rc = check_header(h, len, e);

	for (uint32_t i = 0; !rc && i < h->entries; i++)
		rc = check_entry(h, entry_at(file, i), e);
	return rc;
}

int stats_each(const void *file, size_t len,
	       void (*fn)(void *ctx, const struct stats_entry *entry), void *ctx, struct err *e)
{
	const struct shm_header *h = file;
	int rc = check(file, len, e);

	for (uint32_t i = 0; !rc && i < h->entries; i++) {
		const struct shm_entry *s = entry_at(file, i);
		const uint64_t *values = (const void *)((const char *)file + h->values_at);

		fn(ctx, &(struct stats_entry){ .name = s->name, .unit = s->unit, .kind = s->kind,
					       .value = values + s->first, .count = s->count });
	}
	return rc;
}

/* ---- to what is known here ------------------------------------------------------------ */

/* Where a name is expected next: both tables are in one order, but for what one of them has
 * alone, so that a look is rarely more than one comparison. */
struct decode {
	struct stats_view *out;
	size_t next[SHM_HISTOGRAM + 1];
};

/* Its index, or `n`. */
static size_t find(const struct counter_info *table, size_t n, size_t from, const char *name)
{
	for (size_t k = 0; k < n; k++) {
		size_t i = (from + k) % n;

		if (strcmp(table[i].name, name) == 0)
			return i;
	}
	return n;
}

static size_t known(struct decode *d, const struct stats_entry *s, const struct counter_info *table,
		    size_t n)
{
	size_t i = find(table, n, d->next[s->kind], s->name);

	if (i < n)
		d->next[s->kind] = (i + 1) % n;
	return i;
}

/* Of another version's histogram the buckets above ours count in our last. */
static void take_histogram(uint64_t to[HIST_BUCKETS], const struct stats_entry *s)
{
	memset(to, 0, HIST_BUCKETS * sizeof(*to));
	for (unsigned b = 0; b < s->count; b++)
		to[b < HIST_BUCKETS ? b : HIST_BUCKETS - 1] += s->value[b];
}

static void take(void *ctx, const struct stats_entry *s)
{
	struct decode *d = ctx;
	size_t i;

	switch (s->kind) {
	case SHM_COUNTER:
		i = known(d, s, counter_table, CTR_COUNT_);
		if (i < CTR_COUNT_)
			d->out->counter[i] = s->value[0];
		break;
	case SHM_GAUGE:
		i = known(d, s, gauge_table, GAUGE_COUNT_);
		if (i < GAUGE_COUNT_)
			d->out->gauge[i] = s->value[0];
		break;
	case SHM_HISTOGRAM:
		i = known(d, s, histogram_table, HIST_COUNT_);
		if (i < HIST_COUNT_)
			take_histogram(d->out->histogram[i], s);
		break;
	default: /* a later version's */
		break;
	}
}

int stats_decode(const void *file, size_t len, struct stats_view *out, struct err *e)
{
	const struct shm_header *h = file;
	struct decode d = { .out = out };
	int rc = check(file, len, e);

	if (rc)
		return rc;
	*out = (struct stats_view){ .pid = (pid_t)h->pid, .start_ns = h->start_ns,
				    .is_torn = h->seq & 1 };
	for (unsigned g = 0; g < GAUGE_COUNT_; g++)
		out->gauge[g] = GAUGE_UNKNOWN;
	return stats_each(file, len, take, &d, e);
}

/* ---- the file ----------------------------------------------------------------------- */

/* All of it, or one byte more than it may be. */
static ssize_t read_all(int fd, char *buf, size_t size)
{
	size_t len = 0;
	ssize_t n = 1;

	while (n > 0 && len < size) {
		n = pread(fd, buf + len, size - len, (off_t)len);
		if (n < 0 && errno == EINTR)
			n = 1;
		else if (n > 0)
			len += (size_t)n;
	}
	return n < 0 ? -errno : (ssize_t)len;
}

static uint64_t seq_of(int fd)
{
	uint64_t seq = 1;

	if (pread(fd, &seq, sizeof(seq), offsetof(struct shm_header, seq)) != (ssize_t)sizeof(seq))
		return 1;
	return seq;
}

/* The header was read before the values: where its number is even, and still the same
 * after, no gauge changed between.  A writer that is always at it is not waited for. */
static int read_whole(int fd, char *buf, struct stats_view *out, struct err *e)
{
	const struct shm_header *h = (const void *)buf;
	ssize_t len;
	int rc = 0;

	for (unsigned i = 0; i < SEQ_TRIES && !rc; i++) {
		len = read_all(fd, buf, SHM_FILE_MAX + 1);
		if (len < 0)
			return err_sys(e, (int)len, "statistics: cannot be read");
		if (len > (ssize_t)SHM_FILE_MAX)
			return bad(e, "the file is too long");
		rc = stats_decode(buf, (size_t)len, out, e);
		if (!rc && !out->is_torn && seq_of(fd) == h->seq)
			return 0;
		out->is_torn = true;
	}
	return rc;
}

int stats_read(const char *path, struct stats_view *out, struct err *e)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK), rc;
	struct stats_view view;
	struct stat st;
	char *buf;

	if (fd < 0)
		return err_sys(e, -errno, "statistics: %s", path);
	buf = malloc(SHM_FILE_MAX + 1);
	if (!buf)
		rc = err_sys(e, -ENOMEM, "statistics");
	else if (fstat(fd, &st) < 0 || !S_ISREG(st.st_mode))
		rc = bad(e, "this is no file");
	else
		rc = read_whole(fd, buf, &view, e);
	free(buf);
	close(fd);
	if (!rc) {
		*out = view;
		out->read_ns = now_ns();
	}
	return rc;
}

/* ---- rates ---------------------------------------------------------------------------- */

static uint64_t grown(uint64_t before, uint64_t now)
{
	return now > before ? now - before : 0;
}

static double per_s(const struct stats_view *a, const struct stats_view *b, enum counter c,
		    double seconds)
{
	return (double)grown(a->counter[c], b->counter[c]) / seconds;
}

static double sum_per_s(const struct stats_view *a, const struct stats_view *b,
			const enum counter *c, double seconds)
{
	double sum = 0;

	for (; *c != CTR_COUNT_; c++)
		sum += per_s(a, b, *c, seconds);
	return sum;
}

uint64_t stats_quantile(const uint64_t bucket[HIST_BUCKETS], unsigned per_mille)
{
	double all = 0, seen = 0;

	for (unsigned b = 0; b < HIST_BUCKETS; b++)
		all += (double)bucket[b];
	for (unsigned b = 0; b < HIST_BUCKETS && all > 0; b++) {
		seen += (double)bucket[b];
		if (seen >= all * per_mille / 1000)
			return ((uint64_t)1 << b) - 1;
	}
	return 0;
}

static void latencies(const struct stats_view *a, const struct stats_view *b,
		      struct stats_rates *out)
{
	uint64_t d[HIST_BUCKETS];

	for (unsigned i = 0; i < HIST_BUCKETS; i++)
		d[i] = grown(a->histogram[HIST_fault_ns][i], b->histogram[HIST_fault_ns][i]);
	out->fault_p50_ns = stats_quantile(d, 500);
	out->fault_p99_ns = stats_quantile(d, 990);
}

bool stats_rates(const struct stats_view *a, const struct stats_view *b, struct stats_rates *out)
{
	static const enum counter refaults[] = {
		CTR_engine_faults_staged, CTR_engine_faults_packed, CTR_engine_faults_stored,
		CTR_engine_faults_disk, CTR_engine_disk_joined, CTR_COUNT_,
	};
	uint64_t vcpus = view_gauge(b, GAUGE_vcpus);
	double s = (double)grown(a->read_ns, b->read_ns) / 1e9;

	*out = (struct stats_rates){ 0 };
	if (a->pid != b->pid || a->start_ns != b->start_ns || s <= 0)
		return false;
	out->seconds = s;
	out->refaults_per_s = sum_per_s(a, b, refaults, s);
	out->faults_per_s = out->refaults_per_s + per_s(a, b, CTR_engine_faults_untouched, s);
	out->disk_reads_per_s = per_s(a, b, CTR_engine_disk_reads, s);
	out->stall_pct = per_s(a, b, CTR_vcpu_stall_ns, s) / 1e7 / (double)(vcpus ? vcpus : 1);
	if (out->stall_pct > 100)
		out->stall_pct = 100; /* counted when the wait ends, which may be long after it began */
	latencies(a, b, out);
	return true;
}
