/*
 * Sizes as people write them. Binary units only: for RAM nobody means 10^9.
 */
#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "stats/stats.h"

/* Accepts "", "B", "K", "KB", "KiB" and the like. Returns the shift or -1. */
static int unit_shift(const char *u)
{
	static const char letters[] = "KMGT";
	const char *at;
	int shift = 0;

	if (*u && (at = strchr(letters, toupper((unsigned char)*u)))) {
		shift = 10 * (int)(at - letters + 1);
		u++;
		if (*u == 'i')
			u++;
	}
	if (*u == 'B' || *u == 'b')
		u++;
	return *u ? -1 : shift;
}

int size_parse(const char *text, uint64_t *bytes, struct err *e)
{
	char *end;
	long double v;
	int shift;

	if (!isdigit((unsigned char)text[0]) || (text[0] == '0' && tolower((unsigned char)text[1]) == 'x'))
		return err_set(e, -EINVAL, "'%s' is not a size (such as 512M, 1.5G or 24GiB)", text);
	errno = 0;
	v = strtold(text, &end);
	while (*end == ' ')
		end++;
	shift = unit_shift(end);
	if (shift < 0)
		return err_set(e, -EINVAL, "'%s': unknown unit '%s' (K, M, G or T)", text, end);
	if (shift == 0 && v != floorl(v))
		return err_set(e, -EINVAL, "'%s' is a fraction of a byte (is a unit missing?)", text);
	v = ldexpl(v, shift);
	if (!(v < 0x1p63L))
		return err_set(e, -ERANGE, "'%s' is too large", text);
	*bytes = (uint64_t)v;
	return 0;
}

const char *size_format(char *buf, size_t buf_len, uint64_t bytes)
{
	static const char *const units[] = { "KiB", "MiB", "GiB", "TiB" };
	double v = (double)bytes / 1024;
	size_t u = 0;

	if (bytes < 1024) {
		snprintf(buf, buf_len, bytes ? "%u B" : "%u", (unsigned)bytes);
		return buf;
	}
	while (v >= 1023.5 && u + 1 < ARRAY_LEN(units)) {
		v /= 1024;
		u++;
	}
	snprintf(buf, buf_len, v < 99.95 && v != floor(v) ? "%.1f %s" : "%.0f %s", v, units[u]);
	return buf;
}
