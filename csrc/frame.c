/* frame.c -- the framing rules: Raw, Lines, Delimited, LengthPrefixed, FixedSize, Netstring.
 *
 * Every framing has the same shape: next_* finds the first message, wrap_* says what goes around one
 * on the wire, and a switch of one line a case picks them. A search for a terminator goes on where it
 * stopped, so its cost is linear however the bytes arrive; a length is read anew each time (at most
 * 20 bytes). Sizes are safe to add: max_size is at most SIZE_LIMIT, and a length is compared with it first.
 *
 * Sources: LEB128 as in protobuf (longer forms of a number are taken), cr.yp.to/proto/netstrings.txt.
 */
#include "frame.h"

#include <errno.h>
#include <string.h>

/* max_size, at most: 1 TiB where addresses have 64 bits. */
#define SIZE_LIMIT ((uint64_t)1 << (sizeof(size_t) > 4 ? 40 : 30))

#define VARINT_BYTES_MAX 10

/* ---- next: where the first message ends ---- */

/* A message of `len` bytes behind a head and before a tail: there, not yet there, or too long. */
static int next_sized(const struct pl_framing *f, size_t n, size_t head, uint64_t len, size_t tail,
                      struct cut *cut)
{
    if (len > f->max_size) {
        return PL_E_TOO_LONG;
    }
    *cut = (struct cut){head, (size_t)len, head + (size_t)len + tail};
    return n >= cut->total;
}

static int next_raw(size_t n, struct cut *cut)
{
    *cut = (struct cut){0, n, n > 0 ? n : 1};
    return n > 0;
}

static int next_lines(const struct pl_framing *f, const uint8_t *p, size_t n, size_t *scanned,
                      struct cut *cut)
{
    const uint8_t *lf = n > *scanned ? memchr(p + *scanned, '\n', n - *scanned) : NULL;
    size_t end = lf ? (size_t)(lf - p) : n;
    size_t len = end > 0 && p[end - 1] == '\r' ? end - 1 : end; /* without \n: it may yet come */

    *scanned = lf ? 0 : n;
    if (len > f->max_size) {
        return PL_E_TOO_LONG;
    }
    *cut = (struct cut){0, len, end + 1};
    return lf != NULL;
}

static int next_delim(const struct pl_framing *f, const uint8_t *p, size_t n, size_t *scanned,
                      struct cut *cut)
{
    const uint8_t *sep =
        n > *scanned ? memmem(p + *scanned, n - *scanned, f->sep, f->sep_len) : NULL;
    size_t back = f->sep_len - (size_t)1; /* a separator may have begun in the last bytes */
    size_t len = n > back ? n - back : 0;

    if (sep) {
        len = (size_t)(sep - p);
    }
    *scanned = sep ? 0 : len;
    if (len > f->max_size) {
        return PL_E_TOO_LONG;
    }
    *cut = (struct cut){0, len, len + f->sep_len};
    return sep != NULL;
}

static int next_prefix(const struct pl_framing *f, const uint8_t *p, size_t n, struct cut *cut)
{
    uint64_t len = 0;

    if (n < f->width) {
        *cut = (struct cut){0, 0, f->width};
        return 0;
    }
    for (unsigned i = 0; i < f->width; i++) {
        len = len << 8 | p[f->big ? i : f->width - 1u - i];
    }
    return next_sized(f, n, f->width, len, 0, cut);
}

static int next_varint(const struct pl_framing *f, const uint8_t *p, size_t n, struct cut *cut)
{
    uint64_t len = 0;

    for (unsigned i = 0; i < n; i++) {
        if (i == VARINT_BYTES_MAX - 1 && p[i] > 1) { /* bit 64, or an eleventh byte */
            return PL_E_MALFORMED;
        }
        len |= (uint64_t)(p[i] & 0x7f) << 7 * i;
        if (p[i] < 0x80) {
            return next_sized(f, n, i + 1, len, 0, cut);
        }
    }
    *cut = (struct cut){0, 0, n + 1};
    return 0;
}

static int next_netstring(const struct pl_framing *f, const uint8_t *p, size_t n, struct cut *cut)
{
    uint64_t len = 0;
    size_t i;

    for (i = 0; i < n && p[i] != ':'; i++) {
        if (p[i] < '0' || p[i] > '9' || (i > 0 && p[0] == '0')) {
            return PL_E_MALFORMED;
        }
        len = len * 10 + (uint64_t)(p[i] - '0');
        if (len > f->max_size) { /* also bounds the digits read */
            return PL_E_TOO_LONG;
        }
    }
    if (i == 0 && n > 0) {
        return PL_E_MALFORMED;
    }
    int rc = next_sized(f, n, i + 1 + (i == 0), len, 1, cut); /* no byte yet: at least "0:," */
    return rc == 1 && p[cut->total - 1] != ',' ? PL_E_MALFORMED : rc;
}

