/* test_counters.c -- what a loop counts of itself, where, and what another process may conclude from it. */
#include <pthread.h>
#include <sys/mman.h>

#include "loop.h"
#include "loop_rig.h"

static uint64_t lag_sum(const struct pl_loop_counters *c)
{
    uint64_t sum = 0;
    for (int i = 0; i < PL_LAG_BUCKETS; i++)
        sum += c->lag[i];
    return sum;
}

static void test_counts_go_where_the_caller_says_from_then_on(void)
{
    static struct pl_loop_counters first, second;
    memset(&first, 0, sizeof first);
    memset(&second, 0, sizeof second);
    CHECK(loop_open() == 0);
    const struct pl_loop_counters *own = pl_loop_counters(loop);
    CHECK(tick(0) == 0 && own->ticks == 1 && own->version == PL_COUNTERS_VERSION);
    CHECK(pl_loop_count_in(loop, &first) == 0 && pl_loop_counters(loop) == &first);
    CHECK(first.version == PL_COUNTERS_VERSION && first.size == sizeof first);
    CHECK(tick(0) == 0 && tick(0) == 0 && first.ticks == 2 && own->ticks == 1);
    second.ticks = 40; /* a predecessor's */
    CHECK(pl_loop_count_in(loop, &second) == 0);
    CHECK(tick(0) == 0 && second.ticks == 41 && first.ticks == 2);
    CHECK(pl_loop_count_in(loop, NULL) == 0 && pl_loop_counters(loop) == own);
    CHECK(tick(0) == 0 && own->ticks == 2 && second.ticks == 41);
}

static void test_counting_elsewhere_leaves_the_former_place_at_rest(void)
{
    static struct pl_loop_counters other;
    memset(&other, 0, sizeof other);
    CHECK(loop_open() == 0 && pl_loop_enter(loop) == 0);
    const struct pl_loop_counters *own = pl_loop_counters(loop);
    CHECK(own->running_since != 0);
    CHECK(pl_loop_count_in(loop, &other) == 0);
    CHECK(own->running_since == 0 && other.running_since != 0);
    CHECK(pl_loop_leave(loop) == 0 && other.running_since == 0);
    CHECK(pl_loop_count_in(loop, NULL) == 0 && own->running_since == 0);
}

static void test_running_since_is_set_between_waits_of_a_loop_that_runs(void)
{
    CHECK(loop_open() == 0);
    const struct pl_loop_counters *c = pl_loop_counters(loop);
    CHECK(c->running_since == 0 && tick(0) == 0 && c->running_since == 0); /* nobody runs it */
    uint64_t before = (uint64_t)sock_now();
    CHECK(pl_loop_enter(loop) == 0);
    uint64_t entered = c->running_since;
    CHECK(entered >= before && entered <= (uint64_t)sock_now());
    pass(3000 * MS);
    CHECK(c->running_since == entered);
    CHECK(tick(0) == 0 && c->running_since >= entered + (uint64_t)(3000 * MS));
    CHECK(pl_loop_leave(loop) == 0 && c->running_since == 0);
}

static struct pl_loop *volatile waiting;

/* Wake it once it says that it waits; the answer: did it ever? */
static void *watch(void *arg)
{
    const volatile struct pl_loop_counters *c = arg;
    int64_t end = sock_now() + LONG_NS;
    while (c->running_since && sock_now() < end)
        ;
    int waits = c->running_since == 0;
    pl_loop_wake(waiting);
    return waits ? arg : NULL;
}

