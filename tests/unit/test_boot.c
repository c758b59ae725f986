/*
 * vmm/boot.c, bzimage.c, elf.c: kernels made here by hand, good ones and every
 * kind of damaged one.  What must hold for any file: it is loaded inside RAM, or
 * refused in a sentence, and no byte outside the file is read (the images lie in
 * blocks of exactly their size, so that a sanitizer sees it).
 */
#include <asm/bootparam.h>
#include <criterion/criterion.h>
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "vmm/internal.h"

#define IMAGE_BYTES 16384u
#define IMAGE_MIN 4096u /* boot_load() refuses shorter files */
#define RAM_END RAM_MIN_BYTES
#define PREFERRED (16 * MiB)
#define HEADER(field) (0x1f1 + offsetof(struct setup_header, field))
#define SETUP_BYTES 2560u /* boot sector and four more */
#define ENTRY_OFF 0x200u

static struct ram *ram;
static uint8_t image[IMAGE_BYTES];
static struct err e;

static void begin(void)
{
	struct ram_config cfg = { .size_bytes = RAM_MIN_BYTES };

	cr_assert_eq(ram_create(&ram, &cfg, &e), 0, "%s", e.msg);
}

static void end(void)
{
	ram_destroy(&ram);
}

static void set(size_t off, uint64_t v, size_t bytes)
{
	memcpy(image + off, &v, bytes);
}

/* Recognisable content: no two neighbours alike. */
static void fill(size_t from)
{
	for (size_t i = from; i < IMAGE_BYTES; i++)
		image[i] = (uint8_t)(i * 7 + i / 256);
}

static void make_bzimage(void)
{
	memset(image, 0, sizeof image);
	fill(SETUP_BYTES);
	set(0x200, 0x66eb, 2); /* jump: the header ends at 0x268 */
	set(HEADER(setup_sects), 4, 1);
	set(HEADER(syssize), (IMAGE_BYTES - SETUP_BYTES) / 16, 4);
	set(HEADER(boot_flag), 0xaa55, 2);
	set(HEADER(header), 0x53726448, 4);
	set(HEADER(version), 0x020f, 2);
	set(HEADER(initrd_addr_max), 0x7fffffff, 4);
	set(HEADER(kernel_alignment), 2 * MiB, 4);
	set(HEADER(relocatable_kernel), 1, 1);
	set(HEADER(xloadflags), XLF_KERNEL_64, 2);
	set(HEADER(pref_address), PREFERRED, 8);
	set(HEADER(init_size), MiB, 4);
}

/* ---- ELF: two segments and a note ---------------------------------------------- */

#define PHDRS 3u
#define NOTE_OFF 0x800u
#define NOTE_BYTES 0x40u
#define DATA_OFF 0x1000u
#define TEXT_BYTES 0x1800u
#define DATA_BYTES 0x1000u
#define DATA_MEM 0x9000u
#define DATA_AT (PREFERRED + 2 * MiB)

static Elf64_Phdr *phdr(unsigned i)
{
	return (Elf64_Phdr *)(void *)(image + sizeof(Elf64_Ehdr)) + i;
}

static Elf64_Ehdr *ehdr(void)
{
	return (Elf64_Ehdr *)(void *)image;
}

/* A note: name, type, and a descriptor of desc_bytes. */
static size_t put_note(size_t off, const char *name, uint32_t type, uint64_t desc,
		       uint32_t desc_bytes)
{
	uint32_t name_bytes = (uint32_t)strlen(name) + 1;

	set(off, name_bytes, 4);
	set(off + 4, desc_bytes, 4);
	set(off + 8, type, 4);
	memset(image + off + 12, 0, 16);
	memcpy(image + off + 12, name, name_bytes);
	off += 12 + (name_bytes + 3) / 4 * 4;
	set(off, desc, desc_bytes);
	return off + (desc_bytes + 3) / 4 * 4;
}

