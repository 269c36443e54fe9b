/* test_wake.c -- no wake is lost, whoever sends it and whenever; signals keep their numbers. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/time.h>
#include <unistd.h>

#include "check.h"
#include "sock.h"
#include "wake.h"

#define SENDERS 4
#define ROUNDS 100000 /* of each sender */

static int is_readable(int fd)
{
    struct pollfd entry = {.fd = fd, .events = POLLIN};
    return poll(&entry, 1, 0) == 1;
}

static void test_fds_are_high_cloexec_and_nonblocking(void)
{
    struct wake w;
    CHECK(wake_init(&w) == 0);
    const int fds[] = {w.read_fd, w.write_fd, w.signal_read, w.signal_write};
    for (size_t i = 0; i < sizeof fds / sizeof *fds; i++) {
        CHECK(fds[i] >= 3);
        CHECK(fcntl(fds[i], F_GETFD) & FD_CLOEXEC);
        CHECK(sock_is_nonblocking(fds[i]) == 1);
    }
    wake_fini(&w);
    CHECK(w.read_fd == -1 && w.signal_write == -1);
    wake_fini(&w);
}

static void test_process_without_stdio_keeps_its_low_fds_free(void)
{
    struct wake w;
    int saved[3];
    for (int fd = 0; fd < 3; fd++)
        saved[fd] = fcntl(fd, F_DUPFD_CLOEXEC, 10);
    for (int fd = 0; fd < 3; fd++)
        close(fd);
    int rc = wake_init(&w);
    int used = fcntl(0, F_GETFD) >= 0 || fcntl(1, F_GETFD) >= 0 || fcntl(2, F_GETFD) >= 0;
    for (int fd = 0; fd < 3; fd++) {
        dup2(saved[fd], fd);
        close(saved[fd]);
    }
    CHECK(rc == 0 && !used);
    wake_fini(&w);
}

static void test_wakes_before_a_take_are_one(void)
{
    struct wake w;
    CHECK(wake_init(&w) == 0);
    CHECK(wake_take(&w) == 0);
    for (int i = 0; i < 5; i++)
        CHECK(wake_send(&w) == 0);
    CHECK(is_readable(w.read_fd));
    CHECK(wake_take(&w) == 1);
    CHECK(!is_readable(w.read_fd));
    CHECK(wake_take(&w) == 0);
    CHECK(wake_send(&w) == 0 && is_readable(w.read_fd));
    wake_fini(&w);
}

static void test_send_keeps_errno_and_reports_a_closed_fd(void)
{
    struct wake w;
    CHECK(wake_init(&w) == 0);
    int fd = w.write_fd;
    errno = E2BIG;
    CHECK(wake_send(&w) == 0 && errno == E2BIG);
    CHECK(wake_take(&w) == 1);
    w.write_fd = -1;
    CHECK(wake_send(&w) == -EBADF && errno == E2BIG);
    w.write_fd = fd;
    CHECK(wake_send(&w) == 0 && is_readable(w.read_fd));
    wake_fini(&w);
}

static void test_full_fd_is_success(void)
{
    struct wake w;
    uint64_t most = UINT64_MAX - 1; /* of an eventfd; a pipe takes it many times */
    CHECK(wake_init(&w) == 0);
    while (write(w.write_fd, &most, sizeof most) == (ssize_t)sizeof most)
        ;
    CHECK(wake_send(&w) == 0);
    CHECK(wake_take(&w) == 1 && !is_readable(w.read_fd));
    wake_fini(&w);
}

static void test_failure_leaves_nothing_open(void)
{
    struct wake w;
    struct rlimit limit;
    struct rlimit low;
    int next = dup(0);
    close(next);
    CHECK(getrlimit(RLIMIT_NOFILE, &limit) == 0);
    for (int room = 0; room < 3; room++) {
        low = limit;
        low.rlim_cur = (rlim_t)(next + room);
        setrlimit(RLIMIT_NOFILE, &low);
        int rc = wake_init(&w);
        setrlimit(RLIMIT_NOFILE, &limit);
        CHECK(rc == -EMFILE);
        int now = dup(0);
        close(now);
        CHECK(now == next);
    }
}

/* ---- threads: each adds to `queued` and wakes; the taker ends when it has seen all ---- */

struct race {
    struct wake wake;
    atomic_long queued;
};

static void *send_many(void *arg)
{
    struct race *race = arg;
    for (int i = 0; i < ROUNDS; i++) {
        atomic_fetch_add_explicit(&race->queued, 1, memory_order_relaxed);
        if (wake_send(&race->wake) < 0)
            return race;
    }
    return NULL;
}

