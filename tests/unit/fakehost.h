/* fakehost: a VM's memory, engine and share client over a socket pair whose other end is the
 * test, that says what a brimd might say, or must not.  All in one thread: the client does
 * a step when the test waits for a message of it. */
#ifndef BRIM_TESTS_FAKEHOST_H
#define BRIM_TESTS_FAKEHOST_H

#include "tests/unit/membox.h"

#include <fcntl.h>
#include <sys/socket.h>
#include <unistd.h>
#include <xxhash.h>

#include "mm/ksm/internal.h"

#define FH_STORE_PAGES 512u
#define FH_SEED 0x5eedu
#define FH_ID 77u
#define FH_WAIT_NS 10000000000u
#define FH_RETRY_NS 1000000u
#define FH_APART 40u /* pages, so that a fault does not bring back its neighbour */

struct fakehost {
	struct box b;
	struct ksm *k;
	int fd; /* our end; -1: the client has not dialled */
	unsigned dials;
	int store_fd;
	uint8_t *store;
	_Alignas(16) uint8_t in[WIRE_BYTES_MAX], out[WIRE_BYTES_MAX];
	const struct wire_head *m; /* the message in `in` */
	int got_fd; /* that came with it; -1: none */
};

static inline int fh_dial(void *ctx)
{
	struct fakehost *f = ctx;
	int pair[2];

	cr_assert_eq(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair), 0);
	if (f->fd >= 0)
		close(f->fd);
	f->fd = pair[0];
	f->dials++;
	return pair[1];
}

static inline int fh_memfd(uint64_t bytes, int seals)
{
	int fd = memfd_create("store", MFD_CLOEXEC | MFD_ALLOW_SEALING);

	cr_assert_geq(fd, 0);
	cr_assert_eq(ftruncate(fd, (off_t)bytes), 0);
	cr_assert_eq(fcntl(fd, F_ADD_SEALS, seals), 0);
	return fd;
}

static inline void fh_make_store(struct fakehost *f)
{
	f->store_fd = fh_memfd(FH_STORE_PAGES << PAGE_SHIFT, F_SEAL_SHRINK | F_SEAL_GROW);
	f->store = mmap(NULL, FH_STORE_PAGES << PAGE_SHIFT, PROT_READ | PROT_WRITE, MAP_SHARED,
			f->store_fd, 0);
	cr_assert_neq(f->store, MAP_FAILED);
}

static inline void fh_open_with(struct fakehost *f, struct engine_config ec, struct ksm_config kc)
{
	struct err e = { "" };

	memset(f, 0, sizeof(*f));
	f->fd = f->got_fd = -1;
	kc.vm = "vm";
	kc.group = "g";
	kc.dial = fh_dial;
	kc.dial_ctx = f;
	kc.retry_ns = kc.retry_ns ? kc.retry_ns : FH_RETRY_NS;
	kc.cpu_pct = kc.cpu_pct ? kc.cpu_pct : 100;
	cr_assert_eq(ksm_create(&f->k, &kc, &e), 0, "%s", e.msg);
	ec.leaving = ksm_leaving;
	ec.leaving_ctx = f->k;
	box_open(&f->b, RAM_HUGE_NEVER, ec);
	ksm_attach(f->k, f->b.e, f->b.ram);
	fh_make_store(f);
}

static inline void fh_open(struct fakehost *f)
{
	fh_open_with(f, BOX_MANUAL, (struct ksm_config){ .pass_ns = 1000000 });
}

/* brimd ends the connection, or it is gone already. */
static inline void fh_hang_up(struct fakehost *f)
{
	if (f->fd >= 0)
		close(f->fd);
	f->fd = -1;
}

