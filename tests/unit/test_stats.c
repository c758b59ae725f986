/*
 * The numbers of a process as a file (stats/shm.h): that a reader sees what the writer
 * counts, on a tmpfs and elsewhere; that a file of another version is read; that no file
 * whatsoever does harm; rates.
 */
#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "stats/shm.h"

static char dir[64], path[96];

static void place(const char *base)
{
	snprintf(dir, sizeof(dir), "%s/brim-stats-XXXXXX", base);
	cr_assert(mkdtemp(dir));
	snprintf(path, sizeof(path), "%s/stats", dir);
}

static void tidy(void)
{
	stats_destroy();
	unlink(path);
	rmdir(dir);
}

static void must(int rc, const struct err *e)
{
	cr_assert_eq(rc, 0, "%s", e->msg);
}

/* ---- writing and reading ------------------------------------------------------------ */

static void count_and_read(const char *base)
{
	struct err e = { "" };
	struct stats_view v;
	struct stat st;

	place(base);
	counter_add(CTR_rng_bytes, 5); /* before there is a file */
	must(stats_create(path, &e), &e);
	cr_assert_eq(stat(path, &st), 0);
	cr_assert_eq(st.st_mode & 0777, 0600);
	counter_add(CTR_rng_bytes, 7);
	histogram_add(HIST_fault_ns, 1000);
	stats_begin();
	gauge_set(GAUGE_memory_bytes, GiB);
	gauge_set(GAUGE_guest_free_bytes, GAUGE_UNKNOWN);
	stats_end();
	must(stats_read(path, &v, &e), &e);
	cr_assert_eq(v.counter[CTR_rng_bytes], 12);
	cr_assert_eq(v.gauge[GAUGE_memory_bytes], GiB);
	cr_assert_eq(v.gauge[GAUGE_guest_free_bytes], GAUGE_UNKNOWN);
	cr_assert_eq(view_gauge(&v, GAUGE_guest_free_bytes), 0);
	cr_assert_eq(v.histogram[HIST_fault_ns][10], 1);
	cr_assert_eq(v.pid, getpid());
	cr_assert_not(v.is_torn);
	cr_assert_neq(v.gauge[GAUGE_updated_ns], 0);
}

Test(stats, file_on_tmpfs_shows_what_is_counted_at_once)
{
	struct err e = { "" };
	struct stats_view v;

	count_and_read("/dev/shm");
	counter_add(CTR_rng_bytes, 1); /* nobody writes the file */
	must(stats_read(path, &v, &e), &e);
	cr_assert_eq(v.counter[CTR_rng_bytes], 13);
	stats_destroy();
	counter_add(CTR_rng_bytes, 1);
	cr_assert_eq(counter_get(CTR_rng_bytes), 14, "counting goes on where it was");
	must(stats_read(path, &v, &e), &e);
	cr_assert_eq(v.counter[CTR_rng_bytes], 13, "but the file is left as it was");
	tidy();
}

Test(stats, file_elsewhere_shows_what_was_counted_when_gauges_were_written)
{
	struct err e = { "" };
	struct stats_view v;

	count_and_read("/tmp"); /* where that is a tmpfs, this is the test above */
	counter_add(CTR_rng_bytes, 1);
	stats_begin();
	stats_end();
	must(stats_read(path, &v, &e), &e);
	cr_assert_eq(v.counter[CTR_rng_bytes], 13);
	tidy();
}

Test(stats, file_is_not_made_over_another)
{
	struct err e = { "" };
	int fd;

	place("/dev/shm");
	fd = open(path, O_CREAT | O_WRONLY, 0600);
	cr_assert(fd >= 0);
	close(fd);
	cr_assert_eq(stats_create(path, &e), -EEXIST);
	cr_assert(strstr(e.msg, path));
	tidy();
}

Test(stats, no_file_costs_nothing_and_fails_nothing)
{
	stats_destroy();
	stats_begin();
	gauge_set(GAUGE_vcpus, 3);
	stats_end();
	cr_assert_eq(gauge_get(GAUGE_vcpus), 3);
}

#define THREADS 4u
#define TIMES 200000u

static void *count_a_lot(void *arg)
{
	for (unsigned i = 0; i < TIMES; i++)
		counter_inc(CTR_vcpu_exits);
	return arg;
}

