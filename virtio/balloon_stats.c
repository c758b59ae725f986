/*
 * See balloon_stats.h.  Values are taken as they come: they are hints from a
 * guest, and whoever uses them knows.
 *
 * Threads: loop thread.  Invariant: never reads more than STATS_MAX entries,
 * however long the guest made the buffer.
 */
#include "virtio/balloon_stats.h"

#include <endian.h>
#include <string.h>

#define STAT_BYTES 10 /* le16 tag, le64 value, packed */
#define STATS_MAX 64  /* entries; 16 are known */

/* By tag: section 5.5.6.4, and from 10 on as Linux 6.12 has them. */
#define STAT(field) offsetof(struct balloon_guest_stats, field)
static const size_t stat_places[] = {
	[0] = STAT(swap_in),
	[1] = STAT(swap_out),
	[2] = STAT(major_faults),
	[3] = STAT(minor_faults),
	[4] = STAT(free_bytes),
	[5] = STAT(total_bytes),
	[6] = STAT(available_bytes),
	[7] = STAT(disk_caches_bytes),
	[8] = STAT(hugetlb_allocations),
	[9] = STAT(hugetlb_failures),
	[10] = STAT(oom_kills),
	[11] = STAT(alloc_stalls),
	[12] = STAT(scan_async),
	[13] = STAT(scan_direct),
	[14] = STAT(reclaim_async),
	[15] = STAT(reclaim_direct),
};
#undef STAT

void balloon_stats_unknown(struct balloon_guest_stats *s)
{
	memset(s, 0xff, sizeof(*s)); /* UINT64_MAX throughout: nothing was said */
	s->received_ns = 0;
}

/* One entry.  Tags we do not know are ignored, as the specification has it. */
static void stat_take(struct balloon_guest_stats *s, const uint8_t *entry, uint64_t *seen)
{
	uint16_t tag;
	uint64_t value;

	memcpy(&tag, entry, sizeof(tag));
	memcpy(&value, entry + sizeof(tag), sizeof(value));
	tag = le16toh(tag);
	value = le64toh(value);
	if (tag >= ARRAY_LEN(stat_places))
		return;
	if (*seen & (uint64_t)1 << tag)
		counter_inc(CTR_balloon_stats_bad); /* the later one counts */
	*seen |= (uint64_t)1 << tag;
	memcpy((uint8_t *)s + stat_places[tag], &value, sizeof(value));
}

void balloon_stats_take(struct balloon_guest_stats *s, const struct virtq_chain *c)
{
	uint8_t copy[STATS_MAX * STAT_BYTES];
	size_t bytes = virtq_copy_out(c, 0, copy, sizeof(copy));
	uint64_t seen = 0;

	if (c->out_bytes % STAT_BYTES != 0 || c->out_bytes > sizeof(copy))
		counter_inc(CTR_balloon_stats_bad);
	if (bytes < STAT_BYTES)
		return; /* an empty first buffer is fine: nothing said yet */
	balloon_stats_unknown(s);
	for (size_t off = 0; off + STAT_BYTES <= bytes; off += STAT_BYTES)
		stat_take(s, copy + off, &seen);
	s->received_ns = now_ns();
	counter_inc(CTR_balloon_stats_updates);
}
