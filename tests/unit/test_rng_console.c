/*
 * virtio-rng and virtio-console: what they give, what they take, and that
 * neither keeps the loop for long.
 */
#include <criterion/criterion.h>
#include <string.h>

#include "tests/lib/fakeguest.h"

enum { RX, TX };

#define TURN_BYTES (64 * KiB) /* what a device may do in one turn of the loop */
#define OUT_MAX (1 * MiB)

static struct fakeguest g;
static uint32_t head, len;

static struct fakebuf buffer(uint32_t bytes, bool device_writes)
{
	return (struct fakebuf){ .gpa = fakeguest_alloc(&g, bytes, 1), .len = bytes,
				 .device_writes = device_writes };
}

static uint16_t add(unsigned qi, struct fakebuf b)
{
	return fakeguest_add(&g, qi, &b, 1);
}

static unsigned count_zeroes(const struct fakebuf *b)
{
	const uint8_t *p = fakeguest_at(&g, b->gpa, b->len);
	unsigned n = 0;

	for (uint32_t i = 0; i < b->len; i++)
		n += p[i] == 0;
	return n;
}

/* ---- rng ----------------------------------------------------------------- */

static void begin_rng(uint64_t features)
{
	struct virtio_dev *dev;

	fakeguest_init(&g);
	cr_assert_eq(virtio_rng_create(&dev, &g.env, NULL), 0);
	fakeguest_attach(&g, dev);
	cr_assert(fakeguest_start(&g, features));
	fakeguest_drain(&g, 10);
}

Test(rng, buffer_is_filled)
{
	begin_rng(VIRTIO_F_EVENT_IDX);
	uint64_t bytes = counter_get(CTR_rng_bytes);
	struct fakebuf b = buffer(1000, true), after = buffer(64, true);
	uint16_t put = add(0, b);

	fakeguest_kick(&g, 0);
	cr_assert(fakeguest_wait_used(&g, 0, &head, &len));
	cr_assert_eq(head, put);
	cr_assert_eq(len, 1000);
	cr_assert_lt(count_zeroes(&b), 50, "about 4 expected");
	cr_assert_eq(count_zeroes(&after), 64, "nothing behind it");
	cr_assert_eq(counter_get(CTR_rng_bytes), bytes + 1000);
	cr_assert_eq(g.interrupts[0], 1);
	fakeguest_fini(&g);
}

Test(rng, chain_of_several_buffers_is_filled)
{
	begin_rng(0);
	struct fakebuf b[] = { buffer(10, false), buffer(100, true), buffer(200, true) };

	fakeguest_add(&g, 0, b, 3);
	fakeguest_kick(&g, 0);
	cr_assert(fakeguest_wait_used(&g, 0, &head, &len));
	cr_assert_eq(len, 300);
	cr_assert_eq(count_zeroes(&b[0]), 10, "the driver's to write");
	cr_assert_lt(count_zeroes(&b[1]) + count_zeroes(&b[2]), 30);
	fakeguest_fini(&g);
}

Test(rng, chain_without_writable_buffer_comes_back_empty)
{
	begin_rng(0);
	add(0, buffer(10, false));
	fakeguest_kick(&g, 0);
	cr_assert(fakeguest_wait_used(&g, 0, &head, &len));
	cr_assert_eq(len, 0);
	fakeguest_fini(&g);
}

Test(rng, greedy_guest_gets_it_in_pieces)
{
	begin_rng(VIRTIO_F_EVENT_IDX);
	struct fakebuf b = buffer(1 * MiB, true);
	uint64_t bytes = counter_get(CTR_rng_bytes);

	for (unsigned i = 0; i < 8; i++)
		add(0, b);
	fakeguest_kick(&g, 0);
	for (unsigned i = 1; i <= 8; i++) {
		cr_assert_eq(fakeguest_turn(&g, 0), 1);
		cr_assert_eq(counter_get(CTR_rng_bytes) - bytes, i * TURN_BYTES);
		cr_assert(fakeguest_used(&g, 0, &head, &len));
		cr_assert_eq(len, TURN_BYTES);
	}
	fakeguest_drain(&g, 10);
	cr_assert_eq(fakeguest_turn(&g, 0), 0, "then it sleeps");
	fakeguest_fini(&g);
}

