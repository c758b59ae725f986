/*
 * cli/: `brim`, what people type.  Thin: it reads the command line, starts
 * brim-vmm, and talks to the control and console sockets of VMs that run.
 *
 * main.c       main(); everything else is in the library the tests link
 * cli.c        which command
 * commands.c   THE table: every command, option and text; help, manual pages and
 *              completion are made from it, so that they cannot disagree
 * opt.c        the command line against that table
 * help.c man.c completion.c   that table as text, roff, bash
 * out.c        tables, colours, numbers for people
 * spec.c       `brim run`'s options to the JSON that brim-vmm reads
 * launch.c     starting brim-vmm, and waiting until the guest is about to run
 * escape.c tty.c attach.c     a person (or a pipe) at a VM's console
 * top*.c       `brim top`; see top.h
 * cmd_*.c      the commands
 *
 * Threads: one (ROLE_CLI).  Signals are read from a signalfd, but those that
 * mean a crash.
 *
 * Invariants:
 *  I1  The terminal is as it was, however the process ends but by SIGKILL.
 *  I2  A failure is one sentence on stderr that names thing, place and remedy;
 *      stdout carries only what was asked for.
 *  I3  Output for programs (--json) never depends on a terminal being there.
 */
#ifndef BRIM_CLI_H
#define BRIM_CLI_H

#include <jansson.h>
#include <signal.h>
#include <stdio.h>
#include <sys/types.h>

#include "stats/stats.h"
#include "vmm/client.h"

/* Exit statuses of every command, documented in commands.c. */
enum {
	CLI_OK = 0,
	CLI_FAILED = 1,
	CLI_USAGE = 2,
	CLI_KILLED = 3,
};

/* ---- the table -------------------------------------------------------------- */

enum opt_type {
	OPT_FLAG,    /* bool */
	OPT_TEXT,    /* const char * */
	OPT_SIZE,    /* uint64_t, bytes */
	OPT_UINT,    /* uint64_t */
	OPT_SECONDS, /* uint64_t: 30, 30s, 5m, 1h */
	OPT_CHOICE,  /* unsigned: index into choices */
	OPT_LIST,    /* struct text_list; may be given several times */
};

enum complete { COMP_NONE, COMP_FILE, COMP_VM, COMP_COMMAND, COMP_SHELL, COMP_TAP };

struct text_list {
	const char **items; /* point into argv */
	size_t count;
};

struct opt {
	const char *name; /* without its dashes */
	char letter;      /* or 0 */
	enum opt_type type;
	enum complete comp;
	const char *arg; /* what help calls the value */
	const char *def; /* parsed as if it had been typed; NULL: zero */
	const char *help;
	size_t at; /* offset in the command's argument struct */
	uint64_t min, max;
	const char *const *choices; /* NULL-terminated */
};

struct row { /* of a section of the help: what, its meaning */
	const char *what, *meaning;
};

struct section {
	const char *title;
	const struct row *rows; /* ends with what == NULL */
};

struct invocation;

struct cmd {
	const char *name;
	const char *group;    /* heading in the overview */
	const char *synopsis; /* what comes after the name */
	const char *summary;  /* one line, no full stop */
	const char *text;     /* paragraphs with an empty line between */
	const struct opt *opts;
	size_t opt_count;
	size_t args_bytes; /* of the struct that `at` points into */
	size_t min_pos, max_pos;
	enum complete comp; /* of the first word that is not an option */
	bool size_follows;  /* the second word is a size; else all are of the first one's kind */
	const char *const *verbs; /* NULL-terminated: the first word is one of these, and `comp` is of
				   * those that follow; NULL: it has none */
	const struct section *const *sections; /* ends with NULL */
	int man_section;
	/* Returns an exit status.  NULL: a manual page only. */
	int (*run)(const struct invocation *in);
};

struct invocation {
	const struct cmd *cmd;
	const void *args;
	struct text_list pos;
};

extern const struct cmd commands[];
extern const size_t command_count;
extern const struct cmd command_brim; /* brim itself */
const struct cmd *command_find(const char *name);

/* ---- arguments --------------------------------------------------------------- */

enum run_delta { RUN_DELTA_OFF, RUN_DELTA_FAST, RUN_DELTA_SMALL };

struct run_args {
	const char *kernel, *initrd, *cmdline, *name, *swap, *share_group;
	struct text_list disks, nets, append, balloon;
	uint64_t memory_bytes, limit_bytes, pool_cap_bytes, pool_acceleration, cpus,
		stop_timeout_s, share_cpu_pct, share_pace;
	unsigned hugepages, pool_delta; /* of `enum ram_huge`, `enum run_delta` */
	unsigned pool_refine;           /* of refine_choices */
	bool console, detach, no_reboot, allow_emulated, dry_run;
};

