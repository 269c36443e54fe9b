/* loop_rig.h -- what the tests of the loop share: loops on the backend under test, conns over
 * socketpairs and listeners, and looking for events in a batch.
 *
 * A batch is looked at where pl_loop_events has it; `batch_n` is the answer of the last tick. */
#ifndef LOOP_RIG_H
#define LOOP_RIG_H

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "check.h"
#include "pyloop.h"
#include "sock.h"

#define MS ((int64_t)1000000)
#define LONG_NS (5000 * MS) /* a wait that ends by an event, or the test has failed */

static const int all_backends[] = {PL_AUTO, PL_SELECT, PL_POLL, PL_EPOLL};
static const char *const backend_names[] = {"auto", "select", "poll", "epoll"};

static int backend; /* under test */
static struct pl_loop *loop;
static struct pl_event *events;
static int batch_n;

/* Run each test on each backend, saying which when one fails. */
#define RUN_ON_ALL(test)                                        \
    do {                                                        \
        for (int at_ = 0; at_ < 4; at_++) {                     \
            backend = all_backends[at_];                        \
            int bad_ = run_test(#test, test);                   \
            if (bad_)                                           \
                printf("     ... on %s\n", backend_names[at_]); \
            tests_failed += bad_;                               \
            if (loop)                                           \
                pl_loop_free(loop);                             \
            loop = NULL;                                        \
        }                                                       \
    } while (0)

static inline int loop_open(void)
{
    int error;
    loop = pl_loop_new(backend, &error);
    events = loop ? pl_loop_events(loop) : NULL;
    batch_n = 0;
    return loop ? 0 : error;
}

static inline void loop_end(void)
{
    pl_loop_free(loop);
    loop = NULL;
}

static inline struct pl_options options_of(uint32_t kind)
{
    struct pl_options o = {0};
    o.framing.kind = kind;
    o.framing.max_size = 65536;
    o.framing.width = 4;
    o.framing.big = 1;
    o.framing.sep_len = 2;
    memcpy(o.framing.sep, "##", 2);
    o.high_water = 65536;
    o.low_water = 16384;
    o.linger = 10000 * MS;
    o.close_timeout = 10000 * MS;
    return o;
}

static inline int group_of(uint32_t kind)
{
    struct pl_options o = options_of(kind);
    return pl_group_new(loop, &o, NULL);
}

static inline int tick(int64_t timeout_ns)
{
    batch_n = pl_loop_tick(loop, timeout_ns);
    return batch_n;
}

/* A conn of `group` whose other end is *peer, non-blocking. Its id, or 0. */
static inline uint64_t pair_open(int group, int *peer)
{
    int fds[2];
    uint64_t id = 0;
    *peer = -1;
    if (socketpair(AF_UNIX, SOCK_STREAM, 0, fds) < 0)
        return 0;
    pl_set_nonblocking(fds[1], 1);
    if (pl_conn_open(loop, group, fds[0], &id) < 0) {
        close(fds[0]);
        close(fds[1]);
        return 0;
    }
    *peer = fds[1];
    return id;
}

/* The index of the first event of `kind` (and id, unless 0) at or after `from`; -1: none. */
static inline int event_at(uint32_t kind, uint64_t id, int from)
{
    for (int i = from; i < batch_n; i++) {
        if (events[i].kind == kind && (!id || events[i].id == id))
            return i;
    }
    return -1;
}

static inline int event_count(uint32_t kind, uint64_t id)
{
    int n = 0;
    for (int i = event_at(kind, id, 0); i >= 0; i = event_at(kind, id, i + 1))
        n++;
    return n;
}

/* Tick until a batch has it; its index, or -1 after a generous number of ticks. */
static inline int tick_until(uint32_t kind, uint64_t id)
{
    int64_t end = sock_now() + LONG_NS;
    while (sock_now() < end) {
        if (tick(LONG_NS) < 0)
            return -1;
        int at = event_at(kind, id, 0);
        if (at >= 0)
            return at;
    }
    return -1;
}

static inline int event_says(int at, const char *text)
{
    if (at < 0 || at >= batch_n)
        return 0;
    size_t len = (size_t)(events[at].end - events[at].data);
    return len == strlen(text) && memcmp(events[at].data, text, len) == 0;
}

/* Is the batch exactly these messages of `id`, in order, beside events of other kinds? */
static inline int messages_are(uint64_t id, const char *const *texts)
{
    int at = -1;
    for (; *texts; texts++) {
        at = event_at(PL_EV_MESSAGE, id, at + 1);
        if (!event_says(at, *texts))
            return 0;
    }
    return event_at(PL_EV_MESSAGE, id, at + 1) < 0;
}

#define TEXTS(...) ((const char *const[]){__VA_ARGS__, NULL})

static inline int put(int fd, const char *text)
{
    return send(fd, text, strlen(text), MSG_NOSIGNAL) == (ssize_t)strlen(text);
}

/* What the peer reads now: the count, 0 at end of stream, -errno. */
static inline ssize_t take(int fd, char *to, size_t size)
{
    ssize_t n = recv(fd, to, size, MSG_DONTWAIT);
    return n < 0 ? -errno : n;
}

/* A listening TCP socket on 127.0.0.1; *addr is where. */
static inline int tcp_listen(struct sockaddr_in *addr)
{
    socklen_t len = sizeof *addr;
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    *addr = (struct sockaddr_in){.sin_family = AF_INET};
    addr->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (bind(fd, (struct sockaddr *)addr, len) < 0 || listen(fd, 256) < 0)
        return -1;
    getsockname(fd, (struct sockaddr *)addr, &len);
    return fd;
}

static inline int tcp_connect(const struct sockaddr_in *addr)
{
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    if (connect(fd, (const struct sockaddr *)addr, sizeof *addr) < 0)
        return -1;
    pl_set_nonblocking(fd, 1);
    return fd;
}

/* The clock of the core, moved on without waiting: this definition stands before libc's. */
static int64_t clock_ahead;
static int64_t clock_stands; /* what it says; 0: it runs */
static void (*clock_hook)(void); /* called whenever it is read */

int clock_gettime(clockid_t id, struct timespec *ts)
{
    if (clock_hook)
        clock_hook();
    long rc = syscall(SYS_clock_gettime, id, ts);
    int64_t now = (int64_t)ts->tv_sec * 1000 * MS + ts->tv_nsec + clock_ahead;
    now = clock_stands ? clock_stands : now;
    ts->tv_sec = (time_t)(now / (1000 * MS));
    ts->tv_nsec = (long)(now % (1000 * MS));
    return (int)rc;
}

static inline void pass(int64_t ns)
{
    clock_ahead += ns;
}

#endif
