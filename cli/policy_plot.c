/*
 * A simulated run as SVG: for each rule, the memory that its VMs held, one on top of the
 * other, below a line of what there is; under that the host's state, and the worst stall.
 *
 * Text only, no fonts or colours from elsewhere; at most SAMPLES_MOST moments, since more
 * are not seen in a picture of this width.
 */
#include "cli/policy_plot.h"

#include <inttypes.h>
#include <stdlib.h>

#define SAMPLES_MOST 400u
#define WIDTH 900.0
#define LEFT 70.0
#define RIGHT 110.0
#define AREA_HEIGHT 150.0
#define STATE_HEIGHT 8.0
#define STALL_HEIGHT 50.0
#define PANEL_HEIGHT (AREA_HEIGHT + STATE_HEIGHT + STALL_HEIGHT + 70.0)
#define TITLE_HEIGHT 16.0

/* ---- collecting ---------------------------------------------------------------------- */

void plot_add(struct plot *p, const struct policy_views *v, const struct policy_plan *plan)
{
	struct plot_sample *s, *more;

	if (p->every_ms == 0)
		p->every_ms = p->trace->end_ms / SAMPLES_MOST + 1;
	if (p->samples && v->host->now_ms < p->sample[p->samples - 1].t_ms + p->every_ms)
		return;
	if (p->samples == p->room) {
		more = realloc(p->sample, (p->room + SAMPLES_MOST) * sizeof(*more));
		if (!more)
			return;
		p->sample = more;
		p->room += SAMPLES_MOST;
	}
	s = &p->sample[p->samples++];
	*s = (struct plot_sample){ .t_ms = v->host->now_ms, .state = plan->state };
	for (size_t i = 0; i < v->n; i++) {
		const struct policy_vm_view *vm = &v->vms[i];
		size_t at = vm->id - 1; /* the model numbers them so */

		s->held_bytes[at] = vm->resident_bytes + vm->staged_bytes + vm->pool_bytes;
		s->stall_us[at] = vm->stall_us / (vm->cpus ? vm->cpus : 1);
	}
}

void plot_fini(struct plot *p)
{
	free(p->sample);
	p->sample = NULL;
	p->samples = p->room = 0;
}

/* ---- drawing -------------------------------------------------------------------------- */

struct frame {
	FILE *out;
	const struct plot *p;
	double top;
	double bytes_most;
};

static const char *const state_colours[POLICY_STATES] = {
	"#d9ead3", "#fff2cc", "#f9cb9c", "#e06666", "#660000",
};

static double x_of(const struct frame *f, uint64_t t_ms)
{
	double end = f->p->trace->end_ms ? (double)f->p->trace->end_ms : 1.0;

	return LEFT + (WIDTH - LEFT - RIGHT) * (double)t_ms / end;
}

static double y_of(const struct frame *f, double bytes)
{
	return f->top + AREA_HEIGHT * (1.0 - bytes / f->bytes_most);
}

static double stacked(const struct plot_sample *s, unsigned vms)
{
	double sum = 0;

	for (unsigned i = 0; i < vms; i++)
		sum += (double)s->held_bytes[i];
	return sum;
}

/* One VM's band: along the top, and back along the bottom. */
static void band(const struct frame *f, unsigned vm)
{
	const struct plot *p = f->p;

	fprintf(f->out, "<polygon fill=\"hsl(%u,45%%,%u%%)\" points=\"",
		200 + vm * 137 % 100, vm % 2 ? 62u : 72u);
	for (size_t i = 0; i < p->samples; i++)
		fprintf(f->out, "%.1f,%.1f ", x_of(f, p->sample[i].t_ms),
			y_of(f, stacked(&p->sample[i], vm + 1)));
	for (size_t i = p->samples; i > 0; i--)
		fprintf(f->out, "%.1f,%.1f ", x_of(f, p->sample[i - 1].t_ms),
			y_of(f, stacked(&p->sample[i - 1], vm)));
	fprintf(f->out, "\"><title>%s</title></polygon>\n", p->trace->vm[vm].name);
}

static void level(const struct frame *f, uint64_t bytes, const char *label)
{
	double y = y_of(f, (double)bytes);
	char size[32];

	fprintf(f->out, "<line x1=\"%.1f\" x2=\"%.1f\" y1=\"%.1f\" y2=\"%.1f\" stroke=\"#a00\" "
		"stroke-dasharray=\"4 3\"/>\n", LEFT, WIDTH - RIGHT, y, y);
	fprintf(f->out, "<text x=\"%.1f\" y=\"%.1f\">%s %s</text>\n", WIDTH - RIGHT + 5, y + 4,
		size_format(size, sizeof(size), bytes), label);
}

