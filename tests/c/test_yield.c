/* test_yield.c -- a loop above its share of the connections lets the others go first. */
#include "share_rig.h"

static void test_who_is_above_its_share_lets_the_other_go_first(void)
{
    int clients[12];
    CHECK(shared_open() == 0);
    connect_many(clients, 12);
    CHECK(tick(LONG_NS) == FAIR && counters_of(0)->accepted == FAIR);
    CHECK(pl_loop_tick(loops[1], LONG_NS) == 12 - FAIR);
    close_many(clients, 12);
    shared_end();
}

static void test_who_yields_in_vain_takes_one_at_a_time(void)
{
    int clients[FAIR + 3];
    CHECK(shared_open() == 0);
    connect_many(clients, FAIR + 3);
    CHECK(tick(LONG_NS) == FAIR);
    for (int i = 0; i < 3; i++) {
        pass(ACCEPT_YIELD_NS);
        CHECK(tick(0) == 0); /* its listener is back with the next wait */
        CHECK(tick(LONG_NS) == 1 && events[0].kind == PL_EV_OPEN);
    }
    CHECK(counters_of(0)->accepted == FAIR + 3);
    close_many(clients, FAIR + 3);
    shared_end();
}

/* No wait is so long that it would miss the end of a yield, and none spins until then. */
static void test_yield_ends_by_itself_and_without_spinning(void)
{
    int clients[FAIR + 1];
    CHECK(shared_open() == 0);
    connect_many(clients, FAIR + 1);
    CHECK(tick(LONG_NS) == FAIR);
    uint64_t ticks = pl_loop_counters(loop)->ticks;
    CHECK(tick_until(PL_EV_OPEN, 0) >= 0);
    CHECK(pl_loop_counters(loop)->ticks - ticks <= 4);
    close_many(clients, FAIR + 1);
    shared_end();
}

static void test_share_is_kept_while_both_turn(void)
{
    int clients[120];
    CHECK(shared_open() == 0);
    for (int i = 0; i < 120; i += 10) {
        connect_many(clients + i, 10);
        for (int turn = 0; accepted() < (uint64_t)i + 10 && turn < 100; turn++) {
            pass(ACCEPT_YIELD_NS);
            CHECK(pl_loop_tick(loops[0], 0) >= 0 && pl_loop_tick(loops[0], 0) >= 0);
            CHECK(pl_loop_tick(loops[1], 0) >= 0 && pl_loop_tick(loops[1], 0) >= 0);
        }
        CHECK(accepted() == (uint64_t)i + 10);
    }
    uint64_t most = (60 + 2) * 9 / 8 + 1;
    CHECK(counters_of(0)->open <= most && counters_of(1)->open <= most);
    close_many(clients, 120);
    shared_end();
}

static void test_processes_that_are_not_ready_have_no_share(void)
{
    int clients[40];
    CHECK(shared_open() == 0);
    cell_of(1)->state = PL_CELL_LEAVING;
    counters_of(1)->open = 1000; /* it serves on, and takes no more */
    connect_many(clients, 20);
    CHECK(tick(LONG_NS) == 20);
    cell_of(0)->state = PL_CELL_STARTING;
    connect_many(clients + 20, 20);
    CHECK(tick(LONG_NS) == 20);
    close_many(clients, 40);
    shared_end();
}

static void test_yield_of_one_group_holds_up_no_other(void)
{
    int clients[FAIR + 1];
    struct sockaddr_in there;
    CHECK(shared_open() == 0);
    int other = tcp_listen(&there), group = group_of(PL_LINES);
    CHECK(pl_listener_open(loop, group, other) == 0);
    connect_many(clients, FAIR + 1);
    CHECK(tick(LONG_NS) == FAIR && loop->yield_at);
    int64_t now = sock_now();
    int client = tcp_connect(&there);
    set_clock(now);
    CHECK(tick(LONG_NS) == 1 && events[0].kind == PL_EV_OPEN && events[0].value == group);
    close(client);
    close_many(clients, FAIR + 1);
    shared_end();
    close(other);
}

