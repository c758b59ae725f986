/*
 * host/api/: what brimd says over HTTP: the JSON interface, Prometheus metrics, and the
 * web page.  docs/api.md is its description for people, docs/openapi.json for programs.
 *
 * api.c      made and ended; sockets; a turn
 * http.c     between libmicrohttpd and the rest: connections, bodies, deadlines
 * access.c   who may: the Unix socket's peer, the token, Host and Origin
 * route.c    the table of routes; paths and bodies taken apart
 * answer.c   what each route answers
 * metrics.c  the snapshot as Prometheus text
 * history.c  an hour of the host's numbers
 * assets.c   page.html and docs/openapi.json, built in
 *
 *   api_fd() readable ─► api_turn() ─► libmicrohttpd ─► access ─► route ─► answer
 *                                                                  ops: snapshot, command
 *
 * Thread: the daemon's only one.  No call waits for a client or a VM.
 *
 * Invariants:
 *  I1  Nobody is served over TCP without the token, but for the page itself (which has
 *      nothing of the host in it) and /healthz; over the Unix socket nobody but root, the
 *      daemon's own user, and one group if it is set.
 *  I2  No web site can reach it through a browser: a Host that is a name which is not
 *      ours, an Origin that is not the Host's, and a cross-site request are refused, on
 *      both sockets (a Unix socket may be forwarded to a port).
 *  I3  A client costs a bounded amount: connections, bytes of a request, seconds of a
 *      request, and one rendering of the snapshot for all of them in `fresh_ms`.
 *  I4  What is in the snapshot is data: a name is escaped wherever it is put.
 */
#ifndef BRIM_HOST_API_H
#define BRIM_HOST_API_H

#include <jansson.h>
#include <sys/types.h>

#include "stats/stats.h"

#define API_TOKEN_MIN 32u  /* characters */
#define API_TOKEN_MAX 512u

struct api;

struct api_ops {
	/* The host and its VMs, in the form of docs/api.md; a new reference, or NULL: not now.
	 * Called at most once in `fresh_ms` for reading, and before a command where needed. */
	json_t *(*snapshot)(void *ctx);
	/* Carries out a command (see docs/api.md for verbs and their arguments, in which "vm"
	 * is a VM of the snapshot).  0 with *result set or left NULL, -errno with a sentence;
	 * or -EINPROGRESS after api_ticket(), and api_finish() after it returned.  Must not
	 * wait. */
	int (*command)(void *ctx, const char *verb, const json_t *args, json_t **result,
		       struct err *e);
	void *ctx;
};

/* Strings are copied.  0 and NULL: the default. */
struct api_config {
	const char *unix_path;       /* NULL: none */
	gid_t unix_gid;              /* its members may do what the daemon's user may; 0: none */
	const char *tcp_address;     /* a number, not a name; NULL with a port: 127.0.0.1 */
	uint16_t tcp_port;           /* 0: no TCP, unless tcp_any_port */
	bool tcp_any_port;           /* the kernel's choice: api_tcp_port() */
	const char *token_file;      /* of who may do everything; must be set for TCP */
	const char *read_token_file; /* of who may only read (Prometheus) */
	const char *host_name;       /* a name that a Host header may have besides localhost */
	unsigned connections_max;    /* each socket; 32 */
	unsigned idle_s;             /* a connection that says nothing and takes nothing; 15 */
	unsigned request_s;          /* a request, from its first byte to its answer's last; 30 */
	unsigned fresh_ms;           /* how old what is served may be; 500 */
	unsigned sample_s;           /* between samples of the history; 5 */
};

/* 0, or -errno and a sentence: -EINVAL for TCP without a token or an address that is none,
 * -EACCES for a token file that others may read, -EADDRINUSE, ... */
int api_create(struct api **out, const struct api_ops *ops, const struct api_config *cfg,
	       struct err *e);
/* Connections are closed, also those that wait for api_finish(). */
void api_destroy(struct api **api);

/* Readable (EPOLLIN) when api_turn() has something to do, timers included.  The same for
 * as long as it lives; not the caller's to close. */
int api_fd(const struct api *api);
/* A bounded amount of work; never waits. */
void api_turn(struct api *api);

/* The port that TCP is served on; 0: none. */
uint16_t api_tcp_port(const struct api *api);

/* Within ops->command only: the number by which this command is finished later, if it
 * returns -EINPROGRESS.  Who asked waits so long, until request_s has passed. */
uint64_t api_ticket(struct api *api);
/* Answers it, as ops->command would have.  `result` (may be NULL) stays the caller's.
 * A ticket whose client has gone meanwhile is ignored. */
void api_finish(struct api *api, uint64_t ticket, int rc, const json_t *result,
		const struct err *e);

#endif
