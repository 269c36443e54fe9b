"""The parts of the build that pyproject.toml cannot say: the cffi module, and the fast path."""

from __future__ import annotations

import os
import platform
from glob import glob

from setuptools import Extension, setup

# The fast path is CPython's, and optional: where it cannot be built, the Python twins serve,
# unless PYLOOP_FASTPATH=1 insists. It uses more than the stable ABI has, so there is a wheel for
# each CPython, although _core by itself (abi3) would do for all.
FASTPATH = Extension(
    "pyloop._fastpath",
    sorted(glob("csrc/fastpath/*.c")),
    include_dirs=["csrc"],
    depends=[*glob("csrc/*.h"), *glob("csrc/fastpath/*.h")],
    extra_compile_args=[
        *("-std=c11", "-D_GNU_SOURCE", "-O3", "-Wall", "-Wextra", "-fvisibility=hidden"),
        *os.environ.get("PYLOOP_CFLAGS", "").split(),
    ],
    extra_link_args=os.environ.get("PYLOOP_LDFLAGS", "").split(),
    optional=os.environ.get("PYLOOP_FASTPATH") != "1",
)

setup(
    cffi_modules=["build_ffi.py:ffibuilder"],
    ext_modules=[FASTPATH] if platform.python_implementation() == "CPython" else [],
)
