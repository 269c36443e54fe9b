"""Fresh interpreters, which may import the user's module: how one is started, and what it does.

    python -m pyloop.fresh '{"task": "describe", "application": ..., "report": 7, "fds": [7]}'

    describe    say on a socket what the servers are, and end
    work        be a worker, with the sockets of its slot
    watch       send the supervisor SIGHUP when a Python file changes

The fds that it needs are made inheritable in the child only, between fork and exec, and close-on-
exec again in the interpreter: no process of the user's inherits them.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import chain
from typing import Any

from pyloop.application import Application, ApplicationError, describe
from pyloop.bus import Bus
from pyloop.buses import Buses
from pyloop.forking import fork_child, leave_stdin
from pyloop.logs import log_to_stderr
from pyloop.page import Page
from pyloop.protocol import log
from pyloop.serving import give_buses
from pyloop.worker import FAILED, STDIN_WORKER, Post, work

__all__ = ["DESCRIBED", "start_describer", "start_watcher", "start_worker"]

DESCRIBED = "described"
_OF_TERMINALS = {signal.SIGINT, signal.SIGHUP}
"""A terminal sends them to all of its processes; here they are for the supervisor."""
_LOOK_MS = 500
"""How soon a watcher notices that its supervisor is gone."""


# ---- in the supervisor ----


def _start(task: str, fds: Sequence[int], *, stdin: bool = False, **details: Any) -> int:
    """Start an interpreter like this one, with our standard input or with none. Returns its pid.

    Raises:
        OSError: it cannot be started.
    """
    flags = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]
    order = json.dumps({"task": task, "fds": fds, **details})
    command = [sys.executable, *flags, "-m", __name__, order]

    def main() -> int:
        # Handlers do not survive exec: these wait until the interpreter has its own.
        signal.pthread_sigmask(signal.SIG_BLOCK, _OF_TERMINALS)
        for fd in fds:
            os.set_inheritable(fd, True)
        if not stdin:
            leave_stdin()
        os.execv(sys.executable, command)

    return fork_child(main)


def start_describer(application: Application, report: socket.socket) -> int:
    """Start an interpreter that reports a line of JSON: {"described": ...} or {"failed": text}."""
    fd = report.fileno()
    return _start("describe", [fd], application=asdict(application), report=fd)


def start_worker(
    application: Application, post: Post, buses: Mapping[str, Bus], log_level: str
) -> int:
    """Start an interpreter that takes a post; its servers have these buses, by URL."""
    shared = {url: bus._fds for url, bus in buses.items() if bus._fds is not None}
    sockets = [[sock.fileno() for sock in of_server] for of_server in post.sockets]
    fds = [post.page.fd, post.orders.fileno(), post.stack_fd]
    return _start(
        "work",
        [*fds, *chain.from_iterable(sockets), *chain.from_iterable(shared.values())],
        stdin=post.worker_id == STDIN_WORKER,
        application=asdict(application),
        post={
            "worker_id": post.worker_id,
            "page": post.page.fd,
            "cell": post.cell,
            "orders": post.orders.fileno(),
            "stack_fd": post.stack_fd,
            "sockets": sockets,
            "shared": post.shared,
        },
        buses=shared,
        log_level=log_level,
    )


def start_watcher(directory: str, log_level: str) -> int:
    """Start an interpreter that sends this process SIGHUP when a file below `directory` changes."""
    return _start("watch", [], directory=directory, supervisor=os.getpid(), log_level=log_level)


# ---- in the interpreter ----


@contextlib.contextmanager
def _while_supervised(sock: socket.socket) -> Iterator[None]:
    """Import in this block: the kernel ends the process (SIGIO) if the supervisor ends meanwhile.

    Nobody reads the socket then, and an import may take for ever.

    Source: fcntl(2), F_SETOWN and O_ASYNC.
    """
    flags = fcntl.fcntl(sock, fcntl.F_GETFL)
    fcntl.fcntl(sock, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(sock, fcntl.F_SETFL, flags | os.O_ASYNC)
    try:
        yield
    finally:
        fcntl.fcntl(sock, fcntl.F_SETFL, flags)


def _describe(application: Mapping[str, Any], report: int) -> int:
    sock = socket.socket(fileno=report)
    answer: dict[str, Any] = {}
    try:
        with _while_supervised(sock):
            answer[DESCRIBED] = describe(Application(**application)).to_json()
    except ApplicationError as exc:
        answer[FAILED] = str(exc)
    sock.sendall(json.dumps(answer).encode() + b"\n")
    return 0


def _work(
    application: Mapping[str, Any],
    post: Mapping[str, Any],
    buses: Mapping[str, tuple[int, int]],
    log_level: str,
) -> int:
    orders = socket.socket(fileno=post["orders"])
    app, sockets = Application(**application), post["sockets"]
    try:
        with _while_supervised(orders):
            servers = app.load()
        if len(servers) != len(sockets):
            raise ApplicationError(f"there are {len(servers)} servers instead of {len(sockets)}")
    except ApplicationError as exc:
        orders.sendall(json.dumps({FAILED: str(exc)}).encode() + b"\n")
        return 1
    log_to_stderr(log_level)
    give_buses(servers, Buses(lambda url: Bus._adopt(url, buses.get(url))), shared=True)
    for fd in chain.from_iterable(buses.values()):
        os.close(fd)  # copied
    whole = dict(
        post,
        page=Page.attach(post["page"], writable=True),
        orders=orders,
        sockets=tuple(tuple(socket.socket(fileno=fd) for fd in fds) for fds in sockets),
    )
    return work(servers, Post(**whole), app.backend)


def _watch(directory: str, supervisor: int, log_level: str) -> int:
    from watchfiles import PythonFilter, watch

    log_to_stderr(log_level)
    looks = watch(
        directory, watch_filter=PythonFilter(), rust_timeout=_LOOK_MS, yield_on_timeout=True
    )
    for number, changes in enumerate(looks):
        if os.getppid() != supervisor:
            break
        if not number:
            log.info("watching the Python files in %s", directory)
        if changes:
            names = sorted(os.path.relpath(path, directory) for _, path in changes)
            log.info("%s changed: reloading", ", ".join(names))
            os.kill(supervisor, signal.SIGHUP)
    return 0


def _ignore(number: int, frame: object) -> None:
    pass


def main() -> int:
    """Do what the argument says. Returns the exit status."""
    for number in _OF_TERMINALS:
        signal.signal(number, _ignore)  # SIG_IGN would be inherited by the user's processes
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _OF_TERMINALS)
    order = json.loads(sys.argv.pop())
    for fd in order.pop("fds"):
        os.set_inheritable(fd, False)
    tasks: dict[str, Callable[..., int]] = {
        "describe": _describe,
        "work": _work,
        "watch": _watch,
    }
    return tasks[order.pop("task")](**order)


if __name__ == "__main__":
    sys.exit(main())
