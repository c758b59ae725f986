/*
 * The keys of a VM, and of `defaults`.  Order counts: what a row takes a percentage of comes
 * before it.  See internal.h for what a row is.  const data only.
 */
#include "host/config/internal.h"

#define AT(member) .at = offsetof(struct host_vm, member), \
	.bytes = sizeof(((struct host_vm *)0)->member)
#define LIST_AT(member, count) AT(member), .count_at = offsetof(struct host_vm, count)
#define DISK_AT(member) .at = offsetof(struct host_disk, member), \
	.bytes = sizeof(((struct host_disk *)0)->member), .apply = HOST_APPLY_RESTART_VM
#define NET_AT(member) .at = offsetof(struct host_net, member), \
	.bytes = sizeof(((struct host_net *)0)->member), .apply = HOST_APPLY_RESTART_VM
#define LIVE .apply = HOST_APPLY_LIVE
#define RESTART .apply = HOST_APPLY_RESTART_VM
#define MS_NS ((uint64_t)1000000)
#define S_NS ((uint64_t)1000000000)
#define MINUTE_MS ((uint64_t)60000)

static const char *const deltas[] = {
	[SWAP_DELTA_OFF - 1] = "off", [SWAP_DELTA_FAST - 1] = "fast", [SWAP_DELTA_SMALL - 1] = "small",
	NULL,
};
static const char *const huge[] = {
	[RAM_HUGE_AUTO] = "auto", [RAM_HUGE_ALWAYS] = "always", [RAM_HUGE_NEVER] = "never", NULL,
};
static const char *const restarts[] = {
	[HOST_RESTART_NEVER] = "never", [HOST_RESTART_ON_FAILURE] = "on-failure",
	[HOST_RESTART_ALWAYS] = "always", NULL,
};

