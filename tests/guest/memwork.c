/*
 * memwork: a guest program that uses memory, and checks every byte of it.
 *
 * What lives here: the demo workload and the companion of the balloon, sharing and swap tests. It runs
 * inside a guest (or natively, where threads stand in for guests), static, with nothing but libc.
 *
 * One round: pick a size between --min and --max; grow or shrink to it in blocks of 1 MiB (a block is
 * checked before it is given back); check everything; rewrite --churn percent of the blocks with a new
 * generation; print one line. The first wrong byte ends the program with status 1.
 *
 * Content of a page is a function of (kind, position, generation, seed), never stored anywhere else:
 *   zero    --zero percent of the pages: all zero
 *   common  --common percent: depends on the position only, so that two guests (or two runs) that have
 *           the same position hold the same page, whatever their seed. Food for page sharing.
 *   own     the rest: depends on the virtual address, the generation and the seed. Nobody else has it.
 * --compress P makes the first P percent of every common or own page one repeated word.
 *
 * What must be true
 *   I1  every word of every live block has been written in its current generation and was compared since
 *       the last rewrite, at least once per round;
 *   I2  no word is compared by a checksum: a wrong byte is reported with its address, expected and got.
 *
 * Exit: 0 all right; 1 a wrong byte; 2 usage; 3 no memory.
 */
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define BLOCK_BYTES ((size_t)1 << 20)
#define PAGE_BYTES ((size_t)4096)
#define PAGE_WORDS (PAGE_BYTES / sizeof(uint64_t))
#define BLOCK_PAGES (BLOCK_BYTES / PAGE_BYTES)

struct block {
	uint64_t *words;	/* NULL: not allocated */
	uint32_t generation;
};

struct options {
	size_t min_mib, max_mib;
	uint64_t seed;
	unsigned long rounds;		/* 0: no limit */
	unsigned long seconds;		/* 0: no limit */
	unsigned long pace_ms;		/* sleep between rounds */
	unsigned long block_pace_us;	/* sleep after each block touched */
	unsigned zero_pct, common_pct, compress_pct, churn_pct;
};

static volatile sig_atomic_t stop;

static void on_signal(int sig)
{
	(void)sig;
	stop = 1;
}

static uint64_t mix(uint64_t x)
{
	x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
	x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
	return x ^ (x >> 31);
}

static uint64_t rng_next(uint64_t *state)
{
	*state += 0x9e3779b97f4a7c15u;
	return mix(*state);
}

static double now_s(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;
}

static void sleep_us(unsigned long us)
{
	struct timespec ts = { .tv_sec = (time_t)(us / 1000000), .tv_nsec = (long)(us % 1000000) * 1000 };

	if (us > 0)
		nanosleep(&ts, NULL);
}

/* What one page must hold: words [0, flat) are `flat_word`, word i beyond is a mix of `start` and i. */
struct page_rule {
	size_t flat;
	uint64_t flat_word;
	uint64_t start;
};

static struct page_rule page_rule(const struct options *o, const struct block *b, size_t index, size_t page)
{
	uint64_t position = (uint64_t)index * BLOCK_PAGES + page;
	unsigned draw = (unsigned)(mix(position + 1) % 100);	/* kind by position: equal in every guest */
	struct page_rule r = { .flat = PAGE_WORDS };

	if (draw < o->zero_pct)
		return r;
	if (draw < o->zero_pct + o->common_pct)
		r.start = mix(position ^ 0x636f6d6d6f6e);
	else
		r.start = mix(((uint64_t)(uintptr_t)b->words + page * PAGE_BYTES) ^ mix(o->seed + b->generation));
	r.flat = PAGE_WORDS * o->compress_pct / 100;
	r.flat_word = r.start | 1;
	return r;
}

static uint64_t rule_word(const struct page_rule *r, size_t i)
{
	uint64_t x;

	if (i < r->flat)
		return r->flat_word;
	x = (r->start + i) * 0x9e3779b97f4a7c15u;
	return (x ^ (x >> 32)) * 0xd6e8feb86659fd93u;
}

static void block_fill(const struct options *o, const struct block *b, size_t index)
{
	for (size_t page = 0; page < BLOCK_PAGES; page++) {
		struct page_rule r = page_rule(o, b, index, page);
		uint64_t *w = b->words + page * PAGE_WORDS;

		for (size_t i = 0; i < PAGE_WORDS; i++)
			w[i] = rule_word(&r, i);
	}
	sleep_us(o->block_pace_us);
}

