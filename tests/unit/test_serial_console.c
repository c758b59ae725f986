/*
 * vmm/serial.c and vmm/console.c: the 16550 as a driver sees it, and the sockets
 * behind it.
 */
#include <criterion/criterion.h>
#include <linux/serial_reg.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "tests/unit/fakekvm.h"

#define HISTORY 65536u
#define INPUT 4096u
#define FIFO 64u
#define CLIENTS 8u
#define TURNS 200

static struct kvm kvm;
static struct loop *loop;
static struct console *con;
static struct serial *s;
static char dir[] = "/tmp/brim-con-XXXXXX";
static char path[64];
static struct err e;

static void begin(void)
{
	cr_assert_not_null(mkdtemp(dir));
	snprintf(path, sizeof path, "%s/console.sock", dir);
	cr_assert_eq(kvm_init(&kvm, NULL, &e), 0);
	cr_assert_eq(loop_create(&loop, &e), 0, "%s", e.msg);
	cr_assert_eq(console_create(&con, loop, path, &e), 0, "%s", e.msg);
	cr_assert_eq(serial_create(&s, con, &kvm, &e), 0, "%s", e.msg);
}

static void end(void)
{
	serial_destroy(&s);
	cr_assert_eq(fakekvm_count(fakekvm.irq), 0);
	console_destroy(&con);
	loop_destroy(&loop);
	kvm_fini(&kvm);
	cr_assert_lt(access(path, F_OK), 0, "the socket is gone");
	rmdir(dir);
}

static uint8_t in(unsigned reg)
{
	uint8_t v = 0xee;

	serial_io(s, reg, false, &v);
	return v;
}

static void out(unsigned reg, uint8_t v)
{
	serial_io(s, reg, true, &v);
}

/* Edges on the interrupt line since last asked. */
static uint64_t edges(void)
{
	eventfd_t n = 0;

	for (unsigned i = 0; i < FAKEKVM_EVENTFDS; i++)
		if (fakekvm.irq[i].on && fakekvm.irq[i].at == IRQ_COM1)
			return eventfd_read(fakekvm.irq[i].fd, &n) == 0 ? n : 0;
	cr_assert_fail("no irqfd");
	return 0;
}

static size_t type(const char *text)
{
	return serial_input(s, text, strlen(text));
}

/* ---- registers --------------------------------------------------------------------- */

Test(serial, idle_line_is_empty_and_ready)
{
	begin();
	cr_assert_eq(in(UART_LSR), UART_LSR_TEMT | UART_LSR_THRE);
	cr_assert_eq(in(UART_IIR) & 0xf, UART_IIR_NO_INT);
	cr_assert_eq(in(UART_MSR), UART_MSR_DCD | UART_MSR_DSR | UART_MSR_CTS);
	cr_assert_eq(in(UART_RX), 0);
	end();
}

Test(serial, dlab_switches_the_first_two_registers)
{
	begin();
	out(UART_IER, UART_IER_RDI);
	out(UART_LCR, UART_LCR_DLAB | UART_LCR_WLEN8);
	out(UART_DLL, 0x0c);
	out(UART_DLM, 0x34);
	cr_assert_eq(in(UART_DLL), 0x0c);
	cr_assert_eq(in(UART_DLM), 0x34);
	out(UART_LCR, UART_LCR_WLEN8);
	cr_assert_eq(in(UART_LCR), UART_LCR_WLEN8);
	cr_assert_eq(in(UART_IER), UART_IER_RDI, "as it was");
	cr_assert_eq(in(UART_RX), 0);
	type("x");
	out(UART_LCR, UART_LCR_DLAB);
	cr_assert_eq(in(UART_DLL), 0x0c, "the divisor, not the byte");
	out(UART_LCR, 0);
	cr_assert_eq(in(UART_RX), 'x');
	end();
}

Test(serial, scratch_keeps_what_is_written_and_ier_four_bits)
{
	begin();
	out(UART_SCR, 0xa5);
	cr_assert_eq(in(UART_SCR), 0xa5);
	out(UART_IER, 0xff);
	cr_assert_eq(in(UART_IER), 0x0f, "what Linux tells a 16550 by");
	out(UART_LSR, 0);
	out(UART_MSR, 0);
	cr_assert_eq(in(UART_LSR) & UART_LSR_THRE, UART_LSR_THRE);
	end();
}

