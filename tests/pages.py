"""Processes that own a page of counters, and pages to look at without a server."""

from __future__ import annotations

import ast
import contextlib
import os
import subprocess
import sys

from pyloop.core import lib
from pyloop.page import Page

_PROGRAM = """
import os, socket, sys
from pyloop.core import lib
from pyloop.page import Page

kept = []

def fork():
    "A child that has the page mapped but not open, until this process ends."
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        ours.close()
        page.close_fd()
        theirs.send(b"x")
        theirs.recv(1)
        os._exit(0)
    ours.recv(1)
    kept.append(ours)
    return pid

for line in sys.stdin:
    _ = None
    exec(line)
    print(repr(_), flush=True)
"""


class Process:
    """Another process, in which `do` runs a line of Python; what it puts in `_` comes back."""

    def __init__(self) -> None:
        self._child = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.pid = self._child.pid

    def do(self, line):
        self._child.stdin.write(f"{line}\n")
        self._child.stdin.flush()
        answer = self._child.stdout.readline()
        assert answer, "the process ended"
        return ast.literal_eval(answer)

    def end(self):
        """End it by closing its standard input."""
        with contextlib.suppress(OSError):
            self._child.stdin.close()
        self._child.stdout.close()
        self._child.wait(30)


@contextlib.contextmanager
def serving_process(workers=2):
    """A process with a page of so many workers, all of them itself, named `page` in it."""
    process = Process()
    try:
        process.do(f"page = Page({workers}, 1, 'a server')")
        for number in range(workers):
            process.do(f"page.claim({number}, {number + 1})")
            process.do(f"cell = page.cell({number})")
            process.do("cell.pid, cell.state = os.getpid(), lib.PL_CELL_READY")
        yield process
    finally:
        process.end()


@contextlib.contextmanager
def page_of(workers=2, servers=1, cells=None, label="a server"):
    """A page in this process, whose workers are all this process, ready."""
    page = Page(cells or workers, servers, label)
    try:
        for number in range(workers):
            start_worker(page, number, number + 1)
        yield page
    finally:
        page.close_fd()


def start_worker(page, number, worker):
    page.claim(number, worker)
    cell = page.cell(number)
    cell.pid, cell.state = os.getpid(), lib.PL_CELL_READY


def count(page, number, server=0, **counters):
    """Add to the counters of a cell: those of a server, or busy_ns, ticks and lag of its loop."""
    loop = page.cell(number).loop
    for name, more in counters.items():
        if name == "lag":
            for bucket, turns in more.items():
                loop.lag[bucket] += turns
        else:
            counters = page.counters(number, server)
            owner = counters if hasattr(counters, name) else loop
            setattr(owner, name, getattr(owner, name) + more)
