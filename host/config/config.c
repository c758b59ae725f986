/*
 * A load from beginning to end: the file, its sections, and what keys of the host and of the
 * policy must agree on.
 *
 * One thread.  What lasts is in the configuration's arena; the tree is in one of its own,
 * which ends with the load.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "host/config/internal.h"
#include "mm/policy/policy.h"

/* ---- sections ------------------------------------------------------------------------------- */

enum { TOP_HOST, TOP_POLICY, TOP_DEFAULTS, TOP_VMS, TOPS };
static const char *const tops[] = { "host", "policy", "defaults", "vms" };

static void take_top(struct load *l, const struct item *it, const struct item *top[TOPS])
{
	struct place p = { it->key->line, it->key->column, it->key->text };
	const char *near;

	for (size_t i = 0; i < TOPS; i++) {
		if (strcmp(it->key->text, tops[i]) != 0)
			continue;
		if (top[i])
			error_add(&l->errs, &p, "given twice, expected once: the first is in line %u",
				  top[i]->key->line);
		else
			top[i] = it;
		return;
	}
	near = nearest(it->key->text, tops, TOPS);
	error_add(&l->errs, &p, "unknown section, expected %s%s",
		  near ? "perhaps " : "host, policy, defaults or vms", near ? near : "");
}

static void take_tops(struct load *l, const struct node *root, const struct item *top[TOPS])
{
	struct place p = { root->line, root->column, NULL };

	if (root->kind != NODE_MAP) {
		error_add(&l->errs, &p, "not a mapping, expected the sections host, policy, defaults and "
			  "vms");
		return;
	}
	for (const struct item *it = root->first; it; it = it->next) {
		struct place at = { it->key->line, it->key->column, NULL };

		if (it->key->kind == NODE_SCALAR)
			take_top(l, it, top);
		else
			error_add(&l->errs, &at, "a key that is a list or a mapping, expected a word");
	}
}

/* A section may be there and be empty: people comment out all its keys. */
static bool is_empty(const struct node *n)
{
	return !n || (n->kind == NODE_SCALAR && n->is_plain && !*n->text);
}

/* The section's keys; none where it is not there, or wrong. */
static void collect_section(struct load *l, const struct item *it, enum key_section s,
			    struct found found[HOST_KEYS_MAX])
{
	const struct node *n = it ? it->value : NULL;

	memset(found, 0, sizeof(struct found) * HOST_KEYS_MAX);
	if (is_empty(n))
		return;
	if (n->kind == NODE_MAP) {
		load_collect(l, n, s, it->key->text, found);
	} else {
		struct place p = { n->line, n->column, it->key->text };

		error_add(&l->errs, &p, "not a mapping, expected one with its keys");
	}
}

/* ---- the host ----------------------------------------------------------------------------- */

static struct place found_place(const struct found *f, const char *path)
{
	return (struct place){ f->value ? f->value->line : 0, f->value ? f->value->column : 0, path };
}

/* What nobody said follows from the host. */
static void host_resolve(struct load *l, const struct found found[HOST_KEYS_MAX])
{
	struct host_host *h = &l->cfg->host;
	struct place p = found_place(&found[section_row(SECTION_HOST, "memory")], "host.memory");
	uint64_t rest;
	char have[32], reserve[32];

	rest = h->reserve_bytes < l->env.physical_bytes ? l->env.physical_bytes - h->reserve_bytes : 0;
	size_format(have, sizeof(have), l->env.physical_bytes);
	size_format(reserve, sizeof(reserve), h->reserve_bytes);
	if (rest < 64 * MiB) {
		p = found_place(&found[section_row(SECTION_HOST, "reserve")], "host.reserve");
		error_add(&l->errs, &p, "%s of the host's %s leave brim nothing, expected at least 64 MiB to "
			  "be left", reserve, have);
	} else if (h->memory_bytes > rest) {
		error_add(&l->errs, &p, "more than the host has: %s, of which reserve is %s, expected at most "
			  "what is left", have, reserve);
	}
	if (h->memory_bytes == 0)
		h->memory_bytes = rest;
}

static void host_name(struct load *l)
{
	char name[65] = "";

	if (l->cfg->host.name)
		return;
	if (l->env.host_name)
		snprintf(name, sizeof(name), "%s", l->env.host_name);
	else if (gethostname(name, sizeof(name) - 1) || !*name)
		snprintf(name, sizeof(name), "host");
	l->cfg->host.name = arena_text(l->arena, name, strlen(name));
}

