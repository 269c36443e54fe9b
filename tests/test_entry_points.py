"""The ways to put a pyloop.Loop under a program, as README.md shows them, each run as it stands."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from pathlib import Path

import pytest
from command import Command
from conftest import AUTO_TOO

import pyloop

ROOT = Path(__file__).resolve().parent.parent
SECTION = (ROOT / "README.md").read_text().partition("\n## Inside asyncio")[2].partition("\n## ")[0]
BLOCKS = re.findall(r"^```python\n(.*?)^```", SECTION, re.M | re.S)

SETTING = """if True:
    import asyncio, os, signal
    import anyio
    import pyloop
    from aiohttp import web

    async def main(*_):
        print(type(asyncio.get_running_loop()).__qualname__)

    async def end(_):
        asyncio.get_running_loop().call_soon(os.kill, os.getpid(), signal.SIGTERM)

    app = web.Application()
    app.on_startup.extend([main, end])
"""
"""What the blocks take for granted; the application ends itself once it has begun."""


def block(words: str) -> str:
    """The one block with these words in it."""
    [found] = [code for code in BLOCKS if words in code]
    return found


def python(tmp_path: Path, *args: str) -> str:
    """Run Python; return its output."""
    command = [sys.executable, *args]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize(
    "words",
    [
        "asyncio.Runner(",
        pytest.param(
            "asyncio.run(",
            marks=pytest.mark.skipif(sys.version_info < (3, 12), reason="needs Python 3.12"),
        ),
        "web.run_app(",
        "anyio.run(",
    ],
)
def test_entry_point_runs_the_program_on_this_loop(tmp_path: Path, words: str) -> None:
    code = SETTING + block(words).replace("8080", "0")
    assert "Loop\n" in python(tmp_path, "-W", "error", "-c", code)


def test_program_from_before_asyncio_run_gets_this_loop(tmp_path: Path) -> None:
    code = (
        SETTING + block("set_event_loop(") + "asyncio.get_event_loop().run_until_complete(main())"
    )
    assert python(tmp_path, "-c", code) == "Loop\n"


def test_uvicorn_takes_the_loop_by_name(tmp_path: Path, backend: str) -> None:
    [line] = re.findall(r"^    (uvicorn app:app .*)$", SECTION, re.M)

    class Uvicorn(Command):
        program = (*line.split(), "--port", "0")
        says_where = r"Uvicorn running on http://127.0.0.1:(\d+)"

    source = """if True:
        import asyncio

        async def app(scope, receive, send):
            print(type(asyncio.get_running_loop()).__qualname__, asyncio.get_running_loop().backend)
    """
    with Uvicorn(tmp_path, env={"PYLOOP_BACKEND": backend}, app=source) as command:
        assert command.port
        assert command.stop() in (0, -15)
        told = (tmp_path / "stdout").read_text()  # at start: its life span
    assert told == f"Loop {backend}\n"


@pytest.mark.parametrize(
    ("plugin", "mark", "words"),
    [
        ("pytest_asyncio.plugin", "asyncio", "def pytest_asyncio_loop_factories("),
        ("anyio.pytest_plugin", "anyio", "def anyio_backend("),
    ],
    ids=["pytest-asyncio", "anyio"],
)
def test_pytest_plugin_runs_tests_on_this_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plugin: str, mark: str, words: str
) -> None:
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # no other needs to be loaded
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)
    options = "asyncio_default_fixture_loop_scope = function" if mark == "asyncio" else ""
    (tmp_path / "pytest.ini").write_text("[pytest]\n" + options)
    (tmp_path / "conftest.py").write_text(f"import pytest, pyloop\n{block(words)}")
    (tmp_path / "test_it.py").write_text(f"""if True:
        import asyncio, pytest, pyloop

        async def kind():
            await asyncio.sleep(0)
            return type(asyncio.get_running_loop())

        @pytest.mark.{mark}
        async def test_loop_is_pyloops():
            assert await kind() is pyloop.Loop
    """)
    out = python(tmp_path, "-m", "pytest", "-q", "-p", plugin, "-W", "error")
    assert "1 passed" in out


def test_run_is_what_asyncio_run_is() -> None:
    async def main() -> object:
        return asyncio.get_running_loop()

    loop = pyloop.run(main())
    assert isinstance(loop, pyloop.Loop)
    assert loop.is_closed()


@AUTO_TOO
def test_factory_makes_another_loop_each_time(backend: str) -> None:
    loops = [pyloop.new_event_loop(backend) for _ in range(2)]
    assert loops[0] is not loops[1]
    for loop in loops:
        assert loop.backend == ("select" if backend == "auto" else backend)
        loop.close()