static void states(const struct frame *f)
{
	const struct plot *p = f->p;
	double y = f->top + AREA_HEIGHT + 3;

	for (size_t i = 0; i < p->samples; i++) {
		uint64_t to = i + 1 < p->samples ? p->sample[i + 1].t_ms : p->trace->end_ms;
		double x = x_of(f, p->sample[i].t_ms);

		fprintf(f->out, "<rect x=\"%.1f\" y=\"%.1f\" width=\"%.2f\" height=\"%.1f\" fill=\"%s\"/>\n", x, y,
			x_of(f, to) - x + 0.3, STATE_HEIGHT, state_colours[p->sample[i].state % POLICY_STATES]);
	}
	fprintf(f->out, "<text x=\"%.1f\" y=\"%.1f\">state</text>\n", LEFT - 40, y + 9);
}

static double worst_stall(const struct plot *p, size_t i)
{
	const struct plot_sample *a = &p->sample[i - 1], *b = &p->sample[i];
	double us = (double)(b->t_ms - a->t_ms) * 1000.0, worst = 0;

	for (unsigned v = 0; v < p->trace->vms; v++) {
		double part = b->stall_us[v] > a->stall_us[v] ? (double)(b->stall_us[v] - a->stall_us[v]) / us
							      : 0;

		worst = part > worst ? part : worst;
	}
	return worst > 1 ? 1 : worst;
}

static void stalls(const struct frame *f)
{
	double bottom = f->top + AREA_HEIGHT + STATE_HEIGHT + STALL_HEIGHT + 8;

	fprintf(f->out, "<text x=\"%.1f\" y=\"%.1f\">worst stall</text>\n<polyline fill=\"none\" "
		"stroke=\"#603\" points=\"", LEFT - 66, bottom - STALL_HEIGHT / 2 + 4);
	for (size_t i = 1; i < f->p->samples; i++)
		fprintf(f->out, "%.1f,%.1f ", x_of(f, f->p->sample[i].t_ms),
			bottom - STALL_HEIGHT * worst_stall(f->p, i));
	fprintf(f->out, "\"/>\n<text x=\"%.1f\" y=\"%.1f\">100 %%</text>\n<line x1=\"%.1f\" x2=\"%.1f\" y1=\"%.1f\" "
		"y2=\"%.1f\" stroke=\"#999\"/>\n", WIDTH - RIGHT + 5, bottom - STALL_HEIGHT + 8, LEFT,
		WIDTH - RIGHT, bottom, bottom);
}

/* Some six marks, at whole steps of the time. */
static void times(const struct frame *f)
{
	static const uint64_t steps_s[] = { 1, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 14400, 86400 };
	double y = f->top + AREA_HEIGHT + STATE_HEIGHT + STALL_HEIGHT + 22;
	size_t k = 0;

	while (k + 1 < ARRAY_LEN(steps_s) && f->p->trace->end_ms / (steps_s[k] * 1000) > 8)
		k++;
	for (uint64_t s = 0; s * 1000 <= f->p->trace->end_ms && s < 100 * steps_s[k]; s += steps_s[k])
		fprintf(f->out, "<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"middle\">%" PRIu64 " s</text>\n",
			x_of(f, s * 1000), y, s);
}

static void panel(const struct frame *f)
{
	const struct policy_trace *t = f->p->trace;

	fprintf(f->out, "<text x=\"%.1f\" y=\"%.1f\" font-weight=\"bold\">%s: %s</text>\n", LEFT, f->top - 6,
		f->p->rule->name, f->p->rule->about);
	for (unsigned v = 0; v < t->vms; v++)
		band(f, v);
	fprintf(f->out, "<rect x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"%.1f\" fill=\"none\" "
		"stroke=\"#999\"/>\n", LEFT, f->top, WIDTH - LEFT - RIGHT, AREA_HEIGHT);
	fprintf(f->out, "<text x=\"%.1f\" y=\"%.1f\">held</text>\n", LEFT - 40, f->top + AREA_HEIGHT / 2);
	level(f, t->host.usable_bytes, "usable");
	states(f);
	stalls(f);
	times(f);
}

void plot_svg(FILE *out, const struct plot *p, size_t n)
{
	double height = TITLE_HEIGHT + PANEL_HEIGHT * (double)n;

	fprintf(out, "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %.0f %.0f\" font-family=\"sans-serif\" "
		"font-size=\"11\">\n<rect width=\"100%%\" height=\"100%%\" fill=\"white\"/>\n", WIDTH, height);
	for (size_t i = 0; i < n; i++) {
		struct frame f = { .out = out, .p = &p[i], .top = TITLE_HEIGHT + PANEL_HEIGHT * (double)i + 10 };

		f.bytes_most = (double)p[i].trace->host.physical_bytes * 1.05;
		for (size_t k = 0; k < p[i].samples; k++)
			if (stacked(&p[i].sample[k], p[i].trace->vms) > f.bytes_most)
				f.bytes_most = stacked(&p[i].sample[k], p[i].trace->vms);
		panel(&f);
	}
	fputs("</svg>\n", out);
}
