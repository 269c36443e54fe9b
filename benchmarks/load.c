/* load.c -- a load generator for echo servers: one thread, epoll, closed loop.
 *
 *     open all (one echo each) -> warm up -> window -> drain -> report
 *
 * Closed loop: every conn keeps --inflight messages under way and sends the next
 * one when an echo is complete, so the server is never asked for more than it can
 * do, and a faster server is asked for more. The server's CPU clock (--pid) is read
 * here, by the same thread and at the same instants as the message counter.
 */
#include "load.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <unistd.h>

#define EVENTS 512
#define BUFFER (256 * 1024)
#define STALL_NS 30000000000u /* no progress for so long ends the run */
#define SETTLE_MS 10000       /* for the server's children to end after a churn */
#define GIVE_UP_NS 500000000u /* a datagram without an echo for so long is lost */

static volatile sig_atomic_t stopped;

static void on_signal(int number)
{
    (void)number;
    stopped = 1;
}

/* What the server, in one process or several, has used so far. */
static void read_server(const struct load *l, struct reading *r)
{
    r->cpu = r->delay = 0;
    r->children = 0;
    for (int i = 0; i < l->o.npids; i++) {
        r->cpu += cpu_of(l->o.pids[i], l->o.children, &r->children);
        r->delay += cpu_delay(l->o.pids[i]);
    }
}

static void take_reading(struct load *l, struct reading *r)
{
    read_server(l, r);
    r->own_cpu = cpu_own();
    r->own_delay = cpu_delay(getpid());
    r->idle = cpu_idle(l->o.pids, l->o.npids, &r->cpus);
    r->ns = now_ns();
    r->messages = l->messages;
    r->bytes = l->bytes;
}

static void count_error(struct load *l, const char *what, int error)
{
    if (l->errors++ < 5) {
        fprintf(stderr, "load: %s%s%s\n", what, error ? ": " : "", error ? strerror(error) : "");
    }
}

static void drop(struct load *l, struct conn *c)
{
    conn_close(c); /* takes it out of the epoll set as well */
    l->flying -= c->flying;
    l->greeting -= !c->greeted;
    l->idle[l->nidle++] = (unsigned)(c - l->conns);
}

static void fail(struct load *l, struct conn *c, const char *what, int error)
{
    count_error(l, what, error);
    l->lost += c->greeted != 0;
    drop(l, c);
}

static int arm(struct load *l, struct conn *c)
{
    uint32_t want = EPOLLIN | (c->to_send ? EPOLLOUT : 0u);
    if (want == c->armed) {
        return 0;
    }
    struct epoll_event ev = {.events = want, .data.ptr = c};
    int op = c->armed ? EPOLL_CTL_MOD : EPOLL_CTL_ADD;
    c->armed = want;
    return epoll_ctl(l->ep, op, c->fd, &ev);
}

static void push(struct load *l, struct conn *c)
{
    int rc = conn_send(c, &l->o, &l->p);
    if (rc < 0 || arm(l, c) < 0) {
        fail(l, c, "send", rc < 0 ? -rc : errno);
    }
}

static void grant(struct load *l, struct conn *c, unsigned n, uint64_t now)
{
    conn_grant(c, &l->o, &l->p, n, now);
    l->flying += n;
    push(l, c);
}

static void open_one(struct load *l)
{
    struct conn *c = &l->conns[l->idle[l->nidle - 1]];
    int churn = l->o.mode == MODE_CHURN;
    uint64_t now = now_ns();
    int rc = conn_open(c, &l->o, &l->p, l->opened++, churn || l->o.connections > 10000);
    if (rc < 0) {
        count_error(l, "connect", -rc);
        return;
    }
    l->nidle--;
    l->greeting++;
    c->stamps[0] = now;
    grant(l, c, l->o.silent ? 0 : 1, now);
}

static void on_echo(struct load *l, struct conn *c, unsigned n)
{
    const struct options *o = &l->o;
    if (!c->greeted) {
        c->greeted = 1;
        l->greeted++;
        l->greeting--;
        if (o->mode == MODE_CHURN) {
            drop(l, c);
        }
        return;
    }
    if (o->messages && l->phase == WARMUP && l->messages >= o->warmup_messages) {
        take_reading(l, &l->from);
        l->phase = WINDOW;
    }
    if (o->messages && l->phase == WINDOW && l->messages - l->from.messages >= o->messages) {
        take_reading(l, &l->to);
        l->phase = DRAIN;
    }
    if (l->phase == WARMUP || l->phase == WINDOW) {
        grant(l, c, n, l->now);
    }
}

