/*
 * What differs between two configurations.  Values are compared as JSON, which every row has,
 * so that a new row needs nothing here.
 *
 * One thread; no state.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "host/config/internal.h"

struct diff {
	const struct host_config *before, *after;
	const char *vm; /* the one looked at, NULL: none */
	struct host_change *items;
	size_t count;
	bool out_of_memory;
};

static struct host_change *add(struct diff *d, enum host_apply apply, const char *key, const char *vm)
{
	struct host_change *grown = reallocarray(d->items, d->count + 1, sizeof(*grown));

	if (!grown) {
		d->out_of_memory = true;
		return NULL;
	}
	d->items = grown;
	grown[d->count] = (struct host_change){ .apply = apply, .key = key, .vm = vm };
	return &grown[d->count++];
}

static void text_of(const struct config_key *k, const void *base, char *buf, size_t len)
{
	json_t *list;
	char *text;

	if (k->type != KEY_LIST) {
		value_format(k, (const char *)base + k->at, buf, len);
		return;
	}
	list = row_json(k, base);
	text = list ? json_dumps(list, JSON_COMPACT) : NULL;
	snprintf(buf, len, "%s", text ? text : "");
	free(text);
	json_decref(list);
}

static bool equal(const struct config_key *k, const void *a, const void *b)
{
	json_t *x = row_json(k, a), *y = row_json(k, b);
	bool is_equal = json_equal(x, y);

	json_decref(x);
	json_decref(y);
	return is_equal;
}

/* Both of the section's struct; `d->vm` is whose they are. */
static void diff_section(struct diff *d, enum key_section s, const void *before, const void *after)
{
	const struct config_key *keys = section_of(s)->keys;

	for (size_t i = 0; i < section_count(s); i++) {
		const struct config_key *k = &keys[i];
		struct host_change *c;

		if (!k->bytes || equal(k, before, after))
			continue;
		c = add(d, k->apply, k->name, d->vm);
		if (!c)
			return;
		c->section = section_of(s)->name;
		text_of(k, before, c->before, sizeof(c->before));
		text_of(k, after, c->after, sizeof(c->after));
	}
}

/* By name: numbers may have moved. */
static void names_of(const struct host_config *cfg, const struct host_vm *vm, char *buf, size_t len)
{
	size_t used = 0;

	*buf = '\0';
	for (size_t i = 0; i < vm->after_count && used < len; i++)
		used += (size_t)snprintf(buf + used, len - used, "%s%s", i ? ", " : "",
					 cfg->vms[vm->after[i]].name);
}

static bool is_after(const struct host_config *cfg, const struct host_vm *vm, const char *name)
{
	for (size_t i = 0; i < vm->after_count; i++)
		if (strcmp(cfg->vms[vm->after[i]].name, name) == 0)
			return true;
	return false;
}

static bool same_after(const struct diff *d, const struct host_vm *was, const struct host_vm *is)
{
	bool is_same = was->after_count == is->after_count;

	for (size_t i = 0; i < was->after_count && is_same; i++)
		is_same = is_after(d->after, is, d->before->vms[was->after[i]].name);
	return is_same;
}

static void diff_vm(struct diff *d, const struct host_vm *was, const struct host_vm *is)
{
	struct host_change *c;

	d->vm = is->name;
	diff_section(d, SECTION_VM, was, is);
	if (same_after(d, was, is))
		return;
	c = add(d, HOST_APPLY_LIVE, "after", is->name);
	if (c) {
		c->section = section_of(SECTION_VM)->name;
		names_of(d->before, was, c->before, sizeof(c->before));
		names_of(d->after, is, c->after, sizeof(c->after));
	}
}

int host_config_compare(const struct host_config *before, const struct host_config *after,
			struct host_change **changes, size_t *count)
{
	struct diff d = { .before = before, .after = after };

	diff_section(&d, SECTION_HOST, &before->host, &after->host);
	diff_section(&d, SECTION_POLICY, before->policy, after->policy);
	for (size_t i = 0; i < before->vm_count; i++)
		if (!host_config_vm(after, before->vms[i].name))
			add(&d, HOST_APPLY_REMOVE_VM, NULL, before->vms[i].name);
	for (size_t i = 0; i < after->vm_count; i++) {
		const struct host_vm *was = host_config_vm(before, after->vms[i].name);

		if (was)
			diff_vm(&d, was, &after->vms[i]);
		else
			add(&d, HOST_APPLY_ADD_VM, NULL, after->vms[i].name);
	}
	if (d.out_of_memory) {
		free(d.items);
		return -ENOMEM;
	}
	*changes = d.items;
	*count = d.count;
	return 0;
}