static void make_elf(void)
{
	static const uint8_t ident[EI_NIDENT] = { 0x7f, 'E', 'L', 'F', ELFCLASS64, ELFDATA2LSB, 1 };
	size_t off;

	memset(image, 0, sizeof image);
	fill(DATA_OFF);
	*ehdr() = (Elf64_Ehdr){ .e_type = ET_EXEC, .e_machine = EM_X86_64, .e_version = 1,
				.e_entry = PREFERRED + 0x100, .e_phoff = sizeof(Elf64_Ehdr),
				.e_phentsize = sizeof(Elf64_Phdr), .e_phnum = PHDRS };
	memcpy(ehdr()->e_ident, ident, sizeof ident);
	*phdr(0) = (Elf64_Phdr){ .p_type = PT_LOAD, .p_offset = DATA_OFF, .p_paddr = PREFERRED,
				 .p_filesz = TEXT_BYTES, .p_memsz = TEXT_BYTES };
	*phdr(1) = (Elf64_Phdr){ .p_type = PT_LOAD, .p_offset = DATA_OFF + TEXT_BYTES,
				 .p_paddr = DATA_AT, .p_filesz = DATA_BYTES, .p_memsz = DATA_MEM };
	*phdr(2) = (Elf64_Phdr){ .p_type = PT_NOTE, .p_offset = NOTE_OFF, .p_filesz = NOTE_BYTES };
	off = put_note(NOTE_OFF, "GNU", 3, 0x1234, 8);
	off = put_note(off, "Xen", 18, PREFERRED + 0x200, 8);
	cr_assert_leq(off, NOTE_OFF + NOTE_BYTES);
	set(off, 0, 8); /* what is left is no note */
}

/* ---- loading --------------------------------------------------------------------- */

/* As boot_load() does with a file of len_bytes; -ENOEXEC when it is no kernel. */
static int load_part(size_t len_bytes, struct boot_entry *entry)
{
	uint8_t *exact = malloc(len_bytes);
	struct boot_image img = { exact, len_bytes, "/k" };
	int rc = -ENOEXEC;

	memcpy(exact, image, len_bytes);
	*entry = (struct boot_entry){ .rsi = LAYOUT_ZERO_PAGE };
	e.msg[0] = '\0';
	if (bzimage_detect(&img))
		rc = bzimage_load(ram, &img, entry, &e);
	else if (elf_detect(&img))
		rc = elf_load(ram, &img, entry, &e);
	else
		err_set(&e, rc, "kernel /k: none");
	free(exact);
	return rc;
}

static void loads(struct boot_entry *entry)
{
	cr_assert_eq(load_part(IMAGE_BYTES, entry), 0, "%s", e.msg);
}

static void refused(const char *named)
{
	struct boot_entry entry;

	cr_assert_lt(load_part(IMAGE_BYTES, &entry), 0);
	cr_assert(strstr(e.msg, named) && strstr(e.msg, "kernel /k"), "'%s': %s", named, e.msg);
}

/* What holds after any file that was loaded. */
static void check_inside(const struct boot_entry *entry)
{
	cr_assert_geq(entry->rip, LAYOUT_HIGH_RAM);
	cr_assert_lt(entry->rip, entry->kernel_end);
	cr_assert_leq(entry->kernel_end, RAM_END);
}

static void check_content(uint64_t at, size_t image_off, size_t bytes)
{
	cr_assert_arr_eq(ram_at(ram, gpa(at), bytes), image + image_off, bytes);
}

/* ---- bzImage ------------------------------------------------------------------- */

Test(boot, bzimage_good_loaded_at_preferred_address)
{
	struct boot_entry entry;
	struct boot_params *bp;

	begin();
	make_bzimage();
	loads(&entry);
	cr_assert_eq(entry.rip, PREFERRED + ENTRY_OFF);
	cr_assert_eq(entry.kernel_end, PREFERRED + MiB);
	cr_assert_eq(entry.initrd_max, 0x7fffffff);
	cr_assert_not(entry.pvh);
	check_content(PREFERRED, SETUP_BYTES, IMAGE_BYTES - SETUP_BYTES);
	bp = ram_at(ram, gpa(LAYOUT_ZERO_PAGE), sizeof *bp);
	cr_assert_eq(bp->hdr.header, 0x53726448);
	cr_assert_eq(bp->hdr.init_size, MiB);
	end();
}

Test(boot, bzimage_setup_sects_0_means_4)
{
	struct boot_entry entry;

	begin();
	make_bzimage();
	set(HEADER(setup_sects), 0, 1);
	loads(&entry);
	check_content(PREFERRED, SETUP_BYTES, 64);
	end();
}

Test(boot, bzimage_ram_too_small_for_preferred_address_goes_low)
{
	struct boot_entry entry;

	begin();
	make_bzimage();
	set(HEADER(init_size), 49 * MiB, 4);
	loads(&entry);
	cr_assert_eq(entry.rip, 2 * MiB + ENTRY_OFF, "the lowest aligned address");
	cr_assert_eq(entry.kernel_end, 51 * MiB);
	check_content(2 * MiB, SETUP_BYTES, 64);
	set(HEADER(init_size), 48 * MiB, 4);
	loads(&entry);
	cr_assert_eq(entry.kernel_end, RAM_END, "fits exactly where it wants to be");
	end();
}

