/*
 * What a VM's process and brimd say to each other about equal pages.
 *
 * A Unix socket, SOCK_SEQPACKET: each message whole, in order.  A message is a head and
 * `count` entries of the type's size, nothing else, in the machine's own byte order (both
 * ends are on it).  Fields named zero are 0.  Both ends give every message they read to
 * wire_check() first; who gets one that is not sound closes the connection.
 *
 *   VM                                    brimd
 *   HELLO (store it has, if any) ──►
 *   HOLD ... HOLD of 0 entries   ──►            only with a store: what it uses of it
 *                                ◄── WELCOME (store), or REFUSED
 *
 *   LOOKUP: pages and hashes     ──►
 *                                ◄── ANSWER: each ALONE, WANTED, SAME or LATER
 *   CONTENT: of those WANTED     ──►
 *                                ◄── ANSWER: each SAME or LATER
 *                                ◄── OFFER: a page that was ALONE is not so any more
 *   RELEASE: uses no more        ──►
 *                                ◄── RELEASED
 *                                ◄── RECALL: nobody else uses it
 *                                ◄── FORGET: brimd knows of no page of yours any more
 *
 * Turns.  A VM has at most one of LOOKUP and CONTENT unanswered, and at most one RELEASE;
 * the answer bears the number that the question had (`turn`).  brimd need never keep more
 * than that for a VM that does not read.
 *
 * Holding.  A store page that a SAME or an OFFER names is held for the process from the
 * moment that is sent, once however often it is named, until the process releases it or
 * ends.  It is never changed or freed while anybody holds it.  After RELEASE and before
 * RELEASED the VM takes a naming of that page for ALONE: it was sent before.  A hold
 * belongs to the process, not the connection: a VM whose connection broke says HELLO
 * again, with its store, and HOLD for all it uses; what it held and does not name is then
 * released, as it was on its way when the connection broke.  HELLO without a store says that
 * the process uses nothing any more (its VM was reset): all it held is released.
 * Releasing what is not held, or twice, is not sound.
 *
 * A connection may be closed without a word, even before WELCOME (brimd ended, or another
 * of the same process took its place): connect again.
 *
 * A hash says what may be equal, nothing more: who drops a page has compared all of it.
 */
#ifndef BRIM_MM_KSM_WIRE_H
#define BRIM_MM_KSM_WIRE_H

#include <stddef.h>
#include <stdint.h>

#include "mm/mm.h"

#define WIRE_MAGIC 0x6d697262u /* "brim" */
#define WIRE_VERSION 1u
#define WIRE_BYTES_MAX ((size_t)(64 * KiB)) /* a message */
#define WIRE_NAME_MAX 64u                   /* with its terminating 0 */

enum wire_type {
	/* from a VM */
	WIRE_HELLO = 1, /* 1 entry; with a descriptor where it has a store */
	WIRE_HOLD,      /* wire_store_page; 0 entries: that was all */
	WIRE_LOOKUP,    /* wire_page */
	WIRE_CONTENT,   /* wire_content */
	WIRE_RELEASE,   /* wire_store_page */
	/* from brimd */
	WIRE_WELCOME = 65, /* 1 entry; with a read-only descriptor of the store, unless the VM
			      has it */
	WIRE_REFUSED,      /* 1 entry; then brimd closes */
	WIRE_ANSWER,       /* wire_answer, in the order of the question's entries */
	WIRE_OFFER,        /* wire_offer */
	WIRE_RELEASED,     /* 0 entries: all of that turn */
	WIRE_RECALL,       /* wire_store_page */
	WIRE_FORGET,       /* 0 entries */
};

struct wire_head {
	uint32_t magic;
	uint8_t version, type;
	uint16_t count;
	uint32_t bytes; /* of the whole message */
	uint32_t turn;  /* LOOKUP, CONTENT, RELEASE and what answers them; else 0 */
};

struct wire_hello {
	char vm[WIRE_NAME_MAX], group[WIRE_NAME_MAX];
	uint32_t pages; /* of the VM's RAM: page numbers are below */
	uint32_t has_store; /* 0 or 1 */
	uint64_t store_id;  /* of the store it has; else 0 */
};

struct wire_welcome {
	uint64_t store_id;
	uint64_t seed;        /* of the hashes of this group, until brimd starts anew */
	uint32_t store_pages; /* store page numbers are 1 to store_pages - 1 */
	uint32_t zero;
};

struct wire_refused {
	char why[256]; /* a sentence */
};

struct wire_hash {
	uint64_t lo, hi; /* XXH3-128 of the page's 4096 bytes, with the seed */
};

struct wire_page {
	struct wire_hash hash;
	uint32_t page;
	uint32_t zero;
};

struct wire_content {
	struct wire_page of;
	uint8_t bytes[PAGE_BYTES];
};

enum wire_kind {
	WIRE_ALONE,  /* nobody has named an equal one; it is remembered */
	WIRE_WANTED, /* somebody has: send its bytes */
	WIRE_SAME,   /* as store_page has it */
	WIRE_LATER,  /* not now: no room, or the bytes were not those of the hash */
};

struct wire_answer {
	uint32_t page;
	uint32_t kind;       /* enum wire_kind */
	uint32_t store_page; /* SAME; else 0 */
	uint32_t zero;
};

struct wire_offer {
	uint32_t page, store_page;
};

struct wire_store_page {
	uint32_t store_page;
};

enum wire_from { WIRE_FROM_VM, WIRE_FROM_HOST };

/* Is it sound by itself?  0, or -EPROTO and a few words in *why (static): magic, version,
 * a type of that side, count and bytes that agree with each other and with `len`, names
 * that end, zeroes, kinds.  Whether numbers are in range is the reader's to check. */
int wire_check(const void *msg, size_t len, enum wire_from from, const char **why);

/* Bytes of one entry of a type; entries that fit into a message. */
size_t wire_entry_bytes(enum wire_type t);
size_t wire_entries_max(enum wire_type t);

static inline const void *wire_entries(const struct wire_head *h)
{
	return h + 1;
}

/* Completes the head of a message whose `count` entries are behind it; its length. */
size_t wire_finish(struct wire_head *h, enum wire_type t, unsigned count, uint32_t turn);

#endif
