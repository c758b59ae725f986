/*
 * host/api/ without sockets: who may (access.c), routes and bodies (route.c), what is
 * answered (answer.c), metrics, history, and whether the documents agree with them.
 * Defends I1, I2 and I4 of host/api/api.h.
 */
#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "host/api/internal.h"
#include "tests/lib/fakesnap.h"

#define TOKEN "0123456789abcdef0123456789abcdef0123456789abcdef"
#define READ_TOKEN "readreadreadreadreadreadreadreadread"

static struct api api;
static struct fakesnap fake = { .vms = 8, .time_s = 77 };
static struct err e;

/* What the daemon saw, and what it says. */
static struct {
	unsigned snapshots, commands;
	char verb[32], args[1024];
	int rc;
	bool no_snapshot, with_result;
} daemon_;

static json_t *snapshot(void *ctx)
{
	cr_assert_eq(ctx, &fake);
	daemon_.snapshots++;
	return daemon_.no_snapshot ? NULL : fakesnap_json(&fake);
}

static int command(void *ctx, const char *verb, const json_t *args, json_t **result, struct err *why)
{
	char *text = json_dumps(args, JSON_COMPACT | JSON_SORT_KEYS);

	daemon_.commands++;
	snprintf(daemon_.verb, sizeof daemon_.verb, "%s", verb);
	snprintf(daemon_.args, sizeof daemon_.args, "%s", text);
	free(text);
	if (daemon_.with_result)
		*result = json_pack("{s:i}", "answer", 42);
	return daemon_.rc ? err_set(why, daemon_.rc, "%s: it cannot be", verb) : 0;
}

static void set_token(struct token *t, const char *text)
{
	memcpy(t->text, text, strlen(text));
	t->is_set = true;
}

static void begin(void)
{
	struct api_ops ops = { .snapshot = snapshot, .command = command, .ctx = &fake };
	struct api_config cfg = { .host_name = "barn.example" };

	cr_assert_eq(api_init(&api, &ops, &cfg, &e), 0, "%s", e.msg);
	set_token(&api.token, TOKEN);
	set_token(&api.read_token, READ_TOKEN);
}

static void end(void)
{
	api_fini(&api);
}

TestSuite(api, .init = begin, .fini = end);

/* ---- asking ----------------------------------------------------------------------------- */

static struct request from_unix(const char *method, const char *path)
{
	return (struct request){ .method = method, .path = path, .host = "localhost", .host_count = 1,
				 .is_trusted = true };
}

static struct request from_tcp(const char *method, const char *path)
{
	return (struct request){ .method = method, .path = path, .host = "127.0.0.1:8006",
				 .host_count = 1, .is_tcp = true,
				 .authorization = "Bearer " TOKEN };
}

static struct answer ask(const struct request *r)
{
	struct answer a = { 0 };
	struct match m;

	if (request_admit(&api, r, &m, &a))
		request_answer(&api, r, &m, &a);
	cr_assert_not_null(a.body);
	cr_assert_not_null(a.type);
	return a;
}

static unsigned status(const struct request *r)
{
	struct answer a = ask(r);

	body_put(a.body);
	return a.status;
}

static json_t *json_of(const struct answer *a)
{
	json_error_t why;
	json_t *j = json_loadb(a->body->data, a->body->len, JSON_REJECT_DUPLICATES, &why);

	cr_assert_not_null(j, "%s", why.text);
	cr_assert_eq(json_integer_value(json_object_get(j, "v")), 1);
	return j;
}

/* The parsed answer; its status must be that. */
static json_t *get(const char *path, unsigned expected)
{
	struct request r = from_unix("GET", path);
	struct answer a = ask(&r);
	json_t *j = json_of(&a);

	cr_assert_eq(a.status, expected, "%s: %u", path, a.status);
	if (expected != 200) {
		const char *text = json_string_value(json_object_get(j, "error"));

		cr_assert(json_is_false(json_object_get(j, "ok")));
		cr_assert(text && *text && !strchr(text, '\n') && text[strlen(text) - 1] != '.');
	}
	body_put(a.body);
	return j;
}

static char *text_of(const char *path)
{
	struct request r = from_unix("GET", path);
	struct answer a = ask(&r);
	char *text = strndup(a.body->data, a.body->len);

	cr_assert_eq(a.status, 200);
	body_put(a.body);
	return text;
}

static unsigned say(const char *method, const char *path, const char *body)
{
	struct request r = from_unix(method, path);

	r.body = body;
	r.body_bytes = body ? strlen(body) : 0;
	r.content_type = "application/json";
	return status(&r);
}

/* ---- reading ---------------------------------------------------------------------------- */

Test(api, host_asked_gives_the_snapshots)
{
	json_t *j = get("/v1/host", 200), *whole = fakesnap_json(&fake);

	cr_assert(json_equal(json_object_get(json_object_get(j, "host"), "saved"),
			     json_object_get(json_object_get(whole, "host"), "saved")));
	cr_assert_gt(json_integer_value(json_object_get(j, "time_s")), 1600000000);
	json_decref(j);
	json_decref(whole);
}

