/*
 * The screen of `brim top`: drawn anew after each sample, key and change of size; curses
 * sends what differs.
 *
 * One thread.  It waits for the keyboard, a signal or the next sample.
 *
 * Invariant (I1 of cli.h): the terminal is as it was, however this ends; tty_save() keeps
 * what it takes, as for raw mode.
 */
#include <errno.h>
#include <langinfo.h>
#include <locale.h>
#include <ncurses.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cli/top.h"

#define HEAD_LINES 5   /* above the title of the table */
#define GRAPH_LINES 9
#define ROWS_LEAST 4   /* the graph is not worth less of the table */
#define KEY_ESC 27

struct screen {
	struct top *t;
	uint64_t interval_s;
	struct signals signals;
	SCREEN *scr;
	char selected[RUN_NAME_MAX + 1];
	size_t first; /* row shown first */
	bool has_colour, help, graph, frozen, editing;
	/* of the draw under way */
	struct top_vm **rows;
	size_t row_count;
};

/* ---- colours ---------------------------------------------------------------------------- */

static void paint(const struct screen *s, enum colour c, bool on)
{
	attr_t a = c == BOLD ? A_BOLD : s->has_colour && c != PLAIN ? (attr_t)COLOR_PAIR(c) : A_NORMAL;

	if (on)
		attron(a);
	else
		attroff(a);
}

static void set_colours(struct screen *s)
{
	s->has_colour = colour_wanted(stdout) && has_colors();
	if (!s->has_colour)
		return;
	start_color();
	use_default_colors();
	init_pair(GREEN, COLOR_GREEN, -1);
	init_pair(YELLOW, COLOR_YELLOW, -1);
	init_pair(RED, COLOR_RED, -1);
}

/* ---- the head ---------------------------------------------------------------------------- */

static void part(int y, int width, uint64_t bytes, uint64_t of, const char *mark)
{
	int n = of ? (int)((double)bytes / (double)of * width + 0.5) : 0;

	(void)y;
	for (; n > 0 && getcurx(stdscr) < width; n--)
		addstr(mark);
}

/* The host's memory: VMs, the rest in use, available. */
static void draw_bar(const struct screen *s, int y)
{
	const struct top_host *h = &s->t->host;
	bool is_utf8 = strcmp(nl_langinfo(CODESET), "UTF-8") == 0;
	uint64_t used = h->physical_bytes - (h->available_bytes < h->physical_bytes ? h->available_bytes :
					      h->physical_bytes);
	uint64_t others = used > h->vm_bytes ? used - h->vm_bytes : 0;

	move(y, 0);
	paint(s, GREEN, true);
	part(y, COLS, h->vm_bytes, h->physical_bytes, is_utf8 ? "█" : "#");
	paint(s, GREEN, false);
	part(y, COLS, others, h->physical_bytes, is_utf8 ? "▒" : "=");
	while (getcurx(stdscr) < COLS - 1)
		addstr(is_utf8 ? "·" : ".");
}

static void draw_pressure(const struct screen *s)
{
	const struct top_host *h = &s->t->host;
	enum colour c = h->psi_full_pct >= 1 ? RED : h->psi_some_pct >= 1 ? YELLOW : PLAIN;

	if (h->psi_some_pct < 0)
		return;
	printw("  pressure ");
	paint(s, c, true);
	printw("%.1f%% some, %.1f%% full", h->psi_some_pct, h->psi_full_pct);
	paint(s, c, false);
}

static void saved(const char *what, uint64_t bytes)
{
	char text[16];

	printw("  %s %s", what, size_short(text, sizeof(text), (double)bytes));
}

static void draw_head(const struct screen *s)
{
	const struct top_host *h = &s->t->host;
	char a[32], p[32], v[32], f[32];

	attron(A_BOLD);
	mvprintw(0, 0, "brim top  %s", h->name);
	attroff(A_BOLD);
	printw("  %zu VMs, %zu running", s->t->vm_count, h->running);
	draw_pressure(s);
	if (h->state[0])
		printw("  %s%s", h->reason[0] ? "" : "state ", h->reason[0] ? h->reason : h->state);
	if (s->frozen)
		addstr("  (frozen: space goes on)");
	mvprintw(1, 0, "assigned %s on %s (%.0f%%)  VMs take %s  %s available",
		 size_format(a, sizeof(a), h->assigned_bytes), size_format(p, sizeof(p), h->physical_bytes),
		 h->physical_bytes ? 100.0 * (double)h->assigned_bytes / (double)h->physical_bytes : 0,
		 size_format(v, sizeof(v), h->vm_bytes), size_format(f, sizeof(f), h->available_bytes));
	draw_bar(s, 2);
	mvaddstr(3, 0, "saved:");
	saved("untouched", h->untouched_bytes);
	saved("filled", h->filled_bytes);
	saved("shared", h->shared_bytes);
	saved("packed", h->packed_bytes > h->pool_bytes ? h->packed_bytes - h->pool_bytes : 0);
	saved("disk", h->disk_bytes);
	saved("balloon", h->ballooned_bytes);
}

