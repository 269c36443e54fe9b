/* test_loop.c -- a loop from accept to PL_EV_LOST, on every backend: messages, output, closing, limits, auto's move.
 * Holding is in test_loop_hold.c, clocks in test_loop_time.c, faults in test_loop_faults.c. */
#include "loop_rig.h"

/* ---- in ---- */

struct sample {
    uint32_t kind;
    const char *wire;
    const char *const *messages;
};

static const struct sample samples[] = {
    {PL_LINES, "one\n\ntwo\r\nx\n", TEXTS("one", "", "two", "x")},
    {PL_DELIM, "one####t#o##", TEXTS("one", "", "t#o")},
    {PL_NETSTRING, "3:one,0:,2:hi,", TEXTS("one", "", "hi")},
    {PL_VARINT, "\003one\002hi\001x", TEXTS("one", "hi", "x")},
    {PL_FIXED, "onetwohiy", TEXTS("one", "two", "hiy")},
};

static uint64_t open_sample(const struct sample *s, int *peer)
{
    struct pl_options o = options_of(s->kind);
    if (s->kind == PL_FIXED)
        o.framing.max_size = 3;
    return pair_open(pl_group_new(loop, &o, NULL), peer);
}

static void test_messages_of_every_framing_arrive_whole_or_split(void)
{
    CHECK(loop_open() == 0);
    for (size_t i = 0; i < sizeof samples / sizeof samples[0]; i++) {
        const struct sample *s = &samples[i];
        size_t len = strlen(s->wire);
        for (size_t cut = 0; cut < len; cut++) {
            int peer, told = 0;
            uint64_t id = open_sample(s, &peer);
            for (int half = 0; half < 2; half++) {
                const char *from = s->wire + (half ? cut : 0);
                size_t n = half ? len - cut : cut;
                CHECK(!n || (write(peer, from, n) == (ssize_t)n && tick(0) >= 0));
                for (int at = event_at(PL_EV_MESSAGE, id, 0); n && at >= 0;
                     at = event_at(PL_EV_MESSAGE, id, at + 1))
                    CHECK(s->messages[told] && event_says(at, s->messages[told++]));
            }
            CHECK(!s->messages[told] && shutdown(peer, SHUT_WR) == 0);
            CHECK(tick(0) == 1 && events[0].kind == PL_EV_EOF && events[0].value == 0);
            CHECK(pl_conn_close(loop, id) == 0 && tick_until(PL_EV_LOST, id) >= 0);
            close(peer);
        }
    }
}

static void test_prefixed_message_tells_its_head(void)
{
    int peer;
    CHECK(loop_open() == 0);
    uint64_t id = pair_open(group_of(PL_PREFIX), &peer);
    CHECK(write(peer, "\0\0\0\003one\0\0\0\0", 11) == 11 && tick(0) == 2);
    CHECK(messages_are(id, TEXTS("one", "")) && events[0].head == 4 && events[0].id == id);
    CHECK(events[0].slot == (uint32_t)id);
    close(peer);
}

static void test_raw_gives_what_came(void)
{
    int peer;
    CHECK(loop_open() == 0);
    uint64_t id = pair_open(group_of(PL_RAW), &peer);
    CHECK(put(peer, "any\nthing") && tick(0) == 1 && messages_are(id, TEXTS("any\nthing")));
    CHECK(tick(0) == 0);
    close(peer);
    CHECK(tick(0) == 1 && events[0].kind == PL_EV_EOF);
    CHECK(tick(0) == 0 && tick(0) == 0); /* told once, and no spinning: nothing is watched */
}

/* More than an arena, and no multiple of what fits: the last one of a tick is not cut in two. */
static void test_large_raw_receives_are_whole_however_many_wait(void)
{
    static char wire[100000];
    enum {
        CONNS = 12
    };
    int peers[CONNS], told = 0;
    memset(wire, 'w', sizeof wire);
    CHECK(loop_open() == 0);
    int group = group_of(PL_RAW);
    for (int i = 0; i < CONNS; i++)
        CHECK(pair_open(group, &peers[i]) && write(peers[i], wire, sizeof wire) == sizeof wire);
    for (int i = 0; i < CONNS && told < CONNS; i++) {
        CHECK(tick(0) > 0);
        for (int at = 0; at < batch_n; at++, told++)
            CHECK(events[at].kind == PL_EV_MESSAGE && events[at].end - events[at].data == sizeof wire);
    }
    CHECK(told == CONNS && tick(0) == 0);
    for (int i = 0; i < CONNS; i++)
        close(peers[i]);
}

