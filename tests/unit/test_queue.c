/*
 * Rings: what a driver may do, what it may not (one test for each counter), and
 * the arithmetic of event indices.  Defends I1 to I4 of virtio/queue.c and I1,
 * I2 of virtio.h.
 */
#include <criterion/criterion.h>
#include <errno.h>
#include <sched.h>
#include <string.h>

#include "tests/lib/fakeguest.h"
#include "tests/lib/testdev.h"

#define SIZE 16
#define BUF_BYTES 256

static struct fakeguest g;
static struct testdev *t;
static struct virtq *q;
static struct virtq_chain c;

static void begin(uint64_t features)
{
	fakeguest_init(&g);
	t = testdev_create(&g.env, 1, SIZE);
	fakeguest_attach(&g, &t->dev);
	cr_assert(fakeguest_start(&g, features));
	fakeguest_drain(&g, 10);
	q = &t->dev.queues[0];
}

static void end(void)
{
	fakeguest_fini(&g);
}

static struct fakebuf readable(uint32_t len)
{
	return (struct fakebuf){ .gpa = fakeguest_alloc(&g, len > 0 ? len : 1, 1), .len = len };
}

static struct fakebuf writable(uint32_t len)
{
	struct fakebuf b = readable(len);

	b.device_writes = true;
	return b;
}

static uint16_t add_one(void)
{
	struct fakebuf b = writable(BUF_BYTES);

	return fakeguest_add(&g, 0, &b, 1);
}

/* As if `index` chains had gone through the queue already. */
static void jump_to(uint16_t index)
{
	q->avail_next = q->used_next = q->signalled_used = index;
	g.q[0].avail_idx = g.q[0].used_seen = index;
	g.q[0].avail[1] = g.q[0].used[1] = index;
}

static void pop_and_push(void)
{
	cr_assert_eq(virtq_pop(q, &c), 1);
	virtq_push(q, c.head, 0);
}

/* ---- what a driver may do ------------------------------------------------ */

Test(queue, empty_pop_returns_zero)
{
	begin(0);
	cr_assert_eq(virtq_pop(q, &c), 0);
	cr_assert_eq(fakeguest_status(&g) & VIRTIO_STATUS_NEEDS_RESET, 0);
	end();
}

Test(queue, mixed_chain_is_split_by_direction)
{
	begin(0);
	struct fakebuf b[] = { readable(16), readable(100), writable(512), writable(1) };
	uint16_t head = fakeguest_add(&g, 0, b, ARRAY_LEN(b));

	cr_assert_eq(virtq_pop(q, &c), 1);
	cr_assert_eq(c.head, head);
	cr_assert_eq(c.out_count, 2);
	cr_assert_eq(c.in_count, 2);
	cr_assert_eq(c.out_bytes, 116);
	cr_assert_eq(c.in_bytes, 513);
	for (unsigned i = 0; i < ARRAY_LEN(b); i++) {
		const struct iovec *v = i < 2 ? &c.out[i] : &c.in[i - 2];

		cr_assert_eq(v->iov_base, fakeguest_at(&g, b[i].gpa, b[i].len));
		cr_assert_eq(v->iov_len, b[i].len);
	}
	cr_assert_eq(virtq_pop(q, &c), 0);
	end();
}

Test(queue, zero_length_buffers_are_dropped)
{
	begin(0);
	struct fakebuf b[] = { readable(0), readable(8), writable(0), writable(8) };

	b[0].gpa = UINT64_MAX; /* nothing is there, so nothing is wrong with it */
	fakeguest_add(&g, 0, b, ARRAY_LEN(b));
	cr_assert_eq(virtq_pop(q, &c), 1);
	cr_assert_eq(c.out_count, 1);
	cr_assert_eq(c.in_count, 1);
	end();
}

Test(queue, chain_of_every_descriptor_is_taken)
{
	begin(0);
	struct fakebuf b[SIZE];

	for (unsigned i = 0; i < SIZE; i++)
		b[i] = writable(4);
	fakeguest_add(&g, 0, b, SIZE);
	cr_assert_eq(virtq_pop(q, &c), 1);
	cr_assert_eq(c.in_count, SIZE);
	end();
}

Test(queue, indirect_chain_is_taken)
{
	begin(VIRTIO_F_INDIRECT_DESC);
	struct fakebuf b[100];

	for (unsigned i = 0; i < ARRAY_LEN(b); i++)
		b[i] = i < 40 ? readable(3) : writable(5);
	fakeguest_add_indirect(&g, 0, b, ARRAY_LEN(b));
	cr_assert_eq(virtq_pop(q, &c), 1);
	cr_assert_eq(c.out_count, 40);
	cr_assert_eq(c.in_count, 60);
	cr_assert_eq(c.out_bytes, 120);
	cr_assert_eq(c.in_bytes, 300);
	end();
}

