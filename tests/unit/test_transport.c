/*
 * Registers of virtio-pci, and what device.c does behind them: the driver's
 * steps, kicks, interrupts, resets, watched fds.  Defends I1 to I3 of
 * virtio/transport.c and I2, I3 of virtio.h.
 */
#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define VIRTIO_PCI_NO_LEGACY
#include <linux/virtio_pci.h>

#include "tests/lib/fakeguest.h"
#include "tests/lib/testdev.h"
#include "virtio/internal.h"

#define SIZE 16
#define QUEUES 3
#define COMMON(field) (VIRTIO_PCI_COMMON + VIRTIO_PCI_COMMON_##field)

static struct fakeguest g;
static struct testdev *t;

static void begin(void)
{
	fakeguest_init(&g);
	t = testdev_create(&g.env, QUEUES, SIZE);
	fakeguest_attach(&g, &t->dev);
}

static void begin_started(void)
{
	begin();
	cr_assert(fakeguest_start(&g, 0));
	fakeguest_drain(&g, 10);
	memset(t->ready, 0, sizeof(t->ready));
}

static void end(void)
{
	fakeguest_fini(&g);
}

static uint64_t bad(void)
{
	return counter_get(CTR_virtio_bad_access);
}

static void select_queue(uint16_t qi)
{
	fakeguest_write(&g, COMMON(Q_SELECT), qi, 2);
}

/* A write that is refused: counted, and the register reads as before. */
static void refused_write(uint32_t off, uint64_t v, uint32_t len)
{
	uint64_t count = bad(), before = fakeguest_read(&g, off, len);

	cr_assert_eq(bad(), count, "a register that can be read");
	fakeguest_write(&g, off, v, len);
	cr_assert_eq(bad(), count + 1, "write of %lx at %x", v, off);
	cr_assert_eq(fakeguest_read(&g, off, len), before);
}

/* ---- capabilities -------------------------------------------------------- */

static const struct virtio_pci_cap *find_cap(const uint8_t *space, uint8_t at, uint8_t type)
{
	const struct virtio_pci_cap *cap = NULL;

	for (unsigned left = 16; at != 0 && at != 0xee && left > 0; left--, at = cap->cap_next) {
		cap = (const void *)(space + at);
		cr_assert_eq(at % 4, 0);
		cr_assert_eq(cap->cap_vndr, 9);
		if (cap->cfg_type == type)
			return cap;
	}
	return NULL;
}

static void check_cap(const uint8_t *space, uint8_t type, uint32_t off, uint32_t bytes)
{
	const struct virtio_pci_cap *cap = find_cap(space, 0x60, type);

	cr_assert_not_null(cap, "capability %u", type);
	cr_assert_eq(cap->bar, 4);
	cr_assert_eq(cap->offset, off);
	cr_assert_eq(cap->length, bytes);
}

Test(transport, capabilities_describe_the_window)
{
	_Alignas(4) uint8_t space[256] = { 0 };
	const struct virtio_pci_notify_cap *notify;
	size_t bytes, cfg;

	begin();
	bytes = virtio_pci_caps(g.vp, space + 0x60, 0x60, 4, 0xee, &cfg);
	cr_assert_leq(bytes, VIRTIO_PCI_CAPS_MAX);
	check_cap(space, VIRTIO_PCI_CAP_COMMON_CFG, VIRTIO_PCI_COMMON, 56);
	check_cap(space, VIRTIO_PCI_CAP_NOTIFY_CFG, VIRTIO_PCI_NOTIFY, QUEUES * 4);
	check_cap(space, VIRTIO_PCI_CAP_ISR_CFG, VIRTIO_PCI_ISR, 1);
	check_cap(space, VIRTIO_PCI_CAP_DEVICE_CFG, VIRTIO_PCI_DEVICE, TESTDEV_CONFIG_BYTES);
	check_cap(space, VIRTIO_PCI_CAP_PCI_CFG, 0, 0);
	notify = (const void *)find_cap(space, 0x60, VIRTIO_PCI_CAP_NOTIFY_CFG);
	cr_assert_eq(notify->cap.cap_len, sizeof(*notify));
	cr_assert_eq(notify->notify_off_multiplier, VIRTIO_PCI_NOTIFY_MULTIPLIER);
	cr_assert_eq(space[0x60 + cfg + 3], VIRTIO_PCI_CAP_PCI_CFG);
	cr_assert_eq(space[0x60 + cfg + 1], 0xee, "the last one links to what comes next");
	cr_assert_eq(cfg + sizeof(struct virtio_pci_cfg_cap), bytes);
	end();
}

