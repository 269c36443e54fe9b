/* test_lent.c -- conns whose fd has another owner (PL_BORROWED), readiness, pipes, marks of one conn, and large
 * messages that go to the kernel at once. */
#include <signal.h>

#include "loop_rig.h"

#define LARGE (4 * 1024 * 1024)

static uint8_t large[LARGE], back[LARGE];

static struct pl_options marks(uint32_t flags, uint64_t high, uint64_t low)
{
    struct pl_options o = options_of(PL_RAW);
    o.flags = flags | PL_BORROWED;
    o.high_water = high;
    o.low_water = low;
    o.close_timeout = 0;
    return o;
}

static int lent_group(uint32_t flags)
{
    struct pl_options o = marks(flags, 65536, 16384);
    return pl_group_new(loop, &o, NULL);
}

static int is_open(int fd) { return fcntl(fd, F_GETFD) >= 0; }

static int conn_fd(uint64_t id) { return pl_conn_fd(loop, id); }

/* Read from the peer until there is nothing, or the end; how much is in `back` then. */
static size_t drain(int peer, size_t had)
{
    for (;;) {
        ssize_t n = read(peer, back + had, LARGE - had);
        if (n <= 0)
            return had;
        had += (size_t)n;
    }
}

static void test_lent_fd_is_never_closed_by_the_core(void)
{
    int peer, group;
    CHECK(loop_open() == 0 && (group = lent_group(0)) >= 0);
    uint64_t id = pair_open(group, &peer);
    int fd = conn_fd(id);
    CHECK(pl_conn_close(loop, id) == 2 && tick_until(PL_EV_LOST, id) >= 0 && is_open(fd));
    CHECK(put(fd, "still") && take(peer, (char *)back, 5) == 5); /* and not shut down either */
    close(fd);
    close(peer);
    id = pair_open(group, &peer);
    fd = conn_fd(id);
    CHECK(pl_conn_abort(loop, id, 0) == 0 && is_open(fd));
    close(fd);
    CHECK(take(peer, (char *)back, 5) == 0); /* an end, no reset */
    close(peer);
    id = pair_open(group, &peer);
    fd = conn_fd(id);
    loop_end();
    CHECK(is_open(fd));
    close(fd);
    close(peer);
}

static void test_accepted_fd_is_the_cores_until_it_is_lent(void)
{
    struct sockaddr_in addr;
    int group, listener = tcp_listen(&addr);
    CHECK(loop_open() == 0 && (group = lent_group(PL_NODELAY)) >= 0);
    CHECK(pl_listener_open(loop, group, listener) == 0);
    int one = tcp_connect(&addr), two = tcp_connect(&addr);
    CHECK(one >= 0 && two >= 0 && tick_until(PL_EV_OPEN, 0) == 0);
    uint64_t kept = events[0].id;
    int fd = conn_fd(kept);
    CHECK(batch_n == 2 || tick_until(PL_EV_OPEN, 0) == 0);
    uint64_t lent = events[batch_n - 1].id;
    int lent_fd = pl_conn_lend(loop, lent);
    CHECK(lent_fd == conn_fd(lent) && pl_conn_lend(loop, kept + 77) == -ESTALE);
    CHECK(pl_conn_abort(loop, kept, 0) == 0 && pl_conn_abort(loop, lent, 0) == 0);
    CHECK(!is_open(fd) && is_open(lent_fd));
    CHECK(pl_listener_close(loop, listener) == 0);
    close(lent_fd);
    close(listener);
    close(one);
    close(two);
    int native = group_of(PL_RAW), peer;
    CHECK(pl_conn_lend(loop, pair_open(native, &peer)) == -EINVAL);
    close(peer);
}

