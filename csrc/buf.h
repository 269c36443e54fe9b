/* buf.h -- bytes: a read buffer with two marks, and a queue of chunks to write, some of which may lie in a mapping.
 *
 *     buf     data [....|live bytes|....] cap         queue   chunk -> chunk -> chunk
 *                     start      end                          popped ^    pushed ^
 *
 * No I/O, no errno. A zeroed struct is empty and holds no memory.
 */
#ifndef PYLOOP_BUF_H
#define PYLOOP_BUF_H

#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#include "mapping.h"

struct span { /* a borrowed piece */
    const uint8_t *data;
    size_t len;
};

struct buf {
    uint8_t *data;
    size_t start, end, cap;
};

static inline size_t buf_len(const struct buf *b) { return b->end - b->start; }

/* Make room for `len` bytes behind `end`. Live bytes are moved to the front only when at least as
 * many are dead, and growth doubles, so the cost is linear in the bytes that pass through. 0, -ENOMEM. */
int buf_reserve(struct buf *b, size_t len);

/* reserve + copy; `data` may not lie inside b. 0, -ENOMEM (b unchanged). */
int buf_append(struct buf *b, const uint8_t *data, size_t len);

/* Drop `len` <= buf_len bytes from the front; memory is kept. */
void buf_consume(struct buf *b, size_t len);

/* Free the memory; b is empty. */
void buf_fini(struct buf *b);

#define CHUNK_BYTES 4048 /* payload of a pooled chunk */
#define POOL_CHUNKS_MAX 256

struct chunk {
    struct chunk *next;
    uint8_t *bytes;             /* data, or the piece in the mapping */
    struct pl_mapping *mapping; /* held; NULL: the bytes are in data */
    size_t start, end, cap;     /* live bytes are bytes[start..end) */
    uint8_t data[];
};

struct chunk_pool { /* spare chunks of CHUNK_BYTES, shared by the queues of one loop */
    struct chunk *free;
    size_t count;
};

struct queue {
    struct chunk *head, *tail;
    size_t len; /* live bytes in all chunks */
};

/* `len` bytes more at the back, in one piece, which the caller fills. NULL: they would not fit into the last chunk, or
 * the first; or no memory. */
uint8_t *queue_extend(struct queue *q, struct chunk_pool *pool, size_t len);

/* Copy n spans to the back as one: all of it or, with -ENOMEM, nothing. */
int queue_push(struct queue *q, struct chunk_pool *pool, const struct span *spans, int n);

/* The same with [start, start + len) of a mapping between the two spans: by reference, so nothing is copied, and
 * what leaves is what stands there then. */
int queue_push_mapped(struct queue *q, struct chunk_pool *pool, const struct span wrap[2],
                      struct pl_mapping *m, size_t start, size_t len);

/* Fill at most `max` entries with what is to be written next. Their number. */
int queue_iov(const struct queue *q, struct iovec *iov, int max);

/* `len` <= q->len bytes were written: drop them. Empty chunks go to the pool. */
void queue_pop(struct queue *q, struct chunk_pool *pool, size_t len);

void queue_fini(struct queue *q, struct chunk_pool *pool); /* drop all */
void pool_fini(struct chunk_pool *pool);

#endif
