/*
 * virtio-net (virtio 1.2, section 5.1): a network card whose cable is a tap.
 *
 * What lives here: packets from the tap spread over receive chains, packets of
 * the guest checked and written to the tap.
 *
 * Receiving.  A packet is read straight into the first chain, with what does not
 * fit going to a buffer of the device at the very offset it has in the packet:
 *
 *   readv:   [ header ][ first chain, after 12 bytes ][ packet + that many ... ]
 *
 * so small packets are not copied here at all, and the rest of a large one is
 * copied once, to further chains (MRG_RXBUF).  When those run out, the chains go
 * back and the packet is completed in the buffer and waits there (`pending`) for
 * a kick; meanwhile the tap is not read, so that its queue in the kernel, not
 * this file, decides what is dropped.
 *
 * Sending.  A tap that takes no more (EAGAIN) blocks the transmit queue until it
 * is writable.  Rejected: dropping, which costs TCP a retransmission for what is
 * plain back pressure.
 *
 * Threads: the loop thread but for start, reset and the configuration, which are
 * called on vCPU threads; the device's lock covers all of it.
 *
 * Invariants:
 *  I1  A header reaches the tap only as a checked copy; offloads in it are ones
 *      that were negotiated.
 *  I2  The guest gets no offload in a header that it did not negotiate.
 *  I3  A loop turn moves at most NET_TURN packets each way.
 */
#include <endian.h>
#include <errno.h>
#include <linux/if_tun.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

#include "virtio/devices.h"

#define NET_QUEUE 256u
#define NET_TURN 64u
#define NET_MIN_FRAME 14u /* an Ethernet header */
/* 65535 bytes of IP, headers, tags and all; a tap gives and takes no more. */
#define NET_PACKET_MAX (68 * KiB)
#define NET_DIRECT_IOV 64u /* buffers of a chain that is read into directly */
#define NET_TX_IOV 1023u   /* IOV_MAX, less the header */

#define NET_F_GUEST_TSO (BIT(NET_F_GUEST_TSO4) | BIT(NET_F_GUEST_TSO6))
#define NET_F_HOST_TSO (BIT(NET_F_HOST_TSO4) | BIT(NET_F_HOST_TSO6))

struct net {
	struct virtio_dev dev; /* first */

	/* fixed at create */
	const struct tap_ops *tap;
	int fd;

	/* under lock */
	struct net_config_le config;
	bool reading;     /* there are receive buffers, as far as we know */
	bool blocked;     /* the tap took no more: waiting until it is writable */
	unsigned watched; /* events we asked for */

	/* the packet being received */
	struct net_header_le header;
	size_t packet_bytes;
	size_t direct_bytes; /* of it are in the first chain, not in packet[] */
	bool pending;        /* waits in packet[] for want of buffers */
	unsigned used_count;
	struct virtq_used used[VIRTQ_MAX_SIZE]; /* chains it is spread over */

	struct virtq_chain chain; /* first of a packet */
	struct virtq_chain more;  /* its further ones */
	struct iovec iov[1 + NET_TX_IOV];
	uint8_t packet[NET_PACKET_MAX];
};
_Static_assert(NET_DIRECT_IOV + 2 <= 1 + NET_TX_IOV, "receiving uses iov[] too");

static struct net *net_of(struct virtio_dev *dev)
{
	return (struct net *)dev;
}

/* ---- the tap's readiness ------------------------------------------------- */

static void net_tap_ready(struct virtio_dev *dev, unsigned events);

static void net_watch(struct net *n)
{
	unsigned events = (n->reading ? VIRTIO_FD_IN : 0u) | (n->blocked ? VIRTIO_FD_OUT : 0u);

	if (!(n->config.status & NET_S_LINK_UP) || events == n->watched)
		return;
	VERIFY(virtio_watch_fd(&n->dev, n->fd, events, net_tap_ready) == 0);
	n->watched = events;
}

/* The tap is gone (its interface was deleted): the cable is out, for good. */
static void net_unplugged(struct net *n)
{
	if (!(n->config.status & NET_S_LINK_UP))
		return;
	log_warn("%s: the tap is gone, the link is down", n->dev.label);
	n->reading = n->blocked = false;
	n->config.status = 0;
	virtio_unwatch_fd(&n->dev, n->fd);
	virtio_config_changed(&n->dev);
}

/* ---- receiving ----------------------------------------------------------- */

enum rx {
	RX_PACKET,  /* one has been read */
	RX_MORE,    /* go on */
	RX_EMPTY,   /* nothing to receive */
	RX_STARVED, /* nowhere to put it */
	RX_STOP,
};

