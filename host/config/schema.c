/*
 * The table as JSON Schema (2020-12), for editors that complete and check YAML while it is
 * typed.  It says less than a load: ranges of sizes, and what keys must agree on, are not in it.
 *
 * One thread; no state.
 */
#include <stdio.h>
#include <string.h>

#include "host/config/internal.h"

#define DIALECT "https://json-schema.org/draft/2020-12/schema"
#define SIZE_PATTERN "[0-9]+(\\.[0-9]*)? *([KMGTkmgt]i?)?[Bb]?"
#define PERCENT_PATTERN "[0-9]+(\\.[0-9]*)? *%"
#define TIME_PATTERN "[0-9]+(\\.[0-9]*)? *(ns|us|ms|s|m|h|d)?"
#define VARIABLE_PATTERN ".*\\$\\{.*" /* what it will be is not known */

static json_t *pattern(const char *text, const char *zero, const char *other)
{
	char all[256];

	snprintf(all, sizeof(all), "^(%s%s%s%s%s)$", text, other ? "|" : "", other ? other : "",
		 zero ? "|" : "", zero ? zero : "");
	return json_pack("{s:[s, s], s:s}", "type", "string", "number", "pattern", all);
}

static json_t *choices(const struct config_key *k)
{
	json_t *list = json_array();

	for (size_t i = (size_t)k->min; k->choices[i]; i++)
		json_array_append_new(list, json_string(k->choices[i]));
	return json_pack("{s:o}", "enum", list);
}

static json_t *section_schema(enum key_section s);

static json_t *list_schema(const struct config_key *k)
{
	json_t *item = section_schema(k->sub);

	if (k->sub != SECTION_SWAP)
		item = json_pack("{s:[{s:s}, o]}", "oneOf", "type", "string", item);
	return json_pack("{s:s, s:I, s:o}", "type", "array", "maxItems", (json_int_t)k->max, "items", item);
}

static json_t *names_schema(const struct config_key *k)
{
	return json_pack("{s:[{s:s}, {s:s, s:I, s:{s:s}}]}", "oneOf", "type", "string", "type", "array",
			 "maxItems", (json_int_t)k->max, "items", "type", "string");
}

static json_t *uint_schema(const struct config_key *k)
{
	json_t *number = json_pack("{s:s, s:I, s:I}", "type", "integer", "minimum", (json_int_t)k->min,
				   "maximum", (json_int_t)k->max);

	return k->zero ? json_pack("{s:[o, {s:s}]}", "oneOf", number, "const", k->zero) : number;
}

static json_t *value_schema(const struct config_key *k)
{
	switch (k->type) {
	case KEY_SIZE:
		return pattern(SIZE_PATTERN, k->zero, k->percent != PERCENT_NONE ? PERCENT_PATTERN : NULL);
	case KEY_TIME:
		return pattern(TIME_PATTERN, k->zero, NULL);
	case KEY_PCT:
		return pattern("[0-9]+(\\.[0-9]*)? *%?", k->zero, NULL);
	case KEY_UINT:
		return uint_schema(k);
	case KEY_BOOL:
		return json_pack("{s:[b, b, s, s, s, s]}", "enum", true, false, "on", "off", "yes", "no");
	case KEY_CHOICE:
		return choices(k);
	case KEY_NAMES:
		return names_schema(k);
	case KEY_LIST:
		return list_schema(k);
	case KEY_NAME:
		return pattern("[A-Za-z0-9][A-Za-z0-9._-]{0,62}", VARIABLE_PATTERN, NULL);
	case KEY_MAC:
		return pattern("([0-9A-Fa-f]{2}:){5}[0-9A-Fa-f]{2}", VARIABLE_PATTERN, NULL);
	default:
		return json_pack("{s:[s, s]}", "type", "string", "number");
	}
}

static json_t *object_schema(void)
{
	return json_pack("{s:s, s:b, s:{}}", "type", "object", "additionalProperties", false,
			 "properties");
}

/* Where the row belongs: the section's object, or that of its group. */
static json_t *properties_of(json_t *object, const char *name, const char **last)
{
	json_t *properties = json_object_get(object, "properties"), *group;
	const char *dot = strchr(name, '.');
	char text[32];

	*last = dot ? dot + 1 : name;
	if (!dot)
		return properties;
	snprintf(text, sizeof(text), "%.*s", (int)(dot - name), name);
	group = json_object_get(properties, text);
	if (!group) {
		group = object_schema();
		json_object_set_new(properties, text, group);
	}
	return json_object_get(group, "properties");
}

static void put_row(json_t *object, const struct config_key *k)
{
	json_t *value = value_schema(k);
	char text[1024], expected[256];
	const char *last;
	json_t *properties = properties_of(object, k->name, &last);

	snprintf(text, sizeof(text), "%s. Value: %s.", k->help, key_expected(k, expected, sizeof(expected)));
	json_object_set_new(value, "description", json_string(text));
	if (k->def && !k->def_text)
		json_object_set_new(value, "default", json_string(k->def));
	json_object_set_new(properties, last, value);
}

static json_t *section_schema(enum key_section s)
{
	const struct config_key *keys = section_of(s)->keys;
	json_t *object = object_schema(), *required = json_array();

	for (size_t i = 0; i < section_count(s); i++) {
		put_row(object, &keys[i]);
		/* a kernel may come from `defaults` */
		if (keys[i].is_required && (s != SECTION_VM || keys[i].own_only))
			json_array_append_new(required, json_string(keys[i].name));
	}
	if (json_array_size(required))
		json_object_set(object, "required", required);
	json_decref(required);
	return object;
}

/* A VM, less what is its own. */
static json_t *defaults_schema(void)
{
	json_t *object = section_schema(SECTION_VM);

	json_object_del(object, "required");
	for (size_t i = 0; i < keys_vm_count; i++)
		if (keys_vm[i].own_only)
			json_object_del(json_object_get(object, "properties"), keys_vm[i].name);
	return object;
}

/* A section may be there and be empty. */
static json_t *or_empty(json_t *schema)
{
	json_t *type = json_pack("[O, s]", json_object_get(schema, "type"), "null");

	json_object_set_new(schema, "type", type);
	return schema;
}

json_t *host_config_schema(void)
{
	json_t *vms = json_pack("{s:s, s:o}", "type", "array", "items", section_schema(SECTION_VM));

	return json_pack("{s:s, s:s, s:s, s:s, s:b, s:{s:o, s:o, s:o, s:o}}", "$schema", DIALECT, "title",
			 "brim's configuration of a host", "$comment",
			 "Made from the key table by `make docs`", "type", "object", "additionalProperties",
			 false, "properties", "host", or_empty(section_schema(SECTION_HOST)), "policy",
			 or_empty(section_schema(SECTION_POLICY)), "defaults", or_empty(defaults_schema()),
			 "vms", or_empty(vms));
}
