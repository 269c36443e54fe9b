/* feed.c -- the broadcast ring: each record for every reader, the oldest dropped for the newest.
 *
 *     line 0    | lock | tail | oldest | waiting |        positions only grow; a place is position % capacity
 *
 *     data      ... dropped | record | record | record | head, number only | free ...
 *                           ^ oldest                    ^ tail
 *
 * A record is a head (number, two lengths), topic, message, padding to 16. The head at `tail` has the number of
 * the record that comes next, so the store of `tail` commits all at once. One lock guards everything:
 *
 *     publish   lock, store oldest behind what must go, write, if anybody waits ring and stop waiting,
 *               store tail, unlock
 *     read      lock, copy what is new, or if there is nothing wait, unlock; cut the copy into records
 *
 * A publisher that is killed before it stores `tail` has published nothing, and whom it woke waits for the
 * lock, finds nothing, and waits again. Each position and length is read once and then checked: the memory may hold
 * anything. Does not know what a topic is. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "pyloop.h"
#include "region.h"
#include "step.h"

#define KIND 0x64656566u
#define VERSION 1u
#define LABEL "pyloop-bus"
#define TAIL (REGION_LINE + 8)
#define OLDEST (REGION_LINE + 16)
#define WAITING (REGION_LINE + 24)
#define DATA (2 * REGION_LINE)
#define HEAD sizeof(struct pl_feed_record)

struct pl_feed {
    struct region region;
    uint64_t capacity; /* as it was checked when it was attached */
};

struct state {
    uint64_t tail, oldest, waiting;
};

static uint64_t size_of(const struct pl_feed_record *head)
{
    uint64_t len = HEAD + (uint64_t)head->topic_len + head->message_len;
    return (len + PL_FEED_ALIGN - 1) / PL_FEED_ALIGN * PL_FEED_ALIGN;
}

/* ---- made, found, given up ---- */

static int fits(uint64_t capacity)
{
    return capacity >= PL_FEED_LEAST && capacity <= PL_FEED_MOST && capacity % PL_FEED_ALIGN == 0;
}

static struct region_head wanted(uint64_t capacity)
{
    if (capacity <= PL_FEED_MOST)
        capacity = (capacity + PL_FEED_ALIGN - 1) / PL_FEED_ALIGN * PL_FEED_ALIGN;
    return (struct region_head){
        .kind = KIND, .version = VERSION, .size = DATA + capacity, .params = {capacity}};
}

/* rc is what a region_* call said. */
static int finish(int rc, struct pl_feed *feed, const struct region_head *found,
                  struct pl_feed **result)
{
    feed->capacity = found->params[0];
    if (rc >= 0 && (!fits(feed->capacity) || found->size != DATA + feed->capacity)) {
        region_fini(&feed->region);
        rc = PL_E_FOREIGN;
    }
    if (rc < 0) {
        free(feed);
        return rc;
    }
    *result = feed;
    return rc;
}

int pl_feed_new(uint64_t capacity, struct pl_feed **result)
{
    struct region_head want = wanted(capacity);
    if (!fits(want.params[0]))
        return -EINVAL;
    struct pl_feed *feed = calloc(1, sizeof *feed);
    if (!feed)
        return -ENOMEM;
    return finish(region_new(&feed->region, LABEL, &want), feed, &want, result);
}

int pl_feed_open(const char *name, uint64_t capacity, struct pl_feed **result)
{
    struct region_head want = wanted(capacity), found = want;
    if (!fits(want.params[0]))
        return -EINVAL;
    struct pl_feed *feed = calloc(1, sizeof *feed);
    if (!feed)
        return -ENOMEM;
    int rc = region_open(&feed->region, name, PL_ATTACH_OR_CREATE, &want, &found);
    return finish(rc, feed, &found, result);
}

int pl_feed_adopt(int fd, int bell, struct pl_feed **result)
{
    struct region_head want = wanted(0), found = want;
    struct pl_feed *feed = calloc(1, sizeof *feed);
    if (!feed)
        return -ENOMEM;
    return finish(region_adopt(&feed->region, fd, bell, &want, &found), feed, &found, result);
}

int pl_feed_unlink(const char *name) { return region_unlink(name); }

