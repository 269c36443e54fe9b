/* gather.c -- readiness becomes events: receive into the arena, cut in place, say what has become
 * of a conn. Accepting is in accept.c.
 *
 *                     arena                             in (a buf of the conn)
 *     nothing held    receive at the tail, cut there    the rest, if any, is copied here
 *     little held     copy it to the tail, receive      (so a stream of small messages keeps reading
 *                     behind it, cut there               64 KiB at a time)
 *     much held                                         receive behind it, cut there: no byte moves
 *
 * A conn is gathered at most once a tick, so what its events point to stays where it is. */
#include <errno.h>
#include <string.h>

#include "frame.h"
#include "loop.h"
#include "sock.h"

#define SMALL_REST_BYTES 1024u /* at most this much is copied per receive to read on in the arena */

static size_t min_size(size_t a, size_t b) { return a < b ? a : b; }
static size_t round_up(size_t n) { return (n + 7) & ~(size_t)7; }

/* ---- cut ---- */

static void fault(struct pl_loop *loop, struct conn *c, int reason)
{
    c->flags |= CONN_FAULTED;
    ++*fault_counter(c->group, reason);
    batch_push(&loop->batch, PL_EV_FAULT, c->id)->value = reason;
}

static void push_message(struct pl_loop *loop, struct conn *c, const uint8_t *p,
                         const struct cut *cut)
{
    struct pl_event *e = batch_push(&loop->batch, PL_EV_MESSAGE, c->id);
    e->data = p + cut->head;
    e->end = e->data + cut->len;
    e->head = (uint32_t)cut->head;
}

/* After a hold it starts small and doubles: who takes one message a turn is not handed a thousand. */
static uint32_t message_budget(const struct pl_loop *loop, struct conn *c)
{
    uint32_t room = PL_EVENTS_MAX - EVENTS_SPARE - loop->batch.count;
    uint32_t most = c->budget ? c->budget : CONN_BUDGET_EVENTS;
    c->budget = c->budget < CONN_BUDGET_EVENTS / 2 ? c->budget * 2 : 0;
    return room < most ? room : most;
}

/* Cut messages off p[0..n) while the budget lasts; CONN_UNCUT says that the budget ended it. The bytes used. */
static size_t cut_messages(struct pl_loop *loop, struct conn *c, const uint8_t *p, size_t n)
{
    const struct pl_framing *framing = &c->group->options.framing;
    uint32_t budget = message_budget(loop, c), left = budget;
    struct cut cut = {0};
    size_t used = 0;
    int rc = 0;
    while (used < n && left) {
        rc = frame_next(framing, p + used, n - used, &c->scanned, &cut);
        if (rc <= 0)
            break;
        push_message(loop, c, p + used, &cut);
        used += cut.total;
        left--;
    }
    c->flags &= ~(uint32_t)CONN_UNCUT;
    if (left < budget) {
        c->group->counters->messages_in += budget - left;
        c->active_ns = loop->now;
        c->since_ns = 0;
    }
    if (rc < 0)
        fault(loop, c, rc);
    else if (used < n && !left)
        c->flags |= CONN_UNCUT;
    return used;
}

/* End of stream: the last message, or the lack of it, and then PL_EV_EOF. */
static void end_input(struct pl_loop *loop, struct conn *c)
{
    struct cut cut;
    if (buf_len(&c->in) && (!(c->flags & CONN_DRAIN) || c->flags & CONN_EOF)) {
        const uint8_t *rest = c->in.data + c->in.start;
        int rc = frame_finish(&c->group->options.framing, rest, buf_len(&c->in), &cut);
        if (rc < 0) {
            fault(loop, c, rc);
            return;
        }
        if (rc > 0) {
            push_message(loop, c, rest, &cut);
            c->group->counters->messages_in++;
            c->cut_end = rest + cut.total;
            c->in.start = c->in.end;
            c->active_ns = loop->now;
        }
    }
    c->since_ns = 0; /* nothing more of it will come */
    c->flags |= CONN_EOF_TOLD;
    batch_push(&loop->batch, PL_EV_EOF, c->id)->value = !(c->flags & CONN_EOF);
}

