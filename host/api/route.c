/*
 * The routes: what there is, and how paths and bodies are taken apart.
 *
 * A path is split at its slashes first and each segment is decoded then, so that %2F is a
 * character of a name and never a slash; a name that no VM can have is no path at all.
 *
 * docs/openapi.json has the same list; a test compares them both ways.
 *
 * Thread: any; nothing here is kept.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "host/api/internal.h"

#define VM "/v1/vms/{name}"
#define READ(p, i) { .method = "GET", .path = p, .id = i, .access = ACCESS_READ }
#define OPEN(p, i) { .method = "GET", .path = p, .id = i, .access = ACCESS_OPEN }
#define COMMAND(m, p, v, ...) \
	{ .method = m, .path = p, .id = ROUTE_COMMAND, .access = ACCESS_COMMAND, .verb = v, \
	  .args = { __VA_ARGS__ } }

const struct route route_table[] = {
	OPEN("/", ROUTE_PAGE),
	OPEN("/healthz", ROUTE_HEALTH),
	READ("/metrics", ROUTE_METRICS),
	READ("/v1/openapi.json", ROUTE_OPENAPI),
	READ("/v1/snapshot", ROUTE_SNAPSHOT),
	READ("/v1/host", ROUTE_HOST),
	READ("/v1/vms", ROUTE_VMS),
	READ(VM, ROUTE_VM),
	READ("/v1/history", ROUTE_HISTORY),
	COMMAND("POST", VM "/pause", "pause", { 0 }),
	COMMAND("POST", VM "/resume", "resume", { 0 }),
	COMMAND("POST", VM "/stop", "stop", { 0 }),
	COMMAND("POST", VM "/kill", "kill", { 0 }),
	COMMAND("PUT", VM "/limit", "limit", { "limit_bytes", ARG_BYTES }),
	COMMAND("PUT", VM "/balloon", "balloon", { "target_bytes", ARG_BYTES }),
	COMMAND("POST", VM "/reclaim", "reclaim", { "bytes", ARG_BYTES }),
	COMMAND("POST", VM "/set", "set", { "key", ARG_TEXT }, { "value", ARG_VALUE }),
	COMMAND("POST", "/v1/up", "up", { "file", ARG_TEXT, .optional = true }),
	COMMAND("POST", "/v1/down", "down", { 0 }),
	COMMAND("POST", "/v1/reload", "reload", { "file", ARG_TEXT, .optional = true }),
};
const size_t route_count = ARRAY_LEN(route_table);

/* ---- paths ------------------------------------------------------------------------------ */

