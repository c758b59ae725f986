/*
 * libyaml's events to a tree.  Its own document API would do that too, but it has no bounds
 * of ours, and lets a node be its own descendant.
 *
 * One thread; the tree is in the caller's arena.
 *
 *  I1  Depth, nodes and aliases are bounded, whatever the file says (I3 of config.h).
 *  I2  The tree has no cycle.
 */
#include <errno.h>
#include <string.h>
#include <yaml.h>

#include "host/config/internal.h"

struct anchor {
	const char *name;
	struct node *node;
	struct anchor *next;
};

struct level {
	struct node *node;
	struct node *key; /* of a map: waits for its value */
	const char *anchor;
};

struct builder {
	struct arena *arena;
	struct errors *errs;
	struct anchor *anchors; /* the latest first: a name may be used again */
	struct node *root;
	struct level levels[TREE_DEPTH_MAX];
	unsigned depth, nodes, aliases, documents;
};

static struct place place_at(const yaml_mark_t *m)
{
	return (struct place){ .line = (unsigned)m->line + 1, .column = (unsigned)m->column + 1 };
}

static int no_memory(struct builder *b)
{
	b->errs->out_of_memory = true;
	return -ENOMEM;
}

static int refuse(struct builder *b, const yaml_event_t *ev, const char *why)
{
	struct place p = place_at(&ev->start_mark);

	return error_add(b->errs, &p, "%s", why);
}

/* ---- nodes ------------------------------------------------------------------------------ */

static int put_item(struct builder *b, struct node *parent, struct node *key, struct node *value)
{
	struct item *it = arena_alloc(b->arena, sizeof(*it));

	if (!it)
		return no_memory(b);
	it->key = key;
	it->value = value;
	if (parent->last)
		parent->last->next = it;
	else
		parent->first = it;
	parent->last = it;
	parent->count++;
	return 0;
}

/* Into what is open: an item, a key, or the key's value. */
static int put_node(struct builder *b, struct node *n)
{
	struct level *top;
	struct node *key;

	if (b->depth == 0) {
		b->root = n;
		return 0;
	}
	top = &b->levels[b->depth - 1];
	if (top->node->kind == NODE_LIST)
		return put_item(b, top->node, NULL, n);
	if (!top->key) {
		top->key = n;
		return 0;
	}
	key = top->key;
	top->key = NULL;
	return put_item(b, top->node, key, n);
}

static struct node *make_node(struct builder *b, const yaml_event_t *ev, enum node_kind kind)
{
	struct node *n;

	if (++b->nodes > TREE_NODES_MAX) {
		refuse(b, ev, "more than 65536 values in one file");
		return NULL;
	}
	n = arena_alloc(b->arena, sizeof(*n));
	if (!n) {
		no_memory(b);
		return NULL;
	}
	n->kind = kind;
	n->line = (unsigned)ev->start_mark.line + 1;
	n->column = (unsigned)ev->start_mark.column + 1;
	return n;
}

/* ---- anchors ------------------------------------------------------------------------------ */

static int put_anchor(struct builder *b, const char *name, struct node *n)
{
	struct anchor *a = arena_alloc(b->arena, sizeof(*a));

	if (!a)
		return no_memory(b);
	a->name = name;
	a->node = n;
	a->next = b->anchors;
	b->anchors = a;
	return 0;
}

/* NULL where the event has none. */
static int copy_anchor(struct builder *b, const yaml_char_t *name, const char **out)
{
	const char *text = (const char *)name;

	*out = text ? arena_text(b->arena, text, strlen(text)) : NULL;
	return text && !*out ? no_memory(b) : 0;
}

static int take_alias(struct builder *b, const yaml_event_t *ev)
{
	const char *name = (const char *)ev->data.alias.anchor;
	struct place p = place_at(&ev->start_mark);

	if (++b->aliases > TREE_ALIASES_MAX)
		return refuse(b, ev, "more than 1024 aliases in one file");
	for (struct anchor *a = b->anchors; a; a = a->next)
		if (strcmp(a->name, name) == 0)
			return put_node(b, a->node);
	return error_add(b->errs, &p, "there is no anchor '&%.60s' before it that is complete, "
			 "expected one", name);
}

/* ---- events -------------------------------------------------------------------------------- */

