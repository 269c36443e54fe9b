/* test_blocking.c -- a wait that receives: what came, what did not, and who ends it early. */
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <pthread.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include "check.h"
#include "pyloop.h"
#include "sock.h"

#define LONG_NS ((int64_t)60 * 1000000000)
#define BOTH (PL_CAME_INPUT | PL_CAME_ROOM)

static const struct pl_framing lines = {.kind = PL_LINES, .max_size = 100};

struct rig {
    struct pl_reader *r;
    int ours, peer, wake;
    size_t got;
};

static int rig_new(struct rig *rig)
{
    int fds[2];
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) < 0)
        return -1;
    *rig = (struct rig){pl_reader_new(), fds[0], fds[1], eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC), 0};
    return rig->r && rig->wake >= 0 ? 0 : -1;
}

static void rig_free(struct rig *rig)
{
    pl_reader_free(rig->r);
    close(rig->ours);
    if (rig->peer >= 0)
        close(rig->peer);
    close(rig->wake);
}

static int receive(struct rig *rig, uint32_t wanted, int64_t timeout_ns)
{
    return pl_reader_receive(rig->r, rig->ours, wanted, rig->wake, timeout_ns, &rig->got);
}

static int tcp_pair(int fds[2])
{
    struct sockaddr_in addr = {.sin_family = AF_INET};
    socklen_t len = sizeof addr;
    int listener = socket(AF_INET, SOCK_STREAM, 0);
    addr.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (bind(listener, (struct sockaddr *)&addr, len) < 0 || listen(listener, 1) < 0 ||
        getsockname(listener, (struct sockaddr *)&addr, &len) < 0)
        return -1;
    fds[0] = socket(AF_INET, SOCK_STREAM, 0);
    if (connect(fds[0], (struct sockaddr *)&addr, len) < 0)
        return -1;
    fds[1] = accept(listener, NULL, NULL);
    return close(listener);
}

static void test_bytes_are_received_behind_what_is_there(void)
{
    struct rig rig;
    const uint8_t *data;
    size_t len;
    CHECK(rig_new(&rig) == 0);
    CHECK(pl_reader_feed(rig.r, (const uint8_t *)"hel", 3) == 0);
    CHECK(send(rig.peer, "lo\nmore", 7, 0) == 7);
    CHECK(receive(&rig, PL_CAME_INPUT, LONG_NS) == PL_CAME_INPUT && rig.got == 7);
    CHECK(pl_reader_next(rig.r, &lines, &data, &len) == 1 && len == 5);
    CHECK(memcmp(data, "hello", 5) == 0);
    CHECK(receive(&rig, PL_CAME_INPUT, 0) == 0 && rig.got == 0);
    CHECK(pl_reader_len(rig.r) == 4);
    rig_free(&rig);
}

static void test_time_passes(void)
{
    struct rig rig;
    CHECK(rig_new(&rig) == 0);
    int64_t before = sock_now();
    CHECK(receive(&rig, PL_CAME_INPUT, 2500001) == 0);
    CHECK(sock_now() - before >= 2500001); /* never too early */
    CHECK(receive(&rig, 0, 0) == 0);
    rig_free(&rig);
}

static void test_end_of_stream_comes_after_the_last_bytes(void)
{
    struct rig rig;
    CHECK(rig_new(&rig) == 0);
    CHECK(send(rig.peer, "x", 1, 0) == 1 && shutdown(rig.peer, SHUT_WR) == 0);
    CHECK(receive(&rig, PL_CAME_INPUT, LONG_NS) == PL_CAME_INPUT && rig.got == 1);
    CHECK(receive(&rig, PL_CAME_INPUT, LONG_NS) == PL_CAME_END && rig.got == 0);
    CHECK(receive(&rig, BOTH, LONG_NS) == (PL_CAME_END | PL_CAME_ROOM));
    rig_free(&rig);
}

static void test_room_is_told_only_to_who_wants_it(void)
{
    struct rig rig;
    uint8_t block[4096] = {0};
    CHECK(rig_new(&rig) == 0);
    CHECK(receive(&rig, PL_CAME_ROOM, LONG_NS) == PL_CAME_ROOM);
    CHECK(receive(&rig, PL_CAME_INPUT, 0) == 0);
    while (pl_socket_send(rig.ours, block, sizeof block) > 0)
        continue;
    CHECK(pl_socket_send(rig.ours, block, sizeof block) == -EAGAIN);
    CHECK(receive(&rig, PL_CAME_ROOM, 0) == 0);
    rig_free(&rig);
}

static void test_wake_ends_the_wait_and_is_emptied(void)
{
    struct rig rig;
    CHECK(rig_new(&rig) == 0);
    CHECK(eventfd_write(rig.wake, 3) == 0);
    CHECK(receive(&rig, PL_CAME_INPUT, LONG_NS) == PL_CAME_WAKE);
    CHECK(receive(&rig, PL_CAME_INPUT, 0) == 0);
    CHECK(eventfd_write(rig.wake, 1) == 0 && send(rig.peer, "x", 1, 0) == 1);
    CHECK(receive(&rig, PL_CAME_INPUT, LONG_NS) == (PL_CAME_WAKE | PL_CAME_INPUT));
    CHECK(pl_reader_receive(rig.r, rig.ours, PL_CAME_ROOM, -1, LONG_NS, &rig.got) == PL_CAME_ROOM);
    rig_free(&rig);
}

