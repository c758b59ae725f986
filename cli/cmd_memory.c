/*
 * How much memory a VM holds: `brim balloon`, `limit`, `reclaim`.  Each asks the
 * VM for something that takes a while, shows how things are, or waits.
 *
 * One thread; no state.  Whoever waits may be interrupted at any moment: what was
 * asked for is the VM's business by then.
 */
#include "cli/cli.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>
#include <unistd.h>

#include "vmm/vmm.h"

#define POLL_US 200000
#define PROGRESS_WIDTH 79 /* a line that wraps cannot be written over */

/* ---- asking ------------------------------------------------------------------------------------ */

static int ask_bytes(const char *name, const char *cmd, const char *key, uint64_t bytes, struct err *e)
{
	json_t *args = json_pack("{s:I}", key, (json_int_t)bytes);

	return args ? vm_ask(name, cmd, args, NULL, e) : err_sys(e, -ENOMEM, "%s", cmd);
}

static int ask_status(const char *name, json_t **status, struct err *e)
{
	return vm_ask(name, "status", NULL, status, e);
}

/* "-" for what the VM does not say. */
static void cell_size(struct table *t, bool known, uint64_t bytes)
{
	if (known)
		table_size(t, bytes);
	else
		table_cell(t, PLAIN, "-");
}

static void cell_of(struct table *t, const json_t *status, const char *key, const char *sub)
{
	uint64_t bytes = 0;
	bool known = json_u64(status, key, sub, &bytes);

	cell_size(t, known, bytes);
}

/* ---- waiting ----------------------------------------------------------------------------------- */

struct wait {
	const char *name;
	uint64_t bytes; /* asked for */
	uint64_t timeout_s;
	/* Whether it is done; else what is missing, for people. */
	bool (*done)(struct wait *w, const json_t *status, char *text, size_t len);
	const char *why; /* it may take longer */
};

/* Writes over the line before. */
static void progress(const char *name, const char *text)
{
	char now[256];

	snprintf(now, sizeof(now), "brim: VM %s: %s", name, text);
	fprintf(stderr, "\r%-*.*s", PROGRESS_WIDTH, PROGRESS_WIDTH, now);
	fflush(stderr);
}

static void progress_clear(void)
{
	fprintf(stderr, "\r%*s\r", PROGRESS_WIDTH, "");
}

/* SA_RESETHAND has put the default back: the signal ends us now, and the shell
 * sees that it did. */
static void on_interrupt(int sig)
{
	static const char text[] = "\nbrim: interrupted; the VM goes on with it\n";
	ssize_t n = write(STDERR_FILENO, text, sizeof(text) - 1);

	(void)n; /* there is nobody left to tell */
	raise(sig);
}

/* What is ignored, as SIGHUP under nohup, stays so. */
static void catch_interrupts(void)
{
	static const int signals[] = { SIGINT, SIGTERM, SIGHUP, SIGQUIT };
	struct sigaction sa = { .sa_handler = on_interrupt, .sa_flags = (int)SA_RESETHAND | SA_NODEFER };

	for (size_t i = 0; i < ARRAY_LEN(signals); i++) {
		struct sigaction before;

		if (sigaction(signals[i], NULL, &before) == 0 && before.sa_handler != SIG_IGN)
			sigaction(signals[i], &sa, NULL);
	}
}

static int poll_until_done(struct wait *w, bool person, char *text, size_t len, struct err *e)
{
	uint64_t until = now_ns() + w->timeout_s * 1000000000;
	json_t *status = NULL;
	bool done;
	int rc;

	for (;;) {
		rc = ask_status(w->name, &status, e);
		if (rc)
			return rc;
		done = w->done(w, status, text, len);
		json_decref(status);
		if (done || now_ns() >= until)
			return done ? 0 : -ETIMEDOUT;
		if (person)
			progress(w->name, text);
		usleep(POLL_US);
	}
}

static int await(struct wait *w, struct err *e)
{
	bool person = isatty(STDERR_FILENO);
	struct err said = { "" };
	char text[96] = "";
	int rc;

	if (person)
		catch_interrupts();
	rc = poll_until_done(w, person, text, sizeof(text), &said);
	if (person)
		progress_clear();
	if (rc && *said.msg)
		return err_set(e, rc, "%s", said.msg);
	return rc ? err_set(e, rc, "VM %s: %s, after %" PRIu64 " s; %s", w->name, text, w->timeout_s,
			    w->why) : 0;
}

/* ---- balloon ----------------------------------------------------------------------------------- */

/* The device counts in pages: less than one of difference is none. */
static bool balloon_done(struct wait *w, const json_t *status, char *text, size_t len)
{
	uint64_t actual = 0;
	char want[32], has[32];
	bool known = json_u64(status, "balloon", "actual_bytes", &actual);

	snprintf(text, len, "its balloon holds %s, not yet %s", size_format(has, sizeof(has), actual),
		 size_format(want, sizeof(want), w->bytes));
	return known && (actual > w->bytes ? actual - w->bytes : w->bytes - actual) < 4 * KiB;
}

