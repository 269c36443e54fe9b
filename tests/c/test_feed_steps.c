/* test_feed_steps.c -- a process is killed at each marked step of feed.c (csrc/step.h), and the others go on.
 *
 * A child publishes or reads, and ends itself at its first step, its second, and so on. The parent then finds everything
 * whole, is woken by what comes next, and publishes. */
#include "feed_rig.h"

#include <poll.h>
#include <signal.h>
#include <sys/wait.h>

#include "check.h"

#define PUBLISH_STEPS 7
#define READ_STEPS 3
#define RUNG 5      /* from this step on who waits has been woken */
#define COMMITTED 7 /* from this step on the record is there */

void pl_step(void);

static int steps_left; /* 0: nobody is killed */

void pl_step(void)
{
    if (steps_left && !--steps_left)
        (void)kill(getpid(), SIGKILL);
}

static int64_t work(struct pl_feed *feed, int reads, int step, uint64_t number)
{
    struct reader reader = {0};
    int64_t rc = pl_feed_forked(feed);
    if (rc == 0 && reads)
        rc = pl_feed_seek(feed, &reader.cursor);
    steps_left = step;
    if (rc < 0)
        return rc;
    return reads ? rig_read(feed, &reader, RIG_BYTES) : rig_publish(feed, number);
}

/* 1: a child died at this step of its work; 0: it ended before; -1: it failed. */
static int dies_at(struct pl_feed *feed, int reads, int step, uint64_t number)
{
    int status;
    pid_t child = fork();
    if (child == 0)
        _exit(work(feed, reads, step, number) < 0);
    if (waitpid(child, &status, 0) != child)
        return -1;
    if (WIFSIGNALED(status))
        return WTERMSIG(status) == SIGKILL ? 1 : -1;
    return WEXITSTATUS(status) ? -1 : 0;
}

/* `reader` waits on `fd` when a child dies. */
static void check_step(struct pl_feed *feed, struct reader *reader, int fd, int reads, int step)
{
    struct pollfd entry = {.fd = fd, .events = POLLIN};
    uint64_t number = reader->cursor.number, heard = reader->heard;
    pl_feed_quiet(fd);
    CHECK(rig_read_all(feed, reader) == 0 && reader->heard == heard);
    CHECK(dies_at(feed, reads, step, number) == 1);
    CHECK(poll(&entry, 1, 0) == (!reads && step >= RUNG));
    pl_feed_quiet(fd);
    CHECK(rig_read_all(feed, reader) == 0); /* takes the lock from the dead, and waits again */
    number += !reads && step >= COMMITTED;
    CHECK(reader->cursor.number == number);
    CHECK(rig_publish(feed, number) == 0 && poll(&entry, 1, 0) == 1);
    CHECK(rig_read_all(feed, reader) == 0 && reader->cursor.number == number + 1);
    CHECK(!reader->torn && !reader->cursor.missed);
}

static void check_all(int named)
{
    struct pl_feed *feed;
    struct reader reader = {0};
    CHECK(rig_make(&feed, named, "steps") == named);
    CHECK(pl_feed_seek(feed, &reader.cursor) == 0);
    int fd = pl_feed_watch(feed);
    for (uint64_t number = 0; number < 20; number++) { /* it has gone round, and drops records */
        CHECK(rig_publish(feed, number) == 0);
        CHECK(rig_read_all(feed, &reader) == 0);
    }
    for (int step = 1; step <= PUBLISH_STEPS; step++)
        check_step(feed, &reader, fd, 0, step);
    for (int step = 1; step <= READ_STEPS; step++)
        check_step(feed, &reader, fd, 1, step);
    CHECK(dies_at(feed, 0, PUBLISH_STEPS + 1, reader.cursor.number) == 0); /* there are no more */
    CHECK(dies_at(feed, 1, READ_STEPS + 1, 0) == 0);
    close(fd);
    rig_free(feed, named, "steps");
}

static void test_nameless(void) { check_all(0); }
static void test_named(void) { check_all(1); }

CHECK_MAIN(RUN(test_nameless); RUN(test_named);)
