/* poller_poll.c -- poll(2), for any fd number where there is no epoll.
 *
 *   fds    [pollfd][pollfd][pollfd]          compact: the kernel copies and scans all of it
 *   index   -1  2  -1  0  1 ...              by fd: where it stands in fds, or -1
 *
 * A removal moves the last entry into the hole. Grows with the highest fd and never shrinks.
 * Does not know: what an fd is. Source: poll(2).
 */
#include "poller.h"

#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <stdlib.h>

#include "pyloop.h"

struct poll_impl {
    struct pollfd *fds;
    int len, cap;
    int *index;
    int index_len;
};

static int init_poll(struct poller *p)
{
    p->impl = calloc(1, sizeof(struct poll_impl));
    return p->impl ? 0 : -ENOMEM;
}

static void fini_poll(struct poller *p)
{
    struct poll_impl *s = p->impl;
    free(s->fds);
    free(s->index);
    free(s);
}

static short events_of(uint32_t interest)
{
    return (short)((interest & PL_READ ? POLLIN : 0) | (interest & PL_WRITE ? POLLOUT : 0));
}

static int next_size(int now, int needed)
{
    int bigger = now <= INT_MAX / 2 ? now * 2 : INT_MAX;
    if (bigger < 16)
        bigger = 16;
    return bigger < needed ? needed : bigger;
}

static int grow_index(struct poll_impl *s, int fd)
{
    if (fd < s->index_len)
        return 0;
    int len = next_size(s->index_len, fd + 1);
    int *index = realloc(s->index, (size_t)len * sizeof *index);
    if (!index)
        return -ENOMEM;
    for (int i = s->index_len; i < len; i++)
        index[i] = -1;
    s->index = index;
    s->index_len = len;
    return 0;
}

static int grow_fds(struct poll_impl *s)
{
    if (s->len < s->cap)
        return 0;
    int cap = next_size(s->cap, s->len + 1);
    struct pollfd *fds = realloc(s->fds, (size_t)cap * sizeof *fds);
    if (!fds)
        return -ENOMEM;
    s->fds = fds;
    s->cap = cap;
    return 0;
}

static int add_fd(struct poller *p, int fd, uint32_t interest)
{
    struct poll_impl *s = p->impl;
    if (fd < 0)
        return -EBADF;
    if (fd == INT_MAX || grow_index(s, fd) < 0 || grow_fds(s) < 0 || poller_grow(p, s->len + 1) < 0)
        return -ENOMEM;
    s->index[fd] = s->len;
    s->fds[s->len++] = (struct pollfd){.fd = fd, .events = events_of(interest)};
    return 0;
}

static void remove_at(struct poll_impl *s, int at)
{
    s->index[s->fds[at].fd] = -1;
    s->len--;
    if (at == s->len)
        return;
    s->fds[at] = s->fds[s->len];
    s->index[s->fds[at].fd] = at;
}

static int set_poll(struct poller *p, int fd, uint32_t old, uint32_t new_)
{
    (void)old;
    struct poll_impl *s = p->impl;
    int at = fd >= 0 && fd < s->index_len ? s->index[fd] : -1;
    if (!new_) {
        if (at >= 0)
            remove_at(s, at);
        return 0;
    }
    if (at < 0)
        return add_fd(p, fd, new_);
    s->fds[at].events = events_of(new_);
    return 0;
}

static uint32_t mask_of(const struct pollfd *entry)
{
    if (entry->revents & POLLNVAL)
        return POLLER_BADFD;
    int events = entry->revents & (POLLERR | POLLHUP) ? entry->events : entry->revents;
    return (events & POLLIN ? PL_READ : 0u) | (events & POLLOUT ? PL_WRITE : 0u);
}

static int gather_ready(struct poller *p, int left)
{
    struct poll_impl *s = p->impl;
    int n = 0;
    for (int i = 0; left > 0 && i < s->len;) {
        uint32_t mask = mask_of(&s->fds[i]);
        if (mask)
            p->ready[n++] = (struct ready){.fd = s->fds[i].fd, .mask = mask};
        left -= s->fds[i].revents != 0;
        if (mask & POLLER_BADFD)
            remove_at(s, i); /* the entry that moves here is looked at next */
        else
            i++;
    }
    return n;
}

/* poll never says EBADF: a closed fd is marked POLLNVAL, which costs no search. */
static int wait_poll(struct poller *p, int64_t timeout_ns)
{
    struct poll_impl *s = p->impl;
#ifdef __linux__
    struct timespec ts;
    int n = ppoll(s->fds, (nfds_t)s->len, poller_timespec(timeout_ns, &ts), NULL);
#else
    int n = poll(s->fds, (nfds_t)s->len, poller_ms(timeout_ns));
#endif
    return n < 0 ? -errno : gather_ready(p, n);
}

const struct poller_ops poller_poll = {
    .name = "poll",
    .backend = PL_POLL,
    .init = init_poll,
    .fini = fini_poll,
    .set = set_poll,
    .wait = wait_poll,
};