/* Gauges that belong together are never read as of two moments, unless it is said. */
static void *write_gauges(void *arg)
{
	const _Atomic bool *stop = arg;

	for (uint64_t i = 1; !*stop; i++) {
		stats_begin();
		for (unsigned g = GAUGE_memory_bytes; g < GAUGE_COUNT_; g++) {
			if (i % 4 == 0 && g == GAUGE_COUNT_ / 2)
				usleep(50); /* so that it is seen halfway */
			gauge_set((enum gauge)g, i);
		}
		stats_end();
		usleep(20);
	}
	return NULL;
}

Test(stats, many_threads_and_a_reader_nothing_is_lost_or_torn)
{
	pthread_t t[THREADS], w;
	_Atomic bool stop = false;
	unsigned whole = 0;
	struct err e = { "" };
	struct stats_view v;

	place("/dev/shm");
	must(stats_create(path, &e), &e);
	cr_assert_eq(pthread_create(&w, NULL, write_gauges, &stop), 0);
	for (unsigned i = 0; i < THREADS; i++)
		cr_assert_eq(pthread_create(&t[i], NULL, count_a_lot, NULL), 0);
	for (unsigned i = 0; i < 2000 || whole < 100; i++) {
		must(stats_read(path, &v, &e), &e);
		whole += !v.is_torn;
		for (unsigned g = GAUGE_memory_bytes; !v.is_torn && g < GAUGE_COUNT_; g++)
			cr_assert_eq(v.gauge[g], v.gauge[GAUGE_memory_bytes]);
	}
	for (unsigned i = 0; i < THREADS; i++)
		pthread_join(t[i], NULL);
	stop = true;
	pthread_join(w, NULL);
	must(stats_read(path, &v, &e), &e);
	cr_assert_eq(v.counter[CTR_vcpu_exits], THREADS * TIMES);
	tidy();
}

/* ---- files of others ------------------------------------------------------------------ */

static union {
	struct shm_header h;
	char bytes[SHM_FILE_MAX + 64];
	uint64_t aligned;
} file;
static size_t file_len;

static struct shm_entry *entry(unsigned i)
{
	return (struct shm_entry *)(void *)(file.bytes + file.h.header_bytes + i * file.h.entry_bytes);
}

static uint64_t *value(unsigned i)
{
	return (uint64_t *)(void *)(file.bytes + file.h.values_at) + i;
}

static void add(const char *name, enum shm_kind kind, uint32_t count)
{
	struct shm_entry *s = entry(file.h.entries);
	uint32_t first = file.h.entries ? entry(file.h.entries - 1)->first +
					  entry(file.h.entries - 1)->count : 0;

	*s = (struct shm_entry){ .kind = (uint8_t)kind, .first = first, .count = count, .unit = "u" };
	snprintf(s->name, sizeof(s->name), "%s", name);
	file.h.entries++;
	file.h.values = first + count;
	file_len = file.h.values_at + file.h.values * sizeof(uint64_t);
}

/* A later version's: longer header and rows, other order, names we have not, a longer
 * histogram, and not all that we have. */
static void others_file(void)
{
	memset(&file, 0, sizeof(file));
	memcpy(file.h.magic, SHM_MAGIC, sizeof(file.h.magic));
	file.h.version = SHM_VERSION;
	file.h.header_bytes = 96;
	file.h.entry_bytes = 72;
	file.h.values_at = 4096;
	file.h.pid = 77;
	add("of_tomorrow", SHM_COUNTER, 1);
	add("swap_gets", SHM_COUNTER, 1);
	add("rng_bytes", SHM_COUNTER, 1);
	add("fault_ns", SHM_HISTOGRAM, HIST_BUCKETS + 3);
	add("of_tomorrow_too", SHM_HISTOGRAM, 2);
	add("limit_bytes", SHM_GAUGE, 1);
	add("memory_bytes", SHM_GAUGE, 1);
	add("of_another_kind", (enum shm_kind)9, 5);
	for (unsigned i = 0; i < file.h.values; i++)
		*value(i) = 100 + i;
}

static int decode(struct stats_view *v, struct err *e)
{
	return stats_decode(&file, file_len, v, e);
}

