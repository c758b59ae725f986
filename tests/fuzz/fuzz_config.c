/*
 * The JSON of a VM's description.  A byte below 128 is itself, one above stands
 * for a piece of JSON, so that whole descriptions come together quickly.
 */
#include <stdlib.h>
#include <string.h>

#include "vmm/vmm.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const char *const pieces[] = {
	"{\"name\":\"a\",\"kernel\":\"/k\",\"run_dir\":\"/r\",", "{", "}", "[", "]", ",", ":",
	"\"v\":", "\"name\":", "\"memory_bytes\":", "\"cpus\":", "\"kernel\":", "\"initrd\":",
	"\"cmdline\":", "\"run_dir\":", "\"disks\":[{\"path\":\"/d\",", "\"nets\":[{\"tap\":\"t\",",
	"\"balloon\":{", "\"share\":{", "\"group\":", "\"cpu_pct\":", "\"pages_per_s\":", "\"hugepages\":", "\"rng\":", "\"console\":", "\"die_with_parent\":",
	"\"reboot\":", "\"allow_emulated_kvm\":", "\"stop_timeout_s\":", "\"path\":", "\"serial\":",
	"\"readonly\":", "\"direct\":", "\"tap\":", "\"mac\":", "\"52:54:00:12:34:56\"",
	"\"deflate_on_oom\":", "\"reporting\":", "\"hinting\":", "\"poison\":",
	"\"stats_interval_s\":", "true", "false", "null", "\"auto\"", "\"\"", "0", "1", "16", "-1",
	"1.5", "9223372036854775807", "9223372036854775808", "\\u0000", "\\ud800", "\xff", "\xc3\xa9",
};

static void check(const struct vm_config *cfg)
{
	VERIFY(cfg->cpus >= 1 && cfg->cpus <= VM_MAX_CPUS && cfg->memory_bytes > 0);
	VERIFY(cfg->name[0] && cfg->kernel[0] && cfg->run_dir[0]);
	VERIFY(memchr(cfg->name, 0, sizeof cfg->name) && memchr(cfg->cmdline, 0, sizeof cfg->cmdline));
	VERIFY(cfg->share.cpu_pct <= 100 && strlen(cfg->share.group) < sizeof cfg->share.group);
	VERIFY(cfg->disk_count <= VM_MAX_DISKS && cfg->net_count <= VM_MAX_NETS);
	for (unsigned i = 0; i < cfg->disk_count; i++)
		VERIFY(cfg->disks[i].path[0] &&
		       memchr(cfg->disks[i].serial, 0, sizeof cfg->disks[i].serial));
	for (unsigned i = 0; i < cfg->net_count; i++)
		VERIFY(cfg->nets[i].tap[0] && !(cfg->nets[i].mac[0] & 1));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static struct vm_config cfg;
	struct err e = { "" };
	size_t len = 0;
	char *json, *exact;

	json = malloc(size * 64 + 1);
	VERIFY(json);
	for (size_t i = 0; i < size; i++) {
		const char *p = pieces[data[i] % 128 % ARRAY_LEN(pieces)];
		size_t n = data[i] < 128 ? 1 : strlen(p);

		memcpy(json + len, data[i] < 128 ? (const char *)&data[i] : p, n);
		len += n;
	}
	exact = realloc(json, len ? len : 1); /* so that reading on is seen */
	VERIFY(exact);
	if (vm_config_parse(&cfg, exact, len, &e) == 0)
		check(&cfg);
	else
		VERIFY(strncmp(e.msg, "VM description: ", 16) == 0 && !strchr(e.msg, '\n'));
	free(exact);
	return 0;
}
