/* test_datagram_ends.c -- what a datagram socket of the core waits for, refuses, and ends by: full receivers, wrong
 * callers, closed fds, short memory. */
#include <pthread.h>

#include "dgram_rig.h"

/* Fill what takes no more than a few datagrams; what was queued. */
static int fill(uint64_t id, const void *addr, size_t len)
{
    int n = 0;
    while (n < 10000 && pl_dgram_queued(loop, id) == 0) {
        if (send_to(id, "x", addr, len) < 0 || send_to(id, "y", addr, len) < 0)
            return -1;
        pl_loop_flush(loop);
        n += 2;
    }
    return n;
}

static void test_full_receiver_blocks_pauses_and_is_waited_for(void)
{
    static char big[60000];
    int fds[2], n, got = 0;
    char c[2];
    CHECK(loop_open() == 0);
    CHECK(socketpair(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK, 0, fds) == 0);
    uint64_t id = dgram_of(fds[0]);
    CHECK(id && (n = fill(id, NULL, 0)) > 0);
    memset(big, 'z', sizeof big - 1);
    CHECK(send_to(id, big, NULL, 0) == 0 && send_to(id, big, NULL, 0) == 1);
    CHECK(send_to(id, "last", NULL, 0) == 0); /* told once */
    CHECK(pl_dgram_limit(loop, id, 10, 20) == -EINVAL && pl_dgram_close(loop, id) == 0 && send_to(id, "late", NULL, 0) == -EPIPE);
    CHECK(tick(0) == 0);
    int resumed = 0, lost = 0;
    for (int ticks = 0; ticks < 10000 && !lost; ticks++) {
        while (take(fds[1], c, sizeof c) >= 0)
            got++;
        CHECK(tick(LONG_NS) >= 0);
        resumed += event_count(PL_EV_DATAGRAM_RESUME, id);
        lost += event_count(PL_EV_DATAGRAM_LOST, id);
    }
    while (take(fds[1], c, sizeof c) >= 0)
        got++;
    CHECK(resumed == 1 && lost == 1 && got == n + 3);
    loop_end();
    close(fds[0]);
    close(fds[1]);
}

static void test_full_receiver_that_poll_cannot_see_does_not_make_it_spin(void)
{
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    socklen_t len = sizeof addr;
    char c[2];
    CHECK(loop_open() == 0);
    int to = socket(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK, 0);
    int from = socket(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK, 0);
    CHECK(bind(to, (struct sockaddr *)&addr, sizeof addr.sun_family) == 0); /* a name of the kernel's choice */
    CHECK(getsockname(to, (struct sockaddr *)&addr, &len) == 0);
    uint64_t id = dgram_of(from);
    CHECK(id && fill(id, &addr, len) > 0 && send_to(id, "more", &addr, len) == 0);
    tick(0);
    tick(LONG_NS);
    sends = 0;
    int64_t start = sock_now();
    for (int i = 0; i < 8; i++)
        CHECK(tick(LONG_NS) == 0);
    CHECK(sends <= 8 && sock_now() - start >= 4 * MS);
    CHECK(pl_dgram_queued(loop, id) > 0);
    int left = 10000;
    for (; left && pl_dgram_queued(loop, id) > 0; left--) {
        while (take(to, c, sizeof c) >= 0)
            ;
        CHECK(tick(2 * MS) == 0);
    }
    CHECK(left && fill(id, &addr, len) > 0 && send_to(id, "more", &addr, len) == 0);
    tick(0);
    tick(LONG_NS);
    CHECK(pl_dgram_abort(loop, id) == 0); /* while it rests */
    CHECK(tick_until(PL_EV_DATAGRAM_LOST, id) >= 0 && tick(0) == 0 && tick(0) == 0);
    loop_end();
    close(from);
    close(to);
}

static void test_abort_drops_what_is_queued_and_tells_one_end(void)
{
    CHECK(loop_open() == 0);
    int from = udp_open(), to = udp_open();
    uint64_t id = dgram_of(from), in = dgram_of(to);
    CHECK(send_to(id, "never", &here, sizeof here) == 0 && send_to(id, "", NULL, 0) == 0);
    CHECK(pl_dgram_abort(loop, id) == 0 && pl_dgram_abort(loop, id) == -ESTALE);
    CHECK(pl_dgram_close(loop, id) == -ESTALE && send_to(id, "", NULL, 0) == -ESTALE);
    CHECK(tick(LONG_NS) == 1 && events[0].kind == PL_EV_DATAGRAM_LOST && events[0].id == id);
    CHECK(events[0].value == 0 && tick(0) == 0);
    CHECK(pl_dgram_queued(loop, id) == -ESTALE && fcntl(from, F_GETFD) >= 0);
    uint64_t again = dgram_of(from);
    CHECK(again && again != id && (uint32_t)again == (uint32_t)id);
    CHECK(pl_dgram_close(loop, in) == 0 && tick(0) == 1);
    CHECK(events[0].kind == PL_EV_DATAGRAM_LOST && events[0].id == in);
    loop_end();
    close(from);
    close(to);
}

