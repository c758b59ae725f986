/*
 * A network card: packets both ways through a socket in a tap's place, what is
 * refused and by which counter, back pressure, and one real tap.  Defends I1 to
 * I3 of virtio/net.c.
 */
#include <criterion/criterion.h>
#include <errno.h>
#include <linux/if_packet.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "tests/lib/fakeguest.h"
#include "virtio/devices.h"

#define ALL (~0ull)
#define HDR ((uint32_t)sizeof(struct net_header_le))
#define STATUS_OFF 6 /* in configuration space */
#define MAX_BUFS 1030

static struct fakeguest g;
static struct err err;
static int wire; /* the other end of the cable */

/* ---- a tap that is a socket ---------------------------------------------- */

static unsigned offload_set;
static int header_bytes_set;

static int fake_flags(int fd, unsigned *iff_flags)
{
	*iff_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR;
	return 0;
}

static int fake_set_header_bytes(int fd, int bytes)
{
	header_bytes_set = bytes;
	return 0;
}

static int fake_set_offload(int fd, unsigned flags)
{
	offload_set = flags;
	return 0;
}

static const struct tap_ops tap_fake = {
	.flags = fake_flags,
	.set_header_bytes = fake_set_header_bytes,
	.set_offload = fake_set_offload,
};

static void create(void)
{
	struct virtio_net_config cfg = { .vm_name = "web" };
	struct virtio_dev *dev;
	int pair[2];

	fakeguest_init(&g);
	cr_assert_eq(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair), 0);
	wire = pair[0];
	cfg.fd = pair[1];
	cr_assert_eq(virtio_net_create_on(&dev, &g.env, "net0", &cfg, &tap_fake, &err), 0,
		     "%s", err.msg);
	close(pair[1]); /* the device has its own */
	fakeguest_attach(&g, dev);
}

static void begin(uint64_t features)
{
	create();
	cr_assert(fakeguest_start(&g, features));
	fakeguest_drain(&g, 10);
}

static void end(void)
{
	fakeguest_fini(&g);
	close(wire);
}

/* ---- packets ------------------------------------------------------------- */

static uint8_t byte_at(size_t i)
{
	return (uint8_t)(i * 7 + i / 251);
}

/* From the wire to the guest. */
static void wire_send(const struct net_header_le *h, size_t frame_bytes)
{
	static uint8_t buf[80000];
	static const struct net_header_le plain;

	memcpy(buf, h != NULL ? h : &plain, HDR);
	for (size_t i = 0; i < frame_bytes; i++)
		buf[HDR + i] = byte_at(i);
	cr_assert_eq(send(wire, buf, HDR + frame_bytes, MSG_DONTWAIT),
		     (ssize_t)(HDR + frame_bytes), "%s", strerror(errno));
}

/* From the guest to the wire; -1: nothing came. */
static ssize_t wire_receive(struct net_header_le *h, uint8_t *frame, size_t max)
{
	static uint8_t buf[80000];
	ssize_t n = recv(wire, buf, sizeof buf, MSG_DONTWAIT);

	if (n < 0)
		return -1;
	cr_assert_geq(n, (ssize_t)HDR);
	memcpy(h, buf, HDR);
	n -= HDR;
	cr_assert_leq((size_t)n, max);
	memcpy(frame, buf + HDR, (size_t)n);
	return n;
}

static uint64_t rx_add(uint32_t len)
{
	struct fakebuf b = { .gpa = fakeguest_alloc(&g, len, 1), .len = len,
			     .device_writes = true };

	fakeguest_add(&g, NET_RX, &b, 1);
	return b.gpa;
}

/* As rx_add(), of a device that waits for it. */
static uint64_t rx_add_wanted(uint32_t len)
{
	uint16_t old_idx = g.q[NET_RX].avail_idx;
	uint64_t at = rx_add(len);

	cr_assert(fakeguest_wants_kick(&g, NET_RX, old_idx));
	fakeguest_kick(&g, NET_RX);
	fakeguest_drain(&g, 10);
	return at;
}

static void rx_add_and_kick(uint32_t len)
{
	rx_add(len);
	fakeguest_kick(&g, NET_RX);
	fakeguest_drain(&g, 10);
}

static void expect_bytes(uint64_t at, size_t from, size_t len)
{
	const uint8_t *p = fakeguest_at(&g, at, len);

	for (size_t i = 0; i < len; i++)
		cr_assert_eq(p[i], byte_at(from + i), "byte %zu of the packet", from + i);
}

static unsigned rx_num_buffers(uint64_t at)
{
	struct net_header_le h;

	memcpy(&h, fakeguest_at(&g, at, HDR), HDR);
	return h.num_buffers;
}

/* Takes the next used receive buffer, which must be there already. */
static uint32_t rx_used(void)
{
	uint32_t head, len;

	cr_assert(fakeguest_used(&g, NET_RX, &head, &len));
	return len;
}

