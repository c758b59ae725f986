/*
 * The command line, and what becomes of it: options against the table, the VM's
 * description, the escape key, the terminal's settings (I1 of cli.h), and the
 * texts made from the table.
 */
#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pty.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>
#include <utmp.h>

#include "cli/cli.h"
#include "vmm/vmm.h"

/* ---- options --------------------------------------------------------------------- */

#define WORDS_MAX 40

static struct run_args run_args;
static struct invocation in;

/* Parses a line of words; they must outlive the test, as in argv. */
static int parse(const char *cmd, const char *line, void *args, bool *help, struct err *e)
{
	static char text[512];
	static char *words[WORDS_MAX];
	int n = 0;

	snprintf(text, sizeof(text), "%s", line);
	for (char *w = strtok(text, " "); w && n < WORDS_MAX; w = strtok(NULL, " "))
		words[n++] = w;
	in = (struct invocation){ .cmd = command_find(cmd), .args = args };
	return opt_parse(&in, args, n, words, help, e);
}

static int parse_run(const char *line, struct err *e)
{
	bool help;

	memset(&run_args, 0, sizeof(run_args));
	return parse("run", line, &run_args, &help, e);
}

Test(cli, options_of_every_kind_are_taken)
{
	struct err e = { "" };

	cr_assert_eq(parse_run("-k vmlinuz --memory=24G --cpus 4 -d a.img,ro --disk b.img --hugepages never "
			       "--detach", &e), 0, "%s", e.msg);
	cr_assert_str_eq(run_args.kernel, "vmlinuz");
	cr_assert_eq(run_args.memory_bytes, 24 * GiB);
	cr_assert_eq(run_args.cpus, 4);
	cr_assert_eq(run_args.disks.count, 2);
	cr_assert_str_eq(run_args.disks.items[0], "a.img,ro");
	cr_assert_str_eq(run_args.disks.items[1], "b.img");
	cr_assert_eq(run_args.hugepages, RAM_HUGE_NEVER);
	cr_assert(run_args.detach);
	cr_assert_not(run_args.console);
	opt_fini(&in, &run_args);
}

Test(cli, options_not_given_have_their_defaults)
{
	cr_assert_eq(parse_run("", NULL), 0);
	cr_assert_eq(run_args.memory_bytes, 1 * GiB);
	cr_assert_eq(run_args.limit_bytes, 0);
	cr_assert_eq(run_args.cpus, 1);
	cr_assert_eq(run_args.stop_timeout_s, 30);
	cr_assert_eq(run_args.hugepages, RAM_HUGE_AUTO);
	cr_assert_null(run_args.kernel);
	opt_fini(&in, &run_args);
}

Test(cli, wrong_options_say_what_is_wrong)
{
	static const struct { const char *line, *says; } rows[] = {
		{ "--memry 1G", "did you mean --memory?" },
		{ "--memory", "--memory wants a value" },
		{ "--memory 1Q", "unknown unit" },
		{ "--memory 1M", "the least is 64 MiB" },
		{ "--memory 2T", "the most is 1 TiB" },
		{ "--limit 1M", "the least is 16 MiB" },
		{ "--limit none", "'none' is not a size" },
		{ "--pool-cap 15M", "the least is 16 MiB" },
		{ "--pool-delta on", "--pool-delta: 'on' is none of: off, fast, small" },
		{ "--pool-acceleration 0", "--pool-acceleration: '0': the least is 1" },
		{ "--pool-acceleration 65", "--pool-acceleration: '65': the most is 64" },
		{ "--pool-acceleration fast", "'fast' is not a number" },
		{ "--pool-refine maybe", "none of: on, off" },
		{ "--cpus 0", "the least is 1" },
		{ "--cpus 17", "the most is 16" },
		{ "--cpus two", "'two' is not a number" },
		{ "--cpus -1", "'-1' is not a number" },
		{ "--detach=yes", "--detach takes no value" },
		{ "--hugepages sometimes", "none of: auto, always, never" },
		{ "--stop-timeout soon", "is not a time" },
		{ "--stop-timeout 2h", "the most is 3600s" },
		{ "-z", "no option -z" },
		{ "--qqqqqqqq", "brim run has no option --qqqqqqqq" },
		{ "web1", "'web1' is one word too many" },
		{ "-- --detach", "'--detach' is one word too many" },
	};

	for (size_t i = 0; i < ARRAY_LEN(rows); i++) {
		struct err e = { "" };

		cr_expect_eq(parse_run(rows[i].line, &e), -EINVAL, "%s", rows[i].line);
		cr_expect(strstr(e.msg, rows[i].says), "%s: said '%s'", rows[i].line, e.msg);
		opt_fini(&in, &run_args);
	}
}

