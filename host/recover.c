/*
 * What outlives the daemon, and how the next one finds its stores again.
 *
 * A store lives as long as anybody has it open: the VMs that were given it have.  Which
 * processes those are is written in two places before a VM is told WELCOME:
 *
 *   the store's registry    all that may hold pages of it
 *   a file for each group   so that the next daemon knows of them before they come
 *
 *   start ─► file ─► processes that are still there are *awaited*
 *              ├─ HELLO with the store: adopted, in limbo ─► HOLDs: what it uses is claimed
 *              ├─ HELLO without one, or its end
 *              ▼
 *   none is awaited for a store: what nobody claimed is given back, and it is as any other
 *
 * While VMs of a group are awaited, those that come without a store wait for one to be
 * found, but not for ever: then the group has a second store.  The older one stays in
 * limbo until its last process is back or gone.  In limbo nothing is stored and nothing
 * freed: a page that seems to be nobody's may be that of a process not yet heard.
 *
 * The hashes of an earlier daemon's seed say nothing any more: claimed pages are hashed
 * again, from the store, a few a turn.
 *
 * Thread: the one of the daemon.
 *
 *  I1  Nobody is told WELCOME who is not in the registry and the file.
 *  I2  No page of a store in limbo is written or given back.
 */
#include "host/internal.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <xxhash.h>

#define STATE_VERSION 1
#define HASH_COST 16u /* of the budget, for a page read and hashed */

/* ---- awaiting ------------------------------------------------------------------------- */

static bool is_awaited(const struct group *g, uint64_t store_id)
{
	for (const struct process *p = g->host->processes; p; p = p->next)
		if (p->group == g && p->awaited_store && (!store_id || p->awaited_store == store_id))
			return true;
	return false;
}

static void settle_stores(struct group *g)
{
	for (struct store *st = g->stores; st; st = st->next)
		if (store_claimable(st) && !g->unwatched && !is_awaited(g, st->id)) {
			store_settle(st);
			g->host->more = true;
		}
}

void recover_returned(struct group *g, struct process *p)
{
	if (p->awaited_store == 0)
		return;
	p->awaited_store = 0;
	settle_stores(g);
}

bool recover_is_over(struct group *g)
{
	if (g->recover_until_ns && (g->host->now_ns >= g->recover_until_ns || !is_awaited(g, 0)))
		g->recover_until_ns = 0;
	return g->recover_until_ns == 0;
}

/* A process that is there still: 0 and its descriptor. */
static int find_alive(uint32_t pid, uint64_t start, int *pidfd)
{
	int fd = (int)syscall(SYS_pidfd_open, (pid_t)pid, 0);
	uint64_t now;

	if (fd < 0)
		return -errno;
	now = process_start((pid_t)pid);
	/* Where /proc does not say, it may be the one: it is waited for. */
	if (pidfd_ended(fd) || (now && now != start)) {
		close(fd);
		return -ESRCH;
	}
	*pidfd = fd;
	return 0;
}

static int await(struct group *g, uint32_t pid, uint64_t start, uint64_t store_id)
{
	struct share_peer peer = { .pid = (pid_t)pid, .uid = g->uid, .start = start };
	struct process *p = process_find(g->host, peer.pid, start);
	int rc = p ? 0 : find_alive(pid, start, &peer.pidfd);

	if (rc)
		return rc == -ESRCH ? 0 : rc;
	if (!p)
		rc = process_create(&p, g, &peer);
	/* One in another store has said that it does not have this. */
	if (!rc && !p->ended && p->group == g && (!p->store || p->store->id == store_id))
		p->awaited_store = store_id;
	return rc;
}