static void test_large_message_in_small_pieces_arrives(void)
{
    static char text[60000];
    int peer;
    CHECK(loop_open() == 0);
    uint64_t id = pair_open(group_of(PL_LINES), &peer);
    for (size_t i = 0; i < sizeof text; i++)
        text[i] = (char)('a' + i % 23);
    for (size_t at = 0; at < sizeof text; at += 700) {
        size_t n = sizeof text - at < 700 ? sizeof text - at : 700;
        CHECK(write(peer, text + at, n) == (ssize_t)n && tick(0) == 0);
    }
    CHECK(put(peer, "\nnext\nre") && tick(0) == 2 && event_says(1, "next"));
    CHECK(events[0].id == id && events[0].end - events[0].data == sizeof text);
    CHECK(memcmp(events[0].data, text, sizeof text) == 0);
    CHECK(put(peer, "st\n") && tick(0) == 1 && messages_are(id, TEXTS("rest")));
    close(peer);
}

static void test_bad_message_faults_behind_the_good_ones(void)
{
    struct pl_options o = options_of(PL_LINES);
    struct pl_counters counters = {0};
    int peer;
    o.framing.max_size = 4;
    CHECK(loop_open() == 0);
    uint64_t id = pair_open(pl_group_new(loop, &o, &counters), &peer);
    CHECK(put(peer, "good\ntoo long\nnever\n") && tick(0) == 2);
    CHECK(event_says(0, "good") && events[1].kind == PL_EV_FAULT &&
          events[1].value == PL_E_TOO_LONG);
    CHECK(put(peer, "more\n") && tick(0) == 0 && counters.framing_errors == 1);
    CHECK(pl_conn_close(loop, id) == 0);
    close(peer);
    CHECK(tick_until(PL_EV_LOST, id) >= 0 && counters.open == 0);
}

static void test_stream_that_ends_in_a_message_faults(void)
{
    int peer, other;
    CHECK(loop_open() == 0);
    uint64_t id = pair_open(group_of(PL_NETSTRING), &peer);
    CHECK(put(peer, "1:a,5:abc") && tick(0) == 1);
    close(peer);
    CHECK(tick(0) == 1 && events[0].kind == PL_EV_FAULT && events[0].value == PL_E_INCOMPLETE);
    uint64_t line = pair_open(group_of(PL_LINES), &other);
    CHECK(put(other, "a\nlast") && shutdown(other, SHUT_WR) == 0 && tick(0) == 1 && tick(0) == 2);
    CHECK(messages_are(line, TEXTS("last")) && events[1].kind == PL_EV_EOF && tick(0) == 0);
    CHECK(pl_conn_abort(loop, id, 0) == 0);
    close(other);
}

static void test_one_conn_gets_a_budget_and_others_their_turn(void)
{
    static char lines[65536];
    int peer, other;
    uint64_t total = 0;
    memset(lines, '\n', sizeof lines);
    CHECK(loop_open() == 0);
    int group = group_of(PL_LINES);
    uint64_t id = pair_open(group, &peer), fine = pair_open(group, &other);
    CHECK(write(peer, lines, sizeof lines) == sizeof lines && put(other, "turn\n"));
    int heard = 0;
    for (int i = 0; total < sizeof lines; i++) {
        CHECK(tick(0) > 0 && i < 70);
        CHECK(event_count(PL_EV_MESSAGE, id) <= 1024);
        total += (uint64_t)event_count(PL_EV_MESSAGE, id);
        heard |= event_at(PL_EV_MESSAGE, fine, 0) >= 0;
        CHECK(heard);
    }
    CHECK(tick(0) == 0);
    close(peer);
    close(other);
}

