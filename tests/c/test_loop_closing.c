/* test_loop_closing.c -- how conns come and go: accept, half-close, close, linger, abort, drain,
 * end of stream, and that nothing of it spins. */
#include <stddef.h>

#include "loop_rig.h"

/* Nothing is to be told, and the wait really waits. */
static int rests(void)
{
    int64_t before = sock_now();
    return tick(3 * MS) == 0 && sock_now() - before >= 3 * MS;
}

/* ---- accept ---- */

static void test_accepted_conn_tells_its_peer(void)
{
    struct sockaddr_in addr, own;
    socklen_t len = sizeof own;
    CHECK(loop_open() == 0);
    struct pl_options o = options_of(PL_LINES);
    o.flags = PL_NODELAY;
    int group = pl_group_new(loop, &o, NULL), listener = tcp_listen(&addr);
    CHECK(pl_listener_open(loop, group, listener) == 0 && tick(0) == 0);
    int client = tcp_connect(&addr);
    CHECK(put(client, "hello\n"));
    int at = tick_until(PL_EV_OPEN, 0);
    CHECK(at >= 0 && events[at].value == group && events[at].end - events[at].data == sizeof own);
    CHECK(getsockname(client, (struct sockaddr *)&own, &len) == 0);
    CHECK(memcmp(events[at].data, &own, offsetof(struct sockaddr_in, sin_zero)) == 0);
    uint64_t id = events[at].id;
    int fd = pl_conn_fd(loop, id);
    CHECK(fd >= 3 && pl_is_nonblocking(fd) == 1 && fcntl(fd, F_GETFD) == FD_CLOEXEC);
    at = tick_until(PL_EV_MESSAGE, id);
    CHECK(event_says(at, "hello") && pl_listener_close(loop, listener) == 0);
    CHECK(pl_listener_close(loop, listener) == -ENOENT);
    int late = tcp_connect(&addr);
    CHECK(late >= 0 && rests() && fcntl(listener, F_GETFD) >= 0);
    close(late);
    close(client);
    close(listener);
}

static void test_unix_listener_accepts_a_nameless_peer(void)
{
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    CHECK(loop_open() == 0);
    int listener = socket(AF_UNIX, SOCK_STREAM, 0), client = socket(AF_UNIX, SOCK_STREAM, 0);
    snprintf(addr.sun_path + 1, sizeof addr.sun_path - 1, "pyloop-test-%d", (int)getpid());
    CHECK(bind(listener, (struct sockaddr *)&addr, sizeof addr) == 0 && listen(listener, 9) == 0);
    CHECK(pl_listener_open(loop, group_of(PL_LINES), listener) == 0);
    CHECK(connect(client, (struct sockaddr *)&addr, sizeof addr) == 0);
    int at = tick_until(PL_EV_OPEN, 0);
    CHECK(at >= 0 && events[at].end - events[at].data == sizeof(sa_family_t));
    close(client);
    loop_end();
    close(listener);
}

static void test_max_connections_leaves_the_rest_in_the_backlog(void)
{
    struct sockaddr_in addr;
    struct pl_options o = options_of(PL_LINES);
    struct pl_counters counters = {0};
    int clients[5];
    o.max_connections = 2;
    CHECK(loop_open() == 0);
    int listener = tcp_listen(&addr);
    CHECK(pl_listener_open(loop, pl_group_new(loop, &o, &counters), listener) == 0);
    for (int i = 0; i < 5; i++)
        clients[i] = tcp_connect(&addr);
    int at = tick_until(PL_EV_OPEN, 0);
    for (uint64_t done = 2; done < 5; done++) {
        CHECK(at >= 0);
        uint64_t id = events[at].id;
        CHECK(tick(0) == 0 && counters.accepted == done && counters.open == 2 && rests());
        CHECK(pl_conn_abort(loop, id, 0) == 0);
        at = tick_until(PL_EV_OPEN, 0);
    }
    CHECK(counters.accepted == 5);
    for (int i = 0; i < 5; i++)
        close(clients[i]);
    loop_end();
    close(listener);
}

