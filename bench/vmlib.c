/*
 * See vmlib.h.  QEMU is spoken to over QMP, brim over its control socket; both are
 * asked the same seldom things.
 *
 * A VM's process is looked at from outside, the same way for both: RSS in
 * /proc/PID/statm, CPU time in /proc/PID/task/N/schedstat (vCPUs apart by the
 * thread's name), and guest RAM in smaps as the run of adjacent anonymous mappings
 * that is exactly as long as the guest's memory.
 */
#include "bench/vmlib.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "mm/mm.h"
#include "vmm/client.h"

#define TEXT_BYTES ((size_t)1 << 18)
#define ARGS_MAX 64
#define REPLY_BYTES 65536
#define STARTING_S 60
#define ENDING_MS 10000
#define NS_PER_MS 1000000u

struct vm {
	struct vm *next;
	struct vm_spec spec;
	char name[16];
	char socket[PATH_MAX]; /* QMP */
	char errors[PATH_MAX]; /* where its stderr goes */
	pid_t child;           /* what we started: `brim run`, or QEMU */
	pid_t pid;             /* the VMM; 0: not known yet */
	int in_fd, out_fd;
	uint64_t started_ns;

	char *text; /* of the console: what was not looked at begins at `seen` */
	size_t len, seen;
	unsigned shells; /* commands given */

	struct vm_paths paths;
	struct ctl *ctl;
	FILE *qmp;
};

/* The program's own state: what must be undone when it ends. */
static struct {
	const struct bench *b;
	struct vm *vms;
	unsigned started;
	int signal_fd;
	char dir[64], brim[PATH_MAX];
	const char *kernels, *images;
	const char *microvm; /* QEMU for it */
	bool trace;
	uint64_t began_ns;
} lib = { .signal_fd = -1 };

/* What a long run is doing, on stderr. */
__attribute__((format(printf, 2, 3)))
static void trace(const struct vm *vm, const char *fmt, ...)
{
	char text[256];
	va_list ap;

	if (!lib.trace)
		return;
	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	fprintf(stderr, "%8.2f %s (%s): %s\n", (double)(now_ns() - lib.began_ns) / 1e9,
		vmm_name(vm->spec.vmm), vm->name, text);
}

/* ---- ways to end --------------------------------------------------------------- */

static void remove_dir(const char *path)
{
	DIR *d = opendir(path);
	struct dirent *e;
	char inner[PATH_MAX];

	while (d && (e = readdir(d))) {
		if (strcmp(e->d_name, ".") == 0 || strcmp(e->d_name, "..") == 0)
			continue;
		snprintf(inner, sizeof(inner), "%s/%s", path, e->d_name);
		if (unlink(inner) < 0)
			remove_dir(inner);
	}
	if (d)
		closedir(d);
	rmdir(path);
}

static void end_all(void)
{
	while (lib.vms) {
		struct vm *vm = lib.vms;

		vm_end(&vm);
	}
	if (lib.dir[0])
		remove_dir(lib.dir);
	lib.dir[0] = '\0';
}

void vm_die(struct vm *vm, const char *sentence, const char *what)
{
	FILE *f = fopen(vm->errors, "re");
	size_t from = vm->len > 2000 ? vm->len - 2000 : 0;
	char line[512];

	fprintf(stderr, "---- the guest's last words:\n%.*s\n----\n", (int)(vm->len - from),
		vm->text + from);
	while (f && fgets(line, sizeof(line), f))
		fprintf(stderr, "%s: %s", vm->name, line);
	if (f)
		fclose(f);
	bench_die(lib.b, "%s: %s%s", vmm_name(vm->spec.vmm), sentence, what);
}

/* ---- what is there --------------------------------------------------------------- */

static bool in_path(const char *program)
{
	const char *path = getenv("PATH");
	char dirs[PATH_MAX], full[PATH_MAX], *save = NULL;

	snprintf(dirs, sizeof(dirs), "%s", path ? path : "/usr/bin:/bin");
	for (char *d = strtok_r(dirs, ":", &save); d; d = strtok_r(NULL, ":", &save)) {
		snprintf(full, sizeof(full), "%s/%s", d, program);
		if (access(full, X_OK) == 0)
			return true;
	}
	return false;
}

