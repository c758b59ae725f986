/*
 * The system calls of the memory engine, as the kernel has them.  Callers reach
 * them only through a struct mm_host, so that a test can make call 1, then 2,
 * then 3 of a scenario fail; nothing else belongs here.
 *
 * Threads: any.  As in libc, failure is MAP_FAILED or -1, with errno set.
 */
#include "mm/mm.h"

#include <fcntl.h>
#include <liburing.h>
#include <string.h>
#include <sys/ioctl.h>
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

static void *host_mremap(void *at, size_t len, size_t new_len, int flags, void *to)
{
	return mremap(at, len, new_len, flags, to);
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

static int host_userfaultfd(int flags)
{
	return (int)syscall(SYS_userfaultfd, flags);
}

static int host_pagemap(void)
{
	return open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
}

static int host_ioctl(int fd, unsigned long request, void *arg)
{
	return ioctl(fd, request, arg);
}

static int64_t host_read(int fd, void *buf, size_t len)
{
	return read(fd, buf, len);
}

static int64_t host_pread(int fd, void *buf, size_t len, int64_t off)
{
	return pread(fd, buf, len, off);
}

static int64_t host_pwrite(int fd, const void *buf, size_t len, int64_t off)
{
	return pwrite(fd, buf, len, off);
}

static int host_fallocate(int fd, int mode, int64_t off, int64_t len)
{
	return fallocate(fd, mode, off, len);
}

static int host_ring_init(unsigned depth, struct io_uring *ring)
{
	return io_uring_queue_init(depth, ring, IORING_SETUP_CLAMP);
}

static int host_ring_submit(struct io_uring *ring)
{
	return io_uring_submit(ring);
}

static int host_ring_wait(struct io_uring *ring, struct io_uring_cqe **cqe, bool wait)
{
	return wait ? io_uring_wait_cqe(ring, cqe) : io_uring_peek_cqe(ring, cqe);
}

#define THP "/sys/kernel/mm/transparent_hugepage/"

/* Is this the word in force in a file like "always [madvise] never"? */
static bool in_force(const char *path, const char *word)
{
	char text[128] = "";
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	int64_t n = fd < 0 ? -1 : read(fd, text, sizeof(text) - 1);

	if (fd >= 0)
		close(fd);
	return n > 0 && strstr(text, word);
}

/* The size's own setting first (Linux 6.8), which may defer to the one of all sizes.
 * Where neither can be read nothing forbids: a kernel without them refuses anyway. */
static bool host_huge_allowed(void)
{
	if (in_force(THP "hugepages-2048kB/enabled", "[never]"))
		return false;
	return in_force(THP "hugepages-2048kB/enabled", "[always]") ||
	       in_force(THP "hugepages-2048kB/enabled", "[madvise]") ||
	       !in_force(THP "enabled", "[never]");
}

const struct mm_host mm_host_linux = {
	.mmap = host_mmap,
	.munmap = host_munmap,
	.mremap = host_mremap,
	.madvise = host_madvise,
	.madvise_many = host_madvise_many,
	.userfaultfd = host_userfaultfd,
	.pagemap = host_pagemap,
	.ioctl = host_ioctl,
	.read = host_read,
	.pread = host_pread,
	.close = close,
	.pwrite = host_pwrite,
	.fallocate = host_fallocate,
	.ring_init = host_ring_init,
	.ring_submit = host_ring_submit,
	.ring_wait = host_ring_wait,
	.huge_allowed = host_huge_allowed,
};
