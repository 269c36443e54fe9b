/* accept.c -- take in who calls: accept until nobody waits, the budget is used, or there is no room.
 *
 * What accept(2) said is decided in listener.c; when accepting rests is in group.c. */
#include <errno.h>
#include <string.h>

#include "loop.h"
#include "sock.h"

static void tell_refused(struct pl_loop *loop, struct group *g, int rc, bool waits)
{
    if (g->refused_tick == loop->tick)
        return; /* one event a tick tells enough */
    g->refused_tick = loop->tick;
    struct pl_event *e = batch_push(&loop->batch, PL_EV_REFUSED, waits);
    e->slot = g->number;
    e->value = rc;
}

static void refuse(struct pl_loop *loop, struct group *g, int fd, int rc)
{
    sock_close(fd);
    g->counters->refused++;
    tell_refused(loop, g, rc, false);
}

void lose_fd(struct pl_loop *loop, int fd)
{
    struct fd_entry entry = loop->fds[fd];
    watch_forget(loop, fd);
    for (int i = loop->ready_at; i < loop->ready_count; i++)
        if (loop->poller.ready[i].fd == fd)
            loop->poller.ready[i].mask = 0; /* it may be another file's number by now */
    if (entry.owner == OWNER_CONN) {
        struct conn *c = loop->table.slots[entry.index].tenant;
        c->fd = -1; /* nor is it ours to close */
        conn_kill(loop, c, -EBADF);
    } else if (entry.owner == OWNER_DGRAM) {
        dgrams_lose(loop, entry.index);
    } else {
        batch_push(&loop->batch, PL_EV_BADFD, (uint64_t)fd)->value = entry.owner == OWNER_WATCHER;
    }
    if (entry.owner == OWNER_LISTENER)
        listener_drop(loop, entry.index);
}

/* The fd is the caller's; until pl_group_release it counts here, and keeps the group's number taken. */
static void hand_over(struct group *g, int fd)
{
    if (g->options.flags & PL_NODELAY)
        sock_set_nodelay(fd);
    group_add(g);
    g->handed++;
    g->counters->accepted++;
}

static void welcome(struct pl_loop *loop, struct group *g, const struct peer *peer)
{
    bool handed = g->options.flags & PL_HAND_OVER;
    uint64_t id = (uint64_t)peer->fd;
    if (peer->fd < loop->fds_cap && loop->fds[peer->fd].owner != OWNER_NONE)
        lose_fd(loop, peer->fd);
    int rc = handed ? 0 : conn_adopt(loop, g, peer->fd, &id);
    if (rc < 0) {
        refuse(loop, g, peer->fd, rc);
        return;
    }
    if (handed)
        hand_over(g, peer->fd);
    struct pl_event *e = batch_push(&loop->batch, handed ? PL_EV_ACCEPTED : PL_EV_OPEN, id);
    uint8_t *addr = arena_tail(&loop->batch);
    memcpy(addr, &peer->addr, peer->addr_len);
    arena_commit(&loop->batch, sizeof peer->addr);
    e->data = addr;
    e->end = addr + peer->addr_len;
    e->value = (int32_t)g->number;
}

void accept_some(struct pl_loop *loop, uint32_t number)
{
    struct listener *l = &loop->listeners[number];
    struct group *g = loop->groups[l->group];
    struct peer peer;
    int budget = g->options.flags & PL_HAND_OVER ? HAND_OVER_BUDGET : ACCEPT_BUDGET;
    for (int i = 0; i < budget && batch_has_room(&loop->batch); i++) {
        if (g->options.max_connections && g->conns >= g->options.max_connections) {
            group_pause(loop, g, true);
            return;
        }
        if (g->page && group_yields(loop, g))
            return;
        loop->counters->accepts++;
        switch (listener_accept(l, &peer)) {
        case ACCEPTED: welcome(loop, g, &peer); break;
        case ACCEPT_NONE: return;
        case ACCEPT_AGAIN: break;
        case ACCEPT_SHORT:
            g->counters->accept_pauses++;
            tell_refused(loop, g, peer.fd, true);
            accepting_pause(loop);
            return;
        case ACCEPT_BROKEN:
            batch_push(&loop->batch, PL_EV_BADFD, (uint64_t)l->fd);
            listener_drop(loop, number);
            return;
        }
    }
}
