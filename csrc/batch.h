/* batch.h -- the events of one tick and the arena that owns their bytes.
 *
 *     events [ e0 e1 e2 ............ PL_EVENTS_MAX )    arena [ used | tail: receive here )
 *
 * Both are allocated once and reused; pages that no tick has touched cost nothing. Who finds room in a batch has room
 * for a whole receive: a message that is cut in two for want of it would cost twice. No I/O. */
#ifndef PYLOOP_BATCH_H
#define PYLOOP_BATCH_H

#include "buf.h"
#include "pyloop.h"

#define RECEIVE_BYTES (256u * 1024u) /* at most, in one call */
#define ARENA_BYTES (2 * RECEIVE_BYTES)
#define ARENA_START_BYTES 64u /* where the first receive of a tick goes, in whole pages: see batch.c */
#define ARENA_STOP_BYTES RECEIVE_BYTES /* with less than this left, gathering goes on in the next tick */
#define EVENTS_SPARE 8u                /* what one conn may need beyond its messages */

struct batch {
    struct pl_event *events;
    uint32_t count;
    uint8_t *arena;
    size_t used;
    void **kept; /* memory that events point into although its owner let go */
    uint32_t kept_count, kept_cap;
};

int batch_init(struct batch *b); /* 0 or -ENOMEM */
void batch_fini(struct batch *b);
void batch_reset(struct batch *b); /* forget all events and bytes */

/* Free `memory` with the next reset, not before. 0, or -ENOMEM (then nothing was taken). */
int batch_keep(struct batch *b, void *memory);

/* Is there room to gather from one more fd? */
static inline int batch_has_room(const struct batch *b)
{
    return b->count + EVENTS_SPARE < PL_EVENTS_MAX && b->used + ARENA_STOP_BYTES <= ARENA_BYTES;
}

/* Append an event; the caller has asked batch_has_room. */
static inline struct pl_event *batch_push(struct batch *b, enum pl_event_kind kind, uint64_t id)
{
    struct pl_event *e = &b->events[b->count++];
    *e = (struct pl_event){.id = id, .kind = kind, .slot = (uint32_t)id};
    return e;
}

/* The free part of the arena, and taking `len` bytes of it. */
static inline uint8_t *arena_tail(const struct batch *b) { return b->arena + b->used; }
static inline size_t arena_room(const struct batch *b) { return ARENA_BYTES - b->used; }
static inline void arena_commit(struct batch *b, size_t len) { b->used += len; }

#endif
