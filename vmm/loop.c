/*
 * The event loop: one epoll, one thread.  Everything that is not running the
 * guest happens here, so nothing here may block or run long.
 *
 * Owner: the loop thread; watch and unwatch also before it runs.  A callback may
 * unwatch any fd, its own included: entries are only freed between turns.
 */
#include <errno.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "vmm/internal.h"

#define LOOP_EVENTS 32

struct watch {
	struct watch *next;
	int fd; /* -1: unwatched, to be freed */
	void (*fn)(void *arg, unsigned events);
	void *arg;
};

struct loop {
	int epoll_fd;
	struct watch *watches;
	bool garbage;
};

int loop_create(struct loop **out, struct err *e)
{
	struct loop *l = calloc(1, sizeof *l);

	if (!l)
		return err_set(e, -ENOMEM, "event loop: out of memory");
	l->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	if (l->epoll_fd < 0) {
		int rc = -errno;

		free(l);
		return err_sys(e, rc, "event loop: epoll_create1");
	}
	*out = l;
	return 0;
}

static void collect(struct loop *l, bool all)
{
	struct watch **at = &l->watches;

	while (*at) {
		struct watch *w = *at;

		if (!all && w->fd >= 0) {
			at = &w->next;
			continue;
		}
		*at = w->next;
		free(w);
	}
	l->garbage = false;
}

void loop_destroy(struct loop **lp)
{
	struct loop *l = *lp;

	if (!l)
		return;
	collect(l, true);
	close(l->epoll_fd);
	free(l);
	*lp = NULL;
}

static struct watch *find(const struct loop *l, int fd)
{
	struct watch *w = l->watches;

	while (w && w->fd != fd)
		w = w->next;
	return w;
}

int loop_watch(struct loop *l, int fd, unsigned events,
	       void (*fn)(void *arg, unsigned events), void *arg)
{
	struct epoll_event ev = { .events = events };
	struct watch *w = find(l, fd);
	bool fresh = !w;

	VERIFY(fd >= 0);
	if (fresh && !(w = calloc(1, sizeof *w)))
		return -ENOMEM;
	w->fn = fn;
	w->arg = arg;
	ev.data.ptr = w;
	if (epoll_ctl(l->epoll_fd, fresh ? EPOLL_CTL_ADD : EPOLL_CTL_MOD, fd, &ev) < 0) {
		int rc = -errno;

		if (fresh)
			free(w);
		return rc;
	}
	if (fresh) {
		w->fd = fd;
		w->next = l->watches;
		l->watches = w;
	}
	return 0;
}

void loop_unwatch(struct loop *l, int fd)
{
	struct watch *w = find(l, fd);

	if (!w)
		return;
	/* Fails only when the fd was closed before: then epoll forgot it itself. */
	epoll_ctl(l->epoll_fd, EPOLL_CTL_DEL, fd, NULL);
	w->fd = -1;
	l->garbage = true;
}

void loop_turn(struct loop *l, int timeout_ms)
{
	struct epoll_event ev[LOOP_EVENTS];
	int n = epoll_wait(l->epoll_fd, ev, LOOP_EVENTS, timeout_ms);

	for (int i = 0; i < n; i++) {
		struct watch *w = ev[i].data.ptr;

		if (w->fd >= 0) /* not unwatched by an earlier callback */
			w->fn(w->arg, ev[i].events);
	}
	if (l->garbage)
		collect(l, false);
}

static int env_watch(void *opaque, int fd, unsigned events,
		     void (*fn)(void *arg, unsigned events), void *arg)
{
	return loop_watch(opaque, fd, events, fn, arg);
}

static void env_unwatch(void *opaque, int fd)
{
	loop_unwatch(opaque, fd);
}

const struct virtio_env_ops loop_env_ops = { .watch = env_watch, .unwatch = env_unwatch };
