/* test_ring_threads.c -- threads put into and get from one ring at once, also under ThreadSanitizer: what one of
 * them wrote, another one reads whole and once, in the order of each writer. */
#include <pthread.h>

#include "check.h"
#include "ring_rig.h"

#define WRITERS 2u
#define READERS 2u
#define EACH 5000u

struct reader {
    struct pl_ring *ring;
    uint32_t got, next[WRITERS];
    int wrong;
};

struct writer {
    struct pl_ring *ring;
    uint32_t number;
    int wrong;
};

/* Writer w puts w, w + WRITERS, w + 2 * WRITERS, ... */
static void *write_all(void *argument)
{
    struct writer *w = argument;
    for (uint32_t i = 0; i < EACH; i++)
        w->wrong += put_number(w->ring, w->number + i * WRITERS, SOON) != 0;
    return NULL;
}

static void *read_all(void *argument)
{
    struct reader *r = argument;
    int64_t number;
    while ((number = get_number(r->ring, SOON)) >= 0) {
        uint32_t writer = (uint32_t)number % WRITERS, turn = (uint32_t)number / WRITERS;
        r->wrong += turn < r->next[writer];
        r->next[writer] = turn + 1;
        r->got++;
    }
    r->wrong += number != PL_E_SHUT;
    return NULL;
}

/* `rings`: each thread has its own view of the memory, as processes have. */
static void exchange(struct pl_ring *const *rings)
{
    pthread_t threads[WRITERS + READERS];
    struct writer writers[WRITERS] = {0};
    struct reader readers[READERS] = {0};
    uint32_t got = 0, wrong = 0;
    for (uint32_t i = 0; i < READERS; i++) {
        readers[i].ring = rings[i];
        CHECK(pthread_create(&threads[WRITERS + i], NULL, read_all, &readers[i]) == 0);
    }
    for (uint32_t i = 0; i < WRITERS; i++) {
        writers[i] = (struct writer){rings[READERS + i], i, 0};
        CHECK(pthread_create(&threads[i], NULL, write_all, &writers[i]) == 0);
    }
    for (uint32_t i = 0; i < WRITERS; i++) {
        CHECK(pthread_join(threads[i], NULL) == 0);
        wrong += (uint32_t)writers[i].wrong;
    }
    CHECK(pl_ring_shut(rings[0], -1) == 0);
    for (uint32_t i = 0; i < READERS; i++) {
        CHECK(pthread_join(threads[WRITERS + i], NULL) == 0);
        got += readers[i].got;
        wrong += (uint32_t)readers[i].wrong;
    }
    CHECK(got == WRITERS * EACH && wrong == 0);
}

static void exchange_over(struct pl_ring *ring, int named, int views)
{
    struct pl_ring *rings[READERS + WRITERS];
    for (uint32_t i = 0; i < READERS + WRITERS; i++)
        rings[i] = views ? ring_again(ring, named) : ring;
    exchange(rings);
    for (uint32_t i = 0; views && i < READERS + WRITERS; i++)
        pl_ring_free(rings[i]);
    ring_end(ring, named);
}

static void test_threads_of_one_ring(void) { exchange_over(ring_of(0), 0, 0); }
static void test_threads_with_views_of_their_own(void) { exchange_over(ring_of(0), 0, 1); }
static void test_threads_of_a_named_ring(void) { exchange_over(ring_of(1), 1, 0); }

static void *wait_for_message(void *ring)
{
    uint8_t data[MAX_MESSAGE];
    return pl_ring_get(ring, data, NULL, 0, SOON) == -EBADF ? ring : NULL;
}

static void test_close_ends_the_waits_of_other_threads(void)
{
    pthread_t threads[3];
    void *done;
    struct pl_ring *ring = ring_of(0);
    for (int i = 0; i < 3; i++)
        CHECK(pthread_create(&threads[i], NULL, wait_for_message, ring) == 0);
    usleep(1000);
    pl_ring_close(ring);
    for (int i = 0; i < 3; i++)
        CHECK(pthread_join(threads[i], &done) == 0 && done == ring);
    ring_end(ring, 0);
}

CHECK_MAIN(RUN(test_threads_of_one_ring); RUN(test_threads_with_views_of_their_own);
           RUN(test_threads_of_a_named_ring); RUN(test_close_ends_the_waits_of_other_threads);)
