/*
 * THE table: every command, its options, and all that is said about them.
 * Help, manual pages, completion and parsing read it; nothing else describes a
 * command.  Text: paragraphs with an empty line between them, `code` in
 * backticks, no line breaks of its own.
 *
 * const data only.
 */
#include "cli/cli.h"

#include <string.h>

#include "cli/top.h"

#include "mm/mm.h"
#include "vmm/vmm.h"

/* ---- shared sections ------------------------------------------------------------ */

static const struct section status_section = {
	.title = "Exit status",
	.rows = (const struct row[]){
		{ "0", "done" },
		{ "1", "it failed; stderr says why" },
		{ "2", "the command line is wrong" },
		{ NULL, NULL },
	},
};

static const struct section console_status_section = {
	.title = "Exit status",
	.rows = (const struct row[]){
		{ "0", "the guest powered itself off (or reset itself, with --no-reboot), or you "
		       "detached" },
		{ "1", "the VM could not start, or ended in an error" },
		{ "2", "the command line is wrong" },
		{ "3", "the VM was killed" },
		{ "130", "interrupted before the guest ran" },
		{ NULL, NULL },
	},
};

static const struct section stop_status_section = {
	.title = "Exit status",
	.rows = (const struct row[]){
		{ "0", "the VM is gone (or, with --no-wait, the button is pressed)" },
		{ "1", "it failed, or the guest did not power off in time" },
		{ "2", "the command line is wrong" },
		{ "3", "the VM was killed meanwhile" },
		{ NULL, NULL },
	},
};

static const struct section up_status_section = {
	.title = "Exit status",
	.rows = (const struct row[]){
		{ "0", "they run" },
		{ "1", "one could not be started, or the configuration is wrong; stderr says why" },
		{ "2", "the command line is wrong" },
		{ NULL, NULL },
	},
};

static const struct section keys_section = { .title = "Keys", .rows = escape_keys };

static const struct section environment_section = {
	.title = "Environment",
	.rows = (const struct row[]){
		{ "BRIM_RUN_DIR", "where VMs keep their sockets and logs, instead of /run/brim (root) or "
				  "$XDG_RUNTIME_DIR/brim" },
		{ "BRIM_VMM", "the brim-vmm to start, instead of the one that came with this brim" },
		{ "NO_COLOR", "no colours, when set to anything" },
		{ NULL, NULL },
	},
};

static const struct section files_section = {
	.title = "Files",
	.rows = (const struct row[]){
		{ "/run/brim/NAME/", "one directory per VM, removed when it ends in order" },
		{ "/run/brim/NAME/log", "what brim-vmm has to say" },
		{ "/run/brim/NAME/stats", "its numbers; `brim top` and `brim stat` read it" },
		{ "/run/brim/NAME/config.json", "what the VM was started with" },
		{ "/run/brim/NAME/control.sock", "newline-delimited JSON; what brim itself uses" },
		{ "/run/brim/NAME/console.sock", "the guest's serial port" },
		{ NULL, NULL },
	},
};

static const struct section brimd_options = {
	.title = "Options",
	.rows = (const struct row[]){
		{ "--run-dir DIR", "where VMs are (default: as brim)" },
		{ "--config FILE", "what to keep running (default: nothing until `brim up`)" },
		{ "--http ADDRESS:PORT", "serve HTTP there, too; needs --http-token" },
		{ "--http-token FILE", "the token of who may do everything there" },
		{ "--http-read-token FILE", "the token of who may only read" },
		{ "--store-size SIZE", "the most that the shared pages of a share group may be (default: the "
		  "host's RAM)" },
		{ "--index-size SIZE", "how much of VMs' RAM is remembered by its hashes (default: the host's "
		  "RAM)" },
		{ "--recall-after SECONDS", "a page that one VM alone has used for so long is asked back "
		  "(default: 60)" },
		{ "--recover-time SECONDS", "after a start, new VMs wait so long for those of the brimd before "
		  "(default: 10)" },
		{ "--log-level LEVEL", "error, warning, info or debug (default: info)" },
		{ "--foreground", "what it does anyway" },
		{ NULL, NULL },
	},
};

static const struct section brimd_files = {
	.title = "Files",
	.rows = (const struct row[]){
		{ "/run/brim/brimd.sock", "where VMs come to" },
		{ "/run/brim/.brimd/lock", "held while it runs, with its pid" },
		{ "/run/brim/.brimd/control", "commands, as of a VM's control.sock" },
		{ "/run/brim/.brimd/api.sock", "HTTP: the web page, JSON, Prometheus metrics" },
		{ "/run/brim/.brimd/groups/", "which processes have which store, for the next brimd" },
		{ NULL, NULL },
	},
};

#define EXAMPLES(id, ...)                                                     \
	static const struct section id = {                                    \
		.title = "Examples",                                          \
		.rows = (const struct row[]){ __VA_ARGS__, { NULL, NULL } },  \
	}

#define SECTIONS(...) (const struct section *const[]){ __VA_ARGS__, NULL }

#define OPTS(table) .opts = table, .opt_count = ARRAY_LEN(table)

/* ---- options ----------------------------------------------------------------------- */

#define AT(member) .at = offsetof(struct args, member)
#define RUN_AT(member) .at = offsetof(struct run_args, member)

