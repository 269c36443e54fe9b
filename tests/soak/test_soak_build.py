"""Wheels with and without the fast path: `make soak`. It is optional, and is missed when wanted."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
ALONE = """if True:
    import runpy, sys
    sys.meta_path[:] = [f for f in sys.meta_path if "Editable" not in getattr(f, "__name__", "")]
"""
"""The pyloop in the current directory, and nothing of the one that is installed for tests."""
NEEDED = ("setup.py", "build_ffi.py", "pyproject.toml", "README.md", "LICENSE", "csrc", "pyloop")

pytestmark = pytest.mark.skipif(
    sys.implementation.name != "cpython", reason="only CPython has the fast path"
)


def run(*args: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    everything = {**os.environ, "PYLOOP_FASTPATH": "", **env}
    command = [sys.executable, *args]
    return subprocess.run(command, cwd=cwd, env=everything, capture_output=True, text=True)


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """The project, with a fast path that no compiler takes."""
    project = tmp_path / "project"
    project.mkdir()
    for name in NEEDED:
        if (ROOT / name).is_dir():
            ignored = shutil.ignore_patterns("*.so", "*.o", "_core.c", "__pycache__")
            shutil.copytree(ROOT / name, project / name, ignore=ignored)
        else:
            shutil.copy(ROOT / name, project / name)
    (project / "csrc" / "fastpath" / "broken.c").write_text("#error no fast path here\n")
    return project


def build_wheel(project: Path, wanted: str) -> subprocess.CompletedProcess[str]:
    command = ("-m", "pip", "wheel", "-q", "--no-build-isolation", "--no-deps", "-w", "dist", ".")
    return run(*command, cwd=project, PYLOOP_CFLAGS="-O0", PYLOOP_FASTPATH=wanted)


def without_fastpath(directory: Path) -> bool:
    """Does pyloop in a directory say that it has no fast path?"""
    done = run("-c", f"{ALONE}    import pyloop; print(pyloop.info().why_not)", cwd=directory)
    return done.stdout == "pyloop._fastpath is not in this installation\n"


@pytest.mark.timeout(0)
def test_wheel_whose_fast_path_could_not_be_built_serves_without_it(broken: Path) -> None:
    built = build_wheel(broken, "")
    assert built.returncode == 0, built.stderr
    [wheel] = (broken / "dist").glob("*.whl")
    installed = broken / "installed"
    with zipfile.ZipFile(wheel) as archive:
        assert [name for name in archive.namelist() if "_fastpath" in name] == []
        archive.extractall(installed)
    smoke = f"runpy.run_path({str(ROOT / 'tests' / 'smoke.py')!r}, run_name='__main__')"
    done = run("-c", f"{ALONE}    {smoke}", cwd=installed, PYLOOP_FASTPATH="0")
    assert done.stdout.startswith("smoke test passed\n"), done.stdout + done.stderr
    assert f", in {installed / 'pyloop'}\n" in done.stdout
    assert without_fastpath(installed)


@pytest.mark.timeout(0)
def test_fast_path_that_is_insisted_on_fails_the_build(broken: Path) -> None:
    built = build_wheel(broken, "1")
    assert built.returncode == 1
    assert "#error no fast path here" in built.stdout + built.stderr


@pytest.mark.timeout(0)
def test_core_is_built_alone(broken: Path) -> None:
    built = run("build_ffi.py", cwd=broken, PYLOOP_CFLAGS="-O0")
    assert built.returncode == 0, built.stderr
    assert without_fastpath(broken)
