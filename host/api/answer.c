/*
 * What each route answers.
 *
 * Nothing here knows of connections: a request is a struct, and so is an answer, so that
 * tests and the fuzzer ask without a socket.
 *
 *   request_admit()    Host and Origin ─► is there such a path ─► who may     (headers only)
 *   request_answer()   the body of a command ─► ops->command
 *                      a reading: what was rendered of this snapshot before, or render it
 *
 * Thread: the daemon's.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "host/api/internal.h"

#define JSON_TYPE "application/json"
#define MS_NS ((uint64_t)1000000)
#define SECOND_LOOK_NS (20 * MS_NS) /* names that are nobody's are cheap to ask for */

static uint64_t clock_s(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_REALTIME, &ts);
	return (uint64_t)ts.tv_sec;
}

/* ---- errors ----------------------------------------------------------------------------- */

void answer_error(struct answer *a, unsigned status, const char *fmt, ...)
{
	char line[640];
	va_list ap;
	json_t *text;

	va_start(ap, fmt);
	vsnprintf(line, sizeof(line), fmt, ap);
	va_end(ap);
	/* What is quoted from a request may be cut, or be no UTF-8 at all. */
	text = json_string(line);
	if (!text)
		text = json_string("refused");
	a->status = status;
	a->type = JSON_TYPE;
	body_put(a->body);
	a->body = body_of_json(json_pack("{s:i,s:b,s:o}", "v", API_VERSION, "ok", 0, "error", text));
}

static unsigned status_of(int rc)
{
	switch (-rc) {
	case EINVAL: case ERANGE: case E2BIG: case EDOM: return 400;
	case EPERM: case EACCES: return 403;
	case ENOENT: case ESRCH: return 404;
	case EBUSY: case EALREADY: case EEXIST: case ESHUTDOWN: return 409;
	case EOPNOTSUPP: case ENOSYS: return 501;
	case EAGAIN: case ENOMEM: case ENOSPC: return 503;
	case ETIMEDOUT: return 504;
	default: return 500;
	}
}

void answer_command(struct answer *a, int rc, const json_t *result, const struct err *e)
{
	json_t *copy;

	if (rc) {
		answer_error(a, status_of(rc), "%s", e && e->msg[0] ? e->msg : strerror(-rc));
		return;
	}
	copy = result ? json_deep_copy(result) : json_object();
	a->status = 200;
	a->type = JSON_TYPE;
	a->body = body_of_json(json_pack("{s:i,s:b,s:o}", "v", API_VERSION, "ok", 1, "result", copy));
}

/* ---- the snapshot ----------------------------------------------------------------------- */

void snapshot_drop(struct api *api)
{
	for (size_t i = 0; i < CACHED_COUNT; i++) {
		body_put(api->cached[i]);
		api->cached[i] = NULL;
	}
	json_decref(api->snapshot);
	api->snapshot = NULL;
	api->snapshot_ns = 0;
}

const json_t *snapshot_get(struct api *api, uint64_t max_age_ns)
{
	uint64_t now = now_ns();

	if (api->snapshot_ns && now - api->snapshot_ns < max_age_ns)
		return api->snapshot;
	snapshot_drop(api);
	api->snapshot_ns = now;
	api->snapshot = api->ops.snapshot(api->ops.ctx);
	counter_inc(CTR_brimd_api_snapshots);
	if (api->snapshot && !json_object_get(api->snapshot, "time_s"))
		(void)json_object_set_new(api->snapshot, "time_s", json_integer((json_int_t)clock_s()));
	return api->snapshot;
}

static const json_t *snapshot_fresh(struct api *api)
{
	return snapshot_get(api, api->cfg.fresh_ms * MS_NS);
}

static const json_t *find_vm(const json_t *snapshot, const char *name)
{
	const json_t *vms = json_object_get(snapshot, "vms");

	for (size_t i = 0; i < json_array_size(vms); i++) {
		const json_t *vm = json_array_get(vms, i);
		const char *has = json_string_value(json_object_get(vm, "name"));

		if (has && strcmp(has, name) == 0)
			return vm;
	}
	return NULL;
}

/* One that was started just now may not be in the snapshot yet. */
static const json_t *get_vm(struct api *api, const char *name)
{
	const json_t *vm = find_vm(snapshot_fresh(api), name);

	return vm ? vm : find_vm(snapshot_get(api, SECOND_LOOK_NS), name);
}

/* ---- reading ---------------------------------------------------------------------------- */

static json_t *part(const json_t *snapshot, const char *key)
{
	json_t *v = json_object_get(snapshot, key), *time = json_object_get(snapshot, "time_s");

	return json_pack("{s:i,s:O?,s:O?}", "v", API_VERSION, "time_s", time, key, v);
}

static struct body *render(enum cached what, json_t *snapshot)
{
	switch (what) {
	case CACHED_METRICS: return metrics_body(snapshot);
	case CACHED_SNAPSHOT: return body_of_json(json_incref(snapshot));
	case CACHED_HOST: return body_of_json(part(snapshot, "host"));
	default: return body_of_json(part(snapshot, "vms"));
	}
}

static void answer_cached(struct api *api, struct answer *a, enum cached what)
{
	if (!snapshot_fresh(api)) {
		answer_error(a, 503, "brimd has no numbers yet");
		return;
	}
	if (!api->cached[what])
		api->cached[what] = render(what, api->snapshot);
	a->body = body_get(api->cached[what]);
	a->type = what == CACHED_METRICS ? "text/plain; version=0.0.4; charset=utf-8" : JSON_TYPE;
}

