/*
 * vmm/client.h: what a program outside a VM's process knows of it: the layout of
 * the run directory, whether the VM lives, and the client side of its control
 * socket.  Linked into the cli; brim-vmm uses the layout and rundir_claim().
 *
 *   <base>/<name>/         mode 0700, one per VM
 *       lock               flock LOCK_EX held by the running brim-vmm; its pid
 *       control.sock       newline-delimited JSON, see ctl_call()
 *       console.sock       the guest's serial port
 *       hvc0.sock          its virtio console
 *       log                brim-vmm's stdout and stderr
 *       config.json        what the VM was started with
 *       stats              its numbers, see stats/shm.h
 *
 * A directory whose lock nobody holds is what a dead VM left behind.
 *
 * Threads: no global state; a struct ctl belongs to one thread.  Calls block up
 * to their timeout, so never from a VM's event loop (rundir_* excepted).
 *
 * Invariants:
 *  I1  At most one process holds a VM's name, and only it removes the files:
 *      whoever removes them holds the lock of the very file in the directory.
 *  I2  Every path of a VM fits sockaddr_un, checked when the name is resolved.
 */
#ifndef BRIM_VMM_CLIENT_H
#define BRIM_VMM_CLIENT_H

#include <jansson.h>
#include <signal.h>
#include <sys/types.h>
#include <sys/un.h>

#include "stats/stats.h"

#define RUN_NAME_MAX 63
#define CTL_VERSION 1
/* Longest line of the control protocol, either way. */
#define CTL_LINE_MAX (1 * MiB)
#define CTL_TIMEOUT_MS 5000

#define RUN_PATH_MAX (sizeof(((struct sockaddr_un *)0)->sun_path))

/* ---- run directory ------------------------------------------------------- */

struct vm_paths {
	char name[RUN_NAME_MAX + 1];
	char dir[RUN_PATH_MAX];
	char lock[RUN_PATH_MAX];
	char control[RUN_PATH_MAX];
	char console[RUN_PATH_MAX];
	char hvc[RUN_PATH_MAX];
	char log[RUN_PATH_MAX];
	char config[RUN_PATH_MAX];
	char stats[RUN_PATH_MAX];
};

enum vm_presence {
	VM_ABSENT,  /* no directory */
	VM_DIED,    /* a directory that nobody holds */
	VM_RUNNING, /* its brim-vmm holds the lock */
};

/* $BRIM_RUN_DIR, /run/brim for root, $XDG_RUNTIME_DIR/brim.  Does not create it.
 * -EINVAL, -ENAMETOOLONG. */
int rundir_base(char *buf, size_t len, struct err *e);

/* [A-Za-z0-9][A-Za-z0-9._-]{0,62}, else -EINVAL. */
int vm_name_check(const char *name, struct err *e);

/* Fills *p for the VM `name` below `base`; -EINVAL for a bad name, -ENAMETOOLONG
 * where a socket's path would not fit.  Touches no file. */
int vm_paths_init(struct vm_paths *p, const char *base, const char *name, struct err *e);
/* The same from a VM's directory, <base>/<name>: config.json's run_dir. */
int vm_paths_from_dir(struct vm_paths *p, const char *dir, struct err *e);

/* *pid (may be NULL) is 0 unless VM_RUNNING. */
int rundir_probe(const struct vm_paths *p, enum vm_presence *presence, pid_t *pid,
		 struct err *e);

/* For brim-vmm: makes the directory (and what leads to it), takes the lock,
 * removes what a dead VM left, writes our pid.  *lock_fd is the caller's and close-on-exec.
 * -EEXIST when the VM runs already. */
int rundir_claim(const struct vm_paths *p, int *lock_fd, struct err *e);
/* Removes the directory's files and the directory, closes *lock_fd, sets it to -1. */
void rundir_release(const struct vm_paths *p, int *lock_fd);

/* Removes what a dead VM left. 0 also when there is nothing; -EBUSY when it runs. */
int rundir_clean(const struct vm_paths *p, struct err *e);

/* Names below `base`, sorted, vm2 before vm10; none when there is no `base`. */
int rundir_list(const char *base, char ***names, size_t *count, struct err *e);
void rundir_list_free(char ***names, size_t count);

/* The last line of the VM's log that is not empty, "" when there is none. */
void rundir_last_log(const struct vm_paths *p, char *buf, size_t len);

/* ---- the daemon ------------------------------------------------------------ */

/* Below the run directory; a VM's name cannot begin with a dot. */
#define BRIMD_DIR ".brimd"
#define BRIMD_CONTROL BRIMD_DIR "/control"
#define BRIMD_LOG BRIMD_DIR "/log"
/* -ENAMETOOLONG. */
int daemon_control_path(const char *base, char *buf, size_t len, struct err *e);

/* ---- starting brim-vmm ---------------------------------------------------- */

struct vmm_child {
	pid_t pid;
	int ready_fd; /* the caller's: a line comes, "ok" or "error: SENTENCE", or its end */
};

/* Starts brim-vmm ($BRIM_VMM, beside this program, PATH) with that description and signal
 * mask.  Does not wait: the line on ready_fd says what came of it, exec's failure included. */
int vmm_spawn(const json_t *config, const sigset_t *signals, struct vmm_child *out, struct err *e);
/* Starts brimd ($BRIM_BRIMD, beside this program, PATH) for that run directory, with that
 * configuration (NULL: none), in a session of its own, its output into its log there.  Does
 * not wait: *pid is a child of the caller's. */
int brimd_spawn(const char *base, const char *config, pid_t *pid, struct err *e);

/* ---- sockets -------------------------------------------------------------- */

/* A connected, blocking, close-on-exec stream socket, or -errno.  May block for
 * 2 s where the listener's backlog is full. */
int sock_connect(const char *path);

struct ctl;

/* Connects to the control socket of a running VM.  -ENOENT: no such VM;
 * -ECONNREFUSED: it died; the sentence names the remedy. */
int ctl_open(struct ctl **out, const struct vm_paths *p, struct err *e);
/* The same to the brimd of that run directory.  -ENOENT: none runs. */
int ctl_open_daemon(struct ctl **out, const char *base, struct err *e);
void ctl_close(struct ctl **c);
int ctl_fd(const struct ctl *c); /* for poll(): readable when a reply may be there */

/* Sends one request.  `args` (an object or NULL) is stolen. */
int ctl_send(struct ctl *c, const char *cmd, json_t *args, json_int_t *id, struct err *e);

/* Waits for the reply to request `id`; replies to others are dropped.
 * timeout_ms < 0: for ever; 0: only what has arrived, -EAGAIN otherwise.
 * *result (may be NULL) is the caller's.  -ETIMEDOUT; -ECONNRESET when the VM
 * went away; -EREMOTEIO when it refused (its sentence is in *e); -EPROTO. */
int ctl_recv(struct ctl *c, json_int_t id, int timeout_ms, json_t **result, struct err *e);

/* ctl_send() and ctl_recv(). */
int ctl_call(struct ctl *c, const char *cmd, json_t *args, int timeout_ms, json_t **result,
	     struct err *e);

#endif
