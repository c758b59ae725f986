/*
 * mm/policy/: what its files share.
 */
#ifndef BRIM_MM_POLICY_INTERNAL_H
#define BRIM_MM_POLICY_INTERNAL_H

#include <inttypes.h>

#include "mm/policy/policy.h"

#define PPM ((uint64_t)1000000)
#define PCT (PPM / 100)
#define HOUR_MS ((uint64_t)3600 * 1000)

/* ---- config.c ---- */
void policy_config_bound(struct policy_config *c);

#endif