const struct config_key keys_vm[] = {
	{ .name = "name", .type = KEY_NAME, AT(name), .own_only = true, .is_required = true,
	  .apply = HOST_APPLY_RESTART_VM, .json = "name",
	  .help = "what the VM is called: letters, digits, `.`, `_` and `-`" },
	{ .name = "count", .type = KEY_UINT, .max = HOST_VMS_MAX, .own_only = true, LIVE,
	  .def_text = "one VM, called as it is",
	  .help = "as many VMs as this, all alike, called NAME-1, NAME-2, ...; `${name}` and `${n}` in "
		  "their texts tell them apart" },
	{ .name = "memory", .type = KEY_SIZE, AT(memory_bytes), .min = RAM_MIN_BYTES, .max = RAM_MAX_BYTES,
	  .def = "1G", RESTART, .json = "memory_bytes",
	  .help = "what the guest believes to have; a multiple of 2M" },
	{ .name = "reservation", .type = KEY_SIZE, AT(reservation_bytes), .percent = PERCENT_MEMORY,
	  .max = RAM_MAX_BYTES, .def = "0", LIVE,
	  .help = "host memory that the VM gets whatever happens. The reservations of all VMs must fit the "
		  "host, and a VM that does not is not started" },
	{ .name = "limit", .type = KEY_SIZE, AT(limit_bytes), .percent = PERCENT_MEMORY,
	  .min = VM_LIMIT_MIN_BYTES, .max = RAM_MAX_BYTES, .zero = "none", .def = "none", LIVE,
	  .json = "memory_limit_bytes",
	  .help = "the most host memory that the VM's memory may ever take; what exceeds it is packed" },
	{ .name = "shares", .type = KEY_UINT, AT(shares), .min = 1, .max = 1000000, .def = "1000", LIVE,
	  .help = "how much the VM counts when memory is short: twice the shares, twice the memory" },
	{ .name = "cpus", .type = KEY_UINT, AT(cpus), .min = 1, .max = VM_MAX_CPUS, .def = "1", RESTART,
	  .json = "cpus", .help = "how many processors the guest has" },

	{ .name = "kernel", .type = KEY_PATH, AT(kernel), .is_required = true, RESTART, .json = "kernel",
	  .help = "the Linux kernel to boot: a bzImage, or an ELF file with a PVH entry" },
	{ .name = "initrd", .type = KEY_PATH, AT(initrd), .def_text = "none", RESTART, .json = "initrd",
	  .help = "its initial RAM disk" },
	{ .name = "cmdline", .type = KEY_TEXT, AT(cmdline), .def = VM_DEFAULT_CMDLINE, RESTART,
	  .help = "the kernel's command line" },
	{ .name = "append", .type = KEY_TEXT, AT(append), .def_text = "nothing", RESTART,
	  .help = "what is added to it" },
	{ .name = "disks", .type = KEY_LIST, LIST_AT(disks, disk_count), .sub = SECTION_DISK,
	  .max = VM_MAX_DISKS, RESTART, .json = "disks",
	  .help = "raw images or block devices, the guest's /dev/vda, vdb and so on. An entry may be just a "
		  "path" },
	{ .name = "nets", .type = KEY_LIST, LIST_AT(nets, net_count), .sub = SECTION_NET,
	  .max = VM_MAX_NETS, RESTART, .json = "nets",
	  .help = "network cards. An entry may be just the name of a tap interface" },
	{ .name = "hugepages", .type = KEY_CHOICE, AT(hugepages), .choices = huge, .def = "auto", RESTART,
	  .json = "hugepages",
	  .help = "`auto`: huge pages where something dense is loaded, small elsewhere; `always`: faster, "
		  "and costs memory the guest never touched; `never`" },

	{ .name = "swap.enabled", .type = KEY_BOOL, AT(swap_enabled), .def = "on", RESTART,
	  .help = "off: packed pages of this VM never go to disk, whatever the host has for that" },
	{ .name = "swap.path", .type = KEY_PATH, AT(swap_path), .def_text = "NAME.swap in the host's first "
	  "swap directory; none without one", RESTART, .json = "swap.path",
	  .help = "the VM's own swap file, made if it is not there, or a block device" },
	{ .name = "swap.size", .type = KEY_SIZE, AT(swap_size_bytes), .percent = PERCENT_MEMORY,
	  .min = VM_SWAP_MIN_BYTES, .max = 64 * TiB, .zero = "auto", .def = "auto",
	  .def_text = "auto: nine eighths of memory; all of a device", RESTART, .json = "swap.size_bytes",
	  .help = "its size, reserved at once" },
	{ .name = "swap.encrypt", .type = KEY_BOOL, AT(swap_encrypt), .def = "off", RESTART,
	  .json = "swap.encrypt",
	  .help = "with a key that nobody knows and that ends with the VM, which makes no core dumps" },
	{ .name = "swap.force", .type = KEY_BOOL, AT(swap_force), .def = "off", RESTART,
	  .json = "swap.force", .help = "also where there is something else, which is lost" },

	{ .name = "balloon.floor", .type = KEY_SIZE, AT(balloon_floor_bytes), .percent = PERCENT_MEMORY,
	  .max = RAM_MAX_BYTES, .def = "10%", LIVE,
	  .help = "what the guest keeps of its memory, however much it is asked for" },
	{ .name = "balloon.reporting", .type = KEY_BOOL, AT(balloon_reporting), .def = "on", RESTART,
	  .json = "balloon.reporting",
	  .help = "free page reporting: what the guest frees goes back to the host by itself" },
	{ .name = "balloon.hinting", .type = KEY_BOOL, AT(balloon_hinting), .def = "on", RESTART,
	  .json = "balloon.hinting", .help = "free page hinting: the guest can be asked what is free" },
	{ .name = "balloon.poison", .type = KEY_BOOL, AT(balloon_poison), .def = "on", RESTART,
	  .json = "balloon.poison", .help = "the guest says what it fills free pages with" },
	{ .name = "balloon.deflate_on_oom", .type = KEY_BOOL, AT(balloon_deflate_on_oom), .def = "on",
	  RESTART, .json = "balloon.deflate_on_oom",
	  .help = "a guest that runs out of memory may take from its balloon by itself" },
	{ .name = "balloon.stats_interval", .type = KEY_TIME, AT(balloon_stats_s), .unit = S_NS,
	  .max = 3600, .def = "5s", RESTART, .json = "balloon.stats_interval_s",
	  .help = "how often the guest is asked for its own statistics; 0: never" },

	{ .name = "pool.cap", .type = KEY_SIZE, AT(pool_cap_bytes), .percent = PERCENT_MEMORY,
	  .min = VM_POOL_CAP_MIN_BYTES, .max = RAM_MAX_BYTES, .zero = "none", .def = "none", RESTART,
	  .json = "pool_cap_bytes",
	  .help = "the most host memory that packed pages may take; with a swap file the coldest go there, "
		  "else no more pages are taken" },
	{ .name = "pool.delta", .type = KEY_CHOICE, AT(pool_delta), .choices = deltas, .def = "fast",
	  RESTART, .json = "pool_delta",
	  .help = "whether a page is packed against a similar one: `fast`: where that is found quickly, for "
		  "a tenth less memory; `small`: a fifth less, and several times the processor time; `off`" },
	{ .name = "pool.acceleration", .type = KEY_UINT, AT(pool_acceleration), .min = 1,
	  .max = SWAP_ACCELERATION_MAX, .def = "1", RESTART, .json = "pool_acceleration",
	  .help = "LZ4's for pages packed alone: 1 packs smallest, 64 fastest" },
	{ .name = "pool.refine", .type = KEY_BOOL, AT(pool_refine), .def = "on", RESTART,
	  .json = "pool_refine",
	  .help = "pages that stay packed are packed again in the background, smaller" },

	{ .name = "share_group", .type = KEY_NAME, AT(share_group), .def_text = "that of VMs of the same "
	  "owner that say none", RESTART, .json = "share.group",
	  .help = "with which VMs this one shares equal pages: those that say the same, and have the same "
		  "owner. `none`: with nobody. How long a page takes can tell a guest whether another of "
		  "its group has the same, so guests that must not learn that belong in different groups" },
	{ .name = "share_cpu", .type = KEY_PCT, AT(share_cpu_pct), .unit = 10000, .min = 1, .max = 100,
	  .def = "10%", RESTART, .json = "share.cpu_pct",
	  .help = "of one CPU, the most that looking for equal pages may take" },
	{ .name = "share_pace", .type = KEY_UINT, AT(share_pace), .max = VM_SHARE_PACE_MAX,
	  .zero = "none", .def = "none", RESTART, .json = "share.pages_per_s",
	  .help = "pages a second looked at for that, at most" },

	{ .name = "autostart", .type = KEY_BOOL, AT(autostart), .def = "on", LIVE,
	  .help = "start it with the host's configuration" },
	{ .name = "after", .type = KEY_NAMES, .max = HOST_AFTER_MAX, .own_only = true, LIVE,
	  .def_text = "none",
	  .help = "VMs that must run before this one is started, by name; that of several alike stands for "
		  "all of them. They end in the reverse order" },
	{ .name = "restart", .type = KEY_CHOICE, AT(restart), .choices = restarts, .def = "on-failure",
	  LIVE, .help = "what happens when the VM ends by itself: nothing; a new start if it did not power "
			"off in order; always a new start" },
	{ .name = "restart_delay", .type = KEY_TIME, AT(restart_delay_ms), .unit = MS_NS,
	  .max = 60 * MINUTE_MS, .def = "1s", LIVE,
	  .help = "how long to wait before that; twice as long for each that follows soon" },
	{ .name = "restart_tries", .type = KEY_UINT, AT(restart_tries), .max = 1000000, .zero = "forever",
	  .def = "5", LIVE, .help = "after so many that followed soon it is given up" },
	{ .name = "stop_timeout", .type = KEY_TIME, AT(stop_timeout_s), .unit = S_NS, .max = 3600,
	  .def = "30s", RESTART, .json = "stop_timeout_s",
	  .help = "how long the guest may take to power off; then the VM is ended" },
	{ .name = "reboot", .type = KEY_BOOL, AT(reboot), .def = "on", RESTART, .json = "reboot",
	  .help = "off: the VM ends where the guest would reboot" },
	{ .name = "allow_emulated_kvm", .type = KEY_BOOL, AT(allow_emulated_kvm), .def = "off", RESTART,
	  .json = "allow_emulated_kvm",
	  .help = "start although this host's KVM only emulates, hundreds of times too slow; for tests" },
};
const size_t keys_vm_count = ARRAY_LEN(keys_vm);
_Static_assert(ARRAY_LEN(keys_vm) <= HOST_KEYS_MAX, "more rows than a struct found has");

const struct config_key keys_disk[] = {
	{ .name = "path", .type = KEY_PATH, DISK_AT(path), .is_required = true, .json = "path",
	  .help = "the image or device. Several VMs may have the same only if it is readonly in all" },
	{ .name = "readonly", .type = KEY_BOOL, DISK_AT(readonly), .def = "off", .json = "readonly",
	  .help = "the guest cannot write" },
	{ .name = "direct", .type = KEY_BOOL, DISK_AT(direct), .def = "off", .json = "direct",
	  .help = "past the host's page cache" },
	{ .name = "serial", .type = KEY_SERIAL, DISK_AT(serial), .def_text = "none", .json = "serial",
	  .help = "at most 20 characters, seen below /dev/disk/by-id" },
};
const size_t keys_disk_count = ARRAY_LEN(keys_disk);

const struct config_key keys_net[] = {
	{ .name = "tap", .type = KEY_TAP, NET_AT(tap), .is_required = true, .json = "tap",
	  .help = "the host's interface; root's brimd makes it if it is not there" },
	{ .name = "mac", .type = KEY_MAC, NET_AT(mac), .def_text = "made from the VM's name", .json = "mac",
	  .help = "the card's address" },
};
const size_t keys_net_count = ARRAY_LEN(keys_net);
