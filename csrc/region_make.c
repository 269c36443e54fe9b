/* region_make.c -- memory that processes share: made, found by name, taken over from another process.
 *
 * A named one is two files in /dev/shm, NAME and NAME.bell. It is made with the file lock held: the head without its
 * magic, all the pages, the bell, the magic. Who has the lock and finds less than that finds it half made: its
 * maker is dead, or has yet to take the lock. Source: shm_open(3), shm_overview(7), mkfifo(3). */
#include "region.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "sock.h"

#ifdef __linux__

#include <sys/eventfd.h>

#define MAGIC UINT64_C(0x0a706f6f6c79700d)
#define PATIENCE_NS 1000000000    /* for another process that is making it */
#define RETRY_NS 1000000
#define OPEN_TRIES 1000
#define OBJECT_MODE 0600

/* Where shm_open puts its objects, and we the bell beside them. */
#define SHM "/dev/shm/"
#define BELL ".bell"

struct names {
    char object[REGION_NAME_MAX + 2]; /* for shm_open */
    char bell[sizeof SHM + REGION_NAME_MAX + sizeof BELL];
};

/* NAME.bell is no name: it may be the bell of another region. */
static int is_name(const char *name, size_t len)
{
    size_t bell = sizeof BELL - 1;
    return len && len <= REGION_NAME_MAX && !strchr(name, '/') && strcmp(name, ".") &&
           strcmp(name, "..") && (len < bell || strcmp(name + len - bell, BELL));
}

static int make_names(struct names *names, const char *name)
{
    if (!is_name(name, strlen(name)))
        return -EINVAL;
    (void)snprintf(names->object, sizeof names->object, "/%s", name);
    (void)snprintf(names->bell, sizeof names->bell, SHM "%s" BELL, name);
    return 0;
}

static int begin(struct region *r)
{
    *r = (struct region){.fd = -1, .bell = -1};
    atomic_init(&r->latch, -1);
    int rc = self_init(&r->self);
    if (rc == 0)
        self_begin(&r->self);
    return rc;
}

/* Is it a region of the kind that is wanted, and as long as it says? */
static int check_head(struct region *r, const struct region_head *want, struct region_head *found)
{
    struct stat status;
    if (fstat(r->fd, &status) < 0)
        return -errno;
    if ((uint64_t)status.st_size < sizeof *found)
        return PL_E_FOREIGN;
    int rc = region_read(r, 0, found, sizeof *found);
    if (rc < 0)
        return rc == PL_E_CORRUPT ? PL_E_FOREIGN : rc;
    int fits = found->magic == MAGIC && found->kind == want->kind &&
               found->version == want->version && found->size == (uint64_t)status.st_size;
    r->size = found->size;
    return fits ? 0 : PL_E_FOREIGN;
}

static int write_head(struct region *r, const struct region_head *want)
{
    struct region_head head = *want;
    head.magic = 0;
    head.mark = MAGIC;
    r->size = want->size;
    return region_write(r, 0, &head, sizeof head);
}

static int finish_head(struct region *r) { return region_store(r, 0, MAGIC); }

/* ---- nameless ---- */

static int new_bell(void)
{
    int fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (fd < 0)
        return -errno;
    int moved = sock_above_stdio(fd);
    if (moved < 0)
        sock_close(fd);
    return moved;
}

int region_new(struct region *r, const char *label, const struct region_head *want)
{
    void *base;
    int rc = begin(r);
    if (rc < 0)
        return rc;
    if ((rc = r->fd = pl_memory_new(label, want->size, &base)) < 0)
        goto fail;
    r->base = base;
    r->size = want->size;
    if ((rc = r->bell = new_bell()) < 0 || (rc = write_head(r, want)) < 0 ||
        (rc = finish_head(r)) < 0)
        goto fail;
    return 0;
fail:
    region_fini(r);
    return rc;
}

static int copy_fd(int fd)
{
    int copy = fcntl(fd, F_DUPFD_CLOEXEC, 3);
    return copy < 0 ? -errno : copy;
}