Test(serial, fifo_enabled_shows_in_identification)
{
	begin();
	cr_assert_eq(in(UART_IIR) & 0xc0, 0);
	out(UART_FCR, UART_FCR_ENABLE_FIFO);
	cr_assert_eq(in(UART_IIR) & 0xc0, 0xc0);
	out(UART_FCR, 0);
	cr_assert_eq(in(UART_IIR) & 0xc0, 0);
	end();
}

/* ---- loopback ------------------------------------------------------------------------ */

Test(serial, loopback_modem_lines_follow_control)
{
	static const struct { uint8_t mcr, msr; } lines[] = {
		{ UART_MCR_RTS, UART_MSR_CTS }, { UART_MCR_DTR, UART_MSR_DSR },
		{ UART_MCR_OUT1, UART_MSR_RI }, { UART_MCR_OUT2, UART_MSR_DCD },
		{ UART_MCR_OUT2 | UART_MCR_RTS, UART_MSR_DCD | UART_MSR_CTS }, /* Linux's probe */
	};

	begin();
	for (unsigned i = 0; i < ARRAY_LEN(lines); i++) {
		out(UART_MCR, UART_MCR_LOOP | lines[i].mcr);
		cr_assert_eq(in(UART_MSR) & 0xf0, lines[i].msr);
	}
	end();
}

Test(serial, loopback_bytes_come_back_and_stay_inside)
{
	begin();
	out(UART_MCR, UART_MCR_LOOP);
	out(UART_TX, 'a');
	out(UART_TX, 'b');
	cr_assert(in(UART_LSR) & UART_LSR_DR);
	cr_assert_eq(in(UART_RX), 'a');
	cr_assert_eq(in(UART_RX), 'b');
	cr_assert_not(in(UART_LSR) & UART_LSR_DR);
	for (unsigned i = 0; i < 1000; i++)
		out(UART_TX, 'x'); /* more than the FIFO: lost, not written beyond */
	end();
}

Test(serial, loopback_cuts_off_the_line_till_it_ends)
{
	begin();
	out(UART_MCR, UART_MCR_LOOP);
	cr_assert_eq(type("late"), 0);
	cr_assert_not(in(UART_LSR) & UART_LSR_DR);
	out(UART_MCR, 0);
	cr_assert_eq(type("late"), 4);
	cr_assert_eq(in(UART_RX), 'l');
	end();
}

/* ---- receiving ------------------------------------------------------------------------- */

Test(serial, input_in_order_as_much_as_the_fifo_takes)
{
	char text[2 * FIFO];

	begin();
	for (unsigned i = 0; i < sizeof text; i++)
		text[i] = (char)i;
	cr_assert_eq(serial_input(s, text, sizeof text), FIFO);
	cr_assert_eq(serial_input(s, text + FIFO, FIFO), 0, "full");
	for (unsigned i = 0; i < 10; i++)
		cr_assert_eq(in(UART_RX), i);
	cr_assert_eq(serial_input(s, text + FIFO, FIFO), 10);
	for (unsigned i = 10; i < FIFO + 10; i++)
		cr_assert_eq(in(UART_RX), i, "round the end of the buffer");
	cr_assert_not(in(UART_LSR) & UART_LSR_DR);
	end();
}

Test(serial, fcr_clears_what_was_received)
{
	begin();
	out(UART_IER, UART_IER_RDI);
	type("abc");
	out(UART_FCR, UART_FCR_ENABLE_FIFO | UART_FCR_CLEAR_RCVR);
	cr_assert_not(in(UART_LSR) & UART_LSR_DR);
	cr_assert_eq(in(UART_IIR) & 0xf, UART_IIR_NO_INT);
	type("d");
	cr_assert_eq(in(UART_RX), 'd');
	end();
}

/* ---- interrupts -------------------------------------------------------------------------- */

