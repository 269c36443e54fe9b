/* test_handover.c -- groups whose accepted sockets go to the caller, and count until they are released. */
#include <netinet/tcp.h>
#include <pthread.h>
#include <sys/resource.h>

#include "loop.h"
#include "loop_rig.h"

static struct pl_counters counters;
static struct sockaddr_in addr;
static int listener, group;

static int handing_open(uint32_t max_connections)
{
    struct pl_options o = options_of(PL_RAW);
    o.flags = PL_HAND_OVER | PL_NODELAY;
    o.max_connections = max_connections;
    o.idle_timeout = MS; /* what is handed over has no deadlines here */
    memset(&counters, 0, sizeof counters);
    int rc = loop_open();
    if (rc < 0 || (group = pl_group_new(loop, &o, &counters)) < 0)
        return rc < 0 ? rc : group;
    listener = tcp_listen(&addr);
    return pl_listener_open(loop, group, listener);
}

static void handing_end(void)
{
    loop_end();
    close(listener);
}

/* Close all fds that this batch handed over; how many. */
static int close_handed(void)
{
    int n = 0;
    for (int i = event_at(PL_EV_ACCEPTED, 0, 0); i >= 0; i = event_at(PL_EV_ACCEPTED, 0, i + 1), n++)
        close((int)events[i].id);
    return n;
}

static void test_accepted_socket_is_the_callers_and_nobody_elses(void)
{
    CHECK(handing_open(0) == 0);
    int client = tcp_connect(&addr);
    CHECK(tick(LONG_NS) == 1 && events[0].kind == PL_EV_ACCEPTED && events[0].value == group);
    int fd = (int)events[0].id, on = 0;
    socklen_t len = sizeof on;
    struct sockaddr_in peer, self;
    CHECK(pl_is_nonblocking(fd) == 1 && (fcntl(fd, F_GETFD) & FD_CLOEXEC));
    CHECK(getsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, &len) == 0 && on);
    CHECK(events[0].end - events[0].data == (ptrdiff_t)sizeof peer);
    memcpy(&peer, events[0].data, sizeof peer);
    len = sizeof self;
    CHECK(getsockname(client, (struct sockaddr *)&self, &len) == 0);
    CHECK(peer.sin_port == self.sin_port && peer.sin_addr.s_addr == self.sin_addr.s_addr);
    CHECK(counters.accepted == 1 && counters.open == 1);
    CHECK(put(client, "hello"));
    pass(1000 * MS);
    CHECK(tick(0) == 0); /* neither read nor timed out */
    char got[8];
    CHECK(take(fd, got, sizeof got) == 5 && memcmp(got, "hello", 5) == 0);
    close(fd);
    CHECK(pl_group_release(loop, group) == 0 && counters.open == 0 && counters.accepted == 1);
    close(client);
    handing_end();
}

static void test_accepting_rests_at_max_connections_until_one_is_released(void)
{
    int clients[5];
    CHECK(handing_open(2) == 0);
    for (int i = 0; i < 5; i++)
        clients[i] = tcp_connect(&addr);
    CHECK(tick(LONG_NS) == 2 && close_handed() == 2);
    CHECK(tick(0) == 0 && counters.open == 2);
    for (uint64_t n = 3; n <= 5; n++) {
        CHECK(pl_group_release(loop, group) == 0);
        CHECK(tick(LONG_NS) == 1 && close_handed() == 1);
        CHECK(counters.accepted == n && counters.open == 2 && tick(0) == 0);
    }
    for (int i = 0; i < 5; i++)
        close(clients[i]);
    handing_end();
}

static void test_release_needs_something_to_release(void)
{
    CHECK(handing_open(0) == 0);
    int peer, plain = group_of(PL_RAW);
    uint64_t id = pair_open(plain, &peer);
    CHECK(pl_group_release(loop, group) == -EINVAL && pl_group_release(loop, plain) == -EINVAL);
    CHECK(pl_group_release(loop, -1) == -EINVAL && pl_group_release(loop, 1000) == -EINVAL);
    CHECK(pl_group_release(loop, plain + 1) == -EINVAL);
    int client = tcp_connect(&addr);
    CHECK(tick(LONG_NS) == 1 && close_handed() == 1);
    CHECK(pl_group_release(loop, group) == 0 && pl_group_release(loop, group) == -EINVAL);
    CHECK(counters.open == 0 && pl_conn_fd(loop, id) >= 0);
    close(client);
    close(peer);
    handing_end();
}

/* Whose fd an event speaks of is clear for as long as anybody may ask. */
static void test_number_of_a_freed_group_is_taken_until_all_is_released(void)
{
    int clients[2];
    CHECK(handing_open(0) == 0);
    for (int i = 0; i < 2; i++)
        clients[i] = tcp_connect(&addr);
    CHECK(tick(LONG_NS) == 2 && close_handed() == 2);
    CHECK(pl_group_free(loop, group) == 0);
    memset(&counters, 0xee, sizeof counters); /* they may be gone by now */
    CHECK(pl_group_free(loop, group) == -EINVAL && group_of(PL_RAW) != group);
    CHECK(pl_group_release(loop, group) == 0 && group_of(PL_RAW) != group);
    CHECK(pl_group_release(loop, group) == 0 && pl_group_release(loop, group) == -EINVAL);
    CHECK(group_of(PL_RAW) == group);
    for (size_t i = 0; i < sizeof counters; i++)
        CHECK(((uint8_t *)&counters)[i] == 0xee);
    for (int i = 0; i < 2; i++)
        close(clients[i]);
    handing_end();
}

