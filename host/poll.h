/*
 * host/poll.h: one epoll set, and who is to be told when a descriptor is ready.
 *
 * Who is told may close any descriptor of the set, its own included, and free what it
 * belongs to: events of the same turn that were for it are forgotten.
 *
 * Thread: one.
 */
#ifndef BRIM_HOST_POLL_H
#define BRIM_HOST_POLL_H

#include <sys/epoll.h>

#include "stats/stats.h"

#define POLL_EVENTS 64

struct polled {
	int fd; /* -1: in no set */
	void (*fn)(struct polled *p, unsigned events); /* EPOLLIN, ... */
	unsigned events;
};

struct poller {
	int epoll_fd; /* readable when a turn has something to do */
	int count;    /* of this turn's events, while it lasts */
	struct epoll_event event[POLL_EVENTS];
};

int poller_init(struct poller *p, struct err *e);
void poller_fini(struct poller *p);
/* Watches w->fd, which becomes the set's to close.  -errno: it stays the caller's. */
int poller_add(struct poller *p, struct polled *w, unsigned events);
void poller_set(struct poller *p, struct polled *w, unsigned events);
void poller_close(struct poller *p, struct polled *w);
/* Waits at most so long (-1: as long as it takes) and tells whom it concerns. 0 or -errno. */
int poller_turn(struct poller *p, int timeout_ms);

#endif
