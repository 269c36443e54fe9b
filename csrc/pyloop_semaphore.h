/* pyloop_semaphore.h -- the part of the contract for POSIX semaphores: by name, or in memory that processes share.
 *
 * The conventions of pyloop.h hold. Any thread may call. */
#ifndef PYLOOP_SEMAPHORE_H
#define PYLOOP_SEMAPHORE_H

#include <stddef.h>
#include <stdint.h>

/* cffi: begin */

/* ---- semaphores -------------------------------------------------------- */

#define PL_SEMAPHORE_SIZE 64 /* bytes that one in memory takes, at most */
#define PL_SEMAPHORE_ALIGN 8

struct pl_semaphore; /* the C library's sem_t */

/* Open the semaphore `name` ("/" and at least one other character), of the caller's user only if it is made here;
 * `value` counts then only. 0 and *found, to be closed once for each open; -ENOENT, -EEXIST, -EACCES; -EINVAL: a value
 * over SEM_VALUE_MAX, a name that cannot be, or what has this name is no semaphore; -ENAMETOOLONG, -EMFILE, -ENFILE,
 * -ENOSPC, -ENOMEM.
 * A child inherits it. Source: sem_open(3). */
int pl_semaphore_open(const char *name, int create, uint32_t value, struct pl_semaphore **found);
void pl_semaphore_close(struct pl_semaphore *s); /* unmaps it: nobody may be waiting on it */
int pl_semaphore_unlink(const char *name);       /* those who have it open keep it. 0, -ENOENT, -EACCES */

/* Make, or find, one in PL_SEMAPHORE_SIZE bytes of shared memory, aligned. All zeroes is "none is here".
 * PL_CREATE or PL_ATTACH. 0 and *found, which is borrowed from `memory`; -ENOENT: zeroes, or somebody is about to make
 * it; -EEXIST; PL_E_FOREIGN: something else lies there, or one of another C library's; -EINVAL: the value is over
 * SEM_VALUE_MAX; -ENOSYS where the system has none in memory. Source: sem_init(3). */
int pl_semaphore_place(void *memory, int create, uint32_t value, struct pl_semaphore **found);

/* Take one, waiting at most timeout_ns. 1: taken; 0: the time has passed; -EINTR; -EINVAL. Source: sem_clockwait(3)
 * where the C library has it, else pl_semaphore_nap. Never sem_timedwait: somebody may set its clock. */
int pl_semaphore_wait(struct pl_semaphore *s, int64_t timeout_ns);

/* The same by sem_trywait(3), between naps that grow from 1 to 10 ms; in sight so that it can be tried everywhere. */
int pl_semaphore_nap(struct pl_semaphore *s, int64_t timeout_ns);

int pl_semaphore_post(struct pl_semaphore *s);  /* 0, or -EOVERFLOW. Source: sem_post(3) */
int pl_semaphore_value(struct pl_semaphore *s); /* >= 0. Source: sem_getvalue(3) */

/* cffi: end */

#endif
