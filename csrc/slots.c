/* slots.c -- what datagrams are received into. See slots.h. No I/O but madvise(2). */
#include "slots.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define ADDR_BYTES sizeof(struct sockaddr_storage)

_Static_assert(PL_DATAGRAM_HEAD == sizeof(uint32_t) + ADDR_BYTES, "head: a length and an address");

/* No power of two, or the heads of all slots would meet in the same few lines of the cache. */
static size_t stride_of(size_t max_len)
{
    return (max_len + PL_DATAGRAM_HEAD + 127) & ~(size_t)63;
}

int slots_init(struct slots *slots)
{
    if (!slots->memory)
        slots->memory = malloc(SLOTS_BYTES);
    return slots->memory ? 0 : -ENOMEM;
}

void slots_fini(struct slots *slots)
{
    free(slots->memory);
    *slots = (struct slots){0};
}

/* Whole pages only: what malloc put around our memory is not ours. */
static void give_back(struct slots *slots)
{
#ifdef MADV_DONTNEED
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    uintptr_t from = ((uintptr_t)slots->memory + SLOTS_KEPT_BYTES + page - 1) & ~(page - 1);
    uintptr_t to = ((uintptr_t)slots->memory + SLOTS_BYTES) & ~(page - 1);
    (void)madvise((void *)from, to - from, MADV_DONTNEED);
#endif
    slots->touched = 0;
}

void slots_reset(struct slots *slots)
{
    if (slots->used > slots->touched)
        slots->touched = slots->used;
    if (slots->used > SLOTS_KEPT_BYTES)
        slots->calm = 0;
    else if (slots->touched > SLOTS_KEPT_BYTES && ++slots->calm >= SLOTS_CALM_TICKS)
        give_back(slots);
    slots->used = 0;
}

int slots_offer(const struct slots *slots, struct packet *packets, int n, size_t max_len)
{
    size_t stride = stride_of(max_len), room = SLOTS_BYTES - slots->used;
    size_t share = room < SLOTS_SHARE_BYTES ? room : SLOTS_SHARE_BYTES;
    int i = 0;
    for (uint8_t *at = slots->memory + slots->used; i < n && share >= stride; i++) {
        packets[i] = (struct packet){
            .addr = at + sizeof(uint32_t),
            .addr_len = ADDR_BYTES,
            .data = at + PL_DATAGRAM_HEAD,
            .len = max_len,
        };
        at += stride;
        share -= stride;
    }
    return i;
}

void slots_take(struct slots *slots, struct packet *packets, int n, size_t max_len)
{
    for (int i = 0; i < n; i++) {
        uint8_t *addr = packets[i].addr;
        uint32_t len = packets[i].addr_len;
        memcpy(addr - sizeof len, &len, sizeof len);
        memset(addr + len, 0, ADDR_BYTES - len);
    }
    slots->used += (size_t)n * stride_of(max_len);
}
