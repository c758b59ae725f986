/*
 * See fakeguest.h.  Everything a real driver checks for its own sake is left
 * out: this one does what the test says.
 */
#include <errno.h>
#include <poll.h>
#include <string.h>
#include <unistd.h>

#define VIRTIO_PCI_NO_LEGACY
#include <linux/virtio_pci.h>

#include "tests/lib/fakeguest.h"

#define COMMON(field) (VIRTIO_PCI_COMMON + VIRTIO_PCI_COMMON_##field)
#define FAKE_FIRST_GPA PAGE_BYTES /* so that address 0 is never a good one */

/* ---- the loop ----------------------------------------------------------- */

static struct fake_watch *watch_find(struct fakeguest *g, int fd)
{
	for (unsigned i = 0; i < FAKE_MAX_WATCHES; i++)
		if (g->watches[i].fd == fd)
			return &g->watches[i];
	return NULL;
}

static int fake_watch(void *opaque, int fd, unsigned events,
		      void (*fn)(void *arg, unsigned events), void *arg)
{
	struct fakeguest *g = opaque;
	struct fake_watch *w;

	pthread_mutex_lock(&g->watch_lock);
	w = watch_find(g, fd);
	if (w == NULL)
		w = watch_find(g, -1);
	VERIFY(w != NULL);
	*w = (struct fake_watch){ .fd = fd, .events = events, .fn = fn, .arg = arg };
	pthread_mutex_unlock(&g->watch_lock);
	return 0;
}

static void fake_unwatch(void *opaque, int fd)
{
	struct fakeguest *g = opaque;
	struct fake_watch *w;

	pthread_mutex_lock(&g->watch_lock);
	w = watch_find(g, fd);
	VERIFY(w != NULL);
	*w = (struct fake_watch){ .fd = -1 };
	pthread_mutex_unlock(&g->watch_lock);
}

static const struct virtio_env_ops fake_env_ops = {
	.watch = fake_watch,
	.unwatch = fake_unwatch,
};

_Static_assert(VIRTIO_FD_IN == POLLIN && VIRTIO_FD_OUT == POLLOUT, "events are poll's");

unsigned fakeguest_turn(struct fakeguest *g, int timeout_ms)
{
	struct pollfd fds[FAKE_MAX_WATCHES];
	unsigned called = 0;

	pthread_mutex_lock(&g->watch_lock);
	for (unsigned i = 0; i < FAKE_MAX_WATCHES; i++) {
		const struct fake_watch *w = &g->watches[i];

		fds[i] = (struct pollfd){ .fd = w->events != 0 ? w->fd : -1,
					  .events = (short)w->events };
	}
	pthread_mutex_unlock(&g->watch_lock);

	VERIFY(poll(fds, FAKE_MAX_WATCHES, timeout_ms) >= 0 || errno == EINTR);
	for (unsigned i = 0; i < FAKE_MAX_WATCHES; i++) {
		struct fake_watch w;

		/* an earlier callback of this turn may have unwatched it */
		pthread_mutex_lock(&g->watch_lock);
		w = g->watches[i];
		pthread_mutex_unlock(&g->watch_lock);
		if (fds[i].fd < 0 || w.fd != fds[i].fd || fds[i].revents == 0 || w.events == 0)
			continue;
		w.fn(w.arg, (unsigned)fds[i].revents);
		called++;
	}
	return called;
}

unsigned fakeguest_drain(struct fakeguest *g, unsigned max)
{
	unsigned turns = 0;

	while (turns < max && fakeguest_turn(g, 0) > 0)
		turns++;
	return turns;
}

/* ---- set-up ------------------------------------------------------------- */

static void fake_signal(void *opaque, uint16_t vector)
{
	struct fakeguest *g = opaque;

	VERIFY(vector < FAKE_VECTORS);
	g->interrupts[vector]++;
}

void fakeguest_init_host(struct fakeguest *g, const struct mm_host *host)
{
	struct ram_config cfg = { .size_bytes = FAKE_RAM_BYTES, .huge = RAM_HUGE_NEVER,
				  .host = host };

	memset(g, 0, sizeof *g);
	VERIFY(pthread_mutex_init(&g->watch_lock, NULL) == 0);
	for (unsigned i = 0; i < FAKE_MAX_WATCHES; i++)
		g->watches[i].fd = -1;
	VERIFY(ram_create(&g->ram, &cfg, NULL) == 0);
	g->env = (struct virtio_env){ .ram = g->ram, .ops = &fake_env_ops, .opaque = g };
	g->next_gpa = FAKE_FIRST_GPA;
}

void fakeguest_init(struct fakeguest *g)
{
	fakeguest_init_host(g, NULL);
}

void fakeguest_fini(struct fakeguest *g)
{
	virtio_pci_destroy(&g->vp);
	virtio_dev_destroy(&g->dev);
	for (unsigned i = 0; i < FAKE_MAX_WATCHES; i++)
		VERIFY(g->watches[i].fd == -1);
	ram_destroy(&g->ram);
	pthread_mutex_destroy(&g->watch_lock);
}

