/* books: the engine's entries and counts against the kernel's own account of the same
 * memory: /proc/self/pagemap page by page, smaps by mapping. */
#ifndef BRIM_TESTS_BOOKS_H
#define BRIM_TESTS_BOOKS_H

#include <stddef.h>

#include "mm/internal.h"

/* What smaps says of [at, at + bytes), and of the flags of each chunk of 2 MiB in it. */
struct books_smaps {
	uint64_t rss_bytes, own_bytes, huge_bytes;
	unsigned vmas, file_vmas;
};
int books_smaps(const void *at, uint64_t bytes, struct books_smaps *out);

/* Nobody may touch guest RAM or run the engine meanwhile.  0, or -1 and why: which
 * page, what the engine says of it and what the kernel does. */
int books_check(struct engine *e, char *why, size_t size);

#endif
