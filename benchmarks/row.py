"""What a row is made of: peers, a load, and targets.

Sizes are bytes on the wire, terminator or prefix included: a 64-byte line is 63
characters and the newline.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import tools

MIB = 1024 * 1024
FLOOR = "C epoll"
FASTEST = "the fastest peer"  # a name for whichever server or loop that is not pyloop is cheapest
LEVEL = 0.97  # the other's cost over ours: as good as equal, in this noise
WAYS_AT = (10, 100, 1000)  # connections


@dataclass(frozen=True)
class Peer:
    """One server to measure. `program` is a C tool or a script of servers/."""

    name: str
    program: str
    args: tuple[str, ...] = ()
    needs: str | None = None  # a package of tools.PROBES
    load: dict[str, object] = field(default_factory=dict)  # overrides the row's
    several: bool = False  # it serves with several threads, or processes: its children
    copies: int = 1  # servers that are started and share the connections
    base: bool = False  # on the interpreter of --base
    env: dict[str, str] = field(default_factory=dict)  # more environment
    crowd: int = 0  # idle connections that it holds meanwhile

    @property
    def ours(self) -> bool:
        """Whether this is pyloop."""
        return (self.needs or "").startswith("pyloop")

    def command(self, python: str, framing: str | None) -> list[str]:
        """The command line that starts this server."""
        if not self.program.endswith(".py"):
            return [str(tools.BUILD / self.program), *self.args, "--framing", framing]
        script = str(tools.HERE / "servers" / self.program)
        return [python, script, *self.args, *(["--framing", framing] if framing else [])]


@dataclass(frozen=True)
class Target:
    """A promise about the median of `peer`.

    With `against`, the ratio of costs measured in the same round: at most `at_most`
    times the other's, or the other's at least `ahead` times ours; with `at_least`, the ratio
    of messages per second. Without `against`: the cost. `figure` is another key of the samples
    than the cost.
    """

    peer: str
    against: str | None = None
    at_most: float | None = None
    ahead: float | None = None
    at_least: float | None = None
    figure: str = "cost"


@dataclass(frozen=True)
class Row:
    """One table: peers under the same load. Ratios are to `floor`, a peer's name."""

    key: str
    title: str
    load: dict[str, object]
    peers: tuple[Peer, ...]
    targets: tuple[Target, ...] = ()
    floor: str | None = FLOOR
    unit: str = "us/message"  # or us/MiB, us/connection, us/request, ns/operation, ms/import, B
    way: str = "load"  # how a sample is taken, see sampler.py
    hold: int = 0  # connections of a row that measures memory
    tls: bool = False  # they speak TLS
    tools: tuple[str, ...] = ()  # of tools.PROBES or tools.TOOLS, besides what a peer needs
    max_rounds: int = 1000
    rough: bool = False  # a few rounds tell whether its targets are met
    compute_us: float = 0  # what a handler computes, see servers/work.py
    pinned: bool = True  # server and generator each on a CPU of their own

    def load_for(self, peer: Peer) -> dict[str, object]:
        """The generator's options for `peer`."""
        return {**self.load, **peer.load}


C_EPOLL = Peer(FLOOR, "floor_epoll")
C_EPOLL_AGAIN = Peer("C epoll again", "floor_epoll")
C_SELECT = Peer("C select", "floor_select")
NEEDS = {"asyncio": None, "pyloop": "pyloop.Loop", "aiofastnet-uvloop": "aiofastnet.uvloop"}


def native(
    backend: str, handler: str = "function", *more: str, name: str = "", **load: object
) -> Peer:
    """Return pyloop's native server as a peer."""
    args = ("--backend", backend, "--handler", handler, *more)
    return Peer(name or f"pyloop {backend}", "pyloop_echo.py", args, "pyloop", load)


def on_gevent() -> Peer:
    """Return gevent's StreamServer as a peer."""
    return Peer("gevent StreamServer", "gevent_echo.py", needs="gevent")


def cffi_alone(peer: Peer) -> Peer:
    """Return the same peer without the C twins of Python's objects."""
    return replace(peer, name=f"{peer.name}, cffi alone", env={"PYLOOP_FASTPATH": "0"})


def on_asyncio(loop: str, kind: str, *more: str, name: str = "", **load: object) -> Peer:
    """Return a server written with asyncio, on one of its loops, as a peer.

    `loop` is a name of servers/asyncio_echo.py; "pyloop select" is pyloop.Loop on that backend.
    """
    loop, _, backend = loop.partition(" ")
    shown = loop
    if loop == "pyloop":
        more += ("--backend", backend or "epoll")
        shown = f"pyloop.Loop {backend}".rstrip()
    args = ("--loop", loop, "--kind", kind, *more)
    return Peer(name or f"{shown} {kind}", "asyncio_echo.py", args, NEEDS.get(loop, loop), load)
