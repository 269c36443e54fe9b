/* test_loop_regress.c -- one test for each mistake that the loop once made. */
#include <sys/resource.h>

#include "loop_rig.h"

/* Messages of a conn until its end of stream, at most `most` ticks. -1: it did not end. */
static int messages_until_eof(uint64_t id, int most)
{
    int n = 0;
    while (most--) {
        if (tick(0) < 0)
            return -1;
        n += event_count(PL_EV_MESSAGE, id);
        if (event_at(PL_EV_EOF, id, 0) >= 0)
            return n;
    }
    return -1;
}

static void test_drain_behind_uncut_bytes_still_ends(void)
{
    int peer;
    char lines[3000];
    memset(lines, '\n', sizeof lines);
    CHECK(loop_open() == 0);
    uint64_t id = pair_open(group_of(PL_LINES), &peer);
    CHECK(write(peer, lines, sizeof lines) == sizeof lines);
    CHECK(tick(0) == 1024); /* the budget: the rest waits */
    CHECK(pl_conn_drain(loop, id) == 0);
    CHECK(messages_until_eof(id, 10) == 3000 - 1024);
    close(peer);
    loop_end();
}

static void test_drain_of_a_paused_conn_ends_once_resumed(void)
{
    int peer;
    CHECK(loop_open() == 0);
    uint64_t id = pair_open(group_of(PL_LINES), &peer);
    CHECK(put(peer, "a\nb\nc\n") && tick(0) == 3);
    CHECK(pl_conn_pause(loop, id) == 0 && pl_conn_hold(loop, 1) == 0);
    CHECK(put(peer, "d\n"));
    CHECK(pl_conn_drain(loop, id) == 0 && tick(0) == 0);
    CHECK(pl_conn_resume(loop, id) == 0);
    CHECK(messages_until_eof(id, 10) == 3);
    close(peer);
    loop_end();
}

static void test_drain_behind_a_held_end_of_stream_ends(void)
{
    int peer;
    CHECK(loop_open() == 0);
    uint64_t id = pair_open(group_of(PL_LINES), &peer);
    CHECK(pl_conn_feed(loop, id, (const uint8_t *)"a\nb\n", 4, 0) == 0);
    CHECK(shutdown(peer, SHUT_WR) == 0);
    CHECK(tick(0) == 2 && tick(0) == 1 && events[0].kind == PL_EV_EOF);
    CHECK(pl_conn_pause(loop, id) == 0 && pl_conn_hold(loop, 0) == 0);
    CHECK(pl_conn_drain(loop, id) == 0 && tick(0) == 0 && pl_conn_resume(loop, id) == 0);
    CHECK(messages_until_eof(id, 10) == 0);
    close(peer);
    loop_end();
}

static void test_closing_tls_conn_takes_no_records(void)
{
    struct pl_options o = options_of(PL_LINES);
    int peer;
    o.flags = PL_TLS;
    CHECK(loop_open() == 0);
    uint64_t id = pair_open(pl_group_new(loop, &o, NULL), &peer);
    CHECK(pl_conn_close(loop, id) == 0 && tick(0) == 0);
    CHECK(pl_conn_write(loop, id, (const uint8_t *)"x", 1) == -EPIPE);
    CHECK(tick(0) == 0 && tick(0) == 0);
    close(peer);
    CHECK(tick_until(PL_EV_LOST, id) >= 0 && events[0].value == 0);
    loop_end();
}

/* A record at a time, as SSLObject.read gives them. */
static void test_feeding_pieces_does_not_copy_what_is_there(void)
{
    struct pl_options o = options_of(PL_PREFIX);
    uint8_t piece[16384] = {0, 0x20, 0, 0}; /* a message of 2 MiB */
    int peer;
    char c = 0;
    o.flags = PL_TLS;
    o.framing.max_size = 1 << 24;
    CHECK(loop_open() == 0);
    uint64_t id = pair_open(pl_group_new(loop, &o, NULL), &peer);
    unsigned long before = allocs_seen;
    for (int i = 0; i < 32; i++) {
        CHECK(write(peer, &c, 1) == 1);
        CHECK(tick_until(PL_EV_CIPHER, id) == 0);
        for (int k = 0; k < 4; k++) {
            CHECK(pl_conn_feed(loop, id, piece, sizeof piece, 0) == 0);
            piece[1] = 0;
        }
    }
    CHECK(allocs_seen - before < 32); /* doubling takes some eight */
    close(peer);
    loop_end();
}

