/*
 * hostile: a guest's root that attacks its own devices' registers.
 *
 * Maps the BARs of every virtio function and writes and reads random values at
 * random places of random widths (common configuration, queue addresses, MSI-X
 * tables, notify registers), scribbles over configuration space, and kicks queues
 * whose rings it pointed at random memory of its own.  What happens to this guest
 * does not matter; what must not happen is anything to its host.
 *
 * usage: hostile SECONDS SEED        prints `hostile: N writes` each second
 */
#include <dirent.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define PCI "/sys/bus/pci/devices"
#define BARS_MAX 64
#define CONFIG_WRITES_EVERY 4096

struct bar {
	volatile uint8_t *at;
	size_t len;
};

static uint64_t state;

static uint64_t rnd(void)
{
	state ^= state << 13;
	state ^= state >> 7;
	state ^= state << 17;
	return state;
}

/* Values that drivers write, and their neighbours, more often than noise. */
static uint64_t value(void)
{
	static const uint64_t likely[] = {
		0, 1, 2, 3, 4, 7, 8, 15, 0x0b, 0x0f, 64, 128, 256, 1024, 4096, 0xffff, 0x8000,
		0xffffffff, 0x80000000, 0x100000, 0x7fffffff, ~0ull,
	};

	if (rnd() % 3)
		return likely[rnd() % (sizeof likely / sizeof likely[0])];
	return rnd() % 2 ? rnd() : rnd() % 0x8000000 & ~0xfffull;
}

static int map_bar(const char *dev, int n, struct bar *b)
{
	char path[512];
	struct stat st;
	int fd;

	snprintf(path, sizeof path, PCI "/%s/resource%d", dev, n);
	fd = open(path, O_RDWR | O_SYNC);
	if (fd < 0 || fstat(fd, &st) < 0 || st.st_size == 0)
		return -1;
	b->len = (size_t)st.st_size;
	b->at = mmap(NULL, b->len, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	close(fd);
	return b->at == MAP_FAILED ? -1 : 0;
}

static void enable_memory(const char *dev)
{
	char path[512];
	uint16_t command = 6;
	int fd;

	snprintf(path, sizeof path, PCI "/%s/config", dev);
	fd = open(path, O_RDWR);
	if (fd >= 0 && pwrite(fd, &command, 2, 4) == 2)
		close(fd);
}

static void scribble_config(const char *dev)
{
	char path[512];
	uint32_t v = (uint32_t)value();
	off_t at = (off_t)(rnd() % 256);
	int fd;

	snprintf(path, sizeof path, PCI "/%s/config", dev);
	fd = open(path, O_RDWR);
	if (fd < 0)
		return;
	/* The BARs stay where they are: else nothing more would arrive. */
	if ((at < 4 || at >= 0x28) && pwrite(fd, &v, 1u << rnd() % 3, at) < 0)
		v = 0;
	close(fd);
}

static void poke(const struct bar *b)
{
	size_t at = rnd() % 8 ? rnd() % 64 : rnd() % b->len; /* mostly common configuration */
	uint64_t v = value();
	unsigned width = (unsigned)(rnd() % 4);

	at &= ~(((size_t)1 << width) - 1);
	if (rnd() % 5 == 0)
		at = 0x3000 % b->len + rnd() % 8 * 4; /* a kick */
	if (at + (1u << width) > b->len)
		return;
	switch (width) {
	case 0:
		b->at[at] = (uint8_t)v;
		break;
	case 1:
		*(volatile uint16_t *)(b->at + at) = (uint16_t)v;
		break;
	case 2:
		*(volatile uint32_t *)(b->at + at) = (uint32_t)v;
		break;
	default:
		v = *(volatile uint32_t *)(b->at + (at & ~(size_t)3));
	}
}

int main(int argc, char **argv)
{
	static char names[BARS_MAX][32];
	static struct bar bars[BARS_MAX];
	unsigned n = 0, devs = 0;
	time_t end, last = 0;
	struct dirent *d;
	DIR *dir;

	if (argc != 3) {
		fprintf(stderr, "usage: hostile SECONDS SEED\n");
		return 2;
	}
	state = strtoull(argv[2], NULL, 10) * 2654435761u + 88172645463325252ull;
	end = time(NULL) + atol(argv[1]);
	dir = opendir(PCI);
	while (dir && (d = readdir(dir)) && n + 2 <= BARS_MAX) {
		if (d->d_name[0] == '.' || strstr(d->d_name, ":00.0"))
			continue; /* not the bridge */
		snprintf(names[devs], sizeof names[0], "%.31s", d->d_name);
		enable_memory(names[devs++]);
		for (int i = 0; i < 2; i++)
			if (map_bar(d->d_name, i, &bars[n]) == 0)
				n++;
	}
	printf("hostile: %u BARs of %u devices\n", n, devs);
	for (unsigned long writes = 0; n && time(NULL) < end; writes++) {
		poke(&bars[rnd() % n]);
		if (writes % CONFIG_WRITES_EVERY == 0)
			scribble_config(names[rnd() % devs]);
		if (time(NULL) != last) {
			last = time(NULL);
			printf("hostile: %lu writes\n", writes);
			fflush(stdout);
		}
	}
	printf("hostile: done\n");
	return n ? 0 : 1;
}
