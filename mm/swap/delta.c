/*
 * Pages packed against a similar page of the same VM, their base: LZ4 with the base's
 * 4 KiB as dictionary.
 *
 *   put      features of the page (similar.c) --> packed pages that share some, or the
 *            last page put --> the best of them is unpacked, and tried: kept where the
 *            delta takes three sixteenths less than the page alone; a page that does
 *            not pack alone may.  One is tried: a second gained nothing
 *   base     a plain object becomes a base when its first delta is put (base.c): a
 *            row is made, and the object's tag names the row instead of the owner
 *   drop     of a base that deltas need: the object stays, as an orphan; the drop of
 *            the last delta retires it
 *
 * Depth is one: a base is always packed alone, so a get unpacks two objects and no
 * more.
 *
 * A delta that stayed is packed anew against the same base, with zstd, behind the same
 * head (refine.c); what is booked as saved stays what LZ4 saved.
 *
 * Damage.  A delta's checksum is mixed with its base's, and the base is checked by its
 * own before it is used: a wrong base is an error, never other bytes.  A delta whose
 * head is damaged names no row; its base then stays for good.
 *
 * With a disk deltas are for the pool alone.  A delta that goes down is unpacked and
 * packed by itself (delta_peek(), swap_pack_alone()), a base only goes once it has no
 * deltas (delta_lets_go()): so what is on disk needs nothing in memory, and one read
 * gets it.  No page on its way down becomes a base.
 *
 * What it gains and costs, measured on the memory of two busy guests of 512 MiB (redis,
 * nginx, python; logs, redis, tar), bytes kept of each byte taken:
 *
 *             kept              smaller by      put      get of a delta
 *   off       0.466   0.451                     6 us
 *   FAST      0.423   0.404     1.10  1.12     10 us     6 us, of others 3.5 us
 *   SMALL     0.389   0.365     1.20  1.24     41 us     6 us
 *
 * With a disk, and a pool of a quarter of what is taken (bench_pack, 256 MiB of a machine's
 * processes), 0.55 of it went to disk instead of 0.59, for 4.1 us a page; without a disk
 * the same pages took 3.6 us more.  Of a mix of programs and heaps with few pages alike
 * 0.69 instead of 0.70.
 *
 * LZ4 does not see much more in it: up to eight bases at once and level 9, at 110 us a
 * page, came to 1.27 on the first of the two.  FAST tries no page that shares but one
 * feature: those made it a hundredth smaller, and took 13 us.
 * The share that must be gained bounds how many pages are deltas, which are nobody's
 * base: with a sixteenth or a quarter SMALL kept more.  SMALL also tries the last
 * page put where none is similar; that gains a twentieth, and nothing with FAST.
 * Looked at and left: two to four bases at once (2 to 3 % smaller, each unpacked in
 * each get), deltas of deltas (3 %, with half as many bases again), an encoder of our
 * own with tables for 8 KiB (24 us where LZ4's takes 31, and 1 to 2 % larger).
 *
 * Threads: put, offer, move and verify from the put thread; get and drop from any.
 *
 * Invariants, beside base.c's:
 *  I1  A delta holds one of its row's counts from before it can be found until after
 *      it is dead.
 *  I2  What is given back is what was put, or an error.
 */
#include "mm/swap/internal.h"

#include <errno.h>
#include <inttypes.h>
#include <lz4.h>
#include <lz4hc.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define PLAIN_MIN 256u       /* bytes: below, there is too little to gain */
#define GAIN_16THS 3         /* a delta takes so much less, or it is none: see below */
#define TABLES_SHARE 64      /* of the cap, for the index, and again for the rows */
#define INDEX_SHARE 256      /* of the VM's RAM */
#define INDEX_MIN_BYTES PAGE_BYTES
#define INDEX_MAX_BYTES (16 * MiB)
#define PAGES_A_ROW 4        /* of RAM; guests had a base in 6 to 14 pages */
#define ROWS_MIN 128u
#define LEVEL LZ4HC_CLEVEL_MIN + 1 /* 4: beyond it little is gained for each us */
#define SHARED_MIN_FAST 2u   /* features: with one, nine tries in ten are in vain */
#define HINTS 4u             /* looked up, for the case that some are stale */
#define SUM_MIX 0xc4ceb9fe1a85ec53u /* odd: a bijection */

