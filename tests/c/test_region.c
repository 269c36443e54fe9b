/* test_region.c -- region.c: both kinds are read, written, locked and rung alike. */
#include "region.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"

#define KIND 77u
#define SIZE 8192u

static const struct region_head want = {
    .version = 3, .kind = KIND, .size = SIZE, .params = {11, 22, 33}};

static void name_of(char *name, size_t len)
{
    (void)snprintf(name, len, "pyloop-test-%d", (int)getpid());
}

static void check_bytes(struct region *r)
{
    char text[6] = "";
    uint64_t value = 0;
    CHECK(region_write(r, 256, "hello", 6) == 0);
    CHECK(region_read(r, 256, text, 6) == 0 && !strcmp(text, "hello"));
    CHECK(region_store(r, 72, 99) == 0 && region_load(r, 72, &value) == 0 && value == 99);
}

static void *ring_soon(void *r)
{
    usleep(1000);
    (void)region_ring(r);
    return NULL;
}

static void check_bell(struct region *r)
{
    pthread_t thread;
    int latch = region_latch(r), other = region_latch(r);
    CHECK(latch > 2 && other > 2 && latch != other);
    CHECK(pthread_create(&thread, NULL, ring_soon, r) == 0);
    CHECK(region_wait(latch, -1) == 0);
    CHECK(pthread_join(thread, NULL) == 0);
    while (region_wait(latch, deadline_of(1)) == 0)
        ;
    CHECK(region_wait(latch, deadline_of(1000)) == -ETIMEDOUT);
    CHECK(region_wait(other, -1) == 0); /* it remembers, whatever the others heard */
    for (int i = 0; i < 20000; i++)     /* more than a FIFO holds */
        CHECK(region_ring(r) == 0);
    CHECK(region_wait(latch, deadline_of(1000000000)) == 0);
    region_return(r, latch);
    region_return(r, other);
    CHECK(region_latch(r) == latch);
    region_return(r, latch);
}

/* A child takes the lock and dies with it. */
static void check_killed_holder(struct region *r)
{
    pid_t child = fork();
    if (child == 0) {
        int rc = region_enter(r);
        if (rc == 0)
            rc = region_lock(r, 0, -1);
        raise(rc < 0 ? SIGABRT : SIGKILL);
    }
    int status;
    CHECK(waitpid(child, &status, 0) == child && WTERMSIG(status) == SIGKILL);
    CHECK(region_lock(r, 0, -1) == (r->base ? 1 : 0));
    CHECK(region_lock(r, 0, deadline_of(1000)) == -ETIMEDOUT);
    region_unlock(r, 0);
}

static void check_all(struct region *r)
{
    check_bytes(r);
    check_bell(r);
    check_killed_holder(r);
}

static void test_nameless(void)
{
    struct region r, other;
    struct region_head found;
    uint64_t value;
    CHECK(region_new(&r, "pyloop-test", &want) == 0);
    check_all(&r);
    CHECK(region_adopt(&other, r.fd, r.bell, &want, &found) == 0);
    CHECK(found.params[2] == 33 && region_load(&other, 72, &value) == 0 && value == 99);
    region_fini(&other);
    struct region_head else_ = want;
    else_.kind++;
    CHECK(region_adopt(&other, r.fd, r.bell, &else_, &found) == PL_E_FOREIGN);
    region_fini(&r);
}

static void test_named(void)
{
    struct region r, other;
    struct region_head found;
    char name[64];
    name_of(name, sizeof name);
    (void)region_unlink(name);
    CHECK(region_open(&r, name, PL_ATTACH, &want, &found) == -ENOENT);
    CHECK(region_open(&r, name, PL_ATTACH_OR_CREATE, &want, &found) == 1);
    CHECK(region_open(&other, name, PL_CREATE, &want, &found) == -EEXIST);
    CHECK(region_open(&other, name, PL_ATTACH, &want, &found) == 0 && found.params[0] == 11);
    check_all(&r);
    CHECK(region_lock(&r, 0, 0) == 0);
    CHECK(region_lock(&other, 1, deadline_of(1000)) == -ETIMEDOUT); /* both are one */
    region_unlock(&r, 0);
    CHECK(ftruncate(r.fd, 100) == 0);
    CHECK(region_write(&other, 0, &found, 8) == 0);
    CHECK(region_read(&other, 72, &found, 40) == PL_E_CORRUPT);
    region_fini(&other);
    CHECK(region_open(&other, name, PL_ATTACH, &want, &found) == PL_E_FOREIGN);
    CHECK(region_unlink(name) == 0 && region_unlink(name) == -ENOENT);
    CHECK(region_unlink("a/b") == -EINVAL && region_unlink("") == -EINVAL);
    CHECK(region_unlink("a.bell") == -EINVAL && region_unlink("..") == -EINVAL);
    region_fini(&r);
}

