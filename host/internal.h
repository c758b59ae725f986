/*
 * What the files of host/ share.  host.h says what lives where.
 */
#ifndef BRIM_HOST_INTERNAL_H
#define BRIM_HOST_INTERNAL_H

#include "host/host.h"
#include "mm/ksm/wire.h"

/* ---- index.c: hash to page ------------------------------------------------ */

/* Whose an entry is: a candidate is a session's (number below INDEX_ID_MAX), a page of a
 * store is INDEX_STORE and the store's number. */
#define INDEX_USED (1u << 31)
#define INDEX_WANTED (1u << 30) /* its bytes were asked for */
#define INDEX_STORE (1u << 29)
#define INDEX_ID_MAX (1u << 16)

struct index_entry {
	uint64_t key;
	uint32_t page; /* the VM's, or the store's */
	uint32_t who;
};

/* Entries of one key.  Good until something is added or removed. */
struct index_run {
	struct index_entry *at;
	unsigned count;
};

struct index;

int index_create(struct index **out, const uint64_t secret[3]);
void index_destroy(struct index **ix);

/* What a hash is filed under: 64 bits that nobody outside can aim at. */
uint64_t index_key(const struct index *ix, const struct wire_hash *h);
/* What is kept of a key with its page, to find its entry again: never 0. */
static inline uint32_t index_mark(uint64_t key)
{
	return (uint32_t)(key >> 32);
}

/* Begins to fetch what index_find() of that key will look at. */
void index_prefetch(const struct index *ix, uint64_t key);
struct index_run index_find(const struct index *ix, uint64_t key);
/* The entry of that owner's page, from the mark of its key.  NULL: there is none. */
struct index_entry *index_find_page(const struct index *ix, uint32_t mark, uint32_t who,
				    uint32_t page);
/* 0 or -ENOMEM.  `who` without INDEX_USED. */
int index_add(struct index *ix, uint64_t key, uint32_t who, uint32_t page);
void index_remove(struct index *ix, struct index_entry *e);

uint64_t index_entries(const struct index *ix);
uint64_t index_bytes(const struct index *ix);
/* For verifying: every entry to fn; false when fn says so, or its own order is broken. */
bool index_each(const struct index *ix, bool (*fn)(void *ctx, const struct index_entry *e),
		void *ctx);

/* ---- store.c: the pages that are shared --------------------------------------- */

#define STORE_FIRST_PAGE 5u  /* ahead of it: whose store this is, and who was given it */
#define STORE_GIVEN_MAX 1024u
#define STORE_MIN_PAGES 64u
#define STORE_MAX_PAGES ((uint32_t)(TiB >> PAGE_SHIFT))

/* A process, for ever: pids are used again, a pid with its start time is not. */
struct given {
	uint32_t pid, zero;
	uint64_t start; /* field 22 of /proc/PID/stat */
};

/* Which pages of its store a process holds. */
struct holds {
	uint64_t *bits; /* mapped lazily; NULL: none yet */
	uint32_t count, end; /* no page from `end` on */
};

struct store_spec {
	uint64_t id; /* of one to adopt */
	uint32_t pages; /* of a new one */
	uint32_t uid;
	const char *group;
};

struct store {
	/* fixed */
	struct store *next; /* of its group */
	uint64_t id;
	unsigned slot; /* its number in the index */
	int fd, ro_fd;
	uint32_t pages;

	/* by page, mapped lazily */
	uint64_t *used, *dirty; /* dirty: freed, and its memory not yet given back */
	uint32_t *mark;         /* index_mark() of a page in the index; 0: it is not there */
	uint16_t *refs;         /* processes that hold it */
	uint8_t *age;           /* enum store_age */

	uint32_t used_pages, dirty_pages, extent, cursor, tidy_at;
	uint32_t scrub_at;  /* 0: not under way */
	uint32_t rehash_at; /* recover.c; 0: not under way */
	bool limbo;         /* adopted, and pages nobody has claimed may still be somebody's */
	unsigned processes; /* that are in it */
	unsigned given_count;
	struct given given[STORE_GIVEN_MAX];
};

