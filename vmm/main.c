/*
 * brim-vmm: one VM, one process.  Started by `brim run` (or anyone) with the VM's
 * description on one descriptor and a place to say "ok" or why not on another.
 *
 *   start: parse ─► check host ─► claim name ─► build ─► "ok" ─► run
 *   loop:  reset ─► a new machine;  power-off, kill, error ─► end
 *   end:   answer those who wait, flush consoles, remove the run directory
 *
 * The main thread becomes the event loop.  Signals arrive through a signalfd:
 * SIGTERM and SIGINT press the power button, and end the VM after the stop
 * timeout, or at once when they come a second time.
 */
#include <errno.h>
#include <fcntl.h>
#include <malloc.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <sys/utsname.h>
#include <unistd.h>

#include "vmm/client.h"
#include "vmm/hostcheck.h"
#include "vmm/internal.h"

#define CONFIG_MAX (1 * MiB)
#define DRAIN_MS 200
#define EXIT_KILLED 3

/* Also in cli/: the exit statuses of `brim run` are these. */
static const char usage[] =
	"Usage: brim-vmm --config-fd N [--ready-fd M]\n"
	"\n"
	"Runs one VM. Usually started by `brim run`, which writes its description.\n"
	"\n"
	"  --config-fd N   read the VM's description (JSON) from descriptor N\n"
	"  --ready-fd M    write one line to descriptor M: `ok` when the guest is about\n"
	"                  to run, or `error: SENTENCE`\n"
	"  --version       print the version\n"
	"  --help          print this\n"
	"\n"
	"Exit status: 0 the guest powered off, 1 error, 2 usage, 3 killed.\n";

struct args {
	int config_fd, ready_fd;
};

static int parse_fd(const char *text, int *fd)
{
	char *end;
	long v = strtol(text, &end, 10);

	if (*end || end == text || v < 0 || v > 1 << 20 || fcntl((int)v, F_GETFD) < 0)
		return -EINVAL;
	*fd = (int)v;
	return 0;
}

/* 0 to go on, else an exit status plus one. */
static int parse_args(int argc, char **argv, struct args *a)
{
	*a = (struct args){ -1, -1 };
	for (int i = 1; i < argc; i += 2) {
		bool config = strcmp(argv[i], "--config-fd") == 0;

		if (strcmp(argv[i], "--version") == 0) {
			puts("brim-vmm " BRIM_VERSION);
			return 1;
		}
		if (strcmp(argv[i], "--help") == 0) {
			fputs(usage, stdout);
			return 1;
		}
		if ((!config && strcmp(argv[i], "--ready-fd") != 0) || i + 1 == argc ||
		    parse_fd(argv[i + 1], config ? &a->config_fd : &a->ready_fd)) {
			fprintf(stderr, "brim-vmm: bad argument '%s' (see --help)\n", argv[i]);
			return 3;
		}
	}
	if (a->config_fd < 0) {
		fputs("brim-vmm: --config-fd is needed (see --help)\n", stderr);
		return 3;
	}
	return 0;
}

/* What the VM is described with, as it came. */
struct description {
	char *text;
	size_t len;
};

static int read_config(int fd, struct description *d, struct vm_config *cfg, struct err *e)
{
	ssize_t n = 1;
	int rc;

	d->text = malloc(CONFIG_MAX);
	if (!d->text)
		return err_set(e, -ENOMEM, "VM description: out of memory");
	while (n > 0 && d->len < CONFIG_MAX) {
		n = read(fd, d->text + d->len, CONFIG_MAX - d->len);
		if (n > 0)
			d->len += (size_t)n;
	}
	if (n < 0)
		rc = err_sys(e, -errno, "VM description");
	else
		rc = vm_config_parse(cfg, d->text, d->len, e);
	close(fd);
	return rc;
}

/* For whoever finds the VM and was not there when it was started. */
static int keep_description(const char *path, const struct description *d, struct err *e)
{
	int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600), rc = 0;

	if (fd < 0)
		return err_sys(e, -errno, "%s", path);
	if (write(fd, d->text, d->len) != (ssize_t)d->len)
		rc = err_sys(e, errno ? -errno : -ENOSPC, "%s", path);
	close(fd);
	return rc;
}

static int check_host(const struct vm_config *cfg, struct err *e)
{
	struct utsname u;
	int rc;

	uname(&u);
	rc = hostcheck_kernel(u.release, e);
	return rc ? rc : hostcheck_kvm(cfg->allow_emulated_kvm, e);
}

/* False when nobody is there any more to hear it. */
static bool say_ready(int *fd, const char *line)
{
	bool heard;

	if (*fd < 0)
		return true;
	heard = dprintf(*fd, "%s\n", line) > 0;
	close(*fd);
	*fd = -1;
	return heard;
}

/* ---- signals and stopping ------------------------------------------------------ */

