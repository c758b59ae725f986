/*
 * How short of memory the host is, and what that allows.
 *
 *            enter: free below                    free: of what brim may use, less the head
 *   high ──clear──► clear ──soft──► soft ──hard──► hard ──low──► low         room
 *     ◄────leave──    ◄───leave──    ◄───leave──    ◄──leave──
 *                   leave: free above
 *
 * Two thresholds each, so that what a state gives back cannot bring it back at once.  A
 * state gets worse as far as it must in one step, and better as far as it may: what was
 * asked for in the worse one stays in force, it is only no longer asked for.
 */
#include "mm/policy/internal.h"

static uint64_t enter_ppm(const struct policy_config *c, enum policy_state s)
{
	const uint64_t ppm[POLICY_STATES] = {
		[POLICY_CLEAR] = c->clear_enter_ppm, [POLICY_SOFT] = c->soft_enter_ppm,
		[POLICY_HARD] = c->hard_enter_ppm, [POLICY_LOW] = c->low_enter_ppm,
	};

	return ppm[s];
}

static uint64_t leave_ppm(const struct policy_config *c, enum policy_state s)
{
	const uint64_t ppm[POLICY_STATES] = {
		[POLICY_HIGH] = c->clear_leave_ppm, [POLICY_CLEAR] = c->clear_leave_ppm,
		[POLICY_SOFT] = c->soft_leave_ppm, [POLICY_HARD] = c->hard_leave_ppm,
		[POLICY_LOW] = c->low_leave_ppm,
	};

	return ppm[s];
}

static enum policy_state by_free(const struct step *s, enum policy_state state)
{
	while (state > POLICY_HIGH &&
	       s->effective > part(s->host.usable_bytes, leave_ppm(&s->c, state)))
		state--;
	while (state < POLICY_LOW &&
	       s->effective < part(s->host.usable_bytes, enter_ppm(&s->c, state + 1)))
		state++;
	return state;
}

/* On at the key's value, off below half of it. */
static bool psi_is(bool was, uint64_t ppm, uint64_t key_ppm)
{
	return key_ppm > 0 && ppm >= (was ? key_ppm / 2 : key_ppm);
}

static enum policy_state by_psi(struct step *s)
{
	struct policy_memory *m = s->m;

	m->psi_some = psi_is(m->psi_some, s->host.psi_some_ppm, s->c.psi_soft_ppm);
	m->psi_full = psi_is(m->psi_full, s->host.psi_full_ppm, s->c.psi_hard_ppm);
	return m->psi_full ? POLICY_HARD : m->psi_some ? POLICY_SOFT : POLICY_HIGH;
}

static void note_times(struct step *s, enum policy_state state)
{
	struct policy_memory *m = s->m;

	if (state == POLICY_LOW && m->state != POLICY_LOW)
		m->low_since_ms = s->host.now_ms;
	/* better: as soft or less for a stopped VM to go on */
	if (state > POLICY_SOFT || m->better_since_ms == 0)
		m->better_since_ms = most(s->host.now_ms, 1);
}

void state_step(struct step *s)
{
	enum policy_state state = by_free(s, s->m->state), psi = by_psi(s);

	s->out->why = psi > state ? POLICY_HOST_PSI : POLICY_HOST_FREE;
	note_times(s, psi > state ? psi : state);
	/* what is remembered follows from free memory alone: the rest has its own memory */
	s->m->state = state;
	s->out->state = psi > state ? psi : state;
}

bool state_allows(const struct step *s, enum policy_means m)
{
	const uint64_t from[POLICY_MEANS] = {
		[POLICY_FREE] = POLICY_HIGH, [POLICY_BALLOON] = s->c.balloon_from,
		[POLICY_SHARING] = s->c.sharing_from, [POLICY_PACKING] = s->c.packing_from,
		[POLICY_DISK] = s->c.disk_from, [POLICY_STOPPING] = s->c.stopping_from,
	};

	return s->out->state >= from[m];
}

/* Free memory to reach: what leaves the state, and two dead bands more, so that it does
 * though needs of one dead band are let be.  Where the kernel's pressure says that free memory
 * is not what it seems, somewhat more than there is. */
uint64_t state_goal(const struct step *s)
{
	uint64_t ppm = leave_ppm(&s->c, s->out->state) + 2 * s->c.dead_band_ppm;

	if (s->out->state == POLICY_HIGH)
		return 0;
	if (s->out->why == POLICY_HOST_PSI)
		return s->effective + part(s->host.usable_bytes, 4 * s->c.dead_band_ppm);
	return part(s->host.usable_bytes, ppm);
}