static bool rx_none(void)
{
	uint32_t head, len;

	fakeguest_drain(&g, 10);
	return !fakeguest_used(&g, NET_RX, &head, &len);
}

/* Sends header and frame as buffers of the given lengths. */
static void tx_send(const struct net_header_le *h, const uint32_t *lens, unsigned n)
{
	static struct fakebuf b[MAX_BUFS];
	uint32_t head, used_head, used_len, at = 0;
	uint8_t raw[HDR];

	memcpy(raw, h, HDR);
	for (unsigned i = 0; i < n; i++) {
		uint64_t to = fakeguest_alloc(&g, lens[i], 1);
		uint8_t *p = fakeguest_at(&g, to, lens[i]);

		for (uint32_t k = 0; k < lens[i]; k++, at++)
			p[k] = at < HDR ? raw[at] : byte_at(at - HDR);
		b[i] = (struct fakebuf){ .gpa = to, .len = lens[i] };
	}
	head = n > 16 ? fakeguest_add_indirect(&g, NET_TX, b, n) : fakeguest_add(&g, NET_TX, b, n);
	fakeguest_kick(&g, NET_TX);
	cr_assert(fakeguest_wait_used(&g, NET_TX, &used_head, &used_len));
	cr_assert_eq(used_head, head);
	cr_assert_eq(used_len, 0);
}

static void tx_frame(const struct net_header_le *h, uint32_t frame_bytes)
{
	tx_send(h, &(uint32_t){ HDR + frame_bytes }, 1);
}

static void expect_sent(size_t frame_bytes)
{
	static uint8_t frame[80000];
	struct net_header_le h;

	cr_assert_eq(wire_receive(&h, frame, sizeof frame), (ssize_t)frame_bytes);
	for (size_t i = 0; i < frame_bytes; i++)
		cr_assert_eq(frame[i], byte_at(i), "byte %zu", i);
}

static void expect_tx_refused(const struct net_header_le *h, uint32_t frame_bytes)
{
	static uint64_t before;
	struct net_header_le got;
	uint8_t frame[1];

	tx_frame(h, frame_bytes);
	cr_assert_eq(counter_get(CTR_net_bad_request), ++before);
	cr_assert_eq(wire_receive(&got, frame, sizeof frame), -1);
	cr_assert_eq(fakeguest_status(&g) & VIRTIO_STATUS_NEEDS_RESET, 0);
}

/* ---- set-up -------------------------------------------------------------- */

Test(net, config_has_mac_and_link)
{
	uint64_t mac;

	begin(ALL);
	mac = fakeguest_read(&g, VIRTIO_PCI_DEVICE, 4);
	cr_assert_eq(mac & 3, 2, "locally administered, unicast");
	cr_assert_eq(fakeguest_read(&g, VIRTIO_PCI_DEVICE + STATUS_OFF, 2), NET_S_LINK_UP);
	cr_assert_eq(fakeguest_offered(&g) & 0xffffff,
		     BIT(NET_F_CSUM) | BIT(NET_F_GUEST_CSUM) | BIT(NET_F_MAC) |
			     BIT(NET_F_GUEST_TSO4) | BIT(NET_F_GUEST_TSO6) | BIT(NET_F_HOST_TSO4) |
			     BIT(NET_F_HOST_TSO6) | BIT(NET_F_MRG_RXBUF) | BIT(NET_F_STATUS));
	fakeguest_write(&g, VIRTIO_PCI_DEVICE, 0, 4);
	cr_assert_eq(counter_get(CTR_virtio_bad_access), 1);
	cr_assert_eq(fakeguest_read(&g, VIRTIO_PCI_DEVICE, 4), mac);
	cr_assert_eq(header_bytes_set, (int)HDR);
	end();
}

static uint64_t mac_of(const char *vm, const char *label)
{
	struct virtio_net_config cfg = { .vm_name = vm };
	struct virtio_dev *dev;
	uint64_t mac = 0;
	int pair[2];

	cr_assert_eq(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, pair), 0);
	cfg.fd = pair[0];
	cr_assert_eq(virtio_net_create_on(&dev, &g.env, label, &cfg, &tap_fake, &err), 0);
	dev->ops->config_read(dev, 0, &mac, 6);
	virtio_dev_destroy(&dev);
	close(pair[0]);
	close(pair[1]);
	return mac;
}

Test(net, mac_derived_is_stable_and_its_own)
{
	fakeguest_init(&g);
	cr_assert_eq(mac_of("web", "net0"), mac_of("web", "net0"));
	cr_assert_neq(mac_of("web", "net0"), mac_of("web", "net1"));
	cr_assert_neq(mac_of("web", "net0"), mac_of("db", "net0"));
	cr_assert_neq(mac_of("webn", "et0"), mac_of("web", "net0"));
	fakeguest_fini(&g);
}

