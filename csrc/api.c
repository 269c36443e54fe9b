/* api.c -- what Python does to a conn, by id: send, close, pause, hold, feed. Each takes effect through the
 * conn's state; its events come with the next tick. */
#include <errno.h>
#include <string.h>

#include "loop.h"
#include "sock.h"

int pl_conn_open(struct pl_loop *loop, int group, int fd, uint64_t *id)
{
    int rc = loop_guard(loop);
    if (rc < 0)
        return rc;
    struct group *g = group_get(loop, group);
    if (!g)
        return -EINVAL;
    if (fd >= 0 && fd < loop->fds_cap && loop->fds[fd].owner != OWNER_NONE)
        return -EEXIST;
    if ((rc = sock_set_nonblocking(fd, 1)) < 0)
        return rc;
    loop->now = sock_now();
    rc = conn_adopt(loop, g, fd, id);
    if (rc == 0 && g->options.flags & PL_BORROWED) {
        struct conn *c = table_get(&loop->table, *id);
        c->flags |= CONN_LENT;
    }
    return rc;
}

/* It is above high water again: a PL_EV_RESUME that is due, or not yet looked at, would be a lie. */
static void take_back_resume(struct pl_loop *loop, struct conn *c)
{
    struct batch *batch = &loop->batch;
    c->flags &= ~(uint32_t)CONN_RESUME;
    for (uint32_t i = 0; c->served == loop->tick && i < batch->count; i++)
        if (batch->events[i].id == c->id && batch->events[i].kind == PL_EV_RESUME)
            batch->events[i].kind = PL_EV_NONE;
}

/* Output passed high water: offer it to the kernel before anybody is asked to pause. */
static int relieve(struct pl_loop *loop, struct conn *c)
{
    if (c->flags & CONN_ABOVE)
        return 0;
    if (!(c->flags & CONN_BLOCKED))
        conn_push_out(loop, c);
    if (c->flags & CONN_DEAD || c->out.len <= c->group->options.high_water)
        return 0;
    c->flags |= CONN_ABOVE;
    take_back_resume(loop, c);
    return 1;
}

/* May another message be queued, with `waiting` bytes more outside the core? Tested before queuing, so that
 * one message of any size may go. */
static int admit(struct pl_loop *loop, struct conn *c, size_t waiting)
{
    uint64_t limit = c->group->options.write_limit;
    if (c->flags & (CONN_SHUT | CONN_WRITE_DONE)) {
        c->group->counters->dropped++;
        return -EPIPE;
    }
    if (!limit || c->out.len + waiting <= limit)
        return 0;
    c->group->counters->write_limit_aborts++;
    pl_conn_abort(loop, c->id, PL_E_WRITE_LIMIT);
    return PL_E_WRITE_LIMIT;
}

int pl_conn_admit(struct pl_loop *loop, uint64_t id, size_t waiting)
{
    int rc;
    struct conn *c = conn_find(loop, id, &rc);
    if (!c)
        return rc;
    rc = admit(loop, c, waiting);
    c->group->counters->messages_out += rc == 0;
    if (rc == 0 && c->group->options.idle_timeout && !(c->flags & CONN_BLOCKED))
        c->active_ns = sock_now(); /* it leaves, but only with the flush after the next wait */
    return rc;
}

int pl_conn_wrap(struct pl_loop *loop, uint64_t id, const uint8_t *data, size_t len,
                 struct pl_wrap *wrap)
{
    int rc;
    const struct conn *c = conn_find(loop, id, &rc);
    return c ? pl_framing_wrap(&c->group->options.framing, data, len, wrap) : rc;
}

/* The conn that may queue another message, or NULL and the reason in *rc. Whether that counts as one is said. */
static inline struct conn *find_writable(struct pl_loop *loop, uint64_t id, bool *counts, int *rc)
{
    struct conn *c = conn_find(loop, id, rc);
    if (!c)
        return NULL;
    *counts = !conn_is(c, PL_TLS); /* the messages of records were admitted */
    if (*counts && (*rc = admit(loop, c, 0)) < 0)
        return NULL;
    if (!(c->flags & (CONN_SHUT | CONN_WRITE_DONE)))
        return c;
    *rc = -EPIPE;
    return NULL;
}

