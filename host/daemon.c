/*
 * The daemon beside sharing: commands, ticks, its configuration.
 *
 * A configuration that is wrong changes nothing: what is in force stays.
 */
#include "host/daemon.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "host/ctl.h"
#include "host/web.h"
#include "host/snapshot.h"

#define BUSY_MS 100u
#define IDLE_MS 1000u
#define MS_NS ((uint64_t)1000000)

struct daemon {
	struct poller poller;
	struct keeper *keeper;
	struct steward *steward;
	struct ctl_server *ctl;
	struct http *http;          /* NULL: none */
	struct host_config *config; /* NULL: none yet */
	uint64_t physical_bytes;
	uint64_t tick_ns; /* when the next is due */
	bool is_over;     /* told to end */
};

static uint64_t least(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}

/* ---- its configuration ------------------------------------------------------------------ */

/* The first error in the sentence; how many there are besides. */
static int config_wrong(const char *file, const struct host_config_errors *errors, struct err *e)
{
	char text[sizeof(e->msg)];

	if (!errors->count)
		return err_set(e, -EINVAL, "%s: cannot be read", file);
	host_config_error_format(text, sizeof(text), file, &errors->items[0]);
	if (errors->count == 1)
		return err_set(e, -EINVAL, "%s", text);
	return err_set(e, -EINVAL, "%s (and %zu more: `brim config check` shows all)", text,
		       errors->count - 1 + errors->unsaid);
}

int daemon_load(const char *file, uint64_t physical_bytes, struct host_config **out,
		struct err *e)
{
	const struct host_config_env env = { .physical_bytes = physical_bytes };
	struct host_config_errors errors = { 0 };
	int rc = host_config_load(file, &env, out, &errors);

	if (rc)
		config_wrong(file, &errors, e);
	host_config_errors_fini(&errors);
	return rc;
}

/* From now on.  Takes `cfg`. */
static void use(struct daemon *d, struct host_config *cfg)
{
	struct host_config *old = d->config;
	const struct admission_host host = {
		.physical_bytes = d->physical_bytes,
		.reserve_bytes = d->physical_bytes - least(d->physical_bytes, cfg->host.memory_bytes),
	};

	d->config = cfg;
	log_init("brimd", STDERR_FILENO, (enum log_level)cfg->host.log_level);
	keeper_configure(d->keeper, cfg, &host);
	steward_configure(d->steward, cfg);
	host_config_destroy(&old);
	d->tick_ns = 0;
}

/* ---- what a reload changes --------------------------------------------------------------- */

static const char *apply_name(enum host_apply a)
{
	static const char *const names[] = {
		[HOST_APPLY_LIVE] = "live", [HOST_APPLY_RESTART_VM] = "restart-vm",
		[HOST_APPLY_RESTART_BRIMD] = "restart-brimd", [HOST_APPLY_ADD_VM] = "added",
		[HOST_APPLY_REMOVE_VM] = "removed",
	};

	return names[a];
}

static json_t *change_json(const struct host_change *c)
{
	return json_pack("{s:s,s:s?,s:s?,s:s,s:s}", "apply", apply_name(c->apply), "key", c->key,
			 "vm", c->vm, "before", c->before, "after", c->after);
}

static json_t *changes_json(const struct host_config *before, const struct host_config *after)
{
	struct host_change *changes = NULL;
	json_t *list = json_array();
	size_t count = 0;

	if (before && !host_config_compare(before, after, &changes, &count))
		for (size_t i = 0; i < count; i++)
			json_array_append_new(list, change_json(&changes[i]));
	free(changes);
	return list;
}

/* ---- commands ------------------------------------------------------------------------------ */

static const char *text_of(const json_t *args, const char *key)
{
	return json_string_value(json_object_get(args, key));
}

static int no_config(struct err *e)
{
	return err_set(e, -ENOENT, "there is no configuration yet: `brim up FILE`");
}

