/*
 * virtio-console (virtio 1.2, section 5.3): port 0 alone, hvc0 in the guest.
 *
 * Output: a chain may be as long as 4 GiB, so it is taken in pieces of at most
 * CONSOLE_TURN_BYTES each turn of the loop, and the chain under way is kept.
 * Each piece is copied before it is handed on: whoever takes it looks at bytes
 * the guest can no longer change.
 *
 * Input: offered by the owner, put into whatever buffers are there.  When there
 * were too few, ready() is called once the guest gave more.  It may call
 * virtio_console_input() at once: it runs with the lock held, which
 * `in_ready` tells.
 *
 * Threads: loop, under the device's lock; reset from vCPU threads.
 *
 * Invariants:
 *  I1  Bytes the guest wrote are handed on in order, each once, unless a reset
 *      comes between.
 *  I2  After reset the chain under way is forgotten.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "virtio/internal.h"

#define CONSOLE_QUEUE_SIZE 128
#define CONSOLE_TURN_BYTES ((size_t)(64 * KiB))
#define CONSOLE_TURN_CHAINS 128 /* each way */
#define CONSOLE_PIECE_BYTES 4096

enum { CONSOLE_RX, CONSOLE_TX }; /* section 5.3.2: queue numbers of port 0 */

struct console {
	struct virtio_dev dev;

	/* fixed at create */
	struct virtio_console_config cfg;

	/* loop thread */
	bool in_ready; /* inside cfg.ready(), with the lock held */

	/* under lock */
	bool starved;  /* input was offered for which there was no buffer */
	bool tx_busy;  /* tx is under way: tx_off bytes of it are handed on */
	size_t tx_off;
	struct virtq_chain tx, rx; /* too large for a stack */
};

static struct console *console_of(struct virtio_dev *dev)
{
	return (struct console *)(void *)((uint8_t *)dev - offsetof(struct console, dev));
}

/* ---- output -------------------------------------------------------------- */

/* True when there is a chain under way. */
static bool take_output(struct console *c)
{
	if (c->tx_busy)
		return true;
	c->tx_busy = virtq_pop(&c->dev.queues[CONSOLE_TX], &c->tx) > 0;
	c->tx_off = 0;
	return c->tx_busy;
}

static size_t hand_on(struct console *c, size_t most)
{
	uint8_t piece[CONSOLE_PIECE_BYTES];
	size_t done = 0;

	while (done < most) {
		size_t want = most - done < sizeof(piece) ? most - done : sizeof(piece);
		size_t n = virtq_copy_out(&c->tx, c->tx_off, piece, want);

		if (n == 0)
			break;
		c->cfg.out(c->cfg.opaque, piece, n);
		c->tx_off += n;
		done += n;
	}
	counter_add(CTR_vcon_out_bytes, done);
	return done;
}

static void output_ready(struct console *c)
{
	struct virtq *q = &c->dev.queues[CONSOLE_TX];
	size_t left = CONSOLE_TURN_BYTES;
	unsigned chains = CONSOLE_TURN_CHAINS;

	virtq_kicks_off(q);
	while (left > 0 && chains > 0 && take_output(c)) {
		left -= hand_on(c, left);
		if (c->tx_off < c->tx.out_bytes)
			break;
		virtq_push(q, c->tx.head, 0);
		c->tx_busy = false;
		chains--;
	}
	virtq_notify(q);
	if (virtq_kicks_on(q) || c->tx_busy)
		virtio_requeue(&c->dev, CONSOLE_TX);
}

/* ---- input --------------------------------------------------------------- */

/* Bytes taken: all, unless buffers run out.  Chains are counted too: empty ones
 * take nothing, and a guest can make them as fast as they are taken here. */
static size_t give_input(struct console *c, const uint8_t *buf, size_t len)
{
	struct virtq *q = &c->dev.queues[CONSOLE_RX];
	unsigned chains = CONSOLE_TURN_CHAINS;
	size_t done = 0;

	while (done < len && chains > 0 && virtq_pop(q, &c->rx) > 0) {
		size_t n = virtq_copy_in(&c->rx, 0, buf + done, len - done);

		virtq_push(q, c->rx.head, (uint32_t)n);
		done += n;
		chains--;
	}
	virtq_notify(q);
	counter_add(CTR_vcon_in_bytes, done);
	return done;
}

size_t virtio_console_input(struct virtio_dev *dev, const void *buf, size_t len)
{
	struct console *c = console_of(dev);
	struct virtq *q = &dev->queues[CONSOLE_RX];
	bool nested = c->in_ready;
	size_t done;

	ASSERT_ROLE(ROLE_LOOP);
	if (!nested)
		virtio_lock(dev);
	done = give_input(c, buf, len);
	c->starved = done < len;
	/* a buffer that came before kicks were on brings none */
	if (c->starved && virtq_kicks_on(q))
		virtio_requeue(dev, CONSOLE_RX);
	if (!nested)
		virtio_unlock(dev);
	return done;
}

static void input_ready(struct console *c)
{
	if (!c->starved) {
		/* nothing waits: buffers stay in the ring till there is input */
		virtq_kicks_off(&c->dev.queues[CONSOLE_RX]);
		return;
	}
	c->starved = false;
	if (c->cfg.ready == NULL)
		return;
	c->in_ready = true;
	c->cfg.ready(c->cfg.opaque);
	c->in_ready = false;
}

/* ---- the device ---------------------------------------------------------- */

static void console_queue_ready(struct virtio_dev *dev, unsigned qi)
{
	struct console *c = console_of(dev);

	if (qi == CONSOLE_TX)
		output_ready(c);
	else
		input_ready(c);
}

static int console_reset(struct virtio_dev *dev)
{
	struct console *c = console_of(dev);

	c->tx_busy = false;
	return 0;
}

/* Size, number of ports, emergency write: each is of a feature not offered. The
 * space exists all the same: older drivers refuse a console without one. */
#define CONSOLE_CONFIG_BYTES 12

static void console_config_read(struct virtio_dev *dev, uint32_t off, void *buf, uint32_t len)
{
	memset(buf, 0, len);
}

static void console_destroy(struct virtio_dev *dev)
{
	struct console *c = console_of(dev);

	virtio_dev_fini(dev);
	free(c);
}

static const struct virtio_dev_ops console_ops = {
	.name = "virtio-console",
	.type = 3,
	.class = 0x078000, /* communication controller, other */
	.config_read = console_config_read,
	.queue_ready = console_queue_ready,
	.reset = console_reset,
	.destroy = console_destroy,
};

int virtio_console_create(struct virtio_dev **out, const struct virtio_env *env,
			  const struct virtio_console_config *cfg, struct err *e)
{
	struct console *c = calloc(1, sizeof(*c));

	VERIFY(cfg->out != NULL);
	if (c == NULL)
		return err_sys(e, -ENOMEM, "console");
	c->cfg = *cfg;
	virtio_dev_init(&c->dev, &console_ops, env, "console", 2, CONSOLE_QUEUE_SIZE);
	c->dev.config_bytes = CONSOLE_CONFIG_BYTES;
	*out = &c->dev;
	return 0;
}
