/* pyloop.h -- the contract between the C core and Python.
 *
 * Everything that Python may see stands between the two markers below, and
 * build_ffi.py hands those lines to cffi: there is no second copy of them.
 *
 * Conventions
 *   - A function that can fail returns >= 0, or -errno, or a PL_E_* number
 *     (all below -4096, so they never meet an errno).
 *   - Lengths are bytes, times are nanoseconds of CLOCK_MONOTONIC; a time-out of
 *     -1 is "no end", of 0 "do not wait". In options, 0 switches a limit off.
 *   - A conn is named by a 64-bit id: slot in the low half, generation in the
 *     high half. A stale id is refused with -ESTALE, as is a NULL loop: a conn may outlive it.
 *   - Thread rule: only pl_loop_wake and the reading of counters may be called
 *     from any thread. Everything else compares the caller with the thread that
 *     runs the loop (PL_E_THREAD); while nobody runs it, any one thread may call.
 *   - Fork rule: in a child of the process that made a loop, functions that let go
 *     (pl_watch with interest 0, pl_listener_close, pl_conn_close, pl_conn_abort,
 *     pl_loop_free) forget the record and close the fd, nothing else, and succeed;
 *     all others return PL_E_FORKED.
 */
#ifndef PYLOOP_H
#define PYLOOP_H

#include <stddef.h>
#include <stdint.h>

/* cffi: begin */

/* ---- errors of our own ------------------------------------------------ */

enum pl_error {
    PL_E_TOO_LONG = -4097,     /* a message over the framing's max_size */
    PL_E_MALFORMED = -4098,    /* a prefix or netstring that cannot be right */
    PL_E_INCOMPLETE = -4099,   /* end of stream in the middle of a message */
    PL_E_TERMINATOR = -4100,   /* payload to send contains the terminator */
    PL_E_RANGE = -4101,        /* payload to send does not fit the prefix */
    PL_E_SIZE = -4102,         /* payload to send is not of FixedSize's length */
    PL_E_IDLE = -4103,         /* nothing whole arrived or left for idle_timeout */
    PL_E_MESSAGE_TIME = -4104, /* a message took longer than message_timeout */
    PL_E_WRITE_LIMIT = -4105,  /* more than write_limit was queued */
    PL_E_THREAD = -4106,       /* called from another thread than the loop's */
    PL_E_FORKED = -4107        /* the loop belongs to another process */
};

/* ---- framing: the rule that cuts a stream into messages ------------------ */

enum pl_framing_kind {
    PL_RAW = 0,     /* what one receive gave */
    PL_LINES = 1,   /* ends with \n; one \r before it is dropped */
    PL_DELIM = 2,   /* ends with sep */
    PL_PREFIX = 3,  /* an unsigned length of `width` bytes, then the message */
    PL_VARINT = 4,  /* the length as LEB128, at most 10 bytes */
    PL_FIXED = 5,   /* every message is max_size bytes */
    PL_NETSTRING = 6 /* "12:hello world!," */
};

#define PL_SEP_MAX 64 /* bytes in a separator, at most */

struct pl_framing {
    uint32_t kind;     /* enum pl_framing_kind */
    uint16_t width;    /* PL_PREFIX: 1, 2, 4 or 8 */
    uint8_t big;       /* PL_PREFIX: 1 = most significant byte first */
    uint8_t sep_len;   /* PL_DELIM: 1..PL_SEP_MAX */
    uint64_t max_size; /* bytes of a message without terminator and prefix */
    uint8_t sep[64];   /* PL_DELIM */
};

/* What goes before and after a payload on the wire. */
struct pl_wrap {
    uint8_t head[24];
    uint8_t tail[64];
    uint32_t head_len;
    uint32_t tail_len;
};

/* Check that `f` is usable. 0, or -EINVAL. */
int pl_framing_check(const struct pl_framing *f);

/* Fill `wrap` for a payload of `len` bytes. 0, or PL_E_TOO_LONG, PL_E_TERMINATOR,
 * PL_E_RANGE, PL_E_SIZE. Reads the payload only for Lines and Delimited. */
int pl_framing_wrap(const struct pl_framing *f, const uint8_t *data, size_t len,
                    struct pl_wrap *wrap);

/* ---- reader: framing without a loop (ReadBuffer, blocking connections) ---- */

struct pl_reader;

/* A new, empty reader, or NULL when memory is short. */
struct pl_reader *pl_reader_new(void);
void pl_reader_free(struct pl_reader *r);

/* Append `len` bytes. 0 or -ENOMEM (then nothing was appended). */
int pl_reader_feed(struct pl_reader *r, const uint8_t *data, size_t len);

/* Room for `len` bytes behind the contents, to receive into: borrowed until the
 * next call on the reader. NULL when memory is short. */
