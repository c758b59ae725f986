/*
 * vmm/hostcheck.h: what brim needs of a host, and whether this host has it.
 * `brim doctor` prints all of it; brim-vmm asks for the two things without which
 * it must not start.
 *
 * Threads: any; no state.  Blocks for at most about 0.4 s, where KVM only
 * emulates.  Nothing is left open.
 */
#ifndef BRIM_VMM_HOSTCHECK_H
#define BRIM_VMM_HOSTCHECK_H

#include "stats/stats.h"

#define HOST_KERNEL_MAJOR 6
#define HOST_KERNEL_MINOR 8

/* Guest code at fewer instructions a second is emulated one by one.  Emulation
 * was measured at 2 MIPS, a nested guest on an emulated host at 400. */
#define HOST_KVM_MIN_MIPS 50

enum host_level { HOST_OK, HOST_WARN, HOST_FAIL };

struct host_finding {
	const char *name; /* of the check; static */
	enum host_level level;
	char found[240];
	char advice[320]; /* "" when all is well */
};

#define HOST_CHECKS_MAX 16

/* Does every check and returns how many there were (at most HOST_CHECKS_MAX).
 * `root` is put before every path: "" but in tests. */
size_t hostcheck_all(const char *root, struct host_finding out[HOST_CHECKS_MAX]);

/* "ok", "warn", "fail". */
const char *host_level_name(enum host_level level);

/* Whether guests can run: -ENOENT no /dev/kvm, -EACCES no rights, -EOPNOTSUPP
 * guest code is only emulated and !allow_emulated, or another -errno. */
int hostcheck_kvm(bool allow_emulated, struct err *e);
int hostcheck_kvm_at(const char *root, bool allow_emulated, struct err *e);

/* -EOPNOTSUPP for a release ("6.1.0-18-amd64") that is too old, -EINVAL for one
 * that cannot be read. */
int hostcheck_kernel(const char *release, struct err *e);

#endif
