/*
 * The index of a share group: which pages have which hash.
 *
 *   hash (128 bits) ──secret──► key (64 bits): 8 bits shard, the rest order in it
 *
 * A shard is an array sorted by key, with gaps: an entry is at its home (the key's share
 * of the array) or behind it, and there is no gap between.  So a search looks at few
 * entries, all neighbours, and ends at the first greater key whether it finds or not; an
 * array four fifths full is still quick; and one a quarter larger is filled by one pass,
 * in order.  Powers of two and an array half full would be quicker to write down, and
 * half as much memory again: 50 million pages are 1.1 GiB as it is.
 *
 * 64 bits of 128 are enough: whoever drops a page compares its bytes, and two of 50
 * million keys meet once in 10,000 hosts.  The secret never leaves the process: VMs
 * choose hashes, and must not choose who shares a home.
 *
 * Thread: the one of the daemon.  Each shard grows and shrinks by itself, so that the
 * longest step is one of 256.
 *
 *  I1  Within a shard keys never fall, and from an entry's home to it all is used.
 *  I2  The last slot of a shard is free: no search needs a bound.
 *  I3  A used entry's key has a mark that is not 0.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "host/internal.h"

#define SHARDS 256u
#define SLACK 16u /* slots behind the last home, at least */

struct shard {
	struct index_entry *at;
	uint64_t homes, slots, used;
};

struct index {
	uint64_t secret[3];
	uint64_t used, bytes;
	struct shard shards[SHARDS];
};

/* What a shard without memory has for an array; never written.  A search that ends at the
 * last home looks at the slot behind it. */
static struct index_entry nothing[2];

int index_create(struct index **out, const uint64_t secret[3])
{
	struct index *ix = calloc(1, sizeof(*ix));

	if (!ix)
		return -ENOMEM;
	memcpy(ix->secret, secret, sizeof(ix->secret));
	ix->bytes = sizeof(*ix);
	for (unsigned i = 0; i < SHARDS; i++)
		ix->shards[i] = (struct shard){ .at = nothing, .slots = 1 };
	*out = ix;
	return 0;
}

static void free_slots(struct index *ix, struct shard *s)
{
	if (s->at == nothing)
		return;
	ix->bytes -= s->slots * sizeof(*s->at);
	free(s->at);
}

void index_destroy(struct index **ix)
{
	if (!*ix)
		return;
	for (unsigned i = 0; i < SHARDS; i++)
		free_slots(*ix, &(*ix)->shards[i]);
	free(*ix);
	*ix = NULL;
}

static uint64_t fold(uint64_t a, uint64_t b)
{
	unsigned __int128 m = (unsigned __int128)a * b;

	return (uint64_t)m ^ (uint64_t)(m >> 64);
}

uint64_t index_key(const struct index *ix, const struct wire_hash *h)
{
	uint64_t key = fold(h->lo ^ ix->secret[0], h->hi ^ ix->secret[1]);

	/* Again, with an odd constant (the golden ratio): one factor may have been small. */
	key = fold(key ^ ix->secret[2], 0x9e3779b97f4a7c15u);
	return index_mark(key) ? key : key | (uint64_t)1 << 32;
}

static const struct shard *shard_at(const struct index *ix, uint64_t key)
{
	return &ix->shards[key >> 56];
}

static uint64_t home(const struct shard *s, uint64_t key)
{
	return (uint64_t)(((unsigned __int128)(key << 8) * s->homes) >> 64);
}

static bool is_used(const struct index_entry *e)
{
	return e->who & INDEX_USED;
}

/* The first slot from the key's home that is free or has no smaller key. */
static struct index_entry *seek(const struct shard *s, uint64_t key)
{
	struct index_entry *e = s->at + home(s, key);

	while (is_used(e) && e->key < key)
		e++;
	return e;
}

void index_prefetch(const struct index *ix, uint64_t key)
{
	const struct shard *s = shard_at(ix, key);
	const struct index_entry *e = s->at + home(s, key);

	__builtin_prefetch(e);
	__builtin_prefetch(e + 4);
}

struct index_run index_find(const struct index *ix, uint64_t key)
{
	struct index_run r = { .at = seek(shard_at(ix, key), key) };

	while (is_used(&r.at[r.count]) && r.at[r.count].key == key)
		r.count++;
	return r;
}

struct index_entry *index_find_page(const struct index *ix, uint32_t mark, uint32_t who,
				    uint32_t page)
{
	uint64_t least = (uint64_t)mark << 32;
	const struct shard *s = shard_at(ix, least);
	const struct index_entry *last = s->at + home(s, least | UINT32_MAX);
	struct index_entry *e = s->at + home(s, least);

	/* There may be gaps up to the home of the mark's last key, and none behind it. */
	for (; e <= last || (is_used(e) && index_mark(e->key) <= mark); e++)
		if (e->page == page && (e->who & ~INDEX_WANTED) == (who | INDEX_USED) &&
		    index_mark(e->key) == mark)
			return e;
	return NULL;
}

