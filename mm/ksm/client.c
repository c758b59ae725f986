/*
 * The connection to brimd.
 *
 *             socket there         has no store
 *     NONE ────────────► HELLO ───────────────────────► WAITING ──WELCOME──► OPEN
 *      ▲                   └─ has one ─► HOLDING ──all said──┘                 │
 *      └──────── brimd ended, REFUSED, or a message that is not sound ─────────┘
 *
 * Tried again once a second for ever, ten times slower where brimd refused; the log has the
 * changes only.  A store, once had, stays: pages are STORED in it, whoever serves it.  Only
 * where brimd refuses us with it, and no page of ours is in it, is another asked for, and
 * mapped in its place.
 *
 * A message goes out whole or waits in k->out, and nothing else goes out meanwhile.  What
 * comes in is read all the same, so that neither can wait for the other for ever.
 *
 * Owner: the share thread.
 */
#include "mm/ksm/internal.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#define REFUSED_SHARE 10u /* so much rarer is the next attempt */

static void set_status(struct ksm *k, enum ksm_state state, const char *why)
{
	bool differs, was_connected;

	pthread_mutex_lock(&k->lock);
	was_connected = k->status.state == KSM_CONNECTED;
	differs = k->status.state != state || strcmp(k->status.why, why) != 0;
	k->status.state = state;
	if (differs)
		snprintf(k->status.why, sizeof(k->status.why), "%s", why);
	pthread_mutex_unlock(&k->lock);
	if (!differs)
		return;
	if (state == KSM_CONNECTED)
		log_info("sharing: connected to brimd, group %s", k->group);
	else if (why[0])
		log_warn("sharing: %s: %s", ksm_state_name(state), why);
	else if (was_connected)
		log_warn("sharing: brimd is gone; what is shared stays so");
}

/* ---- connecting ------------------------------------------------------------------ */

/* Whoever could put a socket there could give us pages of its liking. */
static bool is_trusted(int fd)
{
	struct ucred peer = { 0 };
	socklen_t len = sizeof(peer);

	return getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &len) == 0 &&
	       (peer.uid == 0 || peer.uid == geteuid());
}

static int dial(const char *path)
{
	struct sockaddr_un to = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0), rc;

	if (fd < 0)
		return -errno;
	snprintf(to.sun_path, sizeof(to.sun_path), "%s", path);
	rc = connect(fd, (struct sockaddr *)&to, sizeof(to)) < 0 ? -errno : 0;
	if (!rc && !is_trusted(fd))
		rc = -EPERM;
	if (!rc)
		return fd;
	close(fd);
	return rc;
}

bool ksm_listens(const char *socket)
{
	int fd = dial(socket);

	if (fd >= 0)
		close(fd);
	return fd >= 0 || fd == -EAGAIN;
}

void link_close(struct ksm *k, enum ksm_state state, const char *why)
{
	uint64_t wait = state == KSM_REFUSED ? k->cfg.retry_ns * REFUSED_SHARE : k->cfg.retry_ns;

	if (k->fd >= 0)
		close(k->fd);
	if (k->link == LINK_OPEN)
		counter_inc(CTR_share_disconnects);
	if (k->is_open)
		engine_keep_ages(k->engine, 0);
	atomic_store(&k->is_open, false);
	k->fd = -1;
	k->link = LINK_NONE;
	k->out_bytes = 0;
	k->question.count = 0;
	k->wanted_count = k->wanted_at = 0;
	k->release_turn = 0;
	k->retry_at_ns = now_ns() + wait;
	set_status(k, state, why);
}

void link_bad(struct ksm *k, const char *what)
{
	counter_inc(CTR_share_bad_messages);
	link_close(k, KSM_REFUSED, what);
}

uint32_t link_next_turn(struct ksm *k)
{
	k->turn += k->turn == UINT32_MAX ? 2 : 1;
	return k->turn;
}

/* ---- out -------------------------------------------------------------------------- */

