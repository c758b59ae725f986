/*
 * host/: one daemon a host, `brimd`: so far, the host's side of sharing equal pages.
 *
 * index.c     hash to page, of one share group
 *
 * Thread: one, which does a bounded amount of work a turn.
 */
#ifndef BRIM_HOST_H
#define BRIM_HOST_H

#include "mm/mm.h"

#endif
