/* chance: random numbers that a seed repeats, and what the environment asks of a test. */
#ifndef BRIM_TESTS_CHANCE_H
#define BRIM_TESTS_CHANCE_H

#include <inttypes.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include "stats/stats.h"

/* splitmix64: any state will do, and small ones as well as others. */
static inline uint64_t mix(uint64_t *state)
{
	uint64_t z = (*state += 0x9e3779b97f4a7c15u);

	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
	z = (z ^ z >> 27) * 0x94d049bb133111ebu;
	return z ^ z >> 31;
}

/* xorshift64: the state must not be 0. */
static inline uint64_t next_random(uint64_t *s)
{
	*s ^= *s << 13;
	*s ^= *s >> 7;
	*s ^= *s << 17;
	return *s;
}

static inline uint64_t env_number(const char *name, uint64_t otherwise)
{
	const char *v = getenv(name);

	return v ? strtoull(v, NULL, 0) : otherwise;
}

/* BRIM_SEED, or another each time; printed, so that a run can be had again. */
static inline uint64_t seed_of_run(void)
{
	uint64_t seed = env_number("BRIM_SEED", now_ns());

	fprintf(stderr, "BRIM_SEED=%" PRIu64 "\n", seed);
	return seed;
}

#endif