static void host_check(struct load *l, const struct found found[HOST_KEYS_MAX])
{
	const struct host_host *h = &l->cfg->host;
	struct place p = found_place(&found[section_row(SECTION_HOST, "api.listen")], "host.api.listen");

	if (h->api_listen && !h->api_token_file)
		error_add(&l->errs, &p, "whoever reaches it could stop VMs, expected api.token_file, too");
	if (h->api_listen && !strrchr(h->api_listen, ':'))
		error_add(&l->errs, &p, "'%s' has no port, expected ADDRESS:PORT", h->api_listen);
	p = found_place(&found[section_row(SECTION_HOST, "swap")], "host.swap");
	for (size_t i = 0; i < h->swap_count; i++)
		for (size_t j = 0; j < i && h->swaps[i].dir; j++)
			if (h->swaps[j].dir && strcmp(h->swaps[i].dir, h->swaps[j].dir) == 0)
				error_add(&l->errs, &p, "%s is there twice, expected once",
					  h->swaps[i].dir);
}

static void load_host(struct load *l, const struct item *it)
{
	struct found found[HOST_KEYS_MAX];
	struct target t = { .section = SECTION_HOST, .base = &l->cfg->host,
			    .origin = l->cfg->host.origin, .path = "host", .own = found };

	collect_section(l, it, SECTION_HOST, found);
	load_apply(l, &t);
	host_resolve(l, found);
	host_name(l);
	host_check(l, found);
}

/* ---- the policy ------------------------------------------------------------------------------ */

/* Of which the first may not exceed the second: as policy_config_check() has it, which names
 * only one.  A test holds the two together. */
static const char *const policy_orders[][2] = {
	{ "clear_enter", "clear_leave" }, { "soft_enter", "soft_leave" }, { "hard_enter", "hard_leave" },
	{ "low_enter", "low_leave" }, { "soft_enter", "clear_enter" }, { "hard_enter", "soft_enter" },
	{ "low_enter", "hard_enter" }, { "soft_leave", "clear_leave" }, { "hard_leave", "soft_leave" },
	{ "low_leave", "hard_leave" }, { "period_short", "period" }, { "take", "take_hard" },
};

static const void *policy_field(const struct load *l, const struct config_key *k)
{
	return (const char *)l->cfg->policy + k->at;
}

static void policy_order(struct load *l, const struct found *found, const char *const names[2])
{
	size_t low = section_row(SECTION_POLICY, names[0]), high = section_row(SECTION_POLICY, names[1]);
	const struct config_key *a = &keys_policy[low], *b = &keys_policy[high];
	size_t named = found[low].key ? low : high;
	char path[64], x[64], y[64];
	struct place p;

	if (field_number(a, policy_field(l, a)) <= field_number(b, policy_field(l, b)))
		return;
	snprintf(path, sizeof(path), "policy.%s", keys_policy[named].name);
	p = found_place(&found[named], path);
	error_add(&l->errs, &p, "%s is %s and %s is %s, expected %s not to be more than %s", a->name,
		  value_format(a, policy_field(l, a), x, sizeof(x)), b->name,
		  value_format(b, policy_field(l, b), y, sizeof(y)), a->name, b->name);
}

static void load_policy(struct load *l, const struct item *it)
{
	struct found found[HOST_KEYS_MAX];
	struct target t = { .section = SECTION_POLICY, .origin = l->cfg->policy_origin, .path = "policy",
			    .own = found };
	size_t before = l->errs.out->count;
	struct place p = { it ? it->key->line : 0, it ? it->key->column : 0, "policy" };
	struct err e;

	t.base = l->cfg->policy = arena_alloc(l->arena, sizeof(*l->cfg->policy));
	if (!t.base) {
		l->errs.out_of_memory = true;
		return;
	}
	policy_config_default(l->cfg->policy);
	collect_section(l, it, SECTION_POLICY, found);
	load_apply(l, &t);
	for (size_t i = 0; i < ARRAY_LEN(policy_orders); i++)
		policy_order(l, found, policy_orders[i]);
	if (l->errs.out->count == before && policy_config_check(l->cfg->policy, &e))
		error_add(&l->errs, &p, "%s, expected what it allows", e.msg);
}

/* ---- a load ------------------------------------------------------------------------------------- */

static void load_root(struct load *l, const struct node *root)
{
	const struct item *top[TOPS] = { NULL };
	struct place nowhere = { 0 };

	if (is_empty(root))
		error_add(&l->errs, &nowhere, "the file is empty, expected the sections host, policy, "
			  "defaults and vms");
	else
		take_tops(l, root, top);
	load_host(l, top[TOP_HOST]);
	load_policy(l, top[TOP_POLICY]);
	if (l->cfg->policy)
		vms_load(l, top[TOP_DEFAULTS], top[TOP_VMS]);
}

static int set_path(struct load *l, const char *path)
{
	char cwd[PATH_MAX] = "", full[2 * PATH_MAX];
	struct place nowhere = { 0 };
	int n;

	if (path[0] != '/' && !getcwd(cwd, sizeof(cwd)))
		return error_add(&l->errs, &nowhere, "the current directory cannot be told: %m");
	n = snprintf(full, sizeof(full), "%s%s%s", cwd, path[0] == '/' ? "" : "/", path);
	if (n < 0 || n >= PATH_MAX)
		return error_add(&l->errs, &nowhere, "the path is longer than %d characters", PATH_MAX - 1);
	l->cfg->path = arena_text(l->arena, full, (size_t)n);
	snprintf(l->dir, sizeof(l->dir), "%.*s", (int)(strrchr(full, '/') - full), full);
	l->errs.out_of_memory |= !l->cfg->path;
	return 0;
}

