/* ring.c -- a bounded queue of messages in a region: many put, many get, and any of them may be killed.
 *
 *     line 0, lock P   tail   who waits to get   shut        side PUT: appends records, moves the tail
 *     line 1, lock G   head   who waits to put               side GET: takes records, moves the head
 *     RING_DATA        ... [length][message, padded to 8] ...         positions only grow; modulo capacity
 *
 * A side has one lock, and nobody ever has both. Whoever has P writes a record behind the tail, where nobody reads,
 * and then stores the new tail: that store is the commit, and before it nothing has happened. Getting is the
 * same with the head. So there is nothing to repair after a lock was taken from the dead.
 *
 * Whoever waits for a side says so in that side's line, under that side's lock ("arms"), and the side rings the bell
 * before it commits, while it still has the lock: who wakes early waits at the lock, when it arms again, until the
 * commit is done or its maker dead. Ring, clear the flag, commit: killed between any two, no wake-up is lost.
 *
 * Memory that others write is believed for nothing: each word is read once and checked. The protocol is
 * explored over all interleavings in tests/ring_model.py. */
#include "ring.h"

#include <errno.h>

#include "sock.h"
#include "step.h"

#define SPIN_NS 10000
#define SPIN_PAUSES 64 /* between two looks: each takes the line from the other CPU, which is about to write to it */

enum side {
    PUT = 0,
    GET = 1
};

enum result {
    DONE = 0,
    NOT_YET = 1
};

/* Where a side's line has what. */
enum field {
    POSITION = 8,
    WAITS = 16,
    SHUT = 24
};

struct marks {
    uint64_t tail, head, used;
    uint64_t waits[2]; /* in whose line */
    uint64_t shut;
};

/* What a caller wants done. */
struct job {
    enum side side;
    uint64_t need; /* PUT: bytes of the record */
    const uint8_t *data;
    size_t len;
    uint8_t *to, *exact; /* GET: where to, unless it is of exact_len bytes */
    size_t exact_len;
    int64_t got;
};

static uint64_t place(enum side side, enum field field)
{
    return REGION_LINE * ((uint64_t)side + 1) + field;
}

/* ---- marks ---- */

/* Nobody writes to a named one meanwhile, since both locks are one there. */
static int read_lines(struct pl_ring *ring, struct marks *m)
{
    uint64_t words[2 * REGION_LINE / sizeof(uint64_t)];
    int rc = region_read(&ring->region, place(PUT, 0), words, sizeof words);
    if (rc < 0)
        return rc;
    const uint64_t *put = words, *get = words + REGION_LINE / sizeof *words;
    m->tail = put[POSITION / 8];
    m->head = get[POSITION / 8];
    m->waits[PUT] = put[WAITS / 8];
    m->waits[GET] = get[WAITS / 8];
    m->shut = put[SHUT / 8];
    return 0;
}

/* `shut` comes before the tail: who sees it set then sees all that was put before. */
static void load_marks(struct pl_ring *ring, struct marks *m)
{
    (void)region_load(&ring->region, place(PUT, SHUT), &m->shut);
    (void)region_load(&ring->region, place(GET, POSITION), &m->head);
    (void)region_load(&ring->region, place(PUT, POSITION), &m->tail);
    (void)region_load(&ring->region, place(PUT, WAITS), &m->waits[PUT]);
    (void)region_load(&ring->region, place(GET, WAITS), &m->waits[GET]);
}

/* With either lock. 0, PL_E_CORRUPT, -errno. */
static int read_marks(struct pl_ring *ring, struct marks *m)
{
    int rc = 0;
    if (ring->region.base)
        load_marks(ring, m);
    else
        rc = read_lines(ring, m);
    m->used = m->tail - m->head;
    if (rc == 0 && (m->used > ring->capacity || m->used % 8 || m->head % 8))
        return PL_E_CORRUPT;
    return rc;
}

static int is_ready(const struct pl_ring *ring, const struct job *job, const struct marks *m)
{
    if (m->shut)
        return 1;
    return job->side == PUT ? ring->capacity - m->used >= job->need : m->used > 0;
}

/* With the lock of the job's side. Marks only grow, so what was seen of the other side's will do if there was room,
 * or a message, then: to look again would fetch that line from the other CPU. */
static int read_own_marks(struct pl_ring *ring, const struct job *job, struct marks *m)
{
    enum side side = job->side;
    *m = (struct marks){0};
    if (ring->region.base) {
        *(side == PUT ? &m->head : &m->tail) = ring->seen[side];
        (void)region_load(&ring->region, place(side, POSITION), side == PUT ? &m->tail : &m->head);
        (void)region_load(&ring->region, place(side, WAITS), &m->waits[side]);
        if (side == PUT)
            (void)region_load(&ring->region, place(PUT, SHUT), &m->shut);
        m->used = m->tail - m->head;
        if (m->used <= ring->capacity && !(m->used % 8) && is_ready(ring, job, m))
            return 0;
    }
    int rc = read_marks(ring, m);
    if (rc == 0)
        ring->seen[side] = side == PUT ? m->head : m->tail;
    return rc;
}

