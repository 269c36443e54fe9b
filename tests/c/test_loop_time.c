/* test_loop_time.c -- the loop's clocks: idle, message, closing, linger. The clock is moved on
 * by `pass`; what must come is awaited by tick_until. */
#include "loop_rig.h"

static struct pl_counters counters;

static uint64_t open_with(struct pl_options o, int *peer)
{
    memset(&counters, 0, sizeof counters);
    return loop_open() < 0 ? 0 : pair_open(pl_group_new(loop, &o, &counters), peer);
}

static void test_silent_conn_is_idle_once(void)
{
    struct pl_options o = options_of(PL_LINES);
    int peer;
    o.idle_timeout = 100 * MS;
    int64_t before = sock_now();
    uint64_t id = open_with(o, &peer);
    int at = tick_until(PL_EV_FAULT, id);
    CHECK(at >= 0 && events[at].value == PL_E_IDLE && sock_now() - before >= 100 * MS);
    CHECK(counters.timeouts == 1 && put(peer, "late\n"));
    pass(120 * MS);
    CHECK(tick(0) == 0 && tick(0) == 0 && pl_conn_close(loop, id) == 0);
    close(peer);
    CHECK(tick_until(PL_EV_LOST, id) >= 0);
}

static void test_messages_and_output_put_idleness_off(void)
{
    struct pl_options o = options_of(PL_LINES);
    int peer;
    o.idle_timeout = 800 * MS;
    uint64_t id = open_with(o, &peer);
    for (int i = 0; i < 6; i++) {
        pass(300 * MS);
        if (i % 2)
            CHECK(put(peer, "on\n") && tick(0) == 1);
        else
            CHECK(pl_conn_send(loop, id, (const uint8_t *)"x", 1) == 0 && tick(0) == 0);
    }
    pass(800 * MS);
    CHECK(tick_until(PL_EV_FAULT, id) >= 0);
    close(peer);
}

/* A byte now and then of a line that never ends is not activity. */
static void test_bytes_of_an_unfinished_message_do_not_count(void)
{
    struct pl_options o = options_of(PL_LINES);
    int peer, at = -1;
    o.idle_timeout = 200 * MS;
    uint64_t id = open_with(o, &peer);
    int64_t before = sock_now();
    while (at < 0 && sock_now() - before < LONG_NS) {
        CHECK(put(peer, "x"));
        pass(20 * MS);
        CHECK(tick(0) >= 0);
        at = event_at(PL_EV_FAULT, id, 0);
    }
    CHECK(at >= 0 && events[at].value == PL_E_IDLE);
    close(peer);
}

static void test_slow_message_faults_and_whole_ones_do_not(void)
{
    struct pl_options o = options_of(PL_LINES);
    int peer;
    o.message_timeout = 160 * MS;
    uint64_t id = open_with(o, &peer);
    pass(200 * MS);
    CHECK(put(peer, "whole\n") && tick(0) == 1);
    pass(200 * MS);
    CHECK(tick(0) == 0 && put(peer, "whole\npart") && tick(0) == 1);
    int at = tick_until(PL_EV_FAULT, id);
    CHECK(at >= 0 && events[at].value == PL_E_MESSAGE_TIME && counters.timeouts == 1);
    close(peer);
}

static void test_message_clock_starts_anew_with_each_message(void)
{
    struct pl_options o = options_of(PL_LINES);
    int peer;
    o.message_timeout = 1200 * MS;
    o.idle_timeout = LONG_NS;
    uint64_t id = open_with(o, &peer);
    CHECK(put(peer, "a") && tick(0) == 0);
    for (int i = 0; i < 4; i++) {
        pass(500 * MS);
        CHECK(put(peer, "\nb") && tick(0) == 1);
    }
    pass(1200 * MS);
    int at = tick_until(PL_EV_FAULT, id);
    CHECK(at >= 0 && events[at].value == PL_E_MESSAGE_TIME);
    close(peer);
}

static void test_closing_conn_whose_peer_takes_nothing_ends(void)
{
    static uint8_t block[1 << 20];
    struct pl_options o = options_of(PL_RAW);
    int peer;
    o.close_timeout = 200 * MS;
    uint64_t id = open_with(o, &peer);
    CHECK(pl_conn_write(loop, id, block, sizeof block) == 1 && pl_conn_close(loop, id) == 0);
    int at = tick_until(PL_EV_LOST, id);
    CHECK(at >= 0 && events[at].value == -ETIMEDOUT && counters.open == 0);
    close(peer);
}

static void test_linger_ends_although_the_peer_stays(void)
{
    struct pl_options o = options_of(PL_LINES);
    int peer;
    o.linger = 200 * MS;
    uint64_t id = open_with(o, &peer);
    CHECK(put(peer, "never read\n") && pl_conn_close(loop, id) == 0);
    int64_t before = sock_now();
    int at = tick_until(PL_EV_LOST, id);
    CHECK(at >= 0 && events[at].value == 0 && sock_now() - before >= 200 * MS);
    close(peer);
}

