/*
 * The list of VMs: count, defaults, and what the keys of one VM must agree on.
 *
 * One thread.  An entry is looked up once, and its values read once for each of its VMs, as
 * `${name}` and `${n}` differ.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "host/config/internal.h"

/* ---- entries ------------------------------------------------------------------------------- */

struct place vm_place(const struct vm_item *v, const char *key, char *path)
{
	const struct found *f = &v->found[section_row(SECTION_VM, key)];
	const struct node *n = f->value ? f->value : v->node;

	snprintf(path, 128, "%s.%s", v->path, key);
	return (struct place){ n->line, n->column, path };
}

/* One row of an entry, before its VMs are made. */
static int read_row(struct load *l, struct vm_item *v, const char *key, void *field)
{
	size_t row = section_row(SECTION_VM, key);
	struct config_key k = keys_vm[row];
	const struct node *n = v->found[row].value;
	struct scope scope = { 0 };
	char path[128];
	struct value_at at = { .key = &k, .scope = &scope, .place = vm_place(v, key, path) };

	k.bytes = sizeof(uint64_t);
	return n ? value_read(l, &at, n, field) : -ENOENT;
}

static void missing_name(struct load *l, const struct vm_item *v)
{
	struct place p = { v->node->line, v->node->column, v->path };

	error_add(&l->errs, &p, "the VM has no name, expected `name: NAME`");
}

static void read_item(struct load *l, struct vm_item *v, const struct node *n, size_t number)
{
	struct place p = { n->line, n->column, v->path };
	const struct node *name;
	uint64_t count = 1;

	v->node = n;
	snprintf(v->path, sizeof(v->path), "vms[%zu]", number);
	if (n->kind != NODE_MAP) {
		error_add(&l->errs, &p, "not a mapping, expected one that begins with '- name: NAME'");
		return;
	}
	name = NULL;
	for (const struct item *it = n->first; it && !name; it = it->next)
		if (it->key->kind == NODE_SCALAR && strcmp(it->key->text, "name") == 0)
			name = it->value;
	if (name && name->kind == NODE_SCALAR && *name->text)
		snprintf(v->path, sizeof(v->path), "vms.%.60s", name->text);
	load_collect(l, n, SECTION_VM, v->path, v->found);
	if (!v->found[section_row(SECTION_VM, "name")].key)
		missing_name(l, v);
	if (read_row(l, v, "name", &v->name))
		v->name = NULL;
	v->has_count = v->found[section_row(SECTION_VM, "count")].key != NULL;
	read_row(l, v, "count", &count);
	v->count = (size_t)count;
}

static bool read_items(struct load *l, const struct node *vms, struct vm_list *list)
{
	size_t total = 0;

	list->items = arena_alloc(l->arena, sizeof(*list->items) * vms->count);
	l->errs.out_of_memory |= !list->items;
	for (const struct item *it = vms->first; it && list->items; it = it->next) {
		struct vm_item *v = &list->items[list->count];
		struct place p = { it->value->line, it->value->column, "vms" };

		if (!load_working(l, it->value))
			return false;
		read_item(l, v, it->value, list->count++);
		v->first = total;
		total += v->count;
		if (total > HOST_VMS_MAX) {
			error_add(&l->errs, &p, "%zu VMs up to here, expected at most %u", total,
				  HOST_VMS_MAX);
			return false;
		}
	}
	l->cfg->vm_count = total;
	return list->items != NULL;
}

/* ---- one VM ------------------------------------------------------------------------------------- */

static const char *vm_name(struct load *l, const struct vm_item *v, unsigned number)
{
	char name[160], path[128];
	struct place p = vm_place(v, "name", path);

	snprintf(name, sizeof(name), v->has_count ? "%s-%u" : "%s", v->name ? v->name : "?", number);
	if (v->name && vm_name_check(name, NULL))
		error_add(&l->errs, &p, "'%s' is too long a name with its number, expected at most %d "
			  "characters", name, RUN_NAME_MAX);
	return arena_text(l->arena, name, strlen(name));
}

static void set_origin(struct host_vm *vm, const struct vm_item *v)
{
	size_t row = section_row(SECTION_VM, "name");
	const struct node *key = v->found[row].key;

	if (key)
		vm->origin[row] = (struct host_origin){ HOST_FROM_OWN, (uint16_t)key->column, key->line };
}

