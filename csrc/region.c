/* region.c -- memory that processes share: reading, writing, locking, ringing. region_make.c makes it.
 *
 * See region.h for the two kinds. Source: pread(2), fcntl_locking(2), epoll(7), eventfd(2), fifo(7). */
#include "region.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "sock.h"

#ifdef __linux__

#include <sys/epoll.h>

#ifndef F_OFD_SETLK /* glibc before 2.20 */
#define F_OFD_SETLK 37
#endif

#define LOCK_TRIES 20
#define NAP_FIRST_NS 20000
#define NAP_MOST_NS 1000000
#define DRAIN_BYTES 2048 /* less than a pipe holds: it stays readable for those who have yet to look */
#define RING_TRIES 64

/* ---- bytes ---- */

int region_read(struct region *r, uint64_t offset, void *to, size_t len)
{
    if (r->base) {
        memcpy(to, r->base + offset, len);
        return 0;
    }
    for (uint8_t *at = to; len;) {
        ssize_t n = pread(r->fd, at, len, (off_t)offset);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return n < 0 ? -errno : PL_E_CORRUPT;
        at += n, offset += (uint64_t)n, len -= (size_t)n;
    }
    return 0;
}

int region_write(struct region *r, uint64_t offset, const void *from, size_t len)
{
    if (r->base) {
        memcpy(r->base + offset, from, len);
        return 0;
    }
    for (const uint8_t *at = from; len;) {
        ssize_t n = pwrite(r->fd, at, len, (off_t)offset);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return n < 0 ? -errno : PL_E_CORRUPT;
        at += n, offset += (uint64_t)n, len -= (size_t)n;
    }
    return 0;
}

static _Atomic(uint64_t) *word_at(struct region *r, uint64_t offset)
{
    return (_Atomic(uint64_t) *)(void *)(r->base + offset);
}

int region_load(struct region *r, uint64_t offset, uint64_t *value)
{
    if (!r->base)
        return region_read(r, offset, value, sizeof *value);
    *value = atomic_load_explicit(word_at(r, offset), memory_order_acquire);
    return 0;
}

int region_store(struct region *r, uint64_t offset, uint64_t value)
{
    if (!r->base)
        return region_write(r, offset, &value, sizeof value);
    atomic_store_explicit(word_at(r, offset), value, memory_order_release);
    return 0;
}

/* ---- locks ---- */

int region_nap(int64_t ns)
{
    struct timespec time = {0, (long)ns};
    return nanosleep(&time, NULL) < 0 ? -errno : 0;
}

/* 0; -EAGAIN: another one has it; -errno. */
static int try_lock_file(int fd)
{
    struct flock all = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
    if (fcntl(fd, F_OFD_SETLK, &all) == 0)
        return 0;
    return errno == EACCES ? -EAGAIN : -errno;
}

int region_lock_file(int fd, int64_t deadline)
{
    int rc = -EAGAIN;
    for (int i = 0; i < LOCK_TRIES && rc == -EAGAIN; i++) /* holders are quick */
        rc = try_lock_file(fd);
    for (int64_t ns = NAP_FIRST_NS; rc == -EAGAIN; rc = try_lock_file(fd)) {
        int64_t nap = time_left(deadline, ns);
        if (!nap)
            return -ETIMEDOUT;
        if ((rc = region_nap(nap)) < 0)
            return rc;
        ns = ns * 2 < NAP_MOST_NS ? ns * 2 : NAP_MOST_NS;
    }
    return rc;
}

void region_unlock_file(int fd)
{
    struct flock all = {.l_type = F_UNLCK, .l_whence = SEEK_SET};
    (void)fcntl(fd, F_OFD_SETLK, &all);
}

int region_lock(struct region *r, int n, int64_t deadline)
{
    if (r->base)
        return lock_acquire(&r->self, word_at(r, REGION_LINE * (uint64_t)(n + 1)), deadline);
    int rc = lock_acquire(&r->self, &r->thread, deadline);
    if (rc < 0)
        return rc;
    if ((rc = region_lock_file(r->fd, deadline)) < 0)
        (void)lock_release(&r->self, &r->thread);
    return rc;
}

void region_unlock(struct region *r, int n)
{
    if (r->base) {
        (void)lock_release(&r->self, word_at(r, REGION_LINE * (uint64_t)(n + 1)));
        return;
    }
    region_unlock_file(r->fd);
    (void)lock_release(&r->self, &r->thread);
}

/* ---- the bell ---- */