Test(net, mac_given_is_used)
{
	struct virtio_net_config cfg = { .mac = { 0x52, 0x54, 0, 1, 2, 3 } };
	struct virtio_dev *dev = NULL;
	int pair[2];
	uint8_t mac[6];

	fakeguest_init(&g);
	cr_assert_eq(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, pair), 0);
	cfg.fd = pair[0];
	cr_assert_eq(virtio_net_create_on(&dev, &g.env, "net0", &cfg, &tap_fake, &err), 0);
	dev->ops->config_read(dev, 0, mac, 6);
	cr_assert_arr_eq(mac, cfg.mac, 6);
	virtio_dev_destroy(&dev);
	cfg.mac[0] = 0x53;
	cr_assert_eq(virtio_net_create_on(&dev, &g.env, "net0", &cfg, &tap_fake, &err), -EINVAL);
	cr_assert_str_eq(err.msg, "net0: the MAC address 53:54:00:01:02:03 is a multicast address");
	close(pair[0]);
	close(pair[1]);
	fakeguest_fini(&g);
}

Test(net, features_without_what_they_need_are_refused)
{
	create();
	cr_assert_not(fakeguest_start(&g, BIT(NET_F_HOST_TSO4)));
	cr_assert_not(fakeguest_start(&g, BIT(NET_F_HOST_TSO6) | BIT(NET_F_GUEST_CSUM)));
	cr_assert_not(fakeguest_start(&g, BIT(NET_F_GUEST_TSO4)));
	cr_assert_not(fakeguest_start(&g, BIT(NET_F_GUEST_TSO6) | BIT(NET_F_CSUM)));
	cr_assert_eq(counter_get(CTR_virtio_bad_features), 4);
	cr_assert(fakeguest_start(&g, BIT(NET_F_HOST_TSO4) | BIT(NET_F_CSUM)));
	end();
}

Test(net, offloads_follow_features)
{
	create();
	cr_assert(fakeguest_start(&g, ALL));
	cr_assert_eq(offload_set, TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6);
	cr_assert(fakeguest_start(&g, BIT(NET_F_GUEST_CSUM) | BIT(NET_F_GUEST_TSO6)));
	cr_assert_eq(offload_set, TUN_F_CSUM | TUN_F_TSO6);
	cr_assert(fakeguest_start(&g, 0));
	cr_assert_eq(offload_set, 0);
	end();
}

/* ---- receiving ----------------------------------------------------------- */

Test(net, rx_packet_fits_one_buffer)
{
	uint64_t at;

	begin(ALL);
	at = rx_add(1526);
	fakeguest_kick(&g, NET_RX);
	fakeguest_drain(&g, 10);
	wire_send(NULL, 1514);
	fakeguest_drain(&g, 10);
	cr_assert_eq(rx_used(), 1526);
	cr_assert_eq(rx_num_buffers(at), 1);
	expect_bytes(at + HDR, 0, 1514);
	cr_assert_eq(counter_get(CTR_net_rx_packets), 1);
	cr_assert_eq(counter_get(CTR_net_rx_bytes), 1514);
	cr_assert_gt(g.interrupts[NET_RX], 0);
	end();
}

Test(net, rx_packet_spreads_over_buffers)
{
	static const uint32_t lens[] = { 12, 1, 60, 65000, 4000 };
	uint64_t at[ARRAY_LEN(lens)];
	size_t done = 0;

	begin(ALL);
	for (unsigned i = 0; i < ARRAY_LEN(lens); i++)
		at[i] = rx_add(lens[i]);
	fakeguest_kick(&g, NET_RX);
	wire_send(NULL, 65562);
	fakeguest_drain(&g, 10);
	cr_assert_eq(rx_num_buffers(at[0]), ARRAY_LEN(lens));
	for (unsigned i = 0; i < ARRAY_LEN(lens); i++) {
		uint32_t hdr = i == 0 ? HDR : 0, len = rx_used();

		cr_assert_eq(len, i + 1 < ARRAY_LEN(lens) ? lens[i] : 65562 - done);
		if (len > hdr)
			expect_bytes(at[i] + hdr, done, len - hdr);
		done += len - hdr;
	}
	cr_assert_eq(done, 65562);
	end();
}

/* The used index as another vCPU sees it: a packet of 16 buffers is there whole
 * or not at all. */
struct watcher {
	const uint16_t *used_idx;
	_Atomic bool stop;
	bool torn;
};

static void *watch_used(void *arg)
{
	struct watcher *w = arg;

	while (!w->stop)
		if (__atomic_load_n(w->used_idx, __ATOMIC_ACQUIRE) % 16 != 0)
			w->torn = true;
	return NULL;
}

