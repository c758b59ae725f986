/*
 * brimd: the process.  One for each run directory, in the foreground; started by whoever
 * starts services, by `brim up`, or by hand.
 *
 *   RUN_DIR/brimd.sock        where VMs come to
 *   RUN_DIR/.brimd/control    where it is commanded (ctl.h)
 *   RUN_DIR/.brimd/api.sock   the same and more over HTTP (api/api.h)
 *   RUN_DIR/.brimd/lock       held while it runs, with its pid
 *   RUN_DIR/.brimd/groups/    what the next one needs to know (recover.c)
 *
 * A VM's name cannot begin with a dot, so no VM's directory can meet ours.
 *
 * SIGTERM and SIGINT end it; VMs run on.  SIGHUP has it read its configuration again, SIGUSR1
 * write what it has into the log.
 *
 * Two parts share its one thread: sharing (share_host_turn), which waits, and everything else
 * (daemon_turn), whose descriptors are one for the first.
 */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <limits.h>
#include <malloc.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <unistd.h>

#include "host/daemon.h"
#include "host/host.h"
#include "vmm/client.h"

#define STORE_SIZE_MIN (1 * MiB)
#define SECOND_NS ((uint64_t)1000000000)

static const char usage[] =
	"Usage: brimd [OPTION]...\n"
	"\n"
	"Keeps the VMs of a configuration running, decides how much of the host's memory\n"
	"each has, and lets VMs of one owner keep pages of the same content once. VMs run\n"
	"on when it ends, and find the next one.\n"
	"\n"
	"  --config FILE          what to keep running (default: nothing until `brim up`)\n"
	"  --http ADDRESS:PORT    serve HTTP there, too (default: on the socket api.sock of\n"
	"                         RUN_DIR/.brimd only); needs --http-token\n"
	"  --http-token FILE      the token of who may do everything there\n"
	"  --http-read-token FILE the token of who may only read\n"
	"  --run-dir DIR          where VMs are (default: as brim: BRIM_RUN_DIR, /run/brim\n"
	"                         for root, else XDG_RUNTIME_DIR/brim)\n"
	"  --store-size SIZE      the most that the shared pages of a share group may be\n"
	"                         (default: the host's RAM; up to 1T)\n"
	"  --index-size SIZE      how much of VMs' RAM is remembered by its hashes, for 25\n"
	"                         bytes and more a page (default: the host's RAM)\n"
	"  --recall-after SECONDS a page that one VM alone has used for so long is asked\n"
	"                         back (default: 60)\n"
	"  --recover-time SECONDS after a start, new VMs wait so long for those of the\n"
	"                         brimd before (default: 10)\n"
	"  --log-level LEVEL      error, warning, info or debug (default: info)\n"
	"  --foreground           what it does anyway\n"
	"  --version              print the version\n"
	"  --help                 print this\n"
	"\n"
	"Signals: SIGTERM and SIGINT end it, SIGHUP has it read its configuration again,\n"
	"SIGUSR1 writes its numbers into the log.\n"
	"Exit status: 0 it was told to end, 1 error, 2 usage.\n";

struct args {
	char run_dir[PATH_MAX];
	const char *config;
	struct api_config api;
	char http_address[64];
	struct share_host_config cfg;
	enum log_level level;
};

/* What it has on the disk. */
struct place {
	char socket[PATH_MAX], lock[PATH_MAX], groups[PATH_MAX], control[PATH_MAX],
		api[PATH_MAX];
	int lock_fd;
};

/* ---- arguments ------------------------------------------------------------------------ */

static int parse_size(const char *text, uint64_t *bytes, struct err *e)
{
	int rc = size_parse(text, bytes, e);

	if (!rc && (*bytes < STORE_SIZE_MIN || *bytes > TiB))
		rc = err_set(e, -ERANGE, "%s: 1M is the least, 1T the most", text);
	return rc;
}

static int parse_seconds(const char *text, uint64_t *ns, struct err *e)
{
	char *end;
	unsigned long v = strtoul(text, &end, 10);

	if (*end || end == text || *text == '-' || v == 0 || v > 1000000)
		return err_set(e, -EINVAL, "'%s' is not a number of seconds (1 to 1000000)", text);
	*ns = v * SECOND_NS;
	return 0;
}

