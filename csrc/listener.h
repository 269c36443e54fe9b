/* listener.h -- a listening socket, borrowed from the caller. */
#ifndef PYLOOP_LISTENER_H
#define PYLOOP_LISTENER_H

#include <stdint.h>
#include <sys/socket.h>

struct listener {
    int fd; /* -1: this place is free */
    uint32_t group;
};

struct peer { /* who called */
    int fd;
    struct sockaddr_storage addr;
    socklen_t addr_len;
};

enum accepted {
    ACCEPTED,      /* peer->fd is a new, non-blocking socket */
    ACCEPT_NONE,   /* nobody waits */
    ACCEPT_AGAIN,  /* this one failed for a reason of its own: try the next */
    ACCEPT_SHORT,  /* out of fds or memory: rest */
    ACCEPT_BROKEN, /* not a listening socket any more */
};

enum accepted listener_accept(const struct listener *l, struct peer *peer);

#endif
