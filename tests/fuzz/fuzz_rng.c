/* virtio-rng behind its queue. */
#include "tests/lib/fuzzdev.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static struct virtio_dev *create(const struct virtio_env *env)
{
	struct virtio_dev *dev;

	VERIFY(virtio_rng_create(&dev, env, NULL) == 0);
	return dev;
}

static void check(struct fakeguest *g)
{
	struct fakebuf b = { fakeguest_alloc(g, 64, 1), 64, true };

	VERIFY(fuzzdev_request(g, 0, &b, 1) == 64);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static const struct fuzzdev dev = { .create = create, .check = check };

	return fuzzdev_run(&dev, data, size);
}