static int parse_level(const char *text, enum log_level *level, struct err *e)
{
	static const char *const names[] = { "error", "warning", "info", "debug" };

	for (size_t i = 0; i < ARRAY_LEN(names); i++)
		if (strcmp(text, names[i]) == 0) {
			*level = (enum log_level)i;
			return 0;
		}
	return err_set(e, -EINVAL, "'%s' is not a level: error, warning, info or debug", text);
}

static int parse_dir(const char *text, char *dir, struct err *e)
{
	if (*text != '/' || strlen(text) >= PATH_MAX / 2)
		return err_set(e, -EINVAL, "'%s' is not an absolute path", text);
	snprintf(dir, PATH_MAX, "%s", text);
	return 0;
}

/* "127.0.0.1:8080", "[::1]:8080", or a port alone. */
static int parse_http(const char *text, struct args *a, struct err *e)
{
	const char *colon = strrchr(text, ':'), *number = colon ? colon + 1 : text;
	size_t len = colon ? (size_t)(colon - text) : 0;
	char *end;
	unsigned long port = strtoul(number, &end, 10);

	if (*end || end == number || *number == '-' || port == 0 || port > UINT16_MAX ||
	    len >= sizeof(a->http_address))
		return err_set(e, -EINVAL, "'%s' is not ADDRESS:PORT", text);
	if (len > 1 && text[0] == '[' && text[len - 1] == ']') {
		text++;
		len -= 2;
	}
	memcpy(a->http_address, text, len);
	a->http_address[len] = '\0';
	a->api.tcp_port = (uint16_t)port;
	a->api.tcp_address = len ? a->http_address : NULL;
	return 0;
}

static int parse_option(int option, const char *value, struct args *a, struct err *e)
{
	uint64_t bytes = 0;
	int rc;

	switch (option) {
	case 'r': return parse_dir(value, a->run_dir, e);
	case 'c':
		a->config = value;
		return 0;
	case 'H': return parse_http(value, a, e);
	case 'T':
		a->api.token_file = value;
		return 0;
	case 'R':
		a->api.read_token_file = value;
		return 0;
	case 's': return parse_size(value, &a->cfg.store_bytes, e);
	case 'i':
		rc = parse_size(value, &bytes, e);
		a->cfg.index_pages = bytes >> PAGE_SHIFT;
		return rc;
	case 'a': return parse_seconds(value, &a->cfg.recall_after_ns, e);
	case 't': return parse_seconds(value, &a->cfg.recover_ns, e);
	case 'l': return parse_level(value, &a->level, e);
	default: return 0; /* --foreground */
	}
}

/* 0 to go on, else an exit status plus one. */
static int parse_args(int argc, char **argv, struct args *a)
{
	static const struct option options[] = {
		{ "run-dir", required_argument, NULL, 'r' },
		{ "config", required_argument, NULL, 'c' },
		{ "http", required_argument, NULL, 'H' },
		{ "http-token", required_argument, NULL, 'T' },
		{ "http-read-token", required_argument, NULL, 'R' },
		{ "store-size", required_argument, NULL, 's' },
		{ "index-size", required_argument, NULL, 'i' },
		{ "recall-after", required_argument, NULL, 'a' },
		{ "recover-time", required_argument, NULL, 't' },
		{ "log-level", required_argument, NULL, 'l' },
		{ "foreground", no_argument, NULL, 'f' },
		{ "version", no_argument, NULL, 'v' },
		{ "help", no_argument, NULL, 'h' },
		{ NULL, 0, NULL, 0 },
	};
	int option, at = 0;

	opterr = 0;
	while ((option = getopt_long(argc, argv, "", options, &at)) != -1) {
		struct err e = { "unknown, or without its value" };

		if (option == 'h' || option == 'v') {
			fputs(option == 'h' ? usage : "brimd " BRIM_VERSION "\n", stdout);
			return 1;
		}
		if (option == '?' || parse_option(option, optarg, a, &e)) {
			fprintf(stderr, "brimd: %s: %s (see --help)\n", option == '?' ?
				argv[optind - 1] : options[at].name, e.msg);
			return 3;
		}
	}
	if (optind < argc)
		fprintf(stderr, "brimd: %s: it takes options only (see --help)\n", argv[optind]);
	return optind < argc ? 3 : 0;
}

/* ---- its place ---------------------------------------------------------------------------- */

static int make_dir(const char *path, struct err *e)
{
	struct stat st;

	if (mkdir(path, 0700) < 0 && errno != EEXIST)
		return err_sys(e, -errno, "cannot make %s", path);
	if (lstat(path, &st) < 0 || !S_ISDIR(st.st_mode) || st.st_uid != geteuid())
		return err_set(e, -EPERM, "%s: not a directory of this user", path);
	return 0;
}

