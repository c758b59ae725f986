/*
 * A host's configuration.  A byte below 128 is itself, one above stands for a piece of YAML, so
 * that whole files come together quickly.
 *
 * Whatever the file says: it is refused with errors that have a place, or it is a configuration
 * that brim-vmm understands, that has an order to start in, and that means the same when it is
 * shown and read again.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "host/config/config.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const char *const pieces[] = {
	"vms:\n  - name: a\n    kernel: /k\n", "\n  - name: b\n    kernel: k\n", "host:\n  ", "policy:\n  ",
	"defaults:\n  ", "\n", "\n  ", "\n    ", "\n      ", "\n  - ", "{", "}", "[", "]", ", ", ": ", "- ",
	"\"", "'", "# ", "&a ", "*a", "<<", "---\n", "|\n", "memory: ", "reservation: ", "limit: ", "shares: ",
	"count: ", "count: 3\n    ", "cpus: ", "kernel: ", "initrd: ", "cmdline: ", "append: ", "disks: [", "disks: [{path: ",
	"readonly: on", "serial: ", "nets: [", "nets: [{tap: ", "mac: \"52:54:00:12:34:56\"", "hugepages: ",
	"swap: {", "path: ", "size: ", "encrypt: ", "balloon: {", "floor: ", "reporting: ", "stats_interval: ",
	"pool: {", "cap: ", "delta: ", "share_group: ", "share_cpu: ", "share_pace: ", "autostart: ", "after: ", "after: [a, b]",
	"restart: ", "restart_delay: ", "restart_tries: ", "stop_timeout: ", "swap: [{dir: /s, size: 1G}]",
	"reserve: ", "start_parallel: 3", "sharing: {", "store_size: ", "api: {", "listen: ", "idle_tax: ", "clear_enter: ",
	"clear_leave: ", "balloon_from: ", "period: ", "refault: ", "1G", "2M", "64M", "4G", "50%", "100%", "0",
	"1", "1.5", "-1", "5s", "250ms", "1h", "on", "off", "none", "auto", "never", "soft", "~", "${name}", "${n}",
	"${V}", "${U}", "${U:-x}", "$${", "9223372036854775807", "99999999999999999999G", "\\u0001", "\\x7f",
	"\\u2028", "\\0", "\xff", "\xc3\xa9", "\xf0\x9f\x98\x80", "\t", "a", "b",
};

static const char *variable(void *ctx, const char *name)
{
	return strcmp(name, "V") == 0 ? "value" : NULL;
}

static const struct host_config_env env = {
	.physical_bytes = 16 * GiB, .host_name = "fuzz", .variable = variable,
};

static void check_errors(const struct host_config_errors *errors)
{
	char line[1024];

	VERIFY(errors->count > 0);
	for (size_t i = 0; i < errors->count; i++) {
		const struct host_config_error *e = &errors->items[i];

		VERIFY(*e->text && !strpbrk(e->text, "\n\r") && !strpbrk(e->key, "\n\r"));
		VERIFY(i == 0 || e[-1].line <= e->line);
		VERIFY(host_config_error_format(line, sizeof(line), "f", e) == line);
	}
}

static void check_vm(const struct host_vm *vm)
{
	static struct vm_config parsed;
	json_t *o = host_vm_description(vm, "/run/brim/x");
	char *text = json_dumps(o, 0);
	struct err e = { "" };

	VERIFY(text && vm_config_parse(&parsed, text, strlen(text), &e) == 0);
	VERIFY(strcmp(parsed.name, vm->name) == 0 && parsed.memory_bytes == vm->memory_bytes);
	VERIFY(vm->reservation_bytes <= (vm->limit_bytes ? vm->limit_bytes : vm->memory_bytes));
	VERIFY(vm->limit_bytes <= vm->memory_bytes && vm->balloon_floor_bytes <= vm->memory_bytes);
	free(text);
	json_decref(o);
}

static void check_order(const struct host_config *cfg)
{
	bool is_started[HOST_VMS_MAX] = { false };

	VERIFY(cfg->vm_count <= HOST_VMS_MAX);
	for (size_t i = 0; i < cfg->vm_count; i++) {
		uint32_t n = cfg->start_order[i];

		VERIFY(n < cfg->vm_count && !is_started[n]);
		is_started[n] = true;
		for (size_t j = 0; j < cfg->vms[n].after_count; j++)
			VERIFY(is_started[cfg->vms[n].after[j]]);
	}
}

static void check_shown(const struct host_config *cfg)
{
	struct host_config_errors errors;
	struct host_config *again = NULL;
	struct host_change *changes = NULL;
	size_t len = 0, n = 0;
	char *text = NULL;
	FILE *out = open_memstream(&text, &len);

	VERIFY(out);
	host_config_show(out, cfg, NULL, HOST_SHOW_ORIGINS);
	fclose(out);
	if (host_config_parse(text, len, "/etc/brim/f.yaml", &env, &again, &errors)) {
		fprintf(stderr, "%s\n%s\n", text, errors.items[0].text);
		VERIFY(!"what is shown is not right");
	}
	VERIFY(host_config_compare(cfg, again, &changes, &n) == 0 && n == 0);
	free(changes);
	host_config_errors_fini(&errors);
	host_config_destroy(&again);
	free(text);
}

static void check(const struct host_config *cfg)
{
	for (size_t i = 0; i < cfg->vm_count && i < 16; i++)
		check_vm(&cfg->vms[i]);
	check_order(cfg);
	if (cfg->vm_count <= 16)
		check_shown(cfg);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct host_config_errors errors;
	struct host_config *cfg = NULL;
	char *text = malloc(size * 64 + 1), *exact;
	size_t len = 0;

	VERIFY(text);
	for (size_t i = 0; i < size; i++) {
		const char *p = pieces[data[i] % 128 % ARRAY_LEN(pieces)];
		size_t n = data[i] < 128 ? 1 : strlen(p);

		memcpy(text + len, data[i] < 128 ? (const char *)&data[i] : p, n);
		len += n;
	}
	exact = realloc(text, len ? len : 1); /* so that reading on is seen */
	VERIFY(exact);
	if (host_config_parse(exact, len, "/etc/brim/f.yaml", &env, &cfg, &errors) == 0) {
		VERIFY(errors.count == 0);
		check(cfg);
	} else {
		VERIFY(!cfg);
		check_errors(&errors);
	}
	host_config_errors_fini(&errors);
	host_config_destroy(&cfg);
	free(exact);
	return 0;
}
