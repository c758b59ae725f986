/*
 * What bench_share is made of: the memory of some VMs, the same for brim and for KSM, in a
 * process of its own for each VM.
 *
 * sharecontent.c  which page of which VM has what in it
 * sharevm.c       the processes, and what the benchmark tells them to do
 * shareksm.c      VMs whose memory the kernel's KSM merges
 * sharebrim.c     VMs with brim's engine and share thread, and a brimd
 *
 *   bench_share ──order──► VM 0 .. VM 3 ◄──wire.h──► brimd      (brim's)
 *               ──order──► VM 0 .. VM 3 ◄── ksmd                (KSM's)
 *
 * Threads: one in each process, beside those that the engine makes.
 */
#ifndef BRIM_BENCH_SHARE_H
#define BRIM_BENCH_SHARE_H

#include <sys/types.h>
#include <time.h>

#include "bench/content.h"

#define SHARE_VMS 4u

/* ---- sharecontent.c ---------------------------------------------------------------- */

enum share_kind {
	SHARE_ZERO,
	SHARE_COMMON, /* all VMs have it, at different places: the same image's files */
	SHARE_PAIR,   /* VM 0 and 1, or VM 2 and 3 */
	SHARE_OWN,    /* nobody else has it */
	SHARE_HOT,    /* nobody else has it, and it changes all the time */
	SHARE_KINDS
};

struct share_page {
	uint32_t from; /* page of the base */
	uint8_t kind;
};

struct share_content {
	struct content base;
	uint64_t pages; /* of each VM */
	struct share_page *page[SHARE_VMS];
};

void share_content_open(const struct bench *b, struct share_content *c, uint64_t pages);
void share_content_close(struct share_content *c);
/* What page i of that VM has in it, until somebody changes it. */
void share_content_page(const struct share_content *c, unsigned vm, uint64_t i, uint8_t *out);
/* The 8 bytes in which a changed page differs. */
uint64_t *share_content_word(uint8_t *page, uint64_t i);

/* ---- sharevm.c ----------------------------------------------------------------------- */

struct share_vm { /* in its own process */
	const struct share_content *content;
	unsigned number;
	uint8_t *mem;
	uint32_t *change; /* [pages] number of the last change; 0: none */
	uint64_t user_before_bytes;
	const void *arg;
	void *side;
};

struct share_memory {
	uint64_t resident_pages; /* of guest RAM, by the kernel's account */
	uint64_t user_bytes;     /* other anonymous memory, less what was there before it */
	uint64_t kernel_bytes;   /* page tables and mappings of the process */
};
/* Of this process. */
uint64_t share_anonymous_bytes(void);
uint64_t share_kernel_bytes(void);

/* What a VM's process does of its own; it may call exit(). */
struct share_vm_ops {
	void (*open)(struct share_vm *vm); /* makes vm->mem */
	void (*pass)(struct share_vm *vm); /* looks at all of it once; NULL: others do */
	uint64_t (*resident_pages)(struct share_vm *vm);
};

enum share_order_kind {
	ORDER_FILL,
	ORDER_PASS,
	ORDER_CHANGE_HOT,  /* each hot page */
	ORDER_CHANGE_SOME, /* share of all others, in 1/1000, drawn anew */
	ORDER_BREAK,       /* writes to so many shared pages: value[0] CPU ns, [1] median ns */
	ORDER_CHECK,       /* value[0]: pages that are not what they should be */
	ORDER_MEMORY,
};

struct share_order {
	enum share_order_kind kind;
	uint32_t number; /* of the change; 1 or more */
	uint32_t amount;
};

struct share_reply {
	uint64_t mem;
	uint64_t value[2];
	struct share_memory memory;
};

struct share_vms {
	struct {
		pid_t pid;
		int fd;
		clockid_t clock;
		uint64_t mem; /* address in that process */
	} vm[SHARE_VMS];
};

/* Starts the processes, with their memory filled.  They die with this one.  `arg` is
 * theirs to read, in their copy of this process. */
void share_vms_open(struct share_vms *v, const struct share_content *c,
		    const struct share_vm_ops *ops, const void *arg);
void share_vms_close(struct share_vms *v);
/* To all of them; replies may be NULL. */
void share_vms_order(struct share_vms *v, const struct share_order *o,
		     struct share_reply reply[SHARE_VMS]);
/* One after the other, for what is timed. */
void share_vms_by_turns(struct share_vms *v, const struct share_order *o,
			struct share_reply reply[SHARE_VMS]);
/* In two parts: between them, at most so long each, something else can be done. */
void share_vms_send(struct share_vms *v, const struct share_order *o);
bool share_vms_done(struct share_vms *v, unsigned *waiting_for, int timeout_ms);
uint64_t share_vms_cpu_ns(const struct share_vms *v);
void share_vms_memory(struct share_vms *v, struct share_memory *sum);
/* CPU time of a process so far, all its threads. */
uint64_t share_process_cpu_ns(clockid_t clock);

/* ---- the two sides --------------------------------------------------------------------- */

struct share_side;

struct share_side_ops {
	const char *name;
	/* Fresh VMs, with nothing merged yet. */
	void (*open)(struct share_side *s);
	void (*close)(struct share_side *s);
	/* Begins a pass over all memory; poll it until it has ended. */
	void (*pass_begin)(struct share_side *s);
	bool (*pass_poll)(struct share_side *s); /* waits a little */
	uint64_t (*cpu_ns)(struct share_side *s); /* of all that takes part */
	/* Pages saved so far, cheaply; and exactly, at rest. */
	uint64_t (*saved_now)(struct share_side *s);
	uint64_t (*saved_pages)(struct share_side *s);
	/* Memory that it takes to save it, of users and kernel. */
	uint64_t (*own_bytes)(struct share_side *s);
};

struct share_side {
	const struct share_side_ops *ops;
	const struct share_content *content;
	struct share_vms vms;
	struct share_memory before; /* after open, all VMs */
	void *state;
};

struct kksm;
struct share_side share_side_ksm(const struct share_content *c, struct kksm *k);
struct share_side share_side_brim(const struct share_content *c);

#endif
