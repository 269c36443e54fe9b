/* test_frame.c -- framing rules, each case whole, a byte at a time and cut at every place.
 *
 * A case is a stream and what it must say: every message with '|' behind it, then '.' (a clean end of
 * stream), '?' (incomplete), 'L' (too long) or 'M' (malformed); '!' is a broken promise of frame.h.
 * Pieces are copied to the end of a block of their own, so that ASan sees a byte read too far.
 */
#include "check.h"
#include "frame.h"

#include <errno.h>

#define BYTES(s) (const uint8_t *)(s), sizeof(s) - 1
#define LINES(max) {.kind = PL_LINES, .max_size = (max)}
#define DELIM(s, max) {.kind = PL_DELIM, .sep = s, .sep_len = sizeof(s) - 1, .max_size = (max)}
#define PREFIX(w, b, max) {.kind = PL_PREFIX, .width = (w), .big = (b), .max_size = (max)}
#define VARINT(max) {.kind = PL_VARINT, .max_size = (max)}
#define FIXED(n) {.kind = PL_FIXED, .max_size = (n)}
#define NETSTRING(max) {.kind = PL_NETSTRING, .max_size = (max)}
#define STREAM_MAX 256

struct stream_case {
    struct pl_framing framing;
    const uint8_t *bytes;
    size_t len;
    const char *expected;
};

struct replay {
    const struct stream_case *of;
    size_t at;      /* bytes consumed */
    size_t scanned; /* as frame_next keeps it */
    size_t least;   /* the last hint: fewer bytes cannot make a message */
    char said[2 * STREAM_MAX];
    size_t said_len;
};

static void say(struct replay *r, const uint8_t *p, size_t len, char mark)
{
    if (len > 0 && r->said_len + len + 2 < sizeof(r->said)) {
        memcpy(r->said + r->said_len, p, len);
        r->said_len += len;
    }
    r->said[r->said_len++] = mark;
}

static char letter(int rc)
{
    switch (rc) {
    case 0: return '.';
    case PL_E_TOO_LONG: return 'L';
    case PL_E_MALFORMED: return 'M';
    case PL_E_INCOMPLETE: return '?';
    default: return '!';
    }
}

/* Cut all there is in p[0..n), and at the end of the stream what is left. 0 or the error said. */
static int cut_all(struct replay *r, const uint8_t *p, size_t n, int at_end)
{
    const struct pl_framing *f = &r->of->framing;
    struct cut cut = {0};
    int rc;

    while ((rc = frame_next(f, p, n, &r->scanned, &cut)) == 1) {
        if (cut.total < r->least || cut.total > n || r->scanned != 0) {
            say(r, NULL, 0, '!');
        }
        say(r, p + cut.head, cut.len, '|');
        p += cut.total;
        n -= cut.total;
        r->at += cut.total;
        r->least = 0;
    }
    r->least = cut.total;
    if (rc == 0 && r->least <= n) {
        say(r, NULL, 0, '!');
    }
    if (rc == 0 && at_end) {
        rc = frame_finish(f, p, n, &cut);
        if (rc == 1) {
            say(r, p + cut.head, cut.len, '|');
        }
        say(r, NULL, 0, letter(rc > 0 ? 0 : rc));
    } else if (rc < 0) {
        say(r, NULL, 0, letter(rc));
    }
    return rc;
}

/* Let the bytes before each of `stops` (ascending; the last is the end) arrive in turn. */
static int replay_says(const struct stream_case *c, const size_t *stops, size_t n)
{
    struct replay r = {.of = c};
    int rc = 0;

    for (size_t i = 0; i < n && rc >= 0; i++) {
        size_t there = stops[i] - r.at;
        uint8_t *block = __real_malloc(there + 1);
        if (there > 0) {
            memcpy(block + 1, c->bytes + r.at, there);
        }
        rc = cut_all(&r, block + 1, there, i + 1 == n);
        free(block);
    }
    if (strcmp(r.said, c->expected) != 0) {
        printf("kind %u: expected %s, got %s\n", c->framing.kind, c->expected, r.said);
        return 0;
    }
    return 1;
}