Test(cli, help_wins_over_what_is_wrong_after_it)
{
	bool help = false;

	cr_assert_eq(parse("run", "--help --nonsense", &run_args, &help, NULL), 0);
	cr_assert(help);
	opt_fini(&in, &run_args);
}

Test(cli, words_and_options_may_be_mixed)
{
	struct args a = { 0 };
	struct err e = { "" };
	bool help;

	cr_assert_eq(parse("balloon", "web1 --wait 512M -t 5m", &a, &help, &e), 0, "%s", e.msg);
	cr_assert(a.wait);
	cr_assert_eq(a.timeout_s, 300);
	cr_assert_eq(in.pos.count, 2);
	cr_assert_str_eq(in.pos.items[1], "512M");
	opt_fini(&in, &a);
	cr_assert_eq(parse("balloon", "--wait", &a, &help, &e), -EINVAL);
	cr_assert(strstr(e.msg, "balloon NAME [SIZE]"), "%s", e.msg);
	opt_fini(&in, &a);
}

Test(cli, seconds_are_read_with_and_without_unit)
{
	static const struct { const char *text; int64_t seconds; } rows[] = {
		{ "0", 0 }, { "30", 30 }, { "30s", 30 }, { "5m", 300 }, { "2h", 7200 }, { "1d", 86400 },
		{ "", -1 }, { "s", -1 }, { "-1", -1 }, { "1.5s", -1 }, { "5 m", -1 }, { "5ms", -1 },
		{ "99999999999999999999", -1 },
	};

	for (size_t i = 0; i < ARRAY_LEN(rows); i++) {
		uint64_t s = 0;
		int rc = seconds_parse(rows[i].text, &s, NULL);

		cr_expect_eq(rc, rows[i].seconds < 0 ? -EINVAL : 0, "'%s'", rows[i].text);
		if (!rc)
			cr_expect_eq((int64_t)s, rows[i].seconds, "'%s'", rows[i].text);
	}
}

Test(cli, nearest_finds_slips_and_beginnings_only)
{
	static const char *const names[] = { "run", "stop", "status", "stats", "balloon" };
	static const struct { const char *text, *near; } rows[] = {
		{ "rnu", "run" }, { "stopp", "stop" }, { "stast", "stats" }, { "ball", "balloon" },
		{ "baloon", "balloon" }, { "xyzzy", NULL }, { "r", NULL }, { "", NULL },
	};

	for (size_t i = 0; i < ARRAY_LEN(rows); i++) {
		const char *near = nearest(rows[i].text, names, ARRAY_LEN(names));

		cr_expect(near == rows[i].near || (near && rows[i].near && !strcmp(near, rows[i].near)),
			  "'%s': %s", rows[i].text, near ? near : "nothing");
	}
}

/* ---- the description ----------------------------------------------------------------- */

static char scratch[64];

static const char *file(const char *name, const char *content)
{
	static char path[4][128];
	static unsigned next;
	char *p = path[next++ % 4];
	int fd;

	if (!scratch[0]) {
		snprintf(scratch, sizeof(scratch), "/tmp/test_cli.XXXXXX");
		cr_assert(mkdtemp(scratch));
	}
	snprintf(p, 128, "%s/%s", scratch, name);
	fd = open(p, O_WRONLY | O_CREAT | O_TRUNC, 0600);
	cr_assert(fd >= 0 && write(fd, content, strlen(content)) >= 0);
	close(fd);
	return p;
}

static void remove_scratch(void)
{
	char cmd[128];

	if (!scratch[0])
		return;
	snprintf(cmd, sizeof(cmd), "rm -rf '%s'", scratch);
	cr_expect_eq(system(cmd), 0);
}