static void test_large_message_leaves_before_the_flush_and_its_rest_follows(void)
{
    int group, peer;
    CHECK(loop_open() == 0 && (group = lent_group(0)) >= 0);
    uint64_t id = pair_open(group, &peer);
    int fd = conn_fd(id);
    for (size_t i = 0; i < LARGE; i++)
        large[i] = (uint8_t)(i * 7 >> 3);
    CHECK(pl_conn_write(loop, id, large, LARGE) == 1);
    size_t had = drain(peer, 0);
    CHECK(had > 0 && had + (size_t)pl_conn_queued(loop, id) == LARGE);
    while (had < LARGE && tick(LONG_NS) >= 0)
        had = drain(peer, had);
    CHECK(memcmp(large, back, LARGE) == 0);
    CHECK(pl_conn_write(loop, id, large, 1000) == 0 && drain(peer, 0) == 0); /* small: with the flush */
    CHECK(tick(0) >= 0 && drain(peer, 0) == 1000);
    close(fd);
    close(peer);
}

static void test_large_message_takes_along_what_is_queued_before_it(void)
{
    int group, peer;
    CHECK(loop_open() == 0 && (group = lent_group(0)) >= 0);
    uint64_t id = pair_open(group, &peer);
    int fd = conn_fd(id);
    const uint64_t *sends = &pl_loop_counters(loop)->sends;
    CHECK(pl_conn_write(loop, id, large, 100) == 0 && pl_conn_write(loop, id, large + 100, 9900) == 0);
    CHECK(*sends == 1 && pl_conn_queued(loop, id) == 0 && drain(peer, 0) == 10000);
    CHECK(memcmp(large, back, 10000) == 0 && tick(0) == 0 && *sends == 1);
    CHECK(pl_conn_write(loop, id, large, 100) == 0);
    CHECK(pl_conn_write(loop, id, large + 100, LARGE - 100) == 1); /* the kernel has no room for all of it */
    size_t had = drain(peer, 0);
    CHECK(had > 100 && had + (size_t)pl_conn_queued(loop, id) == LARGE);
    while (had < LARGE && tick(LONG_NS) >= 0)
        had = drain(peer, had);
    CHECK(memcmp(large, back, LARGE) == 0);
    close(fd);
    close(peer);
}

static void test_memory_that_fails_in_the_middle_of_a_large_message_ends_the_conn(void)
{
    int group, peer;
    CHECK(loop_open() == 0 && (group = lent_group(0)) >= 0);
    for (size_t before = 0; before <= 100; before += 100) {
        uint64_t id = pair_open(group, &peer);
        int fd = conn_fd(id);
        CHECK(!before || pl_conn_write(loop, id, large, before) == 0);
        fail_alloc_after(0);
        int rc = pl_conn_write(loop, id, large, LARGE);
        fail_alloc_never();
        CHECK(rc == 0 && pl_conn_queued(loop, id) == -ESTALE);
        int at = tick_until(PL_EV_LOST, id);
        CHECK(at >= 0 && events[at].value == -ENOMEM);
        close(fd);
        close(peer);
    }
}

static void test_readiness_conn_is_told_and_receives_when_asked(void)
{
    int group, peer;
    char got[8];
    CHECK(loop_open() == 0 && (group = lent_group(0)) >= 0);
    uint64_t id = pair_open(group, &peer);
    int fd = conn_fd(id);
    CHECK(put(peer, "held") && tick_until(PL_EV_MESSAGE, id) == 0);
    CHECK(pl_conn_pause(loop, id) == 0 && pl_conn_hold(loop, 0) == 0);
    CHECK(pl_conn_readiness(loop, id, 1) == 0 && put(peer, "more") && pl_conn_resume(loop, id) == 0);
    int at = tick_until(PL_EV_MESSAGE, id); /* what was held comes first */
    CHECK(event_says(at, "held"));
    CHECK(tick_until(PL_EV_READABLE, id) >= 0 && tick_until(PL_EV_READABLE, id) >= 0);
    CHECK(pl_conn_receive(loop, id, (uint8_t *)got, 3) == 3 && memcmp(got, "mor", 3) == 0);
    CHECK(pl_conn_receive(loop, id, (uint8_t *)got, 8) == 1 && got[0] == 'e');
    CHECK(pl_conn_receive(loop, id, (uint8_t *)got, 8) == -EAGAIN);
    CHECK(shutdown(peer, SHUT_WR) == 0 && tick_until(PL_EV_READABLE, id) >= 0);
    CHECK(pl_conn_receive(loop, id, (uint8_t *)got, 8) == 0);
    CHECK(tick(0) == 0); /* the end is not told again */
    CHECK(pl_conn_close(loop, id) == 2 && tick_until(PL_EV_LOST, id) >= 0);
    CHECK(pl_conn_receive(loop, id, (uint8_t *)got, 8) == -ESTALE);
    close(fd);
    close(peer);
}

