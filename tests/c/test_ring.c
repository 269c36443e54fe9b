/* test_ring.c -- ring.c and ring_make.c: messages go in and come out, of both kinds, and nothing else is believed. */
#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>

#include "check.h"
#include "ring_rig.h"

static int named; /* which kind the running test is about */
static uint8_t bytes[MAX_MESSAGE];

/* ---- messages ---- */

static void test_messages_of_all_lengths_come_out_in_order(void)
{
    struct pl_ring *ring = ring_of(named), *other = ring_again(ring, named);
    CHECK(ring && other);
    for (uint32_t i = 0; i < 3000; i += 2) { /* around the end many times, cut at each place */
        CHECK(put_number(ring, i, 0) == 0 && put_number(other, i + 1, 0) == 0);
        CHECK(get_number(other, 0) == i && get_number(ring, 0) == i + 1);
    }
    CHECK(pl_ring_put(ring, bytes, 0, 0) == 0 && pl_ring_get(other, bytes, NULL, 0, 0) == 0);
    pl_ring_free(other);
    ring_end(ring, named);
}

static void test_full_and_empty_are_told(void)
{
    struct pl_ring *ring = ring_of(named);
    CHECK(ring && pl_ring_get(ring, bytes, NULL, 0, 0) == -ETIMEDOUT);
    CHECK(pl_ring_get(ring, bytes, NULL, 0, 1000000) == -ETIMEDOUT);
    CHECK(pl_ring_arm_get(ring) == 0);
    CHECK(pl_ring_put(ring, bytes, MAX_MESSAGE + 1, 0) == PL_E_TOO_LONG);
    CHECK(pl_ring_put(ring, bytes, MAX_MESSAGE, 0) == 0 && pl_ring_arm_get(ring) == 1);
    CHECK(pl_ring_put(ring, bytes, MAX_MESSAGE, 0) == 0);
    CHECK(pl_ring_put(ring, bytes, MAX_MESSAGE, 0) == -ETIMEDOUT);
    CHECK(pl_ring_put(ring, bytes, MAX_MESSAGE, 1000000) == -ETIMEDOUT);
    CHECK(pl_ring_arm_put(ring, MAX_MESSAGE) == 0 && pl_ring_arm_put(ring, 8) == 1);
    CHECK(pl_ring_used(ring) == 2 * (MAX_MESSAGE + 8) && pl_ring_capacity(ring) == CAPACITY);
    ring_end(ring, named);
}

static void test_shut_ring_gives_the_rest_and_then_no_more(void)
{
    struct pl_ring *ring = ring_of(named), *other = ring_again(ring, named);
    CHECK(ring && other && put_number(ring, 5, 0) == 0);
    CHECK(pl_ring_shut(other, -1) == 0);
    CHECK(put_number(ring, 6, -1) == PL_E_SHUT);
    CHECK(get_number(ring, -1) == 5 && pl_ring_get(ring, bytes, NULL, 0, -1) == PL_E_SHUT);
    CHECK(pl_ring_arm_get(ring) == 1 && pl_ring_shut(ring, -1) == 0);
    pl_ring_free(other);
    ring_end(ring, named);
}

static void test_closed_one_is_closed_here_only(void)
{
    struct pl_ring *ring = ring_of(named), *other = ring_again(ring, named);
    CHECK(ring && other);
    pl_ring_close(other);
    CHECK(put_number(other, 1, -1) == -EBADF && pl_ring_get(other, bytes, NULL, 0, -1) == -EBADF);
    CHECK(pl_ring_latch(other) == -EBADF && pl_ring_arm_get(other) == -EBADF);
    CHECK(pl_ring_shut(other, -1) == -EBADF && pl_ring_used(other) == -EBADF);
    CHECK(put_number(ring, 1, -1) == 0 && get_number(ring, -1) == 1);
    pl_ring_free(other);
    ring_end(ring, named);
}

/* ---- waiting ---- */

/* A child that does `what`, and whose exit status says whether it went well. */
static pid_t start(struct pl_ring *ring, int (*what)(struct pl_ring *))
{
    pid_t pid = fork();
    if (pid == 0)
        _exit(pl_ring_enter(ring) == 0 && what(ring) ? 0 : 1);
    return pid;
}

static int went_well(pid_t pid)
{
    int status;
    return waitpid(pid, &status, 0) == pid && WIFEXITED(status) && !WEXITSTATUS(status);
}

static int puts_thousands(struct pl_ring *ring)
{
    for (uint32_t i = 0; i < 2000; i++)
        if (put_number(ring, i, SOON) < 0)
            return 0;
    return 1;
}

static int takes_one(struct pl_ring *ring) { return get_number(ring, SOON) >= 0; }
static int finds_it_shut(struct pl_ring *ring) { return pl_ring_get(ring, bytes, NULL, 0, SOON) == PL_E_SHUT; }

static int finds_it_shut_and_full(struct pl_ring *ring)
{
    return pl_ring_put(ring, bytes, MAX_MESSAGE, SOON) == PL_E_SHUT;
}

