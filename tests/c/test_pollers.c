/* test_pollers.c -- every backend through the same tests; where kernels differ, the test says how.
 * Limits (fd numbers, crowds, memory, forks) are in test_poller_limits.c. */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include "check.h"
#include "poller.h"
#include "pyloop.h"
#include "sock.h"

#define MS 1000000

static const struct poller_ops *ops; /* the backend under test */

static int is_epoll(void)
{
    return ops->backend == PL_EPOLL;
}

/* The mask that `n` entries of the ready list hold for fd. */
static uint32_t mask_for(const struct poller *p, int n, int fd)
{
    for (int i = 0; i < n; i++) {
        if (p->ready[i].fd == fd)
            return p->ready[i].mask;
    }
    return 0;
}

static void close_both(const int fds[2])
{
    close(fds[0]);
    close(fds[1]);
}

static void test_nothing_ready_is_zero(void)
{
    struct poller p;
    int fds[2];
    CHECK(poller_init(&p, ops) == 0);
    CHECK(ops->wait(&p, 0) == 0);
    CHECK(pipe(fds) == 0);
    CHECK(ops->set(&p, fds[0], 0, PL_READ) == 0);
    CHECK(ops->wait(&p, 0) == 0);
    poller_fini(&p);
    poller_fini(&p);
    close_both(fds);
}

static void test_pipe_is_readable_until_drained(void)
{
    struct poller p;
    int fds[2];
    char c;
    CHECK(poller_init(&p, ops) == 0 && pipe(fds) == 0);
    CHECK(ops->set(&p, fds[0], 0, PL_READ) == 0);
    CHECK(write(fds[1], "x", 1) == 1);
    for (int again = 0; again < 2; again++) {
        CHECK(ops->wait(&p, -1) == 1);
        CHECK(p.ready[0].fd == fds[0] && p.ready[0].mask == PL_READ);
    }
    CHECK(read(fds[0], &c, 1) == 1);
    CHECK(ops->wait(&p, 0) == 0);
    poller_fini(&p);
    close_both(fds);
}

static void test_interest_changes_what_is_reported(void)
{
    struct poller p;
    int fds[2];
    CHECK(poller_init(&p, ops) == 0);
    CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, fds) == 0);
    CHECK(write(fds[1], "x", 1) == 1);
    static const uint32_t steps[] = {PL_READ, PL_WRITE, PL_READ | PL_WRITE, PL_WRITE, PL_READ, 0};
    uint32_t old = 0;
    for (size_t i = 0; i < sizeof steps / sizeof *steps; i++) {
        CHECK(ops->set(&p, fds[0], old, steps[i]) == 0);
        int n = ops->wait(&p, 0);
        CHECK(n == (steps[i] != 0));
        CHECK(mask_for(&p, n, fds[0]) == steps[i]);
        old = steps[i];
    }
    poller_fini(&p);
    close_both(fds);
}

static void test_removed_fd_reports_nothing_not_even_hang_up(void)
{
    struct poller p;
    int fds[2];
    CHECK(poller_init(&p, ops) == 0);
    CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, fds) == 0);
    CHECK(ops->set(&p, fds[0], 0, PL_READ | PL_WRITE) == 0);
    close(fds[1]);
    int n = ops->wait(&p, 0);
    CHECK(n == 1 && p.ready[0].mask == (PL_READ | PL_WRITE));
    CHECK(ops->set(&p, fds[0], PL_READ | PL_WRITE, 0) == 0);
    CHECK(ops->wait(&p, 0) == 0);
    CHECK(ops->set(&p, fds[0], 0, 0) == 0);
    CHECK(ops->set(&p, 9999, PL_READ, 0) == 0);
    CHECK(ops->set(&p, -1, PL_READ, 0) == 0);
    poller_fini(&p);
    close(fds[0]);
}

