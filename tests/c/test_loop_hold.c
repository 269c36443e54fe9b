/* test_loop_hold.c -- pl_conn_hold: what is put back comes again, in order, from wherever its bytes were:
 *
 *     arena     whole messages of one receive, with or without a rest
 *     in        messages cut from the conn's own memory, a rest behind them
 *     kept      the same without a rest: the batch has the memory
 */
#include "loop_rig.h"

enum place {
    ARENA,
    ARENA_REST,
    OWN,
    KEPT,
    PLACES
};

#define LINES 6
static char text[PLACES][LINES][3000];

static void make_texts(void)
{
    for (int p = 0; p < PLACES; p++)
        for (int i = 0; i < LINES; i++)
            snprintf(text[p][i], sizeof text[p][i], "%d-%d-%*s", p, i, p >= OWN && !i ? 2000 : i,
                     "x");
}

/* A batch of LINES messages whose bytes are in `place`. The id, or 0. */
static uint64_t batch_in(enum place place, int group, int *peer)
{
    char wire[20000] = "";
    uint64_t id = pair_open(group, peer);
    for (int i = 0; i < LINES; i++) {
        strcat(wire, text[place][i]);
        strcat(wire, "\n");
    }
    if (place == ARENA_REST || place == OWN)
        strcat(wire, "rest");
    size_t len = strlen(wire), first = place >= OWN ? 1500 : 0;
    if (first && (write(*peer, wire, first) != (ssize_t)first || tick(0) != 0))
        return 0;
    if (write(*peer, wire + first, len - first) != (ssize_t)(len - first) || tick(0) != LINES)
        return 0;
    return id;
}

static int says(int at, enum place place, int line)
{
    return event_says(at, text[place][line]);
}

static int none_from(int index)
{
    for (int i = index; i < batch_n; i++)
        if (events[i].kind != PL_EV_NONE)
            return 0;
    return 1;
}

/* Take lines from `next` on until all came; each batch in order. */
static int take_lines(enum place place, uint64_t id, int next)
{
    for (int ticks = 0; next < LINES && ticks < LINES; ticks++) {
        if (tick(0) < 0)
            return 0;
        for (int at = event_at(PL_EV_MESSAGE, id, 0); at >= 0;
             at = event_at(PL_EV_MESSAGE, id, at + 1))
            if (next >= LINES || !says(at, place, next++))
                return 0;
    }
    return next == LINES;
}

static int rest_arrives(enum place place, uint64_t id, int peer)
{
    const char *whole = place == ARENA_REST || place == OWN ? "rest of it" : " of it";
    if (!put(peer, " of it\n"))
        return 0;
    return event_says(tick_until(PL_EV_MESSAGE, id), whole);
}

static int forget(uint64_t id, int peer)
{
    close(peer);
    return pl_conn_abort(loop, id, 0) == 0 && tick_until(PL_EV_LOST, id) >= 0;
}

static void test_held_at_any_index_comes_again(void)
{
    CHECK(loop_open() == 0);
    make_texts();
    int group = group_of(PL_LINES);
    for (int place = 0; place < PLACES; place++)
        for (int at = 0; at < LINES; at++) {
            int peer;
            uint64_t id = batch_in(place, group, &peer);
            CHECK(id && pl_conn_pause(loop, id) == 0 && pl_conn_hold(loop, (uint32_t)at) == 0);
            for (int i = 0; i < at; i++)
                CHECK(says(i, place, i));
            CHECK(none_from(at) && pl_conn_hold(loop, (uint32_t)at) == -EINVAL);
            CHECK(tick(0) == 0 && tick(0) == 0 && pl_conn_resume(loop, id) == 0);
            CHECK(take_lines(place, id, at) && rest_arrives(place, id, peer));
            CHECK(forget(id, peer));
        }
}

