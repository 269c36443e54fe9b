"""The parts of the build that pyproject.toml cannot say: the cffi module and its abi3 tag."""

from __future__ import annotations

import platform
import sysconfig

from setuptools import setup

# One wheel serves CPython 3.11 and every later one. PyPy and free-threaded builds have no such
# ABI: their wheels are tagged for the one version that built them.
ABI3 = platform.python_implementation() == "CPython" and not sysconfig.get_config_var(
    "Py_GIL_DISABLED"
)

setup(
    cffi_modules=["build_ffi.py:ffibuilder"],
    options={"bdist_wheel": {"py_limited_api": "cp311"}} if ABI3 else {},
)
