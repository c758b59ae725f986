/*
 * The swap file's segments: which are free, what is live in them, where an object is.
 *
 *            disk_take()            disk_wrote()          last object dropped
 *     spare -------------> written --------------> live ----------------------> freed
 *       ^                     | error                                             |
 *       |                     '--------> bad: never used again                    |
 *       '------------------- disk_discard(): the device is told ------------------'
 *
 * A segment's `live` word is as in log.c: units, objects and pins in one, and whoever
 * brings it to 0 frees the segment.  Pins are a batch that writes or reads it, and each
 * page a fault thread is reading: what is pinned stays what it is on disk, though all
 * of its refs be dropped meanwhile.
 *
 * The table is in memory: 24 bytes for each MiB of disk.  A dropped object is not
 * touched on disk, and its exact size is not known then: what is booked is the size in
 * its ref, rounded up to 64 bytes, in both directions.
 *
 * Sums.  An object on disk has the sum it had in the pool, with something mixed in that
 * stands for this boot, this segment and this write of it.  So where a disk says that
 * it has written and has not, the object that is found, sound in itself and possibly of
 * the same page, is damaged and not somebody's bytes of yesterday.
 *
 * Threads: take, add, wrote, emptiest, discard from the put thread; pin, unpin, drop,
 * find from any.
 *
 * Invariants:
 *  I1  `live` of a segment is the sum of its live objects as booked, and its pins.
 *  I2  A segment is written only while no live ref and no pin but the writer's is in it.
 *  I3  spare + bad + segments with something live = segments_max.
 */
#include "mm/swap/internal.h"

#include <errno.h>
#include <inttypes.h>
#include <linux/fs.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>

/* A device that cannot be written is left alone after so many errors without a write
 * between them that went well; one bad place is not that. */
#define ERRORS_MAX 8u
#define DISCARDS_AT_ONCE 16u /* in one round: some devices take milliseconds each */
/* So many reads of one segment within an epoch (a second) are more than chance: of a
 * segment of 500 pages 1 in 30, and a read of all of it costs as much as 20 of these. */
#define HOT_READS 16u

/* ---- refs ------------------------------------------------------------------------ */

#define SIZE_MASK ((uint64_t)63)

swap_ref_t disk_ref(uint32_t segment, uint32_t unit, uint32_t bytes)
{
	uint64_t size = (bytes - 1) / REF_SIZE_STEP;

	return (swap_ref_t){ REF_DISK | size << REF_SIZE_SHIFT |
			     (uint64_t)segment << REF_UNIT_BITS | unit };
}

uint32_t disk_segment_of(swap_ref_t ref)
{
	return (uint32_t)(ref.v >> REF_UNIT_BITS) & (REF_DISK_SEGMENTS_MAX - 1);
}

/* The most data it can have. */
static uint32_t bytes_in(swap_ref_t ref)
{
	return (uint32_t)((ref.v >> REF_SIZE_SHIFT & SIZE_MASK) + 1) * REF_SIZE_STEP;
}

uint32_t disk_units(swap_ref_t ref)
{
	return units_of(bytes_in(ref));
}

bool disk_holds(const struct disk *d, swap_ref_t ref)
{
	return ref.v < (uint64_t)1 << SWAP_REF_BITS && ref_is_disk(ref) &&
	       disk_segment_of(ref) < d->segments_max &&
	       ref_unit(ref) + units_of(1) <= SEGMENT_UNITS;
}

uint64_t disk_offset(uint32_t segment)
{
	return (segment + (uint64_t)1) * SEGMENT_BYTES;
}

void disk_extent(const struct disk *d, swap_ref_t ref, struct mm_extent *out)
{
	uint64_t start = ref_unit(ref) * UNIT_BYTES, end = start + disk_units(ref) * UNIT_BYTES;

	if (end > SEGMENT_BYTES)
		end = SEGMENT_BYTES;
	start = start / MM_BLOCK_BYTES * MM_BLOCK_BYTES;
	end = (end + MM_BLOCK_BYTES - 1) / MM_BLOCK_BYTES * MM_BLOCK_BYTES;
	*out = (struct mm_extent){ .fd = d->file.fd, .bytes = (uint32_t)(end - start),
				   .offset = disk_offset(disk_segment_of(ref)) + start };
}

/* ---- what was read ---------------------------------------------------------------- */

static uint64_t scramble(uint64_t z)
{
	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u; /* splitmix64's end: a bijection */
	z = (z ^ z >> 27) * 0x94d049bb133111ebu;
	return z ^ z >> 31;
}