Test(transport, capabilities_leave_out_an_empty_device_space)
{
	_Alignas(4) uint8_t space[256] = { 0 };
	size_t cfg;

	begin();
	t->dev.config_bytes = 0;
	virtio_pci_caps(g.vp, space + 0x60, 0x60, 4, 0, &cfg);
	cr_assert_null(find_cap(space, 0x60, VIRTIO_PCI_CAP_DEVICE_CFG));
	cr_assert_not_null(find_cap(space, 0x60, VIRTIO_PCI_CAP_PCI_CFG));
	end();
}

/* ---- features and status ------------------------------------------------- */

static bool features_accepted(uint64_t features)
{
	fakeguest_reset(&g);
	fakeguest_write(&g, COMMON(STATUS), 1, 1);
	fakeguest_write(&g, COMMON(STATUS), 3, 1);
	fakeguest_write(&g, COMMON(GFSELECT), 0, 4);
	fakeguest_write(&g, COMMON(GF), (uint32_t)features, 4);
	fakeguest_write(&g, COMMON(GFSELECT), 1, 4);
	fakeguest_write(&g, COMMON(GF), features >> 32, 4);
	fakeguest_write(&g, COMMON(STATUS), 11, 1);
	return fakeguest_status(&g) == 11;
}

Test(transport, features_offered_are_common_and_own)
{
	begin();
	cr_assert_eq(fakeguest_offered(&g), TESTDEV_FEATURE | VIRTIO_F_VERSION_1 |
					    VIRTIO_F_INDIRECT_DESC | VIRTIO_F_EVENT_IDX);
	fakeguest_write(&g, COMMON(DFSELECT), 2, 4);
	cr_assert_eq(fakeguest_read(&g, COMMON(DF), 4), 0);
	fakeguest_write(&g, COMMON(DFSELECT), UINT32_MAX, 4);
	cr_assert_eq(fakeguest_read(&g, COMMON(DF), 4), 0);
	end();
}

Test(transport, features_without_version_1_are_refused)
{
	uint64_t count = counter_get(CTR_virtio_bad_features);

	begin();
	cr_assert_not(features_accepted(TESTDEV_FEATURE));
	cr_assert_eq(counter_get(CTR_virtio_bad_features), count + 1);
	cr_assert(features_accepted(TESTDEV_FEATURE | VIRTIO_F_VERSION_1));
	cr_assert(virtio_has(&t->dev, TESTDEV_FEATURE));
	end();
}

Test(transport, features_not_offered_are_refused)
{
	begin();
	cr_assert_not(features_accepted(VIRTIO_F_VERSION_1 | 1));
	cr_assert_not(features_accepted(VIRTIO_F_VERSION_1 | 1ull << 63));
	cr_assert_eq(t->dev.features, 0);
	end();
}

Test(transport, features_the_device_dislikes_are_refused)
{
	begin();
	t->refuse = true;
	cr_assert_not(features_accepted(VIRTIO_F_VERSION_1));
	t->refuse = false;
	cr_assert(features_accepted(VIRTIO_F_VERSION_1));
	end();
}

Test(transport, features_beyond_64_may_only_be_zero)
{
	uint64_t count;

	begin();
	fakeguest_write(&g, COMMON(GFSELECT), 2, 4);
	count = bad();
	fakeguest_write(&g, COMMON(GF), 0, 4);
	cr_assert_eq(bad(), count);
	refused_write(COMMON(GF), 1, 4);
	end();
}

Test(transport, features_are_frozen_once_accepted)
{
	begin();
	cr_assert(features_accepted(VIRTIO_F_VERSION_1));
	fakeguest_write(&g, COMMON(GFSELECT), 0, 4);
	refused_write(COMMON(GF), TESTDEV_FEATURE, 4);
	cr_assert_not(virtio_has(&t->dev, TESTDEV_FEATURE));
	end();
}

Test(transport, driver_ok_without_features_ok_is_refused)
{
	begin();
	fakeguest_write(&g, COMMON(STATUS), 1, 1);
	fakeguest_write(&g, COMMON(STATUS), 3, 1);
	refused_write(COMMON(STATUS), 7, 1);
	cr_assert_eq(t->starts, 0);
	end();
}

