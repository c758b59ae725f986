/*
 * The VM's end of sharing (mm/ksm/) against a host that says anything: sound messages at the
 * wrong time, with wrong numbers, cut or changed, in any order, with a guest that writes and
 * reads meanwhile.  Whatever comes, each page of the guest keeps its content, and the uses
 * of store pages are those of the pages that are STORED.
 *
 * An input is a list of acts, each a byte that says which and some bytes for it; where the
 * input ends these are 0.  Where userfaultfd may not be used nothing is tried, and it says so.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "mm/internal.h"
#include "mm/ksm/internal.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define STORE_PAGES 64u
#define GUEST_PAGES 128u /* that are used */
#define STORE_ID 9u
#define CLASSES 3u

static struct {
	const uint8_t *data;
	size_t left;
	struct ram *ram;
	struct engine *e;
	struct ksm *k;
	int fd, store_fd;
	uint8_t class[GUEST_PAGES]; /* 0: zeroes */
	_Alignas(16) uint8_t in[WIRE_BYTES_MAX], out[WIRE_BYTES_MAX];
	struct wire_head asked, releasing; /* the last of each; count 0: none */
	uint32_t pages[BATCH_PAGES];
} f;

static uint8_t next(void)
{
	f.left -= f.left > 0;
	return f.left ? *f.data++ : 0;
}

/* ---- a tier that takes nothing ------------------------------------------------------- */

static int no_put(void *ctx, uint64_t index, const void *page, uint64_t *ref, bool *filled)
{
	return -E2BIG;
}
static int no_get(void *ctx, uint64_t ref, uint64_t index, void *page)
{
	return -EIO;
}
static void no_drop(void *ctx, uint64_t ref)
{
}
static uint64_t no_bytes(void *ctx)
{
	return 0;
}
static const struct mm_tier no_tier = {
	.put = no_put, .get = no_get, .drop = no_drop, .held_bytes = no_bytes,
};

/* ---- the guest ----------------------------------------------------------------------- */

/* Content of a class: store page s has that of class s % CLASSES. */
static uint64_t word(uint8_t class, unsigned i)
{
	return class ? (class * 0x9E3779B97F4A7C15u) ^ i : 0;
}

static uint64_t *guest_at(uint32_t page)
{
	return ram_at(f.ram, gpa((uint64_t)page << PAGE_SHIFT), PAGE_BYTES);
}

static void fill(uint64_t *at, uint8_t class)
{
	for (unsigned i = 0; i < PAGE_BYTES / sizeof(*at); i++)
		at[i] = word(class, i);
}

static void write_page(uint32_t page, uint8_t class)
{
	f.class[page] = class;
	fill(guest_at(page), class);
}

static void write_some(void)
{
	uint32_t page = next() % GUEST_PAGES;

	write_page(page, next() % CLASSES);
}

static void check_page(uint32_t page)
{
	const uint64_t *at = guest_at(page);

	for (unsigned i = 0; i < PAGE_BYTES / sizeof(*at); i++)
		VERIFY(at[i] == word(f.class[page], i));
}

static void discard(void)
{
	VERIFY(ram_discard(f.ram, gpa(0), PAGE_BYTES) == 0);
	f.class[0] = 0;
}

static void cool(void)
{
	for (unsigned i = 0; i < 3; i++)
		engine_pass(f.e);
}

/* ---- the host -------------------------------------------------------------------------- */

static int dial(void *ctx)
{
	int pair[2];

	VERIFY(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair) == 0);
	if (f.fd >= 0)
		close(f.fd);
	f.fd = pair[0];
	f.asked.count = f.releasing.count = 0;
	return pair[1];
}

static void note(const struct wire_head *m)
{
	const struct wire_content *c = wire_entries(m);
	const struct wire_page *p = wire_entries(m);

	for (unsigned i = 0; i < m->count && (m->type == WIRE_LOOKUP || m->type == WIRE_CONTENT); i++)
		f.pages[i] = m->type == WIRE_LOOKUP ? p[i].page : c[i].of.page;
	if (m->type == WIRE_LOOKUP || m->type == WIRE_CONTENT)
		f.asked = *m;
	if (m->type == WIRE_RELEASE)
		f.releasing = *m;
}