/* ---- the table ------------------------------------------------------------------------------ */

static int width_of(const bool shown[])
{
	int width = -1;

	for (unsigned i = 0; i < top_column_count; i++)
		width += shown[i] ? top_columns[i].width + 1 : 0;
	return width;
}

/* The one to go next, or top_column_count. */
static unsigned next_to_drop(const bool shown[])
{
	unsigned worst = top_column_count;

	for (unsigned i = 0; i < top_column_count; i++)
		if (shown[i] && top_columns[i].drop &&
		    (worst == top_column_count || top_columns[i].drop > top_columns[worst].drop))
			worst = i;
	return worst;
}

static void choose_columns(const struct screen *s, bool shown[])
{
	unsigned i;

	for (i = 0; i < top_column_count; i++)
		shown[i] = top_is_known(s->t, &top_columns[i]);
	while (width_of(shown) > COLS && (i = next_to_drop(shown)) < top_column_count)
		shown[i] = false;
}

static void draw_titles(const struct screen *s, const bool shown[], int y)
{
	move(y, 0);
	attron(A_REVERSE);
	for (unsigned i = 0; i < top_column_count; i++) {
		const struct top_column *c = &top_columns[i];

		if (!shown[i])
			continue;
		if (i == s->t->sort)
			attron(A_BOLD | A_UNDERLINE);
		printw(c->value ? "%*s" : "%-*s", c->width, c->title);
		attroff(A_BOLD | A_UNDERLINE);
		addch(' ');
	}
	while (getcury(stdscr) == y && getcurx(stdscr) < COLS - 1)
		addch(' ');
	attroff(A_REVERSE);
}

static void draw_cell(const struct screen *s, const struct top_vm *vm, const struct top_column *c)
{
	/* where there is no room for the state, the name has its colour */
	enum colour colour = c->unit == TOP_NAME && !vm->has_view ? RED : top_colour(vm, c);
	char text[80];

	top_cell(vm, c, text, sizeof(text));
	paint(s, colour, true);
	printw(c->value ? "%*.*s" : "%-*.*s", c->width, c->width, text);
	paint(s, colour, false);
	addch(' ');
}

static void draw_row(const struct screen *s, const bool shown[], int y, const struct top_vm *vm)
{
	bool is_selected = strcmp(vm->name, s->selected) == 0;

	move(y, 0);
	if (is_selected)
		attron(A_BOLD);
	for (unsigned i = 0; i < top_column_count; i++)
		if (shown[i])
			draw_cell(s, vm, &top_columns[i]);
	if (is_selected) {
		attroff(A_BOLD);
		mvchgat(y, 0, -1, A_BOLD | A_STANDOUT, 0, NULL);
	}
}

static size_t selected_row(const struct screen *s)
{
	for (size_t i = 0; i < s->row_count; i++)
		if (strcmp(s->rows[i]->name, s->selected) == 0)
			return i;
	return 0;
}

static void select_row(struct screen *s, size_t row)
{
	if (row < s->row_count)
		memcpy(s->selected, s->rows[row]->name, sizeof(s->selected));
}

static void draw_table(struct screen *s, int y, int lines)
{
	size_t at = selected_row(s), room = lines > 1 ? (size_t)lines - 1 : 0;
	bool shown[TOP_COLUMNS_MAX];

	choose_columns(s, shown);
	draw_titles(s, shown, y);
	if (at < s->first)
		s->first = at;
	if (room && at >= s->first + room)
		s->first = at - room + 1;
	for (size_t i = 0; i < room && s->first + i < s->row_count; i++)
		draw_row(s, shown, y + 1 + (int)i, s->rows[s->first + i]);
	if (!s->row_count && room)
		mvaddstr(y + 1, 0, s->t->filter[0] ? "no VM has that in its name" : "no VM runs; `brim run` "
			 "starts one");
}

