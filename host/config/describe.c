/*
 * One VM as the JSON that brim-vmm reads: every row that has a name there, which the same
 * table says.  Only what is not given in the configuration is left to brim-vmm.
 *
 * One thread; no state.
 */
#include <stdio.h>
#include <string.h>

#include "host/config/internal.h"

static const void *field_of(const struct config_key *k, const void *base)
{
	return (const char *)base + k->at;
}

static json_t *item_json(enum key_section s, const void *item)
{
	const struct config_key *keys = section_of(s)->keys;
	json_t *o = json_object();
	int rc = o ? 0 : -1;

	for (size_t i = 0; i < section_count(s) && !rc; i++)
		rc = json_object_set_new(o, keys[i].name, value_json(&keys[i], field_of(&keys[i], item)));
	if (!rc)
		return o;
	json_decref(o);
	return NULL;
}

/* All of it or nothing: a disk without its `readonly` would be another disk. */
static json_t *list_json(const struct config_key *k, const void *base)
{
	size_t n = *(const size_t *)(const void *)((const char *)base + k->count_at);
	const char *items = *(const char *const *)field_of(k, base);
	json_t *list = json_array();
	int rc = list ? 0 : -1;

	for (size_t i = 0; i < n && !rc; i++)
		rc = json_array_append_new(list, item_json(k->sub, items + i * section_of(k->sub)->struct_bytes));
	if (!rc)
		return list;
	json_decref(list);
	return NULL;
}

json_t *row_json(const struct config_key *k, const void *base)
{
	if (k->type == KEY_LIST)
		return list_json(k, base);
	return value_json(k, field_of(k, base));
}

int put_member(json_t *o, const char *name, json_t *value)
{
	const char *dot = strchr(name, '.');
	char group[32];
	json_t *inner;

	if (!dot)
		return json_object_set_new(o, name, value);
	snprintf(group, sizeof(group), "%.*s", (int)(dot - name), name);
	inner = json_object_get(o, group);
	if (!inner) {
		inner = json_object();
		if (json_object_set_new(o, group, inner)) {
			json_decref(value);
			return -1;
		}
	}
	return json_object_set_new(inner, dot + 1, value);
}

static int put_cmdline(json_t *o, const struct host_vm *vm)
{
	char text[VM_CMDLINE_MAX];

	snprintf(text, sizeof(text), "%s%s%s", vm->cmdline, vm->append && *vm->cmdline ? " " : "",
		 vm->append ? vm->append : "");
	return json_object_set_new(o, "cmdline", json_string(text));
}

json_t *host_vm_description(const struct host_vm *vm, const char *run_dir)
{
	json_t *o = json_pack("{s:i, s:s, s:b, s:b, s:b}", "v", 1, "run_dir", run_dir, "rng", true,
			      "console", true, "die_with_parent", false);
	int rc = o ? 0 : -1;

	for (size_t i = 0; i < keys_vm_count && !rc; i++) {
		const struct config_key *k = &keys_vm[i];

		if (k->json && !(strncmp(k->json, "swap.", 5) == 0 && !vm->swap_path))
			rc = put_member(o, k->json, row_json(k, vm));
	}
	if (!rc)
		rc = put_cmdline(o, vm);
	if (!rc)
		return o;
	json_decref(o);
	return NULL;
}
