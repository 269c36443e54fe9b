/* test_feed_steps.c -- a process is killed at each marked step of feed.c, and the others go on.
 *
 * Built with PL_STEPS: feed_step is called at each step. A child publishes or reads and ends itself, by SIGKILL, at
 * one of them; the parent then finds everything whole, hears the bell for what comes next, and publishes. */
#include "feed_rig.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <sys/wait.h>

#include "check.h"

#define STEPS 9
#define COMMITTED 6 /* from this step on the record is there */

void feed_step(int number);

static int fatal = -1; /* the step to die at */

void feed_step(int number)
{
    if (number == fatal)
        raise(SIGKILL);
}

/* A child that does its work until the step; whether it came there. */
static int dies_at(struct pl_feed *feed, int step, int reads, uint64_t number)
{
    int status;
    pid_t child = fork();
    if (child == 0) {
        struct reader reader = {0};
        int64_t rc = pl_feed_forked(feed);
        if (rc == 0 && reads) {
            rc = pl_feed_seek(feed, &reader.cursor);
            fatal = step;
            rc = rc < 0 ? rc : rig_read(feed, &reader, RIG_BYTES);
        } else if (rc == 0) {
            fatal = step;
            rc = rig_publish(feed, number);
        }
        _exit(rc < 0 ? 1 : 0);
    }
    if (waitpid(child, &status, 0) != child)
        return -1;
    return WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL;
}

/* One child of this kind dies at this step; `reader` waits, as its own last read has left it. */
static void check_step(struct pl_feed *feed, struct reader *reader, int step, int reads)
{
    uint64_t number = reader->cursor.number, heard = reader->heard;
    struct pollfd entry = {.fd = pl_feed_watch(feed), .events = POLLIN};
    pl_feed_quiet(feed);
    CHECK(rig_read_all(feed, reader) == 0 && reader->heard == heard);
    int died = dies_at(feed, step, reads, number);
    CHECK(died == (reads ? step == 0 || step > 6 : step < 7));
    int published = !reads && step >= COMMITTED;
    if (published || (!reads && step == 5) || (!reads && step == 4))
        CHECK(poll(&entry, 1, 0) == 1); /* rung before it was committed */
    pl_feed_quiet(feed);
    CHECK(rig_read_all(feed, reader) == 0); /* takes the lock from the dead */
    CHECK(reader->heard == heard + (uint64_t)published);
    CHECK(rig_publish(feed, number + (uint64_t)published) == 0);
    CHECK(poll(&entry, 1, 0) == 1);
    CHECK(rig_read_all(feed, reader) == 0);
    CHECK(reader->heard == heard + (uint64_t)published + 1);
    CHECK(!reader->torn && !reader->cursor.missed);
}

static void check_all(int named)
{
    struct pl_feed *feed;
    struct reader reader = {0};
    CHECK(rig_make(&feed, named, "steps") == named);
    CHECK(pl_feed_seek(feed, &reader.cursor) == 0);
    for (uint64_t number = 0; number < 20; number++) { /* it has gone round, and drops records */
        CHECK(rig_publish(feed, number) == 0);
        CHECK(rig_read_all(feed, &reader) == 0);
    }
    for (int step = 0; step < STEPS; step++) {
        check_step(feed, &reader, step, 0);
        check_step(feed, &reader, step, 1);
    }
    rig_free(feed, named, "steps");
}

static void test_nameless(void) { check_all(0); }
static void test_named(void) { check_all(1); }

CHECK_MAIN(RUN(test_nameless); RUN(test_named);)
