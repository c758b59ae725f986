/*
 * The far side of a VM's console: what the guest printed (the last 64 KiB) and
 * the clients attached to <run dir>/console.sock.
 *
 * The guest writes into a ring and is never held up: a client that does not read
 * loses the oldest bytes (counted), a guest that prints with nobody attached
 * costs the ring and no more.  Positions are absolute byte counts, so that "how
 * far is this client" is one subtraction.
 *
 * Threads: console_output() and console_input_ready() from any; all else on the
 * loop.  `lock` covers the ring; it is last in the lock order.
 */
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include "vmm/internal.h"

#define HISTORY_BYTES 65536u
#define INPUT_BYTES 4096u
#define CLIENTS_MAX 8u

struct client {
	struct console *con;
	int fd; /* -1: free */
	uint64_t at; /* next byte of output to send */
	bool waiting; /* for the socket to take more */
};

struct console {
	/* fixed at create */
	struct loop *loop;
	int listen_fd, wake_fd;
	char path[PATH_MAX];

	/* owned by the loop */
	struct client clients[CLIENTS_MAX];
	struct console_sink sink;
	uint8_t input[INPUT_BYTES];
	size_t input_len;

	pthread_mutex_t lock;
	/* under lock */
	uint8_t ring[HISTORY_BYTES];
	uint64_t total; /* bytes ever written */
	bool woken;
};

static void wake(struct console *c)
{
	uint64_t one = 1;
	ssize_t n = write(c->wake_fd, &one, sizeof one);

	(void)n; /* full means it is awake already */
}

void console_output(struct console *c, const void *buf, size_t len)
{
	const uint8_t *p = buf;
	bool first;

	pthread_mutex_lock(&c->lock);
	for (size_t i = 0; i < len; i++)
		c->ring[c->total++ % HISTORY_BYTES] = p[i];
	first = !c->woken;
	c->woken = true;
	pthread_mutex_unlock(&c->lock);
	if (first)
		wake(c);
}

void console_input_ready(struct console *c)
{
	wake(c);
}

/* Copies up to `max` bytes at *at, moving *at past what was overwritten. */
static size_t ring_copy(struct console *c, uint64_t *at, uint8_t *to, size_t max)
{
	size_t n = 0;

	pthread_mutex_lock(&c->lock);
	if (c->total - *at > HISTORY_BYTES) {
		counter_add(CTR_console_dropped, c->total - *at - HISTORY_BYTES);
		*at = c->total - HISTORY_BYTES;
	}
	while (n < max && *at + n < c->total) {
		to[n] = c->ring[(*at + n) % HISTORY_BYTES];
		n++;
	}
	pthread_mutex_unlock(&c->lock);
	return n;
}

static void client_close(struct client *cl)
{
	loop_unwatch(cl->con->loop, cl->fd);
	close(cl->fd);
	cl->fd = -1;
}

static void client_event(void *arg, unsigned events);

static void client_watch(struct client *cl)
{
	unsigned in = cl->con->input_len < INPUT_BYTES ? VIRTIO_FD_IN : 0;

	if (loop_watch(cl->con->loop, cl->fd, in | (cl->waiting ? VIRTIO_FD_OUT : 0),
		       client_event, cl) < 0)
		client_close(cl);
}

/* Sends what the socket takes now, at most one history's worth a turn. */
static void client_send(struct client *cl)
{
	uint8_t buf[4096];
	bool waiting = false;
	size_t n;

	for (unsigned i = 0; i < HISTORY_BYTES / sizeof buf; i++) {
		ssize_t sent;

		n = ring_copy(cl->con, &cl->at, buf, sizeof buf);
		if (n == 0)
			break;
		sent = send(cl->fd, buf, n, MSG_NOSIGNAL | MSG_DONTWAIT);
		/* It reads no more.  What it wrote may still be unread: the loop
		 * tells of that, and of its end. */
		if (sent < 0 && errno != EAGAIN && errno != EINTR)
			break;
		if (sent > 0)
			cl->at += (uint64_t)sent;
		if (sent < (ssize_t)n) {
			waiting = true;
			break;
		}
	}
	if (waiting != cl->waiting) {
		cl->waiting = waiting;
		client_watch(cl);
	}
}

/* Hands input on; what the guest has no room for stays. */
static void push_input(struct console *c)
{
	bool was_full = c->input_len == INPUT_BYTES;
	size_t n;

	if (!c->input_len)
		return;
	n = c->sink.opaque ? c->sink.input(c->sink.opaque, c->input, c->input_len) : 0;
	memmove(c->input, c->input + n, c->input_len - n);
	c->input_len -= n;
	if (was_full && n)
		for (unsigned i = 0; i < CLIENTS_MAX; i++)
			if (c->clients[i].fd >= 0)
				client_watch(&c->clients[i]);
}

static void client_read(struct client *cl)
{
	struct console *c = cl->con;
	ssize_t n = recv(cl->fd, c->input + c->input_len, INPUT_BYTES - c->input_len, MSG_DONTWAIT);

	if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR)) {
		client_close(cl);
		return;
	}
	if (n > 0)
		c->input_len += (size_t)n;
	push_input(c);
	client_watch(cl);
}

