/* group.c -- groups (what the conns of a server share) and their listeners, and when accepting rests.
 *
 * Three reasons to rest, which do not know each other: a group is at max_connections (`full`, until one of its
 * conns closes), or above its share of what several processes accept (`yield`, a moment), or the process is
 * short of fds or memory (`accept_at`, all listeners). */
#include <errno.h>
#include <stdlib.h>

#include "loop.h"
#include "sock.h"

struct group *group_get(const struct pl_loop *loop, int64_t number)
{
    if (number < 0 || number >= loop->groups_cap)
        return NULL;
    struct group *g = loop->groups[number];
    return g && !g->closed ? g : NULL;
}

static int group_place(struct pl_loop *loop, struct group *g)
{
    for (uint32_t i = loop->groups_used; i < loop->groups_cap; i++)
        if (!loop->groups[i]) {
            loop->groups[i] = g;
            loop->groups_used = i + 1;
            return (int)i;
        }
    uint32_t cap = loop->groups_cap ? loop->groups_cap * 2 : 8;
    struct group **groups = realloc(loop->groups, cap * sizeof(*groups));
    if (!groups)
        return -ENOMEM;
    for (uint32_t i = loop->groups_cap; i < cap; i++)
        groups[i] = NULL;
    int number = (int)loop->groups_cap;
    groups[number] = g;
    loop->groups = groups;
    loop->groups_cap = cap;
    loop->groups_used = (uint32_t)number + 1;
    return number;
}

int pl_group_new(struct pl_loop *loop, const struct pl_options *options,
                 struct pl_counters *counters)
{
    int rc = loop_guard(loop);
    if (rc < 0 || (rc = pl_framing_check(&options->framing)) < 0)
        return rc;
    struct group *g = calloc(1, sizeof *g);
    if (!g)
        return -ENOMEM;
    g->options = *options;
    g->counters = counters ? counters : &g->own;
    g->counters->version = PL_COUNTERS_VERSION;
    g->counters->size = sizeof *counters;
    g->loop_counters = &loop->counters;
    rc = group_place(loop, g);
    if (rc < 0)
        free(g);
    else
        g->number = (uint32_t)rc;
    return rc;
}

static void free_if_unused(struct pl_loop *loop, struct group *g)
{
    if (!g->closed || g->records)
        return;
    loop->groups[g->number] = NULL;
    if (g->number < loop->groups_used)
        loop->groups_used = g->number;
    free(g);
}

int pl_group_free(struct pl_loop *loop, int group)
{
    int rc = loop_guard(loop);
    if (rc < 0 && rc != PL_E_FORKED)
        return rc;
    struct group *g = group_get(loop, group);
    if (!g)
        return -EINVAL;
    for (uint32_t i = 0; i < loop->listeners_cap; i++)
        if (loop->listeners[i].fd >= 0 && loop->listeners[i].group == g->number)
            listener_drop(loop, i);
    g->counters = &g->own; /* the caller's memory may go now */
    g->closed = 1;
    free_if_unused(loop, g);
    return 0;
}

int pl_group_release(struct pl_loop *loop, int group)
{
    int rc = loop_guard(loop);
    if (rc < 0)
        return rc;
    struct group *g = NULL; /* closed ones as well */
    if (group >= 0 && (uint32_t)group < loop->groups_cap)
        g = loop->groups[group];
    if (!g || !g->handed)
        return -EINVAL;
    loop->now = sock_now();
    g->handed--;
    group_release(loop, g);
    group_forget(loop, g);
    return 0;
}

/* ---- listeners ---- */

static uint32_t listener_interest(const struct pl_loop *loop, const struct listener *l)
{
    const struct group *g = loop->groups[l->group];
    if (loop->accept_at || g->full || g->yield == YIELDING)
        return 0;
    return g->page ? PL_READ | POLLER_EXCLUSIVE : PL_READ;
}

static int listener_update(struct pl_loop *loop, uint32_t number)
{
    const struct listener *l = &loop->listeners[number];
    return watch_set(loop, l->fd, OWNER_LISTENER, number, listener_interest(loop, l));
}

static int listener_place(struct pl_loop *loop)
{
    for (uint32_t i = 0; i < loop->listeners_cap; i++)
        if (loop->listeners[i].fd < 0)
            return (int)i;
    uint32_t cap = loop->listeners_cap + 8;
    struct listener *listeners = realloc(loop->listeners, cap * sizeof *listeners);
    if (!listeners)
        return -ENOMEM;
    for (uint32_t i = loop->listeners_cap; i < cap; i++)
        listeners[i].fd = -1;
    int number = (int)loop->listeners_cap;
    loop->listeners = listeners;
    loop->listeners_cap = cap;
    return number;
}

int pl_listener_open(struct pl_loop *loop, int group, int fd)
{
    int rc = loop_guard(loop);
    if (rc < 0)
        return rc;
    if (!group_get(loop, group))
        return -EINVAL;
    if (fd >= 0 && fd < loop->fds_cap && loop->fds[fd].owner != OWNER_NONE)
        return -EEXIST;
    if ((rc = sock_set_nonblocking(fd, 1)) < 0 || (rc = listener_place(loop)) < 0)
        return rc;
    uint32_t number = (uint32_t)rc;
    loop->listeners[number] = (struct listener){fd, (uint32_t)group};
    rc = listener_update(loop, number);
    if (rc < 0)
        loop->listeners[number].fd = -1;
    return rc;
}

