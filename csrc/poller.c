/* poller.c -- the list of backends, and what they share: the ready list, units of time.
 *
 * Owns: p->ready. Does not know: any kernel interface's structures; each lives in its poller_*.c.
 * Order of strength: epoll, poll, select. select starts `auto` all the same: on few and busy
 * fds it costs no more, and it keeps no state in the kernel that a fork would share.
 * Source: select(2), poll(2), epoll(7).
 */
#include "poller.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>

#include "pyloop.h"

#define NS_PER_S 1000000000
#define NS_PER_MS 1000000
#define LONGEST_S 1000000000 /* 31 years, which fits a time_t of 32 bits */

const struct poller_ops *poller_find(int backend)
{
    switch (backend) {
    case PL_AUTO: return &poller_select;
    case PL_SELECT: return &poller_select;
    case PL_POLL: return &poller_poll;
#ifdef __linux__
    case PL_EPOLL: return &poller_epoll;
#endif
    default: return NULL;
    }
}

const struct poller_ops *poller_strongest(void)
{
#ifdef __linux__
    return &poller_epoll;
#else
    return &poller_poll;
#endif
}

int poller_init(struct poller *p, const struct poller_ops *ops)
{
    *p = (struct poller){.ops = ops};
    int rc = ops->init(p);
    if (rc < 0) {
        free(p->ready);
        *p = (struct poller){0};
    }
    return rc;
}

void poller_fini(struct poller *p)
{
    if (!p->ops)
        return;
    p->ops->fini(p);
    free(p->ready);
    *p = (struct poller){0};
}

int poller_grow(struct poller *p, int cap)
{
    if (cap <= p->ready_cap)
        return 0;
    int bigger = p->ready_cap <= INT_MAX / 2 ? p->ready_cap * 2 : INT_MAX;
    if (bigger < cap)
        bigger = cap;
    struct ready *ready = realloc(p->ready, (size_t)bigger * sizeof *ready);
    if (!ready)
        return -ENOMEM;
    p->ready = ready;
    p->ready_cap = bigger;
    return 0;
}

const struct timespec *poller_timespec(int64_t timeout_ns, struct timespec *ts)
{
    if (timeout_ns < 0)
        return NULL;
    int64_t seconds = timeout_ns / NS_PER_S;
    if (seconds > LONGEST_S)
        seconds = LONGEST_S;
    ts->tv_sec = (time_t)seconds;
    ts->tv_nsec = (long)(timeout_ns % NS_PER_S);
    return ts;
}

int poller_ms(int64_t timeout_ns)
{
    if (timeout_ns < 0)
        return -1;
    int64_t ms = timeout_ns / NS_PER_MS + (timeout_ns % NS_PER_MS != 0);
    return ms > INT_MAX ? INT_MAX : (int)ms;
}

int poller_fd_closed(int fd) { return fcntl(fd, F_GETFD) < 0 && errno == EBADF; }