static void test_freed_group_leaves_its_conns(void)
{
    struct pl_counters *counters = calloc(1, sizeof *counters);
    struct pl_options o = options_of(PL_LINES);
    struct sockaddr_in addr;
    int peer;
    CHECK(loop_open() == 0);
    int group = pl_group_new(loop, &o, counters), listener = tcp_listen(&addr);
    CHECK(pl_listener_open(loop, group, listener) == 0);
    uint64_t id = pair_open(group, &peer);
    CHECK(counters->open == 1 && pl_group_free(loop, group) == 0);
    free(counters);
    CHECK(pl_group_free(loop, group) == -EINVAL && pl_listener_close(loop, listener) == -ENOENT);
    CHECK(pl_group_new(loop, &o, NULL) != group); /* its conn still has the number */
    CHECK(put(peer, "on\n") && tick(0) == 1 && messages_are(id, TEXTS("on")));
    close(peer);
    CHECK(tick(0) == 1 && pl_conn_close(loop, id) == 0 && tick_until(PL_EV_LOST, id) >= 0);
    CHECK(tick(0) == 0 && pl_group_new(loop, &o, NULL) == group);
    close(listener);
}

/* ---- ends ---- */

static void test_close_flushes_then_waits_for_the_peer(void)
{
    char got[16];
    int peer;
    CHECK(loop_open() == 0);
    uint64_t id = pair_open(group_of(PL_LINES), &peer);
    CHECK(put(peer, "unread\nand more\n") &&
          pl_conn_send(loop, id, (const uint8_t *)"bye", 3) == 0);
    CHECK(pl_conn_close(loop, id) == 0 &&
          pl_conn_send(loop, id, (const uint8_t *)"x", 1) == -EPIPE);
    CHECK(pl_conn_close(loop, id) == 0 && tick(0) == 0);
    CHECK(take(peer, got, sizeof got) == 4 && take(peer, got, sizeof got) == 0);
    CHECK(put(peer, "more\n") && tick(0) == 0 && rests());
    close(peer);
    CHECK(tick_until(PL_EV_LOST, id) >= 0 && batch_n == 1 && events[0].value == 0);
    CHECK(tick(0) == 0 && pl_loop_counters(loop)->events == 1);
}

static void test_close_after_the_peers_end_is_at_once(void)
{
    int peer;
    CHECK(loop_open() == 0);
    uint64_t id = pair_open(group_of(PL_LINES), &peer);
    CHECK(shutdown(peer, SHUT_WR) == 0 && tick(0) == 1 && events[0].kind == PL_EV_EOF);
    CHECK(pl_conn_close(loop, id) == 0 && tick(0) == 1 && events[0].kind == PL_EV_LOST);
    close(peer);
}

static void test_abort_resets_the_peer(void)
{
    struct sockaddr_in addr;
    char got[8];
    CHECK(loop_open() == 0);
    int listener = tcp_listen(&addr);
    CHECK(pl_listener_open(loop, group_of(PL_LINES), listener) == 0);
    int client = tcp_connect(&addr), at = tick_until(PL_EV_OPEN, 0);
    CHECK(at >= 0);
    uint64_t id = events[at].id;
    CHECK(pl_conn_send(loop, id, (const uint8_t *)"lost", 4) == 0);
    CHECK(pl_conn_abort(loop, id, PL_E_IDLE) == 0 && tick(0) == 1);
    CHECK(events[0].kind == PL_EV_LOST && events[0].value == PL_E_IDLE);
    CHECK(take(client, got, sizeof got) == -ECONNRESET);
    close(client);
    loop_end();
    close(listener);
}

