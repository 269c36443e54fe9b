"""Fixtures that every test may use.

- `backend`: "select", "poll", "epoll" in turn, those that this platform has. A test that asks for
  it, or for one of the fixtures below, runs once on each. "auto" is one of these until it moves:
  only tests of something that differs with it ask for it, by `AUTO_TOO`.
- `loop`: a `pyloop.Loop` on that backend, or for "asyncio" the stdlib's. At the end it is closed,
  and the test fails if more fds are open than before it (fixtures asked for earlier do not count).
- `run`: `run(coro, timeout=30)` runs a coroutine on `loop` and returns its result.

    def test_sleep_returns_its_result(run):
        assert run(asyncio.sleep(0, "done")) == "done"

`pytest --backend epoll` runs only what runs on epoll. The first lines say whether there is a fast
path: PYLOOP_FASTPATH=0 in the environment does without.

A test over the time limit of pyproject.toml fails by itself: none needs a guard of its own.
"""

from __future__ import annotations

import asyncio
import gc
import os
import select
import signal
import sys
from collections.abc import Callable, Coroutine, Generator, Iterator
from typing import Any

import pytest

# More than a thousand interpreters start here: none compiles what another has compiled.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

import pyloop  # noqa: E402

BACKENDS = [name for name in ("select", "poll", "epoll") if hasattr(select, name)]
AUTO_TOO = pytest.mark.parametrize("backend", [*BACKENDS, "auto"], indirect=True)
_FAILED = pytest.StashKey[bool]()
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # run in a shell's background
    signal.signal(signal.SIGINT, signal.default_int_handler)
_FD_DIR = "/proc/self/fd" if os.path.isdir("/proc/self/fd") else "/dev/fd"


def pytest_addoption(parser: pytest.Parser) -> None:
    what = "only tests that run on this backend; may be given several times"
    parser.addoption("--backend", action="append", choices=BACKENDS, help=what)


def pytest_report_header() -> str:
    return f"fast path: {'yes' if 'pyloop._fastpath' in sys.modules else 'no'}"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Do what --backend says: the backend that a test runs on is one of its parameters."""
    wanted = config.getoption("backend")
    if not wanted:
        return

    def runs_there(item: Any) -> bool:
        params = item.callspec.params.values() if hasattr(item, "callspec") else ()
        return any(param in wanted for param in params)

    config.hook.pytest_deselected(items=[item for item in items if not runs_there(item)])
    items[:] = filter(runs_there, items)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Remember a failure: its traceback keeps fds alive, so `loop` does not count them then."""
    report = yield
    item.stash[_FAILED] = item.stash.get(_FAILED, False) or report.failed
    return report


def collect_and_freeze() -> None:
    """Collect garbage, and leave what lives now out of each later gc.collect(): there are many.

    Once is not enough: what pytest remembers of 3,000 tests, and what they imported, makes each
    collection cost 50 ms.
    """
    gc.collect()
    gc.freeze()


def pytest_collection_finish() -> None:
    collect_and_freeze()


def open_fds() -> dict[int, str]:
    """Return the open fds of this process and what each refers to."""
    fds = {}
    for entry in os.listdir(_FD_DIR):
        try:
            fds[int(entry)] = os.readlink(f"{_FD_DIR}/{entry}")
        except OSError:
            pass  # the fd of this very listing
    return fds


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The backend's name, each in turn; PYLOOP_BACKEND of the environment is taken away."""
    monkeypatch.delenv("PYLOOP_BACKEND", raising=False)
    return request.param


@pytest.fixture
def loop(backend: str, request: pytest.FixtureRequest) -> Iterator[pyloop.Loop]:
    """A Loop on `backend`, closed at the end, after which no new fd may be open."""
    collect_and_freeze()
    before = open_fds()
    own = backend == "asyncio"  # which tests of asyncio's promises ask for too
    loop: Any = asyncio.SelectorEventLoop() if own else pyloop.Loop(backend=backend)
    yield loop
    if not loop.is_closed():
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()
    if not request.node.stash.get(_FAILED, False):
        gc.collect()
        left = {fd: what for fd, what in open_fds().items() if before.get(fd) != what}
        assert not left, f"fds left open: {left}"


@pytest.fixture
def run(loop: pyloop.Loop) -> Callable[..., Any]:
    """`run(coro, timeout=30)`: run it on `loop`, return its result, raise TimeoutError if late."""

    def run(coro: Coroutine[Any, Any, Any], timeout: float = 30) -> Any:
        async def limited() -> Any:
            async with asyncio.timeout(timeout):
                return await coro

        return loop.run_until_complete(limited())

    return run
