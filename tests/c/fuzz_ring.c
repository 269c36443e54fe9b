/* fuzz_ring.c -- a peer writes whatever it likes into a ring's memory between any two calls: no call reads or writes
 * outside of it, hands out more than max_message bytes, or does not return.
 *
 * With clang this is a libFuzzer target. With -DFUZZ_STANDALONE the program drives itself:
 *
 *     fuzz_ring 60        random inputs for 60 seconds
 *     fuzz_ring FILE...   replay inputs, such as the crash file that either one leaves behind
 *
 * An input is a byte that chooses the kind, and then steps of STEP_BYTES: what to do, where to scribble, a value. */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "ring.h"

#define STEP_BYTES 11
#define STEPS_MOST 64
#define CAPACITY 256u
#define MAX_MESSAGE 100u

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void require(int cond, const char *what)
{
    if (!cond) {
        fprintf(stderr, "fuzz_ring: %s\n", what);
        abort();
    }
}

static struct pl_ring *make(int named)
{
    char name[64];
    int rc;
    if (!named)
        return pl_ring_new(CAPACITY, MAX_MESSAGE, &rc);
    (void)snprintf(name, sizeof name, "pyloop-fuzz-%d", (int)getpid());
    struct pl_ring *ring = pl_ring_open(name, PL_ATTACH_OR_CREATE, CAPACITY, MAX_MESSAGE, &rc);
    (void)pl_ring_unlink(name);
    return ring;
}

/* Blocks of their exact sizes show ASan a byte too many. One that was adopted has the sizes that its memory says. */
static void get(struct pl_ring *ring, size_t exact_len)
{
    size_t most = pl_ring_max_message(ring);
    require(most <= pl_ring_capacity(ring), "messages longer than all there is");
    uint8_t *to = malloc(most), *exact = malloc(exact_len ? exact_len : 1);
    require(to != NULL && exact != NULL, "no memory");
    int64_t len = pl_ring_get(ring, to, exact, exact_len, 0);
    require(len <= (int64_t)most, "more than max_message");
    free(exact);
    free(to);
}

static void put(struct pl_ring *ring, const uint8_t *data, size_t len)
{
    uint8_t *from = malloc(len + 1);
    require(from != NULL, "no memory");
    memset(from, data[0], len + 1);
    int rc = pl_ring_put(ring, from, len, 0);
    require(rc == 0 || rc == -ETIMEDOUT || rc == PL_E_SHUT || rc == PL_E_CORRUPT ||
                (rc == PL_E_TOO_LONG && len > MAX_MESSAGE),
            "an outcome of put that the contract does not name");
    free(from);
}

/* Any word but those of the locks: whoever may write there can make others wait, and that is all. */
static void scribble(struct pl_ring *ring, uint64_t where, uint64_t value)
{
    uint64_t offset = where * 8 % (RING_DATA + CAPACITY);
    if (offset != REGION_LINE && offset != 2 * (uint64_t)REGION_LINE)
        (void)region_store(&ring->region, offset, value);
}

/* Positions that could be, mostly. */
static uint64_t likely(const uint8_t *data)
{
    uint64_t value;
    memcpy(&value, data, sizeof value);
    return data[0] % 4 ? value % (2 * CAPACITY) & ~(uint64_t)7 : value;
}

static void adopt_again(struct pl_ring *ring)
{
    int rc = 0;
    struct pl_ring *other = pl_ring_adopt(pl_ring_fd(ring), pl_ring_bell(ring), &rc);
    if (other)
        get(other, 0);
    else
        require(rc == PL_E_FOREIGN, "an outcome of adopt that the contract does not name");
    pl_ring_free(other);
}

static void take_step(struct pl_ring *ring, const uint8_t *data)
{
    switch (data[0] % 8) {
    case 0: put(ring, data + 2, data[1]); break;
    case 1: get(ring, data[1]); break;
    case 2: (void)pl_ring_arm_get(ring); break;
    case 3: (void)pl_ring_arm_put(ring, data[1]); break;
    case 4: (void)pl_ring_used(ring); break;
    case 5: adopt_again(ring); break;
    default: scribble(ring, data[1], likely(data + 2));
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (!size)
        return 0;
    struct pl_ring *ring = make(data[0] & 1);
    require(ring != NULL, "no ring");
    size_t left = (size - 1) / STEP_BYTES;
    left = left < STEPS_MOST ? left : STEPS_MOST;
    for (data++; left; left--, data += STEP_BYTES)
        take_step(ring, data);
    pl_ring_free(ring);
    return 0;
}

#ifdef FUZZ_STANDALONE

static uint8_t input[1 + STEP_BYTES * STEPS_MOST];
static size_t input_len;

static void keep_input(int number)
{
    FILE *out = fopen("crash-last-input", "wb");
    if (out) {
        fwrite(input, 1, input_len, out);
        fclose(out);
    }
    signal(number, SIG_DFL);
    raise(number);
}

const char *__asan_default_options(void);
const char *__asan_default_options(void) { return "abort_on_error=1:handle_abort=0"; }

static void run_random(long seconds)
{
    unsigned seed = (unsigned)time(NULL);
    unsigned long runs = 0;
    srandom(seed);
    for (time_t end = time(NULL) + seconds; time(NULL) < end; runs++) {
        input_len = 1 + (size_t)random() % STEPS_MOST * STEP_BYTES;
        for (size_t i = 0; i < input_len; i++)
            input[i] = (uint8_t)(random() >> 8);
        LLVMFuzzerTestOneInput(input, input_len);
    }
    printf("%lu inputs, seed %u\n", runs, seed);
}

static void replay(const char *name)
{
    FILE *in = fopen(name, "rb");
    require(in != NULL, "cannot open the file");
    input_len = fread(input, 1, sizeof input, in);
    fclose(in);
    LLVMFuzzerTestOneInput(input, input_len);
}

int main(int argc, char **argv)
{
    char *rest = "";
    long seconds = argc > 1 ? strtol(argv[1], &rest, 10) : 10;
    signal(SIGABRT, keep_input);
    if (argc <= 2 && !*rest)
        run_random(seconds);
    else
        for (int i = 1; i < argc; i++)
            replay(argv[i]);
    return 0;
}

#endif
