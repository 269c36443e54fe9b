/* dgrams.c -- the datagram sockets of a loop: calls by id, and their part of a tick.
 *
 *     pl_dgram_send -> flush list -> dgrams_flush        sendmmsg, all that is queued
 *     readiness -> dgrams_gather -> slots -> events      recvmmsg, a budget
 *     errors, room to write, ends -> tell list -> dgrams_tell -> events
 *
 * Their fds are borrowed: nothing here closes one. What one socket is, is in datagram.c. */
#include <errno.h>

#include "loop.h"
#include "sock.h"

static struct dgram *find(struct pl_loop *loop, uint64_t id, int *rc)
{
    *rc = loop_guard(loop);
    if (*rc < 0)
        return NULL;
    struct dgram *d = table_get(&loop->dgrams.table, id);
    if (d && !(d->flags & DGRAM_DEAD))
        return d;
    *rc = -ESTALE;
    return NULL;
}

/* ---- what becomes of one ---- */

static void tell_soon(struct pl_loop *loop, struct dgram *d)
{
    if (d->flags & DGRAM_IN_TELL)
        return;
    d->flags |= DGRAM_IN_TELL;
    d->next_tell = loop->dgrams.tell;
    loop->dgrams.tell = d;
}

static void flush_soon(struct pl_loop *loop, struct dgram *d)
{
    if (d->flags & DGRAM_IN_FLUSH)
        return;
    d->flags |= DGRAM_IN_FLUSH;
    d->next_flush = loop->dgrams.flush;
    loop->dgrams.flush = d;
}

static void end(struct pl_loop *loop, struct dgram *d, int reason)
{
    if (d->flags & DGRAM_DEAD)
        return;
    watch_forget(loop, d->fd);
    d->fd = -1;
    d->flags |= DGRAM_DEAD;
    d->reason = reason;
    tell_soon(loop, d);
}

static void update(struct pl_loop *loop, struct dgram *d)
{
    if (d->flags & DGRAM_DEAD)
        return;
    int rc = watch_set(loop, d->fd, OWNER_DGRAM, (uint32_t)d->id, dgram_interest(d));
    if (rc < 0)
        end(loop, d, rc);
}

/* poll(2) finds an unconnected AF_UNIX sender writable while its receiver's queue is full: the loop would spin. */
static void rest(struct pl_loop *loop, struct dgram *d)
{
    d->flags |= DGRAM_RESTING;
    if (!loop->dgrams.rest_at)
        loop->dgrams.rest_at = loop->now + SEND_REST_NS;
    flush_soon(loop, d);
}

static void push_out(struct pl_loop *loop, struct dgram *d)
{
    uint64_t before = d->queued;
    bool waited = d->flags & DGRAM_BLOCKED;
    d->flags &= ~(uint32_t)(DGRAM_BLOCKED | DGRAM_RESTING);
    bool all = dgram_flush(d, loop->counters);
    if (!all) {
        d->flags |= DGRAM_BLOCKED;
        if (waited && d->queued == before)
            rest(loop, d);
    }
    if (d->flags & DGRAM_ABOVE && d->queued <= d->low_water)
        d->flags = (d->flags & ~(uint32_t)DGRAM_ABOVE) | DGRAM_RESUME;
    if (d->failed.head || d->flags & DGRAM_RESUME)
        tell_soon(loop, d);
    if (all && d->flags & DGRAM_CLOSING)
        end(loop, d, 0);
    update(loop, d);
}

/* Output passed high water: offer it to the kernel before anybody is asked to pause. */
static int relieve(struct pl_loop *loop, struct dgram *d)
{
    if (d->flags & DGRAM_ABOVE)
        return 0;
    if (!(d->flags & DGRAM_BLOCKED))
        push_out(loop, d);
    if (d->flags & DGRAM_DEAD || d->queued <= d->high_water)
        return 0;
    d->flags |= DGRAM_ABOVE;
    return 1;
}

/* ---- calls by id ---- */

