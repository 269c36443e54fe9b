"""Fork a child out of a running loop, and end it without coming back into the parent's frames.

Between fork(2) and the child's own handlers no signal may run the parent's: its wakeup fd leads to
the parent's loop. So the signals that anybody handles are blocked across the fork.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import traceback
from collections.abc import Callable

from pyloop.loop import Loop

__all__ = ["STOP_SIGNALS", "fork_child"]

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_ORDERS = {*STOP_SIGNALS, signal.SIGHUP, signal.SIGCHLD, signal.SIGTTIN, signal.SIGTTOU}
"""What the parent's loop handles. Handlers of other signals are the program's, in the child too."""
_BLOCKED = _ORDERS | {signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM}


def fork_child(main: Callable[[], int | None]) -> int:
    """Fork; the child runs `main` and exits with what it returns, 0 for None.

    The loop that runs in the parent, if any, is flushed before and closed in the child, which lets
    go of everything that the loop owned there. SIGTERM, SIGCHLD and the like have their default
    action in the child; SIGINT and SIGHUP, which a terminal sends to the whole group, do nothing.

    Returns:
        The child's pid, in the parent.

    Raises:
        OSError: there can be no more processes (EAGAIN, ENOMEM).

    Source: fork(2), pthread_sigmask(3).
    """
    loop = asyncio._get_running_loop()
    if isinstance(loop, Loop):
        loop._flush()
    _flush_output()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _BLOCKED)
    try:
        pid = os.fork()
        if pid == 0:
            _run_child(main, loop, before)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return pid


def _run_child(main: Callable[[], int | None], loop: object, mask: object) -> None:
    """Become the child: run `main`, and end the process whatever happens."""
    status = 1
    try:
        _let_go(loop)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)  # type: ignore[arg-type]
        status = main() or 0
    except SystemExit as exc:
        status = _status_of(exc)
    except BaseException:
        traceback.print_exc()
    finally:
        _flush_output()
        os._exit(status)


def _flush_output() -> None:
    """Write what is buffered, so that a fork does not write it again."""
    for file in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, OSError, ValueError):  # None, broken, closed
            file.flush()


def _let_go(loop: object) -> None:
    """Leave the parent's loop and its signals behind."""
    signal.set_wakeup_fd(-1)
    if isinstance(loop, Loop):
        task = asyncio.current_task(loop)
        if task is not None:  # in whose step this was called
            asyncio.tasks._leave_task(loop, task)
    asyncio._set_running_loop(None)
    if isinstance(loop, Loop):
        loop.close()  # which sets the signals that it handled to their defaults
    for number in _ORDERS:
        signal.signal(number, signal.SIG_DFL)
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, _ignore)  # SIG_IGN would be inherited through exec


def _ignore(number: int, frame: object) -> None:
    pass


def _status_of(exc: SystemExit) -> int:
    if exc.code is None or isinstance(exc.code, int):
        return (exc.code or 0) & 0xFF
    print(exc.code, file=sys.stderr)
    return 1