static void find_programs(void)
{
	const char *bin = getenv("BRIM_BIN");
	int fd = open("/dev/kvm", O_RDWR | O_CLOEXEC);

	if (fd < 0)
		bench_die(lib.b, "needs KVM, but /dev/kvm cannot be opened (%s); bench/run uses an "
			  "emulated host where there is none", strerror(errno));
	close(fd);
	lib.kernels = getenv("BRIM_KERNELS");
	lib.images = getenv("BRIM_IMAGES");
	if (!lib.kernels || !lib.images)
		bench_die(lib.b, "needs guests, but BRIM_KERNELS and BRIM_IMAGES are not set; "
			  "bench/run sets them (or tests/testhost/run)");
	snprintf(lib.brim, sizeof(lib.brim), "%s/brim", bin ? bin : "build/bin");
	if (access(lib.brim, X_OK) < 0)
		bench_die(lib.b, "%s: %s; `make` builds it", lib.brim, strerror(errno));
	if (!in_path("qemu-system-x86_64"))
		bench_die(lib.b, "the peer, qemu-system-x86_64, is not in PATH (Debian: "
			  "qemu-system-x86)");
	/* Debian's smaller build, which knows no PCI, starts faster: the peer gets it. */
	lib.microvm = in_path("qemu-system-x86_64-microvm") ? "qemu-system-x86_64-microvm"
							    : "qemu-system-x86_64";
}

void vmlib_begin(const struct bench *b)
{
	char line[128];
	sigset_t set;

	lib.b = b;
	lib.trace = getenv("BRIM_BENCH_TRACE") != NULL;
	lib.began_ns = now_ns();
	find_programs();
	sigemptyset(&set);
	sigaddset(&set, SIGINT);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGHUP);
	VERIFY(sigprocmask(SIG_BLOCK, &set, NULL) == 0);
	signal(SIGPIPE, SIG_IGN);
	lib.signal_fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
	/* not $TMPDIR: a socket's path may have 107 characters */
	snprintf(lib.dir, sizeof(lib.dir), "/tmp/brim-bench.XXXXXX");
	if (lib.signal_fd < 0 || !mkdtemp(lib.dir))
		bench_die(b, "cannot make a directory in /tmp: %s", strerror(errno));
	atexit(end_all);
	setenv("BRIM_RUN_DIR", lib.dir, 1);
	printf("load average %s\n", bench_read_line("/proc/loadavg", line, sizeof(line)));
}

const char *vmm_name(enum vmm vmm)
{
	static const char *const names[] = {
		[VMM_BRIM] = "brim",
		[VMM_MICROVM] = "QEMU microvm (pci)",
		[VMM_MICROVM_MMIO] = "QEMU microvm",
		[VMM_Q35] = "QEMU q35",
	};

	return names[vmm];
}

/* ---- starting ------------------------------------------------------------------------ */

struct args {
	unsigned n;
	char *v[ARGS_MAX + 1];
};

__attribute__((format(printf, 2, 3)))
static void arg(struct args *a, const char *fmt, ...)
{
	va_list ap;
	int n;

	VERIFY(a->n < ARGS_MAX);
	va_start(ap, fmt);
	n = vasprintf(&a->v[a->n++], fmt, ap);
	va_end(ap);
	VERIFY(n >= 0);
}

static void args_free(struct args *a)
{
	for (unsigned i = 0; i < a->n; i++)
		free(a->v[i]);
	a->n = 0;
}

static void brim_args(struct args *a, const struct vm *vm)
{
	const struct vm_spec *s = &vm->spec;
	static const char *const huge[] = { "auto", "never", "always" };

	arg(a, "%s", lib.brim);
	arg(a, "run");
	arg(a, "--name=%s", vm->name);
	arg(a, "--kernel=%s/%s/%s", lib.kernels, s->series, s->kernel);
	arg(a, "--initrd=%s/tiny-%s.cpio", lib.images, s->series);
	arg(a, "--memory=%" PRIu64 "M", s->memory_bytes / MiB);
	arg(a, "--cpus=%u", s->cpus);
	arg(a, "--cmdline=%s", s->cmdline);
	arg(a, "--hugepages=%s", huge[s->pages]);
	arg(a, "--balloon=reporting=%s", s->reporting ? "on" : "off");
	arg(a, "--stop-timeout=1s"); /* should we be killed outright */
}