/* Lets the client go on, and reads what it says: that must be sound. */
static void step(void)
{
	const char *why;

	f.k->retry_at_ns = 0;
	if (f.k->recall_at_ns)
		f.k->recall_at_ns = 1;
	f.k->later_at_ns = f.k->round_at_ns = f.k->rest_until_ns = 0;
	ksm_step(f.k, 0);
	for (;;) {
		char control[CMSG_SPACE(sizeof(int))];
		struct iovec v = { f.in, sizeof(f.in) };
		struct msghdr m = { .msg_iov = &v, .msg_iovlen = 1, .msg_control = control,
				    .msg_controllen = sizeof(control) };
		ssize_t n = f.fd < 0 ? -1 : recvmsg(f.fd, &m, MSG_DONTWAIT);
		int fd;

		if (n <= 0)
			return;
		if (CMSG_FIRSTHDR(&m)) {
			memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&m)), sizeof(fd));
			close(fd);
		}
		VERIFY(wire_check(f.in, (size_t)n, WIRE_FROM_VM, &why) == 0);
		note((const void *)f.in);
	}
}

static void say(size_t len, int fd)
{
	union {
		struct cmsghdr head;
		char room[CMSG_SPACE(sizeof(int))];
	} c = { .head = { .cmsg_len = CMSG_LEN(sizeof(int)), .cmsg_level = SOL_SOCKET,
			  .cmsg_type = SCM_RIGHTS } };
	struct iovec v = { f.out, len };
	struct msghdr m = { .msg_iov = &v, .msg_iovlen = 1 };

	if (fd >= 0) {
		memcpy(CMSG_DATA(&c.head), &fd, sizeof(fd));
		m.msg_control = &c;
		m.msg_controllen = sizeof(c.room);
	}
	if (f.fd >= 0)
		(void)!sendmsg(f.fd, &m, MSG_NOSIGNAL | MSG_DONTWAIT);
	step();
}

/* A store page: mostly one that is there. */
static uint32_t store_page(void)
{
	uint8_t b = next();

	return b < 254 ? 1 + b % (STORE_PAGES - 1) : b == 254 ? 0 : STORE_PAGES + next() * 0x1000000u;
}

static uint32_t guest_page(void)
{
	uint8_t b = next();

	return b < 254 ? b % GUEST_PAGES : next() * 0x2aaaaaau;
}

/* Its entries; how many. */
static unsigned compose(enum wire_type t, unsigned n)
{
	void *at = f.out + sizeof(struct wire_head);
	struct wire_answer *a = at;
	struct wire_offer *o = at;
	struct wire_store_page *p = at;

	if (t == WIRE_WELCOME)
		*(struct wire_welcome *)at = (struct wire_welcome){
			.store_id = next() < 250 ? STORE_ID : 1, .seed = 5,
			.store_pages = next() < 250 ? STORE_PAGES : STORE_PAGES + next() };
	if (t == WIRE_REFUSED)
		snprintf(at, sizeof(struct wire_refused), "go away %c", next());
	for (unsigned i = 0; i < n; i++) {
		if (t == WIRE_ANSWER) {
			a[i] = (struct wire_answer){ .page = next() < 255 ? f.pages[i] : next(),
						     .kind = next() % 4 };
			a[i].store_page = a[i].kind == WIRE_SAME ? store_page() : 0;
		}
		if (t == WIRE_OFFER)
			o[i] = (struct wire_offer){ guest_page(), store_page() };
		if (t == WIRE_RECALL)
			p[i].store_page = store_page();
	}
	return n;
}

/* Of that type, as it should be; *flips bytes changed. */
static void message(enum wire_type t, unsigned flips)
{
	unsigned n = t == WIRE_WELCOME || t == WIRE_REFUSED ? 1
		     : t == WIRE_RELEASED || t == WIRE_FORGET ? 0
		     : t == WIRE_ANSWER ? f.asked.count : 1 + next() % 16;
	uint32_t turn = t == WIRE_ANSWER ? f.asked.turn : t == WIRE_RELEASED ? f.releasing.turn : 0;
	size_t len;

	if (t == WIRE_ANSWER && !n)
		n = 1;
	n = compose(t, n);
	if (t == WIRE_ANSWER)
		f.asked.count = 0;
	if (t == WIRE_RELEASED)
		f.releasing.count = 0;
	len = wire_finish((void *)f.out, t, n, turn);
	while (flips--)
		f.out[(next() | next() << 8) % len] = next();
	say(len, t == WIRE_WELCOME && next() < 230 && !f.k->store ? f.store_fd : -1);
}

static const enum wire_type types[] = { WIRE_WELCOME, WIRE_ANSWER, WIRE_OFFER, WIRE_RELEASED,
					WIRE_RECALL, WIRE_FORGET, WIRE_REFUSED };

