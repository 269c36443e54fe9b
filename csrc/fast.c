/* fast.c -- the table by which the fast path reaches the core. */
#include "pyloop.h"
#include "pyloop_api.h"

const struct pl_api *pl_api(void)
{
    static const struct pl_api api = {
        .version = PL_API_VERSION,
        .size = sizeof api,
        .event = sizeof(struct pl_event),
        .loop_turn = pl_loop_turn,
        .loop_skip = pl_loop_skip,
        .loop_wake = pl_loop_wake,
        .loop_events = pl_loop_events,
        .conn_send = pl_conn_send,
        .conn_write = pl_conn_write,
        .conn_admit = pl_conn_admit,
        .conn_wrap = pl_conn_wrap,
        .conn_feed = pl_conn_feed,
        .conn_receive = pl_conn_receive,
        .conn_pause = pl_conn_pause,
        .conn_resume = pl_conn_resume,
        .dgram_send = pl_dgram_send,
    };
    return &api;
}
