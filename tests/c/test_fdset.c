/* test_fdset.c -- pl_fdset_* against the macros they stand for, and select over them. */
#include <errno.h>
#include <limits.h>
#include <signal.h>
#include <sys/select.h>
#include <sys/time.h>
#include <unistd.h>

#include "check.h"
#include "pyloop.h"
#include "sock.h"

#define MS 1000000

static void test_new_set_is_empty(void)
{
    struct pl_fdset *s = pl_fdset_new();
    CHECK(s && pl_fdset_highest(s) == -1);
    CHECK(pl_fdset_size() == FD_SETSIZE);
    for (int fd = 0; fd < FD_SETSIZE; fd++)
        CHECK(pl_fdset_contains(s, fd) == 0);
    pl_fdset_free(s);
    pl_fdset_free(NULL);
}

static void test_fd_out_of_range_is_refused(void)
{
    static const int bad[] = {-1, INT_MIN, FD_SETSIZE, FD_SETSIZE + 1, INT_MAX};
    struct pl_fdset *s = pl_fdset_new();
    CHECK(s);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        CHECK(pl_fdset_add(s, bad[i]) == -EBADF);
        CHECK(pl_fdset_discard(s, bad[i]) == -EBADF);
        CHECK(pl_fdset_contains(s, bad[i]) == -EBADF);
    }
    CHECK(pl_fdset_highest(s) == -1);
    CHECK(pl_fdset_add(s, 0) == 0 && pl_fdset_add(s, FD_SETSIZE - 1) == 0);
    CHECK(pl_fdset_highest(s) == FD_SETSIZE - 1);
    pl_fdset_free(s);
}

/* A random script, with an array of flags as the model. */
static void test_random_script_agrees_with_a_model(void)
{
    static uint8_t model[FD_SETSIZE];
    struct pl_fdset *s = pl_fdset_new();
    uint32_t random = 1;
    CHECK(s);
    memset(model, 0, sizeof model);
    for (int step = 0; step < 20000; step++) {
        random = random * 1664525 + 1013904223;
        int fd = (int)(random >> 16) % FD_SETSIZE;
        int add = (random >> 8) % 8 < 3; /* fewer than removals: the highest goes often */
        CHECK((add ? pl_fdset_add(s, fd) : pl_fdset_discard(s, fd)) == 0);
        model[fd] = (uint8_t)add;
        int highest = FD_SETSIZE - 1;
        while (highest >= 0 && !model[highest])
            highest--;
        CHECK(pl_fdset_highest(s) == highest && pl_fdset_contains(s, fd) == add);
    }
    for (int fd = 0; fd < FD_SETSIZE; fd++)
        CHECK(pl_fdset_contains(s, fd) == model[fd]);
    pl_fdset_clear(s);
    CHECK(pl_fdset_highest(s) == -1 && pl_fdset_contains(s, 1) == 0);
    pl_fdset_free(s);
}

static void test_copy_is_independent(void)
{
    struct pl_fdset *a = pl_fdset_new();
    struct pl_fdset *b = pl_fdset_new();
    CHECK(a && b && pl_fdset_add(a, 7) == 0 && pl_fdset_add(b, 9) == 0);
    pl_fdset_copy(b, a);
    CHECK(pl_fdset_contains(b, 7) == 1 && pl_fdset_contains(b, 9) == 0);
    CHECK(pl_fdset_highest(b) == 7);
    CHECK(pl_fdset_discard(a, 7) == 0 && pl_fdset_contains(b, 7) == 1);
    pl_fdset_free(a);
    pl_fdset_free(b);
}

static void test_select_leaves_what_is_ready(void)
{
    int fds[2];
    struct pl_fdset *r = pl_fdset_new();
    struct pl_fdset *w = pl_fdset_new();
    struct pl_fdset *e = pl_fdset_new();
    CHECK(r && w && e && pipe(fds) == 0);
    pl_fdset_add(r, fds[0]);
    pl_fdset_add(w, fds[1]);
    pl_fdset_add(e, fds[0]);
    CHECK(pl_fdset_select(r, w, e, -1) == 1);
    CHECK(pl_fdset_highest(r) == -1 && pl_fdset_highest(w) == fds[1] && pl_fdset_highest(e) == -1);
    CHECK(write(fds[1], "x", 1) == 1);
    pl_fdset_add(r, fds[0]);
    CHECK(pl_fdset_select(r, w, NULL, INT64_MAX) == 2);
    CHECK(pl_fdset_contains(r, fds[0]) == 1 && pl_fdset_contains(w, fds[1]) == 1);
    CHECK(pl_fdset_select(r, NULL, NULL, 0) == 1);
    CHECK(pl_fdset_select(NULL, NULL, NULL, 0) == 0);
    pl_fdset_free(r);
    pl_fdset_free(w);
    pl_fdset_free(e);
    close(fds[0]);
    close(fds[1]);
}

static void test_time_out_empties_the_sets_and_is_never_early(void)
{
    static const int64_t times[] = {0, 1, MS / 2, 5 * MS};
    int fds[2];
    struct pl_fdset *s = pl_fdset_new();
    CHECK(s && pipe(fds) == 0);
    for (size_t i = 0; i < sizeof times / sizeof *times; i++) {
        pl_fdset_add(s, fds[0]);
        int64_t start = sock_now();
        CHECK(pl_fdset_select(s, NULL, NULL, times[i]) == 0);
        CHECK(sock_now() - start >= times[i]);
        CHECK(pl_fdset_highest(s) == -1);
    }
    pl_fdset_free(s);
    close(fds[0]);
    close(fds[1]);
}

static void test_closed_fd_is_ebadf_and_keeps_the_sets(void)
{
    int fds[2];
    struct pl_fdset *s = pl_fdset_new();
    CHECK(s && pipe(fds) == 0);
    close(fds[0]);
    pl_fdset_add(s, fds[0]);
    CHECK(pl_fdset_select(s, NULL, NULL, 0) == -EBADF);
    CHECK(pl_fdset_contains(s, fds[0]) == 1);
    pl_fdset_free(s);
    close(fds[1]);
}

static void ignore_signal(int number)
{
    (void)number;
}

static void test_signal_ends_select_and_keeps_the_sets(void)
{
    int fds[2];
    struct sigaction action = {.sa_handler = ignore_signal};
    struct itimerval soon = {.it_value = {.tv_usec = 10000}};
    struct pl_fdset *s = pl_fdset_new();
    CHECK(s && pipe(fds) == 0 && sigaction(SIGALRM, &action, NULL) == 0);
    pl_fdset_add(s, fds[0]);
    CHECK(setitimer(ITIMER_REAL, &soon, NULL) == 0);
    CHECK(pl_fdset_select(s, NULL, NULL, -1) == -EINTR);
    CHECK(pl_fdset_contains(s, fds[0]) == 1 && pl_fdset_highest(s) == fds[0]);
    pl_fdset_free(s);
    close(fds[0]);
    close(fds[1]);
}

static void test_memory_shortage_is_null(void)
{
    fail_alloc_after(0);
    CHECK(!pl_fdset_new());
}

CHECK_MAIN(RUN(test_new_set_is_empty); RUN(test_fd_out_of_range_is_refused);
           RUN(test_random_script_agrees_with_a_model); RUN(test_copy_is_independent);
           RUN(test_select_leaves_what_is_ready);
           RUN(test_time_out_empties_the_sets_and_is_never_early);
           RUN(test_closed_fd_is_ebadf_and_keeps_the_sets);
           RUN(test_signal_ends_select_and_keeps_the_sets); RUN(test_memory_shortage_is_null);)
