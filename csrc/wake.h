/* wake.h -- end a wait early: an eventfd (a pipe where there is none) for threads, and a non-blocking socketpair for
 * signals, because CPython's wakeup fd writes one byte per signal, its number, which an eventfd refuses.
 *
 * All fds are >= 3, CLOEXEC and non-blocking.
 */
#ifndef PYLOOP_WAKE_H
#define PYLOOP_WAKE_H

#include <stdatomic.h>
#include <stdint.h>

struct wake {
    int read_fd, write_fd;     /* equal for an eventfd */
    int signal_read, signal_write;
    atomic_int pending;        /* a wake was written and not yet taken: further ones cost no system call */
};

int wake_init(struct wake *w); /* 0 or -errno, then nothing is left open */
void wake_fini(struct wake *w);

/* From any thread or signal handler. 0 or -errno; a full pipe is success. */
int wake_send(struct wake *w);

/* Take what is there, after read_fd was reported readable. 1 if a wake was pending, else 0. */
int wake_take(struct wake *w);

/* Signal numbers that came: at most `max` bytes into `numbers`. How many, 0 when there are none. */
int wake_signals(struct wake *w, uint8_t *numbers, int max);

#endif
