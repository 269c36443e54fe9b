/* conn.c -- one connection: state, interest, bytes in and out, limits, idle time.
 *
 * See conn.h for the states. Knows sock, buf and frame; not the loop. errno stays in sock.c. */
#include "conn.h"

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "out.h"
#include "sock.h"

#define AT_ONCE_BYTES (CHUNK_BYTES + 1) /* what needs a chunk of its own is not worth the copy */
#define AT_ONCE_CHUNKS 17               /* with so many before it, at most: 64 KiB */

struct conn *conn_new(struct group *group, int fd, int64_t now)
{
    struct conn *c = calloc(1, sizeof *c);
    if (!c)
        return NULL;
    c->group = group;
    c->fd = fd;
    c->active_ns = now;
    return c;
}

void conn_free(struct conn *c, struct chunk_pool *pool)
{
    buf_fini(&c->in);
    queue_fini(&c->out, pool);
    free(c);
}

/* Take what the kernel took off the front of the spans. */
static void skip(struct span *spans, int n, size_t taken)
{
    for (int i = 0; i < n && taken; i++) {
        size_t len = taken < spans[i].len ? taken : spans[i].len;
        spans[i].data += len;
        spans[i].len -= len;
        taken -= len;
    }
}

/* What is queued, as the first entries; or -1: it is too much for that, or not all of it is bytes that we own. */
static int queued_before(const struct queue *q, struct iovec *iov)
{
    int n = 0;
    for (const struct chunk *c = q->head; c; c = c->next) {
        if (n == AT_ONCE_CHUNKS || c->mapping)
            return -1;
        iov[n++] = (struct iovec){c->bytes + c->start, c->end - c->start};
    }
    return n;
}

/* Offer a large message to the kernel from where it lies, behind what is queued. 1: it took all; 0: what is left in the
 * spans is to be queued; PL_E_INCOMPLETE: so it is, and the rest must not be lost. */
static int send_at_once(struct conn *c, struct chunk_pool *pool, struct span *spans, int n,
                        size_t len)
{
    struct iovec iov[AT_ONCE_CHUNKS + 3];
    int before = queued_before(&c->out, iov);
    if (before < 0)
        return 0;
    for (int i = 0; i < n; i++)
        iov[before + i] = (struct iovec){(void *)(uintptr_t)spans[i].data, spans[i].len};
    int64_t taken = sock_send(c->fd, iov, before + n, conn_is(c, PL_PIPE));
    (*c->group->loop_counters)->sends++;
    if (taken < 0)
        return 0; /* the flush finds it again, or the room */
    c->group->counters->bytes_out += (uint64_t)taken;
    (*c->group->loop_counters)->bytes_out += (uint64_t)taken;
    c->active_ns = sock_now(); /* the loop's own time is that of the batch */
    size_t old = (size_t)taken < c->out.len ? (size_t)taken : c->out.len;
    size_t own = (size_t)taken - old;
    queue_pop(&c->out, pool, old);
    if (own == len)
        return 1;
    skip(spans, n, own);
    c->flags |= CONN_BLOCKED;
    return own ? PL_E_INCOMPLETE : 0;
}

static void copy_spans(uint8_t *to, const struct span *spans, int n)
{
    for (int i = 0; i < n; to += spans[i++].len)
        if (spans[i].len)
            memcpy(to, spans[i].data, spans[i].len);
}

static int queue_spans(struct conn *c, struct chunk_pool *pool, struct span *spans, int n)
{
    size_t len = 0;
    for (int i = 0; i < n; i++)
        len += spans[i].len;
    int began = 0;
    if ((len >= AT_ONCE_BYTES || conn_is(c, PL_PIPE)) && !(c->flags & CONN_BLOCKED))
        began = send_at_once(c, pool, spans, n, len);
    if (began == 1)
        return 0;
    uint8_t *to = began == 0 ? queue_extend(&c->out, pool, len) : NULL;
    if (to) {
        copy_spans(to, spans, n);
        return 0;
    }
    int rc = queue_push(&c->out, pool, spans, n);
    return rc < 0 && began < 0 ? began : rc;
}

