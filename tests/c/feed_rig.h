/* feed_rig.h -- feeds of both kinds, and readers that check what they read.
 *
 * A message of the tests is a topic of `number % 7` bytes and a message of some more, all of which say the
 * number, so whatever was torn or mixed up is found. */
#ifndef FEED_RIG_H
#define FEED_RIG_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "pyloop.h"

#define RIG_BYTES 4096

struct reader {
    struct pl_feed_cursor cursor;
    uint8_t copy[RIG_BYTES];
    uint64_t heard; /* records */
    int torn;
};

static inline void rig_name(char *name, size_t len, const char *what)
{
    (void)snprintf(name, len, "pyloop-test-%s-%d", what, (int)getpid());
}

static inline int rig_make(struct pl_feed **feed, int named, const char *what)
{
    char name[64];
    rig_name(name, sizeof name, what);
    (void)pl_feed_unlink(name);
    return named ? pl_feed_open(name, RIG_BYTES, feed) : pl_feed_new(RIG_BYTES, feed);
}

static inline void rig_free(struct pl_feed *feed, int named, const char *what)
{
    char name[64];
    rig_name(name, sizeof name, what);
    pl_feed_free(feed);
    if (named)
        (void)pl_feed_unlink(name);
}

static inline size_t rig_topic_len(uint64_t number) { return number % 7; }
static inline size_t rig_message_len(uint64_t number) { return number * 37 % 700; }

/* 0 or what pl_feed_publish says. */
static inline int rig_publish(struct pl_feed *feed, uint64_t number)
{
    uint8_t topic[8], message[700];
    memset(topic, (int)(number & 255), sizeof topic);
    memset(message, (int)(number * 3 & 255), sizeof message);
    return pl_feed_publish(feed, topic, rig_topic_len(number), message, rig_message_len(number));
}

static inline int is_whole(const struct pl_feed_record *head, const uint8_t *bytes)
{
    uint64_t n = head->number;
    if (head->topic_len != rig_topic_len(n) || head->message_len != rig_message_len(n))
        return 0;
    for (size_t i = 0; i < head->topic_len; i++)
        if (bytes[i] != (n & 255))
            return 0;
    for (size_t i = 0; i < head->message_len; i++)
        if (bytes[head->topic_len + i] != (n * 3 & 255))
            return 0;
    return 1;
}

/* Read once: the records of it, or what pl_feed_read says. */
static inline int64_t rig_read(struct pl_feed *feed, struct reader *reader, size_t len)
{
    int64_t n = pl_feed_read(feed, &reader->cursor, reader->copy, len), records = 0;
    for (int64_t at = 0; at < n; records++) {
        struct pl_feed_record head;
        memcpy(&head, reader->copy + at, sizeof head);
        reader->torn |= !is_whole(&head, reader->copy + at + sizeof head);
        int64_t size = (int64_t)(sizeof head + head.topic_len + head.message_len);
        at += (size + PL_FEED_ALIGN - 1) / PL_FEED_ALIGN * PL_FEED_ALIGN;
    }
    reader->heard += (uint64_t)records;
    return n < 0 ? n : records;
}

/* Read all there is. 0 or what pl_feed_read says. */
static inline int64_t rig_read_all(struct pl_feed *feed, struct reader *reader)
{
    int64_t n;
    while ((n = rig_read(feed, reader, sizeof reader->copy)) > 0)
        ;
    return n;
}

#endif