/* The same devices as brim's, and no more than the machine cannot do without. */
static void qemu_args(struct args *a, const struct vm *vm)
{
	const struct vm_spec *s = &vm->spec;
	const char *bus = s->vmm == VMM_MICROVM_MMIO ? "device" : "pci";

	arg(a, "%s", s->vmm == VMM_MICROVM_MMIO ? lib.microvm : "qemu-system-x86_64");
	arg(a, "-M");
	arg(a, "%s", s->vmm == VMM_Q35 ? "q35" : s->vmm == VMM_MICROVM ?
	    "microvm,pcie=on,acpi=on" : "microvm");
	arg(a, "-accel");
	arg(a, "kvm");
	arg(a, "-cpu");
	arg(a, "host");
	arg(a, "-m");
	arg(a, "%" PRIu64 "M", s->memory_bytes / MiB);
	arg(a, "-smp");
	arg(a, "%u", s->cpus);
	arg(a, "-nodefaults");
	arg(a, "-no-user-config");
	arg(a, "-display");
	arg(a, "none");
	arg(a, "-name");
	arg(a, "%s,debug-threads=on", vm->name);
	arg(a, "-chardev");
	arg(a, "stdio,id=serial,signal=off");
	arg(a, "-serial");
	arg(a, "chardev:serial");
	arg(a, "-kernel");
	arg(a, "%s/%s/%s", lib.kernels, s->series, s->kernel);
	arg(a, "-initrd");
	arg(a, "%s/tiny-%s.cpio", lib.images, s->series);
	arg(a, "-append");
	arg(a, "%s", s->cmdline);
	arg(a, "-device");
	arg(a, "virtio-balloon-%s,free-page-reporting=%s", bus, s->reporting ? "on" : "off");
	arg(a, "-device");
	arg(a, "virtio-rng-%s", bus);
	arg(a, "-device");
	arg(a, "virtio-serial-%s", bus);
	arg(a, "-chardev");
	arg(a, "null,id=hvc");
	arg(a, "-device");
	arg(a, "virtconsole,chardev=hvc");
	if (s->control) {
		arg(a, "-qmp");
		arg(a, "unix:%s,server=on,wait=off", vm->socket);
	}
}

static _Noreturn void be_child(const struct vm *vm, char *const *argv, int in, int out)
{
	int errors = open(vm->errors, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	sigset_t none;

	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	signal(SIGPIPE, SIG_DFL);
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	/* QEMU has no option for it: it asks for huge pages wherever it may */
	if (vm->spec.vmm != VMM_BRIM && vm->spec.pages == PAGES_SMALL)
		prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0);
	if (dup2(in, 0) < 0 || dup2(out, 1) < 0 || errors < 0 || dup2(errors, 2) < 0)
		_exit(126);
	execvp(argv[0], argv);
	fprintf(stderr, "%s: %s\n", argv[0], strerror(errno));
	_exit(127);
}

static void prepare(struct vm *vm)
{
	struct err e;

	snprintf(vm->name, sizeof(vm->name), "bench%u", lib.started++);
	snprintf(vm->socket, sizeof(vm->socket), "%s/%s.qmp", lib.dir, vm->name);
	snprintf(vm->errors, sizeof(vm->errors), "%s/%s.err", lib.dir, vm->name);
	vm->text = malloc(TEXT_BYTES);
	VERIFY(vm->text);
	if (vm_paths_init(&vm->paths, lib.dir, vm->name, &e))
		bench_die(lib.b, "%s", e.msg);
}

struct vm *vm_start(const struct vm_spec *spec)
{
	struct vm *vm = calloc(1, sizeof(*vm));
	int in[2], out[2];
	struct args a = { 0 };

	VERIFY(vm);
	vm->spec = *spec;
	prepare(vm);
	if (spec->vmm == VMM_BRIM)
		brim_args(&a, vm);
	else
		qemu_args(&a, vm);
	VERIFY(pipe2(in, O_CLOEXEC) == 0 && pipe2(out, O_CLOEXEC) == 0);
	fflush(NULL);
	vm->started_ns = now_ns();
	vm->child = fork();
	VERIFY(vm->child >= 0);
	if (vm->child == 0)
		be_child(vm, a.v, in[0], out[1]);
	close(in[0]);
	close(out[1]);
	vm->in_fd = in[1];
	vm->out_fd = out[0];
	VERIFY(fcntl(vm->out_fd, F_SETFL, O_NONBLOCK) == 0);
	vm->next = lib.vms;
	lib.vms = vm;
	args_free(&a);
	trace(vm, "started");
	return vm;
}