static inline void fh_close(struct fakehost *f)
{
	struct ksm *k = f->k;

	ksm_stop(k);
	box_settle(&f->b);
	if (k->store)
		uses_verify(&k->uses, atomic_load(&f->b.e->pages.in_state[PAGE_STORED]) +
				       atomic_load(&f->b.e->pages.in_state[PAGE_SHARED]));
	box_close(&f->b);
	ksm_destroy(&f->k);
	fh_hang_up(f);
	munmap(f->store, FH_STORE_PAGES << PAGE_SHIFT);
	close(f->store_fd);
}

static inline bool fh_recv(struct fakehost *f)
{
	_Alignas(struct cmsghdr) char control[CMSG_SPACE(sizeof(int))];
	struct iovec v = { f->in, sizeof(f->in) };
	struct msghdr m = { .msg_iov = &v, .msg_iovlen = 1, .msg_control = control,
			    .msg_controllen = sizeof(control) };
	ssize_t n = f->fd < 0 ? 0 : recvmsg(f->fd, &m, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
	const char *why;

	if (n <= 0)
		return false;
	if (f->got_fd >= 0)
		close(f->got_fd);
	f->got_fd = -1;
	if (CMSG_FIRSTHDR(&m))
		memcpy(&f->got_fd, CMSG_DATA(CMSG_FIRSTHDR(&m)), sizeof(f->got_fd));
	cr_assert_eq(wire_check(f->in, (size_t)n, WIRE_FROM_VM, &why), 0, "%s", why);
	f->m = (const void *)f->in;
	return true;
}

/* Steps until the client says something: it must be that. */
static inline const void *fh_expect(struct fakehost *f, enum wire_type t)
{
	uint64_t end = now_ns() + FH_WAIT_NS;

	while (!fh_recv(f)) {
		cr_assert_lt(now_ns(), end, "nothing came, where type %d should", t);
		ksm_step(f->k, 1);
	}
	cr_assert_eq(f->m->type, t, "type %d came, where %d should", f->m->type, t);
	return wire_entries(f->m);
}

/* So many steps, in which it says nothing. */
static inline void fh_silence(struct fakehost *f, unsigned steps)
{
	while (steps--)
		ksm_step(f->k, 0);
	cr_assert_not(fh_recv(f), "type %d came", f->m->type);
}

static inline void fh_send_raw(struct fakehost *f, const void *msg, size_t len, int fd)
{
	_Alignas(struct cmsghdr) char control[CMSG_SPACE(sizeof(int))] = { 0 };
	struct iovec v = { (void *)(uintptr_t)msg, len };
	struct msghdr m = { .msg_iov = &v, .msg_iovlen = 1 };

	if (fd >= 0) {
		m.msg_control = control;
		m.msg_controllen = sizeof(control);
		*CMSG_FIRSTHDR(&m) = (struct cmsghdr){ .cmsg_len = CMSG_LEN(sizeof(int)),
						       .cmsg_level = SOL_SOCKET,
						       .cmsg_type = SCM_RIGHTS };
		memcpy(CMSG_DATA(CMSG_FIRSTHDR(&m)), &fd, sizeof(fd));
	}
	cr_assert_eq(sendmsg(f->fd, &m, MSG_NOSIGNAL), (ssize_t)len);
}

static inline void fh_send_fd(struct fakehost *f, enum wire_type t, const void *entries,
			      unsigned n, int fd)
{
	uint32_t turn = t == WIRE_ANSWER || t == WIRE_RELEASED ? f->m->turn : 0;

	if (n)
		memcpy(f->out + sizeof(struct wire_head), entries, n * wire_entry_bytes(t));
	fh_send_raw(f, f->out, wire_finish((void *)f->out, t, n, turn), fd);
}

/* An answer bears the number of the message that came last. */
static inline void fh_send(struct fakehost *f, enum wire_type t, const void *entries, unsigned n)
{
	fh_send_fd(f, t, entries, n, -1);
}

static inline void fh_welcome(struct fakehost *f)
{
	const struct wire_hello *h = wire_entries(f->m);
	struct wire_welcome w = { .store_id = FH_ID, .seed = FH_SEED,
				  .store_pages = FH_STORE_PAGES };

	fh_send_fd(f, WIRE_WELCOME, &w, 1,
		   f->m->type == WIRE_HELLO && !h->has_store ? f->store_fd : -1);
}

static inline void fh_step_until(struct fakehost *f, enum counter c, uint64_t least)
{
	uint64_t end = now_ns() + FH_WAIT_NS;

	while (counter_get(c) < least) {
		cr_assert_lt(now_ns(), end, "%s stays %lu", counter_table[c].name,
			     (unsigned long)counter_get(c));
		ksm_step(f->k, 1);
	}
}

static inline void fh_connect(struct fakehost *f)
{
	uint64_t before = counter_get(CTR_share_connects);

	fh_expect(f, WIRE_HELLO);
	fh_welcome(f);
	fh_step_until(f, CTR_share_connects, before + 1);
}

static inline void fh_open_connected(struct fakehost *f)
{
	fh_open(f);
	fh_connect(f);
}

/* The client has closed its end. */
static inline bool fh_hung_up(struct fakehost *f)
{
	for (int i = 0; i < 100; i++) {
		char byte;

		if (recv(f->fd, &byte, 1, MSG_DONTWAIT) == 0)
			return true;
		ksm_step(f->k, 1);
	}
	return false;
}

/* Pages that were filled are cold, by the next look. */
static inline void fh_cool(struct fakehost *f)
{
	for (int i = 0; i < 4; i++)
		engine_pass(f->b.e);
}

/* n pages from `from` on are filled, and looked up. */
static inline const void *fh_fill(struct fakehost *f, uint64_t from, uint64_t n)
{
	for (uint64_t i = from; i < from + n; i++)
		box_fill(&f->b, i, 1);
	fh_cool(f);
	return fh_expect(f, WIRE_LOOKUP);
}

/* As box_fill() would have it in page `index`, in the store. */
static inline void fh_store(struct fakehost *f, uint32_t store_page, uint64_t index,
			    uint64_t version)
{
	uint64_t *w = (uint64_t *)(f->store + ((uint64_t)store_page << PAGE_SHIFT));

	for (unsigned i = 0; i < PAGE_BYTES / sizeof(*w); i++)
		w[i] = box_word(index, version, i);
}

/* That fh_share() shared with the n-th store page. */
static inline bool fh_has_shared(struct fakehost *f, uint64_t n)
{
	return box_has(&f->b, (n - 1) * FH_APART, 1);
}

static inline enum page_state fh_state(struct fakehost *f, uint64_t index)
{
	return box_entry(&f->b, index).state;
}

/* Answers a LOOKUP, all of one kind: SAME counts store pages from `first` on. */
static inline unsigned fh_answer(struct fakehost *f, enum wire_kind kind, uint32_t first)
{
	static struct wire_answer a[BATCH_PAGES];
	const struct wire_page *p = wire_entries(f->m);
	const struct wire_content *c = wire_entries(f->m);

	for (unsigned i = 0; i < f->m->count; i++)
		a[i] = (struct wire_answer){
			.page = f->m->type == WIRE_CONTENT ? c[i].of.page : p[i].page, .kind = kind,
			.store_page = kind == WIRE_SAME ? first + i : 0 };
	fh_send(f, WIRE_ANSWER, a, f->m->count);
	return f->m->count;
}

/* n pages are filled and shared with store pages from 1 on. */
static inline void fh_share(struct fakehost *f, uint32_t n)
{
	uint64_t before = counter_get(CTR_engine_shared);

	for (uint32_t i = 0; i < n; i++) {
		box_fill(&f->b, i * FH_APART, 1);
		fh_store(f, i + 1, i * FH_APART, 1);
	}
	fh_cool(f);
	fh_expect(f, WIRE_LOOKUP);
	cr_assert_eq(f->m->count, n);
	fh_answer(f, WIRE_SAME, 1);
	fh_step_until(f, CTR_engine_shared, before + n);
}

#endif