Test(transport, status_bits_are_never_taken_back)
{
	begin_started();
	cr_assert_eq(fakeguest_status(&g), 15);
	refused_write(COMMON(STATUS), 7, 1);
	refused_write(COMMON(STATUS), 15 | 16, 1); /* no such bit */
	fakeguest_write(&g, COMMON(STATUS), 15 | VIRTIO_STATUS_NEEDS_RESET, 1);
	cr_assert_eq(fakeguest_status(&g), 15, "not the driver's to set");
	fakeguest_write(&g, COMMON(STATUS), 15 | VIRTIO_STATUS_FAILED, 1);
	cr_assert_eq(fakeguest_status(&g), 15 | VIRTIO_STATUS_FAILED);
	cr_assert_eq(t->starts, 1, "started once");
	end();
}

/* ---- queue registers ----------------------------------------------------- */

Test(transport, queue_registers_start_as_specified)
{
	begin();
	cr_assert_eq(fakeguest_read(&g, COMMON(NUMQ), 2), QUEUES);
	for (unsigned i = 0; i < QUEUES; i++) {
		select_queue((uint16_t)i);
		cr_assert_eq(fakeguest_read(&g, COMMON(Q_SELECT), 2), i);
		cr_assert_eq(fakeguest_read(&g, COMMON(Q_SIZE), 2), SIZE);
		cr_assert_eq(fakeguest_read(&g, COMMON(Q_MSIX), 2), VIRTIO_NO_VECTOR);
		cr_assert_eq(fakeguest_read(&g, COMMON(Q_ENABLE), 2), 0);
		cr_assert_eq(fakeguest_read(&g, COMMON(Q_NOFF), 2), i);
	}
	end();
}

Test(transport, queue_that_does_not_exist_has_size_zero)
{
	begin();
	select_queue(QUEUES);
	cr_assert_eq(fakeguest_read(&g, COMMON(Q_SIZE), 2), 0);
	refused_write(COMMON(Q_SIZE), 8, 2);
	refused_write(COMMON(Q_MSIX), 1, 2);
	refused_write(COMMON(Q_ENABLE), 1, 2);
	refused_write(COMMON(Q_DESCLO), 4096, 4);
	select_queue(0xffff);
	cr_assert_eq(fakeguest_read(&g, COMMON(Q_SIZE), 2), 0);
	refused_write(COMMON(Q_ENABLE), 1, 2);
	end();
}

Test(transport, queue_addresses_read_back_in_halves_and_whole)
{
	static const uint32_t at[] = { COMMON(Q_DESCLO), COMMON(Q_AVAILLO), COMMON(Q_USEDLO) };

	begin();
	select_queue(1);
	for (unsigned i = 0; i < ARRAY_LEN(at); i++) {
		fakeguest_write(&g, at[i], 0x89abcdef + i, 4);
		fakeguest_write(&g, at[i] + 4, 0xfedcba98 - i, 4);
	}
	cr_assert_eq(t->dev.queues[1].desc_gpa, 0xfedcba9889abcdef);
	cr_assert_eq(t->dev.queues[1].avail_gpa, 0xfedcba9789abcdf0);
	cr_assert_eq(t->dev.queues[1].used_gpa, 0xfedcba9689abcdf1);
	fakeguest_write(&g, at[1], 0x1122334455667788, 8);
	cr_assert_eq(fakeguest_read(&g, at[1], 4), 0x55667788);
	cr_assert_eq(fakeguest_read(&g, at[1] + 4, 4), 0x11223344);
	cr_assert_eq(fakeguest_read(&g, at[1], 8), 0x1122334455667788);
	cr_assert_eq(t->dev.queues[0].desc_gpa, 0, "no other queue");
	end();
}

Test(transport, enabled_queue_keeps_its_setup)
{
	begin();
	cr_assert(fakeguest_negotiate(&g, 0));
	fakeguest_setup_queue(&g, 0, 0);
	fakeguest_enable_queue(&g, 0);
	cr_assert_eq(fakeguest_read(&g, COMMON(Q_ENABLE), 2), 1);
	refused_write(COMMON(Q_ENABLE), 0, 2);
	refused_write(COMMON(Q_ENABLE), 1, 2);
	refused_write(COMMON(Q_SIZE), 8, 2);
	refused_write(COMMON(Q_DESCLO), 0, 4);
	refused_write(COMMON(Q_AVAILHI), 1, 4);
	refused_write(COMMON(Q_USEDLO), 0, 8);
	end();
}