static void test_a_fast_writer_waits_for_its_reader(void)
{
    struct pl_ring *ring = ring_of(named);
    pid_t pid = start(ring, puts_thousands);
    for (uint32_t i = 0; i < 2000; i++)
        CHECK(get_number(ring, SOON) == i);
    CHECK(went_well(pid));
    ring_end(ring, named);
}

static void test_each_of_many_readers_is_woken(void)
{
    struct pl_ring *ring = ring_of(named);
    pid_t pids[4];
    for (int i = 0; i < 4; i++)
        pids[i] = start(ring, takes_one);
    for (uint32_t i = 0; i < 4; i++)
        CHECK(put_number(ring, i, SOON) == 0);
    for (int i = 0; i < 4; i++)
        CHECK(went_well(pids[i]));
    ring_end(ring, named);
}

static void test_shutdown_wakes_readers_and_writers(void)
{
    struct pl_ring *ring = ring_of(named), *full = pl_ring_new(CAPACITY, MAX_MESSAGE, &(int){0});
    CHECK(ring && full);
    while (pl_ring_put(full, bytes, MAX_MESSAGE, 0) == 0)
        ;
    pid_t reader = start(ring, finds_it_shut), writer = start(full, finds_it_shut_and_full);
    usleep(2000);
    CHECK(pl_ring_shut(ring, -1) == 0 && pl_ring_shut(full, -1) == 0);
    CHECK(went_well(reader) && went_well(writer));
    pl_ring_free(full);
    ring_end(ring, named);
}

/* A stopped process is not dead: who does not want to wait finds the lock taken, until it is killed. */
static int locks_and_stops(struct pl_ring *ring)
{
    int rc = region_lock(&ring->region, 0, -1);
    (void)raise(SIGSTOP);
    return rc < 0;
}

static void test_lock_of_a_stopped_process_is_not_waited_for(void)
{
    struct pl_ring *ring = ring_of(named);
    int status;
    pid_t pid = start(ring, locks_and_stops);
    CHECK(waitpid(pid, &status, WUNTRACED) == pid && WIFSTOPPED(status));
    CHECK(put_number(ring, 1, 0) == -ETIMEDOUT && pl_ring_arm_get(ring) == -ETIMEDOUT);
    CHECK(kill(pid, SIGKILL) == 0 && waitpid(pid, &status, 0) == pid);
    CHECK(put_number(ring, 1, 0) == 0 && get_number(ring, 0) == 1);
    ring_end(ring, named);
}

#define MANY_ALARMS 400 /* that a wait to the end of its slice would see */

static volatile sig_atomic_t alarms;

static void on_alarm(int number)
{
    (void)number;
    if (++alarms == MANY_ALARMS)
        ualarm(0, 0);
}

static void test_a_signal_ends_the_wait(void)
{
    struct pl_ring *ring = ring_of(named);
    struct sigaction action = {.sa_handler = on_alarm};
    CHECK(sigaction(SIGALRM, &action, NULL) == 0);
    alarms = 0;
    ualarm(2000, 2000); /* again and again: the first may come before the wait */
    CHECK(pl_ring_get(ring, bytes, NULL, 0, SOON) == -EINTR);
    ualarm(0, 0);
    CHECK(alarms > 0 && alarms < MANY_ALARMS);
    ring_end(ring, named);
}

static void test_latch_is_readable_when_it_is_worth_a_try(void)
{
    struct pl_ring *ring = ring_of(named), *other = ring_again(ring, named);
    int latch = pl_ring_latch(ring);
    CHECK(latch > 2);
    pl_ring_quiet(latch);
    CHECK(region_wait(latch, 0) == -ETIMEDOUT);
    CHECK(put_number(other, 1, 0) == 0 && region_wait(latch, 0) == -ETIMEDOUT); /* nobody asked */
    CHECK(get_number(ring, 0) == 1 && pl_ring_arm_get(ring) == 0);
    CHECK(put_number(other, 2, 0) == 0 && region_wait(latch, deadline_of(SOON)) == 0);
    CHECK(put_number(other, 3, 0) == 0 && region_wait(latch, 0) == -ETIMEDOUT); /* once is enough */
    close(latch);
    pl_ring_free(other);
    ring_end(ring, named);
}

/* ---- making ---- */

static void test_unusable_shapes_are_refused(void)
{
    int rc = 0;
    CHECK(!pl_ring_new(512, 505, &rc) && rc == -EINVAL);
    CHECK(!pl_ring_new(511, 200, &rc) && rc == -EINVAL);
    CHECK(!pl_ring_new(512, 0, &rc) && rc == -EINVAL);
    CHECK(!pl_ring_new(512, UINT64_MAX - 3, &rc) && rc == -EINVAL);
    CHECK(!pl_ring_new((uint64_t)PL_RING_CAPACITY_MAX * 2, 1, &rc) && rc == -EINVAL);
    CHECK(!pl_ring_open("a/b", PL_ATTACH_OR_CREATE, 512, 200, &rc) && rc == -EINVAL);
}