static void test_fds_beyond_selects_limit_are_handed_over(void)
{
    struct rlimit limit;
    CHECK(handing_open(0) == 0 && getrlimit(RLIMIT_NOFILE, &limit) == 0);
    int top = pl_fdset_size() + 100;
    limit.rlim_cur = limit.rlim_max;
    CHECK(setrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur > (rlim_t)top);
    int client = tcp_connect(&addr), spare[2000], n = 0;
    while (n < 2000 && (spare[n] = dup(client)) >= 0 && spare[n++] < pl_fdset_size())
        ;
    CHECK(tick(LONG_NS) == 1 && events[0].kind == PL_EV_ACCEPTED);
    CHECK((int)events[0].id >= pl_fdset_size() && counters.refused == 0);
    CHECK(close_handed() == 1);
    while (n)
        close(spare[--n]);
    close(client);
    handing_end();
}

static void test_short_of_fds_it_rests_as_any_group(void)
{
    struct rlimit old, tight;
    CHECK(handing_open(0) == 0 && getrlimit(RLIMIT_NOFILE, &old) == 0);
    int client = tcp_connect(&addr), free_fd = dup(client);
    close(free_fd);
    tight = old;
    tight.rlim_cur = (rlim_t)free_fd;
    CHECK(setrlimit(RLIMIT_NOFILE, &tight) == 0);
    int n = tick(0);
    setrlimit(RLIMIT_NOFILE, &old);
    CHECK(n == 1 && events[0].kind == PL_EV_REFUSED && events[0].id == 1);
    CHECK(events[0].value == -EMFILE && (int)events[0].slot == group);
    CHECK(counters.accept_pauses == 1 && counters.open == 0 && loop->accept_at);
    pass(ACCEPT_PAUSE_NS);
    CHECK(tick(0) == 0 && tick(LONG_NS) == 1 && close_handed() == 1);
    close(client);
    handing_end();
}

static void test_released_fd_ends_a_rest_for_want_of_fds(void)
{
    struct rlimit old, tight;
    CHECK(handing_open(0) == 0 && getrlimit(RLIMIT_NOFILE, &old) == 0);
    int one = tcp_connect(&addr);
    CHECK(tick(LONG_NS) == 1);
    int handed = (int)events[0].id, two = tcp_connect(&addr), free_fd = dup(two);
    close(free_fd);
    tight = old;
    tight.rlim_cur = (rlim_t)free_fd;
    CHECK(setrlimit(RLIMIT_NOFILE, &tight) == 0);
    int n = tick(0);
    close(handed);
    CHECK(n == 1 && events[0].kind == PL_EV_REFUSED && loop->accept_at > sock_now());
    CHECK(pl_group_release(loop, group) == 0);
    CHECK(loop->accept_at <= sock_now());
    CHECK(tick(0) == 0 && tick(LONG_NS) == 2 && (int)events[0].id == handed);
    CHECK(events[1].kind == PL_EV_REFUSED); /* accept(2) wants an fd before it looks who waits */
    setrlimit(RLIMIT_NOFILE, &old);
    CHECK(close_handed() == 1);
    close(one);
    close(two);
    handing_end();
}

/* The number of a conn whose fd was closed behind the loop's back may be handed over next. */
static void test_handed_over_number_was_a_conns(void)
{
    int peer;
    CHECK(handing_open(0) == 0);
    uint64_t id = pair_open(group_of(PL_RAW), &peer);
    int fd = pl_conn_fd(loop, id), client = tcp_connect(&addr);
    close(fd);
    CHECK(tick_until(PL_EV_ACCEPTED, 0) >= 0);
    int handed = (int)events[event_at(PL_EV_ACCEPTED, 0, 0)].id;
    CHECK(handed == fd);
    int at = event_at(PL_EV_LOST, id, 0);
    at = at < 0 ? tick_until(PL_EV_LOST, id) : at;
    CHECK(at >= 0 && events[at].value == -EBADF && fcntl(handed, F_GETFD) >= 0);
    close(handed);
    close(client);
    close(peer);
    handing_end();
}

static void *release_elsewhere(void *arg)
{
    return pl_group_release(loop, group) == PL_E_THREAD ? arg : NULL;
}

static void test_other_threads_and_children_release_nothing(void)
{
    pthread_t thread;
    void *refused;
    int status;
    CHECK(handing_open(0) == 0 && pl_loop_enter(loop) == 0);
    int client = tcp_connect(&addr);
    CHECK(tick(LONG_NS) == 1 && close_handed() == 1);
    CHECK(pthread_create(&thread, NULL, release_elsewhere, &counters) == 0);
    pthread_join(thread, &refused);
    CHECK(refused && counters.open == 1);
    pid_t pid = fork();
    if (pid == 0)
        _exit(pl_group_release(loop, group) != PL_E_FORKED || counters.open != 1 ||
              pl_group_free(loop, group) != 0 || pl_loop_free(loop) != 0);
    CHECK(waitpid(pid, &status, 0) == pid && status == 0);
    CHECK(pl_group_release(loop, group) == 0 && pl_loop_leave(loop) == 0);
    close(client);
    handing_end();
}

CHECK_MAIN(RUN_ON_ALL(test_accepted_socket_is_the_callers_and_nobody_elses);
           RUN_ON_ALL(test_accepting_rests_at_max_connections_until_one_is_released);
           RUN_ON_ALL(test_release_needs_something_to_release);
           RUN_ON_ALL(test_number_of_a_freed_group_is_taken_until_all_is_released);
           RUN_ON_ALL(test_fds_beyond_selects_limit_are_handed_over);
           RUN_ON_ALL(test_short_of_fds_it_rests_as_any_group);
           RUN_ON_ALL(test_released_fd_ends_a_rest_for_want_of_fds);
           RUN_ON_ALL(test_handed_over_number_was_a_conns);
           RUN_ON_ALL(test_other_threads_and_children_release_nothing);)