/* ---- the foot, the help ------------------------------------------------------------------------ */

static void draw_foot(const struct screen *s)
{
	move(LINES - 1, 0);
	if (s->editing)
		printw("filter by name: %s_  (Enter: done, Esc: all)", s->t->filter);
	else if (s->t->filter[0])
		printw("filter '%s' (Esc: all)  q quit  ? help  every %lus", s->t->filter,
		       (unsigned long)s->interval_s);
	else
		printw("q quit  ? help  / filter  < > sort  r reverse  g graph  every %lus",
		       (unsigned long)s->interval_s);
}

static void draw_help(void)
{
	static const char *const keys[] = {
		"q  leave   ?  this page   g  graph   up down PgUp PgDn Home End  select a VM",
		"/  only VMs with a text in their name; Esc: all again     space  freeze",
		"< >  sort by the column before or behind; r: the other way round",
		"+ -  sample less often, more often",
	};
	int y = 0;

	attron(A_BOLD);
	mvaddstr(y++, 0, "brim top: keys");
	attroff(A_BOLD);
	for (size_t i = 0; i < ARRAY_LEN(keys); i++)
		mvaddstr(y++, 2, keys[i]);
	attron(A_BOLD);
	mvaddstr(y++, 0, "Columns, and the key that sorts by them");
	attroff(A_BOLD);
	for (unsigned i = 0; i < top_column_count && y < LINES; i++, y++)
		mvprintw(y, 2, "%c  %-8s %.*s", top_columns[i].letter, top_columns[i].title,
			 COLS > 16 ? COLS - 16 : 0, top_columns[i].help);
}

/* ---- all of it ------------------------------------------------------------------------------- */

static void draw_all(struct screen *s)
{
	int lines = LINES - HEAD_LINES - 1, graph = 0;

	if (s->graph && s->row_count && lines - GRAPH_LINES >= ROWS_LEAST)
		graph = GRAPH_LINES;
	draw_head(s);
	draw_table(s, HEAD_LINES - 1, lines - graph + 1);
	if (graph)
		top_graph(s->rows[selected_row(s)], LINES - 1 - graph, graph, COLS - 1);
	draw_foot(s);
}

static void draw(struct screen *s)
{
	erase();
	s->rows = top_ordered(s->t, &s->row_count);
	if (selected_row(s) == 0)
		select_row(s, 0); /* what was selected may be gone */
	if (s->help)
		draw_help();
	else
		draw_all(s);
	free(s->rows);
	s->rows = NULL;
	refresh();
}

/* ---- keys ---------------------------------------------------------------------------------------- */

static void move_selection(struct screen *s, int by)
{
	long at;

	s->rows = top_ordered(s->t, &s->row_count);
	at = (long)selected_row(s) + by;
	if (at < 0)
		at = 0;
	if (at >= (long)s->row_count)
		at = (long)s->row_count - 1;
	if (at >= 0)
		select_row(s, (size_t)at);
	free(s->rows);
	s->rows = NULL;
}

static void edit(struct screen *s, int key)
{
	size_t n = strlen(s->t->filter);

	if (key == KEY_ESC)
		s->t->filter[0] = '\0';
	if (key == KEY_ESC || key == '\n' || key == KEY_ENTER)
		s->editing = false;
	else if ((key == KEY_BACKSPACE || key == 127 || key == '\b') && n)
		s->t->filter[n - 1] = '\0';
	else if (key > ' ' && key < 127 && n < RUN_NAME_MAX) {
		s->t->filter[n] = (char)key;
		s->t->filter[n + 1] = '\0';
	}
}

static void sort_key(struct screen *s, int key)
{
	for (unsigned i = 0; i < top_column_count; i++)
		if (top_columns[i].letter == key)
			s->t->sort = i;
}

static void move_key(struct screen *s, int key)
{
	int page = LINES > 12 ? LINES - 12 : 1;

	if (key == KEY_UP || key == KEY_DOWN)
		move_selection(s, key == KEY_UP ? -1 : 1);
	else if (key == KEY_PPAGE || key == KEY_NPAGE)
		move_selection(s, key == KEY_PPAGE ? -page : page);
	else if (key == KEY_HOME || key == KEY_END)
		move_selection(s, key == KEY_HOME ? -100000 : 100000);
	else
		sort_key(s, key);
}

