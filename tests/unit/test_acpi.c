/*
 * vmm/acpi.c: tables found the way an operating system finds them, from the RSDP
 * on, with every length and checksum looked at.
 */
#include <criterion/criterion.h>
#include <errno.h>
#include <string.h>

#include "vmm/internal.h"

#define HEADER_BYTES 36u

static struct ram *ram;
static uint64_t rsdp;

static void write_for(unsigned cpus)
{
	struct ram_config cfg = { .size_bytes = RAM_MIN_BYTES };
	struct err e = { "" };

	cr_assert_eq(ram_create(&ram, &cfg, &e), 0, "%s", e.msg);
	cr_assert_eq(acpi_write(ram, cpus, &rsdp, &e), 0, "%s", e.msg);
}

static void end(void)
{
	ram_destroy(&ram);
}

static const uint8_t *at(uint64_t addr, uint64_t bytes)
{
	const uint8_t *p = ram_at(ram, gpa(addr), bytes);

	cr_assert(p && addr >= LAYOUT_ACPI && bytes <= LAYOUT_ACPI_BYTES &&
		  addr - LAYOUT_ACPI <= LAYOUT_ACPI_BYTES - bytes, "%lx: outside", addr);
	return p;
}

static uint32_t get32(const uint8_t *p)
{
	uint32_t v;

	memcpy(&v, p, 4);
	return v;
}

static uint16_t get16(const uint8_t *p)
{
	uint16_t v;

	memcpy(&v, p, 2);
	return v;
}

static uint64_t get64(const uint8_t *p)
{
	return get32(p) | (uint64_t)get32(p + 4) << 32;
}

static uint8_t sum(const uint8_t *p, size_t n)
{
	uint8_t s = 0;

	while (n--)
		s = (uint8_t)(s + *p++);
	return s;
}

/* A table, after its header was checked as an OS does. */
static const uint8_t *table(uint64_t addr, const char *sig, uint32_t *len)
{
	const uint8_t *p = at(addr, HEADER_BYTES);

	cr_assert_eq(memcmp(p, sig, 4), 0, "%.4s, not %s", (const char *)p, sig);
	*len = get32(p + 4);
	cr_assert_geq(*len, HEADER_BYTES);
	cr_assert_eq(sum(at(addr, *len), *len), 0, "%s: checksum", sig);
	return p;
}

static const uint8_t *find(const char *sig, uint32_t *len)
{
	const uint8_t *r = at(rsdp, 36), *xsdt;
	uint32_t xsdt_len;

	xsdt = table(get64(r + 24), "XSDT", &xsdt_len);
	cr_assert_eq((xsdt_len - HEADER_BYTES) % 8, 0);
	for (uint32_t off = HEADER_BYTES; off < xsdt_len; off += 8) {
		uint64_t addr = get64(xsdt + off);

		if (memcmp(at(addr, 4), sig, 4) == 0)
			return table(addr, sig, len);
	}
	cr_assert_fail("no %s", sig);
	return NULL;
}

Test(acpi, rsdp_found_by_scanning_low_memory)
{
	uint64_t addr = 0xE0000;

	write_for(1);
	while (memcmp(ram_at(ram, gpa(addr), 8), "RSD PTR ", 8) != 0) {
		addr += 16;
		cr_assert_lt(addr, 0x100000);
	}
	cr_assert_eq(addr, rsdp);
	end();
}

Test(acpi, rsdp_both_checksums_and_revision_2)
{
	const uint8_t *r;

	write_for(1);
	r = at(rsdp, 36);
	cr_assert_eq(sum(r, 20), 0);
	cr_assert_eq(get32(r + 20), 36);
	cr_assert_eq(sum(r, 36), 0);
	cr_assert_eq(r[15], 2);
	end();
}

Test(acpi, every_table_found_and_checksummed)
{
	uint32_t len;

	for (unsigned cpus = 1; cpus <= VM_MAX_CPUS; cpus++) {
		const uint8_t *fadt;

		write_for(cpus);
		fadt = find("FACP", &len);
		cr_assert_eq(len, 276);
		table(get64(fadt + 140), "DSDT", &len);
		find("APIC", &len);
		find("MCFG", &len);
		end();
	}
}

Test(acpi, madt_lists_every_cpu_once)
{
	for (unsigned cpus = 1; cpus <= VM_MAX_CPUS; cpus++) {
		unsigned lapics = 0, ioapics = 0, overrides = 0;
		const uint8_t *madt;
		uint32_t len;

		write_for(cpus);
		madt = find("APIC", &len);
		cr_assert_eq(get32(madt + 36), 0xfee00000);
		for (uint32_t off = 44; off < len; off += madt[off + 1]) {
			const uint8_t *e = madt + off;

			cr_assert(e[1] >= 2 && off + e[1] <= len, "entry at %u", off);
			if (e[0] == 0) {
				cr_assert_eq(e[1], 8);
				cr_assert(e[2] == lapics && e[3] == lapics && get32(e + 4) == 1);
				lapics++;
			} else if (e[0] == 1) {
				cr_assert(e[1] == 12 && get32(e + 4) == 0xfec00000);
				ioapics++;
			} else if (e[0] == 2) {
				cr_assert_eq(e[1], 10);
				overrides++;
			} else {
				cr_assert(e[0] == 4 && e[1] == 6, "type %u", e[0]);
			}
		}
		cr_assert_eq(lapics, cpus);
		cr_assert_eq(ioapics, 1);
		cr_assert_eq(overrides, 2);
		end();
	}
}