void vmm_stop(struct vmm *vmm)
{
	vmm->stopping = true;
	machine_resume(vmm->machine); /* a paused guest could not hear the button */
	platform_power_button(&vmm->machine->platform);
}

static void on_signal(void *arg, unsigned events)
{
	struct vmm *vmm = arg;
	struct signalfd_siginfo si;

	if (read(vmm->signal_fd, &si, sizeof si) != (ssize_t)sizeof si)
		return;
	if (vmm->stop_deadline_ns) {
		machine_end(vmm->machine, VM_END_KILLED, "signal %u, twice", si.ssi_signo);
		return;
	}
	log_info("signal %u: pressing the power button, %u s to power off", si.ssi_signo,
		 vmm->cfg.stop_timeout_s);
	vmm->stop_deadline_ns = now_ns() + vmm->cfg.stop_timeout_s * 1000000000ull;
	vmm_stop(vmm);
}

static int watch_signals(struct vmm *vmm, struct err *e)
{
	sigset_t set;
	int rc;

	signal(SIGPIPE, SIG_IGN);
	sigemptyset(&set);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGINT);
	sigaddset(&set, SIGHUP);
	sigprocmask(SIG_BLOCK, &set, NULL);
	vcpu_signals_init();
	vmm->signal_fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
	if (vmm->signal_fd < 0)
		return err_sys(e, -errno, "signalfd");
	rc = loop_watch(vmm->loop, vmm->signal_fd, VIRTIO_FD_IN, on_signal, vmm);
	return rc ? err_sys(e, rc, "event loop") : 0;
}

/* ---- running -------------------------------------------------------------------- */

/* end_fd needs no reading: that the loop woke is all, and the machine with it is
 * destroyed next. */
static void on_end(void *arg, unsigned events)
{
	(void)arg;
}

static int timeout_ms(const struct vmm *vmm)
{
	uint64_t now = now_ns();

	if (!vmm->stop_deadline_ns)
		return -1;
	return vmm->stop_deadline_ns <= now ? 0 : (int)((vmm->stop_deadline_ns - now) / 1000000 + 1);
}

static enum vm_end run_machine(struct vmm *vmm, char *detail, size_t len)
{
	enum vm_end end;

	/* A turn comes first: a guest that resets as soon as it runs must not keep
	 * signals and the control socket from being heard. */
	do {
		loop_turn(vmm->loop, timeout_ms(vmm));
		if (vmm->stop_deadline_ns && now_ns() >= vmm->stop_deadline_ns)
			machine_end(vmm->machine, VM_END_KILLED,
				    "the guest did not power off within %u s",
				    vmm->cfg.stop_timeout_s);
		end = machine_ended(vmm->machine, detail, len);
	} while (end == VM_END_NONE);
	return end;
}

static int start_machine(struct vmm *vmm, struct err *e)
{
	int rc = machine_create(&vmm->machine, &vmm->cfg, vmm->loop, vmm->console, vmm->hvc, e);

	if (!rc) {
		rc = loop_watch(vmm->loop, vmm->machine->end_fd, VIRTIO_FD_IN, on_end, NULL);
		if (rc)
			err_sys(e, rc, "event loop");
	}
	publish_now(vmm->publish);
	return rc;
}

static void end_machine(struct vmm *vmm)
{
	if (!vmm->machine)
		return;
	loop_unwatch(vmm->loop, vmm->machine->end_fd);
	machine_destroy(&vmm->machine);
}

/* Boots until something other than a reset ends the guest. */
static enum vm_end run_boots(struct vmm *vmm, char *detail, size_t len)
{
	for (;;) {
		enum vm_end end;
		struct err e = { "" };
		int rc = vmm->machine ? 0 : start_machine(vmm, &e);

		if (!rc)
			rc = machine_run(vmm->machine, &e);
		if (rc) {
			snprintf(detail, len, "%s", e.msg);
			end_machine(vmm);
			return VM_END_ERROR;
		}
		end = run_machine(vmm, detail, len);
		if (end != VM_END_RESET || !vmm->cfg.reboot || vmm->stop_deadline_ns)
			return end;
		log_guest("reset: %s", detail);
		counter_inc(CTR_vm_reboots);
		vmm->reboots++;
		vmm->stopping = false;
		end_machine(vmm);
	}
}