static const char *const huge_choices[] = {
	[RAM_HUGE_AUTO] = "auto", [RAM_HUGE_ALWAYS] = "always", [RAM_HUGE_NEVER] = "never", NULL,
};

static const char *const delta_choices[] = {
	[RUN_DELTA_OFF] = "off", [RUN_DELTA_FAST] = "fast", [RUN_DELTA_SMALL] = "small", NULL,
};
static const char *const refine_choices[] = { "on", "off", NULL };

static const struct opt run_opts[] = {
	{ .name = "kernel", .letter = 'k', .type = OPT_TEXT, .arg = "FILE", .comp = COMP_FILE,
	  RUN_AT(kernel), .help = "the Linux kernel to boot: a bzImage, or an ELF file with a PVH entry" },
	{ .name = "initrd", .letter = 'i', .type = OPT_TEXT, .arg = "FILE", .comp = COMP_FILE,
	  RUN_AT(initrd), .help = "its initial RAM disk" },
	{ .name = "disk", .letter = 'd', .type = OPT_LIST, .arg = "PATH[,ro][,direct][,serial=S]",
	  .comp = COMP_FILE, RUN_AT(disks),
	  .help = "a raw image or block device, the guest's /dev/vda, vdb and so on; `ro`: the guest "
		  "cannot write; `direct`: past the host's page cache; `serial`: at most 20 characters, "
		  "seen below /dev/disk/by-id. A comma in PATH is written twice" },
	{ .name = "net", .letter = 'n', .type = OPT_LIST, .arg = "tap=NAME[,mac=MAC]", .comp = COMP_TAP,
	  RUN_AT(nets), .help = "a network card on the host's tap interface NAME" },
	{ .name = "memory", .letter = 'm', .type = OPT_SIZE, .arg = "SIZE", .def = "1G",
	  .min = RAM_MIN_BYTES, .max = RAM_MAX_BYTES, RUN_AT(memory_bytes),
	  .help = "what the guest believes to have; a multiple of 2M. It costs nothing until the guest "
		  "uses it" },
	{ .name = "limit", .type = OPT_SIZE, .arg = "SIZE", .min = VM_LIMIT_MIN_BYTES, RUN_AT(limit_bytes),
	  .help = "the most of the host's memory that the guest's may take (at least 16M); what exceeds it "
		  "is packed: see `brim limit --help`" },
	{ .name = "pool-cap", .type = OPT_SIZE, .arg = "SIZE", .min = VM_POOL_CAP_MIN_BYTES,
	  RUN_AT(pool_cap_bytes),
	  .help = "the most of the host's memory that packed pages may take (at least 16M); with --swap "
		  "the coldest go there, else no more pages are taken" },
	{ .name = "pool-delta", .type = OPT_CHOICE, .arg = "HOW", .def = "fast", .choices = delta_choices,
	  RUN_AT(pool_delta),
	  .help = "whether a page is packed against a similar one: `fast`: where that is found quickly, for "
		  "a tenth less memory; `small`: a fifth less, and several times the processor time for a "
		  "page that leaves; `off`. What goes to --swap is packed alone" },
	{ .name = "pool-acceleration", .type = OPT_UINT, .arg = "N", .def = "1", .min = 1,
	  .max = SWAP_ACCELERATION_MAX, RUN_AT(pool_acceleration),
	  .help = "LZ4's for pages packed alone: 1 packs smallest, 64 fastest" },
	{ .name = "pool-refine", .type = OPT_CHOICE, .arg = "WHEN", .def = "on",
	  .choices = refine_choices, RUN_AT(pool_refine),
	  .help = "`on`: pages that stay packed are packed again in the background, with zstd: a "
		  "quarter to a third smaller, some 5 us dearer when they are touched; `off`" },
	{ .name = "swap", .type = OPT_TEXT, .arg = "PATH[,size=SIZE][,encrypt][,force]", .comp = COMP_FILE,
	  RUN_AT(swap),
	  .help = "where packed pages go that are coldest, or do not pack: a file of this VM alone, made if "
		  "it is not there, or a block device. `size`: unless given nine eighths of --memory, or "
		  "all of a device; reserved at once; `encrypt`: with a key that nobody knows and that ends "
		  "with the VM, which makes no core dumps; `force`: also where there is something else, which "
		  "is lost. A comma in PATH is written twice. Where a file system copies on write, space that "
		  "is reserved may not be there to write to: a file made by brim on btrfs is written in place, "
		  "for others use `chattr +C` while they are empty, or a device; `brim log` has a warning" },
	{ .name = "share-group", .type = OPT_TEXT, .arg = "NAME", RUN_AT(share_group),
	  .help = "with which VMs this one shares equal pages, where a brimd runs: those that say the same "
		  "NAME, and have the same owner. Unless given, all of its owner's that say none. How long a "
		  "page takes to write or to read can tell a guest whether another of its group has the "
		  "same, so guests that must not learn that of each other belong in different groups; `none`: "
		  "shares with nobody" },
	{ .name = "share-cpu", .type = OPT_UINT, .arg = "PERCENT", .def = "10", .min = 1, .max = 100,
	  RUN_AT(share_cpu_pct), .help = "of one CPU, the most that looking for equal pages may take" },
	{ .name = "share-pace", .type = OPT_UINT, .arg = "PAGES", .def = "0", .max = VM_SHARE_PACE_MAX,
	  RUN_AT(share_pace), .help = "pages a second looked at for that, at most; 0: as many as the "
				      "CPU's share allows" },
	{ .name = "cpus", .letter = 'c', .type = OPT_UINT, .arg = "N", .def = "1", .min = 1,
	  .max = VM_MAX_CPUS, RUN_AT(cpus), .help = "how many processors the guest has" },
	{ .name = "append", .letter = 'a', .type = OPT_LIST, .arg = "TEXT", RUN_AT(append),
	  .help = "adds to the kernel's command line, which is `" DEFAULT_CMDLINE "` unless --cmdline "
		  "replaces it" },
	{ .name = "cmdline", .type = OPT_TEXT, .arg = "TEXT", RUN_AT(cmdline),
	  .help = "replaces the kernel's command line" },
	{ .name = "name", .type = OPT_TEXT, .arg = "NAME", RUN_AT(name),
	  .help = "what to call the VM: letters, digits, `.`, `_`, `-`; vm1, vm2, ... when not given" },
	{ .name = "console", .type = OPT_FLAG, RUN_AT(console),
	  .help = "stay at the guest's console until the VM ends; what happens without --detach" },
	{ .name = "detach", .type = OPT_FLAG, RUN_AT(detach),
	  .help = "leave the VM running in the background and print its name" },
	{ .name = "hugepages", .type = OPT_CHOICE, .arg = "WHEN", .def = "auto", .choices = huge_choices,
	  RUN_AT(hugepages),
	  .help = "`auto`: huge pages where something dense is loaded, small elsewhere; `always`: faster, "
		  "and costs memory the guest never touched; `never`" },
	{ .name = "balloon", .type = OPT_LIST, .arg = "KEY=VALUE[,...]", RUN_AT(balloon),
	  .help = "what the balloon device offers: `reporting`, `hinting`, `poison`, `deflate-on-oom` "
		  "are `on` or `off` (all on by default), `stats-interval` a time (5s; 0: no statistics)" },
	{ .name = "no-reboot", .type = OPT_FLAG, RUN_AT(no_reboot),
	  .help = "end the VM where the guest would reboot" },
	{ .name = "stop-timeout", .type = OPT_SECONDS, .arg = "TIME", .def = "30s", .max = 3600,
	  RUN_AT(stop_timeout_s),
	  .help = "how long the guest may take to power off after a signal, or after brim was killed; "
		  "then the VM is ended" },
	{ .name = "allow-emulated-kvm", .type = OPT_FLAG, RUN_AT(allow_emulated),
	  .help = "start although this host's KVM only emulates, hundreds of times too slow; for tests" },
	{ .name = "dry-run", .type = OPT_FLAG, RUN_AT(dry_run),
	  .help = "check everything, print what brim-vmm would be given as JSON, and start nothing" },
};

