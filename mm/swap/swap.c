/*
 * The tiers together: compress, checksum, put, get, drop.
 *
 * LZ4 writes into a buffer of SWAP_PACKED_MAX bytes and gives up when that is full:
 * this is the test for incompressible pages, and there is no other in front of it.
 * LZ4 skips faster the longer it finds nothing: a random page is refused in 1 us,
 * where one of a program takes 5.4 us to pack.  A look at 512 bytes of each page
 * first was measured: 0.7 us a page, and it refused one in eight that do pack.
 *
 * The checksum is over the packed bytes, not the page: it is smaller by half or
 * more, and nothing damaged reaches the decompressor.  All 64 bits are kept, since
 * the header is 16 bytes either way, and 2^-64 needs no further argument.  Owner
 * and length are mixed in, so that a sound object of somebody else, reached by a
 * wrong ref, does not pass for this page.
 *
 * Threads: see swap.h.  The LZ4 state and buffer are the put thread's; decompressing
 * needs neither.
 *
 * Invariants: I1, I2 and I3 of swap.h.
 */
#include "mm/swap/internal.h"

#include <errno.h>
#include <inttypes.h>
#include <lz4.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#define MAX_PAGES (RAM_MAX_BYTES >> PAGE_SHIFT)
#define ODD_MIX 0xff51afd7ed558ccdu /* any odd number does: a bijection */

/* ---- create and destroy ------------------------------------------------------ */

static uint64_t fixed_table_bytes(void)
{
	return sizeof(struct swap) + (uint64_t)LZ4_sizeofState();
}

/* Beside the pool: of the swap file. */
static uint64_t disk_bytes(const struct swap *s)
{
	return s->has_disk ? s->disk.segments_bytes + SPILL_BYTES : 0;
}

/* Beside the pool, and known once these are there. */
static uint64_t other_bytes(const struct swap *s)
{
	return disk_bytes(s) + refine_table_bytes(s->refine);
}

static uint64_t segments_min(const struct swap_config *cfg)
{
	return (cfg->disk ? POOL_SEGMENTS_MIN_DISK : POOL_SEGMENTS_MIN) +
	       (refine_is_wanted(cfg) ? REFINE_SEGMENTS : 0);
}

/* Without a cap the pool may take as much as the pages themselves would, packed not at
 * all: more could only be holes. */
static uint64_t segments_for(const struct swap_config *cfg, uint64_t more_bytes)
{
	uint64_t each = units_of(OBJECT_BYTES_MAX) * UNIT_BYTES;
	uint64_t most = cfg->max_pages * each / SEGMENT_BYTES + segments_min(cfg);
	uint64_t capped;

	more_bytes += fixed_table_bytes() + delta_most_bytes(cfg);
	if (!cfg->cap_bytes)
		return most;
	if (cfg->cap_bytes < more_bytes)
		return 0;
	capped = pool_segments_in(cfg->cap_bytes - more_bytes);
	return capped < most ? capped : most;
}

static int check_config(const struct swap_config *cfg, struct err *e)
{
	char asked[32];

	if (cfg->max_pages < 1 || cfg->max_pages > MAX_PAGES)
		return err_set(e, -EINVAL, "swap: %" PRIu64 " pages asked, must be 1 to %" PRIu64,
			       cfg->max_pages, (uint64_t)MAX_PAGES);
	if (cfg->acceleration < 0 || cfg->acceleration > SWAP_ACCELERATION_MAX)
		return err_set(e, -EINVAL, "swap: acceleration %d asked, must be 1 to %d",
			       cfg->acceleration, SWAP_ACCELERATION_MAX);
	if (cfg->delta > SWAP_DELTA_SMALL)
		return err_set(e, -EINVAL, "swap: no such setting for deltas: %d", (int)cfg->delta);
	if (cfg->refine > SWAP_REFINE_ON)
		return err_set(e, -EINVAL, "swap: no such setting for refining: %d",
			       (int)cfg->refine);
	if (!cfg->disk && segments_for(cfg, 0) < POOL_SEGMENTS_MIN)
		return err_set(e, -EINVAL, "swap: cap of %s asked, the least is %u MiB and tables",
			       size_format(asked, sizeof(asked), cfg->cap_bytes),
			       POOL_SEGMENTS_MIN);
	return 0;
}