static int case_holds(const struct stream_case *c)
{
    size_t stops[STREAM_MAX];
    int good = replay_says(c, &c->len, 1);

    for (size_t i = 0; i <= c->len; i++) {
        size_t two[2] = {i, c->len};
        good = good && replay_says(c, two, 2);
        stops[i] = i;
    }
    return good && replay_says(c, stops, c->len + 1);
}

#define CHECK_CASES(cases)                                            \
    for (size_t i = 0; i < sizeof(cases) / sizeof((cases)[0]); i++) { \
        CHECK(case_holds(&(cases)[i]));                               \
    }

/* ---- next and finish ---- */

static void test_raw_gives_what_is_there(void)
{
    struct pl_framing raw = {.kind = PL_RAW};
    struct cut cut;
    size_t scanned = 0;

    CHECK(frame_next(&raw, NULL, 0, &scanned, &cut) == 0);
    CHECK(frame_next(&raw, (const uint8_t *)"abc", 3, &scanned, &cut) == 1);
    CHECK(cut.head == 0 && cut.len == 3 && cut.total == 3);
    CHECK(frame_finish(&raw, NULL, 0, &cut) == 0);
}

static void test_lines(void)
{
    static const struct stream_case cases[] = {
        {LINES(5), BYTES(""), "."},
        {LINES(5), BYTES("\n"), "|."},
        {LINES(5), BYTES("\r\n"), "|."},
        {LINES(5), BYTES("one\ntwo\r\n\nthree\n"), "one|two||three|."},
        {LINES(5), BYTES("a\rb\n"), "a\rb|."},
        {LINES(5), BYTES("a\r\r\n"), "a\r|."},
        {LINES(5), BYTES("last"), "last|."},
        {LINES(5), BYTES("a\nlast\r"), "a|last\r|."},
        {LINES(5), BYTES("12345\n12345\r\n12345"), "12345|12345|12345|."},
        {LINES(5), BYTES("ok\n123456\n"), "ok|L"},
        {LINES(5), BYTES("123456"), "L"},
        {LINES(5), BYTES("123456\r\n"), "L"},
        {LINES(5), BYTES("12345\rx\n"), "L"},
        {LINES(5), BYTES("12345\r\r\n"), "L"},
        {LINES(5), BYTES("12345\r"), "L"},
        {LINES(1), BYTES("\r\r\n"), "\r|."},
    };
    CHECK_CASES(cases);
}

static void test_delimited(void)
{
    static const struct stream_case cases[] = {
        {DELIM(";", 5), BYTES(""), "."},
        {DELIM(";", 5), BYTES("a;;bc;"), "a||bc|."},
        {DELIM(";", 5), BYTES("a;b"), "a|?"},
        {DELIM(";", 3), BYTES("123;1234;"), "123|L"},
        {DELIM(";", 3), BYTES("1234"), "L"},
        {DELIM("\r\n", 5), BYTES("a\rb\r\n\r\n\n\r\r\n"), "a\rb||\n\r|."},
        {DELIM("\r\n", 3), BYTES("123\r\n123\r"), "123|?"},
        {DELIM("\r\n", 3), BYTES("123\r\r\n"), "L"},
        {DELIM("aa", 9), BYTES("aaabaac"), "|ab|?"},
        {DELIM("aab", 9), BYTES("aabaabaaaab"), "||aa|."},
        {DELIM("aabaaab", 9), BYTES("aabaabaaab"), "aab|."},
        {DELIM("--end--", 4), BYTES("1234--end--12345--end--"), "1234|L"},
        {DELIM("--end--", 4), BYTES("----end--"), "--|."},
    };
    CHECK_CASES(cases);
}