static void test_yield_and_a_rest_for_want_of_fds_leave_each_other_alone(void)
{
    int clients[FAIR + 1];
    struct sockaddr_in there;
    struct rlimit old, tight;
    CHECK(shared_open() == 0 && getrlimit(RLIMIT_NOFILE, &old) == 0);
    int other = tcp_listen(&there), group = group_of(PL_LINES);
    CHECK(pl_listener_open(loop, group, other) == 0);
    connect_many(clients, FAIR + 1);
    CHECK(tick(LONG_NS) == FAIR && loop->yield_at);
    int64_t now = sock_now(), yield_at = loop->yield_at;
    int client = tcp_connect(&there), free_fd = dup(client);
    close(free_fd);
    tight = old;
    tight.rlim_cur = (rlim_t)free_fd;
    set_clock(now);
    CHECK(setrlimit(RLIMIT_NOFILE, &tight) == 0);
    int n = tick(LONG_NS);
    setrlimit(RLIMIT_NOFILE, &old);
    int64_t accept_at = loop->accept_at;
    CHECK(n == 1 && accept_at >= now + ACCEPT_PAUSE_NS && loop->yield_at == yield_at);
    set_clock(yield_at);
    CHECK(tick(0) == 0 && loop->yield_at == 0 && loop->accept_at == accept_at);
    set_clock(yield_at);
    CHECK(tick(0) == 0); /* nobody is accepted yet */
    set_clock(accept_at);
    CHECK(tick(0) == 0 && loop->accept_at == 0);
    CHECK(tick(LONG_NS) == 2 && counters_of(0)->accepted == FAIR + 1);
    close(client);
    close_many(clients, FAIR + 1);
    shared_end();
    close(other);
}

static void test_conn_that_closes_does_not_end_a_yield(void)
{
    int clients[FAIR + 1];
    CHECK(shared_open() == 0);
    connect_many(clients, FAIR + 1);
    CHECK(tick(LONG_NS) == FAIR);
    int64_t yield_at = loop->yield_at;
    set_clock(yield_at - ACCEPT_YIELD_NS);
    CHECK(pl_conn_abort(loop, events[0].id, 0) == 0);
    CHECK(loop->yield_at == yield_at && loop->accept_at == 0);
    close_many(clients, FAIR + 1);
    shared_end();
}

static void test_group_freed_while_it_yields_is_forgotten(void)
{
    int clients[FAIR + 1];
    CHECK(shared_open() == 0);
    connect_many(clients, FAIR + 1);
    CHECK(tick(LONG_NS) == FAIR && loop->yield_at);
    for (int i = 0; i < FAIR; i++)
        pl_conn_abort(loop, events[i].id, 0);
    CHECK(pl_group_free(loop, groups[0]) == 0);
    pass(ACCEPT_YIELD_NS);
    CHECK(tick(0) == FAIR && tick(0) == 0 && loop->yield_at == 0);
    CHECK(group_of(PL_LINES) == groups[0]);
    CHECK(pl_loop_tick(loops[1], LONG_NS) == 1);
    close_many(clients, FAIR + 1);
    shared_end();
}

CHECK_MAIN(RUN_ON_ALL(test_who_is_above_its_share_lets_the_other_go_first);
           RUN_ON_ALL(test_who_yields_in_vain_takes_one_at_a_time);
           RUN_ON_ALL(test_yield_ends_by_itself_and_without_spinning);
           RUN_ON_ALL(test_share_is_kept_while_both_turn);
           RUN_ON_ALL(test_processes_that_are_not_ready_have_no_share);
           RUN_ON_ALL(test_yield_of_one_group_holds_up_no_other);
           RUN_ON_ALL(test_yield_and_a_rest_for_want_of_fds_leave_each_other_alone);
           RUN_ON_ALL(test_conn_that_closes_does_not_end_a_yield);
           RUN_ON_ALL(test_group_freed_while_it_yields_is_forgotten);)
