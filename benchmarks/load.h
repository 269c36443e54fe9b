/* load.h -- what the files of the load generator share.
 *
 *   load.c      the run: open, warm up, measure, drain; hold; churn; the report
 *   load_args.c options, their bounds, and addresses (loopback only)
 *   load_conn.c one conn: send from the pattern, verify the echo against it
 *   load_udp.c  the same for datagrams, of which some may be lost
 *   load_tls.c  sends and receives over TLS, where there is OpenSSL
 *   load_cpu.c  CPU clocks: the server's, its children's, the generator's own
 *   load_report.c latencies, and what is printed
 *
 * A "message" here is what travels on the wire, terminator or prefix included:
 * --size 64 --framing lines is 63 characters and a newline.
 */
#ifndef LOAD_H
#define LOAD_H

#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>
#include <sys/types.h>

enum framing {
    FRAMING_RAW,
    FRAMING_LINES,
    FRAMING_PREFIX2,
    FRAMING_PREFIX4
};
enum mode {
    MODE_LOAD,
    MODE_HOLD,
    MODE_CHURN
};

#define MAX_PIDS 64
#define MAX_PORTS 8
#define REQUEST_BYTES 8 /* of --file: where a message is, how long it is, big-endian */
#define NUMBER_BYTES 8  /* at the start of a datagram */
#define SETUP_WINDOW 64 /* conns at most between connect and first echo, below any backlog */

struct options {
    enum mode mode;
    enum framing framing;
    struct sockaddr_storage addrs[MAX_PORTS]; /* conns take them in turn */
    int naddrs;
    socklen_t addr_len;
    const char *target;       /* as printed */
    unsigned connections;     /* 1..60000 */
    unsigned inflight;        /* messages per conn, 1..1024 */
    size_t size;              /* bytes of a message on the wire */
    size_t pieces;            /* bytes per send, 0 = no limit */
    double gap_us;            /* busy wait after each piece */
    double seconds;           /* length of the window, or the bound of the whole run */
    double warmup;            /* seconds before the window */
    uint64_t messages;        /* window of this many messages instead; 0 = by time */
    uint64_t warmup_messages; /* before such a window */
    uint64_t churn;           /* conns to open, echo over and close */
    int silent;               /* of churn: end the stream at once, and wait for the server's end */
    int udp;                  /* a message is a datagram */
    const char *tls;          /* file of the authority that servers have their certificate of */
    int json;
    pid_t pids[MAX_PIDS];     /* servers whose CPU clock is read at both ends of the window */
    int npids;
    int children;             /* the clocks of their children as well */
    const char *file;         /* the pattern is written here, and messages are asked for; or NULL */
};

/* The bytes that every conn sends, over and over: `count` different messages. The
 * copy behind `modulus` lets a burst that wraps leave in one send. */
struct pattern {
    char *bytes;
    size_t wire;    /* bytes of one message */
    size_t modulus; /* count * wire */
    unsigned count;
};

struct conn {
    int fd;            /* -1: closed */
    uint32_t armed;    /* epoll events asked for */
    size_t to_send;    /* bytes granted and not sent */
    size_t unseen;     /* bytes granted whose echo has not come */
    size_t out_at;     /* where in the pattern the next byte to send is */
    size_t in_at;      /* where the next byte to come back is */
    size_t part;       /* bytes of the current message that came back */
    unsigned flying;   /* messages granted whose echo is not complete */
    unsigned oldest;   /* index in stamps of the oldest of them */
    int greeted;       /* its first echo came */
    size_t first;      /* of datagrams: the number of the first one */
    unsigned given_up; /* and how many that had no echo have none still */
    uint64_t *stamps;  /* when each message in flight was granted, ns */
    struct ssl_st *tls; /* or NULL */
};

/* Log-linear: 64 buckets per power of two, so a percentile is within 1.6 %. */
#define HISTOGRAM_BUCKETS (59 * 64)
struct histogram {
    uint64_t buckets[HISTOGRAM_BUCKETS];
    uint64_t count;
    uint64_t max;
};

enum phase {
    SETUP,
    WARMUP,
    WINDOW,
    DRAIN,
    DONE
};

