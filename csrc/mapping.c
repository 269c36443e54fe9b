/* mapping.c -- a file's bytes in memory, and how to copy them without SIGBUS.
 *
 *     page    |....[ len bytes .....|.........]....|
 *             base ^ data           ^ a page that the file has lost: a touch is SIGBUS
 *
 * process_vm_readv and process_vm_writev on our own process meet such a page as EFAULT. Where a policy forbids them, a
 * pipe does the same at twice the cost: write(2) from such a page, and read(2) into it, are EFAULT too.
 *
 * Sealed memory (memory.c) cannot be truncated and needs none of this.
 * Source: mmap(2), process_vm_readv(2), pipe(7), msync(2), madvise(2). */
#include "mapping.h"

#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include "sock.h"

#define PIPE_BYTES 65536   /* what a pipe takes at once, at most */
#define PATTERN_BYTES 8192 /* on the stack, for a fill */

struct pl_mapping {
    uint8_t *base;   /* a page's first byte */
    uint8_t *data;   /* the first byte that was asked for */
    size_t len;      /* from data on */
    uint64_t offset; /* of data in the file */
    int fd;          /* our own, to ask for the file's size */
    atomic_uint refs, queued;
};

/* ---- making and ending ---- */

static int shape(struct pl_mapping *m, int fd, int mode)
{
    size_t shift = (size_t)(m->offset % (uint64_t)sysconf(_SC_PAGESIZE));
    int protection = mode == PL_MAP_READ ? PROT_READ : PROT_READ | PROT_WRITE;
    int kind = mode == PL_MAP_PRIVATE ? MAP_PRIVATE : MAP_SHARED;
    if (m->len > (size_t)PTRDIFF_MAX - shift)
        return -EINVAL;
    m->base = mmap(NULL, shift + m->len, protection, kind, fd, (off_t)(m->offset - shift));
    if (m->base == MAP_FAILED)
        return -errno;
    m->data = m->base + shift;
    return 0;
}

static int has_bytes(int fd, uint64_t offset, uint64_t len)
{
    struct stat status;
    if (fstat(fd, &status) < 0)
        return -errno;
    uint64_t size = status.st_size > 0 ? (uint64_t)status.st_size : 0;
    return offset <= size && len <= size - offset;
}

int pl_mapping_new(int fd, uint64_t offset, size_t len, int mode, struct pl_mapping **mapping)
{
    int rc = has_bytes(fd, offset, len);
    if (rc < 0)
        return rc;
    if (!rc || !len || mode < PL_MAP_READ || mode > PL_MAP_PRIVATE)
        return -EINVAL;
    struct pl_mapping *m = malloc(sizeof *m);
    if (!m)
        return -ENOMEM;
    *m = (struct pl_mapping){.len = len, .offset = offset, .refs = 1};
    if ((rc = shape(m, fd, mode)) < 0)
        goto free_mapping;
    m->fd = fcntl(fd, F_DUPFD_CLOEXEC, 3);
    if (m->fd < 0) {
        rc = -errno;
        goto unmap;
    }
    *mapping = m;
    return 0;

unmap:
    munmap(m->base, (size_t)(m->data - m->base) + len);
free_mapping:
    free(m);
    return rc;
}

void pl_mapping_release(struct pl_mapping *m)
{
    if (atomic_fetch_sub(&m->refs, 1) > 1)
        return;
    munmap(m->base, (size_t)(m->data - m->base) + m->len);
    sock_close(m->fd);
    free(m);
}

void mapping_hold(struct pl_mapping *m)
{
    atomic_fetch_add(&m->refs, 1);
    atomic_fetch_add(&m->queued, 1);
}

void mapping_drop(struct pl_mapping *m)
{
    atomic_fetch_sub(&m->queued, 1);
    pl_mapping_release(m);
}

uint8_t *pl_mapping_data(const struct pl_mapping *m) { return m->data; }

size_t pl_mapping_len(const struct pl_mapping *m) { return m->len; }

int pl_mapping_fd(const struct pl_mapping *m) { return m->fd; }

uint32_t pl_mapping_queued(const struct pl_mapping *m) { return atomic_load(&m->queued); }

int mapping_has(const struct pl_mapping *m, size_t start, size_t len)
{
    return start <= m->len && len <= m->len - start;
}

int pl_mapping_check(const struct pl_mapping *m, size_t start, size_t len)
{
    int rc = len ? has_bytes(m->fd, m->offset + start, len) : 1;
    if (rc < 0)
        return rc;
    return rc ? 0 : -EFAULT;
}

/* ---- copies that meet no signal ---- */

struct copy {
    uint8_t *local, *mapped;
    size_t len;
    int into; /* the mapping */
};

static void advance(struct copy *c, size_t len)
{
    c->local += len;
    c->mapped += len;
    c->len -= len;
}

#ifdef __linux__

static int64_t copy_directly(const struct copy *c)
{
    struct iovec local = {c->local, c->len}, mapped = {c->mapped, c->len};
    ssize_t n = c->into ? process_vm_writev(getpid(), &local, 1, &mapped, 1, 0)
                        : process_vm_readv(getpid(), &local, 1, &mapped, 1, 0);
    return n < 0 ? -errno : n;
}

static int open_pipe(int fds[2])
{
    return pipe2(fds, O_CLOEXEC | O_NONBLOCK) < 0 ? -errno : 0;
}

