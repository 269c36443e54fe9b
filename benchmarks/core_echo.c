/* core_echo.c -- an echo server on the core alone, in C: what pyloop costs before there is any Python.
 *
 *     core_echo [--framing raw|lines|prefix4] [--buffered] [--udp]
 *
 * It calls what pyloop/ calls, in the same order: a tick, a walk over its events, a send for each message. Prints
 * "listening PORT", runs until SIGTERM. --buffered receives as a BufferedProtocol does; --udp echoes datagrams. */
#include "floor.h"

#include <stdbool.h>

#include "pyloop.h"

#define ROOM (64 * 1024)

static uint8_t room[ROOM];

struct server {
    struct pl_loop *loop;
    int group;
    bool buffered;
};

static void answer(const struct server *s, const struct pl_event *e)
{
    uint32_t len = 0;
    memcpy(&len, e->data - PL_DATAGRAM_HEAD, sizeof len);
    pl_dgram_send(s->loop, e->id, e->data, (size_t)(e->end - e->data),
                  e->data - PL_DATAGRAM_HEAD + sizeof len, len);
}

static void receive(const struct server *s, uint64_t id)
{
    int64_t n = pl_conn_receive(s->loop, id, room, ROOM);
    if (n > 0)
        pl_conn_write(s->loop, id, room, (size_t)n);
    else if (n == 0)
        pl_conn_close(s->loop, id);
}

static void serve(const struct server *s, const struct pl_event *e)
{
    switch (e->kind) {
    case PL_EV_MESSAGE: pl_conn_send(s->loop, e->id, e->data, (size_t)(e->end - e->data)); break;
    case PL_EV_DATAGRAM: answer(s, e); break;
    case PL_EV_READABLE: receive(s, e->id); break;
    case PL_EV_OPEN: pl_conn_readiness(s->loop, e->id, s->buffered); break;
    case PL_EV_EOF: pl_conn_close(s->loop, e->id); break;
    case PL_EV_FAULT: pl_conn_abort(s->loop, e->id, e->value); break;
    default: break;
    }
}

static struct pl_options options_for(const char *framing)
{
    struct pl_options options = {
        .framing = {.kind = PL_RAW, .max_size = 16u << 20},
        .close_timeout = 10000000000,
        .linger = 1000000000,
        .write_limit = 16u << 20,
        .high_water = 64 * 1024,
        .low_water = 16 * 1024,
        .flags = PL_NODELAY,
    };
    if (strcmp(framing, "lines") == 0)
        options.framing.kind = PL_LINES;
    if (strcmp(framing, "prefix4") == 0) {
        options.framing.kind = PL_PREFIX;
        options.framing.width = 4;
        options.framing.big = 1;
    }
    return options;
}

/* A bound datagram socket, entered into the loop. The same as listen_and_tell for the rest. */
static void open_udp(struct pl_loop *loop)
{
    struct sockaddr_in at = {.sin_family = AF_INET};
    socklen_t len = sizeof at;
    uint64_t id;
    at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK, 0);
    if (fd < 0 || bind(fd, (struct sockaddr *)&at, sizeof at) < 0 ||
        getsockname(fd, (struct sockaddr *)&at, &len) < 0 ||
        pl_dgram_open(loop, fd, 65536, &id) < 0 || pl_dgram_read(loop, id, 1) < 0) {
        perror("udp");
        exit(1);
    }
    printf("listening %d\n", ntohs(at.sin_port));
    fflush(stdout);
}

int main(int argc, char **argv)
{
    struct server s = {0};
    const char *framing = "raw";
    int error, udp = 0;
    for (int i = 1; i < argc; i++) {
        s.buffered |= strcmp(argv[i], "--buffered") == 0;
        udp |= strcmp(argv[i], "--udp") == 0;
        if (strcmp(argv[i], "--framing") == 0 && i + 1 < argc)
            framing = argv[++i];
    }
    struct pl_options options = options_for(framing);
    s.loop = pl_loop_new(PL_EPOLL, &error);
    if (!s.loop || (s.group = pl_group_new(s.loop, &options, NULL)) < 0) {
        fputs("no loop\n", stderr);
        return 1;
    }
    if (!udp)
        pl_listener_open(s.loop, s.group, listen_and_tell());
    else
        open_udp(s.loop);
    pl_loop_enter(s.loop);
    const struct pl_event *events = pl_loop_events(s.loop);
    while (!stopped) {
        int n = pl_loop_turn(s.loop, -1, 0);
        for (int i = 0; i < n; i++)
            serve(&s, &events[i]);
    }
    pl_loop_leave(s.loop);
    return pl_loop_free(s.loop) < 0;
}