Test(boot, bzimage_that_cannot_be_placed_refused)
{
	begin();
	make_bzimage();
	set(HEADER(init_size), 62 * MiB + 1, 4);
	refused("memory");
	set(HEADER(init_size), 0xffffffff, 4);
	refused("memory");
	set(HEADER(init_size), 49 * MiB, 4);
	set(HEADER(relocatable_kernel), 0, 1);
	refused("memory");
	end();
}

Test(boot, bzimage_hostile_fields_refused_by_name)
{
	static const struct { size_t off, bytes; uint64_t v; const char *named; } cases[] = {
		{ HEADER(version), 2, 0x020b, "2.12" },
		{ HEADER(version), 2, 0, "2.12" },
		{ HEADER(xloadflags), 2, 0, "32-bit" },
		{ HEADER(xloadflags), 2, (uint16_t)~XLF_KERNEL_64, "32-bit" },
		{ HEADER(setup_sects), 1, 0xff, "truncated" },
		{ HEADER(setup_sects), 1, IMAGE_BYTES / 512 - 1, "truncated" },
		{ HEADER(setup_sects), 1, IMAGE_BYTES / 512 - 2, "truncated" },
		{ HEADER(syssize), 4, 0xffffffff, "truncated" },
		{ HEADER(syssize), 4, (IMAGE_BYTES - SETUP_BYTES) / 16 + 1, "truncated" },
	};

	begin();
	for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
		make_bzimage();
		set(cases[i].off, cases[i].v, cases[i].bytes);
		refused(cases[i].named);
	}
	end();
}

Test(boot, bzimage_hostile_addresses_stay_inside_ram)
{
	static const uint64_t values[] = {
		0, 1, 0x1000, MiB - 1, MiB, MiB + 1, 3 * MiB + 7, RAM_END - MiB, RAM_END - MiB + 1,
		RAM_END - 1, RAM_END, RAM_END + 1, 0x7fffffff, 0x80000000, 0xffffffff,
		0x100000000, INT64_MAX, 1ull << 63, UINT64_MAX - 511, UINT64_MAX,
	};

	begin();
	for (size_t i = 0; i < ARRAY_LEN(values); i++)
		for (unsigned relocatable = 0; relocatable < 2; relocatable++) {
			struct boot_entry entry;

			make_bzimage();
			set(HEADER(relocatable_kernel), relocatable, 1);
			set(HEADER(pref_address), values[i], 8);
			if (load_part(IMAGE_BYTES, &entry) == 0)
				check_inside(&entry);
			else
				cr_assert(!relocatable && strstr(e.msg, "memory"), "%s", e.msg);
			set(HEADER(pref_address), 0, 8);
			set(HEADER(kernel_alignment), values[i], 4);
			if (load_part(IMAGE_BYTES, &entry) == 0)
				check_inside(&entry);
		}
	end();
}

Test(boot, bzimage_truncated_anywhere_refused)
{
	struct boot_entry entry;

	begin();
	make_bzimage();
	for (size_t len = IMAGE_MIN; len < IMAGE_BYTES - 15; len++) {
		cr_assert_lt(load_part(len, &entry), 0, "%zu bytes", len);
		cr_assert(strstr(e.msg, "truncated"), "%s", e.msg);
	}
	end();
}

/* In the zero page the header has 123 bytes, and other things behind it. */
Test(boot, bzimage_header_of_any_length_kept_to_its_place)
{
	struct boot_entry entry;

	begin();
	for (unsigned jump = 0; jump < 256; jump++) {
		const uint8_t *page;

		make_bzimage();
		memset(image + 0x1f1 + sizeof(struct setup_header), 0xee, 0x100);
		set(0x201, jump, 1);
		loads(&entry);
		page = ram_at(ram, gpa(LAYOUT_ZERO_PAGE), PAGE_BYTES);
		for (size_t i = 0x1f1 + sizeof(struct setup_header); i < PAGE_BYTES; i++)
			cr_assert_eq(page[i], 0, "jump %#x: byte %#zx", jump, i);
	}
	end();
}

Test(boot, bzimage_code_that_ends_before_its_entry_refused)
{
	begin();
	make_bzimage();
	set(HEADER(syssize), 0, 4); /* says nothing of its length */
	set(HEADER(setup_sects), (IMAGE_BYTES - ENTRY_OFF) / 512 - 1, 1);
	refused("truncated");
	end();
}

/* ---- ELF ------------------------------------------------------------------------ */

