/*
 * The pool as the engine's tier (struct mm_tier), and the cleaning the engine lets
 * it do in between.
 *
 * Threads: put and tidy from the reclaimer, get and drop from fault threads and
 * the event loop: as swap.h asks for.
 */
#include "mm/swap/internal.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>

#define SLACK_PCT 20u       /* of the pool may be holes before they are closed */
#define TIDY_BYTES (2 * MiB) /* moved a round at most: some 2 ms */

static int tier_put(void *ctx, uint64_t index, const void *page, uint64_t *ref, bool *filled)
{
	struct swap *s = ctx;
	swap_ref_t r;
	uint64_t value;
	int rc = swap_put(s, index, page, &r);

	s->was_full = rc == -ENOSPC;
	if (rc)
		return rc;
	*ref = r.v;
	*filled = swap_is_filled(s, r, &value);
	return 0;
}

static int tier_get(void *ctx, uint64_t ref, uint64_t index, void *page)
{
	return swap_get(ctx, (swap_ref_t){ ref }, index, page);
}

static void tier_drop(void *ctx, uint64_t ref)
{
	swap_drop(ctx, (swap_ref_t){ ref });
}

static uint64_t tier_held_bytes(void *ctx)
{
	return swap_held_bytes(ctx);
}

/* What goes wrong here has its counter, and loses nothing: the holes stay. */
static void tier_tidy(void *ctx)
{
	struct swap *s = ctx;

	(void)swap_clean(s, s->was_full ? 0 : SLACK_PCT, TIDY_BYTES);
	swap_tidy(s);
}

static bool tier_refine(void *ctx)
{
	return swap_refine_some(ctx);
}

static void tier_describe(void *ctx, uint64_t ref, char *text, size_t size)
{
	const struct swap *s = ctx;
	struct mm_extent x;

	if (ref_is_packed((swap_ref_t){ ref })) {
		snprintf(text, size, "the compressed pool");
	} else if (!s->has_disk || !disk_holds(&s->disk, (swap_ref_t){ ref })) {
		snprintf(text, size, "same-filled");
	} else {
		disk_extent(&s->disk, (swap_ref_t){ ref }, &x);
		snprintf(text, size, "swap file %s at byte %" PRIu64 " (segment %u)", s->disk.path,
			 x.offset, disk_segment_of((swap_ref_t){ ref }));
	}
}

/* ---- with a disk ---------------------------------------------------------------- */

static void tier_pin(void *ctx, uint64_t ref, struct mm_extent *out)
{
	struct swap *s = ctx;

	disk_pin(&s->disk, (swap_ref_t){ ref });
	disk_extent(&s->disk, (swap_ref_t){ ref }, out);
	counter_inc(CTR_swap_disk_reads);
	counter_add(CTR_swap_disk_read_bytes, out->bytes);
}

static void tier_unpin(void *ctx, uint64_t ref)
{
	struct swap *s = ctx;

	disk_unpin(&s->disk, disk_segment_of((swap_ref_t){ ref }));
}

static int tier_arrived(void *ctx, const struct mm_extent *of, void *raw)
{
	return swap_arrived(ctx, of, raw);
}

static int tier_unpack(void *ctx, uint64_t ref, uint64_t index, const struct mm_read *from,
		       void *page)
{
	return swap_unpack(ctx, (swap_ref_t){ ref },
			   &(struct swap_read){ .from = *from, .owner = index }, page);
}

static uint64_t tier_room(void *ctx, uint64_t pages)
{
	return swap_room(ctx, pages);
}

static uint64_t tier_spill(void *ctx, uint64_t bytes)
{
	return swap_spill(ctx, bytes);
}


#define IN_MEMORY                                                             \
	.put = tier_put, .get = tier_get, .drop = tier_drop,                  \
	.held_bytes = tier_held_bytes, .tidy = tier_tidy, .refine = tier_refine,      \
	.describe = tier_describe

const struct mm_tier swap_tier = { IN_MEMORY };

const struct mm_tier swap_tier_disk = {
	IN_MEMORY,
	.pin = tier_pin, .unpin = tier_unpin, .arrived = tier_arrived, .unpack = tier_unpack,
	.room = tier_room, .spill = tier_spill,
};

static bool moved(void *ctx, uint64_t owner, swap_ref_t from, swap_ref_t to)
{
	return engine_moved(ctx, owner,
			    &(struct mm_move){ from.v, to.v,
					       ref_is_disk(to) ? MM_DISK : MM_PACKED });
}

void swap_attach(struct swap *s, struct engine *e)
{
	s->cfg.move = moved;
	s->cfg.move_ctx = e;
}
