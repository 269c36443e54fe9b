/* floor_select.c -- a plain C echo server on select(2). Prints "listening PORT",
 * runs until SIGTERM. Conns whose fd does not fit an fd_set are closed at once.
 * See floor.h. */
#include "floor.h"

#include <sys/select.h>

static struct rest rests[FD_SETSIZE];
static fd_set readers, writers; /* what is wanted */
static int highest;

static void accept_all(int listener)
{
    for (;;) {
        int fd = accept_one(listener);
        if (fd < 0) {
            return;
        }
        if (fd >= FD_SETSIZE) {
            close(fd);
            continue;
        }
        FD_SET(fd, &readers);
        highest = fd > highest ? fd : highest;
    }
}

static void lower_highest(void)
{
    while (!FD_ISSET(highest, &readers) && !FD_ISSET(highest, &writers)) {
        highest--;
    }
}

static void serve(int fd)
{
    struct rest *r = &rests[fd];
    int rc = r->bytes ? send_rest(fd, r) : echo_once(fd, r);
    FD_CLR(fd, rc == 0 ? &writers : &readers);
    if (rc < 0) {
        FD_CLR(fd, &writers);
        close_one(fd, r);
        lower_highest();
        return;
    }
    FD_SET(fd, rc == 0 ? &readers : &writers);
}

int main(void)
{
    int listener = listen_and_tell();
    FD_ZERO(&readers);
    FD_ZERO(&writers);
    FD_SET(listener, &readers);
    highest = listener;
    while (!stopped) {
        fd_set in = readers, out = writers;
        int n = select(highest + 1, &in, &out, NULL, NULL);
        for (int fd = 0; fd <= highest && n > 0; fd++) {
            if (!FD_ISSET(fd, &in) && !FD_ISSET(fd, &out)) {
                continue;
            }
            n--;
            if (fd == listener) {
                accept_all(listener);
            } else {
                serve(fd);
            }
        }
    }
    return 0;
}
