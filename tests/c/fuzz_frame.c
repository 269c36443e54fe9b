/* fuzz_frame.c -- a stream says the same whole and in pieces, and what was wrapped is cut again.
 *
 * With clang this is a libFuzzer target. With -DFUZZ_STANDALONE the program drives itself:
 *
 *     fuzz_frame 60        random streams for 60 seconds
 *     fuzz_frame FILE...   replay inputs, such as the crash file that either one leaves behind
 *
 * An input is HEADER bytes that choose the framing and the pieces, and then the stream.
 */
#include "pyloop.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define HEADER 8
#define STREAM_MAX 4096
#define PIECE_MAX 40

struct said { /* what a stream said: how many messages, a digest of them, how it ended */
    uint64_t messages, digest;
    int end;
};

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void require(int cond, const char *what)
{
    if (!cond) {
        fprintf(stderr, "fuzz_frame: %s\n", what);
        abort();
    }
}

static uint64_t random_next(uint64_t *state) /* xorshift64 */
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

static void choose_framing(const uint8_t *header, struct pl_framing *f)
{
    static const uint16_t widths[] = {1, 2, 4, 8};
    static const char *const seps[] = {";", "\r\n", "aa", "aab", "aabaa", "\n\n", "abcabd", ",:,:"};
    const char *sep = seps[header[2] % 8];

    memset(f, 0, sizeof(*f));
    f->kind = header[0] % 7;
    f->max_size = header[1] < 200 ? header[1] / 2 + 1u : (uint64_t)1 << (header[1] - 200) % 41;
    f->width = f->kind == PL_PREFIX ? widths[header[2] % 4] : 0;
    f->big = header[3] & 1;
    if (f->kind == PL_DELIM) {
        f->sep_len = (uint8_t)strlen(sep);
        memcpy(f->sep, sep, f->sep_len);
    }
    require(pl_framing_check(f) == 0, "chose an unusable framing");
}

static void digest(struct said *s, const uint8_t *p, size_t len)
{
    for (size_t i = 0; i < len; i++) {
        s->digest = (s->digest ^ p[i]) * 0x100000001b3u;
    }
}

/* Cut all that is there. 0, or how the stream ended. */
static int cut_all(struct pl_reader *r, const struct pl_framing *f, int at_end, struct said *s)
{
    const uint8_t *p;
    size_t len;
    int rc;

    while ((rc = (at_end ? pl_reader_finish : pl_reader_next)(r, f, &p, &len)) == 1) {
        digest(s, p, len);
        if (f->kind != PL_RAW) { /* Raw promises the bytes, not where they are cut */
            digest(s, (const uint8_t *)&len, sizeof(len));
            s->messages++;
        }
        require(len <= f->max_size || f->kind == PL_RAW, "message over max_size");
    }
    return rc;
}

static void put(struct pl_reader *r, const uint8_t *p, size_t len, int by_reserve)
{
    if (!by_reserve) {
        require(pl_reader_feed(r, p, len) == 0, "feed failed");
        return;
    }
    uint8_t *room = pl_reader_reserve(r, len + 3);
    require(room != NULL, "reserve failed");
    if (len > 0) {
        memcpy(room, p, len);
    }
    require(pl_reader_commit(r, len) == 0, "commit failed");
}

/* Let the stream arrive in random pieces of at most `most` bytes. */
static struct said play(const struct pl_framing *f, const uint8_t *p, size_t n, size_t most,
                        uint64_t seed)
{
    struct pl_reader *r = pl_reader_new();
    struct said s = {0, 0xcbf29ce484222325u, 0};

    require(r != NULL, "no reader");
    while (s.end == 0 && n > 0) {
        uint64_t random = random_next(&seed);
        size_t len = most >= n ? n : (size_t)(random >> 8) % (most + 1);
        put(r, p, len, random & 1);
        p += len;
        n -= len;
        s.end = cut_all(r, f, 0, &s);
    }
    if (s.end == 0) {
        s.end = cut_all(r, f, 1, &s);
    }
    pl_reader_free(r);
    return s;
}

