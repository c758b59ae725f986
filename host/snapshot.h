/*
 * host/snapshot.h: the host and its VMs, as others are told of them (docs/api.md).
 *
 * Thread: the daemon's.
 */
#ifndef BRIM_HOST_SNAPSHOT_H
#define BRIM_HOST_SNAPSHOT_H

#include "host/steward.h"

/* A new reference; NULL: no memory.  `cfg` may be NULL. */
json_t *snapshot(struct keeper *k, const struct steward *s, const struct host_config *cfg);

#endif