Test(queue, longest_indirect_chain_is_taken)
{
	begin(VIRTIO_F_INDIRECT_DESC);
	static struct fakebuf b[VIRTQ_MAX_IOV];

	for (unsigned i = 0; i < ARRAY_LEN(b); i++)
		b[i] = writable(1);
	fakeguest_add_indirect(&g, 0, b, ARRAY_LEN(b));
	cr_assert_eq(virtq_pop(q, &c), 1);
	cr_assert_eq(c.in_count, VIRTQ_MAX_IOV);
	end();
}

Test(queue, indirect_behind_direct_is_taken)
{
	begin(VIRTIO_F_INDIRECT_DESC);
	struct fakebuf first = readable(8), rest[] = { readable(8), writable(8) };
	uint16_t head = fakeguest_add_indirect(&g, 0, rest, 2);
	uint16_t at = g.q[0].next_desc;

	/* behind a direct one; and the table's WRITE flag means nothing */
	g.q[0].desc[head].flags |= VRING_DESC_F_WRITE;
	g.q[0].desc[at] = (struct vring_desc){ .addr = first.gpa, .len = 8,
					       .flags = VRING_DESC_F_NEXT, .next = head };
	g.q[0].avail[2] = at;
	cr_assert_eq(virtq_pop(q, &c), 1);
	cr_assert_eq(c.out_count, 2);
	cr_assert_eq(c.in_count, 1);
	end();
}

Test(queue, unaligned_indirect_table_is_taken)
{
	begin(VIRTIO_F_INDIRECT_DESC);
	struct fakebuf b[] = { readable(8), writable(9) };
	uint16_t head = fakeguest_add_indirect(&g, 0, b, 2);
	uint64_t odd = fakeguest_alloc(&g, 33, 16) + 1;

	memcpy(fakeguest_at(&g, odd, 32), fakeguest_at(&g, g.q[0].desc[head].addr, 32), 32);
	g.q[0].desc[head].addr = odd;
	cr_assert_eq(virtq_pop(q, &c), 1);
	cr_assert_eq(c.out_bytes, 8);
	cr_assert_eq(c.in_bytes, 9);
	end();
}

Test(queue, gigabytes_in_one_chain_are_counted_right)
{
	begin(VIRTIO_F_INDIRECT_DESC);
	struct fakebuf b[60];

	for (unsigned i = 0; i < ARRAY_LEN(b); i++)
		b[i] = (struct fakebuf){ .gpa = PAGE_BYTES, .len = 63 * MiB };
	fakeguest_add_indirect(&g, 0, b, ARRAY_LEN(b));
	cr_assert_eq(virtq_pop(q, &c), 1);
	cr_assert_eq(c.out_bytes, 60 * 63 * MiB);
	end();
}

Test(queue, indices_wrap_and_chains_go_on)
{
	begin(VIRTIO_F_EVENT_IDX);
	struct fakebuf b = writable(4);
	uint32_t head, len;

	for (unsigned i = 0; i < 70000; i++) {
		uint16_t put = fakeguest_add(&g, 0, &b, 1);

		cr_assert_eq(virtq_pop(q, &c), 1);
		virtq_push(q, c.head, i);
		cr_assert(fakeguest_used(&g, 0, &head, &len));
		cr_assert_eq(head, put);
		cr_assert_eq(len, i);
	}
	end();
}

Test(queue, unpop_gives_the_same_chain_again)
{
	begin(0);
	uint16_t a = add_one(), b = add_one();

	cr_assert_eq(virtq_pop(q, &c), 1);
	virtq_unpop(q);
	cr_assert_eq(virtq_pop(q, &c), 1);
	cr_assert_eq(c.head, a);
	cr_assert_eq(virtq_pop(q, &c), 1);
	cr_assert_eq(c.head, b);
	end();
}

Test(queue, several_pushed_at_once_arrive_in_order)
{
	static const struct virtq_used used[] = { { 2, 20 }, { 0, 0 }, { 1, 10 } };
	uint32_t head, len;

	begin(0);
	for (unsigned i = 0; i < ARRAY_LEN(used); i++) {
		add_one();
		cr_assert_eq(virtq_pop(q, &c), 1);
	}
	virtq_push_all(q, used, ARRAY_LEN(used));
	for (unsigned i = 0; i < ARRAY_LEN(used); i++) {
		cr_assert(fakeguest_used(&g, 0, &head, &len));
		cr_assert_eq(head, used[i].head);
		cr_assert_eq(len, used[i].written_bytes);
	}
	cr_assert_not(fakeguest_used(&g, 0, &head, &len));
	end();
}