Test(transport, queue_is_not_set_up_after_driver_ok)
{
	begin();
	cr_assert(fakeguest_negotiate(&g, 0));
	fakeguest_setup_queue(&g, 0, 0);
	fakeguest_driver_ok(&g);
	refused_write(COMMON(Q_SIZE), 8, 2);
	refused_write(COMMON(Q_ENABLE), 1, 2);
	end();
}

Test(transport, enable_takes_only_one)
{
	begin();
	cr_assert(fakeguest_negotiate(&g, 0));
	fakeguest_setup_queue(&g, 0, 0);
	refused_write(COMMON(Q_ENABLE), 2, 2);
	refused_write(COMMON(Q_ENABLE), 0, 2);
	end();
}

Test(transport, vectors_out_of_range_become_none)
{
	begin();
	fakeguest_write(&g, COMMON(MSIX), FAKE_VECTORS - 1, 2);
	cr_assert_eq(fakeguest_read(&g, COMMON(MSIX), 2), FAKE_VECTORS - 1);
	fakeguest_write(&g, COMMON(MSIX), FAKE_VECTORS, 2);
	cr_assert_eq(fakeguest_read(&g, COMMON(MSIX), 2), VIRTIO_NO_VECTOR);
	select_queue(2);
	fakeguest_write(&g, COMMON(Q_MSIX), 3, 2);
	cr_assert_eq(fakeguest_read(&g, COMMON(Q_MSIX), 2), 3);
	fakeguest_write(&g, COMMON(Q_MSIX), 0xfffe, 2);
	cr_assert_eq(fakeguest_read(&g, COMMON(Q_MSIX), 2), VIRTIO_NO_VECTOR);
	end();
}

Test(transport, vector_may_be_taken_away_while_enabled)
{
	begin_started();
	select_queue(0);
	fakeguest_write(&g, COMMON(Q_MSIX), VIRTIO_NO_VECTOR, 2);
	cr_assert_eq(fakeguest_read(&g, COMMON(Q_MSIX), 2), VIRTIO_NO_VECTOR);
	end();
}

/* ---- bad accesses -------------------------------------------------------- */

Test(transport, accesses_of_wrong_width_or_place_read_zero_and_are_counted)
{
	static const struct { uint32_t off, len; } accesses[] = {
		{ COMMON(STATUS), 2 }, { COMMON(STATUS), 4 }, { COMMON(DF), 2 },
		{ COMMON(DF) + 2, 2 }, { COMMON(DF) + 1, 4 }, { COMMON(DF), 8 },
		{ COMMON(MSIX), 4 }, { COMMON(Q_SIZE), 1 }, { COMMON(Q_SIZE) + 1, 1 },
		{ COMMON(Q_DESCLO), 2 }, { COMMON(Q_DESCLO) + 2, 4 },
		{ COMMON(Q_DESCHI), 8 }, { COMMON(Q_USEDLO) + 1, 8 }, { COMMON(Q_USEDHI), 8 },
		{ VIRTIO_PCI_COMMON + 56, 2 }, { VIRTIO_PCI_COMMON + 58, 2 },
		{ VIRTIO_PCI_COMMON + 0xfff, 1 }, { VIRTIO_PCI_COMMON + 0xffc, 8 },
		{ VIRTIO_PCI_ISR, 4 }, { VIRTIO_PCI_ISR + 1, 1 },
		{ VIRTIO_PCI_DEVICE + TESTDEV_CONFIG_BYTES, 1 },
		{ VIRTIO_PCI_DEVICE + TESTDEV_CONFIG_BYTES - 4, 8 },
		{ VIRTIO_PCI_NOTIFY, 2 }, { VIRTIO_PCI_BAR_BYTES, 1 },
		{ VIRTIO_PCI_BAR_BYTES - 1, 4 }, { UINT32_MAX, 8 },
		{ COMMON(DF), 3 }, { COMMON(DF), 0 }, { VIRTIO_PCI_DEVICE, 5 },
	};

	begin();
	memset(t->config, 0xff, sizeof(t->config));
	for (unsigned i = 0; i < ARRAY_LEN(accesses); i++) {
		uint64_t count = bad(), v = UINT64_MAX;
		uint64_t keep = accesses[i].len < 8 ? UINT64_MAX << (8 * accesses[i].len) : 0;

		virtio_pci_read(g.vp, accesses[i].off, &v, accesses[i].len);
		cr_assert_eq(v, keep, "%x %u", accesses[i].off, accesses[i].len);
		cr_assert_eq(bad(), count + 1, "%x %u", accesses[i].off, accesses[i].len);
	}
	end();
}