static void test_length_prefixed(void)
{
    static const struct stream_case cases[] = {
        {PREFIX(1, 1, 5), BYTES(""), "."},
        {PREFIX(1, 1, 5), BYTES("\0\3abc\0"), "|abc||."},
        {PREFIX(1, 1, 5), BYTES("\5ab"), "?"},
        {PREFIX(1, 1, 5), BYTES("\1a\6"), "a|L"},
        {PREFIX(2, 1, 5), BYTES("\0\5abcde\0"), "abcde|?"},
        {PREFIX(2, 0, 5), BYTES("\5\0abcde\0\0"), "abcde||."},
        {PREFIX(2, 0, 5), BYTES("\0\1"), "L"},
        {PREFIX(4, 1, 5), BYTES("\0\0\0\2ab\0\0\0\0"), "ab||."},
        {PREFIX(4, 0, 5), BYTES("\2\0\0\0ab\1\0\0\0"), "ab|?"},
        {PREFIX(4, 1, 5), BYTES("\xff\xff\xff\xff"), "L"},
        {PREFIX(8, 1, 5), BYTES("\0\0\0\0\0\0\0\1a"), "a|."},
        {PREFIX(8, 0, 5), BYTES("\1\0\0\0\0\0\0\0a"), "a|."},
        {PREFIX(8, 1, 5), BYTES("\xff\xff\xff\xff\xff\xff\xff\xff"), "L"},
        {PREFIX(8, 0, (uint64_t)1 << 40), BYTES("\xf8\xff\xff\xff\xff\xff\xff\xff"), "L"},
        {PREFIX(8, 1, (uint64_t)1 << 40), BYTES("\0\0\1\0\0\0\0\0"), "?"},
        {PREFIX(8, 1, (uint64_t)1 << 40), BYTES("\0\0\1\0\0\0\0\1"), "L"},
    };
    CHECK_CASES(cases);
}

static void test_varint(void)
{
    static const struct stream_case cases[] = {
        {VARINT(5), BYTES(""), "."},
        {VARINT(5), BYTES("\0\3abc\5abcde"), "|abc|abcde|."},
        {VARINT(5), BYTES("\2a"), "?"},
        {VARINT(5), BYTES("\6"), "L"},
        {VARINT(5), BYTES("\x80"), "?"},
        {VARINT(5), BYTES("\x81\x80\0a"),
         "a|."},
        {VARINT(128), BYTES("\x80\x01"), "?"},
        {VARINT(127), BYTES("\x80\x01"), "L"},
        {VARINT(5), BYTES("\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"), "L"},
        {VARINT(5), BYTES("\x80\x80\x80\x80\x80\x80\x80\x80\x80\x00"), "|."},
        {VARINT(5), BYTES("\xff\xff\xff\xff\xff\xff\xff\xff\xff\x02"), "M"},
        {VARINT(5), BYTES("\1a\x80\x80\x80\x80\x80\x80\x80\x80\x80\x80\x00"), "a|M"},
    };
    CHECK_CASES(cases);
}

static void test_fixed_size(void)
{
    static const struct stream_case cases[] = {
        {FIXED(3), BYTES(""), "."},
        {FIXED(3), BYTES("abcdef"), "abc|def|."},
        {FIXED(3), BYTES("abcde"), "abc|?"},
        {FIXED(1), BYTES("abc"), "a|b|c|."},
    };
    CHECK_CASES(cases);
}

