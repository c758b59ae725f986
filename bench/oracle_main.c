/*
 * oracle: the least memory that the equal pages of some VMs need.
 *
 *	oracle [--json] [--compare] [--resident] [--ram SIZE] PID...
 *
 * PIDs are those of VMMs (brim-vmm, qemu-system-x86_64): guest RAM is the run of adjacent
 * private mappings of exactly SIZE, or without --ram the longest.  The guests should be
 * at rest; --compare then checks that equal hashes are equal pages.  Reads all of their
 * memory, so that what is away comes back: read off what they save before.  --resident
 * only says how many pages have memory now, and brings nothing back.
 */
#include <errno.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bench/oracle.h"

#define VMS_MAX 64

struct options {
	bool json, compare, resident;
	uint64_t ram_bytes;
	unsigned vms;
	struct oracle_range vm[VMS_MAX];
};

static _Noreturn void die(const char *what, const char *why)
{
	fprintf(stderr, "oracle: %s: %s\n", what, why);
	exit(2);
}

static _Noreturn void usage(FILE *to, int status)
{
	fprintf(to, "usage: oracle [--json] [--compare] [--resident] [--ram SIZE] PID...\n");
	exit(status);
}

static void add_vm(struct options *o, const char *text)
{
	char *end;
	long pid = strtol(text, &end, 10);

	if (end == text || *end || pid <= 0)
		die(text, "not a process id");
	if (o->vms == VMS_MAX)
		die(text, "too many VMs");
	o->vm[o->vms++].pid = (pid_t)pid;
}

static uint64_t parse_size(const char *text)
{
	uint64_t bytes;
	struct err e;

	if (size_parse(text, &bytes, &e))
		die(text, e.msg);
	return bytes;
}

static void parse(struct options *o, int argc, char **argv)
{
	for (int i = 1; i < argc; i++) {
		if (strcmp(argv[i], "--json") == 0)
			o->json = true;
		else if (strcmp(argv[i], "--compare") == 0)
			o->compare = true;
		else if (strcmp(argv[i], "--resident") == 0)
			o->resident = true;
		else if (strcmp(argv[i], "--help") == 0)
			usage(stdout, 0);
		else if (strcmp(argv[i], "--ram") == 0 && i + 1 < argc)
			o->ram_bytes = parse_size(argv[++i]);
		else if (argv[i][0] == '-')
			usage(stderr, 2);
		else
			add_vm(o, argv[i]);
	}
	if (o->vms == 0)
		usage(stderr, 2);
}

/* Finds the guests' RAM.  Pages that have memory now, before it is all read. */
static uint64_t find_guests(struct options *o)
{
	uint64_t resident = 0, n;

	for (unsigned i = 0; i < o->vms; i++) {
		char pid[16];
		int rc;

		snprintf(pid, sizeof(pid), "%d", (int)o->vm[i].pid);
		rc = oracle_guest_ram(o->vm[i].pid, o->ram_bytes, &o->vm[i]);
		if (rc)
			die(pid, rc == -ENOENT ? "no such guest RAM among its mappings" :
						 strerror(-rc));
		rc = oracle_resident(&o->vm[i], &n);
		if (rc)
			die(pid, strerror(-rc));
		resident += n;
	}
	return resident;
}

static void print_json(const struct oracle_counts *c, unsigned vms, uint64_t resident)
{
	json_t *j = json_pack("{s:i, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I}",
			      "vms", (int)vms, "pages", (json_int_t)c->pages,
			      "resident_pages", (json_int_t)resident,
			      "zero_pages", (json_int_t)c->zero_pages,
			      "filled_pages", (json_int_t)c->filled_pages,
			      "contents", (json_int_t)c->contents,
			      "single_pages", (json_int_t)c->single_pages,
			      "most", (json_int_t)c->most,
			      "collisions", (json_int_t)c->collisions,
			      "saving_pages", (json_int_t)c->saving_pages,
			      "equal_pages", (json_int_t)c->equal_pages);

	VERIFY(j);
	json_dumpf(j, stdout, JSON_INDENT(2));
	putchar('\n');
	json_decref(j);
}

static double mib(uint64_t pages)
{
	return (double)(pages << PAGE_SHIFT) / (double)MiB;
}

static void print_text(const struct oracle_counts *c, unsigned vms, uint64_t resident)
{
	printf("%u VMs, %.1f MiB of RAM, %.1f MiB of it with memory now\n", vms, mib(c->pages),
	       mib(resident));
	printf("zeroes            %10.1f MiB\n", mib(c->zero_pages));
	printf("other same-filled %10.1f MiB\n", mib(c->filled_pages));
	printf("contents          %10.1f MiB: the least memory it all needs\n", mib(c->contents));
	printf("equal             %10.1f MiB: saved by sharing, beside the zeroes\n",
	       mib(c->equal_pages));
	if (c->collisions)
		printf("%" PRIu64 " pages differ from others of their hash: the guests ran on\n",
		       c->collisions);
}

int main(int argc, char **argv)
{
	static struct options o;
	struct oracle_counts counts;
	uint64_t resident;
	int rc;

	parse(&o, argc, argv);
	resident = find_guests(&o);
	if (o.resident) {
		printf("%" PRIu64 "\n", resident);
		return 0;
	}
	rc = oracle_count(o.vm, o.vms, o.compare, &counts);
	if (rc)
		die("guest RAM cannot be read", strerror(-rc));
	(o.json ? print_json : print_text)(&counts, o.vms, resident);
	return 0;
}