Test(api, vms_asked_give_all_of_them)
{
	json_t *j = get("/v1/vms", 200), *whole = get("/v1/snapshot", 200);

	cr_assert_eq(json_array_size(json_object_get(j, "vms")), 8);
	cr_assert(json_equal(json_object_get(j, "vms"), json_object_get(whole, "vms")));
	json_decref(j);
	json_decref(whole);
}

Test(api, vm_asked_by_encoded_name_is_found)
{
	json_t *j = get("/v1/vms/web%2d1", 200);

	cr_assert_str_eq(json_string_value(json_object_get(json_object_get(j, "vm"), "name")), "web-1");
	json_decref(j);
}

Test(api, vm_unknown_is_404_after_a_second_look)
{
	uint64_t began;

	json_decref(get("/v1/vms/web-1", 200));
	api.snapshot_ns = now_ns() - 100000000;
	json_decref(get("/v1/vms/web-1", 200));
	cr_assert_eq(daemon_.snapshots, 1, "this is fresh enough");
	began = now_ns();
	for (unsigned i = 0; i < 100; i++)
		json_decref(get("/v1/vms/nobody", 404));
	cr_assert_geq(daemon_.snapshots, 2, "it might just have been started");
	cr_assert_leq(daemon_.snapshots, 3 + (now_ns() - began) / 20000000, "but not each time");
}

Test(api, vm_with_a_slash_in_its_name_is_found_encoded_only)
{
	fake.hostile = true;
	json_decref(get("/v1/vms/web%2F..%2F1", 200));
	json_decref(get("/v1/vms/web/../1", 404));
	json_decref(get("/v1/vms/%3Cimg%20src=x%20onerror=hurt()%3E", 200));
}

Test(api, reading_often_gathers_once)
{
	for (unsigned i = 0; i < 100; i++) {
		json_decref(get("/v1/host", 200));
		json_decref(get("/v1/vms", 200));
		free(text_of("/metrics"));
	}
	cr_assert_eq(daemon_.snapshots, 1);
}

Test(api, reading_while_another_is_sent_keeps_what_it_is_sent)
{
	struct request r = from_unix("GET", "/v1/vms");
	struct answer first = ask(&r), second;

	snapshot_drop(&api);
	fake.vms = 3;
	second = ask(&r);
	cr_assert_gt(first.body->len, second.body->len);
	cr_assert(memmem(first.body->data, first.body->len, "\"log-1\"", 7));
	body_put(first.body);
	body_put(second.body);
}

Test(api, no_snapshot_is_503_everywhere)
{
	static const char *const paths[] = { "/metrics", "/v1/host", "/v1/vms", "/v1/snapshot", "/healthz" };

	daemon_.no_snapshot = true;
	for (size_t i = 0; i < ARRAY_LEN(paths); i++)
		json_decref(get(paths[i], 503));
	json_decref(get("/v1/vms/web-1", 503));
	cr_assert_leq(daemon_.snapshots, 2, "not asked again for each");
}

Test(api, health_says_nothing_of_the_host)
{
	struct request r = from_tcp("GET", "/healthz");
	struct answer a;

	r.authorization = NULL;
	a = ask(&r);
	cr_assert_eq(a.status, 200);
	cr_assert(strncmp(a.body->data, "{\"v\":1,\"ok\":true}", 17) == 0);
	body_put(a.body);
}

Test(api, page_has_no_foreign_resource)
{
	char *text = text_of("/");

	cr_assert_null(strstr(text, "http://"));
	cr_assert_null(strstr(text, "https://"));
	cr_assert_null(strstr(text, "innerHTML"));
	cr_assert_not_null(strstr(api.page_policy, "script-src 'sha256-"));
	cr_assert_not_null(strstr(api.page_policy, "style-src 'sha256-"));
	cr_assert_null(strstr(api.page_policy, "unsafe"));
	free(text);
}

Test(api, thousand_vms_are_all_there)
{
	char *text;
	unsigned n = 0;
	json_t *j;

	fake.vms = 1000;
	j = get("/v1/vms", 200);
	cr_assert_eq(json_array_size(json_object_get(j, "vms")), 1000);
	json_decref(j);
	text = text_of("/metrics");
	for (const char *at = text; (at = strstr(at, "brim_vm_memory_bytes{")); at++)
		n++;
	cr_assert_eq(n, 1000);
	free(text);
}

/* ---- paths and methods ------------------------------------------------------------------ */

Test(api, path_malformed_is_400)
{
	static const char *const paths[] = { "", "v1", "/v1/vms/%", "/v1/vms/%2", "/v1/vms/%zz", "/v1/vms/a%00b",
					     "/v1/vms/a%0ab", "/v1/vms/\x01" };
	char name[200] = "/v1/vms/", path[1000];

	for (size_t i = 0; i < ARRAY_LEN(paths); i++)
		json_decref(get(paths[i], 400));
	memset(name + 8, 'a', 127);
	json_decref(get(name, 404));
	memset(name + 8, 'a', 128);
	json_decref(get(name, 400));
	memset(path, '/', sizeof path);
	path[999] = '\0';
	json_decref(get(path, 400));
}

