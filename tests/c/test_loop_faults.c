/* test_loop_faults.c -- memory that runs short at every point, fds that vanish, other threads, forks, stale ids. */
#include <pthread.h>
#include <sys/resource.h>

#include "loop_rig.h"

/* ---- memory ---- */

static struct pl_counters counters;
static const char *broken; /* what a scenario found, beside failures that memory explains */

static int fds_open(void)
{
    int n = 0;
    for (int fd = 0; fd < 256; fd++)
        n += fcntl(fd, F_GETFD) >= 0;
    return n;
}

static void echo_batch(uint64_t *eof)
{
    for (int i = 0; i < batch_n; i++) {
        const struct pl_event *e = &events[i];
        if (e->kind == PL_EV_MESSAGE && i % 3 == 2)
            pl_conn_hold(loop, (uint32_t)i);
        else if (e->kind == PL_EV_MESSAGE)
            pl_conn_send(loop, e->id, e->data, (size_t)(e->end - e->data));
        else if (e->kind == PL_EV_FAULT)
            pl_conn_close(loop, e->id);
        else if (e->kind == PL_EV_EOF)
            pl_conn_close(loop, *eof = e->id);
    }
}

/* Accept, echo whole and split and long lines, feed, close, on one loop. Allocations fail meanwhile. */
static void whole_life(void)
{
    static char text[40000];
    struct pl_options o = options_of(PL_LINES);
    struct sockaddr_in addr;
    uint64_t eof = 0, id = 0;
    int pair[2] = {-1, -1};
    o.idle_timeout = o.message_timeout = LONG_NS;
    o.max_connections = 2;
    memset(text, 'x', sizeof text);
    text[sizeof text - 1] = '\n';
    if (loop_open() < 0)
        return;
    int group = pl_group_new(loop, &o, &counters), listener = tcp_listen(&addr);
    int rc = group < 0 ? group : pl_listener_open(loop, group, listener);
    int one = tcp_connect(&addr), two = tcp_connect(&addr);
    if (one < 0 || two < 0 || (rc < 0 && rc != -ENOMEM))
        broken = "set-up";
    if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0 && group >= 0 &&
        pl_conn_open(loop, group, pair[0], &id) < 0)
        close(pair[0]);
    for (int i = 0; i < 12; i++) {
        put(one, "a\nb\nc\nd\npart");
        send(two, text, i % 3 ? 3000 : sizeof text, MSG_NOSIGNAL | MSG_DONTWAIT);
        pl_conn_feed(loop, id, (const uint8_t *)"fed\nhalf", 8, 0);
        if (tick(0) < 0 && batch_n != -ENOMEM)
            broken = "tick";
        echo_batch(&eof);
    }
    close(one);
    shutdown(two, SHUT_WR);
    for (int i = 0; i < 8 && tick(0) >= 0; i++)
        echo_batch(&eof);
    loop_end();
    close(two);
    close(listener);
    close(pair[1]);
    if (group < 0)
        close(pair[0]);
}

static void test_memory_short_at_any_allocation_leaks_nothing(void)
{
    int fds = fds_open();
    unsigned long before = allocs_seen;
    whole_life();
    unsigned long all = allocs_seen - before;
    CHECK(all > 20 && fds_open() == fds);
    for (unsigned long n = 0; n < all + 5; n++) {
        broken = NULL;
        fail_alloc_after((long)n);
        whole_life();
        fail_alloc_never();
        if (broken)
            printf("allocation %lu: %s\n", n, broken);
        CHECK(!broken && fds_open() == fds);
    }
}