static void test_held_one_at_a_time_comes_in_order(void)
{
    CHECK(loop_open() == 0);
    make_texts();
    int group = group_of(PL_LINES);
    for (int place = 0; place < PLACES; place++) {
        int peer;
        uint64_t id = batch_in(place, group, &peer);
        CHECK(id != 0);
        for (int line = 0; line < LINES; line++) {
            int at = event_at(PL_EV_MESSAGE, id, 0);
            at = at < 0 ? tick_until(PL_EV_MESSAGE, id) : at;
            CHECK(says(at, place, line));
            if (at + 1 < batch_n)
                CHECK(pl_conn_hold(loop, (uint32_t)at + 1) == 0);
            events[at].kind = PL_EV_NONE;
        }
        CHECK(rest_arrives(place, id, peer));
        CHECK(forget(id, peer));
    }
}

/* The second hold of a batch reaches further to the front than the first. */
static void test_hold_before_a_hold_takes_all(void)
{
    CHECK(loop_open() == 0);
    make_texts();
    int group = group_of(PL_LINES);
    for (int place = 0; place < PLACES; place++) {
        int peer;
        uint64_t id = batch_in(place, group, &peer);
        CHECK(id && pl_conn_hold(loop, 4) == 0 && pl_conn_hold(loop, 1) == 0);
        CHECK(says(0, place, 0) && none_from(1) && take_lines(place, id, 1));
        CHECK(rest_arrives(place, id, peer));
        CHECK(forget(id, peer));
    }
}

static void test_held_end_of_stream_comes_again(void)
{
    CHECK(loop_open() == 0);
    int group = group_of(PL_LINES);
    for (int at = 0; at < 3; at++) {
        int peer;
        uint64_t id = pair_open(group, &peer);
        CHECK(pl_conn_pause(loop, id) == 0 &&
              pl_conn_feed(loop, id, (const uint8_t *)"a\nlast", 6, 1) == 0);
        CHECK(tick(0) == 0 && pl_conn_resume(loop, id) == 0 && tick(0) == 3);
        CHECK(pl_conn_pause(loop, id) == 0 && pl_conn_hold(loop, (uint32_t)at) == 0 &&
              none_from(at));
        CHECK(tick(0) == 0 && pl_conn_resume(loop, id) == 0);
        const char *const wanted[] = {"a", "last"};
        int next = at;
        for (int ticks = 0; ticks < 5 && event_at(PL_EV_EOF, id, 0) < 0; ticks++) {
            CHECK(tick(0) >= 0);
            for (int i = event_at(PL_EV_MESSAGE, id, 0); i >= 0;
                 i = event_at(PL_EV_MESSAGE, id, i + 1))
                CHECK(next < 2 && event_says(i, wanted[next++]));
        }
        CHECK(next == 2 && event_at(PL_EV_EOF, id, 0) >= 0 && tick(0) == 0);
        CHECK(forget(id, peer));
    }
}

static void test_held_faults_come_again(void)
{
    static const struct {
        const char *wire;
        int value, ends;
    } rows[] = {{"1:a,1:b,bad", PL_E_MALFORMED, 0}, {"1:a,1:b,9:short", PL_E_INCOMPLETE, 1}};
    CHECK(loop_open() == 0);
    int group = group_of(PL_NETSTRING);
    for (size_t row = 0; row < 2; row++)
        for (int at = 0; at < 3; at++) {
            int peer, told = at, fault = -1;
            uint64_t id = pair_open(group, &peer);
            CHECK(pl_conn_feed(loop, id, (const uint8_t *)rows[row].wire, strlen(rows[row].wire),
                               rows[row].ends) == 0);
            CHECK(tick(0) == 3 && events[2].kind == PL_EV_FAULT);
            CHECK(pl_conn_hold(loop, (uint32_t)at) == 0 && none_from(at));
            for (int ticks = 0; ticks < 5 && fault < 0; ticks++) {
                CHECK(tick(0) >= 0);
                told += event_count(PL_EV_MESSAGE, id);
                fault = event_at(PL_EV_FAULT, id, 0);
            }
            CHECK(told == 2 && fault >= 0 && events[fault].value == rows[row].value);
            CHECK(forget(id, peer));
        }
}

