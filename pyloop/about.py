"""info: what this pyloop was built as, and what it finds here. For people, and reports of bugs."""

from __future__ import annotations

import os
import platform
import sys
import sysconfig
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from types import ModuleType

from pyloop import fast
from pyloop.core import cffi_version, ffi, lib
from pyloop.loop import BACKEND_NAMES, BACKENDS, CoreSelector

__all__ = ["EXTRAS", "Info", "info"]

EXTRAS = {
    "metrics": "prometheus_client",
    "nats": "nats",
    "redis": "redis",
    "reload": "watchfiles",
    "top": "textual",
}
"""What each of them brings, by the name that is imported."""
_VARIABLES = ("PYLOOP_BACKEND", "PYLOOP_FASTPATH")


@dataclass(frozen=True, slots=True)
class Info:
    """What `info` found; `str()` makes a text of it."""

    version: str
    location: str
    """The package's directory."""
    implementation: str
    """Of Python: "CPython", "PyPy"."""
    python: str
    """Its version, and so on."""
    cffi: str
    platform: str
    free_threaded: bool
    """Is this a CPython that can do without the GIL?"""
    gil: bool
    """Is there a GIL now?"""
    core: str
    """The file name of the C core."""
    compiler: str
    """What built it."""
    fastpath: str | None
    """The file name of the fast path; None: the Python twins serve."""
    why_not: str | None
    """Why there is no fast path."""
    backends: tuple[str, ...]
    """Those that work here."""
    auto: str | None
    """What backend="auto" starts on, PYLOOP_BACKEND considered; None: that cannot be had."""
    unusable: dict[str, str]
    """Of the other backends, why not."""
    environment: dict[str, str]
    """The variables for pyloop that are set."""
    extras: dict[str, bool]
    """Is it installed?"""

    def __str__(self) -> str:
        kind = ", free-threaded" if self.free_threaded else ""
        gil = "with the GIL" if self.gil else "without the GIL"
        rows = {
            "pyloop": f"{self.version}, in {self.location}",
            "Python": f"{self.implementation} {self.python}{kind}, {gil}; cffi {self.cffi}",
            "platform": self.platform,
            "core": f"{self.core}, built by {self.compiler}",
            "fast path": self.fastpath or f"none: {self.why_not}",
            "backends": f'{_listed(self.backends)}; "auto" starts on {self.auto or "none"}',
            "unusable": _listed(f"{name} ({why})" for name, why in self.unusable.items()),
            "environment": _listed(f"{key}={value}" for key, value in self.environment.items()),
            "extras": _listed(name for name, there in self.extras.items() if there),
            "not installed": _listed(name for name, there in self.extras.items() if not there),
        }
        return "\n".join(f"{name:<14} {text}" for name, text in rows.items())


def info() -> Info:
    """Return what this pyloop was built as, and which of its parts work here and now.

    It tries out each backend and looks for each extra: for a program's start, not its hot path.
    """
    backends, auto, unusable = _try_backends()
    return Info(
        version=_version(),
        location=os.path.dirname(__file__),
        implementation=platform.python_implementation(),
        python=platform.python_version(),
        cffi=cffi_version,
        platform=platform.platform(),
        free_threaded=bool(sysconfig.get_config_var("Py_GIL_DISABLED")),
        gil=getattr(sys, "_is_gil_enabled", lambda: True)(),
        core=_file_name(sys.modules["pyloop._core"]),
        compiler=ffi.string(lib.pl_compiler()).decode(),
        fastpath=None if fast.fastpath is None else _file_name(fast.fastpath),
        why_not=fast.why_not,
        backends=backends,
        auto=auto,
        unusable=unusable,
        environment={name: os.environ[name] for name in _VARIABLES if os.environ.get(name)},
        extras={name: find_spec(module) is not None for name, module in EXTRAS.items()},
    )


def _try_backends() -> tuple[tuple[str, ...], str | None, dict[str, str]]:
    """Return those that work, what "auto" starts on, and the others, each with the reason."""
    starts: dict[str, str] = {}
    unusable = {} if "io_uring" in BACKENDS else {"io_uring": "not in this build"}
    for name in BACKENDS:
        try:
            core = CoreSelector(name)
        except (OSError, ValueError) as exc:  # ValueError: PYLOOP_BACKEND, for "auto"
            unusable[name] = str(exc)
        else:
            starts[name] = BACKEND_NAMES[lib.pl_loop_backend(core.ptr)]
            core.close()
    auto = starts.pop("auto", None)
    return tuple(starts), auto, unusable


def _version() -> str:
    try:
        return version("pyloop-io")
    except PackageNotFoundError:  # a checkout that was built and not installed
        return "unknown"


def _file_name(module: ModuleType) -> str:
    return os.path.basename(module.__file__ or "built in")


def _listed(words: Iterable[str]) -> str:
    return ", ".join(words) or "none"