/* One conn needs memory that is not there; the others go on, and so do later ones. */
static void test_memory_short_for_one_conn_harms_no_other(void)
{
    static char text[60000];
    int a, b, group;
    memset(text, 'x', sizeof text);
    CHECK(loop_open() == 0);
    CHECK((group = group_of(PL_LINES)) >= 0);
    uint64_t ida = pair_open(group, &a), idb = pair_open(group, &b);
    CHECK(put(b, "warm\n") && tick(0) == 1);
    CHECK(write(a, text, sizeof text) == sizeof text && put(b, "fine\n"));
    fail_alloc_after(0);
    CHECK(tick(0) >= 1 && messages_are(idb, TEXTS("fine")));
    CHECK(pl_conn_send(loop, idb, (const uint8_t *)"x", 1) == -ENOMEM);
    CHECK(pl_conn_queued(loop, idb) == 0);
    fail_alloc_never();
    int at = event_at(PL_EV_LOST, ida, 0);
    at = at < 0 ? tick_until(PL_EV_LOST, ida) : at;
    CHECK(at >= 0 && events[at].value == -ENOMEM);
    CHECK(pl_conn_send(loop, idb, (const uint8_t *)"ok", 2) == 0 && tick(0) == 0);
    char got[8];
    CHECK(take(b, got, sizeof got) == 3 && memcmp(got, "ok\n", 3) == 0);
    close(a);
    close(b);
}

static void test_hold_without_memory_holds_nothing(void)
{
    int peer;
    CHECK(loop_open() == 0);
    uint64_t id = pair_open(group_of(PL_LINES), &peer);
    CHECK(put(peer, "a\nb\nc\n") && tick(0) == 3);
    fail_alloc_after(0);
    CHECK(pl_conn_hold(loop, 1) == -ENOMEM);
    fail_alloc_never();
    CHECK(event_count(PL_EV_MESSAGE, id) == 3);
    CHECK(pl_conn_hold(loop, 1) == 0 && tick(0) == 2 && messages_are(id, TEXTS("b", "c")));
    close(peer);
}

/* ---- fds ---- */

static void test_accept_rests_while_fds_are_short(void)
{
    struct sockaddr_in addr;
    struct rlimit old, tight;
    struct pl_options o = options_of(PL_LINES);
    memset(&counters, 0, sizeof counters);
    CHECK(loop_open() == 0 && getrlimit(RLIMIT_NOFILE, &old) == 0);
    int listener = tcp_listen(&addr), group = pl_group_new(loop, &o, &counters);
    CHECK(pl_listener_open(loop, group, listener) == 0);
    int client = tcp_connect(&addr), free_fd = dup(client);
    close(free_fd);
    tight = old;
    tight.rlim_cur = (rlim_t)free_fd;
    CHECK(setrlimit(RLIMIT_NOFILE, &tight) == 0);
    int n = tick(0), again = tick(0);
    setrlimit(RLIMIT_NOFILE, &old);
    CHECK(n == 1 && again == 0 && counters.accept_pauses == 1 && counters.refused == 0);
    int64_t before = sock_now();
    CHECK(tick_until(PL_EV_OPEN, 0) >= 0);
    CHECK(sock_now() - before < 1000 * MS);
    close(client);
    loop_end();
    close(listener);
}

static void test_conn_closed_behind_the_loops_back_is_lost(void)
{
    int peer, other;
    CHECK(loop_open() == 0);
    int group = group_of(PL_LINES);
    uint64_t id = pair_open(group, &peer), fine = pair_open(group, &other);
    close(pl_conn_fd(loop, id));
    if (backend == PL_EPOLL) { /* says nothing: the next call finds it */
        CHECK(tick(0) == 0 && pl_conn_write(loop, id, (const uint8_t *)"x", 1) == 0);
    }
    int at = tick_until(PL_EV_LOST, id);
    CHECK(at >= 0 && events[at].value == -EBADF);
    CHECK(put(other, "fine\n") && tick_until(PL_EV_MESSAGE, fine) >= 0);
    CHECK(pl_loop_counters(loop)->version == PL_COUNTERS_VERSION);
    close(peer);
    close(other);
}

static void test_fd_at_fd_setsize_is_refused_by_select_only(void)
{
    int fds[2];
    uint64_t id;
    CHECK(loop_open() == 0 && socketpair(AF_UNIX, SOCK_STREAM, 0, fds) == 0);
    int high = fcntl(fds[0], F_DUPFD, pl_fdset_size() + 5);
    CHECK(high >= pl_fdset_size());
    int rc = pl_conn_open(loop, group_of(PL_LINES), high, &id);
    CHECK(rc == (backend == PL_SELECT ? -ERANGE : 0));
    CHECK(pl_loop_backend(loop) == (backend == PL_AUTO ? PL_EPOLL : backend));
    if (rc == 0) {
        CHECK(put(fds[1], "high\n") && tick(0) == 1 && messages_are(id, TEXTS("high")));
    } else {
        close(high);
    }
    close(fds[0]);
    close(fds[1]);
}

