/*
 * A VM's statistics file as its readers take it.  The input is bytes of a good file that
 * are changed: pairs of place and value, so that headers and rows stay nearly right; its
 * last bytes say how long the file is.
 */
#include <stdlib.h>
#include <string.h>

#include "stats/shm.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define ROWS 12u
#define VALUES 80u
#define VALUES_AT (sizeof(struct shm_header) + ROWS * sizeof(struct shm_entry))
#define FILE_BYTES (VALUES_AT + VALUES * sizeof(uint64_t))

/* Places where a change is likely to matter: header and the first rows, dense. */
static size_t place(uint8_t at, uint8_t more)
{
	return ((size_t)more << 8 | at) % FILE_BYTES;
}

static void good_file(uint8_t *file)
{
	static const char *const names[ROWS] = {
		"vcpu_exits", "rng_bytes", "swap_gets", "memory_bytes", "limit_bytes", "fault_ns",
		"updated_ns", "unknown", "state", "vcpus", "engine_staged", "resident_bytes",
	};
	struct shm_header h = { .version = SHM_VERSION, .header_bytes = sizeof(h),
				.entry_bytes = sizeof(struct shm_entry), .entries = ROWS,
				.values_at = VALUES_AT, .values = VALUES, .pid = 1 };
	uint32_t first = 0;

	memcpy(h.magic, SHM_MAGIC, sizeof(h.magic));
	memcpy(file, &h, sizeof(h));
	for (uint32_t i = 0; i < ROWS; i++) {
		struct shm_entry s = { .kind = i == 5 ? SHM_HISTOGRAM : i < 3 ? SHM_COUNTER : SHM_GAUGE,
				       .first = first, .count = i == 5 ? HIST_BUCKETS : 1, .unit = "u" };

		memcpy(s.name, names[i], strlen(names[i]));
		memcpy(file + sizeof(h) + i * sizeof(s), &s, sizeof(s));
		first += s.count;
	}
	for (uint32_t i = 0; i < VALUES; i++)
		file[VALUES_AT + i * sizeof(uint64_t)] = (uint8_t)i;
}

/* Reads all that it is given, so that what lies outside is seen. */
static void see(void *ctx, const struct stats_entry *s)
{
	uint64_t *sum = ctx;

	VERIFY(strlen(s->name) >= 1 && strlen(s->name) <= SHM_NAME_MAX && s->count > 0);
	VERIFY(s->kind > SHM_GAUGE || s->count == 1 || s->kind < SHM_COUNTER);
	VERIFY(!strpbrk(s->name, "\033\n ") && !strpbrk(s->unit, "\033\n"));
	for (unsigned i = 0; i < s->count; i++)
		*sum += s->value[i];
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	size_t len = FILE_BYTES;
	struct stats_view v, before = { .pid = 1 };
	struct stats_rates r;
	struct err e = { "" };
	uint64_t sum = 0;
	uint8_t *file, *exact;
	bool whole, same;

	file = calloc(1, FILE_BYTES);
	VERIFY(file);
	good_file(file);
	for (size_t i = 0; i + 2 < size; i += 3)
		file[place(data[i], data[i + 1] % 8)] = data[i + 2];
	if (size % 3 == 2)
		len = FILE_BYTES - (size_t)(data[size - 1] << 8 | data[size - 2]) % FILE_BYTES;
	exact = realloc(file, len ? len : 1); /* so that reading on is seen */
	VERIFY(exact);
	whole = stats_decode(exact, len, &v, &e) == 0;
	same = (stats_each(exact, len, see, &sum, &e) == 0) == whole;
	VERIFY(same);
	VERIFY(whole || strncmp(e.msg, "statistics: ", 12) == 0);
	v.read_ns = 1000;
	if (whole && stats_rates(&before, &v, &r))
		VERIFY(r.refaults_per_s >= 0 && r.stall_pct >= 0 && r.stall_pct <= 100);
	free(exact);
	return 0;
}
