/* virtio-net on a socket in a tap's place: what the guest sends, and packets
 * that reach it whatever its ring holds. */
#include <linux/if_tun.h>
#include <net/if.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "tests/lib/fuzzdev.h"
#include "virtio/devices.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define FRAME_BYTES 60
#define PACKET_MAX 80000
#define SEND_MAX 1000
#define TAKE_MAX 256 /* packets of the guest's taken off the wire at once */

static int wire;

static int fake_flags(int fd, unsigned *iff_flags)
{
	*iff_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR;
	return 0;
}

static int fake_set_header_bytes(int fd, int bytes)
{
	return 0;
}

static int fake_set_offload(int fd, unsigned flags)
{
	return 0;
}

static const struct tap_ops tap_fake = {
	.flags = fake_flags,
	.set_header_bytes = fake_set_header_bytes,
	.set_offload = fake_set_offload,
};

static struct virtio_dev *create(const struct virtio_env *env)
{
	struct virtio_net_config cfg = { .vm_name = "fuzz" };
	struct virtio_dev *dev;
	int pair[2];

	VERIFY(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair) == 0);
	wire = pair[0];
	cfg.fd = pair[1];
	VERIFY(virtio_net_create_on(&dev, env, "net0", &cfg, &tap_fake, NULL) == 0);
	close(pair[1]); /* the device has its own */
	return dev;
}

static size_t header(uint64_t random, uint8_t *to)
{
	static const uint8_t gso[] = { NET_GSO_NONE, NET_GSO_NONE, NET_GSO_TCPV4, NET_GSO_TCPV6 };
	struct net_header_le h = { .flags = random & 1,
				   .gso_type = gso[random >> 1 & 3],
				   .hdr_len = random >> 8 & 0xff,
				   .gso_size = random >> 16 & 0xfff,
				   .csum_start = random >> 32 & 0x3ff,
				   .csum_offset = random >> 48 & 0x3f };

	memcpy(to, &h, sizeof(h));
	return sizeof(h) + (random >> 56 & 31);
}

static void close_wire(void)
{
	close(wire);
}

/* So that the device's writes do not find the socket full for ever. */
static void take_packets(void)
{
	uint8_t buf[256];

	for (unsigned left = TAKE_MAX; left > 0; left--)
		if (recv(wire, buf, sizeof(buf), MSG_DONTWAIT) < 0)
			break;
}

/* A packet for the guest, as long as the first two bytes say, for every third
 * input a sound header in front. */
static void poke(struct fakeguest *g, const uint8_t *data, size_t len)
{
	static uint8_t packet[PACKET_MAX];
	size_t bytes = len >= 2 ? data[0] + 256u * data[1] : len;

	take_packets();
	if (bytes == 0)
		return; /* to a socket that is the end of the file */
	memset(packet, 0, sizeof(packet));
	memcpy(packet + (len % 3 ? sizeof(struct net_header_le) : 0), data, len);
	(void)send(wire, packet, bytes, MSG_DONTWAIT);
}

/* Room for the largest packet: what waited in the socket comes first, if it is
 * not dropped for its header. */
static void check_receive(struct fakeguest *g)
{
	static const uint8_t packet[sizeof(struct net_header_le) + FRAME_BYTES];
	struct fakebuf rx = { fakeguest_alloc(g, PACKET_MAX, 1), PACKET_MAX, true };
	uint32_t head, len = 0;
	unsigned left = SEND_MAX;

	fakeguest_add(g, NET_RX, &rx, 1);
	fakeguest_kick(g, NET_RX);
	do {
		(void)send(wire, packet, sizeof(packet), MSG_DONTWAIT);
		fakeguest_turn(g, 1);
	} while (!fakeguest_used(g, NET_RX, &head, &len) && left-- > 0);
	VERIFY(len >= sizeof(struct net_header_le));
}

static void check(struct fakeguest *g)
{
	uint32_t bytes = sizeof(struct net_header_le) + FRAME_BYTES;
	struct fakebuf tx = { fakeguest_alloc(g, bytes, 1), bytes, false };

	take_packets();
	VERIFY(fuzzdev_request(g, NET_TX, &tx, 1) == 0);
	check_receive(g);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static const struct fuzzdev dev = { .create = create, .poke = poke, .header = header,
					    .check = check, .close = close_wire };

	return fuzzdev_run(&dev, data, size);
}
