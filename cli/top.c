/*
 * `brim top`: which way to show samples, and how often.
 * One thread; no state.
 */
#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "cli/top.h"

static enum top_format format_of(const struct args *a)
{
	return a->json ? TOP_JSON : a->csv ? TOP_CSV : TOP_TEXT;
}

/* Rates need two samples: one more is taken than is printed. */
static int batch(struct top *t, const struct args *a, struct err *e)
{
	int rc = top_sample(t, e);

	for (uint64_t n = 0; !rc && (!a->count || n < a->count) && !ferror(stdout); n++) {
		sleep((unsigned)a->interval_s);
		rc = top_sample(t, e);
		if (!rc)
			top_print(stdout, t, format_of(a));
	}
	return rc;
}

static int check(const struct args *a, struct err *e)
{
	bool for_files = a->json || a->csv || a->count;

	if (a->json && a->csv)
		return err_set(e, -EINVAL, "top: --json or --csv, not both");
	if (for_files && !a->batch)
		return err_set(e, -EINVAL, "top: --json, --csv and --count need --batch");
	if (a->filter && strlen(a->filter) > RUN_NAME_MAX)
		return err_set(e, -EINVAL, "top: --filter: no name of a VM is so long");
	return 0;
}

int cmd_top(const struct invocation *in)
{
	const struct args *a = in->args;
	struct top_screen_config cfg = { .interval_s = a->interval_s };
	uint64_t leave_brimd = 0;
	struct top t;
	struct err e;
	int rc;

	if (check(a, &e))
		return cli_wrong(&e);
	if (!a->batch && (!tty_is_ours(STDIN_FILENO) || !isatty(STDOUT_FILENO))) {
		err_set(&e, -ENOTTY, "top: this is no terminal; --batch prints what it would show");
		return cli_fail(&e);
	}
	rc = top_init(&t, &e);
	if (rc)
		return cli_fail(&e);
	t.daemon = (struct top_daemon){ .fill = top_ask_brimd, .ctx = &leave_brimd };
	t.sort = a->sort;
	t.is_reversed = a->reverse;
	if (a->filter)
		memcpy(t.filter, a->filter, strlen(a->filter) + 1);
	rc = a->batch ? batch(&t, a, &e) : top_screen(&t, &cfg, &e);
	top_fini(&t);
	return rc ? cli_fail(&e) : CLI_OK;
}
