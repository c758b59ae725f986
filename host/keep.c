/*
 * VMs kept running: started in order, adopted, watched, restarted, stopped.
 */
#include "host/keep.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define ANSWER_NS ((uint64_t)60000000000) /* a start without a word for so long has failed */
#define GRACE_NS ((uint64_t)10000000000)  /* after a stop's own time is over */
#define LOOK_NS ((uint64_t)1000000000)    /* for VMs that others have started */
#define DELAY_MAX_NS ((uint64_t)300000000000)
#define STEADY_NS ((uint64_t)60000000000) /* after so long a run a failure counts as the first */
#define MS_NS ((uint64_t)1000000)

enum watched { WATCH_READY, WATCH_END };

/* A descriptor of a guest. */
struct guest_fd {
	struct polled polled; /* first */
	struct keeper *k;
	struct guest *g;
};

struct guest_watch {
	struct guest_fd fd[2]; /* by enum watched */
	char line[512];        /* what has come of the ready line */
	size_t len;
};

struct keeper {
	struct poller *poller;
	struct keeper_config cfg;
	char run_dir[RUN_PATH_MAX];
	const struct host_config *config; /* NULL: none yet */
	struct guest *guests;
	uint64_t looked_ns, started_ns;
	uint64_t runs; /* processes known so far */
};

const char *guest_state_name(enum guest_state s)
{
	static const char *const names[] = {
		[GUEST_OFF] = "off", [GUEST_WAITING] = "waiting", [GUEST_STARTING] = "starting",
		[GUEST_RUNNING] = "running", [GUEST_STOPPING] = "stopping", [GUEST_FAILED] = "failed",
	};

	return names[s];
}

static void set_state(struct guest *g, enum guest_state s)
{
	g->state = s;
	g->since_ns = now_ns();
}

