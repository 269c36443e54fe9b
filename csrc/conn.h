/* conn.h -- one connection: its state, what it holds, what it wants.
 *
 *     open --close--> CLOSING --flushed--> LINGERING --peer's end, or linger--> DEAD --PL_EV_LOST--> freed
 *       \----------------- abort, error: at once ----------------------------->/
 *
 * conn.c knows sockets and bytes, but neither loop nor batch: it answers what has become of the conn, and
 * gather.c acts on that. */
#ifndef PYLOOP_CONN_H
#define PYLOOP_CONN_H

#include "buf.h"
#include "pyloop.h"

enum conn_flag {
    CONN_PAUSED = 1 << 0,      /* Python wants no messages now */
    CONN_PEER_EOF = 1 << 1,    /* the kernel reported end of stream */
    CONN_EOF = 1 << 2,         /* the stream to frame has ended (PL_TLS: said by pl_conn_feed) */
    CONN_EOF_TOLD = 1 << 3,    /* PL_EV_EOF was delivered */
    CONN_FAULTED = 1 << 4,     /* PL_EV_FAULT was delivered: Python closes it */
    CONN_DRAIN = 1 << 5,       /* pl_conn_drain: one last receive, then as if at end of stream */
    CONN_DRAINED = 1 << 6,     /* that receive was made */
    CONN_UNCUT = 1 << 7,       /* bytes in `in` that were not offered to the framing yet */
    CONN_BLOCKED = 1 << 8,     /* the kernel took less than all output */
    CONN_ABOVE = 1 << 9,       /* over high water: PL_EV_RESUME is owed */
    CONN_RESUME = 1 << 10,     /* PL_EV_RESUME is due */
    CONN_SHUT = 1 << 11,       /* the write side is to be shut after flushing */
    CONN_WRITE_DONE = 1 << 12, /* it was, by pl_conn_shutdown */
    CONN_CLOSING = 1 << 13,    /* Python is done with it; output is being flushed */
    CONN_LINGERING = 1 << 14,  /* flushed and shut; input is discarded until the peer's end */
    CONN_DEAD = 1 << 15,       /* the fd is closed; PL_EV_LOST is due */
    CONN_IN_FLUSH = 1 << 16,   /* member of the loop's flush list */
    CONN_IN_PENDING = 1 << 17, /* member of the loop's pending list */
    CONN_READINESS = 1 << 18,  /* pl_conn_readiness: input is told, not received */
    CONN_LENT = 1 << 19        /* PL_BORROWED, and the caller has the fd: it closes it */
};

enum yield {
    YIELD_NO,
    YIELDING,  /* above its share: its listeners are paused */
    YIELD_DONE /* they were: it takes the next, because the others may be stuck */
};

struct group { /* what the conns of a server share */
    struct pl_options options;
    struct pl_counters *counters; /* the caller's, or own */
    struct pl_counters own;
    uint32_t conns;     /* conns with an open fd, and fds handed over */
    uint32_t records;   /* conns that point here, and fds handed over */
    uint32_t handed;    /* fds handed over and not released */
    uint32_t number;
    uint8_t closed;     /* given up by pl_group_free: freed with the last record */
    uint8_t full;       /* at max_connections: its listeners are paused */
    uint8_t yield;      /* enum yield */
    uint32_t refused_tick; /* the tick of its last PL_EV_REFUSED */
    struct pl_loop_counters *const *loop_counters; /* where its loop counts now */
    const struct pl_page *page; /* of those who share its listeners, or NULL */
    uint32_t page_server;       /* its number there */
    uint32_t page_cells, page_stride; /* as checked once: who can write to the page can change its own */
};

/* What counts a PL_EV_FAULT. */
static inline uint64_t *fault_counter(struct group *g, int reason)
{
    int timed_out = reason == PL_E_IDLE || reason == PL_E_MESSAGE_TIME;
    return timed_out ? &g->counters->timeouts : &g->counters->framing_errors;
}

