/* test_share.c -- listeners that several loops accept on: what may be shared, what epoll does, who gets whom. */
#ifdef __linux__
#include <sys/epoll.h>
#endif

#include "share_rig.h"

static int adds_to_fail, adds_exclusive, mods_exclusive;

#ifdef __linux__
/* Stands before libc's: counts, and fails as when memory is short. */
int epoll_ctl(int epoll_fd, int op, int fd, struct epoll_event *event)
{
    int exclusive = event && event->events & EPOLLEXCLUSIVE;
    adds_exclusive += op == EPOLL_CTL_ADD && exclusive;
    mods_exclusive += op == EPOLL_CTL_MOD && exclusive;
    if (op == EPOLL_CTL_ADD && exclusive && adds_to_fail && adds_to_fail--) {
        errno = ENOMEM;
        return -1;
    }
    return (int)syscall(SYS_epoll_ctl, epoll_fd, op, fd, event);
}
#endif

/* ---- what may be shared ---- */

static void test_share_is_refused_for_a_page_that_does_not_fit(void)
{
    CHECK(loop_open() == 0 && page_open(3) == 0);
    int group = group_of(PL_LINES);
    struct pl_page good = *page;
    CHECK(pl_group_share(loop, group, page, page_len, 1) == -EINVAL);
    CHECK(pl_group_share(loop, group, page, page_len - 1, 0) == -EINVAL);
    CHECK(pl_group_share(loop, group, page, sizeof *page - 1, 0) == -EINVAL);
    CHECK(pl_group_share(loop, group + 1, page, page_len, 0) == -EINVAL);
    page->version++;
    CHECK(pl_group_share(loop, group, page, page_len, 0) == -EINVAL);
    *page = good;
    page->cells = 4;
    CHECK(pl_group_share(loop, group, page, page_len, 0) == -EINVAL);
    page->cells = page->stride = UINT32_MAX - 7;
    CHECK(pl_group_share(loop, group, page, page_len, 0) == -EINVAL);
    *page = good;
    page->stride -= 8; /* cells that overlap */
    CHECK(pl_group_share(loop, group, page, page_len, 0) == -EINVAL);
    page->stride = good.stride + 4; /* and crooked ones */
    page->cells = 1;
    CHECK(pl_group_share(loop, group, page, page_len, 0) == -EINVAL);
    *page = good;
    page->servers = UINT32_MAX;
    CHECK(pl_group_share(loop, group, page, page_len, 0) == -EINVAL);
    *page = good;
    CHECK(pl_group_share(loop, group, page, page_len, 0) == 0);
    loop_end();
    pl_memory_unmap(page, page_len);
}

static void test_share_comes_before_the_listeners(void)
{
    CHECK(loop_open() == 0 && page_open(1) == 0 && (listener = tcp_listen(&addr)) >= 0);
    int group = group_of(PL_LINES);
    CHECK(pl_listener_open(loop, group, listener) == 0);
    CHECK(pl_group_share(loop, group, page, page_len, 0) == -EBUSY);
    CHECK(pl_listener_close(loop, listener) == 0);
    CHECK(pl_group_share(loop, group, page, page_len, 0) == 0);
    CHECK(pl_listener_open(loop, group, listener) == 0);
    loop_end();
    close(listener);
    pl_memory_unmap(page, page_len);
}

/* The header is anybody's to write: what was checked counts. ASan and the page's end see to the rest. */
static void test_scribbled_page_misleads_but_is_not_followed(void)
{
    int clients[8];
    CHECK(shared_open() == 0);
    page->used = page->cells = page->stride = page->servers = UINT32_MAX;
    page->size = UINT64_MAX;
    uint8_t *rest = (uint8_t *)(page + 1);
    memset(rest, 0xff, page_len - sizeof *page);
    ((struct pl_cell *)(void *)rest)->state = PL_CELL_READY;
    connect_many(clients, 8);
    int64_t end = sock_now() + LONG_NS;
    int open_ = 0;
    while (open_ < 8 && sock_now() < end && tick(10 * MS) >= 0)
        open_ += event_count(PL_EV_OPEN, 0);
    CHECK(open_ == 8);
    close_many(clients, 8);
    shared_end();
}

/* ---- accepting ---- */

