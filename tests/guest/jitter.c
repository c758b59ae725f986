/*
 * jitter: a guest program that feels for pauses: one thread reads the time stamp
 * counter, and memory, as fast as it can, and keeps account of the gaps.
 *
 * What lives here: the companion of bench_balloon_vm. The reader is pinned to the last CPU; the other thread,
 * on the first, waits for lines on stdin. Each line names the phase that begins, ends the one before and
 * prints its account:
 *
 *   jitter: phase=inflate seconds=1.93 windows=193 max_us=812 p99_us=640 median_us=95 over_1ms=0 lost_pct=1.21
 *
 * A window is 10 ms; p99 and median are those of the longest gap in each window. A gap that spans windows
 * counts once, where it ends. lost: the sum of all gaps above 50 us, of the phase.
 * The line `end`, or the end of stdin, ends the program.
 *
 * What must be true
 *   - the reader makes no system call while it reads;
 *   - an account is only read by the other thread after the reader has gone on to the next phase.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include <x86intrin.h>

#define WINDOW_NS 10000000.0
#define WINDOWS_MAX 65536u	/* eleven minutes; what comes later is not counted */
#define LOST_NS 50000.0
#define LONG_NS 1000000.0
#define PAGE_BYTES 4096u
#define READ_PAGES 256u

struct account {
	unsigned windows, over;
	double lost_ns, seconds;
	float gap_ns[WINDOWS_MAX];	/* the longest of each window */
};

static struct account accounts[2];
static atomic_uint wanted, present;	/* phases, counted from 0; the account is phase % 2 */
static double ns_per_tick;
static uint8_t *pages;

static double now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (double)ts.tv_sec * 1e9 + (double)ts.tv_nsec;
}

static void pin(int cpu)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET((size_t)cpu, &set);
	sched_setaffinity(0, sizeof(set), &set);
}

static void calibrate(void)
{
	double began_ns = now_ns();
	uint64_t began = __rdtsc();

	usleep(200000);
	ns_per_tick = (now_ns() - began_ns) / (double)(__rdtsc() - began);
}

/* One phase, until another is wanted. `last` is the reading the phase before ended with. */
static uint64_t feel(struct account *a, unsigned phase, uint64_t last)
{
	uint64_t window_ticks = (uint64_t)(WINDOW_NS / ns_per_tick), long_ticks = (uint64_t)(LONG_NS / ns_per_tick);
	uint64_t lost_ticks = (uint64_t)(LOST_NS / ns_per_tick), began = last, window = last, longest = 0, lost = 0;
	unsigned page = 0;

	a->windows = a->over = 0;
	while (atomic_load_explicit(&wanted, memory_order_relaxed) == phase) {
		uint64_t now, gap;

		(void)*(volatile uint8_t *)(pages + page++ % READ_PAGES * PAGE_BYTES);
		now = __rdtsc();
		gap = now - last;
		last = now;
		if (gap > longest)
			longest = gap;
		if (gap > lost_ticks)
			lost += gap;
		if (gap > long_ticks)
			a->over++;
		if (now - window >= window_ticks && a->windows < WINDOWS_MAX) {
			a->gap_ns[a->windows++] = (float)((double)longest * ns_per_tick);
			longest = 0;
			window = now;
		}
	}
	a->lost_ns = (double)lost * ns_per_tick;
	a->seconds = (double)(last - began) * ns_per_tick / 1e9;
	return last;
}

static void *reader(void *arg)
{
	uint64_t last;

	pin(*(const int *)arg);
	last = __rdtsc();
	for (unsigned phase = 0;; phase++) {
		last = feel(&accounts[phase % 2], phase, last);
		atomic_store(&present, phase + 1);
	}
	return NULL;
}

static int by_value(const void *a, const void *b)
{
	float x = *(const float *)a, y = *(const float *)b;

	return (x > y) - (x < y);
}

static double us_at(const struct account *a, double quantile)
{
	if (a->windows == 0)
		return 0;
	return (double)a->gap_ns[(unsigned)((a->windows - 1) * quantile)] / 1e3;
}

static void print_account(const char *name, struct account *a)
{
	qsort(a->gap_ns, a->windows, sizeof(a->gap_ns[0]), by_value);
	printf("jitter: phase=%s seconds=%.2f windows=%u max_us=%.0f p99_us=%.0f median_us=%.0f over_1ms=%u lost_pct=%.2f\n",
	       name, a->seconds, a->windows, us_at(a, 1), us_at(a, 0.99), us_at(a, 0.5), a->over,
	       a->seconds > 0 ? a->lost_ns / a->seconds / 1e7 : 0);
	fflush(stdout);
}

int main(void)
{
	char name[64] = "start", line[64];
	int last_cpu = (int)sysconf(_SC_NPROCESSORS_ONLN) - 1;
	unsigned phase = 0;
	pthread_t thread;

	pages = malloc((size_t)READ_PAGES * PAGE_BYTES);
	if (!pages)
		return 3;
	memset(pages, 1, (size_t)READ_PAGES * PAGE_BYTES);
	memset(accounts, 1, sizeof(accounts));	/* no page fault while it counts */
	pin(0);
	calibrate();
	if (pthread_create(&thread, NULL, reader, &last_cpu))
		return 3;
	printf("jitter: ready on cpu %d\n", last_cpu);
	fflush(stdout);
	while (fgets(line, sizeof(line), stdin)) {
		line[strcspn(line, "\r\n")] = '\0';
		atomic_store(&wanted, phase + 1);
		while (atomic_load(&present) != phase + 1)
			usleep(1000);
		print_account(name, &accounts[phase % 2]);
		phase++;
		if (strcmp(line, "end") == 0)
			break;
		memcpy(name, line, sizeof(name));
	}
	return 0;
}
