/*
 * Kernel files: bzimage_load() and elf_load() on any bytes.  What loads lies
 * inside RAM; what does not is refused in a sentence.  The image has exactly its
 * size, so that reading on is seen.
 *
 * Input: how to begin, how long the file is, then its first bytes.
 */
#include <asm/bootparam.h>
#include <elf.h>
#include <stdlib.h>
#include <string.h>

#include "vmm/internal.h"

#define IMAGE_MIN 4096u /* boot_load() refuses shorter files */
#define HEADER(field) (0x1f1 + offsetof(struct setup_header, field))

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { RAW, BZIMAGE, ELF, KINDS };

/* The few bytes without which nothing further is looked at. */
static void begin_as(uint8_t *image, unsigned kind)
{
	static const uint8_t ident[EI_NIDENT] = { 0x7f, 'E', 'L', 'F', ELFCLASS64, ELFDATA2LSB, 1 };

	if (kind == BZIMAGE) {
		memcpy(image + HEADER(boot_flag), "\x55\xaa", 2);
		memcpy(image + HEADER(header), "HdrS", 4);
		image[HEADER(version) + 1] |= 4;
		image[HEADER(xloadflags)] |= XLF_KERNEL_64;
	} else if (kind == ELF) {
		memcpy(image, ident, sizeof ident);
		image[offsetof(Elf64_Ehdr, e_machine)] = EM_X86_64;
		image[offsetof(Elf64_Ehdr, e_machine) + 1] = 0;
		image[offsetof(Elf64_Ehdr, e_phentsize)] = sizeof(Elf64_Phdr);
		image[offsetof(Elf64_Ehdr, e_phentsize) + 1] = 0;
	}
}

static void load(const struct ram *ram, const struct boot_image *img)
{
	struct boot_entry entry = { .rsi = LAYOUT_ZERO_PAGE };
	struct err e = { "" };
	int rc = -1;

	if (bzimage_detect(img))
		rc = bzimage_load(ram, img, &entry, &e);
	else if (elf_detect(img))
		rc = elf_load(ram, img, &entry, &e);
	else
		return;
	if (rc) {
		VERIFY(rc < 0 && strstr(e.msg, "kernel /k: "));
		return;
	}
	VERIFY(entry.rip >= LAYOUT_HIGH_RAM && entry.rip < entry.kernel_end);
	VERIFY(entry.kernel_end <= RAM_MIN_BYTES);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static struct ram *ram;
	struct ram_config cfg = { .size_bytes = RAM_MIN_BYTES };
	struct boot_image img = { .path = "/k" };
	uint8_t *image;

	if (size < 2)
		return 0;
	if (!ram)
		VERIFY(ram_create(&ram, &cfg, NULL) == 0);
	img.size_bytes = IMAGE_MIN + data[1] * 16u;
	image = calloc(1, img.size_bytes);
	VERIFY(image);
	memcpy(image, data + 2, size - 2 < IMAGE_MIN ? size - 2 : IMAGE_MIN);
	begin_as(image, data[0] % KINDS);
	img.data = image;
	load(ram, &img);
	free(image);
	return 0;
}
