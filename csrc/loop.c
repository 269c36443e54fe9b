/* loop.c -- the tick: flush, wait, gather, return. And the making, ending and guarding of a loop.
 *
 * Two guards stand at every door. `mark` is a page that the kernel wipes in a forked child (MADV_WIPEONFORK), so
 * a child cannot touch the parent's epoll by mistake; `runner` is the thread inside run, because cffi drops
 * the GIL on every call. */
#include "loop.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "sock.h"

/* ---- the tick ---- */

static int64_t sooner(int64_t due, int64_t at) { return at && at < due ? at : due; }

static int64_t wait_limit(const struct pl_loop *loop, int64_t timeout_ns)
{
    if (loop->pending.head || loop->dgrams.tell)
        return 0;
    int64_t due = deadline_first(&loop->deadlines);
    due = sooner(sooner(due, loop->accept_at), loop->yield_at);
    due = sooner(due, loop->dgrams.rest_at);
    if (due == INT64_MAX)
        return timeout_ns;
    int64_t left = due > loop->now ? due - loop->now : 0;
    return timeout_ns < 0 || left < timeout_ns ? left : timeout_ns;
}

/* Which of lag's buckets a busy time belongs to. */
static int lag_bucket(int64_t busy_ns)
{
    int bucket = 0;
    for (int64_t us = busy_ns / 1000; us && bucket < PL_LAG_BUCKETS - 1; us >>= 1)
        bucket++;
    return bucket;
}

static void count_busy(struct pl_loop *loop, int64_t until)
{
    int64_t busy = until - loop->busy_since;
    loop->counters->busy_ns += (uint64_t)busy;
    loop->counters->lag[lag_bucket(busy)]++;
}

/* Until the next wait, or nobody runs it any more: whoever watches knows a loop that hangs by this. */
static void start_busy(struct pl_loop *loop, struct pl_loop_counters *counters)
{
    bool runs = atomic_load_explicit(&loop->runner, memory_order_relaxed);
    counters->running_since = runs ? (uint64_t)loop->busy_since : 0;
}

static int wait_ready(struct pl_loop *loop, int64_t timeout_ns)
{
    struct pl_loop_counters *counters = loop->counters;
    int64_t before = sock_now();
    loop->now = before;
    counters->running_since = 0;
    counters->waits++;
    int n = loop->poller.ops->wait(&loop->poller, wait_limit(loop, timeout_ns));
    loop->now = sock_now();
    count_busy(loop, before);
    counters->wait_ns += (uint64_t)(loop->now - before);
    loop->busy_since = loop->now;
    start_busy(loop, counters);
    loop->ready_at = 0;
    loop->ready_count = n < 0 ? 0 : n;
    return n == -EINTR ? 0 : n; /* the caller's signal handlers run when it has returned */
}

static void tell_pending(struct pl_loop *loop)
{
    gather_pending(loop);
    dgrams_tell(loop);
}

static void gather(struct pl_loop *loop)
{
    expire(loop);
    /* In turn, so that neither starves the other when a batch is full. */
    if (loop->tick & 1)
        tell_pending(loop);
    gather_ready(loop);
    if (!(loop->tick & 1))
        tell_pending(loop);
}

int pl_loop_tick(struct pl_loop *loop, int64_t timeout_ns)
{
    int rc = loop_guard(loop);
    if (rc < 0)
        return rc;
    loop->tick++;
    batch_reset(&loop->batch);
    if (loop->flush || loop->dgrams.flush || loop->ready_at < loop->ready_count)
        loop->now = sock_now(); /* clocks that a close or a flush starts do not run for the handlers' time */
    flush_all(loop);
    bury(loop); /* after the flush, which takes the dead off its list */
    dgrams_flush(loop);
    dgrams_reset(loop);
    if (loop->ready_at == loop->ready_count && (rc = wait_ready(loop, timeout_ns)) < 0)
        return rc;
    gather(loop);
    loop->counters->ticks++;
    loop->counters->events += loop->batch.count;
    return (int)loop->batch.count;
}

int pl_loop_turn(struct pl_loop *loop, int64_t timeout_ns, uint32_t callbacks)
{
    int rc = pl_loop_tick(loop, timeout_ns);
    if (rc >= 0)
        loop->counters->callbacks += callbacks;
    return rc;
}

#define OWN_FDS 2 /* that a loop watches of itself: for wakes, and for signals */

int pl_loop_skip(struct pl_loop *loop)
{
    const struct dgrams *dgrams = &loop->dgrams;
    bool quiet = loop_guard(loop) == 0 && loop->watched <= OWN_FDS && !loop->flush &&
                 !loop->pending.head && !loop->buried &&
                 !dgrams->flush && !dgrams->tell && !dgrams->buried && !dgrams->rest_at &&
                 !loop->accept_at && !loop->yield_at && loop->ready_at == loop->ready_count &&
                 deadline_first(&loop->deadlines) == INT64_MAX;
    if (quiet) {
        loop->tick++; /* which decides whose turn it is to be first */
        loop->counters->ticks++;
    }
    return quiet;
}

int pl_loop_flush(struct pl_loop *loop)
{
    int rc = loop_guard(loop);
    if (rc == 0) {
        loop->now = sock_now();
        flush_all(loop);
        dgrams_flush(loop);
    }
    return rc;
}

/* ---- making and ending ---- */

/* A word that reads 1 here and 0 in every child. */
static const uint32_t *map_mark(void)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    uint32_t *mark = mmap(NULL, page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mark == MAP_FAILED)
        return NULL;