Test(rng, malformed_ring_stops_it_till_reset)
{
	begin_rng(0);
	fakeguest_publish(&g, 0, 9999);
	fakeguest_kick(&g, 0);
	cr_assert_lt(fakeguest_drain(&g, 10), 10);
	cr_assert(fakeguest_status(&g) & VIRTIO_STATUS_NEEDS_RESET);
	cr_assert(fakeguest_start(&g, 0));
	add(0, buffer(16, true));
	fakeguest_kick(&g, 0);
	cr_assert(fakeguest_wait_used(&g, 0, &head, &len));
	cr_assert_eq(len, 16);
	fakeguest_fini(&g);
}

/* ---- console ------------------------------------------------------------- */

static struct virtio_dev *console;
static uint8_t out[OUT_MAX];
static size_t out_bytes;
static const char *typed; /* what ready() offers, and goes on offering */
static unsigned ready_calls;

static void on_out(void *opaque, const void *buf, size_t n)
{
	cr_assert_leq(out_bytes + n, OUT_MAX);
	memcpy(out + out_bytes, buf, n);
	out_bytes += n;
}

static void on_ready(void *opaque)
{
	ready_calls++;
	if (typed != NULL)
		typed += virtio_console_input(console, typed, strlen(typed));
}

static void begin_console(uint64_t features)
{
	struct virtio_console_config cfg = { .out = on_out, .ready = on_ready };

	fakeguest_init(&g);
	cr_assert_eq(virtio_console_create(&console, &g.env, &cfg, NULL), 0);
	fakeguest_attach(&g, console);
	cr_assert(fakeguest_start(&g, features));
	fakeguest_drain(&g, 10);
}

static void add_text(const char *text)
{
	struct fakebuf b = buffer((uint32_t)strlen(text), false);

	memcpy(fakeguest_at(&g, b.gpa, b.len), text, b.len);
	add(TX, b);
}

Test(console, output_comes_in_order)
{
	begin_console(VIRTIO_F_EVENT_IDX);
	add_text("hello, ");
	add_text("world");
	fakeguest_kick(&g, TX);
	fakeguest_drain(&g, 10);
	add_text("\n");
	fakeguest_kick(&g, TX);
	fakeguest_drain(&g, 10);
	cr_assert_eq(out_bytes, 13);
	cr_assert_arr_eq(out, "hello, world\n", 13);
	for (unsigned i = 0; i < 3; i++) {
		cr_assert(fakeguest_used(&g, TX, &head, &len));
		cr_assert_eq(len, 0);
	}
	fakeguest_fini(&g);
}

Test(console, long_output_comes_in_pieces_and_whole)
{
	begin_console(0);
	struct fakebuf b = buffer(300000, false);
	uint8_t *p = fakeguest_at(&g, b.gpa, b.len);

	for (uint32_t i = 0; i < b.len; i++)
		p[i] = (uint8_t)(i * 7 + i / 256);
	add(TX, b);
	fakeguest_kick(&g, TX);
	for (size_t want = TURN_BYTES; want < b.len; want += TURN_BYTES) {
		cr_assert_eq(fakeguest_turn(&g, 0), 1);
		cr_assert_eq(out_bytes, want);
		cr_assert_not(fakeguest_used(&g, TX, &head, &len));
	}
	cr_assert_eq(fakeguest_turn(&g, 0), 1);
	cr_assert(fakeguest_used(&g, TX, &head, &len));
	cr_assert_eq(out_bytes, b.len);
	cr_assert_arr_eq(out, p, b.len);
	fakeguest_fini(&g);
}

Test(console, reset_forgets_output_under_way)
{
	begin_console(0);
	add(TX, buffer(300000, false));
	fakeguest_kick(&g, TX);
	fakeguest_turn(&g, 0);
	cr_assert(fakeguest_start(&g, 0));
	fakeguest_drain(&g, 20);
	cr_assert_eq(out_bytes, TURN_BYTES);
	out_bytes = 0;
	add_text("new");
	fakeguest_kick(&g, TX);
	cr_assert(fakeguest_wait_used(&g, TX, &head, &len));
	cr_assert_eq(out_bytes, 3);
	cr_assert_arr_eq(out, "new", 3);
	fakeguest_fini(&g);
}

