/* test_buf.c -- buf and queue: contents, costs, and every allocation failing once. */
#include "buf.h"
#include "check.h"

#include <errno.h>

static uint8_t pattern(size_t i)
{
    return (uint8_t)(i * 31 + i / 256);
}

static void fill_pattern(uint8_t *p, size_t from, size_t len)
{
    for (size_t i = 0; i < len; i++) {
        p[i] = pattern(from + i);
    }
}

static int is_pattern(const uint8_t *p, size_t from, size_t len)
{
    for (size_t i = 0; i < len; i++) {
        if (p[i] != pattern(from + i)) {
            return 0;
        }
    }
    return 1;
}

/* ---- buf ---- */

static void test_zeroed_buf_is_empty_and_holds_no_memory(void)
{
    struct buf b = {0};
    CHECK(buf_len(&b) == 0);
    CHECK(buf_append(&b, NULL, 0) == 0);
    CHECK(b.data == NULL);
    buf_fini(&b);
}

static void test_bytes_come_out_as_they_went_in(void)
{
    struct buf b = {0};
    uint8_t in[97];
    size_t put = 0, got = 0;
    for (int round = 0; round < 5000; round++) {
        fill_pattern(in, put, sizeof(in));
        CHECK(buf_append(&b, in, sizeof(in)) == 0);
        put += sizeof(in);
        size_t len = (size_t)round * 7 % (buf_len(&b) + 1);
        CHECK(is_pattern(b.data + b.start, got, buf_len(&b)));
        buf_consume(&b, len);
        got += len;
        CHECK(buf_len(&b) == put - got);
    }
    buf_fini(&b);
    CHECK(b.data == NULL && b.cap == 0 && buf_len(&b) == 0);
}

static void test_consuming_all_makes_the_whole_room_free(void)
{
    struct buf b = {0};
    CHECK(buf_append(&b, (const uint8_t *)"hello", 5) == 0);
    uint8_t *memory = b.data;
    buf_consume(&b, 5);
    CHECK(b.start == 0 && b.end == 0 && b.data == memory);
    CHECK(buf_reserve(&b, b.cap) == 0 && b.data == memory);
    buf_fini(&b);
}

static void test_live_bytes_stay_while_fewer_are_dead(void)
{
    struct buf b = {0};
    uint8_t in[256] = {0};
    CHECK(buf_append(&b, in, 256) == 0);
    buf_consume(&b, 100);
    CHECK(buf_reserve(&b, 50) == 0);
    CHECK(b.start == 100); /* 156 live: moving them was not paid for */
    buf_consume(&b, 78);
    CHECK(buf_reserve(&b, b.cap - b.end + 1) == 0);
    CHECK(b.start == 0 && buf_len(&b) == 78);
    buf_fini(&b);
}

static void test_a_byte_at_a_time_allocates_logarithmically(void)
{
    struct buf b = {0};
    unsigned long before = allocs_seen;
    for (size_t i = 0; i < 1 << 20; i++) {
        uint8_t byte = pattern(i);
        CHECK(buf_append(&b, &byte, 1) == 0);
    }
    CHECK(allocs_seen - before < 20);
    CHECK(is_pattern(b.data, 0, 1 << 20));
    buf_fini(&b);
}

static void test_steady_stream_needs_no_memory_after_its_start(void)
{
    struct buf b = {0};
    uint8_t in[1000] = {0};
    CHECK(buf_append(&b, in, 700) == 0);
    for (int i = 0; i < 10; i++) {
        CHECK(buf_append(&b, in, 1000) == 0);
        buf_consume(&b, 1000);
    }
    unsigned long before = allocs_seen;
    for (int i = 0; i < 10000; i++) {
        CHECK(buf_append(&b, in, 1000) == 0);
        buf_consume(&b, 1000);
    }
    CHECK(allocs_seen == before);
    CHECK(b.cap <= 16384);
    buf_fini(&b);
}

static void test_append_without_memory_changes_nothing(void)
{
    struct buf b = {0};
    uint8_t in[600] = {0};
    fail_alloc_after(0);
    CHECK(buf_append(&b, in, 1) == -ENOMEM);
    CHECK(b.data == NULL && buf_len(&b) == 0);
    fail_alloc_never();
    fill_pattern(in, 0, 10);
    CHECK(buf_append(&b, in, 10) == 0);
    fail_alloc_after(0);
    CHECK(buf_append(&b, in, 600) == -ENOMEM);
    CHECK(buf_len(&b) == 10 && is_pattern(b.data + b.start, 0, 10));
    buf_fini(&b);
}

