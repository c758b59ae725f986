/*
 * vmm/platform.c: ACPI fixed hardware, the reset register, and the ports every
 * kernel pokes at.
 */
#include <criterion/criterion.h>
#include <pthread.h>

#include "tests/unit/fakekvm.h"

#define PWRBTN 0x100u
#define SLP_EN 0x2000u
#define S5 (5u << 10)

static struct kvm kvm;
static struct platform p;

static void begin(void)
{
	struct err e = { "" };

	kvm_init(&kvm, NULL, &e);
	platform_init(&p, &kvm);
}

static void end(void)
{
	platform_fini(&p);
	kvm_fini(&kvm);
}

static uint32_t in(uint16_t port, unsigned len)
{
	enum platform_act act = PLATFORM_NONE;
	uint32_t v = 0xffffffff;

	cr_assert(platform_port(&p, port, false, &v, len, &act), "%x/%u", port, len);
	cr_assert_eq(act, PLATFORM_NONE, "reading does nothing");
	return len == 4 ? v : v & ((1u << 8 * len) - 1);
}

static enum platform_act out(uint16_t port, uint32_t v, unsigned len)
{
	enum platform_act act = PLATFORM_NONE;

	cr_assert(platform_port(&p, port, true, &v, len, &act), "%x/%u", port, len);
	return act;
}

static bool absent(uint16_t port, unsigned len)
{
	enum platform_act act = PLATFORM_NONE;
	uint32_t v = 0;
	bool hit = platform_port(&p, port, false, &v, len, &act);

	return !hit && act == PLATFORM_NONE;
}

/* ---- power button ---------------------------------------------------------------- */

Test(platform, button_while_not_enabled_sets_status_only)
{
	begin();
	platform_power_button(&p);
	cr_assert_eq(in(PORT_PM1_EVT, 2), PWRBTN);
	cr_assert_not(fakekvm.line[IRQ_SCI]);
	out(PORT_PM1_EVT + 2, PWRBTN, 2);
	cr_assert(fakekvm.line[IRQ_SCI], "enabling it then raises the line");
	end();
}

Test(platform, button_enabled_raises_sci_till_status_cleared)
{
	begin();
	out(PORT_PM1_EVT + 2, PWRBTN, 2);
	platform_power_button(&p);
	cr_assert(fakekvm.line[IRQ_SCI]);
	cr_assert_eq(in(PORT_PM1_EVT, 2), PWRBTN);
	out(PORT_PM1_EVT, 0, 2);
	cr_assert(fakekvm.line[IRQ_SCI], "a zero clears nothing");
	out(PORT_PM1_EVT, (uint32_t)~PWRBTN & 0xffff, 2);
	cr_assert(fakekvm.line[IRQ_SCI], "nor do other bits");
	out(PORT_PM1_EVT, PWRBTN, 2);
	cr_assert_not(fakekvm.line[IRQ_SCI]);
	cr_assert_eq(in(PORT_PM1_EVT, 2), 0);
	end();
}

Test(platform, button_pressed_again_while_pending_is_one_event)
{
	begin();
	out(PORT_PM1_EVT + 2, PWRBTN, 2);
	platform_power_button(&p);
	platform_power_button(&p);
	cr_assert_eq(fakekvm.line_changes, 1);
	out(PORT_PM1_EVT, PWRBTN, 2);
	platform_power_button(&p);
	cr_assert_eq(fakekvm.line_changes, 3);
	cr_assert(fakekvm.line[IRQ_SCI]);
	end();
}

Test(platform, button_disabled_while_pending_lowers_sci)
{
	begin();
	out(PORT_PM1_EVT + 2, PWRBTN, 2);
	platform_power_button(&p);
	out(PORT_PM1_EVT + 2, 0, 2);
	cr_assert_not(fakekvm.line[IRQ_SCI]);
	cr_assert_eq(in(PORT_PM1_EVT, 2), PWRBTN);
	end();
}

/* ---- registers --------------------------------------------------------------------- */

Test(platform, pm1_by_bytes_words_and_a_dword)
{
	begin();
	platform_power_button(&p);
	out(PORT_PM1_EVT + 3, PWRBTN >> 8, 1);
	cr_assert_eq(in(PORT_PM1_EVT, 4), PWRBTN << 16 | PWRBTN);
	cr_assert_eq(in(PORT_PM1_EVT + 1, 1), PWRBTN >> 8);
	cr_assert_eq(in(PORT_PM1_EVT + 3, 1), PWRBTN >> 8);
	out(PORT_PM1_EVT + 1, PWRBTN >> 8, 1);
	cr_assert_eq(in(PORT_PM1_EVT, 2), 0);
	cr_assert_eq(in(PORT_PM1_EVT + 2, 2), PWRBTN, "enable was left alone");
	end();
}

Test(platform, pm1_enable_keeps_known_bits_only)
{
	begin();
	out(PORT_PM1_EVT + 2, 0xffff, 2);
	cr_assert_eq(in(PORT_PM1_EVT + 2, 2), PWRBTN | 0x21);
	end();
}