Test(console, output_buffer_marked_writable_comes_back)
{
	begin_console(0);
	add(TX, buffer(16, true));
	fakeguest_kick(&g, TX);
	cr_assert(fakeguest_wait_used(&g, TX, &head, &len));
	cr_assert_eq(out_bytes, 0);
	fakeguest_fini(&g);
}

Test(console, input_fills_waiting_buffers)
{
	begin_console(0);
	struct fakebuf a = buffer(4, true), b = buffer(16, true);

	add(RX, a);
	add(RX, b);
	cr_assert_eq(virtio_console_input(console, "abcdefg", 7), 7);
	cr_assert(fakeguest_used(&g, RX, &head, &len));
	cr_assert_eq(len, 4);
	cr_assert(fakeguest_used(&g, RX, &head, &len));
	cr_assert_eq(len, 3);
	cr_assert_arr_eq(fakeguest_at(&g, a.gpa, 4), "abcd", 4);
	cr_assert_arr_eq(fakeguest_at(&g, b.gpa, 3), "efg", 3);
	cr_assert_eq(g.interrupts[RX], 1);
	cr_assert_eq(ready_calls, 0);
	fakeguest_fini(&g);
}

/* Input before there are buffers; the guest then adds them one at a time and
 * kicks only if it is asked to, as a driver does. */
static void input_waits(uint64_t features)
{
	char got[16] = "";

	begin_console(features);
	typed = "0123456789";
	typed += virtio_console_input(console, typed, strlen(typed));
	cr_assert_eq(strlen(typed), 10, "nowhere to put it");
	for (unsigned i = 0; i < 10; i++) {
		uint16_t old = g.q[RX].avail_idx;
		struct fakebuf b = buffer(1, true);

		add(RX, b);
		if (fakeguest_wants_kick(&g, RX, old))
			fakeguest_kick(&g, RX);
		cr_assert(fakeguest_wait_used(&g, RX, &head, &len));
		got[i] = *(char *)fakeguest_at(&g, b.gpa, 1);
	}
	cr_assert_str_eq(got, "0123456789");
	cr_assert_geq(ready_calls, 10);
	fakeguest_fini(&g);
}

Test(console, input_waits_for_buffers_by_flags) { input_waits(0); }
Test(console, input_waits_for_buffers_by_event_idx) { input_waits(VIRTIO_F_EVENT_IDX); }

Test(console, input_offered_before_the_driver_is_up_is_asked_for_later)
{
	begin_console(0);
	fakeguest_reset(&g);
	typed = "early";
	typed += virtio_console_input(console, typed, strlen(typed));
	cr_assert_eq(strlen(typed), 5);
	cr_assert(fakeguest_start(&g, 0));
	fakeguest_drain(&g, 10);
	add(RX, buffer(16, true));
	fakeguest_kick(&g, RX);
	cr_assert(fakeguest_wait_used(&g, RX, &head, &len));
	cr_assert_eq(len, 5);
	fakeguest_fini(&g);
}

Test(console, input_into_empty_chains_ends)
{
	begin_console(0);
	for (unsigned i = 0; i < 128; i++)
		add(RX, buffer(1, false));
	cr_assert_eq(virtio_console_input(console, "x", 1), 0);
	cr_assert_lt(fakeguest_drain(&g, 20), 20, "and does not spin");
	fakeguest_fini(&g);
}

Test(console, malformed_input_ring_stops_it_till_reset)
{
	begin_console(0);
	fakeguest_publish(&g, RX, 9999);
	cr_assert_eq(virtio_console_input(console, "x", 1), 0);
	cr_assert(fakeguest_status(&g) & VIRTIO_STATUS_NEEDS_RESET);
	cr_assert_lt(fakeguest_drain(&g, 20), 20);
	cr_assert(fakeguest_start(&g, 0));
	add(RX, buffer(4, true));
	cr_assert_eq(virtio_console_input(console, "x", 1), 1);
	fakeguest_fini(&g);
}

Test(console, configuration_is_there_and_zero)
{
	begin_console(0);
	cr_assert_eq(fakeguest_read(&g, VIRTIO_PCI_DEVICE + 4, 4), 0);
	fakeguest_fini(&g);
}