/* ---- records, which may be cut in two at the end ---- */

static int write_bytes(struct pl_ring *ring, uint64_t position, const void *from, uint64_t len)
{
    uint64_t at = position % ring->capacity, first = ring->capacity - at;
    first = first < len ? first : len;
    int rc = region_write(&ring->region, RING_DATA + at, from, first);
    if (rc < 0 || first == len)
        return rc;
    return region_write(&ring->region, RING_DATA, (const uint8_t *)from + first, len - first);
}

static int read_bytes(struct pl_ring *ring, uint64_t position, void *to, uint64_t len)
{
    uint64_t at = position % ring->capacity, first = ring->capacity - at;
    first = first < len ? first : len;
    int rc = region_read(&ring->region, RING_DATA + at, to, first);
    if (rc < 0 || first == len)
        return rc;
    return region_read(&ring->region, RING_DATA, (uint8_t *)to + first, len - first);
}

/* ---- one try ---- */

/* Move the mark of a side, whose lock is held: the last thing that a put or a get does. */
static int commit(struct pl_ring *ring, enum side side, uint64_t position, const struct marks *m)
{
    int rc = 0;
    STEP();
    if (m->waits[side]) {
        if ((rc = region_ring(&ring->region)) < 0)
            return rc;
        STEP();
        if ((rc = region_store(&ring->region, place(side, WAITS), 0)) < 0)
            return rc;
        STEP();
    }
    rc = region_store(&ring->region, place(side, POSITION), position);
    STEP();
    return rc;
}

static int put_record(struct pl_ring *ring, const struct job *job, const struct marks *m)
{
    uint64_t len = job->len;
    if (m->shut)
        return PL_E_SHUT;
    if (!is_ready(ring, job, m))
        return NOT_YET;
    int rc = write_bytes(ring, m->tail, &len, sizeof len);
    STEP();
    if (rc == 0)
        rc = write_bytes(ring, m->tail + sizeof len, job->data, len);
    return rc < 0 ? rc : commit(ring, PUT, m->tail + job->need, m);
}

static int get_record(struct pl_ring *ring, struct job *job, const struct marks *m)
{
    uint64_t len;
    if (!m->used)
        return m->shut ? PL_E_SHUT : NOT_YET;
    int rc = read_bytes(ring, m->head, &len, sizeof len);
    if (rc < 0)
        return rc;
    if (len > ring->max_message || record_bytes(len) > m->used)
        return PL_E_CORRUPT;
    uint8_t *to = len && len == job->exact_len ? job->exact : job->to;
    if ((rc = read_bytes(ring, m->head + sizeof len, to, len)) < 0)
        return rc;
    job->got = (int64_t)len;
    return commit(ring, GET, m->head + record_bytes(len), m);
}

static int begin(struct pl_ring *ring)
{
    return !ring || atomic_load(&ring->closed) ? -EBADF : region_enter(&ring->region);
}

/* DONE, NOT_YET, -ETIMEDOUT when the lock could not be had, -errno, PL_E_*. */
static int attempt(struct pl_ring *ring, struct job *job, int64_t deadline)
{
    struct marks m;
    int rc = begin(ring);
    if (rc < 0 || (rc = region_lock(&ring->region, job->side, deadline)) < 0)
        return rc;
    STEP();
    if ((rc = read_own_marks(ring, job, &m)) == 0)
        rc = job->side == PUT ? put_record(ring, job, &m) : get_record(ring, job, &m);
    STEP();
    region_unlock(&ring->region, job->side);
    STEP();
    return rc;
}

/* Ask the other side to ring. DONE: it will; NOT_YET: no need, try again; as attempt. */
static int arm(struct pl_ring *ring, const struct job *job, int64_t deadline)
{
    enum side other = job->side == PUT ? GET : PUT;
    struct marks m;
    int rc = begin(ring);
    if (rc < 0 || (rc = region_lock(&ring->region, other, deadline)) < 0)
        return rc;
    STEP();
    if ((rc = read_marks(ring, &m)) == 0)
        rc = is_ready(ring, job, &m) ? NOT_YET
                                     : region_store(&ring->region, place(other, WAITS), 1);
    STEP();
    region_unlock(&ring->region, other);
    STEP();
    return rc;
}

/* ---- waiting ---- */