#define JSON_OPT { .name = "json", .type = OPT_FLAG, AT(json), .help = "print JSON, for programs" }

#define POLICY_AT(member) .at = offsetof(struct policy_args, member)

static const struct opt policy_opts[] = {
	{ .name = "trace", .letter = 't', .type = OPT_TEXT, .arg = "FILE", .comp = COMP_FILE, POLICY_AT(trace),
	  .help = "simulate: what happened, or is to happen; record: where to write" },
	{ .name = "for", .type = OPT_SECONDS, .arg = "TIME", POLICY_AT(for_s),
	  .help = "record: how long; default: until Ctrl-C" },
	{ .name = "policy", .letter = 'p', .type = OPT_LIST, .arg = "NAME", POLICY_AT(policies),
	  .help = "`brim`, `ladder` (fixed steps, as other daemons have) or `static`; may be given several "
		  "times, default: all" },
	{ .name = "set", .letter = 's', .type = OPT_LIST, .arg = "KEY=VALUE", POLICY_AT(set),
	  .help = "a key of brim's policy, as docs/policy.md lists them; may be given several times" },
	{ .name = "plot", .type = OPT_TEXT, .arg = "FILE.svg", .comp = COMP_FILE, POLICY_AT(plot),
	  .help = "writes a picture: the memory VMs held, the host's state, and the worst stall" },
	{ .name = "explain", .type = OPT_SECONDS, .arg = "SECONDS", POLICY_AT(explain_s),
	  .min = 1, .max = 1000 * 3600, .help = "also prints why brim's policy does what it does at that moment" },
	{ .name = "json", .type = OPT_FLAG, POLICY_AT(json), .help = "print JSON" },
};

EXAMPLES(policy_examples,
	 { "brim policy explain", "why does web1 have so little?" },
	 { "brim policy record --trace day.jsonl --for 24h", "for later" },
	 { "brim policy simulate --trace examples/traces/all-waking.jsonl", "compare the policies" },
	 { "brim policy simulate -t liar.jsonl -p brim --explain 90s", "and what brim's thought then" },
	 { "brim policy simulate -t diurnal.jsonl --set idle_tax=50% --plot day.svg",
	   "with another key, as a picture" });

static const struct opt json_opts[] = { JSON_OPT };

static const struct opt ps_opts[] = {
	JSON_OPT,
	{ .name = "quiet", .letter = 'q', .type = OPT_FLAG, AT(quiet), .help = "print only the names" },
};

static const struct opt stats_opts[] = {
	JSON_OPT,
	{ .name = "all", .letter = 'a', .type = OPT_FLAG, AT(all), .help = "counters that are 0, too" },
};