uint64_t disk_seal(const struct disk *d, uint32_t segment)
{
	return scramble(d->salt ^ (segment | (uint64_t)d->segments[segment].stamp << 32));
}

/* The plain object at `at`, where the segment's unit `unit` is, and `left` bytes. */
static int parse(const struct disk *d, swap_ref_t where, const uint8_t *at, uint64_t left,
		 struct packed *out)
{
	struct { uint64_t tag, sum; } h;

	if (left < sizeof(h))
		return -EIO;
	memcpy(&h, at, sizeof(h));
	if (!tag_is_sound(h.tag, ref_unit(where)) || tag_state(h.tag) != OBJECT_LIVE ||
	    tag_is_delta(h.tag) || sizeof(h) + tag_bytes(h.tag) > left)
		return -EIO;
	*out = (struct packed){ .owner = (uint32_t)h.tag, .bytes = tag_bytes(h.tag),
				.sum = h.sum ^ disk_seal(d, disk_segment_of(where)),
				.data = at + sizeof(h), .state = OBJECT_LIVE,
				.is_refined = tag_is_refined(h.tag) };
	return 0;
}

int disk_parse(const struct disk *d, uint32_t segment, uint32_t unit, const uint8_t *raw,
	       struct packed *out)
{
	uint64_t start = unit * UNIT_BYTES;

	return parse(d, disk_ref(segment, unit, 1), raw + start, SEGMENT_BYTES - start, out);
}

int disk_find(const struct disk *d, swap_ref_t ref, const struct mm_read *from,
	      struct packed *out)
{
	uint64_t at;

	if (!disk_holds(d, ref))
		return -EIO;
	at = disk_offset(disk_segment_of(ref)) + ref_unit(ref) * UNIT_BYTES;
	if (at < from->of.offset || at >= from->of.offset + from->of.bytes)
		return -EIO;
	at -= from->of.offset;
	if (parse(d, ref, from->raw + at, from->of.bytes - at, out))
		return -EIO;
	/* the ref says a size, too */
	return (out->bytes - 1) / REF_SIZE_STEP == (bytes_in(ref) - 1) / REF_SIZE_STEP ? 0 : -EIO;
}

/* ---- create and destroy -------------------------------------------------------------- */