Test(queue, copy_crosses_buffers_at_any_offset)
{
	begin(0);
	struct fakebuf b[] = { readable(3), readable(1), readable(6), writable(4), writable(2) };
	char text[16];

	memcpy(fakeguest_at(&g, b[0].gpa, 3), "abc", 3);
	memcpy(fakeguest_at(&g, b[1].gpa, 1), "d", 1);
	memcpy(fakeguest_at(&g, b[2].gpa, 6), "efghij", 6);
	fakeguest_add(&g, 0, b, ARRAY_LEN(b));
	cr_assert_eq(virtq_pop(q, &c), 1);

	cr_assert_eq(virtq_copy_out(&c, 0, text, sizeof(text)), 10);
	cr_assert_arr_eq(text, "abcdefghij", 10);
	cr_assert_eq(virtq_copy_out(&c, 2, text, 3), 3);
	cr_assert_arr_eq(text, "cde", 3);
	cr_assert_eq(virtq_copy_out(&c, 9, text, 5), 1);
	cr_assert_eq(text[0], 'j');
	cr_assert_eq(virtq_copy_out(&c, 10, text, 5), 0);
	cr_assert_eq(virtq_copy_out(&c, SIZE_MAX, text, 5), 0);

	cr_assert_eq(virtq_copy_in(&c, 3, "XYZ!", 4), 3);
	cr_assert_arr_eq(fakeguest_at(&g, b[3].gpa, 4), "\0\0\0X", 4);
	cr_assert_arr_eq(fakeguest_at(&g, b[4].gpa, 2), "YZ", 2);
	cr_assert_eq(virtq_copy_in(&c, 6, "?", 1), 0);
	end();
}

/* ---- what it may not ----------------------------------------------------- */

/* The next pop is refused for `why`, the device stops, and works after a reset. */
static void expect_refused(enum counter why)
{
	uint64_t count = counter_get(why), stopped = counter_get(CTR_virtio_needs_reset);
	unsigned told = g.interrupts[FAKE_CONFIG_VECTOR];

	cr_assert_eq(virtq_pop(q, &c), -EPROTO);
	cr_assert_eq(counter_get(why), count + 1);
	cr_assert_eq(counter_get(CTR_virtio_needs_reset), stopped + 1);
	cr_assert_eq(g.interrupts[FAKE_CONFIG_VECTOR], told + 1);
	cr_assert(fakeguest_status(&g) & VIRTIO_STATUS_NEEDS_RESET);
	cr_assert_eq(virtq_pop(q, &c), -EPROTO, "refuses until reset");
	cr_assert_eq(counter_get(why), count + 1, "but counts once");
	cr_assert_not(virtq_kicks_on(q));

	cr_assert(fakeguest_start(&g, VIRTIO_F_INDIRECT_DESC));
	add_one();
	cr_assert_eq(virtq_pop(q, &c), 1);
	end();
}

Test(queue, available_index_too_far_is_refused)
{
	begin(0);
	g.q[0].avail[1] = SIZE + 1;
	expect_refused(CTR_virtq_bad_index);
}

Test(queue, available_index_going_back_is_refused)
{
	begin(0);
	add_one();
	pop_and_push();
	g.q[0].avail[1] = 0;
	expect_refused(CTR_virtq_bad_index);
}

Test(queue, more_outstanding_than_entries_is_refused)
{
	begin(0);
	for (unsigned i = 0; i < SIZE; i++) {
		add_one();
		cr_assert_eq(virtq_pop(q, &c), 1);
	}
	add_one();
	expect_refused(CTR_virtq_overrun);
}

Test(queue, head_outside_table_is_refused)
{
	begin(0);
	fakeguest_publish(&g, 0, SIZE);
	expect_refused(CTR_virtq_bad_head);
}

Test(queue, next_outside_table_is_refused)
{
	begin(0);
	struct fakebuf b[] = { readable(8), readable(8) };
	uint16_t head = fakeguest_add(&g, 0, b, 2);

	g.q[0].desc[head].next = SIZE;
	expect_refused(CTR_virtq_bad_next);
}

