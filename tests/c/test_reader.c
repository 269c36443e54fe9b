/* test_reader.c -- the reader: feeding, receiving into it, cutting, lending and giving back. */
#include "check.h"
#include "pyloop.h"

#include <errno.h>

static const struct pl_framing lines = {.kind = PL_LINES, .max_size = 1 << 20};
static const struct pl_framing bytes2 = {.kind = PL_FIXED, .max_size = 2};

static int feed(struct pl_reader *r, const char *text)
{
    return pl_reader_feed(r, (const uint8_t *)text, strlen(text));
}

static int next_is(struct pl_reader *r, const struct pl_framing *f, const char *text)
{
    const uint8_t *data = NULL;
    size_t len = 0;
    return pl_reader_next(r, f, &data, &len) == 1 && len == strlen(text) &&
           memcmp(data, text, len) == 0;
}

static int next_code(struct pl_reader *r, const struct pl_framing *f)
{
    const uint8_t *data;
    size_t len;
    return pl_reader_next(r, f, &data, &len);
}

static int finish_code(struct pl_reader *r, const struct pl_framing *f)
{
    const uint8_t *data;
    size_t len;
    return pl_reader_finish(r, f, &data, &len);
}

static void test_new_reader_is_empty(void)
{
    struct pl_reader *r = pl_reader_new();
    CHECK(r && pl_reader_len(r) == 0 && pl_reader_data(r) != NULL);
    CHECK(next_code(r, &lines) == 0);
    CHECK(finish_code(r, &lines) == 0);
    CHECK(pl_reader_consume(r, 0) == 0);
    CHECK(pl_reader_consume(r, 1) == -EINVAL);
    pl_reader_free(r);
    pl_reader_free(NULL);
}

static void test_messages_are_cut_across_feeds(void)
{
    struct pl_reader *r = pl_reader_new();
    CHECK(feed(r, "one\ntw") == 0);
    CHECK(next_is(r, &lines, "one"));
    CHECK(next_code(r, &lines) == 0);
    CHECK(feed(r, "o\r\n\n") == 0);
    CHECK(next_is(r, &lines, "two"));
    CHECK(next_is(r, &lines, ""));
    CHECK(next_code(r, &lines) == 0);
    CHECK(pl_reader_len(r) == 0);
    pl_reader_free(r);
}

static void test_framing_may_change_between_messages(void)
{
    struct pl_reader *r = pl_reader_new();
    struct pl_framing semi = {.kind = PL_DELIM, .sep = ";", .sep_len = 1, .max_size = 99};
    CHECK(feed(r, "a;b;c\nxy") == 0);
    CHECK(next_is(r, &semi, "a"));
    CHECK(next_is(r, &lines, "b;c"));
    CHECK(next_code(r, &lines) == 0); /* "xy" was searched for \n ... */
    CHECK(next_is(r, &bytes2, "xy"));
    CHECK(feed(r, "p;q") == 0);
    CHECK(next_code(r, &lines) == 0);
    CHECK(next_is(r, &semi, "p")); /* ... which says nothing about ; */
    pl_reader_free(r);
}

static void test_equal_framing_at_another_address_keeps_the_search(void)
{
    struct pl_reader *r = pl_reader_new();
    struct pl_framing copy = lines;
    CHECK(feed(r, "ab") == 0);
    CHECK(next_code(r, &lines) == 0);
    ((uint8_t *)(uintptr_t)pl_reader_data(r))[0] = '\n'; /* behind the mark: must not be seen */
    CHECK(next_code(r, &copy) == 0);
    pl_reader_free(r);
}

static void test_consuming_by_hand_begins_the_search_anew(void)
{
    struct pl_reader *r = pl_reader_new();
    CHECK(feed(r, "abcdef") == 0);
    CHECK(next_code(r, &lines) == 0);
    CHECK(pl_reader_consume(r, 4) == 0);
    CHECK(feed(r, "\ng") == 0);
    CHECK(next_is(r, &lines, "ef"));
    CHECK(pl_reader_len(r) == 1 && pl_reader_data(r)[0] == 'g');
    CHECK(pl_reader_consume(r, 2) == -EINVAL);
    CHECK(pl_reader_len(r) == 1);
    pl_reader_free(r);
}

static void test_reserved_room_is_filled_by_commit(void)
{
    struct pl_reader *r = pl_reader_new();
    CHECK(feed(r, "he") == 0);
    uint8_t *room = pl_reader_reserve(r, 100);
    CHECK(room);
    memcpy(room, "llo\n", 4);
    CHECK(pl_reader_commit(r, 101) == -EINVAL);
    CHECK(pl_reader_commit(r, 4) == 0);
    CHECK(pl_reader_commit(r, 1) == -EINVAL); /* the room was given back */
    CHECK(next_is(r, &lines, "hello"));
    CHECK(pl_reader_reserve(r, 0) != NULL);
    CHECK(pl_reader_commit(r, 0) == 0);
    CHECK(pl_reader_reserve(r, 10) != NULL);
    CHECK(next_code(r, &lines) == 0);
    CHECK(pl_reader_commit(r, 1) == -EINVAL);
    pl_reader_free(r);
}

static void test_a_bad_message_consumes_nothing(void)
{
    struct pl_reader *r = pl_reader_new();
    struct pl_framing brief = {.kind = PL_LINES, .max_size = 2};
    CHECK(feed(r, "ok\nlong\n") == 0);
    CHECK(next_is(r, &brief, "ok"));
    CHECK(next_code(r, &brief) == PL_E_TOO_LONG);
    CHECK(next_code(r, &brief) == PL_E_TOO_LONG);
    CHECK(finish_code(r, &brief) == PL_E_TOO_LONG);
    CHECK(pl_reader_len(r) == 5);
    CHECK(next_is(r, &lines, "long"));
    pl_reader_free(r);
}