Test(transport, writes_of_wrong_width_or_place_are_counted)
{
	static const struct { uint32_t off, len; } accesses[] = {
		{ COMMON(DF), 4 }, { COMMON(NUMQ), 2 }, { COMMON(CFGGENERATION), 1 },
		{ COMMON(Q_NOFF), 2 }, { COMMON(Q_SIZE), 4 }, { COMMON(STATUS), 4 },
		{ COMMON(Q_AVAILLO), 2 }, { COMMON(Q_AVAILLO) + 3, 4 },
		{ VIRTIO_PCI_ISR, 1 }, { VIRTIO_PCI_DEVICE + TESTDEV_CONFIG_BYTES - 1, 2 },
		{ VIRTIO_PCI_NOTIFY + 1, 2 }, { VIRTIO_PCI_NOTIFY + 2, 2 },
		{ VIRTIO_PCI_NOTIFY + 4 * QUEUES, 2 }, { VIRTIO_PCI_NOTIFY, 1 },
		{ VIRTIO_PCI_NOTIFY, 8 }, { VIRTIO_PCI_BAR_BYTES, 4 }, { UINT32_MAX - 3, 4 },
		{ COMMON(GF), 3 },
	};

	begin();
	for (unsigned i = 0; i < ARRAY_LEN(accesses); i++) {
		uint64_t count = bad();

		fakeguest_write(&g, accesses[i].off, 0, accesses[i].len);
		cr_assert_eq(bad(), count + 1, "%x %u", accesses[i].off, accesses[i].len);
	}
	cr_assert_eq(fakeguest_drain(&g, 10), 0, "nothing was kicked");
	end();
}

/* ---- device configuration ------------------------------------------------ */

Test(transport, device_configuration_passes_any_width)
{
	static const uint32_t widths[] = { 1, 2, 4, 8 };

	begin();
	for (unsigned i = 0; i < TESTDEV_CONFIG_BYTES; i++)
		t->config[i] = (uint8_t)(0x10 + i);
	for (unsigned w = 0; w < ARRAY_LEN(widths); w++) {
		uint64_t v = fakeguest_read(&g, VIRTIO_PCI_DEVICE + 3, widths[w]);

		cr_assert_arr_eq(&v, t->config + 3, widths[w]);
	}
	fakeguest_write(&g, VIRTIO_PCI_DEVICE + 8, 0xa0b0c0d0, 4);
	cr_assert_eq(t->config[8], 0xd0);
	cr_assert_eq(t->config[11], 0xa0);
	end();
}

Test(transport, config_change_moves_generation_and_interrupts)
{
	uint64_t generation;

	begin();
	generation = fakeguest_read(&g, COMMON(CFGGENERATION), 1);
	virtio_config_changed(&t->dev);
	cr_assert_neq(fakeguest_read(&g, COMMON(CFGGENERATION), 1), generation);
	cr_assert_eq(g.interrupts[FAKE_CONFIG_VECTOR], 0, "nobody to tell yet");
	cr_assert(fakeguest_start(&g, 0));
	virtio_config_changed(&t->dev);
	cr_assert_eq(g.interrupts[FAKE_CONFIG_VECTOR], 1);
	cr_assert_eq(fakeguest_read(&g, VIRTIO_PCI_ISR, 1), 2);
	cr_assert_eq(fakeguest_read(&g, VIRTIO_PCI_ISR, 1), 0, "read clears");
	end();
}

/* ---- kicks and interrupts ------------------------------------------------ */

Test(transport, driver_ok_starts_and_kicks_each_enabled_queue_once)
{
	begin();
	cr_assert(fakeguest_negotiate(&g, 0));
	fakeguest_setup_queue(&g, 0, 0);
	fakeguest_enable_queue(&g, 0);
	fakeguest_setup_queue(&g, 2, 0);
	fakeguest_enable_queue(&g, 2);
	fakeguest_driver_ok(&g);
	cr_assert_eq(t->starts, 1);
	fakeguest_drain(&g, 10);
	cr_assert_eq(t->ready[0], 1);
	cr_assert_eq(t->ready[1], 0);
	cr_assert_eq(t->ready[2], 1);
	end();
}

