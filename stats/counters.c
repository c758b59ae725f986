/*
 * The registry of counters, gauges and histograms: values are relaxed atomics, names and
 * help come from counters.def and gauges.def.  One process is one VM, so values need no VM
 * index.
 */
#include "stats/stats.h"

const struct counter_info counter_table[CTR_COUNT_] = {
#define COUNTER(cname, cunit, chelp) [CTR_##cname] = { #cname, cunit, chelp },
#include "stats/counters.def"
#undef COUNTER
};

const struct counter_info gauge_table[GAUGE_COUNT_] = {
#define GAUGE(gname, gunit, ghelp) [GAUGE_##gname] = { #gname, gunit, ghelp },
#include "stats/gauges.def"
};

const struct counter_info histogram_table[HIST_COUNT_] = {
#define HISTOGRAM(hname, hunit, hhelp) [HIST_##hname] = { #hname, hunit, hhelp },
#include "stats/gauges.def"
};

struct stat_values stat_values;
