/* virtio-balloon with everything on, and a host that wants something now and
 * then. */
#include <string.h>

#include "tests/lib/fuzzdev.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { INFLATE, DEFLATE };

static struct virtio_dev *balloon;

static struct virtio_dev *create(const struct virtio_env *env)
{
	static const struct virtio_balloon_config cfg = {
		.deflate_on_oom = true, .reporting = true, .hinting = true, .poison = true,
		.stats_interval_s = 1,
	};

	VERIFY(virtio_balloon_create(&balloon, env, &cfg, NULL) == 0);
	return balloon;
}

static uint64_t ballooned_bytes(void)
{
	struct balloon_guest_stats stats;
	struct balloon_status status;

	virtio_balloon_status(balloon, &status, &stats);
	VERIFY(status.ballooned_bytes <= FAKE_RAM_BYTES);
	VERIFY(status.target_bytes <= FAKE_RAM_BYTES);
	return status.ballooned_bytes;
}

static void poke(struct fakeguest *g, const uint8_t *data, size_t len)
{
	uint64_t v = 0;

	memcpy(&v, data, len < 4 ? len : 4);
	if (v & 1)
		virtio_balloon_hint(balloon);
	else
		virtio_balloon_set_target(balloon, v * PAGE_BYTES);
	ballooned_bytes();
}

/* Frames near each other, so that they meet again; or statistics. */
static size_t header(uint64_t random, uint8_t *to)
{
	uint32_t frames[FUZZDEV_HEADER / 4];
	uint64_t value = random >> 24;
	uint16_t tag = random >> 8 & 0xf;

	if (random & 1) {
		memcpy(to, &tag, 2);
		memcpy(to + 2, &value, 8);
		memcpy(to + 10, &tag, 2);
		return 10 + (random & 2 ? 10 : 0);
	}
	for (unsigned i = 0; i < ARRAY_LEN(frames); i++)
		frames[i] = (uint32_t)(4096 + ((random >> 8) * (i + 1) & 0x3f));
	memcpy(to, frames, sizeof(frames));
	return 4 * (1 + (random >> 1 & 15));
}

/* One page in, and out again. */
static void check(struct fakeguest *g)
{
	struct fakebuf b = { fakeguest_alloc(g, 4, 4), 4, false };
	uint32_t frame = 4096;

	memcpy(fakeguest_at(g, b.gpa, 4), &frame, 4);
	VERIFY(ballooned_bytes() == 0);
	fuzzdev_request(g, INFLATE, &b, 1);
	VERIFY(ballooned_bytes() == PAGE_BYTES);
	fuzzdev_request(g, DEFLATE, &b, 1);
	VERIFY(ballooned_bytes() == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static const struct fuzzdev dev = { .create = create, .poke = poke, .header = header,
					    .check = check };

	return fuzzdev_run(&dev, data, size);
}