Test(transport, kick_reaches_only_its_queue)
{
	begin_started();
	fakeguest_kick(&g, 1);
	fakeguest_kick(&g, 1);
	cr_assert_eq(t->ready[1], 0, "not in the thread that kicks");
	fakeguest_drain(&g, 10);
	cr_assert_eq(t->ready[0], 0);
	cr_assert_eq(t->ready[1], 1, "two kicks before the loop turns are one");
	end();
}

Test(transport, ioeventfd_is_a_kick)
{
	begin_started();
	cr_assert_eq(eventfd_write(virtio_pci_notify_fd(g.vp, 2), 1), 0);
	fakeguest_drain(&g, 10);
	cr_assert_eq(t->ready[2], 1);
	end();
}

Test(transport, kick_before_driver_ok_is_not_passed_on)
{
	begin();
	cr_assert(fakeguest_negotiate(&g, 0));
	fakeguest_setup_queue(&g, 0, 0);
	fakeguest_enable_queue(&g, 0);
	fakeguest_kick(&g, 0);
	fakeguest_drain(&g, 10);
	cr_assert_eq(t->ready[0], 0);
	end();
}

Test(transport, kick_of_a_queue_not_enabled_is_not_passed_on)
{
	begin();
	cr_assert(fakeguest_negotiate(&g, 0));
	fakeguest_driver_ok(&g);
	fakeguest_kick(&g, 1);
	fakeguest_drain(&g, 10);
	cr_assert_eq(t->ready[1], 0);
	end();
}

Test(transport, requeue_comes_in_a_later_turn)
{
	begin_started();
	t->requeue = 2;
	fakeguest_kick(&g, 0);
	for (unsigned turn = 1; turn <= 3; turn++) {
		cr_assert_eq(fakeguest_turn(&g, 0), 1);
		cr_assert_eq(t->ready[0], turn);
	}
	cr_assert_eq(fakeguest_turn(&g, 0), 0);
	end();
}

static void use_one(unsigned qi)
{
	struct fakebuf b = { .gpa = fakeguest_alloc(&g, 8, 1), .len = 8, .device_writes = true };

	fakeguest_add(&g, qi, &b, 1);
	fakeguest_kick(&g, qi);
	fakeguest_drain(&g, 10);
}

Test(transport, used_buffer_interrupts_by_the_queues_vector)
{
	begin_started();
	t->echo = true;
	use_one(1);
	cr_assert_eq(g.interrupts[1], 1);
	cr_assert_eq(g.interrupts[0], 0);
	cr_assert_eq(fakeguest_read(&g, VIRTIO_PCI_ISR, 1), 0);
	end();
}

Test(transport, used_buffer_without_vector_sets_isr)
{
	begin_started();
	t->echo = true;
	select_queue(1);
	fakeguest_write(&g, COMMON(Q_MSIX), VIRTIO_NO_VECTOR, 2);
	use_one(1);
	cr_assert_eq(g.interrupts[1], 0);
	cr_assert_eq(fakeguest_read(&g, VIRTIO_PCI_ISR, 1), 1);
	cr_assert_eq(fakeguest_read(&g, VIRTIO_PCI_ISR, 1), 0);
	end();
}

/* ---- reset --------------------------------------------------------------- */

Test(transport, reset_clears_everything)
{
	uint64_t resets;

	begin_started();
	resets = counter_get(CTR_virtio_resets);
	t->resets = 0;
	fakeguest_write(&g, COMMON(STATUS), 0, 1);
	cr_assert_eq(t->resets, 1);
	cr_assert_eq(counter_get(CTR_virtio_resets), resets + 1);
	cr_assert_eq(fakeguest_status(&g), 0);
	cr_assert_eq(t->dev.features, 0);
	cr_assert_eq(fakeguest_read(&g, COMMON(MSIX), 2), VIRTIO_NO_VECTOR);
	cr_assert_eq(fakeguest_read(&g, COMMON(GF), 4), 0);
	for (unsigned i = 0; i < QUEUES; i++) {
		select_queue((uint16_t)i);
		cr_assert_eq(fakeguest_read(&g, COMMON(Q_ENABLE), 2), 0);
		cr_assert_eq(fakeguest_read(&g, COMMON(Q_SIZE), 2), SIZE);
		cr_assert_eq(fakeguest_read(&g, COMMON(Q_DESCLO), 8), 0);
		cr_assert_eq(fakeguest_read(&g, COMMON(Q_MSIX), 2), VIRTIO_NO_VECTOR);
	}
	end();
}

