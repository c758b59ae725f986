/*
 * A person, or a pipe, at a VM's console.
 *
 *	stdin ---> in ---> console.sock ---> out ---> stdout
 *	            |                                     what is read is written
 *	            `- the escape key (on a terminal)     before more is read
 *
 * The end is known from a `wait` on the control socket; after it, what is left
 * of the console is still shown.
 *
 * Who started the VM answers for it: a signal presses its power button (SIGTERM
 * to brim-vmm, which also keeps the time), the next one kills it.  A visitor's
 * signal only ends the visit.
 *
 * The terminal and pipes are shared with others, so they stay blocking; poll()
 * says when a small piece can be had without waiting.
 *
 * Threads: one.
 */
#include "cli/cli.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

/* POLLOUT of a pipe promises room for this much */
#define PIECE_BYTES PIPE_BUF
#define DRAIN_MS 1000
#define REAP_MS 10000
#define VMM_SIGNALS_MAX 2 /* stop, kill; more than these get SIGKILL */

enum { POLL_STDIN, POLL_CONSOLE, POLL_STDOUT, POLL_CTL, POLL_SIGNALS, POLL_COUNT };

struct pipe_buf {
	uint8_t data[PIECE_BYTES];
	size_t from, to;
};

struct session {
	const struct attach *a;
	struct ctl *ctl;
	json_int_t wait_id;
	int console_fd;     /* -1: it has ended */
	bool stdin_open, stdout_open;
	bool interactive;   /* stdin is our terminal: raw, with the escape key */
	bool ended;         /* the reply to `wait` came, or will not */
	bool leave;         /* detached: the VM goes on */
	uint64_t drain_until_ns;
	unsigned signals_sent;
	int status;
	struct err why; /* of the end, "" when in order */
	struct escape escape;
	struct pipe_buf in, out;
};

/* ---- words for the person -------------------------------------------------------- */

__attribute__((format(printf, 2, 3)))
static void say(const struct session *s, const char *fmt, ...)
{
	const char *eol = s->interactive ? "\r\n" : "\n";
	char text[600];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	fprintf(stderr, "%sbrim: %s%s", s->interactive ? eol : "", text, eol);
}

static void say_keys(const struct session *s)
{
	for (const struct row *r = escape_keys; r->what; r++)
		fprintf(stderr, "\r\n  %-10s %s", r->what, r->meaning);
	fprintf(stderr, "\r\n");
}

/* ---- requests ---------------------------------------------------------------------- */

static bool ask(const struct session *s, const char *cmd)
{
	struct err e = { "" };
	int rc = vm_ask(s->a->paths->name, cmd, NULL, NULL, &e);

	/* kill: it may be gone before it has answered */
	if (rc && rc != -ECONNRESET)
		say(s, "%s", e.msg);
	return !rc || rc == -ECONNRESET;
}

static void leave(struct session *s)
{
	const char *name = s->a->paths->name;

	if (s->a->pid && !ask(s, "detach"))
		return; /* leaving now would stop it */
	s->leave = true;
	say(s, "detached; `brim console %s` comes back, `brim stop %s` ends it", name, name);
}

static void act(struct session *s, enum escape_action action)
{
	switch (action) {
	case ESCAPE_DETACH:
		leave(s);
		break;
	case ESCAPE_STOP:
		if (ask(s, "stop"))
			say(s, "power button pressed (Ctrl-] k kills)");
		break;
	case ESCAPE_KILL:
		ask(s, "kill");
		break;
	case ESCAPE_HELP:
		say_keys(s);
		break;
	case ESCAPE_UNKNOWN:
		say(s, "no such key; Ctrl-] ? shows them");
		break;
	case ESCAPE_SEND:
	case ESCAPE_NONE:
		break;
	}
}

/* ---- signals ------------------------------------------------------------------------- */

/* Our brim-vmm takes the first as the power button, with --stop-timeout, and
 * the second as kill. */
static void pass_signal(struct session *s)
{
	s->signals_sent++;
	kill(s->a->pid, s->signals_sent > VMM_SIGNALS_MAX ? SIGKILL : SIGTERM);
	if (s->signals_sent == 1)
		say(s, "VM %s: power button pressed; the next signal kills it", s->a->paths->name);
}

static void suspend(struct session *s)
{
	struct err e;

	tty_restore();
	raise(SIGSTOP);
	/* continued; in the background the kernel stops us here until `fg` */
	if (s->interactive && tty_raw(STDIN_FILENO, &e))
		say(s, "%s", e.msg);
}

static void on_signal(struct session *s)
{
	int sig = signals_next(s->a->signals);

	if (sig == SIGTSTP)
		suspend(s);
	else if (sig && s->a->pid)
		pass_signal(s);
	else if (sig)
		s->leave = true;
}

