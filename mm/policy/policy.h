/*
 * mm/policy/: who gets how much of the host's memory, and by which means.
 *
 *   policy_step(config, host view, VM views, memory) -> plan
 *
 *   config.c   the keys' defaults, and bounds that hold whatever was configured
 *   states.c   how short the host is: high, clear, soft, hard, low
 *   measure.c  what a VM needs: working set, refaults, stall, what still could be taken
 *   floors.c   contracts, steps that hurt, and what is remembered of them
 *   share.c    reservation, limit, shares: who gives, who gets
 *   means.c    how: balloon or engine, and vCPUs that are stopped
 *   step.c     the order of all this
 *   explain.c  a plan in sentences
 *   trace.c    views as JSON lines;  rivals.c  other rules, to compare with;
 *   model.c    VMs that do not exist, to try all of them on
 *
 * A step is a function: no I/O, no clock (time is in the view), no allocation, no
 * global state; what it remembers is in struct policy_memory, which the caller keeps.
 * Equal views in equal order give equal plans.  One thread at a time for one memory.
 *
 * Two amounts are decided for each VM: the most host memory that its RAM may cost (`limit_bytes`,
 * enforced by the VM's own engine, so that a lie or a dead daemon changes nothing), and how
 * much the guest is asked to give up itself (`balloon_bytes`, a request).
 *
 * Invariants, whatever the views say:
 *  I1  What a plan allows beyond what VMs hold already fits in what there is: the sum
 *      of max(limit - held, 0) is at most the free memory beyond the head room, or what
 *      reservations lack, if that is more.
 *  I2  A VM's limit is never below its reservation (or its own configured limit, if less).
 *  I3  A step takes a bounded amount from a VM: its limit is never further below what it held
 *      than that, unless it grew meanwhile.
 *  I4  What a VM's shares give it does not depend on what its guest says of itself, nor, from
 *      the state that packs on, does what is taken of it: that decides by which means only.
 *  I5  Constant views lead to a constant plan.
 */
#ifndef BRIM_MM_POLICY_H
#define BRIM_MM_POLICY_H

#include <stdio.h>

#include "mm/mm.h"

/* ---- configuration -------------------------------------------------------- */

/* How short of memory the host is; each has means that it allows. */
enum policy_state {
	POLICY_HIGH,  /* plenty */
	POLICY_CLEAR, /* look for what is the same */
	POLICY_SOFT,  /* take what is idle */
	POLICY_HARD,  /* take what is needed */
	POLICY_LOW,   /* nothing is left: VMs are stopped */
	POLICY_STATES,
};
const char *policy_state_name(enum policy_state s);

/* In the order of what they cost a guest. */
enum policy_means {
	POLICY_FREE,    /* pages the guest reports free, same-filled ones: always */
	POLICY_BALLOON, /* the guest chooses */
	POLICY_SHARING, /* pages that other VMs have too */
	POLICY_PACKING, /* compressed in memory */
	POLICY_DISK,    /* in the swap file */
	POLICY_STOPPING,/* vCPUs of the least important VM */
	POLICY_MEANS,
};
const char *policy_means_name(enum policy_means m);

/* One field a key; docs/policy.md has what each does.  Fractions are in ppm (parts of a
 * million, 1 % is 10000), times in ms. */
struct policy_config {
	/* A state is entered when free memory falls below the one, as a part of what brim may
	 * use, and left when it rises above the other. */
	uint64_t clear_enter_ppm, clear_leave_ppm;
	uint64_t soft_enter_ppm, soft_leave_ppm;
	uint64_t hard_enter_ppm, hard_leave_ppm;
	uint64_t low_enter_ppm, low_leave_ppm;
	/* Pressure stall information of the host: `some` at or above the first is soft at
	 * least, `full` at or above the second hard.  0: not looked at. */
	uint64_t psi_soft_ppm, psi_hard_ppm;
	/* The least state (enum policy_state) that allows each means. */
	uint64_t balloon_from, sharing_from, packing_from, disk_from, stopping_from;

	uint64_t idle_tax_ppm;     /* an idle page costs 1 / (1 - tax) pages; 0 to 990000 */
	uint64_t idle_after_ms;    /* not written for so long: idle */
	uint64_t promise_free_ppm; /* of what brim may use, never promised to VMs */

	/* Head room for what can be asked back at once (shared, packed, filled): the larger of a
	 * part of it, and of what has come back lately in so much time. */
	uint64_t revocable_ppm;
	uint64_t revocable_ms;

