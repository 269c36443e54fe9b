/* test_feed.c -- feed.c: what is published is read by everybody, whole, in order, or counted as missed. */
#include "feed_rig.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sys/mman.h>
#include <sys/wait.h>

#include "check.h"
#include "region.h"

static int is_readable(int fd)
{
    struct pollfd entry = {.fd = fd, .events = POLLIN};
    return poll(&entry, 1, 0) == 1;
}

static void check_readers(struct pl_feed *feed)
{
    struct reader early = {0}, late = {0};
    CHECK(pl_feed_seek(feed, &early.cursor) == 0);
    for (uint64_t number = 0; number < 5; number++)
        CHECK(rig_publish(feed, number) == 0);
    CHECK(rig_read(feed, &early, RIG_BYTES) == 5 && rig_read(feed, &early, RIG_BYTES) == 0);
    CHECK(pl_feed_seek(feed, &late.cursor) == 0);
    for (uint64_t number = 5; number < 3000; number++) {
        CHECK(rig_publish(feed, number) == 0);
        if (number % 3 == 0)
            CHECK(rig_read(feed, &early, number % 2 ? 800 : RIG_BYTES) > 0);
    }
    CHECK(rig_read_all(feed, &early) == 0 && rig_read_all(feed, &late) == 0);
    CHECK(!early.torn && early.cursor.missed == 0 && early.heard == 3000);
    CHECK(!late.torn && late.heard + late.cursor.missed == 2995 && late.cursor.missed > 2900);
}

static void check_bell(struct pl_feed *feed)
{
    struct reader reader = {0};
    int fd = pl_feed_watch(feed), other = pl_feed_watch(feed);
    CHECK(pl_feed_seek(feed, &reader.cursor) == 0 && fd >= 0);
    CHECK(rig_publish(feed, 3000) == 0);
    pl_feed_quiet(fd);
    CHECK(rig_publish(feed, 3001) == 0 && !is_readable(fd)); /* nobody waits */
    CHECK(rig_read(feed, &reader, RIG_BYTES) == 2 && rig_read(feed, &reader, RIG_BYTES) == 0);
    CHECK(!is_readable(fd) && rig_publish(feed, 3002) == 0 && is_readable(fd));
    CHECK(rig_publish(feed, 3003) == 0);
    pl_feed_quiet(fd);
    CHECK(!is_readable(fd) && is_readable(other)); /* each reader has its own */
    CHECK(rig_read(feed, &reader, RIG_BYTES) == 2 && !reader.torn);
    close(fd);
    close(other);
}

static void check_lengths(struct pl_feed *feed)
{
    struct reader reader = {0};
    static uint8_t bytes[RIG_BYTES];
    size_t most = pl_feed_most(feed);
    CHECK(most == RIG_BYTES / 4 && pl_feed_capacity(feed) == RIG_BYTES);
    CHECK(pl_feed_seek(feed, &reader.cursor) == 0);
    CHECK(pl_feed_publish(feed, bytes, 1, bytes, most) == -EMSGSIZE);
    CHECK(pl_feed_publish(feed, bytes, SIZE_MAX, bytes, 1) == -EMSGSIZE);
    CHECK(pl_feed_publish(feed, bytes, most, bytes, 0) == 0);
    CHECK(pl_feed_publish(feed, bytes, 0, bytes, 0) == 0);
    CHECK(pl_feed_read(feed, &reader.cursor, reader.copy, most) == -EMSGSIZE);
    CHECK(pl_feed_read(feed, &reader.cursor, reader.copy, 8) == -EMSGSIZE);
    CHECK(pl_feed_read(feed, &reader.cursor, reader.copy, most + 16) == (int64_t)most + 16);
    CHECK(pl_feed_read(feed, &reader.cursor, reader.copy, RIG_BYTES) == 16);
}

