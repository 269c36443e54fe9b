/* batch.c -- the events of one tick and the arena that owns their bytes. No I/O. */
#include "batch.h"

#include <errno.h>
#include <stdlib.h>

#define LARGEST_KEPT_BYTES (2u * 1024u * 1024u)

/* The kernel copies to and from pages that it fills from their first byte, with `rep movsb`, and Zen 3 and 4 do that at
 * a twentieth of the speed if the destination lies 1 to 63 bytes behind the source, modulo a page. malloc's large
 * pieces lie 16 behind. Source: glibc bug 30994. */
#define ARENA_ALIGN 4096u

/* The bytes that Python makes of messages are as large as these, and glibc gives each above 128 KiB a mapping of its
 * own, and memory beyond that at the end of its heap back to the kernel at once: some thirty page faults for each
 * message. It learns better from the first large piece that is freed. Source: mallopt(3), M_MMAP_THRESHOLD. */
static void teach_malloc(void)
{
    void *volatile piece = malloc(LARGEST_KEPT_BYTES);
    free(piece);
}

int batch_init(struct batch *b)
{
    teach_malloc();
    *b = (struct batch){0};
    b->events = malloc(PL_EVENTS_MAX * sizeof *b->events);
    b->arena = aligned_alloc(ARENA_ALIGN, ARENA_BYTES);
    if (b->events && b->arena)
        return 0;
    batch_fini(b);
    return -ENOMEM;
}

void batch_reset(struct batch *b)
{
    b->count = 0;
    b->used = 0;
    while (b->kept_count)
        free(b->kept[--b->kept_count]);
}

void batch_fini(struct batch *b)
{
    batch_reset(b);
    free(b->kept);
    free(b->arena);
    free(b->events);
    *b = (struct batch){0};
}

int batch_keep(struct batch *b, void *memory)
{
    if (b->kept_count == b->kept_cap) {
        uint32_t cap = b->kept_cap ? b->kept_cap * 2 : 16;
        void **kept = realloc(b->kept, cap * sizeof *kept);
        if (!kept)
            return -ENOMEM;
        b->kept = kept;
        b->kept_cap = cap;
    }
    b->kept[b->kept_count++] = memory;
    return 0;
}
