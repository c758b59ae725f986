/*
 * relay: runs one command and copies what it writes to a device, until the command ends.
 *
 * What lives here: the way out of the emulated host. `rc` runs `relay DEVICE CMD [ARGS...]`; the command's
 * stdout and stderr are one pipe, so that their order is kept, that the command may reopen /dev/stdout
 * (the virtio-serial device itself can be opened only once), and that nothing is buffered on the way.
 *
 * What must be true
 *   - everything that the command wrote before it ended is on the device before relay ends, up to 1 GiB;
 *   - relay ends when the command ends, even if a process it left behind still holds the pipe;
 *   - relay ends with the command's status, 128+N if signal N killed it, 127 if it could not be started.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <unistd.h>

#define OUTPUT_MAX_BYTES (1ull << 30)	/* it all goes to one file on the machine below */

static void write_all(int fd, const char *p, size_t n)
{
	while (n > 0) {
		ssize_t w = write(fd, p, n);

		if (w < 0 && errno == EINTR)
			continue;
		if (w < 0)
			return;	/* nobody listens any more: the command goes on unheard */
		p += w;
		n -= (size_t)w;
	}
}

/* Copies what is in the (non-blocking) pipe now. */
static void drain(int from, int to)
{
	static const char cut[] = "\ntesthost: the output is cut here\n";
	static char buf[65536];
	static unsigned long long total;
	ssize_t n;

	while ((n = read(from, buf, sizeof(buf))) > 0) {
		if (total < OUTPUT_MAX_BYTES)
			write_all(to, buf, (size_t)n);
		if (total < OUTPUT_MAX_BYTES && total + (size_t)n >= OUTPUT_MAX_BYTES)
			write_all(to, cut, sizeof(cut) - 1);
		total += (size_t)n;
	}
}

static void run_child(char **argv, int out, const sigset_t *old)
{
	int null = open("/dev/null", O_RDONLY);

	setsid();
	sigprocmask(SIG_SETMASK, old, NULL);
	dup2(null, 0);
	dup2(out, 1);
	dup2(out, 2);
	execvp(argv[0], argv);
	fprintf(stderr, "testhost: cannot run %s: %s\n", argv[0], strerror(errno));
	_exit(127);
}

/* Copies until `child` has ended; returns its wait status. */
static int relay(pid_t child, int from, int to, int sigfd)
{
	struct pollfd fds[2] = { { .fd = from, .events = POLLIN }, { .fd = sigfd, .events = POLLIN } };
	struct signalfd_siginfo info;
	int status;

	for (;;) {
		poll(fds, 2, -1);
		if (fds[0].revents & POLLHUP)
			fds[0].fd = -1;	/* all writers closed it; the command itself may live on */
		drain(from, to);
		if (fds[1].revents & POLLIN) {
			while (read(sigfd, &info, sizeof(info)) < 0 && errno == EINTR)
				;
			if (waitpid(child, &status, WNOHANG) == child) {
				drain(from, to);
				return status;
			}
		}
	}
}

int main(int argc, char **argv)
{
	int pipefd[2], device, sigfd, status;
	sigset_t set, old;
	pid_t child;

	if (argc < 3) {
		fprintf(stderr, "usage: relay DEVICE CMD [ARGS...]\n");
		return 2;
	}
	device = open(argv[1], O_WRONLY | O_CLOEXEC);
	if (device < 0 || pipe2(pipefd, O_CLOEXEC) < 0) {
		fprintf(stderr, "testhost: relay: %s: %s\n", argv[1], strerror(errno));
		return 127;
	}
	signal(SIGPIPE, SIG_IGN);
	sigemptyset(&set);
	sigaddset(&set, SIGCHLD);
	sigprocmask(SIG_BLOCK, &set, &old);
	sigfd = signalfd(-1, &set, SFD_CLOEXEC);
	child = fork();
	if (child == 0) {
		signal(SIGPIPE, SIG_DFL);
		run_child(argv + 2, pipefd[1], &old);
	}
	if (child < 0 || sigfd < 0)
		return 127;
	close(pipefd[1]);
	fcntl(pipefd[0], F_SETFL, O_NONBLOCK);
	status = relay(child, pipefd[0], device, sigfd);
	return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}
