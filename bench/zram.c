/*
 * See zram.h.
 *
 *   this process                       the keeper (its own session)
 *     fork ------------------------->    hot_add, lz4, disksize, mkswap, swapon
 *     read the answer <-------------     struct answer
 *     ...                                read: waits for the pipe to end
 *     close, or death -------------->    swapoff, hot_remove, page-cluster back
 *
 * A process's pages are gone before its files are closed, so swapoff has nothing
 * to bring back.
 */
#include "bench/zram.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/swap.h>
#include <sys/wait.h>
#include <unistd.h>

#define CONTROL "/sys/class/zram-control/"
#define CLUSTER "/proc/sys/vm/page-cluster"
#define SPARE_BYTES (16 * MiB) /* the swap area's header, and clusters of each CPU's own */
#define REMOVE_TRIES 50
#define REMOVE_PAUSE_US 100000
#define PRIORITY_HIGHEST 32767

extern char **environ;

struct answer {
	bool ok;
	unsigned id;
	char text[128]; /* the algorithm, or why not */
};

struct zram {
	pid_t keeper;
	int pipe;
	unsigned id;
	char name[64];
	char cluster[16];
	uint8_t *mem;
	uint64_t pages;
	uint8_t *resident; /* for mincore */
};

static int write_text(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC), rc = 0;

	if (fd < 0)
		return -errno;
	if (write(fd, text, strlen(text)) < 0)
		rc = -errno;
	close(fd);
	return rc;
}

/* ---- the keeper ---------------------------------------------------------------- */

struct keeper {
	unsigned id;
	bool is_added, is_on;
	char dev[32], cluster[16];
};

static const char *attribute(const struct keeper *k, const char *name, char *buf, size_t len)
{
	snprintf(buf, len, "/sys/block/zram%u/%s", k->id, name);
	return buf;
}

static int set_attribute(const struct keeper *k, const char *name, const char *text)
{
	char path[64];

	return write_text(attribute(k, name, path, sizeof(path)), text);
}

/* "lzo-rle [lz4]" to "lz4". */
static void chosen_algorithm(const struct keeper *k, char *out, size_t len)
{
	char path[64], line[128], *from, *to;

	bench_read_line(attribute(k, "comp_algorithm", path, sizeof(path)), line, sizeof(line));
	from = strchr(line, '[');
	to = from ? strchr(from, ']') : NULL;
	if (to)
		*to = '\0';
	snprintf(out, len, "%s", to ? from + 1 : "unknown algorithm");
}

static int make_swap(const char *dev)
{
	char name[] = "mkswap", device[32];
	char *argv[] = { name, device, NULL };
	posix_spawn_file_actions_t actions;
	int status, rc;
	pid_t pid;

	snprintf(device, sizeof(device), "%s", dev);
	posix_spawn_file_actions_init(&actions);
	posix_spawn_file_actions_addopen(&actions, STDOUT_FILENO, "/dev/null", O_WRONLY, 0);
	posix_spawn_file_actions_addopen(&actions, STDERR_FILENO, "/dev/null", O_WRONLY, 0);
	rc = posix_spawnp(&pid, name, &actions, NULL, argv, environ);
	posix_spawn_file_actions_destroy(&actions);
	if (rc)
		return -rc;
	while (waitpid(pid, &status, 0) < 0)
		if (errno != EINTR)
			return -errno;
	return status == 0 ? 0 : -EIO;
}

static int refuse(struct answer *a, const char *what, int rc)
{
	snprintf(a->text, sizeof(a->text), "%s: %s", what, strerror(-rc));
	return rc;
}

static int keeper_up(struct keeper *k, uint64_t bytes, struct answer *a)
{
	char text[32];
	int rc;

	bench_read_line(CONTROL "hot_add", text, sizeof(text));
	if (!text[0])
		return refuse(a, CONTROL "hot_add", -EIO);
	k->id = a->id = (unsigned)strtoul(text, NULL, 10);
	k->is_added = true;
	snprintf(k->dev, sizeof(k->dev), "/dev/zram%u", k->id);
	(void)set_attribute(k, "comp_algorithm", "lz4"); /* what it is then is said */
	snprintf(text, sizeof(text), "%" PRIu64, bytes);
	rc = set_attribute(k, "disksize", text);
	if (rc)
		return refuse(a, "zram's disksize", rc);
	rc = make_swap(k->dev);
	if (rc)
		return refuse(a, "mkswap", rc);
	if (swapon(k->dev, SWAP_FLAG_PREFER | PRIORITY_HIGHEST) < 0)
		return refuse(a, "swapon", -errno);
	k->is_on = true;
	chosen_algorithm(k, a->text, sizeof(a->text));
	return 0;
}

static void keeper_down(const struct keeper *k)
{
	char text[16];
	int rc = 0;

	(void)write_text(CLUSTER, k->cluster);
	if (k->is_on && swapoff(k->dev) < 0)
		fprintf(stderr, "swapoff %s: %s\n", k->dev, strerror(errno));
	if (!k->is_added)
		return;
	snprintf(text, sizeof(text), "%u", k->id);
	for (int i = 0; i < REMOVE_TRIES; i++) { /* udev may be looking at it */
		rc = write_text(CONTROL "hot_remove", text);
		if (rc != -EBUSY)
			break;
		usleep(REMOVE_PAUSE_US);
	}
	if (rc)
		fprintf(stderr, "%s could not be removed: %s\n", k->dev, strerror(-rc));
}

