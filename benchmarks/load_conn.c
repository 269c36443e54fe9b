/* load_conn.c -- one conn of the load generator, and the bytes it sends.
 *
 * All conns walk the same ring of different messages, each from another place,
 * so a byte lost, doubled, reordered or given to the wrong conn does not match.
 * Verifying is a memcmp against the ring: no copy, no state but two places.
 */
#include "load.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#ifndef IP_BIND_ADDRESS_NO_PORT
#define IP_BIND_ADDRESS_NO_PORT 24
#endif

#define RING_BYTES (64 * 1024) /* small enough to stay in cache */
#define RING_COUNT 256
#define NUMBERS 1000003 /* from the first number of one socket to that of the next */
#define SOURCES 16 /* 127.0.0.2 .. 127.0.0.17: 28,000 ports each */

uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* Message `i` of the ring: printable, so that it is legal in every framing. */
static void fill_message(char *m, size_t wire, unsigned i, enum framing framing)
{
    uint64_t x = 0x9E3779B97F4A7C15u * (i + 1);
    for (size_t k = 0; k < wire; k++) {
        x = x * 6364136223846793005u + 1442695040888963407u;
        m[k] = (char)('0' + (x >> 58));
    }
    if (framing == FRAMING_LINES) {
        m[wire - 1] = '\n';
    } else if (framing != FRAMING_RAW) {
        unsigned width = framing == FRAMING_PREFIX2 ? 2 : 4;
        for (unsigned b = 0; b < width; b++) {
            m[b] = (char)((wire - width) >> (8 * (width - 1 - b)));
        }
    }
}

static int write_file(const struct pattern *p, const char *path)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    if (fd < 0) {
        return -1;
    }
    size_t at = 0;
    for (ssize_t n = 1; n > 0 && at < p->modulus; at += n > 0 ? (size_t)n : 0) {
        n = write(fd, p->bytes + at, p->modulus - at);
    }
    return close(fd) < 0 || at < p->modulus ? -1 : 0;
}

int pattern_init(struct pattern *p, const struct options *o)
{
    size_t fit = RING_BYTES / o->size;
    p->wire = o->size;
    p->count = fit > RING_COUNT ? RING_COUNT : fit < 2 ? 2
                                                       : (unsigned)fit;
    p->modulus = p->count * p->wire;
    size_t extra = o->inflight * p->wire;
    if (extra > RING_BYTES * 4u) {
        extra = 0; /* large messages: a burst that wraps takes two sends */
    }
    p->bytes = malloc(p->modulus + extra);
    if (!p->bytes) {
        return -1;
    }
    for (unsigned i = 0; i < p->count; i++) {
        fill_message(p->bytes + i * p->wire, p->wire, i, o->framing);
    }
    for (size_t k = 0; k < extra; k++) {
        p->bytes[p->modulus + k] = p->bytes[k % p->modulus];
    }
    return o->file ? write_file(p, o->file) : 0;
}

static void bind_source(int fd, uint64_t serial)
{
    int on = 1;
    struct sockaddr_in from = {.sin_family = AF_INET};
    from.sin_addr.s_addr = htonl(0x7F000002u + (uint32_t)(serial % SOURCES));
    setsockopt(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &on, sizeof(on));
    (void)bind(fd, (struct sockaddr *)&from, sizeof(from)); /* if not, any source will do */
}

