/* everycall: a host whose call number n fails, and a scenario that is run for every n: call 0
 * fails, then call 1, ... until a whole run has none left to fail.  Either an error was
 * returned at the start, or every page is as it was, or the VM was ended by name.  Never a
 * further outcome. */
#ifndef BRIM_TESTS_EVERYCALL_H
#define BRIM_TESTS_EVERYCALL_H

#include <linux/userfaultfd.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/unit/membox.h"

/* The call of the engine's table that fails: counts down to 0, and is -1 from then on. */
static _Atomic long fail_at = -1;
static _Atomic int fail_errno = ENOMEM;

static inline bool fails(void)
{
	long n = fail_at;

	while (n >= 0 && !atomic_compare_exchange_weak(&fail_at, &n, n - 1))
		;
	if (n != 0)
		return false;
	errno = fail_errno;
	return true;
}

static inline int failing_ioctl(int fd, unsigned long request, void *arg)
{
	if (fails()) {
		if (request == UFFDIO_COPY)
			((struct uffdio_copy *)arg)->copy = -fail_errno;
		if (request == UFFDIO_MOVE)
			((struct uffdio_move *)arg)->move = -fail_errno;
		return -1;
	}
	return mm_host_linux.ioctl(fd, request, arg);
}

static inline int failing_madvise(void *addr, size_t len, int advice)
{
	return fails() ? -1 : mm_host_linux.madvise(addr, len, advice);
}

static inline void *failing_mmap(void *addr, size_t len, int prot, int flags, int fd, int64_t off)
{
	return fails() ? MAP_FAILED : mm_host_linux.mmap(addr, len, prot, flags, fd, off);
}

static inline void *failing_mremap(void *at, size_t len, size_t new_len, int flags, void *to)
{
	return fails() ? MAP_FAILED : mm_host_linux.mremap(at, len, new_len, flags, to);
}

static inline int failing_userfaultfd(int flags)
{
	return fails() ? -1 : mm_host_linux.userfaultfd(flags);
}

static inline int failing_pagemap(void)
{
	return fails() ? -1 : mm_host_linux.pagemap();
}

static inline int64_t failing_pread(int fd, void *buf, size_t len, int64_t off)
{
	return fails() ? -1 : mm_host_linux.pread(fd, buf, len, off);
}

static inline void use_failing_host(struct box *b)
{
	b->host = mm_host_linux;
	b->host.ioctl = failing_ioctl;
	b->host.madvise = failing_madvise;
	b->host.mmap = failing_mmap;
	b->host.mremap = failing_mremap;
	b->host.userfaultfd = failing_userfaultfd;
	b->host.pagemap = failing_pagemap;
	b->host.pread = failing_pread;
}

enum outcome { ALL_RIGHT, NONE_LEFT, REFUSED, ENDED, WRONG, OUTCOMES };

/* For an engine's `fatal`, as in a VM: who touches a lost page never goes on. */
static inline void end_here(void *ctx, const char *why)
{
	_exit(why[0] ? ENDED : WRONG);
}

static inline enum outcome outcome_in_child(enum outcome (*scenario)(long n, int error), long n,
					    int error)
{
	pid_t child = fork();
	int status;

	if (child == 0)
		_exit(scenario(n, error));
	cr_assert_eq(waitpid(child, &status, 0), child);
	cr_assert(WIFEXITED(status), "call %ld, errno %d: died of signal %d", n, error,
		  WTERMSIG(status));
	status = WEXITSTATUS(status);
	cr_assert_lt(status, WRONG, "call %ld, errno %d: %d", n, error, status);
	if (status == ENDED)
		fprintf(stderr, "call %ld, errno %d: the VM was ended\n", n, error);
	return (enum outcome)status;
}

/* Adds to `seen` how often each came out. */
static inline void fail_every_call(enum outcome (*scenario)(long n, int error), int error,
				   unsigned seen[OUTCOMES])
{
	enum outcome o = ALL_RIGHT;

	for (long n = 0; o != NONE_LEFT; n++) {
		o = outcome_in_child(scenario, n, error);
		seen[o]++;
	}
	fprintf(stderr, "errno %d: so far %u without harm, %u refused at the start, %u ended the VM\n",
		error, seen[ALL_RIGHT], seen[REFUSED], seen[ENDED]);
}

#endif
