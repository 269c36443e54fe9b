/* dgram_rig.h -- what the tests of datagrams share: sockets, dgrams over them, and the many-at-once calls. */
#ifndef DGRAM_RIG_H
#define DGRAM_RIG_H

#include "datagram.h"
#include "loop_rig.h"

/* The calls of the core, counted, and refused as a kernel without them does: these stand before libc's. */
static int mmsg_missing, sends, receives;

int sendmmsg(int fd, struct mmsghdr *msgs, unsigned n, int flags)
{
    sends++;
    if (!mmsg_missing)
        return (int)syscall(SYS_sendmmsg, fd, msgs, n, flags);
    errno = ENOSYS;
    return -1;
}

int recvmmsg(int fd, struct mmsghdr *msgs, unsigned n, int flags, struct timespec *timeout)
{
    receives++;
    if (!mmsg_missing)
        return (int)syscall(SYS_recvmmsg, fd, msgs, n, flags, timeout);
    errno = ENOSYS;
    return -1;
}

static struct sockaddr_in here; /* of the last udp_open */

static inline int udp_open(void)
{
    socklen_t len = sizeof here;
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK, 0);
    here = (struct sockaddr_in){.sin_family = AF_INET};
    here.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    bind(fd, (struct sockaddr *)&here, len);
    getsockname(fd, (struct sockaddr *)&here, &len);
    return fd;
}

/* A reading dgram over fd; its id, or 0. */
static inline uint64_t dgram_of(int fd)
{
    uint64_t id;
    return pl_dgram_open(loop, fd, 65536, &id) == 0 && pl_dgram_read(loop, id, 1) == 0 ? id : 0;
}

static inline int send_to(uint64_t id, const char *text, const void *addr, size_t len)
{
    return pl_dgram_send(loop, id, (const uint8_t *)text, strlen(text), addr, len);
}

static inline int put_to(int fd, const char *text)
{
    return sendto(fd, text, strlen(text), 0, (struct sockaddr *)&here, sizeof here) >= 0;
}

/* These datagrams of id, in order, are in the batch at hand and those that follow; it is used up by this. */
static inline int arrive(uint64_t id, const char *const *texts)
{
    for (int ticks = 0; ticks < 100; ticks++) {
        int at = -1;
        while (*texts && (at = event_at(PL_EV_DATAGRAM, id, at + 1)) >= 0)
            if (!event_says(at, *texts++))
                return 0;
        if (!*texts)
            break;
        tick(LONG_NS);
    }
    batch_n = 0;
    return !*texts;
}

#endif
