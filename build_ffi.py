"""Build pyloop._core, the cffi module (API mode) over the C core.

The cdef is what stands between the two markers in the headers of the contract, so Python and C
read the same lines and there is no second copy to keep in step.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from cffi import FFI

CSRC = Path(__file__).resolve().parent / "csrc"
CONTRACT = (
    "pyloop_parts.h",
    "pyloop_page.h",
    "pyloop_map.h",
    "pyloop_memory.h",
    "pyloop_semaphore.h",
    "pyloop_ring.h",
    "pyloop_feed.h",
    "pyloop.h",
    "pyloop_datagram.h",
    "pyloop_api.h",
)
BEGIN, END = "/* cffi: begin */", "/* cffi: end */"


def contract() -> str:
    """Return the lines of the headers that Python may see."""
    headers = ((CSRC / name).read_text() for name in CONTRACT)
    return "".join(header.split(BEGIN)[1].split(END)[0] for header in headers)


def sources() -> list[str]:
    """Return the core's C files, relative to the project, for this platform."""
    names = sorted(path.name for path in CSRC.glob("*.c"))
    if not sys.platform.startswith("linux"):
        names.remove("poller_epoll.c")
    return [f"csrc/{name}" for name in names]


ffibuilder = FFI()
ffibuilder.cdef(contract())
ffibuilder.set_source(
    "pyloop._core",
    '#include "pyloop.h"\n#include "pyloop_api.h"',
    sources=sources(),
    include_dirs=["csrc"],
    libraries=["rt"] if sys.platform.startswith("linux") else [],  # shm_open, before glibc 2.34
    depends=[*(f"csrc/{path.name}" for path in CSRC.glob("*.h")), "build_ffi.py"],
    extra_compile_args=[
        *("-std=c11", "-D_GNU_SOURCE", "-O3", "-Wall", "-Wextra", "-fvisibility=hidden"),
        *os.environ.get("PYLOOP_CFLAGS", "").split(),
    ],
    # Before glibc 2.34 semaphores were in libpthread.
    extra_link_args=["-pthread", *os.environ.get("PYLOOP_LDFLAGS", "").split()],
)

if __name__ == "__main__":
    ffibuilder.compile(verbose=True)
