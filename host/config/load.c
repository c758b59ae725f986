/*
 * The tree against the table: sections, keys, values, and what is left out.
 *
 * One thread.  All that lasts is in the configuration's own arena; the tree is in another,
 * which ends here.
 */
#include <stdio.h>
#include <string.h>

#include "host/config/internal.h"

#define GROUPS_MAX 16u /* "swap", "balloon", ... of one section */

/* ---- looking up keys ---------------------------------------------------------------------- */

bool load_working(struct load *l, const struct node *n)
{
	struct place p = { n->line, n->column, NULL };

	if (++l->work <= WORK_MAX)
		return true;
	error_add(&l->errs, &p, "aliases make this file a hundred times larger than it looks, "
		  "expected fewer");
	return false;
}

/* Of the mapping that is looked at. */
struct collect {
	struct load *l;
	enum key_section section;
	const char *path;   /* "vms.web" */
	const char *prefix; /* "swap.", or "" */
	struct found *found;
	const struct node *groups[GROUPS_MAX]; /* by number of the group's first row */
};

static struct place key_place(const struct node *key, const char *path, const char *prefix,
			      char buf[static 128])
{
	snprintf(buf, 128, "%.48s%s%s%.40s", path, *path ? "." : "", prefix, key->text);
	return (struct place){ key->line, key->column, buf };
}

/* The row called prefix + name, SECTION's count when there is none. */
static size_t find_row(const struct collect *c, const char *name)
{
	const struct config_key *keys = section_of(c->section)->keys;
	size_t n = section_count(c->section), len = strlen(c->prefix), i = 0;

	if (strchr(name, '.'))
		return n;
	while (i < n && !(strncmp(keys[i].name, c->prefix, len) == 0 && strcmp(keys[i].name + len, name) == 0))
		i++;
	return i;
}

/* Whether there are keys of the name's own: "swap" of "swap.size". */
static bool is_group(const struct collect *c, const char *name)
{
	const struct config_key *keys = section_of(c->section)->keys;
	size_t n = section_count(c->section), len = strlen(name);

	for (size_t i = 0; i < n && !*c->prefix; i++)
		if (strncmp(keys[i].name, name, len) == 0 && keys[i].name[len] == '.')
			return true;
	return false;
}

/* What could stand here, each name once; returns how many. */
static size_t names_here(const struct collect *c, char names[HOST_KEYS_MAX][32],
			 const char *list[HOST_KEYS_MAX])
{
	const struct config_key *keys = section_of(c->section)->keys;
	size_t n = 0, len = strlen(c->prefix);

	for (size_t i = 0; i < section_count(c->section); i++) {
		if (strncmp(keys[i].name, c->prefix, len) != 0)
			continue;
		snprintf(names[n], 32, "%.*s", (int)strcspn(keys[i].name + len, "."), keys[i].name + len);
		if (n && strcmp(names[n], names[n - 1]) == 0)
			continue;
		list[n] = names[n];
		n++;
	}
	return n;
}

/* A key of another group of the same section: people forget where things are. */
static const char *elsewhere(const struct collect *c, const char *name)
{
	const struct config_key *keys = section_of(c->section)->keys;

	for (size_t i = 0; i < section_count(c->section); i++) {
		const char *dot = strchr(keys[i].name, '.');

		if (strcmp(keys[i].name, name) == 0 || strcmp(dot ? dot + 1 : keys[i].name, name) == 0)
			return keys[i].name;
	}
	return NULL;
}

static void unknown_key(struct collect *c, const struct node *key)
{
	char names[HOST_KEYS_MAX][32], buf[128];
	const char *list[HOST_KEYS_MAX], *near, *other;
	struct place p = key_place(key, c->path, c->prefix, buf);

	if (errors_unwanted(&c->l->errs, &p))
		return; /* looking for what is near takes long */
	other = elsewhere(c, key->text);
	near = nearest(key->text, list, names_here(c, names, list));
	if (strcmp(key->text, "<<") == 0)
		error_add(&c->l->errs, &p, "merge keys are not read, expected what VMs have in common in "
			  "`defaults`");
	else if (other)
		error_add(&c->l->errs, &p, "unknown key here, expected %s%.*s%s%s%s", "`",
			  (int)strcspn(other, "."), other, strchr(other, '.') ? ": {" : "",
			  strchr(other, '.') ? strchr(other, '.') + 1 : "",
			  strchr(other, '.') ? ": ...}`" : "` a level higher");
	else if (near)
		error_add(&c->l->errs, &p, "unknown key, expected perhaps '%s'", near);
	else
		error_add(&c->l->errs, &p, "unknown key, expected one that `brim config keys` lists");
}

static void duplicate_key(struct collect *c, const struct node *key, const struct node *before)
{
	char buf[128];
	struct place p = key_place(key, c->path, c->prefix, buf);

	error_add(&c->l->errs, &p, "given twice, expected once: the first is in line %u", before->line);
}

static void collect_map(struct collect *c, const struct node *map);

static void collect_group(struct collect *c, const struct item *it)
{
	struct collect inner = *c;
	char prefix[40], buf[128];
	struct place p = key_place(it->key, c->path, c->prefix, buf);
	struct node **seen = NULL;

	for (size_t i = 0; i < GROUPS_MAX && !seen; i++) {
		if (c->groups[i] && strcmp(c->groups[i]->text, it->key->text) == 0) {
			duplicate_key(c, it->key, c->groups[i]);
			return;
		}
		if (!c->groups[i])
			seen = (struct node **)(uintptr_t)&c->groups[i];
	}
	VERIFY(seen);
	*seen = it->key;
	p.line = it->value->line;
	p.column = it->value->column;
	if (it->value->kind != NODE_MAP) {
		error_add(&c->l->errs, &p, "it has keys of its own, expected a mapping of them");
		return;
	}
	snprintf(prefix, sizeof(prefix), "%s.", it->key->text);
	inner.prefix = prefix;
	collect_map(&inner, it->value);
}

