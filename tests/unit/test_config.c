/*
 * vmm/config.c: the description of a VM.  For every key: a good value arrives, a
 * wrong one is refused in a sentence that names it.
 */
#include <criterion/criterion.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "vmm/vmm.h"

/* What must be given, without the closing brace. */
#define GIVEN "{\"name\":\"a\",\"kernel\":\"/k\",\"run_dir\":\"/r\""

static struct vm_config cfg; /* large: off the stack */

static int parse(const char *json, struct err *e)
{
	return vm_config_parse(&cfg, json, strlen(json), e);
}

static void good(const char *more)
{
	struct err e = { "" };
	char json[8192];

	snprintf(json, sizeof json, GIVEN "%s%s}", *more ? "," : "", more);
	cr_assert_eq(parse(json, &e), 0, "%s: %s", json, e.msg);
}

static void refused(const char *json, const char *named)
{
	struct err e = { "" };

	cr_assert_lt(parse(json, &e), 0, "%s", json);
	cr_assert(strstr(e.msg, named), "%s: '%s' is not in: %s", json, named, e.msg);
	cr_assert_null(strchr(e.msg, '\n'));
}

static void bad(const char *more, const char *named)
{
	char json[8192];

	snprintf(json, sizeof json, GIVEN ",%s}", more);
	refused(json, named);
}

/* ---- good ------------------------------------------------------------------ */

Test(config, only_what_is_needed_leaves_defaults)
{
	good("");
	cr_assert_str_eq(cfg.name, "a");
	cr_assert_str_eq(cfg.kernel, "/k");
	cr_assert_str_eq(cfg.run_dir, "/r");
	cr_assert_eq(cfg.memory_bytes, GiB);
	cr_assert_eq(cfg.cpus, 1);
	cr_assert_eq(cfg.stop_timeout_s, 30);
	cr_assert(cfg.rng && cfg.console && cfg.reboot);
	cr_assert(!cfg.die_with_parent && !cfg.allow_emulated_kvm);
	cr_assert(cfg.balloon.deflate_on_oom && cfg.balloon.reporting && cfg.balloon.hinting);
	cr_assert_eq(cfg.balloon.stats_interval_s, 5);
	cr_assert_str_eq(cfg.initrd, "");
	cr_assert_eq(cfg.disk_count + cfg.net_count, 0);
}

Test(config, every_scalar_key_arrives)
{
	good("\"v\":1,\"memory_bytes\":1073741824000,\"cpus\":16,\"initrd\":\"/i\","
	     "\"cmdline\":\"quiet\",\"hugepages\":\"never\",\"rng\":false,\"console\":false,"
	     "\"die_with_parent\":true,\"reboot\":false,\"allow_emulated_kvm\":true,"
	     "\"stop_timeout_s\":0");
	cr_assert_eq(cfg.memory_bytes, 1073741824000);
	cr_assert_eq(cfg.cpus, 16);
	cr_assert_str_eq(cfg.initrd, "/i");
	cr_assert_str_eq(cfg.cmdline, "quiet");
	cr_assert_eq(cfg.huge, RAM_HUGE_NEVER);
	cr_assert(!cfg.rng && !cfg.console && !cfg.reboot);
	cr_assert(cfg.die_with_parent && cfg.allow_emulated_kvm);
	cr_assert_eq(cfg.stop_timeout_s, 0);
}

Test(config, every_balloon_key_arrives)
{
	good("\"balloon\":{\"deflate_on_oom\":false,\"reporting\":false,\"hinting\":false,"
	     "\"poison\":false,\"stats_interval_s\":3600}");
	cr_assert(!cfg.balloon.deflate_on_oom && !cfg.balloon.reporting);
	cr_assert(!cfg.balloon.hinting && !cfg.balloon.poison);
	cr_assert_eq(cfg.balloon.stats_interval_s, 3600);
}

