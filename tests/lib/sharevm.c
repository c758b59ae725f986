/*
 * See sharevm.h.
 */
#include "tests/lib/sharevm.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>
#include <xxhash.h>

#include "host/internal.h"

void sharevm_init(struct sharevm *v, struct share_host *h, int pid, unsigned uid)
{
	memset(v, 0, sizeof(*v));
	v->host = h;
	v->fd = v->store_fd = -1;
	v->end_fd = eventfd(0, EFD_CLOEXEC);
	VERIFY(v->end_fd >= 0);
	v->peer = (struct share_peer){ .pid = pid, .uid = uid, .start = 7 };
}

void sharevm_init_real(struct sharevm *v, struct share_host *h, unsigned uid)
{
	int closed[2];
	pid_t pid;
	char none;

	VERIFY(pipe2(closed, O_CLOEXEC) == 0);
	pid = fork();
	if (pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		close_range(3, ~0u, 0);
		for (;;)
			pause();
	}
	VERIFY(pid > 0);
	/* Until it has closed all: other VMs' connections are among them, and do not end
	 * before. */
	close(closed[1]);
	VERIFY(read(closed[0], &none, 1) == 0);
	close(closed[0]);
	sharevm_init(v, h, pid, uid);
	v->child = pid;
	close(v->end_fd);
	v->end_fd = (int)syscall(SYS_pidfd_open, pid, 0);
	v->peer.start = process_start(pid);
	VERIFY(v->end_fd >= 0 && v->peer.start);
}

void sharevm_connect(struct sharevm *v)
{
	int pair[2];

	VERIFY(v->fd < 0);
	VERIFY(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair) == 0);
	v->fd = pair[0];
	v->peer.pidfd = dup(v->end_fd);
	VERIFY(share_host_attach(v->host, pair[1], &v->peer) == 0);
}

void sharevm_hang_up(struct sharevm *v)
{
	if (v->fd >= 0)
		close(v->fd);
	v->fd = -1;
}

void sharevm_end(struct sharevm *v)
{
	uint64_t one = 1;

	sharevm_hang_up(v);
	if (v->store)
		munmap((void *)(uintptr_t)v->store, (size_t)v->welcome.store_pages * PAGE_BYTES);
	if (v->store_fd >= 0)
		close(v->store_fd);
	v->store = NULL;
	v->store_fd = -1;
	if (v->child) {
		kill(v->child, SIGKILL);
		VERIFY(waitpid(v->child, NULL, 0) == v->child);
	} else {
		VERIFY(write(v->end_fd, &one, sizeof(one)) == sizeof(one));
	}
	close(v->end_fd);
	v->end_fd = -1;
}

void sharevm_settle(struct share_host *h)
{
	unsigned quiet = 0;

	while (h && quiet < 3) {
		struct err e;

		VERIFY(share_host_turn(h, 0) == 0);
		if (!share_host_verify(h, &e))
			brim_panic(__FILE__, __LINE__, "not in order: %s", e.msg);
		quiet = h->more ? 0 : quiet + 1;
	}
}

/* ---- messages ----------------------------------------------------------------------------- */

int sharevm_send_raw(struct sharevm *v, const void *msg, size_t bytes, const int *fds, unsigned n)
{
	_Alignas(struct cmsghdr) char room[CMSG_SPACE(253 * sizeof(int))] = { 0 };
	struct iovec iov = { (void *)(uintptr_t)msg, bytes };
	struct msghdr m = { .msg_iov = &iov, .msg_iovlen = 1 };

	if (n) {
		struct cmsghdr *c = (void *)room;

		*c = (struct cmsghdr){ .cmsg_len = CMSG_LEN(n * sizeof(int)),
				       .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS };
		memcpy(CMSG_DATA(c), fds, n * sizeof(int));
		m.msg_control = room;
		m.msg_controllen = CMSG_SPACE(n * sizeof(int));
	}
	return sendmsg(v->fd, &m, MSG_NOSIGNAL) < 0 ? -errno : 0;
}

int sharevm_send(struct sharevm *v, enum wire_type t, unsigned count)
{
	bool turns = t == WIRE_LOOKUP || t == WIRE_CONTENT || t == WIRE_RELEASE;
	size_t bytes = wire_finish((void *)v->out, t, count, turns ? ++v->turn : 0);

	return sharevm_send_raw(v, v->out, bytes, NULL, 0);
}

static void take_store(struct sharevm *v, struct msghdr *m)
{
	struct cmsghdr *c = CMSG_FIRSTHDR(m);

	if (!c)
		return;
	VERIFY(c->cmsg_type == SCM_RIGHTS && c->cmsg_len == CMSG_LEN(sizeof(int)));
	VERIFY(v->store_fd < 0);
	memcpy(&v->store_fd, CMSG_DATA(c), sizeof(int));
}

int sharevm_poll(struct sharevm *v)
{
	_Alignas(struct cmsghdr) char room[CMSG_SPACE(sizeof(int))];
	struct iovec iov = { v->in, sizeof(v->in) };
	struct msghdr m = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = room,
			    .msg_controllen = sizeof(room) };
	ssize_t n = recvmsg(v->fd, &m, MSG_CMSG_CLOEXEC);
	const char *why;

	if (n < 0 && errno == ECONNRESET) /* the reason may be behind it */
		n = recvmsg(v->fd, &m, MSG_CMSG_CLOEXEC);
	if (n < 0)
		return errno == ECONNRESET ? 0 : -errno;
	if (n == 0)
		return 0;
	v->in_bytes = (size_t)n;
	take_store(v, &m);
	if (wire_check(v->in, (size_t)n, WIRE_FROM_HOST, &why))
		brim_panic(__FILE__, __LINE__, "the host says what is not sound: %s", why);
	return ((const struct wire_head *)(const void *)v->in)->type;
}