static void test_pipe_hang_up_is_reported_with_the_interest(void)
{
    struct poller p;
    int left[2];
    int right[2];
    CHECK(poller_init(&p, ops) == 0 && pipe(left) == 0 && pipe(right) == 0);
    CHECK(ops->set(&p, left[0], 0, PL_READ) == 0);
    CHECK(ops->set(&p, right[1], 0, PL_WRITE) == 0);
    close(left[1]);
    close(right[0]);
    int n = ops->wait(&p, 0);
    CHECK(n == 2);
    CHECK(mask_for(&p, n, left[0]) & PL_READ);
    CHECK(mask_for(&p, n, right[1]) & PL_WRITE);
    poller_fini(&p);
    close(left[0]);
    close(right[1]);
}

static void test_time_out_is_never_early(void)
{
    static const int64_t times[] = {1, 300000, MS, 5 * MS + 1, 20 * MS - 1};
    struct poller p;
    int fds[2];
    CHECK(poller_init(&p, ops) == 0 && pipe(fds) == 0);
    CHECK(ops->set(&p, fds[0], 0, PL_READ) == 0);
    for (size_t i = 0; i < sizeof times / sizeof *times; i++) {
        int64_t start = sock_now();
        CHECK(ops->wait(&p, times[i]) == 0);
        CHECK(sock_now() - start >= times[i]);
    }
    poller_fini(&p);
    close_both(fds);
}

static void test_extreme_time_outs_wait_for_the_event(void)
{
    static const int64_t times[] = {INT64_MAX, INT64_MIN, -2, (int64_t)INT_MAX * MS + 1};
    struct poller p;
    int fds[2];
    struct timespec ts;
    CHECK(poller_ms(INT64_MAX) == INT_MAX && poller_ms(INT64_MIN) == -1);
    CHECK(poller_ms(0) == 0 && poller_ms(1) == 1 && poller_ms(MS) == 1 && poller_ms(MS + 1) == 2);
    CHECK(!poller_timespec(-1, &ts) && poller_timespec(1500 * (int64_t)MS, &ts) == &ts);
    CHECK(ts.tv_sec == 1 && ts.tv_nsec == 500 * MS);
    CHECK(poller_init(&p, ops) == 0 && pipe(fds) == 0);
    CHECK(ops->set(&p, fds[0], 0, PL_READ) == 0);
    CHECK(write(fds[1], "x", 1) == 1);
    for (size_t i = 0; i < sizeof times / sizeof *times; i++)
        CHECK(ops->wait(&p, times[i]) == 1);
    poller_fini(&p);
    close_both(fds);
}

/* select searches, poll marks it, epoll forgets it by itself; the others go on either way. */
static void test_closed_fd_is_found_once(void)
{
    struct poller p;
    int good[2];
    int gone[2];
    CHECK(poller_init(&p, ops) == 0 && pipe(good) == 0 && pipe(gone) == 0);
    CHECK(ops->set(&p, good[0], 0, PL_READ) == 0);
    CHECK(ops->set(&p, gone[0], 0, PL_READ) == 0);
    CHECK(ops->set(&p, gone[1], 0, PL_WRITE) == 0);
    CHECK(write(good[1], "x", 1) == 1);
    close_both(gone);
    int n = ops->wait(&p, 0);
    uint32_t expected = is_epoll() ? 0 : POLLER_BADFD;
    CHECK(mask_for(&p, n, gone[0]) == expected);
    CHECK(mask_for(&p, n, gone[1]) == expected);
    n = ops->wait(&p, 0);
    CHECK(n == 1 && mask_for(&p, n, good[0]) == PL_READ);
    CHECK(ops->set(&p, good[0], PL_READ, 0) == 0);
    CHECK(ops->wait(&p, 0) == 0);
    poller_fini(&p);
    close_both(good);
}