Test(serial, receive_interrupt_one_edge_till_read)
{
	begin();
	type("x");
	cr_assert_eq(edges(), 0, "not enabled");
	out(UART_IER, UART_IER_RDI);
	cr_assert_eq(edges(), 1, "enabled with a byte waiting");
	type("y");
	cr_assert_eq(edges(), 0, "the line is high already");
	cr_assert_eq(in(UART_IIR) & 0xf, UART_IIR_RDI);
	in(UART_RX);
	cr_assert_eq(in(UART_IIR) & 0xf, UART_IIR_RDI);
	in(UART_RX);
	cr_assert_eq(in(UART_IIR) & 0xf, UART_IIR_NO_INT);
	type("z");
	cr_assert_eq(edges(), 1, "a new cause, a new edge");
	end();
}

Test(serial, transmit_interrupt_when_enabled_and_after_each_byte)
{
	begin();
	out(UART_IER, UART_IER_THRI);
	cr_assert_eq(edges(), 1);
	cr_assert_eq(in(UART_IIR) & 0xf, UART_IIR_THRI);
	cr_assert_eq(in(UART_IIR) & 0xf, UART_IIR_NO_INT, "reading it acknowledges");
	out(UART_TX, 'a');
	cr_assert_eq(edges(), 1);
	out(UART_TX, 'b');
	cr_assert_eq(edges(), 1, "before the last was acknowledged");
	cr_assert_eq(in(UART_IIR) & 0xf, UART_IIR_THRI);
	out(UART_IER, 0);
	out(UART_IER, UART_IER_THRI);
	cr_assert_eq(in(UART_IIR) & 0xf, UART_IIR_THRI, "Linux tests for this");
	end();
}

Test(serial, receive_comes_before_transmit)
{
	begin();
	out(UART_IER, UART_IER_THRI | UART_IER_RDI);
	type("x");
	cr_assert_eq(in(UART_IIR) & 0xf, UART_IIR_RDI);
	in(UART_RX);
	cr_assert_eq(in(UART_IIR) & 0xf, UART_IIR_THRI, "not acknowledged by the other");
	end();
}

/* ---- the console: clients ------------------------------------------------------------------ */

static int join(void)
{
	struct sockaddr_un sa = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	snprintf(sa.sun_path, sizeof sa.sun_path, "%s", path);
	cr_assert_eq(connect(fd, (const struct sockaddr *)&sa, sizeof sa), 0);
	for (unsigned i = 0; i < 3; i++)
		loop_turn(loop, 0);
	return fd;
}

/* Reads what there is while the loop turns, till `want` bytes are there. */
static size_t receive(int fd, uint8_t *buf, size_t want)
{
	size_t len = 0;

	for (unsigned left = TURNS; left && len < want; left--) {
		ssize_t n;

		loop_turn(loop, 0);
		n = recv(fd, buf + len, want - len, MSG_DONTWAIT);
		if (n == 0)
			break;
		if (n > 0)
			len += (size_t)n;
	}
	return len;
}

static bool nothing_to_read(int fd)
{
	uint8_t b;

	loop_turn(loop, 0);
	loop_turn(loop, 0);
	return recv(fd, &b, 1, MSG_DONTWAIT) < 0 && errno == EAGAIN;
}

static bool closed(int fd)
{
	uint8_t b[256];
	ssize_t n;

	for (unsigned left = TURNS; left; left--) {
		loop_turn(loop, 0);
		n = recv(fd, b, sizeof b, MSG_DONTWAIT);
		if (n == 0 || (n < 0 && errno != EAGAIN))
			return true;
	}
	return false;
}

/* Output whose every four bytes say where they are. */
static void print_numbers(uint32_t from, uint32_t to)
{
	for (uint32_t i = from; i < to; i++)
		console_output(con, &i, sizeof i);
}

Test(console, guests_bytes_reach_a_client)
{
	uint8_t buf[16];
	int fd;

	begin();
	fd = join();
	out(UART_TX, 'h');
	out(UART_TX, 'i');
	cr_assert_eq(receive(fd, buf, 2), 2);
	cr_assert_arr_eq(buf, "hi", 2);
	cr_assert(nothing_to_read(fd));
	close(fd);
	end();
}

Test(console, client_gets_history_then_what_comes)
{
	uint8_t buf[32];
	int fd;

	begin();
	console_output(con, "before ", 7);
	fd = join();
	console_output(con, "after", 5);
	cr_assert_eq(receive(fd, buf, 12), 12);
	cr_assert_arr_eq(buf, "before after", 12);
	close(fd);
	end();
}