void fakeguest_attach(struct fakeguest *g, struct virtio_dev *dev)
{
	g->dev = dev;
	g->host = (struct virtio_pci_host){ .signal = fake_signal, .opaque = g,
					    .vectors = FAKE_VECTORS };
	VERIFY(virtio_pci_create(&g->vp, dev, &g->host, NULL) == 0);
}

/* ---- registers ---------------------------------------------------------- */

uint64_t fakeguest_read(struct fakeguest *g, uint32_t off, uint32_t len)
{
	uint64_t v = 0;

	virtio_pci_read(g->vp, off, &v, len);
	return v;
}

void fakeguest_write(struct fakeguest *g, uint32_t off, uint64_t v, uint32_t len)
{
	virtio_pci_write(g->vp, off, &v, len);
}

uint8_t fakeguest_status(struct fakeguest *g)
{
	return (uint8_t)fakeguest_read(g, COMMON(STATUS), 1);
}

uint64_t fakeguest_offered(struct fakeguest *g)
{
	uint64_t v;

	fakeguest_write(g, COMMON(DFSELECT), 0, 4);
	v = fakeguest_read(g, COMMON(DF), 4);
	fakeguest_write(g, COMMON(DFSELECT), 1, 4);
	return v | fakeguest_read(g, COMMON(DF), 4) << 32;
}

void fakeguest_reset(struct fakeguest *g)
{
	uint64_t give_up_ns = now_ns() + (uint64_t)FAKE_WAIT_MS * 1000000;

	fakeguest_write(g, COMMON(STATUS), 0, 1);
	while (fakeguest_status(g) != 0) {
		VERIFY(now_ns() < give_up_ns);
		fakeguest_turn(g, 1);
	}
}

bool fakeguest_negotiate(struct fakeguest *g, uint64_t features)
{
	uint8_t status = VIRTIO_STATUS_ACKNOWLEDGE | VIRTIO_STATUS_DRIVER;

	features = (features | VIRTIO_F_VERSION_1) & fakeguest_offered(g);
	fakeguest_write(g, COMMON(STATUS), VIRTIO_STATUS_ACKNOWLEDGE, 1);
	fakeguest_write(g, COMMON(STATUS), status, 1);
	fakeguest_write(g, COMMON(GFSELECT), 0, 4);
	fakeguest_write(g, COMMON(GF), (uint32_t)features, 4);
	fakeguest_write(g, COMMON(GFSELECT), 1, 4);
	fakeguest_write(g, COMMON(GF), features >> 32, 4);
	fakeguest_write(g, COMMON(STATUS), status | VIRTIO_STATUS_FEATURES_OK, 1);
	return (fakeguest_status(g) & VIRTIO_STATUS_FEATURES_OK) != 0;
}

void fakeguest_setup_queue(struct fakeguest *g, unsigned qi, uint16_t size)
{
	struct fakeq *q = &g->q[qi];
	uint64_t avail_bytes, used_bytes;

	fakeguest_write(g, COMMON(Q_SELECT), qi, 2);
	if (size == 0)
		size = (uint16_t)fakeguest_read(g, COMMON(Q_SIZE), 2);
	avail_bytes = 6 + 2ull * size;
	used_bytes = 6 + 8ull * size;
	*q = (struct fakeq){ .size = size };
	q->desc_gpa = fakeguest_alloc(g, 16ull * size, 16);
	q->avail_gpa = fakeguest_alloc(g, avail_bytes, 2);
	q->used_gpa = fakeguest_alloc(g, used_bytes, 4);
	q->desc = fakeguest_at(g, q->desc_gpa, 16ull * size);
	q->avail = fakeguest_at(g, q->avail_gpa, avail_bytes);
	q->used = fakeguest_at(g, q->used_gpa, used_bytes);

	fakeguest_write(g, COMMON(Q_SIZE), size, 2);
	fakeguest_write(g, COMMON(Q_MSIX), qi, 2);
	fakeguest_write(g, COMMON(Q_DESCLO), (uint32_t)q->desc_gpa, 4);
	fakeguest_write(g, COMMON(Q_DESCHI), q->desc_gpa >> 32, 4);
	fakeguest_write(g, COMMON(Q_AVAILLO), (uint32_t)q->avail_gpa, 4);
	fakeguest_write(g, COMMON(Q_AVAILHI), q->avail_gpa >> 32, 4);
	fakeguest_write(g, COMMON(Q_USEDLO), (uint32_t)q->used_gpa, 4);
	fakeguest_write(g, COMMON(Q_USEDHI), q->used_gpa >> 32, 4);
}

void fakeguest_enable_queue(struct fakeguest *g, unsigned qi)
{
	fakeguest_write(g, COMMON(Q_SELECT), qi, 2);
	fakeguest_write(g, COMMON(Q_ENABLE), 1, 2);
}

void fakeguest_driver_ok(struct fakeguest *g)
{
	fakeguest_write(g, COMMON(STATUS), fakeguest_status(g) | VIRTIO_STATUS_DRIVER_OK, 1);
}