Test(net, rx_packet_spread_is_seen_whole)
{
	struct watcher w = { 0 };
	pthread_t thread;

	begin(ALL);
	w.used_idx = &g.q[NET_RX].used[1];
	cr_assert_eq(pthread_create(&thread, NULL, watch_used, &w), 0);
	for (unsigned packet = 0; packet < 3000; packet++) {
		g.next_gpa = packet == 0 ? g.next_gpa : g.next_gpa - 16 * 100;
		for (unsigned i = 0; i < 16; i++)
			rx_add(100);
		fakeguest_kick(&g, NET_RX);
		wire_send(NULL, 16 * 100 - HDR);
		fakeguest_drain(&g, 10);
		for (unsigned i = 0; i < 16; i++)
			cr_assert_eq(rx_used(), 100);
	}
	w.stop = true;
	cr_assert_eq(pthread_join(thread, NULL), 0);
	cr_assert_not(w.torn, "part of a packet was used");
	end();
}

/* More buffers in a chain than are read into directly. */
Test(net, rx_chain_in_crumbs_works)
{
	struct fakebuf b[100];
	uint64_t at = 0;

	begin(ALL);
	at = fakeguest_alloc(&g, 100 * 20, 1);
	for (unsigned i = 0; i < 100; i++)
		b[i] = (struct fakebuf){ .gpa = at + i * 20, .len = 20, .device_writes = true };
	fakeguest_add_indirect(&g, NET_RX, b, 100);
	fakeguest_kick(&g, NET_RX);
	wire_send(NULL, 1500);
	fakeguest_drain(&g, 10);
	cr_assert_eq(rx_used(), 1512);
	expect_bytes(at + HDR, 0, 1500);
	end();
}

Test(net, rx_without_buffers_waits)
{
	begin(ALL);
	for (unsigned i = 0; i < 5; i++)
		wire_send(NULL, 100 + i);
	fakeguest_drain(&g, 10);
	for (unsigned i = 0; i < 5; i++) {
		cr_assert(rx_none());
		rx_add_wanted(1526);
		cr_assert_eq(rx_used(), HDR + 100 + i);
	}
	cr_assert_eq(counter_get(CTR_net_rx_dropped), 0);
	end();
}

static void too_few_buffers(uint64_t features)
{
	uint64_t at[3];

	begin(features);
	at[0] = rx_add(112);
	at[1] = rx_add(100);
	fakeguest_kick(&g, NET_RX);
	fakeguest_drain(&g, 10);
	wire_send(NULL, 250);
	wire_send(NULL, 30);
	cr_assert(rx_none());
	/* what was read into them is not relied upon */
	memset(fakeguest_at(&g, at[0], 112), 0, 112);
	memset(fakeguest_at(&g, at[1], 100), 0, 100);
	at[2] = rx_add_wanted(100);
	cr_assert_eq(rx_used(), 112);
	cr_assert_eq(rx_used(), 100);
	cr_assert_eq(rx_used(), 50);
	cr_assert_eq(rx_num_buffers(at[0]), 3);
	expect_bytes(at[0] + HDR, 0, 100);
	expect_bytes(at[1], 100, 100);
	expect_bytes(at[2], 200, 50);
	cr_assert(rx_none());
	rx_add_wanted(100);
	cr_assert_eq(rx_used(), HDR + 30);
	cr_assert_eq(counter_get(CTR_net_rx_dropped), 0);
	end();
}

Test(net, rx_too_few_buffers_keeps_packet)
{
	too_few_buffers(ALL);
}

Test(net, rx_too_few_buffers_keeps_packet_without_event_index)
{
	too_few_buffers(ALL & ~VIRTIO_F_EVENT_IDX);
}

Test(net, rx_packet_larger_than_ring_is_dropped)
{
	create();
	g.queue_size = 4;
	cr_assert(fakeguest_start(&g, ALL));
	for (unsigned i = 0; i < 4; i++)
		rx_add(112);
	fakeguest_kick(&g, NET_RX);
	wire_send(NULL, 1000);
	wire_send(NULL, 50);
	fakeguest_drain(&g, 20);
	cr_assert_eq(counter_get(CTR_net_rx_dropped), 1);
	cr_assert_eq(rx_used(), HDR + 50);
	end();
}

Test(net, rx_without_mergeable_buffers_drops_too_large)
{
	begin(ALL & ~BIT(NET_F_MRG_RXBUF));
	rx_add_and_kick(112);
	wire_send(NULL, 101);
	wire_send(NULL, 100);
	fakeguest_drain(&g, 10);
	cr_assert_eq(counter_get(CTR_net_rx_dropped), 1);
	cr_assert_eq(rx_used(), 112);
	cr_assert(rx_none());
	end();
}

Test(net, rx_buffer_below_header_is_refused)
{
	begin(ALL);
	rx_add(11);
	rx_add(112);
	fakeguest_kick(&g, NET_RX);
	wire_send(NULL, 100);
	fakeguest_drain(&g, 10);
	cr_assert_eq(counter_get(CTR_net_bad_request), 1);
	cr_assert_eq(rx_used(), 0);
	cr_assert_eq(rx_used(), 112);
	end();
}

