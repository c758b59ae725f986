/*
 * The keys of `host`.  See internal.h for what a row is.  const data only.
 */
#include "host/config/internal.h"

#define AT(member) .at = offsetof(struct host_host, member), \
	.bytes = sizeof(((struct host_host *)0)->member)
#define SWAP_AT(member) .at = offsetof(struct host_swap, member), \
	.bytes = sizeof(((struct host_swap *)0)->member)
#define MS_NS ((uint64_t)1000000)
#define MINUTE_MS ((uint64_t)60000)

static const char *const log_levels[] = {
	[LOG_ERROR] = "error", [LOG_WARN] = "warning", [LOG_INFO] = "info", [LOG_DEBUG] = "debug", NULL,
};

const struct config_key keys_host[] = {
	{ .name = "name", .type = KEY_NAME, AT(name), .def_text = "the host's name",
	  .apply = HOST_APPLY_LIVE, .help = "what this host is called where several are looked at" },
	{ .name = "memory", .type = KEY_SIZE, AT(memory_bytes), .percent = PERCENT_PHYSICAL,
	  .min = 64 * MiB, .max = 64 * TiB, .zero = "auto", .def = "auto",
	  .def_text = "auto: all but the reserve", .apply = HOST_APPLY_LIVE,
	  .help = "how much of the host's memory brim may use, for VMs, what they share, their "
		  "processes and its own tables" },
	{ .name = "reserve", .type = KEY_SIZE, AT(reserve_bytes), .percent = PERCENT_PHYSICAL,
	  .max = 64 * TiB, .def = "5%", .apply = HOST_APPLY_LIVE,
	  .help = "how much of it is never brim's: for the host's kernel and everything else that runs "
		  "there" },
	{ .name = "swap", .type = KEY_LIST, AT(swaps), .count_at = offsetof(struct host_host, swap_count),
	  .sub = SECTION_SWAP, .max = HOST_SWAPS_MAX, .apply = HOST_APPLY_LIVE,
	  .help = "directories for the swap files of VMs, and how large these may be together. A VM that "
		  "names no file of its own gets NAME.swap in the first. What VMs are promised beyond the "
		  "host's memory must find room there: it is reserved when a VM starts" },
	{ .name = "start_parallel", .type = KEY_UINT, AT(start_parallel), .min = 1, .max = HOST_VMS_MAX,
	  .def = "4", .apply = HOST_APPLY_LIVE, .help = "how many VMs may boot at a time" },
	{ .name = "start_gap", .type = KEY_TIME, AT(start_gap_ms), .unit = MS_NS, .max = 10 * MINUTE_MS,
	  .def = "200ms", .apply = HOST_APPLY_LIVE,
	  .help = "how long to wait between the start of one VM and of the next" },
	{ .name = "log_level", .type = KEY_CHOICE, AT(log_level), .choices = log_levels, .def = "info",
	  .apply = HOST_APPLY_LIVE, .help = "how much brimd writes into its log" },
	{ .name = "sharing.store_size", .type = KEY_SIZE, AT(store_bytes), .percent = PERCENT_PHYSICAL,
	  .min = 2 * MiB, .max = 64 * TiB, .zero = "auto", .def = "auto",
	  .def_text = "auto: the host's memory", .apply = HOST_APPLY_RESTART_BRIMD,
	  .help = "the most that the shared pages of a share group may be" },
	{ .name = "sharing.index_size", .type = KEY_SIZE, AT(index_bytes), .percent = PERCENT_PHYSICAL,
	  .min = 2 * MiB, .max = 64 * TiB, .zero = "auto", .def = "auto",
	  .def_text = "auto: the host's memory", .apply = HOST_APPLY_RESTART_BRIMD,
	  .help = "how much of VMs' memory is remembered by its hashes" },
	{ .name = "sharing.recall_after", .type = KEY_TIME, AT(recall_after_ms), .unit = MS_NS,
	  .min = 1000, .max = 1440 * MINUTE_MS, .def = "1m", .apply = HOST_APPLY_RESTART_BRIMD,
	  .help = "a shared page that one VM alone has used for so long is asked back" },
	{ .name = "api.listen", .type = KEY_TEXT, AT(api_listen), .def_text = "none",
	  .apply = HOST_APPLY_RESTART_BRIMD,
	  .help = "ADDRESS:PORT where the HTTP API, metrics and the web page are served besides their Unix "
		  "socket, such as 127.0.0.1:9327; needs api.token_file" },
	{ .name = "api.token_file", .type = KEY_PATH, AT(api_token_file), .def_text = "none",
	  .apply = HOST_APPLY_RESTART_BRIMD,
	  .help = "a file that only brimd can read, whose first line a client of api.listen must know" },
};
const size_t keys_host_count = ARRAY_LEN(keys_host);

const struct config_key keys_swap[] = {
	{ .name = "dir", .type = KEY_PATH, SWAP_AT(dir), .is_required = true, .apply = HOST_APPLY_LIVE,
	  .help = "where; on a file system that does not copy on write, or with `chattr +C`" },
	{ .name = "size", .type = KEY_SIZE, SWAP_AT(size_bytes), .min = VM_SWAP_MIN_BYTES,
	  .max = 64 * TiB, .percent = PERCENT_PHYSICAL, .is_required = true, .apply = HOST_APPLY_LIVE,
	  .help = "the most that all swap files there may be together; those of all VMs count, started or "
		  "not" },
};
const size_t keys_swap_count = ARRAY_LEN(keys_swap);
