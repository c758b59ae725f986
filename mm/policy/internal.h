/*
 * mm/policy/: what its files share.  `past` is what is remembered of a VM from step to
 * step; `now` is worked out anew in every step.
 */
#ifndef BRIM_MM_POLICY_INTERNAL_H
#define BRIM_MM_POLICY_INTERNAL_H

#include <inttypes.h>

#include "mm/policy/policy.h"

#define PPM ((uint64_t)1000000)
#define PCT (PPM / 100)
#define SECOND_MS ((uint64_t)1000)
#define MINUTE_MS (60 * SECOND_MS)
#define HOUR_MS (60 * MINUTE_MS)

/* Views are cut to these, so that no sum or product of them overflows. */
#define MOST_BYTES ((uint64_t)1 << 50)
#define MOST_SHARES ((uint64_t)1000000)
#define STEP_MOST_MS (5 * SECOND_MS) /* time a step answers for, however late it comes */

static inline uint64_t least(uint64_t a, uint64_t b) { return a < b ? a : b; }
static inline uint64_t most(uint64_t a, uint64_t b) { return a > b ? a : b; }
/* a - b, not below 0. */
static inline uint64_t less(uint64_t a, uint64_t b) { return a > b ? a - b : 0; }
static inline uint64_t within(uint64_t v, uint64_t lo, uint64_t hi) { return most(lo, least(v, hi)); }

/* v * num / den, cut to UINT64_MAX; den 0 gives 0. */
static inline uint64_t scaled(uint64_t v, uint64_t num, uint64_t den)
{
	unsigned __int128 p = den ? (unsigned __int128)v * num / den : 0;

	return p > UINT64_MAX ? UINT64_MAX : (uint64_t)p;
}
static inline uint64_t part(uint64_t v, uint64_t ppm) { return scaled(v, ppm, PPM); }

/* ---- what is remembered ------------------------------------------------------- */

struct past {
	uint64_t id;
	uint64_t generation; /* of the last step it was in; 0: a free row */
	bool is_new;         /* this step is its first */

	/* cumulative numbers of the last view */
	uint64_t refaults, stall_us, swap_in_bytes, major_faults;
	uint64_t held_bytes;

	uint64_t passes, pass_ms, no_pass_ms; /* time between two, and since the last */

	/* averages */
	uint64_t active_slow_bytes, active_fast_bytes;
	uint64_t refault_fast, refault_slow; /* pages a minute */
	uint64_t stall_ppm;
	uint64_t growth_bytes;               /* a second */
	bool hurts;
	uint64_t refault_missed_ms, stall_missed_ms;

	/* asked for in the last plan */
	uint64_t limit_bytes; /* 0: none */
	uint64_t aim_bytes;   /* to come down to; 0: nothing is being taken */
	uint64_t balloon_bytes;

	/* progress of what was asked for */
	uint64_t least_held_bytes, held_progress_ms;
	uint64_t stuck_held_bytes; /* it did not come, at so much held; 0: it does */
	uint64_t stuck_idle_bytes, fair_bytes; /* fair: in the last step */
	enum policy_state stuck_state;
	uint64_t most_ballooned_bytes, balloon_progress_ms;
	uint64_t silent_available_bytes; /* the balloon did not fill, at so much available, and 1; 0: it does */
	uint64_t rest_until_ms;

	/* steps and what they did: where it stood half a feedback time ago, and since */
	uint64_t before_bytes[2], mark_ms, take_ms;
	bool has_taken;
	uint64_t floor_bytes;
	bool stopped;
};

struct now;

struct policy_memory {
	unsigned max_vms;
	uint64_t generation, last_ms;
	enum policy_state state;
	bool psi_some, psi_full;
	uint64_t low_since_ms, better_since_ms, stop_ms; /* of the last VM stopped or resumed */
	uint64_t held_bytes;      /* of all VMs, in the last step */
	uint64_t returning_bytes; /* they grew by a second, the most of late */
	struct past *past;
	struct now *now;
};

/* ---- what is worked out in a step ------------------------------------------------ */

struct now {
	struct policy_vm_view v; /* cut to what can be */
	struct past *past;
	struct policy_vm_plan *plan;

	uint64_t held, cap, reserved; /* reserved: of its reservation, what its cap allows */
	uint64_t idle;                /* not written for idle_after_ms */
	uint64_t cold;                /* idle, less what the balloon is about to take */
	uint64_t active;              /* working set */
	uint64_t saved_ppm;           /* of a page that is packed */
	uint64_t demand;              /* what it would hold if it were let */
	uint64_t fair;                /* what its shares give it */
	uint64_t floor;               /* remembered, as far as its fair share goes */
	uint64_t asked;               /* what it holds once what was asked for is done */
	uint64_t pending;             /* still to come of that */
	bool stuck, hurts, pressing, short_guest, silent;
	uint64_t balloon_pending;

	uint64_t step, given_step;    /* at most taken from it, given to it */
	uint64_t step_most;           /* a second's */
	uint64_t available;           /* of the round: to be taken at most */
	uint64_t take, balloon_take;
	uint64_t want, give;
};

struct step {
	struct policy_config c; /* within bounds */
	struct policy_host_view host;
	struct policy_memory *m;
	struct policy_plan *out;
	struct now *vm;
	size_t n;
	uint64_t dt_ms;
	uint64_t free, head_room, effective; /* effective: free less head room */
	uint64_t to_give;  /* may be promised beyond what is held */
	uint64_t claims;   /* what VMs should get and free memory does not have */
	uint64_t slack;    /* of to_give, given to nobody */
	uint64_t ease;     /* what balloons may be let down by because memory is there */
};

/* ---- config.c ---- */
void policy_config_bound(struct policy_config *c);

/* ---- measure.c ---- */
void measure_vm(struct step *s, struct now *w);
void measure_host(struct step *s);
/* Old and new value, weighted so that half of the old is gone in some 0.7 tau. */
uint64_t smooth(uint64_t old, uint64_t v, uint64_t dt_ms, uint64_t tau_ms);

/* ---- states.c ---- */
void state_step(struct step *s);
bool state_allows(const struct step *s, enum policy_means m);
uint64_t state_goal(const struct step *s);

/* ---- floors.c ---- */
void contract_step(struct step *s, struct now *w);
void floor_step(struct step *s, struct now *w);
void floor_taken(struct step *s, struct now *w);

/* ---- share.c ---- */
void share_fair(struct step *s);
void share_claim(struct step *s);
void share_take(struct step *s);
void share_give(struct step *s);

/* ---- means.c ---- */
void means_watch(struct step *s, struct now *w);
/* What the balloon may take besides what it was asked for. */
uint64_t means_balloon(const struct step *s, const struct now *w);
void means_plan(struct step *s, struct now *w);
void means_stop(struct step *s);
void means_sharing(struct step *s);

/* ---- explain.c ---- */
void why(struct now *w, struct policy_reason r);

#endif