void recover_registry(struct share_host *h, struct group *g, const struct store *st)
{
	int rc = 0;

	for (unsigned i = 0; i < st->given_count && !rc; i++)
		rc = await(g, st->given[i].pid, st->given[i].start, st->id);
	/* Whom we cannot watch is there for ever: better than a page of his lost. */
	if (rc)
		log_error("share group %s: a process with its store cannot be watched (%s): pages "
			  "that nobody claims stay", g->name, strerror(-rc));
	if (rc)
		g->unwatched = true;
	if (!g->recover_until_ns)
		g->recover_until_ns = h->now_ns + h->cfg.recover_ns;
}

/* ---- indexing ----------------------------------------------------------------------------- */

static bool is_indexed(const struct index *ix, uint64_t key, const struct store *st)
{
	struct index_run r = index_find(ix, key);

	for (unsigned i = 0; i < r.count; i++)
		if (r.at[i].who == (INDEX_USED | INDEX_STORE | st->slot))
			return true;
	return false;
}

static void rehash(struct group *g, struct store *st, uint32_t page)
{
	XXH128_hash_t x;
	struct wire_hash hash;
	uint64_t key;

	if (store_read(st, page, g->host->page))
		return;
	x = XXH3_128bits_withSeed(g->host->page, PAGE_BYTES, g->seed);
	hash = (struct wire_hash){ x.low64, x.high64 };
	key = index_key(g->index, &hash);
	if (is_indexed(g->index, key, st) ||
	    index_add(g->index, key, INDEX_STORE | st->slot, page))
		return;
	st->mark[page] = index_mark(key);
	counter_inc(CTR_brimd_rehashed);
	offer_to_candidates(g, key, st, page);
}

static void rehash_some(struct group *g, struct store *st)
{
	unsigned budget = BUDGET;

	while (st->rehash_at && budget >= HASH_COST) {
		uint32_t page = store_next_used(st, st->rehash_at);

		st->rehash_at = page < st->pages ? page + 1 : 0;
		budget -= 1;
		if (page >= st->pages || st->mark[page])
			continue;
		rehash(g, st, page);
		budget -= HASH_COST - 1;
	}
	if (st->rehash_at)
		g->host->more = true;
}

void recover_work(struct share_host *h)
{
	for (struct group *g = h->groups; g; g = g->next)
		for (struct store *st = g->stores; st; st = st->next)
			rehash_some(g, st);
}

/* ---- the file --------------------------------------------------------------------------------- */

/* A group's name as a file's: letters, digits and "-_" are themselves. */
static int state_path(const struct group *g, const char *end, char *path, size_t size)
{
	int n = snprintf(path, size, "%s/", g->host->cfg.state_dir);

	for (const char *c = g->name; *c && n < (int)size; c++)
		n += snprintf(path + n, size - (size_t)n,
			      isalnum((unsigned char)*c) || strchr("-_", *c) ? "%c" : "%%%02x",
			      (unsigned char)*c);
	if (n < (int)size)
		n += snprintf(path + n, size - (size_t)n, "%s", end);
	return n < (int)size ? 0 : -ENAMETOOLONG;
}

static json_t *describe_process(const struct process *p)
{
	uint64_t id = p->store ? p->store->id : p->awaited_store;
	char text[20];

	snprintf(text, sizeof(text), "%016llx", (unsigned long long)id);
	return json_pack("{s:i,s:I,s:s}", "pid", (int)p->pid, "start", (json_int_t)p->start,
			 "store", text);
}

static json_t *describe(const struct group *g)
{
	json_t *processes = json_array();

	for (const struct process *p = g->host->processes; p; p = p->next)
		if (p->group == g && !p->ended && (p->store || p->awaited_store))
			json_array_append_new(processes, describe_process(p));
	return json_pack("{s:i,s:s,s:I,s:o}", "version", STATE_VERSION, "group", g->name,
			 "uid", (json_int_t)g->uid, "processes", processes);
}

static int write_state(const struct group *g, const char *path)
{
	int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600), rc = 0;
	json_t *state;

	if (fd < 0)
		return -errno;
	state = describe(g);
	if (!state || json_dumpfd(state, fd, JSON_INDENT(1)) < 0)
		rc = -EIO;
	json_decref(state);
	return close(fd) < 0 && !rc ? -errno : rc;
}

