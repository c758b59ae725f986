/*
 * Split virtqueues (virtio 1.2, section 2.7): the one place that parses rings.
 *
 * Everything in the rings belongs to the guest and may change while it is
 * looked at, by another vCPU, on purpose.  So each field is loaded once, with an
 * atomic or volatile access that the compiler may neither repeat nor split into
 * a second look, and only the copy is checked and used.  What is handed out is a
 * list of host buffers inside guest RAM; their *content* is still the guest's.
 *
 * Barriers, and their other sides in the driver:
 *  - available index: acquire here, release there after it wrote descriptors.
 *  - used index: release here after the used element, acquire there.
 *  - virtq_notify(): our used index, then its used_event or flags; there the
 *    event first and then the used index.  Only a full barrier orders a store
 *    before a later load, on x86 too.  virtq_kicks_on() is the same the other
 *    way round.
 *
 * Threads: any, under the device's lock.  Owner: the device.
 *
 * Invariants:
 *  I1  desc, avail and used of an enabled queue were checked whole at enable;
 *      every index into them is reduced or checked first.
 *  I2  A walk takes at most size + VIRTQ_MAX_IOV descriptors.
 *  I3  A queue that is broken, not enabled, or of a device that is not running
 *      is not touched: no chain comes out of it and nothing is written to it.
 *  I4  Chains taken and not yet pushed are never more than the ring's size.
 */
#include <errno.h>
#include <string.h>

#include <linux/virtio_ring.h>

#include "virtio/internal.h"

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "rings are little-endian");

/* Packed: an indirect table may lie at any address. */
struct vring_desc_le {
	uint64_t addr;
	uint32_t len;
	uint16_t flags;
	uint16_t next;
} __attribute__((packed));

_Static_assert(sizeof(struct vring_desc_le) == 16, "virtio 1.2, section 2.7.5");

/* Section 2.7.5: a chain has at most 2^32 bytes. */
#define CHAIN_MAX_BYTES ((uint64_t)1 << 32)

/* The rings as arrays of uint16_t: where things are. */
#define RING_FLAGS 0
#define RING_IDX 1
#define RING_ENTRIES 2

static bool is_power_of_two(uint16_t v)
{
	return v != 0 && (v & (v - 1)) == 0;
}

static uint64_t desc_bytes(uint16_t size)
{
	return sizeof(struct vring_desc_le) * (uint64_t)size;
}

static uint64_t avail_bytes(uint16_t size)
{
	return 6 + 2 * (uint64_t)size;
}

static uint64_t used_bytes(uint16_t size)
{
	return 6 + 8 * (uint64_t)size;
}

static uint16_t slot_of(const struct virtq *q, uint16_t index)
{
	return index & (uint16_t)(q->size - 1);
}

/* used_event lies behind the available ring, avail_event behind the used one,
 * whose entries are four times as long. */
static const uint16_t *used_event(const struct virtq *q)
{
	return &q->avail[RING_ENTRIES + q->size];
}

static uint16_t *avail_event(const struct virtq *q)
{
	return &q->used[RING_ENTRIES + 4 * q->size];
}

static uint16_t load_avail_idx(const struct virtq *q)
{
	return __atomic_load_n(&q->avail[RING_IDX], __ATOMIC_ACQUIRE);
}

/* Orders a store before a later load: see the top. */
static void full_barrier(void)
{
	__sync_synchronize();
}

static bool is_live(const struct virtq *q)
{
	return q->enabled && !q->broken && virtio_running(q->dev);
}

static int refuse(struct virtq *q, enum counter why, const char *sentence)
{
	virtq_fail(q, why, sentence);
	return -EPROTO;
}

void virtq_fail(struct virtq *q, enum counter why, const char *sentence)
{
	counter_inc(why);
	q->broken = true;
	log_guest("%s: queue %u: %s", q->dev->label, q->index, sentence);
	virtio_needs_reset(q->dev);
}

/* ---- setting up ---------------------------------------------------------- */

int virtq_enable(struct virtq *q)
{
	const struct ram *ram = q->dev->env.ram;
	bool ok;

	ok = is_power_of_two(q->size) && q->size <= q->max_size &&
	     q->desc_gpa % 16 == 0 && q->avail_gpa % 2 == 0 && q->used_gpa % 4 == 0;
	if (ok) {
		q->desc = ram_at(ram, gpa(q->desc_gpa), desc_bytes(q->size));
		q->avail = ram_at(ram, gpa(q->avail_gpa), avail_bytes(q->size));
		q->used = ram_at(ram, gpa(q->used_gpa), used_bytes(q->size));
		ok = q->desc != NULL && q->avail != NULL && q->used != NULL;
	}
	if (!ok) {
		virtq_fail(q, CTR_virtq_bad_setup, "size, alignment or place of its rings is wrong");
		return -EINVAL;
	}
	q->avail_next = 0;
	q->used_next = 0;
	q->signalled_used = 0;
	q->signalled_valid = true;
	q->enabled = true;
	return 0;
}

