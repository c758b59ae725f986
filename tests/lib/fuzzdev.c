/* See fuzzdev.h. */
#include <string.h>

#define VIRTIO_PCI_NO_LEGACY
#include <linux/virtio_pci.h>

#include "tests/lib/fuzzdev.h"

#define RINGS_GPA 0x10000u  /* rings are laid out from here at each start */
#define TABLES_GPA 0x80000u /* indirect tables: one page for each index */
#define DATA_GPA 0x100000u  /* buffers: 1 MiB, in units of 16 bytes */
#define MAX_OPS 200
#define MAX_BUFS 12
#define MAX_POKE 2048
#define TURN_NS_MAX (5ull * 1000000000) /* generous: sanitizers, a busy machine */
#define IDLE_TURNS 64

struct input {
	const uint8_t *p;
	size_t left;
};

/* Zeroes when the input is used up. */
static uint64_t take(struct input *in, unsigned bytes)
{
	uint64_t v = 0;

	if (bytes > in->left)
		bytes = (unsigned)in->left;
	memcpy(&v, in->p, bytes);
	in->p += bytes;
	in->left -= bytes;
	return v;
}

static const uint8_t *take_bytes(struct input *in, size_t most, size_t *got)
{
	const uint8_t *p = in->p;

	*got = most < in->left ? most : in->left;
	in->p += *got;
	in->left -= *got;
	return p;
}

static unsigned take_queue(struct fakeguest *g, struct input *in)
{
	return (unsigned)take(in, 1) % g->dev->queue_count;
}

/* Mostly where buffers are; sometimes in the rings, at the end of RAM, anywhere. */
static uint64_t take_address(struct fakeguest *g, struct input *in)
{
	uint8_t kind = (uint8_t)take(in, 1);
	const struct fakeq *q = &g->q[kind % g->dev->queue_count];

	if (kind < 0x60)
		return DATA_GPA + 16 * take(in, 2);
	if (kind < 0xa0)
		return DATA_GPA + PAGE_BYTES * take(in, 1);
	if (kind < 0xb0)
		return q->desc_gpa + take(in, 1);
	if (kind < 0xc0)
		return q->avail_gpa + take(in, 1);
	if (kind < 0xd0)
		return q->used_gpa + take(in, 1);
	if (kind < 0xe0)
		return TABLES_GPA + take(in, 2);
	if (kind < 0xf0)
		return FAKE_RAM_BYTES - take(in, 2);
	return take(in, 8);
}

static uint32_t take_len(struct input *in)
{
	static const uint32_t common[] = {
		1, 4, 8, 10, 12, 16, 20, 24, 60, 64, 512, 1024, 1514, 4096, 65536, MiB, 48 * MiB, 0,
	};
	uint8_t kind = (uint8_t)take(in, 1);

	return kind < 0xe0 ? common[kind % ARRAY_LEN(common)] : (uint32_t)take(in, 4);
}

/* ---- what an input can do ------------------------------------------------ */

struct run {
	const struct fuzzdev *d;
	struct fakeguest *g;
	struct input *in;
};

static uint32_t take_register(struct input *in)
{
	static const uint32_t regions[] = {
		VIRTIO_PCI_COMMON, VIRTIO_PCI_COMMON, VIRTIO_PCI_DEVICE, VIRTIO_PCI_ISR,
	};
	uint8_t kind = (uint8_t)take(in, 1);

	if (kind < 0xf0)
		return regions[kind % ARRAY_LEN(regions)] + (uint32_t)take(in, 1) % 72;
	return (uint32_t)take(in, 4) % (2 * VIRTIO_PCI_BAR_BYTES);
}

static void op_read(struct run *r)
{
	uint32_t off = take_register(r->in);

	fakeguest_read(r->g, off, 1u << take(r->in, 1) % 4);
}

static void op_write(struct run *r)
{
	uint32_t off = take_register(r->in), len = 1u << take(r->in, 1) % 4;

	fakeguest_write(r->g, off, take(r->in, len), len);
}

static void op_kick(struct run *r)
{
	fakeguest_kick(r->g, take_queue(r->g, r->in));
}