struct reading { /* everything that is compared between the ends of the window */
    uint64_t ns, messages, bytes, own_cpu, cpu;
    uint64_t own_delay, delay; /* ready to run, but another process had the CPU; ns */
    unsigned children;         /* of the servers, alive or not yet reaped */
    unsigned cpus;             /* where server and generator may run */
    uint64_t idle;             /* of these CPUs, in all */
};

struct load {
    struct options o;
    struct pattern p;
    struct histogram h;
    struct conn *conns;
    unsigned *idle, nidle; /* slots of conns that are closed */
    char *buffer;
    int ep;
    enum phase phase;
    uint64_t started, opened, greeted, greeting, flying, errors, lost;
    uint64_t messages, bytes, progress_ns, now;
    uint64_t given_up, swept; /* datagrams without an echo; when they were last looked for, ns */
    struct reading from, to;
};

/* CLOCK_MONOTONIC in ns. */
uint64_t now_ns(void);

/* Fill `o`; exits with status 2 and a message when an argument is wrong. */
void options_parse(struct options *o, int argc, char **argv);

/* 0, or -1 when memory is short, or the file cannot be written. */
int pattern_init(struct pattern *p, const struct options *o);

/* Whether the process exists and, when asked, /proc lists its children. */
int cpu_usable(pid_t pid, int with_children);

/* CPU time of this process, ns. */
uint64_t cpu_own(void);

/* CPU time of a process, ns; on request of its children as well, living or reaped, and how
 * many are not reaped is added to `children`. */
uint64_t cpu_of(pid_t pid, int with_children, unsigned *children);

/* Idle time of the CPUs that this process or one of `pids` may use, ns in all; how many they are. */
uint64_t cpu_idle(const pid_t *pids, int npids, unsigned *cpus);

/* What the main thread of a process has waited for a CPU, ns; 0 where Linux does not tell. */
uint64_t cpu_delay(pid_t pid);

void histogram_add(struct histogram *h, uint64_t ns);

/* Print what lies between l->from and l->to, as text or as one JSON object. */
void report(const struct load *l);

/* Connect (blocking, 10 s at most), then make it non-blocking. `serial` picks the
 * place in the pattern and, on 127.x.x.x with `spread`, the source address.
 * 0 or -errno. */
int conn_open(struct conn *c, const struct options *o, const struct pattern *p, uint64_t serial,
              int spread);

/* Grant `n` more messages, stamped `now`; at most --inflight may be flying. */
void conn_grant(struct conn *c, const struct options *o, const struct pattern *p, unsigned n,
                uint64_t now);

/* Send what was granted, or ask for it; one piece at most when --pieces is given. 0 or -errno; EAGAIN is 0. */
int conn_send(struct conn *c, const struct options *o, const struct pattern *p);

/* Compare `len` bytes that came back. The number of messages completed, whose latencies
 * go to `h` (may be NULL), or -1 when a byte differs or was never sent. */
int conn_verify(struct conn *c, const struct options *o, const struct pattern *p,
                const char *data, size_t len, uint64_t now, struct histogram *h);

/* Close it, without a word. */
void conn_close(struct conn *c);

/* As recv(2) without flags: bytes, 0 at the end of stream, or -1 with errno. */
ssize_t conn_receive(struct conn *c, void *data, size_t len);

/* Trust the authority in a file. 0, or -1 and a message. */
int tls_prepare(const char *authority);

/* Shake hands on a socket that blocks. 0 or -errno. */
int tls_open(struct conn *c);
void tls_close(struct conn *c);

/* As send(2) and recv(2), with room for 16 KiB; EAGAIN where OpenSSL would wait. */
ssize_t tls_send(struct conn *c, const void *data, size_t len);
ssize_t tls_receive(struct conn *c, void *data, size_t len);

/* As conn_send, each message as a datagram. */
int udp_send(struct conn *c, const struct pattern *p);

/* Compare a datagram that came back. The number of messages that are done with, of which one
 * was echoed and those before it are lost; 0: it came late; or -1: it is wrong, was never sent,
 * or was echoed before. */
int udp_verify(struct conn *c, const struct options *o, const struct pattern *p, const char *data,
               size_t len, uint64_t now, struct histogram *h);

/* Give up all datagrams under way if the oldest was granted no later than `before`, ns. How
 * many they are. */
unsigned udp_give_up(struct conn *c, const struct options *o, const struct pattern *p,
                     uint64_t before);

#endif
