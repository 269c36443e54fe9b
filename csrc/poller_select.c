/* poller_select.c -- select(2), the reference backend: FD_ZERO, FD_SET, FD_CLR, FD_ISSET, and nfds.
 *
 *   read, write          what is wanted; set() keeps them
 *   ready_*              a copy per wait, which the kernel overwrites with what is ready
 *   nfds                 highest wanted fd + 1
 *
 * An fd >= FD_SETSIZE is refused: FD_SET on it would write behind the set. exceptfds is not used:
 * it tells of urgent TCP data and packet-mode terminals, not of errors. The kernel reports a
 * hung-up fd as readable, a failed one as readable and writable: the next call finds the error.
 * Does not know: what an fd is. Source: select(2), FD_SET(3).
 */
#include "poller.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/select.h>

#include "pyloop.h"

struct select_impl {
    fd_set read, write;
    fd_set ready_read, ready_write;
    int nfds;
};

static int init_select(struct poller *p)
{
    struct select_impl *s = malloc(sizeof *s);
    if (!s)
        return -ENOMEM;
    FD_ZERO(&s->read);
    FD_ZERO(&s->write);
    s->nfds = 0;
    int rc = poller_grow(p, FD_SETSIZE);
    if (rc < 0) {
        free(s);
        return rc;
    }
    p->impl = s;
    return 0;
}

static void fini_select(struct poller *p) { free(p->impl); }

static int is_wanted(const struct select_impl *s, int fd)
{
    return FD_ISSET(fd, &s->read) || FD_ISSET(fd, &s->write);
}

static void change_fd(struct select_impl *s, int fd, uint32_t interest)
{
    if (interest & PL_READ)
        FD_SET(fd, &s->read);
    else
        FD_CLR(fd, &s->read);
    if (interest & PL_WRITE)
        FD_SET(fd, &s->write);
    else
        FD_CLR(fd, &s->write);
    if (interest && fd >= s->nfds)
        s->nfds = fd + 1;
    while (s->nfds > 0 && !is_wanted(s, s->nfds - 1))
        s->nfds--;
}

static int set_select(struct poller *p, int fd, uint32_t old, uint32_t new_)
{
    (void)old;
    if (fd < 0)
        return new_ ? -EBADF : 0;
    if (fd >= FD_SETSIZE)
        return new_ ? -ERANGE : 0;
    change_fd(p->impl, fd, new_);
    return 0;
}

/* EBADF names no fd: ask each. */
static int gather_closed(struct poller *p)
{
    struct select_impl *s = p->impl;
    int n = 0;
    int nfds = s->nfds; /* change_fd lowers it on the way */
    for (int fd = 0; fd < nfds; fd++) {
        if (!is_wanted(s, fd) || !poller_fd_closed(fd))
            continue;
        p->ready[n++] = (struct ready){.fd = fd, .mask = POLLER_BADFD};
        change_fd(s, fd, 0);
    }
    return n ? n : -EBADF;
}

/* `left` is select's count, in which an fd that is ready for both counts twice. */
static int gather_ready(struct poller *p, int left)
{
    struct select_impl *s = p->impl;
    int n = 0;
    for (int fd = 0; left > 0 && fd < s->nfds; fd++) {
        int readable = FD_ISSET(fd, &s->ready_read) != 0;
        int writable = FD_ISSET(fd, &s->ready_write) != 0;
        if (!readable && !writable)
            continue;
        uint32_t mask = (readable ? PL_READ : 0u) | (writable ? PL_WRITE : 0u);
        p->ready[n++] = (struct ready){.fd = fd, .mask = mask};
        left -= readable + writable;
    }
    return n;
}

/* pselect for its nanoseconds, not for its mask: select would round to microseconds. */
static int wait_select(struct poller *p, int64_t timeout_ns)
{
    struct select_impl *s = p->impl;
    struct timespec ts;
    s->ready_read = s->read;
    s->ready_write = s->write;
    int n = pselect(s->nfds, &s->ready_read, &s->ready_write, NULL,
                    poller_timespec(timeout_ns, &ts), NULL);
    if (n >= 0)
        return gather_ready(p, n);
    int error = errno;
    return error == EBADF ? gather_closed(p) : -error;
}

const struct poller_ops poller_select = {
    .name = "select",
    .backend = PL_SELECT,
    .init = init_select,
    .fini = fini_select,
    .set = set_select,
    .wait = wait_select,
};