static const struct opt stat_opts[] = {
	JSON_OPT,
	{ .name = "watch", .letter = 'w', .type = OPT_FLAG, AT(watch), .help = "again and again, until Ctrl-C" },
	{ .name = "interval", .letter = 'i', .type = OPT_SECONDS, .arg = "TIME", .def = "1s", .min = 1,
	  .max = 3600, AT(interval_s), .help = "how often --watch looks" },
	{ .name = "all", .letter = 'a', .type = OPT_FLAG, AT(all), .help = "gauges that are 0, too" },
};

static const struct opt top_opts[] = {
	{ .name = "batch", .letter = 'b', .type = OPT_FLAG, AT(batch),
	  .help = "print samples one after the other, for files; no screen" },
	{ .name = "count", .letter = 'n', .type = OPT_UINT, .arg = "COUNT", .max = UINT32_MAX, AT(count),
	  .help = "how many samples --batch prints (default: until Ctrl-C)" },
	{ .name = "interval", .letter = 'i', .type = OPT_SECONDS, .arg = "TIME", .def = "2s", .min = 1,
	  .max = 3600, AT(interval_s), .help = "the time between two samples" },
	{ .name = "json", .type = OPT_FLAG, AT(json), .help = "with --batch: a JSON object a sample and line" },
	{ .name = "csv", .type = OPT_FLAG, AT(csv), .help = "with --batch: a row a VM and sample; sizes in bytes" },
	{ .name = "sort", .letter = 's', .type = OPT_CHOICE, .arg = "COLUMN", .def = "name",
	  .choices = top_sort_choices, AT(sort), .help = "by which column; numbers fall" },
	{ .name = "reverse", .letter = 'r', .type = OPT_FLAG, AT(reverse), .help = "the other way round" },
	{ .name = "filter", .letter = 'f', .type = OPT_TEXT, .arg = "TEXT", AT(filter),
	  .help = "only VMs with TEXT in their name" },
};

static const struct opt stop_opts[] = {
	{ .name = "timeout", .letter = 't', .type = OPT_SECONDS, .arg = "TIME", .def = "30s",
	  AT(timeout_s), .help = "how long to wait" },
	{ .name = "no-wait", .type = OPT_FLAG, AT(no_wait), .help = "press the button and return" },
};

static const struct opt up_opts[] = {
	{ .name = "vm", .type = OPT_LIST, .comp = COMP_VM, .arg = "NAME", AT(vms),
	  .help = "only this VM, also if it does not start by itself; may be given several times" },
	{ .name = "no-wait", .type = OPT_FLAG, AT(no_wait), .help = "return at once" },
	{ .name = "timeout", .letter = 't', .type = OPT_SECONDS, .arg = "TIME", .def = "5m",
	  AT(timeout_s), .help = "how long to wait" },
};

static const struct opt down_opts[] = {
	{ .name = "no-wait", .type = OPT_FLAG, AT(no_wait), .help = "return at once" },
	{ .name = "timeout", .letter = 't', .type = OPT_SECONDS, .arg = "TIME", .def = "5m",
	  AT(timeout_s), .help = "how long to wait" },
	{ .name = "all", .letter = 'a', .type = OPT_FLAG, AT(all), .help = "end brimd, too" },
};

static const struct opt balloon_opts[] = {
	JSON_OPT,
	{ .name = "wait", .letter = 'w', .type = OPT_FLAG, AT(wait),
	  .help = "wait until the balloon has the size asked for" },
	{ .name = "timeout", .letter = 't', .type = OPT_SECONDS, .arg = "TIME", .def = "60s",
	  AT(timeout_s), .help = "how long --wait waits" },
};

static const struct opt reclaim_opts[] = {
	{ .name = "wait", .letter = 'w', .type = OPT_FLAG, AT(wait),
	  .help = "wait until all of it has been taken; Ctrl-C ends the waiting, not the taking" },
	{ .name = "timeout", .letter = 't', .type = OPT_SECONDS, .arg = "TIME", .def = "60s",
	  AT(timeout_s), .help = "how long --wait waits" },
};

#define CONFIG_AT(member) .at = offsetof(struct config_args, member)

static const struct opt config_opts[] = {
	{ .name = "json", .type = OPT_FLAG, CONFIG_AT(json), .help = "show, diff: JSON, for programs" },
	{ .name = "origin", .type = OPT_FLAG, CONFIG_AT(origin),
	  .help = "show: where each value came from: a line of the file, its `defaults`, or built in" },
	{ .name = "vm", .type = OPT_TEXT, .arg = "NAME", CONFIG_AT(vm), .help = "show: this VM alone" },
	{ .name = "host-memory", .type = OPT_SIZE, .arg = "SIZE", .min = 64 * MiB,
	  CONFIG_AT(host_memory_bytes),
	  .help = "check and show the file as on a host that has so much memory, not this one" },
	{ .name = "markdown", .type = OPT_FLAG, CONFIG_AT(markdown),
	  .help = "keys: as the page docs/configuration.md" },
	{ .name = "schema", .type = OPT_FLAG, CONFIG_AT(schema),
	  .help = "keys: as a JSON Schema, for editors" },
};

