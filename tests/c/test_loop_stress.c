/* test_loop_stress.c -- random operations on some conns, against a model of what each must be told.
 *
 * Message k of a conn follows from (serial, k), so what arrives is compared without being kept. The
 * "cipher" of PL_TLS conns is the plaintext, fed in pieces. Fixed seeds; STRESS_STEPS for more. */
#include "loop_model.h"

static int groups[14];
static uint64_t stale[8];
static int calm; /* the end: everything is taken, nothing held */

/* ---- what the batch says ---- */

static void on_message(struct side *s, int at)
{
    const struct pl_event *e = &events[at];
    size_t len = (size_t)(e->end - e->data);
    if (s->closing)
        return;
    uint64_t base = s->kind == PL_RAW ? s->raw_told : s->told;
    if (s->kind != PL_RAW && len != length_of(s->serial, s->kind, s->told) && !s->peer_shut)
        blame("a message of another length");
    for (size_t i = 0; i < len; i++)
        if (e->data[i] != byte_of(s->serial, base + i)) {
            blame("a message garbled, or out of order");
            return;
        }
    s->told++;
    s->raw_told += len;
}

static void on_end(struct side *s, const struct pl_event *e)
{
    if (s->closing)
        return;
    if (s->eof_told)
        blame("end of stream told twice");
    s->eof_told = 1;
    if (e->value ? !s->draining : !s->peer_shut)
        blame("end of stream for no reason");
    if (!e->value && s->kind != PL_RAW && s->told != s->wired && s->told != s->wired + 1)
        blame("messages missing at end of stream");
    if (!roll(3))
        side_closes(s, 0);
}

static void on_cipher(struct side *s, const struct pl_event *e)
{
    const uint8_t *p = e->data;
    if (p == e->end)
        pl_conn_feed(loop, s->id, p, 0, 1);
    while (p < e->end) {
        size_t len = roll(2) ? 1 + roll(5000) : 1 + roll(60000);
        if (len > (size_t)(e->end - p))
            len = (size_t)(e->end - p);
        int rc = pl_conn_feed(loop, s->id, p, len, 0);
        if (rc != 0 && rc != -ESTALE)
            blame("feed refused");
        p += len;
    }
}

static void on_lost(struct side *s)
{
    if (pl_conn_write(loop, s->id, NULL, 0) != -ESTALE)
        blame("a lost conn takes output");
    if (!s->closing && s->peer >= 0)
        blame("lost for no reason");
    stale[roll(8)] = s->id;
    while (s->peer >= 0 && peer_reads(s))
        ;
    if (s->peer >= 0 && !s->aborted && s->heard != s->sent)
        blame("output lost by a close");
    if (s->peer >= 0)
        close(s->peer);
    s->id = 0;
}

/* Take the event, or hold it. */
static void on_input(struct side *s, int at)
{
    if (!calm && (s->paused || !roll(50))) {
        int rc = pl_conn_hold(loop, (uint32_t)at);
        if (rc != 0 && rc != -ESTALE)
            blame("hold refused");
    } else if (events[at].kind == PL_EV_MESSAGE) {
        on_message(s, at);
    } else {
        on_end(s, &events[at]);
    }
    if (calm)
        return;
    if (!roll(100) && !s->closing) {
        s->paused = 1;
        pl_conn_pause(loop, s->id);
    }
    if (!roll(60))
        side_sends(s);
    if (!roll(4000))
        side_closes(s, roll(2) == 0);
}

static void one_tick(void)
{
    int8_t was_paused[CONNS];
    for (int i = 0; i < CONNS; i++)
        was_paused[i] = (int8_t)(sides[i].paused && !sides[i].closing);
    if (tick(0) < 0)
        blame("tick failed");
    for (int i = 0; i < batch_n; i++) {
        struct side *s = side_of(events[i].id);
        if (!s) {
            blame("an event of nobody");
            continue;
        }
        if (was_paused[s - sides] &&
            (events[i].kind == PL_EV_MESSAGE || events[i].kind == PL_EV_EOF))
            blame("a paused conn was told something");
        switch (events[i].kind) {
        case PL_EV_MESSAGE:
        case PL_EV_EOF: on_input(s, i); break;
        case PL_EV_FAULT:
            if (!s->closing && (events[i].value != PL_E_INCOMPLETE || !s->peer_shut))
                blame("a fault for no reason");
            side_closes(s, 0);
            break;
        case PL_EV_CIPHER: on_cipher(s, &events[i]); break;
        case PL_EV_LOST: on_lost(s); break;
        case PL_EV_NONE:
        case PL_EV_RESUME: break;
        default: blame("an event of no kind");
        }
    }
}

/* ---- steps ---- */

static void open_side(struct side *s)
{
    uint32_t which = roll(14);
    uint8_t *wire = s->wire;
    *s = (struct side){.kind = which % 7, .tls = which >= 7, .serial = ++serials, .wire = wire};
    s->id = pair_open(groups[which], &s->peer);
    if (!s->id)
        blame("pl_conn_open failed");
}

