/*
 * Which pages of RAM are in the balloon: one bit each, by dense index.
 *
 * The bits are an anonymous mapping of their own, so that a VM whose balloon was
 * never used pays nothing for its book, and clearing gives the memory back.
 *
 * Threads: the caller's.  Invariant: `pages` is the number of bits set.
 */
#include "mm/balloon/internal.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#define WORD_BITS 64

static uint64_t bit_of(uint64_t index)
{
	return (uint64_t)1 << index % WORD_BITS;
}

int book_init(struct book *k, uint64_t pages_max, const struct mm_host *host, struct err *e)
{
	size_t bytes = (pages_max + WORD_BITS - 1) / WORD_BITS * sizeof(*k->bits);
	void *p;

	p = host->mmap(NULL, bytes, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (p == MAP_FAILED)
		return err_sys(e, -ENOMEM, "balloon: no address space for the book of %zu KiB",
			       bytes / (size_t)KiB);
	*k = (struct book){ .host = host, .bits = p, .bytes = bytes, .pages_max = pages_max };
	return 0;
}

void book_fini(struct book *k)
{
	if (k->bits && k->host->munmap(k->bits, k->bytes) < 0)
		log_error("balloon: cannot unmap the book: %s", strerror(errno));
	*k = (struct book){ 0 };
}

bool book_has(const struct book *k, uint64_t index)
{
	VERIFY(index < k->pages_max);
	return (k->bits[index / WORD_BITS] & bit_of(index)) != 0;
}

bool book_add(struct book *k, uint64_t index)
{
	if (book_has(k, index))
		return false;
	k->bits[index / WORD_BITS] |= bit_of(index);
	k->pages++;
	return true;
}

bool book_remove(struct book *k, uint64_t index)
{
	if (!book_has(k, index))
		return false;
	k->bits[index / WORD_BITS] &= ~bit_of(index);
	VERIFY(k->pages > 0);
	k->pages--;
	return true;
}

void book_clear(struct book *k)
{
	if (k->pages && k->host->madvise(k->bits, k->bytes, MADV_DONTNEED) < 0)
		memset(k->bits, 0, k->bytes);
	k->pages = 0;
}
