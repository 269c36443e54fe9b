/* datagram.c -- one datagram socket: its queue, and the way out of it. See datagram.h. */
#include "datagram.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "pyloop.h"
#include "sock.h"

#define HIGH_WATER_BYTES 65536u
#define LOW_WATER_BYTES 16384u
#define PATIENCE_MAX 15u

struct dgram *dgram_new(int fd, size_t max_len)
{
    struct dgram *d = calloc(1, sizeof *d);
    if (!d)
        return NULL;
    d->fd = fd;
    d->max_len = max_len;
    d->high_water = HIGH_WATER_BYTES;
    d->low_water = LOW_WATER_BYTES;
    return d;
}

static void push(struct letters *letters, struct letter *letter)
{
    letter->next = NULL;
    if (letters->head)
        letters->tail->next = letter;
    else
        letters->head = letter;
    letters->tail = letter;
}

static struct letter *pop(struct letters *letters)
{
    struct letter *letter = letters->head;
    letters->head = letter->next;
    return letter;
}

static void drop_all(struct letters *letters)
{
    while (letters->head)
        free(pop(letters));
}

void dgram_drop(struct dgram *d)
{
    drop_all(&d->out);
    drop_all(&d->failed);
    d->queued = 0;
}

void dgram_free(struct dgram *d)
{
    dgram_drop(d);
    free(d);
}

uint32_t dgram_interest(const struct dgram *d)
{
    uint32_t interest = (d->flags & (DGRAM_READING | DGRAM_CLOSING)) == DGRAM_READING ? PL_READ : 0;
    int blocked = (d->flags & (DGRAM_BLOCKED | DGRAM_RESTING)) == DGRAM_BLOCKED;
    return blocked ? interest | PL_WRITE : interest;
}

int dgram_queue(struct dgram *d, const uint8_t *data, size_t len, const uint8_t *addr,
                size_t addr_len)
{
    struct letter *letter = NULL;
    if (len <= SIZE_MAX - sizeof *letter - addr_len)
        letter = malloc(sizeof *letter + addr_len + len);
    if (!letter)
        return -ENOMEM;
    letter->len = len;
    letter->addr_len = (uint32_t)addr_len;
    if (addr_len)
        memcpy(letter->bytes, addr, addr_len);
    if (len)
        memcpy(letter->bytes + addr_len, data, len);
    push(&d->out, letter);
    d->queued += len + PL_DATAGRAM_OVERHEAD;
    return 0;
}

static struct letter *take_first(struct dgram *d)
{
    struct letter *letter = pop(&d->out);
    d->queued -= letter->len + PL_DATAGRAM_OVERHEAD;
    return letter;
}

/* The same error again and again takes the room of one. */
static void fail_first(struct dgram *d, int error)
{
    struct letter *letter = take_first(d);
    if (d->failed.head && d->failed.tail->error == error) {
        d->failed.tail->times++;
        free(letter);
        return;
    }
    struct letter *smaller = realloc(letter, sizeof *letter);
    letter = smaller ? smaller : letter;
    letter->error = error;
    letter->times = 1;
    push(&d->failed, letter);
}

int dgram_send(struct dgram *d, struct pl_loop_counters *counters, const uint8_t *data, size_t len,
               const uint8_t *addr, size_t addr_len)
{
    struct packet packet = {
        .addr = (void *)(uintptr_t)addr, /* sendmsg only reads both; the type is shared with recvmsg */
        .addr_len = (uint32_t)addr_len,
        .data = (uint8_t *)(uintptr_t)data,
        .len = len,
    };
    int sent = sock_send_packets(d->fd, &packet, 1);
    counters->sends++;
    counters->bytes_out += sent == 1 ? len : 0;
    if (sent == 1 || sent == -EAGAIN)
        return sent == 1;
    int rc = dgram_queue(d, NULL, 0, NULL, 0);
    if (rc < 0)
        return rc;
    fail_first(d, sent);
    return 1;
}

/* What goes to the kernel next, at most PACKETS_MAX. */
static int address_first(const struct dgram *d, struct packet *packets)
{
    int n = 0;
    for (struct letter *l = d->out.head; l && n < PACKETS_MAX; l = l->next)
        packets[n++] = (struct packet){
            .addr = l->bytes,
            .addr_len = l->addr_len,
            .data = l->bytes + l->addr_len,
            .len = l->len,
        };
    return n;
}

/* After a short count the next call says why, since the same datagram fails again. Unless it met what is known of an
 * earlier one, that nobody listens for it (ECONNREFUSED): the kernel forgets that then, and it leaves after all. */
int dgram_flush(struct dgram *d, struct pl_loop_counters *counters)
{
    struct packet packets[PACKETS_MAX];
    while (d->out.head) {
        int sent = sock_send_packets(d->fd, packets, address_first(d, packets));
        counters->sends++;
        if (sent == -EAGAIN)
            return 0;
        if (sent < 0)
            fail_first(d, sent);
        for (int i = 0; i < sent; i++) {
            counters->bytes_out += packets[i].len;
            free(take_first(d));
        }
    }
    return 1;
}

int dgram_next_error(struct dgram *d)
{
    struct letter *letter = d->failed.head;
    if (!letter)
        return 0;
    int error = letter->error;
    if (--letter->times == 0)
        free(pop(&d->failed));
    return error;
}

void dgram_learn(struct dgram *d, int received)
{
    if (!dgram_eager(d)) {
        d->singles++;
    } else if (received > 1) {
        d->patience = 0; /* and it stays eager */
    } else {
        d->singles = 0;
        d->patience = d->patience < PATIENCE_MAX ? (uint8_t)(2 * d->patience + 1) : PATIENCE_MAX;
    }
}
