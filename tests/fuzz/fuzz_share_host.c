/*
 * Messages of several VMs to the daemon's side of sharing.  The input is a program: who
 * does what next.  Sound messages are built from a few pages and contents, so that VMs
 * meet, and then perhaps spoilt; others are raw.  After every step everything is counted
 * again, and every page that a VM may rely on is compared with what it should be.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "host/internal.h"
#include "tests/lib/sharevm.h"

#define VMS 4u
#define PAGES 24u
#define CONTENTS 12u
#define STORE_PAGES 80u

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

struct shadow {
	/* What the VM was named and has not released: contents by store page, plus one. */
	uint32_t content[STORE_PAGES];
	bool releasing[STORE_PAGES], release_sent; /* until RELEASED: namings do not count */
	uint32_t asked[PAGES]; /* content it last asked about, plus one */
	bool deaf;             /* it has sent what we did not build: no more is known of it */
};

static struct sharevm vm[VMS];
static struct shadow shadow[VMS];
static struct share_host *host;

struct input {
	const uint8_t *at, *end;
};

static uint8_t next(struct input *in)
{
	return in->at < in->end ? *in->at++ : 0;
}

/* ---- what comes back ------------------------------------------------------------------- */

static void named(unsigned i, uint32_t store_page)
{
	uint32_t content = 0;

	VERIFY(store_page >= STORE_FIRST_PAGE && store_page < STORE_PAGES);
	if (shadow[i].deaf || shadow[i].releasing[store_page])
		return;
	while (content < CONTENTS && !sharevm_has(&vm[i], store_page, content))
		content++;
	VERIFY(content < CONTENTS);
	shadow[i].content[store_page] = content + 1;
}

static void released(unsigned i)
{
	memset(shadow[i].releasing, 0, sizeof(shadow[i].releasing));
	shadow[i].release_sent = false;
}

static void take(unsigned i, int type)
{
	const struct wire_head *m = (const void *)vm[i].in;
	const struct wire_answer *a = wire_entries(m);
	const struct wire_offer *o = wire_entries(m);

	if (type == WIRE_WELCOME)
		sharevm_welcomed(&vm[i]);
	if (type == WIRE_RELEASED)
		released(i);
	for (unsigned k = 0; k < m->count && type == WIRE_ANSWER; k++)
		if (a[k].kind == WIRE_SAME)
			named(i, a[k].store_page);
	for (unsigned k = 0; k < m->count && type == WIRE_OFFER; k++)
		named(i, o[k].store_page);
}

static void hang_up(unsigned i)
{
	sharevm_hang_up(&vm[i]);
	released(i);
}

static void listen_to(unsigned i, unsigned most)
{
	int type = 1;

	while (vm[i].fd >= 0 && most-- && type > 0) {
		type = sharevm_poll(&vm[i]);
		if (type > 0)
			take(i, type);
	}
	if (type == 0)
		hang_up(i);
}

/* ---- what they do ------------------------------------------------------------------------- */

static void *entries(unsigned i)
{
	return vm[i].out + sizeof(struct wire_head);
}

static void spoil_and_send(struct input *in, unsigned i, enum wire_type t, unsigned n)
{
	size_t bytes = wire_finish((void *)vm[i].out, t, n, ++vm[i].turn);
	uint8_t spoilt = next(in);

	if (t == WIRE_HOLD)
		((struct wire_head *)(void *)vm[i].out)->turn = 0;
	if (spoilt >= 240) {
		vm[i].out[(next(in) | next(in) << 8) % bytes] ^= spoilt | 1;
		shadow[i].deaf = true;
	}
	(void)sharevm_send_raw(&vm[i], vm[i].out, bytes, NULL, 0);
}

static void look_up(struct input *in, unsigned i)
{
	struct wire_page *p = entries(i);
	unsigned n = next(in) % 6 + 1;

	for (unsigned k = 0; k < n; k++) {
		uint32_t page = next(in) % (PAGES + (next(in) == 255)), content = next(in) % CONTENTS;

		if (page < PAGES)
			shadow[i].asked[page] = content + 1;
		p[k] = (struct wire_page){ .hash = sharevm_hash(&vm[i], content), .page = page };
	}
	spoil_and_send(in, i, WIRE_LOOKUP, n);
}

static void give(struct input *in, unsigned i)
{
	struct wire_content *c = entries(i);
	unsigned n = next(in) % 3 + 1;

	for (unsigned k = 0; k < n; k++) {
		uint32_t page = next(in) % PAGES, content = next(in) % CONTENTS;

		if (shadow[i].asked[page] && content % 4)
			content = shadow[i].asked[page] - 1;
		shadow[i].asked[page] = content + 1;
		c[k].of = (struct wire_page){ .hash = sharevm_hash(&vm[i], content), .page = page };
		memcpy(c[k].bytes, sharevm_bytes(content), PAGE_BYTES);
		c[k].bytes[7] ^= next(in) >= 250;
	}
	spoil_and_send(in, i, WIRE_CONTENT, n);
}