void listener_drop(struct pl_loop *loop, uint32_t number)
{
    watch_forget(loop, loop->listeners[number].fd);
    loop->listeners[number].fd = -1;
}

int pl_listener_close(struct pl_loop *loop, int fd)
{
    int rc = loop_guard(loop);
    if (rc < 0 && rc != PL_E_FORKED)
        return rc;
    for (uint32_t i = 0; i < loop->listeners_cap; i++)
        if (fd >= 0 && loop->listeners[i].fd == fd) {
            listener_drop(loop, i);
            return 0;
        }
    return -ENOENT;
}

/* ---- resting ---- */

/* A listener whose interest cannot be set now (epoll_ctl: ENOMEM) makes accepting rest again. */
static void update_listeners(struct pl_loop *loop)
{
    int failed = 0;
    for (uint32_t i = 0; i < loop->listeners_cap; i++)
        if (loop->listeners[i].fd >= 0 && listener_update(loop, i) < 0)
            failed = 1;
    if (failed)
        loop->accept_at = loop->now + ACCEPT_PAUSE_NS;
}

void group_pause(struct pl_loop *loop, struct group *g, bool full)
{
    if (g->full == full)
        return;
    g->full = full;
    update_listeners(loop);
}

void accepting_pause(struct pl_loop *loop)
{
    loop->accept_at = loop->now + ACCEPT_PAUSE_NS;
    update_listeners(loop);
}

void accepting_resume(struct pl_loop *loop)
{
    loop->accept_at = 0;
    update_listeners(loop);
}

void group_add(struct group *g)
{
    g->conns++;
    g->records++;
    g->counters->open++;
}

void group_release(struct pl_loop *loop, struct group *g)
{
    g->conns--;
    g->counters->open--;
    if (!g->closed && g->full && g->conns < g->options.max_connections)
        group_pause(loop, g, false);
    if (loop->accept_at)
        loop->accept_at = loop->now; /* an fd came back: no need to rest longer */
}

void group_forget(struct pl_loop *loop, struct group *g)
{
    g->records--;
    free_if_unused(loop, g);
}

/* ---- sharing ---- */

static bool has_listener(const struct pl_loop *loop, const struct group *g)
{
    for (uint32_t i = 0; i < loop->listeners_cap; i++)
        if (loop->listeners[i].fd >= 0 && loop->listeners[i].group == g->number)
            return true;
    return false;
}

static bool page_fits(const struct pl_page *head, size_t len)
{
    uint64_t least = sizeof(struct pl_cell) + (uint64_t)head->servers * sizeof(struct pl_counters);
    return head->version == PL_PAGE_VERSION && head->stride >= least && head->stride % 8 == 0 &&
           sizeof *head + (uint64_t)head->cells * head->stride <= len;
}

int pl_group_share(struct pl_loop *loop, int group, const struct pl_page *page, size_t len,
                   uint32_t server)
{
    int rc = loop_guard(loop);
    if (rc < 0)
        return rc;
    struct group *g = group_get(loop, group);
    if (!g || len < sizeof *page)
        return -EINVAL;
    if (has_listener(loop, g))
        return -EBUSY;
    const struct pl_page head = *(const volatile struct pl_page *)page; /* read once */
    if (!page_fits(&head, len) || server >= head.servers)
        return -EINVAL;
    g->page = page;
    g->page_server = server;
    g->page_cells = head.cells;
    g->page_stride = head.stride;
    return 0;
}

/* Nonsense in the page makes this answer wrong, and no more: who yields in vain is late by a moment. */
static bool is_above_share(const struct group *g)
{
    const uint8_t *cells = (const uint8_t *)(g->page + 1);
    uint32_t used = *(const volatile uint32_t *)&g->page->used;
    uint64_t open = 0, ready = 0;
    for (uint32_t i = 0; i < used && i < g->page_cells; i++) {
        const struct pl_cell *cell = (const void *)(cells + (size_t)i * g->page_stride);
        const struct pl_counters *counters = (const void *)(cell + 1);
        if (cell->state != PL_CELL_READY)
            continue;
        open += counters[g->page_server].open & UINT32_MAX;
        ready++;
    }
    return (uint64_t)g->conns * 8 * ready > (open + 2 * ready) * 9; /* a few more are no matter */
}

bool group_yields(struct pl_loop *loop, struct group *g)
{
    bool done = g->yield == YIELD_DONE;
    g->yield = YIELD_NO;
    if (done || !is_above_share(g))
        return false;
    g->yield = YIELDING;
    if (!loop->yield_at)
        loop->yield_at = loop->now + ACCEPT_YIELD_NS;
    update_listeners(loop);
    return true;
}

void yields_end(struct pl_loop *loop)
{
    loop->yield_at = 0;
    for (uint32_t i = 0; i < loop->groups_cap; i++)
        if (loop->groups[i] && loop->groups[i]->yield == YIELDING)
            loop->groups[i]->yield = YIELD_DONE;
    update_listeners(loop);
}