/* The two sides of the description are written apart: this is where they meet. */
Test(cli_spec, description_is_understood_by_the_vmm, .fini = remove_scratch)
{
	const char *disk = file("disk", "x");
	struct vm_config *cfg = calloc(1, sizeof(*cfg));
	json_t *config = NULL;
	struct vm_paths p;
	struct err e = { "" };
	char line[512], *text;

	snprintf(line, sizeof(line), "-k %s -i %s -d %s,ro,serial=one,direct --append quiet --append splash "
		 "--balloon reporting=off,stats-interval=9s --no-reboot --hugepages always -m 2G -c 3 --detach "
		 "--limit 256M",
		 file("kernel", "k"), file("initrd", "i"), disk);
	cr_assert_eq(parse_run(line, &e), 0, "%s", e.msg);
	cr_assert_eq(spec_build(&run_args, &config, &e), 0, "%s", e.msg);
	cr_assert_eq(vm_paths_init(&p, "/run/brim", "web1", &e), 0);
	cr_assert_eq(spec_place(config, &p, &e), 0);
	text = json_dumps(config, JSON_COMPACT);
	cr_assert_eq(vm_config_parse(cfg, text, strlen(text), &e), 0, "%s", e.msg);
	cr_expect_str_eq(cfg->name, "web1");
	cr_expect_str_eq(cfg->run_dir, "/run/brim/web1");
	cr_expect_str_eq(cfg->cmdline, DEFAULT_CMDLINE " quiet splash");
	cr_expect_str_eq(cfg->disks[0].path, disk);
	cr_expect_str_eq(cfg->disks[0].serial, "one");
	cr_expect(cfg->disks[0].readonly && cfg->disks[0].direct);
	cr_expect_eq(cfg->memory_bytes, 2 * GiB);
	cr_expect_eq(cfg->memory_limit_bytes, 256 * MiB);
	cr_expect_eq(cfg->cpus, 3);
	cr_expect_eq(cfg->huge, RAM_HUGE_ALWAYS);
	cr_expect(!cfg->reboot && !cfg->die_with_parent && !cfg->allow_emulated_kvm && cfg->rng);
	cr_expect(!cfg->balloon.reporting && cfg->balloon.hinting);
	cr_expect_eq(cfg->balloon.stats_interval_s, 9);
	free(text);
	free(cfg);
	json_decref(config);
	opt_fini(&in, &run_args);
}

Test(cli_spec, limit_is_described_only_where_there_is_one, .fini = remove_scratch)
{
	static const struct { const char *options; uint64_t bytes; } rows[] = {
		{ "", 0 }, { "--limit 16M", 16 * MiB }, { "--limit 4G -m 2G", 4 * GiB },
	};
	const char *kernel = file("kernel", "k");

	for (size_t i = 0; i < ARRAY_LEN(rows); i++) {
		json_t *config = NULL;
		struct err e = { "" };
		uint64_t bytes = 0;
		char line[256];

		snprintf(line, sizeof(line), "-k %s %s", kernel, rows[i].options);
		cr_assert_eq(parse_run(line, &e), 0, "%s", e.msg);
		cr_assert_eq(spec_build(&run_args, &config, &e), 0, "%s", e.msg);
		cr_expect_eq(json_u64(config, "memory_limit_bytes", NULL, &bytes), rows[i].bytes > 0);
		cr_expect_eq(bytes, rows[i].bytes, "%s", rows[i].options);
		json_decref(config);
		opt_fini(&in, &run_args);
	}
}

Test(cli_spec, cmdline_replaces_and_append_adds_to_it, .fini = remove_scratch)
{
	json_t *config = NULL;
	char line[256];

	snprintf(line, sizeof(line), "-k %s --cmdline console=hvc0 -a quiet", file("kernel", "k"));
	cr_assert_eq(parse_run(line, NULL), 0);
	cr_assert_eq(spec_build(&run_args, &config, NULL), 0);
	cr_assert_str_eq(json_text(config, "cmdline"), "console=hvc0 quiet");
	json_decref(config);
	opt_fini(&in, &run_args);
}

Test(cli_spec, relative_paths_become_absolute, .fini = remove_scratch)
{
	json_t *disk = NULL;
	struct err e = { "" };
	char want[PATH_MAX];

	file("a,b", "x");
	cr_assert_eq(chdir(scratch), 0);
	/* a doubled comma is one of the path */
	cr_assert_eq(spec_disk("a,,b", &disk, &e), 0, "%s", e.msg);
	snprintf(want, sizeof(want), "%s/a,b", scratch);
	cr_assert_str_eq(json_text(disk, "path"), want);
	json_decref(disk);
	cr_assert_eq(chdir("/"), 0);
}

