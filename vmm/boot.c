/*
 * Loading: kernel, initrd and command line into guest RAM, and the description
 * the kernel finds them by: the zero page of the Linux boot protocol, or PVH's
 * start info.
 *
 * Loop thread, before any vCPU runs.  A kernel or initrd file is the operator's,
 * but may be anything: every offset in it is checked before use.
 *
 * Sources: Linux Documentation/arch/x86/boot.rst (2.15) and zero-page.rst;
 * xen/include/public/arch-x86/hvm/start_info.h for PVH.
 */
#include <asm/bootparam.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "vmm/internal.h"

#define PVH_MAGIC 0x336ec578u
#define LOADER_UNDEFINED 0xffu

struct pvh_start_info {
	uint32_t magic, version, flags, module_count;
	uint64_t modules_gpa, cmdline_gpa, rsdp_gpa, memmap_gpa;
	uint32_t memmap_count, reserved;
};

struct pvh_module {
	uint64_t gpa, size_bytes, cmdline_gpa, reserved;
};

struct pvh_memmap {
	uint64_t base, size_bytes;
	uint32_t type, reserved;
};

unsigned boot_memory_map(const struct ram *ram, struct boot_range map[BOOT_RANGES_MAX])
{
	const struct ram_slot *low = ram_slot(ram, 0);
	unsigned n = 0;

	map[n++] = (struct boot_range){ 0, LAYOUT_EBDA, true };
	map[n++] = (struct boot_range){ LAYOUT_EBDA, 0xA0000 - LAYOUT_EBDA, false };
	map[n++] = (struct boot_range){ LAYOUT_ACPI, LAYOUT_ACPI_BYTES, false };
	map[n++] = (struct boot_range){ LAYOUT_HIGH_RAM, low->size_bytes - LAYOUT_HIGH_RAM, true };
	map[n++] = (struct boot_range){ LAYOUT_ECAM, LAYOUT_ECAM_BYTES, false };
	if (ram_slot_count(ram) > 1)
		map[n++] = (struct boot_range){ ram_slot(ram, 1)->base.v,
						ram_slot(ram, 1)->size_bytes, true };
	return n;
}

/* Identity-maps the first 4 GiB in 2 MiB pages, and writes the GDT that matches
 * the segments vcpu_set_boot_state() loads. */
static void write_tables(const struct ram *ram)
{
	static const uint64_t gdt[5] = {
		0, 0, 0x00af9b000000ffffull, 0x00cf93000000ffffull, 0x00008b0000000067ull,
	};
	uint64_t *pml4 = ram_at(ram, gpa(LAYOUT_PML4), PAGE_BYTES);
	uint64_t *pdpt = ram_at(ram, gpa(LAYOUT_PDPT), PAGE_BYTES);
	uint64_t *pd = ram_at(ram, gpa(LAYOUT_PD), 4 * PAGE_BYTES);
	void *g = ram_at(ram, gpa(LAYOUT_GDT), sizeof gdt);

	VERIFY(pml4 && pdpt && pd && g); /* RAM has 64 MiB at least */
	memcpy(g, gdt, sizeof gdt);
	pml4[0] = LAYOUT_PDPT | 3;
	for (uint64_t i = 0; i < 4; i++)
		pdpt[i] = (LAYOUT_PD + i * PAGE_BYTES) | 3;
	for (uint64_t i = 0; i < 4 * 512; i++)
		pd[i] = i * HUGE_BYTES | 0x83; /* present, writable, 2 MiB */
}

static int open_image(const char *what, const char *path, struct stat *st, struct err *e)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* a FIFO would block */

	if (fd < 0)
		return err_sys(e, -errno, "%s %s", what, path);
	if (fstat(fd, st) < 0 || !S_ISREG(st->st_mode)) {
		close(fd);
		return err_set(e, -EINVAL, "%s %s: not a regular file", what, path);
	}
	return fd;
}

/* Reads up to the end of the file at most: one that is cut short meanwhile is an
 * error, not a SIGBUS as when it were mapped. */
static int read_all(int fd, uint64_t off, uint8_t *to, uint64_t len)
{
	while (len) {
		ssize_t n = pread(fd, to, len, (off_t)off);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return n < 0 ? -errno : -ENODATA;
		to += n;
		off += (uint64_t)n;
		len -= (uint64_t)n;
	}
	return 0;
}

int image_read(const struct boot_image *img, uint64_t off, void *dst, uint64_t len)
{
	if (off > img->size_bytes || len > img->size_bytes - off)
		return -ENODATA;
	if (!img->data)
		return read_all(img->fd, off, dst, len);
	memcpy(dst, img->data + off, len);
	return 0;
}

void boot_note_loaded(struct boot_entry *entry, uint64_t at, uint64_t bytes)
{
	struct boot_loaded *l = &entry->loaded;

	if (bytes && l->count < BOOT_LOADED_MAX)
		l->at[l->count++] = (struct ram_range){ gpa(at), bytes };
}

static int load_kernel(const struct ram *ram, const struct vm_config *cfg,
		       struct boot_entry *entry, struct err *e)
{
	struct boot_image img = { .path = cfg->kernel };
	struct stat st;
	int fd = open_image("kernel", cfg->kernel, &st, e), rc;

	if (fd < 0)
		return fd;
	if (st.st_size < 4096) {
		rc = err_set(e, -EINVAL, "kernel %s: %lld bytes is too short for a kernel",
			     cfg->kernel, (long long)st.st_size);
		goto out_close;
	}
	img.size_bytes = (uint64_t)st.st_size;
	img.fd = fd;
	if (bzimage_detect(&img))
		rc = bzimage_load(ram, &img, entry, e);
	else if (elf_detect(&img))
		rc = elf_load(ram, &img, entry, e);
	else
		rc = err_set(e, -ENOEXEC, "kernel %s: neither a bzImage nor an x86-64 ELF vmlinux",
			     cfg->kernel);
out_close:
	close(fd);
	return rc;
}