Test(stats, another_version_is_read_by_name)
{
	struct err e = { "" };
	struct stats_view v;

	others_file();
	must(decode(&v, &e), &e);
	cr_assert_eq(v.counter[CTR_swap_gets], 101);
	cr_assert_eq(v.counter[CTR_rng_bytes], 102);
	cr_assert_eq(v.counter[CTR_vcpu_exits], 0);
	cr_assert_eq(v.gauge[GAUGE_limit_bytes], 100 + 3 + HIST_BUCKETS + 3 + 2);
	cr_assert_eq(v.gauge[GAUGE_memory_bytes], v.gauge[GAUGE_limit_bytes] + 1);
	cr_assert_eq(v.gauge[GAUGE_resident_bytes], GAUGE_UNKNOWN);
	cr_assert_eq(v.histogram[HIST_fault_ns][0], 103);
	cr_assert_eq(v.histogram[HIST_fault_ns][HIST_BUCKETS - 1], 4 * (103 + HIST_BUCKETS - 1) + 6);
	cr_assert_eq(v.pid, 77);
}

static unsigned seen;

static void see(void *ctx, const struct stats_entry *s)
{
	cr_assert_eq(ctx, &seen);
	cr_assert_neq(s->count, 0);
	seen++;
}

static void refused(const char *what)
{
	struct stats_view v = { .pid = 5 };
	struct err e = { "" };

	cr_assert_eq(decode(&v, &e), -EBADMSG, "%s", what);
	cr_assert_eq(v.pid, 5, "%s: nothing is written", what);
	cr_assert_eq(strncmp(e.msg, "statistics: ", 12), 0);
	seen = 0;
	cr_assert_eq(stats_each(&file, file_len, see, &seen, &e), -EBADMSG);
	cr_assert_eq(seen, 0, "%s", what);
	others_file();
	cr_assert_eq(decode(&v, &e), 0, "after %s: %s", what, e.msg);
}

Test(stats, damaged_header_is_refused)
{
	others_file(); file.h.magic[7]++; refused("magic");
	file.h.version++; refused("version");
	file.h.header_bytes = 60; refused("header too short");
	file.h.header_bytes = 100; refused("header not aligned");
	file.h.entry_bytes = 56; refused("entry too short");
	file.h.entry_bytes = 76; refused("entry not aligned");
	file.h.entry_bytes = UINT32_MAX - 7; refused("entry too long");
	file.h.entries = UINT32_MAX; refused("too many entries");
	file.h.values = UINT32_MAX; refused("too many values");
	file.h.values_at = 4100; refused("values not aligned");
	file.h.values_at = UINT32_MAX - 7; refused("values outside");
	file.h.values_at = 96; refused("values in the table");
	file_len -= 8; refused("cut");
	file_len = 63; refused("cut in the header");
	file_len = 0; refused("empty");
}

Test(stats, damaged_entry_is_refused)
{
	others_file(); entry(1)->name[3] = '\033'; refused("a control character");
	entry(1)->name[3] = 'A'; refused("a capital");
	entry(1)->name[0] = 0; refused("no name");
	memset(entry(1)->name, 'a', sizeof(entry(1)->name)); refused("a name without end");
	entry(1)->unit[0] = '\n'; refused("a line's end in a unit");
	memset(entry(1)->unit, 'a', sizeof(entry(1)->unit)); refused("a unit without end");
	entry(2)->count = 2; refused("a counter of two");
	entry(5)->count = 0; refused("nothing");
	entry(3)->count = 1000; refused("too long a histogram");
	entry(3)->first = UINT32_MAX; refused("a value far outside");
	entry(7)->count = UINT32_MAX; refused("of an unknown kind, and outside");
}

static void file_is(const void *bytes, size_t len)
{
	int fd = open(path, O_CREAT | O_TRUNC | O_WRONLY, 0600);

	cr_assert(fd >= 0 && write(fd, bytes, len) == (ssize_t)len);
	close(fd);
}

