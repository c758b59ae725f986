/*
 * The pool as the engine's tier (struct mm_tier), and the cleaning the engine lets
 * it do in between.
 *
 * Threads: put and tidy from the reclaimer, get and drop from fault threads and
 * the event loop: as swap.h asks for.
 */
#include "mm/swap/internal.h"

#include <errno.h>

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
	struct swap_stats st;

	swap_stats(ctx, &st);
	return st.held_bytes;
}

/* What goes wrong here has its counter, and loses nothing: the holes stay. */
static void tier_tidy(void *ctx)
{
	struct swap *s = ctx;

	(void)swap_clean(s, s->was_full ? 0 : SLACK_PCT, TIDY_BYTES);
}

const struct mm_tier swap_tier = {
	.put = tier_put, .get = tier_get, .drop = tier_drop,
	.held_bytes = tier_held_bytes, .tidy = tier_tidy,
};

static bool moved(void *ctx, uint64_t owner, swap_ref_t from, swap_ref_t to)
{
	return engine_moved(ctx, owner, &(struct mm_move){ from.v, to.v, MM_PACKED });
}

void swap_attach(struct swap *s, struct engine *e)
{
	s->cfg.move = moved;
	s->cfg.move_ctx = e;
}
