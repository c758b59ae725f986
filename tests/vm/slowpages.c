/*
 * slowpages: makes the pages that a thread brings back slow to come, as a disk would.
 *
 * usage: slowpages TID MILLISECONDS
 *
 * What lives here: the companion of t_asyncpf. It traces one thread of a running VM, from outside, and holds it
 * up before each UFFDIO_COPY, which is how a packed page goes back; what the thread does besides is not held up.
 * So nothing in brim has to know of it. Prints `slowpages: ready` once it holds. Ended by a signal: the kernel
 * then lets the thread go, in the middle of a pause as well.
 *
 * What must be true: the thread's system calls are those it would have made, with the same results.
 *
 * Exit: 0 the thread ended; 1 it cannot be traced; 2 usage.
 */
#include <errno.h>
#include <linux/userfaultfd.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <time.h>

#define SYSCALL_STOP (SIGTRAP | 0x80) /* as PTRACE_O_TRACESYSGOOD marks it */

static bool begins_copy(pid_t tid)
{
	struct __ptrace_syscall_info info;

	return ptrace(PTRACE_GET_SYSCALL_INFO, tid, (void *)sizeof(info), &info) > 0 &&
	       info.op == PTRACE_SYSCALL_INFO_ENTRY && info.entry.nr == SYS_ioctl &&
	       info.entry.args[1] == UFFDIO_COPY;
}

static void hold(long ms)
{
	nanosleep(&(struct timespec){ .tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000 }, NULL);
}

/* The signal the thread is to get as it goes on: its own, not those that tracing makes. */
static int signal_of(int status)
{
	bool of_tracing = status >> 16 || WSTOPSIG(status) == SYSCALL_STOP;

	return of_tracing ? 0 : WSTOPSIG(status);
}

int main(int argc, char **argv)
{
	pid_t tid = argc == 3 ? (pid_t)strtol(argv[1], NULL, 10) : 0;
	long ms = argc == 3 ? strtol(argv[2], NULL, 10) : 0;
	bool said = false;
	int status;

	if (tid <= 0 || ms <= 0) {
		fprintf(stderr, "usage: slowpages TID MILLISECONDS\n");
		return 2;
	}
	if (ptrace(PTRACE_SEIZE, tid, NULL, (void *)PTRACE_O_TRACESYSGOOD) < 0 ||
	    ptrace(PTRACE_INTERRUPT, tid, NULL, NULL) < 0) {
		fprintf(stderr, "slowpages: cannot trace %d: %s\n", (int)tid, strerror(errno));
		return 1;
	}
	while (waitpid(tid, &status, __WALL) == tid && WIFSTOPPED(status)) {
		if (WSTOPSIG(status) == SYSCALL_STOP && begins_copy(tid))
			hold(ms);
		ptrace(PTRACE_SYSCALL, tid, NULL, (void *)(long)signal_of(status));
		if (!said)
			printf("slowpages: ready\n");
		said = true;
		fflush(stdout);
	}
	return 0;
}