static void report_wrong(const struct block *b, size_t index, const uint64_t *at, uint64_t expected, uint64_t got)
{
	const unsigned char *e = (const unsigned char *)&expected, *g = (const unsigned char *)&got;
	size_t byte = 0;

	while (byte < 7 && e[byte] == g[byte])
		byte++;
	printf("memwork: WRONG BYTE address=0x%" PRIxPTR " expected=0x%02x got=0x%02x"
	       " word_expected=0x%016" PRIx64 " word_got=0x%016" PRIx64 " block=%zu page=%zu offset=%zu generation=%u\n",
	       (uintptr_t)at + byte, e[byte], g[byte], expected, got, index,
	       (size_t)(at - b->words) / PAGE_WORDS, ((uintptr_t)at + byte) % PAGE_BYTES, b->generation);
	printf("memwork: the %zu words from there:", (size_t)4);
	for (size_t i = 0; i < 4 && ((uintptr_t)(at + i) % PAGE_BYTES != 0 || i == 0); i++)
		printf(" %016" PRIx64, at[i]);
	printf("\n");
	fflush(stdout);
}

/* Returns true if every byte of the block is right; reports the first that is not. */
static bool block_check(const struct options *o, const struct block *b, size_t index)
{
	for (size_t page = 0; page < BLOCK_PAGES; page++) {
		struct page_rule r = page_rule(o, b, index, page);
		const uint64_t *w = b->words + page * PAGE_WORDS;

		for (size_t i = 0; i < PAGE_WORDS; i++) {
			uint64_t got = *(const volatile uint64_t *)&w[i];
			uint64_t expected = rule_word(&r, i);

			if (got != expected) {
				report_wrong(b, index, &w[i], expected, got);
				return false;
			}
		}
	}
	sleep_us(o->block_pace_us);
	return true;
}

