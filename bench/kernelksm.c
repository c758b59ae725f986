/*
 * See kernelksm.h.
 *
 *   this process                       the keeper (its own session)
 *     fork ------------------------->    remembers the settings
 *     read the answer <-------------     a byte
 *     ...                                read: waits for the pipe to end
 *     close, or death -------------->    run 2 (all unmerged), and settings back
 *
 * What the items take is what the kernel's account (general_profit) takes off for them; a
 * node for a page that is shared is 64 bytes (struct ksm_stable_node, with NUMA).
 */
#include "bench/kernelksm.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "mm/mm.h"

#define ROOT "/sys/kernel/mm/ksm/"
#define NODE_BYTES 64
#define BATCH_FLAT_OUT "1000" /* so short that a pause is prompt */

struct kksm {
	pid_t keeper, ksmd;
	clockid_t clock;
	int pipe;
};

/* In the order in which they are put back: the advisor, where it was on, forbids some. */
static const char *const kept[] = { "pages_to_scan", "sleep_millisecs", "use_zero_pages",
				    "advisor_mode", "run" };
#define KEPT (sizeof(kept) / sizeof(kept[0]))

static int put(const char *name, const char *text)
{
	char path[64];
	int fd, rc = 0;

	snprintf(path, sizeof(path), ROOT "%s", name);
	fd = open(path, O_WRONLY | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	if (write(fd, text, strlen(text)) < 0)
		rc = -errno;
	close(fd);
	return rc;
}

static const char *get(const char *name, char *buf, size_t len)
{
	char path[64];

	snprintf(path, sizeof(path), ROOT "%s", name);
	return bench_read_line(path, buf, len);
}

static int64_t number(const char *name)
{
	char line[64];

	return strtoll(get(name, line, sizeof(line)), NULL, 10);
}

/* "[none] scan-time" to "none"; another setting stays what it is. */
static void get_setting(const char *name, char *out, size_t len)
{
	char line[64], *from, *to;

	get(name, line, sizeof(line));
	from = strchr(line, '[');
	to = from ? strchr(from, ']') : NULL;
	if (to)
		*to = '\0';
	snprintf(out, len, "%s", to ? from + 1 : line);
}

/* ---- the keeper ---------------------------------------------------------------- */

struct keeper {
	char setting[KEPT][64];
	pid_t ksmd;
	int nice;
};

static void keeper_down(const struct keeper *k)
{
	(void)put("run", "2");
	(void)put("advisor_mode", "none");
	for (size_t i = 0; i < KEPT; i++)
		if (k->setting[i][0] && put(kept[i], k->setting[i]))
			fprintf(stderr, ROOT "%s could not be put back to %s\n", kept[i],
				k->setting[i]);
	(void)setpriority(PRIO_PROCESS, (id_t)k->ksmd, k->nice);
}

static _Noreturn void keeper_main(int pipe, pid_t ksmd)
{
	struct keeper k = { .ksmd = ksmd, .nice = getpriority(PRIO_PROCESS, (id_t)ksmd) };
	sigset_t all;
	char c = 0;

	setsid();
	sigfillset(&all);
	sigprocmask(SIG_BLOCK, &all, NULL);
	for (size_t i = 0; i < KEPT; i++)
		get_setting(kept[i], k.setting[i], sizeof(k.setting[i]));
	if (send(pipe, &c, 1, MSG_NOSIGNAL) == 1)
		while (read(pipe, &c, 1) < 0 && errno == EINTR)
			;
	keeper_down(&k);
	_exit(0);
}

static int start_keeper(struct kksm *k)
{
	int ends[2];
	char c;

	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) < 0)
		return -errno;
	fflush(NULL);
	k->keeper = fork();
	if (k->keeper == 0) {
		close(ends[0]);
		keeper_main(ends[1], k->ksmd);
	}
	close(ends[1]);
	k->pipe = ends[0];
	if (k->keeper < 0)
		return -errno;
	return recv(k->pipe, &c, 1, MSG_WAITALL) == 1 ? 0 : -EPIPE;
}

/* ---- open and close ------------------------------------------------------------ */

/* The first process of which that is so, or 0. */
static pid_t find_process(bool (*is)(pid_t pid))
{
	struct dirent *d;
	DIR *dir = opendir("/proc");
	pid_t found = 0;

	while (dir && !found && (d = readdir(dir))) {
		pid_t pid = (pid_t)strtol(d->d_name, NULL, 10);

		if (pid > 0 && is(pid))
			found = pid;
	}
	if (dir)
		closedir(dir);
	return found;
}

static bool is_ksmd(pid_t pid)
{
	char path[64], line[64];

	snprintf(path, sizeof(path), "/proc/%d/comm", (int)pid);
	if (strcmp(bench_read_line(path, line, sizeof(line)), "ksmd"))
		return false;
	snprintf(path, sizeof(path), "/proc/%d/cmdline", (int)pid);
	return !bench_read_line(path, line, sizeof(line))[0]; /* the kernel's have none */
}