/* ---- the end --------------------------------------------------------------------------- */

static void forget(struct vm *vm)
{
	struct vm **at = &lib.vms;

	while (*at != vm)
		at = &(*at)->next;
	*at = vm->next;
}

static void learn_pid(struct vm *vm)
{
	enum vm_presence presence;
	struct err e;

	if (vm->pid == 0 && vm->spec.vmm != VMM_BRIM)
		vm->pid = vm->child;
	else if (vm->pid == 0 && rundir_probe(&vm->paths, &presence, &vm->pid, &e))
		vm->pid = 0;
}

static bool wait_child(const struct vm *vm, unsigned ms)
{
	for (unsigned i = 0; i < ms; i++) {
		if (waitpid(vm->child, NULL, WNOHANG) != 0)
			return true;
		usleep(1000);
	}
	return false;
}

void vm_end(struct vm **at)
{
	struct vm *vm = *at;

	*at = NULL;
	if (!vm)
		return;
	forget(vm);
	learn_pid(vm);
	if (vm->pid > 0)
		kill(vm->pid, SIGKILL);
	/* `brim run` ends by itself when its VM is gone */
	if (!wait_child(vm, vm->pid > 0 ? ENDING_MS : 0)) {
		kill(vm->child, SIGKILL);
		waitpid(vm->child, NULL, 0);
	}
	ctl_close(&vm->ctl);
	if (vm->qmp)
		fclose(vm->qmp);
	rundir_clean(&vm->paths, NULL);
	unlink(vm->socket);
	unlink(vm->errors);
	close(vm->in_fd);
	close(vm->out_fd);
	free(vm->text);
	free(vm);
}

/* ---- the console --------------------------------------------------------------------------- */

static void check_signals(void)
{
	struct signalfd_siginfo info;

	if (read(lib.signal_fd, &info, sizeof(info)) != sizeof(info))
		return;
	fprintf(stderr, "%s: interrupted\n", lib.b->name);
	exit(128 + (int)info.ssi_signo);
}

static void drop_old_text(struct vm *vm)
{
	size_t drop = vm->len - TEXT_BYTES / 2;

	if (vm->seen < drop)
		vm->seen = drop;
	memmove(vm->text, vm->text + drop, vm->len - drop);
	vm->len -= drop;
	vm->seen -= drop;
}

/* False: the console is closed. */
static bool take_in(struct vm *vm)
{
	ssize_t n;

	if (vm->len == TEXT_BYTES)
		drop_old_text(vm);
	n = read(vm->out_fd, vm->text + vm->len, TEXT_BYTES - vm->len);
	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return true;
	if (n <= 0)
		return false;
	vm->len += (size_t)n;
	return true;
}

/* Waits until the console says something, at most until then.  Its guest may not
 * end while it is listened to. */
static void listen_until(struct vm *vm, uint64_t until_ns)
{
	struct pollfd fds[] = { { .fd = vm->out_fd, .events = POLLIN },
				{ .fd = lib.signal_fd, .events = POLLIN } };
	uint64_t now = now_ns(), left = until_ns > now ? until_ns - now : 0;
	struct timespec t = { .tv_sec = (time_t)(left / 1000000000),
			      .tv_nsec = (long)(left % 1000000000) };

	ppoll(fds, ARRAY_LEN(fds), &t, NULL);
	if (fds[1].revents)
		check_signals();
	if (fds[0].revents && !take_in(vm))
		vm_die(vm, "it ended before its time", "");
}

/* Where the text after `text` begins, or NULL; `seen` is moved past it. */
static char *find_text(struct vm *vm, const char *text)
{
	size_t n = strlen(text);
	char *at = memmem(vm->text + vm->seen, vm->len - vm->seen, text, n);

	if (!at)
		return NULL;
	vm->seen = (size_t)(at - vm->text) + n;
	return vm->text + vm->seen;
}

