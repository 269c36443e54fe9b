/* batch.c -- the events of one tick and the arena that owns their bytes. No I/O. */
#include "batch.h"

#include <errno.h>
#include <stdlib.h>

#define LARGEST_KEPT_BYTES (2u * 1024u * 1024u)

/* Large pieces are copied with `rep movsb`, by the kernel and by memcpy, and Zen 3 does that at a twentieth to a third
 * of its speed if the destination lies 1 to 63 bytes behind the source, modulo a page. The kernel has them at the start
 * of pages, malloc's large pieces begin 16 bytes behind that, and in them the bytes of a Python object at 48. So the
 * first receive of a tick goes to byte 64 of a page, and after so many whole pages does the next. */
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
    *b = (struct batch){.used = ARENA_START_BYTES};
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
    b->used = ARENA_START_BYTES;
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