Test(queue, next_outside_indirect_table_is_refused)
{
	begin(VIRTIO_F_INDIRECT_DESC);
	struct fakebuf b[] = { readable(8), readable(8) };
	uint16_t head = fakeguest_add_indirect(&g, 0, b, 2);
	struct vring_desc *table = fakeguest_at(&g, g.q[0].desc[head].addr, 32);

	table[0].next = 2; /* inside the ring's table, outside this one */
	expect_refused(CTR_virtq_bad_next);
}

Test(queue, loop_is_refused)
{
	begin(0);
	struct fakebuf b[] = { readable(8), readable(8) };
	uint16_t head = fakeguest_add(&g, 0, b, 2);

	g.q[0].desc[head + 1].flags = VRING_DESC_F_NEXT;
	g.q[0].desc[head + 1].next = head;
	expect_refused(CTR_virtq_loop);
}

Test(queue, loop_of_empty_buffers_is_refused)
{
	begin(0);
	struct fakebuf b = readable(0);
	uint16_t head = fakeguest_add(&g, 0, &b, 1);

	g.q[0].desc[head].flags = VRING_DESC_F_NEXT;
	g.q[0].desc[head].next = head;
	expect_refused(CTR_virtq_loop);
}

Test(queue, loop_in_indirect_table_is_refused)
{
	begin(VIRTIO_F_INDIRECT_DESC);
	struct fakebuf b[] = { readable(8), readable(8), readable(8) };
	uint16_t head = fakeguest_add_indirect(&g, 0, b, 3);
	struct vring_desc *table = fakeguest_at(&g, g.q[0].desc[head].addr, 48);

	table[2].flags = VRING_DESC_F_NEXT;
	table[2].next = 1;
	expect_refused(CTR_virtq_loop);
}

Test(queue, indirect_table_too_long_is_refused)
{
	begin(VIRTIO_F_INDIRECT_DESC);
	static struct fakebuf b[VIRTQ_MAX_IOV + 1];

	for (unsigned i = 0; i < ARRAY_LEN(b); i++)
		b[i] = writable(1);
	fakeguest_add_indirect(&g, 0, b, ARRAY_LEN(b));
	expect_refused(CTR_virtq_too_long);
}

Test(queue, too_many_buffers_in_all_is_refused)
{
	begin(VIRTIO_F_INDIRECT_DESC);
	static struct fakebuf b[VIRTQ_MAX_IOV];
	uint16_t head, at;

	for (unsigned i = 0; i < ARRAY_LEN(b); i++)
		b[i] = readable(1);
	head = fakeguest_add_indirect(&g, 0, b, ARRAY_LEN(b));
	at = g.q[0].next_desc;
	g.q[0].desc[at] = (struct vring_desc){ .addr = b[0].gpa, .len = 1,
					       .flags = VRING_DESC_F_NEXT, .next = head };
	g.q[0].avail[2] = at;
	expect_refused(CTR_virtq_too_long);
}

Test(queue, more_than_4_gib_in_one_chain_is_refused)
{
	begin(VIRTIO_F_INDIRECT_DESC);
	struct fakebuf b[66];

	for (unsigned i = 0; i < ARRAY_LEN(b); i++)
		b[i] = (struct fakebuf){ .gpa = PAGE_BYTES, .len = 63 * MiB };
	fakeguest_add_indirect(&g, 0, b, ARRAY_LEN(b));
	expect_refused(CTR_virtq_too_long);
}

static void buffer_at_is_refused(uint64_t addr, uint32_t len)
{
	begin(0);
	struct fakebuf b = { .gpa = addr, .len = len };

	fakeguest_add(&g, 0, &b, 1);
	expect_refused(CTR_virtq_bad_address);
}

Test(queue, buffer_behind_ram_is_refused)
{
	buffer_at_is_refused(FAKE_RAM_BYTES, 1);
}

Test(queue, buffer_crossing_the_end_of_ram_is_refused)
{
	buffer_at_is_refused(FAKE_RAM_BYTES - 8, 9);
}

Test(queue, buffer_whose_end_overflows_is_refused)
{
	buffer_at_is_refused(UINT64_MAX - 15, 32);
}

Test(queue, buffer_as_long_as_can_be_is_refused)
{
	buffer_at_is_refused(PAGE_BYTES, UINT32_MAX);
}

Test(queue, indirect_table_outside_ram_is_refused)
{
	begin(VIRTIO_F_INDIRECT_DESC);
	struct fakebuf b[] = { readable(8), readable(8) };
	uint16_t head = fakeguest_add_indirect(&g, 0, b, 2);

	g.q[0].desc[head].addr = FAKE_RAM_BYTES - 16;
	expect_refused(CTR_virtq_bad_address);
}

