/*
 * A VM's description: the JSON that `brim` hands to `brim-vmm`.  Every key is
 * checked for type and range, unknown keys are errors, and the sentence names the
 * key.  What is not given keeps its default.
 */
#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <string.h>

#include "vmm/internal.h"

struct field {
	const char *key;
	int (*read)(struct vm_config *cfg, const json_t *v, const char *key, struct err *e);
};

static int wrong(struct err *e, const char *key, const char *want)
{
	return err_set(e, -EINVAL, "VM description: '%s' must be %s", key, want);
}

static int get_string(const json_t *v, char *to, size_t size, const char *key, struct err *e)
{
	if (json_is_null(v))
		return 0; /* stays as it was: not given */
	if (!json_is_string(v))
		return wrong(e, key, "a string");
	if (json_string_length(v) >= size || strlen(json_string_value(v)) != json_string_length(v))
		return err_set(e, -EINVAL, "VM description: '%s' is longer than %zu bytes", key, size - 1);
	memcpy(to, json_string_value(v), json_string_length(v) + 1);
	return 0;
}

static int get_bool(const json_t *v, bool *to, const char *key, struct err *e)
{
	if (!json_is_boolean(v))
		return wrong(e, key, "true or false");
	*to = json_is_true(v);
	return 0;
}

static int get_number(const json_t *v, uint64_t min, uint64_t max, uint64_t *to,
		      const char *key, struct err *e)
{
	json_int_t n = json_integer_value(v);

	if (!json_is_integer(v) || n < 0)
		return wrong(e, key, "a whole number");
	if ((uint64_t)n < min || (uint64_t)n > max)
		return err_set(e, -ERANGE, "VM description: '%s' is %lld, allowed are %llu to %llu",
			       key, (long long)n, (unsigned long long)min, (unsigned long long)max);
	*to = (uint64_t)n;
	return 0;
}

static int get_unsigned(const json_t *v, unsigned min, unsigned max, unsigned *to,
			const char *key, struct err *e)
{
	uint64_t n = 0;
	int rc = get_number(v, min, max, &n, key, e);

	if (!rc)
		*to = (unsigned)n;
	return rc;
}

/* ---- one reader a key ------------------------------------------------------ */

static int read_version(struct vm_config *cfg, const json_t *v, const char *key, struct err *e)
{
	unsigned n = 0;

	return get_unsigned(v, 1, 1, &n, key, e);
}

static int read_name(struct vm_config *cfg, const json_t *v, const char *key, struct err *e)
{
	return get_string(v, cfg->name, sizeof cfg->name, key, e);
}

static int read_memory(struct vm_config *cfg, const json_t *v, const char *key, struct err *e)
{
	/* The range is ram_create()'s to refuse: its sentence names the sizes. */
	return get_number(v, 1, INT64_MAX, &cfg->memory_bytes, key, e);
}

static int read_limit(struct vm_config *cfg, const json_t *v, const char *key, struct err *e)
{
	if (json_is_integer(v) && json_integer_value(v) == 0)
		return 0; /* none */
	return get_number(v, VM_LIMIT_MIN_BYTES, INT64_MAX, &cfg->memory_limit_bytes, key, e);
}

static int read_pool_cap(struct vm_config *cfg, const json_t *v, const char *key, struct err *e)
{
	if (json_is_integer(v) && json_integer_value(v) == 0)
		return 0; /* none */
	return get_number(v, VM_POOL_CAP_MIN_BYTES, INT64_MAX, &cfg->pool_cap_bytes, key, e);
}

static int read_pool_delta(struct vm_config *cfg, const json_t *v, const char *key, struct err *e)
{
	static const char *const names[] = {
		[SWAP_DELTA_OFF] = "off", [SWAP_DELTA_FAST] = "fast", [SWAP_DELTA_SMALL] = "small",
	};
	const char *s = json_string_value(v);

	for (size_t i = SWAP_DELTA_OFF; s && i < ARRAY_LEN(names); i++)
		if (strcmp(s, names[i]) == 0) {
			cfg->pool_delta = (enum swap_delta)i;
			return 0;
		}
	return wrong(e, key, "\"off\", \"fast\" or \"small\"");
}

static int read_pool_accel(struct vm_config *cfg, const json_t *v, const char *key, struct err *e)
{
	return get_unsigned(v, 1, SWAP_ACCELERATION_MAX, &cfg->pool_acceleration, key, e);
}

