/*
 * host/web.h: the HTTP interface (host/api/) over this daemon: what is served is its snapshot,
 * and commands go where those of its control socket go, or to the VM they name.
 *
 * Thread: the daemon's.
 */
#ifndef BRIM_HOST_WEB_H
#define BRIM_HOST_WEB_H

#include "host/api/api.h"
#include "host/ctl.h"
#include "host/keep.h"

struct http;

struct http_config {
	struct api_config api;
	struct keeper *keeper;
	ctl_command_fn *command; /* up, down, reload, set, status */
	void *ctx;
};

int http_create(struct http **out, struct poller *p, const struct http_config *cfg, struct err *e);
/* After the keeper: until then VMs may answer. */
void http_destroy(struct http **h);

#endif