static void test_feed_before_hold_keeps_the_order(void)
{
    struct pl_options o = options_of(PL_LINES);
    int peer;
    o.flags = PL_TLS;
    CHECK(loop_open() == 0);
    uint64_t id = pair_open(pl_group_new(loop, &o, NULL), &peer);
    CHECK(pl_conn_feed(loop, id, (const uint8_t *)"a\nb\nre", 6, 0) == 0);
    CHECK(tick(0) == 2);
    CHECK(pl_conn_feed(loop, id, (const uint8_t *)"st\n", 3, 0) == 0);
    CHECK(pl_conn_hold(loop, 1) == 0);
    CHECK(tick(0) == 2 && messages_are(id, TEXTS("b", "rest")));
    close(peer);
    loop_end();
}

/* A program that closes a watched fd, and the number comes back from accept. */
static void test_conn_on_the_number_of_a_vanished_watcher_works(void)
{
    struct sockaddr_in addr;
    int fds[2];
    CHECK(loop_open() == 0);
    int listener = tcp_listen(&addr);
    CHECK(pl_listener_open(loop, group_of(PL_LINES), listener) == 0);
    int client = tcp_connect(&addr);
    CHECK(pipe(fds) == 0);
    CHECK(pl_watch(loop, fds[0], PL_READ) == 0 && tick(0) >= 0);
    int at = event_at(PL_EV_OPEN, 0, 0);
    if (at < 0) { /* else the loop saw the client first: connect another */
        at = tick_until(PL_EV_OPEN, 0);
    }
    close(client);
    client = tcp_connect(&addr);
    CHECK(put(client, "hello\n"));
    close(fds[0]); /* the lowest free number now */
    at = tick_until(PL_EV_OPEN, 0);
    CHECK(at >= 0);
    uint64_t id = events[at].id;
    int got = event_at(PL_EV_MESSAGE, id, 0);
    for (int i = 0; got < 0 && i < 10; i++) {
        CHECK(tick(200 * MS) >= 0);
        CHECK(event_at(PL_EV_LOST, id, 0) < 0);
        got = event_at(PL_EV_MESSAGE, id, 0);
    }
    CHECK(event_says(got, "hello"));
    close(client);
    close(fds[1]);
    loop_end();
    close(listener);
}

