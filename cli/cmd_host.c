/*
 * This host and brim itself: `brim doctor`, `completion`, `help`.
 * One thread; no state.
 */
#include "cli/cli.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "vmm/hostcheck.h"

#define TEXT_COLUMN 20 /* after level and name */

/* ---- doctor --------------------------------------------------------------------------- */

static enum colour level_colour(enum host_level level)
{
	return level == HOST_OK ? GREEN : level == HOST_WARN ? YELLOW : RED;
}

/* Wrapped for people; a pipe gets one line each, for grep. */
static void doctor_text(const char *text)
{
	if (isatty(STDOUT_FILENO))
		print_wrapped(stdout, text, text + strlen(text), TEXT_COLUMN, TEXT_COLUMN);
	else
		printf("%s\n", text);
}

static void doctor_line(const struct host_finding *f)
{
	printf("%s%-4s%s  %-12s  ", colour_code(stdout, level_colour(f->level)),
	       host_level_name(f->level), colour_code(stdout, PLAIN), f->name);
	doctor_text(f->found);
	if (*f->advice) {
		printf("%*s", TEXT_COLUMN, "-> ");
		doctor_text(f->advice);
	}
}

static void doctor_verdict(unsigned failed, unsigned warned)
{
	if (failed)
		printf("\n%u must be fixed before VMs can run here.\n", failed);
	else if (warned)
		printf("\nVMs can run here; %u could be better.\n", warned);
	else
		printf("\nVMs can run here.\n");
}

static void doctor_json(const struct host_finding *f, size_t n)
{
	json_t *list = json_array();

	for (size_t i = 0; i < n; i++)
		json_array_append_new(list, json_pack("{s:s, s:s, s:s, s:s}", "check", f[i].name, "level",
						      host_level_name(f[i].level), "found", f[i].found,
						      "advice", f[i].advice));
	json_print(stdout, list);
	json_decref(list);
}

int cmd_doctor(const struct invocation *in)
{
	const struct args *a = in->args;
	struct host_finding f[HOST_CHECKS_MAX];
	unsigned failed = 0, warned = 0;
	size_t n = hostcheck_all("", f);

	for (size_t i = 0; i < n; i++) {
		failed += f[i].level == HOST_FAIL;
		warned += f[i].level == HOST_WARN;
		if (!a->json)
			doctor_line(&f[i]);
	}
	if (a->json)
		doctor_json(f, n);
	else
		doctor_verdict(failed, warned);
	return failed ? CLI_FAILED : CLI_OK;
}

/* ---- completion, help -------------------------------------------------------------------- */

int cmd_completion(const struct invocation *in)
{
	const char *shell = in->pos.items[0];
	struct err e;

	if (strcmp(shell, "bash") != 0) {
		err_set(&e, -EINVAL, "there is no completion for '%s', only for bash", shell);
		return cli_wrong(&e);
	}
	completion_print(stdout);
	return CLI_OK;
}

int cmd_help(const struct invocation *in)
{
	const struct args *a = in->args;
	const struct cmd *c = &command_brim;
	struct err e;

	if (a->man_dir)
		return man_print_all(a->man_dir, &e) ? cli_fail(&e) : CLI_OK;
	if (in->pos.count > 0)
		c = command_find(in->pos.items[0]);
	if (!c) {
		err_set(&e, -EINVAL, "there is no command '%s'; `brim help` lists them",
			in->pos.items[0]);
		return cli_wrong(&e);
	}
	if (a->man)
		man_print(stdout, c);
	else
		help_print(stdout, c);
	return CLI_OK;
}
