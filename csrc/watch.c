/* watch.c -- who owns an fd and what it wants: one array by fd, and the poller behind it.
 *
 * `auto` lives here: it starts on select, and the first fd that does not fit, or the sixty-fifth, moves all
 * interest to the strongest poller. All pollers are level-triggered, so what was ready is reported again. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "loop.h"

static int fit_fd(struct pl_loop *loop, int fd)
{
    if (fd < loop->fds_cap)
        return 0;
    if (poller_fd_closed(fd))
        return -EBADF; /* and so no number is larger than the kernel's own table */
    int cap = loop->fds_cap ? loop->fds_cap : 64;
    while (cap <= fd)
        cap *= 2;
    struct fd_entry *fds = realloc(loop->fds, (size_t)cap * sizeof *fds);
    if (!fds)
        return -ENOMEM;
    memset(fds + loop->fds_cap, 0, (size_t)(cap - loop->fds_cap) * sizeof *fds);
    loop->fds = fds;
    loop->fds_cap = cap;
    return 0;
}

/* Set interest, and count it where that is a system call. */
static int set_interest(struct pl_loop *loop, struct poller *p, int fd, uint32_t old, uint32_t new_)
{
    loop->counters->watches += p->ops->backend == PL_EPOLL;
    return p->ops->set(p, fd, old, new_);
}

/* Move all interest to the strongest poller. 0, or -errno with the old one still in place. */
static int move_poller(struct pl_loop *loop)
{
    struct poller stronger;
    int vanished = 0, rc = poller_init(&stronger, poller_strongest());
    if (rc < 0)
        return rc;
    for (int fd = 0; fd < loop->fds_cap; fd++) {
        if (!loop->fds[fd].interest)
            continue;
        rc = set_interest(loop, &stronger, fd, 0, loop->fds[fd].interest);
        if (rc == -EBADF && (rc = poller_grow(&stronger, vanished + 1)) == 0)
            stronger.ready[vanished++] = (struct ready){fd, POLLER_BADFD}; /* select cannot say so */
        if (rc < 0) {
            poller_fini(&stronger);
            return rc;
        }
    }
    poller_fini(&loop->poller);
    loop->poller = stronger;
    loop->ready_at = 0;
    loop->ready_count = vanished;
    loop->automatic = false;
    return 0;
}

static bool must_move(const struct pl_loop *loop, int fd, uint32_t old)
{
    bool fits = fd < pl_fdset_size();
    return loop->automatic && (!fits || (!old && loop->watched >= AUTO_MAX_WATCHED));
}

int watch_set(struct pl_loop *loop, int fd, enum owner owner, uint32_t index, uint32_t interest)
{
    int rc = fit_fd(loop, fd);
    if (rc < 0)
        return rc;
    uint32_t old = loop->fds[fd].interest;
    if (interest != old) {
        rc = interest && must_move(loop, fd, old) ? move_poller(loop) : 0;
        if (rc < 0 && fd >= pl_fdset_size())
            return rc; /* else select will do until the next try */
        rc = set_interest(loop, &loop->poller, fd, old, interest);
        if (rc < 0)
            return rc;
        loop->watched += (uint32_t)(interest != 0) - (uint32_t)(old != 0);
    }
    loop->fds[fd] = (struct fd_entry){index, (uint8_t)owner, (uint8_t)interest};
    return 0;
}

void watch_forget(struct pl_loop *loop, int fd)
{
    if (fd < 0 || fd >= loop->fds_cap)
        return;
    struct fd_entry *entry = &loop->fds[fd];
    if (entry->interest) {
        if (!loop_is_foreign(loop))
            (void)set_interest(loop, &loop->poller, fd, entry->interest, 0);
        loop->watched--;
    }
    *entry = (struct fd_entry){0};
}

int pl_watch(struct pl_loop *loop, int fd, uint32_t interest)
{
    int rc = loop_guard(loop);
    if (rc < 0 && (rc != PL_E_FORKED || interest))
        return rc;
    if (fd < 0)
        return -EBADF;
    if (interest & ~(uint32_t)(PL_READ | PL_WRITE))
        return -EINVAL;
    enum owner owner = fd < loop->fds_cap ? loop->fds[fd].owner : OWNER_NONE;
    if (owner != OWNER_NONE && owner != OWNER_WATCHER)
        return -EEXIST;
    if (interest)
        return watch_set(loop, fd, OWNER_WATCHER, 0, interest);
    watch_forget(loop, fd);
    return 0;
}
