/* pyloop.h -- the contract between the C core and Python: the loop, and what holds for all of it.
 *
 * pyloop_datagram.h has its datagram sockets, pyloop_parts.h what works without a loop, pyloop_page.h counters and
 * their memory, pyloop_map.h mapped files, pyloop_memory.h locks, pyloop_semaphore.h semaphores, pyloop_ring.h queues
 * of messages, pyloop_feed.h messages for everybody. Everything that Python may see stands between the two markers in
 * these headers, and build_ffi.py hands those lines to cffi: there is no second copy of them.
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
 *     pl_dgram_close, pl_dgram_abort, pl_loop_free) forget the record and close the fd,
 *     if it is the core's, nothing else, and succeed; all others return PL_E_FORKED.
 */
#ifndef PYLOOP_H
#define PYLOOP_H

#include <stddef.h>
#include <stdint.h>

#include "pyloop_datagram.h"
#include "pyloop_feed.h"
#include "pyloop_map.h"
#include "pyloop_memory.h"
#include "pyloop_page.h"
#include "pyloop_parts.h"
#include "pyloop_ring.h"
#include "pyloop_semaphore.h"

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
    PL_E_FORKED = -4107,       /* the loop belongs to another process */
    PL_E_CORRUPT = -4108,      /* shared memory was truncated or written to by somebody else */
    PL_E_FOREIGN = -4109,      /* not made by pyloop, or by another version, or for something else */
    PL_E_SHUT = -4110          /* a channel that was shut down: no more can be put, all has been got */
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
    PL_EV_NONE = 0,     /* taken back by pl_conn_hold, or a send: skip it */
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
                           (-ERANGE: at or above FD_SETSIZE on select). id 1: it was not accepted, and
                           waits while accepting rests for want of fds or memory */
    PL_EV_BADFD = 12,   /* watcher (value 1) or listener of fd `slot` dropped: closed behind the loop's back */
    PL_EV_SIGNAL = 13,  /* value is a signal number, from the wakeup fd */
    PL_EV_ACCEPTED = 14,/* id is a connected, non-blocking fd, the caller's from now on, accepted for the
                           PL_HAND_OVER group `value`; data..end is the peer's struct sockaddr */
    PL_EV_READABLE = 15, /* pl_conn_readiness: call pl_conn_receive */
    PL_EV_DATAGRAM = 20,        /* a dgram received data..end; before it stand PL_DATAGRAM_HEAD bytes */
    PL_EV_DATAGRAM_ERROR = 21,  /* value is -errno: it could not receive, or a datagram was not sent */
    PL_EV_DATAGRAM_RESUME = 22, /* as PL_EV_RESUME, of a dgram */
    PL_EV_DATAGRAM_LOST = 23,   /* as PL_EV_LOST */
    PL_EV_DATAGRAM_CUT = 24     /* as PL_EV_DATAGRAM, of one that was longer: the rest is gone */
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

/* The same, and count the callbacks that the caller has run since the last one, unless it fails. */
int pl_loop_turn(struct pl_loop *loop, int64_t timeout_ns, uint32_t callbacks);

/* A turn that does not wait and could bring nothing, except that somebody has called pl_loop_wake or a signal came: it
 * is counted, without a system call. 1; 0: something is watched, due, queued or left to tell, or the caller may not
 * turn the loop, and pl_loop_turn says so. */
int pl_loop_skip(struct pl_loop *loop);

/* The batch's events: one address for the loop's whole life. */
struct pl_event *pl_loop_events(struct pl_loop *loop);

/* Hand queued output to the kernel now. 0 or PL_E_*. Errors become events. */
int pl_loop_flush(struct pl_loop *loop);

/* End a wait early, now or the next one. Any thread, any signal handler. 0 or -errno. */
int pl_loop_wake(struct pl_loop *loop);

