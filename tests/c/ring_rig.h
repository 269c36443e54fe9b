/* ring_rig.h -- rings of both kinds for the tests, and messages that tell whether they are whole. */
#ifndef RING_RIG_H
#define RING_RIG_H

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "ring.h"

#define CAPACITY 512u
#define MAX_MESSAGE 200u
#define SOON 20000000000 /* ns: a test that waits so long fails */

static inline const char *ring_name(void)
{
    static char name[64];
    (void)snprintf(name, sizeof name, "pyloop-ring-%d", (int)getpid());
    return name;
}

static inline struct pl_ring *ring_of(int named)
{
    int rc;
    if (!named)
        return pl_ring_new(CAPACITY, MAX_MESSAGE, &rc);
    (void)pl_ring_unlink(ring_name());
    return pl_ring_open(ring_name(), PL_CREATE, CAPACITY, MAX_MESSAGE, &rc);
}

/* Another process's view of the same. */
static inline struct pl_ring *ring_again(struct pl_ring *ring, int named)
{
    int rc;
    if (!named)
        return pl_ring_adopt(pl_ring_fd(ring), pl_ring_bell(ring), &rc);
    return pl_ring_open(ring_name(), PL_ATTACH, 0, 0, &rc);
}

static inline void ring_end(struct pl_ring *ring, int named)
{
    pl_ring_free(ring);
    if (named)
        (void)pl_ring_unlink(ring_name());
}

/* Message `number`: its length and all its bytes follow from it. */
static inline size_t make_message(uint8_t *to, uint32_t number)
{
    size_t len = sizeof number + number * 7 % (MAX_MESSAGE - sizeof number + 1);
    memcpy(to, &number, sizeof number);
    memset(to + sizeof number, (int)(number * 31 % 251), len - sizeof number);
    return len;
}

/* Its number, or -1 when it is not what make_message made. */
static inline int64_t number_of(const uint8_t *data, int64_t len)
{
    uint8_t whole[MAX_MESSAGE];
    uint32_t number;
    if (len < (int64_t)sizeof number)
        return -1;
    memcpy(&number, data, sizeof number);
    if (make_message(whole, number) != (size_t)len || memcmp(whole, data, (size_t)len))
        return -1;
    return number;
}

static inline int put_number(struct pl_ring *ring, uint32_t number, int64_t timeout_ns)
{
    uint8_t data[MAX_MESSAGE];
    size_t len = make_message(data, number);
    return pl_ring_put(ring, data, len, timeout_ns);
}

/* Its number; -1: it is torn; or what pl_ring_get returned. */
static inline int64_t get_number(struct pl_ring *ring, int64_t timeout_ns)
{
    uint8_t data[MAX_MESSAGE];
    int64_t len = pl_ring_get(ring, data, NULL, 0, timeout_ns);
    return len < 0 ? len : number_of(data, len);
}

#endif