void virtq_reset(struct virtq *q)
{
	*q = (struct virtq){
		.dev = q->dev,
		.index = q->index,
		.size = q->max_size,
		.max_size = q->max_size,
		.msix_vector = VIRTIO_NO_VECTOR,
	};
}

/* ---- taking chains ------------------------------------------------------- */

/* Where a walk is: the ring's table first, an indirect one perhaps later. */
struct walk {
	const struct vring_desc_le *table;
	uint32_t entries;
	uint32_t left; /* counted down: what ends a loop */
	bool indirect;
	bool writing;  /* a device-writable buffer has been seen */
};

static struct vring_desc_le load_desc(const struct vring_desc_le *at)
{
	const volatile struct vring_desc_le *d = at;

	return (struct vring_desc_le){
		.addr = d->addr, .len = d->len, .flags = d->flags, .next = d->next,
	};
}

/* Section 2.7.5.3: one level, the last of its chain; the WRITE flag of the
 * descriptor that refers to the table means nothing. */
static int enter_table(struct virtq *q, struct walk *w, const struct vring_desc_le *d)
{
	uint32_t entries = d->len / (uint32_t)sizeof(*d);
	const void *table;

	if (!virtio_has(q->dev, VIRTIO_F_INDIRECT_DESC) || w->indirect ||
	    (d->flags & VRING_DESC_F_NEXT) || entries == 0 || d->len % sizeof(*d) != 0)
		return refuse(q, CTR_virtq_bad_indirect, "bad indirect table");
	if (entries > VIRTQ_MAX_IOV)
		return refuse(q, CTR_virtq_too_long, "indirect table too long");
	table = ram_at(q->dev->env.ram, gpa(d->addr), d->len);
	if (table == NULL)
		return refuse(q, CTR_virtq_bad_address, "indirect table not in RAM");
	w->table = table;
	w->entries = entries;
	w->left = entries;
	w->indirect = true;
	return 0;
}

static int add_buffer(struct virtq *q, struct virtq_chain *c, struct walk *w,
		      const struct vring_desc_le *d)
{
	unsigned n = c->out_count + c->in_count;
	void *at;

	if (d->flags & VRING_DESC_F_WRITE)
		w->writing = true;
	else if (w->writing)
		return refuse(q, CTR_virtq_bad_order, "readable buffer behind a writable one");
	if (d->len == 0)
		return 0;
	if (n == VIRTQ_MAX_IOV || c->out_bytes + c->in_bytes + d->len > CHAIN_MAX_BYTES)
		return refuse(q, CTR_virtq_too_long, "chain too long");
	at = ram_at(q->dev->env.ram, gpa(d->addr), d->len);
	if (at == NULL)
		return refuse(q, CTR_virtq_bad_address, "buffer not in RAM");
	c->iov[n] = (struct iovec){ .iov_base = at, .iov_len = d->len };
	if (w->writing) {
		c->in_count++;
		c->in_bytes += d->len;
	} else {
		c->out_count++;
		c->out_bytes += d->len;
	}
	return 0;
}

static int walk_chain(struct virtq *q, struct virtq_chain *c, uint16_t head)
{
	struct walk w = { .table = q->desc, .entries = q->size, .left = q->size };
	struct vring_desc_le d = { .flags = VRING_DESC_F_NEXT, .next = head };
	int rc = 0;

	while (rc == 0 && (d.flags & VRING_DESC_F_NEXT)) {
		if (d.next >= w.entries)
			return refuse(q, CTR_virtq_bad_next, "next descriptor outside the table");
		if (w.left-- == 0)
			return refuse(q, CTR_virtq_loop, "chain longer than its table");
		d = load_desc(&w.table[d.next]);
		if (d.flags & VRING_DESC_F_INDIRECT) {
			rc = enter_table(q, &w, &d);
			d = (struct vring_desc_le){ .flags = VRING_DESC_F_NEXT, .next = 0 };
		} else {
			rc = add_buffer(q, c, &w, &d);
		}
	}
	return rc;
}

int virtq_pop(struct virtq *q, struct virtq_chain *c)
{
	uint16_t waiting, head;

	if (q->broken)
		return -EPROTO;
	if (!is_live(q))
		return 0;
	waiting = (uint16_t)(load_avail_idx(q) - q->avail_next);
	if (waiting == 0)
		return 0;
	if (waiting > q->size)
		return refuse(q, CTR_virtq_bad_index, "available index too far ahead");
	if ((uint16_t)(q->avail_next - q->used_next) >= q->size)
		return refuse(q, CTR_virtq_overrun, "more chains outstanding than entries");
	head = __atomic_load_n(&q->avail[RING_ENTRIES + slot_of(q, q->avail_next)],
			       __ATOMIC_RELAXED);
	if (head >= q->size)
		return refuse(q, CTR_virtq_bad_head, "head outside the table");

	c->head = head;
	c->out_count = c->in_count = 0;
	c->out_bytes = c->in_bytes = 0;
	if (walk_chain(q, c, head) != 0)
		return -EPROTO;
	c->out = c->iov;
	c->in = c->iov + c->out_count;
	q->avail_next++;
	counter_inc(CTR_virtq_chains);
	return 1;
}