/* Wait as a loop does, without end; 10 s without a wake while work is queued is a lost wake. */
static long take_all(struct race *race)
{
    long taken = 0;
    while (taken < (long)SENDERS * ROUNDS) {
        struct pollfd entry = {.fd = race->wake.read_fd, .events = POLLIN};
        if (poll(&entry, 1, 10000) != 1)
            return -1;
        wake_take(&race->wake);
        taken = atomic_load_explicit(&race->queued, memory_order_relaxed);
    }
    return taken;
}

static void test_no_wake_is_lost_between_threads(void)
{
    struct race race = {.queued = 0};
    pthread_t threads[SENDERS];
    CHECK(wake_init(&race.wake) == 0);
    for (int i = 0; i < SENDERS; i++)
        CHECK(pthread_create(&threads[i], NULL, send_many, &race) == 0);
    long taken = take_all(&race);
    for (int i = 0; i < SENDERS; i++) {
        void *failed = NULL;
        CHECK(pthread_join(threads[i], &failed) == 0 && !failed);
    }
    CHECK(taken == (long)SENDERS * ROUNDS);
    wake_fini(&race.wake);
}

/* One sender that waits to be answered: every round has the race of lowering and sending. */
static void *send_in_step(void *arg)
{
    struct race *race = arg;
    for (long i = 1; i <= ROUNDS; i++) {
        while (atomic_load(&race->queued) != 0)
            sched_yield();
        atomic_store(&race->queued, i);
        wake_send(&race->wake);
    }
    return NULL;
}

static void test_no_wake_is_lost_in_lockstep(void)
{
    struct race race = {.queued = 0};
    pthread_t thread;
    long rounds = 0;
    CHECK(wake_init(&race.wake) == 0);
    CHECK(pthread_create(&thread, NULL, send_in_step, &race) == 0);
    while (rounds < ROUNDS) {
        struct pollfd entry = {.fd = race.wake.read_fd, .events = POLLIN};
        CHECK(poll(&entry, 1, 10000) == 1);
        wake_take(&race.wake);
        rounds += atomic_exchange(&race.queued, 0) != 0;
    }
    pthread_join(thread, NULL);
    wake_fini(&race.wake);
}

static struct wake *signal_wake; /* what the handler wakes */
static volatile sig_atomic_t signal_count;

static void wake_in_handler(int number)
{
    (void)number;
    signal_count = signal_count + 1;
    wake_send(signal_wake);
}

static void test_no_wake_is_lost_from_a_signal_handler(void)
{
    struct wake w;
    struct sigaction action = {.sa_handler = wake_in_handler};
    struct itimerval often = {.it_interval = {.tv_usec = 100}, .it_value = {.tv_usec = 100}};
    struct itimerval never = {.it_value = {.tv_usec = 0}};
    CHECK(wake_init(&w) == 0);
    signal_wake = &w;
    CHECK(sigaction(SIGALRM, &action, NULL) == 0);
    CHECK(setitimer(ITIMER_REAL, &often, NULL) == 0);
    for (int i = 0; i < 500; i++) {
        wake_send(&w); /* is interrupted at every point, sooner or later */
        wake_take(&w);
    }
    CHECK(setitimer(ITIMER_REAL, &never, NULL) == 0);
    wake_take(&w);
    CHECK(raise(SIGALRM) == 0 && signal_count > 0);
    CHECK(is_readable(w.read_fd) && wake_take(&w) == 1);
    wake_fini(&w);
}

static void test_signals_come_with_their_numbers(void)
{
    struct wake w;
    uint8_t numbers[4];
    const uint8_t sent[] = {SIGINT, SIGTERM, SIGHUP, SIGINT, SIGUSR1};
    CHECK(wake_init(&w) == 0);
    CHECK(wake_signals(&w, numbers, 4) == 0);
    CHECK(write(w.signal_write, sent, sizeof sent) == (ssize_t)sizeof sent);
    CHECK(is_readable(w.signal_read) && !is_readable(w.read_fd));
    CHECK(wake_signals(&w, numbers, 0) == 0 && wake_signals(&w, numbers, -1) == 0);
    CHECK(wake_signals(&w, numbers, 4) == 4 && memcmp(numbers, sent, 4) == 0);
    CHECK(wake_signals(&w, numbers, 4) == 1 && numbers[0] == SIGUSR1);
    CHECK(wake_signals(&w, numbers, 4) == 0 && !is_readable(w.signal_read));
    wake_fini(&w);
}

CHECK_MAIN(RUN(test_fds_are_high_cloexec_and_nonblocking);
           RUN(test_process_without_stdio_keeps_its_low_fds_free);
           RUN(test_wakes_before_a_take_are_one);
           RUN(test_send_keeps_errno_and_reports_a_closed_fd); RUN(test_full_fd_is_success);
           RUN(test_failure_leaves_nothing_open); RUN(test_no_wake_is_lost_between_threads);
           RUN(test_no_wake_is_lost_in_lockstep);
           RUN(test_no_wake_is_lost_from_a_signal_handler);
           RUN(test_signals_come_with_their_numbers);)
