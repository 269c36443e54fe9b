/* datagram.h -- one datagram socket: its state, what is queued to be sent, what could not be.
 *
 *     out     letter -> letter -> letter        failed   letter -> letter
 *        sent ^           queued ^                  told ^
 *
 * A letter that the kernel refuses keeps only why, and waits in `failed` until that is told: so no error is lost
 * for want of memory. Knows sockets; neither loop nor batch, which are datagram_loop.c's. */
#ifndef DATAGRAM_H
#define DATAGRAM_H

#include <stddef.h>
#include <stdint.h>

#include "pyloop.h"

enum dgram_flag {
    DGRAM_READING = 1 << 0,  /* what comes is wanted */
    DGRAM_BLOCKED = 1 << 1,  /* the kernel took less than all */
    DGRAM_RESTING = 1 << 2,  /* it says that it would take more, and does not: tried again later */
    DGRAM_ABOVE = 1 << 3,    /* over high water: PL_EV_DATAGRAM_RESUME is owed */
    DGRAM_RESUME = 1 << 4,   /* it is due */
    DGRAM_CLOSING = 1 << 5,  /* Python is done with it; output is being flushed */
    DGRAM_DEAD = 1 << 6,     /* the fd is let go; PL_EV_DATAGRAM_LOST is due */
    DGRAM_IN_FLUSH = 1 << 7, /* member of the list of those with something to send */
    DGRAM_IN_TELL = 1 << 8   /* member of the list of those with something to tell */
};

struct letter {
    struct letter *next;
    size_t len;
    uint32_t addr_len;
    int32_t error;   /* failed: -errno */
    uint64_t times;  /* failed: how many in a row did so */
    uint8_t bytes[]; /* the address, then the data */
};

struct letters {
    struct letter *head, *tail;
};

struct dgram {
    uint64_t id;
    int fd;
    uint32_t flags; /* enum dgram_flag */
    size_t max_len; /* bytes of a datagram that are received */
    struct letters out, failed;
    uint64_t queued; /* bytes in `out`, with PL_DATAGRAM_OVERHEAD for each */
    uint64_t high_water, low_water;
    struct dgram *next_flush, *next_tell;
    int32_t reason;    /* DGRAM_DEAD: the value of PL_EV_DATAGRAM_LOST */
    uint8_t singles;   /* receives since the last eager one */
    uint8_t patience;  /* so many come between two eager ones that are in vain */
};

struct dgram *dgram_new(int fd, size_t max_len); /* NULL: no memory. Borrows fd */
void dgram_drop(struct dgram *d);                /* forget what is queued, and what failed */
void dgram_free(struct dgram *d);

/* PL_READ | PL_WRITE as its state wants them. */
uint32_t dgram_interest(const struct dgram *d);

/* Copy a datagram to the back of the queue. 0 or -ENOMEM. */
int dgram_queue(struct dgram *d, const uint8_t *data, size_t len, const uint8_t *addr,
                size_t addr_len);

/* Offer it to the kernel where it lies; nothing may be queued. 1: it is sent, or has failed; 0: the kernel is full, and
 * it is to be queued; -ENOMEM: it failed, and that cannot be told. */
int dgram_send(struct dgram *d, struct pl_loop_counters *counters, const uint8_t *data, size_t len,
               const uint8_t *addr, size_t addr_len);

/* Offer what is queued to the kernel. 1: nothing is queued any more, though some may have failed; 0: it is full. */
int dgram_flush(struct dgram *d, struct pl_loop_counters *counters);

/* Is it to be asked for many datagrams? recvmmsg takes almost twice as long as recvfrom to receive one, so a socket
 * that gets one at a time is asked for more only now and then. Then say how many it had. */
static inline int dgram_eager(const struct dgram *d) { return d->singles > d->patience; }
void dgram_learn(struct dgram *d, int received);

/* The next error to tell, -errno; it is taken off. 0: there is none. */
int dgram_next_error(struct dgram *d);

#endif
