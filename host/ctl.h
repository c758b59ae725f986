/*
 * host/ctl.h: the daemon's own control socket: newline-delimited JSON as of a VM's
 * (docs/control.md), for the daemon's user and root.
 *
 * A client that does not read is closed; what it sends is bounded; a line that is no request
 * gets an error.  A command answers at once.
 *
 * Thread: the daemon's.
 */
#ifndef BRIM_HOST_CTL_H
#define BRIM_HOST_CTL_H

#include <jansson.h>

#include "host/poll.h"

struct ctl_server;

/* *result: a new reference, only where 0 is returned; else a sentence in *e. */
typedef int ctl_command_fn(void *ctx, const char *cmd, const json_t *args, json_t **result,
			   struct err *e);

int ctl_server_create(struct ctl_server **out, struct poller *p, const char *path, struct err *e);
void ctl_server_destroy(struct ctl_server **s);
/* Commands go there.  Before the first turn. */
void ctl_server_serve(struct ctl_server *s, ctl_command_fn *fn, void *ctx);

#endif