static void balloon_print(const json_t *status)
{
	static const struct column columns[] = {
		{ "MEMORY", true }, { "TARGET", true }, { "BALLOON", true }, { "RESIDENT", true },
		{ "AVAILABLE", true },
	};
	struct table *t = table_create(columns, ARRAY_LEN(columns));
	struct memory m;

	memory_of(status, &m);
	cell_size(t, m.assigned_known, m.assigned_bytes);
	cell_of(t, status, "balloon", "target_bytes");
	cell_of(t, status, "balloon", "actual_bytes");
	cell_size(t, m.resident_known, m.held_bytes);
	cell_of(t, status, "guest", "available_bytes");
	table_print(t, stdout);
	table_destroy(&t);
}

/* What was asked for is done: shows how things are where that was wanted. */
static int show(const struct invocation *in, const char *key, void (*print)(const json_t *status),
		struct err *e)
{
	const struct args *a = in->args;
	json_t *status = NULL;
	int rc;

	if (in->pos.count > 1 && !a->json)
		return 0;
	rc = ask_status(in->pos.items[0], &status, e);
	if (rc)
		return rc;
	if (a->json)
		json_print(stdout, json_object_get(status, key));
	else
		print(status);
	json_decref(status);
	return 0;
}

int cmd_balloon(const struct invocation *in)
{
	const struct args *a = in->args;
	struct wait w = { .name = in->pos.items[0], .timeout_s = a->timeout_s, .done = balloon_done,
			  .why = "the guest may have no more to spare" };
	struct err e;
	int rc = 0;

	if (in->pos.count > 1) {
		if (size_parse(in->pos.items[1], &w.bytes, &e))
			return cli_wrong(&e);
		rc = ask_bytes(w.name, "balloon", "target_bytes", w.bytes, &e);
		if (!rc && a->wait)
			rc = await(&w, &e);
	}
	if (!rc)
		rc = show(in, "balloon", balloon_print, &e);
	return rc ? cli_fail(&e) : CLI_OK;
}

/* ---- limit ------------------------------------------------------------------------------------- */

/* "none" and 0 take the limit away. */
static int limit_parse(const char *text, uint64_t *bytes, struct err *e)
{
	char least[32];
	int rc = 0;

	*bytes = 0;
	if (strcmp(text, "none") != 0)
		rc = size_parse(text, bytes, e);
	if (!rc && *bytes && *bytes < VM_LIMIT_MIN_BYTES)
		rc = err_set(e, -ERANGE, "'%s': the least limit is %s (`none`: no limit)", text,
			     size_format(least, sizeof(least), VM_LIMIT_MIN_BYTES));
	return rc;
}

static void limit_print(const json_t *status)
{
	static const struct column columns[] = {
		{ "MEMORY", true }, { "LIMIT", true }, { "RESIDENT", true }, { "AWAY", true },
		{ "POOL", true }, { "COLD", true },
	};
	struct table *t = table_create(columns, ARRAY_LEN(columns));
	struct memory m;

	memory_of(status, &m);
	cell_size(t, m.assigned_known, m.assigned_bytes);
	if (m.limit_bytes)
		table_size(t, m.limit_bytes);
	else
		table_cell(t, PLAIN, "none");
	cell_size(t, m.resident_known, m.held_bytes);
	cell_size(t, m.engine, m.away_bytes);
	cell_size(t, m.engine, m.away_cost_bytes);
	cell_size(t, m.engine, m.cold_bytes);
	table_print(t, stdout);
	table_destroy(&t);
}

int cmd_limit(const struct invocation *in)
{
	uint64_t bytes = 0;
	struct err e;
	int rc = 0;

	if (in->pos.count > 1) {
		if (limit_parse(in->pos.items[1], &bytes, &e))
			return cli_wrong(&e);
		rc = ask_bytes(in->pos.items[0], "limit", "limit_bytes", bytes, &e);
	}
	if (!rc)
		rc = show(in, "engine", limit_print, &e);
	return rc ? cli_fail(&e) : CLI_OK;
}

/* ---- reclaim ----------------------------------------------------------------------------------- */

/* The VM may owe more than was asked for now: bytes is the most that was seen.  Once
 * it says nothing of an engine, its guest has rebooted and nothing is owed. */
static bool reclaim_done(struct wait *w, const json_t *status, char *text, size_t len)
{
	char left[32], all[32];
	uint64_t wanted = 0;

	json_u64(status, "engine", "wanted_bytes", &wanted);
	if (wanted > w->bytes)
		w->bytes = wanted;
	snprintf(text, len, "%s of %s still to be taken", size_format(left, sizeof(left), wanted),
		 size_format(all, sizeof(all), w->bytes));
	return wanted == 0;
}

int cmd_reclaim(const struct invocation *in)
{
	const struct args *a = in->args;
	struct wait w = { .name = in->pos.items[0], .timeout_s = a->timeout_s, .done = reclaim_done,
			  .why = "it goes on" };
	struct err e;
	int rc;

	rc = size_parse(in->pos.items[1], &w.bytes, &e);
	if (!rc && !w.bytes)
		rc = err_set(&e, -ERANGE, "'%s': the least to take is 1 byte", in->pos.items[1]);
	if (rc)
		return cli_wrong(&e);
	rc = ask_bytes(w.name, "reclaim", "bytes", w.bytes, &e);
	if (!rc && a->wait)
		rc = await(&w, &e);
	return rc ? cli_fail(&e) : CLI_OK;
}
