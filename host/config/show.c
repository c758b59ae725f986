/*
 * What is in effect: as YAML that reads back as the same, and as JSON.
 *
 * One thread; no state.
 */
#include <stdlib.h>
#include <string.h>

#include "host/config/internal.h"

#define COMMENT_COLUMN 44

/* ---- YAML -------------------------------------------------------------------------------- */

struct yaml {
	FILE *out;
	const struct host_config *cfg;
	enum host_show how;
	int indent;
	const char *dash; /* before the first line of a list's item, else "" */
	char group[32];   /* whose keys are being written */
};

/* What needs no quotes in any YAML. */
static bool is_word(const char *text)
{
	static const char safe[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_./-%";

	return *text && *text != '-' && *text != '%' && strspn(text, safe) == strlen(text);
}

/* JSON's strings are YAML's, too; "${" is written as "$${" where it stands for itself. */
static void quote(const char *text, char *buf, size_t len)
{
	char *escaped = calloc(2, strlen(text) + 1), *to = escaped;
	json_t *s = NULL;
	char *dump = NULL;

	for (const char *p = text; *p && escaped; p++) {
		if (p[0] == '$' && p[1] == '{')
			*to++ = '$';
		*to++ = *p;
	}
	s = escaped ? json_string(escaped) : NULL;
	dump = s ? json_dumps(s, JSON_ENCODE_ANY) : NULL;
	snprintf(buf, len, "%s", dump ? dump : "\"?\"");
	free(dump);
	json_decref(s);
	free(escaped);
}

static void line(struct yaml *y, const char *key, const char *value, const struct host_origin *o)
{
	char from[64] = "";
	int n;

	n = fprintf(y->out, "%*s%s%s:%s%s", y->indent - (int)strlen(y->dash), "", y->dash, key,
		    *value ? " " : "", value);
	y->dash = "";
	if (o && y->how == HOST_SHOW_ORIGINS)
		fprintf(y->out, "%*s# %s", n < COMMENT_COLUMN ? COMMENT_COLUMN - n : 1, "",
			host_origin_format(from, sizeof(from), y->cfg, o));
	fputc('\n', y->out);
}

/* "swap.size" as `swap:` and, deeper, `size:`. */
static void put_line(struct yaml *y, const char *name, const char *value, const struct host_origin *o)
{
	const char *dot = strchr(name, '.');
	char group[32] = "";

	if (dot)
		snprintf(group, sizeof(group), "%.*s", (int)(dot - name), name);
	if (dot && strcmp(group, y->group) != 0)
		line(y, group, "", NULL);
	memcpy(y->group, group, sizeof(group));
	y->indent += dot ? 2 : 0;
	line(y, dot ? dot + 1 : name, value, o);
	y->indent -= dot ? 2 : 0;
}

static bool has_value(const struct config_key *k, const void *base)
{
	const char *field = (const char *)base + k->at;

	return !key_is_text(k) || *(const char *const *)(const void *)field;
}

static void put_rows(struct yaml *y, enum key_section s, const void *base,
		     const struct host_origin *origin);

static void put_list(struct yaml *y, const struct config_key *k, const void *base,
		     const struct host_origin *o)
{
	size_t n = *(const size_t *)(const void *)((const char *)base + k->count_at);
	const char *items = *(const char *const *)(const void *)((const char *)base + k->at);

	if (n)
		put_line(y, k->name, "", o);
	y->indent += 4;
	for (size_t i = 0; i < n; i++) {
		y->dash = "- ";
		put_rows(y, k->sub, items + i * section_of(k->sub)->struct_bytes, NULL);
	}
	y->indent -= 4;
}

static void put_value(struct yaml *y, const struct config_key *k, const void *base,
		      const struct host_origin *o)
{
	const void *field = (const char *)base + k->at;
	char text[PATH_MAX + 64], quoted[2 * PATH_MAX + 128];

	value_format(k, field, text, sizeof(text));
	if (key_is_text(k) && !is_word(text))
		quote(text, quoted, sizeof(quoted));
	else
		snprintf(quoted, sizeof(quoted), "%s", text);
	put_line(y, k->name, quoted, o);
}

static void put_rows(struct yaml *y, enum key_section s, const void *base,
		     const struct host_origin *origin)
{
	const struct config_key *keys = section_of(s)->keys;

	for (size_t i = 0; i < section_count(s); i++) {
		const struct host_origin *o = origin ? &origin[i] : NULL;

		if (!keys[i].bytes || !has_value(&keys[i], base))
			continue;
		if (keys[i].type == KEY_LIST)
			put_list(y, &keys[i], base, o);
		else
			put_value(y, &keys[i], base, o);
	}
	*y->group = '\0';
}

static void put_after(struct yaml *y, const struct host_vm *vm)
{
	for (size_t i = 0; i < vm->after_count; i++) {
		if (i == 0)
			put_line(y, "after", "", &vm->origin[section_row(SECTION_VM, "after")]);
		fprintf(y->out, "%*s- %s\n", y->indent + 2, "", y->cfg->vms[vm->after[i]].name);
	}
}

static void put_vm(struct yaml *y, const struct host_vm *vm)
{
	y->dash = "- ";
	put_rows(y, SECTION_VM, vm, vm->origin);
	put_after(y, vm);
}

void host_config_show(FILE *out, const struct host_config *cfg, const struct host_vm *vm,
		      enum host_show how)
{
	struct yaml y = { .out = out, .cfg = cfg, .how = how, .indent = 2, .dash = "" };

	if (!vm) {
		fputs("host:\n", out);
		put_rows(&y, SECTION_HOST, &cfg->host, cfg->host.origin);
		fputs("policy:\n", out);
		put_rows(&y, SECTION_POLICY, cfg->policy, cfg->policy_origin);
	}
	y.indent = 4;
	fputs(vm || cfg->vm_count ? "vms:\n" : "", out);
	for (size_t i = 0; i < cfg->vm_count; i++)
		if (!vm || vm == &cfg->vms[i])
			put_vm(&y, &cfg->vms[i]);
}

/* ---- JSON --------------------------------------------------------------------------------- */

static json_t *with_origin(const struct host_config *cfg, json_t *value, const struct host_origin *o)
{
	char from[64];

	return json_pack("{s:o, s:s}", "value", value, "from",
			 host_origin_format(from, sizeof(from), cfg, o));
}

struct section_json {
	const struct host_config *cfg;
	enum key_section section;
	const void *base;
	const struct host_origin *origin; /* NULL: not wanted */
};

static json_t *section_json(const struct section_json *s)
{
	const struct config_key *keys = section_of(s->section)->keys;
	json_t *o = json_object();

	for (size_t i = 0; i < section_count(s->section) && o; i++) {
		json_t *value;

		if (!keys[i].bytes)
			continue;
		value = row_json(&keys[i], s->base);
		if (s->origin)
			value = with_origin(s->cfg, value, &s->origin[i]);
		put_member(o, keys[i].name, value);
	}
	return o;
}

static json_t *vm_json(const struct host_config *cfg, const struct host_vm *vm, enum host_show how)
{
	struct section_json s = { cfg, SECTION_VM, vm, how == HOST_SHOW_ORIGINS ? vm->origin : NULL };
	json_t *o = section_json(&s), *after = json_array();

	for (size_t i = 0; i < vm->after_count; i++)
		json_array_append_new(after, json_string(cfg->vms[vm->after[i]].name));
	if (s.origin)
		after = with_origin(cfg, after, &vm->origin[section_row(SECTION_VM, "after")]);
	put_member(o, "after", after);
	return o;
}

json_t *host_config_json(const struct host_config *cfg, const struct host_vm *vm,
			 enum host_show how)
{
	bool origins = how == HOST_SHOW_ORIGINS;
	json_t *host, *policy, *vms;

	if (vm)
		return vm_json(cfg, vm, how);
	host = section_json(&(struct section_json){ cfg, SECTION_HOST, &cfg->host,
						    origins ? cfg->host.origin : NULL });
	policy = section_json(&(struct section_json){ cfg, SECTION_POLICY, cfg->policy,
						      origins ? cfg->policy_origin : NULL });
	vms = json_array();
	for (size_t i = 0; i < cfg->vm_count; i++)
		json_array_append_new(vms, vm_json(cfg, &cfg->vms[i], how));
	return json_pack("{s:s, s:I, s:o, s:o, s:o}", "file", cfg->path, "physical_bytes",
			 (json_int_t)cfg->physical_bytes, "host", host, "policy", policy, "vms", vms);
}