static enum rx rx_drop(void)
{
	counter_inc(CTR_net_rx_dropped);
	return RX_MORE;
}

/* Reads a packet, its first direct_bytes into n->chain and what is beyond them
 * to the same offset in n->packet.  Returns readv()'s result, or -errno. */
static ssize_t rx_read(struct net *n)
{
	uint64_t room = n->chain.in_bytes - sizeof n->header;
	struct iovec *iov = n->iov;
	ssize_t got;
	int count;

	if (room > NET_PACKET_MAX)
		room = NET_PACKET_MAX;
	iov[0].iov_base = &n->header;
	iov[0].iov_len = sizeof n->header;
	count = iov_slice(&iov[1], NET_DIRECT_IOV, n->chain.in, n->chain.in_count,
			  sizeof n->header, room);
	if (count < 0) { /* in crumbs: not worth it */
		count = 0;
		room = 0;
	}
	iov[1 + count].iov_base = n->packet + room;
	iov[1 + count].iov_len = NET_PACKET_MAX - room;
	n->direct_bytes = room;
	got = readv(n->fd, iov, count + 2);
	return got < 0 ? -errno : got;
}

/* A packet may have waited in the tap since another driver, which could do more,
 * was running (I2). */
static bool rx_header_ok(const struct net *n)
{
	const struct virtio_dev *dev = &n->dev;

	if ((n->header.flags & NET_HDR_NEEDS_CSUM) != 0 && !virtio_has(dev, BIT(NET_F_GUEST_CSUM)))
		return false;
	switch (n->header.gso_type) {
	case NET_GSO_NONE:
		return true;
	case NET_GSO_TCPV4:
		return virtio_has(dev, BIT(NET_F_GUEST_TSO4));
	case NET_GSO_TCPV6:
		return virtio_has(dev, BIT(NET_F_GUEST_TSO6));
	default:
		return false;
	}
}

/* Gives the packet's chains back: the packet does not fit what there is. */
static void rx_unpop(struct net *n)
{
	while (n->used_count > 0) {
		virtq_unpop(&n->dev.queues[NET_RX]);
		n->used_count--;
	}
}

/* Completes n->packet with the bytes that went to the first chain. */
static void rx_keep(struct net *n)
{
	size_t at = 0;

	for (unsigned i = 1; at < n->direct_bytes; i++) {
		memcpy(n->packet + at, n->iov[i].iov_base, n->iov[i].iov_len);
		at += n->iov[i].iov_len;
	}
	VERIFY(at == n->direct_bytes);
	n->direct_bytes = 0;
	n->pending = true;
}

static void rx_use(struct net *n, uint16_t head, size_t bytes)
{
	VERIFY(n->used_count < VIRTQ_MAX_SIZE);
	n->used[n->used_count].head = head;
	n->used[n->used_count++].written_bytes = (uint32_t)bytes;
}

/* Puts the packet from byte `placed` on into further chains.  1: all of it is
 * placed; 0: no more chains; -EPROTO: the ring is broken. */
static int rx_spread(struct net *n, size_t placed)
{
	while (placed < n->packet_bytes) {
		int got = virtq_pop(&n->dev.queues[NET_RX], &n->more);
		size_t take;

		if (got <= 0)
			return got;
		take = virtq_copy_in(&n->more, 0, n->packet + placed, n->packet_bytes - placed);
		rx_use(n, n->more.head, take);
		placed += take;
	}
	return 1;
}

static void rx_deliver(struct net *n)
{
	struct virtq *q = &n->dev.queues[NET_RX];

	if (!virtio_has(&n->dev, BIT(NET_F_GUEST_CSUM)))
		n->header.flags = 0; /* 5.1.6.4.1 */
	n->header.num_buffers = htole16((uint16_t)n->used_count);
	virtq_copy_in(&n->chain, 0, &n->header, sizeof n->header);
	virtq_push_all(q, n->used, n->used_count);
	n->used_count = 0;
	n->pending = false;
	counter_inc(CTR_net_rx_packets);
	counter_add(CTR_net_rx_bytes, n->packet_bytes);
}

static enum rx rx_too_large(struct net *n)
{
	rx_unpop(n);
	n->pending = false;
	return rx_drop();
}

/* The packet is read, `placed` bytes of it are in the first chain already. */
static enum rx rx_place(struct net *n, size_t placed)
{
	int rc;