int region_adopt(struct region *r, int fd, int bell, const struct region_head *want,
                 struct region_head *found)
{
    void *base;
    struct stat status;
    int rc = begin(r);
    if (rc < 0)
        return rc;
    if ((rc = r->fd = copy_fd(fd)) < 0 || (rc = r->bell = copy_fd(bell)) < 0)
        goto fail;
    rc = fstat(r->fd, &status) < 0 ? -errno : 0;
    if (rc < 0 || (rc = pl_memory_map(r->fd, (size_t)status.st_size, 1, &base)) < 0)
        goto fail;
    r->base = base;
    r->size = (uint64_t)status.st_size;
    if ((rc = check_head(r, want, found)) < 0)
        goto fail;
    return 0;
fail:
    region_fini(r);
    return rc == -EINVAL ? PL_E_FOREIGN : rc;
}

/* ---- named ---- */

static int open_bell(const char *path, uint64_t *inode)
{
    struct stat status;
    int fd = open(path, O_RDWR | O_NONBLOCK | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0)
        return errno == ENOENT || errno == ELOOP ? PL_E_FOREIGN : -errno;
    int moved = sock_above_stdio(fd);
    int rc = moved < 0 ? moved : fstat(moved, &status) < 0 ? -errno
                                                           : 0;
    if (rc == 0 && !S_ISFIFO(status.st_mode))
        rc = PL_E_FOREIGN;
    if (rc < 0) {
        sock_close(moved < 0 ? fd : moved);
        return rc;
    }
    *inode = status.st_ino;
    return moved;
}

/* Only a FIFO can be a bell: what else has its name belongs to somebody else. */
static int unlink_bell(const char *path)
{
    struct stat status;
    if (lstat(path, &status) < 0)
        return errno == ENOENT ? 0 : -errno;
    if (!S_ISFIFO(status.st_mode))
        return PL_E_FOREIGN;
    return unlink(path) < 0 && errno != ENOENT ? -errno : 0;
}

/* Fill an object that is empty, or where another maker left something. All its pages are taken now: a full memory is
 * an error here, and never again. */
static int furnish(struct region *r, const struct names *names, const struct region_head *want)
{
    uint64_t inode;
    int rc = ftruncate(r->fd, 0) < 0 ? -errno : write_head(r, want);
    if (rc < 0 || (rc = pl_shm_allocate(r->fd, want->size)) < 0 ||
        (rc = unlink_bell(names->bell)) < 0)
        return rc;
    if (mkfifo(names->bell, OBJECT_MODE) < 0)
        return -errno;
    if ((rc = r->bell = open_bell(names->bell, &inode)) < 0 ||
        (rc = region_store(r, offsetof(struct region_head, bell), inode)) < 0)
        return rc;
    return finish_head(r);
}

enum outcome {
    ATTACHED = 0,
    CREATED = 1,
    AGAIN = 2
};

/* 1: nobody has begun to make the object behind r->fd, or somebody has and not finished; 0; -errno. */
static int is_half_made(struct region *r, const struct stat *status)
{
    struct region_head head;
    if (!status->st_size)
        return 1;
    if ((uint64_t)status->st_size < sizeof head)
        return 0;
    int rc = region_read(r, 0, &head, sizeof head);
    return rc < 0 ? rc : !head.magic && head.mark == MAGIC;
}

static int attach(struct region *r, const struct names *names, const struct region_head *want,
                  struct region_head *found)
{
    uint64_t inode;
    int rc = check_head(r, want, found);
    if (rc < 0)
        return rc;
    if ((rc = r->bell = open_bell(names->bell, &inode)) < 0)
        return rc;
    return inode == found->bell ? ATTACHED : PL_E_FOREIGN;
}