/* What goes around a message is a few bytes, mostly one, which a call of memcpy is not worth. */
static inline uint8_t *copy_few(uint8_t *to, const uint8_t *from, uint32_t len)
{
    if (len == 1)
        *to = *from;
    else if (len)
        memcpy(to, from, len);
    return to + len;
}

int conn_queue(struct conn *c, struct chunk_pool *pool, const uint8_t *data, size_t len, int framed)
{
    const struct pl_framing *framing = &c->group->options.framing;
    struct span alone = {data, len};
    struct pl_wrap wrap;
    if (!framed || framing->kind == PL_RAW)
        return queue_spans(c, pool, &alone, 1);
    int rc = pl_framing_wrap(framing, data, len, &wrap);
    if (rc < 0)
        return rc;
    uint8_t *to = NULL;
    if (c->out.len) /* one small message behind another */
        to = queue_extend(&c->out, pool, wrap.head_len + len + wrap.tail_len);
    if (!to) {
        struct span spans[3] = {{wrap.head, wrap.head_len}, alone, {wrap.tail, wrap.tail_len}};
        return queue_spans(c, pool, spans, 3);
    }
    to = copy_few(to, wrap.head, wrap.head_len);
    if (len)
        memcpy(to, data, len);
    copy_few(to + len, wrap.tail, wrap.tail_len);
    return 0;
}

int conn_queue_mapped(struct conn *c, struct chunk_pool *pool, struct pl_mapping *m, size_t start,
                      size_t len, int framed)
{
    const struct pl_framing *framing = &c->group->options.framing;
    struct pl_wrap wrap = {0};
    if (framed && (framing->kind == PL_LINES || framing->kind == PL_DELIM))
        return PL_E_PAYLOAD;
    int rc = framed ? pl_framing_wrap(framing, NULL, len, &wrap) : 0;
    if (rc < 0)
        return rc;
    struct span around[2] = {{wrap.head, wrap.head_len}, {wrap.tail, wrap.tail_len}};
    return queue_push_mapped(&c->out, pool, around, m, start, len);
}

int conn_flush(struct conn *c, struct chunk_pool *pool, int64_t now)
{
    while (c->out.len) {
        size_t sent;
        int rc = out_send(&c->out, pool, c->fd, conn_is(c, PL_PIPE), &sent);
        (*c->group->loop_counters)->sends++;
        if (rc < 0)
            return rc;
        if (sent > 0) {
            c->group->counters->bytes_out += sent;
            (*c->group->loop_counters)->bytes_out += sent;
            c->active_ns = now;
        }
        if (rc == 0) {
            c->flags |= CONN_BLOCKED;
            return 0;
        }
    }
    c->flags &= ~(uint32_t)CONN_BLOCKED;
    return 1;
}

int64_t conn_receive(struct conn *c, uint8_t *data, size_t len)
{
    struct pl_loop_counters *loop = *c->group->loop_counters;
    int64_t n = conn_is(c, PL_PIPE) ? sock_read(c->fd, data, len) : sock_receive(c->fd, data, len);
    loop->receives++;
    if (n > 0) {
        c->group->counters->bytes_in += (uint64_t)n;
        loop->bytes_in += (uint64_t)n;
    }
    if (n == 0)
        c->flags |= CONN_PEER_EOF;
    return n;
}

static int64_t earlier(int64_t due, int64_t since, int64_t timeout)
{
    return timeout && since + timeout < due ? since + timeout : due;
}

int64_t conn_due(const struct conn *c)
{
    const struct pl_options *options = &c->group->options;
    if (c->flags & CONN_LINGERING)
        return c->since_ns + options->linger;
    if (c->flags & CONN_CLOSING) {
        int64_t start = c->active_ns > c->since_ns ? c->active_ns : c->since_ns;
        return earlier(INT64_MAX, start, options->close_timeout);
    }
    if (c->flags & (CONN_DEAD | CONN_FAULTED))
        return INT64_MAX;
    int64_t due = earlier(INT64_MAX, c->active_ns, options->idle_timeout);
    int running = c->since_ns && !(c->flags & CONN_PAUSED); /* paused, it could not be finished */
    return running ? earlier(due, c->since_ns, options->message_timeout) : due;
}

int conn_is_idle(const struct conn *c, int64_t now)
{
    return earlier(INT64_MAX, c->active_ns, c->group->options.idle_timeout) <= now;
}
