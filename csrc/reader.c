/* reader.c -- framing without a loop: a buf, and how far its first message was searched.
 *
 * Serves pyloop.lowlevel.ReadBuffer and the blocking connections. Knows no fd: bytes are fed, or
 * received by the caller into reserved room. What a call returns is borrowed until the next one, so
 * consuming only moves a mark, and memory over KEEP_BYTES is given back when the next call finds the
 * reader empty.
 */
#include "buf.h"
#include "frame.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define KEEP_BYTES 65536 /* memory that an empty reader keeps */

struct pl_reader {
    struct buf in;
    size_t reserved;           /* bytes that pl_reader_commit may add */
    size_t scanned;            /* of the first message, by `framing` */
    struct pl_framing framing; /* checked; compared by value */
};

struct pl_reader *pl_reader_new(void)
{
    return calloc(1, sizeof(struct pl_reader));
}

void pl_reader_free(struct pl_reader *r)
{
    if (r) {
        buf_fini(&r->in);
        free(r);
    }
}

/* Every call begins here: what the last one lent is taken back. Memory for `want` bytes is kept. */
static void reclaim(struct pl_reader *r, size_t want)
{
    r->reserved = 0;
    if (buf_len(&r->in) == 0 && r->in.cap > KEEP_BYTES && r->in.cap / 2 > want) {
        buf_fini(&r->in);
    }
}

int pl_reader_feed(struct pl_reader *r, const uint8_t *data, size_t len)
{
    reclaim(r, len);
    return buf_append(&r->in, data, len);
}

uint8_t *pl_reader_reserve(struct pl_reader *r, size_t len)
{
    reclaim(r, len);
    if (buf_reserve(&r->in, len > 0 ? len : 1) < 0) {
        return NULL;
    }
    r->reserved = len;
    return r->in.data + r->in.end;
}

int pl_reader_commit(struct pl_reader *r, size_t len)
{
    if (len > r->reserved) {
        return -EINVAL;
    }
    r->in.end += len;
    r->reserved = 0;
    return 0;
}

const uint8_t *pl_reader_data(const struct pl_reader *r)
{
    static const uint8_t nothing[1];

    return r->in.data ? r->in.data + r->in.start : nothing;
}

size_t pl_reader_len(const struct pl_reader *r)
{
    return buf_len(&r->in);
}

int pl_reader_consume(struct pl_reader *r, size_t len)
{
    reclaim(r, 0);
    if (len > buf_len(&r->in)) {
        return -EINVAL;
    }
    if (len > 0) {
        buf_consume(&r->in, len);
        r->scanned = 0;
    }
    return 0;
}

/* Take `f` as the framing searched by; another one than the last begins anew. 0 or -EINVAL. */
static int use_framing(struct pl_reader *r, const struct pl_framing *f)
{
    if (memcmp(f, &r->framing, sizeof(*f)) == 0) {
        return 0;
    }
    if (pl_framing_check(f) < 0) {
        return -EINVAL;
    }
    r->framing = *f;
    r->scanned = 0;
    return 0;
}

static void take(struct pl_reader *r, const struct cut *cut, const uint8_t **data, size_t *len)
{
    *data = r->in.data + r->in.start + cut->head;
    *len = cut->len;
    buf_consume(&r->in, cut->total);
    r->scanned = 0;
}

int pl_reader_next(struct pl_reader *r, const struct pl_framing *f, const uint8_t **data,
                   size_t *len)
{
    struct cut cut;

    reclaim(r, 0);
    int rc = use_framing(r, f);
    if (rc < 0) {
        return rc;
    }
    rc = frame_next(f, pl_reader_data(r), buf_len(&r->in), &r->scanned, &cut);
    if (rc == 1) {
        take(r, &cut, data, len);
    }
    return rc;
}

int pl_reader_finish(struct pl_reader *r, const struct pl_framing *f, const uint8_t **data,
                     size_t *len)
{
    struct cut cut;
    int rc = pl_reader_next(r, f, data, len);

    if (rc != 0) {
        return rc;
    }
    rc = frame_finish(f, pl_reader_data(r), buf_len(&r->in), &cut);
    if (rc == 1) {
        take(r, &cut, data, len);
    }
    return rc;
}
