/*
 * powerbutton: waits for the ACPI power button, then runs a command.
 *
 * What lives here: the guest's side of an orderly shutdown. `/init` starts it in the background as
 * `powerbutton CMD [ARGS...]`; it prints `powerbutton: ready` once it listens (so that a test can wait for
 * that line instead of sleeping), blocks in poll() and execs CMD at the first press. Not busybox acpid:
 * that one wants a daemon, a map file and a directory of actions for the one event looked for here.
 *
 * What must be true: an input device is used only if it says that it has KEY_POWER; no such device is an
 * error (status 1), never a silent wait.
 */
#include <fcntl.h>
#include <linux/input.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#define DEVICES_MAX 32

static int has_power_key(int fd)
{
	unsigned char keys[KEY_MAX / 8 + 1];

	memset(keys, 0, sizeof(keys));
	if (ioctl(fd, EVIOCGBIT(EV_KEY, sizeof(keys)), keys) < 0)
		return 0;
	return (keys[KEY_POWER / 8] >> (KEY_POWER % 8)) & 1;
}

static nfds_t open_buttons(struct pollfd *fds)
{
	nfds_t n = 0;

	for (int i = 0; i < DEVICES_MAX; i++) {
		char path[32];
		int fd;

		snprintf(path, sizeof(path), "/dev/input/event%d", i);
		fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
		if (fd < 0)
			continue;
		if (has_power_key(fd))
			fds[n++] = (struct pollfd){ .fd = fd, .events = POLLIN };
		else
			close(fd);
	}
	return n;
}

static int pressed(int fd)
{
	struct input_event ev;

	while (read(fd, &ev, sizeof(ev)) == (ssize_t)sizeof(ev))
		if (ev.type == EV_KEY && ev.code == KEY_POWER && ev.value == 1)
			return 1;
	return 0;
}

int main(int argc, char **argv)
{
	struct pollfd fds[DEVICES_MAX];
	nfds_t n = open_buttons(fds);

	if (argc < 2) {
		fprintf(stderr, "usage: powerbutton CMD [ARGS...]\n");
		return 2;
	}
	if (n == 0) {
		printf("powerbutton: no input device has a power key\n");
		return 1;
	}
	printf("powerbutton: ready\n");
	fflush(stdout);
	for (;;) {
		if (poll(fds, n, -1) < 0)
			continue;
		for (nfds_t i = 0; i < n; i++) {
			if (!pressed(fds[i].fd))
				continue;
			printf("powerbutton: pressed\n");
			fflush(stdout);
			execvp(argv[1], argv + 1);
			return 127;
		}
	}
}
