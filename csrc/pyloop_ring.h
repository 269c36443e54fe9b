/* pyloop_ring.h -- the part of the contract for messages between processes: the ring in shared memory.
 *
 * The conventions of pyloop.h hold. Every function may be called from any thread, but pl_ring_free only when no other
 * call is running. */
#ifndef PYLOOP_RING_H
#define PYLOOP_RING_H

#include <stddef.h>
#include <stdint.h>

/* cffi: begin */

/* ---- messages between processes ---------------------------------------------- */

#define PL_RING_NAME_MAX 200 /* bytes */
#define PL_RING_PATIENCE_NS 50000000 /* what a call that does not wait for messages or room waits for a lock */
#define PL_RING_SLICE_NS 1000000000 /* the longest wait: then -EINTR, for signals that came before it */
#define PL_RING_CAPACITY_MAX 0x400000000000

struct pl_ring;

/* A nameless one, for this process and those that inherit or are given its two fds. Capacity a multiple of 8, room for
 * one message of `max_message` (at least 1) bytes: else -EINVAL. NULL with -errno in *error. */
struct pl_ring *pl_ring_new(uint64_t capacity, uint64_t max_message, int *error);

/* One that other processes of this user find by name; `create` is an enum pl_create. Attached to one that is there,
 * capacity and max_message are what its creator chose. *outcome: 1 created, 0 attached, else NULL and -EINVAL: no such
 * name can be, or shape; -ENOENT, -EEXIST, -ENOSPC and their kin; -EACCES: it is another user's; -ETIMEDOUT: another
 * process keeps the lock; -EINTR: call again; PL_E_FOREIGN. */
struct pl_ring *pl_ring_open(const char *name, int create, uint64_t capacity, uint64_t max_message,
                             int *outcome);

/* A nameless one by its fds, which stay the caller's. NULL: PL_E_FOREIGN or -errno in *error. */
struct pl_ring *pl_ring_adopt(int fd, int bell, int *error);

void pl_ring_free(struct pl_ring *ring);
int pl_ring_unlink(const char *name); /* 0, -ENOENT, -EACCES, -EINVAL */

int pl_ring_fd(const struct pl_ring *ring);   /* both borrowed */
int pl_ring_bell(const struct pl_ring *ring);

/* In a forked child, before it does anything else: fds of its own. All others do so too, if it was forgotten. */
int pl_ring_enter(struct pl_ring *ring);

/* Append a message, or take the first one into `to`, which has room for max_message bytes, or, if it is of just
 * exact_len bytes, into `exact`, which has room for those (may be NULL, with 0): its length. Both wait for
 * room or a message, with timeout_ns 0 only for other processes to let go of the lock, PL_RING_PATIENCE_NS at most.
 * -ETIMEDOUT; -EINTR: call again with the time that is left; PL_E_SHUT; PL_E_TOO_LONG; PL_E_CORRUPT; -EBADF after
 * pl_ring_close, and when ring is NULL; -EMFILE and its kin when a wait needs an fd. Nothing was put or got then.
 * A process killed in the middle has put all of its message or nothing, and got its message or left it. */
int pl_ring_put(struct pl_ring *ring, const uint8_t *data, size_t len, int64_t timeout_ns);
int64_t pl_ring_get(struct pl_ring *ring, uint8_t *to, uint8_t *exact, size_t exact_len,
                    int64_t timeout_ns);

/* For loops. An fd that becomes readable when it is worth trying again, for one loop: the caller's, to be closed by
 * close(2). -EMFILE and its kin. Order: latch, try, arm, wait for the fd, quiet, try, arm, ... */
int pl_ring_latch(struct pl_ring *ring);
void pl_ring_quiet(int latch); /* not readable until the next ring */

/* Ask for a ring when there is a message, or room for one of `len` bytes. 1: there is already; 0: it will ring;
 * -ETIMEDOUT: another process keeps the lock, try again soon; PL_E_CORRUPT, -EBADF. */
int pl_ring_arm_get(struct pl_ring *ring);
int pl_ring_arm_put(struct pl_ring *ring, size_t len);

/* For all processes: no more is put, what is there can be got. 0, -ETIMEDOUT, -EINTR, -errno. */
int pl_ring_shut(struct pl_ring *ring, int64_t timeout_ns);

/* For this process: calls that wait, and all later ones, return -EBADF. The fds stay until pl_ring_free. */
void pl_ring_close(struct pl_ring *ring);

/* Bytes that records may take: a record is a message, 8 bytes more, and up to 7 of padding. */
uint64_t pl_ring_capacity(const struct pl_ring *ring);
uint64_t pl_ring_max_message(const struct pl_ring *ring); /* bytes of the longest message */

/* Bytes that records took a moment ago; -ETIMEDOUT: another process keeps the lock; PL_E_CORRUPT, -EBADF, -errno. */
int64_t pl_ring_used(struct pl_ring *ring);

/* cffi: end */

#endif
