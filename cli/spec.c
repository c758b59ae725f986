/*
 * From `brim run`'s options to the JSON that brim-vmm reads.  What can be known
 * to be wrong before a process is started is found here, and said in one
 * sentence that names the thing, the place and the remedy.
 *
 * One thread; no state.
 */
#include "cli/cli.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <net/if.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "mm/ksm/ksm.h"
#include "vmm/vmm.h"

#define SERIAL_MAX 20 /* of virtio-blk */

/* ---- a,b=c,d ---------------------------------------------------------------------- */

/* Takes the next of the items between commas into buf, where ",," is a comma.
 * False at the end; an item that is too long is cut, to something nobody knows. */
static bool next_item(const char **text, char *buf, size_t len)
{
	const char *p = *text;
	size_t n = 0;

	if (!p)
		return false;
	for (; *p && (*p != ',' || p[1] == ','); p++) {
		if (*p == ',')
			p++;
		if (n + 1 < len)
			buf[n++] = *p;
	}
	buf[n] = '\0';
	*text = *p ? p + 1 : NULL;
	return true;
}

/* "key=value" cut in two, value NULL when there is no '='. */
static char *split_value(char *item)
{
	char *eq = strchr(item, '=');

	if (!eq)
		return NULL;
	*eq = '\0';
	return eq + 1;
}

/* ---- files -------------------------------------------------------------------------- */

/* Absolute, as brim-vmm need not share our directory; links stay as they are,
 * so that people find the name they typed. */
static int absolute(const char *path, char out[PATH_MAX], struct err *e)
{
	char cwd[PATH_MAX] = "";
	int n;

	if (path[0] != '/' && !getcwd(cwd, sizeof(cwd)))
		return err_sys(e, -errno, "%s: the current directory cannot be told", path);
	n = snprintf(out, PATH_MAX, "%s%s%s", cwd, path[0] == '/' ? "" : "/", path);
	if (n < 0 || n >= PATH_MAX)
		return err_set(e, -ENAMETOOLONG, "%.60s...: the path is too long", path);
	return 0;
}