Test(queue, readable_behind_writable_is_refused)
{
	begin(0);
	struct fakebuf b[] = { writable(8), readable(8) };

	fakeguest_add(&g, 0, b, 2);
	expect_refused(CTR_virtq_bad_order);
}

Test(queue, readable_behind_empty_writable_is_refused)
{
	begin(0);
	struct fakebuf b[] = { writable(0), readable(8) };

	fakeguest_add(&g, 0, b, 2);
	expect_refused(CTR_virtq_bad_order);
}

/* An indirect chain, its descriptor changed by `spoil`. */
static void indirect_is_refused(uint64_t features, uint16_t more_flags, uint32_t table_bytes)
{
	begin(features);
	struct fakebuf b[] = { readable(8), readable(8) };
	uint16_t head = fakeguest_add_indirect(&g, 0, b, 2);

	g.q[0].desc[head].flags |= more_flags;
	g.q[0].desc[head].len = table_bytes;
	expect_refused(CTR_virtq_bad_indirect);
}

Test(queue, indirect_not_negotiated_is_refused)
{
	indirect_is_refused(0, 0, 32);
}

Test(queue, indirect_with_next_is_refused)
{
	indirect_is_refused(VIRTIO_F_INDIRECT_DESC, VRING_DESC_F_NEXT, 32);
}

Test(queue, empty_indirect_is_refused)
{
	indirect_is_refused(VIRTIO_F_INDIRECT_DESC, 0, 0);
}

Test(queue, indirect_of_odd_length_is_refused)
{
	indirect_is_refused(VIRTIO_F_INDIRECT_DESC, 0, 31);
}

Test(queue, nested_indirect_is_refused)
{
	begin(VIRTIO_F_INDIRECT_DESC);
	struct fakebuf b[] = { readable(8), readable(8) };
	uint16_t head = fakeguest_add_indirect(&g, 0, b, 2);
	struct vring_desc *table = fakeguest_at(&g, g.q[0].desc[head].addr, 32);

	table[1] = g.q[0].desc[head];
	expect_refused(CTR_virtq_bad_indirect);
}

/* ---- setting up ---------------------------------------------------------- */

/* What fakeguest_setup_queue() did, changed by one of these. */
static void spoil_none(void) {}
static void spoil_size_zero(void) { q->size = 0; }
static void spoil_size_odd(void) { q->size = SIZE - 1; }
static void spoil_size_large(void) { q->size = 2 * SIZE; }
static void spoil_desc_align(void) { q->desc_gpa += 8; }
static void spoil_avail_align(void) { q->avail_gpa += 1; }
static void spoil_used_align(void) { q->used_gpa += 2; }
static void spoil_desc_place(void) { q->desc_gpa = FAKE_RAM_BYTES - 16 * SIZE + 16; }
static void spoil_avail_place(void) { q->avail_gpa = FAKE_RAM_BYTES - (6 + 2 * SIZE) + 2; }
static void spoil_used_place(void) { q->used_gpa = FAKE_RAM_BYTES - (6 + 8 * SIZE) + 2; }
static void spoil_desc_wrap(void) { q->desc_gpa = UINT64_MAX - 15; }

static void setup_with(void (*spoil)(void))
{
	fakeguest_reset(&g);
	cr_assert(fakeguest_negotiate(&g, 0));
	fakeguest_setup_queue(&g, 0, 0);
	spoil();
	fakeguest_enable_queue(&g, 0);
}

static void setup_is_refused(void (*spoil)(void))
{
	begin(0);
	uint64_t count = counter_get(CTR_virtq_bad_setup);

	setup_with(spoil);
	cr_assert_eq(counter_get(CTR_virtq_bad_setup), count + 1);
	cr_assert_not(q->enabled);
	cr_assert(fakeguest_status(&g) & VIRTIO_STATUS_NEEDS_RESET);
	fakeguest_driver_ok(&g);
	cr_assert_eq(virtq_pop(q, &c), -EPROTO);

	setup_with(spoil_none);
	fakeguest_driver_ok(&g);
	cr_assert(q->enabled);
	add_one();
	cr_assert_eq(virtq_pop(q, &c), 1);
	end();
}

