/* load_args.c -- the load generator's options, each with its bounds.
 *
 * Only loopback addresses and Unix sockets are accepted: this tool is made to
 * find the limit of a server on the same machine, never of anybody else's.
 */
#include "load.h"

#include <arpa/inet.h>
#include <getopt.h>
#include <netinet/in.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/un.h>

#define MAX_DATAGRAM 65507

static const char usage[] =
    "usage: load (--port N [--host ADDR] | --path FILE) [options]\n"
    "  --port N          (repeatable: the connections take the ports in turn)\n"
    "  --host ADDR       127.x.x.x, ::1 or localhost (default 127.0.0.1)\n"
    "  --connections N   (default 50; churn: that many at once)\n"
    "  --size BYTES      of a message on the wire, terminator or prefix included (64)\n"
    "  --framing NAME    raw, lines, prefix2, prefix4 (raw)\n"
    "  --inflight N      messages in flight on each connection (1)\n"
    "  --warmup S        before the window (0.3)\n"
    "  --seconds S       length of the window (1), or until a message came; bound of a hold\n"
    "                    or churn (600)\n"
    "  --messages N      the window is N messages, not a time; --seconds is its bound\n"
    "  --warmup-messages N  before such a window (0)\n"
    "  --pieces BYTES    send each message in pieces of that size\n"
    "  --gap US          busy wait after each piece (0)\n"
    "  --file FILE       write the messages there, and ask for each by 8 bytes, its offset\n"
    "                    and its length, instead of sending it (framing raw)\n"
    "  --udp             a message is a datagram, from one of so many sockets; lost ones are\n"
    "                    counted and replaced (framing raw)\n"
    "  --hold            open, echo once each, print \"ready\", hold until stdin ends or\n"
    "                    SIGTERM; input on stdin asks for one more echo on every one\n"
    "  --churn N         connect, echo one message, close: N times\n"
    "  --silent          of a churn: no message; end the stream, wait for the server's end\n"
    "  --tls FILE        speak TLS with servers whose authority is in that file (PEM)\n"
    "  --pid PID         server whose CPU time is read at both ends of the window\n"
    "                    (repeatable)\n"
    "  --children        the CPU time of its children as well, living or reaped\n"
    "  --json            one JSON object on stdout instead of text\n"
    "Every byte that comes back is compared with what was sent. Exit status: 0 all\n"
    "echoes were right, 1 something failed, 2 bad arguments.\n";

static void __attribute__((noreturn, format(printf, 1, 2)))
die(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    fputs("load: ", stderr);
    vfprintf(stderr, format, args);
    fputc('\n', stderr);
    va_end(args);
    exit(2);
}

static double number(const char *name, const char *text, double low, double high)
{
    char *end;
    double value = strtod(text, &end);
    if (end == text || *end != '\0' || !(value >= low && value <= high)) {
        die("--%s must be a number from %.0f to %.0f, not '%s'", name, low, high, text);
    }
    return value;
}

static enum framing framing_named(const char *name)
{
    static const char *const names[] = {"raw", "lines", "prefix2", "prefix4"};
    for (int i = 0; i < 4; i++) {
        if (strcmp(name, names[i]) == 0) {
            return (enum framing)i;
        }
    }
    die("--framing must be raw, lines, prefix2 or prefix4, not '%s'", name);
}

static void address_inet(struct options *o, const char *host, int port)
{
    struct sockaddr_in *v4 = (struct sockaddr_in *)&o->addrs[o->naddrs];
    struct sockaddr_in6 *v6 = (struct sockaddr_in6 *)&o->addrs[o->naddrs++];
    o->target = host;
    if (strcmp(host, "localhost") == 0) {
        host = "127.0.0.1";
    }
    if (inet_pton(AF_INET, host, &v4->sin_addr) == 1 &&
        (ntohl(v4->sin_addr.s_addr) >> 24) == 127) {
        v4->sin_family = AF_INET;
        v4->sin_port = htons((uint16_t)port);
        o->addr_len = sizeof(*v4);
    } else if (inet_pton(AF_INET6, host, &v6->sin6_addr) == 1 &&
               IN6_IS_ADDR_LOOPBACK(&v6->sin6_addr)) {
        v6->sin6_family = AF_INET6;
        v6->sin6_port = htons((uint16_t)port);
        o->addr_len = sizeof(*v6);
    } else {
        die("--host must be a loopback address (127.x.x.x, ::1, localhost), not '%s'", host);
    }
}

static void address_unix(struct options *o, const char *path)
{
    struct sockaddr_un *sun = (struct sockaddr_un *)&o->addrs[o->naddrs++];
    size_t len = strlen(path);
    if (len == 0 || len >= sizeof(sun->sun_path)) {
        die("--path must be 1 to %zu bytes", sizeof(sun->sun_path) - 1);
    }
    sun->sun_family = AF_UNIX;
    memcpy(sun->sun_path, path, len);
    if (path[0] == '@') {
        sun->sun_path[0] = '\0';
    }
    o->addr_len = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + len + (path[0] != '@'));
    o->target = path;
}

