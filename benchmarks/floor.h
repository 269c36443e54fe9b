/* floor.h -- what the two plain C echo servers share: the least that an echo costs.
 *
 * No framing, no ids, no limits: per readiness one read into one buffer and one
 * write of what came. What the kernel does not take at once is copied aside, and
 * that conn is not read until it has left.
 */
#ifndef FLOOR_H
#define FLOOR_H

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#define BUFFER (64 * 1024)

struct rest { /* by fd: output that the kernel did not take */
    char *bytes;
    size_t at, len;
};

static volatile sig_atomic_t stopped;
static char buffer[BUFFER];

static inline void on_signal(int number)
{
    (void)number;
    stopped = 1;
}

/* Listen on a free port of 127.0.0.1 and print it. The listening fd; exits on failure. */
static inline int listen_and_tell(void)
{
    struct sockaddr_in at = {.sin_family = AF_INET};
    struct sigaction action = {.sa_handler = on_signal};
    struct rlimit files;
    socklen_t len = sizeof(at);
    if (getrlimit(RLIMIT_NOFILE, &files) == 0) {
        files.rlim_cur = files.rlim_max;
        setrlimit(RLIMIT_NOFILE, &files);
    }
    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGINT, &action, NULL);
    at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    if (fd < 0 || bind(fd, (struct sockaddr *)&at, sizeof(at)) < 0 || listen(fd, 4096) < 0 ||
        getsockname(fd, (struct sockaddr *)&at, &len) < 0) {
        perror("listen");
        exit(1);
    }
    printf("listening %d\n", ntohs(at.sin_port));
    fflush(stdout);
    return fd;
}

/* The next conn, non-blocking and without Nagle, or -1. */
static inline int accept_one(int listener)
{
    int on = 1, fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK);
    if (fd >= 0) {
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
    }
    return fd;
}

static inline int keep_rest(struct rest *r, const char *bytes, size_t len)
{
    r->bytes = malloc(len);
    if (!r->bytes) {
        return -1;
    }
    memcpy(r->bytes, bytes, len);
    r->at = 0;
    r->len = len;
    return 1;
}

/* One read, one write. 0: done; 1: a rest is kept, wait until writable; -1: close. */
static inline int echo_once(int fd, struct rest *r)
{
    ssize_t got = recv(fd, buffer, BUFFER, 0);
    if (got <= 0) {
        return got < 0 && (errno == EAGAIN || errno == EINTR) ? 0 : -1;
    }
    ssize_t sent = send(fd, buffer, (size_t)got, MSG_NOSIGNAL);
    if (sent == got) {
        return 0;
    }
    if (sent < 0) {
        if (errno != EAGAIN && errno != EINTR) {
            return -1;
        }
        sent = 0;
    }
    return keep_rest(r, buffer + sent, (size_t)(got - sent));
}

/* Write the rest. 0: it has left; 1: not yet; -1: close. */
static inline int send_rest(int fd, struct rest *r)
{
    ssize_t sent = send(fd, r->bytes + r->at, r->len - r->at, MSG_NOSIGNAL);
    if (sent < 0) {
        return errno == EAGAIN || errno == EINTR ? 1 : -1;
    }
    r->at += (size_t)sent;
    if (r->at < r->len) {
        return 1;
    }
    free(r->bytes);
    *r = (struct rest){0};
    return 0;
}

static inline void close_one(int fd, struct rest *r)
{
    free(r->bytes);
    *r = (struct rest){0};
    close(fd);
}

#endif