Test(net, rx_offload_not_negotiated_is_dropped)
{
	static const struct net_header_le bad[] = {
		{ .flags = NET_HDR_NEEDS_CSUM, .csum_start = 34, .csum_offset = 16 },
		{ .gso_type = NET_GSO_TCPV4, .gso_size = 1448 },
		{ .gso_type = NET_GSO_TCPV6, .gso_size = 1448 },
		{ .gso_type = 3 },
		{ .gso_type = NET_GSO_TCPV4 | 0x80 },
	};

	begin(BIT(NET_F_MRG_RXBUF));
	rx_add_and_kick(2000);
	for (unsigned i = 0; i < ARRAY_LEN(bad); i++) {
		wire_send(&bad[i], 100);
		cr_assert(rx_none());
		cr_assert_eq(counter_get(CTR_net_rx_dropped), i + 1);
	}
	wire_send(NULL, 100);
	fakeguest_drain(&g, 10);
	cr_assert_eq(rx_used(), 112);
	end();
}

Test(net, rx_offload_negotiated_is_passed_on)
{
	const struct net_header_le h = { .flags = NET_HDR_NEEDS_CSUM, .gso_type = NET_GSO_TCPV4,
					 .hdr_len = 54, .gso_size = 1448, .csum_start = 34,
					 .csum_offset = 16, .num_buffers = 7 };
	struct net_header_le got;
	uint64_t at;

	begin(ALL);
	at = rx_add(4000);
	fakeguest_kick(&g, NET_RX);
	wire_send(&h, 3000);
	fakeguest_drain(&g, 10);
	cr_assert_eq(rx_used(), 3012);
	memcpy(&got, fakeguest_at(&g, at, HDR), HDR);
	cr_assert_eq(got.num_buffers, 1);
	cr_assert_arr_eq((uint8_t *)&got, (const uint8_t *)&h, HDR - 2);
	end();
}

/* Less than a header, or nothing but one, from the wire. */
Test(net, rx_runt_is_dropped)
{
	begin(ALL);
	rx_add_and_kick(2000);
	cr_assert_eq(send(wire, "short", 5, 0), 5);
	cr_assert(rx_none());
	cr_assert_eq(counter_get(CTR_net_rx_dropped), 1);
	end();
}

Test(net, rx_turn_is_bounded)
{
	unsigned turns = 0;

	begin(ALL);
	for (unsigned i = 0; i < 200; i++)
		rx_add(100);
	fakeguest_kick(&g, NET_RX);
	fakeguest_drain(&g, 10);
	for (unsigned i = 0; i < 150; i++)
		wire_send(NULL, 20);
	while (fakeguest_turn(&g, 0) > 0) {
		turns++;
		cr_assert_leq(counter_get(CTR_net_rx_packets), 64 * turns);
	}
	cr_assert_eq(counter_get(CTR_net_rx_packets), 150);
	end();
}

Test(net, rx_reset_forgets_waiting_packet)
{
	begin(ALL);
	rx_add_and_kick(112);
	wire_send(NULL, 500);
	cr_assert(rx_none());
	cr_assert(fakeguest_start(&g, ALL));
	rx_add_and_kick(2000);
	cr_assert(rx_none());
	wire_send(NULL, 60);
	fakeguest_drain(&g, 10);
	cr_assert_eq(rx_used(), HDR + 60);
	end();
}

Test(net, rx_while_reset_leaves_packets_to_the_tap)
{
	begin(ALL);
	rx_add_and_kick(2000);
	fakeguest_reset(&g);
	wire_send(NULL, 60);
	cr_assert_leq(fakeguest_drain(&g, 10), 2, "the tap is not watched any more");
	cr_assert_eq(counter_get(CTR_net_rx_packets), 0);
	cr_assert(fakeguest_start(&g, ALL));
	rx_add_and_kick(2000);
	cr_assert_eq(rx_used(), HDR + 60);
	end();
}

/* ---- sending ------------------------------------------------------------- */

Test(net, tx_packet_of_any_layout_arrives)
{
	static const struct net_header_le plain;
	static const uint32_t layouts[][4] = {
		{ 12, 60, 0, 0 }, { 72, 0, 0, 0 }, { 5, 7, 60, 0 }, { 1, 30, 1, 40 },
	};

	begin(ALL);
	for (unsigned i = 0; i < ARRAY_LEN(layouts); i++) {
		unsigned n = 0;

		while (n < 4 && layouts[i][n] != 0)
			n++;
		tx_send(&plain, layouts[i], n);
		expect_sent(60);
	}
	cr_assert_eq(counter_get(CTR_net_tx_packets), ARRAY_LEN(layouts));
	cr_assert_eq(counter_get(CTR_net_tx_bytes), 60 * ARRAY_LEN(layouts));
	end();
}

Test(net, tx_largest_packet_arrives)
{
	const struct net_header_le h = { .flags = NET_HDR_NEEDS_CSUM, .gso_type = NET_GSO_TCPV6,
					 .hdr_len = 74, .gso_size = 1440, .csum_start = 54,
					 .csum_offset = 16 };

	begin(ALL);
	tx_frame(&h, 65562);
	expect_sent(65562);
	end();
}