/* Takes the file into force, where one is named. */
static int take_file(struct daemon *d, const char *file, json_t **changes, struct err *e)
{
	struct host_config *cfg = NULL;
	int rc;

	if (!file && !d->config)
		return no_config(e);
	if (!file) {
		*changes = json_array();
		return 0;
	}
	rc = daemon_load(file, d->physical_bytes, &cfg, e);
	if (rc)
		return rc;
	*changes = changes_json(d->config, cfg);
	use(d, cfg);
	return 0;
}

static int cmd_up(struct daemon *d, const json_t *args, json_t **result, struct err *e)
{
	json_t *changes = NULL;
	int rc = take_file(d, text_of(args, "file"), &changes, e);

	if (!rc)
		rc = keeper_up(d->keeper, text_of(args, "vm"), e);
	if (rc) {
		json_decref(changes);
		return rc;
	}
	d->tick_ns = 0;
	*result = json_pack("{s:o}", "changes", changes);
	return 0;
}

static int cmd_down(struct daemon *d, const json_t *args, json_t **result, struct err *e)
{
	int rc = keeper_down(d->keeper, text_of(args, "vm"), e);

	if (!rc)
		*result = json_object();
	return rc;
}

static int cmd_reload(struct daemon *d, const json_t *args, json_t **result, struct err *e)
{
	const char *file = text_of(args, "file");
	json_t *changes = NULL;
	int rc;

	if (!file && !d->config)
		return no_config(e);
	rc = take_file(d, file ? file : d->config->path, &changes, e);
	if (!rc)
		*result = json_pack("{s:o}", "changes", changes);
	return rc;
}

static int cmd_status(struct daemon *d, const json_t *args, json_t **result, struct err *e)
{
	(void)args;
	*result = snapshot(d->keeper, d->steward, d->config);
	return *result ? 0 : err_sys(e, -ENOMEM, "status");
}

static int cmd_explain(struct daemon *d, const json_t *args, json_t **result, struct err *e)
{
	const struct policy_plan *p = steward_plan(d->steward);
	char *text = NULL;
	size_t len = 0;
	FILE *f;

	(void)args;
	if (!p)
		return err_set(e, -EAGAIN, "there is no plan yet: try again in a second");
	f = open_memstream(&text, &len);
	if (!f)
		return err_sys(e, -ENOMEM, "explain");
	policy_explain(f, steward_views(d->steward), p);
	fclose(f);
	*result = json_pack("{s:s}", "text", text);
	free(text);
	return *result ? 0 : err_sys(e, -ENOMEM, "explain");
}

static int cmd_views(struct daemon *d, const json_t *args, json_t **result, struct err *e)
{
	char *text = NULL;
	size_t len = 0;
	FILE *f;

	(void)args;
	if (!steward_plan(d->steward))
		return err_set(e, -EAGAIN, "there are no views yet: try again in a second");
	f = open_memstream(&text, &len);
	if (!f)
		return err_sys(e, -ENOMEM, "views");
	(void)policy_trace_write(f, steward_views(d->steward));
	fclose(f);
	*result = json_pack("{s:s}", "line", text);
	free(text);
	return *result ? 0 : err_sys(e, -ENOMEM, "views");
}

static int cmd_quit(struct daemon *d, const json_t *args, json_t **result, struct err *e)
{
	(void)args;
	(void)e;
	d->is_over = true;
	*result = json_object();
	return 0;
}

static int on_command(void *ctx, const char *cmd, const json_t *args, json_t **result,
		      struct err *e)
{
	static const struct {
		const char *name;
		int (*run)(struct daemon *d, const json_t *args, json_t **result, struct err *e);
	} table[] = {
		{ "up", cmd_up }, { "down", cmd_down }, { "reload", cmd_reload },
		{ "status", cmd_status }, { "explain", cmd_explain },
		{ "views", cmd_views }, { "quit", cmd_quit },
	};

	for (size_t i = 0; i < ARRAY_LEN(table); i++)
		if (strcmp(table[i].name, cmd) == 0)
			return table[i].run(ctx, args, result, e);
	return err_set(e, -ENOSYS, "'%s' is no command of brimd", cmd);
}

