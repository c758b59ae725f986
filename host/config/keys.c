/*
 * The sections of the key table, and what may be written for a key, in words.  The rows are
 * in keys_host.c, keys_policy.c and keys_vm.c.  No state.
 */
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "host/config/internal.h"
#include "mm/policy/policy.h"

const struct config_section *section_of(enum key_section s)
{
	static const struct config_section sections[] = {
		[SECTION_HOST] = { "host", "The host", "What brim may use of it.", keys_host,
				   sizeof(struct host_host) },
		[SECTION_SWAP] = { "host.swap", "An entry of `host: swap:`", "", keys_swap,
				   sizeof(struct host_swap) },
		[SECTION_POLICY] = { "policy", "The policy", "Who gives memory when it is short, how much, "
				     "and by which means. The defaults are meant to be left alone.",
				     keys_policy, sizeof(struct policy_config) },
		[SECTION_VM] = { "vms", "A VM", "An entry of the list `vms`. In `defaults`, the same keys "
				 "are those of every VM that does not say otherwise, but for those marked "
				 "as a VM's own.", keys_vm, sizeof(struct host_vm) },
		[SECTION_DISK] = { "vms.disks", "An entry of `disks`", "", keys_disk,
				   sizeof(struct host_disk) },
		[SECTION_NET] = { "vms.nets", "An entry of `nets`", "", keys_net,
				  sizeof(struct host_net) },
	};

	VERIFY(s < SECTIONS);
	return &sections[s];
}

size_t section_count(enum key_section s)
{
	switch (s) {
	case SECTION_HOST:
		return keys_host_count;
	case SECTION_SWAP:
		return keys_swap_count;
	case SECTION_POLICY:
		return keys_policy_count;
	case SECTION_VM:
		return keys_vm_count;
	case SECTION_DISK:
		return keys_disk_count;
	default:
		return keys_net_count;
	}
}

size_t section_row(enum key_section s, const char *name)
{
	const struct config_key *keys = section_of(s)->keys;
	size_t n = section_count(s);

	for (size_t i = 0; i < n; i++)
		if (strcmp(keys[i].name, name) == 0)
			return i;
	brim_panic(__FILE__, __LINE__, "no key '%s'", name);
}

/* ---- in words ----------------------------------------------------------------------------- */

struct words {
	char *buf;
	size_t len, used;
};

__attribute__((format(printf, 2, 3))) static void say(struct words *w, const char *fmt, ...)
{
	va_list ap;
	int n;

	va_start(ap, fmt);
	n = vsnprintf(w->buf + w->used, w->len - w->used, fmt, ap);
	va_end(ap);
	if (n > 0)
		w->used = w->used + (size_t)n < w->len ? w->used + (size_t)n : w->len - 1;
}

static void say_amount(struct words *w, const struct config_key *k, uint64_t n)
{
	struct config_key plain = { .type = k->type, .bytes = sizeof(n), .unit = k->unit };
	char text[64];

	say(w, "%s", value_format(&plain, &n, text, sizeof(text)));
}

static void say_range(struct words *w, const struct config_key *k)
{
	say(w, k->min ? " from " : " up to ");
	if (k->min) {
		say_amount(w, k, k->min);
		say(w, " to ");
	}
	say_amount(w, k, k->max);
}

static void say_choices(struct words *w, const struct config_key *k)
{
	size_t n = 0;

	for (size_t i = (size_t)k->min; k->choices[i]; i++, n++)
		say(w, "%s%s", !n ? "" : k->choices[i + 1] ? ", " : " or ", k->choices[i]);
}

static void say_kind(struct words *w, const struct config_key *k)
{
	static const char *const kinds[] = {
		[KEY_SIZE] = "a size such as 512M", [KEY_TIME] = "a time such as 5s",
		[KEY_UINT] = "a whole number", [KEY_PCT] = "a percentage", [KEY_BOOL] = "on or off",
		[KEY_TEXT] = "text", [KEY_PATH] = "a path",
		[KEY_NAME] = "a name of letters, digits, '.', '_' and '-' that begins with a letter or digit",
		[KEY_TAP] = "the name of an interface, of at most 15 characters",
		[KEY_MAC] = "a unicast MAC address such as 52:54:00:12:34:56",
		[KEY_SERIAL] = "1 to 20 characters", [KEY_NAMES] = "a name, or a list of names",
		[KEY_LIST] = "a list",
	};

	if (k->type == KEY_CHOICE)
		say_choices(w, k);
	else
		say(w, "%s", kinds[k->type]);
}

const char *key_expected(const struct config_key *k, char *buf, size_t len)
{
	struct words w = { .buf = buf, .len = len };

	say_kind(&w, k);
	if (k->type == KEY_SIZE || k->type == KEY_TIME || k->type == KEY_UINT || k->type == KEY_PCT)
		say_range(&w, k);
	if (k->type == KEY_LIST)
		say(&w, " of at most %" PRIu64, k->max);
	if (k->percent == PERCENT_PHYSICAL)
		say(&w, ", or a percentage of the host's memory");
	if (k->percent == PERCENT_MEMORY)
		say(&w, ", or a percentage of the VM's memory");
	if (k->zero)
		say(&w, ", or %s", k->zero);
	return buf;
}
