/* build.c -- what this build of the core was made by. */
#include "pyloop.h"

const char *pl_compiler(void)
{
#if defined __GNUC__ && !defined __clang__
    return "GCC " __VERSION__;
#elif defined __VERSION__
    return __VERSION__; /* clang names itself there */
#else
    return "unknown";
#endif
}