static void say(struct guest *g, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

static void say(struct guest *g, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(g->why, sizeof(g->why), fmt, ap);
	va_end(ap);
}

/* ---- the list ------------------------------------------------------------------------ */

struct guest *keeper_guests(struct keeper *k)
{
	return k->guests;
}

struct guest *keeper_find(struct keeper *k, const char *name)
{
	struct guest *g = k->guests;

	while (g && strcmp(g->paths.name, name) != 0)
		g = g->next;
	return g;
}

static struct guest *add_guest(struct keeper *k, const char *name, struct err *e)
{
	struct guest *g = calloc(1, sizeof(*g)), **at = &k->guests;
	int rc;

	if (g)
		g->watch = calloc(1, sizeof(*g->watch));
	if (!g || !g->watch) {
		free(g);
		err_sys(e, -ENOMEM, "VM %s", name);
		return NULL;
	}
	rc = vm_paths_init(&g->paths, k->run_dir, name, e);
	if (rc) {
		free(g->watch);
		free(g);
		return NULL;
	}
	for (unsigned i = 0; i < ARRAY_LEN(g->watch->fd); i++)
		g->watch->fd[i] = (struct guest_fd){ { .fd = -1 }, k, g };
	set_state(g, GUEST_OFF);
	while (*at)
		at = &(*at)->next;
	*at = g;
	return g;
}

static void close_fds(struct keeper *k, struct guest *g)
{
	for (unsigned i = 0; i < ARRAY_LEN(g->watch->fd); i++)
		poller_close(k->poller, &g->watch->fd[i].polled);
	link_close(&g->link);
}

static void free_guest(struct keeper *k, struct guest *g)
{
	close_fds(k, g);
	free(g->watch);
	free(g);
}

/* Those that nobody needs to know of any more. */
static void forget_strangers(struct keeper *k)
{
	struct guest **at = &k->guests, *g;

	while ((g = *at)) {
		if (g->vm || g->pid) {
			at = &g->next;
			continue;
		}
		*at = g->next;
		free_guest(k, g);
	}
}

/* ---- promises ------------------------------------------------------------------------- */

/* Of a swap file whose size nobody said (docs/control.md). */
static uint64_t swap_default_bytes(uint64_t memory_bytes)
{
	return memory_bytes + memory_bytes / 8;
}

static uint64_t swap_of(const struct host_vm *vm)
{
	if (!vm->swap_enabled || !vm->swap_path)
		return 0;
	return vm->swap_size_bytes ? vm->swap_size_bytes : swap_default_bytes(vm->memory_bytes);
}

/* What a VM that runs has is what it was started with, whatever the configuration says by now.
 * One that nobody configured is promised nothing but what it may come to need. */
static struct admission_vm promise_of(const struct guest *g)
{
	struct admission_vm a = { .name = g->paths.name, .overhead_bytes = g->overhead_bytes,
				  .memory_bytes = g->memory_bytes, .swap_bytes = g->swap_bytes };
	const struct host_vm *vm = g->vm;

	if (vm) {
		a.cpus = (unsigned)vm->cpus;
		a.reservation_bytes = vm->reservation_bytes;
	}
	if (vm && !g->pid) {
		a.memory_bytes = vm->memory_bytes;
		a.swap_bytes = swap_of(vm);
	}
	if (a.reservation_bytes > a.memory_bytes)
		a.reservation_bytes = a.memory_bytes;
	return a;
}

uint64_t keeper_promised(const struct keeper *k)
{
	uint64_t sum = 0;

	for (const struct guest *g = k->guests; g; g = g->next) {
		const struct admission_vm a = promise_of(g);

		sum += g->pid ? admission_promise(&a) : 0;
	}
	return sum;
}

static int admit(struct keeper *k, const struct guest *g, struct err *e)
{
	struct admission_vm *running, vm = promise_of(g);
	struct admission out;
	size_t n = 0;
	int rc;

	for (const struct guest *o = k->guests; o; o = o->next)
		n += o->pid != 0;
	running = calloc(n + 1, sizeof(*running));
	if (!running)
		return err_sys(e, -ENOMEM, "VM %s", g->paths.name);
	n = 0;
	for (const struct guest *o = k->guests; o; o = o->next)
		if (o->pid)
			running[n++] = promise_of(o);
	rc = admission_check(&k->cfg.host, running, n, &vm, &out, e);
	free(running);
	return rc;
}

/* ---- its end ---------------------------------------------------------------------------- */

/* The delay doubles with each failure in a row. */
static void try_again(struct guest *g)
{
	uint64_t delay = g->vm->restart_delay_ms * MS_NS;

	for (unsigned i = 1; i < g->tries && delay < DELAY_MAX_NS; i++)
		delay *= 2;
	g->not_before_ns = now_ns() + (delay < DELAY_MAX_NS ? delay : DELAY_MAX_NS);
	set_state(g, GUEST_WAITING);
}

static bool is_to_restart(const struct guest *g, bool failed)
{
	if (!g->vm || g->is_asked_off)
		return false;
	return g->vm->restart == HOST_RESTART_ALWAYS ||
	       (failed && g->vm->restart == HOST_RESTART_ON_FAILURE);
}

/* It has no process any more.  `why` is in g->why where it failed. */
static void ended(struct keeper *k, struct guest *g, bool failed)
{
	struct err e = { "" };

	if (g->state == GUEST_RUNNING && now_ns() - g->since_ns > STEADY_NS)
		g->tries = 0;
	g->tries += failed;
	g->pid = 0;
	g->overhead_bytes = 0;
	close_fds(k, g);
	if (failed)
		log_warn("VM %s: %s", g->paths.name, g->why);
	/* What it left, if it was killed; -EBUSY: somebody has started it anew.  Of VMs that are not
	 * ours, their users may want to see it. */
	if (g->vm && rundir_clean(&g->paths, &e) && failed)
		log_warn("%s", e.msg);
	if (is_to_restart(g, failed) && (!failed || g->tries < g->vm->restart_tries))
		try_again(g);
	else
		set_state(g, failed && !g->is_asked_off ? GUEST_FAILED : GUEST_OFF);
}

/* As a shell would say it.  False: it ended as it should. */
static bool is_failure(struct guest *g, int status)
{
	char log[256] = "";

	if (WIFEXITED(status) && WEXITSTATUS(status) == 0)
		return false;
	rundir_last_log(&g->paths, log, sizeof(log));
	if (WIFSIGNALED(status))
		say(g, "its process died of signal %d (%s)%s%s", WTERMSIG(status),
		    strsignal(WTERMSIG(status)), *log ? "; its log ends with: " : "", log);
	else
		say(g, "its process ended with status %d%s%s", WEXITSTATUS(status),
		    *log ? "; its log ends with: " : "", log);
	return true;
}

/* Of a process that is not our child, what it left tells: in order, it leaves nothing. */
static bool left_a_mess(struct guest *g)
{
	char log[256] = "";

	if (access(g->paths.dir, F_OK) < 0)
		return false;
	rundir_last_log(&g->paths, log, sizeof(log));
	say(g, "its process died%s%s", *log ? "; its log ends with: " : "", log);
	return true;
}

static void process_ended(struct keeper *k, struct guest *g, const int *status)
{
	bool failed = g->is_given_up; /* and g->why says why */

	if (!failed)
		failed = status ? is_failure(g, *status) : left_a_mess(g);
	g->is_given_up = false;
	ended(k, g, failed && g->state != GUEST_STOPPING);
}

static void on_process_end(struct polled *p, unsigned events)
{
	struct guest_fd *fd = (struct guest_fd *)p;
	struct guest *g = fd->g;
	int status = 0;

	(void)events;
	if (g->is_child && waitpid(g->pid, &status, WNOHANG) == g->pid)
		process_ended(fd->k, g, &status);
	else
		process_ended(fd->k, g, NULL);
}

/* Of a child for which no pidfd could be had. */
static void reap_unwatched(struct keeper *k, struct guest *g)
{
	int status = 0;

	if (g->pid && g->is_child && g->watch->fd[WATCH_END].polled.fd < 0 &&
	    waitpid(g->pid, &status, WNOHANG) == g->pid)
		process_ended(k, g, &status);
}

static int watch_process(struct keeper *k, struct guest *g)
{
	struct polled *p = &g->watch->fd[WATCH_END].polled;

	int rc;

	p->fn = on_process_end;
	p->fd = (int)syscall(SYS_pidfd_open, g->pid, 0);
	if (p->fd < 0)
		return -errno;
	rc = poller_add(k->poller, p, EPOLLIN);
	if (rc)
		poller_close(k->poller, p);
	return rc;
}

/* By the pidfd: the number of a process that has ended may be another's by now.  That of a child
 * is not, until it is waited for. */
static void send_signal(const struct guest *g, int signal)
{
	int fd = g->watch->fd[WATCH_END].polled.fd;

	if (fd >= 0)
		(void)syscall(SYS_pidfd_send_signal, fd, signal, NULL, 0);
	else if (g->is_child)
		kill(g->pid, signal);
}

/* ---- its start ---------------------------------------------------------------------------- */

/* Its process ends at once, and on_process_end() hears of it. */
static void not_started(struct guest *g)
{
	g->is_given_up = true;
	send_signal(g, SIGKILL);
}

static void answered(struct keeper *k, struct guest *g)
{
	struct guest_watch *w = g->watch;
	static const char refusal[] = "error: ";

	poller_close(k->poller, &w->fd[WATCH_READY].polled);
	w->line[w->len] = '\0';
	if (strcmp(w->line, "ok") == 0) {
		say(g, "%s", "");
		set_state(g, GUEST_RUNNING);
		log_info("VM %s runs (pid %d)", g->paths.name, (int)g->pid);
		return;
	}
	if (strncmp(w->line, refusal, sizeof(refusal) - 1) == 0)
		say(g, "%s", w->line + sizeof(refusal) - 1);
	else
		say(g, "brim-vmm ended before its guest ran");
	not_started(g);
}

static void on_ready(struct polled *p, unsigned events)
{
	struct guest_fd *fd = (struct guest_fd *)p;
	struct guest_watch *w = fd->g->watch;
	ssize_t n = read(p->fd, w->line + w->len, sizeof(w->line) - 1 - w->len);
	char *nl;

	(void)events;
	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	w->len += n > 0 ? (size_t)n : 0;
	nl = memchr(w->line, '\n', w->len);
	if (nl)
		w->len = (size_t)(nl - w->line);
	if (nl || n <= 0 || w->len == sizeof(w->line) - 1)
		answered(fd->k, fd->g);
}

static int watch_ready(struct keeper *k, struct guest *g, int fd)
{
	struct polled *p = &g->watch->fd[WATCH_READY].polled;

	g->watch->len = 0;
	p->fn = on_ready;
	p->fd = fd;
	if (fcntl(fd, F_SETFL, O_NONBLOCK) < 0)
		return -errno;
	return poller_add(k->poller, p, EPOLLIN);
}

static void start(struct keeper *k, struct guest *g)
{
	json_t *description = host_vm_description(g->vm, g->paths.dir);
	struct vmm_child c;
	struct err e = { "" };
	sigset_t none;
	int rc;

	sigemptyset(&none);
	rc = description ? vmm_spawn(description, &none, &c, &e) :
			   err_sys(&e, -ENOMEM, "VM %s", g->paths.name);
	json_decref(description);
	if (rc) {
		say(g, "%s", e.msg);
		ended(k, g, true);
		return;
	}
	g->pid = c.pid;
	g->run_id = ++k->runs;
	g->memory_bytes = g->vm->memory_bytes;
	g->swap_bytes = swap_of(g->vm);
	g->is_child = true;
	g->is_adopted = false;
	set_state(g, GUEST_STARTING);
	rc = watch_ready(k, g, c.ready_fd);
	if (!rc)
		rc = watch_process(k, g);
	if (rc) {
		say(g, "cannot watch its process: %s", strerror(-rc));
		not_started(g);
	}
}

/* ---- when it may ----------------------------------------------------------------------------- */

static const char *waits_for(struct keeper *k, const struct guest *g)
{
	for (size_t i = 0; i < g->vm->after_count; i++) {
		const char *name = k->config->vms[g->vm->after[i]].name;
		const struct guest *other = keeper_find(k, name);

		if (!other || other->state != GUEST_RUNNING)
			return name;
	}
	return NULL;
}

static unsigned starting(const struct keeper *k)
{
	unsigned n = 0;

	for (const struct guest *g = k->guests; g; g = g->next)
		n += g->state == GUEST_STARTING;
	return n;
}

/* A boot touches a lot of memory at once: not too many at a time, nor too close. */
static bool pace_allows(const struct keeper *k, uint64_t now)
{
	const struct host_host *h = &k->config->host;

	return starting(k) < h->start_parallel &&
	       (!k->started_ns || now - k->started_ns >= h->start_gap_ms * MS_NS);
}

static void consider(struct keeper *k, struct guest *g, uint64_t now)
{
	const char *first;
	struct err e = { "" };

	if (now < g->not_before_ns)
		return;
	first = waits_for(k, g);
	if (first) {
		say(g, "waits for VM %s", first);
		return;
	}
	if (!pace_allows(k, now)) {
		say(g, "waits for others to boot");
		return;
	}
	if (admit(k, g, &e)) {
		log_warn("%s", e.msg);
		say(g, "%s", e.msg + strlen("VM : ") + strlen(g->paths.name));
		set_state(g, GUEST_FAILED);
		return;
	}
	k->started_ns = now;
	start(k, g);
}

/* ---- stopping ---------------------------------------------------------------------------------- */

static void on_told(void *ctx, int rc, const json_t *result, const char *error)
{
	struct guest *g = ctx;

	(void)result;
	if (rc == -EREMOTEIO) /* else it has gone, or does not listen: press() sees to that */
		say(g, "does not stop: %s", error);
}

static void stop(struct guest *g)
{
	set_state(g, GUEST_STOPPING);
	if (!g->link || link_call(g->link, "stop", NULL, on_told, g))
		send_signal(g, SIGTERM); /* which is the power button, too */
}

static uint64_t stop_time_ns(const struct guest *g)
{
	return g->vm ? g->vm->stop_timeout_s * 1000 * MS_NS : GRACE_NS;
}

static uint64_t grace_ns(const struct keeper *k)
{
	return k->cfg.grace_ns ? k->cfg.grace_ns : GRACE_NS;
}

/* First its process is asked to end itself at once, then it is ended. */
static void press(const struct keeper *k, struct guest *g, uint64_t now)
{
	uint64_t took = now - g->since_ns;

	if (took > stop_time_ns(g) + grace_ns(k))
		send_signal(g, SIGKILL);
	else if (took > stop_time_ns(g) && g->link)
		(void)link_call(g->link, "kill", NULL, on_told, g);
}

static int want_off(struct keeper *k, struct guest *g)
{
	g->is_asked_off = true;
	switch (g->state) {
	case GUEST_WAITING:
	case GUEST_FAILED:
		set_state(g, GUEST_OFF);
		break;
	case GUEST_STARTING:
		say(g, "stopped before its guest ran");
		not_started(g);
		break;
	case GUEST_RUNNING:
		stop(g);
		break;
	default:
		break;
	}
	return 0;
}

int keeper_down(struct keeper *k, const char *name, struct err *e)
{
	struct guest *g = name ? keeper_find(k, name) : NULL;

	if (name && (!g || (!g->vm && !g->pid)))
		return err_set(e, -ENOENT, "there is no VM named %s", name);
	if (name)
		return want_off(k, g);
	for (g = k->guests; g; g = g->next)
		if (g->vm)
			want_off(k, g);
	return 0;
}

/* ---- starting ----------------------------------------------------------------------------------- */

static void want_on(struct guest *g)
{
	g->is_asked_off = false;
	g->tries = 0;
	g->not_before_ns = 0;
	if (g->state == GUEST_OFF || g->state == GUEST_FAILED) {
		say(g, "%s", "");
		set_state(g, GUEST_WAITING);
	}
}

int keeper_up(struct keeper *k, const char *name, struct err *e)
{
	struct guest *g = name ? keeper_find(k, name) : NULL;

	if (name && (!g || !g->vm))
		return err_set(e, -ENOENT, "there is no VM named %s in the configuration", name);
	if (name)
		want_on(g);
	for (g = name ? NULL : k->guests; g; g = g->next)
		if (g->vm && g->vm->autostart)
			want_on(g);
	return 0;
}

/* ---- what runs already ----------------------------------------------------------------------------- */

static uint64_t number_of(const json_t *o, const char *key)
{
	json_int_t v = json_integer_value(json_object_get(o, key));

	return v > 0 ? (uint64_t)v : 0;
}

/* The VM's user may have put anything there. */
static bool is_small_file(int fd)
{
	struct stat st;

	return fstat(fd, &st) == 0 && S_ISREG(st.st_mode) && st.st_size <= (off_t)MiB;
}

/* What it was started with. */
static void read_description(struct guest *g)
{
	int fd = open(g->paths.config, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
	json_t *o = fd < 0 || !is_small_file(fd) ? NULL : json_loadfd(fd, 0, NULL);
	const json_t *swap = json_object_get(o, "swap");

	g->memory_bytes = number_of(o, "memory_bytes");
	g->swap_bytes = number_of(swap, "size_bytes");
	if (json_is_object(swap) && !g->swap_bytes)
		g->swap_bytes = swap_default_bytes(g->memory_bytes);
	json_decref(o);
	if (fd >= 0)
		close(fd);
}

/* The number comes from a file of the VM's user.  The process must be that user's; asked after
 * it is watched, it cannot become another's. */
static bool is_its_users(const struct guest *g)
{
	struct stat process, dir;
	char path[32];

	snprintf(path, sizeof(path), "/proc/%d", (int)g->pid);
	return stat(path, &process) == 0 && lstat(g->paths.dir, &dir) == 0 &&
	       process.st_uid == dir.st_uid;
}

static void adopt(struct keeper *k, struct guest *g, pid_t pid)
{
	read_description(g);
	g->pid = pid;
	g->run_id = ++k->runs;
	g->is_child = false;
	g->is_adopted = true;
	if (watch_process(k, g) || !is_its_users(g)) { /* it has just ended, or never was it */
		close_fds(k, g);
		g->pid = 0;
		return;
	}
	set_state(g, GUEST_RUNNING);
	log_info("VM %s runs already (pid %d)", g->paths.name, (int)pid);
}

/* VMs that were not there, or not ours, when we looked last. */
static int look(struct keeper *k, struct err *e)
{
	char **names = NULL;
	size_t count = 0;
	int rc = rundir_list(k->run_dir, &names, &count, e);

	for (size_t i = 0; i < count && !rc; i++) {
		struct guest *g = keeper_find(k, names[i]);
		enum vm_presence there;
		struct vm_paths p;
		pid_t pid;

		if (g && g->pid)
			continue;
		if (vm_paths_init(&p, k->run_dir, names[i], NULL) ||
		    rundir_probe(&p, &there, &pid, NULL) || there != VM_RUNNING || pid <= 0)
			continue;
		if (!g)
			g = add_guest(k, names[i], NULL);
		if (g)
			adopt(k, g, pid);
	}
	rundir_list_free(&names, count);
	return rc;
}

int keeper_adopt(struct keeper *k, struct err *e)
{
	k->looked_ns = now_ns();
	return look(k, e);
}

/* ---- the configuration ------------------------------------------------------------------------------- */

/* The order of the file, strangers behind. */
static void sort_guests(struct keeper *k)
{
	struct guest *rest = k->guests, **at = &k->guests;

	for (size_t i = 0; i < k->config->vm_count; i++)
		for (struct guest **from = &rest; *from; from = &(*from)->next)
			if ((*from)->vm == &k->config->vms[i]) {
				struct guest *g = *from;

				*from = g->next;
				*at = g;
				at = &g->next;
				break;
			}
	*at = rest;
}

void keeper_configure(struct keeper *k, const struct host_config *cfg,
		      const struct admission_host *host)
{
	k->config = cfg;
	k->cfg.host = *host;
	for (struct guest *g = k->guests; g; g = g->next) {
		g->vm = host_config_vm(cfg, g->paths.name);
		if (!g->vm && !g->pid)
			set_state(g, GUEST_OFF);
	}
	for (size_t i = 0; i < cfg->vm_count; i++) {
		struct guest *g = keeper_find(k, cfg->vms[i].name);
		struct err e = { "" };

		if (!g)
			g = add_guest(k, cfg->vms[i].name, &e);
		if (g)
			g->vm = &cfg->vms[i];
		else
			log_error("%s", e.msg);
	}
	forget_strangers(k);
	sort_guests(k);
}

/* ---- in a while ----------------------------------------------------------------------------------------- */

static void keep_link(struct keeper *k, struct guest *g, uint64_t now)
{
	if (g->link)
		link_tick(g->link, now);
	if (g->link && !link_is_up(g->link))
		link_close(&g->link);
	if (!g->link && (g->state == GUEST_RUNNING || g->state == GUEST_STOPPING))
		(void)link_open(&g->link, k->poller, g->paths.control, g->pid); /* else the next time */
}

static void tick(struct keeper *k, struct guest *g, uint64_t now)
{
	reap_unwatched(k, g);
	keep_link(k, g, now);
	switch (g->state) {
	case GUEST_WAITING:
		consider(k, g, now);
		break;
	case GUEST_STARTING:
		if (now - g->since_ns > ANSWER_NS) {
			say(g, "brim-vmm did not say whether its guest runs");
			not_started(g);
		}
		break;
	case GUEST_STOPPING:
		press(k, g, now);
		break;
	default:
		break;
	}
}

void keeper_tick(struct keeper *k, uint64_t now)
{
	for (struct guest *g = k->guests; g; g = g->next)
		tick(k, g, now);
	if (now - k->looked_ns < LOOK_NS)
		return;
	k->looked_ns = now;
	(void)look(k, NULL);
	forget_strangers(k);
}

bool keeper_is_busy(const struct keeper *k)
{
	for (const struct guest *g = k->guests; g; g = g->next)
		if (g->state == GUEST_WAITING || g->state == GUEST_STARTING ||
		    g->state == GUEST_STOPPING)
			return true;
	return false;
}

/* ---- create and destroy ------------------------------------------------------------------------------------ */

int keeper_create(struct keeper **out, struct poller *p, const struct keeper_config *cfg,
		  struct err *e)
{
	struct keeper *k = calloc(1, sizeof(*k));

	if (!k || strlen(cfg->run_dir) >= sizeof(k->run_dir)) {
		free(k);
		return err_set(e, k ? -ENAMETOOLONG : -ENOMEM, "run directory %s", cfg->run_dir);
	}
	k->poller = p;
	k->cfg = *cfg;
	memcpy(k->run_dir, cfg->run_dir, strlen(cfg->run_dir) + 1);
	*out = k;
	return 0;
}

void keeper_destroy(struct keeper **kp)
{
	struct keeper *k = *kp;

	*kp = NULL;
	if (!k)
		return;
	while (k->guests) {
		struct guest *g = k->guests;

		k->guests = g->next;
		free_guest(k, g);
	}
	free(k);
}