/* Something that may be said now. */
static void message_in_turn(uint8_t which)
{
	if (f.k->link != LINK_OPEN)
		message(WIRE_WELCOME, 0);
	else if (f.releasing.count && which % 3)
		message(WIRE_RELEASED, 0);
	else if (f.asked.count && which % 4)
		message(WIRE_ANSWER, 0);
	else
		message(which % 8 == 0 ? WIRE_FORGET : which % 2 ? WIRE_OFFER : WIRE_RECALL, 0);
}

static void act(uint8_t which)
{
	if (which < 140)
		message_in_turn(which);
	else if (which < 144)
		message(types[which % 6], 0);
	else if (which < 150)
		message(types[which % ARRAY_LEN(types)], 1 + which % 3);
	else if (which < 200)
		write_some();
	else if (which < 225)
		check_page(next() % GUEST_PAGES);
	else if (which < 240)
		cool();
	else if (which < 244 && f.fd >= 0)
		shutdown(f.fd, SHUT_RDWR);
	else if (which == 244)
		discard();
	step();
}

/* ---- one input --------------------------------------------------------------------------- */

static bool set_up(void)
{
	struct ksm_config kc = { .vm = "vm", .group = "g", .dial = dial, .cpu_pct = 100,
				 .retry_ns = 1, .pass_ns = 1 };
	struct engine_config ec = { .tier = &no_tier, .manual = true, .fault_threads = 1 };
	struct err e = { "" };

	VERIFY(ram_create(&f.ram, &(struct ram_config){ RAM_MIN_BYTES, RAM_HUGE_NEVER, NULL }, &e) == 0);
	ec.ram = f.ram;
	if (engine_create(&f.e, &ec, &e)) {
		fprintf(stderr, "nothing is tried: %s\n", e.msg);
		ram_destroy(&f.ram);
		return false;
	}
	VERIFY(ksm_create(&f.k, &kc, &e) == 0);
	ksm_attach(f.k, f.e, f.ram);
	return true;
}

static void make_store(void)
{
	uint64_t *at;

	if (f.store_fd > 0)
		return;
	log_init("fuzz", 2, LOG_ERROR);
	f.store_fd = memfd_create("store", MFD_ALLOW_SEALING | MFD_CLOEXEC);
	VERIFY(f.store_fd > 0 && ftruncate(f.store_fd, STORE_PAGES << PAGE_SHIFT) == 0);
	VERIFY(fcntl(f.store_fd, F_ADD_SEALS, F_SEAL_SHRINK) == 0);
	at = mmap(NULL, STORE_PAGES << PAGE_SHIFT, PROT_READ | PROT_WRITE, MAP_SHARED, f.store_fd, 0);
	VERIFY(at != MAP_FAILED);
	for (unsigned s = 1; s < STORE_PAGES; s++)
		fill(at + s * (PAGE_BYTES / sizeof(*at)), s % CLASSES);
	munmap(at, STORE_PAGES << PAGE_SHIFT);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	make_store();
	f.data = data;
	f.left = size;
	f.fd = -1;
	memset(f.class, 0, sizeof(f.class));
	f.asked.count = f.releasing.count = 0;
	if (!set_up())
		return 0;
	for (uint32_t i = 0; i < GUEST_PAGES; i += 2)
		write_page(i, i % CLASSES);
	if (size % 2) {
		ksm_loaded(f.k, 1, GUEST_PAGES / 2);
		ksm_loaded(f.k, GUEST_PAGES / 3, GUEST_PAGES / 3);
	}
	step();
	while (f.left)
		act(next());
	for (uint32_t i = 0; i < GUEST_PAGES; i += 2)
		check_page(i);
	for (uint64_t c = 0; c < f.e->pages.chunk_count; c++) {
		pthread_mutex_lock(&f.e->pages.chunk[c].lock); /* the last fault's books */
		pthread_mutex_unlock(&f.e->pages.chunk[c].lock);
	}
	if (f.k->store)
		uses_verify(&f.k->uses, atomic_load(&f.e->pages.in_state[PAGE_STORED]) +
					 atomic_load(&f.e->pages.in_state[PAGE_SHARED]));
	for (uint32_t i = 0; i < GUEST_PAGES; i++)
		check_page(i);
	engine_destroy(&f.e);
	ksm_destroy(&f.k);
	ram_destroy(&f.ram);
	if (f.fd >= 0)
		close(f.fd);
	return 0;
}