Test(boot, elf_with_pvh_note_entered_there)
{
	struct boot_entry entry;
	const uint8_t *bss;

	begin();
	make_elf();
	loads(&entry);
	cr_assert(entry.pvh);
	cr_assert_eq(entry.rip, PREFERRED + 0x200);
	cr_assert_eq(entry.kernel_end, DATA_AT + DATA_MEM);
	check_content(PREFERRED, DATA_OFF, TEXT_BYTES);
	check_content(DATA_AT, DATA_OFF + TEXT_BYTES, DATA_BYTES);
	bss = ram_at(ram, gpa(DATA_AT + DATA_BYTES), DATA_MEM - DATA_BYTES);
	for (size_t i = 0; i < DATA_MEM - DATA_BYTES; i++)
		cr_assert_eq(bss[i], 0);
	end();
}

Test(boot, elf_note_of_32_bits_entered_there)
{
	struct boot_entry entry;

	begin();
	make_elf();
	memset(image + NOTE_OFF, 0, NOTE_BYTES);
	put_note(NOTE_OFF, "Xen", 18, PREFERRED + 0x300, 4);
	loads(&entry);
	cr_assert(entry.pvh);
	cr_assert_eq(entry.rip, PREFERRED + 0x300);
	end();
}

Test(boot, elf_without_pvh_entered_at_its_entry)
{
	struct boot_entry entry;
	const struct boot_params *bp;

	begin();
	make_elf();
	phdr(2)->p_type = PT_NULL;
	loads(&entry);
	cr_assert_not(entry.pvh);
	cr_assert_eq(entry.rip, PREFERRED + 0x100);
	bp = ram_at(ram, gpa(LAYOUT_ZERO_PAGE), sizeof *bp);
	cr_assert_eq(bp->hdr.boot_flag, 0xaa55);
	end();
}

Test(boot, elf_of_another_kind_not_detected)
{
	struct boot_image img = { image, IMAGE_BYTES, "/k" };

	make_elf();
	cr_assert(elf_detect(&img));
	cr_assert_not(bzimage_detect(&img));
	image[EI_CLASS] = ELFCLASS32;
	cr_assert_not(elf_detect(&img));
	make_elf();
	image[EI_DATA] = ELFDATA2MSB;
	cr_assert_not(elf_detect(&img));
	make_elf();
	ehdr()->e_machine = EM_AARCH64;
	cr_assert_not(elf_detect(&img));
	make_elf();
	image[0] = 0;
	cr_assert_not(elf_detect(&img));
}

Test(boot, elf_header_table_hostile_refused)
{
	static const struct { size_t off, bytes; uint64_t v; } cases[] = {
		{ offsetof(Elf64_Ehdr, e_phnum), 2, 0 },
		{ offsetof(Elf64_Ehdr, e_phnum), 2, 65 },
		{ offsetof(Elf64_Ehdr, e_phnum), 2, 0xffff },
		{ offsetof(Elf64_Ehdr, e_phentsize), 2, 0 },
		{ offsetof(Elf64_Ehdr, e_phentsize), 2, 55 },
		{ offsetof(Elf64_Ehdr, e_phentsize), 2, 0xffff },
		{ offsetof(Elf64_Ehdr, e_phoff), 8, IMAGE_BYTES - 3 * 56 + 1 },
		{ offsetof(Elf64_Ehdr, e_phoff), 8, IMAGE_BYTES },
		{ offsetof(Elf64_Ehdr, e_phoff), 8, UINT64_MAX },
		{ offsetof(Elf64_Ehdr, e_phoff), 8, UINT64_MAX - 3 * 56 + 1 },
	};

	begin();
	for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
		make_elf();
		set(cases[i].off, cases[i].v, cases[i].bytes);
		refused("program headers");
	}
	end();
}

Test(boot, elf_segment_outside_file_or_ram_refused)
{
	static const struct {
		unsigned ph;
		size_t field;
		uint64_t v;
		const char *named;
	} cases[] = {
		{ 0, offsetof(Elf64_Phdr, p_offset), IMAGE_BYTES, "beyond the file" },
		{ 0, offsetof(Elf64_Phdr, p_offset), UINT64_MAX, "beyond the file" },
		{ 0, offsetof(Elf64_Phdr, p_offset), UINT64_MAX - TEXT_BYTES + 1, "beyond the file" },
		{ 0, offsetof(Elf64_Phdr, p_filesz), IMAGE_BYTES - DATA_OFF + 1, "beyond the file" },
		{ 0, offsetof(Elf64_Phdr, p_filesz), UINT64_MAX, "beyond the file" },
		{ 2, offsetof(Elf64_Phdr, p_offset), IMAGE_BYTES, "segment 2" },
		{ 2, offsetof(Elf64_Phdr, p_filesz), UINT64_MAX, "segment 2" },
		{ 0, offsetof(Elf64_Phdr, p_memsz), TEXT_BYTES - 1, "cannot be loaded" },
		{ 0, offsetof(Elf64_Phdr, p_paddr), 0, "cannot be loaded" },
		{ 0, offsetof(Elf64_Phdr, p_paddr), MiB - 1, "cannot be loaded" },
		{ 1, offsetof(Elf64_Phdr, p_paddr), RAM_END - DATA_MEM + 1, "beyond RAM" },
		{ 1, offsetof(Elf64_Phdr, p_paddr), RAM_END, "beyond RAM" },
		{ 1, offsetof(Elf64_Phdr, p_paddr), UINT64_MAX, "beyond RAM" },
		{ 1, offsetof(Elf64_Phdr, p_paddr), UINT64_MAX - DATA_MEM + 1, "beyond RAM" },
		{ 1, offsetof(Elf64_Phdr, p_memsz), RAM_END, "beyond RAM" },
		{ 1, offsetof(Elf64_Phdr, p_memsz), UINT64_MAX, "beyond RAM" },
	};

	begin();
	for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
		make_elf();
		memcpy((uint8_t *)phdr(cases[i].ph) + cases[i].field, &cases[i].v, 8);
		refused(cases[i].named);
	}
	end();
}