static uint64_t physical_bytes(void)
{
	long pages = sysconf(_SC_PHYS_PAGES), bytes = sysconf(_SC_PAGESIZE);

	return pages > 0 && bytes > 0 ? (uint64_t)pages * (uint64_t)bytes : GiB;
}

static void load_text(struct load *l, const char *text, size_t len, const char *path)
{
	struct arena tree = { 0 };
	struct node *root = NULL;

	if (!set_path(l, path) && !tree_build(&tree, text, len, &root, &l->errs))
		load_root(l, root);
	arena_fini(&tree);
	errors_sort(l->errs.out);
}

/* What was found first may be what memory ran out of. */
static int outcome(struct load *l)
{
	struct place nowhere = { 0 };

	if (l->errs.out_of_memory) {
		error_add(&l->errs, &nowhere, "out of memory");
		return -ENOMEM;
	}
	return l->errs.out->count ? -EINVAL : 0;
}

int host_config_parse(const char *text, size_t len, const char *path,
		      const struct host_config_env *env, struct host_config **out,
		      struct host_config_errors *errors)
{
	struct config_whole *w = calloc(1, sizeof(*w));
	struct load l = { .errs = { .out = errors } };
	struct host_config *cfg;
	int rc;

	*errors = (struct host_config_errors){ 0 };
	if (!w)
		return -ENOMEM;
	cfg = &w->cfg;
	l.cfg = cfg;
	l.arena = &w->arena;
	if (env)
		l.env = *env;
	if (!l.env.physical_bytes)
		l.env.physical_bytes = physical_bytes();
	cfg->physical_bytes = l.env.physical_bytes;
	load_text(&l, text, len, path);
	rc = outcome(&l);
	if (rc)
		host_config_destroy(&cfg);
	else
		*out = cfg;
	return rc;
}

void host_config_destroy(struct host_config **cfg)
{
	struct config_whole *w;

	if (!*cfg)
		return;
	w = (struct config_whole *)(void *)((char *)*cfg - offsetof(struct config_whole, cfg));
	arena_fini(&w->arena);
	free(w);
	*cfg = NULL;
}

/* ---- the file ------------------------------------------------------------------------------------ */

/* All of it, at most one byte more than may be: -errno, or its length. */
static ssize_t read_all(int fd, char *buf, size_t size)
{
	size_t used = 0;

	while (used < size) {
		ssize_t n = read(fd, buf + used, size - used);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		if (n == 0)
			break;
		used += (size_t)n;
	}
	return (ssize_t)used;
}

static ssize_t read_file(const char *path, char *buf, size_t size)
{
	/* O_NONBLOCK: a FIFO must not hang us before it is refused */
	int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
	struct stat st;
	ssize_t n;

	if (fd < 0)
		return -errno;
	if (fstat(fd, &st) < 0)
		n = -errno;
	else if (S_ISDIR(st.st_mode))
		n = -EISDIR;
	else
		n = read_all(fd, buf, size);
	close(fd);
	return n;
}

int host_config_load(const char *path, const struct host_config_env *env, struct host_config **out,
		     struct host_config_errors *errors)
{
	struct errors errs = { .out = errors };
	struct place nowhere = { 0 };
	size_t size = TREE_FILE_MAX_BYTES + 1;
	char *buf = malloc(size);
	ssize_t n = buf ? read_file(path, buf, size) : -ENOMEM;
	int rc = (int)n;

	*errors = (struct host_config_errors){ 0 };
	if (n < 0)
		error_add(&errs, &nowhere, "cannot be read: %s", strerror((int)-n));
	else
		rc = host_config_parse(buf, (size_t)n, path, env, out, errors);
	free(buf);
	return rc;
}

/* ---- looking ------------------------------------------------------------------------------------- */

const struct host_vm *host_config_vm(const struct host_config *cfg, const char *name)
{
	for (size_t i = 0; i < cfg->vm_count; i++)
		if (strcmp(cfg->vms[i].name, name) == 0)
			return &cfg->vms[i];
	return NULL;
}

const char *host_origin_format(char *buf, size_t len, const struct host_config *cfg,
			       const struct host_origin *o)
{
	const char *file = strrchr(cfg->path, '/');

	if (o->from == HOST_FROM_BUILTIN)
		snprintf(buf, len, "built in");
	else
		snprintf(buf, len, "%s:%u%s", file ? file + 1 : cfg->path, o->line,
			 o->from == HOST_FROM_DEFAULTS ? " (defaults)" : "");
	return buf;
}
