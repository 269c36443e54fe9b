/* faults.c -- an LD_PRELOAD shim that lets chosen libc calls of the core fail. For tests only.
 *
 *   FAULTS=accept4:EMFILE:every=3,epoll_ctl:ENOMEM:from=5:count=1
 *
 * A rule names a call and an errno; it holds from the from-th call on (1), for every every-th call (1), at most
 * count times (without end). FAULTS sets the rules at the start, faults_set later; faults_count tells what
 * happened. A rule "CALL" without an errno only counts; one with SIGUSR1 in its place has that come, and makes the call.
 *
 * Only calls made by pyloop's core are counted and failed (by return address; under ASan its interceptors stand
 * between), so Python's own sockets and files are never touched. A failing close has closed all the same, as
 * close(2) on Linux when a signal interrupts it. A close of an fd that is not open is counted as "bad".
 *
 * Linux and glibc. Source: dlsym(3), dladdr(3), ld.so(8).
 */
#include <dlfcn.h>
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>

enum call { ACCEPT4, EPOLL_CTL, EPOLL_WAIT, PSELECT, PPOLL, CLOSE, VM_READ, VM_WRITE, MALLOC, CALLS };

static struct rule {
    const char *name;
    void *real;
    bool active;
    int error;
    unsigned from, every, count;
    atomic_uint calls, failed, bad;
} rules[CALLS] = {
    [ACCEPT4] = {.name = "accept4"},       [EPOLL_CTL] = {.name = "epoll_ctl"},
    [EPOLL_WAIT] = {.name = "epoll_wait"}, [PSELECT] = {.name = "pselect"},
    [PPOLL] = {.name = "ppoll"},           [CLOSE] = {.name = "close"},
    [VM_READ] = {.name = "process_vm_readv"},
    [VM_WRITE] = {.name = "process_vm_writev"},
    [MALLOC] = {.name = "malloc"},
};

static const struct {
    const char *name;
    int number;
} errors[] = {
    {"EBADF", EBADF},   {"ECONNABORTED", ECONNABORTED}, {"EINTR", EINTR},   {"EMFILE", EMFILE},
    {"ENFILE", ENFILE}, {"ENOBUFS", ENOBUFS},           {"ENOMEM", ENOMEM}, {"EPERM", EPERM},
    {"EIO", EIO},       {"ENOSYS", ENOSYS},             {"SIGUSR1", -SIGUSR1},
};

/* ---- rules ---- */

static struct rule *find_rule(const char *name, size_t len)
{
    for (int i = 0; i < CALLS; i++)
        if (strlen(rules[i].name) == len && memcmp(rules[i].name, name, len) == 0)
            return &rules[i];
    return NULL;
}

static int find_error(const char *name, size_t len)
{
    for (size_t i = 0; i < sizeof errors / sizeof *errors; i++)
        if (strlen(errors[i].name) == len && memcmp(errors[i].name, name, len) == 0)
            return errors[i].number;
    return 0;
}

/* One part of a rule behind its name: an errno, or a number with a name. 0 or -1. */
static int set_part(struct rule *rule, const char *part, size_t len)
{
    if (sscanf(part, "from=%u", &rule->from) == 1 || sscanf(part, "every=%u", &rule->every) == 1 ||
        sscanf(part, "count=%u", &rule->count) == 1)
        return rule->every ? 0 : -1;
    rule->error = find_error(part, len);
    return rule->error ? 0 : -1;
}

static int set_rule(const char *text)
{
    size_t len = strcspn(text, ":,");
    struct rule *rule = find_rule(text, len);
    if (!rule)
        return -1;
    rule->error = 0;
    rule->from = rule->every = 1;
    rule->count = ~0u;
    rule->calls = rule->failed = rule->bad = 0;
    for (text += len; *text == ':'; text += len) {
        text++;
        len = strcspn(text, ":,");
        if (set_part(rule, text, len) < 0)
            return -1;
    }
    rule->active = true;
    return 0;
}

/* Replace all rules and counts. 0, or -1 for a spec that is not understood. */
int faults_set(const char *spec)
{
    for (int i = 0; i < CALLS; i++)
        rules[i].active = false;
    for (; *spec; spec += strcspn(spec, ","), spec += *spec == ',')
        if (set_rule(spec) < 0)
            return -1;
    return 0;
}

/* How often a call was made, was failed, or (close) met a bad fd, since its rule was set. -1: no such call. */
int faults_count(const char *name, const char *what)
{
    const struct rule *rule = find_rule(name, strlen(name));
    if (!rule)
        return -1;
    return (int)(*what == 'c' ? rule->calls : *what == 'f' ? rule->failed : rule->bad);
}

__attribute__((constructor)) static void start(void)
{
    for (int i = 0; i < MALLOC; i++)
        rules[i].real = dlsym(RTLD_NEXT, rules[i].name);
    const char *spec = getenv("FAULTS");
    if (spec && faults_set(spec) < 0) {
        fprintf(stderr, "faults: cannot read FAULTS=%s\n", spec);
        _Exit(2);
    }
}

/* ---- the calls ---- */

static bool is_core(const void *caller)
{
    Dl_info info;
    if (!dladdr(caller, &info) || !info.dli_fname)
        return false;
    const char *slash = strrchr(info.dli_fname, '/');
    const char *base = slash ? slash + 1 : info.dli_fname;
    return strncmp(base, "_core", 5) == 0 || strncmp(base, "libasan", 7) == 0;
}

