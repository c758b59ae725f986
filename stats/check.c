/*
 * Roles and the panic record.  A panic is a bug of ours: it says where, in which
 * version and thread role, with a backtrace, and aborts the process, which is
 * one VM (design rule: a VM never takes another with it).
 */
#include <execinfo.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "stats/stats.h"

static _Thread_local enum role thread_role = ROLE_NONE;

void role_set(enum role r)
{
	thread_role = r;
}

enum role role_get(void)
{
	return thread_role;
}

const char *role_name(enum role r)
{
	static const char *const names[] = {
		[ROLE_NONE] = "none", [ROLE_LOOP] = "loop", [ROLE_VCPU] = "vcpu",
		[ROLE_CLI] = "cli", [ROLE_FAULT] = "fault", [ROLE_RECLAIM] = "reclaim",
		[ROLE_SHARE] = "share",
		[ROLE_WORKER] = "worker",
	};

	return (size_t)r < ARRAY_LEN(names) ? names[r] : "?";
}

_Noreturn void brim_panic(const char *file, int line, const char *fmt, ...)
{
	char what[256];
	void *frames[32];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(what, sizeof what, fmt, ap);
	va_end(ap);
	log_line(LOG_ERROR, "panic: %s:%d: %s (brim %s, role %s)", file, line, what,
		 BRIM_VERSION, role_name(role_get()));
	backtrace_symbols_fd(frames, backtrace(frames, (int)ARRAY_LEN(frames)), 2);
	abort();
}
