/* test_datagram.c -- datagrams on their way through the core: order, budgets, errors in the middle. */
#include "dgram_rig.h"
#include "slots.h"

static void test_datagrams_arrive_in_order_with_their_senders(void)
{
    struct sockaddr_in sender;
    uint32_t len;
    for (mmsg_missing = 0; mmsg_missing < 2; mmsg_missing++) {
        CHECK(loop_open() == 0);
        int from = udp_open();
        sender = here;
        int to = udp_open();
        uint64_t in = dgram_of(to), out = dgram_of(from);
        CHECK(in && out && in != out);
        CHECK(send_to(out, "one", &here, sizeof here) == 0);
        CHECK(send_to(out, "", &here, sizeof here) == 0);
        CHECK(send_to(out, "three", &here, sizeof here) == 0);
        CHECK(pl_dgram_queued(loop, out) == 8 + 3 * PL_DATAGRAM_OVERHEAD);
        CHECK(tick_until(PL_EV_DATAGRAM, in) == 0);
        memcpy(&len, events[0].data - PL_DATAGRAM_HEAD, sizeof len);
        CHECK(len == sizeof sender);
        CHECK(memcmp(events[0].data - PL_DATAGRAM_HEAD + sizeof len, &sender, sizeof sender) == 0);
        CHECK(events[0].data[-1] == 0 && pl_dgram_queued(loop, out) == 0);
        CHECK(arrive(in, TEXTS("one", "", "three")));
        loop_end();
        close(from);
        close(to);
    }
    mmsg_missing = 0;
}

static void test_nothing_is_received_unless_it_is_read(void)
{
    CHECK(loop_open() == 0);
    uint64_t id;
    int fd = udp_open();
    CHECK(pl_dgram_open(loop, fd, 100, &id) == 0);
    CHECK(put_to(fd, "early"));
    CHECK(tick(LONG_NS) == 0); /* ready, but not wanted */
    uint64_t waited = pl_loop_counters(loop)->wait_ns;
    CHECK(tick(20 * MS) == 0 && pl_loop_counters(loop)->wait_ns - waited >= 20 * MS); /* once: no spin */
    CHECK(pl_dgram_read(loop, id, 1) == 0);
    CHECK(arrive(id, TEXTS("early")));
    CHECK(pl_dgram_read(loop, id, 0) == 0 && put_to(fd, "late"));
    CHECK(tick(0) == 0);
    CHECK(pl_dgram_read(loop, id, 1) == 0 && arrive(id, TEXTS("late")));
    loop_end();
    close(fd);
}

static void test_one_socket_gets_its_budget_and_the_next_its_turn(void)
{
    CHECK(loop_open() == 0);
    uint64_t ids[3];
    int fds[3], seen[3] = {0}, ticks = 0;
    for (int i = 0; i < 3; i++) {
        CHECK((ids[i] = dgram_of(fds[i] = udp_open())));
        for (int n = 0; n < 100; n++)
            CHECK(put_to(fds[i], "x"));
    }
    for (; seen[0] + seen[1] + seen[2] < 300 && ticks < 100; ticks++) {
        CHECK(tick(LONG_NS) >= 0);
        for (int i = 0; i < 3; i++) {
            int got = event_count(PL_EV_DATAGRAM, ids[i]);
            CHECK(got <= 32);
            seen[i] += got;
        }
        CHECK(batch_n <= (int)(SLOTS_BYTES / 65536));
        if (ticks == 2)
            CHECK(seen[0] && seen[1] && seen[2]);
    }
    CHECK(seen[0] == 100 && seen[1] == 100 && seen[2] == 100);
    loop_end();
    for (int i = 0; i < 3; i++)
        close(fds[i]);
}

static void test_refused_datagram_is_told_and_the_others_leave(void)
{
    static char huge[70000];
    CHECK(loop_open() == 0);
    int from = udp_open(), to = udp_open();
    uint64_t out = dgram_of(from), in = dgram_of(to);
    const struct sockaddr_in odd = {.sin_family = AF_INET6};
    memset(huge, 'x', sizeof huge - 1);
    CHECK(send_to(out, "a", &here, sizeof here) == 0);
    CHECK(send_to(out, "lost", &odd, sizeof odd) == 0);
    CHECK(send_to(out, "b", &here, sizeof here) == 0);
    CHECK(send_to(out, "lost", NULL, 0) == 0);
    CHECK(send_to(out, "lost", NULL, 0) == 0);
    CHECK(send_to(out, "c", &here, sizeof here) == 0);
    CHECK(tick_until(PL_EV_DATAGRAM_ERROR, out) >= 0);
    CHECK(event_count(PL_EV_DATAGRAM_ERROR, out) == 3);
    int at = event_at(PL_EV_DATAGRAM_ERROR, out, 0);
    CHECK(events[at].value == -EAFNOSUPPORT && events[at + 1].value == -EDESTADDRREQ);
    CHECK(events[at + 2].value == -EDESTADDRREQ);
    CHECK(arrive(in, TEXTS("a", "b", "c")));
    CHECK(send_to(out, huge, &here, sizeof here) == 0); /* large: tried, and refused, at once */
    CHECK(pl_dgram_queued(loop, out) == 0);
    at = tick_until(PL_EV_DATAGRAM_ERROR, out);
    CHECK(at >= 0 && events[at].value == -EMSGSIZE);
    loop_end();
    close(from);
    close(to);
}

