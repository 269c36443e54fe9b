/* floor_ring.c -- what two processes and their two CPUs can do at most: one copies messages into a ring in shared
 * memory, the other one copies them out. No locks, no lengths, no sleeping, nobody else: the floor under Channel.
 *
 *     floor_ring SIZE SECONDS CPU CPU           one way; prints messages per second
 *     floor_ring SIZE SECONDS CPU CPU --echo    there and back, one at a time; prints round trips per second
 */
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define RING_BYTES (1u << 20) /* as much as a Channel has */
#define LOOKS 1000            /* at the other's mark before the CPU is offered to others */
#define BATCH 64              /* messages between two looks at the clock */

struct ring {
    _Alignas(64) _Atomic(uint64_t) tail;
    _Alignas(64) _Atomic(uint64_t) head;
    _Alignas(64) uint8_t data[RING_BYTES];
};

static size_t size;
static uint64_t slots;
static uint8_t *message; /* this process's own */

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

static void pin(int cpu)
{
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(cpu, &set);
    sched_setaffinity(0, sizeof set, &set);
}

/* Until *mark is another one than `old`. */
static void await(_Atomic(uint64_t) *mark, uint64_t old)
{
    for (int i = 0; atomic_load_explicit(mark, memory_order_acquire) == old; i++)
        if (i % LOOKS == LOOKS - 1)
            sched_yield();
}

static void put(struct ring *ring)
{
    uint64_t tail = atomic_load_explicit(&ring->tail, memory_order_relaxed);
    if (tail >= slots)
        await(&ring->head, tail - slots);
    memcpy(ring->data + tail % slots * size, message, size);
    atomic_store_explicit(&ring->tail, tail + 1, memory_order_release);
}

static void get(struct ring *ring)
{
    uint64_t head = atomic_load_explicit(&ring->head, memory_order_relaxed);
    await(&ring->tail, head);
    memcpy(message, ring->data + head % slots * size, size);
    atomic_store_explicit(&ring->head, head + 1, memory_order_release);
}

static void serve(struct ring *rings, int echo)
{
    for (;;) {
        if (echo)
            get(&rings[1]);
        put(&rings[0]);
    }
}

static double measure(struct ring *rings, double seconds, int echo)
{
    uint64_t count = 0;
    double start = now(), spent = 0;
    for (; spent < seconds; spent = now() - start)
        for (int i = 0; i < BATCH; i++, count++) {
            if (echo)
                put(&rings[1]);
            get(&rings[0]);
        }
    return (double)count / spent;
}

int main(int argc, char **argv)
{
    if (argc < 5) {
        fprintf(stderr, "usage: floor_ring SIZE SECONDS CPU CPU [--echo]\n");
        return 2;
    }
    size = strtoul(argv[1], NULL, 10);
    slots = size ? RING_BYTES / size : 0;
    struct ring *rings = mmap(NULL, 2 * sizeof *rings, PROT_READ | PROT_WRITE,
                              MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    message = calloc(1, size);
    if (!slots || !message || rings == MAP_FAILED)
        return 2;
    pid_t child = fork();
    if (child < 0)
        return 2;
    if (child == 0) {
        pin(atoi(argv[3]));
        serve(rings, argc > 5);
    }
    pin(atoi(argv[4]));
    printf("%.0f\n", measure(rings, strtod(argv[2], NULL), argc > 5));
    kill(child, SIGKILL);
    waitpid(child, NULL, 0);
    return 0;
}
