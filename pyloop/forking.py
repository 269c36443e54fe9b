"""Fork a child out of a running loop, and end it without coming back into the parent's frames.

Between fork(2) and the child's own handlers no signal may run the parent's: its wakeup fd leads to
the parent's loop. So all signals are blocked across the fork.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import traceback
from collections.abc import Callable
from typing import Any

from pyloop.loop import Loop

__all__ = ["STOP_SIGNALS", "fork_child", "leave_stdin"]

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_ORDERS = {*STOP_SIGNALS, signal.SIGHUP, signal.SIGCHLD, signal.SIGTTIN, signal.SIGTTOU}
"""What is for the parent. Handlers of other signals are the program's, in the child too."""
_OF_TERMINALS = (signal.SIGINT, signal.SIGHUP)
_kept: list[object] = []


def fork_child(main: Callable[[], int | None]) -> int:
    """Fork; the child runs `main` and exits with what it returns, 0 for None.

    The loop that the calling thread runs, if any, is flushed before and closed in the child, which
    lets go of everything that the loop owned there. What the loop handled, and SIGTERM in any
    case, has its default action in the child; what the parent ignores the child ignores; SIGINT
    and SIGHUP, which a terminal sends to the whole group, do nothing. The child ends by _exit(2):
    nothing that was registered with atexit runs.

    Any thread may call it, and is the child's main thread. Loops that other threads run are left
    alone in the child, fds and all: they may have been in the middle of anything.

    Returns:
        The child's pid, in the parent.

    Raises:
        OSError: there can be no more processes (EAGAIN, ENOMEM).

    Source: fork(2), pthread_sigmask(3).
    """
    loop = asyncio._get_running_loop()
    if not isinstance(loop, Loop):
        return _fork(main, loop)
    loop._flush()
    with loop._without_threads():
        return _fork(main, loop)


def _fork(main: Callable[[], int | None], loop: Any) -> int:
    _flush_output()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())  # by itself: the next call may raise
    try:
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        pid = os.fork()
        if pid == 0:
            _run_child(main, loop, before)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return pid


def _run_child(main: Callable[[], int | None], loop: Any, mask: set[Any]) -> None:
    """Become the child: run `main`, and end the process whatever happens."""
    status = 1
    try:
        _let_go(loop)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        status = _status_of(main())
    except SystemExit as exc:
        status = _status_of(exc.code)
    except BaseException:
        traceback.print_exc()
    finally:
        try:
            _flush_output()
        finally:
            os._exit(status)


def _let_go(loop: Any) -> None:
    """Leave the parent's loop and its signals behind."""
    signal.set_wakeup_fd(-1)
    if loop is not None:
        _leave(loop)
    # After the loop, which gives back the signals that it had taken.
    for number in _ORDERS:
        if callable(signal.getsignal(number)):
            signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    for number in _OF_TERMINALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _ignore)  # SIG_IGN would be inherited through exec


def _leave(loop: Any) -> None:
    """Run no loop, and close it if it is ours."""
    tasks = asyncio.all_tasks(loop)
    _kept.append(tasks)  # or their `finally` blocks would run here, as soon as nobody knows them
    asyncio._set_running_loop(loop)  # Python 3.12 and later have reset it, and 3.14 looks at it
    task = asyncio.current_task(loop)
    if task is not None:
        asyncio._leave_task(loop, task)
    asyncio._set_running_loop(None)
    sys.set_asyncgen_hooks(firstiter=None, finalizer=None)
    if isinstance(loop, Loop):
        loop.close()  # which sets the signals that it handled to their defaults


def leave_stdin() -> None:
    """Have nothing more to read on standard input, if there is one: somebody else reads it."""
    if sys.__stdin__ is None or sys.__stdin__.closed:
        return  # fd 0 may be anything
    loop = asyncio._get_running_loop()
    if loop is not None:
        loop.remove_reader(0)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)


def _ignore(number: int, frame: object) -> None:
    pass


def _flush_output() -> None:
    """Flush what print() has buffered; a broken pipe is for whoever prints next."""
    for file in (sys.stdout, sys.stderr):
        if file is not None:  # as it is in a process that was started without
            with contextlib.suppress(OSError, ValueError):
                file.flush()


def _status_of(code: object) -> int:
    """Return the exit status for what SystemExit carries."""
    if code is None:
        return 0
    if isinstance(code, int):
        return code & 0xFF
    print(code, file=sys.stderr)
    return 1