Test(api, path_unknown_is_404)
{
	static const char *const paths[] = { "/v2", "/v1", "/v1/", "/v1/vms/", "/v1/vms/web-1/", "//", "/v1//vms",
					     "/v1/vms/web-1/eat", "/index.html", "/v1/vms/../host", "/V1/vms",
					     "/v1/hos", "/v1/hosts", "/favicon.ico" };

	for (size_t i = 0; i < ARRAY_LEN(paths); i++)
		json_decref(get(paths[i], 404));
}

Test(api, method_wrong_is_405_with_those_that_are)
{
	struct request r = from_unix("DELETE", "/v1/vms/web-1");
	struct answer a = ask(&r);

	cr_assert_eq(a.status, 405);
	cr_assert_str_eq(a.allow, "GET, HEAD");
	body_put(a.body);
	cr_assert_eq(say("GET", "/v1/vms/web-1/kill", NULL), 405);
	cr_assert_eq(say("POST", "/v1/vms/web-1/limit", "{\"limit_bytes\":1}"), 405);
	cr_assert_eq(say("OPTIONS", "/v1/host", NULL), 405);
	cr_assert_eq(say("get", "/v1/host", NULL), 405);
	cr_assert_eq(daemon_.commands, 0);
}

Test(api, head_is_answered_where_get_is)
{
	struct request r = from_unix("HEAD", "/v1/host");

	cr_assert_eq(status(&r), 200);
	r.path = "/v1/down";
	cr_assert_eq(status(&r), 405);
}

/* ---- commands --------------------------------------------------------------------------- */

Test(api, command_given_reaches_the_daemon)
{
	static const struct {
		const char *method, *path, *body, *verb, *args;
	} rows[] = {
		{ "POST", "/v1/vms/web-1/pause", NULL, "pause", "{\"vm\":\"web-1\"}" },
		{ "POST", "/v1/vms/web-1/resume", "{}", "resume", "{\"vm\":\"web-1\"}" },
		{ "POST", "/v1/vms/web-1/stop", NULL, "stop", "{\"vm\":\"web-1\"}" },
		{ "POST", "/v1/vms/web-1/kill", NULL, "kill", "{\"vm\":\"web-1\"}" },
		{ "PUT", "/v1/vms/db-1/limit", "{\"limit_bytes\":0}", "limit", "{\"limit_bytes\":0,\"vm\":\"db-1\"}" },
		{ "PUT", "/v1/vms/db-1/balloon", "{\"target_bytes\":4096}", "balloon",
		  "{\"target_bytes\":4096,\"vm\":\"db-1\"}" },
		{ "POST", "/v1/vms/db-1/reclaim", "{\"bytes\":9223372036854775807}", "reclaim",
		  "{\"bytes\":9223372036854775807,\"vm\":\"db-1\"}" },
		{ "POST", "/v1/vms/db-1/set", "{\"key\":\"shares\",\"value\":2000}", "set",
		  "{\"key\":\"shares\",\"value\":2000,\"vm\":\"db-1\"}" },
		{ "POST", "/v1/vms/db-1/set", "{\"key\":\"limit\",\"value\":\"2G\"}", "set",
		  "{\"key\":\"limit\",\"value\":\"2G\",\"vm\":\"db-1\"}" },
		{ "POST", "/v1/up", "{\"file\":\"/etc/brim.yaml\"}", "up", "{\"file\":\"/etc/brim.yaml\"}" },
		{ "POST", "/v1/down", NULL, "down", "{}" },
		{ "POST", "/v1/reload", NULL, "reload", "{}" },
	};

	for (size_t i = 0; i < ARRAY_LEN(rows); i++) {
		cr_assert_eq(say(rows[i].method, rows[i].path, rows[i].body), 200, "%s", rows[i].path);
		cr_assert_str_eq(daemon_.verb, rows[i].verb);
		cr_assert_str_eq(daemon_.args, rows[i].args);
	}
	cr_assert_eq(daemon_.commands, ARRAY_LEN(rows));
}

