/*
 * ACPI tables: just enough for a stock kernel to find its CPUs (MADT), PCI (DSDT
 * and MCFG), the serial port, the power button and the way to power off and reset
 * (FADT).  Written once before the guest starts, at LAYOUT_ACPI, which the memory
 * map reports as reserved.
 *
 * Source: ACPI 6.4, chapters 5 (tables), 6.4 (resources), 20 (AML encoding).
 * AML packages here are all under 4 KiB, so their lengths always take two bytes.
 */
#include <errno.h>
#include <string.h>

#include "vmm/internal.h"

#define HEADER_BYTES 36u
#define FADT_BYTES 276u
#define FACS_BYTES 64u
#define SLP_TYP_S5 5u

#define FADT_WBINVD (1u << 0)
#define FADT_PROC_C1 (1u << 2)
#define FADT_NO_SLEEP_BUTTON (1u << 5)
#define FADT_NO_FIXED_RTC (1u << 6)
#define FADT_RESET_REG (1u << 10)

#define BOOT_ARCH_LEGACY (1u << 0)
#define BOOT_ARCH_NO_VGA (1u << 2)
#define BOOT_ARCH_NO_ASPM (1u << 4)
#define BOOT_ARCH_NO_RTC (1u << 5)

/* Tables are appended to one block of guest memory. */
struct out {
	uint8_t *base;
	size_t len; /* bytes used; stays <= LAYOUT_ACPI_BYTES */
};

static void put(struct out *o, const void *bytes, size_t n)
{
	VERIFY(n <= LAYOUT_ACPI_BYTES - o->len);
	memcpy(o->base + o->len, bytes, n);
	o->len += n;
}

static void put8(struct out *o, uint8_t v) { put(o, &v, 1); }
static void put16(struct out *o, uint16_t v) { put(o, &v, 2); }
static void put32(struct out *o, uint32_t v) { put(o, &v, 4); }
static void put64(struct out *o, uint64_t v) { put(o, &v, 8); }

static void put_zeroes(struct out *o, size_t n)
{
	while (n--)
		put8(o, 0);
}

static uint8_t checksum(const uint8_t *p, size_t n)
{
	uint8_t sum = 0;

	while (n--)
		sum = (uint8_t)(sum + *p++);
	return (uint8_t)-sum;
}

/* ---- one table: begin writes the header, end its length and checksum ------ */

static size_t table_begin(struct out *o, const char sig[4], uint8_t revision)
{
	size_t at;

	while (o->len % 64)
		put8(o, 0); /* FACS needs 64; the others do not mind */
	at = o->len;
	put(o, sig, 4);
	put32(o, 0);
	put8(o, revision);
	put8(o, 0);
	put(o, "BRIM  ", 6);
	put(o, "BRIMVM  ", 8);
	put32(o, 1);
	put(o, "BRIM", 4);
	put32(o, 1);
	return at;
}

static uint64_t table_end(struct out *o, size_t at)
{
	uint32_t len = (uint32_t)(o->len - at);

	memcpy(o->base + at + 4, &len, 4);
	o->base[at + 9] = checksum(o->base + at, len);
	return LAYOUT_ACPI + at;
}

/* ---- AML ------------------------------------------------------------------ */

static size_t aml_begin(struct out *o)
{
	put16(o, 0);
	return o->len - 2;
}

/* Two-byte PkgLength: bits 3..0 in the first byte, whose bits 7..6 say 1 more. */
static void aml_end(struct out *o, size_t at)
{
	size_t len = o->len - at;

	VERIFY(len < 4096);
	o->base[at] = (uint8_t)(0x40 | (len & 0xf));
	o->base[at + 1] = (uint8_t)(len >> 4);
}

static void aml_dword(struct out *o, uint32_t v)
{
	put8(o, 0x0c);
	put32(o, v);
}

static void aml_name(struct out *o, const char name[4])
{
	put8(o, 0x08);
	put(o, name, 4);
}

static void aml_name_dword(struct out *o, const char name[4], uint32_t v)
{
	aml_name(o, name);
	aml_dword(o, v);
}

/* "PNP0A08" compressed: three letters in 5 bits each, four hex digits, big-endian. */
static uint32_t eisa_id(const char *s)
{
	static const char hex[] = "0123456789ABCDEF";
	uint32_t v = (uint32_t)((s[0] - '@') << 26 | (s[1] - '@') << 21 | (s[2] - '@') << 16);

	for (int i = 0; i < 4; i++)
		v |= (uint32_t)(strchr(hex, s[3 + i]) - hex) << (12 - 4 * i);
	return __builtin_bswap32(v);
}

static size_t aml_device(struct out *o, const char name[4], const char *hid, uint32_t uid)
{
	size_t at;

	put8(o, 0x5b);
	put8(o, 0x82);
	at = aml_begin(o);
	put(o, name, 4);
	aml_name_dword(o, "_HID", eisa_id(hid));
	aml_name_dword(o, "_UID", uid);
	return at;
}

