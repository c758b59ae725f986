/*
 * The ports of the machine that are not PCI: ACPI fixed hardware (PM1 event and
 * control block, timer), the reset register, and the keyboard controller's reset
 * line, which stock kernels fall back to.  Ports that firmware-less machines are
 * poked at anyway (0x80 delay, CMOS) answer harmlessly.
 *
 * Source: ACPI 6.4, section 4.8 (fixed hardware).  The power button is the fixed
 * one: PWRBTN_STS and the SCI, level-triggered on IRQ 9 while an enabled status
 * bit is set.
 *
 * Threads: vCPU threads and the loop; `lock` guards the registers.
 */
#include <string.h>

#include "vmm/internal.h"

#define PM1_PWRBTN (1u << 8)
#define PM1_KNOWN_EN (PM1_PWRBTN | (1u << 0) | (1u << 5))
#define PM1_CNT_SCI_EN (1u << 0)
#define PM1_CNT_SLP_TYP_SHIFT 10
#define PM1_CNT_SLP_EN (1u << 13)
#define SLP_TYP_S5 5u /* as the DSDT's _S5 says */

#define PM_TIMER_HZ 3579545u
#define RESET_CPU (1u << 2) /* reset control register, port 0xcf9 */
#define KBD_COMMAND 0x64u
#define KBD_RESET 0xfeu

void platform_init(struct platform *p, struct kvm *kvm)
{
	*p = (struct platform){ .kvm = kvm, .pm1_cnt = PM1_CNT_SCI_EN };
	pthread_mutex_init(&p->lock, NULL);
}

void platform_fini(struct platform *p)
{
	pthread_mutex_destroy(&p->lock);
}

static void update_sci(struct platform *p)
{
	bool want = (p->pm1_sts & p->pm1_en) != 0;

	if (want == p->sci)
		return;
	p->sci = want;
	kvm_irq_line(p->kvm, IRQ_SCI, want);
}

void platform_power_button(struct platform *p)
{
	pthread_mutex_lock(&p->lock);
	p->pm1_sts |= PM1_PWRBTN;
	update_sci(p);
	pthread_mutex_unlock(&p->lock);
}

static uint32_t pm_timer(void)
{
	uint64_t ns = now_ns();

	/* In two steps, so that seconds times hertz do not overflow. */
	return (uint32_t)(ns / 1000000000u * PM_TIMER_HZ +
			  ns % 1000000000u * PM_TIMER_HZ / 1000000000u) & 0xffffffu;
}

static void write_cnt(struct platform *p, uint16_t v, enum platform_act *act)
{
	p->pm1_cnt = (uint16_t)((v & ~PM1_CNT_SLP_EN) | PM1_CNT_SCI_EN);
	if ((v & PM1_CNT_SLP_EN) && ((v >> PM1_CNT_SLP_TYP_SHIFT) & 7) == SLP_TYP_S5)
		*act = PLATFORM_POWEROFF;
}

/* The PM1 registers are 16 bits wide and accessed as such, or by bytes. */
static void pm1_access(struct platform *p, uint16_t port, bool write, uint8_t *data,
		       unsigned len, enum platform_act *act)
{
	unsigned off = port - PORT_PM1_EVT;
	uint8_t regs[6];
	uint16_t sts, en, cnt;

	memcpy(regs, &p->pm1_sts, 2);
	memcpy(regs + 2, &p->pm1_en, 2);
	memcpy(regs + 4, &p->pm1_cnt, 2);
	if (!write) {
		memcpy(data, regs + off, len);
		return;
	}
	memset(regs, 0, 2); /* status: only bits written as one are cleared */
	memcpy(regs + off, data, len);
	memcpy(&sts, regs, 2);
	memcpy(&en, regs + 2, 2);
	memcpy(&cnt, regs + 4, 2);
	p->pm1_sts &= (uint16_t)~sts;
	p->pm1_en = en & PM1_KNOWN_EN;
	if (off + len > 4)
		write_cnt(p, cnt, act);
	update_sci(p);
}

bool platform_port(struct platform *p, uint16_t port, bool write, void *data,
		   unsigned len, enum platform_act *act)
{
	uint8_t first = *(const uint8_t *)data;
	uint32_t timer;

	if (port >= PORT_PM1_EVT && port + len <= PORT_PM1_CNT + 2) {
		pthread_mutex_lock(&p->lock);
		pm1_access(p, port, write, data, len, act);
		pthread_mutex_unlock(&p->lock);
		return true;
	}
	switch (port) {
	case PORT_PM_TMR:
		timer = pm_timer();
		if (!write)
			memcpy(data, &timer, len);
		return true;
	case PORT_RESET:
		if (len != 1)
			return false; /* part of PCI's address register */
		if (write && (first & RESET_CPU))
			*act = PLATFORM_RESET;
		return true;
	case KBD_COMMAND:
		if (write && first == KBD_RESET)
			*act = PLATFORM_RESET;
		return true;
	case 0x70: /* CMOS: an update-in-progress bit stuck at 1 would stall readers */
	case 0x71:
		if (!write)
			memset(data, 0, len);
		return true;
	case 0x80:
	case 0xed:
		return true;
	default:
		return false;
	}
}
