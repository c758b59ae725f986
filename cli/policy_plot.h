/*
 * cli/: a simulated run as a picture.
 */
#ifndef BRIM_CLI_POLICY_PLOT_H
#define BRIM_CLI_POLICY_PLOT_H

#include "mm/policy/policy.h"

#define PLOTS_MOST 4u

struct plot_sample {
	uint64_t t_ms;
	enum policy_state state;
	uint64_t held_bytes[POLICY_TRACE_VMS];
	uint64_t stall_us[POLICY_TRACE_VMS]; /* since start */
};

/* Of one rule.  Zeroed but for trace and rule, then plot_fini(). */
struct plot {
	const struct policy_trace *trace;
	const struct policy_rule *rule;
	struct policy_result result;
	uint64_t explain_ms; /* the plan of that moment is printed; UINT64_MAX: none */
	struct plot_sample *sample;
	size_t samples, room;
	uint64_t every_ms;
};

/* Remembers a moment; silently fewer where there is no memory for more. */
void plot_add(struct plot *p, const struct policy_views *v, const struct policy_plan *plan);
void plot_fini(struct plot *p);
/* n runs of the same trace, one below the other. */
void plot_svg(FILE *out, const struct plot *p, size_t n);

#endif
