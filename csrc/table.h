/* table.h -- id <-> conn, or dgram: the tenant. An id is slot (low 32 bits) and generation (high 32 bits); the
 * generation of a slot rises each time it is emptied, so the id of a tenant that is gone finds nothing, also when
 * the slot has a new one. */
#ifndef PYLOOP_TABLE_H
#define PYLOOP_TABLE_H

#include <stddef.h>
#include <stdint.h>

struct slot {
    void *tenant; /* NULL when free */
    uint32_t generation;
    uint32_t next_free; /* slot number + 1, 0 ends the list */
};

struct table {
    struct slot *slots;
    uint32_t cap, used;
    uint32_t free; /* slot number + 1 of the first free one */
};

/* Enter a tenant; *id names it. 0 or -ENOMEM. */
int table_add(struct table *t, void *tenant, uint64_t *id);

/* Empty the slot of a live id. */
void table_remove(struct table *t, uint64_t id);

void table_fini(struct table *t);

/* The tenant, or NULL for a stale or invented id. */
static inline void *table_get(const struct table *t, uint64_t id)
{
    uint32_t slot = (uint32_t)id;
    if (slot >= t->cap || t->slots[slot].generation != (uint32_t)(id >> 32))
        return NULL;
    return t->slots[slot].tenant;
}

#endif