	uint64_t take_ppm;      /* of a VM's memory a second, at most, in clear and soft */
	uint64_t take_hard_ppm; /* in hard and low */
	uint64_t give_ppm;      /* given back to a VM a second, at most */
	uint64_t dead_band_ppm; /* of a VM's memory: smaller changes are not made */
	uint64_t room_min_bytes;/* what a VM may grow by between two steps, when there is enough */

	uint64_t refault_ppm;   /* contract: refaults a minute, of the working set */
	uint64_t stall_ppm;     /* contract: time vCPUs wait for memory */
	uint64_t feedback_ms;   /* how long after a step harm is blamed on it */
	uint64_t remember_ms;   /* in this time half of what was remembered of it is forgotten */

	uint64_t balloon_max_ppm;    /* of a VM's memory, the largest balloon */
	uint64_t balloon_keep_ppm;   /* of a VM's memory, what its guest should keep available */
	uint64_t balloon_silent_ms;  /* without progress for so long: inactive */
	uint64_t balloon_rest_ms;    /* after a guest was short of memory: no balloon so long */
	uint64_t balloon_short_ppm;  /* guest's available memory below this part of its own: short */

	uint64_t share_quiet_ppm; /* of one CPU, for looking for equal pages, in high */
	uint64_t share_busy_ppm;  /* from the state that allows sharing */

	uint64_t stop_after_ms;   /* in low, and this between one VM stopped and the next */
	uint64_t resume_after_ms; /* below low for so long: one goes on, and so on */

	uint64_t period_ms;       /* between steps: high and clear */
	uint64_t period_short_ms; /* soft, hard, low */
};
void policy_config_default(struct policy_config *c);
/* In order, in range?  -EINVAL and one sentence that names the key. */
int policy_config_check(const struct policy_config *c, struct err *e);
/* One key by its field's name, with or without the unit: "75%", "30s", "64M", "soft", or a plain number in the key's
 * unit.  -EINVAL; in order with the rest is for policy_config_check(). */
int policy_config_set(struct policy_config *c, const char *key, const char *text, struct err *e);

/* ---- views ------------------------------------------------------------------ */

struct policy_host_view {
	uint64_t now_ms;          /* of any clock that does not jump */
	uint64_t physical_bytes;
	uint64_t usable_bytes;    /* what brim may use */
	uint64_t reserve_bytes;   /* of the host's, never brim's */
	uint64_t available_bytes; /* the kernel's MemAvailable; it has reserve_bytes in it */
	uint64_t store_bytes;     /* pages that VMs share */
	uint64_t overhead_bytes;  /* brimd, tables: what is nobody's RAM */
	uint64_t psi_some_ppm, psi_full_ppm; /* of memory, 10 s */
};

#define POLICY_COLDS 6 /* at least 1, 2, 4, 8, 16, 32 passes */

enum policy_run { POLICY_RUNNING, POLICY_PAUSED /* by its user */, POLICY_STOPPED /* by a plan */ };

/* Of the guest, by the guest: hints. */
struct policy_guest {
	bool known;
	uint64_t age_ms;
	uint64_t total_bytes, available_bytes;
	uint64_t swap_in_bytes, major_faults; /* since boot */
};

struct policy_vm_view {
	uint64_t id;      /* the same in all steps, no two alike */
	const char *name; /* for explanations; may be NULL */
	enum policy_run run;

	/* configured */
	uint64_t memory_bytes, reservation_bytes;
	uint64_t limit_bytes;         /* the most it may ever hold; 0: its memory */
	uint64_t shares;              /* 0 counts as 1 */
	uint64_t balloon_floor_bytes; /* the guest is never asked to go below */
	bool can_balloon;             /* its driver is up, and it is not opted out */
	bool can_pack, can_disk, can_share, can_stop;

	/* in force in the VM now */
	uint64_t limit_now_bytes; /* 0: none */
	uint64_t balloon_target_bytes;

	/* where its memory is; resident, staged and pool are host memory it holds */
	uint64_t resident_bytes, staged_bytes, pool_bytes;
	uint64_t packed_bytes;  /* guest memory that is in the pool */
	uint64_t filled_bytes, shared_bytes, disk_bytes, ballooned_bytes, untouched_bytes;
	uint64_t overhead_bytes; /* its process, tables: held besides */

