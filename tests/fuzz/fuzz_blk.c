/* virtio-blk on an image in memory. */
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "tests/lib/fuzzdev.h"
#include "virtio/devices.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define IMAGE_BYTES MiB

static int image_fd;

static struct virtio_dev *create(const struct virtio_env *env)
{
	struct virtio_blk_config cfg = { 0 };
	struct virtio_dev *dev;
	char path[64];

	image_fd = memfd_create("brim-fuzz-blk", MFD_CLOEXEC);
	VERIFY(image_fd >= 0 && ftruncate(image_fd, IMAGE_BYTES) == 0);
	snprintf(path, sizeof(path), "/proc/self/fd/%d", image_fd);
	cfg.path = path;
	VERIFY(virtio_blk_create(&dev, env, "disk0", &cfg, NULL) == 0);
	return dev;
}

static void close_image(void)
{
	close(image_fd);
}

/* A header; for types with ranges, one that may be in the disk. */
static size_t header(uint64_t random, uint8_t *to)
{
	static const uint32_t types[] = { 0, 1, 4, 8, 11, 13 };
	struct blk_header_le h = { .type = types[random % ARRAY_LEN(types)],
				   .sector = random >> 8 & 0xfff };
	struct blk_range_le range = { .sector = random >> 20 & 0xfff,
				      .num_sectors = random >> 32 & 0x7ff,
				      .flags = random >> 48 & 1 };
	bool ranges = h.type == 11 || h.type == 13;

	memcpy(to, &h, sizeof(h));
	memcpy(to + sizeof(h), &range, sizeof(range));
	return sizeof(h) + (ranges ? sizeof(range) : 0);
}

/* Reads the first sector. */
static void check(struct fakeguest *g)
{
	struct fakebuf b[] = { { fakeguest_alloc(g, 16, 16), 16, false },
			       { fakeguest_alloc(g, 512, 16), 512, true },
			       { fakeguest_alloc(g, 1, 16), 1, true } };
	uint8_t *status = fakeguest_at(g, b[2].gpa, 1);

	*status = 0xff;
	VERIFY(fuzzdev_request(g, 0, b, 3) == 513);
	VERIFY(*status == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static const struct fuzzdev dev = { .create = create, .header = header,
					    .check = check, .close = close_image };

	return fuzzdev_run(&dev, data, size);
}
