/* memory.c -- memory that processes share: made anonymous, sealed, and handed on by inheritance.
 *
 * A mapping of a file that somebody truncates turns into SIGBUS at the next access. A memfd can be sealed
 * (F_SEAL_SHRINK, F_SEAL_GROW): from then on no holder of the fd can resize it, and the seals themselves are
 * sealed. posix_fallocate takes all pages now, so that a full memory is an error here and not a signal later.
 *
 * Does not know what lies in it. Source: memfd_create(2), fcntl(2) "File Sealing", mmap(2). */
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "pyloop.h"
#include "sock.h"

#if defined(__linux__) && !defined(MFD_ALLOW_SEALING) /* glibc before 2.27 */
#include <sys/syscall.h>
#define memfd_create(name, flags) (int)syscall(SYS_memfd_create, name, flags)
#define MFD_CLOEXEC 1u
#define MFD_ALLOW_SEALING 2u
#define F_ADD_SEALS 1033
#define F_GET_SEALS 1034
#define F_SEAL_SEAL 1
#define F_SEAL_SHRINK 2
#define F_SEAL_GROW 4
#endif

#ifdef MFD_ALLOW_SEALING

#define SEALS (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL)

#ifndef MFD_NOEXEC_SEAL
#define MFD_NOEXEC_SEAL 8u
#endif

/* Where vm.memfd_noexec is 2 there is none without MFD_NOEXEC_SEAL, which Linux has from 6.3 on. */
static int make_object(const char *name)
{
    unsigned flags = MFD_CLOEXEC | MFD_ALLOW_SEALING;
    int fd = memfd_create(name, flags | MFD_NOEXEC_SEAL);
    if (fd < 0 && errno == EINVAL)
        fd = memfd_create(name, flags);
    return fd < 0 ? -errno : fd;
}

/* More than there can be is refused here: the kernel would go on allocating until it kills somebody. */
static int allocate(int fd, size_t len)
{
    long pages = sysconf(_SC_PHYS_PAGES), page = sysconf(_SC_PAGESIZE);
    if (pages > 0 && len / (size_t)page >= (size_t)pages)
        return -ENOMEM;
    int rc;
    do
        rc = posix_fallocate(fd, 0, (off_t)len); /* returns the error, leaves errno alone */
    while (rc == EINTR);
    return -rc;
}

static int seal(int fd) { return fcntl(fd, F_ADD_SEALS, SEALS) < 0 ? -errno : 0; }

/* Can it be made shorter while it is mapped? */
static int is_firm(int fd)
{
    int seals = fcntl(fd, F_GET_SEALS);
    return seals >= 0 && seals & F_SEAL_SHRINK;
}

#else

/* Unlinked at once: only who inherits the fd has it. */
static int make_object(const char *name)
{
    (void)name;
    char path[] = "/pyloop-0000000000000000";
    uint64_t salt = (uint64_t)sock_now() ^ ((uint64_t)getpid() << 32);
    for (char *digit = path + 8; *digit; digit++, salt >>= 4)
        *digit = "0123456789abcdef"[salt & 15];
    int fd = shm_open(path, O_RDWR | O_CREAT | O_EXCL, 0600);
    if (fd < 0)
        return -errno;
    shm_unlink(path);
    return fd;
}

static int allocate(int fd, size_t len) { return ftruncate(fd, (off_t)len) < 0 ? -errno : 0; }

static int seal(int fd)
{
    (void)fd;
    return 0;
}

static int is_firm(int fd)
{
    (void)fd;
    return 1;
}

#endif

static int map(int fd, size_t len, int protection, void **data)
{
    void *at = mmap(NULL, len, protection, MAP_SHARED, fd, 0);
    if (at == MAP_FAILED)
        return -errno;
    *data = at;
    return 0;
}

int pl_memory_new(const char *name, size_t len, void **data)
{
    if (len == 0 || len > (size_t)PTRDIFF_MAX)
        return -EINVAL;
    int rc, fd = make_object(name);
    if (fd < 0)
        return fd;
    int moved = sock_above_stdio(fd);
    if (moved < 0) {
        sock_close(fd);
        return moved;
    }
    if ((rc = allocate(moved, len)) < 0 || (rc = seal(moved)) < 0 ||
        (rc = map(moved, len, PROT_READ | PROT_WRITE, data)) < 0) {
        sock_close(moved);
        return rc;
    }
    return moved;
}

int pl_memory_map(int fd, size_t len, int writable, void **data)
{
    struct stat status;
    if (fstat(fd, &status) < 0)
        return -errno;
    if (!len || status.st_size < 0 || (uint64_t)status.st_size < len || !is_firm(fd))
        return -EINVAL;
    return map(fd, len, writable ? PROT_READ | PROT_WRITE : PROT_READ, data);
}

void pl_memory_unmap(void *data, size_t len)
{
    if (data)
        munmap(data, len);
}

/* ---- named regions: mapping.c maps them, since whoever may write can truncate them ---- */

int pl_shm_open(const char *name, int flags, uint32_t mode)
{
    int fd = shm_open(name, flags | O_CLOEXEC, (mode_t)mode);
    if (fd < 0)
        return -errno;
    int moved = sock_above_stdio(fd);
    if (moved < 0)
        sock_close(fd);
    return moved;
}

int pl_shm_unlink(const char *name) { return shm_unlink(name) < 0 ? -errno : 0; }

int pl_shm_allocate(int fd, uint64_t len)
{
    return len > (uint64_t)PTRDIFF_MAX ? -EFBIG : allocate(fd, (size_t)len);
}
