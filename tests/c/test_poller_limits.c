/* test_poller_limits.c -- every backend at its limits: fd numbers, crowds, short memory, forks. */
#include <errno.h>
#include <fcntl.h>
#include <sys/resource.h>
#include <sys/select.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"
#include "poller.h"
#include "pyloop.h"

#define MANY 500
#define CROWD 2500 /* more than twice what one epoll_wait returns */

static const struct poller_ops *ops; /* the backend under test */

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

/* Raise the soft limit as far as it goes. 1 if fds up to `fd` may be made, else 0 and a note. */
static int fd_fits(int fd)
{
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) < 0)
        return 0;
    limit.rlim_cur = limit.rlim_max;
    (void)setrlimit(RLIMIT_NOFILE, &limit);
    if (limit.rlim_cur > (rlim_t)fd)
        return 1;
    printf("     the next is skipped: RLIMIT_NOFILE is not over %d\n", fd);
    return 0;
}

static void test_fd_beyond_fd_setsize_is_refused_only_by_select(void)
{
    struct poller p;
    int fds[2];
    int high = FD_SETSIZE + 10;
    if (!fd_fits(high))
        return;
    CHECK(poller_init(&p, ops) == 0 && pipe(fds) == 0);
    CHECK(dup2(fds[0], high) == high && write(fds[1], "x", 1) == 1);
    int rc = ops->set(&p, high, 0, PL_READ);
    CHECK(rc == (ops->backend == PL_SELECT ? -ERANGE : 0));
    CHECK(ops->wait(&p, 0) == (rc == 0));
    CHECK(ops->set(&p, high, PL_READ, 0) == 0);
    CHECK(dup2(fds[0], FD_SETSIZE - 1) == FD_SETSIZE - 1);
    CHECK(ops->set(&p, FD_SETSIZE - 1, 0, PL_READ) == 0);
    CHECK(ops->wait(&p, 0) == 1 && p.ready[0].fd == FD_SETSIZE - 1);
    CHECK(ops->set(&p, FD_SETSIZE - 1, PL_READ, 0) == 0);
    CHECK(ops->set(&p, -1, 0, PL_READ) == -EBADF);
    poller_fini(&p);
    close(high);
    close(FD_SETSIZE - 1);
    close_both(fds);
}

static void test_many_fds_are_each_reported(void)
{
    struct poller p;
    int fds[2];
    int copies[MANY];
    CHECK(poller_init(&p, ops) == 0 && pipe(fds) == 0 && write(fds[1], "x", 1) == 1);
    for (int i = 0; i < MANY; i++) {
        CHECK((copies[i] = dup(fds[0])) >= 0);
        CHECK(ops->set(&p, copies[i], 0, PL_READ) == 0);
    }
    CHECK(ops->wait(&p, 0) == MANY);
    for (int i = 0; i < MANY; i += 2)
        CHECK(ops->set(&p, copies[i], PL_READ, 0) == 0);
    int n = ops->wait(&p, 0);
    CHECK(n == MANY / 2);
    for (int i = 0; i < MANY; i++)
        CHECK(mask_for(&p, n, copies[i]) == (i % 2 ? PL_READ : 0u));
    poller_fini(&p);
    for (int i = 0; i < MANY; i++)
        close(copies[i]);
    close_both(fds);
}

/* More ready fds than one answer holds: the next answers hold the others. */
static void test_crowd_takes_turns(void)
{
    static uint8_t seen[2 * CROWD];
    struct poller p;
    int fds[2];
    int first = FD_SETSIZE + 100;
    if (ops->backend == PL_SELECT || !fd_fits(first + CROWD))
        return; /* select's crowd is FD_SETSIZE, and fits */
    CHECK(poller_init(&p, ops) == 0 && pipe(fds) == 0 && write(fds[1], "x", 1) == 1);
    memset(seen, 0, sizeof seen);
    for (int i = 0; i < CROWD; i++) {
        CHECK(dup2(fds[0], first + i) == first + i);
        CHECK(ops->set(&p, first + i, 0, PL_READ) == 0);
    }
    for (int turn = 0; turn < 3; turn++) {
        int n = ops->wait(&p, 0);
        CHECK(n > CROWD / 3 && n <= p.ready_cap);
        for (int i = 0; i < n; i++)
            seen[p.ready[i].fd - first] = 1;
    }
    for (int i = 0; i < CROWD; i++)
        CHECK(seen[i]);
    poller_fini(&p);
    for (int i = 0; i < CROWD; i++)
        close(first + i);
    close_both(fds);
}

static void test_memory_shortage_is_an_error(void)
{
    struct poller p;
    int fds[2];
    int rc = -ENOMEM;
    for (long n = 0; rc == -ENOMEM; n++) {
        fail_alloc_after(n);
        rc = poller_init(&p, ops);
        CHECK(rc == 0 || (rc == -ENOMEM && !p.impl && !p.ready));
    }
    fail_alloc_never();
    CHECK(rc == 0 && pipe(fds) == 0 && write(fds[1], "x", 1) == 1);
    int null = open("/dev/null", O_RDONLY);
    for (int i = 0; i < 2; i++) {
        int fd = i ? null : fds[0];
        rc = -ENOMEM;
        for (long n = 0; rc == -ENOMEM; n++) {
            fail_alloc_after(n);
            rc = ops->set(&p, fd, 0, PL_READ);
            CHECK(rc == 0 || (rc == -ENOMEM && ops->wait(&p, 0) == i));
        }
        fail_alloc_never();
        CHECK(rc == 0 && ops->wait(&p, 0) == i + 1);
    }
    poller_fini(&p);
    close(null);
    close_both(fds);
}

/* In a child without stdin: no fd of a poller lands below 3, and letting go leaves the parent's. */
static void test_child_does_not_disturb_parent(void)
{
    struct poller p;
    int fds[2];
    int status = -1;
    CHECK(poller_init(&p, ops) == 0 && pipe(fds) == 0 && write(fds[1], "x", 1) == 1);
    CHECK(ops->set(&p, fds[0], 0, PL_READ) == 0);
    pid_t pid = fork();
    if (pid == 0) {
        struct poller own;
        poller_fini(&p);
        close(0);
        int ok = poller_init(&own, ops) == 0 && poller_fd_closed(0);
        poller_fini(&own);
        _exit(ok ? 0 : 1);
    }
    CHECK(pid > 0 && waitpid(pid, &status, 0) == pid && status == 0);
    CHECK(ops->wait(&p, 0) == 1);
    poller_fini(&p);
    close_both(fds);
}

static int run_backend(int backend)
{
    int tests_failed = 0;
    ops = poller_find(backend);
    if (!ops)
        return 0;
    printf("-- %s\n", ops->name);
    RUN(test_fd_beyond_fd_setsize_is_refused_only_by_select);
    RUN(test_many_fds_are_each_reported);
    RUN(test_crowd_takes_turns);
    RUN(test_memory_shortage_is_an_error);
    RUN(test_child_does_not_disturb_parent);
    return tests_failed;
}

CHECK_MAIN(tests_failed += run_backend(PL_SELECT); tests_failed += run_backend(PL_POLL);
           tests_failed += run_backend(PL_EPOLL);)
