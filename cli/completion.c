/*
 * The table of commands.c as a completion script for bash.  What can only be
 * known when the key is pressed (names of VMs) the script asks brim for.
 *
 * One thread; no state.
 */
#include "cli/cli.h"

static void put_names(FILE *out)
{
	for (size_t i = 0; i < command_count; i++)
		if (commands[i].run)
			fprintf(out, " %s", commands[i].name);
}

static void put_options(FILE *out, const struct cmd *c)
{
	for (size_t i = 0; i < c->opt_count; i++)
		fprintf(out, "--%s ", c->opts[i].name);
	fputs("--help", out);
}

/* The words that may follow, as arguments of the script's _brim_words. */
static void put_words(FILE *out, enum complete comp)
{
	switch (comp) {
	case COMP_VM:
		fputs("_brim_words \"$(\"$brim\" ps -q 2>/dev/null)\"", out);
		return;
	case COMP_COMMAND:
		fputs("_brim_words \"$all\"", out);
		return;
	case COMP_SHELL:
		fputs("_brim_words bash", out);
		return;
	case COMP_TAP:
		fputs("_brim_words \"$(cd /sys/class/net && for i in */tun_flags; do echo \"tap=${i%/*}\"; "
		      "done 2>/dev/null)\"", out);
		return;
	case COMP_FILE:
		fputs("_brim_files", out);
		return;
	case COMP_NONE:
		fputs(":", out);
		return;
	}
}

/* Where the first word says what to do, those; the rest is for what follows. */
static void put_verbs(FILE *out, const struct cmd *c)
{
	if (!c->verbs)
		return;
	fputs("[ \"$COMP_CWORD\" -eq 2 ] && { _brim_words '", out);
	for (size_t i = 0; c->verbs[i]; i++)
		fprintf(out, "%s%s", i ? " " : "", c->verbs[i]);
	fputs("'; return; }; ", out);
}

/* What can stand after an option that takes a value. */
static void put_value(FILE *out, const struct cmd *c, const struct opt *o)
{
	fprintf(out, "\t%s:--%s", c->name, o->name);
	if (o->letter)
		fprintf(out, "|%s:-%c", c->name, o->letter);
	fputs(") ", out);
	if (o->choices) {
		fputs("_brim_words \"", out);
		for (size_t i = 0; o->choices[i]; i++)
			fprintf(out, "%s%s", i ? " " : "", o->choices[i]);
		fputs("\"", out);
	} else {
		put_words(out, o->comp);
	}
	fputs("; return ;;\n", out);
}

void completion_print(FILE *out)
{
	fputs("# bash completion for brim, made by `brim completion bash`\n"
	      "_brim_words() { mapfile -t COMPREPLY < <(compgen -W \"$1\" -- \"$cur\"); }\n"
	      "_brim_files() { compopt -o filenames 2>/dev/null; "
	      "mapfile -t COMPREPLY < <(compgen -f -- \"$cur\"); }\n"
	      "_brim()\n{\n"
	      "\tlocal brim=$1 cur=$2 prev=$3 cmd=${COMP_WORDS[1]} all='", out);
	put_names(out);
	fputs("'\n\tCOMPREPLY=()\n"
	      "\tif [ \"$COMP_CWORD\" -eq 1 ]; then _brim_words \"$all --help --version\"; return; fi\n"
	      "\tcase $cmd:$prev in\n", out);
	for (size_t i = 0; i < command_count; i++)
		for (size_t j = 0; commands[i].run && j < commands[i].opt_count; j++)
			if (commands[i].opts[j].type != OPT_FLAG)
				put_value(out, &commands[i], &commands[i].opts[j]);
	fputs("\tesac\n\tcase $cmd:$cur in\n", out);
	for (size_t i = 0; i < command_count; i++) {
		if (!commands[i].run)
			continue;
		fprintf(out, "\t%s:-*) _brim_words '", commands[i].name);
		put_options(out, &commands[i]);
		fprintf(out, "' ;;\n\t%s:*) ", commands[i].name);
		put_verbs(out, &commands[i]);
		put_words(out, commands[i].comp);
		fputs(" ;;\n", out);
	}
	fputs("\tesac\n}\ncomplete -F _brim brim\n", out);
}