Test(api, command_malformed_is_400_and_not_given)
{
	static const struct {
		const char *method, *path, *body;
	} rows[] = {
		{ "PUT", "/v1/vms/web-1/limit", NULL }, { "PUT", "/v1/vms/web-1/limit", "{}" },
		{ "PUT", "/v1/vms/web-1/limit", "{\"limit_bytes\":-1}" },
		{ "PUT", "/v1/vms/web-1/limit", "{\"limit_bytes\":1.5}" },
		{ "PUT", "/v1/vms/web-1/limit", "{\"limit_bytes\":\"2G\"}" },
		{ "PUT", "/v1/vms/web-1/limit", "{\"limit_bytes\":9223372036854775808}" },
		{ "PUT", "/v1/vms/web-1/limit", "{\"limit_bytes\":1,\"limit_bytes\":2}" },
		{ "PUT", "/v1/vms/web-1/limit", "{\"limit_bytes\":1,\"vm\":\"db-1\"}" },
		{ "PUT", "/v1/vms/web-1/limit", "{\"limit_bytes\":1} x" },
		{ "PUT", "/v1/vms/web-1/limit", "[1]" }, { "PUT", "/v1/vms/web-1/limit", "{" },
		{ "POST", "/v1/vms/web-1/kill", "{\"force\":true}" }, { "POST", "/v1/vms/web-1/kill", "null" },
		{ "POST", "/v1/vms/web-1/set", "{\"key\":\"shares\"}" },
		{ "POST", "/v1/vms/web-1/set", "{\"key\":1,\"value\":1}" },
		{ "POST", "/v1/vms/web-1/set", "{\"key\":\"shares\",\"value\":[1]}" },
		{ "POST", "/v1/vms/web-1/set", "{\"key\":\"shares\",\"value\":null}" },
		{ "POST", "/v1/up", "{\"file\":7}" }, { "POST", "/v1/up", "{\"file\":\"\\ud800\"}" },
	};

	for (size_t i = 0; i < ARRAY_LEN(rows); i++)
		cr_assert_eq(say(rows[i].method, rows[i].path, rows[i].body), 400, "%s %s", rows[i].path,
			     rows[i].body ? rows[i].body : "");
	cr_assert_eq(daemon_.commands, 0);
}

Test(api, command_with_deep_json_is_400)
{
	static char body[60001];

	memset(body, '[', sizeof body - 1);
	cr_assert_eq(say("POST", "/v1/down", body), 400);
	memcpy(body, "{\"file\":", 8);
	cr_assert_eq(say("POST", "/v1/up", body), 400);
}

Test(api, command_to_unknown_vm_is_404_and_not_given)
{
	cr_assert_eq(say("POST", "/v1/vms/nobody/kill", NULL), 404);
	cr_assert_eq(daemon_.commands, 0);
}

Test(api, command_body_of_another_type_is_415)
{
	struct request r = from_unix("POST", "/v1/up");

	r.body = "{}";
	r.body_bytes = 2;
	cr_assert_eq(status(&r), 415);
	r.content_type = "text/plain";
	cr_assert_eq(status(&r), 415);
	r.content_type = "application/json; charset=utf-8";
	cr_assert_eq(status(&r), 200);
}

Test(api, command_failed_says_why_with_its_status)
{
	static const struct {
		int rc;
		unsigned status;
	} rows[] = { { -EINVAL, 400 }, { -EPERM, 403 }, { -ENOENT, 404 }, { -EBUSY, 409 }, { -ENOTSUP, 501 },
		     { -ENOMEM, 503 }, { -ETIMEDOUT, 504 }, { -EIO, 500 }, { -EINPROGRESS, 500 } };

	for (size_t i = 0; i < ARRAY_LEN(rows); i++) {
		struct request r = from_unix("POST", "/v1/down");
		struct answer a;
		json_t *j;

		daemon_.rc = rows[i].rc;
		a = ask(&r);
		cr_assert_eq(a.status, rows[i].status);
		j = json_of(&a);
		cr_assert_str_eq(json_string_value(json_object_get(j, "error")), "down: it cannot be");
		json_decref(j);
		body_put(a.body);
	}
}

Test(api, command_result_is_given_back_and_numbers_are_new)
{
	struct request r = from_unix("POST", "/v1/vms/web-1/pause");
	struct answer a;
	json_t *j;

	json_decref(get("/v1/host", 200));
	daemon_.with_result = true;
	a = ask(&r);
	j = json_of(&a);
	cr_assert_eq(json_integer_value(json_object_get(json_object_get(j, "result"), "answer")), 42);
	json_decref(j);
	body_put(a.body);
	fake.state = "paused";
	j = get("/v1/vms/web-1", 200);
	cr_assert_str_eq(json_string_value(json_object_get(json_object_get(j, "vm"), "state")), "paused");
	json_decref(j);
}

/* ---- who may ---------------------------------------------------------------------------- */

Test(api, tcp_without_token_gets_the_page_and_health_only)
{
	for (size_t i = 0; i < route_count; i++) {
		struct request r = from_tcp(route_table[i].method, route_table[i].path);

		r.authorization = NULL;
		cr_assert_eq(status(&r), route_table[i].access == ACCESS_OPEN ? 200 : 401, "%s",
			     route_table[i].path);
		r.path = "/there/is/none";
		cr_assert_eq(status(&r), 401, "what there is is not told");
	}
	cr_assert_eq(daemon_.commands, 0);
}

