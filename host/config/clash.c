/*
 * What only one VM may have: a disk it writes to, a swap file, an interface, an address.  And what
 * they have together: the room of a directory for swap files.
 *
 * One thread; no state.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "host/config/internal.h"

enum use_kind { USE_FILE, USE_TAP, USE_MAC };

struct use {
	enum use_kind kind;
	bool is_shareable; /* a disk that is only read */
	const char *text, *key;
	uint32_t vm;
};

static int by_text(const void *a, const void *b)
{
	const struct use *x = a, *y = b;
	int order;

	if (x->kind != y->kind)
		return x->kind < y->kind ? -1 : 1;
	order = x->kind == USE_MAC ? strcasecmp(x->text, y->text) : strcmp(x->text, y->text);
	if (order)
		return order;
	return x->vm < y->vm ? -1 : x->vm > y->vm;
}

static bool same(const struct use *a, const struct use *b)
{
	return a->kind == b->kind &&
	       (a->kind == USE_MAC ? strcasecmp(a->text, b->text) : strcmp(a->text, b->text)) == 0;
}

static void complain(struct load *l, const struct vm_list *list, const struct use *a,
		     const struct use *b)
{
	static const char *const whats[] = { [USE_FILE] = "file", [USE_TAP] = "interface",
					     [USE_MAC] = "address" };
	const char *but = strcmp(b->key, "disks") == 0 ? ", or readonly in all" : "";
	const struct vm_item *v = list->of[b->vm];
	char path[128];
	struct place p = vm_place(v, b->key, path);

	if (a->vm == b->vm)
		error_add(&l->errs, &p, "the %s %.200s is there twice, expected once%s", whats[a->kind], a->text,
			  but);
	else if (list->of[a->vm] == v)
		error_add(&l->errs, &p, "all %zu VMs have the %s %.160s, expected ${name} or ${n} in it%s",
			  v->count, whats[a->kind], a->text, but);
	else
		error_add(&l->errs, &p, "the %s %.160s is that of VM '%.64s', too, expected one of its "
			  "own%s", whats[a->kind], a->text, l->cfg->vms[a->vm].name, but);
}

/* What a VM lacks, because it was wrong, is nobody's. */
static void put(struct use *u, size_t *n, struct use use)
{
	if (use.text)
		u[(*n)++] = use;
}

static size_t uses_of(const struct host_config *cfg, uint32_t i, struct use *u)
{
	const struct host_vm *vm = &cfg->vms[i];
	size_t n = 0;

	for (size_t d = 0; d < vm->disk_count; d++)
		put(u, &n, (struct use){ USE_FILE, vm->disks[d].readonly, vm->disks[d].path, "disks", i });
	put(u, &n, (struct use){ USE_FILE, false, vm->swap_path, "swap.path", i });
	for (size_t d = 0; d < vm->net_count; d++) {
		put(u, &n, (struct use){ USE_TAP, false, vm->nets[d].tap, "nets", i });
		put(u, &n, (struct use){ USE_MAC, false, vm->nets[d].mac, "nets", i });
	}
	return n;
}

void clash_check(struct load *l, const struct vm_list *list)
{
	const struct host_config *cfg = l->cfg;
	size_t most = VM_MAX_DISKS + 1 + 2 * VM_MAX_NETS, n = 0, first = 0;
	struct use *u = calloc(cfg->vm_count ? cfg->vm_count : 1, most * sizeof(*u));

	l->errs.out_of_memory |= !u;
	for (uint32_t i = 0; i < cfg->vm_count && u; i++)
		n += uses_of(cfg, i, u + n);
	if (n)
		qsort(u, n, sizeof(*u), by_text);
	for (size_t i = 1; i < n; i++) {
		if (!same(&u[first], &u[i]))
			first = i;
		else if (!u[first].is_shareable || !u[i].is_shareable)
			complain(l, list, &u[first], &u[i]);
	}
	free(u);
}

/* ---- room ------------------------------------------------------------------------------ */

/* Whether the file is in the directory itself. */
static bool is_in(const char *path, const char *dir)
{
	size_t n = strlen(dir);

	return strncmp(path, dir, n) == 0 && path[n] == '/' && !strchr(path + n + 1, '/');
}

static uint64_t room_taken(const struct host_config *cfg, const char *dir)
{
	uint64_t bytes = 0;

	for (size_t i = 0; i < cfg->vm_count; i++) {
		const struct host_vm *vm = &cfg->vms[i];

		if (vm->swap_path && is_in(vm->swap_path, dir))
			bytes += vm->swap_size_bytes ? vm->swap_size_bytes
						     : vm->memory_bytes + vm->memory_bytes / 8;
	}
	return bytes;
}

void room_check(struct load *l)
{
	const struct host_host *h = &l->cfg->host;
	const struct host_origin *o = &h->origin[section_row(SECTION_HOST, "swap")];
	char key[64], need[32], have[32];

	for (size_t i = 0; i < h->swap_count; i++) {
		const struct host_swap *s = &h->swaps[i];
		struct place p = { o->line, o->column, key };
		uint64_t bytes = s->dir && s->size_bytes ? room_taken(l->cfg, s->dir) : 0;

		snprintf(key, sizeof(key), "host.swap[%zu].size", i);
		if (bytes > s->size_bytes)
			error_add(&l->errs, &p, "VMs' swap files in %.160s are %s together, expected at most "
				  "the %s that are given to them", s->dir,
				  size_exact(need, sizeof(need), bytes),
				  size_exact(have, sizeof(have), s->size_bytes));
	}
}
