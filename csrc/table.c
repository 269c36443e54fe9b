/* table.c -- id <-> tenant: an array of slots with a free list through it.
 *
 * Slots are never given back, so `slot` may index arrays elsewhere (Python keeps a list beside it).
 * Generations start at 1: no id is 0. */
#include "table.h"

#include <errno.h>
#include <stdlib.h>

#define FIRST_SLOTS 64u

static int grow_slots(struct table *t)
{
    uint32_t cap = t->cap ? t->cap * 2 : FIRST_SLOTS;
    struct slot *slots = realloc(t->slots, cap * sizeof *slots);
    if (!slots)
        return -ENOMEM;
    for (uint32_t i = cap; i-- > t->cap;) {
        slots[i] = (struct slot){.generation = 1, .next_free = t->free};
        t->free = i + 1;
    }
    t->slots = slots;
    t->cap = cap;
    return 0;
}

int table_add(struct table *t, void *tenant, uint64_t *id)
{
    if (!t->free) {
        int rc = grow_slots(t);
        if (rc < 0)
            return rc;
    }
    uint32_t number = t->free - 1;
    struct slot *slot = &t->slots[number];
    t->free = slot->next_free;
    slot->tenant = tenant;
    t->used++;
    *id = (uint64_t)slot->generation << 32 | number;
    return 0;
}

void table_remove(struct table *t, uint64_t id)
{
    struct slot *slot = &t->slots[(uint32_t)id];
    slot->tenant = NULL;
    if (++slot->generation == 0)
        slot->generation = 1;
    slot->next_free = t->free;
    t->free = (uint32_t)id + 1;
    t->used--;
}

void table_fini(struct table *t)
{
    free(t->slots);
    *t = (struct table){0};
}