Test(boot, elf_segment_up_to_the_last_byte_of_ram_loaded)
{
	struct boot_entry entry;

	begin();
	make_elf();
	phdr(1)->p_paddr = RAM_END - DATA_MEM;
	loads(&entry);
	cr_assert_eq(entry.kernel_end, RAM_END);
	end();
}

Test(boot, elf_segments_overlapping_loaded_in_order)
{
	struct boot_entry entry;

	begin();
	make_elf();
	phdr(1)->p_paddr = PREFERRED + 0x400;
	loads(&entry);
	check_content(PREFERRED, DATA_OFF, 0x400);
	check_content(PREFERRED + 0x400, DATA_OFF + TEXT_BYTES, DATA_BYTES);
	end();
}

Test(boot, elf_entry_outside_what_is_loaded_refused)
{
	static const uint64_t entries[] = { 0, MiB - 1, RAM_END, DATA_AT + DATA_MEM, UINT64_MAX };

	begin();
	for (size_t i = 0; i < ARRAY_LEN(entries); i++) {
		make_elf();
		phdr(2)->p_type = PT_NULL;
		ehdr()->e_entry = entries[i];
		refused("entry point");
	}
	end();
}

Test(boot, elf_without_anything_to_load_refused)
{
	begin();
	make_elf();
	phdr(0)->p_type = phdr(1)->p_type = PT_NULL;
	refused("entry point");
	end();
}

/* A damaged note is no PVH entry: the ELF entry is used, and nothing else happens. */
Test(boot, elf_note_damaged_ignored)
{
	const size_t xen = NOTE_OFF + 24; /* behind "GNU" and its 8 bytes */
	const struct { size_t off; uint32_t v; } cases[] = {
		{ NOTE_OFF, UINT32_MAX },     { NOTE_OFF, NOTE_BYTES },
		{ NOTE_OFF + 4, UINT32_MAX }, { NOTE_OFF + 4, UINT32_MAX - 2 },
		{ xen, 3 }, { xen, 5 }, { xen, 0 }, { xen, UINT32_MAX },
		{ xen + 4, 0 }, { xen + 4, 5 }, { xen + 4, 16 }, { xen + 4, UINT32_MAX },
		{ xen + 8, 17 }, { xen + 12, 0x006e6559 /* "Yen" */ },
	};
	struct boot_entry entry;

	begin();
	make_elf();
	cr_assert_eq(memcmp(image + xen + 12, "Xen", 4), 0);
	for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
		make_elf();
		set(cases[i].off, cases[i].v, 4);
		loads(&entry);
		cr_assert_not(entry.pvh, "case %zu", i);
		cr_assert_eq(entry.rip, PREFERRED + 0x100);
	}
	end();
}

Test(boot, elf_note_segment_cut_anywhere_never_read_beyond)
{
	struct boot_entry entry;

	begin();
	for (unsigned bytes = 0; bytes <= NOTE_BYTES; bytes++) {
		make_elf();
		/* at the very end of the file */
		memmove(image + IMAGE_BYTES - bytes, image + NOTE_OFF, bytes);
		phdr(2)->p_offset = IMAGE_BYTES - bytes;
		phdr(2)->p_filesz = bytes;
		loads(&entry);
		cr_assert_eq(entry.pvh, bytes >= 48, "%u", bytes);
	}
	end();
}

Test(boot, elf_note_entry_outside_what_is_loaded_refused)
{
	begin();
	make_elf();
	put_note(NOTE_OFF, "Xen", 18, 0x1000, 8);
	refused("entry point");
	put_note(NOTE_OFF, "Xen", 18, UINT64_MAX, 8);
	refused("entry point");
	end();
}

