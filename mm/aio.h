/*
 * mm/aio.c: reads and writes of the swap file, io_uring underneath.  Used by the
 * engine's fault threads (reads of pages) and by mm/swap/ (whole segments).
 */
#ifndef BRIM_MM_AIO_H
#define BRIM_MM_AIO_H

#include "mm/mm.h"

struct aio;

/* One read or write, the caller's; it stays where it is until reaped. */
struct aio_op {
	/* the caller's to fill in */
	int fd;
	bool is_write;
	void *buf;
	uint32_t bytes;
	uint64_t offset;
	void *user;
	/* once reaped: 0 (all bytes) or -errno; -EIO too where the file ends early */
	int result;
	/* aio.c's */
	uint32_t done_bytes;
	_Atomic bool is_started; /* orders the starter's writes before the reaper's */
	unsigned tries;
};

/* A ring for at most `depth` ops at a time.  -ENOMEM, or as io_uring_setup(2). */
int aio_create(struct aio **out, const struct mm_host *host, unsigned depth);
/* Nothing may be on its way. */
void aio_destroy(struct aio **a);
unsigned aio_on_way(const struct aio *a);
/* Any thread.  -EAGAIN: `depth` are on their way; or what io_uring_enter(2) says, and the op has
 * not been started: the caller may read or write by itself. */
int aio_start(struct aio *a, struct aio_op *op);
enum aio_wait {
	AIO_NO_WAIT,   /* NULL where none has ended */
	AIO_WAIT,      /* NULL where none is on its way */
	AIO_WAIT_WAKE, /* NULL after aio_wake() */
};
/* One that ended, or NULL.  One thread. */
struct aio_op *aio_reap(struct aio *a, enum aio_wait how);
/* Once, before the first aio_reap(AIO_WAIT_WAKE).  0 or -errno. */
int aio_arm(struct aio *a);
/* Any thread, once. */
void aio_wake(struct aio *a);

#endif
