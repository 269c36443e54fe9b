/* test_ring_steps.c -- a process is killed at each marked step of each operation in turn (csrc/step.h), and the
 * others find everything as promised: a message whole or not at all, in order, and nobody waits for ever.
 *
 * An operation is tried with the kill at its first step, its second, and so on, until it ends before it is killed. */
#include <signal.h>

#include "check.h"
#include "ring_rig.h"

#define BIG(n) (28u + 197u * (n)) /* the number of a message of MAX_MESSAGE bytes: two fit */
#define MOST_STEPS 100
#define POLLS 20000
#define POLL_US 500

enum place { /* of words in the region */
    TAIL = REGION_LINE + 8,
    HEAD = 2 * REGION_LINE + 8,
    WAITS = 8 /* behind either */
};

void pl_step(void);

static int steps_left; /* 0: nobody is killed */
static int named;

void pl_step(void)
{
    if (steps_left && !--steps_left)
        (void)kill(getpid(), SIGKILL);
}

/* ---- children ---- */

typedef int work(struct pl_ring *ring);

static pid_t start(struct pl_ring *ring, work *what, int step)
{
    pid_t pid = fork();
    if (pid == 0) {
        int rc = pl_ring_enter(ring);
        steps_left = step;
        _exit(rc == 0 && what(ring) ? 0 : 1);
    }
    return pid;
}

enum end {
    WELL,
    KILLED,
    BADLY
};

static enum end end_of(pid_t pid)
{
    int status;
    if (waitpid(pid, &status, 0) != pid)
        return BADLY;
    if (WIFSIGNALED(status))
        return WTERMSIG(status) == SIGKILL ? KILLED : BADLY;
    return WEXITSTATUS(status) ? BADLY : WELL;
}

static uint64_t word(struct pl_ring *ring, uint64_t offset)
{
    uint64_t value = 0;
    (void)region_load(&ring->region, offset, &value);
    return value;
}

/* Until a child waits for the side whose mark is at `mark`. */
static int await_flag(struct pl_ring *ring, uint64_t mark)
{
    for (int i = 0; i < POLLS && !word(ring, mark + WAITS); i++)
        usleep(POLL_US);
    return word(ring, mark + WAITS) != 0;
}

/* ---- what they do ---- */

static int puts_7(struct pl_ring *ring) { return put_number(ring, 7, SOON) == 0; }
static int gets_one(struct pl_ring *ring) { return get_number(ring, SOON) >= 0; }
static int shuts(struct pl_ring *ring) { return pl_ring_shut(ring, -1) == 0; }

static int asks_for_messages(struct pl_ring *ring) { return pl_ring_arm_get(ring) == 0; }
static int asks_for_room(struct pl_ring *ring) { return pl_ring_arm_put(ring, MAX_MESSAGE) == 0; }

static int gets_or_is_shut(struct pl_ring *ring)
{
    int64_t got = get_number(ring, SOON);
    return got >= 0 || got == PL_E_SHUT;
}

static int puts_or_is_shut(struct pl_ring *ring)
{
    int rc = put_number(ring, BIG(2), SOON);
    return rc == 0 || rc == PL_E_SHUT;
}

/* Take the lock, let it go when somebody waits for it. */
static int lets_go(struct pl_ring *ring)
{
    int rc = region_lock(&ring->region, 0, -1);
    uint64_t free_from = word(ring, REGION_LINE);
    for (int i = 0; i < POLLS && word(ring, REGION_LINE) == free_from; i++)
        usleep(POLL_US);
    region_unlock(&ring->region, 0);
    return rc == 0;
}

/* ---- what must hold afterwards ---- */

static void fill(struct pl_ring *ring)
{
    for (uint32_t i = 0; put_number(ring, BIG(i), 0) == 0; i++)
        ;
}

static int still_works(struct pl_ring *ring)
{
    for (uint32_t i = 0; i < 8; i++)
        if (put_number(ring, i, SOON) < 0 || get_number(ring, SOON) != i)
            return 0;
    return 1;
}