static void client_event(void *arg, unsigned events)
{
	struct client *cl = arg;

	if (events & VIRTIO_FD_OUT)
		client_send(cl);
	if (cl->fd >= 0 && cl->con->input_len < INPUT_BYTES && (events & ~VIRTIO_FD_OUT))
		client_read(cl);
	else if (cl->fd >= 0 && (events & ~(unsigned)(VIRTIO_FD_OUT | VIRTIO_FD_IN)))
		client_close(cl); /* gone, and nowhere to put what it still sent */
	else if (cl->fd >= 0 && (events & VIRTIO_FD_IN))
		client_watch(cl); /* another client filled the input: wait for room */
}

static void on_accept(void *arg, unsigned events)
{
	struct console *c = arg;
	int fd = accept4(c->listen_fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

	if (fd < 0)
		return;
	for (unsigned i = 0; i < CLIENTS_MAX; i++) {
		struct client *cl = &c->clients[i];

		if (cl->fd >= 0)
			continue;
		*cl = (struct client){ .con = c, .fd = fd };
		/* From the oldest byte still there: ring_copy clamps, uncounted. */
		pthread_mutex_lock(&c->lock);
		cl->at = c->total > HISTORY_BYTES ? c->total - HISTORY_BYTES : 0;
		pthread_mutex_unlock(&c->lock);
		client_watch(cl);
		if (cl->fd >= 0)
			client_send(cl);
		return;
	}
	log_warn("console: more than %u clients, one refused", CLIENTS_MAX);
	close(fd);
}

static void on_wake(void *arg, unsigned events)
{
	struct console *c = arg;
	uint64_t n;
	ssize_t got = read(c->wake_fd, &n, sizeof n);

	(void)got;
	pthread_mutex_lock(&c->lock);
	c->woken = false;
	pthread_mutex_unlock(&c->lock);
	for (unsigned i = 0; i < CLIENTS_MAX; i++)
		if (c->clients[i].fd >= 0 && !c->clients[i].waiting)
			client_send(&c->clients[i]);
	push_input(c);
}

int console_create(struct console **out, struct loop *l, const char *path, struct err *e)
{
	struct console *c = calloc(1, sizeof *c);
	int rc;

	if (!c)
		return err_set(e, -ENOMEM, "console: out of memory");
	c->loop = l;
	for (unsigned i = 0; i < CLIENTS_MAX; i++)
		c->clients[i].fd = -1;
	pthread_mutex_init(&c->lock, NULL);
	c->listen_fd = -1;
	c->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	snprintf(c->path, sizeof c->path, "%s", path);
	rc = c->wake_fd < 0 ? err_sys(e, -errno, "console: eventfd") : socket_listen(path, e);
	if (rc < 0)
		goto out;
	c->listen_fd = rc;
	rc = loop_watch(l, c->wake_fd, VIRTIO_FD_IN, on_wake, c);
	if (!rc)
		rc = loop_watch(l, c->listen_fd, VIRTIO_FD_IN, on_accept, c);
	if (rc)
		err_sys(e, rc, "console: event loop");
out:
	if (rc)
		console_destroy(&c);
	else
		*out = c;
	return rc;
}

void console_destroy(struct console **cp)
{
	struct console *c = *cp;

	if (!c)
		return;
	for (unsigned i = 0; i < CLIENTS_MAX; i++)
		if (c->clients[i].fd >= 0)
			client_close(&c->clients[i]);
	if (c->listen_fd >= 0) {
		loop_unwatch(c->loop, c->listen_fd);
		close(c->listen_fd);
		unlink(c->path);
	}
	if (c->wake_fd >= 0) {
		loop_unwatch(c->loop, c->wake_fd);
		close(c->wake_fd);
	}
	pthread_mutex_destroy(&c->lock);
	free(c);
	*cp = NULL;
}

void console_attach(struct console *c, const struct console_sink *sink)
{
	c->sink = *sink;
	push_input(c);
}

/* One round: true while a client has not taken all. */
static bool drain_round(struct console *c, int wait_ms)
{
	struct pollfd fds[CLIENTS_MAX];
	nfds_t n = 0;

	for (unsigned i = 0; i < CLIENTS_MAX; i++) {
		struct client *cl = &c->clients[i];

		if (cl->fd >= 0)
			client_send(cl);
		if (cl->fd >= 0 && cl->waiting)
			fds[n++] = (struct pollfd){ .fd = cl->fd, .events = POLLOUT };
	}
	if (n)
		poll(fds, n, wait_ms);
	return n > 0;
}

/* Not by turns of the loop: its other callbacks may have no machine any more. */
void console_drain(struct console *c, int timeout_ms)
{
	uint64_t end = now_ns() + (uint64_t)timeout_ms * 1000000;

	while (drain_round(c, 10) && now_ns() < end)
		;
}