static void test_running_since_is_zero_while_it_waits(void)
{
    pthread_t thread;
    void *waited;
    CHECK(loop_open() == 0);
    void *shared = mmap(NULL, sizeof(struct pl_loop_counters), PROT_READ | PROT_WRITE,
                        MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(shared != MAP_FAILED && pl_loop_count_in(loop, shared) == 0);
    const volatile struct pl_loop_counters *c = shared;
    CHECK(pl_loop_enter(loop) == 0 && tick(0) == 0 && c->running_since);
    waiting = loop;
    CHECK(pthread_create(&thread, NULL, watch, shared) == 0);
    int n = tick(2 * LONG_NS);
    pthread_join(thread, &waited);
    CHECK(n == 0 && waited && c->running_since && c->wakes == 1);
    CHECK(pl_loop_leave(loop) == 0);
    loop_end();
    munmap(shared, sizeof(struct pl_loop_counters));
}

static void test_lag_sorts_turns_by_how_long_they_kept_the_loop(void)
{
    static const struct {
        int64_t busy_ns;
        int least; /* bucket; the turn itself takes some time as well */
    } turns[] = {{3 * MS, 12}, {70 * MS, 17}, {1100 * MS, 21}, {3600 * 1000 * MS, 25}};
    CHECK(loop_open() == 0 && pl_loop_enter(loop) == 0);
    const struct pl_loop_counters *c = pl_loop_counters(loop);
    for (size_t i = 0; i < sizeof turns / sizeof *turns; i++) {
        CHECK(tick(0) == 0);
        uint64_t busy = c->busy_ns, above = 0, sum = lag_sum(c);
        for (int b = turns[i].least; b < PL_LAG_BUCKETS; b++)
            above += c->lag[b];
        pass(turns[i].busy_ns);
        CHECK(tick(0) == 0 && lag_sum(c) == sum + 1);
        for (int b = turns[i].least; b < PL_LAG_BUCKETS; b++)
            above -= c->lag[b];
        CHECK(above == (uint64_t)-1 && c->busy_ns - busy >= (uint64_t)turns[i].busy_ns);
    }
    CHECK(c->lag[PL_LAG_BUCKETS - 1] == 1); /* the hour */
    CHECK(pl_loop_leave(loop) == 0);
}

static void test_time_that_nobody_runs_the_loop_is_no_turn(void)
{
    CHECK(loop_open() == 0 && pl_loop_enter(loop) == 0 && tick(0) == 0);
    const struct pl_loop_counters *c = pl_loop_counters(loop);
    pass(5000 * MS);
    uint64_t busy = c->busy_ns, sum = lag_sum(c);
    CHECK(pl_loop_leave(loop) == 0); /* what the last turn took counts */
    CHECK(c->busy_ns - busy >= (uint64_t)(5000 * MS) && lag_sum(c) == sum + 1);
    busy = c->busy_ns;
    pass(3600 * 1000 * MS);
    CHECK(pl_loop_enter(loop) == 0 && tick(0) == 0);
    CHECK(c->busy_ns - busy < (uint64_t)(3600 * 1000 * MS) && c->lag[PL_LAG_BUCKETS - 1] == 0);
    CHECK(pl_loop_leave(loop) == 0);
}

static void *count_in_elsewhere(void *arg)
{
    int rc = pl_loop_count_in(loop, arg);
    return rc == PL_E_THREAD ? arg : NULL;
}

static void test_other_threads_and_children_may_not_say_where_to_count(void)
{
    static struct pl_loop_counters other;
    pthread_t thread;
    void *refused;
    int status;
    CHECK(loop_open() == 0 && pl_loop_enter(loop) == 0);
    const struct pl_loop_counters *c = pl_loop_counters(loop);
    uint64_t since = c->running_since;
    CHECK(pthread_create(&thread, NULL, count_in_elsewhere, &other) == 0);
    pthread_join(thread, &refused);
    CHECK(refused && pl_loop_counters(loop) == c && c->running_since == since);
    pid_t pid = fork();
    if (pid == 0) {
        int bad = pl_loop_count_in(loop, &other) != PL_E_FORKED;
        bad |= pl_loop_leave(loop) != PL_E_FORKED || c->running_since != since;
        _exit(bad);
    }
    CHECK(waitpid(pid, &status, 0) == pid && status == 0);
    CHECK(pl_loop_leave(loop) == 0);
}

static void test_callbacks_are_counted_as_the_caller_says(void)
{
    CHECK(loop_open() == 0);
    const struct pl_loop_counters *c = pl_loop_counters(loop);
    CHECK(pl_loop_turn(loop, 0, 3) == 0 && pl_loop_turn(loop, 0, 0) == 0 && tick(0) == 0);
    CHECK(c->callbacks == 3 && c->ticks == 3);
}

/* All conns together, and wherever the loop counts when the call is made. */
static void test_system_calls_are_counted_by_kind(void)
{
    static struct pl_loop_counters c;
    struct sockaddr_in addr;
    int peers[2];
    memset(&c, 0, sizeof c);
    CHECK(loop_open() == 0);
    int group = group_of(PL_LINES);
    uint64_t one = pair_open(group, &peers[0]), other = pair_open(group_of(PL_RAW), &peers[1]);
    CHECK(one && other && pl_loop_count_in(loop, &c) == 0);
    CHECK(put(peers[0], "one\n") && put(peers[1], "other") && tick(LONG_NS) == 2);
    CHECK(c.waits == 1 && c.receives == 2 && c.bytes_in == 9 && c.sends == 0);
    CHECK(pl_conn_send(loop, one, (const uint8_t *)"x", 1) == 0);
    CHECK(pl_conn_send(loop, one, (const uint8_t *)"y", 1) == 0 && tick(0) == 0);
    CHECK(c.sends == 1 && c.bytes_out == 4 && c.waits == 2 && c.accepts == 0);
    CHECK(c.watches == 0 && pl_conn_pause(loop, other) == 0 && pl_conn_resume(loop, other) == 0);
    CHECK(c.watches == (backend == PL_EPOLL ? 2 : 0));
    int listener = tcp_listen(&addr), client = tcp_connect(&addr);
    CHECK(listener >= 0 && client >= 0 && pl_set_nonblocking(listener, 1) == 0);
    CHECK(pl_listener_open(loop, group, listener) == 0 && tick(LONG_NS) == 1);
    CHECK(c.accepts == 2); /* the second one found nobody */
    close(peers[0]);
    close(peers[1]);
    close(client);
    close(listener);
}

static void test_change_to_a_stronger_poller_is_counted(void)
{
    int fds[AUTO_MAX_WATCHED][2];
    CHECK(loop_open() == 0);
    const struct pl_loop_counters *c = pl_loop_counters(loop);
    uint64_t before = c->watches;
    for (size_t i = 0; i < AUTO_MAX_WATCHED; i++)
        CHECK(pipe(fds[i]) == 0 && pl_watch(loop, fds[i][0], PL_READ) == 0);
    bool on_epoll = pl_loop_backend(loop) == PL_EPOLL;
    CHECK(before == (backend == PL_EPOLL ? 2 : 0)); /* wakes and signals */
    CHECK(c->watches == (on_epoll ? AUTO_MAX_WATCHED + 2 : 0));
    for (size_t i = 0; i < AUTO_MAX_WATCHED; i++) {
        CHECK(pl_watch(loop, fds[i][0], 0) == 0);
        close(fds[i][0]);
        close(fds[i][1]);
    }
    CHECK(c->watches == (on_epoll ? 2 * AUTO_MAX_WATCHED + 2 : 0));
}

static int clock_reads, left_too_early;

static void look_at_runner(void)
{
    clock_reads++;
    left_too_early += atomic_load(&loop->runner) == 0;
}

/* Once it is let go, another thread may run it, or free it: what the last turn took is counted before. */
static void test_loop_that_is_let_go_has_been_counted(void)
{
    CHECK(loop_open() == 0 && pl_loop_enter(loop) == 0 && tick(0) == 0);
    clock_reads = left_too_early = 0;
    clock_hook = look_at_runner;
    int rc = pl_loop_leave(loop);
    clock_hook = NULL;
    CHECK(rc == 0 && clock_reads == 1 && left_too_early == 0);
}

CHECK_MAIN(RUN_ON_ALL(test_counts_go_where_the_caller_says_from_then_on);
           RUN_ON_ALL(test_counting_elsewhere_leaves_the_former_place_at_rest);
           RUN_ON_ALL(test_running_since_is_set_between_waits_of_a_loop_that_runs);
           RUN_ON_ALL(test_running_since_is_zero_while_it_waits);
           RUN_ON_ALL(test_lag_sorts_turns_by_how_long_they_kept_the_loop);
           RUN_ON_ALL(test_time_that_nobody_runs_the_loop_is_no_turn);
           RUN_ON_ALL(test_other_threads_and_children_may_not_say_where_to_count);
           RUN_ON_ALL(test_loop_that_is_let_go_has_been_counted);
           RUN_ON_ALL(test_callbacks_are_counted_as_the_caller_says);
           RUN_ON_ALL(test_system_calls_are_counted_by_kind);
           RUN_ON_ALL(test_change_to_a_stronger_poller_is_counted);)