static int read_cpus(struct vm_config *cfg, const json_t *v, const char *key, struct err *e)
{
	return get_unsigned(v, 1, VM_MAX_CPUS, &cfg->cpus, key, e);
}

static int read_kernel(struct vm_config *cfg, const json_t *v, const char *key, struct err *e)
{
	return get_string(v, cfg->kernel, sizeof cfg->kernel, key, e);
}

static int read_initrd(struct vm_config *cfg, const json_t *v, const char *key, struct err *e)
{
	return get_string(v, cfg->initrd, sizeof cfg->initrd, key, e);
}

static int read_cmdline(struct vm_config *cfg, const json_t *v, const char *key, struct err *e)
{
	return get_string(v, cfg->cmdline, sizeof cfg->cmdline, key, e);
}

static int read_run_dir(struct vm_config *cfg, const json_t *v, const char *key, struct err *e)
{
	return get_string(v, cfg->run_dir, sizeof cfg->run_dir, key, e);
}

static int read_hugepages(struct vm_config *cfg, const json_t *v, const char *key, struct err *e)
{
	static const char *const names[] = {
		[RAM_HUGE_AUTO] = "auto", [RAM_HUGE_ALWAYS] = "always", [RAM_HUGE_NEVER] = "never",
	};
	const char *s = json_string_value(v);

	for (size_t i = 0; s && i < ARRAY_LEN(names); i++)
		if (strcmp(s, names[i]) == 0) {
			cfg->huge = (enum ram_huge)i;
			return 0;
		}
	return wrong(e, key, "\"auto\", \"always\" or \"never\"");
}

#define BOOL_FIELD(fn, member)                                                            \
	static int fn(struct vm_config *cfg, const json_t *v, const char *key, struct err *e) \
	{                                                                                 \
		return get_bool(v, &cfg->member, key, e);                                 \
	}
BOOL_FIELD(read_rng, rng)
BOOL_FIELD(read_console, console)
BOOL_FIELD(read_die, die_with_parent)
BOOL_FIELD(read_reboot, reboot)
BOOL_FIELD(read_emulated, allow_emulated_kvm)
BOOL_FIELD(read_pool_refine, pool_refine)
BOOL_FIELD(read_s_encrypt, swap.encrypt)
BOOL_FIELD(read_s_force, swap.force)
BOOL_FIELD(read_b_oom, balloon.deflate_on_oom)
BOOL_FIELD(read_b_reporting, balloon.reporting)
BOOL_FIELD(read_b_hinting, balloon.hinting)
BOOL_FIELD(read_b_poison, balloon.poison)
#undef BOOL_FIELD

static int read_b_interval(struct vm_config *cfg, const json_t *v, const char *key, struct err *e)
{
	return get_unsigned(v, 0, 3600, &cfg->balloon.stats_interval_s, key, e);
}

static int read_stop_timeout(struct vm_config *cfg, const json_t *v, const char *key, struct err *e)
{
	return get_unsigned(v, 0, 3600, &cfg->stop_timeout_s, key, e);
}

int vm_mac_parse(const char *text, uint8_t mac[6])
{
	unsigned b[6];

	/* 17 of these characters: scanf alone would also take blanks and signs. */
	if (strlen(text) != 17 || strspn(text, "0123456789abcdefABCDEF:") != 17 ||
	    sscanf(text, "%2x:%2x:%2x:%2x:%2x:%2x", &b[0], &b[1], &b[2], &b[3], &b[4], &b[5]) != 6)
		return -EINVAL;
	if (b[0] & 1)
		return -EINVAL;
	for (int i = 0; i < 6; i++)
		mac[i] = (uint8_t)b[i];
	return 0;
}

static int read_mac(const json_t *v, uint8_t mac[6], const char *key, struct err *e)
{
	const char *s = json_string_value(v);

	if (json_is_null(v))
		return 0;
	if (!s || vm_mac_parse(s, mac))
		return wrong(e, key, "a unicast MAC address such as 52:54:00:12:34:56");
	return 0;
}