struct conn {
    uint64_t id;
    struct group *group;
    int fd;
    uint32_t flags;          /* enum conn_flag */
    struct buf in;           /* received (PL_TLS: decrypted) and not yet delivered */
    size_t scanned;          /* how far `in` was searched for a terminator */
    struct queue out;
    struct conn *next_flush;
    struct conn *next_pending;
    int64_t active_ns;       /* when a whole message came, or output left */
    int64_t since_ns;        /* start of the unfinished message, of closing, or of lingering; 0 = none */
    const uint8_t *cut_end;  /* end of the messages of this batch that were not put back */
    uint32_t budget;         /* messages in its next gather, at most; 0: CONN_BUDGET_EVENTS */
    uint32_t served;         /* the tick in which it was gathered last */
    uint32_t deadline;       /* position in the heap of deadlines + 1, 0 = not there */
    int32_t reason;          /* CONN_DEAD: the value of PL_EV_LOST */
};

struct conn *conn_new(struct group *group, int fd, int64_t now); /* NULL: no memory. Borrows fd */
void conn_free(struct conn *c, struct chunk_pool *pool);         /* frees what it holds; fd is not closed */

static inline int conn_is(const struct conn *c, enum pl_flag flag)
{
    return (c->group->options.flags & (uint32_t)flag) != 0;
}

/* May messages be cut and delivered now? */
static inline int conn_is_reading(const struct conn *c)
{
    return !(c->flags & (CONN_PAUSED | CONN_EOF_TOLD | CONN_FAULTED | CONN_CLOSING |
                         CONN_LINGERING | CONN_DEAD));
}

/* PL_READ | PL_WRITE as its state wants them. */
static inline uint32_t conn_interest(const struct conn *c)
{
    uint32_t flags = c->flags;
    if (flags & CONN_DEAD)
        return 0;
    uint32_t interest = flags & CONN_BLOCKED ? PL_WRITE : 0;
    if (flags & CONN_PEER_EOF)
        return interest;
    if (flags & (CONN_CLOSING | CONN_LINGERING) && conn_is(c, PL_BORROWED))
        return interest;
    if (flags & (CONN_CLOSING | CONN_LINGERING))
        return interest | PL_READ; /* to discard: a peer that only writes would never read our end */
    return conn_is_reading(c) && !(flags & CONN_DRAIN) ? interest | PL_READ : interest;
}

/* Queue one message: framed by the group's framing, or as it is. A large one goes to the kernel at once, with what is
 * queued before it, as far as it takes them (CONN_BLOCKED: not all), which errors only put off to the next flush. 0;
 * -ENOMEM; pl_framing_wrap's PL_E_*; PL_E_INCOMPLETE: no memory for the rest of what the kernel began to take. */
int conn_queue(struct conn *c, struct chunk_pool *pool, const uint8_t *data, size_t len,
               int framed);

/* The same with [start, start + len) of a mapping, by reference. 0; -ENOMEM; PL_E_PAYLOAD, or as above. */
int conn_queue_mapped(struct conn *c, struct chunk_pool *pool, struct pl_mapping *m, size_t start,
                      size_t len, int framed);

/* Offer queued output to the kernel. 1: all is out; 0: the kernel is full (CONN_BLOCKED); -errno; PL_E_TRUNCATED. */
int conn_flush(struct conn *c, struct chunk_pool *pool, int64_t now);

/* One receive into data[0..len). The count; 0 at end of stream (CONN_PEER_EOF is set); -EAGAIN; -errno. */
int64_t conn_receive(struct conn *c, uint8_t *data, size_t len);

/* When it must be looked at, at the latest, in ns of CLOCK_MONOTONIC; INT64_MAX: never. */
int64_t conn_due(const struct conn *c);

/* Is it idle_timeout that has passed? (Else, when it is due, message_timeout.) */
int conn_is_idle(const struct conn *c, int64_t now);

#endif
