/* fuzz_feed.c -- a feed whose memory holds anything: no crash, no byte out of bounds, no endless loop.
 *
 * The input is a script: bytes to scribble into the shared memory, between publishing and reading. What is read
 * must be whole records, within the buffer. With libFuzzer, or by itself (FUZZ_STANDALONE): fuzz_feed [SECONDS] makes
 * random scripts, fuzz_feed FILE... replays. */
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "pyloop.h"

#define CAPACITY PL_FEED_LEAST
#define LINE 64
#define DATA 128

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void require(int cond, const char *what)
{
    if (!cond) {
        fprintf(stderr, "fuzz_feed: %s\n", what);
        abort();
    }
}

static void check_records(const uint8_t *copy, int64_t len)
{
    int64_t at = 0;
    while (at < len) {
        struct pl_feed_record head;
        require(len - at >= (int64_t)sizeof head, "a record's head is cut short");
        memcpy(&head, copy + at, sizeof head);
        int64_t size = (int64_t)sizeof head + head.topic_len + head.message_len;
        require(size <= len - at, "a record is cut short");
        at += (size + PL_FEED_ALIGN - 1) / PL_FEED_ALIGN * PL_FEED_ALIGN;
    }
    require(len < 0 || at == len, "a record is longer than what was read");
}

/* The words of line 0 are few, and so are most of the values that matter. */
static void scribble(struct pl_feed *feed, const uint8_t *op)
{
    off_t offset = op[1] & 1 ? LINE + 8 + op[1] / 2 % 3 * 8 : DATA + (op[1] / 2 * 256 + op[2]) % (CAPACITY - 8);
    uint64_t value = op[3] & 1 ? (uint64_t)op[4] * 16 : (uint64_t)op[4] << (op[3] / 2 % 64);
    size_t len = offset < DATA || op[3] & 128 ? 8 : 1;
    require(pwrite(pl_feed_fd(feed), &value, len, offset) >= 0, "pwrite");
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const uint8_t bytes[CAPACITY];
    struct pl_feed *feed;
    struct pl_feed_cursor cursor;
    uint8_t *copy = malloc(CAPACITY); /* of its own, so that ASan sees its end */
    require(copy && pl_feed_new(CAPACITY, &feed) == 0, "a feed");
    (void)pl_feed_seek(feed, &cursor);
    for (size_t at = 0; size - at >= 5; at += 5) {
        const uint8_t *op = data + at;
        if (op[0] % 4 == 0)
            scribble(feed, op);
        else if (op[0] % 4 == 1)
            (void)pl_feed_seek(feed, &cursor);
        else if (op[0] % 4 == 2)
            (void)pl_feed_publish(feed, bytes, op[1], bytes, (size_t)op[2] * 4);
        else
            check_records(copy, pl_feed_read(feed, &cursor, copy, op[1] & 1 ? CAPACITY : op[2]));
    }
    pl_feed_free(feed);
    free(copy);
    return 0;
}

#ifdef FUZZ_STANDALONE

static uint64_t next_random(uint64_t *seed)
{
    *seed ^= *seed << 13;
    *seed ^= *seed >> 7;
    return *seed ^= *seed << 17;
}

static int replay(const char *name)
{
    uint8_t input[4096];
    FILE *in = fopen(name, "rb");
    if (!in) {
        perror(name);
        return 1;
    }
    size_t len = fread(input, 1, sizeof input, in);
    fclose(in);
    return LLVMFuzzerTestOneInput(input, len);
}

static void run_random(long seconds)
{
    uint64_t start = (uint64_t)time(NULL) * 2654435761u | 1, seed = start, runs = 0;
    for (time_t end = time(NULL) + seconds; time(NULL) < end; runs++) {
        uint8_t input[250];
        for (size_t i = 0; i < sizeof input; i++)
            input[i] = (uint8_t)(next_random(&seed) >> 24);
        LLVMFuzzerTestOneInput(input, sizeof input);
    }
    printf("%llu inputs, seed %llu\n", (unsigned long long)runs, (unsigned long long)start);
}

int main(int argc, char **argv)
{
    int failed = 0;
    char *rest = NULL;
    long seconds = argc > 1 ? strtol(argv[1], &rest, 10) : 10;
    if (argc == 1 || *rest == 0)
        run_random(seconds);
    for (int i = 1; i < argc && *rest; i++)
        failed |= replay(argv[i]);
    return failed;
}

#endif