static void test_highest_fd_removed_and_closed_is_not_asked_for(void)
{
    struct poller p;
    int low[2];
    int high[2];
    CHECK(poller_init(&p, ops) == 0 && pipe(low) == 0 && pipe(high) == 0);
    CHECK(ops->set(&p, low[0], 0, PL_READ) == 0);
    CHECK(ops->set(&p, high[1], 0, PL_READ | PL_WRITE) == 0);
    CHECK(ops->set(&p, high[1], PL_READ | PL_WRITE, 0) == 0);
    close_both(high);
    CHECK(ops->wait(&p, 0) == 0);
    CHECK(write(low[1], "x", 1) == 1);
    CHECK(ops->wait(&p, 0) == 1 && p.ready[0].fd == low[0]);
    poller_fini(&p);
    close_both(low);
}

static void test_reused_number_is_watched_anew(void)
{
    struct poller p;
    int old[2];
    int new_[2];
    CHECK(poller_init(&p, ops) == 0 && pipe(old) == 0);
    CHECK(ops->set(&p, old[0], 0, PL_READ) == 0);
    CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, new_) == 0);
    CHECK(dup2(new_[0], old[0]) == old[0]);
    CHECK(ops->set(&p, old[0], PL_READ, PL_READ | PL_WRITE) == 0); /* epoll: MOD finds nothing */
    int n = ops->wait(&p, 0);
    CHECK(n == 1 && mask_for(&p, n, old[0]) == PL_WRITE);
    CHECK(ops->set(&p, old[0], 0, PL_WRITE) == 0); /* epoll: ADD finds it there */
    CHECK(ops->wait(&p, 0) == 1);
    CHECK(ops->set(&p, old[0], PL_WRITE, 0) == 0);
    CHECK(ops->wait(&p, 0) == 0);
    poller_fini(&p);
    close_both(old);
    close_both(new_);
}

/* A copy keeps the file open, so epoll goes on reporting it under a number that is closed or another's by now. */
static void test_fd_closed_while_a_copy_lives_is_reported_no_more(void)
{
    for (int reused = 0; reused < 2; reused++) {
        struct poller p;
        int old[2], fresh[2];
        CHECK(poller_init(&p, ops) == 0 && pipe(old) == 0 && pipe(fresh) == 0);
        CHECK(ops->set(&p, old[0], 0, PL_READ) == 0 && ops->set(&p, fresh[0], 0, PL_READ) == 0);
        int copy = dup(old[0]);
        CHECK(copy >= 0 && write(old[1], "x", 1) == 1 && close(old[0]) == 0);
        CHECK(ops->set(&p, old[0], PL_READ, 0) == 0);
        if (reused) {
            CHECK(dup2(fresh[0], old[0]) == old[0] && ops->set(&p, old[0], 0, PL_READ) == 0);
        }
        (void)ops->wait(&p, 0); /* epoll notices */
        int64_t start = sock_now();
        CHECK(ops->wait(&p, 2 * MS) == 0 && sock_now() - start >= 2 * MS);
        CHECK(write(fresh[1], "x", 1) == 1 && ops->wait(&p, 0) == 1 + reused);
        poller_fini(&p);
        close(copy);
        close(old[1]);
        close_both(fresh);
        if (reused)
            close(old[0]);
    }
}