	n->used_count = 0;
	rx_use(n, n->chain.head, sizeof n->header + placed);
	if (placed < n->packet_bytes && !virtio_has(&n->dev, BIT(NET_F_MRG_RXBUF)))
		return rx_too_large(n);
	rc = rx_spread(n, placed);
	if (rc < 0)
		return RX_STOP;
	if (rc > 0) {
		rx_deliver(n);
		return RX_MORE;
	}
	if (n->used_count == n->dev.queues[NET_RX].size)
		return rx_too_large(n); /* for the whole ring */
	rx_keep(n);
	rx_unpop(n);
	return RX_STARVED;
}

/* Reads the next packet into n->chain and n->packet. */
static enum rx rx_fetch(struct net *n)
{
	ssize_t got = rx_read(n);

	if (got == -EAGAIN || got == -EINTR)
		return RX_EMPTY;
	/* This one packet: no memory for a page of the guest's, or a kind of offload
	 * that fits no header.  The tap has dropped it. */
	if (got == -EFAULT || got == -ENOMEM || got == -EINVAL || got == -ENOBUFS)
		return rx_drop();
	if (got <= 0) {
		net_unplugged(n);
		return RX_STOP;
	}
	if (got < (ssize_t)sizeof n->header || !rx_header_ok(n))
		return rx_drop();
	n->packet_bytes = (size_t)got - sizeof n->header;
	if (n->direct_bytes > n->packet_bytes)
		n->direct_bytes = n->packet_bytes;
	return RX_PACKET;
}

/* One packet, from the tap or the one that waits. */
static enum rx rx_packet(struct net *n)
{
	struct virtq *q = &n->dev.queues[NET_RX];
	int got = virtq_pop(q, &n->chain);
	size_t placed;
	enum rx rc;

	if (got <= 0)
		return got < 0 ? RX_STOP : RX_STARVED;
	if (n->chain.in_bytes < sizeof n->header) {
		counter_inc(CTR_net_bad_request);
		virtq_push(q, n->chain.head, 0);
		return RX_MORE;
	}
	rc = n->pending ? RX_PACKET : rx_fetch(n);
	if (rc != RX_PACKET) {
		virtq_unpop(q);
		return rc;
	}
	placed = n->direct_bytes;
	if (placed == 0)
		placed = virtq_copy_in(&n->chain, sizeof n->header, n->packet, n->packet_bytes);
	return rx_place(n, placed);
}

/* Until the tap is empty (then its fd wakes us), buffers are wanting (then a
 * kick does), or the turn's share is used up (the fd again). */
static void net_receive(struct net *n)
{
	struct virtq *q = &n->dev.queues[NET_RX];
	bool asked = false; /* for a kick, since the last packet */
	unsigned budget = NET_TURN;
	enum rx rc = RX_MORE;

	virtq_kicks_off(q);
	while (budget > 0 && rc == RX_MORE) {
		rc = rx_packet(n);
		budget--;
		if (rc == RX_STARVED && !asked) {
			/* Once more: they may have come before the driver saw it.
			 * virtq_kicks_on()'s answer does not tell, it is also true
			 * for the chains that were too few. */
			virtq_kicks_on(q);
			asked = true;
			rc = RX_MORE;
		} else {
			asked = false;
		}
	}
	n->reading = (rc == RX_MORE || rc == RX_EMPTY) && (n->config.status & NET_S_LINK_UP) != 0;
	virtq_notify(q);
}

/* ---- sending ------------------------------------------------------------- */

/* Checks the copy of a header for a frame of `frame_bytes`, and clears what the
 * driver has no business to set or the tap none to see (5.1.6.2). */
static bool tx_header_ok(const struct virtio_dev *dev, struct net_header_le *h,
			 uint64_t frame_bytes)
{
	bool csum;

	h->flags &= NET_HDR_NEEDS_CSUM;
	h->num_buffers = 0;
	if (le16toh(h->hdr_len) > frame_bytes)
		h->hdr_len = htole16((uint16_t)frame_bytes); /* a hint, no more */
	csum = h->flags != 0;
	if (csum && (!virtio_has(dev, BIT(NET_F_CSUM)) ||
		     le16toh(h->csum_start) + le16toh(h->csum_offset) + 2u > frame_bytes))
		return false;
	if (!csum)
		h->csum_start = h->csum_offset = 0;
	switch (h->gso_type) {
	case NET_GSO_NONE:
		h->gso_size = 0;
		return true;
	case NET_GSO_TCPV4:
		return csum && h->gso_size != 0 && virtio_has(dev, BIT(NET_F_HOST_TSO4));
	case NET_GSO_TCPV6:
		return csum && h->gso_size != 0 && virtio_has(dev, BIT(NET_F_HOST_TSO6));
	default: /* HOST_ECN, HOST_UFO and HOST_USO are not offered */
		return false;
	}
}