static void release(struct input *in, unsigned i)
{
	struct wire_store_page *p = entries(i);
	unsigned n = 0, most = next(in) % 4 + 1;

	if (shadow[i].release_sent)
		return;
	for (uint32_t page = next(in) % STORE_PAGES; page < STORE_PAGES && n < most; page++)
		if (shadow[i].content[page]) {
			shadow[i].content[page] = 0;
			shadow[i].releasing[page] = true;
			p[n++].store_page = page;
		}
	shadow[i].release_sent = n > 0;
	if (next(in) >= 250)
		p[n++].store_page = next(in);
	if (n)
		spoil_and_send(in, i, WIRE_RELEASE, n);
}

static void say_hello(struct input *in, unsigned i)
{
	if (vm[i].fd < 0)
		sharevm_connect(&vm[i]);
	(void)sharevm_say_hello(&vm[i], next(in) >= 250 ? "red" : "blue", PAGES);
}

/* All it relies on, or some: the rest it does not, from then on. */
static void hold(struct input *in, unsigned i)
{
	struct wire_store_page *p = entries(i);
	unsigned n = 0;

	for (uint32_t page = 0; page < STORE_PAGES; page++) {
		if (next(in) >= 200)
			shadow[i].content[page] = 0;
		if (shadow[i].content[page])
			p[n++].store_page = page;
	}
	if (next(in) >= 250)
		p[n++].store_page = next(in);
	if (n)
		spoil_and_send(in, i, WIRE_HOLD, n);
	if (vm[i].fd >= 0 && next(in) < 250)
		(void)sharevm_send(&vm[i], WIRE_HOLD, 0);
}

static void raw(struct input *in, unsigned i)
{
	uint8_t bytes[64], n = next(in) % 64 + 1;
	int fds[3] = { 0, 1, 2 };

	for (unsigned k = 0; k < n; k++)
		bytes[k] = next(in);
	shadow[i].deaf = true;
	(void)sharevm_send_raw(&vm[i], bytes, n, fds, n % 4);
}

static void start(unsigned i)
{
	static int pid = 100;

	memset(&shadow[i], 0, sizeof(shadow[i]));
	sharevm_init(&vm[i], host, pid++, 1000);
}

static void stop(unsigned i)
{
	sharevm_end(&vm[i]);
	start(i);
}

/* ---- steps ------------------------------------------------------------------------------------ */

static void compare(unsigned i)
{
	for (uint32_t page = 0; page < STORE_PAGES && vm[i].store && !shadow[i].deaf; page++)
		if (shadow[i].content[page])
			VERIFY(sharevm_has(&vm[i], page, shadow[i].content[page] - 1));
}

static void turn(void)
{
	struct err e;

	VERIFY(share_host_turn(host, 0) == 0);
	if (!share_host_verify(host, &e))
		brim_panic(__FILE__, __LINE__, "%s", e.msg);
	for (unsigned i = 0; i < VMS; i++)
		compare(i);
}

static void step(struct input *in)
{
	uint8_t what = next(in);
	unsigned i = what % VMS;

	if (vm[i].fd < 0 && what / VMS % 16 < 13)
		return say_hello(in, i);
	switch (what / VMS % 16) {
	case 0: case 1: case 2: return look_up(in, i);
	case 3: case 4: return give(in, i);
	case 5: return release(in, i);
	case 6: return say_hello(in, i);
	case 7: return hold(in, i);
	case 8: return raw(in, i);
	case 9: return hang_up(i);
	case 13: return what & 128 ? stop(i) : turn();
	default:
		turn();
		return listen_to(i, 3);
	}
}

static void finish(void)
{
	struct share_host_stats s;

	for (unsigned i = 0; i < VMS; i++) {
		sharevm_end(&vm[i]);
		vm[i] = (struct sharevm){ .fd = -1, .store_fd = -1 };
		memset(&shadow[i], 0, sizeof(shadow[i]));
	}
	sharevm_settle(host);
	share_host_stats(host, &s);
	VERIFY(s.groups == 0 && s.processes == 0 && s.sessions == 0 && s.candidates == 0);
	share_host_destroy(&host);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct share_host_config cfg = { .store_bytes = STORE_PAGES * PAGE_BYTES, .offers_max = 8,
					 .index_pages = 40, .recall_after_ns = 1 };
	struct input in = { data, data + size };
	unsigned before = count_fds();
	struct err e;

	log_init("fuzz", 2, LOG_ERROR);
	VERIFY(share_host_create(&host, &cfg, &e) == 0);
	for (unsigned i = 0; i < VMS; i++) {
		start(i);
		say_hello(&in, i);
		turn();
		listen_to(i, 2);
	}
	while (in.at < in.end)
		step(&in);
	finish();
	VERIFY(count_fds() == before);
	return 0;
}
