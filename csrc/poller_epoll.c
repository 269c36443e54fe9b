/* poller_epoll.c -- epoll(7), level-triggered: a wait costs what is ready, not what is watched.
 *
 * Owns: the epoll fd (>= 3, CLOEXEC), what is in the set by fd, and the list of fds that epoll refuses with
 * EPERM (a regular file, /dev/null as stdin): always ready, as on select; while it has any, no wait blocks.
 *
 * What epoll does by itself and we rely on or live with:
 *   - an fd leaves the set when its last copy is closed, silently: there is no EBADF to find;
 *   - an fd closed while a copy lives (dup, fork) stays in the set under its old number, is reported, and can
 *     no longer be removed. So each entry has a term, which events carry: one of a term that is over is a
 *     ghost, and the set is made anew without it (renew_set);
 *   - a wait that returns MAX_EVENTS moves those to the end of the queue: the others come next.
 *
 * Does not know: what an fd is. Source: epoll(7), epoll_ctl(2), epoll_wait(2).
 */
#include "poller.h"

#ifdef __linux__

#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>

#include "pyloop.h"
#include "sock.h"

#define MAX_EVENTS 1024

struct always {
    int fd;
    uint32_t interest; /* never 0: then it is not in the list */
};

struct entry { /* by fd */
    uint32_t term;     /* grows with each ADD and DEL */
    uint32_t interest; /* what the set has; 0: nothing */
};

struct epoll_impl {
    int epoll_fd;
    struct entry *entries;
    int entries_len;
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
    free(e->entries);
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

static int grow_entries(struct epoll_impl *e, int fd)
{
    if (fd < e->entries_len)
        return 0;
    int len = fd < 64 ? 64 : fd > INT_MAX / 2 ? INT_MAX
                                              : fd * 2;
    struct entry *entries = realloc(e->entries, (size_t)len * sizeof *entries);
    if (!entries)
        return -ENOMEM;
    memset(entries + e->entries_len, 0, (size_t)(len - e->entries_len) * sizeof *entries);
    e->entries = entries;
    e->entries_len = len;
    return 0;
}

static int control(int epoll_fd, int op, int fd, uint32_t term, uint32_t interest)
{
    struct epoll_event event = {0};
    event.events = (interest & PL_READ ? (uint32_t)EPOLLIN : 0u) |
                   (interest & PL_WRITE ? (uint32_t)EPOLLOUT : 0u) |
                   (interest & POLLER_EXCLUSIVE ? (uint32_t)EPOLLEXCLUSIVE : 0u);
    event.data.u64 = (uint64_t)term << 32 | (uint32_t)fd;
    return epoll_ctl(epoll_fd, op, fd, &event) < 0 ? -errno : 0;
}

static int change(struct epoll_impl *e, int op, int fd, uint32_t interest)
{
    struct entry *entry = &e->entries[fd];
    uint32_t term = entry->term + (op != EPOLL_CTL_MOD);
    int rc = control(e->epoll_fd, op, fd, term, interest);
    if (rc == 0)
        *entry = (struct entry){term, interest};
    return rc;
}

/* Out of the set, or what is left there is a ghost: ENOENT and EBADF do not tell which. */
static void remove_entry(struct epoll_impl *e, int fd)
{
    if (fd < 0 || fd >= e->entries_len)
        return;
    (void)control(e->epoll_fd, EPOLL_CTL_DEL, fd, 0, 0);
    e->entries[fd] = (struct entry){e->entries[fd].term + 1, 0};
}

/* An fd closed behind our back and its number reused is not what `old` says: do the other. */
static int add_or_change(struct epoll_impl *e, int fd, uint32_t old, uint32_t new_)
{
    int rc;
    if (fd < 0)
        return -EBADF;
    if (grow_entries(e, fd) < 0)
        return -ENOMEM;
    if (!old) {
        rc = change(e, EPOLL_CTL_ADD, fd, new_);
        if (rc == -EEXIST && new_ & POLLER_EXCLUSIVE) { /* of which there is no MOD */
            remove_entry(e, fd);
            return change(e, EPOLL_CTL_ADD, fd, new_);
        }
        return rc == -EEXIST ? change(e, EPOLL_CTL_MOD, fd, new_) : rc;
    }
    rc = change(e, EPOLL_CTL_MOD, fd, new_);
    return rc == -ENOENT ? change(e, EPOLL_CTL_ADD, fd, new_) : rc;
}

static int set_epoll(struct poller *p, int fd, uint32_t old, uint32_t new_)
{
    struct epoll_impl *e = p->impl;
    if (!new_) {
        remove_entry(e, fd);
        drop_always(e, fd);
        return 0;
    }
    int rc = add_or_change(e, fd, old, new_);
    if (rc == -EPERM) {
        remove_entry(e, fd);
        return keep_always(p, fd, new_);
    }
    if (rc == 0)
        drop_always(e, fd); /* the number is a pollable file's by now */
    return rc;
}

/* A ghost was seen, and would be seen for ever: enter what is wanted in a new set. On failure the old one does
 * until the next sight. */
static void renew_set(struct epoll_impl *e)
{
    int epoll_fd = open_epoll();
    if (epoll_fd < 0)
        return;
    for (int fd = 0; fd < e->entries_len; fd++) {
        const struct entry *entry = &e->entries[fd];
        if (!entry->interest)
            continue;
        int rc = control(epoll_fd, EPOLL_CTL_ADD, fd, entry->term, entry->interest);
        if (rc < 0 && rc != -EBADF && rc != -EPERM) { /* those two: closed, and perhaps reused, behind our back */
            sock_close(epoll_fd);
            return;
        }
    }
    sock_close(e->epoll_fd);
    e->epoll_fd = epoll_fd;
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
    int found = 0;
    for (int i = 0; i < n; i++) {
        const struct epoll_event *event = &e->events[i];
        int fd = (int)(event->data.u64 & INT_MAX);
        if (e->entries[fd].term == event->data.u64 >> 32)
            p->ready[found++] = (struct ready){.fd = fd, .mask = mask_of(event->events)};
    }
    if (found < n)
        renew_set(e);
    return gather_always(p, found);
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