/* ---- bytes ------------------------------------------------------------------------------ */

static bool buf_empty(const struct pipe_buf *b)
{
	return b->from == b->to;
}

static void console_lost(struct session *s)
{
	close(s->console_fd);
	s->console_fd = -1;
	s->in.from = s->in.to = 0;
}

/* Takes the escape key and what follows it out of what was typed. */
static void filter_keys(struct session *s, const uint8_t *keys, size_t n)
{
	uint8_t byte;

	for (size_t i = 0; i < n && !s->leave; i++) {
		enum escape_action action = escape_feed(&s->escape, keys[i], &byte);

		if (action == ESCAPE_SEND)
			s->in.data[s->in.to++] = byte;
		else
			act(s, action);
	}
}

static void read_stdin(struct session *s)
{
	uint8_t keys[PIECE_BYTES];
	ssize_t n = read(STDIN_FILENO, keys, sizeof(keys));

	if (n < 0 && (errno == EINTR || errno == EAGAIN))
		return;
	if (n <= 0) {
		s->stdin_open = false;
		return;
	}
	s->in.from = s->in.to = 0;
	if (s->interactive) {
		filter_keys(s, keys, (size_t)n);
	} else {
		memcpy(s->in.data, keys, (size_t)n);
		s->in.to = (size_t)n;
	}
}

static void write_console(struct session *s)
{
	ssize_t n = send(s->console_fd, s->in.data + s->in.from, s->in.to - s->in.from,
			 MSG_NOSIGNAL | MSG_DONTWAIT);

	if (n > 0)
		s->in.from += (size_t)n;
	else if (errno != EAGAIN && errno != EINTR)
		console_lost(s);
}

static void read_console(struct session *s)
{
	ssize_t n = recv(s->console_fd, s->out.data, sizeof(s->out.data), MSG_DONTWAIT);

	if (n < 0 && (errno == EINTR || errno == EAGAIN))
		return;
	if (n <= 0) {
		console_lost(s);
		return;
	}
	s->out.from = 0;
	s->out.to = (size_t)n;
}

/* A reader that left (`brim run | head`) is as good as a signal. */
static void stdout_lost(struct session *s)
{
	s->stdout_open = false;
	s->out.from = s->out.to = 0;
	if (s->a->pid)
		pass_signal(s);
	else
		s->leave = true;
}

static void write_stdout(struct session *s)
{
	ssize_t n = write(STDOUT_FILENO, s->out.data + s->out.from, s->out.to - s->out.from);

	if (n > 0)
		s->out.from += (size_t)n;
	else if (errno != EAGAIN && errno != EINTR)
		stdout_lost(s);
}

static void died(struct session *s)
{
	char log[256];

	rundir_last_log(s->a->paths, log, sizeof(log));
	s->status = CLI_FAILED;
	err_set(&s->why, 0, "VM %s died%s%s", s->a->paths->name,
		*log ? "; its log ends with: " : "", log);
}

/* It went without an answer: before it had read our question, or by accident.
 * A child's exit status tells, and so does what is left in the run directory. */
static void lost(struct session *s)
{
	enum vm_presence presence = VM_DIED;
	int code = -1;

	if (s->a->pid)
		reap(s->a->pid, REAP_MS, &code);
	else if (vm_wait_gone(s->a->paths, REAP_MS) &&
		 rundir_probe(s->a->paths, &presence, NULL, NULL) == 0 && presence == VM_ABSENT)
		code = CLI_OK;
	s->status = code;
	s->why.msg[0] = '\0';
	if (code == CLI_KILLED)
		err_set(&s->why, 0, "VM %s ended: killed", s->a->paths->name);
	else if (code != CLI_OK)
		died(s);
}

static void read_wait(struct session *s)
{
	json_t *reply = NULL;
	int rc;

	rc = ctl_recv(s->ctl, s->wait_id, 0, &reply, &s->why);
	if (rc == -EAGAIN)
		return;
	s->ended = true;
	s->drain_until_ns = now_ns() + DRAIN_MS * 1000000ull;
	if (rc) {
		lost(s);
	} else {
		s->why.msg[0] = '\0';
		s->status = vm_end_status(s->a->paths->name, reply, &s->why);
	}
	json_decref(reply);
}

/* ---- the loop ------------------------------------------------------------------------------ */