static void test_netstring(void)
{
    static const struct stream_case cases[] = {
        {NETSTRING(20), BYTES(""), "."},
        {NETSTRING(20), BYTES("0:,12:hello world!,1:x,"), "|hello world!|x|."},
        {NETSTRING(20), BYTES("3:a,b,"), "a,b|."},
        {NETSTRING(20), BYTES("3:abc"), "?"},
        {NETSTRING(20), BYTES("1"), "?"},
        {NETSTRING(20), BYTES("3:abc;"), "M"},
        {NETSTRING(20), BYTES(":,"), "M"},
        {NETSTRING(20), BYTES("x"), "M"},
        {NETSTRING(20), BYTES("0:,-1:,"), "|M"},
        {NETSTRING(20), BYTES("00:,"), "M"},
        {NETSTRING(20), BYTES("01:a,"), "M"},
        {NETSTRING(20), BYTES("1 :a,"), "M"},
        {NETSTRING(20), BYTES("20:12345678901234567890,"), "12345678901234567890|."},
        {NETSTRING(20), BYTES("21:"), "L"},
        {NETSTRING(20), BYTES("21x"), "L"},
        {NETSTRING(20), BYTES("18446744073709551617:a,"), "L"}, /* 2^64 + 1 */
        {NETSTRING(20), BYTES("99999999999999999999999999"), "L"},
        {NETSTRING((uint64_t)1 << 40), BYTES("99999999999999999999999999"), "L"},
    };
    CHECK_CASES(cases);
}

/* A terminator search that starts anew each time would read 2^39 bytes here. */
static void test_search_is_linear_a_byte_at_a_time(void)
{
    static const struct pl_framing framings[] = {LINES(1 << 20), DELIM("\r\n", 1 << 20)};
    size_t n = 1 << 20;
    uint8_t *p = calloc(1, n);
    struct cut cut;

    CHECK(p);
    for (size_t i = 0; i < 2; i++) {
        size_t scanned = 0, before = 0;
        for (size_t have = 1; have <= n; have++) {
            int rc = frame_next(&framings[i], p, have, &scanned, &cut);
            before += rc != 0 || have - scanned > 1; /* what the next search reads again */
        }
        CHECK(before == 0);
    }
    free(p);
}

/* ---- wrap and check ---- */

static int wraps(const struct pl_framing *f, const char *payload, size_t len, const char *head,
                 const char *tail)
{
    struct pl_wrap w;
    return pl_framing_wrap(f, (const uint8_t *)payload, len, &w) == 0 &&
           w.head_len == strlen(head) && memcmp(w.head, head, w.head_len) == 0 &&
           w.tail_len == strlen(tail) && memcmp(w.tail, tail, w.tail_len) == 0;
}

static int refuses(const struct pl_framing *f, const char *payload, size_t len)
{
    struct pl_wrap w;
    return pl_framing_wrap(f, (const uint8_t *)payload, len, &w);
}

static void test_wrap_puts_head_and_tail_around(void)
{
    static const struct pl_framing raw = {.kind = PL_RAW}, lines = LINES(5), semi = DELIM(";", 5),
                                   big = PREFIX(4, 1, 1 << 30), little = PREFIX(2, 0, 1 << 30),
                                   varint = VARINT(1 << 30), fixed = FIXED(3),
                                   net = NETSTRING(1 << 30);
    CHECK(wraps(&raw, "abc", 3, "", ""));
    CHECK(wraps(&raw, NULL, 0, "", ""));
    CHECK(wraps(&lines, "a\rb", 3, "", "\n"));
    CHECK(wraps(&lines, "ab\r", 3, "", "\r\n"));
    CHECK(wraps(&lines, NULL, 0, "", "\n"));
    CHECK(wraps(&semi, "abc", 3, "", ";"));
    CHECK(wraps(&semi, NULL, 0, "", ";"));
    CHECK(wraps(&big, NULL, 0x01020304, "\1\2\3\4", ""));
    CHECK(wraps(&little, NULL, 0x0102, "\2\1", ""));
    CHECK(wraps(&varint, NULL, 300, "\xac\x02", ""));
    CHECK(wraps(&varint, NULL, 127, "\x7f", ""));
    CHECK(wraps(&varint, NULL, 128, "\x80\x01", ""));
    CHECK(wraps(&fixed, "abc", 3, "", ""));
    CHECK(wraps(&net, NULL, 0, "0:", ","));
    CHECK(wraps(&net, NULL, 9, "9:", ","));
    CHECK(wraps(&net, NULL, 10, "10:", ","));
    CHECK(wraps(&net, NULL, 1000200, "1000200:", ","));
}

