/* test_mapping.c -- mappings of a file: offsets, copies, and what a truncation makes of them, with
 * process_vm_readv and without. */
#include "mapping.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdbool.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"

#define PAGE 4096
#define FILE_BYTES (16 * PAGE + 100)
#define ROUNDS 300

static bool forbidden; /* by a policy: what seccomp says is EPERM */
static int fd;
static struct pl_mapping *m;
static uint8_t room[FILE_BYTES], expected[FILE_BYTES];

/* These stand before libc's. */
ssize_t process_vm_readv(pid_t pid, const struct iovec *local, unsigned long n,
                         const struct iovec *remote, unsigned long k, unsigned long flags)
{
    errno = EPERM;
    return forbidden ? -1 : syscall(SYS_process_vm_readv, pid, local, n, remote, k, flags);
}

ssize_t process_vm_writev(pid_t pid, const struct iovec *local, unsigned long n,
                          const struct iovec *remote, unsigned long k, unsigned long flags)
{
    errno = EPERM;
    return forbidden ? -1 : syscall(SYS_process_vm_writev, pid, local, n, remote, k, flags);
}

static int file_open(void)
{
    char path[] = "/tmp/test_mapping_XXXXXX";
    fd = mkstemp(path);
    unlink(path);
    for (size_t i = 0; i < sizeof expected; i++)
        expected[i] = (uint8_t)(i * 7 + i / 251);
    return write(fd, expected, sizeof expected) == sizeof expected;
}

static int file_map(uint64_t offset, size_t len, int mode)
{
    return file_open() ? pl_mapping_new(fd, offset, len, mode, &m) : -EIO;
}

static void file_close(void)
{
    pl_mapping_release(m);
    close(fd);
}

static int lowest_free_fd(void)
{
    int lowest = dup(0);
    close(lowest);
    return lowest;
}

/* ---- making ---- */

static void test_any_offset_maps_the_bytes_from_there(void)
{
    static const size_t offsets[] = {0, 1, PAGE - 1, PAGE, PAGE + 1, FILE_BYTES - 1};
    for (size_t i = 0; i < sizeof offsets / sizeof *offsets; i++) {
        size_t len = FILE_BYTES - offsets[i];
        CHECK(file_map(offsets[i], len, PL_MAP_READ) == 0);
        CHECK(memcmp(pl_mapping_data(m), expected + offsets[i], len) == 0);
        CHECK(pl_mapping_read(m, 0, room, len) == 0);
        CHECK(memcmp(room, expected + offsets[i], len) == 0);
        file_close();
    }
}

static void test_what_cannot_be_mapped_is_refused(void)
{
    CHECK(file_open());
    CHECK(pl_mapping_new(fd, 0, 0, PL_MAP_READ, &m) == -EINVAL);
    CHECK(pl_mapping_new(fd, 0, FILE_BYTES + 1, PL_MAP_READ, &m) == -EINVAL);
    CHECK(pl_mapping_new(fd, FILE_BYTES, 1, PL_MAP_READ, &m) == -EINVAL);
    CHECK(pl_mapping_new(fd, UINT64_MAX, 2, PL_MAP_READ, &m) == -EINVAL);
    CHECK(pl_mapping_new(fd, 0, SIZE_MAX, PL_MAP_READ, &m) == -EINVAL);
    CHECK(pl_mapping_new(fd, 0, 1, PL_MAP_PRIVATE + 1, &m) == -EINVAL);
    CHECK(pl_mapping_new(-1, 0, 1, PL_MAP_READ, &m) == -EBADF);
    close(fd);
    int readable = open("/proc/self/exe", O_RDONLY);
    CHECK(pl_mapping_new(readable, 0, 1, PL_MAP_SHARED, &m) == -EACCES);
    fail_alloc_after(0);
    CHECK(pl_mapping_new(readable, 0, 1, PL_MAP_READ, &m) == -ENOMEM);
    close(readable);
}

