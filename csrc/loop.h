/* loop.h -- the record that the files of the loop share, and what they call of each other:
 *
 *     loop.c       the tick, and the making and guarding of a loop
 *     lent.c       calls by id, of asyncio's transports
 *     api.c        calls by id, of all
 *     gather.c     readiness -> events        accept.c     who calls
 *     lifecycle.c  how a conn comes and goes  group.c      groups and listeners
 *     dgrams.c     datagram sockets           watch.c      who wants what of which fd
 *
 * Nothing below them sees it. */
#ifndef PYLOOP_LOOP_H
#define PYLOOP_LOOP_H

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>

#include "batch.h"
#include "conn.h"
#include "datagram.h"
#include "deadline.h"
#include "listener.h"
#include "poller.h"
#include "pyloop.h"
#include "slots.h"
#include "table.h"
#include "wake.h"

#define READ_BUDGET_BYTES (64u * 1024u) /* received from one conn in one tick, at most */
#define RAW_BUDGET_BYTES RECEIVE_BYTES  /* the same without framing: one message, however long */
#define CONN_BUDGET_EVENTS 1024u        /* messages of one conn in one tick, at most */
#define DATAGRAM_BUDGET 32u             /* received from one socket in one tick, at most */
#define SEND_NOW_BYTES 4096u            /* a datagram of this size is not queued if the kernel takes it */
#define SEND_REST_NS 1000000            /* a dgram that waits in vain to be writable tries again after this */
#define ACCEPT_BUDGET 64                /* conns accepted by one listener in one tick, at most */
#define HAND_OVER_BUDGET 4 /* the same for PL_HAND_OVER: each costs its owner a thread or a fork */
#define ACCEPT_PAUSE_NS 100000000       /* accepting rests this long when fds or memory are short */
#define ACCEPT_YIELD_NS 1000000         /* and a group this long that is above its share */
#define AUTO_MAX_WATCHED 64u            /* more than this, and auto leaves select */

enum owner {
    OWNER_NONE,
    OWNER_WATCHER,
    OWNER_LISTENER,
    OWNER_CONN,
    OWNER_DGRAM,
    OWNER_WAKE,
    OWNER_SIGNAL
};

struct fd_entry { /* indexed by fd */
    uint32_t index; /* OWNER_CONN, OWNER_DGRAM: slot in the table; OWNER_LISTENER: number of the listener */
    uint8_t owner;
    uint8_t interest;
};

struct conn_list {
    struct conn *head, *tail;
};

struct dgrams { /* the datagram sockets of a loop */
    struct table table;
    struct dgram *flush;  /* with something to send, in any order */
    struct dgram *tell;   /* with something to tell without being ready */
    struct dgram *buried; /* told PL_EV_DATAGRAM_LOST: freed with the next tick */
    struct slots slots;
    int64_t rest_at;      /* when those at rest try again; 0: none rests */
};

struct pl_loop {
    /* who may call */
    atomic_uintptr_t runner; /* pthread_self of the thread that runs it, 0 = nobody */
    const uint32_t *mark;    /* a word that the kernel wipes in a forked child */
    int pid;

    /* what is watched */
    struct poller poller;
    bool automatic;
    uint32_t watched;
    struct fd_entry *fds;
    int fds_cap;
    int ready_at, ready_count; /* the part of poller.ready that waits for the next tick */
    struct wake wake;

    /* who is there */
    struct table table;
    struct group **groups;
    struct listener *listeners;
    uint32_t groups_cap, listeners_cap;
    uint32_t groups_used; /* no group below this is free */
    struct chunk_pool pool;
    struct dgrams dgrams;

    /* what is to be done */
    struct conn *flush;       /* conns with fresh output, in any order */
    struct conn_list pending; /* conns that have something to say without being ready */
    struct conn *buried;      /* told PL_EV_LOST: freed with the next tick */
    struct deadlines deadlines;
    int64_t accept_at;        /* when accepting goes on; 0: it is not resting */
    int64_t yield_at;         /* when the groups that yield go on; 0: none does */
    uint32_t tick;
    int64_t now, busy_since;

    struct batch batch;
    struct pl_loop_counters *counters; /* the caller's, or own */
    struct pl_loop_counters own;
};

