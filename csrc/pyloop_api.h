/* pyloop_api.h -- the contract with the fast path: the functions of the core that it calls, in one table.
 *
 * pyloop._core hands out its address (pl_api), and pyloop._fastpath, which is another extension module, looks at
 * version and sizes before it calls anything. The functions are those of pyloop.h, under their names. */
#ifndef PYLOOP_API_H
#define PYLOOP_API_H

#include <stddef.h>
#include <stdint.h>

#define PL_API_VERSION 3

struct pl_loop;
struct pl_event;
struct pl_wrap;

struct pl_api {
    uint32_t version; /* PL_API_VERSION */
    uint32_t size;    /* of this struct */
    uint32_t event;   /* of struct pl_event */
    int (*loop_turn)(struct pl_loop *loop, int64_t timeout_ns, uint32_t callbacks);
    int (*loop_skip)(struct pl_loop *loop);
    int (*loop_wake)(struct pl_loop *loop);
    struct pl_event *(*loop_events)(struct pl_loop *loop);
    int (*conn_send)(struct pl_loop *loop, uint64_t id, const uint8_t *data, size_t len);
    int (*conn_write)(struct pl_loop *loop, uint64_t id, const uint8_t *data, size_t len);
    int (*conn_admit)(struct pl_loop *loop, uint64_t id, size_t waiting);
    int (*conn_wrap)(struct pl_loop *loop, uint64_t id, const uint8_t *data, size_t len,
                     struct pl_wrap *wrap);
    int (*conn_feed)(struct pl_loop *loop, uint64_t id, const uint8_t *data, size_t len, int eof);
    int64_t (*conn_receive)(struct pl_loop *loop, uint64_t id, uint8_t *data, size_t len);
    int (*conn_pause)(struct pl_loop *loop, uint64_t id);
    int (*conn_resume)(struct pl_loop *loop, uint64_t id);
    int (*dgram_send)(struct pl_loop *loop, uint64_t id, const uint8_t *data, size_t len,
                      const uint8_t *addr, size_t addr_len);
};

/* cffi: begin */

/* ---- the fast path ---------------------------------------------------------- */

/* The table of csrc/pyloop_api.h, constant for as long as the core is loaded. */
const struct pl_api *pl_api(void);

/* cffi: end */

#endif
