/*
 * What blk.c, image.c, net.c and tap.c share among themselves and with their
 * tests: the formats of virtio 1.2, sections 5.1 and 5.2, a disk's image, a tap.
 */
#ifndef BRIM_VIRTIO_DEVICES_H
#define BRIM_VIRTIO_DEVICES_H

#include "virtio/virtio.h"

#define BIT(n) (1ull << (n))

/* ---- section 5.2 --------------------------------------------------------- */

enum {
	BLK_F_SEG_MAX = 2,
	BLK_F_RO = 5,
	BLK_F_BLK_SIZE = 6,
	BLK_F_FLUSH = 9,
	BLK_F_TOPOLOGY = 10,
	BLK_F_DISCARD = 13,
	BLK_F_WRITE_ZEROES = 14,
};

enum {
	BLK_T_IN = 0,
	BLK_T_OUT = 1,
	BLK_T_FLUSH = 4,
	BLK_T_GET_ID = 8,
	BLK_T_DISCARD = 11,
	BLK_T_WRITE_ZEROES = 13,
};

enum { BLK_S_OK = 0, BLK_S_IOERR = 1, BLK_S_UNSUPP = 2 };

#define BLK_SECTOR 512u
#define BLK_ID_BYTES 20u
#define BLK_RANGE_UNMAP 1u

/* The configuration space as far as brim has it. */
struct blk_config_le {
	uint64_t capacity; /* sectors */
	uint32_t size_max, seg_max;
	uint16_t cylinders;
	uint8_t heads, geometry_sectors;
	uint32_t blk_size;
	uint8_t physical_block_exp, alignment_offset;
	uint16_t min_io_size; /* blocks */
	uint32_t opt_io_size;
	uint8_t writeback, unused0;
	uint16_t num_queues;
	uint32_t max_discard_sectors, max_discard_seg, discard_sector_alignment;
	uint32_t max_write_zeroes_sectors, max_write_zeroes_seg;
	uint8_t write_zeroes_may_unmap, unused1[3];
} __attribute__((packed));
_Static_assert(sizeof(struct blk_config_le) == 60, "section 5.2.4");

struct blk_header_le {
	uint32_t type, reserved;
	uint64_t sector;
};

struct blk_range_le {
	uint64_t sector;
	uint32_t num_sectors, flags;
};

/* ---- section 5.1 --------------------------------------------------------- */

enum {
	NET_F_CSUM = 0,
	NET_F_GUEST_CSUM = 1,
	NET_F_MAC = 5,
	NET_F_GUEST_TSO4 = 7,
	NET_F_GUEST_TSO6 = 8,
	NET_F_HOST_TSO4 = 11,
	NET_F_HOST_TSO6 = 12,
	NET_F_MRG_RXBUF = 15,
	NET_F_STATUS = 16,
};

enum { NET_RX = 0, NET_TX = 1 }; /* queues */

#define NET_S_LINK_UP 1u
#define NET_HDR_NEEDS_CSUM 1u /* flags */
#define NET_GSO_NONE 0u       /* gso_type */
#define NET_GSO_TCPV4 1u
#define NET_GSO_TCPV6 4u

struct net_config_le {
	uint8_t mac[6];
	uint16_t status;
};

struct net_header_le {
	uint8_t flags, gso_type;
	uint16_t hdr_len, gso_size, csum_start, csum_offset, num_buffers;
};
_Static_assert(sizeof(struct net_header_le) == 12, "section 5.1.6");

/* ---- image.c ------------------------------------------------------------- */

/* An open and locked disk image.  Owner: the device it is part of. */
struct image {
	int fd;        /* holds the lock */
	int direct_fd; /* the same file with O_DIRECT; -1: none */
	bool readonly;
	uint32_t mem_align, offset_align;     /* what direct_fd wants */
	uint32_t block_bytes, physical_bytes; /* logical and physical block */
	uint64_t sectors;                     /* of BLK_SECTOR bytes */
	char id[BLK_ID_BYTES];                /* padded with NUL, not ended by one */
};

/* Opens and locks.  May block; start-up only.  -EBUSY: another VM, or the host,
 * uses it; -EINVAL: not a disk; else what open() said. */
int image_open(struct image *im, const char *label, const struct virtio_blk_config *cfg,
	       struct err *e);
/* Accepts what a failed image_open() left. */
void image_close(struct image *im);

/* ---- small helpers -------------------------------------------------------- */

/* Describes the bytes [skip, skip + len) of `from` in `to`.  Returns the entries
 * written, or -1 when that takes more than `max`; a `from` that is too short
 * gives what there is. */
static inline int iov_slice(struct iovec *to, unsigned max, const struct iovec *from,
			    unsigned count, uint64_t skip, uint64_t len)
{
	unsigned n = 0;

	for (unsigned i = 0; i < count && len > 0; i++) {
		uint64_t have = from[i].iov_len;
		uint64_t take;

		if (skip >= have) {
			skip -= have;
			continue;
		}
		if (n == max)
			return -1;
		take = have - skip < len ? have - skip : len;
		to[n].iov_base = (uint8_t *)from[i].iov_base + skip;
		to[n++].iov_len = take;
		skip = 0;
		len -= take;
	}
	return (int)n;
}

/* FNV-1a, 64 bits: names to numbers that stay the same from run to run. Start
 * with FNV1A_START; several strings are hashed one after the other. */
#define FNV1A_START 0xcbf29ce484222325ull

static inline uint64_t fnv1a(uint64_t hash, const void *data, size_t len)
{
	const uint8_t *p = data;

	while (len-- > 0)
		hash = (hash ^ *p++) * 0x100000001b3ull;
	return hash;
}

/* ---- tap.c --------------------------------------------------------------- */

/* What a tap is asked for beyond reading and writing it: a table, so that tests
 * can put a socket in a tap's place.  All return 0 (open: the fd) or -errno. */
struct tap_ops {
	int (*open)(void);
	int (*attach)(int fd, const char *name); /* makes it where there is none */
	int (*flags)(int fd, unsigned *iff_flags);
	int (*set_header_bytes)(int fd, int bytes);
	int (*set_offload)(int fd, unsigned tun_f_flags);
	int (*set_up)(const char *name);
};
extern const struct tap_ops tap_linux;

/* Opens the tap of cfg, or duplicates cfg->fd, which stays the caller's: the fd
 * does not block and has headers of struct net_header_le.  Else -errno. */
int tap_open(const struct tap_ops *ops, const char *label,
	     const struct virtio_net_config *cfg, struct err *e);

/* ---- net.c --------------------------------------------------------------- */

/* virtio_net_create() on other ops. */
int virtio_net_create_on(struct virtio_dev **out, const struct virtio_env *env,
			 const char *label, const struct virtio_net_config *cfg,
			 const struct tap_ops *tap, struct err *e);

#endif
