/* pyloop_parts.h -- the part of the contract that needs no loop: framing, the reader, a blocking socket, FdSet,
 * O_NONBLOCK.
 *
 * The conventions of pyloop.h hold. */
#ifndef PYLOOP_PARTS_H
#define PYLOOP_PARTS_H

#include <stddef.h>
#include <stdint.h>

/* cffi: begin */

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

/* ---- a socket whose own thread waits for it (models thread and fork) ------ */

enum pl_came {
    PL_CAME_INPUT = 1,  /* bytes were received into the reader */
    PL_CAME_ROOM = 2,   /* the kernel takes output again, or the socket has failed: send tells */
    PL_CAME_END = 4,    /* the peer's end of stream */
    PL_CAME_WAKE = 8,   /* wake_fd was readable, and has been emptied */
    PL_CAME_HANGUP = 16 /* reset, or closed in both directions, while neither input nor room was wanted */
};

/* Wait at most timeout_ns until `fd` is as `wanted` says (PL_CAME_INPUT, PL_CAME_ROOM, both or 0) or wake_fd (an
 * eventfd or a pipe, non-blocking; -1: none) is readable; then receive once, at most 64 KiB behind the reader's
 * contents, *received bytes. Never blocks in the receive, whatever O_NONBLOCK says. fd -1: only the wake.
 * Several PL_CAME_* together; 0 when the time has passed; -EINTR, -EAGAIN: nothing yet, call again with the time
 * that is left (Python runs its signal handlers in between); -ECONNRESET and its kin; -EBADF; -ENOMEM. One thread a
 * reader. */
int pl_reader_receive(struct pl_reader *r, int fd, uint32_t wanted, int wake_fd, int64_t timeout_ns,
                      size_t *received);

/* Hand bytes to the kernel without waiting. How many it took; -EAGAIN: none now; -EPIPE, -ECONNRESET. */
int64_t pl_socket_send(int fd, const uint8_t *data, size_t len);

int pl_socket_shutdown(int fd); /* SHUT_WR. 0 or -errno */

/* End the connection at once, whoever waits for it: the peer of a TCP socket is reset now, that of another one sees the
 * end. The fd stays open, good for nothing but to be closed. */
void pl_socket_reset(int fd);

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

/* Have the kernel send this process signal `number` when the thread that forked it ends; 0: no more. Says nothing
 * of a parent that has gone already. 0; -EINVAL; -ENOSYS elsewhere than on Linux. Source: prctl(2). */
int pl_orphan_signal(int number);

/* ---- listening sockets that share a port ------------------------------------- */

/* Steer new connections to the `first` sockets of the SO_REUSEPORT group of listening socket `fd`, in the order of
 * their listen calls, at random; 0: to all of them again, by the kernel's hash. 0; -ENOSYS elsewhere than
 * on Linux; -errno. Source: socket(7), SO_ATTACH_REUSEPORT_CBPF. */
int pl_reuseport_steer(int fd, uint32_t first);

/* How many connections wait to be accepted on a listening TCP socket; -ENOSYS, -errno.
 * Source: tcp(7), TCP_INFO. */
int pl_listener_queued(int fd);

/* ---- the build -------------------------------------------------------------- */

/* The compiler that built the core, and its version. Constant. */
const char *pl_compiler(void);

/* cffi: end */

#endif