/* More ready conns than a batch has room for: none is forgotten. */
static void test_full_batch_goes_on_where_it_stopped(void)
{
    static char lines[3000];
    int peers[12], got[12] = {0};
    uint64_t ids[12];
    memset(lines, '\n', sizeof lines);
    CHECK(loop_open() == 0);
    int group = group_of(PL_LINES);
    for (int i = 0; i < 12; i++) {
        ids[i] = pair_open(group, &peers[i]);
        CHECK(write(peers[i], lines, sizeof lines) == sizeof lines);
    }
    for (int rounds = 0, left = 36000; left > 0; rounds++) {
        CHECK(tick(0) > 0 && batch_n <= PL_EVENTS_MAX && rounds < 40);
        for (int i = 0; i < 12; i++)
            got[i] += event_count(PL_EV_MESSAGE, ids[i]);
        left -= batch_n;
        if (rounds == 5)
            for (int i = 0; i < 12; i++)
                CHECK(got[i] > 0);
    }
    for (int i = 0; i < 12; i++) {
        CHECK(got[i] == 3000);
        close(peers[i]);
    }
}

/* ---- out ---- */

static void test_sends_of_one_turn_leave_together_framed(void)
{
    char got[64];
    int peer;
    CHECK(loop_open() == 0);
    uint64_t id = pair_open(group_of(PL_NETSTRING), &peer);
    CHECK(pl_conn_send(loop, id, (const uint8_t *)"one", 3) == 0);
    CHECK(pl_conn_write(loop, id, (const uint8_t *)"raw", 3) == 0 && pl_conn_queued(loop, id) == 9);
    CHECK(take(peer, got, sizeof got) == -EAGAIN && tick(0) == 0);
    CHECK(take(peer, got, sizeof got) == 9 && memcmp(got, "3:one,raw", 9) == 0);
    CHECK(pl_conn_send(loop, id, (const uint8_t *)"x", 1) == 0 && pl_loop_flush(loop) == 0);
    CHECK(take(peer, got, sizeof got) == 4 && pl_conn_queued(loop, id) == 0);
    close(peer);
}

static void test_slow_peer_passes_high_water_then_resumes(void)
{
    static uint8_t block[16384];
    static char got[65536];
    int peer, rc = 0, sent = 0;
    CHECK(loop_open() == 0);
    uint64_t id = pair_open(group_of(PL_RAW), &peer);
    while (rc == 0 && sent < 1000) {
        rc = pl_conn_send(loop, id, block, sizeof block);
        sent++;
    }
    CHECK(rc == 1 && pl_conn_queued(loop, id) > 65536);
    CHECK(pl_conn_send(loop, id, block, sizeof block) == 0); /* told once */
    sent++;
    size_t heard = 0, all = (size_t)sent * sizeof block;
    int resumed = 0;
    while (heard < all) {
        ssize_t n = take(peer, got, sizeof got);
        heard += n > 0 ? (size_t)n : 0;
        CHECK(tick(0) >= 0);
        int at = event_at(PL_EV_RESUME, id, 0);
        CHECK(at < 0 || pl_conn_queued(loop, id) <= 16384);
        resumed += at >= 0;
    }
    CHECK(resumed == 1 && pl_conn_queued(loop, id) == 0 && tick(0) == 0);
    close(peer);
}

static void test_unread_output_beyond_the_limit_aborts(void)
{
    static uint8_t block[65536];
    struct pl_options o = options_of(PL_RAW);
    struct pl_counters counters = {0};
    int peer, rc = 0;
    o.write_limit = 100000;
    CHECK(loop_open() == 0);
    uint64_t id = pair_open(pl_group_new(loop, &o, &counters), &peer);
    for (int i = 0; rc >= 0 && i < 1000; i++)
        rc = pl_conn_send(loop, id, block, sizeof block);
    CHECK(rc == PL_E_WRITE_LIMIT && counters.write_limit_aborts == 1 && counters.aborts == 1);
    CHECK(tick(0) == 1 && events[0].kind == PL_EV_LOST && events[0].value == PL_E_WRITE_LIMIT);
    close(peer);
}

static void test_refused_payload_queues_nothing(void)
{
    int peer;
    CHECK(loop_open() == 0);
    uint64_t id = pair_open(group_of(PL_LINES), &peer);
    CHECK(pl_conn_send(loop, id, (const uint8_t *)"a\nb", 3) == PL_E_TERMINATOR);
    CHECK(pl_conn_queued(loop, id) == 0 && pl_conn_send(loop, id, NULL, 0) == 0);
    CHECK(pl_conn_queued(loop, id) == 1);
    close(peer);
}

/* ---- watchers, wakes, auto ---- */