static void test_without_linger_close_is_at_once(void)
{
    struct pl_options o = options_of(PL_LINES);
    int peer;
    o.linger = 0;
    uint64_t id = open_with(o, &peer);
    CHECK(pl_conn_close(loop, id) == 0 && tick(0) == 1 && events[0].kind == PL_EV_LOST);
    close(peer);
}

/* Peers that keep an idle conn busy with other clocks still meet their own. */
static void test_many_conns_each_meet_their_own_time(void)
{
    struct pl_options o = options_of(PL_LINES);
    int peers[50], seen = 0;
    uint64_t last = 0;
    CHECK(loop_open() == 0);
    for (int i = 0; i < 50; i++) {
        o.idle_timeout = (5 + (i * 7) % 50) * MS;
        CHECK(pair_open(pl_group_new(loop, &o, NULL), &peers[i]) != 0);
    }
    int64_t end = sock_now() + LONG_NS;
    while (seen < 50 && sock_now() < end) {
        CHECK(tick(LONG_NS) >= 0);
        for (int at = event_at(PL_EV_FAULT, 0, 0); at >= 0; at = event_at(PL_EV_FAULT, 0, at + 1)) {
            seen++;
            last = events[at].id;
            CHECK(pl_conn_abort(loop, last, PL_E_IDLE) == 0);
        }
    }
    CHECK(seen == 50 && tick_until(PL_EV_LOST, last) >= 0);
    for (int i = 0; i < 50; i++)
        close(peers[i]);
}

static void test_no_clock_means_no_end_of_the_wait(void)
{
    struct pl_options o = options_of(PL_LINES);
    int peer;
    uint64_t id = open_with(o, &peer);
    int64_t before = sock_now();
    CHECK(id && tick(4 * MS) == 0 && sock_now() - before >= 4 * MS);
    close(peer);
}

static void test_longest_times_do_not_overflow(void)
{
    struct pl_options o = options_of(PL_LINES);
    int peer;
    o.idle_timeout = o.message_timeout = o.linger = o.close_timeout = (int64_t)1 << 62;
    uint64_t id = open_with(o, &peer);
    CHECK(put(peer, "part") && tick(0) == 0 && pl_loop_wake(loop) == 0 &&
          tick((int64_t)1 << 62) == 0);
    CHECK(pl_conn_close(loop, id) == 0 && tick(0) == 0);
    close(peer);
    CHECK(tick_until(PL_EV_LOST, id) >= 0);
}

/* Without a connection there is nothing to look for; with one there may always be. */
static void test_turn_is_skipped_only_while_nothing_is_watched(void)
{
    struct pl_options o = options_of(PL_LINES);
    int peer;
    CHECK(loop_open() == 0);
    uint64_t ticks = pl_loop_counters(loop)->ticks, waits = pl_loop_counters(loop)->waits;
    CHECK(pl_loop_skip(loop) == 1 && pl_loop_skip(loop) == 1);
    CHECK(pl_loop_counters(loop)->ticks == ticks + 2 && pl_loop_counters(loop)->waits == waits);
    uint64_t id = pair_open(pl_group_new(loop, &o, &counters), &peer);
    CHECK(pl_loop_skip(loop) == 0 && put(peer, "line\n") && tick(LONG_NS) == 1);
    CHECK(pl_conn_abort(loop, id, 0) == 0 && pl_loop_skip(loop) == 0); /* its loss is left to tell */
    CHECK(tick_until(PL_EV_LOST, id) >= 0 && tick(0) == 0 && pl_loop_skip(loop) == 1);
    close(peer);
}

CHECK_MAIN(RUN_ON_ALL(test_silent_conn_is_idle_once);
           RUN_ON_ALL(test_messages_and_output_put_idleness_off);
           RUN_ON_ALL(test_bytes_of_an_unfinished_message_do_not_count);
           RUN_ON_ALL(test_slow_message_faults_and_whole_ones_do_not);
           RUN_ON_ALL(test_message_clock_starts_anew_with_each_message);
           RUN_ON_ALL(test_closing_conn_whose_peer_takes_nothing_ends);
           RUN_ON_ALL(test_linger_ends_although_the_peer_stays);
           RUN_ON_ALL(test_without_linger_close_is_at_once);
           RUN_ON_ALL(test_many_conns_each_meet_their_own_time);
           RUN_ON_ALL(test_no_clock_means_no_end_of_the_wait);
           RUN_ON_ALL(test_longest_times_do_not_overflow);
           RUN_ON_ALL(test_turn_is_skipped_only_while_nothing_is_watched);)