#else

static int64_t copy_directly(const struct copy *c)
{
    (void)c;
    return -ENOSYS;
}

static int open_pipe(int fds[2])
{
    if (pipe(fds) < 0)
        return -errno;
    for (int i = 0; i < 2; i++) {
        (void)fcntl(fds[i], F_SETFD, FD_CLOEXEC);
        (void)sock_set_nonblocking(fds[i], 1);
    }
    return 0;
}

#endif

/* The pipe is empty before and after each piece, so neither call waits. */
static int pass_on(const int fds[2], struct copy *c)
{
    const uint8_t *from = c->into ? c->local : c->mapped;
    uint8_t *to = c->into ? c->mapped : c->local;
    ssize_t in = write(fds[1], from, c->len < PIPE_BYTES ? c->len : PIPE_BYTES);
    if (in < 0)
        return -errno;
    for (ssize_t out = 0; out < in;) {
        ssize_t n = read(fds[0], to + out, (size_t)(in - out));
        if (n <= 0)
            return n < 0 ? -errno : -EFAULT;
        out += n;
    }
    advance(c, (size_t)in);
    return 0;
}

static int copy_by_pipe(struct copy *c)
{
    int fds[2], rc = open_pipe(fds);
    if (rc < 0)
        return rc;
    while (c->len && rc == 0)
        rc = pass_on(fds, c);
    sock_close(fds[0]);
    sock_close(fds[1]);
    return rc;
}

static int copy(struct copy c)
{
    while (c.len) {
        int64_t n = copy_directly(&c);
        if (n == -EPERM || n == -ENOSYS)
            return copy_by_pipe(&c);
        if (n <= 0)
            return n < 0 ? (int)n : -EFAULT;
        advance(&c, (size_t)n);
    }
    return 0;
}

/* A truncation during the copy shows in the size after it. */
static int copy_checked(const struct pl_mapping *m, size_t start, struct copy c)
{
    c.mapped = m->data + start;
    int rc = copy(c);
    return rc < 0 ? rc : pl_mapping_check(m, start, c.len);
}

int pl_mapping_read(const struct pl_mapping *m, size_t start, uint8_t *to, size_t len)
{
    if (!mapping_has(m, start, len))
        return -EINVAL;
    return copy_checked(m, start, (struct copy){.local = to, .len = len});
}

int pl_mapping_write(struct pl_mapping *m, size_t start, const uint8_t *from, size_t len)
{
    if (!mapping_has(m, start, len))
        return -EINVAL;
    uint8_t *local = (uint8_t *)(uintptr_t)from; /* only read */
    return copy_checked(m, start, (struct copy){.local = local, .len = len, .into = 1});
}

int pl_mapping_fill(struct pl_mapping *m, size_t start, uint8_t byte, size_t len)
{
    uint8_t pattern[PATTERN_BYTES];
    memset(pattern, byte, sizeof pattern);
    if (!mapping_has(m, start, len))
        return -EINVAL;
    for (size_t done = 0, n; done < len; done += n) {
        n = len - done < sizeof pattern ? len - done : sizeof pattern;
        int rc = copy((struct copy){pattern, m->data + start + done, n, 1});
        if (rc < 0)
            return rc;
    }
    return pl_mapping_check(m, start, len);
}

/* ---- the kernel's care ---- */

/* Both calls want a page's first byte. */
static size_t page_start(const struct pl_mapping *m, size_t start, size_t *len)
{
    size_t at = (size_t)(m->data - m->base) + start;
    size_t before = at % (size_t)sysconf(_SC_PAGESIZE);
    *len += before;
    return at - before;
}

int pl_mapping_flush(struct pl_mapping *m, size_t start, size_t len)
{
    if (!mapping_has(m, start, len))
        return -EINVAL;
    size_t at = page_start(m, start, &len);
    return msync(m->base + at, len, MS_SYNC) < 0 ? -errno : 0;
}

/* The pages that have nothing but bytes of the range, as its offset from base and *len; 0 of them: *len is 0. */
static size_t whole_pages(const struct pl_mapping *m, size_t start, size_t *len)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE), shift = (size_t)(m->data - m->base);
    size_t end = shift + start + *len, first = start ? (shift + start + page - 1) / page * page : 0;
    if (start + *len < m->len) /* what is behind the mapping on its last page is nobody's */
        end = end / page * page;
    *len = end > first ? end - first : 0;
    return first;
}

int pl_mapping_advise(struct pl_mapping *m, size_t start, size_t len, int advice)
{
    static const int advices[] = {[PL_MAP_NORMAL] = MADV_NORMAL,
                                  [PL_MAP_RANDOM] = MADV_RANDOM,
                                  [PL_MAP_SEQUENTIAL] = MADV_SEQUENTIAL,
                                  [PL_MAP_WILLNEED] = MADV_WILLNEED,
                                  [PL_MAP_DONTNEED] = MADV_DONTNEED};
    if (!mapping_has(m, start, len) || advice < PL_MAP_NORMAL || advice > PL_MAP_DONTNEED)
        return -EINVAL;
    int outwards = advice != PL_MAP_DONTNEED;
    size_t at = outwards ? page_start(m, start, &len) : whole_pages(m, start, &len);
    return madvise(m->base + at, len, advices[advice]) < 0 ? -errno : 0;
}