uint8_t *pl_reader_reserve(struct pl_reader *r, size_t len);

/* `len` bytes of the reserved room were filled. 0, or -EINVAL when it was less. */
int pl_reader_commit(struct pl_reader *r, size_t len);

/* The contents: borrowed until the next call on the reader. */
const uint8_t *pl_reader_data(const struct pl_reader *r);
size_t pl_reader_len(const struct pl_reader *r);

/* Drop `len` bytes from the front. 0, or -EINVAL when there are fewer. */
int pl_reader_consume(struct pl_reader *r, size_t len);

/* Cut one message off the front. 1: *data and *len say where it is, borrowed until
 * the next call; 0: more bytes are needed; PL_E_TOO_LONG, PL_E_MALFORMED: nothing
 * was consumed. PL_RAW gives all there is. The search goes on where the last call
 * with an equal framing stopped. */
int pl_reader_next(struct pl_reader *r, const struct pl_framing *f, const uint8_t **data,
                   size_t *len);

/* As pl_reader_next, at end of stream: 1 for the unterminated last line of Lines,
 * 0 when nothing is left, PL_E_INCOMPLETE, PL_E_TOO_LONG. */
int pl_reader_finish(struct pl_reader *r, const struct pl_framing *f, const uint8_t **data,
                     size_t *len);

/* ---- FdSet: fd_set and its macros ------------------------------------- */

struct pl_fdset;

struct pl_fdset *pl_fdset_new(void); /* empty (FD_ZERO), or NULL */
void pl_fdset_free(struct pl_fdset *s);
int pl_fdset_size(void);                            /* FD_SETSIZE */
int pl_fdset_add(struct pl_fdset *s, int fd);       /* FD_SET; 0, or -EBADF outside 0..size-1 */
int pl_fdset_discard(struct pl_fdset *s, int fd);   /* FD_CLR; likewise */
int pl_fdset_contains(const struct pl_fdset *s, int fd); /* FD_ISSET; 1, 0 or -EBADF */
void pl_fdset_clear(struct pl_fdset *s);            /* FD_ZERO */
void pl_fdset_copy(struct pl_fdset *to, const struct pl_fdset *from);
int pl_fdset_highest(const struct pl_fdset *s);     /* the highest fd, or -1 */

/* select(2) over up to three sets (NULL = none), changed in place. The count of ready
 * descriptors over all sets, 0 on time-out, or -errno: -EBADF, -EINTR (sets unchanged). */
int pl_fdset_select(struct pl_fdset *read, struct pl_fdset *write, struct pl_fdset *error,
                    int64_t timeout_ns);

/* F_GETFL, then F_SETFL with O_NONBLOCK on or off, only when it differs. 0 or -errno. */
int pl_set_nonblocking(int fd, int on);
int pl_is_nonblocking(int fd); /* 1, 0 or -errno */

/* ---- counters --------------------------------------------------------- */

#define PL_COUNTERS_VERSION 1

/* Fixed width, only ever written by the loop's thread, through a pointer: it may lie
 * in shared memory. One struct per group, one for the loop itself. */
struct pl_counters {
    uint32_t version;           /* PL_COUNTERS_VERSION */
    uint32_t size;              /* sizeof(struct pl_counters) */
    uint64_t accepted;          /* conns accepted or opened */
    uint64_t open;              /* conns open now (a gauge) */
    uint64_t refused;           /* accepted, but closed at once: no room for the fd */
    uint64_t accept_pauses;     /* times accepting paused: EMFILE and its kin */
    uint64_t messages_in;       /* messages cut */
    uint64_t messages_out;      /* sends and writes queued */
    uint64_t bytes_in;          /* bytes received from the kernel */
    uint64_t bytes_out;         /* bytes the kernel took */
    uint64_t framing_errors;    /* conns closed for a bad message */
    uint64_t timeouts;          /* conns closed for idleness or a slow message */
    uint64_t write_limit_aborts;/* conns aborted for unread output */
    uint64_t aborts;            /* conns aborted, for whatever reason */
    uint64_t dropped;           /* sends to a closing or lost conn */
    uint64_t ticks;             /* loop only, from here on: calls of pl_loop_tick */
    uint64_t events;            /* events returned */
    uint64_t wait_ns;           /* time spent in the poller */
    uint64_t busy_ns;           /* time between two waits */
    uint64_t wakes;             /* waits ended by pl_loop_wake */
};

/* ---- the loop --------------------------------------------------------- */

enum pl_backend {
    PL_AUTO = 0,
    PL_SELECT = 1,
    PL_POLL = 2,
    PL_EPOLL = 3
};

enum pl_interest {
    PL_READ = 1,
    PL_WRITE = 2
};