Test(cli_spec, swap_is_described_as_given, .fini = remove_scratch)
{
	const char *kernel = file("kernel", "k");
	json_t *config = NULL, *swap;
	struct err e = { "" };
	uint64_t bytes = 0;
	char line[256], want[PATH_MAX];

	cr_assert_eq(chdir(scratch), 0);
	snprintf(line, sizeof(line), "-k %s --pool-cap 64M --pool-refine off --swap a,,b,size=3G,"
		 "encrypt", kernel);
	cr_assert_eq(parse_run(line, &e), 0, "%s", e.msg);
	cr_assert_eq(spec_build(&run_args, &config, &e), 0, "%s", e.msg);
	swap = json_object_get(config, "swap");
	snprintf(want, sizeof(want), "%s/a,b", scratch);
	cr_expect_str_eq(json_text(swap, "path"), want);
	cr_expect(json_u64(swap, "size_bytes", NULL, &bytes) && bytes == 3 * GiB);
	cr_expect(json_is_true(json_object_get(swap, "encrypt")));
	cr_expect(json_is_false(json_object_get(swap, "force")));
	cr_expect(json_u64(config, "pool_cap_bytes", NULL, &bytes) && bytes == 64 * MiB);
	cr_expect(json_is_false(json_object_get(config, "pool_refine")));
	json_decref(config);
	opt_fini(&in, &run_args);
	snprintf(line, sizeof(line), "-k %s", kernel);
	cr_assert_eq(parse_run(line, &e), 0, "%s", e.msg);
	cr_assert_eq(spec_build(&run_args, &config, &e), 0, "%s", e.msg);
	cr_expect_null(json_object_get(config, "swap"), "only where it is asked for");
	cr_expect_null(json_object_get(config, "pool_cap_bytes"));
	cr_expect_null(json_object_get(config, "pool_refine"));
	json_decref(config);
	opt_fini(&in, &run_args);
	cr_assert_eq(chdir("/"), 0);
}

/* The description of a VM with these options. */
static json_t *described(const char *options)
{
	const char *kernel = file("kernel", "k");
	json_t *config = NULL;
	struct err e = { "" };
	char line[256];

	snprintf(line, sizeof(line), "-k %s %s", kernel, options);
	cr_assert_eq(parse_run(line, &e), 0, "%s", e.msg);
	cr_assert_eq(spec_build(&run_args, &config, &e), 0, "%s", e.msg);
	opt_fini(&in, &run_args);
	return config;
}

Test(cli_spec, pool_settings_are_described_where_not_the_default, .fini = remove_scratch)
{
	json_t *config = described("--pool-delta small --pool-acceleration 64");
	uint64_t n = 0;

	cr_expect_str_eq(json_text(config, "pool_delta"), "small");
	cr_expect(json_u64(config, "pool_acceleration", NULL, &n) && n == 64);
	json_decref(config);
	config = described("--pool-delta off");
	cr_expect_str_eq(json_text(config, "pool_delta"), "off");
	json_decref(config);
	config = described("--pool-delta fast --pool-acceleration 1");
	cr_expect_null(json_object_get(config, "pool_delta"));
	cr_expect_null(json_object_get(config, "pool_acceleration"));
	json_decref(config);
}

Test(cli_spec, share_is_described_as_given, .fini = remove_scratch)
{
	const char *kernel = file("kernel", "k");
	json_t *config = NULL, *share;
	struct err e = { "" };
	uint64_t pct = 0;
	char line[256];

	snprintf(line, sizeof(line), "-k %s --share-group blue --share-cpu 25 --share-pace 700", kernel);
	cr_assert_eq(parse_run(line, &e), 0, "%s", e.msg);
	cr_assert_eq(spec_build(&run_args, &config, &e), 0, "%s", e.msg);
	share = json_object_get(config, "share");
	cr_expect_str_eq(json_text(share, "group"), "blue");
	cr_expect(json_u64(share, "cpu_pct", NULL, &pct) && pct == 25);
	cr_expect(json_u64(share, "pages_per_s", NULL, &pct) && pct == 700);
	json_decref(config);
	opt_fini(&in, &run_args);
	snprintf(line, sizeof(line), "-k %s", kernel);
	cr_assert_eq(parse_run(line, &e), 0, "%s", e.msg);
	cr_assert_eq(spec_build(&run_args, &config, &e), 0, "%s", e.msg);
	cr_expect_null(json_object_get(config, "share"), "only where it is asked for");
	json_decref(config);
	opt_fini(&in, &run_args);
}

