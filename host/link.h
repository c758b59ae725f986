/*
 * host/link.h: the daemon's end of a VM's control socket (docs/control.md), without ever
 * waiting for the VM.
 *
 *   DOWN ──link_open()──► UP ──end of the VM, a reply that is none, silence──► DOWN
 *
 * A VM is not trusted: what it says is bounded in length and number, and what is not a reply
 * to something that was asked ends the link.  Each call is answered once, by the VM or, where
 * the link goes down first, with an error.
 *
 * Thread: the daemon's.
 */
#ifndef BRIM_HOST_LINK_H
#define BRIM_HOST_LINK_H

#include <jansson.h>
#include <sys/types.h>

#include "host/poll.h"

#define LINK_CALLS_MAX 16u
#define LINK_SILENCE_NS ((uint64_t)5000000000)

struct link;

/* rc 0 with `result` (borrowed); -EREMOTEIO: the VM refused, with its sentence; else -errno of
 * a link that went down.  May close nothing but others' links. */
typedef void link_reply_fn(void *ctx, int rc, const json_t *result, const char *error);

/* Connects to that socket, where the process `pid` must be listening: a VM's directory is its
 * user's, who could put another VM's socket there.  -EAGAIN: its queue is full, ask again;
 * -EPERM: it is another process's; or another -errno. */
int link_open(struct link **out, struct poller *p, const char *path, pid_t pid);
/* Answers what is open with -ECANCELED. */
void link_close(struct link **l);

/* Is the VM there still?  A link that is down stays so until it is closed. */
bool link_is_up(const struct link *l);
unsigned link_calls(const struct link *l); /* without an answer */

/* Asks; `args` (an object or NULL) is stolen.  -EBUSY where LINK_CALLS_MAX are open, -EPIPE
 * where it is down: `reply` is not called then. */
int link_call(struct link *l, const char *cmd, json_t *args, link_reply_fn *reply, void *ctx);

/* Once a second or so: who has not answered for LINK_SILENCE_NS is taken for gone. */
void link_tick(struct link *l, uint64_t now_ns);

#endif