static int join_path(char *out, const char *dir, const char *file, struct err *e)
{
	if (snprintf(out, PATH_MAX, "%s/%s", dir, file) >= PATH_MAX)
		return err_set(e, -ENAMETOOLONG, "%s: the path is too long", dir);
	return 0;
}

static int make_place(struct place *p, const char *run_dir, struct err *e)
{
	char own[PATH_MAX];
	int rc = join_path(own, run_dir, BRIMD_DIR, e);

	if (!rc)
		rc = join_path(p->socket, run_dir, "brimd.sock", e);
	if (!rc)
		rc = join_path(p->lock, own, "lock", e);
	if (!rc)
		rc = join_path(p->groups, own, "groups", e);
	if (!rc)
		rc = join_path(p->api, own, "api.sock", e);
	if (!rc)
		rc = daemon_control_path(run_dir, p->control, sizeof(p->control), e);
	/* The run directory may be there, and be others' too: only ours must be ours. */
	if (!rc && mkdir(run_dir, 0700) < 0 && errno != EEXIST)
		rc = err_sys(e, -errno, "cannot make the run directory %s", run_dir);
	if (!rc)
		rc = make_dir(own, e);
	return rc ? rc : make_dir(p->groups, e);
}

static int take_lock(struct place *p, struct err *e)
{
	char text[32] = "";
	int n;

	p->lock_fd = open(p->lock, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
	if (p->lock_fd < 0)
		return err_sys(e, -errno, "cannot open %s", p->lock);
	if (flock(p->lock_fd, LOCK_EX | LOCK_NB) < 0) {
		n = errno == EWOULDBLOCK ? (int)pread(p->lock_fd, text, sizeof(text) - 1, 0) : 0;
		return err_set(e, -EBUSY, "brimd runs already for %s (pid %ld)", p->socket,
			       n > 0 ? strtol(text, NULL, 10) : 0);
	}
	n = snprintf(text, sizeof(text), "%d\n", (int)getpid());
	if (ftruncate(p->lock_fd, 0) < 0 || pwrite(p->lock_fd, text, (size_t)n, 0) != n)
		return err_sys(e, -errno, "cannot write %s", p->lock);
	return 0;
}

/* ---- running -------------------------------------------------------------------------------- */

/* Both parts, while it runs. */
struct parts {
	struct polled signals; /* first */
	struct share_host *share;
	struct daemon *daemon;
	bool is_over;
};

static void on_signals(struct polled *w, unsigned events);

static int watch_signals(struct parts *parts, struct err *e)
{
	sigset_t set;
	int rc;

	signal(SIGPIPE, SIG_IGN);
	sigemptyset(&set);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGINT);
	sigaddset(&set, SIGUSR1);
	sigaddset(&set, SIGHUP);
	sigprocmask(SIG_BLOCK, &set, NULL);
	parts->signals.fn = on_signals;
	parts->signals.fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
	rc = parts->signals.fd < 0 ? -errno : daemon_watch(parts->daemon, &parts->signals);
	return rc ? err_sys(e, rc, "signals") : 0;
}

static void log_numbers(const struct share_host *h)
{
	struct share_host_stats s;

	share_host_stats(h, &s);
	log_info("%llu VMs in %llu share groups; %llu pages stored once and used %llu times; "
		 "stores %llu KiB, hashes of %llu pages in %llu KiB",
		 (unsigned long long)s.processes, (unsigned long long)s.groups,
		 (unsigned long long)s.store_pages, (unsigned long long)s.held_pages,
		 (unsigned long long)(s.resident_bytes / KiB), (unsigned long long)s.candidates,
		 (unsigned long long)(s.index_bytes / KiB));
	for (unsigned i = CTR_brimd_lookups; i < CTR_COUNT_; i++)
		if (strncmp(counter_table[i].name, "brimd_", 6) == 0 && counter_get(i))
			log_info("%s %llu %s", counter_table[i].name,
				 (unsigned long long)counter_get(i), counter_table[i].unit);
}

static void reload(struct daemon *d)
{
	struct err e = { "" };

	if (daemon_reload(d, &e))
		log_error("nothing was changed: %s", e.msg);
	else
		log_info("the configuration was read again");
}

