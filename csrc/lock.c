/* lock.c -- a lock whose holder may be killed: the lock word.
 *
 *     63          32 31        30       0
 *     | start time  | contended |  pid  |      0: nobody has it; start time 0: not known
 *
 * The kernel knows nothing of it but its low half, to wait on (futex). Who waits looks every 100 ms whether the
 * holder lives: is there a process of that pid, started at that time, that is no zombie? If not, it takes the
 * lock over by comparing the whole word, so two cannot take it at once. A waiter or a releaser killed at any point
 * costs the others one such slice.
 *
 * No pthread_mutex_t: the kernel's robust list and the C library's records would lie in memory that a peer can
 * write to. Does not know what it guards. Source: futex(2), proc(5). */
#include "lock.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "sock.h"
#include "step.h"

#ifdef __linux__
#include <linux/futex.h>
#include <sys/syscall.h>
#endif

#define CONTENDED ((uint64_t)1 << 31)
#define PID_MASK (CONTENDED - 1)
#define FORSAKEN ((uint64_t)1 << 32) /* of a process that never lives: its pid is 0 */
#define SPINS 200
#define STAT_BYTES 1024

/* ---- time ---- */

int64_t deadline_of(int64_t timeout_ns)
{
    if (timeout_ns <= 0)
        return timeout_ns < 0 ? -1 : 0;
    int64_t now = sock_now();
    return timeout_ns > INT64_MAX - now ? -1 : now + timeout_ns;
}

int64_t time_left(int64_t deadline, int64_t most)
{
    if (deadline < 0)
        return most;
    int64_t left = deadline - sock_now();
    return left < 0 ? 0 : left < most ? left
                                      : most;
}

/* ---- processes ---- */

struct vitals {
    char state;
    uint64_t threads, start;
};

/* The fields of /proc/PID/stat behind the name, which may hold anything. 0, -errno, -EINVAL. */
static int read_vitals(const char *path, struct vitals *vitals)
{
    char text[STAT_BYTES];
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return -errno;
    ssize_t n = read(fd, text, sizeof text - 1);
    int rc = n < 0 ? -errno : 0;
    sock_close(fd);
    if (rc < 0)
        return rc;
    text[n] = 0;
    char *at = strrchr(text, ')');
    if (!at || at[1] != ' ')
        return -EINVAL;
    vitals->state = at[2];
    at += 2;
    for (int field = 3; field < 22; field++) {
        if (field == 20)
            vitals->threads = strtoull(at, NULL, 10);
        if (!(at = strchr(at, ' ')))
            return -EINVAL;
        at++;
    }
    vitals->start = strtoull(at, NULL, 10);
    return 0;
}

/* A process whose first thread has ended is a zombie too, but others of its threads may live. */
static int has_ended(const struct vitals *vitals)
{
    return strchr("ZXx", vitals->state) && vitals->threads <= 1;
}

static int is_alive(uint64_t word)
{
    pid_t pid = (pid_t)(word & PID_MASK);
    struct vitals vitals;
    char path[32];
    if (pid <= 0)
        return 0;
    (void)snprintf(path, sizeof path, "/proc/%d/stat", (int)pid);
    uint32_t start = (uint32_t)(word >> 32);
    if (read_vitals(path, &vitals) == 0)
        return (!start || (uint32_t)vitals.start == start) && !has_ended(&vitals);
    return kill(pid, 0) == 0 || errno != ESRCH; /* /proc may be missing, or hide others */
}

static uint64_t find_self(void)
{
    struct vitals vitals = {0};
    (void)read_vitals("/proc/self/stat", &vitals); /* no /proc here, or no fd for it: 0, not known */
    return (uint64_t)(uint32_t)vitals.start << 32 | ((uint64_t)getpid() & PID_MASK);
}

int self_init(struct pl_self *self)
{
    size_t len = (size_t)sysconf(_SC_PAGESIZE);
    void *page = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (page == MAP_FAILED)
        return -ENOMEM;
    self->word = page;
#ifdef MADV_WIPEONFORK
    self->unwiped = madvise(page, len, MADV_WIPEONFORK) < 0;
#else
    self->unwiped = 1;
#endif
    return 0;
}

void self_fini(struct pl_self *self)
{
    if (self->word)
        munmap((void *)self->word, (size_t)sysconf(_SC_PAGESIZE));
    self->word = NULL;
}

static uint64_t known_word(const struct pl_self *self)
{
    uint64_t word = atomic_load_explicit(self->word, memory_order_acquire);
    return self->unwiped && (word & PID_MASK) != (uint64_t)getpid() ? 0 : word;
}

int self_is_new(const struct pl_self *self) { return !known_word(self); }

static uint64_t self_word(struct pl_self *self)
{
    uint64_t seen = atomic_load_explicit(self->word, memory_order_relaxed), word = known_word(self);
    if (!word) {
        word = find_self();
        if (!atomic_compare_exchange_strong(self->word, &seen, word)) /* all threads say the same */
            word = seen;
    }
    return word;
}

