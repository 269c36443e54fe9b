/* placed_lock.c -- a lock word in memory that it shares with other things: told from them by a head in front.
 *
 *     0          8
 *     | head     | lock word |       all zeroes: no lock is here yet
 *
 * A lock that nobody has is a zero, so making one is a single step, and a maker killed at any point leaves either
 * none or a whole one. Does not know whose memory that is. See lock.c for the word. */
#include <errno.h>
#include <stdatomic.h>

#include "pyloop.h"

#define HEAD UINT64_C(0x706c2d6c6f636b01) /* "pl-lock", version 1 */

struct place {
    _Atomic uint64_t head;
    _Atomic uint64_t word;
};

_Static_assert(sizeof(struct place) == PL_LOCK_SIZE, "as the contract says");
_Static_assert(_Alignof(struct place) <= PL_LOCK_ALIGN, "as the contract says");

int pl_lock_place(void *memory, int create, uint64_t **word)
{
    struct place *place = memory;
    uint64_t seen = atomic_load(&place->head);
    if (!seen && create == PL_ATTACH)
        return -ENOENT;
    if (!seen && atomic_compare_exchange_strong(&place->head, &seen, HEAD))
        seen = HEAD;
    else if (seen == HEAD && create == PL_CREATE)
        return -EEXIST;
    if (seen != HEAD)
        return PL_E_FOREIGN;
    *word = (uint64_t *)&place->word;
    return 0;
}
