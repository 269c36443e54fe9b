/* sock.c -- every socket system call of the core, each in a function of a few lines.
 *
 * Owns: how each errno of a socket call is read: retried, forgiven, or returned as -errno.
 * Does not know: what a conn, a poller or a byte means. No call of a socket blocks: receive and send
 * say MSG_DONTWAIT, because O_NONBLOCK belongs to the open file description, and another process that
 * holds the same one (a parent's terminal, an inherited socket) can switch it off under us. Pipes have
 * no such flag.
 * Source: accept(2), recv(2), sendmsg(2), read(2), writev(2), poll(2), fcntl(2), socket(7), tcp(7).
 */
#include "sock.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
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

int sock_is_readable(int fd)
{
    struct pollfd p = {.fd = fd, .events = POLLIN};
    return poll(&p, 1, 0) > 0;
}

/* One piece is the common case, and send costs the kernel less than sendmsg. */
static ssize_t send_once(int fd, const struct iovec *iov, int n)
{
    const int flags = MSG_NOSIGNAL | MSG_DONTWAIT;
    if (n == 1)
        return send(fd, iov->iov_base, iov->iov_len, flags);
    struct msghdr msg = {0};
    msg.msg_iov = (struct iovec *)iov; /* sendmsg only reads it; the type is shared with recvmsg */
    msg.msg_iovlen = (size_t)n;
    return sendmsg(fd, &msg, flags);
}

int64_t sock_send(int fd, const struct iovec *iov, int n, int is_pipe)
{
    for (;;) {
        ssize_t sent = is_pipe ? writev(fd, iov, n) : send_once(fd, iov, n);
        if (sent >= 0)
            return sent;
        if (errno != EINTR)
            return -errno;
    }
}

/* ---- datagrams ---- */

static struct msghdr header_of(const struct packet *packet, struct iovec *iov)
{
    struct msghdr msg = {0};
    *iov = (struct iovec){packet->data, packet->len};
    msg.msg_name = packet->addr_len ? packet->addr : NULL;
    msg.msg_namelen = packet->addr_len;
    msg.msg_iov = iov;
    msg.msg_iovlen = 1;
    return msg;
}

/* The kernel says how long both were, even if there was less room. */
static void note_received(struct packet *packet, socklen_t addr_len, size_t len)
{
    if (addr_len < packet->addr_len)
        packet->addr_len = addr_len;
    packet->cut = len > packet->len;
    if (!packet->cut)
        packet->len = len;
}

static int send_each(int fd, const struct packet *packets, int n)
{
    for (int i = 0; i < n;) {
        const struct packet *p = &packets[i];
        const struct sockaddr *addr = p->addr_len ? p->addr : NULL;
        if (sendto(fd, p->data, p->len, MSG_NOSIGNAL | MSG_DONTWAIT, addr, p->addr_len) >= 0)
            i++;
        else if (errno != EINTR)
            return i ? i : -errno;
    }
    return n;
}

#ifdef __linux__

/* recvfrom costs the kernel less than recvmsg, and here it says the whole length. */
static int receive_one(int fd, struct packet *packet)
{
    socklen_t addr_len = packet->addr_len;
    ssize_t len = recvfrom(fd, packet->data, packet->len, MSG_DONTWAIT | MSG_TRUNC, packet->addr,
                           &addr_len);
    if (len < 0)
        return -errno;
    note_received(packet, addr_len, (size_t)len);
    return 0;
}

#else

static int receive_one(int fd, struct packet *packet)
{
    struct iovec iov;
    struct msghdr msg = header_of(packet, &iov);
    ssize_t len = recvmsg(fd, &msg, MSG_DONTWAIT);
    if (len < 0)
        return -errno;
    note_received(packet, msg.msg_namelen, (size_t)len + (msg.msg_flags & MSG_TRUNC ? 1 : 0));
    return 0;
}

#endif

static int receive_each(int fd, struct packet *packets, int n, int *error)
{
    for (int i = 0; i < n;) {
        int rc = receive_one(fd, &packets[i]);
        if (rc == 0) {
            i++;
        } else if (rc != -EINTR) {
            *error = rc == -EAGAIN ? 0 : rc;
            return i;
        }
    }
    return n;
}

#ifdef __linux__

/* -ENOSYS: a sandbox, or an emulated kernel, that knows sendto only. */
static int send_many(int fd, const struct packet *packets, int n)
{
    struct mmsghdr msgs[PACKETS_MAX];
    struct iovec iovs[PACKETS_MAX];
    for (int i = 0; i < n; i++)
        msgs[i] = (struct mmsghdr){.msg_hdr = header_of(&packets[i], &iovs[i])};
    for (;;) {
        int sent = sendmmsg(fd, msgs, (unsigned)n, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (sent >= 0)
            return sent;
        if (errno != EINTR)
            return -errno;
    }
}

/* Without its time-out, which is looked at only after each datagram. What ends it after the first one, the kernel
 * keeps for the next call. */
static int receive_many(int fd, struct packet *packets, int n, int *error)
{
    struct mmsghdr msgs[PACKETS_MAX];
    struct iovec iovs[PACKETS_MAX];
    for (int i = 0; i < n; i++)
        msgs[i] = (struct mmsghdr){.msg_hdr = header_of(&packets[i], &iovs[i])};
    int got;
    do {
        got = recvmmsg(fd, msgs, (unsigned)n, MSG_DONTWAIT | MSG_TRUNC, NULL);
        *error = got < 0 ? -errno : 0;
    } while (*error == -EINTR);
    for (int i = 0; i < got; i++)
        note_received(&packets[i], msgs[i].msg_hdr.msg_namelen, msgs[i].msg_len);
    if (*error == -EAGAIN)
        *error = 0;
    return got < 0 ? 0 : got;
}

#endif

int sock_send_packets(int fd, const struct packet *packets, int n)
{
#ifdef __linux__
    int sent = n > 1 ? send_many(fd, packets, n) : -ENOSYS; /* for one, sendto costs less */
    if (sent != -ENOSYS)
        return sent;
#endif
    return send_each(fd, packets, n);
}

int sock_receive_packets(int fd, struct packet *packets, int n, int *error)
{
#ifdef __linux__
    *error = -ENOSYS;
    int got = n > 1 ? receive_many(fd, packets, n, error) : 0;
    if (*error != -ENOSYS)
        return got;
#endif
    *error = 0;
    return receive_each(fd, packets, n, error);
}

int sock_name(int fd, struct sockaddr_storage *addr, socklen_t *addr_len)
{
    *addr_len = sizeof *addr;
    return getsockname(fd, (struct sockaddr *)addr, addr_len) < 0 ? -errno : 0;
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