/* Children of a fork publish; all of it arrives, and in the order of each. */
static void check_children(struct pl_feed *feed)
{
    struct reader reader = {0};
    CHECK(pl_feed_seek(feed, &reader.cursor) == 0);
    for (int child = 0; child < 3; child++)
        if (fork() == 0) {
            uint8_t message[2] = {(uint8_t)child, 0};
            int rc = pl_feed_forked(feed);
            for (; rc == 0 && message[1] < 20; message[1]++)
                rc = pl_feed_publish(feed, message, 1, message + 1, 1);
            _exit(rc != 0);
        }
    int status, failed = 0, next[3] = {0};
    for (int child = 0; child < 3; child++)
        failed |= wait(&status) < 0 || status;
    CHECK(!failed);
    CHECK(pl_feed_read(feed, &reader.cursor, reader.copy, RIG_BYTES) == (int64_t)60 * 32);
    for (int i = 0; i < 60; i++) {
        const uint8_t *bytes = reader.copy + i * 32 + sizeof(struct pl_feed_record);
        CHECK(bytes[0] < 3 && bytes[1] == next[bytes[0]]++);
    }
}

static void check_all(int named)
{
    struct pl_feed *feed;
    CHECK(rig_make(&feed, named, "feed") == named);
    check_readers(feed);
    check_bell(feed);
    check_lengths(feed);
    check_children(feed);
    rig_free(feed, named, "feed");
}

static void test_nameless(void) { check_all(0); }
static void test_named(void) { check_all(1); }

/* ---- threads ---- */

#define THREADS 3
#define EACH 2000

static void *publish_many(void *feed)
{
    uint8_t message[100] = {0};
    for (int i = 0; i < EACH; i++)
        if (pl_feed_publish(feed, message, 0, message, sizeof message) < 0)
            return feed;
    return NULL;
}

static void test_threads_and_a_reader(void)
{
    struct pl_feed *feed;
    struct reader reader = {0};
    pthread_t threads[THREADS];
    void *failed = NULL, *result;
    uint64_t heard = 0;
    CHECK(pl_feed_new(RIG_BYTES, &feed) == 0 && pl_feed_seek(feed, &reader.cursor) == 0);
    for (int i = 0; i < THREADS; i++)
        CHECK(pthread_create(&threads[i], NULL, publish_many, feed) == 0);
    int fd = pl_feed_watch(feed);
    while (heard + reader.cursor.missed < THREADS * EACH) {
        struct pollfd entry = {.fd = fd, .events = POLLIN};
        pl_feed_quiet(fd);
        int64_t n = pl_feed_read(feed, &reader.cursor, reader.copy, RIG_BYTES);
        CHECK(n >= 0 && n % 128 == 0);
        heard += (uint64_t)n / 128;
        if (n == 0 && heard + reader.cursor.missed < THREADS * EACH)
            CHECK(poll(&entry, 1, 10000) == 1); /* else a wake-up was lost */
    }
    for (int i = 0; i < THREADS; i++, failed = failed ? failed : result)
        CHECK(pthread_join(threads[i], &result) == 0);
    CHECK(!failed);
    close(fd);
    pl_feed_free(feed);
}

/* ---- what is wrong ---- */

static void test_bad_arguments(void)
{
    struct pl_feed *feed;
    CHECK(pl_feed_new(PL_FEED_LEAST - 16, &feed) == -EINVAL);
    CHECK(pl_feed_new((uint64_t)PL_FEED_MOST + 1, &feed) == -EINVAL);
    CHECK(pl_feed_new(UINT64_MAX, &feed) == -EINVAL);
    CHECK(pl_feed_open("a/b", PL_FEED_LEAST, &feed) == -EINVAL);
    CHECK(pl_feed_new(PL_FEED_LEAST + 1, &feed) == 0 && pl_feed_capacity(feed) == 4112);
    CHECK(pl_feed_adopt(pl_feed_bell(feed), pl_feed_fd(feed), &feed) < 0);
    pl_feed_free(feed);
}

