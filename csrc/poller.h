/* poller.h -- what waits: one kernel interface behind two calls, modify and wait.
 *
 * A poller knows fds, interest (wanted) and readiness (reported), level-triggered; it does not know what an
 * fd is. The caller keeps the interest of each fd (watch.c) and passes old and new to `set`, so no backend
 * needs a map that the caller has too. A failed or hung-up fd is reported with its whole interest, so that
 * the system call that follows finds the error. Interest 0 means the fd is not in the poller at all:
 * nothing is reported for it, not even a hang-up.
 */
#ifndef PYLOOP_POLLER_H
#define PYLOOP_POLLER_H

#include <stdint.h>
#include <time.h>

struct ready {
    int fd;
    /* PL_READ | PL_WRITE, perhaps beyond the interest (epoll does not tell it with a hang-up): the
     * caller masks. POLLER_BADFD: closed behind our back. */
    uint32_t mask;
};

#define POLLER_BADFD 0x80u

/* Beside PL_READ in an interest: other processes wait for this fd too, wake one of us. Only epoll can, and cannot
 * change it: from and to such an interest `set` goes by way of 0. */
#define POLLER_EXCLUSIVE 4u

struct poller;

struct poller_ops {
    const char *name;
    int backend; /* enum pl_backend */
    /* 0 or -errno. fini frees what init made; in a forked child it closes fds and does no more. */
    int (*init)(struct poller *p);
    void (*fini)(struct poller *p);
    /* Change fd from interest `old` to `new`. 0, -ERANGE (select: fd >= FD_SETSIZE), -EBADF, -ENOMEM, -ENOSPC,
     * -EINVAL. On failure the old interest holds. Going to 0 never fails (a vanished fd is fine). */
    int (*set)(struct poller *p, int fd, uint32_t old, uint32_t new_);
    /* Wait at most timeout_ns (-1: no end, never early), fill p->ready, return how many; -EINTR; other -errno.
     * When the kernel says EBADF, find the closed fds and report them as POLLER_BADFD; if none is closed, return
     * -EBADF. A BADFD fd is already removed. */
    int (*wait)(struct poller *p, int64_t timeout_ns);
};

struct poller {
    const struct poller_ops *ops;
    struct ready *ready; /* filled by wait, owned by the poller, at least as long as wait's answer */
    int ready_cap;
    void *impl;
};

extern const struct poller_ops poller_select, poller_poll;
#ifdef __linux__
extern const struct poller_ops poller_epoll;
#endif

/* The ops of an enum pl_backend (PL_AUTO: select, the start), or NULL where the platform has none. */
const struct poller_ops *poller_find(int backend);
/* What `auto` moves to: epoll, or poll. */
const struct poller_ops *poller_strongest(void);

int poller_init(struct poller *p, const struct poller_ops *ops); /* 0, -errno */
void poller_fini(struct poller *p);

/* Room for `cap` entries in p->ready. 0 or -ENOMEM. */
int poller_grow(struct poller *p, int cap);

/* For the backends. A time-out beyond the kernel's range ends early, after 31 years (timespec) or 24
 * days (INT_MAX ms): the caller, who looks at its clock, waits again. */

/* `ts`, filled, or NULL for no end. */
const struct timespec *poller_timespec(int64_t timeout_ns, struct timespec *ts);
int poller_ms(int64_t timeout_ns); /* rounded up; -1: no end */
int poller_fd_closed(int fd);      /* 1 or 0 */

#endif