enum pl_event_kind {
    PL_EV_NONE = 0,     /* taken back by pl_conn_hold: skip it */
    PL_EV_MESSAGE = 1,  /* data..end is one message */
    PL_EV_READ = 2,     /* watcher: fd `slot` is readable (or has failed) */
    PL_EV_WRITE = 3,    /* watcher: fd `slot` is writable (or has failed) */
    PL_EV_BOTH = 4,     /* watcher: both */
    PL_EV_OPEN = 5,     /* a conn was accepted for group `value`; data..end is the peer's
                           struct sockaddr */
    PL_EV_EOF = 6,      /* end of stream; value 1: because of pl_conn_drain */
    PL_EV_FAULT = 7,    /* value is PL_E_*: reading has stopped; close or abort it now */
    PL_EV_RESUME = 8,   /* queued output fell to the low-water mark */
    PL_EV_CIPHER = 9,   /* data..end was received on a PL_TLS conn */
    PL_EV_LOST = 10,    /* the last event of this id; value is 0, -errno or PL_E_*.
                           The id stays valid until the next tick */
    PL_EV_REFUSED = 11, /* an accepted fd of group `slot` was closed at once; value is -errno
                           (-ERANGE: at or above FD_SETSIZE on select) */
    PL_EV_BADFD = 12,   /* watcher of fd `slot` dropped: closed behind the loop's back */
    PL_EV_SIGNAL = 13   /* value is a signal number, from the wakeup fd */
};

#define PL_EVENTS_MAX 4096 /* events in a batch, at most */

struct pl_event {
    uint64_t id;
    uint32_t kind;       /* enum pl_event_kind */
    uint32_t slot;       /* low half of id; for watchers the fd; for PL_EV_REFUSED the group */
    const uint8_t *data; /* borrowed until the next tick */
    const uint8_t *end;  /* one past the last byte */
    int32_t value;
    uint32_t head;       /* PL_EV_MESSAGE: bytes of prefix before data on the wire */
};

struct pl_loop;

/* A loop of its own. `backend` is enum pl_backend. NULL on failure, with -errno in *error
 * (-EINVAL: no such backend; -ENOSYS: not on this platform). */
struct pl_loop *pl_loop_new(int backend, int *error);

/* Close every conn without ceremony, and free everything. 0, or -EBUSY while a thread
 * runs the loop. */
int pl_loop_free(struct pl_loop *loop);

/* The calling thread runs the loop from now on, or no longer. 0, -EBUSY, PL_E_FORKED. */
int pl_loop_enter(struct pl_loop *loop);
int pl_loop_leave(struct pl_loop *loop);

/* One turn: flush, wait at most timeout_ns, gather, return. The number of events in the
 * batch (see pl_loop_events), which replaces the one before (0 also when a signal came), or
 * -errno of the poller, or PL_E_THREAD, PL_E_FORKED. */
int pl_loop_tick(struct pl_loop *loop, int64_t timeout_ns);

/* The batch's events: one address for the loop's whole life. */
struct pl_event *pl_loop_events(struct pl_loop *loop);

/* Hand queued output to the kernel now. 0 or PL_E_*. Errors become events. */
int pl_loop_flush(struct pl_loop *loop);

/* End a wait early, now or the next one. Any thread, any signal handler. 0 or -errno. */
int pl_loop_wake(struct pl_loop *loop);

int pl_loop_signal_fd(const struct pl_loop *loop); /* for signal.set_wakeup_fd; owned by loop */
int pl_loop_backend(const struct pl_loop *loop);   /* in use now: enum pl_backend */
int pl_loop_pid(const struct pl_loop *loop);       /* the process that made it */
const struct pl_counters *pl_loop_counters(const struct pl_loop *loop);

/* Watch any fd: interest is PL_READ | PL_WRITE, 0 stops watching. The fd stays the
 * caller's. 0; -EBADF; -ERANGE (on select: fd >= FD_SETSIZE); -EEXIST (a conn's or listener's
 * fd); -ENOMEM; -ENOSPC; PL_E_THREAD, PL_E_FORKED. */
int pl_watch(struct pl_loop *loop, int fd, uint32_t interest);

/* ---- groups, listeners, conns ------------------------------------------ */

enum pl_flag {
    PL_NODELAY = 1, /* set TCP_NODELAY on accepted conns */
    PL_TLS = 2      /* ciphertext: events are PL_EV_CIPHER, plaintext enters by pl_conn_feed */
};