/* The other side is mostly on another CPU and soon done: a look is cheaper than to sleep and be woken. */
static void spin(struct pl_ring *ring, const struct job *job)
{
    struct marks m;
    if (!ring->region.base || !ring->spins)
        return;
    for (int64_t end = sock_now() + SPIN_NS; sock_now() < end;) {
        if (read_marks(ring, &m) < 0 || is_ready(ring, job, &m))
            return;
        for (int i = 0; i < SPIN_PAUSES; i++)
            lock_pause();
    }
}

/* A signal may come just before the wait begins: the caller is let out now and then, to look for one. */
static int wait_slice(int latch, int64_t deadline)
{
    int64_t left = time_left(deadline, PL_RING_SLICE_NS);
    int rc = region_wait(latch, deadline_of(left > 0 ? left : 1));
    if (rc == -ETIMEDOUT && time_left(deadline, 1))
        return -EINTR;
    return rc;
}

/* The latch was taken before: a ring from then on ends the wait. */
static int wait_turn(struct pl_ring *ring, struct job *job, int latch, int64_t deadline)
{
    for (;;) {
        int rc = attempt(ring, job, deadline);
        if (rc != NOT_YET)
            return rc;
        if ((rc = arm(ring, job, deadline)) < 0)
            return rc;
        if (rc == NOT_YET)
            continue;
        STEP();
        if ((rc = wait_slice(latch, deadline)) < 0)
            return rc;
    }
}

static int carry_out(struct pl_ring *ring, struct job *job, int64_t timeout_ns)
{
    int64_t deadline = deadline_of(timeout_ns ? timeout_ns : PL_RING_PATIENCE_NS);
    int rc = attempt(ring, job, deadline);
    if (rc != NOT_YET)
        return rc;
    if (!timeout_ns)
        return -ETIMEDOUT;
    spin(ring, job);
    if ((rc = attempt(ring, job, deadline)) != NOT_YET)
        return rc;
    int latch = region_latch(&ring->region);
    if (latch < 0)
        return latch;
    rc = wait_turn(ring, job, latch, deadline);
    region_return(&ring->region, latch);
    return rc;
}

/* ---- the contract ---- */

int pl_ring_enter(struct pl_ring *ring) { return region_enter(&ring->region); }

int pl_ring_put(struct pl_ring *ring, const uint8_t *data, size_t len, int64_t timeout_ns)
{
    if (ring && len > ring->max_message)
        return PL_E_TOO_LONG;
    struct job job = {.side = PUT, .need = record_bytes(len), .data = data, .len = len};
    return carry_out(ring, &job, timeout_ns);
}

int64_t pl_ring_get(struct pl_ring *ring, uint8_t *to, uint8_t *exact, size_t exact_len,
                    int64_t timeout_ns)
{
    struct job job = {.side = GET, .to = to, .exact = exact, .exact_len = exact_len};
    int rc = carry_out(ring, &job, timeout_ns);
    return rc < 0 ? rc : job.got;
}

int pl_ring_arm_get(struct pl_ring *ring)
{
    struct job job = {.side = GET};
    return arm(ring, &job, deadline_of(PL_RING_PATIENCE_NS));
}

int pl_ring_arm_put(struct pl_ring *ring, size_t len)
{
    if (ring && len > ring->max_message)
        return PL_E_TOO_LONG;
    struct job job = {.side = PUT, .need = record_bytes(len)};
    return arm(ring, &job, deadline_of(PL_RING_PATIENCE_NS));
}

int pl_ring_latch(struct pl_ring *ring)
{
    int rc = begin(ring);
    return rc < 0 ? rc : region_latch(&ring->region);
}

void pl_ring_quiet(int latch) { (void)region_wait(latch, 0); }

/* Under the same lock as a put, and rung before it is done, for the same reasons. */
int pl_ring_shut(struct pl_ring *ring, int64_t timeout_ns)
{
    int rc = begin(ring);
    if (rc < 0 || (rc = region_lock(&ring->region, PUT, deadline_of(timeout_ns))) < 0)
        return rc;
    STEP();
    if ((rc = region_ring(&ring->region)) == 0) {
        STEP();
        rc = region_store(&ring->region, place(PUT, SHUT), 1);
    }
    STEP();
    region_unlock(&ring->region, PUT);
    return rc;
}

void pl_ring_close(struct pl_ring *ring)
{
    if (!ring)
        return;
    atomic_store(&ring->closed, 1);
    (void)region_ring(&ring->region);
}

int64_t pl_ring_used(struct pl_ring *ring)
{
    struct marks m;
    int rc = begin(ring);
    if (rc < 0 || (rc = region_lock(&ring->region, GET, deadline_of(PL_RING_PATIENCE_NS))) < 0)
        return rc;
    rc = read_marks(ring, &m);
    region_unlock(&ring->region, GET);
    return rc < 0 ? rc : (int64_t)m.used;
}