static void test_unusable_framing_is_refused(void)
{
    struct pl_reader *r = pl_reader_new();
    struct pl_framing wide = {.kind = PL_DELIM, .sep_len = 200, .max_size = 9};
    CHECK(feed(r, "abc") == 0);
    CHECK(next_code(r, &wide) == -EINVAL);
    CHECK(next_code(r, &wide) == -EINVAL);
    CHECK(pl_reader_len(r) == 3);
    pl_reader_free(r);
}

static void test_end_of_stream(void)
{
    struct pl_reader *r = pl_reader_new();
    const uint8_t *data;
    size_t len;
    CHECK(feed(r, "a\nb\r") == 0);
    CHECK(pl_reader_finish(r, &lines, &data, &len) == 1 && len == 1 && data[0] == 'a');
    CHECK(pl_reader_finish(r, &lines, &data, &len) == 1 && len == 2 && data[1] == '\r');
    CHECK(finish_code(r, &lines) == 0);
    CHECK(feed(r, "abc") == 0);
    CHECK(finish_code(r, &bytes2) == 1);
    CHECK(finish_code(r, &bytes2) == PL_E_INCOMPLETE);
    CHECK(finish_code(r, &bytes2) == PL_E_INCOMPLETE);
    CHECK(pl_reader_len(r) == 1);
    struct pl_framing raw = {.kind = PL_RAW};
    CHECK(finish_code(r, &raw) == 1);
    CHECK(finish_code(r, &raw) == 0);
    pl_reader_free(r);
}

static void test_message_stays_valid_until_the_next_call(void)
{
    struct pl_reader *r = pl_reader_new();
    size_t n = 200000;
    uint8_t *big = malloc(n);
    const uint8_t *data;
    size_t len;
    CHECK(big);
    memset(big, 'x', n);
    big[n - 1] = '\n';
    CHECK(pl_reader_feed(r, big, n) == 0);
    CHECK(pl_reader_next(r, &lines, &data, &len) == 1);
    CHECK(len == n - 1 && memcmp(data, big, len) == 0); /* empty now, but not freed: ASan */
    free(big);
    pl_reader_free(r);
}

static void test_empty_reader_gives_large_memory_back(void)
{
    struct pl_reader *r = pl_reader_new();
    uint8_t *big = calloc(1, 200000);
    CHECK(big && pl_reader_feed(r, big, 200000) == 0);
    free(big);
    CHECK(pl_reader_consume(r, 200000) == 0);
    CHECK(next_code(r, &lines) == 0);
    unsigned long before = allocs_seen;
    CHECK(feed(r, "x") == 0);
    CHECK(allocs_seen - before == 1); /* it held none */
    CHECK(pl_reader_consume(r, 1) == 0);
    before = allocs_seen;
    CHECK(feed(r, "x") == 0);
    CHECK(allocs_seen == before); /* a little is kept */
    pl_reader_free(r);
}

static void test_receiving_large_pieces_keeps_its_memory(void)
{
    struct pl_reader *r = pl_reader_new();
    CHECK(pl_reader_reserve(r, 262144) != NULL);
    unsigned long before = allocs_seen;
    for (int i = 0; i < 100; i++) {
        CHECK(pl_reader_reserve(r, 262144) != NULL);
        CHECK(pl_reader_commit(r, 262144) == 0);
        CHECK(pl_reader_consume(r, 262144) == 0);
    }
    CHECK(allocs_seen == before);
    pl_reader_free(r);
}

static void test_short_memory_changes_nothing(void)
{
    fail_alloc_after(0);
    CHECK(pl_reader_new() == NULL);
    fail_alloc_never();
    struct pl_reader *r = pl_reader_new();
    fail_alloc_after(0);
    CHECK(feed(r, "x") == -ENOMEM);
    CHECK(pl_reader_reserve(r, 10) == NULL);
    CHECK(pl_reader_commit(r, 1) == -EINVAL);
    CHECK(pl_reader_len(r) == 0);
    fail_alloc_never();
    CHECK(feed(r, "half") == 0);
    fail_alloc_after(0);
    CHECK(pl_reader_reserve(r, 1 << 20) == NULL);
    CHECK(pl_reader_commit(r, 1) == -EINVAL);
    CHECK(pl_reader_len(r) == 4);
    fail_alloc_never();
    CHECK(feed(r, " way\n") == 0);
    CHECK(next_is(r, &lines, "half way"));
    CHECK(pl_reader_reserve(r, SIZE_MAX) == NULL);
    pl_reader_free(r);
}

CHECK_MAIN(
    RUN(test_new_reader_is_empty);
    RUN(test_messages_are_cut_across_feeds);
    RUN(test_framing_may_change_between_messages);
    RUN(test_equal_framing_at_another_address_keeps_the_search);
    RUN(test_consuming_by_hand_begins_the_search_anew);
    RUN(test_reserved_room_is_filled_by_commit);
    RUN(test_a_bad_message_consumes_nothing);
    RUN(test_unusable_framing_is_refused);
    RUN(test_end_of_stream);
    RUN(test_message_stays_valid_until_the_next_call);
    RUN(test_empty_reader_gives_large_memory_back);
    RUN(test_receiving_large_pieces_keeps_its_memory);
    RUN(test_short_memory_changes_nothing);)