Test(console, history_is_the_last_64_kib)
{
	static uint32_t words[HISTORY / 4 + 1];
	uint64_t dropped = counter_get(CTR_console_dropped);
	int fd;

	begin();
	print_numbers(0, 100000);
	fd = join();
	cr_assert_eq(receive(fd, (uint8_t *)words, HISTORY), HISTORY);
	for (uint32_t i = 0; i < HISTORY / 4; i++)
		cr_assert_eq(words[i], 100000 - HISTORY / 4 + i);
	cr_assert(nothing_to_read(fd));
	cr_assert_eq(counter_get(CTR_console_dropped), dropped, "nobody was there to miss it");
	close(fd);
	end();
}

Test(console, slow_client_loses_the_oldest_only)
{
	enum { TOTAL = 400000 };
	static uint32_t words[TOTAL];
	uint64_t dropped = counter_get(CTR_console_dropped);
	size_t len;
	int fd;

	begin();
	fd = join();
	for (uint32_t i = 0; i < TOTAL; i += 4000) {
		print_numbers(i, i + 4000);
		loop_turn(loop, 0);
	}
	len = receive(fd, (uint8_t *)words, sizeof words);
	dropped = counter_get(CTR_console_dropped) - dropped;
	cr_assert_gt(dropped, 0);
	cr_assert_eq(len + dropped, 4ul * TOTAL, "every byte sent or counted");
	cr_assert_eq(words[0], 0);
	cr_assert_eq(words[len / 4 - 1], TOTAL - 1, "the newest is there");
	close(fd);
	end();
}

Test(console, every_client_gets_everything)
{
	uint8_t buf[16];
	int fds[CLIENTS];

	begin();
	for (unsigned i = 0; i < CLIENTS; i++)
		fds[i] = join();
	console_output(con, "all", 3);
	for (unsigned i = 0; i < CLIENTS; i++) {
		cr_assert_eq(receive(fds[i], buf, 3), 3);
		cr_assert_arr_eq(buf, "all", 3);
	}
	for (unsigned i = 0; i < CLIENTS; i++)
		close(fds[i]);
	end();
}

Test(console, client_too_many_refused_place_reused)
{
	int fds[CLIENTS], more;

	begin();
	for (unsigned i = 0; i < CLIENTS; i++)
		fds[i] = join();
	more = join();
	cr_assert(closed(more));
	close(more);
	close(fds[3]);
	loop_turn(loop, 0);
	fds[3] = join();
	console_output(con, "x", 1);
	cr_assert_eq(receive(fds[3], (uint8_t[1]){ 0 }, 1), 1);
	for (unsigned i = 0; i < CLIENTS; i++)
		close(fds[i]);
	end();
}

/* ---- the console: input ---------------------------------------------------------------------- */

static struct {
	uint8_t got[65536];
	size_t len, room;
} sink;

static size_t sink_input(void *opaque, const void *buf, size_t len)
{
	size_t n = len < sink.room ? len : sink.room;

	memcpy(sink.got + sink.len, buf, n);
	sink.len += n;
	sink.room -= n;
	return n;
}

static void attach(size_t room)
{
	sink.len = 0;
	sink.room = room;
	console_attach(con, &(struct console_sink){ sink_input, &sink });
}

/* The loop has nothing to do: a turn takes as long as it may. */
static bool idle(void)
{
	uint64_t start = now_ns();

	for (unsigned i = 0; i < 20; i++)
		loop_turn(loop, 0);
	start = now_ns();
	loop_turn(loop, 40);
	return now_ns() - start >= 35000000;
}

Test(console, input_waits_for_a_guest)
{
	int fd;

	begin();
	fd = join();
	cr_assert_eq(send(fd, "early", 5, 0), 5);
	loop_turn(loop, 0);
	attach(100);
	cr_assert_eq(sink.len, 5);
	cr_assert_arr_eq(sink.got, "early", 5);
	close(fd);
	end();
}

/* As `echo x | socat -u - UNIX-CONNECT:...` does: gone before it is accepted, while
 * there is history that cannot be sent to it any more. */