static void collect_key(struct collect *c, const struct item *it)
{
	size_t row = find_row(c, it->key->text);

	if (row == section_count(c->section)) {
		if (is_group(c, it->key->text))
			collect_group(c, it);
		else
			unknown_key(c, it->key);
		return;
	}
	if (c->found[row].key) {
		duplicate_key(c, it->key, c->found[row].key);
		return;
	}
	c->found[row] = (struct found){ it->key, it->value };
}

static void collect_map(struct collect *c, const struct node *map)
{
	for (const struct item *it = map->first; it && load_working(c->l, it->key); it = it->next) {
		struct place p = { it->key->line, it->key->column, c->path };

		if (it->key->kind == NODE_SCALAR)
			collect_key(c, it);
		else
			error_add(&c->l->errs, &p, "a key that is a list or a mapping, expected a word");
	}
}

void load_collect(struct load *l, const struct node *map, enum key_section s, const char *path,
		  struct found found[HOST_KEYS_MAX])
{
	struct collect c = { .l = l, .section = s, .path = path, .prefix = "", .found = found };

	memset(found, 0, sizeof(struct found) * HOST_KEYS_MAX);
	collect_map(&c, map);
}

/* ---- values --------------------------------------------------------------------------------- */

static void *member(void *base, size_t at)
{
	return (char *)base + at;
}

/* An item that is just a word is its first key's.  False: it is neither. */
static bool collect_item(struct load *l, const struct node *n, enum key_section s, const char *path,
			 struct found found[HOST_KEYS_MAX])
{
	struct place p = { n->line, n->column, path };

	memset(found, 0, sizeof(struct found) * HOST_KEYS_MAX);
	if (n->kind == NODE_MAP)
		load_collect(l, n, s, path, found);
	else if (n->kind == NODE_SCALAR && s != SECTION_SWAP)
		found[0] = (struct found){ n, n };
	else
		return error_add(&l->errs, &p, "not a mapping, expected one with the keys of %s",
				 section_of(s)->name) == 0;
	return true;
}

static void read_list(struct load *l, const struct target *t, const struct config_key *k,
		      const struct node *n)
{
	size_t bytes = section_of(k->sub)->struct_bytes, i = 0;
	struct found found[HOST_KEYS_MAX];
	unsigned char *items;
	char path[96];

	items = arena_alloc(l->arena, bytes * n->count);
	l->errs.out_of_memory |= !items;
	for (const struct item *it = n->first; it && items; it = it->next, i++) {
		struct target inner = { .section = k->sub, .base = items + i * bytes, .path = path,
					.line = it->value->line, .column = it->value->column,
					.own = found, .scope = t->scope };

		snprintf(path, sizeof(path), "%.48s.%.24s[%zu]", t->path, k->name, i);
		if (collect_item(l, it->value, k->sub, path, found))
			load_apply(l, &inner);
	}
	*(void **)member(t->base, k->at) = items;
	*(size_t *)member(t->base, k->count_at) = n->count;
}

static void load_list(struct load *l, const struct target *t, const struct value_at *at,
		      const struct node *n)
{
	const struct config_key *k = at->key;

	if (n->kind != NODE_LIST)
		error_add(&l->errs, &at->place, "not a list, expected one: each entry begins with '- '");
	else if (n->count > k->max)
		error_add(&l->errs, &at->place, "%zu entries, expected at most %u", n->count,
			  (unsigned)k->max);
	else if (n->count)
		read_list(l, t, k, n);
}

static void set_origin(struct host_origin *o, enum host_from from, const struct node *key)
{
	*o = (struct host_origin){ .from = (uint8_t)from,
				   .column = (uint16_t)(key->column > UINT16_MAX ? UINT16_MAX : key->column),
				   .line = key->line };
}

static void missing(struct load *l, const struct target *t, const struct value_at *at)
{
	char expected[256];

	error_add(&l->errs, &at->place, "missing, expected %s",
		  key_expected(at->key, expected, sizeof(expected)));
}

void load_row(struct load *l, struct target *t, size_t row)
{
	const struct config_key *k = &section_of(t->section)->keys[row];
	const struct found *f = &t->own[row];
	enum host_from from = t->is_trial ? HOST_FROM_DEFAULTS : HOST_FROM_OWN;
	char path[128];
	struct value_at at = { .key = k, .scope = &t->scope, .place = { .key = path } };

	if (!f->key && t->defaults && t->defaults[row].key && !k->own_only) {
		f = &t->defaults[row];
		from = HOST_FROM_DEFAULTS;
	}
	snprintf(path, sizeof(path), "%.64s.%.32s", from == HOST_FROM_DEFAULTS ? "defaults" : t->path,
		 k->name);
	value_default(l, &at, member(t->base, k->at)); /* what a wrong value leaves, too */
	if (!f->key) {
		at.place.line = t->line;
		at.place.column = t->column;
		if (k->is_required && !t->is_trial)
			missing(l, t, &at);
		return;
	}
	if (t->origin)
		set_origin(&t->origin[row], from, f->key);
	at.place.line = f->value->line;
	at.place.column = f->value->column;
	if (k->type == KEY_LIST)
		load_list(l, t, &at, f->value);
	else
		value_read(l, &at, f->value, member(t->base, k->at));
}

void load_apply(struct load *l, struct target *t)
{
	const struct config_key *keys = section_of(t->section)->keys;

	for (size_t i = 0; i < section_count(t->section); i++)
		if (keys[i].bytes)
			load_row(l, t, i);
}