/* Killed in a put while another one waits to get: what was committed is got without any help. */
static int put_is_whole(struct pl_ring *ring, pid_t waiting)
{
    if (!word(ring, TAIL) && put_number(ring, 9, SOON) < 0)
        return 0;
    return end_of(waiting) == WELL && get_number(ring, 0) == -ETIMEDOUT && still_works(ring);
}

/* Killed in a get while another one waits to put into a full ring. */
static int get_is_whole(struct pl_ring *ring, pid_t waiting)
{
    if (!word(ring, HEAD) && get_number(ring, SOON) != BIG(0))
        return 0;
    return end_of(waiting) == WELL && get_number(ring, 0) == BIG(1) &&
           get_number(ring, 0) == BIG(2) && get_number(ring, 0) == -ETIMEDOUT && still_works(ring);
}

static int shut_is_whole(struct pl_ring *ring, pid_t waiting)
{
    return pl_ring_shut(ring, -1) == 0 && end_of(waiting) == WELL;
}

static int lock_is_free(struct pl_ring *ring, pid_t waiting)
{
    return end_of(waiting) == WELL && get_number(ring, 0) == 7 && still_works(ring);
}

/* ---- each operation ---- */

struct trial {
    const char *what;
    int steps;     /* that it has at least */
    int full;      /* the ring, to begin with */
    work *waiter;  /* waits before the victim starts, or */
    work *after;   /* starts after it */
    work *victim;
    int (*promise)(struct pl_ring *ring, pid_t waiting);
};

static const struct trial trials[] = {
    {"put", 8, 0, gets_one, NULL, puts_7, put_is_whole},
    {"get", 7, 1, puts_or_is_shut, NULL, gets_one, get_is_whole},
    {"arm for a message", 3, 0, gets_one, NULL, asks_for_messages, put_is_whole},
    {"arm for room", 3, 1, puts_or_is_shut, NULL, asks_for_room, get_is_whole},
    {"shut, a reader waiting", 3, 0, gets_or_is_shut, NULL, shuts, shut_is_whole},
    {"shut, a writer waiting", 3, 1, puts_or_is_shut, NULL, shuts, shut_is_whole},
    {"let go of the lock", 1, 0, NULL, puts_7, lets_go, lock_is_free},
};

/* 1: the victim was killed and all is well; 0: it ended by itself; -1: a promise is broken. */
static int try_step(const struct trial *trial, int step)
{
    struct pl_ring *ring = ring_of(named);
    pid_t waiting = 0;
    int kept = ring != NULL;
    if (kept && trial->full)
        fill(ring);
    if (kept && trial->waiter) {
        waiting = start(ring, trial->waiter, 0);
        kept = await_flag(ring, trial->full ? HEAD : TAIL);
    }
    pid_t victim = start(ring, trial->victim, step);
    if (trial->after) {
        for (int i = 0; i < POLLS && !word(ring, REGION_LINE); i++)
            usleep(POLL_US);
        waiting = start(ring, trial->after, 0);
    }
    enum end end = end_of(victim);
    kept = kept && end != BADLY && trial->promise(ring, waiting);
    ring_end(ring, named);
    return kept ? end == KILLED : -1;
}

static void try_all(const struct trial *trial)
{
    int step = 1, rc;
    while ((rc = try_step(trial, step)) == 1 && step < MOST_STEPS)
        step++;
    if (rc < 0)
        printf("%s: the promise is broken at step %d\n", trial->what, step);
    else
        printf("%s: killed at %d steps\n", trial->what, step - 1);
    CHECK(rc == 0 && step > trial->steps);
}

static void test_killed_at_each_step(void)
{
    size_t n = sizeof trials / sizeof *trials - (size_t)named; /* a named one's lock is the kernel's */
    for (size_t i = 0; i < n; i++)
        try_all(&trials[i]);
}

static void test_nameless(void)
{
    named = 0;
    test_killed_at_each_step();
}

static void test_named(void)
{
    named = 1;
    test_killed_at_each_step();
}

CHECK_MAIN(RUN(test_nameless); RUN(test_named);)
