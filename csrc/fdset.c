/* fdset.c -- fd_set and its four macros behind functions that check the range, and select(2).
 *
 * Owns: the set and its highest member, so that nfds need not be searched. Does not know: the loop.
 * FD_SET outside 0..FD_SETSIZE-1 is undefined behaviour (under _FORTIFY_SOURCE an abort): refused.
 * Source: FD_SET(3), select(2).
 */
#include <errno.h>
#include <stdlib.h>
#include <sys/select.h>
#include <time.h>

#include "pyloop.h"

#define NS_PER_S 1000000000
#define LONGEST_S 1000000000 /* 31 years, which fits a time_t of 32 bits */

struct pl_fdset {
    fd_set set;
    int highest; /* or -1 */
};

static int in_range(int fd) { return fd >= 0 && fd < FD_SETSIZE; }

/* The highest member at or below `fd`, or -1. */
static int highest_from(const fd_set *set, int fd)
{
    while (fd >= 0 && !FD_ISSET(fd, set))
        fd--;
    return fd;
}

struct pl_fdset *pl_fdset_new(void)
{
    struct pl_fdset *s = malloc(sizeof *s);
    if (s)
        pl_fdset_clear(s);
    return s;
}

void pl_fdset_free(struct pl_fdset *s) { free(s); }

int pl_fdset_size(void) { return FD_SETSIZE; }

int pl_fdset_add(struct pl_fdset *s, int fd)
{
    if (!in_range(fd))
        return -EBADF;
    FD_SET(fd, &s->set);
    if (fd > s->highest)
        s->highest = fd;
    return 0;
}

int pl_fdset_discard(struct pl_fdset *s, int fd)
{
    if (!in_range(fd))
        return -EBADF;
    FD_CLR(fd, &s->set);
    if (fd == s->highest)
        s->highest = highest_from(&s->set, fd);
    return 0;
}

int pl_fdset_contains(const struct pl_fdset *s, int fd)
{
    if (!in_range(fd))
        return -EBADF;
    return FD_ISSET(fd, &s->set) != 0;
}

void pl_fdset_clear(struct pl_fdset *s)
{
    FD_ZERO(&s->set);
    s->highest = -1;
}

void pl_fdset_copy(struct pl_fdset *to, const struct pl_fdset *from) { *to = *from; }

int pl_fdset_highest(const struct pl_fdset *s) { return s->highest; }

/* Copy a set for the kernel to overwrite, and raise *nfds over its members. NULL stays NULL. */
static fd_set *copy_in(const struct pl_fdset *from, fd_set *to, int *nfds)
{
    if (!from)
        return NULL;
    *to = from->set;
    if (from->highest >= *nfds)
        *nfds = from->highest + 1;
    return to;
}

static void copy_out(struct pl_fdset *to, const fd_set *from)
{
    if (!to)
        return;
    to->set = *from;
    to->highest = highest_from(from, to->highest);
}

static const struct timespec *to_timespec(int64_t timeout_ns, struct timespec *ts)
{
    if (timeout_ns < 0)
        return NULL;
    int64_t seconds = timeout_ns / NS_PER_S;
    ts->tv_sec = (time_t)(seconds > LONGEST_S ? LONGEST_S : seconds);
    ts->tv_nsec = (long)(timeout_ns % NS_PER_S);
    return ts;
}

/* On failure the sets are undefined, so the kernel works on copies; pselect, because it takes
 * nanoseconds and never writes to the time-out. */
int pl_fdset_select(struct pl_fdset *read, struct pl_fdset *write, struct pl_fdset *error,
                    int64_t timeout_ns)
{
    fd_set sets[3];
    struct timespec ts;
    int nfds = 0;
    fd_set *r = copy_in(read, &sets[0], &nfds);
    fd_set *w = copy_in(write, &sets[1], &nfds);
    fd_set *e = copy_in(error, &sets[2], &nfds);
    int n = pselect(nfds, r, w, e, to_timespec(timeout_ns, &ts), NULL);
    if (n < 0)
        return -errno;
    copy_out(read, &sets[0]);
    copy_out(write, &sets[1]);
    copy_out(error, &sets[2]);
    return n;
}