static inline uintptr_t loop_thread(void) { return (uintptr_t)pthread_self(); }
static inline bool loop_is_foreign(const struct pl_loop *loop) { return !*loop->mark; }

/* 0, -ESTALE, PL_E_FORKED or PL_E_THREAD. */
static inline int loop_guard(const struct pl_loop *loop)
{
    if (!loop)
        return -ESTALE;
    if (loop_is_foreign(loop))
        return PL_E_FORKED;
    uintptr_t runner = atomic_load_explicit(&loop->runner, memory_order_relaxed);
    return runner && runner != loop_thread() ? PL_E_THREAD : 0;
}

/* The conn of a live id, or NULL and the reason in *rc. */
static inline struct conn *conn_find(struct pl_loop *loop, uint64_t id, int *rc)
{
    *rc = loop_guard(loop);
    if (*rc < 0)
        return NULL;
    struct conn *c = table_get(&loop->table, id);
    if (c && !(c->flags & CONN_DEAD))
        return c;
    *rc = -ESTALE;
    return NULL;
}

/* watch.c: set who owns `fd` and what it wants; moves `auto` to another poller when it must. 0 or -errno, as
 * pl_watch. Interest 0 with OWNER_NONE forgets the fd and never fails. */
int watch_set(struct pl_loop *loop, int fd, enum owner owner, uint32_t index, uint32_t interest);
void watch_forget(struct pl_loop *loop, int fd);

/* group.c */
struct group *group_get(const struct pl_loop *loop, int64_t number); /* NULL: none */
void group_add(struct group *g);                                     /* one more of both */
void group_release(struct pl_loop *loop, struct group *g);           /* one open fd fewer */
void group_forget(struct pl_loop *loop, struct group *g);            /* one record fewer; may free it */
void group_pause(struct pl_loop *loop, struct group *g, bool full);  /* its listeners, at max_connections */
bool group_yields(struct pl_loop *loop, struct group *g); /* let the other processes on its listeners go first? */
void yields_end(struct pl_loop *loop);
void accepting_pause(struct pl_loop *loop);                          /* all listeners, for ACCEPT_PAUSE_NS */
void accepting_resume(struct pl_loop *loop);
void listener_drop(struct pl_loop *loop, uint32_t number);

/* lifecycle.c */
/* 0 or -errno, and then fd is untouched. */
int conn_adopt(struct pl_loop *loop, struct group *g, int fd, uint64_t *id);
void conn_kill(struct pl_loop *loop, struct conn *c, int reason); /* close the fd now; PL_EV_LOST follows */
void conn_abort(struct pl_loop *loop, struct conn *c, int reason); /* the same, counted, and the peer is reset */
void conn_finish(struct pl_loop *loop, struct conn *c);           /* start closing */
void conn_push_out(struct pl_loop *loop, struct conn *c);         /* flush, and what follows from it */
void conn_update(struct pl_loop *loop, struct conn *c);           /* interest, after its state changed */
void conn_pend(struct pl_loop *loop, struct conn *c);             /* look at it in the next gather */
void conn_mark_flush(struct pl_loop *loop, struct conn *c);       /* offer its output in the next flush */
void flush_all(struct pl_loop *loop);
void bury(struct pl_loop *loop); /* free the conns whose PL_EV_LOST has been told */

/* dgrams.c */
void dgrams_reset(struct pl_loop *loop);                             /* a new tick */
void dgrams_flush(struct pl_loop *loop);
void dgrams_tell(struct pl_loop *loop);                              /* errors, room to write, and ends */
void dgrams_gather(struct pl_loop *loop, uint32_t slot, uint32_t mask); /* one of them is ready */
void dgrams_lose(struct pl_loop *loop, uint32_t slot);               /* its fd was closed behind the loop's back */
void dgrams_free(struct pl_loop *loop);

/* accept.c */
void accept_some(struct pl_loop *loop, uint32_t listener);
void lose_fd(struct pl_loop *loop, int fd); /* it was closed behind the loop's back */

/* gather.c */
void gather_ready(struct pl_loop *loop);
void gather_pending(struct pl_loop *loop);
void expire(struct pl_loop *loop);

#endif