static void test_wrap_refuses_what_could_not_be_cut_again(void)
{
    static const struct pl_framing lines = LINES(5), crlf = DELIM("\r\n", 5), aa = DELIM("aa", 5),
                                   border = DELIM("abcab", 9), byte = PREFIX(1, 1, 1000),
                                   quad = PREFIX(4, 0, (uint64_t)1 << 40), fixed = FIXED(3),
                                   net = NETSTRING(10), crcrlf = DELIM("\r\r\n", 5);
    CHECK(refuses(&lines, "a\nb", 3) == PL_E_TERMINATOR);
    CHECK(refuses(&lines, "123456", 6) == PL_E_TOO_LONG);
    CHECK(refuses(&crlf, "\r\n", 2) == PL_E_TERMINATOR);
    CHECK(refuses(&crlf, "a\r", 2) == 0);
    CHECK(refuses(&crcrlf, "\r", 1) == 0);
    CHECK(refuses(&aa, "a", 1) == PL_E_TERMINATOR);
    CHECK(refuses(&aa, "ba", 2) == PL_E_TERMINATOR);
    CHECK(refuses(&aa, "ab", 2) == 0);
    CHECK(refuses(&border, "xabc", 4) == PL_E_TERMINATOR);
    CHECK(refuses(&border, "xab", 3) == 0);
    CHECK(refuses(&byte, NULL, 255) == 0);
    CHECK(refuses(&byte, NULL, 256) == PL_E_RANGE);
    CHECK(refuses(&byte, NULL, 1001) == PL_E_TOO_LONG);
    CHECK(refuses(&quad, NULL, UINT32_MAX) == 0);
    CHECK(refuses(&quad, NULL, (size_t)UINT32_MAX + 1) == PL_E_RANGE);
    CHECK(refuses(&fixed, "ab", 2) == PL_E_SIZE);
    CHECK(refuses(&fixed, "abcd", 4) == PL_E_SIZE);
    CHECK(refuses(&net, NULL, 11) == PL_E_TOO_LONG);
}

static void test_check_tells_usable_from_unusable(void)
{
    static const struct pl_framing good[] = {
        {.kind = PL_RAW},
        LINES(1),
        DELIM(";", 1),
        PREFIX(1, 0, 1),
        PREFIX(8, 1, 1000),
        VARINT(1),
        FIXED(1),
        NETSTRING((uint64_t)1 << 40),
    };
    static const struct pl_framing bad[] = {
        {.kind = 7, .max_size = 1},
        LINES(0),
        DELIM("", 1),
        PREFIX(0, 0, 1),
        PREFIX(3, 0, 1),
        {.kind = PL_DELIM, .sep_len = 65, .max_size = 1},
        VARINT(0),
        FIXED(0),
        NETSTRING(((uint64_t)1 << 40) + 1),
        FIXED(UINT64_MAX),
    };
    for (size_t i = 0; i < sizeof(good) / sizeof(good[0]); i++) {
        CHECK(pl_framing_check(&good[i]) == 0);
    }
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        CHECK(pl_framing_check(&bad[i]) == -EINVAL);
    }
}

CHECK_MAIN(
    RUN(test_raw_gives_what_is_there);
    RUN(test_lines);
    RUN(test_delimited);
    RUN(test_length_prefixed);
    RUN(test_varint);
    RUN(test_fixed_size);
    RUN(test_netstring);
    RUN(test_search_is_linear_a_byte_at_a_time);
    RUN(test_wrap_puts_head_and_tail_around);
    RUN(test_wrap_refuses_what_could_not_be_cut_again);
    RUN(test_check_tells_usable_from_unusable);)
