/*
 * An epoll set.
 */
#include "host/poll.h"

#include <errno.h>
#include <unistd.h>

int poller_init(struct poller *p, struct err *e)
{
	*p = (struct poller){ .epoll_fd = epoll_create1(EPOLL_CLOEXEC) };
	return p->epoll_fd < 0 ? err_sys(e, -errno, "event loop") : 0;
}

void poller_fini(struct poller *p)
{
	if (p->epoll_fd >= 0)
		close(p->epoll_fd);
	p->epoll_fd = -1;
}

int poller_add(struct poller *p, struct polled *w, unsigned events)
{
	struct epoll_event ev = { .events = events, .data.ptr = w };

	w->events = events;
	return epoll_ctl(p->epoll_fd, EPOLL_CTL_ADD, w->fd, &ev) < 0 ? -errno : 0;
}

void poller_set(struct poller *p, struct polled *w, unsigned events)
{
	struct epoll_event ev = { .events = events, .data.ptr = w };

	if (w->fd < 0 || w->events == events)
		return;
	w->events = events;
	VERIFY(epoll_ctl(p->epoll_fd, EPOLL_CTL_MOD, w->fd, &ev) == 0);
}

void poller_close(struct poller *p, struct polled *w)
{
	if (w->fd < 0)
		return;
	for (int i = 0; i < p->count; i++)
		if (p->event[i].data.ptr == w)
			p->event[i].data.ptr = NULL;
	/* Before it is closed: a child may have a copy of it, and it would stay. */
	(void)epoll_ctl(p->epoll_fd, EPOLL_CTL_DEL, w->fd, NULL);
	close(w->fd);
	w->fd = -1;
}

int poller_turn(struct poller *p, int timeout_ms)
{
	int n = epoll_wait(p->epoll_fd, p->event, POLL_EVENTS, timeout_ms);

	if (n < 0)
		return errno == EINTR ? 0 : -errno;
	p->count = n;
	for (int i = 0; i < n; i++) {
		struct polled *w = p->event[i].data.ptr;

		if (w)
			w->fn(w, p->event[i].events);
	}
	p->count = 0;
	return 0;
}