Test(cli_spec, wrong_descriptions_say_what_is_wrong, .fini = remove_scratch)
{
	const char *kernel = file("kernel", "k"), *empty = file("empty", "");
	const struct { const char *line; int rc; const char *says; } rows[] = {
		{ "", -EINVAL, "a kernel is missing" },
		{ "-k /no/such", -ENOENT, "kernel /no/such: no such file" },
		{ "-k /tmp", -ENODEV, "kernel /tmp: not a regular file" },
		{ "-k $E", -ENODATA, "the file is empty" },
		{ "-k $K -i /no/initrd", -ENOENT, "initrd /no/initrd: no such file" },
		{ "-k $K -d /no/disk", -ENOENT, "disk /no/disk: no such file" },
		{ "-k $K -d /dev/null", -ENODEV, "not a regular file or block device" },
		{ "-k $K -d $K,rw", -EINVAL, "'rw' is none of ro, direct, serial=S" },
		{ "-k $K -d ,ro", -EINVAL, "the path is missing" },
		{ "-k $K -d $K,serial=123456789012345678901", -EINVAL, "1 to 20 characters" },
		{ "-k $K -d $K -d $K,ro", -EINVAL, "is given twice" },
		{ "-k $K --swap ,encrypt", -EINVAL, "the path is missing" },
		{ "-k $K --swap /s,size=lots", -EINVAL, "'lots' is not a size" },
		{ "-k $K --swap /s,size=4M", -EINVAL, "at least 5M" },
		{ "-k $K --swap /s,ro", -EINVAL, "'ro' is none of size=SIZE, encrypt, force" },
		{ "-k $K --share-group a/b", -EINVAL, "--share-group 'a/b': a name has 1 to 63" },
		{ "-k $K --swap /dev/null", -ENODEV, "swap /dev/null: not a regular file or block" },
		{ "-k $K --swap /no/such/swap", -ENOENT, "swap /no/such/swap: cannot be made" },
		{ "-k $K -d $K --swap $K,force", -EINVAL, "is one of the VM's disks" },
		{ "-k $K -n tap0", -EINVAL, "'tap0' is none of tap=NAME" },
		{ "-k $K -n mac=52:54:00:12:34:56", -EINVAL, "tap=NAME is missing" },
		{ "-k $K -n tap=t0,mac=52:54:00:12:34", -EINVAL, "is not a card's address" },
		{ "-k $K -n tap=t0,mac=53:54:00:12:34:56", -EINVAL, "is not a card's address" },
		{ "-k $K -n tap=0123456789abcdef", -EINVAL, "1 to 15 characters" },
		{ "-k $K -n tap=lo", -ENODEV, "this interface is not a tap" },
		{ "-k $K --balloon reporting", -EINVAL, "reporting must be on or off" },
		{ "-k $K --balloon size=1", -EINVAL, "'size' is none of" },
		{ "-k $K --balloon stats-interval=2h", -EINVAL, "at most an hour" },
		{ "-k $K --console --detach", -EINVAL, "exclude each other" },
		{ "-k $K -m 67108865", -EINVAL, "must be a multiple of 2 MiB" },
	};

	for (size_t i = 0; i < ARRAY_LEN(rows); i++) {
		char line[512] = "";
		struct err e = { "" };
		json_t *config = NULL;

		for (const char *c = rows[i].line; *c; c++) {
			const char *put = c[0] != '$' ? NULL : c[1] == 'K' ? kernel : empty;

			snprintf(line + strlen(line), sizeof(line) - strlen(line), put ? "%s" : "%.1s",
				 put ? put : c);
			c += put ? 1 : 0;
		}
		cr_assert_eq(parse_run(line, &e), 0, "%s: %s", line, e.msg);
		cr_expect_eq(spec_build(&run_args, &config, &e), rows[i].rc, "%s: %s", line, e.msg);
		cr_expect(strstr(e.msg, rows[i].says), "%s: said '%s'", line, e.msg);
		opt_fini(&in, &run_args);
	}
}