static void test_reset_by_the_peer_is_told(void)
{
    struct sockaddr_in addr;
    CHECK(loop_open() == 0);
    int listener = tcp_listen(&addr);
    CHECK(pl_listener_open(loop, group_of(PL_LINES), listener) == 0);
    int client = tcp_connect(&addr), at = tick_until(PL_EV_OPEN, 0);
    uint64_t id = at < 0 ? 0 : events[at].id;
    CHECK(put(client, "part of a") && tick(LONG_NS) == 0);
    sock_reset_on_close(client);
    close(client);
    at = tick_until(PL_EV_LOST, id);
    CHECK(at >= 0 && batch_n == 1 && events[at].value == -ECONNRESET);
    loop_end();
    close(listener);
}

static void test_half_close_keeps_reading(void)
{
    char got[8];
    int peer;
    CHECK(loop_open() == 0);
    uint64_t id = pair_open(group_of(PL_LINES), &peer);
    CHECK(pl_conn_send(loop, id, (const uint8_t *)"end", 3) == 0 &&
          pl_conn_shutdown(loop, id) == 0);
    CHECK(pl_conn_send(loop, id, (const uint8_t *)"x", 1) == -EPIPE &&
          pl_conn_shutdown(loop, id) == -EPIPE);
    CHECK(tick(0) == 0 && take(peer, got, sizeof got) == 4 && take(peer, got, sizeof got) == 0);
    CHECK(put(peer, "still\n") && tick(0) == 1 && messages_are(id, TEXTS("still")));
    close(peer);
    CHECK(tick(0) == 1 && events[0].kind == PL_EV_EOF && rests());
    CHECK(pl_conn_close(loop, id) == 0 && tick_until(PL_EV_LOST, id) >= 0);
}

/* The peer has said its last word, and is answered. */
static void test_end_of_stream_leaves_the_write_side_open(void)
{
    char got[8];
    int peer;
    CHECK(loop_open() == 0);
    uint64_t id = pair_open(group_of(PL_LINES), &peer);
    CHECK(put(peer, "ask\n") && shutdown(peer, SHUT_WR) == 0 && tick(0) == 1 && tick(0) == 1);
    CHECK(events[0].kind == PL_EV_EOF && rests());
    CHECK(pl_conn_send(loop, id, (const uint8_t *)"yes", 3) == 0 && tick(0) == 0);
    CHECK(take(peer, got, sizeof got) == 4);
    close(peer);
    CHECK(rests() && pl_conn_send(loop, id, (const uint8_t *)"no", 2) == 0);
    CHECK(tick(0) == 1 && events[0].kind == PL_EV_LOST && events[0].value == -EPIPE);
}

static void test_paused_conn_that_hangs_up_does_not_spin(void)
{
    int peer;
    CHECK(loop_open() == 0);
    uint64_t id = pair_open(group_of(PL_LINES), &peer);
    CHECK(pl_conn_pause(loop, id) == 0 && pl_conn_pause(loop, id) == 0 && put(peer, "kept\n"));
    close(peer);
    CHECK(rests() && pl_conn_resume(loop, id) == 0 && tick(0) == 1);
    CHECK(messages_are(id, TEXTS("kept")) && tick(0) == 1 && events[0].kind == PL_EV_EOF);
    CHECK(rests());
}

static void test_blocked_conn_does_not_spin_and_is_told_of_the_hang_up(void)
{
    static uint8_t block[1 << 20];
    int peer;
    CHECK(loop_open() == 0);
    uint64_t id = pair_open(group_of(PL_RAW), &peer);
    CHECK(pl_conn_pause(loop, id) == 0 && pl_conn_write(loop, id, block, sizeof block) == 1);
    CHECK(rests() && pl_conn_queued(loop, id) > 0);
    close(peer);
    CHECK(tick(LONG_NS) == 1 && events[0].kind == PL_EV_LOST && events[0].value < 0);
}

/* ---- drain ---- */