/* What is left after cutting: start its clock. */
static void mind_rest(struct pl_loop *loop, struct conn *c)
{
    if (!buf_len(&c->in)) {
        c->since_ns = 0;
        return;
    }
    if (!c->since_ns && !(c->flags & CONN_UNCUT)) {
        c->since_ns = loop->now;
        if (c->group->options.message_timeout && deadline_arm(&loop->deadlines, c) < 0)
            conn_kill(loop, c, -ENOMEM);
    }
}

/* Cut what `in` holds. Emptied memory goes to the batch, whose events point into it. */
static void cut_held(struct pl_loop *loop, struct conn *c)
{
    const uint8_t *p = c->in.data ? c->in.data + c->in.start : NULL;
    size_t used = cut_messages(loop, c, p, buf_len(&c->in));
    c->cut_end = used ? p + used : NULL;
    if (used < buf_len(&c->in))
        buf_consume(&c->in, used);
    else if (c->in.data && batch_keep(&loop->batch, c->in.data) == 0)
        c->in = (struct buf){0};
    else
        c->in.start = c->in.end;
    mind_rest(loop, c);
}

/* Cut the n bytes at the arena's tail, the first of which `in` holds as well. */
static void cut_arena(struct pl_loop *loop, struct conn *c, size_t n)
{
    const uint8_t *p = arena_tail(&loop->batch);
    size_t used = cut_messages(loop, c, p, n);
    arena_commit(&loop->batch, round_up(used));
    c->cut_end = p + used;
    if (used == n || c->in.cap > 2 * SMALL_REST_BYTES)
        buf_fini(&c->in);
    else
        buf_consume(&c->in, buf_len(&c->in));
    if (used < n && buf_append(&c->in, p + used, n - used) < 0)
        conn_kill(loop, c, -ENOMEM);
    else
        mind_rest(loop, c);
}

/* ---- receive ---- */

static void receive_cipher(struct pl_loop *loop, struct conn *c)
{
    struct batch *batch = &loop->batch;
    uint8_t *p = arena_tail(batch);
    int64_t n = conn_receive(c, p, min_size(arena_room(batch), READ_BUDGET_BYTES));
    if (n == -EAGAIN)
        return;
    if (n < 0) {
        conn_kill(loop, c, (int)n);
        return;
    }
    struct pl_event *e = batch_push(batch, PL_EV_CIPHER, c->id);
    e->data = p;
    e->end = p + n; /* empty: the ciphertext has ended */
    arena_commit(batch, round_up((size_t)n));
}

/* Without framing a receive is a message. */
static void receive_raw(struct pl_loop *loop, struct conn *c)
{
    struct batch *batch = &loop->batch;
    uint8_t *p = arena_tail(batch);
    int64_t n = conn_receive(c, p, min_size(arena_room(batch), RAW_BUDGET_BYTES));
    if (n > 0) {
        const struct cut all = {0, (size_t)n, (size_t)n};
        push_message(loop, c, p, &all);
        arena_commit(batch, round_up((size_t)n));
        c->group->counters->messages_in++;
        c->active_ns = loop->now;
        c->cut_end = p + n;
    } else if (n < 0 && n != -EAGAIN) {
        conn_kill(loop, c, (int)n);
    }
}

static void receive_arena(struct pl_loop *loop, struct conn *c)
{
    struct batch *batch = &loop->batch;
    uint8_t *p = arena_tail(batch);
    size_t held = buf_len(&c->in);
    if (held)
        memcpy(p, c->in.data + c->in.start, held);
    int64_t n = conn_receive(c, p + held, min_size(arena_room(batch) - held, READ_BUDGET_BYTES));
    if (n > 0)
        cut_arena(loop, c, held + (size_t)n);
    else if (n < 0 && n != -EAGAIN)
        conn_kill(loop, c, (int)n);
}