static const struct opt help_opts[] = {
	{ .name = "man", .type = OPT_FLAG, AT(man), .help = "print the manual page, as roff" },
	{ .name = "man-dir", .type = OPT_TEXT, .arg = "DIR", .comp = COMP_FILE, AT(man_dir),
	  .help = "write all manual pages into DIR" },
};

/* ---- examples ---------------------------------------------------------------------- */

EXAMPLES(run_examples,
	{ "brim run -k vmlinuz -i initrd.img", "boot, with the console here" },
	{ "brim run -k vmlinuz -i initrd.img -m 24G -c 4 --disk root.img --append root=/dev/vda "
	  "--name web1 --detach", "a server, in the background" },
	{ "brim run -k vmlinuz -i initrd.img -m 8G --limit 1G --swap /srv/web1.swap,encrypt",
	  "8 GiB of which 1 GiB is memory" },
	{ "brim run -k vmlinuz --disk base.img,ro --net tap=tap0 --dry-run", "what would be started" });
EXAMPLES(up_examples,
	{ "brim config check host.yaml", "is it right?" },
	{ "brim up host.yaml", "start what it describes" },
	{ "brim up --vm db", "one of them, that was off" },
	{ "brim reload", "after a change to the file" },
	{ "brim down", "stop all of it" });
EXAMPLES(ps_examples,
	{ "brim ps", "all VMs" },
	{ "brim ps --json | jq -r '.[] | select(.state == \"died\").name'", "those that have died" },
	{ "brim stop $(brim ps -q)", "stop them all" });
EXAMPLES(balloon_examples,
	{ "brim balloon web1", "what the balloon holds" },
	{ "brim balloon web1 512M --wait", "take 512 MiB from the guest" },
	{ "brim balloon web1 0", "give all of it back" });
EXAMPLES(limit_examples,
	{ "brim limit web1", "what web1's memory costs, and what it may" },
	{ "brim limit web1 256M", "at most 256 MiB of the host's memory" },
	{ "brim limit web1 none", "as much as it has" });
EXAMPLES(reclaim_examples,
	{ "brim limit web1", "COLD says how much is worth taking" },
	{ "brim reclaim web1 512M --wait", "pack the coldest 512 MiB" });
EXAMPLES(config_examples,
	{ "brim config check host.yaml", "is it right? every error, with its place" },
	{ "brim config show host.yaml --vm web-1 --origin", "what web-1 is, and why" },
	{ "brim config diff old.yaml new.yaml", "what a change takes" });
EXAMPLES(top_examples,
	{ "brim top", "live" },
	{ "brim top --sort refaults_per_s --filter web", "who of web1, web2, ... misses most" },
	{ "brim top --batch -n 60 -i 1s --csv > minute.csv", "a minute, for a spreadsheet" },
	{ "brim top --batch --json | jq .host.saved", "what each means saves" });
EXAMPLES(completion_examples,
	{ "source <(brim completion bash)", "in this shell" },
	{ "brim completion bash > ~/.local/share/bash-completion/completions/brim", "for good" });
EXAMPLES(brim_examples,
	{ "brim doctor", "can this host run VMs?" },
	{ "brim run -k vmlinuz -i initrd.img -m 2G", "start one, with its console here" },
	{ "brim ps", "list them" });

/* ---- commands ------------------------------------------------------------------------ */

#define GROUP_LIFE "Start and end"
#define GROUP_ALL "All VMs of a host"
#define GROUP_LOOK "Look"
#define GROUP_MEMORY "Memory"
#define GROUP_HOST "This host and brim"

#define VM_COMMAND .args_bytes = sizeof(struct args), .min_pos = 1, .max_pos = 1, .comp = COMP_VM, \
	.man_section = 1
#define VMS_COMMAND .args_bytes = sizeof(struct args), .min_pos = 1, .max_pos = 1000, \
	.comp = COMP_VM, .man_section = 1