/* Its table is in the cap, and known only once it is open. */
static int init_disk(struct swap *s, const struct swap_config *cfg, struct err *e)
{
	char asked[32], least[32];
	int rc;

	if (!cfg->disk)
		return 0;
	s->has_disk = true;
	rc = disk_init(&s->disk, cfg, e);
	if (rc || segments_for(cfg, disk_bytes(s)) >= POOL_SEGMENTS_MIN_DISK)
		return rc;
	return err_set(e, -EINVAL, "swap: cap of %s asked, the least with %s is %s",
		       size_format(asked, sizeof(asked), cfg->cap_bytes), cfg->disk->path,
		       size_format(least, sizeof(least), disk_bytes(s) + fixed_table_bytes() +
				   (POOL_SEGMENTS_MIN_DISK + 1) * SEGMENT_BYTES));
}

static int init(struct swap *s, const struct swap_config *cfg, struct err *e)
{
	int rc;

	s->cfg = *cfg;
	if (!s->cfg.acceleration)
		s->cfg.acceleration = 1;
	s->lz4_state = malloc((size_t)LZ4_sizeofState());
	if (!s->lz4_state)
		return err_sys(e, -ENOMEM, "swap: no memory for the compressor");
	rc = init_disk(s, cfg, e);
	s->cfg.disk = NULL; /* the caller's */
	if (rc)
		return rc;
	rc = refine_create(&s->refine, cfg, e);
	if (!rc)
		rc = pool_init(&s->pool, (uint32_t)segments_for(cfg, other_bytes(s)),
			       cfg->host ? cfg->host : &mm_host_linux, e);
	if (rc)
		return rc;
	s->table_bytes = fixed_table_bytes() + s->pool.segments_bytes + s->disk.segments_bytes +
			 refine_table_bytes(s->refine);
	s->pool.streams = s->has_disk ? POOL_STREAMS : s->refine ? POOL_REFINED + 1 : 1;
	s->pool.reserve = s->refine ? 2 : 1;
	rc = delta_create(&s->delta, cfg, &s->pool, e);
	if (s->delta)
		s->delta->refine = s->refine;
	return rc || !s->has_disk ? rc : spill_init(s, e);
}

int swap_create(struct swap **out, const struct swap_config *cfg, struct err *e)
{
	struct swap *s;
	int rc;

	VERIFY(out && cfg);
	rc = check_config(cfg, e);
	if (rc)
		return rc;
	s = calloc(1, sizeof(*s));
	if (!s)
		return err_sys(e, -ENOMEM, "swap: no memory for its description");
	rc = init(s, cfg, e);
	if (rc)
		swap_destroy(&s);
	else
		*out = s;
	return rc;
}

void swap_destroy(struct swap **s)
{
	struct swap *old = *s;

	*s = NULL;
	if (!old)
		return;
	delta_destroy(&old->delta);
	spill_fini(old);
	disk_fini(&old->disk);
	pool_fini(&old->pool);
	refine_destroy(&old->refine);
	free(old->lz4_state);
	free(old);
}

/* ---- put --------------------------------------------------------------------- */

uint64_t swap_checksum(const struct packed *k)
{
	uint32_t how = k->is_refined ? TAG_REFINED : 0;
	uint64_t who = k->owner | (uint64_t)(k->bytes | how) << 32;

	return XXH3_64bits(k->data, k->bytes) ^ who * ODD_MIX;
}

/* A page that does not pack is worth keeping only to take it to disk. */
static bool takes_raw(const struct swap *s)
{
	return s->has_disk && !atomic_load(&s->disk.refuses) && atomic_load(&s->disk.spare) > 1;
}

/* By itself; whole where it does not pack, which k->bytes of 0 says. */
static int put_alone(struct swap *s, struct packed *k, const void *page, swap_ref_t *ref)
{
	bool is_raw = !k->bytes;
	int rc;

	if (is_raw && !takes_raw(s))
		return -E2BIG;
	if (is_raw) {
		k->bytes = OBJECT_BYTES_MAX;
		k->data = page;
	}
	k->sum = swap_checksum(k);
	rc = pool_append(&s->pool, k, is_raw ? POOL_RAW : POOL_HOT, ref);
	if (!rc && s->delta && !is_raw) /* those do not stay long */
		delta_offer(s->delta, *ref);
	return rc;
}

/* Into s->out: the bytes, or 0 where it does not pack. */
static uint32_t pack(struct swap *s, const void *page)
{
	int n = LZ4_compress_fast_extState(s->lz4_state, page, (char *)s->out, (int)PAGE_BYTES,
					   (int)sizeof(s->out), s->cfg.acceleration);

	return n > 0 ? (uint32_t)n : 0;
}

/* Nothing of how it was packed before may stay: a flag that did would be summed up with it,
 * and be believed. */
void swap_pack_alone(struct swap *s, const void *page, struct packed *k)
{
	uint32_t bytes = pack(s, page);

	*k = (struct packed){ .owner = k->owner, .state = k->state,
			      .bytes = bytes ? bytes : OBJECT_BYTES_MAX,
			      .data = bytes ? s->out : page };
	k->sum = swap_checksum(k);
}

