/* ring.h -- the record of a ring, for ring.c (messages) and ring_make.c (made and found). Contract: pyloop_ring.h. */
#ifndef PYLOOP_RING_RECORD_H
#define PYLOOP_RING_RECORD_H

#include <stdatomic.h>
#include <stdint.h>

#include "region.h"

#define RING_DATA (4 * (uint64_t)REGION_LINE) /* where the records begin */
#define RING_LENGTH_BYTES 8u                  /* a record is a length, the message, padding to the next length */

struct pl_ring {
    struct region region;
    uint64_t capacity, max_message; /* this process's own: what the region says may change */
    _Atomic(int) closed;            /* in this process */
    int spins;                      /* is another CPU there, to make waiting for it worth while? */
    uint64_t seen[2];               /* a side's last sight of the other one's mark, with its own lock */
};

static inline uint64_t record_bytes(uint64_t len)
{
    return RING_LENGTH_BYTES + ((len + 7) & ~(uint64_t)7);
}

#endif