static void peer_ends(struct side *s)
{
    s->peer_shut = 1;
    shutdown(s->peer, SHUT_WR);
}

static void peer_leaves(struct side *s)
{
    s->peer_shut = 1;
    close(s->peer);
    s->peer = -1;
}

static void step(struct side *s)
{
    switch (s->id ? roll(40) : 100) {
    case 0:
        s->paused = 1;
        pl_conn_pause(loop, s->id);
        break;
    case 1:
    case 2:
        s->paused = 0;
        pl_conn_resume(loop, s->id);
        break;
    case 3:
        if (!roll(60))
            side_closes(s, 0);
        break;
    case 4:
        if (!roll(60))
            side_closes(s, 1);
        break;
    case 5:
        if (!roll(40) && s->peer >= 0)
            peer_ends(s);
        break;
    case 6:
        if (!roll(80) && s->peer >= 0)
            peer_leaves(s);
        break;
    case 7:
        if (!roll(40)) {
            s->draining = 1;
            pl_conn_drain(loop, s->id);
        }
        break;
    case 8:
        if (!roll(40))
            pl_conn_shutdown(loop, s->id);
        break;
    case 9: pl_loop_flush(loop); break;
    case 10:
    case 11: side_sends(s); break;
    case 12:
    case 13:
    case 14: peer_reads(s); break;
    case 100: open_side(s); break;
    default: roll(2) ? make_message(s) : peer_writes(s);
    }
    uint64_t old = stale[roll(8)];
    if (old && !side_of(old) && pl_conn_close(loop, old) != -ESTALE)
        blame("a stale id found a conn");
}

/* Once all are resumed and the kernel is empty, each knows all that was sent. */
static void settle(void)
{
    calm = 1;
    for (int i = 0; i < CONNS; i++)
        if (sides[i].id)
            pl_conn_resume(loop, sides[i].id);
    for (int round = 0, quiet = 0; quiet < 5 && round < 20000; round++) {
        for (int i = 0; i < CONNS; i++)
            sides[i].paused = 0;
        one_tick();
        quiet = batch_n ? 0 : quiet + 1;
        for (int i = 0; i < CONNS; i++)
            quiet = sides[i].id && peer_reads(&sides[i]) ? 0 : quiet;
    }
    for (int i = 0; i < CONNS; i++) {
        const struct side *s = &sides[i];
        if (!s->id || s->closing)
            continue;
        if (s->kind != PL_RAW && !s->draining && s->told < s->wired)
            blame("messages that arrived were never told");
        if ((s->draining || s->peer_shut) && !s->eof_told)
            blame("end of stream never told");
        if (s->heard != s->sent && s->peer >= 0)
            blame("output never left");
    }
}

static void finish(void)
{
    settle();
    for (int round = 0; round < 20000; round++) {
        int left = 0;
        for (int i = 0; i < CONNS; i++) {
            struct side *s = &sides[i];
            if (!s->id)
                continue;
            left++;
            if (round > 50 && s->peer >= 0 && !s->peer_shut)
                peer_ends(s);
            side_closes(s, 0);
            peer_reads(s);
        }
        one_tick();
        if (!left)
            return;
    }
    blame("a conn never ended");
}

static void run_seed(uint64_t seed, long steps)
{
    struct pl_counters counters[14];
    memset(counters, 0, sizeof counters);
    rng = seed;
    wrong = NULL;
    calm = 0;
    CHECK(loop_open() == 0);
    for (uint32_t i = 0; i < 14; i++) {
        struct pl_options o = options_of(i % 7);
        o.framing.max_size = o.framing.kind == PL_FIXED ? 8 : 65536;
        o.flags = i >= 7 ? PL_TLS : 0;
        o.write_limit = 1 << 20;
        groups[i] = pl_group_new(loop, &o, &counters[i]);
    }
    for (int i = 0; i < CONNS; i++)
        sides[i] = (struct side){.wire = malloc(WIRE_BYTES), .peer = -1};
    for (long i = 0; i < steps && !wrong; i++) {
        step(&sides[roll(CONNS)]);
        if (!roll(4))
            one_tick();
    }
    if (!wrong)
        finish();
    for (int i = 0; i < CONNS; i++) {
        free(sides[i].wire);
        if (sides[i].id && sides[i].peer >= 0)
            close(sides[i].peer);
    }
    if (wrong)
        printf("seed %lu on %s: %s\n", (unsigned long)seed, backend_names[backend], wrong);
    loop_end();
    for (int i = 0; i < 14 && !wrong; i++)
        CHECK(counters[i].open == 0);
    CHECK(!wrong);
}

static void test_random_operations_keep_every_promise(void)
{
    const char *asked = getenv("STRESS_STEPS");
    long steps = asked ? atol(asked) : 100000;
    for (uint64_t seed = 1; seed <= 2; seed++) {
        run_seed(seed * 77 + (uint64_t)backend, steps);
        if (checks_failed)
            return;
    }
}

CHECK_MAIN(RUN_ON_ALL(test_random_operations_keep_every_promise);)