static void test_each_connection_is_accepted_once(void)
{
    int clients[60];
    CHECK(shared_open() == 0);
    connect_many(clients, 60);
    int64_t end = sock_now() + LONG_NS;
    for (int i = 0; accepted() < 60 && sock_now() < end; i++)
        CHECK(pl_loop_tick(loops[i % WORKERS], MS) >= 0);
    CHECK(accepted() == 60 && counters_of(0)->open + counters_of(1)->open == 60);
    CHECK(pl_loop_tick(loops[0], 0) == 0 && pl_loop_tick(loops[1], 0) == 0 && accepted() == 60);
    close_many(clients, 60);
    shared_end();
}

static void test_loop_that_never_turns_strands_no_connection(void)
{
    int clients[20];
    CHECK(shared_open() == 0);
    connect_many(clients, 20);
    int turns = 0;
    while (counters_of(0)->accepted < 20 && turns++ < 100)
        CHECK(tick(5 * MS) >= 0);
    CHECK(counters_of(0)->accepted == 20 && counters_of(1)->accepted == 0);
    close_many(clients, 20);
    shared_end();
}

static void test_full_loop_leaves_the_rest_to_the_other(void)
{
    int clients[10];
    CHECK(page_open(WORKERS) == 0 && (listener = tcp_listen(&addr)) >= 0);
    CHECK(join(0, 3) == 0 && join(1, 0) == 0);
    lead(0);
    connect_many(clients, 10);
    for (int i = 0; i < 5; i++)
        CHECK(tick(0) >= 0);
    CHECK(counters_of(0)->accepted == 3);
    int64_t end = sock_now() + LONG_NS;
    while (accepted() < 10 && sock_now() < end)
        CHECK(pl_loop_tick(loops[1], 5 * MS) >= 0);
    CHECK(counters_of(0)->accepted == 3 && counters_of(1)->accepted == 7);
    close_many(clients, 10);
    shared_end();
}

/* ---- epoll ---- */

static void test_listener_comes_back_after_memory_was_short(void)
{
    int clients[FAIR + 1];
    CHECK(shared_open() == 0);
    connect_many(clients, FAIR + 1);
    CHECK(tick(LONG_NS) == FAIR);
    adds_to_fail = backend == PL_EPOLL ? 2 : 0;
    int rests = 0;
    for (int i = 0; i < 10 && counters_of(0)->accepted == FAIR; i++) {
        pass(loop->accept_at ? ACCEPT_PAUSE_NS : ACCEPT_YIELD_NS);
        CHECK(tick(0) >= 0);
        rests += loop->accept_at != 0;
    }
    CHECK(adds_to_fail == 0 && rests == (backend == PL_EPOLL ? 2 : 0));
    CHECK(counters_of(0)->accepted == FAIR + 1);
    close_many(clients, FAIR + 1);
    shared_end();
}

static void test_listener_that_cannot_be_added_is_an_error_and_leaves_nothing(void)
{
    CHECK(page_open(WORKERS) == 0 && (listener = tcp_listen(&addr)) >= 0);
    adds_to_fail = backend == PL_EPOLL;
    CHECK(join(0, 0) == (backend == PL_EPOLL ? -ENOMEM : 0));
    lead(0);
    CHECK(pl_listener_close(loop, listener) == (backend == PL_EPOLL ? -ENOENT : 0));
    CHECK(pl_listener_open(loop, groups[0], listener) == 0);
    int client = tcp_connect(&addr);
    CHECK(tick(LONG_NS) == 1);
    close(client);
    shared_end();
}

static void test_auto_moves_to_epoll_with_shared_listeners(void)
{
    int fds[80], ends[2], client;
    CHECK(shared_open() == 0 && pipe(ends) == 0);
    for (int i = 0; i < 80; i++) {
        fds[i] = dup(ends[0]);
        CHECK(pl_watch(loop, fds[i], PL_READ) == 0);
    }
    CHECK(backend != PL_AUTO || pl_loop_backend(loop) == PL_EPOLL);
    client = tcp_connect(&addr);
    CHECK(tick(LONG_NS) == 1 && events[0].kind == PL_EV_OPEN);
    close(client);
    shared_end();
    close_many(fds, 80);
    close_many(ends, 2);
}

static void test_epoll_wakes_one_and_is_never_asked_to_change_that(void)
{
    int clients[FAIR + 1];
    adds_exclusive = mods_exclusive = 0;
    CHECK(shared_open() == 0);
    CHECK(adds_exclusive == (backend == PL_EPOLL ? WORKERS : 0));
    connect_many(clients, FAIR + 1);
    CHECK(tick(LONG_NS) == FAIR);
    pass(ACCEPT_YIELD_NS);
    CHECK(tick(0) == 0 && tick(LONG_NS) == 1 && mods_exclusive == 0);
    CHECK(adds_exclusive == (backend == PL_EPOLL ? WORKERS + 1 : 0));
    close_many(clients, FAIR + 1);
    shared_end();
}