/* A resource template is a buffer; its size byte is patched at the end. */
struct crs { size_t package, size_at, data; };

static struct crs crs_begin(struct out *o)
{
	struct crs c;

	aml_name(o, "_CRS");
	put8(o, 0x11);
	c.package = aml_begin(o);
	put8(o, 0x0b); /* WordPrefix */
	c.size_at = o->len;
	put16(o, 0);
	c.data = o->len;
	return c;
}

static void crs_end(struct out *o, struct crs c)
{
	uint16_t size;

	put8(o, 0x79);
	put8(o, 0);
	size = (uint16_t)(o->len - c.data);
	memcpy(o->base + c.size_at, &size, 2);
	aml_end(o, c.package);
}

static void crs_io(struct out *o, uint16_t port, uint8_t len)
{
	put8(o, 0x47);
	put8(o, 1); /* decodes 16 bits */
	put16(o, port);
	put16(o, port);
	put8(o, 1);
	put8(o, len);
}

static void crs_word_range(struct out *o, uint8_t type, uint8_t type_flags, uint16_t min,
			   uint16_t max)
{
	put8(o, 0x88);
	put16(o, 13);
	put8(o, type);
	put8(o, 0x0c); /* fixed at both ends, produced for what is below */
	put8(o, type_flags);
	put16(o, 0);
	put16(o, min);
	put16(o, max);
	put16(o, 0);
	put16(o, (uint16_t)(max - min + 1));
}

static void crs_dword_memory(struct out *o, uint32_t min, uint32_t max)
{
	put8(o, 0x87);
	put16(o, 23);
	put8(o, 0);
	put8(o, 0x0c);
	put8(o, 1); /* writable, not cacheable */
	put32(o, 0);
	put32(o, min);
	put32(o, max);
	put32(o, 0);
	put32(o, max - min + 1);
}

static void device_pci(struct out *o)
{
	size_t dev = aml_device(o, "PCI0", "PNP0A08", 0);
	struct crs crs;

	aml_name_dword(o, "_CID", eisa_id("PNP0A03"));
	aml_name_dword(o, "_SEG", 0);
	aml_name_dword(o, "_BBN", 0);
	crs = crs_begin(o);
	crs_word_range(o, 2, 0, 0, 0); /* buses 0..0 */
	crs_io(o, 0xcf8, 8);
	crs_word_range(o, 1, 3, 0x1000, 0xffff);
	crs_dword_memory(o, LAYOUT_BARS, LAYOUT_BARS_END - 1);
	crs_end(o, crs);
	aml_end(o, dev);
}

/* Linux uses ECAM only where a motherboard device claims it. */
static void device_motherboard(struct out *o)
{
	size_t dev = aml_device(o, "MBRD", "PNP0C02", 0);
	struct crs crs = crs_begin(o);

	put8(o, 0x86); /* Memory32Fixed */
	put16(o, 9);
	put8(o, 1);
	put32(o, LAYOUT_ECAM);
	put32(o, LAYOUT_ECAM_BYTES);
	crs_io(o, PORT_PM1_EVT, 0x0c);
	crs_end(o, crs);
	aml_end(o, dev);
}

static void device_serial(struct out *o)
{
	size_t dev = aml_device(o, "COM1", "PNP0501", 0);
	struct crs crs = crs_begin(o);

	crs_io(o, PORT_COM1, 8);
	put8(o, 0x22); /* IRQ, edge, active high */
	put16(o, 1u << IRQ_COM1);
	crs_end(o, crs);
	aml_end(o, dev);
}

static uint64_t write_dsdt(struct out *o)
{
	size_t at = table_begin(o, "DSDT", 2), scope, pkg;

	put8(o, 0x10);
	scope = aml_begin(o);
	put(o, "_SB_", 4);
	device_pci(o);
	device_motherboard(o);
	device_serial(o);
	aml_end(o, scope);

	aml_name(o, "_S5_");
	put8(o, 0x12);
	pkg = aml_begin(o);
	put8(o, 4);
	for (int i = 0; i < 4; i++) {
		put8(o, 0x0a); /* BytePrefix */
		put8(o, i < 2 ? SLP_TYP_S5 : 0);
	}
	aml_end(o, pkg);
	return table_end(o, at);
}

static uint64_t write_facs(struct out *o)
{
	size_t at;

	while (o->len % 64)
		put8(o, 0);
	at = o->len;
	put(o, "FACS", 4);
	put32(o, FACS_BYTES);
	put_zeroes(o, FACS_BYTES - 8);
	o->base[at + 32] = 2; /* version */
	return LAYOUT_ACPI + at;
}

/* Generic address: an I/O port register of `bits`, accessed `access` wide. */
static void set_gas(uint8_t *p, uint8_t bits, uint8_t access, uint64_t port)
{
	p[0] = 1;
	p[1] = bits;
	p[2] = 0;
	p[3] = access;
	memcpy(p + 4, &port, 8);
}

static void set32(uint8_t *p, uint32_t v) { memcpy(p, &v, 4); }
static void set16(uint8_t *p, uint16_t v) { memcpy(p, &v, 2); }

