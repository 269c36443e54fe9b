/* out.h -- a queue on its way to a socket. */
#ifndef PYLOOP_OUT_H
#define PYLOOP_OUT_H

#include "buf.h"

/* Offer the front of the queue to the kernel, once; what it took, *sent bytes, is off the queue. 1: all that was
 * offered; 0: less, the kernel is full; -errno; PL_E_TRUNCATED: a mapped piece is no longer in its file. */
int out_send(struct queue *q, struct chunk_pool *pool, int fd, int is_pipe, size_t *sent);

#endif
