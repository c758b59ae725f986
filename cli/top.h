/*
 * `brim top`, its parts.
 *
 *   topdata.c    samples: the VMs of the run directory, each from its file of statistics
 *                (stats/shm.h), and the host from /proc
 *   topbrimd.c   what only brimd knows
 *   toptable.c   THE table of columns; order, filter, what a cell says
 *   topbatch.c   samples as text, JSON or CSV
 *   topscreen.c  the screen; topgraph.c a VM's history on it
 *   top.c        the command
 *
 * It asks no VM anything, and works without brimd.  What only brimd knows is filled in
 * through struct top_daemon, where there is one.
 *
 * One thread.
 */
#ifndef BRIM_CLI_TOP_H
#define BRIM_CLI_TOP_H

#include "cli/cli.h"
#include "stats/shm.h"

#define TOP_HISTORY 600u

struct top_point {
	uint64_t resident_bytes, working_set_bytes;
	float refaults_per_s;
};

struct top_vm {
	char name[RUN_NAME_MAX + 1];
	const char *state;
	bool is_seen;          /* in this sample */
	bool has_view;         /* `now` is of a VM that runs; else all below is nothing */
	bool has_rates;
	struct stats_view now;
	struct stats_rates rates;
	/* by brimd, where has_policy */
	bool has_policy;
	uint64_t reservation_bytes, shares;
	char reason[160]; /* why it has what it has, "" where nobody says */
	struct top_point history[TOP_HISTORY];
	size_t points; /* ever; the last is history[(points - 1) % TOP_HISTORY] */
};

struct top_host {
	char name[65];
	uint64_t physical_bytes, available_bytes;
	double psi_some_pct, psi_full_pct; /* of the last 10 s; negative: not known */
	char state[16], reason[160];       /* by brimd, else "" */
	/* of all VMs */
	uint64_t assigned_bytes, vm_bytes; /* vm_bytes: what VMs take of it, processes included */
	uint64_t untouched_bytes, filled_bytes, shared_bytes, packed_bytes, pool_bytes, disk_bytes,
		ballooned_bytes;
	size_t running;
};

struct top;
struct top_daemon {
	/* Adds to *t, just sampled, what brimd knows: state and reason, has_policy and what
	 * goes with it.  Must not wait long. */
	void (*fill)(void *ctx, struct top *t);
	void *ctx;
};

struct top {
	char base[RUN_PATH_MAX];
	struct top_daemon daemon; /* fill NULL: none */
	struct top_host host;
	struct top_vm **vms; /* by name */
	size_t vm_count;
	uint64_t samples;
	/* what is shown */
	unsigned sort; /* column */
	bool is_reversed;
	char filter[RUN_NAME_MAX + 1];
};

/* topdata.c */
int top_init(struct top *t, struct err *e);
void top_fini(struct top *t);
/* VMs that are gone are forgotten, new ones found, all read. */
int top_sample(struct top *t, struct err *e);
struct top_vm *top_find(const struct top *t, const char *name); /* or NULL */
uint64_t vm_shared_bytes(const struct stats_view *v);
/* As in the API (docs/api.md), and `time_s`. */
json_t *top_json(const struct top *t);

/* topbrimd.c: fills in a struct top_daemon's part; ctx is a uint64_t of 0 for its use. */
void top_ask_brimd(void *ctx, struct top *t);

/* toptable.c */
enum top_unit { TOP_NAME, TOP_STATE, TOP_SIZE, TOP_COUNT, TOP_RATIO, TOP_PCT, TOP_TIME };

struct top_column {
	const char *title;
	const char *key;  /* for --sort and CSV */
	char letter;      /* sorts by it on the screen */
	int width;
	enum top_unit unit;
	unsigned drop;    /* the highest go first where there is no room for all; 0: last */
#define TOP_DROP_DAEMON 9u /* and gone where nobody knows it */
	const char *help;
	/* NAN: not known */
	double (*value)(const struct top_vm *vm);
};
extern const struct top_column top_columns[];
#define TOP_COLUMNS_MAX 32u
extern const unsigned top_column_count;
extern const char *const top_sort_choices[]; /* their keys, then NULL */

/* Those that the filter lets through, in order; the caller frees the list (not the VMs). */
struct top_vm **top_ordered(const struct top *t, size_t *count);
const char *top_cell(const struct top_vm *vm, const struct top_column *c, char *buf, size_t len);
/* "24.0G", "512M", "0": at most 5 characters. */
const char *size_short(char *buf, size_t len, double bytes);
/* The same of nanoseconds: "850ns", "12.3us", "4.1ms". */
const char *time_short(char *buf, size_t len, double ns);
/* False for a column that is nobody's business where brimd does not say it. */
bool top_is_known(const struct top *t, const struct top_column *c);
enum colour top_colour(const struct top_vm *vm, const struct top_column *c);

/* topbatch.c */
enum top_format { TOP_TEXT, TOP_JSON, TOP_CSV };
/* One sample; the first one of CSV has a header before it. */
void top_print(FILE *out, const struct top *t, enum top_format format);

/* topscreen.c */
struct top_screen_config {
	uint64_t interval_s;
};
/* Until the user leaves.  0 or -errno. */
int top_screen(struct top *t, const struct top_screen_config *cfg, struct err *e);

/* topgraph.c: onto curses' screen, `height` lines from `y` on. */
void top_graph(const struct top_vm *vm, int y, int height, int width);

#endif
