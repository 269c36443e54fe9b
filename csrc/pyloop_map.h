/* pyloop_map.h -- the part of the contract that is about mapped files and named shared memory.
 *
 * A file that somebody truncates turns an access to its mapping into SIGBUS. So whatever pyloop itself copies out of
 * or into a mapping is copied by the kernel, which falls short instead, and the file's size is looked at afterwards:
 * bytes of the last page that are behind a new end read as zeroes without any fault.
 *
 * The conventions of pyloop.h hold. Any thread may call; a mapping's reference keeps it usable. */
#ifndef PYLOOP_MAP_H
#define PYLOOP_MAP_H

#include <stddef.h>
#include <stdint.h>

/* cffi: begin */

/* ---- mappings --------------------------------------------------------- */

enum pl_map_mode {
    PL_MAP_READ = 0,   /* shared, to read */
    PL_MAP_SHARED = 1, /* shared, to read and write */
    PL_MAP_PRIVATE = 2 /* to read and write; what is written stays here (copy on write) */
};

enum pl_map_advice {
    PL_MAP_NORMAL = 0,
    PL_MAP_RANDOM = 1,
    PL_MAP_SEQUENTIAL = 2,
    PL_MAP_WILLNEED = 3,
    PL_MAP_DONTNEED = 4 /* only whole pages; PL_MAP_PRIVATE: also forgets what was written there */
};

enum pl_map_error {
    PL_E_PAYLOAD = -4120,  /* the framing would have to read a payload that is sent by reference */
    PL_E_TRUNCATED = -4121 /* a file was truncated, or failed, while a part of it was queued to send */
};

/* Bytes of a file in memory, counted by reference: the maker has one, and each piece of queued output. The
 * last one to go unmaps. */
struct pl_mapping;

/* Map `len` bytes from `offset` (any: the pages around are mapped too) of regular file `fd`, which stays the
 * caller's. 0; -EINVAL: no bytes, more than there can be, or the file is shorter; -EACCES: fd does not
 * allow the mode; -EBADF, -EMFILE, -ENFILE, -ENOMEM, -ENODEV. Source: mmap(2). */
int pl_mapping_new(int fd, uint64_t offset, size_t len, int mode, struct pl_mapping **mapping);
void pl_mapping_release(struct pl_mapping *m); /* gives up one reference */

uint8_t *pl_mapping_data(const struct pl_mapping *m); /* its first byte; valid with the reference */
size_t pl_mapping_len(const struct pl_mapping *m);    /* how many there are */
int pl_mapping_fd(const struct pl_mapping *m); /* its own fd of the file; borrowed */
uint32_t pl_mapping_queued(const struct pl_mapping *m); /* pieces of output that refer to it */

/* 0 while the file has bytes [start, start + len) of the mapping; -EFAULT: it was truncated. */
int pl_mapping_check(const struct pl_mapping *m, size_t start, size_t len);

/* Copy out of, or into, [start, start + len), or set it to `byte`. 0; -EFAULT: those bytes are, or were during the
 * copy, no longer in the file, or cannot be read, or the mapping is read-only: what was copied is of no use; -EINVAL:
 * beyond the mapping; -EMFILE, -ENFILE: process_vm_readv(2) is forbidden here, and the pipe instead needs two fds. */
int pl_mapping_read(const struct pl_mapping *m, size_t start, uint8_t *to, size_t len);
int pl_mapping_write(struct pl_mapping *m, size_t start, const uint8_t *from, size_t len);
int pl_mapping_fill(struct pl_mapping *m, size_t start, uint8_t byte, size_t len);

/* Have the bytes on the disk when it returns. 0; -EINVAL; -EIO. Source: msync(2), MS_SYNC. */
int pl_mapping_flush(struct pl_mapping *m, size_t start, size_t len);

/* Tell the kernel how they will be used: enum pl_map_advice. 0; -EINVAL; -EIO, -ENOMEM. Source: madvise(2). */
int pl_mapping_advise(struct pl_mapping *m, size_t start, size_t len, int advice);

/* ---- output of who has a socket without a loop (models thread and fork) -------- */

struct pl_outbox; /* a queue; one thread at a time */
struct pl_wrap;

struct pl_outbox *pl_outbox_new(void); /* empty, or NULL */
void pl_outbox_free(struct pl_outbox *box);
size_t pl_outbox_len(const struct pl_outbox *box);
void pl_outbox_clear(struct pl_outbox *box);

/* Copy bytes to the back. 0; -ENOMEM: nothing was queued. */
int pl_outbox_push(struct pl_outbox *box, const uint8_t *data, size_t len);

/* The same by reference: `wrap` goes around [start, start + len) of the mapping; -EINVAL beyond it. */
int pl_outbox_push_mapped(struct pl_outbox *box, const struct pl_wrap *wrap, struct pl_mapping *m,
                          size_t start, size_t len);

/* Hand the front to the kernel, without waiting, once. How many bytes it took, 0: none now; -EPIPE, -ECONNRESET;
 * PL_E_TRUNCATED. */
int64_t pl_outbox_send(struct pl_outbox *box, int fd);

/* ---- named shared memory ------------------------------------------------ */

/* Open region `name` ("/x", as shm_open wants it) with open(2)'s flags. The fd (>= 3, CLOEXEC); -ENOENT, -EEXIST,
 * -EACCES, -EINVAL, -ENAMETOOLONG, -EMFILE, -ENFILE. Source: shm_open(3). */
int pl_shm_open(const char *name, int flags, uint32_t mode);
int pl_shm_unlink(const char *name); /* 0, -ENOENT, -EACCES */

/* Make fd at least `len` bytes long, all of them allocated now: later nobody gets SIGBUS because memory is full. 0;
 * -ENOSPC, -ENOMEM, -EFBIG. Source: posix_fallocate(3). */
int pl_shm_allocate(int fd, uint64_t len);

/* cffi: end */

#endif
