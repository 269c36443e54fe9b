/* step.h -- the marked steps of what must survive a process that is killed at any of them.
 *
 * Built with -DPL_STEPS (tests/c/test_ring_steps.c), each STEP() calls a function of the test, which kills its process
 * at the n-th. In every other build it is nothing. */
#ifndef PYLOOP_STEP_H
#define PYLOOP_STEP_H

#ifdef PL_STEPS
void pl_step(void);
#define STEP() pl_step()
#else
#define STEP() ((void)0)
#endif

#endif