Test(net, tx_header_passes_what_was_negotiated)
{
	const struct net_header_le h = { .flags = 0xff, .gso_type = NET_GSO_TCPV4,
					 .hdr_len = 0xffff, .gso_size = 1448, .csum_start = 34,
					 .csum_offset = 16, .num_buffers = 9 };
	struct net_header_le got;
	uint8_t frame[2000];

	begin(ALL);
	tx_frame(&h, 1600);
	cr_assert_eq(wire_receive(&got, frame, sizeof frame), 1600);
	cr_assert_eq(got.flags, NET_HDR_NEEDS_CSUM, "flags no driver may set are cleared");
	cr_assert_eq(got.gso_type, NET_GSO_TCPV4);
	cr_assert_eq(got.hdr_len, 1600, "a hint, cut to the frame");
	cr_assert_eq(got.gso_size, 1448);
	cr_assert_eq(got.csum_start, 34);
	cr_assert_eq(got.csum_offset, 16);
	cr_assert_eq(got.num_buffers, 0);
	end();
}

Test(net, tx_header_without_checksum_is_cleared)
{
	const struct net_header_le h = { .flags = 2, .gso_size = 5, .csum_start = 9999,
					 .csum_offset = 9999 };
	struct net_header_le got;
	uint8_t frame[100];

	begin(0);
	tx_frame(&h, 60);
	cr_assert_eq(wire_receive(&got, frame, sizeof frame), 60);
	cr_assert_eq(got.flags | got.gso_size | got.csum_start | got.csum_offset, 0);
	end();
}

Test(net, tx_header_malformed_is_refused)
{
	static const struct net_header_le bad[] = {
		/* the sum's place ends one byte behind the frame */
		{ .flags = 1, .csum_start = 1000, .csum_offset = 99 },
		{ .flags = 1, .csum_start = 0xffff, .csum_offset = 0xffff },
		/* segments of nothing; no checksum; types not offered */
		{ .flags = 1, .gso_type = NET_GSO_TCPV4, .csum_start = 34, .csum_offset = 16 },
		{ .gso_type = NET_GSO_TCPV4, .gso_size = 1448 },
		{ .gso_type = NET_GSO_TCPV6, .gso_size = 1448 },
		{ .flags = 1, .gso_type = 2, .gso_size = 1448 },
		{ .flags = 1, .gso_type = 3, .gso_size = 1448 },
		{ .flags = 1, .gso_type = 5, .gso_size = 1448 },
		{ .flags = 1, .gso_type = NET_GSO_TCPV4 | 0x80, .gso_size = 1448 },
	};

	begin(ALL);
	for (unsigned i = 0; i < ARRAY_LEN(bad); i++)
		expect_tx_refused(&bad[i], 1100);
	cr_assert_eq(counter_get(CTR_net_tx_packets), 0);
	end();
}

Test(net, tx_checksum_at_the_very_end_passes)
{
	const struct net_header_le h = { .flags = 1, .csum_start = 1000, .csum_offset = 98 };

	begin(ALL);
	tx_frame(&h, 1100);
	expect_sent(1100);
	end();
}

Test(net, tx_offload_not_negotiated_is_refused)
{
	const struct net_header_le csum = { .flags = 1, .csum_start = 34, .csum_offset = 16 };
	const struct net_header_le tso = { .flags = 1, .gso_type = NET_GSO_TCPV6, .gso_size = 1,
					   .csum_start = 34, .csum_offset = 16 };

	begin(0);
	expect_tx_refused(&csum, 100);
	cr_assert(fakeguest_start(&g, BIT(NET_F_CSUM) | BIT(NET_F_HOST_TSO4)));
	expect_tx_refused(&tso, 100);
	tx_frame(&csum, 100);
	expect_sent(100);
	end();
}

Test(net, tx_frame_of_wrong_size_is_refused)
{
	static const struct net_header_le plain;
	static uint32_t crumbs[1024];

	begin(ALL);
	expect_tx_refused(&plain, 13);
	expect_tx_refused(&plain, 68 * 1024 + 1);
	tx_send(&plain, &(uint32_t){ 11 }, 1);
	cr_assert_eq(counter_get(CTR_net_bad_request), 3);
	for (unsigned i = 0; i < ARRAY_LEN(crumbs); i++)
		crumbs[i] = 2; /* 6 of header, 1018 of frame: fits */
	tx_send(&plain, crumbs, 1024);
	expect_sent(2 * 1018);
	crumbs[0] = 13; /* 1024 of frame, one too many */
	tx_send(&plain, crumbs, 1024);
	cr_assert_eq(counter_get(CTR_net_bad_request), 4);
	end();
}

