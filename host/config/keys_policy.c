/*
 * The keys of `policy`: the fields of struct policy_config, of which the defaults are
 * policy_config_default()'s.  Ranges are those that policy_config_check() has, too.  See
 * internal.h for what a row is.  const data only.
 */
#include "host/config/internal.h"
#include "mm/policy/policy.h"

#define AT(member) .at = offsetof(struct policy_config, member), \
	.bytes = sizeof(((struct policy_config *)0)->member), .apply = HOST_APPLY_LIVE
#define PCT_PPM ((uint64_t)10000)
#define PPM (100 * PCT_PPM)
#define MS_NS ((uint64_t)1000000)
#define HOUR_MS ((uint64_t)3600000)

static const char *const states[] = {
	[POLICY_HIGH] = "high", [POLICY_CLEAR] = "clear", [POLICY_SOFT] = "soft",
	[POLICY_HARD] = "hard", [POLICY_LOW] = "low", [POLICY_STATES] = "never", NULL,
};

#define PART(key, most, text) \
	{ .name = #key, .type = KEY_PCT, AT(key##_ppm), .unit = 1, .max = most, .help = text }
#define RATE(key, least, most, text) \
	{ .name = #key, .type = KEY_PCT, AT(key##_ppm), .unit = 1, .min = least, .max = most, .help = text }
#define WAIT(key, least, most, text) \
	{ .name = #key, .type = KEY_TIME, AT(key##_ms), .unit = MS_NS, .min = least, .max = most, .help = text }
#define FROM(key, text) \
	{ .name = #key, .type = KEY_CHOICE, AT(key), .choices = states, .max = POLICY_STATES, .help = text }

const struct config_key keys_policy[] = {
	PART(clear_enter, 90 * PCT_PPM, "state `clear` begins when less than this part of what brim may "
	     "use is free"),
	PART(clear_leave, 95 * PCT_PPM, "and ends when more than this is"),
	PART(soft_enter, 90 * PCT_PPM, "the same for `soft`"),
	PART(soft_leave, 95 * PCT_PPM, "the same for `soft`"),
	PART(hard_enter, 90 * PCT_PPM, "the same for `hard`"),
	PART(hard_leave, 95 * PCT_PPM, "the same for `hard`"),
	PART(low_enter, 90 * PCT_PPM, "the same for `low`"),
	PART(low_leave, 95 * PCT_PPM, "the same for `low`"),
	PART(psi_soft, PPM, "memory pressure of the host (PSI, `some`, 10 s) that makes it `soft` at "
	     "least, however much is free; 0: not looked at"),
	PART(psi_hard, PPM, "the same for `hard`, of PSI's `full`"),
	FROM(balloon_from, "from which state on guests are asked for memory"),
	FROM(sharing_from, "from which state on equal pages are looked for in earnest"),
	FROM(packing_from, "from which state on pages are packed"),
	FROM(disk_from, "from which state on packed pages may go to swap files"),
	{ .name = "stopping_from", .type = KEY_CHOICE, AT(stopping_from), .choices = states,
	  .min = POLICY_HARD, .max = POLICY_STATES,
	  .help = "from which state on the processors of the least important VM are stopped" },
	PART(idle_tax, 99 * PCT_PPM, "what an idle page costs its VM: 1 / (1 - tax) pages, so that idle "
	     "VMs give first; 0%: by shares alone"),
	WAIT(idle_after, 100, HOUR_MS, "a page that was not written for so long is idle"),
	PART(promise_free, 90 * PCT_PPM, "the part of what brim may use that is never promised to VMs"),
	PART(revocable, PPM, "head room for what VMs can ask back at once (shared, packed, filled "
	     "pages), as a part of it"),
	{ .name = "revocable_time", .type = KEY_TIME, AT(revocable_ms), .unit = MS_NS, .max = HOUR_MS,
	  .help = "and for what has come back lately, in so much time; the larger counts" },
	RATE(take, 100, PPM, "the most of its memory that a VM gives in a second, in `clear` and `soft`"),
	RATE(take_hard, 100, PPM, "the same in `hard` and `low`"),
	RATE(give, 100, PPM, "the most of its memory that a VM is given back in a second"),
	PART(dead_band, 20 * PCT_PPM, "changes smaller than this part of a VM's memory are not made"),
	{ .name = "room_min", .type = KEY_SIZE, AT(room_min_bytes), .max = TiB,
	  .help = "what a VM may grow by between two steps, where there is enough" },
	RATE(refault, 1, PPM, "contract: of its working set, what a VM at most fetches back in a minute"),
	RATE(stall, 1, PPM, "contract: of the time, how long its processors at most wait for memory"),
	WAIT(feedback, 1000, HOUR_MS, "how long after a step harm is blamed on it, and the step undone"),
	WAIT(remember, 1000, 1000 * HOUR_MS, "in this time half of what was learnt of it is forgotten"),
	PART(balloon_max, 95 * PCT_PPM, "the largest balloon, as a part of a VM's memory"),
	PART(balloon_keep, PPM, "what its guest should keep available, as a part of a VM's memory"),
	WAIT(balloon_silent, 100, HOUR_MS, "a balloon without progress for so long counts as inactive"),
	WAIT(balloon_rest, 0, 100 * HOUR_MS, "after a guest was short of memory it is asked for none so "
	     "long"),
	PART(balloon_short, PPM, "a guest with less of its memory than this available is short"),
	PART(share_quiet, PPM, "of one CPU a VM: looking for equal pages, while the host has plenty"),
	PART(share_busy, PPM, "the same from the state that sharing_from says"),
	WAIT(stop_after, 0, HOUR_MS, "how long the host is `low` before a VM is stopped, and between one "
	     "and the next"),
	WAIT(resume_after, 0, HOUR_MS, "how long it is out of `low` before one goes on, and so on"),
	WAIT(period, 10, HOUR_MS, "between two steps, in `high` and `clear`"),
	WAIT(period_short, 10, HOUR_MS, "the same in `soft`, `hard` and `low`"),
};
const size_t keys_policy_count = ARRAY_LEN(keys_policy);