/* What the conns of one server, or one client conn, share. Copied by pl_group_new. */
struct pl_options {
    struct pl_framing framing;
    int64_t idle_timeout;    /* ns since the last whole message came or output left; 0 = none */
    int64_t message_timeout; /* ns from a message's first byte to its last; 0 = none */
    int64_t close_timeout;   /* ns that a closing conn waits for the kernel to take output */
    int64_t linger;          /* ns that a closed conn waits for the peer's end of stream */
    uint64_t write_limit;    /* bytes queued beyond which a further send aborts; 0 = none */
    uint64_t high_water;     /* bytes queued above which sends return 1; 0: all are flushed at once */
    uint64_t low_water;      /* bytes queued at or below which PL_EV_RESUME comes */
    uint32_t max_connections;/* accepting pauses at this many; 0 = none */
    uint32_t flags;          /* enum pl_flag */
};

/* A new group; counters (borrowed until pl_group_free; version and size are set here) may
 * be NULL. Its number >= 0, -EINVAL, -ENOMEM. */
int pl_group_new(struct pl_loop *loop, const struct pl_options *options,
                 struct pl_counters *counters);

/* Close its listeners and give up the group. Its conns live on, counted nowhere. */
int pl_group_free(struct pl_loop *loop, int group);

/* Accept on `fd`, a bound and listening socket that stays the caller's, made
 * non-blocking here. 0, -EINVAL, or as pl_watch. */
int pl_listener_open(struct pl_loop *loop, int group, int fd);
int pl_listener_close(struct pl_loop *loop, int fd); /* 0 or -ENOENT */

/* A conn over `fd`, a connected stream socket. On success the loop owns the fd, *id is
 * set, no PL_EV_OPEN follows. On failure the fd stays the caller's: -EINVAL, -ENOMEM, or as
 * pl_watch. */
int pl_conn_open(struct pl_loop *loop, int group, int fd, uint64_t *id);

/* Queue one framed message; it leaves in the next flush. 0; 1 when queued output has just
 * passed the high-water mark although the kernel was offered it (PL_EV_RESUME follows);
 * -EPIPE when the conn is closing (counted as dropped), -ESTALE when it is gone; PL_E_WRITE_LIMIT:
 * the conn is aborted; PL_E_TOO_LONG, PL_E_TERMINATOR, PL_E_RANGE, PL_E_SIZE, -ENOMEM: nothing was queued. */
int pl_conn_send(struct pl_loop *loop, uint64_t id, const uint8_t *data, size_t len);

/* The same without framing; on a PL_TLS conn also without write_limit and uncounted, since records are no
 * messages: pl_conn_admit comes before each message. */
int pl_conn_write(struct pl_loop *loop, uint64_t id, const uint8_t *data, size_t len);

/* A message for a PL_TLS conn is about to be encrypted, and `waiting` bytes of plaintext wait for the
 * handshake. Counts it, or refuses as pl_conn_send: -ESTALE, -EPIPE, PL_E_WRITE_LIMIT. */
int pl_conn_admit(struct pl_loop *loop, uint64_t id, size_t waiting);

/* Close after flushing: shutdown(SHUT_WR), discard input until the peer's end of stream or
 * linger, close, PL_EV_LOST. Input not yet delivered is dropped. 0 or -ESTALE. */
int pl_conn_close(struct pl_loop *loop, uint64_t id);

/* Close now; queued output is lost and the peer is reset. PL_EV_LOST with `reason` (0, -errno,
 * PL_E_*) comes in the next batch. 0 or -ESTALE. */
int pl_conn_abort(struct pl_loop *loop, uint64_t id, int reason);

/* Half-close: shutdown(SHUT_WR) once the queue is flushed; reading goes on. 0, -ESTALE, -EPIPE. */
int pl_conn_shutdown(struct pl_loop *loop, uint64_t id);

/* Stop or resume reading. What is in the batch already must be held by pl_conn_hold. 0 or -ESTALE. */
int pl_conn_pause(struct pl_loop *loop, uint64_t id);
int pl_conn_resume(struct pl_loop *loop, uint64_t id);

/* Put event `index` of the current batch (a message, end of stream or fault) and those that
 * follow it for the same conn back to the front of the conn's in-buffer: their kind becomes
 * PL_EV_NONE, and they come again once the conn reads. 0, -EINVAL, -ESTALE, -ENOMEM. */
int pl_conn_hold(struct pl_loop *loop, uint32_t index);

/* Plaintext of a PL_TLS conn enters here and comes out framed in the next batch. `eof` marks its
 * end. 0, -ESTALE, -ENOMEM. */
int pl_conn_feed(struct pl_loop *loop, uint64_t id, const uint8_t *data, size_t len, int eof);

/* One last receive; whole messages are delivered, then PL_EV_EOF with value 1. 0 or -ESTALE. */
int pl_conn_drain(struct pl_loop *loop, uint64_t id);

int64_t pl_conn_queued(struct pl_loop *loop, uint64_t id); /* bytes queued to send, or -ESTALE */
int pl_conn_fd(struct pl_loop *loop, uint64_t id);         /* borrowed; or -ESTALE */

/* cffi: end */

#endif