Test(cli_spec, two_readers_of_a_disk_are_allowed, .fini = remove_scratch)
{
	const char *kernel = file("kernel", "k");
	json_t *config = NULL;
	char line[512];

	snprintf(line, sizeof(line), "-k %s -d %s,ro -d %s,ro", kernel, kernel, kernel);
	cr_assert_eq(parse_run(line, NULL), 0);
	cr_assert_eq(spec_build(&run_args, &config, NULL), 0);
	json_decref(config);
	opt_fini(&in, &run_args);
}

/* ---- the escape key ------------------------------------------------------------------- */

Test(cli_escape, keys_do_what_the_table_says)
{
	static const struct { const char *keys; enum escape_action last; const char *sent; } rows[] = {
		{ "abc", ESCAPE_SEND, "abc" },
		{ "a\x1d", ESCAPE_NONE, "a" },
		{ "\x1d" "d", ESCAPE_DETACH, "" },
		{ "\x1ds", ESCAPE_STOP, "" },
		{ "\x1dk", ESCAPE_KILL, "" },
		{ "\x1d?", ESCAPE_HELP, "" },
		{ "\x1d]", ESCAPE_SEND, "\x1d" },
		{ "\x1d\x1d", ESCAPE_SEND, "\x1d" },
		{ "\x1dx", ESCAPE_UNKNOWN, "" },
		{ "\x1dxd", ESCAPE_SEND, "d" }, /* armed for one key only */
		{ "\x1d]d", ESCAPE_SEND, "\x1d" "d" },
		{ "\x03\x04\x1a", ESCAPE_SEND, "\x03\x04\x1a" },
	};

	for (size_t i = 0; i < ARRAY_LEN(rows); i++) {
		enum escape_action action = ESCAPE_NONE;
		struct escape s = { false };
		char sent[16] = "";
		uint8_t out;

		for (const char *k = rows[i].keys; *k; k++) {
			action = escape_feed(&s, (uint8_t)*k, &out);
			if (action == ESCAPE_SEND)
				sent[strlen(sent)] = (char)out;
		}
		cr_expect_eq(action, rows[i].last, "row %zu", i);
		cr_expect_str_eq(sent, rows[i].sent, "row %zu", i);
	}
}

/* ---- the terminal ---------------------------------------------------------------------- */

enum way { BY_EXIT, BY_RESTORE, BY_SIGNAL };

/* In a child on a terminal of its own: raw, then the end in some way. */
static _Noreturn void end_raw(enum way way, int sig)
{
	struct err e;

	/* Criterion catches crashes in its children; this one is to die of them */
	for (int i = 1; i < NSIG; i++)
		signal(i, SIG_DFL);
	if (tty_raw(STDIN_FILENO, &e))
		_exit(99);
	if (write(STDOUT_FILENO, "raw", 3) != 3)
		_exit(98);
	if (way == BY_SIGNAL) {
		raise(sig);
	} else if (way == BY_RESTORE) {
		tty_restore();
		_exit(0);
	}
	exit(0);
}

static bool same_settings(const struct termios *a, const struct termios *b)
{
	return a->c_iflag == b->c_iflag && a->c_oflag == b->c_oflag && a->c_cflag == b->c_cflag &&
	       a->c_lflag == b->c_lflag && memcmp(a->c_cc, b->c_cc, sizeof(a->c_cc)) == 0;
}

/* Keeps the slave open, so that its settings outlive the child. */
static void check_restored(enum way way, int sig)
{
	struct termios before, after;
	int master, slave, status = 0;
	char seen[8];
	pid_t pid;

	cr_assert_eq(openpty(&master, &slave, NULL, NULL, NULL), 0);
	cr_assert_eq(tcgetattr(slave, &before), 0);
	fflush(NULL);
	pid = fork();
	if (pid == 0) {
		close(master);
		login_tty(slave);
		end_raw(way, sig);
	}
	cr_assert_eq(read(master, seen, sizeof(seen)), 3);
	cr_assert_eq(waitpid(pid, &status, 0), pid);
	if (way == BY_SIGNAL)
		cr_expect(WIFSIGNALED(status) && WTERMSIG(status) == sig, "signal %d, status %#x", sig, status);
	else
		cr_expect(WIFEXITED(status) && WEXITSTATUS(status) == 0, "status %#x", status);
	cr_assert_eq(tcgetattr(slave, &after), 0);
	cr_expect(same_settings(&before, &after), "way %d, signal %d", way, sig);
	close(master);
	close(slave);
}