/* Run `body` in a child: 0 when it returned 0 in good time. */
static int in_child(int (*body)(void))
{
    int status;
    fflush(stdout);
    pid_t pid = fork();
    if (pid == 0) {
        alarm(10);
        _exit(body());
    }
    return waitpid(pid, &status, 0) == pid && WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static int watch_absurd_fd(void)
{
    if (loop_open() < 0)
        return 1;
    return pl_watch(loop, 2000000000, PL_READ) == -EBADF ? 0 : 2;
}

static void test_absurd_fd_is_refused(void)
{
    CHECK(in_child(watch_absurd_fd) == 0);
}

static int call_without_a_loop(void)
{
    int bad = pl_conn_hold(NULL, 0) != -ESTALE;
    bad |= pl_listener_close(NULL, 0) != -ESTALE;
    bad |= pl_group_free(NULL, 0) != -ESTALE;
    bad |= pl_watch(NULL, 0, 0) != -ESTALE;
    return bad;
}

static void test_null_loop_is_stale(void)
{
    CHECK(in_child(call_without_a_loop) == 0);
}

/* A handler worked for longer than `linger`: the clock of lingering starts when it has closed. */
static void test_linger_starts_at_the_close(void)
{
    struct pl_options o = options_of(PL_LINES);
    int peer;
    o.linger = 800 * MS;
    CHECK(loop_open() == 0);
    uint64_t id = pair_open(pl_group_new(loop, &o, NULL), &peer);
    CHECK(put(peer, "a\n") && tick(0) == 1);
    pass(1200 * MS);
    CHECK(pl_conn_close(loop, id) == 0);
    CHECK(tick(0) == 0 && tick(0) == 0);
    close(peer);
    CHECK(tick_until(PL_EV_LOST, id) >= 0);
    loop_end();
}

static void test_busy_handler_makes_nobody_idle(void)
{
    struct pl_options o = options_of(PL_LINES);
    int peer;
    o.idle_timeout = 400 * MS;
    CHECK(loop_open() == 0);
    uint64_t id = pair_open(pl_group_new(loop, &o, NULL), &peer);
    CHECK(tick(0) == 0 && put(peer, "in time\n"));
    pass(600 * MS); /* a handler of another conn */
    CHECK(tick(0) == 1 && messages_are(id, TEXTS("in time")));
    close(peer);
    loop_end();
}

/* Nothing is unfinished once the last line was delivered. */
static void test_last_line_ends_the_message_clock(void)
{
    struct pl_options o = options_of(PL_LINES);
    int peer;
    o.message_timeout = 200 * MS;
    CHECK(loop_open() == 0);
    uint64_t id = pair_open(pl_group_new(loop, &o, NULL), &peer);
    CHECK(put(peer, "last") && tick(0) == 0 && shutdown(peer, SHUT_WR) == 0);
    CHECK(tick(0) == 2 && messages_are(id, TEXTS("last")));
    pass(300 * MS);
    CHECK(tick(0) == 0 && tick(0) == 0); /* no PL_EV_FAULT: the write side is open */
    close(peer);
    loop_end();
}

static void test_pause_stops_the_message_clock(void)
{
    struct pl_options o = options_of(PL_LINES);
    int peer;
    o.message_timeout = 400 * MS;
    CHECK(loop_open() == 0);
    uint64_t id = pair_open(pl_group_new(loop, &o, NULL), &peer);
    CHECK(put(peer, "ha") && tick(0) == 0);
    CHECK(pl_conn_pause(loop, id) == 0 && put(peer, "lf\n"));
    pass(600 * MS);
    CHECK(tick(0) == 0 && pl_conn_resume(loop, id) == 0);
    CHECK(tick(0) == 1 && messages_are(id, TEXTS("half")));
    CHECK(put(peer, "slow") && tick(0) == 0);
    CHECK(pl_conn_pause(loop, id) == 0 && tick(0) == 0 && pl_conn_resume(loop, id) == 0);
    CHECK(tick_until(PL_EV_FAULT, id) >= 0); /* and goes on */
    close(peer);
    loop_end();
}

static void test_held_timeout_comes_again(void)
{
    struct pl_options o = options_of(PL_LINES);
    int peer;
    o.idle_timeout = 5 * MS;
    CHECK(loop_open() == 0);
    uint64_t id = pair_open(pl_group_new(loop, &o, NULL), &peer);
    int at = tick_until(PL_EV_FAULT, id);
    CHECK(at >= 0 && events[at].value == PL_E_IDLE);
    CHECK(pl_conn_hold(loop, (uint32_t)at) == 0);
    at = tick_until(PL_EV_FAULT, id);
    CHECK(at >= 0 && events[at].value == PL_E_IDLE);
    close(peer);
    loop_end();
}

static void test_held_fault_is_counted_once(void)
{
    struct pl_options o = options_of(PL_NETSTRING);
    struct pl_counters counters = {0};
    int peer;
    CHECK(loop_open() == 0);
    uint64_t id = pair_open(pl_group_new(loop, &o, &counters), &peer);
    CHECK(put(peer, "1:a,x") && tick(0) == 2 && pl_conn_hold(loop, 0) == 0);
    CHECK(tick_until(PL_EV_FAULT, id) >= 0);
    CHECK(counters.framing_errors == 1 && counters.messages_in == 1);
    close(peer);
    loop_end();
}

/* auto: a watcher whose fd vanished before the move is still told. */
static void test_move_tells_of_vanished_fds(void)
{
    int fds[2], more[80];
    CHECK(loop_open() == 0);
    CHECK(pipe(fds) == 0);
    int high = fcntl(fds[0], F_DUPFD, 500);
    CHECK(pl_watch(loop, high, PL_READ) == 0);
    close(high);
    for (int i = 0; i < 80; i++) {
        more[i] = dup(fds[0]);
        CHECK(pl_watch(loop, more[i], PL_READ) == 0);
    }
    if (backend == PL_AUTO || backend == PL_SELECT || backend == PL_POLL) {
        int at = tick_until(PL_EV_BADFD, 0);
        CHECK(at >= 0 && (int)events[at].slot == high);
    }
    for (int i = 0; i < 80; i++)
        close(more[i]);
    loop_end();
    close(fds[0]);
    close(fds[1]);
}

/* No fd is left for epoll: what fits select stays there. */
static void test_move_that_fails_is_put_off(void)
{
    struct rlimit old, tight;
    int fds[2], more[80];
    CHECK(getrlimit(RLIMIT_NOFILE, &old) == 0);
    CHECK(loop_open() == 0 && pipe(fds) == 0);
    for (int i = 0; i < 80; i++)
        CHECK((more[i] = dup(fds[0])) >= 0);
    tight = old;
    tight.rlim_cur = (rlim_t)more[79] + 1;
    CHECK(setrlimit(RLIMIT_NOFILE, &tight) == 0);
    int rc = 0;
    for (int i = 0; i < 80 && rc == 0; i++)
        rc = pl_watch(loop, more[i], PL_READ);
    setrlimit(RLIMIT_NOFILE, &old);
    CHECK(rc == 0);
    for (int i = 0; i < 80; i++)
        close(more[i]);
    loop_end();
    close(fds[0]);
    close(fds[1]);
}

/* A peer that says its piece and leaves, and is answered all the same. */
static void test_messages_received_outlive_a_failed_send(void)
{
    int peer;
    char lines[3000];
    memset(lines, '\n', sizeof lines);
    CHECK(loop_open() == 0);
    uint64_t id = pair_open(group_of(PL_LINES), &peer);
    CHECK(write(peer, lines, sizeof lines) == sizeof lines);
    close(peer);
    CHECK(tick(0) == 1024 && pl_conn_send(loop, id, (const uint8_t *)"ok", 2) == 0);
    CHECK(messages_until_eof(id, 10) == 3000 - 1024);
    CHECK(pl_conn_close(loop, id) == 0 && tick_until(PL_EV_LOST, id) >= 0);
    loop_end();
}

/* One message a turn, as an async handler takes them: the work is linear in the messages. */
static void test_holding_all_but_one_costs_little(void)
{
    int peer;
    char lines[2000];
    memset(lines, '\n', sizeof lines);
    CHECK(loop_open() == 0);
    uint64_t id = pair_open(group_of(PL_LINES), &peer);
    CHECK(write(peer, lines, sizeof lines) == sizeof lines);
    uint64_t delivered = 0;
    while (delivered < 2000) {
        CHECK(tick(0) > 0);
        delivered++;
        if (batch_n > 1)
            CHECK(pl_conn_hold(loop, 1) == 0);
    }
    uint64_t made = pl_loop_counters(loop)->events;
    CHECK(id && made < 8 * 2000);
    close(peer);
    loop_end();
}

CHECK_MAIN(RUN_ON_ALL(test_drain_behind_uncut_bytes_still_ends);
           RUN_ON_ALL(test_drain_of_a_paused_conn_ends_once_resumed);
           RUN_ON_ALL(test_drain_behind_a_held_end_of_stream_ends);
           RUN_ON_ALL(test_closing_tls_conn_takes_no_records);
           RUN_ON_ALL(test_feeding_pieces_does_not_copy_what_is_there);
           RUN_ON_ALL(test_feed_before_hold_keeps_the_order);
           RUN_ON_ALL(test_conn_on_the_number_of_a_vanished_watcher_works);
           RUN_ON_ALL(test_absurd_fd_is_refused);
           RUN(test_null_loop_is_stale);
           RUN_ON_ALL(test_linger_starts_at_the_close);
           RUN_ON_ALL(test_busy_handler_makes_nobody_idle);
           RUN_ON_ALL(test_last_line_ends_the_message_clock);
           RUN_ON_ALL(test_pause_stops_the_message_clock);
           RUN_ON_ALL(test_held_timeout_comes_again);
           RUN_ON_ALL(test_held_fault_is_counted_once);
           RUN_ON_ALL(test_move_tells_of_vanished_fds);
           RUN_ON_ALL(test_move_that_fails_is_put_off);
           RUN_ON_ALL(test_messages_received_outlive_a_failed_send);
           RUN_ON_ALL(test_holding_all_but_one_costs_little);)
