/* lock.h -- the lock word: who has it, and how it is taken from the dead. Contract: pyloop_memory.h. */
#ifndef PYLOOP_LOCK_H
#define PYLOOP_LOCK_H

#include <stdatomic.h>
#include <stdint.h>

#include "pyloop.h"

struct pl_self {
    _Atomic(uint64_t) *word; /* in a page that is wiped in a forked child: 0 there until it is asked for */
    int unwiped;             /* the kernel does not do that: ask for the pid each time */
};

int self_init(struct pl_self *self); /* 0, -ENOMEM */
void self_fini(struct pl_self *self);

/* Is this the first call since a fork (or ever)? What a child must not share can be replaced then. */
int self_is_new(const struct pl_self *self);

void self_begin(struct pl_self *self); /* no longer */

/* As pl_lock_acquire; the deadline is on CLOCK_MONOTONIC, -1 for none, 0 for one try. */
int lock_acquire(struct pl_self *self, _Atomic(uint64_t) *word, int64_t deadline);
int lock_release(struct pl_self *self, _Atomic(uint64_t) *word);

/* Between two looks at a word that another CPU is about to change. */
static inline void lock_pause(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

/* When `timeout_ns` from now has passed; -1 and 0 stay what they are. */
int64_t deadline_of(int64_t timeout_ns);

/* ns until `deadline`, at most `most`, never negative. */
int64_t time_left(int64_t deadline, int64_t most);

#endif