	/* measured by the VM's own process */
	bool cold_known;
	uint64_t cold_bytes[POLICY_COLDS]; /* of resident, not written for that many passes */
	uint64_t pass_ms;                  /* between two; 0: not known, then `passes` tell */
	uint64_t passes;                   /* since start */
	uint64_t refaults_staged, refaults_packed, refaults_stored, refaults_disk; /* pages, since start */
	uint64_t stall_us; /* vCPU time spent waiting for memory, since start, all vCPUs */
	uint64_t cpus;

	struct policy_guest guest;
};

/* ---- plan ------------------------------------------------------------------- */

/* Why; numbers are in a, b, c as explain.c says them. */
enum policy_why {
	POLICY_WHY_NONE,
	POLICY_WHY_PLENTY,         /* nobody is short: may hold all of it */
	POLICY_WHY_ROOM,           /* room to grow, by shares */
	POLICY_WHY_TAKEN,          /* gave: a bytes, at a price of b, of an active part c ppm */
	POLICY_WHY_SHIELDED,       /* not taken: reservation a */
	POLICY_WHY_WORKING_SET,    /* not taken: working set a */
	POLICY_WHY_REMEMBERED,     /* not taken: less than a has hurt */
	POLICY_WHY_NO_MEANS,       /* not taken: no means that the state allows has anything */
	POLICY_WHY_HURT_REFAULTS,  /* given a first: refaults b ppm a minute, contract c */
	POLICY_WHY_HURT_STALL,     /* given a first: stall b ppm, contract c */
	POLICY_WHY_UNDONE,         /* the last step hurt: back to a, remembered */
	POLICY_WHY_FAIR_SHARE,     /* hurts, but has its share a already */
	POLICY_WHY_GROWING,        /* given a: growing by b a second */
	POLICY_WHY_BALLOON,        /* balloon a: the guest says that b is available */
	POLICY_WHY_BALLOON_SHORT,  /* balloon to zero at once: the guest has a of b available */
	POLICY_WHY_BALLOON_REST,   /* no balloon for a ms more: the guest was short */
	POLICY_WHY_BALLOON_SILENT, /* balloon stuck at a of b for c ms: others do its part */
	POLICY_WHY_BALLOON_GIVEN,  /* balloon let down to a: memory is there */
	POLICY_WHY_PACKED,         /* a is to be packed of b cold */
	POLICY_WHY_STUCK,          /* a was asked for and does not come: others do its part */
	POLICY_WHY_STOPPED,        /* vCPUs stopped: shares a are the least */
	POLICY_WHY_RESUMED,        /* they go on */
	POLICY_WHY_COUNT,
};

struct policy_reason {
	enum policy_why why;
	uint64_t a, b, c;
};
#define POLICY_REASONS 6

struct policy_vm_plan {
	uint64_t id;
	uint64_t limit_bytes;    /* 0: none; as little as a page where it should hold nothing */
	uint64_t balloon_bytes;  /* the balloon's target */
	uint64_t share_cpu_ppm;  /* for looking for equal pages */
	bool stop;               /* its vCPUs should not run */
	bool may_disk;           /* may spill to its swap file */
	/* what was measured */
	uint64_t aim_bytes;      /* what it is to hold once balloon and engine are done; 0: as now */
	uint64_t held_bytes, working_set_bytes, fair_bytes, floor_bytes;
	uint64_t active_ppm;
	uint64_t refault_ppm;    /* of the working set a minute */
	uint64_t stall_ppm;
	uint64_t refault_missed_ms, stall_missed_ms; /* contracts missed, since the VM is known */
	bool hurts;              /* misses one now */
	struct policy_reason reasons[POLICY_REASONS];
	unsigned reason_count;
};

/* Of the host as a whole. */
enum policy_host_why {
	POLICY_HOST_FREE,        /* the state follows from free memory */
	POLICY_HOST_PSI,         /* pressure stall information made it worse */
	POLICY_HOST_CLAIMS,      /* VMs below their share want more than is free */
	POLICY_HOST_RESERVATIONS /* reservations exceed what there is: admission went wrong */
};

struct policy_plan {
	enum policy_state state;
	enum policy_host_why why;
	bool allowed[POLICY_MEANS];
	uint64_t free_bytes;     /* of what brim may use */
	uint64_t head_room_bytes;/* of that, kept for what can be asked back at once */
	uint64_t goal_bytes;     /* free memory that is aimed at */
	uint64_t need_bytes;     /* still to be taken for it */
	uint64_t held_bytes, revocable_bytes, promised_bytes;
	uint64_t next_ms;        /* until the next step */
	/* set by the caller: as many as there are views */
	struct policy_vm_plan *vms;
};

