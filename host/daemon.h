/*
 * host/daemon.h: everything brimd does beside sharing pages: its VMs, its policy, who commands
 * it.
 *
 *   control socket ──command──► keeper (VMs' lives) ◄──views, plan── steward (policy)
 *                                   │ a process each               │ limit, balloon, pause
 *                                   ▼                              ▼
 *                               brim-vmm ───────────────── its control socket
 *
 * Thread: the daemon's; daemon_turn() does what there is to do and does not wait.
 */
#ifndef BRIM_HOST_DAEMON_H
#define BRIM_HOST_DAEMON_H

#include "host/api/api.h"
#include "host/steward.h"

struct daemon;

struct daemon_config {
	const char *run_dir;
	const char *control;    /* path of its control socket */
	uint64_t physical_bytes; /* 0: this host's */
	struct api_config api;   /* without any socket: no HTTP */
	const struct share_host *share; /* the other part, which outlives this one */
};

int daemon_create(struct daemon **out, const struct daemon_config *cfg, struct err *e);
/* Reads a configuration file as `up` does; the sentence is of the first error. */
int daemon_load(const char *file, uint64_t physical_bytes, struct host_config **out,
		struct err *e);
/* Comes up with that configuration, which is the daemon's from then on. */
int daemon_up(struct daemon *d, struct host_config *config, struct err *e);
/* VMs run on. */
void daemon_destroy(struct daemon **d);
/* Readable when there is something to do. */
int daemon_fd(const struct daemon *d);
/* One more descriptor, told of in its turns. -errno. */
int daemon_watch(struct daemon *d, struct polled *w);
/* Does what there is to do.  Returns how long it can wait for more, in ms; or -errno. */
int daemon_turn(struct daemon *d);
/* It was told to end by a command. */
bool daemon_is_over(const struct daemon *d);
/* As `reload`: reads its configuration file again. */
int daemon_reload(struct daemon *d, struct err *e);

#endif
