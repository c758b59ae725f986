/*
 * A VM's history as a picture: a column a sample, the newest at the right; its height is what
 * is resident, and of that, below, what is the working set.
 */
#include <inttypes.h>
#include <langinfo.h>
#include <ncurses.h>
#include <string.h>

#include "cli/top.h"

#define LABEL_WIDTH 7

static const struct top_point *point(const struct top_vm *vm, size_t i)
{
	return &vm->history[i % TOP_HISTORY];
}

/* Of the samples from `from` on. */
static uint64_t highest(const struct top_vm *vm, size_t from)
{
	uint64_t most = MiB;

	for (size_t i = from; i < vm->points; i++) {
		const struct top_point *p = point(vm, i);

		most = p->resident_bytes > most ? p->resident_bytes : most;
		most = p->working_set_bytes > most ? p->working_set_bytes : most;
	}
	return most;
}

static float worst(const struct top_vm *vm, size_t from)
{
	float most = 0;

	for (size_t i = from; i < vm->points; i++)
		if (point(vm, i)->refaults_per_s > most)
			most = point(vm, i)->refaults_per_s;
	return most;
}

struct marks {
	const char *used, *resident, *none;
};

static struct marks marks(void)
{
	bool is_utf8 = strcmp(nl_langinfo(CODESET), "UTF-8") == 0;

	return is_utf8 ? (struct marks){ "█", "░", " " } : (struct marks){ "#", ":", " " };
}

static const char *mark_at(const struct top_point *p, double level, const struct marks *m)
{
	if ((double)p->working_set_bytes > level)
		return m->used;
	return (double)p->resident_bytes > level ? m->resident : m->none;
}

static void title(const struct top_vm *vm, int y, size_t from)
{
	const struct top_point *p = point(vm, vm->points - 1);
	struct marks m = marks();
	char res[16], ws[16];

	attron(A_BOLD);
	mvprintw(y, 0, "%s", vm->name);
	attroff(A_BOLD);
	printw("  %s resident %s  %s working set %s  refaults %.0f/s, most %.0f/s", m.resident,
	       size_short(res, sizeof(res), (double)p->resident_bytes), m.used,
	       size_short(ws, sizeof(ws), (double)p->working_set_bytes), (double)p->refaults_per_s,
	       (double)worst(vm, from));
	if (vm->reason[0])
		printw("  %s", vm->reason);
}

void top_graph(const struct top_vm *vm, int y, int height, int width)
{
	size_t kept = vm->points < TOP_HISTORY ? vm->points : TOP_HISTORY;
	size_t room = (size_t)(width > LABEL_WIDTH ? width - LABEL_WIDTH : 0);
	size_t from = vm->points - (kept < room ? kept : room);
	struct marks m = marks();
	uint64_t most = highest(vm, from);
	char text[16];

	if (height < 2 || !vm->points)
		return;
	title(vm, y, from);
	for (int row = 1; row < height; row++) {
		/* its middle */
		double level = (double)most * (height - row - 0.5) / (height - 1);

		mvprintw(y + row, 0, "%*s ", LABEL_WIDTH - 2, row == 1 ?
			 size_short(text, sizeof(text), (double)most) : row == height - 1 ? "0" : "");
		move(y + row, width - (int)(vm->points - from));
		for (size_t i = from; i < vm->points; i++)
			addstr(mark_at(point(vm, i), level, &m));
	}
}
