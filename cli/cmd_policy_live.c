/*
 * `brim policy explain` and `record`: what brimd's policy sees and decides now.
 *
 * One thread; no state.
 */
#include "cli/cli.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define RECORD_MS 1000

/* ---- explain ------------------------------------------------------------------------- */

int policy_explain_now(struct err *e)
{
	json_t *result = NULL;
	struct ctl *c = NULL;
	int rc = brimd_open(&c, e);

	if (!rc)
		rc = ctl_call(c, "explain", NULL, CTL_TIMEOUT_MS, &result, e);
	if (!rc)
		fputs(json_text(result, "text"), stdout);
	json_decref(result);
	ctl_close(&c);
	return rc;
}

/* ---- record --------------------------------------------------------------------------- */

static int record_one(struct ctl *c, FILE *out, struct err *e)
{
	json_t *result = NULL;
	int rc = ctl_call(c, "views", NULL, CTL_TIMEOUT_MS, &result, e);

	if (!rc && (fputs(json_text(result, "line"), out) == EOF || fflush(out)))
		rc = err_sys(e, -errno, "cannot write the trace");
	json_decref(result);
	return rc;
}

/* Until the time is over or a signal comes; how many lines there are. */
static int record_until(struct ctl *c, const struct signals *s, FILE *out, uint64_t until_ns,
			struct err *e)
{
	struct pollfd p = { .fd = s->fd, .events = POLLIN };
	int lines = 0, rc = 0;

	do {
		rc = record_one(c, out, e);
		lines += rc == 0;
	} while (!rc && now_ns() < until_ns && poll(&p, 1, RECORD_MS) == 0);
	return rc ? rc : lines;
}

int policy_record(const char *file, uint64_t seconds, struct err *e)
{
	uint64_t until_ns = seconds ? now_ns() + seconds * 1000000000u : UINT64_MAX;
	struct signals s;
	struct ctl *c = NULL;
	FILE *out = NULL;
	int rc = signals_init(&s, e);

	if (rc)
		return rc;
	rc = brimd_open(&c, e);
	if (!rc && !(out = fopen(file, "we")))
		rc = err_sys(e, -errno, "%s", file);
	if (!rc)
		rc = record_until(c, &s, out, until_ns, e);
	if (out && fclose(out) && rc >= 0)
		rc = err_sys(e, -errno, "%s", file);
	ctl_close(&c);
	signals_fini(&s);
	if (rc > 0)
		fprintf(stderr, "brim: %d views in %s\n", rc, file);
	return rc < 0 ? rc : 0;
}
