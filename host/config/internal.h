/*
 * host/config/'s own header: the key table's form, the tree a file becomes, and the errors.
 * See config.h for what the files are.
 */
#ifndef BRIM_HOST_CONFIG_INTERNAL_H
#define BRIM_HOST_CONFIG_INTERNAL_H

#include "host/config/config.h"
#include "vmm/client.h"

/* ---- arena.c: memory that ends all at once ---------------------------------------- */

struct arena_block;

struct arena {
	struct arena_block *blocks;
};

/* Zeroed, aligned for anything.  NULL: out of memory. */
void *arena_alloc(struct arena *a, size_t bytes);
char *arena_text(struct arena *a, const char *text, size_t len);
void arena_fini(struct arena *a);

/* ---- tree.c ------------------------------------------------------------------------- */

#define TREE_FILE_MAX_BYTES (1 * MiB)
#define TREE_DEPTH_MAX 16u
#define TREE_NODES_MAX 65536u
#define TREE_ALIASES_MAX 1024u

enum node_kind { NODE_SCALAR, NODE_LIST, NODE_MAP };

struct item {
	struct node *key, *value; /* key: only of a map */
	struct item *next;
};

/* A node that an alias names is one node with several parents, and has no ancestor among its
 * descendants: an anchor is known only once its node is complete. */
struct node {
	enum node_kind kind;
	bool is_plain; /* scalar without quotes */
	unsigned line, column;
	const char *text; /* scalar, without a NUL byte inside */
	struct item *first, *last;
	size_t count;
};

struct errors; /* of one load */

/* *root is NULL for a file without anything in it.  Errors go to `errs`; then -EINVAL. */
int tree_build(struct arena *a, const char *text, size_t len, struct node **root,
	       struct errors *errs);

/* ---- errors ---------------------------------------------------------------------------- */

#define ERRORS_MAX 100u /* more are only counted */
#define WORK_MAX 2000000u /* look-ups of one load: only aliases of large nodes come near */

struct errors {
	struct host_config_errors *out;
	bool out_of_memory;
};

struct place {
	unsigned line, column;
	const char *key; /* path of the key, NULL: none */
};

/* Keeps one, unless the same is there already.  Always -EINVAL. */
int error_add(struct errors *errs, const struct place *p, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));
/* Whether an error at that place would not be kept: there is one, or there are enough.  It is
 * counted where there are enough. */
bool errors_unwanted(struct errors *errs, const struct place *p);
/* By place; once, at the end. */
void errors_sort(struct host_config_errors *errors);

/* ---- keys.c: the table -------------------------------------------------------------------- */

enum key_section {
	SECTION_HOST, SECTION_SWAP, SECTION_POLICY, SECTION_VM, SECTION_DISK, SECTION_NET, SECTIONS,
};

enum key_type {
	KEY_SIZE,   /* bytes */
	KEY_TIME,   /* in units of `unit` ns */
	KEY_UINT,
	KEY_PCT,    /* "75%" or 75, in units of `unit` ppm */
	KEY_BOOL,
	KEY_CHOICE, /* index into choices */
	KEY_TEXT,   /* const char *, variables replaced */
	KEY_PATH,   /* the same, made absolute */
	KEY_NAME,   /* the same, as VMs are named */
	KEY_TAP, KEY_MAC, KEY_SERIAL, /* the same, as their devices want them */
	KEY_NAMES,  /* a list of names: of VMs */
	KEY_LIST,   /* a list of maps: the rows of `sub` */
};

/* What a percentage is of, where one may be given. */
enum key_percent { PERCENT_NONE, PERCENT_PHYSICAL, PERCENT_MEMORY };

struct config_key {
	const char *name; /* "swap.size" is `swap: {size: }` */
	enum key_type type;
	enum key_percent percent;
	enum host_apply apply;
	enum key_section sub;
	bool own_only;    /* not in `defaults` */
	bool is_required;
	uint8_t bytes;     /* of the field; 0: vms.c keeps the value itself */
	size_t at;         /* in the section's struct; of a list: its pointer */
	size_t count_at;   /* of a list: its size_t */
	uint64_t min, max; /* of what the field has; of a list: items */
	uint64_t unit;
	const char *zero; /* the word that stands for 0: "none", "auto" */
	const char *def;  /* as one would type it; NULL: none, and zero */
	const char *def_text; /* what the page says instead */
	const char *help;
	const char *const *choices; /* NULL-terminated */
	const char *json; /* in brim-vmm's description; NULL: not in there */
};

struct config_section {
	const char *name, *title, *help;
	const struct config_key *keys;
	size_t struct_bytes;
};

extern const struct config_key keys_host[], keys_swap[], keys_policy[], keys_vm[], keys_disk[],
	keys_net[];