static void bell_of(char *path, size_t len)
{
    (void)snprintf(path, len, "/dev/shm/pyloop-test-%d.bell", (int)getpid());
}

static void test_other_bell_is_foreign(void)
{
    struct region r, other;
    struct region_head found;
    char name[64], bell[80];
    name_of(name, sizeof name);
    bell_of(bell, sizeof bell);
    CHECK(region_open(&r, name, PL_CREATE, &want, &found) == 1);
    CHECK(unlink(bell) == 0 && mkfifo(bell, 0600) == 0);
    CHECK(region_open(&other, name, PL_ATTACH, &want, &found) == PL_E_FOREIGN);
    CHECK(unlink(bell) == 0);
    CHECK(region_open(&other, name, PL_ATTACH, &want, &found) == PL_E_FOREIGN);
    CHECK(region_unlink(name) == 0);
    region_fini(&r);
}

/* What is no FIFO is not ours to remove. */
static void test_file_in_the_bell_s_place_stays(void)
{
    struct region r;
    struct region_head found;
    char name[64], bell[80];
    name_of(name, sizeof name);
    bell_of(bell, sizeof bell);
    int fd = open(bell, O_CREAT | O_EXCL | O_RDWR, 0600);
    CHECK(fd >= 0 && close(fd) == 0);
    CHECK(region_open(&r, name, PL_CREATE, &want, &found) == PL_E_FOREIGN);
    CHECK(region_open(&r, name, PL_ATTACH, &want, &found) == -ENOENT);
    CHECK(unlink(bell) == 0);
}

/* Killed in the middle, and the next one wants a shorter one: all who come later find that. */
static void test_longer_one_that_was_left_half_made_is_made_anew(void)
{
    struct region r, other;
    struct region_head found, half = want;
    char name[64], path[80];
    uint8_t byte = 1;
    name_of(name, sizeof name);
    (void)snprintf(path, sizeof path, "/%s", name);
    CHECK(region_open(&r, name, PL_CREATE, &want, &found) == 1);
    CHECK(region_read(&r, 0, &half, sizeof half) == 0);
    half.magic = 0;
    CHECK(region_write(&r, 0, &half, sizeof half) == 0 && region_write(&r, 4000, &byte, 1) == 0);
    CHECK(ftruncate(r.fd, 3 * SIZE) == 0);
    region_fini(&r);
    CHECK(region_open(&r, name, PL_ATTACH_OR_CREATE, &want, &found) == 1);
    CHECK(region_read(&r, 4000, &byte, 1) == 0 && byte == 0);
    CHECK(region_open(&other, name, PL_ATTACH, &want, &found) == 0 && found.size == SIZE);
    region_fini(&other);
    CHECK(region_unlink(name) == 0);
    region_fini(&r);
}

/* /dev/shm is everybody's: another user may have been there first. */
static void test_object_of_another_user_is_refused(void)
{
    struct region r, other;
    struct region_head found;
    char name[64];
    name_of(name, sizeof name);
    if (geteuid()) /* only root can give a file away */
        return;
    CHECK(region_open(&r, name, PL_CREATE, &want, &found) == 1);
    CHECK(fchown(r.fd, 65534, 65534) == 0);
    CHECK(region_open(&other, name, PL_ATTACH, &want, &found) == -EACCES);
    CHECK(region_open(&other, name, PL_ATTACH_OR_CREATE, &want, &found) == -EACCES);
    CHECK(region_unlink(name) == 0);
    region_fini(&r);
}

static void *unlink_often(void *done)
{
    char name[64];
    name_of(name, sizeof name);
    while (!*(_Atomic int *)done)
        (void)region_unlink(name);
    return NULL;
}

/* One goes, the next one comes: it is whole, with a bell of its own. */
static void test_unlinked_and_made_at_once_is_whole(void)
{
    _Atomic int done = 0;
    pthread_t thread;
    char name[64];
    int rc = 0;
    name_of(name, sizeof name);
    CHECK(pthread_create(&thread, NULL, unlink_often, &done) == 0);
    for (int i = 0; i < 3000 && rc >= 0; i++) {
        struct region r;
        struct region_head found;
        if ((rc = region_open(&r, name, PL_ATTACH_OR_CREATE, &want, &found)) >= 0)
            region_fini(&r);
    }
    done = 1;
    CHECK(pthread_join(thread, NULL) == 0 && rc >= 0);
    (void)region_unlink(name);
}

CHECK_MAIN(RUN(test_nameless); RUN(test_named); RUN(test_other_bell_is_foreign);
           RUN(test_file_in_the_bell_s_place_stays);
           RUN(test_longer_one_that_was_left_half_made_is_made_anew);
           RUN(test_object_of_another_user_is_refused);
           RUN(test_unlinked_and_made_at_once_is_whole);)
