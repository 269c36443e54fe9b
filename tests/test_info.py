"""pyloop.info(), `python -m pyloop info`, and PYLOOP_FASTPATH: what is in use, and if not, why."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import platform
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from conftest import BACKENDS, open_fds

import pyloop
from pyloop import about
from pyloop.__main__ import cli
from pyloop.core import address_of, ffi
from pyloop.fast import fastpath

ROOT = Path(__file__).resolve().parent.parent
IS_CPYTHON = sys.implementation.name == "cpython"
needs_fastpath = pytest.mark.skipif(fastpath is None, reason="there is no fast path here")
WITHOUT = 'import sys; sys.modules["pyloop._fastpath"] = None; '
"""What an installation is like that has no fast path."""
NOT_THERE = "pyloop._fastpath is not in this installation" if IS_CPYTHON else "only CPython has it"


def python(*args: str, wanted: str) -> subprocess.CompletedProcess[str]:
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYLOOP_")}
    command = [sys.executable, *args]
    return subprocess.run(
        command, env=env | {"PYLOOP_FASTPATH": wanted}, capture_output=True, text=True, timeout=60
    )


def last_line(*args: str, wanted: str) -> str:
    """Run Python, which fails; return what its traceback ends with."""
    done = python(*args, wanted=wanted)
    assert done.returncode == 1
    return done.stderr.splitlines()[-1]


# ---- the fast path ----


def test_fast_path_is_named_or_the_reason_why_not() -> None:
    info = pyloop.info()
    assert info.implementation == platform.python_implementation()
    if fastpath is None:
        assert info.fastpath is None and info.why_not
    else:
        assert info.fastpath == os.path.basename(fastpath.__file__) and info.why_not is None


def test_fast_path_switched_off_is_said() -> None:
    done = python("-m", "pyloop", "info", "--json", wanted="0")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["fastpath"], found["why_not"]) == (None, "PYLOOP_FASTPATH=0")
    assert found["environment"] == {"PYLOOP_FASTPATH": "0"}


@needs_fastpath
@pytest.mark.parametrize("wanted", ["", "1"], ids=["unset", "insisted on"])
def test_fast_path_that_is_there_is_used(wanted: str) -> None:
    done = python("-c", "import pyloop; print(pyloop.info().fastpath)", wanted=wanted)
    assert done.stdout == f"{os.path.basename(fastpath.__file__)}\n"


def test_missing_fast_path_is_done_without() -> None:
    serve = "import asyncio, pyloop; print(pyloop.run(asyncio.sleep(0, pyloop.info())).why_not)"
    done = python("-c", WITHOUT + serve, wanted="")
    assert (done.stdout, done.stderr) == (f"{NOT_THERE}\n", "")


def test_missing_fast_path_that_is_insisted_on_is_an_import_error() -> None:
    assert last_line("-c", WITHOUT + "import pyloop", wanted="1") == (
        f"ImportError: PYLOOP_FASTPATH=1, but there is no fast path: {NOT_THERE}"
    )


@pytest.mark.parametrize("wanted", ["yes", "2", " "])
def test_other_value_is_refused(wanted: str) -> None:
    assert last_line("-c", "import pyloop", wanted=wanted) == (
        f"ValueError: PYLOOP_FASTPATH={wanted!r}: expected 0 (do without), 1 (insist) or nothing"
    )


@needs_fastpath
def test_core_of_another_version_is_refused() -> None:
    table = ffi.new("uint32_t[64]", [0xFFFF])  # begins with the version
    with pytest.raises(ImportError, match=r"built for version \d+ of .*, and the core has 65535:"):
        fastpath.connect(address_of(table))


# ---- backends ----


@pytest.fixture
def variables(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """None is set to begin with."""
    for name in ("PYLOOP_BACKEND", "PYLOOP_FASTPATH"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


@pytest.mark.usefixtures("variables")
def test_backends_are_those_that_a_loop_runs_on() -> None:
    info = pyloop.info()
    assert [*info.backends] == BACKENDS
    assert info.auto == "select" and info.environment == {}
    assert info.unusable["io_uring"] == "not in this build"


def test_backend_of_the_environment_is_what_auto_starts_on(variables: pytest.MonkeyPatch) -> None:
    variables.setenv("PYLOOP_BACKEND", "poll")
    info = pyloop.info()
    assert info.auto == "poll" and info.environment == {"PYLOOP_BACKEND": "poll"}


def test_unknown_backend_of_the_environment_is_told(variables: pytest.MonkeyPatch) -> None:
    variables.setenv("PYLOOP_BACKEND", "kqueue")
    info = pyloop.info()
    assert info.auto is None and [*info.backends] == BACKENDS
    assert info.unusable["auto"] == (
        "PYLOOP_BACKEND='kqueue': expected one of auto, select, poll, epoll"
    )
    assert '; "auto" starts on none\n' in str(info)


def test_backend_that_the_kernel_refuses_is_told(variables: pytest.MonkeyPatch) -> None:
    class Refusing(about.CoreSelector):
        def __init__(self, backend: str) -> None:
            if backend == "poll":
                raise OSError(errno.ENOSYS, "Function not implemented")
            super().__init__(backend)

    variables.setattr(about, "CoreSelector", Refusing)
    info = pyloop.info()
    assert list(info.backends) == [name for name in BACKENDS if name not in ("poll", "auto")]
    assert info.unusable["poll"] == f"[Errno {errno.ENOSYS}] Function not implemented"


def test_looking_leaves_no_fd_open() -> None:
    pyloop.info()
    before = open_fds()
    pyloop.info()
    assert open_fds() == before


# ---- the rest, and the command ----


def test_extras_are_those_of_the_distribution(monkeypatch: pytest.MonkeyPatch) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert pyloop.info().extras == dict.fromkeys(sorted(project["optional-dependencies"]), True)
    monkeypatch.setitem(sys.modules, "redis", None)
    assert [name for name, there in pyloop.info().extras.items() if not there] == ["redis"]


def example(**changes: Any) -> pyloop.Info:
    info = pyloop.Info(
        *("1.2", "/pyloop", "CPython", "3.13.0", "2.0", "Linux", False, True),
        *("_core.abi3.so", "GCC 12", "_fastpath.so", None, ("select", "poll"), "select"),
        *({"epoll": "refused"}, {"PYLOOP_BACKEND": "select"}, {"redis": True, "top": False}),
    )
    return dataclasses.replace(info, **changes)


TEXT = """\
pyloop         1.2, in /pyloop
Python         CPython 3.13.0, with the GIL; cffi 2.0
platform       Linux
core           _core.abi3.so, built by GCC 12
fast path      _fastpath.so
backends       select, poll; "auto" starts on select
unusable       epoll (refused)
environment    PYLOOP_BACKEND=select
extras         redis
not installed  top"""


@pytest.mark.parametrize(
    ("changes", "before", "after"),
    [
        ({}, "", ""),
        ({"fastpath": None, "why_not": "off"}, "_fastpath.so", "none: off"),
        ({"free_threaded": True}, "3.13.0,", "3.13.0, free-threaded,"),
        ({"free_threaded": True, "gil": False}, ", with ", ", free-threaded, without "),
        ({"unusable": {}}, "epoll (refused)", "none"),
        ({"environment": {}}, "PYLOOP_BACKEND=select", "none"),
        ({"extras": {"top": False}}, "extras         redis", "extras         none"),
    ],
)
def test_text_has_a_line_for_each_thing(changes: dict[str, Any], before: str, after: str) -> None:
    assert str(example(**changes)) == TEXT.replace(before, after)


def test_command_prints_the_text_or_an_object() -> None:
    info = pyloop.info()
    assert CliRunner().invoke(cli, ["info"]).output == f"{info}\n"
    printed = json.loads(CliRunner().invoke(cli, ["info", "--json"]).output)
    assert printed == json.loads(json.dumps(dataclasses.asdict(info)))