static void test_impossible_reserve_is_out_of_memory(void)
{
    struct buf b = {0};
    CHECK(buf_reserve(&b, SIZE_MAX) == -ENOMEM);
    CHECK(buf_append(&b, (const uint8_t *)"x", 1) == 0);
    CHECK(buf_reserve(&b, SIZE_MAX) == -ENOMEM);
    CHECK(buf_reserve(&b, (size_t)PTRDIFF_MAX) == -ENOMEM);
    CHECK(buf_len(&b) == 1 && b.data[b.start] == 'x');
    buf_fini(&b);
}

/* ---- queue ---- */

/* Does the queue hold bytes from..from+len of the pattern, in chunks none of which is empty? */
static int queue_holds(const struct queue *q, size_t from, size_t len)
{
    struct iovec iov[64];
    int n = queue_iov(q, iov, 64);
    size_t seen = 0;
    for (int i = 0; i < n; i++) {
        if (iov[i].iov_len == 0 || !is_pattern(iov[i].iov_base, from + seen, iov[i].iov_len)) {
            return 0;
        }
        seen += iov[i].iov_len;
    }
    return seen == len && q->len == len;
}

static int push_pattern(struct queue *q, struct chunk_pool *pool, size_t from, size_t len)
{
    uint8_t *bytes = __real_malloc(len + 1);
    fill_pattern(bytes, from, len);
    size_t cut = len / 3;
    struct span spans[3] = {{bytes, cut}, {NULL, 0}, {bytes + cut, len - cut}};
    int rc = queue_push(q, pool, spans, 3);
    free(bytes);
    return rc;
}

static void test_pushed_spans_come_out_in_order(void)
{
    struct queue q = {0};
    struct chunk_pool pool = {0};
    size_t put = 0, got = 0;
    for (size_t round = 0; round < 3000; round++) {
        size_t len = round * 13 % 977 + (round % 500 == 0 ? 20000 : 0);
        CHECK(push_pattern(&q, &pool, put, len) == 0);
        put += len;
        size_t popped = round * 17 % (q.len + 1);
        queue_pop(&q, &pool, popped);
        got += popped;
        CHECK(queue_holds(&q, got, put - got));
    }
    queue_pop(&q, &pool, q.len);
    CHECK(q.head == NULL && q.tail == NULL && q.len == 0);
    CHECK(queue_iov(&q, NULL, 0) == 0);
    pool_fini(&pool);
    CHECK(pool.free == NULL && pool.count == 0);
}

static void test_small_pushes_share_a_chunk(void)
{
    struct queue q = {0};
    struct chunk_pool pool = {0};
    struct iovec iov[2];
    for (size_t i = 0; i < CHUNK_BYTES; i++) {
        CHECK(push_pattern(&q, &pool, i, 1) == 0);
    }
    CHECK(queue_iov(&q, iov, 2) == 1);
    CHECK(iov[0].iov_len == CHUNK_BYTES);
    CHECK(push_pattern(&q, &pool, CHUNK_BYTES, 1) == 0);
    CHECK(queue_iov(&q, iov, 2) == 2);
    queue_fini(&q, &pool);
    pool_fini(&pool);
}

static void test_large_push_fills_the_tail_and_adds_one_exact_chunk(void)
{
    struct queue q = {0};
    struct chunk_pool pool = {0};
    struct iovec iov[4];
    CHECK(push_pattern(&q, &pool, 0, 100) == 0);
    unsigned long before = allocs_seen;
    CHECK(push_pattern(&q, &pool, 100, 1000000) == 0);
    CHECK(allocs_seen - before == 1);
    CHECK(queue_iov(&q, iov, 4) == 2);
    CHECK(iov[0].iov_len == CHUNK_BYTES);
    CHECK(iov[1].iov_len == 1000100 - CHUNK_BYTES);
    CHECK(q.tail->cap == iov[1].iov_len);
    CHECK(queue_holds(&q, 0, 1000100));
    queue_fini(&q, &pool);
    CHECK(pool.count == 1); /* the large one is not kept */
    pool_fini(&pool);
}