int frame_next(const struct pl_framing *f, const uint8_t *p, size_t n, size_t *scanned,
               struct cut *cut)
{
    switch (f->kind) {
    case PL_RAW: return next_raw(n, cut);
    case PL_LINES: return next_lines(f, p, n, scanned, cut);
    case PL_DELIM: return next_delim(f, p, n, scanned, cut);
    case PL_PREFIX: return next_prefix(f, p, n, cut);
    case PL_VARINT: return next_varint(f, p, n, cut);
    case PL_FIXED: return next_sized(f, n, 0, f->max_size, 0, cut);
    case PL_NETSTRING: return next_netstring(f, p, n, cut);
    default: return -EINVAL;
    }
}

int frame_finish(const struct pl_framing *f, const uint8_t *p, size_t n, struct cut *cut)
{
    (void)p;
    if (n == 0) {
        return 0;
    }
    if (f->kind != PL_LINES) {
        return PL_E_INCOMPLETE;
    }
    /* A \r at the limit was let through as half a terminator; now it belongs to the message. */
    return next_sized(f, n, 0, n, 0, cut);
}

/* ---- wrap: what goes around a message ---- */

static int wrap_lines(const uint8_t *data, size_t len, struct pl_wrap *wrap)
{
    if (len > 0 && memchr(data, '\n', len)) {
        return PL_E_TERMINATOR;
    }
    /* The receiver drops a \r before the \n: give it one to drop, so that the payload's own stays. */
    if (len > 0 && data[len - 1] == '\r') {
        wrap->tail[wrap->tail_len++] = '\r';
    }
    wrap->tail[wrap->tail_len++] = '\n';
    return 0;
}

/* Would the receiver see a separator that begins in the payload's last bytes and ends in the
 * separator that follows? As "aa" does in the wire bytes "a" "aa". */
static int overlaps(const struct pl_framing *f, const uint8_t *data, size_t len)
{
    for (size_t k = 1; k < f->sep_len && k <= len; k++) {
        if (memcmp(data + len - k, f->sep, k) == 0 &&
            memcmp(f->sep, f->sep + k, f->sep_len - k) == 0) {
            return 1;
        }
    }
    return 0;
}

static int wrap_delim(const struct pl_framing *f, const uint8_t *data, size_t len,
                      struct pl_wrap *wrap)
{
    if (len > 0 && (memmem(data, len, f->sep, f->sep_len) || overlaps(f, data, len))) {
        return PL_E_TERMINATOR;
    }
    memcpy(wrap->tail, f->sep, f->sep_len);
    wrap->tail_len = f->sep_len;
    return 0;
}

static int wrap_prefix(const struct pl_framing *f, size_t len, struct pl_wrap *wrap)
{
    uint64_t left = len;

    for (unsigned i = 0; i < f->width; i++, left >>= 8) {
        wrap->head[f->big ? f->width - 1u - i : i] = (uint8_t)left;
    }
    wrap->head_len = f->width;
    return left > 0 ? PL_E_RANGE : 0;
}

static int wrap_varint(size_t len, struct pl_wrap *wrap)
{
    uint64_t left = len;

    for (; left >= 0x80; left >>= 7) {
        wrap->head[wrap->head_len++] = (uint8_t)(left | 0x80);
    }
    wrap->head[wrap->head_len++] = (uint8_t)left;
    return 0;
}

static int wrap_netstring(size_t len, struct pl_wrap *wrap)
{
    uint64_t ten = 1, left = len;

    while (left / ten >= 10) {
        ten *= 10;
    }
    for (; ten > 0; left %= ten, ten /= 10) {
        wrap->head[wrap->head_len++] = (uint8_t)('0' + left / ten);
    }
    wrap->head[wrap->head_len++] = ':';
    wrap->tail[0] = ',';
    wrap->tail_len = 1;
    return 0;
}

int pl_framing_wrap(const struct pl_framing *f, const uint8_t *data, size_t len,
                    struct pl_wrap *wrap)
{
    wrap->head_len = wrap->tail_len = 0;
    if (len > f->max_size && f->kind != PL_RAW && f->kind != PL_FIXED) {
        return PL_E_TOO_LONG;
    }
    switch (f->kind) {
    case PL_RAW: return 0;
    case PL_LINES: return wrap_lines(data, len, wrap);
    case PL_DELIM: return wrap_delim(f, data, len, wrap);
    case PL_PREFIX: return wrap_prefix(f, len, wrap);
    case PL_VARINT: return wrap_varint(len, wrap);
    case PL_FIXED: return len == f->max_size ? 0 : PL_E_SIZE;
    case PL_NETSTRING: return wrap_netstring(len, wrap);
    default: return -EINVAL;
    }
}

/* ---- check ---- */

static int width_known(unsigned width)
{
    return width == 1 || width == 2 || width == 4 || width == 8;
}

int pl_framing_check(const struct pl_framing *f)
{
    int good = f->kind <= PL_NETSTRING;

    good &= f->kind != PL_PREFIX || width_known(f->width);
    good &= f->kind != PL_DELIM || (f->sep_len >= 1 && f->sep_len <= PL_SEP_MAX);
    good &= f->kind == PL_RAW || (f->max_size >= 1 && f->max_size <= SIZE_LIMIT);
    return good ? 0 : -EINVAL;
}
