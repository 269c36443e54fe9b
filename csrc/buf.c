/* buf.c -- bytes on their way in (buf) and out (queue); pictures of both are in buf.h.
 *
 * Owns memory and nothing else: no fds, no framing rules. A push needs at most one new chunk, taken
 * before a byte is copied, and that is what makes it all or nothing. Chunks in a queue are never
 * empty. The pool is last in, first out: the chunk that is reused is the one still in the cache.
 */
#include "buf.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define BUF_BYTES_MIN 256 /* the first allocation of a buf */

static size_t smaller(size_t a, size_t b)
{
    return a < b ? a : b;
}

static size_t larger(size_t a, size_t b)
{
    return a > b ? a : b;
}

/* memcpy, which may not be handed NULL even for no bytes. */
static void copy(uint8_t *to, const uint8_t *from, size_t len)
{
    if (len > 0) {
        memcpy(to, from, len);
    }
}

/* ---- buf ---- */

static void move_to_front(struct buf *b)
{
    size_t live = buf_len(b);
    if (live > 0 && b->start > 0) {
        memmove(b->data, b->data + b->start, live);
    }
    b->start = 0;
    b->end = live;
}

int buf_reserve(struct buf *b, size_t len)
{
    if (b->cap - b->end >= len) {
        return 0;
    }
    if (b->start >= buf_len(b)) {
        move_to_front(b);
    }
    if (b->cap - b->end >= len) {
        return 0;
    }
    if (len > (size_t)PTRDIFF_MAX - b->end) {
        return -ENOMEM;
    }
    size_t cap = larger(larger(2 * b->cap, b->end + len), BUF_BYTES_MIN);
    uint8_t *data = realloc(b->data, cap);
    if (!data) {
        return -ENOMEM;
    }
    b->data = data;
    b->cap = cap;
    return 0;
}

int buf_append(struct buf *b, const uint8_t *data, size_t len)
{
    int rc = buf_reserve(b, len);
    if (rc < 0 || !len) {
        return rc;
    }
    copy(b->data + b->end, data, len);
    b->end += len;
    return 0;
}

void buf_consume(struct buf *b, size_t len)
{
    b->start += len;
    if (b->start == b->end) {
        b->start = b->end = 0;
    }
}

void buf_fini(struct buf *b)
{
    free(b->data);
    *b = (struct buf){0};
}

/* ---- chunks ---- */

static struct chunk *chunk_new(struct chunk_pool *pool, size_t len)
{
    struct chunk *c = pool->free;
    if (len <= CHUNK_BYTES && c) {
        pool->free = c->next;
        pool->count--;
    } else {
        size_t cap = larger(len, CHUNK_BYTES);
        c = malloc(sizeof(*c) + cap);
        if (!c) {
            return NULL;
        }
        c->cap = cap;
        c->bytes = c->data;
        c->mapping = NULL;
    }
    c->next = NULL;
    c->start = c->end = 0;
    return c;
}

/* A piece of a mapping: full, so nothing is ever copied into it. */
static struct chunk *chunk_refer(struct pl_mapping *m, size_t start, size_t len)
{
    struct chunk *c = malloc(sizeof(*c));
    if (!c) {
        return NULL;
    }
    mapping_hold(m);
    *c = (struct chunk){
        .bytes = pl_mapping_data(m) + start, .mapping = m, .end = len, .cap = len};
    return c;
}

static void chunk_free(struct chunk_pool *pool, struct chunk *c)
{
    if (c->mapping) {
        mapping_drop(c->mapping);
        free(c);
        return;
    }
    if (c->cap != CHUNK_BYTES || pool->count >= POOL_CHUNKS_MAX) {
        free(c);
        return;
    }
    c->next = pool->free;
    pool->free = c;
    pool->count++;
}

/* Copy what fits of `from` into c (none if NULL), and take it off `from`. */
static void chunk_fill(struct chunk *c, struct span *from)
{
    size_t len = c ? smaller(from->len, c->cap - c->end) : 0;
    if (len > 0) {
        memcpy(c->data + c->end, from->data, len);
        c->end += len;
        from->data += len;
        from->len -= len;
    }
}

