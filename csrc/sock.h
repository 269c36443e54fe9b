/* sock.h -- every socket system call, and O_NONBLOCK by fcntl. Each returns >= 0 or -errno, read on the line
 * after the call; EINTR of a call that does not block is retried here. close is never repeated: on Linux the
 * fd is gone whatever close says. */
#ifndef PYLOOP_SOCK_H
#define PYLOOP_SOCK_H

#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>
#include <sys/uio.h>

int sock_set_nonblocking(int fd, int on); /* F_GETFL, then F_SETFL when it differs */
int sock_is_nonblocking(int fd);          /* 1 or 0 */

/* accept4(SOCK_NONBLOCK | SOCK_CLOEXEC), or accept and fcntl. The fd, >= 3 always; *addr and *addr_len as accept gave
 * them. -EAGAIN when nobody waits; -ECONNABORTED: this one left while it was queued. */
int sock_accept(int fd, struct sockaddr_storage *addr, socklen_t *addr_len);

int64_t sock_receive(int fd, uint8_t *data, size_t len);            /* 0: end of stream */
int64_t sock_read(int fd, uint8_t *data, size_t len);               /* the same from a pipe */

int sock_is_readable(int fd); /* now, or broken: 1 or 0 */

/* One send or sendmsg, MSG_NOSIGNAL; of a pipe, which must be O_NONBLOCK, writev. */
int64_t sock_send(int fd, const struct iovec *iov, int n, int is_pipe);

struct packet { /* a datagram on its way out or in */
    void *addr;        /* of the receiver, or room for the sender's */
    uint32_t addr_len; /* 0: there is none */
    uint8_t *data;
    size_t len;        /* of the data; before receiving: of the room */
    int cut;           /* received: was it longer than the room? */
};

#define PACKETS_MAX 64 /* to be sent or received at once */

/* Send 1 to PACKETS_MAX packets in as few calls as the system can. How many were sent, which is less than n when
 * the next one cannot be, or is to be asked about again; or -errno of the first. */
int sock_send_packets(int fd, const struct packet *packets, int n);

/* Receive as many as there are, at most n (1 to PACKETS_MAX). Their number; *error is what ended it, 0 or -errno but
 * EAGAIN. */
int sock_receive_packets(int fd, struct packet *packets, int n, int *error);

int sock_name(int fd, struct sockaddr_storage *addr, socklen_t *addr_len); /* the local address; 0 */
int sock_shutdown_write(int fd);
int sock_set_nodelay(int fd); /* -EOPNOTSUPP and its kin for what is no TCP socket: 0 */
void sock_reset_on_close(int fd); /* SO_LINGER 0: close sends a reset */
void sock_reset_now(int fd);      /* the same before close, where the system can; else an end in both directions */
void sock_close(int fd);

/* `fd` if it is >= 3, else a copy that is (F_DUPFD_CLOEXEC), with the original closed; -errno then leaves it open. */
int sock_above_stdio(int fd);

int64_t sock_now(void); /* CLOCK_MONOTONIC, ns */

#endif