static inline int on_queued(struct pl_loop *loop, struct conn *c, bool counts)
{
    c->group->counters->messages_out += counts;
    if (c->flags & CONN_BLOCKED)
        conn_update(loop, c); /* perhaps only just */
    else
        conn_mark_flush(loop, c);
    return c->out.len > c->group->options.high_water ? relieve(loop, c) : 0;
}

static int send_message(struct pl_loop *loop, uint64_t id, const uint8_t *data, size_t len,
                        int framed)
{
    int rc;
    bool counts;
    struct conn *c = find_writable(loop, id, &counts, &rc);
    if (!c)
        return rc;
    rc = conn_queue(c, &loop->pool, data, len, framed);
    if (rc == PL_E_INCOMPLETE) {
        conn_abort(loop, c, -ENOMEM); /* the peer has half of it */
        return 0;
    }
    return rc < 0 ? rc : on_queued(loop, c, counts);
}

int pl_conn_send(struct pl_loop *loop, uint64_t id, const uint8_t *data, size_t len)
{
    return send_message(loop, id, data, len, 1);
}

int pl_conn_write(struct pl_loop *loop, uint64_t id, const uint8_t *data, size_t len)
{
    return send_message(loop, id, data, len, 0);
}

int pl_conn_send_mapped(struct pl_loop *loop, uint64_t id, struct pl_mapping *m, size_t start,
                        size_t len, int framed)
{
    int rc;
    bool counts;
    struct conn *c = find_writable(loop, id, &counts, &rc);
    if (!c)
        return rc;
    if (!counts || !mapping_has(m, start, len))
        return -EINVAL;
    if ((rc = conn_queue_mapped(c, &loop->pool, m, start, len, framed)) < 0)
        return rc;
    return on_queued(loop, c, counts);
}

/* In a forked child a conn is only let go: its socket is the parent's too. */
static int let_go(struct pl_loop *loop, uint64_t id)
{
    struct conn *c = table_get(&loop->table, id);
    if (!c || c->flags & CONN_DEAD)
        return -ESTALE;
    watch_forget(loop, c->fd);
    if (!(c->flags & CONN_LENT))
        sock_close(c->fd);
    c->fd = -1;
    c->flags |= CONN_DEAD;
    queue_fini(&c->out, &loop->pool);
    return 1;
}

int pl_conn_close(struct pl_loop *loop, uint64_t id)
{
    int rc;
    struct conn *c = conn_find(loop, id, &rc);
    if (c) {
        conn_finish(loop, c);
        return c->flags & CONN_DEAD ? 2 : 0;
    }
    return rc == PL_E_FORKED ? let_go(loop, id) : rc;
}

int pl_conn_abort(struct pl_loop *loop, uint64_t id, int reason)
{
    int rc;
    struct conn *c = conn_find(loop, id, &rc);
    if (c)
        conn_abort(loop, c, reason);
    return rc == PL_E_FORKED ? let_go(loop, id) : rc;
}

int pl_conn_shutdown(struct pl_loop *loop, uint64_t id)
{
    int rc;
    struct conn *c = conn_find(loop, id, &rc);
    if (!c)
        return rc;
    if (c->flags & (CONN_SHUT | CONN_WRITE_DONE))
        return -EPIPE;
    c->flags |= CONN_SHUT;
    conn_mark_flush(loop, c);
    return 0;
}

int pl_conn_pause(struct pl_loop *loop, uint64_t id)
{
    int rc;
    struct conn *c = conn_find(loop, id, &rc);
    if (!c)
        return rc;
    c->flags |= CONN_PAUSED;
    conn_update(loop, c);
    return 0;
}

int pl_conn_resume(struct pl_loop *loop, uint64_t id)
{
    int rc;
    struct conn *c = conn_find(loop, id, &rc);
    if (!c)
        return rc;
    if (!(c->flags & CONN_PAUSED))
        return 0;
    c->flags &= ~(uint32_t)CONN_PAUSED;
    if (c->since_ns && !(c->flags & (CONN_CLOSING | CONN_LINGERING))) {
        c->since_ns = sock_now(); /* while paused it could not be finished */
        if (deadline_arm(&loop->deadlines, c) < 0)
            conn_kill(loop, c, -ENOMEM);
    }
    if (c->flags & (CONN_UNCUT | CONN_EOF | CONN_DRAIN))
        conn_pend(loop, c);
    conn_update(loop, c);
    return 0;
}