static int hex_digit(char c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	c |= 0x20;
	return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* -EPROTO: malformed, a control character, or too long for a name. */
static int decode(const char *s, size_t len, char out[API_NAME_MAX])
{
	size_t n = 0;

	for (size_t i = 0; i < len; i++) {
		int c = (unsigned char)s[i];

		if (c == '%') {
			int high = i + 2 < len ? hex_digit(s[i + 1]) : -1;
			int low = i + 2 < len ? hex_digit(s[i + 2]) : -1;

			if (high < 0 || low < 0)
				return -EPROTO;
			c = high * 16 + low;
			i += 2;
		}
		if (c < 0x20 || c == 0x7f || n + 1 >= API_NAME_MAX)
			return -EPROTO;
		out[n++] = (char)c;
	}
	out[n] = '\0';
	return 0;
}

static size_t segment_len(const char *s)
{
	return strcspn(s, "/");
}

static bool is_placeholder(const char *s, size_t len)
{
	return len == 6 && memcmp(s, "{name}", 6) == 0;
}

/* 1: it is this route's, 0: not, -EPROTO. */
static int match_path(const char *pattern, const char *path, char name[API_NAME_MAX])
{
	name[0] = '\0';
	while (*pattern == '/' && *path == '/') {
		size_t want = segment_len(++pattern), have = segment_len(++path);
		char segment[API_NAME_MAX];

		if (decode(path, have, segment))
			return -EPROTO;
		if (!is_placeholder(pattern, want)) {
			if (strlen(segment) != want || memcmp(segment, pattern, want) != 0)
				return 0;
		} else if (!segment[0]) {
			return 0;
		} else {
			memcpy(name, segment, sizeof(segment));
		}
		pattern += want;
		path += have;
	}
	return !*pattern && !*path;
}

static bool is_method(const char *method, const char *of_route)
{
	return strcmp(method, of_route) == 0 ||
	       (strcmp(method, "HEAD") == 0 && strcmp(of_route, "GET") == 0);
}

static void add_allowed(char allow[32], const char *method)
{
	size_t n = strlen(allow);

	snprintf(allow + n, 32 - n, "%s%s", n ? ", " : "",
		 strcmp(method, "GET") == 0 ? "GET, HEAD" : method);
}

int route_find(const char *method, const char *path, struct match *m, char allow[32])
{
	*m = (struct match){ 0 };
	allow[0] = '\0';
	if (strlen(path) > API_PATH_MAX || *path != '/')
		return -EPROTO;
	for (size_t i = 0; i < route_count; i++) {
		char name[API_NAME_MAX];
		int rc = match_path(route_table[i].path, path, name);

		if (rc < 0)
			return rc;
		if (rc == 0)
			continue;
		if (is_method(method, route_table[i].method)) {
			m->route = &route_table[i];
			memcpy(m->name, name, sizeof(name));
			return 0;
		}
		add_allowed(allow, route_table[i].method);
	}
	return allow[0] ? -EOPNOTSUPP : -ENOENT;
}

/* ---- bodies ----------------------------------------------------------------------------- */

static int parse_body(const char *body, size_t len, json_t **out, struct err *e)
{
	json_error_t why;

	*out = len ? json_loadb(body, len, JSON_REJECT_DUPLICATES, &why) : json_object();
	if (!*out)
		return err_set(e, -EINVAL, "the body is not JSON: %s (byte %d)", why.text,
			       why.position);
	if (!json_is_object(*out))
		return err_set(e, -EINVAL, "the body must be a JSON object");
	return 0;
}

static int check_arg(const struct arg *a, const json_t *v, struct err *e)
{
	if (!v && a->optional)
		return 0;
	if (!v)
		return err_set(e, -EINVAL, "%s is missing", a->name);
	if (a->kind == ARG_BYTES && (!json_is_integer(v) || json_integer_value(v) < 0))
		return err_set(e, -EINVAL, "%s must be a number of bytes", a->name);
	if (a->kind == ARG_TEXT && !json_is_string(v))
		return err_set(e, -EINVAL, "%s must be a string", a->name);
	if (a->kind == ARG_VALUE && (json_is_object(v) || json_is_array(v) || json_is_null(v)))
		return err_set(e, -EINVAL, "%s must be a string, a number, true or false", a->name);
	return 0;
}

static bool is_arg(const struct route *r, const char *name)
{
	for (size_t i = 0; i < ROUTE_ARGS; i++)
		if (r->args[i].kind != ARG_NONE && strcmp(r->args[i].name, name) == 0)
			return true;
	return false;
}

static int check_args(const struct route *r, json_t *body, struct err *e)
{
	const char *key;
	json_t *v;

	json_object_foreach(body, key, v)
		if (!is_arg(r, key))
			return err_set(e, -EINVAL, "%.64s is not an argument of %s", key, r->verb);
	for (size_t i = 0; i < ROUTE_ARGS; i++) {
		const struct arg *a = &r->args[i];
		int rc = a->kind == ARG_NONE ? 0 : check_arg(a, json_object_get(body, a->name), e);

		if (rc)
			return rc;
	}
	return 0;
}

int route_args(const struct match *m, const char *body, size_t len, json_t **args, struct err *e)
{
	json_t *parsed = NULL;
	int rc = parse_body(body, len, &parsed, e);

	if (!rc)
		rc = check_args(m->route, parsed, e);
	if (!rc && m->name[0] && json_object_set_new(parsed, "vm", json_string(m->name)) < 0)
		rc = err_set(e, -EINVAL, "the VM's name is not UTF-8");
	if (!rc)
		*args = parsed;
	else
		json_decref(parsed);
	return rc;
}
