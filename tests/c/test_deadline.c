/* test_deadline.c -- the heap of deadlines against the plainest model: look at all. */
#include <errno.h>

#include "check.h"
#include "deadline.h"

#define CONNS 300

static struct group group;
static struct conn conns[CONNS];
static struct deadlines heap;

static void set_up(int64_t idle)
{
    memset(&group, 0, sizeof group);
    memset(conns, 0, sizeof conns);
    memset(&heap, 0, sizeof heap);
    group.options.idle_timeout = idle;
    for (int i = 0; i < CONNS; i++)
        conns[i].group = &group;
}

static int is_sound(void)
{
    for (uint32_t i = 0; i < heap.count; i++) {
        if (heap.heap[i].conn->deadline != i + 1)
            return 0;
        if (i && heap.heap[(i - 1) / 2].due_ns > heap.heap[i].due_ns)
            return 0;
        if (heap.heap[i].due_ns > conn_due(heap.heap[i].conn))
            return 0; /* a key is a lower bound */
    }
    return 1;
}

static void test_due_conns_come_in_order_and_no_other(void)
{
    set_up(10);
    for (int i = 0; i < CONNS; i++) {
        conns[i].active_ns = (i * 7919) % 1000 + 1;
        CHECK(deadline_arm(&heap, &conns[i]) == 0);
    }
    CHECK(heap.count == CONNS && is_sound());
    int64_t last = 0;
    int n = 0;
    for (struct conn *c; (c = deadline_pop(&heap, 500)); n++) {
        CHECK(conn_due(c) <= 500 && conn_due(c) >= last && !c->deadline && is_sound());
        last = conn_due(c);
    }
    CHECK(n + (int)heap.count == CONNS && deadline_first(&heap) > 500);
    deadlines_fini(&heap);
}

static void test_activity_puts_off_without_touching_the_heap(void)
{
    set_up(10);
    conns[0].active_ns = 1;
    CHECK(deadline_arm(&heap, &conns[0]) == 0 && deadline_first(&heap) == 11);
    conns[0].active_ns = 100;
    CHECK(deadline_first(&heap) == 11 && !deadline_pop(&heap, 11));
    CHECK(deadline_first(&heap) == 110 && !deadline_pop(&heap, 109));
    CHECK(deadline_pop(&heap, 110) == &conns[0] && deadline_first(&heap) == INT64_MAX);
    deadlines_fini(&heap);
}

static void test_conn_without_a_time_out_takes_no_place(void)
{
    set_up(0);
    fail_alloc_after(0);
    CHECK(deadline_arm(&heap, &conns[0]) == 0 && heap.count == 0);
    deadline_disarm(&heap, &conns[0]);
    CHECK(!deadline_pop(&heap, INT64_MAX - 1));
    deadlines_fini(&heap);
}

static void test_each_state_has_its_clock(void)
{
    struct conn *c = &conns[0];
    set_up(100);
    group.options.message_timeout = 20;
    group.options.close_timeout = 30;
    group.options.linger = 5;
    c->active_ns = 1000;
    CHECK(conn_due(c) == 1100 && conn_is_idle(c, 1100) && !conn_is_idle(c, 1099));
    c->since_ns = 1010;
    CHECK(conn_due(c) == 1030);
    c->flags = CONN_FAULTED;
    CHECK(conn_due(c) == INT64_MAX);
    c->flags = CONN_FAULTED | CONN_CLOSING;
    CHECK(conn_due(c) == 1040);
    c->active_ns = 1020; /* the kernel took some */
    CHECK(conn_due(c) == 1050);
    c->flags |= CONN_LINGERING;
    CHECK(conn_due(c) == 1015);
}

static void test_random_arming_keeps_the_heap_sound(void)
{
    uint32_t rng = 7;
    int64_t now = 1;
    set_up(50);
    for (int i = 0; i < 20000; i++) {
        rng = rng * 1664525 + 1013904223;
        struct conn *c = &conns[(rng >> 8) % CONNS];
        switch (rng >> 29) {
        case 0: deadline_disarm(&heap, c); break;
        case 1: now += rng >> 27; break;
        case 2:
            c = deadline_pop(&heap, now);
            CHECK(!c || conn_due(c) <= now);
            break;
        case 3: c->active_ns = now; break;
        default: c->active_ns = now; CHECK(deadline_arm(&heap, c) == 0 && c->deadline);
        }
        if (i % 16 == 0)
            CHECK(is_sound());
    }
    while (heap.count)
        deadline_disarm(&heap, heap.heap[heap.count / 2].conn);
    for (int i = 0; i < CONNS; i++)
        CHECK(!conns[i].deadline);
    deadlines_fini(&heap);
}

static void test_short_memory_arms_nothing(void)
{
    set_up(10);
    fail_alloc_after(0);
    CHECK(deadline_arm(&heap, &conns[0]) == -ENOMEM && !conns[0].deadline && heap.count == 0);
    fail_alloc_never();
    for (int i = 0; i < 64; i++)
        CHECK(deadline_arm(&heap, &conns[i]) == 0);
    fail_alloc_after(0);
    CHECK(deadline_arm(&heap, &conns[64]) == -ENOMEM && heap.count == 64);
    CHECK(deadline_arm(&heap, &conns[3]) == 0 && is_sound()); /* it has a place */
    deadlines_fini(&heap);
}

CHECK_MAIN(RUN(test_due_conns_come_in_order_and_no_other);
           RUN(test_activity_puts_off_without_touching_the_heap);
           RUN(test_conn_without_a_time_out_takes_no_place);
           RUN(test_each_state_has_its_clock);
           RUN(test_random_arming_keeps_the_heap_sound);
           RUN(test_short_memory_arms_nothing);)