static void *call_from_elsewhere(void *id)
{
    return (void *)(intptr_t)pl_dgram_abort(loop, *(uint64_t *)id);
}

static void test_wrong_arguments_callers_and_processes_are_refused(void)
{
    uint64_t id = 0;
    int error, status;
    pthread_t thread;
    void *result;
    CHECK(loop_open() == 0);
    int fd = udp_open();
    CHECK(pl_dgram_open(loop, -1, 10, &id) == -EBADF && pl_dgram_open(loop, fd, 0, &id) == -EINVAL);
    CHECK(pl_dgram_open(loop, fd, PL_DATAGRAM_MAX + 1, &id) == -EINVAL);
    CHECK(pl_dgram_open(NULL, fd, 10, &id) == -ESTALE && pl_dgram_queued(NULL, id) == -ESTALE);
    CHECK(pl_dgram_abort(NULL, id) == -ESTALE && (id = dgram_of(fd)));
    CHECK(pl_dgram_open(loop, fd, 10, &id) == -EEXIST && pl_watch(loop, fd, PL_READ) == -EEXIST);
    CHECK(pl_dgram_send(loop, id, NULL, 0, (const uint8_t *)&error, 129) == -EINVAL);
    CHECK(pl_loop_enter(loop) == 0);
    CHECK(pthread_create(&thread, NULL, call_from_elsewhere, &id) == 0);
    CHECK(pthread_join(thread, &result) == 0 && (intptr_t)result == PL_E_THREAD);
    CHECK(send_to(id, "before", &here, sizeof here) == 0);
    pid_t child = fork();
    if (!child) {
        int bad = send_to(id, "x", &here, sizeof here) != PL_E_FORKED;
        bad |= pl_dgram_read(loop, id, 0) != PL_E_FORKED || pl_dgram_close(loop, id) != 0;
        bad |= pl_dgram_abort(loop, id) != -ESTALE || pl_loop_free(loop) != 0;
        _exit(bad || fcntl(fd, F_GETFD) < 0);
    }
    CHECK(waitpid(child, &status, 0) == child && status == 0);
    CHECK(arrive(id, TEXTS("before")));
    CHECK(pl_loop_leave(loop) == 0);
    loop_end();
    close(fd);
}

static void test_fd_closed_behind_its_back_ends_it(void)
{
    if (backend == PL_EPOLL)
        return; /* there the kernel forgets it without a word */
    CHECK(loop_open() == 0);
    int fd = udp_open();
    uint64_t id = dgram_of(fd);
    close(fd);
    int at = tick_until(PL_EV_DATAGRAM_LOST, id);
    CHECK(at >= 0 && events[at].value == -EBADF && event_at(PL_EV_BADFD, 0, 0) < 0);
    loop_end();
}

static void test_memory_short_at_any_allocation_loses_no_socket(void)
{
    static char large[5000];
    memset(large, 'x', sizeof large - 1);
    for (long n = 0; n < 40; n++) {
        uint64_t id = 0;
        if (loop_open() < 0)
            break;
        int fd = udp_open();
        fail_alloc_after(n);
        int rc = pl_dgram_open(loop, fd, 65536, &id);
        CHECK(rc == 0 || rc == -ENOMEM);
        for (int i = 0; rc == 0 && i < 6; i++) {
            const char *text = i < 3 ? "x" : large;
            int sent = send_to(id, text, i % 2 ? (void *)&here : NULL, i % 2 ? sizeof here : 0);
            CHECK(sent == 0 || sent == -ENOMEM);
            CHECK(tick(0) >= 0 || batch_n == -ENOMEM);
        }
        fail_alloc_never();
        CHECK(rc < 0 || pl_dgram_close(loop, id) == 0);
        CHECK(fcntl(fd, F_GETFD) >= 0);
        loop_end();
        close(fd);
    }
}

CHECK_MAIN(RUN_ON_ALL(test_full_receiver_blocks_pauses_and_is_waited_for);
           RUN_ON_ALL(test_full_receiver_that_poll_cannot_see_does_not_make_it_spin);
           RUN_ON_ALL(test_abort_drops_what_is_queued_and_tells_one_end);
           RUN_ON_ALL(test_wrong_arguments_callers_and_processes_are_refused);
           RUN_ON_ALL(test_fd_closed_behind_its_back_ends_it);
           RUN_ON_ALL(test_memory_short_at_any_allocation_loses_no_socket);)
