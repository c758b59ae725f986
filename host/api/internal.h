/* host/api/: what its files share.  The rules are in api.h. */
#ifndef BRIM_HOST_API_INTERNAL_H
#define BRIM_HOST_API_INTERNAL_H

#include "host/api/api.h"

#define API_BODY_MAX ((size_t)64 * 1024) /* of a request */
#define API_PATH_MAX 512u                /* of a request, as sent */
#define API_NAME_MAX 128u                /* of a VM, in a path */
#define API_VERSION 1

/* ---- text.c ---------------------------------------------------------------------------- */

/* Text that grows.  Where memory ends it stays `failed`, and adding does nothing. */
struct text {
	char *data;
	size_t len, size;
	bool failed;
};
void text_add(struct text *t, const char *s, size_t len);
void text_str(struct text *t, const char *s);
void text_u64(struct text *t, uint64_t v);
void text_printf(struct text *t, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void text_fini(struct text *t);

/* What is sent: shared by all who are sent the same. */
struct body {
	unsigned refs;
	size_t len;
	const char *data;
	char *owned; /* data, or NULL: built in */
};
/* NULL where memory ends.  Takes what is given, also then. */
struct body *body_of_text(struct text *t);
struct body *body_of_json(json_t *j);
struct body *body_built_in(const char *data, size_t len);
struct body *body_get(struct body *b);
void body_put(struct body *b); /* NULL: nothing */

/* ---- assets.c -------------------------------------------------------------------------- */

struct asset {
	const char *data;
	size_t len;
};
struct asset asset_page(void);
struct asset asset_openapi(void);

/* ---- route.c --------------------------------------------------------------------------- */

enum access {
	ACCESS_OPEN,    /* has nothing of the host in it */
	ACCESS_READ,
	ACCESS_COMMAND,
};

enum route_id {
	ROUTE_PAGE,
	ROUTE_HEALTH,
	ROUTE_OPENAPI,
	ROUTE_METRICS,
	ROUTE_SNAPSHOT,
	ROUTE_HOST,
	ROUTE_VMS,
	ROUTE_VM,
	ROUTE_HISTORY,
	ROUTE_COMMAND,
};

enum arg_kind { ARG_NONE, ARG_BYTES, ARG_TEXT, ARG_VALUE };

struct arg {
	const char *name;
	enum arg_kind kind;
	bool optional;
};

#define ROUTE_ARGS 2u
struct route {
	const char *method;
	const char *path; /* {name}: any segment */
	enum route_id id;
	enum access access;
	const char *verb; /* of a command */
	struct arg args[ROUTE_ARGS];
};
extern const struct route route_table[];
extern const size_t route_count;

struct match {
	const struct route *route;
	char name[API_NAME_MAX]; /* what {name} was, decoded; else "" */
};

/* 0; -ENOENT: there is no such path, -EPROTO: it is malformed, -EOPNOTSUPP: not with that
 * method, and allow has those that are. */
int route_find(const char *method, const char *path, struct match *m, char allow[32]);
/* Takes a command's body apart.  0 with *args, an object with "vm" if the path names one;
 * -EINVAL and a sentence. */
int route_args(const struct match *m, const char *body, size_t len, json_t **args, struct err *e);

/* ---- access.c -------------------------------------------------------------------------- */

struct request {
	const char *method, *path; /* as sent */
	const char *since;         /* of the query; NULL: none */
	const char *host, *origin, *fetch_site, *authorization, *content_type; /* or NULL */
	unsigned host_count;       /* headers of that name */
	bool is_tcp;
	bool is_trusted;           /* the peer of a Unix socket may do everything */
	const char *body;
	size_t body_bytes;
};

struct token {
	bool is_set;
	unsigned char text[API_TOKEN_MAX]; /* padded with zeroes */
};
int token_read(struct token *t, const char *path, struct err *e);
bool token_equals(const struct token *t, const char *text);

/* Root, this process's user, or a member of the group (0: none). */
bool peer_is_trusted(int fd, gid_t gid);
/* NULL: it is ours; else the sentence that says why not. */
const char *origin_refusal(const struct api *api, const struct request *r, enum access access);
/* 0, or the status to refuse it with: 401 or 403. */
unsigned access_refusal(const struct api *api, const struct request *r, enum access access);

/* ---- history.c -------------------------------------------------------------------------- */

#define HISTORY_SAMPLES 720u

enum history_column {
	HISTORY_ASSIGNED,
	HISTORY_USABLE,
	HISTORY_IN_USE,
	HISTORY_AVAILABLE,
	HISTORY_FILLED,
	HISTORY_SHARED,
	HISTORY_PACKED,
	HISTORY_DISK,
	HISTORY_BALLOONED,
	HISTORY_UNTOUCHED,
	HISTORY_COLUMNS,
};

struct sample {
	uint64_t time_s;
	uint64_t bytes[HISTORY_COLUMNS];
	double psi_some_pct, psi_full_pct;
	char state[16];
};

struct history {
	struct sample samples[HISTORY_SAMPLES]; /* a ring */
	unsigned head, count;
};
/* The host of a snapshot, now. */
void history_add(struct history *h, const json_t *host, uint64_t time_s);
/* Those after since_s, as JSON; NULL: no memory. */
struct body *history_body(const struct history *h, uint64_t since_s, unsigned step_s);

/* ---- metrics.c -------------------------------------------------------------------------- */

/* The snapshot, and this process's counters, as Prometheus text 0.0.4. */
struct body *metrics_body(const json_t *snapshot);
/* Each metric's name, for tests; NULL after the last. */
const char *metric_name(size_t i);

/* ---- answer.c --------------------------------------------------------------------------- */

struct answer {
	unsigned status;
	const char *type;   /* of the body */
	struct body *body;  /* NULL: no memory */
	char allow[32];     /* "", or the methods there are */
	uint64_t ticket;    /* not 0: there is none yet */
};

enum cached { CACHED_METRICS, CACHED_SNAPSHOT, CACHED_HOST, CACHED_VMS, CACHED_COUNT };

/* Before the body comes: false, and the answer is its refusal. */
bool request_admit(struct api *api, const struct request *r, struct match *m, struct answer *a);
/* With the body. */
void request_answer(struct api *api, const struct request *r, const struct match *m,
		    struct answer *a);
void answer_error(struct answer *a, unsigned status, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));
/* A command's end. result: may be NULL. */
void answer_command(struct answer *a, int rc, const json_t *result, const struct err *e);
/* Takes one if what there is is too old (at most max_age_ns).  Borrowed; NULL: there is none. */
const json_t *snapshot_get(struct api *api, uint64_t max_age_ns);
void snapshot_drop(struct api *api);

