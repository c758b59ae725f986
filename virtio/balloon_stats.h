/*
 * The statistics a balloon driver sends (virtio 1.2, section 5.5.6.3): their
 * format, and what is taken from them.  The protocol is balloon.c's.
 */
#ifndef BRIM_VIRTIO_BALLOON_STATS_H
#define BRIM_VIRTIO_BALLOON_STATS_H

#include "virtio/virtio.h"

/* Every value UINT64_MAX, received never. */
void balloon_stats_unknown(struct balloon_guest_stats *s);

/* Replaces *s by what the chain holds: entries in any order, any of them missing.
 * Odd sizes and repeated tags are counted, unknown tags ignored.  A buffer without
 * one whole entry changes nothing. */
void balloon_stats_take(struct balloon_guest_stats *s, const struct virtq_chain *c);

#endif