static void receive(struct load *l, struct conn *c)
{
    ssize_t got = conn_receive(c, l->buffer, BUFFER);
    if (got == 0 && l->o.silent) {
        l->progress_ns = now_ns();
        histogram_add(&l->h, l->progress_ns - c->stamps[0]);
        l->messages++;
        on_echo(l, c, 0);
        return;
    }
    if (got < 0 || (got == 0 && !l->o.udp)) {
        if (got == 0 || (errno != EAGAIN && errno != EINTR)) {
            fail(l, c, got ? "receive" : "the server closed a connection", got ? errno : 0);
        }
        return;
    }
    l->now = now_ns();
    l->progress_ns = l->now;
    int timed = l->phase == WINDOW || l->o.mode == MODE_CHURN;
    int n = (l->o.udp ? udp_verify : conn_verify)(c, &l->o, &l->p, l->buffer, (size_t)got, l->now,
                                                  timed ? &l->h : NULL);
    if (n < 0) {
        fail(l, c, "an echo differs from what was sent", 0);
        return;
    }
    unsigned skipped = l->o.udp && n > 1 ? (unsigned)n - 1 : 0;
    l->given_up += skipped;
    l->bytes += (uint64_t)got;
    l->messages += (unsigned)n - skipped;
    l->flying -= (unsigned)n;
    if (n) {
        on_echo(l, c, (unsigned)n);
    }
}

/* Replace datagrams without an echo by others, so that their sockets do not fall silent. */
static void give_up(struct load *l)
{
    uint64_t now = now_ns();
    if (!l->o.udp || now - l->swept < GIVE_UP_NS / 4) {
        return;
    }
    l->swept = now;
    for (unsigned i = 0; i < l->o.connections; i++) {
        struct conn *c = &l->conns[i];
        unsigned n = c->fd >= 0 ? udp_give_up(c, &l->o, &l->p, now - GIVE_UP_NS) : 0;
        l->flying -= n;
        l->given_up += n;
        if (n && l->phase < DRAIN) {
            grant(l, c, n, now);
        }
    }
}

/* One wait and what it brought. */
static void turn(struct load *l, int timeout_ms)
{
    static struct epoll_event events[EVENTS];
    int n = epoll_wait(l->ep, events, EVENTS, timeout_ms);
    for (int i = 0; i < n; i++) {
        struct conn *c = events[i].data.ptr;
        if (events[i].events & EPOLLOUT) {
            l->progress_ns = now_ns();
            push(l, c);
        }
        if (c->fd >= 0 && events[i].events & ~(uint32_t)EPOLLOUT) {
            receive(l, c);
        }
    }
    give_up(l);
}

/* Whether the run has to end before its time. */
static int over(struct load *l)
{
    uint64_t now = now_ns();
    if ((l->flying || l->greeting) && now - l->progress_ns > STALL_NS) {
        count_error(l, "nothing from the server for 30 seconds", 0);
        return 1;
    }
    if (l->o.mode != MODE_LOAD && (double)(now - l->started) > l->o.seconds * 1e9) {
        count_error(l, "not done within --seconds", 0);
        return 1;
    }
    return stopped;
}

static void open_all(struct load *l, uint64_t total, unsigned window)
{
    l->progress_ns = now_ns();
    while ((l->opened < total || l->greeting) && !over(l)) {
        while (l->opened < total && l->greeting < window && l->errors < 1000) {
            open_one(l);
        }
        if (l->errors >= 1000) {
            count_error(l, "too many errors, giving up", 0);
            return;
        }
        turn(l, 100);
    }
}

static void drain(struct load *l)
{
    l->phase = DRAIN;
    while (l->flying && !over(l)) {
        turn(l, 100);
    }
    l->phase = DONE;
}

static void grant_all(struct load *l, unsigned n)
{
    for (unsigned i = 0; i < l->o.connections; i++) {
        if (l->conns[i].fd >= 0) {
            grant(l, &l->conns[i], n, now_ns());
        }
    }
}

