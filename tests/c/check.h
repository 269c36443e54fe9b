/* check.h -- the tests' harness: CHECK, RUN, a main, and allocations that fail on demand.
 *
 * Each test_*.c is one program: static functions of CHECKs, and at its end
 *
 *     CHECK_MAIN(RUN(test_one); RUN(test_two);)
 *
 * A failed CHECK prints where and ends its test; the program exits with the number of failed
 * tests. Link with -Wl,--wrap=malloc,--wrap=calloc,--wrap=realloc,--wrap=aligned_alloc: after fail_alloc_after(n), the
 * n-th allocation from now (0 = the next) and all that follow fail, until fail_alloc_never().
 */
#ifndef CHECK_H
#define CHECK_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int checks_failed; /* in the running test */
static long allocs_left = -1; /* before they fail; -1 = they never do */
static unsigned long allocs_seen; /* since the program started, for tests of sparing use */

#define CHECK(cond)                                                         \
    do {                                                                    \
        if (!(cond)) {                                                      \
            printf("%s:%d: CHECK(%s) failed\n", __FILE__, __LINE__, #cond); \
            checks_failed++;                                                \
            return;                                                         \
        }                                                                   \
    } while (0)

#define RUN(test) tests_failed += run_test(#test, test)

#define CHECK_MAIN(tests)          \
    int main(void)                 \
    {                              \
        int tests_failed = 0;      \
        tests return tests_failed; \
    }

static inline void fail_alloc_after(long n)
{
    allocs_left = n;
}

static inline void fail_alloc_never(void)
{
    allocs_left = -1;
}

static inline int run_test(const char *name, void (*test)(void))
{
    checks_failed = 0;
    test();
    fail_alloc_never();
    printf("%s %s\n", checks_failed ? "FAIL" : "ok  ", name);
    fflush(stdout);
    return checks_failed != 0;
}

static inline int alloc_refused(void)
{
    allocs_seen++;
    if (allocs_left < 0) {
        return 0;
    }
    return allocs_left == 0 || allocs_left-- == 0;
}

void *__real_malloc(size_t size);
void *__real_calloc(size_t n, size_t size);
void *__real_realloc(void *p, size_t size);
void *__real_aligned_alloc(size_t alignment, size_t size);
void *__wrap_malloc(size_t size);
void *__wrap_calloc(size_t n, size_t size);
void *__wrap_realloc(void *p, size_t size);
void *__wrap_aligned_alloc(size_t alignment, size_t size);

void *__wrap_malloc(size_t size)
{
    return alloc_refused() ? NULL : __real_malloc(size);
}

void *__wrap_calloc(size_t n, size_t size)
{
    return alloc_refused() ? NULL : __real_calloc(n, size);
}

void *__wrap_realloc(void *p, size_t size)
{
    return alloc_refused() ? NULL : __real_realloc(p, size);
}

void *__wrap_aligned_alloc(size_t alignment, size_t size)
{
    return alloc_refused() ? NULL : __real_aligned_alloc(alignment, size);
}

#endif