/* What to do with the object behind r->fd, whose file lock is ours. */
static int settle(struct region *r, const struct names *names, enum pl_create create,
                  const struct region_head *want, struct region_head *found)
{
    struct stat status;
    if (fstat(r->fd, &status) < 0)
        return -errno;
    if (!S_ISREG(status.st_mode))
        return PL_E_FOREIGN;
    if (status.st_uid != geteuid()) /* /dev/shm is everybody's */
        return -EACCES;
    if (!status.st_nlink)
        return AGAIN; /* unlinked meanwhile */
    int rc = is_half_made(r, &status);
    if (rc < 0)
        return rc;
    if (rc == 0) /* -EEXIST: another one was quicker with the lock */
        return create == PL_CREATE ? -EEXIST : attach(r, names, want, found);
    if (create == PL_ATTACH)
        return AGAIN;
    if ((rc = furnish(r, names, want)) < 0) {
        (void)unlink_bell(names->bell);
        (void)shm_unlink(names->object);
        return rc;
    }
    *found = *want;
    return CREATED;
}

static int open_object(const struct names *names, enum pl_create create)
{
    int flags = O_RDWR | O_CLOEXEC | O_NOFOLLOW;
    if (create != PL_ATTACH)
        flags |= O_CREAT;
    if (create == PL_CREATE)
        flags |= O_EXCL;
    int fd = shm_open(names->object, flags, OBJECT_MODE);
    if (fd < 0)
        return errno == ELOOP ? PL_E_FOREIGN : -errno;
    int moved = sock_above_stdio(fd);
    if (moved < 0)
        sock_close(fd);
    return moved;
}

static int try_open(struct region *r, const struct names *names, enum pl_create create,
                    const struct region_head *want, struct region_head *found)
{
    int rc = begin(r);
    if (rc < 0)
        return rc;
    if ((rc = r->fd = open_object(names, create)) < 0)
        goto fail;
    if ((rc = region_lock_file(r->fd, deadline_of(PATIENCE_NS))) < 0)
        goto fail;
    rc = settle(r, names, create, want, found);
    region_unlock_file(r->fd);
    if (rc == ATTACHED || rc == CREATED)
        return rc;
fail:
    region_fini(r);
    return rc;
}

int region_open(struct region *r, const char *name, enum pl_create create,
                const struct region_head *want, struct region_head *found)
{
    struct names names;
    int rc = make_names(&names, name);
    if (rc < 0)
        return rc;
    for (int i = 0; i < OPEN_TRIES; i++) {
        rc = try_open(r, &names, create, want, found);
        if (rc != AGAIN)
            return rc;
        if ((rc = region_nap(RETRY_NS)) < 0)
            return rc;
    }
    return PL_E_FOREIGN; /* left half made, and nobody goes on with it */
}

/* The lock keeps out who would find half of it. While it cannot be had nobody else gets in, either. */
static int unlink_both(const struct names *names, int fd)
{
    struct stat status;
    (void)region_lock_file(fd, deadline_of(PATIENCE_NS));
    if (fstat(fd, &status) < 0)
        return -errno;
    if (!status.st_nlink)
        return -ENOENT;
    (void)unlink_bell(names->bell); /* first: once the object is gone, the bell may be another one's */
    return shm_unlink(names->object) < 0 ? -errno : 0;
}

int region_unlink(const char *name)
{
    struct names names;
    int rc = make_names(&names, name);
    if (rc < 0)
        return rc;
    int fd = open_object(&names, PL_ATTACH);
    if (fd == -ENOENT)
        return fd;
    if (fd < 0) /* none of ours, perhaps */
        return shm_unlink(names.object) < 0 ? -errno : 0;
    rc = unlink_both(&names, fd);
    sock_close(fd);
    return rc;
}

#else

int region_new(struct region *r, const char *label, const struct region_head *want)
{
    (void)r, (void)label, (void)want;
    return -ENOSYS;
}

int region_adopt(struct region *r, int fd, int bell, const struct region_head *want,
                 struct region_head *found)
{
    (void)r, (void)fd, (void)bell, (void)want, (void)found;
    return -ENOSYS;
}

int region_open(struct region *r, const char *name, enum pl_create create,
                const struct region_head *want, struct region_head *found)
{
    (void)r, (void)name, (void)create, (void)want, (void)found;
    return -ENOSYS;
}

int region_unlink(const char *name)
{
    (void)name;
    return -ENOSYS;
}

#endif