int sharevm_receive(struct sharevm *v)
{
	int rc = sharevm_poll(v);

	if (rc != -EAGAIN || !v->host)
		return rc;
	sharevm_settle(v->host);
	return sharevm_poll(v);
}

/* ---- the conversation ------------------------------------------------------------------------ */

int sharevm_say_hello(struct sharevm *v, const char *group, uint32_t pages)
{
	struct wire_hello *hello = (void *)(v->out + sizeof(struct wire_head));
	size_t bytes;

	*hello = (struct wire_hello){ .pages = pages, .has_store = v->store_fd >= 0,
				      .store_id = v->store_fd >= 0 ? v->welcome.store_id : 0 };
	snprintf(hello->vm, sizeof(hello->vm), "vm%d", (int)v->peer.pid);
	snprintf(hello->group, sizeof(hello->group), "%s", group);
	bytes = wire_finish((void *)v->out, WIRE_HELLO, 1, 0);
	return sharevm_send_raw(v, v->out, bytes, &v->store_fd, v->store_fd >= 0);
}

int sharevm_say_holds(struct sharevm *v, const uint32_t *store_pages, unsigned n)
{
	int rc = 0;

	memcpy(v->out + sizeof(struct wire_head), store_pages, n * sizeof(*store_pages));
	if (n)
		rc = sharevm_send(v, WIRE_HOLD, n);
	return rc ? rc : sharevm_send(v, WIRE_HOLD, 0);
}

void sharevm_welcomed(struct sharevm *v)
{
	memcpy(&v->welcome, v->in + sizeof(struct wire_head), sizeof(v->welcome));
	VERIFY(v->store_fd >= 0);
	if (v->store)
		return;
	v->store = mmap(NULL, (size_t)v->welcome.store_pages * PAGE_BYTES, PROT_READ, MAP_SHARED,
			v->store_fd, 0);
	VERIFY(v->store != MAP_FAILED);
}

int sharevm_hello(struct sharevm *v, const char *group, uint32_t pages)
{
	int rc;

	sharevm_say_hello(v, group, pages);
	rc = sharevm_receive(v);
	if (rc == WIRE_WELCOME)
		sharevm_welcomed(v);
	return rc;
}

const uint8_t *sharevm_bytes(uint32_t content)
{
	static _Thread_local uint32_t page[PAGE_BYTES / sizeof(uint32_t)];

	for (uint32_t i = 0; i < ARRAY_LEN(page); i++)
		page[i] = content * 0x9e3779b9u + i * 0x85ebca6bu;
	return (const uint8_t *)page;
}

struct wire_hash sharevm_hash(const struct sharevm *v, uint32_t content)
{
	XXH128_hash_t x = XXH3_128bits_withSeed(sharevm_bytes(content), PAGE_BYTES, v->welcome.seed);

	return (struct wire_hash){ x.low64, x.high64 };
}

/* The answer to the one page that was asked about; what else comes is passed over. */
static struct wire_answer answer(struct sharevm *v)
{
	const struct wire_head *m = (const void *)v->in;
	int rc = sharevm_receive(v);

	while (rc == WIRE_OFFER || rc == WIRE_RECALL || rc == WIRE_FORGET)
		rc = sharevm_receive(v);
	if (rc != WIRE_ANSWER)
		brim_panic(__FILE__, __LINE__, "no answer, but %d", rc);
	VERIFY(m->count == 1 && m->turn == v->turn);
	return *(const struct wire_answer *)wire_entries(m);
}

struct wire_answer sharevm_lookup(struct sharevm *v, uint32_t page, uint32_t content)
{
	struct wire_page *p = (void *)(v->out + sizeof(struct wire_head));

	*p = (struct wire_page){ .hash = sharevm_hash(v, content), .page = page };
	VERIFY(sharevm_send(v, WIRE_LOOKUP, 1) == 0);
	return answer(v);
}

struct wire_answer sharevm_content(struct sharevm *v, uint32_t page, uint32_t content)
{
	struct wire_content *c = (void *)(v->out + sizeof(struct wire_head));

	c->of = (struct wire_page){ .hash = sharevm_hash(v, content), .page = page };
	memcpy(c->bytes, sharevm_bytes(content), PAGE_BYTES);
	VERIFY(sharevm_send(v, WIRE_CONTENT, 1) == 0);
	return answer(v);
}

int sharevm_release(struct sharevm *v, uint32_t store_page)
{
	struct wire_store_page *p = (void *)(v->out + sizeof(struct wire_head));

	p->store_page = store_page;
	VERIFY(sharevm_send(v, WIRE_RELEASE, 1) == 0);
	return sharevm_receive(v);
}

bool sharevm_has(const struct sharevm *v, uint32_t store_page, uint32_t content)
{
	return store_page < v->welcome.store_pages &&
	       memcmp(v->store + (size_t)store_page * PAGE_BYTES, sharevm_bytes(content),
		      PAGE_BYTES) == 0;
}

unsigned count_fds(void)
{
	DIR *dir = opendir("/proc/self/fd");
	unsigned n = 0;

	while (readdir(dir))
		n++;
	closedir(dir);
	return n - 3;
}
