/* pyloop_feed.h -- the part of the contract for the feed: messages for everybody, in shared memory.
 *
 * The conventions of pyloop.h hold. */
#ifndef PYLOOP_FEED_H
#define PYLOOP_FEED_H

#include <stddef.h>
#include <stdint.h>

/* cffi: begin */

/* ---- a broadcast ring in shared memory --------------------------------------- */

/* Whoever publishes makes room by dropping the oldest records, whether they were read or not, so it waits for no
 * reader. Each reader has a cursor of its own, and learns how many it missed. A process that is killed at any point
 * leaves every record whole, and delays others by PL_LOCK_SLICE_NS at most. Any thread may call. */
#define PL_FEED_ALIGN 16 /* bytes: a record starts at a multiple */
#define PL_FEED_LEAST 4096
#define PL_FEED_MOST 1073741824
#define PL_FEED_PATIENCE_NS 1000000000 /* for the lock, which somebody may hold who was stopped, not killed */

struct pl_feed;

/* What stands in front of topic and message in a reader's copy; after them, padding. */
struct pl_feed_record {
    uint64_t number; /* counts the records of the feed */
    uint32_t topic_len, message_len;
};

/* One reader. Only one thread may use it at a time. */
struct pl_feed_cursor {
    uint64_t position, number; /* of the record that it reads next */
    uint64_t missed;           /* added to by pl_feed_read; whoever reports it sets it to 0 */
};

/* `capacity`: bytes of records, PL_FEED_LEAST..PL_FEED_MOST, rounded up to PL_FEED_ALIGN. 0, -EINVAL, -ENOMEM,
 * -ENOSPC, -EMFILE, -ENOSYS. The feed is nameless: others inherit it, or its fds. */
int pl_feed_new(uint64_t capacity, struct pl_feed **feed);

/* Make the one that is called `name`, or attach to it: then it has the capacity that its maker chose. 1: made; 0;
 * -EINVAL: not 1 to 200 bytes, or a slash; PL_E_FOREIGN; -EACCES: it is another user's; -ETIMEDOUT: another process
 * keeps the lock; -EINTR: call again; and as above. */
int pl_feed_open(const char *name, uint64_t capacity, struct pl_feed **feed);

/* Another process's, by its fds, which are copied. 0, PL_E_FOREIGN, and as above. */
int pl_feed_adopt(int fd, int bell, struct pl_feed **feed);

int pl_feed_unlink(const char *name); /* 0, -ENOENT, -EACCES, -EINVAL */
void pl_feed_free(struct pl_feed *feed);

/* In a forked child, before it has threads: have fds of its own. 0 or -errno. */
int pl_feed_forked(struct pl_feed *feed);

int pl_feed_fd(const struct pl_feed *feed);   /* for pl_feed_adopt elsewhere */
int pl_feed_bell(const struct pl_feed *feed); /* the same */
uint64_t pl_feed_capacity(const struct pl_feed *feed);
uint64_t pl_feed_most(const struct pl_feed *feed); /* bytes of a topic and a message together: a quarter of it */

/* 0; -EMSGSIZE; PL_E_CORRUPT; -ETIMEDOUT after PL_FEED_PATIENCE_NS, -EINTR: it was not published. */
int pl_feed_publish(struct pl_feed *feed, const uint8_t *topic, size_t topic_len,
                    const uint8_t *message, size_t message_len);

/* Set the cursor behind the newest record. 0 and errors as pl_feed_publish. */
int pl_feed_seek(struct pl_feed *feed, struct pl_feed_cursor *cursor);

/* Copy whole records, as many as fit into `len` bytes. Returns their bytes; 0: there are none, and the next one will
 * make each fd of pl_feed_watch readable; -EMSGSIZE: not one fits. */
int64_t pl_feed_read(struct pl_feed *feed, struct pl_feed_cursor *cursor, uint8_t *to, size_t len);

int pl_feed_watch(struct pl_feed *feed); /* an fd, the caller's, for one reader; or -EMFILE and its kin */
void pl_feed_quiet(int watch);           /* make it unreadable, before reading */

/* cffi: end */

#endif