Test(config, disks_and_nets_arrive_in_order)
{
	static const uint8_t mac[6] = { 0x52, 0x54, 0, 0xAB, 0xcd, 0xef };

	good("\"disks\":[{\"path\":\"/a\",\"serial\":\"12345678901234567890\",\"readonly\":true},"
	     "{\"path\":\"/b\",\"direct\":true,\"serial\":null}],"
	     "\"nets\":[{\"tap\":\"t0\",\"mac\":\"52:54:00:AB:cd:ef\"},{\"tap\":\"t1\",\"mac\":null}]");
	cr_assert_eq(cfg.disk_count, 2);
	cr_assert_str_eq(cfg.disks[0].path, "/a");
	cr_assert_str_eq(cfg.disks[0].serial, "12345678901234567890");
	cr_assert(cfg.disks[0].readonly && !cfg.disks[0].direct);
	cr_assert_str_eq(cfg.disks[1].path, "/b");
	cr_assert(!cfg.disks[1].readonly && cfg.disks[1].direct);
	cr_assert_eq(cfg.net_count, 2);
	cr_assert_str_eq(cfg.nets[0].tap, "t0");
	cr_assert_arr_eq(cfg.nets[0].mac, mac, 6);
	cr_assert_arr_eq(cfg.nets[1].mac, ((uint8_t[6]){ 0 }), 6);
}

Test(config, hugepages_every_name_arrives)
{
	good("\"hugepages\":\"auto\"");
	cr_assert_eq(cfg.huge, RAM_HUGE_AUTO);
	good("\"hugepages\":\"always\"");
	cr_assert_eq(cfg.huge, RAM_HUGE_ALWAYS);
}

/* ---- wrong ------------------------------------------------------------------ */

Test(config, wrong_type_refused_by_name)
{
	static const char *const strings[] = { "initrd", "cmdline", "hugepages" };
	static const char *const numbers[] = { "v", "memory_bytes", "memory_limit_bytes", "cpus",
					       "stop_timeout_s" };
	static const char *const bools[] = { "rng", "console", "die_with_parent", "reboot",
					     "allow_emulated_kvm" };
	static const char *const lists[] = { "disks", "nets" };
	char more[128];

#define EACH(table, value)                                                             \
	for (size_t i = 0; i < ARRAY_LEN(table); i++) {                                \
		snprintf(more, sizeof more, "\"%s\":%s", table[i], value);             \
		bad(more, table[i]);                                                   \
	}
	EACH(strings, "7")
	EACH(strings, "{}")
	EACH(numbers, "\"7\"")
	EACH(numbers, "1.5")
	EACH(numbers, "-1")
	EACH(numbers, "null")
	EACH(numbers, "true")
	EACH(bools, "1")
	EACH(bools, "\"true\"")
	EACH(bools, "null")
	EACH(lists, "{}")
	EACH(lists, "[7]")
	EACH(lists, "null")
#undef EACH
	bad("\"balloon\":true", "balloon");
	bad("\"balloon\":{\"reporting\":1}", "reporting");
	bad("\"balloon\":{\"deflate_on_oom\":\"\"}", "deflate_on_oom");
	bad("\"balloon\":{\"hinting\":[]}", "hinting");
	bad("\"balloon\":{\"poison\":null}", "poison");
	bad("\"balloon\":{\"stats_interval_s\":false}", "stats_interval_s");
}

Test(config, given_keys_of_wrong_type_refused_by_name)
{
	refused("{\"name\":7,\"kernel\":\"/k\",\"run_dir\":\"/r\"}", "name");
	refused("{\"name\":\"a\",\"kernel\":[],\"run_dir\":\"/r\"}", "kernel");
	refused("{\"name\":\"a\",\"kernel\":\"/k\",\"run_dir\":true}", "run_dir");
}

Test(config, out_of_range_refused_by_name)
{
	bad("\"v\":2", "v");
	bad("\"cpus\":0", "cpus");
	bad("\"cpus\":17", "cpus");
	bad("\"memory_bytes\":0", "memory_bytes");
	bad("\"memory_limit_bytes\":16777215", "memory_limit_bytes");
	bad("\"stop_timeout_s\":3601", "stop_timeout_s");
	bad("\"balloon\":{\"stats_interval_s\":3601}", "stats_interval_s");
	bad("\"hugepages\":\"sometimes\"", "hugepages");
}

