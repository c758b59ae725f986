/*
 * A host that is not there: snapshots for host/api/ in the form that docs/api.md states,
 * of as many VMs as are asked for, whose books balance and whose numbers move.
 */
#ifndef BRIM_TESTS_FAKESNAP_H
#define BRIM_TESTS_FAKESNAP_H

#include <jansson.h>
#include <stdbool.h>

struct fakesnap {
	unsigned vms;        /* the host has two thirds of what they are assigned */
	double time_s;       /* the numbers are those of this moment */
	bool hostile;        /* names and sentences that try to be HTML, and the like */
	const char *state;   /* of VM 1; NULL: "running" */
	json_int_t limit_bytes; /* of VM 1 */
};

/* A new reference. */
json_t *fakesnap_json(const struct fakesnap *f);
/* The name of VM i, from 0 on; of 64 bytes. */
void fakesnap_name(const struct fakesnap *f, unsigned i, char name[64]);

#endif