/* n->chain as header copy and buffers in n->iov.  Returns the entries used, 0
 * when the chain is refused. */
static unsigned tx_parse(struct net *n, struct net_header_le *h)
{
	const struct virtq_chain *c = &n->chain;
	uint64_t frame_bytes;
	int count;

	if (virtq_copy_out(c, 0, h, sizeof *h) != sizeof *h)
		return 0;
	frame_bytes = c->out_bytes - sizeof *h;
	if (frame_bytes < NET_MIN_FRAME || frame_bytes > NET_PACKET_MAX)
		return 0;
	if (!tx_header_ok(&n->dev, h, frame_bytes))
		return 0;
	n->iov[0] = (struct iovec){ h, sizeof *h };
	count = iov_slice(&n->iov[1], NET_TX_IOV, c->out, c->out_count, sizeof *h, frame_bytes);
	return count < 0 ? 0 : 1 + (unsigned)count;
}

/* Sends n->chain; false: the tap is full, the chain is still ours. */
static bool tx_packet(struct net *n)
{
	struct net_header_le header;
	unsigned count = tx_parse(n, &header);
	ssize_t sent;

	if (count == 0) {
		counter_inc(CTR_net_bad_request);
		return true;
	}
	sent = writev(n->fd, n->iov, (int)count);
	if (sent < 0 && (errno == EAGAIN || errno == EINTR))
		return false;
	if (sent < 0) {
		counter_inc(CTR_net_tx_errors); /* the interface may be down */
		return true;
	}
	counter_inc(CTR_net_tx_packets);
	counter_add(CTR_net_tx_bytes, n->chain.out_bytes - sizeof header);
	return true;
}

/* Until there is nothing to send, the tap is full (then its fd wakes us), or the
 * turn's share is used up. */
static void net_transmit(struct net *n)
{
	struct virtq *q = &n->dev.queues[NET_TX];
	unsigned budget = NET_TURN;

	virtq_kicks_off(q);
	while (!n->blocked) {
		int got = virtq_pop(q, &n->chain);

		if (got < 0 || (got == 0 && !virtq_kicks_on(q)))
			break;
		if (got > 0 && !tx_packet(n)) {
			virtq_unpop(q);
			n->blocked = (n->config.status & NET_S_LINK_UP) != 0;
			break;
		}
		if (got > 0)
			virtq_push(q, n->chain.head, 0);
		if (--budget == 0) {
			virtio_requeue(&n->dev, NET_TX);
			break;
		}
	}
	virtq_notify(q);
}

/* ---- ops ----------------------------------------------------------------- */

static void net_tap_ready(struct virtio_dev *dev, unsigned events)
{
	struct net *n = net_of(dev);

	ASSERT_ROLE(ROLE_LOOP);
	if ((events & ~(unsigned)(VIRTIO_FD_IN | VIRTIO_FD_OUT)) != 0)
		net_unplugged(n);
	if (!virtio_running(dev))
		n->reading = n->blocked = false;
	if (n->reading && (events & VIRTIO_FD_IN) != 0)
		net_receive(n);
	if (n->blocked && (events & VIRTIO_FD_OUT) != 0) {
		n->blocked = false;
		net_transmit(n);
	}
	net_watch(n);
}

static void net_queue_ready(struct virtio_dev *dev, unsigned qi)
{
	struct net *n = net_of(dev);

	ASSERT_ROLE(ROLE_LOOP);
	if (qi == NET_RX && (n->config.status & NET_S_LINK_UP) != 0)
		net_receive(n);
	if (qi == NET_TX && !n->blocked)
		net_transmit(n);
	net_watch(n);
}

static void net_config_read(struct virtio_dev *dev, uint32_t off, void *buf, uint32_t len)
{
	memcpy(buf, (const uint8_t *)&net_of(dev)->config + off, len);
}

static void net_config_write(struct virtio_dev *dev, uint32_t off, const void *buf, uint32_t len)
{
	counter_inc(CTR_virtio_bad_access); /* 5.1.4: read-only for a modern driver */
}

/* Section 5.1.3.1: what needs what. */
static bool net_features_ok(struct virtio_dev *dev, uint64_t features)
{
	bool rx_ok = !(features & NET_F_GUEST_TSO) || (features & BIT(NET_F_GUEST_CSUM));
	bool tx_ok = !(features & NET_F_HOST_TSO) || (features & BIT(NET_F_CSUM));

	return rx_ok && tx_ok;
}

