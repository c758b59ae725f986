/*
 * The escape key of the console.
 *
 *	plain --Ctrl-]--> armed --d s k ?--> plain, and the action
 *	  |                 |--]  Ctrl-]---> plain, and Ctrl-] goes to the guest
 *	  any other byte    `--other-------> plain, nothing goes to the guest
 *	  goes to the guest
 *
 * Ctrl-] because shells and editors leave it alone, and telnet and virsh have
 * taught it.  No state but the caller's struct escape.
 */
#include "cli/cli.h"

const struct row escape_keys[] = {
	{ "Ctrl-] d", "detach: leave the VM running" },
	{ "Ctrl-] s", "stop: press the VM's power button" },
	{ "Ctrl-] k", "kill: end the VM at once" },
	{ "Ctrl-] ]", "send Ctrl-] to the guest" },
	{ "Ctrl-] ?", "show these keys" },
	{ NULL, NULL },
};

enum escape_action escape_feed(struct escape *s, uint8_t in, uint8_t *out)
{
	if (!s->armed) {
		s->armed = in == ESCAPE_KEY;
		*out = in;
		return s->armed ? ESCAPE_NONE : ESCAPE_SEND;
	}
	s->armed = false;
	switch (in) {
	case 'd':
		return ESCAPE_DETACH;
	case 's':
		return ESCAPE_STOP;
	case 'k':
		return ESCAPE_KILL;
	case '?':
		return ESCAPE_HELP;
	case ']':
	case ESCAPE_KEY:
		*out = ESCAPE_KEY;
		return ESCAPE_SEND;
	default:
		return ESCAPE_UNKNOWN;
	}
}
