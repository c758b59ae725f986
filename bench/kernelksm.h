/*
 * The peer of page sharing: the kernel's samepage merging (KSM).
 *
 * Its settings are the machine's, so it is only taken where nobody uses it or has memory
 * that it would merge too.  A child, the keeper, puts them back as they were when the pipe
 * to this process closes, however this process ended (exit, signal, kill -9).
 *
 * Threads: the caller's, one.  ksmd is the kernel's; its CPU time is its own clock's.
 */
#ifndef BRIM_BENCH_KERNELKSM_H
#define BRIM_BENCH_KERNELKSM_H

#include "bench/benchlib.h"

struct kksm;

enum kksm_pace {
	KKSM_FLAT_OUT, /* one CPU's worth: no sleep between batches */
	KKSM_USUAL,    /* 100 pages each 20 ms: the kernel's own defaults */
	KKSM_ADVISOR,  /* as the kernel's advisor has it: all of it in 200 s */
};

struct kksm_counts {
	uint64_t shared;   /* pages that others are mapped to: what is left of them */
	uint64_t sharing;  /* pages mapped to those: what is saved */
	uint64_t unshared, changing;
	uint64_t zero;     /* mapped to the kernel's page of zeroes: saved, too */
	uint64_t scanned, skipped, full_scans;
	int64_t profit_bytes; /* the kernel's own account: saved, less its items */
};

/* NULL where there is no peer to be had: no root, no KSM, somebody uses it; `why` then
 * says so. */
struct kksm *kksm_open(char *why, size_t why_len);
/* kksm_open(), and a line on stdout where there is none. */
struct kksm *kksm_peer(const struct bench *b);
/* Waits until all is as it was. */
void kksm_close(struct kksm **k);

void kksm_run(struct kksm *k, enum kksm_pace pace);
/* Returns once ksmd has ended its batch. */
void kksm_pause(struct kksm *k);
/* Everything is unmerged and forgotten. */
void kksm_reset(struct kksm *k);

void kksm_counts(const struct kksm *k, struct kksm_counts *c);
uint64_t kksm_full_scans(const struct kksm *k);
/* Pages saved. */
uint64_t kksm_saved_pages(const struct kksm *k);
uint64_t kksm_cpu_ns(const struct kksm *k);
/* Kernel memory for the pages it looks at (an item each) and for those shared (a node). */
uint64_t kksm_own_bytes(const struct kksm *k);

#endif