/* The kernel may hand us packets as unfinished as the guest can take them. */
static void net_start(struct virtio_dev *dev)
{
	struct net *n = net_of(dev);
	unsigned offload = 0;
	int rc;

	if (virtio_has(dev, BIT(NET_F_GUEST_CSUM)))
		offload |= TUN_F_CSUM;
	if (virtio_has(dev, BIT(NET_F_GUEST_TSO4)))
		offload |= TUN_F_TSO4;
	if (virtio_has(dev, BIT(NET_F_GUEST_TSO6)))
		offload |= TUN_F_TSO6;
	rc = n->tap->set_offload(n->fd, offload);
	if (rc < 0)
		log_guest("%s: setting offloads: %s", dev->label, strerror(-rc));
}

/* Everything is synchronous: nothing is in flight.  The loop stops watching the
 * tap when it next hears of it. */
static int net_reset(struct virtio_dev *dev)
{
	struct net *n = net_of(dev);

	n->pending = n->reading = n->blocked = false;
	return 0;
}

/* Accepts what virtio_net_create_on() left half-built. */
static void net_destroy(struct virtio_dev *dev)
{
	struct net *n = net_of(dev);

	virtio_dev_fini(dev); /* unwatches fd: before that is closed */
	if (n->fd >= 0)
		close(n->fd);
	free(n);
}

static const struct virtio_dev_ops net_ops = {
	.name = "virtio-net",
	.type = 1,
	.class = 0x020000, /* network, Ethernet */
	.config_read = net_config_read,
	.config_write = net_config_write,
	.features_ok = net_features_ok,
	.start = net_start,
	.queue_ready = net_queue_ready,
	.reset = net_reset,
	.destroy = net_destroy,
};

/* ---- create --------------------------------------------------------------- */

/* The operator's address, or one of our own that stays the same for a VM's name
 * and a label: locally administered, unicast. */
static int net_mac(struct net *n, const struct virtio_net_config *cfg, struct err *e)
{
	static const uint8_t unset[6];
	const char *vm = cfg->vm_name != NULL ? cfg->vm_name : "";
	uint64_t hash;

	if (memcmp(cfg->mac, unset, sizeof unset) != 0) {
		if (cfg->mac[0] & 1)
			return err_set(e, -EINVAL, "%s: the MAC address %02x:%02x:%02x:%02x:%02x:%02x "
				       "is a multicast address", n->dev.label, cfg->mac[0],
				       cfg->mac[1], cfg->mac[2], cfg->mac[3], cfg->mac[4],
				       cfg->mac[5]);
		memcpy(n->config.mac, cfg->mac, sizeof n->config.mac);
		return 0;
	}
	hash = fnv1a(FNV1A_START, vm, strlen(vm) + 1); /* its end is part of it */
	hash = fnv1a(hash, n->dev.label, strlen(n->dev.label));
	hash ^= hash >> 48; /* all 64 bits count */
	memcpy(n->config.mac, &hash, sizeof n->config.mac);
	n->config.mac[0] = (uint8_t)((n->config.mac[0] & 0xfc) | 0x02);
	return 0;
}

int virtio_net_create_on(struct virtio_dev **out, const struct virtio_env *env,
			 const char *label, const struct virtio_net_config *cfg,
			 const struct tap_ops *tap, struct err *e)
{
	struct net *n = calloc(1, sizeof *n);
	int rc;

	if (n == NULL)
		return err_sys(e, -ENOMEM, "%s", label);
	virtio_dev_init(&n->dev, &net_ops, env, label, 2, NET_QUEUE);
	n->dev.features_offered = BIT(NET_F_CSUM) | BIT(NET_F_GUEST_CSUM) | BIT(NET_F_MAC) |
				  NET_F_GUEST_TSO | NET_F_HOST_TSO | BIT(NET_F_MRG_RXBUF) |
				  BIT(NET_F_STATUS);
	n->dev.config_bytes = sizeof n->config;
	n->config.status = htole16(NET_S_LINK_UP);
	n->tap = tap;
	n->fd = -1;

	rc = net_mac(n, cfg, e);
	if (rc == 0) {
		n->fd = tap_open(tap, label, cfg, e);
		rc = n->fd < 0 ? n->fd : 0;
	}
	if (rc == 0) {
		rc = virtio_watch_fd(&n->dev, n->fd, 0, net_tap_ready);
		if (rc < 0)
			err_sys(e, rc, "%s: watching the tap", label);
	}
	if (rc == 0)
		*out = &n->dev;
	else
		net_destroy(&n->dev);
	return rc;
}

int virtio_net_create(struct virtio_dev **out, const struct virtio_env *env,
		      const char *label, const struct virtio_net_config *cfg, struct err *e)
{
	return virtio_net_create_on(out, env, label, cfg, &tap_linux, e);
}
