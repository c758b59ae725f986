/*
 * The system calls of the memory engine, as the kernel has them.  Callers reach
 * them only through a struct mm_host, so that a test can make call 1, then 2,
 * then 3 of a scenario fail; nothing else belongs here.
 *
 * Threads: any.  As in libc, failure is MAP_FAILED or -1, with errno set.
 */
#include "mm/mm.h"

#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

/* A pidfd that is this process, and takes no descriptor (Linux 6.14). */
#define PIDFD_ONESELF (-10000)

static void *host_mmap(void *addr, size_t len, int prot, int flags, int fd, int64_t off)
{
	return mmap(addr, len, prot, flags, fd, off);
}

static int host_munmap(void *addr, size_t len)
{
	return munmap(addr, len);
}

static int host_madvise(void *addr, size_t len, int advice)
{
	return madvise(addr, len, advice);
}

/* Linux takes MADV_DONTNEED here, for oneself, since 6.13; since 6.16 it flushes
 * TLBs once for the whole call, which is what makes it worth having: 0.5 us a
 * page instead of 1.5.  Older hosts refuse it with EBADF, EINVAL or ENOSYS. */
static int64_t host_madvise_many(const struct iovec *ranges, size_t n, int advice)
{
	return syscall(SYS_process_madvise, PIDFD_ONESELF, ranges, n, advice, 0);
}

const struct mm_host mm_host_linux = {
	.mmap = host_mmap,
	.munmap = host_munmap,
	.madvise = host_madvise,
	.madvise_many = host_madvise_many,
};