/* Of all other commands: each uses the few it lists. */
struct args {
	bool json, csv, wait, no_wait, quiet, all, man, batch, watch, reverse;
	uint64_t timeout_s, interval_s, count;
	unsigned sort;
	const char *man_dir, *filter;
	struct text_list vms;
};

/* Of `brim config`. */
struct config_args {
	bool json, origin, markdown, schema;
	const char *vm;
	uint64_t host_memory_bytes; /* 0: this host's */
};

extern const char *const config_verbs[], *const policy_verbs[];

struct policy_args {
	const char *trace, *plot;
	struct text_list policies, set;
	uint64_t explain_s; /* 0: not asked for */
	uint64_t for_s;     /* 0: until it is interrupted */
	bool json;
};

/* ---- opt.c -------------------------------------------------------------------- */

/* Parses argv[0..argc) (without the command's name).  in->args points to zeroed
 * memory of args_bytes.  *help is set, and nothing else checked, when -h or
 * --help is there.  -EINVAL.  Free with opt_fini() in any case. */
int opt_parse(struct invocation *in, void *args, int argc, char **argv, bool *help, struct err *e);
void opt_fini(struct invocation *in, void *args);

/* "30", "30s", "5m", "1h". */
int seconds_parse(const char *text, uint64_t *seconds, struct err *e);

/* ---- help.c, man.c, completion.c ------------------------------------------------ */

void help_print(FILE *out, const struct cmd *c);
void man_print(FILE *out, const struct cmd *c);
/* One page per command into `dir`: brim.1, brim-run.1, ... */
int man_print_all(const char *dir, struct err *e);
void completion_print(FILE *out);
/* Words of `text` up to `end`, in lines that begin at column `indent` and are no
 * wider than 80; the first one has used `at` columns already. */
void print_wrapped(FILE *out, const char *text, const char *end, size_t at, size_t indent);
/* "--memory SIZE" and "-m, --memory SIZE". */
void opt_title(const struct opt *o, char *buf, size_t len);

/* ---- out.c ---------------------------------------------------------------------- */

enum colour { PLAIN, BOLD, GREEN, YELLOW, RED };

/* Whether `out` is a terminal and the user does not mind (NO_COLOR). */
bool colour_wanted(FILE *out);
/* The escape sequence, "" where no colour is wanted; PLAIN ends one. */
const char *colour_code(FILE *out, enum colour c);

struct column {
	const char *title;
	bool right;
};

struct table;
/* `columns` must outlive the table. */
struct table *table_create(const struct column *columns, size_t count);
void table_destroy(struct table **t);
/* Row by row, cell by cell; copies `text`. */
void table_cell(struct table *t, enum colour c, const char *text);
void table_size(struct table *t, uint64_t bytes);
void table_number(struct table *t, int64_t n);
void table_print(struct table *t, FILE *out);

void json_print(FILE *out, const json_t *value);
/* A duration for people: "42s", "5m 03s", "2h 10m", "3d 4h". */
const char *duration_format(char *buf, size_t len, uint64_t seconds);
void cli_error(const struct err *e);
/* As cli_error(), and returns CLI_FAILED. */
int cli_fail(const struct err *e);
/* The same where the command line itself is wrong: returns CLI_USAGE. */
int cli_wrong(const struct err *e);

/* ---- spec.c ---------------------------------------------------------------------- */

#define DEFAULT_CMDLINE VM_DEFAULT_CMDLINE

/* The config JSON, all but name and run_dir.  Checks every path.  -EINVAL: the
 * command line is wrong; another -errno: what it names is. */
int spec_build(const struct run_args *a, json_t **config, struct err *e);
/* Adds the two. */
int spec_place(json_t *config, const struct vm_paths *p, struct err *e);

int spec_disk(const char *text, json_t **disk, struct err *e);
int spec_swap(const char *text, json_t **swap, struct err *e);
int spec_net(const char *text, json_t **net, struct err *e);
int spec_balloon(const struct text_list *items, json_t **balloon, struct err *e);

/* ---- launch.c ---------------------------------------------------------------------- */

/* Signals that end or suspend a program, blocked, and a signalfd for them. */
struct signals {
	int fd;
	sigset_t before;
};

int signals_init(struct signals *s, struct err *e);
void signals_fini(struct signals *s);
/* The next signal that has arrived, 0 when there is none. */
int signals_next(const struct signals *s);

/* Starts brim-vmm and waits until its guest is about to run.  -EINTR when a
 * signal arrived, and then, as in every failure, nothing runs any more. */
int launch(const json_t *config, const struct vm_paths *p, const struct signals *s, pid_t *pid,
	   struct err *e);
/* Waits for our child to end, at most timeout_ms.  *code (may be NULL) is its exit
 * status, or -1 when a signal ended it. */
bool reap(pid_t pid, int timeout_ms, int *code);