Test(boot, elf_truncated_anywhere_refused)
{
	struct boot_entry entry;

	begin();
	make_elf();
	for (size_t len = IMAGE_MIN; len < DATA_OFF + TEXT_BYTES + DATA_BYTES; len++) {
		cr_assert_lt(load_part(len, &entry), 0, "%zu bytes", len);
		cr_assert(strstr(e.msg, "beyond the file"), "%s", e.msg);
	}
	end();
}

/* ---- any damage ------------------------------------------------------------------- */

static uint64_t seed = 0x5eed0b007;

static uint32_t rnd(uint32_t below)
{
	seed = seed * 6364136223846793005u + 1442695040888963407u;
	return (uint32_t)(seed >> 33) % below;
}

/* Bytes of the headers changed, to values that tend to be limits. */
static void damage(size_t from, size_t bytes)
{
	static const uint8_t limits[] = { 0, 1, 0x7f, 0x80, 0xfe, 0xff };

	for (unsigned n = 1 + rnd(4); n; n--)
		image[from + rnd((uint32_t)bytes)] =
			rnd(2) ? limits[rnd(sizeof limits)] : (uint8_t)rnd(256);
}

static void damaged_inside_or_refused(void (*make)(void), size_t from, size_t bytes)
{
	unsigned loaded = 0;

	printf("seed %#lx\n", seed);
	begin();
	for (unsigned i = 0; i < 5000; i++) {
		size_t len = rnd(4) ? IMAGE_BYTES : IMAGE_MIN + rnd(IMAGE_BYTES - IMAGE_MIN);
		struct boot_entry entry;
		int rc;

		make();
		damage(from, bytes);
		rc = load_part(len, &entry);
		if (rc == 0)
			check_inside(&entry);
		else
			cr_assert(rc < 0 && strstr(e.msg, "kernel /k"), "%s", e.msg);
		loaded += rc == 0;
	}
	cr_assert(loaded > 50 && loaded < 4950, "%u loaded proves little", loaded);
	end();
}

Test(boot, bzimage_damaged_anyhow_inside_ram_or_refused)
{
	damaged_inside_or_refused(make_bzimage, 0x1f1, 0x7b);
}

Test(boot, elf_damaged_anyhow_inside_ram_or_refused)
{
	damaged_inside_or_refused(make_elf, 0, sizeof(Elf64_Ehdr) + PHDRS * sizeof(Elf64_Phdr));
}

Test(boot, elf_notes_damaged_anyhow_inside_ram_or_refused)
{
	damaged_inside_or_refused(make_elf, NOTE_OFF, NOTE_BYTES);
}

/* ---- whole: files, initrd, what the kernel is told ---------------------------------- */

static struct vm_config cfg;
static char dir[] = "/tmp/brim-boot-XXXXXX";

static void write_file(char *path, const char *name, const void *data, size_t bytes)
{
	int fd;

	snprintf(path, PATH_MAX, "%s/%s", dir, name);
	fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
	cr_assert(fd >= 0 && write(fd, data, bytes) == (ssize_t)bytes);
	close(fd);
}

static void begin_files(void)
{
	begin();
	cr_assert_not_null(mkdtemp(dir));
	make_bzimage();
	write_file(cfg.kernel, "kernel", image, IMAGE_BYTES);
	snprintf(cfg.cmdline, sizeof cfg.cmdline, "console=ttyS0");
}

static void end_files(void)
{
	unlink(cfg.kernel);
	if (cfg.initrd[0])
		unlink(cfg.initrd);
	rmdir(dir);
	end();
}

static int load_all(struct boot_entry *entry)
{
	e.msg[0] = '\0';
	return boot_load(ram, &cfg, LAYOUT_ACPI, entry, &e);
}

/* What is told to be in any VM of these files, besides the initrd. */
static void check_loaded(const struct boot_entry *entry, unsigned i, uint64_t at, uint64_t bytes)
{
	cr_assert_lt(i, entry->loaded.count);
	cr_assert_eq(entry->loaded.at[i].addr.v, at);
	cr_assert_eq(entry->loaded.at[i].len_bytes, bytes);
}

static void set_initrd_bytes(uint64_t bytes)
{
	write_file(cfg.initrd, "initrd", "07070", bytes < 5 ? bytes : 5);
	cr_assert_eq(truncate(cfg.initrd, (off_t)bytes), 0);
}