static int take_scalar(struct builder *b, const yaml_event_t *ev)
{
	const char *text = (const char *)ev->data.scalar.value;
	size_t len = ev->data.scalar.length;
	struct node *n = make_node(b, ev, NODE_SCALAR);
	const char *anchor;

	if (!n)
		return -EINVAL;
	if (memchr(text, 0, len))
		return refuse(b, ev, "a NUL character, expected text without one");
	n->is_plain = ev->data.scalar.style == YAML_PLAIN_SCALAR_STYLE;
	n->text = arena_text(b->arena, text, len);
	if (!n->text)
		return no_memory(b);
	if (copy_anchor(b, ev->data.scalar.anchor, &anchor) || put_node(b, n))
		return -EINVAL;
	return anchor ? put_anchor(b, anchor, n) : 0;
}

static int take_start(struct builder *b, const yaml_event_t *ev, enum node_kind kind)
{
	const yaml_char_t *name = kind == NODE_MAP ? ev->data.mapping_start.anchor
						   : ev->data.sequence_start.anchor;
	struct node *n;
	struct level *top;

	if (b->depth == TREE_DEPTH_MAX)
		return refuse(b, ev, "nested deeper than 16 levels");
	n = make_node(b, ev, kind);
	if (!n || put_node(b, n))
		return -EINVAL;
	top = &b->levels[b->depth++];
	*top = (struct level){ .node = n };
	return copy_anchor(b, name, &top->anchor);
}

static int take_end(struct builder *b)
{
	struct level *top = &b->levels[--b->depth];

	return top->anchor ? put_anchor(b, top->anchor, top->node) : 0;
}

static int take_document(struct builder *b, const yaml_event_t *ev)
{
	if (++b->documents > 1)
		return refuse(b, ev, "a second document, expected one a file");
	return 0;
}

static int take_event(struct builder *b, const yaml_event_t *ev)
{
	switch (ev->type) {
	case YAML_DOCUMENT_START_EVENT:
		return take_document(b, ev);
	case YAML_ALIAS_EVENT:
		return take_alias(b, ev);
	case YAML_SCALAR_EVENT:
		return take_scalar(b, ev);
	case YAML_SEQUENCE_START_EVENT:
		return take_start(b, ev, NODE_LIST);
	case YAML_MAPPING_START_EVENT:
		return take_start(b, ev, NODE_MAP);
	case YAML_SEQUENCE_END_EVENT:
	case YAML_MAPPING_END_EVENT:
		return take_end(b);
	default:
		return 0;
	}
}

/* What libyaml says is meant for programmers: "did not find expected key". */
static int syntax_error(struct builder *b, const yaml_parser_t *y)
{
	struct place p = place_at(&y->problem_mark);
	const char *what = y->problem ? y->problem : "it cannot be read";

	if (y->error == YAML_MEMORY_ERROR)
		return no_memory(b);
	if (y->error == YAML_READER_ERROR) {
		p.line = p.column = 0;
		return error_add(b->errs, &p, "byte %zu: %s, expected UTF-8 text", y->problem_offset, what);
	}
	if (y->context && y->context_mark.line + 1 < p.line)
		return error_add(b->errs, &p, "not YAML: %s, %s that begins in line %zu", what, y->context,
				 y->context_mark.line + 1);
	return error_add(b->errs, &p, "not YAML: %s%s%s (expected two spaces a level, no tabs, and a "
			 "space after each colon)", what, y->context ? ", " : "",
			 y->context ? y->context : "");
}

static int build(struct builder *b, yaml_parser_t *y)
{
	yaml_event_t ev;
	bool is_end = false;
	int rc = 0;

	while (!rc && !is_end) {
		if (!yaml_parser_parse(y, &ev))
			return syntax_error(b, y);
		is_end = ev.type == YAML_STREAM_END_EVENT;
		rc = take_event(b, &ev);
		yaml_event_delete(&ev);
	}
	return rc;
}

int tree_build(struct arena *a, const char *text, size_t len, struct node **root,
	       struct errors *errs)
{
	struct builder b = { .arena = a, .errs = errs };
	struct place nowhere = { 0 };
	yaml_parser_t y;
	int rc;

	if (len > TREE_FILE_MAX_BYTES)
		return error_add(errs, &nowhere, "the file has %zu bytes, the most are 1 MiB", len);
	if (!yaml_parser_initialize(&y))
		return no_memory(&b);
	yaml_parser_set_encoding(&y, YAML_UTF8_ENCODING);
	yaml_parser_set_input_string(&y, (const unsigned char *)text, len);
	rc = build(&b, &y);
	yaml_parser_delete(&y);
	if (!rc)
		*root = b.root;
	return rc;
}
