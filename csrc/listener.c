/* listener.c -- accept(2), and what its many errors mean to a server. */
#include "listener.h"

#include <errno.h>

#include "sock.h"

enum accepted listener_accept(const struct listener *l, struct peer *peer)
{
    peer->addr_len = sizeof peer->addr;
    peer->fd = sock_accept(l->fd, &peer->addr, &peer->addr_len);
    if (peer->fd >= 0)
        return ACCEPTED;
    switch (-peer->fd) {
    case EAGAIN: return ACCEPT_NONE;
    case EMFILE:
    case ENFILE:
    case ENOBUFS:
    case ENOMEM: return ACCEPT_SHORT;
    case EBADF:
    case EINVAL:
    case ENOTSOCK:
    case EOPNOTSUPP: return ACCEPT_BROKEN;
    default: return ACCEPT_AGAIN; /* Linux passes on errors of the new socket's network */
    }
}
