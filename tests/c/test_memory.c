/* test_memory.c -- shared memory that nobody can resize: made, mapped again, inherited, refused. */
#include <signal.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include "loop_rig.h"

#define LEN ((size_t)10000) /* no whole number of pages */

static int fds_open(void)
{
    int n = 0;
    for (int fd = 0; fd < 256; fd++)
        n += fcntl(fd, F_GETFD) >= 0;
    return n;
}

static void test_new_memory_is_zero_and_its_fd_is_high_and_cloexec(void)
{
    void *data = NULL;
    struct stat status;
    char link[64], name[128];
    int saved = dup(0);
    close(0); /* as in a process that was started without stdin */
    int fd = pl_memory_new("pyloop-test", LEN, &data);
    dup2(saved, 0);
    close(saved);
    CHECK(fd >= 3 && (fcntl(fd, F_GETFD) & FD_CLOEXEC));
    CHECK(fstat(fd, &status) == 0 && status.st_size == (off_t)LEN);
    const uint8_t *bytes = data;
    for (size_t i = 0; i < LEN; i++)
        CHECK(bytes[i] == 0);
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, name, sizeof name - 1);
    CHECK(n > 0);
    name[n] = 0;
    CHECK(strcmp(name, "/memfd:pyloop-test (deleted)") == 0);
    pl_memory_unmap(data, LEN);
    close(fd);
}

static void test_all_of_it_is_allocated_at_once(void)
{
    void *data = NULL;
    struct stat status;
    int fd = pl_memory_new("pyloop-test", 40 * LEN, &data);
    CHECK(fd >= 0 && fstat(fd, &status) == 0);
    CHECK((size_t)status.st_blocks * 512 >= 40 * LEN);
    pl_memory_unmap(data, 40 * LEN);
    close(fd);
}

static void test_sealed_memory_can_neither_be_resized_nor_unsealed(void)
{
    void *data = NULL;
    int fd = pl_memory_new("pyloop-test", LEN, &data);
    CHECK(fd >= 0);
    CHECK(ftruncate(fd, 0) < 0 && errno == EPERM);
    CHECK(ftruncate(fd, (off_t)LEN + 1) < 0 && errno == EPERM);
    CHECK(lseek(fd, 0, SEEK_END) == (off_t)LEN);
    CHECK(write(fd, "x", 1) < 0 && errno == EPERM); /* it would grow */
    CHECK(fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE) < 0 && errno == EPERM);
    pl_memory_unmap(data, LEN);
    close(fd);
}

static void test_what_one_mapping_writes_the_other_and_a_child_see(void)
{
    void *data = NULL, *other = NULL;
    int status, fd = pl_memory_new("pyloop-test", LEN, &data);
    CHECK(fd >= 0 && pl_memory_map(fd, LEN, 1, &other) == 0 && other != data);
    close(fd); /* the mappings stay */
    uint8_t *one = data, *two = other;
    one[LEN - 1] = 7;
    CHECK(two[LEN - 1] == 7);
    two[0] = 9;
    CHECK(one[0] == 9);
    pid_t pid = fork();
    if (pid == 0) {
        int bad = one[0] != 9 || two[LEN - 1] != 7;
        one[1] = 11;
        _exit(bad);
    }
    CHECK(waitpid(pid, &status, 0) == pid && status == 0);
    CHECK(two[1] == 11);
    pl_memory_unmap(data, LEN);
    CHECK(two[1] == 11);
    pl_memory_unmap(other, LEN);
}