static int read_disk(struct vm_disk *d, const json_t *o, struct err *e)
{
	const char *key;
	json_t *v;
	int rc = 0;

	if (!json_is_object(o))
		return wrong(e, "disks", "a list of objects");
	json_object_foreach((json_t *)(uintptr_t)o, key, v) {
		if (strcmp(key, "path") == 0)
			rc = get_string(v, d->path, sizeof d->path, "disks.path", e);
		else if (strcmp(key, "serial") == 0)
			rc = get_string(v, d->serial, sizeof d->serial, "disks.serial", e);
		else if (strcmp(key, "readonly") == 0)
			rc = get_bool(v, &d->readonly, "disks.readonly", e);
		else if (strcmp(key, "direct") == 0)
			rc = get_bool(v, &d->direct, "disks.direct", e);
		else
			rc = err_set(e, -EINVAL, "VM description: unknown key 'disks.%s'", key);
		if (rc)
			return rc;
	}
	return d->path[0] ? 0 : wrong(e, "disks.path", "given");
}

static int read_disks(struct vm_config *cfg, const json_t *v, const char *key, struct err *e)
{
	int rc = 0;

	if (!json_is_array(v) || json_array_size(v) > VM_MAX_DISKS)
		return wrong(e, key, "a list of at most 12 disks");
	cfg->disk_count = (unsigned)json_array_size(v);
	for (unsigned i = 0; i < cfg->disk_count && !rc; i++)
		rc = read_disk(&cfg->disks[i], json_array_get(v, i), e);
	return rc;
}

static int read_net(struct vm_net *n, const json_t *o, struct err *e)
{
	const char *key;
	json_t *v;
	int rc = 0;

	if (!json_is_object(o))
		return wrong(e, "nets", "a list of objects");
	json_object_foreach((json_t *)(uintptr_t)o, key, v) {
		if (strcmp(key, "tap") == 0)
			rc = get_string(v, n->tap, sizeof n->tap, "nets.tap", e);
		else if (strcmp(key, "mac") == 0)
			rc = read_mac(v, n->mac, "nets.mac", e);
		else
			rc = err_set(e, -EINVAL, "VM description: unknown key 'nets.%s'", key);
		if (rc)
			return rc;
	}
	return n->tap[0] ? 0 : wrong(e, "nets.tap", "given");
}

static int read_nets(struct vm_config *cfg, const json_t *v, const char *key, struct err *e)
{
	int rc = 0;

	if (!json_is_array(v) || json_array_size(v) > VM_MAX_NETS)
		return wrong(e, key, "a list of at most 8 networks");
	cfg->net_count = (unsigned)json_array_size(v);
	for (unsigned i = 0; i < cfg->net_count && !rc; i++)
		rc = read_net(&cfg->nets[i], json_array_get(v, i), e);
	return rc;
}

static int read_object(struct vm_config *cfg, const json_t *o, const struct field *fields,
		       size_t count, const char *where, struct err *e);

static int read_balloon(struct vm_config *cfg, const json_t *v, const char *key, struct err *e)
{
	static const struct field fields[] = {
		{ "deflate_on_oom", read_b_oom },
		{ "reporting", read_b_reporting },
		{ "hinting", read_b_hinting },
		{ "poison", read_b_poison },
		{ "stats_interval_s", read_b_interval },
	};

	if (!json_is_object(v))
		return wrong(e, key, "an object");
	return read_object(cfg, v, fields, ARRAY_LEN(fields), "balloon.", e);
}

static int read_s_path(struct vm_config *cfg, const json_t *v, const char *key, struct err *e)
{
	return get_string(v, cfg->swap.path, sizeof cfg->swap.path, "swap.path", e);
}

static int read_s_size(struct vm_config *cfg, const json_t *v, const char *key, struct err *e)
{
	if (json_is_integer(v) && json_integer_value(v) == 0)
		return 0; /* what suits the VM */
	return get_number(v, VM_SWAP_MIN_BYTES, INT64_MAX, &cfg->swap.size_bytes, "swap.size_bytes",
			  e);
}

static int read_swap(struct vm_config *cfg, const json_t *v, const char *key, struct err *e)
{
	static const struct field fields[] = {
		{ "path", read_s_path },
		{ "size_bytes", read_s_size },
		{ "encrypt", read_s_encrypt },
		{ "force", read_s_force },
	};
	int rc;

	if (!json_is_object(v))
		return wrong(e, key, "an object");
	rc = read_object(cfg, v, fields, ARRAY_LEN(fields), "swap.", e);
	if (rc)
		return rc;
	return cfg->swap.path[0] ? 0 : wrong(e, "swap.path", "given");
}

