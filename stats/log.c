/*
 * The log: one line a call, written with one write(2) so that lines of several
 * threads do not mix.  The sink is one of the few globals of the project.
 */
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "stats/stats.h"

#define LOG_LIMIT_WINDOW_NS (60ull * 1000000000)
#define LOG_LIMIT_LINES 5u

static struct {
	char prefix[64];
	int fd;
	enum log_level max;
} sink = { "brim", 2, LOG_INFO };

uint64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

void log_init(const char *prefix, int fd, enum log_level max)
{
	snprintf(sink.prefix, sizeof sink.prefix, "%s", prefix);
	sink.fd = fd;
	sink.max = max;
}

void log_line(enum log_level level, const char *fmt, ...)
{
	static const char *const names[] = { "error", "warning", "info", "debug" };
	char line[1024];
	va_list ap;
	size_t n, room = sizeof line - 1; /* the newline's place */

	if (level > sink.max)
		return;
	n = (size_t)snprintf(line, room, "%s: %s: %s: ", sink.prefix, role_name(role_get()),
			     names[level]);
	va_start(ap, fmt);
	n += (size_t)vsnprintf(line + n, room - n, fmt, ap);
	va_end(ap);
	if (n > room - 1)
		n = room - 1;
	line[n++] = '\n';
	/* Nobody is left to be told when the log itself cannot be written. */
	if (write(sink.fd, line, n) < 0)
		return;
}

bool log_limit_ok(struct log_limit *l)
{
	uint64_t now = now_ns(), start = atomic_load(&l->window_ns);

	if (start == 0 || now - start > LOG_LIMIT_WINDOW_NS) {
		atomic_store(&l->window_ns, now);
		atomic_store(&l->n, 0);
	}
	return atomic_fetch_add(&l->n, 1) < LOG_LIMIT_LINES;
}