/* The kernel has it although the caller does not know: the flag must come to hold all the same. */
static void test_exclusive_interest_replaces_one_that_was_forgotten(void)
{
    const struct poller_ops *ops = poller_find(PL_EPOLL);
    struct poller poller;
    if (!ops || backend != PL_EPOLL)
        return;
    CHECK((listener = tcp_listen(&addr)) >= 0 && poller_init(&poller, ops) == 0);
    CHECK(ops->set(&poller, listener, 0, PL_READ | PL_WRITE) == 0);
    adds_exclusive = mods_exclusive = 0;
    CHECK(ops->set(&poller, listener, 0, PL_READ | POLLER_EXCLUSIVE) == 0);
    CHECK(adds_exclusive == 2 && mods_exclusive == 0);
    int client = tcp_connect(&addr);
    CHECK(ops->wait(&poller, LONG_NS) == 1 && poller.ready[0].fd == listener);
    CHECK(poller.ready[0].mask == PL_READ);
    CHECK(ops->set(&poller, listener, PL_READ | POLLER_EXCLUSIVE, 0) == 0);
    CHECK(ops->wait(&poller, 0) == 0);
    poller_fini(&poller);
    close(client);
    close(listener);
}

/* ---- processes ---- */

/* The other worker, until its cell says that it is to leave. */
static int serve_in_child(void)
{
    int64_t end = sock_now() + 4 * LONG_NS;
    pl_loop_free(loops[0]); /* the parent's */
    int rc = join(1, 0);
    cell_of(1)->state = rc < 0 ? PL_CELL_FREE : PL_CELL_READY;
    volatile uint32_t *state = &cell_of(1)->state;
    while (rc >= 0 && *state == PL_CELL_READY && sock_now() < end)
        rc = pl_loop_tick(loops[1], 10 * MS);
    return rc < 0 || *state != PL_CELL_LEAVING;
}

static void test_processes_on_one_listener_lose_no_connection(void)
{
    int clients[300], n = 0, status;
    int64_t end = sock_now() + 2 * LONG_NS;
    CHECK(page_open(WORKERS) == 0 && (listener = tcp_listen(&addr)) >= 0);
    pl_set_nonblocking(listener, 1);
    cell_of(1)->state = PL_CELL_STARTING;
    CHECK(join(0, 0) == 0);
    lead(0);
    pid_t pid = fork();
    if (pid == 0)
        _exit(serve_in_child());
    volatile uint64_t *theirs = &counters_of(1)->accepted;
    volatile uint32_t *state = &cell_of(1)->state;
    while (*state != PL_CELL_READY && sock_now() < end)
        usleep(100);
    /* Until each has had its part; the parent is often above its share, since only it is never idle. */
    while ((n < 60 || *theirs < 10 || counters_of(0)->accepted < 10) && n < 300) {
        clients[n++] = tcp_connect(&addr);
        while (*theirs + counters_of(0)->accepted < (uint64_t)n && sock_now() < end)
            CHECK(tick(MS) >= 0);
    }
    uint64_t mine = counters_of(0)->accepted, other = *theirs;
    cell_of(1)->state = PL_CELL_LEAVING;
    CHECK(waitpid(pid, &status, 0) == pid && status == 0);
    CHECK(mine + other == (uint64_t)n && mine >= 10 && other >= 10);
    close_many(clients, n);
    shared_end();
}

CHECK_MAIN(RUN_ON_ALL(test_share_is_refused_for_a_page_that_does_not_fit);
           RUN_ON_ALL(test_share_comes_before_the_listeners);
           RUN_ON_ALL(test_scribbled_page_misleads_but_is_not_followed);
           RUN_ON_ALL(test_each_connection_is_accepted_once);
           RUN_ON_ALL(test_loop_that_never_turns_strands_no_connection);
           RUN_ON_ALL(test_full_loop_leaves_the_rest_to_the_other);
           RUN_ON_ALL(test_listener_comes_back_after_memory_was_short);
           RUN_ON_ALL(test_listener_that_cannot_be_added_is_an_error_and_leaves_nothing);
           RUN_ON_ALL(test_auto_moves_to_epoll_with_shared_listeners);
           RUN_ON_ALL(test_epoll_wakes_one_and_is_never_asked_to_change_that);
           RUN_ON_ALL(test_exclusive_interest_replaces_one_that_was_forgotten);
           RUN_ON_ALL(test_processes_on_one_listener_lose_no_connection);)