Test(acpi, sci_is_level_active_high_in_madt_and_fadt)
{
	const uint8_t *madt, *fadt;
	uint32_t len, madt_len;
	bool seen = false;

	write_for(2);
	fadt = find("FACP", &len);
	madt = find("APIC", &madt_len);
	for (uint32_t off = 44; off < madt_len; off += madt[off + 1])
		if (madt[off] == 2 && madt[off + 3] == get16(fadt + 46)) {
			cr_assert_eq(get32(madt + off + 4), IRQ_SCI);
			cr_assert_eq(get16(madt + off + 8), 0xd);
			seen = true;
		}
	cr_assert(seen);
	end();
}

/* An I/O register: port, bits. */
static void check_gas(const uint8_t *g, uint16_t port, uint8_t bits)
{
	cr_assert_eq(g[0], 1, "in I/O space");
	cr_assert_eq(g[1], bits);
	cr_assert_eq(g[2], 0);
	cr_assert_eq(get64(g + 4), port);
}

Test(acpi, fadt_registers_are_where_platform_answers)
{
	const uint8_t *f;
	uint32_t len;

	write_for(1);
	f = find("FACP", &len);
	cr_assert_eq(get32(f + 56), PORT_PM1_EVT);
	cr_assert_eq(get32(f + 64), PORT_PM1_CNT);
	cr_assert_eq(get32(f + 76), PORT_PM_TMR);
	cr_assert_eq(f[88], 4);
	cr_assert_eq(f[89], 2);
	cr_assert_eq(f[91], 4);
	check_gas(f + 148, PORT_PM1_EVT, 32);
	check_gas(f + 172, PORT_PM1_CNT, 16);
	check_gas(f + 208, PORT_PM_TMR, 32);
	check_gas(f + 116, PORT_RESET, 8);
	cr_assert_eq(get32(f + 48), 0, "no SMI command: ACPI is on from the start");
	cr_assert(get32(f + 112) & 1u << 10, "reset register");
	cr_assert_not(get32(f + 112) & 1u << 4, "the power button is the fixed one");
	cr_assert_not(get32(f + 112) & 1u << 8, "the timer has 24 bits");
	end();
}

Test(acpi, fadt_both_dsdt_pointers_agree)
{
	const uint8_t *f;
	uint32_t len;

	write_for(1);
	f = find("FACP", &len);
	cr_assert_eq(get32(f + 40), get64(f + 140));
	end();
}

Test(acpi, facs_aligned_and_of_its_length)
{
	const uint8_t *f, *facs;
	uint32_t len;

	write_for(1);
	f = find("FACP", &len);
	cr_assert_eq(get32(f + 36) % 64, 0);
	facs = at(get32(f + 36), 64);
	cr_assert_eq(memcmp(facs, "FACS", 4), 0);
	cr_assert_eq(get32(facs + 4), 64);
	end();
}

Test(acpi, mcfg_is_bus_0_of_the_ecam_window)
{
	const uint8_t *m;
	uint32_t len;

	write_for(1);
	m = find("MCFG", &len);
	cr_assert_eq(len, 60);
	cr_assert_eq(get64(m + 44), LAYOUT_ECAM);
	cr_assert_eq(get16(m + 52), 0);
	cr_assert(m[54] == 0 && m[55] == LAYOUT_ECAM_BYTES / 0x100000 - 1);
	end();
}

/* PkgLength (ACPI 6.4, 20.2.4): bytes, its own included. */
static uint32_t pkg_length(const uint8_t *p)
{
	uint32_t more = p[0] >> 6, len = more ? p[0] & 0xf : p[0] & 0x3f;

	for (uint32_t i = 0; i < more; i++)
		len |= (uint32_t)p[1 + i] << (4 + 8 * i);
	return len;
}

Test(acpi, dsdt_top_level_objects_fill_it)
{
	const uint8_t *d;
	uint32_t len, dsdt_len, scope, pkg;

	write_for(1);
	d = table(get64(find("FACP", &len) + 140), "DSDT", &dsdt_len);
	d += HEADER_BYTES;
	cr_assert_eq(d[0], 0x10, "Scope");
	scope = pkg_length(d + 1);
	d += 1 + scope;
	cr_assert_eq(memcmp(d, "\x08_S5_\x12", 6), 0, "Name (_S5, Package");
	pkg = pkg_length(d + 6);
	cr_assert_eq(HEADER_BYTES + 1 + scope + 6 + pkg, dsdt_len);
	cr_assert_eq(memcmp(d + 8, "\x04\x0a\x05\x0a\x05", 5), 0, "sleep type 5");
	end();
}

Test(acpi, cpu_count_out_of_range_refused)
{
	struct ram_config cfg = { .size_bytes = RAM_MIN_BYTES };
	uint64_t unset = 7;
	struct err e = { "" };

	cr_assert_eq(ram_create(&ram, &cfg, &e), 0);
	cr_assert_eq(acpi_write(ram, 0, &unset, &e), -EINVAL);
	cr_assert_eq(acpi_write(ram, VM_MAX_CPUS + 1, &unset, &e), -EINVAL);
	cr_assert(strstr(e.msg, "17"), "%s", e.msg);
	cr_assert_eq(unset, 7);
	end();
}