int recover_save(struct group *g, struct err *e)
{
	char now[PATH_MAX], next[PATH_MAX];
	int rc;

	if (!g->host->cfg.state_dir)
		return 0;
	rc = state_path(g, ".json", now, sizeof(now));
	if (!rc)
		rc = state_path(g, ".next", next, sizeof(next));
	if (!rc)
		rc = write_state(g, next);
	if (!rc && rename(next, now) < 0)
		rc = -errno;
	if (rc)
		return err_sys(e, rc, "share group %s: cannot write its state to %s", g->name,
			       g->host->cfg.state_dir);
	g->state_changed = false;
	return 0;
}

void recover_forget(struct group *g)
{
	char path[PATH_MAX];

	if (g->host->cfg.state_dir && state_path(g, ".json", path, sizeof(path)) == 0 &&
	    unlink(path) < 0 && errno != ENOENT)
		log_warn("cannot remove %s: %s", path, strerror(errno));
}

/* ---- starting ------------------------------------------------------------------------------------ */

static int await_process(struct group *g, const json_t *o)
{
	const char *store;
	json_int_t pid, start;
	uint64_t id;

	if (json_unpack((json_t *)(uintptr_t)o, "{s:I,s:I,s:s}", "pid", &pid, "start", &start,
			"store", &store) < 0)
		return -EINVAL;
	id = strtoull(store, NULL, 16);
	if (pid <= 0 || pid > INT_MAX || id == 0)
		return -EINVAL;
	return await(g, (uint32_t)pid, (uint64_t)start, id);
}

static int await_group(struct share_host *h, const json_t *state)
{
	json_t *processes, *o;
	const char *name;
	json_int_t version, uid;
	struct group *g;
	int rc = 0;
	size_t i;

	if (json_unpack((json_t *)(uintptr_t)state, "{s:I,s:s,s:I,s:o}", "version", &version,
			"group", &name, "uid", &uid, "processes", &processes) < 0 ||
	    version != STATE_VERSION || !*name || strlen(name) >= WIRE_NAME_MAX || group_find(h, name))
		return -EINVAL;
	if (group_create(&g, h, name, (uint32_t)uid))
		return -ENOMEM;
	g->recover_until_ns = h->now_ns + h->cfg.recover_ns;
	json_array_foreach(processes, i, o)
		if (!rc)
			rc = await_process(g, o);
	return rc;
}

static void read_state(struct share_host *h, const char *name)
{
	char path[PATH_MAX];
	json_error_t why;
	json_t *state;
	int rc;

	if (snprintf(path, sizeof(path), "%s/%s", h->cfg.state_dir, name) >= (int)sizeof(path))
		return;
	state = json_load_file(path, JSON_REJECT_DUPLICATES, &why);
	rc = state ? await_group(h, state) : -EINVAL;
	json_decref(state);
	/* Its VMs bring what is needed with them: only new ones may come too early. */
	if (rc)
		log_warn("%s: %s: its VMs are not waited for", path,
			 state ? strerror(-rc) : why.text);
}

static void look_at(struct share_host *h, int dir_fd, const char *name)
{
	const char *dot = strrchr(name, '.');

	if (dot && strcmp(dot, ".json") == 0)
		read_state(h, name);
	else if (dot && strcmp(dot, ".next") == 0) /* ended while it was written */
		(void)unlinkat(dir_fd, name, 0);
}

int recover_start(struct share_host *h, struct err *e)
{
	struct dirent *d;
	DIR *dir;

	if (!h->cfg.state_dir)
		return 0;
	dir = opendir(h->cfg.state_dir);
	if (!dir)
		return err_sys(e, -errno, "cannot read %s", h->cfg.state_dir);
	while ((d = readdir(dir)))
		look_at(h, dirfd(dir), d->d_name);
	closedir(dir);
	return 0;
}
