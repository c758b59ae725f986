/*
 * The oracle: what would sharing equal pages save, if it were perfect?
 *
 * It reads all of the memory it is given, hashes each page (XXH3-128), sorts, and counts
 * how many contents there are.  Memory is this process's or another's (the right to trace
 * it is needed).  Reading another VM's memory brings back what is away: so what a VM saves
 * is to be read off before it is given to the oracle.
 *
 * Threads: the caller's.  24 bytes of memory a page.
 */
#ifndef BRIM_BENCH_ORACLE_H
#define BRIM_BENCH_ORACLE_H

#include <stdio.h>
#include <sys/types.h>

#include "mm/mm.h"

struct oracle_range {
	pid_t pid; /* 0: this process */
	uint64_t addr, bytes; /* whole pages */
};

struct oracle_counts {
	uint64_t pages;
	uint64_t zero_pages;     /* need no memory at all */
	uint64_t filled_pages;   /* others that are one 8-byte pattern throughout */
	uint64_t contents;       /* different ones, but that of zeroes */
	uint64_t single_pages;   /* whose content no other page has */
	uint64_t most;           /* pages of one content */
	uint64_t collisions;     /* pages of equal hash whose bytes differ: counted apart */
	uint64_t saving_pages;   /* pages less contents: also those of zeroes */
	uint64_t equal_pages;    /* of the saving, those that are not zeroes */
};

/* Counts the pages of all ranges together.  `compare`: pages of equal hash are read once
 * more and compared, for memory that stands still.  0 or -errno. */
int oracle_count(const struct oracle_range *ranges, unsigned n, bool compare,
		 struct oracle_counts *out);

/* The RAM of the guest whose VMM that is: the run of adjacent private mappings that is
 * exactly that long; bytes 0: the longest.  -ENOENT where there is none. */
int oracle_guest_ram(pid_t pid, uint64_t bytes, struct oracle_range *out);

/* Pages of the range that have memory of their own, or are in swap, by the kernel's
 * account: not those of a store mapped there, nor the kernel's page of zeroes; KSM's
 * shared pages are counted for each that has them.  Brings nothing back.  0 or -errno. */
int oracle_resident(const struct oracle_range *range, uint64_t *pages);

#endif
