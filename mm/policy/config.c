/*
 * What the policy's keys are unless somebody says otherwise, and what holds between them.
 */
#include "mm/policy/internal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

void policy_config_default(struct policy_config *c)
{
	*c = (struct policy_config){
		.clear_enter_ppm = 12 * PCT, .clear_leave_ppm = 16 * PCT,
		.soft_enter_ppm = 8 * PCT,   .soft_leave_ppm = 10 * PCT,
		.hard_enter_ppm = 4 * PCT,   .hard_leave_ppm = 6 * PCT,
		.low_enter_ppm = 15000,      .low_leave_ppm = 25000,
		.psi_soft_ppm = 10 * PCT,    .psi_hard_ppm = 10 * PCT,

		.balloon_from = POLICY_CLEAR, .sharing_from = POLICY_CLEAR,
		.packing_from = POLICY_SOFT,  .disk_from = POLICY_HARD,
		.stopping_from = POLICY_LOW,

		.idle_tax_ppm = 75 * PCT,
		.idle_after_ms = 30000,
		.promise_free_ppm = 5 * PCT,
		.revocable_ppm = 5 * PCT,
		.revocable_ms = 5000,

		.take_ppm = 1 * PCT,
		.take_hard_ppm = 4 * PCT,
		.give_ppm = 25 * PCT,
		.dead_band_ppm = 5000,
		.room_min_bytes = 64 * MiB,

		.refault_ppm = 2000,
		.stall_ppm = 1000,
		.feedback_ms = 18000,
		.remember_ms = 600000,

		.balloon_max_ppm = 65 * PCT,
		.balloon_keep_ppm = 5 * PCT,
		.balloon_silent_ms = 5000,
		.balloon_rest_ms = 60000,
		.balloon_short_ppm = 3 * PCT,

		.share_quiet_ppm = 1 * PCT,
		.share_busy_ppm = 10 * PCT,

		.stop_after_ms = 3000,
		.resume_after_ms = 3000,

		.period_ms = 1000,
		.period_short_ms = 250,
	};
}

/* ---- bounds -------------------------------------------------------------------- */

struct bound {
	const char *name;
	size_t at;
	uint64_t min, max;
};

#define KEY(field, lo, hi) { #field, offsetof(struct policy_config, field), lo, hi }

static const struct bound bounds[] = {
	KEY(clear_enter_ppm, 0, 90 * PCT), KEY(clear_leave_ppm, 0, 95 * PCT),
	KEY(soft_enter_ppm, 0, 90 * PCT), KEY(soft_leave_ppm, 0, 95 * PCT),
	KEY(hard_enter_ppm, 0, 90 * PCT), KEY(hard_leave_ppm, 0, 95 * PCT),
	KEY(low_enter_ppm, 0, 90 * PCT), KEY(low_leave_ppm, 0, 95 * PCT),
	KEY(psi_soft_ppm, 0, PPM), KEY(psi_hard_ppm, 0, PPM),
	KEY(balloon_from, POLICY_HIGH, POLICY_STATES), KEY(sharing_from, POLICY_HIGH, POLICY_STATES),
	KEY(packing_from, POLICY_HIGH, POLICY_STATES), KEY(disk_from, POLICY_HIGH, POLICY_STATES),
	KEY(stopping_from, POLICY_HARD, POLICY_STATES),
	KEY(idle_tax_ppm, 0, 99 * PCT), KEY(idle_after_ms, 100, HOUR_MS),
	KEY(promise_free_ppm, 0, 90 * PCT),
	KEY(revocable_ppm, 0, PPM), KEY(revocable_ms, 0, HOUR_MS),
	KEY(take_ppm, 100, PPM), KEY(take_hard_ppm, 100, PPM), KEY(give_ppm, 100, PPM),
	KEY(dead_band_ppm, 0, 20 * PCT), KEY(room_min_bytes, 0, TiB),
	KEY(refault_ppm, 1, PPM), KEY(stall_ppm, 1, PPM),
	KEY(feedback_ms, 1000, HOUR_MS), KEY(remember_ms, 1000, 1000 * HOUR_MS),
	KEY(balloon_max_ppm, 0, 95 * PCT), KEY(balloon_keep_ppm, 0, PPM),
	KEY(balloon_silent_ms, 100, HOUR_MS), KEY(balloon_rest_ms, 0, 100 * HOUR_MS),
	KEY(balloon_short_ppm, 0, PPM),
	KEY(share_quiet_ppm, 0, PPM), KEY(share_busy_ppm, 0, PPM),
	KEY(stop_after_ms, 0, HOUR_MS), KEY(resume_after_ms, 0, HOUR_MS),
	KEY(period_ms, 10, HOUR_MS), KEY(period_short_ms, 10, HOUR_MS),
};

static uint64_t *key_at(struct policy_config *c, const struct bound *b)
{
	return (uint64_t *)(void *)((char *)c + b->at);
}

/* Pairs of which the first may not exceed the second. */
static const struct {
	size_t low, high;
	const char *low_name, *high_name;
} orders[] = {
#define ORDER(a, b) { offsetof(struct policy_config, a), offsetof(struct policy_config, b), #a, #b }
	ORDER(clear_enter_ppm, clear_leave_ppm), ORDER(soft_enter_ppm, soft_leave_ppm),
	ORDER(hard_enter_ppm, hard_leave_ppm),   ORDER(low_enter_ppm, low_leave_ppm),
	ORDER(soft_enter_ppm, clear_enter_ppm),  ORDER(hard_enter_ppm, soft_enter_ppm),
	ORDER(low_enter_ppm, hard_enter_ppm),    ORDER(soft_leave_ppm, clear_leave_ppm),
	ORDER(hard_leave_ppm, soft_leave_ppm),   ORDER(low_leave_ppm, hard_leave_ppm),
	ORDER(period_short_ms, period_ms),       ORDER(take_ppm, take_hard_ppm),
#undef ORDER
};