static int send_whole(const struct ksm *k)
{
	union {
		struct cmsghdr head;
		char room[CMSG_SPACE(sizeof(int))];
	} c = { .head = { .cmsg_len = CMSG_LEN(sizeof(int)), .cmsg_level = SOL_SOCKET,
			  .cmsg_type = SCM_RIGHTS } };
	struct iovec v = { (void *)(uintptr_t)k->out, k->out_bytes };
	struct msghdr m = { .msg_iov = &v, .msg_iovlen = 1 };

	if (k->out_store) {
		memcpy(CMSG_DATA(&c.head), &k->store_fd, sizeof(k->store_fd));
		m.msg_control = &c;
		m.msg_controllen = sizeof(c.room);
	}
	return sendmsg(k->fd, &m, MSG_DONTWAIT | MSG_NOSIGNAL) < 0 ? -errno : 0;
}

static void push_out(struct ksm *k)
{
	int rc = send_whole(k);

	if (rc == -EAGAIN || rc == -EINTR)
		return;
	k->out_bytes = 0;
	if (rc)
		link_close(k, KSM_WAITING, "");
}

void link_send(struct ksm *k, enum wire_type t, unsigned count, uint32_t turn)
{
	VERIFY(!k->out_bytes);
	k->out_bytes = wire_finish((void *)k->out, t, count, turn);
	k->out_store = t == WIRE_HELLO && ((const struct wire_hello *)link_room(k))->has_store;
	push_out(k);
}

static void hold(struct ksm *k)
{
	unsigned n = uses_claim(&k->uses, &k->hold_at, link_room(k), wire_entries_max(WIRE_HOLD));

	if (n == 0)
		k->link = LINK_WAITING;
	link_send(k, WIRE_HOLD, n, 0);
}

void link_push(struct ksm *k)
{
	if (k->out_bytes)
		push_out(k);
	else if (k->link == LINK_HOLDING)
		hold(k);
}

static void hello(struct ksm *k)
{
	struct wire_hello *h = link_room(k);
	bool with = k->store && !k->without_store;
	uint32_t all = 1;

	*h = (struct wire_hello){ .pages = k->ram_pages, .has_store = with,
				  .store_id = with ? k->store_id : 0 };
	snprintf(h->vm, sizeof(h->vm), "%s", k->vm);
	snprintf(h->group, sizeof(h->group), "%s", k->group);
	k->hold_at = 1;
	if (!with) /* what is not said is not held */
		VERIFY(uses_claim(&k->uses, &all, k->releasing, 1) == 0);
	k->link = with ? LINK_HOLDING : LINK_WAITING;
	link_send(k, WIRE_HELLO, 1, 0);
}

void link_try(struct ksm *k)
{
	int fd;

	if (k->fd >= 0 || now_ns() < k->retry_at_ns)
		return;
	k->retry_at_ns = now_ns() + k->cfg.retry_ns;
	fd = k->cfg.dial ? k->cfg.dial(k->cfg.dial_ctx) : dial(k->socket);
	if (fd == -EPERM || fd == -EACCES)
		set_status(k, KSM_WAITING, "the socket of brimd is not ours to use");
	else if (fd < 0)
		set_status(k, KSM_WAITING, "");
	if (fd < 0)
		return;
	k->fd = fd;
	k->without_store = k->without_store && !uses_any(&k->uses);
	/* A refusal that is only tried again stays what it is. */
	if (k->status.state == KSM_WAITING)
		set_status(k, KSM_JOINING, "");
	hello(k);
}

/* ---- WELCOME ------------------------------------------------------------------------ */

/* What is wrong with it, or NULL.  It must not shrink: to read beyond its end would kill. */
static const char *check_store(int fd, const struct wire_welcome *w)
{
	int seals = fcntl(fd, F_GET_SEALS);
	struct stat st;

	if (w->store_pages < 2 || w->store_pages > RAM_MAX_BYTES >> PAGE_SHIFT || !w->store_id)
		return "a store of no size that can be";
	if (fstat(fd, &st) < 0 || !S_ISREG(st.st_mode) || seals < 0)
		return "a store that is no memory file";
	if ((uint64_t)st.st_size < (uint64_t)w->store_pages << PAGE_SHIFT)
		return "a store that is smaller than its pages";
	return seals & F_SEAL_SHRINK ? NULL : "a store that may shrink";
}

