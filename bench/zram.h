/*
 * The peer of the memory engine's benchmarks: the kernel's swap on zram.
 *
 * A mapping of this process is paged out by madvise(MADV_PAGEOUT), which compresses
 * in the caller's context, and comes back by being touched.
 *
 * The device belongs to a child, the keeper: it adds, formats and enables it, and
 * takes it away again when the pipe to this process closes, however this process
 * ended (exit, signal, kill -9).  It restores vm.page-cluster as well.
 *
 * Threads: the caller's, one.  Sizes in pages of PAGE_BYTES.
 */
#ifndef BRIM_BENCH_ZRAM_H
#define BRIM_BENCH_ZRAM_H

#include "bench/benchlib.h"
#include "mm/mm.h"

struct zram;

/* Swap space for so many pages.  NULL where there is no peer to be had: no root, no
 * zram, other swap or zswap in use; `why` then says so.  Call it before the program
 * has memory of its own: what is shared with the keeper is not paged out. */
struct zram *zram_open(uint64_t pages, char *why, size_t why_len);
/* zram_open(), and a line on stdout where there is none. */
struct zram *zram_peer(const struct bench *b, uint64_t pages);
/* Waits until the device is gone. */
void zram_close(struct zram **z);
const char *zram_name(const struct zram *z); /* "zram swap, lz4" */

/* A new mapping with these pages, in small pages; the one before is given back. */
uint8_t *zram_hold(struct zram *z, const uint8_t *page, uint64_t pages);
void zram_drop(struct zram *z);
/* Pages all of it out. */
void zram_evict(struct zram *z);
/* Is the page out?  Neither mapped nor in the swap cache. */
bool zram_is_away(const struct zram *z, uint64_t i);
uint64_t zram_away_pages(const struct zram *z);
/* mm_stat's mem_used_total. */
uint64_t zram_held_bytes(const struct zram *z);
/* vm.page-cluster: pages read at once are 2 to the power of it. -1: as it was. */
void zram_page_cluster(struct zram *z, int cluster);

#endif
