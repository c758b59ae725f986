/* virtio-console: output the guest makes, input it did not ask for. */
#include <string.h>

#include "tests/lib/fuzzdev.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static struct virtio_dev *console;
static uint8_t typed[4096]; /* not yet taken */
static size_t typed_bytes;
static size_t out_bytes;

static void on_out(void *opaque, const void *buf, size_t len)
{
	out_bytes += len;
}

static void offer(void)
{
	size_t n = virtio_console_input(console, typed, typed_bytes);

	VERIFY(n <= typed_bytes);
	typed_bytes -= n;
	memmove(typed, typed + n, typed_bytes);
}

static void on_ready(void *opaque)
{
	offer();
}

static struct virtio_dev *create(const struct virtio_env *env)
{
	struct virtio_console_config cfg = { .out = on_out, .ready = on_ready };

	typed_bytes = 0;
	VERIFY(virtio_console_create(&console, env, &cfg, NULL) == 0);
	return console;
}

static void poke(struct fakeguest *g, const uint8_t *data, size_t len)
{
	if (len > sizeof(typed) - typed_bytes)
		len = sizeof(typed) - typed_bytes;
	memcpy(typed + typed_bytes, data, len);
	typed_bytes += len;
	offer();
}

static void check(struct fakeguest *g)
{
	struct fakebuf in = { fakeguest_alloc(g, 8, 1), 8, true };
	struct fakebuf out = { fakeguest_alloc(g, 8, 1), 8, false };

	out_bytes = 0;
	VERIFY(fuzzdev_request(g, 1, &out, 1) == 0);
	VERIFY(out_bytes == 8);
	poke(g, (const uint8_t *)"x", 1);
	VERIFY(fuzzdev_request(g, 0, &in, 1) > 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static const struct fuzzdev dev = { .create = create, .poke = poke, .check = check };

	return fuzzdev_run(&dev, data, size);
}