static void test_the_last_reference_unmaps_and_closes(void)
{
    int before = lowest_free_fd();
    CHECK(file_map(0, FILE_BYTES, PL_MAP_READ) == 0);
    mapping_hold(m);
    mapping_hold(m);
    CHECK(pl_mapping_queued(m) == 2);
    mapping_drop(m);
    file_close();
    CHECK(lowest_free_fd() == before); /* the file's; the mapping's own is the next */
    CHECK(pl_mapping_queued(m) == 1);
    CHECK(pl_mapping_data(m)[5] == expected[5]);
    mapping_drop(m);
    CHECK(lowest_free_fd() == before && fcntl(before + 1, F_GETFD) < 0);
}

/* ---- writing ---- */

static void test_shared_writes_reach_the_file_and_private_ones_do_not(void)
{
    for (int mode = PL_MAP_SHARED; mode <= PL_MAP_PRIVATE; mode++) {
        CHECK(file_map(10, 100, mode) == 0);
        CHECK(pl_mapping_write(m, 50, (const uint8_t *)"hello", 5) == 0);
        CHECK(pl_mapping_fill(m, 98, 'x', 2) == 0);
        CHECK(pl_mapping_flush(m, 50, 5) == 0);
        CHECK(pl_mapping_read(m, 49, room, 51) == 0);
        CHECK(memcmp(room + 1, "hello", 5) == 0 && memcmp(room + 49, "xx", 2) == 0);
        CHECK(room[0] == expected[59] && room[6] == expected[65]);
        CHECK(pread(fd, room, 110, 0) == 110);
        CHECK(memcmp(room + 60, mode == PL_MAP_SHARED ? "hello" : (void *)(expected + 60), 5) == 0);
        file_close();
    }
}

/* Bytes beside the range share its pages. */
static void test_forgetting_a_range_leaves_what_was_written_beside_it(void)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE), from = 10, to = 2 * page + 10;
    CHECK(file_map(3, FILE_BYTES - 3, PL_MAP_PRIVATE) == 0);
    CHECK(pl_mapping_fill(m, 0, 0xee, FILE_BYTES - 3) == 0);
    CHECK(pl_mapping_advise(m, from, to - from, PL_MAP_DONTNEED) == 0);
    const uint8_t *data = pl_mapping_data(m);
    CHECK(data[from - 1] == 0xee && data[to] == 0xee && data[FILE_BYTES - 4] == 0xee);
    CHECK(data[page] == expected[page + 3]); /* a page that is all inside */
    CHECK(pl_mapping_advise(m, from, 1, PL_MAP_DONTNEED) == 0 && data[from] == 0xee);
    CHECK(pl_mapping_advise(m, 0, FILE_BYTES - 3, PL_MAP_DONTNEED) == 0);
    CHECK(data[0] == expected[3] && data[FILE_BYTES - 4] == expected[FILE_BYTES - 1]);
    file_close();
}

static void test_a_range_beyond_the_mapping_is_refused(void)
{
    CHECK(file_map(0, 100, PL_MAP_SHARED) == 0);
    CHECK(pl_mapping_read(m, 99, room, 2) == -EINVAL);
    CHECK(pl_mapping_write(m, 101, room, 0) == -EINVAL);
    CHECK(pl_mapping_fill(m, SIZE_MAX, 0, 2) == -EINVAL);
    CHECK(pl_mapping_flush(m, 1, SIZE_MAX) == -EINVAL);
    CHECK(pl_mapping_advise(m, 0, 101, PL_MAP_NORMAL) == -EINVAL);
    CHECK(pl_mapping_advise(m, 0, 1, PL_MAP_DONTNEED + 1) == -EINVAL);
    CHECK(pl_mapping_advise(m, 7, 93, PL_MAP_WILLNEED) == 0);
    file_close();
}

static void test_a_read_only_mapping_is_not_written(void)
{
    for (int i = 0; i < 2; i++) {
        forbidden = i;
        CHECK(file_map(0, FILE_BYTES, PL_MAP_READ) == 0);
        CHECK(pl_mapping_write(m, 0, (const uint8_t *)"x", 1) == -EFAULT);
        CHECK(pl_mapping_data(m)[0] == expected[0]);
        file_close();
    }
}

