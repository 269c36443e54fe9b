/* lent.c -- what only a conn is asked for whose socket has another owner: asyncio's transports. */
#include <errno.h>
#include <string.h>

#include "loop.h"
#include "sock.h"

int pl_conn_lend(struct pl_loop *loop, uint64_t id)
{
    int rc;
    struct conn *c = conn_find(loop, id, &rc);
    if (!c)
        return rc;
    if (!conn_is(c, PL_BORROWED))
        return -EINVAL;
    c->flags |= CONN_LENT;
    return c->fd;
}

size_t pl_lent_close(int fd, uint8_t *name, size_t room)
{
    struct sockaddr_storage addr;
    socklen_t len = 0;
    if (sock_name(fd, &addr, &len) < 0)
        len = 0;
    size_t count = len < sizeof addr ? len : sizeof addr; /* the kernel tells how long it would be */
    count = count < room ? count : room;
    memcpy(name, &addr, count);
    sock_close(fd);
    return count;
}

int64_t pl_conn_slot(struct pl_loop *loop, int fd)
{
    int rc = loop_guard(loop);
    if (rc < 0)
        return rc;
    bool is_conn = fd >= 0 && fd < loop->fds_cap && loop->fds[fd].owner == OWNER_CONN;
    return is_conn ? (int64_t)loop->fds[fd].index : -ENOENT;
}

int pl_conn_readiness(struct pl_loop *loop, uint64_t id, int only)
{
    int rc;
    struct conn *c = conn_find(loop, id, &rc);
    if (c)
        c->flags = only ? c->flags | CONN_READINESS : c->flags & ~(uint32_t)CONN_READINESS;
    return rc;
}

int64_t pl_conn_receive(struct pl_loop *loop, uint64_t id, uint8_t *data, size_t len)
{
    int rc;
    struct conn *c = conn_find(loop, id, &rc);
    if (!c)
        return rc;
    int64_t n = conn_receive(c, data, len);
    if (n > 0)
        c->active_ns = loop->now;
    else if (n < 0 && n != -EAGAIN)
        conn_kill(loop, c, (int)n);
    if (n == 0) {
        c->flags |= CONN_EOF | CONN_EOF_TOLD;
        conn_update(loop, c);
    }
    return n;
}

int pl_conn_regroup(struct pl_loop *loop, uint64_t id, int group)
{
    int rc;
    struct conn *c = conn_find(loop, id, &rc);
    if (!c)
        return rc;
    struct group *from = c->group, *to = group_get(loop, group);
    if (!to || to->options.flags != from->options.flags ||
        to->options.framing.kind != from->options.framing.kind)
        return -EINVAL;
    group_add(to);
    c->group = to;
    group_release(loop, from);
    group_forget(loop, from);
    if (deadline_arm(&loop->deadlines, c) < 0) {
        conn_kill(loop, c, -ENOMEM);
        return 0;
    }
    if (c->out.len > to->options.high_water) {
        c->flags |= CONN_ABOVE;
        return 1;
    }
    if (c->flags & CONN_ABOVE && c->out.len <= to->options.low_water) {
        c->flags = (c->flags & ~(uint32_t)CONN_ABOVE) | CONN_RESUME;
        conn_pend(loop, c);
    }
    return 0;
}
