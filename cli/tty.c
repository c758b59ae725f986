/*
 * Raw mode and the way back.  A terminal left raw is a broken terminal, so the
 * way back is taken on every end but SIGKILL: exit() by atexit(), crashes and
 * unhandled signals by a handler, what attach.c reads from its signalfd by
 * returning from there.
 *
 * The state is global because a signal handler and atexit() have no argument.
 * tcsetattr() is async-signal-safe (POSIX).
 */
#include "cli/cli.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <termios.h>
#include <unistd.h>

static struct {
	volatile sig_atomic_t raw;
	int fd;
	struct termios before;
	const char *leave; /* what a full-screen program must write; NULL: nothing */
} saved;

void tty_restore(void)
{
	int keep = errno;

	if (saved.raw) {
		saved.raw = 0;
		/* TCSANOW: waiting for output could hang with a terminal that was
		 * stopped with Ctrl-S. */
		tcsetattr(saved.fd, TCSANOW, &saved.before);
		if (saved.leave && write(saved.fd, saved.leave, strlen(saved.leave)) < 0)
			saved.leave = NULL; /* nothing can be done about it */
	}
	errno = keep;
}

/* SA_RESETHAND has put the default back: the signal does now what it did. */
static void on_fatal(int sig)
{
	tty_restore();
	raise(sig);
}

static void catch_fatal(void)
{
	static const int fatal[] = {
		SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGABRT, SIGSYS, SIGTRAP, SIGXCPU, SIGXFSZ,
		SIGALRM, SIGVTALRM, SIGPROF, SIGUSR1, SIGUSR2,
		/* read from a signalfd and blocked while attached; here for the time
		 * before and after */
		SIGINT, SIGTERM, SIGHUP, SIGQUIT,
	};
	struct sigaction sa = { .sa_handler = on_fatal, .sa_flags = (int)SA_RESETHAND | SA_NODEFER };

	for (size_t i = 0; i < ARRAY_LEN(fatal); i++)
		sigaction(fatal[i], &sa, NULL);
}

int tty_save(int fd, const char *leave, struct err *e)
{
	static bool prepared;

	if (tcgetattr(fd, &saved.before) < 0)
		return err_sys(e, -errno, "terminal: cannot read its settings");
	if (!prepared) {
		prepared = true;
		atexit(tty_restore);
		catch_fatal();
	}
	saved.fd = fd;
	saved.leave = leave;
	saved.raw = 1; /* before the change: a signal in between restores nothing new */
	return 0;
}

void tty_leave(const char *leave)
{
	saved.leave = leave;
}

int tty_raw(int fd, struct err *e)
{
	struct termios raw;
	int rc = saved.raw ? 0 : tty_save(fd, NULL, e);

	if (rc)
		return rc;
	raw = saved.before;
	cfmakeraw(&raw);
	if (tcsetattr(fd, TCSANOW, &raw) < 0) {
		saved.raw = 0;
		return err_sys(e, -errno, "terminal: cannot be set to raw mode");
	}
	return 0;
}

bool tty_is_ours(int fd)
{
	return isatty(fd) && tcgetpgrp(fd) == getpgrp();
}