Test(stats, what_is_no_file_is_not_waited_for)
{
	struct stats_view v;
	struct err e = { "" };

	place("/tmp");
	cr_assert_eq(stats_read(path, &v, &e), -ENOENT);
	cr_assert_eq(mkfifo(path, 0600), 0);
	cr_assert_eq(stats_read(path, &v, &e), -EBADMSG);
	unlink(path);
	cr_assert_eq(symlink("/dev/zero", path), 0);
	cr_assert_eq(stats_read(path, &v, &e), -ELOOP);
	unlink(path);
	others_file();
	file_is(&file, file_len);
	must(stats_read(path, &v, &e), &e);
	cr_assert_eq(truncate(path, (off_t)TiB), 0);
	cr_assert_eq(stats_read(path, &v, &e), -EBADMSG);
	file.h.seq = 3; /* a writer that never ends */
	file_is(&file, file_len);
	must(stats_read(path, &v, &e), &e);
	cr_assert(v.is_torn);
	tidy();
}

/* ---- rates ------------------------------------------------------------------------------ */

static struct stats_view before, now;

static void two_views(void)
{
	memset(&before, 0, sizeof(before));
	before.pid = 9;
	before.start_ns = 1;
	before.read_ns = 1000000000;
	before.gauge[GAUGE_vcpus] = 2;
	now = before;
	now.read_ns += 2000000000;
}

static bool is_about(double a, double b)
{
	return a - b < 1e-9 && b - a < 1e-9;
}

Test(stats, rates_are_per_second_and_vcpu)
{
	struct stats_rates r;

	two_views();
	now.counter[CTR_engine_faults_packed] = 30;
	now.counter[CTR_engine_faults_staged] = 10;
	now.counter[CTR_engine_faults_untouched] = 100;
	now.counter[CTR_vcpu_stall_ns] = 400000000; /* 0.4 s of 2 s times 2 */
	now.histogram[HIST_fault_ns][13] = 98;
	now.histogram[HIST_fault_ns][20] = 2;
	cr_assert(stats_rates(&before, &now, &r));
	cr_assert(is_about(r.refaults_per_s, 20));
	cr_assert(is_about(r.faults_per_s, 70));
	cr_assert(is_about(r.stall_pct, 10));
	cr_assert_eq(r.fault_p50_ns, 8191);
	cr_assert_eq(r.fault_p99_ns, 1048575);
}

Test(stats, rates_across_a_restart_are_none)
{
	struct stats_rates r;

	two_views();
	now.counter[CTR_engine_faults_packed] = 30;
	now.start_ns++;
	cr_assert_not(stats_rates(&before, &now, &r));
	cr_assert_eq(r.refaults_per_s, 0);
	two_views();
	now.pid++;
	cr_assert_not(stats_rates(&before, &now, &r));
	two_views();
	now.read_ns = before.read_ns;
	cr_assert_not(stats_rates(&before, &now, &r));
}

Test(stats, count_that_goes_back_is_no_rate)
{
	struct stats_rates r;

	two_views();
	before.counter[CTR_engine_faults_packed] = UINT64_MAX;
	before.histogram[HIST_fault_ns][3] = 7;
	now.counter[CTR_engine_faults_packed] = 5;
	now.counter[CTR_vcpu_stall_ns] = UINT64_MAX; /* a liar's */
	now.gauge[GAUGE_vcpus] = GAUGE_UNKNOWN;
	cr_assert(stats_rates(&before, &now, &r));
	cr_assert_eq(r.refaults_per_s, 0);
	cr_assert_eq(r.stall_pct, 100);
	cr_assert_eq(r.fault_p99_ns, 0);
}

Test(stats, bucket_of_a_value_and_back)
{
	uint64_t b[HIST_BUCKETS] = { 0 };

	cr_assert_eq(histogram_bucket(0), 0);
	cr_assert_eq(histogram_bucket(1), 1);
	cr_assert_eq(histogram_bucket(1023), 10);
	cr_assert_eq(histogram_bucket(1024), 11);
	cr_assert_eq(histogram_bucket(UINT64_MAX), HIST_BUCKETS - 1);
	cr_assert_eq(stats_quantile(b, 990), 0);
	b[11] = 1;
	cr_assert_eq(stats_quantile(b, 990), 2047);
	b[HIST_BUCKETS - 1] = UINT64_MAX; /* sums stay sums */
	cr_assert_eq(stats_quantile(b, 500), ((uint64_t)1 << (HIST_BUCKETS - 1)) - 1);
}
