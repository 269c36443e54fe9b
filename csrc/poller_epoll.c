/* poller_epoll.c -- epoll(7), level-triggered: a wait costs what is ready, not what is watched.
 *
 * Owns: the epoll fd (>= 3, CLOEXEC) and the list of fds that epoll refuses with EPERM (a regular
 * file, /dev/null as stdin): always ready, as on select; while it has any, no wait blocks.
 *
 * What epoll does by itself and we rely on or live with:
 *   - an fd leaves the set when its last copy is closed, silently: there is no EBADF to find;
 *   - an fd closed while a copy lives (dup, fork) stays in the set under its old number, and can no
 *     longer be removed: unwatch before closing, as asyncio asks;
 *   - a wait that returns MAX_EVENTS moves those to the end of the queue: the others come next.
 *
 * Does not know: what an fd is. Source: epoll(7), epoll_ctl(2), epoll_wait(2).
 */
#include "poller.h"

#ifdef __linux__

#include <errno.h>
#include <stdlib.h>
#include <sys/epoll.h>

#include "pyloop.h"
#include "sock.h"

#define MAX_EVENTS 1024

struct always {
    int fd;
    uint32_t interest; /* never 0: then it is not in the list */
};

struct epoll_impl {
    int epoll_fd;
    struct always *always;
    int always_len, always_cap;
    struct epoll_event events[MAX_EVENTS];
};

static int open_epoll(void)
{
    int fd = epoll_create1(EPOLL_CLOEXEC);
    if (fd < 0)
        return -errno;
    int moved = sock_above_stdio(fd);
    if (moved < 0)
        sock_close(fd);
    return moved;
}

static int init_epoll(struct poller *p)
{
    int rc = poller_grow(p, MAX_EVENTS);
    if (rc < 0)
        return rc;
    struct epoll_impl *e = calloc(1, sizeof *e);
    if (!e)
        return -ENOMEM;
    e->epoll_fd = open_epoll();
    if (e->epoll_fd < 0) {
        rc = e->epoll_fd;
        free(e);
        return rc;
    }
    p->impl = e;
    return 0;
}

/* Closing is all: after a fork the set is shared, and an epoll_ctl would change the parent's. */
static void fini_epoll(struct poller *p)
{
    struct epoll_impl *e = p->impl;
    sock_close(e->epoll_fd);
    free(e->always);
    free(e);
}

static int find_always(const struct epoll_impl *e, int fd)
{
    for (int i = 0; i < e->always_len; i++) {
        if (e->always[i].fd == fd)
            return i;
    }
    return -1;
}

static void drop_always(struct epoll_impl *e, int fd)
{
    int at = find_always(e, fd);
    if (at >= 0)
        e->always[at] = e->always[--e->always_len];
}

static int grow_always(struct epoll_impl *e)
{
    if (e->always_len < e->always_cap)
        return 0;
    int cap = e->always_cap ? e->always_cap * 2 : 4;
    struct always *list = realloc(e->always, (size_t)cap * sizeof *list);
    if (!list)
        return -ENOMEM;
    e->always = list;
    e->always_cap = cap;
    return 0;
}

static int keep_always(struct poller *p, int fd, uint32_t interest)
{
    struct epoll_impl *e = p->impl;
    int at = find_always(e, fd);
    if (at >= 0) {
        e->always[at].interest = interest;
        return 0;
    }
    if (grow_always(e) < 0 || poller_grow(p, MAX_EVENTS + e->always_len + 1) < 0)
        return -ENOMEM;
    e->always[e->always_len++] = (struct always){.fd = fd, .interest = interest};
    return 0;
}

static int control(struct epoll_impl *e, int op, int fd, uint32_t interest)
{
    struct epoll_event event = {0};
    event.events = (interest & PL_READ ? (uint32_t)EPOLLIN : 0u) |
                   (interest & PL_WRITE ? (uint32_t)EPOLLOUT : 0u) |
                   (interest & POLLER_EXCLUSIVE ? (uint32_t)EPOLLEXCLUSIVE : 0u);
    event.data.fd = fd;
    return epoll_ctl(e->epoll_fd, op, fd, &event) < 0 ? -errno : 0;
}

/* An fd closed behind our back and its number reused is not what `old` says: do the other. */
static int add_or_change(struct epoll_impl *e, int fd, uint32_t old, uint32_t new_)
{
    int rc;
    if (!old) {
        rc = control(e, EPOLL_CTL_ADD, fd, new_);
        if (rc == -EEXIST && new_ & POLLER_EXCLUSIVE) { /* of which there is no MOD */
            (void)control(e, EPOLL_CTL_DEL, fd, 0);
            return control(e, EPOLL_CTL_ADD, fd, new_);
        }
        return rc == -EEXIST ? control(e, EPOLL_CTL_MOD, fd, new_) : rc;
    }
    rc = control(e, EPOLL_CTL_MOD, fd, new_);
    return rc == -ENOENT ? control(e, EPOLL_CTL_ADD, fd, new_) : rc;
}

static int set_epoll(struct poller *p, int fd, uint32_t old, uint32_t new_)
{
    struct epoll_impl *e = p->impl;
    if (!new_) {
        (void)control(e, EPOLL_CTL_DEL, fd, 0); /* ENOENT, EBADF, EPERM: it is out already */
        drop_always(e, fd);
        return 0;
    }
    int rc = add_or_change(e, fd, old, new_);
    if (rc == -EPERM)
        return keep_always(p, fd, new_);
    if (rc == 0)
        drop_always(e, fd); /* the number is a pollable file's by now */
    return rc;
}

/* epoll does not tell the interest with a failure or hang-up: report both, the caller masks. */
static uint32_t mask_of(uint32_t events)
{
    if (events & (EPOLLERR | EPOLLHUP))
        return PL_READ | PL_WRITE;
    return (events & EPOLLIN ? PL_READ : 0u) | (events & EPOLLOUT ? PL_WRITE : 0u);
}

static int gather_always(struct poller *p, int n)
{
    struct epoll_impl *e = p->impl;
    for (int i = 0; i < e->always_len;) {
        struct ready *r = &p->ready[n++];
        *r = (struct ready){.fd = e->always[i].fd, .mask = e->always[i].interest};
        if (poller_fd_closed(r->fd)) {
            r->mask = POLLER_BADFD;
            e->always[i] = e->always[--e->always_len];
        } else {
            i++;
        }
    }
    return n;
}

/* Milliseconds, rounded up: a timer may be 1 ms late. epoll_pwait2 (Linux 5.11) takes nanoseconds;
 * it is not used yet, as older kernels lack it and some sandboxes refuse it. */
static int wait_epoll(struct poller *p, int64_t timeout_ns)
{
    struct epoll_impl *e = p->impl;
    int timeout_ms = e->always_len ? 0 : poller_ms(timeout_ns);
    int n = epoll_wait(e->epoll_fd, e->events, MAX_EVENTS, timeout_ms);
    if (n < 0)
        return -errno;
    for (int i = 0; i < n; i++) {
        const struct epoll_event *event = &e->events[i];
        p->ready[i] = (struct ready){.fd = event->data.fd, .mask = mask_of(event->events)};
    }
    return gather_always(p, n);
}

const struct poller_ops poller_epoll = {
    .name = "epoll",
    .backend = PL_EPOLL,
    .init = init_epoll,
    .fini = fini_epoll,
    .set = set_epoll,
    .wait = wait_epoll,
};

#endif
