/*
 * pagewait: a guest program that shows what the rest of a guest does while one of
 * its tasks waits for a page that the host took away.
 *
 * What lives here: the companion of t_asyncpf. Two threads, meant for a guest with one CPU:
 *   the counter  adds to a number, and does nothing else;
 *   the toucher  fills MIB of memory, measures what the counter does alone, and says so. Then, for each line
 *                `touch` on stdin, reads one page, each time in another 4 MiB, and prints
 *
 *   pagewait: page=3 waited_ms=2011 loops_per_s=41000000 percent_of_alone=98
 *
 *                The end of stdin, or the line `end`, makes it check every page, and ends it.
 *
 * What must be true
 *   - while the toucher waits for its page, the counter makes no system call and no page fault of its own:
 *     that it does not count then means that the CPU did not run;
 *   - what a page holds is a function of its place; a wrong word ends the program with status 1.
 *
 * Exit: 0 all right; 1 a wrong word; 2 usage; 3 no memory.
 */
#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#define PAGE_BYTES ((size_t)4096)
#define PAGE_WORDS (PAGE_BYTES / sizeof(uint64_t))
#define MIB_PAGES ((size_t)256)
#define STRIDE_PAGES (4 * MIB_PAGES)	/* another huge page each time, and no neighbour of the last */
#define ALONE_S 2

static _Atomic uint64_t loops;

static void *count(void *arg)
{
	(void)arg;
	for (;;)
		atomic_fetch_add_explicit(&loops, 1, memory_order_relaxed);
	return NULL;
}

static double now_s(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;
}

/* Half a page of one word, half of numbers that differ: it packs, and is no pattern. */
static uint64_t word_of(size_t page, size_t i)
{
	uint64_t x = (page + 1) * 0x9e3779b97f4a7c15u;

	return i % PAGE_WORDS < PAGE_WORDS / 2 ? x : (x ^ (x >> 29)) * (i + 1);
}

static void fill(uint64_t *words, size_t pages)
{
	for (size_t page = 0; page < pages; page++)
		for (size_t i = 0; i < PAGE_WORDS; i++)
			words[page * PAGE_WORDS + i] = word_of(page, i);
}

static bool check(const uint64_t *words, size_t page)
{
	const volatile uint64_t *w = words + page * PAGE_WORDS;

	for (size_t i = 0; i < PAGE_WORDS; i++) {
		uint64_t got = w[i];

		if (got == word_of(page, i))
			continue;
		printf("pagewait: WRONG WORD page=%zu word=%zu got=0x%016" PRIx64 "\n", page, i, got);
		return false;
	}
	return true;
}

static double rate_alone(void)
{
	struct timespec pause = { .tv_sec = ALONE_S };
	double from = now_s();
	uint64_t before = atomic_load(&loops);

	nanosleep(&pause, NULL);
	return (double)(atomic_load(&loops) - before) / (now_s() - from);
}

/* The clock is read right before and after one load, which is all that can wait. */
static bool touch(const uint64_t *words, size_t page, double alone)
{
	uint64_t before = atomic_load(&loops), after;
	double from = now_s(), waited, rate;

	(void)*(const volatile uint64_t *)(words + page * PAGE_WORDS);
	waited = now_s() - from;
	after = atomic_load(&loops);
	rate = waited > 0 ? (double)(after - before) / waited : 0;
	printf("pagewait: page=%zu waited_ms=%.0f loops_per_s=%.0f percent_of_alone=%.0f\n", page, waited * 1e3,
	       rate, 100 * rate / alone);
	return check(words, page);
}

static int serve(const uint64_t *words, size_t pages, double alone)
{
	char line[16];
	size_t next = 0;

	while (fgets(line, sizeof(line), stdin) && strncmp(line, "end", 3) != 0) {
		if (strncmp(line, "touch", 5) != 0 || next >= pages)
			continue;
		if (!touch(words, next, alone))
			return 1;
		next += STRIDE_PAGES;
	}
	for (size_t page = 0; page < pages; page++)
		if (!check(words, page))
			return 1;
	printf("pagewait: checked=%zu\n", pages);
	return 0;
}

int main(int argc, char **argv)
{
	size_t pages = argc == 2 ? strtoul(argv[1], NULL, 10) * MIB_PAGES : 0;
	uint64_t *words;
	pthread_t counter;
	double alone;

	if (pages == 0) {
		fprintf(stderr, "usage: pagewait MIB\n");
		return 2;
	}
	setvbuf(stdout, NULL, _IOLBF, 0);
	words = mmap(NULL, pages * PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (words == MAP_FAILED || pthread_create(&counter, NULL, count, NULL))
		return 3;
	fill(words, pages);
	alone = rate_alone();
	printf("pagewait: filled pages=%zu alone_loops_per_s=%.0f\n", pages, alone);
	return serve(words, pages, alone);
}
