/* reuseport.c -- which socket of a SO_REUSEPORT group gets the next connection.
 *
 * The kernel hashes over all of a group, also over one that is about to be closed, and closing resets what its
 * queue holds. A small classic BPF program in the group steers new connections to the first
 * sockets only (a group counts its sockets in the order of their listen calls), so the last one runs dry.
 *
 * Source: socket(7), SO_ATTACH_REUSEPORT_CBPF; Linux, Documentation/networking/filter. */
#include <errno.h>
#include <stdint.h>
#include <sys/socket.h>

#include "pyloop.h"

#if defined(__linux__) && defined(SO_ATTACH_REUSEPORT_CBPF)
#include <linux/filter.h>
#include <netinet/in.h>
#include <netinet/tcp.h>

#ifndef SO_DETACH_REUSEPORT_BPF
#define SO_DETACH_REUSEPORT_BPF 68 /* Linux 5.3 */
#endif

static int detach(int fd)
{
    int none = 0;
    if (setsockopt(fd, SOL_SOCKET, SO_DETACH_REUSEPORT_BPF, &none, sizeof none) == 0)
        return 0;
    return errno == ENOENT ? 0 : -errno;
}

int pl_reuseport_steer(int fd, uint32_t first)
{
    if (!first)
        return detach(fd);
    struct sock_filter code[] = {
        {BPF_LD | BPF_W | BPF_ABS, 0, 0, (uint32_t)(SKF_AD_OFF + SKF_AD_RANDOM)},
        {BPF_ALU | BPF_MOD | BPF_K, 0, 0, first},
        {BPF_RET | BPF_A, 0, 0, 0},
    };
    struct sock_fprog program = {.len = sizeof code / sizeof *code, .filter = code};
    int rc = setsockopt(fd, SOL_SOCKET, SO_ATTACH_REUSEPORT_CBPF, &program, sizeof program);
    return rc < 0 ? -errno : 0;
}

int pl_listener_queued(int fd)
{
    struct tcp_info info = {0};
    socklen_t len = sizeof info;
    if (getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &len) < 0)
        return -errno;
    return (int)info.tcpi_unacked; /* of a listening socket: its accept queue */
}

#else

int pl_reuseport_steer(int fd, uint32_t first)
{
    (void)fd;
    (void)first;
    return -ENOSYS;
}

int pl_listener_queued(int fd)
{
    (void)fd;
    return -ENOSYS;
}

#endif