static void turn(struct fakeguest *g)
{
	uint64_t start_ns = now_ns();

	fakeguest_turn(g, 0);
	VERIFY(now_ns() - start_ns < TURN_NS_MAX);
}

static void op_turn(struct run *r)
{
	turn(r->g);
}

static void op_wait(struct run *r)
{
	fakeguest_turn(r->g, 1);
}

/* Raw bytes anywhere the device looks. */
static void op_memory(struct run *r)
{
	uint64_t at = take_address(r->g, r->in);
	size_t n;
	const uint8_t *p = take_bytes(r->in, take(r->in, 1) % 64, &n);
	void *to = n > 0 ? ram_at(r->g->ram, gpa(at), n) : NULL;

	if (to != NULL)
		memcpy(to, p, n);
}

static void op_descriptor(struct run *r)
{
	struct fakeq *q = &r->g->q[take_queue(r->g, r->in)];
	unsigned at = (unsigned)take(r->in, 1);

	if (q->desc == NULL)
		return;
	q->desc[at % q->size] = (struct vring_desc){
		.addr = take_address(r->g, r->in),
		.len = take_len(r->in),
		.flags = (uint16_t)(take(r->in, 1) & 7),
		.next = (uint16_t)(take(r->in, 1) % (q->size + 1u)),
	};
}

static void op_publish(struct run *r)
{
	unsigned qi = take_queue(r->g, r->in);
	uint8_t head = (uint8_t)take(r->in, 1);

	if (r->g->q[qi].desc != NULL)
		fakeguest_publish(r->g, qi, head);
}

/* Flags, index or event of an available ring. */
static void op_ring(struct run *r)
{
	struct fakeq *q = &r->g->q[take_queue(r->g, r->in)];
	unsigned field = (unsigned)take(r->in, 1) % 3;
	uint16_t v = (uint16_t)take(r->in, 2);

	if (q->desc != NULL)
		q->avail[field < 2 ? field : 2u + q->size] = v;
}

/* A chain as a driver makes it: the way to what lies behind the rings. */
static void op_chain(struct run *r)
{
	unsigned qi = take_queue(r->g, r->in), n = 1 + (unsigned)take(r->in, 1) % MAX_BUFS;
	uint8_t kind = (uint8_t)take(r->in, 1);
	unsigned writable_from = (kind & 0xf) % (n + 1);
	struct fakebuf b[MAX_BUFS];

	if (r->g->q[qi].desc == NULL)
		return;
	if (n > r->g->q[qi].size)
		n = r->g->q[qi].size;
	for (unsigned i = 0; i < n; i++) {
		size_t got;
		const uint8_t *p;
		void *to;

		b[i] = (struct fakebuf){ .gpa = take_address(r->g, r->in),
					 .len = take_len(r->in),
					 .device_writes = i >= writable_from };
		p = take_bytes(r->in, b[i].device_writes ? 0 : take(r->in, 1) % 48, &got);
		to = got > 0 ? ram_at(r->g->ram, gpa(b[i].gpa), got) : NULL;
		if (to != NULL)
			memcpy(to, p, got);
	}
	if (kind & 0x80) {
		r->g->next_gpa = TABLES_GPA + PAGE_BYTES * (kind >> 4 & 7);
		fakeguest_add_indirect(r->g, qi, b, n);
	} else {
		fakeguest_add(r->g, qi, b, n);
	}
	if (kind & 0x40)
		fakeguest_kick(r->g, qi);
}

/* As op_chain(), on buffers that are good and a header the device knows; the
 * last of them one byte, where a disk wants its status. */
