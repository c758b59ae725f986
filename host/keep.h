/*
 * host/keep.h: the VMs of this host, kept in the state they are meant to be in.
 *
 *            keeper_up()              may it: order, pace, admission      "ok"
 *     OFF ───────────────► WAITING ─────────────────────────► STARTING ───────► RUNNING
 *      ▲                    ▲   │ its tries are used up           │ "error"        │ │
 *      │                    │   ▼                                 │              ends│ keeper_down()
 *      │                    │  FAILED ◄───────────────────────────┴──────────┐     │ ▼
 *      │                    └── restart policy ◄───────────────────────────────────┤ STOPPING
 *      └───────────────────────────────────────────────────────────────────────────┴────┘ ends
 *
 * A VM that runs when the daemon starts is adopted: it is RUNNING from then on.  One that is in
 * no configuration (somebody typed `brim run`) is seen, and counted, and left alone.
 *
 * A VM's process is watched by a pidfd, so that its end is seen whoever its parent is, and
 * steered through its control socket (link.h).  Nothing waits for it.
 *
 * Thread: the daemon's.
 *
 * Invariants:
 *  I1  No process is started for a name that somebody holds: brim-vmm itself refuses that, and
 *      what it says is believed.
 *  I2  A VM is stopped only because it was asked for by name, or all were.
 *  I3  What is admitted stays counted until its process has ended.
 */
#ifndef BRIM_HOST_KEEP_H
#define BRIM_HOST_KEEP_H

#include "host/admission.h"
#include "host/config/config.h"
#include "host/link.h"
#include "vmm/client.h"

enum guest_state {
	GUEST_OFF,
	GUEST_WAITING,  /* to be started: `why` says for what it waits */
	GUEST_STARTING, /* its process has been started, its guest not */
	GUEST_RUNNING,
	GUEST_STOPPING,
	GUEST_FAILED,   /* not tried again by itself */
};
const char *guest_state_name(enum guest_state s);

struct guest {
	struct vm_paths paths;
	const struct host_vm *vm; /* NULL: in no configuration */
	enum guest_state state;
	char why[512];            /* the last thing worth knowing of it, or "" */
	pid_t pid;                /* 0: no process */
	uint64_t run_id;          /* of this process: no two have the same */
	bool is_child, is_adopted;
	struct link *link;        /* NULL: none now */
	uint64_t since_ns;        /* in this state */
	uint64_t not_before_ns;   /* WAITING: for a restart's delay */
	unsigned tries;           /* starts that failed in a row */
	bool is_asked_off;        /* by its user: not restarted when it ends */
	bool is_stopped_by_us;    /* its vCPUs, by the policy */
	bool is_given_up;         /* its start has failed, and its process is being ended */
	uint64_t overhead_bytes;  /* measured; 0: not yet */
	uint64_t memory_bytes, swap_bytes; /* that it was started with */
	struct guest *next;
	/* keep.c's */
	struct guest_watch *watch;
};

struct keeper;

struct keeper_config {
	const char *run_dir;
	struct admission_host host;
	uint64_t grace_ns; /* for a process to end at once, before it is killed; 0: 10 s */
};

int keeper_create(struct keeper **out, struct poller *p, const struct keeper_config *cfg,
		  struct err *e);
/* VMs run on. */
void keeper_destroy(struct keeper **k);

/* Sees what runs already.  Once, at the start. */
int keeper_adopt(struct keeper *k, struct err *e);
/* What the VMs are to be like from now on, and what they may be promised; `cfg` stays the
 * caller's, and outlives the next call. */
void keeper_configure(struct keeper *k, const struct host_config *cfg,
		      const struct admission_host *host);
/* To be started, if it does not run: one VM of the configuration, or (NULL) all that start by
 * themselves.  -ENOENT: there is none of that name. */
int keeper_up(struct keeper *k, const char *name, struct err *e);
/* To be stopped: one VM, or (NULL) all of the configuration. */
int keeper_down(struct keeper *k, const char *name, struct err *e);

/* Starts what may be started, ends what does not stop.  Often enough: every 100 ms while
 * keeper_is_busy(), else every second. */
void keeper_tick(struct keeper *k, uint64_t now);
bool keeper_is_busy(const struct keeper *k);

/* In the order of the configuration, others behind. */
struct guest *keeper_guests(struct keeper *k);
struct guest *keeper_find(struct keeper *k, const char *name);
/* What is promised to all VMs that have a process. */
uint64_t keeper_promised(const struct keeper *k);

#endif