/* ---- escape.c, tty.c, attach.c ------------------------------------------------------ */

#define ESCAPE_KEY 0x1d /* Ctrl-] */

enum escape_action {
	ESCAPE_SEND, /* the byte in *out goes to the guest */
	ESCAPE_NONE, /* swallowed */
	ESCAPE_DETACH,
	ESCAPE_STOP,
	ESCAPE_KILL,
	ESCAPE_HELP,
	ESCAPE_UNKNOWN,
};

struct escape {
	bool armed; /* the last byte was the escape key */
};

enum escape_action escape_feed(struct escape *s, uint8_t in, uint8_t *out);
extern const struct row escape_keys[];

/* Remembers how the terminal is, for tty_restore(), which writes `leave` (static, or NULL) to
 * it as well: a full screen's way back. */
int tty_save(int fd, const char *leave, struct err *e);
void tty_leave(const char *leave); /* another one from now on */
/* Raw mode, until tty_restore() or the end of the process.  Calls may repeat. */
int tty_raw(int fd, struct err *e);
void tty_restore(void);
/* Whether this process may read from the terminal `fd` now. */
bool tty_is_ours(int fd);

struct attach {
	const struct vm_paths *paths;
	const struct signals *signals;
	pid_t pid; /* the VM we started and answer for; 0: a visitor */
};

/* Connects stdin and stdout to the console until the VM ends or the person
 * leaves; returns an exit status, errors are printed. */
int attach(const struct attach *a);

/* ---- vm.c ---------------------------------------------------------------------------- */

/* The paths of the VM called `name`. */
int vm_resolve(const char *name, struct vm_paths *p, struct err *e);
/* Resolves and connects. */
int vm_open(const char *name, struct vm_paths *p, struct ctl **c, struct err *e);
/* Connects to the brimd of this run directory.  -ENOENT: none runs. */
int brimd_open(struct ctl **c, struct err *e);
/* One request to the VM called `name`.  *result may be NULL. */
int vm_ask(const char *name, const char *cmd, json_t *args, json_t **result, struct err *e);
/* Waits until nobody holds the VM's lock. */
bool vm_wait_gone(const struct vm_paths *p, int timeout_ms);
/* What a `wait` reply means: an exit status, and a sentence when it is not 0. */
int vm_end_status(const char *name, const json_t *reply, struct err *e);
/* Members of nested objects: json_u64(status, "balloon", "target_bytes"). */
bool json_u64(const json_t *o, const char *key, const char *sub, uint64_t *value);
const char *json_text(const json_t *o, const char *key);

/* A VM's memory in its `status`; 0 for what that does not say. */
struct memory {
	uint64_t assigned_bytes, resident_bytes;
	bool assigned_known, resident_known;
	bool engine; /* there is one: the rest is known */
	uint64_t limit_bytes, wanted_bytes;
	uint64_t shared_bytes;    /* of those away, that the store of shared pages has, mapped ones too */
	uint64_t away_bytes;      /* that the guest has and its RAM does not hold now */
	uint64_t away_cost_bytes; /* what that takes of the host all the same */
	uint64_t held_bytes;      /* resident and away: what the limit counts */
	uint64_t own_bytes;       /* the engine's tables: not in held_bytes */
	uint64_t pool_overhead_bytes; /* of away_cost_bytes: holes and tables */
	uint64_t cold_bytes;      /* of what is resident, not written for the most passes counted */
};

void memory_of(const json_t *status, struct memory *m);

/* ---- commands -------------------------------------------------------------------------- */

int cmd_run(const struct invocation *in);
int cmd_up(const struct invocation *in);
int cmd_down(const struct invocation *in);
int cmd_reload(const struct invocation *in);
int cmd_console(const struct invocation *in);
int cmd_ps(const struct invocation *in);
int cmd_status(const struct invocation *in);
int cmd_stats(const struct invocation *in);
int cmd_stat(const struct invocation *in);
int cmd_top(const struct invocation *in);
int cmd_log(const struct invocation *in);
int cmd_stop(const struct invocation *in);
int cmd_kill(const struct invocation *in);
int cmd_pause(const struct invocation *in);
int cmd_resume(const struct invocation *in);
int cmd_balloon(const struct invocation *in);
int cmd_limit(const struct invocation *in);
int cmd_reclaim(const struct invocation *in);
int cmd_hint(const struct invocation *in);
int cmd_config(const struct invocation *in);
int cmd_doctor(const struct invocation *in);
int cmd_policy(const struct invocation *in);
/* cmd_policy_live.c: the running brimd's. */
int policy_explain_now(struct err *e);
int policy_record(const char *file, uint64_t seconds, struct err *e);
int cmd_completion(const struct invocation *in);
int cmd_help(const struct invocation *in);

int cli_main(int argc, char **argv);

#endif