static int read_sh_group(struct vm_config *cfg, const json_t *v, const char *key, struct err *e)
{
	int rc = get_string(v, cfg->share.group, sizeof cfg->share.group, "share.group", e);

	if (rc || !cfg->share.group[0] || vm_name_check(cfg->share.group, NULL) == 0)
		return rc;
	return wrong(e, "share.group", "a name of letters, digits, '.', '_' and '-'");
}

static int read_sh_cpu(struct vm_config *cfg, const json_t *v, const char *key, struct err *e)
{
	return get_unsigned(v, 1, 100, &cfg->share.cpu_pct, "share.cpu_pct", e);
}

static int read_sh_pace(struct vm_config *cfg, const json_t *v, const char *key, struct err *e)
{
	return get_unsigned(v, 0, VM_SHARE_PACE_MAX, &cfg->share.pages_per_s, "share.pages_per_s", e);
}

static int read_share(struct vm_config *cfg, const json_t *v, const char *key, struct err *e)
{
	static const struct field fields[] = {
		{ "group", read_sh_group },
		{ "cpu_pct", read_sh_cpu },
		{ "pages_per_s", read_sh_pace },
	};

	if (!json_is_object(v))
		return wrong(e, key, "an object");
	return read_object(cfg, v, fields, ARRAY_LEN(fields), "share.", e);
}

static const struct field fields_top[] = {
	{ "v", read_version },
	{ "name", read_name },
	{ "memory_bytes", read_memory },
	{ "memory_limit_bytes", read_limit },
	{ "pool_cap_bytes", read_pool_cap },
	{ "pool_delta", read_pool_delta },
	{ "pool_acceleration", read_pool_accel },
	{ "pool_refine", read_pool_refine },
	{ "swap", read_swap },
	{ "share", read_share },
	{ "cpus", read_cpus },
	{ "kernel", read_kernel },
	{ "initrd", read_initrd },
	{ "cmdline", read_cmdline },
	{ "run_dir", read_run_dir },
	{ "disks", read_disks },
	{ "nets", read_nets },
	{ "balloon", read_balloon },
	{ "hugepages", read_hugepages },
	{ "rng", read_rng },
	{ "console", read_console },
	{ "die_with_parent", read_die },
	{ "reboot", read_reboot },
	{ "allow_emulated_kvm", read_emulated },
	{ "stop_timeout_s", read_stop_timeout },
};

static int read_object(struct vm_config *cfg, const json_t *o, const struct field *fields,
		       size_t count, const char *where, struct err *e)
{
	const char *key;
	json_t *v;

	json_object_foreach((json_t *)(uintptr_t)o, key, v) {
		size_t i = 0;
		int rc;

		while (i < count && strcmp(fields[i].key, key) != 0)
			i++;
		if (i == count)
			return err_set(e, -EINVAL, "VM description: unknown key '%s%s'", where, key);
		rc = fields[i].read(cfg, v, key, e);
		if (rc)
			return rc;
	}
	return 0;
}

int vm_config_parse(struct vm_config *cfg, const char *json, size_t len, struct err *e)
{
	json_error_t je;
	json_t *root = json_loadb(json, len, JSON_REJECT_DUPLICATES, &je);
	int rc;

	*cfg = (struct vm_config){
		.memory_bytes = GiB, .cpus = 1, .rng = true, .console = true, .reboot = true,
		.pool_refine = true, .stop_timeout_s = 30,
		.balloon = { .deflate_on_oom = true, .reporting = true, .hinting = true,
			     .poison = true, .stats_interval_s = 5 },
	};
	for (unsigned i = 0; i < VM_MAX_NETS; i++)
		cfg->nets[i].fd = -1;
	if (!root)
		return err_set(e, -EINVAL, "VM description: line %d, column %d: %s", je.line,
			       je.column, je.text);
	rc = json_is_object(root) ? read_object(cfg, root, fields_top, ARRAY_LEN(fields_top), "", e)
				  : wrong(e, "description", "an object");
	if (!rc && !cfg->name[0])
		rc = wrong(e, "name", "given");
	if (!rc && !cfg->kernel[0])
		rc = wrong(e, "kernel", "given");
	if (!rc && !cfg->run_dir[0])
		rc = wrong(e, "run_dir", "given");
	json_decref(root);
	return rc;
}