/* The file of a VM that names none. */
static const char *swap_file(struct load *l, const struct host_vm *vm)
{
	const struct host_host *h = &l->cfg->host;
	char path[PATH_MAX + 80];
	int n;

	if (vm->swap_path || !h->swap_count || !h->swaps[0].dir)
		return vm->swap_path;
	n = snprintf(path, sizeof(path), "%s/%s.swap", h->swaps[0].dir, vm->name);
	return arena_text(l->arena, path, n < PATH_MAX ? (size_t)n : 0);
}

static void read_vm(struct load *l, struct host_vm *vm, const struct vm_item *v,
		    const struct found *defaults)
{
	struct target t = { .section = SECTION_VM, .base = vm, .origin = vm->origin, .path = v->path,
			    .line = v->node->line, .column = v->node->column, .own = v->found,
			    .defaults = defaults, .scope = { .vm_name = vm->name, .vm_number = vm->number } };
	size_t memory = section_row(SECTION_VM, "memory"), name = section_row(SECTION_VM, "name");

	load_row(l, &t, memory);
	t.scope.memory_bytes = vm->memory_bytes;
	for (size_t i = 0; i < keys_vm_count; i++)
		if (keys_vm[i].bytes && i != memory && i != name)
			load_row(l, &t, i);
	vm->swap_path = vm->swap_enabled ? swap_file(l, vm) : NULL;
}

/* ---- what its keys must agree on ------------------------------------------------------------------ */

static void check_order(struct load *l, const struct vm_item *v, const char *low, const char *high,
			const uint64_t bytes[2])
{
	char path[128], a[32], b[32];
	struct place p;

	if (bytes[0] <= bytes[1])
		return;
	p = vm_place(v, v->found[section_row(SECTION_VM, low)].key ? low : high, path);
	error_add(&l->errs, &p, "%s is %s and %s is %s, expected %s not to be more than %s", low,
		  size_exact(a, sizeof(a), bytes[0]), high, size_exact(b, sizeof(b), bytes[1]), low, high);
}

static void check_sizes(struct load *l, const struct vm_item *v, const struct host_vm *vm)
{
	uint64_t m = vm->memory_bytes, most = vm->limit_bytes ? vm->limit_bytes : m;
	char path[128], text[32];
	struct place p = vm_place(v, "memory", path);

	if (m % HUGE_BYTES)
		error_add(&l->errs, &p, "%" PRIu64 " bytes, expected a multiple of %s", m,
			  size_format(text, sizeof(text), HUGE_BYTES));
	check_order(l, v, "limit", "memory", (uint64_t[]){ vm->limit_bytes, m });
	check_order(l, v, "reservation", vm->limit_bytes ? "limit" : "memory",
		    (uint64_t[]){ vm->reservation_bytes, most });
	check_order(l, v, "balloon.floor", "memory", (uint64_t[]){ vm->balloon_floor_bytes, m });
	check_order(l, v, "pool.cap", "memory", (uint64_t[]){ vm->pool_cap_bytes, m });
}

static void check_cmdline(struct load *l, const struct vm_item *v, const struct host_vm *vm)
{
	size_t n = strlen(vm->cmdline ? vm->cmdline : "") + 1 + strlen(vm->append ? vm->append : "");
	char path[128];
	struct place p = vm_place(v, "append", path);

	if (n >= VM_CMDLINE_MAX)
		error_add(&l->errs, &p, "the kernel's command line has %zu characters with it, expected at "
			  "most %u", n, VM_CMDLINE_MAX - 1);
}

/* VMs of one name, or of names that numbers make the same. */
static void check_names(struct load *l, const struct vm_list *list, size_t vm)
{
	const struct host_vm *vms = l->cfg->vms;
	char path[128];
	struct place p = vm_place(list->of[vm], "name", path);

	for (size_t i = 0; i < vm && list->of[vm]->name; i++)
		if (list->of[i] != list->of[vm] && strcmp(vms[i].name, vms[vm].name) == 0) {
			error_add(&l->errs, &p, "'%s' is the name of the VM of line %u, expected another",
				  vms[vm].name, list->of[i]->node->line);
			return;
		}
}