extern const size_t keys_host_count, keys_swap_count, keys_policy_count, keys_vm_count,
	keys_disk_count, keys_net_count;

const struct config_section *section_of(enum key_section s);
size_t section_count(enum key_section s);
/* The number of the row of that name, which there is. */
size_t section_row(enum key_section s, const char *name);

/* What may be written there, in words: "a size of at least 16 MiB".  Returns buf. */
const char *key_expected(const struct config_key *k, char *buf, size_t len);

/* ---- load.c ------------------------------------------------------------------------------- */

struct found {
	const struct node *key, *value;
};

/* What a scalar may depend on. */
struct scope {
	uint64_t memory_bytes; /* of the VM; 0: not known */
	const char *vm_name;   /* NULL: no VM's */
	unsigned vm_number;
};

struct load {
	struct host_config *cfg;
	struct arena *arena; /* of the configuration */
	struct errors errs;
	struct host_config_env env;
	char dir[PATH_MAX]; /* of the file: what paths are relative to */
	size_t work;
};

/* A configuration and the memory it is in. */
struct config_whole {
	struct host_config cfg;
	struct arena arena;
};

/* Bounds the work that aliases of large nodes can make: false, and an error, beyond it. */
bool load_working(struct load *l, const struct node *n);
/* Looks up every key of `map` in the section; `path` is what errors call it. */
void load_collect(struct load *l, const struct node *map, enum key_section s, const char *path,
		  struct found found[HOST_KEYS_MAX]);
/* From found to the struct at `base`, each row from `own`, else `defaults` (may be NULL), else
 * its default; `origin` may be NULL. */
struct target {
	enum key_section section;
	void *base;
	struct host_origin *origin;
	const char *path; /* "vms.web" */
	unsigned line, column; /* where it begins */
	const struct found *own, *defaults;
	struct scope scope;
	bool is_trial; /* of the section `defaults` alone: what is required may be missing */
};
void load_apply(struct load *l, struct target *t);
/* One row of it. */
void load_row(struct load *l, struct target *t, size_t row);

/* ---- value.c, text.c ------------------------------------------------------------------------- */

struct value_at {
	const struct config_key *key;
	const struct scope *scope;
	struct place place;
};

/* One scalar into its field.  -EINVAL: an error was kept, the field is as it was. */
int value_read(struct load *l, const struct value_at *at, const struct node *n, void *field);
/* The row's default into its field; one without leaves it zero. */
void value_default(struct load *l, const struct value_at *at, void *field);
/* A duration in ns: "250ms", "5s", "2m", "1h", "1d"; a bare number is seconds. */
int time_parse(const char *text, uint64_t *ns);

/* As a person would write it: "24G", "30s", "on", "none".  Returns buf. */
const char *value_format(const struct config_key *k, const void *field, char *buf, size_t len);
/* A size so that it reads back as it is: "24G", "1029M", "12345". */
const char *size_exact(char *buf, size_t len, uint64_t n);
/* The same as JSON; sizes in bytes, times in the field's unit.  NULL: out of memory. */
json_t *value_json(const struct config_key *k, const void *field);
/* Of any row, lists too.  describe.c. */
json_t *row_json(const struct config_key *k, const void *base);
/* Into `o`, or what `name` has before its dot: "swap.path" goes into the object "swap". */
int put_member(json_t *o, const char *name, json_t *value);
bool key_is_text(const struct config_key *k);
/* ${VARIABLES} replaced, into the arena. NULL: an error was kept. */
const char *text_expand(struct load *l, const struct value_at *at, const char *text);
uint64_t field_number(const struct config_key *k, const void *field);

/* ---- vms.c, clash.c, order.c ------------------------------------------------------------------ */

/* An entry of `vms`: one VM, or `count` of them. */
struct vm_item {
	const struct node *node;
	struct found found[HOST_KEYS_MAX];
	const char *name; /* NULL: it has none that is right */
	char path[80];    /* "vms.web" */
	bool has_count;
	size_t count, first; /* its VMs are cfg->vms[first] ... */
};

struct vm_list {
	struct vm_item *items;
	size_t count;
	const struct vm_item **of; /* the item of each VM */
};

void vms_load(struct load *l, const struct item *defaults, const struct item *vms);
/* Where an item says `key`, else where it begins; `path` has room for 128. */
struct place vm_place(const struct vm_item *v, const char *key, char *path);
/* Files, interfaces and addresses that more than one VM has. */
void clash_check(struct load *l, const struct vm_list *list);
/* Swap files in the host's directories for them. */
void room_check(struct load *l);
/* Names after which VMs start to indexes, and start_order. */
void order_load(struct load *l, const struct vm_list *list);

#endif
