/*
 * bzImage by the 64-bit boot protocol: the protected-mode part goes to the
 * kernel's preferred address (or lower, when RAM is too small for that), and is
 * entered 0x200 bytes in, in long mode.  The setup header is copied into the zero
 * page; boot.c fills in the rest.
 *
 * Source: Linux Documentation/arch/x86/boot.rst, sections on the header fields.
 */
#include <asm/bootparam.h>
#include <errno.h>
#include <stddef.h>
#include <string.h>

#include "vmm/internal.h"

#define HEADER_AT 0x1f1u
#define HEADER_MAGIC 0x53726448u /* "HdrS" */
#define BOOT_FLAG 0xaa55u
#define PROTOCOL_MIN 0x020cu /* xloadflags exist from 2.12 on (Linux 3.8) */
#define SECTOR 512u
#define ENTRY_64 0x200u

static struct setup_header header_of(const struct boot_image *img)
{
	struct setup_header h = { .boot_flag = 0 };

	/* What cannot be read is not a bzImage: zeroes are no header. */
	if (image_read(img, HEADER_AT, &h, sizeof h))
		memset(&h, 0, sizeof h);
	return h;
}

bool bzimage_detect(const struct boot_image *img)
{
	struct setup_header h = header_of(img);

	return h.boot_flag == BOOT_FLAG && h.header == HEADER_MAGIC;
}

/* Where `need` bytes fit in low RAM: the preferred address, else the lowest. */
static uint64_t choose_address(const struct setup_header *h, uint64_t need, uint64_t ram_end)
{
	uint64_t align = h->kernel_alignment ? h->kernel_alignment : HUGE_BYTES;
	uint64_t low = (LAYOUT_HIGH_RAM + align - 1) / align * align;

	if (h->pref_address >= LAYOUT_HIGH_RAM && h->pref_address <= ram_end &&
	    need <= ram_end - h->pref_address)
		return h->pref_address;
	if (h->relocatable_kernel && low <= ram_end && need <= ram_end - low)
		return low;
	return 0;
}

static int check_header(const struct boot_image *img, const struct setup_header *h,
			struct err *e)
{
	if (h->version < PROTOCOL_MIN)
		return err_set(e, -ENOEXEC, "kernel %s: boot protocol %u.%02u, 2.12 or later needed",
			       img->path, h->version >> 8, h->version & 0xff);
	if (!(h->xloadflags & XLF_KERNEL_64))
		return err_set(e, -ENOEXEC, "kernel %s: a 32-bit kernel; only x86-64 is supported",
			       img->path);
	return 0;
}

int bzimage_load(const struct ram *ram, const struct boot_image *img,
		 struct boot_entry *entry, struct err *e)
{
	struct setup_header h = header_of(img);
	uint64_t start = ((h.setup_sects ? h.setup_sects : 4u) + 1ull) * SECTOR;
	uint64_t len, at, need;
	struct boot_params *bp;
	size_t header_len;
	int rc = check_header(img, &h, e);

	if (rc)
		return rc;
	if (start + ENTRY_64 >= img->size_bytes)
		return err_set(e, -ENOEXEC, "kernel %s: truncated: setup says code starts at byte "
			       "%llu of %llu", img->path, (unsigned long long)start,
			       (unsigned long long)img->size_bytes);
	len = img->size_bytes - start;
	if (h.syssize * 16ull > len + 15)
		return err_set(e, -ENOEXEC, "kernel %s: truncated: %llu bytes of code, header says "
			       "%llu", img->path, (unsigned long long)len, h.syssize * 16ull);
	need = h.init_size > len ? h.init_size : len;
	at = choose_address(&h, need, ram_slot(ram, 0)->size_bytes);
	if (!at)
		return err_set(e, -ENOMEM, "kernel %s: needs %llu MiB of RAM to start; give the VM "
			       "more memory", img->path,
			       (unsigned long long)((need + LAYOUT_HIGH_RAM) / MiB + 1));

	/* The header's length is given by the jump at its start (0x201). */
	header_len = (h.jump >> 8) + 0x202u - HEADER_AT;
	if (header_len > sizeof h)
		header_len = sizeof h;
	bp = ram_at(ram, gpa(LAYOUT_ZERO_PAGE), sizeof *bp);
	VERIFY(bp);
	memset(bp, 0, sizeof *bp);
	memcpy(&bp->hdr, &h, header_len);

	ram_expect_dense(ram, gpa(at), need);
	rc = image_read(img, start, ram_at(ram, gpa(at), len), len);
	if (rc)
		return err_sys(e, rc, "kernel %s: reading it", img->path);
	boot_note_loaded(entry, at, len);
	entry->rip = at + ENTRY_64;
	entry->kernel_end = at + need;
	entry->initrd_max = h.initrd_addr_max;
	return 0;
}