/* Connect a socket that blocks, so that it does not any more. 0 or -errno. */
static int conn_connect(struct conn *c, const struct options *o, const struct sockaddr_storage *to)
{
    struct timeval patience = {.tv_sec = 10};
    setsockopt(c->fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof(patience));
    setsockopt(c->fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
    if (connect(c->fd, (const struct sockaddr *)to, o->addr_len) < 0) {
        return errno == EINPROGRESS || errno == EAGAIN ? -ETIMEDOUT : -errno;
    }
    int rc = o->tls ? tls_open(c) : 0;
    if (rc == 0 && o->silent) {
        rc = shutdown(c->fd, SHUT_WR) < 0 ? -errno : 0;
    }
    return rc < 0 || fcntl(c->fd, F_SETFL, O_NONBLOCK) == 0 ? rc : -errno;
}

int conn_open(struct conn *c, const struct options *o, const struct pattern *p, uint64_t serial,
              int spread)
{
    int on = 1, rc;
    uint64_t *stamps = c->stamps;
    const struct sockaddr_storage *to = &o->addrs[serial % (unsigned)o->naddrs];
    *c = (struct conn){.fd = -1, .stamps = stamps};
    c->first = (size_t)serial * NUMBERS;
    c->out_at = c->in_at = o->udp ? c->first : serial % p->count * p->wire;
    c->fd = socket(to->ss_family, (o->udp ? SOCK_DGRAM : SOCK_STREAM) | SOCK_CLOEXEC, 0);
    if (c->fd < 0) {
        return -errno;
    }
    if (to->ss_family != AF_UNIX && !o->udp) {
        setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
    }
    if (spread && to->ss_family == AF_INET) {
        bind_source(c->fd, serial);
    }
    rc = conn_connect(c, o, to);
    if (rc < 0) {
        conn_close(c);
    }
    return rc;
}

void conn_close(struct conn *c)
{
    tls_close(c);
    close(c->fd);
    c->fd = -1;
}

ssize_t conn_receive(struct conn *c, void *data, size_t len)
{
    return c->tls ? tls_receive(c, data, len) : recv(c->fd, data, len, 0);
}

void conn_grant(struct conn *c, const struct options *o, const struct pattern *p, unsigned n,
                uint64_t now)
{
    unsigned at = c->oldest + c->flying;
    for (unsigned i = 0; i < n; i++, at++) {
        c->stamps[at < o->inflight ? at : at - o->inflight] = now;
    }
    c->flying += n;
    c->to_send += n * (o->file ? REQUEST_BYTES : p->wire);
    c->unseen += n * p->wire;
}

static void spin(double us)
{
    uint64_t until = now_ns() + (uint64_t)(us * 1e3);
    while (now_ns() < until) {
    }
}

static void put_word(unsigned char *to, size_t value)
{
    for (int i = 0; i < 4; i++) {
        to[i] = (unsigned char)(value >> (24 - 8 * i));
    }
}

/* So few bytes are in flight that the kernel takes them all. */
static int ask(struct conn *c, const struct pattern *p)
{
    unsigned char request[REQUEST_BYTES];
    for (; c->to_send; c->to_send -= REQUEST_BYTES) {
        put_word(request, c->out_at);
        put_word(request + 4, p->wire);
        ssize_t sent = send(c->fd, request, sizeof(request), MSG_NOSIGNAL);
        if (sent != REQUEST_BYTES) {
            return sent < 0 ? -errno : -ENOBUFS;
        }
        c->out_at = (c->out_at + p->wire) % p->modulus;
    }
    return 0;
}

int conn_send(struct conn *c, const struct options *o, const struct pattern *p)
{
    if (o->udp) {
        return udp_send(c, p);
    }
    if (o->file) {
        return ask(c, p);
    }
    while (c->to_send) {
        size_t extra = o->inflight * p->wire > RING_BYTES * 4u ? 0 : o->inflight * p->wire;
        size_t len = p->modulus + extra - c->out_at;
        len = len < c->to_send ? len : c->to_send;
        len = o->pieces && o->pieces < len ? o->pieces : len;
        const char *from = p->bytes + c->out_at;
        ssize_t sent = c->tls ? tls_send(c, from, len) : send(c->fd, from, len, MSG_NOSIGNAL);
        if (sent < 0) {
            return errno == EAGAIN || errno == EINTR ? 0 : -errno;
        }
        c->to_send -= (size_t)sent;
        c->out_at += (size_t)sent;
        if (c->out_at >= p->modulus) {
            c->out_at -= p->modulus;
        }
        if (o->pieces) {
            spin(o->gap_us);
            return 0;
        }
        if ((size_t)sent < len) {
            return 0;
        }
    }
    return 0;
}

int conn_verify(struct conn *c, const struct options *o, const struct pattern *p, const char *data,
                size_t len, uint64_t now, struct histogram *h)
{
    int done = 0;
    if (len > c->unseen - c->to_send) {
        return -1;
    }
    c->unseen -= len;
    c->part += len;
    while (len) {
        size_t run = p->modulus - c->in_at < len ? p->modulus - c->in_at : len;
        if (memcmp(p->bytes + c->in_at, data, run) != 0) {
            return -1;
        }
        data += run;
        len -= run;
        c->in_at = c->in_at + run == p->modulus ? 0 : c->in_at + run;
    }
    for (; c->part >= p->wire; c->part -= p->wire, done++) {
        if (h) {
            histogram_add(h, now - c->stamps[c->oldest]);
        }
        c->oldest = c->oldest + 1 == o->inflight ? 0 : c->oldest + 1;
    }
    c->flying -= (unsigned)done;
    return done;
}