const struct cmd commands[] = {
	{ .name = "run", .group = GROUP_LIFE, .synopsis = "--kernel FILE [OPTION]...",
	  .summary = "start a VM", .run = cmd_run, .args_bytes = sizeof(struct run_args), OPTS(run_opts),
	  .man_section = 1,
	  .text = "Starts a VM and, unless --detach is given, stays at its console.\n\n"
		  "On a terminal, keys go to the guest, but for the escape key Ctrl-]. Elsewhere the "
		  "guest's output goes to stdout and stdin goes to the guest, and the end of stdin does not "
		  "end the VM. SIGINT, SIGTERM or SIGHUP presses the VM's power button; a second one, or the "
		  "end of --stop-timeout, kills it. The button is also pressed when brim itself is killed. "
		  "A detached VM minds none of this.",
	  .sections = SECTIONS(&keys_section, &console_status_section, &run_examples,
			       &environment_section) },
	{ .name = "stop", .group = GROUP_LIFE, .synopsis = "NAME...",
	  .summary = "press the power button and wait until the VM is gone", .run = cmd_stop, VMS_COMMAND,
	  OPTS(stop_opts), .sections = SECTIONS(&stop_status_section),
	  .text = "Asks the guest to power off, as the power button of a real machine does. A guest that "
		  "does not listen for it (one without acpid or systemd, or one that is still booting) "
		  "goes on; `brim kill` ends it." },
	{ .name = "kill", .group = GROUP_LIFE, .synopsis = "NAME...",
	  .summary = "end a VM at once, or clean up after one that died", .run = cmd_kill, VMS_COMMAND,
	  .sections = SECTIONS(&status_section),
	  .text = "The guest gets no chance to write what it has in memory. If the VM has died already, "
		  "what it left in the run directory is removed." },
	{ .name = "pause", .group = GROUP_LIFE, .synopsis = "NAME...",
	  .summary = "stop a VM's processors", .run = cmd_pause, VMS_COMMAND,
	  .sections = SECTIONS(&status_section),
	  .text = "The VM keeps its memory and does nothing until `brim resume`." },
	{ .name = "resume", .group = GROUP_LIFE, .synopsis = "NAME...",
	  .summary = "let a paused VM go on", .run = cmd_resume, VMS_COMMAND,
	  .sections = SECTIONS(&status_section) },

	{ .name = "up", .group = GROUP_ALL, .synopsis = "[OPTION]... [FILE]",
	  .summary = "start the VMs of a configuration, and keep them running", .run = cmd_up,
	  .args_bytes = sizeof(struct args), .max_pos = 1, .comp = COMP_FILE, .man_section = 1,
	  OPTS(up_opts), .sections = SECTIONS(&up_examples, &up_status_section, &environment_section),
	  .text = "Hands FILE to brimd, which is started if none runs for this run directory, and waits until "
		  "each VM that starts by itself runs, or cannot. Without FILE, the VMs of the configuration "
		  "in force that are off are started.\n\n"
		  "A VM starts only if the host can bear it whatever all VMs do: its reservation (or what of its "
		  "memory its swap file could not take, if that is more) and its overhead must fit beside what is "
		  "promised to the others. Else it is refused, with the arithmetic.\n\n"
		  "A file that is wrong changes nothing. VMs that run go on; what of a change needs a VM "
		  "started anew is said." },
	{ .name = "down", .group = GROUP_ALL, .synopsis = "[OPTION]... [NAME...]",
	  .summary = "stop the VMs of the configuration", .run = cmd_down,
	  .args_bytes = sizeof(struct args), .max_pos = 1000, .comp = COMP_VM, .man_section = 1,
	  OPTS(down_opts), .sections = SECTIONS(&status_section),
	  .text = "Presses the power button of all of them, or of those named, and waits until they are gone. A "
		  "guest that has not powered off within its `stop_timeout` is ended. brimd goes on, unless "
		  "--all is given; VMs that it did not start are left alone." },
	{ .name = "reload", .group = GROUP_ALL, .synopsis = "[FILE]",
	  .summary = "have brimd read its configuration again", .run = cmd_reload,
	  .args_bytes = sizeof(struct args), .max_pos = 1, .comp = COMP_FILE, .man_section = 1,
	  .sections = SECTIONS(&status_section),
	  .text = "What can change while VMs run does at once; the rest is named, with what it takes. New VMs "
		  "are started by the next `brim up`, VMs that are not in it any more run on. A file that is "
		  "wrong changes nothing. SIGHUP to brimd does the same." },

	{ .name = "ps", .group = GROUP_LOOK, .synopsis = "[OPTION]...", .summary = "list the VMs",
	  .run = cmd_ps, .args_bytes = sizeof(struct args), OPTS(ps_opts), .man_section = 1,
	  .sections = SECTIONS(&ps_examples, &status_section),
	  .text = "MEMORY is what the guest believes to have, RESIDENT what that takes of the host's "
		  "memory, packed memory included, BALLOON what the guest gave up, AVAILABLE what the guest "
		  "itself could still use.\n\n"
		  "A VM that `died` ended without tidying up: `brim log` shows why, `brim kill` cleans up. "
		  "One that is `silent` runs but does not answer." },
	{ .name = "status", .group = GROUP_LOOK, .synopsis = "NAME", .summary = "show all about one VM",
	  .run = cmd_status, VM_COMMAND, OPTS(json_opts), .sections = SECTIONS(&status_section) },
	{ .name = "console", .group = GROUP_LOOK, .synopsis = "NAME",
	  .summary = "connect to a VM's console", .run = cmd_console, VM_COMMAND,
	  .sections = SECTIONS(&keys_section, &console_status_section),
	  .text = "Shows the last 64 KiB of output, then what comes. Several may be connected at once. To "
		  "leave, press Ctrl-] and then d; the VM goes on." },
	{ .name = "log", .group = GROUP_LOOK, .synopsis = "NAME", .summary = "show a VM's log",
	  .run = cmd_log, VM_COMMAND, .sections = SECTIONS(&status_section),
	  .text = "What brim-vmm had to say, not the guest: that is `brim console`." },
	{ .name = "stats", .group = GROUP_LOOK, .synopsis = "NAME", .summary = "show a VM's counters",
	  .run = cmd_stats, VM_COMMAND, OPTS(stats_opts), .sections = SECTIONS(&status_section) },

	{ .name = "stat", .group = GROUP_LOOK, .synopsis = "NAME [OPTION]...",
	  .summary = "show where a VM's memory is, and how it fares", .run = cmd_stat, VM_COMMAND,
	  OPTS(stat_opts), .sections = SECTIONS(&status_section),
	  .text = "The books of one VM: each page of the guest is in one row, and together they are what is "
		  "assigned; beside that, what each costs the host. Then faults and stalls, since the VM "
		  "started or, with --watch, since the last look, and every other gauge that is not 0.\n\n"
		  "It reads the file `stats` in the VM's run directory, which the VM writes once a second; "
		  "the VM itself is asked nothing. What is resident is the process's own account, right to "
		  "a few MiB; what the guest says of itself are hints from an untrusted source." },
	{ .name = "top", .group = GROUP_LOOK, .synopsis = "[OPTION]...",
	  .summary = "watch the memory of the host and its VMs", .run = cmd_top,
	  .args_bytes = sizeof(struct args), OPTS(top_opts), .man_section = 1,
	  .sections = SECTIONS(&top_examples, &status_section, &environment_section),
	  .text = "A screen like esxtop's for memory: what is assigned and what the host has, where memory "
		  "is that is not in use, and a row a VM: MEM assigned, LIMIT, WSET its working set, RES "
		  "resident, SHARE shared with others, PACK compressed and by what RATIO, DISK, BALLN "
		  "given up by the guest, REFLT/s pages a second that it missed and got back, P99 how long "
		  "the slowest faults but one of 100 took at most, STALL% how much of its processors' time "
		  "went into waiting for them. `?` on the screen explains keys and columns; a graph shows "
		  "the selected VM's history.\n\n"
		  "VMs are asked nothing: their numbers are read from the files `stats` in their run "
		  "directories. There need be no brimd; RESV and SHRS are shown where one says them.\n\n"
		  "With --batch, the first sample is printed after one interval, as rates need two." },

	{ .name = "balloon", .group = GROUP_MEMORY, .synopsis = "NAME [SIZE]",
	  .summary = "take memory from a guest, or give it back", .run = cmd_balloon,
	  .args_bytes = sizeof(struct args), OPTS(balloon_opts), .min_pos = 1, .max_pos = 2, .comp = COMP_VM,
	  .size_follows = true, .man_section = 1, .sections = SECTIONS(&balloon_examples, &status_section),
	  .text = "SIZE is how much the balloon is to take from the guest; 0 gives all of it back. The "
		  "guest gives what it can spare, and may take longer, or stop short. Without SIZE, shows "
		  "how things are." },
	{ .name = "limit", .group = GROUP_MEMORY, .synopsis = "NAME [SIZE|none]",
	  .summary = "limit what a VM's memory costs the host, or show it", .run = cmd_limit,
	  .args_bytes = sizeof(struct args), OPTS(json_opts), .min_pos = 1, .max_pos = 2, .comp = COMP_VM,
	  .size_follows = true, .man_section = 1, .sections = SECTIONS(&limit_examples, &status_section),
	  .text = "SIZE, at least 16M, is the most of the host's memory that the guest's memory may take. "
		  "The VM packs what the guest has not written for longest until that is met, and goes on "
		  "watching; packed memory comes back as soon as the guest touches it, which takes a little "
		  "longer than usual. The guest need not help, nor know. The limit outlasts reboots of the "
		  "guest; `none` takes it away, and what is packed then comes back as it is touched.\n\n"
		  "Without SIZE, shows how things are. RESIDENT is what counts for the limit: what is in RAM, "
		  "and POOL. AWAY is what has been packed, POOL what that takes of the host's memory. COLD is "
		  "what is in RAM but has not been written for a while: the first to go." },
	{ .name = "reclaim", .group = GROUP_MEMORY, .synopsis = "NAME SIZE",
	  .summary = "pack some of a VM's memory once", .run = cmd_reclaim,
	  .args_bytes = sizeof(struct args), OPTS(reclaim_opts), .min_pos = 2, .max_pos = 2, .comp = COMP_VM,
	  .size_follows = true, .man_section = 1, .sections = SECTIONS(&reclaim_examples, &status_section),
	  .text = "Packs SIZE of the guest's memory in the background, what has not been written for "
		  "longest first. Packed memory comes back as soon as the guest touches it, and then stays: "
		  "unlike `brim limit`, this is done once. How much it saves depends on how well the memory "
		  "packs." },
	{ .name = "hint", .group = GROUP_MEMORY, .synopsis = "NAME...",
	  .summary = "ask a guest which of its memory is free, and take that", .run = cmd_hint, VMS_COMMAND,
	  .sections = SECTIONS(&status_section),
	  .text = "One round of free page hinting. The guest keeps the memory: it comes back as soon as "
		  "the guest uses it." },

	{ .name = "config", .group = GROUP_HOST, .synopsis = "check|show|diff|keys [FILE]... [OPTION]...",
	  .summary = "check and explain a host's configuration", .run = cmd_config,
	  .args_bytes = sizeof(struct config_args), OPTS(config_opts), .min_pos = 1, .max_pos = 3,
	  .verbs = config_verbs, .comp = COMP_FILE, .man_section = 1,
	  .sections = SECTIONS(&config_examples, &((const struct section){ .title = "Exit status",
		  .rows = (const struct row[]){
			  { "0", "the file is right" },
			  { "1", "it is not, or cannot be read" },
			  { "2", "the command line is wrong" },
			  { NULL, NULL } } })),
	  .text = "One YAML file describes a host: what brim may use of it, how its policy decides, and "
		  "its VMs.\n\n"
		  "`check FILE` says whether it is right: all errors at once, each with file, line, column, "
		  "key, what is wrong and what was expected. Whether it all fits the host is not decided "
		  "here, but when VMs are started. `show FILE` prints what is in effect, defaults and "
		  "variables resolved, as YAML that means the same. `diff OLD NEW` lists what differs, and "
		  "whether that is applied at once or at the next start of a VM or of brimd. `keys` lists all "
		  "keys, with what may be written and the defaults; docs/configuration.md explains them." },
	{ .name = "doctor", .group = GROUP_HOST, .synopsis = "[OPTION]...",
	  .summary = "check whether this host can run VMs", .run = cmd_doctor,
	  .args_bytes = sizeof(struct args), OPTS(json_opts), .man_section = 1,
	  .text = "Looks at KVM and whether it is real or only emulated, the kernel, userfaultfd, memory "
		  "settings, swap and networking, and says what to do about what it found. Changes "
		  "nothing.",
	  .sections = SECTIONS(&((const struct section){ .title = "Exit status",
		  .rows = (const struct row[]){
			  { "0", "VMs can run; there may be warnings" },
			  { "1", "something must be fixed first" },
			  { "2", "the command line is wrong" },
			  { NULL, NULL } } })) },
	{ .name = "policy", .group = GROUP_HOST, .synopsis = "explain|record|simulate [OPTION]...",
	  .summary = "why VMs have the memory they have, and what other rules would do", .run = cmd_policy,
	  .args_bytes = sizeof(struct policy_args), OPTS(policy_opts), .min_pos = 1, .max_pos = 1,
	  .verbs = policy_verbs, .man_section = 1, .sections = SECTIONS(&policy_examples, &status_section),
	  .text = "`explain` prints what the running brimd sees of its host and VMs, and why each VM has what it "
		  "has. `record` writes what it sees once a second, as a trace.\n\n"
		  "`simulate` plays what VMs wanted over time, from a trace, to the policy that shares the host's memory out "
		  "among VMs, and to simpler ones: what they make of it is a table, and with --plot a picture. "
		  "The VMs are a small model: which policy does better and where one fails can be learned from it, "
		  "not what real guests would measure. Traces are lines of JSON; docs/policy.md says how they "
		  "are written, and examples/traces has some." },
	{ .name = "completion", .group = GROUP_HOST, .synopsis = "bash",
	  .summary = "print a completion script for the shell", .run = cmd_completion,
	  .args_bytes = sizeof(struct args), .min_pos = 1, .max_pos = 1, .comp = COMP_SHELL, .man_section = 1,
	  .sections = SECTIONS(&completion_examples) },
	{ .name = "help", .group = GROUP_HOST, .synopsis = "[COMMAND] [OPTION]...",
	  .summary = "explain brim, or one command", .run = cmd_help, .args_bytes = sizeof(struct args),
	  OPTS(help_opts), .max_pos = 1, .comp = COMP_COMMAND, .man_section = 1,
	  .sections = SECTIONS(&status_section) },

	{ .name = "brimd", .synopsis = "[OPTION]...", .summary = "lets VMs share equal pages",
	  .man_section = 8, .sections = SECTIONS(&brimd_options, &brimd_files),
	  .text = "VMs of one share group keep pages of the same content once, in a store: memory that "
		  "only brimd writes and VMs read. VMs find it by themselves. They never wait for it, run "
		  "on when it ends, and find the next one; until then nothing new is shared.\n\n"
		  "A share group belongs to the user whose VM named it first; no VM of another user gets "
		  "in. VMs that are not to be trusted must not run as brimd's own user, who could write "
		  "to stores.\n\n"
		  "SIGTERM and SIGINT end it; SIGUSR1 writes its numbers into its log, which is its "
		  "standard error." },
	{ .name = "brim-vmm", .synopsis = "--config-fd N --ready-fd M", .summary = "one VM",
	  .man_section = 8, .sections = SECTIONS(&files_section, &status_section),
	  .text = "One process is one VM. `brim run` starts it; people have no need to.\n\n"
		  "From descriptor N it reads the VM's description, the JSON that `brim run --dry-run` "
		  "prints. On descriptor M it writes one line: `ok` when the guest is about to run, or "
		  "`error: ` and a sentence. It then logs to the log in the VM's run directory.\n\n"
		  "It answers on control.sock: one JSON object a line, {\"v\":1,\"id\":7,\"cmd\":\"status\"}, "
		  "is answered by {\"v\":1,\"id\":7,\"ok\":true,\"result\":{...}} or by \"ok\":false with an "
		  "\"error\". The commands are status, stats, balloon (target_bytes), limit (limit_bytes), "
		  "reclaim (bytes), hint, pause, resume, stop, kill, detach, and wait, which is answered "
		  "when the VM ends." },
};

const size_t command_count = ARRAY_LEN(commands);

const struct cmd command_brim = {
	.name = "", .synopsis = "COMMAND [ARGUMENT]...",
	.summary = "run more VMs than fit",
	.text = "brim is a KVM hypervisor for memory density: the memory promised to VMs may exceed what "
		"the host has. Each VM is a process of its own, brim-vmm; there is no daemon.",
	.sections = SECTIONS(&brim_examples, &environment_section, &files_section, &status_section),
	.man_section = 1,
};

const struct cmd *command_find(const char *name)
{
	for (size_t i = 0; i < command_count; i++)
		if (strcmp(commands[i].name, name) == 0)
			return &commands[i];
	return NULL;
}