static int put_packed(struct swap *s, uint64_t owner, const void *page, swap_ref_t *ref)
{
	struct packed k = { .owner = (uint32_t)owner, .data = s->out, .bytes = pack(s, page) };
	int rc;

	rc = s->delta ? delta_put(s->delta, &k, page, ref) : -ENOENT;
	if (rc == -ENOENT)
		rc = put_alone(s, &k, page, ref);
	counter_inc(rc == -E2BIG ? CTR_swap_incompressible : rc ? CTR_swap_no_room :
		    k.bytes == PAGE_BYTES ? CTR_swap_raw : CTR_swap_puts);
	return rc;
}

int swap_put(struct swap *s, uint64_t owner, const void *page, swap_ref_t *ref)
{
	uint64_t value;

	VERIFY(owner < s->cfg.max_pages);
	if (fill_matches(page, &value) && fill_take(&s->fill, value, ref)) {
		counter_inc(CTR_swap_fills);
		return 0;
	}
	return put_packed(s, owner, page, ref);
}

/* ---- get and drop ------------------------------------------------------------ */

static int get_filled(const struct swap *s, swap_ref_t ref, void *page)
{
	uint64_t value;

	if (!fill_value(&s->fill, ref, &value)) {
		counter_inc(CTR_swap_bad_object);
		return -EIO;
	}
	if (value == 0)
		memset(page, 0, PAGE_BYTES);
	else
		for (uint64_t i = 0; i < PAGE_BYTES; i += sizeof(value))
			memcpy((uint8_t *)page + i, &value, sizeof(value));
	return 0;
}

/* With its owner, also where it is a base.  Without a delta tier nothing can be, and
 * what looks so is damaged. */
static int find_packed(const struct swap *s, swap_ref_t ref, struct packed *k)
{
	int rc = pool_find(&s->pool, ref, k);

	if (rc || (k->state == OBJECT_LIVE && !k->is_delta))
		return rc;
	return s->delta ? delta_found(s->delta, k) : -EIO;
}

int swap_open_alone(struct refine *r, const struct packed *k, void *page)
{
	const struct refined from = { .data = k->data, .bytes = k->bytes };

	if (swap_checksum(k) != k->sum)
		return -EIO;
	if (k->is_refined)
		return refine_unpack(r, &from, page);
	if (k->bytes == PAGE_BYTES) {
		memcpy(page, k->data, PAGE_BYTES);
		return 0;
	}
	/* What LZ4 makes of sound bytes is a page; the test after it costs nothing,
	 * and is all there is against a compressor gone wrong. */
	return LZ4_decompress_safe((const char *)k->data, page, (int)k->bytes, (int)PAGE_BYTES) ==
		       (int)PAGE_BYTES ? 0 : -EIO;
}

static int get_packed(const struct swap *s, swap_ref_t ref, uint64_t owner, void *page)
{
	struct packed k;

	if (find_packed(s, ref, &k) || k.owner != owner) {
		counter_inc(CTR_swap_bad_object);
		return -EIO;
	}
	if (k.is_delta ? delta_get(s->delta, &k, page) : swap_open_alone(s->refine, &k, page)) {
		counter_inc(CTR_swap_bad_checksum);
		return -EIO;
	}
	return 0;
}

int swap_unpack(const struct swap *s, swap_ref_t ref, const struct swap_read *r, void *page)
{
	struct packed k;
	bool is_found = !disk_find(&s->disk, ref, &r->from, &k) && k.owner == r->owner;

	if (is_found && !swap_open_alone(s->refine, &k, page))
		return 0;
	counter_inc(is_found ? CTR_swap_bad_checksum : CTR_swap_bad_object);
	counter_inc(CTR_swap_disk_bad);
	return -EIO;
}

int swap_arrived(struct swap *s, const struct mm_extent *of, void *raw)
{
	struct crypt_blocks b = { raw, of->offset / MM_BLOCK_BYTES,
				  of->bytes / (uint32_t)MM_BLOCK_BYTES };

	return s->disk.crypt ? crypt_unseal(s->disk.crypt, &b) : 0;
}

/* Three blocks are the most that one object can touch. */
static int get_disk(struct swap *s, swap_ref_t ref, uint64_t owner, void *page)
{
	_Alignas(PAGE_BYTES) uint8_t raw[3 * PAGE_BYTES];
	struct swap_read r = { .owner = owner, .from.raw = raw };
	int64_t got;

	if (!s->has_disk || !disk_holds(&s->disk, ref)) {
		counter_inc(CTR_swap_bad_object);
		return -EIO;
	}
	disk_extent(&s->disk, ref, &r.from.of);
	VERIFY(r.from.of.bytes <= sizeof(raw));
	got = s->disk.host->pread(r.from.of.fd, raw, r.from.of.bytes, (int64_t)r.from.of.offset);
	if (got != (int64_t)r.from.of.bytes || swap_arrived(s, &r.from.of, raw))
		return -EIO;
	return swap_unpack(s, ref, &r, page);
}

