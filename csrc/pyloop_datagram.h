/* pyloop_datagram.h -- the contract between the C core and Python: datagram sockets of a loop.
 *
 * A dgram is named by an id of the same make as a conn's, in a number space of its own. Its fd is borrowed: the
 * caller closes it after PL_EV_DATAGRAM_LOST. Unless said otherwise a function returns 0, -ESTALE (it is gone, or
 * loop is NULL), PL_E_THREAD or PL_E_FORKED; the rules of pyloop.h hold, and pl_dgram_close and pl_dgram_abort let go.
 * Source: recvmmsg(2), sendmmsg(2), udp(7), unix(7). */
#ifndef PYLOOP_DATAGRAM_H
#define PYLOOP_DATAGRAM_H

#include <stddef.h>
#include <stdint.h>

struct pl_loop;

/* cffi: begin */

/* ---- datagrams ---------------------------------------------------------- */

/* Before the data of PL_EV_DATAGRAM and PL_EV_DATAGRAM_CUT stand these bytes: the length of the sender's address
 * (uint32_t, 0: it has none), and its struct sockaddr, filled up with zeros. */
#define PL_DATAGRAM_HEAD 132
#define PL_DATAGRAM_MAX 262144 /* bytes of a datagram to receive, at most */
#define PL_DATAGRAM_OVERHEAD 8 /* what a queued datagram counts beyond its data */

/* A dgram over `fd`, a datagram socket. What it receives may have max_len bytes, at most PL_DATAGRAM_MAX. *id is
 * set. -EINVAL, or as pl_watch. */
int pl_dgram_open(struct pl_loop *loop, int fd, size_t max_len, uint64_t *id);

/* Receive, or (on = 0, and at first) do not. What is in the batch stays there. */
int pl_dgram_read(struct pl_loop *loop, uint64_t id, int on);

/* Queue a datagram for `addr`, a struct sockaddr (addr_len 0: for whom the socket is connected to). It leaves in
 * the next flush, a large one at once; what the kernel has against it comes as PL_EV_DATAGRAM_ERROR. 0; 1 when
 * queued output has just passed the high-water mark although the kernel was offered it (PL_EV_DATAGRAM_RESUME
 * follows); -EPIPE when it is closing; -EINVAL: no struct sockaddr is as long; -ENOMEM. Both are copied. */
int pl_dgram_send(struct pl_loop *loop, uint64_t id, const uint8_t *data, size_t len,
                  const uint8_t *addr, size_t addr_len);

/* Other marks than 65,536 and 16,384 bytes. 0, or 1 as pl_dgram_send. -EINVAL: low is above high. */
int pl_dgram_limit(struct pl_loop *loop, uint64_t id, uint64_t high_water, uint64_t low_water);

/* Stop receiving; PL_EV_DATAGRAM_LOST comes when the kernel has taken what is queued. Or (abort) at once, and
 * what is queued is dropped. */
int pl_dgram_close(struct pl_loop *loop, uint64_t id);
int pl_dgram_abort(struct pl_loop *loop, uint64_t id);

int64_t pl_dgram_queued(struct pl_loop *loop, uint64_t id); /* bytes queued, with PL_DATAGRAM_OVERHEAD for each */

/* cffi: end */

#endif