static void test_fd_of_a_conn_cannot_be_watched(void)
{
    int peer;
    uint64_t other;
    CHECK(loop_open() == 0);
    int group = group_of(PL_LINES);
    uint64_t id = pair_open(group, &peer);
    int fd = pl_conn_fd(loop, id);
    CHECK(pl_watch(loop, fd, PL_READ) == -EEXIST && pl_watch(loop, fd, 0) == -EEXIST);
    CHECK(pl_conn_open(loop, group, fd, &other) == -EEXIST);
    CHECK(pl_listener_open(loop, group, fd) == -EEXIST);
    CHECK(pl_listener_open(loop, 99, peer) == -EINVAL &&
          pl_conn_open(loop, -1, peer, &other) == -EINVAL);
    CHECK(pl_watch(loop, peer, 4) == -EINVAL && pl_watch(loop, -1, PL_READ) == -EBADF);
    CHECK(pl_listener_close(loop, fd) == -ENOENT && pl_watch(loop, peer, 0) == 0);
    close(peer);
}

/* ---- ids, threads, processes ---- */

static void test_stale_ids_are_refused(void)
{
    int peer, next;
    CHECK(loop_open() == 0);
    int group = group_of(PL_LINES);
    uint64_t id = pair_open(group, &peer);
    CHECK(pl_conn_abort(loop, id, -ECONNABORTED) == 0);
    CHECK(pl_conn_close(loop, id) == -ESTALE && pl_conn_fd(loop, id) == -ESTALE);
    CHECK(tick(0) == 1 && events[0].kind == PL_EV_LOST && events[0].value == -ECONNABORTED);
    CHECK(pl_conn_send(loop, id, (const uint8_t *)"x", 1) == -ESTALE && tick(0) == 0);
    uint64_t heir = pair_open(group, &next);
    CHECK((uint32_t)heir == (uint32_t)id && heir != id);
    CHECK(pl_conn_send(loop, id, (const uint8_t *)"x", 1) == -ESTALE);
    CHECK(pl_conn_abort(loop, id, 0) == -ESTALE && pl_conn_pause(loop, id) == -ESTALE);
    CHECK(pl_conn_resume(loop, id) == -ESTALE && pl_conn_drain(loop, id) == -ESTALE);
    CHECK(pl_conn_shutdown(loop, id) == -ESTALE && pl_conn_queued(loop, id) == -ESTALE);
    CHECK(pl_conn_feed(loop, id, NULL, 0, 1) == -ESTALE && pl_conn_close(loop, 0) == -ESTALE);
    CHECK(pl_conn_close(loop, UINT64_MAX) == -ESTALE && pl_conn_close(NULL, heir) == -ESTALE);
    CHECK(pl_conn_fd(loop, heir) >= 0);
    CHECK(pl_conn_hold(loop, 0) == -EINVAL);
    close(peer);
    close(next);
}

static uint64_t shared_id;

static void *call_from_elsewhere(void *arg)
{
    int group, bad = 0;
    struct pl_options o = options_of(PL_RAW);
    (void)arg;
    group = pl_group_new(loop, &o, NULL);
    bad |= group != PL_E_THREAD || pl_loop_tick(loop, 0) != PL_E_THREAD;
    bad |= pl_conn_send(loop, shared_id, NULL, 0) != PL_E_THREAD;
    bad |= pl_conn_close(loop, shared_id) != PL_E_THREAD || pl_conn_hold(loop, 0) != PL_E_THREAD;
    bad |= pl_conn_fd(loop, shared_id) != PL_E_THREAD || pl_watch(loop, 0, 0) != PL_E_THREAD;
    bad |= pl_group_free(loop, 0) != PL_E_THREAD || pl_listener_close(loop, 0) != PL_E_THREAD;
    bad |= pl_loop_enter(loop) != -EBUSY || pl_loop_leave(loop) != PL_E_THREAD;
    bad |= pl_loop_free(loop) != -EBUSY || pl_loop_flush(loop) != PL_E_THREAD;
    bad |= pl_loop_wake(loop) != 0;
    return bad ? (void *)&shared_id : NULL;
}