void virtq_unpop(struct virtq *q)
{
	q->avail_next--;
}

/* ---- giving them back ---------------------------------------------------- */

static void put_used(struct virtq *q, const struct virtq_used *u)
{
	uint32_t *elem;

	VERIFY(u->head < q->size);
	elem = (uint32_t *)(void *)&q->used[RING_ENTRIES + 4 * slot_of(q, q->used_next)];
	__atomic_store_n(&elem[0], u->head, __ATOMIC_RELAXED);
	__atomic_store_n(&elem[1], u->written_bytes, __ATOMIC_RELAXED);
	q->used_next++;
	/* 65536 pushes with no virtq_notify() between: the difference would read
	 * as nothing new */
	if (q->used_next == q->signalled_used)
		q->signalled_valid = false;
}

void virtq_push_all(struct virtq *q, const struct virtq_used *u, unsigned n)
{
	if (!is_live(q))
		return;
	for (unsigned i = 0; i < n; i++)
		put_used(q, &u[i]);
	__atomic_store_n(&q->used[RING_IDX], q->used_next, __ATOMIC_RELEASE);
}

void virtq_push(struct virtq *q, uint16_t head, uint32_t written_bytes)
{
	const struct virtq_used u = { .head = head, .written_bytes = written_bytes };

	virtq_push_all(q, &u, 1);
}

/* Section 2.7.7.2, or 2.7.10 with event indices: did used_next pass used_event
 * since the driver was last told? */
static bool wants_interrupt(const struct virtq *q)
{
	uint16_t passed = (uint16_t)(q->used_next - q->signalled_used);
	uint16_t event;

	if (!virtio_has(q->dev, VIRTIO_F_EVENT_IDX))
		return !(__atomic_load_n(&q->avail[RING_FLAGS], __ATOMIC_RELAXED) &
			 VRING_AVAIL_F_NO_INTERRUPT);
	if (!q->signalled_valid)
		return true;
	event = __atomic_load_n(used_event(q), __ATOMIC_RELAXED);
	return (uint16_t)(q->used_next - event - 1) < passed;
}

void virtq_notify(struct virtq *q)
{
	bool wanted;

	if (!is_live(q) || (q->signalled_valid && q->signalled_used == q->used_next))
		return;
	full_barrier();
	wanted = wants_interrupt(q);
	q->signalled_used = q->used_next;
	q->signalled_valid = true;
	if (!wanted) {
		counter_inc(CTR_virtq_suppressed);
		return;
	}
	counter_inc(CTR_virtq_interrupts);
	if (q->dev->signal_queue != NULL)
		q->dev->signal_queue(q->dev->transport, q->msix_vector);
}

/* ---- kicks --------------------------------------------------------------- */

void virtq_kicks_off(struct virtq *q)
{
	/* With event indices there is nothing to write: the driver passes
	 * avail_event once, and kicks no more until it is moved. */
	if (is_live(q) && !virtio_has(q->dev, VIRTIO_F_EVENT_IDX))
		__atomic_store_n(&q->used[RING_FLAGS], VRING_USED_F_NO_NOTIFY, __ATOMIC_RELAXED);
}

bool virtq_kicks_on(struct virtq *q)
{
	if (!is_live(q))
		return false;
	/* avail_event: what is in the ring, not what was taken, so that a device
	 * which left a chain there (virtq_unpop) still hears of the next one. */
	if (virtio_has(q->dev, VIRTIO_F_EVENT_IDX))
		__atomic_store_n(avail_event(q), load_avail_idx(q), __ATOMIC_RELAXED);
	else
		__atomic_store_n(&q->used[RING_FLAGS], 0, __ATOMIC_RELAXED);
	full_barrier();
	return load_avail_idx(q) != q->avail_next;
}

/* ---- copying ------------------------------------------------------------- */

/* One side of a chain, from byte off of it, to or from host memory. */
static size_t copy_side(const struct iovec *v, unsigned count, size_t off, void *dst,
			const void *src, size_t len)
{
	size_t done = 0;

	for (; count > 0 && done < len; count--, v++) {
		size_t n;

		if (off >= v->iov_len) {
			off -= v->iov_len;
			continue;
		}
		n = v->iov_len - off;
		if (n > len - done)
			n = len - done;
		if (dst != NULL)
			memcpy((uint8_t *)dst + done, (const uint8_t *)v->iov_base + off, n);
		else
			memcpy((uint8_t *)v->iov_base + off, (const uint8_t *)src + done, n);
		off = 0;
		done += n;
	}
	return done;
}

size_t virtq_copy_out(const struct virtq_chain *c, size_t off, void *dst, size_t len)
{
	return copy_side(c->out, c->out_count, off, dst, NULL, len);
}

size_t virtq_copy_in(const struct virtq_chain *c, size_t off, const void *src, size_t len)
{
	return copy_side(c->in, c->in_count, off, NULL, src, len);
}