bool fakeguest_start(struct fakeguest *g, uint64_t features)
{
	fakeguest_reset(g);
	fakeguest_write(g, COMMON(MSIX), FAKE_CONFIG_VECTOR, 2);
	if (!fakeguest_negotiate(g, features))
		return false;
	for (unsigned qi = 0; qi < g->dev->queue_count; qi++) {
		fakeguest_setup_queue(g, qi, g->queue_size);
		fakeguest_enable_queue(g, qi);
	}
	fakeguest_driver_ok(g);
	return true;
}

/* ---- memory and rings --------------------------------------------------- */

uint64_t fakeguest_alloc(struct fakeguest *g, uint64_t bytes, uint64_t align)
{
	uint64_t addr = (g->next_gpa + align - 1) & ~(align - 1);

	g->next_gpa = addr + bytes;
	memset(fakeguest_at(g, addr, bytes), 0, bytes);
	return addr;
}

void *fakeguest_at(struct fakeguest *g, uint64_t addr, uint64_t bytes)
{
	void *p = ram_at(g->ram, gpa(addr), bytes);

	VERIFY(p != NULL);
	return p;
}

static void put_desc(struct vring_desc *d, const struct fakebuf *b, bool last, uint16_t next)
{
	*d = (struct vring_desc){
		.addr = b->gpa,
		.len = b->len,
		.flags = (uint16_t)((b->device_writes ? VRING_DESC_F_WRITE : 0) |
				    (last ? 0 : VRING_DESC_F_NEXT)),
		.next = last ? 0 : next,
	};
}

void fakeguest_publish(struct fakeguest *g, unsigned qi, uint16_t head)
{
	struct fakeq *q = &g->q[qi];

	q->avail[2 + q->avail_idx % q->size] = head;
	q->avail_idx++;
	__atomic_store_n(&q->avail[1], q->avail_idx, __ATOMIC_RELEASE);
}

uint16_t fakeguest_add(struct fakeguest *g, unsigned qi, const struct fakebuf *b, unsigned n)
{
	struct fakeq *q = &g->q[qi];
	uint16_t head = q->next_desc, at = head;

	VERIFY(n > 0 && n <= q->size);
	for (unsigned i = 0; i < n; i++) {
		uint16_t next = (uint16_t)((at + 1) % q->size);

		put_desc(&q->desc[at], &b[i], i + 1 == n, next);
		at = next;
	}
	q->next_desc = at;
	fakeguest_publish(g, qi, head);
	return head;
}

uint16_t fakeguest_add_indirect(struct fakeguest *g, unsigned qi, const struct fakebuf *b,
				unsigned n)
{
	struct fakeq *q = &g->q[qi];
	uint16_t head = q->next_desc;
	uint64_t table_gpa = fakeguest_alloc(g, 16ull * n, 16);
	struct vring_desc *table = fakeguest_at(g, table_gpa, 16ull * n);

	for (unsigned i = 0; i < n; i++)
		put_desc(&table[i], &b[i], i + 1 == n, (uint16_t)(i + 1));
	q->desc[head] = (struct vring_desc){ .addr = table_gpa, .len = 16 * n,
					     .flags = VRING_DESC_F_INDIRECT };
	q->next_desc = (uint16_t)((head + 1) % q->size);
	fakeguest_publish(g, qi, head);
	return head;
}

void fakeguest_kick(struct fakeguest *g, unsigned qi)
{
	fakeguest_write(g, VIRTIO_PCI_NOTIFY + qi * VIRTIO_PCI_NOTIFY_MULTIPLIER, qi, 2);
}

bool fakeguest_wants_kick(struct fakeguest *g, unsigned qi, uint16_t old_idx)
{
	struct fakeq *q = &g->q[qi];
	uint16_t event = __atomic_load_n(&q->used[2 + 4 * q->size], __ATOMIC_SEQ_CST);

	if (g->dev->features & VIRTIO_F_EVENT_IDX)
		return vring_need_event(event, q->avail_idx, old_idx);
	return (__atomic_load_n(&q->used[0], __ATOMIC_SEQ_CST) & VRING_USED_F_NO_NOTIFY) == 0;
}

bool fakeguest_used(struct fakeguest *g, unsigned qi, uint32_t *head, uint32_t *len)
{
	struct fakeq *q = &g->q[qi];
	const uint16_t *elem = &q->used[2 + 4 * (q->used_seen % q->size)];

	if (__atomic_load_n(&q->used[1], __ATOMIC_ACQUIRE) == q->used_seen)
		return false;
	memcpy(head, elem, 4);
	memcpy(len, elem + 2, 4);
	q->used_seen++;
	return true;
}

bool fakeguest_wait_used(struct fakeguest *g, unsigned qi, uint32_t *head, uint32_t *len)
{
	uint64_t give_up_ns = now_ns() + (uint64_t)FAKE_WAIT_MS * 1000000;

	while (!fakeguest_used(g, qi, head, len)) {
		if (now_ns() > give_up_ns)
			return false;
		fakeguest_turn(g, 1);
	}
	return true;
}
