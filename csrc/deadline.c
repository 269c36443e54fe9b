/* deadline.c -- a binary heap of conns by due time; conn->deadline is the position + 1. */
#include "deadline.h"

#include <errno.h>
#include <stdlib.h>

static void place(struct deadlines *d, uint32_t at, struct deadline entry)
{
    d->heap[at] = entry;
    entry.conn->deadline = at + 1;
}

/* Let `entry` find its place, starting at the hole `at`. */
static void sift(struct deadlines *d, uint32_t at, struct deadline entry)
{
    while (at && entry.due_ns < d->heap[(at - 1) / 2].due_ns) {
        place(d, at, d->heap[(at - 1) / 2]);
        at = (at - 1) / 2;
    }
    for (;;) {
        uint32_t child = 2 * at + 1;
        if (child + 1 < d->count && d->heap[child + 1].due_ns < d->heap[child].due_ns)
            child++;
        if (child >= d->count || entry.due_ns <= d->heap[child].due_ns)
            break;
        place(d, at, d->heap[child]);
        at = child;
    }
    place(d, at, entry);
}

static int make_room(struct deadlines *d)
{
    if (d->count < d->cap)
        return 0;
    uint32_t cap = d->cap ? d->cap * 2 : 64;
    struct deadline *heap = realloc(d->heap, cap * sizeof *heap);
    if (!heap)
        return -ENOMEM;
    d->heap = heap;
    d->cap = cap;
    return 0;
}

int deadline_arm(struct deadlines *d, struct conn *c)
{
    struct deadline entry = {conn_due(c), c};
    if (c->deadline) {
        sift(d, c->deadline - 1, entry);
        return 0;
    }
    if (entry.due_ns == INT64_MAX)
        return 0;
    int rc = make_room(d);
    if (rc < 0)
        return rc;
    sift(d, d->count++, entry);
    return 0;
}

void deadline_disarm(struct deadlines *d, struct conn *c)
{
    if (!c->deadline)
        return;
    uint32_t at = c->deadline - 1;
    c->deadline = 0;
    struct deadline last = d->heap[--d->count];
    if (last.conn != c)
        sift(d, at, last);
}

int64_t deadline_first(const struct deadlines *d)
{
    return d->count ? d->heap[0].due_ns : INT64_MAX;
}

struct conn *deadline_pop(struct deadlines *d, int64_t now)
{
    while (d->count && d->heap[0].due_ns <= now) {
        struct conn *c = d->heap[0].conn;
        if (conn_due(c) <= now) {
            deadline_disarm(d, c);
            return c;
        }
        deadline_arm(d, c);
    }
    return NULL;
}

void deadlines_fini(struct deadlines *d)
{
    free(d->heap);
    *d = (struct deadlines){0};
}
