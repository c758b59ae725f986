/*
 * The counter registry: values are relaxed atomics, names and help come from
 * counters.def.  One process is one VM, so values need no VM index.
 */
#include "stats/stats.h"

const struct counter_info counter_table[CTR_COUNT_] = {
#define COUNTER(cname, cunit, chelp) [CTR_##cname] = { #cname, cunit, chelp },
#include "stats/counters.def"
#undef COUNTER
};

_Atomic uint64_t counter_values[CTR_COUNT_];