enum store_age {
	STORE_FRESH,    /* its holders changed since the last sweep */
	STORE_ALONE,    /* one holder, for a sweep */
	STORE_RECALLED, /* and told so */
};

int store_create(struct store **out, const struct store_spec *spec, struct err *e);
/* What a VM has, from its read-only descriptor, which stays the caller's.  -EINVAL with a
 * sentence: it is not the store that was asked for.  In limbo until store_settle(). */
int store_adopt(struct store **out, int fd, const struct store_spec *spec, struct err *e);
void store_destroy(struct store **st);
/* 0: `fd` is a descriptor of this store. */
int store_check_same(const struct store *st, int fd, struct err *e);
/* Nobody claims pages any more: all that are not used are given back, in steps. */
void store_settle(struct store *st);

bool store_has(const struct store *st, uint32_t page);
/* Copies the bytes to a page that is used from then on.  -ENOSPC, -ENOMEM, or -EAGAIN
 * while in limbo. */
int store_put(struct store *st, const void *bytes, uint32_t *page);
int store_read(const struct store *st, uint32_t page, void *bytes);
/* Of a page nobody holds.  While pages may still be claimed it is unclaimed again: it may
 * be that of a process that has not said so yet. */
void store_free(struct store *st, uint32_t page);
/* The first used page from `from` on; the store's size: none. */
uint32_t store_next_used(const struct store *st, uint32_t from);
/* Gives memory of freed pages back, at most *budget runs of them; true: there is more, at
 * once (not where the kernel refused: then at the next tick). */
bool store_tidy(struct store *st, unsigned *budget);
/* Memory the kernel says it has beyond what is used: a VM may read where nothing is, and
 * the kernel then puts a page there.  If so, begins to give that back. */
void store_check_excess(struct store *st);
uint64_t store_resident_pages(const struct store *st);

bool holds_test(const struct holds *h, uint32_t page);
/* The first held page from `page` on; h->end: none. */
uint32_t holds_next(const struct holds *h, uint32_t page);
void holds_fini(struct holds *h, const struct store *st);
/* 0, also if that process holds it already; -ENOMEM. */
int store_hold(struct store *st, struct holds *h, uint32_t page);
/* True: that was its last holder.  It must be held. */
bool store_unhold(struct store *st, struct holds *h, uint32_t page);
/* In limbo, and not yet settled. */
bool store_claimable(const struct store *st);
/* An unclaimed page of such a store is used from now on. */
void store_claim(struct store *st, uint32_t page);

/* The registry, in the store itself.  -ENOSPC: it is full. */
int store_give(struct store *st, uint32_t pid, uint64_t start);
void store_ungive(struct store *st, uint32_t pid, uint64_t start);
bool store_was_given(const struct store *st, uint32_t pid, uint64_t start);

/* Tables by page: zeroes, and no memory until it is written.  NULL: no address space. */
void *lazy_map(uint64_t bytes);
void lazy_unmap(void *at, uint64_t bytes);

/* ---- server.c: the loop ------------------------------------------------------------- */

struct watch {
	int fd; /* -1: none */
	unsigned events;
	void (*fn)(struct share_host *h, struct watch *w, unsigned events);
};

/* Pages looked at in the background in a turn, for each session, process and store: each
 * has its own, so that a busy one takes nothing from those that are being cleared away. */
#define BUDGET 1024u
#define RUNS 256u /* of pages whose memory is given back, a store and turn */
#define SESSION_SLOTS 4096u /* with those that are being forgotten */

struct share_host {
	struct share_host_config cfg;
	int epoll_fd;
	struct watch listener, waker;
	struct group *groups;
	struct process *processes;
	struct session *sessions;
	struct session *slots[SESSION_SLOTS]; /* by number in the index */
	unsigned session_count, joined, process_count; /* joined: sessions in a group */
	uint64_t candidates;
	uint64_t now_ns, tick_ns; /* of this turn; when the next tick is due */
	bool more; /* work is left for the next turn */

