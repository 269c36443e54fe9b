/* out.c -- queued output to a socket, and pl_outbox, a queue for who has a socket without a loop.
 *
 * A piece of a mapping goes from its page to the socket inside the kernel, which answers EFAULT where the page is
 * gone. The rest of a last page reads as zeroes, so the file's size is looked at before, that no such byte
 * leaves, and after, because the file may have been truncated during the call: then the conn must end.
 * Source: sendmsg(2), mmap(2). */
#include "out.h"

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>

#include "mapping.h"
#include "sock.h"

#define IOV_PER_SEND 64

/* Are the first n chunks still in their files? */
static int is_whole(const struct queue *q, int n)
{
    const struct chunk *c = q->head;
    for (; n > 0; n--, c = c->next)
        if (c->mapping) {
            size_t at = (size_t)(c->bytes - pl_mapping_data(c->mapping));
            if (pl_mapping_check(c->mapping, at + c->start, c->end - c->start) < 0)
                return 0;
        }
    return 1;
}

/* The first n chunks, some of them pieces of mappings perhaps. The count, -errno, or PL_E_TRUNCATED. */
static int64_t send_chunks(const struct queue *q, int fd, int is_pipe, size_t *offered)
{
    struct iovec iov[IOV_PER_SEND];
    int n = queue_iov(q, iov, IOV_PER_SEND);
    *offered = 0;
    for (int i = 0; i < n; i++)
        *offered += iov[i].iov_len;
    if (!is_whole(q, n))
        return PL_E_TRUNCATED;
    int64_t taken = sock_send(fd, iov, n, is_pipe);
    return taken == -EFAULT || (taken > 0 && !is_whole(q, n)) ? PL_E_TRUNCATED : taken;
}

/* Most queues: one chunk of bytes that were copied. */
static int64_t send_chunk(const struct chunk *c, int fd, int is_pipe, size_t *offered)
{
    const struct iovec iov = {c->bytes + c->start, c->end - c->start};
    *offered = iov.iov_len;
    return sock_send(fd, &iov, 1, is_pipe);
}

int out_send(struct queue *q, struct chunk_pool *pool, int fd, int is_pipe, size_t *sent)
{
    size_t offered;
    bool single = q->head && q->head == q->tail && !q->head->mapping;
    int64_t taken = single ? send_chunk(q->head, fd, is_pipe, &offered)
                           : send_chunks(q, fd, is_pipe, &offered);
    *sent = taken > 0 ? (size_t)taken : 0;
    if (taken < 0)
        return taken == -EAGAIN ? 0 : (int)taken;
    queue_pop(q, pool, *sent);
    return *sent == offered;
}

/* ---- outbox ---- */

struct pl_outbox {
    struct queue queue;
    struct chunk_pool pool;
};

struct pl_outbox *pl_outbox_new(void) { return calloc(1, sizeof(struct pl_outbox)); }

void pl_outbox_free(struct pl_outbox *box)
{
    pl_outbox_clear(box);
    pool_fini(&box->pool);
    free(box);
}

size_t pl_outbox_len(const struct pl_outbox *box) { return box->queue.len; }

void pl_outbox_clear(struct pl_outbox *box) { queue_fini(&box->queue, &box->pool); }

int pl_outbox_push(struct pl_outbox *box, const uint8_t *data, size_t len)
{
    const struct span span = {data, len};
    return queue_push(&box->queue, &box->pool, &span, 1);
}

int pl_outbox_push_mapped(struct pl_outbox *box, const struct pl_wrap *wrap, struct pl_mapping *m,
                          size_t start, size_t len)
{
    const struct span around[2] = {{wrap->head, wrap->head_len}, {wrap->tail, wrap->tail_len}};
    if (!mapping_has(m, start, len))
        return -EINVAL;
    return queue_push_mapped(&box->queue, &box->pool, around, m, start, len);
}

int64_t pl_outbox_send(struct pl_outbox *box, int fd)
{
    size_t sent;
    int rc = out_send(&box->queue, &box->pool, fd, 0, &sent);
    return rc < 0 ? rc : (int64_t)sent;
}