static void op_request(struct run *r)
{
	unsigned qi = take_queue(r->g, r->in), n;
	uint8_t kind = (uint8_t)take(r->in, 1), header[FUZZDEV_HEADER] = { 0 };
	uint64_t at = DATA_GPA + PAGE_BYTES * take(r->in, 1), random = take(r->in, 8);
	bool readable = (kind & 1) != 0;
	struct fakebuf b[2 + 3];

	if (r->g->q[qi].size < ARRAY_LEN(b))
		return;
	b[0] = (struct fakebuf){ .gpa = at, .len = sizeof(header) };
	if (r->d->header != NULL)
		b[0].len = (uint32_t)r->d->header(random, header);
	memcpy(fakeguest_at(r->g, at, sizeof(header)), header, sizeof(header));
	for (n = 1; n < 1u + (kind >> 1 & 3); n++)
		b[n] = (struct fakebuf){ .gpa = at + n * PAGE_BYTES, .device_writes = !readable,
					 .len = 512u << take(r->in, 1) % 5 };
	if (kind & 8)
		b[n++] = (struct fakebuf){ .gpa = at + 64, .len = 1, .device_writes = true };
	fakeguest_add(r->g, qi, b, n);
	if (kind & 16)
		fakeguest_kick(r->g, qi);
}

static void settle(struct run *r)
{
	if (r->d->settle != NULL)
		r->d->settle(r->g);
}

static void op_start(struct run *r)
{
	uint64_t features = ~take(r->in, 8);

	r->g->queue_size = (uint16_t)(1u << take(r->in, 1) % 12 & 0x7ff);
	r->g->next_gpa = RINGS_GPA;
	settle(r);
	fakeguest_start(r->g, features);
}

/* Not waited for. */
static void op_reset(struct run *r)
{
	fakeguest_write(r->g, VIRTIO_PCI_COMMON + VIRTIO_PCI_COMMON_STATUS, 0, 1);
}

static void op_poke(struct run *r)
{
	size_t n, most = (size_t)take(r->in, 2) % MAX_POKE;
	const uint8_t *p = take_bytes(r->in, most, &n);

	if (r->d->poke != NULL)
		r->d->poke(r->g, p, n);
}

/* Those that lead deepest are there more than once. */
static void (*const ops[])(struct run *r) = {
	op_request, op_request, op_request, op_chain, op_chain, op_chain, op_turn, op_turn,
	op_turn, op_kick, op_kick, op_poke, op_poke, op_descriptor, op_publish, op_ring,
	op_memory, op_wait, op_read, op_write, op_start, op_reset,
};

/* ---- one run ------------------------------------------------------------- */

/* Most inputs find the device running. */
static void begin(struct run *r)
{
	uint8_t how = (uint8_t)take(r->in, 1);

	r->g->next_gpa = RINGS_GPA;
	if (how < 0xc0)
		fakeguest_start(r->g, how & 1 ? UINT64_MAX : ~VIRTIO_F_EVENT_IDX);
	else if (how < 0xe0)
		op_start(r);
}

/* virtio.h, I2: after a reset it works again, and does nothing unasked. */
static void finish(struct run *r)
{
	unsigned turns = 0;

	settle(r);
	r->g->next_gpa = RINGS_GPA;
	r->g->queue_size = 0;
	VERIFY(fakeguest_start(r->g, UINT64_MAX));
	while (turns < IDLE_TURNS && fakeguest_turn(r->g, 0) > 0)
		turns++;
	VERIFY(turns < IDLE_TURNS);
	if (r->d->check != NULL)
		r->d->check(r->g);
}

static void quiet_log(void)
{
	log_init("fuzz", 2, LOG_ERROR); /* refusals are the daily bread here */
}

int fuzzdev_run(const struct fuzzdev *d, const uint8_t *data, size_t size)
{
	static struct fakeguest g;
	struct input in = { data, size };
	struct run r = { d, &g, &in };

	quiet_log();
	fakeguest_init(&g);
	fakeguest_attach(&g, d->create(&g.env));
	begin(&r);
	for (unsigned left = MAX_OPS; left > 0 && in.left > 0; left--)
		ops[take(&in, 1) % ARRAY_LEN(ops)](&r);
	finish(&r);
	fakeguest_fini(&g);
	if (d->close != NULL)
		d->close();
	return 0;
}

uint32_t fuzzdev_request(struct fakeguest *g, unsigned qi, const struct fakebuf *b, unsigned n)
{
	uint16_t put = fakeguest_add(g, qi, b, n);
	uint32_t head, len;

	fakeguest_kick(g, qi);
	VERIFY(fakeguest_wait_used(g, qi, &head, &len));
	VERIFY(head == put);
	return len;
}
