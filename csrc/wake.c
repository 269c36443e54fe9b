/* wake.c -- one flag and two pairs of fds that end a wait early.
 *
 *   threads:  wake_send -> pending 0 -> 1 -> write_fd === read_fd -> wake_take -> pending 0
 *   signals:  CPython's handler -> signal_write === signal_read -> wake_signals
 *
 * Owns: those fds. Does not know: who waits, or why anybody wakes. Nothing here allocates or locks,
 * so wake_send may run in a signal handler.
 * Source: eventfd(2), pipe(7), socketpair(2), signal-safety(7).
 */
#include "wake.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/socket.h>
#include <unistd.h>
#ifdef __linux__
#include <sys/eventfd.h>
#endif

#include "sock.h"

/* Make *fd what the header promises; it stays open, and valid to close, on failure. */
static int prepare_fd(int *fd)
{
    int moved = sock_above_stdio(*fd);
    if (moved < 0)
        return moved;
    *fd = moved;
    if (fcntl(moved, F_SETFD, FD_CLOEXEC) < 0)
        return -errno;
    return sock_set_nonblocking(moved, 1);
}

#ifdef __linux__

static int open_thread_fds(struct wake *w)
{
    int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (fd < 0)
        return -errno;
    w->read_fd = w->write_fd = fd;
    int rc = prepare_fd(&w->read_fd);
    w->write_fd = w->read_fd;
    return rc;
}

#else

static int open_thread_fds(struct wake *w)
{
    int fds[2];
    if (pipe(fds) < 0)
        return -errno;
    w->read_fd = fds[0];
    w->write_fd = fds[1];
    int rc = prepare_fd(&w->read_fd);
    return rc < 0 ? rc : prepare_fd(&w->write_fd);
}

#endif

static int open_signal_fds(struct wake *w)
{
    int fds[2];
    int type = SOCK_STREAM;
#ifdef SOCK_CLOEXEC
    type |= SOCK_CLOEXEC | SOCK_NONBLOCK; /* no window in which a fork and exec inherits them */
#endif
    if (socketpair(AF_UNIX, type, 0, fds) < 0)
        return -errno;
    w->signal_read = fds[0];
    w->signal_write = fds[1];
    int rc = prepare_fd(&w->signal_read);
    return rc < 0 ? rc : prepare_fd(&w->signal_write);
}

int wake_init(struct wake *w)
{
    w->read_fd = w->write_fd = w->signal_read = w->signal_write = -1;
    atomic_init(&w->pending, 0);
    int rc = open_thread_fds(w);
    if (rc == 0)
        rc = open_signal_fds(w);
    if (rc < 0)
        wake_fini(w);
    return rc;
}

static void close_fd(int *fd)
{
    if (*fd >= 0)
        sock_close(*fd);
    *fd = -1;
}

void wake_fini(struct wake *w)
{
    if (w->write_fd == w->read_fd)
        w->write_fd = -1;
    close_fd(&w->read_fd);
    close_fd(&w->write_fd);
    close_fd(&w->signal_read);
    close_fd(&w->signal_write);
}

/* The order that loses no wake: a sender raises the flag, then writes; a taker drains, then lowers.
 *
 *   - A sender that finds the flag up writes nothing, and need not. Either some sender's write is
 *     on its way or not yet drained: the wait ends by that. Or the taker stands between draining
 *     and lowering: the loop is awake, and looks at its queues after wake_take. The exchange on
 *     both sides lets the taker see what such a sender queued before.
 *   - A sender that comes after the lowering finds the flag down, and writes: the next wait ends.
 *   - Lowering first would be wrong: a sender between lowering and draining raises the flag and
 *     writes, the drain eats its write, and the flag is up for ever over an empty fd.
 *
 * A take before a raised flag's write has arrived costs no more than a spurious wake later. */
int wake_send(struct wake *w)
{
    if (atomic_exchange(&w->pending, 1))
        return 0;
    int saved = errno; /* of the code that a signal handler has interrupted */
    uint64_t one = 1;
    ssize_t n;
    do {
        n = write(w->write_fd, &one, sizeof one);
    } while (n < 0 && errno == EINTR);
    int rc = n < 0 && errno != EAGAIN ? -errno : 0;
    if (rc < 0)
        atomic_store(&w->pending, 0); /* nothing is on its way: let the next sender try */
    errno = saved;
    return rc;
}

/* Empty the fd; an eventfd gives all in one read. 1 if anything was there. */
static int drain_fd(int fd)
{
    uint64_t buffer[8];
    int any = 0;
    for (;;) {
        ssize_t n = read(fd, buffer, sizeof buffer);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return any;
        any = 1;
        if ((size_t)n < sizeof buffer)
            return any;
    }
}

int wake_take(struct wake *w)
{
    int drained = drain_fd(w->read_fd);
    int raised = atomic_exchange(&w->pending, 0);
    return drained || raised;
}

int wake_signals(struct wake *w, uint8_t *numbers, int max)
{
    if (max <= 0)
        return 0;
    ssize_t n;
    do {
        n = read(w->signal_read, numbers, (size_t)max);
    } while (n < 0 && errno == EINTR);
    return n > 0 ? (int)n : 0;
}