Test(api, tcp_with_wrong_token_is_401)
{
	static const char *const wrong[] = {
		"", "Bearer", "Bearer ", "Basic " TOKEN, TOKEN, "Bearer " TOKEN "x", "Bearer x" TOKEN,
		"Bearer 0123456789abcdef0123456789abcdef0123456789abcdee", "Bearer 0123456789abcdef",
		"Bearer " TOKEN " ", "Bearer \"" TOKEN "\"",
	};
	struct request r = from_tcp("GET", "/v1/host");
	char longest[2000] = "Bearer ";

	for (size_t i = 0; i < ARRAY_LEN(wrong); i++) {
		r.authorization = wrong[i];
		cr_assert_eq(status(&r), 401, "%s", wrong[i]);
	}
	memset(longest + 7, '0', sizeof longest - 8);
	r.authorization = longest;
	cr_assert_eq(status(&r), 401);
	r.authorization = "bearer  " TOKEN;
	cr_assert_eq(status(&r), 200);
}

Test(api, tcp_without_any_token_set_is_401)
{
	struct request r = from_tcp("GET", "/v1/host");

	memset(&api.token, 0, sizeof api.token);
	memset(&api.read_token, 0, sizeof api.read_token);
	r.authorization = "Bearer ";
	cr_assert_eq(status(&r), 401);
	r.authorization = "Bearer " TOKEN;
	cr_assert_eq(status(&r), 401);
}

Test(api, tcp_with_reading_token_reads_only)
{
	for (size_t i = 0; i < route_count; i++) {
		struct request r = from_tcp(route_table[i].method, route_table[i].path);

		r.authorization = "Bearer " READ_TOKEN;
		cr_assert_eq(status(&r) == 403, route_table[i].access == ACCESS_COMMAND, "%s", r.path);
	}
	cr_assert_eq(daemon_.commands, 0);
}

Test(api, unix_peer_of_another_user_is_403_everywhere)
{
	for (size_t i = 0; i < route_count; i++) {
		struct request r = from_unix(route_table[i].method, route_table[i].path);

		r.is_trusted = false;
		r.authorization = "Bearer " TOKEN;
		cr_assert_eq(status(&r), 403, "%s", r.path);
	}
	cr_assert_eq(daemon_.commands + daemon_.snapshots, 0);
}

static unsigned with_host(const char *host, bool is_tcp)
{
	struct request r = is_tcp ? from_tcp("GET", "/v1/host") : from_unix("GET", "/v1/host");

	r.host = host;
	r.host_count = host ? 1 : 0;
	return status(&r);
}

Test(api, host_that_is_not_ours_is_refused)
{
	static const char *const ours[] = { "localhost", "LocalHost:80", "127.0.0.1", "10.0.0.7:8006", "[::1]",
					    "[fe80::1]:8006", "barn.example", "Barn.Example:443" };
	static const char *const foreign[] = { NULL, "", ":", ":80", "evil.example", "localhost.evil.example",
		"127.0.0.1.evil.example", "127.0.0.1:80:80", "127.0.0.1:", "127.0.0.1:8x", "[::1", "[]", "[evil]",
		"[::1]x", "[127.0.0.1]", "::1", "user@localhost", "localhost ", "barn.example.", "2130706433", "0x7f.1" };

	for (int tcp = 0; tcp < 2; tcp++) {
		for (size_t i = 0; i < ARRAY_LEN(ours); i++)
			cr_assert_eq(with_host(ours[i], tcp), 200, "%s", ours[i]);
		for (size_t i = 0; i < ARRAY_LEN(foreign); i++)
			cr_assert_eq(with_host(foreign[i], tcp), 403, "%s", foreign[i] ? foreign[i] : "none");
	}
}

Test(api, host_given_twice_is_refused)
{
	struct request r = from_unix("GET", "/v1/host");

	r.host_count = 2;
	cr_assert_eq(status(&r), 403);
}

Test(api, origin_of_another_site_is_refused)
{
	static const char *const foreign[] = { "null", "", "http://evil.example", "http://127.0.0.1", "http://127.0.0.1:80",
					       "ftp://127.0.0.1:8006", "http://127.0.0.1:8006.evil.example",
					       "http://127.0.0.1:8006/" };
	struct request r = from_tcp("POST", "/v1/down");

	for (size_t i = 0; i < ARRAY_LEN(foreign); i++) {
		r.origin = foreign[i];
		cr_assert_eq(status(&r), 403, "%s", foreign[i]);
	}
	cr_assert_eq(daemon_.commands, 0);
	r.origin = "http://127.0.0.1:8006";
	cr_assert_eq(status(&r), 200);
	r.origin = "https://127.0.0.1:8006";
	cr_assert_eq(status(&r), 200);
}

Test(api, cross_site_fetch_is_refused_but_a_link_to_the_page_is_not)
{
	struct request r = from_unix("POST", "/v1/vms/web-1/kill");

	r.fetch_site = "cross-site";
	cr_assert_eq(status(&r), 403);
	r.fetch_site = "same-site";
	cr_assert_eq(status(&r), 403);
	cr_assert_eq(daemon_.commands, 0);
	r.fetch_site = "same-origin";
	cr_assert_eq(status(&r), 200);
	r = from_unix("GET", "/");
	r.fetch_site = "cross-site";
	cr_assert_eq(status(&r), 200);
}

