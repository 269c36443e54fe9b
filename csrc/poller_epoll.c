/* poller_epoll.c -- epoll(7), level-triggered: a wait costs what is ready, not what is watched.
 *
 * Owns: the epoll fd (>= 3, CLOEXEC); what is in the set by fd; the list of fds that epoll refuses with EPERM (a
 * regular file, /dev/null as stdin): always ready, as on select; while it has any, no wait blocks; and, where there is
 * no epoll_pwait2, a timerfd in the set, which ends waits that are finer than a millisecond.
 *
 * What epoll does by itself and we rely on or live with:
 *   - an fd leaves the set when its last copy is closed, silently: there is no EBADF to find;
 *   - an fd closed while a copy lives (dup, fork) stays in the set under its old number, is reported, and can
 *     no longer be removed. So each entry has a term, which events carry: one of a term that is over is a
 *     ghost, and the set is made anew without it (renew_set);
 *   - a wait that returns MAX_EVENTS moves those to the end of the queue: the others come next.
 *
 * Does not know: what an fd is. Source: epoll(7), epoll_ctl(2), epoll_wait(2), timerfd_create(2).
 */
#include "poller.h"

#ifdef __linux__

#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include "pyloop.h"
#include "sock.h"

#define MAX_EVENTS 1024
#define NS_PER_S 1000000000
#define NS_PER_MS 1000000

/* Called by its number: libc has it since glibc 2.35, and a wheel built there must load on an older one. Headers
 * older than Linux 5.11 do not know the number, and a wheel built with them may run on a newer kernel. */
#if defined SYS_epoll_pwait2
#define PWAIT2 SYS_epoll_pwait2
#elif defined __aarch64__ || defined __riscv || (defined __x86_64__ && defined __LP64__)
#define PWAIT2 441
#endif

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
    int no_pwait2; /* the kernel lacks it, or a sandbox refuses it */
    int timer_fd;  /* -1: none is needed yet, or none is to be had */
    int timer_runs;
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
    e->timer_fd = -1;
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
    if (e->timer_fd >= 0)
        sock_close(e->timer_fd);
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
    if (e->timer_fd >= 0 && control(epoll_fd, EPOLL_CTL_ADD, e->timer_fd, 0, PL_READ) < 0) {
        sock_close(epoll_fd);
        return;
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

/* ---- waiting: epoll_wait knows whole milliseconds ---- */

static int open_timer(struct epoll_impl *e)
{
    int fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
    if (fd < 0)
        return -errno;
    int moved = sock_above_stdio(fd);
    if (moved < 0) {
        sock_close(fd);
        return moved;
    }
    int rc = control(e->epoll_fd, EPOLL_CTL_ADD, moved, 0, PL_READ);
    if (rc < 0) {
        sock_close(moved);
        return rc;
    }
    e->timer_fd = moved;
    return 0;
}

/* Start the timer, or with 0 stop it, after which it is not readable either. 0 or -errno. */
static int set_timer(struct epoll_impl *e, int64_t ns)
{
    struct itimerspec after = {0};
    after.it_value.tv_sec = (time_t)(ns / NS_PER_S);
    after.it_value.tv_nsec = (long)(ns % NS_PER_S);
    if (timerfd_settime(e->timer_fd, 0, &after, NULL) < 0)
        return -errno;
    e->timer_runs = ns != 0;
    return 0;
}

/* The timer ends the wait, if there can be one; the milliseconds end it at the latest. */
static int wait_with_timer(struct epoll_impl *e, int64_t timeout_ns)
{
    int fine = timeout_ns > 0 && timeout_ns % NS_PER_MS;
    if (fine && timeout_ns / NS_PER_S < INT32_MAX && (e->timer_fd >= 0 || open_timer(e) == 0))
        (void)set_timer(e, timeout_ns);
    else if (e->timer_runs)
        (void)set_timer(e, 0); /* of a wait that ended before it */
    int n = epoll_wait(e->epoll_fd, e->events, MAX_EVENTS, poller_ms(timeout_ns));
    if (n < 0)
        return -errno;
    for (int i = 0; i < n; i++) {
        if (e->timer_fd >= 0 && (int)(e->events[i].data.u64 & INT_MAX) == e->timer_fd)
            e->events[i--] = e->events[--n];
    }
    return n;
}

static int wait_events(struct epoll_impl *e, int64_t timeout_ns)
{
#ifdef PWAIT2
    if (timeout_ns > 0 && !e->no_pwait2) { /* else there is nothing to be fine about */
        const int64_t most = (int64_t)INT32_MAX * NS_PER_S;
        int64_t ns = timeout_ns < most ? timeout_ns : most;
        const int64_t ts[2] = {ns / NS_PER_S, ns % NS_PER_S}; /* the kernel's own timespec */
        long n = syscall(PWAIT2, e->epoll_fd, e->events, MAX_EVENTS, ts, NULL, (size_t)0);
        if (n >= 0 || (errno != ENOSYS && errno != EPERM))
            return n < 0 ? -errno : (int)n;
        e->no_pwait2 = 1;
    }
#endif
    return wait_with_timer(e, timeout_ns);
}

static int wait_epoll(struct poller *p, int64_t timeout_ns)
{
    struct epoll_impl *e = p->impl;
    int n = wait_events(e, e->always_len ? 0 : timeout_ns);
    if (n < 0)
        return n;
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
