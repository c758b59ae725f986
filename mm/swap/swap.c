/*
 * The two tiers together: compress, checksum, put, get, drop.
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
#define ACCELERATION_MAX 64
#define ODD_MIX 0xff51afd7ed558ccdu /* any odd number does: a bijection */

/* ---- create and destroy ------------------------------------------------------ */

static uint64_t fixed_table_bytes(void)
{
	return sizeof(struct swap) + (uint64_t)LZ4_sizeofState();
}

/* Without a cap the pool may take as much as the pages themselves would: more
 * could only be holes. */
static uint64_t segments_for(const struct swap_config *cfg)
{
	uint64_t most = cfg->max_pages * PAGE_BYTES / SEGMENT_BYTES + POOL_SEGMENTS_MIN;
	uint64_t capped;

	if (!cfg->cap_bytes)
		return most;
	if (cfg->cap_bytes < fixed_table_bytes())
		return 0;
	capped = pool_segments_in(cfg->cap_bytes - fixed_table_bytes());
	return capped < most ? capped : most;
}

static int check_config(const struct swap_config *cfg, struct err *e)
{
	char asked[32];

	if (cfg->max_pages < 1 || cfg->max_pages > MAX_PAGES)
		return err_set(e, -EINVAL, "swap: %" PRIu64 " pages asked, must be 1 to %" PRIu64,
			       cfg->max_pages, (uint64_t)MAX_PAGES);
	if (cfg->acceleration < 0 || cfg->acceleration > ACCELERATION_MAX)
		return err_set(e, -EINVAL, "swap: acceleration %d asked, must be 1 to %d",
			       cfg->acceleration, ACCELERATION_MAX);
	if (segments_for(cfg) < POOL_SEGMENTS_MIN)
		return err_set(e, -EINVAL, "swap: cap of %s asked, the least is %u MiB and tables",
			       size_format(asked, sizeof(asked), cfg->cap_bytes),
			       POOL_SEGMENTS_MIN);
	return 0;
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
	rc = pool_init(&s->pool, (uint32_t)segments_for(cfg),
		       cfg->host ? cfg->host : &mm_host_linux, e);
	s->table_bytes = fixed_table_bytes() + s->pool.segments_bytes;
	return rc;
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
	pool_fini(&old->pool);
	free(old->lz4_state);
	free(old);
}

/* ---- put --------------------------------------------------------------------- */

static uint64_t checksum(const struct packed *k)
{
	uint64_t who = k->owner | (uint64_t)k->bytes << 32;

	return XXH3_64bits(k->data, k->bytes) ^ who * ODD_MIX;
}

static int put_packed(struct swap *s, uint64_t owner, const void *page, swap_ref_t *ref)
{
	struct packed k = { .owner = (uint32_t)owner, .data = s->out };
	int n = LZ4_compress_fast_extState(s->lz4_state, page, (char *)s->out, (int)PAGE_BYTES,
					   (int)sizeof(s->out), s->cfg.acceleration);
	int rc;

	if (n <= 0) {
		counter_inc(CTR_swap_incompressible);
		return -E2BIG;
	}
	k.bytes = (uint32_t)n;
	k.sum = checksum(&k);
	rc = pool_append(&s->pool, &k, ref);
	counter_inc(rc ? CTR_swap_no_room : CTR_swap_puts);
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

static bool is_packed(swap_ref_t ref)
{
	return (ref.v & REF_PACKED) != 0;
}

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

static int get_packed(const struct swap *s, swap_ref_t ref, uint64_t owner, void *page)
{
	struct packed k;

	if (pool_find(&s->pool, ref, &k) || k.owner != owner) {
		counter_inc(CTR_swap_bad_object);
		return -EIO;
	}
	/* What LZ4 makes of sound bytes is a page; the test after it costs nothing,
	 * and is all there is against a compressor gone wrong. */
	if (checksum(&k) != k.sum ||
	    LZ4_decompress_safe((const char *)k.data, page, (int)k.bytes, (int)PAGE_BYTES) !=
		    (int)PAGE_BYTES) {
		counter_inc(CTR_swap_bad_checksum);
		return -EIO;
	}
	return 0;
}

int swap_get(struct swap *s, swap_ref_t ref, uint64_t owner, void *page)
{
	counter_inc(CTR_swap_gets);
	return is_packed(ref) ? get_packed(s, ref, owner, page) : get_filled(s, ref, page);
}

void swap_drop(struct swap *s, swap_ref_t ref)
{
	if (is_packed(ref))
		pool_drop(&s->pool, ref);
	else
		fill_drop(&s->fill, ref);
}

bool swap_is_filled(const struct swap *s, swap_ref_t ref, uint64_t *value)
{
	return !is_packed(ref) && fill_value(&s->fill, ref, value);
}

/* ---- cleaning and counts ----------------------------------------------------- */

int64_t swap_clean(struct swap *s, unsigned slack_pct, uint64_t budget_bytes)
{
	const struct pool_cleaning c = { .slack_pct = slack_pct, .budget_bytes = budget_bytes,
					 .move = s->cfg.move, .move_ctx = s->cfg.move_ctx };

	VERIFY(c.move);
	return pool_clean(&s->pool, &c);
}

/* While others work, packed bytes may be read a moment before or after the
 * segments are: then holes come out too small or too large, never held_bytes. */
void swap_stats(const struct swap *s, struct swap_stats *out)
{
	uint64_t packed = atomic_load(&s->pool.bytes);
	uint64_t segments = atomic_load(&s->pool.held) * SEGMENT_BYTES;

	*out = (struct swap_stats){
		.filled_pages = fill_pages(&s->fill),
		.packed_pages = atomic_load(&s->pool.pages),
		.packed_bytes = packed,
		.hole_bytes = segments > packed ? segments - packed : 0,
		.table_bytes = s->table_bytes,
		.held_bytes = segments + s->table_bytes,
	};
}

void swap_verify(struct swap *s)
{
	struct swap_stats st;

	fill_verify(&s->fill);
	pool_verify(&s->pool);
	swap_stats(s, &st);
	VERIFY(st.packed_bytes + st.hole_bytes + st.table_bytes == st.held_bytes);
	VERIFY(!s->cfg.cap_bytes || st.held_bytes <= s->cfg.cap_bytes);
}