static void receive_behind(struct pl_loop *loop, struct conn *c)
{
    if (buf_reserve(&c->in, READ_BUDGET_BYTES) < 0) {
        conn_kill(loop, c, -ENOMEM);
        return;
    }
    int64_t n = conn_receive(c, c->in.data + c->in.end,
                             min_size(c->in.cap - c->in.end, READ_BUDGET_BYTES));
    if (n > 0) {
        c->in.end += (size_t)n;
        cut_held(loop, c);
    } else if (n < 0 && n != -EAGAIN) {
        conn_kill(loop, c, (int)n);
    }
}

static void receive(struct pl_loop *loop, struct conn *c)
{
    if (conn_is(c, PL_WRITE_ONLY)) {
        if (sock_is_readable(c->fd)) /* it may be a number that was another file's when the loop waited */
            conn_kill(loop, c, c->out.len ? -EPIPE : 0);
    } else if (c->flags & CONN_READINESS)
        batch_push(&loop->batch, PL_EV_READABLE, c->id);
    else if (conn_is(c, PL_TLS))
        receive_cipher(loop, c);
    else if (!c->in.data && c->group->options.framing.kind == PL_RAW)
        receive_raw(loop, c);
    else if (buf_len(&c->in) <= SMALL_REST_BYTES)
        receive_arena(loop, c);
    else
        receive_behind(loop, c);
    if (c->flags & CONN_PEER_EOF && !conn_is(c, PL_TLS))
        c->flags |= CONN_EOF;
}

/* Closing or lingering: input goes nowhere, until the peer's end of stream. */
static void discard(struct pl_loop *loop, struct conn *c)
{
    int64_t n = conn_receive(c, arena_tail(&loop->batch),
                             min_size(arena_room(&loop->batch), READ_BUDGET_BYTES));
    if (n < 0 && n != -EAGAIN)
        conn_kill(loop, c, c->flags & CONN_LINGERING ? 0 : (int)n);
    else if (n == 0 && c->flags & CONN_LINGERING)
        conn_kill(loop, c, 0);
}

/* ---- one conn ---- */

static void gather_input(struct pl_loop *loop, struct conn *c, uint32_t mask)
{
    bool last = c->flags & CONN_DRAIN && !(c->flags & (CONN_DRAINED | CONN_PEER_EOF));
    if (c->flags & CONN_UNCUT) {
        cut_held(loop, c); /* and no receive: it would move what was just cut */
    } else if ((mask & PL_READ || last) && !(c->flags & (CONN_PEER_EOF | CONN_DRAINED))) {
        c->flags |= last ? CONN_DRAINED : 0;
        receive(loop, c);
        if (last && conn_is(c, PL_TLS)) {
            conn_pend(loop, c); /* what was received is decrypted first */
            return;
        }
    }
    if (c->flags & (CONN_FAULTED | CONN_DEAD))
        return;
    if (c->flags & CONN_UNCUT)
        conn_pend(loop, c);
    else if (c->flags & (CONN_EOF | CONN_DRAINED))
        end_input(loop, c);
    else if (last && !(c->flags & CONN_PEER_EOF))
        conn_pend(loop, c); /* what was held is cut: the last receive comes next */
}

static void gather_conn(struct pl_loop *loop, struct conn *c, uint32_t mask)
{
    c->served = loop->tick;
    c->cut_end = NULL;
    if (mask & PL_WRITE && c->flags & CONN_BLOCKED)
        conn_push_out(loop, c);
    uint32_t deaf = CONN_LINGERING | CONN_DEAD | (conn_is(c, PL_BORROWED) ? 0 : CONN_CLOSING);
    if (c->flags & CONN_RESUME && !(c->flags & deaf)) {
        c->flags &= ~(uint32_t)CONN_RESUME;
        batch_push(&loop->batch, PL_EV_RESUME, c->id);
        if (c->flags & CONN_CLOSING)
            conn_mark_flush(loop, c); /* which ends it, if nothing is added */
    }
    if (c->flags & (CONN_CLOSING | CONN_LINGERING)) {
        if (mask & PL_READ && !(c->flags & (CONN_PEER_EOF | CONN_DEAD)))
            discard(loop, c);
    } else if (conn_is_reading(c)) {
        gather_input(loop, c, mask);
    }
    conn_update(loop, c);
}