Test(net, tx_full_tap_waits_and_loses_nothing)
{
	struct fakebuf b = { .len = HDR + 4000 };
	struct net_header_le h;
	static uint8_t frame[5000];
	unsigned got = 0;

	begin(ALL);
	b.gpa = fakeguest_alloc(&g, b.len, 1);
	for (unsigned i = 0; i < 250; i++)
		fakeguest_add(&g, NET_TX, &b, 1);
	fakeguest_kick(&g, NET_TX);
	fakeguest_drain(&g, 100);
	cr_assert_lt(counter_get(CTR_net_tx_packets), 250, "the socket is full");
	cr_assert_lt(fakeguest_drain(&g, 100), 100, "and nothing spins");
	while (got < 250) {
		if (wire_receive(&h, frame, sizeof frame) == 4000)
			got++;
		else
			cr_assert_gt(fakeguest_turn(&g, 1000), 0);
	}
	cr_assert_eq(counter_get(CTR_net_tx_packets), 250);
	cr_assert_eq(counter_get(CTR_net_tx_errors), 0);
	end();
}

Test(net, tx_turn_is_bounded)
{
	struct fakebuf b = { .len = HDR + 20 };
	unsigned turns = 0;

	begin(ALL);
	b.gpa = fakeguest_alloc(&g, b.len, 1);
	for (unsigned i = 0; i < 150; i++)
		fakeguest_add(&g, NET_TX, &b, 1);
	fakeguest_kick(&g, NET_TX);
	while (fakeguest_turn(&g, 0) > 0) {
		turns++;
		cr_assert_leq(counter_get(CTR_net_tx_packets), 64 * turns);
	}
	cr_assert_eq(counter_get(CTR_net_tx_packets), 150);
	end();
}

Test(net, tap_gone_takes_link_down)
{
	static const struct net_header_le plain;

	begin(ALL);
	rx_add_and_kick(2000);
	close(wire);
	fakeguest_drain(&g, 10);
	cr_assert_eq(fakeguest_read(&g, VIRTIO_PCI_DEVICE + STATUS_OFF, 2), 0);
	cr_assert_eq(g.interrupts[FAKE_CONFIG_VECTOR], 1);
	cr_assert_eq(fakeguest_turn(&g, 0), 0, "nothing spins");
	signal(SIGPIPE, SIG_IGN); /* a socket's way, not a tap's */
	tx_frame(&plain, 60);
	cr_assert_eq(counter_get(CTR_net_tx_errors), 1);
	fakeguest_fini(&g);
}

/* ---- taps ---------------------------------------------------------------- */

static void expect_error(struct virtio_net_config cfg, int rc, const char *sentence)
{
	struct virtio_dev *dev = NULL;

	cr_assert_eq(virtio_net_create(&dev, &g.env, "net0", &cfg, &err), rc, "%s", err.msg);
	cr_assert_null(dev);
	cr_assert(strstr(err.msg, sentence) != NULL, "'%s' does not say '%s'", err.msg, sentence);
}

static int attach_says;

static int fake_open(void)
{
	return dup(0);
}

static int fake_attach(int fd, const char *name)
{
	return attach_says;
}

Test(net, tap_unfit_is_refused)
{
	int pair[2];

	fakeguest_init(&g);
	cr_assert_eq(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, pair), 0);
	expect_error((struct virtio_net_config){ .fd = pair[0] }, -ENOTTY, "is not a tap");
	expect_error((struct virtio_net_config){ .tap = "averyveryverylongname", .fd = -1 },
		     -EINVAL, "'averyveryverylongname' is not an interface name");
	expect_error((struct virtio_net_config){ .tap = "tap%d", .fd = -1 }, -EINVAL,
		     "not an interface name");
	expect_error((struct virtio_net_config){ .tap = "", .fd = -1 }, -EINVAL,
		     "not an interface name");
	close(pair[0]);
	close(pair[1]);
	fakeguest_fini(&g);
}

Test(net, tap_refused_says_what_to_do)
{
	static const struct tap_ops ops = { .open = fake_open, .attach = fake_attach };
	static const struct {
		int rc;
		const char *name, *sentence;
	} cases[] = {
		{ -EPERM, "brimno0", "net0 brimno0: no such interface and creating one needs "
				     "CAP_NET_ADMIN; create it with: ip tuntap add dev brimno0" },
		{ -EPERM, "lo", "net0 lo: belongs to another user" },
		{ -EBUSY, "lo", "net0 lo: in use by another VM" },
		{ -EINVAL, "lo", "net0 lo: not a tap" },
		{ -ENOMEM, "lo", "net0 lo: Cannot allocate memory" },
	};
	struct virtio_dev *dev = NULL;

	fakeguest_init(&g);
	for (unsigned i = 0; i < ARRAY_LEN(cases); i++) {
		struct virtio_net_config cfg = { .tap = cases[i].name, .fd = -1 };

		attach_says = cases[i].rc;
		cr_assert_eq(virtio_net_create_on(&dev, &g.env, "net0", &cfg, &ops, &err),
			     cases[i].rc);
		cr_assert_eq(strncmp(err.msg, cases[i].sentence, strlen(cases[i].sentence)), 0,
			     "%s", err.msg);
	}
	fakeguest_fini(&g);
}

