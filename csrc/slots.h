/* slots.h -- what datagrams are received into: one piece of memory, of which each tick gives away slots from the
 * front on, and which is whole again with the next.
 *
 *     [ head data....... | head data....... | head data....... |                      ) SLOTS_BYTES
 *       given away: events point into it                      used        free
 *
 * It is mostly untouched, and costs nothing where it is. After a flood of large datagrams the kernel gets back what
 * lies beyond SLOTS_KEPT_BYTES, once SLOTS_CALM_TICKS ticks in a row have not needed it. */
#ifndef SLOTS_H
#define SLOTS_H

#include <stddef.h>
#include <stdint.h>

#include "pyloop.h"
#include "sock.h"

#define SLOTS_BYTES ((size_t)(4u * 1024u * 1024u + PL_DATAGRAM_MAX + 20480u))
#define SLOTS_SHARE_BYTES (SLOTS_BYTES / 2) /* of one socket in one tick, at most */
#define SLOTS_KEPT_BYTES ((size_t)(512u * 1024u))
#define SLOTS_CALM_TICKS 64u

struct slots {
    uint8_t *memory; /* NULL: nobody has asked for it */
    size_t used;
    size_t touched; /* nothing was received beyond this */
    uint32_t calm;  /* ticks since SLOTS_KEPT_BYTES did not do */
};

int slots_init(struct slots *slots); /* 0, also when it was called before; -ENOMEM */
void slots_fini(struct slots *slots);
void slots_reset(struct slots *slots); /* a new tick: all are free */

/* Is there a slot for a datagram of any length? */
static inline int slots_have_room(const struct slots *slots)
{
    return slots->used + PL_DATAGRAM_MAX + PL_DATAGRAM_HEAD + 128 <= SLOTS_BYTES;
}

/* Point up to n packets at free slots for datagrams of max_len bytes, and at where their addresses are to be put. How
 * many it are: at least one if slots_have_room. */
int slots_offer(const struct slots *slots, struct packet *packets, int n, size_t max_len);

/* The first n of them were received into: they are taken, and their heads written. */
void slots_take(struct slots *slots, struct packet *packets, int n, size_t max_len);

#endif
