/* load_udp.c -- datagrams: one message each, numbered, and some may be lost.
 *
 *     | number, 8 bytes | the rest of the ring's message `number` |
 *
 * Each conn is a socket of its own and counts from a number of its own. out_at is the next
 * number to send, in_at the oldest that may come back; oldest and stamps are as in a stream.
 * An echo that is ahead of others says that those are lost, for a server that answers in
 * order; load.c gives up those for which nothing has come for a while. One that was given up
 * may come after all, but only so many as were: anything else is a datagram that was doubled,
 * went to the wrong socket, or was never sent.
 */
#include "load.h"

#include <errno.h>
#include <string.h>
#include <sys/uio.h>

static const char *message(const struct pattern *p, uint64_t number)
{
    return p->bytes + number % p->count * p->wire;
}

/* Sent, and neither echoed nor given up. */
static unsigned under_way(const struct conn *c, const struct pattern *p)
{
    return c->flying - (unsigned)(c->to_send / p->wire);
}

static void forget(struct conn *c, const struct options *o, const struct pattern *p, unsigned n)
{
    c->in_at += n;
    c->oldest = (c->oldest + n) % o->inflight;
    c->flying -= n;
    c->unseen -= n * p->wire;
}

int udp_send(struct conn *c, const struct pattern *p)
{
    while (c->to_send) {
        uint64_t number = c->out_at;
        char *rest = (char *)message(p, number) + NUMBER_BYTES;
        struct iovec parts[] = {{&number, NUMBER_BYTES}, {rest, p->wire - NUMBER_BYTES}};
        if (writev(c->fd, parts, 2) < 0) {
            return errno == EAGAIN || errno == EINTR ? 0 : -errno;
        }
        c->to_send -= p->wire;
        c->out_at++;
    }
    return 0;
}

int udp_verify(struct conn *c, const struct options *o, const struct pattern *p, const char *data,
               size_t len, uint64_t now, struct histogram *h)
{
    uint64_t number;
    if (len != p->wire) {
        return -1;
    }
    memcpy(&number, data, NUMBER_BYTES);
    if (memcmp(message(p, number) + NUMBER_BYTES, data + NUMBER_BYTES, len - NUMBER_BYTES) != 0) {
        return -1;
    }
    uint64_t skipped = number - c->in_at;
    if (skipped >= under_way(c, p)) {
        int late = c->in_at - number <= c->in_at - c->first && c->given_up > 0;
        c->given_up -= (unsigned)late;
        return late ? 0 : -1;
    }
    if (h) {
        histogram_add(h, now - c->stamps[(c->oldest + skipped) % o->inflight]);
    }
    c->given_up += (unsigned)skipped;
    forget(c, o, p, (unsigned)skipped + 1);
    return (int)skipped + 1;
}

unsigned udp_give_up(struct conn *c, const struct options *o, const struct pattern *p,
                     uint64_t before)
{
    unsigned n = under_way(c, p);
    if (n == 0 || c->stamps[c->oldest] > before) {
        return 0;
    }
    c->given_up += n;
    forget(c, o, p, n);
    return n;
}