/* Count a call; 0, or the errno it must fail with. */
static int verdict(struct rule *rule, const void *caller)
{
    if (!rule->active || !is_core(caller))
        return 0;
    unsigned n = atomic_fetch_add(&rule->calls, 1) + 1;
    if (!rule->error || n < rule->from || (n - rule->from + 1) % rule->every)
        return 0;
    if (atomic_load(&rule->failed) >= rule->count)
        return 0;
    atomic_fetch_add(&rule->failed, 1);
    if (rule->error < 0)
        raise(-rule->error);
    return rule->error < 0 ? 0 : rule->error;
}

#define FAIL_OR(call, type, ...)                                                                   \
    int error = verdict(&rules[call], __builtin_return_address(0));                                \
    if (error) {                                                                                   \
        errno = error;                                                                             \
        return -1;                                                                                 \
    }                                                                                              \
    return ((type)rules[call].real)(__VA_ARGS__)

typedef int accept4_fn(int, struct sockaddr *, socklen_t *, int);
typedef int ctl_fn(int, int, int, struct epoll_event *);
typedef int wait_fn(int, struct epoll_event *, int, int);
typedef int pselect_fn(int, fd_set *, fd_set *, fd_set *, const struct timespec *, const sigset_t *);
typedef int ppoll_fn(struct pollfd *, nfds_t, const struct timespec *, const sigset_t *);

int accept4(int fd, struct sockaddr *addr, socklen_t *len, int flags)
{
    FAIL_OR(ACCEPT4, accept4_fn *, fd, addr, len, flags);
}

int epoll_ctl(int ep, int op, int fd, struct epoll_event *event)
{
    if (op == EPOLL_CTL_DEL) /* needs no memory, so it cannot fail for want of it */
        return ((ctl_fn *)rules[EPOLL_CTL].real)(ep, op, fd, event);
    FAIL_OR(EPOLL_CTL, ctl_fn *, ep, op, fd, event);
}

int epoll_wait(int ep, struct epoll_event *events, int max, int timeout)
{
    FAIL_OR(EPOLL_WAIT, wait_fn *, ep, events, max, timeout);
}

/* By its number the core makes finer waits; to a rule both are one call. */
long syscall(long number, ...)
{
    typedef long syscall_fn(long, ...);
    syscall_fn *real = (syscall_fn *)dlsym(RTLD_NEXT, "syscall");
    va_list args;
    long a[6];
    va_start(args, number);
    for (int i = 0; i < 6; i++)
        a[i] = va_arg(args, long);
    va_end(args);
#ifdef SYS_epoll_pwait2
    int error = number == SYS_epoll_pwait2 ? verdict(&rules[EPOLL_WAIT], __builtin_return_address(0)) : 0;
    if (error) {
        errno = error;
        return -1;
    }
#endif
    return real(number, a[0], a[1], a[2], a[3], a[4], a[5]);
}

int pselect(int nfds, fd_set *r, fd_set *w, fd_set *e, const struct timespec *t, const sigset_t *m)
{
    FAIL_OR(PSELECT, pselect_fn *, nfds, r, w, e, t, m);
}

int ppoll(struct pollfd *fds, nfds_t n, const struct timespec *timeout, const sigset_t *mask)
{
    FAIL_OR(PPOLL, ppoll_fn *, fds, n, timeout, mask);
}

typedef ssize_t vm_fn(pid_t, const struct iovec *, unsigned long, const struct iovec *,
                      unsigned long, unsigned long);

ssize_t process_vm_readv(pid_t pid, const struct iovec *local, unsigned long n,
                         const struct iovec *remote, unsigned long m, unsigned long flags)
{
    FAIL_OR(VM_READ, vm_fn *, pid, local, n, remote, m, flags);
}

ssize_t process_vm_writev(pid_t pid, const struct iovec *local, unsigned long n,
                          const struct iovec *remote, unsigned long m, unsigned long flags)
{
    FAIL_OR(VM_WRITE, vm_fn *, pid, local, n, remote, m, flags);
}

int close(int fd)
{
    int error = verdict(&rules[CLOSE], __builtin_return_address(0));
    int rc = ((int (*)(int))rules[CLOSE].real)(fd);
    if (rc < 0 && rules[CLOSE].active && is_core(__builtin_return_address(0)))
        atomic_fetch_add(&rules[CLOSE].bad, 1);
    if (rc < 0 || !error)
        return rc;
    errno = error;
    return -1;
}

/* ---- memory: by glibc's second names, because dlsym itself allocates ---- */

extern void *__libc_malloc(size_t size);
extern void *__libc_calloc(size_t n, size_t size);
extern void *__libc_realloc(void *old, size_t size);

static bool is_short(const void *caller)
{
    int error = verdict(&rules[MALLOC], caller);
    if (error)
        errno = error;
    return error != 0;
}

void *malloc(size_t size)
{
    return is_short(__builtin_return_address(0)) ? NULL : __libc_malloc(size);
}

void *calloc(size_t n, size_t size)
{
    return is_short(__builtin_return_address(0)) ? NULL : __libc_calloc(n, size);
}

void *realloc(void *old, size_t size)
{
    return is_short(__builtin_return_address(0)) ? NULL : __libc_realloc(old, size);
}