_Static_assert(sizeof(struct base_row) == 32, "a row is 32 bytes");
_Static_assert(sizeof(struct delta_head) == 8, "a delta's head is 8 bytes");

/* ---- create and destroy ------------------------------------------------------- */

static uint64_t least(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}

static uint64_t index_bytes(const struct swap_config *cfg)
{
	uint64_t want = cfg->max_pages * PAGE_BYTES / INDEX_SHARE, bytes = INDEX_MIN_BYTES;

	if (cfg->cap_bytes)
		want = least(want, cfg->cap_bytes / TABLES_SHARE);
	while (bytes * 2 <= want && bytes < INDEX_MAX_BYTES)
		bytes *= 2;
	return bytes;
}

static uint32_t rows_for(const struct swap_config *cfg)
{
	uint64_t rows = cfg->max_pages / PAGES_A_ROW;

	if (cfg->cap_bytes)
		rows = least(rows, cfg->cap_bytes / TABLES_SHARE / sizeof(struct base_row));
	return (uint32_t)(rows < ROWS_MIN ? ROWS_MIN : rows);
}

static bool is_small(const struct swap_config *cfg)
{
	return cfg->delta == SWAP_DELTA_SMALL;
}

static uint64_t fixed_bytes(const struct swap_config *cfg)
{
	return sizeof(struct delta) + index_bytes(cfg) +
	       (is_small(cfg) ? sizeof(LZ4_streamHC_t) : sizeof(LZ4_stream_t));
}

static uint64_t rows_bytes(uint32_t rows)
{
	return (rows * sizeof(struct base_row) + PAGE_BYTES - 1) / PAGE_BYTES * PAGE_BYTES;
}

uint64_t delta_most_bytes(const struct swap_config *cfg)
{
	uint64_t cap_min = cfg->disk ? SWAP_DELTA_CAP_MIN_DISK_BYTES : SWAP_DELTA_CAP_MIN_BYTES;

	if (cfg->delta == SWAP_DELTA_OFF || (cfg->cap_bytes && cfg->cap_bytes < cap_min))
		return 0;
	return fixed_bytes(cfg) + rows_bytes(rows_for(cfg));
}

uint64_t delta_table_bytes(const struct delta *d)
{
	return sizeof(*d) + d->similar.bytes + rows_bytes(atomic_load(&d->fresh)) +
	       (d->lz4hc ? sizeof(LZ4_streamHC_t) : sizeof(LZ4_stream_t));
}

