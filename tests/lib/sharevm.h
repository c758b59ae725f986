/*
 * The VM's end of mm/ksm/wire.h, written by hand for tests of host/: it sends what it is
 * told to, sound or not, and believes nothing it gets.
 *
 * The host is one in this process, turned by hand whenever an answer is waited for; or
 * none (NULL), where another process is at the other end.
 */
#ifndef BRIM_TESTS_SHAREVM_H
#define BRIM_TESTS_SHAREVM_H

#include "host/host.h"
#include "mm/ksm/wire.h"

struct sharevm {
	struct share_host *host;
	struct share_peer peer;  /* what the host is told; pidfd is the host's */
	int end_fd;              /* an eventfd: written to, the process "ends"; or a pidfd */
	pid_t child;             /* 0: there is no such process */
	int fd, store_fd;
	const uint8_t *store;    /* mapped, read-only */
	struct wire_welcome welcome;
	uint32_t turn;
	_Alignas(16) uint8_t in[WIRE_BYTES_MAX], out[WIRE_BYTES_MAX];
	size_t in_bytes;
};

/* A "process" with that pid, not connected. */
void sharevm_init(struct sharevm *v, struct share_host *h, int pid, unsigned uid);
/* The same with a process of its own, which does nothing: restarts look whether it lives. */
void sharevm_init_real(struct sharevm *v, struct share_host *h, unsigned uid);
void sharevm_connect(struct sharevm *v);
/* Closes the connection; the process goes on. */
void sharevm_hang_up(struct sharevm *v);
/* Ends the process, and all of its descriptors. */
void sharevm_end(struct sharevm *v);

/* Turns of the host until it has nothing to do, each one verified. */
void sharevm_settle(struct share_host *h);

/* The entries behind v->out's head are there already.  0 or -errno. */
int sharevm_send(struct sharevm *v, enum wire_type t, unsigned count);
int sharevm_send_raw(struct sharevm *v, const void *msg, size_t bytes, const int *fds, unsigned n);
/* The next message, into v->in: its type; 0: the connection is closed; -EAGAIN: none. */
int sharevm_receive(struct sharevm *v);
/* The same without a turn of the host. */
int sharevm_poll(struct sharevm *v);

/* HELLO, with its store if it has one; what comes back. */
int sharevm_hello(struct sharevm *v, const char *group, uint32_t pages);
int sharevm_say_hello(struct sharevm *v, const char *group, uint32_t pages);
/* HOLD of these, and the end of them.  0 or -errno, as HELLO: the connection is broken. */
int sharevm_say_holds(struct sharevm *v, const uint32_t *store_pages, unsigned n);
/* Takes the WELCOME in v->in. */
void sharevm_welcomed(struct sharevm *v);

/* Page contents are numbered: never two alike. */
const uint8_t *sharevm_bytes(uint32_t content);
struct wire_hash sharevm_hash(const struct sharevm *v, uint32_t content);
/* One page; its answer. */
struct wire_answer sharevm_lookup(struct sharevm *v, uint32_t page, uint32_t content);
struct wire_answer sharevm_content(struct sharevm *v, uint32_t page, uint32_t content);
int sharevm_release(struct sharevm *v, uint32_t store_page);
/* Whether the store's page has those bytes. */
bool sharevm_has(const struct sharevm *v, uint32_t store_page, uint32_t content);

unsigned count_fds(void); /* open in this process */

#endif
