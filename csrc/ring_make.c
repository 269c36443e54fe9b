/* ring_make.c -- rings: made, found by name, taken over from another process, let go. ring.c has the messages. */
#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

#include "ring.h"

#define KIND 1u
#define VERSION 1u

enum param {
    CAPACITY,
    MAX_MESSAGE
};

static int is_shape(uint64_t capacity, uint64_t max_message)
{
    return capacity <= PL_RING_CAPACITY_MAX && capacity % 8 == 0 && max_message >= 1 &&
           max_message < capacity && record_bytes(max_message) <= capacity;
}

/* What the region says is copied once, here, and has to agree with how long it is. */
static int take_shape(struct pl_ring *ring, const struct region_head *found)
{
    ring->capacity = found->params[CAPACITY];
    ring->max_message = found->params[MAX_MESSAGE];
    int fits = is_shape(ring->capacity, ring->max_message) &&
               found->size == RING_DATA + ring->capacity;
    return fits ? 0 : PL_E_FOREIGN;
}

static struct region_head head_of(uint64_t capacity, uint64_t max_message)
{
    struct region_head head = {.version = VERSION, .kind = KIND, .size = RING_DATA + capacity};
    head.params[CAPACITY] = capacity;
    head.params[MAX_MESSAGE] = max_message;
    return head;
}

/* Its region was made or found with `rc`; *outcome becomes that, or what is wrong with it. */
static struct pl_ring *finish(struct pl_ring *ring, int rc, const struct region_head *found,
                              int *outcome)
{
    if (rc >= 0 && (*outcome = take_shape(ring, found)) < 0)
        region_fini(&ring->region);
    else
        *outcome = rc;
    if (*outcome < 0) {
        free(ring);
        return NULL;
    }
    ring->spins = sysconf(_SC_NPROCESSORS_ONLN) > 1;
    return ring;
}

static struct pl_ring *begin(int *error)
{
    struct pl_ring *ring = calloc(1, sizeof *ring);
    *error = ring ? 0 : -ENOMEM;
    return ring;
}

struct pl_ring *pl_ring_new(uint64_t capacity, uint64_t max_message, int *error)
{
    struct region_head want = head_of(capacity, max_message);
    if (!is_shape(capacity, max_message)) {
        *error = -EINVAL;
        return NULL;
    }
    struct pl_ring *ring = begin(error);
    if (!ring)
        return NULL;
    return finish(ring, region_new(&ring->region, "pyloop-channel", &want), &want, error);
}

struct pl_ring *pl_ring_open(const char *name, int create, uint64_t capacity, uint64_t max_message,
                             int *outcome)
{
    struct region_head found, want = head_of(capacity, max_message);
    if (create != PL_ATTACH && !is_shape(capacity, max_message)) {
        *outcome = -EINVAL;
        return NULL;
    }
    struct pl_ring *ring = begin(outcome);
    if (!ring)
        return NULL;
    int rc = region_open(&ring->region, name, (enum pl_create)create, &want, &found);
    return finish(ring, rc, &found, outcome);
}

struct pl_ring *pl_ring_adopt(int fd, int bell, int *error)
{
    struct region_head found, want = head_of(0, 0);
    struct pl_ring *ring = begin(error);
    if (!ring)
        return NULL;
    return finish(ring, region_adopt(&ring->region, fd, bell, &want, &found), &found, error);
}

void pl_ring_free(struct pl_ring *ring)
{
    if (ring)
        region_fini(&ring->region);
    free(ring);
}

int pl_ring_unlink(const char *name) { return region_unlink(name); }
int pl_ring_fd(const struct pl_ring *ring) { return ring->region.fd; }
int pl_ring_bell(const struct pl_ring *ring) { return ring->region.bell; }
uint64_t pl_ring_capacity(const struct pl_ring *ring) { return ring->capacity; }
uint64_t pl_ring_max_message(const struct pl_ring *ring) { return ring->max_message; }