int region_ring(struct region *r)
{
    static const uint64_t one = 1; /* what an eventfd wants; a FIFO takes eight bytes as well */
    uint8_t drained[DRAIN_BYTES];
    for (int i = 0; i < RING_TRIES; i++) {
        if (write(r->bell, &one, sizeof one) >= 0)
            return 0;
        if (errno != EAGAIN && errno != EINTR)
            return -errno;
        if (errno == EAGAIN)
            (void)!read(r->bell, drained, sizeof drained);
    }
    return -EAGAIN;
}

static int new_latch(int bell)
{
    int fd = epoll_create1(EPOLL_CLOEXEC);
    if (fd < 0)
        return -errno;
    int latch = sock_above_stdio(fd);
    if (latch < 0) {
        sock_close(fd);
        return latch;
    }
    struct epoll_event event = {.events = EPOLLIN | EPOLLET};
    if (epoll_ctl(latch, EPOLL_CTL_ADD, bell, &event) < 0) {
        int rc = -errno;
        sock_close(latch);
        return rc;
    }
    return latch;
}

int region_latch(struct region *r)
{
    int latch = atomic_exchange(&r->latch, -1);
    return latch < 0 ? new_latch(r->bell) : latch;
}

void region_return(struct region *r, int latch)
{
    int none = -1;
    if (!atomic_compare_exchange_strong(&r->latch, &none, latch))
        sock_close(latch);
}

int region_wait(int latch, int64_t deadline)
{
    int64_t ns = time_left(deadline, (int64_t)INT32_MAX * 1000000);
    int ms = deadline < 0 ? -1 : (int)((ns + 999999) / 1000000);
    struct epoll_event event;
    int n = epoll_wait(latch, &event, 1, ms);
    if (n < 0)
        return -errno;
    return n || deadline < 0 ? 0 : -ETIMEDOUT;
}

static void close_latch(struct region *r)
{
    int latch = atomic_exchange(&r->latch, -1);
    if (latch >= 0)
        sock_close(latch);
}

/* ---- forks ---- */

/* A file lock belongs to the open file: in a child the parent's would be the child's, and stay when the parent dies. */
static int reopen(struct region *r)
{
    char path[32];
    (void)snprintf(path, sizeof path, "/proc/self/fd/%d", r->fd);
    int fd = open(path, O_RDWR | O_CLOEXEC);
    if (fd < 0)
        return -errno;
    int own = dup3(fd, r->fd, O_CLOEXEC);
    int rc = own < 0 ? -errno : 0;
    sock_close(fd);
    return rc;
}

int region_enter(struct region *r)
{
    if (!self_is_new(&r->self))
        return 0;
    int rc = r->base ? 0 : reopen(r);
    if (rc < 0)
        return rc;
    atomic_store(&r->thread, 0); /* a thread that stayed behind may have had it */
    close_latch(r);
    self_begin(&r->self);
    return 0;
}

void region_fini(struct region *r)
{
    close_latch(r);
    if (r->base)
        pl_memory_unmap(r->base, r->size);
    if (r->bell >= 0)
        sock_close(r->bell);
    if (r->fd >= 0)
        sock_close(r->fd);
    self_fini(&r->self);
}

#else /* nothing here is called where no region can be made, but it must link */

int region_enter(struct region *r) { return r ? -ENOSYS : 0; }

void region_unlock(struct region *r, int n) { (void)r, (void)n; }
int region_ring(struct region *r) { return r ? -ENOSYS : 0; }
int region_latch(struct region *r) { return r ? -ENOSYS : 0; }
void region_return(struct region *r, int latch) { (void)r, (void)latch; }
int region_wait(int latch, int64_t deadline) { return latch && deadline ? -ENOSYS : 0; }
void region_fini(struct region *r) { (void)r; }

int region_lock(struct region *r, int n, int64_t deadline)
{
    return r && n && deadline ? -ENOSYS : 0;
}

int region_read(struct region *r, uint64_t offset, void *to, size_t len)
{
    return r && offset && to && len ? -ENOSYS : 0;
}

int region_write(struct region *r, uint64_t offset, const void *from, size_t len)
{
    return r && offset && from && len ? -ENOSYS : 0;
}

int region_load(struct region *r, uint64_t offset, uint64_t *value)
{
    return r && offset && value ? -ENOSYS : 0;
}

int region_store(struct region *r, uint64_t offset, uint64_t value)
{
    return r && offset && value ? -ENOSYS : 0;
}

#endif