/* A packet socket on the host's side of interface `name`. */
static int open_wire(const char *name)
{
	struct sockaddr_ll to = { .sll_family = AF_PACKET, .sll_protocol = 0xb588,
				  .sll_ifindex = (int)if_nametoindex(name) };
	int fd = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, to.sll_protocol);

	cr_assert_geq(fd, 0);
	cr_assert_neq(to.sll_ifindex, 0, "no %s", name);
	cr_assert_eq(bind(fd, (struct sockaddr *)&to, sizeof to), 0);
	return fd;
}

static const uint8_t ethernet[] = { 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, 1,
				    0x88, 0xb5, 'b', 'r', 'i', 'm' };

/* The kernel sends packets of its own on a new interface: looks for ours. */
static void expect_ours_received(void)
{
	for (unsigned i = 0; i < 64; i++) {
		uint32_t head, len;
		const uint8_t *p;

		cr_assert(fakeguest_wait_used(&g, NET_RX, &head, &len));
		p = fakeguest_at(&g, g.q[NET_RX].desc[head].addr, len);
		if (len >= HDR + sizeof ethernet &&
		    memcmp(p + HDR, ethernet, sizeof ethernet) == 0)
			return;
	}
	cr_assert_fail("the frame did not arrive");
}

Test(net, tap_real_carries_packets_both_ways)
{
	struct virtio_net_config cfg = { .tap = "brim0", .fd = -1, .vm_name = "web" };
	struct fakebuf b = { .len = HDR + 60 };
	struct virtio_dev *dev = NULL;
	struct pollfd p = { .events = POLLIN };
	uint32_t head, len;
	uint8_t frame[200];

	if (unshare(CLONE_NEWNET) != 0 || access("/dev/net/tun", R_OK | W_OK) != 0)
		cr_skip_test("no network namespace or no /dev/net/tun: not permitted here");
	fakeguest_init(&g);
	cr_assert_eq(virtio_net_create(&dev, &g.env, "net0", &cfg, &err), 0, "%s", err.msg);
	expect_error(cfg, -EBUSY, "net0 brim0: in use by another VM");
	fakeguest_attach(&g, dev);
	cr_assert(fakeguest_start(&g, ALL));
	wire = open_wire("brim0");

	for (unsigned i = 0; i < 64; i++)
		rx_add(2000);
	fakeguest_kick(&g, NET_RX);
	cr_assert_eq(send(wire, ethernet, sizeof ethernet, 0), sizeof ethernet);
	expect_ours_received();

	b.gpa = fakeguest_alloc(&g, b.len, 1);
	memcpy(fakeguest_at(&g, b.gpa + HDR, sizeof ethernet), ethernet, sizeof ethernet);
	fakeguest_add(&g, NET_TX, &b, 1);
	fakeguest_kick(&g, NET_TX);
	cr_assert(fakeguest_wait_used(&g, NET_TX, &head, &len));
	cr_assert_eq(counter_get(CTR_net_tx_packets), 1);
	cr_assert_eq(counter_get(CTR_net_tx_errors), 0);
	p.fd = wire;
	do {
		cr_assert_eq(poll(&p, 1, FAKE_WAIT_MS), 1);
		cr_assert_eq(recv(wire, frame, sizeof frame, 0) >= 18, 1);
	} while (memcmp(frame, ethernet, sizeof ethernet) != 0);
	end();
	cr_assert_eq(if_nametoindex("brim0"), 0, "not persistent");
}

/* A host that has no page for the guest's buffer loses a packet, not the link. */
Test(net, packet_that_cannot_be_read_dropped_link_stays)
{
	uint64_t dropped = counter_get(CTR_net_rx_dropped);
	uint32_t head, len;
	struct fakebuf b = { .len = 4 * PAGE_BYTES, .device_writes = true };
	void *at;

	begin(ALL);
	b.gpa = fakeguest_alloc(&g, b.len, PAGE_BYTES);
	at = fakeguest_at(&g, b.gpa, b.len);
	fakeguest_add(&g, NET_RX, &b, 1);
	fakeguest_kick(&g, NET_RX);
	fakeguest_drain(&g, 10);
	cr_assert_eq(mprotect(at, b.len, PROT_NONE), 0);
	wire_send(NULL, 100);
	fakeguest_drain(&g, 10);
	cr_assert_eq(mprotect(at, b.len, PROT_READ | PROT_WRITE), 0);
	cr_assert_eq(counter_get(CTR_net_rx_dropped), dropped + 1);
	wire_send(NULL, 200);
	cr_assert(fakeguest_wait_used(&g, NET_RX, &head, &len));
	cr_assert_eq(len, HDR + 200);
	cr_assert_eq(fakeguest_read(&g, VIRTIO_PCI_DEVICE + STATUS_OFF, 2), NET_S_LINK_UP);
	end();
}