bool vm_heard(struct vm *vm, const char *text, unsigned wait_ms, uint64_t *at_ns)
{
	uint64_t until = now_ns() + (uint64_t)wait_ms * NS_PER_MS;

	do {
		if (find_text(vm, text)) {
			*at_ns = now_ns();
			trace(vm, "said: %s", text);
			return true;
		}
		listen_until(vm, until);
	} while (now_ns() < until);
	return false;
}

uint64_t vm_wait_text(struct vm *vm, const char *text, unsigned timeout_s)
{
	uint64_t at;

	if (!vm_heard(vm, text, timeout_s * 1000, &at))
		vm_die(vm, "its guest did not say in time: ", text);
	return at;
}

uint64_t vm_wait_rest(struct vm *vm, const char *text, unsigned timeout_s, char *rest, size_t len)
{
	uint64_t at = vm_wait_text(vm, text, timeout_s);
	size_t from = vm->seen, n;

	vm_wait_text(vm, "\n", timeout_s);
	n = vm->seen - 1 - from;
	if (n >= len)
		n = len - 1;
	memcpy(rest, vm->text + from, n);
	rest[n] = '\0';
	return at;
}

uint64_t vm_started_ns(const struct vm *vm)
{
	return vm->started_ns;
}

void vm_type(struct vm *vm, const char *line)
{
	trace(vm, "typing: %s", line);
	if (dprintf(vm->in_fd, "%s\n", line) < 0)
		vm_die(vm, "cannot be typed to: ", strerror(errno));
}

/* What is typed comes back as an echo, so that the mark must not stand in it. */
uint64_t vm_shell(struct vm *vm, const char *command, unsigned timeout_s)
{
	char line[512], mark[32], status[16];
	uint64_t at;

	vm->shells++;
	snprintf(line, sizeof(line), "%s; echo \"m\"ark-%u-$?", command, vm->shells);
	snprintf(mark, sizeof(mark), "mark-%u-", vm->shells);
	vm_type(vm, line);
	at = vm_wait_rest(vm, mark, timeout_s, status, sizeof(status));
	if (atoi(status) != 0)
		vm_die(vm, "its guest failed at: ", command);
	return at;
}

void vm_pass(struct vm *vm, unsigned ms)
{
	uint64_t until = now_ns() + (uint64_t)ms * NS_PER_MS;

	while (now_ns() < until)
		listen_until(vm, until);
}

/* ---- what it costs ---------------------------------------------------------------------------- */

static pid_t pid_of(struct vm *vm)
{
	learn_pid(vm);
	if (vm->pid <= 0)
		vm_die(vm, "its process cannot be found", "");
	return vm->pid;
}

/* One mapping of smaps. */
struct mapping {
	uint64_t from, to, rss, private_;
	bool may_be_ram;
};

struct maps {
	unsigned n, room;
	struct mapping *v;
};

static struct mapping *maps_add(struct maps *m)
{
	if (m->n == m->room) {
		m->room = m->room ? 2 * m->room : 256;
		m->v = realloc(m->v, m->room * sizeof(*m->v));
		VERIFY(m->v);
	}
	m->v[m->n] = (struct mapping){ 0 };
	return &m->v[m->n++];
}

/* "7f00-7f01 rw-p 00000000 00:00 0" begins a mapping, "Rss:  12 kB" goes on. */
static void maps_line(struct maps *m, const char *line)
{
	uint64_t from, to, inode, kib;
	char perms[5], key[32];
	int end = 0;

	if (sscanf(line, "%" SCNx64 "-%" SCNx64 " %4s %*x %*s %" SCNu64 "%n", &from, &to, perms,
		   &inode, &end) == 4) {
		struct mapping *v = maps_add(m);

		while (isspace((unsigned char)line[end]))
			end++;
		v->from = from;
		v->to = to;
		v->may_be_ram = inode == 0 && line[end] == '\0' && strcmp(perms, "rw-p") == 0;
	} else if (m->n && sscanf(line, "%31[^:]: %" SCNu64 " kB", key, &kib) == 2) {
		struct mapping *v = &m->v[m->n - 1];

		if (strcmp(key, "Rss") == 0)
			v->rss = kib * KiB;
		else if (strncmp(key, "Private_", 8) == 0 && strcmp(key, "Private_Hugetlb") != 0)
			v->private_ += kib * KiB;
	}
}