static void test_marks_of_one_conn_are_a_group_that_goes_with_it(void)
{
    int group, peer;
    CHECK(loop_open() == 0 && (group = lent_group(0)) >= 0);
    uint64_t id = pair_open(group, &peer);
    int fd = conn_fd(id);
    struct pl_options none = marks(0, 0, 0), other = marks(PL_PIPE, 10, 5);
    int strict = pl_group_new(loop, &none, NULL), wrong = pl_group_new(loop, &other, NULL);
    CHECK(pl_conn_regroup(loop, id, wrong) == -EINVAL && pl_conn_regroup(loop, id, 999) == -EINVAL);
    CHECK(pl_conn_write(loop, id, large, 100) == 0);
    CHECK(pl_conn_regroup(loop, id, strict) == 1 && pl_group_free(loop, strict) == 0);
    int at = tick_until(PL_EV_RESUME, id);
    CHECK(at >= 0 && drain(peer, 0) == 100);
    CHECK(pl_conn_write(loop, id, large, 100) == 0 && drain(peer, 0) == 100); /* all are flushed at once */
    CHECK(pl_conn_regroup(loop, id, group) == 0);
    CHECK(pl_conn_close(loop, id) == 2 && tick_until(PL_EV_LOST, id) >= 0);
    CHECK(pl_conn_regroup(loop, id, group) == -ESTALE);
    close(fd);
    close(peer);
}

static void test_closing_conn_takes_more_until_it_is_flushed(void)
{
    int group, peer;
    CHECK(loop_open() == 0 && (group = lent_group(0)) >= 0);
    uint64_t id = pair_open(group, &peer);
    int fd = conn_fd(id);
    CHECK(pl_conn_write(loop, id, large, LARGE) == 1 && pl_conn_close(loop, id) == 0);
    size_t had = 0;
    while (had < LARGE && event_at(PL_EV_RESUME, id, 0) < 0) {
        had = drain(peer, had);
        CHECK(tick(LONG_NS) >= 0);
    }
    CHECK(pl_conn_write(loop, id, (const uint8_t *)"last words", 10) == 0);
    CHECK(tick_until(PL_EV_LOST, id) >= 0);
    close(fd);
    uint8_t *end = back;
    while (had < LARGE)
        had = drain(peer, had);
    CHECK(take(peer, (char *)end, 20) == 10 && memcmp(end, "last words", 10) == 0);
    close(peer);
    id = pair_open(group, &peer);
    fd = conn_fd(id);
    CHECK(pl_conn_close(loop, id) == 2 && pl_conn_write(loop, id, large, 1) == -ESTALE); /* nothing was queued */
    close(fd);
    close(peer);
}

static uint64_t open_end(int group, int fd)
{
    uint64_t id = 0;
    return pl_conn_open(loop, group, fd, &id) == 0 ? id : 0;
}

static void test_pipe_is_written_at_once_and_read_to_its_end(void)
{
    int fds[2];
    CHECK(loop_open() == 0 && pipe(fds) == 0);
    int reads = lent_group(PL_PIPE), writes = lent_group(PL_PIPE | PL_WRITE_ONLY);
    uint64_t in = open_end(reads, fds[0]), out = open_end(writes, fds[1]);
    CHECK(in != out && pl_conn_write(loop, out, (const uint8_t *)"now", 3) == 0);
    CHECK(read(fds[0], back, 10) == 3);
    CHECK(pl_conn_write(loop, out, (const uint8_t *)"then", 4) == 0);
    CHECK(event_says(tick_until(PL_EV_MESSAGE, in), "then"));
    CHECK(pl_conn_close(loop, out) == 2 && tick_until(PL_EV_LOST, out) >= 0);
    close(fds[1]);
    CHECK(tick_until(PL_EV_EOF, in) >= 0);
    close(fds[0]);
}