Test(boot, load_bzimage_fills_the_zero_page)
{
	struct boot_entry entry;
	const struct boot_params *bp;

	begin_files();
	set_initrd_bytes(5000);
	cr_assert_eq(load_all(&entry), 0, "%s", e.msg);
	cr_assert_eq(entry.rsi, LAYOUT_ZERO_PAGE);
	bp = ram_at(ram, gpa(entry.rsi), sizeof *bp);
	cr_assert_eq(bp->hdr.type_of_loader, 0xff);
	cr_assert_eq(bp->acpi_rsdp_addr, LAYOUT_ACPI);
	cr_assert_str_eq((const char *)ram_at(ram, gpa(bp->hdr.cmd_line_ptr), 64), "console=ttyS0");
	cr_assert_eq(bp->hdr.ramdisk_size, 5000);
	cr_assert_eq(bp->hdr.ramdisk_image % PAGE_BYTES, 0);
	cr_assert_eq(bp->hdr.ramdisk_image, RAM_END - 2 * PAGE_BYTES);
	cr_assert_eq(memcmp(ram_at(ram, gpa(bp->hdr.ramdisk_image), 5), "07070", 5), 0);
	cr_assert_eq(bp->e820_entries, 5);
	cr_assert_eq(entry.loaded.count, 2);
	check_loaded(&entry, 0, PREFERRED, IMAGE_BYTES - SETUP_BYTES);
	check_loaded(&entry, 1, bp->hdr.ramdisk_image, 5000);
	end_files();
}

Test(boot, load_elf_fills_the_start_info)
{
	const uint8_t *si, *module;
	struct boot_entry entry;
	uint32_t word;
	uint64_t at;

	begin_files();
	make_elf();
	write_file(cfg.kernel, "kernel", image, IMAGE_BYTES);
	set_initrd_bytes(5000);
	cr_assert_eq(load_all(&entry), 0, "%s", e.msg);
	cr_assert(entry.pvh);
	cr_assert_eq(entry.rsi, LAYOUT_PVH_INFO);
	si = ram_at(ram, gpa(entry.rsi), PAGE_BYTES);
	memcpy(&word, si, 4);
	cr_assert_eq(word, 0x336ec578);
	memcpy(&word, si + 12, 4);
	cr_assert_eq(word, 1, "one module");
	memcpy(&at, si + 16, 8);
	module = ram_at(ram, gpa(at), 32);
	memcpy(&at, module, 8);
	cr_assert_eq(memcmp(ram_at(ram, gpa(at), 5), "07070", 5), 0);
	memcpy(&at, si + 24, 8);
	cr_assert_str_eq((const char *)ram_at(ram, gpa(at), 64), "console=ttyS0");
	memcpy(&at, si + 32, 8);
	cr_assert_eq(at, LAYOUT_ACPI);
	memcpy(&word, si + 48, 4);
	cr_assert_eq(word, 5, "memory map");
	cr_assert_eq(entry.loaded.count, 3);
	check_loaded(&entry, 0, PREFERRED, TEXT_BYTES);
	check_loaded(&entry, 1, DATA_AT, DATA_BYTES);
	check_loaded(&entry, 2, RAM_END - 2 * PAGE_BYTES, 5000);
	end_files();
}

Test(boot, load_command_line_of_full_length_whole)
{
	struct boot_entry entry;

	begin_files();
	memset(cfg.cmdline, 'c', VM_CMDLINE_MAX - 1);
	cr_assert_eq(load_all(&entry), 0, "%s", e.msg);
	cr_assert_str_eq((const char *)ram_at(ram, gpa(LAYOUT_CMDLINE), VM_CMDLINE_MAX),
			 cfg.cmdline);
	end_files();
}

/* The kernel ends within a page, so that a page is shared if rounding is wrong. */
Test(boot, load_initrd_never_touches_the_kernel)
{
	const uint64_t kernel_end = PREFERRED + MiB + 0x800;
	const uint64_t most = RAM_END - (kernel_end + 0x800);
	struct boot_entry entry;
	const struct boot_params *bp;

	begin_files();
	set(HEADER(init_size), MiB + 0x800, 4);
	write_file(cfg.kernel, "kernel", image, IMAGE_BYTES);
	set_initrd_bytes(most);
	cr_assert_eq(load_all(&entry), 0, "%s", e.msg);
	cr_assert_eq(entry.kernel_end, kernel_end);
	bp = ram_at(ram, gpa(entry.rsi), sizeof *bp);
	cr_assert_geq(bp->hdr.ramdisk_image, kernel_end);
	set_initrd_bytes(most + 1);
	cr_assert_eq(load_all(&entry), -ENOMEM);
	cr_assert(strstr(e.msg, "initrd") && strstr(e.msg, "memory"), "%s", e.msg);
	end_files();
}