int pl_loop_signal_fd(const struct pl_loop *loop); /* for signal.set_wakeup_fd; owned by loop */
int pl_loop_backend(const struct pl_loop *loop);   /* in use now: enum pl_backend */
int pl_loop_pid(const struct pl_loop *loop);       /* the process that made it */
const struct pl_loop_counters *pl_loop_counters(const struct pl_loop *loop);

/* Count into `counters`, which may lie in shared memory, from what stands there on; NULL: into the loop's own
 * again. Borrowed until the next such call has returned, or pl_loop_free. 0, PL_E_THREAD, PL_E_FORKED. */
int pl_loop_count_in(struct pl_loop *loop, struct pl_loop_counters *counters);

/* Watch any fd: interest is PL_READ | PL_WRITE, 0 stops watching. The fd stays the
 * caller's. 0; -EBADF; -ERANGE (on select: fd >= FD_SETSIZE); -EEXIST (a conn's or listener's
 * fd); -ENOMEM; -ENOSPC; PL_E_THREAD, PL_E_FORKED. */
int pl_watch(struct pl_loop *loop, int fd, uint32_t interest);

/* ---- groups, listeners, conns ------------------------------------------ */

enum pl_flag {
    PL_NODELAY = 1, /* set TCP_NODELAY on accepted conns */
    PL_TLS = 2,     /* ciphertext: events are PL_EV_CIPHER, plaintext enters by pl_conn_feed */
    PL_HAND_OVER = 4,/* accept only: the fds go to the caller by PL_EV_ACCEPTED, and count as conns of the
                       group until pl_group_release */
    PL_BORROWED = 8, /* a conn's fd is the caller's (an accepted one: from pl_conn_lend on), who closes it after
                       PL_EV_LOST. Closing is no more than to let go of it once output is flushed, to which more may be
                       added until then: no shutdown, no linger, no reset, no reading on */
    PL_PIPE = 16,    /* conns are pipes or character devices: read(2) and writev(2), the latter at once if nothing is
                       queued, since who reads may be the caller itself. The caller ignores SIGPIPE */
    PL_WRITE_ONLY = 32 /* readable means that nobody reads any more: PL_EV_LOST, -EPIPE if output is queued */
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

/* A handed-over fd of the group has been closed; also after pl_group_free, which keeps the number taken until
 * then. 0; -EINVAL: none is out; PL_E_THREAD, PL_E_FORKED. */
int pl_group_release(struct pl_loop *loop, int group);

/* Its listeners, all opened later, are shared with the processes that have cells in `page` (`len` bytes,
 * borrowed until pl_group_free), where the group is number `server`: a connection wakes one of them, and who
 * holds more than 9/8 of the mean of the ready ones (and two) lets a millisecond pass before it takes another.
 * 0; -EBUSY: it has listeners; -EINVAL: no such server, or no page of this version that fits into `len`;
 * PL_E_THREAD, PL_E_FORKED. Source: epoll_ctl(2), EPOLLEXCLUSIVE. */
int pl_group_share(struct pl_loop *loop, int group, const struct pl_page *page, size_t len,
                   uint32_t server);

/* Accept on `fd`, a bound and listening socket that stays the caller's, made
 * non-blocking here. 0, -EINVAL, or as pl_watch. */
int pl_listener_open(struct pl_loop *loop, int group, int fd);
int pl_listener_close(struct pl_loop *loop, int fd); /* 0 or -ENOENT */

/* A conn over `fd`, a connected stream socket. On success the loop owns the fd (PL_BORROWED: has the use of it), *id is
 * set, no PL_EV_OPEN follows. On failure the fd stays the caller's: -EINVAL, -ENOMEM, or as
 * pl_watch. */
int pl_conn_open(struct pl_loop *loop, int group, int fd, uint64_t *id);

/* Queue one framed message; it leaves in the next flush, or, if it is longer than 4,048 bytes, at once with what is
 * queued before it, as far as the kernel takes them. 0; 1 when queued output has just passed the high-water mark
 * although the kernel was offered it (PL_EV_RESUME follows); -EPIPE when the conn is closing (counted as dropped),
 * -ESTALE when it is gone; PL_E_WRITE_LIMIT: the conn is aborted; PL_E_TOO_LONG, PL_E_TERMINATOR, PL_E_RANGE,
 * PL_E_SIZE, -ENOMEM: nothing was queued. */
int pl_conn_send(struct pl_loop *loop, uint64_t id, const uint8_t *data, size_t len);

/* The same without framing; on a PL_TLS conn also without write_limit and uncounted, since records are no
 * messages: pl_conn_admit comes before each message. */
int pl_conn_write(struct pl_loop *loop, uint64_t id, const uint8_t *data, size_t len);

/* Queue [start, start + len) of a mapping by reference, as a message or (framed 0) as it is: what leaves is what
 * stands there when it is flushed. As pl_conn_send, and PL_E_PAYLOAD for PL_LINES and PL_DELIM; -EINVAL beyond
 * the mapping, and for PL_TLS. If the file loses the bytes meanwhile, the conn is aborted with PL_E_TRUNCATED. */
int pl_conn_send_mapped(struct pl_loop *loop, uint64_t id, struct pl_mapping *m, size_t start,
                        size_t len, int framed);

/* A message for a PL_TLS conn is about to be encrypted, and `waiting` bytes of plaintext wait for the
 * handshake or the turn's end. Counts it, also as output that leaves, or refuses as pl_conn_send: -ESTALE,
 * -EPIPE, PL_E_WRITE_LIMIT. */
int pl_conn_admit(struct pl_loop *loop, uint64_t id, size_t waiting);

/* What stands before and after a message of the conn, as pl_framing_wrap says it; -ESTALE. */
int pl_conn_wrap(struct pl_loop *loop, uint64_t id, const uint8_t *data, size_t len,
                 struct pl_wrap *wrap);

/* Close after flushing: shutdown(SHUT_WR), discard input until the peer's end of stream or
 * linger, close, PL_EV_LOST. Input not yet delivered is dropped. 0; -ESTALE; 1: let go in a forked child, and no event
 * follows; 2: closed, and PL_EV_LOST will only say so (PL_BORROWED with nothing queued, or no memory). */
int pl_conn_close(struct pl_loop *loop, uint64_t id);

/* Close now; queued output is lost and the peer is reset. PL_EV_LOST with `reason` (0, -errno,
 * PL_E_*) comes in the next batch. As pl_conn_close. */
int pl_conn_abort(struct pl_loop *loop, uint64_t id, int reason);

/* The fd of a conn that was accepted for a PL_BORROWED group: the caller's from now on, if it was not already.
 * The fd; -ESTALE; -EINVAL. */
int pl_conn_lend(struct pl_loop *loop, uint64_t id);

/* Close the socket of a conn that was lent, and is lost, or was never told to anybody. Its local address is written to
 * `name`, as much as there is room for. How many bytes that is; 0: it has none. Any thread. */
size_t pl_lent_close(int fd, uint8_t *name, size_t room);

/* The slot of the conn over `fd`. -ENOENT: there is none; PL_E_THREAD, PL_E_FORKED. */
int64_t pl_conn_slot(struct pl_loop *loop, int fd);

/* `only`: input is not received; PL_EV_READABLE says, with every tick, that there is some. What was held before
 * comes as PL_EV_MESSAGE first. 0: receive again. 0 or -ESTALE. */
int pl_conn_readiness(struct pl_loop *loop, uint64_t id, int only);

/* One receive of a readiness conn, straight into data[0..len), len > 0. The count; 0 at end of stream, which no event
 * tells again; -EAGAIN; -ESTALE; -errno, after which PL_EV_LOST tells it too. */
int64_t pl_conn_receive(struct pl_loop *loop, uint64_t id, uint8_t *data, size_t len);

/* Make it a conn of another group, with that one's marks and limits; flags and framing must be the same. 0; 1: more
 * is queued than its high-water mark (PL_EV_RESUME follows); -ESTALE, -EINVAL. */
int pl_conn_regroup(struct pl_loop *loop, uint64_t id, int group);

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