static void test_named_one_keeps_its_capacity(void)
{
    struct pl_feed *feed, *other;
    char name[64];
    CHECK(rig_make(&feed, 1, "kept") == 1);
    rig_name(name, sizeof name, "kept");
    CHECK(pl_feed_open(name, 1 << 20, &other) == 0 && pl_feed_capacity(other) == RIG_BYTES);
    pl_feed_free(other);
    rig_free(feed, 1, "kept");
}

static void test_truncated_one_is_corrupt(void)
{
    struct pl_feed *feed, *other;
    struct reader reader = {0};
    char name[64];
    rig_name(name, sizeof name, "cut");
    CHECK(rig_make(&feed, 1, "cut") == 1 && pl_feed_seek(feed, &reader.cursor) == 0);
    CHECK(ftruncate(pl_feed_fd(feed), 128) == 0);
    CHECK(pl_feed_publish(feed, (const uint8_t *)"t", 1, NULL, 0) == PL_E_CORRUPT);
    CHECK(pl_feed_open(name, RIG_BYTES, &other) == PL_E_FOREIGN);
    CHECK(ftruncate(pl_feed_fd(feed), 0) == 0);
    CHECK(pl_feed_read(feed, &reader.cursor, reader.copy, RIG_BYTES) == PL_E_CORRUPT);
    rig_free(feed, 1, "cut");
}

/* Each word of line 0 and of a record, set to values that it cannot have. */
static void test_scribbled_words_are_found(void)
{
    static const struct {
        off_t offset;
        uint64_t value;
    } scribbles[] = {
        {REGION_LINE + 8, 8},           /* tail: not aligned */
        {REGION_LINE + 8, UINT64_MAX - 15}, /* more than the capacity beyond oldest */
        {REGION_LINE + 8, 0},           /* it went back */
        {REGION_LINE + 16, 1 << 20},    /* oldest: beyond tail */
        {2 * REGION_LINE + 16, 99},     /* a record: another number */
        {2 * REGION_LINE + 24, (uint64_t)9999 << 32}, /* longer than what is there */
        {2 * REGION_LINE + 24, UINT64_MAX},
    };
    for (size_t i = 0; i < sizeof scribbles / sizeof scribbles[0]; i++) {
        struct pl_feed *feed;
        struct reader reader = {0};
        CHECK(pl_feed_new(RIG_BYTES, &feed) == 0);
        CHECK(pl_feed_publish(feed, NULL, 0, NULL, 0) == 0);
        CHECK(pl_feed_seek(feed, &reader.cursor) == 0 && reader.cursor.position == 16);
        CHECK(rig_publish(feed, 1) == 0);
        ssize_t n = pwrite(pl_feed_fd(feed), &scribbles[i].value, 8, scribbles[i].offset);
        CHECK(n == 8);
        CHECK(pl_feed_read(feed, &reader.cursor, reader.copy, RIG_BYTES) == PL_E_CORRUPT);
        pl_feed_free(feed);
    }
}

static void test_no_memory_leaves_no_fd(void)
{
    struct pl_feed *feed;
    int before = dup(0);
    close(before);
    fail_alloc_after(0);
    CHECK(pl_feed_new(RIG_BYTES, &feed) == -ENOMEM);
    CHECK(pl_feed_open("pyloop-test-none", RIG_BYTES, &feed) == -ENOMEM);
    CHECK(pl_feed_adopt(0, 0, &feed) == -ENOMEM);
    fail_alloc_never();
    CHECK(pl_feed_adopt(0, 0, &feed) < 0);
    int after = dup(0);
    close(after);
    CHECK(before == after);
}

CHECK_MAIN(RUN(test_nameless); RUN(test_named); RUN(test_threads_and_a_reader);
           RUN(test_bad_arguments); RUN(test_named_one_keeps_its_capacity);
           RUN(test_truncated_one_is_corrupt); RUN(test_scribbled_words_are_found);
           RUN(test_no_memory_leaves_no_fd);)
