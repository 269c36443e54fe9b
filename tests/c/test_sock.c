/* test_sock.c -- socket calls over real sockets: TCP on the loopback, and Unix pairs. */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <sys/time.h>
#include <unistd.h>

#include "check.h"
#include "pyloop.h"
#include "sock.h"

static int listen_tcp(struct sockaddr_in *addr)
{
    socklen_t len = sizeof *addr;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    *addr = (struct sockaddr_in){.sin_family = AF_INET};
    addr->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (bind(fd, (struct sockaddr *)addr, len) < 0 || listen(fd, 8) < 0)
        return -1;
    return getsockname(fd, (struct sockaddr *)addr, &len) < 0 ? -1 : fd;
}

static int connect_tcp(const struct sockaddr_in *addr)
{
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    return connect(fd, (const struct sockaddr *)addr, sizeof *addr) < 0 ? -1 : fd;
}

static void close_both(const int fds[2])
{
    close(fds[0]);
    close(fds[1]);
}

static void wait_readable(int fd)
{
    struct pollfd entry = {.fd = fd, .events = POLLIN};
    poll(&entry, 1, 10000);
}

static int64_t send_text(int fd, const char *text)
{
    struct iovec iov = {.iov_base = (char *)(uintptr_t)text, .iov_len = strlen(text)};
    return sock_send(fd, &iov, 1, 0);
}

static void test_nonblocking_is_switched_on_and_off(void)
{
    int fds[2];
    CHECK(pipe(fds) == 0);
    CHECK(sock_is_nonblocking(fds[0]) == 0);
    CHECK(sock_set_nonblocking(fds[0], 1) == 0 && sock_is_nonblocking(fds[0]) == 1);
    CHECK(sock_set_nonblocking(fds[0], 5) == 0 && pl_is_nonblocking(fds[0]) == 1);
    CHECK(pl_set_nonblocking(fds[0], 0) == 0 && pl_is_nonblocking(fds[0]) == 0);
    CHECK(fcntl(fds[0], F_SETFL, O_APPEND) == 0);
    CHECK(sock_set_nonblocking(fds[0], 1) == 0);
    CHECK(fcntl(fds[0], F_GETFL) & O_APPEND);
    close_both(fds);
    CHECK(sock_set_nonblocking(fds[0], 1) == -EBADF && sock_is_nonblocking(fds[0]) == -EBADF);
    CHECK(pl_set_nonblocking(-1, 1) == -EBADF && pl_is_nonblocking(-1) == -EBADF);
}

static void test_accept_gives_a_nonblocking_conn_and_its_peer(void)
{
    struct sockaddr_in addr;
    struct sockaddr_in local;
    struct sockaddr_storage peer;
    socklen_t len = 0;
    socklen_t local_len = sizeof local;
    int listener = listen_tcp(&addr);
    CHECK(listener >= 0 && sock_set_nonblocking(listener, 1) == 0);
    CHECK(sock_accept(listener, &peer, &len) == -EAGAIN);
    int client = connect_tcp(&addr);
    CHECK(client >= 0);
    wait_readable(listener);
    int conn = sock_accept(listener, &peer, &len);
    CHECK(conn >= 3 && len == sizeof local);
    CHECK(getsockname(client, (struct sockaddr *)&local, &local_len) == 0);
    CHECK(peer.ss_family == AF_INET && ((struct sockaddr_in *)&peer)->sin_port == local.sin_port);
    CHECK(sock_is_nonblocking(conn) == 1 && fcntl(conn, F_GETFD) == FD_CLOEXEC);
    CHECK(sock_set_nodelay(conn) == 0);
    int on = 0;
    CHECK(getsockopt(conn, IPPROTO_TCP, TCP_NODELAY, &on, &(socklen_t){sizeof on}) == 0 && on);
    CHECK(sock_accept(listener, &peer, &len) == -EAGAIN);
    close(conn);
    close(client);
    close(listener);
    CHECK(sock_accept(listener, &peer, &len) == -EBADF);
}

static void test_accepted_fd_is_above_stdio(void)
{
    struct sockaddr_in addr;
    struct sockaddr_storage peer;
    socklen_t len;
    int listener = listen_tcp(&addr);
    int client = connect_tcp(&addr);
    int saved = fcntl(0, F_DUPFD_CLOEXEC, 3);
    CHECK(listener >= 0 && client >= 0 && saved >= 0);
    close(0);
    int conn = sock_accept(listener, &peer, &len);
    int used = fcntl(0, F_GETFD) >= 0;
    dup2(saved, 0);
    close(saved);
    CHECK(conn >= 3 && !used);
    CHECK(fcntl(conn, F_GETFD) == FD_CLOEXEC && sock_is_nonblocking(conn) == 1);
    close(conn);
    close(client);
    close(listener);
}

static void test_above_stdio_moves_only_low_fds(void)
{
    int fds[2];
    CHECK(pipe(fds) == 0 && fds[0] >= 3);
    CHECK(sock_above_stdio(fds[0]) == fds[0]);
    int saved = fcntl(0, F_DUPFD_CLOEXEC, 3);
    CHECK(dup2(fds[0], 0) == 0);
    int moved = sock_above_stdio(0);
    int gone = fcntl(0, F_GETFD) < 0 && errno == EBADF;
    int missing = sock_above_stdio(0);
    dup2(saved, 0);
    close(saved);
    CHECK(moved >= 3 && gone && missing == -EBADF);
    close(moved);
    close_both(fds);
}