static void on_signals(struct polled *w, unsigned events)
{
	struct parts *parts = (struct parts *)w;
	struct signalfd_siginfo si;

	(void)events;
	while (read(w->fd, &si, sizeof(si)) == (ssize_t)sizeof(si)) {
		if (si.ssi_signo == SIGHUP)
			reload(parts->daemon);
		else if (si.ssi_signo == SIGUSR1)
			log_numbers(parts->share);
		else
			parts->is_over = true;
	}
}

static int run(struct parts *parts, struct err *e)
{
	int timeout_ms = 0;

	while (timeout_ms >= 0 && !parts->is_over && !daemon_is_over(parts->daemon)) {
		int rc = share_host_turn(parts->share, timeout_ms);

		timeout_ms = rc ? rc : daemon_turn(parts->daemon);
	}
	return timeout_ms < 0 ? err_sys(e, timeout_ms, "event loop") : 0;
}

static int serve(struct parts *parts, const struct place *p, struct err *e)
{
	int rc = watch_signals(parts, e);

	if (!rc)
		rc = share_host_listen(parts->share, p->socket, e);
	if (!rc && (rc = share_host_watch(parts->share, daemon_fd(parts->daemon))))
		err_sys(e, rc, "event loop");
	if (rc)
		return rc;
	log_info("brimd %s: listening on %s", BRIM_VERSION, p->socket);
	rc = run(parts, e);
	log_info("ended; VMs run on");
	(void)unlink(p->socket);
	return rc;
}

/* Two descriptors a VM, and memory that comes back when it is freed. */
static void prepare(void)
{
	struct rlimit files;

	mallopt(M_MMAP_THRESHOLD, 128 * 1024);
	prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
	umask(077);
	if (getrlimit(RLIMIT_NOFILE, &files) == 0) {
		files.rlim_cur = files.rlim_max;
		(void)setrlimit(RLIMIT_NOFILE, &files);
	}
}

/* What the command line says counts, then the configuration. */
static int take_settings(struct args *a, const struct host_config *c, struct err *e)
{
	const struct host_host *h = &c->host;

	if (!a->cfg.store_bytes)
		a->cfg.store_bytes = h->store_bytes;
	if (!a->cfg.index_pages)
		a->cfg.index_pages = h->index_bytes >> PAGE_SHIFT;
	if (!a->cfg.recall_after_ns)
		a->cfg.recall_after_ns = h->recall_after_ms * (SECOND_NS / 1000);
	if (!a->api.token_file)
		a->api.token_file = h->api_token_file;
	return h->api_listen && !a->api.tcp_port ? parse_http(h->api_listen, a, e) : 0;
}

static int create(struct parts *parts, struct args *a, const struct place *p, struct err *e)
{
	struct daemon_config dc = { .run_dir = a->run_dir, .control = p->control };
	struct host_config *config = NULL;
	int rc = a->config ? daemon_load(a->config, 0, &config, e) : 0;

	if (!rc && config)
		rc = take_settings(a, config, e);
	a->cfg.state_dir = p->groups;
	if (!rc)
		rc = share_host_create(&parts->share, &a->cfg, e);
	dc.share = parts->share;
	dc.api = a->api;
	dc.api.unix_path = p->api;
	if (!rc)
		rc = daemon_create(&parts->daemon, &dc, e);
	if (!rc && config)
		return daemon_up(parts->daemon, config, e);
	host_config_destroy(&config);
	return rc;
}

int main(int argc, char **argv)
{
	struct args a = { .level = LOG_INFO };
	struct place p = { .lock_fd = -1 };
	struct parts parts = { .signals = { .fd = -1 } };
	struct err e = { "" };
	int rc = parse_args(argc, argv, &a);

	if (rc)
		return rc - 1;
	prepare();
	log_init("brimd", 2, a.level);
	role_set(ROLE_LOOP);
	if (!*a.run_dir)
		rc = rundir_base(a.run_dir, sizeof(a.run_dir), &e);
	if (!rc)
		rc = make_place(&p, a.run_dir, &e);
	if (!rc)
		rc = take_lock(&p, &e);
	if (!rc)
		rc = create(&parts, &a, &p, &e);
	if (!rc)
		rc = serve(&parts, &p, &e);
	daemon_destroy(&parts.daemon);
	share_host_destroy(&parts.share);
	if (rc)
		fprintf(stderr, "brimd: %s\n", e.msg);
	return rc ? 1 : 0;
}
