/* region.h -- a piece of memory that processes share, with locks and a bell, in one of two kinds.
 *
 *     nameless   sealed memfd, mapped     lock words (lock.c)        eventfd    related processes
 *     named      shm_open object, pread   one file lock              FIFO       anybody of this user
 *                and pwrite, never mapped (F_OFD_SETLK)
 *
 * Nobody can cut a sealed memfd short, so it is read and written where it is mapped. A named object can be
 * truncated at any moment by whoever may open it, and a mapped page that is gone is SIGBUS: so it is only ever read
 * and written by system calls, which fall short, and its lock is the kernel's, which frees it when a process dies.
 * Both locks are the same one there, because such a read is not atomic: who writes a word must be kept out.
 *
 * The bell wakes everybody who waits. It is never silenced: each wait has an epoll of its own that takes the edges
 * (EPOLLET), so one process cannot swallow what another one waits for.
 *
 *     0           64              128             192
 *     | head      | line 0        | line 1        | line 2 ...       the first word of a line is its lock's
 *
 * Knows neither rings nor messages. Linux only: elsewhere a region cannot be made (-ENOSYS). */
#ifndef PYLOOP_REGION_H
#define PYLOOP_REGION_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#include "lock.h"

#define REGION_LINE 64u
#define REGION_NAME_MAX 200 /* bytes */

struct region_head {
    uint64_t magic; /* written last: it is complete */
    uint32_t version;
    uint32_t kind;
    uint64_t size;      /* bytes of all, this head too */
    uint64_t params[3]; /* what the kind wants to remember */
    uint64_t mark;      /* the same magic, written first: it is being made */
    uint64_t bell;      /* named: the FIFO's inode, so that another one in its place is told from it */
};

struct region {
    uint8_t *base; /* where it is mapped; NULL: it is read and written through fd */
    uint64_t size;
    int fd;   /* memfd or shm object */
    int bell; /* eventfd or FIFO */
    _Atomic(int) latch; /* a spare one of this process, or -1 */
    struct pl_self self;
    _Atomic(uint64_t) thread; /* named: a lock word of this process, whose threads a file lock lets pass */
};

/* All three: `want` says kind, version, size and params of a new one; attached ones must be of its kind and version,
 * and *found is what they are (checked: size is that of the memory). What lies behind the head is zero in a new one.
 * -ENOMEM, -ENOSPC, -EMFILE and their kin: nothing is left behind. */
int region_new(struct region *r, const char *label, const struct region_head *want);

/* 1: created, 0: attached; -EEXIST, -ENOENT; -EACCES: it is another user's; PL_E_FOREIGN: something else has that name,
 * or one that was left half made; -ETIMEDOUT: somebody keeps its lock; -EINTR: call again. `name` has no slash,
 * 1..REGION_NAME_MAX bytes, and does not end in ".bell" (-EINVAL). */
int region_open(struct region *r, const char *name, enum pl_create create,
                const struct region_head *want, struct region_head *found);

/* Another process's: its two fds, which are copied. 0, PL_E_FOREIGN. */
int region_adopt(struct region *r, int fd, int bell, const struct region_head *want,
                 struct region_head *found);

int region_unlink(const char *name); /* 0, -ENOENT, -EACCES, -EINVAL */
void region_fini(struct region *r);

/* Before anything else in each call from Python: does a forked child need fds of its own? 0 or -errno. */
int region_enter(struct region *r);

/* Lock `n` (0 or 1); nobody may take one while it has the other. 0; 1: taken from the dead (nameless ones only can
 * tell); -ETIMEDOUT; -EINTR; -errno. */
int region_lock(struct region *r, int n, int64_t deadline);
void region_unlock(struct region *r, int n);

/* The lock of a named one, by its fd alone. */
int region_lock_file(int fd, int64_t deadline);
void region_unlock_file(int fd);
int region_nap(int64_t ns); /* 0, -EINTR */

/* Copies that cannot fail on a mapped region; else PL_E_CORRUPT when it has been cut short, -ENOSPC, -errno. */
int region_read(struct region *r, uint64_t offset, void *to, size_t len);
int region_write(struct region *r, uint64_t offset, const void *from, size_t len);

/* A word that is read with another lock than that of who writes it. */
int region_load(struct region *r, uint64_t offset, uint64_t *value);
int region_store(struct region *r, uint64_t offset, uint64_t value);

/* Wake everybody who waits, in all processes. 0 or -errno (nobody can be woken then). */
int region_ring(struct region *r);

/* An fd that becomes readable when the bell rings; the caller's, one for each thread or loop that waits, since an
 * edge is told once. It remembers: take it, then look at what is waited for, then wait, and no ring is missed.
 * -EMFILE and its kin. region_return keeps one for the next region_latch, or closes it. */
int region_latch(struct region *r);
void region_return(struct region *r, int latch);

/* Wait for the bell. 0: it rang, now or since the last wait on this latch (look again), or perhaps not; -ETIMEDOUT;
 * -EINTR; -errno. */
int region_wait(int latch, int64_t deadline);

#endif
