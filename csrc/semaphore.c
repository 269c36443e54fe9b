/* semaphore.c -- the C library's semaphores, named or in shared memory, waited for on CLOCK_MONOTONIC.
 *
 * In memory the sem_t stands behind a head that tells what it is, so that zeroes, other data and the semaphore of
 * another C library are not taken for one:
 *
 *     0 --claim--> MAKING --sem_init--> HEAD        one 64-bit word, changed as one
 *
 * Does not know whose memory that is. A token belongs to nobody: one that a killed process had is gone.
 * Source: sem_overview(7), sem_init(3), sem_open(3), sem_clockwait(3). */
#include <errno.h>
#include <fcntl.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <time.h>

#include "pyloop.h"
#include "sock.h"

#define NS_PER_S 1000000000
#define NAP_MIN_NS 1000000
#define NAP_MAX_NS (10 * NAP_MIN_NS)

/* What a sem_t looks like is the C library's business: who has another one must not touch it. */
#ifdef __GLIBC__
#define LIBRARY UINT64_C(1)
#else
#define LIBRARY UINT64_C(2)
#endif
#define VERSION UINT64_C(1)
#define MAKING UINT64_C(0x706c2d73656d0000) /* "pl-sem" */
#define HEAD (MAKING + (VERSION << 12) + (LIBRARY << 8) + (uint64_t)sizeof(sem_t))

struct place {
    _Atomic uint64_t head;
    sem_t sem;
};

_Static_assert(sizeof(struct place) <= PL_SEMAPHORE_SIZE, "the size of all platforms");
_Static_assert(_Alignof(struct place) <= PL_SEMAPHORE_ALIGN, "the alignment of all platforms");

#ifdef __linux__
/* glibc has it from 2.30 on. Weak, so that what was built with it loads without, and the other way round. */
extern int sem_clockwait(sem_t *, clockid_t, const struct timespec *) __attribute__((weak));
#endif

static sem_t *native(struct pl_semaphore *s) { return (sem_t *)s; }

int pl_semaphore_open(const char *name, int create, uint32_t value, struct pl_semaphore **found)
{
    int flags = create == PL_ATTACH ? 0 : create == PL_CREATE ? O_CREAT | O_EXCL
                                                              : O_CREAT;
    sem_t *sem;
    do
        sem = sem_open(name, flags, 0600, value);
    while (sem == SEM_FAILED && errno == EINTR);
    if (sem == SEM_FAILED)
        return -errno;
    *found = (struct pl_semaphore *)sem;
    return 0;
}

void pl_semaphore_close(struct pl_semaphore *s)
{
    if (s)
        sem_close(native(s));
}

int pl_semaphore_unlink(const char *name) { return sem_unlink(name) < 0 ? -errno : 0; }

static int make(struct place *place, uint32_t value)
{
    uint64_t seen = 0;
    if (!atomic_compare_exchange_strong(&place->head, &seen, MAKING))
        return seen == MAKING || seen == HEAD ? -EEXIST : PL_E_FOREIGN;
    int rc = sem_init(&place->sem, 1, value) < 0 ? -errno : 0;
    atomic_store(&place->head, rc < 0 ? 0 : HEAD);
    return rc;
}

static int find(struct place *place)
{
    uint64_t seen = atomic_load(&place->head);
    if (seen == 0 || seen == MAKING)
        return -ENOENT;
    return seen == HEAD ? 0 : PL_E_FOREIGN;
}

int pl_semaphore_place(void *memory, int create, uint32_t value, struct pl_semaphore **found)
{
    struct place *place = memory;
    int rc = create == PL_CREATE ? make(place, value) : find(place);
    if (rc == 0)
        *found = (struct pl_semaphore *)&place->sem;
    return rc;
}

static int try_wait(sem_t *sem)
{
    if (sem_trywait(sem) == 0)
        return 1;
    return errno == EAGAIN ? 0 : -errno;
}

static struct timespec timespec_of(int64_t ns)
{
    return (struct timespec){.tv_sec = (time_t)(ns / NS_PER_S), .tv_nsec = (long)(ns % NS_PER_S)};
}

/* When a wait of timeout_ns ends. "Never" is what a time_t of 32 bits can say. */
static int64_t deadline_of(int64_t timeout_ns)
{
    const int64_t never = INT64_C(0x7fffffff) * NS_PER_S;
    int64_t now = sock_now();
    return timeout_ns < 0 || timeout_ns > never - now ? never : now + timeout_ns;
}

int pl_semaphore_nap(struct pl_semaphore *s, int64_t timeout_ns)
{
    int64_t deadline = deadline_of(timeout_ns), nap = NAP_MIN_NS, left;
    int rc;
    while ((rc = try_wait(native(s))) == 0 && (left = deadline - sock_now()) > 0) {
        struct timespec ts = timespec_of(left < nap ? left : nap);
        if (nanosleep(&ts, NULL) < 0)
            return -errno;
        nap = nap * 2 < NAP_MAX_NS ? nap * 2 : NAP_MAX_NS;
    }
    return rc;
}

#ifdef __linux__

static int clock_wait(sem_t *sem, int64_t timeout_ns)
{
    struct timespec end = timespec_of(deadline_of(timeout_ns));
    if (sem_clockwait(sem, CLOCK_MONOTONIC, &end) == 0)
        return 1;
    return errno == ETIMEDOUT ? 0 : -errno;
}

int pl_semaphore_wait(struct pl_semaphore *s, int64_t timeout_ns)
{
    int rc = try_wait(native(s));
    if (rc != 0 || timeout_ns == 0)
        return rc;
    return sem_clockwait ? clock_wait(native(s), timeout_ns) : pl_semaphore_nap(s, timeout_ns);
}

#else

int pl_semaphore_wait(struct pl_semaphore *s, int64_t timeout_ns)
{
    return pl_semaphore_nap(s, timeout_ns);
}

#endif

int pl_semaphore_post(struct pl_semaphore *s) { return sem_post(native(s)) < 0 ? -errno : 0; }

int pl_semaphore_value(struct pl_semaphore *s)
{
    int value;
    if (sem_getvalue(native(s), &value) < 0)
        return -errno;
    return value < 0 ? 0 : value; /* POSIX allows the number of those who wait, negated */
}