/* What the VM would do: opens it.  `writable` is a disk's. */
static int check_file(const char *what, const char *path, bool writable, bool block, struct err *e)
{
	/* O_NONBLOCK: a FIFO must not hang us before it is refused */
	int fd = open(path, (writable ? O_RDWR : O_RDONLY) | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
	struct stat st;
	int rc = 0;

	if (fd < 0 && errno == ENOENT)
		return err_set(e, -ENOENT, "%s %s: no such file", what, path);
	if (fd < 0 && writable && (errno == EACCES || errno == EROFS) && access(path, R_OK) == 0)
		return err_sys(e, -errno, "%s %s: cannot be written (add ,ro if the guest need not)", what,
			       path);
	if (fd < 0)
		return err_sys(e, -errno, "%s %s: cannot be opened", what, path);
	if (fstat(fd, &st) < 0)
		rc = err_sys(e, -errno, "%s %s", what, path);
	else if (!S_ISREG(st.st_mode) && !(block && S_ISBLK(st.st_mode)))
		rc = err_set(e, -ENODEV, "%s %s: not a regular file%s", what, path,
			     block ? " or block device" : "");
	else if (S_ISREG(st.st_mode) && st.st_size == 0)
		rc = err_set(e, -ENODATA, "%s %s: the file is empty", what, path);
	close(fd);
	return rc;
}

/* `text` as JSON string; NULL text is null. */
static int put_string(json_t *o, const char *key, const char *text, struct err *e)
{
	json_t *v = text ? json_string(text) : json_null();

	if (!v)
		return err_set(e, -EINVAL, "%s '%s': not valid UTF-8", key, text);
	return json_object_set_new(o, key, v) ? err_sys(e, -ENOMEM, "%s", key) : 0;
}

static int put_image(json_t *o, const char *key, const char *path, struct err *e)
{
	char full[PATH_MAX];
	int rc = 0;

	if (path)
		rc = absolute(path, full, e);
	if (path && !rc)
		rc = check_file(key, full, false, false, e);
	return rc ? rc : put_string(o, key, path ? full : NULL, e);
}

/* ---- disks ---------------------------------------------------------------------------- */

struct disk {
	char path[PATH_MAX];
	char serial[SERIAL_MAX + 2]; /* one more, to see that it is too long */
	bool readonly, direct;
};

static int disk_item(struct disk *d, const char *text, char *item, struct err *e)
{
	char *value = split_value(item);

	if (!value && strcmp(item, "ro") == 0) {
		d->readonly = true;
	} else if (!value && strcmp(item, "direct") == 0) {
		d->direct = true;
	} else if (value && strcmp(item, "serial") == 0) {
		snprintf(d->serial, sizeof(d->serial), "%s", value);
		if (!*value || strlen(d->serial) > SERIAL_MAX)
			return err_set(e, -EINVAL, "--disk %s: a serial has 1 to %d characters", text,
				       SERIAL_MAX);
	} else {
		return err_set(e, -EINVAL, "--disk %s: '%s' is none of ro, direct, serial=S (a comma in "
			       "the path is written twice)", text, item);
	}
	return 0;
}

static int disk_parse(struct disk *d, const char *text, struct err *e)
{
	const char *rest = text;
	char item[PATH_MAX];
	int rc;

	memset(d, 0, sizeof(*d));
	next_item(&rest, item, sizeof(item));
	if (!*item)
		return err_set(e, -EINVAL, "--disk %s: the path is missing", text);
	rc = absolute(item, d->path, e);
	while (!rc && next_item(&rest, item, sizeof(item)))
		rc = disk_item(d, text, item, e);
	return rc;
}

int spec_disk(const char *text, json_t **disk, struct err *e)
{
	struct disk d;
	json_t *o;
	int rc;

	rc = disk_parse(&d, text, e);
	if (!rc)
		rc = check_file("disk", d.path, !d.readonly, true, e);
	if (rc)
		return rc;
	o = json_pack("{s:b, s:b}", "readonly", d.readonly, "direct", d.direct);
	if (!o)
		return err_sys(e, -ENOMEM, "--disk %s", text);
	rc = put_string(o, "path", d.path, e);
	if (!rc)
		rc = put_string(o, "serial", d.serial[0] ? d.serial : NULL, e);
	if (rc)
		json_decref(o);
	else
		*disk = o;
	return rc;
}

/* Two writers of one image destroy it. */
static int check_shared_disk(const json_t *disks, const json_t *disk, struct err *e)
{
	const char *path = json_text(disk, "path");
	struct stat mine, theirs;
	size_t i;
	json_t *other;

	if (stat(path, &mine) < 0)
		return 0;
	json_array_foreach(disks, i, other) {
		bool ro = json_is_true(json_object_get(disk, "readonly")) &&
			  json_is_true(json_object_get(other, "readonly"));

		if (!ro && stat(json_text(other, "path"), &theirs) == 0 &&
		    mine.st_dev == theirs.st_dev && mine.st_ino == theirs.st_ino)
			return err_set(e, -EINVAL, "disk %s is given twice; that is only safe when both "
				       "are ,ro", path);
	}
	return 0;
}

/* ---- swap ------------------------------------------------------------------------------ */

struct swap_spec {
	char path[PATH_MAX];
	uint64_t size_bytes;
	bool encrypt, force;
};

static int swap_item(struct swap_spec *s, const char *text, char *item, struct err *e)
{
	char *value = split_value(item);

	if (!value && strcmp(item, "encrypt") == 0) {
		s->encrypt = true;
	} else if (!value && strcmp(item, "force") == 0) {
		s->force = true;
	} else if (value && strcmp(item, "size") == 0) {
		if (size_parse(value, &s->size_bytes, NULL) || s->size_bytes < VM_SWAP_MIN_BYTES)
			return err_set(e, -EINVAL, "--swap %s: '%s' is not a size of at least 5M, such as "
				       "16G", text, value);
	} else {
		return err_set(e, -EINVAL, "--swap %s: '%s' is none of size=SIZE, encrypt, force (a comma "
			       "in the path is written twice)", text, item);
	}
	return 0;
}

static int swap_parse(struct swap_spec *s, const char *text, struct err *e)
{
	const char *rest = text;
	char item[PATH_MAX];
	int rc;

	memset(s, 0, sizeof(*s));
	next_item(&rest, item, sizeof(item));
	if (!*item)
		return err_set(e, -EINVAL, "--swap %s: the path is missing", text);
	rc = absolute(item, s->path, e);
	while (!rc && next_item(&rest, item, sizeof(item)))
		rc = swap_item(s, text, item, e);
	return rc;
}

/* What is there is looked at by brim-vmm; that it can be made, and is none of the
 * guest's disks, is known here. */
static int check_swap(const struct swap_spec *s, struct err *e)
{
	char above[PATH_MAX];
	struct stat st;

	if (stat(s->path, &st) == 0) {
		if (!S_ISREG(st.st_mode) && !S_ISBLK(st.st_mode))
			return err_set(e, -ENODEV, "swap %s: not a regular file or block device", s->path);
		if (access(s->path, R_OK | W_OK) < 0)
			return err_sys(e, -errno, "swap %s: cannot be written", s->path);
		return 0;
	}
	snprintf(above, sizeof(above), "%s", s->path);
	*(strrchr(above, '/') + 1) = '\0';
	if (access(above, W_OK | X_OK) < 0)
		return err_sys(e, -errno, "swap %s: cannot be made", s->path);
	return 0;
}

int spec_swap(const char *text, json_t **swap, struct err *e)
{
	struct swap_spec s;
	json_t *o;
	int rc = swap_parse(&s, text, e);

	if (!rc)
		rc = check_swap(&s, e);
	if (rc)
		return rc;
	o = json_pack("{s:I, s:b, s:b}", "size_bytes", (json_int_t)s.size_bytes, "encrypt", s.encrypt,
		      "force", s.force);
	if (!o)
		return err_sys(e, -ENOMEM, "--swap %s", text);
	rc = put_string(o, "path", s.path, e);
	if (rc)
		json_decref(o);
	else
		*swap = o;
	return rc;
}

/* ---- networks -------------------------------------------------------------------------- */

/* root's brim-vmm may make the interface; others need one that is there. */
static int check_tap(const char *tap, struct err *e)
{
	char path[64 + IFNAMSIZ];

	if (strlen(tap) >= IFNAMSIZ || strchr(tap, '/') || !*tap)
		return err_set(e, -EINVAL, "net '%s': an interface has a name of 1 to %d characters", tap,
			       IFNAMSIZ - 1);
	snprintf(path, sizeof(path), "/sys/class/net/%s", tap);
	if (access(path, F_OK) < 0)
		return geteuid() == 0 ? 0
				      : err_set(e, -ENOENT, "net %s: no such interface; make it with "
						"`sudo ip tuntap add %s mode tap user $USER`", tap, tap);
	snprintf(path, sizeof(path), "/sys/class/net/%s/tun_flags", tap);
	if (access(path, F_OK) < 0)
		return err_set(e, -ENODEV, "net %s: this interface is not a tap; make one with `sudo ip "
			       "tuntap add NAME mode tap user $USER`", tap);
	return 0;
}

static int net_item(const char *text, char *item, char tap[IFNAMSIZ + 1], char mac[19], struct err *e)
{
	char *value = split_value(item);

	if (value && strcmp(item, "tap") == 0)
		snprintf(tap, IFNAMSIZ + 1, "%s", value);
	else if (value && strcmp(item, "mac") == 0)
		snprintf(mac, 19, "%s", value);
	else
		return err_set(e, -EINVAL, "--net %s: '%s' is none of tap=NAME, mac=MAC", text, item);
	return 0;
}

int spec_net(const char *text, json_t **net, struct err *e)
{
	char item[128], tap[IFNAMSIZ + 1] = "", mac[19] = "";
	uint8_t bytes[6];
	const char *rest = text;
	json_t *o;
	int rc = 0;

	while (!rc && next_item(&rest, item, sizeof(item)))
		rc = net_item(text, item, tap, mac, e);
	if (!rc && !tap[0])
		rc = err_set(e, -EINVAL, "--net %s: tap=NAME is missing", text);
	if (!rc && mac[0] && vm_mac_parse(mac, bytes))
		rc = err_set(e, -EINVAL, "--net %s: '%s' is not a card's address such as "
			     "52:54:00:12:34:56", text, mac);
	if (!rc)
		rc = check_tap(tap, e);
	if (rc)
		return rc;
	o = json_pack("{s:s, s:s?}", "tap", tap, "mac", mac[0] ? mac : NULL);
	if (!o)
		return err_set(e, -EINVAL, "--net %s: not valid UTF-8", text);
	*net = o;
	return 0;
}

/* ---- the balloon -------------------------------------------------------------------------- */

static const struct {
	const char *option, *key;
} balloon_flags[] = {
	{ "deflate-on-oom", "deflate_on_oom" },
	{ "reporting", "reporting" },
	{ "hinting", "hinting" },
	{ "poison", "poison" },
};

#define STATS_OPTION "stats-interval"

static int balloon_flag(json_t *balloon, const char *key, const char *value)
{
	if (!value || (strcmp(value, "on") != 0 && strcmp(value, "off") != 0))
		return -EINVAL;
	return json_object_set_new(balloon, key, json_boolean(strcmp(value, "on") == 0));
}

static int balloon_item(json_t *balloon, char *item, struct err *e)
{
	char *value = split_value(item);
	uint64_t s = 0;

	for (size_t i = 0; i < ARRAY_LEN(balloon_flags); i++)
		if (strcmp(item, balloon_flags[i].option) == 0) {
			if (balloon_flag(balloon, balloon_flags[i].key, value))
				return err_set(e, -EINVAL, "--balloon: %s must be on or off: %s=off", item,
					       item);
			return 0;
		}
	if (strcmp(item, STATS_OPTION) != 0)
		return err_set(e, -EINVAL, "--balloon: '%s' is none of deflate-on-oom, reporting, hinting, "
			       "poison, " STATS_OPTION, item);
	if (!value || seconds_parse(value, &s, NULL) || s > 3600)
		return err_set(e, -EINVAL, "--balloon: " STATS_OPTION " must be a time of at most an hour: "
			       STATS_OPTION "=5s");
	return json_object_set_new(balloon, "stats_interval_s", json_integer((json_int_t)s))
		       ? err_sys(e, -ENOMEM, "--balloon") : 0;
}

int spec_balloon(const struct text_list *items, json_t **balloon, struct err *e)
{
	json_t *o = json_pack("{s:b, s:b, s:b, s:b, s:i}", "deflate_on_oom", true, "reporting", true,
			      "hinting", true, "poison", true, "stats_interval_s", 5);
	char item[128];
	int rc = 0;

	if (!o)
		return err_sys(e, -ENOMEM, "--balloon");
	for (size_t i = 0; i < items->count && !rc; i++) {
		const char *rest = items->items[i];

		while (!rc && next_item(&rest, item, sizeof(item)))
			rc = balloon_item(o, item, e);
	}
	if (rc)
		json_decref(o);
	else
		*balloon = o;
	return rc;
}

/* ---- all of it ----------------------------------------------------------------------------- */

static int put_cmdline(json_t *o, const struct run_args *a, struct err *e)
{
	char text[VM_CMDLINE_MAX];
	size_t used;

	used = (size_t)snprintf(text, sizeof(text), "%s", a->cmdline ? a->cmdline : DEFAULT_CMDLINE);
	for (size_t i = 0; i < a->append.count && used < sizeof(text); i++)
		used += (size_t)snprintf(text + used, sizeof(text) - used, "%s%s", used ? " " : "",
					 a->append.items[i]);
	if (used >= sizeof(text))
		return err_set(e, -E2BIG, "the kernel's command line is too long: the most are %u characters",
			       VM_CMDLINE_MAX - 1);
	return put_string(o, "cmdline", text, e);
}

static int put_disks(json_t *o, const struct run_args *a, struct err *e)
{
	json_t *disks = json_array(), *disk = NULL;
	int rc = 0;

	if (a->disks.count > VM_MAX_DISKS)
		rc = err_set(e, -EINVAL, "%zu disks are given, the most are %u", a->disks.count, VM_MAX_DISKS);
	for (size_t i = 0; i < a->disks.count && !rc; i++) {
		rc = spec_disk(a->disks.items[i], &disk, e);
		if (!rc)
			rc = check_shared_disk(disks, disk, e);
		if (!rc && json_array_append(disks, disk))
			rc = err_sys(e, -ENOMEM, "disks");
		json_decref(disk);
		disk = NULL;
	}
	if (!rc && json_object_set(o, "disks", disks))
		rc = err_sys(e, -ENOMEM, "disks");
	json_decref(disks);
	return rc;
}

static int put_nets(json_t *o, const struct run_args *a, struct err *e)
{
	json_t *nets = json_array(), *net = NULL;
	int rc = 0;

	if (a->nets.count > VM_MAX_NETS)
		rc = err_set(e, -EINVAL, "%zu networks are given, the most are %u", a->nets.count,
			     VM_MAX_NETS);
	for (size_t i = 0; i < a->nets.count && !rc; i++) {
		rc = spec_net(a->nets.items[i], &net, e);
		if (!rc && json_array_append_new(nets, net))
			rc = err_sys(e, -ENOMEM, "nets");
	}
	if (!rc && json_object_set(o, "nets", nets))
		rc = err_sys(e, -ENOMEM, "nets");
	json_decref(nets);
	return rc;
}

static int put_balloon(json_t *o, const struct run_args *a, struct err *e)
{
	json_t *balloon = NULL;
	int rc = spec_balloon(&a->balloon, &balloon, e);

	if (!rc && json_object_set_new(o, "balloon", balloon))
		rc = err_sys(e, -ENOMEM, "balloon");
	return rc;
}

/* Numbers and switches, which cannot be wrong any more. */
static json_t *plain_config(const struct run_args *a)
{
	static const char *const huge[] = {
		[RAM_HUGE_AUTO] = "auto", [RAM_HUGE_ALWAYS] = "always", [RAM_HUGE_NEVER] = "never",
	};

	VERIFY(a->hugepages < ARRAY_LEN(huge));
	return json_pack("{s:i, s:I, s:I, s:b, s:b, s:s, s:b, s:b, s:I, s:b}",
			 "v", 1, "memory_bytes", (json_int_t)a->memory_bytes,
			 "cpus", (json_int_t)a->cpus, "rng", true, "console", true,
			 "hugepages", huge[a->hugepages], "die_with_parent", !a->detach,
			 "reboot", !a->no_reboot, "stop_timeout_s", (json_int_t)a->stop_timeout_s,
			 "allow_emulated_kvm", a->allow_emulated);
}

/* As put_limits(): only what is not the default. */
static int put_pool(json_t *o, const struct run_args *a, struct err *e)
{
	static const char *const deltas[] = {
		[RUN_DELTA_OFF] = "off", [RUN_DELTA_FAST] = "fast", [RUN_DELTA_SMALL] = "small",
	};
	json_int_t acceleration = (json_int_t)a->pool_acceleration;

	VERIFY(a->pool_delta < ARRAY_LEN(deltas));
	if (a->pool_delta != RUN_DELTA_FAST &&
	    json_object_set_new(o, "pool_delta", json_string(deltas[a->pool_delta])))
		return err_sys(e, -ENOMEM, "--pool-delta");
	if (acceleration > 1 &&
	    json_object_set_new(o, "pool_acceleration", json_integer(acceleration)))
		return err_sys(e, -ENOMEM, "--pool-acceleration");
	return 0;
}

/* Only what was asked for: without, a brim-vmm that knows of none will do. */
static int put_limits(json_t *o, const struct run_args *a, struct err *e)
{
	json_int_t limit = (json_int_t)a->limit_bytes, cap = (json_int_t)a->pool_cap_bytes;

	if (limit && json_object_set_new(o, "memory_limit_bytes", json_integer(limit)))
		return err_sys(e, -ENOMEM, "--limit");
	if (cap && json_object_set_new(o, "pool_cap_bytes", json_integer(cap)))
		return err_sys(e, -ENOMEM, "--pool-cap");
	if (a->pool_refine && json_object_set_new(o, "pool_refine", json_false()))
		return err_sys(e, -ENOMEM, "--pool-refine");
	return 0;
}

/* As limits: only what is asked for. */
static int put_share(json_t *o, const struct run_args *a, struct err *e)
{
	json_t *share;
	int rc = 0;

	if (!a->share_group && !a->share_pace &&
	    (!a->share_cpu_pct || a->share_cpu_pct == KSM_CPU_PCT))
		return 0;
	if (a->share_group && vm_name_check(a->share_group, NULL))
		return err_set(e, -EINVAL, "--share-group '%s': a name has 1 to %d letters, digits, '.', '_' "
			       "or '-', and begins with a letter or digit", a->share_group, RUN_NAME_MAX);
	share = json_object();
	if (!share)
		return err_sys(e, -ENOMEM, "--share-group");
	if (a->share_group)
		rc = put_string(share, "group", a->share_group, e);
	if (!rc && a->share_cpu_pct)
		rc = json_object_set_new(share, "cpu_pct", json_integer((json_int_t)a->share_cpu_pct));
	if (!rc && a->share_pace)
		rc = json_object_set_new(share, "pages_per_s", json_integer((json_int_t)a->share_pace));
	if (!rc && json_object_set(o, "share", share))
		rc = err_sys(e, -ENOMEM, "--share-group");
	json_decref(share);
	return rc;
}

/* Behind the disks, since it must be none of them. */
static int put_swap(json_t *o, const struct run_args *a, struct err *e)
{
	json_t *swap = NULL;
	int rc = a->swap ? spec_swap(a->swap, &swap, e) : 0;

	if (!rc && swap && check_shared_disk(json_object_get(o, "disks"), swap, NULL))
		rc = err_set(e, -EINVAL, "swap %s is one of the VM's disks", json_text(swap, "path"));
	if (!rc && swap && json_object_set(o, "swap", swap))
		rc = err_sys(e, -ENOMEM, "--swap");
	json_decref(swap);
	return rc;
}

static int check_args(const struct run_args *a, struct err *e)
{
	char size[32];

	if (!a->kernel)
		return err_set(e, -EINVAL, "a kernel is missing: brim run --kernel FILE");
	if (a->console && a->detach)
		return err_set(e, -EINVAL, "--console and --detach exclude each other");
	if (a->memory_bytes % HUGE_BYTES)
		return err_set(e, -EINVAL, "--memory: %llu bytes, must be a multiple of %s",
			       (unsigned long long)a->memory_bytes,
			       size_format(size, sizeof(size), HUGE_BYTES));
	return 0;
}

int spec_build(const struct run_args *a, json_t **config, struct err *e)
{
	json_t *o = NULL;
	int rc;

	rc = check_args(a, e);
	if (rc)
		return rc;
	o = plain_config(a);
	if (!o)
		return err_sys(e, -ENOMEM, "the VM's description");
	rc = put_limits(o, a, e);
	if (!rc)
		rc = put_pool(o, a, e);
	if (!rc)
		rc = put_share(o, a, e);
	if (!rc)
		rc = put_image(o, "kernel", a->kernel, e);
	if (!rc)
		rc = put_image(o, "initrd", a->initrd, e);
	if (!rc)
		rc = put_cmdline(o, a, e);
	if (!rc)
		rc = put_disks(o, a, e);
	if (!rc)
		rc = put_swap(o, a, e);
	if (!rc)
		rc = put_nets(o, a, e);
	if (!rc)
		rc = put_balloon(o, a, e);
	if (rc)
		json_decref(o);
	else
		*config = o;
	return rc;
}

int spec_place(json_t *config, const struct vm_paths *p, struct err *e)
{
	int rc = put_string(config, "name", p->name, e);

	return rc ? rc : put_string(config, "run_dir", p->dir, e);
}
