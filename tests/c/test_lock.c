/* test_lock.c -- the lock word: who has it, who may wait, and how it is taken from the dead. */
#include "lock.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"
#include "pyloop.h"
#include "sock.h"

#define MS INT64_C(1000000)
#define LONG_NS (30000 * MS)

static struct pl_self *self;

struct shared {
    uint64_t word;
    uint64_t counter; /* not atomic: the lock's business */
    _Atomic int told; /* a child's progress */
};

static struct shared *shared(void)
{
    void *data = mmap(NULL, sizeof(struct shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    return data == MAP_FAILED ? NULL : data;
}

#define POLLS 150000
#define POLL_US 200

static void wait_told(struct shared *s, int value)
{
    for (int i = 0; i < POLLS && s->told < value; i++)
        usleep(POLL_US);
}

/* Until somebody waits for the lock, as its mark says. */
static void wait_contended(struct shared *s)
{
    for (int i = 0; i < POLLS && !(*(volatile uint64_t *)&s->word >> 31 & 1); i++)
        usleep(POLL_US);
}

/* A child that takes the lock, says so, and has it until it is killed. */
static pid_t holder(struct shared *s)
{
    pid_t pid = fork();
    if (pid == 0) {
        if (pl_lock_acquire(self, &s->word, 0) < 0)
            _exit(1);
        s->told = 1;
        for (int i = 0; i < 600; i++)
            usleep(100000);
        _exit(2);
    }
    wait_told(s, 1);
    return pid;
}

/* Killed, and a zombie until somebody asks for it. */
static void kill_and_leave(pid_t pid)
{
    siginfo_t info;
    kill(pid, SIGKILL);
    waitid(P_PID, (id_t)pid, &info, WEXITED | WNOWAIT);
}

static void reap(pid_t pid) { waitpid(pid, NULL, 0); }

static int exited(pid_t pid)
{
    int status;
    return waitpid(pid, &status, 0) == pid && status == 0;
}

static void test_free_lock_is_taken_and_released(void)
{
    struct shared *s = shared();
    CHECK(pl_lock_owner(&s->word) == 0 && pl_lock_release(self, &s->word) == -EPERM);
    CHECK(pl_lock_forsake(self, &s->word) == -EPERM);
    CHECK(pl_lock_acquire(self, &s->word, 0) == 0 && pl_lock_owner(&s->word) == getpid());
    CHECK(pl_lock_acquire(self, &s->word, 0) == -ETIMEDOUT); /* another thread, it might be */
    CHECK(pl_lock_release(self, &s->word) == 0 && s->word == 0);
    CHECK(pl_lock_acquire(self, &s->word, -1) == 0 && pl_lock_release(self, &s->word) == 0);
}

static void test_time_out_is_never_early_and_leaves_the_holder(void)
{
    static const int64_t times[] = {1, 20 * MS, 120 * MS};
    struct shared *s = shared();
    pid_t pid = holder(s);
    for (int i = 0; i < 3; i++) {
        int64_t start = sock_now();
        CHECK(pl_lock_acquire(self, &s->word, times[i]) == -ETIMEDOUT);
        CHECK(sock_now() - start >= times[i] && pl_lock_owner(&s->word) == pid);
        CHECK(pl_lock_release(self, &s->word) == -EPERM);
    }
    kill_and_leave(pid);
    reap(pid);
}

static void test_killed_holder_is_recovered_from_also_as_a_zombie(void)
{
    for (int zombie = 0; zombie < 2; zombie++)
        for (int wait = 0; wait < 2; wait++) {
            struct shared *s = shared();
            pid_t pid = holder(s);
            kill_and_leave(pid);
            if (!zombie)
                reap(pid);
            CHECK(pl_lock_acquire(self, &s->word, wait ? LONG_NS : 0) == 1);
            CHECK(pl_lock_owner(&s->word) == getpid() && pl_lock_release(self, &s->word) == 0);
            CHECK(pl_lock_acquire(self, &s->word, 0) == 0); /* told once */
            if (zombie)
                reap(pid);
        }
}

static void test_holder_that_dies_while_somebody_waits_is_recovered_from(void)
{
    struct shared *s = shared();
    pid_t pid = holder(s), killer = fork();
    if (killer == 0) {
        wait_contended(s);
        _exit(kill(pid, SIGKILL) != 0);
    }
    CHECK(pl_lock_acquire(self, &s->word, LONG_NS) == 1);
    CHECK(exited(killer));
    reap(pid);
}

/* Its first thread is a zombie, as /proc says; another one lives, and has the lock. */
static void *hold_on(void *arg)
{
    struct shared *s = arg;
    if (pl_lock_acquire(self, &s->word, 0) < 0)
        _exit(1);
    s->told = 1;
    for (int i = 0; i < 600; i++)
        usleep(100000);
    return NULL;
}

static int first_thread_ended(pid_t pid)
{
    char path[32], text[256] = "";
    snprintf(path, sizeof path, "/proc/%d/stat", (int)pid);
    FILE *file = fopen(path, "r");
    size_t n = file ? fread(text, 1, sizeof text - 1, file) : 0;
    if (file)
        fclose(file);
    const char *state = n ? strrchr(text, ')') : NULL;
    return state && state[2] == 'Z';
}

static void test_process_whose_first_thread_ended_is_alive(void)
{
    struct shared *s = shared();
    pid_t pid = fork();
    if (pid == 0) {
        pthread_t thread;
        pthread_create(&thread, NULL, hold_on, s);
        syscall(SYS_exit, 0); /* this thread only */
    }
    wait_told(s, 1);
    for (int i = 0; i < POLLS && !first_thread_ended(pid); i++)
        usleep(POLL_US);
    CHECK(pl_lock_acquire(self, &s->word, 0) == -ETIMEDOUT);
    CHECK(pl_lock_acquire(self, &s->word, 150 * MS) == -ETIMEDOUT);
    kill_and_leave(pid);
    CHECK(pl_lock_acquire(self, &s->word, LONG_NS) == 1);
    reap(pid);
}

static void test_word_of_another_with_the_same_pid_is_taken_over(void)
{
    struct shared *s = shared();
    CHECK(pl_lock_acquire(self, &s->word, 0) == 0);
    uint64_t mine = s->word, start = UINT64_C(1) << 32;
    CHECK(mine >> 32); /* no machine has been up for less */
    s->word = mine + start;
    CHECK(pl_lock_release(self, &s->word) == -EPERM);
    CHECK(pl_lock_acquire(self, &s->word, 0) == 1 && (s->word & ~(UINT64_C(1) << 31)) == mine);
    s->word = mine - start;
    CHECK(pl_lock_acquire(self, &s->word, LONG_NS) == 1 && pl_lock_release(self, &s->word) == 0);
}

/* It could not look up when it was started, but it lives. */
static void test_holder_that_was_short_of_fds_is_alive(void)
{
    struct shared *s = shared();
    struct rlimit old, none;
    CHECK(getrlimit(RLIMIT_NOFILE, &old) == 0);
    none = (struct rlimit){0, old.rlim_max};
    CHECK(setrlimit(RLIMIT_NOFILE, &none) == 0);
    pid_t pid = holder(s);
    CHECK(setrlimit(RLIMIT_NOFILE, &old) == 0);
    CHECK(pl_lock_acquire(self, &s->word, 0) == -ETIMEDOUT);
    CHECK(pl_lock_acquire(self, &s->word, 150 * MS) == -ETIMEDOUT);
    kill_and_leave(pid);
    CHECK(pl_lock_acquire(self, &s->word, 0) == 1);
    reap(pid);
}

static void test_words_of_no_process_are_taken_over(void)
{
    static const uint64_t words[] = {1u << 31, UINT64_C(1) << 32, 0x7fffffff, UINT64_MAX,
                                     UINT64_C(1) << 63, UINT64_MAX - 0x7fffffff};
    struct shared *s = shared();
    for (size_t i = 0; i < sizeof words / sizeof *words; i++) {
        s->word = words[i];
        CHECK(pl_lock_owner(&s->word) == (int)(words[i] & 0x7fffffff));
        CHECK(pl_lock_acquire(self, &s->word, 0) == 1 && pl_lock_release(self, &s->word) == 0);
    }
}

static void test_forsaken_lock_is_recovered_by_the_next(void)
{
    struct shared *s = shared();
    for (int i = 0; i < 2; i++) {
        CHECK(pl_lock_acquire(self, &s->word, 0) == i);
        CHECK(pl_lock_forsake(self, &s->word) == 0 && pl_lock_owner(&s->word) == 0);
    }
    CHECK(pl_lock_acquire(self, &s->word, LONG_NS) == 1);
    CHECK(pl_lock_release(self, &s->word) == 0 && pl_lock_acquire(self, &s->word, 0) == 0);
}

static void nothing(int number) { (void)number; }

static void test_signal_interrupts(void)
{
    struct sigaction action = {.sa_handler = nothing}, old;
    struct shared *s = shared();
    sigaction(SIGUSR1, &action, &old);
    pid_t pid = holder(s), parent = getpid(), shooter = fork();
    if (shooter == 0) {
        for (int n = 0; n < 30000 && getppid() == parent; n++) {
            kill(parent, SIGUSR1);
            usleep(1000);
        }
        _exit(0);
    }
    CHECK(pl_lock_acquire(self, &s->word, -1) == -EINTR && pl_lock_owner(&s->word) == pid);
    kill(shooter, SIGKILL);
    while (waitpid(shooter, NULL, 0) < 0)
        CHECK(errno == EINTR);
    sigaction(SIGUSR1, &old, NULL);
    kill_and_leave(pid);
    reap(pid);
}

/* Each wait is over before a slice of it is, and the next one begins anew. */
static void test_regular_signals_do_not_hide_that_the_holder_died(void)
{
    struct sigaction action = {.sa_handler = nothing}, old;
    struct shared *s = shared();
    int rc = -EINTR;
    pid_t pid = holder(s);
    kill_and_leave(pid);
    sigaction(SIGALRM, &action, &old);
    ualarm(2000, 2000);
    for (int i = 0; i < 200 && rc == -EINTR; i++)
        rc = pl_lock_acquire(self, &s->word, -1);
    ualarm(0, 0);
    sigaction(SIGALRM, &old, NULL);
    CHECK(rc == 1);
    reap(pid);
}

/* Once with the page that is wiped in a child, once where the kernel does not do that. */
static void test_child_of_the_holder_does_not_have_it(void)
{
    _Atomic(uint64_t) plain = 0;
    struct pl_self unwiped = {&plain, 1}, *selves[] = {self, &unwiped};
    for (int i = 0; i < 2; i++) {
        struct shared *s = shared();
        CHECK(pl_lock_acquire(selves[i], &s->word, 0) == 0);
        pid_t pid = fork();
        if (pid == 0)
            _exit(pl_lock_release(selves[i], &s->word) != -EPERM ||
                  pl_lock_acquire(selves[i], &s->word, 0) != -ETIMEDOUT ||
                  pl_lock_owner(&s->word) != getppid());
        CHECK(exited(pid) && pl_lock_release(selves[i], &s->word) == 0);
        if ((pid = fork()) == 0)
            _exit(pl_lock_acquire(selves[i], &s->word, 0) != 0);
        CHECK(exited(pid) && pl_lock_owner(&s->word) == pid);
        CHECK(pl_lock_acquire(selves[i], &s->word, 0) == 1);
    }
}

#define ROUNDS 3000

static void *count(void *arg)
{
    struct shared *s = arg;
    for (int i = 0; i < ROUNDS; i++) {
        int rc = pl_lock_acquire(self, &s->word, i % 16 ? -1 : LONG_NS);
        if (rc != 0)
            return arg;
        s->counter = s->counter + 1;
        if (pl_lock_release(self, &s->word) < 0)
            return arg;
    }
    return NULL;
}

static void test_threads_of_a_process_exclude_each_other(void)
{
    struct shared *s = shared();
    pthread_t threads[4];
    void *failed, *any = NULL;
    for (int i = 0; i < 4; i++)
        CHECK(pthread_create(&threads[i], NULL, count, s) == 0);
    for (int i = 0; i < 4; i++)
        if (pthread_join(threads[i], &failed) != 0 || failed)
            any = s;
    CHECK(!any && s->counter == 4 * ROUNDS && s->word == 0);
}

static void test_processes_exclude_each_other(void)
{
    struct shared *s = shared();
    pid_t pids[4];
    for (int i = 0; i < 4; i++)
        if ((pids[i] = fork()) == 0)
            _exit(count(s) != NULL);
    for (int i = 0; i < 4; i++)
        CHECK(exited(pids[i]));
    CHECK(s->counter == 4 * ROUNDS && s->word == 0);
}

/* Each of them either holds it or waits, and is killed there: the rest get on, and one is told of each dead holder. */
static void test_killed_waiters_hold_nobody_up(void)
{
    struct shared *s = shared();
    pid_t pids[3], first = holder(s);
    for (int i = 0; i < 3; i++)
        if ((pids[i] = fork()) == 0)
            _exit(pl_lock_acquire(self, &s->word, LONG_NS) < 0);
    wait_contended(s);
    kill_and_leave(pids[0]);
    kill_and_leave(first);
    /* The other two take it one from the other: both end without letting go. */
    CHECK(exited(pids[1]) && exited(pids[2]));
    CHECK(pl_lock_acquire(self, &s->word, LONG_NS) == 1);
    reap(first);
    reap(pids[0]);
}

static void test_short_of_memory_there_is_no_self(void)
{
    fail_alloc_after(0);
    CHECK(pl_self_new() == NULL);
    fail_alloc_never();
    pl_self_free(NULL);
    pl_self_free(pl_self_new());
}

CHECK_MAIN(self = pl_self_new(); /* as in Python, children inherit it */
           RUN(test_free_lock_is_taken_and_released);
           RUN(test_time_out_is_never_early_and_leaves_the_holder);
           RUN(test_killed_holder_is_recovered_from_also_as_a_zombie);
           RUN(test_holder_that_dies_while_somebody_waits_is_recovered_from);
           RUN(test_process_whose_first_thread_ended_is_alive);
           RUN(test_word_of_another_with_the_same_pid_is_taken_over);
           RUN(test_holder_that_was_short_of_fds_is_alive);
           RUN(test_words_of_no_process_are_taken_over);
           RUN(test_forsaken_lock_is_recovered_by_the_next);
           RUN(test_signal_interrupts);
           RUN(test_regular_signals_do_not_hide_that_the_holder_died);
           RUN(test_child_of_the_holder_does_not_have_it);
           RUN(test_threads_of_a_process_exclude_each_other);
           RUN(test_processes_exclude_each_other);
           RUN(test_killed_waiters_hold_nobody_up);
           RUN(test_short_of_memory_there_is_no_self);
           pl_self_free(self);)