Test(console, input_of_a_client_that_left_at_once_arrives)
{
	struct sockaddr_un a = { .sun_family = AF_UNIX };
	int fd;

	begin();
	attach(sizeof sink.got);
	console_output(con, "history", 7);
	fd = socket(AF_UNIX, SOCK_STREAM, 0);
	snprintf(a.sun_path, sizeof a.sun_path, "%s", path);
	cr_assert_eq(connect(fd, (struct sockaddr *)&a, sizeof a), 0);
	cr_assert_eq(write(fd, "heard", 5), 5);
	close(fd);
	for (int i = 0; i < 4; i++)
		loop_turn(loop, 0);
	cr_assert_eq(sink.len, 5);
	cr_assert_arr_eq(sink.got, "heard", 5);
	cr_assert(idle());
	end();
}

Test(console, input_beyond_the_buffer_stays_in_the_socket)
{
	static uint8_t text[40000];
	int fd;

	begin();
	for (unsigned i = 0; i < sizeof text; i++)
		text[i] = (uint8_t)(i * 31 + i / 256);
	attach(0);
	fd = join();
	cr_assert_eq(send(fd, text, sizeof text, 0), sizeof text);
	cr_assert(idle(), "full: nothing more is read");
	for (unsigned left = 1000; left && sink.len < sizeof text; left--) {
		sink.room = 1000;
		console_input_ready(con);
		loop_turn(loop, 0);
	}
	cr_assert_eq(sink.len, sizeof text);
	cr_assert_arr_eq(sink.got, text, sizeof text);
	cr_assert(idle());
	close(fd);
	end();
}

/* One client has filled the buffer; the others must not keep the loop spinning. */
Test(console, input_full_other_client_does_not_spin_the_loop)
{
	static const uint8_t text[INPUT];
	int a, b;

	begin();
	attach(0);
	a = join();
	b = join();
	cr_assert_eq(send(a, text, sizeof text, 0), sizeof text);
	for (unsigned i = 0; i < 5; i++)
		loop_turn(loop, 0);
	cr_assert_eq(send(b, "b", 1, 0), 1);
	cr_assert(idle());
	sink.room = sizeof sink.got;
	console_input_ready(con);
	for (unsigned i = 0; i < 5; i++)
		loop_turn(loop, 0);
	cr_assert_eq(sink.len, INPUT + 1);
	cr_assert_eq(sink.got[INPUT], 'b');
	close(a);
	close(b);
	end();
}

Test(console, client_gone_while_input_is_full_closed)
{
	static const uint8_t text[2 * INPUT];
	int fd;

	begin();
	attach(0);
	fd = join();
	cr_assert_eq(send(fd, text, sizeof text, 0), sizeof text);
	loop_turn(loop, 0);
	close(fd);
	cr_assert(idle(), "or its hang-up is told for ever");
	end();
}

static size_t to_serial(void *opaque, const void *buf, size_t len)
{
	return serial_input(opaque, buf, len);
}

/* A guest that reads: everything typed arrives, through a FIFO of 64 bytes. */
Test(console, input_longer_than_the_fifo_arrives_whole)
{
	enum { BYTES = 10000 };
	static uint8_t text[BYTES];
	unsigned got = 0;
	int fd;

	begin();
	for (unsigned i = 0; i < BYTES; i++)
		text[i] = (uint8_t)(i * 13 + i / 256);
	console_attach(con, &(struct console_sink){ to_serial, s });
	out(UART_IER, UART_IER_RDI);
	fd = join();
	cr_assert_eq(send(fd, text, BYTES, 0), BYTES);
	for (unsigned left = 2 * BYTES; left && got < BYTES; left--) {
		loop_turn(loop, 0);
		while (in(UART_LSR) & UART_LSR_DR)
			cr_assert_eq(in(UART_RX), text[got++]);
	}
	cr_assert_eq(got, BYTES);
	close(fd);
	end();
}

/* What empties the FIFO without reading it makes room too. */
Test(console, input_goes_on_after_the_fifo_was_cleared)
{
	char text[FIFO + 1];
	int fd;

	begin();
	memset(text, 'x', FIFO);
	text[FIFO] = 'y';
	console_attach(con, &(struct console_sink){ to_serial, s });
	fd = join();
	cr_assert_eq(send(fd, text, sizeof text, 0), sizeof text);
	loop_turn(loop, 0);
	loop_turn(loop, 0);
	out(UART_FCR, UART_FCR_ENABLE_FIFO | UART_FCR_CLEAR_RCVR);
	loop_turn(loop, 0);
	cr_assert_eq(in(UART_RX), 'y');
	close(fd);
	end();
}