static void check(struct options *o, const char *host, const int *ports, const char *path)
{
    static const size_t least[] = {1, 2, 3, 5};
    if ((ports[0] == 0) == (path == NULL)) {
        die("give either --port or --path (--help lists the options)");
    }
    if (path) {
        address_unix(o, path);
    }
    for (int i = 0; i < MAX_PORTS && ports[i]; i++) {
        address_inet(o, host, ports[i]);
    }
    if (o->size < least[o->framing] || (o->framing == FRAMING_PREFIX2 && o->size > 65537)) {
        die("--size %zu does not fit the framing", o->size);
    }
    if (o->file && (o->framing != FRAMING_RAW || o->pieces)) {
        die("--file goes with --framing raw, and without --pieces");
    }
    if (o->udp && (path || o->mode != MODE_LOAD || o->framing != FRAMING_RAW || o->pieces || o->file)) {
        die("--udp goes with --port, and without --framing, --pieces, --file, --hold and --churn");
    }
    if (o->udp && (o->size < NUMBER_BYTES || o->size > MAX_DATAGRAM)) {
        die("--size %zu does not fit a datagram: %d to %d bytes", o->size, NUMBER_BYTES, MAX_DATAGRAM);
    }
    if (o->silent && (o->mode != MODE_CHURN || o->tls)) {
        die("--silent goes with --churn, and without --tls");
    }
    if (o->tls && (o->udp || o->file)) {
        die("--tls goes without --udp and --file");
    }
    if (o->seconds == 0) {
        o->seconds = o->mode == MODE_LOAD && o->messages == 0 ? 1 : 600;
    }
    if (o->mode != MODE_LOAD) {
        o->inflight = 1;
    }
}

enum {
    O_HOST,
    O_PORT,
    O_PATH,
    O_CONNECTIONS,
    O_SIZE,
    O_FRAMING,
    O_INFLIGHT,
    O_WARMUP,
    O_SECONDS,
    O_MESSAGES,
    O_WARMUP_MESSAGES,
    O_PIECES,
    O_GAP,
    O_HOLD,
    O_CHURN,
    O_SILENT,
    O_TLS,
    O_PID,
    O_CHILDREN,
    O_FILE,
    O_UDP,
    O_JSON,
    O_HELP
};

static const struct option longs[] = {
    {"host", 1, 0, O_HOST},
    {"port", 1, 0, O_PORT},
    {"path", 1, 0, O_PATH},
    {"connections", 1, 0, O_CONNECTIONS},
    {"size", 1, 0, O_SIZE},
    {"framing", 1, 0, O_FRAMING},
    {"inflight", 1, 0, O_INFLIGHT},
    {"warmup", 1, 0, O_WARMUP},
    {"seconds", 1, 0, O_SECONDS},
    {"messages", 1, 0, O_MESSAGES},
    {"warmup-messages", 1, 0, O_WARMUP_MESSAGES},
    {"pieces", 1, 0, O_PIECES},
    {"gap", 1, 0, O_GAP},
    {"hold", 0, 0, O_HOLD},
    {"churn", 1, 0, O_CHURN},
    {"silent", 0, 0, O_SILENT},
    {"tls", 1, 0, O_TLS},
    {"pid", 1, 0, O_PID},
    {"children", 0, 0, O_CHILDREN},
    {"file", 1, 0, O_FILE},
    {"udp", 0, 0, O_UDP},
    {"json", 0, 0, O_JSON},
    {"help", 0, 0, O_HELP},
    {0, 0, 0, 0},
};

/* The options that are a number: its bounds, and where it goes. */
static void set_number(struct options *o, int option, const char *name, const char *text)
{
    switch (option) {
    case O_CONNECTIONS: o->connections = (unsigned)number(name, text, 1, 60000); break;
    case O_SIZE: o->size = (size_t)number(name, text, 1, 64 << 20); break;
    case O_INFLIGHT: o->inflight = (unsigned)number(name, text, 1, 1024); break;
    case O_WARMUP: o->warmup = number(name, text, 0, 60); break;
    case O_SECONDS: o->seconds = number(name, text, 0, 3600); break;
    case O_MESSAGES: o->messages = (uint64_t)number(name, text, 1, 1e9); break;
    case O_WARMUP_MESSAGES: o->warmup_messages = (uint64_t)number(name, text, 0, 1e9); break;
    case O_PIECES: o->pieces = (size_t)number(name, text, 1, 64 << 20); break;
    case O_GAP: o->gap_us = number(name, text, 0, 1e6); break;
    case O_CHURN: o->mode = MODE_CHURN, o->churn = (uint64_t)number(name, text, 1, 1e7); break;
    case O_PID:
        if (o->npids == MAX_PIDS) {
            die("at most %d --pid", MAX_PIDS);
        }
        o->pids[o->npids++] = (pid_t)number(name, text, 1, 1 << 22);
        break;
    }
}

void options_parse(struct options *o, int argc, char **argv)
{
    const char *host = "127.0.0.1", *path = NULL;
    int ports[MAX_PORTS] = {0}, nports = 0, option, index = 0;
    *o = (struct options){.connections = 50, .inflight = 1, .size = 64, .warmup = 0.3};
    while ((option = getopt_long(argc, argv, "", longs, &index)) != -1) {
        switch (option) {
        case '?': exit(2);
        case O_HELP: fputs(usage, stdout); exit(0);
        case O_HOST: host = optarg; break;
        case O_PATH: path = optarg; break;
        case O_PORT:
            if (nports == MAX_PORTS) {
                die("at most %d --port", MAX_PORTS);
            }
            ports[nports++] = (int)number("port", optarg, 1, 65535);
            break;
        case O_FRAMING: o->framing = framing_named(optarg); break;
        case O_HOLD: o->mode = MODE_HOLD; break;
        case O_JSON: o->json = 1; break;
        case O_CHILDREN: o->children = 1; break;
        case O_FILE: o->file = optarg; break;
        case O_UDP: o->udp = 1; break;
        case O_SILENT: o->silent = 1; break;
        case O_TLS: o->tls = optarg; break;
        default: set_number(o, option, longs[index].name, optarg);
        }
    }
    if (optind < argc) {
        die("unexpected argument '%s'", argv[optind]);
    }
    check(o, host, ports, path);
}