static void tell_lost(struct pl_loop *loop, struct conn *c)
{
    batch_push(&loop->batch, PL_EV_LOST, c->id)->value = c->reason;
    c->next_pending = loop->buried;
    loop->buried = c;
}

/* ---- all of them ---- */

static void push_watcher(struct pl_loop *loop, int fd, uint32_t mask)
{
    static const uint8_t kinds[] = {0, PL_EV_READ, PL_EV_WRITE, PL_EV_BOTH};
    batch_push(&loop->batch, (enum pl_event_kind)kinds[mask & 3], (uint64_t)fd);
}

static void gather_fd(struct pl_loop *loop, struct ready ready)
{
    struct fd_entry *entry = &loop->fds[ready.fd];
    uint32_t mask = ready.mask & entry->interest;
    uint8_t signals[64];
    if (ready.mask == POLLER_BADFD) {
        lose_fd(loop, ready.fd);
        return;
    }
    switch (mask ? entry->owner : OWNER_NONE) {
    case OWNER_CONN: {
        struct conn *c = loop->table.slots[entry->index].tenant;
        if (c->served != loop->tick) /* else it is reported again */
            gather_conn(loop, c, mask);
        break;
    }
    case OWNER_DGRAM: dgrams_gather(loop, entry->index, mask); break;
    case OWNER_LISTENER: accept_some(loop, entry->index); break;
    case OWNER_WATCHER: push_watcher(loop, ready.fd, mask); break;
    case OWNER_WAKE: loop->counters->wakes += (uint64_t)wake_take(&loop->wake); break;
    case OWNER_SIGNAL: {
        /* No more than there is room for: the rest stays in the socketpair. */
        int n = wake_signals(&loop->wake, signals, EVENTS_SPARE);
        for (int i = 0; i < n; i++)
            batch_push(&loop->batch, PL_EV_SIGNAL, 0)->value = signals[i];
        break;
    }
    default: break; /* its interest went since the wait */
    }
}

void gather_ready(struct pl_loop *loop)
{
    while (loop->ready_at < loop->ready_count && batch_has_room(&loop->batch) &&
           slots_have_room(&loop->dgrams.slots))
        gather_fd(loop, loop->poller.ready[loop->ready_at++]);
}

void gather_pending(struct pl_loop *loop)
{
    struct conn_list list = loop->pending;
    loop->pending = (struct conn_list){0};
    while (list.head && batch_has_room(&loop->batch)) {
        struct conn *c = list.head;
        list.head = c->next_pending;
        c->flags &= ~(uint32_t)CONN_IN_PENDING;
        if (c->flags & CONN_DEAD)
            tell_lost(loop, c);
        else if (c->served == loop->tick)
            conn_pend(loop, c);
        else
            gather_conn(loop, c, 0);
    }
    if (!list.head)
        return;
    /* No room for these: they come first in the next tick. */
    list.tail->next_pending = loop->pending.head;
    if (!loop->pending.head)
        loop->pending.tail = list.tail;
    loop->pending.head = list.head;
}

/* What came while a handler kept the loop busy came in time: look for it first. */
static void time_out(struct pl_loop *loop, struct conn *c)
{
    if (c->served != loop->tick)
        gather_conn(loop, c, PL_READ);
    if (c->flags & CONN_DEAD)
        return;
    if (conn_due(c) <= loop->now)
        fault(loop, c, conn_is_idle(c, loop->now) ? PL_E_IDLE : PL_E_MESSAGE_TIME);
    else if (deadline_arm(&loop->deadlines, c) < 0)
        conn_kill(loop, c, -ENOMEM);
}

void expire(struct pl_loop *loop)
{
    struct conn *c;
    if (loop->accept_at && loop->accept_at <= loop->now)
        accepting_resume(loop);
    if (loop->yield_at && loop->yield_at <= loop->now)
        yields_end(loop);
    while (batch_has_room(&loop->batch) && (c = deadline_pop(&loop->deadlines, loop->now))) {
        if (c->flags & CONN_LINGERING)
            conn_kill(loop, c, 0);
        else if (c->flags & CONN_CLOSING)
            conn_kill(loop, c, -ETIMEDOUT);
        else
            time_out(loop, c);
        conn_update(loop, c);
    }
}
