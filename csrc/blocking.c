/* blocking.c -- a socket whose own thread waits for it: the core of the models thread and fork.
 *
 * Owns: one wait on two fds, and what is done at its end. Does not know: messages (reader.c cuts them), time-outs
 * that last longer than one wait, who else has the socket. A wake is an eventfd or a pipe, non-blocking;
 * it is emptied here, so what it stands for must be looked up after the call.
 * Source: poll(2), recv(2), tcp(7).
 */
#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <unistd.h>

#include "pyloop.h"
#include "sock.h"

#define RECEIVE_BYTES 65536
#define NS_PER_MS 1000000

/* Whole milliseconds, never too few. */
static int poll_timeout(int64_t ns)
{
    if (ns < 0)
        return -1;
    int64_t ms = ns / NS_PER_MS + (ns % NS_PER_MS > 0);
    return ms > INT_MAX ? INT_MAX : (int)ms;
}

static void take_wake(int fd)
{
    uint8_t sink[64];
    while (read(fd, sink, sizeof sink) == sizeof sink) /* an eventfd gives 8 bytes, and is empty */
        continue;
}

static int wait_for(int fd, uint32_t wanted, int wake_fd, int64_t timeout_ns)
{
    short events = (short)((wanted & PL_CAME_INPUT ? POLLIN : 0) |
                           (wanted & PL_CAME_ROOM ? POLLOUT : 0));
    struct pollfd entries[2] = {{.fd = fd, .events = events}, {.fd = wake_fd, .events = POLLIN}};
    int n = poll(entries, wake_fd < 0 ? 1 : 2, poll_timeout(timeout_ns));
    if (n <= 0)
        return n < 0 ? -errno : 0;
    short came = entries[0].revents;
    uint32_t happened = 0;
    if (came & POLLNVAL)
        return -EBADF;
    if (came & (POLLIN | POLLHUP | POLLERR))
        happened |= wanted & PL_CAME_INPUT;
    if (came & (POLLOUT | POLLHUP | POLLERR))
        happened |= wanted & PL_CAME_ROOM;
    if (came & (POLLHUP | POLLERR) && !happened)
        happened |= PL_CAME_HANGUP;
    if (entries[1].revents) {
        take_wake(wake_fd);
        happened |= PL_CAME_WAKE;
    }
    return (int)happened;
}

static int64_t receive(struct pl_reader *r, int fd)
{
    uint8_t *room = pl_reader_reserve(r, RECEIVE_BYTES);
    if (!room)
        return -ENOMEM;
    int64_t n = sock_receive(fd, room, RECEIVE_BYTES);
    if (n > 0)
        (void)pl_reader_commit(r, (size_t)n); /* no more than was reserved */
    return n;
}

int pl_reader_receive(struct pl_reader *r, int fd, uint32_t wanted, int wake_fd,
                      int64_t timeout_ns, size_t *received)
{
    *received = 0;
    int happened = wait_for(fd, wanted, wake_fd, timeout_ns);
    if (happened <= 0 || !(happened & PL_CAME_INPUT))
        return happened;
    int64_t n = receive(r, fd);
    if (n == -EAGAIN && happened != PL_CAME_INPUT)
        return happened & ~PL_CAME_INPUT;
    if (n < 0)
        return (int)n;
    *received = (size_t)n;
    return n == 0 ? (happened & ~PL_CAME_INPUT) | PL_CAME_END : happened;
}

int64_t pl_socket_send(int fd, const uint8_t *data, size_t len)
{
    struct iovec iov = {.iov_base = (uint8_t *)(uintptr_t)data, .iov_len = len};
    return sock_send(fd, &iov, 1, 0);
}

int pl_socket_shutdown(int fd) { return sock_shutdown_write(fd); }

void pl_socket_reset(int fd) { sock_reset_now(fd); }
