/*
 * The table as a page for people (docs/configuration.md), and as a list for a terminal.
 *
 * One thread; no state.
 */
#include <stdlib.h>
#include <string.h>

#include "host/config/internal.h"
#include "mm/policy/policy.h"

static const char *apply_text(enum host_apply apply)
{
	switch (apply) {
	case HOST_APPLY_LIVE:
		return "at once";
	case HOST_APPLY_RESTART_VM:
		return "at the VM's next start";
	default:
		return "when brimd is started next";
	}
}

/* As one would type it; "" where there is none. */
static const char *default_text(enum key_section s, const struct config_key *k, char *buf, size_t len)
{
	struct policy_config policy;

	if (s == SECTION_POLICY) {
		policy_config_default(&policy);
		return value_format(k, (const char *)&policy + k->at, buf, len);
	}
	snprintf(buf, len, "%s", k->def_text ? k->def_text : k->def ? k->def : "");
	return buf;
}

static void put_default(FILE *out, enum key_section s, const struct config_key *k)
{
	char text[128];

	default_text(s, k, text, sizeof(text));
	if (k->is_required)
		fputs("must be given", out);
	else if (k->type == KEY_LIST)
		fputs("none", out);
	else if (k->def_text || !*text)
		fputs(*text ? text : "none", out);
	else
		fprintf(out, "`%s`", text);
}

static void put_capital(FILE *out, const char *text)
{
	fputc(*text >= 'a' && *text <= 'z' ? *text - 'a' + 'A' : *text, out);
	fputs(text + (*text != '\0'), out);
}

/* ---- the page ---------------------------------------------------------------------------- */

static void page_row(FILE *out, enum key_section s, const struct config_key *k)
{
	char expected[256];

	fprintf(out, "**`%s`**: ", k->name);
	put_capital(out, k->help);
	fprintf(out, ".%s  \n*Value:* %s. *Default:* ", k->own_only ? " A VM's own: not in `defaults`." : "",
		key_expected(k, expected, sizeof(expected)));
	put_default(out, s, k);
	fprintf(out, ". *Changes:* %s.\n\n", apply_text(k->apply));
}

static void page_section(FILE *out, enum key_section s, const char *heading)
{
	const struct config_section *section = section_of(s);

	fprintf(out, "%s %s\n\n", heading, section->title);
	if (*section->help)
		fprintf(out, "%s\n\n", section->help);
	for (size_t i = 0; i < section_count(s); i++)
		page_row(out, s, &section->keys[i]);
}

static const char page_top[] =
	"# Configuration\n"
	"\n"
	"<!-- Made from the key table by `make docs`: change host/config/keys_*.c, or the text in\n"
	"     host/config/reference.c, not this file. -->\n"
	"\n"
	"One YAML file describes a host: what brim may use of it, how its policy decides, and its VMs.\n"
	"\n"
	"    brim config check FILE     # is it right? every error, with line, column and what was expected\n"
	"    brim config show FILE      # what is in effect; --origin: and where each value came from\n"
	"    brim config diff OLD NEW   # what a change takes: applied at once, or at the next start\n"
	"    brim config keys           # this page, for a terminal\n"
	"\n"
	"[examples/](../examples) has files to begin with; `docs/brim.schema.json` tells editors what may "
	"stand where:\n"
	"put `# yaml-language-server: $schema=PATH/brim.schema.json` into the first line.\n"
	"\n"
	"    host:\n"
	"      reserve: 4G                   # for everything that is not brim\n"
	"      swap:\n"
	"        - dir: /srv/brim/swap       # room for what VMs are promised beyond the host's memory\n"
	"          size: 200G\n"
	"    defaults:                       # of every VM that does not say otherwise\n"
	"      kernel: /boot/vmlinuz\n"
	"      append: root=/dev/vda\n"
	"    vms:\n"
	"      - name: db\n"
	"        memory: 24G\n"
	"        reservation: 50%\n"
	"        shares: 4000\n"
	"        disks: [/srv/db.img]\n"
	"      - name: web                   # web-1 ... web-8\n"
	"        count: 8\n"
	"        memory: 8G\n"
	"        disks: [\"/srv/${name}.img\"]\n"
	"        after: db\n"
	"\n"
	"## What is the same everywhere\n"
	"\n"
	"- **Sizes** are `512M`, `1.5G`, `24GiB`; units are binary. Where it says so, a percentage will do.\n"
	"- **Times** are `250ms`, `5s`, `2m`, `1h`, `1d`; a number alone is seconds.\n"
	"- A key with a dot is a mapping: `swap.size` is written `swap: {size: 16G}`, or in two lines.\n"
	"- **Paths** that do not begin with `/` are relative to the directory of the file.\n"
	"- In texts (paths, command lines, names), `${NAME}` is a variable of the environment,\n"
	"  `${NAME:-VALUE}` gives it a default, and `$${` stands for `${`. In a VM's, `${name}` is the VM's\n"
	"  name and `${n}` its number where it has a `count`.\n"
	"- **Aliases** (`&x`, `*x`) are read, merge keys (`<<`) are not: what VMs have in common is in "
	"`defaults`.\n"
	"- A list or a text of a VM replaces that of `defaults`; it is not added to it.\n"
	"- A file is at most 1 MiB, 16 levels deep, and has at most 1024 VMs.\n"
	"\n"
	"An unknown key is an error, so is one that is given twice, and all errors are reported at once. "
	"Whether\n"
	"reservations and swap fit the host is decided when VMs are started, since it depends on what runs "
	"there.\n"
	"\n";

void host_config_page(FILE *out)
{
	fputs(page_top, out);
	page_section(out, SECTION_HOST, "##");
	page_section(out, SECTION_SWAP, "###");
	page_section(out, SECTION_POLICY, "##");
	page_section(out, SECTION_VM, "##");
	page_section(out, SECTION_DISK, "###");
	page_section(out, SECTION_NET, "###");
}

/* ---- the list ------------------------------------------------------------------------------ */

static void list_section(FILE *out, enum key_section s)
{
	const struct config_section *section = section_of(s);

	fprintf(out, "%s:\n", section->name);
	for (size_t i = 0; i < section_count(s); i++) {
		const struct config_key *k = &section->keys[i];
		char expected[256];

		fprintf(out, "  %-24s %s (default: ", k->name, key_expected(k, expected, sizeof(expected)));
		put_default(out, s, k);
		fputs(")\n", out);
	}
}

void host_config_keys(FILE *out)
{
	for (enum key_section s = 0; s < SECTIONS; s++)
		list_section(out, s);
}