/* ---- the step ------------------------------------------------------------------ */

struct policy_memory;

/* For at most max_vms at a time.  -EINVAL for 0 or more than POLICY_VMS_MAX; -ENOMEM. */
#define POLICY_VMS_MAX 4096u
int policy_memory_create(struct policy_memory **out, unsigned max_vms);
void policy_memory_destroy(struct policy_memory **m);

struct policy_views {
	const struct policy_host_view *host;
	const struct policy_vm_view *vms;
	size_t n;
};

/* Views in, plan out; out->vms has room for v->n.  Any content is answered.  0, or -E2BIG
 * for more VMs than the memory is for; then *out is not written. */
int policy_step(const struct policy_config *c, const struct policy_views *v,
		struct policy_memory *m, struct policy_plan *out);

/* ---- explain.c ------------------------------------------------------------------ */

/* One sentence for a reason, with its numbers.  Returns buf. */
const char *policy_reason_text(const struct policy_reason *r, char *buf, size_t len);
/* The host's state, what is free and what is aimed at, in one sentence. */
const char *policy_host_text(const struct policy_plan *p, char *buf, size_t len);
/* All of it: the host, then each VM with its numbers and reasons. */
void policy_explain(FILE *out, const struct policy_views *v, const struct policy_plan *p);

/* ---- trace.c: what VMs wanted, over time, as JSON lines (docs/policy.md) ---------- */

#define POLICY_TRACE_VMS 64u
#define POLICY_NAME_BYTES 64u

/* What a VM's guest does from a moment on. */
struct policy_demand {
	uint64_t used_bytes;        /* of its memory, in use by the guest */
	uint64_t working_set_bytes; /* of that, touched all the time */
	uint64_t says_bytes;        /* what it says is available; UINT64_MAX: the truth */
	bool balloon_dead;          /* does not do what its balloon is asked */
};

struct policy_trace_vm {
	char name[POLICY_NAME_BYTES];
	struct policy_vm_view view; /* what is configured; name points at the one above */
};

struct policy_event {
	uint64_t t_ms;
	unsigned vm;
	struct policy_demand demand;
};

struct policy_trace {
	struct policy_host_view host; /* physical, usable, reserve, store, overhead */
	struct policy_trace_vm vm[POLICY_TRACE_VMS];
	unsigned vms;
	uint64_t end_ms;
	size_t events;
	struct policy_event *event; /* in order of time; a VM begins with its first */
};

/* Views as one line of a trace (`brim policy record`).  0 or -EIO. */
int policy_trace_write(FILE *out, const struct policy_views *v);
/* Reads all of `in`, called `name` in errors.  -EINVAL with line and reason; -ENOMEM. */
int policy_trace_read(struct policy_trace **out, FILE *in, const char *name, struct err *e);
void policy_trace_destroy(struct policy_trace **t);

/* ---- model.c, rivals.c: what several rules would make of a trace --------------------- */

struct policy_rule {
	const char *name, *about;
	int (*step)(const struct policy_config *c, const struct policy_views *v,
		    struct policy_memory *m, struct policy_plan *out);
};
extern const struct policy_rule policy_rules[]; /* ours first; ends with a name of NULL */

struct policy_sim {
	const struct policy_trace *trace;
	const struct policy_config *config;
	const struct policy_rule *rule;
	/* after each step; may be NULL */
	void (*seen)(void *ctx, const struct policy_views *v, const struct policy_plan *p);
	void *ctx;
};

struct policy_result_vm {
	uint64_t mean_held_bytes, most_ballooned_bytes;
	uint64_t refaults;        /* pages that came back from packed memory or disk */
	uint64_t stall_ppm;       /* of its time, waited for memory */
	uint64_t worst_stall_ppm; /* over 10 s */
	uint64_t refault_missed_ms, stall_missed_ms; /* contracts, measured alike for all rules */
	uint64_t stopped_ms;
};

struct policy_result {
	uint64_t duration_ms, steps;
	uint64_t least_free_bytes;
	uint64_t out_of_memory_ms; /* what VMs held was more than there is */
	uint64_t state_ms[POLICY_STATES];
	uint64_t changes;          /* of limits and balloons, that were asked for */
	unsigned vms;
	struct policy_result_vm vm[POLICY_TRACE_VMS];
};
/* -ENOMEM. */
int policy_simulate(const struct policy_sim *sim, struct policy_result *out);

#endif
