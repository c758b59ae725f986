/*
 * mm/ksm/: a VM's side of sharing equal pages.  brimd, another process, knows of all VMs of
 * a share group which pages they have, by hash, and keeps what several have in a store; this
 * room tells it of ours, and has the engine (mm/share.c) give up what the store has too.
 *
 * wire.h wire.c  what the two say to each other; brimd includes these too
 * ksm.c          made, started, stopped; the thread, its pace, what it is to do next
 * client.c       the connection: from HELLO to WELCOME, messages in and out, the store
 * scan.c         questions and answers: which pages are looked up, what becomes of them
 * uses.c         how many of our pages use a store page, and what brimd knows of that
 *
 * Threads: one, "share" (ROLE_SHARE), does all of it.  ksm_leaving() is the reclaimer's,
 * and the drop of a use (uses.c) any thread's; both under the lock of a chunk, where they
 * wait for nothing.
 *
 * Invariants:
 *  I1  A use of a store page is counted before the engine can make a page STORED with it,
 *      and until it says that the page is so no more.
 *  I2  A store page is released only while its count is 0, and nothing that names it is
 *      used from then until brimd has said RELEASED.
 *  I3  No thread of the VM but this one ever waits for brimd, and this one only where it
 *      can be stopped and holds no lock.
 *  I4  Whatever brimd says, page numbers are in range before they are used, and no page is
 *      given up that the engine has not compared.  A brimd that is dead, slow, stopped or
 *      wrong costs the VM what it might have shared, and nothing else.
 */
#ifndef BRIM_MM_KSM_KSM_H
#define BRIM_MM_KSM_KSM_H

#include "mm/mm.h"

#define KSM_GROUP_MAX 64u /* with its terminating 0 */
#define KSM_CPU_PCT 10u
#define KSM_PASS_NS 1000000000u

struct ksm;

struct ksm_config {
	const char *socket; /* brimd's; copied, as are the names */
	const char *vm, *group;
	unsigned cpu_pct;     /* of one CPU, 1..100; 0: KSM_CPU_PCT */
	uint64_t pages_per_s; /* looked up at most; 0: no bound but that */
	uint64_t pass_ns;     /* between looks for what is cold; 0: KSM_PASS_NS */
	uint64_t retry_ns;    /* between attempts to connect; 0: 1 s */
	uint64_t loaded_ns;   /* how long what was loaded may be looked up at once; 0: 10 s */
	/* Another way to connect: a descriptor, or -errno.  NULL: the socket. */
	int (*dial)(void *ctx);
	void *dial_ctx;
};

/* Costs next to nothing before it is started. */
int ksm_create(struct ksm **out, const struct ksm_config *cfg, struct err *e);
/* Once, before ksm_start().  Both outlive the thread; the engine also ends before
 * ksm_destroy(), as until then it reads the store. */
void ksm_attach(struct ksm *k, struct engine *e, const struct ram *ram);
/* Pages that were just loaded from a file, which other VMs may have loaded too.  They are
 * looked up at once after the connection is made, at no pace, before any that is cold: the
 * guest will never be so like others again.  After a while they are taken for what all others
 * are.  Between ksm_attach() and ksm_start(); beyond KSM_LOADED_MAX ranges, nothing is done. */
#define KSM_LOADED_MAX 16u
void ksm_loaded(struct ksm *k, uint64_t index, uint64_t pages);
/* The engine_config's `leaving`. */
void ksm_leaving(void *ctx, uint64_t index, const void *page);

int ksm_start(struct ksm *k, struct err *e);
/* Nobody touches guest RAM from here on.  Also where it was never started. */
void ksm_stop(struct ksm *k);
void ksm_destroy(struct ksm **k);

/* Does somebody take connections there, now?  Does not block. */
bool ksm_listens(const char *socket);

enum ksm_state {
	KSM_WAITING,   /* for a brimd */
	KSM_JOINING,   /* connected, not yet welcome */
	KSM_CONNECTED,
	KSM_REFUSED,   /* `why` is brimd's sentence */
};
const char *ksm_state_name(enum ksm_state s);

struct ksm_status {
	enum ksm_state state;
	char why[256]; /* "", or what was wrong last */
};
/* Any thread. */
void ksm_status(struct ksm *k, struct ksm_status *out);

/* What the thread does, once: waits at most so long (-1: as long as it takes) for something
 * to do, and does a bounded amount of it.  For tests, in the thread's place. */
void ksm_step(struct ksm *k, int timeout_ms);

#endif
