/*
 * Dependencies between VMs: the names after which each starts, as indexes, and an order in
 * which all can be started: the file's, but for those that must wait.
 *
 *   a VM:  WHITE (not looked at) ──visit──► GREY (its dependencies are) ──► BLACK (has its place)
 *   a GREY one met again is a cycle.
 *
 * One thread.  The depth of visit() is at most the number of VMs, HOST_VMS_MAX.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "host/config/internal.h"

enum colour { WHITE, GREY, BLACK };

struct order {
	struct load *l;
	const struct vm_list *list;
	uint8_t *colours;
	bool *marks;     /* VMs that the one looked at waits for */
	uint32_t *stack; /* grey ones */
	size_t depth, placed;
};

/* ---- names --------------------------------------------------------------------------------- */

static void unknown_name(struct order *o, const struct node *n, struct place *p)
{
	const struct host_config *cfg = o->l->cfg;
	const char **names = calloc(2 * cfg->vm_count + 1, sizeof(*names)), *near = NULL;

	for (size_t i = 0; i < cfg->vm_count && names; i++) {
		names[2 * i] = cfg->vms[i].name;
		names[2 * i + 1] = cfg->vms[i].group;
	}
	if (names)
		near = nearest(n->text, names, 2 * cfg->vm_count);
	error_add(&o->l->errs, p, "there is no VM '%.64s', expected %s%s", n->text,
		  near ? "perhaps " : "the name of one", near ? near : "");
	free(names);
}

/* Its own name, or that of several alike. */
static void mark_name(struct order *o, const struct vm_item *v, const struct node *n)
{
	const struct host_config *cfg = o->l->cfg;
	char path[128];
	struct place p = vm_place(v, "after", path);
	bool is_known = false;

	p.line = n->line;
	p.column = n->column;
	if (n->kind != NODE_SCALAR) {
		error_add(&o->l->errs, &p, "not a name, expected one of a VM");
		return;
	}
	for (size_t i = 0; i < cfg->vm_count; i++)
		if (strcmp(cfg->vms[i].name, n->text) == 0 || strcmp(cfg->vms[i].group, n->text) == 0)
			o->marks[i] = is_known = true;
	for (size_t i = 0; i < o->list->count && !is_known; i++)
		is_known = o->list->items[i].name && strcmp(o->list->items[i].name, n->text) == 0;
	if (!is_known)
		unknown_name(o, n, &p);
}

static void mark_names(struct order *o, const struct vm_item *v, const struct node *n)
{
	char path[128];
	struct place p = vm_place(v, "after", path);

	if (n->kind != NODE_LIST) {
		mark_name(o, v, n);
		return;
	}
	if (n->count > HOST_AFTER_MAX) {
		error_add(&o->l->errs, &p, "%zu names, expected at most %u", n->count, HOST_AFTER_MAX);
		return;
	}
	for (const struct item *it = n->first; it; it = it->next)
		mark_name(o, v, it->value);
}

static void keep_marks(struct order *o, struct host_vm *vm)
{
	size_t n = 0;

	for (size_t i = 0; i < o->l->cfg->vm_count; i++)
		n += o->marks[i];
	vm->after = arena_alloc(o->l->arena, n * sizeof(*vm->after));
	o->l->errs.out_of_memory |= !vm->after;
	for (uint32_t i = 0; i < o->l->cfg->vm_count && vm->after; i++)
		if (o->marks[i])
			vm->after[vm->after_count++] = i;
}

static void read_names(struct order *o, size_t i)
{
	const struct vm_item *v = o->list->of[i];
	const struct found *f = &v->found[section_row(SECTION_VM, "after")];
	struct host_vm *vm = &o->l->cfg->vms[i];

	if (!f->key)
		return;
	vm->origin[section_row(SECTION_VM, "after")] =
		(struct host_origin){ HOST_FROM_OWN, (uint16_t)f->key->column, f->key->line };
	memset(o->marks, 0, o->l->cfg->vm_count * sizeof(*o->marks));
	mark_names(o, v, f->value);
	keep_marks(o, vm);
}

/* ---- cycles ---------------------------------------------------------------------------------- */

static void complain(struct order *o, uint32_t again)
{
	const struct host_vm *vms = o->l->cfg->vms;
	char chain[256] = "", path[128];
	struct place p = vm_place(o->list->of[o->stack[o->depth - 1]], "after", path);
	size_t at = o->depth, used = 0;

	if (errors_unwanted(&o->l->errs, &p))
		return; /* of several alike, one is enough */
	while (at > 0 && o->stack[at - 1] != again)
		at--;
	for (at -= at > 0; at < o->depth && used < sizeof(chain) - 70; at++)
		used += (size_t)snprintf(chain + used, sizeof(chain) - used, "%s -> ",
					 vms[o->stack[at]].group);
	error_add(&o->l->errs, &p, "VMs that wait for each other: %s%s%s, expected no circle", chain,
		  at < o->depth ? "... -> " : "", vms[again].group);
}

static void visit(struct order *o, uint32_t i)
{
	const struct host_vm *vm = &o->l->cfg->vms[i];

	o->colours[i] = GREY;
	o->stack[o->depth++] = i;
	for (size_t d = 0; d < vm->after_count; d++) {
		if (o->colours[vm->after[d]] == GREY)
			complain(o, vm->after[d]);
		else if (o->colours[vm->after[d]] == WHITE)
			visit(o, vm->after[d]);
	}
	o->depth--;
	o->colours[i] = BLACK;
	o->l->cfg->start_order[o->placed++] = i;
}

void order_load(struct load *l, const struct vm_list *list)
{
	size_t n = l->cfg->vm_count;
	struct order o = { .l = l, .list = list, .colours = calloc(n + 1, 1),
			   .marks = calloc(n + 1, sizeof(bool)), .stack = calloc(n + 1, sizeof(uint32_t)) };

	if (o.colours && o.marks && o.stack) {
		for (size_t i = 0; i < n; i++)
			read_names(&o, i);
		for (uint32_t i = 0; i < n; i++)
			if (o.colours[i] == WHITE)
				visit(&o, i);
	} else {
		l->errs.out_of_memory = true;
	}
	free(o.colours);
	free(o.marks);
	free(o.stack);
}
