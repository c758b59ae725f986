/*
 * mm/swap/refine.c: random operations against a reference, and many threads: whatever is
 * refined, moved, dropped or refused meanwhile comes back as it was put, and the books add up
 * (refine.c I1, I2).
 *
 * Seeds are printed; BRIM_SEED=N repeats a run, BRIM_SWAP_OPS and BRIM_SWAP_SECONDS make
 * the random and the concurrent test longer.
 */
#include "tests/unit/refinebox.h"

/* ---- random operations against a reference ----------------------------------------------------------------- */

static void random_op(uint64_t *random)
{
	unsigned owner = (unsigned)(mix(random) % PAGES);
	uint64_t what = mix(random) % 200;

	if (what < 6) {
		sh->refuse_one_in = mix(random) % 2 ? 0 : 7;
		sh->refuse_then_drop = mix(random) % 2;
		if (what < 2)
			(void)swap_clean(sh->s, (unsigned)(mix(random) % 40), mix(random) % MiB);
		else
			(void)swap_refine(sh->s, mix(random) % (256 * KiB));
	} else {
		visit(owner, what < 100, any_page, mix(random));
	}
}

Test(refine, refine_random_operations_match_reference)
{
	uint64_t random = seed_of_run(), ops = env_number("BRIM_SWAP_OPS", 60000);
	uint64_t refined = counter_get(CTR_swap_refined);

	begin(random % 2 ? SWAP_DELTA_FAST : SWAP_DELTA_OFF);
	sh->random = random;
	for (uint64_t i = 0; i < ops; i++) {
		random_op(&random);
		if (i % 8192 == 0)
			check_all();
	}
	cr_assert_gt(counter_get(CTR_swap_refined), refined + 1000);
	check_all();
	drop_all_and_check_empty();
	end();
}

/* ---- many threads --------------------------------------------------------------------------------------------- */

#define OWNERS 4096u

static void crowd_reclaim(struct crowd *w, uint64_t until_ns)
{
	uint64_t random = seed_of_run(), refined = counter_get(CTR_swap_refined) + 200;

	crowd_put_all(w, &random);
	/* a busy machine takes longer */
	while (now_ns() < until_ns || !w->refused || counter_get(CTR_swap_refined) < refined) {
		crowd_put_some(w, &random);
		(void)swap_refine(w->s, mix(&random) % (512 * KiB));
		if (mix(&random) % 4 == 0)
			swap_clean(w->s, mix(&random) % 10, mix(&random) % MiB);
	}
}

Test(refine, refine_many_threads_content_and_books_right)
{
	uint64_t refined = counter_get(CTR_swap_refined);
	/* more readers than there are decoders */
	struct crowd w = { .owners = OWNERS, .readers = 6, .make = any_page, .drop_one_in = 3 };
	struct swap_config cfg = { .max_pages = OWNERS, .cap_bytes = CAP, .move = crowd_moved,
				   .move_ctx = &w, .delta = SWAP_DELTA_FAST };
	struct swap_stats st;

	crowd_gather(&w);
	cr_assert_eq(swap_create(&w.s, &cfg, NULL), 0);
	crowd_run(&w, crowd_reclaim);
	refined = counter_get(CTR_swap_refined) - refined;
	fprintf(stderr, "%" PRIu64 " refined\n", refined);
	cr_assert(w.gets > 100 && w.moved > 0 && refined > 100);
	while (swap_clean(w.s, 0, ALL) > 0)
		;
	swap_verify(w.s);
	swap_stats(w.s, &st);
	cr_assert_eq(st.held_bytes, st.table_bytes);
	cr_assert_eq(st.refined_pages + st.orphan_bytes + st.delta_pages, 0);
	swap_destroy(&w.s);
	free(w.cells);
}