static void test_short_memory_leaves_nothing_behind(void)
{
    int rc = 0;
    fail_alloc_after(0);
    CHECK(!pl_ring_new(CAPACITY, MAX_MESSAGE, &rc) && rc == -ENOMEM);
    CHECK(!pl_ring_open(ring_name(), PL_CREATE, CAPACITY, MAX_MESSAGE, &rc) && rc == -ENOMEM);
    CHECK(!pl_ring_adopt(0, 0, &rc) && rc == -ENOMEM);
    fail_alloc_never();
    CHECK(!pl_ring_open(ring_name(), PL_ATTACH, 0, 0, &rc) && rc == -ENOENT);
}

static void test_what_is_no_ring_is_foreign(void)
{
    int rc = 0, fd = memfd_create("other", MFD_CLOEXEC);
    CHECK(fd >= 0 && ftruncate(fd, 4096) == 0);
    CHECK(!pl_ring_adopt(fd, fd, &rc) && rc == PL_E_FOREIGN);
    close(fd);
    struct pl_ring *ring = ring_of(0);
    CHECK(ring);
    struct region_head *head = (struct region_head *)(void *)ring->region.base;
    head->params[0] = 1 << 30; /* more than there is */
    CHECK(!ring_again(ring, 0));
    head->params[0] = CAPACITY, head->version++;
    CHECK(!pl_ring_adopt(pl_ring_fd(ring), pl_ring_bell(ring), &rc) && rc == PL_E_FOREIGN);
    pl_ring_free(ring);
}

/* ---- a hostile peer ---- */

static int scribble(struct pl_ring *ring, uint64_t offset, uint64_t value)
{
    return region_store(&ring->region, offset, value);
}

static void test_marks_that_cannot_be_are_corrupt(void)
{
    static const uint64_t tails[] = {1, 8 * CAPACITY, UINT64_MAX, UINT64_MAX - 7, CAPACITY + 8};
    struct pl_ring *ring = ring_of(named);
    for (size_t i = 0; i < sizeof tails / sizeof *tails; i++) {
        CHECK(scribble(ring, REGION_LINE + 8, tails[i]) == 0);
        CHECK(put_number(ring, 1, -1) == PL_E_CORRUPT);
        CHECK(pl_ring_get(ring, bytes, NULL, 0, -1) == PL_E_CORRUPT);
        CHECK(pl_ring_arm_get(ring) == PL_E_CORRUPT && pl_ring_arm_put(ring, 1) == PL_E_CORRUPT);
        CHECK(pl_ring_used(ring) == PL_E_CORRUPT);
    }
    ring_end(ring, named);
}

static void test_lengths_that_cannot_be_are_corrupt(void)
{
    static const uint64_t lengths[] = {MAX_MESSAGE + 1, 17, UINT64_MAX, UINT64_MAX - 7, 1u << 31};
    struct pl_ring *ring = ring_of(named);
    CHECK(pl_ring_put(ring, bytes, 16, 0) == 0);
    for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
        CHECK(scribble(ring, RING_DATA, lengths[i]) == 0);
        CHECK(pl_ring_get(ring, bytes, NULL, 0, -1) == PL_E_CORRUPT);
    }
    ring_end(ring, named);
}

static void test_named_ring_that_was_cut_short_is_corrupt(void)
{
    struct pl_ring *ring = ring_of(1);
    CHECK(ring && put_number(ring, 100, 0) == 0);
    CHECK(ftruncate(pl_ring_fd(ring), RING_DATA + 16) == 0);
    CHECK(pl_ring_get(ring, bytes, NULL, 0, -1) == PL_E_CORRUPT);
    CHECK(ftruncate(pl_ring_fd(ring), 100) == 0);
    CHECK(pl_ring_get(ring, bytes, NULL, 0, -1) == PL_E_CORRUPT && put_number(ring, 1, -1) == PL_E_CORRUPT);
    CHECK(pl_ring_arm_get(ring) == PL_E_CORRUPT && pl_ring_shut(ring, -1) == 0);
    ring_end(ring, 1);
}

static int tests_of_one_kind(int kind)
{
    int tests_failed = 0;
    named = kind;
    printf("%s:\n", named ? "named" : "nameless");
    RUN(test_messages_of_all_lengths_come_out_in_order);
    RUN(test_full_and_empty_are_told);
    RUN(test_shut_ring_gives_the_rest_and_then_no_more);
    RUN(test_closed_one_is_closed_here_only);
    RUN(test_a_fast_writer_waits_for_its_reader);
    RUN(test_each_of_many_readers_is_woken);
    RUN(test_shutdown_wakes_readers_and_writers);
    RUN(test_lock_of_a_stopped_process_is_not_waited_for);
    RUN(test_a_signal_ends_the_wait);
    RUN(test_latch_is_readable_when_it_is_worth_a_try);
    RUN(test_marks_that_cannot_be_are_corrupt);
    RUN(test_lengths_that_cannot_be_are_corrupt);
    return tests_failed;
}

CHECK_MAIN(tests_failed += tests_of_one_kind(0) + tests_of_one_kind(1);
           RUN(test_unusable_shapes_are_refused); RUN(test_short_memory_leaves_nothing_behind);
           RUN(test_what_is_no_ring_is_foreign); RUN(test_named_ring_that_was_cut_short_is_corrupt);)