static _Noreturn void keeper_main(int pipe, uint64_t bytes)
{
	struct answer a = { .ok = false };
	struct keeper k = { 0 };
	sigset_t all;
	char c;

	setsid();
	sigfillset(&all);
	sigprocmask(SIG_BLOCK, &all, NULL);
	bench_read_line(CLUSTER, k.cluster, sizeof(k.cluster));
	a.ok = keeper_up(&k, bytes, &a) == 0;
	if (send(pipe, &a, sizeof(a), MSG_NOSIGNAL) == sizeof(a) && a.ok)
		while (read(pipe, &c, 1) < 0 && errno == EINTR)
			;
	keeper_down(&k);
	_exit(0);
}

/* ---- open and close -------------------------------------------------------------- */

/* NULL: nothing against it. */
static const char *objection(char *buf, size_t len)
{
	FILE *f;
	bool other;

	if (geteuid() != 0)
		return "it needs root";
	if (access(CONTROL "hot_add", R_OK) < 0)
		return "this kernel has no zram";
	if (bench_read_line("/sys/module/zswap/parameters/enabled", buf, len)[0] == 'Y')
		return "zswap is on and would be measured in its place";
	f = fopen("/proc/swaps", "re");
	if (!f)
		return "this kernel has no swap";
	other = fgets(buf, (int)len, f) && fgets(buf, (int)len, f); /* a line behind the heading */
	fclose(f);
	return other ? "other swap is active" : NULL;
}

/* -errno or 0, and the answer. */
static int start_keeper(struct zram *z, uint64_t bytes, struct answer *a)
{
	int ends[2];

	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) < 0)
		return -errno;
	fflush(NULL);
	z->keeper = fork();
	if (z->keeper == 0) {
		close(ends[0]);
		keeper_main(ends[1], bytes);
	}
	close(ends[1]);
	z->pipe = ends[0];
	if (z->keeper < 0)
		return -errno;
	return recv(z->pipe, a, sizeof(*a), MSG_WAITALL) == sizeof(*a) ? 0 : -EPIPE;
}

struct zram *zram_open(uint64_t pages, char *why, size_t why_len)
{
	struct zram *z;
	struct answer a = { .ok = false };
	char buf[256];
	const char *no = objection(buf, sizeof(buf));
	int rc;

	if (no) {
		snprintf(why, why_len, "%s", no);
		return NULL;
	}
	z = calloc(1, sizeof(*z));
	VERIFY(z);
	z->pipe = -1;
	bench_read_line(CLUSTER, z->cluster, sizeof(z->cluster));
	rc = start_keeper(z, pages * PAGE_BYTES + SPARE_BYTES, &a);
	if (rc || !a.ok) {
		snprintf(why, why_len, "%s", rc ? strerror(-rc) : a.text);
		zram_close(&z);
		return NULL;
	}
	z->id = a.id;
	snprintf(z->name, sizeof(z->name), "zram swap, %.32s", a.text);
	return z;
}

struct zram *zram_peer(const struct bench *b, uint64_t pages)
{
	char why[160];
	struct zram *z = zram_open(pages, why, sizeof(why));

	if (!z)
		printf("%s: no zram to compare with: %s\n", b->name, why);
	return z;
}

void zram_drop(struct zram *z)
{
	if (z->mem)
		VERIFY(munmap(z->mem, z->pages * PAGE_BYTES) == 0);
	free(z->resident);
	z->mem = NULL;
	z->resident = NULL;
}

void zram_close(struct zram **zp)
{
	struct zram *z = *zp;

	*zp = NULL;
	if (!z)
		return;
	zram_drop(z);
	if (z->pipe >= 0)
		close(z->pipe);
	while (z->keeper > 0 && waitpid(z->keeper, NULL, 0) < 0 && errno == EINTR)
		;
	free(z);
}

const char *zram_name(const struct zram *z)
{
	return z->name;
}

/* ---- memory ------------------------------------------------------------------------ */

uint8_t *zram_hold(struct zram *z, const uint8_t *page, uint64_t pages)
{
	void *p;

	zram_drop(z);
	p = mmap(NULL, pages * PAGE_BYTES, PROT_READ | PROT_WRITE,
		 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	VERIFY(p != MAP_FAILED);
	(void)madvise(p, pages * PAGE_BYTES, MADV_NOHUGEPAGE); /* EINVAL: there are none */
	z->mem = p;
	z->pages = pages;
	z->resident = calloc(pages, 1);
	VERIFY(z->resident);
	memcpy(z->mem, page, pages * PAGE_BYTES);
	return z->mem;
}

void zram_evict(struct zram *z)
{
	VERIFY(madvise(z->mem, z->pages * PAGE_BYTES, MADV_PAGEOUT) == 0);
}

bool zram_is_away(const struct zram *z, uint64_t i)
{
	unsigned char in = 1;

	VERIFY(mincore(z->mem + (i << PAGE_SHIFT), PAGE_BYTES, &in) == 0);
	return !(in & 1);
}

uint64_t zram_away_pages(const struct zram *z)
{
	uint64_t away = 0;

	VERIFY(mincore(z->mem, z->pages * PAGE_BYTES, z->resident) == 0);
	for (uint64_t i = 0; i < z->pages; i++)
		away += !(z->resident[i] & 1);
	return away;
}

uint64_t zram_held_bytes(const struct zram *z)
{
	uint64_t used = 0;
	char path[64], line[256];

	snprintf(path, sizeof(path), "/sys/block/zram%u/mm_stat", z->id);
	bench_read_line(path, line, sizeof(line));
	/* orig_data_size compr_data_size mem_used_total ... */
	VERIFY(sscanf(line, "%*u %*u %" SCNu64, &used) == 1);
	return used;
}

void zram_page_cluster(struct zram *z, int cluster)
{
	char text[16];

	snprintf(text, sizeof(text), "%d", cluster);
	VERIFY(write_text(CLUSTER, cluster < 0 ? z->cluster : text) == 0);
}
