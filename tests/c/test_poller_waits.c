/* test_poller_waits.c -- waits finer than a millisecond, on each path there is to one.
 *
 * `syscall` stands before libc's: the core reaches epoll_pwait2 by it and nothing else here does. */
#include <errno.h>
#include <poll.h>
#include <stdarg.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"
#include "poller.h"
#include "pyloop.h"
#include "sock.h"

#define MS 1000000
#define TRIES 1000

static const struct poller_ops *ops; /* the backend under test */
static int refusal;                  /* what epoll_pwait2 says, unless 0 */
static int asked;                    /* how often it was called */

/* epoll_pwait2, made of other calls. */
long syscall(long number, ...)
{
    va_list args;
    va_start(args, number);
    int epoll_fd = va_arg(args, int);
    struct epoll_event *events = va_arg(args, struct epoll_event *);
    int max = va_arg(args, int);
    const int64_t *ts = va_arg(args, const int64_t *);
    va_end(args);
    (void)number;
    asked++;
    if (refusal) {
        errno = refusal;
        return -1;
    }
    struct timespec timeout = {(time_t)ts[0], (long)ts[1]};
    struct pollfd set = {.fd = epoll_fd, .events = POLLIN};
    int n = ppoll(&set, 1, &timeout, NULL);
    return n > 0 ? epoll_wait(epoll_fd, events, max, 0) : n;
}

static int open_both(struct poller *p, int fds[2])
{
    asked = 0;
    return poller_init(p, ops) == 0 && pipe(fds) == 0 && ops->set(p, fds[0], 0, PL_READ) == 0;
}

static void close_all(struct poller *p, const int fds[2])
{
    poller_fini(p);
    close(fds[0]);
    close(fds[1]);
}

/* Has any of many waits for 0.2 ms ended within a millisecond? */
static int is_fine(struct poller *p)
{
    for (int i = 0; i < TRIES; i++) {
        int64_t start = sock_now();
        if (ops->wait(p, MS / 5) != 0 || sock_now() - start < MS / 5)
            return 0;
        if (sock_now() - start < MS)
            return 1;
    }
    return 0;
}

static void test_waits_are_finer_than_a_millisecond(void)
{
    struct poller p;
    int fds[2];
    CHECK(open_both(&p, fds) && is_fine(&p) && is_fine(&p));
    CHECK(ops->wait(&p, 2 * MS) == 0);
    close_all(&p, fds);
}

static void test_no_wait_is_early_and_none_ends_by_the_time_of_another(void)
{
    static const int64_t times[] = {1, 700001, MS - 1, MS, MS + 1, 2 * MS, 5 * MS + 1};
    struct poller p;
    int fds[2];
    char c;
    CHECK(open_both(&p, fds));
    for (size_t i = 0; i < sizeof times / sizeof *times; i++) {
        CHECK(write(fds[1], "x", 1) == 1 && ops->wait(&p, 3 * MS + 1) == 1); /* ends before its time */
        CHECK(p.ready[0].fd == fds[0] && read(fds[0], &c, 1) == 1);
        int64_t start = sock_now();
        CHECK(ops->wait(&p, times[i]) == 0);
        CHECK(sock_now() - start >= times[i]);
    }
    close_all(&p, fds);
}

static void test_event_is_reported_beside_a_time_that_has_passed(void)
{
    struct poller p;
    int fds[2];
    CHECK(open_both(&p, fds) && ops->wait(&p, 1) == 0 && write(fds[1], "x", 1) == 1);
    for (int i = 0; i < 100; i++)
        CHECK(ops->wait(&p, 1 + i) == 1 && p.ready[0].fd == fds[0]);
    for (int i = -1; i < 1; i++)
        CHECK(ops->wait(&p, i) == 1 && p.ready[0].fd == fds[0]);
    close_all(&p, fds);
}