static void drop_store(void *ctx, uint32_t page)
{
	uses_drop(&((struct ksm *)ctx)->uses, page);
}

static const uint8_t *map_store(int fd, uint64_t bytes, const uint8_t *instead_of)
{
	void *at = mmap((void *)(uintptr_t)instead_of, bytes, PROT_READ,
			MAP_SHARED | MAP_NORESERVE | (instead_of ? MAP_FIXED : 0), fd, 0);

	if (at == MAP_FAILED)
		return NULL;
	madvise(at, bytes, MADV_DONTDUMP);
	madvise(at, bytes, MADV_DONTFORK);
	return at;
}

/* Instead of one that no page is in, at the place where the engine looks for it. */
static const char *replace_store(struct ksm *k, int fd, const struct wire_welcome *w)
{
	if (w->store_pages != k->store_pages)
		return "a store of another size than this VM's";
	if (!map_store(fd, (uint64_t)w->store_pages << PAGE_SHIFT, k->store))
		return "a store that cannot be mapped";
	engine_renew_store(k->engine, fd);
	close(k->store_fd);
	return NULL;
}

static void unmap_tables(struct ksm *k)
{
	uint64_t words = ((uint64_t)k->uses.pages + 63) / 64;

	ksm_unmap(k->recalled, words * sizeof(*k->recalled));
	k->recalled = NULL;
	uses_fini(&k->uses);
}

static const char *first_store(struct ksm *k, int fd, const struct wire_welcome *w)
{
	if (uses_init(&k->uses, w->store_pages))
		return "a store that there is no address space for";
	k->recalled = ksm_map_lazily(((uint64_t)w->store_pages + 63) / 64 * sizeof(*k->recalled));
	if (k->recalled)
		k->store = map_store(fd, (uint64_t)w->store_pages << PAGE_SHIFT, NULL);
	if (!k->store) {
		unmap_tables(k);
		return "a store that cannot be mapped";
	}
	engine_set_store(k->engine, &(struct mm_store){ k->store, w->store_pages, drop_store, k, fd });
	return NULL;
}

/* Takes the descriptor where it returns NULL. */
static const char *take_store(struct ksm *k, int fd, const struct wire_welcome *w)
{
	const char *why = fd < 0 ? "no store" : check_store(fd, w);

	if (!why)
		why = k->store ? replace_store(k, fd, w) : first_store(k, fd, w);
	if (why)
		return why;
	k->store_fd = fd;
	k->store_id = w->store_id;
	k->store_pages = w->store_pages;
	return NULL;
}

static void bad_store(struct ksm *k, int fd, const char *why)
{
	counter_inc(CTR_share_bad_stores);
	if (fd >= 0)
		close(fd);
	link_close(k, KSM_REFUSED, why);
}

static void on_welcome(struct ksm *k, const struct wire_welcome *w, int fd)
{
	const char *why = NULL;

	if (!k->store || k->without_store)
		why = take_store(k, fd, w);
	else if (fd >= 0 || w->store_id != k->store_id || w->store_pages != k->store_pages)
		why = "another store than this VM's";
	if (why) {
		bad_store(k, fd, why);
		return;
	}
	k->without_store = false;
	k->link = LINK_OPEN;
	atomic_store(&k->seed, w->seed);
	scan_anew(k);
	scan_loaded(k);
	atomic_store(&k->is_open, true);
	counter_inc(CTR_share_connects);
	engine_keep_ages(k->engine, k->cfg.pass_ns);
	set_status(k, KSM_CONNECTED, "");
}

/* ---- in ---------------------------------------------------------------------------- */

