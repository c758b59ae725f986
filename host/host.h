/*
 * host/: one daemon a host, `brimd`.  This is the host's side of sharing equal pages;
 * mm/ksm/wire.h is what it and VMs say to each other.  Everything else begins at daemon.h:
 * daemon.c keep.c link.c admission.c steward.c views.c snapshot.c ctl.c poll.c, and config/.
 *
 * main.c      the process: arguments, lock, signals
 * server.c    the event loop: the socket, who connects, what is done in a turn
 * session.c   one connection: messages in and out, its end
 * hello.c     how a VM comes in: HELLO, HOLD, WELCOME
 * lookup.c    LOOKUP, CONTENT, RELEASE, and the offers that follow from them
 * group.c     share groups, and the processes in them with what they hold
 * recover.c   what outlives the daemon, and how its stores are found again
 * index.c     hash to page, of one share group
 * store.c     the pages that are shared, and who holds which
 * verify.c    whether all of these agree, for tests
 *
 *   session (a connection) ──► process (a pid and its start) ──► store ──► group
 *        its candidates              what it holds               its pages    index, seed
 *
 * Thread: one.  A turn does a bounded amount for each VM: one message, and some pages of
 * background work.  Nothing waits for a VM.
 *
 * Invariants:
 *  I1  A store page that any process holds is not changed, freed or given back, whatever
 *      VMs send: holds end by RELEASE of that process, or with the process.
 *  I2  A page is named to a VM only after it is held for its process.
 *  I3  A group's pages are named to, and its store is given to, processes of its owner
 *      only, who said its name.
 *  I4  A VM can make the daemon use no more than: its RAM's pages of a store, an index
 *      entry and 4 bytes a page of its RAM, 64 KiB of answer and a queue of offers.
 */
#ifndef BRIM_HOST_H
#define BRIM_HOST_H

#include <sys/types.h>

#include "mm/mm.h"

struct share_host;

struct share_host_config {
	const char *state_dir;     /* a directory of the daemon's own; NULL: nothing is kept */
	uint64_t store_bytes;      /* a store's size at most; 0: the host's RAM */
	uint64_t index_pages;      /* pages remembered at most; 0: as the host's RAM has */
	uint64_t recall_after_ns;  /* 0: 60 s */
	uint64_t recover_ns;       /* how long new VMs wait for those of an earlier daemon; 0: 10 s */
	uint64_t hello_ns;         /* how long a connection may say nothing; 0: 10 s */
	unsigned sessions_max;     /* 0: 1024 */
	unsigned offers_max;       /* that wait for a VM; 0: 65536 */
};

/* Who is at the other end of a connection.  pidfd: a descriptor that is readable from the
 * end of the process on. */
struct share_peer {
	pid_t pid;
	uid_t uid;
	uint64_t start; /* field 22 of /proc/PID/stat */
	int pidfd;
};

int share_host_create(struct share_host **out, const struct share_host_config *cfg, struct err *e);
/* VMs run on, and find the next daemon. */
void share_host_destroy(struct share_host **h);

/* Takes connections at that path (mode 0660). */
int share_host_listen(struct share_host *h, const char *path, struct err *e);
/* A connection that is there already.  Takes both descriptors, also where it fails. */
int share_host_attach(struct share_host *h, int fd, const struct share_peer *peer);
/* A turn ends, too, when this descriptor is readable; the caller reads it. */
int share_host_watch(struct share_host *h, int fd);

/* Waits for something to do, at most so long (-1: as long as it takes), and does a
 * bounded amount of it.  0 or -errno: the loop itself is broken. */
int share_host_turn(struct share_host *h, int timeout_ms);

struct share_host_stats {
	uint64_t groups, processes, sessions, stores;
	uint64_t candidates;     /* pages remembered */
	uint64_t store_pages;    /* used */
	uint64_t held_pages;     /* holds of all processes: less store_pages is what is saved */
	uint64_t resident_bytes; /* of stores, by the kernel's account */
	uint64_t index_bytes;    /* of the daemon's tables by hash */
};
void share_host_stats(const struct share_host *h, struct share_host_stats *out);

/* Between turns: whether index, stores, holds and sessions agree.  A sentence where not. */
bool share_host_verify(const struct share_host *h, struct err *why);

#endif