static uint64_t value_at(const struct policy_config *c, size_t at)
{
	return *(const uint64_t *)(const void *)((const char *)c + at);
}

int policy_config_check(const struct policy_config *c, struct err *e)
{
	for (size_t i = 0; i < ARRAY_LEN(bounds); i++) {
		uint64_t v = value_at(c, bounds[i].at);

		if (v < bounds[i].min || v > bounds[i].max)
			return err_set(e, -EINVAL, "policy: %s: %" PRIu64 " is not %" PRIu64 " to %" PRIu64,
				       bounds[i].name, v, bounds[i].min, bounds[i].max);
	}
	for (size_t i = 0; i < ARRAY_LEN(orders); i++)
		if (value_at(c, orders[i].low) > value_at(c, orders[i].high))
			return err_set(e, -EINVAL, "policy: %s is %" PRIu64 ", more than %s, which is %" PRIu64,
				       orders[i].low_name, value_at(c, orders[i].low),
				       orders[i].high_name, value_at(c, orders[i].high));
	return 0;
}

/* ---- one key by its name ---------------------------------------------------------- */

static int parse_state(const char *text, uint64_t *v)
{
	for (*v = POLICY_HIGH; *v <= POLICY_STATES; (*v)++)
		if (strcmp(text, policy_state_name((enum policy_state)*v)) == 0)
			return 0;
	return -EINVAL;
}

/* "75%", "1.5 s", "500ms", "2m", or as the key has it. */
static int parse_number(const char *key, const char *text, uint64_t *v)
{
	static const struct { const char *key_end, *unit; double times; } units[] = {
		{ "_ppm", "%", (double)PCT }, { "_ppm", "", 1 }, { "_ms", "ms", 1 }, { "_ms", "", 1 },
		{ "_ms", "s", (double)SECOND_MS }, { "_ms", "m", (double)MINUTE_MS },
		{ "_ms", "h", (double)HOUR_MS },
	};
	char *end;
	double d = strtod(text, &end);

	if (end == text || !(d >= 0) || d > 1e15)
		return -EINVAL;
	while (*end == ' ')
		end++;
	for (size_t i = 0; i < ARRAY_LEN(units); i++)
		if (strstr(key, units[i].key_end) && strcmp(end, units[i].unit) == 0) {
			*v = (uint64_t)(d * units[i].times + 0.5);
			return 0;
		}
	return -EINVAL;
}

/* "idle_tax" is idle_tax_ppm, as in a configuration file. */
static bool is_called(const char *name, const char *key)
{
	size_t n = strlen(key);

	return strncmp(name, key, n) == 0 && (name[n] == 0 || strcmp(name + n, "_ppm") == 0 ||
					      strcmp(name + n, "_ms") == 0 || strcmp(name + n, "_bytes") == 0);
}

int policy_config_set(struct policy_config *c, const char *key, const char *text, struct err *e)
{
	uint64_t v = 0;
	int rc;

	for (size_t i = 0; i < ARRAY_LEN(bounds); i++) {
		const char *name = bounds[i].name;

		if (!is_called(name, key))
			continue;
		rc = strstr(name, "_from")  ? parse_state(text, &v)
		   : strstr(name, "_bytes") ? size_parse(text, &v, e)
					    : parse_number(name, text, &v);
		if (rc || v < bounds[i].min || v > bounds[i].max)
			return err_set(e, -EINVAL, "policy: %s: '%s' is not a value for it", key, text);
		*key_at(c, &bounds[i]) = v;
		return 0;
	}
	return err_set(e, -EINVAL, "policy: there is no key '%s'", key);
}

/* ---- bounding ------------------------------------------------------------------------ */

/* A step must answer whatever it is handed: a configuration nobody checked, too. */
void policy_config_bound(struct policy_config *c)
{
	for (size_t i = 0; i < ARRAY_LEN(bounds); i++) {
		uint64_t *v = key_at(c, &bounds[i]);

		*v = *v < bounds[i].min ? bounds[i].min : *v > bounds[i].max ? bounds[i].max : *v;
	}
}

/* ---- names -------------------------------------------------------------------------- */

const char *policy_state_name(enum policy_state s)
{
	static const char *const names[POLICY_STATES] = {
		[POLICY_HIGH] = "high", [POLICY_CLEAR] = "clear", [POLICY_SOFT] = "soft",
		[POLICY_HARD] = "hard", [POLICY_LOW] = "low",
	};

	return s < POLICY_STATES ? names[s] : "never";
}

const char *policy_means_name(enum policy_means m)
{
	static const char *const names[POLICY_MEANS] = {
		[POLICY_FREE] = "free pages", [POLICY_BALLOON] = "balloon", [POLICY_SHARING] = "sharing",
		[POLICY_PACKING] = "packing", [POLICY_DISK] = "disk", [POLICY_STOPPING] = "stopping",
	};

	return m < POLICY_MEANS ? names[m] : "?";
}
