/*
 * From argv to a command.  Also brim's own two options, --help and --version.
 * One thread; no state.
 */
#include "cli/cli.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* One line, remedy included: scripts and people read errors line by line. */
static int usage_error(const struct cmd *c, const struct err *e)
{
	struct err line;

	err_set(&line, 0, "%.400s (see `brim %s%s--help`)", e->msg, c ? c->name : "", c ? " " : "");
	cli_error(&line);
	return CLI_USAGE;
}

static int unknown_command(const char *name)
{
	const char *names[64], *near;
	struct err e;
	size_t n = 0;

	for (size_t i = 0; i < command_count && n < ARRAY_LEN(names); i++)
		if (commands[i].run)
			names[n++] = commands[i].name;
	near = nearest(name, names, n);
	if (near)
		err_set(&e, 0, "unknown command '%s'; did you mean '%s'?", name, near);
	else
		err_set(&e, 0, "unknown command '%s'", name);
	return usage_error(NULL, &e);
}

static int run_command(const struct cmd *c, int argc, char **argv)
{
	struct invocation in = { .cmd = c };
	bool help = false;
	struct err e;
	void *args;
	int status;

	args = calloc(1, c->args_bytes + 1);
	if (!args) {
		err_sys(&e, -ENOMEM, "brim %s", c->name);
		return cli_fail(&e);
	}
	in.args = args;
	if (opt_parse(&in, args, argc, argv, &help, &e)) {
		status = usage_error(c, &e);
	} else if (help) {
		help_print(stdout, c);
		status = CLI_OK;
	} else {
		status = c->run(&in);
	}
	opt_fini(&in, args);
	free(args);
	return status;
}

/* What was printed may still not have been written: a full disk is a failure. */
static int flush_output(int status)
{
	struct err e;

	if (fflush(stdout) == 0 && !ferror(stdout))
		return status;
	if (errno == EPIPE)
		return status ? status : CLI_FAILED;
	err_sys(&e, errno ? -errno : -EIO, "cannot write to standard output");
	return cli_fail(&e);
}

int cli_main(int argc, char **argv)
{
	const char *first = argc > 1 ? argv[1] : "";
	const struct cmd *c = command_find(first);
	int status;

	role_set(ROLE_CLI);
	/* a reader that leaves is an error of write(), not a death */
	signal(SIGPIPE, SIG_IGN);
	if (argc < 2) {
		help_print(stderr, &command_brim);
		return CLI_USAGE;
	}
	if (strcmp(first, "--help") == 0 || strcmp(first, "-h") == 0) {
		help_print(stdout, &command_brim);
		status = CLI_OK;
	} else if (strcmp(first, "--version") == 0 || strcmp(first, "-V") == 0) {
		printf("brim %s\n", BRIM_VERSION);
		status = CLI_OK;
	} else if (c && c->run) {
		status = run_command(c, argc - 2, argv + 2);
	} else {
		status = unknown_command(first);
	}
	return flush_output(status);
}