Test(platform, control_says_acpi_is_on_whatever_is_written)
{
	begin();
	cr_assert_eq(in(PORT_PM1_CNT, 2) & 1, 1);
	cr_assert_eq(out(PORT_PM1_CNT, 0, 2), PLATFORM_NONE);
	cr_assert_eq(in(PORT_PM1_CNT, 2) & 1, 1);
	end();
}

Test(platform, s5_powers_off)
{
	begin();
	cr_assert_eq(out(PORT_PM1_CNT, S5, 2), PLATFORM_NONE, "without SLP_EN");
	cr_assert_eq(out(PORT_PM1_CNT, S5 | SLP_EN, 2), PLATFORM_POWEROFF);
	cr_assert_not(in(PORT_PM1_CNT, 2) & SLP_EN, "reads as zero");
	cr_assert_eq(out(PORT_PM1_CNT + 1, (S5 | SLP_EN) >> 8, 1), PLATFORM_POWEROFF, "by a byte");
	end();
}

Test(platform, other_sleep_states_do_nothing)
{
	begin();
	for (unsigned type = 0; type < 8; type++)
		if (type != 5)
			cr_assert_eq(out(PORT_PM1_CNT, type << 10 | SLP_EN, 2), PLATFORM_NONE);
	end();
}

/* Only a write to the control register may act, though the blocks are neighbours. */
Test(platform, event_write_with_sleep_bits_does_nothing)
{
	begin();
	cr_assert_eq(out(PORT_PM1_EVT, S5 | SLP_EN, 2), PLATFORM_NONE);
	cr_assert_eq(out(PORT_PM1_EVT + 2, S5 | SLP_EN, 2), PLATFORM_NONE);
	cr_assert_eq(out(PORT_PM1_EVT, (S5 | SLP_EN) << 16 | S5 | SLP_EN, 4), PLATFORM_NONE);
	end();
}

Test(platform, access_across_the_end_of_pm1_refused)
{
	begin();
	cr_assert(absent(PORT_PM1_CNT, 4));
	cr_assert(absent(PORT_PM1_CNT + 1, 2));
	cr_assert(absent(PORT_PM1_EVT - 1, 2));
	end();
}

Test(platform, timer_has_24_bits_and_runs)
{
	uint32_t first;
	uint64_t give_up = now_ns() + 1000000000;

	begin();
	first = in(PORT_PM_TMR, 4);
	cr_assert_leq(first, 0xffffff);
	while (in(PORT_PM_TMR, 4) == first)
		cr_assert_lt(now_ns(), give_up);
	out(PORT_PM_TMR, 0, 4);
	end();
}

static uint32_t ticks_at(uint64_t ns)
{
	return (uint32_t)((unsigned __int128)ns * 3579545 / 1000000000) & 0xffffff;
}

Test(platform, timer_runs_at_its_frequency)
{
	begin();
	for (unsigned i = 0; i < 1000; i++) {
		uint32_t before = ticks_at(now_ns()), v = in(PORT_PM_TMR, 4);
		uint32_t after = ticks_at(now_ns());

		cr_assert_leq((v - before) & 0xffffff, (after - before) & 0xffffff);
	}
	end();
}

/* ---- reset --------------------------------------------------------------------------- */

Test(platform, reset_register_resets_on_its_bit)
{
	begin();
	cr_assert_eq(out(PORT_RESET, 2, 1), PLATFORM_NONE);
	cr_assert_eq(out(PORT_RESET, 6, 1), PLATFORM_RESET);
	cr_assert(absent(PORT_RESET, 4), "as a wide access it is PCI's");
	end();
}

Test(platform, keyboard_reset_line_resets)
{
	begin();
	cr_assert_eq(out(0x64, 0xd1, 1), PLATFORM_NONE);
	cr_assert_eq(out(0x64, 0xfe, 1), PLATFORM_RESET);
	end();
}

Test(platform, cmos_never_says_update_in_progress)
{
	begin();
	out(0x70, 0x0a, 1);
	cr_assert_eq(in(0x71, 1), 0);
	cr_assert_eq(in(0x71, 4), 0);
	end();
}

Test(platform, delay_ports_answer_and_others_do_not)
{
	begin();
	out(0x80, 0, 1);
	out(0xed, 0, 1);
	cr_assert(absent(0x81, 1));
	cr_assert(absent(0x3f8, 1));
	cr_assert(absent(0xffff, 1));
	end();
}

/* ---- threads ------------------------------------------------------------------------- */

enum { ROUNDS = 5000 };

static void *press(void *arg)
{
	for (unsigned i = 0; i < ROUNDS; i++)
		platform_power_button(&p);
	return NULL;
}

Test(platform, button_while_guest_clears_line_follows_status)
{
	pthread_t thread;

	begin();
	out(PORT_PM1_EVT + 2, PWRBTN, 2);
	cr_assert_eq(pthread_create(&thread, NULL, press, NULL), 0);
	for (unsigned i = 0; i < ROUNDS; i++)
		out(PORT_PM1_EVT, PWRBTN, 2);
	pthread_join(thread, NULL);
	cr_assert_eq(fakekvm.line[IRQ_SCI], (in(PORT_PM1_EVT, 2) & PWRBTN) != 0);
	end();
}
