/* test_batch.c -- a batch's events, its arena, and the memory that it keeps until the next. */
#include <errno.h>

#include "batch.h"
#include "check.h"

static void test_fresh_batch_is_empty_and_has_room(void)
{
    struct batch b;
    CHECK(batch_init(&b) == 0);
    CHECK(b.count == 0 && batch_has_room(&b) && arena_room(&b) > RECEIVE_BYTES);
    CHECK((uintptr_t)arena_tail(&b) % 4096 == ARENA_START_BYTES);
    batch_fini(&b);
    batch_fini(&b);
}

static void test_pushed_event_is_clean_and_named(void)
{
    struct batch b;
    CHECK(batch_init(&b) == 0);
    memset(b.events, 0xff, 2 * sizeof b.events[0]);
    struct pl_event *e = batch_push(&b, PL_EV_EOF, (uint64_t)7 << 32 | 3);
    CHECK(e == b.events && b.count == 1 && e->kind == PL_EV_EOF && e->slot == 3);
    CHECK(e->id == ((uint64_t)7 << 32 | 3) && !e->data && !e->end && !e->value && !e->head);
    batch_reset(&b);
    CHECK(b.count == 0 && batch_push(&b, PL_EV_LOST, 1) == e);
    batch_fini(&b);
}

static void test_room_ends_before_events_or_arena_do(void)
{
    struct batch b;
    CHECK(batch_init(&b) == 0);
    while (batch_has_room(&b))
        batch_push(&b, PL_EV_READ, 1);
    CHECK(b.count == PL_EVENTS_MAX - EVENTS_SPARE);
    for (uint32_t i = 0; i < EVENTS_SPARE; i++)
        batch_push(&b, PL_EV_READ, 1); /* ASan sees one too many */
    batch_reset(&b);
    CHECK(batch_has_room(&b));
    arena_commit(&b, ARENA_BYTES - ARENA_STOP_BYTES - ARENA_START_BYTES);
    CHECK(batch_has_room(&b) && arena_room(&b) == RECEIVE_BYTES);
    arena_commit(&b, 8);
    CHECK(!batch_has_room(&b) && arena_tail(&b) == b.arena + b.used);
    batch_fini(&b);
}

static void test_kept_memory_lives_until_the_reset(void)
{
    struct batch b;
    char *kept[40];
    CHECK(batch_init(&b) == 0);
    for (int i = 0; i < 40; i++) {
        kept[i] = malloc(10);
        kept[i][0] = (char)i;
        CHECK(batch_keep(&b, kept[i]) == 0);
    }
    for (int i = 0; i < 40; i++)
        CHECK(kept[i][0] == i);
    batch_reset(&b);
    CHECK(b.kept_count == 0);
    CHECK(batch_keep(&b, malloc(10)) == 0); /* LeakSanitizer sees what fini forgets */
    batch_fini(&b);
}

static void test_short_memory_takes_nothing(void)
{
    struct batch b;
    for (int n = 0; n < 3; n++) {
        fail_alloc_after(n);
        CHECK(batch_init(&b) == -ENOMEM && !b.events && !b.arena);
        fail_alloc_never();
    }
    CHECK(batch_init(&b) == 0);
    char *mine = malloc(10);
    fail_alloc_after(0);
    CHECK(batch_keep(&b, mine) == -ENOMEM && b.kept_count == 0);
    fail_alloc_never();
    batch_reset(&b);
    mine[0] = 1; /* still ours */
    free(mine);
    batch_fini(&b);
}

CHECK_MAIN(RUN(test_fresh_batch_is_empty_and_has_room);
           RUN(test_pushed_event_is_clean_and_named);
           RUN(test_room_ends_before_events_or_arena_do);
           RUN(test_kept_memory_lives_until_the_reset);
           RUN(test_short_memory_takes_nothing);)
