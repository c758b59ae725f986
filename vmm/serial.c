/*
 * The serial port: a 16550A at COM1, as Linux's 8250 driver and its early console
 * expect.  Output goes straight to the console's history; the transmitter is
 * always empty.  Input waits in a FIFO.
 *
 * Threads: registers from vCPU threads, input from the loop; `lock` covers all.
 * The console is called with the lock dropped.
 *
 * Source: PC16550D data sheet, section 8.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "vmm/internal.h"

#define FIFO_BYTES 64u

enum { REG_DATA, REG_IER, REG_IIR_FCR, REG_LCR, REG_MCR, REG_LSR, REG_MSR, REG_SCR };

#define IER_RX 1u
#define IER_TX 2u
#define IIR_NONE 1u
#define IIR_TX 2u
#define IIR_RX 4u
#define IIR_FIFO 0xc0u
#define FCR_ENABLE 1u
#define FCR_CLEAR_RX 2u
#define LCR_DLAB 0x80u
#define MCR_LOOP 0x10u
#define LSR_DATA 1u
#define LSR_TX_EMPTY 0x60u
#define MSR_CARRIER 0xb0u /* CTS, DSR, DCD: a terminal is there */

struct serial {
	/* fixed at create */
	struct console *con;
	struct kvm *kvm;
	int irq_fd;

	pthread_mutex_t lock;
	/* under lock */
	uint8_t ier, lcr, mcr, scr, fcr, dll, dlm;
	bool tx_pending;
	bool irq_high;
	uint8_t fifo[FIFO_BYTES];
	unsigned head, count;
};

int serial_create(struct serial **out, struct console *con, struct kvm *kvm, struct err *e)
{
	struct serial *s = calloc(1, sizeof *s);
	int rc;

	if (!s)
		return err_set(e, -ENOMEM, "serial port: out of memory");
	s->con = con;
	s->kvm = kvm;
	s->dll = 1;
	pthread_mutex_init(&s->lock, NULL);
	s->irq_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	rc = s->irq_fd < 0 ? -errno : kvm_irqfd(kvm, s->irq_fd, IRQ_COM1, true);
	if (rc) {
		if (s->irq_fd >= 0)
			close(s->irq_fd);
		pthread_mutex_destroy(&s->lock);
		free(s);
		return err_sys(e, rc, "serial port: interrupt");
	}
	*out = s;
	return 0;
}

void serial_destroy(struct serial **sp)
{
	struct serial *s = *sp;

	if (!s)
		return;
	kvm_irqfd(s->kvm, s->irq_fd, IRQ_COM1, false);
	close(s->irq_fd);
	pthread_mutex_destroy(&s->lock);
	free(s);
	*sp = NULL;
}

static uint8_t iir(const struct serial *s)
{
	uint8_t fifo = s->fcr & FCR_ENABLE ? IIR_FIFO : 0;

	if ((s->ier & IER_RX) && s->count)
		return IIR_RX | fifo;
	if ((s->ier & IER_TX) && s->tx_pending)
		return IIR_TX | fifo;
	return IIR_NONE | fifo;
}

/* The line is edge-triggered: one signal each time a cause appears. */
static void update_irq(struct serial *s)
{
	bool want = !(iir(s) & IIR_NONE);
	uint64_t one = 1;
	ssize_t n;

	if (want && !s->irq_high) {
		n = write(s->irq_fd, &one, sizeof one);
		(void)n;
	}
	s->irq_high = want;
}

static bool fifo_put(struct serial *s, uint8_t b)
{
	if (s->count == FIFO_BYTES)
		return false;
	s->fifo[(s->head + s->count++) % FIFO_BYTES] = b;
	return true;
}

static uint8_t fifo_get(struct serial *s)
{
	uint8_t b = 0;

	if (s->count) {
		b = s->fifo[s->head];
		s->head = (s->head + 1) % FIFO_BYTES;
		s->count--;
	}
	return b;
}

static uint8_t msr(const struct serial *s)
{
	uint8_t m = s->mcr;

	if (!(m & MCR_LOOP))
		return MSR_CARRIER;
	/* looped back: RTS to CTS, DTR to DSR, OUT1 to RI, OUT2 to DCD */
	return (uint8_t)((m & 2) << 3 | (m & 1) << 5 | (m & 4) << 4 | (m & 8) << 4);
}

static uint8_t read_reg(struct serial *s, unsigned reg)
{
	uint8_t v;

	switch (reg) {
	case REG_DATA:
		return s->lcr & LCR_DLAB ? s->dll : fifo_get(s);
	case REG_IER:
		return s->lcr & LCR_DLAB ? s->dlm : s->ier;
	case REG_IIR_FCR:
		v = iir(s);
		if ((v & 0xf) == IIR_TX)
			s->tx_pending = false; /* reading acknowledges it */
		return v;
	case REG_LCR:
		return s->lcr;
	case REG_MCR:
		return s->mcr;
	case REG_LSR:
		return LSR_TX_EMPTY | (s->count ? LSR_DATA : 0);
	case REG_MSR:
		return msr(s);
	default:
		return s->scr;
	}
}

/* Returns true when the byte is for the console. */
static bool write_data(struct serial *s, uint8_t v)
{
	if (s->lcr & LCR_DLAB) {
		s->dll = v;
		return false;
	}
	s->tx_pending = true;
	if (s->mcr & MCR_LOOP) {
		fifo_put(s, v);
		return false;
	}
	s->irq_high = false; /* a new cause, even if the last is not yet read */
	return true;
}

static bool write_reg(struct serial *s, unsigned reg, uint8_t v)
{
	switch (reg) {
	case REG_DATA:
		return write_data(s, v);
	case REG_IER:
		if (s->lcr & LCR_DLAB) {
			s->dlm = v;
			break;
		}
		if ((v & IER_TX) && !(s->ier & IER_TX))
			s->tx_pending = true;
		s->ier = v & 0xf;
		break;
	case REG_IIR_FCR:
		s->fcr = v & FCR_ENABLE;
		if (v & FCR_CLEAR_RX)
			s->count = 0;
		break;
	case REG_LCR:
		s->lcr = v;
		break;
	case REG_MCR:
		s->mcr = v & 0x1f;
		break;
	case REG_SCR:
		s->scr = v;
		break;
	default:
		break; /* LSR and MSR are read-only */
	}
	return false;
}

void serial_io(struct serial *s, unsigned reg, bool write_access, uint8_t *data)
{
	bool out = false, shut, room;

	pthread_mutex_lock(&s->lock);
	shut = s->count || (s->mcr & MCR_LOOP);
	if (write_access)
		out = write_reg(s, reg, *data);
	else
		*data = read_reg(s, reg);
	room = shut && !s->count && !(s->mcr & MCR_LOOP);
	update_irq(s);
	pthread_mutex_unlock(&s->lock);
	if (out)
		console_output(s->con, data, 1);
	if (room)
		console_input_ready(s->con);
}

size_t serial_input(struct serial *s, const void *buf, size_t len)
{
	const uint8_t *p = buf;
	size_t n = 0;

	pthread_mutex_lock(&s->lock);
	while (!(s->mcr & MCR_LOOP) && n < len && fifo_put(s, p[n]))
		n++; /* looped back, the line is cut off: what comes waits */
	update_irq(s);
	pthread_mutex_unlock(&s->lock);
	return n;
}
