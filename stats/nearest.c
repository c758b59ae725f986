/*
 * What somebody who mistyped a name may have meant.
 * Any thread; no state.
 */
#include <string.h>

#include "stats/stats.h"

static unsigned min3(unsigned a, unsigned b, unsigned c)
{
	unsigned m = a < b ? a : b;

	return m < c ? m : c;
}

/* Insertions, deletions, changes, and swaps of neighbours, from a to b. */
static unsigned distance(const char *a, const char *b)
{
	size_t na = strlen(a), nb = strlen(b);
	unsigned row[3][NEAR_MAX + 1];

	if (na > NEAR_MAX || nb > NEAR_MAX)
		return NEAR_MAX;
	for (size_t j = 0; j <= nb; j++)
		row[0][j] = (unsigned)j;
	for (size_t i = 1; i <= na; i++) {
		unsigned *cur = row[i % 3], *up = row[(i + 2) % 3], *up2 = row[(i + 1) % 3];

		cur[0] = (unsigned)i;
		for (size_t j = 1; j <= nb; j++) {
			cur[j] = min3(up[j] + 1, cur[j - 1] + 1, up[j - 1] + (a[i - 1] != b[j - 1]));
			if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] &&
			    up2[j - 2] + 1 < cur[j])
				cur[j] = up2[j - 2] + 1;
		}
	}
	return row[na % 3][nb];
}

const char *nearest(const char *text, const char *const *names, size_t count)
{
	size_t n = strlen(text);
	unsigned best = (unsigned)(n / 3) + 1; /* further is no likeness */
	const char *found = NULL;

	for (size_t i = 0; i < count; i++) {
		unsigned d = distance(text, names[i]);

		/* the beginning of a name is near, whatever is missing */
		if (n >= 2 && strncmp(text, names[i], n) == 0)
			d = 1;
		if (d <= best && d < strlen(names[i]) && (!found || d < best)) {
			best = d;
			found = names[i];
		}
	}
	return found;
}
