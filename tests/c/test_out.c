/* test_out.c -- pieces of a mapping in a queue, an outbox and a conn: sent as they are, counted,
 * let go of, and never wrong when the file is truncated. */
#include <stdbool.h>

#include "loop_rig.h"
#include "out.h"

#define FILE_BYTES 300000

static struct pl_mapping *m;
static int file;
static char got[2 * FILE_BYTES];
static uint8_t expected[FILE_BYTES];

static int map_open(void)
{
    char path[] = "/tmp/test_out_XXXXXX";
    file = mkstemp(path);
    unlink(path);
    for (size_t i = 0; i < sizeof expected; i++)
        expected[i] = (uint8_t)(i * 7 + i / 251);
    if (write(file, expected, sizeof expected) != sizeof expected)
        return -EIO;
    return pl_mapping_new(file, 0, FILE_BYTES, PL_MAP_SHARED, &m);
}

static void map_close(void)
{
    pl_mapping_release(m);
    close(file);
}

static size_t take_all(int fd)
{
    size_t len = 0;
    for (ssize_t n; (n = take(fd, got + len, sizeof got - len)) > 0; len += (size_t)n)
        continue;
    return len;
}

static int is_open(int fd) { return fcntl(fd, F_GETFD) >= 0; }

/* ---- queue ---- */

static void test_pieces_keep_their_place_among_bytes(void)
{
    struct queue q = {0};
    struct chunk_pool pool = {0};
    struct iovec iov[8];
    const struct span bytes = {(const uint8_t *)"ab", 2};
    const struct span around[2] = {{(const uint8_t *)"<", 1}, {(const uint8_t *)">", 1}};
    CHECK(map_open() == 0);
    CHECK(queue_push(&q, &pool, &bytes, 1) == 0);
    CHECK(queue_push_mapped(&q, &pool, around, m, 10, 100) == 0);
    CHECK(queue_push_mapped(&q, &pool, around, m, 5, 0) == 0);
    CHECK(queue_push(&q, &pool, &bytes, 1) == 0);
    CHECK(q.len == 2 + 102 + 2 + 2 && pl_mapping_queued(m) == 1);
    CHECK(queue_iov(&q, iov, 8) == 3);
    CHECK(iov[0].iov_len == 3 && memcmp(iov[0].iov_base, "ab<", 3) == 0);
    CHECK(iov[1].iov_len == 100 && iov[1].iov_base == pl_mapping_data(m) + 10);
    CHECK(iov[2].iov_len == 5 && memcmp(iov[2].iov_base, "><>ab", 5) == 0);
    queue_pop(&q, &pool, 53);
    CHECK(queue_iov(&q, iov, 8) == 2 && iov[0].iov_base == pl_mapping_data(m) + 60);
    queue_pop(&q, &pool, 51);
    CHECK(pl_mapping_queued(m) == 0 && q.len == 4);
    queue_fini(&q, &pool);
    pool_fini(&pool);
    map_close();
}

static void test_a_piece_without_memory_queues_nothing(void)
{
    struct queue q = {0};
    struct chunk_pool pool = {0};
    const struct span around[2] = {{(const uint8_t *)"<", 1}, {(const uint8_t *)">", 1}};
    CHECK(map_open() == 0);
    for (long allowed = 0; allowed < 3; allowed++) {
        fail_alloc_after(allowed);
        CHECK(queue_push_mapped(&q, &pool, around, m, 0, 10) == -ENOMEM);
        fail_alloc_never();
        CHECK(q.len == 0 && q.head == NULL && pl_mapping_queued(m) == 0);
        pool_fini(&pool);
    }
    fail_alloc_after(3);
    CHECK(queue_push_mapped(&q, &pool, around, m, 0, 10) == 0);
    fail_alloc_never();
    CHECK(queue_push_mapped(&q, &pool, around, m, 0, SIZE_MAX / 2) == -ENOMEM);
    CHECK(q.len == 12);
    queue_fini(&q, &pool);
    pool_fini(&pool);
    map_close();
}

/* ---- outbox ---- */