static void test_other_threads_are_refused_while_one_runs_it(void)
{
    int peer;
    void *bad;
    pthread_t thread;
    CHECK(loop_open() == 0);
    shared_id = pair_open(group_of(PL_LINES), &peer);
    CHECK(pl_loop_enter(loop) == 0 && pl_loop_enter(loop) == -EBUSY);
    CHECK(pthread_create(&thread, NULL, call_from_elsewhere, NULL) == 0);
    pthread_join(thread, &bad);
    CHECK(!bad && tick(LONG_NS) == 0 && pl_loop_counters(loop)->wakes == 1);
    CHECK(pl_loop_leave(loop) == 0 && pl_conn_fd(loop, shared_id) >= 0);
    close(peer);
}

static int let_go_in_child(int group, int listener, int pipe_fd)
{
    int bad = pl_loop_tick(loop, 0) != PL_E_FORKED ||
              pl_conn_send(loop, shared_id, NULL, 0) != PL_E_FORKED;
    bad |= pl_watch(loop, pipe_fd, PL_READ) != PL_E_FORKED || pl_loop_enter(loop) != PL_E_FORKED;
    bad |= pl_conn_hold(loop, 0) != PL_E_FORKED || pl_loop_flush(loop) != PL_E_FORKED;
    bad |= pl_watch(loop, pipe_fd, 0) != 0 || pl_listener_close(loop, listener) != 0;
    bad |= pl_conn_close(loop, shared_id) != 1 || pl_conn_close(loop, shared_id) != -ESTALE;
    bad |= pl_group_free(loop, group) != 0;
    return bad || pl_loop_free(loop) != 0;
}

static void test_child_lets_go_and_harms_nothing(void)
{
    struct sockaddr_in addr;
    int fds[2], peer, status;
    CHECK(loop_open() == 0 && pipe(fds) == 0);
    int group = group_of(PL_LINES), listener = tcp_listen(&addr);
    shared_id = pair_open(group, &peer);
    CHECK(pl_listener_open(loop, group, listener) == 0 && pl_watch(loop, fds[0], PL_READ) == 0);
    CHECK(pl_loop_enter(loop) == 0 && tick(0) == 0);
    CHECK(pl_conn_send(loop, shared_id, (const uint8_t *)"mine", 4) == 0);
    pid_t pid = fork();
    if (pid == 0)
        _exit(let_go_in_child(group, listener, fds[0]));
    CHECK(waitpid(pid, &status, 0) == pid && WIFEXITED(status) && WEXITSTATUS(status) == 0);
    char got[16];
    CHECK(take(peer, got, sizeof got) == -EAGAIN); /* the child flushed nothing, shut nothing */
    int client = tcp_connect(&addr);
    CHECK(write(fds[1], "x", 1) == 1 && put(peer, "still\n"));
    CHECK(tick(LONG_NS) == 3 && messages_are(shared_id, TEXTS("still")));
    CHECK(event_at(PL_EV_OPEN, 0, 0) >= 0 && event_at(PL_EV_READ, 0, 0) >= 0);
    CHECK(take(peer, got, sizeof got) == 5 && pl_loop_leave(loop) == 0);
    close(client);
    close(peer);
    close(fds[1]);
    loop_end();
    close(fds[0]);
    close(listener);
}

CHECK_MAIN(RUN_ON_ALL(test_memory_short_at_any_allocation_leaks_nothing);
           RUN_ON_ALL(test_memory_short_for_one_conn_harms_no_other);
           RUN_ON_ALL(test_hold_without_memory_holds_nothing);
           RUN_ON_ALL(test_accept_rests_while_fds_are_short);
           RUN_ON_ALL(test_conn_closed_behind_the_loops_back_is_lost);
           RUN_ON_ALL(test_fd_at_fd_setsize_is_refused_by_select_only);
           RUN_ON_ALL(test_fd_of_a_conn_cannot_be_watched);
           RUN_ON_ALL(test_stale_ids_are_refused);
           RUN_ON_ALL(test_other_threads_are_refused_while_one_runs_it);
           RUN_ON_ALL(test_child_lets_go_and_harms_nothing);)