static void test_drain_delivers_what_is_there_then_ends(void)
{
    int peer, idle;
    CHECK(loop_open() == 0);
    int group = group_of(PL_LINES);
    uint64_t id = pair_open(group, &peer), quiet = pair_open(group, &idle);
    CHECK(put(peer, "a\nb\npart"));
    CHECK(pl_conn_drain(loop, id) == 0 && pl_conn_drain(loop, quiet) == 0 && tick(LONG_NS) == 4);
    CHECK(messages_are(id, TEXTS("a", "b")));
    int at = event_at(PL_EV_EOF, id, 0), other = event_at(PL_EV_EOF, quiet, 0);
    CHECK(at > event_at(PL_EV_MESSAGE, id, 0) && events[at].value == 1);
    CHECK(other >= 0 && events[other].value == 1);
    CHECK(put(peer, "late\n") && rests() && pl_conn_drain(loop, id) == 0 && tick(0) == 0);
    CHECK(pl_conn_close(loop, id) == 0 && tick(0) == 0);
    close(peer);
    CHECK(tick_until(PL_EV_LOST, id) >= 0);
    close(idle);
}

static void test_drain_of_tls_waits_for_what_is_decrypted(void)
{
    struct pl_options o = options_of(PL_LINES);
    int peer;
    o.flags = PL_TLS;
    CHECK(loop_open() == 0);
    uint64_t id = pair_open(pl_group_new(loop, &o, NULL), &peer);
    CHECK(put(peer, "cipher") && pl_conn_drain(loop, id) == 0 && tick(0) == 1);
    CHECK(events[0].kind == PL_EV_CIPHER && event_says(0, "cipher"));
    CHECK(pl_conn_feed(loop, id, (const uint8_t *)"a\n", 2, 0) == 0);
    CHECK(pl_conn_feed(loop, id, (const uint8_t *)"b\nc", 3, 0) == 0 && tick(0) == 3);
    CHECK(messages_are(id, TEXTS("a", "b")) && events[2].kind == PL_EV_EOF && events[2].value == 1);
    close(peer);
}

static void test_end_of_ciphertext_is_not_yet_the_end(void)
{
    struct pl_options o = options_of(PL_LINES);
    int peer;
    o.flags = PL_TLS;
    CHECK(loop_open() == 0);
    uint64_t id = pair_open(pl_group_new(loop, &o, NULL), &peer);
    close(peer);
    CHECK(tick(0) == 1 && events[0].kind == PL_EV_CIPHER && events[0].data == events[0].end);
    CHECK(rests() && pl_conn_feed(loop, id, (const uint8_t *)"a\nlast", 6, 0) == 0);
    CHECK(pl_conn_feed(loop, id, NULL, 0, 1) == 0 && tick(0) == 3);
    CHECK(messages_are(id, TEXTS("a", "last")) && events[2].kind == PL_EV_EOF && rests());
}

CHECK_MAIN(RUN_ON_ALL(test_accepted_conn_tells_its_peer);
           RUN_ON_ALL(test_unix_listener_accepts_a_nameless_peer);
           RUN_ON_ALL(test_max_connections_leaves_the_rest_in_the_backlog);
           RUN_ON_ALL(test_freed_group_leaves_its_conns);
           RUN_ON_ALL(test_close_flushes_then_waits_for_the_peer);
           RUN_ON_ALL(test_close_after_the_peers_end_is_at_once);
           RUN_ON_ALL(test_abort_resets_the_peer);
           RUN_ON_ALL(test_reset_by_the_peer_is_told);
           RUN_ON_ALL(test_half_close_keeps_reading);
           RUN_ON_ALL(test_end_of_stream_leaves_the_write_side_open);
           RUN_ON_ALL(test_paused_conn_that_hangs_up_does_not_spin);
           RUN_ON_ALL(test_blocked_conn_does_not_spin_and_is_told_of_the_hang_up);
           RUN_ON_ALL(test_drain_delivers_what_is_there_then_ends);
           RUN_ON_ALL(test_drain_of_tls_waits_for_what_is_decrypted);
           RUN_ON_ALL(test_end_of_ciphertext_is_not_yet_the_end);)
