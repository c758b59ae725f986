/*
 * mm/balloon/: memory a guest says it does not need goes back to the host.
 *
 *   ranges.c   page numbers in any order become few maximal ranges
 *   book.c     which pages are in the balloon
 *   balloon.c  the two together, and the discarding itself
 *
 * A page's way:
 *
 *   guest's --inflate()--> in the book, pending --discard()--> in the book, gone
 *      ^                                                              |
 *      +----------------------------- deflate() ----------------------+
 *   guest's --free_range()--> pending --discard()--> guest's, gone (reads zeroes)
 *
 * What it costs is system calls and the invalidations under them, not pages: 1.5
 * us for one 4 KiB page alone, 0.25 us a page in a run of 1 MiB, 0.5 us a page
 * scattered but in one process_madvise, 7 us for a whole 2 MiB page.  On top,
 * KVM throws every vCPU out of the guest once for each range.  Hence: collect as
 * much as the caller may hold back, sort, merge, discard in as few calls as
 * possible.
 *
 * Huge pages: a part of a huge page is discarded like everything else.  The
 * kernel then splits it (the guest loses the big mapping) and frees its memory
 * when the last of its pages goes or the host runs short.  Holding such parts
 * back until a block is complete was rejected: it would free nothing earlier, the
 * book would claim memory that is still there, and most blocks complete within
 * one batch anyway, since a guest takes its pages from its own 2 MiB blocks.
 * (With RAM_HUGE_ALWAYS the kernel may collapse a holed block again: that
 * setting trades density for speed.)
 *
 * Owner: the balloon device, under its lock.  discard(), and what calls it, from
 * the loop thread only.  mm/balloon takes no lock.
 *
 * Invariants:
 *  I1  A page leaves the book only after it is no longer pending: nothing is
 *      ever discarded that the guest may be using again.
 *  I2  No range crosses from one slot of RAM into the other.
 *  I3  Whatever a guest says, its books only ever count its own RAM, every page
 *      at most once; a lie is counted and changes nothing else.
 */
#ifndef BRIM_MM_BALLOON_H
#define BRIM_MM_BALLOON_H

#include "mm/mm.h"

/* Ranges that can be pending at once; a page costs one at most. */
#define BALLOON_PENDING_MAX 2048u

struct balloon;

/* `host` as for ram_create(), for the book's own memory (1 bit a page, paid for
 * when touched). -ENOMEM. */
int balloon_create(struct balloon **out, const struct ram *ram,
		   const struct mm_host *host, struct err *e);
void balloon_destroy(struct balloon **b);

/* The guest gives n pages / takes n pages back.  Page numbers are 4 KiB guest
 * frames, host byte order, any content.  Both count what they see; inflate
 * leaves the pages pending, and needs balloon_room() >= n.  deflate discards
 * what is pending first (I1). */
void balloon_inflate(struct balloon *b, const uint32_t *pfns, unsigned n);
void balloon_deflate(struct balloon *b, const uint32_t *pfns, unsigned n);

/* Memory the guest has free but keeps: the whole pages inside the range become
 * pending.  Returns how many, 0 also for what is not RAM.  Needs room for 1. */
uint64_t balloon_free_range(struct balloon *b, gpa_t addr, uint64_t len_bytes);

/* How many more pages or ranges may be added before a discard. */
unsigned balloon_room(const struct balloon *b);
/* Pages pending, those named twice counted twice. */
uint64_t balloon_pending_pages(const struct balloon *b);

/* Gives everything pending back to the host.  Returns the pages given back; what
 * the host refused to take is counted, and left as it was. */
uint64_t balloon_discard(struct balloon *b);

/* The driver has gone: every page is the guest's again, nothing is pending. */
void balloon_forget(struct balloon *b);

/* The book. */
uint64_t balloon_pages(const struct balloon *b);
bool balloon_holds(const struct balloon *b, gfn_t frame);

#endif