static void test_an_outbox_sends_what_it_was_given(void)
{
    int fds[2];
    struct pl_wrap wrap = {.head = "<<", .head_len = 2, .tail = ">", .tail_len = 1};
    struct pl_outbox *box = pl_outbox_new();
    CHECK(map_open() == 0 && socketpair(AF_UNIX, SOCK_STREAM, 0, fds) == 0);
    CHECK(pl_outbox_push(box, (const uint8_t *)"one", 3) == 0);
    CHECK(pl_outbox_push_mapped(box, &wrap, m, 0, FILE_BYTES) == 0);
    pl_mapping_data(m)[FILE_BYTES - 1] = expected[FILE_BYTES - 1] = 'z'; /* what is there at flush */
    CHECK(pl_outbox_push_mapped(box, &wrap, m, 1, FILE_BYTES) == -EINVAL);
    CHECK(pl_mapping_len(m) == FILE_BYTES && pl_mapping_queued(m) == 1);
    pl_mapping_release(m); /* the queue keeps it */
    size_t len = 0;
    while (pl_outbox_len(box)) {
        CHECK(pl_outbox_send(box, fds[0]) >= 0);
        for (ssize_t n; (n = take(fds[1], got + len, sizeof got - len)) > 0; len += (size_t)n)
            continue;
    }
    CHECK(len == 3 + 2 + FILE_BYTES + 1);
    CHECK(memcmp(got, "one<<", 5) == 0 && got[len - 1] == '>');
    CHECK(memcmp(got + 5, expected, FILE_BYTES) == 0);
    close(fds[1]);
    CHECK(pl_outbox_push(box, (const uint8_t *)"two", 3) == 0);
    CHECK(pl_outbox_send(box, fds[0]) == -EPIPE);
    pl_outbox_free(box);
    close(fds[0]);
    close(file);
}

static void test_no_byte_behind_a_new_end_is_sent(void)
{
    static const off_t sizes[] = {0, 100, 5 * 4096, 5 * 4096 + 1};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        int fds[2];
        struct pl_outbox *box = pl_outbox_new();
        CHECK(map_open() == 0 && socketpair(AF_UNIX, SOCK_STREAM, 0, fds) == 0);
        CHECK(pl_outbox_push_mapped(box, &(struct pl_wrap){0}, m, 50, 100) == 0);
        CHECK(pl_outbox_push_mapped(box, &(struct pl_wrap){0}, m, 5 * 4096, 2) == 0);
        CHECK(ftruncate(file, sizes[i]) == 0);
        CHECK(pl_outbox_send(box, fds[0]) == PL_E_TRUNCATED);
        CHECK(take(fds[1], got, 1) == -EAGAIN);
        CHECK(pl_mapping_queued(m) == 2);
        pl_outbox_clear(box);
        CHECK(pl_mapping_queued(m) == 0);
        pl_outbox_free(box);
        close(fds[0]);
        close(fds[1]);
        map_close();
    }
}

/* ---- conns ---- */

static void test_a_conn_frames_and_counts_a_piece(void)
{
    int peer, group;
    CHECK(map_open() == 0 && loop_open() == 0);
    struct pl_options o = options_of(PL_PREFIX);
    struct pl_counters counters = {0};
    o.framing.max_size = 100;
    CHECK((group = pl_group_new(loop, &o, &counters)) >= 0);
    uint64_t id = pair_open(group, &peer);
    CHECK(pl_conn_send_mapped(loop, id, m, 7, 100, 1) == 0);
    CHECK(pl_conn_send_mapped(loop, id, m, 7, 101, 1) == PL_E_TOO_LONG);
    CHECK(pl_conn_send_mapped(loop, id, m, 7, 101, 0) == 0);
    CHECK(pl_conn_send_mapped(loop, id, m, FILE_BYTES, 1, 0) == -EINVAL);
    CHECK(pl_conn_queued(loop, id) == 104 + 101 && counters.messages_out == 2);
    CHECK(pl_loop_flush(loop) == 0);
    CHECK(pl_conn_queued(loop, id) == 0 && pl_mapping_queued(m) == 0);
    CHECK(take_all(peer) == 205 && counters.bytes_out == 205);
    CHECK(memcmp(got, "\0\0\0\x64", 4) == 0 && memcmp(got + 4, expected + 7, 100) == 0);
    CHECK(memcmp(got + 104, expected + 7, 101) == 0);
    pl_conn_close(loop, id);
    CHECK(pl_conn_send_mapped(loop, id, m, 0, 1, 0) == -EPIPE && counters.dropped == 1);
    close(peer);
    loop_end();
    map_close();
}