static void check_stream(const int fds[2])
{
    uint8_t data[16];
    struct iovec iov[3] = {{"one", 3}, {"", 0}, {"two", 3}};
    CHECK(sock_receive(fds[0], data, sizeof data) == -EAGAIN); /* although the fd may block */
    CHECK(sock_send(fds[1], iov, 3, 0) == 6);
    wait_readable(fds[0]);
    CHECK(sock_receive(fds[0], data, 4) == 4 && memcmp(data, "onet", 4) == 0);
    CHECK(sock_receive(fds[0], data, sizeof data) == 2 && memcmp(data, "wo", 2) == 0);
    CHECK(sock_shutdown_write(fds[1]) == 0);
    wait_readable(fds[0]);
    CHECK(sock_receive(fds[0], data, sizeof data) == 0);
    CHECK(send_text(fds[1], "x") == -EPIPE); /* and no SIGPIPE */
    CHECK(send_text(fds[0], "back") == 4);
    wait_readable(fds[1]);
    CHECK(sock_receive(fds[1], data, sizeof data) == 4);
}

static void test_unix_stream_carries_bytes_both_ways(void)
{
    int fds[2];
    CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, fds) == 0);
    check_stream(fds);
    CHECK(sock_set_nodelay(fds[0]) == 0);
    close_both(fds);
    CHECK(sock_set_nodelay(fds[0]) == -EBADF);
}

static void test_tcp_carries_bytes_both_ways(void)
{
    struct sockaddr_in addr;
    struct sockaddr_storage peer;
    socklen_t len;
    int listener = listen_tcp(&addr);
    int fds[2] = {connect_tcp(&addr), -1};
    CHECK(fds[0] >= 0);
    fds[1] = sock_accept(listener, &peer, &len);
    CHECK(fds[1] >= 0);
    check_stream(fds);
    close_both(fds);
    close(listener);
}

static void test_send_to_a_full_peer_is_eagain(void)
{
    static uint8_t block[65536];
    struct iovec iov = {block, sizeof block};
    int fds[2];
    int64_t n;
    CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, fds) == 0);
    while ((n = sock_send(fds[0], &iov, 1, 0)) > 0)
        ;
    CHECK(n == -EAGAIN && sock_is_nonblocking(fds[0]) == 0);
    close_both(fds);
    CHECK(sock_send(fds[0], &iov, 1, 0) == -EBADF);
    CHECK(sock_receive(fds[0], block, 1) == -EBADF);
    CHECK(sock_shutdown_write(fds[0]) == -EBADF);
}

static void test_reset_on_close_resets_the_peer(void)
{
    struct sockaddr_in addr;
    struct sockaddr_storage peer;
    socklen_t len;
    uint8_t byte;
    int listener = listen_tcp(&addr);
    int client = connect_tcp(&addr);
    int conn = sock_accept(listener, &peer, &len);
    CHECK(client >= 0 && conn >= 0);
    sock_reset_on_close(conn);
    sock_close(conn);
    CHECK(fcntl(conn, F_GETFD) < 0);
    wait_readable(client);
    CHECK(sock_receive(client, &byte, 1) == -ECONNRESET);
    close(client);
    close(listener);
}

static struct sockaddr_in signal_addr; /* where the third signal connects to */
static volatile sig_atomic_t signal_client = -1;
static volatile sig_atomic_t signal_count;

static void connect_on_third(int number)
{
    (void)number;
    signal_count = signal_count + 1;
    if (signal_count == 3)
        signal_client = connect_tcp(&signal_addr);
}

/* accept on a blocking listener is the one call here that a signal can meet in its sleep. */
static void test_accept_goes_on_after_signals(void)
{
    struct sigaction action = {.sa_handler = connect_on_third};
    struct itimerval often = {.it_interval = {.tv_usec = 5000}, .it_value = {.tv_usec = 5000}};
    struct itimerval never = {.it_value = {.tv_usec = 0}};
    struct sockaddr_storage peer;
    socklen_t len;
    int listener = listen_tcp(&signal_addr);
    CHECK(listener >= 0 && sigaction(SIGALRM, &action, NULL) == 0);
    CHECK(setitimer(ITIMER_REAL, &often, NULL) == 0);
    int conn = sock_accept(listener, &peer, &len);
    CHECK(setitimer(ITIMER_REAL, &never, NULL) == 0);
    CHECK(conn >= 0 && signal_count >= 3);
    close(conn);
    close(signal_client);
    close(listener);
}

static void test_clock_never_goes_back(void)
{
    int64_t last = sock_now();
    CHECK(last > 0);
    for (int i = 0; i < 1000; i++) {
        int64_t now = sock_now();
        CHECK(now >= last);
        last = now;
    }
}

CHECK_MAIN(RUN(test_nonblocking_is_switched_on_and_off);
           RUN(test_accept_gives_a_nonblocking_conn_and_its_peer);
           RUN(test_accepted_fd_is_above_stdio); RUN(test_above_stdio_moves_only_low_fds);
           RUN(test_unix_stream_carries_bytes_both_ways); RUN(test_tcp_carries_bytes_both_ways);
           RUN(test_send_to_a_full_peer_is_eagain); RUN(test_reset_on_close_resets_the_peer);
           RUN(test_accept_goes_on_after_signals); RUN(test_clock_never_goes_back);)