Test(cli_tty, settings_come_back_on_every_end)
{
	static const int signals[] = {
		SIGSEGV, SIGABRT, SIGBUS, SIGFPE, SIGILL, SIGTERM, SIGINT, SIGHUP, SIGQUIT, SIGALRM, SIGUSR1,
	};

	check_restored(BY_EXIT, 0);
	check_restored(BY_RESTORE, 0);
	for (size_t i = 0; i < ARRAY_LEN(signals); i++)
		check_restored(BY_SIGNAL, signals[i]);
}

/* So that the test above cannot pass because nothing was ever changed. */
Test(cli_tty, settings_are_raw_in_between)
{
	struct termios t;
	int master, slave;
	struct err e;

	cr_assert_eq(openpty(&master, &slave, NULL, NULL, NULL), 0);
	cr_assert_eq(tty_raw(slave, &e), 0);
	cr_assert_eq(tcgetattr(slave, &t), 0);
	cr_expect_not(t.c_lflag & (ICANON | ECHO | ISIG));
	tty_restore();
	cr_assert_eq(tcgetattr(slave, &t), 0);
	cr_expect(t.c_lflag & ICANON);
}

/* ---- what a VM says of its memory ---------------------------------------------------------- */

static void memory_in(const char *text, struct memory *m)
{
	json_t *status = json_loads(text, JSON_DECODE_ANY, NULL);

	cr_assert(status, "%s", text);
	memset(m, 0xff, sizeof(*m));
	memory_of(status, m);
	json_decref(status);
}

Test(cli_memory, away_is_counted_by_what_it_costs)
{
	struct memory m;

	memory_in("{\"memory_bytes\": 1000, \"resident_bytes\": 100, \"engine\": {\"limit_bytes\": 200,"
		  "\"present_bytes\": 90, \"staged_bytes\": 1, \"filled_bytes\": 20, \"packed_bytes\": 300,"
		  "\"pool_bytes\": 70, \"pool_overhead_bytes\": 3, \"own_bytes\": 5, \"wanted_bytes\": 8,"
		  "\"cold_bytes\": [[1, 60], [2, 50], [32, 40]]}}", &m);
	cr_expect(m.engine && m.assigned_known && m.resident_known);
	cr_expect_eq(m.assigned_bytes, 1000);
	cr_expect_eq(m.resident_bytes, 100);
	cr_expect_eq(m.limit_bytes, 200);
	cr_expect_eq(m.wanted_bytes, 8);
	cr_expect_eq(m.away_bytes, 321);
	cr_expect_eq(m.away_cost_bytes, 71); /* staged pages are not packed yet, filled ones cost nothing */
	cr_expect_eq(m.held_bytes, 171);
	cr_expect_eq(m.own_bytes, 5);
	cr_expect_eq(m.pool_overhead_bytes, 3);
	cr_expect_eq(m.cold_bytes, 40);
}

Test(cli_memory, what_a_vm_does_not_say_is_nothing)
{
	static const char *const rows[] = {
		"{}", "null", "{\"engine\": null}", "{\"engine\": 7}", "{\"engine\": [1]}",
		"{\"state\": \"died\", \"memory_bytes\": null, \"resident_bytes\": -1}",
	};
	struct memory m;

	for (size_t i = 0; i < ARRAY_LEN(rows); i++) {
		memory_in(rows[i], &m);
		cr_expect(!m.engine && !m.assigned_known && !m.resident_known, "%s", rows[i]);
		cr_expect(!m.held_bytes && !m.away_bytes && !m.limit_bytes && !m.cold_bytes, "%s", rows[i]);
	}
	memory_in("{\"resident_bytes\": 100, \"engine\": {\"cold_bytes\": [], \"pool_bytes\": -3}}", &m);
	cr_expect(m.engine && m.held_bytes == 100 && !m.cold_bytes);
	memory_in("{\"engine\": {\"cold_bytes\": [[1, 60], 7]}}", &m);
	cr_expect(m.engine && !m.cold_bytes);
}

/* ---- texts ------------------------------------------------------------------------------- */

static char *print_to_memory(void (*print)(FILE *out, const struct cmd *c), const struct cmd *c)
{
	char *text = NULL;
	size_t len;
	FILE *f = open_memstream(&text, &len);

	cr_assert(f);
	print(f, c);
	fclose(f);
	return text;
}

