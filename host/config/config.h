/*
 * host/config/: the configuration of a host: one YAML file that says what brim may use of it,
 * how its policy decides, and which VMs there are.
 *
 * keys*.c     THE table: one row a key. Parsing, defaults, help, the reference page, the JSON
 *             Schema, comparing, and the description of a VM are all made from it
 * arena.c     memory that ends with the configuration
 * tree.c      libyaml's events to a tree of bounded size and depth, with line and column
 * value.c     one scalar against its row: sizes, times, numbers, choices, names, paths
 * text.c      a value as a person writes it, and ${VARIABLES} in what a person wrote
 * errors.c    what is wrong, and where
 * config.c    a load from beginning to end; what keys of one section must agree on
 * load.c      the tree against the table: every key looked up, every value read
 * vms.c       the list of VMs: count, defaults, what one VM's keys must agree on
 * clash.c     what only one VM may have, and what they have together
 * order.c     dependencies between VMs: names, cycles, an order to start them in
 * describe.c  one VM as the JSON that brim-vmm reads
 * compare.c   what differs between two configurations, and what it takes to apply that
 * show.c      what is in effect, as YAML and JSON
 * reference.c the table as a page for people; schema.c: as JSON Schema for editors
 *
 *   file ──tree──► nodes ──load──► struct host_config ──describe──► brim-vmm's JSON
 *                                        │ compare (reload)
 *
 * Threads: any one at a time; nothing is kept between calls.
 *
 * Invariants:
 *  I1  A configuration either is right as a whole, or there is none: *out is written only when
 *      no error was found.
 *  I2  Every error has a place (line and column), a key, what is wrong and what was expected;
 *      all are found in one go, as far as one does not hide another.
 *  I3  What a file can make of us is bounded: its size, depth, nodes, aliases, VMs, errors.
 *  I4  A value is what its row allows, whatever it came from: VM, defaults or built in.
 */
#ifndef BRIM_HOST_CONFIG_H
#define BRIM_HOST_CONFIG_H

#include <jansson.h>
#include <stdio.h>

#include "vmm/vmm.h"

struct policy_config; /* mm/policy/policy.h */

#define HOST_VMS_MAX 1024u
#define HOST_SWAPS_MAX 16u
#define HOST_AFTER_MAX 32u /* dependencies of one VM */
#define HOST_KEYS_MAX 64u  /* of one section */

/* ---- where a value came from ---------------------------------------------------- */

enum host_from {
	HOST_FROM_BUILTIN,  /* nobody said */
	HOST_FROM_DEFAULTS, /* the file's `defaults:` */
	HOST_FROM_OWN,      /* its own section, or the VM itself */
};

struct host_origin {
	uint8_t from; /* of enum host_from */
	uint16_t column;
	uint32_t line; /* from 1; 0: not in the file */
};

/* ---- the configuration ------------------------------------------------------------ */

/* A directory for VMs' swap files, and how much of it they may take together. */
struct host_swap {
	const char *dir;
	uint64_t size_bytes;
};

struct host_host {
	const char *name;
	uint64_t memory_bytes;   /* physical memory that brim may use, for all it does */
	uint64_t reserve_bytes;  /* physical memory that is never brim's */
	uint64_t start_parallel; /* VMs that boot at a time */
	uint64_t start_gap_ms;   /* between two that are started */
	unsigned log_level;      /* of enum log_level */
	uint64_t store_bytes, index_bytes; /* 0: the host's memory; see struct share_host_config */
	uint64_t recall_after_ms;
	const char *api_listen;  /* "ADDRESS:PORT"; NULL: only the Unix socket */
	const char *api_token_file;
	size_t swap_count;
	struct host_swap *swaps;
	struct host_origin origin[HOST_KEYS_MAX];
};

enum host_restart { HOST_RESTART_NEVER, HOST_RESTART_ON_FAILURE, HOST_RESTART_ALWAYS };

struct host_disk {
	const char *path, *serial; /* absolute; serial NULL: none */
	bool readonly, direct;
};

struct host_net {
	const char *tap, *mac; /* mac NULL: made from the VM's name */
};

/* One VM, after `count` and `defaults`.  Strings are NULL where there is none. */
struct host_vm {
	const char *name;   /* NAME, or NAME-1 ... where a count is given */
	const char *group;  /* NAME as the file has it */
	unsigned number;    /* 1 ... of its count; 0: no count */
	uint32_t line;      /* where it begins */

	uint64_t memory_bytes;      /* what the guest believes to have */
	uint64_t reservation_bytes; /* host memory it gets whatever happens */
	uint64_t limit_bytes;       /* of host memory; 0: none */
	uint64_t shares;
	const char *share_group;
	uint64_t share_cpu_pct; /* of one CPU */
	uint64_t share_pace;    /* pages a second; 0: no bound */

	uint64_t balloon_floor_bytes; /* the guest keeps so much of its memory, whatever is asked */
	bool balloon_reporting, balloon_hinting, balloon_poison, balloon_deflate_on_oom;
	uint64_t balloon_stats_s;

	uint64_t pool_cap_bytes; /* 0: none */
	unsigned pool_delta;     /* of enum swap_delta, less its DEFAULT */
	uint64_t pool_acceleration;
	bool pool_refine;

