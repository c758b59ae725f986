/*
 * The writer of shm.h: the process's own numbers, laid over a file.
 *
 * The mapping replaces the pages that stat_values lies in, so that neither who counts nor
 * who sets a gauge knows of it.  Nothing may count while they are replaced: see
 * stats_create().
 *
 * State: one file a process, as the numbers are one set a process.
 */
#include "stats/shm.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/vfs.h>
#include <unistd.h>

#define ENTRIES (CTR_COUNT_ + GAUGE_COUNT_ + HIST_COUNT_)
#define ROUND_UP(n) (((n) + STAT_ALIGN_BYTES - 1) / STAT_ALIGN_BYTES * STAT_ALIGN_BYTES)
#define VALUES_AT ROUND_UP(sizeof(struct shm_header) + ENTRIES * sizeof(struct shm_entry))
#define FILE_BYTES (VALUES_AT + sizeof(struct stat_values))

_Static_assert(sizeof(struct stat_values) % STAT_ALIGN_BYTES == 0, "whole pages");
_Static_assert(FILE_BYTES <= SHM_FILE_MAX, "a reader takes it");
_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the file's numbers are ours");

static struct {
	struct shm_header *header; /* mapped, and with it the table; NULL: there is no file */
	int fd;                    /* -1: the values are mapped as well */
} shm = { .fd = -1 };

static void put_entry(struct shm_entry *to, const struct counter_info *c, enum shm_kind kind,
		      uint32_t *first)
{
	uint32_t count = kind == SHM_HISTOGRAM ? HIST_BUCKETS : 1;

	VERIFY(strlen(c->name) <= SHM_NAME_MAX && strlen(c->unit) < sizeof(to->unit));
	*to = (struct shm_entry){ .kind = (uint8_t)kind, .first = *first, .count = count };
	memcpy(to->name, c->name, strlen(c->name));
	memcpy(to->unit, c->unit, strlen(c->unit));
	*first += count;
}

/* In the order of struct stat_values. */
static void put_table(struct shm_entry *to)
{
	uint32_t first = 0;

	for (unsigned i = 0; i < CTR_COUNT_; i++)
		put_entry(to++, &counter_table[i], SHM_COUNTER, &first);
	for (unsigned i = 0; i < GAUGE_COUNT_; i++)
		put_entry(to++, &gauge_table[i], SHM_GAUGE, &first);
	for (unsigned i = 0; i < HIST_COUNT_; i++)
		put_entry(to++, &histogram_table[i], SHM_HISTOGRAM, &first);
	VERIFY(first <= sizeof(struct stat_values) / sizeof(uint64_t));
}

static void put_header(struct shm_header *h)
{
	*h = (struct shm_header){
		.version = SHM_VERSION, .header_bytes = sizeof(*h),
		.entry_bytes = sizeof(struct shm_entry), .entries = ENTRIES,
		.values_at = VALUES_AT, .values = sizeof(struct stat_values) / sizeof(uint64_t),
		.start_ns = now_ns(), .pid = (uint32_t)getpid(),
	};
	memcpy(h->magic, SHM_MAGIC, sizeof(h->magic));
}

static bool is_memory(int fd)
{
	struct statfs fs;

	return fstatfs(fd, &fs) == 0 && (fs.f_type == TMPFS_MAGIC || fs.f_type == RAMFS_MAGIC);
}

/* What was counted before is in the file first, and is there when the pages change. */
static int map_values(int fd)
{
	if (pwrite(fd, &stat_values, sizeof(stat_values), (off_t)VALUES_AT) !=
	    (ssize_t)sizeof(stat_values))
		return errno ? -errno : -EIO;
	if (mmap(&stat_values, sizeof(stat_values), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED,
		 fd, (off_t)VALUES_AT) == MAP_FAILED)
		return -errno;
	return 0;
}

/* The header is memory of this process alone where the values are: it is copied too. */
static int map_header(int fd, bool shared)
{
	void *p = mmap(NULL, VALUES_AT, PROT_READ | PROT_WRITE,
		       shared ? MAP_SHARED : MAP_PRIVATE | MAP_ANONYMOUS, shared ? fd : -1, 0);

	if (p == MAP_FAILED)
		return -errno;
	put_header(p);
	put_table((struct shm_entry *)((char *)p + sizeof(struct shm_header)));
	shm.header = p;
	return 0;
}

static int copy_out(void)
{
	ssize_t n;

	n = pwrite(shm.fd, &stat_values, sizeof(stat_values), (off_t)VALUES_AT);
	if (n == (ssize_t)sizeof(stat_values))
		n = pwrite(shm.fd, shm.header, VALUES_AT, 0) == (ssize_t)VALUES_AT ? 0 : -1;
	else
		n = -1;
	return n ? -EIO : 0;
}

int stats_create(const char *path, struct err *e)
{
	int fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
	bool shared;
	int rc;

	VERIFY(!shm.header);
	if (fd < 0)
		return err_sys(e, -errno, "statistics: cannot make %s", path);
	shared = is_memory(fd);
	/* all of it at once: a full file system must not end a process that counts */
	rc = -posix_fallocate(fd, 0, (off_t)FILE_BYTES);
	if (!rc)
		rc = map_header(fd, shared);
	if (!rc && shared)
		rc = map_values(fd);
	if (!rc && !shared) {
		shm.fd = fd;
		rc = copy_out();
	}
	if (rc) {
		stats_destroy();
		unlink(path);
	}
	if (shm.fd < 0)
		close(fd);
	return rc ? err_sys(e, rc, "statistics: %s", path) : 0;
}

/* The same numbers, in memory of its own. */
static void unmap_values(void)
{
	struct stat_values now = { 0 };

	memcpy(&now, &stat_values, sizeof(now));
	VERIFY(mmap(&stat_values, sizeof(stat_values), PROT_READ | PROT_WRITE,
		    MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) != MAP_FAILED);
	memcpy(&stat_values, &now, sizeof(now));
}

void stats_destroy(void)
{
	if (shm.header && shm.fd < 0)
		unmap_values();
	if (shm.header)
		munmap(shm.header, VALUES_AT);
	if (shm.fd >= 0)
		close(shm.fd);
	shm.header = NULL;
	shm.fd = -1;
}

static void set_seq(uint64_t seq)
{
	__atomic_store_n(&shm.header->seq, seq, __ATOMIC_RELAXED);
}

void stats_begin(void)
{
	if (!shm.header)
		return;
	set_seq(shm.header->seq | 1);
	/* the odd number is there before the first gauge is: see stats_end() */
	atomic_thread_fence(memory_order_seq_cst);
}

/* Pairs with the fences of the reader, which is the kernel's copying. */
void stats_end(void)
{
	gauge_set(GAUGE_updated_ns, now_ns());
	if (!shm.header)
		return;
	atomic_thread_fence(memory_order_seq_cst);
	set_seq((shm.header->seq | 1) + 1);
	if (shm.fd >= 0)
		copy_out(); /* a reader sees the old ones until it works again */
}