#ifdef MADV_WIPEONFORK
    madvise(mark, page, MADV_WIPEONFORK); /* older kernels: pl_loop_pid tells Python */
#endif
    *mark = 1;
    return mark;
}

static int watch_wakes(struct pl_loop *loop)
{
    int rc = watch_set(loop, loop->wake.read_fd, OWNER_WAKE, 0, PL_READ);
    return rc < 0 ? rc : watch_set(loop, loop->wake.signal_read, OWNER_SIGNAL, 0, PL_READ);
}

static int loop_init(struct pl_loop *loop, const struct poller_ops *ops)
{
    int rc = wake_init(&loop->wake);
    if (rc < 0)
        return rc;
    if ((rc = poller_init(&loop->poller, ops)) < 0)
        goto fini_wake;
    if ((rc = batch_init(&loop->batch)) < 0)
        goto fini_poller;
    rc = -ENOMEM;
    if (!(loop->mark = map_mark()))
        goto fini_batch;
    if ((rc = watch_wakes(loop)) < 0)
        goto unmap_mark;
    return 0;

unmap_mark:
    munmap((void *)(uintptr_t)loop->mark, (size_t)sysconf(_SC_PAGESIZE));
    free(loop->fds);
fini_batch:
    batch_fini(&loop->batch);
fini_poller:
    poller_fini(&loop->poller);
fini_wake:
    wake_fini(&loop->wake);
    return rc;
}

static void count_in(struct pl_loop *loop, struct pl_loop_counters *counters)
{
    if (loop->counters)
        loop->counters->running_since = 0;
    loop->counters = counters;
    counters->version = PL_COUNTERS_VERSION;
    counters->size = sizeof *counters;
    start_busy(loop, counters);
}

int pl_loop_count_in(struct pl_loop *loop, struct pl_loop_counters *counters)
{
    int rc = loop_guard(loop);
    if (rc == 0)
        count_in(loop, counters ? counters : &loop->own);
    return rc;
}

struct pl_loop *pl_loop_new(int backend, int *error)
{
    *error = backend < PL_AUTO || backend > PL_EPOLL ? -EINVAL : -ENOSYS;
    const struct poller_ops *ops = poller_find(backend);
    if (!ops)
        return NULL;
    *error = -ENOMEM;
    struct pl_loop *loop = calloc(1, sizeof *loop);
    if (!loop)
        return NULL;
    loop->automatic = backend == PL_AUTO;
    loop->pid = (int)getpid();
    loop->now = loop->busy_since = sock_now();
    count_in(loop, &loop->own);
    *error = loop_init(loop, ops);
    if (*error == 0)
        return loop;
    free(loop);
    return NULL;
}

static void free_conns(struct pl_loop *loop)
{
    for (uint32_t i = 0; i < loop->table.cap; i++) {
        struct conn *c = loop->table.slots[i].tenant;
        if (!c)
            continue;
        if (c->fd >= 0 && !(c->flags & CONN_LENT))
            sock_close(c->fd);
        conn_free(c, &loop->pool);
    }
}

int pl_loop_free(struct pl_loop *loop)
{
    if (!loop_is_foreign(loop) && atomic_load(&loop->runner))
        return -EBUSY;
    free_conns(loop);
    dgrams_free(loop);
    for (uint32_t i = 0; i < loop->groups_cap; i++)
        free(loop->groups[i]);
    free(loop->groups);
    free(loop->listeners);
    free(loop->fds);
    table_fini(&loop->table);
    deadlines_fini(&loop->deadlines);
    pool_fini(&loop->pool);
    batch_fini(&loop->batch);
    poller_fini(&loop->poller);
    wake_fini(&loop->wake);
    munmap((void *)(uintptr_t)loop->mark, (size_t)sysconf(_SC_PAGESIZE));
    free(loop);
    return 0;
}

int pl_loop_enter(struct pl_loop *loop)
{
    uintptr_t nobody = 0;
    if (loop_is_foreign(loop))
        return PL_E_FORKED;
    if (!atomic_compare_exchange_strong(&loop->runner, &nobody, loop_thread()))
        return -EBUSY;
    loop->busy_since = sock_now(); /* the time that nobody ran it was no turn */
    start_busy(loop, loop->counters);
    return 0;
}

int pl_loop_leave(struct pl_loop *loop)
{
    int rc = loop_guard(loop);
    if (rc == 0 && atomic_load(&loop->runner)) {
        count_busy(loop, sock_now());
        loop->counters->running_since = 0;
    }
    if (rc == 0 || rc == PL_E_FORKED)
        atomic_store(&loop->runner, 0); /* last: from here on another thread may free it */
    return rc;
}

/* ---- small answers ---- */

int pl_loop_wake(struct pl_loop *loop)
{
    return loop_is_foreign(loop) ? PL_E_FORKED : wake_send(&loop->wake); /* the fd is the parent's too */
}

struct pl_event *pl_loop_events(struct pl_loop *loop) { return loop->batch.events; }
int pl_loop_signal_fd(const struct pl_loop *loop) { return loop->wake.signal_write; }
int pl_loop_backend(const struct pl_loop *loop) { return loop->poller.ops->backend; }
int pl_loop_pid(const struct pl_loop *loop) { return loop->pid; }
const struct pl_loop_counters *pl_loop_counters(const struct pl_loop *loop)
{
    return loop->counters;
}