static void on_refused(struct ksm *k, const struct wire_refused *r)
{
	char why[sizeof(r->why)];

	snprintf(why, sizeof(why), "%s", r->why);
	for (char *p = why; *p; p++)
		*p = *p >= ' ' && *p <= '~' ? *p : '?';
	counter_inc(CTR_share_refusals);
	k->without_store = k->store && !k->without_store && !uses_any(&k->uses);
	link_close(k, KSM_REFUSED, why[0] ? why : "no reason given");
}

static void on_message(struct ksm *k, const struct wire_head *m, int fd)
{
	bool welcome = m->type == WIRE_WELCOME;

	if (fd >= 0 && !(welcome && k->link == LINK_WAITING)) {
		close(fd);
		link_bad(k, "brimd sent a descriptor where none belongs");
	} else if (m->type == WIRE_REFUSED) {
		on_refused(k, wire_entries(m));
	} else if (welcome != (k->link == LINK_WAITING) || k->link == LINK_HOLDING) {
		if (fd >= 0)
			close(fd);
		link_bad(k, "brimd sent a message when it was not its time");
	} else if (welcome) {
		on_welcome(k, wire_entries(m), fd);
	} else if (m->type == WIRE_ANSWER) {
		scan_answer(k, m);
	} else if (m->type == WIRE_OFFER) {
		scan_offer(k, m);
	} else if (m->type == WIRE_RELEASED) {
		scan_released(k, m);
	} else if (m->type == WIRE_RECALL) {
		scan_recall(k, m);
	} else {
		counter_inc(CTR_share_forgets);
		scan_anew(k);
	}
}

/* Of a message's descriptors the first, if it is the only one; *more: there were others,
 * and all are closed. */
static int take_fds(struct msghdr *m, bool *more)
{
	int first = -1, fd;

	for (struct cmsghdr *c = CMSG_FIRSTHDR(m); c; c = CMSG_NXTHDR(m, c)) {
		size_t n = c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_RIGHTS
				   ? (c->cmsg_len - CMSG_LEN(0)) / sizeof(int) : 0;

		for (size_t i = 0; i < n; i++) {
			memcpy(&fd, CMSG_DATA(c) + i * sizeof(fd), sizeof(fd));
			if (first < 0 && !*more) {
				first = fd;
				continue;
			}
			*more = true;
			close(fd);
		}
	}
	if (*more && first >= 0)
		close(first);
	return *more ? -1 : first;
}

static void on_bytes(struct ksm *k, size_t bytes, int fd)
{
	const char *why;

	if (wire_check(k->in, bytes, WIRE_FROM_HOST, &why) == 0) {
		on_message(k, (const void *)k->in, fd);
		return;
	}
	if (fd >= 0)
		close(fd);
	link_bad(k, "brimd sent a message that is not sound");
}

bool link_read(struct ksm *k)
{
	_Alignas(struct cmsghdr) char control[CMSG_SPACE(4 * sizeof(int))];
	struct iovec v = { k->in, sizeof(k->in) };
	struct msghdr m = { .msg_iov = &v, .msg_iovlen = 1, .msg_control = control,
			    .msg_controllen = sizeof(control) };
	bool more = false;
	ssize_t n;
	int fd;

	if (k->fd < 0)
		return false;
	n = recvmsg(k->fd, &m, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return false;
	if (n <= 0) {
		link_close(k, KSM_WAITING, "");
		return false;
	}
	fd = take_fds(&m, &more);
	if (more || m.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) {
		if (fd >= 0)
			close(fd);
		link_bad(k, "brimd sent a message too long, or too many descriptors");
	} else {
		on_bytes(k, (size_t)n, fd);
	}
	return k->fd >= 0;
}

void link_fini(struct ksm *k)
{
	if (k->fd >= 0)
		close(k->fd);
	k->fd = -1;
	if (k->store)
		munmap((void *)(uintptr_t)k->store, (uint64_t)k->store_pages << PAGE_SHIFT);
	if (k->store_fd >= 0)
		close(k->store_fd);
	if (k->uses.pages)
		unmap_tables(k);
}
