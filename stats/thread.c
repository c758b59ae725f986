/*
 * Threads and CPUs: where a thread runs, and holding it on a CPU for a while.
 *
 * A hold leaves no trace: the thread may afterwards run where it might before, by a pin
 * of its user's or by its cpuset.  Linux remembers which CPUs were asked for, and goes by
 * that when a cpuset grows; a thread that nobody has pinned has asked for none.  So a
 * thread that was free to use all its cpuset is let go by asking for all CPUs there are,
 * and only one that was not gets its own set back.
 *
 * Threads: any; a struct thread_hold has one owner at a time.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/rseq.h>
#include <unistd.h>

#include "stats/stats.h"

const uint32_t *thread_cpu_word(void)
{
	const struct rseq *r = (const void *)((const char *)__builtin_thread_pointer() +
					      __rseq_offset);

	return __rseq_size ? &r->cpu_id : NULL;
}

int thread_cpu_read(const uint32_t *word)
{
	int cpu = word ? (int)__atomic_load_n(word, __ATOMIC_RELAXED) : -1;

	return cpu < 0 ? -1 : cpu;
}

int thread_hold(struct thread_hold *h, pid_t tid, int cpu)
{
	cpu_set_t was, one;

	if (h->is_held || cpu < 0 || cpu >= CPU_SETSIZE)
		return -EINVAL;
	if (sched_getaffinity(tid, sizeof(was), &was))
		return -errno;
	if (CPU_COUNT(&was) == 1)
		return -EALREADY; /* bound by its user */
	CPU_ZERO(&one);
	CPU_SET((unsigned)cpu, &one);
	if (!CPU_ISSET((unsigned)cpu, &was) || sched_setaffinity(tid, sizeof(one), &one))
		return -EINVAL;
	*h = (struct thread_hold){ .was = was, .one = one, .is_held = true };
	return 0;
}

void thread_release(struct thread_hold *h, pid_t tid)
{
	cpu_set_t now, all;

	if (!h->is_held)
		return;
	h->is_held = false;
	/* Pinned by somebody meanwhile, or gone: not ours to change. */
	if (sched_getaffinity(tid, sizeof(now), &now) || !CPU_EQUAL(&now, &h->one))
		return;
	memset(&all, 0xff, sizeof(all));
	if (!sched_setaffinity(tid, sizeof(all), &all) &&
	    !sched_getaffinity(tid, sizeof(now), &now) && CPU_EQUAL(&now, &h->was))
		return;
	/* Refused: none of its CPUs is left to it, and the kernel has chosen others. */
	(void)sched_setaffinity(tid, sizeof(h->was), &h->was);
}

int64_t thread_waited_ns(pid_t tid)
{
	char path[64], text[128];
	unsigned long long ran, waited;
	int64_t n;
	int fd;

	snprintf(path, sizeof(path), "/proc/self/task/%d/schedstat", (int)tid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	n = fd < 0 ? -1 : read(fd, text, sizeof(text) - 1);
	if (fd >= 0)
		close(fd);
	if (n <= 0)
		return -ENOENT;
	text[n] = '\0';
	return sscanf(text, "%llu %llu", &ran, &waited) == 2 ? (int64_t)waited : -EINVAL;
}