static void fill_polls(const struct session *s, struct pollfd p[POLL_COUNT])
{
	bool read_console_now = buf_empty(&s->out), write_console_now = !buf_empty(&s->in);
	bool console = s->console_fd >= 0;

	for (int i = 0; i < POLL_COUNT; i++)
		p[i] = (struct pollfd){ .fd = -1 };
	if (s->stdin_open && !s->ended && console && !write_console_now)
		p[POLL_STDIN] = (struct pollfd){ .fd = STDIN_FILENO, .events = POLLIN };
	if (console && (read_console_now || write_console_now)) {
		p[POLL_CONSOLE].fd = s->console_fd;
		p[POLL_CONSOLE].events = (short)((read_console_now ? POLLIN : 0) |
						 (write_console_now ? POLLOUT : 0));
	}
	if (!buf_empty(&s->out) && s->stdout_open)
		p[POLL_STDOUT] = (struct pollfd){ .fd = STDOUT_FILENO, .events = POLLOUT };
	if (!s->ended)
		p[POLL_CTL] = (struct pollfd){ .fd = ctl_fd(s->ctl), .events = POLLIN };
	p[POLL_SIGNALS] = (struct pollfd){ .fd = s->a->signals->fd, .events = POLLIN };
}

static void turn(struct session *s, int timeout_ms)
{
	struct pollfd p[POLL_COUNT];

	fill_polls(s, p);
	if (poll(p, POLL_COUNT, timeout_ms) <= 0)
		return;
	if (p[POLL_SIGNALS].revents)
		on_signal(s);
	if (p[POLL_STDOUT].revents)
		write_stdout(s);
	if (p[POLL_CONSOLE].revents && !buf_empty(&s->in))
		write_console(s);
	if (p[POLL_CONSOLE].revents & (POLLIN | POLLHUP | POLLERR) && s->console_fd >= 0 &&
	    buf_empty(&s->out))
		read_console(s);
	if (!s->stdout_open)
		s->out.from = s->out.to = 0;
	if (p[POLL_STDIN].revents)
		read_stdin(s);
	if (p[POLL_CTL].revents)
		read_wait(s);
}

static bool drained(const struct session *s)
{
	return (s->console_fd < 0 && buf_empty(&s->out)) || now_ns() >= s->drain_until_ns;
}

static void loop(struct session *s)
{
	while (!s->leave && !(s->ended && drained(s)))
		turn(s, s->ended ? 50 : -1);
}

static int session_open(struct session *s, struct err *e)
{
	const struct vm_paths *p = s->a->paths;
	int rc;

	rc = ctl_open(&s->ctl, p, e);
	if (rc)
		return rc;
	rc = ctl_send(s->ctl, "wait", NULL, &s->wait_id, e);
	if (rc)
		return rc;
	s->console_fd = sock_connect(p->console);
	if (s->console_fd < 0)
		return err_sys(e, s->console_fd, "VM %s: cannot reach its console at %s", p->name,
			       p->console);
	s->interactive = tty_is_ours(STDIN_FILENO);
	/* a terminal that is another's now would stop us */
	s->stdin_open = s->interactive || !isatty(STDIN_FILENO);
	s->stdout_open = true;
	return 0;
}

static int start_terminal(struct session *s, struct err *e)
{
	if (!s->interactive)
		return 0;
	fprintf(stderr, "brim: console of VM %s; the escape key is Ctrl-], for help press Ctrl-] ?\n",
		s->a->paths->name);
	return tty_raw(STDIN_FILENO, e);
}

static void finish(struct session *s)
{
	tty_restore();
	if (s->console_fd >= 0)
		close(s->console_fd);
	ctl_close(&s->ctl);
	if (s->ended && s->a->pid && !reap(s->a->pid, REAP_MS, NULL))
		fprintf(stderr, "brim: VM %s: brim-vmm (pid %d) does not end\n", s->a->paths->name,
			(int)s->a->pid);
	if (s->ended && s->why.msg[0])
		cli_error(&s->why);
}

/* A guest that was done before we could connect is no failure; but a VM that we
 * cannot attend to must not stay. */
static void give_up(struct session *s, const struct err *e)
{
	enum vm_presence presence = VM_ABSENT;

	if (!s->a->pid) {
		s->status = cli_fail(e);
		return;
	}
	if (rundir_probe(s->a->paths, &presence, NULL, NULL) == 0 && presence == VM_RUNNING) {
		cli_error(e);
		kill(s->a->pid, SIGKILL);
	}
	s->ended = true;
	lost(s);
}

int attach(const struct attach *a)
{
	struct session *s = calloc(1, sizeof(*s));
	struct err e;
	int status;

	VERIFY(s);
	s->a = a;
	s->console_fd = -1;
	if (session_open(s, &e) == 0 && start_terminal(s, &e) == 0)
		loop(s);
	else
		give_up(s, &e);
	finish(s);
	status = s->status;
	free(s);
	return status;
}