int swap_get(struct swap *s, swap_ref_t ref, uint64_t owner, void *page)
{
	counter_inc(CTR_swap_gets);
	if (ref_is_packed(ref))
		return get_packed(s, ref, owner, page);
	return ref_is_disk(ref) ? get_disk(s, ref, owner, page) : get_filled(s, ref, page);
}

void swap_drop(struct swap *s, swap_ref_t ref)
{
	uint32_t row;

	if (ref_is_packed(ref) && s->delta)
		delta_drop(s->delta, ref);
	else if (ref_is_packed(ref))
		(void)pool_drop(&s->pool, ref, &row); /* there are no orphans */
	else if (ref_is_disk(ref))
		disk_drop(&s->disk, ref);
	else
		fill_drop(&s->fill, ref);
}

bool swap_is_filled(const struct swap *s, swap_ref_t ref, uint64_t *value)
{
	return !ref_is_packed(ref) && !ref_is_disk(ref) && fill_value(&s->fill, ref, value);
}

/* ---- cleaning and counts ----------------------------------------------------- */

int64_t swap_clean(struct swap *s, unsigned slack_pct, uint64_t budget_bytes)
{
	const struct pool_cleaning c = { .slack_pct = slack_pct, .budget_bytes = budget_bytes,
					 .move = s->cfg.move, .move_ctx = s->cfg.move_ctx,
					 .delta = s->delta };

	VERIFY(c.move);
	return pool_clean(&s->pool, &c);
}

static uint64_t disk_used_segments(const struct swap *s)
{
	return s->disk.segments_max - atomic_load(&s->disk.spare);
}

static uint64_t table_bytes(const struct swap *s)
{
	return s->table_bytes + (s->delta ? delta_table_bytes(s->delta) : 0);
}

/* While others work, packed bytes may be read a moment before or after the
 * segments are: then holes come out too small or too large, never held_bytes. */
uint64_t swap_held_bytes(const struct swap *s)
{
	return atomic_load(&s->pool.held) * SEGMENT_BYTES + table_bytes(s) + spill_held_bytes(s);
}

/* Orphans are nobody's pages.  Here too one count may be read a moment before the
 * other. */
static uint64_t owned_pages(const struct swap *s)
{
	uint64_t orphans = s->delta ? atomic_load(&s->delta->orphan_pages) : 0;
	uint64_t pages = atomic_load(&s->pool.pages);

	return pages > orphans ? pages - orphans : 0;
}

void swap_stats(const struct swap *s, struct swap_stats *out)
{
	uint64_t packed = atomic_load(&s->pool.bytes);
	uint64_t segments = atomic_load(&s->pool.held) * SEGMENT_BYTES;

	*out = (struct swap_stats){
		.filled_pages = fill_pages(&s->fill),
		.packed_pages = owned_pages(s),
		.packed_bytes = packed,
		.refined_pages = atomic_load(&s->pool.refined),
		.hole_bytes = segments > packed ? segments - packed : 0,
		.table_bytes = table_bytes(s),
		.batch_bytes = spill_held_bytes(s),
		.disk_pages = atomic_load(&s->disk.pages),
		.disk_bytes = atomic_load(&s->disk.bytes),
		.disk_used_bytes = disk_used_segments(s) * SEGMENT_BYTES,
		.disk_size_bytes = s->disk.segments_max * SEGMENT_BYTES,
	};
	out->held_bytes = segments + out->table_bytes + out->batch_bytes;
	if (s->delta) {
		out->delta_pages = atomic_load(&s->delta->pages);
		out->delta_saved_bytes = atomic_load(&s->delta->saved_bytes);
		out->orphan_bytes = atomic_load(&s->delta->orphan_bytes);
	}
}

void swap_verify(struct swap *s)
{
	struct swap_stats st;

	fill_verify(&s->fill);
	pool_verify(&s->pool);
	if (s->has_disk) {
		disk_verify(&s->disk);
		spill_verify(s);
	}
	if (s->delta)
		delta_verify(s->delta);
	swap_stats(s, &st);
	VERIFY(st.packed_bytes + st.hole_bytes + st.table_bytes + st.batch_bytes ==
	       st.held_bytes);
	VERIFY(!s->cfg.cap_bytes || st.held_bytes <= s->cfg.cap_bytes);
}
