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

/* One character of valid UTF-8; returns its length. */
static size_t decode(const char *text, uint32_t *c)
{
	unsigned char first = (unsigned char)*text;
	size_t n = first < 0x80 ? 1 : first < 0xe0 ? 2 : first < 0xf0 ? 3 : 4;

	*c = n == 1 ? first : first & (0xffu >> (n + 1));
	for (size_t i = 1; i < n; i++)
		*c = *c << 6 | ((unsigned char)text[i] & 0x3f);
	return n;
}

/* What libyaml takes as it is between double quotes; not what it takes for a line's end. */
static bool is_printable(uint32_t c)
{
	if (c < 0x20 || (c >= 0x7f && c < 0xa0) || c == 0x2028 || c == 0x2029)
		return false;
	return c != 0xfeff && c != 0xfffe && c != 0xffff;
}

/* As a YAML string; "${" is written as "$${" where it stands for itself. */
static void quote(const char *text, FILE *out)
{
	fputc('"', out);
	while (*text) {
		uint32_t c = 0;
		size_t n = decode(text, &c);

		if (c == '$' && text[1] == '{')
			fputs("$$", out);
		else if (c == '"' || c == '\\')
			fprintf(out, "\\%c", (int)c);
		else if (is_printable(c))
			fprintf(out, "%.*s", (int)n, text);
		else
			fprintf(out, "\\u%04x", c);
		text += n;
	}
	fputc('"', out);
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
	char text[PATH_MAX + 64], *quoted = NULL;
	size_t len = 0;
	FILE *out = open_memstream(&quoted, &len);

	VERIFY(out);
	value_format(k, field, text, sizeof(text));
	if (key_is_text(k) && !is_word(text))
		quote(text, out);
	else
		fputs(text, out);
	fclose(out);
	put_line(y, k->name, quoted, o);
	free(quoted);
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