static void test_wake_may_be_a_pipe_with_much_in_it(void)
{
    struct rig rig;
    int fds[2];
    uint8_t bytes[640] = {0};
    CHECK(rig_new(&rig) == 0 && pipe(fds) == 0);
    CHECK(pl_set_nonblocking(fds[0], 1) == 0);
    CHECK(write(fds[1], bytes, sizeof bytes) == sizeof bytes);
    CHECK(pl_reader_receive(rig.r, rig.ours, 1, fds[0], LONG_NS, &rig.got) == PL_CAME_WAKE);
    CHECK(pl_reader_receive(rig.r, rig.ours, 1, fds[0], 0, &rig.got) == 0);
    close(fds[0]);
    close(fds[1]);
    rig_free(&rig);
}

static void test_hangup_is_told_when_nothing_is_wanted(void)
{
    struct rig rig;
    CHECK(rig_new(&rig) == 0);
    CHECK(shutdown(rig.peer, SHUT_WR) == 0);
    CHECK(receive(&rig, 0, 0) == 0); /* one direction is open still */
    close(rig.peer);
    rig.peer = -1;
    CHECK(receive(&rig, 0, LONG_NS) == PL_CAME_HANGUP);
    CHECK(receive(&rig, PL_CAME_ROOM, LONG_NS) == PL_CAME_ROOM);
    CHECK(pl_socket_send(rig.ours, (const uint8_t *)"x", 1) == -EPIPE);
    rig_free(&rig);
}

static void nothing(int number) { (void)number; }

static void test_signal_interrupts_and_nothing_is_lost(void)
{
    struct rig rig;
    struct sigaction action = {.sa_handler = nothing}, before;
    struct itimerval soon = {.it_value.tv_usec = 1000, .it_interval.tv_usec = 1000}, never = {0};
    CHECK(rig_new(&rig) == 0 && sigaction(SIGALRM, &action, &before) == 0);
    CHECK(setitimer(ITIMER_REAL, &soon, NULL) == 0);
    int rc = receive(&rig, PL_CAME_INPUT, LONG_NS);
    setitimer(ITIMER_REAL, &never, NULL);
    sigaction(SIGALRM, &before, NULL);
    CHECK(rc == -EINTR && rig.got == 0);
    CHECK(send(rig.peer, "x", 1, 0) == 1);
    CHECK(receive(&rig, PL_CAME_INPUT, LONG_NS) == PL_CAME_INPUT);
    rig_free(&rig);
}

static void test_blocking_flag_does_not_matter(void)
{
    struct rig rig;
    uint8_t block[4096] = {0};
    CHECK(rig_new(&rig) == 0);
    CHECK(pl_set_nonblocking(rig.ours, 0) == 0);
    while (pl_socket_send(rig.ours, block, sizeof block) > 0)
        continue; /* would hang here */
    rig_free(&rig);
}

static void test_failures_are_returned(void)
{
    struct rig rig;
    CHECK(rig_new(&rig) == 0);
    CHECK(pl_reader_receive(rig.r, 999, 1, -1, 0, &rig.got) == -EBADF);
    CHECK(send(rig.peer, "x", 1, 0) == 1);
    fail_alloc_after(0);
    CHECK(receive(&rig, PL_CAME_INPUT, LONG_NS) == -ENOMEM);
    fail_alloc_never();
    CHECK(receive(&rig, PL_CAME_INPUT, LONG_NS) == PL_CAME_INPUT && rig.got == 1);
    CHECK(pl_socket_shutdown(rig.ours) == 0);
    CHECK(recv(rig.peer, &rig.got, 1, 0) == 0);
    rig_free(&rig);
}

static void *reset(void *fd)
{
    pl_socket_reset(*(int *)fd);
    return NULL;
}

static void test_reset_ends_a_wait_of_another_thread_and_the_peer(void)
{
    struct rig rig;
    pthread_t thread;
    int fds[2];
    uint8_t byte;
    CHECK(rig_new(&rig) == 0 && tcp_pair(fds) == 0);
    CHECK(pthread_create(&thread, NULL, reset, &fds[0]) == 0);
    int rc = pl_reader_receive(rig.r, fds[0], 0, -1, LONG_NS, &rig.got);
    pthread_join(thread, NULL);
    CHECK(rc == PL_CAME_HANGUP);
    CHECK(recv(fds[1], &byte, 1, 0) == -1 && errno == ECONNRESET); /* before anybody closes */
    close(fds[0]);
    close(fds[1]);
    pl_socket_reset(rig.ours); /* no TCP: an end in both directions */
    CHECK(recv(rig.peer, &byte, 1, 0) == 0);
    rig_free(&rig);
}

CHECK_MAIN(
    RUN(test_bytes_are_received_behind_what_is_there);
    RUN(test_time_passes);
    RUN(test_end_of_stream_comes_after_the_last_bytes);
    RUN(test_room_is_told_only_to_who_wants_it);
    RUN(test_wake_ends_the_wait_and_is_emptied);
    RUN(test_wake_may_be_a_pipe_with_much_in_it);
    RUN(test_hangup_is_told_when_nothing_is_wanted);
    RUN(test_signal_interrupts_and_nothing_is_lost);
    RUN(test_blocking_flag_does_not_matter);
    RUN(test_failures_are_returned);
    RUN(test_reset_ends_a_wait_of_another_thread_and_the_peer);)