Test(cli_text, help_fits_a_terminal_and_names_every_option)
{
	for (size_t i = 0; i < command_count; i++) {
		char *text = print_to_memory(help_print, &commands[i]), *save, name[64];
		bool examples = false;

		for (size_t j = 0; j < commands[i].opt_count; j++) {
			snprintf(name, sizeof(name), "--%s", commands[i].opts[j].name);
			cr_expect(strstr(text, name), "%s: %s", commands[i].name, name);
		}
		/* examples are to be copied, so they are not broken */
		for (char *l = strtok_r(text, "\n", &save); l; l = strtok_r(NULL, "\n", &save)) {
			examples = examples || strncmp(l, "Examples", 8) == 0;
			cr_expect(examples || strlen(l) <= 80, "%s: '%s'", commands[i].name, l);
		}
		free(text);
	}
}

/* Nothing in the texts may become a roff request by standing first in a line. */
Test(cli_text, manual_pages_have_only_our_requests)
{
	static const char *const requests[] = { ".TH ", ".SH ", ".TP", ".PP", ".\\\"" };

	for (size_t i = 0; i < command_count; i++) {
		char *text = print_to_memory(man_print, &commands[i]), *save;

		cr_expect(strstr(text, ".SH SYNOPSIS"));
		for (char *l = strtok_r(text, "\n", &save); l; l = strtok_r(NULL, "\n", &save)) {
			bool known = l[0] != '.' && l[0] != '\'';

			for (size_t j = 0; j < ARRAY_LEN(requests); j++)
				known = known || strncmp(l, requests[j], strlen(requests[j])) == 0;
			cr_expect(known, "%s: '%s'", commands[i].name, l);
		}
		free(text);
	}
}

Test(cli_text, table_is_sound)
{
	for (size_t i = 0; i < command_count; i++) {
		const struct cmd *c = &commands[i];

		cr_expect(c->summary && c->synopsis && c->sections && c->man_section, "%s", c->name);
		cr_expect_eq(command_find(c->name), c);
		for (size_t j = 0; j < c->opt_count; j++) {
			cr_expect_eq(c->opts[j].arg == NULL, c->opts[j].type == OPT_FLAG, "%s", c->opts[j].name);
			cr_expect_eq(c->opts[j].choices != NULL, c->opts[j].type == OPT_CHOICE);
			for (size_t k = 0; k < j; k++)
				cr_expect(strcmp(c->opts[j].name, c->opts[k].name) != 0 &&
					  (!c->opts[j].letter || c->opts[j].letter != c->opts[k].letter),
					  "%s: --%s twice", c->name, c->opts[j].name);
		}
	}
}

Test(cli_text, nothing_is_null_in_json)
{
	const json_t *const rows[] = { NULL, json_null() };

	for (size_t i = 0; i < ARRAY_LEN(rows); i++) {
		char *text = NULL;
		size_t len;
		FILE *f = open_memstream(&text, &len);

		json_print(f, rows[i]);
		fclose(f);
		cr_expect_str_eq(text, "null\n");
		free(text);
	}
}

Test(cli_text, durations_read_well)
{
	static const struct { uint64_t seconds; const char *text; } rows[] = {
		{ 0, "0s" }, { 59, "59s" }, { 60, "1m 00s" }, { 3599, "59m 59s" }, { 3600, "1h 00m" },
		{ 86399, "23h 59m" }, { 86400, "1d 0h" }, { 1000000, "11d 13h" },
	};
	char buf[32];

	for (size_t i = 0; i < ARRAY_LEN(rows); i++)
		cr_expect_str_eq(duration_format(buf, sizeof(buf), rows[i].seconds), rows[i].text);
}

Test(cli_text, tables_line_up)
{
	static const struct column columns[] = { { "NAME", false }, { "SIZE", true } };
	struct table *t = table_create(columns, ARRAY_LEN(columns));
	char *text = NULL;
	size_t len;
	FILE *f = open_memstream(&text, &len);

	table_cell(t, GREEN, "a");
	table_size(t, 24 * GiB);
	table_cell(t, PLAIN, "longer");
	table_number(t, 7);
	table_print(t, f);
	fclose(f);
	table_destroy(&t);
	cr_assert_str_eq(text, "NAME      SIZE\n"
			       "a       24 GiB\n"
			       "longer       7\n");
	free(text);
}