static void test_read_only_mapping_refuses_writes_and_sees_others(void)
{
    void *data = NULL, *view = NULL;
    int status, fd = pl_memory_new("pyloop-test", LEN, &data);
    CHECK(fd >= 0 && pl_memory_map(fd, LEN, 0, &view) == 0);
    *(uint8_t *)data = 5;
    CHECK(*(volatile uint8_t *)view == 5);
    pid_t pid = fork();
    if (pid == 0) {
        signal(SIGSEGV, SIG_DFL); /* not ASan's */
        *(volatile uint8_t *)view = 6;
        _exit(0);
    }
    CHECK(waitpid(pid, &status, 0) == pid && WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV);
    CHECK(*(volatile uint8_t *)view == 5);
    char path[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    int read_only = open(path, O_RDONLY | O_CLOEXEC);
    void *again = NULL;
    CHECK(read_only >= 0 && pl_memory_map(read_only, LEN, 1, &again) == -EACCES && !again);
    CHECK(pl_memory_map(read_only, LEN, 0, &again) == 0);
    pl_memory_unmap(again, LEN);
    pl_memory_unmap(view, LEN);
    pl_memory_unmap(data, LEN);
    close(read_only);
    close(fd);
}

/* A memfd of somebody else's, with these seals. */
static int foreign_memory(size_t len, int seals)
{
    int fd = memfd_create("pyloop-test", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (fd >= 0 && (ftruncate(fd, (off_t)len) < 0 || fcntl(fd, F_ADD_SEALS, seals) < 0))
        return -1;
    return fd;
}

static void test_map_refuses_what_could_become_shorter(void)
{
    void *data = NULL;
    int file = fileno(tmpfile()), fds[2];
    int open_ = foreign_memory(LEN, 0), grown = foreign_memory(LEN, F_SEAL_GROW);
    int firm = foreign_memory(LEN, F_SEAL_SHRINK);
    CHECK(open_ >= 0 && grown >= 0 && firm >= 0 && ftruncate(file, (off_t)LEN) == 0);
    CHECK(pl_memory_map(open_, LEN, 0, &data) == -EINVAL);
    CHECK(pl_memory_map(grown, LEN, 0, &data) == -EINVAL);
    CHECK(pl_memory_map(file, LEN, 0, &data) == -EINVAL);
    CHECK(pipe(fds) == 0 && pl_memory_map(fds[0], 1, 0, &data) == -EINVAL);
    CHECK(!data && pl_memory_map(firm, LEN, 0, &data) == 0 && data);
    pl_memory_unmap(data, LEN);
    close(open_);
    close(grown);
    close(firm);
    close(fds[0]);
    close(fds[1]);
}

static void test_lengths_that_do_not_fit_are_refused(void)
{
    void *data = NULL;
    int before = fds_open();
    CHECK(pl_memory_new("pyloop-test", 0, &data) == -EINVAL);
    CHECK(pl_memory_new("pyloop-test", SIZE_MAX, &data) == -EINVAL);
    CHECK(pl_memory_new("pyloop-test", (size_t)PTRDIFF_MAX, &data) == -ENOMEM);
    char name[300];
    memset(name, 'x', sizeof name);
    name[sizeof name - 1] = 0;
    CHECK(pl_memory_new(name, LEN, &data) == -EINVAL);
    int fd = pl_memory_new("pyloop-test", LEN, &data);
    void *other = NULL;
    CHECK(fd >= 0 && pl_memory_map(fd, 0, 0, &other) == -EINVAL);
    CHECK(pl_memory_map(fd, LEN + 1, 0, &other) == -EINVAL);
    CHECK(pl_memory_map(fd, SIZE_MAX, 0, &other) == -EINVAL && !other);
    pl_memory_unmap(data, LEN);
    close(fd);
    CHECK(pl_memory_map(fd, LEN, 0, &other) == -EBADF && !other);
    pl_memory_unmap(NULL, LEN);
    CHECK(fds_open() == before);
}

static void test_short_of_fds_leaves_nothing_open(void)
{
    void *data = NULL;
    struct rlimit old, tight;
    int before = fds_open(), next = dup(0);
    close(next);
    CHECK(getrlimit(RLIMIT_NOFILE, &old) == 0);
    tight = old;
    tight.rlim_cur = (rlim_t)next;
    CHECK(setrlimit(RLIMIT_NOFILE, &tight) == 0);
    int rc = pl_memory_new("pyloop-test", LEN, &data);
    setrlimit(RLIMIT_NOFILE, &old);
    CHECK(rc == -EMFILE && !data && fds_open() == before);
}

/* A full memory: a file-size limit stands in for it. */
static void test_allocation_that_fails_leaves_nothing_open(void)
{
    void *data = NULL;
    struct rlimit old, tight;
    int before = fds_open();
    CHECK(getrlimit(RLIMIT_FSIZE, &old) == 0);
    tight = old;
    tight.rlim_cur = 4096;
    void (*handler)(int) = signal(SIGXFSZ, SIG_IGN);
    CHECK(setrlimit(RLIMIT_FSIZE, &tight) == 0);
    int rc = pl_memory_new("pyloop-test", LEN, &data);
    setrlimit(RLIMIT_FSIZE, &old);
    signal(SIGXFSZ, handler);
    CHECK(rc == -EFBIG && !data && fds_open() == before);
}

CHECK_MAIN(RUN(test_new_memory_is_zero_and_its_fd_is_high_and_cloexec);
           RUN(test_all_of_it_is_allocated_at_once);
           RUN(test_sealed_memory_can_neither_be_resized_nor_unsealed);
           RUN(test_what_one_mapping_writes_the_other_and_a_child_see);
           RUN(test_read_only_mapping_refuses_writes_and_sees_others);
           RUN(test_map_refuses_what_could_become_shorter);
           RUN(test_lengths_that_do_not_fit_are_refused);
           RUN(test_short_of_fds_leaves_nothing_open);
           RUN(test_allocation_that_fails_leaves_nothing_open);)