static void test_iov_is_bounded_by_max(void)
{
    struct queue q = {0};
    struct chunk_pool pool = {0};
    struct iovec iov[3] = {{0}};
    for (size_t i = 0; i < 5; i++) {
        CHECK(push_pattern(&q, &pool, i * CHUNK_BYTES, CHUNK_BYTES) == 0);
    }
    CHECK(queue_iov(&q, iov, 2) == 2);
    CHECK(iov[2].iov_base == NULL);
    CHECK(queue_iov(&q, iov, 0) == 0);
    queue_fini(&q, &pool);
    pool_fini(&pool);
}

static void test_chunks_are_reused_from_the_pool(void)
{
    struct queue q = {0};
    struct chunk_pool pool = {0};
    CHECK(push_pattern(&q, &pool, 0, 10) == 0);
    queue_pop(&q, &pool, 10);
    unsigned long before = allocs_seen;
    for (int i = 0; i < 1000; i++) {
        CHECK(push_pattern(&q, &pool, 0, CHUNK_BYTES) == 0);
        queue_pop(&q, &pool, CHUNK_BYTES);
    }
    CHECK(allocs_seen == before);
    CHECK(pool.count == 1);
    pool_fini(&pool);
}

static void test_pool_keeps_a_bounded_number(void)
{
    struct queue q = {0};
    struct chunk_pool pool = {0};
    for (size_t i = 0; i < POOL_CHUNKS_MAX + 10; i++) {
        CHECK(push_pattern(&q, &pool, i * CHUNK_BYTES, CHUNK_BYTES) == 0);
    }
    queue_fini(&q, &pool);
    CHECK(pool.count == POOL_CHUNKS_MAX);
    pool_fini(&pool);
}

static void test_push_without_memory_queues_nothing(void)
{
    struct queue q = {0};
    struct chunk_pool pool = {0};
    fail_alloc_after(0);
    CHECK(push_pattern(&q, &pool, 0, 1) == -ENOMEM);
    CHECK(q.head == NULL && q.len == 0);
    fail_alloc_never();
    CHECK(push_pattern(&q, &pool, 0, 100) == 0);
    fail_alloc_after(0);
    CHECK(push_pattern(&q, &pool, 100, CHUNK_BYTES) == -ENOMEM);
    CHECK(push_pattern(&q, &pool, 100, 100 * CHUNK_BYTES) == -ENOMEM);
    CHECK(queue_holds(&q, 0, 100));
    CHECK(push_pattern(&q, &pool, 100, CHUNK_BYTES - 100) == 0); /* fits: needs no memory */
    CHECK(queue_holds(&q, 0, CHUNK_BYTES));
    queue_fini(&q, &pool);
    pool_fini(&pool);
}

static void test_lengths_that_overflow_are_out_of_memory(void)
{
    struct queue q = {0};
    struct chunk_pool pool = {0};
    struct span spans[2] = {{(const uint8_t *)"x", SIZE_MAX}, {(const uint8_t *)"y", 2}};
    CHECK(queue_push(&q, &pool, spans, 2) == -ENOMEM);
    CHECK(q.head == NULL && q.len == 0);
}

static void test_empty_push_takes_no_memory(void)
{
    struct queue q = {0};
    struct chunk_pool pool = {0};
    struct span none = {NULL, 0};
    CHECK(queue_push(&q, &pool, &none, 1) == 0);
    CHECK(queue_push(&q, &pool, NULL, 0) == 0);
    CHECK(q.head == NULL && q.len == 0);
}

CHECK_MAIN(
    RUN(test_zeroed_buf_is_empty_and_holds_no_memory);
    RUN(test_bytes_come_out_as_they_went_in);
    RUN(test_consuming_all_makes_the_whole_room_free);
    RUN(test_live_bytes_stay_while_fewer_are_dead);
    RUN(test_a_byte_at_a_time_allocates_logarithmically);
    RUN(test_steady_stream_needs_no_memory_after_its_start);
    RUN(test_append_without_memory_changes_nothing);
    RUN(test_impossible_reserve_is_out_of_memory);
    RUN(test_pushed_spans_come_out_in_order);
    RUN(test_small_pushes_share_a_chunk);
    RUN(test_large_push_fills_the_tail_and_adds_one_exact_chunk);
    RUN(test_iov_is_bounded_by_max);
    RUN(test_chunks_are_reused_from_the_pool);
    RUN(test_pool_keeps_a_bounded_number);
    RUN(test_push_without_memory_queues_nothing);
    RUN(test_lengths_that_overflow_are_out_of_memory);
    RUN(test_empty_push_takes_no_memory);)