static void test_file_is_always_ready(void)
{
    struct poller p;
    int fds[2];
    int file = open("/proc/self/exe", O_RDONLY);
    int null = open("/dev/null", O_RDWR);
    CHECK(file >= 0 && null >= 0 && poller_init(&p, ops) == 0 && pipe(fds) == 0);
    CHECK(ops->set(&p, file, 0, PL_READ) == 0 && ops->set(&p, null, 0, PL_READ | PL_WRITE) == 0);
    CHECK(ops->set(&p, fds[0], 0, PL_READ) == 0);
    for (int again = 0; again < 2; again++) {
        int n = ops->wait(&p, -1);
        CHECK(n == 2 && mask_for(&p, n, file) == PL_READ);
        CHECK(mask_for(&p, n, null) == (PL_READ | PL_WRITE));
    }
    CHECK(write(fds[1], "x", 1) == 1);
    CHECK(ops->wait(&p, -1) == 3);
    CHECK(ops->set(&p, null, PL_READ | PL_WRITE, PL_WRITE) == 0);
    CHECK(mask_for(&p, ops->wait(&p, 0), null) == PL_WRITE);
    CHECK(ops->set(&p, null, PL_WRITE, 0) == 0 && ops->set(&p, fds[0], PL_READ, 0) == 0);
    CHECK(dup2(fds[1], null) == null && close(file) == 0);
    int n = ops->wait(&p, 0);
    CHECK(n == 1 && mask_for(&p, n, file) == POLLER_BADFD);
    CHECK(ops->wait(&p, 0) == 0);
    CHECK(ops->set(&p, null, 0, PL_READ) == 0); /* no longer /dev/null */
    CHECK(ops->wait(&p, 0) == 0);
    poller_fini(&p);
    close(null);
    close_both(fds);
}

static void test_file_replaced_by_pipe_is_polled(void)
{
    struct poller p;
    int fds[2];
    int null = open("/dev/null", O_RDONLY);
    CHECK(null >= 0 && poller_init(&p, ops) == 0 && pipe(fds) == 0);
    CHECK(ops->set(&p, null, 0, PL_READ) == 0 && ops->wait(&p, 0) == 1);
    CHECK(dup2(fds[0], null) == null);
    CHECK(ops->set(&p, null, PL_READ, PL_READ | PL_WRITE) == 0);
    CHECK(ops->wait(&p, 0) == 0);
    CHECK(write(fds[1], "x", 1) == 1 && ops->wait(&p, 0) == 1);
    poller_fini(&p);
    close(null);
    close_both(fds);
}

static void ignore_signal(int number)
{
    (void)number;
}

static void test_signal_ends_the_wait(void)
{
    struct poller p;
    struct sigaction action = {.sa_handler = ignore_signal};
    struct itimerval soon = {.it_value = {.tv_usec = 10000}};
    CHECK(poller_init(&p, ops) == 0);
    CHECK(sigaction(SIGALRM, &action, NULL) == 0 && setitimer(ITIMER_REAL, &soon, NULL) == 0);
    CHECK(ops->wait(&p, -1) == -EINTR);
    poller_fini(&p);
}

static void test_backends_are_found_by_number(void)
{
    CHECK(poller_find(ops->backend) == ops);
    CHECK(poller_find(PL_AUTO) == &poller_select);
    CHECK(!poller_find(-1) && !poller_find(99));
    CHECK(poller_strongest() != &poller_select);
}

static int run_backend(int backend)
{
    int tests_failed = 0;
    ops = poller_find(backend);
    if (!ops)
        return 0;
    printf("-- %s\n", ops->name);
    RUN(test_backends_are_found_by_number);
    RUN(test_nothing_ready_is_zero);
    RUN(test_pipe_is_readable_until_drained);
    RUN(test_interest_changes_what_is_reported);
    RUN(test_removed_fd_reports_nothing_not_even_hang_up);
    RUN(test_pipe_hang_up_is_reported_with_the_interest);
    RUN(test_time_out_is_never_early);
    RUN(test_extreme_time_outs_wait_for_the_event);
    RUN(test_closed_fd_is_found_once);
    RUN(test_highest_fd_removed_and_closed_is_not_asked_for);
    RUN(test_reused_number_is_watched_anew);
    RUN(test_fd_closed_while_a_copy_lives_is_reported_no_more);
    RUN(test_file_is_always_ready);
    RUN(test_file_replaced_by_pipe_is_polled);
    RUN(test_signal_ends_the_wait);
    return tests_failed;
}

CHECK_MAIN(tests_failed += run_backend(PL_SELECT); tests_failed += run_backend(PL_POLL);
           tests_failed += run_backend(PL_EPOLL);)
