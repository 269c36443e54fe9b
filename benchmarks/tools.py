"""What the benchmarks need from the machine: compiled tools, two CPUs, facts, packages."""

from __future__ import annotations

import datetime
import functools
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from row import Peer

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
BUILD = ROOT / "build" / "bench"
CERTIFICATE = BUILD / "localhost.pem"  # with its key and its authority

LOAD = [f"load{part}.c" for part in ("", "_args", "_conn", "_cpu", "_report", "_tls", "_udp")]
PROGRAMS = {
    "load": LOAD,
    "load_tls": LOAD,
    "floor_epoll": ["floor_epoll.c"],
    "floor_select": ["floor_select.c"],
    "floor_ring": ["floor_ring.c"],
    "core_echo": ["core_echo.c", *map(str, sorted((ROOT / "csrc").glob("*.c")))],
}
CFLAGS = ["-O2", "-std=c11", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-I../csrc", "-pthread"]
LIBS = ["-lrt"]  # shm_open, before glibc 2.34
LIBRARIES = {"load_tls": ["-DLOAD_TLS", "-lssl", "-lcrypto"]}
OPTIONAL = {"load_tls"}  # left out where there are no headers of OpenSSL


class CannotRun(Exception):
    """The benchmarks cannot start at all; the text says what is missing."""


def compile_tools() -> None:
    """Build the C programs into build/bench/ where they are older than their sources."""
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")
    if not sys.platform.startswith("linux"):
        raise CannotRun("the benchmarks need Linux (epoll, /proc, CPU affinity)")
    BUILD.mkdir(parents=True, exist_ok=True)
    parts = [*HERE.glob("*.[ch]"), *(ROOT / "csrc").glob("*.[ch]")]
    newest = max(path.stat().st_mtime for path in parts)
    for name, sources in PROGRAMS.items():
        target = BUILD / name
        if target.exists() and target.stat().st_mtime > newest:
            continue
        if not compiler:
            raise CannotRun("no C compiler: install cc, gcc or clang, or set CC")
        fresh = BUILD / f"{name}.{os.getpid()}"  # others may run the old one, or compile too
        command = [*compiler.split(), *CFLAGS, "-o", str(fresh), *sources]
        command += [*LIBRARIES.get(name, ()), *LIBS]
        done = subprocess.run(command, cwd=HERE, capture_output=True, text=True)
        if done.returncode and name in OPTIONAL and "fatal error: openssl/" in done.stderr:
            target.unlink(missing_ok=True)
            continue
        if done.returncode:
            raise CannotRun(f"compiling {name} failed:\n{done.stderr}")
        fresh.replace(target)


class Cpus(NamedTuple):
    """Where server and generator run; `usable` is for rows in which both take what they get."""

    server: int
    generator: int
    usable: frozenset[int]


def choose_cpus() -> Cpus:
    """Give server and generator different CPUs where the mask allows."""
    usable = os.sched_getaffinity(0)
    return Cpus(min(usable), max(usable), frozenset(usable))


def raise_fd_limit() -> int:
    """Raise the soft limit of open files, which servers inherit, and return it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


PROBES = {  # expressions; a package that has none is missing
    "pyloop": "import_module('pyloop._core') and version('pyloop-io')",
    "pyloop.Loop": "import_module('pyloop._core') and version('pyloop-io')",
    "pyloop.model": "signature(import_module('pyloop').Server).parameters['model'].default",
    "fastpath": "import_module('pyloop._fastpath') and 'built'",
    "uvloop": "import_module('uvloop').__version__",
    "rloop": "import_module('rloop').__version__",
    "aiofastnet": "import_module('aiofastnet').__version__",
    "aiofastnet.uvloop": "import_module('uvloop') and import_module('aiofastnet').__version__",
    "gevent": "import_module('gevent').__version__",
    "uvicorn": "import_module('httptools') and import_module('uvicorn').__version__",
    "trustme": "version('trustme')",
    "cffi": "import_module('cffi').__version__",
    "python": "python_version()",
}
TOOLS = {  # programs that a row needs, and what to do where they are missing
    "load_tls": "install OpenSSL's headers (Debian: apt-get install libssl-dev)",
    "wrk": "install it (Debian: apt-get install wrk)",
}
ASK = """
import json, sys
from importlib import import_module
from importlib.metadata import version
from inspect import signature
from platform import python_version
found = {}
for name, probe in json.loads(sys.argv[1]).items():
    try:
        found[name] = eval(probe)
    except Exception:
        found[name] = None
print(json.dumps(found))
"""


def _ask(python: str, env: dict[str, str]) -> dict[str, str | None]:
    """Return what each probe says in that interpreter, None where it fails."""
    command = [python, "-c", ASK, json.dumps(PROBES)]
    done = subprocess.run(command, env=env, cwd=HERE, capture_output=True, text=True)
    if done.returncode:
        raise CannotRun(f"{python} does not run: {done.stderr}")
    return json.loads(done.stdout)


class Packages:
    """Which packages the server's interpreter has, and the environment it runs in.

    An installed pyloop is preferred; else the checkout, when it was built in place.
    """

    def __init__(self, python: str, base: str | None = None) -> None:
        if not (found := shutil.which(python)):
            raise CannotRun(f"no interpreter {python}")
        self.python = python = os.path.abspath(found)
        self.base = Packages(base) if base else None  # of peers that run with another pyloop
        self.env = dict(os.environ)
        self.versions = _ask(python, self.env)
        if self.versions["pyloop"] is None:
            path = [str(ROOT), self.env.get("PYTHONPATH", "")]
            self.env["PYTHONPATH"] = os.pathsep.join(filter(None, path))
            self.versions = _ask(python, self.env)

    def of(self, peer: Peer) -> Packages:
        """Return those that `peer` runs with."""
        return self.base if peer.base and self.base else self

    def lacks(self, needs: str | None) -> bool:
        """Whether a peer that needs `needs`, a package or one of TOOLS, cannot run."""
        if needs in TOOLS:
            return not shutil.which(needs, path=f"{BUILD}{os.pathsep}{os.environ.get('PATH', '')}")
        return needs is not None and self.versions[needs] is None

    @functools.cache  # noqa: B019 -- there is one of these, as long as the program runs
    def steps_for(self, microseconds: float) -> int:
        """Return how many steps of servers/work.py take so long on this machine."""
        command = [self.python, "servers/work.py", str(microseconds)]
        return int(subprocess.check_output(command, env=self.env, cwd=HERE))


CERTIFY = """
import sys, trustme
authority = trustme.CA()
made = authority.issue_cert("localhost")
made.private_key_and_cert_chain_pem.write_to_path(sys.argv[1])
authority.cert_pem.write_to_path(sys.argv[1], append=True)
"""


@functools.cache
def make_certificate(packages: Packages) -> None:
    """Make the certificate of servers on this machine, which nobody else trusts."""
    subprocess.run([packages.python, "-c", CERTIFY, str(CERTIFICATE)], env=packages.env, check=True)


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith(("model name", "Model", "cpu model")):
            return line.split(":", 1)[1].strip()
    return platform.machine()


def machine_facts(packages: Packages, cpus: Cpus) -> dict[str, object]:
    """What a reader needs to know of the machine; no host name, no path."""
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "server_cpu": cpus.server,
        "generator_cpu": cpus.generator,
        "kernel": platform.release(),
        "system": platform.system(),
        "libc": " ".join(platform.libc_ver()),
        "python": packages.versions["python"],
        "packages": {k: v for k, v in packages.versions.items() if k not in ("python",)},
        "load_average": os.getloadavg(),
    }