Test(config, memory_limit_of_0_is_none_and_the_least_is_taken)
{
	good("\"memory_limit_bytes\":0");
	cr_assert_eq(cfg.memory_limit_bytes, 0);
	good("\"memory_limit_bytes\":16777216");
	cr_assert_eq(cfg.memory_limit_bytes, 16 * MiB);
}

Test(config, swap_and_pool_cap_arrive)
{
	good("\"pool_cap_bytes\":16777216,\"swap\":{\"path\":\"/s\",\"size_bytes\":5242880,"
	     "\"encrypt\":true,\"force\":true}");
	cr_assert_eq(cfg.pool_cap_bytes, 16 * MiB);
	cr_assert_str_eq(cfg.swap.path, "/s");
	cr_assert_eq(cfg.swap.size_bytes, 5 * MiB);
	cr_assert(cfg.swap.encrypt && cfg.swap.force);
	good("\"pool_cap_bytes\":0,\"swap\":{\"path\":\"/s\",\"size_bytes\":0}");
	cr_assert_eq(cfg.pool_cap_bytes + cfg.swap.size_bytes, 0);
	cr_assert(!cfg.swap.encrypt && !cfg.swap.force);
	good("");
	cr_assert_str_eq(cfg.swap.path, "");
}

Test(config, pool_settings_arrive)
{
	good("\"pool_delta\":\"off\",\"pool_acceleration\":64");
	cr_assert_eq(cfg.pool_delta, SWAP_DELTA_OFF);
	cr_assert_eq(cfg.pool_acceleration, 64);
	good("\"pool_delta\":\"fast\",\"pool_acceleration\":1");
	cr_assert_eq(cfg.pool_delta, SWAP_DELTA_FAST);
	good("\"pool_delta\":\"small\"");
	cr_assert_eq(cfg.pool_delta, SWAP_DELTA_SMALL);
	good("");
	cr_assert_eq(cfg.pool_delta, SWAP_DELTA_DEFAULT);
	cr_assert_eq(cfg.pool_acceleration, 0);
}

Test(config, pool_settings_wrong_refused_by_name)
{
	bad("\"pool_delta\":\"on\"", "pool_delta");
	bad("\"pool_delta\":true", "pool_delta");
	bad("\"pool_acceleration\":0", "pool_acceleration");
	bad("\"pool_acceleration\":65", "pool_acceleration");
	bad("\"pool_acceleration\":\"1\"", "pool_acceleration");
}

Test(config, pool_refine_on_unless_switched_off)
{
	good("");
	cr_assert(cfg.pool_refine);
	good("\"pool_refine\":false");
	cr_assert_not(cfg.pool_refine);
	good("\"pool_refine\":true");
	cr_assert(cfg.pool_refine);
	bad("\"pool_refine\":1", "pool_refine");
}

Test(config, share_arrives)
{
	good("\"share\":{\"group\":\"blue\",\"cpu_pct\":25,\"pages_per_s\":5000}");
	cr_assert_str_eq(cfg.share.group, "blue");
	cr_assert_eq(cfg.share.cpu_pct, 25);
	cr_assert_eq(cfg.share.pages_per_s, 5000);
	good("\"share\":{\"group\":null}");
	cr_assert_str_eq(cfg.share.group, "");
	cr_assert_eq(cfg.share.cpu_pct, 0);
	cr_assert_eq(cfg.share.pages_per_s, 0);
	good("\"share\":{\"pages_per_s\":0}");
}