Test(boot, load_initrd_kept_below_the_kernels_limit)
{
	struct boot_entry entry;
	const struct boot_params *bp;

	begin_files();
	set(HEADER(initrd_addr_max), 32 * MiB - 1, 4);
	write_file(cfg.kernel, "kernel", image, IMAGE_BYTES);
	set_initrd_bytes(PAGE_BYTES);
	cr_assert_eq(load_all(&entry), 0, "%s", e.msg);
	bp = ram_at(ram, gpa(entry.rsi), sizeof *bp);
	cr_assert_eq(bp->hdr.ramdisk_image, 32 * MiB - PAGE_BYTES);
	set(HEADER(initrd_addr_max), 0, 4);
	write_file(cfg.kernel, "kernel", image, IMAGE_BYTES);
	cr_assert_eq(load_all(&entry), -ENOMEM);
	end_files();
}

Test(boot, load_initrd_too_large_or_empty_refused_by_name)
{
	static const uint64_t sizes[] = { 0, 47 * MiB + 1, RAM_END, RAM_END + 1, 8 * GiB };
	struct boot_entry entry;

	begin_files();
	for (size_t i = 0; i < ARRAY_LEN(sizes); i++) {
		set_initrd_bytes(sizes[i]);
		cr_assert_lt(load_all(&entry), 0);
		cr_assert(strstr(e.msg, "initrd /tmp"), "%s", e.msg);
	}
	end_files();
}

Test(boot, load_file_that_is_none_refused_without_blocking)
{
	struct boot_entry entry;

	begin_files();
	unlink(cfg.kernel);
	cr_assert_eq(load_all(&entry), -ENOENT);
	cr_assert(strstr(e.msg, cfg.kernel), "%s", e.msg);
	cr_assert_eq(mkfifo(cfg.kernel, 0600), 0);
	cr_assert_eq(load_all(&entry), -EINVAL);
	cr_assert(strstr(e.msg, "regular file"), "%s", e.msg);
	unlink(cfg.kernel);
	write_file(cfg.kernel, "kernel", image, IMAGE_MIN - 1);
	cr_assert_lt(load_all(&entry), 0);
	cr_assert(strstr(e.msg, "too short"), "%s", e.msg);
	memset(image, 0, sizeof image);
	write_file(cfg.kernel, "kernel", image, IMAGE_BYTES);
	cr_assert_eq(load_all(&entry), -ENOEXEC);
	cr_assert(strstr(e.msg, "bzImage"), "%s", e.msg);
	end_files();
}

Test(boot, load_refused_leaves_no_descriptor_open)
{
	struct boot_entry entry;
	int before, after;

	begin_files();
	set_initrd_bytes(RAM_END);
	before = dup(0);
	for (unsigned i = 0; i < 10; i++)
		cr_assert_lt(load_all(&entry), 0);
	after = dup(0);
	cr_assert_eq(after, before + 1);
	close(before);
	close(after);
	end_files();
}

Test(boot, page_tables_map_4_gib_onto_themselves)
{
	struct boot_entry entry;
	const uint64_t *pml4, *pdpt;

	begin_files();
	cr_assert_eq(load_all(&entry), 0, "%s", e.msg);
	pml4 = ram_at(ram, gpa(LAYOUT_PML4), PAGE_BYTES);
	pdpt = ram_at(ram, gpa(pml4[0] & ~0xfffull), PAGE_BYTES);
	for (uint64_t at = 0; at < 4 * GiB; at += HUGE_BYTES) {
		const uint64_t *pd = ram_at(ram, gpa(pdpt[at >> 30] & ~0xfffull), PAGE_BYTES);

		cr_assert_eq(pd[(at >> 21) % 512], at | 0x83);
	}
	end_files();
}

Test(boot, memory_map_sorted_and_ram_is_ram)
{
	static const uint64_t sizes[] = { RAM_MIN_BYTES, 3 * GiB, 3 * GiB + 2 * MiB, 5 * GiB };

	for (size_t i = 0; i < ARRAY_LEN(sizes); i++) {
		struct ram_config rc = { .size_bytes = sizes[i] };
		struct boot_range map[BOOT_RANGES_MAX];
		uint64_t usable = 0, last = 0;
		unsigned n;

		cr_assert_eq(ram_create(&ram, &rc, &e), 0, "%s", e.msg);
		n = boot_memory_map(ram, map);
		for (unsigned k = 0; k < n; k++) {
			cr_assert_geq(map[k].base, last);
			last = map[k].base + map[k].size_bytes;
			usable += map[k].ram ? map[k].size_bytes : 0;
			if (map[k].ram)
				cr_assert_not_null(ram_at(ram, gpa(map[k].base), map[k].size_bytes));
		}
		cr_assert_eq(usable, sizes[i] - LAYOUT_HIGH_RAM + LAYOUT_EBDA);
		end();
	}
}