static void test_more_errors_than_a_batch_holds_are_all_told(void)
{
    CHECK(loop_open() == 0);
    int fd = udp_open(), told = 0;
    uint64_t id = dgram_of(fd);
    for (int i = 0; i < 10000; i++)
        CHECK(send_to(id, "", NULL, 0) == 0);
    CHECK(pl_dgram_close(loop, id) == 0);
    for (int ticks = 0; ticks < 10 && event_at(PL_EV_DATAGRAM_LOST, id, 0) < 0; ticks++) {
        CHECK(tick(LONG_NS) > 0);
        told += event_count(PL_EV_DATAGRAM_ERROR, id);
    }
    CHECK(told == 10000 && event_count(PL_EV_DATAGRAM_LOST, id) == 1);
    loop_end();
    close(fd);
}

static void test_refused_connection_is_told(void)
{
    CHECK(loop_open() == 0);
    int gone = udp_open(), fd = socket(AF_INET, SOCK_DGRAM, 0);
    close(gone);
    CHECK(connect(fd, (struct sockaddr *)&here, sizeof here) == 0);
    uint64_t id = dgram_of(fd);
    CHECK(send_to(id, "anybody?", NULL, 0) == 0);
    int at = tick_until(PL_EV_DATAGRAM_ERROR, id);
    CHECK(at >= 0 && events[at].value == -ECONNREFUSED);
    loop_end();
    close(fd);
}

static void test_too_long_datagram_is_told_as_cut(void)
{
    uint64_t id;
    CHECK(loop_open() == 0);
    int fd = udp_open();
    CHECK(pl_dgram_open(loop, fd, 4, &id) == 0 && pl_dgram_read(loop, id, 1) == 0);
    CHECK(put_to(fd, "four") && put_to(fd, "five+"));
    CHECK(arrive(id, TEXTS("four")));
    int at = event_at(PL_EV_DATAGRAM_CUT, id, 0);
    CHECK((at >= 0 || (at = tick_until(PL_EV_DATAGRAM_CUT, id)) >= 0) && event_says(at, "five"));
    loop_end();
    close(fd);
}

static void test_large_datagram_is_sent_at_once_behind_what_is_queued(void)
{
    static char large[5000];
    CHECK(loop_open() == 0);
    int from = udp_open(), to = udp_open();
    uint64_t out = dgram_of(from), in = dgram_of(to);
    memset(large, 'x', sizeof large - 1);
    CHECK(send_to(out, "first", &here, sizeof here) == 0 && pl_dgram_queued(loop, out) > 0);
    CHECK(send_to(out, large, &here, sizeof here) == 0 && pl_dgram_queued(loop, out) == 0);
    large[0] = 'y'; /* it is gone */
    CHECK(send_to(out, "last", &here, sizeof here) == 0);
    large[0] = 'x';
    CHECK(arrive(in, TEXTS("first", large, "last")));
    loop_end();
    close(from);
    close(to);
}

static void test_many_are_asked_for_where_many_come(void)
{
    CHECK(loop_open() == 0);
    int fd = udp_open();
    uint64_t id = dgram_of(fd);
    receives = 0;
    for (int i = 0; i < 100; i++)
        CHECK(put_to(fd, "alone") && arrive(id, TEXTS("alone")));
    CHECK(receives > 2 && receives < 12);
    for (int i = 0; i < 150; i++)
        CHECK(put_to(fd, "x"));
    int ticks = 0, got = 0;
    for (; got < 150 && ticks < 100; ticks++) {
        CHECK(tick(LONG_NS) > 0);
        got += batch_n;
    }
    CHECK(got == 150 && ticks < 25);
    loop_end();
    close(fd);
}

CHECK_MAIN(RUN_ON_ALL(test_datagrams_arrive_in_order_with_their_senders);
           RUN_ON_ALL(test_nothing_is_received_unless_it_is_read);
           RUN_ON_ALL(test_one_socket_gets_its_budget_and_the_next_its_turn);
           RUN_ON_ALL(test_refused_datagram_is_told_and_the_others_leave);
           RUN_ON_ALL(test_more_errors_than_a_batch_holds_are_all_told);
           RUN_ON_ALL(test_refused_connection_is_told);
           RUN_ON_ALL(test_too_long_datagram_is_told_as_cut);
           RUN_ON_ALL(test_large_datagram_is_sent_at_once_behind_what_is_queued);
           RUN_ON_ALL(test_many_are_asked_for_where_many_come);)