/* From here on the process is the VM's: output goes to its log. */
static int take_output(const struct vm_paths *paths, struct err *e)
{
	int fd = open(paths->log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
	int null = open("/dev/null", O_RDWR | O_CLOEXEC);

	if (fd < 0 || null < 0)
		return err_sys(e, -errno, "%s", fd < 0 ? paths->log : "/dev/null");
	dup2(null, 0);
	dup2(fd, 1);
	dup2(fd, 2);
	close(fd);
	close(null);
	return 0;
}

static int open_taps(struct vm_config *cfg, struct err *e)
{
	for (unsigned i = 0; i < cfg->net_count; i++) {
		char label[16];

		snprintf(label, sizeof label, "net%u", i);
		cfg->nets[i].fd = virtio_net_open_tap(label, cfg->nets[i].tap, e);
		if (cfg->nets[i].fd < 0)
			return cfg->nets[i].fd;
	}
	return 0;
}

static void close_taps(struct vm_config *cfg)
{
	for (unsigned i = 0; i < cfg->net_count; i++)
		if (cfg->nets[i].fd >= 0)
			close(cfg->nets[i].fd);
}

/* The sockets come last, when everything else is known to work. */
static int build(struct vmm *vmm, const struct vm_paths *paths, struct err *e)
{
	int rc = loop_create(&vmm->loop, e);

	if (!rc)
		rc = watch_signals(vmm, e);
	if (!rc)
		rc = console_create(&vmm->console, vmm->loop, paths->console, e);
	if (!rc && vmm->cfg.console)
		rc = console_create(&vmm->hvc, vmm->loop, paths->hvc, e);
	if (!rc)
		rc = open_taps(&vmm->cfg, e);
	if (!rc)
		rc = publish_create(&vmm->publish, vmm, paths->stats, e);
	if (!rc)
		rc = start_machine(vmm, e);
	if (!rc)
		rc = control_create(&vmm->control, vmm, paths->control, e);
	if (!rc)
		rc = take_output(paths, e);
	return rc;
}

static void teardown(struct vmm *vmm, enum vm_end end, const char *detail)
{
	if (vmm->console)
		console_drain(vmm->console, DRAIN_MS);
	if (vmm->hvc)
		console_drain(vmm->hvc, DRAIN_MS);
	end_machine(vmm);
	close_taps(&vmm->cfg);
	control_destroy(&vmm->control, vm_end_name(end), detail);
	publish_destroy(&vmm->publish);
	console_destroy(&vmm->console);
	console_destroy(&vmm->hvc);
	if (vmm->signal_fd >= 0) {
		loop_unwatch(vmm->loop, vmm->signal_fd);
		close(vmm->signal_fd);
	}
	loop_destroy(&vmm->loop);
}

static int end_status(enum vm_end end)
{
	return end == VM_END_POWEROFF || end == VM_END_RESET ? 0 :
	       end == VM_END_KILLED ? EXIT_KILLED : 1;
}

static void limit_own_memory(void)
{
	/* One heap for all threads: arenas cost memory, and nothing here is hot. */
	mallopt(M_ARENA_MAX, 1);
	prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
}

static int run(struct vmm *vmm, struct args *a, struct err *e)
{
	char detail[sizeof e->msg] = "", line[sizeof e->msg + 16];
	struct description d = { NULL, 0 };
	struct vm_paths paths;
	enum vm_end end = VM_END_ERROR;
	int lock_fd = -1, rc;

	rc = read_config(a->config_fd, &d, &vmm->cfg, e);
	if (!rc)
		rc = check_host(&vmm->cfg, e);
	if (!rc)
		rc = vm_paths_from_dir(&paths, vmm->cfg.run_dir, e);
	if (!rc)
		rc = rundir_claim(&paths, &lock_fd, e);
	if (rc)
		goto out;
	if (vmm->cfg.die_with_parent)
		prctl(PR_SET_PDEATHSIG, SIGTERM);
	rc = keep_description(paths.config, &d, e);
	if (!rc)
		rc = build(vmm, &paths, e);
	if (!rc) {
		log_init(vmm->cfg.name, 2, LOG_INFO);
		/* A VM that nobody waits for any more must not run on unannounced;
		 * this also covers a parent that died before PDEATHSIG was set. */
		if (!say_ready(&a->ready_fd, "ok"))
			machine_end(vmm->machine, VM_END_KILLED, "who started it is gone");
		end = run_boots(vmm, detail, sizeof detail);
		log_line(end == VM_END_ERROR ? LOG_ERROR : LOG_INFO, "ended: %s: %s",
			 vm_end_name(end), detail);
	}
	teardown(vmm, end, detail);
	rundir_release(&paths, &lock_fd);
out:
	free(d.text);
	if (rc) {
		snprintf(line, sizeof line, "error: %s", e->msg);
		if (a->ready_fd < 0)
			fprintf(stderr, "brim-vmm: %s\n", e->msg);
		say_ready(&a->ready_fd, line);
		return 1;
	}
	return end_status(end);
}

int main(int argc, char **argv)
{
	static struct vmm vmm = { .signal_fd = -1 };
	struct err e = { "" };
	struct args a;
	int rc = parse_args(argc, argv, &a);

	if (rc)
		return rc - 1;
	limit_own_memory();
	role_set(ROLE_LOOP);
	vmm.start_ns = now_ns();
	return run(&vmm, &a, &e);
}