int daemon_reload(struct daemon *d, struct err *e)
{
	json_t *result = NULL;
	int rc = cmd_reload(d, NULL, &result, e);

	json_decref(result);
	return rc;
}

/* ---- turns ---------------------------------------------------------------------------------- */

int daemon_fd(const struct daemon *d)
{
	return d->poller.epoll_fd;
}

int daemon_watch(struct daemon *d, struct polled *w)
{
	return poller_add(&d->poller, w, EPOLLIN);
}

static void tick(struct daemon *d, uint64_t now)
{
	unsigned next_ms;

	keeper_tick(d->keeper, now);
	next_ms = steward_tick(d->steward, now);
	d->tick_ns = now + least(next_ms, keeper_is_busy(d->keeper) ? BUSY_MS : IDLE_MS) * MS_NS;
}

bool daemon_is_over(const struct daemon *d)
{
	return d->is_over;
}

int daemon_turn(struct daemon *d)
{
	int rc = poller_turn(&d->poller, 0);
	uint64_t now = now_ns();

	if (rc)
		return rc;
	if (now >= d->tick_ns)
		tick(d, now);
	return (int)((d->tick_ns - least(d->tick_ns, now)) / MS_NS) + 1;
}

/* ---- create and destroy ------------------------------------------------------------------------ */

static uint64_t physical_bytes(void)
{
	long pages = sysconf(_SC_PHYS_PAGES), bytes = sysconf(_SC_PAGE_SIZE);

	return pages > 0 && bytes > 0 ? (uint64_t)pages * (uint64_t)bytes : 0;
}

static int make_http(struct daemon *d, const struct api_config *api, struct err *e)
{
	const struct http_config cfg = { .api = *api, .keeper = d->keeper, .command = on_command,
					 .ctx = d };

	if (!api->unix_path && !api->tcp_port && !api->tcp_any_port)
		return 0;
	return http_create(&d->http, &d->poller, &cfg, e);
}

static int make_parts(struct daemon *d, const struct daemon_config *cfg, struct err *e)
{
	const struct keeper_config kc = {
		.run_dir = cfg->run_dir, .host = { .physical_bytes = d->physical_bytes },
	};
	const struct steward_config sc = { .usable_bytes = d->physical_bytes, .share = cfg->share };
	int rc = poller_init(&d->poller, e);

	if (!rc)
		rc = keeper_create(&d->keeper, &d->poller, &kc, e);
	if (!rc)
		rc = steward_create(&d->steward, d->keeper, &sc, e);
	if (!rc)
		rc = keeper_adopt(d->keeper, e);
	if (!rc)
		rc = ctl_server_create(&d->ctl, &d->poller, cfg->control, e);
	if (!rc)
		ctl_server_serve(d->ctl, on_command, d);
	return rc ? rc : make_http(d, &cfg->api, e);
}

int daemon_up(struct daemon *d, struct host_config *config, struct err *e)
{
	use(d, config);
	return keeper_up(d->keeper, NULL, e);
}

int daemon_create(struct daemon **out, const struct daemon_config *cfg, struct err *e)
{
	struct daemon *d = calloc(1, sizeof(*d));
	int rc;

	if (!d)
		return err_sys(e, -ENOMEM, "brimd");
	d->poller.epoll_fd = -1;
	d->physical_bytes = cfg->physical_bytes ? cfg->physical_bytes : physical_bytes();
	rc = make_parts(d, cfg, e);
	if (rc)
		daemon_destroy(&d);
	else
		*out = d;
	return rc;
}

void daemon_destroy(struct daemon **dp)
{
	struct daemon *d = *dp;

	*dp = NULL;
	if (!d)
		return;
	ctl_server_destroy(&d->ctl);
	keeper_destroy(&d->keeper); /* answers what was asked by the others */
	steward_destroy(&d->steward);
	http_destroy(&d->http);
	host_config_destroy(&d->config);
	poller_fini(&d->poller);
	free(d);
}