/* Fields by their offsets in ACPI 6.4, table 5.9. */
static uint64_t write_fadt(struct out *o, uint64_t facs, uint64_t dsdt)
{
	size_t at = table_begin(o, "FACP", 6);
	uint8_t *f;

	put_zeroes(o, FADT_BYTES - HEADER_BYTES);
	f = o->base + at;
	set32(f + 36, (uint32_t)facs);
	set32(f + 40, (uint32_t)dsdt);
	f[45] = 4; /* enterprise server */
	set16(f + 46, IRQ_SCI);
	set32(f + 56, PORT_PM1_EVT);
	set32(f + 64, PORT_PM1_CNT);
	set32(f + 76, PORT_PM_TMR);
	f[88] = 4; /* PM1 event block bytes */
	f[89] = 2; /* PM1 control block bytes */
	f[91] = 4; /* PM timer bytes */
	set16(f + 96, 0xfff);  /* no C2 */
	set16(f + 98, 0xffff); /* no C3 */
	set16(f + 109, BOOT_ARCH_LEGACY | BOOT_ARCH_NO_VGA | BOOT_ARCH_NO_ASPM | BOOT_ARCH_NO_RTC);
	set32(f + 112, FADT_WBINVD | FADT_PROC_C1 | FADT_NO_SLEEP_BUTTON | FADT_NO_FIXED_RTC |
	      FADT_RESET_REG);
	set_gas(f + 116, 8, 1, PORT_RESET);
	f[128] = 6; /* value that resets: CPU reset, hard */
	f[131] = 4; /* minor version */
	memcpy(f + 140, &dsdt, 8);
	set_gas(f + 148, 32, 2, PORT_PM1_EVT);
	set_gas(f + 172, 16, 2, PORT_PM1_CNT);
	set_gas(f + 208, 32, 3, PORT_PM_TMR);
	return table_end(o, at);
}

static void madt_override(struct out *o, uint8_t irq, uint32_t gsi, uint16_t flags)
{
	put8(o, 2);
	put8(o, 10);
	put8(o, 0);
	put8(o, irq);
	put32(o, gsi);
	put16(o, flags);
}

static uint64_t write_madt(struct out *o, unsigned cpus)
{
	size_t at = table_begin(o, "APIC", 5);

	put32(o, 0xfee00000);
	put32(o, 1); /* PICs present */
	for (unsigned i = 0; i < cpus; i++) {
		put8(o, 0);
		put8(o, 8);
		put8(o, (uint8_t)i);
		put8(o, (uint8_t)i);
		put32(o, 1); /* enabled */
	}
	put8(o, 1); /* IOAPIC */
	put8(o, 12);
	put16(o, 0);
	put32(o, 0xfec00000);
	put32(o, 0);
	madt_override(o, 0, 2, 0);            /* the timer is wired to pin 2 */
	madt_override(o, IRQ_SCI, IRQ_SCI, 0xd); /* active high, level */
	put8(o, 4); /* NMI on LINT1 of every CPU */
	put8(o, 6);
	put8(o, 0xff);
	put16(o, 0);
	put8(o, 1);
	return table_end(o, at);
}

static uint64_t write_mcfg(struct out *o)
{
	size_t at = table_begin(o, "MCFG", 1);

	put64(o, 0);
	put64(o, LAYOUT_ECAM);
	put16(o, 0);
	put8(o, 0); /* buses 0..0 */
	put8(o, 0);
	put32(o, 0);
	return table_end(o, at);
}

static void write_rsdp(uint8_t *p, uint64_t xsdt)
{
	memcpy(p, "RSD PTR ", 8);
	memcpy(p + 9, "BRIM  ", 6);
	p[15] = 2;
	set32(p + 20, 36);
	memcpy(p + 24, &xsdt, 8);
	p[8] = checksum(p, 20);
	p[32] = checksum(p, 36);
}

int acpi_write(const struct ram *ram, unsigned cpus, uint64_t *rsdp, struct err *e)
{
	struct out o = { .base = ram_at(ram, gpa(LAYOUT_ACPI), LAYOUT_ACPI_BYTES) };
	uint64_t facs, dsdt, tables[3];
	size_t at;

	if (!o.base || cpus == 0 || cpus > VM_MAX_CPUS)
		return err_set(e, -EINVAL, "ACPI: no tables for %u CPUs", cpus);
	put_zeroes(&o, 64); /* the RSDP's place: first, 16-byte aligned */
	facs = write_facs(&o);
	dsdt = write_dsdt(&o);
	tables[0] = write_fadt(&o, facs, dsdt);
	tables[1] = write_madt(&o, cpus);
	tables[2] = write_mcfg(&o);
	at = table_begin(&o, "XSDT", 1);
	for (size_t i = 0; i < ARRAY_LEN(tables); i++)
		put64(&o, tables[i]);
	write_rsdp(o.base, table_end(&o, at));
	*rsdp = LAYOUT_ACPI;
	return 0;
}