/* ---- queue ---- */

static int spans_len(const struct span *spans, int n, size_t *len)
{
    *len = 0;
    for (int i = 0; i < n; i++) {
        if (spans[i].len > (size_t)PTRDIFF_MAX - *len) {
            return -ENOMEM;
        }
        *len += spans[i].len;
    }
    return 0;
}

static void queue_link(struct queue *q, struct chunk *c)
{
    if (q->tail) {
        q->tail->next = c;
    } else {
        q->head = c;
    }
    q->tail = c;
}

uint8_t *queue_extend(struct queue *q, struct chunk_pool *pool, size_t len)
{
    struct chunk *c = q->tail;
    if (!c && len > 0 && len <= CHUNK_BYTES && (c = chunk_new(pool, len))) {
        queue_link(q, c);
    }
    if (!c || c->mapping || c->cap - c->end < len) {
        return NULL;
    }
    c->end += len;
    q->len += len;
    return c->data + c->end - len;
}

int queue_push(struct queue *q, struct chunk_pool *pool, const struct span *spans, int n)
{
    size_t len;
    int rc = spans_len(spans, n, &len);
    if (rc < 0) {
        return rc;
    }
    struct chunk *tail = q->tail, *next = NULL;
    size_t room = tail ? tail->cap - tail->end : 0;
    if (len > room) {
        next = chunk_new(pool, len - room);
        if (!next) {
            return -ENOMEM;
        }
        queue_link(q, next);
    }
    for (int i = 0; i < n; i++) {
        struct span left = spans[i];
        chunk_fill(tail, &left);
        chunk_fill(next, &left);
    }
    q->len += len;
    return 0;
}

int queue_push_mapped(struct queue *q, struct chunk_pool *pool, const struct span wrap[2],
                      struct pl_mapping *m, size_t start, size_t len)
{
    if (len == 0) {
        return queue_push(q, pool, wrap, 2);
    }
    if (len > (size_t)PTRDIFF_MAX - q->len) {
        return -ENOMEM;
    }
    struct chunk *tail = wrap[1].len ? chunk_new(pool, wrap[1].len) : NULL;
    if (wrap[1].len && !tail) {
        return -ENOMEM;
    }
    struct chunk *piece = chunk_refer(m, start, len);
    if (!piece || queue_push(q, pool, wrap, 1) < 0) {
        goto free_chunks;
    }
    queue_link(q, piece);
    q->len += len;
    if (tail) {
        struct span left = wrap[1];
        chunk_fill(tail, &left);
        queue_link(q, tail);
        q->len += wrap[1].len;
    }
    return 0;

free_chunks:
    if (piece) {
        chunk_free(pool, piece);
    }
    if (tail) {
        chunk_free(pool, tail);
    }
    return -ENOMEM;
}

int queue_iov(const struct queue *q, struct iovec *iov, int max)
{
    int n = 0;
    for (struct chunk *c = q->head; c && n < max; c = c->next) {
        iov[n].iov_base = c->bytes + c->start;
        iov[n].iov_len = c->end - c->start;
        n++;
    }
    return n;
}

void queue_pop(struct queue *q, struct chunk_pool *pool, size_t len)
{
    q->len -= len;
    while (len > 0) {
        struct chunk *c = q->head;
        size_t taken = smaller(len, c->end - c->start);
        c->start += taken;
        len -= taken;
        if (c->start == c->end) {
            q->head = c->next;
            chunk_free(pool, c);
        }
    }
    if (!q->head) {
        q->tail = NULL;
    }
}

void queue_fini(struct queue *q, struct chunk_pool *pool)
{
    queue_pop(q, pool, q->len);
}

void pool_fini(struct chunk_pool *pool)
{
    while (pool->free) {
        struct chunk *c = pool->free;
        pool->free = c->next;
        free(c);
    }
    pool->count = 0;
}