void pl_feed_free(struct pl_feed *feed)
{
    if (feed) {
        region_fini(&feed->region);
        free(feed);
    }
}

int pl_feed_forked(struct pl_feed *feed) { return region_enter(&feed->region); }
int pl_feed_fd(const struct pl_feed *feed) { return feed->region.fd; }
int pl_feed_bell(const struct pl_feed *feed) { return feed->region.bell; }
uint64_t pl_feed_capacity(const struct pl_feed *feed) { return feed->capacity; }
uint64_t pl_feed_most(const struct pl_feed *feed) { return feed->capacity / 4; }

/* ---- bytes that may go on at the beginning ---- */

static int copy_out(struct pl_feed *feed, uint64_t position, void *to, uint64_t len)
{
    uint64_t at = position % feed->capacity, end = feed->capacity - at;
    uint64_t first = len < end ? len : end;
    int rc = region_read(&feed->region, DATA + at, to, first);
    if (rc < 0 || first == len)
        return rc;
    return region_read(&feed->region, DATA, (uint8_t *)to + first, len - first);
}

static int copy_in(struct pl_feed *feed, uint64_t position, const void *from, uint64_t len)
{
    if (!len)
        return 0; /* `from` may be NULL */
    uint64_t at = position % feed->capacity, end = feed->capacity - at;
    uint64_t first = len < end ? len : end;
    int rc = region_write(&feed->region, DATA + at, from, first);
    if (rc < 0 || first == len)
        return rc;
    return region_write(&feed->region, DATA, (const uint8_t *)from + first, len - first);
}

static int store(struct pl_feed *feed, uint64_t offset, uint64_t value)
{
    return region_store(&feed->region, offset, value);
}

/* ---- with the lock held ---- */

static int is_sound(const struct pl_feed *feed, const struct state *state)
{
    return state->oldest <= state->tail && state->tail - state->oldest <= feed->capacity - HEAD &&
           (state->tail | state->oldest) % PL_FEED_ALIGN == 0;
}

static int begin(struct pl_feed *feed, struct state *state)
{
    struct region *region = &feed->region;
    int rc = region_enter(region);
    if (rc < 0 || (rc = region_lock(region, 0, deadline_of(PL_FEED_PATIENCE_NS))) < 0)
        return rc;
    STEP();
    rc = region_read(region, TAIL, state, sizeof *state);
    if (rc == 0 && !is_sound(feed, state))
        rc = PL_E_CORRUPT;
    if (rc < 0)
        region_unlock(region, 0);
    return rc;
}

static int end(struct pl_feed *feed, int rc)
{
    region_unlock(&feed->region, 0);
    return rc;
}

/* Drop the oldest until a record of `size` bytes fits, and the next one's head. */
static int make_room(struct pl_feed *feed, struct state *state, uint64_t size)
{
    uint64_t oldest = state->oldest;
    while (state->tail - oldest + size + HEAD > feed->capacity) {
        struct pl_feed_record head;
        int rc = copy_out(feed, oldest, &head, HEAD);
        if (rc < 0)
            return rc;
        if (size_of(&head) > state->tail - oldest)
            return PL_E_CORRUPT;
        oldest += size_of(&head);
    }
    if (oldest == state->oldest)
        return 0;
    state->oldest = oldest;
    return store(feed, OLDEST, oldest);
}

/* Write a record at the tail, and the number of the next one behind it. */
static int write_record(struct pl_feed *feed, uint64_t tail, struct pl_feed_record *head,
                        const uint8_t *topic, const uint8_t *message)
{
    struct pl_feed_record next;
    int rc = copy_out(feed, tail, &next, HEAD);
    if (rc < 0)
        return rc;
    head->number = next.number++;
    next.topic_len = next.message_len = 0;
    if ((rc = copy_in(feed, tail, head, HEAD)) < 0 ||
        (rc = copy_in(feed, tail + HEAD, topic, head->topic_len)) < 0)
        return rc;
    STEP();
    if ((rc = copy_in(feed, tail + HEAD + head->topic_len, message, head->message_len)) < 0)
        return rc;
    return copy_in(feed, tail + size_of(head), &next, HEAD);
}

static int wake_readers(struct pl_feed *feed)
{
    int rc = region_ring(&feed->region);
    STEP();
    return rc < 0 ? rc : store(feed, WAITING, 0);
}