/* The messages of this batch from `wire` on come before the contents of `in` again. */
static int put_back(struct conn *c, const uint8_t *wire)
{
    struct buf *in = &c->in;
    if (in->data && wire >= in->data && wire < in->data + in->cap) {
        in->start = (size_t)(wire - in->data);
    } else {
        size_t len = (size_t)(c->cut_end - wire);
        struct buf held = {0};
        if (buf_reserve(&held, len + buf_len(in)) < 0)
            return -ENOMEM;
        buf_append(&held, wire, len);
        if (buf_len(in))
            buf_append(&held, in->data + in->start, buf_len(in));
        buf_fini(in);
        *in = held;
    }
    c->cut_end = wire;
    return 0;
}

/* Take back the events of the conn from `index` on, which stand together. */
static void withdraw(struct pl_loop *loop, struct conn *c, uint32_t index)
{
    const struct batch *batch = &loop->batch;
    struct pl_counters *counters = c->group->counters;
    uint32_t taken = 0;
    while (taken < index && batch->events[index - taken - 1].id == c->id)
        taken++;
    c->budget = taken + 1;
    for (; index < batch->count && batch->events[index].id == c->id; index++) {
        struct pl_event *event = &batch->events[index];
        if (event->kind == PL_EV_MESSAGE)
            counters->messages_in--;
        else if (event->kind == PL_EV_FAULT)
            --*fault_counter(c->group, event->value);
        if (event->kind <= PL_EV_FAULT)
            event->kind = PL_EV_NONE;
    }
}

int pl_conn_hold(struct pl_loop *loop, uint32_t index)
{
    int rc;
    if ((rc = loop_guard(loop)) < 0)
        return rc;
    if (index >= loop->batch.count)
        return -EINVAL;
    const struct pl_event *event = &loop->batch.events[index];
    struct conn *c = conn_find(loop, event->id, &rc);
    if (!c)
        return rc;
    if (event->kind != PL_EV_MESSAGE && event->kind != PL_EV_EOF && event->kind != PL_EV_FAULT)
        return -EINVAL;
    if (event->kind == PL_EV_MESSAGE && (rc = put_back(c, event->data - event->head)) < 0)
        return rc;
    withdraw(loop, c, index);
    c->flags &= ~(uint32_t)(CONN_EOF_TOLD | CONN_FAULTED);
    c->flags |= CONN_UNCUT;
    c->scanned = 0;
    if (!(c->flags & CONN_CLOSING) && deadline_arm(&loop->deadlines, c) < 0)
        conn_kill(loop, c, -ENOMEM); /* a fault had taken its deadline */
    if (!(c->flags & CONN_PAUSED))
        conn_pend(loop, c);
    conn_update(loop, c);
    return 0;
}

int pl_conn_feed(struct pl_loop *loop, uint64_t id, const uint8_t *data, size_t len, int eof)
{
    int rc;
    struct conn *c = conn_find(loop, id, &rc);
    if (!c)
        return rc;
    if (c->served == loop->tick && c->in.data && c->cut_end > c->in.data &&
        c->cut_end <= c->in.data + c->in.cap) {
        /* Events of this batch may point into `in`: leave its memory to them. */
        struct buf fresh = {0};
        if ((rc = buf_append(&fresh, c->in.data + c->in.start, buf_len(&c->in))) < 0)
            return rc;
        if ((rc = batch_keep(&loop->batch, c->in.data)) < 0) {
            buf_fini(&fresh);
            return rc;
        }
        c->in = fresh;
    }
    if ((rc = buf_append(&c->in, data, len)) < 0)
        return rc;
    c->flags |= CONN_UNCUT | (eof ? CONN_EOF : 0);
    conn_pend(loop, c);
    return 0;
}

int pl_conn_drain(struct pl_loop *loop, uint64_t id)
{
    int rc;
    struct conn *c = conn_find(loop, id, &rc);
    if (!c)
        return rc;
    c->flags |= CONN_DRAIN;
    conn_pend(loop, c);
    conn_update(loop, c);
    return 0;
}

int64_t pl_conn_queued(struct pl_loop *loop, uint64_t id)
{
    int rc;
    const struct conn *c = conn_find(loop, id, &rc);
    return c ? (int64_t)c->out.len : rc;
}

int pl_conn_fd(struct pl_loop *loop, uint64_t id)
{
    int rc;
    const struct conn *c = conn_find(loop, id, &rc);
    return c ? c->fd : rc;
}