/* QEMU makes all of its guests' RAM so, unless it is told not to. */
static bool is_mergeable(pid_t pid)
{
	char path[64], line[64];
	bool found = false;
	FILE *f;

	snprintf(path, sizeof(path), "/proc/%d/ksm_stat", (int)pid);
	f = fopen(path, "re");
	while (f && !found && fgets(line, sizeof(line), f))
		found = strcmp(line, "ksm_mergeable: yes\n") == 0;
	if (f)
		fclose(f);
	return found;
}

static bool objection(pid_t ksmd, char *why, size_t len)
{
	pid_t other;

	if (geteuid() != 0)
		snprintf(why, len, "it needs root");
	else if (access(ROOT "run", W_OK) < 0 || ksmd == 0)
		snprintf(why, len, "this kernel has no KSM");
	else if (number("run") != 0 || number("pages_shared") || number("pages_unshared"))
		snprintf(why, len, "somebody uses KSM");
	else if ((other = find_process(is_mergeable)))
		snprintf(why, len, "it would also merge memory of process %d", (int)other);
	else
		return false;
	return true;
}

struct kksm *kksm_open(char *why, size_t why_len)
{
	struct kksm *k = calloc(1, sizeof(*k));
	int rc;

	VERIFY(k);
	k->pipe = -1;
	k->ksmd = find_process(is_ksmd);
	if (objection(k->ksmd, why, why_len)) {
		kksm_close(&k);
		return NULL;
	}
	rc = clock_getcpuclockid(k->ksmd, &k->clock);
	rc = rc ? -rc : start_keeper(k);
	if (rc) {
		snprintf(why, why_len, "%s", strerror(-rc));
		kksm_close(&k);
	}
	return k;
}

struct kksm *kksm_peer(const struct bench *b)
{
	char why[160];
	struct kksm *k = kksm_open(why, sizeof(why));

	if (!k)
		printf("%s: no KSM to compare with: %s\n", b->name, why);
	return k;
}

void kksm_close(struct kksm **kp)
{
	struct kksm *k = *kp;

	*kp = NULL;
	if (!k)
		return;
	if (k->pipe >= 0)
		close(k->pipe);
	while (k->keeper > 0 && waitpid(k->keeper, NULL, 0) < 0 && errno == EINTR)
		;
	free(k);
}

/* ---- running it ------------------------------------------------------------------ */

static void set(const char *name, const char *text)
{
	int rc = put(name, text);

	if (!rc)
		return;
	fprintf(stderr, ROOT "%s: %s: %s\n", name, text, strerror(-rc));
	exit(2);
}

void kksm_run(struct kksm *k, enum kksm_pace pace)
{
	set("advisor_mode", "none");
	set("sleep_millisecs", pace == KKSM_FLAT_OUT ? "0" : "20");
	set("pages_to_scan", pace == KKSM_FLAT_OUT ? BATCH_FLAT_OUT : "100");
	set("use_zero_pages", "1"); /* one comparison instead of a search */
	if (pace == KKSM_ADVISOR)
		set("advisor_mode", "scan-time");
	(void)setpriority(PRIO_PROCESS, (id_t)k->ksmd, pace == KKSM_FLAT_OUT ? 0 : 5);
	set("run", "1");
}

void kksm_pause(struct kksm *k)
{
	(void)k;
	set("run", "0");
}

void kksm_reset(struct kksm *k)
{
	(void)k;
	set("run", "2");
	set("run", "0");
}

void kksm_counts(const struct kksm *k, struct kksm_counts *c)
{
	(void)k;
	*c = (struct kksm_counts){
		.shared = (uint64_t)number("pages_shared"),
		.sharing = (uint64_t)number("pages_sharing"),
		.unshared = (uint64_t)number("pages_unshared"),
		.changing = (uint64_t)number("pages_volatile"),
		.zero = (uint64_t)number("ksm_zero_pages"),
		.scanned = (uint64_t)number("pages_scanned"),
		.skipped = (uint64_t)number("pages_skipped"),
		.full_scans = (uint64_t)number("full_scans"),
		.profit_bytes = number("general_profit"),
	};
}

uint64_t kksm_full_scans(const struct kksm *k)
{
	(void)k;
	return (uint64_t)number("full_scans");
}

uint64_t kksm_saved_pages(const struct kksm *k)
{
	(void)k;
	return (uint64_t)number("pages_sharing") + (uint64_t)number("ksm_zero_pages");
}

uint64_t kksm_cpu_ns(const struct kksm *k)
{
	struct timespec t;

	VERIFY(clock_gettime(k->clock, &t) == 0);
	return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}

uint64_t kksm_own_bytes(const struct kksm *k)
{
	struct kksm_counts c;

	kksm_counts(k, &c);
	return (uint64_t)((int64_t)((c.sharing + c.zero) * PAGE_BYTES) - c.profit_bytes) +
	       c.shared * NODE_BYTES;
}
