/* floor_epoll.c -- a plain C echo server on level-triggered epoll(7). Prints
 * "listening PORT", runs until SIGTERM. See floor.h. */
#include "floor.h"

#include <sys/epoll.h>

#define FDS 65536
#define EVENTS 512

static struct rest rests[FDS];

static void want(int ep, int op, int fd, unsigned events)
{
    struct epoll_event ev = {.events = events, .data.fd = fd};
    epoll_ctl(ep, op, fd, &ev);
}

static void accept_all(int ep, int listener)
{
    for (;;) {
        int fd = accept_one(listener);
        if (fd < 0) {
            return;
        }
        if (fd >= FDS) {
            close(fd);
            continue;
        }
        want(ep, EPOLL_CTL_ADD, fd, EPOLLIN);
    }
}

static void serve(int ep, int fd, unsigned events)
{
    struct rest *r = &rests[fd];
    int kept = r->bytes != NULL;
    int rc = kept ? send_rest(fd, r) : echo_once(fd, r);
    if (rc < 0 || (kept && events & (EPOLLHUP | EPOLLERR))) {
        close_one(fd, r);
    } else if (rc != kept) {
        want(ep, EPOLL_CTL_MOD, fd, rc ? EPOLLOUT : EPOLLIN);
    }
}

int main(void)
{
    static struct epoll_event events[EVENTS];
    int listener = listen_and_tell();
    int ep = epoll_create1(EPOLL_CLOEXEC);
    want(ep, EPOLL_CTL_ADD, listener, EPOLLIN);
    while (!stopped) {
        int n = epoll_wait(ep, events, EVENTS, -1);
        for (int i = 0; i < n; i++) {
            int fd = events[i].data.fd;
            if (fd == listener) {
                accept_all(ep, listener);
            } else {
                serve(ep, fd, events[i].events);
            }
        }
    }
    return 0;
}