void self_begin(struct pl_self *self) { (void)self_word(self); }

struct pl_self *pl_self_new(void)
{
    struct pl_self *self = malloc(sizeof *self);
    if (self && self_init(self) < 0) {
        free(self);
        return NULL;
    }
    return self;
}

void pl_self_free(struct pl_self *self)
{
    if (self) {
        self_fini(self);
        free(self);
    }
}

/* ---- waiting ---- */

#ifdef __linux__

static uint32_t *low_half(_Atomic(uint64_t) *word)
{
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
    return (uint32_t *)word;
#else
    return (uint32_t *)word + 1;
#endif
}

/* What the kernel takes for SYS_futex, whatever size time_t has. */
struct kernel_timespec {
    long sec, nsec;
};

/* 0: woken, or it was not `low` any more; -ETIMEDOUT, -EINTR. */
static int wait_change(_Atomic(uint64_t) *word, uint32_t low, int64_t ns)
{
    struct kernel_timespec time = {(long)(ns / 1000000000), (long)(ns % 1000000000)};
    if (syscall(SYS_futex, low_half(word), FUTEX_WAIT, low, &time, NULL, 0) == 0)
        return 0;
    return errno == EAGAIN ? 0 : -errno;
}

static void wake_one(_Atomic(uint64_t) *word)
{
    (void)syscall(SYS_futex, low_half(word), FUTEX_WAKE, 1, NULL, NULL, 0);
}

#else

static int wait_change(_Atomic(uint64_t) *word, uint32_t low, int64_t ns)
{
    (void)word, (void)low;
    struct timespec nap = {0, ns < 1000000 ? (long)ns : 1000000};
    if (nanosleep(&nap, NULL) < 0)
        return -errno;
    return ns <= 1000000 ? -ETIMEDOUT : 0;
}

static void wake_one(_Atomic(uint64_t) *word) { (void)word; }

#endif

/* ---- the lock ---- */

static int take(_Atomic(uint64_t) *word, uint64_t from, uint64_t to)
{
    return atomic_compare_exchange_strong(word, &from, to);
}

/* Wait for a change of a word that somebody has, a slice at most. 0: look again; 1: its holder is dead; -errno. */
static int wait_slice(_Atomic(uint64_t) *word, uint64_t held, int64_t deadline)
{
    int64_t ns = time_left(deadline, PL_LOCK_SLICE_NS);
    int rc = ns ? wait_change(word, (uint32_t)held, ns) : -ETIMEDOUT;
    if (rc != -ETIMEDOUT && rc != -EINTR)
        return rc;
    if (!is_alive(held)) /* looked at after a signal too: where one comes every few ms no slice passes */
        return 1;
    return rc == -ETIMEDOUT && time_left(deadline, 1) ? 0 : rc;
}

int lock_acquire(struct pl_self *self, _Atomic(uint64_t) *word, int64_t deadline)
{
    uint64_t me = self_word(self);
    for (int i = 0; i < SPINS; i++) { /* holders are quick, and mostly on another core */
        if (!atomic_load_explicit(word, memory_order_relaxed) && take(word, 0, me))
            return 0;
        lock_pause();
    }
    for (;;) { /* from here on others may wait as well, so whoever gets it must wake one */
        uint64_t held = atomic_load(word);
        if (!held) {
            if (take(word, 0, me | CONTENDED))
                return 0;
            continue;
        }
        if (!(held & CONTENDED) && !take(word, held, held | CONTENDED))
            continue;
        held |= CONTENDED;
        int rc = wait_slice(word, held, deadline);
        if (rc < 0)
            return rc;
        if (rc > 0 && take(word, held, me | CONTENDED))
            return 1;
    }
}

static int let_go(struct pl_self *self, _Atomic(uint64_t) *word, uint64_t to)
{
    uint64_t held = atomic_load_explicit(word, memory_order_relaxed);
    if ((held & ~CONTENDED) != self_word(self))
        return -EPERM;
    if (atomic_exchange(word, to) & CONTENDED) {
        STEP();
        wake_one(word);
    }
    return 0;
}

int lock_release(struct pl_self *self, _Atomic(uint64_t) *word) { return let_go(self, word, 0); }

int pl_lock_acquire(struct pl_self *self, uint64_t *word, int64_t timeout_ns)
{
    return lock_acquire(self, (_Atomic(uint64_t) *)word, deadline_of(timeout_ns));
}

int pl_lock_release(struct pl_self *self, uint64_t *word)
{
    return lock_release(self, (_Atomic(uint64_t) *)word);
}

int pl_lock_forsake(struct pl_self *self, uint64_t *word)
{
    return let_go(self, (_Atomic(uint64_t) *)word, FORSAKEN);
}

int pl_lock_owner(const uint64_t *word)
{
    return (int)(atomic_load((const _Atomic(uint64_t) *)word) & PID_MASK);
}