	/* What is read and written now: a message each. */
	_Alignas(16) uint8_t in[WIRE_BYTES_MAX];
	_Alignas(16) uint8_t out[WIRE_BYTES_MAX];
	uint64_t keys[WIRE_BYTES_MAX / sizeof(struct wire_page)];
	uint8_t page[PAGE_BYTES];
};

/* 0 or -errno. */
int watch_add(struct share_host *h, struct watch *w, unsigned events);
void watch_set(struct share_host *h, struct watch *w, unsigned events);
/* Closes the descriptor, too.  Events of this turn are not delivered any more. */
void watch_close(struct share_host *h, struct watch *w);
/* True: the pidfd says that it has ended. */
bool pidfd_ended(int pidfd);
/* Field 22 of /proc/PID/stat; 0: it does not say. */
uint64_t process_start(pid_t pid);

/* ---- group.c ------------------------------------------------------------------------- */

#define GROUPS_MAX 256u
#define GROUP_STORES_MAX 8u

struct group {
	struct group *next;
	struct share_host *host;
	char name[WIRE_NAME_MAX];
	uint32_t uid; /* of its owner */
	uint64_t seed;
	struct index *index;
	struct store *stores;
	unsigned processes, sessions;
	uint64_t recover_until_ns; /* 0: not recovering */
	bool state_changed;        /* the file that outlives us is behind */
	bool unwatched;            /* somebody may hold pages whose end we would not see */
};

struct process {
	struct process *next;
	struct watch watch; /* its pidfd */
	pid_t pid;
	uint64_t start;
	struct group *group;
	struct store *store;     /* NULL: in none yet */
	uint64_t awaited_store;  /* it has this of an earlier daemon, and is not back; else 0 */
	struct holds holds;
	struct session *session; /* NULL: not connected */
	bool ended;
	uint32_t recall_at;      /* page */
	uint64_t recall_due_ns;
};

struct group *group_find(const struct share_host *h, const char *name);
int group_create(struct group **out, struct share_host *h, const char *name, uint32_t uid);
/* Of a group without sessions and processes. */
void group_destroy(struct group *g);
/* Gives stores' memory back; ends stores and groups that nobody is in any more. */
void groups_work(struct share_host *h);
void group_add_store(struct group *g, struct store *st);
/* The one for VMs that have none; NULL and a sentence. */
struct store *group_store(struct group *g, struct err *e);
struct store *group_store_by_id(const struct group *g, uint64_t id);

struct process *process_find(const struct share_host *h, pid_t pid, uint64_t start);
/* Takes the pidfd, also where it fails. */
int process_create(struct process **out, struct group *g, const struct share_peer *peer);
/* Of one that holds nothing and is not connected. */
void process_destroy(struct share_host *h, struct process *p);
/* At the daemon's end: what it holds is not released, it goes on using it. */
void process_abandon(struct share_host *h, struct process *p);
void process_end(struct process *p);
/* Drops what ended processes hold, and them. */
void processes_work(struct share_host *h);
/* 0, -EDQUOT: it holds as many as it may, -ENOMEM. */
int process_hold(struct process *p, uint32_t store_page, uint32_t most);
void process_release(struct process *p, uint32_t store_page);

/* ---- session.c ------------------------------------------------------------------------- */

enum session_state {
	SESSION_NEW,      /* has said nothing */
	SESSION_WAITING,  /* for those who may bring back a store */
	SESSION_HOLDING,  /* says what it uses */
	SESSION_SETTLING, /* has: what it does not use any more is dropped */
	SESSION_OPEN,
	SESSION_CLOSED,   /* its candidates go, then itself */
};

struct session {
	struct session *next;
	struct watch watch;
	unsigned slot; /* its number in the index */
	enum session_state state;
	struct share_peer peer;  /* pidfd -1: its process has it */
	struct process *process; /* these three: from HELLO to the end of the connection */
	struct store *store;
	struct group *group;     /* to the end of the session */
	struct wire_hello hello;
	uint64_t since_ns;