Test(queue, size_zero_is_refused) { setup_is_refused(spoil_size_zero); }
Test(queue, size_not_power_of_two_is_refused) { setup_is_refused(spoil_size_odd); }
Test(queue, size_above_maximum_is_refused) { setup_is_refused(spoil_size_large); }
Test(queue, misaligned_descriptors_are_refused) { setup_is_refused(spoil_desc_align); }
Test(queue, misaligned_available_ring_is_refused) { setup_is_refused(spoil_avail_align); }
Test(queue, misaligned_used_ring_is_refused) { setup_is_refused(spoil_used_align); }
Test(queue, descriptors_outside_ram_are_refused) { setup_is_refused(spoil_desc_place); }
Test(queue, available_ring_outside_ram_is_refused) { setup_is_refused(spoil_avail_place); }
Test(queue, used_ring_outside_ram_is_refused) { setup_is_refused(spoil_used_place); }
Test(queue, descriptors_at_the_end_of_everything_are_refused)
{
	setup_is_refused(spoil_desc_wrap);
}

/* ---- not live: I3 -------------------------------------------------------- */

Test(queue, push_on_a_broken_queue_writes_nothing)
{
	begin(0);
	add_one();
	cr_assert_eq(virtq_pop(q, &c), 1);
	g.q[0].avail[1] = 1000;
	cr_assert_eq(virtq_pop(q, &c), -EPROTO);
	virtq_push(q, 0, 4);
	virtq_notify(q);
	cr_assert_eq(g.q[0].used[1], 0);
	cr_assert_eq(g.interrupts[0], 0);
	end();
}

Test(queue, after_reset_nothing_is_written)
{
	begin(0);
	add_one();
	cr_assert_eq(virtq_pop(q, &c), 1);
	fakeguest_reset(&g);
	virtq_push(q, c.head, 4);
	virtq_notify(q);
	virtq_kicks_off(q);
	cr_assert_not(virtq_kicks_on(q));
	cr_assert_eq(virtq_pop(q, &c), 0);
	cr_assert_eq(g.q[0].used[0], 0);
	cr_assert_eq(g.q[0].used[1], 0);
	end();
}

Test(queue, before_driver_ok_no_chain_comes_out)
{
	begin(0);
	setup_with(spoil_none);
	add_one();
	cr_assert_eq(virtq_pop(q, &c), 0);
	fakeguest_driver_ok(&g);
	cr_assert_eq(virtq_pop(q, &c), 1);
	end();
}

/* ---- interrupts ---------------------------------------------------------- */

Test(queue, notify_without_a_push_is_silent)
{
	begin(0);
	virtq_notify(q);
	cr_assert_eq(g.interrupts[0], 0);
	end();
}

Test(queue, notify_interrupts_once_for_a_batch)
{
	begin(0);
	for (unsigned i = 0; i < 5; i++) {
		add_one();
		pop_and_push();
	}
	virtq_notify(q);
	virtq_notify(q);
	cr_assert_eq(g.interrupts[0], 1);
	end();
}

Test(queue, no_interrupt_flag_suppresses)
{
	begin(0);
	uint64_t suppressed = counter_get(CTR_virtq_suppressed);

	g.q[0].avail[0] = VRING_AVAIL_F_NO_INTERRUPT;
	add_one();
	pop_and_push();
	virtq_notify(q);
	cr_assert_eq(g.interrupts[0], 0);
	cr_assert_eq(counter_get(CTR_virtq_suppressed), suppressed + 1);
	g.q[0].avail[0] = 0;
	add_one();
	pop_and_push();
	virtq_notify(q);
	cr_assert_eq(g.interrupts[0], 1);
	end();
}

/* used_event against [from, to): an interrupt when the entry used_event was
 * filled in between, that is when from <= event < to, modulo 2^16. */
static void event_idx_case(uint16_t from, unsigned pushes, uint16_t event, bool expect)
{
	unsigned before = g.interrupts[0];

	jump_to(from);
	g.q[0].avail[2 + SIZE] = event;
	for (unsigned i = 0; i < pushes; i++) {
		add_one();
		pop_and_push();
	}
	virtq_notify(q);
	cr_assert_eq(g.interrupts[0] - before, expect ? 1 : 0, "from %u, %u pushes, event %u",
		     from, pushes, event);
}

Test(queue, event_idx_interrupts_when_passed)
{
	static const uint16_t starts[] = { 0, 1, 100, 32767, 32768, 65520, 65533, 65535 };

	begin(VIRTIO_F_EVENT_IDX);
	for (unsigned s = 0; s < ARRAY_LEN(starts); s++)
		for (unsigned pushes = 1; pushes <= 5; pushes++)
			for (int d = -3; d < 8; d++)
				event_idx_case(starts[s], pushes, (uint16_t)(starts[s] + d),
					       d >= 0 && d < (int)pushes);
	end();
}