Test(config, share_wrong_refused_by_name)
{
	bad("\"share\":\"blue\"", "share");
	bad("\"share\":{\"group\":\"a b\"}", "share.group");
	bad("\"share\":{\"group\":\"-a\"}", "share.group");
	bad("\"share\":{\"group\":\"0123456789012345678901234567890123456789012345678901234567890123\"}",
	    "share.group");
	bad("\"share\":{\"cpu_pct\":0}", "share.cpu_pct");
	bad("\"share\":{\"cpu_pct\":101}", "share.cpu_pct");
	bad("\"share\":{\"pages_per_s\":-1}", "share.pages_per_s");
	bad("\"share\":{\"pages_per_s\":1000000001}", "share.pages_per_s");
	bad("\"share\":{\"seed\":1}", "share.seed");
}

Test(config, swap_wrong_refused_by_name)
{
	bad("\"pool_cap_bytes\":16777215", "pool_cap_bytes");
	bad("\"pool_cap_bytes\":\"1G\"", "pool_cap_bytes");
	bad("\"swap\":\"/s\"", "swap");
	bad("\"swap\":{}", "swap.path");
	bad("\"swap\":{\"path\":\"\"}", "swap.path");
	bad("\"swap\":{\"path\":7}", "swap.path");
	bad("\"swap\":{\"path\":\"/s\",\"size_bytes\":5242879}", "swap.size_bytes");
	bad("\"swap\":{\"path\":\"/s\",\"size_bytes\":true}", "swap.size_bytes");
	bad("\"swap\":{\"path\":\"/s\",\"encrypt\":1}", "encrypt");
	bad("\"swap\":{\"path\":\"/s\",\"force\":null}", "force");
	bad("\"swap\":{\"path\":\"/s\",\"key\":\"secret\"}", "swap.key");
}

/* Too large for the parser itself: it can only say where. */
Test(config, number_beyond_64_bits_refused_by_place)
{
	bad("\"memory_bytes\":99999999999999999999", "line 1");
}

static void too_long(const char *key, size_t len)
{
	char *value = calloc(1, len + 1), more[6000];

	memset(value, 'x', len);
	snprintf(more, sizeof more, "\"%s\":\"%s\"", key, value);
	bad(more, key);
	value[len - 1] = '\0';
	snprintf(more, sizeof more, "\"%s\":\"%s\"", key, value);
	good(more);
	free(value);
}

Test(config, string_too_long_refused_by_name)
{
	too_long("initrd", PATH_MAX);
	too_long("cmdline", VM_CMDLINE_MAX);
	bad("\"disks\":[{\"path\":\"/d\",\"serial\":\"123456789012345678901\"}]", "disks.serial");
	bad("\"nets\":[{\"tap\":\"0123456789abcdef\"}]", "nets.tap");
}

Test(config, missing_key_refused_by_name)
{
	refused("{\"kernel\":\"/k\",\"run_dir\":\"/r\"}", "name");
	refused("{\"name\":\"a\",\"run_dir\":\"/r\"}", "kernel");
	refused("{\"name\":\"a\",\"kernel\":\"/k\"}", "run_dir");
	refused("{\"name\":null,\"kernel\":\"/k\",\"run_dir\":\"/r\"}", "name");
	bad("\"disks\":[{}]", "disks.path");
	bad("\"disks\":[{\"path\":\"\"}]", "disks.path");
	bad("\"nets\":[{\"mac\":null}]", "nets.tap");
}

Test(config, unknown_key_refused_by_name)
{
	bad("\"memroy_bytes\":1", "memroy_bytes");
	bad("\"\":1", "''");
	bad("\"balloon\":{\"report\":true}", "balloon.report");
	bad("\"disks\":[{\"path\":\"/d\",\"ro\":true}]", "disks.ro");
	bad("\"nets\":[{\"tap\":\"t\",\"ip\":\"\"}]", "nets.ip");
}

Test(config, duplicate_key_refused_by_name)
{
	bad("\"cpus\":1,\"cpus\":2", "cpus");
	bad("\"balloon\":{\"poison\":true,\"poison\":true}", "poison");
}

