/*
 * Uncompressed ELF kernels (vmlinux).  With a PVH note (XEN_ELFNOTE_PHYS32_ENTRY)
 * they are entered in 32-bit protected mode by PVH; without, at the ELF entry
 * point in long mode with a zero page, as Linux's startup_64 expects.
 *
 * The file is checked whole before a byte of it is loaded: every header and
 * segment inside the file, every segment inside low RAM above 1 MiB.
 *
 * Sources: System V ABI, chapter 5; xen/include/public/elfnote.h.
 */
#include <asm/bootparam.h>
#include <elf.h>
#include <errno.h>
#include <string.h>

#include "vmm/internal.h"

#define NOTE_PHYS32_ENTRY 18u
#define SEGMENTS_MAX 64u
#define INITRD_MAX 0x7fffffffull
#define NOTES_BYTES 16384u

bool elf_detect(const struct boot_image *img)
{
	Elf64_Ehdr h;

	return image_read(img, 0, &h, sizeof h) == 0 && memcmp(h.e_ident, ELFMAG, SELFMAG) == 0 && h.e_ident[EI_CLASS] == ELFCLASS64 &&
	       h.e_ident[EI_DATA] == ELFDATA2LSB && h.e_machine == EM_X86_64;
}

static bool in_file(const struct boot_image *img, uint64_t off, uint64_t len)
{
	return off <= img->size_bytes && len <= img->size_bytes - off;
}

/* The physical address a PVH note gives, 0 when there is none.  Notes are walked
 * by their own lengths, which are checked against the buffer's end each time. */
static uint64_t find_pvh(const uint8_t *notes, uint64_t end)
{
	uint64_t off = 0;

	while (end - off >= sizeof(Elf64_Nhdr)) {
		Elf64_Nhdr n;
		uint64_t name, desc, value = 0;

		memcpy(&n, notes + off, sizeof n);
		name = off + sizeof n;
		desc = name + ((n.n_namesz + 3ull) & ~3ull);
		if (desc > end || n.n_descsz > end - desc)
			break;
		if (n.n_type == NOTE_PHYS32_ENTRY && n.n_namesz == 4 &&
		    memcmp(notes + name, "Xen", 4) == 0 &&
		    (n.n_descsz == 4 || n.n_descsz == 8)) {
			memcpy(&value, notes + desc, n.n_descsz);
			return value;
		}
		off = desc + ((n.n_descsz + 3ull) & ~3ull);
		if (off > end)
			break;
	}
	return 0;
}

/* Looks through the first NOTES_BYTES of a note segment: kernels have a few hundred. */
static int read_notes(const struct boot_image *img, const Elf64_Phdr *ph, uint64_t *pvh)
{
	uint64_t len = ph->p_filesz < NOTES_BYTES ? ph->p_filesz : NOTES_BYTES;
	uint8_t notes[NOTES_BYTES];
	int rc = image_read(img, ph->p_offset, notes, len);

	if (!rc)
		*pvh = find_pvh(notes, len);
	return rc;
}

static int check_segment(const struct ram *ram, const struct boot_image *img,
			 const Elf64_Phdr *ph, unsigned i, struct err *e)
{
	uint64_t ram_end = ram_slot(ram, 0)->size_bytes;

	if (!in_file(img, ph->p_offset, ph->p_filesz))
		return err_set(e, -ENOEXEC, "kernel %s: segment %u ends beyond the file", img->path, i);
	if (ph->p_type != PT_LOAD)
		return 0;
	if (ph->p_filesz > ph->p_memsz || ph->p_paddr < LAYOUT_HIGH_RAM)
		return err_set(e, -ENOEXEC, "kernel %s: segment %u cannot be loaded at %#llx",
			       img->path, i, (unsigned long long)ph->p_paddr);
	if (ph->p_paddr > ram_end || ph->p_memsz > ram_end - ph->p_paddr)
		return err_set(e, -ENOMEM, "kernel %s: segment %u ends at %#llx, beyond RAM; give "
			       "the VM more memory", img->path, i,
			       (unsigned long long)(ph->p_paddr + ph->p_memsz));
	return 0;
}

static int read_segments(const struct ram *ram, const struct boot_image *img, Elf64_Phdr *ph,
			 unsigned *count, uint64_t *entry, struct err *e)
{
	Elf64_Ehdr h;
	int rc = 0;

	rc = image_read(img, 0, &h, sizeof h);
	if (rc)
		return err_sys(e, rc, "kernel %s: reading it", img->path);
	if (h.e_phentsize != sizeof *ph || h.e_phnum == 0 || h.e_phnum > SEGMENTS_MAX ||
	    !in_file(img, h.e_phoff, h.e_phnum * sizeof *ph))
		return err_set(e, -ENOEXEC, "kernel %s: damaged ELF program headers", img->path);
	rc = image_read(img, h.e_phoff, ph, h.e_phnum * sizeof *ph);
	if (rc)
		return err_sys(e, rc, "kernel %s: reading it", img->path);
	for (unsigned i = 0; i < h.e_phnum && !rc; i++)
		rc = check_segment(ram, img, &ph[i], i, e);
	*count = h.e_phnum;
	*entry = h.e_entry;
	return rc;
}

static void minimal_header(const struct ram *ram)
{
	struct boot_params *bp = ram_at(ram, gpa(LAYOUT_ZERO_PAGE), sizeof *bp);

	VERIFY(bp);
	memset(bp, 0, sizeof *bp);
	bp->hdr.boot_flag = 0xaa55;
	bp->hdr.header = 0x53726448;
	bp->hdr.kernel_alignment = 0x1000000;
}

static int load_segment(const struct ram *ram, const struct boot_image *img, const Elf64_Phdr *ph)
{
	if (ph->p_filesz == 0)
		return 0;
	ram_expect_dense(ram, gpa(ph->p_paddr), ph->p_filesz);
	return image_read(img, ph->p_offset, ram_at(ram, gpa(ph->p_paddr), ph->p_filesz),
			  ph->p_filesz);
}

int elf_load(const struct ram *ram, const struct boot_image *img,
	     struct boot_entry *entry, struct err *e)
{
	Elf64_Phdr ph[SEGMENTS_MAX];
	uint64_t pvh = 0, elf_entry = 0, end = 0;
	unsigned n = 0;
	int rc = read_segments(ram, img, ph, &n, &elf_entry, e);

	if (rc)
		return rc;
	for (unsigned i = 0; i < n && !rc; i++) {
		if (ph[i].p_type == PT_NOTE && !pvh)
			rc = read_notes(img, &ph[i], &pvh);
		if (ph[i].p_type != PT_LOAD || ph[i].p_memsz == 0)
			continue;
		rc = load_segment(ram, img, &ph[i]);
		boot_note_loaded(entry, ph[i].p_paddr, ph[i].p_filesz);
		if (ph[i].p_paddr + ph[i].p_memsz > end)
			end = ph[i].p_paddr + ph[i].p_memsz;
	}
	if (rc)
		return err_sys(e, rc, "kernel %s: reading it", img->path);
	entry->pvh = pvh != 0;
	entry->rip = pvh ? pvh : elf_entry;
	if (entry->rip < LAYOUT_HIGH_RAM || entry->rip >= end)
		return err_set(e, -ENOEXEC, "kernel %s: entry point %#llx is outside what it loads",
			       img->path, (unsigned long long)entry->rip);
	entry->kernel_end = end;
	entry->initrd_max = INITRD_MAX;
	if (!pvh)
		minimal_header(ram);
	return 0;
}