/* ---- token files ------------------------------------------------------------------------ */

static int read_token(const char *text, size_t len, mode_t mode)
{
	char path[] = "/tmp/brim-token-XXXXXX";
	int fd = mkstemp(path), rc;
	struct token t;

	cr_assert_eq(write(fd, text, len), (ssize_t)len);
	fchmod(fd, mode);
	close(fd);
	e.msg[0] = '\0';
	rc = token_read(&t, path, &e);
	unlink(path);
	cr_assert_eq(rc == 0, t.is_set);
	cr_assert(rc == 0 || strstr(e.msg, "token file"));
	cr_assert_null(strstr(e.msg, TOKEN), "a token is never said");
	return rc;
}

Test(api, token_file_checked_whole)
{
	static char text[API_TOKEN_MAX + 2];
	struct token t;

	cr_assert_eq(read_token(TOKEN, strlen(TOKEN), 0600), 0);
	cr_assert_eq(read_token(TOKEN "\r\n", strlen(TOKEN) + 2, 0400), 0);
	cr_assert_eq(read_token(TOKEN, strlen(TOKEN), 0640), -EACCES);
	cr_assert_eq(read_token(TOKEN, strlen(TOKEN), 0604), -EACCES);
	cr_assert_eq(read_token("short", 5, 0600), -EINVAL);
	cr_assert_eq(read_token("", 0, 0600), -EINVAL);
	cr_assert_eq(read_token(TOKEN "\n" TOKEN, 2 * strlen(TOKEN) + 1, 0600), -EINVAL);
	cr_assert_eq(read_token(TOKEN "\0" TOKEN, 2 * strlen(TOKEN) + 1, 0600), -EINVAL);
	memset(text, 'a', sizeof text);
	cr_assert_eq(read_token(text, API_TOKEN_MAX, 0600), 0);
	cr_assert_eq(read_token(text, API_TOKEN_MAX + 1, 0600), -EINVAL);
	cr_assert_eq(token_read(&t, "/nowhere", &e), -ENOENT);
	cr_assert_eq(token_read(&t, "/dev/null", &e), -EINVAL);
}

/* ---- metrics ---------------------------------------------------------------------------- */

/* A line of the format: NAME{LABELS} VALUE, and a HELP and a TYPE before the first. */
static void check_sample(const char *line, const char *current)
{
	size_t n = strspn(line, "abcdefghijklmnopqrstuvwxyz0123456789_");
	const char *at = line + n;
	char *after;

	cr_assert(n > 0 && strlen(current) == n && strncmp(line, current, n) == 0, "%s under %s", line, current);
	if (*at == '{') {
		bool quoted = false;

		for (at++; *at && (quoted || *at != '}'); at++) {
			if (*at == '\\')
				cr_assert(strchr("\\\"n", *++at), "%s", line);
			else if (*at == '"')
				quoted = !quoted;
		}
		cr_assert_eq(*at++, '}', "%s", line);
	}
	cr_assert_eq(*at, ' ', "%s", line);
	strtod(at + 1, &after);
	cr_assert(after > at + 1 && !*after, "%s", line);
}

static void check_metrics(char *text)
{
	char current[128] = "";

	for (char *line = strtok(text, "\n"); line; line = strtok(NULL, "\n")) {
		if (strncmp(line, "# HELP ", 7) == 0) {
			cr_assert(strchr(line + 7, ' ')[1], "%s", line);
		} else if (strncmp(line, "# TYPE ", 7) == 0) {
			const char *end = strchr(line + 7, ' ');

			cr_assert(strcmp(end, " gauge") == 0 || strcmp(end, " counter") == 0);
			snprintf(current, sizeof current, "%.*s", (int)(end - line - 7), line + 7);
			cr_assert_eq(strcmp(end, " counter") == 0,
				     strcmp(current + strlen(current) - 6, "_total") == 0);
		} else {
			check_sample(line, current);
		}
	}
}

Test(api, metrics_are_well_formed_whatever_names_are)
{
	for (int hostile = 0; hostile < 2; hostile++) {
		char *text;

		fake.hostile = hostile;
		snapshot_drop(&api);
		text = text_of("/metrics");
		cr_assert_eq(text[strlen(text) - 1], '\n');
		if (hostile)
			cr_assert_not_null(strstr(text, "brim_vm_shares{vm=\"a\\\\b\\\"c\\nd\"} "));
		check_metrics(text);
		free(text);
	}
}