Test(config, too_many_devices_refused_by_name)
{
	char disks[512] = "\"disks\":[{\"path\":\"/d\"}", nets[512] = "\"nets\":[{\"tap\":\"t\"}";

	for (unsigned i = 1; i < VM_MAX_DISKS; i++)
		strncat(disks, ",{\"path\":\"/d\"}", sizeof disks - strlen(disks) - 1);
	for (unsigned i = 1; i < VM_MAX_NETS; i++)
		strncat(nets, ",{\"tap\":\"t\"}", sizeof nets - strlen(nets) - 1);
	strncat(disks, "]", 2);
	strncat(nets, "]", 2);
	good(disks);
	good(nets);
	disks[strlen(disks) - 1] = nets[strlen(nets) - 1] = '\0';
	strncat(disks, ",{\"path\":\"/d\"}]", 32);
	strncat(nets, ",{\"tap\":\"t\"}]", 32);
	bad(disks, "disks");
	bad(nets, "nets");
}

Test(config, malformed_mac_refused_by_name)
{
	static const char *const macs[] = {
		"", "52:54:00:12:34", "52:54:00:12:34:56:78", "52:54:00:12:34:5", "52-54-00-12-34-56",
		"525400123456", "52:54:00:12:34:5g", " 2:54:00:12:34:56", "-2:54:00:12:34:56",
		"+2:54:00:12:34:56", "0x:54:00:12:34:56", "52:54:00:12:34:56\\n", "52::5400:12:34:56",
		"53:54:00:12:34:56", "ff:ff:ff:ff:ff:ff",
	};
	char more[128];

	for (size_t i = 0; i < ARRAY_LEN(macs); i++) {
		snprintf(more, sizeof more, "\"nets\":[{\"tap\":\"t\",\"mac\":\"%s\"}]", macs[i]);
		bad(more, "nets.mac");
	}
}

/* ---- not JSON, or not all of it -------------------------------------------- */

Test(config, not_an_object_refused)
{
	refused("[]", "object");
	refused("[" GIVEN "}]", "object");
}

Test(config, truncated_anywhere_refused_with_place)
{
	static const char json[] = GIVEN ",\"cpus\":2,\"disks\":[{\"path\":\"/d\",\"readonly\":true}],"
		"\"balloon\":{\"poison\":false,\"stats_interval_s\":7},\"nets\":[{\"tap\":\"t0\"}]}";
	struct err e = { "" };

	cr_assert_eq(vm_config_parse(&cfg, json, sizeof json - 1, &e), 0, "%s", e.msg);
	for (size_t len = 0; len < sizeof json - 1; len++) {
		/* exactly as long, so that reading on is seen by a sanitizer */
		char *part = malloc(len ? len : 1);

		memcpy(part, json, len);
		e.msg[0] = '\0';
		cr_assert_lt(vm_config_parse(&cfg, part, len, &e), 0, "%zu bytes", len);
		cr_assert(strstr(e.msg, "line 1"), "%s", e.msg);
		free(part);
	}
}

Test(config, text_after_the_end_refused)
{
	refused(GIVEN "} x", "line 1");
	refused(GIVEN "}{}", "line 1");
}

Test(config, embedded_nul_refused)
{
	static const char raw[] = GIVEN ",\"cmdline\":\"a\0b\"}";
	struct err e = { "" };

	cr_assert_lt(vm_config_parse(&cfg, raw, sizeof raw - 1, &e), 0);
	cr_assert(strstr(e.msg, "line 1"), "%s", e.msg);
	bad("\"cmdline\":\"a\\u0000b\"", "line 1");
	bad("\"cm\\u0000d\":1", "line 1");
}

Test(config, bytes_that_are_no_utf8_refused)
{
	bad("\"cmdline\":\"\xff\xfe\"", "line 1");
	bad("\"cmdline\":\"\xc3\"", "line 1");
}

Test(config, nested_without_end_refused)
{
	enum { DEPTH = 100000 };
	char *json = malloc(DEPTH + 1);

	memset(json, '[', DEPTH);
	json[DEPTH] = '\0';
	refused(json, "line 1");
	free(json);
}
