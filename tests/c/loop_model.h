/* loop_model.h -- a peer and its conn as test_loop_stress.c sees them: what was said on either side, and
 * so what must be heard. Message k of a conn follows from (serial, k): nothing is kept to compare. */
#ifndef LOOP_MODEL_H
#define LOOP_MODEL_H

#include "loop_rig.h"

#define CONNS 20
#define WIRE_BYTES (1 << 18)
#define LONGEST 50000u

struct side {
    uint64_t id; /* 0: no conn here */
    uint32_t serial, kind;
    int peer; /* -1: closed */
    int tls, paused, closing, aborted, draining, eof_told, peer_shut;
    uint32_t queued, wired, told; /* messages: made, whole on the wire, delivered */
    size_t raw_told, raw_wired;
    uint8_t *wire; /* made, and not yet taken by the kernel */
    size_t from, to, next_end;
    size_t ends[64]; /* where the messages in `wire` end */
    uint32_t ends_n;
    uint64_t sent, heard; /* bytes to the peer */
};

static struct side sides[CONNS];
static uint64_t rng;
static uint32_t serials;
static const char *wrong; /* the first broken promise */

static uint32_t roll(uint32_t n)
{
    rng = rng * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(rng >> 33) % n;
}

static void blame(const char *what)
{
    if (!wrong)
        wrong = what;
}

static size_t length_of(uint32_t serial, uint32_t kind, uint32_t k)
{
    uint32_t h = (serial * 2654435761u) ^ (k * 40503u + 12345u);
    h ^= h >> 13;
    if (kind == PL_FIXED)
        return 8;
    if (h % 199 == 0)
        return h / 199 % LONGEST;
    return h % 17 == 0 ? h / 17 % 3000 : h % 40;
}

static uint8_t byte_of(uint32_t serial, uint64_t at)
{
    return (uint8_t)('a' + (serial * 7u + at * 11u + at / 251u) % 26u);
}

static struct side *side_of(uint64_t id)
{
    for (int i = 0; i < CONNS; i++)
        if (sides[i].id == id && id)
            return &sides[i];
    return NULL;
}

static void make_message(struct side *s)
{
    static uint8_t payload[LONGEST];
    struct pl_options o = options_of(s->kind);
    struct pl_wrap w = {.head_len = 0};
    size_t len = length_of(s->serial, s->kind, s->queued);
    if (s->from == s->to)
        s->from = s->to = 0;
    if (s->ends_n == 64 || s->to + len + 100 > WIRE_BYTES || s->peer_shut || s->peer < 0)
        return;
    for (size_t i = 0; i < len; i++)
        payload[i] = byte_of(s->serial, s->kind == PL_RAW ? s->raw_wired + i : s->queued + i);
    o.framing.max_size = s->kind == PL_FIXED ? 8 : 65536;
    if (s->kind != PL_RAW && pl_framing_wrap(&o.framing, payload, len, &w) < 0)
        blame("wrap");
    memcpy(s->wire + s->to, w.head, w.head_len);
    memcpy(s->wire + s->to + w.head_len, payload, len);
    memcpy(s->wire + s->to + w.head_len + len, w.tail, w.tail_len);
    s->to += w.head_len + len + w.tail_len;
    s->ends[s->ends_n++] = s->to;
    s->raw_wired += len;
    s->queued++;
}

static void peer_writes(struct side *s)
{
    size_t most = s->to - s->from, len = roll(4) ? 1 + roll(200) : 1 + roll(70000);
    if (s->peer < 0 || s->peer_shut || !most)
        return;
    ssize_t n = send(s->peer, s->wire + s->from, len < most ? len : most,
                     MSG_NOSIGNAL | MSG_DONTWAIT);
    if (n <= 0)
        return;
    s->from += (size_t)n;
    uint32_t done = 0;
    while (done < s->ends_n && s->ends[done] <= s->from)
        done++;
    s->wired += done;
    s->ends_n -= done;
    memmove(s->ends, s->ends + done, s->ends_n * sizeof s->ends[0]);
}

static int peer_reads(struct side *s)
{
    static uint8_t got[100000];
    ssize_t n = s->peer < 0 ? 0 : recv(s->peer, got, 1 + roll(sizeof got - 1), MSG_DONTWAIT);
    for (ssize_t i = 0; i < n; i++)
        if (got[i] != byte_of(s->serial + 1, s->heard + (uint64_t)i))
            blame("output garbled");
    s->heard += n > 0 ? (uint64_t)n : 0;
    if (s->heard > s->sent)
        blame("more output than was sent");
    return n > 0;
}

static void side_sends(struct side *s)
{
    static uint8_t out[100000];
    size_t len = roll(8) ? roll(100) : roll(sizeof out);
    for (size_t i = 0; i < len; i++)
        out[i] = byte_of(s->serial + 1, s->sent + i);
    int rc = pl_conn_write(loop, s->id, out, len);
    if (rc == 0 || rc == 1)
        s->sent += len;
    else if (rc == PL_E_WRITE_LIMIT)
        s->closing = s->aborted = 1;
    else if (rc != -EPIPE && rc != -ESTALE)
        blame("write failed");
}

static void side_closes(struct side *s, int abruptly)
{
    int rc = abruptly ? pl_conn_abort(loop, s->id, -ECONNABORTED) : pl_conn_close(loop, s->id);
    if (rc != 0 && rc != -ESTALE)
        blame("close refused");
    s->closing = 1;
    s->aborted |= abruptly;
}

#endif