/* False: leave. */
static bool press(struct screen *s, int key)
{
	switch (key) {
	case 'q':
		return false;
	case '?':
		s->help = !s->help;
		break;
	case KEY_ESC:
		s->t->filter[0] = '\0';
		s->help = false;
		break;
	case '/':
		s->editing = true;
		break;
	case 'g':
		s->graph = !s->graph;
		break;
	case 'r':
		s->t->is_reversed = !s->t->is_reversed;
		break;
	case ' ':
		s->frozen = !s->frozen;
		break;
	case '<':
	case '>':
		s->t->sort = (s->t->sort + (key == '>' ? 1 : top_column_count - 1)) % top_column_count;
		break;
	case '+':
		s->interval_s += s->interval_s < 60;
		break;
	case '-':
		s->interval_s -= s->interval_s > 1;
		break;
	default:
		move_key(s, key);
	}
	return true;
}

static bool take_keys(struct screen *s)
{
	bool stay = true;
	int key;

	while (stay && (key = getch()) != ERR) {
		if (s->editing && key != KEY_RESIZE)
			edit(s, key);
		else
			stay = press(s, key);
	}
	return stay;
}

/* ---- life ------------------------------------------------------------------------------------------ */

/* False: leave. */
static bool take_signal(struct screen *s)
{
	int sig = signals_next(&s->signals);

	if (sig == SIGTSTP) {
		endwin();
		raise(SIGSTOP);
		clearok(stdscr, TRUE); /* whatever is on the screen now */
		return true;
	}
	return sig == 0;
}

static int wait_ms(uint64_t until_ns)
{
	uint64_t now = now_ns();

	return until_ns > now ? (int)((until_ns - now) / 1000000) + 1 : 0;
}

static int live(struct screen *s, struct err *e)
{
	struct pollfd p[] = { { .fd = STDIN_FILENO, .events = POLLIN },
			      { .fd = s->signals.fd, .events = POLLIN } };
	uint64_t next_ns = 0;
	bool stay = true;
	int rc = 0;

	while (stay && !rc) {
		if (now_ns() >= next_ns) {
			rc = s->frozen ? 0 : top_sample(s->t, e);
			/* the second one soon: only then there are rates */
			next_ns = now_ns() + (s->t->samples < 2 ? 1 : s->interval_s) * 1000000000;
		}
		if (!rc)
			draw(s);
		/* a change of size interrupts it, and is a key then */
		if (!rc && poll(p, 2, wait_ms(next_ns)) > 0 && p[0].revents & (POLLHUP | POLLERR))
			stay = false;
		stay = stay && take_signal(s) && take_keys(s);
	}
	return rc;
}

/* What curses would write at the end, for ends that it does not see. */
static const char *way_back(void)
{
	static char text[128];
	static const char *const names[] = { "sgr0", "cnorm", "rmkx", "rmcup" };

	for (size_t i = 0; i < ARRAY_LEN(names); i++) {
		const char *t = tigetstr(names[i]);
		size_t used = strlen(text);

		if (t && t != (const char *)-1 && used + strlen(t) < sizeof(text))
			memcpy(text + used, t, strlen(t) + 1);
	}
	return text;
}

static int open_screen(struct screen *s, struct err *e)
{
	int rc = tty_save(STDIN_FILENO, NULL, e);

	if (rc)
		return rc;
	setlocale(LC_CTYPE, ""); /* for names of terminals and their marks; numbers stay */
	s->scr = newterm(NULL, stdout, stdin);
	if (!s->scr)
		return err_set(e, -ENOTTY, "top: this terminal (TERM=%s) is not known; --batch prints what "
			       "it would show", getenv("TERM") ? getenv("TERM") : "");
	tty_leave(way_back());
	cbreak();
	noecho();
	keypad(stdscr, TRUE);
	nodelay(stdscr, TRUE);
	set_escdelay(50);
	curs_set(0);
	set_colours(s);
	return 0;
}

int top_screen(struct top *t, const struct top_screen_config *cfg, struct err *e)
{
	struct screen s = { .t = t, .interval_s = cfg->interval_s, .graph = true };
	int rc = signals_init(&s.signals, e);

	if (rc)
		return rc;
	rc = open_screen(&s, e);
	if (!rc)
		rc = live(&s, e);
	if (s.scr) {
		endwin();
		delscreen(s.scr);
	}
	tty_leave(NULL); /* curses has said it */
	tty_restore();
	signals_fini(&s.signals);
	return rc;
}