Test(transport, reset_with_requests_in_flight_shows_when_it_is_done)
{
	begin_started();
	t->slow_reset = true;
	fakeguest_write(&g, COMMON(STATUS), 0, 1);
	cr_assert_neq(fakeguest_status(&g), 0);
	cr_assert_not(virtio_running(&t->dev));
	fakeguest_kick(&g, 0);
	fakeguest_drain(&g, 10);
	cr_assert_eq(t->ready[0], 0, "no new work");
	refused_write(COMMON(STATUS), 1, 1);
	refused_write(COMMON(Q_SELECT), 1, 2);
	refused_write(VIRTIO_PCI_DEVICE, 1, 1);
	fakeguest_write(&g, COMMON(STATUS), 0, 1);
	cr_assert_eq(t->resets, 2, "asked for once more, not done once more");

	virtio_reset_done(&t->dev);
	cr_assert_eq(fakeguest_status(&g), 0);
	t->slow_reset = false;
	cr_assert(fakeguest_start(&g, 0));
	t->echo = true;
	use_one(0);
	cr_assert_eq(g.interrupts[0], 1);
	end();
}

Test(transport, needs_reset_stops_one_device_alone)
{
	static struct fakeguest other;
	struct testdev *u;

	begin_started();
	fakeguest_init(&other);
	u = testdev_create(&other.env, 1, SIZE);
	fakeguest_attach(&other, &u->dev);
	cr_assert(fakeguest_start(&other, 0));
	fakeguest_drain(&other, 10);

	g.q[1].avail[1] = 1000;
	t->echo = true;
	fakeguest_kick(&g, 1);
	fakeguest_drain(&g, 10);
	cr_assert_eq(fakeguest_status(&g), 15 | VIRTIO_STATUS_NEEDS_RESET);
	cr_assert_eq(g.interrupts[FAKE_CONFIG_VECTOR], 1);
	for (unsigned i = 0; i < QUEUES; i++)
		fakeguest_kick(&g, i);
	fakeguest_drain(&g, 10);
	cr_assert_eq(t->ready[0] + t->ready[1] + t->ready[2], 1, "no work any more");
	cr_assert_eq(fakeguest_status(&other), 15);

	cr_assert(fakeguest_start(&g, 0));
	use_one(1);
	cr_assert_eq(g.interrupts[1], 1, "works again");
	fakeguest_fini(&other);
	end();
}

Test(transport, bad_setup_is_told_at_driver_ok)
{
	begin();
	fakeguest_write(&g, COMMON(MSIX), FAKE_CONFIG_VECTOR, 2);
	cr_assert(fakeguest_negotiate(&g, 0));
	fakeguest_setup_queue(&g, 0, 0);
	fakeguest_write(&g, COMMON(Q_DESCLO), 8, 4);
	fakeguest_enable_queue(&g, 0);
	cr_assert_eq(g.interrupts[FAKE_CONFIG_VECTOR], 0);
	fakeguest_driver_ok(&g);
	cr_assert_eq(g.interrupts[FAKE_CONFIG_VECTOR], 1);
	cr_assert_eq(t->starts, 0);
	end();
}

/* ---- a vCPU and the loop ------------------------------------------------- */

#define RACE_ROUNDS 300

static _Atomic bool race_over;

static void *race_loop(void *arg)
{
	while (!race_over)
		fakeguest_turn(&g, 1);
	return NULL;
}

static void needs_reset(void)
{
	virtio_lock(&t->dev);
	virtio_needs_reset(&t->dev);
	virtio_unlock(&t->dev);
}

/* Registers from one thread while the loop works: resets, half-way started
 * drivers, reads of everything.  For ThreadSanitizer above all. */