	uint32_t pages;      /* of its VM's RAM */
	uint32_t *marks;     /* by page: that of its entry, or of an offer under way; 0: none */
	uint32_t candidates; /* entries in the index */
	uint32_t purge_at;   /* CLOSED, or forgetting: candidates below are gone */
	bool forgetting;

	uint64_t *claims;    /* what it said it uses, by store page; NULL: held nothing before */
	uint32_t settle_at;

	struct wire_offer *offers; /* a ring */
	uint32_t offers_size, offers_head, offers_count;

	void *out; /* a message that did not go out; nothing is read meanwhile */
	size_t out_bytes;
	bool out_store; /* with the store's descriptor */
};

int session_create(struct share_host *h, int fd, const struct share_peer *peer);
void session_destroy(struct share_host *h, struct session *s);
void session_close(struct share_host *h, struct session *s);
/* As session_close(), after the reason. */
void session_refuse(struct share_host *h, struct session *s, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));
/* As session_refuse(), for what a sound VM does not send. */
void session_bad_message(struct share_host *h, struct session *s, const char *why);
static inline uint64_t session_claims_bytes(const struct session *s)
{
	return ((uint64_t)s->store->pages + 63) / 64 * 8;
}
/* The message in h->out, whose entries are written. */
void session_send(struct share_host *h, struct session *s, enum wire_type t, unsigned count,
		  uint32_t turn);
static inline void *session_reply(struct share_host *h)
{
	return h->out + sizeof(struct wire_head);
}
/* Nothing waits to go out, and it is open. */
static inline bool session_is_free(const struct session *s)
{
	return s->state == SESSION_OPEN && !s->out;
}
/* All that is due without a message: offers, purging, settling, waiting; for each session
 * at most so many pages. */
void sessions_work(struct share_host *h, unsigned each);
/* Closes those that have said nothing for too long. */
void sessions_tick(struct share_host *h);

/* ---- hello.c ----------------------------------------------------------------------------- */

/* The message in h->in.  fd: what came with it, or -1; stays the caller's. */
void hello_answer(struct share_host *h, struct session *s, int fd);
/* WAITING, and it is over. */
void hello_continue(struct share_host *h, struct session *s);
void hold_answer(struct share_host *h, struct session *s);
/* SETTLING. */
void hold_settle(struct share_host *h, struct session *s, unsigned *budget);

/* ---- lookup.c ---------------------------------------------------------------------------- */

/* The message in h->in. */
void lookup_answer(struct share_host *h, struct session *s);
void content_answer(struct share_host *h, struct session *s);
void release_answer(struct share_host *h, struct session *s);
/* Forgets the session's page. */
void candidate_drop(struct share_host *h, struct session *s, uint32_t page);
/* Queues offers of a store's page to all candidates of its key. */
void offer_to_candidates(struct group *g, uint64_t key, struct store *st, uint32_t store_page);
/* Sends some of what is queued. */
void offers_send(struct share_host *h, struct session *s, unsigned *budget);
void offers_drop(struct session *s);
/* Asks for pages back that nobody else has held for a while. */
void recall_work(struct share_host *h, struct process *p, unsigned *budget);

/* ---- recover.c ----------------------------------------------------------------------------- */

/* Reads what an earlier daemon left, in cfg.state_dir. */
int recover_start(struct share_host *h, struct err *e);
/* Whom a VM's store, just adopted, was given to, and is not back. */
void recover_registry(struct share_host *h, struct group *g, const struct store *st);
/* A process came back, or ended. */
void recover_returned(struct group *g, struct process *p);
bool recover_is_over(struct group *g);
/* Indexes claimed pages. */
void recover_work(struct share_host *h);
/* Writes who is in the group's stores, so that it is found after our end. */
int recover_save(struct group *g, struct err *e);
void recover_forget(struct group *g);

#endif
