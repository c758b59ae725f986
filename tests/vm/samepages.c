/*
 * samepages PID PID: how many page frames both processes have in memory that is theirs to
 * write: anonymous, or mapped copy-on-write from a store of shared pages.
 *
 * By the kernel's own page frame numbers (/proc/PID/pagemap), so as root.  Frames of the
 * kernel's zero page are left out; so are programs and libraries, which all processes have.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define PAGE 4096u
#define PRESENT ((uint64_t)1 << 63)
#define FRAME_MASK (((uint64_t)1 << 55) - 1)
#define BATCH 4096u

struct frames {
	uint64_t *at;
	size_t count, room;
};

static void die(const char *what)
{
	fprintf(stderr, "samepages: %s: %s\n", what, strerror(errno));
	exit(2);
}

static void add(struct frames *f, uint64_t frame)
{
	if (f->count == f->room) {
		f->room = f->room ? f->room * 2 : BATCH;
		f->at = realloc(f->at, f->room * sizeof(*f->at));
		if (!f->at)
			die("memory");
	}
	f->at[f->count++] = frame;
}

static int open_of(const char *pid, const char *name)
{
	char path[64];
	int fd;

	snprintf(path, sizeof(path), "/proc/%s/%s", pid, name);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		die(path);
	return fd;
}

/* The frames of [from, to), address order. */
static void read_range(int pagemap, uint64_t from, uint64_t to, struct frames *f)
{
	uint64_t entry[BATCH];

	while (from < to) {
		uint64_t n = (to - from) / PAGE < BATCH ? (to - from) / PAGE : BATCH;
		ssize_t got = pread(pagemap, entry, n * sizeof(*entry),
				    (off_t)(from / PAGE * sizeof(*entry)));

		if (got <= 0)
			return; /* the mapping has gone */
		for (uint64_t i = 0; i < (uint64_t)got / sizeof(*entry); i++)
			if (entry[i] & PRESENT)
				add(f, entry[i] & FRAME_MASK);
		from += (uint64_t)got / sizeof(*entry) * PAGE;
	}
}

static bool is_its_own(const char *perms, const char *name)
{
	bool of_store = strncmp(name, "/memfd:", 7) == 0;

	return perms[1] == 'w' && perms[3] == 'p' && (!*name || *name == '[' || of_store);
}

static struct frames frames_of(const char *pid)
{
	int pagemap = open_of(pid, "pagemap");
	FILE *maps = fdopen(open_of(pid, "maps"), "r");
	struct frames f = { 0 };
	char line[512];

	while (maps && fgets(line, sizeof(line), maps)) {
		uint64_t from, to;
		char perms[8], name[256] = "";

		if (sscanf(line, "%" SCNx64 "-%" SCNx64 " %7s %*s %*s %*s %255s", &from, &to, perms,
			   name) >= 3 && is_its_own(perms, name))
			read_range(pagemap, from, to, &f);
	}
	if (maps)
		fclose(maps);
	close(pagemap);
	return f;
}

static int by_number(const void *a, const void *b)
{
	const uint64_t *x = a, *y = b;

	return (*x > *y) - (*x < *y);
}

/* The zero page's: that of memory read and never written. */
static uint64_t zero_frame(void)
{
	volatile uint8_t *p = mmap(NULL, PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct frames f = { 0 };
	int pagemap = open_of("self", "pagemap");

	if (p == MAP_FAILED || *p)
		die("a page of zeroes");
	read_range(pagemap, (uint64_t)(uintptr_t)p, (uint64_t)(uintptr_t)p + PAGE, &f);
	close(pagemap);
	if (f.count != 1 || !f.at[0]) {
		fprintf(stderr, "samepages: the kernel does not tell frame numbers: run as root\n");
		exit(2);
	}
	return f.at[0];
}

static size_t common(const struct frames *a, const struct frames *b, uint64_t zero)
{
	size_t i = 0, k = 0, n = 0;
	uint64_t last = 0;

	while (i < a->count && k < b->count) {
		if (a->at[i] < b->at[k]) {
			i++;
		} else if (a->at[i] > b->at[k]) {
			k++;
		} else {
			n += a->at[i] != zero && a->at[i] != last;
			last = a->at[i++];
		}
	}
	return n;
}

int main(int argc, char **argv)
{
	uint64_t zero;
	struct frames a, b;

	if (argc != 3) {
		fprintf(stderr, "usage: samepages PID PID\n");
		return 2;
	}
	zero = zero_frame();
	a = frames_of(argv[1]);
	b = frames_of(argv[2]);
	qsort(a.at, a.count, sizeof(*a.at), by_number);
	qsort(b.at, b.count, sizeof(*b.at), by_number);
	printf("%zu\n", common(&a, &b, zero));
	return 0;
}
