/* test_semaphore.c -- semaphores by name and in memory: made, found, refused, waited for both ways, shared. */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "check.h"
#include "pyloop.h"

#define MS INT64_C(1000000)

typedef int wait_fn(struct pl_semaphore *, int64_t);
static wait_fn *const waits[] = {pl_semaphore_wait, pl_semaphore_nap};

static int64_t now(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (int64_t)ts.tv_sec * 1000000000 + ts.tv_nsec;
}

/* Memory that children share, all zeroes. */
static void *shared(void)
{
    void *data = mmap(NULL, PL_SEMAPHORE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    return data == MAP_FAILED ? NULL : data;
}

static struct pl_semaphore *placed(uint32_t value)
{
    struct pl_semaphore *s = NULL;
    return pl_semaphore_place(shared(), PL_CREATE, value, &s) == 0 ? s : NULL;
}

static void test_token_is_taken_once(void)
{
    for (int i = 0; i < 2; i++) {
        struct pl_semaphore *s = placed(2);
        CHECK(s && pl_semaphore_value(s) == 2);
        CHECK(waits[i](s, 0) == 1 && waits[i](s, -1) == 1 && waits[i](s, 0) == 0);
        CHECK(pl_semaphore_value(s) == 0);
        CHECK(pl_semaphore_post(s) == 0 && waits[i](s, 1000 * MS) == 1);
    }
}

static void test_time_out_is_never_early(void)
{
    for (int i = 0; i < 2; i++) {
        struct pl_semaphore *s = placed(0);
        int64_t start = now();
        CHECK(waits[i](s, 25 * MS) == 0 && now() - start >= 25 * MS);
        start = now();
        CHECK(waits[i](s, 1) == 0 && now() - start >= 1);
    }
}

static void *post(void *s)
{
    while (pl_semaphore_value(s) == 0)
        if (pl_semaphore_post(s) < 0)
            return s;
    return NULL;
}

static void test_longest_waits_end_with_a_token(void)
{
    static const int64_t longest[] = {-1, INT64_MAX, INT64_MAX / 2};
    for (int i = 0; i < 6; i++) {
        struct pl_semaphore *s = placed(0);
        pthread_t thread;
        void *failed;
        CHECK(pthread_create(&thread, NULL, post, s) == 0);
        CHECK(waits[i % 2](s, longest[i / 2]) == 1);
        pl_semaphore_post(s); /* it may be at its look still */
        CHECK(pthread_join(thread, &failed) == 0 && !failed);
    }
}

static void nothing(int number) { (void)number; }

static void test_signal_interrupts(void)
{
    struct sigaction action = {.sa_handler = nothing}, old;
    sigaction(SIGUSR1, &action, &old);
    for (int i = 0; i < 2; i++) {
        struct pl_semaphore *s = placed(0);
        pid_t parent = getpid(), pid = fork();
        if (pid == 0) {
            for (int n = 0; n < 10000 && getppid() == parent; n++) {
                kill(parent, SIGUSR1);
                usleep(1000);
            }
            _exit(0);
        }
        CHECK(pid > 0 && waits[i](s, -1) == -EINTR);
        kill(pid, SIGKILL);
        while (waitpid(pid, NULL, 0) < 0)
            CHECK(errno == EINTR);
    }
    sigaction(SIGUSR1, &old, NULL);
}

static void test_overflow_is_an_error(void)
{
    struct pl_semaphore *s = placed(INT_MAX);
    CHECK(s && pl_semaphore_post(s) == -EOVERFLOW && pl_semaphore_value(s) == INT_MAX);
    void *memory = shared();
    CHECK(pl_semaphore_place(memory, PL_CREATE, (uint32_t)INT_MAX + 1, &s) == -EINVAL);
    CHECK(pl_semaphore_place(memory, PL_CREATE, 0, &s) == 0); /* the failure left zeroes */
}

static void test_place_tells_zeroes_one_and_other_data(void)
{
    struct pl_semaphore *s = NULL, *again = NULL;
    uint64_t *memory = shared();
    CHECK(pl_semaphore_place(memory, PL_ATTACH, 0, &s) == -ENOENT && !s);
    CHECK(pl_semaphore_place(memory, PL_CREATE, 5, &s) == 0);
    CHECK(pl_semaphore_place(memory, PL_CREATE, 6, &again) == -EEXIST && !again);
    CHECK(pl_semaphore_place(memory, PL_ATTACH, 7, &again) == 0 && again == s);
    CHECK(pl_semaphore_value(again) == 5);
    uint64_t head = memory[0];
    memory[0] = head & ~UINT64_C(0xffff); /* as while it is made */
    CHECK(pl_semaphore_place(memory, PL_ATTACH, 0, &again) == -ENOENT);
    CHECK(pl_semaphore_place(memory, PL_CREATE, 0, &again) == -EEXIST);
    for (int bit = 0; bit < 64; bit++) {
        memory[0] = head ^ (UINT64_C(1) << bit);
        CHECK(pl_semaphore_place(memory, PL_ATTACH, 0, &again) == PL_E_FOREIGN);
        CHECK(pl_semaphore_place(memory, PL_CREATE, 0, &again) == PL_E_FOREIGN);
    }
}

static void test_name_is_found_until_it_is_unlinked(void)
{
    struct pl_semaphore *one = NULL, *two = NULL, *other = NULL;
    char name[64];
    snprintf(name, sizeof name, "/pyloop-test-%ld", (long)getpid());
    CHECK(pl_semaphore_open(name, PL_ATTACH, 0, &one) == -ENOENT && !one);
    CHECK(pl_semaphore_unlink(name) == -ENOENT);
    CHECK(pl_semaphore_open(name, PL_CREATE, INT_MAX + 1u, &one) == -EINVAL && !one);
    CHECK(pl_semaphore_open(name, PL_ATTACH_OR_CREATE, 3, &one) == 0);
    CHECK(pl_semaphore_open(name, PL_CREATE, 4, &two) == -EEXIST && !two);
    CHECK(pl_semaphore_open(name, PL_ATTACH_OR_CREATE, 4, &two) == 0);
    CHECK(pl_semaphore_value(two) == 3 && pl_semaphore_wait(two, 0) == 1);
    pl_semaphore_close(two);
    CHECK(pl_semaphore_value(one) == 2);
    CHECK(pl_semaphore_unlink(name) == 0);
    CHECK(pl_semaphore_open(name, PL_CREATE, 9, &other) == 0);
    CHECK(pl_semaphore_value(one) == 2 && pl_semaphore_value(other) == 9);
    CHECK(pl_semaphore_unlink(name) == 0);
    pl_semaphore_close(one);
    pl_semaphore_close(other);
    pl_semaphore_close(NULL);
}

static void test_names_that_cannot_be_are_refused(void)
{
    struct pl_semaphore *s = NULL;
    char name[300] = "/";
    memset(name + 1, 'x', sizeof name - 2);
    CHECK(pl_semaphore_open(name, PL_ATTACH_OR_CREATE, 0, &s) < 0);
    CHECK(pl_semaphore_open("/a/b", PL_ATTACH_OR_CREATE, 0, &s) < 0 && !s);
    CHECK(pl_semaphore_open("/", PL_ATTACH_OR_CREATE, 0, &s) < 0 && !s);
}

#define CHILDREN 4
#define ROUNDS 2000

/* A counter that is no atomic: each round is one read and one write under the token. */
static void test_children_exclude_each_other(void)
{
    struct pl_semaphore *s = placed(1);
    volatile long *counter = shared();
    pid_t pids[CHILDREN];
    int status;
    for (int i = 0; i < CHILDREN; i++) {
        if ((pids[i] = fork()) > 0)
            continue;
        for (int n = 0; n < ROUNDS; n++) {
            if (waits[i % 2](s, -1) != 1)
                _exit(1);
            *counter = *counter + 1;
            if (pl_semaphore_post(s) < 0)
                _exit(2);
        }
        _exit(0);
    }
    for (int i = 0; i < CHILDREN; i++)
        CHECK(pids[i] > 0 && waitpid(pids[i], &status, 0) == pids[i] && status == 0);
    CHECK(*counter == (long)CHILDREN * ROUNDS && pl_semaphore_value(s) == 1);
}

CHECK_MAIN(RUN(test_token_is_taken_once);
           RUN(test_time_out_is_never_early);
           RUN(test_longest_waits_end_with_a_token);
           RUN(test_signal_interrupts);
           RUN(test_overflow_is_an_error);
           RUN(test_place_tells_zeroes_one_and_other_data);
           RUN(test_name_is_found_until_it_is_unlinked);
           RUN(test_names_that_cannot_be_are_refused);
           RUN(test_children_exclude_each_other);)
