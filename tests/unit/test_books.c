/*
 * The engine's books against the kernel's (tests/lib/books.h): that they agree, and
 * that the check sees it where they do not.
 */
#include "tests/unit/membox.h"
#include "vmm/internal.h"

#include <unistd.h>

static bool books_are_right(struct box *b)
{
	char why[200] = "";
	int rc = books_check(b->e, why, sizeof(why));

	if (rc)
		cr_log_info("%s", why);
	return rc == 0;
}

/* Every second page written: more regions than the kernel keeps at once (512), and than
 * one call takes (2048). */
Test(books, pass_sees_each_page_once_however_scattered)
{
	static struct box b;

	box_open(&b, RAM_HUGE_NEVER, BOX_MANUAL);
	for (unsigned pass = 0; pass < 5; pass++) {
		for (uint64_t i = 0; i < 3 * SCAN_REGIONS; i++)
			if (pass == 0 || i % 2)
				box_fill(&b, i, 1);
		engine_pass(b.e);
	}
	cr_assert_eq(atomic_load(&b.e->present_pages), 3 * SCAN_REGIONS);
	for (uint64_t i = 0; i < 3 * SCAN_REGIONS; i++)
		cr_assert_eq(b.e->pages.page[i].age, i % 2 ? 0 : 4, "page %lu is %u passes old",
			     (unsigned long)i, (unsigned)b.e->pages.page[i].age);
	box_close(&b);
}

static void no_drop(void *ctx, uint32_t store_page)
{
}

#define SOME 20u

