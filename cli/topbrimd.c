/*
 * What only brimd knows, for `brim top`: asked on its control socket, once a sample.  Where
 * none runs, or it does not answer in time, the screen does without, and it is left alone
 * for a while.
 */
#include <stdlib.h>
#include <string.h>

#include "cli/top.h"

#define ANSWER_MS 300
#define LEAVE_SAMPLES 10u

static void take_text(char *to, size_t size, const json_t *o, const char *key)
{
	snprintf(to, size, "%s", json_text(o, key));
}

static void take_vm(struct top *t, const json_t *o)
{
	struct top_vm *vm = top_find(t, json_text(o, "name"));
	const char *why = json_string_value(json_array_get(json_object_get(o, "reasons"), 0));

	if (!vm)
		return; /* of its configuration, and not started */
	if (why)
		snprintf(vm->reason, sizeof(vm->reason), "%s", why);
	vm->has_policy = json_u64(o, "reservation_bytes", NULL, &vm->reservation_bytes) &&
			 json_u64(o, "shares", NULL, &vm->shares);
}

static void take(struct top *t, const json_t *status)
{
	const json_t *host = json_object_get(status, "host"), *vm;
	size_t i;

	take_text(t->host.state, sizeof(t->host.state), host, "state");
	take_text(t->host.reason, sizeof(t->host.reason), host, "policy_reason");
	json_array_foreach(json_object_get(status, "vms"), i, vm)
		take_vm(t, vm);
}

void top_ask_brimd(void *ctx, struct top *t)
{
	uint64_t *leave_until = ctx;
	json_t *status = NULL;
	struct ctl *c = NULL;
	int rc;

	if (t->samples < *leave_until)
		return;
	rc = ctl_open_daemon(&c, t->base, NULL);
	if (!rc)
		rc = ctl_call(c, "status", NULL, ANSWER_MS, &status, NULL);
	if (rc)
		*leave_until = t->samples + LEAVE_SAMPLES;
	else
		take(t, status);
	json_decref(status);
	ctl_close(&c);
}