int pl_feed_publish(struct pl_feed *feed, const uint8_t *topic, size_t topic_len,
                    const uint8_t *message, size_t message_len)
{
    struct state state;
    if (topic_len > pl_feed_most(feed) || message_len > pl_feed_most(feed) - topic_len)
        return -EMSGSIZE;
    struct pl_feed_record head = {0, (uint32_t)topic_len, (uint32_t)message_len};
    int rc = begin(feed, &state);
    if (rc < 0)
        return rc;
    if ((rc = make_room(feed, &state, size_of(&head))) < 0)
        return end(feed, rc);
    STEP();
    if ((rc = write_record(feed, state.tail, &head, topic, message)) < 0)
        return end(feed, rc);
    STEP();
    if (state.waiting && (rc = wake_readers(feed)) < 0)
        return end(feed, rc);
    STEP();
    rc = store(feed, TAIL, state.tail + size_of(&head));
    STEP();
    return end(feed, rc);
}

/* ---- reading ---- */

/* Set the cursor to a record, and count those between the two as missed. */
static int skip_to(struct pl_feed *feed, struct pl_feed_cursor *cursor, uint64_t position)
{
    struct pl_feed_record head;
    int rc = copy_out(feed, position, &head, HEAD);
    if (rc < 0)
        return rc;
    if (head.number <= cursor->number)
        return PL_E_CORRUPT;
    cursor->missed += head.number - cursor->number;
    cursor->position = position;
    cursor->number = head.number;
    return 0;
}

int pl_feed_seek(struct pl_feed *feed, struct pl_feed_cursor *cursor)
{
    struct pl_feed_record head = {0};
    struct state state;
    int rc = begin(feed, &state);
    if (rc < 0)
        return rc;
    rc = copy_out(feed, state.tail, &head, HEAD);
    *cursor = (struct pl_feed_cursor){.position = state.tail, .number = head.number};
    return end(feed, rc);
}

/* What is new, up to `len` bytes; the last record may be cut short. */
static int64_t copy_new(struct pl_feed *feed, const struct state *state,
                        struct pl_feed_cursor *cursor, uint8_t *to, size_t len)
{
    int rc = 0;
    if (cursor->position > state->tail)
        return PL_E_CORRUPT;
    if (cursor->position < state->oldest && (rc = skip_to(feed, cursor, state->oldest)) < 0)
        return rc;
    uint64_t there = state->tail - cursor->position;
    if (there > len)
        there = len;
    rc = copy_out(feed, cursor->position, to, there);
    return rc < 0 ? rc : (int64_t)there;
}

/* Move the cursor over the whole records in a copy of `len` bytes, behind which the feed has `more`. */
static int64_t cut(struct pl_feed_cursor *cursor, const uint8_t *copy, uint64_t len, uint64_t more)
{
    uint64_t at = 0;
    while (len - at >= HEAD) {
        struct pl_feed_record head;
        memcpy(&head, copy + at, HEAD);
        if (head.number != cursor->number || size_of(&head) > len - at + more)
            return PL_E_CORRUPT;
        if (size_of(&head) > len - at)
            break;
        at += size_of(&head);
        cursor->number++;
    }
    cursor->position += at;
    return at ? (int64_t)at : -EMSGSIZE;
}

int64_t pl_feed_read(struct pl_feed *feed, struct pl_feed_cursor *cursor, uint8_t *to, size_t len)
{
    struct state state;
    int64_t n = begin(feed, &state);
    if (n < 0)
        return n;
    n = copy_new(feed, &state, cursor, to, len);
    STEP();
    if (n == 0 && cursor->position == state.tail && !state.waiting)
        n = store(feed, WAITING, 1);
    STEP();
    region_unlock(&feed->region, 0);
    if (n < 0 || cursor->position == state.tail)
        return n;
    return cut(cursor, to, (uint64_t)n, state.tail - cursor->position - (uint64_t)n);
}

int pl_feed_watch(struct pl_feed *feed)
{
    int rc = region_enter(&feed->region);
    return rc < 0 ? rc : region_latch(&feed->region);
}

void pl_feed_quiet(int watch) { (void)region_wait(watch, 0); }