static int map_table(struct disk *d, struct err *e)
{
	uint64_t bytes = d->segments_max * sizeof(struct segment);
	void *at;

	d->segments_bytes = (bytes + PAGE_BYTES - 1) / PAGE_BYTES * PAGE_BYTES;
	at = d->host->mmap(NULL, d->segments_bytes, PROT_READ | PROT_WRITE,
			   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (at == MAP_FAILED)
		return err_sys(e, -ENOMEM, "swap: no memory for the table of %s", d->path);
	d->segments = at;
	return 0;
}

static uint64_t default_bytes(const struct swap_config *cfg)
{
	uint64_t pages_bytes = cfg->max_pages * PAGE_BYTES;

	return (pages_bytes + pages_bytes / 8 + SEGMENT_BYTES - 1) / SEGMENT_BYTES * SEGMENT_BYTES +
	       (DISK_SEGMENTS_MIN + 1) * SEGMENT_BYTES;
}

static int check_size(const struct disk *d, struct err *e)
{
	char has[32];

	if (d->file.bytes / SEGMENT_BYTES > DISK_SEGMENTS_MIN)
		return 0;
	return err_set(e, -EINVAL, "swap: %s: %s are too small, the least is %u MiB", d->path,
		       size_format(has, sizeof(has), d->file.bytes), DISK_SEGMENTS_MIN + 1);
}

static int open_file(struct disk *d, const struct swap_config *cfg, struct err *e)
{
	uint64_t segments;
	int rc;

	d->file.bytes = cfg->disk->size_bytes ? cfg->disk->size_bytes : default_bytes(cfg);
	rc = check_size(d, e);
	if (!rc)
		rc = file_open(&d->file, d->host, cfg->disk, e);
	if (!rc)
		rc = check_size(d, e); /* of a device */
	if (rc)
		return rc;
	segments = d->file.bytes / SEGMENT_BYTES - 1; /* the header's */
	d->segments_max = segments < REF_DISK_SEGMENTS_MAX ? (uint32_t)segments :
							     REF_DISK_SEGMENTS_MAX;
	d->takes_discards = d->file.is_device;
	atomic_store(&d->spare, d->segments_max);
	return 0;
}

int disk_init(struct disk *d, const struct swap_config *cfg, struct err *e)
{
	int rc;

	*d = (struct disk){
		.host = cfg->host ? cfg->host : &mm_host_linux, .file = { .fd = -1 },
		.path = strdup(cfg->disk->path),
		.freed_list = SEGMENT_NONE, .spare_list = SEGMENT_NONE, .hot = SEGMENT_NONE,
	};
	if (!d->path)
		return err_sys(e, -ENOMEM, "swap: no memory for a path");
	if (getrandom(&d->salt, sizeof(d->salt), 0) != (ssize_t)sizeof(d->salt))
		return err_sys(e, -EIO, "swap: no random number");
	rc = cfg->disk->encrypt ? crypt_create(&d->crypt, e) : 0;
	if (!rc)
		rc = open_file(d, cfg, e);
	return rc ? rc : map_table(d, e);
}

void disk_fini(struct disk *d)
{
	if (!d->host)
		return;
	file_close(&d->file, d->host);
	crypt_destroy(&d->crypt);
	if (d->segments && d->host->munmap(d->segments, d->segments_bytes) < 0)
		log_error("swap: cannot unmap the table of %s: %s", d->path, strerror(errno));
	free(d->path);
	*d = (struct disk){ 0 };
}

/* ---- segments come and go ------------------------------------------------------------- */

uint32_t disk_take(struct disk *d, uint32_t reserve)
{
	uint32_t i;

	if (atomic_load(&d->spare) <= reserve)
		return SEGMENT_NONE;
	i = segments_pop(d->segments, &d->spare_list);
	if (i == SEGMENT_NONE && d->fresh < d->segments_max)
		i = d->fresh++;
	if (i == SEGMENT_NONE)
		i = segments_pop(d->segments, &d->freed_list); /* not discarded: written over */
	VERIFY(i != SEGMENT_NONE);
	atomic_fetch_sub(&d->spare, 1);
	d->segments[i].stamp = ++d->writes;
	d->segments[i].used_units = 0;
	atomic_store_explicit(&d->segments[i].heat, 0, memory_order_relaxed);
	atomic_store_explicit(&d->segments[i].live, LIVE_PIN, memory_order_relaxed);
	return i;
}

/* The caller brought it to 0. */
static void put_back(struct disk *d, uint32_t i)
{
	if (d->segments[i].is_spoiled) {
		atomic_fetch_add(&d->bad, 1);
		return;
	}
	segments_push(d->segments, d->file.is_device ? &d->freed_list : &d->spare_list, i);
	atomic_fetch_add(&d->spare, 1);
}

static void subtract(struct disk *d, uint32_t i, uint64_t what)
{
	uint64_t old = atomic_fetch_sub_explicit(&d->segments[i].live, what, memory_order_acq_rel);

	VERIFY(old >= what);
	if (old == what)
		put_back(d, i);
}

void disk_add(struct disk *d, uint32_t i, uint64_t objects, uint64_t units)
{
	atomic_fetch_add_explicit(&d->segments[i].live, objects * LIVE_OBJECT + units,
				  memory_order_relaxed);
	atomic_fetch_add_explicit(&d->pages, objects, memory_order_relaxed);
	atomic_fetch_add_explicit(&d->bytes, units * UNIT_BYTES, memory_order_relaxed);
}

void disk_drop(struct disk *d, swap_ref_t ref)
{
	uint64_t units = disk_units(ref);

	VERIFY(disk_holds(d, ref));
	atomic_fetch_sub_explicit(&d->pages, 1, memory_order_relaxed);
	atomic_fetch_sub_explicit(&d->bytes, units * UNIT_BYTES, memory_order_relaxed);
	subtract(d, disk_segment_of(ref), LIVE_OBJECT + units);
}

/* Lost counts do no harm here. */
static void note_read(struct disk *d, uint32_t i)
{
	struct segment *s = &d->segments[i];
	unsigned heat = atomic_load_explicit(&s->heat, memory_order_relaxed);
	unsigned epoch = atomic_load_explicit(&d->epoch, memory_order_relaxed) & 0xff;
	unsigned reads = heat >> 8 == epoch ? (heat & 0xff) + 1 : 1;

	if (reads <= HOT_READS)
		atomic_store_explicit(&s->heat, (uint16_t)(epoch << 8 | reads),
				      memory_order_relaxed);
	if (reads == HOT_READS)
		atomic_store_explicit(&d->hot, i, memory_order_relaxed);
}

/* The ref is live, so the word is not 0. */
void disk_pin(struct disk *d, swap_ref_t ref)
{
	uint32_t i = disk_segment_of(ref);

	VERIFY(disk_holds(d, ref));
	VERIFY(atomic_fetch_add_explicit(&d->segments[i].live, LIVE_PIN, memory_order_acquire) > 0);
	note_read(d, i);
}

void disk_unpin(struct disk *d, uint32_t segment)
{
	subtract(d, segment, LIVE_PIN);
}

void disk_wrote(struct disk *d, uint32_t segment, int rc)
{
	if (!rc) {
		d->errors_in_row = 0;
		return;
	}
	counter_inc(CTR_swap_disk_write_errors);
	d->segments[segment].is_spoiled = true;
	if (++d->errors_in_row < ERRORS_MAX || atomic_exchange(&d->refuses, true))
		return;
	log_error("swap: %s takes no more pages: %u writes in a row failed, the last at byte %" PRIu64
		  ": %s", d->path, ERRORS_MAX, disk_offset(segment), strerror(-rc));
}

/* A batch ends at so many objects, however small (BATCH_OBJECTS): each counts for its share
 * at least.  Else what can never be denser would be cleaned over and over. */
static uint64_t filled_units(uint64_t live)
{
	uint64_t by_number = live % LIVE_PIN / LIVE_OBJECT * (SEGMENT_UNITS / BATCH_OBJECTS);
	uint64_t units = live & LIVE_UNITS_MASK;

	return units > by_number ? units : by_number;
}

uint32_t disk_emptiest(const struct disk *d, uint64_t units, uint64_t *holes)
{
	uint32_t best = SEGMENT_NONE;
	uint64_t least = units;

	*holes = 0;
	for (uint32_t i = 0; i < d->fresh; i++) {
		uint64_t live = atomic_load_explicit(&d->segments[i].live, memory_order_relaxed);
		uint64_t filled = filled_units(live);

		if (!live || live >= LIVE_PIN || d->segments[i].is_spoiled || filled >= units)
			continue;
		*holes += SEGMENT_UNITS - filled;
		if (filled >= least)
			continue;
		least = filled;
		best = i;
	}
	return best;
}

/* ---- discard --------------------------------------------------------------------------- */

static bool discard_one(struct disk *d, uint32_t i)
{
	uint64_t range[2] = { disk_offset(i), SEGMENT_BYTES };

	if (d->host->ioctl(d->file.fd, BLKDISCARD, range) < 0)
		return false;
	counter_add(CTR_swap_disk_discarded_bytes, SEGMENT_BYTES);
	return true;
}

void disk_discard(struct disk *d)
{
	for (unsigned n = 0; n < DISCARDS_AT_ONCE; n++) {
		uint32_t i = segments_pop(d->segments, &d->freed_list);

		if (i == SEGMENT_NONE)
			return;
		/* a device that does not know of it, or had enough: never asked again */
		if (d->takes_discards && !discard_one(d, i))
			d->takes_discards = false;
		segments_push(d->segments, &d->spare_list, i);
	}
}

/* ---- verify ------------------------------------------------------------------------------ */

static uint32_t list_length(const struct disk *d, uint32_t i)
{
	uint32_t n = 0;

	for (; i != SEGMENT_NONE; i = d->segments[i].next) {
		VERIFY(i < d->fresh && n < d->fresh);
		VERIFY(atomic_load(&d->segments[i].live) == 0);
		n++;
	}
	return n;
}

void disk_verify(const struct disk *d)
{
	uint64_t pages = 0, bytes = 0;
	uint32_t in_use = 0, listed = list_length(d, atomic_load(&d->freed_list)) +
				      list_length(d, atomic_load(&d->spare_list));

	for (uint32_t i = 0; i < d->fresh; i++) {
		uint64_t live = atomic_load(&d->segments[i].live);

		in_use += live != 0;
		pages += live % LIVE_PIN / LIVE_OBJECT;
		bytes += (live & LIVE_UNITS_MASK) * UNIT_BYTES;
	}
	VERIFY(pages == atomic_load(&d->pages) && bytes == atomic_load(&d->bytes));
	VERIFY(listed + d->segments_max - d->fresh == atomic_load(&d->spare));
	VERIFY(listed + in_use + atomic_load(&d->bad) == d->fresh);
}
