/*
 * What the files of mm/ksm/ share.  ksm.h says what lives where.
 */
#ifndef BRIM_MM_KSM_INTERNAL_H
#define BRIM_MM_KSM_INTERNAL_H

#include <pthread.h>

#include "mm/ksm/ksm.h"
#include "mm/ksm/wire.h"

/* ---- uses.c: which store pages this VM uses -------------------------------------- */

struct uses {
	uint32_t pages;         /* of the store; 0: not set up */
	_Atomic uint32_t *word; /* [pages] count and state, mapped lazily */
	uint32_t *next;         /* [pages] in the list; its place is whose set LISTED */
	_Atomic uint32_t listed; /* pages whose count fell to 0: the last one; 0: none */
	/* owned by the share thread */
	uint32_t rest; /* of that list, what was taken off and not looked at */
	uint32_t end;  /* no page from here on was ever named */
};

int uses_init(struct uses *u, uint32_t pages);
void uses_fini(struct uses *u);
/* Any thread; waits for nothing. */
void uses_drop(struct uses *u, uint32_t page);

/* These are the share thread's.
 *
 * brimd has named it: one use more.  False: it is being released, so the naming counts
 * for nothing. */
bool uses_take(struct uses *u, uint32_t page);
uint32_t uses_count(const struct uses *u, uint32_t page);
bool uses_any(const struct uses *u);
/* At most n pages that nobody uses and brimd holds for us; they are being released now. */
unsigned uses_collect(struct uses *u, struct wire_store_page *out, unsigned n);
/* brimd holds them no more. */
void uses_released(struct uses *u, const struct wire_store_page *list, unsigned n);
/* For a new connection: at most n pages from *at on that are used; all others passed over
 * are not held.  Moves *at on. */
unsigned uses_claim(struct uses *u, uint32_t *at, struct wire_store_page *out, unsigned n);
/* Nobody else may run: panics where the sum of counts is another. */
void uses_verify(const struct uses *u, uint64_t sum);

/* ---- the whole ---------------------------------------------------------------------- */

enum link {
	LINK_NONE,
	LINK_HOLDING, /* HELLO was said, HOLDs go out */
	LINK_WAITING, /* for WELCOME */
	LINK_OPEN,
};

#define BATCH_PAGES 1024u  /* looked up at once */
#define LATER_PAGES 16384u /* to be looked up again */
#define RING_PAGES 8192u
#define SEEN 256u

struct leaving {
	struct wire_hash hash;
	uint32_t page;
};

struct loaded {
	uint32_t first, end; /* pages */
};

/* A LOOKUP or CONTENT without its answer. */
struct question {
	enum wire_type type;
	uint32_t turn;
	unsigned count; /* 0: none */
	bool again;     /* of pages that were answered LATER */
	struct wire_page of[BATCH_PAGES];
};

struct ksm {
	/* fixed at attach */
	struct ksm_config cfg;
	char socket[108], vm[WIRE_NAME_MAX], group[WIRE_NAME_MAX];
	struct engine *engine;
	const struct ram *ram;
	uint32_t ram_pages;
	int stop_fd; /* an eventfd */
	struct loaded loaded[KSM_LOADED_MAX];
	unsigned loaded_count;
	uint64_t loaded_until_ns;
	pthread_t thread;
	bool started;
	_Atomic bool stopping;

	pthread_mutex_t lock;
	/* under lock */
	struct ksm_status status;

	/* ksm_leaving() puts, the share thread takes: ever rising */
	_Atomic uint64_t ring_head, ring_tail;
	struct leaving *ring;     /* [RING_PAGES], mapped lazily */
	_Atomic uint64_t seed;
	_Atomic bool is_open;

	/* owned by the share thread */
	int fd; /* -1: not connected */
	enum link link;
	uint64_t retry_at_ns;
	bool without_store; /* the next HELLO names none: brimd would not have ours */

	const uint8_t *store; /* NULL: none yet */
	int store_fd;
	uint64_t store_id;
	uint32_t store_pages;
	struct uses uses;
	uint32_t hold_at;

	uint32_t turn;
	struct question question;
	struct wire_page wanted[BATCH_PAGES]; /* whose bytes are to be sent */
	unsigned wanted_count, wanted_at;
	uint64_t seen[SEEN]; /* of hashes in `wanted` */
	uint32_t release_turn; /* 0: none unanswered */
	unsigned release_count;
	struct wire_store_page *releasing; /* [as many as fit a RELEASE] */

	unsigned loaded_at;      /* the range that is being looked up */
	uint32_t loaded_done;    /* pages of it */
	bool hurries;            /* with pages that were loaded: no pace */
	uint64_t cursor, round_at_ns;
	uint64_t packed_at;      /* pages packed before the connection: looked up to there */
	struct wire_hash zero;   /* a page of zeroes */
	uint32_t *later;         /* [LATER_PAGES] */
	unsigned later_count;
	uint64_t later_at_ns, later_wait_ns;
	uint64_t *recalled;      /* a bit a store page, mapped lazily */
	uint64_t recall_at_ns;   /* 0: none */
	uint32_t pages[BATCH_PAGES];
	struct mm_same *same;    /* [as many as an OFFER or a batch has] */
	unsigned same_count;
	uint64_t rest_until_ns;  /* the pace */
	uint64_t paced_pages;    /* handled in this step */

	size_t out_bytes;        /* of a message that did not go out yet; 0: none */
	bool out_store;          /* with the store's descriptor */
	_Alignas(16) uint8_t out[WIRE_BYTES_MAX];
	_Alignas(16) uint8_t in[WIRE_BYTES_MAX];
};

/* Tables by page: zeroes, and no memory until it is written.  NULL: no address space. */
void *ksm_map_lazily(uint64_t bytes);
void ksm_unmap(void *at, uint64_t bytes);

/* ---- client.c ---------------------------------------------------------------------- */

/* Tries to connect, when that is due. */
void link_try(struct ksm *k);
/* What goes out before WELCOME, and what is stuck. */
void link_push(struct ksm *k);
/* Reads a message and acts on it.  False: there is none, or no connection any more. */
bool link_read(struct ksm *k);
/* The message in k->out, whose entries are written.  Nothing may be stuck. */
void link_send(struct ksm *k, enum wire_type t, unsigned count, uint32_t turn);
static inline void *link_room(struct ksm *k)
{
	return k->out + sizeof(struct wire_head);
}
static inline bool link_is_free(const struct ksm *k)
{
	return k->link == LINK_OPEN && !k->out_bytes;
}
/* brimd has said what it must not: the connection ends.  `what` is static. */
void link_bad(struct ksm *k, const char *what);
void link_close(struct ksm *k, enum ksm_state state, const char *why);
uint32_t link_next_turn(struct ksm *k);
void link_fini(struct ksm *k);

/* ---- scan.c ------------------------------------------------------------------------- */

/* A new connection, or FORGET: brimd knows none of our pages. */
void scan_anew(struct ksm *k);
/* A new connection: what was loaded is looked up, from the start. */
void scan_loaded(struct ksm *k);
/* Messages in k->in. */
void scan_answer(struct ksm *k, const struct wire_head *m);
void scan_offer(struct ksm *k, const struct wire_head *m);
void scan_released(struct ksm *k, const struct wire_head *m);
void scan_recall(struct ksm *k, const struct wire_head *m);
/* Does the next piece of what is due.  False: nothing is. */
bool scan_work(struct ksm *k);
/* When something will be due that no message announces. */
uint64_t scan_due_ns(const struct ksm *k);

#endif
