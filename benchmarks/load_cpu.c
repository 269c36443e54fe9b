/* load_cpu.c -- what a server has used of the CPU, and with --children what its children have.
 *
 * A process's own clock tells in nanoseconds what all its threads used. --children adds the
 * clocks of the children that live, and the time of those that were reaped, whatever they
 * reaped themselves included: cutime and cstime of proc_pid_stat(5), exact sums that are
 * shown in ticks of 10 ms. Only children of the main thread are seen: servers fork there.
 *
 * Idle time of the CPUs, from proc_stat(5), tells by subtraction what everybody else used.
 */
#include "load.h"

#include <inttypes.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static uint64_t clock_of(clockid_t clock)
{
    struct timespec t = {0};
    clock_gettime(clock, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static uint64_t process_ns(pid_t pid)
{
    clockid_t clock;
    return clock_getcpuclockid(pid, &clock) == 0 ? clock_of(clock) : 0;
}

static FILE *proc_file(pid_t pid, const char *name)
{
    char path[64];
    snprintf(path, sizeof(path), "/proc/%d/%s", (int)pid, name);
    return fopen(path, "re");
}

static uint64_t ticks_ns(uint64_t ticks)
{
    return ticks * (1000000000u / (uint64_t)sysconf(_SC_CLK_TCK));
}

static uint64_t reaped_ns(pid_t pid)
{
    char text[1024] = "";
    uint64_t user = 0, system = 0;
    FILE *f = proc_file(pid, "stat");
    if (f) {
        size_t len = fread(text, 1, sizeof(text) - 1, f);
        const char *rest = len ? strrchr(text, ')') : NULL; /* the name before it may hold anything */
        if (!rest ||
            sscanf(rest,
                   ") %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %" SCNu64 " %" SCNu64,
                   &user, &system) != 2) {
            user = system = 0;
        }
        fclose(f);
    }
    return ticks_ns(user + system);
}

static FILE *children_file(pid_t pid)
{
    char name[32];
    snprintf(name, sizeof(name), "task/%d/children", (int)pid);
    return proc_file(pid, name);
}

int cpu_usable(pid_t pid, int with_children)
{
    clockid_t clock;
    FILE *f = with_children ? children_file(pid) : NULL;
    if (f) {
        fclose(f);
    }
    return clock_getcpuclockid(pid, &clock) == 0 && (f || !with_children);
}

uint64_t cpu_own(void)
{
    return clock_of(CLOCK_PROCESS_CPUTIME_ID);
}

uint64_t cpu_of(pid_t pid, int with_children, unsigned *children)
{
    int child;
    uint64_t ns = process_ns(pid);
    FILE *f = with_children ? children_file(pid) : NULL;
    if (!f) {
        return ns;
    }
    while (fscanf(f, "%d", &child) == 1) {
        ns += process_ns(child);
        ++*children;
    }
    fclose(f);
    return ns + reaped_ns(pid);
}

uint64_t cpu_delay(pid_t pid)
{
    uint64_t ran, delay = 0;
    FILE *f = proc_file(pid, "schedstat");
    if (f) {
        delay = fscanf(f, "%" SCNu64 " %" SCNu64, &ran, &delay) == 2 ? delay : 0;
        fclose(f);
    }
    return delay;
}

uint64_t cpu_idle(const pid_t *pids, int npids, unsigned *cpus)
{
    char line[512];
    unsigned cpu;
    uint64_t idle, wait, sum = 0;
    cpu_set_t all, one;
    FILE *f = fopen("/proc/stat", "re");
    sched_getaffinity(0, sizeof(all), &all);
    for (int i = 0; i < npids; i++) {
        if (sched_getaffinity(pids[i], sizeof(one), &one) == 0) {
            CPU_OR(&all, &all, &one);
        }
    }
    *cpus = 0;
    while (f && fgets(line, sizeof(line), f)) {
        if (sscanf(line, "cpu%u %*u %*u %*u %" SCNu64 " %" SCNu64, &cpu, &idle, &wait) == 3 &&
            CPU_ISSET(cpu, &all)) {
            sum += ticks_ns(idle + wait);
            ++*cpus;
        }
    }
    if (f) {
        fclose(f);
    }
    return sum;
}
