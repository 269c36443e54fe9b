/* lifecycle.c -- how a conn enters the loop, flushes, closes and dies. See conn.h for the states.
 *
 * Nothing here writes events: what happened is a flag, and gather.c tells it in the next gather. */
#include <errno.h>

#include "loop.h"
#include "sock.h"

int conn_adopt(struct pl_loop *loop, struct group *g, int fd, uint64_t *id)
{
    struct conn *c = conn_new(g, fd, loop->now);
    if (!c)
        return -ENOMEM;
    c->served = loop->tick; /* PL_EV_OPEN has a batch to itself */
    int rc = table_add(&loop->table, c, &c->id);
    if (rc < 0)
        goto free_conn;
    rc = watch_set(loop, fd, OWNER_CONN, (uint32_t)c->id, PL_READ);
    if (rc < 0)
        goto remove_conn;
    rc = deadline_arm(&loop->deadlines, c);
    if (rc < 0)
        goto forget_fd;
    if (g->options.flags & PL_NODELAY)
        sock_set_nodelay(fd); /* a peer that is gone already is told later */
    group_add(g);
    g->counters->accepted++;
    *id = c->id;
    return 0;

forget_fd:
    watch_forget(loop, fd);
remove_conn:
    table_remove(&loop->table, c->id);
free_conn:
    conn_free(c, &loop->pool);
    return rc;
}

void conn_pend(struct pl_loop *loop, struct conn *c)
{
    if (c->flags & CONN_IN_PENDING)
        return;
    c->flags |= CONN_IN_PENDING;
    c->next_pending = NULL;
    if (loop->pending.head)
        loop->pending.tail->next_pending = c;
    else
        loop->pending.head = c;
    loop->pending.tail = c;
}

void conn_kill(struct pl_loop *loop, struct conn *c, int reason)
{
    if (c->flags & CONN_DEAD)
        return;
    watch_forget(loop, c->fd);
    deadline_disarm(&loop->deadlines, c);
    if (!(c->flags & CONN_LENT))
        sock_close(c->fd);
    c->fd = -1;
    c->flags |= CONN_DEAD;
    c->reason = reason;
    queue_fini(&c->out, &loop->pool);
    group_release(loop, c->group);
    conn_pend(loop, c);
}

void conn_abort(struct pl_loop *loop, struct conn *c, int reason)
{
    c->group->counters->aborts++;
    if (!conn_is(c, PL_BORROWED))
        sock_reset_on_close(c->fd);
    conn_kill(loop, c, reason);
}

void conn_update(struct pl_loop *loop, struct conn *c)
{
    uint32_t interest = conn_interest(c);
    if (c->flags & CONN_DEAD || loop->fds[c->fd].interest == interest)
        return;
    int rc = watch_set(loop, c->fd, OWNER_CONN, (uint32_t)c->id, interest);
    if (rc < 0)
        conn_kill(loop, c, rc);
}

/* All output is with the kernel: what was waiting for that? */
static void on_flushed(struct pl_loop *loop, struct conn *c)
{
    bool closing = c->flags & CONN_CLOSING;
    if (closing && conn_is(c, PL_BORROWED)) {
        if (!(c->flags & CONN_RESUME)) /* else there may be more to send: TLS's own end, say */
            conn_kill(loop, c, 0);
        return;
    }
    if (!(c->flags & CONN_SHUT) || c->flags & CONN_LINGERING)
        return;
    if (closing && c->flags & CONN_PEER_EOF) {
        conn_kill(loop, c, 0); /* no unread input is left: close() resets nobody */
        return;
    }
    sock_shutdown_write(c->fd); /* ENOTCONN: the peer reset it, which the next receive tells */
    if (!closing) {
        c->flags &= ~(uint32_t)CONN_SHUT;
        c->flags |= CONN_WRITE_DONE;
        return;
    }
    if (!c->group->options.linger) {
        conn_kill(loop, c, 0);
        return;
    }
    c->flags |= CONN_LINGERING;
    c->since_ns = loop->now;
    if (deadline_arm(&loop->deadlines, c) < 0)
        conn_kill(loop, c, 0);
}

void conn_push_out(struct pl_loop *loop, struct conn *c)
{
    int rc = conn_flush(c, &loop->pool, loop->now);
    uint32_t deaf = CONN_CLOSING | CONN_FAULTED | CONN_EOF_TOLD;
    if (rc == PL_E_TRUNCATED) {
        conn_abort(loop, c, rc); /* an end in good order would say that this was all */
        return;
    }
    if (rc < 0 && c->flags & CONN_UNCUT && !(c->flags & deaf)) {
        /* The peer takes no answers; what it said before is told, then the next receive ends it. */
        queue_fini(&c->out, &loop->pool);
        c->flags |= CONN_WRITE_DONE | (c->flags & CONN_ABOVE ? CONN_RESUME : 0);
        c->flags &= ~(uint32_t)(CONN_BLOCKED | CONN_ABOVE);
        conn_pend(loop, c);
        conn_update(loop, c);
        return;
    }
    if (rc < 0) {
        conn_kill(loop, c, rc);
        return;
    }
    if (c->flags & CONN_ABOVE && c->out.len <= c->group->options.low_water) {
        c->flags = (c->flags & ~(uint32_t)CONN_ABOVE) | CONN_RESUME;
        conn_pend(loop, c);
    }
    if (rc == 1)
        on_flushed(loop, c);
    conn_update(loop, c);
}

void conn_finish(struct pl_loop *loop, struct conn *c)
{
    if (c->flags & (CONN_CLOSING | CONN_DEAD))
        return;
    if (conn_is(c, PL_BORROWED) && !c->out.len && !(c->flags & CONN_RESUME)) {
        conn_kill(loop, c, 0);
        return;
    }
    c->flags |= CONN_CLOSING;
    if (!conn_is(c, PL_BORROWED))
        c->flags |= CONN_SHUT;
    c->since_ns = loop->now;
    if (deadline_arm(&loop->deadlines, c) < 0) {
        conn_kill(loop, c, -ENOMEM);
        return;
    }
    conn_mark_flush(loop, c);
    conn_update(loop, c);
}

void conn_mark_flush(struct pl_loop *loop, struct conn *c)
{
    if (c->flags & CONN_IN_FLUSH)
        return;
    c->flags |= CONN_IN_FLUSH;
    c->next_flush = loop->flush;
    loop->flush = c;
}

void flush_all(struct pl_loop *loop)
{
    while (loop->flush) {
        struct conn *c = loop->flush;
        loop->flush = c->next_flush;
        c->flags &= ~(uint32_t)CONN_IN_FLUSH;
        if (!(c->flags & (CONN_DEAD | CONN_BLOCKED)))
            conn_push_out(loop, c);
    }
}

void bury(struct pl_loop *loop)
{
    while (loop->buried) {
        struct conn *c = loop->buried;
        loop->buried = c->next_pending;
        table_remove(&loop->table, c->id);
        group_forget(loop, c->group);
        conn_free(c, &loop->pool);
    }
}
