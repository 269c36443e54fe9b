/* share_rig.h -- two loops in one process, on one listener, each counting in its cell of a page. */
#ifndef SHARE_RIG_H
#define SHARE_RIG_H

#include <sys/resource.h>

#include "loop.h"
#include "loop_rig.h"

#define WORKERS 2

static struct pl_page *page;
static size_t page_len;
static struct pl_loop *loops[WORKERS]; /* loops[0] is `loop` */
static int groups[WORKERS];
static struct sockaddr_in addr;
static int listener;

static inline struct pl_cell *cell_of(int number)
{
    uint8_t *at = (uint8_t *)(page + 1);
    return (struct pl_cell *)(void *)(at + (size_t)number * page->stride);
}

static inline struct pl_counters *counters_of(int number)
{
    return (struct pl_counters *)(void *)(cell_of(number) + 1);
}

static inline int page_open(uint32_t cells)
{
    void *data;
    uint32_t stride = sizeof(struct pl_cell) + sizeof(struct pl_counters);
    page_len = sizeof *page + (size_t)cells * stride;
    int fd = pl_memory_new("pyloop-test", page_len, &data);
    if (fd < 0)
        return fd;
    close(fd);
    page = data;
    page->version = PL_PAGE_VERSION;
    page->cells = page->used = cells;
    page->servers = 1;
    page->stride = stride;
    page->size = page_len;
    for (int i = 0; i < (int)cells; i++)
        cell_of(i)->state = PL_CELL_READY;
    return 0;
}

static inline int join(int number, uint32_t max_connections)
{
    int error;
    struct pl_options o = options_of(PL_LINES);
    o.max_connections = max_connections;
    loops[number] = pl_loop_new(backend, &error);
    if (!loops[number])
        return error;
    groups[number] = pl_group_new(loops[number], &o, counters_of(number));
    int rc = pl_group_share(loops[number], groups[number], page, page_len, 0);
    return rc < 0 ? rc : pl_listener_open(loops[number], groups[number], listener);
}

/* What tick() and its kin are about. */
static inline void lead(int number)
{
    loop = loops[number];
    events = pl_loop_events(loop);
    batch_n = 0;
}

/* Two loops on one listener. */
static inline int shared_open(void)
{
    clock_stands = 0;
    int rc = page_open(WORKERS);
    if (rc < 0 || (listener = tcp_listen(&addr)) < 0)
        return rc < 0 ? rc : -1;
    pl_set_nonblocking(listener, 1);
    for (int i = 0; i < WORKERS; i++)
        if ((rc = join(i, 0)) < 0)
            return rc;
    lead(0);
    return 0;
}

static inline void shared_end(void)
{
    for (int i = 0; i < WORKERS; i++)
        if (loops[i])
            pl_loop_free(loops[i]);
    memset(loops, 0, sizeof loops);
    loop = NULL;
    close(listener);
    pl_memory_unmap(page, page_len);
}

static inline void connect_many(int *clients, int n)
{
    for (int i = 0; i < n; i++)
        clients[i] = tcp_connect(&addr);
}

static inline void close_many(int *clients, int n)
{
    for (int i = 0; i < n; i++)
        close(clients[i]);
}

static inline uint64_t accepted(void) { return counters_of(0)->accepted + counters_of(1)->accepted; }

/* Set the core's clock: what happens meanwhile takes no time. */
/* Until the next shared_open time stands still then, however long the machine takes for what follows. */
static inline void set_clock(int64_t now) { clock_stands = now; }

/* Alone against one who has nothing: the sixth conn is the first above 9/8 of the mean and two. */
#define FAIR 6

#endif
