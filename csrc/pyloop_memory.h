/* pyloop_memory.h -- the part of the contract for memory that unrelated processes share: how to make things, locks.
 *
 * The conventions of pyloop.h hold. */
#ifndef PYLOOP_MEMORY_H
#define PYLOOP_MEMORY_H

#include <stdint.h>

/* cffi: begin */

/* What to do about a thing that another process may have made already. */
enum pl_create {
    PL_ATTACH = 0,        /* -ENOENT where there is none */
    PL_CREATE = 1,        /* -EEXIST where there is one */
    PL_ATTACH_OR_CREATE = 2
};

/* ---- a lock that recovers from a killed holder ------------------------------ */

/* Its word lies in memory that processes share, 8 bytes, aligned, 0 while nobody has it; else it says which process
 * has it, so threads of one process exclude each other too. All processes must see the same pids.
 * No wait is longer than PL_LOCK_SLICE_NS before the holder's life is looked at. */
#define PL_LOCK_SLICE_NS 100000000

struct pl_self; /* what this process calls itself in lock words; right in forked children too */

struct pl_self *pl_self_new(void); /* NULL when memory is short */
void pl_self_free(struct pl_self *self);

/* 0: taken; 1: taken from a process that ended while it had it, so what the lock guards may be half done;
 * -ETIMEDOUT; -EINTR: call again with the time that is left. Any thread. */
int pl_lock_acquire(struct pl_self *self, uint64_t *word, int64_t timeout_ns);

/* 0, or -EPERM: this process does not have it. */
int pl_lock_release(struct pl_self *self, uint64_t *word);

/* The same; but who takes it next gets 1, as from a process that ended: what it guards is, or still is, half done. */
int pl_lock_forsake(struct pl_self *self, uint64_t *word);

int pl_lock_owner(const uint64_t *word); /* pid of the process that has it, 0: nobody */

#define PL_LOCK_SIZE 16 /* bytes of a lock word with a head that tells what it is */
#define PL_LOCK_ALIGN 8

/* Make, or find, such a one in shared memory, aligned; `create` is an enum pl_create. All zeroes is "none is here". 0
 * and *word, which is borrowed from `memory`; -ENOENT, -EEXIST; PL_E_FOREIGN: something else lies there. */
int pl_lock_place(void *memory, int create, uint64_t **word);

/* cffi: end */

#endif