static bool maps_read(struct maps *m, pid_t pid)
{
	char path[64], line[PATH_MAX + 128];
	FILE *f;

	snprintf(path, sizeof(path), "/proc/%d/smaps", (int)pid);
	f = fopen(path, "re");
	while (f && fgets(line, sizeof(line), f))
		maps_line(m, line);
	if (f)
		fclose(f);
	return m->n > 0;
}

/* First and number of the adjacent mappings that make up guest RAM. */
static unsigned find_ram(const struct maps *m, uint64_t bytes, unsigned *first)
{
	for (unsigned i = 0; i < m->n; i++) {
		uint64_t sum = 0;

		for (unsigned k = i; k < m->n && m->v[k].may_be_ram; k++) {
			if (k > i && m->v[k].from != m->v[k - 1].to)
				break;
			sum += m->v[k].to - m->v[k].from;
			if (sum == bytes) {
				*first = i;
				return k - i + 1;
			}
			if (sum > bytes)
				break;
		}
	}
	return 0;
}

static uint64_t process_rss(pid_t pid)
{
	char path[64], line[128];
	unsigned long size, rss = 0;

	snprintf(path, sizeof(path), "/proc/%d/statm", (int)pid);
	if (sscanf(bench_read_line(path, line, sizeof(line)), "%lu %lu", &size, &rss) != 2)
		return 0;
	return rss * PAGE_BYTES;
}

void vm_memory_final(struct vm *vm, struct vm_memory *out)
{
	struct maps m = { 0 };
	unsigned first = 0, n;

	kill(pid_of(vm), SIGSTOP);
	if (!maps_read(&m, vm->pid))
		vm_die(vm, "its memory cannot be read", "");
	n = find_ram(&m, vm->spec.memory_bytes, &first);
	if (n == 0)
		vm_die(vm, "its guest's RAM is not among its mappings", "");
	*out = (struct vm_memory){ 0 };
	for (unsigned i = 0; i < m.n; i++) {
		if (i >= first && i < first + n) {
			out->ram_bytes += m.v[i].rss;
		} else {
			out->own_bytes += m.v[i].rss;
			out->own_private_bytes += m.v[i].private_;
		}
	}
	if (vm->child != vm->pid)
		out->helper_bytes = process_rss(vm->child);
	free(m.v);
}

uint64_t vm_rss_bytes(struct vm *vm)
{
	return process_rss(pid_of(vm));
}

static bool is_vcpu(const char *comm)
{
	return strncmp(comm, "vcpu", 4) == 0 || strncmp(comm, "CPU ", 4) == 0;
}

void vm_cpu(struct vm *vm, struct vm_cpu *c)
{
	char path[PATH_MAX], line[128], comm[32];
	struct dirent *e;
	DIR *d;

	*c = (struct vm_cpu){ 0 };
	snprintf(path, sizeof(path), "/proc/%d/task", (int)pid_of(vm));
	d = opendir(path);
	if (!d)
		vm_die(vm, "its threads cannot be seen", "");
	while ((e = readdir(d))) {
		uint64_t ns;

		if (e->d_name[0] == '.')
			continue;
		snprintf(path, sizeof(path), "/proc/%d/task/%s/comm", (int)vm->pid, e->d_name);
		bench_read_line(path, comm, sizeof(comm));
		snprintf(path, sizeof(path), "/proc/%d/task/%s/schedstat", (int)vm->pid, e->d_name);
		ns = strtoull(bench_read_line(path, line, sizeof(line)), NULL, 10);
		*(is_vcpu(comm) ? &c->vcpu_ns : &c->rest_ns) += ns;
	}
	closedir(d);
	trace(vm, "CPU: vCPUs %.3f ms, others %.3f ms", (double)c->vcpu_ns / NS_PER_MS,
	      (double)c->rest_ns / NS_PER_MS);
}

/* ---- the balloon --------------------------------------------------------------------------------- */

static json_t *ask_brim(struct vm *vm, const char *cmd, json_t *args)
{
	json_t *result = NULL;
	struct err e;

	if ((!vm->ctl && ctl_open(&vm->ctl, &vm->paths, &e)) ||
	    ctl_call(vm->ctl, cmd, args, STARTING_S * 1000, &result, &e))
		vm_die(vm, "", e.msg);
	return result;
}

