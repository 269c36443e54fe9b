/* sock.c -- every socket system call of the core, each in a function of a few lines.
 *
 * Owns: how each errno of a socket call is read: retried, forgiven, or returned as -errno.
 * Does not know: what a conn, a poller or a byte means. No call of a socket blocks: receive and send
 * say MSG_DONTWAIT, because O_NONBLOCK belongs to the open file description, and another process that
 * holds the same one (a parent's terminal, an inherited socket) can switch it off under us. Pipes have
 * no such flag.
 * Source: accept(2), recv(2), sendmsg(2), read(2), writev(2), fcntl(2), socket(7), tcp(7).
 */
#include "sock.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <time.h>
#include <unistd.h>

#include "pyloop.h"

/* macOS has SO_NOSIGPIPE instead; Python ignores SIGPIPE in every process that we run in. */
#ifndef MSG_NOSIGNAL
#define MSG_NOSIGNAL 0
#endif

#define LOWEST_FD 3

int sock_set_nonblocking(int fd, int on)
{
    int flags = fcntl(fd, F_GETFL);
    if (flags < 0)
        return -errno;
    int wanted = on ? flags | O_NONBLOCK : flags & ~O_NONBLOCK;
    if (wanted == flags)
        return 0;
    return fcntl(fd, F_SETFL, wanted) < 0 ? -errno : 0;
}

int sock_is_nonblocking(int fd)
{
    int flags = fcntl(fd, F_GETFL);
    if (flags < 0)
        return -errno;
    return (flags & O_NONBLOCK) != 0;
}

int pl_set_nonblocking(int fd, int on) { return sock_set_nonblocking(fd, on); }

int pl_is_nonblocking(int fd) { return sock_is_nonblocking(fd); }

int sock_above_stdio(int fd)
{
    if (fd >= LOWEST_FD)
        return fd;
    int copy = fcntl(fd, F_DUPFD_CLOEXEC, LOWEST_FD);
    if (copy < 0)
        return -errno;
    sock_close(fd);
    return copy;
}

#ifdef __linux__

static int accept_once(int fd, struct sockaddr *addr, socklen_t *addr_len)
{
    int conn = accept4(fd, addr, addr_len, SOCK_NONBLOCK | SOCK_CLOEXEC);
    return conn < 0 ? -errno : conn;
}

#else

static int accept_once(int fd, struct sockaddr *addr, socklen_t *addr_len)
{
    int conn = accept(fd, addr, addr_len);
    if (conn < 0)
        return -errno;
    int rc = fcntl(conn, F_SETFD, FD_CLOEXEC) < 0 ? -errno : sock_set_nonblocking(conn, 1);
    if (rc < 0) {
        sock_close(conn);
        return rc;
    }
    return conn;
}

#endif

int sock_accept(int fd, struct sockaddr_storage *addr, socklen_t *addr_len)
{
    int conn;
    do {
        *addr_len = sizeof *addr;
        conn = accept_once(fd, (struct sockaddr *)addr, addr_len);
    } while (conn == -EINTR);
    if (conn < 0)
        return conn;
    int moved = sock_above_stdio(conn);
    if (moved < 0)
        sock_close(conn);
    return moved;
}

int64_t sock_receive(int fd, uint8_t *data, size_t len)
{
    for (;;) {
        ssize_t n = recv(fd, data, len, MSG_DONTWAIT);
        if (n >= 0)
            return n;
        if (errno != EINTR)
            return -errno;
    }
}

int64_t sock_read(int fd, uint8_t *data, size_t len)
{
    for (;;) {
        ssize_t n = read(fd, data, len);
        if (n >= 0)
            return n;
        if (errno != EINTR)
            return -errno;
    }
}

static ssize_t send_once(int fd, const struct iovec *iov, const struct msghdr *msg)
{
    int flags = MSG_NOSIGNAL | MSG_DONTWAIT;
    /* One piece is the common case, and send costs the kernel less than sendmsg. */
    return msg->msg_iovlen == 1 ? send(fd, iov->iov_base, iov->iov_len, flags)
                                : sendmsg(fd, msg, flags);
}

int64_t sock_send(int fd, const struct iovec *iov, int n, int is_pipe)
{
    struct msghdr msg = {0};
    msg.msg_iov = (struct iovec *)iov; /* sendmsg only reads it; the type is shared with recvmsg */
    msg.msg_iovlen = (size_t)n;
    for (;;) {
        ssize_t sent = is_pipe ? writev(fd, iov, n) : send_once(fd, iov, &msg);
        if (sent >= 0)
            return sent;
        if (errno != EINTR)
            return -errno;
    }
}

int sock_shutdown_write(int fd) { return shutdown(fd, SHUT_WR) < 0 ? -errno : 0; }

int sock_set_nodelay(int fd)
{
    int on = 1;
    if (setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on) == 0)
        return 0;
    int error = errno;
    /* AF_UNIX says EOPNOTSUPP, others ENOPROTOOPT; macOS says EINVAL once the peer has gone. */
    if (error == EOPNOTSUPP || error == ENOTSUP || error == ENOPROTOOPT || error == EINVAL)
        return 0;
    return -error;
}

void sock_reset_on_close(int fd)
{
    struct linger now = {.l_onoff = 1, .l_linger = 0};
    (void)setsockopt(fd, SOL_SOCKET, SO_LINGER, &now, sizeof now);
}

/* Linux: to connect a TCP socket to nowhere is to abort it, and whoever polls it is woken. */
void sock_reset_now(int fd)
{
    const struct sockaddr nowhere = {.sa_family = AF_UNSPEC};
    sock_reset_on_close(fd);
    if (connect(fd, &nowhere, sizeof nowhere) < 0)
        (void)shutdown(fd, SHUT_RDWR);
}

void sock_close(int fd) { (void)close(fd); }

int64_t sock_now(void)
{
    struct timespec ts;
    (void)clock_gettime(CLOCK_MONOTONIC, &ts);
    return (int64_t)ts.tv_sec * 1000000000 + ts.tv_nsec;
}
