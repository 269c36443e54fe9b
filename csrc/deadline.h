/* deadline.h -- which conn must be looked at first: a binary heap, kept lazily.
 *
 * A conn's key is a lower bound of when it is due: activity makes it later without touching the heap, and
 * only when the key has passed is conn_due asked again. So a message costs nothing here, and a conn
 * with an idle time-out costs one heap operation per time-out. */
#ifndef PYLOOP_DEADLINE_H
#define PYLOOP_DEADLINE_H

#include "conn.h"

struct deadline {
    int64_t due_ns;
    struct conn *conn;
};

struct deadlines {
    struct deadline *heap;
    uint32_t count, cap;
};

/* Look at `c` no later than conn_due(c) says now. 0 or -ENOMEM. */
int deadline_arm(struct deadlines *d, struct conn *c);
void deadline_disarm(struct deadlines *d, struct conn *c);

/* The earliest key, or INT64_MAX. */
int64_t deadline_first(const struct deadlines *d);

/* A conn that is really due at `now`, taken out of the heap; NULL when there is none (more). */
struct conn *deadline_pop(struct deadlines *d, int64_t now);

void deadlines_fini(struct deadlines *d);

#endif