/* ---- http.c ----------------------------------------------------------------------------- */

struct MHD_Daemon;
struct MHD_Connection;

struct connection {
	struct connection *next, **link;
	int fd;
	uint64_t since_ns; /* of its request, or of its being without one */
};

struct listener {
	struct api *api;
	struct MHD_Daemon *daemon;
	bool is_tcp;
	int fd; /* libmicrohttpd's epoll descriptor */
	struct connection *connections;
	unsigned connection_count;
	struct pending *pending; /* requests that wait for api_finish() */
};
/* Takes fd, also where it fails. */
int listener_start(struct listener *l, int fd, struct err *e);
void listener_stop(struct listener *l);
void listener_turn(struct listener *l);
/* When it wants a turn, whatever comes; UINT64_MAX: never. */
uint64_t listener_due_ns(const struct listener *l);
/* True: the ticket was one of its. */
bool listener_finish(struct listener *l, uint64_t ticket, const struct answer *a);

/* ---- api.c ------------------------------------------------------------------------------ */

struct api {
	/* fixed at create */
	struct api_ops ops;
	struct api_config cfg;
	char *unix_path, *tcp_address, *host_name;
	struct token token, read_token;
	struct body *page, *openapi;
	char *page_policy; /* its Content-Security-Policy */
	int epoll_fd, timer_fd;
	uint16_t tcp_port;
	bool owns_unix_path;

	struct listener unix_listener, tcp_listener;
	uint64_t timer_ns;

	json_t *snapshot;
	uint64_t snapshot_ns; /* when it was asked for, also in vain; 0: never */
	struct body *cached[CACHED_COUNT];
	struct history history;
	uint64_t sample_ns; /* when the next is due */

	bool in_command;
	uint64_t ticket;      /* taken by the command under way; 0: none */
	uint64_t last_ticket;
};

/* All but the sockets, so that requests can be answered without any: api_create(), tests. */
int api_init(struct api *api, const struct api_ops *ops, const struct api_config *cfg,
	     struct err *e);
void api_fini(struct api *api);

#endif