int pl_dgram_open(struct pl_loop *loop, int fd, size_t max_len, uint64_t *id)
{
    int rc = loop_guard(loop);
    if (rc < 0)
        return rc;
    if (fd < 0)
        return -EBADF;
    if (!max_len || max_len > PL_DATAGRAM_MAX)
        return -EINVAL;
    if (fd < loop->fds_cap && loop->fds[fd].owner != OWNER_NONE)
        return -EEXIST;
    if ((rc = slots_init(&loop->dgrams.slots)) < 0)
        return rc;
    struct dgram *d = dgram_new(fd, max_len);
    if (!d)
        return -ENOMEM;
    if ((rc = table_add(&loop->dgrams.table, d, &d->id)) < 0)
        goto free_dgram;
    /* Read it is not yet, which shows when it is ready; what the poller has against the fd is told here. */
    if ((rc = watch_set(loop, fd, OWNER_DGRAM, (uint32_t)d->id, PL_READ)) < 0)
        goto remove_dgram;
    *id = d->id;
    return 0;

remove_dgram:
    table_remove(&loop->dgrams.table, d->id);
free_dgram:
    dgram_free(d);
    return rc;
}

int pl_dgram_read(struct pl_loop *loop, uint64_t id, int on)
{
    int rc;
    struct dgram *d = find(loop, id, &rc);
    if (!d)
        return rc;
    d->flags = on ? d->flags | DGRAM_READING : d->flags & ~(uint32_t)DGRAM_READING;
    update(loop, d);
    return 0;
}

/* A large datagram costs its copy, and gains little by company. As dgram_send. */
static int send_now(struct pl_loop *loop, struct dgram *d, const uint8_t *data, size_t len,
                    const uint8_t *addr, size_t addr_len)
{
    if (d->out.head && !(d->flags & DGRAM_BLOCKED))
        push_out(loop, d);
    if (d->out.head || d->flags & DGRAM_DEAD)
        return 0;
    int rc = dgram_send(d, loop->counters, data, len, addr, addr_len);
    if (d->failed.head)
        tell_soon(loop, d);
    return rc;
}

int pl_dgram_send(struct pl_loop *loop, uint64_t id, const uint8_t *data, size_t len,
                  const uint8_t *addr, size_t addr_len)
{
    int rc;
    struct dgram *d = find(loop, id, &rc);
    if (!d)
        return rc;
    if (d->flags & DGRAM_CLOSING)
        return -EPIPE;
    if (addr_len > sizeof(struct sockaddr_storage))
        return -EINVAL;
    if (len >= SEND_NOW_BYTES && (rc = send_now(loop, d, data, len, addr, addr_len)) != 0)
        return rc < 0 ? rc : 0;
    if ((rc = dgram_queue(d, data, len, addr, addr_len)) < 0)
        return rc;
    flush_soon(loop, d);
    return d->queued > d->high_water ? relieve(loop, d) : 0;
}

int pl_dgram_limit(struct pl_loop *loop, uint64_t id, uint64_t high_water, uint64_t low_water)
{
    int rc;
    struct dgram *d = find(loop, id, &rc);
    if (!d)
        return rc;
    if (low_water > high_water)
        return -EINVAL;
    d->high_water = high_water;
    d->low_water = low_water;
    return d->queued > high_water ? relieve(loop, d) : 0;
}

/* In a forked child a dgram is only let go: its socket is the parent's too. */
static int let_go(struct pl_loop *loop, uint64_t id)
{
    struct dgram *d = table_get(&loop->dgrams.table, id);
    if (!d || d->flags & DGRAM_DEAD)
        return -ESTALE;
    watch_forget(loop, d->fd);
    d->fd = -1;
    d->flags |= DGRAM_DEAD;
    dgram_drop(d);
    return 0;
}

int pl_dgram_close(struct pl_loop *loop, uint64_t id)
{
    int rc;
    struct dgram *d = find(loop, id, &rc);
    if (!d)
        return rc == PL_E_FORKED ? let_go(loop, id) : rc;
    d->flags |= DGRAM_CLOSING;
    if (d->out.head)
        update(loop, d);
    else
        end(loop, d, 0);
    return 0;
}

int pl_dgram_abort(struct pl_loop *loop, uint64_t id)
{
    int rc;
    struct dgram *d = find(loop, id, &rc);
    if (!d)
        return rc == PL_E_FORKED ? let_go(loop, id) : rc;
    dgram_drop(d);
    d->flags &= ~(uint32_t)DGRAM_RESUME;
    end(loop, d, 0);
    return 0;
}

int64_t pl_dgram_queued(struct pl_loop *loop, uint64_t id)
{
    int rc;
    const struct dgram *d = find(loop, id, &rc);
    return d ? (int64_t)d->queued : rc;
}

/* ---- their part of a tick ---- */

/* After the flush, which takes the dead off its list. */
void dgrams_reset(struct pl_loop *loop)
{
    struct dgrams *all = &loop->dgrams;
    while (all->buried) {
        struct dgram *d = all->buried;
        all->buried = d->next_tell;
        table_remove(&all->table, d->id);
        dgram_free(d);
    }
    slots_reset(&all->slots);
}