/* As high in low memory as kernel and RAM allow: out of the way of the kernel's
 * decompression, and where other loaders put it. */
static int load_initrd(const struct ram *ram, const struct vm_config *cfg,
		       struct boot_entry *entry, uint64_t *at, uint64_t *size, struct err *e)
{
	uint64_t top = ram_slot(ram, 0)->size_bytes;
	struct stat st;
	int fd, rc;

	*at = *size = 0;
	if (!cfg->initrd[0])
		return 0;
	fd = open_image("initrd", cfg->initrd, &st, e);
	if (fd < 0)
		return fd;
	*size = (uint64_t)st.st_size;
	if (top > entry->initrd_max + 1)
		top = entry->initrd_max + 1;
	top &= ~(PAGE_BYTES - 1);
	if (*size <= top)
		*at = (top - *size) & ~(PAGE_BYTES - 1);
	if (*size == 0 || *size > top || *at < entry->kernel_end) {
		rc = err_set(e, -ENOMEM, "initrd %s: %llu bytes do not fit between the kernel's "
			     "end (%#llx) and %#llx: give the VM more memory", cfg->initrd,
			     (unsigned long long)*size, (unsigned long long)entry->kernel_end,
			     (unsigned long long)top);
		goto out;
	}
	ram_expect_dense(ram, gpa(*at), *size);
	rc = read_all(fd, 0, ram_at(ram, gpa(*at), *size), *size);
	if (rc)
		err_sys(e, rc, "initrd %s: reading it", cfg->initrd);
	else
		boot_note_loaded(entry, *at, *size);
out:
	close(fd);
	return rc;
}

static void fill_zero_page(const struct ram *ram, uint64_t initrd, uint64_t initrd_bytes,
			   uint64_t rsdp)
{
	struct boot_params *bp = ram_at(ram, gpa(LAYOUT_ZERO_PAGE), sizeof *bp);
	struct boot_range map[BOOT_RANGES_MAX];

	VERIFY(bp);
	bp->hdr.type_of_loader = LOADER_UNDEFINED;
	bp->hdr.cmd_line_ptr = LAYOUT_CMDLINE;
	bp->hdr.ramdisk_image = (uint32_t)initrd;
	bp->hdr.ramdisk_size = (uint32_t)initrd_bytes;
	bp->ext_ramdisk_image = (uint32_t)(initrd >> 32);
	bp->ext_ramdisk_size = (uint32_t)(initrd_bytes >> 32);
	bp->acpi_rsdp_addr = rsdp;
	bp->e820_entries = (uint8_t)boot_memory_map(ram, map);
	for (unsigned i = 0; i < bp->e820_entries; i++)
		bp->e820_table[i] = (struct boot_e820_entry){
			.addr = map[i].base, .size = map[i].size_bytes,
			.type = map[i].ram ? 1 : 2,
		};
}

static void fill_start_info(const struct ram *ram, uint64_t initrd, uint64_t initrd_bytes,
			    uint64_t rsdp)
{
	uint8_t *base = ram_at(ram, gpa(LAYOUT_PVH_INFO), PAGE_BYTES);
	struct pvh_memmap *mm = (struct pvh_memmap *)(base + 0x100);
	struct pvh_module mod = { .gpa = initrd, .size_bytes = initrd_bytes };
	struct boot_range map[BOOT_RANGES_MAX];
	struct pvh_start_info si = {
		.magic = PVH_MAGIC, .version = 1,
		.module_count = initrd_bytes ? 1 : 0,
		.modules_gpa = initrd_bytes ? LAYOUT_PVH_INFO + 0x80 : 0,
		.cmdline_gpa = LAYOUT_CMDLINE, .rsdp_gpa = rsdp,
		.memmap_gpa = LAYOUT_PVH_INFO + 0x100,
		.memmap_count = boot_memory_map(ram, map),
	};

	memcpy(base, &si, sizeof si);
	memcpy(base + 0x80, &mod, sizeof mod);
	for (unsigned i = 0; i < si.memmap_count; i++)
		mm[i] = (struct pvh_memmap){ .base = map[i].base,
					     .size_bytes = map[i].size_bytes,
					     .type = map[i].ram ? 1 : 2 };
}

int boot_load(const struct ram *ram, const struct vm_config *cfg, uint64_t rsdp_gpa,
	      struct boot_entry *entry, struct err *e)
{
	uint64_t initrd, initrd_bytes;
	char *cmdline = ram_at(ram, gpa(LAYOUT_CMDLINE), VM_CMDLINE_MAX);
	int rc;

	*entry = (struct boot_entry){ .rsi = LAYOUT_ZERO_PAGE };
	rc = load_kernel(ram, cfg, entry, e);
	if (!rc)
		rc = load_initrd(ram, cfg, entry, &initrd, &initrd_bytes, e);
	if (rc)
		return rc;
	VERIFY(cmdline);
	memcpy(cmdline, cfg->cmdline, strlen(cfg->cmdline) + 1);
	write_tables(ram);
	if (entry->pvh) {
		entry->rsi = LAYOUT_PVH_INFO;
		fill_start_info(ram, initrd, initrd_bytes, rsdp_gpa);
	} else {
		fill_zero_page(ram, initrd, initrd_bytes, rsdp_gpa);
	}
	return 0;
}