Test(api, metrics_are_in_base_units)
{
	char *text = text_of("/metrics"), line[128];
	json_t *whole = fakesnap_json(&fake);
	const json_t *vm = json_array_get(json_object_get(whole, "vms"), 0);

	snprintf(line, sizeof line, "\nbrim_vm_fault_latency_p99_seconds{vm=\"web-1\"} %.12g\n",
		 json_number_value(json_object_get(vm, "fault_p99_us")) / 1e6);
	cr_assert_not_null(strstr(text, line), "%s", line);
	snprintf(line, sizeof line, "\nbrim_vm_resident_bytes{vm=\"web-1\"} %lld\n",
		 (long long)json_integer_value(json_object_get(vm, "resident_bytes")));
	cr_assert_not_null(strstr(text, line), "%s", line);
	cr_assert_not_null(strstr(text, "\nbrim_host_pressure_some_ratio 0.0002\n"));
	cr_assert_not_null(strstr(text, "\nbrim_host_vms 8\n"));
	cr_assert_not_null(strstr(text, "\n# TYPE brimd_api_snapshots_total counter\n"));
	free(text);
	json_decref(whole);
}

Test(api, metrics_unknown_are_left_out)
{
	json_t *j = json_pack("{s:{s:n,s:s},s:[{s:s,s:n,s:i},i,n]}", "host", "physical_bytes", "state", "high",
			      "vms", "name", "a", "limit_bytes", "shares", 7, 5);
	struct body *b = metrics_body(j);
	char *text = strndup(b->data, b->len);

	cr_assert_null(strstr(text, "brim_host_physical_bytes"));
	cr_assert_null(strstr(text, "brim_vm_limit_bytes"));
	cr_assert_not_null(strstr(text, "brim_vm_shares{vm=\"a\"} 7\n"));
	cr_assert_not_null(strstr(text, "brim_host_state{state=\"high\"} 1\n"));
	check_metrics(text);
	free(text);
	body_put(b);
	json_decref(j);
	b = metrics_body(NULL);
	cr_assert_not_null(b);
	body_put(b);
}

/* ---- history ---------------------------------------------------------------------------- */

static json_t *history(const char *since, unsigned expected)
{
	struct request r = from_unix("GET", "/v1/history");
	struct answer a;
	json_t *j;

	r.since = since;
	a = ask(&r);
	cr_assert_eq(a.status, expected);
	j = json_of(&a);
	body_put(a.body);
	return j;
}

Test(api, history_keeps_the_last_hour_in_order)
{
	json_t *whole = fakesnap_json(&fake), *j;
	const json_t *samples, *host = json_object_get(whole, "host");

	for (unsigned i = 1; i <= HISTORY_SAMPLES + 100; i++)
		history_add(&api.history, host, i);
	j = history(NULL, 200);
	samples = json_object_get(j, "samples");
	cr_assert_eq(json_array_size(samples), HISTORY_SAMPLES);
	for (unsigned i = 0; i < HISTORY_SAMPLES; i++) {
		const json_t *s = json_array_get(samples, i);

		cr_assert_eq(json_array_size(s), json_array_size(json_object_get(j, "columns")));
		cr_assert_eq(json_integer_value(json_array_get(s, 0)), i + 101);
		cr_assert(json_equal(json_array_get(s, 1), json_object_get(host, "assigned_bytes")));
	}
	json_decref(j);
	json_decref(whole);
}

Test(api, history_since_gives_what_came_after)
{
	json_t *j, *host = json_pack("{s:s}", "state", "so\"ft");

	for (unsigned i = 10; i <= 20; i++)
		history_add(&api.history, host, i);
	j = history("18", 200);
	cr_assert_eq(json_array_size(json_object_get(j, "samples")), 2);
	json_decref(j);
	j = history("20", 200);
	cr_assert_eq(json_array_size(json_object_get(j, "samples")), 0);
	json_decref(j);
	json_decref(history("", 400));
	json_decref(history("-1", 400));
	json_decref(history("1e9", 400));
	json_decref(history("99999999999999999999", 400));
	json_decref(host);
}

/* ---- the documents ---------------------------------------------------------------------- */

static char *file_text(const char *path)
{
	FILE *f = fopen(path, "r");
	size_t size = 1 << 20;
	char *text = malloc(size);

	cr_assert_not_null(f, "%s: tests run at the top of the tree", path);
	text[fread(text, 1, size - 1, f)] = '\0';
	fclose(f);
	return text;
}

static bool has_route(const char *method, const char *path)
{
	for (size_t i = 0; i < route_count; i++)
		if (strcasecmp(route_table[i].method, method) == 0 && strcmp(route_table[i].path, path) == 0)
			return true;
	return false;
}

static void check_operation(const struct route *r, const json_t *op)
{
	const json_t *schema = json_object_get(json_object_get(json_object_get(json_object_get(op,
		"requestBody"), "content"), "application/json"), "schema");
	const json_t *given = json_object_get(schema, "properties");
	size_t n = 0;

	cr_assert_eq(r->access == ACCESS_OPEN, json_object_get(op, "security") != NULL, "%s", r->path);
	for (size_t i = 0; i < ROUTE_ARGS; i++)
		if (r->args[i].kind != ARG_NONE) {
			n++;
			cr_assert_not_null(json_object_get(given, r->args[i].name), "%s: %s", r->path, r->args[i].name);
		}
	cr_assert_eq(json_object_size(given), n, "%s", r->path);
}