static bool block_get(const struct options *o, struct block *b, size_t index, uint32_t generation)
{
	void *p = mmap(NULL, BLOCK_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (p == MAP_FAILED)
		return false;
	b->words = p;
	b->generation = generation;
	block_fill(o, b, index);
	return true;
}

static bool block_put(const struct options *o, struct block *b, size_t index)
{
	bool right = block_check(o, b, index);

	munmap(b->words, BLOCK_BYTES);
	b->words = NULL;
	return right;
}

/* Grows or shrinks to `target` blocks, the victims chosen by `rng`. 0, 1 (wrong byte) or 3 (no memory). */
static int resize(const struct options *o, struct block *blocks, size_t *live, size_t target, uint32_t generation,
		  uint64_t *rng)
{
	for (size_t i = 0; *live < target && i < o->max_mib && !stop; i++) {
		if (blocks[i].words)
			continue;
		if (!block_get(o, &blocks[i], i, generation)) {
			printf("memwork: no memory for block %zu: %s\n", i, strerror(errno));
			return 3;
		}
		++*live;
	}
	while (*live > target && !stop) {
		size_t i = rng_next(rng) % o->max_mib;

		while (!blocks[i].words)
			i = (i + 1) % o->max_mib;
		if (!block_put(o, &blocks[i], i))
			return 1;
		--*live;
	}
	return 0;
}

static int check_and_churn(const struct options *o, struct block *blocks, uint32_t generation, uint64_t *rng)
{
	for (size_t i = 0; i < o->max_mib && !stop; i++) {
		if (!blocks[i].words)
			continue;
		if (!block_check(o, &blocks[i], i))
			return 1;
		if (rng_next(rng) % 100 < o->churn_pct) {
			blocks[i].generation = generation;
			block_fill(o, &blocks[i], i);
		}
	}
	return 0;
}

static int run(const struct options *o)
{
	struct block *blocks = calloc(o->max_mib, sizeof(*blocks));
	uint64_t rng = mix(o->seed);
	double start = now_s();
	size_t live = 0;
	unsigned long round = 0;
	int rc = 0;

	if (!blocks)
		return 3;
	while (rc == 0 && !stop && (o->rounds == 0 || round < o->rounds) &&
	       (o->seconds == 0 || now_s() - start < (double)o->seconds)) {
		size_t span = o->max_mib - o->min_mib;
		size_t target = o->min_mib + (span ? rng_next(&rng) % (span + 1) : 0);

		round++;
		rc = resize(o, blocks, &live, target, (uint32_t)round, &rng);
		if (rc == 0)
			rc = check_and_churn(o, blocks, (uint32_t)round, &rng);
		printf("memwork: round=%lu mib=%zu errors=%d seconds=%.1f\n", round, live, rc == 1, now_s() - start);
		fflush(stdout);
		if (rc == 0)
			sleep_us(o->pace_ms * 1000);
	}
	for (size_t i = 0; rc == 0 && i < o->max_mib; i++)
		if (blocks[i].words && !block_put(o, &blocks[i], i))
			rc = 1;
	free(blocks);
	printf("memwork: done rounds=%lu errors=%d status=%d\n", round, rc == 1, rc);
	return rc;
}

static void usage(FILE *to)
{
	fputs("usage: memwork [options]\n"
	      "Uses memory in a guest and checks every byte of it. Sizes in MiB, or N% of the guest's memory.\n"
	      "  --min N          least to hold (default 64)\n"
	      "  --max N          most to hold (default: --min, a constant size)\n"
	      "  --rounds N       stop after N rounds (0: no limit; default 3, or no limit with --seconds)\n"
	      "  --seconds N      stop after N seconds\n"
	      "  --seed N         different seeds, different content and sizes (default 1)\n"
	      "  --pace MS        sleep between rounds\n"
	      "  --block-pace US  sleep after each MiB written or checked\n"
	      "  --zero P         percent of pages that are all zero (default 0)\n"
	      "  --common P       percent of pages equal in every guest (default 0)\n"
	      "  --compress P     percent of every other page that is one repeated word (default 0)\n"
	      "  --churn P        percent of the blocks rewritten each round (default 25)\n"
	      "exit: 0 every byte was right, 1 a wrong byte, 2 usage, 3 no memory\n", to);
}

static unsigned long number(const char *text, unsigned long max)
{
	char *end;
	unsigned long v;

	errno = 0;
	v = strtoul(text, &end, 0);
	if (errno || end == text || *end || v > max) {
		fprintf(stderr, "memwork: %s: not a number from 0 to %lu\n", text, max);
		exit(2);
	}
	return v;
}

static size_t size_mib(const char *text)
{
	char digits[32];
	size_t n = strlen(text);

	if (n == 0 || n >= sizeof(digits) || text[n - 1] != '%')
		return number(text, 16ul << 20);
	memcpy(digits, text, n - 1);
	digits[n - 1] = '\0';
	return (size_t)sysconf(_SC_PHYS_PAGES) * PAGE_BYTES / BLOCK_BYTES * number(digits, 1000) / 100;
}

static void parse(int argc, char **argv, struct options *o)
{
	enum { MIN = 1, MAX, ROUNDS, SECONDS, SEED, PACE, BLOCK_PACE, ZERO, COMMON, COMPRESS, CHURN, HELP };
	static const struct option table[] = {
		{ "min", required_argument, NULL, MIN }, { "max", required_argument, NULL, MAX },
		{ "rounds", required_argument, NULL, ROUNDS }, { "seconds", required_argument, NULL, SECONDS },
		{ "seed", required_argument, NULL, SEED }, { "pace", required_argument, NULL, PACE },
		{ "block-pace", required_argument, NULL, BLOCK_PACE }, { "zero", required_argument, NULL, ZERO },
		{ "common", required_argument, NULL, COMMON }, { "compress", required_argument, NULL, COMPRESS },
		{ "churn", required_argument, NULL, CHURN }, { "help", no_argument, NULL, HELP }, { 0 },
	};
	bool rounds_given = false;
	int c;

	while ((c = getopt_long(argc, argv, "", table, NULL)) != -1) {
		switch (c) {
		case MIN: o->min_mib = size_mib(optarg); break;
		case MAX: o->max_mib = size_mib(optarg); break;
		case ROUNDS: o->rounds = number(optarg, UINT32_MAX); rounds_given = true; break;
		case SECONDS: o->seconds = number(optarg, UINT32_MAX); break;
		case SEED: o->seed = number(optarg, UINT64_MAX); break;
		case PACE: o->pace_ms = number(optarg, 3600000); break;
		case BLOCK_PACE: o->block_pace_us = number(optarg, 10000000); break;
		case ZERO: o->zero_pct = (unsigned)number(optarg, 100); break;
		case COMMON: o->common_pct = (unsigned)number(optarg, 100); break;
		case COMPRESS: o->compress_pct = (unsigned)number(optarg, 100); break;
		case CHURN: o->churn_pct = (unsigned)number(optarg, 100); break;
		case HELP: usage(stdout); exit(0);
		default: usage(stderr); exit(2);
		}
	}
	if (!rounds_given)
		o->rounds = o->seconds ? 0 : 3;
	if (o->max_mib == 0)
		o->max_mib = o->min_mib;
	if (optind != argc || o->max_mib == 0 || o->min_mib > o->max_mib || o->zero_pct + o->common_pct > 100) {
		usage(stderr);
		exit(2);
	}
}

int main(int argc, char **argv)
{
	struct options o = { .min_mib = 64, .seed = 1, .churn_pct = 25 };
	struct sigaction sa = { .sa_handler = on_signal };

	parse(argc, argv, &o);
	sigaction(SIGTERM, &sa, NULL);
	sigaction(SIGINT, &sa, NULL);
	printf("memwork: seed=%" PRIu64 " min=%zu max=%zu zero=%u common=%u compress=%u churn=%u\n",
	       o.seed, o.min_mib, o.max_mib, o.zero_pct, o.common_pct, o.compress_pct, o.churn_pct);
	fflush(stdout);
	return run(&o);
}