static void test_longest_times_wait_for_the_event(void)
{
    static const int64_t times[] = {INT64_MAX, INT64_MAX / 2 + 1, (int64_t)INT32_MAX * 1000 * MS + 1};
    struct poller p;
    int fds[2];
    CHECK(open_both(&p, fds) && write(fds[1], "x", 1) == 1);
    for (size_t i = 0; i < sizeof times / sizeof *times; i++)
        CHECK(ops->wait(&p, times[i]) == 1);
    close_all(&p, fds);
}

static int open_count(void)
{
    int n = 0;
    for (int fd = 0; fd < 64; fd++)
        n += !poller_fd_closed(fd);
    return n;
}

static void test_child_closes_what_it_inherits_and_the_parent_waits_on(void)
{
    struct poller p;
    int fds[2], status, before = open_count();
    CHECK(open_both(&p, fds) && ops->wait(&p, 1) == 0);
    CHECK(open_count() == before + 3 + (refusal != 0)); /* a pipe, the set, and perhaps a timer */
    pid_t pid = fork();
    if (pid == 0) {
        poller_fini(&p);
        _exit(open_count() != before + 2);
    }
    CHECK(waitpid(pid, &status, 0) == pid && status == 0);
    CHECK(is_fine(&p));
    close_all(&p, fds);
    CHECK(open_count() == before);
}

static void test_refusal_of_the_call_is_remembered(void)
{
    struct poller p;
    int fds[2];
    CHECK(open_both(&p, fds) && ops->wait(&p, 1) == 0 && ops->wait(&p, 1) == 0);
    CHECK(asked == (refusal ? 1 : 2));
    CHECK(ops->wait(&p, 0) == 0 && write(fds[1], "x", 1) == 1 && ops->wait(&p, -1) == 1);
    CHECK(asked == (refusal ? 1 : 2)); /* these have no need to be fine */
    close_all(&p, fds);
}

static void test_without_fds_for_a_timer_waits_are_whole_milliseconds(void)
{
    struct poller p;
    int fds[2];
    struct rlimit limit;
    CHECK(open_both(&p, fds) && getrlimit(RLIMIT_NOFILE, &limit) == 0);
    struct rlimit none = {(rlim_t)fds[1] + 1, limit.rlim_max};
    CHECK(setrlimit(RLIMIT_NOFILE, &none) == 0);
    int64_t start = sock_now();
    int rc = ops->wait(&p, MS / 5);
    int64_t took = sock_now() - start;
    CHECK(setrlimit(RLIMIT_NOFILE, &limit) == 0);
    CHECK(rc == 0 && took >= (refusal ? MS : MS / 5));
    CHECK(is_fine(&p));
    close_all(&p, fds);
}

static int run_backend(int backend, int error)
{
    int tests_failed = 0;
    ops = poller_find(backend);
    refusal = error;
    if (!ops)
        return 0;
    printf("-- %s%s%s\n", ops->name, error ? ", epoll_pwait2: " : "",
           error ? strerror(error) : "");
    RUN(test_waits_are_finer_than_a_millisecond);
    RUN(test_no_wait_is_early_and_none_ends_by_the_time_of_another);
    RUN(test_event_is_reported_beside_a_time_that_has_passed);
    RUN(test_longest_times_wait_for_the_event);
    if (backend != PL_EPOLL)
        return tests_failed;
    RUN(test_refusal_of_the_call_is_remembered);
    RUN(test_child_closes_what_it_inherits_and_the_parent_waits_on);
    RUN(test_without_fds_for_a_timer_waits_are_whole_milliseconds);
    return tests_failed;
}

CHECK_MAIN(tests_failed += run_backend(PL_SELECT, 0); tests_failed += run_backend(PL_POLL, 0);
           tests_failed += run_backend(PL_EPOLL, 0); tests_failed += run_backend(PL_EPOLL, ENOSYS);
           tests_failed += run_backend(PL_EPOLL, EPERM);)