Test(queue, event_idx_half_way_round_is_suppressed)
{
	begin(VIRTIO_F_EVENT_IDX);
	event_idx_case(10, 3, 10 + 32768, false);
	event_idx_case(10, 3, 9, false); /* in the past: where it was told last */
	end();
}

Test(queue, event_idx_flags_mean_nothing)
{
	begin(VIRTIO_F_EVENT_IDX);
	g.q[0].avail[0] = VRING_AVAIL_F_NO_INTERRUPT;
	event_idx_case(0, 1, 0, true);
	end();
}

Test(queue, event_idx_whole_round_without_notify_interrupts)
{
	begin(VIRTIO_F_EVENT_IDX);
	struct fakebuf b = writable(4);

	g.q[0].avail[2 + SIZE] = 7;
	for (unsigned i = 0; i < 65536; i++) {
		fakeguest_add(&g, 0, &b, 1);
		pop_and_push();
	}
	virtq_notify(q);
	cr_assert_eq(g.interrupts[0], 1);
	end();
}

/* ---- kicks --------------------------------------------------------------- */

Test(queue, kicks_off_and_on_by_flags)
{
	begin(0);
	virtq_kicks_off(q);
	cr_assert_not(fakeguest_wants_kick(&g, 0, 0));
	cr_assert_not(virtq_kicks_on(q));
	cr_assert(fakeguest_wants_kick(&g, 0, 0));
	end();
}

Test(queue, kicks_off_and_on_by_event_idx)
{
	begin(VIRTIO_F_EVENT_IDX);
	jump_to(65534);
	cr_assert_not(virtq_kicks_on(q));
	virtq_kicks_off(q);
	add_one();
	cr_assert(fakeguest_wants_kick(&g, 0, 65534));
	add_one();
	add_one();
	cr_assert_not(fakeguest_wants_kick(&g, 0, 65535), "one kick till they are on again");
	for (unsigned i = 0; i < 3; i++)
		pop_and_push();
	cr_assert_not(virtq_kicks_on(q));
	add_one();
	cr_assert(fakeguest_wants_kick(&g, 0, 1));
	end();
}

static void kicks_on_tells(uint64_t features)
{
	begin(features);
	cr_assert_not(virtq_kicks_on(q));
	add_one();
	cr_assert(virtq_kicks_on(q));
	pop_and_push();
	cr_assert_not(virtq_kicks_on(q));
	end();
}

Test(queue, kicks_on_tells_of_waiting_buffers_by_flags) { kicks_on_tells(0); }
Test(queue, kicks_on_tells_of_waiting_buffers_by_event_idx)
{
	kicks_on_tells(VIRTIO_F_EVENT_IDX);
}

Test(queue, chain_left_in_the_ring_does_not_hide_the_next)
{
	begin(VIRTIO_F_EVENT_IDX);
	add_one();
	cr_assert_eq(virtq_pop(q, &c), 1);
	virtq_unpop(q);
	cr_assert(virtq_kicks_on(q));
	add_one();
	cr_assert(fakeguest_wants_kick(&g, 0, 1));
	end();
}

/* ---- two threads --------------------------------------------------------- */

#define RACE_CHAINS 20000

static _Atomic bool race_over;

static void *race_device(void *arg)
{
	while (!race_over)
		fakeguest_turn(&g, 20);
	return NULL;
}

/* Waits for an interrupt after number `before`, as a driver sleeps: only if
 * nothing was used by the time interrupts were asked for. */
static void race_wait(uint64_t features, unsigned before)
{
	uint64_t give_up_ns = now_ns() + (uint64_t)FAKE_WAIT_MS * 1000000;
	struct fakeq *fq = &g.q[0];

	if (features & VIRTIO_F_EVENT_IDX)
		__atomic_store_n(&fq->avail[2 + fq->size], fq->used_seen, __ATOMIC_SEQ_CST);
	__sync_synchronize();
	while (__atomic_load_n(&fq->used[1], __ATOMIC_ACQUIRE) == fq->used_seen &&
	       g.interrupts[0] == before) {
		cr_assert(now_ns() < give_up_ns, "an interrupt or a kick was lost");
		sched_yield();
	}
}

/* A driver in one thread, the loop in another: no kick and no interrupt is lost
 * and every byte arrives.  The loop's wait is finite only to end the test. */