static void test_framings_that_read_a_payload_refuse_a_piece(void)
{
    int peer;
    CHECK(map_open() == 0 && loop_open() == 0);
    for (uint32_t kind = PL_LINES; kind <= PL_DELIM; kind++) {
        uint64_t id = pair_open(group_of(kind), &peer);
        CHECK(pl_conn_send_mapped(loop, id, m, 0, 10, 1) == PL_E_PAYLOAD);
        CHECK(pl_conn_send_mapped(loop, id, m, 0, 0, 1) == PL_E_PAYLOAD);
        CHECK(pl_conn_send_mapped(loop, id, m, 0, 10, 0) == 0);
        close(peer);
    }
    loop_end();
    CHECK(pl_mapping_queued(m) == 0); /* a loop that is freed lets go */
    map_close();
}

static void test_a_truncated_piece_resets_its_conn_only(void)
{
    int peer, other;
    CHECK(map_open() == 0 && loop_open() == 0);
    int group = group_of(PL_RAW);
    uint64_t id = pair_open(group, &peer), second = pair_open(group, &other);
    CHECK(pl_conn_send_mapped(loop, id, m, 0, FILE_BYTES, 1) == 1); /* more than the kernel takes */
    CHECK(pl_mapping_queued(m) == 1 && pl_conn_queued(loop, id) > 0);
    CHECK(ftruncate(file, 4096 + 5) == 0);
    size_t len = take_all(peer);
    CHECK(len > 0 && memcmp(got, expected, len) == 0);
    CHECK(pl_conn_send_mapped(loop, second, m, 0, 4096 + 5, 1) == 0);
    int at = tick_until(PL_EV_LOST, id);
    CHECK(at >= 0 && events[at].value == PL_E_TRUNCATED);
    CHECK(pl_mapping_queued(m) == 0);
    CHECK(take_all(peer) == 0);
    CHECK(take_all(other) == 4096 + 5 && memcmp(got, expected, 4096 + 5) == 0);
    CHECK(pl_conn_queued(loop, second) == 0);
    close(peer);
    close(other);
    loop_end();
    map_close();
}

static void test_who_aborts_closes_or_forks_lets_go(void)
{
    int peer, status;
    CHECK(map_open() == 0 && loop_open() == 0);
    int group = group_of(PL_RAW);
    uint64_t id = pair_open(group, &peer);
    CHECK(pl_conn_send_mapped(loop, id, m, 0, 10, 1) == 0);
    pid_t child = fork();
    if (child == 0) { /* the parent's socket and mapping are left alone */
        int rc = pl_conn_close(loop, id);
        _exit(rc == 1 && pl_mapping_queued(m) == 0 && is_open(file) ? 0 : 1);
    }
    CHECK(waitpid(child, &status, 0) == child && status == 0);
    CHECK(pl_mapping_queued(m) == 1);
    CHECK(pl_conn_close(loop, id) == 0);
    CHECK(tick(0) >= 0);
    CHECK(take_all(peer) == 10 && memcmp(got, expected, 10) == 0);
    close(peer);
    id = pair_open(group, &peer);
    CHECK(pl_conn_send_mapped(loop, id, m, 0, 10, 1) == 0);
    CHECK(pl_conn_abort(loop, id, 0) == 0);
    CHECK(pl_mapping_queued(m) == 0 && take_all(peer) == 0);
    close(peer);
    loop_end();
    map_close();
}

static void test_pieces_count_towards_write_limit(void)
{
    int peer;
    CHECK(map_open() == 0 && loop_open() == 0);
    struct pl_options o = options_of(PL_RAW);
    o.write_limit = 20;
    uint64_t id = pair_open(pl_group_new(loop, &o, NULL), &peer);
    CHECK(pl_conn_send_mapped(loop, id, m, 0, 21, 1) == 0);
    CHECK(pl_conn_send_mapped(loop, id, m, 0, 1, 1) == PL_E_WRITE_LIMIT);
    CHECK(pl_mapping_queued(m) == 0);
    CHECK(pl_conn_send_mapped(loop, id, m, 0, 1, 1) == -ESTALE);
    close(peer);
    loop_end();
    map_close();
}

CHECK_MAIN(RUN(test_pieces_keep_their_place_among_bytes);
           RUN(test_a_piece_without_memory_queues_nothing);
           RUN(test_an_outbox_sends_what_it_was_given); RUN(test_no_byte_behind_a_new_end_is_sent);
           RUN_ON_ALL(test_a_conn_frames_and_counts_a_piece);
           RUN_ON_ALL(test_framings_that_read_a_payload_refuse_a_piece);
           RUN_ON_ALL(test_a_truncated_piece_resets_its_conn_only);
           RUN_ON_ALL(test_who_aborts_closes_or_forks_lets_go);
           RUN_ON_ALL(test_pieces_count_towards_write_limit);)