static int init(struct delta *d, const struct swap_config *cfg)
{
	void *rows;

	if (is_small(cfg))
		d->lz4hc = LZ4_createStreamHC();
	else
		d->lz4 = LZ4_createStream();
	if ((!d->lz4 && !d->lz4hc) || similar_init(&d->similar, index_bytes(cfg), d->host))
		return -ENOMEM;
	d->similar.shared_min = is_small(cfg) ? 1 : SHARED_MIN_FAST;
	rows = d->host->mmap(NULL, rows_bytes(d->rows_max), PROT_READ | PROT_WRITE,
			     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (rows == MAP_FAILED)
		return -ENOMEM;
	d->rows = rows;
	return 0;
}

int delta_create(struct delta **out, const struct swap_config *cfg, struct pool *p, struct err *e)
{
	struct delta *d;

	if (!delta_most_bytes(cfg))
		return 0;
	d = calloc(1, sizeof(*d));
	if (!d)
		return err_sys(e, -ENOMEM, "swap: no memory for deltas");
	d->pool = p;
	d->host = cfg->host ? cfg->host : &mm_host_linux;
	d->rows_max = rows_for(cfg);
	d->bases_most_bytes = p->segments_max * SEGMENT_BYTES /
			      (cfg->disk ? BASES_SHARE_DISK : BASES_SHARE);
	atomic_init(&d->free_list, ROW_NONE);
	*out = d;
	if (init(d, cfg))
		return err_sys(e, -ENOMEM, "swap: no memory for deltas");
	return 0;
}

void delta_destroy(struct delta **d)
{
	struct delta *old = *d;

	*d = NULL;
	if (!old)
		return;
	if (old->rows && old->host->munmap(old->rows, rows_bytes(old->rows_max)) < 0)
		log_error("swap: cannot unmap the table of bases: %s", strerror(errno));
	similar_fini(&old->similar);
	LZ4_freeStreamHC(old->lz4hc);
	LZ4_freeStream(old->lz4);
	free(old);
}

/* ---- put ----------------------------------------------------------------------- */

static uint64_t delta_sum(const struct packed *k, uint64_t base_sum)
{
	return swap_checksum(k) ^ base_sum * SUM_MIX;
}

static uint16_t head_check(const struct delta_head *h, uint32_t owner)
{
	uint64_t all = h->row | (uint64_t)h->saved_units << 32;

	return (uint16_t)((all ^ (uint64_t)owner << 20) * SUM_MIX >> 48);
}

/* What the page takes without us. */
static uint64_t alone_bytes(const struct packed *plain)
{
	return plain->bytes ? pool_object_bytes(plain->bytes) : PAGE_BYTES;
}

/* The most LZ4 may write for the delta to be worth it. */
static int room_for(const struct packed *plain)
{
	uint64_t alone = alone_bytes(plain), most = alone - alone * GAIN_16THS / 16;

	most = most / UNIT_BYTES * UNIT_BYTES - sizeof(struct object);
	return (int)(least(most, SWAP_PACKED_MAX) - sizeof(struct delta_head));
}

static int encode(struct delta *d, const void *page, int room)
{
	char *out = (char *)d->out + sizeof(struct delta_head);

	if (d->lz4hc) {
		LZ4_resetStreamHC_fast(d->lz4hc, LEVEL);
		LZ4_loadDictHC(d->lz4hc, (const char *)d->base, (int)PAGE_BYTES);
		return LZ4_compress_HC_continue(d->lz4hc, page, out, (int)PAGE_BYTES, room);
	}
	LZ4_loadDict(d->lz4, (const char *)d->base, (int)PAGE_BYTES);
	return LZ4_compress_fast_continue(d->lz4, page, out, (int)PAGE_BYTES, room, 1);
}

/* What delta_put() was asked for. */
struct asked {
	const struct packed *plain;
	const void *page;
	swap_ref_t *ref;
};

/* The n bytes behind the place for a head in d->out, to the pool. */
static int append_delta(struct delta *d, const struct asked *a, uint32_t row, int n)
{
	struct packed k = { .owner = a->plain->owner, .data = d->out, .is_delta = true,
			    .bytes = (uint32_t)n + (uint32_t)sizeof(struct delta_head) };
	uint64_t saved = alone_bytes(a->plain) - pool_object_bytes(k.bytes);
	struct delta_head h = { .row = row, .saved_units = (uint16_t)(saved / UNIT_BYTES) };
	int rc;

	h.check = head_check(&h, k.owner);
	memcpy(d->out, &h, sizeof(h));
	k.sum = delta_sum(&k, d->rows[row].sum);
	rc = pool_append(d->pool, &k, POOL_HOT, a->ref);
	if (rc) {
		base_row_put(d, row);
		return rc;
	}
	atomic_fetch_add(&d->pages, 1);
	atomic_fetch_add(&d->saved_bytes, saved);
	counter_inc(CTR_swap_delta_puts);
	counter_add(CTR_swap_delta_bytes_saved, saved);
	return 0;
}

/* The object at `from`, whose segment is pinned, as base. */
static int put_against(struct delta *d, swap_ref_t from, const struct asked *a)
{
	struct packed k;
	uint32_t row;
	int n;

	/* else it was dropped, or moved, since its page was noted, or is about to be */
	if (pool_is_leaving(d->pool, from) || pool_peek(d->pool, from, &k) || k.is_delta ||
	    k.bytes == PAGE_BYTES || (k.state != OBJECT_LIVE && k.state != OBJECT_BASE) ||
	    (base_has_row(&k) && !base_row_exists(d, k.owner)) ||
	    base_unpack(&k, delta_owner(d, &k), k.sum, d->base))
		return -ESRCH;
	counter_inc(CTR_swap_delta_tries);
	n = encode(d, a->page, room_for(a->plain));
	if (n <= 0) {
		counter_inc(CTR_swap_delta_no_gain);
		return -ENOENT;
	}
	row = base_hold(d, from, &k);
	return row == ROW_NONE ? -ENOENT : append_delta(d, a, row, n);
}

/* -ESRCH: there is no base any more where the hint says. */
static int try_hint(struct delta *d, uint64_t hint, const struct asked *a)
{
	swap_ref_t from = pool_from_hint(d->pool, hint);
	int rc;

	if (!from.v || !pool_pin(d->pool, from))
		return -ESRCH;
	rc = put_against(d, from, a);
	pool_unpin(d->pool, from);
	return rc;
}

int delta_put(struct delta *d, const struct packed *plain, const void *page, swap_ref_t *ref)
{
	const struct asked a = { plain, page, ref };
	uint64_t hints[HINTS];
	int rc = -ESRCH;
	unsigned n;

	d->features.n = 0;
	if (plain->bytes && plain->bytes < PLAIN_MIN)
		return -ENOENT;
	features_of(page, &d->features);
	n = similar_find(&d->similar, &d->features, hints, HINTS);
	for (unsigned i = 0; i < n && rc == -ESRCH; i++)
		rc = try_hint(d, hints[i], &a);
	if (rc == -ESRCH && d->lz4hc)
		rc = try_hint(d, d->neighbour, &a);
	return rc == -ESRCH ? -ENOENT : rc;
}

void delta_offer(struct delta *d, swap_ref_t ref)
{
	uint64_t hint = pool_hint(d->pool, ref);

	if (!hint || !d->features.n)
		return;
	similar_add(&d->similar, &d->features, hint);
	d->neighbour = hint;
}

/* ---- get and drop --------------------------------------------------------------- */

static bool head_of(const struct delta *d, const struct packed *k, struct delta_head *h)
{
	if (k->bytes <= sizeof(*h))
		return false;
	memcpy(h, k->data, sizeof(*h));
	return h->check == head_check(h, k->owner) && base_row_exists(d, h->row);
}

static int decode(const struct delta *d, const struct packed *k, const uint8_t *base, void *page)
{
	const struct refined from = { .data = k->data + sizeof(struct delta_head), .base = base,
				      .bytes = k->bytes - (uint32_t)sizeof(struct delta_head) };

	if (k->is_refined)
		return refine_unpack(d->refine, &from, page);
	return LZ4_decompress_safe_usingDict((const char *)from.data, page, (int)from.bytes,
					     (int)PAGE_BYTES, (const char *)base,
					     (int)PAGE_BYTES) == (int)PAGE_BYTES ? 0 : -EIO;
}

int delta_open(const struct delta *d, const struct packed *k, void *page, uint8_t *base)
{
	struct delta_head h;

	if (!head_of(d, k, &h) || k->sum != delta_sum(k, d->rows[h.row].sum) ||
	    base_read(d, h.row, base))
		return -EIO;
	return decode(d, k, base, page);
}

int delta_get(const struct delta *d, const struct packed *k, void *page)
{
	uint8_t base[PAGE_BYTES];

	return delta_open(d, k, page, base);
}

uint64_t delta_sum_of(const struct delta *d, const struct packed *k)
{
	struct delta_head h;

	VERIFY(head_of(d, k, &h));
	return delta_sum(k, d->rows[h.row].sum);
}

/* While its tag was read its row had its count; and only we could use the row anew. */
int delta_peek(struct delta *d, const struct packed *k, void *page)
{
	struct delta_head h;
	int rc;

	if (!head_of(d, k, &h) || !base_row_hold(d, h.row))
		return -EIO;
	rc = delta_get(d, k, page);
	base_row_put(d, h.row);
	return rc;
}

static void gone(struct delta *d, const struct delta_head *h)
{
	atomic_fetch_sub(&d->pages, 1);
	atomic_fetch_sub(&d->saved_bytes, h->saved_units * UNIT_BYTES);
	base_row_put(d, h->row);
}

/* A delta's head is read before it goes: its memory may go with it. */
void delta_drop(struct delta *d, swap_ref_t ref)
{
	struct packed k;
	struct delta_head h;
	uint32_t row;
	bool is_delta = !pool_find(d->pool, ref, &k) && k.is_delta;
	bool is_sound = is_delta && head_of(d, &k, &h);

	if (pool_drop(d->pool, ref, &row) && base_row_exists(d, row))
		base_orphaned(d, row);
	if (is_sound)
		gone(d, &h);
	else if (is_delta)
		counter_inc(CTR_swap_bad_object);
}