static void race(uint64_t features)
{
	struct fakebuf b[2];
	unsigned added = 0, used = 0;
	uint32_t head, len;
	pthread_t loop;

	begin(features);
	t->echo = true;
	b[0] = readable(8);
	b[1] = writable(8);
	memcpy(fakeguest_at(&g, b[0].gpa, 8), "01234567", 8);
	cr_assert_eq(pthread_create(&loop, NULL, race_device, NULL), 0);
	while (used < RACE_CHAINS) {
		uint16_t old = g.q[0].avail_idx;
		unsigned seen = g.interrupts[0];

		for (; added < RACE_CHAINS && added - used < SIZE / 2; added++)
			fakeguest_add(&g, 0, b, 2);
		__sync_synchronize();
		if (g.q[0].avail_idx != old && fakeguest_wants_kick(&g, 0, old))
			fakeguest_kick(&g, 0);
		for (; fakeguest_used(&g, 0, &head, &len); used++)
			cr_assert_eq(len, 8);
		if (used < added)
			race_wait(features, seen);
	}
	race_over = true;
	pthread_join(loop, NULL);
	cr_assert_arr_eq(fakeguest_at(&g, b[1].gpa, 8), "01234567", 8);
	end();
}

Test(queue, two_threads_lose_nothing_by_flags) { race(0); }
Test(queue, two_threads_lose_nothing_by_event_idx) { race(VIRTIO_F_EVENT_IDX); }

/* ---- the full barriers --------------------------------------------------- */

#define LITMUS_CHAINS 200000
#define LITMUS_JITTER 256
#define SPINS_BEFORE_YIELD 2000

static _Atomic unsigned litmus_kicks;

/* Spins until `*now` is not `before`; false when that takes too long or it is
 * all over. */
static bool spin(const _Atomic unsigned *now, unsigned before)
{
	uint64_t give_up_ns = now_ns() + (uint64_t)FAKE_WAIT_MS * 1000000;

	for (unsigned n = 1; *now == before; n++) {
		if (n % SPINS_BEFORE_YIELD != 0)
			continue;
		if (race_over || now_ns() > give_up_ns)
			return false;
		sched_yield();
	}
	return true;
}

/* A device that sleeps as soon as it may, with no system call to hide what the
 * processor reorders. */
static void *litmus_device(void *arg)
{
	unsigned seen = 0;

	while (!race_over) {
		virtq_kicks_off(q);
		while (virtq_pop(q, &c) > 0)
			virtq_push(q, c.head, 0);
		virtq_notify(q);
		if (virtq_kicks_on(q))
			continue;
		spin(&litmus_kicks, seen);
		seen = litmus_kicks;
	}
	return NULL;
}

static void litmus_one(uint64_t features, const struct fakebuf *b)
{
	struct fakeq *fq = &g.q[0];
	uint16_t old = fq->avail_idx;
	uint32_t head, len;

	fakeguest_add(&g, 0, b, 1);
	__sync_synchronize();
	if (fakeguest_wants_kick(&g, 0, old))
		litmus_kicks++;
	for (;;) {
		unsigned told = g.interrupts[0];

		if (features & VIRTIO_F_EVENT_IDX)
			__atomic_store_n(&fq->avail[2 + fq->size], fq->used_seen, __ATOMIC_RELAXED);
		else
			__atomic_store_n(&fq->avail[0], 0, __ATOMIC_RELAXED);
		__sync_synchronize();
		if (fakeguest_used(&g, 0, &head, &len))
			break;
		cr_assert(spin(&g.interrupts[0], told), "an interrupt or a kick was lost");
	}
	if (!(features & VIRTIO_F_EVENT_IDX))
		__atomic_store_n(&fq->avail[0], VRING_AVAIL_F_NO_INTERRUPT, __ATOMIC_RELAXED);
}

static void litmus(uint64_t features)
{
	struct fakebuf b;
	pthread_t device;

	begin(features);
	b = writable(8);
	cr_assert_eq(pthread_create(&device, NULL, litmus_device, NULL), 0);
	for (unsigned i = 0; i < LITMUS_CHAINS; i++) {
		/* a little later each time, to meet the device wherever it is */
		for (volatile unsigned wait = i % LITMUS_JITTER; wait > 0; wait--)
			;
		litmus_one(features, &b);
	}
	race_over = true;
	pthread_join(device, NULL);
	end();
}

Test(queue, sleeping_at_any_moment_loses_nothing_by_flags) { litmus(0); }
Test(queue, sleeping_at_any_moment_loses_nothing_by_event_idx) { litmus(VIRTIO_F_EVENT_IDX); }