Test(console, input_held_by_loopback_goes_on_after_it)
{
	int fd;

	begin();
	console_attach(con, &(struct console_sink){ to_serial, s });
	out(UART_MCR, UART_MCR_LOOP);
	fd = join();
	cr_assert_eq(send(fd, "z", 1, 0), 1);
	loop_turn(loop, 0);
	loop_turn(loop, 0);
	cr_assert_not(in(UART_LSR) & UART_LSR_DR);
	out(UART_MCR, 0);
	loop_turn(loop, 0);
	cr_assert_eq(in(UART_RX), 'z');
	close(fd);
	end();
}

/* ---- the end ------------------------------------------------------------------------------------ */

static void *read_all(void *arg)
{
	const int *fd = arg;
	static uint8_t buf[4096];
	size_t *total = calloc(1, sizeof *total);
	ssize_t n;

	while ((n = recv(*fd, buf, sizeof buf, 0)) > 0)
		*total += (size_t)n;
	return total;
}

Test(console, drain_gives_a_reader_everything)
{
	enum { WORDS = 60000 }; /* more than the socket takes */
	pthread_t reader;
	void *total;
	int fd;

	begin();
	fd = join();
	for (uint32_t i = 0; i < WORDS; i += 10000) {
		print_numbers(i, i + 10000);
		loop_turn(loop, 0);
	}
	cr_assert_eq(pthread_create(&reader, NULL, read_all, &fd), 0);
	console_drain(con, 5000);
	console_destroy(&con);
	pthread_join(reader, &total);
	cr_assert_eq(*(size_t *)total + counter_get(CTR_console_dropped), 4ul * WORDS);
	cr_assert_leq(counter_get(CTR_console_dropped), 4ul * WORDS - HISTORY);
	free(total);
	close(fd);
	end();
}

static void never(void *arg, unsigned events)
{
	cr_assert_fail("a callback ran while draining");
}

/* Others' callbacks may refer to a machine that is gone. */
Test(console, drain_ends_in_time_and_calls_no_one_else)
{
	uint64_t start;
	int fd, other;

	begin();
	fd = join();
	for (uint32_t i = 0; i < 400000; i += 10000) {
		print_numbers(i, i + 10000);
		loop_turn(loop, 0);
	}
	other = eventfd(1, EFD_CLOEXEC | EFD_NONBLOCK);
	cr_assert_eq(loop_watch(loop, other, VIRTIO_FD_IN, never, NULL), 0);
	start = now_ns();
	console_drain(con, 50);
	cr_assert_lt(now_ns() - start, 5000000000);
	loop_unwatch(loop, other);
	close(other);
	close(fd);
	end();
}

/* ---- threads -------------------------------------------------------------------------------------- */

enum { PER_THREAD = 20000 };

static void *guest_thread(void *arg)
{
	unsigned got = 0;

	while (got < PER_THREAD) {
		if (in(UART_LSR) & UART_LSR_DR)
			got += in(UART_RX) == 'k';
		out(UART_TX, 'o');
		in(UART_IIR);
	}
	return NULL;
}

Test(serial, guest_and_loop_at_once_lose_nothing)
{
	static uint8_t keys[PER_THREAD];
	pthread_t guest;
	size_t sent = 0;
	int fd;

	begin();
	memset(keys, 'k', sizeof keys);
	out(UART_IER, UART_IER_RDI | UART_IER_THRI);
	console_attach(con, &(struct console_sink){ to_serial, s });
	fd = join();
	cr_assert_eq(pthread_create(&guest, NULL, guest_thread, NULL), 0);
	while (sent < PER_THREAD || pthread_tryjoin_np(guest, NULL) != 0) {
		uint8_t buf[4096];
		ssize_t n = send(fd, keys + sent, PER_THREAD - sent, MSG_DONTWAIT);

		if (sent < PER_THREAD && n > 0)
			sent += (size_t)n;
		loop_turn(loop, 1);
		while (recv(fd, buf, sizeof buf, MSG_DONTWAIT) > 0)
			;
	}
	close(fd);
	end();
}