static void answer_no_vm(const struct api *api, struct answer *a, const char *name)
{
	if (api->snapshot)
		answer_error(a, 404, "no VM is called %s", name);
	else
		answer_error(a, 503, "brimd has no numbers yet");
}

static void answer_vm(struct api *api, struct answer *a, const char *name)
{
	const json_t *vm = get_vm(api, name);

	if (!vm) {
		answer_no_vm(api, a, name);
		return;
	}
	a->type = JSON_TYPE;
	a->body = body_of_json(json_pack("{s:i,s:O?,s:O}", "v", API_VERSION, "time_s",
					 json_object_get(api->snapshot, "time_s"), "vm", vm));
}

static void answer_history(struct api *api, struct answer *a, const char *since)
{
	uint64_t since_s = 0;

	if (since && (!*since || strlen(since) > 15 || strspn(since, "0123456789") != strlen(since))) {
		counter_inc(CTR_brimd_api_bad_request);
		answer_error(a, 400, "since must be a number of seconds since 1970");
		return;
	}
	if (since)
		since_s = strtoull(since, NULL, 10);
	a->type = JSON_TYPE;
	a->body = history_body(&api->history, since_s, api->cfg.sample_s);
}

static void answer_health(struct api *api, struct answer *a)
{
	if (snapshot_fresh(api)) {
		a->type = JSON_TYPE;
		a->body = body_of_json(json_pack("{s:i,s:b}", "v", API_VERSION, "ok", 1));
	} else {
		answer_error(a, 503, "brimd has no numbers yet");
	}
}

/* ---- commands --------------------------------------------------------------------------- */

static void run_command(struct api *api, const struct match *m, const json_t *args, struct answer *a)
{
	struct err e = { "" };
	json_t *result = NULL;
	int rc;

	api->in_command = true;
	api->ticket = 0;
	rc = api->ops.command(api->ops.ctx, m->route->verb, args, &result, &e);
	api->in_command = false;
	snapshot_drop(api);
	counter_inc(CTR_brimd_api_commands);
	if (rc == -EINPROGRESS && api->ticket)
		a->ticket = api->ticket;
	else
		answer_command(a, rc, result, &e);
	json_decref(result);
}

static void answer_to_command(struct api *api, const struct request *r, const struct match *m,
			      struct answer *a)
{
	struct err e = { "" };
	json_t *args = NULL;

	if (r->body_bytes && (!r->content_type ||
			      strncmp(r->content_type, JSON_TYPE, strlen(JSON_TYPE)) != 0)) {
		counter_inc(CTR_brimd_api_bad_request);
		answer_error(a, 415, "the body's Content-Type must be " JSON_TYPE);
	} else if (m->name[0] && !get_vm(api, m->name)) {
		answer_no_vm(api, a, m->name);
	} else if (route_args(m, r->body, r->body_bytes, &args, &e)) {
		counter_inc(CTR_brimd_api_bad_request);
		answer_error(a, 400, "%s", e.msg);
	} else {
		run_command(api, m, args, a);
	}
	json_decref(args);
}

/* ---- requests --------------------------------------------------------------------------- */

static bool refuse_access(struct answer *a, unsigned status, const struct request *r)
{
	if (status == 401)
		answer_error(a, 401, "this needs the token, as in Authorization: Bearer TOKEN");
	else if (r->is_tcp)
		answer_error(a, 403, "this token may only read");
	else
		answer_error(a, 403, "this user may not: only root, brimd's user, and the configured "
			     "group");
	return false;
}

static bool refuse_route(struct answer *a, int rc)
{
	counter_inc(CTR_brimd_api_bad_request);
	if (rc == -EPROTO)
		answer_error(a, 400, "the path is malformed");
	else if (rc == -EOPNOTSUPP)
		answer_error(a, 405, "this path takes %s", a->allow);
	else
		answer_error(a, 404, "there is no such path; /v1/openapi.json lists them");
	return false;
}

bool request_admit(struct api *api, const struct request *r, struct match *m, struct answer *a)
{
	int rc = route_find(r->method, r->path, m, a->allow);
	/* Who may not read is not told what there is either. */
	enum access access = rc ? ACCESS_READ : m->route->access;
	const char *foreign = origin_refusal(api, r, access);
	unsigned status;

	if (foreign) {
		answer_error(a, 403, "%s", foreign);
		a->allow[0] = '\0';
		return false;
	}
	status = access_refusal(api, r, access);
	if (status) {
		a->allow[0] = '\0';
		return refuse_access(a, status, r);
	}
	return rc ? refuse_route(a, rc) : true;
}

void request_answer(struct api *api, const struct request *r, const struct match *m, struct answer *a)
{
	a->status = 200;
	switch (m->route->id) {
	case ROUTE_PAGE:
		a->type = "text/html; charset=utf-8";
		a->body = body_get(api->page);
		break;
	case ROUTE_OPENAPI:
		a->type = JSON_TYPE;
		a->body = body_get(api->openapi);
		break;
	case ROUTE_HEALTH: answer_health(api, a); break;
	case ROUTE_METRICS: answer_cached(api, a, CACHED_METRICS); break;
	case ROUTE_SNAPSHOT: answer_cached(api, a, CACHED_SNAPSHOT); break;
	case ROUTE_HOST: answer_cached(api, a, CACHED_HOST); break;
	case ROUTE_VMS: answer_cached(api, a, CACHED_VMS); break;
	case ROUTE_VM: answer_vm(api, a, m->name); break;
	case ROUTE_HISTORY: answer_history(api, a, r->since); break;
	case ROUTE_COMMAND: answer_to_command(api, r, m, a); break;
	}
}