Test(transport, vcpu_and_loop_do_not_disturb_each_other)
{
	pthread_t loop;

	begin();
	t->echo = true;
	cr_assert_eq(pthread_create(&loop, NULL, race_loop, NULL), 0);
	for (unsigned i = 0; i < RACE_ROUNDS; i++) {
		uint64_t from = g.next_gpa;

		cr_assert(fakeguest_start(&g, i % 2 ? VIRTIO_F_EVENT_IDX : 0));
		for (unsigned k = 0; k < 20; k++) {
			struct fakebuf b = { .gpa = PAGE_BYTES, .len = 8, .device_writes = true };

			if (k < SIZE)
				fakeguest_add(&g, k % QUEUES, &b, 1);
			fakeguest_kick(&g, k % QUEUES);
			fakeguest_read(&g, VIRTIO_PCI_ISR, 1);
			fakeguest_write(&g, VIRTIO_PCI_DEVICE, k, 4);
			cr_assert_eq(fakeguest_read(&g, VIRTIO_PCI_DEVICE, 4), k);
			cr_assert_eq(fakeguest_status(&g), 15);
		}
		if (i % 3 == 0)
			needs_reset();
		g.next_gpa = from;
	}
	race_over = true;
	pthread_join(loop, NULL);
	end();
}

/* ---- watched fds and life ------------------------------------------------ */

static unsigned watch_calls;

static void on_watch(struct virtio_dev *dev, unsigned events)
{
	cr_assert(events & VIRTIO_FD_IN);
	cr_assert_eq(pthread_mutex_lock(&dev->lock), EDEADLK, "the lock is held here");
	watch_calls++;
}

static void on_watch_once(struct virtio_dev *dev, unsigned events)
{
	on_watch(dev, events);
	virtio_unwatch_fd(dev, dev->watches[0].fd);
}

Test(transport, watched_fd_is_called_with_the_lock_held)
{
	int fd = eventfd(1, EFD_NONBLOCK);

	begin();
	cr_assert_eq(virtio_watch_fd(&t->dev, fd, VIRTIO_FD_IN, on_watch), 0);
	fakeguest_turn(&g, 0);
	fakeguest_turn(&g, 0);
	cr_assert_eq(watch_calls, 2, "level triggered");
	cr_assert_eq(virtio_watch_fd(&t->dev, fd, 0, on_watch), 0);
	fakeguest_turn(&g, 0);
	cr_assert_eq(watch_calls, 2, "silent");
	cr_assert_eq(virtio_watch_fd(&t->dev, fd, VIRTIO_FD_IN, on_watch_once), 0);
	fakeguest_drain(&g, 10);
	cr_assert_eq(watch_calls, 3, "unwatched from inside");
	virtio_unwatch_fd(&t->dev, fd);
	end();
	close(fd);
}

Test(transport, fini_unwatches_what_is_left)
{
	unsigned destroyed = 0;
	int fd = eventfd(1, EFD_NONBLOCK);

	begin();
	t->destroyed = &destroyed;
	cr_assert_eq(virtio_watch_fd(&t->dev, fd, VIRTIO_FD_IN, on_watch), 0);
	end(); /* checks that nothing is watched */
	cr_assert_eq(destroyed, 1);
	close(fd);
}

Test(transport, device_without_transport_is_quiet)
{
	struct virtio_dev *none = NULL;

	begin_started();
	virtio_pci_destroy(&g.vp);
	virtio_requeue(&t->dev, 0);
	virtio_config_changed(&t->dev);
	virtio_needs_reset(&t->dev);
	virtio_pci_destroy(&g.vp);
	virtio_dev_destroy(&none);
	end();
}

static int no_watch(void *opaque, int fd, unsigned events,
		    void (*fn)(void *arg, unsigned events), void *arg)
{
	unsigned *left = opaque;

	return (*left)-- == 0 ? -ENOSPC : 0;
}

static void no_unwatch(void *opaque, int fd)
{
	cr_assert_neq(fcntl(fd, F_GETFD), -1, "unwatched before it is closed");
}

/* Every watch() of create fails in turn; nothing is left behind. */
Test(transport, create_that_fails_leaves_nothing)
{
	static const struct virtio_env_ops ops = { .watch = no_watch, .unwatch = no_unwatch };

	fakeguest_init(&g);
	for (unsigned fail = 0; fail < QUEUES; fail++) {
		unsigned left = fail;
		struct virtio_env env = { .ram = g.ram, .ops = &ops, .opaque = &left };
		struct virtio_pci_host host = { .signal = (void (*)(void *, uint16_t))abort };
		struct virtio_pci *vp = NULL;
		struct virtio_dev *dev;
		struct err e = { "" };

		t = testdev_create(&env, QUEUES, SIZE);
		dev = &t->dev;
		cr_assert_eq(virtio_pci_create(&vp, dev, &host, &e), -ENOSPC);
		cr_assert_null(vp);
		cr_assert(strstr(e.msg, "test0"));
		virtio_dev_destroy(&dev);
	}
	end();
}
