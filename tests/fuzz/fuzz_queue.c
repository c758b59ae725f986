/*
 * Rings and registers alone, on a device that echoes.  Its reset can be held up,
 * as that of a disk with requests in flight.
 */
#include "tests/lib/fuzzdev.h"
#include "tests/lib/testdev.h"
#include "virtio/internal.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static struct testdev *t;

static struct virtio_dev *create(const struct virtio_env *env)
{
	t = testdev_create(env, 3, 128);
	t->echo = true;
	return &t->dev;
}

static void end_reset(void)
{
	virtio_lock(&t->dev);
	if (t->dev.resetting)
		virtio_reset_done(&t->dev);
	virtio_unlock(&t->dev);
}

static void poke(struct fakeguest *g, const uint8_t *data, size_t len)
{
	uint8_t what = len > 0 ? data[0] : 0;

	t->slow_reset = (what & 1) != 0;
	t->refuse = (what & 2) != 0;
	if (what & 4)
		end_reset();
	if (what & 8) {
		virtio_lock(&t->dev);
		virtio_config_changed(&t->dev);
		virtio_unlock(&t->dev);
	}
}

static void settle(struct fakeguest *g)
{
	t->slow_reset = false;
	t->refuse = false;
	end_reset();
}

static void check(struct fakeguest *g)
{
	struct fakebuf b[] = { { fakeguest_alloc(g, 8, 1), 8, false },
			       { fakeguest_alloc(g, 8, 1), 8, true } };

	VERIFY(fuzzdev_request(g, 1, b, 2) == 8);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static const struct fuzzdev dev = { .create = create, .poke = poke, .settle = settle,
					    .check = check };

	return fuzzdev_run(&dev, data, size);
}
