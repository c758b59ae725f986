/*
 * A plan in sentences: each reason with its numbers, as a person would say it.
 */
#include "mm/policy/internal.h"

#include <stdio.h>
#include <string.h>

#define SIZE_TEXT 32

void why(struct now *w, struct policy_reason r)
{
	struct policy_vm_plan *p = w->plan;

	if (p->reason_count < POLICY_REASONS)
		p->reasons[p->reason_count++] = r;
}

/* 1234 ppm: "0.123 %". */
static const char *percent(char *buf, size_t len, uint64_t ppm)
{
	snprintf(buf, len, ppm < PCT ? "%.3f %%" : "%.1f %%", (double)ppm / (double)PCT);
	return buf;
}

enum number { NONE, BYTES, PERCENT, MS, PLAIN };

/* `%a`, `%b`, `%c` in the text are the reason's numbers, shown as what they are. */
static const struct {
	const char *text;
	enum number a, b, c;
} sentences[POLICY_WHY_COUNT] = {
	[POLICY_WHY_NONE] = { "nothing to say" },
	[POLICY_WHY_PLENTY] = { "memory is plentiful: it may hold all of its own" },
	[POLICY_WHY_ROOM] = { "nobody is short: %a of room to grow, by its shares", BYTES },
	[POLICY_WHY_TAKEN] = { "gives %a: at %b (thousandths of a MiB a share) and %c active, it pays the most for "
			       "its memory", BYTES, PLAIN, PERCENT },
	[POLICY_WHY_SHIELDED] = { "gives nothing: it holds no more than its reservation, %a", BYTES },
	[POLICY_WHY_WORKING_SET] = { "gives nothing: all it holds is in use, a working set of %a", BYTES },
	[POLICY_WHY_REMEMBERED] = { "gives nothing: less than %a has hurt before", BYTES },
	[POLICY_WHY_NO_MEANS] = { "gives nothing: no means that is allowed now has anything to take" },
	[POLICY_WHY_HURT_REFAULTS] = { "gets %a first: refaults of %b of its working set a minute, of %c agreed",
				       BYTES, PERCENT, PERCENT },
	[POLICY_WHY_HURT_STALL] = { "gets %a first: it waits for memory %b of the time, of %c agreed",
				    BYTES, PERCENT, PERCENT },
	[POLICY_WHY_UNDONE] = { "the last step hurt and is undone: not below %a for a while", BYTES },
	[POLICY_WHY_FAIR_SHARE] = { "is short, but holds what its shares give it: %a", BYTES },
	[POLICY_WHY_GROWING] = { "gets %a: it grows by %b a second", BYTES, BYTES },
	[POLICY_WHY_BALLOON] = { "balloon to %a: its guest says that it could do without %b", BYTES, BYTES },
	[POLICY_WHY_BALLOON_SHORT] = { "balloon to zero at once: its guest has %a of %b left", BYTES, BYTES },
	[POLICY_WHY_BALLOON_REST] = { "no balloon for %a: its guest was short of memory", MS },
	[POLICY_WHY_BALLOON_SILENT] = { "its balloon stays at %a of %b for %c: others do its part", BYTES, BYTES,
					MS },
	[POLICY_WHY_BALLOON_GIVEN] = { "balloon down to %a: there is memory for it", BYTES },
	[POLICY_WHY_PACKED] = { "%a of that by packing; %b is cold", BYTES, BYTES },
	[POLICY_WHY_STUCK] = { "%a was asked for and does not come: others do its part", BYTES },
	[POLICY_WHY_STOPPED] = { "stands still: the host has no memory left, and its shares (%a) are the least",
				 PLAIN },
	[POLICY_WHY_RESUMED] = { "runs again" },
};

static void number_text(char *buf, size_t len, enum number kind, uint64_t v)
{
	switch (kind) {
	case BYTES:
		size_format(buf, len, v);
		break;
	case PERCENT:
		percent(buf, len, v);
		break;
	case MS:
		snprintf(buf, len, "%.1f s", (double)v / 1000.0);
		break;
	default:
		snprintf(buf, len, "%" PRIu64, v);
	}
}

const char *policy_reason_text(const struct policy_reason *r, char *buf, size_t len)
{
	unsigned i = r->why < POLICY_WHY_COUNT ? r->why : POLICY_WHY_NONE;
	char number[3][SIZE_TEXT];
	size_t at = 0;

	number_text(number[0], SIZE_TEXT, sentences[i].a, r->a);
	number_text(number[1], SIZE_TEXT, sentences[i].b, r->b);
	number_text(number[2], SIZE_TEXT, sentences[i].c, r->c);
	for (const char *t = sentences[i].text; *t && at + 1 < len; t++) {
		if (t[0] == '%' && t[1] >= 'a' && t[1] <= 'c')
			for (const char *n = number[*++t - 'a']; *n && at + 1 < len; n++)
				buf[at++] = *n;
		else
			buf[at++] = *t;
	}
	if (len > 0)
		buf[at] = 0;
	return buf;
}

const char *policy_host_text(const struct policy_plan *p, char *buf, size_t len)
{
	static const char *const because[] = {
		[POLICY_HOST_FREE] = "",
		[POLICY_HOST_PSI] = "; the kernel says that programs wait for memory",
		[POLICY_HOST_CLAIMS] = "; VMs below their share need more than is free",
		[POLICY_HOST_RESERVATIONS] = "; reservations lack more than is free",
	};
	char free_text[SIZE_TEXT], room[SIZE_TEXT], goal[SIZE_TEXT], need[SIZE_TEXT];

	snprintf(buf, len, "%s: %s free, %s of it head room for what can be asked back; ",
		 policy_state_name(p->state), size_format(free_text, sizeof(free_text), p->free_bytes),
		 size_format(room, sizeof(room), p->head_room_bytes));
	size_format(goal, sizeof(goal), p->goal_bytes);
	size_format(need, sizeof(need), p->need_bytes);
	if (p->need_bytes)
		snprintf(buf + strlen(buf), len - strlen(buf), "%s are wanted free, %s are still to be taken%s",
			 goal, need, because[p->why]);
	else
		snprintf(buf + strlen(buf), len - strlen(buf), "nothing is to be taken%s", because[p->why]);
	return buf;
}

static void explain_vm(FILE *out, const struct policy_vm_view *v, const struct policy_vm_plan *p)
{
	char held[SIZE_TEXT], set[SIZE_TEXT], limit[SIZE_TEXT], fair[SIZE_TEXT], text[256];

	fprintf(out, "%s: holds %s, working set %s, fair share %s, limit %s\n", v->name ? v->name : "?",
		size_format(held, sizeof(held), p->held_bytes),
		size_format(set, sizeof(set), p->working_set_bytes),
		size_format(fair, sizeof(fair), p->fair_bytes),
		p->limit_bytes ? size_format(limit, sizeof(limit), p->limit_bytes) : "none");
	for (unsigned i = 0; i < p->reason_count; i++)
		fprintf(out, "    %s\n", policy_reason_text(&p->reasons[i], text, sizeof(text)));
	if (p->refault_missed_ms || p->stall_missed_ms)
		fprintf(out, "    contracts missed: refaults for %.1f s, stall for %.1f s\n",
			(double)p->refault_missed_ms / 1000.0, (double)p->stall_missed_ms / 1000.0);
}

void policy_explain(FILE *out, const struct policy_views *v, const struct policy_plan *p)
{
	char text[512];

	fprintf(out, "%s\n", policy_host_text(p, text, sizeof(text)));
	for (size_t i = 0; i < v->n; i++)
		explain_vm(out, &v->vms[i], &p->vms[i]);
}