static void test_reader_that_goes_ends_who_only_writes(void)
{
    int fds[2];
    signal(SIGPIPE, SIG_IGN);
    CHECK(loop_open() == 0);
    int group = lent_group(PL_PIPE | PL_WRITE_ONLY);
    for (int queued = 0; queued < 2; queued++) {
        CHECK(pipe(fds) == 0);
        uint64_t id = open_end(group, fds[1]);
        if (queued)
            CHECK(pl_conn_write(loop, id, large, LARGE) == 1);
        close(fds[0]);
        int at = tick_until(PL_EV_LOST, id);
        CHECK(at >= 0 && events[at].value == (queued ? -EPIPE : 0));
        close(fds[1]);
    }
}

static void test_writer_with_the_number_of_an_fd_that_was_ready_is_not_lost(void)
{
    int group, peers[3], fds[2], old[2];
    CHECK(loop_open() == 0 && (group = group_of(PL_RAW)) >= 0);
    for (int i = 0; i < 3; i++) {
        CHECK(pair_open(group, &peers[i]));
        CHECK(write(peers[i], large, LARGE) > 100000);
    }
    CHECK(pipe(fds) == 0 && pipe(old) == 0 && write(old[1], "x", 1) == 1);
    int number = fcntl(old[0], F_DUPFD, 100); /* what is ready last */
    CHECK(pl_watch(loop, number, PL_READ) == 0);
    CHECK(tick(LONG_NS) > 0 && event_at(PL_EV_READ, 0, 0) < 0); /* the batch is full before */
    CHECK(pl_watch(loop, number, 0) == 0 && dup2(fds[1], number) == number);
    uint64_t id = open_end(lent_group(PL_PIPE | PL_WRITE_ONLY), number);
    for (int i = 0; i < 9; i++)
        CHECK(id && tick(0) >= 0 && event_at(PL_EV_LOST, id, 0) < 0);
    close(fds[0]);
    CHECK(tick_until(PL_EV_LOST, id) >= 0);
    loop_end();
    const int all[] = {peers[0], peers[1], peers[2], fds[1], old[0], old[1], number};
    for (int i = 0; i < 7; i++)
        close(all[i]);
}

static void test_idle_time_out_goes_with_the_group_and_knows_what_left_at_once(void)
{
    int group, peer;
    CHECK(loop_open() == 0 && (group = lent_group(0)) >= 0);
    uint64_t id = pair_open(group, &peer);
    int fd = conn_fd(id);
    struct pl_options o = marks(0, 65536, 16384);
    o.idle_timeout = 1000 * MS;
    CHECK(pl_conn_regroup(loop, id, pl_group_new(loop, &o, NULL)) == 0);
    for (int i = 0; i < 5; i++) {
        pass(600 * MS);
        CHECK(pl_conn_write(loop, id, large, 10000) == 0 && drain(peer, 0) == 10000);
        CHECK(tick(0) == 0);
    }
    pass(1100 * MS);
    int at = tick_until(PL_EV_FAULT, id);
    CHECK(at >= 0 && events[at].value == PL_E_IDLE);
    close(fd);
    close(peer);
}

CHECK_MAIN(RUN_ON_ALL(test_lent_fd_is_never_closed_by_the_core);
           RUN_ON_ALL(test_accepted_fd_is_the_cores_until_it_is_lent);
           RUN_ON_ALL(test_large_message_leaves_before_the_flush_and_its_rest_follows);
           RUN_ON_ALL(test_large_message_takes_along_what_is_queued_before_it);
           RUN_ON_ALL(test_memory_that_fails_in_the_middle_of_a_large_message_ends_the_conn);
           RUN_ON_ALL(test_readiness_conn_is_told_and_receives_when_asked);
           RUN_ON_ALL(test_marks_of_one_conn_are_a_group_that_goes_with_it);
           RUN_ON_ALL(test_closing_conn_takes_more_until_it_is_flushed);
           RUN_ON_ALL(test_pipe_is_written_at_once_and_read_to_its_end);
           RUN_ON_ALL(test_reader_that_goes_ends_who_only_writes);
           RUN_ON_ALL(test_writer_with_the_number_of_an_fd_that_was_ready_is_not_lost);
           RUN_ON_ALL(test_idle_time_out_goes_with_the_group_and_knows_what_left_at_once);)
