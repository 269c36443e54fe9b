/* orphan.c -- hear of the parent's death in a process that may be too busy to look.
 *
 * A pipe whose other end the parent holds tells a loop that turns. One that hangs reads no pipe, but the kernel
 * can still send it a signal. Source: prctl(2), PR_SET_PDEATHSIG. */
#include <errno.h>

#include "pyloop.h"

#ifdef __linux__
#include <sys/prctl.h>

int pl_orphan_signal(int number)
{
    return prctl(PR_SET_PDEATHSIG, (unsigned long)number) < 0 ? -errno : 0;
}

#else

int pl_orphan_signal(int number)
{
    (void)number;
    return -ENOSYS;
}

#endif