/* ---- all of them ------------------------------------------------------------------------------------- */

static void read_vms(struct load *l, struct vm_list *list, const struct found *defaults)
{
	struct host_vm *vm = l->cfg->vms;

	for (size_t i = 0; i < list->count; i++) {
		const struct vm_item *v = &list->items[i];

		for (size_t j = 0; j < v->count && v->node->kind == NODE_MAP; j++, vm++) {
			list->of[vm - l->cfg->vms] = v;
			vm->group = v->name ? v->name : "?";
			vm->number = v->has_count ? (unsigned)j + 1 : 0;
			vm->name = vm_name(l, v, vm->number);
			vm->line = v->node->line;
			set_origin(vm, v);
			if (!vm->name || !load_working(l, v->node))
				return;
			read_vm(l, vm, v, defaults);
			check_sizes(l, v, vm);
			check_cmdline(l, v, vm);
			check_names(l, list, (size_t)(vm - l->cfg->vms));
		}
	}
}

static void reject_own(struct load *l, const struct found *defaults)
{
	for (size_t i = 0; i < keys_vm_count; i++) {
		char path[128];
		struct place p = { .key = path };

		if (!keys_vm[i].own_only || !defaults[i].key)
			continue;
		p.line = defaults[i].key->line;
		p.column = defaults[i].key->column;
		snprintf(path, sizeof(path), "defaults.%s", keys_vm[i].name);
		error_add(&l->errs, &p, "a VM's own, expected in an entry of vms");
	}
}

/* Read once for themselves: they may be wrong where no VM uses them. */
static void read_defaults(struct load *l, const struct item *it, struct found found[HOST_KEYS_MAX])
{
	static const char example[] = "NAME-1";
	const struct node *n = it ? it->value : NULL;
	struct target t = { .section = SECTION_VM, .path = "defaults", .own = found, .is_trial = true,
			    .scope = { .vm_name = example, .vm_number = 1 } };
	struct place p = { n ? n->line : 0, n ? n->column : 0, "defaults" };

	memset(found, 0, sizeof(struct found) * HOST_KEYS_MAX);
	if (!n || (n->kind == NODE_SCALAR && n->is_plain && !*n->text))
		return;
	if (n->kind != NODE_MAP) {
		error_add(&l->errs, &p, "not a mapping, expected one with a VM's keys");
		return;
	}
	load_collect(l, n, SECTION_VM, "defaults", found);
	reject_own(l, found);
	t.base = arena_alloc(l->arena, sizeof(struct host_vm));
	l->errs.out_of_memory |= !t.base;
	if (!t.base)
		return;
	load_row(l, &t, section_row(SECTION_VM, "memory"));
	t.scope.memory_bytes = ((struct host_vm *)t.base)->memory_bytes;
	load_apply(l, &t);
}

static bool make_vms(struct load *l, struct vm_list *list)
{
	size_t n = l->cfg->vm_count;

	l->cfg->vms = arena_alloc(l->arena, n * sizeof(struct host_vm));
	list->of = arena_alloc(l->arena, n * sizeof(*list->of));
	l->cfg->start_order = arena_alloc(l->arena, n * sizeof(uint32_t));
	if (!l->cfg->vms || !list->of || !l->cfg->start_order)
		l->errs.out_of_memory = true;
	return !l->errs.out_of_memory;
}

void vms_load(struct load *l, const struct item *defaults, const struct item *vms)
{
	const struct node *n = vms ? vms->value : NULL;
	struct found found[HOST_KEYS_MAX];
	struct vm_list list = { 0 };

	read_defaults(l, defaults, found);
	if (!n || (n->kind == NODE_SCALAR && n->is_plain && !*n->text))
		return;
	if (n->kind != NODE_LIST) {
		struct place p = { n->line, n->column, "vms" };

		error_add(&l->errs, &p, "not a list, expected one: each VM begins with '- name: NAME'");
		return;
	}
	if (!read_items(l, n, &list) || !make_vms(l, &list))
		return;
	read_vms(l, &list, found);
	for (size_t i = 0; i < l->cfg->vm_count; i++)
		if (!list.of[i])
			return; /* an entry that is no mapping: said already */
	order_load(l, &list);
	clash_check(l, &list);
	room_check(l);
}