void dgrams_flush(struct pl_loop *loop)
{
    struct dgram *d = loop->dgrams.flush;
    bool rested = loop->dgrams.rest_at <= loop->now;
    loop->dgrams.flush = NULL;
    if (rested)
        loop->dgrams.rest_at = 0;
    while (d) {
        struct dgram *next = d->next_flush;
        d->flags &= ~(uint32_t)DGRAM_IN_FLUSH;
        if (d->flags & DGRAM_DEAD)
            ;
        else if (d->flags & DGRAM_RESTING && !rested)
            flush_soon(loop, d);
        else if (!(d->flags & DGRAM_BLOCKED) || d->flags & DGRAM_RESTING)
            push_out(loop, d);
        d = next;
    }
}

/* Say what there is to say of one. False: the batch is full. */
static bool tell(struct pl_loop *loop, struct dgram *d)
{
    struct batch *batch = &loop->batch;
    int error;
    while (d->failed.head) {
        if (!batch_has_room(batch))
            return false;
        error = dgram_next_error(d);
        batch_push(batch, PL_EV_DATAGRAM_ERROR, d->id)->value = error;
    }
    if (!batch_has_room(batch))
        return false;
    if (d->flags & DGRAM_RESUME)
        batch_push(batch, PL_EV_DATAGRAM_RESUME, d->id);
    d->flags &= ~(uint32_t)(DGRAM_RESUME | DGRAM_IN_TELL);
    if (d->flags & DGRAM_DEAD) {
        batch_push(batch, PL_EV_DATAGRAM_LOST, d->id)->value = d->reason;
        d->next_tell = loop->dgrams.buried;
        loop->dgrams.buried = d;
    }
    return true;
}

void dgrams_tell(struct pl_loop *loop)
{
    while (loop->dgrams.tell) {
        struct dgram *d = loop->dgrams.tell, *next = d->next_tell;
        if (!tell(loop, d))
            return; /* the rest in the next tick */
        loop->dgrams.tell = next;
    }
}

static void receive(struct pl_loop *loop, struct dgram *d)
{
    struct slots *slots = &loop->dgrams.slots;
    struct packet packets[DATAGRAM_BUDGET];
    uint32_t room = PL_EVENTS_MAX - EVENTS_SPARE - loop->batch.count;
    int most = dgram_eager(d) ? (int)(room < DATAGRAM_BUDGET ? room : DATAGRAM_BUDGET) : 1;
    int n = slots_offer(slots, packets, most, d->max_len), error;
    n = sock_receive_packets(d->fd, packets, n, &error);
    loop->counters->receives++;
    dgram_learn(d, n);
    slots_take(slots, packets, n, d->max_len);
    for (int i = 0; i < n; i++) {
        enum pl_event_kind kind = packets[i].cut ? PL_EV_DATAGRAM_CUT : PL_EV_DATAGRAM;
        struct pl_event *e = batch_push(&loop->batch, kind, d->id);
        e->data = packets[i].data;
        e->end = packets[i].data + packets[i].len;
        loop->counters->bytes_in += packets[i].len;
    }
    if (error)
        batch_push(&loop->batch, PL_EV_DATAGRAM_ERROR, d->id)->value = error;
}

void dgrams_gather(struct pl_loop *loop, uint32_t slot, uint32_t mask)
{
    struct dgram *d = loop->dgrams.table.slots[slot].tenant;
    if (mask & PL_WRITE)
        push_out(loop, d);
    uint32_t state = d->flags & (DGRAM_READING | DGRAM_CLOSING | DGRAM_DEAD);
    if (mask & PL_READ && state == DGRAM_READING)
        receive(loop, d);
    else if (mask & PL_READ)
        update(loop, d); /* open, and not to be read yet */
}

void dgrams_lose(struct pl_loop *loop, uint32_t slot)
{
    struct dgram *d = loop->dgrams.table.slots[slot].tenant;
    dgram_drop(d);
    end(loop, d, -EBADF);
}

void dgrams_free(struct pl_loop *loop)
{
    struct dgrams *all = &loop->dgrams;
    for (uint32_t i = 0; i < all->table.cap; i++)
        if (all->table.slots[i].tenant)
            dgram_free(all->table.slots[i].tenant);
    table_fini(&all->table);
    slots_fini(&all->slots);
}