/* ---- growing and shrinking -------------------------------------------------- */

/* Where the last entry comes to be with so many homes, plus one. */
static uint64_t layout(const struct shard *s, struct shard *to)
{
	uint64_t next = 0;

	for (uint64_t i = 0; i < s->slots; i++) {
		uint64_t at = home(to, s->at[i].key);

		if (!is_used(&s->at[i]))
			continue;
		if (at < next)
			at = next;
		if (to->at)
			to->at[at] = s->at[i];
		next = at + 1;
	}
	return next;
}

static int resize(struct index *ix, struct shard *s, uint64_t homes)
{
	struct shard to = { .homes = homes, .used = s->used };
	uint64_t end = layout(s, &to);

	to.slots = (end > homes ? end : homes) + SLACK;
	to.at = calloc(to.slots, sizeof(*to.at));
	if (!to.at)
		return -ENOMEM;
	layout(s, &to);
	free_slots(ix, s);
	ix->bytes += to.slots * sizeof(*to.at);
	*s = to;
	return 0;
}

/* 0.64 full: grows at 0.8, shrinks at 0.4. */
static uint64_t homes_for(uint64_t used)
{
	return used * 25 / 16 + SLACK;
}

static int make_room(struct index *ix, struct shard *s)
{
	return (s->used + 1) * 5 > s->homes * 4 ? resize(ix, s, homes_for(s->used)) : 0;
}

static void shrink(struct index *ix, struct shard *s)
{
	if (s->used == 0) {
		free_slots(ix, s);
		*s = (struct shard){ .at = nothing, .slots = 1 };
	} else if (s->homes > 4 * SLACK && s->used * 5 < s->homes * 2) {
		/* Without memory for a smaller one it stays as it is. */
		(void)resize(ix, s, homes_for(s->used));
	}
}

/* ---- adding and removing ------------------------------------------------------ */

int index_add(struct index *ix, uint64_t key, uint32_t who, uint32_t page)
{
	struct shard *s = &ix->shards[key >> 56];
	struct index_entry *e, *end;
	int rc = make_room(ix, s);

	ASSERT(index_mark(key) && !(who & INDEX_USED));
	if (rc)
		return rc;
	for (e = seek(s, key); is_used(e) && e->key == key; )
		e++;
	for (end = e; is_used(end); )
		end++;
	if (end == s->at + s->slots - 1) { /* I2; the next array has slack again */
		rc = resize(ix, s, s->homes);
		return rc ? rc : index_add(ix, key, who, page);
	}
	memmove(e + 1, e, (size_t)(end - e) * sizeof(*e));
	*e = (struct index_entry){ key, page, who | INDEX_USED };
	s->used++;
	ix->used++;
	return 0;
}

void index_remove(struct index *ix, struct index_entry *e)
{
	struct shard *s = &ix->shards[e->key >> 56];
	struct index_entry *end = e + 1;

	VERIFY(is_used(e) && e >= s->at && e < s->at + s->slots);
	while (is_used(end) && home(s, end->key) < (uint64_t)(end - s->at))
		end++;
	memmove(e, e + 1, (size_t)(end - e - 1) * sizeof(*e));
	end[-1] = (struct index_entry){ 0 };
	s->used--;
	ix->used--;
	shrink(ix, s);
}

/* ---- looking at it -------------------------------------------------------------- */

uint64_t index_entries(const struct index *ix)
{
	return ix->used;
}

uint64_t index_bytes(const struct index *ix)
{
	return ix->bytes;
}

static bool in_order(const struct shard *s, uint64_t i)
{
	const struct index_entry *e = &s->at[i];

	if (home(s, e->key) > i || !index_mark(e->key))
		return false;
	if (i == 0 || !is_used(e - 1))
		return home(s, e->key) == i;
	return e[-1].key <= e->key;
}

bool index_each(const struct index *ix, bool (*fn)(void *ctx, const struct index_entry *e),
		void *ctx)
{
	uint64_t all = 0;

	for (const struct shard *s = ix->shards; s < ix->shards + SHARDS; s++) {
		uint64_t used = 0;

		for (uint64_t i = 0; i < s->slots; i++) {
			if (!is_used(&s->at[i]))
				continue;
			used++;
			if (shard_at(ix, s->at[i].key) != s || !in_order(s, i) || !fn(ctx, &s->at[i]))
				return false;
		}
		if (used != s->used || is_used(&s->at[s->slots - 1]))
			return false;
		all += used;
	}
	return all == ix->used;
}