	bool swap_enabled;        /* false: it has none, whatever the host has */
	const char *swap_path;    /* NULL: none. NAME.swap in the host's first directory unless given */
	uint64_t swap_size_bytes; /* 0: what suits the VM; of a device, all of it */
	bool swap_encrypt, swap_force;

	uint64_t cpus;
	const char *kernel, *initrd, *cmdline, *append;
	unsigned hugepages; /* of enum ram_huge */
	bool reboot, allow_emulated_kvm;
	uint64_t stop_timeout_s;

	bool autostart;
	unsigned restart; /* of enum host_restart */
	uint64_t restart_delay_ms, restart_tries;

	size_t disk_count, net_count, after_count;
	struct host_disk *disks;
	struct host_net *nets;
	uint32_t *after; /* indexes of VMs that must run before this one */

	struct host_origin origin[HOST_KEYS_MAX]; /* by row, see host_config_keys() */
};

struct host_config {
	const char *path; /* of the file, absolute */
	uint64_t physical_bytes; /* that percentages were taken of */
	struct host_host host;
	struct policy_config *policy;
	struct host_origin policy_origin[HOST_KEYS_MAX];
	size_t vm_count;
	struct host_vm *vms;
	uint32_t *start_order; /* indexes of all VMs, each after those it depends on */
};

/* ---- loading ----------------------------------------------------------------------- */

struct host_config_error {
	unsigned line, column; /* from 1; 0: of the file as a whole */
	char key[96];          /* "vms[2].swap.size", or "" */
	char text[400];        /* what is wrong, and what was expected */
};

struct host_config_errors {
	struct host_config_error *items; /* by place */
	size_t count;
	size_t unsaid; /* more than are kept */
};

/* What a configuration depends on but is not in its file.  NULL, or a zero, is this host. */
struct host_config_env {
	uint64_t physical_bytes;
	const char *host_name;
	const char *(*variable)(void *ctx, const char *name); /* NULL: getenv() */
	void *ctx;
};

/* Reads, checks and resolves the file.  -EINVAL with *errors filled when it is wrong (free it
 * with host_config_errors_fini() in any case); -errno and one error without a line when it
 * cannot be read.  May block on the file. */
int host_config_load(const char *path, const struct host_config_env *env, struct host_config **out,
		     struct host_config_errors *errors);
/* The same from memory; `path` is what errors name, and what relative paths are relative to. */
int host_config_parse(const char *text, size_t len, const char *path,
		      const struct host_config_env *env, struct host_config **out,
		      struct host_config_errors *errors);
void host_config_destroy(struct host_config **cfg);
void host_config_errors_fini(struct host_config_errors *errors);
/* "FILE:LINE:COLUMN: KEY: TEXT".  Returns buf. */
const char *host_config_error_format(char *buf, size_t len, const char *path,
				     const struct host_config_error *e);

/* The VM of that name, NULL when there is none. */
const struct host_vm *host_config_vm(const struct host_config *cfg, const char *name);
/* "FILE:LINE", "FILE:LINE (defaults)" or "built in".  Returns buf. */
const char *host_origin_format(char *buf, size_t len, const struct host_config *cfg,
			       const struct host_origin *o);

/* A VM as brim-vmm reads it (vmm/config.c), for a new reference.  `run_dir` is the VM's own
 * directory.  NULL: out of memory. */
json_t *host_vm_description(const struct host_vm *vm, const char *run_dir);

/* ---- comparing ------------------------------------------------------------------------ */

enum host_apply {
	HOST_APPLY_LIVE,       /* at once, while everything runs */
	HOST_APPLY_RESTART_VM, /* when that VM is started next */
	HOST_APPLY_RESTART_BRIMD,
	HOST_APPLY_ADD_VM, HOST_APPLY_REMOVE_VM,
};

struct host_change {
	enum host_apply apply;
	const char *section;      /* "host", "policy", "vms"; NULL for ADD and REMOVE */
	const char *key;          /* "idle_tax", "swap.size"; the table's; NULL for ADD and REMOVE */
	const char *vm;           /* NULL: the host or the policy */
	char before[128], after[128]; /* as text, cut where it is long */
};

/* What `after` changes, host first, then policy, then VMs in the file's order; *changes is
 * the caller's to free(), but its keys and names belong to the two.  0 or -ENOMEM. */
int host_config_compare(const struct host_config *before, const struct host_config *after,
			struct host_change **changes, size_t *count);

/* ---- showing -------------------------------------------------------------------------- */

enum host_show { HOST_SHOW_VALUES, HOST_SHOW_ORIGINS };

/* What is in effect, as YAML that loads as the same again; with where each value came from as
 * comments.  `vm`: that one alone; NULL: all of it. */
void host_config_show(FILE *out, const struct host_config *cfg, const struct host_vm *vm,
		      enum host_show how);
/* The same as JSON, sizes in bytes; with origins a value is {"value": , "from": }.  NULL: out of
 * memory. */
json_t *host_config_json(const struct host_config *cfg, const struct host_vm *vm,
			 enum host_show how);

/* docs/configuration.md; the keys as a list for a terminal; a JSON Schema (2020-12) for editors. */
void host_config_page(FILE *out);
void host_config_keys(FILE *out);
json_t *host_config_schema(void);

#endif