/* Pages that a store has, too: two stored, the others mapped, and one of those written. */
static void share_some(struct box *b)
{
	int fd = memfd_create("store", MFD_CLOEXEC);
	uint8_t *store = mmap(NULL, SOME << PAGE_SHIFT, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	struct mm_same same[SOME - 1];

	cr_assert(ftruncate(fd, SOME << PAGE_SHIFT) == 0 && store != MAP_FAILED);
	engine_set_store(b->e, &(struct mm_store){ .base = store, .pages = SOME, .fd = fd,
						   .drop = no_drop });
	for (uint32_t i = 0; i < SOME - 1; i++) {
		same[i] = (struct mm_same){ 6 * CHUNK_PAGES + i, 1 + i, 0 };
		memset(box_at(b, same[i].page), 3, PAGE_BYTES);
		memset(store + ((i + 1) << PAGE_SHIFT), 3, PAGE_BYTES);
	}
	cr_assert_eq(engine_share(b->e, same, 2), 2);
	cr_assert_eq(engine_share_mapped(b->e, same + 2, SOME - 3), SOME - 3);
	box_fill(b, same[9].page, 1);
	engine_pass(b->e);
}

/* Of each state some: staged, packed, filled, on disk, stored, mapped, broken off, discarded,
 * read only, never touched. */
static void some_of_each(struct box *b)
{
	box_open(b, RAM_HUGE_NEVER, BOX_MANUAL);
	for (uint64_t i = 0; i < 4 * CHUNK_PAGES; i++)
		if (i % 3)
			box_fill(b, i, 1);
		else
			memset(box_at(b, i), (int)i % 5, PAGE_BYTES);
	box_push_out(b, 4 * CHUNK_PAGES);
	for (uint64_t i = 0; i < 2 * CHUNK_PAGES; i++)
		(void)*(volatile uint8_t *)box_at(b, i);
	(void)*(volatile uint8_t *)box_at(b, 7 * CHUNK_PAGES);
	cr_assert_eq(ram_discard(b->ram, gpa(100 * PAGE_BYTES), 1000 * PAGE_BYTES), 0);
	engine_reclaim(b->e, 50 * PAGE_BYTES);
	engine_tick(b->e);
	box_settle(b);
	for (uint64_t i = 3 * CHUNK_PAGES; i < 3 * CHUNK_PAGES + 20; i++) /* none is touched again */
		engine_moved(b->e, i, &(struct mm_move){ i + 1, i + 1, MM_DISK });
	share_some(b);
	for (unsigned s = 0; s < PAGE_STATES; s++)
		cr_assert_gt(atomic_load(&b->e->pages.in_state[s]), 0, "state %u", s);
}

Test(books, engine_and_kernel_agree_about_every_page)
{
	static struct box b;

	some_of_each(&b);
	cr_assert(books_are_right(&b));
	box_close(&b);
}

/* What is published of it (vmm/publish.c), in pages, against the entries one by one and what
 * smaps says has memory: the design's sum, with nothing of it being what is left over. */
Test(books, published_terms_are_those_of_entries_and_kernel)
{
	static struct box b;
	struct books out = { .memory_bytes = BOX_BYTES };
	uint64_t in[PAGE_STATES] = { 0 };
	struct books_smaps smaps;
	struct engine_stats s;

	some_of_each(&b);
	engine_pass(b.e);
	box_settle(&b);
	for (uint64_t i = 0; i < BOX_PAGES; i++)
		in[b.e->pages.page[i].state]++;
	cr_assert_eq(books_smaps(b.mem, BOX_BYTES, &smaps), 0);
	engine_stats(b.e, &s);
	books_of_engine(&out, &s);
	out.resident_bytes = s.present_pages << PAGE_SHIFT;
	books_close(&out);
	cr_assert_eq(out.resident_bytes, smaps.own_bytes);
	cr_assert_eq(out.staged_bytes >> PAGE_SHIFT, in[PAGE_STAGED]);
	cr_assert_eq(out.filled_bytes >> PAGE_SHIFT, in[PAGE_FILLED]);
	cr_assert_eq(out.packed_bytes >> PAGE_SHIFT, in[PAGE_PACKED]);
	cr_assert_eq(out.disk_bytes >> PAGE_SHIFT, in[PAGE_DISK]);
	cr_assert_eq(out.stored_bytes >> PAGE_SHIFT, in[PAGE_STORED]);
	cr_assert_eq(out.mapped_bytes >> PAGE_SHIFT, in[PAGE_SHARED]);
	cr_assert_eq(out.gap_bytes, 0);
	cr_assert_eq(out.untouched_bytes >> PAGE_SHIFT,
		     in[PAGE_GUEST] + in[PAGE_BROKEN] - (smaps.own_bytes >> PAGE_SHIFT));
	box_close(&b);
}

static uint64_t first_in(struct box *b, enum page_state s)
{
	uint64_t i = 0;

	while (b->e->pages.page[i].state != s)
		i++;
	return i;
}

/* Each of what books_check() must find, made by hand. */
Test(books, what_does_not_agree_is_found)
{
	static struct box b;
	struct page *p;
	uint64_t i;

	some_of_each(&b);
	i = first_in(&b, PAGE_STAGED);
	p = &b.e->pages.page[i];
	p->payload ^= 1; /* another page's slot */
	cr_assert(!books_are_right(&b));
	p->payload ^= 1;
	i = first_in(&b, PAGE_PACKED);
	cr_assert_eq(b.host.ioctl(b.e->uffd, UFFDIO_ZEROPAGE, &(struct uffdio_zeropage){
		.range = { (uint64_t)box_at(&b, i), PAGE_BYTES } }), 0);
	cr_assert(!books_are_right(&b), "a packed page has memory as well");
	cr_assert_eq(madvise(box_at(&b, i), PAGE_BYTES, MADV_DONTNEED), 0);
	i = first_in(&b, PAGE_SHARED);
	p = &b.e->pages.page[i];
	p->payload ^= 1; /* another page of the store */
	cr_assert(!books_are_right(&b));
	p->payload ^= 1;
	p->state = PAGE_BROKEN;
	b.e->pages.in_state[PAGE_SHARED]--;
	b.e->pages.in_state[PAGE_BROKEN]++;
	b.e->pages.chunk[6].broken++;
	cr_assert(!books_are_right(&b), "the page is the store's");
	p->state = PAGE_SHARED;
	b.e->pages.in_state[PAGE_SHARED]++;
	b.e->pages.in_state[PAGE_BROKEN]--;
	b.e->pages.chunk[6].broken--;
	atomic_fetch_sub(&b.e->map.vmas, 2);
	cr_assert(!books_are_right(&b), "there is a VMA more");
	atomic_fetch_add(&b.e->map.vmas, 2);
	b.e->pages.chunk[9].watched = true;
	cr_assert(!books_are_right(&b));
	b.e->pages.chunk[9].watched = false;
	b.e->staging[(b.e->head % b.e->slots) << PAGE_SHIFT] = 1;
	cr_assert(!books_are_right(&b), "a free slot has memory");
	cr_assert_eq(madvise(b.e->staging + ((b.e->head % b.e->slots) << PAGE_SHIFT), PAGE_BYTES,
			     MADV_DONTNEED), 0);
	cr_assert(books_are_right(&b));
	box_close(&b);
}