static void test_hold_behind_a_drain_ends_all_the_same(void)
{
    CHECK(loop_open() == 0);
    int group = group_of(PL_LINES);
    for (int at = 0; at < 3; at++) {
        int peer, told = at, end = -1;
        uint64_t id = pair_open(group, &peer);
        CHECK(put(peer, "a\nb\npart") && pl_conn_drain(loop, id) == 0 && tick(LONG_NS) == 3);
        CHECK(pl_conn_pause(loop, id) == 0 && pl_conn_hold(loop, (uint32_t)at) == 0);
        CHECK(tick(0) == 0 && pl_conn_resume(loop, id) == 0);
        for (int ticks = 0; ticks < 5 && end < 0; ticks++) {
            CHECK(tick(0) >= 0);
            told += event_count(PL_EV_MESSAGE, id);
            end = event_at(PL_EV_EOF, id, 0);
        }
        CHECK(told == 2 && end >= 0 && events[end].value == 1);
        CHECK(forget(id, peer));
    }
}

static void test_hold_touches_no_other_conn(void)
{
    int a, b;
    CHECK(loop_open() == 0);
    int group = group_of(PL_LINES);
    uint64_t one = pair_open(group, &a), two = pair_open(group, &b);
    CHECK(put(a, "1\n2\n") && put(b, "3\n4\n") && tick(0) == 4);
    uint64_t first = events[0].id;
    CHECK(pl_conn_hold(loop, 1) == 0 && events[2].kind == PL_EV_MESSAGE &&
          events[3].kind == PL_EV_MESSAGE);
    CHECK(tick(0) == 1 && events[0].id == first);
    CHECK(pl_conn_close(loop, one) == 0 && pl_conn_abort(loop, two, 0) == 0);
    close(a);
    close(b);
}

static void test_hold_of_what_cannot_be_held_is_refused(void)
{
    int fds[2], peer;
    CHECK(loop_open() == 0 && pipe(fds) == 0);
    uint64_t id = pair_open(group_of(PL_LINES), &peer);
    CHECK(pl_watch(loop, fds[0], PL_READ) == 0 && write(fds[1], "x", 1) == 1 && tick(0) == 1);
    CHECK(pl_conn_hold(loop, 0) == -ESTALE && pl_conn_hold(loop, 1) == -EINVAL);
    CHECK(put(peer, "a\nb\n") && tick(0) == 3 && pl_conn_abort(loop, id, 0) == 0);
    int at = event_at(PL_EV_MESSAGE, id, 0);
    CHECK(pl_conn_hold(loop, (uint32_t)at) == -ESTALE && event_says(at, "a"));
    CHECK(tick(0) == 2 && pl_conn_hold(loop, (uint32_t)event_at(PL_EV_LOST, id, 0)) == -ESTALE);
    close(peer);
    close(fds[1]);
    loop_end();
    close(fds[0]);
}

static void test_close_drops_what_is_held(void)
{
    int peer;
    CHECK(loop_open() == 0);
    uint64_t id = pair_open(group_of(PL_LINES), &peer);
    CHECK(put(peer, "a\nb\n") && tick(0) == 2 && pl_conn_hold(loop, 0) == 0);
    CHECK(pl_conn_close(loop, id) == 0 && tick(0) == 0);
    close(peer);
    CHECK(tick_until(PL_EV_LOST, id) >= 0 && batch_n == 1);
}

CHECK_MAIN(RUN_ON_ALL(test_held_at_any_index_comes_again);
           RUN_ON_ALL(test_held_one_at_a_time_comes_in_order);
           RUN_ON_ALL(test_hold_before_a_hold_takes_all);
           RUN_ON_ALL(test_held_end_of_stream_comes_again);
           RUN_ON_ALL(test_held_faults_come_again);
           RUN_ON_ALL(test_hold_behind_a_drain_ends_all_the_same);
           RUN_ON_ALL(test_hold_touches_no_other_conn);
           RUN_ON_ALL(test_hold_of_what_cannot_be_held_is_refused);
           RUN_ON_ALL(test_close_drops_what_is_held);)
