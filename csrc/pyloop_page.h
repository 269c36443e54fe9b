/* pyloop_page.h -- the part of the contract that lies in memory which processes share: counters, the page.
 *
 * The conventions of pyloop.h hold. */
#ifndef PYLOOP_PAGE_H
#define PYLOOP_PAGE_H

#include <stddef.h>
#include <stdint.h>

/* cffi: begin */

/* ---- counters --------------------------------------------------------- */

#define PL_COUNTERS_VERSION 3

/* Fixed width, only ever written by the loop's thread, through a pointer: it may lie
 * in shared memory. One struct per group. */
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
};

#define PL_LAG_BUCKETS 26

/* The same for a loop. */
struct pl_loop_counters {
    uint32_t version;       /* PL_COUNTERS_VERSION */
    uint32_t size;          /* sizeof(struct pl_loop_counters) */
    uint64_t ticks;         /* calls of pl_loop_tick */
    uint64_t events;        /* events returned */
    uint64_t wait_ns;       /* time spent in the poller */
    uint64_t busy_ns;       /* time between two waits */
    uint64_t wakes;         /* waits ended by pl_loop_wake */
    uint64_t running_since; /* CLOCK_MONOTONIC when the last wait ended, or pl_loop_enter; 0 while it waits, or
                               nobody runs it */
    uint64_t lag[PL_LAG_BUCKETS]; /* [i]: turns whose busy time was below 2^i microseconds and not below
                                     2^(i-1); the last one has all the longer ones too */
    uint64_t callbacks;     /* that the caller ran, as it told pl_loop_turn */
    uint64_t bytes_in;      /* received from the kernel, by all conns and dgrams */
    uint64_t bytes_out;     /* the kernel took of them */
    /* system calls, by what they are for */
    uint64_t waits;         /* of the poller */
    uint64_t accepts;       /* accept4; the last of a burst finds nobody */
    uint64_t receives;      /* recv, read, recvmmsg */
    uint64_t sends;         /* send, sendmsg, writev, sendmmsg */
    uint64_t watches;       /* epoll_ctl; to select and poll a change of interest is none */
};

/* ---- the page: counters of many processes in one piece of shared memory ---- */

/* `len` bytes of zeroes named `name` (for /proc only) that this process and those that inherit the fd may map: a
 * memfd sealed against resizing, so no process can make another's access fail with SIGBUS; all of it is
 * allocated now. The fd (>= 3, CLOEXEC), mapped shared at *data; -ENOMEM, -ENOSPC, -EFBIG, -EMFILE, -ENFILE,
 * -EINVAL (no length, or a name of more than 249 bytes); nothing stays open then.
 * Elsewhere than on Linux an unlinked shm_open(3) object, unsealed. Source: memfd_create(2), fcntl(2). */
int pl_memory_new(const char *name, size_t len, void **data);

/* Map `len` bytes of such an fd, shared, for reading or for both. 0; -EINVAL: it is shorter than that, or
 * could be made so; -EBADF; -EACCES (writable, of an fd that is not); -ENOMEM. Source: mmap(2). */
int pl_memory_map(int fd, size_t len, int writable, void **data);
void pl_memory_unmap(void *data, size_t len);

enum pl_cell_state {
    PL_CELL_FREE = 0,     /* no process; its counters stay, and go on with the next one */
    PL_CELL_STARTING = 1,
    PL_CELL_READY = 2,    /* accepting */
    PL_CELL_LEAVING = 3   /* it has stopped accepting */
};

/* One process's part of a page. Its counters are written by that process only, the rest by the parent;
 * `state` by both. struct pl_page.servers structs pl_counters follow it, one for each server. */
struct pl_cell {
    uint32_t state;    /* enum pl_cell_state */
    int32_t pid;
    uint32_t worker;   /* number of the worker, 0 for the only one */
    uint32_t starts;   /* processes that have had this cell */
    uint64_t since_ns; /* CLOCK_MONOTONIC when this one was started */
    struct pl_loop_counters loop;
};

#define PL_PAGE_VERSION 1
#define PL_PAGE_LABEL 128

struct pl_page {
    uint32_t version; /* PL_PAGE_VERSION */
    uint32_t cells;   /* how many cells follow */
    uint32_t servers; /* structs pl_counters in each */
    uint32_t stride;  /* bytes from one cell to the next */
    uint64_t size;    /* bytes of the whole page */
    int32_t pid;      /* of the parent: supervisor, acceptor, or the only process */
    uint32_t used;    /* cells beyond this one have never been in use */
    uint64_t since_ns;/* CLOCK_MONOTONIC when the page was made */
    uint64_t started; /* processes started, beyond the first of each worker too */
    uint64_t exited;  /* ended with status 0 */
    uint64_t failed;  /* with another status */
    uint64_t killed;  /* by a signal */
    uint64_t hung;    /* killed because their loop did not turn for worker_timeout */
    uint64_t recycled;/* replaced at max_rss, max_lifetime or max_messages */
    uint64_t reloads; /* reloads completed */
    uint8_t label[PL_PAGE_LABEL]; /* what is served, for people: UTF-8, ends with 0 */
};

/* cffi: end */

#endif