static void test_watchers_tell_what_is_ready(void)
{
    int fds[2];
    CHECK(loop_open() == 0 && socketpair(AF_UNIX, SOCK_STREAM, 0, fds) == 0);
    CHECK(pl_watch(loop, fds[0], PL_READ) == 0 && tick(0) == 0);
    CHECK(put(fds[1], "x") && tick(0) == 1 && events[0].kind == PL_EV_READ);
    CHECK((int)events[0].slot == fds[0] && tick(0) == 1); /* level-triggered */
    CHECK(pl_watch(loop, fds[0], PL_READ | PL_WRITE) == 0);
    CHECK(tick(0) == 1 && events[0].kind == PL_EV_BOTH);
    CHECK(pl_watch(loop, fds[0], PL_WRITE) == 0 && tick(0) == 1 && events[0].kind == PL_EV_WRITE);
    CHECK(pl_watch(loop, fds[0], 0) == 0 && tick(0) == 0 && pl_watch(loop, fds[0], 0) == 0);
    CHECK(pl_loop_wake(loop) == 0 && tick(-1) == 0 && pl_loop_counters(loop)->wakes == 1);
    uint8_t numbers[3] = {2, 15, 1};
    CHECK(write(pl_loop_signal_fd(loop), numbers, 3) == 3 && tick(-1) == 3);
    CHECK(events[1].kind == PL_EV_SIGNAL && events[1].value == 15);
    close(fds[0]);
    close(fds[1]);
}

static void test_hundred_conns_cross_the_move(void)
{
    int peers[100];
    uint64_t ids[100];
    CHECK(loop_open() == 0);
    int group = group_of(PL_LINES);
    for (int i = 0; i < 100; i++) {
        CHECK((ids[i] = pair_open(group, &peers[i])) != 0);
        CHECK(put(peers[i], "hello\n"));
        if (i == 60)
            CHECK(tick(0) == 61);
    }
    CHECK(pl_loop_backend(loop) == (backend == PL_AUTO ? PL_EPOLL : backend));
    CHECK(tick(0) == 39);
    for (int i = 0; i < 100; i++) {
        CHECK(pl_conn_pause(loop, ids[i]) == 0 && put(peers[i], "again\n"));
    }
    CHECK(tick(0) == 0);
    for (int i = 0; i < 100; i++)
        CHECK(pl_conn_resume(loop, ids[i]) == 0);
    CHECK(tick(0) == 100);
    for (int i = 0; i < 100; i++)
        close(peers[i]);
    CHECK(tick(0) == 100 && event_count(PL_EV_EOF, 0) == 100);
}

static void test_loops_that_cannot_be_are_refused(void)
{
    int error = 0;
    CHECK(!pl_loop_new(99, &error) && error == -EINVAL);
    CHECK(!pl_loop_new(-1, &error) && error == -EINVAL);
    CHECK(loop_open() == 0 && pl_loop_pid(loop) == getpid());
    struct pl_options o = options_of(99);
    CHECK(pl_group_new(loop, &o, NULL) == -EINVAL && pl_group_free(loop, 0) == -EINVAL);
}

CHECK_MAIN(RUN_ON_ALL(test_messages_of_every_framing_arrive_whole_or_split);
           RUN_ON_ALL(test_prefixed_message_tells_its_head);
           RUN_ON_ALL(test_raw_gives_what_came);
           RUN_ON_ALL(test_large_raw_receives_are_whole_however_many_wait);
           RUN_ON_ALL(test_large_message_in_small_pieces_arrives);
           RUN_ON_ALL(test_bad_message_faults_behind_the_good_ones);
           RUN_ON_ALL(test_stream_that_ends_in_a_message_faults);
           RUN_ON_ALL(test_one_conn_gets_a_budget_and_others_their_turn);
           RUN_ON_ALL(test_full_batch_goes_on_where_it_stopped);
           RUN_ON_ALL(test_sends_of_one_turn_leave_together_framed);
           RUN_ON_ALL(test_slow_peer_passes_high_water_then_resumes);
           RUN_ON_ALL(test_unread_output_beyond_the_limit_aborts);
           RUN_ON_ALL(test_refused_payload_queues_nothing);
           RUN_ON_ALL(test_watchers_tell_what_is_ready);
           RUN_ON_ALL(test_hundred_conns_cross_the_move);
           RUN_ON_ALL(test_loops_that_cannot_be_are_refused);)