/* The reply to what was said last; events and the greeting are passed over. */
static json_t *hear_qmp(struct vm *vm)
{
	char *line = malloc(REPLY_BYTES);
	json_t *reply, *result = NULL;

	VERIFY(line);
	while (!result) {
		if (!fgets(line, REPLY_BYTES, vm->qmp))
			vm_die(vm, "its monitor went away", "");
		reply = json_loads(line, 0, NULL);
		if (json_object_get(reply, "error"))
			vm_die(vm, "its monitor refuses: ", line);
		result = json_incref(json_object_get(reply, "return"));
		json_decref(reply);
	}
	free(line);
	return result;
}

static void open_qmp(struct vm *vm)
{
	int fd = sock_connect(vm->socket);

	if (fd < 0)
		vm_die(vm, "its monitor does not answer: ", strerror(-fd));
	vm->qmp = fdopen(fd, "r+");
	VERIFY(vm->qmp);
	setvbuf(vm->qmp, NULL, _IOLBF, REPLY_BYTES);
	dprintf(fd, "{\"execute\":\"qmp_capabilities\"}\n");
	json_decref(hear_qmp(vm));
}

__attribute__((format(printf, 2, 3)))
static json_t *ask_qemu(struct vm *vm, const char *fmt, ...)
{
	va_list ap;

	if (!vm->qmp)
		open_qmp(vm);
	va_start(ap, fmt);
	vdprintf(fileno(vm->qmp), fmt, ap);
	va_end(ap);
	return hear_qmp(vm);
}

void vm_balloon_set(struct vm *vm, uint64_t bytes)
{
	trace(vm, "balloon: %" PRIu64 " MiB wanted", bytes / MiB);
	if (vm->spec.vmm == VMM_BRIM)
		json_decref(ask_brim(vm, "balloon", json_pack("{s:I}", "target_bytes",
							      (json_int_t)bytes)));
	else
		json_decref(ask_qemu(vm, "{\"execute\":\"balloon\",\"arguments\":{\"value\":%" PRIu64
				     "}}\n", vm->spec.memory_bytes - bytes));
}

uint64_t vm_counter(struct vm *vm, const char *name)
{
	json_t *stats;
	uint64_t v;

	if (vm->spec.vmm != VMM_BRIM)
		return 0;
	stats = ask_brim(vm, "stats", NULL);
	v = (uint64_t)json_integer_value(json_object_get(json_object_get(stats, "counters"), name));
	json_decref(stats);
	return v;
}

uint64_t vm_balloon_bytes(struct vm *vm)
{
	json_t *reply;
	uint64_t v;

	if (vm->spec.vmm == VMM_BRIM) {
		/* not `status`, which counts the guest's resident pages */
		v = vm_counter(vm, "balloon_inflate_pages");
		return (v - vm_counter(vm, "balloon_deflate_pages")) * PAGE_BYTES;
	}
	reply = ask_qemu(vm, "{\"execute\":\"query-balloon\"}\n");
	v = (uint64_t)json_integer_value(json_object_get(reply, "actual"));
	json_decref(reply);
	return vm->spec.memory_bytes - v;
}

/* ---- figures -------------------------------------------------------------------------------------- */

void series_put(struct series *s, bool peer, double value)
{
	VERIFY(s->n[peer] < BENCH_PAIRS_MAX);
	s->v[peer][s->n[peer]++] = value;
}

void series_report(struct bench *b, const char *name, const char *unit, struct series *s,
		   const char *peer)
{
	struct bench_figure f = { 0 };
	double ratio[BENCH_PAIRS_MAX], middle;
	unsigned n = s->n[0];

	VERIFY(n > 0 && (!peer || s->n[1] == n));
	snprintf(f.name, sizeof(f.name), "%s", name);
	snprintf(f.unit, sizeof(f.unit), "%s", unit);
	for (unsigned i = 0; i < n; i++)
		ratio[i] = !peer ? s->v[0][i] : s->v[1][i] != 0 ? s->v[0][i] / s->v[1][i] : 0;
	f.brim = bench_median(s->v[0], n);
	middle = bench_median(ratio, n);
	f.spread = middle != 0 ? (ratio[n - 1] - ratio[0]) / middle : 0;
	if (peer) {
		snprintf(f.peer, sizeof(f.peer), "%s", peer);
		f.peer_value = bench_median(s->v[1], n);
		f.ratio = f.peer_value != 0 ? f.brim / f.peer_value : 0;
	}
	bench_add(b, &f);
}
