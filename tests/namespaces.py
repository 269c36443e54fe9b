"""Two machines on this one: network namespaces, joined by a cable and by nothing else.

    with two_machines() as (one, other):
        subprocess.Popen([*one.prefix, "a-server", one.address])
        sock = other.do(lambda: socket.create_connection((one.address, 80)))

Each has its own loopback, ports and addresses; processes and files are shared. To make them takes
ip of iproute2, and root (CAP_NET_ADMIN and CAP_SYS_ADMIN). Source: ip-netns(8), veth(4), setns(2).
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import ctypes
import itertools
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import pytest

CLONE_NEWNET = 0x40000000
_numbers = itertools.count()


class Machine:
    """A network namespace.

    Attributes:
        address: by which the other machine reaches it; it has 127.0.0.1 besides.
        prefix: what to write before a command, so that it runs there.
    """

    def __init__(self, name: str, address: str) -> None:
        self.name, self.address = name, address
        self.prefix = ("ip", "netns", "exec", name)

    def do(self, function: Callable[[], Any]) -> Any:
        """Call a function there; sockets that it makes stay there."""
        with concurrent.futures.ThreadPoolExecutor(1, initializer=self._enter) as thread:
            return thread.submit(function).result()

    def _enter(self) -> None:
        with open(f"/run/netns/{self.name}") as namespace:
            if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "setns")


def ip(command: str) -> None:
    subprocess.run(["ip", *command.split()], check=True, capture_output=True, text=True)


@contextlib.contextmanager
def two_machines() -> Iterator[tuple[Machine, Machine]]:
    """Make them, and take them away; skips the test, with the reason, where that is not allowed."""
    if shutil.which("ip") is None:
        assert "PYLOOP_CI" not in os.environ, "ip is missing"
        pytest.skip("ip (iproute2) is not installed")
    label = f"pl{os.getpid()}x{next(_numbers)}"
    machines = Machine(f"{label}a", "198.18.0.1"), Machine(f"{label}b", "198.18.0.2")
    with contextlib.ExitStack() as stack:
        for machine in machines:
            try:
                ip(f"netns add {machine.name}")
            except subprocess.CalledProcessError as exc:
                pytest.skip(f"no network namespaces: {exc.stderr.strip()}")
            stack.callback(ip, f"netns delete {machine.name}")
        one, other = machines
        ip(f"-n {one.name} link add cable type veth peer name cable netns {other.name}")
        for machine in machines:
            ip(f"-n {machine.name} address add {machine.address}/30 dev cable")
            ip(f"-n {machine.name} link set cable up")
            ip(f"-n {machine.name} link set lo up")
        yield one, other