/* What wrap lets pass is cut as it was; what it refuses for its terminator would not have been. */
static void check_wrap(const struct pl_framing *f, const uint8_t *p, size_t n)
{
    struct pl_reader *r = pl_reader_new();
    struct pl_wrap w;
    const uint8_t *got;
    size_t len;
    int refused = pl_framing_wrap(f, p, n, &w);

    if (refused == PL_E_TERMINATOR) { /* nothing was filled in */
        w.tail_len = f->kind == PL_LINES ? 1 : f->sep_len;
        memcpy(w.tail, f->kind == PL_LINES ? (const uint8_t *)"\n" : f->sep, w.tail_len);
        w.head_len = 0;
    } else if (refused < 0 || f->kind == PL_RAW) {
        pl_reader_free(r);
        return;
    }
    put(r, w.head, w.head_len, 0);
    put(r, p, n, 0);
    put(r, w.tail, w.tail_len, 0);
    int same = pl_reader_next(r, f, &got, &len) == 1 && pl_reader_len(r) == 0 && len == n &&
               (n == 0 || memcmp(got, p, n) == 0);
    require(same == (refused == 0), "wrap and cut do not agree");
    pl_reader_free(r);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct pl_framing f;
    uint64_t seed = 88172645463325252u;

    if (size < HEADER) {
        return 0;
    }
    choose_framing(data, &f);
    seed ^= (uint64_t)data[4] << 40 ^ (uint64_t)data[5] << 20 ^ data[6];
    const uint8_t *p = data + HEADER;
    size_t n = size - HEADER;
    struct said whole = play(&f, p, n, SIZE_MAX, seed);
    struct said bytes = play(&f, p, n, 1, seed);
    struct said pieces = play(&f, p, n, 1 + data[7] % PIECE_MAX, seed);
    require(bytes.messages == whole.messages && bytes.end == whole.end &&
                bytes.digest == whole.digest,
            "a byte at a time it says something else than whole");
    require(pieces.messages == whole.messages && pieces.end == whole.end &&
                pieces.digest == whole.digest,
            "in pieces it says something else than whole");
    check_wrap(&f, p, n < 200 ? n : 200);
    return 0;
}

#ifdef FUZZ_STANDALONE

/* Bytes that mean something to some framing, now and then any byte. */
static size_t random_input(uint8_t *to, uint64_t *seed)
{
    static const char telling[] =
        "\n\n\r\r\naaaabbcd;;::,,0011223456789\0\0\0\0\1\1\2\2\3\4\5\x80\xff";
    uint64_t span = random_next(seed) % 8 ? 100 : STREAM_MAX;
    size_t n = HEADER + (size_t)(random_next(seed) % span);

    for (size_t i = 0; i < n; i++) {
        uint64_t r = random_next(seed) >> 8;
        int any = i < HEADER || r % 16 == 0;
        to[i] = (uint8_t)(any ? r >> 8 : (unsigned char)telling[(r >> 8) % sizeof(telling)]);
    }
    return n;
}

static uint8_t input[HEADER + STREAM_MAX];
static size_t input_len;

/* SIGABRT, from require and (see below) from the sanitizers: leave the input behind. */
static void keep_input(int number)
{
    FILE *out = fopen("crash-last-input", "wb");

    if (out) {
        fwrite(input, 1, input_len, out);
        fclose(out);
    }
    signal(number, SIG_DFL);
    raise(number);
}

const char *__asan_default_options(void);
const char *__ubsan_default_options(void);

const char *__asan_default_options(void)
{
    return "abort_on_error=1:handle_abort=0";
}

const char *__ubsan_default_options(void)
{
    return "abort_on_error=1:print_stacktrace=1";
}

/* A block of the input's exact size shows ASan a byte read too far. */
static void run_input(void)
{
    uint8_t *exact = malloc(input_len + 1);

    require(exact != NULL, "no memory");
    memcpy(exact + 1, input, input_len);
    LLVMFuzzerTestOneInput(exact + 1, input_len);
    free(exact);
}

static void run_random(long seconds)
{
    uint64_t start = (uint64_t)time(NULL) * 2654435761u | 1, seed = start, runs = 0;
    time_t end = time(NULL) + seconds;

    for (; time(NULL) < end; runs++) {
        input_len = random_input(input, &seed);
        run_input();
    }
    printf("%llu inputs, seed %llu\n", (unsigned long long)runs, (unsigned long long)start);
}

static int replay(const char *name)
{
    FILE *in = fopen(name, "rb");

    if (!in) {
        perror(name);
        return 1;
    }
    input_len = fread(input, 1, sizeof(input), in);
    fclose(in);
    run_input();
    return 0;
}

int main(int argc, char **argv)
{
    int failed = 0;
    char *rest;
    long seconds = argc > 1 ? strtol(argv[1], &rest, 10) : 10;

    signal(SIGABRT, keep_input);
    if (argc <= 2 && (argc == 1 || *rest == 0)) {
        run_random(seconds);
        return 0;
    }
    for (int i = 1; i < argc; i++) {
        failed |= replay(argv[i]);
    }
    return failed;
}

#endif