static void run_load(struct load *l)
{
    const struct options *o = &l->o;
    open_all(l, o->connections, SETUP_WINDOW);
    uint64_t begin = now_ns() + (o->messages ? 0 : (uint64_t)(o->warmup * 1e9));
    uint64_t end = begin + (uint64_t)(o->seconds * 1e9);
    l->phase = WARMUP;
    l->messages = 0;
    if (begin <= now_ns() && o->warmup_messages == 0) {
        take_reading(l, &l->from);
        l->phase = WINDOW;
    }
    grant_all(l, o->inflight);
    while (l->phase < DRAIN && l->flying && !over(l)) {
        turn(l, 10);
        uint64_t now = now_ns();
        if (l->phase == WARMUP && !o->messages && now >= begin) {
            take_reading(l, &l->from);
            l->phase = WINDOW;
        } else if (l->phase == WINDOW && now >= end && l->messages > l->from.messages) {
            break; /* not without a message, which on a busy machine may take so long */
        }
    }
    if (l->phase == WINDOW) {
        take_reading(l, &l->to);
    }
    drain(l);
}

static void run_hold(struct load *l)
{
    struct pollfd asks = {.fd = STDIN_FILENO, .events = POLLIN};
    char line[256];
    open_all(l, l->o.connections, SETUP_WINDOW);
    printf("ready held=%u errors=%llu\n", l->o.connections - l->nidle,
           (unsigned long long)l->errors);
    fflush(stdout);
    while (!stopped && !over(l)) {
        turn(l, 50);
        if (poll(&asks, 1, 0) == 0) {
            continue;
        }
        if (read(STDIN_FILENO, line, sizeof(line)) <= 0) {
            break;
        }
        l->progress_ns = now_ns();
        grant_all(l, 1);
        drain(l);
        printf("echoed held=%u errors=%llu\n", l->o.connections - l->nidle,
               (unsigned long long)l->errors);
        fflush(stdout);
    }
}

/* Wait until the children that served these conns have been reaped: they are part of the cost. */
static void settle(struct load *l)
{
    for (int ms = 0; l->to.children > l->from.children; ms += 10) {
        if (ms >= SETTLE_MS) {
            count_error(l, "the server's children have not ended", 0);
            return;
        }
        poll(NULL, 0, 10);
        read_server(l, &l->to);
    }
}

static void run_churn(struct load *l)
{
    take_reading(l, &l->from);
    open_all(l, l->o.churn, l->o.connections);
    take_reading(l, &l->to);
    settle(l);
}

static int prepare(struct load *l)
{
    struct rlimit files;
    struct sigaction action = {.sa_handler = on_signal};
    unsigned n = l->o.connections;
    if (getrlimit(RLIMIT_NOFILE, &files) == 0) {
        files.rlim_cur = files.rlim_max;
        setrlimit(RLIMIT_NOFILE, &files);
    }
    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGINT, &action, NULL);
    for (int i = 0; i < l->o.npids; i++) {
        if (!cpu_usable(l->o.pids[i], l->o.children)) {
            fprintf(stderr, "load: no process %d%s\n", (int)l->o.pids[i],
                    l->o.children ? ", or /proc does not list its children" : "");
            return -1;
        }
    }
    if (l->o.tls && tls_prepare(l->o.tls) < 0) {
        return -1;
    }
    l->ep = epoll_create1(EPOLL_CLOEXEC);
    l->buffer = malloc(BUFFER);
    l->conns = calloc(n, sizeof(*l->conns));
    l->idle = calloc(n, sizeof(*l->idle));
    uint64_t *stamps = calloc((size_t)n * l->o.inflight, sizeof(*stamps));
    if (l->ep < 0 || !l->buffer || !l->conns || !l->idle || !stamps ||
        pattern_init(&l->p, &l->o) < 0) {
        fprintf(stderr, "load: out of memory\n");
        return -1;
    }
    for (unsigned i = 0; i < n; i++) {
        l->conns[i] = (struct conn){.fd = -1, .stamps = stamps + (size_t)i * l->o.inflight};
        l->idle[l->nidle++] = n - 1 - i;
    }
    return 0;
}

int main(int argc, char **argv)
{
    static struct load l;
    options_parse(&l.o, argc, argv);
    if (prepare(&l) < 0) {
        return 2;
    }
    l.started = now_ns();
    switch (l.o.mode) {
    case MODE_LOAD: run_load(&l); break;
    case MODE_HOLD: run_hold(&l); break;
    case MODE_CHURN: run_churn(&l); break;
    }
    report(&l);
    return l.errors != 0;
}