Test(api, openapi_and_routes_are_the_same)
{
	char *text = text_of("/v1/openapi.json");
	json_t *doc = json_loads(text, JSON_REJECT_DUPLICATES, NULL), *operations;
	const json_t *paths = json_object_get(doc, "paths");
	const char *path, *method;
	json_t *op;

	cr_assert_not_null(doc);
	for (size_t i = 0; i < route_count; i++) {
		char lower[8] = "";

		for (size_t k = 0; route_table[i].method[k]; k++)
			lower[k] = (char)(route_table[i].method[k] | 0x20);
		op = json_object_get(json_object_get(paths, route_table[i].path), lower);
		cr_assert_not_null(op, "openapi.json lacks %s %s", lower, route_table[i].path);
		check_operation(&route_table[i], op);
	}
	json_object_foreach((json_t *)(uintptr_t)paths, path, operations)
		json_object_foreach(operations, method, op)
			cr_assert(has_route(method, path), "no route: %s %s", method, path);
	json_decref(doc);
	free(text);
}

/* Each member of the snapshot is in the schema, and the other way round. */
Test(api, openapi_schemas_have_what_the_snapshot_has)
{
	char *text = text_of("/v1/openapi.json");
	json_t *doc = json_loads(text, 0, NULL), *whole = fakesnap_json(&fake);
	const json_t *schemas = json_object_get(json_object_get(doc, "components"), "schemas");
	const json_t *pairs[][2] = {
		{ json_object_get(json_object_get(schemas, "Host"), "properties"), json_object_get(whole, "host") },
		{ json_object_get(json_object_get(schemas, "Vm"), "properties"),
		  json_array_get(json_object_get(whole, "vms"), 0) },
	};

	for (size_t i = 0; i < ARRAY_LEN(pairs); i++) {
		const char *key;
		json_t *v;

		cr_assert_eq(json_object_size(pairs[i][0]), json_object_size(pairs[i][1]));
		json_object_foreach((json_t *)(uintptr_t)pairs[i][1], key, v)
			cr_assert_not_null(json_object_get(pairs[i][0], key), "%s", key);
	}
	json_decref(doc);
	json_decref(whole);
	free(text);
}

static bool is_metric(const char *name)
{
	for (size_t i = 0; metric_name(i); i++)
		if (strcmp(metric_name(i), name) == 0)
			return true;
	for (unsigned i = 0; i < CTR_COUNT_; i++) {
		char counter[128];

		snprintf(counter, sizeof counter, "%s_total", counter_table[i].name);
		if (strncmp(counter, "brimd_", 6) == 0 && strcmp(counter, name) == 0)
			return true;
	}
	return false;
}

/* Each brim_... and brimd_... of a text is a metric; how many there are. */
static unsigned check_names(const char *text)
{
	unsigned n = 0;

	for (const char *at = text; (at = strstr(at, "brim")); n++) {
		char name[128];
		size_t len = strspn(at, "abcdefghijklmnopqrstuvwxyz0123456789_");

		snprintf(name, sizeof name, "%.*s", (int)len, at);
		at += len;
		if (strncmp(name, "brim_", 5) == 0 || strncmp(name, "brimd_", 6) == 0)
			cr_assert(is_metric(name), "no such metric: %s", name);
		else
			n--;
	}
	return n;
}

static unsigned check_expressions(const json_t *j)
{
	unsigned n = 0;
	const char *key;
	json_t *v;

	if (json_is_array(j))
		for (size_t i = 0; i < json_array_size(j); i++)
			n += check_expressions(json_array_get(j, i));
	json_object_foreach((json_t *)(uintptr_t)j, key, v)
		n += json_is_string(v) && (strcmp(key, "expr") == 0 || strcmp(key, "query") == 0) ?
		     check_names(json_string_value(v)) : check_expressions(v);
	return n;
}

Test(api, grafana_dashboard_names_only_metrics_there_are)
{
	char *text = file_text("docs/grafana.json");
	json_t *doc = json_loads(text, JSON_REJECT_DUPLICATES, NULL);

	cr_assert_not_null(doc);
	cr_assert_gt(check_expressions(doc), 10);
	json_decref(doc);
	free(text);
}

Test(api, metrics_are_those_of_the_document)
{
	char *text = file_text("docs/api.md"), *metrics = text_of("/metrics");

	for (size_t i = 0; metric_name(i); i++) {
		cr_assert_not_null(strstr(text, metric_name(i)), "docs/api.md lacks %s", metric_name(i));
		cr_assert_not_null(strstr(metrics, metric_name(i)), "not served: %s", metric_name(i));
	}
	for (size_t i = 0; i < route_count; i++)
		cr_assert_not_null(strstr(text, route_table[i].path), "docs/api.md lacks %s", route_table[i].path);
	check_names(text);
	free(text);
	free(metrics);
}