/* ---- truncation ---- */

static void check_truncated(void)
{
    static const size_t sizes[] = {0, 1, 100, PAGE, 5 * PAGE + 9};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        CHECK(file_map(0, FILE_BYTES, PL_MAP_SHARED) == 0);
        CHECK(ftruncate(fd, (off_t)sizes[i]) == 0);
        CHECK(pl_mapping_read(m, 0, room, sizes[i]) == 0);
        CHECK(memcmp(room, expected, sizes[i]) == 0);
        CHECK(pl_mapping_read(m, 0, room, sizes[i] + 1) == -EFAULT);
        CHECK(pl_mapping_read(m, 0, room, FILE_BYTES) == -EFAULT);
        CHECK(pl_mapping_write(m, sizes[i], expected, 1) == -EFAULT);
        CHECK(pl_mapping_write(m, 0, expected, FILE_BYTES) == -EFAULT);
        CHECK(pl_mapping_fill(m, 0, 1, FILE_BYTES) == -EFAULT);
        CHECK(pl_mapping_check(m, 0, sizes[i]) == 0);
        CHECK(pl_mapping_check(m, 0, sizes[i] + 1) == -EFAULT);
        file_close();
    }
}

static void test_copies_of_what_the_file_has_lost_are_errors(void)
{
    forbidden = false;
    check_truncated();
}

static void test_copies_by_pipe_are_the_same(void)
{
    forbidden = true;
    CHECK(file_map(0, FILE_BYTES, PL_MAP_SHARED) == 0);
    CHECK(pl_mapping_read(m, 0, room, FILE_BYTES) == 0);
    CHECK(memcmp(room, expected, FILE_BYTES) == 0);
    memset(room, 5, FILE_BYTES);
    CHECK(pl_mapping_write(m, 0, room, FILE_BYTES) == 0);
    CHECK(memcmp(pl_mapping_data(m), room, FILE_BYTES) == 0);
    file_close();
    int before = lowest_free_fd();
    check_truncated();
    CHECK(lowest_free_fd() == before);
}

/* Another process truncates and restores the file all the time: bytes or -EFAULT, no signal. */
static void check_during_copies(void)
{
    int whole = 0, lost = 0;
    CHECK(file_map(0, FILE_BYTES, PL_MAP_SHARED) == 0);
    pid_t child = fork();
    while (child == 0) {
        (void)!ftruncate(fd, 0);
        (void)!ftruncate(fd, FILE_BYTES);
    }
    for (int i = 0; i < ROUNDS || ((!whole || !lost) && i < 1000 * ROUNDS); i++) {
        int rc = i % 2 ? pl_mapping_read(m, 0, room, FILE_BYTES)
                       : pl_mapping_write(m, 0, expected, FILE_BYTES);
        whole += rc == 0;
        lost += rc == -EFAULT;
        if (rc != 0 && rc != -EFAULT)
            break;
    }
    kill(child, SIGKILL);
    waitpid(child, NULL, 0);
    file_close();
    CHECK(whole > 0 && lost > 0 && whole + lost >= ROUNDS);
}

static void test_truncations_during_copies_are_errors(void)
{
    forbidden = false;
    check_during_copies();
    forbidden = true;
    check_during_copies();
}

CHECK_MAIN(RUN(test_any_offset_maps_the_bytes_from_there);
           RUN(test_what_cannot_be_mapped_is_refused);
           RUN(test_the_last_reference_unmaps_and_closes);
           RUN(test_shared_writes_reach_the_file_and_private_ones_do_not);
           RUN(test_forgetting_a_range_leaves_what_was_written_beside_it);
           RUN(test_a_range_beyond_the_mapping_is_refused);
           RUN(test_a_read_only_mapping_is_not_written);
           RUN(test_copies_of_what_the_file_has_lost_are_errors);
           RUN(test_copies_by_pipe_are_the_same); RUN(test_truncations_during_copies_are_errors);)
