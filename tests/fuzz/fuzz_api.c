/*
 * host/api/: requests as they come out of libmicrohttpd: method, path, headers and body.
 * Lines: the first byte chooses what the rest of the line is; a byte above 127 stands for a
 * piece of text, so that whole requests come together quickly.  Some headers stay ours
 * unless a line says otherwise, or nothing would ever come past them.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "host/api/internal.h"
#include "tests/lib/fakesnap.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define TOKEN "0123456789abcdef0123456789abcdef"
#define LINES 10u

static const char *const pieces[] = {
	"/v1", "/vms", "/web-2", "/db-2", "/limit", "/balloon", "/reclaim", "/set", "/pause", "/kill", "/up", "/host",
	"/history", "/metrics", "/openapi.json", "/snapshot", "%2f", "%00", "%", "%41", "..", "GET", "POST", "PUT",
	"HEAD", "localhost", "127.0.0.1", "[::1]", ":80", "http://", "https://", "Bearer ", TOKEN, "evil.example",
	"same-origin", "cross-site", "application/json", "{\"limit_bytes\":", "{\"target_bytes\":", "{\"bytes\":",
	"{\"key\":", "\"value\":", "{\"file\":", "{", "}", "[", "]", ",", "\"", "1", "-1", "1e9", "9223372036854775807",
	"null", "true", "\"\\ud800\"", "\xff", "\xc3\xa9",
};

static struct api api;
static struct fakesnap fake = { .vms = 12, .time_s = 5, .hostile = true };
static bool allowed; /* what this request may do at most */

static json_t *snapshot(void *ctx)
{
	return fakesnap_json(&fake);
}

static int command(void *ctx, const char *verb, const json_t *args, json_t **result, struct err *e)
{
	VERIFY(allowed && verb && json_is_object(args));
	return err_set(e, -EBUSY, "%s \xc3", verb); /* not UTF-8 */
}

static void prepare(void)
{
	static const struct api_ops ops = { .snapshot = snapshot, .command = command };
	static const struct api_config cfg = { .fresh_ms = 1u << 30 };
	struct err e;

	if (api.page)
		return;
	VERIFY(api_init(&api, &ops, &cfg, &e) == 0);
	memcpy(api.token.text, TOKEN, strlen(TOKEN));
	api.token.is_set = true;
}

/* The line at *data, spelled out and ended. */
static char *take_line(const uint8_t **data, size_t *size, size_t *len)
{
	char *text = malloc(*size * 64 + 1), *exact;

	VERIFY(text);
	for (*len = 0; *size && **data != '\n'; ++*data, --*size) {
		uint8_t c = **data;
		const char *p = pieces[c % 128 % ARRAY_LEN(pieces)];
		size_t n = c < 128 ? 1 : strlen(p);

		memcpy(text + *len, c < 128 ? (const char *)*data : p, n);
		*len += n;
	}
	if (*size) {
		++*data;
		--*size;
	}
	text[*len] = '\0';
	exact = realloc(text, *len + 1); /* so that reading on is seen */
	VERIFY(exact);
	return exact;
}

/* A route there is, of a VM there is: found by chance too rarely. */
static void set_route(struct request *r, unsigned char n)
{
	static char path[128];
	const struct route *route = &route_table[n % route_count];
	const char *name = strstr(route->path, "{name}");

	r->method = route->method;
	r->path = route->path;
	if (!name)
		return;
	snprintf(path, sizeof(path), "%.*sweb-2%s", (int)(name - route->path), route->path, name + 6);
	r->path = path;
}

static void set_field(struct request *r, char *text, size_t len)
{
	const char *rest = text + 1;

	switch (text[0]) {
	case 'r': set_route(r, (unsigned char)rest[0]); break;
	case 'm': r->method = rest; break;
	case 'p': r->path = rest; break;
	case 's': r->since = rest; break;
	case 'h': r->host = rest; break;
	case 'H': r->host_count++; break;
	case 'o': r->origin = rest; break;
	case 'f': r->fetch_site = rest; break;
	case 'a': r->authorization = rest; break;
	case 'c': r->content_type = rest; break;
	case 't': r->is_tcp = true; break;
	case 'u': r->is_trusted = false; break;
	case 'b':
		r->body = rest;
		r->body_bytes = len - 1;
		break;
	default: break;
	}
}

/* I1 and I2 of api.h, said again in another way. */
static bool may_be_served(const struct request *r)
{
	if (r->host_count != 1 || strstr(r->host, "evil") || (r->origin && strstr(r->origin, "evil")))
		return false;
	return r->is_tcp ? r->authorization && strstr(r->authorization, TOKEN) : r->is_trusted;
}

static void check(const struct request *r, const struct match *m, const struct answer *a)
{
	VERIFY(a->body && a->type && a->status >= 200 && a->status < 600 && !a->ticket);
	if (a->status < 300 && m->route->access != ACCESS_OPEN)
		VERIFY(may_be_served(r));
	if (strcmp(a->type, "application/json") == 0 && a->body != api.openapi) {
		json_t *j = json_loadb(a->body->data, a->body->len, JSON_REJECT_DUPLICATES, NULL);

		VERIFY(j && json_integer_value(json_object_get(j, "v")) == API_VERSION);
		VERIFY(a->status < 300 || json_is_string(json_object_get(j, "error")));
		json_decref(j);
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct request r = { .method = "GET", .path = "/", .host = "localhost", .host_count = 1,
			     .is_trusted = true, .content_type = "application/json" };
	struct answer a = { 0 };
	char *lines[LINES];
	struct match m;
	unsigned n = 0;

	prepare();
	for (size_t len; size && n < LINES; n++) {
		lines[n] = take_line(&data, &size, &len);
		if (len)
			set_field(&r, lines[n], len);
	}
	allowed = may_be_served(&r);
	if (request_admit(&api, &r, &m, &a))
		request_answer(&api, &r, &m, &a);
	check(&r, &m, &a);
	body_put(a.body);
	while (n)
		free(lines[--n]);
	return 0;
}
