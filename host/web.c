/*
 * Commands that come over HTTP, and VMs' answers to them.
 */
#include "host/web.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct http {
	struct polled watch; /* first; a copy of the api's descriptor */
	struct http_config cfg;
	struct api *api;
	unsigned pending; /* answers that VMs still owe */
	bool is_over;
};

/* Who waits for a VM's answer. */
struct waiter {
	struct http *h;
	uint64_t ticket;
};

/* ---- a VM's commands ---------------------------------------------------------------- */

static void free_if_over(struct http *h)
{
	if (h->is_over && !h->pending)
		free(h);
}

static void on_answer(void *ctx, int rc, const json_t *result, const char *error)
{
	struct waiter *w = ctx;
	struct http *h = w->h;
	struct err e = { "" };

	if (rc)
		err_set(&e, rc, "%s", error);
	if (h->api)
		api_finish(h->api, w->ticket, rc, result, &e);
	h->pending--;
	free(w);
	free_if_over(h);
}

/* The VM's own words for the same; the rest of `args` it would call unknown. */
static json_t *vm_args(const json_t *args)
{
	json_t *copy = json_copy((json_t *)(uintptr_t)args);

	json_object_del(copy, "vm");
	return copy;
}

static int ask_vm(struct http *h, struct guest *g, const char *verb, const json_t *args,
		  struct err *e)
{
	struct waiter *w = malloc(sizeof(*w));
	int rc = -ENOMEM;

	if (w) {
		*w = (struct waiter){ h, api_ticket(h->api) };
		rc = g->link ? link_call(g->link, verb, vm_args(args), on_answer, w) : -ENOTCONN;
	}
	if (rc) {
		free(w);
		return err_sys(e, rc == -EBUSY ? -EAGAIN : rc, "VM %s", g->paths.name);
	}
	h->pending++;
	return -EINPROGRESS;
}

static int vm_command(struct http *h, const char *verb, const json_t *args, struct err *e)
{
	const char *name = json_string_value(json_object_get(args, "vm"));
	struct guest *g = name ? keeper_find(h->cfg.keeper, name) : NULL;

	if (!g)
		return err_set(e, -ENOENT, "there is no VM named %s", name ? name : "");
	if (!g->pid)
		return err_set(e, -EBUSY, "VM %s does not run", name);
	if (strcmp(verb, "stop") == 0) /* and it is not to be started anew */
		return keeper_down(h->cfg.keeper, name, e);
	if (strcmp(verb, "kill") == 0)
		g->is_asked_off = true;
	return ask_vm(h, g, verb, args, e);
}

static bool is_of_host(const char *verb)
{
	static const char *const verbs[] = { "up", "down", "reload", "set" };

	for (size_t i = 0; i < ARRAY_LEN(verbs); i++)
		if (strcmp(verbs[i], verb) == 0)
			return true;
	return false;
}

static int command(void *ctx, const char *verb, const json_t *args, json_t **result, struct err *e)
{
	struct http *h = ctx;

	if (is_of_host(verb))
		return h->cfg.command(h->cfg.ctx, verb, args, result, e);
	return vm_command(h, verb, args, e);
}

static json_t *snapshot(void *ctx)
{
	struct http *h = ctx;
	json_t *status = NULL;

	return h->cfg.command(h->cfg.ctx, "status", NULL, &status, NULL) ? NULL : status;
}

/* ---- create and destroy --------------------------------------------------------------- */

static void on_ready(struct polled *w, unsigned events)
{
	(void)events;
	api_turn(((struct http *)w)->api);
}

int http_create(struct http **out, struct poller *p, const struct http_config *cfg, struct err *e)
{
	struct http *h = calloc(1, sizeof(*h));
	const struct api_ops ops = { .snapshot = snapshot, .command = command, .ctx = h };
	int rc;

	if (!h)
		return err_sys(e, -ENOMEM, "HTTP");
	h->cfg = *cfg;
	rc = api_create(&h->api, &ops, &cfg->api, e);
	if (rc) {
		free(h);
		return rc;
	}
	h->watch = (struct polled){ .fd = fcntl(api_fd(h->api), F_DUPFD_CLOEXEC, 3), .fn = on_ready };
	rc = h->watch.fd < 0 ? -errno : poller_add(p, &h->watch, EPOLLIN);
	if (rc) {
		api_destroy(&h->api);
		free(h);
		return err_sys(e, rc, "HTTP");
	}
	*out = h;
	return 0;
}

void http_destroy(struct http **hp)
{
	struct http *h = *hp;

	*hp = NULL;
	if (!h)
		return;
	api_destroy(&h->api);
	if (h->watch.fd >= 0)
		close(h->watch.fd); /* the set is about to go, too */
	h->is_over = true;
	free_if_over(h);
}
